"""The period of a loop: one turn of its body, repeated as a software pipeline.

What a stream of batches costs is the period, not the length of a turn. The planner
1. anneals the assignment of tasks to devices under B = max(load of each device and link, ratio of each dependence cycle);
2. orders the ops by iterative modulo scheduling at periods from B upwards;
3. tightens: the order of the lanes gives an event graph, whose maximum cycle ratio is the real period;
4. walks from there: moves tasks of the critical cycle, perturbs priorities, plans again below the current period;
5. slides ops within their slack, so that values live short.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hetsched.placement.periodic_assign import Cycles, anneal, least_period
from hetsched.placement.periodic_bound import period_bound
from hetsched.placement.periodic_modulo import components, heights, modulo_starts, tighten, topological
from hetsched.placement.periodic_order import Order, settled
from hetsched.placement.periodic_problem import NANOSECONDS, Core, LoopProblem, Ops, PeriodBound, PeriodPlan, read_body, whole
from hetsched.placement.periodic_slide import slid
from hetsched.placement.periodic_walk import Walk

# Periods tried for an assignment by modulo scheduling, over its B. Beyond them the walk starts from the order of the data.
_STEPS = (1.0, 1.003, 1.01, 1.03, 1.08, 1.2, 1.5)
# A modulo schedule takes as long as this many orders solved on the walk.
_MODULO = 10
# Shares of the evaluations: first walks from every start, then from the best.
_FIRST, _STARTS = 0.5, 4


class Best:
    """The best plan so far: period and starts of its ops, with the order that gave them."""

    def __init__(self) -> None:
        self.period = 0
        self.ops: Ops | None = None
        self.start: list[int] = []

    def offer(self, period: int, ops: Ops, start: list[int]) -> bool:
        """Keep a plan if it is better; True if it was."""
        if self.ops is None or period < self.period:
            self.period, self.ops, self.start = period, ops, start
            return True
        return False


def plan_period(problem: LoopProblem, *, seconds: float | None = None, seed: int = 0, evaluations: int | None = None) -> PeriodPlan:
    """A plan of one turn with a short period.

    evaluations: schedules tried at most (None: enough for the size of the body); the plan is the same for the same seed and evaluations.
    seconds: stop the search when this much time is gone (then the plan depends on the machine's speed).
    Raises `PlacementError` where a task has no device.
    """
    core = Core(problem)
    if not core.n:
        return PeriodPlan(0.0, (), (), PeriodBound(0.0, "task"))
    search = Search(core, seed, evaluations, seconds)
    search.run()
    return search.result()


class Search:
    """One search; `spent` counts orders solved (a modulo schedule counts for several). `best` holds the plan in whole nanoseconds."""

    def __init__(self, core: Core, seed: int, evaluations: int | None, seconds: float | None) -> None:
        self.core, self.rng = core, random.Random(seed)
        self.cycles = Cycles(core)
        self.bound = period_bound(core.problem, core)
        self.enough = max(1, whole(self.bound.seconds * (1 - 1e-12)))
        self.limit = evaluations if evaluations is not None else 500 + 100 * core.n
        self.deadline = None if seconds is None else time.perf_counter() + seconds
        self.spent = 0
        self.best = Best()

    def late(self) -> bool:
        """True when the time is over."""
        return self.deadline is not None and time.perf_counter() > self.deadline

    def run(self, seeds: Sequence[Sequence[int]] = ()) -> None:
        """Search; `seeds` are assignments to start from besides that of fastest devices."""
        self._search(seeds)
        best = self.best
        assert best.ops is not None
        best.start = slid(best.ops, best.start, best.period)

    def _search(self, seeds: Sequence[Sequence[int]]) -> None:
        pool = self.assignments([fastest(self.core), *seeds])
        floor = pool[0][0]
        walks = []
        for least, assignment in pool[:_STARTS]:
            walks.append(self.start(Ops(self.core, assignment), least, floor))
            if self.best.period <= floor or self.spent >= self.limit or self.late():
                return
        left = self.limit - self.spent
        for walk in walks:
            self.walk(walk, int(_FIRST * left / len(walks)))
        walks.sort(key=lambda w: w.best.period)
        for walk in walks[:2]:
            self.walk(self.again(walk, floor), int((1 - _FIRST) * left / 2))

    def assignments(self, seeds: Sequence[Sequence[int]]) -> list[tuple[int, list[int]]]:
        """(B, assignment), the best of each annealing first (by B), then the others by B."""
        n = self.core.n
        rounds, steps = (4, 700) if n < 30 else (3, 600)
        first: list[tuple[int, list[int]]] = []
        others: list[tuple[int, list[int]]] = []
        share = self.limit / (500 + 100 * n)
        for _ in range(rounds):
            # The same B (nearly) from two annealings: another will hardly find less.
            low = sorted(b for b, _ in first)
            if low and (self.late() or low[0] <= self.enough or (len(low) > 1 and low[1] <= low[0] * 1.0005)):
                break
            found = anneal(self.core, self.cycles, seeds, int(min(1.0, share) * steps * n), 4, self.rng, self.enough)
            first.append(found[0])
            others += found[1:]
        out: dict[tuple[int, ...], int] = {}
        for least, assignment in (*sorted(first), *sorted(others)):
            out.setdefault(tuple(assignment), least)
        return [(least, list(assignment)) for assignment, least in out.items()]

    def start(self, ops: Ops, least: int, enough: int) -> Walk:
        """A walk from the best modulo schedule of an assignment, or from the order of its data."""
        found = self.order(ops, least)
        if found is None:
            period, order = 2 * least, None
            while order is None or not order.solve(least, 100 * period):
                order = settled(ops, one_by_one(ops)[1], period)
                period *= 2
            self.spent += 1
            self.best.offer(order.period, ops, order.start)
        else:
            order = Order(ops, found[1], found[0])
            order.solve(least, found[0])
        return Walk(self.core, self.cycles, order, least, enough, self.rng)

    def again(self, walk: Walk, enough: int) -> Walk:
        """A new walk from the best order of an old one."""
        least = least_period(self.core, self.cycles, walk.best.ops.assignment)
        return Walk(self.core, self.cycles, walk.best.copy(), least, enough, self.rng)

    def walk(self, walk: Walk, steps: int) -> None:
        """Walk on and keep the best."""
        before = walk.spent
        walk.run(steps, self.late)
        self.spent += walk.spent - before
        self.best.offer(walk.best.period, walk.best.ops, walk.best.start)

    def order(self, ops: Ops, least: int) -> tuple[int, list[int]] | None:
        """(period, starts) of a modulo schedule of one assignment at the least of a few periods over B, or None. Also offered to `best`."""
        order = topological(ops.count, ops.out)
        mark = components(ops.count, ops.out)
        load = [0] * self.core.resources
        for u, r in enumerate(ops.resource):
            if r >= 0:
                load[r] += ops.seconds[u]
        for factor in _STEPS:
            period = int(least * factor)
            height = heights(ops, period, order)
            if height is None:
                continue
            tall = max(height) + 1
            full = [x > 0.8 * period * self.core.capacity[r] for r, x in enumerate(load)]
            first = [h + tall * (mark[u] >= 0) for u, h in enumerate(height)]
            none = [False] * len(full)
            for priority, abut in ((height, none), (height, full), (first, full)):
                if self.late():
                    return None
                self.spent += _MODULO
                start = modulo_starts(ops, period, priority, abut, 40 + 4 * ops.count)
                if start is not None:
                    period, start = tighten(ops, start, period, least)
                    self.best.offer(period, ops, start)
                    return period, start
        return None

    def result(self) -> PeriodPlan:
        """The best plan in seconds, the first start at 0."""
        best, core = self.best, self.core
        ops = best.ops
        assert ops is not None
        start = best.start
        low = min(start)
        ns = 1.0 / NANOSECONDS
        return PeriodPlan(
            period=best.period * ns,
            tasks=tuple((ops.assignment[t], (start[t] - low) * ns) for t in range(core.n)),
            copies=tuple((w, link, (start[core.n + i] - low) * ns) for i, (w, link) in enumerate(ops.copies)),
            bound=self.bound,
            evaluations=self.spent,
        )


def fastest(core: Core) -> list[int]:
    """Each task on the device where it takes least (the first of several)."""
    return [min(row, key=lambda d, t=t: (core.durations[t][d], d)) for t, row in enumerate(core.allowed)]  # type: ignore[misc]


def one_by_one(ops: Ops) -> tuple[int, list[int]]:
    """(period, starts) of a plan that runs one op after another and no two turns at once: always possible, and least in memory."""
    start, at = [0] * ops.count, 0
    for u in topological(ops.count, ops.out):
        start[u] = at
        at += ops.seconds[u]
    return max(1, at), start


def plan_body_file(path: str | Path, *, seconds: float | None = None, seed: int = 0) -> dict[str, Any]:
    """Plan a `period-bench/1` file: {"file", "name", "period", "lower_bound", "seconds" (of planning), "plan"}. `FileError` for anything else."""
    problem = read_body(path)
    begin = time.perf_counter()
    plan = plan_period(problem, seconds=seconds, seed=seed)
    spent = time.perf_counter() - begin
    return {
        "file": str(path),
        "name": problem.name,
        "period": plan.period,
        "lower_bound": plan.lower_bound,
        "seconds": spent,
        "plan": plan.document(),
    }
