"""When one thread does a straight plan sooner than several would."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

import hetsched as hs
from hetsched.executors import program
from hetsched.executors.program import one_segment
from hetsched.machine import Device, Machine
from hetsched.machine.calibration import Calibration
from hetsched.placement.costs import Estimate

HERE = Machine((Device("cpu", "cpu", lanes=2, languages=("host", "array"), shares_lanes=True, crossing_seconds=20e-6, fingerprint="x"),))


@dataclass
class Costs:
    """Seconds by the beginning of a task's name."""

    tiny: float
    long: float = 1.0

    def launch(self, graph, task, device, width=1):
        return Estimate(self.long if graph.task_names[task].startswith("long") else self.tiny, 0.0)

    def copy(self, nbytes, link):
        return Estimate(0.0, 0.0)


def fan(longs: int = 0) -> hs.Graph:
    g = hs.Graph.build()
    x, y = g.input("x", (4,)), g.input("y", (8,))  # costs are asked for once a kind
    for i in range(30):
        g.output(g.op("tensor.neg", x, name=f"tiny{i}"))
    for i in range(longs):
        g.output(g.op("tensor.neg", y, name=f"long{i}"))
    return g.freeze()


def decided(costs: Costs, longs: int = 0) -> bool:
    plan = hs.plan(fan(longs), HERE, policy="heft", costs=costs)
    assert len({lane for s in plan.launches for lane in s.lanes}) == 2
    return one_segment(plan) is not None


def test_tasks_far_shorter_than_a_crossing_are_one_step() -> None:
    assert decided(Costs(5e-6))
    assert not decided(Costs(15e-6))


def test_one_long_task_has_nothing_to_run_beside_and_two_have_each_other() -> None:
    assert decided(Costs(2e-6, 3e-4), longs=1)
    assert not decided(Costs(2e-6, 3e-4), longs=2)


def test_what_dispatching_adds_to_measured_costs_is_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Calibration("cpu", "x", 1e-6, {"float32": 1e10}, 1e10, dispatch_seconds=10e-6)
    monkeypatch.setattr(program, "load", lambda device: measured)
    assert decided(Costs(15e-6))
    assert not decided(Costs(25e-6))


def test_the_values_are_those_of_several_threads() -> None:
    plan = hs.plan(fan(), HERE, policy="heft", costs=Costs(5e-6))
    x = np.arange(4, dtype=np.float32)
    assert all(np.array_equal(y, -x) for y in hs.run(plan, {"x": x, "y": np.zeros(8, np.float32)}).values())
