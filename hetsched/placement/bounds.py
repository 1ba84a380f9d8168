"""Lower bounds on the makespan, each with a witness that `check_bound` verifies by other means than those that found it.

Kinds:
"path": no task can finish before its predecessors have, at their best, and what it reads has come over the fastest links. Witness: for each
task and memory node the earliest conceivable finish (potentials); the last of them is the bound.
"work": lanes can do only so much at once. With prices y >= 0 of the pools of lanes, sum y[pool] * lanes[pool] = 1, every plan of length T pays
at most T, and every task pays at least min over its choices of y * lanes taken * seconds (weak duality of the fractional assignment
problem). Witness: the prices.
"window": the same for the tasks that cannot start before `head` and must be followed by at least `tail` seconds of other work: T >= head +
tail + what these tasks pay. Witness: the prices, head, tail.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hetsched.errors import PlanError
from hetsched.placement.problem import FloatArray, Problem
from hetsched.placement.ranks import levels
from hetsched.timeline import Bound

# Steps of the search for prices; each costs one pass over durations. Big problems get fewer, so that a bound takes less time than a plan.
_PRICE_STEPS, _PRICE_BUDGET = 200, 4_000_000
_WINDOWS = 24
# Floats of the largest array that is made in one go.
_AT_ONCE = 200_000
# A bound is a sum of many floats; it is lowered by this share so that rounding cannot lift it above a real plan.
_ROUNDING = 1e-9


class Window(NamedTuple):
    """Witness of "work" (head and tail 0) and "window": prices of the pools, and which tasks count."""

    prices: tuple[float, ...]
    head: float
    tail: float


def lower_bound(problem: Problem) -> Bound:
    """The best of the bounds above; 0 seconds for no tasks."""
    if not len(problem):
        return Bound(0.0, "path", np.zeros((0, len(problem.node_names))))
    finish = earliest_finishes(problem)
    path = float(_ends(problem, finish).max())
    prices = _prices(problem)
    heads, tails = fastest_heads(problem), fastest_tails(problem)
    window, worked = _best_window(_dues(problem, prices), heads, tails, tuple(prices.tolist()))
    if path >= worked:
        return Bound(path * (1 - _ROUNDING), "path", finish)
    kind = "work" if window.head == 0 and window.tail == 0 else "window"
    return Bound(worked * (1 - _ROUNDING), kind, window)


def check_bound(problem: Problem, bound: Bound) -> None:
    """Verify that the witness of `bound` proves it, task by task, from the problem alone. Raises `PlanError` if it does not."""
    if bound.kind == "path":
        proved = _check_potentials(problem, bound)
    elif bound.kind in ("work", "window") and isinstance(bound.witness, Window):
        proved = _check_window(problem, bound.witness)
    else:
        raise PlanError(f"a bound of kind {bound.kind!r} with the witness {bound.witness!r} cannot be verified")
    if bound.seconds > proved:
        raise PlanError(f"the bound of {bound.seconds:.9g} s is not proved: its witness gives {proved:.9g} s")


# Paths --------------------------------------------------------------------------------------------------------------------------


def _shortest_links(problem: Problem) -> tuple[FloatArray, FloatArray]:
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


def _fastest_by_node(problem: Problem) -> FloatArray:
    """float64[n, M]: the least seconds of each task on the choices of each node."""
    out = np.full((len(problem), len(problem.node_names)), np.inf)
    for c, choice in enumerate(problem.choices):
        np.minimum(out[:, choice.node], problem.durations[:, c], out=out[:, choice.node])
    return out


def _from_host(problem: Problem, latency: FloatArray, per_byte: FloatArray) -> FloatArray:
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


def earliest_finishes(problem: Problem) -> FloatArray:
    """float64[n, M]: the earliest conceivable finish of each task on each node; inf where it cannot run there."""
    latency, per_byte = _shortest_links(problem)
    fastest = _fastest_by_node(problem)
    start_at = _from_host(problem, latency, per_byte)
    finish = np.empty_like(fastest)
    for tasks, edges, groups in levels(len(problem), problem.pred_start, problem.pred_task):
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


def _ends(problem: Problem, finish: FloatArray) -> FloatArray:
    """float64[n]: when each task can be over, and its outputs of the graph be on the host."""
    out: FloatArray = finish.min(axis=1)
    graph = problem.graph
    if graph is not None:
        latency, per_byte = _shortest_links(problem)
        for value in set(graph.outputs.values()):
            task = int(graph.value_task[value])
            if task >= 0:
                home = finish[task] + latency[:, problem.host] + float(graph.value_nbytes[value]) * per_byte[:, problem.host]
                out[task] = max(out[task], float(home.min()))
    return out


def _check_potentials(problem: Problem, bound: Bound) -> float:
    """No potential may exceed what the potentials of its predecessors allow: then, going along `order`, each is a lower bound of a finish."""
    potential = np.asarray(bound.witness, dtype=np.float64)
    if potential.shape != (len(problem), len(problem.node_names)):
        raise PlanError(f"the witness has shape {potential.shape}, the problem {(len(problem), len(problem.node_names))}")
    if not len(problem):
        return 0.0
    latency, per_byte = _shortest_links(problem)
    fastest = _fastest_by_node(problem)
    given = _from_host(problem, latency, per_byte)
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
    return float(_ends(problem, np.where(np.isfinite(fastest), potential, np.inf)).max())


# Work ---------------------------------------------------------------------------------------------------------------------------


def fastest_heads(problem: Problem) -> FloatArray:
    """float64[n]: seconds of the longest chain of predecessors, each at its fastest, nothing for copies."""
    fastest = problem.durations.min(axis=1).tolist()
    head = [0.0] * len(problem)
    starts, preds = problem.pred_start.tolist(), problem.pred_task.tolist()
    for t in problem.order.tolist():
        head[t] = max((head[p] + fastest[p] for p in preds[starts[t] : starts[t + 1]]), default=0.0)
    return np.array(head)


def fastest_tails(problem: Problem) -> FloatArray:
    """float64[n]: the same for what must follow each task."""
    fastest = problem.durations.min(axis=1).tolist()
    tail = [0.0] * len(problem)
    starts, preds = problem.pred_start.tolist(), problem.pred_task.tolist()
    for t in reversed(problem.order.tolist()):
        here = tail[t] + fastest[t]
        for p in preds[starts[t] : starts[t + 1]]:
            if here > tail[p]:
                tail[p] = here
    return np.array(tail)


def _dues(problem: Problem, prices: FloatArray) -> FloatArray:
    """float64[n]: the least that each task pays. A loop pays for every lane that it holds."""
    due = np.full(len(problem), np.inf)
    for c, choice in enumerate(problem.choices):
        if choice.pool >= 0:
            np.minimum(due, problem.durations[:, c] * (prices[choice.pool] * choice.width), out=due)
    for task, lanes in problem.loop_lanes.items():
        pool_of = {(problem.device_ids[p.device], p.kind): i for i, p in enumerate(problem.pools)}
        held = [pool_of[lane.owner, lane.kind] for lane in lanes if lane.kind != "copy"]
        due[task] = float(problem.durations[task].min()) * sum(float(prices[i]) for i in held)
    return due


def _prices(problem: Problem) -> FloatArray:
    """Prices of one lane-second in each pool, by subgradient ascent on the dual: raise the price where the cheapest choices crowd."""
    n_pools = len(problem.pools)
    lanes = np.array([p.lanes for p in problem.pools], dtype=np.float64)
    choices = [(c, x) for c, x in enumerate(problem.choices) if x.pool >= 0]
    pool = np.array([x.pool for _, x in choices])
    cost = problem.durations[:, [c for c, _ in choices]] * np.array([float(x.width) for _, x in choices])
    plain = np.isfinite(cost).any(axis=1)
    cost = cost[plain]
    weights = np.full(n_pools, 1.0 / n_pools)  # price * lanes, summing to 1
    best, least = weights, -1.0
    for step in range(max(8, min(_PRICE_STEPS, _PRICE_BUDGET // max(cost.size, 1)))):
        prices = weights / lanes
        paid = cost * prices[pool]
        chosen = np.argmin(paid, axis=1)
        rows = np.arange(len(cost))
        value = float(paid[rows, chosen].sum())
        if value > least:
            best, least = weights, value
        if n_pools == 1 or value <= 0:
            break
        load = np.bincount(pool[chosen], cost[rows, chosen], minlength=n_pools) / lanes
        # Multiplicative steps keep the prices positive and summing to 1.
        weights = weights * np.exp((load / max(load.max(), 1e-300) - 0.5) / (1 + 0.15 * step))
        weights = weights / weights.sum()
    return best / lanes


def _best_window(due: FloatArray, heads: FloatArray, tails: FloatArray, prices: tuple[float, ...]) -> tuple[Window, float]:
    """The head and tail, among quantiles of each, that prove the most."""
    best, most = Window(prices, 0.0, 0.0), float(due.sum())
    for head in np.unique(np.quantile(heads, np.linspace(0, 1, _WINDOWS))):
        after = heads >= head
        some, theirs = tails[after], due[after]
        by_tail = np.argsort(-some, kind="stable")
        # The k tasks with the longest tails: at least some[by_tail[k]] follows each.
        proved = head + some[by_tail] + np.cumsum(theirs[by_tail])
        k = int(np.argmax(proved))
        if proved[k] > most:
            best, most = Window(prices, float(head), float(some[by_tail[k]])), float(proved[k])
    return best, most


def _check_window(problem: Problem, window: Window) -> float:
    prices = window.prices
    if len(prices) != len(problem.pools) or min(prices, default=0.0) < 0:
        raise PlanError(f"the witness has prices {prices}; wanted {len(problem.pools)} of at least 0")
    total = sum(price * pool.lanes for price, pool in zip(prices, problem.pools, strict=True))
    if total > 1 + 1e-9:
        raise PlanError(f"the prices of all lanes sum to {total:.9g}, which is above 1")
    n = len(problem)
    fastest = [min(row) for row in problem.durations.tolist()]
    preds = [problem.pred_task[problem.pred_start[t] : problem.pred_start[t + 1]].tolist() for t in range(n)]
    heads, tails = [0.0] * n, [0.0] * n
    for t in problem.order.tolist():
        for p in preds[t]:
            heads[t] = max(heads[t], heads[p] + fastest[p])
    for t in reversed(problem.order.tolist()):
        for p in preds[t]:
            tails[p] = max(tails[p], tails[t] + fastest[t])
    paid = 0.0
    for t in range(n):
        if heads[t] >= window.head * (1 - 1e-12) and tails[t] >= window.tail * (1 - 1e-12):
            paid += _least_paid(problem, t, prices)
    return (window.head + window.tail) * (1 - 1e-12) + paid / max(total, 1.0)


def _least_paid(problem: Problem, task: int, prices: tuple[float, ...]) -> float:
    if task in problem.loops:
        held = {(lane.owner, lane.kind, lane.number) for lane in problem.loop_lanes[task]}
        per_second = sum(
            price
            for price, pool in zip(prices, problem.pools, strict=True)
            for number in range(pool.lanes)
            if (problem.device_ids[pool.device], pool.kind, number) in held
        )
        return float(problem.durations[task].min()) * per_second
    return min(
        float(problem.durations[task, c]) * choice.width * prices[choice.pool]
        for c, choice in enumerate(problem.choices)
        if choice.pool >= 0 and problem.durations[task, c] < np.inf
    )
