"""What lies between the steps of a run: learned from traces, and stated by plans."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from hetsched.check import check
from hetsched.executors.simulated import Simulation
from hetsched.graph.graph import Graph
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode, Resource
from hetsched.placement import plan_graph
from hetsched.placement.costs.estimate import Estimate
from hetsched.placement.costs.handover import STREAM_FIRST, Handover, Way, handovers, way_of
from hetsched.placement.costs.history import Known
from hetsched.placement.costs.kinds import GAP, device_key
from hetsched.placement.costs.known import KnownCosts
from hetsched.placement.policies import auto
from hetsched.timeline import Copy, Free, Lane, Launch, Timeline

CPU = Device("cpu", "cpu", lanes=2, io_lanes=1, languages=("host", "array"), flops_per_second={"float32": 1e9}, shares_lanes=True, fingerprint="c")
GPU = Device("gpu:0", "emulated", memory="gpu:0", languages=("array",), flops_per_second={"float32": 1e10}, fingerprint="g")
LINKS = (Link(HOST, "gpu:0", 1e-5, 1e10), Link("gpu:0", HOST, 1e-5, 1e10))
ONE = Machine((CPU,))
BOTH = Machine((CPU, GPU), LINKS, (MemoryNode(HOST), MemoryNode("gpu:0")))
PLAIN = Way(True, 2)


class Costs:
    """A thousandth of a second for each task, of which the op says how many; and what lies between them."""

    def __init__(self, known=None, machine=ONE, seconds=None):
        self.machine, self.known, self.seconds = machine, known or {}, seconds or {}

    def launch(self, graph, task, device, width=1):
        return Estimate(self.seconds.get(graph.task_ops[task].name, 1e-3) / width)

    def copy(self, nbytes, link):
        return Estimate(link.seconds(nbytes))

    def handover(self):
        return Handover(self.machine, self.known)


def chains(n=2, length=3):
    """Independent rows of tasks, each of which reads the one before it and the first input (so that they are no segments' chains of one reader)."""
    b = Graph.build()
    x = b.input("x", (8,))
    for _ in range(n):
        y = x
        for _ in range(length):
            y = b.op("tensor.add", y, x)
        b.output(y)
    return b.freeze()


def layered(seed, tasks=24):
    rng, b = random.Random(seed), Graph.build()
    values = [b.input("x", (32, 32))]
    for _ in range(tasks):
        op = rng.choice(["tensor.exp", "nn.relu", "nn.softmax"])
        values.append(b.op(op, b.op("tensor.add", rng.choice(values[-5:]), rng.choice(values[-5:]))))
    for v in values[-4:]:
        b.output(b.op("tensor.sum", v))
    return b.freeze()


def woven(tasks=16):
    """Each task reads two others, and nearly all are read by two."""
    b = Graph.build()
    values = [b.input("x", (8,)), b.input("y", (8,))]
    for _ in range(tasks):
        values.append(b.op("tensor.add", values[-1], values[-2]))
    return b.output(values[-1]).freeze()


def known_of(way, **seconds):
    """(device or link, kind) -> seconds."""
    names = {"own": way.first("compute", 0), "other": way.first("compute", 1), "handed": way.handed(False), "next": way.next}
    return {(device_key(CPU), names[name]): s for name, s in seconds.items()}


@pytest.mark.parametrize("policy", ["round_robin", "heft", "min_min", "hedge"])
@pytest.mark.parametrize("seed", range(6))
def test_a_plan_of_threads_states_what_running_it_takes(policy, seed):
    """The executor under a virtual clock takes ready steps by priority. The plan says what it does, or nearly: it does not stay with chains."""
    graph = layered(seed)
    costs = Costs(seconds={"tensor.exp": 3e-3, "nn.softmax": 2e-3})
    plan = plan_graph(graph, ONE, costs=costs, policy=policy)
    check(plan)
    given = {v: np.zeros(graph.spec(v).bounds, np.float32) for v in graph.inputs.values()}
    ran = Simulation(plan, given, compute=False).run().traced()
    assert plan.makespan == pytest.approx(ran.makespan, rel=0.08)


def test_a_bad_list_is_planned_as_threads_will_mend_it():
    """Two rows of tasks dealt in turn cross from lane to lane; the threads stay with their rows, and lose nothing."""
    graph = chains(2, 6)

    def all_of_a_row_on_one_lane(draft):
        for task in range(len(graph)):  # one after another, on whatever lane is free: not before the one before has finished
            draft.place(task, 0, 1e-3 * task)
        draft.lane_of[:] = [task % 2 for task in range(len(graph))]

    plan = plan_graph(graph, ONE, costs=Costs(), policy=all_of_a_row_on_one_lane)
    check(plan)
    assert plan.makespan == pytest.approx(6e-3), "12 tasks of 1 ms on two threads, and not one after another"


def test_what_is_known_of_threads_is_stated():
    costs = Costs(known_of(PLAIN, own=1e-4, other=5e-4, next=2e-5))
    plan = plan_graph(chains(2, 3), ONE, costs=costs, policy="heft")
    check(plan)
    begins = sorted(min(s.start for s in plan.launches if s.lanes[0].number == lane) for lane in (0, 1))
    assert begins == [pytest.approx(1e-4), pytest.approx(5e-4)]
    assert plan.makespan == pytest.approx(5e-4 + 3e-3), "a row is one step of its thread: nothing lies between"
    alone = plan_graph(chains(1, 3), ONE, costs=Costs(known_of(Way(True, 1), own=3e-4)), policy="heft")
    assert alone.makespan == pytest.approx(3.3e-3)


def test_streams_and_links_state_when_they_are_handed_something():
    graph = chains(1, 2)
    way = Way(False, 0)
    copied, back = (f"{x.id}|g" for x in LINKS)
    known = {(device_key(GPU), STREAM_FIRST): 1e-3, (copied, STREAM_FIRST): 2e-3, (back, STREAM_FIRST): 4e-3, (device_key(GPU), way.next): 1e-4}
    usual = plan_graph(graph, BOTH, costs=Costs(machine=BOTH), only="gpu:0")
    plan = plan_graph(graph, BOTH, costs=Costs(known, BOTH), only="gpu:0")
    check(plan)
    assert plan.makespan - usual.makespan == pytest.approx(7.1e-3)


def spans_of(plan, gap):
    """The plan's spans as a run would have made them that takes `gap` before each, in the order of their starts."""
    free, there, out = {}, {}, []
    for span in sorted((s for s in plan.spans if not isinstance(s.command, Free)), key=lambda s: s.start):
        reads = span.command.reads if isinstance(span.command, Launch) else (span.command.src,)
        start = max([0.0, *(there.get(r, 0.0) for r in reads), *(free.get(lane, 0.0) for lane in span.lanes)]) + gap
        finish = start + span.finish - span.start
        there.update((r, finish) for r in (span.command.writes if isinstance(span.command, Launch) else (span.command.dst,)))
        free.update((lane, finish) for lane in span.lanes)
        out.append(span._replace(start=start, finish=finish))
    return out


@pytest.mark.parametrize("only", ["cpu", "gpu:0"])
def test_a_trace_teaches_what_the_next_plan_states(only):
    graph = woven()
    plan = plan_graph(graph, BOTH, costs=Costs(machine=BOTH), only=only)
    trace = replace(plan, spans=tuple(spans_of(plan, 3e-4)), after=(), measured=True)
    taught = handovers(trace, plan)
    assert {x.op for x in taught} == {GAP}
    assert [x.seconds for x in taught] == [pytest.approx(3e-4)] * len(taught)
    known = {(x.device, x.kind, 1): Known(x.op, "", 0.0, 0.0, x.seconds, 0.0, 1) for x in taught}
    model = KnownCosts(BOTH, known=known)
    assert model.handover().known == {(x.device, x.kind): x.seconds for x in taught}
    again = plan_graph(graph, BOTH, costs=Costs(model.handover().known, BOTH), only=only)
    check(again)
    assert again.makespan == pytest.approx(trace.makespan, rel=0.05)
    assert again.makespan > 1.02 * plan.makespan


def test_what_is_built_once_is_not_taken_for_handing_over():
    plan = plan_graph(chains(1, 2), BOTH, costs=Costs(machine=BOTH), only="gpu:0")
    late = [s._replace(start=s.start + 0.7, finish=s.finish + 0.7) for s in plan.spans if not isinstance(s.command, Free)]
    first = min(late, key=lambda s: s.start)
    assert isinstance(first.command, Copy)
    assert first.lanes[0].owner not in {x.device.partition("|")[0] for x in handovers(replace(plan, spans=tuple(late), measured=True), plan)}


def test_how_a_plan_is_dispatched():
    a, b, stream = (Lane("cpu", 0),), (Lane("cpu", 1),), (Lane("gpu:0", 0),)
    assert way_of(BOTH, [a, b], False) == Way(True, 2)
    assert way_of(BOTH, [a, b], True) == Way(False, 2)
    assert way_of(BOTH, [(*a, *b)], False) == Way(False, 2)
    assert way_of(BOTH, [a, stream], False) == Way(False, 1)
    assert way_of(BOTH, [stream], False) == Way(False, 0)


def test_a_plan_keeps_within_what_devices_share():
    """A processor whose lanes share one core: two threads, one task at a time."""
    narrow = replace(CPU, uses={"cores": 1.0})
    machine = Machine((narrow,), resources=(Resource("cores", 1.0),))
    plan = plan_graph(chains(2, 3), machine, costs=Costs(known_of(Way(True, 1), own=1e-4)), policy="round_robin")
    check(plan)
    assert plan.makespan >= 6e-3
    assert isinstance(plan, Timeline)


class Faster(Costs):
    """The card takes a quarter of the processor's time."""

    def launch(self, graph, task, device, width=1):
        return Estimate(1e-3 if device.id == "cpu" else 2.5e-4)


def test_auto_stays_at_home_where_handing_over_costs_more_than_it_gains():
    graph = woven(6)
    away = plan_graph(graph, BOTH, costs=Faster(machine=BOTH))
    assert "gpu:0" in {s.lanes[0].owner for s in away.launches}
    known = {(device_key(GPU), STREAM_FIRST): 2e-2}
    home = plan_graph(graph, BOTH, costs=Faster(known, BOTH))
    check(home)
    assert {s.lanes[0].owner for s in home.launches} == {"cpu"}
    assert home.makespan < 2e-2


@pytest.mark.parametrize("is_known", [False, True])
def test_a_device_more_does_not_make_the_plan_of_a_large_graph_longer(is_known):
    """Many short rows that come together on the processor: greedy choice sends their ends to and fro."""
    graph = chains(110, 3)
    known = known_of(Way(True, 2), own=1e-5) | known_of(Way(False, 2), own=1e-5)
    known |= {(device_key(GPU), STREAM_FIRST): 0.4} if is_known else {}
    with_it = plan_graph(graph, BOTH, costs=Faster(known if is_known else None, BOTH))
    without = plan_graph(graph, ONE, costs=Faster(known if is_known else None, ONE))
    assert len(graph) > auto.SMALL
    check(with_it)
    assert with_it.makespan <= without.makespan * 1.001
