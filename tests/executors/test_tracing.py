"""What tracing costs: nothing where it is off; each task has a span of its own, in its order, where it is on."""

from typing import Any

import numpy as np
import pytest

import hetsched as hs
from hetsched.executors import binding, cpu, live, tracing
from hetsched.graph.graph import Loop
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode

CPU = Device("cpu", "cpu", lanes=2, languages=("host", "array"), shares_lanes=True, bytes_per_second=1e10, flops_per_second={"float32": 1e8})


def box() -> Machine:
    gpu = Device("gpu:0", "emulated", memory="gpu:0", hardware="gpu", bytes_per_second=1e10, flops_per_second={"float32": 1e12})
    return Machine((CPU, gpu), (Link(HOST, "gpu:0", 1e-6, 1e10), Link("gpu:0", HOST, 1e-6, 1e10)), (MemoryNode(HOST), MemoryNode("gpu:0")))


def chain(where: str) -> hs.Graph:
    b = hs.Graph.build()
    value = b.input("x", (16, 16))
    for _ in range(6):
        value = b.op("tensor.matmul", value, value, where=hs.Where((where,)))
    return b.output(value, "y").freeze()


def fan() -> hs.Graph:
    """Products that two threads share."""
    b = hs.Graph.build()
    x = b.input("x", (16, 16))
    for i in range(12):
        b.output(b.op("tensor.matmul", x, x, where=hs.Where(("cpu",))), f"y{i}")
    return b.freeze()


def loop(where: str) -> hs.Graph:
    body = hs.Graph.build()
    s = body.input("s", (16, 16))
    body.output(body.op("tensor.neg", body.op("tensor.matmul", s, s, where=hs.Where((where,))), where=hs.Where((where,))), "s2")
    b = hs.Graph.build()
    (last,) = b.loop(Loop(body.freeze(), 9, carried=(("s", "s2"),)), b.input("x", (16, 16)))
    return b.output(last, "y").freeze()


GRAPHS = {
    "one step": lambda: chain("cpu"),
    "threads": fan,
    "streams": lambda: chain("gpu:0"),
    "loop": lambda: loop("cpu"),
    "loop on a stream": lambda: loop("gpu:0"),
}


@pytest.mark.parametrize("name", list(GRAPHS))
def test_a_run_without_a_trace_notes_nothing_and_times_no_task(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[str] = []

    def noting(what: str, plain: Any) -> Any:
        def note(*args: Any, **named: Any) -> Any:
            noted.append(what)
            return plain(*args, **named)

        return note

    for module in (cpu, tracing):
        monkeypatch.setattr(module, "Note", noting("note", tracing.Note))
    monkeypatch.setattr(binding.Bindings, "perform_timed", noting("timed", binding.Bindings.perform_timed))
    monkeypatch.setattr(live.DeviceDriver, "_hand_over", noting("handed over", live.DeviceDriver._hand_over))
    plan = hs.plan(GRAPHS[name](), box())
    x = np.eye(16, dtype=np.float32)
    quiet = hs.run(plan, {"x": x}, trace=False)
    assert set(noted) <= {"handed over"}
    assert len(quiet.trace.spans) == 0
    assert ("handed over" in noted) == ("stream" in name)
    traced = hs.run(plan, {"x": x})
    assert len(traced.trace.spans) == sum(bool(span.lanes) for span in plan.spans)
    for output in traced:
        np.testing.assert_array_equal(traced[output], quiet[output])


@pytest.mark.parametrize("whole", [40e-6, 5e-6, 300e-6, 1e-3])
def test_shares_add_up_to_what_all_take_together(whole):
    alone = [22e-6, 25e-6, 35e-6, 60e-6, 28e-6]
    found = tracing.apportioned(whole, alone)
    assert sum(found) == pytest.approx(whole)
    assert all(x > 0 for x in found)
    assert found.index(max(found)) == 3


def test_long_tasks_keep_what_they_take_beside_short_ones():
    found = tracing.apportioned(1020e-6, [1000e-6, *[25e-6] * 10])
    assert found[0] == pytest.approx(977e-6, rel=0.01)
    assert found[1] == pytest.approx(4.0e-6, rel=0.25)


def test_nothing_is_apportioned_to_nothing():
    assert tracing.apportioned(1.0, []) == []
    assert tracing.apportioned(1.0, [0.0, 0.0]) == [0.0, 0.0]
