"""Opened OpenCL devices, on whatever real device this machine has: values, order across queues, clocks, errors, leaks."""

import itertools
import threading
from time import perf_counter

import numpy as np
import psutil
import pytest
from leftovers import running_threads
from unspoilt import unspoilt

from hetsched.errors import InternalError, OutOfMemoryError, PlacementError
from hetsched.machine import Device

cl = pytest.importorskip("pyopencl")
from hetsched.executors.backends import opencl  # noqa: E402

if not opencl.find().devices:
    pytest.skip("no OpenCL device works here", allow_module_level=True)

from hetsched.executors.backends._opencl_arrays import group_size  # noqa: E402
from hetsched.executors.backends._opencl_live import Event  # noqa: E402
from hetsched.executors.backends._opencl_programs import DeviceError  # noqa: E402

ADD = """
__kernel void add(IN(float, a), IN(float, b), OUT(float, y), const long n) {
    LET_IN(float, a) LET_IN(float, b) LET_OUT(float, y)
    for (long i = get_global_id(0); i < n; i += get_global_size(0)) y[i] = a[i] + b[i];
}
__kernel void scale(OUT(float, y), const long n, const float by) {
    LET_OUT(float, y)
    const long i = get_global_id(0);
    if (i < n) y[i] *= by;
}
__kernel void slow(OUT(float, y), const int n) {
    LET_OUT(float, y)
    float x = y[0];
    for (int i = 0; i < n; i++) x = x * 1.0001f + 0.5f;
    y[0] = x;
}
"""
SKEW = 50e-6


def opened(nbytes=1 << 20):
    return opencl.open(Device("opencl:0", "opencl"), nbytes)


@pytest.fixture
def live():
    device = opened()
    yield device
    device.close()


def add(queue, inputs, outputs, workspace, attributes):
    (y,) = outputs
    queue.run(ADD, "add", (y.size,), *inputs, y, np.int64(y.size))


def fetched(stream, array):
    out = np.empty(array.shape, array.dtype)
    stream.download(array, out)
    stream.record().wait()
    return out


class Gate:
    """An event that nothing reaches until the test says so."""

    def __init__(self, live):
        self.user = cl.UserEvent(live.context)
        self.event = Event(live.stream("copy"), self.user, live, self.user)

    def open(self):
        self.user.set_status(cl.command_execution_status.COMPLETE)


def test_a_launch_reads_and_writes_at_its_offsets(live):
    stream = live.stream("compute")
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 7, 11)).astype(np.float32)
    whole = live.array(0, (4096,), np.float32)
    stream.fill(whole, -1)
    x, y, z = (live.array(offset, (7, 11), np.float32) for offset in (64, 64 * 9, 64 * 31))
    stream.upload(a, x)
    stream.upload(b, y)
    stream.launch(add, (x, y), (z,), None, {})
    everything = fetched(stream, whole)
    wanted = np.full(4096, -1, np.float32)
    for at, values in ((16, a), (16 * 9, b), (16 * 31, a + b)):
        wanted[at : at + 77] = values.ravel()
    np.testing.assert_array_equal(everything, wanted)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int32", "int64", "float16", "float32", "float64"])
def test_bytes_of_every_dtype_come_back(live, dtype):
    stream = live.stream("copy")
    values = np.random.default_rng(1).integers(0, 2, (3, 5)).astype(dtype)
    array, other = live.array(128, (3, 5), dtype), live.array(4096, (3, 5), dtype)
    stream.upload(values, array)
    stream.copy(array, other)
    np.testing.assert_array_equal(fetched(stream, other), values)


def test_arrays_without_elements_cost_nothing(live):
    stream = live.stream("compute")
    none = live.array(0, (0, 3), np.float32)
    stream.upload(np.empty((0, 3), np.float32), none)
    stream.fill(none, 1)
    stream.copy(none, live.array(64, (0, 3), np.float32))
    stream.launch(add, (none, none), (none,), None, {})
    assert fetched(stream, none).shape == (0, 3)


def test_host_arrays_that_are_not_contiguous(live):
    stream = live.stream("copy")
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    array = live.array(0, (6, 4), np.float32)
    stream.upload(values.T, array)
    out = np.zeros((4, 6), np.float32)
    stream.download(array, out.T)
    stream.record().wait()
    np.testing.assert_array_equal(out, values)


def test_a_host_array_is_kept_until_its_bytes_have_left(live):
    stream, gate = live.stream("copy"), Gate(live)
    array = live.array(0, (1 << 16,), np.float32)
    stream.wait(gate.event)
    stream.upload(np.full(1 << 16, 7, np.float32), array)  # nobody else refers to it
    event = stream.record()
    rubbish = [np.full(1 << 16, i, np.float32) for i in range(8)]
    assert not event.done()
    gate.open()
    assert (fetched(stream, array) == 7).all()
    assert len(rubbish) == 8


