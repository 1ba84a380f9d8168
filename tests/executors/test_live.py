"""Plans over several devices with streams, on emulated devices: values, deeds and order on random graphs; overlap; errors; nothing left behind."""

import random
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from leftovers import running_threads
from threadpoolctl import threadpool_limits
from unspoilt import unspoilt

import hetsched as hs
from hetsched.check import problems
from hetsched.errors import InternalError, PlacementError, RunTimeoutError, TaskError
from hetsched.executors import live
from hetsched.executors.backends.emulated import EmulatedDevice, EmulatedEvent, EmulatedStream, emulate
from hetsched.graph.graph import Graph, Loop
from hetsched.graph.op import Op, Work
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode
from hetsched.report.summary import transfers
from hetsched.testing.graphs import random_graph, random_machine
from hetsched.testing.reference import interpret
from hetsched.testing.runs import run_problems, value_problems

CPU = Device("cpu", "cpu", lanes=2, languages=("host", "array"), shares_lanes=True, bytes_per_second=10e9, flops_per_second={"float32": 1e10})


def box(bandwidth: float = 1e9, link: float = 1e9, latency: float = 0.0) -> Machine:
    """A CPU and one emulated accelerator behind a link with a copy engine each way."""
    gpu = Device(
        "gpu:0", "emulated", memory="gpu:0", hardware="gpu", bytes_per_second=bandwidth, flops_per_second={"float32": 1e15}, launch_seconds=0
    )
    links = (Link(HOST, "gpu:0", latency, link), Link("gpu:0", HOST, latency, link))
    return Machine((CPU, gpu), links, (MemoryNode(HOST), MemoryNode("gpu:0")))


@pytest.mark.parametrize("block", range(8))
def test_values_deeds_and_order_on_random_graphs(block: int) -> None:
    used = 0
    with threadpool_limits(1):
        for seed in range(block * 25, (block + 1) * 25):
            rng = random.Random(seed)
            graph, inputs = random_graph(rng)
            machine = emulate(random_machine(rng))
            plan = hs.plan(graph, machine, policy="round_robin" if seed % 2 else "auto")
            assert problems(plan) == []
            used += bool(live.drives(plan))
            result = hs.run(plan, inputs)
            assert value_problems(result, interpret(graph, inputs)) == [], seed
            assert run_problems(plan, result.trace) == [], seed
    assert used > 5


def stream_of_batches(turns: int, n: int) -> Graph:
    """copy in, kernel, copy out: one batch a turn."""
    body = Graph.build()
    x = body.input("x", (n,))
    body.output(body.op("tensor.neg", x, where=hs.Where(("gpu:0",))), "y")
    b = Graph.build()
    (y,) = b.loop(Loop(body.freeze(), turns, sequences=("x",), collected=("y",)), b.input("x", (turns, n)))
    b.output(y, "y")
    return b.freeze()


def test_copies_go_on_beside_the_kernels() -> None:
    """64 batches of 4 ms each of copy in, kernel, copy out: by the devices' own clocks the three overlap, and the order of each lane is kept."""
    n, turns = 10_000, 64
    plan = hs.plan(stream_of_batches(turns, n), box(bandwidth=8 * n / 4e-3, link=4 * n / 4e-3))
    body = next(iter(plan.loops.values()))
    assert body.period == pytest.approx(4e-3, rel=0.01)
    x = np.random.default_rng(0).normal(size=(turns, n)).astype(np.float32)

    def ran() -> hs.Result:
        result = hs.run(plan, {"x": x})
        np.testing.assert_array_equal(result["y"], -x)
        trace = next(iter(result.trace.loops.values()))
        lanes = trace.by_lane()
        assert {lane.owner for lane in lanes} == {"gpu:0", "host->gpu:0", "gpu:0->host"}
        assert all(len(spans) == turns for spans in lanes.values())
        return result

    def overlap(result: hs.Result) -> None:
        trace = next(iter(result.trace.loops.values()))
        kernels = [(s.start, s.finish) for s in trace.launches]
        hidden = sum(max(0.0, min(s.finish, b) - max(s.start, a)) for s in trace.copies for a, b in kernels)
        copied = sum(s.finish - s.start for s in trace.copies)
        assert hidden > 0.7 * copied
        assert transfers(result.trace).hidden_fraction == pytest.approx(hidden / copied, rel=0.05)

    unspoilt(ran, overlap)


def test_a_loop_whose_first_lane_is_that_of_a_copy_engine() -> None:
    """Lanes are in the order of their names, and a loop holds them all: `host->zpu:0` comes before `zpu:0`."""
    zpu = Device("zpu:0", "emulated", memory="zpu:0", bytes_per_second=1e11, flops_per_second={"float32": 1e13})
    machine = Machine((CPU, zpu), (Link(HOST, "zpu:0", 0.0), Link("zpu:0", HOST, 0.0)), (MemoryNode(HOST), MemoryNode("zpu:0")))
    body = Graph.build()
    body.output(body.op("tensor.neg", body.input("x", (8,)), where=hs.Where(("zpu:0",))), "y")
    b = Graph.build()
    (y,) = b.loop(Loop(body.freeze(), 5, sequences=("x",), collected=("y",)), b.input("x", (5, 8)))
    plan = hs.plan(b.output(y, "y").freeze(), machine)
    assert next(s for s in plan.launches if s.command.task in plan.loops).lanes[0].kind == "copy"
    x = np.ones((5, 8), np.float32)
    np.testing.assert_array_equal(hs.run(plan, {"x": x})["y"], -x)


