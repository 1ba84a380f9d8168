"""The problem that a policy solves, as plain arrays: tasks x choices, who waits for whom, where values lie, what lanes there are.

A *choice* is where and how a task may run: a device at a width, the io lanes of a device, or (for a loop) the lanes that the plan of its body
holds. Policies see numbers only; what a task cannot do is an infinite duration. `problem_of` makes the arrays of a graph on a machine,
`hetsched.placement.costed.planning` those of a costed graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hetsched.check.spans import can_run
from hetsched.errors import CommandLineError, OutOfMemoryError, PlacementError, did_you_mean
from hetsched.graph.alike import alike
from hetsched.graph.graph import Graph, Loop, Nested
from hetsched.graph.spec import Spec
from hetsched.machine import HOST, Machine
from hetsched.placement.constraints import allowed_devices
from hetsched.placement.costs.estimate import CostModel
from hetsched.timeline import Lane, Timeline

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]
PlanLoop: TypeAlias = Callable[..., Timeline]

ORDER_ONLY = -1.0
_PROBE_NBYTES = 1 << 26


class Choice(NamedTuple):
    """Where a task may run. `pool` numbers a set of like lanes; the launch takes `width` of them: one, or (wide) all.

    A loop's choice has device and pool -1: its lanes are `Problem.loop_lanes`.
    """

    device: int
    pool: int
    node: int
    width: int


class Pool(NamedTuple):
    """Like lanes of one device: `kind` "compute" or "io"."""

    device: int
    kind: str
    lanes: int


@dataclass(frozen=True, eq=False)
class Problem:
    """n tasks, C choices, M memory nodes.

    durations: float64[n, C] seconds; inf: cannot. order: int64[n], a topological order.
    pred_start, pred_task, pred_nbytes: CSR of the tasks that each task waits for; the bytes that come from them, `ORDER_ONLY` where none do.
    pred_largest: the bytes of the largest single value among them (values may travel side by side).
    latency, seconds_per_byte: float64[M, M], 0 on the diagonal. engines: int64[M, M] copies at a time, 0: any number.
    capacity: bytes of each memory node, None: unbounded. host: the node of inputs and outputs.
    resource_names, uses: what a launch takes of each resource that can run out, float64[C, R]; resource_capacity: float64[R].
    groups: task -> the tasks that must run on the same device (itself among them).
    graph, machine, costs, loops (task -> plan of its body): where the arrays come from; None and empty for a costed graph.
    """

    device_ids: tuple[str, ...]
    node_names: tuple[str, ...]
    choices: tuple[Choice, ...]
    pools: tuple[Pool, ...]
    durations: FloatArray
    order: IntArray
    pred_start: IntArray
    pred_task: IntArray
    pred_nbytes: FloatArray
    pred_largest: FloatArray
    latency: FloatArray
    seconds_per_byte: FloatArray
    engines: IntArray
    capacity: tuple[int | None, ...]
    host: int = 0
    resource_names: tuple[str, ...] = ()
    uses: FloatArray = field(default_factory=lambda: np.zeros((0, 0)))
    resource_capacity: FloatArray = field(default_factory=lambda: np.zeros(0))
    groups: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    graph: Graph | None = None
    machine: Machine | None = None
    costs: CostModel | None = None
    loops: Mapping[int, Timeline] = field(default_factory=dict)
    names: Sequence[str] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.durations)

    @property
    def is_costed(self) -> bool:
        """True for a costed graph: durations given, contention-free links, unbounded memory, nothing to execute."""
        return self.graph is None

    def name(self, task: int) -> str:
        """The task's name in messages."""
        return self.names[task] if len(self.names) else f"#{task}"

    @cached_property
    def nodes(self) -> IntArray:
        """int64[C]: the memory node of each choice."""
        return np.array([c.node for c in self.choices], dtype=np.int64)

    @cached_property
    def succ(self) -> tuple[IntArray, IntArray, FloatArray]:
        """CSR of the tasks that wait for each task: (starts, tasks, bytes)."""
        return transpose(len(self), self.pred_start, self.pred_task, self.pred_nbytes)

    def succ_of(self, edges: FloatArray) -> FloatArray:
        """Numbers of the rows of `pred_task`, in the order of `succ`."""
        return edges[np.argsort(self.pred_task, kind="stable")]

    @cached_property
    def mean_copy(self) -> tuple[float, float]:
        """(latency, seconds per byte) of a copy between two devices, averaged over all ordered pairs of different devices."""
        nodes = np.array([self.choices[self._choice_of_device[d]].node for d in range(len(self.device_ids))], dtype=np.int64)
        n = len(nodes)
        if n < 2:
            return 0.0, 0.0
        pairs = n * (n - 1)
        return (
            float(self.latency[np.ix_(nodes, nodes)].sum()) / pairs,
            float(self.seconds_per_byte[np.ix_(nodes, nodes)].sum()) / pairs,
        )

    @cached_property
    def _choice_of_device(self) -> dict[int, int]:
        out: dict[int, int] = {}
        for i, c in enumerate(self.choices):
            if c.device >= 0:
                out.setdefault(c.device, i)
        return out

    @cached_property
    def loop_lanes(self) -> dict[int, tuple[Lane, ...]]:
        """Loop or if -> every lane it holds: all compute lanes of each device that its bodies use, and what else they use."""
        out = {}
        for task, body in self.loops.items():
            lanes: dict[Lane, None] = {}
            machine = body.machine
            for lane in (x for plan in body.alternatives for span in (*plan.prologue, *plan.spans, *plan.epilogue) for x in span.lanes):
                if lane.kind == "compute":
                    lanes.update((Lane(lane.owner, i), None) for i in range(machine.device(lane.owner).lanes))
                lanes[lane] = None
            out[task] = tuple(sorted(lanes))
        return out

    @cached_property
    def memo(self) -> dict[str, Any]:
        """What policies have worked out about this problem, for the others of a portfolio."""
        return {}

    def copy_seconds(self, src: int, dst: int, nbytes: float) -> float:
        """Seconds of one copy from node `src` to `dst`, queues not counted; 0 within a node."""
        return 0.0 if src == dst else float(self.latency[src, dst] + nbytes * self.seconds_per_byte[src, dst])

    @property
    def has_wide(self) -> bool:
        """True if some task may be launched wide."""
        return any(c.width > 1 and bool(np.isfinite(self.durations[:, i]).any()) for i, c in enumerate(self.choices))

    def __repr__(self) -> str:
        return f"<Problem: {len(self)} tasks, {len(self.choices)} choices on {', '.join(self.device_ids)}>"


