"""The roofline: a launch takes a fixed latency and then the longer of its arithmetic and its memory traffic.

Williams, Waterman, Patterson: Roofline, an insightful visual performance model (CACM 52(4), 2009), with the launch latency added.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hetsched.errors import InternalError
from hetsched.graph.graph import Graph, Nested
from hetsched.graph.op import Op
from hetsched.graph.spec import Spec
from hetsched.machine import Device, Link, Machine
from hetsched.placement.costs.estimate import Estimate

# An SSD of the common kind, read in order. Ops that wait for files are bounded by it.
DISK_BYTES_PER_SECOND = 500e6
# Assumed where a device states no peak for a type: a scalar core.
FALLBACK_FLOPS_PER_SECOND = 2e9
# Share of the added lanes that a wide launch gains, and the arithmetic intensity from which an op is taken to be bound by arithmetic that
# libraries spread over threads. Below it one lane already waits for memory.
WIDE_EFFICIENCY = 0.85
WIDE_FLOPS_PER_BYTE = 8.0
# What it takes to stop the other lanes, raise the library's limit and wake its threads.
WIDE_SECONDS = 200e-6
# A roofline is an upper limit on speed; measured times scatter around twice its value.
RELATIVE_SPREAD = 0.5


@dataclass(frozen=True)
class RooflineCosts:
    """Costs from `Op.work` and the peaks that the machine states."""

    machine: Machine

    def launch(self, graph: Graph, task: int, device: Device, width: int = 1) -> Estimate:
        """`calls * seconds of starting one + max(flops / peak, bytes / bandwidth)`; 0 for a view, bytes / disk rate for an op that waits.

        Infinite where a wide launch is asked of an op that is not `wide`.
        """
        op = graph.task_ops[task]
        if isinstance(op, Nested):
            raise InternalError(f"loop {graph.task_names[task]!r} has no cost of its own; plan its body")
        if op.view:
            return Estimate(0.0, 0.0, 0.0)
        ins = [graph.value_specs[v] for v in graph.reads(task)]
        outs = [graph.value_specs[v] for v in graph.writes(task)]
        work = graph.work(task)
        moved = work.bytes_read + work.bytes_written
        if op.waits:
            busy = max(moved, float(sum(s.nbytes for s in outs))) / DISK_BYTES_PER_SECOND
            return _estimate(device.launch_seconds + busy, device, 0)
        dtype = next((s.dtype.name for s in (*outs, *ins) if isinstance(s, Spec)), "float32")
        arithmetic, traffic = work.flops / peak(device, dtype), moved / device.bytes_per_second
        start = starting_seconds(graph, op, device)
        if width > 1:
            if not op.wide:
                return _estimate(math.inf, device, width)
            start += max(device.crossing_seconds, WIDE_SECONDS)
            if work.flops >= WIDE_FLOPS_PER_BYTE * moved:
                gain = 1 + (width - 1) * WIDE_EFFICIENCY
                arithmetic, traffic = arithmetic / gain, traffic / gain
        return _estimate(start + max(arithmetic, traffic), device, width)

    def copy(self, nbytes: int, link: Link) -> Estimate:
        """`latency + bytes / bandwidth`."""
        seconds = link.seconds(nbytes)
        return Estimate(seconds, RELATIVE_SPREAD * seconds)


def starting_seconds(graph: Graph, op: Op, device: Device) -> float:
    """What the calls of a launch cost beside their work: as nodes of a graph where turns of a loop become graphs."""
    in_graph = graph.is_body and device.replay_seconds is not None
    return op.calls_on(device, in_graph) * device.starting_seconds(graph.is_body)


def peak(device: Device, dtype: str) -> float:
    """Operations per second of one lane of `device` in `dtype`: its own figure, else that of float32, else the least stated, else 2e9."""
    stated = device.flops_per_second
    if dtype in stated:
        return stated[dtype]
    if "float32" in stated:
        return stated["float32"]
    return min(stated.values(), default=FALLBACK_FLOPS_PER_SECOND)


def _estimate(seconds: float, device: Device, lanes: int) -> Estimate:
    joules = None if device.busy_watts is None else seconds * device.busy_watts * lanes
    return Estimate(seconds, RELATIVE_SPREAD * seconds, joules)
