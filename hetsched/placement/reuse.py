"""An order of a plan's tasks in which those that read the same values run close together, so that the values are still in the processor's cache.

Ranks say which task is urgent, not which one finds its inputs near: a plan by ranks alone works at many places of a large matrix at once, and each
tile comes from memory again and again (tiled Cholesky of 5,120 x 5,120 float32 in the order of HEFT: kernels take 1.10 times as long as in the order
in which the algorithm is written). The cache is looked on as a memory that holds what was touched last. A thread takes, of the tasks that are ready,
the one with most of its inputs there, and of several with as many the first of the graph (who writes a loop over rows reads rows one after another),
unless the longest path to the end has become as long as all that is left.

A processor may have several last caches (sockets, core complexes), each for some of its cores. Which thread takes a task is settled while it runs, so
it is not known which cache a task will meet: tasks are dealt to the caches in turn, and a value counts by the share of caches that hold it.

Beside the last caches stands the one that each lane has for itself: what it does not hold comes from the last cache, or from another lane's (an
order for tiles of 64 KiB, all of which the last cache holds: kernels take 0.92 of what they take in the order of HEFT).

Locality by work stealing and by data-aware queues is known from runtimes (Acar, Blelloch, Blumofe: The data locality of work stealing, SPAA 2000);
here it is planned, and the plan is taken only where the bytes that need not be fetched are worth more than the makespan that they cost.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace
from typing import NamedTuple

# The share of the last-level cache that is counted on: kernels have scratch in it, and other threads and programs; and of a lane's own, in which no
# other lane has anything.
COUNTED_SHARE, OWN_SHARE = 3 / 8, 5 / 8
# So many ready tasks are looked at, the first of the graph.
WINDOW = 64
# A task is taken for its urgency alone where its longest path takes this share of the seconds that are left.
URGENT = 0.9
# What a value counts that nobody else will read: it is fetched once in any case, and hardware reads ahead of what is streamed.
LAST_READ = 0.5


class Level(NamedTuple):
    """Caches of one level. nbytes: what to count on of each; caches: how many; per_byte: seconds that all threads lose by a byte fetched into one.

    name: where such bytes come from.
    """

    nbytes: int
    caches: int
    per_byte: float
    name: str


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


class Caches:
    """What was touched last, up to `capacity` bytes in each of `count` caches. Values that nobody will read again have left them."""

    def __init__(self, work: Work, capacity: int, count: int = 1) -> None:
        self.work, self.capacity, self.count = work, capacity, count
        self.held: list[OrderedDict[int, int]] = [OrderedDict() for _ in range(count)]
        self.used = [0] * count
        self.near: dict[int, int] = {}  # value -> its bytes in all caches that hold it
        self.left = list(work.readers)
        self.turn = 0  # the cache of the next task

    def touch(self, task: int) -> int:
        """Run a task. Bytes of its inputs that were not there."""
        at = self.turn
        self.turn = (at + 1) % self.count
        held, left, nbytes, missed = self.held[at], self.left, self.work.nbytes, 0
        for value in self.work.reads[task]:
            if value in held:
                held.move_to_end(value)
            else:
                missed += nbytes[value]
                self._hold(value, at)
            left[value] -= 1
        for value in self.work.reads[task]:
            if not left[value]:
                self._drop(value)
        for value in self.work.writes[task]:
            self._hold(value, at)
        while self.used[at] > self.capacity:
            value, gone = held.popitem(last=False)
            self.used[at] -= gone
            if self.near[value] > gone:
                self.near[value] -= gone
            else:
                del self.near[value]
        return missed

    def _hold(self, value: int, at: int) -> None:
        nbytes = self.held[at][value] = self.work.nbytes[value]
        self.used[at] += nbytes
        self.near[value] = self.near.get(value, 0) + nbytes

    def _drop(self, value: int) -> None:
        if value in self.near:
            del self.near[value]
            for at, held in enumerate(self.held):
                self.used[at] -= held.pop(value, 0)

    def worth(self, task: int) -> float:
        """Bytes of its inputs that are there, added up over the caches: it may meet any of them."""
        near, left, total = self.near, self.left, 0.0
        for value in self.work.reads[task]:
            if value in near:
                total += near[value] if left[value] > 1 else near[value] * LAST_READ
        return total


def missed_bytes(work: Work, order: Sequence[int], capacity: int, caches: int = 1) -> int:
    """Bytes that come from memory when the tasks run in this order, dealt in turn to so many caches of `capacity` bytes."""
    found = Caches(work, capacity, caches)
    return sum(map(found.touch, order))


def inputs_nbytes(work: Work) -> int:
    """Bytes that are read and that no task makes: in every order they come from memory once."""
    made = {value for row in work.writes for value in row}
    return sum(nbytes for value, (nbytes, readers) in enumerate(zip(work.nbytes, work.readers, strict=True)) if readers and value not in made)


def by_reuse(work: Work, threads: int, capacity: int, caches: int = 1) -> list[int]:
    """The tasks in the order in which `threads` threads, spread over so many caches of `capacity` bytes, would start them."""
    n = len(work.order)
    waits, path = [0] * n, [0.0] * n
    for task in reversed(work.order):
        path[task] = work.seconds[task] + max((path[after] for after in work.later[task]), default=0.0)
        for after in work.later[task]:
            waits[after] += 1
    cache, left, out = Caches(work, capacity, caches), sum(work.seconds) / threads, []
    ready = [task for task in range(n) if not waits[task]]  # as the graph has them
    longest = [(-path[task], task) for task in ready]  # a heap; what has run is in it until it comes to the top
    heapify(longest)
    has_run = [False] * n
    free = [0.0] * threads  # when each thread is
    ends: list[tuple[float, int]] = []  # (end, task) of what runs
    while ready or ends:
        while ends and (ends[0][0] <= free[0] or not ready):
            now, task = heappop(ends)
            for after in work.later[task]:
                waits[after] -= 1
                if not waits[after]:
                    insort(ready, after)
                    heappush(longest, (-path[after], after))
            if free[0] < now:  # threads that found nothing to do
                free = [max(at, now) for at in free]
        if not ready:
            break
        while has_run[longest[0][1]]:
            heappop(longest)
        task = longest[0][1]
        if path[task] >= URGENT * left:
            del ready[bisect_left(ready, task)]
        else:
            worth = list(map(cache.worth, ready[:WINDOW]))
            task = ready.pop(worth.index(max(worth)))
        has_run[task] = True
        cache.touch(task)
        out.append(task)
        left -= work.seconds[task] / threads
        finish = free[0] + work.seconds[task]
        heapreplace(free, finish)
        heappush(ends, (finish, task))
    return out
