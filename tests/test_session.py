"""Sessions: a graph as a function, called again and again, from threads and from asyncio, on threads, streams and in loops."""

import asyncio
import gc
import random
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from leftovers import running_threads
from threadpoolctl import threadpool_limits

import hetsched as hs
from hetsched.errors import CommandLineError, GraphError, TaskError
from hetsched.executors import binding
from hetsched.executors.backends.emulated import emulate
from hetsched.graph.graph import Loop
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode
from hetsched.testing.graphs import random_graph, random_machine
from hetsched.testing.plans import plain_plan
from hetsched.testing.reference import interpret
from hetsched.testing.runs import run_problems, value_problems

CPU = Device("cpu", "cpu", lanes=2, languages=("host", "array"), shares_lanes=True, bytes_per_second=10e9, flops_per_second={"float32": 1e10})


def box() -> Machine:
    gpu = Device("gpu:0", "emulated", memory="gpu:0", hardware="gpu", bytes_per_second=1e10, flops_per_second={"float32": 1e15}, launch_seconds=0)
    links = (Link(HOST, "gpu:0", 0, 1e10), Link("gpu:0", HOST, 0, 1e10))
    return Machine((CPU, gpu), links, (MemoryNode(HOST), MemoryNode("gpu:0")))


def layer(where: hs.Where | None = None) -> hs.Graph:
    b = hs.Graph.build()
    x, w = b.input("x", (4, 8)), b.input("w", (8, 3))
    b.output(b.op("nn.relu", b.op("tensor.matmul", x, w, where=where), where=where), "y")
    return b.freeze()


def loop_graph(turns: int = 9, where: hs.Where | None = None) -> hs.Graph:
    """s becomes s * x[i] + a; its values are collected."""
    body = hs.Graph.build()
    s, x, a = body.input("s", (5,)), body.input("x", (5,)), body.input("a", (5,))
    body.output(body.op("tensor.add", body.op("tensor.mul", s, x, where=where), a, where=where), "s2")
    b = hs.Graph.build()
    loop = Loop(body.freeze(), turns, invariants=("a",), sequences=("x",), carried=(("s", "s2"),), collected=("s2",))
    last, every = b.loop(loop, b.input("a", (5,)), b.input("x", (turns, 5)), b.input("s", (5,)))
    b.output(last, "last")
    b.output(every, "every")
    return b.freeze()


def loop_values(a: Any, x: Any, s: Any) -> tuple[Any, Any]:
    rows = []
    for row in x:
        s = s * row + a
        rows.append(s)
    return s, np.stack(rows)


@pytest.mark.parametrize("machine", [lambda: None, box], ids=["here", "streams"])
def test_calls_give_the_values_of_runs_and_the_results_are_the_callers_own(machine: Callable[[], Any]) -> None:
    rng = np.random.default_rng(0)
    where = hs.Where(("gpu:0",)) if machine is box else None
    with hs.Session(machine()) as session:
        f = session.compile(layer(where))
        seen = []
        for _ in range(binding.HOT_RUNS + 20):
            x, w = rng.normal(size=(4, 8)).astype(np.float32), rng.normal(size=(8, 3)).astype(np.float32)
            before = x.copy()
            y = f(x, w)["y"]
            np.testing.assert_allclose(y, np.maximum(x @ w, 0), rtol=1e-5, atol=1e-5)
            np.testing.assert_array_equal(x, before)
            assert y.flags.writeable
            seen.append((y, y.copy()))
        for y, kept in seen:
            np.testing.assert_array_equal(y, kept)


