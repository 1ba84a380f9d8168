import itertools
import random

import numpy as np
import pytest

from hetsched.errors import PlanError
from hetsched.placement.bounds import Refutation, Window, check_bound, earliest_finishes, lower_bound
from hetsched.placement.costed.planning import costed_problem
from hetsched.placement.draft import GraphDraft
from hetsched.placement.policies import find
from hetsched.testing.policy import random_costed, random_problem
from hetsched.timeline import Bound
from tests.placement.small_graphs import best_makespan, costed


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


# Deadlines ------------------------------------------------------------------------------------------------------------------------


def patient(problem, above=np.inf):
    """The bound that is found with all the time there is: the clock stands still."""
    return lower_bound(problem, 1.0, above, clock=lambda: 0.0)


def knotted(seed):
    """A small graph of forks and joins, copies as dear as tasks, one lane a device: what paths and work alone bound badly."""
    dice = random.Random(seed)
    n = dice.randint(4, 5)
    rows = [[float(dice.randint(1, 9)) for _ in range(2)] for _ in range(n)]
    for row in rows[1:]:
        if dice.random() < 0.2:
            row[dice.randrange(2)] = None
    edges = [[0, v, float(dice.randint(1, 8))] for v in range(1, n - 1)] + [[u, n - 1, float(dice.randint(1, 8))] for u in range(1, n - 1)]
    return costed(rows, edges, links=dice.choice([0.0, 1.0, 4.0]))


def test_a_join_waits_for_copies_or_for_one_lane():
    # Six tasks of 2 s on six devices, copies of 10 s: on one device it takes 12 s, and no other way less than 12.
    problem = costed([[2.0] * 6] * 6 + [[1.0] * 6], [[i, 6, 9.0] for i in range(6)])
    plain, bound = lower_bound(problem), patient(problem, 13.0)
    check_bound(problem, bound)
    assert plain.seconds == pytest.approx(3.0)
    assert bound.kind == "deadline"
    assert bound.seconds == pytest.approx(13.0, rel=1e-3)
    assert bound.seconds <= 13.0


def test_slow_choices_are_out_where_a_deadline_forbids_them():
    # 20 s on the slow device is longer than all ten tasks on the fast one, so the work of both is that of one: 10 s, not 10 / 1.05.
    problem = costed([[1.0, 20.0]] * 10, links=0.0)
    bound = patient(problem, 10.0)
    check_bound(problem, bound)
    assert lower_bound(problem).seconds < 9.6
    assert bound.seconds == pytest.approx(10.0, rel=1e-3)
    assert bound.seconds <= 10.0


@pytest.mark.parametrize("seed", range(12))
def test_no_deadline_below_the_optimum_of_small_graphs_is_kept_and_none_above_refuted(seed):
    problem = knotted(seed)
    best = best_makespan(problem)
    for above in (np.inf, best, 2 * best):
        bound = patient(problem, above)
        check_bound(problem, bound)
        assert lower_bound(problem).seconds <= bound.seconds <= best


def test_deadlines_bring_bounds_near_the_optimum():
    gaps = [(best_makespan(p) / lower_bound(p).seconds, best_makespan(p) / patient(p, best_makespan(p)).seconds) for p in map(knotted, range(8))]
    assert np.mean([better for _, better in gaps]) < np.mean([plain for plain, _ in gaps]) - 0.1


def test_deadlines_hold_on_graphs_on_machines():
    refuted = 0
    for seed in range(25):
        problem = random_problem(seed, 20)
        spans = []
        for name in ("heft", "lookahead", "min_min", "one_device"):
            draft = GraphDraft(problem)
            find(name)(draft)
            spans.append(draft.finish())
        bound = patient(problem, min(spans))
        check_bound(problem, bound)
        assert bound.seconds <= min(spans)
        refuted += bound.kind == "deadline"
    assert refuted > 0


def test_no_deadline_is_refuted_that_a_planted_plan_keeps():
    """Unlike devices: the planted plan need not be the best, but it is one."""
    for seed in range(6):
        dice = random.Random(seed)
        rows, pieces, length = [], [], 40
        for device in range(3):
            cuts = sorted({0, length, *(dice.randrange(1, length) for _ in range(4))})
            pieces += [(a, b, device) for a, b in itertools.pairwise(cuts)]
        for a, b, device in pieces:
            rows.append([float(b - a) if d == device else float((b - a) * dice.uniform(0.9, 6)) for d in range(3)])
        edges = []
        for i, x in enumerate(pieces):
            for j, y in enumerate(pieces):
                slack = y[0] - x[1]
                if slack >= (0 if x[2] == y[2] else 1) and dice.random() < 0.3:
                    edges.append([i, j, float(slack - 1) if x[2] != y[2] else 50.0])
        problem = costed(rows, edges)
        bound = patient(problem, float(length))
        check_bound(problem, bound)
        assert bound.seconds <= length


def test_a_clock_that_has_run_out_leaves_the_plain_bound():
    problem = knotted(1)
    ticks = itertools.count()
    assert lower_bound(problem, 0.5, clock=lambda: next(ticks)).kind != "deadline"
    assert lower_bound(problem, 0.0).kind != "deadline"


def test_false_refutations_are_refused():
    problem = costed([[2.0] * 6] * 6 + [[1.0] * 6], [[i, 6, 9.0] for i in range(6)])
    bound = patient(problem, 13.0)
    witness = bound.witness
    assert isinstance(witness, Refutation)
    last = witness.rounds[-1]

    def with_round(**changes):
        return witness._replace(rounds=(*witness.rounds[:-1], last._replace(**changes)))

    late = last.heads.copy()
    late[6, 2] += 1.0
    slow = last.tails.copy()
    slow[0, 0] = 50.0
    for false, message in (
        (with_round(heads=late), "the head of task '#6' is claimed to be"),
        (with_round(tails=slow), "the tail of task '#0' is claimed to be"),
        (with_round(heads=late[:3]), "of the witness has shapes"),
        (witness._replace(deadline=20.0), "is not proved: its witness gives 0 s"),
        (witness._replace(rounds=()), "is not proved: its witness gives 0 s"),
    ):
        with pytest.raises(PlanError, match=message):
            check_bound(problem, Bound(bound.seconds, "deadline", false))
    with pytest.raises(PlanError, match="is not proved"):
        check_bound(problem, Bound(bound.seconds * 1.01, "deadline", witness))


def test_false_prices_of_intervals_are_refused():
    problem = costed([[1.0, 20.0]] * 10, links=0.0)
    bound = patient(problem, 10.0)
    witness = bound.witness
    assert witness.intervals
    first, *rest = witness.intervals
    for changes, message in (
        ({"price": -1.0}, "a price below 0"),
        ({"pool": 7}, "has no pool"),
        ({"start": 10.0}, "has no length"),
        ({"price": first.price + 5.0, "pool": 1}, "is not proved"),
    ):
        with pytest.raises(PlanError, match=message):
            check_bound(problem, Bound(bound.seconds, "deadline", witness._replace(intervals=(first._replace(**changes), *rest))))
    cheap = costed([[0.5, 20.0]] * 10, links=0.0)
    with pytest.raises(PlanError, match="is not proved"):
        check_bound(cheap, bound)
