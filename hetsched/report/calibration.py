"""A calibration as text and as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from hetsched.machine import Device
from hetsched.machine.calibration import LEAST_SLOWNESS, Calibration
from hetsched.report.text import percent_text, seconds_text, table


def calibration_record(found: Calibration, remarks: Sequence[str] = ()) -> dict[str, Any]:
    """Every figure and curve; `remarks`: what is remarkable about them."""
    return {**asdict(found), "remarks": list(remarks)}


def calibration_lines(device: Device, found: Calibration, remarks: Sequence[str] = ()) -> list[str]:
    """The text of `hetsched calibrate` for one device. Efficiency: the roofline's share of the measured seconds, launching left out."""
    c = found
    lines = [f"{device.id}: {device.name or device.kind}, measured in {seconds_text(c.took_seconds)}"]
    speeds = ", ".join(f"{dtype} {rate / 1e9:,.1f} GFLOP/s" for dtype, rate in c.flops_per_second.items())
    lines.append(f"  a lane: {speeds}; memory {c.bytes_per_second / 1e9:,.1f} GB/s")
    times = [f"launch {seconds_text(c.launch_seconds)}", f"dispatching a step {seconds_text(c.dispatch_seconds)}"]
    times += [f"a turn of a loop {seconds_text(c.turn_seconds)}"] if c.turn_seconds else []
    times += [f"crossing to another thread {seconds_text(c.crossing_seconds)}"] if c.crossing_seconds else []
    lines.append("  " + ", ".join(times))
    for name, link in c.links.items():
        text = f"  {name}: latency {seconds_text(link.latency_seconds)}, {link.bytes_per_second / 1e9:,.2f} GB/s"
        if link.pinned_bytes_per_second is not None:
            text += f", pinned {link.pinned_bytes_per_second / 1e9:,.2f} GB/s"
        if link.both_ways_bytes_per_second is not None:
            text += f", with copies the other way {link.both_ways_bytes_per_second / 1e9:,.2f} GB/s"
        lines.append(text)
    for other, share in c.together.items():
        who = "all its lanes" if other == "lanes" else other
        lines.append(f"  keeps {percent_text(share)} of its speed when {who} work{'' if other == 'lanes' else 's'} too")
    rows = [_row(name, dtype, curve.roofline, curve.slowness) for name, by in c.curves.items() if "." in name for dtype, curve in by.items()]
    if rows:
        lines += [
            f"  {x}"
            for x in table(["op", "dtype", "efficiency, small to large (roofline seconds of the largest); -: no longer than launching"], rows)
        ]
    return [*lines, *(f"  note: {remark}" for remark in remarks)]


def _row(name: str, dtype: str, roofline: Sequence[float], slowness: Sequence[float]) -> list[str]:
    shares = "  ".join(f"{1 / s:.2f}" if s > LEAST_SLOWNESS else "-" for s in slowness)
    return [name, dtype, f"{shares}  ({seconds_text(roofline[-1])})"]
