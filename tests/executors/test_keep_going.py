"""keep_going: what fails stops only what needs it, wherever it fails: in a task, in a loop, at a file, on a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

import hetsched as hs
from hetsched.errors import FileError
from hetsched.graph.graph import Builder, Graph, Loop
from hetsched.graph.op import Op, Work
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode

CPU = Device("cpu", "cpu", lanes=2, languages=("host", "array"), shares_lanes=True)
GPU = Device("gpu:0", "emulated", memory="gpu:0", hardware="gpu", launch_seconds=0, flops_per_second={"float32": 1e15})
ALONE = Machine((CPU,))
WITH_GPU = Machine((CPU, GPU), (Link(HOST, "gpu:0", 0), Link("gpu:0", HOST, 0)), (MemoryNode(HOST), MemoryNode("gpu:0")))


def raising(error: Exception, turn: float = 0.0) -> Op:
    """An op that copies its input, and fails where its first element is `turn`."""

    def kernel(xp: Any, ins: Sequence[Any], outs: Sequence[Any], workspace: Any, attributes: Mapping[str, Any]) -> None:
        if float(ins[0].reshape(-1)[0]) == turn:
            raise error
        np.copyto(outs[0], ins[0])

    return Op("test.raises", ("x",), ("y",), lambda s, a: [s[0]], lambda i, o, a: Work(1, 4, 4), kernels={"array": kernel})


def with_others(b: Builder, bad: hs.Value) -> Graph:
    """What needs `bad`, and chains of what does not, long enough for bytes to be used again."""
    b.output(b.op("tensor.neg", b.op("tensor.neg", bad, name="needs_it"), name="needs_it_too"), "lost")
    for i in range(6):
        value = b.op("tensor.scale", b.input(f"x{i}", (64,)), factor=2.0)
        for k in range(8):
            value = b.op("tensor.add", value, b.op("nn.tanh", value, name=f"t{i}_{k}"))
        b.output(value, f"kept{i}")
    return b.freeze()


def check(graph: Graph, machine: Machine, inputs: dict[str, Any], name: str, kind: type[Exception]) -> None:
    inputs |= {f"x{i}": np.full(64, i + 1, np.float32) for i in range(6)}
    plan = hs.plan(graph, machine, policy="round_robin")
    wanted = {}
    for i in range(6):
        value = 2 * inputs[f"x{i}"]
        for _ in range(8):
            value = value + np.tanh(value)
        wanted[f"kept{i}"] = value
    for _ in range(5):
        result = hs.run(plan, inputs, keep_going=True)
        assert list(result.failed) == [name]
        assert isinstance(result.failed[name], kind)
        assert sorted(result) == sorted(wanted)
        for key, value in wanted.items():
            np.testing.assert_allclose(result[key], value, rtol=1e-5)


@pytest.mark.parametrize("machine", [ALONE, WITH_GPU], ids=["threads", "device"])
@pytest.mark.parametrize("error", [ZeroDivisionError("no"), FileError("data.npz: no such file")], ids=["task", "file"])
def test_a_failed_task_stops_only_what_needs_it(machine: Machine, error: Exception) -> None:
    b = Graph.build()
    graph = with_others(b, b.op(raising(error), b.input("bad", (64,)), name="bad"))
    check(graph, machine, {"bad": np.zeros(64, np.float32)}, "bad", FileError if isinstance(error, FileError) else hs.TaskError)


@pytest.mark.parametrize("machine", [ALONE, WITH_GPU], ids=["threads", "device"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_loop_in_which_something_fails_is_lost_as_a_whole(machine: Machine, nested: bool) -> None:
    body = Graph.build()
    state, x = body.input("s", (64,)), body.input("x", (64,))
    copied = body.op(raising(ZeroDivisionError("turn 3"), 3.0), x, name="bad")
    body.output(body.op("tensor.add", state, copied, name="sum"), "s_new")
    body.output(body.op("tensor.neg", copied), "other")
    loop = Loop(body.freeze(), 8, sequences=("x",), carried=(("s", "s_new"),), collected=("other",))
    if nested:
        outer = Graph.build()
        last, seen = outer.loop(loop, outer.input("xs", (8, 64)), outer.input("t", (64,)), name="inner")
        outer.output(last, "t_new")
        outer.output(outer.op("reduce.sum", seen) if False else last, "t_again")
        loop = Loop(outer.freeze(), 2, invariants=("xs",), carried=(("t", "t_new"),))
    b = Graph.build()
    xs, s = b.input("xs", (8, 64)), b.input("s", (64,))
    last, *_ = b.loop(loop, xs, s, name="loop")
    graph = with_others(b, last)
    rows = np.repeat(np.arange(8, dtype=np.float32)[:, None], 64, axis=1)
    check(graph, machine, {"xs": rows, "s": np.zeros(64, np.float32)}, "loop", hs.TaskError)
