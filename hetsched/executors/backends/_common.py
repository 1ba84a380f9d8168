"""What backends share: speeds kept and measured, and what devices with memory of their own need."""

from __future__ import annotations

import json
import math
import os
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from hetsched.errors import InternalError

# Compute streams of a device, where the environment does not say: two kernels that each fill the device gain nothing by running side by side, a plan
# counts on full speed for both, and what lies on one stream can be handed over as one.
_STREAMS, _MOST_STREAMS = 1, 16
_MOST_EXPECTED = 32  # downloads on their way before those that have landed are forgotten
_PART_NBYTES = 512 << 10  # that a thread copies at least: 50 us, as long as handing it over may take


def streams(kind: str) -> tuple[int, list[str]]:
    """Compute streams of each device of a kind (`HETSCHED_CUDA_STREAMS`, ...), and what is wrong with the number that the environment asks for."""
    variable = f"HETSCHED_{kind.upper()}_STREAMS"
    asked = os.environ.get(variable, "").strip()
    if not asked:
        return _STREAMS, []
    if asked.isdecimal() and 1 <= int(asked) <= _MOST_STREAMS:
        return int(asked), []
    return _STREAMS, [f"{variable} is {asked!r}; give a number from 1 to {_MOST_STREAMS}. Devices have {_STREAMS} compute stream here"]


def kept_speeds(path: Path, needed: Sequence[str]) -> dict[str, float] | None:
    """What was measured of a device once, from its file; None unless every figure that is `needed` is there, above 0."""
    try:
        known = json.loads(path.read_text())
        if all(isinstance(known[k], float) and known[k] > 0 for k in needed):
            return {k: float(v) for k, v in known.items()}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def least_seconds(action: Callable[[], object], stream: Any, times: int) -> float:
    """Seconds from handing `action` to a stream until the host knows that it is done: the least of so many times, after a first one."""
    best = math.inf
    for n in range(1 + times):
        start = perf_counter()
        action()
        stream.record().wait()
        if n:
            best = min(best, perf_counter() - start)
    return max(best, 1e-9)


def is_on(name: str) -> bool:
    """False where the environment turns off what `name` stands for."""
    return os.environ.get(name, "").strip().lower() not in ("0", "false", "no", "off")


def row_seconds(action: Callable[[], object], stream: Any, times: int, tries: int = 3) -> float:
    """Seconds of `action` where so many stand in a row, by the device's own clock: the least of several tries after a first one. Nobody's waiting is
    in it, as it is in `least_seconds`: on a GPU that takes as long as multiplying matrices of 1000 rows."""
    action()
    stream.record().wait()
    best = math.inf
    for _ in range(tries):
        for _ in range(times):
            action()
        start, finish = stream.record().span()
        best = min(best, finish - start)
    return max(best / times, 1e-9)


def lone_seconds(action: Callable[[], object], stream: Any, times: int) -> float:
    """Seconds of `action` by itself as a run would measure it, from its start on the device to its end: the median of so many, after a first one."""
    found: list[float] = []
    for _ in range(1 + times):
        action()
        start, finish = stream.record().span()
        found.append(finish - start)
    return max(median(found[1:]), 1e-9)


def alike(a: Any, b: Any) -> bool:
    """True if there are bytes to copy; raises where two arrays are not of one spec."""
    if tuple(a.shape) != tuple(b.shape) or a.dtype != b.dtype:
        raise InternalError(f"cannot copy {a.dtype}{list(a.shape)} to {b.dtype}{list(b.shape)}")
    return bool(a.nbytes)


def inside(offset: int, shape: tuple[int, ...], dtype: Any, arena_nbytes: int) -> np.dtype[Any]:
    """The dtype of an array that begins `offset` bytes into an arena; raises `InternalError` unless it lies in it, at a multiple of its item."""
    kind: np.dtype[Any] = np.dtype(dtype)
    nbytes = math.prod(shape) * kind.itemsize
    if offset % kind.itemsize:
        raise InternalError(f"an array of {kind} cannot begin {offset} bytes into an arena: no multiple of {kind.itemsize}")
    if offset < 0 or offset + nbytes > arena_nbytes:
        raise InternalError(f"{kind.name}{list(shape)} at byte {offset} does not lie in the arena of {arena_nbytes} bytes")
    return kind


class Landing:
    """Bytes on their way to the host: pinned memory that is copied to `target` once, when `wait` returns. release: what is called after it.

    parts: (wait, first byte, behind the last) of what comes one after the other; `land` waits for each of them itself. Both arrays are contiguous.
    """

    def __init__(
        self, target: Any, pinned: Any, wait: Callable[[], object], release: Callable[[], object] | None = None,
        copy: Callable[[Any, Any], object] = np.copyto, parts: Sequence[tuple[Callable[[], object], int, int]] = (),
    ) -> None:  # fmt: skip
        self.nbytes = int(target.nbytes)
        self.wait = wait
        self._range: tuple[int, int] | None = None
        self.parts = parts
        self._target, self._pinned, self._release, self._copy = target, pinned, release, copy
        self._lock = threading.Lock()

    @property
    def has_landed(self) -> bool:
        """True once the bytes are where they belong."""
        return self._pinned is None

    @property
    def staged_nbytes(self) -> int:
        """What is to be copied."""
        return self.nbytes

    def meets(self, start: int, end: int) -> bool:
        """True if it is still to put bytes between two addresses of the host."""
        if self._range is None:
            target = self._target
            if target is None:
                return False
            self._range = range_of(target)
        return not self.has_landed and self._range[0] < end and start < self._range[1]

    def land(self) -> None:
        """Put the bytes to where they belong; they have reached the host."""
        with self._lock:
            if self._pinned is not None:
                if self.parts:
                    to, of = self._target.reshape(-1).view(np.uint8), self._pinned.reshape(-1).view(np.uint8)
                    for wait, first, last in self.parts:
                        wait()
                        self._copy(to[first:last], of[first:last])
                    self.parts = ()
                else:
                    self._copy(self._target, self._pinned)
                self._target = self._pinned = None
                self.wait = _nothing
                if self._release is not None:
                    self._release()


