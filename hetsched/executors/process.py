"""What a run changes in the process, and gives back: BLAS threads and the interpreter's switch interval.

BLAS runs one thread while hetsched fills the cores with tasks; only a wide launch raises the limit. Getting the GIL back from pure Python
takes 5 ms at the default switch interval and 0.3 ms at 1e-4. Runs may overlap (several threads, each with a run): the first one in sets,
the last one out restores.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeAlias

from hetsched.executors.cores import asks as core_asks

SWITCH_SECONDS = 1e-4

_lock = threading.Lock()
_switching: set[object] = set()  # those that need threads to be switched quickly
_limiting: set[object] = set()  # those that need BLAS to run one thread
_interval = 0.0  # the switch interval before the first of them
_before: list[int] = []  # what each BLAS library was set to before the first of them; at first, what it was found with


# Products of so many multiplications OpenBLAS does on one thread, whatever its limit: gemv below 2304 * 4 (interface/gemv.c), gemm up to 65536 * 4
# (interface/gemm.c: SMP_THRESHOLD_MIN * GEMM_MULTITHREAD_THRESHOLD).
GEMV_ALONE, GEMM_ALONE = 2304 * 4 - 1, 65536 * 4


# Sets the number of threads of a BLAS library; gives what it was.
_Limit: TypeAlias = Callable[[int], int]
_found: tuple[_Limit, ...] | None = None
_is_openblas = False
_modules = 0  # how many the interpreter had when BLAS libraries were looked for


def _libraries() -> tuple[_Limit, ...]:
    global _found, _is_openblas, _before, _modules
    if _found is None:
        _modules = len(sys.modules)
        from threadpoolctl import ThreadpoolController

        libraries = [library for library in ThreadpoolController().lib_controllers if library.user_api == "blas"]
        _is_openblas = all(library.internal_api == "openblas" for library in libraries)
        _before = [library.get_num_threads() for library in libraries]
        _found = tuple(_switch(library) for library in libraries)
    return _found


def _switch(library: Any) -> _Limit:
    """The library's own functions where they can be had: a call of threadpoolctl's takes longer than a small product.

    Since threadpoolctl 3.7 only the thread that set OpenBLAS's limit first may; others are ignored without a word. But a wide launch runs on
    whichever thread is free, and the last run out may be another thread's than the first one in.
    """
    find = getattr(library, "_get_symbol", None)
    if find is not None and library.internal_api == "openblas" and getattr(library, "threading_layer", "") == "pthreads":
        exchange = find("openblas_set_num_threads_local")  # of the whole process all the same, where threads are pthreads
        if exchange is not None:
            limit: _Limit = exchange
            return limit
        get, change = find("openblas_get_num_threads"), find("openblas_set_num_threads")
        if get is not None and change is not None:

            def plain(count: int) -> int:
                before: int = get()
                change(count)
                return before

            return plain

    def force(count: int) -> int:
        before: int = library.get_num_threads()
        if before != count:
            clear = getattr(library, "clear_controlling_thread", None)
            if clear is not None:
                clear(force=True)
            library.set_num_threads(count)
        return before

    return force


def is_alone(m: int, k: int, n: int) -> bool:
    """True if the product of [m, k] and [k, n] runs on one thread even where BLAS may use more."""
    _libraries()
    return _is_openblas and m * k * n <= (GEMV_ALONE if 1 in (m, n) else GEMM_ALONE)


def limit_blas(who: object) -> None:
    """Until `free_blas(who)` BLAS runs one thread. 0.5 us, and as much again to free it (benchmarks/latency.py counts on it).

    Where Ctrl-C interrupts one of them, another `free_blas` puts it right.
    """
    global _before, _found
    with _lock:
        is_first = not _limiting
        _limiting.add(who)
        if is_first:
            if len(sys.modules) != _modules:  # an import may have brought a BLAS of its own (SciPy's)
                _found = None
                _placers.cache_clear()
            _before = [limit(1) for limit in _found or _libraries()]


def free_blas(who: object) -> None:
    """The end of what `limit_blas` began: the last one restores. Once more: nothing, as long as nobody has set another limit."""
    with _lock:
        _limiting.discard(who)
        if not _limiting:
            for limit, was in zip(_libraries(), _before):
                if was != 1:
                    limit(was)


class tuned:  # noqa: N801 (used as a function)
    """Inside, BLAS runs one thread and threads switch quickly. What Ctrl-C may interrupt stands in `interrupts.guarded`."""

    __slots__ = ()

    def __enter__(self) -> None:
        global _interval
        limit_blas(self)
        with _lock:
            is_first = not _switching
            _switching.add(self)
            if is_first:
                _interval = sys.getswitchinterval()
                sys.setswitchinterval(SWITCH_SECONDS)

    def __exit__(self, *error: object) -> None:
        with _lock:
            if self in _switching:  # not in a process that was forked off meanwhile
                _switching.discard(self)
                if not _switching:
                    sys.setswitchinterval(_interval)
        free_blas(self)


def _settle() -> None:
    """In a process that was forked off: the runs of the parent's other threads do not go on here, and nobody would restore what they changed."""
    global _lock
    is_at_it = _lock.locked()
    _lock = threading.Lock()
    if _switching:
        _switching.clear()
        sys.setswitchinterval(_interval)
    if _limiting or is_at_it:
        _limiting.clear()
        free_blas(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_settle)


@contextmanager
def wide(width: int) -> Iterator[None]:
    """Inside, BLAS runs `width` threads; only while nothing else computes."""
    before = [limit(width) for limit in _libraries()]
    allowed = _spread(width)
    try:
        yield
    finally:
        if allowed:
            for place in _placers():
                for worker in range(width - 1):
                    place(worker, _SET_BYTES, _set_of(allowed))
        for limit, was in zip(_libraries(), before, strict=True):
            if was != width:
                limit(was)


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


def _spread(width: int) -> set[int]:
    """Let the threads of BLAS wake up on cores of their own: some systems wake them on the caller's, beside it (see `cores`). The cores that they may

    use otherwise; none where nothing was done.
    """
    asks = core_asks()
    if asks is None or not 2 <= width <= _MOST_SPREAD or sys.byteorder != "little" or not _placers():
        return set()
    allowed = os.sched_getaffinity(0)
    others = sorted(allowed - {asks()})
    if len(others) < width - 1 or max(allowed) >= 8 * _SET_BYTES:
        return set()
    for place in _placers():
        for worker in range(width - 1):
            place(worker, _SET_BYTES, _set_of({others[worker]}))
    return allowed


def _set_of(cores: set[int]) -> Any:
    """A `cpu_set_t`."""
    return sum(1 << core for core in cores).to_bytes(_SET_BYTES, "little")
