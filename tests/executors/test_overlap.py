"""Overlap: lanes of one device at once, copies ahead of who reads them, and no wait of the host between dependent commands.

Times are those of the devices' own modelled clocks. What must not wait is shown by a kernel that ends only when the host has handed over all that
follows.
"""

import sys
import threading
from dataclasses import replace
from itertools import pairwise
from typing import Any

import fake_cupy
import numpy as np
import pytest
from unspoilt import unspoilt

import hetsched as hs
from hetsched.check import problems
from hetsched.executors import live
from hetsched.executors.backends.emulated import EmulatedEvent, EmulatedStream
from hetsched.graph.graph import Graph
from hetsched.graph.op import Op, Work
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode
from hetsched.run import check_inputs
from hetsched.testing.backend import _machine_of
from hetsched.timeline import Span

CPU = Device("cpu", "cpu", lanes=2, languages=("host", "array"), shares_lanes=True, bytes_per_second=10e9, flops_per_second={"float32": 1e10})
THERE = hs.Where(("gpu:0",))
N = 10_000
KERNEL_SECONDS = 8e-3  # of tensor.neg on N numbers


def box(lanes: int = 1, link_seconds: float = 4e-3) -> Machine:
    """A CPU and an emulated accelerator of some streams, on which an element-wise op takes KERNEL_SECONDS and a copy `link_seconds`."""
    gpu = Device(
        "gpu:0", "emulated", lanes=lanes, memory="gpu:0", hardware="gpu", bytes_per_second=8 * N / KERNEL_SECONDS, flops_per_second={"float32": 1e15},
        launch_seconds=0,
    )  # fmt: skip
    links = (Link(HOST, "gpu:0", 0, 4 * N / link_seconds), Link("gpu:0", HOST, 0, 4 * N / link_seconds))
    return Machine((CPU, gpu), links, (MemoryNode(HOST), MemoryNode("gpu:0")))


def two_chains(length: int) -> Graph:
    """Two chains of kernels that share their input and meet at the end."""
    b = Graph.build()
    x = b.input("x", (N,))
    ends = []
    for name in "ab":
        value = x
        for i in range(length):
            value = b.op("tensor.neg", value, name=f"{name}{i}", where=THERE)
        ends.append(value)
    return b.output(b.op("tensor.sub", *ends, name="join", where=THERE), "y").freeze()


def test_streams_of_one_device_compute_at_once() -> None:
    """Two chains of six kernels of 8 ms on two streams: most of the one is done while the other computes, each stream in its order."""
    plan = hs.plan(two_chains(6), box(lanes=2))
    assert problems(plan) == []
    lanes = {lane for span in plan.launches for lane in span.lanes}
    assert {lane.number for lane in lanes} == {0, 1}
    x = np.random.default_rng(0).normal(size=N).astype(np.float32)

    def ran() -> list[list[tuple[float, float]]]:
        result = hs.run(plan, {"x": x})
        assert (result["y"] == 0).all()
        by_lane = {lane: [(s.start, s.finish) for s in spans] for lane, spans in result.trace.by_lane().items() if lane in lanes}
        first, second = by_lane.values()
        for spans in (first, second):
            assert len(spans) >= 6
            assert all(a[1] <= b[0] + 1e-9 for a, b in pairwise(spans))
        return [first, second]

    def at_once(found: list[list[tuple[float, float]]]) -> None:
        first, second = found
        both = sum(max(0.0, min(b, d) - max(a, c)) for a, b in first for c, d in second)
        assert both > 0.5 * 6 * KERNEL_SECONDS

    unspoilt(ran, at_once)


