"""The walk: order, turns, windows, stopping. No thread, no clock: a log of (step, turn)."""

import random

import pytest

from hetsched.errors import InternalError
from hetsched.executors.walk import Arc, Walk, find_cycle


def drain(walk: Walk, seed: int) -> list[tuple[int, int]]:
    """Finish ready steps in a random order; the order in which they finished."""
    rng, log = random.Random(seed), []
    ready = walk.begin()
    while ready:
        item = ready.pop(rng.randrange(len(ready)))
        log.append(item)
        ready += walk.finish(*item)
    return log


@pytest.mark.parametrize("seed", range(200))
def test_every_step_of_every_turn_runs_once_and_after_what_it_waits_for(seed: int) -> None:
    rng = random.Random(seed)
    steps, turns = rng.randint(1, 9), rng.randint(0, 12)
    arcs = [Arc(a, b, 0) for b in range(steps) for a in range(b) if rng.random() < 0.3]
    arcs += [Arc(rng.randrange(steps), rng.randrange(steps), rng.randint(1, 3)) for _ in range(rng.randint(0, 6))]
    walk = Walk(steps, arcs, turns, window=rng.randint(1, 5))
    log = drain(walk, seed)
    assert walk.done
    assert sorted(log) == [(s, t) for s in range(steps) for t in range(turns)]
    at = {item: i for i, item in enumerate(log)}
    for a, b, d in arcs:
        for turn in range(d, turns):
            assert at[a, turn - d] < at[b, turn]


def test_a_later_turn_may_stand_before_an_earlier_one_on_a_stream() -> None:
    # Copy (0) of turn i + 1 goes before kernel (1) of turn i: distance -1.
    walk = Walk(2, [Arc(0, 1, 0), Arc(0, 1, -1)], turns=5, window=1)
    log = drain(walk, 0)
    at = {item: i for i, item in enumerate(log)}
    assert all(at[0, i + 1] < at[1, i] for i in range(4))
    assert len(log) == 10


def test_the_window_bounds_turns_in_flight() -> None:
    walk = Walk(1, [], turns=10, window=3)
    assert walk.begin() == [(0, 0), (0, 1), (0, 2)]
    assert walk.finish(0, 2) == []
    assert walk.finish(0, 0) == [(0, 3)]
    assert walk.finish(0, 1) == [(0, 4), (0, 5)]


def test_stop_ends_the_loop_after_the_turn() -> None:
    walk = Walk(2, [Arc(0, 1), Arc(0, 0, 1), Arc(0, 1, 1)], turns=100, window=4)
    ready, log = walk.begin(), []
    while ready:
        step, turn = ready.pop(0)
        if step == 0 and turn == 3:
            walk.stop_after(3)
        log.append((step, turn))
        ready += walk.finish(step, turn)
    assert walk.done
    assert sorted(log) == [(s, t) for s in range(2) for t in range(4)]


def test_stop_frees_what_waits_for_turns_that_never_come() -> None:
    # Step 0 stops the loop; step 2 of turn i stands behind step 1 of turn i + 2 on its stream.
    arcs = [Arc(0, 1), Arc(0, 2), Arc(1, 2, -2), *(Arc(0, s, 1) for s in range(3))]
    walk = Walk(3, arcs, turns=10, window=4)
    ready, log = walk.begin(), []
    while ready:
        step, turn = ready.pop(0)
        log.append((step, turn))
        if (step, turn) == (0, 1):
            ready += walk.stop_after(1)
        ready += walk.finish(step, turn)
    assert walk.done
    assert sorted(log) == [(s, t) for s in range(3) for t in range(2)]


def test_stop_after_a_turn_that_others_have_passed_is_a_bug() -> None:
    walk = Walk(1, [], turns=5, window=3)
    walk.begin()
    walk.finish(0, 2)
    with pytest.raises(InternalError, match="a later turn has begun"):
        walk.stop_after(1)


def test_find_cycle_names_the_steps() -> None:
    assert find_cycle(3, [Arc(0, 1), Arc(1, 2)]) is None
    assert find_cycle(3, [Arc(0, 1), Arc(1, 0, 1)]) is None
    assert sorted(find_cycle(4, [Arc(0, 1), Arc(1, 2), Arc(2, 1), Arc(2, 3)]) or []) == [1, 2]


def test_stuck_tells_what_still_waits() -> None:
    walk = Walk(2, [Arc(0, 1)], turns=1)
    assert walk.begin() == [(0, 0)]
    assert walk.stuck() == [(1, 0, 1)]
