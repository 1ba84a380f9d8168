"""How much of a run its threads waited for a core that other work had: the difference between a slow device and a busy machine."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from time import perf_counter, process_time

# Where Linux tells of each thread of this process: nanoseconds on a core, nanoseconds runnable without one, times it was given one.
TASKS = Path("/proc/self/task")
# Where it tells what all processes took together: the first line, in hundredths of a second.
STAT = Path("/proc/stat")
TICK = 0.01


class Crowding:
    """`with Crowding() as crowding: ...; crowding.share`: seconds that threads waited for a core, over those that passed, at most 1; 0 where the

    system does not tell. Threads that begin or end in between are not seen, those of BLAS and of the caller are. No more counts than what other
    processes took meanwhile: threads of one process may also wait for one another. Costs some 15 us a thread.
    """

    def __init__(self, tasks: Path = TASKS, stat: Path = STAT) -> None:
        self.tasks, self.stat = tasks, stat
        self.share = 0.0

    def __enter__(self) -> Crowding:
        self._waited, self._all, self._worked, self._begun = self._read(), self._busy(), process_time(), perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        wall, worked, after, busy = perf_counter() - self._begun, process_time() - self._worked, self._read(), self._busy()
        waited = sum(max(after[thread] - before, 0.0) for thread, before in self._waited.items() if thread in after)
        others = busy - self._all - worked - TICK  # counted in ticks: one is nothing
        if wall > 0:
            self.share = min(max(min(waited, others), 0.0) / wall, 1.0)

    def _busy(self) -> float:
        """Seconds that all cores together have worked, for whom ever."""
        with suppress(OSError, ValueError, IndexError), open(self.stat) as file:
            user, nice, system, _, _, irq, softirq = map(int, file.readline().split()[1:8])
            return (user + nice + system + irq + softirq) * TICK
        return 0.0

    def _read(self) -> dict[str, float]:
        """Thread -> seconds that it has waited for a core so far."""
        found = {}
        with suppress(OSError):
            for thread in os.listdir(self.tasks):
                with suppress(OSError, ValueError, IndexError), open(self.tasks / thread / "schedstat") as file:
                    found[thread] = int(file.read().split()[1]) * 1e-9
        return found