def test_what_a_lane_reads_next_is_copied_while_it_computes() -> None:
    """A value of the host that exists early, and one that a CPU task makes meanwhile: both have arrived when the kernel before their reader ends."""
    b = Graph.build()
    x, early = b.input("x", (N,)), b.input("early", (N,))
    made = b.op("tensor.exp", b.input("z", (N,)), name="made", where=hs.Where(("cpu",)))
    value = x
    for i in range(3):
        value = b.op("tensor.neg", value, name=f"busy{i}", where=THERE)
    value = b.op("tensor.add", value, early, name="reads_early", where=THERE)
    value = b.op("tensor.add", value, made, name="reads_made", where=THERE)
    plan = hs.plan(b.output(value, "y").freeze(), box())
    inputs = {name: np.random.default_rng(0).normal(size=N).astype(np.float32) for name in ("x", "early", "z")}
    copied_ahead(plan)

    def ran() -> hs.Timeline:
        result = hs.run(plan, inputs)
        np.testing.assert_allclose(result["y"], -inputs["x"] + inputs["early"] + np.exp(inputs["z"]), rtol=1e-5)
        arrives_in_time(result.trace)
        return result.trace

    arrives_in_time(plan)
    unspoilt(ran, copied_ahead)


def spans_of(timeline: hs.Timeline) -> tuple[dict[str, Span], dict[str, Span]]:
    """(task -> its launch, value -> its copy)"""
    graph = timeline.graph
    return {graph.task_names[s.command.task]: s for s in timeline.launches}, {graph.value_names[s.command.value]: s for s in timeline.copies}


def arrives_in_time(timeline: hs.Timeline) -> None:
    at, copies = spans_of(timeline)
    for name, reader in (("early", "reads_early"), ("made", "reads_made")):
        assert copies[name].finish <= at[reader].start + 1e-9, name
    assert copies["made"].start >= at["made"].finish - 1e-9


def copied_ahead(timeline: hs.Timeline) -> None:
    at, copies = spans_of(timeline)
    for name, busy in (("early", "busy2"), ("made", "reads_early")):
        assert copies[name].start < at[busy].start, name


def test_a_copy_ahead_waits_for_room() -> None:
    """The same with room for what is alive without it, and no more: nothing is copied before something has gone, and the values are right."""
    b = Graph.build()
    values = [b.input(f"x{i}", (N,)) for i in range(6)]
    total = values[0]
    for i, value in enumerate(values[1:]):
        total = b.op("tensor.add", total, value, name=f"t{i}", where=THERE)
    graph = b.output(total, "y").freeze()
    inputs = {f"x{i}": np.full(N, i, np.float32) for i in range(6)}
    free = hs.plan(graph, box(link_seconds=1e-3))
    tight = hs.plan(graph, box(link_seconds=1e-3), memory={"gpu:0": 3 * 4 * N + 3 * 64})
    assert free.arenas["gpu:0"] > tight.arenas["gpu:0"]
    assert tight.arenas["gpu:0"] <= 3 * 4 * N + 3 * 64
    for plan in (free, tight):
        assert problems(plan) == []
        assert (hs.run(plan, inputs)["y"] == 15).all()


