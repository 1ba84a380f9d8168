"""One thread at a time through work so short that handing over the interpreter lock costs more than running side by side gains.

Every product and every longer ufunc gives up the lock and asks for it again; where several threads do that, each such call ends with a wake-up of
10-80 us, and four callers of a small CNN's 30 us wait 470 each. Who is inside keeps the others out instead, and comes in again at once until its
slice of time is over: it goes on with code and data in its core's cache. The first of those who wait sleeps on the lock itself, so it is there as
soon as nobody is, and needs no interpreter to find out; the others wait in line behind it. Measured by benchmarks/latency.py.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from time import perf_counter
from typing import Any

# A handful of requests of a small model: handing over then costs a fifth of the time.
SLICE_SECONDS = 200e-6


class Turnstile:
    """`enter()`, then `leave()`: 0.1 us where nobody else is there."""

    def __init__(self, slice_seconds: float = SLICE_SECONDS) -> None:
        self.slice_seconds = slice_seconds
        self.reset()

    def reset(self) -> None:
        """Nobody is inside, nobody waits."""
        self._inside = threading.RLock()  # it knows who has it
        self._guard = threading.Lock()
        self._line: deque[Any] = deque()  # gates of those who wait behind the first
        self._has_first = False  # somebody waits for `_inside` itself
        self._closed = False  # the slice is over: the first of those who wait comes next
        self._since = 0.0

    @property
    def is_free(self) -> bool:
        """True if nobody is inside or waits."""
        if self._has_first or self._inside._is_owned() or not self._inside.acquire(False):  # type: ignore[attr-defined]
            return False
        self._inside.release()
        return True

    def enter(self) -> None:
        """Come in, or wait."""
        if self._closed or not self._inside.acquire(False):
            self._wait()

    def _wait(self) -> None:
        gate = threading.Lock()
        with self._guard:
            is_first = not self._has_first
            if is_first:
                self._has_first = True
            else:
                gate.acquire()
                self._line.append(gate)
        try:
            gate.acquire()
            self._inside.acquire()
            self._since = perf_counter()
            self._closed = False
            with self._guard:
                self._next()
        except BaseException:  # Ctrl-C: who may be inside by now is to `leave_if_inside`
            with self._guard:
                if gate in self._line:
                    self._line.remove(gate)
                else:
                    self._closed = False
                    self._next()
            raise

    def _next(self) -> None:
        """Let the next in line be the first. Under the guard."""
        if self._line:
            self._line.popleft().release()
        else:
            self._has_first = False

    def leave(self) -> None:
        """Go out."""
        if self._has_first and perf_counter() - self._since > self.slice_seconds:
            self._closed = True
        self._inside.release()

    def leave_if_inside(self) -> None:
        """Go out, for who may have come in: Ctrl-C has interrupted it, and nobody knows where."""
        if self._inside._is_owned():  # type: ignore[attr-defined]
            self.leave()


# The interpreter has one lock, so all compiled graphs share this.
SHORT_WORK = Turnstile()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=SHORT_WORK.reset)  # whoever is inside or in line is a thread of the parent
