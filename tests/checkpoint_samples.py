"""Graphs whose loops are cut off and taken up again in the tests of checkpoints, and the machine that they are planned for."""

from __future__ import annotations

from typing import Any

import numpy as np

import hetsched as hs
from hetsched.graph.graph import Graph
from hetsched.graph.sequence import Body, loop_over_batches
from hetsched.machine import HOST, Device, Machine, MemoryNode

SPEED = {"float32": 1e9}
CPU = Device("cpu", "cpu", lanes=2, languages=("host", "array"), shares_lanes=True, bytes_per_second=1e9, flops_per_second=SPEED)
HOME = Machine((CPU,), (), (MemoryNode(HOST),))
Arrays = dict[str, Any]


def batches(rows: int, batch: int, epochs: int) -> Graph:
    """Rows drawn anew in every epoch, noise by the turn, a state that is carried and numbers that are collected; tasks before, after and beside."""

    def write(body: Body) -> None:
        inner = body.builder
        order = inner.op("random.permutation", body.turn, name="order", n=rows, seed=3)
        body.run_every(order, body.cycle)
        taken = body.take(x, order)
        state = body.carry("state", first)
        noise = inner.op("random.normal", body.turn, name="noise", shape=(3,), seed=5)
        mean = inner.op("tensor.add", inner.op("tensor.mean", taken, axes=[0]), noise, name="mean")
        body.give("state", inner.op("tensor.add", inner.op("tensor.scale", state, factor=0.5), mean, name="new"))
        body.collect("sums", inner.op("tensor.sum", inner.op("tensor.neg", taken), name="sum"))

    b = Graph.build()
    given, first = b.input("x", (rows, 3)), b.input("first", (3,))
    x = b.op("nn.tanh", given, name="prepared")
    made = loop_over_batches(b, write, rows=rows, batch=batch, epochs=epochs, name="train")
    b.output(b.op("tensor.scale", made["state"], factor=2.0, name="after"), "after")
    b.output(made["sums"], "sums")
    b.output(b.op("tensor.sum", x, name="beside"), "beside")
    return b.freeze()


def arrays(rows: int) -> Arrays:
    return {"x": np.random.default_rng(rows).normal(size=(rows, 3)).astype(np.float32), "first": np.ones(3, np.float32)}


def planned(graph: Graph) -> hs.Timeline:
    return hs.plan(graph, machine=HOME, learn=False)
