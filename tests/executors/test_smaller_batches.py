"""Several epochs of batches of which the last is smaller: every way to run a loop gives what a plain loop over the rows gives."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hetsched as hs
from hetsched.executors.backends.emulated import emulate
from hetsched.graph.graph import Graph
from hetsched.graph.sequence import Body, loop_over_batches
from hetsched.machine.described import machine_named
from hetsched.testing.opencl import available

Inputs = dict[str, Any]


def graph(rows: int, batch: int, epochs: int) -> Graph:
    """A state that is carried, a sum that is collected, and the rows drawn anew in every epoch."""

    def write(body: Body) -> None:
        inner = body.builder
        order = inner.op("random.permutation", body.turn, name="order", n=rows, seed=3)
        body.run_every(order, body.cycle)
        taken = body.take(x, order)
        state = body.carry("state", first)
        mean = inner.op("tensor.mean", taken, axes=[0], name="mean")
        body.give("state", inner.op("tensor.add", inner.op("tensor.scale", state, factor=0.5), mean, name="new"))
        body.collect("sums", inner.op("tensor.sum", inner.op("tensor.neg", taken), name="sum"))

    b = Graph.build()
    x, first = b.input("x", (rows, 3)), b.input("first", (3,))
    for name, value in loop_over_batches(b, write, rows=rows, batch=batch, epochs=epochs, name="batches").items():
        b.output(value, name)
    return b.freeze()


def wanted(x: np.ndarray, batch: int, epochs: int) -> tuple[np.ndarray, list[float]]:
    b = Graph.build()
    orders = [
        b.op("random.permutation", b.constant(np.int64(e * -(-len(x) // batch))), n=len(x), seed=3, name="order", key="order") for e in range(epochs)
    ]
    for i, order in enumerate(orders):
        b.output(order, f"order{i}")
    found = hs.run(b.freeze(), only="cpu", learn=False)
    state, sums = np.zeros(3), []
    for e in range(epochs):
        for at in range(0, len(x), batch):
            rows = x[found[f"order{e}"][at : at + batch]]
            state = 0.5 * state + rows.mean(0)
            sums.append(-rows.sum())
    return state, sums


def in_session(g: Graph, inputs: Inputs) -> Any:
    with hs.Session() as session:
        call = session.compile(g, only="cpu")
        return [call(inputs) for _ in range(3)][-1]


WAYS: dict[str, Callable[[Graph, Inputs], Any]] = {
    "threads": lambda g, i: hs.run(g, i, only="cpu", learn=False),
    "simulated": lambda g, i: hs.run(g, i, only="cpu", learn=False, executor="simulated"),
    "keep going": lambda g, i: hs.run(g, i, only="cpu", learn=False, keep_going=True),
    "replanned": lambda g, i: hs.run(g, i, only="cpu", learn=False, replan=True),
    "session": in_session,
    "emulated": lambda g, i: hs.run(g, i, machine=emulate(machine_named("workstation")), only="cuda", learn=False),
    "opencl": lambda g, i: hs.run(g, i, only="opencl", learn=False),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("rows", "batch", "epochs"), [(10, 4, 1), (10, 4, 60), (7, 3, 5), (8, 4, 3)])
def test_the_smaller_batch_of_every_epoch(way: str, rows: int, batch: int, epochs: int) -> None:
    if way == "opencl" and not available():
        pytest.skip("no OpenCL device works here")
    x = np.random.default_rng(0).random((rows, 3)).astype(np.float32)
    state, sums = wanted(x, batch, epochs)
    found = WAYS[way](graph(rows, batch, epochs), {"x": x, "first": np.zeros(3, np.float32)})
    np.testing.assert_allclose(found["state"], state, rtol=1e-5)
    np.testing.assert_allclose(found["sums"], sums, rtol=1e-5)
