"""A plan of one step that is run once: the values and errors of one that is bound, for arrays, objects, views and bounded dimensions."""

import numpy as np
import pytest

import hetsched as hs
from hetsched.errors import TaskError
from hetsched.executors import once, solo
from hetsched.executors.frame import Frame
from hetsched.executors.program import compile_plan, is_solo
from hetsched.machine import Device, Machine
from hetsched.run import check_inputs
from hetsched.testing.graphs import random_graph

# Its tasks are far shorter than a crossing: what is one step does not depend on the machine.
MACHINE = Machine((Device("cpu", "cpu", lanes=2, languages=("host", "array"), shares_lanes=True, launch_seconds=1e-6, crossing_seconds=1e-3),))


def both(graph, inputs):
    """The outputs and traced tasks of a plan that is walked, and of the same that is bound."""
    plan = hs.plan(graph, MACHINE, policy="one_device", only="cpu", learn=False)
    program = compile_plan(plan, whole=True)
    if not is_solo(program):
        return None
    given = check_inputs(graph, inputs)
    walked = once.Walk(Frame(program, given)).run(plan, 0.0, True)
    bound = solo.run(Frame(program, given), 0.0, True)
    return walked, bound


def test_random_graphs_give_what_bound_ones_give():
    seen = 0
    for seed in range(40):
        graph, inputs = random_graph(seed, tasks=12, loops=False)
        found = both(graph, inputs)
        if found is None:
            continue
        seen += 1
        walked, bound = found
        assert list(walked) == list(bound)
        for name in bound:
            np.testing.assert_array_equal(walked[name], bound[name])
        assert [s.command for s in walked.trace.spans] == [s.command for s in bound.trace.spans]
        assert all(a.finish <= b.finish for a, b in zip(walked.trace.spans, walked.trace.spans[1:], strict=False))
    assert seen > 20


def mixed():
    """Objects, two results at once, arrays made of objects, a view that is an output, and an object that is one."""

    @hs.op(hs.Opaque("pair"))
    def pack(x, y):
        return [float(x[0]), float(y[0])]

    @hs.op([hs.Opaque("a"), hs.Spec((2,), np.float32)], outputs=("a", "b"))
    def split(pair):
        return pair[0], np.array(pair, np.float32)

    b = hs.Graph.build()
    x, y = b.input("x", (2, 2)), b.input("y", (4,))
    flat = b.op("tensor.reshape", x, shape=(4,))
    total = b.op("tensor.add", flat, y)
    pair = b.op(pack, total, y)
    one, two = b.op(split, pair)
    back = b.op("tensor.reshape", b.op("tensor.scale", total, factor=2.0), shape=(2, 2))
    for value, name in ((one, "one"), (two, "two"), (back, "back"), (pair, "pair"), (total, "total")):
        b.output(value, name)
    return b.freeze()


def test_objects_views_and_arrays_together():
    inputs = {"x": np.arange(4, dtype=np.float32).reshape(2, 2), "y": np.ones(4, np.float32)}
    found = both(mixed(), inputs)
    assert found is not None
    for result in found:
        assert result["one"] == 1.0
        assert result["pair"] == [1.0, 1.0]
        np.testing.assert_array_equal(result["two"], [1, 1])
        np.testing.assert_array_equal(result["back"], [[2, 4], [6, 8]])
        np.testing.assert_array_equal(result["total"], [1, 2, 3, 4])


def test_the_task_that_fails_is_named():
    @hs.op(hs.Opaque("x"))
    def breaks(a):
        raise ValueError("no")

    b = hs.Graph.build()
    b.output(b.op(breaks, b.input("a", (1,)), name="culprit"), "y")
    with pytest.raises(TaskError, match="'culprit' failed: ValueError: no"):
        hs.run(b.freeze(), {"a": np.zeros(1, np.float32)}, learn=False)
