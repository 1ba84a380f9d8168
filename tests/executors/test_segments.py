"""Segments: what has become code gives the values of a plain loop, and its errors name the task."""

import gc
import random
import tracemalloc
import weakref
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import hetsched as hs
from hetsched.errors import TaskError
from hetsched.executors import binding, segments
from hetsched.graph.graph import Graph, Loop
from hetsched.graph.op import Op, Work
from hetsched.graph.ops import conv, pool
from hetsched.testing.graphs import random_graph
from hetsched.testing.plans import plain_plan
from hetsched.testing.reference import interpret
from hetsched.testing.runs import run_problems, value_problems


@pytest.mark.parametrize("block", range(4))
def test_values_of_random_graphs_whose_steps_become_code_at_once(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "HOT_RUNS", 1)
    here = hs.Machine.here()
    with threadpool_limits(1):
        for seed in range(block * 40, (block + 1) * 40):
            graph, inputs = random_graph(random.Random(seed))
            wanted = interpret(graph, inputs)
            for plan in (hs.plan(graph, here), plain_plan(graph, here, seed=seed, slots=2 + seed % 3)):
                result = hs.run(plan, inputs)
                assert value_problems(result, wanted) == [], seed
                assert run_problems(plan, result.trace) == [], seed


def test_a_failure_in_code_names_the_task_and_the_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "HOT_RUNS", 2)

    def kernel(xp: Any, ins: Any, outs: Any, workspace: Any, attributes: Any) -> None:
        if int(ins[0]) == 6:
            raise ValueError("enough")
        outs[0][...] = ins[1]

    op = Op("test.op", ("turn", "s"), ("out",), lambda s, a: [s[1]], lambda i, o, a: Work(1, 4, 4), kernels={"array": kernel})
    body = Graph.build()
    turn, state = body.input("turn", (), np.int64), body.input("s", ())
    body.output(body.op("tensor.exp", body.op(op, turn, body.op("tensor.neg", state, name="before"), name="step"), name="behind"), "s2")
    b = Graph.build()
    (last,) = b.loop(Loop(body.freeze(), turns=9, carried=(("s", "s2"),), turn="turn"), b.input("s", ()))
    b.output(last, "last")
    with pytest.raises(TaskError, match=r"task 'step' failed in turn 6 of loop '.+': ValueError: enough") as caught:
        hs.run(b.freeze(), {"s": 0})
    assert caught.value.task == "step"


def training(turns: int) -> tuple[Graph, dict[str, Any]]:
    """A loop of a training step: an invariant, a sequence, carried weights, the turn's number, a task of every 4 turns."""
    body = Graph.build()
    x, w, scale, turn = body.input("x", (64, 32)), body.input("w", (32, 8)), body.input("scale", ()), body.input("turn", (), np.int64)
    hidden = body.op("nn.relu", body.op("tensor.matmul", x, w))
    grad = body.op("tensor.matmul", x, hidden, transpose_a=True, name="grad")
    seldom = body.op("tensor.neg", body.op("tensor.cast", turn, dtype="float32"), name="seldom")
    step = body.op("tensor.mul", grad, body.op("tensor.mul", scale, seldom))
    body.output(body.op("tensor.sub", w, step), "w2")
    b = Graph.build()
    loop = Loop(body.freeze(), turns, ("scale",), ("x",), (("w", "w2"),), turn="turn", every={"seldom": 4})
    (last,) = b.loop(loop, b.input("scale", ()), b.input("x", (turns, 64, 32)), b.input("w", (32, 8)))
    b.output(last, "last")
    rng = np.random.default_rng(0)
    inputs = {"x": rng.normal(size=(turns, 64, 32)).astype(np.float32), "w": rng.normal(size=(32, 8)).astype(np.float32), "scale": np.float32(1e-9)}
    return b.freeze(), inputs


def test_the_steady_state_of_a_loop_allocates_nothing() -> None:
    """Between turn 200 and turn 1000 the memory that Python and NumPy hold never rises by as much as the smallest array of the body (1 KiB)."""
    from hetsched.executors.binding import Bindings
    from hetsched.executors.frame import Frame

    graph, inputs = training(1000)
    plan = hs.plan(graph)
    seen: list[tuple[int, int]] = []
    plain = Bindings.perform

    def watched(self: Any, step: int, turn: int) -> None:
        loop = self.frame.loop is not None
        if loop and turn == 200:
            tracemalloc.start()
            tracemalloc.reset_peak()
        plain(self, step, turn)
        if loop and turn == 999:
            seen.append(tracemalloc.get_traced_memory())
            tracemalloc.stop()

    assert Frame is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bindings, "perform", watched)
        hs.run(plan, inputs, trace=False)
    assert seen, "the loop is more than one step a turn: watch its last"
    _, peak = seen[-1]
    assert peak < 1024, f"{peak} bytes"


def test_every_array_of_an_arena_is_aligned_to_64_bytes() -> None:
    seen = []

    def kernel(xp: Any, ins: Any, outs: Any, workspace: Any, attributes: Any) -> None:
        seen.extend(x.ctypes.data % 64 for x in (*ins, *outs, workspace))
        outs[0][...] = 0

    op = Op("test.op", ("x",), ("out",), lambda s, a: [s[0]], lambda i, o, a: Work(1, 4, 4), kernels={"array": kernel}, workspace=lambda i, o, a: 100)
    b = Graph.build()
    values = [b.op("tensor.neg", b.input("x", (3, 5)))]
    for _ in range(6):
        values.append(b.op(op, values[-1]))
    b.output(b.op("tensor.add", values[-1], values[2]), "y")
    hs.run(b.freeze(), {"x": np.zeros((3, 5), np.float32)})
    assert len(seen) == 18
    assert set(seen) == {0}


