"""How long a run waited for cores that other work had: by a file as Linux writes it."""

from __future__ import annotations

from itertools import count

import pytest

from hetsched.executors import crowding
from hetsched.executors.crowding import Crowding


@pytest.fixture
def clock(monkeypatch):
    """One second passes from each look at the clock to the next, in which the process works for `work` seconds."""
    work = [0.5]
    monkeypatch.setattr(crowding, "perf_counter", count(0.0, 1.0).__next__)
    moments = count()
    monkeypatch.setattr(crowding, "process_time", lambda: next(moments) * work[0])
    return work


def write(tmp_path, **threads):
    for thread, content in threads.items():
        folder = tmp_path / thread
        folder.mkdir(exist_ok=True)
        (folder / "schedstat").write_text(content)


def share(tmp_path, before, after, cores=2):
    write(tmp_path, **before)
    with Crowding(tmp_path, cores) as found:
        write(tmp_path, **after)
    return found.share


def test_the_share_of_the_run_spent_waiting_for_a_core(tmp_path, clock):
    assert share(tmp_path, {"a": "5000 1000000000 7"}, {"a": "900000 1400000000 9"}) == pytest.approx(0.4)
    assert share(tmp_path, {"a": "5000 1000000000 7"}, {"a": "5000 9000000000 9"}) == 1.0


def test_threads_are_added_up_and_those_that_come_meanwhile_are_not_seen(tmp_path, clock):
    before = {"a": "1 0 1", "b": "1 500000000 1"}
    assert share(tmp_path, before, {"a": "1 100000000 1", "b": "1 700000000 1", "c": "1 900000000 1"}) == pytest.approx(0.3)


def test_threads_of_the_run_that_wait_for_one_another_are_no_crowd(tmp_path, clock):
    clock[0] = 1.9
    assert share(tmp_path, {"a": "0 0 0"}, {"a": "0 400000000 0"}, cores=2) == 0.0
    assert share(tmp_path, {"a": "0 0 0"}, {"a": "0 400000000 0"}, cores=4) == pytest.approx(0.4)


@pytest.mark.parametrize("content", ["", "word", "1", "a b c"])
def test_a_system_that_does_not_tell_is_taken_to_be_quiet(tmp_path, content):
    assert share(tmp_path, {"a": content}, {"a": content}) == 0.0
    with Crowding(tmp_path / "none") as found:
        pass
    assert found.share == 0.0