def transpose(n: int, start: IntArray, task: IntArray, nbytes: FloatArray) -> tuple[IntArray, IntArray, FloatArray]:
    """The CSR rows of the reversed edges."""
    owner = np.repeat(np.arange(n, dtype=np.int64), np.diff(start))
    by_source = np.argsort(task, kind="stable")
    out = np.concatenate(([0], np.cumsum(np.bincount(task, minlength=n)))).astype(np.int64)
    return out, owner[by_source], nbytes[by_source]


def problem_of(
    graph: Graph,
    machine: Machine,
    costs: CostModel,
    *,
    only: str | None = None,
    memory: Mapping[str, int] | None = None,
    plan_loop: PlanLoop | None = None,
) -> Problem:
    """The problem of placing `graph` on `machine`.

    only: a device pattern; tasks that have a kernel on a matching device are limited to such devices. memory: node -> bytes, instead of the
    machine's. plan_loop(loop, machine, costs, where=..., name=...): plans the body of a loop (see `placement.loops`).
    Raises `PlacementError` with every task that no device can run and every constraint that cannot hold.
    """
    node_names = tuple(m.name for m in machine.memories)
    node_of = {name: i for i, name in enumerate(node_names)}
    pools, choices = _choices(machine, node_of)
    loops = _plan_loops(graph, machine, costs, plan_loop)
    rows, row_of = _duration_rows(graph, machine, costs, choices, pools)
    resource_names, uses, resource_capacity = _resources(machine, choices, pools)
    # What takes more of a resource than there is can never be launched.
    rows[:, (uses > resource_capacity[None, :] * (1 + 1e-9)).any(axis=1)] = np.inf
    durations = rows[row_of]
    allowed, groups, notes = allowed_devices(graph, machine, _capable(graph, machine, rows, row_of, choices, loops), only)
    device_of_choice = np.array([c.device for c in choices], dtype=np.int64)
    others: dict[frozenset[int], Any] = {}  # devices -> the choices on others
    for task, devices in allowed.items():
        if devices not in others:
            others[devices] = ~np.isin(device_of_choice, sorted(devices))
        durations[task, others[devices]] = np.inf
    if loops:
        choices = (*choices, Choice(-1, -1, node_of[HOST], 1))
        durations = np.concatenate((durations, np.full((len(graph), 1), np.inf)), axis=1)
        for task, body in loops.items():
            durations[task] = np.inf
            durations[task, -1] = loop_seconds(body)
    latency, per_byte, engines = _links(machine, costs, node_of)
    if loops:
        uses = np.concatenate((uses, np.zeros((1, len(resource_names)))))
    pred_start, pred_task, pred_nbytes, pred_largest = _edges(graph)
    limits = limits_of(machine, memory)
    return Problem(
        device_ids=tuple(d.id for d in machine.devices),
        node_names=node_names,
        choices=choices,
        pools=pools,
        durations=durations,
        order=np.arange(len(graph), dtype=np.int64),
        pred_start=pred_start,
        pred_task=pred_task,
        pred_nbytes=pred_nbytes,
        pred_largest=pred_largest,
        latency=latency,
        seconds_per_byte=per_byte,
        engines=engines,
        capacity=tuple(limits.get(m.name, m.nbytes) for m in machine.memories),
        host=node_of[HOST],
        resource_names=resource_names,
        uses=uses,
        resource_capacity=resource_capacity,
        groups=groups,
        graph=graph,
        machine=machine,
        costs=costs,
        loops=loops,
        names=graph.task_names,
        notes=(*notes, *(f"{_kind(graph, t)} {graph.task_names[t]!r}: {note}" for t, note in _notes_of(loops) if note not in notes)),
    )


