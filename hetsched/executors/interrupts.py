"""Ctrl-C while a run keeps its books.

Python raises `KeyboardInterrupt` in the main thread between two instructions, wherever that is: with a lock just taken, with threads started that
nobody has let go, with BLAS limited and nobody told. Then the process hangs, or is left slow. So inside `guarded()` Ctrl-C raises where a kernel
runs, which a run can end at; elsewhere who listens is told, the run ends when the kernels that run have, and it raises at the end of the guarded
part. Who presses it once more wants out: then it raises at once, wherever that is. (trio protects its core from Ctrl-C in the same way.)

Only in the main thread, and where Python's own handler is in place: those of others are theirs. 2 us a run.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# The functions of the executors that call kernels.
_LAUNCHERS = frozenset(("follow", "_do", "act", "perform", "perform_timed", "_go", "launch", "_run_all"))
_HOME = "hetsched.executors."

# The module that `signal` wraps: turning numbers into enumerations and back takes 5 us a call.
_raw: Any = sys.modules.get("_signal", signal)
_change, _ask = _raw.signal, _raw.getsignal
_SIGINT = int(signal.SIGINT)

_listeners: list[Callable[[], None]] = []
_has_struck = False


class guarded:  # noqa: N801 (used as a function)
    """Inside, Ctrl-C raises `KeyboardInterrupt` in a kernel, or at the end, and nowhere between. May be nested, and used in any thread."""

    __slots__ = ("_is_mine",)

    def __enter__(self) -> None:
        global _has_struck
        self._is_mine = threading.get_ident() == threading.main_thread().ident and _ask(_SIGINT) is signal.default_int_handler
        if self._is_mine:
            _has_struck = False
            try:
                _change(_SIGINT, _strike)
            except ValueError:  # the main thread of an interpreter that is not the main one
                self._is_mine = False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        global _has_struck
        if not self._is_mine:
            return
        if _ask(_SIGINT) is _strike:
            _change(_SIGINT, signal.default_int_handler)
        has_struck, _has_struck = _has_struck, False
        if has_struck and not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt


@contextmanager
def heard(listener: Callable[[], None]) -> Iterator[None]:
    """Inside, `listener` is called when Ctrl-C is noted and not raised: in the main thread, between any two instructions, so it takes no lock."""
    if threading.get_ident() != threading.main_thread().ident:
        yield
        return
    _listeners.append(listener)
    try:
        if _has_struck:
            listener()
        yield
    finally:
        _listeners.remove(listener)


def _strike(number: int, frame: FrameType | None) -> None:
    global _has_struck
    if _has_struck or _is_in_kernel(frame):
        _has_struck = True
        raise KeyboardInterrupt
    _has_struck = True
    for listener in list(_listeners):
        listener()


def _is_in_kernel(frame: FrameType | None) -> bool:
    """True if what is interrupted was called by a launch, itself or by others in between."""
    inner = frame
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).startswith(_HOME):
            return frame is not inner and frame.f_code.co_name in _LAUNCHERS
        frame = frame.f_back
    return False
