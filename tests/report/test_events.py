from __future__ import annotations

import pytest
from report_samples import CPU0, CPU1, DOWN, GPU, UP, looped, straight

from hetsched.report.events import busy_seconds, events, merged


def told(timeline, turns=1 << 30):
    return [(e.kind, e.name, e.turn, e.start, e.finish) for e in events(timeline, turns)]


def test_a_straight_timeline_is_told_in_order_of_start_without_frees():
    assert told(straight()) == [
        ("launch", "t0", 0, 0.0, 4.0),
        ("copy", "t0", 0, 4.0, 6.0),
        ("copy", "x", 0, 6.0, 8.0),
        ("launch", "t1", 0, 6.0, 10.0),
        ("launch", "t2", 0, 10.0, 11.0),
        ("copy", "t2", 0, 11.0, 12.0),
    ]


def test_turns_of_a_planned_loop_begin_a_period_apart_from_the_start_of_the_loop():
    found = [(name, turn, start) for kind, name, turn, start, _ in told(looped(), 2) if kind == "launch"]
    assert sorted(found) == [
        ("train/a", 0, 1.0), ("train/a", 1, 3.0),
        ("train/b", 0, 4.0), ("train/b", 1, 6.0),
        ("train/extra", 0, 1.0), ("train/extra", 1, 3.0),
    ]  # fmt: skip


def test_a_task_that_runs_every_three_turns_is_told_only_then():
    turns = [turn for kind, name, turn, _, _ in told(looped(turns=8, every=3)) if name == "train/extra"]
    assert turns == [0, 3, 6]
    assert busy_seconds(looped(turns=8, every=3))[CPU1] == pytest.approx(3.0)


def test_busy_time_counts_every_turn_and_not_the_lanes_a_loop_merely_holds():
    assert busy_seconds(straight()) == {CPU0: 4.0, UP: 4.0, GPU: 5.0, DOWN: 1.0}
    assert busy_seconds(looped(turns=1_000_000)) == {CPU0: 2e6, UP: 1e6, GPU: 2e6, CPU1: 1e6}


def test_merged_joins_what_touches_and_drops_what_is_empty():
    assert merged([(3, 4), (0, 1), (1, 2), (5, 5), (3.5, 6)]) == [(0, 2), (3, 6)]
