"""Which device runs which task, so that the period can be short: loads of lanes and queues, dependence cycles, simulated annealing."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Sequence

from hetsched.placement.periods.modulo import components, parent_cycle, topological
from hetsched.placement.periods.native import Flat
from hetsched.placement.periods.problem import Core

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
    """The cycle ratio of an assignment, inside the strongly connected components of the body alone.

    Assignments are asked one after another that differ in few tasks: only their arcs are weighed anew, starts begin where they were, and the cycle
    that was critical last is looked at first.
    """

    def __init__(self, core: Core) -> None:
        self.core = core
        out: list[list[tuple[int, int]]] = [[] for _ in range(core.n)]
        for u, v, k in core.task_arcs:
            out[u].append((v, k))
        mark = components(core.n, out)
        self.inner = [t for t in topological(core.n, out) if mark[t] >= 0]
        place = {t: i for i, t in enumerate(self.inner)}
        # Arcs inside a component by producer: (value or -1, reader, distance); who has an arc to a task.
        self.rows: list[list[tuple[int, int, int]]] = [[] for _ in self.inner]
        self.into: list[set[int]] = [{i} for i in range(len(self.inner))]
        for w, readers in enumerate(core.readers):
            p = core.producer[w]
            self._add(place, mark, [(w, p, r, k) for r, k in readers])
        self._add(place, mark, [(-1, u, v, k) for u, v, k in core.orders])
        self.dominate = 2 * len(self.inner) > core.n
        self.work = 0.0
        self.devices: list[int] = [-1] * len(self.inner)
        self.weights: list[list[tuple[int, int, int]]] = [[] for _ in self.inner]
        self.start = [0] * len(self.inner)
        self.critical: list[tuple[int, int]] = []
        # The arcs once more for machine code, and where those of each task begin.
        self.flat = Flat([[(v, k) for _, v, k in row] for row in self.rows], weighed=True) if core.circles is not None else None

    def _add(self, place: dict[int, int], mark: list[int], arcs: list[tuple[int, int, int, int]]) -> None:
        for w, p, r, k in arcs:
            if mark[p] >= 0 and mark[r] == mark[p]:
                self.rows[place[p]].append((w, place[r], k))
                self.into[place[r]].add(place[p])

    def ratio(self, assignment: Sequence[int], least: int, limit: float = math.inf) -> int:
        """The least period >= `least` that the cycles of this assignment allow, copies included; above `limit` only a lower bound of it."""
        if not self.inner:
            return least
        self.work += len(self.inner) * TASK_STEPS
        self._weigh([assignment[t] for t in self.inner])
        period = least
        if self.critical:
            work = distance = 0
            for u, arc in self.critical:
                _, w, k = self.weights[u][arc]
                work += w
                distance += k
            period = max(period, -(-work // distance))
        while period <= limit:
            found = self._circle(period)
            if not found:
                return period
            work = sum(self.weights[u][arc][1] for u, arc in found)
            distance = sum(self.weights[u][arc][2] for u, arc in found)
            if distance <= 0:
                raise ValueError("the tasks wait for each other in a circle without a distance")
            period, self.critical = max(period + 1, -(-work // distance)), found
        return period

    def _weigh(self, devices: list[int]) -> None:
        """Weights of the arcs (reader, seconds of the producer and of the copy, distance) for these devices."""
        core = self.core
        changed: set[int] = set().union(*(into for into, d, old in zip(self.into, devices, self.devices, strict=True) if d != old))
        for i in changed:
            base = core.durations[self.inner[i]][devices[i]]
            assert base is not None
            home = core.memory[devices[i]]
            links = core.link_of[home]
            row = []
            for w, j, k in self.rows[i]:
                node = core.memory[devices[j]]
                row.append((j, base + core.copy[w][links[node]] if w >= 0 and node != home else base, k))
            self.weights[i] = row
            if self.flat is not None and self.flat.work is not None:
                self.flat.work[self.flat.starts[i] : self.flat.starts[i + 1]] = array("q", [work for _, work, _ in row])
        self.devices = devices

    def _circle(self, period: int) -> list[tuple[int, int]]:
        """Arcs (producer, which of its arcs) of a cycle that takes longer than `period` a turn; empty where there is none."""
        if self.core.circles is not None and self.flat is not None:
            at = array("q", self.start)
            found = self.core.circles.find(self.flat, period, at)
            if found is None:
                self.start = at.tolist()
                return []
            return [(u, arc - self.flat.starts[u]) for u, arc in zip([found[0][-1], *found[0][:-1]], found[1], strict=True)]
        out, count = self.weights, len(self.inner)
        start, dirty, parent, through = list(self.start), [True] * count, [-1] * count, [0] * count
        passes = 0
        while True:
            moved = False
            for u in range(count):
                if dirty[u]:
                    dirty[u] = False
                    s = start[u]
                    for arc, (v, w, k) in enumerate(out[u]):
                        x = s + w - k * period
                        if x > start[v]:
                            start[v] = x
                            parent[v] = u
                            through[v] = arc
                            dirty[v] = True
                            moved = True
            if not moved:
                self.start = start
                return []
            passes += 1
            if passes > 1:
                cycle = parent_cycle(parent)
                if cycle is not None:
                    return [(parent[v], through[v]) for v in cycle]


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
            b = cycles.ratio(state.assignment, b, limit)
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
