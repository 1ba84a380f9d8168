from __future__ import annotations

import pytest

from hetsched.errors import CommandLineError
from hetsched.placement.costs.figures import Figures
from hetsched.placement.costs.objective import Objective

BASE = Figures(2.0, 1.0, 100.0, 0.0)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("time", "time"),
        ("energy", "energy"),
        (" price , deadline = 2min ", "price,deadline=120s"),
        ("deadline=500us,latency", "latency,deadline=0.0005s"),
        ("time=0.5,energy=0.5", "time=0.5,energy=0.5"),
        ("energy=3,time=1,deadline=1.5h", "time=1,energy=3,deadline=5400s"),
        ({"minimize": "energy", "deadline": "2 min"}, "energy,deadline=120s"),
        ({"minimize": "energy", "deadline": 2}, "energy,deadline=2s"),
        ({"time": 1, "price": 2.5}, "time=1,price=2.5"),
        ({"minimize": {"energy": 1, "price": 1}, "deadline": None}, "energy=1,price=1"),
        ({"energy": 7, "time": 0}, "energy"),
        ("energy=2", "energy"),
    ],
)
def test_every_form_has_one_text_and_the_text_means_the_same(given: object, text: str) -> None:
    found = Objective.of(given)
    assert str(found) == text
    assert Objective.of(text) == found
    assert Objective.of(found) is found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("tme", "unknown objective 'tme'; did you mean 'time'"),
        ("energy=1,prize=2", "unknown objective 'prize'; did you mean 'price'"),
        ({"minimise": "time", "deadline": 1}, "no key 'minimise'; did you mean 'minimize'"),
        ({"minimize": "enrgy"}, "did you mean 'energy'"),
        ({"enery": 1}, "did you mean 'energy'"),
        ({"deadline": "2 min"}, "needs the key 'minimize'"),
        ("time,energy", "is not understood; write a goal"),
        ("time,energy=1", "is not understood"),
        ("deadline=2s", "is not understood"),
        ("", "unknown objective ''"),
        ("time=1,time=2", "gives 'time' twice"),
        ("time,deadline=1s,deadline=2s", "gives 'deadline' twice"),
        ("time=x", "weight of time must be a number from 0 on, got 'x'"),
        ({"time": -1}, "got -1"),
        ({"time": True}, "got True"),
        ({"time": float("inf")}, "got inf"),
        ("time=0", "needs one above 0"),
        ({}, "needs one above 0"),
        ("time,deadline=2", "such as 2 min, got '2'"),
        ("time,deadline=0s", "above 0"),
        ("time,deadline=2 mni", "unknown unit 'mni'; did you mean 'min'"),
        ({"minimize": "time", "deadline": True}, "got True"),
        ({"minimize": "time", "deadline": float("nan")}, "got nan"),
        (3, "a text or a map, got int"),
        ("time,deadline=1.2.3s", "got '1.2.3s'"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_way_out(given: object, message: str) -> None:
    with pytest.raises(CommandLineError) as caught:
        Objective.of(given)
    assert message in str(caught.value)


def test_a_goal_is_its_figure_and_a_sum_adds_shares_of_the_plan_for_time() -> None:
    figures = Figures(3.0, 0.5, 50.0, 0.25)
    assert [Objective.of(g).score(figures, BASE) for g in ("time", "latency", "energy", "price")] == [3.0, 0.5, 50.0, 0.25]
    assert Objective.of("time=2,energy=4").score(figures, BASE) == 2 * 1.5 + 4 * 0.5
    # A plan for time that costs nothing is no measure: the price counts as it is.
    assert Objective.of("time=1,price=2").score(figures, BASE) == 1.5 + 2 * 0.25


def test_what_is_not_known_has_no_score() -> None:
    unknown = Figures(3.0, 0.5, None, 1.0)
    assert Objective.of("energy").score(unknown) is None
    assert Objective.of("time=1,energy=1").score(unknown, BASE) is None
    assert Objective.of("time=1,energy=1").score(BASE, unknown) is None
    assert Objective.of("time=1,price=1").score(unknown, BASE) == 2.5


def test_a_deadline_is_about_the_makespan() -> None:
    assert Objective.of("price,deadline=2s").keeps(BASE)
    assert not Objective.of("latency,deadline=1.9s").keeps(BASE)
    assert Objective.of("energy").keeps(BASE)
