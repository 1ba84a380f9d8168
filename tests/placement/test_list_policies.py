"""lookahead, mct, min_min and heteroprio on graphs small enough to plan by hand."""

import numpy as np
import pytest

from hetsched.placement.costed.planning import CostedDraft, costed_problem
from hetsched.placement.policies import find
from hetsched.placement.policies.heteroprio import affinities
from hetsched.testing.policy import random_costed


def costed(durations, edges=(), lanes=None, nodes=None):
    n = len(durations[0])
    nodes = nodes or list(range(n))
    count = max(nodes) + 1
    return costed_problem(
        {
            "format": "placement-bench/1",
            "mem_nodes": [f"m{i}" for i in range(count)],
            "devices": [{"name": f"d{d}", "lanes": lanes[d] if lanes else 1, "mem": nodes[d]} for d in range(n)],
            "links": [{"src": a, "dst": b, "latency": 0.0, "bandwidth": 1.0} for a in range(count) for b in range(count) if a != b],
            "durations": durations,
            "edges": list(edges),
        }
    )


def planned(name, problem):
    draft = CostedDraft(problem)
    find(name)(draft)
    return draft


def test_lookahead_pays_for_a_child_that_is_fast_elsewhere():
    # HEFT takes device 0 for the first task (4 < 5) and pays the copy of 9; its child runs on device 1 only.
    problem = costed([[4.0, 5.0], [None, 2.0]], [[0, 1, 9.0]])
    assert planned("heft", problem).finish() == 15.0
    assert planned("lookahead", problem).finish() == 7.0


def test_lookahead_lets_children_queue_behind_each_other():
    # Device 0 is nearer for each child alone (3 s each), but three of them queue there.
    problem = costed([[1.0, 1.0], *[[3.0, 3.0]] * 3], [[0, i, 2.0] for i in (1, 2, 3)])
    assert planned("lookahead", problem).finish() == 7.0


def test_min_min_takes_short_tasks_first_and_mct_as_they_come():
    problem = costed([[5.0], [1.0], [3.0]])
    assert planned("min_min", problem).booked == [1, 2, 0]
    assert planned("mct", problem).booked == [0, 1, 2]


def test_mct_takes_tasks_in_the_order_in_which_they_become_ready():
    # 3 follows the short task 1 and so is ready before 2, which follows the long one.
    problem = costed([[6.0, 6.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]], [[0, 2, 0.0], [1, 3, 0.0]], nodes=[0, 0])
    assert planned("mct", problem).booked == [0, 1, 3, 2]


def test_min_min_asks_again_after_each_booking():
    dice = np.random.default_rng(3)
    problem = costed(dice.uniform(1, 9, (12, 3)).round(2).tolist(), nodes=[0, 0, 0])
    fast, slow = planned("min_min", problem), CostedDraft(problem)
    left = set(range(12))
    while left:
        task = min(left, key=lambda t: (slow.finish_times(t).min(), t))
        slow.place(task, slow.earliest(task))
        left.remove(task)
    assert fast.finish() == slow.finish()
    assert fast.booked == slow.booked


def test_affinity_is_the_acceleration_over_the_best_other_kind():
    problem = costed([[8.0, 2.0], [2.0, 3.0], [None, 4.0]])
    assert affinities(problem).tolist() == [[0.25, 4.0], [1.5, pytest.approx(2 / 3)], [-np.inf, np.inf]]


def test_heteroprio_gives_each_kind_what_suits_it():
    # The accelerator takes what it speeds up most, the slow lanes what they are least bad at, and all end together.
    problem = costed([[8.0, 1.0], [8.0, 2.0], [4.0, 3.0], [3.0, 3.0]], lanes=[2, 1], nodes=[0, 0])
    draft = planned("heteroprio", problem)
    assert draft.choice_of == [1, 1, 0, 0]
    assert draft.finish() == 4.0


def test_heteroprio_never_waits_for_a_lane_that_another_outruns():
    # Device 0 is idle and task 2 ready, but device 1 is over with it before device 0 would be.
    problem = costed([[100.0, 1.0]] * 3, nodes=[0, 0])
    assert planned("heteroprio", problem).finish() == 3.0


@pytest.mark.parametrize("name", ["lookahead", "min_min", "mct", "heteroprio"])
def test_they_share_nothing_between_calls(name):
    problem = costed_problem(random_costed(5, 40))
    assert planned(name, problem).rows() == planned(name, problem).rows()
    assert planned(name, costed_problem(random_costed(1, 0))).finish() == 0.0
