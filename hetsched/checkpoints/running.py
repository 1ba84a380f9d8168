"""A run with checkpoints: its long loops go in pieces, and between two pieces all that the run has come to is a few arrays on the host.

Of the plan of the whole graph the places of all tasks are kept (device and width), so that the values are those of a run in one. Then, for one long
loop after another: what it needs is run, then its turns in pieces, each planned as a graph of its own (`graph.pieces`), and behind the last loop all
that is left. After each piece what it carries and has collected is kept (`store`), by a thread of its own while the next piece runs.

A run that is taken up again reads what was kept, runs again what the loop needs beside its carried values (that is quick, and its values are the
same), and goes on with the next piece.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np

from hetsched.checkpoints.asked import Checkpoint
from hetsched.checkpoints.ground import ground_of, refuse_changes
from hetsched.checkpoints.store import Store
from hetsched.errors import RunTimeoutError, TaskError
from hetsched.executors.epochs import Merged
from hetsched.executors.outline import launches_of
from hetsched.executors.result import Result
from hetsched.executors.tracing import KEPT_TURNS
from hetsched.graph.graph import Graph, Loop
from hetsched.graph.pieces import Piece, Places, Shape, inputs_of, needed_for, next_turn, part_of, piece_of, shape_of, why_whole
from hetsched.graph.prune import has_effect
from hetsched.graph.spec import array_form
from hetsched.locked import read_plan, write_plan
from hetsched.machine import Device, Link
from hetsched.placement import plan_graph
from hetsched.placement.asked import asked_for
from hetsched.placement.costs import CostModel, Estimate
from hetsched.placement.costs.replay import tell_bodies
from hetsched.timeline import Copy, Free, Launch, Replica, Span, Timeline

# The first piece takes about this share of the time between two checkpoints, as planned: it is measured, and the others follow from that. Loops
# that are planned to take less in all are not parted.
FIRST_SHARE = 1 / 8
# Pieces keep their size as long as they take between these shares of the time between two checkpoints: another size is another plan.
SHORTEST, LONGEST = 0.5, 1.5
# What a wide launch is planned with where the plan of the whole has one, and an alternative that it did not take: not to be taken here.
_NEVER = 1e3

# (plan, inputs by name, timeout, progress) -> what it gives
RunOne = Callable[..., Result]


@dataclass(frozen=True)
class _Widths:
    """A cost model in which tasks that the whole plan gives one lane, or all, get that again. wide: names of those that get all lanes."""

    base: CostModel
    wide: frozenset[str]

    def launch(self, graph: Graph, task: int, device: Device, width: int) -> Estimate:
        """See `CostModel.launch`."""
        found = self.base.launch(graph, task, device, width)
        return found if (width > 1) == (graph.task_names[task] in self.wide) else found._replace(seconds=found.seconds * _NEVER)

    def copy(self, nbytes: int, link: Link) -> Estimate:
        """See `CostModel.copy`."""
        return self.base.copy(nbytes, link)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)  # what not every model knows


def places_of(plan: Timeline) -> Places:
    """Where a plan has its tasks, those of loops too."""
    launches = [(s.command.task, s) for s in plan.launches if isinstance(s.command, Launch)]
    devices = {t: s.lanes[0].owner for t, s in launches if t not in plan.loops and s.lanes}
    return Places(devices, {t: places_of(body) for t, body in plan.loops.items()}, None if plan.otherwise is None else places_of(plan.otherwise))


def _wide(plan: Timeline) -> set[str]:
    out = {plan.graph.task_names[s.command.task] for s in plan.launches if isinstance(s.command, Launch) and s.command.width > 1}
    for _, inner in plan.nested:
        out |= _wide(inner)
    return out


def has_effects(graph: Graph) -> bool:
    """True if some task of a graph, or inside its loops, has an effect outside."""
    return any(map(has_effect, graph.task_ops))


def run_with_checkpoints(
    plan: Timeline,
    inputs: Mapping[str, Any],
    asked: Checkpoint,
    run_one: RunOne,
    costs: CostModel | None = None,
    timeout: float | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    clock: Callable[[], float] = perf_counter,
) -> Result:
    """Run `plan`, keeping checkpoints as asked; goes on from those that are there. Raises what a run raises; `GraphError` where what the run rests on

    has changed since it began, with what; `FileError` where what was kept cannot be read; `CommandLineError` where another process runs with it.
    """
    with Store(asked.folder, clear=asked.clear) as store:
        ground = ground_of(plan.graph, inputs)
        found = None if asked.fresh else store.read()
        if found is not None:
            was, path = found
            refuse_changes(store.folder, was, ground)
            plan = read_plan(path, plan.graph, plan.machine)
        else:
            store.begin(ground, lambda path: write_plan(plan, path))
        return _Run(plan, inputs, asked, store, run_one, costs, timeout, progress, clock).run()


class _Run:
    def __init__(
        self, plan: Timeline, inputs: Mapping[str, Any], asked: Checkpoint, store: Store, run_one: RunOne, costs: CostModel | None,
        timeout: float | None, progress: Callable[[int, int, str], None] | None, clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self.plan, self.graph, self.asked, self.store, self.run_one, self.progress = plan, plan.graph, asked, store, run_one, progress
        self.places = places_of(plan)
        self.costs = _Widths(costs if costs is not None else asked_for(plan).model, frozenset(_wide(plan)))
        self.clock, self.began = clock, clock()
        self.until = None if timeout is None else self.began + timeout
        self.values: dict[int, Any] = {self.graph.inputs[name]: x for name, x in inputs.items()} | dict(self.graph.constants)
        self.done: set[int] = set()
        self.plans: list[Timeline] = [plan]
        self.traces: dict[Timeline, Timeline] = {}  # plan of a part or a piece -> the trace of its last run
        self.merged = Merged(plan)
        self.last: tuple[Piece, Timeline, int, float] | None = None  # the piece that ran last, its trace, first turn and start
        self.retries, self.at = asked.retries, "its beginning"
        self.total, self.past, self.told = launches_of(plan), 0, -1
        self.notes: list[str] = []
        self.problem: str | None = None
        self.pieces: dict[tuple[int, Shape], tuple[Piece, Timeline]] = {}

    def run(self) -> Result:
        graph = self.graph
        for number, t in enumerate(self._parted()):
            self._loop(number, t)
        effects = [t for t, op in enumerate(graph.task_ops) if t not in self.done and has_effect(op)]
        self._part(needed_for(graph, graph.outputs.values(), self.values, self.done, effects))
        if self.progress is not None:
            self.progress(self.total, self.total, graph.task_names[-1] if len(graph) else "")
        outputs = {name: self._own(v) for name, v in graph.outputs.items()}
        trace = self.merged.trace(self.notes)
        plans = [plan for plan in self.plans if plan in self.traces]
        return Result(outputs, trace, (self.plan, *plans), self.clock() - self.began, {}, tuple(self.traces[plan] for plan in plans))

    def _own(self, v: int) -> Any:
        """A value as the caller's own: inputs and constants that are outputs are copied."""
        found = self.values[v]
        return np.array(found, order="C") if isinstance(found, np.ndarray) and int(self.graph.value_task[v]) < 0 else found

    def _say(self, text: str) -> None:
        self.notes.append(text)
        if self.asked.tell is not None:
            self.asked.tell(text)

    def _parted(self) -> list[int]:
        """The loops that go in pieces."""
        out = []
        for t, op in enumerate(self.graph.task_ops):
            if not isinstance(op, Loop) or t not in self.plan.loops:
                continue
            kept = self.store.loops.get(self.graph.task_names[t])
            if kept is None:
                seconds = self.plan.loops[t].makespan
                if self.asked.turns is None and seconds < self.asked.seconds * FIRST_SHARE:
                    continue
                if self.asked.turns is not None and op.turns <= self.asked.turns:
                    continue
                why = why_whole(self.graph, t)
                if why is not None:
                    self._say(f"no checkpoints in loop {self.graph.task_names[t]!r}: {why}")
                    continue
            out.append(t)
        return out

    # Pieces

    def _loop(self, number: int, t: int) -> None:
        graph, loop = self.graph, self.graph.task_ops[t]
        assert isinstance(loop, Loop)
        name, carries = graph.task_names[t], len(loop.carried)
        reads, writes = graph.reads(t), list(graph.writes(t))
        turn, turns, parts = 0, loop.turns, [list[Any]() for _ in loop.collected]
        kept = self.store.loops.get(name)
        if kept is not None:
            turn, turns, carried = kept.turn, kept.turns, self.store.arrays(kept.carried)
            for file in kept.collected:
                for rows, part in zip(parts, self.store.arrays(file), strict=True):
                    rows.append(part)
            self._say(f"goes on from turn {turn} of {turns} of loop {name!r}")
            self.past += launches_of(self.plan.loops[t]) * turn // loop.turns
            before = needed_for(graph, [] if turn >= turns else reads[: len(reads) - carries], self.values, self.done)
        else:
            before = needed_for(graph, reads, self.values, self.done, [a for a, b in graph.after if b == t])
        self._part(before)
        if kept is None:
            carried = [self.values[v] for v in reads[len(reads) - carries :]]
        pace = self._first_pace(t)
        while turn < turns:
            end = next_turn(loop, turn, pace)
            began = self.clock()
            self.at = f"turn {turn} of loop {name!r}"
            result = self._piece(t, shape_of(loop, turn, end), turn, carried)
            carried = [result[str(k)] for k in range(carries)]
            new = [result[str(carries + k)] for k in range(len(loop.collected))]
            for rows, part in zip(parts, new, strict=True):
                rows.append(part)
            if loop.stop is not None:
                end = turn + len(result["stop"])
                turns = end if result["stop"][-1] else turns
            self._keep(name, number, end, turns, carried, new)
            pace = self._pace(pace, end - turn, self.clock() - began)
            turn = end
        for v, found in zip(writes, [*carried, *(_joined(p, graph.spec(v)) for p, v in zip(parts, writes[carries:], strict=True))], strict=True):
            self.values[v] = found
        self.done.add(t)
        self.at = f"the end of loop {name!r}"
        self._end_trace()
        self._let_go()

    def _first_pace(self, t: int) -> int:
        """Turns of the first piece."""
        if self.asked.turns is not None:
            return self.asked.turns
        seconds = (self.plan.loops[t].period or 0.0) or 1e-9
        return max(1, int(self.asked.seconds * FIRST_SHARE / seconds))

    def _pace(self, pace: int, turns: int, seconds: float) -> int:
        """Turns of the next piece, where one of `turns` took `seconds`."""
        if self.asked.turns is not None or SHORTEST * self.asked.seconds <= seconds * pace / turns <= LONGEST * self.asked.seconds:
            return pace
        return max(1, round(self.asked.seconds * turns / max(seconds, 1e-9)))

    def _piece(self, t: int, shape: Shape, turn: int, carried: Sequence[Any]) -> Result:
        if (t, shape) not in self.pieces:
            piece = piece_of(self.graph, t, shape, self.places)
            self.pieces[t, shape] = piece, self._planned(piece.graph)
        piece, plan = self.pieces[t, shape]
        result = self._run(plan, inputs_of(piece, self.graph, turn, self.values.__getitem__, carried))
        self._trace(piece, result.trace, turn)
        return result

    def _tried(self, plan: Timeline, inputs: Mapping[str, Any], progress: Any) -> Result:
        """Run a part or a piece, again where a task of it fails: its inputs are as they were, for values are written once."""
        while True:
            left = None
            if self.until is not None:
                left = self.until - self.clock()
                if left <= 0:
                    raise RunTimeoutError("the run took longer than it may; what is kept of it can be taken up again")
            try:
                return self.run_one(plan, inputs, timeout=left, progress=progress)
            except TaskError as error:
                if not self.retries or has_effects(plan.graph):
                    raise
                self.retries -= 1
                self._say(f"{error}; tried again from {self.at}")

    def _trace(self, piece: Piece, trace: Timeline, turn: int) -> None:
        """Take in the trace of a piece. Of loops the first and last turns are kept: pieces between are, of the outermost spans, and in sums."""
        begun = self.merged.now
        if piece.task not in self.merged.loops:
            self.merged.add(replace(trace, loops=self._body(piece, trace)), piece.tasks, piece.values, {piece.task: turn}, begun)
            return
        self.merged.add(replace(trace, loops={}), piece.tasks, piece.values, {}, begun)
        self.last = piece, trace, turn, begun

    def _end_trace(self) -> None:
        """The last piece of a loop has run: its last turns are the loop's."""
        if self.last is not None:
            (piece, trace, turn, begun), self.last = self.last, None
            body = replace(trace, spans=(), totals={}, loops=self._body(piece, trace))
            self.merged.add(body, piece.tasks, piece.values, {piece.task: turn}, begun)
            self.merged.loops[piece.task] = _ends(self.merged.loops[piece.task])

    def _body(self, piece: Piece, trace: Timeline) -> dict[int, Timeline]:
        number = piece.number
        return {number: _in_terms_of(trace.loops[number], self.plan.loops[piece.task], piece)} if number in trace.loops else {}

    def _keep(self, name: str, number: int, turn: int, turns: int, carried: Sequence[Any], collected: Sequence[Any]) -> None:
        self.store.keep(name, number, turn, turns, carried, collected)
        if self.store.problem is not None and self.problem is None:
            self._say(f"a checkpoint could not be kept: {self.store.problem}; the run goes on")
        self.problem = self.store.problem

    # Parts

    def _part(self, tasks: set[int]) -> None:
        """Run `tasks`, and take in the values that others still read."""
        graph = self.graph
        if not tasks:
            return
        self.done |= tasks
        wanted = {v for t in range(len(graph)) if t not in self.done for v in graph.reads(t)} | set(graph.outputs.values())
        part = part_of(graph, tasks, self.places, wanted)
        plan = self._planned(part.graph)
        result = self._run(plan, {name: self.values[v] for name, v in part.inputs.items()})
        self.merged.add(result.trace, part.tasks, part.values, {}, self.merged.now)
        self.values |= {v: result[name] for name, v in part.outputs.items()}
        self._let_go()

    def _let_go(self) -> None:
        """Forget the values that nobody reads any more."""
        graph = self.graph
        wanted = {v for t in range(len(graph)) if t not in self.done for v in graph.reads(t)} | set(graph.outputs.values())
        self.values = {v: found for v, found in self.values.items() if v in wanted or int(graph.value_task[v]) < 0}

    def _planned(self, graph: Graph) -> Timeline:
        """The plan of a part or a piece: every task has its place already."""
        tell_bodies(self.costs, graph)
        plan = plan_graph(graph, self.plan.machine, costs=self.costs)
        self.plans.append(plan)
        return plan

    def _run(self, plan: Timeline, inputs: Mapping[str, Any]) -> Result:
        past, whole = self.past, launches_of(plan)

        def tell(done: int, total: int, name: str) -> None:
            assert self.progress is not None
            now = min(past + done, self.total - 1)
            if now > self.told:
                self.told = now
                self.progress(now, self.total, name)

        result = self._tried(plan, inputs, tell if self.progress is not None else None)
        self.past = past + whole
        if self.progress is not None and len(plan.graph):
            tell(whole, whole, plan.graph.task_names[-1])  # who shares threads tells little
        self.traces[plan] = result.trace
        return result


