"""The policy `exact` and its bounds. What needs OR-Tools is skipped where it is not installed."""

import sys

import numpy as np
import pytest

from hetsched.errors import CommandLineError, PlanError
from hetsched.placement.bounds import check_bound, lower_bound
from hetsched.placement.costed.planning import CostedDraft, costed_problem
from hetsched.placement.draft import GraphDraft
from hetsched.placement.policies import find
from hetsched.testing.policy import check_policy, random_costed, random_problem
from hetsched.timeline import Bound
from tests.placement.small_graphs import best_makespan


def solved(problem, make=CostedDraft):
    draft = make(problem)
    find("exact")(draft)
    return draft


def test_without_the_solver_the_error_tells_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "ortools.sat.python", None)
    draft = CostedDraft(costed_problem(random_costed(1, 5)))
    with pytest.raises(CommandLineError, match=r'needs OR-Tools.*pip install "hetsched\[exact\]", or use --policy auto'):
        find("exact")(draft)
    assert draft.booked == []


def test_a_graph_that_is_too_large_is_refused():
    pytest.importorskip("ortools.sat.python.cp_model")
    with pytest.raises(CommandLineError, match="at most 100 tasks, this one has 101; use --policy auto"):
        solved(costed_problem(random_costed(1, 101)))


def test_exact_is_the_best_of_all_assignments_and_orders():
    pytest.importorskip("ortools.sat.python.cp_model")
    for seed in range(6):
        problem = costed_problem(random_costed(seed, 4))
        assert solved(problem).finish() == pytest.approx(best_makespan(problem), rel=1e-5)


def test_exact_says_what_it_proved_and_the_bound_is_verified_by_solving_again():
    pytest.importorskip("ortools.sat.python.cp_model")
    problem = costed_problem(random_costed(39, 12))
    heft, draft = CostedDraft(problem), solved(problem)
    find("heft")(heft)
    assert draft.finish() < heft.finish()
    assert draft.notes == ["CP-SAT proved that no plan is shorter by more than 0.01 %"]
    bound = lower_bound(problem, above=draft.finish())
    assert bound.kind == "cp-sat"
    assert draft.finish() * (1 - 1e-4) <= bound.seconds <= draft.finish()
    check_bound(problem, bound)
    raised = bound.witness._replace(ticks=int(bound.witness.ticks * 1.01))
    with pytest.raises(PlanError, match="does not prove again"):
        check_bound(problem, Bound(bound.seconds * 1.01, "cp-sat", raised))
    with pytest.raises(PlanError, match="is not proved"):
        check_bound(problem, Bound(bound.seconds * 1.01, "cp-sat", bound.witness))
    with pytest.raises(PlanError, match="wanted a CpSatWitness"):
        check_bound(problem, Bound(1.0, "cp-sat", 3))


def test_exact_keeps_the_contract():
    pytest.importorskip("ortools.sat.python.cp_model")
    check_policy(find("exact"), 6, seed=3, n=9)


def test_on_machines_its_bound_holds_for_every_plan_and_it_is_never_worse_than_auto():
    pytest.importorskip("ortools.sat.python.cp_model")
    for seed in range(8):
        problem = random_problem(seed, 7)
        draft, auto = solved(problem, GraphDraft), GraphDraft(problem)
        find("auto")(auto)
        assert problem.memo["proved"].seconds <= draft.finish() <= auto.finish()
        assert np.isfinite(draft.finish())
