"""What loops collect: one value under several names, and rows of a loop that stops early."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hetsched as hs
from hetsched.executors.backends.emulated import emulate
from hetsched.graph.graph import Graph, Loop
from hetsched.graph.sequence import Body, loop_over_batches
from hetsched.machine.described import machine_named
from hetsched.testing.reference import interpret

FIRST = np.array([1.0, 2.0, 3.0], np.float32)
WAYS: dict[str, Callable[[Graph, Any], Any]] = {
    "threads": lambda g, i: hs.run(g, i, only="cpu", learn=False),
    "keep going": lambda g, i: hs.run(g, i, only="cpu", learn=False, keep_going=True),
    "replanned": lambda g, i: hs.run(g, i, only="cpu", learn=False, replan=True),
    "simulated": lambda g, i: hs.run(g, i, only="cpu", learn=False, executor="simulated"),
    "emulated": lambda g, i: hs.run(g, i, machine=emulate(machine_named("workstation")), only="cuda", learn=False),
}


def twice_collected(turns: int) -> Graph:
    """A carried value under three names, one of them as rows of one array; and the state as it was."""
    body = Graph.build()
    state = body.input("state", (3,))
    new = body.op("tensor.scale", state, factor=0.5)
    for name in ("new", "again", "rows"):
        body.output(new, name)
    body.output(state, "was")
    loop = Loop(body.freeze(), turns, carried=(("state", "new"),), collected=("again", "new", "rows", "was"), rows={"rows": 3 * turns})
    b = Graph.build()
    for name, value in zip(("last", *loop.collected), b.loop(loop, b.input("first", (3,))), strict=True):
        b.output(value, name)
    return b.freeze()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("turns", [1, 4, 150])
def test_a_value_that_is_collected_under_several_names(way: str, turns: int) -> None:
    found = WAYS[way](twice_collected(turns), {"first": FIRST})
    was = [FIRST * np.float32(0.5) ** i for i in range(turns)]
    new = [0.5 * x for x in was]
    np.testing.assert_array_equal(found["again"], new)
    np.testing.assert_array_equal(found["new"], new)
    np.testing.assert_array_equal(found["rows"], np.concatenate(new))
    np.testing.assert_array_equal(found["was"], was)
    np.testing.assert_array_equal(found["last"], new[-1])


def stopping(turns: int, stop: int) -> Graph:
    """Rows of batches of 4 and a last one of 2, until turn `stop`."""

    def body(n: int) -> Graph:
        b = Graph.build()
        x, turn = b.input("x", (4 * turns - 2, 3)), b.input("turn", (), np.int64)
        rows = b.op("data.batch_rows", x, turn, batch=4, count=n, cycle=turns, name="take")
        b.output(b.op("tensor.neg", rows, name="neg"), "rows")
        return b.output(b.op("tensor.greater_equal", turn, b.constant(np.int64(stop)), name="enough"), "stop").freeze()

    loop = Loop(
        body(4), turns, ("x",), collected=("rows",), rows={"rows": 4 * turns - 2}, turn="turn", stop="stop", remainder=body(2), cycle=turns
    )  # fmt: skip
    b = Graph.build()
    (rows,) = b.loop(loop, b.input("x", (4 * turns - 2, 3)))
    b.output(rows, "rows")
    b.output(b.op("tensor.neg", b.op("data.whole", rows)), "again")
    return b.freeze()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stop", [0, 1, 2, 7])
def test_a_loop_that_stops_early_gives_the_rows_that_it_came_to(way: str, stop: int) -> None:
    graph, inputs = stopping(3, stop), {"x": np.arange(30, dtype=np.float32).reshape(10, 3)}
    found, n = WAYS[way](graph, inputs), min(4 * (stop + 1), 10)
    np.testing.assert_array_equal(found["rows"], -inputs["x"][:n])
    np.testing.assert_array_equal(found["again"], inputs["x"][:n])
    np.testing.assert_array_equal(interpret(graph, inputs)["rows"], -inputs["x"][:n])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("epochs", [1, 2, 60])
def test_rows_of_several_epochs_are_rows_of_one_array(way: str, epochs: int) -> None:
    b = Graph.build()
    x = b.input("x", (10, 3))

    def write(body: Body) -> None:
        body.collect("rows", body.builder.op("tensor.neg", body.take(x), name="neg"), rows=10 * epochs)

    b.output(loop_over_batches(b, write, rows=10, batch=4, epochs=epochs)["rows"], "rows")
    graph, inputs = b.freeze(), {"x": np.arange(30, dtype=np.float32).reshape(10, 3)}
    np.testing.assert_array_equal(WAYS[way](graph, inputs)["rows"], -np.concatenate([inputs["x"]] * epochs))
