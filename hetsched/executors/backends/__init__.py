"""The backends: one file per kind of device, whose name is the kind. Each has `find() -> Found`, and is loaded only when machines are looked for.

A backend whose library or driver is absent finds nothing; it never makes an import fail.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass

from hetsched.machine import HOST, Device, Link, Machine, MemoryNode, Resource
from hetsched.machine.calibration import applied, load
from hetsched.machine.machine import HERE
from hetsched.machine.watts import of_environment


@dataclass(frozen=True)
class Found:
    """What a backend found: devices, the memory nodes and links they bring, the resources they share; notes on what is there but cannot be used."""

    devices: tuple[Device, ...] = ()
    memories: tuple[MemoryNode, ...] = ()
    links: tuple[Link, ...] = ()
    resources: tuple[Resource, ...] = ()
    notes: tuple[str, ...] = ()


def kinds() -> list[str]:
    """The kinds of device there are backends for, the host's first."""
    names = sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_"))
    return sorted(names, key=lambda name: name != "cpu")


def here() -> Machine:
    """The machine this runs on: what every backend finds, with the figures of devices that were calibrated (`hetsched calibrate`), and the watts of

    `HETSCHED_WATTS`.
    """
    devices: dict[str, Device] = {}
    memories: dict[str, MemoryNode] = {}
    links: dict[tuple[str, str], Link] = {}
    resources: dict[str, Resource] = {}
    for kind in kinds():
        found: Found = importlib.import_module(f"{__name__}.{kind}").find()
        devices.update((d.id, d) for d in found.devices)
        memories.update((m.name, m) for m in found.memories)
        links.update(((x.src, x.dst), x) for x in found.links)
        resources.update((r.name, r) for r in found.resources)
    memories.setdefault(HOST, MemoryNode(HOST))
    links.update(((x.src, x.dst), x) for x in through_host(links.values(), memories))
    machine = Machine(tuple(devices.values()), tuple(links.values()), tuple(memories.values()), tuple(resources.values()), name=HERE)
    return of_environment(applied(machine, {d.id: c for d in machine.devices if (c := load(d)) is not None}))


def notes() -> list[str]:
    """What backends have to say of devices that cannot be used, with the way out."""
    return [note for kind in kinds() for note in importlib.import_module(f"{__name__}.{kind}").find().notes]


def through_host(links: Iterable[Link], nodes: Iterable[str]) -> list[Link]:
    """The links that lack between memory nodes of different backends: the bytes go to the host and from there, one after the other."""
    known = {(x.src, x.dst): x for x in links}
    out = []
    nodes = list(nodes)
    for a in nodes:
        for b in nodes:
            if a != b and HOST not in (a, b) and (a, b) not in known and (a, HOST) in known and (HOST, b) in known:
                down, up = known[a, HOST], known[HOST, b]
                rate = 1 / (1 / down.bytes_per_second + 1 / up.bytes_per_second)
                out.append(Link(a, b, down.latency_seconds + up.latency_seconds, rate))
    return out


Machine.discover = here
