"""Loops measured before they run: some turns of the body on invented values, by the executor that will run it.

What a turn of a hot loop takes is not the sum of what its kernels take when each is measured by itself: tasks of a turn are dispatched as one step of
compiled code, and find their arrays in caches. For training steps of small models the difference is a factor of two. So the body itself is run.
Only what is known to have no effect outside is run so: pure ops of this package, on arrays of fixed shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from hetsched.errors import HetschedError
from hetsched.executors import cpu
from hetsched.executors.measuring import MOST_BYTES, case_of
from hetsched.graph.graph import Graph, Loop
from hetsched.graph.op import Op
from hetsched.graph.spec import Spec
from hetsched.machine import Device, Machine
from hetsched.placement import plan_graph
from hetsched.placement.costs.estimate import CostModel
from hetsched.placement.costs.history import Lesson
from hetsched.placement.costs.kinds import BEGIN, TURN
from hetsched.placement.costs.lessons import lessons
from hetsched.placement.problem import can_run

# Turns of a rehearsal: enough for code to be compiled (after 50) and measured; fewer where a turn is long.
TURNS, LEAST_TURNS = 128, 8


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


def _invented(graph: Graph) -> Mapping[int, Any]:
    """Small positive numbers, and zeros for whole ones: those may be indices and labels."""
    random = np.random.default_rng(0)
    out: dict[int, Any] = {}
    for value in graph.inputs.values():
        spec = graph.spec(value)
        assert isinstance(spec, Spec)
        if spec.dtype.kind != "f":
            out[value] = np.zeros(spec.bounds, spec.dtype)
            continue
        some = (0.1 * random.random(min(spec.size, 1 << 16)) + 1e-3).astype(spec.dtype)
        out[value] = np.resize(some, spec.bounds)
    for array in out.values():
        array.setflags(write=False)
    return out
