"""The virtual clock: a simulated run takes the lanes that a real one takes."""

from __future__ import annotations

import numpy as np
import pytest

import hetsched as hs
from hetsched.check import problems
from hetsched.graph.graph import Graph, Loop
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode
from hetsched.timeline import Lane, Timeline

FOUR = Machine(
    (Device("cpu", "cpu", lanes=4, io_lanes=2, languages=("host", "array"), flops_per_second={"float32": 1e9}, shares_lanes=True),),
)
X = np.ones((64, 64), np.float32)


def apart(tasks: int, turns: int = 0) -> Graph:
    """So many tasks that do not wait for each other; with `turns` as the body of a loop."""
    b = Graph.build()
    x = b.input("x", (64, 64))
    made = [b.op("tensor.scale", x, name=f"t{i}", factor=float(i)) for i in range(tasks)]
    for i, value in enumerate(made):
        b.output(value, f"y{i}")
    if not turns:
        return b.freeze()
    loop = Loop(b.freeze(), turns, invariants=("x",), collected=tuple(f"y{i}" for i in range(tasks)))
    outer = Graph.build()
    for i, value in enumerate(outer.loop(loop, outer.input("x", (64, 64)), name="turns")):
        outer.output(value, f"y{i}")
    return outer.freeze()


def lanes_of(timeline: Timeline) -> set[Lane]:
    """The lanes that launches of ops are on, in loops too."""
    own = {lane for span in timeline.launches if span.command.task not in timeline.loops for lane in span.lanes}  # type: ignore[union-attr]
    return own.union(*map(lanes_of, timeline.loops.values()))


@pytest.mark.parametrize("policy", ["serial", "heft"])
@pytest.mark.parametrize("executor", ["simulated", "cpu"])
def test_a_run_takes_the_lanes_that_the_plan_names_and_no_others(policy: str, executor: str) -> None:
    plan = hs.plan(apart(8), machine=FOUR, policy=policy)
    assert problems(plan) == []
    assert len(lanes_of(plan)) == (1 if policy == "serial" else 4)
    result = hs.run(plan, {"x": X}, executor=executor)
    assert lanes_of(result.trace) <= lanes_of(plan)
    if executor == "simulated":
        assert lanes_of(result.trace) == lanes_of(plan)
        assert result.trace.makespan == pytest.approx(plan.makespan)


def test_a_loop_has_the_lanes_that_its_body_names() -> None:
    plan = hs.plan(apart(3, turns=5), machine=FOUR)
    result = hs.run(plan, {"x": X}, executor="simulated")
    assert lanes_of(result.trace) <= lanes_of(plan)


def test_a_device_that_is_not_here_has_the_values_of_numpy_for_ops_with_kernels_of_their_own() -> None:
    gpu = Device(
        "cuda:0", "cuda", memory="cuda:0", languages=("cuda", "array"), flops_per_second={"float32": 1e13}, bytes_per_second=1e12, shares_lanes=False
    )
    links = (Link(HOST, "cuda:0", 1e-6, 1e10), Link("cuda:0", HOST, 1e-6, 1e10))
    machine = Machine((*FOUR.devices, gpu), memories=(MemoryNode(HOST), MemoryNode("cuda:0", 1 << 30)), links=links)
    b = Graph.build()
    w = b.op("nn.init", name="w", shape=(64, 8), dtype="float32", scheme="he_uniform", seed=1, key="w")
    b.output(b.op("nn.dense", b.input("x", (64, 64)), w, activation="relu"), "y")
    graph = b.freeze()
    found = hs.run(hs.plan(graph, machine, only="cuda:0"), {"x": X}, executor="simulated")["y"]
    np.testing.assert_allclose(found, hs.run(hs.plan(graph, FOUR), {"x": X})["y"], rtol=1e-6)
