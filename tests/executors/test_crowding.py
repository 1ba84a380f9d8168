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


def share(tmp_path, before, after, cores=2):
    file = tmp_path / "schedstat"
    file.write_text(before)
    with Crowding(str(file), cores) as found:
        file.write_text(after)
    return found.share


def test_the_share_of_the_run_spent_waiting_for_a_core(tmp_path, clock):
    assert share(tmp_path, "5000 1000000000 7", "900000 1400000000 9") == pytest.approx(0.4)
    assert share(tmp_path, "5000 1000000000 7", "5000 9000000000 9") == 1.0


def test_threads_of_the_run_that_wait_for_one_another_are_no_crowd(tmp_path, clock):
    clock[0] = 1.9
    assert share(tmp_path, "0 0 0", "0 400000000 0", cores=2) == 0.0
    assert share(tmp_path, "0 0 0", "0 400000000 0", cores=4) == pytest.approx(0.4)


@pytest.mark.parametrize("content", ["", "word", "1", "a b c"])
def test_a_system_that_does_not_tell_is_taken_to_be_quiet(tmp_path, content):
    assert share(tmp_path, content, content) == 0.0
    with Crowding(str(tmp_path / "none")) as found:
        pass
    assert found.share == 0.0
