"""What threads that share the tasks of their device will make of a plan: the times and lanes that the plan should state.

A policy books lanes one task after another. The threads of one device do not keep to them: the plan fixes device and priority, and a thread that
finishes a task goes on with the readied task of highest priority, leaving others to whoever is idle (see `executors.relay` and `executors.cpu`, whose
rules these are). For a list that was booked well that comes to the same; a bad one runs faster than it was booked. So before a plan is laid out in
memory it is gone through once more as it will be run, with the seconds that were booked: list scheduling (Graham, Bounds on multiprocessing timing
anomalies, SIAM J. Appl. Math. 17(2), 1969) with a preference for what the last task has made ready.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hetsched.placement.draft import GraphDraft

# As `executors.relay` has it: a thread goes on with what it has made ready, unless something that waits is planned this share of all steps earlier.
STAY_SHARE, STAY_STEPS = 1 / 8, 32
# A plan is written anew where its makespan changes by more than this share of it.
LEAST_CHANGE = 0.01
# Larger graphs keep the times that were booked: this takes some 4 us a task.
MOST_TASKS = 20_000


@dataclass(frozen=True, eq=False)
class Shared:
    """Times of a draft as it will be run. start, finish, lane: of each task; copies: the draft's, at their new times; makespan in seconds."""

    start: list[float]
    finish: list[float]
    lane: list[int]
    copies: Any
    makespan: float


def shared_run(draft: GraphDraft, copies: Any) -> Shared | None:
    """A finished draft as the threads will run it; None where no threads share anything, where its makespan stays what it is, and for large graphs.

    copies: its copies, `native.COPIED`.
    """
    if not 1 < len(draft.booked) <= MOST_TASKS or draft.problem.loops:
        return None
    threads = _threads(draft)
    if max(threads, default=0) < 2:
        return None
    found = _Run(draft, copies, threads).to_the_end()
    return found if abs(found.makespan - draft.finish()) > LEAST_CHANGE * found.makespan else None


def _threads(draft: GraphDraft) -> list[int]:
    """For each pool how many threads will share its tasks: as many as the lanes that are named; 0: its lanes are streams, or not used."""
    problem = draft.problem
    assert problem.machine is not None
    found = [0] * len(problem.pools)
    for choice, lane in zip(draft.choice_of, draft.lane_of, strict=True):
        where = problem.choices[choice]
        if problem.machine.devices[where.device].shares_lanes:
            pool = problem.pools[where.pool]
            found[where.pool] = max(found[where.pool], pool.lanes if where.width > 1 else lane + 1)
    return found


