"""An order of a plan's tasks in which those that read the same values run close together, so that the values are still in the processor's cache.

Ranks say which task is urgent, not which one finds its inputs near: a plan by ranks alone works at many places of a large matrix at once, and each
tile comes from memory again and again (tiled Cholesky of 5,120 x 5,120 float32 in the order of HEFT: kernels take 1.10 times as long as in the order
in which the algorithm is written). The cache is looked on as a memory that holds what was touched last. A thread takes, of the most urgent tasks that
are ready, the one with most of its inputs there, unless the longest path to the end has become as long as all that is left.

Locality by work stealing and by data-aware queues is known from runtimes (Acar, Blelloch, Blumofe: The data locality of work stealing, SPAA 2000);
here it is planned, and the plan is taken only where the bytes that need not be fetched are worth more than the makespan that they cost.
"""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush, heapreplace

# The share of the last-level cache that is counted on: kernels have scratch in it, and other threads and programs.
COUNTED_SHARE = 3 / 8
# So many ready tasks are looked at, the most urgent first.
WINDOW = 64
# A task is taken for its urgency alone where its longest path takes this share of the seconds that are left.
URGENT = 0.9
# What a value counts that nobody else will read: it is fetched once in any case, and hardware reads ahead of what is streamed.
LAST_READ = 0.5


@dataclass(frozen=True, eq=False)
class Work:
    """Tasks of one pool of threads. order: by urgency. seconds, reads (values, each once), writes, later (who waits for it): of each task.

    nbytes: of each value. readers: how many tasks read it.
    """

    order: Sequence[int]
    seconds: Sequence[float]
    reads: Sequence[Sequence[int]]
    writes: Sequence[Sequence[int]]
    later: Sequence[Sequence[int]]
    nbytes: Sequence[int]
    readers: Sequence[int]


class Cache:
    """What was touched last, up to `capacity` bytes. Values that nobody will read again have left it."""

    def __init__(self, work: Work, capacity: int) -> None:
        self.work, self.capacity = work, capacity
        self.held: OrderedDict[int, int] = OrderedDict()
        self.used = 0
        self.left = list(work.readers)

    def touch(self, task: int) -> int:
        """Run a task. Bytes of its inputs that were not there."""
        held, left, nbytes, missed = self.held, self.left, self.work.nbytes, 0
        for value in self.work.reads[task]:
            if value in held:
                held.move_to_end(value)
            else:
                missed += nbytes[value]
                self._hold(value)
            left[value] -= 1
        for value in self.work.reads[task]:
            if not left[value]:
                self.used -= held.pop(value)
        for value in self.work.writes[task]:
            self._hold(value)
        while self.used > self.capacity:
            self.used -= held.popitem(last=False)[1]
        return missed

    def _hold(self, value: int) -> None:
        self.held[value] = self.work.nbytes[value]
        self.used += self.held[value]

    def worth(self, task: int) -> float:
        """Bytes of its inputs that are there."""
        held, left, total = self.held, self.left, 0.0
        for value in self.work.reads[task]:
            if value in held:
                total += held[value] if left[value] > 1 else held[value] * LAST_READ
        return total


def missed_bytes(work: Work, order: Sequence[int], capacity: int) -> int:
    """Bytes that come from memory when the tasks run in this order with a cache of `capacity` bytes."""
    cache = Cache(work, capacity)
    return sum(map(cache.touch, order))


def inputs_nbytes(work: Work) -> int:
    """Bytes that are read and that no task makes: in every order they come from memory once."""
    made = {value for row in work.writes for value in row}
    return sum(nbytes for value, (nbytes, readers) in enumerate(zip(work.nbytes, work.readers, strict=True)) if readers and value not in made)


def by_reuse(work: Work, threads: int, capacity: int) -> list[int]:
    """The tasks in the order in which `threads` threads would start them."""
    n = len(work.order)
    place = [0] * n
    for i, task in enumerate(work.order):
        place[task] = i
    waits, path = [0] * n, [0.0] * n
    for task in reversed(work.order):
        path[task] = work.seconds[task] + max((path[after] for after in work.later[task]), default=0.0)
        for after in work.later[task]:
            waits[after] += 1
    cache, left, out = Cache(work, capacity), sum(work.seconds) / threads, []
    ready = [i for i, task in enumerate(work.order) if not waits[task]]  # places, in order
    free = [0.0] * threads  # when each thread is
    ends: list[tuple[float, int]] = []  # (end, task) of what runs
    while ready or ends:
        while ends and (ends[0][0] <= free[0] or not ready):
            now, task = heappop(ends)
            for after in work.later[task]:
                waits[after] -= 1
                if not waits[after]:
                    insort(ready, place[after])
            if free[0] < now:  # threads that found nothing to do
                free = [max(at, now) for at in free]
        if not ready:
            break
        first = work.order[ready[0]]
        chosen = 0
        if path[first] < URGENT * left:
            worth = [cache.worth(work.order[i]) for i in ready[:WINDOW]]
            chosen = worth.index(max(worth))
        task = work.order[ready.pop(chosen)]
        cache.touch(task)
        out.append(task)
        left -= work.seconds[task] / threads
        finish = free[0] + work.seconds[task]
        heapreplace(free, finish)
        heappush(ends, (finish, task))
    return out
