"""The draft of costed graphs: links are contention-free and memory is unbounded, so it is quick."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from hetsched.errors import PlanError
from hetsched.placement import native
from hetsched.placement.draft import Draft, HopelessError
from hetsched.placement.facts import list_facts
from hetsched.placement.problem import FloatArray, Problem
from hetsched.placement.ranks import code_for, least_tails

# Up to so many tasks lanes are idle often enough for sums of seconds to tell where a task cannot finish first.
SPARSE = 500


class CostedDraft(Draft):
    """The plan of a costed graph, being written. The hot path of planning: HEFT at 10,000 tasks x 16 devices takes at most 30 us a task."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.finish_of = [math.inf] * len(problem)  # so that a task asked for before its predecessors finds no place
        self._nothing = [0.0] * len(problem.choices)
        self._zeros = [0.0] * len(problem.node_names)
        self._lanes = [[([0.0], [math.inf]) for _ in range(pool.lanes)] for pool in problem.pools]
        self.lane_of = [0] * len(problem)
        self._found: tuple[int, int, float, int] | None = None

    # What follows from the problem alone is shared by all drafts of it, and made only where it is asked for: machine code does without.

    @cached_property
    def _preds(self) -> list[list[tuple[int, float]]]:
        """Of each task: (predecessor, bytes from it)."""
        problem = self.problem
        if "pairs" not in problem.memo:
            pairs = list(zip(problem.pred_task.tolist(), problem.pred_nbytes.tolist(), strict=True))
            problem.memo["pairs"] = [pairs[a:b] for a, b in pairwise(problem.pred_start.tolist())]
        pairs_of: list[list[tuple[int, float]]] = problem.memo["pairs"]
        return pairs_of

    @cached_property
    def _seconds(self) -> list[list[float]]:
        if "rows" not in self.problem.memo:
            self.problem.memo["rows"] = self.problem.durations.tolist()
        rows: list[list[float]] = self.problem.memo["rows"]
        return rows

    @cached_property
    def _node(self) -> list[int]:
        node: list[int] = self.problem.nodes.tolist()
        return node

    @cached_property
    def _links(self) -> list[list[tuple[float, float]]]:
        """From each node to every node: (latency, seconds per byte). Nodes without a device are never asked for."""
        latency, per_byte = self.problem.latency.tolist(), self.problem.seconds_per_byte.tolist()
        return [list(zip(a, b, strict=True)) for a, b in zip(latency, per_byte, strict=True)]

    @cached_property
    def _shortest(self) -> list[float]:
        """Gaps shorter than any task on the device can hold nothing and are not kept."""
        if "shortest" not in self.problem.memo:
            self.problem.memo["shortest"] = (self.problem.durations.min(axis=0, initial=np.inf) * (1 - 1e-9)).tolist()
        shortest: list[float] = self.problem.memo["shortest"]
        return shortest

    def place_all(self, order: Sequence[int], behind: FloatArray | None = None, wanted: Sequence[int] | None = None) -> None:
        code = code_for(self.problem) if not self.booked else None
        if code is None:
            if behind is None or wanted is not None or len(order) > SPARSE:
                super().place_all(order, behind, wanted)
            else:
                self._place_by_sums(order, behind)
            return
        facts = list_facts(self.problem)
        if self.give_up_above < math.inf:
            facts = facts._replace(tail=least_tails(self.problem))
        found = native.book(code, facts, self._shortest, order, behind, wanted, self.give_up_above)
        if found is None:
            raise HopelessError
        choice, start, finish, lane, booked = found
        if booked < len(order):
            self._check(order[booked], int(np.argmin(self.problem.durations[order[booked]])))
            raise self._refuse(order[booked], "no device can run it")
        self.choice_of, self.start_of, self.finish_of, self.lane_of = choice.tolist(), start.tolist(), finish.tolist(), lane.tolist()
        self.booked = list(order)

    def _place_by_sums(self, order: Sequence[int], behind: FloatArray) -> None:
        """`Draft.place_all`, the choices of each task visited by their sum of seconds and `behind`, until none of the rest can be better."""
        rows = behind[order]
        sums = self.problem.durations[order] + rows
        by_sum = np.argsort(sums, axis=1, kind="stable")
        tails = least_tails(self.problem).tolist() if self.give_up_above < math.inf else None
        columns = np.take_along_axis(sums, by_sum, 1).tolist(), by_sum.tolist(), rows.tolist()
        for task, ascending, choices, extras in zip(order, *columns, strict=True):
            finish = self.place(task, self._earliest_by_sum(task, ascending, choices, extras))
            if tails is not None and finish + tails[task] > self.give_up_above:
                raise HopelessError

    def _earliest_by_sum(self, task: int, sums: list[float], choices: list[int], extras: list[float]) -> int:
        """`earliest`: of the choices by ascending sums of seconds and extras, until no other can be better."""
        finish_of, choice_of, node, preds, seconds = self.finish_of, self.choice_of, self._node, self._preds[task], self._seconds[task]
        floor = 0.0
        for before, _ in preds:
            if finish_of[before] > floor:
                floor = finish_of[before]
        best, least, begin, number, enough = -1, math.inf, 0.0, 0, math.inf
        for total, choice in zip(sums, choices, strict=True):
            if floor + total > enough or total == math.inf:
                break
            duration, extra, to = seconds[choice], extras[choice], node[choice]
            at = 0.0
            for before, nbytes in preds:
                latency, per_byte = self._links[node[choice_of[before]]][to]
                new = finish_of[before] + latency + nbytes * per_byte
                at = at if at > new else new
            soonest = at + duration
            if soonest + extra > least:
                continue
            for lane, (starts, ends) in enumerate(self._lanes[choice]):
                start = starts[-1]
                if at >= start:
                    start = at
                elif len(starts) > 1:
                    i = bisect_left(ends, soonest)
                    while True:
                        start = starts[i]
                        if start < at:
                            start = at
                        if start + duration <= ends[i]:
                            break
                        i += 1
                finish = start + duration + extra
                if finish < least or (finish == least and choice < best):
                    best, least, begin, number = choice, finish, start, lane
                    # Sums are rounded in another order than finishes.
                    enough = finish * (1 + 1e-12)
                    if start == at:
                        break
        if best < 0:
            self._check(task, int(np.argmin(seconds)))
            raise self._refuse(task, "no device can run it")
        self._found = task, best, begin, number
        return best

    def earliest(self, task: int, behind: Sequence[float] | None = None) -> int:
        # The search for a gap stands here and in `_earliest_by_sum`, not in a function: it is called for each device of each task (a hot path).
        ready = self._ready(task)
        best, least, begin, number = -1, math.inf, 0.0, 0
        choice = -1
        for node, duration, lanes, extra in zip(self._node, self._seconds[task], self._lanes, behind or self._nothing, strict=True):
            choice += 1
            at = ready[node]
            soonest = at + duration
            if soonest + extra >= least:
                continue
            for lane, (starts, ends) in enumerate(lanes):
                start = starts[-1]
                if at >= start:
                    start = at
                elif len(starts) > 1:
                    i = bisect_left(ends, soonest)
                    while True:
                        start = starts[i]
                        if start < at:
                            start = at
                        if start + duration <= ends[i]:
                            break
                        i += 1
                finish = start + duration + extra
                if finish < least:
                    best, least, begin, number = choice, finish, start, lane
                    if start == at:
                        break
        if best < 0:
            self._check(task, int(np.argmin(self._seconds[task])))
            raise self._refuse(task, "no device can run it")
        self._found = task, best, begin, number
        return best

    def place(self, task: int, choice: int, not_before: float = 0.0) -> float:
        found = self._found
        if found is not None and found[0] == task and found[1] == choice and self.choice_of[task] < 0 and not_before <= found[2]:
            _, _, start, lane = found
        else:
            self._check(task, choice)
            at = max(not_before, self._ready(task)[self._node[choice]])
            start, lane = self._slot(choice, at, self._seconds[task][choice])
        self._found = None
        finish = start + self._seconds[task][choice]
        starts, ends = self._lanes[choice][lane]
        i = len(starts) - 1 if start >= starts[-1] else bisect_right(starts, start) - 1
        gap_start, gap_end = starts[i], ends[i]
        shortest = self._shortest[choice]
        before, after = start > gap_start and start - gap_start >= shortest, finish < gap_end and gap_end - finish >= shortest
        if before and after:
            ends[i] = start
            starts.insert(i + 1, finish)
            ends.insert(i + 1, gap_end)
        elif before:
            ends[i] = start
        elif after:
            starts[i] = finish
        else:
            del starts[i], ends[i]
        self.choice_of[task], self.start_of[task], self.finish_of[task], self.lane_of[task] = choice, start, finish, lane
        self.booked.append(task)
        return finish

    def finish(self) -> float:
        if len(self.booked) < len(self.problem):
            raise PlanError(f"the policy booked {len(self.booked)} of {len(self.problem)} tasks")
        return max(self.finish_of, default=0.0)

    def rows(self) -> list[list[Any]]:
        """[device, start, end, lane] of each task."""
        return [list(row) for row in zip(self.choice_of, self.start_of, self.finish_of, self.lane_of, strict=True)]

    def rewrite(self, choice_of: list[int], start_of: list[float], finish_of: list[float], lane_of: list[int]) -> None:
        """Take another whole plan in place of what is booked: choice, start, finish and lane (of its device) of each task."""
        self.choice_of, self.start_of, self.finish_of, self.lane_of = choice_of, start_of, finish_of, lane_of
        self.booked = sorted(self.problem.order.tolist(), key=start_of.__getitem__)
        self._found = None

    def _options(self, task: int) -> Iterator[tuple[int, float, float]]:
        ready, seconds = self._ready(task), self._seconds[task]
        for choice, node in enumerate(self._node):
            duration = seconds[choice]
            if duration < math.inf:
                start, _ = self._slot(choice, ready[node], duration)
                yield choice, start, start + duration

    def _ready(self, task: int) -> list[float]:
        """When all that the task reads has arrived, for each memory node."""
        ready = self._zeros
        finish, choice_of, node = self.finish_of, self.choice_of, self._node
        for before, nbytes in self._preds[task]:
            done = finish[before]
            links = self._links[node[choice_of[before]]]
            ready = [at if at > (new := done + latency + nbytes * per_byte) else new for at, (latency, per_byte) in zip(ready, links, strict=True)]
        return ready

    def _slot(self, choice: int, at: float, duration: float) -> tuple[float, int]:
        """(start, lane) of the earliest place from `at` on."""
        best, number = math.inf, 0
        for lane, (starts, ends) in enumerate(self._lanes[choice]):
            start = starts[-1]
            if at >= start:
                return at, lane
            i = bisect_left(ends, at + duration)
            while True:
                start = max(starts[i], at)
                if start + duration <= ends[i]:
                    break
                i += 1
            if start < best:
                best, number = start, lane
        return best, number

    def _check(self, task: int, choice: int) -> None:
        if self.choice_of[task] >= 0:
            raise self._refuse(task, "it is booked already")
        if not 0 <= choice < len(self._node) or self._seconds[task][choice] == math.inf:
            raise self._refuse(task, f"choice {choice} is not possible")
        first = next((p for p, _ in self._preds[task] if self.choice_of[p] < 0), -1)
        if first >= 0:
            raise self._refuse(task, f"it needs {self.problem.name(first)!r}, which is not booked yet")
