"""The costed body of a loop, and a plan of its period: plain data. Times inside are whole nanoseconds, so that periods compare exactly.

The model is that of the loop bodies of `period-bench/1`: task t of every turn runs on one device and holds one of its lanes for
`durations[t][d]`; a value is copied at most once a turn to each other memory node with a reader; a link with a queue makes one copy at a time.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from hetsched.errors import FileError, PlacementError
from hetsched.placement.periods.native import Circles, Flat

NANOSECONDS = 1_000_000_000
# Two ends of a rounded copy may differ by this much of a nanosecond without meaning anything.
_SLACK = 1e-3


class CopyPath(NamedTuple):
    """A directed copy path between two memory nodes: seconds = latency + bytes / bandwidth.

    `engine` names the queue that its copies stand in (paths may share one); None: contention-free. `lane_of` is the device whose lane a copy
    holds instead of an engine: how handing a value from one CPU thread to another is booked.
    """

    src: int
    dst: int
    latency: float
    bandwidth: float = math.inf
    engine: int | None = None
    lane_of: int | None = None


class Edge(NamedTuple):
    """Task `reader` of turn i + distance reads `value` of turn i. An order-only edge has `value` -1 and waits for task `source`."""

    value: int
    source: int
    reader: int
    distance: int = 0


@dataclass(frozen=True)
class LoopProblem:
    """A body to be planned.

    durations: seconds of task t on device d; None: cannot. lanes, memory: of each device (memory nodes are numbered). nodes: how many memory
    nodes. links: copy paths. producer, nbytes: of each value (in a benchmark's body value u is that of task u). edges: who reads what, how many
    turns later. copy_seconds: of each value on each link, in place of its latency and bandwidth. holds: value -> (task, turns): a copy of the
    value has ended before the task runs `turns` turns later (which reuses its bytes). max_in_flight: turns alive at once, at most. limits: bytes
    of each memory node for the rings, None: unbounded.
    """

    durations: Sequence[Sequence[float | None]]
    lanes: Sequence[int]
    memory: Sequence[int]
    links: Sequence[CopyPath]
    producer: Sequence[int]
    nbytes: Sequence[int]
    edges: Sequence[Edge]
    nodes: int = 1
    copy_seconds: Sequence[Sequence[float]] | None = None
    holds: Mapping[int, Sequence[tuple[int, int]]] = field(default_factory=dict)
    max_in_flight: int | None = None
    limits: Sequence[int | None] = ()
    names: Sequence[str] = ()
    name: str = "body"


@dataclass(frozen=True)
class PeriodBound:
    """A lower bound on the period in seconds.

    kind "task": one task with state alone; "cycle": the tasks of `cycle` wait for each other over `distance` turns; "load": with `prices` (one a
    device, summing to 1) every task pays at least its cheapest price * duration / lanes, and the sum is the bound (duality of linear programs).
    """

    seconds: float
    kind: str
    cycle: tuple[int, ...] = ()
    distance: int = 0
    prices: tuple[float, ...] = ()


@dataclass(frozen=True)
class PeriodPlan:
    """One turn that repeats every `period` seconds. tasks: (device, start) of each. copies: (value, link, start). Starts may exceed the period."""

    period: float
    tasks: tuple[tuple[int, float], ...]
    copies: tuple[tuple[int, int, float], ...]
    bound: PeriodBound
    unroll: int = 1
    evaluations: int = 0
    notes: tuple[str, ...] = field(default=())

    @property
    def lower_bound(self) -> float:
        """Seconds; no plan of one turn has a shorter period."""
        return self.bound.seconds

    def document(self) -> dict[str, Any]:
        """The plan as `period-bench/1` writes it."""
        return {
            "period": self.period,
            "unroll": self.unroll,
            "tasks": [[d, s] for d, s in self.tasks],
            "copies": [[v, link, s] for v, link, s in self.copies],
        }


def whole(seconds: float) -> int:
    """Seconds as whole nanoseconds, rounded up: a plan never promises less than it was told."""
    return max(0, math.ceil(seconds * NANOSECONDS - _SLACK))


class Core:
    """A problem in the form that the search uses: nested lists of integers. Resources are the devices, then the queues of links.

    `circles`: machine code for what takes longest, where a search has found that it pays.
    """

    def __init__(self, problem: LoopProblem) -> None:
        self.problem = problem
        self.n, self.devices = len(problem.durations), len(problem.lanes)
        self.memory = list(problem.memory)
        self.durations = [[None if x is None else whole(x) for x in row] for row in problem.durations]
        self.allowed = [[d for d, x in enumerate(row) if x is not None] for row in self.durations]
        for t, row in enumerate(self.allowed):
            if not row:
                name = problem.names[t] if problem.names else t
                raise PlacementError(f"{problem.name}: task {name!r} runs on no device; give it a duration on one")
        self.capacity = list(problem.lanes)
        engines: dict[int, int] = {}
        self.link_resource = []
        for x in problem.links:
            if x.lane_of is not None:
                self.link_resource.append(x.lane_of)
            elif x.engine is None:
                self.link_resource.append(-1)
            else:
                if x.engine not in engines:
                    engines[x.engine] = len(self.capacity)
                    self.capacity.append(1)
                self.link_resource.append(engines[x.engine])
        self.resources = len(self.capacity)
        self.producer, self.nbytes = list(problem.producer), list(problem.nbytes)
        self.link_of = [[-1] * problem.nodes for _ in range(problem.nodes)]
        for i, x in enumerate(problem.links):
            self.link_of[x.src][x.dst] = i
        if problem.copy_seconds is not None:
            self.copy = [[whole(x) for x in row] for row in problem.copy_seconds]
        else:
            self.copy = [[whole(x.latency + b / x.bandwidth) for x in problem.links] for b in self.nbytes]
        self.readers: list[list[tuple[int, int]]] = [[] for _ in self.nbytes]
        self.orders: list[tuple[int, int, int]] = []
        for e in dict.fromkeys(problem.edges):
            if e.value >= 0:
                self.readers[e.value].append((e.reader, e.distance))
            else:
                self.orders.append((e.source, e.reader, e.distance))
        self.made: list[list[int]] = [[] for _ in range(self.n)]
        self.read: list[list[int]] = [[] for _ in range(self.n)]
        for w, t in enumerate(self.producer):
            if self.readers[w]:
                self.made[t].append(w)
            for r in dict.fromkeys(r for r, _ in self.readers[w]):
                self.read[r].append(w)
        # The arcs of each value whose readers are all in the memory node where it is made.
        self.near = [[(p, r, k) for r, k in row] for p, row in zip(self.producer, self.readers, strict=True)]
        self.circles: Circles | None = None
        self.task_arcs = [(self.producer[w], r, k) for w, row in enumerate(self.readers) for r, k in row] + self.orders


class Ops:
    """The ops of one turn under an assignment: the tasks, then one copy per (value, memory node with a reader). `arcs`: (u, v, distance)."""

    def __init__(self, core: Core, assignment: Sequence[int]) -> None:
        self.core, self.assignment = core, list(assignment)
        memory, link_of = core.memory, core.link_of
        self.seconds: list[int] = [row[d] for row, d in zip(core.durations, assignment, strict=True)]  # type: ignore[misc]
        self.resource = list(assignment)
        self.copies: list[tuple[int, int]] = []
        self.arcs: list[tuple[int, int, int]] = list(core.orders)
        arcs, holds = self.arcs, core.problem.holds
        node_of = [memory[d] for d in assignment]
        for w, (p, readers, near) in enumerate(zip(core.producer, core.readers, core.near, strict=True)):
            home = node_of[p]
            for r, _ in readers:
                if node_of[r] != home:
                    break
            else:
                arcs += near
                continue
            away: dict[int, int] = {}
            for r, k in readers:
                node = node_of[r]
                if node == home:
                    arcs.append((p, r, k))
                    continue
                copy = away.get(node, -1)
                if copy < 0:
                    link = link_of[home][node]
                    copy = away[node] = core.n + len(self.copies)
                    self.copies.append((w, link))
                    self.seconds.append(core.copy[w][link])
                    self.resource.append(core.link_resource[link])
                    arcs.append((p, copy, 0))
                    if w in holds:
                        arcs += [(copy, t, turns) for t, turns in holds[w]]
                arcs.append((copy, r, k))
        self.count = len(self.seconds)
        self.out: list[list[tuple[int, int]]] = [[] for _ in range(self.count)]
        for u, v, k in arcs:
            self.out[u].append((v, k))

    @cached_property
    def replicas(self) -> list[tuple[int, int, int, list[tuple[int, int]]]]:
        """What occupies bytes: (op that makes it, value, memory node, readers as (op, turns))."""
        core, memory, out = self.core, self.core.memory, []
        copies = {(w, core.problem.links[link].dst): core.n + i for i, (w, link) in enumerate(self.copies)}
        for w, readers in enumerate(core.readers):
            p = core.producer[w]
            home = memory[self.assignment[p]]
            replica: dict[int, tuple[int, list[tuple[int, int]]]] = {home: (p, [])}
            for r, k in readers:
                node = memory[self.assignment[r]]
                if node not in replica:
                    replica[home][1].append((copies[w, node], 0))
                    replica[node] = (copies[w, node], [])
                replica[node][1].append((r, k))
            out += [(maker, w, node, uses) for node, (maker, uses) in replica.items()]
        return out

    @cached_property
    def into(self) -> list[list[tuple[int, int]]]:
        """Arcs to each op: (from, turns)."""
        into: list[list[tuple[int, int]]] = [[] for _ in range(self.count)]
        for u, v, k in self.arcs:
            into[v].append((u, k))
        return into

    @cached_property
    def flat(self) -> Flat:
        """Arcs from each op, for machine code."""
        return Flat(self.out, self.seconds)


def read_body(path: str | Path) -> LoopProblem:
    """The problem of a `period-bench/1` file (`.json` or `.json.gz`); `FileError` where it is not one."""
    path = Path(path)
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            document = json.load(file)
    except (OSError, ValueError, EOFError) as error:
        raise FileError(f"{path}: cannot be read as JSON: {error}") from error
    return problem_of(document, str(path))


def problem_of(document: Any, where: str = "body") -> LoopProblem:
    """The problem of a `period-bench/1` document; `FileError` names `where` and what is wrong."""
    if not isinstance(document, dict) or document.get("format") != "period-bench/1":
        found = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise FileError(f"{where}: expected a loop body of format 'period-bench/1', found {found!r}")
    try:
        durations = document["durations"]
        n = len(durations)
        nbytes = [0] * n
        edges = []
        for u, v, b, k in [(u, v, b, 0) for u, v, b in document["edges"]] + [tuple(c) for c in document.get("carried", [])]:
            nbytes[u] = max(nbytes[u], b)
            edges.append(Edge(u, u, v, k))
        if any(len(c) != 4 or c[3] < 1 for c in document.get("carried", [])):
            raise ValueError("a carried edge needs a distance of at least 1")
        links = [
            CopyPath(x["src"], x["dst"], x["latency"], x["bandwidth"], i if x.get("queue", True) else None) for i, x in enumerate(document["links"])
        ]
        return LoopProblem(
            durations=durations,
            lanes=[d["lanes"] for d in document["devices"]],
            memory=[d["mem"] for d in document["devices"]],
            links=links,
            producer=list(range(n)),
            nbytes=nbytes,
            edges=edges,
            nodes=len(document["mem_nodes"]),
            max_in_flight=document.get("max_in_flight"),
            limits=document.get("memory") or (),
            names=document.get("tasks") or (),
            name=document.get("name", where),
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise FileError(f"{where}: not a loop body of format 'period-bench/1': {error!r}") from error
