"""Programs made by arrays are those made span by span, and results of threads outlive what they were made with."""

import pickle
from dataclasses import replace

import numpy as np

import hetsched as hs
from hetsched.executors import program
from hetsched.executors.frame import Frame
from hetsched.executors.program import compile_plan, find_cycle
from hetsched.executors.relay import Shape
from hetsched.executors.straight import Arcs, straight
from hetsched.executors.tracing import Log, Logs, Noted
from hetsched.machine import HOST, Device, Machine, MemoryNode
from hetsched.run import check_inputs
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
        assert tuple(found.steps) == tuple(wanted.steps)
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


def test_a_trace_by_arrays_is_the_one_by_notes():
    rng = np.random.default_rng(0)
    seen = several = 0
    for seed in range(40):
        graph, _ = random_graph(seed, tasks=16, loops=False)
        made = compile_plan(hs.plan(graph, SLOW, policy="heft", learn=False))
        if made.straight is None or made.straight.is_io is not None:
            continue
        logs = [Log(lane, [], {}) for lane in range(3)]
        at = 100.0
        for step in made.steps:
            log, finish = logs[rng.integers(3)], at + float(rng.integers(1, 4))
            log.times.extend((step.index, at, finish))
            if len(step.spans) > 1 and rng.random() < 0.5:
                ends = np.linspace(at, finish, len(step.spans) + 1)[1:].tolist()
                log.marks[step.index] = {made.plan.spans[i].command.task: end - 100.0 for i, end in zip(step.spans, ends, strict=True)}
            at += float(rng.integers(0, 2))
        noted = Logs(logs, range(len(made.steps)), 100.0, len(made.steps))
        found = Noted(made, noted, {"cpu": 1.0}, 1, {}).trace()
        wanted = Noted(made, noted.notes(), {"cpu": 1.0}, 1, {}).trace()
        assert found.spans == wanted.spans
        assert found.attributed == wanted.attributed
        assert found.totals == wanted.totals
        assert found.measured
        seen += 1
        several += bool(found.attributed)
    assert seen > 20
    assert several > 3


def test_what_a_frame_shares_by_arrays_is_what_it_shares_step_by_step():
    seen = 0
    for seed in range(60):
        graph, inputs = random_graph(seed, tasks=16, loops=False)
        made = compile_plan(hs.plan(graph, SLOW, policy="heft", learn=False))
        if made.straight is None or made.straight.is_io is not None:
            continue
        given = check_inputs(graph, inputs)
        found, wanted = Shape(Frame(made, given)), Shape(Frame(replace(made, straight=None), given))
        assert list(found.order) == list(wanted.order)
        assert [sorted(row) for row in found.near] == [sorted(row) for row in wanted.near]
        assert (found.spare, found.first, found.sinks, found.is_long) == (wanted.spare, wanted.first, wanted.sinks, wanted.is_long)
        assert found.several.keys() == wanted.several.keys()
        for shape in (found, wanted):
            shape.board.fill()
        for mine, other in zip(found.single, wanted.single, strict=True):
            assert (mine is None) == (other is None)
            if mine is not None and other is not None:
                same_launch(mine, found.board, other, wanted.board)
        for rank, bills in found.several.items():
            for mine, other in zip(bills, wanted.several[rank], strict=True):
                same_launch(mine, found.board, other, wanted.board)
        seen += any(bill is not None for bill in found.single)
    assert seen > 10


def same_launch(mine, board, other, others):
    """The same kernel, and arrays alike that lie at the same places of the arenas."""
    assert mine[0] == other[0] or getattr(mine[0], "__qualname__", 1) == getattr(other[0], "__qualname__", 2)
    assert mine[4:] == other[4:]
    for k in (1, 2):
        for x, y in zip(mine[k](board.cells), other[k](others.cells), strict=True):
            assert (x.shape, x.dtype, x.flags.writeable) == (y.shape, y.dtype, y.flags.writeable)
            assert place(board, x) == place(others, y)


def place(board, array):
    """Where an array lies in the arena; -1 where it does not."""
    arena = board.frame.memories[HOST].buffer if HOST in board.frame.memories else None
    if arena is None or not np.may_share_memory(arena, array):
        return -1
    return array.__array_interface__["data"][0] - arena.__array_interface__["data"][0]
