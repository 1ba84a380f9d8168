"""What runs have taught, in SQLite: means, surprises, drift, several processes, files that cannot be used."""

from __future__ import annotations

import sqlite3
import subprocess
import sys

import pytest

from hetsched.placement.costs.history import AGREE, FADE_SECONDS, MEMORY, MOST_FACTOR, History, Lesson


def lesson(seconds, kind="k", device="cpu|1", alone=False, spread=0.0, work=1e6):
    return Lesson(device, "tensor.add", kind, 1, "float32", work, work, seconds, spread, 1, alone)


@pytest.fixture
def history(tmp_path):
    return History(tmp_path / "sub" / "costs.sqlite")


def known(history, kind="k", device="cpu|1"):
    return history.known([device])[device, kind, 1]


def test_nothing_is_known_and_no_file_made_before_something_is_taught(history):
    assert history.known(["cpu|1"]) == {}
    assert history.learn([]) == []
    assert not history.path.exists()


def test_the_mean_is_that_of_the_runs_and_the_spread_that_between_them(history):
    for seconds in (1.0, 1.1, 0.9):
        assert history.learn([lesson(seconds)]) == []
    row = known(history)
    assert row.seconds == pytest.approx(1.0)
    assert 0.05 < row.spread < 0.15
    assert row.runs == 3
    assert history.known(["cpu|2", ""]) == {}, "another fingerprint is another device"


def test_old_runs_fade(history):
    for _ in range(2 * MEMORY):
        history.learn([lesson(1.0)])
    for _ in range(3 * MEMORY):
        history.learn([lesson(1.2)])
    assert known(history).seconds == pytest.approx(1.2, rel=0.01)
    assert known(history).runs == 5 * MEMORY


def test_a_first_launch_counts_where_nothing_better_is_known(history):
    history.learn([lesson(5.0)._replace(first=True)])
    assert known(history).seconds == 5.0
    history.learn([lesson(7.0)._replace(first=True)])
    assert known(history).seconds == 5.0
    history.learn([lesson(2.0)._replace(first=True)])
    assert (known(history).seconds, known(history).runs) == (2.0, 0)
    history.learn([lesson(1.0)])
    assert (known(history).seconds, known(history).runs) == (1.0, 1)
    kinds = [lesson(1.0, kind=k) for k in "abc"]
    history.learn(kinds)
    assert history.learn([x._replace(seconds=50.0, first=True) for x in kinds]) == []  # no drift
    assert known(history, "a").seconds == 1.0
    history.learn([lesson(3.0, kind="z", alone=True)])
    history.learn([lesson(2.0, kind="z")._replace(first=True)])
    assert known(history, "z").seconds == 3.0


def test_what_was_measured_alone_gives_way_to_the_first_run(history):
    history.learn([lesson(1.0, alone=True)])
    assert known(history).runs == 0
    history.learn([lesson(5.0)])
    assert (known(history).seconds, known(history).runs) == (5.0, 1)
    history.learn([lesson(4.0, alone=True)])
    assert (known(history).seconds, known(history).runs) == (5.0, 1)


def test_what_most_of_the_last_runs_say_counts(history):
    for _ in range(4):
        history.learn([lesson(1.0), lesson(1.0, "other")])
    for seconds, expected in ((4.0, 1.0), (5.0, 1.0), (4.2, 4.1), (4.4, 4.3)):
        history.learn([lesson(seconds)])
        assert known(history).seconds == pytest.approx(expected)
    assert known(history, "other").seconds == pytest.approx(1.0)


def test_two_quiet_runs_outweigh_any_number_beside_other_work(history):
    for _ in range(9):
        history.learn([lesson(4.0)])
    history.learn([lesson(1.0)])
    history.learn([lesson(1.1)])
    assert known(history).seconds == pytest.approx(1.1)


def test_a_spread_made_wide_by_load_hides_no_quiet_run(history):
    history.learn([lesson(10.0, spread=9.0)])
    history.learn([lesson(1.0)])
    assert known(history).seconds == pytest.approx(1.0)


def test_one_bad_run_among_good_ones_is_forgotten(history):
    for seconds in (1.0, 1.0, 1.0, 4.0, 1.0, 1.0, 4.0, 1.0):
        history.learn([lesson(seconds)])
        assert known(history).seconds == pytest.approx(1.0)


NAMES = [f"k{i}" for i in range(6)]


def live(history, factor, names=NAMES, now=None, **options):
    """One run of all kinds on the cpu, which is so many times slower than it was."""
    return history.learn([lesson(factor, n) for n in names], now=now, **options)


