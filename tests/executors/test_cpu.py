"""The threads: who runs what, wide launches, io lanes, failure, time limits, what is given back to the process."""

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from leftovers import running_threads
from threadpoolctl import threadpool_info

import hetsched as hs
from hetsched.errors import CommandLineError, GraphError, PlacementError, RunTimeoutError, TaskError
from hetsched.executors import cpu, process
from hetsched.graph.graph import Builder, Graph, Loop, Value
from hetsched.graph.op import Op, Work
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode
from hetsched.report.summary import where_line
from hetsched.testing.plans import plain_plan
from hetsched.timeline import Lane, Launch, Replica, Span, Timeline

Body = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], None]


def op_of(body: Body, waits: bool = False, inputs: tuple[str, ...] = ("values*",)) -> Op:
    """An op with one float32[] output whose kernel is `body(inputs, outputs)`."""

    def kernel(xp: Any, ins: Sequence[Any], outs: Sequence[Any], workspace: Any, attributes: Mapping[str, Any]) -> None:
        body(ins, outs)

    spec = hs.Spec((), np.float32)
    return Op("test.op", inputs, ("out",), lambda s, a: [spec], lambda i, o, a: Work(1, 4, 4), kernels={"array": kernel}, waits=waits)


def machine(lanes: int = 2, io_lanes: int = 2) -> Machine:
    return Machine((Device("cpu", "cpu", lanes=lanes, io_lanes=io_lanes, languages=("host", "array"), shares_lanes=True, widths=(1, lanes)),))


def meeting(parties: int) -> Body:
    """A kernel that ends only when `parties` of its kind run at once."""
    barrier = threading.Barrier(parties)

    def body(ins: Sequence[np.ndarray], outs: Sequence[np.ndarray]) -> None:
        barrier.wait(timeout=600)
        outs[0][...] = 1

    return body


def outputs_of(builder: Builder, values: Sequence[Value]) -> Graph:
    for i, value in enumerate(values):
        builder.output(value, f"out{i}")
    return builder.freeze()


def on_lanes(graph: Graph, where: Machine, lanes: Sequence[tuple[Lane, ...]]) -> Timeline:
    """A plan that starts task i at second i on `lanes[i]`."""
    spans = []
    for task in range(len(graph)):
        reads = tuple(Replica(v, 0, HOST) for v in graph.reads(task))
        writes = tuple(Replica(v, 0, HOST) for v in graph.writes(task))
        spans.append(Span(lanes[task], Launch(task, 0, reads, writes, len(lanes[task])), float(task), task + 1.0))
    offsets = {Replica(v, 0, HOST): 64 * v for t in range(len(graph)) for v in graph.writes(t) if v not in graph.outputs.values()}
    return Timeline(graph, where, tuple(spans), offsets=offsets, arenas={HOST: 64 * len(graph.value_specs)})


def test_two_lanes_run_at_once() -> None:
    b = Graph.build()
    op = op_of(meeting(2))
    graph = outputs_of(b, [b.op(op), b.op(op)])
    result = hs.run(on_lanes(graph, machine(), [(Lane("cpu", 0),), (Lane("cpu", 1),)]))
    assert [float(x) for x in result.values()] == [1, 1]
    assert len(result.trace.lanes) == 2


def test_tasks_that_wait_have_lanes_of_their_own() -> None:
    """Two that wait and two that compute, all at once, on two cores."""
    b = Graph.build()
    shared = meeting(4)
    compute, waits = op_of(shared), op_of(shared, waits=True)
    graph = outputs_of(b, [b.op(compute), b.op(compute), b.op(waits), b.op(waits)])
    lanes = [(Lane("cpu", 0),), (Lane("cpu", 1),), (Lane("cpu", 0, "io"),), (Lane("cpu", 1, "io"),)]
    assert len(hs.run(on_lanes(graph, machine(), lanes))) == 4


def test_a_thread_goes_on_with_the_ready_task_of_highest_priority() -> None:
    """Lane 1 is planned to run three tasks, but lane 0's first task holds its thread; the other thread does the rest, in planned order."""
    order: list[int] = []
    release = threading.Event()

    def blocked(ins: Sequence[np.ndarray], outs: Sequence[np.ndarray]) -> None:
        assert release.wait(600)
        outs[0][...] = 0

    def numbered(i: int) -> Op:
        def body(ins: Sequence[np.ndarray], outs: Sequence[np.ndarray]) -> None:
            order.append(i)
            outs[0][...] = i
            if len(order) == 3:
                release.set()

        return op_of(body)

    b = Graph.build()
    graph = outputs_of(b, [b.op(op_of(blocked)), b.op(numbered(1)), b.op(numbered(2)), b.op(numbered(3))])
    plan = on_lanes(graph, machine(), [(Lane("cpu", 0),), (Lane("cpu", 1),), (Lane("cpu", 0),), (Lane("cpu", 1),)])
    hs.run(plan)
    assert order == [1, 2, 3]


