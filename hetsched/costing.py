"""What plans cost on this machine: brings together what is measured, what runs have taught, and the cost model; takes in what a run teaches.

Nothing is learned of described devices, and of emulated ones: they have no fingerprint. `HETSCHED_LEARN=0` in the environment is `--no-learn` for
every command and call: nothing that runs have taught is read or written.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from hetsched.executors import cpu, live
from hetsched.executors.crowding import Crowding
from hetsched.executors.measuring import Case, calibrate, case_of, measure_cases, work_together
from hetsched.graph.alike import alike
from hetsched.graph.graph import Graph, Loop
from hetsched.graph.op import Op
from hetsched.machine import Device, Machine
from hetsched.machine.calibration import Calibration, complaints, load, save
from hetsched.placement import plan_graph
from hetsched.placement.costs.handover import handovers
from hetsched.placement.costs.history import ALONE, Drift, History, Known, Lesson
from hetsched.placement.costs.kinds import Kind, Kinds, device_key, is_learned, link_key, turn_kind
from hetsched.placement.costs.known import KnownCosts
from hetsched.placement.costs.lessons import lessons
from hetsched.placement.costs.roofline import RooflineCosts
from hetsched.placement.problem import can_run
from hetsched.rehearsal import may_be_rehearsed, rehearse, rehearse_graph
from hetsched.timeline import Timeline

LEARN = "HETSCHED_LEARN"
# A first run measures what it needs in this time at most, seconds.
FIRST_SECONDS = 1.3
# Kinds that are measured again on a device that has become slow, and what measuring again may take, seconds.
LOOKED_AT, AGAIN_SECONDS = 3, 0.3
# Of the time for a device this share goes to single kernels where there are loops to rehearse.
KERNELS_SHARE = 0.6
# Longer than any task that executors join to others.
LONG = 1e-2


def may_learn() -> bool:
    """False where the environment says that nothing shall be learned."""
    return os.environ.get(LEARN, "1").strip().lower() not in ("0", "no", "off", "false")


def costs_for(
    machine: Machine, graph: Graph | None = None, *, learn: bool = True, measure: bool = False, only: str | None = None
) -> KnownCosts | RooflineCosts:
    """The cost model of `machine`: learned, calibrated, or the roofline of a machine of which nothing is kept.

    learn: False leaves out what runs have taught. measure: what `graph` needs and nothing is known of is measured now, in under two seconds,
    on the devices that `only` matches (all, where it matches none).
    """
    kept = [d for d in machine.devices if d.fingerprint]
    if not kept:
        return RooflineCosts(machine)
    calibrations = {d.id: c for d in kept if (c := load(d)) is not None}
    if not (learn and may_learn()):
        costs = KnownCosts(machine, {i: c for i, c in calibrations.items() if c.whole})
    else:
        history = History()
        if measure and graph is not None:
            wanted = [d for d in kept if only is None or d.matches(only)] or kept
            calibrations |= first_need(graph, machine, wanted, calibrations, history, only=only)
        keys = [*map(device_key, kept), *(link_key(x, machine) for x in machine.links)]
        costs = KnownCosts(machine, calibrations, history.known(keys), history.factors(keys))
    if graph is not None:
        for loop in loops_of(graph):
            costs.in_body(loop.body, loop.every)
    return costs


def loops_of(graph: Graph) -> Iterator[Loop]:
    """The loops of a graph, loops in loops too."""
    for op in graph.task_ops if graph.has_loops else ():
        if isinstance(op, Loop):
            yield op
            yield from loops_of(op.body)


class Taught(NamedTuple):
    """What a run has taught: what was measured of each kind of task, devices off by more than their spread, and why nothing could be kept ("" where

    it could). seconds: what learning took.
    """

    lessons: tuple[Lesson, ...]
    drifts: tuple[Drift, ...]
    warning: str
    seconds: float


def learn_from(trace: Timeline, history: History | None = None, crowded: float = 0.0, plan: Timeline | None = None) -> Taught:
    """Take in what a trace teaches. Costs about 2 us a span and one transaction; call it when the run is over.

    crowded: see `Result`. plan: what was followed, where it was one plan: it says what the trace does not.
    """
    begun = perf_counter()
    if not may_learn():
        return Taught((), (), "", 0.0)
    history = history or History()
    found = lessons(trace, plan)
    drifts = history.learn([*found, *handovers(trace, plan)], crowded=crowded)
    return Taught(tuple(found), tuple(drifts), history.warning, perf_counter() - begun)


# Measuring ------------------------------------------------------------------------------------------------------------------------


def first_need(
    graph: Graph, machine: Machine, devices: list[Device], calibrations: Mapping[str, Calibration], history: History, budget: float = FIRST_SECONDS,
    only: str | None = None,
) -> dict[str, Calibration]:  # fmt: skip
    """Measure, in about `budget` seconds at most, each kind of task of `graph` that nothing is known of on a device, the most work first.

    What was measured is kept as `alone`: the first run of such a task replaces it. What is known from a measurement alone, or from a run that other
    work disturbed, is measured once more when some time has passed; so are a few kinds on a device that has become slow and was not seen since.
    Then the graph is run on invented values, and of loops on threads some turns are (`hetsched.rehearsal`): in a run kernels take what they do beside
    others, not what they do alone. only: the device pattern of the plan, see `plan_graph`.
    Returns the calibrations that this brought: of a device that was never calibrated the cost of dispatching.
    """
    end = perf_counter() + budget
    helpers = [d for d in machine.devices if d.fingerprint and d not in devices and _is_needed(graph, d, devices)]
    keys = [device_key(d) for d in (*devices, *helpers)]
    known, now = history.known(keys), time.time()
    suspects = set(history.suspects(keys, now))
    brought: dict[str, Calibration] = {}
    wanted = [_wants(graph, machine, d, known, suspects, now) for d in devices]
    # What a graph takes is measured by running it; what single kernels take says first where.
    new = {(w.key, x.kind.text) for w in wanted for x in (*w.unknown, *w.weak)}
    runs = bool(new or helpers) and any(not isinstance(op, Loop) for op in graph.task_ops)
    single: list[tuple[list[Lesson], float]] = []
    for number, want in enumerate(wanted):
        share = (end - perf_counter()) / (len(wanted) - number) * (KERNELS_SHARE if runs else 1.0)
        if want.is_empty or share <= 0:
            continue
        until = perf_counter() + share
        if want.unknown and want.device.id not in calibrations and want.device.shares_lanes:
            brought[want.device.id] = _quick(want.device, machine, until - share / 2)
        measured, crowded = _kernels(want, until, known, history, now, beside=not runs and is_wide(graph))
        single.append((measured, crowded))
        if want.unknown and want.device.id not in calibrations and not want.device.shares_lanes and perf_counter() < until - share / 2:
            brought[want.device.id] = _quick(want.device, machine, until - share / 2)  # of streams last: their programs may have to be built
    found = {(x.device, x.kind, x.width): (x, crowded) for rows, crowded in single for x in rows}
    have = {**calibrations, **brought}

    def model(taught: Iterable[Lesson] = ()) -> KnownCosts:
        rows = {k: x for k, (x, _) in found.items()} | {(x.device, x.kind, x.width): x for x in taught}
        return KnownCosts(machine, have, known | {k: _as_known(x) for k, x in rows.items() if k not in known or k[:2] in new})

    loops = any(want.loops for want in wanted)
    if runs:
        with Crowding() as crowding:
            taught = rehearse_graph(graph, machine, only, model, (end - perf_counter()) * (KERNELS_SHARE if loops else 1.0))
        found |= {k: (x, crowding.share) for x in taught if (k := (x.device, x.kind, x.width)) not in known or k[:2] in new}
    for crowded in {share for _, share in found.values()}:
        history.learn([x for x, share in found.values() if share == crowded], now, crowded)
    for want in wanted:
        for loop in want.loops:
            costs = model()
            costs.in_body(loop.body, loop.every)
            turn = sum(costs.launch(loop.body, t, want.device).seconds for t in range(len(loop.body)))
            with Crowding() as crowding:
                learnt = rehearse(loop, want.device, machine, costs, turn, end - perf_counter())
            history.learn(learnt, now, crowding.share)
    return brought


class _Want(NamedTuple):
    """What is to be measured on a device before a graph is planned. again: kinds of a device that has become slow."""

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


def _wants(graph: Graph, machine: Machine, device: Device, known: Mapping[tuple[str, str, int], Known], suspects: set[str], now: float) -> _Want:
    key = device_key(device)
    unknown: list[_Need] = []
    weak: list[_Need] = []
    again: list[_Need] = []
    for need in _cases(graph, machine, device):
        row = known.get((key, need.kind.text, 1))
        if row is None:
            unknown.append(need)
        elif row.is_worth_a_look(now):
            weak.append(need)
        elif row.runs and key in suspects:
            again.append(need)
    loops = [x for x in loops_of(graph) if is_due(known.get((key, turn_kind(x.body), 1)), now) and may_be_rehearsed(x, device)]
    return _Want(device, key, unknown, weak, again, loops, key in suspects)


def _is_needed(graph: Graph, device: Device, others: list[Device]) -> bool:
    """True where a task can run on `device` and on none of the others."""
    tasks = alike(graph).first.tolist()
    return any(can_run(graph, t, device) and not any(can_run(graph, t, d) for d in others) for t in tasks)


def _kernels(
    want: _Want, until: float, known: Mapping[tuple[str, str, int], Known], history: History, now: float, beside: bool
) -> tuple[list[Lesson], float]:
    """What single kernels take, as many as there are until `until` (`perf_counter`), and how crowded it was meanwhile."""
    # Each is launched a few times at least, and may take several times what the roofline says.
    share = max(until - perf_counter(), 0.0)
    chosen = [x for x in (*want.again[:LOOKED_AT], *want.unknown, *want.weak) if 8 * x.rough < share]
    with Crowding() as crowding:
        measured = measure_cases(want.device, [x.case for x in chosen], share if want.unknown else min(share, AGAIN_SECONDS), beside)
    if want.is_suspect:
        ratios = [measured[i].seconds / known[want.key, chosen[i].kind.text, 1].seconds for i in measured if chosen[i] in want.again]
        history.looked(want.key, median(ratios) if ratios else 1.0, now)
    return [
        Lesson(want.key, kind.op, kind.text, 1, kind.dtype, kind.flops, kind.nbytes, measured[i].seconds, measured[i].spread, 1, alone=True)
        for i, (_, kind, _) in enumerate(chosen)
        if i in measured and chosen[i] not in want.again
    ], crowding.share


def _as_known(lesson: Lesson) -> Known:
    return Known(lesson.op, lesson.dtype, lesson.flops, lesson.nbytes, lesson.seconds, lesson.spread, 0, ALONE)


def is_due(row: Known | None, now: float) -> bool:
    """True where nothing is known, or what is known is worth another look."""
    return row is None or row.is_worth_a_look(now)


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


class _Need(NamedTuple):
    """A kind of task of a graph that can be measured. rough: its seconds by the roofline."""

    rough: float
    kind: Kind
    case: Case


def _cases(graph: Graph, machine: Machine, device: Device) -> list[_Need]:
    """Every kind of task of `graph` that can be measured on `device`, the most work first."""
    rough, kinds = RooflineCosts(machine), Kinds()
    found: dict[str, _Need | None] = {}
    for owner in (graph, *(x.body for x in loops_of(graph))):
        for task in alike(owner).first.tolist():
            if not is_learned(owner, task) or (kind := kinds.of(owner, task)).text in found:
                continue
            case = case_of(owner, task) if can_run(owner, task, device) else None
            found[kind.text] = None if case is None else _Need(rough.launch(owner, task, device).seconds, kind, case)
    return sorted((x for x in found.values() if x is not None), key=lambda x: -x.rough)


def _quick(device: Device, machine: Machine, until: float) -> Calibration:
    """What a device's own figures do not say and every plan needs: dispatching."""
    found = Calibration(
        device.id, device.fingerprint, device.launch_seconds, dict(device.flops_per_second), device.bytes_per_second,
        crossing_seconds=device.crossing_seconds, whole=False, **dispatching(device, machine, 24, 60, 2, until),
    )  # fmt: skip
    save(device, found)
    return found