@pytest.mark.parametrize("lanes", [1, 2])
def test_dependent_commands_of_a_device_never_wait_for_the_host(lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first kernel ends when everything else has been handed over: copies in and out and kernels of both streams that need it, and each other."""
    handed: list[str] = []
    all_handed, blocked = threading.Event(), []

    def kernel(xp: Any, ins: Any, outs: Any, workspace: Any, attributes: Any) -> None:
        assert all_handed.wait(600), f"the host waits for a kernel before it hands over what needs it; so far {handed}"
        outs[0][...] = ins[0]

    first = Op("test.first", ("x",), ("out",), lambda s, a: [s[0]], lambda i, o, a: Work(1, 4 * N, 4 * N), kernels={"array": kernel})
    b = Graph.build()
    x = b.op(first, b.input("x", (N,)), name="first", where=THERE)
    left, right = b.op("tensor.neg", x, where=THERE), b.op("tensor.exp", x, where=THERE)
    for _ in range(4):
        left, right = b.op("tensor.sub", left, right, where=THERE), b.op("tensor.add", left, right, where=THERE)
    graph = b.output(left, "l").output(right, "r").freeze()
    plan = hs.plan(graph, box(lanes=lanes))
    assert len({lane for s in plan.launches for lane in s.lanes}) == lanes
    expected = sum(1 for s in plan.spans if s.lanes)

    def counting(name: str, plain: Any) -> Any:
        def count(self: Any, *args: Any) -> Any:
            out = plain(self, *args)
            handed.append(name)
            if len(handed) == expected:
                all_handed.set()
            return out

        return count

    for name in ("launch", "upload", "download", "copy"):
        monkeypatch.setattr(EmulatedStream, name, counting(name, getattr(EmulatedStream, name)))
    plain_wait = EmulatedEvent.wait

    def wait(self: Any) -> None:
        if not self.done():
            blocked.append(threading.current_thread().name)
        plain_wait(self)

    monkeypatch.setattr(EmulatedEvent, "wait", wait)
    result = hs.run(plan, {"x": np.zeros(N, np.float32)})
    wanted = np.float32(0), np.float32(1)
    for _ in range(4):
        wanted = wanted[0] - wanted[1], wanted[0] + wanted[1]
    assert (result["l"] == wanted[0]).all()
    assert (result["r"] == wanted[1]).all()
    assert len(handed) == expected
    assert blocked == []


def test_streams_of_cuda_wait_for_each_other_by_events_and_the_host_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CuPy of NumPy: two streams that need each other's results; the host asks events whether they are done, and never waits in between.

    None is said to be done before everything has been handed over: for what is done, no stream would have to wait.
    """
    under_way, query, watch = [True], fake_cupy.event_query, live.DeviceDriver._watch
    monkeypatch.setattr(fake_cupy, "event_query", lambda event: 600 if under_way else query(event))
    monkeypatch.setattr(live.DeviceDriver, "_watch", lambda self: (under_way.clear() if self.under_way else None, watch(self))[1])
    backend = fake_cupy.install(monkeypatch)
    machine = _machine_of(backend)
    machine = replace(machine, devices=tuple(d if d.memory == HOST else replace(d, languages=("array",), lanes=2) for d in machine.devices))
    there = hs.Where(("cuda:0",))
    b = Graph.build()
    x = b.input("x", (64,))
    left, right = b.op("tensor.neg", x, where=there), b.op("tensor.exp", x, where=there)
    for _ in range(6):
        left, right = b.op("tensor.sub", left, right, where=there), b.op("tensor.maximum", left, right, where=there)
    graph = b.output(left, "l").output(right, "r").freeze()
    plan = hs.plan(graph, machine)
    assert len({lane for s in plan.launches for lane in s.lanes}) == 2
    waits, across = [], []
    plain_wait, plain_across = fake_cupy.Event.synchronize, fake_cupy.Stream.wait_event

    def synchronize(self: Any) -> None:
        if not self.done and not threading.current_thread().name.endswith("-events"):  # threads that do nothing but wait
            waits.append(sys._getframe(1).f_code.co_name)
        plain_wait(self)

    monkeypatch.setattr(fake_cupy.Event, "synchronize", synchronize)
    monkeypatch.setattr(fake_cupy.Stream, "wait_event", lambda self, event: across.append(event) or plain_across(self, event))
    result = live.run_plan(plan, check_inputs(graph, {"x": np.zeros(64, np.float32)}), backends={"cuda": backend})
    assert result["l"].shape == (64,)
    crossings = sum(
        1 for s in plan.launches for r in s.command.reads
        for p in plan.launches if any(w.value == r.value for w in p.command.writes) and p.lanes != s.lanes
    )  # fmt: skip
    assert crossings > 4
    assert len(across) >= crossings // 2
    # The clock has a stream of its own, on which no kernel runs.
    assert set(waits) <= {"renew"}
