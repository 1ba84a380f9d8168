"""The machine: devices, memory nodes, links between them, resources they share. Plain frozen data, found here or described in YAML."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, NamedTuple, TypeAlias

from hetsched.errors import MachineError, did_you_mean

HOST = "host"
# The name of the machine that the backends find.
HERE = "here"
# Keys and positions from the top of a description: ("devices", 0, "memory").
Where: TypeAlias = tuple[str | int, ...]


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
    cache_nbytes: of the last cache, which its lanes share, or of each of `caches` equal ones, over which they are spread; None: not known.
    lane_cache_nbytes: of the largest cache that each lane has for itself, smaller than that; None: not known.
    launch_seconds: the fixed cost of a launch. replay_seconds: of one in the body of a loop, where the device takes its turns as graphs; None: the
    same. crossing_seconds: the cost of handing work from one lane to another.
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
    caches: int = 1
    lane_cache_nbytes: int | None = None
    replay_seconds: float | None = None
    fingerprint: str = ""
    stands_for: str = ""

    def starting_seconds(self, in_loop: bool) -> float:
        """The fixed cost of a launch: `replay_seconds`, if stated, in the body of a loop."""
        if not in_loop or self.replay_seconds is None:
            return self.launch_seconds
        return min(self.replay_seconds, self.launch_seconds)

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


_DEVICE_AMOUNTS = (
    "io_lanes", "launch_seconds", "replay_seconds", "crossing_seconds", "busy_watts", "idle_watts", "price_per_hour", "cache_nbytes",
    "lane_cache_nbytes",
)  # fmt: skip


class Fault(NamedTuple):
    """What is wrong between the parts of a machine. where: in a description, of what is to be corrected."""

    where: Where
    text: str


def faults(devices: tuple[Device, ...], links: tuple[Link, ...], memories: tuple[MemoryNode, ...], resources: tuple[Resource, ...]) -> list[Fault]:
    """All that keeps these from being a machine: names that are there twice, names of nothing, memory nodes in use without links."""
    names, known = {m.name for m in memories}, {r.name for r in resources}
    out = [] if devices else [Fault(("devices",), "a machine needs at least one device")]
    if HOST not in names:
        out.append(Fault(("memories",), f"a machine needs the memory node {HOST!r}"))
    out += _twice("devices", "id", "device", [d.id for d in devices])
    out += _twice("memories", "name", "memory node", [m.name for m in memories])
    out += _twice("resources", "name", "resource", [r.name for r in resources])
    out += _twice("links", "src", "link", [x.id for x in links])
    for i, d in enumerate(devices):
        if d.lanes < 1:
            out.append(Fault(("devices", i, "lanes"), f"device {d.id!r} needs at least 1 lane, got {d.lanes}"))
        out += _wrong_figures(("devices", i), f"device {d.id!r}", d, ("bytes_per_second",), _DEVICE_AMOUNTS)
        for dtype, speed in d.flops_per_second.items():
            if not speed > 0:
                told = f"device {d.id!r}: flops_per_second of {dtype} must be above 0, got {speed}"
                out.append(Fault(("devices", i, "flops_per_second", dtype), told))
        if d.memory not in names:
            out.append(Fault(("devices", i, "memory"), f"device {d.id!r}: no memory node {d.memory!r}{did_you_mean(d.memory, names)}"))
        for r in d.uses:
            if r not in known:
                tail = did_you_mean(r, known) or "; describe it under `resources`"
                out.append(Fault(("devices", i, "uses", r), f"device {d.id!r}: no resource {r!r}{tail}"))
    for i, x in enumerate(links):
        for end, n in (("src", x.src), ("dst", x.dst)):
            if n not in names:
                out.append(Fault(("links", i, end), f"link {x.id}: no memory node {n!r}{did_you_mean(n, names)}"))
        out += _wrong_figures(("links", i), f"link {x.id}", x, ("bytes_per_second",), ("latency_seconds",))
    out += _missing_links(devices, links, names)
    return out


def _wrong_figures(where: Where, what: str, of: Device | Link, speeds: tuple[str, ...], amounts: tuple[str, ...]) -> Iterator[Fault]:
    """Speeds that are not above 0, and amounts below it (NaN is neither)."""
    for key in speeds:
        if not getattr(of, key) > 0:
            yield Fault((*where, key), f"{what}: {key} must be above 0, got {getattr(of, key)}")
    for key in amounts:
        if getattr(of, key) is not None and not getattr(of, key) >= 0:
            yield Fault((*where, key), f"{what}: {key} must be at least 0, got {getattr(of, key)}")


def _twice(section: str, key: str, noun: str, names: list[str]) -> Iterator[Fault]:
    first: set[str] = set()
    for i, name in enumerate(names):
        if name in first:
            yield Fault((section, i, key), f"{noun} {name!r} is described twice; remove one{'' if noun == 'link' else ', or rename it'}")
        first.add(name)


def _missing_links(devices: tuple[Device, ...], links: tuple[Link, ...], names: set[str]) -> Iterator[Fault]:
    """Copies go between any two memory nodes that are in use."""
    have = {(x.src, x.dst) for x in links}
    user: dict[str, Where] = {HOST: ("devices",)} if HOST in names else {}
    for i, d in enumerate(devices):
        if d.memory in names:
            user.setdefault(d.memory, ("devices", i, "memory"))
    for a in sorted(user):
        for b in sorted(user):
            if a != b and (a, b) not in have:
                yield Fault(user[b if a == HOST else a], f"no link from {a!r} to {b!r}; describe one")


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

    discover: ClassVar[Callable[..., Machine] | None] = None

    def __post_init__(self) -> None:
        found = faults(self.devices, self.links, self.memories, self.resources)
        if found:
            raise MachineError([fault.text for fault in found])

    @staticmethod
    def here(*named: str | tuple[str, ...]) -> Machine:
        """The machine this runs on, found by the backends (set by `hetsched.executors.backends` when it is imported).

        A card that CUDA and OpenCL offer is there once, as `cuda:0`. named: device patterns that are asked for (several: in order of preference);
        `opencl` or `opencl:0` brings its twin.
        """
        if Machine.discover is None:
            raise MachineError("no backend is loaded; take hetsched.Machine, or import hetsched.executors.backends, before Machine.here()")
        return Machine.discover(*named)

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
