"""From what the threads noted to a trace: the measured timeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from hetsched.executors.program import Program
from hetsched.executors.steps import Step
from hetsched.executors.straight import Straight
from hetsched.quiet import no_garbage_collection
from hetsched.timeline import Copy, Lane, Launch, Replica, Span, Timeline

# Makes a named tuple of a tuple, three times as fast as calling its class: traces have thousands.
_new: Any = tuple.__new__

# A loop's trace keeps the spans of its first and last turns; of those between, running sums.
KEPT_TURNS = 100
# In these turns of a loop each task of a step is timed by itself (0.1 us a task). A straight plan runs once: there every task is.
TIMED_TURNS = frozenset({1, 2, 3, 5, 8, 13, 21, 34, 55, 89})
# Tasks that take up to this many times as long one by one as together are timed right.
ALIKE = 1.15
# Of a task timed by itself at least this share is its own, not the host's.
LEFT = 0.05


class Note(NamedTuple):
    """Step `step` of turn `turn` ran on lane number `lane` of its device from `start` to `finish`, seconds of the run.

    marks: task -> when it ended, for the tasks of a step that were timed one by one; None where the step was timed as a whole. is_slow: being timed
    like that took long, so costs do not learn from it.
    """

    step: int
    turn: int
    lane: int
    start: float
    finish: float
    marks: Mapping[int, float] | None = None
    is_slow: bool = False


class Log:
    """What a thread that shares steps with others did, in the order in which it did it. times: code (see `Logs`), start and finish of each step, one

    after another, on the clock of the threads; no object for each, of which there are thousands; of a loop the first and last turns. marks: code ->
    (task -> when it ended), of steps of several tasks. seconds, done: at steps in all, and tasks; counted where somebody asks.
    """

    __slots__ = ("done", "lane", "marks", "seconds", "times")

    def __init__(self, lane: int, times: list[Any] | None = None, marks: dict[int, Mapping[int, float]] | None = None) -> None:
        self.lane = lane
        self.times: list[Any] = [] if times is None else times
        self.marks: dict[int, Mapping[int, float]] = {} if marks is None else marks
        self.seconds = 0.0
        self.done = 0


class Logs(NamedTuple):
    """The logs of all threads, of a run that began at `zero`. order: the steps by place; a step of a turn has the code turn * places + place."""

    logs: Sequence[Log]
    order: Sequence[int]
    zero: float
    places: int

    def notes(self) -> list[Note]:
        """The same as notes."""
        order, zero, places, out = self.order, self.zero, self.places, []
        for log in self.logs:
            times, lane, marks = log.times, log.lane, log.marks
            for code, start, finish in zip(times[::3], times[1::3], times[2::3], strict=True):
                turn, at = divmod(code, places)
                out.append(Note(order[at], turn, lane, start - zero, finish - zero, marks.get(code)))
        return out


class Noted(NamedTuple):
    """What one frame noted of itself: enough to write its trace once the run is over. loops: loop task -> what its body noted.

    cold: tasks whose launches are no measure of others (see `Frame.cold`).
    """

    program: Program
    notes: list[Note] | Logs
    busy: Mapping[str, float]
    turns: int
    loops: Mapping[int, Noted]
    cold: frozenset[int] = frozenset()

    def trace(self) -> Timeline:
        """The measured timeline, bodies of loops included."""
        with no_garbage_collection():
            return self._trace()

    def _trace(self) -> Timeline:
        if isinstance(self.notes, Logs) and self.program.plan.loop is None:
            plain = self.program.straight
            if plain is not None and plain.is_io is None:
                spans, attributed = _by_arrays(plain, self.notes)
                return _measured(self.program.plan, spans, self.busy, self.turns, attributed=frozenset(attributed))
        notes = self.notes if isinstance(self.notes, list) else self.notes.notes()
        return trace_of(self.program, notes, self.busy, self.turns, {task: inner.trace() for task, inner in self.loops.items()}, self.cold)


def trace_of(
    program: Program, notes: Sequence[Note], busy: Mapping[str, float], turns: int, loops: Mapping[int, Timeline], cold: frozenset[int] = frozenset()
) -> Timeline:
    """The trace of one frame. Of a step that was timed as a whole the launches get shares in proportion to the plan's seconds, and are marked so, as

    launches of `cold` tasks are. About 1 us a span.
    """
    plan = program.plan
    spans: list[Span] = []
    attributed: list[int] = []
    lanes_of: dict[tuple[int, int], tuple[Lane, ...]] = {}  # (step, lane number) -> the lanes it ran on
    whole: dict[int, tuple[list[Span], list[float]]] = {}  # step -> its spans and their shares, where each of them runs every turn
    for note in sorted(_as_turns_are(program, notes), key=lambda n: (n.start, n.finish, n.turn, n.step)):
        first = len(spans)
        step = program.steps[note.step]
        lanes = lanes_of.get((note.step, note.lane))
        if lanes is None:
            lanes = step.lanes if len(step.lanes) != 1 else (Lane(step.owner, note.lane, step.kind),)
            lanes_of[note.step, note.lane] = lanes
        if len(step.spans) == 1 and not program.every:
            spans.append(_new(Span, (lanes, _of_turn(plan.spans[step.spans[0]].command, note.turn), note.start, note.finish)))
            if note.is_slow:
                attributed.append(first)
            continue
        known = whole.get(note.step)
        if known is None:
            planned = [plan.spans[i] for i in step.spans]
            if program.every:
                planned = [s for s in planned if note.turn % _every(program, s.command) == 0]
                if not planned:
                    continue
            known = planned, _shares(planned)
            if not program.every:
                whole[note.step] = known
        _add(spans, attributed, known, lanes, note)
        if note.is_slow:
            attributed += range(first, len(spans))
    are_cold = frozenset(i for i, s in enumerate(spans) if type(s.command) is Launch and s.command.task in cold) if cold else cold
    period = None
    if plan.loop is not None:
        ends: dict[int, float] = {}
        for note in notes:
            ends[note.turn] = max(ends.get(note.turn, 0.0), note.finish)
        if len(ends) > 1:
            first, last = min(ends), max(ends)
            period = (ends[last] - ends[first]) / (last - first)
    return _measured(plan, spans, busy, turns, period, loops, frozenset(attributed), are_cold)


def _as_turns_are(program: Program, notes: Sequence[Note]) -> Sequence[Note]:
    """The notes of a loop. Launches of a stream that were timed one by one, with an event behind each, take longer than those of a graph, or of what

    was put together. Where a step as a whole takes less its tasks have shares of that (`apportioned`), and what was timed one by one teaches nothing.
    """
    if program.plan.loop is None:
        return notes
    shared = {d.id for d in program.plan.machine.devices if d.shares_lanes or d.hardware == "cpu"}  # a processor has no less to do
    alone: dict[int, list[Note]] = {}
    whole: dict[int, list[float]] = {}
    for note in notes:
        step = program.steps[note.step]
        if len(step.spans) < 2 or step.owner in shared or step.kind == "copy" or (program.every and _has_seldom(program, step)):
            continue
        if note.marks is None:
            whole.setdefault(note.step, []).append(note.finish - note.start)
        elif note.turn and not note.is_slow:
            alone.setdefault(note.step, []).append(note)
    shares: dict[int, list[tuple[int, float]]] = {}
    for number, timed in alone.items():
        if number in whole and (found := _shares_of(timed, median(whole[number]))):
            shares[number] = found
    if not shares:
        return notes
    return [n if n.step not in shares else n._replace(is_slow=True) if n.marks is not None else marked(n, shares[n.step]) for n in notes]


def _has_seldom(program: Program, step: Step) -> bool:
    return any(_every(program, program.plan.spans[i].command) > 1 for i in step.spans)


def _shares_of(timed: Sequence[Note], whole: float) -> list[tuple[int, float]]:
    """(task, its share) of a step that takes `whole` seconds, by notes of it with marks; [] where they agree with that."""
    found: dict[int, list[float]] = {}
    for note in timed:
        assert note.marks is not None
        at = note.start
        for task, end in note.marks.items():
            found.setdefault(task, []).append(max(end - at, 0.0))
            at = max(at, end)
    seconds = [median(x) for x in found.values()]
    if sum(seconds) <= ALIKE * whole:
        return []
    return list(zip(found, apportioned(whole, seconds), strict=True))


def marked(note: Note, shares: Sequence[tuple[int, float]]) -> Note:
    """A note of a step that was timed as a whole, with marks where its tasks end by their shares."""
    total = sum(share for _, share in shares) or 1.0
    marks, at = {}, note.start
    for task, share in shares:
        at += share / total * (note.finish - note.start)
        marks[task] = min(at, note.finish)
    return note._replace(marks=marks)


def apportioned(whole: float, alone: Sequence[float]) -> list[float]:
    """Seconds of tasks that take `whole` together, by what each takes where the host launches and times it by itself.

    The host adds about as much to each. So the same is taken from all of them until the sum is right, but some of what it took is left to each. Where
    they take less alone than together, all are longer in proportion.
    """
    total = sum(alone)
    if total <= whole:
        return [x * whole / total for x in alone] if total > 0 else list(alone)
    left = min(LEFT, whole / total / 2)
    low, high = 0.0, max(alone)
    for _ in range(60):
        middle = (low + high) / 2
        if sum(max(x - middle, left * x) for x in alone) > whole:
            low = middle
        else:
            high = middle
    return [max(x - high, left * x) for x in alone]


def _measured(
    plan: Timeline, spans: Sequence[Span], busy: Mapping[str, float], turns: int, period: float | None = None,
    loops: Mapping[int, Timeline] | None = None, attributed: frozenset[int] = frozenset(), cold: frozenset[int] = frozenset(),
) -> Timeline:  # fmt: skip
    return replace(
        plan, spans=tuple(spans), after=(), period=period, turns=turns, loops=dict(loops or {}), measured=True, totals=dict(busy), prologue=(),
        epilogue=(), attributed=attributed, cold=cold, otherwise=None,
    )  # fmt: skip


def _by_arrays(plain: Straight, logs: Logs) -> tuple[list[Span], list[int]]:
    """(spans, those that are attributed) of a run of steps on lanes of one kind. 0.6 us a span."""
    table = np.concatenate([np.array(log.times, dtype=np.float64).reshape(-1, 3) for log in logs.logs])
    thread = np.repeat(np.arange(len(logs.logs)), [len(log.times) // 3 for log in logs.logs])
    number, start, finish = table[:, 0].astype(np.int64), table[:, 1] - logs.zero, table[:, 2] - logs.zero
    order = np.lexsort((number, finish, start))
    rows = [(Lane(plain.owner, log.lane),) for log in logs.logs]
    launches, first, planned = plain.steps.launches.tolist(), plain.steps.first.tolist(), plain.steps.spans
    spans: list[Span] = []
    attributed: list[int] = []
    columns = [column[order].tolist() for column in (number, thread, start, finish)]
    for step, at, began, ended in zip(*columns, strict=True):
        one, end = first[step], first[step + 1]
        if end == one + 1:
            spans.append(_new(Span, (rows[at], planned[launches[one]][1], began, ended)))
        else:
            whole = [planned[i] for i in launches[one:end]]
            note = Note(step, 0, logs.logs[at].lane, began, ended, logs.logs[at].marks.get(step))
            _add(spans, attributed, (whole, _shares(whole)), rows[at], note)
    return spans, attributed


def _add(spans: list[Span], attributed: list[int], known: tuple[list[Span], list[float]], lanes: tuple[Lane, ...], note: Note) -> None:
    """Add the spans of a step. known: what it is planned to do, and the share of each."""
    planned, shares = known
    if note.marks is not None:
        spans += _timed(planned, lanes, note, note.marks)
        return
    if len(planned) > 1:
        attributed += range(len(spans), len(spans) + len(planned))
    at, length, turn = note.start, note.finish - note.start, note.turn
    for (_, command, _, _), share in zip(planned, shares, strict=True):
        until = min(at + share * length, note.finish)
        spans.append(_new(Span, (lanes, _of_turn(command, turn), at, until)))
        at = until
    spans[-1] = spans[-1]._replace(finish=note.finish)


def _shares(planned: Sequence[Span]) -> list[float]:
    total = sum(s.finish - s.start for s in planned)
    return [(s.finish - s.start) / total if total > 0 else 1 / len(planned) for s in planned]


def _timed(planned: Sequence[Span], lanes: tuple[Lane, ...], note: Note, marks: Mapping[int, float]) -> list[Span]:
    """The spans of a step whose tasks were timed one by one, without gaps; a view takes no time."""
    ends: list[float] = []
    at = note.start
    for span in planned:
        command = span.command
        if type(command) is Launch:
            at = marks.get(command.task, at)
        ends.append(at)
    ends[-1] = note.finish
    commands: Any = [s.command for s in planned] if not note.turn else [_of_turn(s.command, note.turn) for s in planned]
    return list(map(_new, repeat(Span), zip(repeat(lanes), commands, [note.start, *ends[:-1]], ends, strict=False)))


def _every(program: Program, command: object) -> int:
    """In every how many turns a command runs: that of its task, or of the task that made what it copies."""
    if isinstance(command, Launch):
        return program.every.get(command.task, 1)
    assert isinstance(command, Copy)
    return program.every.get(int(program.plan.graph.value_task[command.value]), 1)


def _of_turn(command: Launch | Copy | object, turn: int) -> Launch | Copy:
    if isinstance(command, Launch):
        if not turn:
            return command
        task, _, reads, writes, width = command
        read = tuple([_new(Replica, (value, turn, node, generation)) for value, _, node, generation in reads])
        written = tuple([_new(Replica, (value, turn, node, generation)) for value, _, node, generation in writes])
        return _new(Launch, (task, turn, read, written, width))  # type: ignore[no-any-return]
    assert isinstance(command, Copy)
    if not turn:
        return command
    return Copy(command.value, turn, command.src._replace(turn=turn), command.dst._replace(turn=turn))