def limits_of(machine: Machine, memory: Mapping[str, int] | int | None) -> dict[str, int]:
    """Memory node -> bytes, from limits by memory node, by device or by a pattern of devices (`gpu`); a number alone is the host's limit.

    Where several name a node, the least counts. Raises `CommandLineError` for a name that means nothing, and for limits that are not above 0.
    """
    if memory is None:
        return {}
    given = memory if isinstance(memory, Mapping) else {HOST: memory}
    names = [m.name for m in machine.memories]
    out: dict[str, int] = {}
    for name, nbytes in given.items():
        nodes = [name] if name in names else list(dict.fromkeys(d.memory for d in machine.devices if d.matches(name)))
        if not nodes:
            known = sorted({*names, *(d.id for d in machine.devices)})
            raise CommandLineError(f"a memory limit names no memory node and no device: {name!r}{did_you_mean(name, known)}")
        if isinstance(nbytes, bool) or not isinstance(nbytes, int) or nbytes <= 0:
            raise CommandLineError(f"the memory limit of {name!r} is {nbytes!r}; give a number of bytes above 0")
        for node in nodes:
            out[node] = min(nbytes, out.get(node, nbytes))
    return out


def _notes_of(loops: Mapping[int, Timeline]) -> list[tuple[int, str]]:
    return [(t, note) for t, body in loops.items() for note in dict.fromkeys(note for plan in body.alternatives for note in plan.notes)]


def _kind(graph: Graph, task: int) -> str:
    return "loop" if isinstance(graph.task_ops[task], Loop) else "if"


def loop_seconds(body: Timeline) -> float:
    """Seconds of a whole loop: prologue, all turns, epilogue, and what beginning and ending it takes; of an if those of what is booked of it."""
    if body.otherwise is not None:
        return max(
            sum(share * (plan.makespan + plan.begin_seconds) for share, plan in body.booked), 1e-9
        )  # as a view in a loop: what takes no time has no order
    before = max((s.finish for s in body.prologue), default=0.0)
    after = max((s.finish for s in body.epilogue), default=0.0)
    return before + (body.makespan if body.turns else 0.0) + after + body.begin_seconds


