"""Orders for the caches beside the same rule written out plainly: caches as ordered dicts, what a task finds there counted anew each time."""

from collections import OrderedDict

import pytest
from test_reuse import work_of

from hetsched.placement.reuse import LAST_READ, URGENT, WINDOW, Work, by_reuse, missed_bytes


class PlainCaches:
    def __init__(self, work, capacity, count):
        self.work, self.capacity = work, capacity
        self.held = [OrderedDict() for _ in range(count)]
        self.left, self.turn = list(work.readers), 0

    def touch(self, task):
        held, nbytes, missed = self.held[self.turn], self.work.nbytes, 0
        self.turn = (self.turn + 1) % len(self.held)
        for value in self.work.reads[task]:
            missed += 0 if value in held else nbytes[value]
            held[value] = None
            held.move_to_end(value)
            self.left[value] -= 1
        for value in self.work.reads[task]:
            if not self.left[value]:
                for there in self.held:
                    there.pop(value, None)
        held.update((value, None) for value in self.work.writes[task])
        while sum(nbytes[v] for v in held) > self.capacity:
            held.popitem(last=False)
        return missed

    def worth(self, task):
        reads = self.work.reads[task]
        return sum(self.work.nbytes[v] * (1 if self.left[v] > 1 else LAST_READ) for v in reads for held in self.held if v in held)


def plainly(work, threads, capacity, caches):
    """What `by_reuse` is told to do."""
    path = {}
    for task in reversed(work.order):
        path[task] = work.seconds[task] + max((path[t] for t in work.later[task]), default=0.0)
    waits = [sum(task in row for row in work.later) for task in range(len(work.order))]
    cache, left, out = PlainCaches(work, capacity, caches), sum(work.seconds) / threads, []
    ready, free, ends = [t for t, k in enumerate(waits) if not k], [0.0] * threads, []
    while ready or ends:
        while ends and (min(ends)[0] <= min(free) or not ready):
            now, task = min(ends)
            ends.remove((now, task))
            for later in work.later[task]:
                waits[later] -= 1
                if not waits[later]:
                    ready = sorted([*ready, later])
            free = [max(at, now) if min(free) < now else at for at in free]
        if not ready:
            break
        urgent = min(ready, key=lambda t: (-path[t], t))
        task = urgent if path[urgent] >= URGENT * left else max(ready[:WINDOW], key=cache.worth)
        ready.remove(task)
        cache.touch(task)
        out.append(task)
        left -= work.seconds[task] / threads
        finish = min(free) + work.seconds[task]
        free[free.index(min(free))] = finish
        ends.append((finish, task))
    return out


@pytest.mark.parametrize("seed", range(60))
def test_orders_and_bytes_are_those_of_the_plain_rule(seed):
    work = work_of(seed)
    for threads, capacity, caches in ((1, 0, 1), (2, 120, 1), (2, 300, 2), (3, 200, 3), (2, 10_000, 2)):
        order = by_reuse(work, threads, capacity, caches)
        assert order == plainly(work, threads, capacity, caches)
        for given in (order, list(work.order)):
            plain = PlainCaches(work, capacity, caches)
            assert missed_bytes(work, given, capacity, caches) == sum(map(plain.touch, given))


def many(n, inputs):
    """Tasks that may all run at once, more than stand in the window, in pairs that read the same values far apart."""
    reads = [[t * 7 % inputs, inputs + t % 5] for t in range(n)]
    readers = [sum(v in row for row in reads) for v in range(inputs + 5)] + [0] * n
    first = inputs + 5
    return Work(list(range(n)), [1.0] * n, reads, [[first + t] for t in range(n)], [[] for _ in range(n)], [10] * (first + n), readers)


def test_tasks_that_come_into_the_window_later_are_known():
    work = many(3 * WINDOW, 40)
    for caches in (1, 2):
        assert by_reuse(work, 2, 120, caches) == plainly(work, 2, 120, caches)


def test_values_without_bytes_leave_several_caches():
    # 0 has no bytes, is in both caches of two, and leaves both before it is read for the last time.
    n = 5
    work = Work(list(range(n)), [1.0] * n, [[0], [0], [], [], [0]], [[1 + t] for t in range(n)], [[]] * n, [0] + [10] * n, [3] + [0] * n)
    for caches in (1, 2, 3):
        assert missed_bytes(work, work.order, 10, caches) == 0
        assert sorted(by_reuse(work, 2, 10, caches)) == [0, 1, 2, 3, 4]