class Held:
    """An object that weak references can watch."""

    def __init__(self, number: int) -> None:
        self.number = number


def test_objects_pass_from_one_function_of_a_segment_to_the_next_and_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fan and a chain beside it, cut into functions of 4 launches: what all of them read, and what only the last reads."""
    monkeypatch.setattr(binding, "HOT_RUNS", 2)
    monkeypatch.setattr(segments, "CHUNK", 4)
    alive: list[weakref.ref[Held]] = []

    def made(number: int) -> Held:
        thing = Held(number)
        alive.append(weakref.ref(thing))
        return thing

    source = hs.op(hs.Opaque("held"), name="test.source")(lambda: made(1))
    more = hs.op(hs.Opaque("held"), name="test.more")(lambda a: made(a.number + 1))
    total = hs.op(hs.Opaque("int"), name="test.total")(lambda *rest: sum(x.number for x in rest))
    b = Graph.build()
    first = b.op(source)
    fan = [b.op(more, first) for _ in range(30)]
    chain = [first]
    for _ in range(9):
        chain.append(b.op(more, chain[-1]))
    b.output(b.op(total, *fan, *chain), "total")
    with hs.Session() as session:
        f = session.compile(b.freeze(), buffers=1)
        for _ in range(5):
            alive.clear()
            assert f()["total"] == 30 * 2 + sum(range(1, 11))
            assert len(alive) == 40
            gc.collect()
            assert [r() for r in alive if r() is not None] == []
        (seat,) = f._replay._idle
        assert seat.frame is not None
        code = seat.frame.bindings.bound(0, 0).segment
        assert code is not None
        assert len(code.pieces) == 11
        assert code.between, "nothing passed from one function to another: the test shows nothing"


CONVOLUTIONS: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    # (shapes, options of the convolution, options of the pooling)
    ({}, {"padding": 1, "activation": "relu"}, {"size": 2}),
    ({"bias": False}, {"padding": "same"}, {"size": 3, "stride": 2}),
    ({"n": 5}, {"stride": 2, "padding": (1, 2), "activation": "relu"}, {"size": (2, 3)}),
    ({"groups": 2}, {"dilation": 2, "groups": 2, "activation": "relu"}, {"size": 2, "padding": 1}),
    ({"dtype": "float64"}, {"padding": 2, "activation": "relu"}, {"size": (1, 2)}),
    ({"dtype": "float16"}, {"activation": "relu"}, {"size": 2}),
]


@pytest.mark.parametrize(("shapes", "options", "pooling"), CONVOLUTIONS)
@pytest.mark.parametrize("kept", [False, True], ids=["", "kept"])
@pytest.mark.parametrize("block_nbytes", [1 << 20, 1 << 12], ids=["one block", "blocks"])
def test_convolution_and_pooling_as_code_give_the_bits_of_their_kernels(
    shapes: dict[str, Any], options: dict[str, Any], pooling: dict[str, Any], kept: bool, block_nbytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two layers; the first call interprets, later ones are code. kept: the convolutions' outputs are results too, so they must be written."""
    monkeypatch.setattr(binding, "HOT_RUNS", 2)
    monkeypatch.setattr(conv, "_BLOCK_NBYTES", block_nbytes)
    joined: list[bool] = []
    rule = conv._forward.direct_then[pool.max_pool]  # type: ignore[attr-defined]
    spy = {pool.max_pool: lambda *args: joined.append((calls := rule(*args)) is not None) or calls}
    monkeypatch.setattr(conv._forward, "direct_then", spy)
    dtype, n, groups = shapes.get("dtype", "float32"), shapes.get("n", 1), shapes.get("groups", 1)
    rng = np.random.default_rng(0)
    b = Graph.build()
    x = b.input("x", (n, 2, 17, 19), np.dtype(dtype))
    for i, (channels, outputs) in enumerate(((2, 4), (4, 6))):
        w = b.constant(rng.normal(size=(outputs, channels // groups, 3, 3)).astype(dtype), f"w{i}")
        bias = [b.constant(rng.normal(size=outputs).astype(dtype), f"b{i}")] if shapes.get("bias", True) else []
        y = b.op("nn.conv2d", x, w, *bias, **(options if i == 0 else {"padding": 1, "groups": groups}))
        if kept:
            b.output(y, f"conv{i}")
        x = b.op("nn.max_pool2d", y, **pooling)
    b.output(b.op("tensor.neg", x), "y")
    with hs.Session() as session:
        f = session.compile(b.freeze(), buffers=1, only="cpu")
        image = rng.normal(size=(n, 2, 17, 19)).astype(dtype)
        first = f(image)
        for _ in range(3):
            f(rng.normal(size=image.shape).astype(dtype))
            again = f(image)
            for name in first:
                np.testing.assert_array_equal(again[name], first[name])
    # Only all images at once, and windows of several rows and columns; float16 is no different.
    assert (True in joined) == (not kept and pooling["size"] != (1, 2) and (n == 1 or block_nbytes == 1 << 20))