def calibrate_device(
    device: Device, machine: Machine, budget: float = 40.0, tell: Callable[[str], None] | None = None
) -> tuple[Calibration, list[str]]:
    """Measure a device in about `budget` seconds at most, keep what was found, and forget what runs have taught of it; with what is remarkable."""
    begun = perf_counter()
    before = load(device)
    found = calibrate(device, machine, budget, tell)
    (tell or (lambda text: None))("dispatching")
    dispatch = dispatching(device, machine)
    together = dict(found.together)
    for other in machine.devices:
        if other.id != device.id and other.fingerprint:
            together[other.id] = work_together(device, other)[0]
    found = replace(found, together=together, took_seconds=perf_counter() - begun, **dispatch)
    save(device, found)
    if may_learn():
        History().forget(device_key(device))
    return found, [*found.notes, *complaints(found, before)]


def dispatching(device: Device, machine: Machine, tasks: int = 48, turns: int = 300, repeats: int = 3, until: float = math.inf) -> dict[str, Any]:
    """What the executor adds on a device, by running tasks of next to nothing: `Calibration`'s `dispatch_seconds`, `turn_seconds`, `loop_seconds` and

    `loop_task_seconds`; empty where the device cannot run them. until: when to leave out what is left (`perf_counter`).
    """
    graphs = [_steps(tasks), _turns(turns, 2), _turns(turns, 12)]
    if not can_run(graphs[0], 0, device):
        return {}
    step, turn, more = 0.0, 0.0, [0.0, 0.0]
    for i, graph in enumerate(graphs):
        if perf_counter() > until:
            break
        plan = plan_graph(graph, machine, policy="one_device", only=device.id)
        if i == 0:  # tasks that are taken to be long are not joined to one step
            plan = replace(plan, spans=tuple(s._replace(start=k * LONG, finish=(k + 1) * LONG) for k, s in enumerate(plan.spans)))
        given = {v: np.ones(graph.spec(v).bounds, np.float32) for v in graph.inputs.values()}  # type: ignore[union-attr]
        traces = [(live.run_plan(plan, given) if live.drives(plan) else cpu.run_plan(plan, given)).trace for _ in range(1 + repeats)][1:]
        if i == 0:
            step = max(median(_gap(sorted([s.start, s.finish] for s in t.launches)) for t in traces), 0.0)
            continue
        rows = [_turn_rows(t) for t in traces]
        if i == 1:
            turn = max(median(map(_gap, rows)), 0.0)
        more[i - 1] = max(median(t.makespan - turns * _period(r) for t, r in zip(traces, rows, strict=True)), 0.0)
    few, many = more
    each = max(many - few, 0.0) / 10
    return {"dispatch_seconds": step, "turn_seconds": turn, "loop_seconds": max(few - 2 * each, 0.0), "loop_task_seconds": each}


