"""The order of a periodic plan as an event graph, and small changes of it.

Each op has one arc to the op that takes over its lane: (u, v, k), v of turn i + k waits for u of turn i. On a resource with L lanes these arcs
are a bijection whose distances sum to L; any such bijection is a way to share the lanes. With the data they make an event graph, whose maximum
cycle ratio is the period, so that only a change on the critical cycle can make the period shorter: as in job-shop scheduling (E. Nowicki,
C. Smutnicki, A fast taboo search algorithm for the job shop problem, 1996), here around a period.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from hetsched.placement.periods.modulo import lane_arcs, parent_cycle, relax
from hetsched.placement.periods.native import Circles
from hetsched.placement.periods.problem import Ops


class Order:
    """Who takes over each op's lane (`next`, `step`: the distance; -1: the op holds no lane), and what follows: period, starts, critical cycle."""

    __slots__ = ("before", "cycle", "next", "ops", "period", "start", "step")

    def __init__(self, ops: Ops, start: Sequence[int], period: int) -> None:
        self.ops = ops
        self.next = [-1] * ops.count
        self.before = [-1] * ops.count
        self.step = [0] * ops.count
        for u, v, k in lane_arcs(ops, start, period):
            self.next[u], self.step[u], self.before[v] = v, k, u
        self.start = list(start)
        self.period = period
        self.cycle: list[int] = []

    def copy(self) -> Order:
        """The same order, to be changed by itself."""
        other = Order.__new__(Order)
        other.ops, other.period, other.cycle, other.start = self.ops, self.period, self.cycle, self.start
        other.next, other.before, other.step = list(self.next), list(self.before), list(self.step)
        return other

    def critical(self) -> list[int]:
        """Ops on the critical cycle that are followed there by who takes over their lane."""
        cycle, nxt = self.cycle, self.next
        return [u for i, u in enumerate(cycle) if nxt[u] == cycle[i + 1 - len(cycle)]]

    def exchange(self, u: int) -> bool:
        """Put `u` behind its next v: p -k1-> u -k2-> v -k3-> n becomes p -k1+k2-> v --k2-> u -k2+k3-> n. False where the data forbid it."""
        nxt, before, step = self.next, self.before, self.step
        v, k = nxt[u], step[u]
        if v == u or any(x == v and d <= k for x, d in self.ops.out[u]):
            return False
        n, p = nxt[v], before[u]
        if n == u:
            step[u], step[v] = step[v] + 2 * k, -k
            return True
        nxt[p], before[v] = v, p
        step[p] += k
        nxt[u], before[n], step[u] = n, u, k + step[v]
        nxt[v], before[u], step[v] = u, v, -k
        return True

    def relink(self, u: int, other: int, *, strict: bool = True) -> bool:
        """Let the lanes of `u` and `other` (of one resource) be taken over crosswise. `strict`: False where `other` ends too late for u's next."""
        nxt, before, step, start, seconds, period = self.next, self.before, self.step, self.start, self.ops.seconds, self.period
        v, w = nxt[u], nxt[other]
        x = -((start[w] - start[u] - seconds[u]) // period)
        y = step[u] + step[other] - x
        if strict and start[other] + seconds[other] >= start[v] + y * period:
            return False
        nxt[u], step[u], before[w] = w, x, u
        nxt[other], step[other], before[v] = v, y, other
        return True

    def solve(self, least: int, limit: int) -> bool:
        """Find period (>= `least`), starts and critical cycle; False (nothing changes) where the period would exceed `limit` or nothing could run."""
        if self.ops.core.circles is not None:
            return self._solve(self.ops.core.circles, least, limit)
        ops = self.ops
        seconds, nxt, step = ops.seconds, self.next, self.step
        period, critical = least, self.cycle
        start = list(self.start)
        order = sorted(range(ops.count), key=start.__getitem__)
        arcs = [[*row, (nxt[u], step[u])] if nxt[u] >= 0 else row for u, row in enumerate(ops.out)]
        while True:
            dirty = [True] * ops.count
            parent = [-1] * ops.count
            through = [0] * ops.count
            passes = 0
            cycle = None
            while cycle is None:
                moved = False
                for u in order:
                    if dirty[u]:
                        dirty[u] = False
                        end = start[u] + seconds[u]
                        for v, k in arcs[u]:
                            at = end - k * period
                            if at > start[v]:
                                start[v] = at
                                parent[v] = u
                                through[v] = k
                                dirty[v] = True
                                moved = True
                if not moved:
                    self.period, self.start, self.cycle = period, start, critical
                    return True
                passes += 1
                if passes > 1:
                    cycle = parent_cycle(parent)
            work = distance = 0
            for v in cycle:
                work += seconds[v]
                distance += through[v]
            period = _raised(period, work, distance, limit)
            if not period:
                return False
            critical = cycle

    def _solve(self, circles: Circles, least: int, limit: int) -> bool:
        """The same by machine code."""
        ops = self.ops
        period, critical = least, self.cycle
        order, start = array("q", sorted(range(ops.count), key=self.start.__getitem__)), array("q", self.start)
        follow = array("q", self.next), array("q", self.step)
        while found := circles.find(ops.flat, period, start, order, follow):
            cycle, _, turns = found
            work, distance = sum(map(ops.seconds.__getitem__, cycle)), sum(turns)
            period = _raised(period, work, distance, limit)
            if not period:
                return False
            critical = cycle
        self.period, self.start, self.cycle = period, start.tolist(), critical
        return True


def by_starts(ops: Ops, start: Sequence[int], period: int) -> Order:
    """The order of ops that start about when `start` says, each lane by itself where a resource has one: what overlaps there waits.

    Where a resource has several lanes, `start` overlaps no more often than there are lanes.
    """
    order = Order(ops, start, period)
    groups: list[list[int]] = [[] for _ in range(ops.core.resources)]
    for u, r in enumerate(ops.resource):
        if r >= 0 and ops.core.capacity[r] == 1:
            groups[r].append(u)
    for group in groups:
        group.sort(key=lambda u: (start[u] % period, u))
        for i, u in enumerate(group):
            v = group[i + 1 - len(group)]
            order.next[u], order.before[v] = v, u
            order.step[u] = start[u] // period - start[v] // period + (i + 1 == len(group))
    return order


def settled(ops: Ops, guess: Sequence[int], period: int) -> Order | None:
    """The order of ops that start about when `guess` says: as soon after as the data allow at `period`; None where it does not allow the data."""
    start = list(guess)
    order = sorted(range(ops.count), key=start.__getitem__)
    if ops.core.circles is not None:
        at = array("q", start)
        return None if ops.core.circles.find(ops.flat, period, at, array("q", order)) else Order(ops, at.tolist(), period)
    if relax(ops.seconds, ops.out, period, start, order) is not None:
        return None
    return Order(ops, start, period)


def guesses(order: Order, ops: Ops) -> list[int]:
    """Starts for `ops` (another assignment of the same body) as in `order`; a new copy starts when its value is made."""
    n, producer = ops.core.n, ops.core.producer
    start = order.start[:n]
    known = {copy: order.start[n + i] for i, copy in enumerate(order.ops.copies)}
    return start + [known.get(copy, start[producer[copy[0]]] + ops.seconds[producer[copy[0]]]) for copy in ops.copies]


def _raised(period: int, work: int, distance: int, limit: int) -> int:
    """The least period above `period` in which a cycle of `work` over `distance` turns has room; 0 where there is none up to `limit`."""
    if distance <= 0:
        return 0
    period = max(period + 1, -(-work // distance))
    return period if period <= limit else 0
