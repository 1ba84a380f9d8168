"""Plans under objectives: each is the best of all by its own measure, deadlines are kept, and what the user said about devices stands above both."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from hetsched.check import problems
from hetsched.errors import OutOfMemoryError, PlacementError
from hetsched.graph.graph import Graph, Where
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode
from hetsched.machine.described import machine_named, machine_names
from hetsched.pipeline.build import load
from hetsched.placement import plan_front, plan_graph
from hetsched.placement.costs.figures import Figures, measure
from hetsched.placement.costs.objective import Objective
from hetsched.testing.graphs import random_graph, random_machine
from hetsched.timeline import Timeline

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"
SHIPPED = sorted(p.stem for p in PIPELINES.glob("*.yaml") if p.stem != "digits_predict")  # which reads what another one writes
GOALS = ("time", "energy", "price")


def priced(seed: int) -> Machine:
    """A random machine that states watts and prices, and has two devices at least."""
    rng = random.Random(seed)
    machine = next(m for i in range(1000) if len((m := random_machine(1000 * seed + i, accelerators=2)).devices) > 1)
    devices = [
        replace(d, busy_watts=rng.uniform(1, 300), idle_watts=rng.choice([0.0, 1.0, 40.0]), price_per_hour=rng.choice([0.0, 0.1, 3.0]),
                always_on=rng.random() < 0.5)
        for d in machine.devices
    ]  # fmt: skip
    return replace(machine, devices=tuple(devices))


def best_of_all(graph: Graph, machine: Machine, goals: tuple[str, ...] = GOALS) -> dict[str, Figures]:
    """Plan under every goal; assert that each plan is valid, and least in its own figure."""
    plans = {goal: plan_graph(graph, machine, objective=goal) for goal in goals}
    figures = {}
    for goal, plan in plans.items():
        assert problems(plan) == []
        assert plan.bound is not None
        assert plan.bound.seconds <= plan.makespan
        assert plan.objective == goal
        figures[goal] = measure(plan)
    for goal in goals:
        assert figures[goal].of(goal) == min(f.of(goal) for f in figures.values()), goal
    return figures


@pytest.mark.parametrize("machine", machine_names())
@pytest.mark.parametrize("name", SHIPPED)
def test_of_shipped_pipelines_the_plan_of_each_objective_is_the_best_of_all(name: str, machine: str) -> None:
    graph = load(PIPELINES / f"{name}.yaml", trust=True).graph
    best_of_all(graph, machine_named(machine))


@pytest.mark.parametrize("machine", machine_names())
def test_the_example_machines_trade(machine: str) -> None:
    """Time and price pull apart on each of them for some shipped pipeline, so that the test above does not compare like with like."""
    found = [best_of_all(load(PIPELINES / f"{name}.yaml").graph, machine_named(machine)) for name in ("digits_mlp", "matmul_conv")]
    assert any(f["price"].price < f["time"].price and f["price"].seconds > f["time"].seconds for f in found)


@pytest.mark.parametrize("seed", range(30))
def test_of_random_graphs_the_plan_of_each_objective_is_the_best_of_all(seed: int) -> None:
    best_of_all(random_graph(seed, tasks=12, loops=seed % 3 == 0)[0], priced(seed))


@pytest.mark.parametrize("seed", range(20))
def test_a_deadline_is_kept_or_refused_with_the_fastest_time(seed: int) -> None:
    graph, machine = random_graph(seed, tasks=12, loops=False)[0], priced(seed)
    free = {goal: measure(plan_graph(graph, machine, objective=goal)) for goal in GOALS}
    fastest, slowest = free["time"].seconds, max(f.seconds for f in free.values())
    for share in (0.0, 0.5, 1.0):
        deadline = fastest + share * (slowest - fastest)
        for goal in ("energy", "price"):
            kept = measure(plan_graph(graph, machine, objective={"minimize": goal, "deadline": deadline}))
            assert kept.seconds <= deadline * (1 + 1e-9)
            # What the deadline takes away cannot make the plan better, and the fastest plan keeps every deadline.
            assert free[goal].of(goal) <= kept.of(goal) <= free["time"].of(goal)
    with pytest.raises(PlacementError, match=r"the fastest takes .* no plan can be below") as caught:
        plan_graph(graph, machine, objective={"minimize": "price", "deadline": fastest * 0.99})
    assert f"the fastest takes {fastest:.4g} s" in str(caught.value)


def test_a_weighted_sum_is_the_best_of_all_by_its_own_score() -> None:
    graph, machine = load(PIPELINES / "mlp_784.yaml").graph, machine_named("workstation")
    texts = ("time", "energy", "price", "time=0.02,energy=0.98", "time=0.9,energy=0.1", "time=1,price=1")
    plans = {text: measure(plan_graph(graph, machine, objective=text)) for text in texts}
    for text in texts:
        scores = {other: Objective.of(text).score(figures, plans["time"]) for other, figures in plans.items()}
        assert scores[text] == min(scores.values()), text
    assert plans["time=0.02,energy=0.98"].joules < plans["time=0.9,energy=0.1"].joules


def test_latency_is_the_best_of_all_by_its_own_measure() -> None:
    figures = best_of_all(load(PIPELINES / "mlp_784.yaml").graph, machine_named("server"), (*GOALS, "latency"))
    assert figures["latency"].seconds > figures["time"].seconds


def dear(always_on: bool = True, **fields: object) -> Machine:
    """A slow, frugal CPU and a fast GPU that draws and costs a lot."""
    cpu = Device("cpu", "cpu", languages=("host", "array"), flops_per_second={"float32": 1e9}, busy_watts=5.0, idle_watts=1.0, price_per_hour=0.1)
    gpu = Device(
        "cuda:0", "cuda", memory="cuda:0", hardware="gpu", flops_per_second={"float32": 4e9}, busy_watts=400.0, idle_watts=50.0, price_per_hour=2.0,
        always_on=always_on,
    )  # fmt: skip
    links = (Link(HOST, "cuda:0", 1e-6, 1e11), Link("cuda:0", HOST, 1e-6, 1e11))
    return Machine((cpu, replace(gpu, **fields)), links, (MemoryNode(HOST), MemoryNode("cuda:0")))


def products(n: int = 3, **where: Where) -> Graph:
    b = Graph.build()
    value = b.input("x", (256, 256))
    for i in range(n):
        value = b.op("tensor.matmul", value, value, name=f"p{i}", where=where.get(f"p{i}"))
    return b.output(value, "out").freeze()


def used(plan: Timeline) -> tuple[str, ...]:
    return measure(plan).devices


def test_a_dear_device_is_left_out_where_price_counts() -> None:
    machine = dear()
    assert used(plan_graph(products(), machine)) == ("cuda:0",)
    assert used(plan_graph(products(), machine, objective="price")) == ("cpu",)
    # Four times as fast at four times the price and more: only a deadline brings the device back.
    slow = plan_graph(products(), machine, objective="price")
    plan = plan_graph(products(), machine, objective={"minimize": "price", "deadline": slow.makespan * 0.6})
    assert "cuda:0" in used(plan)
    assert plan.makespan <= slow.makespan * 0.6
    assert any("against the fastest plan" in note for note in plan.notes)


def test_idle_watts_of_a_device_that_is_on_anyway_can_make_using_it_cheaper() -> None:
    machine = dear(busy_watts=60.0)
    assert used(plan_graph(products(), machine, objective="energy")) == ("cuda:0",)
    assert used(plan_graph(products(), dear(False, busy_watts=60.0), objective="energy")) == ("cpu",)


def test_constraints_stand_above_the_objective() -> None:
    on_gpu = Where(allow=("cuda", "cpu"))
    plan = plan_graph(products(p1=on_gpu), dear(), objective="price")
    assert plan.device_of(1) == "cuda:0"
    assert not any("preference" in note for note in plan.notes)
    plan = plan_graph(products(p0=Where(exclude=("gpu",)), p2=Where(same_as="p0")), dear(busy_watts=60.0), objective="energy")
    assert (plan.device_of(0), plan.device_of(2)) == ("cpu", "cpu")
    assert used(plan_graph(products(), dear(), objective="price", only="cuda:0")) == ("cuda:0",)


@pytest.mark.parametrize("device", ["[cuda, cpu]", "cpu"])
def test_preferences_of_a_loop_stand_above_the_objective(device: str, tmp_path: Path) -> None:
    text = (PIPELINES / "digits_mlp.yaml").read_text(encoding="utf-8").replace("op: nn.train\n", f"op: nn.train\n    device: {device}\n")
    file = tmp_path / "p.yaml"
    file.write_text(text.replace("data/digits", str(PIPELINES / "data" / "digits")), encoding="utf-8")
    graph = load(file, trust=True).graph
    for goal in ("time", "energy", "price"):
        plan = plan_graph(graph, machine_named("workstation"), objective=goal)
        body = plan.loops[graph.task_index["train/steps"]]
        assert {lane.owner for s in body.launches for lane in s.lanes} == {"cpu" if device == "cpu" else "cuda:0"}


def test_the_policy_that_is_named_is_the_one_that_plans() -> None:
    machine = dear()
    assert plan_graph(products(), machine, policy="one_device", objective="price").policy == "one_device"
    assert used(plan_graph(products(), machine, policy="heft", objective="price")) == ("cpu",)
    assert plan_graph(products(), machine, policy="round_robin").notes == ()


@pytest.mark.parametrize("goal", ["energy", "price", "time=1,energy=1"])
def test_a_machine_that_states_nothing_cannot_be_planned_for_it(goal: str) -> None:
    machine = dear(busy_watts=None, idle_watts=None, price_per_hour=None)
    bare = replace(machine, devices=tuple(replace(d, idle_watts=None, price_per_hour=None) for d in machine.devices))
    with pytest.raises(PlacementError, match=r"states no (idle_watts|price_per_hour).*--machine"):
        plan_graph(products(), bare, objective=goal)


def test_plans_on_a_device_without_figures_are_left_out_and_that_is_said() -> None:
    plan = plan_graph(products(), dear(price_per_hour=None), objective="price")
    assert used(plan) == ("cpu",)
    assert any("left out" in note and "cuda:0 states no price_per_hour" in note for note in plan.notes)


def test_time_to_search_makes_no_plan_worse() -> None:
    graph, machine = random_graph(3, tasks=30, loops=False)[0], priced(3)
    for text in ("energy", "price", "time=1,energy=1"):
        goal, base = Objective.of(text), measure(plan_graph(graph, machine))
        instant, searched = (measure(plan_graph(graph, machine, objective=text, plan_seconds=s)) for s in (0.0, 0.3))
        if len(goal.weights) == 1:
            assert goal.score(searched) <= goal.score(instant)
        assert goal.score(searched, base) is not None


def test_memory_limits_hold_under_every_objective() -> None:
    graph = products(5)
    machine = dear()
    need = plan_graph(graph, machine, only="cuda:0").peak["cuda:0"]
    for goal in GOALS:
        plan = plan_graph(graph, machine, objective=goal, memory={"cuda:0": need - 1})
        assert plan.peak.get("cuda:0", 0) < need
    with pytest.raises(OutOfMemoryError):
        plan_graph(graph, machine, objective="energy", memory={"cuda:0": 100, HOST: 100})


@pytest.mark.parametrize("seed", range(10))
def test_the_front_is_made_of_plans_that_no_other_beats_and_holds_the_best_of_each_goal(seed: int) -> None:
    graph, machine = random_graph(seed, tasks=12, loops=False)[0], priced(seed)
    points = plan_front(graph, machine)
    rows = [tuple(p.figures.of(goal) for goal in GOALS) for p in points]
    assert rows == sorted(rows)
    for p, row in zip(points, rows, strict=True):
        assert problems(p.plan) == []
        assert row == tuple(measure(p.plan).of(goal) for goal in GOALS)
        assert not any(all(a <= b for a, b in zip(other, row, strict=True)) for other in rows if other is not row)
    for i, goal in enumerate(GOALS):
        (best,) = [row for p, row in zip(points, rows, strict=True) if goal in p.best]
        assert best[i] == min(row[i] for row in rows) == measure(plan_graph(graph, machine, objective=goal)).of(goal)


def test_an_empty_graph_costs_no_price() -> None:
    figures = measure(plan_graph(Graph.build().freeze(), dear(), objective="price"))
    assert (figures.seconds, figures.price, figures.devices) == (0.0, 0.0, ())


def test_like_devices_are_planned_for_once() -> None:
    from hetsched.placement.costs import RooflineCosts
    from hetsched.placement.problem import problem_of
    from hetsched.placement.subsets import device_subsets

    server = machine_named("server")
    assert [sorted(s) for s in device_subsets(problem_of(products(), server, RooflineCosts(server)))] == [[0, 1, 2], [0], [1], [0, 1], [1, 2]]
    named = products(p0=Where(allow=("cuda:1", "cpu")))
    sets = device_subsets(problem_of(named, server, RooflineCosts(server)))
    assert all(2 in s for s in sets)
    assert len(sets) == 4
