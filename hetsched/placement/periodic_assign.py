"""Which device runs which task, so that the period can be short: loads of lanes and queues, dependence cycles, simulated annealing."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from hetsched.placement.periodic_modulo import components, topological
from hetsched.placement.periodic_problem import Core

# A search for the cycle ratio takes as long as this many other steps for each task on a cycle.
TASK_STEPS = 0.2


class Balance:
    """An assignment with the load of every resource, kept up while single tasks move. Loads are nanoseconds a lane."""

    def __init__(self, core: Core, assignment: Sequence[int]) -> None:
        self.core = core
        self.assignment = list(assignment)
        self.load = [0.0] * core.resources
        self.count = [[0] * core.problem.nodes for _ in core.readers]
        for t, d in enumerate(assignment):
            self.load[d] += core.durations[t][d] / core.capacity[d]  # type: ignore[operator]
        for w, readers in enumerate(core.readers):
            row = self.count[w]
            for r in dict.fromkeys(r for r, _ in readers):
                row[core.memory[assignment[r]]] += 1
            self._copies(w, core.memory[assignment[core.producer[w]]], 1)

    def _copies(self, w: int, home: int, sign: int) -> None:
        core = self.core
        links, copy = core.link_of[home], core.copy[w]
        for node, n in enumerate(self.count[w]):
            if n and node != home:
                r = core.link_resource[links[node]]
                if r >= 0:
                    self.load[r] += sign * copy[links[node]] / core.capacity[r]

    def move(self, t: int, device: int) -> None:
        """Put task `t` on `device`."""
        core, load, a = self.core, self.load, self.assignment
        old = a[t]
        load[old] -= core.durations[t][old] / core.capacity[old]  # type: ignore[operator]
        load[device] += core.durations[t][device] / core.capacity[device]  # type: ignore[operator]
        x, y = core.memory[old], core.memory[device]
        if x != y:
            for w in core.made[t]:
                self._copies(w, x, -1)
            a[t] = device
            for w in core.read[t]:
                row = self.count[w]
                row[x] -= 1
                row[y] += 1
                p = core.producer[w]
                if p == t:
                    continue
                home = core.memory[a[p]]
                links = core.link_of[home]
                if not row[x] and x != home:
                    r = core.link_resource[links[x]]
                    if r >= 0:
                        load[r] -= core.copy[w][links[x]] / core.capacity[r]
                if row[y] == 1 and y != home:
                    r = core.link_resource[links[y]]
                    if r >= 0:
                        load[r] += core.copy[w][links[y]] / core.capacity[r]
            for w in core.made[t]:
                self._copies(w, y, 1)
        a[t] = device


class Cycles:
    """The cycle ratio of an assignment, inside the strongly connected components of the body alone."""

    def __init__(self, core: Core) -> None:
        self.core = core
        out: list[list[tuple[int, int]]] = [[] for _ in range(core.n)]
        for u, v, k in core.task_arcs:
            out[u].append((v, k))
        self.order = topological(core.n, out)
        self.mark = components(core.n, out)
        self.inner = [t for t in self.order if self.mark[t] >= 0]
        self.place = {t: i for i, t in enumerate(self.inner)}
        # Arcs inside a component: (value or -1, reader, distance), by producer.
        self.rows: list[list[tuple[int, int, int]]] = [[] for _ in self.inner]
        for w, readers in enumerate(core.readers):
            p = core.producer[w]
            if self.mark[p] >= 0:
                self.rows[self.place[p]] += [(w, self.place[r], k) for r, k in readers if self.mark[r] == self.mark[p]]
        for u, v, k in core.orders:
            if self.mark[u] >= 0 and self.mark[v] == self.mark[u]:
                self.rows[self.place[u]].append((-1, self.place[v], k))
        self.touches = [m >= 0 for m in self.mark]
        # Every arc from a task that is kept: a single state arc needs no search.
        # Devices of the inner tasks -> (ratio, True) or (an upper limit of it, False).
        self.known: dict[tuple[int, ...], tuple[int, bool]] = {}
        self.work = 0.0

    def ratio(self, assignment: Sequence[int], least: int) -> int:
        """The least period >= `least` that the dependence cycles of this assignment allow, copies included."""
        if not self.inner:
            return least
        core, inner = self.core, self.inner
        devices = [assignment[t] for t in inner]
        key = tuple(devices)
        found = self.known.get(key)
        if found is not None and (found[1] or found[0] <= least):
            return max(found[0], least)
        seconds = [core.durations[t][d] for t, d in zip(inner, devices, strict=True)]
        nodes = [core.memory[d] for d in devices]
        weights: list[list[tuple[int, int, int]]] = []
        for i, row in enumerate(self.rows):
            base, home = seconds[i], nodes[i]
            links = core.link_of[home]
            weights.append(
                [(j, base + (core.copy[w][links[nodes[j]]] if w >= 0 and nodes[j] != home else 0), k) for w, j, k in row]  # type: ignore[operator]
            )
        self.work += len(inner) * TASK_STEPS
        ratio = weighted_ratio(weights, least)
        self.known[key] = ratio, ratio > least
        return ratio


def weighted_ratio(out: Sequence[Sequence[tuple[int, int, int]]], least: int) -> int:
    """Like `cycle_ratio` where every arc (v, weight, distance) has a weight of its own."""
    period, count = least, len(out)
    while True:
        start, dirty, parent = [0] * count, [True] * count, [-1] * count
        through: list[tuple[int, int]] = [(0, 0)] * count
        passes, cycle = 0, None
        while cycle is None:
            moved = False
            for u in range(count):
                if dirty[u]:
                    dirty[u] = False
                    s = start[u]
                    for v, w, k in out[u]:
                        x = s + w - k * period
                        if x > start[v]:
                            start[v] = x
                            parent[v] = u
                            through[v] = (w, k)
                            dirty[v] = True
                            moved = True
            if not moved:
                return period
            passes += 1
            if passes > 1:
                cycle = _loop_of(parent)
        work, distance = sum(through[v][0] for v in cycle), sum(through[v][1] for v in cycle)
        if distance <= 0:
            raise ValueError("the tasks wait for each other in a circle without a distance")
        period = max(period + 1, -(-work // distance))


def _loop_of(parent: list[int]) -> list[int] | None:
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
            return cycle
    return None


def least_period(core: Core, cycles: Cycles, assignment: Sequence[int]) -> int:
    """B of an assignment: the largest of the loads and the cycle ratio, nanoseconds. No order of it has a shorter period."""
    load = max(Balance(core, assignment).load, default=0.0)
    return cycles.ratio(assignment, max(1, math.ceil(load - 1e-6)))


def anneal(
    core: Core, cycles: Cycles, seeds: Sequence[Sequence[int]], steps: int, pool: int, rng: random.Random, enough: int
) -> list[tuple[int, list[int]]]:
    """The best assignments found as (B, assignment), best first: `steps` steps of simulated annealing shared by the seeds.

    The cost is B * (1 + 0.02 * sum((load / largest)^8)): among equal periods the one with room elsewhere is easier to order.
    Stops when B reaches `enough` (a lower bound).
    """
    n = core.n
    movable = [t for t in range(n) if len(core.allowed[t]) > 1]
    near: list[list[int]] = [[] for _ in range(n)]
    for u, v, _ in core.task_arcs:
        if u != v:
            near[u].append(v)
            near[v].append(u)
    found: dict[tuple[int, ...], int] = {}

    def cost(state: Balance, limit: float) -> tuple[float, int]:
        top = max(state.load)
        b = max(1, math.ceil(top - 1e-6))
        if b <= limit:
            b = cycles.ratio(state.assignment, b)
        x = 1.0 / b
        extra = 0.0
        for y in state.load:
            q = y * x
            if q > 0.5:
                q *= q
                q *= q
                extra += q * q
        return b * (1 + 0.02 * extra), b

    def note(state: Balance, b: int) -> None:
        found[tuple(state.assignment)] = b
        if len(found) > 8 * pool:
            for key in sorted(found, key=found.__getitem__)[pool:]:
                del found[key]

    for seed in seeds:
        state = Balance(core, seed)
        now, b = cost(state, math.inf)
        note(state, b)
        if not movable:
            break
        share = steps / len(seeds)
        best, step, before = b, 0, cycles.work
        while (spent := step + cycles.work - before) < share and best > enough:
            step += 1
            temperature = 0.02 * (0.05 ** (spent / share)) * best
            t = movable[int(rng.random() * len(movable))]
            options = core.allowed[t]
            device = options[int(rng.random() * len(options))]
            old = state.assignment[t]
            kind = rng.random()
            undo = []
            if kind < 0.15:
                u = movable[int(rng.random() * len(movable))]
                other = state.assignment[u]
                if other == old or core.durations[t][other] is None or core.durations[u][old] is None:
                    continue
                undo = [(t, old), (u, other)]
                state.move(t, other)
                state.move(u, old)
            else:
                if device == old:
                    continue
                group = [t]
                if kind > 0.6 and near[t]:
                    size = 2 if kind < 0.85 else 3 + int(rng.random() * 6)
                    while len(group) < size:
                        around = near[group[int(rng.random() * len(group))]]
                        u = around[int(rng.random() * len(around))] if around else t
                        if u in group or core.durations[u][device] is None or len(core.allowed[u]) < 2:
                            size -= 1
                            continue
                        group.append(u)
                for u in group:
                    undo.append((u, state.assignment[u]))
                    state.move(u, device)
            limit = now - temperature * math.log(rng.random() + 1e-12)
            new, b = cost(state, limit)
            if new <= limit:
                now = new
                if b <= best * 1.02:
                    best = min(best, b)
                    note(state, b)
            else:
                for u, d in reversed(undo):
                    state.move(u, d)
        if best <= enough:
            break
    ranked = sorted(found.items(), key=lambda x: (x[1], x[0]))
    return [(b, list(a)) for a, b in ranked[:pool]]
