"""The arcs and chains of a straight plan of plain launches, by arrays: what `program` works out span by span for all others.

A plan of thousands of tasks would make objects of each arc otherwise, and the interpreter looks through all there are whenever many are made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from hetsched.executors.walk import Arc
from hetsched.machine import HOST
from hetsched.timeline import Free, Launch, Timeline

IntArray: TypeAlias = NDArray[np.int64]


class Arcs(Sequence[Arc]):
    """Arcs within one turn, as arrays; each is made when it is asked for."""

    def __init__(self, before: IntArray, later: IntArray) -> None:
        self.before, self.later = before, later

    def __len__(self) -> int:
        return len(self.before)

    @overload
    def __getitem__(self, at: int) -> Arc: ...

    @overload
    def __getitem__(self, at: slice) -> Arcs: ...

    def __getitem__(self, at: int | slice) -> Arc | Arcs:
        if isinstance(at, slice):
            return Arcs(self.before[at], self.later[at])
        return Arc(int(self.before[at]), int(self.later[at]))

    def __iter__(self) -> Iterator[Arc]:
        return map(Arc, self.before.tolist(), self.later.tolist())

    def __repr__(self) -> str:
        return f"<Arcs: {len(self)}>"


class Straight(NamedTuple):
    """owner: the device of every launch. groups: the spans of each step, in an order that keeps the arcs; arcs are between steps."""

    owner: str
    groups: list[list[int]]
    arcs: Arcs


def pairs_of(arcs: Sequence[Arc]) -> Iterable[tuple[int, int]]:
    """(before, later) of arcs within one turn, each once."""
    if isinstance(arcs, Arcs):
        return zip(arcs.before.tolist(), arcs.later.tolist(), strict=True)
    return dict.fromkeys((before, later) for before, later, _ in arcs)


def straight(plan: Timeline) -> Straight | None:
    """The steps of a straight plan whose spans are launches of ops, each on one lane of one CPU device; None for any other plan.

    A task joins its one predecessor where it is that one's only successor, on lanes of the same kind. 3 us a task.
    """
    launched = _launches(plan)
    if launched is None:
        return None
    owner, launches, kind = launched
    graph, spans = plan.graph, plan.spans
    at = np.full(len(graph), -1, dtype=np.int64)  # task -> its place among `launches`
    at[[spans[i][1].task for i in launches]] = np.arange(len(launches))  # type: ignore[union-attr]
    arcs = _arcs(plan, launches, at)
    if arcs is None:
        return None
    before, later = arcs
    start, finish = (np.array([spans[i][k] for i in launches]) for k in (2, 3))
    order = np.lexsort((finish, start))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    if (rank[before] >= rank[later]).any():
        return None  # spans of length 0 share a start
    follows = _chained(before, later, kind)
    number = np.array(launches, dtype=np.int64)
    if not (follows >= 0).any():
        return Straight(owner, [[i] for i in number[order].tolist()], Arcs(rank[before], rank[later]))
    groups: list[list[int]] = []
    group_of = [0] * len(launches)
    next_of, is_first = follows.tolist(), np.ones(len(order), np.bool_)
    is_first[follows[follows >= 0]] = False
    for head in order[is_first[order]].tolist():
        members, last = [launches[head]], head
        group_of[head] = len(groups)
        while (last := next_of[last]) >= 0:
            members.append(launches[last])
            group_of[last] = len(groups)
        groups.append(members)
    group = np.array(group_of, dtype=np.int64)
    before, later = group[before], group[later]
    return Straight(owner, groups, Arcs(*_once(before[before != later], later[before != later], len(groups))))


def _launches(plan: Timeline) -> tuple[str, list[int], IntArray] | None:
    """The one device, the spans that are launches, and for each whether it is on an io lane."""
    if plan.loop is not None or plan.loops or plan.prologue:
        return None
    spans = plan.spans
    kinds = [type(s[1]) for s in spans]
    launches = [i for i, kind in enumerate(kinds) if kind is Launch]
    if not launches or len(launches) + kinds.count(Free) != len(spans):
        return None
    lanes = [spans[i][0] for i in launches]
    rows = {id(on): on for on in lanes}  # spans of a lane share the object, mostly
    if any(len(on) != 1 for on in rows.values()):
        return None
    owners = {on[0].owner for on in rows.values()}
    device = next((d for d in plan.machine.devices if d.id in owners), None)
    if len(owners) != 1 or device is None or not device.shares_lanes or device.memory != HOST:
        return None
    is_io = {key: on[0].kind != "compute" for key, on in rows.items()}
    return device.id, launches, np.array([is_io[id(on)] for on in lanes], dtype=np.int64)


def _arcs(plan: Timeline, launches: list[int], at: IntArray) -> tuple[IntArray, IntArray] | None:
    """Data, order and reuse, each once, as places among the launches; None where a value is read that no launch makes."""
    graph = plan.graph
    producer = graph.value_task[graph.input_values]
    reader = np.repeat(at, np.diff(graph.input_start))
    made = (producer >= 0) & (reader >= 0)
    before, later = at[producer[made]], reader[made]
    if graph.after:
        order = at[np.array(graph.after, dtype=np.int64).reshape(-1, 2)]
        before, later = np.concatenate((before, order[:, 0])), np.concatenate((later, order[:, 1]))
    if plan.after:
        place = np.full(len(plan.spans), -1, dtype=np.int64)
        place[launches] = np.arange(len(launches))
        reuse = place[np.array([(a[0], a[1]) for a in plan.after], dtype=np.int64)]
        before, later = np.concatenate((before, reuse[:, 0])), np.concatenate((later, reuse[:, 1]))
    if len(before) and min(int(before.min()), int(later.min())) < 0:
        return None
    return _once(before, later, len(launches))


def _once(before: IntArray, later: IntArray, n: int) -> tuple[IntArray, IntArray]:
    pairs = np.sort(before * n + later)
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    return pairs // n, pairs % n


def _chained(before: IntArray, later: IntArray, kind: IntArray) -> IntArray:
    """For each launch the one that follows it in its step, -1 where none does."""
    n = len(kind)
    alone = (np.bincount(later, minlength=n)[later] == 1) & (np.bincount(before, minlength=n)[before] == 1) & (kind[before] == kind[later])
    out = np.full(n, -1, dtype=np.int64)
    out[before[alone]] = later[alone]
    return out


__all__ = ["Arcs", "Straight", "pairs_of", "straight"]