def test_a_wide_launch_runs_alone_with_blas_at_its_width() -> None:
    running = []
    seen: dict[str, Any] = {}
    lock = threading.Lock()

    def narrow(ins: Sequence[np.ndarray], outs: Sequence[np.ndarray]) -> None:
        with lock:
            running.append(1)
        seen.setdefault("narrow", {x["num_threads"] for x in threadpool_info() if x["user_api"] == "blas"})
        outs[0][...] = 1
        with lock:
            running.pop()

    def wide(ins: Sequence[np.ndarray], outs: Sequence[np.ndarray]) -> None:
        seen["alone"] = not running
        seen["wide"] = {x["num_threads"] for x in threadpool_info() if x["user_api"] == "blas"}
        outs[0][...] = 2

    b = Graph.build()
    graph = outputs_of(b, [b.op(op_of(narrow)), b.op(op_of(narrow)), b.op(op_of(wide)), b.op(op_of(narrow))])
    both = (Lane("cpu", 0), Lane("cpu", 1))
    plan = on_lanes(graph, machine(), [(Lane("cpu", 0),), (Lane("cpu", 1),), both, (Lane("cpu", 0),)])
    before = {x["num_threads"] for x in threadpool_info() if x["user_api"] == "blas"}
    for _ in range(20):
        result = hs.run(plan)
    assert [float(x) for x in result.values()] == [1, 1, 2, 1]
    assert seen == {"narrow": {1}, "alone": True, "wide": {2}}
    assert {x["num_threads"] for x in threadpool_info() if x["user_api"] == "blas"} == before


