"""Bounds by paths: no task can finish before its predecessors have, each at its best, and what it reads has come over the fastest links.

The witness of such a bound is the earliest conceivable finish of each task on each memory node (a potential); the last of them is the bound.
"""

from __future__ import annotations

import numpy as np

from hetsched.errors import PlanError
from hetsched.placement import native
from hetsched.placement.problem import FloatArray, Problem
from hetsched.placement.ranks import code_for, levels
from hetsched.timeline import Bound

# Floats of the largest array that is made in one go.
_AT_ONCE = 200_000


def shortest_links(problem: Problem) -> tuple[FloatArray, FloatArray]:
    """The least latency and the least seconds per byte between nodes over any chain of links (Floyd, Warshall), each by itself: a value may

    reach a node by way of another one. In costed graphs copies are direct.
    """
    latency, per_byte = problem.latency.copy(), problem.seconds_per_byte.copy()
    if not problem.is_costed:
        for k in range(len(latency)):
            latency = np.minimum(latency, latency[:, k : k + 1] + latency[k : k + 1, :])
            # Bytes pass every link of a chain, one after the other.
            per_byte = np.minimum(per_byte, per_byte[:, k : k + 1] + per_byte[k : k + 1, :])
    # No link: the latency says so; 0 bytes * inf would be no number.
    return latency, np.where(np.isinf(latency), 0.0, per_byte)


def fastest_by_node(problem: Problem, seconds: FloatArray) -> FloatArray:
    """float64[n, M]: the least of `seconds` (float64[n, C]) of each task on the choices of each node; inf where there are none."""
    out = np.full((len(problem), len(problem.node_names)), np.inf)
    for c, choice in enumerate(problem.choices):
        np.minimum(out[:, choice.node], seconds[:, c], out=out[:, choice.node])
    return out


def from_host(problem: Problem, latency: FloatArray, per_byte: FloatArray) -> FloatArray:
    """float64[n, M]: when the largest input of the graph that each task reads can be in each node."""
    out = np.zeros((len(problem), len(problem.node_names)))
    graph = problem.graph
    if graph is not None:
        first = int(graph.output_start[0]) if len(graph.output_start) else 0
        reader = np.repeat(np.arange(len(graph)), np.diff(graph.input_start))
        given = graph.input_values < first
        arrive = latency[problem.host][None, :] + graph.value_nbytes[graph.input_values[given]][:, None] * per_byte[problem.host][None, :]
        np.maximum.at(out, reader[given], arrive)
    return out


def to_host(problem: Problem, latency: FloatArray, per_byte: FloatArray) -> FloatArray:
    """float64[n, M]: seconds until every output of the graph that a task makes in a node is on the host; 0 in a costed graph."""
    out = np.zeros((len(problem), len(problem.node_names)))
    graph = problem.graph
    if graph is not None:
        for value in set(graph.outputs.values()):
            task = int(graph.value_task[value])
            if task >= 0:
                home = latency[:, problem.host] + float(graph.value_nbytes[value]) * per_byte[:, problem.host]
                np.maximum(out[task], home, out=out[task])
    return out


def earliest_finishes(problem: Problem) -> FloatArray:
    """float64[n, M]: the earliest conceivable finish of each task on each node; inf where it cannot run there."""
    latency, per_byte = shortest_links(problem)
    fastest = fastest_by_node(problem, problem.durations)
    start_at = from_host(problem, latency, per_byte)
    code = code_for(problem)
    if code is not None:
        edges_of = problem.order, problem.pred_start, problem.pred_task
        found: FloatArray = native.earliest(code, *edges_of, problem.pred_largest, latency, per_byte, start_at, fastest)
        return found
    finish = np.empty_like(fastest)
    for tasks, edges, groups in levels(len(problem), problem.pred_start, problem.pred_task, problem.order.tolist()):
        ready = start_at[tasks]
        if len(edges):
            arrive = _arrivals(finish[problem.pred_task[edges]], problem.pred_largest[edges], latency, per_byte)
            ready = np.maximum(ready, np.maximum.reduceat(arrive, groups))
        finish[tasks] = ready + fastest[tasks]
    return finish


def _arrivals(finish: FloatArray, nbytes: FloatArray, latency: FloatArray, per_byte: FloatArray) -> FloatArray:
    """float64[edges, M]: when `nbytes` that are made at `finish[edge, node]` on whichever node is best can be in each node."""
    if len(finish) * latency.size <= _AT_ONCE:
        out: FloatArray = (finish[:, :, None] + (latency[None] + np.maximum(nbytes, 0.0)[:, None, None] * per_byte[None])).min(axis=1)
    else:
        out = np.full(finish.shape, np.inf)
        for node in range(len(latency)):
            np.minimum(out, finish[:, node, None] + (latency[node][None] + np.maximum(nbytes, 0.0)[:, None] * per_byte[node][None]), out=out)
    order_only = nbytes < 0
    if order_only.any():
        out[order_only] = finish[order_only].min(axis=1)[:, None]
    return out


def ends(problem: Problem, finish: FloatArray) -> FloatArray:
    """float64[n]: when each task can be over, and its outputs of the graph be on the host."""
    out: FloatArray = finish.min(axis=1)
    graph = problem.graph
    if graph is not None:
        latency, per_byte = shortest_links(problem)
        for value in set(graph.outputs.values()):
            task = int(graph.value_task[value])
            if task >= 0:
                home = finish[task] + latency[:, problem.host] + float(graph.value_nbytes[value]) * per_byte[:, problem.host]
                out[task] = max(out[task], float(home.min()))
    return out


def check_potentials(problem: Problem, bound: Bound) -> float:
    """No potential may exceed what the potentials of its predecessors allow: then, going along `order`, each is a lower bound of a finish."""
    potential = np.asarray(bound.witness, dtype=np.float64)
    if potential.shape != (len(problem), len(problem.node_names)):
        raise PlanError(f"the witness has shape {potential.shape}, the problem {(len(problem), len(problem.node_names))}")
    if not len(problem):
        return 0.0
    latency, per_byte = shortest_links(problem)
    fastest = fastest_by_node(problem, problem.durations)
    given = from_host(problem, latency, per_byte)
    nodes = range(len(problem.node_names))
    slack = 1 + 1e-12
    place = {t: i for i, t in enumerate(problem.order.tolist())}
    for t in range(len(problem)):
        edges = range(int(problem.pred_start[t]), int(problem.pred_start[t + 1]))
        if any(place[int(problem.pred_task[k])] >= place[t] for k in edges):
            raise PlanError(f"the order of the problem puts task {problem.name(t)!r} before a predecessor")
        for m in nodes:
            if fastest[t, m] == np.inf:
                continue
            allowed = float(given[t, m])
            for k in edges:
                p, nbytes = int(problem.pred_task[k]), float(problem.pred_largest[k])
                ways = [
                    potential[p, s] + (0.0 if nbytes < 0 or s == m else latency[s, m] + nbytes * per_byte[s, m])
                    for s in nodes
                    if fastest[p, s] < np.inf
                ]
                allowed = max(allowed, min(ways))
            if potential[t, m] > (allowed + fastest[t, m]) * slack:
                shown = allowed + fastest[t, m]
                raise PlanError(f"the witness claims {potential[t, m]:.9g} s for task {problem.name(t)!r}; its predecessors show {shown:.9g}")
    return float(ends(problem, np.where(np.isfinite(fastest), potential, np.inf)).max())
