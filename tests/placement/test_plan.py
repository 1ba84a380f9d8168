import pytest

from hetsched.check import problems
from hetsched.errors import CommandLineError, PlacementError
from hetsched.graph.graph import Graph, Loop
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode
from hetsched.placement import plan_graph
from hetsched.placement.costs import Estimate, RooflineCosts
from hetsched.placement.costs.objective import score
from hetsched.placement.costs.roofline import DISK_BYTES_PER_SECOND, peak
from hetsched.placement.problem import loop_seconds, problem_of
from hetsched.testing.policy import flat, gpu_only, hold, mix, stress_graph, stress_machine, unpack

CPU = Device(
    "cpu", "cpu", 2, io_lanes=1, languages=("array", "host"), flops_per_second={"float32": 1e9, "float64": 5e8}, bytes_per_second=1e9,
    launch_seconds=1e-6, shares_lanes=True, widths=(1, 2), busy_watts=10.0,
)  # fmt: skip
GPU = Device("gpu", "gpu", memory="gpu", hardware="gpu", languages=("accelerator", "array"), flops_per_second={"float32": 1e11})
MACHINE = Machine((CPU, GPU), (Link(HOST, "gpu"), Link("gpu", HOST)), (MemoryNode(HOST), MemoryNode("gpu")))


def small():
    b = Graph.build()
    x = b.input("x", (64, 64))
    a = b.op(mix, x, flops=1e8, name="a")
    held = b.op(hold, a, name="held")
    b.output(b.op(mix, b.op(unpack, held, rows=8), a, name="out"))
    return b.freeze()


def test_a_plan_says_what_it_is():
    plan = plan_graph(small(), MACHINE, policy="heft")
    assert (plan.policy, plan.objective, plan.measured, plan.turns) == ("heft", "time", False, 1)
    assert 0 < plan.bound.seconds <= plan.makespan
    assert plan.plan_seconds > 0
    assert plan.device_of(0) == "gpu"
    assert problems(plan) == []
    assert score(plan, "time") == plan.makespan
    assert plan_graph(small(), MACHINE).notes[-1].startswith("auto took the plan of ")


def test_time_to_search_gives_no_worse_plan():
    import random

    machine = stress_machine(random.Random(5))
    graph = stress_graph(random.Random(5), 40, machine)
    instant, searched = plan_graph(graph, machine), plan_graph(graph, machine, plan_seconds=0.15)
    assert searched.makespan <= instant.makespan
    assert problems(searched) == []


def test_an_empty_graph_has_an_empty_plan():
    plan = plan_graph(Graph.build().freeze(), MACHINE)
    assert plan.spans == ()
    assert plan.bound.seconds == 0
    b = Graph.build()
    b.output(b.input("x", (2,)))
    plan = plan_graph(b.freeze(), MACHINE)
    assert (plan.spans, plan.offsets, problems(plan)) == ((), {}, [])


def test_words_that_are_not_known():
    with pytest.raises(CommandLineError, match="unknown objective 'tme'; did you mean 'time'"):
        plan_graph(small(), MACHINE, objective="tme")
    with pytest.raises(PlacementError, match=r"objective energy: .*gpu states no busy_watts.*--machine"):
        plan_graph(small(), MACHINE, objective="energy")
    with pytest.raises(CommandLineError, match="unknown policy 'heff'; did you mean 'heft'"):
        plan_graph(small(), MACHINE, policy="heff")


def test_given_costs_decide():
    class GpuIsSlow(RooflineCosts):
        def launch(self, graph, task, device, width=1):
            return Estimate(1.0) if device.id == "gpu" else super().launch(graph, task, device, width)

    assert plan_graph(small(), MACHINE, GpuIsSlow(MACHINE)).device_of(0) == "cpu"


def loop_graph():
    b = Graph.build("body")
    x, w = b.input("x", (8, 4)), b.input("w", (8, 4))
    y = b.op(mix, x, w, flops=1e5, name="step")
    b.output(y, "y").output(b.op(mix, w, y, flops=1e5, name="update"), "next")
    loop = Loop(b.freeze(), 6, sequences=("x",), carried=(("w", "next"),), collected=("y",))
    g = Graph.build()
    first = g.op(gpu_only, g.input("w", (8, 4)), name="first")
    last, collected = g.loop(loop, g.op(mix, g.input("xs", (6, 8, 4)), name="before"), first, name="loop")
    g.output(g.op(mix, last, name="after"), "w").output(collected, "ys")
    return g.freeze()


@pytest.mark.parametrize("only", [None, "cpu", "gpu"])
def test_a_loop_holds_the_lanes_of_its_body_and_reads_on_the_host(only):
    graph = loop_graph()
    plan = plan_graph(graph, MACHINE, only=only)
    assert problems(plan) == []
    task = graph.task_index["loop"]
    (span,) = [s for s in plan.launches if s.command.task == task]
    body = plan.loops[task]
    assert {lane for s in (*body.spans, *body.prologue, *body.epilogue) for lane in s.lanes} <= set(span.lanes)
    assert {r.node for r in (*span.command.reads, *span.command.writes)} == {HOST}
    assert span.finish - span.start == pytest.approx(loop_seconds(body))
    assert set(plan.bodies[task]) == {node for node, nbytes in body.arenas.items() if nbytes}
    for node, offset in plan.bodies[task].items():
        assert offset + body.arenas[node] <= plan.arenas[node]
    if only == "gpu":
        assert {lane.owner for s in body.spans for lane in s.lanes if lane.kind != "copy"} == {"gpu"}


def test_a_loop_needs_what_plans_its_body():
    with pytest.raises(PlacementError, match="task 'loop' is a loop"):
        problem_of(loop_graph(), MACHINE, RooflineCosts(MACHINE))


# Costs --------------------------------------------------------------------------------------------------------------------------


def test_the_roofline_takes_the_longer_of_arithmetic_and_traffic():
    b = Graph.build()
    x = b.input("x", (1000,))
    b.op(mix, x, flops=1e6)
    b.op(mix, x, flops=10.0)
    b.op(flat, x)
    b.op(unpack, b.op(hold, x), rows=1000)
    graph, costs = b.freeze(), RooflineCosts(MACHINE)
    assert costs.launch(graph, 0, CPU).seconds == pytest.approx(1e-6 + 1e-3)
    assert costs.launch(graph, 0, CPU).joules == pytest.approx(10 * (1e-6 + 1e-3))
    assert costs.launch(graph, 0, GPU).joules is None
    assert costs.launch(graph, 1, CPU).seconds == pytest.approx(1e-6 + 8000 / 1e9)
    assert costs.launch(graph, 0, CPU, 2).seconds < costs.launch(graph, 0, CPU).seconds
    assert costs.launch(graph, 1, CPU, 2).seconds >= costs.launch(graph, 1, CPU).seconds
    assert costs.launch(graph, 2, CPU).seconds == 0
    assert costs.launch(graph, 4, CPU).seconds == pytest.approx(1e-6 + 4100 / DISK_BYTES_PER_SECOND)
    assert costs.copy(10_000, MACHINE.links[0]).seconds == pytest.approx(1e-5 + 1e-6)


def test_peaks_fall_back_in_a_stated_order():
    assert peak(CPU, "float64") == 5e8
    assert peak(CPU, "int8") == 1e9
    assert peak(Device("d", "d", flops_per_second={"float16": 7.0, "int8": 9.0}), "float64") == 7.0
    assert peak(Device("d", "d"), "float64") == 2e9
