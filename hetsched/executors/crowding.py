"""How much of a run its threads waited for a core that other work had: the difference between a slow device and a busy machine."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from time import perf_counter, process_time

# Where Linux tells of each thread of this process: nanoseconds on a core, nanoseconds runnable without one, times it was given one.
TASKS = Path("/proc/self/task")
# A process that keeps the cores it may use this busy by itself waits for nobody but itself.
OWN_SHARE = 0.9


class Crowding:
    """`with Crowding() as crowding: ...; crowding.share`: seconds that threads waited for a core, over those that passed, at most 1; 0 where the

    system does not tell. Threads that begin or end in between are not seen, those of BLAS and of the caller are. Waiting that the process's own
    threads make one another is not counted. Costs some 15 us a thread.
    """

    def __init__(self, tasks: Path = TASKS, cores: int | None = None) -> None:
        self.tasks = tasks
        self.cores = cores if cores is not None else _cores()
        self.share = 0.0

    def __enter__(self) -> Crowding:
        self._waited, self._worked, self._begun = self._read(), process_time(), perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        wall, worked, after = perf_counter() - self._begun, process_time() - self._worked, self._read()
        waited = sum(max(after[thread] - before, 0.0) for thread, before in self._waited.items() if thread in after)
        if wall > 0 and worked / (wall * self.cores) < OWN_SHARE:
            self.share = min(waited / wall, 1.0)

    def _read(self) -> dict[str, float]:
        """Thread -> seconds that it has waited for a core so far."""
        found = {}
        with suppress(OSError):
            for thread in os.listdir(self.tasks):
                with suppress(OSError, ValueError, IndexError), open(self.tasks / thread / "schedstat") as file:
                    found[thread] = int(file.read().split()[1]) * 1e-9
        return found


def _cores() -> int:
    return max(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 1)
