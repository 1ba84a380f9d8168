"""Epochs: a run whose plan is made anew while it runs.

An executor runs a plan until its replanner says that another is due; it then lets what runs come to an end (steps that are running, loops at the
end of a turn) and stops. What is left is a graph of its own (`graph.rest`), whose inputs are what has been made so far, brought to the host; the
replanner plans it, and the run goes on with that plan in a new epoch. So every epoch does what its plan says, on devices opened for it, in an
arena of its own, and the values are those of one run.

The traces of the epochs make one trace of the whole graph. What only an epoch knows (parts of sequences, joined) is left out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from hetsched.errors import InternalError
from hetsched.executors.frame import Frame
from hetsched.executors.memory import shaped
from hetsched.executors.result import Result
from hetsched.graph.graph import Loop
from hetsched.graph.op import Op
from hetsched.graph.rest import Rest, Source, can_split, rest_of, tail_of, whole_turns
from hetsched.graph.spec import Spec, array_form
from hetsched.timeline import Copy, Launch, Replica, Span, Timeline


class Progress(NamedTuple):
    """How far a run is. now: seconds of the epoch (virtual ones of a simulated run). steps: how many have finished in it, turns of loops counted.

    speeds: called only where it is needed, gives what has been measured in the epoch so far.
    """

    now: float
    steps: int
    speeds: Callable[[], Speeds]


@dataclass
class Speeds:
    """Measured against planned. launches: (device, op's name, input specs, output specs) -> [times, measured seconds, planned seconds].

    devices: device or link -> [times, measured, planned seconds]. done: outermost spans that have finished. turns: loop task in flight -> (turns
    done, seconds since it began). now: seconds of the epoch.
    """

    now: float = 0.0

    launches: dict[tuple[Any, ...], list[float]] = field(default_factory=dict)
    devices: dict[str, list[float]] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)
    turns: dict[int, tuple[int, float]] = field(default_factory=dict)

    def add(self, plan: Timeline, step_spans: Iterable[int], owner: str, seconds: float, times: int = 1) -> None:
        """Steps of `step_spans` took `seconds` in all, `times` times."""
        spans = [plan.spans[i] for i in step_spans]
        planned = sum(s.finish - s.start for s in spans)
        total = self.devices.setdefault(owner, [0.0, 0.0, 0.0])
        total[0] += times
        total[1] += seconds
        total[2] += planned * times
        for span in spans:
            if isinstance(span.command, Launch):
                share = (span.finish - span.start) / planned if planned > 0 else 1 / len(spans)
                row = self.launches.setdefault(launch_key(plan, span.command.task, owner), [0.0, 0.0, 0.0])
                row[0] += times
                row[1] += seconds * share
                row[2] += (span.finish - span.start) * times

    def factor(self, owner: str) -> float:
        """How much longer than planned what runs on a device (or link) takes."""
        _, measured, planned = self.devices.get(owner, (0.0, 0.0, 0.0))
        return measured / planned if planned > 0 else 1.0


def launch_key(plan: Timeline, task: int, device: str) -> tuple[Any, ...]:
    """What launches that cost the same have in common."""
    graph, op = plan.graph, plan.graph.task_ops[task]
    return (device, op.name, tuple(graph.spec(v) for v in graph.reads(task)), tuple(graph.spec(v) for v in graph.writes(task)))


class Replanner(Protocol):
    """Decides when the rest of a run is planned anew, and plans it. Called from the run's threads, never by two at once."""

    def due(self, plan: Timeline, progress: Progress) -> bool:
        """True if the run shall stop where it can, to go on with another plan. Asked after every step: it answers at once, nearly always."""
        ...

    def plan(self, rest: Rest, speeds: Speeds) -> Timeline:
        """The plan of what is left."""
        ...


class Pause(NamedTuple):
    """Where a run has stopped. done: outermost spans that have finished. loops: loop task -> (frame of its body, turns done)."""

    frame: Frame
    done: set[int]
    loops: dict[int, tuple[Frame, int]]
    speeds: Speeds
    trace: Timeline


class Left(NamedTuple):
    """What is left of a run that has paused: as a graph, with its inputs on the host."""

    rest: Rest
    inputs: dict[str, Any]
    speeds: Speeds


class Outcome(NamedTuple):
    """How a run of one plan has ended: with its outputs, or at a pause, with those that are there and what is left."""

    outputs: dict[str, Any]
    traced: Callable[[], Timeline]  # what makes the trace
    failed: Mapping[str, Exception]
    left: Left | None = None


# (plan, inputs) -> how it ended
RunOne = Callable[[Timeline, Mapping[int, Any]], Outcome]


def boundary(loop: Loop, begun: int) -> int:
    """The first turn at which a loop that has begun `begun` turns can be taken up again; its last where it cannot be split."""
    if not can_split(loop):
        return loop.turns
    k = whole_turns(loop)
    return min(-(-begun // k) * k, loop.turns)


def run_epochs(run_one: RunOne, plan: Timeline, inputs: Mapping[int, Any], replanner: Replanner) -> Result:
    """Run `plan`, and what is left of it by the replanner's plans. `wall_seconds` is left at 0."""
    graph = plan.graph
    tasks: Sequence[int] = range(len(graph))  # of the current graph's tasks: those of the whole graph
    values: Sequence[int] = range(len(graph.value_specs))
    first_turn: dict[int, int] = {}  # loop task of the whole graph -> turns done in earlier epochs
    outputs: dict[str, Any] = {}
    plans, traces, merged = [plan], [], Merged(plan)
    start = 0.0
    while True:
        outcome = run_one(plan, inputs)
        traces.append(outcome.traced())
        merged.add(traces[-1], tasks, values, first_turn, start)
        outputs |= outcome.outputs
        if outcome.left is None:
            break
        rest = outcome.left.rest
        start = merged.now
        for task, done in rest.turns.items():
            first_turn[tasks[task]] = first_turn.get(tasks[task], 0) + done
        tasks = [tasks[t] if t >= 0 else -1 for t in rest.tasks]
        values = [values[v] if v >= 0 else -1 for v in rest.values]
        plan = replanner.plan(rest, outcome.left.speeds)
        inputs = {plan.graph.inputs[name]: found for name, found in outcome.left.inputs.items()}
        plans.append(plan)
    ordered = {name: outputs[name] for name in graph.outputs if name in outputs}
    said = dict.fromkeys(note for plan, trace in zip(plans, traces, strict=True) for note in trace.notes if note not in plan.notes)
    why = [p.notes[0] for p in plans[1:] if p.notes]
    return Result(ordered, merged.trace([*said, *why]), tuple(plans), 0.0, dict(outcome.failed), tuple(traces))


def paused(pause: Pause) -> Outcome:
    """What a run that has paused gives, while its devices are open."""
    rest = left_of(pause.frame.plan, pause.done, {t: n for t, (_, n) in pause.loops.items()})
    inputs = {name: _found(pause, source) for name, source in rest.sources.items()}
    return Outcome(outputs_of(pause), lambda: pause.trace, {}, Left(rest, inputs, pause.speeds))


def left_of(plan: Timeline, spans: Iterable[int], turns: Mapping[int, int]) -> Rest:
    """What is left of a plan's graph after outermost `spans` and so many turns of the loops in flight."""
    return rest_of(plan.graph, _tasks(plan, spans), turns, plan.device_of)


def _tasks(plan: Timeline, spans: Iterable[int]) -> set[int]:
    return {c.task for i in spans if isinstance(c := plan.spans[i].command, Launch)}


def outputs_of(pause: Pause) -> dict[str, Any]:
    """The outputs of the graph that are made by now, each the caller's own."""
    graph, finished = pause.frame.graph, _tasks(pause.frame.plan, pause.done)
    out: dict[str, Any] = {}
    for name, value in graph.outputs.items():
        task = int(graph.value_task[value])
        if task >= 0 and task not in finished:
            continue
        found = _value(pause, value)
        out[name] = np.array(found, order="C") if isinstance(found, np.ndarray) else found
    return out


def _found(pause: Pause, source: Source) -> Any:
    """What an input of the rest is, on the host."""
    graph = pause.frame.graph
    if source.kind == "value":
        return _value(pause, source.value)
    loop = graph.task_ops[source.task]
    assert isinstance(loop, Loop)
    if source.kind == "tail":
        return tail_of(_value(pause, source.value), graph.spec(source.value), source.turn)
    if source.kind == "turns":
        return np.arange(source.turn, loop.turns, dtype=np.int64)
    inner, turns = pause.loops[source.task]
    if source.kind == "carried":
        value = inner.program.carried[inner.graph.inputs[loop.carried[source.value][0]]]
        return _on_host(inner, value, turns - 1, pause.frame)
    names = dict(zip(list(graph.writes(source.task))[len(loop.carried) :], loop.collected, strict=True))
    whole = inner.gathering.so_far(names[source.value], turns)
    return np.array(whole) if isinstance(whole, np.ndarray) else whole


def _value(pause: Pause, value: int) -> Any:
    """A value that has been made, on the host: where its replica there is still to come, from where that would be copied."""
    frame = pause.frame
    plan, graph = frame.plan, frame.graph
    if int(graph.value_task[value]) < 0:
        return graph.constants[value] if value in graph.constants else frame.borrowed[value]
    done = pause.done
    made: dict[str, bool] = {}
    wanted: list[str] = []
    for i, span in enumerate(plan.spans):
        command = span.command
        if isinstance(command, Launch):
            made.update((r.node, True) for r in command.writes if r.value == value and i in done)
            wanted += [r.node for r in command.reads if r.value == value and i not in done]
        elif isinstance(command, Copy) and command.value == value:
            if i in done:
                made[command.dst.node] = True
            else:
                wanted.append(command.src.node)
    # What somebody still waits to read has not been overwritten there; an output on the host is the caller's and never is.
    nodes = [n for n in ("host", *wanted) if made.get(n) and (n in wanted or value in frame.owned or array_form(graph.spec(value)) is None)]
    nodes += [n for n in wanted if made.get(n)] or [n for n in made if value in graph.outputs.values()]
    if not nodes:
        raise InternalError(f"the rest of the run needs value {graph.value_names[value]!r}, which is nowhere any more")
    return _on_host(frame, value, 0, frame, nodes[0])


def _on_host(frame: Frame, value: int, turn: int, root: Frame, node: str | None = None) -> Any:
    node = node if node is not None else frame.node_of(value)
    found = frame.locate(value, node, turn)
    if node == "host":
        return np.array(found) if isinstance(found, np.ndarray) else found
    spec = array_form(frame.graph.spec(value))
    assert isinstance(spec, Spec)
    target = np.empty(tuple(found.shape), spec.dtype)
    root.transfer(found, shaped(target, tuple(found.shape)))
    return target


# Traces -----------------------------------------------------------------------------------------------------------------------


class Merged:
    """The traces of the epochs, in terms of the whole graph."""

    def __init__(self, plan: Timeline) -> None:
        self.plan = plan
        self.spans: list[Span] = []
        self.loops: dict[int, Timeline] = {}
        self.totals: dict[str, float] = {}
        self.now = 0.0

    def add(self, trace: Timeline, tasks: Sequence[int], values: Sequence[int], first: Mapping[int, int], start: float) -> None:
        """Take the trace of an epoch that began at `start`."""

        def replicas(rows: Iterable[Replica]) -> tuple[Replica, ...]:
            return tuple(r._replace(value=values[r.value]) for r in rows)

        for span in trace.spans:
            command: Any = span.command
            if isinstance(command, Launch):
                if tasks[command.task] < 0:
                    continue
                command = command._replace(task=tasks[command.task], reads=replicas(command.reads), writes=replicas(command.writes))
            elif isinstance(command, Copy):
                if values[command.value] < 0:
                    continue
                command = Copy(values[command.value], command.turn, *replicas((command.src, command.dst)))
            self.spans.append(Span(span.lanes, command, span.start + start, span.finish + start))
        for task, body in trace.loops.items():
            whole = tasks[task]
            later = _later(body, first.get(whole, 0), start)
            self.loops[whole] = _joined(self.loops[whole], later) if whole in self.loops else later
        for owner, seconds in trace.totals.items():
            self.totals[owner] = self.totals.get(owner, 0.0) + seconds
        self.now = max([self.now, start, *(s.finish for s in self.spans), *(b.makespan for b in self.loops.values())])

    def trace(self, notes: Sequence[str]) -> Timeline:
        """One trace: a loop that went on in a later epoch is one launch from its first start to its last finish."""
        graph = self.plan.graph
        spans: list[Span] = []
        looped: dict[int, list[Span]] = {}
        for span in self.spans:
            command = span.command
            if isinstance(command, Launch) and not isinstance(graph.task_ops[command.task], Op):
                looped.setdefault(command.task, []).append(span)
            else:
                spans.append(span)
        for task, rows in looped.items():
            lanes = tuple(dict.fromkeys(lane for s in rows for lane in s.lanes))
            body = self.loops.get(task)
            begun = min([s.start for s in rows] + ([s.start for s in body.spans[:1]] if body is not None else []))
            spans.append(Span(lanes, rows[-1].command, begun, max(s.finish for s in rows)))
        return replace(
            self.plan, spans=tuple(sorted(spans, key=lambda s: (s.start, s.finish))), after=(), turns=1, loops=dict(self.loops), measured=True,
            totals=dict(self.totals), prologue=(), epilogue=(), notes=(*self.plan.notes, *notes),
        )  # fmt: skip


def _later(trace: Timeline, turns: int, seconds: float) -> Timeline:
    """The trace of a loop's body that began `turns` turns and `seconds` later."""
    if not turns and not seconds:
        return trace
    spans = []
    for span in trace.spans:
        command: Any = span.command
        command = command._replace(turn=command.turn + turns)
        if isinstance(command, Launch):
            command = command._replace(
                reads=tuple(r._replace(turn=r.turn + turns) for r in command.reads),
                writes=tuple(r._replace(turn=r.turn + turns) for r in command.writes),
            )
        else:
            command = command._replace(src=command.src._replace(turn=command.turn), dst=command.dst._replace(turn=command.turn))
        spans.append(Span(span.lanes, command, span.start + seconds, span.finish + seconds))
    loops = {t: _later(body, 0, seconds) for t, body in trace.loops.items()}
    return replace(trace, spans=tuple(spans), turns=trace.turns + turns, loops=loops)


def _joined(first: Timeline, second: Timeline) -> Timeline:
    """Two traces of one loop's body, the second's turns after the first's."""
    totals = {k: first.totals.get(k, 0.0) + second.totals.get(k, 0.0) for k in {**first.totals, **second.totals}}
    ends: dict[int, float] = {}
    for span in (*first.spans, *second.spans):
        turn = getattr(span.command, "turn", 0)
        ends[turn] = max(ends.get(turn, 0.0), span.finish)
    low, high = min(ends, default=0), max(ends, default=0)
    period = (ends[high] - ends[low]) / (high - low) if high > low else second.period
    return replace(
        first, spans=(*first.spans, *second.spans), turns=second.turns, totals=totals, period=period, loops={**first.loops, **second.loops}
    )
