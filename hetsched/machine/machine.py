"""The machine: devices, memory nodes, links between them, resources they share. Plain frozen data, found here or described in YAML."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

from hetsched.errors import MachineError, did_you_mean

HOST = "host"


@dataclass(frozen=True)
class MemoryNode:
    """A memory that devices share. `nbytes` is its capacity, None: unbounded."""

    name: str
    nbytes: int | None = None


@dataclass(frozen=True)
class Device:
    """A processor.

    id: its name in this machine (`cpu`, `cuda:0`). kind: the backend (`cpu`, `cuda`, `opencl`). hardware: `cpu`, `gpu` or `accelerator`.
    lanes: launches at a time (CPU threads, streams). io_lanes: launches that wait without computing (`Op.waits`), at a time.
    memory: its memory node. languages: what it runs, best first (see `Op.kernel_for`).
    flops_per_second: dtype name -> peak of ONE lane. bytes_per_second: memory bandwidth of one lane.
    cache_nbytes: of the last cache, which its lanes share; None: not known.
    launch_seconds: the fixed cost of a launch. crossing_seconds: the cost of handing work from one lane to another.
    shares_lanes: True where lanes are threads that share the device's tasks (the plan fixes device and priority, not the thread);
    False where a lane is a stream, walked in plan order. widths: launch widths (lanes taken at once) the device offers.
    uses: resource -> amount one busy lane takes. busy_watts per busy lane, idle_watts per device, price_per_hour per device.
    always_on: True where the device draws its idle watts during a run that does not use it; False where it is off then.
    fingerprint: what its measured costs are kept under: hardware, clock, driver, versions; "" for a described device, of which nothing is kept.
    stands_for: the kind of the device that an emulated one is in place of; patterns that name it mean this device.
    """

    id: str
    kind: str
    lanes: int = 1
    io_lanes: int = 0
    memory: str = HOST
    name: str = ""
    hardware: str = "cpu"
    languages: tuple[str, ...] = ("array",)
    flops_per_second: Mapping[str, float] = field(default_factory=dict)
    bytes_per_second: float = 10e9
    launch_seconds: float = 2e-6
    crossing_seconds: float = 0.0
    shares_lanes: bool = False
    widths: tuple[int, ...] = (1,)
    uses: Mapping[str, float] = field(default_factory=dict)
    busy_watts: float | None = None
    idle_watts: float | None = None
    price_per_hour: float | None = None
    unified: bool = False
    always_on: bool = True
    cache_nbytes: int | None = None
    fingerprint: str = ""
    stands_for: str = ""

    def matches(self, pattern: str) -> bool:
        """True if `pattern` (`any`, `cpu`, `gpu`, `cuda`, `cuda:0`) means this device. `gpu` is the hardware's type, never an OpenCL CPU device."""
        if pattern in ("any", self.id, self.kind) or (self.stands_for and pattern == self.stands_for):
            return True
        return pattern == "gpu" and self.hardware == "gpu"


@dataclass(frozen=True)
class Link:
    """A directed copy path. `engines`: copies at a time (each one a lane of the plan); 0: contention-free."""

    src: str
    dst: str
    latency_seconds: float = 10e-6
    bytes_per_second: float = 10e9
    engines: int = 1

    @property
    def id(self) -> str:
        return f"{self.src}->{self.dst}"

    def seconds(self, nbytes: float) -> float:
        """Seconds for a copy of `nbytes`: latency + bytes / bandwidth."""
        return self.latency_seconds + nbytes / self.bytes_per_second


@dataclass(frozen=True)
class Resource:
    """What devices may share (cores, memory bandwidth, power), with a capacity in its own unit."""

    name: str
    capacity: float


@dataclass(frozen=True)
class Machine:
    """Devices, memory nodes, links and resources. Host memory is always the node `host`, where inputs come from and outputs end.

    price_per_hour: of the whole machine, whatever a plan uses of it (a cloud's machine is rented whole); prices of devices come on top.
    """

    devices: tuple[Device, ...]
    links: tuple[Link, ...] = ()
    memories: tuple[MemoryNode, ...] = (MemoryNode(HOST),)
    resources: tuple[Resource, ...] = ()
    name: str = "machine"
    price_per_hour: float | None = None

    discover: ClassVar[Callable[[], Machine] | None] = None

    def __post_init__(self) -> None:
        problems = []
        names = [m.name for m in self.memories]
        ids = [d.id for d in self.devices]
        if not self.devices:
            problems.append("a machine needs at least one device")
        if HOST not in names:
            problems.append(f"a machine needs the memory node {HOST!r}")
        problems += [f"device {i!r} is described twice" for i in {i for i in ids if ids.count(i) > 1}]
        known = {r.name for r in self.resources}
        for d in self.devices:
            if d.lanes < 1:
                problems.append(f"device {d.id!r} needs at least 1 lane, got {d.lanes}")
            if d.memory not in names:
                problems.append(f"device {d.id!r}: no memory node {d.memory!r}{did_you_mean(d.memory, names)}")
            problems += [f"device {d.id!r}: no resource {r!r}{did_you_mean(r, known)}" for r in d.uses if r not in known]
        have = {(x.src, x.dst) for x in self.links}
        for x in self.links:
            problems += [f"link {x.id}: no memory node {n!r}{did_you_mean(n, names)}" for n in (x.src, x.dst) if n not in names]
            if x.bytes_per_second <= 0:
                problems.append(f"link {x.id}: bytes_per_second must be above 0, got {x.bytes_per_second}")
        used = {d.memory for d in self.devices} | {HOST}
        for a in sorted(used):
            problems += [f"no link from {a!r} to {b!r}; describe one" for b in sorted(used) if a != b and (a, b) not in have]
        if problems:
            raise MachineError("\n".join(problems))

    @staticmethod
    def here() -> Machine:
        """The machine this runs on, found by the backends (set by `hetsched.executors.backends` when it is imported)."""
        if Machine.discover is None:
            raise MachineError("no backend is loaded; import hetsched (or hetsched.executors.backends) before Machine.here()")
        return Machine.discover()

    def device(self, device_id: str) -> Device:
        """The device called `device_id`."""
        if device_id not in self._by_id:
            raise MachineError(f"no device {device_id!r}{did_you_mean(device_id, self._by_id)}")
        return self._by_id[device_id]

    def link(self, src: str, dst: str) -> Link:
        """The link from memory node `src` to `dst`."""
        return self._by_ends[src, dst]

    def memory(self, name: str) -> MemoryNode:
        """The memory node called `name`."""
        return next(m for m in self.memories if m.name == name)

    @cached_property
    def _by_id(self) -> dict[str, Device]:
        return {d.id: d for d in self.devices}

    @cached_property
    def _by_ends(self) -> dict[tuple[str, str], Link]:
        return {(x.src, x.dst): x for x in self.links}