class _Run:
    """One walk. Steps are the tasks, and behind them the copies. `ready`: for each pool of threads (priority, task)."""

    def __init__(self, draft: GraphDraft, copies: Any, threads: list[int]) -> None:
        problem = self.problem = draft.problem
        n = self.n = len(problem)
        self.copies = copies
        rows = copies.tolist()
        self.seconds = [b - a for a, b in zip(draft.start_of, draft.finish_of, strict=True)] + [row[4] - row[3] for row in rows]
        place = {task: i for i, task in enumerate(draft.booked)}
        order = sorted(range(n), key=lambda t: (draft.start_of[t], draft.finish_of[t], place[t]))
        self.rank = [0] * n
        for rank, task in enumerate(order):
            self.rank[task] = rank
        choices = self.choices = [problem.choices[c] for c in draft.choice_of]
        self.pool = [c.pool for c in choices]
        self.lane = list(draft.lane_of)
        self.is_shared = [threads[c.pool] > 0 for c in choices]
        self.near: list[list[int]] = [[] for _ in range(n + len(rows))]
        self.waits = [0] * (n + len(rows))
        self._arcs(draft, rows, order)
        # Where all is done by the threads of one device they take what they have made ready themselves; else a heap under a lock decides.
        self.continues = not rows and all(self.is_shared) and all(c.width == 1 for c in choices) and len({c.device for c in choices}) == 1
        self.stay = max(STAY_STEPS, int(STAY_SHARE * n))
        self.idle = [list(range(k))[::-1] for k in threads]
        self.busy = [0] * len(threads)
        self.crossing = [problem.machine.devices[p.device].crossing_seconds for p in problem.pools] if problem.machine is not None else []
        self.ready: list[list[tuple[int, int]]] = [[] for _ in threads]
        self.alone = [-1] * len(threads)
        self.held: list[int] = []  # steps of streams that wait for a resource
        self.left = [float(c) for c in problem.resource_capacity]
        self.uses: list[Sequence[float]] = [problem.uses[c].tolist() for c in range(len(problem.choices))] if self.left else []
        self.uses_of = [self.uses[c] for c in draft.choice_of] if self.left else []
        self.start = [0.0] * (n + len(rows))
        self.finish = [0.0] * (n + len(rows))
        self.running: list[tuple[float, int, int]] = []
        self.number = 0

    def _arcs(self, draft: GraphDraft, rows: list[Any], order: list[int]) -> None:
        """Who waits for whom: data, order-only edges, and the order of streams and copy engines."""
        graph, choices = draft.graph, self.choices
        n, nodes = self.n, len(self.problem.node_names)
        outputs, inputs, read = graph.output_start.tolist(), graph.input_start.tolist(), graph.input_values.tolist()
        maker = {value * nodes + choices[t].node: t for t in range(n) for value in range(outputs[t], outputs[t + 1])}
        maker |= {row[0] * nodes + row[2]: n + i for i, row in enumerate(rows)}

        def arc(before: int, later: int) -> None:
            self.near[before].append(later)
            self.waits[later] += 1

        for task in range(n):
            node = choices[task].node
            for value in read[inputs[task] : inputs[task + 1]]:
                made = maker.get(value * nodes + node)
                if made is not None:
                    arc(made, task)
        for i, row in enumerate(rows):
            made = maker.get(row[0] * nodes + row[1])
            if made is not None:
                arc(made, n + i)
        for before, later in graph.after:
            arc(before, later)
        streams: dict[Any, list[int]] = {}
        for task in order:
            if not self.is_shared[task]:
                pool = self.problem.pools[choices[task].pool]
                for lane in range(pool.lanes) if choices[task].width > 1 else (self.lane[task],):
                    streams.setdefault((choices[task].pool, lane), []).append(task)
        for i in sorted(range(len(rows)), key=lambda i: (rows[i][3], rows[i][4], rows[i][6])):
            if self.problem.engines[rows[i][1], rows[i][2]]:
                streams.setdefault(("copy", rows[i][1], rows[i][2], rows[i][5]), []).append(n + i)
        for steps in streams.values():
            for before, later in pairwise(steps):
                arc(before, later)

    def to_the_end(self) -> Shared:
        """Walk."""
        self._made_ready([step for step, k in enumerate(self.waits) if not k], 0.0, -1)
        self._dispatch(0.0)
        while self.running:
            now, _, step = heappop(self.running)
            self._ended(step, now)
            self._dispatch(now)
        n, copies = self.n, self.copies.copy()
        copies["start"], copies["finish"] = self.start[n:], self.finish[n:]
        return Shared(self.start[:n], self.finish[:n], self.lane, copies, max(self.finish, default=0.0))

    def _ended(self, step: int, now: float) -> None:
        own = -1
        if step < self.n:
            for r, amount in enumerate(self.uses_of[step] if self.left else ()):
                self.left[r] += amount
            if self.is_shared[step]:
                own = self.pool[step]
                wide = self.choices[step].width > 1
                self.busy[own] -= 1
                self.idle[own] += range(self.problem.pools[own].lanes) if wide else (self.lane[step],)
        readied = []
        for later in self.near[step]:
            self.waits[later] -= 1
            if not self.waits[later]:
                readied.append(later)
        self._made_ready(readied, now, own)

    def _made_ready(self, steps: list[int], now: float, own: int) -> None:
        """Put steps where they are taken from. own: the pool whose thread has just made them ready, and goes on at once; -1: no thread did."""
        best = -1
        for step in steps:
            if step >= self.n or not self.is_shared[step]:
                self.held.append(step)
            elif own == self.pool[step] and self.continues and (best < 0 or self.rank[step] < self.rank[best]):
                if best >= 0:
                    heappush(self.ready[own], (self.rank[best], best))
                best = step
            else:
                heappush(self.ready[self.pool[step]], (self.rank[step], step))
        if own < 0:
            return
        heap = self.ready[own]
        if best >= 0 and heap and heap[0][0] < self.rank[best] - self.stay:
            heappush(heap, (self.rank[best], best))
            best = -1
        if best < 0 and heap and self.choices[heap[0][1]].width == 1 and self.alone[own] < 0 and self._fits(heap[0][1]):
            best = heappop(heap)[1]
        elif best >= 0 and not self._fits(best):
            heappush(heap, (self.rank[best], best))
            best = -1
        if best >= 0:
            self._begin(best, now, self.idle[own].pop())

    def _fits(self, step: int) -> bool:
        return not self.left or all(amount <= left * (1 + 1e-9) for amount, left in zip(self.uses_of[step], self.left, strict=True))

    def _begin(self, step: int, start: float, lane: int = -1) -> None:
        if step < self.n:
            for r, amount in enumerate(self.uses_of[step] if self.left else ()):
                self.left[r] -= amount
            if lane >= 0:
                self.lane[step] = lane
                self.busy[self.pool[step]] += 1
        self.start[step], self.finish[step] = start, start + self.seconds[step]
        self.number += 1
        heappush(self.running, (self.finish[step], self.number, step))

    def _dispatch(self, now: float) -> None:
        """Start what is ready and finds its place: on streams and links what comes next there, on threads that are idle by priority."""
        if self.held:
            waiting, self.held = self.held, []
            for step in waiting:
                if step >= self.n or self._fits(step):
                    self._begin(step, now)
                else:
                    self.held.append(step)
        for pool, heap in enumerate(self.ready):
            idle = self.idle[pool]
            while idle and (heap or self.alone[pool] >= 0):
                if self.alone[pool] < 0 and self.choices[heap[0][1]].width > 1:
                    self.alone[pool] = heappop(heap)[1]
                if self.alone[pool] >= 0:
                    wide = self.alone[pool]
                    if self.busy[pool] or not self._fits(wide):
                        break
                    idle.clear()
                    self._begin(wide, now, 0)
                    self.alone[pool] = -1
                elif self._fits(heap[0][1]):
                    lane = idle.pop()
                    # Whoever sleeps must be woken; the caller's thread is awake when the run begins.
                    self._begin(heappop(heap)[1], now + (self.crossing[pool] if lane or now else 0.0), lane)
                else:
                    break
