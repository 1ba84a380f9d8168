"""The steps and arcs of a straight plan of plain launches, by arrays: what `program` works out span by span for all others.

A plan of thousands of tasks would make objects of each step and arc otherwise, and the interpreter looks through all there are whenever many are
made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from hetsched.executors.steps import Steps
from hetsched.executors.walk import Arc
from hetsched.machine import HOST
from hetsched.timeline import Free, Lane, Launch, Timeline

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
    """owner: the device of every launch. steps: in the order of their starts; arcs: between them, by the step before, each once.

    tasks: of the launches, as they stand in the steps. is_io: by step; None where no step is on an io lane.
    """

    owner: str
    steps: Steps
    arcs: Arcs
    tasks: IntArray
    is_io: NDArray[np.bool_] | None


def pairs_of(arcs: Sequence[Arc]) -> Iterable[tuple[int, int]]:
    """(before, later) of arcs within one turn, each once."""
    if isinstance(arcs, Arcs):
        return zip(arcs.before.tolist(), arcs.later.tolist(), strict=True)
    return dict.fromkeys((before, later) for before, later, _ in arcs)


def straight(plan: Timeline) -> Straight | None:
    """The steps of a straight plan whose spans are launches of ops, each on one lane of one CPU device; None for any other plan.

    A task joins its one predecessor where it is that one's only successor, on lanes of the same kind. 0.5 us a task.
    """
    owner = _owner(plan)
    if owner is None:
        return None
    lanes, commands, starts, finishes = _columns(plan)
    kinds = list(map(type, commands))
    launches = [i for i, kind in enumerate(kinds) if kind is Launch]
    if not launches or len(launches) + kinds.count(Free) != len(kinds):
        return None
    number = np.array(launches, dtype=np.int64)
    start, finish = np.array(starts)[number], np.array(finishes)[number]
    order = np.lexsort((finish, start))
    number, start, finish = number[order], start[order], finish[order]
    tasks = np.fromiter(map(itemgetter(0), map(commands.__getitem__, number.tolist())), np.int64, len(number))
    arcs = _arcs(plan, number, tasks)
    if arcs is None:
        return None
    before, later = arcs
    io = {id(on) for on in plan.lane_sets if on and on[0].kind != "compute"}
    is_io = np.fromiter((id(lanes[i]) in io for i in number.tolist()), np.bool_, len(number)) if io else None
    follows = _chained(before, later, is_io, len(number))
    seconds, first = finish - start, np.arange(len(number) + 1)
    if follows is not None:
        group = _groups(follows)
        sort = np.argsort(group, kind="stable")
        sizes = np.bincount(group)
        first = np.concatenate((first[:1], np.cumsum(sizes)))
        heads = sort[first[:-1]]
        number, tasks, start = number[sort], tasks[sort], start[heads]
        seconds = np.bincount(group, weights=seconds)
        is_io = is_io[heads] if is_io is not None else None
        before, later = group[before], group[later]
        before, later = _once(before[before != later], later[before != later], len(heads))
    return Straight(owner, Steps(plan.spans, number, first, start, seconds), Arcs(before, later), tasks, is_io)


def _owner(plan: Timeline) -> str | None:
    """The one device, of threads, of every lane of a plan without loops; None where there are others."""
    if plan.loop is not None or plan.loops or plan.prologue or any(len(on) > 1 for on in plan.lane_sets) or len(plan.owners) != 1:
        return None
    (owner,) = plan.owners
    device = next((d for d in plan.machine.devices if d.id == owner), None)
    return owner if device is not None and device.shares_lanes and device.memory == HOST else None


def _columns(plan: Timeline) -> tuple[tuple[tuple[Lane, ...], ...], tuple[Any, ...], tuple[float, ...], tuple[float, ...]]:
    """Lanes, commands, starts and finishes of the spans of a plan that has some."""
    lanes, commands, starts, finishes = zip(*plan.spans, strict=True)
    return lanes, commands, starts, finishes


def _arcs(plan: Timeline, number: IntArray, tasks: IntArray) -> tuple[IntArray, IntArray] | None:
    """Data, order and reuse, each once, as places among the launches; None where a value is read that no launch makes, or is made too late.

    number: the spans that are launches, by start; tasks: theirs.
    """
    graph = plan.graph
    at = np.full(len(graph), -1, dtype=np.int64)  # task -> its place
    at[tasks] = np.arange(len(tasks))
    producer = graph.value_task[graph.input_values]
    reader = np.repeat(at, np.diff(graph.input_start))
    made = (producer >= 0) & (reader >= 0)
    before, later = [at[producer[made]]], [reader[made]]
    if graph.after:
        order = at[np.array(graph.after, dtype=np.int64).reshape(-1, 2)]
        before.append(order[:, 0])
        later.append(order[:, 1])
    if plan.after:
        place = np.full(len(plan.spans), -1, dtype=np.int64)
        place[number] = np.arange(len(number))
        reuse = place[np.array([(a[0], a[1]) for a in plan.after], dtype=np.int64)]
        before.append(reuse[:, 0])
        later.append(reuse[:, 1])
    earlier, after = np.concatenate(before), np.concatenate(later)
    if len(earlier) and (int(earlier.min()) < 0 or int(after.min()) < 0 or (earlier >= after).any()):  # (spans of length 0 may share a start)
        return None
    return _once(earlier, after, len(number))


def _once(before: IntArray, later: IntArray, n: int) -> tuple[IntArray, IntArray]:
    pairs = np.sort(before * n + later)
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    return pairs // n, pairs % n


def _chained(before: IntArray, later: IntArray, is_io: NDArray[np.bool_] | None, n: int) -> IntArray | None:
    """For each launch the one that it follows in its step, itself where it follows none; None where no launch follows another."""
    alone = (np.bincount(later, minlength=n)[later] == 1) & (np.bincount(before, minlength=n)[before] == 1)
    if is_io is not None:
        alone &= is_io[before] == is_io[later]
    if not alone.any():
        return None
    out = np.arange(n)
    out[later[alone]] = before[alone]
    return out


def _groups(follows: IntArray) -> IntArray:
    """The step of each launch: steps are numbered as their first launches come."""
    head = follows
    while True:  # twice as far each time
        further = head[head]
        if (further == head).all():
            break
        head = further
    is_head = head == np.arange(len(head))
    return (np.cumsum(is_head) - 1)[head]


__all__ = ["Arcs", "Straight", "pairs_of", "straight"]
