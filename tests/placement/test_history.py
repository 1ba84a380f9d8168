"""What runs have taught, in SQLite: means, surprises, drift, several processes, files that cannot be used."""

from __future__ import annotations

import sqlite3
import subprocess
import sys

import pytest

from hetsched.placement.costs.history import AGREE, MEMORY, History, Lesson


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
    assert known(history).runs == MEMORY


def test_what_was_measured_alone_gives_way_to_the_first_run(history):
    history.learn([lesson(1.0, alone=True)])
    assert known(history).runs == 0
    history.learn([lesson(5.0)])
    assert (known(history).seconds, known(history).runs) == (5.0, 1)
    history.learn([lesson(1.0, alone=True)])
    assert (known(history).seconds, known(history).runs) == (5.0, 1)


def test_one_surprise_moves_half_way_and_a_second_one_all_the_way(history):
    for _ in range(4):
        history.learn([lesson(1.0), lesson(1.0, "other")])
    history.learn([lesson(4.0)])
    assert known(history).seconds == pytest.approx(2.5)
    history.learn([lesson(4.0)])
    assert known(history).seconds == pytest.approx(4.0)
    assert known(history, "other").seconds == pytest.approx(1.0)


def test_one_bad_run_among_good_ones_is_forgotten(history):
    for seconds in (1.0, 1.0, 1.0, 4.0, 1.0, 1.0, 1.0):
        history.learn([lesson(seconds)])
    assert known(history).seconds < 1.4


def test_a_device_on_which_most_kinds_surprise_has_drifted_and_kinds_not_run_since_are_moved_along(history):
    names = [f"k{i}" for i in range(6)]
    for _ in range(3):
        history.learn([lesson(1.0, n) for n in names] + [lesson(1.0, n, "gpu|1") for n in names])
    drifts = history.learn([lesson(4.0, n) for n in names[:4]] + [lesson(1.0, n, "gpu|1") for n in names])
    assert [(d.device, d.factor, d.kinds) for d in drifts] == [("cpu|1", pytest.approx(4.0), 4)]
    assert known(history, "k5").seconds == pytest.approx(4.0)
    assert known(history, "k0").seconds == pytest.approx(4.0)
    assert known(history, "k0", "gpu|1").seconds == pytest.approx(1.0)
    assert history.factors(["cpu|1", "gpu|1"]) == {"cpu|1": pytest.approx(4.0)}
    assert history.learn([lesson(4.0, n) for n in names]) == [], "what is known now is no surprise"


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
    assert [p.wait(100) for p in running] == [0, 0, 0]
    assert len(history.known(["cpu|1"])) == 60
