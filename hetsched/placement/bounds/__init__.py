"""Lower bounds on the makespan, each with a witness that `check_bound` verifies by other means than those that found it.

Kinds:
"path": no task can finish before its predecessors have, at their best, and what it reads has come over the fastest links. Witness: for each
task and memory node the earliest conceivable finish (potentials); the last of them is the bound.
"work": lanes can do only so much at once. With prices y >= 0 of the pools of lanes, sum y[pool] * lanes[pool] = 1, every plan of length T pays
at most T, and every task pays at least min over its choices of y * lanes taken * seconds (weak duality of the fractional assignment
problem). Witness: the prices.
"window": the same for the tasks that cannot start before `head` and must be followed by at least `tail` seconds of other work: T >= head +
tail + what these tasks pay. Witness: the prices, head, tail.
"deadline": no plan keeps a deadline just above the bound, by what follows from it (see `bounds.deadline`). Witness: a `Refutation`.
"cp-sat": what the solver OR-Tools CP-SAT says it has proved. It gives nothing to verify by hand: `check_bound` solves again, given the deadline
(needs the extra `exact`). Witness: the `CpSatWitness` of the policy `exact`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hetsched.errors import PlanError
from hetsched.placement.bounds.check import proved_by_refutation
from hetsched.placement.bounds.deadline import Refutation, best_refutation
from hetsched.placement.bounds.paths import check_potentials, earliest_finishes, ends
from hetsched.placement.problem import FloatArray, Problem
from hetsched.placement.ranks import fastest_paths
from hetsched.timeline import Bound

# Steps of the search for prices; each costs one pass over durations. Big problems get fewer, so that a bound takes less time than a plan.
_PRICE_STEPS, _PRICE_BUDGET = 200, 4_000_000
_WINDOWS = 24
# The part of the time for planning that goes to the bound.
SHARE = 0.1
# A bound is a sum of many floats; it is lowered by this share so that rounding cannot lift it above a real plan.
_ROUNDING = 1e-9


class Window(NamedTuple):
    """Witness of "work" (head and tail 0) and "window": prices of the pools, and which tasks count."""

    prices: tuple[float, ...]
    head: float
    tail: float


def lower_bound(problem: Problem, seconds: float = 0.0, above: float = np.inf, *, clock: Callable[[], float] = time.perf_counter) -> Bound:
    """The best bound that is found; 0 seconds for no tasks.

    seconds: time to search for a better one than those that take next to none: deadlines are refuted until then by `clock`. above: the makespan of a
    plan, if there is one; no bound is above it. What the policy `exact` proved is taken where nothing else is better.
    """
    if not len(problem):
        return Bound(0.0, "path", np.zeros((0, len(problem.node_names))))
    until = clock() + seconds
    finish, path, window, worked = _quick(problem)
    low = max(path, worked)
    proved: Bound | None = problem.memo.get("proved")
    if proved is not None and proved.seconds > low and proved.seconds >= above * (1 - 1e-3):
        return proved
    if seconds > 0 and 0 < low < above:
        refutation = best_refutation(problem, low, above, until, clock)
        if refutation is not None and (proved is None or refutation.deadline > proved.seconds):
            return Bound(refutation.deadline * (1 - _ROUNDING), "deadline", refutation)
    if proved is not None and proved.seconds > low:
        return proved
    if path >= worked:
        return Bound(path * (1 - _ROUNDING), "path", finish)
    kind = "work" if window.head == 0 and window.tail == 0 else "window"
    return Bound(worked * (1 - _ROUNDING), kind, window)


def _quick(problem: Problem) -> tuple[FloatArray, float, Window, float]:
    """What next to no time proves: (earliest finishes, their bound, window, its bound). Worked out once for a problem."""
    if "quick_bounds" not in problem.memo:
        finish = earliest_finishes(problem)
        prices = _prices(problem)
        heads, tails = fastest_heads(problem), fastest_tails(problem)
        window, worked = _best_window(_dues(problem, prices), heads, tails, tuple(prices.tolist()))
        problem.memo["quick_bounds"] = finish, float(ends(problem, finish).max()), window, worked
    found: tuple[FloatArray, float, Window, float] = problem.memo["quick_bounds"]
    return found


def check_bound(problem: Problem, bound: Bound) -> None:
    """Verify that the witness of `bound` proves it, task by task, from the problem alone. Raises `PlanError` if it does not."""
    if bound.kind == "path":
        proved = check_potentials(problem, bound)
    elif bound.kind in ("work", "window") and isinstance(bound.witness, Window):
        proved = _check_window(problem, bound.witness)
    elif bound.kind == "deadline" and isinstance(bound.witness, Refutation):
        proved = proved_by_refutation(problem, bound.witness)
    elif bound.kind == "cp-sat":
        from hetsched.placement.cpsat import check_solved

        proved = check_solved(problem, bound)
    else:
        raise PlanError(f"a bound of kind {bound.kind!r} with the witness {bound.witness!r} cannot be verified")
    if bound.seconds > proved:
        raise PlanError(f"the bound of {bound.seconds:.9g} s is not proved: its witness gives {proved:.9g} s")


# Work ---------------------------------------------------------------------------------------------------------------------------


def fastest_heads(problem: Problem) -> FloatArray:
    """float64[n]: seconds of the longest chain of predecessors, each at its fastest, nothing for copies."""
    return fastest_paths(problem)[0]


def fastest_tails(problem: Problem) -> FloatArray:
    """float64[n]: the same for what must follow each task."""
    return fastest_paths(problem)[1]


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
    cost, many = _distinct(cost[plain])
    weights = np.full(n_pools, 1.0 / n_pools)  # price * lanes, summing to 1
    best, least = weights, -1.0
    for step in range(max(8, min(_PRICE_STEPS, _PRICE_BUDGET // max(cost.size, 1)))):
        prices = weights / lanes
        paid = cost * prices[pool]
        chosen = np.argmin(paid, axis=1)
        rows = np.arange(len(cost))
        value = float((paid[rows, chosen] * many).sum())
        if value > least:
            best, least = weights, value
        if n_pools == 1 or value <= 0:
            break
        load = np.bincount(pool[chosen], cost[rows, chosen] * many, minlength=n_pools) / lanes
        # Multiplicative steps keep the prices positive and summing to 1.
        weights = weights * np.exp((load / max(load.max(), 1e-300) - 0.5) / (1 + 0.15 * step))
        weights = weights / weights.sum()
    return best / lanes


def _distinct(rows: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The rows that differ, and how many there are of each: large graphs have few kinds of tasks."""
    mark = np.where(np.isfinite(rows), rows, -1.0) @ np.random.default_rng(0).random(rows.shape[1])
    _, first, like, count = np.unique(mark, return_index=True, return_inverse=True, return_counts=True)
    like = like.reshape(-1)
    if 2 * len(first) > len(rows) or not np.array_equal(rows[first][like], rows):
        return rows, np.ones(len(rows))
    return rows[first], count.astype(np.float64)


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
