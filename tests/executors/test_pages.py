"""Fresh memory, threads that begin together, and cores of their own."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from hetsched.executors import cores, pages, process
from hetsched.executors.cores import Cores
from hetsched.executors.hands import Door
from hetsched.executors.memory import ALIGNMENT, HostMemory


@pytest.mark.parametrize("nbytes", [0, 1, 1000, pages.LEAST_BYTES, pages.HUGE - 1, pages.HUGE, 3 * pages.HUGE + 17])
def test_fresh_memory_is_as_long_as_was_asked_for_and_may_be_written(nbytes):
    raw = pages.area(nbytes)
    assert raw.dtype == np.uint8
    assert raw.shape == (nbytes,)
    raw[:] = 7
    other = pages.area(nbytes)
    other[:] = 1
    assert (raw == 7).all()
    arena = HostMemory.of(nbytes)
    assert arena.buffer.nbytes == nbytes
    assert not nbytes or arena.buffer.ctypes.data % ALIGNMENT == 0


def test_memory_is_fresh_too_where_there_are_no_huge_pages(monkeypatch):
    monkeypatch.delattr(pages.mmap, "MADV_HUGEPAGE", raising=False)
    assert pages.area(2 * pages.HUGE).nbytes == 2 * pages.HUGE


def test_what_is_touched_is_the_same_array():
    for array in (np.ones((3, 5)), np.empty((300, 300), np.float32), np.empty((), np.int64)):
        assert pages.touched(array) is array


def test_nobody_passes_a_door_before_it_is_open():
    door, passed = Door(), []
    threads = [threading.Thread(target=door.behind(lambda kind, lane: passed.append(lane)), args=("compute", i)) for i in range(3)]
    for thread in threads:
        thread.start()
    passed.append("opened")
    door.open()
    for thread in threads:
        thread.join()
    assert passed[0] == "opened"
    assert sorted(passed[1:]) == [0, 1, 2]


class Machine:
    """Cores 0 to 3, of which a process may use some; where its threads are, and where they were told to go."""

    def __init__(self, monkeypatch, allowed):
        self.here = 0
        self.moves = []
        monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: set(allowed), raising=False)
        monkeypatch.setattr(cores.os, "sched_setaffinity", self.move, raising=False)
        self.allowed = set(allowed)

    def move(self, pid, to):
        if to != self.allowed:
            self.moves.append(to)
            (self.here,) = to

    def settles(self, spread, lane, core):
        """Where a lane's thread is after it has looked, being on `core`."""
        self.here = core
        spread.settle(lane)
        return self.here


def test_a_thread_moves_where_nobody_works(monkeypatch):
    machine = Machine(monkeypatch, [0, 1, 3])
    spread = Cores(lambda: machine.here)
    assert machine.settles(spread, 0, 1) == 1
    assert machine.settles(spread, 1, 1) == 0
    assert machine.settles(spread, 2, 0) == 3
    assert machine.moves == [{0}, {3}]
    assert machine.settles(spread, 1, 0) == 0
    assert machine.settles(spread, 2, 1) == 3, "moved by the system to where another works"
    assert machine.settles(spread, 3, 1) == 1, "there is no other"


def test_a_thread_that_sleeps_leaves_its_core_to_others(monkeypatch):
    machine = Machine(monkeypatch, [0, 1])
    spread = Cores(lambda: machine.here)
    machine.settles(spread, 0, 0)
    spread.leave(0)
    assert machine.settles(spread, 1, 0) == 0
    assert machine.settles(spread, 0, 0) == 1
    spread.leave(7)
    assert machine.settles(spread, 0, 1) == 1


def test_who_waits_is_held_to_its_core_and_free_again(monkeypatch):
    machine = Machine(monkeypatch, [0, 1])
    spread = Cores(lambda: machine.here)
    machine.settles(spread, 0, 0)
    machine.here = 0
    with spread.waiting(1):
        assert machine.moves == [{1}, {1}], "moved, then held"
        assert machine.here == 1
    assert machine.moves == [{1}, {1}]


