import random

import pytest

from hetsched.errors import InternalError, PlanError
from hetsched.placement.policies import find
from hetsched.testing.policy import check_policy, costed_faults, random_costed, random_problem, stress_graph, stress_machine


def test_a_good_policy_passes():
    def by_offers(draft):
        for task in draft.problem.order.tolist():
            draft.book(min(draft.offers(task), key=lambda offer: offer.finish))

    check_policy(by_offers, 5)


def test_a_policy_that_forgets_a_task_is_told_which():
    def forgetful(draft):
        for task in draft.problem.order.tolist()[:-1]:
            draft.place(task, draft.earliest(task))

    with pytest.raises(InternalError, match=r"policy fails on random_problem\(\d+, \d+\):\nnot booked: t\d+"):
        check_policy(forgetful, 5)


def test_a_policy_that_throws_dice_is_found_out():
    dice = random.Random(3)

    def random_policy(draft):
        for task in draft.problem.order.tolist():
            draft.book(dice.choice(list(draft.offers(task))))

    with pytest.raises(InternalError, match="the same problem gave two different plans"):
        check_policy(random_policy, 5)


def test_a_policy_out_of_order_is_refused_by_the_draft():
    def backwards(draft):
        for task in reversed(draft.problem.order.tolist()):
            draft.place(task, draft.earliest(task))

    with pytest.raises(PlanError, match=r"cannot be booked: it needs .*, which is not booked yet"):
        check_policy(backwards, 5)


def test_faults_in_a_costed_plan_are_named():
    def late(draft):
        find("heft")(draft)
        draft.start_of[0] -= 0.5

    assert any("task 0 is on device" in fault for fault in costed_faults(late, random_costed(1, 10)))


def test_random_problems_cover_what_a_policy_must_cope_with():
    problems = [random_problem(seed, 40) for seed in range(40)]
    assert any(p.groups for p in problems)
    assert any(p.has_wide for p in problems)
    assert any(len(p.resource_names) for p in problems)
    assert any(any(pool.kind == "io" for pool in p.pools) for p in problems)
    assert {len(p.node_names) for p in problems} >= {1, 2, 3}
    ops = {op.name for p in problems for op in p.graph.task_ops}
    assert {"test.mix", "test.scratch", "test.split", "test.flat", "test.hold", "test.unpack", "test.gpu_only"} <= ops
    assert any(p.graph.after for p in problems)


def test_the_same_seed_gives_the_same_graph():
    graphs = []
    for _ in range(2):
        rng = random.Random(9)
        graphs.append(stress_graph(rng, 20, stress_machine(rng)))
    assert graphs[0].task_names == graphs[1].task_names
    assert graphs[0].value_nbytes.tolist() == graphs[1].value_nbytes.tolist()
    assert random_costed(9, 20) == random_costed(9, 20)