def test_a_device_on_which_most_kinds_surprise_has_drifted_and_kinds_not_run_since_are_moved_along(history):
    for _ in range(3):
        history.learn([lesson(1.0, n) for n in NAMES] + [lesson(1.0, n, "gpu|1") for n in NAMES])
    drifts = history.learn([lesson(4.0, n) for n in NAMES[:4]] + [lesson(1.0, n, "gpu|1") for n in NAMES])
    assert [(d.device, d.factor, d.kinds, d.counts) for d in drifts] == [("cpu|1", pytest.approx(4.0), 4, True)]
    assert known(history, "k5").seconds == pytest.approx(4.0)
    assert known(history, "k0").seconds == pytest.approx(4.0)
    assert known(history, "k0", "gpu|1").seconds == pytest.approx(1.0)
    assert history.factors(["cpu|1", "gpu|1"]) == {"cpu|1": pytest.approx(4.0)}
    assert live(history, 4.0) == [], "what is known now is no surprise"


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_one_run_unlike_the_others_leaves_what_is_known_alone_and_two_do_not(history, factor):
    for _ in range(4):
        live(history, 1.0)
    (drift,) = live(history, factor)
    assert (drift.factor, drift.counts) == (pytest.approx(factor), False)
    assert live(history, 1.0) == []
    assert [known(history, n).seconds for n in NAMES] == [pytest.approx(1.0)] * 6
    for counts in (False, True):
        (drift,) = live(history, factor, NAMES[:4])
        assert drift.counts is counts
    assert [known(history, n).seconds for n in NAMES] == [pytest.approx(factor)] * 6


def test_a_run_whose_threads_waited_for_others_is_believed_when_the_next_says_so_too(history):
    for _ in range(3):
        live(history, 1.0)
    (drift,) = live(history, 4.0, NAMES[:4], crowded=0.5)
    assert (drift.counts, drift.crowded) == (False, 0.5)
    assert known(history, "k0").seconds == pytest.approx(1.0)
    (drift,) = live(history, 5.0, NAMES[:4], crowded=0.5)
    assert drift.counts
    assert known(history, "k5").seconds == pytest.approx(4.0, rel=0.01), "no more than the lesser of both"
    assert known(history, "k0").seconds == pytest.approx(4.0, rel=0.1)


@pytest.mark.parametrize("crowded", [0.0, 0.6])
def test_a_history_taught_under_load_is_right_again_by_the_third_quiet_run(history, crowded):
    for factor in (3.0, 7.0, 5.0, 20.0, 4.0):  # never quiet
        live(history, factor, crowded=crowded)
    for _ in range(3):
        live(history, 1.0)
    assert [known(history, n).seconds for n in NAMES] == [pytest.approx(1.0, rel=0.05)] * 6


def test_load_that_comes_and_goes_leaves_the_plans_of_a_quiet_machine_alone(history):
    for _ in range(2):
        live(history, 1.0)
    for factor in (6.0, 1.0, 9.0, 1.05, 3.0, 0.95):
        live(history, factor, crowded=0.5 if factor > 2 else 0.02)
        assert known(history, "k3").seconds == pytest.approx(1.0, rel=0.1)
        assert history.factors(["cpu|1"])["cpu|1"] == pytest.approx(1.0)


def test_a_first_run_that_was_disturbed_gives_way_to_the_next(history):
    assert live(history, 8.0, crowded=0.6) == []
    assert known(history, "k0").runs == 0
    assert known(history, "k0").is_worth_a_look(0.0), "before the next plan"
    assert live(history, 1.0) == []
    assert (known(history, "k0").seconds, known(history, "k0").runs) == (1.0, 1)


def test_a_factor_has_a_limit_and_fades_while_the_device_is_not_seen(history):
    live(history, 1.0, now=0.0)
    for moment in (1.0, 2.0, 3.0, 4.0):
        live(history, 30.0, NAMES[:5], now=moment)
    assert history.factors(["cpu|1"], now=4.0)["cpu|1"] == pytest.approx(MOST_FACTOR, rel=0.01)
    assert history.known(["cpu|1"], now=4.0)["cpu|1", "k5", 1].seconds == pytest.approx(MOST_FACTOR, rel=0.01)
    later = 4.0 + FADE_SECONDS
    assert history.known(["cpu|1"], now=later)["cpu|1", "k5", 1].seconds == pytest.approx(MOST_FACTOR**0.5, rel=0.01)
    assert history.known(["cpu|1"], now=4.0 + 20 * FADE_SECONDS)["cpu|1", "k5", 1].seconds == pytest.approx(1.0, rel=0.01)


def test_a_slow_device_that_runs_avoid_is_looked_at_again_after_ever_longer_waits(history):
    live(history, 1.0, now=0.0)
    assert history.suspects(["cpu|1"], now=1e3) == []
    live(history, 4.0, now=10.0)
    assert history.suspects(["cpu|1"], now=10.1) == ["cpu|1"], "before the next plan"
    live(history, 4.0, now=20.0)
    assert history.suspects(["cpu|1"], now=21.0) == [], "it has just been seen"
    assert history.suspects(["cpu|1"], now=40.0) == ["cpu|1"]
    waits = []
    moment = 40.0
    for _ in range(4):
        history.looked("cpu|1", 1.02, now=moment)  # still slow
        wait = next(w for w in range(1, 10_000) if history.suspects(["cpu|1"], now=moment + w))
        waits.append(wait)
        moment += wait
    assert waits[0] < 15
    assert waits == sorted(waits)
    assert waits[-1] > 3 * waits[0]
    history.looked("cpu|1", 0.24, now=moment)  # it has recovered
    assert history.factors(["cpu|1"], now=moment)["cpu|1"] == pytest.approx(1.0)
    assert history.suspects(["cpu|1"], now=moment + 1e6) == []


