"""Starts for the ops of one turn at a given period: iterative modulo scheduling, the cycle ratio, and the tightening of a finished order.

Sources: B. R. Rau, Iterative Modulo Scheduling, 1994 (the scheduler); the maximum cycle ratio as the period of an event graph, e.g.
A. Dasdan, Experimental analysis of the fastest optimum cycle ratio and mean algorithms, 2004 (here: jump to the ratio of any cycle that is
still positive). Everything is whole nanoseconds.
"""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from operator import add
from typing import TypeAlias

from hetsched.placement.periods.native import Circles, Flat
from hetsched.placement.periods.problem import Ops

Arcs: TypeAlias = Sequence[Sequence[tuple[int, int]]]


def relax(seconds: Sequence[int], out: Arcs, period: int, start: list[int], order: Sequence[int]) -> list[int] | None:
    """Raise `start` to the least starts that keep every arc at `period`; a cycle that makes it impossible (its ops), or None.

    An arc (v, k) in `out[u]` says start[v] + k * period >= start[u] + seconds[u]. `order` is the order of a pass (a topological one makes it fast).
    """
    count = len(seconds)
    dirty = [True] * count
    parent = [-1] * count
    passes = 0
    while True:
        moved = False
        for u in order:
            if dirty[u]:
                dirty[u] = False
                end = start[u] + seconds[u]
                for v, k in out[u]:
                    at = end - k * period
                    if at > start[v]:
                        start[v] = at
                        parent[v] = u
                        dirty[v] = True
                        moved = True
        if not moved:
            return None
        passes += 1
        if passes > 1:
            cycle = parent_cycle(parent)
            if cycle is not None:
                return cycle


def parent_cycle(parent: list[int]) -> list[int] | None:
    """A cycle among the parents (in the order of its arcs), or None."""
    seen = [0] * len(parent)
    for s in range(len(parent)):
        x, mark = s, s + 1
        while x >= 0 and not seen[x]:
            seen[x] = mark
            x = parent[x]
        if x >= 0 and seen[x] == mark:
            cycle, y = [x], parent[x]
            while y != x:
                cycle.append(y)
                y = parent[y]
            return cycle[::-1]
    return None


def ratio_of(cycle: Sequence[int], seconds: Sequence[int], out: Arcs) -> tuple[int, int]:
    """(sum of durations, sum of distances) along `cycle`, with the nearest of parallel arcs."""
    work = distance = 0
    for i, u in enumerate(cycle):
        v = cycle[(i + 1) % len(cycle)]
        work += seconds[u]
        distance += min(k for x, k in out[u] if x == v)
    return work, distance


