"""check_backend: one contract for every backend, ours and those that others add. Values, order, reuse of bytes, memory, errors, clocks, leaks.

check_backend("opencl")                                  # every device of that kind found here
check_backend(my_backend, my_machine, devices=["npu:0"])

A backend that passes can be driven by `hetsched.executors.live`. What it must offer is said there (`LiveDevice`, `Stream`, `Event`). A device without
streams, such as the CPU, is checked through whole runs alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from hetsched.errors import PlacementError, did_you_mean
from hetsched.executors import backends
from hetsched.machine import HOST, Device, Machine, MemoryNode

SKEW_SECONDS = 50e-6


@dataclass(eq=False)
class Bench:
    """What a check works on. graphs: random graphs; runs: short runs in which nothing may be left behind. figures: what checks have measured."""

    backend: Any
    machine: Machine
    device: Device
    graphs: int
    runs: int
    seed: int
    skew_seconds: float
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def has_streams(self) -> bool:
        """True for a device that is opened; False for one whose lanes are threads of this process."""
        return not self.device.shares_lanes


Check: TypeAlias = Callable[[Bench], Iterator[str]]


def checks() -> dict[str, Check]:
    """Every check by its name, the quick ones first."""
    from hetsched.testing import backend_runs, backend_streams

    return {**backend_streams.CHECKS, **backend_runs.CHECKS}


def check_backend(
    backend: Any,
    machine: Machine | None = None,
    *,
    devices: Sequence[str] | None = None,
    graphs: int = 25,
    runs: int = 1000,
    seed: int = 0,
    skew_seconds: float = SKEW_SECONDS,
    only: Sequence[str] | None = None,
) -> dict[str, dict[str, float]]:
    """Prove a backend; raises `AssertionError` with every problem, each with device and check. Gives device -> what was measured.

    backend: the name of one of ours (`"opencl"`) or of an entry point, or a module or object with `find()` and, for devices with streams,
    `open(device, nbytes)`.
    machine: where its devices are; where None, the host's processor and what `backend.find()` gives. devices: ids; left out, every device of the
    machine that is not the host's processor (that one too where there is no other).
    Raises `PlacementError` with the backend's notes where it finds no device here.

    - copies: bytes of every dtype arrive where they belong and nowhere else, from host arrays of any layout; parts share bytes.
    - launches: kernels read and write at their offsets, and nothing else changes.
    - order: commands of a stream in order, `wait` across streams, slots that are used again (ring buffers) only after their readers.
    - events: `on_done` once, `wait` and `span` when the work is done and not before; host arrays are kept for as long as they are needed.
    - clocks: spans follow each other, cover what they should, and lie in the host's window to `skew_seconds` (see `backend_streams`).
    - errors: bad kernels, arenas that cannot be had, arrays outside of them, copies between unequal arrays; the device works on after each.
    - gone: where the opened device has `lose()` (as if it were unplugged): all work ends with `DeviceGoneError`, nobody waits forever.
    - reopen: closed and opened again, and opened twice at a time.
    - values: random graphs (`graphs` of them) give what a plain loop gives, do what the plan says, in an order that it allows.
    - limits: no arena is larger than the memory node; what does not fit is refused before the device is opened.
    - failures: a task that fails on the device is named, ends the run, and leaves the device usable.
    - leaks: after `runs` short runs memory, objects, threads and open files are what they were.
    """
    if isinstance(backend, str):
        if backend not in backends.kinds():
            raise PlacementError(f"there is no backend {backend!r}{did_you_mean(backend, backends.kinds())}")
        backend = backends.backend_of(backend)
    machine = machine if machine is not None else _machine_of(backend)
    known = checks()
    for name in only or ():
        if name not in known:
            raise PlacementError(f"there is no check {name!r} of backends{did_you_mean(name, known)}")
    names = [d.id for d in machine.devices if not d.shares_lanes] or [machine.devices[0].id]
    problems: list[str] = []
    figures: dict[str, dict[str, float]] = {}
    for device in [machine.device(i) for i in devices or names]:
        bench = Bench(backend, machine, device, graphs, runs, seed, skew_seconds)
        for name in only or known:
            try:
                problems += [f"{device.id}, {name}: {problem}" for problem in known[name](bench)]
            except Exception as error:
                error.add_note(f"{device.id}, {name}")
                raise
        figures[device.id] = bench.figures
    assert not problems, "\n".join(problems)
    return figures


def _machine_of(backend: Any) -> Machine:
    """The host's processor and what the backend finds."""
    found: backends.Found = backend.find()
    if not found.devices:
        kind = str(getattr(backend, "__name__", type(backend).__name__)).rpartition(".")[2]
        raise PlacementError(f"the backend {kind} finds no device here: {'; '.join(found.notes) or 'it says nothing about why'}")
    if any(d.memory == HOST for d in found.devices):
        return Machine(found.devices, found.links, (*found.memories,), found.resources, name="checked")
    host = importlib.import_module("hetsched.executors.backends.cpu").find()
    resources = {r.name: r for r in (*host.resources, *found.resources)}
    memories = {m.name: m for m in (*host.memories, *found.memories)}
    return Machine((*host.devices, *found.devices), found.links, tuple(memories.values()), tuple(resources.values()), name="checked")


def small_box(device: Device, machine: Machine, nbytes: int | None) -> Machine:
    """`machine` cut down to its host and one device, whose memory node has `nbytes`."""
    host = next(d for d in machine.devices if d.memory == HOST)
    kept = {HOST, device.memory}
    memories = tuple(MemoryNode(m.name, nbytes if m.name == device.memory else m.nbytes) for m in machine.memories if m.name in kept)
    links = tuple(x for x in machine.links if x.src in kept and x.dst in kept)
    return Machine((host, device), links, memories, machine.resources, name="box")
