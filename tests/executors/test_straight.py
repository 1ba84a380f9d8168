"""Programs made by arrays are those made span by span, and results of threads outlive what they were made with."""

import pickle

import numpy as np

import hetsched as hs
from hetsched.executors import program
from hetsched.executors.program import compile_plan, find_cycle
from hetsched.executors.straight import Arcs, straight
from hetsched.machine import HOST, Device, Machine, MemoryNode
from hetsched.testing.graphs import random_graph

CPU = Device("cpu", "cpu", lanes=3, languages=("host", "array"), shares_lanes=True, bytes_per_second=10e9, flops_per_second={"float32": 1e7})
SLOW = Machine((CPU,), (), (MemoryNode(HOST),))


def test_by_arrays_and_span_by_span_are_one(monkeypatch):
    seen = joined = 0
    for seed in range(60):
        graph, _ = random_graph(seed, tasks=16, loops=False)
        plan = hs.plan(graph, SLOW, policy="heft", learn=False)
        if straight(plan) is None:
            continue
        found = compile_plan(plan)
        with monkeypatch.context() as patch:
            patch.setattr(program, "straight", lambda plan: None)
            wanted = compile_plan(plan)
        assert isinstance(found.arcs, Arcs)
        assert found.steps == wanted.steps
        assert sorted(found.arcs) == sorted(wanted.arcs)
        assert len(set(found.arcs)) == len(found.arcs)
        assert find_cycle(len(found.steps), found.arcs) is None
        assert found.plain_on == "cpu"
        seen += 1
        joined += any(len(step.spans) > 1 for step in found.steps)
    assert seen > 30
    assert joined > 10


def test_what_is_not_plain_is_made_span_by_span():
    for seed in range(30):
        graph, _ = random_graph(seed, tasks=10)
        plan = hs.plan(graph, SLOW, policy="heft", learn=False)
        if plan.loops:
            assert straight(plan) is None
            assert all(straight(body) is None for body in plan.loops.values())
            return
    raise AssertionError("no graph with a loop")


def test_arcs_are_a_sequence():
    arcs = Arcs(np.array([0, 1, 0]), np.array([1, 2, 2]))
    assert list(arcs) == [(0, 1, 0), (1, 2, 0), (0, 2, 0)]
    assert arcs[1] == (1, 2, 0)
    assert list(arcs[1:]) == [(1, 2, 0), (0, 2, 0)]
    assert len(arcs) == 3


def test_a_result_of_threads_can_be_sent_to_another_process():
    b = hs.Graph.build()
    x = b.input("x", (4096,))
    b.output(b.op("tensor.add", b.op("tensor.scale", x, factor=2.0), b.op("tensor.scale", x, factor=3.0)), "y")
    plan = hs.plan(b.freeze(), SLOW, policy="heft", learn=False)
    result = hs.run(plan, {"x": np.ones(4096, np.float32)}, learn=False)
    again = pickle.loads(pickle.dumps(result))
    np.testing.assert_array_equal(again["y"], 5 * np.ones(4096))
    assert [span.command for span in again.trace.spans] == [span.command for span in result.trace.spans]
