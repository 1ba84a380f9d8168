"""The energy of a run: measured where meters counted it, else estimated from the watts that the machine's file states, and said to be so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hetsched.executors.energy import Measured
from hetsched.machine import Device
from hetsched.placement.costs.figures import Figures, measure
from hetsched.timeline import Timeline


@dataclass(frozen=True)
class DeviceEnergy:
    """Joules of a device. source: `RAPL package-0 + dram`, `NVML cuda:0`, `watts` or "". idle_joules: the part of an estimate that is idle power."""

    joules: float | None
    source: str = ""
    idle_joules: float | None = None

    @property
    def is_measured(self) -> bool:
        """True where a meter counted it."""
        return self.source not in ("", "watts")


@dataclass(frozen=True)
class Energy:
    """Joules of a whole run, idle power included; None where a device's are not known. notes: why, and the way out."""

    joules: float | None
    devices: Mapping[str, DeviceEnergy] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def is_measured(self) -> bool:
        """True where every device was measured."""
        return bool(self.devices) and all(d.is_measured for d in self.devices.values())


def energy_of(trace: Timeline, measured: Measured | None) -> Energy:
    """The energy of the run of `trace`. measured: what meters counted during it; None: nothing was asked."""
    figures = measure(trace)
    used = set(figures.devices)
    devices: dict[str, DeviceEnergy] = {}
    notes = list(measured.problems) if measured is not None else []
    for device in trace.machine.devices:
        counted = measured.of(device.id) if measured is not None else None
        if counted is not None and measured is not None:
            meters = measured.devices[device.id]
            sources = dict.fromkeys(measured.sources[m] for m in meters)
            devices[device.id] = DeviceEnergy(counted, f"{' and '.join(sources)} {' + '.join(meters)}")
        elif counted_with_cpu(device, measured):
            devices[device.id] = DeviceEnergy(0.0, "counted with cpu")
        elif device.id in used or device.always_on:
            devices[device.id] = _estimated(trace, device.id, figures)
    unknown = [name for name, d in devices.items() if d.joules is None]
    if unknown:
        way_out = f"--watts {unknown[0]}=BUSY/IDLE, HETSCHED_WATTS, or --machine FILE"
        notes.append(f"no meter counts that of {', '.join(unknown)}, and no watts are stated ({way_out})")
    total = None if unknown else sum(d.joules or 0.0 for d in devices.values())
    return Energy(total, devices, tuple(notes))


def counted_with_cpu(device: Device, measured: Measured | None) -> bool:
    """True for a device that is a part of the processor's package, where that is measured: its energy is in that already."""
    inside = device.kind != "cpu" and (device.hardware == "cpu" or device.unified) and device.kind != "emulated"
    return inside and measured is not None and measured.of("cpu") is not None


def energy_record(energy: Energy) -> dict[str, Any]:
    """The energy as plain data."""
    devices = {
        name: {"joules": d.joules, "measured": d.is_measured, "source": d.source or None, "idle_joules": d.idle_joules}
        for name, d in energy.devices.items()
    }
    return {"joules": energy.joules, "measured": energy.is_measured, "idle_included": True, "devices": devices, "notes": list(energy.notes)}


def energy_from(record: Mapping[str, Any]) -> Energy:
    """The energy that `energy_record` wrote."""
    devices = {name: DeviceEnergy(d["joules"], d["source"] or "", d["idle_joules"]) for name, d in record["devices"].items()}
    return Energy(record["joules"], devices, tuple(record["notes"]))


def energy_lines(energy: Energy) -> list[str]:
    """`energy: 12.3 J with idle power: cpu 10.1 J measured (RAPL package-0 + dram), cuda:0 2.2 J estimated from its watts`, and the way out."""
    parts = []
    for name, d in energy.devices.items():
        if d.joules is not None:
            how = f"measured ({d.source})" if d.is_measured else "estimated from its watts"
            parts.append(f"{name} {d.joules:.3g} J {how}")
    if energy.joules is not None:
        return [f"energy: {energy.joules:.3g} J with idle power: {', '.join(parts)}"]
    known = f"; {', '.join(parts)}" if parts else ""
    return [f"energy: not known{known}: {'; '.join(energy.notes)}"]


def _estimated(trace: Timeline, name: str, figures: Figures) -> DeviceEnergy:
    """A device's energy by `figures`' rule: busy lanes at `busy_watts`, the rest of the time at its share of `idle_watts`."""
    device = trace.machine.device(name)
    worked = figures.busy.get(name, 0.0)
    if device.idle_watts is None or (worked > 0 and device.busy_watts is None):
        return DeviceEnergy(None)
    idle = device.idle_watts * max(0.0, figures.seconds - worked / device.lanes)
    return DeviceEnergy((device.busy_watts or 0.0) * worked + idle, "watts", idle)
