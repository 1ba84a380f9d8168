"""`plan.explain`: what a task would take elsewhere, why the losers lost, and flip points, each checked by planning again on both of its sides."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

import hetsched as hs
from hetsched.errors import CommandLineError
from hetsched.graph.graph import Graph, Loop, Where
from hetsched.machine import Device, Link, Machine, MemoryNode
from hetsched.machine.named import find
from hetsched.placement import plan_graph
from hetsched.placement.asked import asked_for
from hetsched.placement.costs import RooflineCosts
from hetsched.placement.why import Explanation, FasterCosts, Flip, Parameter, faster, find_task
from hetsched.testing.graphs import random_graph
from hetsched.timeline import Timeline


def small_machine(gpu: float = 10.0, link: float = 5e9) -> Machine:
    """Two threads and a GPU `gpu` times as fast in arithmetic and memory."""
    cpu = Device("cpu", "cpu", 2, languages=("host", "array"), flops_per_second={"float32": 5e10}, bytes_per_second=1e10, shares_lanes=True,
                 busy_watts=10.0, idle_watts=2.0, name="threads")  # fmt: skip
    acc = Device("cuda:0", "cuda", 1, memory="cuda:0", languages=("array",), hardware="gpu", flops_per_second={"float32": 5e10 * gpu},
                 bytes_per_second=1e10 * gpu, launch_seconds=1e-5, busy_watts=50.0, idle_watts=5.0, name="card")  # fmt: skip
    links = (Link("host", "cuda:0", 1e-5, link), Link("cuda:0", "host", 1e-5, link))
    return Machine((cpu, acc), links, (MemoryNode("host"), MemoryNode("cuda:0", 1 << 30)), name="small")


def product(n: int) -> Graph:
    """c = a @ b, d = relu(c), both of n x n."""
    g = Graph.build()
    a, b = g.input("a", (n, n)), g.input("b", (n, n))
    c = g.op("tensor.matmul", a, b, name="c")
    return g.output(g.op("nn.relu", c, name="d")).freeze()


def trained(batch: int) -> Graph:
    """100 turns over rows of a sequence: a product in a loop."""
    body = Graph.build()
    x, w = body.input("x", (batch, 256)), body.input("w", (256, 256))
    y = body.op("tensor.matmul", x, w, name="y")
    body.output(y, "y")
    loop = Loop(body.freeze(), 20, invariants=("w",), sequences=("x",), collected=("y",), name="steps")
    g = Graph.build()
    out = g.loop(loop, g.input("w", (256, 256)), g.input("x", hs.Sequence(hs.Spec((batch, 256)), 20)), name="steps")
    return g.output(out[0], "y").freeze()


def device_at(plan: Timeline, task: str) -> str:
    """The device of a task, found without what is tested."""
    if task not in plan.graph.task_index:
        loop, _, task = task.partition("/")
        plan = plan.loops[plan.graph.task_index[loop]]
    return plan.device_of(plan.graph.task_index[task])


def check_flip(flip: Flip, task: str, graph: Graph, machine: Machine, build: Callable[[int], Graph] | None, **asked: object) -> None:
    """Plan afresh on both sides."""
    found = []
    for value in (flip.same, flip.other):
        if flip.what.startswith("speed of "):
            device = flip.what.removeprefix("speed of ")
            plan = plan_graph(graph, faster(machine, frozenset({device}), value), **asked)  # type: ignore[arg-type]
        else:
            assert build is not None
            assert value == int(value)
            plan = plan_graph(build(int(value)), machine, **asked)  # type: ignore[arg-type]
        found.append(device_at(plan, task))
    assert found == [flip.stays, flip.becomes]
    assert flip.stays != flip.becomes
    if flip.what.startswith("speed of "):
        assert max(flip.same / flip.other, flip.other / flip.same) <= 1.02 + 1e-9
    else:
        assert abs(flip.same - flip.other) == 1


def cases() -> list[tuple[str, Explanation, Graph, Machine, Callable[[int], Graph] | None, dict[str, object]]]:
    """Explanations of several graphs, machines, policies and objectives."""
    out: list[tuple[str, Explanation, Graph, Machine, Callable[[int], Graph] | None, dict[str, object]]] = []
    for gpu, link in ((10.0, 5e9), (30.0, 2e10), (3.0, 1e9)):
        for asked in ({"policy": "heft"}, {"policy": "peft"}):
            machine = small_machine(gpu, link)
            plan = plan_graph(product(64), machine, **asked)  # type: ignore[arg-type]
            out.append(("c", plan.explain("c", vary={"n": Parameter(64, product)}), product(64), machine, product, dict(asked)))
    machine = small_machine()
    plan = plan_graph(trained(8), machine)
    out.append(("steps/y", plan.explain("y", vary={"batch": Parameter(8, trained)}), trained(8), machine, trained, {}))
    plan = plan_graph(product(256), machine, objective="energy")
    out.append(("c", plan.explain("c", vary={"n": Parameter(256, product)}), product(256), machine, product, {"objective": "energy"}))
    for seed in range(6):
        graph, _ = random_graph(seed, tasks=8, loops=False)
        task = graph.task_names[-1]
        plan = plan_graph(graph, machine, policy="heft")
        out.append((task, plan.explain(task), graph, machine, None, {"policy": "heft"}))
    return out


def test_both_sides_of_twenty_flip_points_give_the_two_choices():
    checked: dict[str, int] = {}
    for task, explanation, graph, machine, build, asked in cases():
        for flip in explanation.flips:
            check_flip(flip, task, graph, machine, build, **asked)
            kind = "speed" if flip.what.startswith("speed") else flip.what
            checked[kind] = checked.get(kind, 0) + 1
    assert sum(checked.values()) >= 20
    assert checked["n"] >= 3
    assert checked["batch"] >= 1


def test_the_flip_point_of_a_size_agrees_with_a_scan():
    """Every size up to beyond the flip point, planned one by one."""
    machine = small_machine()
    flip = next(f for f in plan_graph(product(64), machine, policy="heft").explain("c", vary={"n": Parameter(64, product)}).flips if f.what == "n")
    scan = {n: device_at(plan_graph(product(n), machine, policy="heft"), "c") for n in range(int(flip.same) - 8, int(flip.other) + 8)}
    assert scan[int(flip.same)] == flip.stays
    assert scan[int(flip.other)] == flip.becomes
    assert str(flip) == f"{flip.becomes} wins from n {flip.other:g} on (at {flip.same:g}: {flip.stays}; now 64)"


def test_what_the_task_takes_on_each_device_by_hand():
    machine = small_machine()
    graph = product(512)
    plan = plan_graph(graph, machine, policy="heft")
    x = plan.explain("c", flips=False)
    assert x.device == "cuda:0"
    chosen, cpu = x.options
    assert (chosen.chosen, cpu.chosen) == (True, False)
    nbytes, flops = 512 * 512 * 4, 2 * 512**3
    op = graph.task("c").op
    launches = 1e-5 * op.calls, 2e-6 * op.calls  # type: ignore[union-attr]
    assert chosen.compute_seconds == pytest.approx(launches[0] + flops / 5e11)
    assert cpu.compute_seconds == pytest.approx(launches[1] + flops / 5e10)
    assert chosen.copied_bytes == 2 * nbytes  # a and b; d is what goes back
    assert chosen.copies_seconds == pytest.approx(2 * (1e-5 + nbytes / 5e9))
    assert chosen.queue_seconds == 0
    assert chosen.memory_bytes == 3 * nbytes
    assert chosen.node_bytes >= 3 * nbytes
    assert chosen.joules == pytest.approx(chosen.compute_seconds * 50.0)
    assert chosen.seconds == plan.makespan
    assert chosen.worse == 0
    assert chosen.spread_seconds == pytest.approx(0.5 * chosen.compute_seconds)
    # Held on the CPU: c there, and then what is best after it.
    assert cpu.worse == pytest.approx(cpu.seconds / plan.makespan - 1)
    assert cpu.worse > 0
    assert "it computes longer there" in cpu.why
    assert "cpu: the whole would be" in str(x)


def test_why_a_device_cannot_have_a_task():
    machine = small_machine()
    g = Graph.build()
    a = g.input("a", (64, 64))
    b = g.op("nn.relu", a, name="b", where=Where(("cpu",)))
    graph = g.output(g.op("tensor.matmul", b, a, name="c")).freeze()
    plan = plan_graph(graph, machine)
    assert plan.explain("b", flips=False).option("cuda:0").problem == "the `device:` of the task does not allow it"
    opencl = replace(machine.device("cuda:0"), languages=("opencl",))
    unable = replace(machine, devices=(machine.device("cpu"), replace(opencl, flops_per_second={"float32": 1e12})))
    doubles = Graph.build()
    d = doubles.output(doubles.op("nn.relu", doubles.input("a", (8, 8), "float64"), name="r")).freeze()
    assert plan_graph(d, unable).explain("r", flips=False).option("cuda:0").problem == "has no kernel for nn.relu"
    tiny = replace(machine, memories=(machine.memories[0], MemoryNode("cuda:0", 1000)))
    problem = plan_graph(product(64), tiny).explain("c", flips=False).option("cuda:0").problem
    assert "cuda:0" in problem
    limited = plan_graph(graph, machine, only="cpu").explain("c", flips=False).option("cuda:0").problem
    assert limited


def test_like_devices_are_told_once():
    x = plan_graph(product(256), find("aws/g6.12xlarge")).explain("c", flips=False)
    assert sorted(o.like for o in x.options) == [1, 1, 3]
    assert "and 2 like it" in str(x)


def test_measured_costs_are_scaled_and_not_the_machine():
    """With a cost model of one's own, a speed is changed by dividing its answers."""

    class Measured:
        def __init__(self, machine: Machine) -> None:
            self.roofline = RooflineCosts(machine)

        def launch(self, graph, task, device, width=1):
            return self.roofline.launch(graph, task, device, width)._replace(source="measured")

        def copy(self, nbytes, link):
            return self.roofline.copy(nbytes, link)

    machine = small_machine()
    costs = Measured(machine)
    x = plan_graph(product(64), machine, costs=costs, policy="heft").explain("c")
    assert x.options[0].source == "measured"
    flip = next(f for f in x.flips if f.what == "speed of cpu")
    for value, device in ((flip.same, flip.stays), (flip.other, flip.becomes)):
        plan = plan_graph(product(64), machine, costs=FasterCosts(costs, frozenset({"cpu"}), value), policy="heft")
        assert device_at(plan, "c") == device


