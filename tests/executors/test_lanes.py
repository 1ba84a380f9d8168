"""Dependent commands of a device never meet the host, and its lanes go on beside each other.

Both are shown without clocks: nothing on the device ends until everything has been handed over, and a lane is held until another has done its work.
"""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

import hetsched as hs
from hetsched.executors import live
from hetsched.executors.backends import emulated
from hetsched.graph.graph import Graph, Loop
from hetsched.graph.ops import find
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode
from hetsched.run import check_inputs
from hetsched.testing.reference import interpret
from hetsched.testing.runs import run_problems, value_problems
from hetsched.timeline import Launch

# What a test fails by rather than hangs: so many looks, and a run that takes so long. Looks are counted and not timed: a machine that stands still
# for a while takes none.
LOOKS, LOOK_SECONDS = 5_000, 0.02
PATIENCE_SECONDS = 600.0
N = 64


class Held:
    """A backend whose devices do nothing until they are let go: by the first event of each stream, and after that by nothing.

    handed: what has been handed over, by kind of command. waits: calls that made a driving thread wait for an event not yet reached. early: whether
    patience ended first. streams: those opened, in their order, with their kind.
    """

    def __init__(self, backend: Any, hold: Callable[[str, int], bool]) -> None:
        self.backend, self.hold = backend, hold
        self.handed: Counter[str] = Counter()
        self.waits: list[str] = []
        self.streams: list[tuple[str, Any]] = []
        self.early = False
        self.changed = threading.Condition()
        self._let_go: list[Callable[[], None]] = []
        self._let_go_already = False

    def open(self, device: Device, nbytes: int) -> Any:
        opened = self.backend.open(device, nbytes)
        stream = opened.stream

        def held_stream(kind: str) -> Any:
            made = stream(kind)
            held = self.hold(kind, sum(k == kind for k, _ in self.streams))
            self.streams.append((kind, made))
            if held and not self._let_go_already:
                self._let_go.append(_gate(opened, made))
            self._count(made)
            return made

        opened.stream = held_stream
        return opened

    def _count(self, stream: Any) -> None:
        for name in ("launch", "upload", "download", "copy"):
            setattr(stream, name, partial(self._handed, name, getattr(stream, name)))
        record = stream.record

        def counted() -> Any:
            return _Event(record(), self)

        def waited(event: Any, wait: Callable[[Any], None] = stream.wait) -> None:
            wait(event.event if isinstance(event, _Event) else event)

        stream.record, stream.wait = counted, waited
        if hasattr(stream, "segment"):
            stream.segment = partial(self._segment, stream.segment)

    def _segment(self, segment: Callable[[Any], bool], calls: Any) -> bool:
        done = segment(calls)
        if done:
            self._told("launch", len(calls))
        return done

    def _handed(self, name: str, command: Callable[..., Any], *args: Any) -> Any:
        result = command(*args)
        self._told(name, 1)
        return result

    def _told(self, name: str, count: int) -> None:
        with self.changed:
            self.handed[name] += count
            self.changed.notify_all()

    def let_go(self) -> None:
        """Open every gate. Streams that are opened later have none."""
        self._let_go_already = True
        for open_gate in self._let_go:
            open_gate()

    def when(self, ready: Callable[[], bool]) -> threading.Thread:
        """A thread that lets go once `ready`; or when its patience is at an end, so that a test fails and does not hang."""

        def watch() -> None:
            is_ready = False
            with self.changed:
                for _ in range(LOOKS):
                    if is_ready := ready():
                        break
                    self.changed.wait(LOOK_SECONDS)  # a driver may tell that a command has ended before the command says so itself
            self.early = not is_ready
            self.let_go()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        return thread


class _Event:
    """An event that tells when the host waits for it."""

    def __init__(self, event: Any, held: Held) -> None:
        self.event, self.held = event, held

    def __getattr__(self, name: str) -> Any:
        return getattr(self.event, name)

    def wait(self) -> None:
        self._note("wait")
        self.event.wait()

    def span(self) -> tuple[float, float]:
        self._note("span")
        found: tuple[float, float] = self.event.span()
        return found

    def _note(self, what: str) -> None:
        if not self.event.done():
            self.held.waits.append(f"{what} in {threading.current_thread().name}")


def _gate(opened: Any, stream: Any) -> Callable[[], None]:
    """Let a stream wait for an event that is reached when the function given back is called."""
    if isinstance(opened, emulated.EmulatedDevice):
        event = emulated.EmulatedEvent()
        stream.wait(event)
        return lambda: event.reach(0.0, 0.0, None)
    import pyopencl as cl

    user = cl.UserEvent(opened.context)
    stream._waits.append(user)
    return lambda: user.set_status(cl.command_execution_status.COMPLETE)


