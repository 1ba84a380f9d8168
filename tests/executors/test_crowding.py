"""How long a run waited for cores that other work had: by a file as Linux writes it."""

from __future__ import annotations

from itertools import count

import pytest

from hetsched.executors import crowding
from hetsched.executors.crowding import Crowding


@pytest.fixture
def clock(monkeypatch):
    """One second passes from each look at the clock to the next, in which the process works for half of one."""
    monkeypatch.setattr(crowding, "perf_counter", count(0.0, 1.0).__next__)
    monkeypatch.setattr(crowding, "process_time", count(0.0, 0.5).__next__)


def write(tmp_path, threads, busy):
    """What Linux tells: of each thread, and how many seconds all cores have worked."""
    for thread, content in threads.items():
        folder = tmp_path / "task" / thread
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "schedstat").write_text(content)
    (tmp_path / "stat").write_text(f"cpu  {round(70 * busy)} {round(20 * busy)} {round(10 * busy)} 735147 2473 0 0 2569 0 0\ncpu0 1 2 3\n")


def share(tmp_path, before, after, others=10.0):
    write(tmp_path, before, 100.0)
    with Crowding(tmp_path / "task", tmp_path / "stat") as found:
        write(tmp_path, after, 100.5 + others)
    return found.share


def test_the_share_of_the_run_spent_waiting_for_a_core(tmp_path, clock):
    assert share(tmp_path, {"a": "5000 1000000000 7"}, {"a": "900000 1400000000 9"}) == pytest.approx(0.4)
    assert share(tmp_path, {"a": "5000 1000000000 7"}, {"a": "5000 9000000000 9"}) == 1.0


def test_threads_are_added_up_and_those_that_come_meanwhile_are_not_seen(tmp_path, clock):
    before = {"a": "1 0 1", "b": "1 500000000 1"}
    assert share(tmp_path, before, {"a": "1 100000000 1", "b": "1 700000000 1", "c": "1 900000000 1"}) == pytest.approx(0.3)


def test_threads_of_the_run_that_wait_for_one_another_are_no_crowd(tmp_path, clock):
    assert share(tmp_path, {"a": "0 0 0"}, {"a": "0 400000000 0"}, others=0.0) == 0.0
    assert share(tmp_path, {"a": "0 0 0"}, {"a": "0 400000000 0"}, others=0.21) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("content", ["", "word", "1", "a b c"])
def test_a_system_that_does_not_tell_is_taken_to_be_quiet(tmp_path, content):
    assert share(tmp_path, {"a": content}, {"a": content}) == 0.0
    (tmp_path / "stat").write_text(content)
    for tasks in (tmp_path / "none", tmp_path / "task"):
        with Crowding(tasks, tmp_path / "stat") as found:
            pass
        assert found.share == 0.0
