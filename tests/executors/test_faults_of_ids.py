"""Ids out of range: the same error on every device, with the task, the value, the range and the turn; nobody waits for the device to see it."""

import re

import numpy as np
import pytest

import hetsched as hs
from hetsched.errors import TaskError
from hetsched.graph.graph import Graph, Loop
from hetsched.graph.ops import find
from hetsched.machine import Device
from hetsched.testing import opencl

DEVICES = ["cpu", pytest.param("opencl:0", marks=pytest.mark.skipif(not opencl.available(), reason="no OpenCL device works here"))]
on_opencl = pytest.mark.skipif(not opencl.available(), reason="no OpenCL device works here")


def one_op(name, **inputs_and_attributes):
    """A graph of one op: arrays are inputs."""
    b = Graph.build()
    given = {k: v for k, v in inputs_and_attributes.items() if isinstance(v, np.ndarray)}
    rest = {k: v for k, v in inputs_and_attributes.items() if k not in given}
    out = b.op(name, *(b.input(k, v.shape, v.dtype) for k, v in given.items()), name="it", **rest)
    b.output(out, "out")
    return b.freeze(), given


X = np.arange(6, dtype=np.float32).reshape(3, 2)
OPS = {
    "gather": lambda i: one_op("tensor.gather", x=X, indices=i),
    "scatter_add": lambda i: one_op("tensor.scatter_add", indices=i, updates=np.ones((4, 2), np.float32), size=3),
    "one_hot": lambda i: one_op("tensor.one_hot", indices=i, classes=3),
    "cross_entropy": lambda i: one_op("nn.cross_entropy", logits=np.ones((4, 3), np.float32), labels=i),
    "cross_entropy_grad": lambda i: one_op("nn.cross_entropy_grad", logits=np.ones((4, 3), np.float32), labels=i, dloss=np.ones((), np.float32)),
    "correct": lambda i: one_op("nn.correct", logits=np.ones((4, 3), np.float32), labels=i),
}
NAMES = {"gather": "indices", "scatter_add": "indices", "one_hot": "indices"}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("bad", [-1, 3])
def test_every_op_tells_of_the_id_the_range_and_the_task(op, device, bad):
    graph, inputs = OPS[op](np.array([0, 2, bad, 1]))
    wanted = f"task 'it' failed: IndexError: {NAMES.get(op, 'labels')}[2] is {bad}, outside 0 to 2; ids count from 0, never from the end"
    with pytest.raises(TaskError, match=re.escape(wanted)):
        hs.run(graph, inputs, only=device, learn=False)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64"])
def test_ids_of_every_dtype(device, dtype):
    """Of int8 ids for 200 rows only negative ones are wrong: as unsigned numbers they would pass."""
    x = np.arange(200, dtype=np.float32)
    good = np.array([0, 127, 5], dtype)
    graph, inputs = one_op("tensor.gather", x=x, indices=good)
    assert np.array_equal(hs.run(graph, inputs, only=device, learn=False)["out"], x[good])
    bad = np.array([0, -100 if np.dtype(dtype).kind == "i" else 201, 5], dtype)
    with pytest.raises(TaskError, match=rf"indices\[1\] is {bad[1]}, outside 0 to 199"):
        hs.run(graph, {**inputs, "indices": bad}, only=device, learn=False)


def looped(turns=30):
    """Each turn gathers the rows that its element of a sequence names, twice: of 5 rows, and of what that gave."""
    b = Graph.build("body")
    x, ids, again = b.input("x", (5, 2)), b.input("ids", (3,), np.int64), b.input("again", (3,), np.int64)
    first = b.op("tensor.gather", x, ids, name="first")
    second = b.op("tensor.gather", b.op("tensor.neg", first, name="neg"), again, name="second")
    body = b.output(b.op("tensor.sum", second, name="total"), "total").freeze()
    loop = Loop(body, turns, invariants=("x",), sequences=("ids", "again"), collected=("total",))
    outer = Graph.build()
    given = [outer.input("x", (5, 2)), *(outer.input(name, (turns, 3), np.int64) for name in ("ids", "again"))]
    outer.output(outer.loop(loop, *given, name="turns")[0], "totals")
    return outer.freeze()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("task", "turn"), [("first", 0), ("second", 1), ("first", 17), ("second", 29)])
