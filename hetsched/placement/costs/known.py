"""Costs from what is known: runs, a measurement by itself, regression over shapes, calibrated curves; the roofline where nothing is.

An estimate is what an executor's step takes from the end of the one before it: the kernel, and what dispatching adds on the device (in a straight
plan per step, in a loop's body that is one step per turn, shared by its tasks).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import median

from hetsched.graph.graph import Graph, Nested
from hetsched.graph.op import Op
from hetsched.graph.ops import family, registry
from hetsched.machine import Device, Link, Machine
from hetsched.machine.calibration import Calibration
from hetsched.placement.costs.estimate import Estimate
from hetsched.placement.costs.handover import Handover
from hetsched.placement.costs.history import ALONE, DISTURBED, Known
from hetsched.placement.costs.kinds import COPY, GAP, Kind, Kinds, begin_kind, device_key, link_key, turn_kind
from hetsched.placement.costs.regression import Fit, fit
from hetsched.placement.costs.roofline import RELATIVE_SPREAD, RooflineCosts, peak, starting_seconds
from hetsched.timeline import Timeline

# What a curve misses of an op it was not measured with, beside the spread of its measurement.
CURVE_SPREAD, FAMILY_SPREAD = 0.2, 0.4
# What a measurement by itself differs from one in a run.
ALONE_SPREAD = 0.15
# So many kinds must be known of a device to tell how far its roofline is off, by work of at least so many seconds: what tiny ops take is overhead,
# which says nothing of large ones.
LEAST_KNOWN, LEAST_IDEAL_SECONDS, MOST_OPTIMISM = 3, 20e-6, 10.0


@dataclass(eq=False)
class KnownCosts:
    """Costs on `machine` by the best source there is for each kind of task.

    calibrations: device id -> what was measured. known: what runs have taught (`History.known`), empty where it shall not count.
    factors: device key -> how much slower than calibrated it is (`History.factors`). building: device id -> the seconds that a driver takes to build
    the program of a kind of task of which nothing is known there; such a task is taken to need that.
    """

    machine: Machine
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    known: Mapping[tuple[str, str, int], Known] = field(default_factory=dict)
    factors: Mapping[str, float] = field(default_factory=dict)
    building: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._roofline = RooflineCosts(self.machine)
        self._kinds = Kinds()
        self._graphs: dict[int, Graph] = {}  # keeps them alive: their ids are keys
        self._fits: dict[tuple[str, str, str], Fit | None] = {}
        self._rows: dict[tuple[str, str, str], list[Known]] = {}
        self._bodies: dict[int, list[int]] = {}  # every how many turns each task runs
        self._optimisms: dict[str, float] = {}
        self._losses: dict[tuple[str, int], float] = {}
        self._waiting = {name for name, op in registry().items() if isinstance(op, Op) and op.waits} if self.known else set()
        self._shares: dict[tuple[int, str], float | None] = {}
        self._met = {device for device, _, _ in self.known}
        for (device, _, width), row in self.known.items():
            if width == 1:
                self._rows.setdefault((device, row.op, row.dtype), []).append(row)

    def launch(self, graph: Graph, task: int, device: Device, width: int = 1) -> Estimate:
        """See `CostModel.launch`. `source` names what the seconds rest on."""
        if width > 1:
            return self._wide(graph, task, device, width)
        op = graph.task_ops[task]
        if isinstance(op, Nested) or op.view:
            free = self._roofline.launch(graph, task, device, width)
            is_strange = isinstance(op, Op) and device.id in self.building and device_key(device) not in self._met
            return free._replace(seconds=free.seconds + self.building[device.id]) if is_strange else free  # not to be opened for views alone
        found = self._kernel(graph, task, op, device, width)
        share = self._share(graph, device)
        if share is None:
            found = found._replace(seconds=found.seconds + self._dispatch(graph, device))
        elif self._bodies[id(graph)][task] == 1:  # what runs seldom is no part of the turn that was measured
            found = found._replace(seconds=found.seconds * share, spread=found.spread * share, source=f"{found.source}, scaled to a measured turn")
        return self._priced(found, device, 0 if op.waits else width)

    def copy(self, nbytes: int, link: Link) -> Estimate:
        """The seconds of a copy: a line through what runs have shown, else the calibrated link."""
        key = link_key(link, self.machine)
        found = self._fit(key, COPY, "uint8") if key else None
        if found is not None:
            seconds = found.seconds(0.0, float(nbytes))
            return Estimate(seconds, found.error * seconds, None, "regression over shapes")
        seconds = link.seconds(nbytes)
        is_measured = any(link.id in c.links for c in self.calibrations.values())
        return Estimate(seconds, (CURVE_SPREAD if is_measured else RELATIVE_SPREAD) * seconds, None, "calibration" if is_measured else "roofline")

    def beginning(self, body: Timeline) -> float:
        """Seconds that a loop takes beside its turns, by the plan of its body: binding arrays, first turns that are slower, handing over results."""
        owners = {lane.owner for span in body.spans for lane in span.lanes if lane.kind != "copy"}
        devices = [d for d in self.machine.devices if d.id in owners]
        rows = [self.known.get((device_key(d), begin_kind(body.graph, body.turns), 1)) for d in devices if device_key(d)]
        found = [row.seconds for row in rows if row is not None]
        if found:
            return max(found)
        host = next((c for d in self.machine.devices if d.shares_lanes and (c := self.calibrations.get(d.id)) is not None), None)
        return host.loop_seconds + host.loop_task_seconds * len(body.graph) if host is not None else 0.0

    def handover(self) -> Handover:
        """What lies between steps, by what runs have shown."""
        return Handover(self.machine, {(device, kind): row.seconds for (device, kind, _), row in self.known.items() if row.op == GAP})

    def in_body(self, graph: Graph, every: Mapping[str, int] | None = None) -> None:
        """Say that `graph` is the body of a loop: its tasks are dispatched together. every: task -> k, of those that do not run every turn."""
        self._graphs[id(graph)] = graph
        given = every or {}
        self._bodies[id(graph)] = [given.get(name, 1) for name in graph.task_names]

    # Sources, the best first ------------------------------------------------------------------------------------------------------

    def _kernel(self, graph: Graph, task: int, op: Op, device: Device, width: int) -> Estimate:
        key = device_key(device)
        kind = self._kinds.of(graph, task)
        if key:
            row = self.known.get((key, kind.text, width))
            if row is not None:
                spread = max(row.spread, (ALONE_SPREAD if row.runs == 0 else 0.02) * row.seconds)
                return Estimate(_in_graph(row, graph, device), spread, None, _taught_by(row))
            found = self._fit(key, kind.op, kind.dtype)
            if found is not None and found.covers(kind.flops, kind.nbytes):
                seconds = found.seconds(kind.flops, kind.nbytes)
                return Estimate(seconds, max(found.error, 0.1) * seconds, None, "regression over shapes")
        calibration = self.calibrations.get(device.id)
        if calibration is not None and calibration.whole and not op.waits:
            curved = self._curve(graph, op, kind, device, calibration)
            if curved is not None:
                factor = self.factors.get(key, 1.0)
                return curved._replace(seconds=curved.seconds * factor, spread=curved.spread * factor)
        found_at_last = self._roofline.launch(graph, task, device, width)
        factor = (self.factors.get(key, 1.0) if key else 1.0) * (1.0 if op.waits else self._optimism(device))
        found_at_last = found_at_last._replace(seconds=found_at_last.seconds * factor, spread=found_at_last.spread * factor)
        if device.id in self.building:
            more = self.building[device.id]
            return found_at_last._replace(seconds=found_at_last.seconds + more, source=f"{found_at_last.source}, and a program to be built")
        return found_at_last

    def _optimism(self, device: Device) -> float:
        """How many times longer than the roofline what is known of a device took, on the median; where little is, what the others took; else 1.

        Without it a device of which nothing is known would look faster than one that was measured, for being measured.
        """
        if device.id not in self._optimisms:
            own = {d.id: self._ratios(d) for d in self.machine.devices}
            enough = {i: median(rows) for i, rows in own.items() if len(rows) >= LEAST_KNOWN}
            others = median(enough.values()) if enough else 1.0
            self._optimisms = {d.id: min(max(1.0, enough.get(d.id, others)), MOST_OPTIMISM) for d in self.machine.devices}
        return self._optimisms.get(device.id, 1.0)

    def _ratios(self, device: Device) -> list[float]:
        key = device_key(device)
        out = []
        for (name, _, width), row in self.known.items():
            if name == key and key and width == 1 and row.op not in self._waiting:
                ideal = max(row.flops / peak(device, row.dtype), row.nbytes / device.bytes_per_second)
                if ideal >= LEAST_IDEAL_SECONDS:
                    out.append(row.seconds / (device.launch_seconds + ideal))
        return out

    def _curve(self, graph: Graph, op: Op, kind: Kind, device: Device, calibration: Calibration) -> Estimate | None:
        curve = calibration.curve((op.name, family(op)), kind.dtype)
        if curve is None:
            return None
        ideal = max(kind.flops / peak(device, kind.dtype), kind.nbytes / device.bytes_per_second)
        seconds = starting_seconds(graph, op, replace(device, launch_seconds=calibration.launch_seconds)) + (
            ideal * curve.at(ideal) if ideal > 0 else 0.0
        )
        own = op.name in calibration.curves
        spread = math.hypot(calibration.spread, CURVE_SPREAD if own else FAMILY_SPREAD) * seconds
        return Estimate(seconds, spread, None, "a calibrated curve" if own else "the calibrated curve of its family")

    def _wide(self, graph: Graph, task: int, device: Device, width: int) -> Estimate:
        """A wide launch: as measured, else the narrow estimate in the proportion of the roofline."""
        key = device_key(device)
        op = graph.task_ops[task]
        if isinstance(op, Nested) or not op.wide:
            return self._roofline.launch(graph, task, device, width)
        row = self.known.get((key, self._kinds.of(graph, task).text, width)) if key else None
        if row is not None:
            return self._priced(Estimate(row.seconds + self._dispatch(graph, device), row.spread, None, _taught_by(row)), device, width)
        narrow, ideal = self._roofline.launch(graph, task, device, 1), self._roofline.launch(graph, task, device, width)
        if not (math.isfinite(ideal.seconds) and narrow.seconds > 0):
            return ideal
        known, lost = self.launch(graph, task, device, 1), self._lost(device, width)
        share = known.seconds / narrow.seconds
        return self._priced(
            Estimate(ideal.seconds * share + lost, known.spread * share + 0.3 * ideal.seconds + lost, None, f"{known.source}, widened"), device, width
        )

    def _lost(self, device: Device, width: int) -> float:
        """Seconds that a wide launch takes more than its width promises: the mean of what is known of both ways, else as calibrated."""
        name = device.id, width
        if name not in self._losses:
            key, calibration = device_key(device), self.calibrations.get(device.id)
            narrow = {kind: row for (of, kind, lanes), row in self.known.items() if of == key and lanes == 1} if key else {}
            wide = [(row, narrow.get(kind)) for (of, kind, lanes), row in self.known.items() if of == key and lanes == width] if key else []
            seconds = [row.seconds - one.seconds / width for row, one in wide if one is not None]
            calibrated = calibration.wide_seconds if calibration is not None else 0.0
            self._losses[name] = max(sum(seconds) / len(seconds) if seconds else calibrated, 0.0)
        return self._losses[name]

    def _dispatch(self, graph: Graph, device: Device) -> float:
        calibration = self.calibrations.get(device.id)
        if calibration is None or (graph.is_body and device.replay_seconds is not None):
            return 0.0
        if id(graph) not in self._bodies or not device.shares_lanes:
            return calibration.dispatch_seconds
        return calibration.turn_seconds / max(1, sum(isinstance(op, Op) and not op.view for op in graph.task_ops))

    def _share(self, graph: Graph, device: Device) -> float | None:
        """A measured turn of a body over the sum of its tasks, where the turn was measured on `device`: what all of its tasks are scaled by."""
        key = id(graph), device.id
        if key not in self._shares:
            self._shares[key] = None
            every, row = self._bodies.get(id(graph)), None
            if every is not None and device.shares_lanes and device_key(device) and not any(isinstance(op, Nested) for op in graph.task_ops):
                row = self.known.get((device_key(device), turn_kind(graph), 1))
            if every is not None and row is not None:
                total = 0.0
                for task, op in enumerate(graph.task_ops):
                    if isinstance(op, Op) and not op.view and every[task] == 1:
                        total += self._kernel(graph, task, op, device, 1).seconds
                self._shares[key] = row.seconds / total if total > 0 else None
        return self._shares[key]

    def _fit(self, key: str, op: str, dtype: str) -> Fit | None:
        name = key, op, dtype
        if name not in self._fits:
            self._fits[name] = fit(self._rows.get(name, ()))
        return self._fits[name]

    def _priced(self, found: Estimate, device: Device, lanes: int) -> Estimate:
        return found if device.busy_watts is None else found._replace(joules=found.seconds * device.busy_watts * lanes)


def _in_graph(row: Known, graph: Graph, device: Device) -> float:
    """Seconds of a task. What was measured alone was launched by the host, which takes longer than a node of a graph."""
    if row.source != ALONE or not graph.is_body or device.replay_seconds is None:
        return row.seconds
    start = device.starting_seconds(True)
    return max(row.seconds - device.launch_seconds + start, min(start, row.seconds))


def _taught_by(row: Known) -> str:
    if row.runs:
        return f"{row.runs} run{'s' if row.runs > 1 else ''}"
    return "a run beside other work" if row.source == DISTURBED else "a measurement alone"
