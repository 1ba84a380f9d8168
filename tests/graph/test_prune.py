"""Loops lose what nobody asks for, and nothing else: what is left gives the same values."""

import random
from dataclasses import replace

import numpy as np
import pytest

from hetsched.graph.graph import Graph, Loop, Value, Where
from hetsched.graph.interchange import thaw
from hetsched.graph.op import Op, Work
from hetsched.graph.prune import prune
from hetsched.graph.spec import Spec
from hetsched.testing.graphs import random_graph
from hetsched.testing.reference import interpret

X = np.arange(12, dtype="f4").reshape(4, 3)


def write(xp, inputs, outputs, workspace, attributes):
    outputs[0][...] = inputs[0]


LOG = Op("test.log", ("x",), ("x",), lambda specs, a: [specs[0]], lambda i, o, a: Work(0, 0, 0), kernels={"array": write}, pure=False)


def body(rows=2, effect=False):
    """A turn: `state` runs, `seen` is made by three tasks of which one reads `weight`, `aside` by one."""
    b = Graph.build()
    state, x, weight = b.input("state", (3,)), b.input("x", (rows, 3)), b.input("weight", (3,))
    total = b.op("tensor.sum", x, axes=(0,), name="total")
    b.output(b.op("tensor.add", state, total, name="next"), "next")
    half = b.op("tensor.scale", weight, factor=0.5, name="half")
    scaled = b.op("tensor.mul", x, half, name="scaled")
    b.output(b.op("tensor.neg", scaled, name="seen"), "seen")
    if effect:
        b.op(LOG, scaled, name="log")
    return b.output(b.op("tensor.exp", total, name="aside"), "aside").freeze()


def loop(**changes):
    """Four turns of which every second is a smaller one."""
    whole = Loop(
        body(), 4, ("weight",), ("x",), (("state", "next"),), ("seen", "aside"), rows={"seen": 6}, every={"half": 2, "aside": 2}, remainder=body(1),
        cycle=2, name="steps",
    )  # fmt: skip
    return replace(whole, **changes)


def around(inner, *wanted, after=False):
    """A graph around a loop that asks for the outputs called `wanted`."""
    b = Graph.build()
    given = {
        "state": b.input("s", (3,)),
        "x": b.constant(np.ones((4, 2, 3), "f4")),
        "weight": b.op("tensor.full", shape=(3,), value=2.0, name="made"),
    }
    outputs = dict(zip(inner.outputs, b.loop(inner, *(given[name] for name in inner.inputs)), strict=True))
    shown = b.op("data.whole", outputs["seen"], name="shown") if "seen" in outputs and inner.remainder is None else None
    if after:
        b.op("tensor.exp", given["state"], name="late", after=[shown])
    for name in wanted:
        b.output(outputs[name], name)
    return b


def the_loop(graph):
    (found,) = (t for t in graph.tasks if isinstance(t.op, Loop))
    return found


def value_of(builder, task):
    return Value(builder, builder.task_outputs[builder.task_names.index(task)][0])


def test_collected_outputs_that_nobody_reads_are_not_computed():
    graph = around(loop(), "state").freeze()
    task = the_loop(graph)
    assert task.name == "steps"
    assert task.op.collected == ()
    assert task.op.inputs == ("x", "state")
    assert (task.op.rows, task.op.every) == ({}, {})
    for part in (task.op.body, task.op.remainder):
        assert part.task_names == ["total", "next"]
        assert list(part.inputs) == ["state", "x"]
        assert list(part.outputs) == ["next"]
    assert task.op.remainder.spec(task.op.remainder.inputs["x"]) == Spec((1, 3))
    assert "made" in graph.task_index, "a task of the graph itself stays, read or not"


def test_what_is_asked_for_stays_and_bodies_are_the_same_objects():
    whole = loop()
    assert the_loop(around(whole, "seen", "aside").freeze()).op is whole
    kept = the_loop(around(whole, "state", "seen").freeze()).op
    assert kept.collected == ("seen",)
    assert kept.body.task_names == ["total", "next", "half", "scaled", "seen"]
    assert (dict(kept.rows), dict(kept.every)) == ({"seen": 6}, {"half": 2})


def test_a_loop_of_which_nobody_wants_anything_stays_as_it_is():
    whole = loop()
    assert the_loop(around(whole).freeze()).op is whole