def emulated_box() -> tuple[Machine, Any]:
    cpu = Device("cpu", "cpu", lanes=2, languages=("host", "array"), shares_lanes=True, flops_per_second={"float32": 1e9}, bytes_per_second=1e9)
    gpu = Device(
        "gpu:0", "emulated", lanes=2, memory="gpu:0", hardware="gpu", launch_seconds=1e-6, flops_per_second={"float32": 1e12}, bytes_per_second=1e12
    )
    links = (Link(HOST, "gpu:0", 1e-6, 1e10), Link("gpu:0", HOST, 1e-6, 1e10))
    return Machine((cpu, gpu), links, (MemoryNode(HOST), MemoryNode("gpu:0"))), emulated


def opencl_box() -> tuple[Machine, Any]:
    pytest.importorskip("pyopencl")
    from hetsched.executors.backends import opencl

    here = Machine.here()
    if not any(d.id == "opencl:0" for d in here.devices):
        pytest.skip("no OpenCL device works here")
    # Two lanes that are booked against nothing, and speeds that are the same on every machine: what is asked is whether one lane holds up the other,
    # not whether that is fast on a processor. A plan in which a lane waits for bytes that the other has used would answer nothing.
    speeds: dict[str, Any] = {"fingerprint": "", "launch_seconds": 1e-6, "flops_per_second": {"float32": 1e9}, "bytes_per_second": 1e9}
    devices = tuple(replace(d, lanes=2, uses={}, **speeds) if d.id == "opencl:0" else d for d in here.devices)
    links = tuple(replace(k, latency_seconds=1e-6, bytes_per_second=1e10) if "opencl:0" in (k.src, k.dst) else k for k in here.links)
    return replace(here, devices=devices, links=links), opencl


@pytest.fixture(params=["emulated", "opencl"])
def box(request: pytest.FixtureRequest) -> tuple[Machine, Any, str]:
    machine, backend = emulated_box() if request.param == "emulated" else opencl_box()
    return machine, backend, "gpu:0" if request.param == "emulated" else "opencl:0"


def woven(device: str, rounds: int) -> Graph:
    """Two chains of products that look at each other in every round: with two lanes nearly every step waits for one of the other lane."""
    where = hs.Where((device,))
    b = Graph.build()
    x, y = b.input("x", (N, N)), b.input("y", (N, N))
    for i in range(rounds):
        p = b.op("tensor.matmul", x, y, name=f"p{i}", where=where)
        q = b.op("tensor.matmul", y, x, name=f"q{i}", where=where)
        x, y = b.op("nn.tanh", p, name=f"x{i}", where=where), b.op("nn.tanh", q, name=f"y{i}", where=where)
    return b.output(x, "x").output(y, "y").freeze()


def inputs_of(graph: Graph) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {name: (rng.normal(size=(N, N)) / 8).astype(np.float32) for name in graph.inputs}


def compute_lanes(plan: hs.Timeline, device: str) -> set[Any]:
    return {lane for lane in plan.lanes if lane.owner == device and lane.kind == "compute"}


def test_dependent_commands_are_handed_over_while_none_of_them_has_ended(box: tuple[Machine, Any, str]) -> None:
    """The first command of every stream is held until all have been handed over: a host that waited anywhere between would wait forever."""
    machine, backend, device = box
    graph = woven(device, 12)
    plan = hs.plan(graph, machine, policy="earliest_finish")
    assert len(compute_lanes(plan, device)) == 2, "a plan on one lane proves less"
    assert any(s.lanes[0] != t.lanes[0] for s, t in crossings(plan)), "no step waits for one of the other lane"
    launches, copies = len(list(plan.launches)), len(list(plan.copies))
    held = Held(backend, lambda kind, number: True)
    thread = held.when(lambda: held.handed["launch"] == launches and held.handed["upload"] + held.handed["download"] == copies)
    given = inputs_of(graph)
    result = live.run_plan(plan, check_inputs(graph, given), backends={machine.device(device).kind: held}, timeout=PATIENCE_SECONDS)
    thread.join()
    assert not held.early, f"only {dict(held.handed)} of {launches} launches and {copies} copies were handed over before the first was done"
    assert held.waits == []
    assert value_problems(result, interpret(graph, given)) == []
    assert run_problems(plan, result.trace, skew_seconds=1e-3) == []


