"""What a run changes in the process, and gives back: BLAS threads and the interpreter's switch interval.

BLAS runs one thread while hetsched fills the cores with tasks; only a wide launch raises the limit. Getting the GIL back from pure Python
takes 5 ms at the default switch interval and 0.3 ms at 1e-4. Runs may overlap (several threads, each with a run): the first one in sets,
the last one out restores.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

SWITCH_SECONDS = 1e-4

_lock = threading.Lock()
_runs = 0
_saved: tuple[float, Any] | None = None


@lru_cache(maxsize=1)
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _take_control() -> None:
    """Let this thread set limits. Since threadpoolctl 3.7 only the thread that set OpenBLAS's limit first may; others are ignored without a word,

    but a wide launch runs on whichever thread is free, and the last run out may be another thread's than the first one in.
    """
    for library in _controller().lib_controllers:
        clear = getattr(library, "clear_controlling_thread", None)
        if clear is not None:
            clear(force=True)


@contextmanager
def tuned() -> Iterator[None]:
    """Inside, BLAS runs one thread and threads switch quickly."""
    global _runs, _saved
    with _lock:
        _runs += 1
        if _runs == 1:
            _take_control()
            limits = _controller().limit(limits=1, user_api="blas")
            _saved = (sys.getswitchinterval(), limits)
            sys.setswitchinterval(SWITCH_SECONDS)
    try:
        yield
    finally:
        with _lock:
            _runs -= 1
            if _runs == 0 and _saved is not None:
                interval, limits = _saved
                _saved = None
                sys.setswitchinterval(interval)
                _take_control()
                limits.restore_original_limits()


@contextmanager
def wide(width: int) -> Iterator[None]:
    """Inside, BLAS runs `width` threads; only while nothing else computes."""
    _take_control()
    limits = _controller().limit(limits=width, user_api="blas")
    try:
        yield
    finally:
        _take_control()
        limits.restore_original_limits()
