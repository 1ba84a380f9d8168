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

from bisect import bisect_left
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
    """What was touched last, up to `capacity` bytes in each of `count` caches. Values that nobody will read again have left them.

    `worth` of a task that is watched: bytes of its inputs that are there, added up over the caches (it may meet any of them), kept up to date.
    """

    def __init__(self, work: Work, capacity: int, count: int = 1) -> None:
        self.work, self.capacity, self.count = work, capacity, count
        values = len(work.nbytes)
        # All values in the order of their touches; a touch is a value's last where its place is the one noted for it (-1: the value is not there).
        self.touched: list[list[int]] = [[] for _ in range(count)]
        self.last = [[-1] * values for _ in range(count)]
        self.oldest = [0] * count  # the first touch that may be a value's last
        self.used = [0] * count
        self.near = [0] * values  # bytes of a value in all caches that hold it
        self.left = list(work.readers)
        self.turn = 0  # the cache of the next task
        self.worth = [0.0] * len(work.reads)
        self.counts = [0.0] * values  # what a value adds to the worth of its readers
        self.watching: dict[int, set[int]] = {}  # value -> the tasks that read it

    def watch(self, task: int) -> None:
        """Keep the worth of a task up to date from now on."""
        reads, watching = self.work.reads[task], self.watching
        self.worth[task] = sum(map(self.counts.__getitem__, reads))
        for value in reads:
            if value in watching:
                watching[value].add(task)
            else:
                watching[value] = {task}

    def touch(self, task: int) -> None:
        """Run a task."""
        at = self.turn
        self.turn = (at + 1) % self.count
        last, touched, left, watching = self.last[at], self.touched[at], self.left, self.watching
        reads = self.work.reads[task]
        for value in reads:
            if value in watching:
                watching[value].discard(task)
            fetched = last[value] < 0
            last[value] = len(touched)
            touched.append(value)
            left[value] -= 1
            if fetched:
                self._more(value, at, self.work.nbytes[value])
            elif left[value] == 1:
                self._count(value)
        for value in reads:
            if not left[value]:
                self._drop(value)
        for value in self.work.writes[task]:
            last[value] = len(touched)
            touched.append(value)
            self._more(value, at, self.work.nbytes[value])
        while self.used[at] > self.capacity:
            place = self.oldest[at]
            self.oldest[at] += 1
            value = touched[place]
            if last[value] == place:
                last[value] = -1
                self._more(value, at, -self.work.nbytes[value])

    def _more(self, value: int, at: int, nbytes: int) -> None:
        self.used[at] += nbytes
        self.near[value] += nbytes
        self._count(value)

    def _drop(self, value: int) -> None:
        for at, last in enumerate(self.last):
            if last[value] >= 0:
                last[value] = -1
                self.used[at] -= self.work.nbytes[value]
        self.near[value] = 0

    def _count(self, value: int) -> None:
        """Tell who watches what the value is worth now. Sums of halves of whole numbers are exact, in whatever order."""
        counts = float(self.near[value]) if self.left[value] > 1 else self.near[value] * LAST_READ
        more = counts - self.counts[value]
        self.counts[value] = counts
        worth = self.worth
        for task in self.watching.get(value, ()):
            worth[task] += more


def missed_bytes(work: Work, order: Sequence[int], capacity: int, caches: int = 1) -> int:
    """Bytes that come from memory when the tasks run in this order, dealt in turn to so many caches of `capacity` bytes."""
    nbytes, left, missed, alone = work.nbytes, list(work.readers), 0, caches == 1
    # As in `Caches`.
    lasts = [[-1] * len(nbytes) for _ in range(caches)]
    rows: list[list[int]] = [[] for _ in range(caches)]
    oldest, used = [0] * caches, [0] * caches
    for i, task in enumerate(order):
        at = i % caches
        last, touched, full, gone = lasts[at], rows[at], used[at], False
        for value in work.reads[task]:
            if last[value] < 0:
                missed += nbytes[value]
                full += nbytes[value]
            last[value] = len(touched)
            touched.append(value)
            left[value] -= 1
            gone = gone or not left[value]
        if gone:
            for value in work.reads[task]:
                if not left[value]:
                    last[value] = -1
                    full -= nbytes[value]
                    if not alone:
                        for other, there in enumerate(lasts):
                            if there[value] >= 0:
                                there[value] = -1
                                used[other] -= nbytes[value]
        for value in work.writes[task]:
            last[value] = len(touched)
            touched.append(value)
            full += nbytes[value]
        if full > capacity:
            place = oldest[at]
            while full > capacity:
                value = touched[place]
                if last[value] == place:
                    last[value] = -1
                    full -= nbytes[value]
                place += 1
            oldest[at] = place
        used[at] = full
    return missed


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
    is_watched = [False] * n  # all that stand in the window are

    def watch(task: int) -> None:
        if not is_watched[task]:
            is_watched[task] = True
            cache.watch(task)

    for task in ready[:WINDOW]:
        watch(task)
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
                    place = bisect_left(ready, after)
                    ready.insert(place, after)
                    if place < WINDOW:
                        watch(after)
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
            worth = list(map(cache.worth.__getitem__, ready[:WINDOW]))
            task = ready.pop(worth.index(max(worth)))
        if len(ready) >= WINDOW:
            watch(ready[WINDOW - 1])
        has_run[task] = True
        cache.touch(task)
        out.append(task)
        left -= work.seconds[task] / threads
        finish = free[0] + work.seconds[task]
        heapreplace(free, finish)
        heappush(ends, (finish, task))
    return out