def test_there_is_nothing_to_spread_where_one_thread_works_or_more_than_there_are_cores(monkeypatch):
    monkeypatch.setattr(cores, "asks", lambda: lambda: 0)
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    assert Cores.of(1) is None
    assert Cores.of(2) is not None
    assert Cores.of(3) is None
    monkeypatch.setattr(cores, "asks", lambda: None)
    assert Cores.of(2) is None


def test_the_threads_of_a_wide_product_wake_up_elsewhere_and_are_free_again(monkeypatch):
    told = []
    monkeypatch.setattr(process, "_placers", lambda: (lambda *what: told.append(what) or 0,))
    monkeypatch.setattr(process, "core_asks", lambda: lambda: 2)
    monkeypatch.setattr(process.os, "sched_getaffinity", lambda pid: {0, 2, 9}, raising=False)
    monkeypatch.setattr(process, "_libraries", lambda: ())
    with process.wide(3):
        assert [(worker, int.from_bytes(cores, "little")) for worker, _, cores in told] == [(0, 1 << 0), (1, 1 << 9)]
        told.clear()
    assert [(worker, int.from_bytes(cores, "little")) for worker, _, cores in told] == [(w, 1 | 1 << 2 | 1 << 9) for w in (0, 1)]
    told.clear()
    with process.wide(4):  # more than there are cores
        pass
    assert not told


def test_where_threads_may_not_be_moved_nobody_tries(monkeypatch):
    def refuse(pid, allowed):
        raise PermissionError("sandbox")

    monkeypatch.setattr(cores.os, "sched_setaffinity", refuse, raising=False)
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    cores.asks.cache_clear()
    try:
        assert cores.Cores.of(2) is None
    finally:
        cores.asks.cache_clear()


FLOATS, BYTES = np.dtype(np.float32), np.dtype(np.uint8)
KINDS = [((64, 256), FLOATS), ((5,), np.dtype(np.float64)), ((0, 3), BYTES), ((1 << 20,), BYTES), ((), np.dtype(bool))]


@pytest.mark.parametrize("times", [1, 40])
def test_fresh_arrays_are_apart_and_writable_wherever_they_lie(times):
    made = pages.arrays(KINDS * times)
    assert [(x.shape, x.dtype) for x in made] == KINDS * times
    for i, x in enumerate(made):
        assert x.flags.c_contiguous
        assert x.flags.writeable
        x[...] = i % 100
    for i, x in enumerate(made):
        assert (x == np.asarray(i % 100).astype(x.dtype)).all()


def in_one_area():
    """Arrays that share an area, where the system has such."""
    made = pages.arrays([((1 << 20,), np.dtype(np.uint8))] * 4)
    if made[0].base is None:
        pytest.skip("no huge pages here")
    for i, x in enumerate(made):
        x[:] = i + 1
    return made


def test_what_shares_an_area_outlives_the_others():
    made = in_one_area()
    kept, part, again = made[1], made[2][5:9], memoryview(made[3])
    del made
    assert (kept == 2).all()
    assert part.tolist() == [3] * 4
    assert set(again) == {4}


def test_a_process_that_was_forked_off_waits_for_nobody():
    with pages._lock:
        pages._forget()
        assert pages.arrays([((1 << 20,), BYTES)] * 4)[3].shape == (1 << 20,)


@pytest.fixture
def given(monkeypatch):
    """The (address, bytes) given back to the system."""
    found = []
    real = pages._gives()
    monkeypatch.setattr(pages, "_gives", lambda: lambda address, nbytes: found.append((address, nbytes)) or real(address, nbytes))
    pages.give_back()
    yield found
    pages.give_back()


def test_an_array_that_is_let_go_gives_its_pages_back(monkeypatch, given):
    monkeypatch.setattr(pages, "_most_kept", lambda: 0)
    made = in_one_area()
    address = made[1].ctypes.data
    del made[1]
    assert given == [(address, 1 << 20)]
    view = made[1][:3]
    del made[1]
    assert len(given) == 1, "a view holds it"
    del view
    assert len(given) == 2
    del made
    assert pages.held() == 0


