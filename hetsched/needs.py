"""What is measured before a graph is planned: kinds of tasks that nothing is known of, alone and then in rehearsals of the graph and of its loops.

What was measured is kept as `alone`: the first run of such a task replaces it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from statistics import median
from time import perf_counter
from typing import NamedTuple

import numpy as np

from hetsched.check.spans import can_run
from hetsched.dispatching import dispatching
from hetsched.executors.crowding import Crowding
from hetsched.executors.measuring import Case, case_of, measure_cases
from hetsched.graph.alike import alike
from hetsched.graph.graph import Graph, Loop, Nested
from hetsched.graph.op import Op
from hetsched.machine import Device, Machine
from hetsched.machine.calibration import Calibration, save
from hetsched.placement.costs.estimate import CostModel
from hetsched.placement.costs.history import ALONE, History, Known, Lesson
from hetsched.placement.costs.kinds import Kind, Kinds, device_key, is_learned, turn_kind
from hetsched.placement.costs.known import KnownCosts
from hetsched.placement.costs.roofline import RooflineCosts
from hetsched.rehearsal import may_be_rehearsed, rehearse, rehearse_graph

# A first run measures what it needs in this time at most, seconds.
FIRST_SECONDS = 1.3
# Kinds that are measured again on a device that has become slow, and what measuring again may take, seconds.
LOOKED_AT, AGAIN_SECONDS = 3, 0.3
# Of the time that is left this share goes to what comes first, where something comes after it: single kernels, the graph, its loops.
SHARE = 0.6

# A driver's compiler takes about so long for a program (PoCL 0.3 to 0.9 s); a first run waits for several, and no longer than so many times for what
# the graph takes.
BUILD_SECONDS, MOST_TIMES = 0.5, 5.0

# (device, kind, width)
Key = tuple[str, str, int]


def not_worth_building(graph: Graph, costs: KnownCosts, only: str | None) -> dict[str, float]:
    """Devices whose programs would take longer to build than using them could ever spare, and the seconds that a program takes to build.

    These are devices with programs in OpenCL C that compute on the very cores of the threads, of which nothing measured is known, and a graph that
    threads are done with in no time. Not where the device is asked for (`only`, `where`), or does what threads cannot do.
    """
    out: dict[str, float] = {}
    if only not in (None, "any"):
        return out
    for device in costs.machine.devices:
        beside = [d for d in costs.machine.devices if d.shares_lanes and set(d.uses) & set(device.uses)]
        calibration = costs.calibrations.get(device.id)
        if device.shares_lanes or "opencl" not in device.languages or not beside or (calibration is not None and calibration.whole):
            continue
        if _is_asked_for(graph, device):
            continue
        if min(seconds_on(graph, d, costs) for d in beside) * MOST_TIMES < BUILD_SECONDS:
            out[device.id] = BUILD_SECONDS
    return out


def _is_asked_for(graph: Graph, device: Device) -> bool:
    patterns = {p for owner in graph.with_inner() for w in owner.where.values() for p in w.allow}
    return any(device.matches(p) for p in patterns - {"any"})


def seconds_on(graph: Graph, device: Device, costs: CostModel) -> float:
    """What the tasks of `graph` take on one lane of `device`, one after the other, all turns of loops; infinity where it cannot run one of them."""
    found, total = alike(graph), 0.0
    for first, count in zip(found.first.tolist(), np.bincount(found.kind, minlength=len(found.first)).tolist(), strict=True):
        op = graph.task_ops[first]
        if isinstance(op, Nested):
            turns = op.turns if isinstance(op, Loop) else 1
            total += count * turns * max(seconds_on(part, device, costs) for part in op.parts.values())
        elif not can_run(graph, first, device):
            return math.inf
        else:
            total += count * costs.launch(graph, first, device, 1).seconds
    return total


def first_need(
    graph: Graph, machine: Machine, devices: list[Device], calibrations: Mapping[str, Calibration], history: History, budget: float = FIRST_SECONDS,
    only: str | None = None, building: Mapping[str, float] | None = None,
) -> dict[str, Calibration]:  # fmt: skip
    """Measure, in about `budget` seconds at most, each kind of task of `graph` that nothing is known of on a device, the most work first.

    What is known from a measurement alone, or from a run that other work disturbed, is measured once more when some time has passed; so are a few
    kinds on a device that has become slow and was not seen since. Then the graph is run on invented values, and of loops on threads some turns are
    (`hetsched.rehearsal`): in a run kernels take what they do beside others, not what they do alone. only: the device pattern of the plan, see
    `plan_graph`. building: of `not_worth_building`; nothing is measured on those devices. Returns the calibrations that this brought: of a device
    that was never calibrated the cost of dispatching.
    """
    building = building or {}
    devices = [d for d in devices if d.id not in building]
    survey = _Survey(graph, machine, devices, calibrations, history, only, perf_counter() + budget, building)
    survey.kernels()
    survey.graph_itself()
    survey.loops()
    return survey.brought


class _Need(NamedTuple):
    """A kind of task of a graph that can be measured. rough: its seconds by the roofline."""

    rough: float
    kind: Kind
    case: Case


class _Want(NamedTuple):
    """What is to be measured on a device. again: kinds of a device that has become slow."""

    device: Device
    key: str
    unknown: list[_Need]
    weak: list[_Need]
    again: list[_Need]
    loops: list[Loop]
    is_suspect: bool

    @property
    def is_empty(self) -> bool:
        return not (self.unknown or self.weak or self.again)

    def without(self, kinds: set[str]) -> _Want:
        """What is left when `kinds` have been measured."""
        unknown, weak = ([x for x in rows if x.kind.text not in kinds] for rows in (self.unknown, self.weak))
        return self._replace(unknown=unknown, weak=weak, again=[], is_suspect=False)


class _Survey:
    """The measurements before one graph is planned, until `end` (`perf_counter`). found: what was measured, and how crowded it was meanwhile."""

    def __init__(
        self, graph: Graph, machine: Machine, devices: list[Device], calibrations: Mapping[str, Calibration], history: History, only: str | None,
        end: float, building: Mapping[str, float],
    ) -> None:  # fmt: skip
        self.building = building
        self.graph, self.machine, self.calibrations, self.history, self.only, self.end = graph, machine, calibrations, history, only, end
        self.now = time.time()
        helpers = [d for d in machine.devices if d.fingerprint and d not in devices and d.id not in building]
        keys = [device_key(d) for d in (*devices, *helpers)]
        self.known = history.known(keys, self.now)
        suspects = set(history.suspects(keys, self.now))
        self.wants = [self._want(d, device_key(d) in suspects) for d in devices]
        self.new = {(w.key, x.kind.text) for w in self.wants for x in (*w.unknown, *w.weak)}
        for device in helpers:
            self.new |= {(device_key(device), kind) for kind in self._only_there(device, devices)}
        # What a graph takes is measured by running it; what single kernels take says first where.
        self.runs = bool(self.new) and any(not isinstance(op, Nested) for op in graph.task_ops)
        self.has_loops = any(want.loops for want in self.wants)
        self.brought: dict[str, Calibration] = {}
        self.found: dict[Key, tuple[Lesson, float]] = {}

    def _want(self, device: Device, is_suspect: bool) -> _Want:
        key = device_key(device)
        want = _Want(device, key, [], [], [], [], is_suspect)
        for need in _cases(self.graph, self.machine, device):
            row = self.known.get((key, need.kind.text, 1))
            if row is None:
                want.unknown.append(need)
            elif row.is_worth_a_look(self.now):
                want.weak.append(need)
            elif row.runs and is_suspect:
                want.again.append(need)
        want.loops.extend(x for x in loops_of(self.graph) if self._is_due(key, turn_kind(x.body)) and may_be_rehearsed(x, device))
        return want

    def _is_due(self, key: str, kind: str) -> bool:
        """True where nothing is known, or what is known is worth another look."""
        row = self.known.get((key, kind, 1))
        return row is None or row.is_worth_a_look(self.now)

    def _only_there(self, device: Device, others: list[Device]) -> list[str]:
        """Kinds that nothing is known of and that of all these devices only `device` can run."""
        graph, kinds, key = self.graph, Kinds(), device_key(device)
        tasks = [t for t in alike(graph).first.tolist() if is_learned(graph, t) and can_run(graph, t, device)]
        alone = [kinds.of(graph, t).text for t in tasks if not any(can_run(graph, t, d) for d in others)]
        return [kind for kind in alone if self._is_due(key, kind)]

    # One after the other ----------------------------------------------------------------------------------------------------------

    def kernels(self) -> None:
        """Single kernels, and what dispatching costs on a device that was never calibrated."""
        beside = not self.runs and is_wide(self.graph)
        for number, want in enumerate(self.wants):
            share = self._left / (len(self.wants) - number) * (SHARE if self.runs or self.has_loops else 1.0)
            if want.is_empty or share <= 0:
                continue
            until = perf_counter() + share
            device, is_new = want.device, bool(want.unknown) and want.device.id not in self.calibrations
            if is_new and device.shares_lanes:
                self.brought[device.id] = _quick(device, self.machine, until - share / 2)
            self._single(want, until, beside)
            if is_new and not device.shares_lanes and perf_counter() < until - share / 2:
                self.brought[device.id] = _quick(device, self.machine, until - share / 2)  # last: programs of a device may have to be built

    def graph_itself(self) -> None:
        """The graph on invented values; beside others what could not be run so, for there was no time, or no room. All is kept."""
        if self.runs:
            with Crowding() as crowding:
                taught = rehearse_graph(self.graph, self.machine, self.only, self._costs, self._left * (SHARE if self.has_loops else 1.0))
            self.found |= {k: (x, crowding.share) for k, x in _by_key(taught).items() if self._counts(k)}
            rehearsed = {x.kind for x in taught}
            for want in self.wants if is_wide(self.graph) else ():
                rest = want.without(rehearsed)
                if not rest.is_empty and want.device.shares_lanes and self._left > 0:
                    self._single(rest, perf_counter() + self._left * (1 - SHARE if self.has_loops else 1.0), True)
        for crowded in {share for _, share in self.found.values()}:
            self.history.learn([x for x, share in self.found.values() if share == crowded], self.now, crowded)

    def loops(self) -> None:
        """Some turns of each loop."""
        for want in self.wants:
            for loop in want.loops:
                costs = self._costs()
                costs.in_body(loop.body, loop.every)
                turn = sum(costs.launch(loop.body, t, want.device).seconds for t in range(len(loop.body)))
                with Crowding() as crowding:
                    taught = rehearse(loop, want.device, self.machine, costs, turn, self._left)
                self.history.learn(taught, self.now, crowding.share)

    # Inside -----------------------------------------------------------------------------------------------------------------------

    @property
    def _left(self) -> float:
        return max(self.end - perf_counter(), 0.0)

    def _counts(self, key: Key) -> bool:
        """False for what is known better."""
        return key not in self.known or key[:2] in self.new

    def _costs(self, taught: Iterable[Lesson] = ()) -> KnownCosts:
        """The cost model with what was measured so far."""
        rows = {k: x for k, (x, _) in self.found.items()} | _by_key(taught)
        more = {k: Known(x.op, x.dtype, x.flops, x.nbytes, x.seconds, x.spread, 0, ALONE) for k, x in rows.items() if self._counts(k)}
        return KnownCosts(self.machine, {**self.calibrations, **self.brought}, {**self.known, **more}, building=self.building)

    def _single(self, want: _Want, until: float, beside: bool) -> None:
        """What single kernels take, as many as there are until `until` (`perf_counter`)."""
        # Each is launched a few times at least, and may take several times what the roofline says.
        share = max(until - perf_counter(), 0.0)
        chosen = [x for x in (*want.again[:LOOKED_AT], *want.unknown, *want.weak) if 8 * x.rough < share]
        with Crowding() as crowding:
            measured = measure_cases(want.device, [x.case for x in chosen], share if want.unknown else min(share, AGAIN_SECONDS), beside)
        if want.is_suspect:
            ratios = [measured[i].seconds / self.known[want.key, chosen[i].kind.text, 1].seconds for i in measured if chosen[i] in want.again]
            self.history.looked(want.key, median(ratios) if ratios else 1.0, self.now)
        for i, (_, kind, _) in enumerate(chosen):
            if i in measured and chosen[i] not in want.again:
                seconds, spread = measured[i]
                found = Lesson(want.key, kind.op, kind.text, 1, kind.dtype, kind.flops, kind.nbytes, seconds, spread, 1, alone=True)
                self.found[want.key, kind.text, 1] = found, crowding.share


def _by_key(rows: Iterable[Lesson]) -> dict[Key, Lesson]:
    return {(x.device, x.kind, x.width): x for x in rows}


def _quick(device: Device, machine: Machine, until: float) -> Calibration:
    """What a device's own figures do not say and every plan needs: dispatching."""
    found = Calibration(
        device.id, device.fingerprint, device.launch_seconds, dict(device.flops_per_second), device.bytes_per_second,
        crossing_seconds=device.crossing_seconds, whole=False, **dispatching(device, machine, 24, 60, 2, until),
    )  # fmt: skip
    save(device, found)
    return found


