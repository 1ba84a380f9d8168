import itertools
import random

import numpy as np
import pytest

from hetsched.errors import PlanError
from hetsched.placement.bounds import Window, check_bound, earliest_finishes, lower_bound
from hetsched.placement.costed import CostedDraft, costed_problem
from hetsched.placement.draft import GraphDraft
from hetsched.placement.policies import find
from hetsched.testing.policy import random_costed, random_problem
from hetsched.timeline import Bound


def costed(durations, edges=(), lanes=None, links=1.0):
    n = len(durations[0]) if durations else 1
    return costed_problem(
        {
            "format": "placement-bench/1",
            "mem_nodes": [f"m{d}" for d in range(n)],
            "devices": [{"name": f"d{d}", "lanes": lanes[d] if lanes else 1, "mem": d} for d in range(n)],
            "links": [{"src": a, "dst": b, "latency": links, "bandwidth": 1.0} for a, b in itertools.permutations(range(n), 2)],
            "durations": durations,
            "edges": list(edges),
        }
    )


def best_makespan(problem):
    """The optimum of a small problem without lanes to queue on: every assignment, every order."""
    best = np.inf
    n, c = problem.durations.shape
    for order in itertools.permutations(range(n)):
        for choices in itertools.product(range(c), repeat=n):
            draft = CostedDraft(problem)
            try:
                for task in order:
                    draft.place(task, choices[task])
            except PlanError:
                break
            best = min(best, draft.finish())
    return best


def test_a_chain_is_bounded_by_its_path_with_copies():
    # Going to the fast device and back costs 2 * (1 + 5): staying on the slow one is better for the middle task alone.
    problem = costed([[1.0, None], [9.0, 2.0], [1.0, None]], [[0, 1, 5.0], [1, 2, 5.0]])
    bound = lower_bound(problem)
    assert bound.kind == "path"
    assert bound.seconds == pytest.approx(11.0)
    check_bound(problem, bound)
    assert earliest_finishes(problem)[1].tolist() == [10.0, 9.0]


def test_independent_tasks_are_bounded_by_work():
    problem = costed([[2.0, 2.0]] * 10, lanes=[3, 2])
    bound = lower_bound(problem)
    assert bound.kind == "work"
    assert bound.seconds == pytest.approx(4.0)
    check_bound(problem, bound)


def test_prices_find_the_best_split_between_unlike_devices():
    # The fractional optimum: the first kind on device 0, the second on device 1, T = 6.
    problem = costed([[1.0, 4.0]] * 6 + [[4.0, 1.0]] * 6)
    assert lower_bound(problem).seconds == pytest.approx(6.0, rel=0.02)


def test_a_window_adds_what_must_come_before_and_after():
    # One task, then ten side by side on two lanes, then one: 3 + 10 * 2 / 2 + 4.
    edges = [[0, i, 0.0] for i in range(1, 11)] + [[i, 11, 0.0] for i in range(1, 11)]
    problem = costed([[3.0]] + [[2.0]] * 10 + [[4.0]], edges, lanes=[2])
    bound = lower_bound(problem)
    assert bound.kind == "window"
    assert bound.seconds == pytest.approx(17.0)
    check_bound(problem, bound)


@pytest.mark.parametrize("seed", range(30))
def test_no_bound_is_above_the_optimum_of_small_graphs(seed):
    problem = costed_problem(random_costed(seed, 1 + seed % 4))
    bound = lower_bound(problem)
    check_bound(problem, bound)
    assert bound.seconds <= best_makespan(problem)


@pytest.mark.parametrize("seed", range(10))
def test_no_bound_is_above_a_planted_optimum(seed):
    """Lanes cut into pieces without a gap: the length is the optimum where all devices are alike, since no work can be saved."""
    dice = random.Random(seed)
    lanes, length = dice.randint(1, 3), 60
    rows, pieces = [], []
    for lane in range(2 * lanes):
        cuts = sorted({0, length, *(dice.randrange(1, length) for _ in range(6))})
        pieces += [(a, b, lane) for a, b in itertools.pairwise(cuts)]
    rows = [[float(b - a)] * 2 for a, b, _ in pieces]
    edges = [[i, j, 0.0] for i, x in enumerate(pieces) for j, y in enumerate(pieces) if x[1] <= y[0] and dice.random() < 0.1]
    problem = costed(rows, edges, lanes=[lanes, lanes], links=0.0)
    bound = lower_bound(problem)
    check_bound(problem, bound)
    assert length * 0.95 <= bound.seconds <= length


def test_bounds_hold_for_graphs_on_machines():
    kinds = set()
    for seed in range(40):
        problem = random_problem(seed, 30)
        bound = lower_bound(problem)
        check_bound(problem, bound)
        draft = GraphDraft(problem)
        find("heft")(draft)
        assert 0 < bound.seconds <= draft.finish()
        kinds.add(bound.kind)
    assert len(kinds) > 1


def test_an_empty_graph_is_bounded_by_nothing():
    problem = costed([])
    assert lower_bound(problem).seconds == 0.0
    check_bound(problem, lower_bound(problem))


def test_false_witnesses_are_refused():
    problem = costed([[2.0, 3.0]] * 4, [[0, 1, 1.0], [1, 2, 1.0]])
    good = lower_bound(problem)
    check_bound(problem, good)
    finishes = earliest_finishes(problem)
    raised = finishes.copy()
    raised[1, 0] += 1
    for bound, message in (
        (Bound(good.seconds * 1.01, good.kind, good.witness), "is not proved: its witness gives"),
        (Bound(1.0, "path", raised), r"claims 5 s for task '#1'; its predecessors show 4"),
        (Bound(1.0, "path", finishes[:2]), "the witness has shape"),
        (Bound(1.0, "work", Window((0.8, 0.8), 0, 0)), "the prices of all lanes sum to 1.6"),
        (Bound(1.0, "work", Window((1.5, -0.5), 0, 0)), "wanted 2 of at least 0"),
        (Bound(9.9, "window", Window((0.5, 0.5), 4.0, 4.0)), "is not proved"),
        (Bound(1.0, "guess", None), "of kind 'guess' .* cannot be verified"),
    ):
        with pytest.raises(PlanError, match=message):
            check_bound(problem, bound)
