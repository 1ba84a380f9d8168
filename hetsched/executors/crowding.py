"""How much of a run its threads waited for a core that other work had: the difference between a slow device and a busy machine."""

from __future__ import annotations

import os
from contextlib import suppress
from time import perf_counter, process_time

# Where Linux tells of the calling thread: nanoseconds on a core, nanoseconds runnable without one, times it was given one.
SCHEDSTAT = "/proc/thread-self/schedstat"
# A process that keeps the cores it may use this busy by itself waits for nobody but itself.
OWN_SHARE = 0.9


class Crowding:
    """`with Crowding() as crowding: ...; crowding.share`: measured for the calling thread, 0 where the system does not tell.

    Waiting that the process's own threads make one another is not counted. Costs some 30 us.
    """

    def __init__(self, path: str = SCHEDSTAT, cores: int | None = None) -> None:
        self.path = path
        self.cores = cores if cores is not None else _cores()
        self.share = 0.0

    def __enter__(self) -> Crowding:
        self._waited, self._worked, self._begun = self._read(), process_time(), perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        wall, after = perf_counter() - self._begun, self._read()
        if after is None or self._waited is None or wall <= 0:
            return
        if (process_time() - self._worked) / (wall * self.cores) < OWN_SHARE:
            self.share = min(max(after - self._waited, 0.0) / wall, 1.0)

    def _read(self) -> float | None:
        """Seconds that the thread has waited for a core so far."""
        with suppress(OSError, ValueError, IndexError), open(self.path) as file:
            return int(file.read().split()[1]) * 1e-9
        return None


def _cores() -> int:
    return max(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 1)
