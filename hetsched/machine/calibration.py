"""What has been measured of one device: figures, a curve for each family of ops, links. Plain data, one file a device in the user's cache.

A curve says how much longer launches take than the roofline r at the measured peaks, over r: `seconds = calls * launch + r * s(r)`.
A file is found by the device's id and fingerprint (hardware, clock, driver, library versions): another driver is another device.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hetsched.folders import cache_folder, write_whole
from hetsched.machine.machine import Device, Link, Machine, Resource

# A curve's slowness is no less: a launch that takes hardly more than launching says nothing of its op.
LEAST_SLOWNESS = 0.02
FORMAT = 2
# Of this age, figures are told to be old.
STALE_SECONDS = 90 * 86400.0
# So long a calibration that lacks ops may be gone on with; a later one begins anew.
RESUME_SECONDS = 86400.0
# Other work spoils what is measured where threads waited for a core for more than this share of the time.
CROWDED = 0.15
# A figure this many times off the last one is told.
ABSURD = 10.0


@dataclass(frozen=True)
class Curve:
    """Slowness over size: `roofline` ascending, seconds by the peaks; `slowness`: measured seconds without launching, over them."""

    roofline: tuple[float, ...]
    slowness: tuple[float, ...]

    def at(self, seconds: float) -> float:
        """The slowness at `seconds` of roofline: on the straight lines through the points in log-log scale, beyond them that of the end."""
        x, y = self.roofline, self.slowness
        i = bisect_left(x, seconds)
        if i == 0:
            return y[0]
        if i == len(x):
            return y[-1]
        share = math.log(seconds / x[i - 1]) / math.log(x[i] / x[i - 1])
        return math.exp(math.log(y[i - 1]) * (1 - share) + math.log(y[i]) * share)


@dataclass(frozen=True)
class LinkFigures:
    """A directed link: latency, bytes per second from ordinary memory; from pinned memory and with copies the other way at once, where measured."""

    latency_seconds: float
    bytes_per_second: float
    pinned_bytes_per_second: float | None = None
    both_ways_bytes_per_second: float | None = None


@dataclass(frozen=True)
class Calibration:
    """What was measured of a device.

    dispatch_seconds: what the executor adds to a step outside of loops; turn_seconds: to a turn of a loop that is one step.
    loop_seconds, loop_task_seconds: what beginning and ending a loop takes, and more for each task of its body.
    crossing_seconds: handing work to another thread. curves: op, or family of ops, -> dtype -> curve. links: link id -> figures.
    wide_seconds: what a launch on all lanes at once takes more than its share of the lanes promises, after lanes have worked by themselves.
    together: other device, or "lanes" for the device's own, -> share of its speed that is left when both work.
    spread: relative deviation between repeated measurements. notes: what is remarkable. whole: False where only what a first run needs was measured.
    missing: ops that the time did not allow. crowded: the share of the time in which threads waited for a core, for other work had it.
    """

    device: str
    fingerprint: str
    launch_seconds: float
    flops_per_second: Mapping[str, float]
    bytes_per_second: float
    dispatch_seconds: float = 0.0
    turn_seconds: float = 0.0
    loop_seconds: float = 0.0
    loop_task_seconds: float = 0.0
    crossing_seconds: float = 0.0
    wide_seconds: float = 0.0
    curves: Mapping[str, Mapping[str, Curve]] = field(default_factory=dict)
    links: Mapping[str, LinkFigures] = field(default_factory=dict)
    together: Mapping[str, float] = field(default_factory=dict)
    spread: float = 0.2
    taken_at: float = field(default_factory=time.time)
    took_seconds: float = 0.0
    whole: bool = True
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    crowded: float = 0.0

    def curve(self, names: Iterable[str], dtype: str) -> Curve | None:
        """The curve of the first of `names` (an op, then its family) that was measured, in `dtype` or else in float32."""
        for name in names:
            found = self.curves.get(name)
            if found:
                return found.get(dtype) or found.get("float32") or next(iter(found.values()))
        return None


def place(device: Device) -> Path:
    """The file that holds the calibration of a device."""
    mark = hashlib.sha256(f"{device.id}\n{device.fingerprint}".encode()).hexdigest()[:20]
    return cache_folder() / "calibration" / f"{device.kind}-{mark}.json"


def load(device: Device) -> Calibration | None:
    """What is known of a device; None where nothing is (described devices have no fingerprint), or what is there cannot be read."""
    if not device.fingerprint:
        return None
    try:
        return _parsed(json.loads(place(device).read_text()), device)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def save(device: Device, found: Calibration) -> bool:
    """Keep a calibration; False where the cache cannot be written."""
    return write_whole(place(device), json.dumps({"format": FORMAT, **asdict(found)}).encode())


def _parsed(data: dict[str, Any], device: Device) -> Calibration | None:
    if data.pop("format") != FORMAT or data["device"] != device.id or data["fingerprint"] != device.fingerprint:
        return None
    data["curves"] = {
        name: {dtype: Curve(tuple(map(float, c["roofline"])), tuple(map(float, c["slowness"]))) for dtype, c in by_dtype.items()}
        for name, by_dtype in data["curves"].items()
    }
    data["links"] = {name: LinkFigures(**figures) for name, figures in data["links"].items()}
    data["notes"], data["missing"] = tuple(data["notes"]), tuple(map(str, data.get("missing", ())))
    found = Calibration(**data)
    positive = (found.launch_seconds, found.bytes_per_second, *found.flops_per_second.values())
    return found if all(isinstance(x, float) and 0 < x < math.inf for x in positive) else None


def may_be_resumed(found: Calibration, now: float | None = None) -> bool:
    """True where the next calibration measures only what this one lacks; False for what lacks nothing, is old, or was spoilt by other work."""
    return found.whole and bool(found.missing) and found.crowded <= CROWDED and _age(found, now) < RESUME_SECONDS


def _age(found: Calibration, now: float | None) -> float:
    return (time.time() if now is None else now) - found.taken_at


def complaints(found: Calibration, before: Calibration | None = None, now: float | None = None) -> list[str]:
    """What cannot be, or is not likely: a link faster than memory, figures an order of magnitude off the last, figures that are old."""
    out = []
    for name, link in found.links.items():
        if link.bytes_per_second > found.bytes_per_second:
            out.append(f"{name} copies {link.bytes_per_second / 1e9:.3g} GB/s, which is more than the memory of {found.device} moves")
        if link.latency_seconds > 1.0:
            out.append(f"{name} takes {link.latency_seconds:.3g} s for a copy of a few bytes")
    if before is not None:
        for what, new, old in _pairs(found, before):
            if old > 0 and new > 0 and not 1 / ABSURD < new / old < ABSURD:
                out.append(
                    f"{found.device}: {what} is {new:.3g}, the last time it was {old:.3g}; was the machine busy? calibrate again when it is not"
                )
    if found.missing:
        names = ", ".join(found.missing)
        many = f"{len(found.missing)} ops were" if len(found.missing) > 1 else "1 op was"
        way = "again goes on with what is missing" if may_be_resumed(found, now) else "again measures all anew; give it more --time"
        out.append(f"the time was over before {many} measured: {names}; `hetsched calibrate {found.device}` {way}")
    age = _age(found, now)
    if age > STALE_SECONDS:
        out.append(f"{found.device} was calibrated {age / 86400:.0f} days ago; `hetsched calibrate {found.device}` measures it anew")
    return out


def _pairs(a: Calibration, b: Calibration) -> list[tuple[str, float, float]]:
    out = [(f"{name} operations a second", v, b.flops_per_second.get(name, 0.0)) for name, v in a.flops_per_second.items()]
    out += [("memory bandwidth", a.bytes_per_second, b.bytes_per_second), ("the seconds of a launch", a.launch_seconds, b.launch_seconds)]
    out += [(f"bandwidth of {n}", x.bytes_per_second, b.links[n].bytes_per_second) for n, x in a.links.items() if n in b.links]
    return out


def applied(machine: Machine, found: Mapping[str, Calibration]) -> Machine:
    """`machine` with the measured figures of its devices (by id), their links, and capacities of what they share."""
    devices, links = [], {(x.src, x.dst): x for x in machine.links}
    for device in machine.devices:
        c = found.get(device.id)
        if c is not None and c.whole:
            device = replace(
                device, launch_seconds=c.launch_seconds, flops_per_second=dict(c.flops_per_second), bytes_per_second=c.bytes_per_second,
                crossing_seconds=c.crossing_seconds or device.crossing_seconds,
            )  # fmt: skip
            for key, link in links.items():
                figures = c.links.get(link.id)
                if figures is not None:
                    links[key] = _linked(link, figures)
        devices.append(device)
    resources = tuple(replace(r, capacity=_capacity(machine, r.name, r.capacity, found)) for r in machine.resources)
    return replace(machine, devices=tuple(_taking(d, resources) for d in devices), links=tuple(links.values()), resources=resources)


def _taking(device: Device, resources: Iterable[Resource]) -> Device:
    """`device` as it shares `resources`: what took all that was stated takes all that there is, and no more than that."""
    most = {r.name: r.capacity for r in resources}
    uses = {name: min(amount, most.get(name, amount)) for name, amount in device.uses.items()}
    return replace(device, uses=uses) if uses != dict(device.uses) else device


def _linked(link: Link, figures: LinkFigures) -> Link:
    return replace(link, latency_seconds=figures.latency_seconds, bytes_per_second=figures.bytes_per_second)


def _capacity(machine: Machine, name: str, stated: float, found: Mapping[str, Calibration]) -> float:
    """The cores that are worth it: as many as the lanes of a processor get more done with, by what was measured with all of them at work.

    A lane that adds less than a quarter of its own speed to the others (a quota, hyper-threads) is not counted.
    """
    for device in machine.devices:
        c = found.get(device.id)
        if c is not None and device.shares_lanes and name in device.uses and "lanes" in c.together:
            worth = device.lanes * c.together["lanes"]
            return max(1.0, min(stated, math.floor(worth + 0.75)))
    return stated