def _joined(parts: Sequence[Any], spec: Any) -> Any:
    """A sequence from what pieces have collected of it."""
    if array_form(spec) is not None and all(isinstance(x, np.ndarray) for x in parts):
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
    return [x for part in parts for x in part]


def _in_terms_of(trace: Timeline, whole: Timeline, piece: Piece) -> Timeline:
    """The trace of a piece's body as one of the whole loop's body: without what only the piece knows."""
    tasks, values = piece.body_tasks, piece.body_values

    def replica(r: Replica) -> Replica:
        return r._replace(value=values[r.value])

    spans = []
    for span in trace.spans:
        c: Any = span.command
        if isinstance(c, Launch):
            if tasks[c.task] < 0:
                continue
            reads = tuple(replica(r) for r in c.reads if values[r.value] >= 0)
            c = c._replace(task=tasks[c.task], reads=reads, writes=tuple(map(replica, c.writes)))
        elif isinstance(c, Copy):
            if values[c.value] < 0:
                continue
            c = c._replace(value=values[c.value], src=replica(c.src), dst=replica(c.dst))
        else:
            continue
        spans.append(Span(span.lanes, c, span.start, span.finish))
    loops = {tasks[t]: body for t, body in trace.loops.items()}
    return replace(
        trace, graph=whole.graph, loop=whole.loop, spans=tuple(spans), loops=loops, prologue=(), epilogue=(), attributed=frozenset(), cold=frozenset()
    )


def _ends(trace: Timeline) -> Timeline:
    """The trace of a loop's body with its first and last turns, as runs in one keep them."""
    last = trace.turns - KEPT_TURNS
    spans = [s for s in trace.spans if not isinstance(s.command, Free) and (s.command.turn < KEPT_TURNS or s.command.turn >= last)]
    return replace(trace, spans=tuple(spans))


__all__ = ["places_of", "run_with_checkpoints"]
