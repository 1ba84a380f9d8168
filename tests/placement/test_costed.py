import gzip
import json
import random

import pytest

from hetsched.errors import CommandLineError, FileError, PlanError
from hetsched.placement.costed.planning import CostedDraft, costed_problem, plan_costed, read_costed
from hetsched.placement.policies import find
from hetsched.testing.policy import costed_faults, random_costed

TWO = {
    "format": "placement-bench/1",
    "mem_nodes": ["host", "gpu"],
    "devices": [{"name": "cpu", "kind": "cpu", "lanes": 2, "mem": 0}, {"name": "gpu", "kind": "gpu", "lanes": 1, "mem": 1}],
    "links": [{"src": 0, "dst": 1, "latency": 1.0, "bandwidth": 10.0}, {"src": 1, "dst": 0, "latency": 2.0, "bandwidth": 5.0}],
    "durations": [[4.0, None], [8.0, 1.0], [8.0, 2.0], [3.0, 3.0]],
    "edges": [[0, 1, 10.0], [0, 2, 20.0], [1, 3, 5.0], [2, 3, 5.0]],
}


def written(folder, document, zipped=True):
    path = folder / ("graph.json.gz" if zipped else "graph.json")
    raw = json.dumps(document).encode()
    path.write_bytes(gzip.compress(raw) if zipped else raw)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_heft_on_four_tasks_by_hand(tmp_path, zipped):
    found = plan_costed(written(tmp_path, TWO, zipped), "heft")
    # 0 on cpu until 4; 2 (higher rank) arrives on gpu at 7, until 9; 1 arrives at 6 and ends at 7, in the gap before 2; 3 on gpu until 12.
    assert found["tasks"] == [[0, 0.0, 4.0, 0], [1, 6.0, 7.0, 0], [1, 7.0, 9.0, 0], [1, 9.0, 12.0, 0]]
    assert found["makespan"] == 12.0
    assert found["lower_bound"] == pytest.approx(12.0)
    assert found["lower_bound"] <= 12.0
    assert set(found) == {"file", "policy", "makespan", "lower_bound", "plan_seconds", "evaluations", "compile_seconds", "devices", "tasks"}


def test_related_durations_are_cost_over_speed(tmp_path):
    document = {k: v for k, v in TWO.items() if k != "durations"} | {"cost": [4, 8, 12, 2]}
    document["devices"] = [{**d, "speed": s} for d, s in zip(TWO["devices"], (1, 4), strict=True)]
    problem = read_costed(written(tmp_path, document))
    assert problem.durations.tolist() == [[4, 1], [8, 2], [12, 3], [2, 0.5]]


def without(key):
    return {k: v for k, v in TWO.items() if k != key}


def with_row(key, i, row):
    return {**TWO, key: [*TWO[key][:i], row, *TWO[key][i + 1 :]]}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "`format` is 'list', wanted \"placement-bench/1\""),
        ({**TWO, "format": "dot"}, "`format` is 'dot'"),
        (without("mem_nodes"), "`mem_nodes` must be a list, got nothing"),
        ({**TWO, "devices": []}, "`devices` is empty"),
        (with_row("devices", 1, {"name": "gpu", "lanes": 1}), r"devices\[1\] has no 'mem'"),
        (with_row("devices", 0, {"name": "cpu", "lanes": 0, "mem": 0}), r"devices\[0\].lanes must be a whole number of at least 1, got 0"),
        (with_row("devices", 0, {"name": "cpu", "lanes": 1, "mem": 2}), r"devices\[0\].mem must be a whole number from 0 to 1, got 2"),
        ({**TWO, "links": TWO["links"][:1]}, "no link from 'gpu' to 'host'"),
        (with_row("links", 0, {"src": 0, "dst": 1, "latency": 0, "bandwidth": 0}), r"links\[0\].bandwidth must be a number above 0, got 0"),
        (without("durations"), r"devices\[0\] has no 'speed'"),
        (with_row("durations", 2, [1.0]), r"durations\[2\] must be a list of 2 numbers"),
        (with_row("durations", 2, [1.0, "fast"]), "`durations` must hold numbers only"),
        (with_row("durations", 2, [1.0, -1.0]), "`durations` of task 2 is below 0"),
        (with_row("durations", 2, [None, None]), "task 2 can run on no device"),
        (with_row("edges", 1, [0, 4, 1.0]), r"edges\[1\] is \[0, 4, 1.0\]; wanted two task numbers from 0 to 3"),
        (with_row("edges", 1, [0, 1]), "`edges` must be a list"),
        ({**TWO, "names": ["a"]}, "`names` has 1 names for 4 tasks"),
        ({**TWO, "edges": [[0, 1, 1], [1, 2, 1], [2, 1, 1]]}, "`edges` have a cycle: (1 -> 2 -> 1|2 -> 1 -> 2)"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, document, message):
    path = written(tmp_path, document)
    with pytest.raises(FileError, match=message) as error:
        plan_costed(path)
    assert str(path) in str(error.value)
    assert error.value.exit_code == 7


def test_files_that_are_no_json(tmp_path):
    with pytest.raises(FileError, match="cannot be read"):
        plan_costed(tmp_path / "missing.json")
    (tmp_path / "bad.json").write_text('{"format": NaN}')
    with pytest.raises(FileError, match="NaN is not a number of JSON"):
        plan_costed(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_bytes(b"\x1f\x8b\x08cut")
    with pytest.raises(FileError):
        plan_costed(tmp_path / "bad.json")


def test_an_unknown_policy_is_told_with_the_nearest():
    with pytest.raises(CommandLineError, match="unknown policy 'hefd'; did you mean 'heft'"):
        plan_costed("never read", "hefd")


def test_search_is_never_worse_and_valid():
    gained = 0
    for seed in range(8):
        document = random_costed(seed, 25)

        def searching(draft):
            from hetsched.placement.search.improve import improve

            find("heft")(draft)
            before = draft.finish()
            assert improve(draft, evaluations=2000).evaluations == 2000
            assert draft.finish() <= before
            nonlocal gained
            gained += draft.finish() < before

        assert costed_faults(searching, document) == []
    assert gained > 0


def test_the_fast_choice_agrees_with_the_plain_one():
    """`earliest` prunes and takes short cuts; `finish_times` does not."""
    for seed in range(20):
        problem = costed_problem(random_costed(seed, 40))
        draft, dice = CostedDraft(problem), random.Random(seed)
        for task in problem.order.tolist():
            times = draft.finish_times(task)
            behind = [dice.choice((0.0, 3.0, 9.0)) for _ in times]
            assert times[draft.earliest(task)] == times.min()
            choice = draft.earliest(task, behind)
            assert times[choice] + behind[choice] == (times + behind).min()
            offer = next(o for o in draft.offers(task) if o.choice == choice)
            assert draft.place(task, choice) == offer.finish == times[choice]
        assert draft.finish() == max(draft.finish_of)


def test_a_draft_refuses_what_cannot_be():
    problem = costed_problem(TWO)
    draft = CostedDraft(problem)
    with pytest.raises(PlanError, match="'#3' cannot be booked: it needs '#1', which is not booked yet"):
        draft.place(3, 0)
    with pytest.raises(PlanError, match="it needs '#1'"):
        draft.earliest(3)
    with pytest.raises(PlanError, match="choice 1 is not possible"):
        draft.place(0, 1)
    draft.place(0, 0)
    with pytest.raises(PlanError, match="booked already"):
        draft.place(0, 0)
    with pytest.raises(PlanError, match="booked 1 of 4 tasks"):
        draft.finish()
