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

from hetsched.placement.periodic_assign import Cycles, anneal
from hetsched.placement.periodic_bound import period_bound
from hetsched.placement.periodic_modulo import components, heights, modulo_starts, tighten, topological
from hetsched.placement.periodic_problem import NANOSECONDS, Core, LoopProblem, Ops, PeriodBound, PeriodPlan, read_body, whole

# Periods tried for an assignment, over its B.
_STEPS = (1.0, 1.003, 1.01, 1.03, 1.08, 1.2, 1.5, 2.0, 3.0, 5.0)


class Best:
    """The best plan so far: period and starts of its ops, with the order that gave them."""

    def __init__(self) -> None:
        self.period = 0
        self.ops: Ops | None = None
        self.start: list[int] = []
        self.cycle: list[int] = []

    def offer(self, period: int, ops: Ops, start: list[int], cycle: list[int]) -> bool:
        """Keep a plan if it is better; True if it was."""
        if self.ops is None or period < self.period:
            self.period, self.ops, self.start, self.cycle = period, ops, start, cycle
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
    """One search; `spent` counts the schedules tried. `best` holds the plan in whole nanoseconds."""

    def __init__(self, core: Core, seed: int, evaluations: int | None, seconds: float | None) -> None:
        self.core, self.rng = core, random.Random(seed)
        self.cycles = Cycles(core)
        self.bound = period_bound(core.problem, core)
        self.enough = max(1, whole(self.bound.seconds * (1 - 1e-12)))
        self.limit = evaluations if evaluations is not None else 150
        self.deadline = None if seconds is None else time.perf_counter() + seconds
        self.spent = 0
        self.best = Best()

    @property
    def over(self) -> bool:
        """True when the search must end."""
        if self.best.ops is not None and self.best.period <= self.enough:
            return True
        return self.spent >= self.limit or (self.deadline is not None and time.perf_counter() > self.deadline)

    def run(self, seeds: Sequence[Sequence[int]] = ()) -> None:
        """Search; `seeds` are assignments to start from besides that of fastest devices."""
        core = self.core
        pool = anneal(core, self.cycles, [fastest(core), *seeds], 150 * core.n, 6, self.rng, self.enough)
        for b, assignment in pool:
            if self.best.ops is not None and (self.over or b >= self.best.period):
                break
            self.order(Ops(core, assignment), b)

    def order(self, ops: Ops, least: int) -> None:
        """Schedules of one assignment at rising periods, until one is found or none would beat the best."""
        out = ops.out
        order = topological(ops.count, out)
        mark = components(ops.count, out)
        for factor in _STEPS:
            period = int(least * factor)
            if self.best.ops is not None and period >= self.best.period:
                return
            height = heights(ops, period, order)
            if height is None:
                continue
            tall = max(height) + 1
            load = [0] * self.core.resources
            for u, r in enumerate(ops.resource):
                if r >= 0:
                    load[r] += ops.seconds[u]
            full = [x > 0.8 * period * self.core.capacity[r] for r, x in enumerate(load)]
            first = [h + tall * (mark[u] >= 0) for u, h in enumerate(height)]
            none = [False] * len(full)
            for priority, abut in ((height, none), (height, full), (first, full)):
                if self.best.ops is not None and self.over:
                    return
                self.spent += 1
                start = modulo_starts(ops, period, priority, abut, 40 + 6 * ops.count)
                if start is not None:
                    found, start, cycle, _ = tighten(ops, start, period, least)
                    self.best.offer(found, ops, start, cycle)
                    return
        if self.best.ops is None:
            period, start = one_by_one(ops)
            self.best.offer(period, ops, start, [])

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