def test_a_better_device_that_the_policy_missed_is_said_to_be_better():
    plan = plan_graph(product(1024), small_machine(), policy="round_robin")
    texts = [o.why for name in ("c", "d") for o in plan.explain(name, flips=False).options]
    assert any(text.startswith("better by ") for text in texts)


def test_names_that_are_none_or_several():
    plan = plan_graph(trained(8), small_machine())
    with pytest.raises(CommandLineError, match=r"no task 'yy'"):
        plan.explain("yy")
    with pytest.raises(CommandLineError, match="'steps' is a loop, whose tasks are placed each by itself"):
        plan.explain("steps")
    assert find_task(plan.graph, "y") == ("steps/y", (0, 0))
    g = Graph.build()
    a = g.input("a", (4, 4))
    with g.scope("p"):
        x = g.op("nn.relu", a, name="z")
    with g.scope("q"):
        g.output(g.op("nn.relu", x, name="z"))
    with pytest.raises(CommandLineError, match=r"'z' means 2 tasks: p/z, q/z; give more of the name"):
        plan_graph(g.freeze(), small_machine()).explain("z")


def test_a_search_that_finds_nothing_says_how_far_it_went():
    g = Graph.build()
    graph = g.output(g.op("nn.relu", g.input("a", (4, 4)), name="z", where=Where(("cpu",)))).freeze()
    x = plan_graph(graph, small_machine()).explain("z")
    assert not x.flips
    assert set(x.searched) == {"speed of cpu down to 1/1024", "speed of cuda:0 up to 1024 x"}
    late = plan_graph(graph, small_machine()).explain("z", seconds=-1.0)
    assert all("was not searched" in text for text in late.searched)


