"""Machines put together of the catalog's devices: what a cloud rents, a lone device, and what a machine would be with other devices.

Two kinds of file, both YAML read like `described` does (units in the names, every figure with its source):

    hetsched_device: 1              # catalog/devices/NAME.yaml: one processor or accelerator
    hetsched_cloud: 1               # catalog/PROVIDER/TYPE.yaml: what is rented by the hour, by names of devices

Figures of a processor (`hardware: cpu`) are those of one core, watts included; figures of an accelerator are those of the whole of it. Peaks stand
as the vendor states them, so that a roofline over them never promises less than the hardware needs. In `float16` they are those of the matrix units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from hetsched.errors import MachineError, did_you_mean
from hetsched.machine.described import Amount, Bytes, Dated, Flops, Hardware, Language, Model, Name, Rate, validated
from hetsched.machine.machine import HOST, Device, Link, Machine, MemoryNode, Resource, Where

Count = Annotated[int, Field(ge=1, le=4096)]
# A copy between two devices that have no link of their own passes through the host.
MOST_ADDED = 64


class LinkPart(Model):
    """A copy path, the same in both directions."""

    latency_seconds: Amount
    bytes_per_second: Rate
    engines: Annotated[int, Field(ge=0)] = 1


class DevicePart(Dated):
    """A device of the catalog. lanes: cores of a processor, streams of an accelerator. nbytes: the memory of an accelerator.

    host_link: to the memory of the host. peer_link: to a device of the same name; where there is none, copies take the way of the host.
    """

    hetsched_device: Literal[1]
    name: Name
    kind: Name
    hardware: Hardware
    languages: tuple[Language, ...]
    lanes: Count = 1
    io_lanes: Annotated[int, Field(ge=0)] = 0
    nbytes: Bytes | None = None
    flops_per_second: Flops
    bytes_per_second: Rate
    launch_seconds: Amount
    replay_seconds: Amount | None = None
    crossing_seconds: Amount = 0.0
    unified: bool = False
    busy_watts: Amount | None = None
    idle_watts: Amount | None = None
    price_per_hour: Amount | None = None
    host_link: LinkPart | None = None
    peer_link: LinkPart | None = None

    @property
    def is_processor(self) -> bool:
        """True where it computes in the memory of the host."""
        return self.hardware == "cpu"


class HostPart(Model):
    """What a cloud gives of a processor. threads_per_core: virtual CPUs that are one core."""

    device: Name
    vcpus: Count
    nbytes: Bytes
    threads_per_core: Annotated[int, Field(ge=1, le=8)] = 2


class AcceleratorPart(Model):
    """Accelerators of one name."""

    device: Name
    count: Count


class CloudPart(Dated):
    """What a cloud rents by the hour. price_per_hour: the list price on demand in the region, in USD."""

    hetsched_cloud: Literal[1]
    name: Name
    region: Name
    host: HostPart
    accelerators: tuple[AcceleratorPart, ...] = ()
    price_per_hour: Amount | None = None


def read_device(path: Path) -> DevicePart:
    """The device in a file of the catalog; `MachineError` with every mistake."""
    part = validated(path, DevicePart, _device_model_at)
    lacks = [] if part.is_processor else [key for key in ("nbytes", "host_link") if getattr(part, key) is None]
    if lacks:
        raise MachineError([f"{path}:1:1: an accelerator needs {key!r}; give it" for key in lacks])
    return part


def read_cloud(path: Path) -> CloudPart:
    """The cloud's machine in a file of the catalog; `MachineError` with every mistake."""
    return validated(path, CloudPart, _cloud_model_at)


def host_of(part: DevicePart, cores: int, nbytes: int | None, name: str) -> Machine:
    """A machine of `cores` cores of a processor. Idle watts are in proportion to the cores."""
    idle = part.idle_watts * cores / part.lanes if part.idle_watts is not None else None
    device = Device(
        "cpu", part.kind, cores, part.io_lanes, HOST, part.name, part.hardware, part.languages, dict(part.flops_per_second), part.bytes_per_second,
        part.launch_seconds, part.crossing_seconds, True, (1, cores) if cores > 1 else (1,), {"cores": 1.0}, part.busy_watts, idle,
        part.price_per_hour,
    )  # fmt: skip
    return Machine((device,), (), (MemoryNode(HOST, nbytes),), (Resource("cores", float(cores)),), name)


