"""Watts of devices that nobody measures and no file states, given by the user: `cpu=65/12` is 65 W with all lanes at work and 12 W idle."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace

from hetsched.errors import CommandLineError, did_you_mean
from hetsched.machine.machine import Device, Machine

WATTS = "HETSCHED_WATTS"


def with_watts(machine: Machine, texts: Sequence[str], source: str = "watts") -> Machine:
    """`machine` with the watts of `DEVICE=BUSY/IDLE` (a device's id or a pattern of devices); without `/IDLE` idle power is taken to be 0.

    source: where they were given, named by errors.
    """
    for text in texts:
        name, equals, amounts = text.strip().partition("=")
        busy, idle = _number(amounts.partition("/")[0]), _number(amounts.partition("/")[2] or "0")
        if not (name and equals and busy is not None and idle is not None and idle <= busy):
            raise CommandLineError(f"{source}: want DEVICE=BUSY/IDLE with 0 <= IDLE <= BUSY, such as cpu=65/12, got {text!r}")
        chosen = {d.id for d in machine.devices if d.matches(name)}
        if not chosen:
            known = [d.id for d in machine.devices]
            raise CommandLineError(f"{source} {text.strip()!r}: the machine has no such device{did_you_mean(name, known)}")
        devices = [replace(d, busy_watts=busy / d.lanes, idle_watts=idle) if d.id in chosen else d for d in machine.devices]
        if any(d.shares_lanes for d in devices if d.id in chosen):
            devices = [_on_processor(d, busy) if d.id not in chosen else d for d in devices]
        machine = replace(machine, devices=tuple(devices))
    return machine


def _on_processor(device: Device, busy: float) -> Device:
    """An OpenCL device that is the processor itself: what it draws when idle is the processor's, and at work it takes all cores."""
    if device.shares_lanes or device.hardware != "cpu" or device.busy_watts is not None:
        return device
    return replace(device, busy_watts=busy / device.lanes, idle_watts=0.0)


def of_environment(machine: Machine) -> Machine:
    """`machine` with the watts of `HETSCHED_WATTS`, separated by commas. Devices that are not here are passed over: it is set once for many."""
    there = [x for x in os.environ.get(WATTS, "").split(",") if x.strip()]
    return with_watts(machine, [x for x in there if "=" not in x or any(d.matches(x.partition("=")[0].strip()) for d in machine.devices)], WATTS)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
