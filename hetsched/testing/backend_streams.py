"""The checks of `check_backend` that drive an opened device themselves, stream by stream."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hetsched.errors import DeviceGoneError, OutOfMemoryError
from hetsched.graph.op import Kernel
from hetsched.graph.ops import find
from hetsched.graph.spec import Spec
from hetsched.testing.backend import Bench, Check

Bytes: TypeAlias = NDArray[np.uint8]
ARENA = 1 << 20
DTYPES = ("bool", "int8", "uint8", "int16", "int32", "int64", "float16", "float32", "float64")
PATIENCE_SECONDS = 300.0
_SLOW_SECONDS = 2e-3


class NeverDoneError(Exception):
    """Work that has been handed over does not end."""


def ended(event: Any) -> Any:
    """The event, waited for with patience: a backend that loses work must not hang the check."""
    told = threading.Event()
    event.on_done(told.set)
    if not told.wait(PATIENCE_SECONDS):
        raise NeverDoneError(f"an event was not reached within {PATIENCE_SECONDS:g} s, or its on_done was not called")
    event.wait()
    return event


@contextmanager
def opened(bench: Bench, nbytes: int = ARENA) -> Iterator[Any]:
    """The device with an arena of `nbytes`."""
    live = bench.backend.open(bench.device, nbytes)
    try:
        yield live
    finally:
        live.close()


class Mirror:
    """An arena and what should be in it: every command is given to the stream and done on the host as well."""

    def __init__(self, bench: Bench, live: Any, nbytes: int = ARENA) -> None:
        self.bench, self.live = bench, live
        self.stream = live.stream("compute")
        self.host: Bytes = np.zeros(nbytes, np.uint8)
        self.whole = live.array(0, (nbytes,), np.uint8)
        self.upload(np.full(nbytes, 0xA5, np.uint8), 0)

    def view(self, offset: int, shape: tuple[int, ...], dtype: Any) -> Any:
        """What should be in the array at `offset`."""
        spec = Spec(shape, dtype)
        return self.host[offset : offset + spec.nbytes].view(spec.dtype).reshape(shape)

    def upload(self, values: Any, offset: int) -> Any:
        """From the host to `offset`."""
        array = self.live.array(offset, values.shape, values.dtype)
        self.stream.upload(values, array)
        self.view(offset, values.shape, values.dtype)[...] = values
        return array

    def fetch(self, array: Any) -> Any:
        """The values of an array, brought to the host."""
        out = np.empty(array.shape, array.dtype)
        self.stream.download(array, out)
        ended(self.stream.record())
        return out

    def problem(self, what: str) -> Iterator[str]:
        """Where the arena is not what it should be after `what`."""
        seen = self.fetch(self.whole)
        wrong = np.flatnonzero(seen != self.host)
        if len(wrong):
            yield f"after {what} the arena is wrong in {len(wrong)} bytes, first at {wrong[0]}: {seen[wrong[0]]} instead of {self.host[wrong[0]]}"
            self.host[:] = seen


def kernel_of(bench: Bench, name: str) -> tuple[Kernel, Mapping[str, Any]]:
    """The kernel of an op of arithmetic that the device runs, and its attributes."""
    op = find(name)
    kernel = op.kernel_for(bench.device, [Spec((4,), np.float32)] * len(op.inputs))
    if kernel is None:
        raise NeverDoneError(f"the device has no kernel for {name}, which the check uses; it speaks {', '.join(bench.device.languages)}")
    return kernel, {"factor": 0.5} if name == "tensor.scale" else {}


# Copies and launches ------------------------------------------------------------------------------------------------------------


def copies(bench: Bench) -> Iterator[str]:
    """See `check_backend`."""
    rng = np.random.default_rng(bench.seed)
    with opened(bench) as live:
        mirror = Mirror(bench, live)
        stream = mirror.stream
        yield from mirror.problem("an upload of the whole arena")
        at = 64
        for dtype in DTYPES:
            for shape in ((3, 5), (1,), (0, 3), (7, 11, 2), ()):
                values = np.asarray(rng.integers(0, 2, shape), dtype)
                array = mirror.upload(values, at)
                if not np.array_equal(mirror.fetch(array), values):
                    yield f"{dtype}{list(shape)} at byte {at} comes back other than it went"
                at += 64 * (1 + values.nbytes // 64) + 64 * int(rng.integers(1, 4))
        yield from mirror.problem("uploads of every dtype")
        for _ in range(20):
            n = int(rng.integers(1, 5000))
            src, dst = (64 * int(rng.integers(0, ARENA // 128 - 100)) + half for half in (0, ARENA // 2))
            stream.copy(live.array(src, (n,), np.uint8), live.array(dst, (n,), np.uint8))
            mirror.host[dst : dst + n] = mirror.host[src : src + n]
        yield from mirror.problem("copies inside the arena")
        values = np.arange(48, dtype=np.float32).reshape(6, 8)
        whole = mirror.upload(values, 4096)
        part = whole.part(16, (2, 8))
        stream.upload(np.full((2, 8), -1, np.float32), part)
        mirror.view(4096, (6, 8), np.float32)[2:4] = -1
        yield from mirror.problem("an upload to the part of an array")
        if not np.array_equal(mirror.fetch(whole.part(8, (3, 8))), mirror.view(4096, (6, 8), np.float32)[1:4]):
            yield "a download of the part of an array gives other elements"
        turned = np.arange(24, dtype=np.float32).reshape(4, 6)
        array = live.array(8192, (6, 4), np.float32)
        stream.upload(turned.T, array)
        mirror.view(8192, (6, 4), np.float32)[...] = turned.T
        yield from mirror.problem("an upload from a transposed host array")
        out = np.zeros((4, 6), np.float32)
        stream.download(array, out.T)
        ended(stream.record())
        if not np.array_equal(out, turned):
            yield "a download into a transposed host array gives other elements"


def launches(bench: Bench) -> Iterator[str]:
    """See `check_backend`."""
    rng = np.random.default_rng(bench.seed)
    add, attributes = kernel_of(bench, "tensor.add")
    with opened(bench) as live:
        mirror = Mirror(bench, live)
        for shape in ((1,), (7, 11), (0, 4), (33, 65), (5000,)):
            a, b = rng.normal(size=(2, *shape)).astype(np.float32)
            places = [64 * int(p) for p in rng.permutation(3) * 1000 + rng.integers(1, 600, 3)]
            x, y = mirror.upload(a, places[0]), mirror.upload(b, places[1])
            z = live.array(places[2], shape, np.float32)
            mirror.stream.launch(add, [x, y], [z], None, attributes)
            mirror.view(places[2], shape, np.float32)[...] = a + b
            yield from mirror.problem(f"a launch of tensor.add on float32{list(shape)} at bytes {places}")
        whole = mirror.upload(np.arange(64, dtype=np.float32).reshape(8, 8), 640)
        mirror.stream.launch(add, [whole.part(0, (2, 8)), whole.part(8, (2, 8))], [whole.part(40, (2, 8))], None, attributes)
        host = mirror.view(640, (8, 8), np.float32)
        host[5:7] = host[0:2] + host[1:3]
        yield from mirror.problem("a launch on parts of an array")


# Order ------------------------------------------------------------------------------------------------------------------------------


def slow_work(live: Any, stream: Any) -> Callable[[Any], None]:
    """A function that keeps a stream busy for about 2 ms, with copies in the last 256 KiB of an arena of `ARENA` bytes."""
    if hasattr(stream, "expect"):  # what is modelled can be told

        def expected(stream: Any) -> None:
            stream.expect(_SLOW_SECONDS)
            stream.copy(live.array(ARENA - 128, (64,), np.uint8), live.array(ARENA - 64, (64,), np.uint8))

        return expected
    half = 1 << 17
    src, dst = live.array(ARENA - 2 * half, (half,), np.uint8), live.array(ARENA - half, (half,), np.uint8)

    def copy(stream: Any, times: int) -> None:
        for _ in range(times):
            stream.copy(src, dst)

    def measured(times: int) -> float:
        # By the device's own timer: on a busy host it takes long to hear of the end.
        stream.record()
        copy(stream, times)
        start, finish = stream.record().span()
        return float(finish - start)

    measured(8)
    times = 16
    while min(measured(times) for _ in range(3)) < _SLOW_SECONDS and times < 1 << 14:
        times *= 2
    return lambda stream: copy(stream, times)


def order(bench: Bench) -> Iterator[str]:
    """See `check_backend`."""
    add, attributes = kernel_of(bench, "tensor.add")
    n = 64
    with opened(bench) as live:
        up, compute, down = live.stream("copy"), live.stream("compute"), live.stream("copy")
        slow = slow_work(live, up)
        x, one = live.array(0, (n,), np.float32), live.array(1024, (n,), np.float32)
        compute.upload(np.zeros(n, np.float32), x)
        compute.upload(np.ones(n, np.float32), one)
        for _ in range(200):
            compute.launch(add, [x, one], [x], None, attributes)
        out = np.empty(n, np.float32)
        compute.download(x, out)
        ended(compute.record())
        if not (out == 200).all():
            yield f"200 launches of x + 1 in one stream give {out[0]:g}: commands of a stream are not done in order"
        for turn in range(8):  # what one stream makes, slowly, another reads
            slow(up)
            up.upload(np.full(n, turn, np.float32), x)
            compute.wait(up.record())
            compute.launch(add, [x, one], [one], None, attributes)
            compute.copy(x, one)
            down.wait(compute.record())
            down.download(one, out)
            event = down.record()
            ended(event)
            if not (out == turn).all():
                yield f"turn {turn}: a stream that waits for the event of another read what was there before it ({out[0]:g})"
                break
        yield from _ring(live, up, compute, down, slow, add, attributes)


def _ring(live: Any, up: Any, compute: Any, down: Any, slow: Callable[[Any], None], add: Kernel, attributes: Mapping[str, Any]) -> Iterator[str]:
    """Two slots, used in turn by three streams: what writes a slot waits for its last reader. The readers are the slow ones."""
    n, turns = 256, 12
    slots = [live.array(8192 * (1 + i), (n,), np.float32) for i in range(2)]
    results = [live.array(65536 + 8192 * i, (n,), np.float32) for i in range(2)]
    outs = np.empty((turns, n), np.float32)
    read: list[Any] = [None] * turns
    left: list[Any] = [None] * turns
    for turn in range(turns):
        if turn >= 2:
            up.wait(read[turn - 2])
        up.upload(np.full(n, turn, np.float32), slots[turn % 2])
        compute.wait(up.record())
        if turn >= 2:
            compute.wait(left[turn - 2])
        slow(compute)
        compute.launch(add, [slots[turn % 2], slots[turn % 2]], [results[turn % 2]], None, attributes)
        read[turn] = compute.record()
        down.wait(read[turn])
        slow(down)
        down.download(results[turn % 2], outs[turn])
        left[turn] = down.record()
    for event in left:
        ended(event)
    wrong = [turn for turn in range(turns) if not (outs[turn] == 2 * turn).all()]
    if wrong:
        yield f"a slot was written while a stream that it waits for had not read it: turns {wrong} of {turns} are wrong"


def events(bench: Bench) -> Iterator[str]:
    """See `check_backend`."""
    with opened(bench) as live:
        stream, other = live.stream("compute"), live.stream("copy")
        slow = slow_work(live, stream)
        told: list[int] = []
        called = threading.Semaphore(0)
        many = []

        def tell(i: int) -> None:
            told.append(i)
            called.release()

        for i in range(32):
            stream.upload(np.full(16, i, np.float32), live.array(64 * i, (16,), np.float32))
            event = stream.record()
            event.on_done(partial(tell, i))
            many.append(event)
        for event in many:
            ended(event)
        # That an event is reached does not say that those whom it is to tell have been told.
        while len(told) < 32 and called.acquire(timeout=PATIENCE_SECONDS):
            pass
        ended(stream.record())
        if sorted(told) != list(range(32)):
            yield f"on_done of 32 events was called {len(told)} times, for {len(set(told))} of them"
        late = threading.Event()
        many[0].on_done(late.set)
        if not late.wait(PATIENCE_SECONDS):
            yield "on_done of an event that has been reached does not call back"
        empty = ended(stream.record())
        if not empty.span()[0] <= empty.span()[1]:
            yield "the span of a record with nothing before it ends before it starts"
        x = live.array(0, (1 << 14,), np.float32)
        out = np.empty(1 << 14, np.float32)
        for turn in range(8):  # an event that comes too early shows what was there before
            slow(stream)
            stream.upload(np.full(1 << 14, turn, np.float32), x)
            stream.download(x, out)
            stream.record().wait()
            if not (out == turn).all():
                yield "an event was reached before the work in front of it was done"
                break
        slow(stream)
        stream.upload(np.full(1 << 14, 7, np.float32), x)  # nobody else refers to it
        event = stream.record()
        rubbish = [np.full(1 << 14, i, np.float32) for i in range(8)]
        gc.collect()
        other.wait(event)
        other.download(x, out)
        ended(other.record())
        if not (out == 7).all():
            yield f"a host array was not kept until its bytes had left ({len(rubbish)} others took its place)"


# Clocks -----------------------------------------------------------------------------------------------------------------------------


def clocks(bench: Bench) -> Iterator[str]:
    """Spans on the host's clock.

    A short command is handed over and waited for; its span must lie between the two moments. How far it lies outside is a lower bound of the skew,
    and the tighter the window, the better a bound. Of a group of tries the largest counts, of several groups, between which the device may take its
    clock's offset anew, the smallest: a busy machine can spoil one reading of a clock, but not all of them.
    """
    with opened(bench) as live:
        stream = live.stream("compute")
        slow = slow_work(live, stream)
        x = live.array(0, (16,), np.float32)
        values = np.ones(16, np.float32)
        renew: Callable[[], None] | None = getattr(live, "renew", None)
        groups: list[float] = []
        for _ in range(5):
            if renew is not None:
                renew()
            outside = 0.0
            for _ in range(40):
                before = perf_counter()
                stream.upload(values, x)
                event = stream.record()
                event.wait()
                after = perf_counter()
                start, finish = event.span()
                if not start <= finish:
                    yield f"a span starts at {start:.9f} s and finishes at {finish:.9f} s"
                    return
                outside = max(outside, before - start, finish - after)
            groups.append(outside)
        skew = bench.figures["skew_seconds"] = min(groups)
        if skew > bench.skew_seconds:
            yield f"the clock is off by at least {skew * 1e6:.0f} us; {bench.skew_seconds * 1e6:.0f} us are allowed"
        # A reading of the clock that a busy machine has spoilt tears spans apart or together; not every time.
        found: list[str] = []
        for _ in range(4):
            found = list(_spans(bench, stream, slow, lambda: stream.upload(values, x)))
            if not found:
                break
        yield from found


def _spans(bench: Bench, stream: Any, slow: Callable[[Any], None], short_work: Callable[[], None]) -> Iterator[str]:
    """Long and short spans in turn: each covers what was handed over since the record before, and they do not overlap."""
    last = -1.0
    for turn in range(10):
        slow(stream)
        event = ended(stream.record())
        short_work()
        short = ended(stream.record())
        (a, b), (c, d) = event.span(), short.span()
        if max(last - a, b - c) > bench.skew_seconds:
            yield f"turn {turn}: spans of one stream overlap: ({last:.9f}) {a:.9f}-{b:.9f} and {c:.9f}-{d:.9f} s"
            return
        if b - a < _SLOW_SECONDS / 8:
            yield f"a span of {b - a:.6f} s does not cover work of about {_SLOW_SECONDS} s that was handed over since the record before"
            return
        last = d


# Errors -----------------------------------------------------------------------------------------------------------------------------


def _raises(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, attributes: Mapping[str, Any]) -> None:
    raise FloatingPointError("this kernel is broken on purpose")


def errors(bench: Bench) -> Iterator[str]:
    """See `check_backend`."""
    try:
        live = bench.backend.open(bench.device, 1 << 50)
    except OutOfMemoryError as error:
        if str(1 << 50) not in str(error):
            yield f"the error for an arena that cannot be had does not name its {1 << 50} bytes: {error}"
    else:
        live.close()
        yield f"an arena of {1 << 50} bytes is granted"
    with opened(bench, 1 << 16) as live:
        stream = live.stream("compute")
        x = live.array(0, (16,), np.float32)
        stream.upload(np.ones(16, np.float32), x)
        stream.record()
        refused: tuple[tuple[str, Callable[[], object]], ...] = (
            ("an array that ends behind the arena", lambda: live.array((1 << 16) - 32, (16,), np.float32)),
            ("an array that begins before the arena", lambda: live.array(-64, (16,), np.float32)),
            ("a part that ends behind its array", lambda: x.part(8, (16,))),
            ("an upload of another shape", lambda: stream.upload(np.ones(1, np.float32), x)),
            ("an upload of another dtype", lambda: stream.upload(np.ones(16), x)),
            ("a download of another shape", lambda: stream.download(x, np.empty((2, 16), np.float32))),
            ("a copy between arrays of unequal sizes", lambda: stream.copy(x, live.array(4096, (1,), np.float32))),
        )
        for what, action in refused:
            try:
                action()
                ended(stream.record())
            except NeverDoneError:
                raise
            except Exception:
                continue
            yield f"{what} is not refused"
        event = None
        try:
            stream.launch(_raises, [x], [x], None, {})
            event = stream.record()
            told = threading.Event()
            event.on_done(told.set)
            if not told.wait(PATIENCE_SECONDS):
                yield "on_done is not called where the work before it failed"
            event.span()
        except FloatingPointError:
            pass
        except Exception as error:
            if "broken on purpose" not in str(error):
                yield f"a kernel's error is replaced by {type(error).__name__}: {error}"
        else:
            yield "the error of a kernel is lost: neither launch nor the event behind it tells"
        for after in (stream, live.stream("compute")):
            out = np.zeros(16, np.float32)
            after.upload(np.full(16, 3, np.float32), x)
            after.download(x, out)
            ended(after.record())
            if not (out == 3).all():
                yield "after an error the device does not work on"


def gone(bench: Bench) -> Iterator[str]:
    """See `check_backend`."""
    live = bench.backend.open(bench.device, 1 << 16)
    lose: Callable[[], None] | None = getattr(live, "lose", None)
    if lose is None:
        live.close()
        return
    stream, other = live.stream("compute"), live.stream("copy")
    x = live.array(0, (16,), np.float32)
    stream.upload(np.ones(16, np.float32), x)
    ended(stream.record())
    lose()
    for one in (stream, other):
        for _ in range(2):  # it does not come back
            try:
                one.upload(np.ones(16, np.float32), x)
                event = one.record()
                told = threading.Event()
                event.on_done(told.set)
                if not told.wait(PATIENCE_SECONDS):
                    yield "work on a device that is gone never ends"
                    return
                event.span()
            except DeviceGoneError as error:
                if bench.device.id not in str(error):
                    yield f"the error does not name the device that is gone: {error}"
            except Exception as error:
                yield f"work on a device that is gone ends with {type(error).__name__}, not DeviceGoneError: {error}"
            else:
                yield "work on a device that is gone seems to be done"
    live.close()


def reopen(bench: Bench) -> Iterator[str]:
    """See `check_backend`."""
    for turn in range(20):
        with opened(bench, 1 << 16) as live:
            stream = live.stream("compute" if turn % 2 else "copy")
            x, out = live.array(0, (256,), np.float32), np.empty(256, np.float32)
            stream.upload(np.full(256, turn, np.float32), x)
            stream.download(x, out)
            ended(stream.record())
            if not (out == turn).all():
                yield f"opened for the {turn + 1}th time the device gives wrong values"
                return
            stream.upload(np.full(256, -1, np.float32), x)  # closing waits for it
    with opened(bench, 1 << 16) as first, opened(bench, 1 << 16) as second:
        out = np.empty(256, np.float32)
        streams = [live.stream("compute") for live in (first, second)]
        for value, live, stream in zip((1, 2), (first, second), streams, strict=True):
            stream.upload(np.full(256, value, np.float32), live.array(0, (256,), np.float32))
            ended(stream.record())
        streams[0].download(first.array(0, (256,), np.float32), out)
        ended(streams[0].record())
        if not (out == 1).all():
            yield "two openings of the device share their bytes"
        streams[1].copy(first.array(0, (256,), np.float32), second.array(4096, (256,), np.float32))
        streams[1].download(second.array(4096, (256,), np.float32), out)
        ended(streams[1].record())
        if not (out == 1).all():
            yield "a copy from another opening of the device brings wrong values"


def _with_streams(check: Check) -> Check:
    def run(bench: Bench) -> Iterator[str]:
        if bench.has_streams:
            try:
                yield from check(bench)
            except NeverDoneError as error:
                yield str(error)

    return run


CHECKS: dict[str, Check] = {
    name: _with_streams(check)
    for name, check in {
        "copies": copies, "launches": launches, "order": order, "events": events, "clocks": clocks, "errors": errors, "gone": gone, "reopen": reopen,
    }.items()
}  # fmt: skip