class Arrival:
    """Bytes that a device itself puts to where they belong on the host: they are there when `wait` returns."""

    staged_nbytes = 0
    parts: Sequence[tuple[Callable[[], object], int, int]] = ()

    def __init__(self, target: Any, wait: Callable[[], object]) -> None:
        self._range = range_of(target)
        self.wait = wait
        self.has_landed = False

    def meets(self, start: int, end: int) -> bool:
        """See `Landing`."""
        return not self.has_landed and self._range[0] < end and start < self._range[1]

    def land(self) -> None:
        """They have reached the host."""
        self.has_landed, self.wait = True, _nothing


def _nothing() -> None:
    pass


class Copiers:
    """Threads that copy bytes of the host together: one alone moves about 10 GB/s on a server, a fifth of what its link to a device takes.

    workers: how many help whoever copies; 0: nobody. They start with the first copy that is worth it.
    """

    def __init__(self, name: str, workers: int) -> None:
        self._name, self._workers = name, workers
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def copy(self, dst: Any, src: Any) -> None:
        """Copy an array to another one of its shape and dtype; it is done when this returns."""
        if src.nbytes < 2 * _PART_NBYTES or not (dst.flags.c_contiguous and src.flags.c_contiguous):
            np.copyto(dst, src)
            return
        to, of = dst.reshape(-1), src.reshape(-1)
        with self._lock:
            size = -(-of.size // min(self._workers + 1, src.nbytes // _PART_NBYTES))
            if self._workers and self._pool is None:
                self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix=self._name)
            rest = range(size, of.size, size)
            helped = [self._pool.submit(np.copyto, to[i : i + size], of[i : i + size]) for i in rest] if self._pool is not None else []
        np.copyto(to[:size], of[:size])
        for each in helped:
            each.result()

    def close(self) -> None:
        """End the threads; whoever still copies does it alone."""
        with self._lock:
            pool, self._pool, self._workers = self._pool, None, 0
        if pool is not None:
            pool.shutdown()


class Landings:
    """What is on its way to the host from one device. An upload of such bytes, or a second download to their place, has to wait for them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._expected: dict[int, Landing | Arrival] = {}
        self._most = _MOST_EXPECTED

    @property
    def is_any(self) -> bool:
        """False where nothing is on its way."""
        return bool(self._expected)

    def expect(self, landing: Landing | Arrival) -> None:
        """Note what a download is to bring."""
        with self._lock:
            self._expected[id(landing)] = landing
            if len(self._expected) > self._most:
                self._expected = {key: x for key, x in self._expected.items() if not x.has_landed}
                self._most = max(_MOST_EXPECTED, 2 * len(self._expected))

    def forget(self, landings: Iterable[Landing | Arrival]) -> None:
        """They have landed."""
        with self._lock:
            for landing in landings:
                self._expected.pop(id(landing), None)

    def settle(self, host: Any, by_device: bool = False) -> None:
        """Wait for downloads that are to land in the bytes of a host array, and forget them.

        by_device: those bytes are read or written by the device itself, and not before what it puts there itself is there.
        """
        if not self._expected:
            return
        start, end = range_of(host)
        with self._lock:
            waiting = [x for x in self._expected.values() if x.meets(start, end) and not (by_device and isinstance(x, Arrival))]
        for landing in waiting:
            landing.wait()
            landing.land()
        if waiting:
            self.forget(waiting)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._expected.clear()


def range_of(array: Any) -> tuple[int, int]:
    """Addresses from the first byte of a host array to behind its last."""
    if array.flags.c_contiguous:
        start = int(array.__array_interface__["data"][0])
        return start, start + int(array.nbytes)
    low, high = np.lib.array_utils.byte_bounds(array) if hasattr(np.lib, "array_utils") else np.byte_bounds(array)  # type: ignore[attr-defined]
    return int(low), int(high)


class Watcher:
    """A thread that waits for one thing after the other, in the order given, and calls back after each. It starts at the first."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._watched: queue.SimpleQueue[tuple[Callable[[], object], Callable[[], object]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def watch(self, wait: Callable[[], object], callback: Callable[[], object]) -> None:
        """Call `wait`, whose errors are told elsewhere, and then `callback`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread.start()
        self._watched.put((wait, callback))

    def _serve(self) -> None:
        while (message := self._watched.get()) is not None:
            wait, callback = message
            with suppress(Exception):
                wait()
            callback()
            del wait, callback, message

    def close(self) -> None:
        """End the thread when it has called back for everything."""
        if self._thread is not None:
            self._watched.put(None)
            self._thread.join()
            self._thread = None
