import math
from itertools import pairwise

import numpy as np
import pytest

import hetsched.placement.policies as policies
from hetsched.errors import CommandLineError
from hetsched.placement.costed.planning import CostedDraft, costed_problem
from hetsched.placement.draft import GraphDraft
from hetsched.placement.policies import find
from hetsched.placement.policies.cpop import critical_path
from hetsched.placement.policies.peft import optimistic_costs
from hetsched.placement.ranks import by_rank, downward_ranks, levels, mean_copies, mean_durations, upward_ranks
from hetsched.testing.policy import check_policy, random_costed, random_problem

# The example of the paper that defines HEFT: 10 tasks, 3 processors, makespan 80 (Topcuoglu, Hariri, Wu 2002, figures 2 and 3a).
PAPER = {
    "format": "placement-bench/1",
    "mem_nodes": ["a", "b", "c"],
    "devices": [{"name": n, "lanes": 1, "mem": i} for i, n in enumerate("abc")],
    "links": [{"src": a, "dst": b, "latency": 0.0, "bandwidth": 1.0} for a in range(3) for b in range(3) if a != b],
    "durations": [
        [14, 16, 9], [13, 19, 18], [11, 13, 19], [13, 8, 17], [12, 13, 10], [13, 16, 9], [7, 15, 11], [5, 11, 14], [18, 12, 20], [21, 7, 16],
    ],
    "edges": [
        [0, 1, 18], [0, 2, 12], [0, 3, 9], [0, 4, 11], [0, 5, 14], [1, 7, 19], [1, 8, 16], [2, 6, 23], [3, 7, 27], [3, 8, 23],
        [4, 8, 13], [5, 7, 15], [6, 9, 17], [7, 9, 11], [8, 9, 13],
    ],
}  # fmt: skip


def test_heft_gives_the_published_ranks_and_schedule():
    problem = costed_problem(PAPER)
    ranks = upward_ranks(problem, mean_durations(problem), mean_copies(problem))
    assert [round(r, 3) for r in ranks] == [108.0, 77.0, 80.0, 80.0, 69.0, 63.333, 42.667, 35.667, 44.333, 14.667]
    draft = CostedDraft(problem)
    find("heft")(draft)
    assert draft.finish() == 80.0
    assert draft.rows()[0] == [2, 0.0, 9.0, 0]
    assert draft.rows()[9] == [1, 73.0, 80.0, 0]


def test_peft_charges_what_lies_behind():
    problem = costed_problem(PAPER)
    table = optimistic_costs(problem)
    assert table[9].tolist() == [0, 0, 0]
    # Task 7 goes on with task 9: 7 s on b; from a or c the copy of 11 s comes on top, unless staying is better.
    assert table[7].tolist() == [18.0, 7.0, 16.0]
    for task in range(10):
        for device in range(3):
            ways = [
                min(table[v, d] + problem.durations[v, d] + (0 if d == device else nbytes) for d in range(3))
                for u, v, nbytes in PAPER["edges"]
                if u == task
            ]
            assert table[task, device] == max(ways, default=0)


def test_ranks_downwards_are_the_longest_way_from_the_start():
    problem = costed_problem(PAPER)
    down = downward_ranks(problem, mean_durations(problem), mean_copies(problem))
    assert down[0] == 0
    assert down[1] == pytest.approx(13 + 18)
    assert down[9] == pytest.approx(max(down[t] + mean_durations(problem)[t] + c for t, c in ((6, 17), (7, 11), (8, 13))))


@pytest.mark.parametrize("seed", range(10))
def test_levels_put_each_task_behind_what_it_points_to(seed):
    problem = costed_problem(random_costed(seed, 40))
    starts, other, _ = problem.succ
    done = set()
    for tasks, edges, groups in levels(len(problem), starts, other, reversed(problem.order.tolist())):
        rows = np.split(other[edges], groups[1:]) if len(edges) else [[] for _ in tasks]
        for task, row in zip(tasks.tolist(), rows, strict=True):
            assert list(row) == other[starts[task] : starts[task + 1]].tolist()
            assert set(row) <= done
        done.update(tasks.tolist())
    assert done == set(range(40))


def test_tasks_by_rank_keep_their_order_even_without_durations():
    document = random_costed(4, 30)
    document["durations"] = [[0.0 for _ in row] for row in document["durations"]]
    for edge in document["edges"]:
        edge[2] = 0.0
    for link in document["links"]:
        link["latency"] = 0.0
    problem = costed_problem(document)
    place = {t: i for i, t in enumerate(by_rank(problem, upward_ranks(problem, mean_durations(problem), mean_copies(problem))))}
    assert all(place[u] < place[v] for u, v, _ in document["edges"])


@pytest.mark.parametrize("name", [name for name in policies.names() if name != "exact"])  # which has tests of its own: it needs a solver
def test_every_policy_keeps_the_contract(name):
    check_policy(find(name), 12, seed=7, n=35)


def test_auto_is_never_worse_than_heft_or_peft():
    better = 0
    for seed in range(20):
        for make in (lambda s: GraphDraft(random_problem(s, 30)), lambda s: CostedDraft(costed_problem(random_costed(s, 30)))):
            drafts = {name: make(seed) for name in ("auto", "heft", "peft")}
            spans = {}
            for name, draft in drafts.items():
                find(name)(draft)
                spans[name] = draft.finish()
            assert spans["auto"] <= min(spans["heft"], spans["peft"])
            better += spans["auto"] < spans["heft"]
    assert better > 0


def test_one_device_uses_the_fastest_and_serial_one_task_at_a_time():
    problem = costed_problem({**PAPER, "devices": [{**d, "lanes": 2} for d in PAPER["devices"]]})
    draft = CostedDraft(problem)
    find("one_device")(draft)
    assert {row[0] for row in draft.rows()} == {0}, "127 s on a, 130 on b, 143 on c"
    draft = CostedDraft(problem)
    find("serial")(draft)
    assert draft.finish() == 127.0
    starts = sorted((start, end) for _, start, end, _ in draft.rows())
    assert all(a[1] <= b[0] for a, b in pairwise(starts))


def test_round_robin_deals_in_turn_and_passes_over():
    document = {**PAPER, "durations": [[1.0, 1.0, None if t == 2 else 1.0] for t in range(10)], "edges": []}
    draft = CostedDraft(costed_problem(document))
    find("round_robin")(draft)
    assert [row[0] for row in draft.rows()] == [0, 1, 0, 1, 2, 0, 1, 2, 0, 1]


def test_outsiders_policies_come_by_entry_points(monkeypatch):
    class Entry:
        name = "backwards"

        def load(self):
            return math.prod

    def entry_points(group, name=None):
        assert group == "hetsched.policies"
        return [Entry()]

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    assert find("backwards") is math.prod
    assert "backwards" in policies.names()
    with pytest.raises(CommandLineError, match="unknown policy 'backward'; did you mean 'backwards'"):
        find("backward")


def test_cpop_keeps_the_critical_path_on_one_device():
    problem = costed_problem(PAPER)
    weights, copies = mean_durations(problem), mean_copies(problem)
    through = [a + b for a, b in zip(upward_ranks(problem, weights, copies), downward_ranks(problem, weights, copies), strict=True)]
    assert critical_path(problem, through) == [0, 1, 8, 9], "as published"
    draft = CostedDraft(problem)
    find("cpop")(draft)
    assert draft.finish() == 86.0, "as published"
    assert {draft.choice_of[t] for t in (0, 1, 8, 9)} == {1}