def test_parts_share_the_bytes(live):
    stream = live.stream("compute")
    whole = live.array(256, (6, 8), np.float32)
    stream.upload(np.arange(48, dtype=np.float32).reshape(6, 8), whole)
    rows = whole.part(16, (2, 8))
    stream.run(ADD, "scale", (16,), rows, np.int64(16), np.float32(10))
    wanted = np.arange(48, dtype=np.float32).reshape(6, 8)
    wanted[2:4] *= 10
    np.testing.assert_array_equal(fetched(stream, whole), wanted)
    assert rows.offset == 256 + 64
    assert whole.reshape(48).shape == whole.reshape((48,)).shape == (48,)


def test_a_part_of_bytes_as_another_dtype(live):
    stream = live.stream("compute")
    workspace = live.array(64, (256,), np.uint8)
    floats = stream.part(stream.part(workspace, 64, (64,)), 4, (2, 2), np.float64)
    assert (floats.offset, floats.first, floats.nbytes) == (64 + 64 + 4 * 8, 20, 32)
    stream.fill(workspace, 0)
    stream.fill(floats, 2.5)
    wanted = np.zeros(32)
    wanted[12:16] = 2.5
    np.testing.assert_array_equal(fetched(stream, workspace.part(0, (32,), np.float64)), wanted)


def test_parts_stay_inside(live):
    array = live.array(0, (4, 4), np.float32)
    with pytest.raises(InternalError, match="from element 9"):
        array.part(9, (8,))
    with pytest.raises(InternalError, match="inside"):
        array.part(-1, (2,))
    with pytest.raises(InternalError, match="multiple of 4"):
        live.array(2, (4,), np.float32)
    with pytest.raises(InternalError, match="does not lie in the arena"):
        live.array((1 << 20) - 4, (2,), np.float32)


def test_copies_want_equal_specs(live):
    stream = live.stream("copy")
    with pytest.raises(InternalError, match=r"float64\[4\].*float32\[4\]"):
        stream.upload(np.zeros(4), live.array(0, (4,), np.float32))
    with pytest.raises(InternalError, match="16 bytes to 12"):
        stream.copy(live.array(0, (4,), np.float32), live.array(64, (3,), np.float32))


def test_a_queue_waits_for_the_event_of_another(live):
    first, second, gate = live.stream("copy"), live.stream("compute"), Gate(live)
    array, copied = live.array(0, (64,), np.float32), live.array(1024, (64,), np.float32)
    second.fill(array, 1)
    second.record().wait()
    first.wait(gate.event)
    first.upload(np.full(64, 5, np.float32), array)
    arrived = first.record()
    second.wait(arrived)
    second.copy(array, copied)
    done = second.record()
    assert not arrived.done()
    assert not done.done()
    gate.open()
    assert (fetched(second, copied) == 5).all()
    assert arrived.done()
    assert done.done()


def test_a_record_of_waits_alone_stands_for_them(live):
    stream, gate = live.stream("compute"), Gate(live)
    stream.wait(gate.event)
    event = stream.record()
    assert not event.done()
    gate.open()
    event.wait()
    assert event.done()


def test_long_chains_over_two_queues_end_with_the_values_of_a_loop(live):
    up, compute = live.stream("copy"), live.stream("compute")
    ring = [live.array(4096 * i, (256,), np.float32) for i in range(2)]
    total, out = live.array(65536, (256,), np.float32), np.zeros(256, np.float32)
    compute.fill(total, 0)
    compute.record()
    freed = [None, None]
    for turn in range(100):
        if freed[turn % 2] is not None:
            up.wait(freed[turn % 2])
        up.upload(np.full(256, turn, np.float32), ring[turn % 2])
        compute.wait(up.record())
        compute.launch(add, (total, ring[turn % 2]), (total,), None, {})
        freed[turn % 2] = compute.record()
    compute.download(total, out)
    compute.record().wait()
    assert (out == sum(range(100))).all()


def test_spans_lie_in_the_hosts_window_and_follow_each_other(live):
    stream = live.stream("compute")
    y = live.array(0, (64,), np.float32)
    stream.fill(y, 0)
    stream.run(ADD, "slow", (1,), y, np.int32(1))
    stream.record().wait()

    def ran():
        live.renew()
        rows = []
        for _ in range(20):
            before = perf_counter()
            stream.run(ADD, "slow", (1,), y, np.int32(200_000))
            stream.run(ADD, "slow", (1,), y, np.int32(200_000))
            event = stream.record()
            event.wait()
            after = perf_counter()
            rows.append((before, *event.span(), after))
        return rows

    def in_the_window(rows):
        assert all(before - SKEW <= start < finish <= after + SKEW for before, start, finish, after in rows)
        assert all(b[1] >= a[2] - SKEW for a, b in itertools.pairwise(rows))

    unspoilt(ran, in_the_window)