def test_an_area_that_nobody_has_is_taken_again(monkeypatch, given):
    monkeypatch.setattr(pages, "_most_kept", lambda: 5 << 20)
    made = in_one_area()
    address = made[0].ctypes.data
    del made
    assert pages.held() == 4 << 20
    assert not given
    again = pages.arrays([((3 << 20,), BYTES)])
    assert again[0].ctypes.data == address
    assert pages.held() == 0
    more = in_one_area()
    assert more[0].ctypes.data != address
    del again
    assert pages.held() == 4 << 20
    del more
    assert pages.held() == 4 << 20, "no more than is allowed"
    assert pages.give_back()
    assert not pages.give_back()
    assert pages.held() == 0


def test_of_an_area_that_somebody_has_the_rest_is_given_back_when_the_next_is_made(monkeypatch, given):
    monkeypatch.setattr(pages, "_most_kept", lambda: 8 << 20)
    made = in_one_area()
    kept, addresses = made[2], [x.ctypes.data for x in made]
    del made
    assert not given
    assert pages.held() == 0
    other = in_one_area()
    assert sorted(given) == [(address, 1 << 20) for i, address in enumerate(sorted(addresses)) if address != addresses[2]]
    assert (kept == 3).all()
    del kept
    again = pages.arrays([((1 << 20,), BYTES)] * 4)
    assert [x.ctypes.data for x in again] == addresses
    again[0][:] = 9
    assert (other[0] == 1).all()


def test_arrays_of_many_threads_keep_what_was_written(monkeypatch):
    monkeypatch.setattr(pages, "_most_kept", lambda: 8 << 20)
    wrong = []

    def work(number):
        held = []
        for turn in range(60):
            made = pages.arrays([((1 << 20,), BYTES)] * 3)
            for i, x in enumerate(made):
                x[:: pages.PAGE] = number * 20 + i
            held.append((made.pop(turn % 3), number * 20 + turn % 3))
            if len(held) > 3:
                held.pop(0)
            del made, x
            wrong.extend(1 for x, mark in held if (x[:: pages.PAGE] != mark).any())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pages.give_back()
    assert not wrong


def test_pages_come_from_a_thread_where_they_are_many(monkeypatch):
    threads, asked = [], []
    monkeypatch.setattr(pages, "_cores", lambda: 2)
    monkeypatch.setattr(pages, "populates", lambda: lambda address, nbytes: (asked.append(nbytes), threads.append(threading.current_thread().name)))
    few = pages.Touching()
    few.add(np.empty(3 * pages.PAGE, np.uint8))
    few.begin()
    assert asked == [3 * pages.PAGE]
    assert threads == [threading.current_thread().name]
    many = pages.Touching()
    many.add(np.empty(pages.BESIDE_BYTES + 5, np.uint8))
    many.begin()
    many.end()
    many.end()
    assert sum(asked[1:]) == pages.BESIDE_BYTES + 5
    assert max(asked) <= pages.HUGE


def test_no_more_is_touched_than_is_worth_it(monkeypatch):
    asked = []
    monkeypatch.setattr(pages, "MOST_BYTES", 10 * pages.PAGE)
    monkeypatch.setattr(pages, "populates", lambda: lambda address, nbytes: asked.append(nbytes))
    touching = pages.Touching()
    for _ in range(3):
        touching.add(np.empty(4 * pages.PAGE, np.uint8))
    touching.begin()
    assert sum(asked) == 10 * pages.PAGE


def test_where_the_system_gives_no_pages_they_are_written(monkeypatch):
    monkeypatch.setattr(pages, "populates", lambda: None)
    raw = np.full(pages.LEAST_BYTES, 7, np.uint8)
    touching = pages.Touching()
    touching.add(raw)
    touching.begin()
    touching.end()
    assert (raw[:: pages.PAGE] == 0).all()
