"""What a run changes in the process, and gives back: BLAS threads and the interpreter's switch interval.

BLAS runs one thread while hetsched fills the cores with tasks; only a wide launch raises the limit. Getting the GIL back from pure Python
takes 5 ms at the default switch interval and 0.3 ms at 1e-4. Runs may overlap (several threads, each with a run): the first one in sets,
the last one out restores.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

SWITCH_SECONDS = 1e-4

_lock = threading.Lock()
_runs = 0
_saved: tuple[float, list[int]] | None = None


class _Blas(NamedTuple):
    """How to ask a BLAS library for its number of threads, and to set it."""

    get: Callable[[], int]
    set: Callable[[int], Any]


@lru_cache(maxsize=1)
def _libraries() -> tuple[_Blas, ...]:
    from threadpoolctl import ThreadpoolController

    return tuple(_switch(library) for library in ThreadpoolController().lib_controllers if library.user_api == "blas")


def _switch(library: Any) -> _Blas:
    """The library's own functions where they can be had: a call of threadpoolctl's takes longer than a small product.

    Since threadpoolctl 3.7 only the thread that set OpenBLAS's limit first may; others are ignored without a word. But a wide launch runs on
    whichever thread is free, and the last run out may be another thread's than the first one in.
    """
    find = getattr(library, "_get_symbol", None)
    if find is not None and library.internal_api == "openblas" and getattr(library, "threading_layer", "") == "pthreads":
        get, change = find("openblas_get_num_threads"), find("openblas_set_num_threads")
        if get is not None and change is not None:
            return _Blas(get, change)

    def force(count: int) -> None:
        clear = getattr(library, "clear_controlling_thread", None)
        if clear is not None:
            clear(force=True)
        library.set_num_threads(count)

    return _Blas(library.get_num_threads, force)


def _limit(count: int) -> list[int]:
    """Let BLAS run `count` threads; gives what it was before, for each library."""
    before = []
    for blas in _libraries():
        now = blas.get()
        before.append(now)
        if now != count:
            blas.set(count)
    return before


def _restore(before: list[int], count: int) -> None:
    for blas, was in zip(_libraries(), before, strict=True):
        if was != count:
            blas.set(was)


class tuned:  # noqa: N801 (used as a function)
    """Inside, BLAS runs one thread and threads switch quickly. 3 us (benchmarks/latency.py counts on it)."""

    __slots__ = ()

    def __enter__(self) -> None:
        global _runs, _saved
        with _lock:
            _runs += 1
            if _runs == 1:
                _saved = (sys.getswitchinterval(), _limit(1))
                sys.setswitchinterval(SWITCH_SECONDS)

    def __exit__(self, *error: object) -> None:
        global _runs, _saved
        with _lock:
            _runs -= 1
            if _runs == 0 and _saved is not None:
                interval, before = _saved
                _saved = None
                sys.setswitchinterval(interval)
                _restore(before, 1)


@contextmanager
def wide(width: int) -> Iterator[None]:
    """Inside, BLAS runs `width` threads; only while nothing else computes."""
    before = _limit(width)
    try:
        yield
    finally:
        _restore(before, width)
