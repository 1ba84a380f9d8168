"""What is to be run, rehearsed: the tasks of a graph, and some turns of each loop, on invented values, by the executor that will run them.

What a turn of a hot loop takes is not the sum of what its kernels take when each is measured by itself: tasks of a turn are dispatched as one step of
compiled code, and find their arrays in caches. For training steps of small models the difference is a factor of two. So the body itself is run.
Nor do tasks of a graph take what their kernels take again and again on the same arrays: they find what they read in other caches or in none, and
share a core's units, caches and memory with what is planned beside them. So the graph itself is planned, run and, with what that showed, planned
anew, until the plan stays what it was. Only what is known to have no effect outside is run so: pure ops of this package, on invented values of fixed
shape, and users' kernels where everything that they read comes from such ops, so that they see what they will see in the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from hetsched.check.spans import can_run
from hetsched.errors import HetschedError
from hetsched.executors import cpu, live
from hetsched.executors.measuring import MOST_BYTES, case_of
from hetsched.graph.graph import Graph, Loop, Nested
from hetsched.graph.kernel import UserKernel
from hetsched.graph.op import Op
from hetsched.graph.ops import family
from hetsched.graph.rest import rest_of
from hetsched.graph.spec import Spec
from hetsched.machine import Device, Machine
from hetsched.placement import plan_graph
from hetsched.placement.costs.estimate import CostModel
from hetsched.placement.costs.handover import handovers
from hetsched.placement.costs.history import Lesson
from hetsched.placement.costs.kinds import BEGIN, TURN
from hetsched.placement.costs.lessons import lessons
from hetsched.timeline import Launch, Timeline

# Turns of a rehearsal: enough for code to be compiled (after 50) and measured; fewer where a turn is long.
TURNS, LEAST_TURNS = 128, 8
# A plan of a graph is run so often, and so many plans are tried, each with what those before have shown; of many tasks the first so many are run.
RUNS, PLANS, MOST_TASKS = 5, 4, 2000
# A run takes up to so many times what is planned before anything has been run.
LONGER = 3.0


def may_be_rehearsed(loop: Loop, device: Device) -> bool:
    """True for a loop of pure ops on arrays of fixed shape that all run on `device`, whose threads share its tasks."""
    body = loop.body
    if not device.shares_lanes or loop.stop is not None or not loop.pure or loop.turns < LEAST_TURNS or not len(body):
        return False
    if not all(isinstance(s, Spec) and not s.is_bounded for s in body.value_specs):
        return False
    return all(isinstance(op, Op) and (op.view or case_of(body, t) is not None) and can_run(body, t, device) for t, op in enumerate(body.task_ops))


def rehearse(loop: Loop, device: Device, machine: Machine, costs: CostModel, turn_seconds: float, budget: float) -> list[Lesson]:
    """What some turns of `loop` on `device` teach, marked `alone`. turn_seconds: about what one takes; budget: seconds it all may take.

    [] where the budget or the memory is too small, or the loop cannot run on invented values.
    """
    turns = min(TURNS, loop.turns, int(budget / max(2 * turn_seconds, 1e-9)))
    if turns < LEAST_TURNS:
        return []
    short = replace(loop, turns=turns, rows={}, remainder=None, cycle=0)
    b = Graph.build("rehearsal")
    values = []
    for name in short.inputs:
        spec = short.body.spec(short.body.inputs[name])
        assert isinstance(spec, Spec)
        values.append(b.input(name, (turns, *spec.bounds) if name in short.sequences else spec.bounds, spec.dtype))
    try:
        for k, value in enumerate(b.loop(short, *values)):
            b.output(value, name=f"o{k}")
        graph = b.freeze()
        if sum(int(graph.value_nbytes[v]) for v in graph.inputs.values()) > MOST_BYTES:
            return []
        alone = replace(machine, devices=(device,), links=())
        found = cpu.run_plan(plan_graph(graph, alone, costs=costs, policy="one_device", only=device.id), _invented(graph))
    except HetschedError:  # kernels that refuse invented values teach nothing
        return []
    taught = lessons(found.trace)
    # What a loop of a few turns takes at its begin is not what one of many does.
    taught = [x for x in taught if x.op != BEGIN or turns == TURNS]
    return [x._replace(alone=True) for x in taught] if any(x.op == TURN for x in taught) else []


def rehearse_graph(
    graph: Graph, machine: Machine, only: str | None, costs: Callable[[Sequence[Lesson]], CostModel], budget: float
) -> tuple[Lesson, ...]:
    """What running the tasks of `graph` (all of them, or the first) on invented values teaches in `budget` seconds, marked `alone`.

    only: see `plan_graph`. costs: the cost model with what was taught so far. Nothing where no task may be run so, or the budget is too small.
    """
    end = perf_counter() + budget
    taught: dict[tuple[str, str, int], Lesson] = {}
    with suppress(HetschedError):  # kernels that refuse invented values teach nothing
        part = excerpt(graph, set(range(MOST_TASKS, len(graph))))
        machine = replace(machine, devices=tuple(d for d in machine.devices if d.fingerprint))  # of others nothing is kept
        places: list[tuple[Any, ...]] = []
        while len(places) < PLANS and len(part) and perf_counter() < end:
            plan = plan_graph(part, machine, costs=costs(tuple(taught.values())), only=only)
            most = (end - perf_counter()) / 2
            if not places and LONGER * plan.makespan > most:
                part = excerpt(part, {s.command.task for s in plan.spans if isinstance(s.command, Launch) and LONGER * s.finish > most})
                places.append(())
                continue
            place = tuple(sorted((s.command.task, s.lanes[0].owner, s.command.width) for s in plan.spans if isinstance(s.command, Launch)))
            if place in places:
                break
            places.append(place)
            taught |= {(x.device, x.kind, x.width): x for x in _runs(plan, end)}
    return tuple(taught.values())


def _runs(plan: Timeline, end: float) -> list[Lesson]:
    """The middle of what the faster half of several runs of a plan teach, as many as there are until `end` (`perf_counter`)."""
    given = _invented(plan.graph, _limits(plan.graph))
    if sum(x.nbytes for x in given.values()) + sum(plan.arenas.values()) > MOST_BYTES:
        return []
    runs: list[tuple[float, tuple[Lesson, ...]]] = []
    took = 0.0
    for _ in range(RUNS):
        begun = perf_counter()
        if begun + took > end:
            break
        trace = (live.run_plan(plan, given) if live.drives(plan) else cpu.run_plan(plan, given)).trace
        runs.append((trace.makespan, (*lessons(trace, plan), *handovers(trace, plan))))
        took = perf_counter() - begun
    # What disturbs a run makes it slower, never faster.
    runs = sorted(runs, key=lambda run: run[0])[: len(runs) // 2 + 1]
    seen: dict[tuple[str, str, int], list[Lesson]] = {}
    for x in (x for _, found in runs for x in found):
        seen.setdefault((x.device, x.kind, x.width), []).append(x)
    out = []
    for found in seen.values():
        seconds = median(x.seconds for x in found)
        spread = max(median(abs(x.seconds - seconds) for x in found), median(x.spread for x in found))
        out.append(found[-1]._replace(seconds=seconds, spread=spread, alone=True))
    return out


def excerpt(graph: Graph, without: set[int]) -> Graph:
    """The tasks of `graph` that may be rehearsed, but for those of `without`: what they read of others is an input."""
    done: set[int] = set()
    invented = set(graph.inputs.values())  # values that will be others in the run
    for task, op in enumerate(graph.task_ops):
        reads = graph.reads(task)
        outside = [v for v in reads if int(graph.value_task[v]) in done or (int(graph.value_task[v]) < 0 and v not in graph.constants)]
        is_known = all(isinstance(s := graph.value_specs[v], Spec) and not s.is_bounded for v in outside)
        is_true = invented.isdisjoint(reads)
        if task in without or isinstance(op, Nested) or not (op.pure and is_known and (op.view or family(op) or (is_true and _is_kernel(op)))):
            done.add(task)
        if task in done or not is_true:
            invented.update(graph.writes(task))
    return rest_of(graph, done, {}, lambda task: "any").graph


def _is_kernel(op: Op) -> bool:
    """True for a kernel of the user's own: its author has said what it takes, and that it does nothing else."""
    return isinstance(getattr(op.infer, "__self__", None), UserKernel)


