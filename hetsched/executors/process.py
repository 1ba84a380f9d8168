"""What a run changes in the process, and gives back: BLAS threads and the interpreter's switch interval.

BLAS runs one thread while hetsched fills the cores with tasks; only a wide launch raises the limit. Getting the GIL back from pure Python
takes 5 ms at the default switch interval and 0.3 ms at 1e-4. Runs may overlap (several threads, each with a run): the first one in sets,
the last one out restores.

Ctrl-C may come at any call, and must leave nothing changed. So each change is written down before it is made, who takes part is a member of a set
rather than a count, and giving back may be begun again: where it was interrupted, it is.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, TypeAlias

from hetsched.executors.cores import asks as core_asks

SWITCH_SECONDS = 1e-4

_lock = threading.Lock()
_quick: set[object] = set()  # those that need threads to be switched quickly
_interval: list[float] = []  # the switch interval before the first of them
_limited: set[object] = set()  # those that need BLAS to run one thread
_before: list[int] = []  # what each BLAS library was set to before the first of them


# Products of so many multiplications OpenBLAS does on one thread, whatever its limit: gemv below 2304 * 4 (interface/gemv.c), gemm up to 65536 * 4
# (interface/gemm.c: SMP_THRESHOLD_MIN * GEMM_MULTITHREAD_THRESHOLD).
GEMV_ALONE, GEMM_ALONE = 2304 * 4 - 1, 65536 * 4


class Library(NamedTuple):
    """A BLAS library. threads: how many it may run. limit: says how many."""

    threads: Callable[[], int]
    limit: Callable[[int], object]


_found: tuple[Library, ...] | None = None
_is_openblas = False


def _libraries() -> tuple[Library, ...]:
    global _found, _is_openblas
    if _found is None:
        from threadpoolctl import ThreadpoolController

        libraries = [library for library in ThreadpoolController().lib_controllers if library.user_api == "blas"]
        _is_openblas = all(library.internal_api == "openblas" for library in libraries)
        _found = tuple(_switches(library) for library in libraries)
    return _found


def _switches(library: Any) -> Library:
    """The library's own functions where they can be had: a call of threadpoolctl's takes longer than a small product.

    Since threadpoolctl 3.7 only the thread that set OpenBLAS's limit first may; others are ignored without a word. But a wide launch runs on
    whichever thread is free, and the last run out may be another thread's than the first one in.
    """
    find = getattr(library, "_get_symbol", None)
    if find is not None and library.internal_api == "openblas" and getattr(library, "threading_layer", "") == "pthreads":
        count = find("openblas_get_num_threads")
        # The former is of the whole process all the same, where threads are pthreads.
        limit = find("openblas_set_num_threads_local") or find("openblas_set_num_threads")
        if count is not None and limit is not None:
            return Library(count, limit)

    def force(count: int) -> None:
        if library.get_num_threads() != count:
            clear = getattr(library, "clear_controlling_thread", None)
            if clear is not None:
                clear(force=True)
            library.set_num_threads(count)

    return Library(library.get_num_threads, force)


def is_alone(m: int, k: int, n: int) -> bool:
    """True if the product of [m, k] and [k, n] runs on one thread even where BLAS may use more."""
    _libraries()
    return _is_openblas and m * k * n <= (GEMV_ALONE if 1 in (m, n) else GEMM_ALONE)


def limit_blas(holder: object) -> None:
    """Until `free_blas(holder)` BLAS runs one thread. 0.5 us, and as much again to free it (benchmarks/latency.py counts on it)."""
    libraries = _found or _libraries()
    with _lock:
        _limit(holder, libraries)


def _limit(holder: object, libraries: tuple[Library, ...]) -> None:
    _limited.add(holder)
    for library in libraries[len(_before) :]:
        _before.append(library.threads())
        library.limit(1)


def free_blas(holder: object) -> None:
    """The end of what `limit_blas(holder)` began, or was about to: the last one restores. May be called again."""
    with _lock:
        _free(holder)


def _free(holder: object) -> None:
    _limited.discard(holder)
    while _before and not _limited:
        _libraries()[len(_before) - 1].limit(_before[-1])
        _before.pop()


class tuned:  # noqa: N801 (used as a function)
    """Inside, BLAS runs one thread and threads switch quickly: `with tuned() as hold, hold:`.

    Twice, for Ctrl-C may come inside of `__exit__`, and before its first line: then the other one gives back what is left.
    """

    _is_inside = False

    def __enter__(self) -> tuned:
        if self._is_inside:
            return self
        try:
            libraries = _found or _libraries()
            with _lock:
                _limit(self, libraries)
                _quick.add(self)
                if not _interval:
                    _interval.append(sys.getswitchinterval())
                    sys.setswitchinterval(SWITCH_SECONDS)
            self._is_inside = True
            return self
        except BaseException:
            self._give_back()
            raise

    def __exit__(self, *error: object) -> None:
        if self._is_inside:
            self._give_back()

    def _give_back(self) -> None:
        with _lock:
            _quick.discard(self)
            if _interval and not _quick:
                sys.setswitchinterval(_interval[0])
                _interval.clear()
            _free(self)
        self._is_inside = False


class wide:  # noqa: N801 (used as a function)
    """Inside, BLAS runs `width` threads; only while nothing else computes. `with wide(2) as hold, hold:`, as with `tuned`."""

    __slots__ = ("_allowed", "_were", "width")

    def __init__(self, width: int) -> None:
        self.width = width
        self._were: list[int] = []
        self._allowed: list[set[int]] = []

    def __enter__(self) -> wide:
        try:
            for library in _libraries()[len(self._were) :]:
                self._were.append(library.threads())
                library.limit(self.width)
            if not self._allowed:
                _spread(self.width, self._allowed)
            return self
        except BaseException:
            self._give_back()
            raise

    def __exit__(self, *error: object) -> None:
        self._give_back()

    def _give_back(self) -> None:
        for allowed in self._allowed:
            for place in _placers():
                for worker in range(self.width - 1):
                    place(worker, _SET_BYTES, _set_of(allowed))
        self._allowed.clear()
        while self._were:
            _libraries()[len(self._were) - 1].limit(self._were[-1])
            self._were.pop()


# OpenBLAS's `openblas_setaffinity(thread, bytes of the set, set)`; the threads beside the caller's are the first.
_Place: TypeAlias = Callable[[int, int, Any], int]
_SET_BYTES = 128
# With more threads than this a system finds them cores by itself, or none is free.
_MOST_SPREAD = 16


@cache
def _placers() -> tuple[_Place, ...]:
    from threadpoolctl import ThreadpoolController

    libraries = [library for library in ThreadpoolController().lib_controllers if library.internal_api == "openblas"]
    found = [getattr(library.dynlib, "openblas_setaffinity", None) for library in libraries]
    return tuple(place for place in found if place is not None)


def _spread(width: int, moved: list[set[int]]) -> None:
    """Let the threads of BLAS wake up on cores of their own: some systems wake them on the caller's, beside it (see `cores`).

    moved: where this is done, the cores that they may use otherwise are put there first.
    """
    asks = core_asks()
    if asks is None or not 2 <= width <= _MOST_SPREAD or sys.byteorder != "little" or not _placers():
        return
    allowed = os.sched_getaffinity(0)
    others = sorted(allowed - {asks()})
    if len(others) < width - 1 or max(allowed) >= 8 * _SET_BYTES:
        return
    moved.append(allowed)
    for place in _placers():
        for worker in range(width - 1):
            place(worker, _SET_BYTES, _set_of({others[worker]}))


def _set_of(cores: set[int]) -> Any:
    """A `cpu_set_t`."""
    return sum(1 << core for core in cores).to_bytes(_SET_BYTES, "little")