def with_devices(machine: Machine, part: DevicePart, count: int) -> Machine:
    """`machine` and `count` more accelerators, numbered after those of their kind.

    Where the machine has a price for the whole and the device none of its own, the price of what comes out is not known: None.
    """
    if part.is_processor:
        raise MachineError(f"{part.name} is a processor, and a machine has one; add accelerators, or take the processor by --machine")
    if part.host_link is None or part.nbytes is None:
        raise MachineError(f"{part.name} states no memory or no link to the host")
    for _ in range(count):
        taken = {d.id for d in machine.devices} | {m.name for m in machine.memories}
        name = next(f"{part.kind}:{n}" for n in range(len(taken) + 1) if f"{part.kind}:{n}" not in taken)
        device = Device(
            name, part.kind, part.lanes, part.io_lanes, name, part.name, part.hardware, part.languages, dict(part.flops_per_second),
            part.bytes_per_second, part.launch_seconds, part.crossing_seconds, busy_watts=part.busy_watts, idle_watts=part.idle_watts,
            price_per_hour=part.price_per_hour, unified=part.unified, replay_seconds=part.replay_seconds,
        )  # fmt: skip
        links = [_link(HOST, name, part.host_link), _link(name, HOST, part.host_link)]
        for node in machine.memories:
            if node.name != HOST and any(d.memory == node.name for d in machine.devices):
                links += _peers(machine, node.name, name, part)
        machine = replace(
            machine, devices=(*machine.devices, device), memories=(*machine.memories, MemoryNode(name, part.nbytes)), links=(*machine.links, *links)
        )
    known = part.price_per_hour is not None or machine.price_per_hour is None
    return machine if known else replace(machine, price_per_hour=None)


def without_devices(machine: Machine, pattern: str) -> Machine:
    """`machine` less the devices that `pattern` (`cuda:1`, `cuda`, `gpu`) means, their memories and links. A price for the whole stays."""
    gone = {d.id for d in machine.devices if d.matches(pattern)}
    if not gone:
        raise MachineError(f"no device {pattern!r} to leave out{did_you_mean(pattern, [d.id for d in machine.devices])}")
    devices = tuple(d for d in machine.devices if d.id not in gone)
    if not devices:
        raise MachineError(f"without {pattern!r} the machine {machine.name!r} has no device left")
    nodes = {HOST, *(d.memory for d in devices)} | {m.name for m in machine.memories if all(d.memory != m.name for d in machine.devices)}
    links = tuple(x for x in machine.links if x.src in nodes and x.dst in nodes)
    return replace(machine, devices=devices, memories=tuple(m for m in machine.memories if m.name in nodes), links=links)


def assembled(name: str, host: tuple[DevicePart, int, int | None], accelerators: Sequence[tuple[DevicePart, int]], price: float | None) -> Machine:
    """A machine by its parts: (processor, cores, bytes of memory), (accelerator, how many) and a price an hour for the whole."""
    machine = host_of(*host, name)
    for part, count in accelerators:
        machine = with_devices(machine, part, count)
    return replace(machine, price_per_hour=price)


def _link(src: str, dst: str, part: LinkPart) -> Link:
    return Link(src, dst, part.latency_seconds, part.bytes_per_second, part.engines)


def _peers(machine: Machine, other: str, name: str, part: DevicePart) -> list[Link]:
    """Links between a new device's memory and that of a device that is there."""
    assert part.host_link is not None
    like = any(d.memory == other and d.name == part.name for d in machine.devices)
    if like and part.peer_link is not None:
        return [_link(other, name, part.peer_link), _link(name, other, part.peer_link)]
    up, down = machine.link(other, HOST), machine.link(HOST, other)
    own = part.host_link
    return [
        Link(other, name, up.latency_seconds + own.latency_seconds, min(up.bytes_per_second, own.bytes_per_second)),
        Link(name, other, own.latency_seconds + down.latency_seconds, min(own.bytes_per_second, down.bytes_per_second)),
    ]


def _device_model_at(where: Where) -> type[BaseModel]:
    return LinkPart if len(where) > 1 and where[0] in ("host_link", "peer_link") else DevicePart


def _cloud_model_at(where: Where) -> type[BaseModel]:
    if len(where) > 1 and where[0] == "host":
        return HostPart
    return AcceleratorPart if len(where) > 1 and where[0] == "accelerators" else CloudPart