def test_a_blas_that_is_loaded_after_a_run_is_limited_in_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `import scipy.linalg` inside a kernel brings one."""
    found = []

    class Library:
        user_api, internal_api = "blas", "other"

        def __init__(self, threads: int) -> None:
            self.threads = threads

        def get_num_threads(self) -> int:
            return self.threads

        def set_num_threads(self, threads: int) -> None:
            self.threads = threads

    monkeypatch.setattr("threadpoolctl.ThreadpoolController", lambda: SimpleNamespace(lib_controllers=list(found)))
    monkeypatch.setattr(process, "_found", None)
    monkeypatch.setattr(process, "_is_openblas", process._is_openblas)
    monkeypatch.setattr(process, "_before", [])
    first, second = Library(4), Library(6)
    found.append(first)

    def limits() -> list[int]:
        with process.tuned():
            return [first.threads, second.threads]

    assert limits() == [1, 6]
    found.append(second)
    monkeypatch.setitem(sys.modules, "brings_blas", process)
    with process.tuned():
        assert limits() == [1, 1], "within another run too"
    assert limits() == [1, 1]
    assert [first.threads, second.threads] == [4, 6]
    process._placers.cache_clear()


@pytest.mark.parametrize(("here", "threads"), [(2, 2), (16, 6)])
@pytest.mark.parametrize("way", ["run", "keep_going", "session"])
def test_a_machine_of_more_lanes_than_there_are_cores_is_run_by_as_many_threads_as_cores(
    monkeypatch: pytest.MonkeyPatch, here: int, threads: int, way: str
) -> None:
    monkeypatch.setattr(cpu, "cores", lambda: here)
    seen: list[tuple[int, set[int]]] = []

    def body(ins: Sequence[np.ndarray], outs: Sequence[np.ndarray]) -> None:
        alive = sum(t.name.startswith("hetsched-compute") for t in threading.enumerate())
        seen.append((alive + 1, {x["num_threads"] for x in threadpool_info() if x["user_api"] == "blas"}))
        outs[0][...] = 1

    b = Graph.build()
    graph = outputs_of(b, [b.op(op_of(body)) for _ in range(7)])
    lanes = [Lane("cpu", i) for i in range(6)]
    plan = on_lanes(graph, machine(6), [*((lane,) for lane in lanes), tuple(lanes)])
    if way == "session":
        with hs.Session(plan.machine) as session:
            result = session.compile(plan, trace=True)()
    else:
        result = hs.run(plan, keep_going=way == "keep_going")
    assert [float(x) for x in result.values()] == [1] * 7
    assert {alive for alive, _ in seen} == {threads}
    assert {n for _, (n,) in seen} == {1, threads}, "the wide launch too"
    note = "cpu was planned with 6 lanes, and 2 cores are here: so many threads ran it"
    assert result.trace.notes == ((note,) if here == 2 else ())
    assert (note in where_line(result.trace)) == (here == 2)


def failing(ins: Sequence[np.ndarray], outs: Sequence[np.ndarray]) -> None:
    raise ZeroDivisionError("no such luck")


def test_a_failed_task_is_named_and_nothing_is_left_running() -> None:
    before, interval = running_threads(), sys.getswitchinterval()
    b = Graph.build()
    bad = b.op(op_of(failing), name="bad")
    graph = outputs_of(b, [b.op(op_of(lambda i, o: o[0].fill(1))), b.op(op_of(lambda i, o: o[0].fill(2)), bad)])
    with pytest.raises(TaskError, match=r"task 'bad' failed: ZeroDivisionError: no such luck") as caught:
        hs.run(plain_plan(graph, machine()))
    assert caught.value.task == "bad"
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert running_threads() <= before
    assert sys.getswitchinterval() == interval


def test_a_failure_in_a_loop_names_the_turn() -> None:
    def third(ins: Sequence[np.ndarray], outs: Sequence[np.ndarray]) -> None:
        if int(ins[0]) == 3:
            raise ValueError("enough")
        outs[0][...] = 0

    body = Graph.build()
    body.output(body.op(op_of(third), body.input("turn", (), np.int64), name="step"), "y")
    b = Graph.build()
    (y,) = b.loop(Loop(body.freeze(), turns=8, collected=("y",), turn="turn"))
    b.output(y, "y")
    with pytest.raises(TaskError, match=r"task 'step' failed in turn 3 of loop '.+': ValueError: enough"):
        hs.run(b.freeze(), machine=machine())


def test_keep_going_runs_what_does_not_need_the_failed_task() -> None:
    b = Graph.build()
    bad = b.op(op_of(failing), name="bad")
    needs = b.op(op_of(lambda i, o: o[0].fill(2)), bad)
    fine = b.op(op_of(lambda i, o: o[0].fill(3)))
    graph = outputs_of(b, [needs, fine, b.op(op_of(lambda i, o: o[0].fill(float(i[0]) + 1)), fine)])
    result = hs.run(plain_plan(graph, machine()), keep_going=True)
    assert {k: float(v) for k, v in result.items()} == {"out1": 3, "out2": 4}
    assert list(result.failed) == ["bad"]


def test_a_time_limit_ends_the_run_between_steps() -> None:
    body = Graph.build()
    state = body.input("s", ())
    body.output(body.op(op_of(lambda i, o: o[0].fill(1), inputs=("s",)), state), "s2")
    b = Graph.build()
    (last,) = b.loop(Loop(body.freeze(), turns=100_000_000, carried=(("s", "s2"),)), b.input("s0", ()))
    b.output(last, "last")
    with pytest.raises(RunTimeoutError, match=r"longer than 0\.05 s"):
        hs.run(b.freeze(), {"s0": 0}, machine=machine(), timeout=0.05)


@pytest.mark.parametrize("limit", [1e12, float("inf")])
def test_a_time_limit_beyond_what_can_be_waited_is_none(limit: float) -> None:
    b = Graph.build()
    graph = outputs_of(b, [b.op(op_of(lambda i, o: o[0].fill(1))), b.op(op_of(lambda i, o: o[0].fill(2)))])
    result = hs.run(graph, {}, machine=machine(), timeout=limit)
    assert sorted(float(v) for v in result.values()) == [1.0, 2.0]


@pytest.mark.parametrize("limit", [0, -1.0, float("nan")])
def test_what_is_no_time_limit_is_refused(limit: float) -> None:
    b = Graph.build()
    graph = outputs_of(b, [b.op(op_of(lambda i, o: o[0].fill(1)))])
    with pytest.raises(CommandLineError, match="timeout must be more than 0 seconds"):
        hs.run(graph, {}, machine=machine(), timeout=limit)
    with hs.Session(machine()) as session, pytest.raises(CommandLineError, match="timeout must be more than 0 seconds"):
        session.compile(graph, timeout=limit)


def test_ctrl_c_ends_the_run() -> None:
    before = running_threads()

    def interrupt(ins: Sequence[np.ndarray], outs: Sequence[np.ndarray]) -> None:
        raise KeyboardInterrupt

    b = Graph.build()
    graph = outputs_of(b, [b.op(op_of(interrupt)), b.op(op_of(lambda i, o: o[0].fill(1)))])
    with pytest.raises(KeyboardInterrupt):
        hs.run(plain_plan(graph, machine()))
    assert running_threads() <= before


def test_progress_reaches_its_total() -> None:
    body = Graph.build()
    body.output(body.op("tensor.neg", body.input("s", ())), "s2")
    b = Graph.build()
    (last,) = b.loop(Loop(body.freeze(), turns=7, carried=(("s", "s2"),)), b.op("tensor.neg", b.input("s0", ())))
    b.output(b.op("tensor.neg", last), "y")
    told: list[tuple[int, int, str]] = []
    hs.run(b.freeze(), {"s0": 1}, machine=machine(), progress=lambda *row: told.append(row))
    assert told[-1][0] == told[-1][1] == 3 + 7
    assert [row[0] for row in told] == sorted(row[0] for row in told)


def test_progress_counts_launches_where_adjacent_ones_are_a_step() -> None:
    b = Graph.build()
    for row in range(3):
        y = b.input(f"x{row}", (4,))
        for _ in range(5):
            y = b.op("tensor.neg", y)
        b.output(y, f"y{row}")
    graph = b.freeze()
    told: list[tuple[int, int, str]] = []
    hs.run(graph, {f"x{i}": np.ones(4, np.float32) for i in range(3)}, machine=machine(), learn=False, progress=lambda *row: told.append(row))
    assert {total for _, total, _ in told} == {15}
    assert told[-1][0] == 15
    assert len(told) < 15, "adjacent launches are one step, or this shows nothing"


def test_progress_ends_where_a_loop_stops_before_its_last_turn() -> None:
    body = Graph.build()
    y = body.op("tensor.add", body.input("s", ()), body.op("tensor.full", shape=[], value=1.0))
    body.output(y, "s2")
    body.output(body.op("tensor.greater", y, body.op("tensor.full", shape=[], value=3.5)), "stop")
    b = Graph.build()
    b.output(*b.loop(Loop(body.freeze(), turns=100, carried=(("s", "s2"),), stop="stop"), b.input("s0", ())), "y")
    told: list[tuple[int, int, str]] = []
    result = hs.run(b.freeze(), {"s0": 0}, machine=machine(), learn=False, progress=lambda *row: told.append(row))
    assert result["y"] == 4
    assert told[-1][0] == told[-1][1] < 100


def test_no_trace_where_none_is_wanted() -> None:
    b = Graph.build()
    b.output(b.op("tensor.neg", b.input("x", (3,))), "y")
    result = hs.run(b.freeze(), {"x": [1, 2, 3]}, trace=False)
    assert result.trace.spans == ()
    np.testing.assert_array_equal(result["y"], [-1, -2, -3])


def test_a_long_loop_keeps_its_first_and_last_turns_and_the_sums() -> None:
    body = Graph.build()
    body.output(body.op("tensor.neg", body.input("s", ()), name="neg"), "s2")
    b = Graph.build()
    (last,) = b.loop(Loop(body.freeze(), turns=5000, carried=(("s", "s2"),)), b.input("s0", ()))
    b.output(last, "y")
    result = hs.run(b.freeze(), {"s0": 1}, machine=machine())
    assert float(result["y"]) == 1
    trace = result.trace.loops[0]
    turns = sorted({s.command.turn for s in trace.launches if isinstance(s.command, Launch)})
    assert turns == [*range(100), *range(4900, 5000)]
    assert trace.turns == 5000
    assert trace.totals["cpu"] > sum(s.finish - s.start for s in trace.spans)


def test_a_plan_for_another_machine_is_refused() -> None:
    where = Machine((Device("gpu:0", "cuda", memory="gpu:0"),), (Link(HOST, "gpu:0"), Link("gpu:0", HOST)), (MemoryNode(HOST), MemoryNode("gpu:0")))
    b = Graph.build()
    b.output(b.op("tensor.neg", b.input("x", (3,))), "y")
    with pytest.raises(PlacementError, match="gpu:0"):
        hs.run(hs.plan(b.freeze(), where), {"x": np.zeros(3, np.float32)})


def test_many_runs_at_once_from_threads() -> None:
    b = Graph.build()
    x = b.input("x", (64, 64))
    b.output(b.op("tensor.matmul", x, b.op("nn.relu", x)), "y")
    plan = hs.plan(b.freeze())
    found: dict[int, np.ndarray] = {}
    inputs = {i: np.full((64, 64), i, np.float32) for i in range(8)}
    interval = sys.getswitchinterval()

    def one(i: int) -> None:
        found[i] = hs.run(plan, {"x": inputs[i]})["y"]

    threads = [threading.Thread(target=one, args=(i,)) for i in inputs]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for i in inputs:
        np.testing.assert_array_equal(found[i], np.full((64, 64), 64.0 * i * i))
    assert sys.getswitchinterval() == interval


def test_no_thread_is_left_after_a_thousand_runs() -> None:
    b = Graph.build()
    x = b.input("x", (4,))
    b.output(b.op("tensor.add", b.op("tensor.neg", x), b.op("tensor.exp", x)), "y")
    plan = plain_plan(b.freeze(), machine())
    before = running_threads()
    for _ in range(1000):
        hs.run(plan, {"x": [0, 0, 0, 0]}, trace=False)
    assert running_threads() <= before


def test_wrong_arguments_say_what_to_do() -> None:
    b = Graph.build()
    b.output(b.op("tensor.neg", b.input("x", (3,))), "y")
    graph = b.freeze()
    with pytest.raises(CommandLineError, match="finish a builder with freeze"):
        hs.run(b, {})  # type: ignore[arg-type]
    with pytest.raises(CommandLineError, match="unknown executor"):
        hs.run(graph, {"x": [1, 2, 3]}, executor="gpu")
    with pytest.raises(CommandLineError, match="a trace of what has run"):
        hs.run(hs.run(graph, {"x": [1, 2, 3]}).trace, {"x": [1, 2, 3]})
    with pytest.raises(GraphError) as caught:
        hs.run(graph, {"z": 1})
    assert len(caught.value.problems) == 2
    with pytest.raises(GraphError, match=r"wants float32\[3\], got float64\[3\]; convert it with .astype"):
        hs.run(graph, {"x": np.zeros(3)})


def test_progress_that_raises_ends_the_run() -> None:
    """On whichever thread it is called: nothing waits for ever."""
    b = Graph.build()
    op = op_of(lambda i, o: o[0].fill(1))
    graph = outputs_of(b, [b.op(op) for _ in range(20)])

    def tell(done: int, total: int, name: str) -> None:
        raise BrokenPipeError("nobody listens")

    for _ in range(20):
        with pytest.raises(BrokenPipeError):
            hs.run(plain_plan(graph, machine()), progress=tell)


def view_on(*languages: str) -> Timeline:
    """A view that the caller shall own, on threads that are described with other languages than they run."""
    b = Graph.build()
    b.output(b.op("tensor.reshape", b.input("x", (4, 4)), shape=(16,), name="flat"), "y")
    cpu = Device("cpu", "cpu", lanes=2, languages=languages, shares_lanes=True)
    return hs.plan(b.freeze(), Machine((cpu,)))


@pytest.mark.parametrize("languages", [("host",), ("array",), ("opencl", "host"), ()])
def test_a_view_needs_no_language(languages: tuple[str, ...]) -> None:
    x = np.arange(16, dtype=np.float32).reshape(4, 4)
    result = hs.run(view_on(*languages), {"x": x})["y"]
    assert np.array_equal(result, x.reshape(16))
    assert not np.shares_memory(result, x)


def test_threads_that_are_described_as_another_device_say_so() -> None:
    """Plans may be made for any description; what runs them here tells what it runs."""
    b = Graph.build()
    b.output(b.op("tensor.neg", b.input("x", (8,)), name="minus"), "y")
    cpu = Device("cpu", "cpu", lanes=1, languages=("opencl",), shares_lanes=True)
    plan = hs.plan(b.freeze(), Machine((cpu,)))
    wanted = (
        r"task 'minus' on cpu.*no kernel that tensor.neg has \(array, opencl.*languages opencl, and threads of this process run host and array alone"
    )
    with pytest.raises(PlacementError, match=wanted):
        hs.run(plan, {"x": np.zeros(8, np.float32)})
