"""Ids out of range on CUDA: the CuPy of NumPy, whose kernels a C++ compiler builds, tells of them as other devices do; so does a card."""

import re
import sys

import numpy as np
import pytest
from test_faults_of_ids import NAMES, OPS, X, looped, one_op

import hetsched as hs
from hetsched.errors import TaskError
from hetsched.executors import devoted
from hetsched.graph.graph import Graph, Loop
from tests.executors.test_devoted import machine, on_device  # noqa: F401 (a fixture)

ON_CUDA = ("gather", "scatter_add", "one_hot", "cross_entropy", "cross_entropy_grad", "correct")


@pytest.fixture
def wraps(machine, monkeypatch):  # noqa: F811
    """The machine of a CuPy whose `take` wraps around, as CuPy's does."""

    def take(x, indices, axis=None, out=None):
        # As a kernel does: when the stream comes to it.
        found = np.take(np.asarray(x), np.asarray(indices), axis, mode="wrap")
        if out is None:
            return found
        out[...] = found
        return out

    monkeypatch.setattr(sys.modules["cupy"], "take", take, raising=False)
    return machine


def told(op, bad):
    return f"task 'it' failed: IndexError: {NAMES.get(op, 'labels')}[2] is {bad}, outside 0 to 2; ids count from 0, never from the end"


@pytest.mark.parametrize("op", ON_CUDA)
@pytest.mark.parametrize("bad", [-1, 3])
def test_every_op_tells_of_the_id_the_range_and_the_task(wraps, op, bad):
    graph, inputs = OPS[op](np.array([0, 2, bad, 1]))
    plan = hs.plan(graph, machine=wraps, only="cuda:0")
    with pytest.raises(TaskError, match=re.escape(told(op, bad))):
        hs.run(plan, inputs, learn=False)
    good = {**inputs, **{k: np.array([0, 2, 1, 1]) for k in ("indices", "labels") if k in inputs}}
    cpu = hs.run(hs.plan(graph, machine=wraps, only="cpu"), good, learn=False)
    assert np.array_equal(hs.run(plan, good, learn=False)["out"], cpu["out"])


@pytest.mark.parametrize(("task", "turn"), [("first", 0), ("second", 1), ("first", 17), ("second", 29)])
def test_the_turn_and_the_task_of_a_loop_that_is_walked_are_told(wraps, task, turn):
    graph = looped()
    ids, again = np.zeros((30, 3), np.int64), np.zeros((30, 3), np.int64)
    plan = hs.plan(graph, machine=wraps, only="cuda:0")
    given = {"x": np.ones((5, 2), np.float32), "ids": ids, "again": again}
    assert (np.asarray(hs.run(plan, given, learn=False)["totals"]) == -6).all()
    (ids if task == "first" else again)[turn:, 1] = 9
    with pytest.raises(TaskError, match=rf"task '{task}' failed in turn {turn} of loop 'turns': IndexError: indices\[1\] is 9, outside 0 to"):
        hs.run(plan, given, learn=False)


@pytest.mark.parametrize("at", [0, 5, 37, 79])
@pytest.mark.parametrize("trace", [True, False])
def test_a_loop_that_one_stream_does_by_itself_tells_of_the_task(wraps, monkeypatch, at, trace):
    monkeypatch.setattr(devoted, "KEPT_TURNS", 8)
    b = Graph.build("body")
    x, order, turn, state = b.input("x", (20, 3)), b.input("order", (80,), np.int64), b.input("turn", (), np.int64), b.input("state", (2, 3))
    wide = b.input("wide", (80, 3))
    rows = b.op("data.batch_rows", wide, turn, order, name="rows", batch=2, count=2, cycle=40)
    body = b.output(b.op("tensor.add", state, b.op("tensor.mul", rows, b.op("tensor.rows", x, start=0, stop=2)), name="sum"), "next").freeze()
    loop = Loop(body, 40, invariants=("x", "order", "wide"), carried=(("state", "next"),), turn="turn")
    o = Graph.build()
    given = {"x": np.ones((20, 3), "f4"), "order": np.arange(80), "wide": np.ones((80, 3), "f4"), "state": np.zeros((2, 3), "f4")}
    o.output(o.loop(loop, *(o.input(name, v.shape, v.dtype) for name, v in given.items()), name="turns")[0], "state")
    plan = hs.plan(o.freeze(), machine=wraps, only="cuda:0")
    done = []
    run = devoted.run
    monkeypatch.setattr(devoted, "run", lambda *given: (done.append(given), run(*given))[1])
    assert (hs.run(plan, given, trace=trace, learn=False)["state"] == 40).all()
    given["order"][at] = 80
    with pytest.raises(TaskError, match=rf"task 'rows' failed: IndexError: order\[{at}\] is 80, outside 0 to 79"):
        hs.run(plan, given, trace=trace, learn=False)
    assert len(done) == 2


def test_requests_that_the_caller_hands_over_tell_and_go_on(wraps):
    graph, inputs = one_op("tensor.gather", x=X, indices=np.array([0, 2, 1]))
    with hs.Session() as session:
        call = session.compile(hs.plan(graph, machine=wraps, only="cuda:0"))
        for _ in range(4):
            assert np.array_equal(call(inputs)["out"], X[[0, 2, 1]])
            with pytest.raises(TaskError, match=r"task 'it' failed: IndexError: indices\[1\] is 5, outside 0 to 2"):
                call({**inputs, "indices": np.array([0, 5, 1])})


@on_device
@pytest.mark.parametrize("op", ON_CUDA)
@pytest.mark.parametrize("bad", [-1, 3])
def test_a_card_tells_of_the_id_the_range_and_the_task(op, bad):
    graph, inputs = OPS[op](np.array([0, 2, bad, 1]))
    with pytest.raises(TaskError, match=re.escape(told(op, bad))):
        hs.run(graph, inputs, only="cuda:0", learn=False)
