"""What plans cost on this machine: brings together what is measured, what runs have taught, and the cost model; takes in what a run teaches.

Nothing is learned of described devices, and of emulated ones: they have no fingerprint. `HETSCHED_LEARN=0` in the environment is `--no-learn` for
every command and call: nothing that runs have taught is read or written.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from time import perf_counter
from typing import NamedTuple

from hetsched.dispatching import dispatching
from hetsched.executors.crowding import Crowding
from hetsched.executors.measuring import calibrate, calibrate_rest, work_together
from hetsched.executors.result import Result
from hetsched.graph.graph import Graph
from hetsched.machine import Device, Machine
from hetsched.machine.calibration import CROWDED, Calibration, complaints, load, may_be_resumed, place, save
from hetsched.needs import FIRST_SECONDS, first_need, loops_of, not_worth_building
from hetsched.placement.costs.handover import handovers
from hetsched.placement.costs.history import Drift, History, Lesson
from hetsched.placement.costs.kinds import device_key, link_key
from hetsched.placement.costs.known import KnownCosts
from hetsched.placement.costs.lessons import lessons
from hetsched.placement.costs.roofline import RooflineCosts
from hetsched.quiet import no_garbage_collection
from hetsched.text import percent_text
from hetsched.timeline import Timeline

LEARN = "HETSCHED_LEARN"


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
            building = not_worth_building(graph, _known(machine, graph, calibrations, history), only)
            calibrations |= first_need(graph, machine, wanted, calibrations, history, FIRST_SECONDS, only, building)
        costs = _known(machine, graph, calibrations, history)
        if graph is not None:
            costs = replace(costs, building=not_worth_building(graph, costs, only))
    if graph is not None:
        for loop in loops_of(graph):
            costs.in_body(loop.body, loop.every)
    return costs


def _known(machine: Machine, graph: Graph | None, calibrations: Mapping[str, Calibration], history: History) -> KnownCosts:
    """The cost model of what is measured and what runs have taught."""
    keys = [*(device_key(d) for d in machine.devices if d.fingerprint), *(link_key(x, machine) for x in machine.links)]
    costs = KnownCosts(machine, calibrations, history.known(keys), history.factors(keys))
    for loop in loops_of(graph) if graph is not None else ():
        costs.in_body(loop.body, loop.every)
    return costs


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
    with no_garbage_collection():
        found = lessons(trace, plan)
        drifts = history.learn([*found, *handovers(trace, plan)], crowded=crowded)
    return Taught(tuple(found), tuple(drifts), history.warning, perf_counter() - begun)


def learn_from_run(result: Result) -> Taught:
    """What a run teaches. Of one with checkpoints each plan's last trace does: only there is known what was cold, and what was a share of a step."""
    if 0 < len(result.traces) < len(result.plans):
        each = [learn_from(trace, crowded=result.crowded, plan=plan) for plan, trace in zip(result.plans[1:], result.traces, strict=True)]
        warning = next((x.warning for x in each if x.warning), "")
        drifts = {drift.device: drift for x in each for drift in x.drifts}
        return Taught(tuple(row for x in each for row in x.lessons), tuple(drifts.values()), warning, sum(x.seconds for x in each))
    return learn_from(result.trace, crowded=result.crowded, plan=result.plan if len(result.plans) == 1 else None)


# Measuring ------------------------------------------------------------------------------------------------------------------------


def calibrate_device(
    device: Device, machine: Machine, budget: float = 40.0, tell: Callable[[str], None] | None = None, fresh: bool = False
) -> tuple[Calibration, list[str]]:
    """Measure a device in about `budget` seconds at most, keep what was found, and forget what runs have taught of it; with what is remarkable.

    Where the time did not allow all ops the last time, a day ago at most, this goes on with those that are missing and leaves the others as they are;
    not where it shall be `fresh`.
    """
    begun = perf_counter()
    before = load(device)
    if before is not None and not fresh and may_be_resumed(before):
        return _go_on(device, machine, before, budget, tell)
    with Crowding() as crowding:
        found = calibrate(device, machine, budget, tell)
        (tell or (lambda text: None))("dispatching")
        dispatch = dispatching(device, machine)
        together = dict(found.together)
        for other in machine.devices:
            if other.id != device.id and other.fingerprint:
                together[other.id] = work_together(device, other)[0]
    found = replace(found, together=together, took_seconds=perf_counter() - begun, crowded=crowding.share, **dispatch)
    lost = _lost(device, found)
    if may_learn():
        History().forget(device_key(device))
    return found, [*found.notes, *complaints(found, before), *crowded_out(crowding.share), *lost]


def _go_on(device: Device, machine: Machine, before: Calibration, budget: float, tell: Callable[[str], None] | None) -> tuple[Calibration, list[str]]:
    with Crowding() as crowding:
        found = calibrate_rest(device, machine, before, budget, tell)
    found = replace(found, crowded=crowding.share)
    done = [name for name in before.missing if name not in found.missing]
    what = f"{', '.join(done)} {'was' if len(done) == 1 else 'were'} measured now" if done else "nothing more was measured"
    news = f"went on with what the time did not allow: {what}; all else is what was measured {_ago(time.time() - before.taken_at)} ago"
    return found, [*found.notes, news, *complaints(found), *crowded_out(crowding.share), *_lost(device, found)]


def _ago(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{max(seconds / 60, 1):.0f} minutes"


def _lost(device: Device, found: Calibration) -> list[str]:
    """Keeps what was found; says so where it cannot be."""
    if save(device, found):
        return []
    return [f"{place(device)} cannot be written: what was measured is lost; set XDG_CACHE_HOME to a folder of yours"]


def crowded_out(share: float) -> list[str]:
    """What is to be said of figures that were measured while threads waited `share` of the time for a core."""
    if share <= CROWDED:
        return []
    return [
        f"other work had the cores for {percent_text(share)} of the time, so these figures are too slow; calibrate again when the machine is idle"
    ]
