"""The threads of one device share the turns of a loop (see `sharing`): what `cpu.Crew` does with a loop beside which nothing else can be done.

The rules are those of `walk.Walk`: a step of turn i waits for steps of turns i, i - 1, ..., and at most `window` turns are in flight. The end of a
turn is a place among its steps, which nobody has to do: it comes when the steps that nothing of the turn waits for are done and the turn before
has ended, and turn + window begins. What is left of the oldest turn goes first: whoever waits for it waits in vain meanwhile, and what is ahead of
it lies in a ring.

What a thread has made ready and may go on at once it goes on with, a chain of steps (each turn needs the state of the one before) first of all.
What can wait, the end of the turn and what it lets begin, is *owed*, and settled for several turns at once: by a thread that runs out of steps, or
when it is many. A thread that owes is running, and settles before it sleeps; so others may sleep meanwhile, and io threads are woken for many steps
at a time.

Hot path: after kernels of some milliseconds little of the interpreter is left in a core's caches, and what is dispatched costs by the code and data
that it touches, three to five times what it costs in a tight loop; and who comes back from a kernel meanwhile waits for the interpreter, which costs
both more than the wait. So between two steps there are a few lookups in flat lists, and calls that are bound for each ring slot.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush, heappushpop
from itertools import cycle
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any, TypeAlias

from hetsched.executors.frame import Frame
from hetsched.executors.program import Program
from hetsched.executors.seat import SAMPLES, SHORT_SECONDS, WORTH, Seat
from hetsched.executors.sharing import KINDS, WAKE_SECONDS, Sharing, is_atomic, is_plain
from hetsched.executors.tracing import KEPT_TURNS, TIMED_TURNS, Log

if TYPE_CHECKING:
    from hetsched.executors.cpu import Crew

Act: TypeAlias = Callable[[int], None]

# So many steps, as a share of the turns in flight, may owe what can wait, so that io threads are woken for many at a time. Where another thread has
# nothing to do a chain may owe a quarter of that, and other steps nothing.
LAG = 3 / 4

# A loop tells of its progress this often.
TELL_SECONDS = 0.05

# A thread looks this often whether it has a core of its own (see `cores`): 3 us where the caches are cold.
LOOK_SECONDS = 0.01

# Who gives the chain away looks this often whether it was taken.
TAKEN_SECONDS = 5e-5


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


class Pattern:
    """What waits for what in the turns of a body: `order` holds the steps by place, and the place after the last is the end of the turn.

    A step of a turn has the *code* turn * places + place. What waits for it has a code larger by one of the numbers in near[place] (threads of the
    same kind do it), far[place] (those of the other kind), which may go on at once, and later[place], which can wait a while.
    """

    def __init__(self, program: Program) -> None:
        steps = program.steps
        self.window = max(program.window, 1)
        self.lag = int(self.window * LAG)
        self.order = sorted(range(len(steps)), key=lambda s: (steps[s].start, s))
        self.is_io = [steps[step].kind == "io" for step in self.order]
        place = {step: at for at, step in enumerate(self.order)}
        self.arcs = self._with_ends([(place[before], place[later], turns) for before, later, turns in dict.fromkeys(program.arcs)])
        self.places = places = len(steps) + 1
        self.near: list[list[int]] = [[] for _ in range(places)]
        self.far: list[list[int]] = [[] for _ in range(places)]
        self.later: list[list[int]] = [[] for _ in range(places)]
        for before, later, turns in self.arcs:
            if turns > self.lag or places - 1 in (before, later):
                group = self.later
            else:
                group = self.near if self.is_io[before] == self.is_io[later] else self.far
            group[before].append(turns * places + later - before)
        soon = [arc[:2] for arc in self.arcs if arc[2] <= self.lag and places - 1 not in arc[:2]]
        self.is_serial = on_cycles(len(steps), soon) if self.lag else [False] * len(steps)
        for at, row in enumerate(self.near):  # a thread holds what goes on with a chain, and leaves the rest to others
            row.sort(key=lambda more: not self.is_serial[(at + more) % places])
        chain = [at for at, step in enumerate(self.order) if self.is_serial[at] and not self.is_io[at] and steps[step].seconds > SHORT_SECONDS]
        # Behind the longest step of the chain it may change hands (see `seat`); -1: there is no chain, or it is of short steps.
        self.chain = max(chain, key=lambda at: steps[self.order[at]].seconds, default=-1)
        # So many turns may hold tokens at a time: turns ahead of what is in flight wait for it.
        self.ring = self.window + max(turns for _, _, turns in self.arcs)

    def _with_ends(self, arcs: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
        """The arcs within turns and between them, and those of the ends of turns, which let turns begin."""
        end = len(self.order)
        leads, held = ({arc[i] for arc in arcs if not arc[2]} for i in (0, 1))
        arcs += [(at, end, 0) for at in range(end) if at not in leads]
        arcs += [(end, at, self.window) for at in range(end) if at not in held]
        return [*arcs, (end, end, 1)]

    def tokens(self, turns: int) -> tuple[list[Iterator[int]], list[int]]:
        """The tokens of the first turns by code, those of the turns before the first taken; and the codes of steps that wait for nothing.

        A step waits for k others: its tokens are k - 1 ones and a zero, which who takes it has made the step ready; then they begin anew, for the
        turn that comes a ring later.
        """
        into: list[list[int]] = [[] for _ in range(self.places)]
        for _, later, distance in self.arcs:
            into[later].append(distance)
        ones = [(*[1] * (len(row) - 1), 0) for row in into]
        tokens: list[Iterator[int]] = [cycle(row) for _ in range(self.ring) for row in ones]
        ready = []
        for code in range(min(self.ring, turns) * self.places):
            turn, at = divmod(code, self.places)
            missing = sum(distance > turn for distance in into[at])
            for _ in range(missing):
                next(tokens[code])
            if missing == len(into[at]):
                ready.append(code)
        return tokens, ready


class Rounds(Sharing):
    """One run of a loop's body. A ready step is its code (see `Pattern`)."""

    def __init__(self, crew: Crew, frame: Frame) -> None:
        super().__init__(crew, frame)
        self.program = program = frame.program
        self.pattern = pattern = Pattern(program)
        self.turns, self.order, self.lag = frame.turns, pattern.order, pattern.lag
        # Where another thread has nothing to do, what is owed is settled behind a step once it is so many.
        self.least = [self.lag // 4 if is_serial else 1 for is_serial in pattern.is_serial]
        self.end = self.turns * self.places
        self.tokens, ready = pattern.tokens(self.turns)
        # Codes of what is done and owes what can wait.
        self.owed: deque[int] = deque()
        self.planned = [program.steps[step].seconds for step in pattern.order]
        # Steps as functions of the turn, by place and turn: as many as there are meetings of ring slots, each made when it is needed.
        self.acts: list[list[Act | None]] = [[None] * frame.bindings.period(step) for step in pattern.order]
        self.sizes = [len(program.steps[step].spans) for step in pattern.order]
        self.careful = self._find_careful()
        # Every so many turns comes a smaller one, whose steps are bound to other arrays; 0: never.
        loop = program.plan.loop
        self.cycle = loop.cycle if loop is not None and loop.remainder is not None else 0
        self.seat = Seat(pattern.window)
        self.told = 0.0
        self.halted = not self.turns
        for code in ready:
            heappush(self.ready[KINDS[pattern.is_io[code % self.places]]], code)

    def _act(self, at: int, turn: int) -> Act:
        """A step of a turn as a function of the turn, for all turns that meet the same ring slots."""
        row = self.acts[at]
        act = row[turn % len(row)] = self.frame.bindings.act(self.pattern.order[at], turn, self.turns // len(row))
        return act

    def _find_careful(self) -> frozenset[int]:
        """Codes of steps whose tasks are timed one by one, and of those of the last turn, whose elements may be smaller than the others."""
        places = self.places
        found = set(range(self.end - places, self.end))
        if self.crew.trace:
            several = [at for at, size in enumerate(self.sizes) if size > 1]
            found |= {turn * places + at for turn in TIMED_TURNS for at in several}
        return frozenset(found)

    @property
    def places(self) -> int:
        """See `Sharing.places`: the steps, and the end of the turn."""
        return self.pattern.places

    @property
    def seconds(self) -> float:
        """See `Sharing.seconds`."""
        return sum(log.seconds for log in self.logs)

    def so_far(self) -> int:
        """See `Sharing.so_far`."""
        return self.crew.done + sum(log.done for log in self.logs)

    def offer(self, heap: list[int], idle: list[Any]) -> None:
        """Wake one of the idle, unless what waits takes less than waking costs."""
        places, planned = self.places, self.planned
        if sum(planned[code % places] for code in heap[:8]) >= WAKE_SECONDS:
            self._wake(idle, 1)

    def follow(self, first: int, kind: str, lane: int, heap: list[int], idle: list[Any], log: Log) -> None:
        """See `Sharing.follow`; `first` is a code."""
        crew, pattern, mine, places, tokens, end, owed = self.crew, self.pattern, kind == "io", self.places, self.tokens, self.end, self.owed
        order = self.order
        near, far, later, acts, lag, least, span = pattern.near, pattern.far, pattern.later, self.acts, self.lag, self.least, len(tokens)
        take, clock, careful, smaller, note, looked = next, perf_counter, self.careful, self.cycle, log.times.extend, perf_counter()
        kept, late = (KEPT_TURNS * places, end - KEPT_TURNS * places) if crew.trace else (0, end)
        settle = crew.cores.settle if crew.cores is not None and not mine else None
        is_asked = crew.deadline is not None or crew.progress is not None
        chain, took = pattern.chain, deque[float](maxlen=SAMPLES)
        code = first
        while True:
            turn, at = divmod(code, places)
            try:
                if code in careful or (smaller and (turn + 1) % smaller == 0):
                    start = self._carefully(code, log)
                else:
                    row = acts[at]
                    act = row[turn % len(row)] or self._act(at, turn)
                    start = clock()
                    act(turn)
            except BaseException as error:
                self._fail(error)
                return
            finish = clock()
            log.seconds += finish - start
            if code < kept or code >= late:
                note((code, start, finish))
            best = -1
            for more in near[at]:
                if not take(tokens[(code + more) % span]) and code + more < end:
                    if best < 0:
                        best = code + more
                    else:
                        heappush(heap, code + more)
            for more in far[at]:
                if not take(tokens[(code + more) % span]) and code + more < end:
                    self._hand_over(code + more, not mine)
            if later[at]:
                owed.append(code)
                if len(owed) >= lag or (idle and len(owed) >= least[at]):
                    self._settle(mine)
            if self.halted or (is_asked and self._is_due(code, finish, log) and self._asked(order[at], finish)):
                return
            if at == chain:
                took.append(finish - start)
                if self.starved > WORTH * (finish - start) and best >= 0 and self._is_given_away(best, heap, idle, lane, took):
                    best = -1
                    if self.halted:
                        return
            code = heappushpop(heap, best) if best >= 0 else self._next(heap, mine)
            if code < 0:
                return
            if heap and idle:
                self.offer(heap, idle)
            if settle is not None and finish - looked > LOOK_SECONDS:
                looked = finish
                settle(lane)

    def _carefully(self, code: int, log: Log) -> float:
        """A step of a turn that is not like the others; gives when it started."""
        turn, at = divmod(code, self.places)
        frame, step, marks = self.frame, self.pattern.order[at], None
        frame.bindings.prepare(step, turn)
        start = perf_counter()
        if self.crew.trace and turn in TIMED_TURNS and self.sizes[at] > 1:
            marks = frame.perform_timed(step, turn, self.crew.zero)
        else:
            frame.perform(step, turn)
        if marks is not None:
            log.marks[code] = marks
        return start

    def _next(self, heap: list[int], mine: bool) -> int:
        """The ready step of highest priority; where there is none, what is owed is settled first. -1: nothing is ready."""
        while True:
            try:
                return heappop(heap)
            except IndexError:
                if not self.owed:
                    return -1
                self._settle(mine)

    def _settle(self, mine: bool) -> None:
        """What could wait when steps were done: what follows much later, and the ends of their turns, which let others begin.

        mine: whether the calling thread is one for io.
        """
        tokens, later, is_io, places, owed = self.tokens, self.pattern.later, self.pattern.is_io, self.places, self.owed
        span, last, heap = len(tokens), places - 1, self.ready[KINDS[mine]]
        while True:
            try:
                code = owed.popleft()
            except IndexError:
                return
            for more in later[code % places]:
                other = code + more
                if next(tokens[other % span]):
                    continue
                at = other % places
                if at == last:
                    owed.append(other)
                elif other < self.end and is_io[at] == mine:
                    heappush(heap, other)
                elif other < self.end:
                    self._hand_over(other, not mine)
            if code == self.end - 1:
                self.halt()

    def _is_given_away(self, code: int, heap: list[int], idle: list[Any], lane: int, took: deque[float]) -> bool:
        """Where it is better so, leave the chain's next step to another thread that computes, and wait until that has it: at most a step longer."""
        self.starved = 0.0
        if code < self.pattern.window * self.places or len(took) < SAMPLES:  # in the first turns threads wait for what is loaded
            return False
        if not self.pattern.is_serial[code % self.places]:  # it does not go on with the chain, which waits for something, or which another thread has
            return False
        if not self.seat.is_left(lane, code // self.places, took):
            return False
        self._settle(False)
        heappush(heap, code)
        self._wake(idle, 1)
        until = perf_counter() + took[-1]
        if self.crew.deadline is not None:
            until = min(until, self.crew.deadline)
        while code in heap and not self.halted and perf_counter() < until:
            sleep(TAKEN_SECONDS)
        return True

    def _is_due(self, code: int, now: float, log: Log) -> bool:
        """Count a step; True where it is time to tell of it, or too late."""
        turn, at = divmod(code, self.places)
        log.done += self.program.commands(self.order[at], turn, turn + 1) if self.program.every else self.sizes[at]
        deadline = self.crew.deadline
        if now - self.told > TELL_SECONDS or (deadline is not None and now > deadline):
            self.told = now
            return True
        return False