def test_what_is_weak_is_worth_another_look_some_times(history):
    for n in range(3):
        history.learn([lesson(3.0 - n, alone=True)], now=1000.0 * n)
        row = history.known(["cpu|1"])["cpu|1", "k", 1]
        assert row.seconds == 3.0 - n, "what disturbs only makes slower"
        assert not row.is_worth_a_look(1000.0 * n + 1)
        assert row.is_worth_a_look(1000.0 * n + 999) == (n < 2)
    for n in range(3):
        assert n == 0 or known(history).is_worth_a_look(1e9), "one or two runs may both have been disturbed"
        history.learn([lesson(2.0)], now=5000.0)
    assert not known(history).is_worth_a_look(1e9)


def test_a_look_at_what_few_runs_have_shown_counts_where_it_is_much_faster(history):
    history.learn([lesson(5.0), lesson(5.0, "other")], now=0.0)
    history.learn([lesson(1.0, alone=True), lesson(4.5, "other", alone=True)], now=1000.0)
    assert (known(history).seconds, known(history).runs) == (1.0, 0)
    assert (known(history, "other").seconds, known(history, "other").runs) == (5.0, 1)


def test_a_few_kinds_that_surprise_are_not_the_device(history):
    names = [f"k{i}" for i in range(10)]
    for _ in range(3):
        history.learn([lesson(1.0, n) for n in names])
    few = int(AGREE * len(names)) - 1
    assert history.learn([lesson(4.0 if i < few else 1.0, n) for i, n in enumerate(names)]) == []
    assert known(history, "k9").seconds == pytest.approx(1.0)


def test_calibrating_forgets_the_device(history):
    history.learn([lesson(1.0), lesson(1.0, device="gpu|1")])
    history.forget("cpu|1")
    assert history.known(["cpu|1"]) == {}
    assert history.known(["gpu|1"])


def test_a_file_that_is_no_database_costs_a_warning_and_is_put_aside(history):
    history.path.parent.mkdir()
    history.path.write_bytes(b"no database at all" * 100)
    assert history.known(["cpu|1"]) == {}
    assert "not a database" in history.warning
    assert history.path.with_name("costs.sqlite.broken").exists()
    again = History(history.path)
    again.learn([lesson(1.0)])
    assert again.warning == ""
    assert known(again).seconds == 1.0


def test_a_file_of_an_older_version_is_begun_anew(history):
    history.path.parent.mkdir()
    with sqlite3.connect(history.path) as old:
        old.executescript("CREATE TABLE cost (device TEXT, mean REAL); CREATE TABLE device (device TEXT, factor REAL); PRAGMA user_version = 1")
    old.close()
    assert history.known(["cpu|1"]) == {}
    assert history.learn([lesson(1.0)]) == []
    assert (history.warning, known(history).seconds) == ("", 1.0)


def test_a_locked_file_costs_a_warning_and_keeps_what_it_has(history, monkeypatch):
    history.learn([lesson(1.0)])
    monkeypatch.setattr("hetsched.placement.costs.history.BUSY_SECONDS", 0.01)
    other = sqlite3.connect(history.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    history.learn([lesson(9.0)])
    assert "locked" in history.warning
    assert known(History(history.path)).seconds == 1.0, "readers do not wait for a writer"
    other.execute("ROLLBACK")
    other.close()
    assert history.path.exists()


def test_a_folder_that_cannot_be_made_costs_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    history = History(tmp_path / "file" / "costs.sqlite")
    history.learn([lesson(1.0)])
    assert history.warning


def test_processes_may_teach_at_once(history):
    code = f"""
from pathlib import Path
from hetsched.placement.costs.history import History, Lesson
import sys, hetsched.placement.costs.history as h
h.BUSY_SECONDS = 60.0
history = History(Path({str(history.path)!r}))
for i in range(20):
    history.learn([Lesson("cpu|1", "op", f"{{sys.argv[1]}}-{{i}}", 1, "float32", 1.0, 1.0, 1.0, 0.0, 1)])
assert history.warning == "", history.warning
"""
    running = [subprocess.Popen([sys.executable, "-c", code, str(i)]) for i in range(3)]
    assert [p.wait(600) for p in running] == [0, 0, 0]
    assert len(history.known(["cpu|1"])) == 60


def test_what_happens_now_and_then_counts_for_wide_launches(history):
    """Their threads may be woken late: a run in which they were is no mishap."""
    for seconds in (1.0, 1.0, 9.0, 1.0):
        history.learn([lesson(seconds)._replace(width=2), lesson(seconds), *(lesson(1.0, n) for n in NAMES)])
    assert history.known(["cpu|1"])["cpu|1", "k", 2].seconds == pytest.approx(3.0)
    assert known(history).seconds == pytest.approx(1.0)
