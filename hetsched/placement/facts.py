"""Problems as the arrays that the inner loops want: costed ones (`search.walk.Facts`), and those of graphs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from hetsched.placement.problem import FloatArray, IntArray, Problem
from hetsched.placement.ranks import least_tails
from hetsched.placement.search.walk import DRAWS, Facts


def facts_of(problem: Problem) -> Facts:
    """Everything: for the search."""
    succ_starts, succs, _ = problem.succ
    possible = np.isfinite(problem.durations)
    return list_facts(problem)._replace(
        tail=least_tails(problem),
        succ_starts=succ_starts,
        succs=succs,
        able_starts=_starts(possible.sum(axis=1)),
        able=np.nonzero(possible)[1].astype(np.int64),
        draws=-np.log((np.arange(DRAWS) + 0.5) / DRAWS),
    )


def list_facts(problem: Problem) -> Facts:
    """What booking a list of tasks asks for; the rest is left empty."""
    none, no_real = np.zeros(0, dtype=np.int64), np.zeros(0)
    return Facts(
        seconds=np.ascontiguousarray(problem.durations),
        tail=no_real,
        starts=problem.pred_start,
        preds=problem.pred_task,
        nbytes=problem.pred_nbytes,
        succ_starts=none,
        succs=none,
        node=problem.nodes,
        lanes=_starts([pool.lanes for pool in problem.pools]),
        latency=np.ascontiguousarray(problem.latency),
        per_byte=np.ascontiguousarray(problem.seconds_per_byte),
        able_starts=none,
        able=none,
        draws=no_real,
    )


class GraphFacts(NamedTuple):
    """The problem of a graph as the arrays that booking wants: the struct `Graph` of draft.c, where each is told.

    counts: its whole numbers; then arrays of int64 and float64.
    """

    counts: tuple[int, ...]
    seconds: Any
    read_starts: Any
    reads: Any
    write_starts: Any
    producer: Any
    nbytes: Any
    after_starts: Any
    after: Any
    node: Any
    pool: Any
    width: Any
    device: Any
    lane_starts: Any
    pool_device: Any
    crossing: Any
    latency: Any
    per_byte: Any
    engine_starts: Any
    uses: Any
    capacity: Any
    group: Any
    results: Any


def graph_facts(problem: Problem) -> GraphFacts:
    """What booking a graph without loops asks for. Worked out once for a problem."""
    if "graph_facts" not in problem.memo:
        problem.memo["graph_facts"] = _graph_facts(problem)
    found: GraphFacts = problem.memo["graph_facts"]
    return found


def _graph_facts(problem: Problem) -> GraphFacts:
    graph, machine = problem.graph, problem.machine
    assert graph is not None
    assert machine is not None
    n, nodes = len(problem), len(problem.node_names)
    read_starts, reads = _each_once(graph.input_start, graph.input_values)
    after = np.array(sorted(((t, i, before) for i, (before, t) in enumerate(graph.after))), dtype=np.int64).reshape(-1, 3)
    group = np.full(n, -1, dtype=np.int64)
    for number, tasks in enumerate(dict.fromkeys(problem.groups.values())):
        group[list(tasks)] = number
    results = np.array(list(dict.fromkeys(graph.outputs.values())), dtype=np.int64)
    given = int(graph.output_start[0]) if n else len(graph.value_specs)
    choices, pools = problem.choices, problem.pools
    counts = (
        n, len(graph.value_specs), len(choices), nodes, len(pools), len(problem.resource_capacity), len(results), problem.host, given,
    )  # fmt: skip
    return GraphFacts(
        counts=counts,
        seconds=_real(problem.durations),
        read_starts=read_starts,
        reads=reads,
        write_starts=_whole(graph.output_start),
        producer=_whole(graph.value_task),
        nbytes=_real(graph.value_nbytes),
        after_starts=_starts(np.bincount(after[:, 0], minlength=n)),
        after=_whole(after[:, 2]),
        node=_whole([c.node for c in choices]),
        pool=_whole([c.pool for c in choices]),
        width=_whole([c.width for c in choices]),
        device=_whole([c.device for c in choices]),
        lane_starts=_starts([pool.lanes for pool in pools]),
        pool_device=_whole([pool.device for pool in pools]),
        crossing=_real([machine.devices[pool.device].crossing_seconds for pool in pools]),
        latency=_real(problem.latency),
        per_byte=_real(problem.seconds_per_byte),
        engine_starts=_starts(problem.engines.reshape(-1)),
        uses=_real(problem.uses),
        capacity=_real(problem.resource_capacity),
        group=group,
        results=results,
    )


def _each_once(start: IntArray, values: IntArray) -> tuple[IntArray, IntArray]:
    """The CSR rows with each value once, where it stands first."""
    counts = np.diff(start)
    owner = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((values, owner))  # stable: of equals the first stands first
    first = np.ones(len(values), dtype=bool)
    first[order[1:]] = (values[order[1:]] != values[order[:-1]]) | (owner[order[1:]] != owner[order[:-1]])
    if first.all():
        return _whole(start), _whole(values)
    return _starts(np.bincount(owner[first], minlength=len(counts))), _whole(values[first])


def _whole(x: Any) -> IntArray:
    return np.ascontiguousarray(x, dtype=np.int64)


def _real(x: Any) -> FloatArray:
    return np.ascontiguousarray(x, dtype=np.float64)


def _starts(counts: Any) -> Any:
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