def test_a_span_covers_what_was_handed_over_since_the_record_before(live):
    stream = live.stream("compute")
    y = live.array(0, (64,), np.float32)
    stream.fill(y, 0)

    def ran():
        stream.run(ADD, "slow", (1,), y, np.int32(1_000_000))
        long = stream.record()
        stream.run(ADD, "slow", (1,), y, np.int32(1))
        short = stream.record()
        empty = stream.record()
        return long.span(), short.span(), empty.span()

    def in_their_order(found):
        (a, b), (c, d), (e, f) = found
        assert b - a > 10 * (d - c)
        assert b <= c + SKEW
        assert d <= e + SKEW
        assert e <= f

    unspoilt(ran, in_their_order)


def test_what_waits_starts_when_what_it_waited_for_has_ended(live, monkeypatch):
    """Whatever the driver says: NVIDIA's stamps the start of copies and markers when the device looks at them, which then wait."""
    from hetsched.executors.backends import _opencl_live

    stamp, early = _opencl_live._stamp, {_opencl_live._START: 10**9}  # ns
    monkeypatch.setattr(_opencl_live, "_stamp", lambda event, what: stamp(event, what) - early.get(what, 0))
    gate, up, compute = Gate(live), live.stream("copy"), live.stream("compute")
    x, y = live.array(0, (64,), np.float32), live.array(4096, (64,), np.float32)
    up.wait(gate.event)
    up.fill(x, 1)
    copied = up.record()
    compute.wait(copied)
    view = compute.record()
    compute.copy(x, y)
    behind = compute.record()
    gate.open()
    spans = [event.span() for event in (behind, copied, view)]  # in whatever order they are asked
    assert spans[1][1] <= spans[2][0] <= spans[2][1] <= spans[0][0] <= spans[0][1]
    assert compute.record().span()[0] >= spans[0][1]


def skew(stream, y, tries):
    """Between what the device's clock, put on the host's, can be off: (least, most) seconds, from commands that the host knows to lie in a window.

    Of a command that begins not before `before` and has ended at `after`, the start is off by start - before at most and by
    start - (after - length) at least; the narrowest of many windows counts, so a busy machine only needs more of them.
    """
    least, most = -np.inf, np.inf
    for _ in range(tries):
        before = perf_counter()
        stream.run(ADD, "slow", (1,), y, np.int32(1))
        event = stream.record()
        event.wait()
        after = perf_counter()
        start, finish = event.span()
        least, most = max(least, start - (after - (finish - start))), min(most, start - before)
        if least >= -50e-6 and most <= 50e-6:
            break
    return least, most


def test_the_devices_clock_is_at_most_50_us_off(live):
    stream = live.stream("compute")
    y = live.array(0, (64,), np.float32)
    stream.fill(y, 0)
    for _ in range(20):  # a busy machine can spoil a reading of the clock; one that is off spoils them all
        live.renew()
        live._clock_taken = perf_counter() + 60  # windows are compared by one reading
        least, most = skew(stream, y, 200)
        if -50e-6 <= least <= most + 10e-6 <= 60e-6:
            break
    live.renew()
    assert -50e-6 <= least <= most + 10e-6 <= 60e-6


def test_a_clock_that_is_off_is_seen_to_be(live):
    stream = live.stream("compute")
    y = live.array(0, (64,), np.float32)
    stream.fill(y, 0)
    for off in (1e-3, -1e-3):
        for _ in range(20):  # a busy machine can spoil a reading of the clock
            live.renew()
            live.clock_offset += off
            live._clock_taken = perf_counter() + 60  # not to be taken anew meanwhile
            least, most = skew(stream, y, 5)
            is_seen = least > 50e-6 or most > 50e-6 if off > 0 else least < -50e-6 or most < -50e-6
            if is_seen:
                break
        assert is_seen
    live.renew()


def test_the_clocks_offset_is_taken_anew(live):
    def ran():
        live.renew()
        taken = live.clock_offset
        live.clock_offset += 3.0
        live.renew()
        return abs(live.clock_offset - taken)

    def taken_anew(off):
        assert off < 1e-3

    unspoilt(ran, taken_anew)