def _choices(machine: Machine, node_of: Mapping[str, int]) -> tuple[tuple[Pool, ...], tuple[Choice, ...]]:
    pools: list[Pool] = []
    choices: list[Choice] = []
    for d, device in enumerate(machine.devices):
        node = node_of[device.memory]
        widths = (1, device.lanes) if device.lanes > 1 and device.lanes in device.widths else (1,)
        choices += [Choice(d, len(pools), node, w) for w in widths]
        pools.append(Pool(d, "compute", device.lanes))
        if device.io_lanes:
            choices.append(Choice(d, len(pools), node, 1))
            pools.append(Pool(d, "io", device.io_lanes))
    return tuple(pools), tuple(choices)


def _duration_rows(graph: Graph, machine: Machine, costs: CostModel, choices: Sequence[Choice], pools: Sequence[Pool]) -> tuple[FloatArray, IntArray]:
    """Durations of each kind of task (equal op, attributes and specs), and the kind of each task."""
    kind, first = alike(graph)
    rows = [_duration_row(graph, t, machine, costs, choices, pools) for t in first.tolist()]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(choices)), kind


def _duration_row(graph: Graph, task: int, machine: Machine, costs: CostModel, choices: Sequence[Choice], pools: Sequence[Pool]) -> list[float]:
    op = graph.task_ops[task]
    if isinstance(op, Nested):
        return [np.inf] * len(choices)
    able = [can_run(graph, task, device) for device in machine.devices]
    waits = op.waits and any(a and d.io_lanes for a, d in zip(able, machine.devices, strict=True))
    row: list[float] = []
    narrow = np.inf
    for choice in choices:
        suits = able[choice.device] and (pools[choice.pool].kind == "io") == waits
        if not suits or (choice.width > 1 and (op.view or op.elementwise)):
            row.append(np.inf)
            continue
        seconds = costs.launch(graph, task, machine.devices[choice.device], choice.width).seconds
        if choice.width == 1:
            narrow = seconds
        # A wide launch that is no faster only takes lanes from others.
        row.append(seconds if choice.width == 1 or seconds < narrow else np.inf)
    return row


def _capable(
    graph: Graph, machine: Machine, rows: FloatArray, row_of: IntArray, choices: Sequence[Choice], loops: Mapping[int, Timeline]
) -> dict[int, frozenset[int]]:
    """Task -> devices that can run it, for every task that is not a loop; an error that names all that have none."""
    by_row = [frozenset(choices[i].device for i in np.flatnonzero(np.isfinite(row)).tolist()) for row in rows]
    capable = dict(enumerate(map(by_row.__getitem__, row_of.tolist())))
    for task in loops:
        del capable[task]
    problems = []
    if not all(by_row) or loops:
        problems = [(_lacks(graph, t, machine), (graph.task_names[t],)) for t, devices in capable.items() if not devices]
    if problems:
        raise PlacementError("", problems)
    return capable


def _lacks(graph: Graph, task: int, machine: Machine) -> str:
    op = graph.task_ops[task]
    specs = [graph.value_specs[v] for v in (*graph.reads(task), *graph.writes(task))]
    capacity = {r.name: r.capacity for r in machine.resources}
    hosted = next((s for s in specs if not isinstance(s, Spec)), None)
    parts = []
    for device in machine.devices:
        short = next((r for r, amount in device.uses.items() if amount > capacity[r]), None)
        if short is not None:
            parts.append(f"a lane of {device.id} takes {device.uses[short]:g} of {short}, the machine has {capacity[short]:g}")
        elif hosted is not None and device.memory != HOST:
            parts.append(f"{device.id} cannot hold {hosted!r}, which lives on the host")
        else:
            have = ", ".join(sorted(op.kernels)) if not isinstance(op, Nested) else ""
            parts.append(f"{device.id} speaks {', '.join(device.languages) or 'no language'}, the op has kernels for {have or 'nothing'}")
    return f"task {graph.task_names[task]!r} ({op.name}): no device can run it: {'; '.join(parts)}"