def test_a_stream_error_names_the_task_and_ends_everything() -> None:
    def bad(xp: Any, ins: Sequence[Any], outs: Sequence[Any], workspace: Any, attributes: Mapping[str, Any]) -> None:
        raise FloatingPointError("kernel broke")

    op = Op("test.bad", ("x",), ("y",), lambda s, a: [s[0]], lambda i, o, a: Work(1, 4, 4), kernels={"array": bad})
    b = Graph.build()
    y = b.op(op, b.input("x", (8,)), name="bad", where=hs.Where(("gpu:0",)))
    b.output(b.op("tensor.neg", y, where=hs.Where(("gpu:0",))), "z")
    before = running_threads()
    plan = hs.plan(b.freeze(), box())
    for _ in range(5):
        with pytest.raises(TaskError, match="kernel broke"):
            hs.run(plan, {"x": np.zeros(8, np.float32)})
    assert running_threads() <= before


def test_a_time_limit_holds_while_a_device_is_busy() -> None:
    plan = hs.plan(stream_of_batches(50, 1000), box(bandwidth=8 * 1000 / 20e-3))
    before = running_threads()
    with pytest.raises(RunTimeoutError):
        hs.run(plan, {"x": np.zeros((50, 1000), np.float32)}, timeout=0.1)
    assert running_threads() <= before


def test_many_runs_leave_no_thread_and_no_stream() -> None:
    b = Graph.build()
    b.output(b.op("tensor.neg", b.input("x", (8,)), where=hs.Where(("gpu:0",))), "y")
    plan = hs.plan(b.freeze(), box())
    before = running_threads()
    for i in range(200):
        assert hs.run(plan, {"x": np.full(8, i, np.float32)}, trace=False)["y"][0] == -i
    assert running_threads() <= before


def test_a_device_that_is_not_here_is_said_to_be_missing() -> None:
    machine = Machine(
        (CPU, Device("npu:0", "npu", memory="npu:0", bytes_per_second=1e12)),
        (Link(HOST, "npu:0"), Link("npu:0", HOST)),
        (MemoryNode(HOST), MemoryNode("npu:0")),
    )
    b = Graph.build()
    b.output(b.op("tensor.neg", b.input("x", (8,)), where=hs.Where(("npu:0",))), "y")
    with pytest.raises(PlacementError, match=r"'npu:0'.*no backend for devices of kind 'npu'"):
        hs.run(hs.plan(b.freeze(), machine), {"x": np.zeros(8, np.float32)})


def test_a_stream_finishes_no_earlier_than_its_model_and_in_order() -> None:
    def no_later(spans: list[tuple[float, float]]) -> None:
        start, finish = spans[0]
        assert finish - start == pytest.approx(5e-3)

    unspoilt(spans_of_two_streams, no_later)


def spans_of_two_streams() -> list[tuple[float, float]]:
    device = EmulatedDevice(box().devices[1], 4096)
    first, second = device.stream("copy"), device.stream("compute")
    assert isinstance(first, EmulatedStream)
    x = device.array(0, (16,), np.float32)
    host = np.arange(16, dtype=np.float32)
    first.expect(5e-3)
    first.upload(host, x)
    arrived = first.record()
    second.wait(arrived)
    second.expect(3e-3)
    y = device.array(1024, (16,), np.float32)
    second.launch(lambda xp, i, o, w, a: xp.negative(i[0], out=o[0]), [x], [y], None, {})
    done = second.record()
    back = np.empty(16, np.float32)
    second.download(y, back)
    second.record().wait()
    np.testing.assert_array_equal(back, -host)
    (a, b), (c, d) = arrived.span(), done.span()
    assert b - a >= 5e-3 - 1e-9
    assert d - c >= 3e-3 - 1e-9
    assert c >= b - 1e-9
    called = threading.Event()
    done.on_done(called.set)
    assert called.is_set()
    device.close()
    return [(a, b), (c, d)]


class StopTheWorldError(BaseException):
    """No `Exception`."""


def test_what_is_no_exception_ends_the_run_as_well() -> None:
    """A kernel on a stream may raise anything, `sys.exit` too: nobody waits for a thread that has died of it."""

    def end(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, attributes: Mapping[str, Any]) -> None:
        raise StopTheWorldError

    op = Op("test.end", ("x",), ("y",), lambda specs, _: [specs[0]], lambda *_: Work(1, 1, 1), kernels={"array": end})
    b = Graph.build()
    b.output(b.op(op, b.input("x", (4,)), where=hs.Where(("gpu:0",))), "y")
    graph, before = b.freeze(), running_threads()
    with pytest.raises(StopTheWorldError):
        hs.run(graph, {"x": np.ones(4, np.float32)}, machine=box(), learn=False)
    assert running_threads() <= before


@pytest.mark.parametrize("name", ["done", "on_done"])
def test_a_driver_that_fails_ends_the_run_and_a_session_opens_the_device_anew(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No event should raise there. One that does is told, and no step that was on its way is waited for."""

    def broken(*_: Any) -> Any:
        raise OSError("the driver has lost its mind")

    graph, before, x = stream_of_batches(5, 100), running_threads(), np.ones((5, 100), np.float32)
    with hs.Session(box()) as session:
        f = session.compile(graph, buffers=1)
        for _ in range(2):
            with monkeypatch.context() as patch:
                patch.setattr(EmulatedEvent, "done", lambda self: False)  # however slow the driver is, it has to ask to be woken
                patch.setattr(EmulatedEvent, name, broken)
                with pytest.raises(InternalError, match="what drives gpu:0 has failed: OSError: the driver has lost its mind"):
                    f(x=x)
                with pytest.raises(InternalError, match="lost its mind"):
                    hs.run(graph, {"x": x}, machine=box(), learn=False)
            assert (f(x=x)["y"] == -1).all()
    assert running_threads() <= before
