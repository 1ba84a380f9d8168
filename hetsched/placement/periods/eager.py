"""Assignments for bodies of many tasks: a few turns one after another, each task where it would end first.

Annealing from the fastest devices finds good places for some dozens of tasks; hundreds would take it too long to bring together what belongs
together. Here they are dealt out in the order of HEFT (H. Topcuoglu, S. Hariri, M.-Y. Wu, Performance-effective and low-complexity task scheduling
for heterogeneous computing, 2002), lanes and queues of links counted, without insertion. The first turn finds what comes from turns before it
everywhere; those after it find it where the turn before has put it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappush, heapreplace

from hetsched.placement.periods.modulo import topological
from hetsched.placement.periods.problem import Core

_TURNS = 3


def eager(core: Core, turns: int = _TURNS) -> list[list[int]]:
    """Assignments, each once: those of the first `turns` turns, with tasks by the longest way of their mean and of their least durations."""
    found = [tuple(row) for weigh in (_mean, min) for row in _turns(core, _order(core, weigh), turns)]
    return [list(row) for row in dict.fromkeys(found)]


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values)


def _order(core: Core, weigh: Callable[[Sequence[int]], float]) -> list[int]:
    """The tasks by falling rank: the longest way to an end within a turn."""
    out: list[list[tuple[int, int]]] = [[] for _ in range(core.n)]
    for u, v, k in core.task_arcs:
        out[u].append((v, k))
    rank = [weigh([x for x in row if x is not None]) for row in core.durations]
    order = topological(core.n, out)
    place = [0] * core.n
    for i, u in enumerate(order):
        place[u] = i
    for u in reversed(order):
        rank[u] += max((rank[v] for v, k in out[u] if not k), default=0)
    return sorted(range(core.n), key=lambda u: (-rank[u], place[u]))


def _turns(core: Core, order: Sequence[int], turns: int) -> list[list[int]]:
    """The assignment of each of so many turns."""
    into: list[list[tuple[int, int, int]]] = [[] for _ in range(core.n)]  # (value or -1, producer, distance)
    for w, readers in enumerate(core.readers):
        for r, k in readers:
            into[r].append((w, core.producer[w], k))
    for u, v, k in core.orders:
        into[v].append((-1, u, k))
    free: list[list[int]] = [[] for _ in range(core.resources)]  # heaps: when lanes are free that have been used
    end: list[list[int]] = []
    places: list[list[int]] = []
    there: dict[tuple[int, int, int], int] = {}  # (value, turn, memory node) -> when it is there

    def at(resource: int) -> int:
        return free[resource][0] if len(free[resource]) == core.capacity[resource] else 0

    def book(resource: int, until: int) -> None:
        if len(free[resource]) == core.capacity[resource]:
            heapreplace(free[resource], until)
        else:
            heappush(free[resource], until)

    def ready(t: int, turn: int, device: int, books: bool) -> int:
        """When the task could start on the device, after the copies that it needs there. books: they are made."""
        start, node = 0, core.memory[device]
        queued: dict[int, int] = {}
        for w, p, k in into[t]:
            source = turn - k
            if source < 0 or (source == turn and places[turn][p] < 0):
                continue
            when = end[source][p]
            home = core.memory[places[source][p]]
            if w >= 0 and home != node:
                key = (w, source, node)
                if key in there:
                    when = there[key]
                else:
                    link = core.link_of[home][node]
                    r = core.link_resource[link]
                    if r >= 0:
                        when = max(when, queued.get(r, 0), at(r))
                    when += core.copy[w][link]
                    queued[r] = when
                    if books:
                        there[key] = when
                        if r >= 0:
                            book(r, when)
            start = max(start, when)
        return start

    for turn in range(turns):
        end.append([0] * core.n)
        places.append([-1] * core.n)
        for t in order:
            best = -1, -1
            for d in core.allowed[t]:
                duration = core.durations[t][d]
                assert duration is not None
                finish = max(ready(t, turn, d, False), at(d)) + duration
                if best[1] < 0 or finish < best[0]:
                    best = finish, d
            d = best[1]
            finish = max(ready(t, turn, d, True), at(d)) + core.durations[t][d]  # type: ignore[operator]
            book(d, finish)
            end[turn][t], places[turn][t] = finish, d
    return places
