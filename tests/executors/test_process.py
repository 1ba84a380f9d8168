from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from hetsched.executors import cores, process
from hetsched.executors.process import free_blas, limit_blas, tuned, wide
from hetsched.executors.sharing import Sharing


def blas_threads():
    np.ones((2, 2)) @ np.ones((2, 2))
    return [x["num_threads"] for x in ThreadpoolController().info() if x["user_api"] == "blas"]


def in_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.skipif(max(blas_threads(), default=1) < 2, reason="BLAS of this machine has one thread")
def test_a_wide_launch_raises_the_limit_on_whatever_thread_it_runs_and_all_is_given_back():
    before = blas_threads(), sys.getswitchinterval()

    def launch():
        with wide(2) as hold, hold:
            return blas_threads()

    with tuned() as hold, hold:
        assert set(blas_threads()) == {1}
        assert set(in_thread(launch)) == {2}
        assert set(launch()) == {2}
        assert set(in_thread(launch)) == {2}
        assert set(blas_threads()) == {1}
    assert (blas_threads(), sys.getswitchinterval()) == before


def test_a_run_in_another_thread_gives_back_what_it_changed():
    before = blas_threads(), sys.getswitchinterval()

    def run():
        with tuned() as hold, hold:
            return blas_threads()

    for _ in range(2):
        assert set(run()) <= {1}
        assert set(in_thread(run)) <= {1}
        assert (blas_threads(), sys.getswitchinterval()) == before


class Blas:
    """A BLAS library that may run `threads`."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.library = process.Library(self.count, self.limit)

    def count(self) -> int:
        return self.threads

    def limit(self, threads: int) -> None:
        self.threads = threads


class Interrupt(BaseException):
    """Ctrl-C."""


def interrupted(action: Callable[[], None]) -> Iterator[str]:
    """Do `action` again and again, with Ctrl-C at each point in turn where the interpreter looks for it while this module's code and that of
    `process` run: as a function begins, and when a call of a builtin, or of a library as above, comes back. Ends when all have had theirs.
    """
    for point in range(1, 1000):
        left, place = point, ""

        def look(frame, event, what):
            nonlocal left, place
            code = frame.f_code
            if code.co_filename == process.__file__:
                looks = event in ("call", "c_return")
            else:
                looks = event == "return" and code in (Blas.count.__code__, Blas.limit.__code__)
            if looks:
                left -= 1
                if not left:
                    sys.setprofile(None)
                    place = f"{frame.f_code.co_name} {frame.f_lineno} {event}"
                    raise Interrupt

        sys.setprofile(look)
        try:
            action()
        except Interrupt:
            pass
        finally:
            sys.setprofile(None)
        if left > 0:
            return
        yield place
    raise AssertionError("it does not end")


@pytest.fixture
def blas(monkeypatch):
    libraries = [Blas(4), Blas(1), Blas(7)]
    monkeypatch.setattr(process, "_found", tuple(b.library for b in libraries))
    monkeypatch.setattr(process, "core_asks", lambda: None)
    return libraries


def use_tuned() -> None:
    with tuned() as hold, hold:
        pass


def use_wide() -> None:
    with tuned() as hold, hold, wide(3) as more, more:
        pass


def use_limit() -> None:
    holder = object()
    try:
        limit_blas(holder)
    finally:
        try:
            free_blas(holder)
        except BaseException:
            free_blas(holder)
            raise


@pytest.mark.parametrize("action", [use_tuned, use_wide, use_limit])
def test_wherever_ctrl_c_comes_nothing_stays_changed(action, blas):
    interval = sys.getswitchinterval()
    places = []
    for place in interrupted(action):
        places.append(place)
        assert [b.threads for b in blas] == [4, 1, 7], place
        assert sys.getswitchinterval() == interval, place
        assert [len(held) for held in (process._limited, process._before, process._quick, process._interval)] == [0] * 4, place
        assert not process._lock.locked(), place
    assert any(p.startswith("limit ") for p in places), "it came when a library had been set"
    assert action is use_limit or any(p.startswith("__exit__ ") and p.endswith(" call") for p in places)
    assert len(places) > 10


def test_what_others_hold_stays_when_one_of_them_is_interrupted(blas):
    with tuned() as hold, hold:
        for place in interrupted(use_tuned):
            assert [b.threads for b in blas] == [1, 1, 1], place
            assert sys.getswitchinterval() == pytest.approx(process.SWITCH_SECONDS), place
    assert [b.threads for b in blas] == [4, 1, 7]


def test_a_thread_that_is_moved_may_go_everywhere_again_wherever_ctrl_c_comes(monkeypatch):
    allowed = {0, 1}

    def move(pid, to):
        allowed.clear()
        allowed.update(to)
        if len(to) == 1:
            raise Interrupt

    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: set(allowed), raising=False)
    monkeypatch.setattr(cores.os, "sched_setaffinity", move, raising=False)
    where = cores.Cores(lambda: 0)
    where.settle(0)
    with pytest.raises(Interrupt):
        where.settle(1)
    assert allowed == {0, 1}


class Nothing(Sharing):
    """Threads without work."""

    def new_log(self, lane):
        return None

    def follow(self, first, kind, lane, heap, idle, log):
        raise AssertionError("there is no work")


def test_a_thread_whose_gate_was_taken_and_never_opened_is_sent_home():
    """Ctrl-C may come between the two."""
    shared = Nothing(SimpleNamespace(cores=None, deadline=None, error=None))
    thread = threading.Thread(target=shared.serve, args=("compute", 1), daemon=True)
    thread.start()
    while not shared.idle["compute"]:
        pass
    shared.idle["compute"].pop()
    shared.halt()
    thread.join(60)
    assert not thread.is_alive()


def test_threads_are_let_through_the_door_where_starting_them_was_interrupted():
    """The others wait for those that have begun."""
    begun = []

    class Thread(threading.Thread):
        def start(self):
            if begun:
                raise Interrupt
            begun.append(self)
            super().start()

    shared = Nothing(SimpleNamespace(cores=None, deadline=None, error=None, zero=0.0), Thread)
    shared.run([("compute", 0), ("compute", 1), ("compute", 2)])
    assert isinstance(shared.crew.error, Interrupt)
    assert not begun[0].is_alive()