def cycle_ratio(
    seconds: Sequence[int], out: Arcs, order: Sequence[int], least: int = 1, circles: Circles | None = None
) -> tuple[int, list[int], list[int]]:
    """(the least period >= `least` that the arcs allow, starts at it, the critical cycle or [] where `least` itself does).

    circles: machine code for the same.
    """
    period = least
    critical: list[int] = []
    flat, passes = (Flat(out, seconds), array("q", order)) if circles is not None else (None, None)
    while True:
        start: list[int] | array[int]
        if circles is not None and flat is not None:
            start = array("q", bytes(8 * len(seconds)))
            found = circles.find(flat, period, start, passes)
            cycle = found[0] if found is not None else None
        else:
            start = [0] * len(seconds)
            cycle = relax(seconds, out, period, start, order)
        if cycle is None:
            return period, list(start), critical
        work, distance = ratio_of(cycle, seconds, out)
        if distance <= 0:
            raise ValueError("the tasks wait for each other in a circle without a distance")
        period, critical = max(period + 1, -(-work // distance)), cycle


def topological(count: int, out: Arcs) -> list[int]:
    """The ops in an order that keeps every arc of distance 0."""
    waits = [0] * count
    for row in out:
        for v, k in row:
            waits[v] += k == 0
    order = [u for u in range(count) if not waits[u]]
    for u in order:
        for v, k in out[u]:
            if k == 0:
                waits[v] -= 1
                if not waits[v]:
                    order.append(v)
    if len(order) < count:
        raise ValueError("the tasks wait for each other in a circle without a distance")
    return order


def components(count: int, out: Arcs) -> list[int]:
    """For each op the number of its strongly connected component, -1 where it is on no cycle (Tarjan, without recursion)."""
    index, low, mark = [-1] * count, [0] * count, [-1] * count
    on, stack, clock, number = [False] * count, [], 0, 0
    for root in range(count):
        if index[root] >= 0:
            continue
        work = [(root, 0)]
        while work:
            u, i = work.pop()
            if i == 0:
                index[u] = low[u] = clock
                clock += 1
                stack.append(u)
                on[u] = True
            row = out[u]
            for j in range(i, len(row)):
                v = row[j][0]
                if index[v] < 0:
                    work += [(u, j + 1), (v, 0)]
                    break
                if on[v]:
                    low[u] = min(low[u], index[v])
            else:
                if low[u] == index[u]:
                    members = []
                    while True:
                        v = stack.pop()
                        on[v] = False
                        members.append(v)
                        if v == u:
                            break
                    if len(members) > 1 or any(v == u for v, _ in row):
                        for v in members:
                            mark[v] = number
                        number += 1
                if work:
                    parent = work[-1][0]
                    low[parent] = min(low[parent], low[u])
    return mark


class Profile:
    """Lanes in use on one resource over [0, period), as a step function; what is booked wraps around the end."""

    __slots__ = ("at", "booked", "lanes", "period", "used")

    def __init__(self, period: int, lanes: int) -> None:
        self.period, self.lanes = period, lanes
        self.at, self.used = [0], [0]
        self.booked: dict[int, tuple[int, int]] = {}

    def _split(self, t: int) -> int:
        i = bisect_right(self.at, t) - 1
        if self.at[i] != t:
            i += 1
            self.at.insert(i, t)
            self.used.insert(i, self.used[i - 1])
        return i

    def _add(self, start: int, seconds: int, sign: int) -> None:
        period, used = self.period, self.used
        full, rest = divmod(seconds, period)
        if full:
            for i in range(len(used)):
                used[i] += sign * full
        if rest:
            lo, hi = start % period, (start % period) + rest
            if hi < period:
                first = self._split(lo)
                for i in range(first, self._split(hi)):
                    used[i] += sign
            else:
                first = self._split(lo)
                for i in range(first, len(used)):
                    used[i] += sign
                if hi > period:
                    for i in range(self._split(hi - period)):
                        used[i] += sign

    def book(self, op: int, start: int, seconds: int) -> None:
        """Take a lane for `op`."""
        self.booked[op] = (start, seconds)
        self._add(start, seconds, 1)

    def release(self, op: int) -> None:
        """Give the lane of `op` back."""
        start, seconds = self.booked.pop(op)
        self._add(start, seconds, -1)
        if len(self.at) > 8 + 4 * len(self.booked):
            self.at, self.used = [0], [0]
            for s, w in self.booked.values():
                self._add(s, w, 1)

    def first(self, earliest: int, seconds: int, abut: bool) -> int:
        """The first start >= `earliest` (within one period) where a lane is free throughout; -1 with none. Relative to `earliest`.

        abut: the first that touches a reservation or the end of a gap, so that the free time stays in one piece (with several lanes: the end of
        any reservation, so that they follow each other around the lanes).
        """
        if abut and self.lanes > 1:
            for shift in sorted({(s + w - earliest) % self.period for s, w in self.booked.values()}):
                if self.first(earliest + shift, seconds, False) == 0:
                    return shift
            return self.first(earliest, seconds, False)
        period, at, used = self.period, self.at, self.used
        full, rest = divmod(seconds, period)
        level = self.lanes - full
        if full and max(used) > level:
            return -1
        if not rest:
            return 0 if level >= 0 else -1
        level -= 1
        if level < 0:
            return -1
        origin = earliest % period
        m = len(at)
        i = bisect_right(at, origin) - 1
        base, begin, run = 0, origin, -1
        stop = origin + period
        free_from_start = used[i] <= level
        while True:
            end = (at[i + 1] if i + 1 < m else period) + base
            if used[i] <= level:
                if run < 0:
                    run = begin
                    if run >= stop:
                        return -1
                if end - run >= rest:
                    if not abut or run > origin or not free_from_start or at[bisect_right(at, origin) - 1] == origin:
                        return run - origin
                    # The gap that `earliest` lies in: go to its end, if it has one.
                    while used[i] <= level and end < stop + rest:
                        i += 1
                        if i == m:
                            i, base = 0, base + period
                        end = (at[i + 1] if i + 1 < m else period) + base
                    gap = at[i] + base
                    return gap - rest - origin if used[i] > level and gap - rest - origin < period else 0
            else:
                run = -1
            begin = end
            if run < 0 and begin >= stop:
                return -1
            if run >= 0 and begin >= stop + rest:
                return run - origin
            i += 1
            if i == m:
                i, base = 0, base + period

    def conflicts(self, start: int, seconds: int) -> list[int]:
        """The ops that hold a lane at some moment at which [start, start + seconds) would."""
        period = self.period
        if seconds >= period:
            return list(self.booked)
        lo = start % period
        out = []
        for op, (s, w) in self.booked.items():
            if w and (w >= period or (s - lo) % period < seconds or (lo - s) % period < w):
                out.append(op)
        return out


def heights(ops: Ops, period: int, order: Sequence[int]) -> list[int] | None:
    """Longest way from each op to an end at `period` (its own duration included), or None where a cycle forbids the period."""
    height = list(ops.seconds)
    seconds, into = ops.seconds, ops.into
    for _ in range(ops.count + 1):
        moved = False
        for v in reversed(order):
            h = height[v]
            for u, k in into[v]:
                x = h - k * period + seconds[u]
                if x > height[u]:
                    height[u] = x
                    moved = True
        if not moved:
            return height
    return None


def modulo_starts(ops: Ops, period: int, priority: Sequence[float], abut: Sequence[bool], budget: int) -> list[int] | None:
    """Starts of the ops at `period`, or None when `budget` placements did not do. `abut`: per resource, see `Profile.first`.

    Ops are placed by falling priority, each in the first slot that its placed predecessors allow; where a lane is not free, what holds it is
    taken out again, and so is a successor that would start too early (Rau 1994, section 3).
    """
    core, seconds, resource = ops.core, ops.seconds, ops.resource
    into, out = ops.into, ops.out
    profiles = [Profile(period, lanes) for lanes in core.capacity]
    start: list[int | None] = [None] * ops.count
    last: list[int | None] = [None] * ops.count
    queue = [(-priority[u], u) for u in range(ops.count)]
    heapq.heapify(queue)
    while queue:
        _, u = heapq.heappop(queue)
        if start[u] is not None:
            continue
        budget -= 1
        if budget < 0:
            return None
        w = seconds[u]
        earliest: int | None = None
        for p, k in into[u]:
            s = start[p]
            if s is not None:
                x = s + seconds[p] - k * period
                if earliest is None or x > earliest:
                    earliest = x
        if earliest is None:
            limits = [s + k * period - w for v, k in out[u] if v != u and (s := start[v]) is not None]
            earliest = min(limits) - period + 1 if limits else 0
        r = resource[u]
        at = earliest
        if r >= 0 and w:
            profile = profiles[r]
            shift = profile.first(earliest, w, abut[r])
            if shift >= 0:
                at = earliest + shift
            else:
                before = last[u]
                at = earliest if before is None or before < earliest else before + 1
                if (w + period - 1) // period > profile.lanes:
                    return None
                victims = sorted(profile.conflicts(at, w), key=priority.__getitem__)
                for victim in victims:
                    profile.release(victim)
                    start[victim] = None
                    heapq.heappush(queue, (-priority[victim], victim))
                    if profile.first(at, w, False) == 0:
                        break
            profile.book(u, at, w)
        start[u] = last[u] = at
        for v, k in out[u]:
            s = start[v]
            if s is not None and s + k * period < at + w and v != u:
                q = resource[v]
                if q >= 0 and seconds[v]:
                    profiles[q].release(v)
                start[v] = None
                heapq.heappush(queue, (-priority[v], v))
    done = [s for s in start if s is not None]
    low = min(done, default=0) // period * period
    return [s - low for s in done]


def lane_arcs(ops: Ops, start: Sequence[int], period: int) -> list[tuple[int, int, int]]:
    """The order on each resource as arcs: end number j frees the lane of start number j + lanes ("first free lane first")."""
    groups: list[list[int]] = [[] for _ in range(ops.core.resources)]
    for u, r in enumerate(ops.resource):
        if r >= 0:
            groups[r].append(u)
    arcs = []
    seconds = ops.seconds
    finish = list(map(add, start, seconds))
    begun, ended = [s // period for s in start], [s // period for s in finish]
    # Ops at equal keys stay in the order of their numbers.
    starts_at = [(s - k * period, w) for s, k, w in zip(start, begun, seconds, strict=True)]
    ends_at = [(s - k * period, w) for s, k, w in zip(finish, ended, seconds, strict=True)]
    for r, group in enumerate(groups):
        lanes, m = ops.core.capacity[r], len(group)
        if not m:
            continue
        if m <= lanes and max(seconds[u] for u in group) <= period:
            arcs += [(u, u, 1) for u in group]
            continue
        starts, ends = sorted(group, key=starts_at.__getitem__), sorted(group, key=ends_at.__getitem__)
        alive = sum(map(ended.__getitem__, group)) - sum(map(begun.__getitem__, group))
        for j, u in enumerate(ends, lanes - alive):
            turns, i = divmod(j, m)
            v = starts[i]
            arcs.append((u, v, turns - begun[v] + ended[u]))
    return arcs


def tighten(ops: Ops, start: Sequence[int], period: int, least: int = 1) -> tuple[int, list[int]]:
    """(period, starts) of the same order run as fast as its cycles allow, not below `least`. Stages stay as they are."""
    arcs = lane_arcs(ops, start, period)
    stage = [s // period for s in start]
    out: list[list[tuple[int, int]]] = [[] for _ in range(ops.count)]
    for u, row in enumerate(ops.out):
        for v, k in row:
            out[u].append((v, k + stage[v] - stage[u]))
    for u, v, k in arcs:
        out[u].append((v, k + stage[v] - stage[u]))
    order = sorted(range(ops.count), key=lambda u: (start[u] % period, ops.seconds[u]))
    least, offsets, _ = cycle_ratio(ops.seconds, out, order, least, ops.core.circles)
    return least, [offsets[u] + stage[u] * least for u in range(ops.count)]
