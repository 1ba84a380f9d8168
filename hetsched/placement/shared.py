"""What a run will make of a plan: the times and lanes that the plan should state.

A policy books lanes one task after another. The threads of one device do not keep to them: the plan fixes device and priority, and a thread that
finishes a task goes on with the readied task of highest priority, leaving others to whoever is idle (see `executors.relay` and `executors.cpu`, whose
rules these are). For a list that was booked well that comes to the same; a bad one runs faster than it was booked. Nor do policies book what lies
between steps: threads that are not there yet, steps that are handed from one to another (`costs.handover`).

So before a plan is laid out in memory it is gone through once more as it will be run, with the seconds that were booked for its tasks: list
scheduling (Graham, Bounds on multiprocessing timing anomalies, SIAM J. Appl. Math. 17(2), 1969) that prefers what the last task has made ready.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from hetsched.placement.costs.handover import body_lanes, handover_of, way_of
from hetsched.placement.reuse import COUNTED_SHARE, OWN_SHARE, Level, Work, by_reuse, inputs_nbytes, missed_bytes
from hetsched.timeline import STAY_SHARE, STAY_STEPS, Lane, Timeline

if TYPE_CHECKING:
    from hetsched.machine import Device
    from hetsched.placement.draft import GraphDraft

# A plan is written anew where its makespan changes by more than this share of it.
LEAST_CHANGE = 0.01
# Larger graphs keep the times that were booked: this takes some 5 us a task.
MOST_TASKS = 5_000


@dataclass(frozen=True, eq=False)
class Shared:
    """Times of a draft as it will be run. start, finish, lane: of each task; copies: the draft's, at their new times; makespan in seconds.

    fetched: of each level of caches that was looked at: its name, bytes that come from beyond it, and that would have in the order of the policy,
    where the order was changed for that (`reuse`).
    """

    start: list[float]
    finish: list[float]
    lane: list[int]
    copies: Any
    makespan: float
    fetched: tuple[tuple[str, int, int], ...] = ()

    def order(self) -> list[int]:
        """The tasks as they start."""
        return sorted(range(len(self.start)), key=lambda t: (self.start[t], self.finish[t]))

    def told(self, plan: Timeline) -> Timeline:
        """`plan`, which is to have these times, with what is to be said of them."""
        if not self.fetched:
            return plan
        told = [
            f"{now / 2**20:,.0f} MiB of inputs come {name}, instead of {before / 2**20:,.0f} MiB"
            for name, now, before in self.fetched
            if now != before
        ]
        note = f"tasks that read the same values run close together: {'; '.join(told)}"
        return replace(plan, keeps_order=True, notes=(*plan.notes, note))


def shared_run(draft: GraphDraft, copies: Any) -> Shared | None:
    """A finished draft as it will be run; None where its makespan stays what it is, and for large graphs.

    copies: its copies, `native.COPIED`.
    """
    if not 1 <= len(draft.booked) <= MOST_TASKS:
        return None
    run = _Run(draft, copies)
    if run.way.threads < 2 and not run.handover.known:
        return None  # one thread does what it did in the draft
    found = run.to_the_end()
    return found if found is not None and abs(found.makespan - draft.finish()) > LEAST_CHANGE * found.makespan else None


def near_run(draft: GraphDraft, copies: Any) -> Shared | None:
    """A finished draft in an order of its tasks that finds more in the caches, where that is worth more than the makespan it costs; else None."""
    if not 1 <= len(draft.booked) <= MOST_TASKS or not (levels := _levels(draft)):
        return None
    run = _Run(draft, copies)
    found = run.to_the_end() if run.way.is_plain else None
    if found is None:
        return None
    work, threads = run.work(draft.reads), run.way.threads
    levels = [level._replace(caches=min(level.caches, threads), per_byte=level.per_byte / threads) for level in levels]

    def missed(shared: Shared) -> list[int]:
        order = shared.order()
        return [missed_bytes(work, order, level.nbytes, level.caches) for level in levels]

    def cost(shared: Shared, fetched: list[int]) -> float:
        return shared.makespan + sum(nbytes * level.per_byte for nbytes, level in zip(fetched, levels, strict=True))

    before, least = missed(found), inputs_nbytes(work)
    best, lowest, now = None, cost(found, before) * (1 - LEAST_CHANGE), before
    for level, nbytes in zip(levels, before, strict=True):
        if (nbytes - least) * level.per_byte < LEAST_CHANGE * found.makespan:
            continue  # no order spares that much
        near = run.again(by_reuse(work, threads, level.nbytes, level.caches)).to_the_end()
        if near is not None and cost(near, fetched := missed(near)) <= lowest:
            best, lowest, now = near, cost(near, fetched), fetched
    if best is None:
        return None
    return replace(best, fetched=tuple((level.name, a, b) for level, a, b in zip(levels, now, before, strict=True)))


def _levels(draft: GraphDraft) -> list[Level]:
    """The levels of caches for which the order may matter: where the threads of one device do everything, on one lane each, those that hold as much

    as a task touches and less than all values. per_byte: of one thread. What fills a lane's own cache is taken to be as fast as memory, at least.
    """
    used = {draft.problem.choices[c] for c in set(draft.choice_of)}
    if len(used) > 1 or any(choice.pool < 0 or choice.width > 1 for choice in used):
        return []
    graph, device = draft.graph, _device_of(draft)
    total, per_byte = int(graph.value_nbytes.sum()), 1 / device.bytes_per_second
    levels = [
        Level(int((device.cache_nbytes or 0) * COUNTED_SHARE), device.caches, per_byte, "from memory rather than from the cache"),
        Level(int((device.lane_cache_nbytes or 0) * OWN_SHARE), device.lanes, per_byte, "from beyond the cache of a core"),
    ]
    touched = (int(graph.value_nbytes[graph.input_values].sum()) + total) / len(graph)
    return [level for level in levels if touched <= level.nbytes < total]


def _device_of(draft: GraphDraft) -> Device:
    """The device of the first task."""
    return draft.machine.devices[draft.problem.choices[draft.choice_of[0]].device]


class _Run:
    """One walk. Steps are the tasks, and behind them the copies. `ready`: for each pool of threads (priority, task).

    Priority is the order of booking, and threads may stay with what they have made ready.
    """

    def __init__(self, draft: GraphDraft, copies: Any) -> None:
        problem = self.problem = draft.problem
        self.machine = draft.machine
        n = self.n = len(problem)
        self.copies = copies
        rows = copies.tolist()
        self.seconds = [b - a for a, b in zip(draft.start_of, draft.finish_of, strict=True)] + [row[4] - row[3] for row in rows]
        self.choices = [problem.choices[c] for c in draft.choice_of]
        self.booked_lane = draft.lane_of
        place = {task: i for i, task in enumerate(draft.booked)}
        order = sorted(range(n), key=lambda t: (draft.start_of[t], draft.finish_of[t], place[t]))
        is_thread_pool = [self.machine.devices[p.device].shares_lanes for p in problem.pools]
        # The pools of threads that a task goes to (a loop holds several), and the one that it waits in; -1: it goes to a stream.
        of_choice: list[tuple[int, ...]] = [(c.pool,) if c.pool >= 0 and is_thread_pool[c.pool] else () for c in problem.choices]
        self.pools_of = [of_choice[c] for c in draft.choice_of]
        for task in problem.loops:
            self.pools_of[task] = self._pools_of_loop(task, is_thread_pool)
        self.pool = [pools[0] if pools else -1 for pools in self.pools_of]
        self.is_whole = [c.pool < 0 or c.width > 1 for c in self.choices]  # it takes all threads of its pools
        self.near: list[list[int]] = [[] for _ in range(n + len(rows))]
        self.waits = [0] * (n + len(rows))
        self.owner = [problem.device_ids[c.device] if c.device >= 0 else "" for c in self.choices]
        self.owner += [f"{problem.node_names[row[1]]}->{problem.node_names[row[2]]}" for row in rows]
        self.queue: dict[int, Any] = {}  # step -> the stream or engine that it stands in
        self._arcs(draft, rows, order)
        self.preds = self.waits
        self.handover = handover_of(problem.costs, self.machine)
        on = list(self._lanes_used(draft, rows))
        self.way = way_of(self.machine, on, bool(problem.loops))
        owners = [*(d.id for d in self.machine.devices), *(x.id for x in self.machine.links)]
        self.next = {owner: self.handover.next(self.way, owner) for owner in owners}
        self.handed = {(owner, is_from): self.handover.handed(self.way, owner, is_from) for owner in owners for is_from in (False, True)}
        self.threads = self._threads(on)
        self.uses_of = [draft.uses_of(t) for t in range(n)] if problem.resource_names else []
        self._begin_with(order, max(STAY_STEPS, int(STAY_SHARE * n)))

    def again(self, order: list[int]) -> _Run:
        """The same steps with the tasks by another priority, to which threads keep. Only for plans whose way is plain: no step stands in a queue."""
        other = copy(self)
        other._begin_with(order, 0)
        return other

    def _begin_with(self, order: list[int], stay: int) -> None:
        """Nothing has run. stay: so many places in the order threads may go back to stay with what they have made ready."""
        problem, steps = self.problem, len(self.seconds)
        self.order, self.stay = order, stay
        self.rank = [0] * self.n
        for rank, task in enumerate(order):
            self.rank[task] = rank
        self.lane = list(self.booked_lane)
        self.waits = list(self.preds)
        self.idle: list[list[int]] = [[] for _ in problem.pools]
        self.busy = [0] * len(problem.pools)
        self.closed = [-1] * len(problem.pools)  # the task that waits for all threads of a pool, or has them
        self.ready: list[list[tuple[int, int]]] = [[] for _ in problem.pools]
        self.held: list[int] = []  # steps of streams that wait for a resource
        self.began: set[Any] = set()  # streams and engines that have done something, and what holds all threads of its pools
        self.done: set[int] = set()
        self.left = [float(c) for c in problem.resource_capacity]
        self.start = [0.0] * steps
        self.finish = [0.0] * steps
        self.number = 0
        # (when, number, step that ends then, or -1 - pool of a thread that is there from then on, its lane)
        self.events: list[tuple[float, int, int, int]] = []
        for pool, numbers in self.threads.items():
            device = self.machine.devices[problem.pools[pool].device]
            for lane in numbers:
                self._event(self.handover.first(self.way, device, problem.pools[pool].kind, lane), -1 - pool, lane)

    def work(self, reads: list[list[int]]) -> Work:
        """The tasks by priority. reads: the values that each task reads, each once."""
        graph = self.problem.graph
        assert graph is not None
        readers = [0] * len(graph.value_names)
        for row in reads:
            for value in row:
                readers[value] += 1
        writes = [range(a, b) for a, b in pairwise(graph.output_start.tolist())]
        return Work(self.order, self.seconds, reads, writes, self.near[: self.n], graph.value_nbytes.tolist(), readers)

    def _pools_of_loop(self, task: int, is_thread_pool: list[bool]) -> tuple[int, ...]:
        problem = self.problem
        kinds = {(lane.owner, lane.kind) for lane in problem.loop_lanes[task]}
        return tuple(i for i, p in enumerate(problem.pools) if is_thread_pool[i] and (problem.device_ids[p.device], p.kind) in kinds)

    def _lanes_used(self, draft: GraphDraft, rows: list[Any]) -> Iterator[tuple[Lane, ...]]:
        """The sets of lanes that tasks and copies are on, most of them once."""
        problem = self.problem
        for c, number in dict.fromkeys(zip(draft.choice_of, draft.lane_of, strict=True)):
            choice = problem.choices[c]
            if choice.pool >= 0:
                pool = problem.pools[choice.pool]
                numbers = range(pool.lanes) if choice.width > 1 else (number,)
                yield tuple(Lane(problem.device_ids[pool.device], k, pool.kind) for k in numbers)
        for first in problem.loops.values():
            for plan in first.alternatives:
                yield from body_lanes(plan)
        for i, row in enumerate(rows):
            yield (Lane(self.owner[self.n + i], row[5], "copy"),)

    def _threads(self, on: list[tuple[Lane, ...]]) -> dict[int, range]:
        """Pool -> the threads that will share its tasks: as many as the lanes that are named, and the caller's in any case."""
        problem, most = self.problem, dict.fromkeys(((lane.owner, lane.kind) for lanes in on for lane in lanes), 0)
        for lane in (lane for lanes in on for lane in lanes):
            most[lane.owner, lane.kind] = max(most[lane.owner, lane.kind], lane.number + 1)
        found = {}
        for i, pool in enumerate(problem.pools):
            if self.machine.devices[pool.device].shares_lanes:
                found[i] = range(max(most.get((problem.device_ids[pool.device], pool.kind), 0), pool.kind == "compute"))
        return found

    def _arcs(self, draft: GraphDraft, rows: list[Any], order: list[int]) -> None:
        """Who waits for whom: data, order-only edges, and the order of streams and copy engines."""
        graph, choices, problem = draft.graph, self.choices, self.problem
        n, nodes = self.n, len(problem.node_names)
        outputs, near, waits = graph.output_start.tolist(), self.near, self.waits
        maker = {value * nodes + choices[t].node: t for t in range(n) for value in range(outputs[t], outputs[t + 1])}
        maker |= {row[0] * nodes + row[2]: n + i for i, row in enumerate(rows)}

        def arc(before: int, later: int) -> None:
            near[before].append(later)
            waits[later] += 1

        for task, values in enumerate(draft.reads):
            node = choices[task].node
            for value in values:
                made = maker.get(value * nodes + node)
                if made is not None:
                    near[made].append(task)
                    waits[task] += 1
        for i, row in enumerate(rows):
            made = maker.get(row[0] * nodes + row[1])
            if made is not None:
                arc(made, n + i)
        for before, later in graph.after:
            arc(before, later)
        queues: dict[Any, list[int]] = {}
        for task in order:
            for queue in self._queues_of(task) if choices[task].pool < 0 or not self.pools_of[task] else ():
                queues.setdefault(queue, []).append(task)
        for i in sorted(range(len(rows)), key=lambda i: (rows[i][3], rows[i][4], rows[i][6])):
            self.queue[n + i] = rows[i][1], rows[i][2], rows[i][5]
            if problem.engines[rows[i][1], rows[i][2]]:
                queues.setdefault(self.queue[n + i], []).append(n + i)
        for queue, steps in queues.items():
            if isinstance(queue[0], int):  # copies stand in the order of booking, loops among them in that of time
                steps.sort(key=lambda s: draft.start_of[s] if s < n else rows[s - n][3])
            for before, later in pairwise(steps):
                arc(before, later)

    def _queues_of(self, task: int) -> list[Any]:
        """The streams and copy engines whose order a task keeps: (device, kind, lane), or (source, target, engine)."""
        choice, problem = self.choices[task], self.problem
        if choice.pool < 0:
            shared = {d.id for d in self.machine.devices if d.shares_lanes}
            out: list[Any] = []
            for lane in problem.loop_lanes[task]:
                if lane.kind == "copy":
                    link = next(x for x in self.machine.links if x.id == lane.owner)
                    out.append((problem.node_names.index(link.src), problem.node_names.index(link.dst), lane.number))
                elif lane.owner not in shared:
                    out.append((lane.owner, lane.kind, lane.number))
            return out
        pool = problem.pools[choice.pool]
        lanes = range(pool.lanes) if choice.width > 1 else (self.booked_lane[task],)
        found = [(problem.device_ids[pool.device], pool.kind, lane) for lane in lanes]
        self.queue[task] = found[0]
        return list(found)

    # The walk -------------------------------------------------------------------------------------------------------------------

    def to_the_end(self) -> Shared | None:
        """Walk; None where it comes to a stop."""
        self._made_ready([step for step, k in enumerate(self.waits) if not k], 0.0, -1, -1)
        self._dispatch(0.0, -1)
        while self.events:
            now, _, step, lane = heappop(self.events)
            if step < 0:
                self.idle[-1 - step].append(lane)
            else:
                self._ended(step, lane, now)
            self._dispatch(now, step)
        if len(self.done) < len(self.seconds):
            return None
        n, copies = self.n, self.copies.copy()
        copies["start"], copies["finish"] = self.start[n:], self.finish[n:]
        return Shared(self.start[:n], self.finish[:n], self.lane, copies, max(self.finish, default=0.0))

    def _event(self, when: float, step: int, lane: int) -> None:
        self.number += 1
        heappush(self.events, (when, self.number, step, lane))

    def _ended(self, step: int, lane: int, now: float) -> None:
        own = -1
        self.done.add(step)
        if step < self.n:
            for r, amount in enumerate(self.uses_of[step] if self.left else ()):
                self.left[r] += amount
            if self.is_whole[step]:
                for pool in self.pools_of[step]:
                    self.closed[pool] = -1
            elif self.pool[step] >= 0:
                own = self.pool[step]
                self.busy[own] -= 1
                self.idle[own].append(lane)
        readied = []
        for later in self.near[step]:
            self.waits[later] -= 1
            if not self.waits[later]:
                readied.append(later)
        self._made_ready(readied, now, own, step)

    def _made_ready(self, steps: list[int], now: float, own: int, ended: int) -> None:
        """Put steps where they are taken from. own: the pool whose thread has just made them ready, and goes on at once; -1: no thread did."""
        best = -1
        for step in steps:
            if step >= self.n or self.pool[step] < 0:
                self.held.append(step)
            elif own == self.pool[step] and self.way.is_plain and (best < 0 or self.rank[step] < self.rank[best]):
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
        if best < 0 and heap and self.closed[own] < 0 and not self.is_whole[heap[0][1]]:
            best = heappop(heap)[1]
        if best < 0:
            return
        if not self._fits(best):
            heappush(heap, (self.rank[best], best))
            return
        is_joined = self.near[ended] == [best] and self.preds[best] == 1  # executors make one step of the two
        self._begin(best, now + (0.0 if is_joined else self.next[self.owner[best]]), self.idle[own].pop())

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
        self._event(self.finish[step], step, lane)

    def _dispatch(self, now: float, ended: int) -> None:
        """Start what is ready and finds its place: on streams and links what comes next there, on threads that are idle by priority.

        ended: the step that has just ended; below 0: none has.
        """
        is_from_stream = ended >= 0 and (ended >= self.n or self.pool[ended] < 0)
        if self.held:
            waiting, self.held = self.held, []
            for step in waiting:
                if step >= self.n or self._fits(step):
                    self._begin(step, now + self._to_stream(step, ended, is_from_stream))
                else:
                    self.held.append(step)
        for pool, heap in enumerate(self.ready):
            while heap or self.closed[pool] >= 0:
                step = self.closed[pool] if self.closed[pool] >= 0 else heap[0][1]
                if self.is_whole[step]:
                    self._begin_whole(step, pool, now)
                    break
                if self.idle[pool] and self._fits(step):
                    heappop(heap)
                    # A thread that has just come asks for work itself; others sleep, and are woken.
                    wakes = self.handed[self.owner[step], is_from_stream] if ended >= 0 else 0.0
                    self._begin(step, now + wakes, self.idle[pool].pop())
                else:
                    break

    def _begin_whole(self, step: int, pool: int, now: float) -> None:
        """Start a loop or a wide launch if all threads of its pools are free; nothing else of them starts before."""
        if step in self.began:
            return
        if self.closed[pool] < 0:
            heappop(self.ready[pool])
        pools = self.pools_of[step]
        for other in pools:
            if self.closed[other] < 0:
                self.closed[other] = step
        if all(self.closed[other] == step and not self.busy[other] for other in pools) and self._fits(step):
            self.began.add(step)
            self._begin(step, now + self.next[self.problem.device_ids[self.problem.pools[pool].device]])

    def _to_stream(self, step: int, ended: int, is_from_stream: bool) -> float:
        queue, owner = self.queue.get(step), self.owner[step]
        if queue is None:
            return 0.0
        is_first = queue not in self.began
        self.began.add(queue)
        if is_first:
            return self.handover.stream(owner)
        return self.next[owner] if self.queue.get(ended) == queue else self.handed[owner, is_from_stream]
