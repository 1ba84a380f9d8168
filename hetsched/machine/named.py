"""Machines by name: described ones, those of clouds, lone devices; where each figure comes from; and `--what-if`.

The catalog is a folder, and the folder is the registry: `catalog/NAME.yaml` is a machine, `catalog/devices/NAME.yaml` a device,
`catalog/PROVIDER/TYPE.yaml` what a cloud rents, called `PROVIDER/TYPE`. Upper and lower case are the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from hetsched.errors import CommandLineError, MachineError, did_you_mean
from hetsched.machine.assembled import MOST_ADDED, CloudPart, DevicePart, assembled, read_cloud, read_device, with_devices, without_devices
from hetsched.machine.described import CATALOG, machine_named, machine_names, machine_sources, read_machine
from hetsched.machine.machine import Machine

UNVERIFIED = "unverified"
DEVICES = "devices"
# The host that a lone accelerator is put into.
HOST_DEVICE, HOST_CORES, HOST_NBYTES = "xeon-sapphire-rapids", 16, 256 << 30
_ASSUMED = "assumed: a host for a device that is named alone"
_CHANGE = re.compile(r"(?P<sign>[+-])(?P<name>[^:+\s][^+\s]*)")


class Source(NamedTuple):
    """Where a figure comes from. figure: `cuda:0.bytes_per_second`, `price_per_hour`. read: the day it was read, "" where there is none."""

    figure: str
    text: str
    read: str

    @property
    def is_verified(self) -> bool:
        """False where nobody has read the source."""
        return UNVERIFIED not in self.text


def cloud_names() -> list[str]:
    """What clouds rent, as `aws/p5.48xlarge`."""
    return sorted(f"{p.parent.name}/{p.stem}" for p in CATALOG.glob("*/*.yaml") if p.parent.name != DEVICES)


def device_names() -> list[str]:
    """The devices of the catalog."""
    return sorted(p.stem for p in (CATALOG / DEVICES).glob("*.yaml"))


def names() -> list[str]:
    """Every name that `find` knows."""
    return [*machine_names(), *cloud_names(), *device_names()]


def find(name: str) -> Machine:
    """The machine called `name`: a described one, what a cloud rents, or a device of the catalog in a host. `MachineError` with the nearest name."""
    known = _match(name, names())
    if known is None:
        raise MachineError(f"no machine {name!r} in the catalog{did_you_mean(name.lower(), names())}; or give the path of a .yaml file")
    if known in machine_names():
        return machine_named(known)
    if known in device_names():
        part = device_named(known)
        if part.is_processor:
            return assembled(known, (part, part.lanes, None), (), None)
        return assembled(known, (device_named(HOST_DEVICE), HOST_CORES, HOST_NBYTES), [(part, 1)], None)
    cloud = cloud_named(known)
    cores = max(1, cloud.host.vcpus // cloud.host.threads_per_core)
    accelerators = [(device_named(a.device), a.count) for a in cloud.accelerators]
    return assembled(cloud.name, (device_named(cloud.host.device), cores, cloud.host.nbytes), accelerators, cloud.price_per_hour)


@lru_cache(maxsize=64)
def device_named(name: str) -> DevicePart:
    """A device of the catalog; an error with the nearest name where there is none."""
    known = _match(name, device_names())
    if known is None:
        raise MachineError(f"no device {name!r} in the catalog{did_you_mean(name.lower(), device_names())}")
    return read_device(CATALOG / DEVICES / f"{known}.yaml")


def cloud_named(name: str) -> CloudPart:
    """What a cloud rents under `name`."""
    known = _match(name, cloud_names())
    if known is None:
        raise MachineError(f"no cloud rents {name!r}, as far as the catalog knows{did_you_mean(name.lower(), cloud_names())}")
    return read_cloud(CATALOG / f"{known}.yaml")


def what_if(machine: Machine, changes: Iterable[str]) -> Machine:
    """`machine` with devices of the catalog added (`+l4`, `+l4:2`: two of them) and its own left out (`-cuda:1`, `-gpu`), in that order.

    The price of a cloud's machine with a device more is not known, unless the device has a price of its own; with a device less it stays.
    """
    for change in changes:
        found = _CHANGE.fullmatch(change.strip())
        if found is None:
            raise CommandLineError(f"--what-if wants +NAME, +NAME:N or -DEVICE, got {change!r}; NAME is one of {', '.join(device_names())}")
        if found["sign"] == "-":
            machine = without_devices(machine, found["name"])
        else:
            name, colon, count = found["name"].partition(":")
            if colon and not (count.isdecimal() and 1 <= int(count) <= MOST_ADDED):
                raise CommandLineError(f"--what-if {change!r}: the number of devices must be from 1 to {MOST_ADDED}, got {count!r}")
            machine = with_devices(machine, device_named(name), int(count or 1))
        machine = replace(machine, name=f"{machine.name} {change.strip()}")
    return machine


def changes_of(name: str) -> tuple[str, list[str]]:
    """The name of a machine before `what_if`, and the changes that are in it."""
    words = name.split(" ")
    n = len(words)
    while n > 1 and _CHANGE.fullmatch(words[n - 1]):
        n -= 1
    return " ".join(words[:n]), words[n:]


def sources_of(name: str) -> list[Source]:
    """Where every figure of a machine of the catalog, or of a file, comes from. Of like devices the sources stand once, under the first."""
    known = _match(name, names())
    if known is None or known in machine_names():
        read, texts = machine_sources(CATALOG / f"{known}.yaml" if known is not None else Path(name))
        return [Source(figure, text, read) for figure, text in texts.items()]
    if known in device_names():
        part = device_named(known)
        if part.is_processor:
            return _of_device("cpu", part)
        host = [s._replace(text=f"{_ASSUMED}; {s.text}") for s in _of_device("cpu", device_named(HOST_DEVICE)) if s.figure != "cpu.lanes"]
        return [*host, Source("host.nbytes", _ASSUMED, ""), Source("cpu.lanes", _ASSUMED, ""), *_of_device(f"{part.kind}:0", part)]
    cloud = cloud_named(known)
    out = [Source(key, text, cloud.read or "") for key, text in cloud.sources.items()]
    host_part = device_named(cloud.host.device)
    out += [s for s in _of_device("cpu", host_part) if s.figure != "cpu.lanes"]
    seen: dict[str, int] = {}
    for accelerator in cloud.accelerators:
        part = device_named(accelerator.device)
        out += _of_device(f"{part.kind}:{seen.get(part.kind, 0)}", part)
        seen[part.kind] = seen.get(part.kind, 0) + accelerator.count
    return out


def read_or_find(text: str) -> Machine:
    """The machine in a file, where `text` is the path of one (it ends in .yaml or is there), else the machine of that name."""
    path = Path(text)
    return read_machine(path) if text.endswith((".yaml", ".yml")) or path.is_file() else find(text)


def _of_device(device: str, part: DevicePart) -> list[Source]:
    return [Source(f"{device}.{field}", text, part.read or "") for field, text in part.sources.items()]


def _match(name: str, known: list[str]) -> str | None:
    lower = name.lower()
    return next((k for k in known if k.lower() == lower), None)
