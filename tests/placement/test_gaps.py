import random

from hypothesis import given
from hypothesis import strategies as st

from hetsched.placement.gaps import Gaps, Usage, find_common


def test_a_hole_between_two_bookings_is_found_before_the_end():
    gaps = Gaps()
    gaps.take(0, 2)
    gaps.take(5, 9)
    assert gaps.find(0, 3)[1] == 2
    assert gaps.find(0, 4)[1] == 9
    assert gaps.find(3, 2)[1] == 3
    assert gaps.find(20, 1)[1] == 20


def test_undo_gives_back_exactly_what_was_taken():
    gaps = Gaps()
    gaps.take(1, 2)
    before = list(gaps.starts), list(gaps.ends)
    undo = [gaps.take(3, 4), gaps.take(2, 3), gaps.take(0, 1)]
    for back in reversed(undo):
        back()
    assert (gaps.starts, gaps.ends) == before


def test_a_booking_without_length_splits_its_gap():
    gaps = Gaps()
    gaps.take(5, 5)
    assert gaps.find(3, 3)[1] == 5, "a longer booking must not cover it"
    assert gaps.find(3, 2)[1] == 3


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 6)), max_size=40))
def test_bookings_never_overlap_and_are_as_early_as_can_be(wanted):
    gaps, taken = Gaps(), []
    for ready, seconds in wanted:
        _, start = gaps.find(ready, seconds)
        gaps.take(start, start + seconds)
        # By hand: the earliest of the candidates at which nothing is in the way.
        candidates = sorted({ready, *(finish for _, finish in taken if finish >= ready)})
        free = [c for c in candidates if all(c + seconds <= a or c >= b for a, b in taken)]
        assert start == free[0]
        taken.append((start, start + seconds))


def test_usage_moves_a_start_past_the_crowd():
    usage = Usage(2.0)
    usage.take(0, 10, 1.0)
    usage.take(4, 6, 1.0)
    assert usage.find(0, 3, 1.0) == 0
    assert usage.find(0, 5, 1.0) == 6
    assert usage.find(0, 5, 2.0) == 10


def test_usage_never_exceeds_its_capacity():
    dice, usage, booked = random.Random(1), Usage(4.0), []
    for _ in range(200):
        amount, seconds = dice.randint(1, 4), dice.randint(1, 5)
        start = usage.find(dice.randint(0, 60), seconds, amount)
        usage.take(start, start + seconds, amount)
        booked.append((start, start + seconds, amount))
    for at in {b[0] for b in booked}:
        assert sum(amount for start, finish, amount in booked if start <= at < finish) <= 4


def test_lanes_are_found_free_together():
    lanes = [Gaps(), Gaps(), Gaps()]
    lanes[0].take(0, 3)
    lanes[1].take(4, 8)
    lanes[2].take(9, 10)
    assert find_common(lanes, 0, 1) == 3
    assert find_common(lanes, 0, 2) == 10
    assert find_common([], 7, 2) == 7
