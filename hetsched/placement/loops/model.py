"""A loop's body as a problem of periods, in two models: every thread of one device a place of its own, or all devices with their memory nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hetsched.graph.graph import Where
from hetsched.machine import HOST, Machine
from hetsched.placement.costs.estimate import CostModel
from hetsched.placement.loops.body import Body
from hetsched.placement.periods.problem import CopyPath, Edge, LoopProblem
from hetsched.placement.problem import Problem, loop_seconds

Seconds = NDArray[np.float64]
MANY = 1 << 20
# What handing a value to another thread costs a body of small tasks, over the bare wake-up that the device states.
_HANDOVER = 2.5
# Threads that are planned one by one at most; more of them only slow the search down.
_THREADS = 8


class Place(NamedTuple):
    """Where ops of the body may run: like lanes of a device from `first` on. `device` -1: the host itself, for what is only there."""

    device: int
    kind: str
    first: int
    lanes: int


@dataclass(frozen=True)
class Model:
    """A body as a problem of periods. Rows of the problem: the body's tasks, then sources (fresh inputs), then sinks (wanted on the host)."""

    problem: LoopProblem
    places: tuple[Place, ...]
    node_names: tuple[str, ...]
    values: tuple[int, ...]
    links: tuple[str, ...]
    threads: bool


def durations_of(body: Body, problem: Problem, machine: Machine, where: Where | None) -> Seconds:
    """float64[tasks, choices] seconds a turn (a task that runs every k turns counts for 1/k), inf where it may not run."""
    seconds = problem.durations.copy()
    devices = np.array([c.device for c in problem.choices])
    if where is not None:
        for t in range(len(seconds)):
            able = np.isfinite(seconds[t]) & (devices >= 0)
            kept = able & ~np.isin(devices, _matching(machine, where.exclude))
            kept = kept if kept.any() else able
            liked = next((m for p in where.allow if (m := kept & np.isin(devices, _matching(machine, (p,)))).any()), kept)
            seconds[t, able & ~liked] = np.inf
    for group in {id(g): g for g in problem.groups.values()}.values():
        totals = {d: float(sum(seconds[t, devices == d].min(initial=np.inf) for t in group)) for d in set(devices.tolist()) if d >= 0}
        best = min(totals, key=lambda d: (totals[d], d))
        for t in group:
            seconds[t, devices != best] = np.inf
    # Nothing takes less than a nanosecond, a view neither: what stands at one moment on a lane would have no order.
    turns: Seconds = np.maximum(seconds / np.array(body.every, dtype=np.float64).reshape(-1, 1), 1e-9)
    return turns


def _matching(machine: Machine, patterns: Iterable[str]) -> list[int]:
    return [i for i, d in enumerate(machine.devices) if any(d.matches(p) for p in patterns)]


def thread_model(body: Body, problem: Problem, seconds: Seconds, machine: Machine, device: int) -> Model | None:
    """Every thread of `device` a place of its own; None where some task cannot run on it."""
    compute, io = choices_of(problem, device)
    columns = [c for c in (compute, io) if c >= 0]
    if problem.loops or not np.isfinite(seconds[:, columns]).any(axis=1).all():
        return None
    d = machine.devices[device]
    threads = min(d.lanes, _THREADS)
    places = [Place(device, "compute", i, 1) for i in range(threads)]
    if d.io_lanes:
        places.append(Place(device, "io", 0, d.io_lanes))
    table = seconds[:, [compute] * threads + ([io] if d.io_lanes else [])]
    handover = max(d.crossing_seconds * _HANDOVER, 1e-9)
    m = len(places)
    links = [CopyPath(a, b, handover, lane_of=b) for a in range(m) for b in range(m) if a != b]
    edges, values, producer = _edges(body, {})
    return Model(
        LoopProblem(
            durations=_rows(table),
            lanes=[p.lanes for p in places],
            memory=list(range(m)),
            links=links,
            producer=producer,
            nbytes=[0] * len(values),
            edges=edges,
            nodes=m,
            names=body.graph.task_names,
            name=body.loop.name,
        ),
        tuple(places),
        (HOST,) * m,
        tuple(values),
        (),
        True,
    )


