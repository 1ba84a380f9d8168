"""Copies between the host and CUDA: page-locked memory, small ones, waits. On a CuPy of NumPy (see fake_cupy.py), which is no GPU."""

import gc
import os
import sys
import threading
import weakref

import fake_cupy
import numpy as np
import pytest
from test_cuda import box, on_device, opened

import hetsched as hs
from hetsched.executors import kept, locking, pages
from hetsched.executors.live import DeviceMemory
from hetsched.machine import HOST
from hetsched.testing import check_backend

N = 1 << 18  # floats: 1 MiB
UP, DOWN = 1, 2


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setenv("HETSCHED_CUDA_PIN", "1")  # whatever the system's age
    monkeypatch.setenv("HETSCHED_KEEP_MIB", "1024")
    kept.give_back()
    fake_cupy.locked.clear()
    backend = fake_cupy.install(monkeypatch)
    yield backend
    fake_cupy.Locking.refuses = False
    kept.give_back()
    gc.collect()
    assert not fake_cupy.locked


def test_an_array_in_pinned_memory_is_an_array_everywhere(monkeypatch):
    for shape, dtype in ((5, np.float32), ((3, 4), np.int64), ((0,), np.float64), ((), np.uint8)):
        x = hs.pinned_empty(shape, dtype)
        assert x.shape == ((shape,) if isinstance(shape, int) else shape)
        assert x.dtype == dtype
        x[...] = 7
        assert (x == 7).all()
    with pytest.raises(TypeError):
        hs.pinned_empty(3, "no dtype")


def test_pinned_memory_goes_with_its_array(fake):
    x = hs.pinned_empty((3, 1000), np.float32)
    assert list(fake_cupy.locked) == [x.ctypes.data]
    row = x[1]
    del x
    assert fake_cupy.locked
    del row
    gc.collect()
    assert not fake_cupy.locked
    fake_cupy.Locking.refuses = True
    assert hs.pinned_empty(1000).shape == (1000,)
    assert not fake_cupy.locked


# Streams -----------------------------------------------------------------------------------------------------------------------------


def gated(stream):
    """What lets a stream go on."""
    gate = threading.Event()
    stream.stream.put(gate.wait)
    return gate


def test_pinned_arrays_are_copied_by_the_device_alone_and_held_until_then(fake):
    device = opened(fake, 4 << 20)
    stream, array = device.stream("copy"), device.array(0, (N,), np.float32)
    x, y = hs.pinned_empty(N), hs.pinned_empty(N)
    x[:], y[:] = 1, 0
    fake_cupy.pinned_sizes.clear()
    gate = gated(stream)
    stream.upload(x, array)
    x[:] = 2  # nobody may; it shows that the device reads it when it comes to it
    stream.download(array, y)
    event = stream.record()
    assert fake_cupy.pinned_sizes == []
    gone = weakref.ref(x)
    del x
    gc.collect()
    assert gone() is not None
    gate.set()
    event.wait()
    assert (y == 2).all()
    gc.collect()
    assert gone() is None  # no record is needed for that
    device.close()


