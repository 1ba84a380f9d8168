"""From what the threads noted to a trace: the measured timeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from typing import Any, NamedTuple

from hetsched.executors.program import Program
from hetsched.timeline import Copy, Lane, Launch, Span, Timeline

# A named tuple without a call of its own `__new__`, which takes twice as long.
_new: Any = tuple.__new__

# A loop's trace keeps the spans of its first and last turns; of those between, running sums.
KEPT_TURNS = 100
# In these turns of a loop each task of a step is timed by itself (0.1 us a task). A straight plan runs once: there every task is.
TIMED_TURNS = frozenset({1, 2, 3, 5, 8, 13, 21, 34, 55, 89})


class Note(NamedTuple):
    """Step `step` of turn `turn` ran on lane number `lane` of its device from `start` to `finish`, seconds of the run.

    marks: task -> when it ended, for the tasks of a step that were timed one by one; None where the step was timed as a whole.
    """

    step: int
    turn: int
    lane: int
    start: float
    finish: float
    marks: Mapping[int, float] | None = None


def trace_of(program: Program, notes: Sequence[Note], busy: Mapping[str, float], turns: int, loops: Mapping[int, Timeline]) -> Timeline:
    """The trace of one frame. Of a step that was timed as a whole the launches get shares in proportion to the plan's seconds, and are marked so."""
    plan = program.plan
    spans: list[Span] = []
    attributed: list[int] = []
    for note in sorted(notes, key=lambda n: (n.start, n.finish, n.turn, n.step)):
        step = program.steps[note.step]
        lanes = step.lanes if len(step.lanes) != 1 else (Lane(step.owner, note.lane, step.kind),)
        planned = [plan.spans[i] for i in step.spans]
        if program.every:
            planned = [s for s in planned if note.turn % _every(program, s.command) == 0]
            if not planned:
                continue
        if note.marks is not None:
            spans += _timed(planned, lanes, note, note.marks)
            continue
        total = sum(s.finish - s.start for s in planned)
        at = note.start
        if len(planned) > 1:
            attributed += range(len(spans), len(spans) + len(planned))
        for k, span in enumerate(planned):
            share = (span.finish - span.start) / total if total > 0 else 1 / len(planned)
            until = note.finish if k == len(planned) - 1 else min(at + share * (note.finish - note.start), note.finish)
            spans.append(Span(lanes, _of_turn(span.command, note.turn), at, until))
            at = until
    period = None
    if plan.loop is not None:
        ends: dict[int, float] = {}
        for note in notes:
            ends[note.turn] = max(ends.get(note.turn, 0.0), note.finish)
        if len(ends) > 1:
            first, last = min(ends), max(ends)
            period = (ends[last] - ends[first]) / (last - first)
    return replace(
        plan, spans=tuple(spans), after=(), period=period, turns=turns, loops=dict(loops), measured=True, totals=dict(busy), prologue=(), epilogue=(),
        attributed=frozenset(attributed),
    )  # fmt: skip


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
        reads = tuple(r._replace(turn=turn) for r in command.reads)
        return Launch(command.task, turn, reads, tuple(r._replace(turn=turn) for r in command.writes), command.width)
    assert isinstance(command, Copy)
    if not turn:
        return command
    return Copy(command.value, turn, command.src._replace(turn=turn), command.dst._replace(turn=turn))