def _turn_rows(trace: Timeline) -> list[list[float]]:
    """[start, finish] of each turn that the trace of a graph with one loop has kept."""
    ends: dict[int, list[float]] = {}
    for span in next(iter(trace.loops.values())).spans:
        at = ends.setdefault(span.command.turn, [span.start, span.finish])  # type: ignore[union-attr]
        at[0], at[1] = min(at[0], span.start), max(at[1], span.finish)
    return [ends[k] for k in sorted(ends)]


def _gap(rows: list[list[float]]) -> float:
    """Seconds from the end of one to the start of the next, on the median."""
    return float(np.median([b[0] - a[1] for a, b in pairwise(rows)]))


def _period(rows: list[list[float]]) -> float:
    """Seconds from end to end of the last half, on the median."""
    return float(np.median([b[1] - a[1] for a, b in pairwise(rows[len(rows) // 2 :])]))


def _steps(n: int) -> Graph:
    """Tasks in a row that are not joined to one step: each reads the last two."""
    b = Graph.build("dispatching")
    x, y = b.input("x", (8,)), b.input("y", (8,))
    for _ in range(n):
        x, y = y, b.op("tensor.add", x, y)
    return b.output(y).freeze()


def _turns(n: int, tasks: int) -> Graph:
    """A loop whose turn is one step of a few tasks."""
    body = Graph.build("turn")
    x = body.input("x", (8,))
    y = body.op("tensor.add", x, x)
    for _ in range(tasks - 1):
        y = body.op("tensor.add", y, x)
    body.output(y, name="y")
    b = Graph.build("turning")
    loop = Loop(body.freeze(), n, carried=(("x", "y"),), name="turns")
    (last,) = b.loop(loop, b.input("x", (8,)))
    return b.output(last).freeze()