def test_the_turn_and_the_task_of_a_loop_are_told(device, task, turn):
    graph = looped()
    ids, again = np.zeros((30, 3), np.int64), np.zeros((30, 3), np.int64)
    inputs = {"x": np.ones((5, 2), np.float32), "ids": ids, "again": again}
    good = np.asarray(hs.run(graph, inputs, only=device, learn=False)["totals"])
    assert (good == -6).all()
    (ids if task == "first" else again)[turn:, 1] = 9  # of every turn from there on: the first is told
    wanted = rf"task '{task}' failed in turn {turn} of loop 'turns': IndexError: indices\[1\] is 9, outside 0 to {4 if task == 'first' else 2};"
    with pytest.raises(TaskError, match=wanted):
        hs.run(graph, inputs, only=device, learn=False)


@pytest.mark.parametrize("device", DEVICES)
def test_a_session_goes_on_after_a_bad_id(device):
    graph = looped()
    inputs = {"x": np.ones((5, 2), np.float32), "ids": np.zeros((30, 3), np.int64), "again": np.zeros((30, 3), np.int64)}
    bad = {**inputs, "ids": np.full((30, 3), -2)}
    with hs.Session() as session:
        call = session.compile(graph, only=device)
        for _ in range(3):
            assert (np.asarray(call(inputs)["totals"]) == -6).all()
            with pytest.raises(TaskError, match=r"task 'first' failed in turn 0 of loop '.*': IndexError: indices\[\d\] is -2, outside 0 to 4"):
                call(bad)


@pytest.mark.parametrize("device", DEVICES)
def test_rows_of_a_batch_are_looked_at(device):
    order, turn = np.array([0, 1, 2, 5, 4, 3, 6]), np.array(1)
    x = np.arange(14, dtype=np.float32).reshape(7, 2)
    graph, inputs = one_op("data.batch_rows", x=x, turn=turn, order=order, batch=3, count=3, cycle=3)
    assert np.array_equal(hs.run(graph, inputs, only=device, learn=False)["out"], x[[5, 4, 3]])
    with pytest.raises(TaskError, match=r"order\[4\] is 7, outside 0 to 6"):
        hs.run(graph, {**inputs, "order": np.array([0, 1, 2, 5, 7, 3, 6])}, only=device, learn=False)


@on_opencl
@pytest.mark.parametrize("is_shared", [True, False], ids=["host memory", "device memory"])
def test_the_board_of_a_stream(is_shared, monkeypatch):
    """The event behind the launch raises; launches one by one and taped ones; where slots lie on the device, too."""
    from hetsched.executors.backends import _opencl_live, opencl

    board = _opencl_live.Board
    monkeypatch.setattr(_opencl_live, "Board", lambda context, shared: board(context, is_shared))
    live = opencl.open(Device("opencl:0", "opencl"), 1 << 16)
    try:
        stream = live.stream("compute")
        op = find("tensor.gather")
        x, ids, out = live.array(0, (3, 2), np.float32), live.array(64, (2,), np.int64), live.array(128, (2, 2), np.float32)
        reads, writes, attributes = (x, ids), (out,), {"axis": 0}
        stream.upload(X, x)
        for given in ([0, 1], [1, 7], [2, 2], [-1, 0], [0, 2], [5, 5]) * 60:  # more records than there are slots
            stream.upload(np.array(given), ids)
            before = stream.record()  # nothing of it can tell
            stream.launch(op.kernels["opencl"], reads, writes, None, attributes)
            event = stream.record()
            found = np.empty((2, 2), np.float32)
            stream.download(out, found)
            after = stream.record()
            before.wait()
            after.wait()
            if min(given) < 0 or max(given) > 2:
                for _ in range(2):
                    with pytest.raises(IndexError, match=r"indices\[\d\] is .*, outside 0 to 2") as caught:
                        event.wait()
                    assert caught.value.written is out
            else:
                event.wait()
                assert np.array_equal(found, X[given])
    finally:
        live.close()


@on_opencl
def test_what_nobody_heard_is_forgotten_before_the_next_run():
    from hetsched.executors.backends import opencl

    live = opencl.open(Device("opencl:0", "opencl"), 1 << 16)
    try:
        stream = live.stream("compute")
        x, ids, out = live.array(0, (3, 2), np.float32), live.array(64, (2,), np.int64), live.array(128, (2, 2), np.float32)
        events = []
        for value in (9, 8):
            stream.upload(np.array([value, value]), ids)
            stream.launch(find("tensor.gather").kernels["opencl"], (x, ids), (out,), None, {"axis": 0})
            events.append(stream.record())
        with pytest.raises(IndexError, match="is 9"):
            events[0].wait()
        events[1].last.wait()
        stream.forget_faults()
        events[1].wait()
    finally:
        live.close()