def _plan_loops(graph: Graph, machine: Machine, costs: CostModel, plan_loop: PlanLoop | None) -> dict[int, Timeline]:
    out = {}
    for task, op in enumerate(graph.task_ops) if graph.has_loops else ():
        if isinstance(op, Nested):
            if plan_loop is None:
                raise PlacementError(f"task {graph.task_names[task]!r} is a loop or an if; give problem_of(plan_loop=...) what plans its body")
            name = graph.task_names[task]
            try:
                own = {"where": graph.where[task]} if task in graph.where else {}  # else what holds around it
                out[task] = plan_loop(op, machine, costs, name=name, **own)
            except OutOfMemoryError as error:
                error.task = name  # of a loop in a loop the outer one: whoever asked knows of no other
                raise
    return out


def _links(machine: Machine, costs: CostModel, node_of: Mapping[str, int]) -> tuple[FloatArray, FloatArray, IntArray]:
    """Copies as latency + bytes * seconds_per_byte: the line through two answers of the cost model, so that plans and bounds mean the same."""
    m = len(node_of)
    latency, per_byte = np.full((m, m), np.inf), np.full((m, m), np.inf)
    np.fill_diagonal(latency, 0.0)
    np.fill_diagonal(per_byte, 0.0)
    engines = np.zeros((m, m), dtype=np.int64)
    for link in machine.links:
        a, b = node_of[link.src], node_of[link.dst]
        if a != b:
            latency[a, b] = costs.copy(0, link).seconds
            per_byte[a, b] = max(0.0, costs.copy(_PROBE_NBYTES, link).seconds - latency[a, b]) / _PROBE_NBYTES
            engines[a, b] = link.engines
    return latency, per_byte, engines


def _resources(machine: Machine, choices: Sequence[Choice], pools: Sequence[Pool]) -> tuple[tuple[str, ...], FloatArray, FloatArray]:
    """Only the resources that can run out: all lanes busy at once would take more than there is."""
    scarce = [r for r in machine.resources if sum(d.lanes * d.uses.get(r.name, 0.0) for d in machine.devices) > r.capacity]
    uses = np.zeros((len(choices), len(scarce)))
    for i, choice in enumerate(choices):
        if choice.device >= 0 and pools[choice.pool].kind == "compute":
            uses[i] = [choice.width * machine.devices[choice.device].uses.get(r.name, 0.0) for r in scarce]
    return tuple(r.name for r in scarce), uses, np.array([r.capacity for r in scarce])


def _edges(graph: Graph) -> tuple[IntArray, IntArray, FloatArray, FloatArray]:
    """Each pair (predecessor, task) once, with the bytes of the distinct values between them and of the largest one."""
    n, values = len(graph), max(len(graph.value_specs), 1)
    reader = np.repeat(np.arange(n, dtype=np.int64), np.diff(graph.input_start))
    uses = np.unique(reader * values + graph.input_values)
    used = uses % values
    producer = graph.value_task[used]
    data = producer >= 0
    pairs = (uses[data] // values) * n + producer[data]
    nbytes = graph.value_nbytes[used[data]].astype(np.float64)
    if graph.after:
        order = np.array([t * n + before for before, t in graph.after], dtype=np.int64)
        pairs = np.concatenate((pairs, order))
        nbytes = np.concatenate((nbytes, np.zeros(len(order))))
    if not len(pairs):
        return np.zeros(n + 1, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0)
    has_data = np.arange(len(pairs)) < int(data.sum())
    unique, inverse = np.unique(pairs, return_inverse=True)
    inverse = inverse.reshape(-1)
    total = np.bincount(inverse, nbytes, minlength=len(unique))
    total[np.bincount(inverse, has_data, minlength=len(unique)) == 0] = ORDER_ONLY
    start = np.concatenate(([0], np.cumsum(np.bincount(unique // n, minlength=n)))).astype(np.int64)
    largest = np.zeros(len(unique))
    np.maximum.at(largest, inverse, nbytes)
    largest[total == ORDER_ONLY] = ORDER_ONLY
    return start, unique % n, np.asarray(total, dtype=np.float64), largest
