"""Which devices a plan may use: sets of devices worth planning for by themselves, and the problem and the machine without the others.

A device that is not used costs no price and, where it is off then, no idle watts; where copies are dear, a plan for fewer devices may even be faster.
What the user said about devices is settled on the whole machine first: a preference is never traded for an objective.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import combinations

import numpy as np

from hetsched.graph.graph import Nested, Where
from hetsched.machine import HOST, Machine
from hetsched.placement.problem import Problem, loop_seconds
from hetsched.timeline import Launch, Timeline

Devices = frozenset[int]

# At most this many sets are planned for.
MOST = 16


def device_subsets(problem: Problem) -> list[Devices]:
    """Sets of devices (by number) on which every task that is no loop can run, all devices first. Of like devices only their number counts."""
    machine = problem.machine
    assert machine is not None
    n = len(machine.devices)
    everything = frozenset(range(n))
    kinds = _kinds(problem, machine)
    able = _able(problem)
    out: dict[tuple[tuple[int, int], ...], Devices] = {}
    for devices in _sets(n):
        key = tuple(sorted(Counter(kinds[d] for d in devices).items()))
        if key not in out and (devices == everything or all(devices & row for row in able)):
            out[key] = devices
        if len(out) == MOST:
            break
    return list(out.values())


def _sets(n: int) -> Iterator[Devices]:
    """All, then every other set for few devices; for many those of one, of two, and those that lack one or two."""
    yield frozenset(range(n))
    for size in range(1, n) if n <= 5 else (1, n - 1, 2, n - 2):
        yield from map(frozenset, combinations(range(n), size))


def _able(problem: Problem) -> set[Devices]:
    """The sets of devices that single tasks can run on, loops left out."""
    device = np.array([c.device for c in problem.choices], dtype=np.int64)
    rows = np.isfinite(problem.durations) & (device >= 0)
    return {frozenset(device[row].tolist()) for row in np.unique(rows, axis=0) if row.any()}


def _kinds(problem: Problem, machine: Machine) -> list[int]:
    """A number for each device, equal for devices that are alike in all but their name. All differ where some task names a device."""
    assert problem.graph is not None
    if any(":" in p for where in _wheres(problem) for p in (*where.allow, *where.exclude)):
        return list(range(len(machine.devices)))
    seen: dict[object, int] = {}
    out = []
    for device in machine.devices:
        ends = sorted(
            (x.src == device.memory, HOST in (x.src, x.dst), x.latency_seconds, x.bytes_per_second, x.engines)
            for x in machine.links
            if device.memory in (x.src, x.dst)
        )
        capacity = machine.memory(device.memory).nbytes
        shared = device.memory if sum(d.memory == device.memory for d in machine.devices) > 1 or device.memory == HOST else ""
        like = replace(device, id="", memory=shared)
        out.append(seen.setdefault(repr((like, ends, capacity)), len(seen)))
    return out


def _wheres(problem: Problem) -> Iterator[Where]:
    """Every constraint of the graph and of the bodies of its loops."""
    waiting = [problem.graph]
    while waiting:
        graph = waiting.pop()
        if graph is not None:
            yield from graph.where.values()
            waiting += [part for op in graph.task_ops if isinstance(op, Nested) for part in op.parts.values()]


def limited(problem: Problem, devices: Devices, bodies: Mapping[int, Timeline]) -> Problem:
    """The problem with only these devices, and these plans of its loops."""
    device = np.array([c.device for c in problem.choices], dtype=np.int64)
    durations = problem.durations.copy()
    durations[:, (device >= 0) & ~np.isin(device, sorted(devices))] = np.inf
    for task, body in bodies.items():
        durations[task, -1] = loop_seconds(body)
    return replace(problem, durations=durations, loops=dict(bodies))


def part_of(machine: Machine, devices: Devices) -> Machine:
    """The machine with only these devices; memories, links and resources are all there."""
    return replace(machine, devices=tuple(d for i, d in enumerate(machine.devices) if i in devices))


def on_whole(body: Timeline, machine: Machine, whole: Timeline) -> Timeline:
    """The plan of a body made for a part of `machine`, as a plan for all of it; its lower bound is that of `whole`, made for all of it."""
    loops = {t: on_whole(inner, machine, whole.loops[t]) if t in whole.loops else inner for t, inner in body.loops.items()}
    other = body.otherwise
    if other is not None and whole.otherwise is not None:
        other = on_whole(other, machine, whole.otherwise)
    return replace(body, machine=machine, loops=loops, bound=whole.bound, otherwise=other)


def obeys(body: Timeline, whole: Timeline, only: str | None, outer: Where | None) -> bool:
    """True if every task of a body meets its constraints as well as it does in the plan for the whole machine.

    `outer`: the constraint of the loop, `only`: the limit of the whole run.
    """
    met: dict[tuple[int, ...], tuple[int, ...]] = {}
    wanted: dict[tuple[int, ...], tuple[int, ...]] = {}
    for i, (mine, its) in enumerate(zip(body.alternatives, whole.alternatives, strict=True)):
        met |= _met(mine, only, outer, (-1 - i,))
        wanted |= _met(its, only, outer, (-1 - i,))
    return all(met[key] <= wanted[key] for key in wanted)


def _met(body: Timeline, only: str | None, outer: Where | None, path: tuple[int, ...] = ()) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Task (by its path through nested loops) -> how far its device is from what is asked for, 0 is best."""
    out: dict[tuple[int, ...], tuple[int, ...]] = {}
    for span in body.spans:
        if not isinstance(span.command, Launch):
            continue
        task = span.command.task
        if task in body.loops:
            for i, inner in enumerate(body.loops[task].alternatives):
                out.update(_met(inner, only, body.graph.where.get(task, outer), (*path, task, -1 - i)))
            continue
        device = body.machine.device(span.lanes[0].owner)
        far = [0 if only is None or device.matches(only) else 1]
        for where in (body.graph.where.get(task), outer):
            if where is not None:
                far.append(int(any(device.matches(p) for p in where.exclude)))
                far.append(next((i for i, p in enumerate(where.allow) if device.matches(p)), len(where.allow)))
        out[(*path, task)] = tuple(far)
    return out
