"""The backends: one file per kind of device, whose name is the kind. Each has `find() -> Found`, and is loaded only when machines are looked for.

A backend whose library or driver is absent finds nothing; it never makes an import fail. Outsiders add theirs by entry points of the group
`hetsched.backends`: kind of device = module (or object) with `find()` and, for devices with streams, `open(device, nbytes)`.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

from hetsched.errors import PlacementError, did_you_mean
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode, Resource
from hetsched.machine.calibration import applied, load
from hetsched.machine.machine import HERE
from hetsched.machine.watts import of_environment

_TWINS = "HETSCHED_OPENCL_TWINS"
_GENERAL = ("any", "gpu")  # patterns that name no kind of device


class Place(NamedTuple):
    """By which a card is known again that two drivers offer: its address on the machine's bus (None: not known) and the name that drivers give it."""

    address: str | None
    name: str
    driver: str


@dataclass(frozen=True)
class Found:
    """What a backend found: devices, the memory nodes and links they bring, the resources they share; notes on what is there but cannot be used.

    places: where cards are, by device.
    """

    devices: tuple[Device, ...] = ()
    memories: tuple[MemoryNode, ...] = ()
    links: tuple[Link, ...] = ()
    resources: tuple[Resource, ...] = ()
    notes: tuple[str, ...] = ()
    places: Mapping[str, Place] = field(default_factory=dict)


def kinds() -> list[str]:
    """The kinds of device there are backends for: the host's, ours, and those of entry points."""
    return [*_files(), *(name for name in _entries() if name not in _files())]


@lru_cache(maxsize=1)
def _files() -> tuple[str, ...]:
    names = sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_"))
    return tuple(sorted(names, key=lambda name: name != "cpu"))


@lru_cache(maxsize=1)
def _entries() -> dict[str, Any]:
    """Kind of device -> entry point of a backend that somebody else has installed."""
    from importlib.metadata import entry_points

    return {entry.name: entry for entry in entry_points(group="hetsched.backends")}


def backend_of(kind: str) -> Any:
    """The backend of a kind of device: a module or an object with `find()`. `PlacementError` where there is none, or it cannot be loaded."""
    if kind in _files():
        return importlib.import_module(f"{__name__}.{kind}")
    if kind not in _entries():
        raise PlacementError(f"there is no backend for devices of kind {kind!r} here{did_you_mean(kind, kinds())}")
    try:
        return _entries()[kind].load()
    except Exception as error:
        where = _entries()[kind].value
        raise PlacementError(f"the backend {kind!r}, which the entry point {where!r} names, cannot be loaded: {_told(error)}") from error


def opens(device: Device, what: str) -> Any:
    """The backend that opens `device`. `PlacementError` that begins with `what`, which wants it open, where there is none."""
    try:
        backend = backend_of(device.kind)
    except PlacementError as error:
        raise PlacementError(f"{what}: {error}") from error
    if not hasattr(backend, "open"):
        raise PlacementError(f"{what}: devices of kind {device.kind!r} cannot be opened here")
    return backend


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _look() -> list[Found]:
    """What each backend finds. One of somebody else's that fails finds nothing, and a note says why: the other devices work without it."""
    return [importlib.import_module(f"{__name__}.{kind}").find() if kind in _files() else _others(kind) for kind in kinds()]


def _others(kind: str) -> Found:
    try:
        backend = backend_of(kind)
    except PlacementError as error:
        return Found(notes=(str(error),))
    try:
        found = backend.find()
    except Exception as error:
        return Found(notes=(f"the backend {kind!r} failed to look for devices: {_told(error)}",))
    others = [d.id for d in found.devices if d.kind != kind] if isinstance(found, Found) else []
    if others or not isinstance(found, Found):
        what = f"devices of another kind ({', '.join(others)})" if others else f"{type(found).__name__}, not a Found"
        return Found(notes=(f"the backend {kind!r} gave {what}; its devices are left out",))
    return found