def test_a_task_that_reads_a_sequence_asks_for_it_and_a_view_that_nobody_wants_does_not():
    graph = around(loop(remainder=None, cycle=0, rows={}), "state").freeze()
    assert graph.task_names == ["made", "steps"]
    b = around(loop(remainder=None, cycle=0, rows={}), "state")
    b.op("tensor.neg", b.op("tensor.reshape", value_of(b, "shown"), shape=(-1,), name="flat"), name="reader")
    graph = b.freeze()
    assert graph.task_names == ["made", "steps", "shown", "flat", "reader"]
    assert the_loop(graph).op.collected == ("seen",)


def test_effects_and_the_stop_value_stay():
    effect = body(effect=True)
    task = the_loop(around(loop(body=effect, remainder=None, cycle=0, rows={}, every={}), "state").freeze())
    assert task.op.body.task_names == ["total", "next", "half", "scaled", "log"]
    b = thaw(body())
    total = value_of(b, "total")
    enough = b.op("tensor.greater", b.op("tensor.sum", total, name="all"), b.constant(np.float32(5)), name="enough")
    stopping = loop(body=b.output(enough, "enough").freeze(), remainder=None, cycle=0, rows={}, every={}, stop="enough")
    assert the_loop(around(stopping, "state").freeze()).op.body.task_names == ["total", "next", "all", "enough"]


def test_what_came_after_a_view_that_is_gone_comes_after_the_loop():
    graph = around(loop(remainder=None, cycle=0, rows={}), "state", after=True).freeze()
    assert [(graph.task_names[a], graph.task_names[b]) for a, b in graph.after] == [("steps", "late")]


def test_a_view_that_another_task_has_to_be_with_stays():
    b = around(loop(remainder=None, cycle=0, rows={}), "state")
    b.op("tensor.exp", value_of(b, "made"), name="beside", where=Where(same_as="shown"))
    assert "shown" in b.freeze().task_index


def test_loops_in_loops():
    outer = Graph.build()
    start, rows = outer.input("start", (3,)), outer.input("rows", (4, 2, 3))
    weight = outer.op("tensor.exp", start, name="weight")
    last, seen, aside = outer.loop(loop(remainder=None, cycle=0, rows={}, every={}), weight, rows, start, name="inner")
    outer.output(outer.op("nn.tanh", last, name="tamed"), "next")
    outer.output(outer.op("data.whole", seen, name="all"), "all").output(outer.op("data.whole", aside, name="others"), "others")
    twice = Loop(outer.freeze(), 2, ("rows",), carried=(("start", "next"),), collected=("all", "others"))
    b = Graph.build()
    out = b.loop(twice, b.input("rows", (4, 2, 3)), b.input("start", (3,)))
    whole, less = Graph(b.output(out[0], "last").output(out[2], "others")), b.freeze()
    task = the_loop(less)
    assert task.op.body.task_names == ["inner", "tamed", "others"]
    assert task.op.body.task("inner").op.body.task_names == ["total", "next", "aside"]
    data = {"rows": np.ones((4, 2, 3), "f4"), "start": np.zeros(3, "f4")}
    for name, value in interpret(whole, data).items():
        np.testing.assert_array_equal(interpret(less, data)[name], value)


def test_a_remainder_that_uses_its_tasks_in_another_way_is_left_alone():
    def turn(rows):
        b = Graph.build()
        state, x = b.input("state", (3,)), b.input("x", (rows, 3))
        total, least = b.op("tensor.sum", x, axes=(0,), name="total"), b.op("tensor.max", x, axes=(0,), name="most")
        return b.output(b.op("tensor.add", state, total if rows > 1 else least, name="next"), "next").output(least, "most").freeze()

    odd = Loop(turn(2), 4, (), ("x",), (("state", "next"),), ("most",), remainder=turn(1), cycle=2)
    b = Graph.build()
    state, _ = b.loop(odd, b.constant(np.ones((4, 2, 3), "f4")), b.input("s", (3,)))
    assert the_loop(b.output(state, "state").freeze()).op is odd


@pytest.mark.parametrize("seed", range(8))
def test_random_graphs_keep_their_values(seed):
    pruned = 0
    for i in range(25):
        rng = random.Random(f"{seed}/{i}")
        graph, inputs = random_graph(rng, tasks=12)
        b = thaw(graph)
        b.outputs = {name: v for name, v in b.outputs.items() if rng.random() < 0.4}
        whole = Graph(b)
        less = prune(whole)
        pruned += less is not whole
        assert prune(less) is less
        assert list(less.outputs) == list(whole.outputs)
        wanted, found = interpret(whole, inputs), interpret(less, inputs)
        for name, value in wanted.items():
            np.testing.assert_array_equal(found[name], value, err_msg=f"{name} of graph {seed}/{i}")
    assert pruned