def test_parameters_that_leave_the_values_as_they_are_are_searched_last():
    plan = plan_graph(trained(8), small_machine())
    vary = {"seed": Parameter(3, lambda value: trained(8)), "batch": Parameter(8, trained)}
    names = [text.split(" was not")[0] for text in plan.explain("y", vary=vary, seconds=-1.0).searched]
    assert names == ["batch", "speed of cpu", "speed of cuda:0", "seed"]


def test_how_a_plan_was_asked_for_is_known_while_it_lives():
    machine = small_machine()
    plan = plan_graph(product(64), machine, policy="heft", objective="energy", memory={"cuda:0": 1 << 20}, only="gpu")
    asked = asked_for(plan)
    assert (asked.policy, str(asked.objective), asked.memory, asked.only) == ("heft", "energy", {"cuda:0": 1 << 20}, "gpu")
    assert asked.machine is machine
    by_hand = replace(plan)
    assert asked_for(by_hand).policy == "heft"


def test_a_trace_is_not_explained():
    import numpy as np

    result = hs.run(product(8), {"a": np.ones((8, 8), "f4"), "b": np.ones((8, 8), "f4")})
    with pytest.raises(CommandLineError, match="a trace of what has run"):
        result.trace.explain("c")
    x = result.plan.explain("c", flips=False)
    assert isinstance(x, Explanation)
    assert not math.isnan(x.options[0].compute_seconds)
