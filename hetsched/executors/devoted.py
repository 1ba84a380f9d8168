"""A loop that one stream of a device does by itself: its turns are handed over one after another, and nothing is asked in between.

So it is where all launches of the body are on one lane of one device, nothing of a turn is wanted on the host before the loop is over, and nothing
else can be done beside the loop. The walk then has only one order left, that of the stream; the thread that begins the loop hands over the turns
itself. The number of the turn is counted on the device, and what turns bring to the host (losses, say) is laid up there to the end. So turns differ
in their ring slots alone, and a stream that captures graphs gets several turns as one (`Stream.segment`): dispatching a turn costs a fraction of a
microsecond of the host.

Tasks of every k turns, and calls that only the host can do, are handed over one by one. Each combination of ring slots is, too, the first time it
comes: kernels are built then.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from hetsched.executors import rounds
from hetsched.executors.active import Active, Item, name_of
from hetsched.executors.backends._sites import task_of
from hetsched.executors.binding import LATER, MOVE, Call
from hetsched.executors.outline import in_order
from hetsched.executors.tracing import KEPT_TURNS, Note, apportioned, marked
from hetsched.graph.spec import array_form
from hetsched.machine import HOST
from hetsched.timeline import Copy, Launch

if TYPE_CHECKING:
    from hetsched.executors.cpu import Crew

# Fewer turns are not worth it.
LEAST_TURNS = 16
# What is brought to the host from each turn is laid up on the device if it has at most so many elements a turn, and so many bytes in all.
MOST_LAID_UP = 4096
MOST_LAID_UP_NBYTES = 32 << 20
# Launches of the first turns are timed one by one, as they are where the walk hands them over.
TIMED_TURNS = 8
# A graph holds at most so many turns and launches: what is saved by more is nothing beside what capturing them costs.
MOST_TURNS = 8
MOST_LAUNCHES = 192
# Events that mark how far the stream is: one in so many turns, or in so much time as planned; the host is ahead by so many of them at most.
MARK_TURNS = 64
MARK_SECONDS = 5e-3
AHEAD_MARKS = 4
# A loop tells of its progress this often.
TELL_SECONDS = 0.05


def stream_for(crew: Crew, item: Item, inner: Active) -> Any:
    """The stream that does the loop of `inner` by itself; None where several do, or the host has to look at what is made."""
    frame = inner.frame
    program, plan = frame.program, frame.plan
    driver = inner.drivers[0] if inner.drivers else None
    if driver is None or any(d is not driver for d in inner.drivers) or frame.turns < LEAST_TURNS:
        return None
    if crew.keep_going or crew.replanner is not None or program.stop_step >= 0 or item.active.around is not None:
        return None
    if any(arc.turns < 0 for arc in program.arcs) or any(frame.gathers(step.index) for step in program.steps):
        return None
    for span in plan.spans:
        command = span.command
        if isinstance(command, Copy):
            is_turn = command.value == frame.turn_value and command.src.node == HOST and command.dst.node != HOST
            if command.src.generation or command.dst.generation or not (is_turn or _is_laid_up(inner, command)):
                return None
    lanes = {lane for step in program.steps for lane in step.lanes if lane.kind != "copy"}
    if len(lanes) != 1 or not rounds.is_lonely(item.active.frame.program, item.step.index):
        return None
    stream_of: Any = getattr(driver, "stream_of", None)
    stream = stream_of(lanes.pop()) if stream_of is not None else None
    if not getattr(stream, "counts_turns", False):
        return None
    try:
        _Pattern.of(inner, stream)
    except MemoryError:  # what it counts and lays up with is no part of the plan, nor needed: the walk does without
        return None
    return stream


def _is_laid_up(inner: Active, command: Copy) -> bool:
    """True for a copy of something small to its place in a sequence."""
    frame, value = inner.frame, command.value
    form = array_form(frame.graph.spec(value))
    if command.dst.node != HOST or command.src.node == HOST or form is None or form.is_bounded:
        return False
    is_small = 0 < form.size <= MOST_LAID_UP and form.nbytes * frame.turns <= MOST_LAID_UP_NBYTES
    return is_small and frame.gathering.is_straight(value) and not frame.gathering.is_by_rows(value)


class _Turn:
    """A turn for one combination of ring slots. pieces: calls that follow each other, and whether a graph may hold them. steps: those that have some.

    has_run: its kernels are built.
    """

    __slots__ = ("has_run", "pieces", "steps")

    def __init__(self) -> None:
        self.pieces: list[tuple[list[Call], bool]] = []
        self.steps: set[int] = set()
        self.has_run = False

    @property
    def is_plain(self) -> bool:
        """True if it may be a part of a graph."""
        return self.has_run and len(self.pieces) == 1 and self.pieces[0][1]


class _Pattern:
    """What a body's frame keeps from run to run, as its arrays lie where they lay: the calls of turns by ring slots, those of several turns together,

    and where turns are counted.
    """

    def __init__(self, inner: Active, stream: Any) -> None:
        bindings = inner.frame.bindings
        self.stream = stream
        self.counter = stream.scratch((), np.int64)
        # Value -> where its elements are laid up, and how many are there.
        self.laid_up: dict[int, tuple[Any, Any]] = {}
        for span in inner.frame.plan.spans:
            if isinstance(c := span.command, Copy) and c.dst.node == HOST:
                form = array_form(inner.frame.graph.spec(c.value))
                assert form is not None
                self.laid_up[c.value] = (stream.scratch((inner.frame.turns, *form.bounds), form.dtype), stream.scratch((), np.int64))
        self.order = in_order(inner.frame.program)
        self.period = math.lcm(*(bindings.period(step) for step in self.order))
        self.keys: dict[tuple[int, bool], tuple[int, ...]] = {}
        self.turns: dict[tuple[int, ...], _Turn] = {}
        self.groups: dict[tuple[int, ...], list[Call]] = {}

    @staticmethod
    def of(inner: Active, stream: Any) -> _Pattern:
        """That of a frame; made where there is none for this stream."""
        found = inner.frame.pattern
        if found is None or found.stream is not stream:
            found = inner.frame.pattern = _Pattern(inner, stream)
        return cast(_Pattern, found)


class Devoted:
    """A loop on `stream`. Nobody else hands anything to that stream meanwhile."""

    def __init__(self, crew: Crew, inner: Active, stream: Any) -> None:
        from hetsched.executors.live import StreamDoer

        self.crew, self.inner, self.stream = crew, inner, stream
        self.frame = inner.frame
        self.doer = StreamDoer(stream)
        if hasattr(stream, "doubts"):
            stream.doubts = None  # what is doubted is looked at on the spot: the device's driving thread does not know of it
        pattern = _Pattern.of(inner, stream)
        self.order, self.counter, self.period = pattern.order, pattern.counter, pattern.period
        self.keys, self.turns, self.groups = pattern.keys, pattern.turns, pattern.groups
        self.laid_up = pattern.laid_up
        for counter in (self.counter, *(counter for _, counter in self.laid_up.values())):
            self.doer.move(np.zeros((), np.int64), counter)
        self.kept = KEPT_TURNS if crew.trace else 0
        self.timed = TIMED_TURNS if crew.trace and getattr(stream, "is_timed", False) else 0
        self.marks: deque[Any] = deque()
        self.noted: list[tuple[int, list[tuple[int, Any, dict[int, Any]]]]] = []  # turn -> (step or -1, event, task -> event)
        self.busy: list[Any] = []
        period = self.frame.plan.period or 0.0
        self.mark_turns = MARK_TURNS if period <= 0 else min(MARK_TURNS, max(1, int(MARK_SECONDS / period)))
        self.told = 0.0

    def run(self) -> None:
        """All turns, to the end of the last one."""
        crew, last, turn, marked = self.crew, self.frame.turns, 0, 0
        try:
            while turn < last and crew.error is None:
                n = 1
                if turn < self.timed:
                    self._time(turn)
                elif turn < self.kept or turn >= last - self.kept:
                    self._hand_over(turn, 1)
                    event = self.stream.record()
                    self.noted.append((turn, [(-1, event, {})]))
                    self.busy.append(event)
                else:
                    n = self._together(turn, last - self.kept)
                    self._hand_over(turn, n)
                turn += n
                if turn - marked >= self.mark_turns:
                    marked = turn
                    self._mark(turn)
            if crew.error is None:
                for value, (rows, _) in self.laid_up.items():
                    self.doer.move(rows, self.frame.gathering.target(value)[:last])
            end = self.stream.record()
            self._wait(end, turn)
            self._listen()
        except BaseException:
            with suppress(Exception):  # what is on its way uses memory that is given back
                self.stream.record().wait()
            raise
        self.busy.append(end)

    def _wait(self, event: Any, turn: int) -> None:
        try:
            event.wait()
        except Exception as error:
            if getattr(error, "written", None) is not None:
                raise self._told(error) from error
            plan, steps = self.frame.plan, self.frame.program.steps
            tasks = [c.task for step in self.order for i in steps[step].spans if isinstance(c := plan.spans[i].command, Launch)]
            raise self.frame.failure(error, tasks[-1], max(turn - 1, 0)) from error

    def _listen(self) -> None:
        """When all is done: raises what launches have told, wherever nobody has asked."""
        unheard = getattr(self.stream, "unheard", None)
        error = unheard() if unheard is not None else None
        if error is not None:
            raise self._told(error) from error

    def _told(self, error: Exception) -> Exception:
        """The error of a launch that has told of a mistake: of its task; in which turn nobody knows, since graphs hold several."""
        calls = [call for found in self.turns.values() for piece, _ in found.pieces for call in piece]
        task = task_of(error, calls)
        return self.frame.failure(error, -1 if task is None else task, None)

    # Turns ----------------------------------------------------------------------------------------------------------------------

    def _key(self, turn: int) -> tuple[int, ...]:
        """Turns of one key meet the same ring slots, and have the same tasks."""
        loop = self.frame.loop
        is_last = loop is not None and loop.is_remainder(turn)
        key = self.keys.get((turn % self.period, is_last))
        if key is None:
            bound = self.frame.bindings.bound
            key = self.keys[turn % self.period, is_last] = tuple([id(bound(step, turn)) for step in self.order])
        return key

    def _turn(self, turn: int, key: tuple[int, ...]) -> _Turn:
        found = self.turns.get(key)
        if found is None:
            found = self.turns[key] = _Turn()
            for step in self.order:
                calls = self._calls(step, turn)
                if calls:
                    found.steps.add(step)
                for call in calls:
                    may_be_held = callable(call[0]) and call[5] not in self.frame.every
                    if may_be_held and found.pieces and found.pieces[-1][1]:
                        found.pieces[-1][0].append(call)
                    else:
                        found.pieces.append(([call], may_be_held))
        return found

    def _calls(self, step: int, turn: int) -> Sequence[Call]:
        """The calls of a step; the number of the turn is counted instead of copied."""
        frame = self.frame
        command = frame.plan.spans[frame.program.steps[step].spans[0]].command
        if isinstance(command, Copy) and command.dst.node == HOST:
            rows, counter = self.laid_up[command.value]
            return [(self.stream.lay_up, (frame.locate(command.value, command.src.node, turn),), (rows, counter), None, {}, -1)]
        if isinstance(command, Copy):
            target = frame.buffer(command.value, command.dst.node, turn)
            return [(self.stream.count_turn, (self.counter,), (target,), None, {}, -1)]
        return frame.bindings.calls(step, turn)

    def _together(self, turn: int, end: int) -> int:
        """How many turns from `turn` on, before `end`, go into one graph: the most that may, or 1."""
        first = self._turn(turn, self._key(turn))
        if not first.is_plain:
            return 1
        n = min(MOST_TURNS, MOST_LAUNCHES // len(first.pieces[0][0]))
        if n < 2 or turn + n > end:
            return 1
        return n if all(self._turn(t, self._key(t)).is_plain for t in range(turn + 1, turn + n)) else 1

    def _hand_over(self, turn: int, n: int) -> None:
        if n == 1:
            found = self._turn(turn, self._key(turn))
            for calls, may_be_held in found.pieces:
                if not (may_be_held and found.has_run and len(calls) > 1 and self._segment(calls, turn)):
                    self._one_by_one(calls, turn)
            found.has_run = True
            return
        keys = [self._key(t) for t in range(turn, turn + n)]
        name = tuple([part for key in keys for part in key])
        calls = self.groups.get(name)  # type: ignore[assignment]
        if calls is None:
            calls = self.groups[name] = [call for key in keys for call in self.turns[key].pieces[0][0]]
        if not self._segment(calls, turn):
            self._one_by_one(calls, turn)

    def _segment(self, calls: list[Call], turn: int) -> bool:
        try:
            return bool(self.stream.segment(calls, True))
        except Exception as error:
            raise self.frame.failure(error, getattr(error, "failed_task", calls[0][5]), turn) from error

    def _one_by_one(self, calls: Sequence[Call], turn: int, marks: dict[int, Any] | None = None) -> None:
        task = -1
        try:
            for kernel, inputs, outputs, workspace, attributes, task in calls:
                if callable(kernel):
                    self.stream.launch(kernel, inputs, outputs, workspace, attributes)
                elif kernel is LATER:
                    inputs(turn, self.doer)
                elif kernel is MOVE:
                    self.doer.move(inputs[0], outputs[0])
                if marks is not None:
                    marks[task] = self.stream.record()
        except Exception as error:
            raise self.frame.failure(error, task, turn) from error

    def _time(self, turn: int) -> None:
        """A turn with an event behind each launch."""
        rows: list[tuple[int, Any, dict[int, Any]]] = []
        for step in self.order:
            marks: dict[int, Any] = {}
            self._one_by_one(self._calls(step, turn), turn, marks)
            self.busy += marks.values()
            event = next(reversed(marks.values())) if marks else self.stream.record()
            rows.append((step, event, {task: mark for task, mark in marks.items() if task >= 0}))
        self._turn(turn, self._key(turn)).has_run = True
        self.noted.append((turn, rows))

    def _mark(self, turn: int) -> None:
        """An event behind what has been handed over; waits for one some way back."""
        crew = self.crew
        event = self.stream.record()
        self.busy.append(event)
        self.marks.append(event)
        if len(self.marks) > AHEAD_MARKS:
            self._wait(self.marks.popleft(), turn)
        now = perf_counter() - crew.zero
        if crew.deadline is not None and now + crew.zero > crew.deadline:
            crew.error = crew.error or crew.timed_out()
        if crew.progress is not None and now - self.told > TELL_SECONDS:
            self.told = now
            program = self.frame.program
            crew.tell(crew.done + program.commands_of_all(turn), name_of(program.plan, program.steps[self.order[-1]]))

    # What was measured ----------------------------------------------------------------------------------------------------------

    def seconds(self) -> float:
        """Seconds that the device was at it."""
        return float(sum(finish - start for start, finish in (event.span() for event in self.busy)))

    def notes(self) -> list[Note]:
        """What the trace is written from. What a task takes is its share of the turns that were timed as a whole, by what it took in those that were

        timed one by one, without what the host's launches and events add there (`tracing.apportioned`). Costs learn from the former alone, and
        never from what the stream does in place of copies.
        """
        out: list[Note] = []
        whole: dict[frozenset[int], list[float]] = {}  # the steps that a turn has -> seconds of such turns
        for turn, rows in self.noted:
            if rows[0][0] < 0:
                start, finish = rows[0][1].span()
                whole.setdefault(self._steps_of(turn), []).append(finish - start)
        alone = self._alone()
        shares = {at: self._shares(at, median(seconds), alone) for at, seconds in whole.items()}
        for turn, rows in self.noted:
            if rows[0][0] >= 0:
                out += [self._timed(turn, *row, self._steps_of(turn) in whole) for row in rows]
            else:
                out += self._shared(turn, rows[0][1].span(), shares[self._steps_of(turn)])
        return out

    def _steps_of(self, turn: int) -> frozenset[int]:
        return frozenset(self._turn(turn, self._key(turn)).steps)

    def _alone(self) -> dict[int, dict[int, float]]:
        """Step -> task (-1: a copy) -> seconds where it was timed by itself, the first turn left out where there are others."""
        found: dict[int, dict[int, list[float]]] = {}
        for turn, rows in reversed(self.noted):
            for step, event, marks in rows if rows[0][0] >= 0 else ():
                times = found.setdefault(step, {})
                for task, mark in (marks or {-1: event}).items():
                    if turn or task not in times:
                        start, finish = mark.span()
                        times.setdefault(task, []).append(finish - start)
        return {step: {task: median(x) for task, x in times.items()} for step, times in found.items()}

    def _shares(self, at: frozenset[int], whole: float, alone: dict[int, dict[int, float]]) -> dict[int, dict[int, float]]:
        """Step -> task -> seconds, of a turn that takes `whole` seconds; in proportion to the plan's of what was never timed by itself."""
        steps = self.frame.program.steps
        if not alone:
            return {step: {-1: steps[step].seconds} for step in at}
        names: list[tuple[int, int]] = []
        seconds: list[float] = []
        for step in self.order:
            if step in at:
                times = alone.get(step, {-1: steps[step].seconds})
                names += [(step, task) for task in times]
                seconds += times.values()
        found: dict[int, dict[int, float]] = {}
        for (step, task), share in zip(names, apportioned(whole, seconds), strict=True):
            found.setdefault(step, {})[task] = share
        return found

    def _timed(self, turn: int, step: int, event: Any, marks: dict[int, Any], is_slow: bool) -> Note:
        """The note of a step whose tasks were timed one by one."""
        zero, of = self.crew.zero, self.frame.program.steps[step]
        first = next(iter(marks.values()), event)
        start, finish = first.span()[0] - zero, event.span()[1] - zero
        ends = {task: max(mark.span()[1] - zero, start) for task, mark in marks.items()}
        is_slow = is_slow or of.kind == "copy"
        return Note(step, turn, of.lanes[0].number, start, max(start, finish), ends if ends and len(of.spans) > 1 else None, is_slow)

    def _shared(self, turn: int, span: tuple[float, float], shares: dict[int, dict[int, float]]) -> list[Note]:
        """The notes of a turn that was timed as a whole."""
        steps, out = self.frame.program.steps, []
        at, finish = (moment - self.crew.zero for moment in span)
        total = sum(s for tasks in shares.values() for s in tasks.values())
        scale = (finish - at) / total if total > 0 else 0.0
        for step in self.order:
            tasks = shares.get(step, {})
            until = min(at + scale * sum(tasks.values()), finish)
            note = Note(step, turn, steps[step].lanes[0].number, at, until, None, steps[step].kind == "copy")
            out.append(marked(note, list(tasks.items())) if len(steps[step].spans) > 1 and tasks and -1 not in tasks else note)
            at = until
        return out


def run(crew: Crew, inner: Active, stream: Any) -> bool:
    """Do the loop of `inner`; False where the run has failed or is to end meanwhile."""
    loop = Devoted(crew, inner, stream)
    loop.run()
    if crew.error is not None:
        return False
    if crew.trace:
        inner.notes += loop.notes()
    owner = next(lane.owner for step in inner.frame.program.steps for lane in step.lanes if lane.kind != "copy")
    inner.busy[owner] = inner.busy.get(owner, 0.0) + loop.seconds()
    with crew.lock:
        crew.done += inner.frame.program.commands_of_all(inner.frame.turns)
    return True


__all__ = ["Devoted", "run", "stream_for"]
