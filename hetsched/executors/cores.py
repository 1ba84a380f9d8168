"""The cores of this process, and the threads of a run on cores of their own.

A system may leave a thread that was woken on the core of the one that woke it, where most of the machine is asleep, and move it when it next looks:
after some milliseconds, in which two threads have shared a core and another had nothing to do (measured on a virtual machine of two cores, after a
pause of 20 ms: in half of the runs, for 4 to 10 ms). So a thread looks where it is when it begins, when it was woken and before what takes long, and
moves where another one was seen working. It stays free to be moved, and threads that kernels start have all cores, as before.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

# A step that is planned to take this long is worth a look, which takes 0.3 us.
LONG_SECONDS = 5e-4


def cores() -> int:
    """Cores this process may use: affinity, and a control group's quota where there is one."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min(n, _quota() or n), 1)


@cache
def _quota() -> int | None:
    """Whole cores that a control group allows, at least one; None where it does not say."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return None


@cache
def asks() -> Callable[[], int] | None:
    """The number of the core that the calling thread is on; None where it cannot be told, or threads cannot be moved."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    try:
        found = ctypes.PyDLL(None).sched_getcpu  # it keeps the interpreter
        os.sched_setaffinity(0, os.sched_getaffinity(0))  # some sandboxes refuse it
    except (OSError, AttributeError):
        return None
    return found if found() >= 0 else None


class Cores:
    """Where the threads that compute were last seen. `Cores.of(threads)` gives None where there is nothing to spread."""

    def __init__(self, asks: Callable[[], int]) -> None:
        self._asks = asks
        self._taken: dict[int, int] = {}  # core -> thread (its lane)
        self._at: dict[int, int] = {}  # thread -> core

    @staticmethod
    def of(threads: int) -> Cores | None:
        """For so many threads that compute."""
        core = asks() if threads > 1 else None
        return Cores(core) if core is not None and threads <= len(os.sched_getaffinity(0)) else None

    def settle(self, lane: int) -> None:
        """Called by the thread of `lane` before it works: move to a core that is free, if another one works here."""
        core = self._asks()
        if self._at.get(lane) == core:
            return
        self.leave(lane)
        if self._taken.get(core, lane) != lane:
            allowed = os.sched_getaffinity(0)
            free = next((c for c in sorted(allowed) if c not in self._taken), None)
            if free is None:
                return
            os.sched_setaffinity(0, {free})
            os.sched_setaffinity(0, allowed)
            core = free
        self._taken[core] = lane
        self._at[lane] = core

    @contextmanager
    def waiting(self, lane: int) -> Iterator[None]:
        """Inside, the thread of `lane` waits for the begin, and will be woken on a core of its own; outside it may be moved."""
        self.settle(lane)
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {self._at.get(lane, self._asks())} & allowed or allowed)
        try:
            yield
        finally:
            os.sched_setaffinity(0, allowed)

    def leave(self, lane: int) -> None:
        """Called before the thread of `lane` sleeps: its core is free."""
        core = self._at.pop(lane, -1)
        if self._taken.get(core) == lane:
            self._taken.pop(core, None)  # another thread that has taken the same core may just have left it


def _found_yielding() -> Callable[[], object]:
    """What lets other threads have the processor and the interpreter. `sleep(0)` takes 50 us and more on Linux."""
    if hasattr(os, "sched_yield"):
        if sys.version_info >= (3, 12):
            return os.sched_yield
        with suppress(OSError, AttributeError):  # before 3.12 it keeps the interpreter
            return ctypes.CDLL(None).sched_yield
    return lambda: time.sleep(0)


yielding = _found_yielding()
