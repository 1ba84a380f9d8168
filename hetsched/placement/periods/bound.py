"""Lower bounds on the period of a loop, each with a witness that proves it.

The period of any plan whose turns all place their tasks alike is at least: what a dependence cycle takes when each of its tasks runs where it is
fastest, over its distance; and the load of the busiest device in the best division of the tasks, which linear programming duality bounds from below
(a price for each device; every task pays at least its cheapest price). The load bound holds for plans of any unroll, the others too.
"""

from __future__ import annotations

import numpy as np

from hetsched.placement.periods.modulo import cycle_ratio, ratio_of, topological
from hetsched.placement.periods.problem import NANOSECONDS, Core, LoopProblem, PeriodBound


def period_bound(problem: LoopProblem, core: Core | None = None, steps: int = 150) -> PeriodBound:
    """The best lower bound found. `steps`: of the ascent for the prices of the load bound."""
    core = core if core is not None else Core(problem)
    if not core.n:
        return PeriodBound(0.0, "task")
    bounds = [_cycle_bound(core), _load_bound(core, steps)]
    return max(bounds, key=lambda b: b.seconds)


def _cycle_bound(core: Core) -> PeriodBound:
    """The worst dependence cycle with every task at its fastest and no copies."""
    seconds = [min(x for x in row if x is not None) for row in core.durations]
    out: list[list[tuple[int, int]]] = [[] for _ in range(core.n)]
    for u, v, k in core.task_arcs:
        out[u].append((v, k))
    _, _, cycle = cycle_ratio(seconds, out, topological(core.n, out), 0, core.circles)
    if not cycle:
        return PeriodBound(0.0, "cycle")
    work, distance = ratio_of(cycle, seconds, out)
    return PeriodBound(work / distance / NANOSECONDS, "task" if len(cycle) == 1 else "cycle", tuple(cycle), distance)


def _shares(core: Core) -> np.ndarray:
    rows = np.array([[np.inf if x is None else x for x in row] for row in core.durations], dtype=np.float64)
    return rows / np.array(core.capacity[: core.devices], dtype=np.float64)


def _load_bound(core: Core, steps: int) -> PeriodBound:
    """Ascent on the prices: the gradient is the load that each device gets when every task goes where it pays least."""
    shares = _shares(core)
    finite = np.where(np.isfinite(shares), shares, 0.0)
    n = len(shares)
    prices = np.full(core.devices, 1.0 / core.devices)
    best, best_prices = 0.0, prices
    rows = np.arange(n)
    for step in range(steps):
        # A device of price 0 would take what it cannot run: infinity stays infinity.
        costs = np.where(np.isfinite(shares), finite * prices, np.inf)
        pick = costs.argmin(axis=1)
        value = float(costs[rows, pick].sum())
        if value > best:
            best, best_prices = value, prices
        load = np.bincount(pick, weights=finite[rows, pick], minlength=core.devices)
        top = load.max()
        if top <= 0:
            break
        prices = prices * np.exp((load / top - 1.0) * 0.5 / (1 + step / 10))
        prices = prices / prices.sum()
    return PeriodBound(best / NANOSECONDS, "load", prices=tuple(float(p) for p in best_prices))


def check_period_bound(problem: LoopProblem, bound: PeriodBound, tolerance: float = 1e-9) -> bool:
    """True if the witness of `bound` proves its seconds (to `tolerance`, relative) from the problem alone."""
    core = Core(problem)
    if bound.seconds <= 0:
        return True
    if bound.kind == "load":
        prices = np.array(bound.prices)
        if len(prices) != core.devices or (prices < 0).any() or abs(prices.sum() - 1) > 1e-6:
            return False
        shares = _shares(core)
        costs = np.where(np.isfinite(shares), np.where(np.isfinite(shares), shares, 0.0) * prices, np.inf)
        return bool(costs.min(axis=1).sum() / NANOSECONDS >= bound.seconds * (1 - tolerance))
    seconds = [min(x for x in row if x is not None) for row in core.durations]
    cycle = bound.cycle
    distance = 0
    for i, u in enumerate(cycle):
        steps = [k for a, v, k in core.task_arcs if a == u and v == cycle[(i + 1) % len(cycle)]]
        if not steps:
            return False
        distance += min(steps)
    return distance > 0 and sum(seconds[u] for u in cycle) / distance / NANOSECONDS >= bound.seconds * (1 - tolerance)


__all__ = ["check_period_bound", "period_bound"]