def device_model(body: Body, problem: Problem, seconds: Seconds, costs: CostModel, machine: Machine) -> Model:
    """All devices with their memory nodes and links. Threads of a device are alike; a lane that is a stream is a place of its own."""
    graph = body.graph
    places, columns, memory = [Place(-1, "host", 0, MANY)], [-1], [problem.host]
    for i, d in enumerate(machine.devices):
        compute, io = choices_of(problem, i)
        rows = [Place(i, "compute", 0, d.lanes)] if d.shares_lanes else [Place(i, "compute", lane, 1) for lane in range(d.lanes)]
        rows += [Place(i, "io", 0, d.io_lanes)] if d.io_lanes else []
        places += rows
        columns += [io if p.kind == "io" else compute for p in rows]
        memory += [problem.node_names.index(d.memory)] * len(rows)
    loops = np.full((len(graph), 1), np.inf)
    for t, plan in problem.loops.items():
        loops[t] = loop_seconds(plan) / body.every[t]
    table = np.concatenate((loops, seconds[:, columns[1:]]), axis=1)
    fresh = sorted({s for values in body.reads for v in values if (s := body.source(v)[0]) in body.fresh})
    source_of = {v: len(graph) + i for i, v in enumerate(fresh)}
    edges, values, producer = _edges(body, source_of)
    sinks = [body.source(v)[0] for v in body.wanted if body.producer[body.source(v)[0]] >= 0]
    place_of = {v: i for i, v in enumerate(values)}
    for i, v in enumerate(sinks):
        if v not in place_of:
            place_of[v] = len(values)
            values.append(v)
            producer.append(body.producer[v])
        edges.append(Edge(place_of[v], body.producer[v], len(graph) + len(fresh) + i))
    if body.loop.stop is not None:
        stop = body.source(graph.outputs[body.loop.stop])[0]
        last = len(graph) + len(fresh) + sinks.index(stop) if stop in sinks else -1
        edges += [Edge(-1, last, t, 1) for t in range(len(graph) + len(fresh)) if last >= 0]
    extra = np.full((len(fresh) + len(sinks), len(places)), np.inf)
    extra[:, 0] = 0.0
    links = [x for x in machine.links if x.src != x.dst]
    engines = {x.id: (i if x.engines else None) for i, x in enumerate(links)}
    nbytes = [int(graph.value_nbytes[v]) for v in values]
    holds: dict[int, list[tuple[int, int]]] = {}
    for i, v in enumerate(values):
        root, distance = body.root(v)
        if root in body.one_slot:
            holds[i] = [(body.one_slot[root], 1 - distance)]
    return Model(
        LoopProblem(
            durations=_rows(np.concatenate((table, extra))),
            lanes=[p.lanes for p in places],
            memory=memory,
            links=[
                CopyPath(problem.node_names.index(x.src), problem.node_names.index(x.dst), x.latency_seconds, x.bytes_per_second, engines[x.id])
                for x in links
            ],
            producer=producer,
            nbytes=nbytes,
            edges=edges,
            nodes=len(problem.node_names),
            copy_seconds=[[max(costs.copy(b, x).seconds, 1e-9) for x in links] for b in nbytes],
            holds=holds,
            names=[*graph.task_names, *(f"source {v}" for v in fresh), *(f"sink {v}" for v in sinks)],
            name=body.loop.name,
        ),
        tuple(places),
        problem.node_names,
        tuple(values),
        tuple(x.id for x in links),
        False,
    )


def choices_of(problem: Problem, device: int) -> tuple[int, int]:
    """(the choice of one compute lane of `device`, that of its io lanes or -1)."""
    compute = io = -1
    for i, c in enumerate(problem.choices):
        if c.device == device and c.width == 1:
            if problem.pools[c.pool].kind == "io":
                io = i
            else:
                compute = i
    return compute, io


def _rows(table: Seconds) -> list[list[float | None]]:
    return [[x if np.isfinite(x) else None for x in row] for row in table.tolist()]


def _edges(body: Body, source_of: Mapping[int, int]) -> tuple[list[Edge], list[int], list[int]]:
    """(edges, body value of each value of the problem, its producing row): data through carried inputs, and the body's orders."""
    place: dict[int, int] = {}
    values: list[int] = []
    producer: list[int] = []
    edges: list[Edge] = []
    for t, reads in enumerate(body.reads):
        for v in dict.fromkeys(reads):
            source, distance = body.source(v)
            row = body.producer[source] if body.producer[source] >= 0 else source_of.get(source, -1)
            if row < 0:
                continue
            if source not in place:
                place[source] = len(values)
                values.append(source)
                producer.append(row)
            edges.append(Edge(place[source], row, t, distance))
    edges += [Edge(-1, o.before, o.later, o.turns) for o in body.orders]
    if not source_of and body.loop.stop is not None:
        stop = body.producer[body.source(body.graph.outputs[body.loop.stop])[0]]
        edges += [Edge(-1, stop, t, 1) for t in range(len(body.graph)) if stop >= 0]
    return list(dict.fromkeys(edges)), values, producer