def _limits(graph: Graph) -> dict[int, int]:
    """Input of whole numbers -> what they must be below to be indices into, or labels along an axis of, every array of numbers beside them."""
    out: dict[int, int] = {}
    for task in range(len(graph)):
        reads = [(v, s) for v in graph.reads(task) if isinstance(s := graph.value_specs[v], Spec)]
        least = min((n for _, s in reads if s.dtype.kind == "f" for n in s.bounds), default=1)
        for v, s in reads:
            if s.dtype.kind in "iu":
                out[v] = min(least, out.get(v, least))
    return out


def _invented(graph: Graph, limits: Mapping[int, int] | None = None) -> Mapping[int, Any]:
    """Small positive numbers, and whole ones below `limits`, else zeros: those may be indices and labels."""
    random = np.random.default_rng(0)
    out: dict[int, Any] = {}
    for value in graph.inputs.values():
        spec = graph.spec(value)
        assert isinstance(spec, Spec)
        if spec.dtype.kind != "f":
            most = (limits or {}).get(value, 1) if spec.dtype.kind in "iu" else 1
            out[value] = random.integers(0, max(most, 1), spec.bounds).astype(spec.dtype) if most > 1 else np.zeros(spec.bounds, spec.dtype)
            continue
        some = (0.1 * random.random(min(spec.size, 1 << 16)) + 1e-3).astype(spec.dtype)
        out[value] = np.resize(some, spec.bounds)
    for array in out.values():
        array.setflags(write=False)
    return out