def _cases(graph: Graph, machine: Machine, device: Device) -> list[_Need]:
    """Every kind of task of `graph` that can be measured on `device`, the most work first."""
    rough, kinds = RooflineCosts(machine), Kinds()
    found: dict[str, _Need | None] = {}
    for owner in graph.with_inner():
        for task in alike(owner).first.tolist():
            if not is_learned(owner, task) or (kind := kinds.of(owner, task)).text in found:
                continue
            case = case_of(owner, task) if can_run(owner, task, device) else None
            found[kind.text] = None if case is None else _Need(rough.launch(owner, task, device).seconds, kind, case)
    return sorted((x for x in found.values() if x is not None), key=lambda x: -x.rough)


def loops_of(graph: Graph) -> Iterator[Loop]:
    """The loops of a graph, those in loops and in ifs too."""
    for op in graph.task_ops if graph.has_loops else ():
        if isinstance(op, Loop):
            yield op
        for part in op.parts.values() if isinstance(op, Nested) else ():
            yield from loops_of(part)


def is_wide(graph: Graph) -> bool:
    """True where tasks outside of loops can keep more than one lane busy: their longest path has less than two thirds of them."""
    depth = [0] * len(graph)
    count = 0
    for task, op in enumerate(graph.task_ops):
        counts = isinstance(op, Op) and not op.view
        count += counts
        makers = (int(graph.value_task[v]) for v in graph.reads(task))
        depth[task] = counts + max((depth[m] for m in makers if m >= 0), default=0)
    return 3 * max(depth, default=0) < 2 * count
