"""From what a draft has booked to a timeline, by arrays: the commands in the order of time, where their replicas lie, and only then objects.

`GraphDraft.plan` is the one who asks. What `memory.lay_out` decides one block after another is decided here by machine code, where there is some and
the plan is one of plain launches and copies; the plan is the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, repeat
from typing import Any, NamedTuple

import numpy as np

from hetsched.graph.graph import Graph, Nested
from hetsched.graph.op import Op
from hetsched.graph.ops.shape import view_offset
from hetsched.graph.spec import array_form
from hetsched.machine import HOST
from hetsched.placement import native
from hetsched.placement.memory import GREEDY_BLOCKS, REST_GROWTH, REST_LAUNCHES, REST_SHARE, lay_out, padded, place_by_size
from hetsched.placement.problem import FloatArray, IntArray, Problem
from hetsched.placement.ranks import code_for
from hetsched.timeline import After, Copy, Free, Lane, Launch, Replica, Span, Timeline

# Of a class and a row: a named tuple without a call of its own `__new__`, which takes twice as long.
_new: Any = tuple.__new__


class Commands(NamedTuple):
    """Launches and copies in the order of time; of equal times in the order of booking, a task's copies before it.

    is_copy: bool[N]. what: the task, or the value. src, dst: the memory nodes that are read and written. choice, lane: of a launch; of a copy 0 and
    its engine. start, finish: seconds.
    """

    is_copy: Any
    what: IntArray
    src: IntArray
    dst: IntArray
    choice: IntArray
    lane: IntArray
    start: FloatArray
    finish: FloatArray


def commands_of(
    problem: Problem, booked: Sequence[int], choice: Sequence[int], lane: Sequence[int], start: Sequence[float], finish: Sequence[float], copies: Any
) -> Commands:
    """The commands of a finished draft. booked: tasks in the order of booking; choice, lane, start, finish: of each task; copies: `native.COPIED`."""
    order = np.asarray(booked, dtype=np.int64)
    on = np.asarray(choice, dtype=np.int64)[order]
    node, none = problem.nodes[on], np.zeros(len(copies), dtype=np.int64)
    columns = [
        np.concatenate(pair)
        for pair in (
            (np.ones(len(copies), dtype=bool), np.zeros(len(order), dtype=bool)),
            (copies["value"], order),
            (copies["src"], node),
            (copies["dst"], node),
            (none, on),
            (copies["engine"], np.asarray(lane, dtype=np.int64)[order]),
            (copies["start"], np.asarray(start, dtype=np.float64)[order]),
            (copies["finish"], np.asarray(finish, dtype=np.float64)[order]),
        )
    ]
    # Stable, and copies stand first: those of a task stand before it.
    as_booked = np.argsort(np.concatenate((copies["turn"], np.arange(len(order)))), kind="stable")
    in_time = as_booked[np.lexsort((columns[7][as_booked], columns[6][as_booked]))]
    return Commands(*(column[in_time] for column in columns))


# Objects --------------------------------------------------------------------------------------------------------------------------------


class _Objects:
    """The named tuples of the commands of a plan. Each replica, and each set of lanes, is one object."""

    def __init__(self, problem: Problem, commands: Commands) -> None:
        assert problem.graph is not None
        self.problem, self.graph, self.commands = problem, problem.graph, commands
        self.nodes = len(problem.node_names)
        graph, is_copy = self.graph, commands.is_copy
        tasks, node = commands.what[~is_copy], commands.dst[~is_copy]
        self.read_start, reads = gathered(graph.input_start, tasks)
        self.write_start, writes = gathered(graph.output_start, tasks)
        self.read_ids = graph.input_values[reads] * self.nodes + np.repeat(node, np.diff(self.read_start))
        self.write_ids = writes * self.nodes + np.repeat(node, np.diff(self.write_start))
        if len(writes):
            self.write_ids += int(graph.output_start[0]) * self.nodes
        moved = commands.what[is_copy] * self.nodes
        self.src_ids, self.dst_ids = moved + commands.src[is_copy], moved + commands.dst[is_copy]
        used = np.zeros(len(graph.value_specs) * self.nodes, dtype=bool)
        for ids in (self.read_ids, self.write_ids, self.src_ids, self.dst_ids):
            used[ids] = True
        self._place = np.cumsum(used) - 1
        there = np.flatnonzero(used)
        names = map(problem.node_names.__getitem__, (there % self.nodes).tolist())
        self._replicas = list(map(_new, repeat(Replica), zip((there // self.nodes).tolist(), repeat(0), names, repeat(0), strict=False)))

    def replicas(self, ids: IntArray) -> list[Replica]:
        """Of numbers value * nodes + node."""
        return list(map(self._replicas.__getitem__, self._place[ids].tolist()))

    def spans(self) -> list[Span]:
        """All commands as spans."""
        commands, is_copy = self.commands, self.commands.is_copy
        tasks = commands.what[~is_copy].tolist()
        lanes, widths = self._lanes_of_launches(tasks)
        reads, writes = self._rows(self.read_ids, self.read_start), self._rows(self.write_ids, self.write_start)
        launches: list[Any] = list(map(_new, repeat(Launch), zip(tasks, repeat(0), reads, writes, widths, strict=False)))
        if len(self.src_ids):
            moved = zip(commands.what[is_copy].tolist(), repeat(0), self.replicas(self.src_ids), self.replicas(self.dst_ids), strict=False)
            copies = map(_new, repeat(Copy), moved)
            links = iter(self._lanes_of_copies())
            turn, lane_turn = iter(launches), iter(lanes)
            marks = is_copy.tolist()
            launches = [next(copies) if mark else next(turn) for mark in marks]
            lanes = [next(links) if mark else next(lane_turn) for mark in marks]
        return list(map(_new, repeat(Span), zip(lanes, launches, commands.start.tolist(), commands.finish.tolist(), strict=True)))

    def _rows(self, ids: IntArray, start: IntArray) -> list[tuple[Replica, ...]]:
        flat = self.replicas(ids)
        if len(flat) == len(start) - 1 and bool((np.diff(start) == 1).all()):
            return list(zip(flat, strict=True))
        return [tuple(flat[a:b]) for a, b in pairwise(start.tolist())]

    def _lanes_of_launches(self, tasks: list[int]) -> tuple[list[tuple[Lane, ...]], list[int]]:
        problem, commands = self.problem, self.commands
        table: list[tuple[Lane, ...]] = []
        first: list[int] = []
        for choice in problem.choices:
            first.append(len(table))
            if choice.pool < 0:
                continue
            pool, device = problem.pools[choice.pool], problem.device_ids[choice.device]
            every = tuple(Lane(device, i, pool.kind) for i in range(pool.lanes))
            table += [every] if choice.width > 1 else [(lane,) for lane in every]
        narrow = np.array([c.width == 1 for c in problem.choices])
        on = commands.choice[~commands.is_copy]
        rows = np.array(first, dtype=np.int64)[on] + np.where(narrow[on], commands.lane[~commands.is_copy], 0)
        width_of = np.array([c.width for c in problem.choices], dtype=np.int64)
        if not problem.loops:
            return list(map(table.__getitem__, rows.tolist())), width_of[on].tolist()
        lanes = [problem.loop_lanes[t] if t in problem.loops else table[row] for t, row in zip(tasks, rows.tolist(), strict=True)]
        return lanes, [len(x) if t in problem.loops else w for t, x, w in zip(tasks, lanes, width_of[on].tolist(), strict=True)]

    def _lanes_of_copies(self) -> list[tuple[Lane, ...]]:
        commands, names = self.commands, self.problem.node_names
        assert self.problem.machine is not None
        links = {(x.src, x.dst): x.id for x in self.problem.machine.links}
        known: dict[tuple[int, int, int], tuple[Lane, ...]] = {}
        out = []
        is_copy = commands.is_copy
        for way in zip(*(x[is_copy].tolist() for x in (commands.src, commands.dst, commands.lane)), strict=True):
            found = known.get(way)
            if found is None:
                found = known[way] = (Lane(links[names[way[0]], names[way[1]]], way[2], "copy"),)
            out.append(found)
        return out


def gathered(start: IntArray, rows: IntArray) -> tuple[IntArray, IntArray]:
    """The CSR rows `rows` one after another: (their starts, the positions of their entries)."""
    first, counts = start[rows], start[rows + 1] - start[rows]
    out = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    return out, np.repeat(first - out[:-1], counts) + np.arange(out[-1]) - (int(start[0]) if len(start) else 0)


def spans_of(problem: Problem, commands: Commands) -> list[Span]:
    """The commands as spans."""
    return _Objects(problem, commands).spans()


# Memory ---------------------------------------------------------------------------------------------------------------------------------


def written(problem: Problem, commands: Commands, straight: Timeline, limits: Mapping[str, int | None]) -> Timeline | None:
    """The plan of `commands`, laid out; None where it does not fit `limits`. straight: a plan without spans, for the rest."""
    objects = _Objects(problem, commands)
    code = code_for(problem) if not problem.loops else None
    found = _Layout(problem, objects, code).laid_out(straight, limits) if code is not None else None
    return found if found is not None else lay_out(replace(straight, spans=tuple(objects.spans())), limits, give_up=False)


@dataclass(frozen=True)
class _TaskFacts:
    """What laying out asks of tasks and values (see the struct `Plan` of layout.c)."""

    lies: IntArray
    result: IntArray
    alike: IntArray
    view: IntArray
    view_offset: IntArray
    workspace: IntArray
    pair_start: IntArray
    pairs: IntArray


def _task_facts(graph: Graph) -> _TaskFacts:
    values, n = len(graph.value_specs), len(graph)
    ids, alike = np.unique(np.fromiter(map(id, graph.value_specs), np.int64, values), return_inverse=True)
    first = np.zeros(len(ids), dtype=np.int64)
    first[alike] = np.arange(values)
    equal: dict[Any, int] = {}
    specs = [graph.value_specs[v] for v in first.tolist()]
    number = np.array([equal.setdefault(spec, len(equal)) for spec in specs], dtype=np.int64)
    lies = np.array([array_form(spec) is not None for spec in specs], dtype=np.int64)
    result = np.zeros(values, dtype=np.int64)
    result[list(graph.outputs.values())] = 1
    op_ids, op_of = np.unique(np.fromiter(map(id, graph.task_ops), np.int64, n), return_inverse=True)
    one = np.zeros(len(op_ids), dtype=np.int64)
    one[op_of] = np.arange(n)
    ops = [graph.task_ops[t] for t in one.tolist()]
    pairs = [[] if isinstance(op, Nested) else [list(pair) for pair in op.inplace] for op in ops]
    pair_starts = np.concatenate(([0], np.cumsum([len(x) for x in pairs]))).astype(np.int64)
    pair_start, positions = gathered(pair_starts, op_of)
    is_view = np.array([isinstance(op, Op) and op.view for op in ops], dtype=np.int64)
    has_scratch = np.array([isinstance(op, Op) and op.workspace is not None for op in ops], dtype=bool)
    offset, workspace = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    for t in np.flatnonzero(is_view[op_of]).tolist():
        op = graph.task_ops[t]
        assert isinstance(op, Op)
        offset[t] = view_offset(op, graph.value_specs[graph.reads(t)[0]], graph.task_attributes[t])
    for t in np.flatnonzero(has_scratch[op_of]).tolist():
        op = graph.task_ops[t]
        assert isinstance(op, Op)
        assert op.workspace is not None
        ins, outs = ([graph.value_specs[v] for v in values] for values in (graph.reads(t), graph.writes(t)))
        workspace[t] = op.workspace(ins, outs, graph.task_attributes[t])
    flat = np.array([x for row in pairs for x in row], dtype=np.int64).reshape(-1, 2)
    return _TaskFacts(
        lies[alike], result, number[alike], is_view[op_of], offset, workspace, pair_start, np.ascontiguousarray(flat[positions])
    )  # fmt: skip


class _Layout:
    """`memory.lay_out`, with blocks in the hands of machine code."""

    def __init__(self, problem: Problem, objects: _Objects, code: Any) -> None:
        self.problem, self.objects, self.code = problem, objects, code
        self.graph, self.commands = objects.graph, objects.commands

    def laid_out(self, straight: Timeline, limits: Mapping[str, int | None]) -> Timeline | None:
        """The plan; None where a node is too small, or something else calls for `memory.lay_out`."""
        facts, graph, commands = _task_facts(self.graph), self.graph, self.commands
        if (facts.workspace[(np.diff(graph.input_start) == 0) & (np.diff(graph.output_start) == 0)] > 0).any():
            return None
        low, high = self._streams()
        plan = native.LayoutPlan(
            counts=(len(commands.what), len(graph), len(graph.value_specs), self.objects.nodes, self.problem.host),
            end=float(commands.finish.max(initial=0.0)),
            kind=commands.is_copy,
            what=commands.what,
            src=commands.src,
            dst=commands.dst,
            start=commands.start,
            finish=commands.finish,
            low=low,
            high=high,
            input_start=graph.input_start,
            inputs=graph.input_values,
            output_start=graph.output_start,
            value_task=graph.value_task,
            nbytes=graph.value_nbytes,
            lies=facts.lies,
            result=facts.result,
            alike=facts.alike,
            view=facts.view,
            view_offset=facts.view_offset,
            workspace=facts.workspace,
            pair_start=facts.pair_start,
            pairs=facts.pairs,
        )
        with native.Layout(self.code, plan) as layout:
            loose = layout.loose()
            loose_nbytes = graph.value_nbytes[loose[0]]
            loose_most = _most(loose[1], loose[2], loose_nbytes)
            arenas = self._pack(layout, limits, loose_most)
            limit = limits.get(HOST)
            if arenas is None or (limit is not None and HOST not in arenas and loose_most > limit):
                return None
            edges = layout.edges()
            if edges is None:
                return None
            blocks, frees = layout.blocks(), layout.frees()
            block_of, inside, scratch_of = layout.places()
        return self._timeline(straight, arenas, edges, frees, blocks, block_of, inside, scratch_of, (loose[1], loose[2], loose_nbytes))

    def _pack(self, layout: native.Layout, limits: Mapping[str, int | None], loose_most: int) -> dict[str, int] | None:
        """Node -> bytes of its arena, as `memory.pack` has it; None where one is too large."""
        arenas: dict[str, int] = {}
        blocks = layout.blocks()
        for node in dict.fromkeys(blocks["node"].tolist()):
            name = self.problem.node_names[node]
            limit = limits.get(name)
            room = None if limit is None else limit - (loose_most if name == HOST else 0)
            arenas[name] = self._pack_node(layout, blocks[blocks["node"] == node], node, room)
            if room is not None and arenas[name] > room:
                return None
        return arenas

    def _pack_node(self, layout: native.Layout, blocks: Any, node: int, room: int | None) -> int:
        best, offsets = layout.pack(node, 0.0), layout.offsets()
        rest = self._rest_seconds(node)
        if rest > 0:
            wider = layout.pack(node, rest)
            if best < wider <= REST_GROWTH * best and (room is None or wider <= REST_SHARE * room):
                return wider
            layout.place(offsets)
        until, sizes = np.where(blocks["kept"] != 0, np.inf, blocks["finish"]), padded(blocks["nbytes"])
        alive = _most(blocks["start"], until, sizes)
        if best > alive and ((room is not None and best > room >= alive) or len(blocks) <= GREEDY_BLOCKS):
            other, places = place_by_size(blocks["start"], until, blocks["first"], blocks["last"], sizes)
            if other < best:
                offsets[layout.blocks()["node"] == node] = places
                layout.place(offsets)
                best = other
        return best

    def _rest_seconds(self, node: int) -> float:
        """`memory._rest_seconds`."""
        problem, commands = self.problem, self.commands
        assert problem.machine is not None
        devices = problem.machine.devices
        name = problem.node_names[node]
        rests = np.array([c.device >= 0 and devices[c.device].shares_lanes and devices[c.device].memory == name for c in problem.choices])
        mine = ~commands.is_copy & rests[commands.choice]
        if not mine.any():
            return 0.0
        on = commands.choice[mine]
        pool, wide = np.array([c.pool for c in problem.choices])[on], np.array([c.width > 1 for c in problem.choices])[on]
        if not wide.any() and len(np.unique(np.stack((pool, commands.lane[mine])), axis=1).T) < 2:
            return 0.0
        lengths: list[float] = (commands.finish[mine] - commands.start[mine]).tolist()
        return REST_LAUNCHES * sum(lengths) / len(lengths)

    def _streams(self) -> tuple[IntArray, IntArray]:
        """The lanes that each launch holds of streams, as numbers from low to high - 1; none of others."""
        problem, commands = self.problem, self.commands
        assert problem.machine is not None
        first = np.concatenate(([0], np.cumsum([pool.lanes for pool in problem.pools])))
        is_stream = [c.device >= 0 and not problem.machine.devices[c.device].shares_lanes for c in problem.choices]
        lows = np.array([first[c.pool] for c in problem.choices], dtype=np.int64)
        highs = np.array([first[c.pool + 1] for c in problem.choices], dtype=np.int64)
        narrow = np.array([c.width == 1 for c in problem.choices])
        on = commands.choice
        low = np.where(narrow[on], lows[on] + commands.lane, lows[on])
        high = np.where(narrow[on], low + 1, highs[on])
        there = ~commands.is_copy & np.array(is_stream)[on]
        return np.where(there, low, 0), np.where(there, high, 0)

    def _timeline(
        self, straight: Timeline, arenas: dict[str, int], edges: Any, frees: Any, blocks: Any, block_of: IntArray, inside: IntArray,
        scratch_of: IntArray, loose: tuple[Any, Any, Any],
    ) -> Timeline:  # fmt: skip
        objects, commands, names = self.objects, self.commands, self.problem.node_names
        spans = objects.spans()
        freed, at = frees
        if len(freed):
            order = np.lexsort((np.concatenate((commands.finish, at)), np.concatenate((commands.start, at))))
            number = np.empty(len(order), dtype=np.int64)
            number[order] = np.arange(len(order))
            times = at.tolist()
            given = map(_new, repeat(Free), zip(objects.replicas(freed), strict=True))
            spans += map(_new, repeat(Span), zip(repeat(()), given, times, times, strict=False))
            spans = list(map(spans.__getitem__, order.tolist()))
            edges = {name: number[edges[name]] for name in ("before", "later")}
        after = map(_new, repeat(After), zip(edges["before"].tolist(), edges["later"].tolist(), repeat(0), strict=False))
        laid = np.flatnonzero(block_of >= 0)
        offsets = dict(zip(objects.replicas(laid), (blocks["offset"][block_of[laid]] + inside[laid]).tolist(), strict=True))
        scratch = blocks[scratch_of[scratch_of >= 0]]
        rows = zip(map(names.__getitem__, scratch["node"].tolist()), scratch["offset"].tolist(), scratch["nbytes"].tolist(), strict=True)
        peak: dict[str, int] = {}
        until = np.where(blocks["kept"] != 0, np.inf, blocks["finish"])
        for node in dict.fromkeys([*blocks["node"].tolist(), *([self.problem.host] if len(loose[0]) else [])]):
            mine = blocks["node"] == node
            parts = [(blocks["start"][mine], until[mine], blocks["nbytes"][mine]), *([loose] if node == self.problem.host else [])]
            peak[names[node]] = _most(*(np.concatenate(part) for part in zip(*parts, strict=True)))
        return replace(
            straight,
            spans=tuple(spans),
            after=tuple(after),
            offsets=offsets,
            arenas=arenas,
            workspaces=dict(zip(np.flatnonzero(scratch_of >= 0).tolist(), rows, strict=True)),
            peak=peak,
        )


def _most(start: FloatArray, finish: FloatArray, nbytes: IntArray) -> int:
    """The most bytes alive at once."""
    if not len(start):
        return 0
    when, change = np.concatenate((start, finish)), np.concatenate((nbytes, -nbytes))
    return max(0, int(np.cumsum(change[np.lexsort((change, when))]).max()))
