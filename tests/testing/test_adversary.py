import random

import pytest

from hetsched.errors import CommandLineError
from hetsched.placement.costed.planning import costed_problem
from hetsched.placement.policies import find
from hetsched.testing.adversary import hunt, mutated, planner, random_instance


def test_the_hunt_finds_where_heft_loses():
    rivals = {name: planner(find(name)) for name in ("peft", "one_device")}
    found = hunt(planner(find("heft")), rivals, 200, seed=1, tasks=(5, 8), life=100)
    assert len(found) == 2
    assert found[0].ratio >= found[1].ratio
    assert found[0].ratio > 1.2
    problem = costed_problem(found[0].document)
    spans = {name: plan(problem) for name, plan in rivals.items()}
    assert found[0].rival == min(spans, key=spans.get)
    assert planner(find("heft"))(problem) / min(spans.values()) == pytest.approx(found[0].ratio)


def test_annealing_goes_from_harmless_graphs_to_bad_ones():
    rivals, heft = {"peft": planner(find("peft"))}, planner(find("heft"))
    for seed in range(3):
        begun = hunt(heft, rivals, 1, seed=seed, tasks=(5, 8), life=80)[0].ratio
        ended = hunt(heft, rivals, 80, seed=seed, tasks=(5, 8), life=80)[0].ratio
        assert ended > begun + 0.1


def test_the_same_seed_finds_the_same():
    rivals = {"mct": planner(find("mct"))}
    first, second = (hunt(planner(find("heft")), rivals, 40, seed=5, tasks=(4, 6)) for _ in range(2))
    assert first == second


def test_nobody_loses_to_themselves():
    assert hunt(planner(find("heft")), {"heft": planner(find("heft"))}, 20, tasks=(4, 6))[0].ratio == 1.0


def test_mutants_are_valid_graphs_within_the_limits():
    dice = random.Random(3)
    document, kinds = random_instance(dice, 6), set()
    for _ in range(400):
        before = document
        document = mutated(document, dice, (4, 8))
        assert len(costed_problem(document)) in range(4, 9)
        assert all(u < v for u, v, _ in document["edges"])
        kinds.add((len(document["durations"]) - len(before["durations"]), len(document["edges"]) - len(before["edges"]) > 0))
    assert {(1, True), (-1, False), (0, True), (0, False)} <= kinds


@pytest.mark.parametrize("wrong", [{"evaluations": 0}, {"tasks": (5, 4)}, {"rivals": {}}])
def test_a_hunt_without_game_is_refused(wrong):
    heft = planner(find("heft"))
    with pytest.raises(CommandLineError, match="a hunt needs rivals, evaluations and tasks"):
        hunt(heft, **({"rivals": {"heft": heft}, "evaluations": 5} | wrong))