def test_parts_of_pinned_arrays_are_asked_for_once(fake):
    device = opened(fake, 4 << 20)
    stream, array = device.stream("copy"), device.array(0, (N // 8,), np.float32)
    x = hs.pinned_empty((8, N // 8))
    x[:] = np.arange(8)[:, None]
    out = np.zeros(N // 8, np.float32)
    fake_cupy.pinned_sizes.clear()
    before = fake_cupy.Locking.asked
    for i in range(8):
        stream.upload(x[i], array)
        stream.record().wait()
    assert fake_cupy.Locking.asked - before == 2
    assert fake_cupy.pinned_sizes == []
    stream.download(array, out)
    stream.record().wait()
    assert (out == 7).all()
    turned = hs.pinned_empty((N // 8, 2))[:, 0]  # not contiguous: through pinned memory
    turned[:] = 5
    stream.upload(turned, array)
    turned[:] = 6
    stream.download(array, out)
    stream.record().wait()
    assert (out == 5).all()
    device.close()


def test_a_part_that_is_locked_of_an_array_that_is_not(fake):
    device = opened(fake, 4 << 20)
    stream, array = device.stream("copy"), device.array(0, (N,), np.float32)
    whole = np.zeros(3 * N, np.float32)
    part = whole[N : 2 * N]
    fake_cupy.host_register(part.ctypes.data, part.nbytes, 1)
    for x, is_direct in ((whole[:N], False), (part, True), (whole[N // 2 : N // 2 + N], False), (whole[:N], False)):
        fake_cupy.copied.clear()
        stream.upload(x, array)
        stream.record().wait()
        assert (fake_cupy.copied[0][0] == x.ctypes.data) == is_direct
    fake_cupy.locked.clear()
    device.close()


def test_what_lies_between_two_locked_parts_is_not_locked_though_its_ends_may_be(fake):
    """CUDA copies nothing that begins in one registration and ends in another."""
    device = opened(fake, 4 << 20)
    stream, array = device.stream("copy"), device.array(0, (N,), np.float32)
    whole = np.zeros(3 * N, np.float32)
    start, middle = whole.ctypes.data, whole[N : 2 * N]
    unlock = [device.lock_pages(start, middle.nbytes + 64), device.lock_pages(start + 2 * middle.nbytes - 64, middle.nbytes + 64)]
    for x, is_direct in ((whole[:N], True), (middle, False), (whole[2 * N :], True)):
        fake_cupy.copied.clear()
        stream.upload(x, array)
        stream.record().wait()
        assert (fake_cupy.copied[0][0] == x.ctypes.data) == is_direct
    for each in unlock:
        each()
    device.close()


def test_what_is_locked_after_it_was_copied_is_copied_by_the_device_from_then_on(fake):
    device = opened(fake, 4 << 20)
    stream, array = device.stream("copy"), device.array(0, (N,), np.float32)
    x, unlock = np.zeros(2 * N, np.float32)[N:], None
    for is_locked in (False, True, False):
        if is_locked:
            unlock = device.lock_pages(x.ctypes.data, x.nbytes)
        elif unlock is not None:
            unlock()
        fake_cupy.copied.clear()
        stream.upload(x, array)
        stream.record().wait()
        assert (fake_cupy.copied[0][0] == x.ctypes.data) == is_locked
    device.close()


def test_a_download_that_cannot_land_keeps_nothing_from_being_closed(fake):
    device = opened(fake, 4 << 20)

    class Lost:
        def land(self):
            raise RuntimeError("lost")

    device.stream("copy")._landings.append(Lost())
    device.close()
    assert device.memory is None


def test_what_a_download_brings_to_pinned_memory_waits_where_the_host_reads_it(fake):
    """A small part of it is read by the host when it is uploaded; the whole is not."""
    device = opened(fake, 4 << 20)
    first, second = device.stream("copy"), device.stream("copy")
    a, b = device.array(0, (N,), np.float32), device.array(2 << 20, (N,), np.float32)
    x = hs.pinned_empty(N)
    first.upload(np.full(N, 3, np.float32), a)
    x[:] = 0
    gate = gated(first)
    first.download(a, x)
    arrived = first.record()
    second.wait(arrived)
    second.upload(x, b)  # returns though the gate is shut
    gate.set()
    y = np.zeros(N, np.float32)
    second.download(b, y)
    second.record().wait()
    assert (y == 3).all()
    x[:] = 0
    first.download(a, x)
    second.wait(first.record())
    small = device.array(2 << 20, (16,), np.float32)
    second.upload(x[5:21], small)
    second.download(small, y[:16])
    second.record().wait()
    assert (y[:16] == 3).all()
    device.close()


def test_small_copies_use_a_streams_own_pinned_memory_again(fake):
    device = opened(fake)
    stream, array = device.stream("copy"), device.array(0, (1000,), np.float32)
    fake_cupy.pinned_sizes.clear()
    out = np.zeros(1000, np.float32)
    for i in range(200):
        stream.upload(np.full(1000, i, np.float32), array)
        stream.download(array, out)
        stream.record().wait()
        assert (out == i).all()
    assert len(fake_cupy.pinned_sizes) <= 3
    device.close()


def test_pinned_memory_with_something_that_has_not_landed_is_not_used_again(fake):
    device = opened(fake)
    stream, array = device.stream("copy"), device.array(0, (1000,), np.float32)
    outs = np.zeros((100, 1000), np.float32)
    events = []
    for i in range(100):
        stream.upload(np.full(1000, i, np.float32), array)
        stream.download(array, outs[i])
        events.append(stream.record())
        if i % 3 == 2:
            events[-1].wait()  # not those before it
    for event in events:
        event.wait()
    assert (outs == np.arange(100)[:, None]).all()
    device.close()


def test_events_that_nobody_waits_for_hold_little(fake):
    device = opened(fake)
    stream, array = device.stream("copy"), device.array(0, (1000,), np.float32)
    fake_cupy.pinned_sizes.clear()
    for i in range(2000):
        stream.upload(np.full(1000, i, np.float32), array)
        stream.record()
        if i % 100 == 0:
            stream.stream.synchronize()
    assert len(fake_cupy.pinned_sizes) < 20
    assert len(stream._held) < 150
    device.close()


def test_events_are_recorded_again(fake, monkeypatch):
    device = opened(fake)
    stream, array = device.stream("copy"), device.array(0, (16,), np.float32)
    made = []
    original = fake_cupy.Event.__init__
    monkeypatch.setattr(fake_cupy.Event, "__init__", lambda self, *a, **k: (made.append(1), original(self, *a, **k))[1])
    anchors = device.anchor
    monkeypatch.setattr(device, "anchor", lambda: device._anchor)  # a clock that is read again makes events of its own
    for _ in range(100):
        stream.upload(np.ones(16, np.float32), array)
        start, finish = stream.record().span()
        assert start <= finish
    assert len(made) <= 6
    assert anchors
    device.close()


def test_the_first_parts_of_a_large_download_land_while_the_last_are_on_their_way(fake, monkeypatch):
    device = opened(fake, 16 << 20)
    stream, array = device.stream("copy"), device.array(0, (12 << 20,), np.uint8)
    values = np.random.default_rng(0).integers(1, 255, 12 << 20).astype(np.uint8)
    stream.upload(values, array)
    gate, landed, copies, parts = threading.Event(), threading.Event(), [], []
    runtime, memcpy = sys.modules["cupy"].cuda.runtime, fake_cupy.memcpy_async

    def stopped(dst, src, size, kind, at):
        copies.append(size)
        if len(copies) == 3:
            stream.stream.put(gate.wait)
        memcpy(dst, src, size, kind, at)

    monkeypatch.setattr(runtime, "memcpyAsync", stopped)
    copy = device.copiers.copy
    monkeypatch.setattr(device.copiers, "copy", lambda to, of: (copy(to, of), parts.append(1), landed.set() if len(parts) == 2 else None))
    seen = np.zeros_like(values)
    stream.download(array, seen)
    event = stream.record()
    assert copies == [4 << 20] * 3
    assert landed.wait(60)
    assert np.array_equal(seen[: 8 << 20], values[: 8 << 20])
    assert not seen[8 << 20 :].any()
    assert not event.done()
    gate.set()
    event.wait()
    assert np.array_equal(seen, values)
    device.close()


# Runs --------------------------------------------------------------------------------------------------------------------------------


def twice(n=N, turns=None):
    """y = x + x on cuda:0; with `turns` in each turn of a loop."""
    where = hs.Where(("cuda:0",))
    b = hs.Graph.build()
    if turns is None:
        x = b.input("x", (n,))
        return b.output(b.op("tensor.add", x, x, where=where), "y").freeze()
    body = hs.Graph.build()
    x = body.input("x", (n,))
    body.output(body.op("tensor.add", x, x, where=where), "y")
    (y,) = b.loop(hs.Loop(body.freeze(), turns, sequences=("x",), collected=("y",)), b.input("x", (turns, n)))
    return b.output(y, "y").freeze()


def is_in_locked(address):
    return any(a <= address < a + n for a, n in fake_cupy.locked.items())


@pytest.mark.parametrize("turns", [None, 5])
def test_inputs_may_change_when_a_run_has_returned_and_results_are_the_callers(fake, turns):
    plan = hs.plan(twice(turns=turns), box(fake))
    x = hs.pinned_empty((N,) if turns is None else (turns, N))
    results = []
    for i in range(6):
        x[...] = i
        results.append(hs.run(plan, {"x": x})["y"])
        x[...] = -1
        if i % 2:
            results[i - 1] = None
    for i in (1, 3, 5):
        assert (results[i] == 2 * i).all()


@pytest.mark.parametrize("turns", [None, 5])
def test_outputs_are_locked_when_their_memory_comes_again(fake, turns):
    plan = hs.plan(twice(2 * N, turns=turns), box(fake))
    x = np.ones((2 * N,) if turns is None else (turns, 2 * N), np.float32)
    for i in range(4):
        fake_cupy.copied.clear()
        y = hs.run(plan, {"x": x * i})["y"]
        assert (y == 2 * i).all()
        to = [dst for _, dst, _, kind in fake_cupy.copied if kind == DOWN]
        start, end = y.ctypes.data, y.ctypes.data + y.nbytes
        assert all((start <= place < end) == (i > 0) for place in to)
        assert bool(fake_cupy.locked) == (i > 0)
        del y
    assert sum(fake_cupy.locked.values()) == x.nbytes
    kept.give_back()
    assert not fake_cupy.locked


def test_a_result_that_is_held_beside_others_keeps_its_bytes(fake):
    """Pages are unlocked before they are given back: those of the result that is let go, and no others."""
    where = hs.Where(("cuda:0",))
    b = hs.Graph.build()
    x = b.input("x", (N,))
    for name in ("p", "q", "r"):
        b.output(b.op("tensor.add", x, x, where=where), name)
    plan = hs.plan(b.freeze(), box(fake))
    ones = np.ones(N, np.float32)
    hs.run(plan, {"x": ones})
    result = hs.run(plan, {"x": 3 * ones})
    assert len(fake_cupy.locked) == 3
    mine = result["q"]
    del result
    for i in range(3):
        hs.run(plan, {"x": i * ones})
    assert (mine == 6).all()
    assert is_in_locked(mine.ctypes.data)
    del mine


def test_nothing_is_locked_where_nothing_is_kept_or_cuda_refuses_or_the_environment_says_so(fake, monkeypatch):
    plan = hs.plan(twice(2 * N), box(fake))
    for name, value in (("HETSCHED_KEEP_MIB", "0"), ("HETSCHED_CUDA_PIN", "0"), ("", "")):
        with monkeypatch.context() as patch:
            if name:
                patch.setenv(name, value)
            else:
                fake_cupy.Locking.refuses = True
            for i in range(4):
                assert (hs.run(plan, {"x": np.full(2 * N, i, np.float32)})["y"] == 2 * i).all()
                assert not fake_cupy.locked
            kept.give_back()


def produced(turns=16):
    """A batch made by the host each turn, and added to itself by the device; its sum is carried there."""
    gpu, cpu = hs.Where(("cuda:0",)), hs.Where(("cpu",))
    body = hs.Graph.build()
    x, total = body.input("x", (64,)), body.input("total", (N,))
    batch = body.op("tensor.broadcast_to", body.op("tensor.reshape", x, shape=[64, 1], where=cpu), shape=[64, N // 64], where=cpu)
    flat = body.op("tensor.reshape", batch, shape=[N], where=cpu)
    body.output(body.op("tensor.add", total, flat, where=gpu), "next")
    b = hs.Graph.build()
    loop = hs.Loop(body.freeze(), turns, sequences=("x",), carried=(("total", "next"),))
    (out,) = b.loop(loop, b.input("x", (turns, 64)), b.input("total", (N,)))
    return b.output(out, "out").freeze()


def test_rings_of_what_the_host_makes_are_locked_and_unlocked(fake):
    turns = 40
    plan = hs.plan(produced(turns), box(fake))
    x = np.random.default_rng(0).integers(0, 9, (turns, 64)).astype(np.float32)
    fake_cupy.copied.clear()
    seen = []
    runtime = sys.modules["cupy"].cuda.runtime
    runtime.hostRegister = lambda start, nbytes, flags: (seen.append((start, nbytes)), fake_cupy.host_register(start, nbytes, flags))[1]
    out = hs.run(plan, {"x": x, "total": np.zeros(N, np.float32)})["out"]
    assert np.array_equal(out, np.repeat(x.sum(0), N // 64))
    assert seen
    direct = [row for row in fake_cupy.copied if row[3] == UP and any(a <= row[0] < a + n for a, n in seen)]
    assert len(direct) == turns
    gc.collect()
    assert not fake_cupy.locked


def test_calls_at_once_of_a_session_with_pinned_arrays(fake):
    graph = twice(2 * N)
    wrong = []
    with hs.Session(box(fake)) as session:
        f = session.compile(graph, buffers=2)

        def call(number):
            x = hs.pinned_empty(2 * N)
            for i in range(6):
                x[:] = number + 10 * i
                y = f(x=x)["y"]
                x[:] = -1
                if not (y == 2 * (number + 10 * i)).all():
                    wrong.append((number, i))

        threads = [threading.Thread(target=call, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_process_that_was_forked_off_unlocks_nothing(monkeypatch):
    unlocked = []
    held = pages.Locked(lambda: unlocked.append(1))
    with monkeypatch.context() as patch:
        patch.setattr(pages.os, "getpid", lambda: os.getppid())
        assert held.release()
    assert unlocked == []
    held = pages.Locked(lambda: unlocked.append(1))
    assert held.release()
    assert held.release()
    assert unlocked == [1]

    def refused():
        raise RuntimeError("lost")

    assert not pages.Locked(refused).release()


def test_pages_are_locked_in_whole_and_those_of_neighbours_once():
    raw = pages.area(1 << 20, lockable=True)
    asked = []

    def lock(start, nbytes):
        asked.append((start, nbytes))
        return lambda: None

    start = raw.ctypes.data
    pages.lock_in(raw, [(100, 5000), (8000, 100), (1 << 19, 4096)], lock)
    assert asked == [(start, 8192), (start + (1 << 19), 4096)]
    pages.lock_in(raw, [(4096, 10)], lock)  # they are locked
    assert len(asked) == 2
    pages.lock_in(np.empty(100, np.uint8), [(0, 100)], lock)  # not of an area: it would be given back while it is locked
    assert len(asked) == 2


def test_bytes_that_copies_move_are_known_by_where_they_lie_on_the_host(fake):
    plan = hs.plan(twice(turns=5), box(fake))
    graph = plan.graph
    assert locking.moved(plan) == {graph.inputs["x"]: 5 * 4 * N, graph.outputs["y"]: 5 * 4 * N}
    plan = hs.plan(twice(), box(fake))
    assert locking.moved(plan) == {plan.graph.inputs["x"]: 4 * N, plan.graph.outputs["y"]: 4 * N}
    assert HOST in {m.name for m in plan.machine.memories}
    assert DeviceMemory


@pytest.mark.parametrize("way", ["by the device", "in parts"])
def test_the_contract_where_every_copy_goes_one_way(fake, monkeypatch, way):
    """As if all of the host's memory were page-locked: nothing that a run gives, takes or uses again is changed while a copy is at it. And as if
    every copy were large."""
    opened(fake).close()
    module = sys.modules[fake_cupy.LIVE]
    monkeypatch.setattr(module, "_SMALL_NBYTES", 0)
    if way == "by the device":
        monkeypatch.setattr(module.Pins, "has", lambda self, array: True)
    else:
        monkeypatch.setattr(module, "_CHUNK_NBYTES", 1024)
        monkeypatch.setattr(module, "_LANDING_NBYTES", 2048)
    check_backend(fake, box(fake), devices=["cuda:0"], graphs=6, runs=10)


# On a device --------------------------------------------------------------------------------------------------------------------------


@on_device
def test_pinned_and_pageable_arrays_give_the_same_on_a_device(monkeypatch):
    monkeypatch.setenv("HETSCHED_CUDA_PIN", "1")
    plan = hs.plan(twice(2 * N, turns=5), only="cuda")
    x = hs.pinned_empty((5, 2 * N))
    for i in range(4):
        x[:] = np.arange(5)[:, None] + i
        wanted = 2 * x
        for given in (x, x.copy()):
            y = hs.run(plan, {"x": given})["y"]
            given[:] = -1
            assert np.array_equal(y, wanted)
            del y
            x[:] = np.arange(5)[:, None] + i
