"""Machine code gives the plans of Python: bookings of graphs, their layout in memory, and the bounds."""

import random
import shutil
from dataclasses import replace

import numpy as np
import pytest

import hetsched as hs
from hetsched.check import problems
from hetsched.errors import PlanError
from hetsched.graph.alike import alike
from hetsched.placement import native, plan_graph
from hetsched.placement.costed.planning import CostedDraft, costed_problem
from hetsched.placement.costs import RooflineCosts
from hetsched.placement.draft import GraphDraft, HopelessError
from hetsched.placement.policies import find
from hetsched.placement.problem import problem_of
from hetsched.testing.graphs import random_graph, random_machine
from hetsched.testing.policy import random_costed, random_problem, stress_graph, stress_machine


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    """The functions, built once for these tests."""
    if not any(map(shutil.which, native.COMPILERS)):
        pytest.skip("no C compiler")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(native, "_file", native._file.__wrapped__)
        patch.setattr(native, "_MOST_SECONDS", 600.0)
        found = native.library.__wrapped__()
    assert found is not None
    return found.code


def by(monkeypatch, found):
    monkeypatch.setattr(native, "for_size", lambda tasks, build_from=0: found)


def content(plan):
    """All that a plan says."""
    return (
        plan.spans, plan.after, dict(plan.offsets), dict(plan.arenas), dict(plan.workspaces), dict(plan.bodies), dict(plan.peak), plan.notes,
        plan.bound.seconds, plan.makespan,
    )  # fmt: skip


def test_plans_of_graphs_are_the_same(code, monkeypatch):
    rng = random.Random(5)
    for seed in range(40):
        if seed % 4:
            machine = stress_machine(rng)
            graph = stress_graph(rng, rng.choice((5, 20, 60)), machine)
        else:
            graph, machine = random_graph(seed, tasks=15, loops=bool(seed % 8))[0], random_machine(seed)
        plans = []
        for found in (None, code):
            by(monkeypatch, found)
            plans.append([plan_graph(graph, machine, policy=name) for name in ("heft", "peft", "auto", "one_device")])
        for python, machine_code in zip(*plans, strict=True):
            assert content(python) == content(machine_code)
            assert problems(machine_code) == []


def test_wanted_choices_are_kept_where_groups_allow(code, monkeypatch):
    for seed in range(20):
        problem = random_problem(seed, 40)
        rng = random.Random(seed)
        wanted = [rng.choice([-1, *np.flatnonzero(np.isfinite(row)).tolist()]) for row in problem.durations]
        drafts = []
        for found in (None, code):
            by(monkeypatch, found)
            drafts.append(GraphDraft(replace(problem)))
            drafts[-1].place_all(problem.order.tolist(), None, wanted)
        python, machine_code = drafts
        assert (python.choice_of, python.start_of, python.finish()) == (machine_code.choice_of, machine_code.start_of, machine_code.finish())
        kept = [
            a for a, b, t in zip(wanted, machine_code.choice_of, range(len(problem)), strict=True) if a >= 0 and t not in problem.groups and a != b
        ]
        assert kept == []


def test_a_list_that_cannot_be_booked_is_refused_and_a_hopeless_one_given_up(code, monkeypatch):
    problem = random_problem(3, 30)
    by(monkeypatch, code)
    with pytest.raises(PlanError, match="not booked yet"):
        GraphDraft(replace(problem)).place_all(problem.order.tolist()[::-1])
    draft = GraphDraft(replace(problem))
    find("heft")(draft)
    hopeless = GraphDraft(problem)
    hopeless.give_up_above = draft.finish() / 2
    with pytest.raises(HopelessError):
        find("heft")(hopeless)


def test_what_does_not_fit_is_told_alike(code, monkeypatch):
    b = hs.Graph.build()
    x = b.input("x", (1024,))
    values = [b.op("tensor.scale", x, factor=float(i)) for i in range(8)]
    total = values[0]
    for value in values[1:]:
        total = b.op("tensor.add", total, value)
    graph = b.output(total, "y").freeze()
    found = []
    for by_code in (None, code):
        by(monkeypatch, by_code)
        machine = stress_machine(random.Random(1))
        plan = plan_graph(graph, machine, policy="heft", memory={"host": 5 * 4096})
        found.append(content(plan))
        assert plan.peak["host"] <= 5 * 4096
    assert found[0] == found[1]


def test_bounds_by_paths_are_the_same(code, monkeypatch):
    from hetsched.placement.bounds import check_bound, lower_bound

    for seed in range(10):
        problem = random_problem(seed, 50)
        bounds = []
        for found in (None, code):
            by(monkeypatch, found)
            bounds.append(lower_bound(replace(problem)))
        assert bounds[0].seconds == bounds[1].seconds
        check_bound(problem, bounds[1])


def test_costs_are_asked_for_once_for_each_kind_of_task():
    asked = []

    class Counting(RooflineCosts):
        def launch(self, graph, task, device, width=1):
            asked.append((task, device.id))
            return super().launch(graph, task, device, width)

    b = hs.Graph.build()
    values = [b.input("x", (8, 8))]
    for i in range(40):
        values.append(b.op("tensor.matmul" if i % 2 else "tensor.add", values[-1], values[0]))
    graph = b.output(values[-1]).freeze()
    machine = stress_machine(random.Random(2))
    problem_of(graph, machine, Counting(machine))
    assert {task for task, _ in asked} == set(alike(graph).first.tolist())
    assert len(alike(graph).first) == 3  # what reads the input alone, and two more


def test_costed_graphs_are_booked_alike_by_all_three_ways(code, monkeypatch):
    from hetsched.placement.costed import draft as costed_draft

    for seed in range(12):
        document, rows = random_costed(seed, 40), []
        for found, sparse in ((None, 0), (None, 500), (code, 500)):
            by(monkeypatch, found)
            monkeypatch.setattr(costed_draft, "SPARSE", sparse)
            drafts = [CostedDraft(costed_problem(document)) for _ in range(3)]
            for draft, name in zip(drafts, ("peft", "twice", "auto"), strict=True):
                find(name)(draft)
            rows.append([draft.rows() for draft in drafts])
        assert rows[0] == rows[1] == rows[2]