def twins(looked: Iterable[Found]) -> dict[str, str]:
    """Devices that are others by another driver (a card that CUDA and OpenCL offer) -> which they are: the one found first.

    They have one address; or, where addresses do not tell (drivers count slots in several ways), one name, and as many of the name with each driver.
    """
    first: dict[str, tuple[str, str]] = {}
    out: dict[str, str] = {}
    places = {device: place for found in looked for device, place in found.places.items()}
    for device, place in places.items():
        if place.address is not None:
            known, by = first.setdefault(place.address, (device, place.driver))
            if by != place.driver:  # parts of one device have its address too
                out[device] = known
    alone = [device for device in places if device not in out and device not in out.values()]
    for _, same in groupby(sorted(alone, key=lambda d: places[d].name), key=lambda d: places[d].name):
        by_driver: dict[str, list[str]] = {}
        for device in sorted(same, key=list(places).index):
            by_driver.setdefault(places[device].driver, []).append(device)
        found_first, *others = by_driver.values()
        for twins_of in others:
            if len(twins_of) == len(found_first):
                out.update(zip(twins_of, found_first, strict=True))
    return out


def _takes_twins() -> bool:
    return os.environ.get(_TWINS, "").strip().lower() not in ("", "0", "false", "no", "off")


def _is_asked(twin: Device, there: Iterable[Device], named: Iterable[str | tuple[str, ...]]) -> bool:
    """True if somebody's patterns mean `twin`, and none that stands before them a device of `there`."""
    for patterns in named:
        for pattern in (patterns,) if isinstance(patterns, str) else patterns:
            if twin.matches(pattern) and pattern not in _GENERAL:
                return True
            if any(d.matches(pattern) for d in there):
                break
    return False


def here(*named: str | tuple[str, ...]) -> Machine:
    """The machine this runs on: what every backend finds, with the figures of devices that were calibrated (`hetsched calibrate`), and the watts of

    `HETSCHED_WATTS`. A device that two drivers offer is there once: two would be given work and memory twice. named: patterns that somebody asks
    for, or several in order of preference; what means such a twin (`opencl`, `opencl:0`) brings it, unless a device that is there anyway is preferred
    (`("cuda", "opencl")`). `HETSCHED_OPENCL_TWINS=1` brings all of them.
    """
    devices: dict[str, Device] = {}
    memories: dict[str, MemoryNode] = {}
    links: dict[tuple[str, str], Link] = {}
    resources: dict[str, Resource] = {}
    looked = _look()
    known = {} if _takes_twins() else twins(looked)
    there = [d for found in looked for d in found.devices if d.id not in known]
    for found in looked:
        out = {d.memory for d in found.devices if d.id in known and not _is_asked(d, there, named)}
        devices.update((d.id, d) for d in found.devices if d.memory not in out)
        memories.update((m.name, m) for m in found.memories if m.name not in out)
        links.update(((x.src, x.dst), x) for x in found.links if x.src not in out and x.dst not in out)
        resources.update((r.name, r) for r in found.resources)
    memories.setdefault(HOST, MemoryNode(HOST))
    links.update(((x.src, x.dst), x) for x in through_host(links.values(), memories))
    machine = Machine(tuple(devices.values()), tuple(links.values()), tuple(memories.values()), tuple(resources.values()), name=HERE)
    return of_environment(applied(machine, {d.id: c for d in machine.devices if (c := load(d)) is not None}))


def notes() -> list[str]:
    """What backends have to say of devices that cannot be used, with the way out, and which are left out since they are others by another driver."""
    looked = _look()
    names = {d.id: d.name for found in looked for d in found.devices}
    way = f"plans leave it out; -d {{}} takes it, and {_TWINS}=1 counts it as another"
    if _takes_twins():
        way = f"plans use both as two ({_TWINS} is set)"
    told = [f"{twin} ({names[twin]}) is {device} by another driver: {way.format(twin)}" for twin, device in twins(looked).items()]
    return [*(note for found in looked for note in found.notes), *told]


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