def crossings(plan: hs.Timeline) -> list[tuple[Any, Any]]:
    """Pairs of launches of which the second reads what the first makes."""
    graph = plan.graph
    made = {v: s for s in plan.launches for v in graph.writes(s.command.task)}
    return [(made[v], s) for s in plan.launches for v in graph.reads(s.command.task) if v in made]


def test_turns_of_a_loop_are_handed_over_without_a_wait(box: tuple[Machine, Any, str]) -> None:
    """Copies in, two dependent launches, copies out: as many turns as the plan keeps in flight, before the first command has ended."""
    machine, backend, device = box
    where = hs.Where((device,))
    body = Graph.build()
    x = body.input("x", (N, N))
    body.output(body.op("nn.tanh", body.op("tensor.matmul", x, x, where=where), where=where), "y")
    b = Graph.build()
    (y,) = b.loop(Loop(body.freeze(), 20, sequences=("x",), collected=("y",)), b.input("x", (20, N, N)))
    graph = b.output(y, "y").freeze()
    plan = hs.plan(graph, machine)
    held = Held(backend, lambda kind, number: kind == "compute")
    thread = held.when(lambda: held.handed["launch"] >= 2)
    given = {"x": (np.random.default_rng(0).normal(size=(20, N, N)) / 8).astype(np.float32)}
    result = live.run_plan(plan, check_inputs(graph, given), backends={machine.device(device).kind: held}, timeout=PATIENCE_SECONDS)
    thread.join()
    assert not held.early
    assert [w for w in held.waits if f"hetsched-{device}" in w] == []
    assert value_problems(result, interpret(graph, given)) == []


def test_a_lane_goes_on_while_another_is_held(box: tuple[Machine, Any, str]) -> None:
    """Two independent chains, a lane each. One lane is held until the other has done all its work: lanes that took turns would never end."""
    machine, backend, device = box
    where = hs.Where((device,))
    b = Graph.build()
    for name in ("x", "y"):
        v = b.input(name, (N, N))
        for i in range(4):
            v = b.op("nn.tanh", b.op("tensor.matmul", v, v, name=f"{name}p{i}", where=where), name=f"{name}t{i}", where=where)
        b.output(v, f"{name}_out")
    graph = b.freeze()
    plan = hs.plan(graph, machine, policy="earliest_finish")
    lanes = compute_lanes(plan, device)
    by_lane = {lane: {graph.task_names[s.command.task][0] for s in plan.launches if s.lanes[0] == lane} for lane in lanes}
    assert sorted(map(sorted, by_lane.values())) == [["x"], ["y"]]
    owner = [name[0] for name in graph.task_names]
    reused = [(plan.spans[edge.before].command, plan.spans[edge.later].command) for edge in plan.after]
    assert not [(a, b) for a, b in reused if isinstance(a, Launch) and isinstance(b, Launch) and owner[a.task] != owner[b.task]]
    held = Held(backend, lambda kind, number: kind == "compute" and number == 0)
    free: list[Any] = []

    def other_is_done() -> bool:
        compute = [s for kind, s in held.streams if kind == "compute"]
        if len(compute) < 2 or held.handed["launch"] < 16:
            return False
        if not free:
            event = compute[1].record()
            free.append(event)
            event.on_done(lambda: held._told("done", 1))
        return bool(free[0].done())

    thread = held.when(other_is_done)
    given = inputs_of(graph)
    result = live.run_plan(plan, check_inputs(graph, given), backends={machine.device(device).kind: held}, timeout=PATIENCE_SECONDS)
    thread.join()
    assert not held.early, f"the second lane did not get through while the first was held: {dict(held.handed)} were handed over, {reused=}"
    assert value_problems(result, interpret(graph, given)) == []


def test_two_kernels_of_one_device_run_at_the_same_time() -> None:
    """On an emulated device: each of two kernels waits for the other to have begun."""
    machine, _ = emulated_box()
    met = threading.Barrier(2)

    def meet(xp: Any, inputs: Any, outputs: Any, workspace: Any, attributes: Any) -> None:
        met.wait(PATIENCE_SECONDS)
        outputs[0][...] = inputs[0]

    op = replace(find("tensor.neg"), name="test.meet", kernels={"array": meet})
    b = Graph.build()
    x = b.input("x", (N, N))
    for name in ("y", "z"):
        b.output(b.op(op, x, where=hs.Where(("gpu:0",))), name)
    plan = hs.plan(b.freeze(), machine, policy="earliest_finish")
    assert len(compute_lanes(plan, "gpu:0")) == 2
    result = hs.run(plan, {"x": np.ones((N, N), np.float32)}, timeout=PATIENCE_SECONDS)
    first, second = result.trace.launches
    assert max(first.start, second.start) < min(first.finish, second.finish)
