"""The threads of one device share the turns of a loop (see `sharing`): what `cpu.Crew` does with a loop beside which nothing else can be done.

The rules are those of `walk.Walk`: a step of turn i waits for steps of turns i, i - 1, ..., and at most `window` turns are in flight. A turn *closes*
when its steps are done and the turn before has closed; then turn + window begins. Tokens of turns stand in a ring: those of a turn that has closed
are laid out anew for the turn that comes a ring later. What is left of the oldest turn goes first: whoever waits for it waits in vain
meanwhile, and what is ahead of it lies in a ring.

Who is at a chain of steps (each turn needs the state of the one before) goes straight on: what can wait, the end of the turn and what it lets
begin, is *owed*, and settled for several turns at once by a thread that is about to run out of steps, or by the chain's own when it owes many or
its chain stops. A thread that owes is running, and settles before it sleeps; so others may sleep meanwhile. Io threads leave what follows their
steps to those that compute, unless one of those sleeps.

Hot path: 4 to 8 us between two steps of a chain in benchmarks/streaming.py (45 where it closes its turns itself and wakes io threads).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from heapq import heappop, heappush, heappushpop
from time import perf_counter
from typing import TYPE_CHECKING, Any

from hetsched.executors.cores import LONG_SECONDS
from hetsched.executors.frame import Frame
from hetsched.executors.program import Program
from hetsched.executors.sharing import KINDS, WAKE_SECONDS, Sharing, is_atomic, is_plain
from hetsched.executors.tracing import KEPT_TURNS, TIMED_TURNS, Note
from hetsched.timeline import Launch

if TYPE_CHECKING:
    from hetsched.executors.cpu import Crew

# Who is at a chain of steps leaves up to this share of the turns in flight for others to close, so that io threads are woken for many at a time. A
# quarter of that is all that is left where somebody has nothing to do, or nearly: fewer than LOW steps are ready.
LAG = 3 / 4
LOW = 2

# A loop tells of its progress this often.
TELL_SECONDS = 0.05


def suits(program: Program, host: str) -> bool:
    """True for the body of a loop: plain launches, each on one lane of `host`, and nothing that stops the loop."""
    if program.plan.loop is None or not program.steps or program.stop_step >= 0 or not is_atomic():
        return False
    return all(arc.turns >= 0 for arc in program.arcs) and is_plain(program, host)


def is_lonely(program: Program, step: int) -> bool:
    """True if every other step of a straight plan comes before or after `step`: nothing can be done beside it."""
    into: list[list[int]] = [[] for _ in program.steps]
    out: list[list[int]] = [[] for _ in program.steps]
    for before, later, _ in program.arcs:
        into[later].append(before)
        out[before].append(later)
    found = 1
    for near in (into, out):
        seen, stack = {step}, [step]
        while stack:
            for other in near[stack.pop()]:
                if other not in seen:
                    seen.add(other)
                    stack.append(other)
        found += len(seen) - 1
    return found == len(program.steps)


def on_cycles(n: int, arcs: Sequence[tuple[int, int]]) -> list[bool]:
    """For each of n places, whether it lies on a cycle of `arcs`, or on a way from one cycle to another."""
    kept = [True] * n
    for come, go in ((0, 1), (1, 0)):  # peel off what nothing leads to, then what leads to nothing
        after: list[list[int]] = [[] for _ in range(n)]
        waits = [0] * n
        for arc in arcs:
            after[arc[come]].append(arc[go])
            waits[arc[go]] += 1
        free = [at for at in range(n) if not waits[at]]
        while free:
            at = free.pop()
            kept[at] = False
            for other in after[at]:
                waits[other] -= 1
                if not waits[other]:
                    free.append(other)
    return kept


class Log:
    """What one thread did: notes for the trace, and for each step, by place, how often and how long."""

    def __init__(self, lane: int, steps: int) -> None:
        self.lane = lane
        self.notes: list[Note] = []
        self.times = [0] * steps
        self.seconds = [0.0] * steps


class Rounds(Sharing):
    """One run of a loop's body. A ready step is the number turn * steps + place, where `place` is its position among the steps of its turn."""

    def __init__(self, crew: Crew, frame: Frame) -> None:
        super().__init__(crew)
        self.frame = frame
        program = frame.program
        self.turns, self.window = frame.turns, max(program.window, 1)
        n = len(program.steps)
        self.order = sorted(range(n), key=lambda s: (program.steps[s].start, s))  # step, by place; all the rest is by place too
        place = [0] * n
        for at, step in enumerate(self.order):
            place[step] = at
        # What waits for a step, as (place, turns): what may go on at once, and what can wait a while.
        self.soon: list[list[tuple[int, int]]] = [[] for _ in range(n)]
        self.later: list[list[tuple[int, int]]] = [[] for _ in range(n)]
        self.lag = int(self.window * LAG)
        self.least = self.lag // 4
        distances: list[list[int]] = [[] for _ in range(n)]
        soon = []
        for before, later, turns in dict.fromkeys(program.arcs):
            arc = (place[before], place[later])
            (self.soon if turns <= self.lag else self.later)[arc[0]].append((arc[1], turns))
            if turns <= self.lag:
                soon.append(arc)
            distances[arc[1]].append(turns)
        self.is_serial = on_cycles(n, soon) if self.lag else [False] * n
        # Steps that nothing in their own turn holds back: they wait for their turn to begin.
        self.roots = [at for at in range(n) if 0 not in distances[at]]
        self.ring = self.window + max((d for row in distances for d in row), default=0)
        # Steps of chains that are done: what can wait of them is settled by whoever has the time, at the latest by the thread that is at the chain.
        self.owed: deque[int] = deque()
        # For each step of a turn a token for each step it waits for, and for a root one for the turn's beginning; the one taken last is 0.
        is_root = set(self.roots)
        waits = [[sum(d <= turn for d in row) + (at in is_root) for at, row in enumerate(distances)] for turn in range(self.ring)]
        self.tokens = [[[0, *[1] * (k - 1)] for k in row] for row in waits]
        self.steady = [[0, *[1] * (k - 1)] for k in waits[-1]]
        # For each turn a token for each of its steps, and one for the turn before.
        self.whole = [0, *[1] * n]
        self.left = [self.whole[: n + (turn > 0)] for turn in range(self.ring)]
        self.is_io = [program.steps[step].kind == "io" for step in self.order]
        # Steps of io threads that lead to none of theirs: those that compute see to what follows, when they next look.
        self.lands = [self.is_io[at] and not self.is_serial[at] and not any(self.is_io[b] for b, _ in self.soon[at]) for at in range(n)]
        self.planned = [program.steps[step].seconds for step in self.order]
        self.logs: list[Log] = []
        self.told = 0.0
        self.halted = not self.turns
        for turn in range(min(self.window, self.turns)):
            for at in self._admit(turn):
                heappush(self.ready[KINDS[self.is_io[at]]], turn * n + at)

    def _admit(self, turn: int) -> list[int]:
        row = self.tokens[turn % self.ring]
        return [at for at in self.roots if not row[at].pop()]

    def _settle(self, code: int, readied: list[int]) -> None:
        """What can wait when a step is done: what follows much later, and the end of its turn. Adds what has become ready."""
        steps, ring = len(self.order), self.ring
        turn = code // steps
        for later, distance in self.later[code - turn * steps]:
            target = turn + distance
            if target < self.turns and not self.tokens[target % ring][later].pop():
                readied.append(target * steps + later)
        while not self.left[turn % ring].pop():
            # The last token of the turn: it closes, and those behind it that wait for nothing else.
            slot = turn % ring
            for row, again in zip(self.tokens[slot], self.steady):
                row += again
            self.left[slot] += self.whole
            after = turn + self.window
            if after < self.turns:
                readied += [after * steps + at for at in self._admit(after)]
            turn += 1
            if turn >= self.turns:
                self.halt()
                return

    def _settle_all(self, owed: deque[int], readied: list[int]) -> None:
        while True:
            try:
                code = owed.popleft()
            except IndexError:
                return
            self._settle(code, readied)

    def _follow_up(self, readied: list[int]) -> None:
        """What io threads have left to those that compute. Adds what has become ready."""
        behind = self.behind["compute"]
        while True:
            try:
                code = behind.popleft()
            except IndexError:
                return
            self._lead_on(code, readied)
            self._settle(code, readied)

    def _lead_on(self, code: int, readied: list[int]) -> None:
        """What may go on at once when a step is done. Adds what has become ready."""
        steps, ring = len(self.order), self.ring
        turn = code // steps
        for later, distance in self.soon[code - turn * steps]:
            target = turn + distance
            if target < self.turns and not self.tokens[target % ring][later].pop():
                readied.append(target * steps + later)

    def catch_up(self) -> None:
        """See `Sharing.catch_up`."""
        readied: list[int] = []
        self._follow_up(readied)
        for code in readied:
            self._hand_over(code, self.is_io[code % len(self.order)])

    def new_log(self, lane: int) -> Log:
        """See `Sharing.new_log`."""
        log = Log(lane, len(self.order))
        self.logs.append(log)
        return log

    def offer(self, heap: list[int], idle: list[Any]) -> None:
        """Wake one of the idle, unless what waits takes less than waking costs."""
        steps, planned = len(self.order), self.planned
        if sum(planned[code % steps] for code in heap[:8]) >= WAKE_SECONDS:
            self._wake(idle, 1)

    def follow(self, first: int, kind: str, lane: int, heap: list[int], idle: list[Any], log: Log) -> None:
        """See `Sharing.follow`; `first` is turn * steps + place."""
        crew, order, is_io, is_serial, lands, owed, lag = self.crew, self.order, self.is_io, self.is_serial, self.lands, self.owed, self.lag
        least = self.least
        steps, turns, mine, behind, computing = len(order), self.turns, kind == "io", self.behind["compute"], self.idle["compute"]
        perform, clock, times, seconds = self.frame.perform, perf_counter, log.times, log.seconds
        kept = KEPT_TURNS if crew.trace else 0
        late = turns - kept
        is_asked = crew.deadline is not None or crew.progress is not None
        settle = crew.cores.settle if crew.cores is not None and not mine and max(self.planned) > LONG_SECONDS else None
        code = first
        while True:
            turn = code // steps
            at = code - turn * steps
            if settle is not None and self.planned[at] > LONG_SECONDS:
                settle(lane)
            marks = None
            try:
                if turn in TIMED_TURNS:
                    start, marks = self._timed(order[at], turn)
                else:
                    start = clock()
                    perform(order[at], turn)
            except BaseException as error:
                self._fail(error)
                return
            finish = clock()
            times[at] += 1
            seconds[at] += finish - start
            if turn < kept or turn >= late:
                log.notes.append(Note(order[at], turn, log.lane, start - crew.zero, finish - crew.zero, marks))
            best = -1
            if lands[at]:
                behind.append(code)
                if computing:
                    self.catch_up()
            else:
                readied: list[int] = []
                self._lead_on(code, readied)
                if is_serial[at]:
                    if len(readied) == 1 and len(owed) < (least if idle else lag):
                        (best,) = readied
                        if is_serial[best % steps] and is_io[best % steps] == mine and not (heap and heap[0] < best):
                            owed.append(code)
                            if self.halted or (is_asked and self._asked(at, finish)):
                                return
                            code = best
                            continue
                        best = -1
                    self._settle_all(owed, readied)
                if behind:
                    self._follow_up(readied)
                if not is_serial[at] and len(owed) > least and (len(heap) + len(readied) < LOW or len(owed) + 1 >= lag):
                    self._settle_all(owed, readied)
                self._settle(code, readied)
                for other in readied:
                    if is_io[other % steps] != mine:
                        self._hand_over(other, not mine)
                    elif best < 0:
                        best = other
                    elif other < best:
                        heappush(heap, best)
                        best = other
                    else:
                        heappush(heap, other)
            if self.halted or (is_asked and self._asked(at, finish)):
                return
            if best < 0:
                try:
                    code = heappop(heap)
                except IndexError:
                    return
            else:
                code = heappushpop(heap, best)
            if heap and idle:
                self.offer(heap, idle)

    def _asked(self, at: int, now: float) -> bool:
        """Tell how far the loop is; True if it is to stop."""
        crew = self.crew
        if crew.deadline is not None and now > crew.deadline:
            self._stop(True)
        elif crew.progress is not None and now - self.told > TELL_SECONDS:
            self.told = now
            try:
                self._tell(self.order[at])
            except BaseException as error:  # whoever listens has gone away, perhaps
                self._fail(error)
        return self.halted

    def _timed(self, step: int, turn: int) -> tuple[float, Mapping[int, float] | None]:
        """A step of one of the turns in which tasks are timed one by one: when it started, and when each of its tasks ended."""
        frame, zero = self.frame, self.crew.zero
        if not self.crew.trace or len(frame.program.steps[step].spans) < 2:
            start = perf_counter()
            frame.perform(step, turn)
            return start, None
        frame.bindings.prepare(step, turn)
        start = perf_counter()
        return start, frame.perform_timed(step, turn, zero)

    def _tell(self, step: int) -> None:
        crew, program = self.crew, self.frame.program
        assert crew.progress is not None
        command = program.plan.spans[program.steps[step].spans[-1]].command
        assert isinstance(command, Launch)
        done = sum(n * len(program.steps[s].spans) for log in self.logs for n, s in zip(log.times, self.order, strict=True))
        crew.progress(crew.done + done, crew.total, self.frame.graph.task_names[command.task])
