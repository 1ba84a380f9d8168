"""Bodies of hundreds of tasks: where they begin, what they may cost, and lanes dealt out one by one."""

import random

import pytest
from test_periodic import document, planned, random_document, violations

from hetsched.placement.periods import _WORK, fastest, plan_period, within
from hetsched.placement.periods.assign import Cycles, least_period
from hetsched.placement.periods.eager import eager
from hetsched.placement.periods.order import by_starts
from hetsched.placement.periods.problem import Core, Ops, problem_of


def chain(n, seed=0):
    """A chain that goes on in the next turn: devices of two memories are in turn the faster one, by less than a copy takes."""
    rng = random.Random(seed)
    rows = [[1e-4 * rng.uniform(0.9, 1.1), 1e-4 * rng.uniform(0.9, 1.1)] for _ in range(n)]
    return document(rows, [(1, 0), (1, 1)], [(t, t + 1, 60_000) for t in range(n - 1)], [(n - 1, 0, 60_000, 1)])


def test_what_belongs_together_stays_together():
    core = Core(problem_of(chain(150)))
    cycles = Cycles(core)
    alone = min(sum(row[d] for row in core.durations) for d in (0, 1))
    assert min(least_period(core, cycles, a) for a in eager(core)) <= 1.02 * alone
    assert least_period(core, cycles, fastest(core)) > 1.2 * alone


@pytest.mark.parametrize("seed", range(10))
def test_tasks_are_dealt_to_devices_that_can_run_them(seed):
    core = Core(problem_of(random_document(seed, 30)))
    found = eager(core)
    assert 1 <= len(found) <= 6
    assert len({tuple(a) for a in found}) == len(found)
    for assignment in [*found, *(within(core, node) for node in range(core.problem.nodes))]:
        assert all(core.durations[t][d] is not None for t, d in enumerate(assignment))
        Ops(core, assignment)  # each copy has a link
    assert eager(core) == found


def test_copies_and_queues_count():
    # Two readers on the other device, which is twice as fast: one copy is worth it for both, not for one of them.
    rows = [[1e-4, None], [2e-4, 1e-4], [2e-4, 1e-4]]
    doc = document(rows, [(1, 0), (1, 1)], [(0, 1, 100_000), (0, 2, 100_000)], latency=0.0)
    (found,) = {tuple(a) for a in eager(Core(problem_of(doc)), turns=1)}
    assert found in ((0, 1, 0), (0, 0, 1), (0, 1, 1))
    doc["links"] = [{**x, "bandwidth": 1e6} for x in doc["links"]]
    assert eager(Core(problem_of(doc)), turns=1) == [[0, 0, 0]]


@pytest.mark.parametrize("n", [120, 150])
def test_a_plan_of_many_tasks_is_near_its_bound_at_few_evaluations(n):
    doc = chain(n)
    problem = problem_of(doc)
    plan = plan_period(problem)
    assert violations(doc, plan.document()) == []
    assert plan.period <= 1.1 * plan.lower_bound
    assert plan.evaluations <= 1.2 * _WORK / n


def test_all_in_one_memory_where_copies_cost_more_than_they_gain():
    core = Core(problem_of(chain(20)))
    assert within(core, 0) == [0] * 20
    assert within(core, 1) == [1] * 20


@pytest.mark.parametrize("seed", range(20))
def test_an_order_by_starts_is_that_of_a_plan(seed):
    ops, start, period = planned(seed)
    order = by_starts(ops, start, period)
    assert order.solve(1, period)
    assert order.period <= period


@pytest.mark.parametrize("seed", range(20))
def test_what_overlaps_on_one_lane_waits(seed):
    """Starts a little earlier, some more than others: an order on each lane all the same."""
    ops, start, period = planned(seed)
    order = by_starts(ops, start, period)
    late = by_starts(ops, [s // 7 * 7 for s in start], period)
    for found in (order, late):
        assert sorted(v for v in found.next if v >= 0) == sorted(u for u, v in enumerate(found.next) if v >= 0)
        for r, lanes in enumerate(ops.core.capacity):
            group = [u for u in range(ops.count) if ops.resource[u] == r]
            if group and lanes == 1:
                assert sum(found.step[u] for u in group) == 1