@pytest.mark.parametrize("machine", [lambda: None, box], ids=["here", "streams"])
def test_loops_run_again_with_other_inputs(machine: Callable[[], Any]) -> None:
    rng = np.random.default_rng(0)
    where = hs.Where(("gpu:0",)) if machine is box else None
    with hs.Session(machine()) as session:
        f = session.compile(loop_graph(where=where))
        for _ in range(12):
            a, x, s = (rng.normal(size=n).astype(np.float32) for n in ((5,), (9, 5), (5,)))
            result = f(a=a, x=x, s=s)
            last, every = loop_values(a, x, s)
            np.testing.assert_allclose(result["last"], last, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(result["every"], every, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block", range(4))
def test_random_graphs_give_the_values_of_a_plain_loop_again_and_again(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three calls with the same and with other arrays, interpreted and as code, on threads and on emulated devices."""
    with threadpool_limits(1):
        for seed in range(block * 25, (block + 1) * 25):
            rng = random.Random(seed)
            graph, inputs = random_graph(rng)
            other = {k: np.array(v[::-1] if np.ndim(v) else v) for k, v in inputs.items()}
            wanted, wanted_other = interpret(graph, inputs), interpret(graph, other)
            monkeypatch.setattr(binding, "HOT_RUNS", 2 if seed % 2 else 50)
            for machine in (None, emulate(random_machine(rng))):
                with hs.Session(machine) as session:
                    f = session.compile(graph, trace=True, policy="round_robin" if machine is not None and seed % 3 else "auto")
                    for given, values in ((inputs, wanted), (other, wanted_other), (inputs, wanted), (other, wanted_other)):
                        result = f(given)
                        assert value_problems(result, values) == [], seed
                        assert run_problems(f.plan, result.trace) == [], seed


def test_inputs_by_position_by_name_or_as_a_mapping() -> None:
    x, w = np.ones((4, 8), np.float32), np.ones((8, 3), np.float32)
    with hs.Session() as session:
        f = session.compile(layer())
        for result in (f(x, w), f(x=x, w=w), f(x, w=w), f({"x": x, "w": w}), f(x.tolist(), np.asfortranarray(w)), f({"x": x}, w=w)):
            assert (result["y"] == 8).all()
        with pytest.raises(GraphError, match="input 'w' is missing"):
            f(x)
        with pytest.raises(GraphError, match=r"given twice"):
            f(x, w, x=x)
        with pytest.raises(GraphError, match=r"2 inputs \(x, w\), got 3"):
            f(x, w, x)
        with pytest.raises(GraphError) as caught:
            f(x.astype(np.float64), w[:2])
        assert len(caught.value.problems) == 2
        assert (f(x, w)["y"] == 8).all()


@pytest.mark.parametrize("machine", [lambda: None, box], ids=["here", "streams"])
@pytest.mark.parametrize("buffers", [1, 3])
def test_calls_at_once_from_threads_and_asyncio(machine: Callable[[], Any], buffers: int) -> None:
    where = hs.Where(("gpu:0",)) if machine is box else None
    w = np.eye(8, 3, dtype=np.float32)
    with hs.Session(machine()) as session:
        f = session.compile(layer(where), buffers=buffers)
        wrong: list[int] = []

        def call(i: int) -> None:
            for j in range(20):
                x = np.full((4, 8), 100 * i + j, np.float32)
                y = f(x, w)["y"]
                if not (y == 100 * i + j).all():
                    wrong.append(i)

        threads = [threading.Thread(target=call, args=(i,)) for i in range(6)]
        for t in threads:
            t.start()

        async def requests() -> list[Any]:
            return await asyncio.gather(*(f.run_async(np.full((4, 8), i, np.float32), w) for i in range(40)))

        results = asyncio.run(requests())
        for t in threads:
            t.join()
        assert wrong == []
        assert all((r["y"] == i).all() for i, r in enumerate(results))


def test_a_further_caller_waits_for_a_buffer_set() -> None:
    """Two buffer sets: two calls are inside at once, the third only when one has left."""
    inside, most = 0, 0
    lock, both, leave = threading.Lock(), threading.Barrier(2), threading.Event()

    @hs.op(hs.Spec((), np.float32))
    def meet(x: Any) -> Any:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        if float(x) < 2:
            both.wait(600)
            assert leave.wait(600)
        with lock:
            inside -= 1
        return x

    b = hs.Graph.build()
    b.output(b.op(meet, b.input("x", ())), "y")
    with hs.Session() as session:
        f = session.compile(b.freeze(), buffers=2)
        found: dict[int, float] = {}
        threads = [threading.Thread(target=lambda i=i: found.update({i: float(f(np.float32(i))["y"])})) for i in range(3)]
        for t in threads[:2]:
            t.start()
        while most < 2:
            pass
        threads[2].start()
        leave.set()
        for t in threads:
            t.join()
    assert found == {0: 0, 1: 1, 2: 2}
    assert most == 2


def test_an_error_in_a_call_leaves_the_session_usable() -> None:
    @hs.op(hs.Spec((), np.float32), name="test.picky")
    def picky(x: Any) -> Any:
        if x < 0:
            raise ValueError("negative")
        return x

    b = hs.Graph.build()
    b.output(b.op("tensor.neg", b.op(picky, b.input("x", ()), name="picky")), "y")
    with hs.Session() as session:
        f = session.compile(b.freeze(), buffers=1)
        for i in range(1, binding.HOT_RUNS + 30):
            assert float(f(np.float32(i))["y"]) == -i
            with pytest.raises(TaskError, match="task 'picky' failed: ValueError: negative") as caught:
                f(np.float32(-i))
            assert caught.value.task == "picky"


def test_a_stream_error_leaves_the_session_usable() -> None:
    def kernel(xp: Any, ins: Any, outs: Any, workspace: Any, attributes: Any) -> None:
        if ins[0][0] < 0:
            raise FloatingPointError("kernel broke")
        outs[0][...] = ins[0]

    op = hs.Op("test.bad", ("x",), ("y",), lambda s, a: [s[0]], lambda i, o, a: hs.Work(1, 4, 4), kernels={"array": kernel})
    b = hs.Graph.build()
    b.output(b.op(op, b.input("x", (8,)), where=hs.Where(("gpu:0",))), "y")
    with hs.Session(box()) as session:
        f = session.compile(b.freeze(), buffers=1)
        for i in range(5):
            assert f(np.full(8, i, np.float32))["y"][0] == i
            with pytest.raises(TaskError, match="kernel broke"):
                f(np.full(8, -1, np.float32))


def test_closing_ends_every_thread_and_may_be_done_twice() -> None:
    before = running_threads()
    session = hs.Session(box())
    f = session.compile(layer(hs.Where(("gpu:0",))), buffers=2)
    g = session.compile(layer())
    x, w = np.ones((4, 8), np.float32), np.ones((8, 3), np.float32)
    assert (f(x, w)["y"] == 8).all()
    assert (g(x, w)["y"] == 8).all()
    assert (asyncio.run(f.run_async(x, w))["y"] == 8).all()
    session.close()
    session.close()
    f.close()
    assert running_threads() <= before
    with pytest.raises(CommandLineError, match="closed"):
        f(x, w)
    with pytest.raises(CommandLineError, match="closed"):
        session.compile(layer())


def test_no_input_or_output_is_held_after_a_call() -> None:
    with hs.Session() as session:
        f = session.compile(layer(), buffers=1)
        for _ in range(binding.HOT_RUNS + 10):
            x, w = np.ones((4, 8), np.float32), np.ones((8, 3), np.float32)
            y = f(x, w)["y"]
            held = [weakref.ref(a) for a in (x, w, y)]
            del x, w, y
            gc.collect()
            assert [ref() for ref in held] == [None, None, None]


def test_wrong_arguments_say_what_to_do() -> None:
    with hs.Session() as session:
        with pytest.raises(CommandLineError, match="freeze"):
            session.compile(hs.Graph.build())  # type: ignore[arg-type]
        with pytest.raises(CommandLineError, match="at least 1 buffer set"):
            session.compile(layer(), buffers=0)
        result = hs.run(layer(), {"x": np.ones((4, 8), np.float32), "w": np.ones((8, 3), np.float32)})
        with pytest.raises(CommandLineError, match="a trace"):
            session.compile(result.trace)


def test_loop_bodies_stay_bound_and_compiled_between_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body's program, its frame and its code are made once, not at every call."""
    monkeypatch.setattr(binding, "HOT_RUNS", 4)
    made: list[object] = []
    plain = binding.compile_segment
    monkeypatch.setattr(binding, "compile_segment", lambda *args: made.append(args[0]) or plain(*args))
    rng = np.random.default_rng(0)
    with hs.Session() as session:
        f = session.compile(loop_graph(), buffers=1)
        counts = []
        for _ in range(6):
            a, x, s = (rng.normal(size=n).astype(np.float32) for n in ((5,), (9, 5), (5,)))
            result = f(a=a, x=x, s=s)
            np.testing.assert_allclose(result["last"], loop_values(a, x, s)[0], rtol=1e-4, atol=1e-4)
            counts.append(len(made))
    assert counts[2] > 0
    assert counts[2:] == [counts[2]] * 4


def test_short_calls_are_awaited_without_a_thread_and_others_are_served_in_between() -> None:
    """Cold calls go to a thread; once they are code, the loop's own thread does them, and takes turns with what else it has to do."""
    x, w = np.ones((4, 8), np.float32), np.ones((8, 3), np.float32)
    log: list[str] = []

    async def requests(f: Any, name: str, count: int) -> None:
        for _ in range(count):
            assert ((await f.run_async(x, w))["y"] == 8).all()
            log.append(name)

    async def together(f: Any) -> None:
        await asyncio.gather(requests(f, "a", 20), requests(f, "b", 20))

    with hs.Session(Machine((CPU,))) as session:  # of stated speeds: what is short does not depend on the machine
        f = session.compile(layer(), buffers=2)
        asyncio.run(requests(f, "cold", 1))
        assert f._pool is not None
        for _ in range(2 * binding.HOT_RUNS):
            f(x, w)
        f._pool.shutdown()  # whoever needs a thread from now on fails
        log.clear()
        asyncio.run(together(f))
        assert log == ["a", "b"] * 20


def test_calls_that_may_wait_are_awaited_in_threads() -> None:
    """A user's function, hot and short: two calls that wait for each other both get on."""
    both = threading.Barrier(2)

    @hs.op(hs.Spec((), np.float32))
    def meet(x: Any) -> Any:
        if float(x) < 0:
            both.wait(600)
        return x

    async def two(f: Any) -> None:
        await asyncio.gather(*(f.run_async(np.float32(-i)) for i in (1, 2)))

    b = hs.Graph.build()
    b.output(b.op(meet, b.input("x", ())), "y")
    with hs.Session(Machine((CPU,))) as session:
        f = session.compile(b.freeze(), buffers=2)
        for _ in range(2 * binding.HOT_RUNS):
            f(np.float32(1))
        asyncio.run(two(f))


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_kernel_that_calls_its_own_graph_is_told_where_it_would_wait_for_itself(lanes: int) -> None:
    """With one buffer set it would wait for ever; with two it goes on."""
    machine = Machine((replace(CPU, lanes=lanes),), (), (MemoryNode(HOST),))
    deeper: list[Any] = []

    @hs.op(out=lambda x: x)
    def again(x: Any) -> Any:
        if deeper:
            deeper.pop()(x)
        return x

    b = hs.Graph.build()
    x = b.input("x", (3,))
    for i in range(3):
        b.output(b.op(again, x), f"y{i}")
    plan, ones = plain_plan(b.freeze(), machine, seed=1), np.ones(3, np.float32)
    with hs.Session(machine) as session:
        f = session.compile(plan, buffers=1)
        deeper.append(f)
        with pytest.raises(CommandLineError, match=r"all 1 buffer sets are in use.*buffers=2"):
            f(ones)
        assert (f(ones)["y0"] == 1).all()
        g = session.compile(plan, buffers=2)
        deeper.append(g)
        assert (g(ones)["y2"] == 1).all()


def test_a_graph_that_is_being_closed_takes_no_more_calls() -> None:
    """Whoever calls again and again would get each buffer set before `close` does."""
    with hs.Session() as session:
        f = session.compile(layer())
        x, w = np.ones((4, 8), np.float32), np.ones((8, 3), np.float32)
        f(x, w)
        f._replay._closed = True  # `close` has begun, and has no buffer set yet
        with pytest.raises(CommandLineError, match="is closed"):
            f(x, w)


def test_awaiting_a_closed_graph_says_so_and_starts_no_thread() -> None:
    with hs.Session() as session:
        f = session.compile(layer())
    before = running_threads()
    with pytest.raises(CommandLineError, match="is closed"):
        asyncio.run(f.run_async(np.ones((4, 8), np.float32), np.ones((8, 3), np.float32)))
    assert f._pool is None
    assert running_threads() <= before


def test_a_session_that_is_let_fall_leaves_no_threads() -> None:
    before = running_threads()
    f = hs.Session(box()).compile(layer(hs.Where(("gpu:0",))))
    f(np.ones((4, 8), np.float32), np.ones((8, 3), np.float32))
    assert not running_threads() <= before
    del f
    gc.collect()
    assert running_threads() <= before
