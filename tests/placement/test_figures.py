from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hetsched.graph.graph import Graph, Loop
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode
from hetsched.placement import plan_graph
from hetsched.placement.costs.figures import measure
from hetsched.report.events import busy_seconds
from hetsched.testing.graphs import random_graph, random_machine
from hetsched.timeline import Lane, Launch, Replica, Span, Timeline

CPU = Device("cpu", "cpu", 2, 1, busy_watts=10.0, idle_watts=4.0, price_per_hour=36.0)
GPU = Device("gpu", "gpu", memory="gpu", hardware="gpu", busy_watts=100.0, idle_watts=20.0, price_per_hour=360.0)
MACHINE = Machine((CPU, GPU), (Link(HOST, "gpu"), Link("gpu", HOST)), (MemoryNode(HOST), MemoryNode("gpu")))


def by_hand(machine: Machine, *launches: tuple[tuple[Lane, ...], float, float], **fields: Any) -> Timeline:
    """A plan of like tasks, of which only lanes and times matter here."""
    b = Graph.build()
    x = b.input("x", (2,))
    for i in range(len(launches)):
        b.output(b.op("tensor.exp", x), name=f"y{i}")
    graph = b.freeze()
    spans = tuple(
        Span(lanes, Launch(i, 0, (Replica(0, 0, HOST),), (Replica(1 + i, 0, HOST),), len(lanes)), start, finish)
        for i, (lanes, start, finish) in enumerate(launches)
    )
    return Timeline(graph, machine, spans, **fields)


def test_busy_lanes_draw_busy_watts_and_the_rest_its_share_of_idle_watts() -> None:
    plan = by_hand(MACHINE, ((Lane("cpu", 0),), 0.0, 3.0), ((Lane("cpu", 0), Lane("cpu", 1)), 3.0, 5.0))
    figures = measure(plan)
    assert (figures.seconds, figures.latency_seconds, figures.devices, dict(figures.busy)) == (5.0, 5.0, ("cpu",), {"cpu": 7.0, "gpu": 0.0})
    assert figures.joules == pytest.approx(10.0 * 7 + 4.0 * (5 - 7 / 2) + 20.0 * 5)
    assert figures.price == pytest.approx(5 * 36 / 3600)
    assert figures.estimated == {"time", "latency", "energy", "price"}


def test_a_device_that_is_off_when_unused_draws_nothing_then() -> None:
    lane = (Lane("cpu", 0),)
    off = replace(MACHINE, devices=(CPU, replace(GPU, always_on=False)))
    assert measure(by_hand(off, (lane, 0.0, 3.0))).joules == pytest.approx(10.0 * 3 + 4.0 * 1.5)
    used = measure(by_hand(off, (lane, 0.0, 3.0), ((Lane("gpu", 0),), 0.0, 1.0)))
    assert used.joules == pytest.approx(10.0 * 3 + 4.0 * 1.5 + 100.0 + 20.0 * 2)
    assert used.price == pytest.approx(3 * (36 + 360) / 3600)


def test_lanes_that_wait_are_not_busy_but_use_the_device() -> None:
    figures = measure(by_hand(MACHINE, ((Lane("cpu", 0, "io"),), 0.0, 2.0)))
    assert (figures.devices, figures.busy["cpu"]) == (("cpu",), 0.0)


def test_what_the_machine_does_not_state_is_not_known_and_said() -> None:
    bare = replace(MACHINE, devices=(CPU, replace(GPU, busy_watts=None, idle_watts=None, price_per_hour=None)))
    both = measure(by_hand(bare, ((Lane("cpu", 0),), 0.0, 1.0), ((Lane("gpu", 0),), 0.0, 1.0)))
    assert (both.joules, both.price) == (None, None)
    assert dict(both.missing) == {"energy": "gpu states no busy_watts; gpu states no idle_watts", "price": "gpu states no price_per_hour"}
    # A device not used needs a price no more; but it is on, and draws something.
    one = measure(by_hand(bare, ((Lane("cpu", 0),), 0.0, 1.0)))
    assert (one.joules, one.price) == (None, pytest.approx(0.01))
    off = replace(bare, devices=(CPU, replace(bare.devices[1], always_on=False)))
    assert measure(by_hand(off, ((Lane("cpu", 0),), 0.0, 1.0))).joules == pytest.approx(12.0)


def test_a_trace_is_measured_but_its_joules_rest_on_stated_watts() -> None:
    trace = by_hand(MACHINE, ((Lane("cpu", 0),), 0.0, 1.0), measured=True, totals={"cpu": 0.5})
    figures = measure(trace)
    assert (figures.estimated, figures.busy["cpu"], figures.latency_seconds) == ({"energy"}, 0.5, None)
    assert "latency" in figures.missing


def looped(turns: int) -> Graph:
    body = Graph.build("body")
    x, w = body.input("x", (64, 64)), body.input("w", (64, 64))
    body.output(body.op("tensor.matmul", x, w, name="step"), "next")
    body.op("tensor.exp", w, name="seldom")
    loop = Loop(body.freeze(), turns, invariants=("x",), carried=(("w", "next"),), every={"seldom": 4})
    b = Graph.build()
    x, w = b.input("x", (64, 64)), b.op("tensor.exp", b.input("w", (64, 64)), name="before")
    (last,) = b.loop(loop, x, w, name="steps")
    return b.output(b.op("tensor.exp", last, name="after"), "out").freeze()


def test_latency_is_one_turn_of_each_loop_and_the_rest_of_the_graph() -> None:
    machine = Machine((replace(CPU, lanes=1),))
    plan = plan_graph(looped(10), machine)
    (body,) = plan.loops.values()
    seconds = {plan.graph.task_names[s.command.task]: s.finish - s.start for s in plan.launches}
    one_turn = max(s.finish for s in body.spans)
    assert measure(plan).latency_seconds == pytest.approx(seconds["before"] + one_turn + seconds["after"])
    assert one_turn < seconds["steps"] / 5
    assert measure(plan_graph(looped(1), machine)).latency_seconds == pytest.approx(plan_graph(looped(1), machine).makespan)


def test_a_task_of_every_fourth_turn_is_busy_in_every_fourth_turn() -> None:
    plan = plan_graph(looped(10), Machine((replace(CPU, lanes=1),)))
    (body,) = plan.loops.values()
    once = {body.graph.task_names[s.command.task]: s.finish - s.start for s in body.launches}
    outer = sum(s.finish - s.start for s in plan.launches if s.command.task not in plan.loops)
    assert measure(plan).busy["cpu"] == pytest.approx(outer + 10 * once["step"] + 3 * once["seldom"])


@pytest.mark.parametrize("seed", range(12))
def test_busy_seconds_are_those_of_the_reports_with_loops_and_all_their_turns(seed: int) -> None:
    machine = random_machine(seed)
    plan = plan_graph(random_graph(seed, tasks=10)[0], machine)
    wanted: dict[str, float] = {}
    for lane, seconds in busy_seconds(plan).items():
        if lane.kind == "compute":
            wanted[lane.owner] = wanted.get(lane.owner, 0.0) + seconds
    found = measure(plan).busy
    assert {d: s for d, s in found.items() if s} == pytest.approx({d: s for d, s in wanted.items() if s})
