"""Starts that keep values alive for short: the same period and the same order on the lanes.

What a lane does depends on starts modulo the period alone, so every op may first move by whole periods as far as its data allow; then by less, as far
as the neighbours on its lane allow. An op moves towards its readers where it makes more bytes than it is the last to read, else towards its inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

from hetsched.placement.periods.modulo import lane_arcs
from hetsched.placement.periods.problem import Ops

_ROUNDS = 3


def slid(ops: Ops, start: Sequence[int], period: int) -> list[int]:
    """Starts of the ops at `period`, the first at 0 or later, with bytes times lifetime made small by local moves."""
    out = _earliest(ops, start, period)
    for _ in range(_ROUNDS):
        _move(ops, out, period, ops.out, ops.into, period)
        after: list[list[tuple[int, int]]] = [list(row) for row in ops.out]
        before: list[list[tuple[int, int]]] = [list(row) for row in ops.into]
        for u, v, k in lane_arcs(ops, out, period):
            after[u].append((v, k))
            before[v].append((u, k))
        _move(ops, out, period, after, before, 1)
    low = min(out, default=0)
    return [s - low for s in out]


def _earliest(ops: Ops, start: Sequence[int], period: int) -> list[int]:
    """The same phases, each op in the first turn that its data allow."""
    phase = [s % period for s in start]
    seconds = ops.seconds
    stage = [0] * ops.count
    order = sorted(range(ops.count), key=lambda u: start[u])
    moved = True
    while moved:
        moved = False
        for u in order:
            end = phase[u] + seconds[u]
            for v, k in ops.out[u]:
                least = stage[u] - k - (phase[v] - end) // period
                if least > stage[v]:
                    stage[v] = least
                    moved = True
    return [p + t * period for p, t in zip(phase, stage, strict=True)]


def _move(
    ops: Ops, start: list[int], period: int, after: Sequence[Sequence[tuple[int, int]]], before: Sequence[Sequence[tuple[int, int]]], grain: int
) -> None:
    """Move every op once, the last first, by multiples of `grain`."""
    seconds, nbytes = ops.seconds, ops.core.nbytes
    made = [0] * ops.count
    read: list[list[int]] = [[] for _ in range(ops.count)]
    for i, (maker, w, _, uses) in enumerate(ops.replicas):
        if uses:
            made[maker] += nbytes[w]
        for v, _ in uses:
            if i not in read[v]:
                read[v].append(i)
    for u in sorted(range(ops.count), key=lambda u: -start[u]):
        here, w = start[u], seconds[u]
        last = 0
        for i in read[u]:
            uses = ops.replicas[i][3]
            mine = max(here + w + k * period for v, k in uses if v == u)
            if all(start[v] + seconds[v] + k * period <= mine for v, k in uses):
                last += nbytes[ops.replicas[i][1]]
        if made[u] >= last:
            room = min((start[v] + k * period - w - here for v, k in after[u] if v != u), default=0)
            start[u] += room // grain * grain
        else:
            room = min((here - start[p] - seconds[p] + k * period for p, k in before[u] if p != u), default=0)
            start[u] -= room // grain * grain