def test_nobody_sees_a_reading_of_the_clock_that_is_not_the_best(live, monkeypatch):
    """Other threads read it while it is taken anew."""
    from hetsched.executors.backends import _opencl_live

    seen, stamp = [], _opencl_live._stamp
    monkeypatch.setattr(_opencl_live, "_CLOCK_WINDOW_NS", 0)
    monkeypatch.setattr(_opencl_live, "_stamp", lambda event, what: seen.append(live.clock_offset) or stamp(event, what))
    before = live.clock_offset
    live.renew()
    assert seen
    assert set(seen) == {before}


def test_on_done_calls_once_from_any_thread(live):
    stream, gate = live.stream("compute"), Gate(live)
    called = [threading.Event() for _ in range(3)]
    stream.wait(gate.event)
    for x in called[:2]:
        stream.fill(live.array(0, (4,), np.float32), 1)
        stream.record().on_done(x.set)
    assert not called[0].is_set()
    gate.open()
    assert called[0].wait(600)
    assert called[1].wait(600)
    event = stream.record()
    event.wait()
    event.on_done(called[2].set)
    assert called[2].is_set()


def test_a_program_that_does_not_build_shows_the_line(live):
    stream = live.stream("compute")
    source = "__kernel void f(OUT(float, x)) {\n    LET_OUT(float, x)\n    x[0] = undeclared;\n}\n"
    with pytest.raises(DeviceError) as caught:
        stream.run(source, "f", (1,), live.array(0, (1,), np.float32))
    lines = str(caught.value).split("\n")
    assert "does not build" in lines[0]
    assert lines[1].startswith("line 3, column 12: ")
    assert "'undeclared'" in lines[1]
    assert lines[2] == "        x[0] = undeclared;"
    assert lines[3].index("^") == lines[2].index("undeclared")


def test_launches_that_cannot_be_are_refused_by_name(live):
    x = live.array(0, (4,), np.float32)
    with pytest.raises(DeviceError, match=r"no kernel 'scle'; it has: .*scale"):
        live.stream("compute").run(ADD, "scle", (1,), x, np.int64(4), np.float32(1))
    with pytest.raises(DeviceError, match="'scale' has 4 parameters and got 3"):
        live.stream("compute").run(ADD, "scale", (1,), x, np.int64(4))
    with pytest.raises(DeviceError, match=r"'scale' over .*INVALID_ARG_SIZE"):
        live.stream("compute").run(ADD, "scale", (1,), x, np.int32(4), np.float32(1))
    with pytest.raises(DeviceError, match=r"NumPy number, got 1\.0"):
        live.stream("compute").run(ADD, "scale", (1,), x, np.int64(4), 1.0)
    stream = live.stream("compute")
    stream.run(ADD, "scale", (4,), x, np.int64(4), np.float32(1))
    with pytest.raises(DeviceError, match="'scale' over"):
        stream.run(ADD, "scale", (4,), x, np.int64(4))


def test_work_that_waits_for_what_has_failed_fails_and_says_so(live):
    stream, gate = live.stream("compute"), Gate(live)
    stream.wait(gate.event)
    stream.fill(live.array(0, (4,), np.float32), 1)
    event, told = stream.record(), threading.Event()
    event.on_done(told.set)
    gate.user.set_status(-1)
    assert told.wait(600)
    with pytest.raises(DeviceError, match="opencl:0"):
        event.span()


def test_an_arena_that_cannot_be_had_names_the_bytes():
    with pytest.raises(OutOfMemoryError, match=str(1 << 50)):
        opened(1 << 50)


def test_a_device_that_is_not_here():
    with pytest.raises(PlacementError, match="no OpenCL device 'opencl:99'"):
        opencl.open(Device("opencl:99", "opencl"), 64)


def test_close_and_open_again_leaks_nothing():
    process, nbytes = psutil.Process(), 16 << 20
    told = []

    def once():
        live = opened(nbytes)
        stream = live.stream("compute")
        whole = live.array(0, (nbytes // 4,), np.float32)
        stream.fill(whole, 1)
        stream.launch(add, (whole.part(0, (8,)),) * 2, (whole.part(8, (8,)),), None, {})
        event = stream.record()
        event.on_done(lambda: told.append(1))
        live.close()

    for _ in range(5):
        once()
    before, held = running_threads(), process.memory_info().rss
    for _ in range(50):
        once()
    assert len(told) == 55
    assert running_threads() <= before
    assert process.memory_info().rss - held < 16 * nbytes


@pytest.mark.parametrize(
    ("sizes", "local"),
    [((10,), (1,)), ((4096,), (1,)), ((8192,), (64,)), ((8200,), (4,)), ((10001,), (1,)), ((128, 128), (64, 1)), ((3, 4000), (1, 1))],
)
def test_local_sizes_come_from_a_short_list(sizes, local):
    chosen = group_size(sizes)
    assert chosen == local
    assert all(g % n == 0 for g, n in zip(sizes, chosen, strict=True))
