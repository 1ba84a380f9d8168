"""The period of a loop: one turn of its body, repeated as a software pipeline.

What a stream of batches costs is the period, not the length of a turn. The planner
1. anneals the assignment of tasks to devices under B = max(load of each device and link, ratio of each dependence cycle);
2. orders the ops by iterative modulo scheduling at periods from B upwards;
3. tightens: the order of the lanes gives an event graph, whose maximum cycle ratio is the real period;
4. walks from there: moves tasks of the critical cycle, perturbs priorities, plans again below the current period;
5. slides ops within their slack, so that values live short.

Bodies of more than a hundred tasks begin with assignments that annealing would not find in time as well: a few turns one after another, each task
where it ends first (`eager`), and all tasks in one memory.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hetsched.errors import OutOfMemoryError
from hetsched.placement.periods.assign import Cycles, anneal, least_period
from hetsched.placement.periods.bound import period_bound
from hetsched.placement.periods.eager import eager
from hetsched.placement.periods.modulo import components, heights, modulo_starts, tighten, topological
from hetsched.placement.periods.native import BUILD_FROM, for_body
from hetsched.placement.periods.order import Order
from hetsched.placement.periods.problem import NANOSECONDS, Core, LoopProblem, Ops, PeriodBound, PeriodPlan, read_body, whole
from hetsched.placement.periods.slide import slid
from hetsched.placement.periods.walk import Walk

# Bodies of more tasks than that begin with a few turns one after another as well (`eager`), so many of their assignments; a list schedule is near
# enough where it comes so near to the least B (modulo schedules of hundreds take seconds each).
_MANY, _EAGER, _WELL = 100, 3, 1.25
# Ops in all the orders that are solved for such a body, at most: about a microsecond each.
_WORK = 500_000
# Periods tried for an assignment by modulo scheduling, over its B. Beyond them the walk starts from the order of the data.
_STEPS = (1.0, 1.003, 1.01, 1.03, 1.08, 1.2, 1.5, 2.0)
# A modulo schedule takes as long as this many orders solved on the walk.
_MODULO = 10
# Longer periods tried where limits of memory or of turns in flight are broken.
_LONGER = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0)
# Heat of a walk where loads, not cycles, make the period.
_COOL = 0.4
# Starts of walks; and how many where cycles dominate and the best of these is this much over the least load.
_STARTS, _NEAR, _MANY_STARTS = 4, 1.04, 8
# Steps a task of the annealing for a further start.
_SHORT = 100
# (annealings at most, steps a task of each, how many that agree are enough) of small bodies, of those where cycles dominate, and of others.
_ROUNDS = (5, 200, 3), (3, 250, 2), (3, 250, 2)


def _usual(n: int) -> int:
    """Evaluations for a body of `n` tasks."""
    return 2200 + 65 * n


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
    Raises `PlacementError` where a task has no device, `OutOfMemoryError` where the limits cannot be kept.
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
        self.limit = evaluations if evaluations is not None else _usual(core.n)
        self.share = min(1.0, self.limit / _usual(core.n))  # of the usual steps of annealing
        if core.n > _MANY:
            self.limit = min(self.limit, _WORK // core.n)
        core.circles = for_body(core.n * self.limit)
        self.cycles = Cycles(core)
        self.bound = period_bound(core.problem, core)
        self.enough = max(1, whole(self.bound.seconds * (1 - 1e-12)))
        self.deadline = None if seconds is None else time.perf_counter() + seconds
        self.spent = 0
        self.best = Best()

    def late(self) -> bool:
        """True when the time is over."""
        return self.deadline is not None and time.perf_counter() > self.deadline

    def run(self, seeds: Sequence[Sequence[int]] = ()) -> None:
        """Search; `seeds` are assignments to start from besides that of fastest devices."""
        if not self.core.n:
            self.best.offer(1, Ops(self.core, ()), [])
            return
        self._search(seeds)
        self.settle()

    def settle(self) -> None:
        """Let the values of the best plan live short, and keep the limits."""
        best = self.best
        assert best.ops is not None
        best.start = slid(best.ops, best.start, best.period)
        if excess(best.ops, best.start, best.period):
            self._within_limits(best.ops)

    def _within_limits(self, ops: Ops) -> None:
        """A longer period for the best assignment that keeps memory limits and turns in flight; the last resort is one op after another."""
        best = self.best
        for factor in _LONGER:
            period = int(best.period * factor)
            height = heights(ops, period, topological(ops.count, ops.out))
            start = modulo_starts(ops, period, height, [False] * self.core.resources, 40 + 4 * ops.count) if height is not None else None
            self.spent += _MODULO
            if start is not None:
                start = slid(ops, start, period)
                if not excess(ops, start, period):
                    best.period, best.start = period, start
                    return
        period, start = one_by_one(ops)
        problem = excess(ops, start, period)
        if problem:
            raise OutOfMemoryError(f"{self.core.problem.name}: {problem}, even with one op after another")
        best.period, best.start = period, start

    def _search(self, seeds: Sequence[Sequence[int]]) -> None:
        """Walks from several starts; the better half of them goes on, twice as far and half as hot, until one is left."""
        is_large = self.core.n > _MANY
        pool = self.assignments([fastest(self.core), *seeds])
        if is_large:
            pool = [*self._eager(), *pool]
        floor = min(least for least, _ in pool[: _EAGER + 1])
        walks: list[Walk] = []
        while len(walks) < (_MANY_STARTS if self.cycles.dominate and self.best.period >= _NEAR * floor and not is_large else _STARTS):
            if len(walks) >= min(len(pool), _STARTS):
                # Where orders, not loads, make the period long, assignments that are far apart help more than good ones.
                pool += anneal(self.core, self.cycles, seeds or [fastest(self.core)], _SHORT * self.core.n, 1, self.rng, self.enough)
            least, assignment = pool[len(walks)]
            walks.append(self.start(Ops(self.core, assignment), least, floor, hard=len(walks) < _STARTS))
            if self.best.period <= floor or self.spent >= self.limit or self.late():
                return
        left, rounds = self.limit - self.spent, len(walks).bit_length()
        heat = 1.0 if self.cycles.dominate else _COOL
        while walks and self.best.period > floor:
            for walk in walks:
                self.walk(walk, int(left / rounds / len(walks)), heat)
            walks = sorted(walks, key=lambda w: w.best.period)[: len(walks) // 2]
            heat /= 2

    def _eager(self) -> list[tuple[int, list[int]]]:
        """(B, assignment) of those whose list schedules are best: a few turns one after another, all in one memory."""
        core, found = self.core, []
        # Of memory nodes with like devices one will do.
        rows = [within(core, node) for node in range(core.problem.nodes)]
        alone = {tuple(row[d] for row, d in zip(core.durations, assignment, strict=True)): assignment for assignment in rows}
        for assignment in dict.fromkeys(map(tuple, (*eager(core), *alone.values()))):
            least = least_period(core, self.cycles, assignment)
            found.append((self.listed(Ops(core, assignment), least)[0], least, assignment))
        return [(least, list(assignment)) for _, least, assignment in sorted(found)[:_EAGER]]

    def assignments(self, seeds: Sequence[Sequence[int]]) -> list[tuple[int, list[int]]]:
        """(B, assignment), the best of each annealing first (by B), then the others by B."""
        n = self.core.n
        rounds, steps, alike = _ROUNDS[0] if n < 30 else _ROUNDS[1] if self.cycles.dominate else _ROUNDS[2]
        first: list[tuple[int, list[int]]] = []
        others: list[tuple[int, list[int]]] = []
        for _ in range(rounds):
            # The same B (nearly) from several annealings: another will hardly find less.
            low = sorted(b for b, _ in first)
            if low and (self.late() or low[0] <= self.enough or (len(low) >= alike and low[alike - 1] <= low[0] * 1.0005)):
                break
            found = anneal(self.core, self.cycles, seeds, int(self.share * steps * n), 4, self.rng, self.enough)
            first.append(found[0])
            others += found[1:]
        out: dict[tuple[int, ...], int] = {}
        for least, assignment in (*sorted(first), *sorted(others)):
            out.setdefault(tuple(assignment), least)
        return [(least, list(assignment)) for assignment, least in out.items()]

    def start(self, ops: Ops, least: int, enough: int, *, hard: bool = True) -> Walk:
        """A walk from the best modulo schedule of an assignment (`hard`), or from a list schedule of one turn, its ends overlapping."""
        found = None
        if self.core.n > _MANY:
            found = self.listed(ops, least)
            self.best.offer(found[0], ops, found[1])
            if self.best.period > _WELL * least:
                found = None
        if found is None:
            found = self.order(ops, least) if hard else None
        if found is None:
            period, start = self.listed(ops, least)
            self.best.offer(period, ops, start)
        else:
            period, start = found
        order = Order(ops, start, period)
        order.solve(least, period)
        return Walk(self.core, self.cycles, order, least, enough, self.rng)

    def listed(self, ops: Ops, least: int) -> tuple[int, list[int]]:
        """(period, starts) of a list schedule: modulo scheduling with room for everything."""
        order = topological(ops.count, ops.out)
        height, period = None, least
        while height is None:
            height = heights(ops, period, order)
            period *= 2
        self.spent += _MODULO
        period, start = one_by_one(ops)
        found = modulo_starts(ops, period, height, [False] * self.core.resources, 4 * ops.count)
        return tighten(ops, found or start, period, least)

    def walk(self, walk: Walk, steps: int, heat: float) -> None:
        """Walk on and keep the best."""
        before = walk.spent
        walk.run(steps, heat, self.late)
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
        low = min(start, default=0)
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


def within(core: Core, node: int) -> list[int]:
    """Each task where it is fastest among the places of a memory node, elsewhere only where it cannot run there."""
    out = fastest(core)
    for t, row in enumerate(core.allowed):
        here = [d for d in row if core.memory[d] == node]
        if here:
            out[t] = min(here, key=lambda d, t=t: (core.durations[t][d], d))  # type: ignore[misc]
    return out


def excess(ops: Ops, start: Sequence[int], period: int) -> str:
    """What of the problem's limits (turns in flight, bytes of rings) a plan breaks, in words; empty where it keeps them."""
    problem = ops.core.problem
    if problem.max_in_flight:
        turns = -(-(max(s + w for s, w in zip(start, ops.seconds, strict=True)) - min(start)) // period)
        if turns > problem.max_in_flight:
            return f"{turns} turns in flight, allowed are {problem.max_in_flight}"
    if any(limit is not None for limit in problem.limits):
        taken = [0] * problem.nodes
        for maker, w, node, uses in ops.replicas:
            end = max([start[maker] + ops.seconds[maker], *(start[v] + ops.seconds[v] + k * period for v, k in uses)])
            taken[node] += problem.nbytes[w] * max(1, -(-(end - start[maker]) // period))
        for node, (nbytes, limit) in enumerate(zip(taken, problem.limits, strict=True)):
            if limit is not None and nbytes > limit:
                return f"the rings of memory node {node} take {nbytes} bytes of {limit}"
    return ""


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
    for_body(BUILD_FROM)
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
