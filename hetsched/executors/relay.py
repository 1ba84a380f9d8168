"""The threads of one device share the steps of a straight plan (see `sharing`): what `cpu.Crew` does where nothing else is asked.

Priority is the planned start. Hot path: about 1.5 us a step with the trace on (benchmarks/cholesky.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from heapq import heappop, heappush, heappushpop
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from hetsched.executors.binding import Call
from hetsched.executors.frame import Frame
from hetsched.executors.program import Program
from hetsched.executors.sharing import KINDS, Sharing, is_atomic, is_plain
from hetsched.timeline import Launch

if TYPE_CHECKING:
    from hetsched.executors.cpu import Crew

# (step, start, finish, task -> when it ended: of a step of several tasks)
Did: TypeAlias = tuple[int, float, float, "Mapping[int, float] | None"]

# A thread goes on with what it has made ready, whose inputs lie in its core's cache, unless something that waits is planned this many steps earlier.
STAY_STEPS = 32


def suits(program: Program, host: str) -> bool:
    """True for a straight plan of plain launches, each on one lane of `host`."""
    return program.plan.loop is None and is_atomic() and is_plain(program, host)


class Relay(Sharing):
    """One run of a frame's steps. `log`: for each thread its lane and what it did, seconds of the run."""

    def __init__(self, crew: Crew, frame: Frame, new_thread: Callable[..., Any] = threading.Thread) -> None:
        super().__init__(crew, new_thread)
        self.frame = frame
        program = frame.program
        n = len(program.steps)
        order = sorted(range(n), key=lambda s: (program.steps[s].start, s))
        self.order = order  # by rank
        self.rank = [0] * n
        for rank, step in enumerate(order):
            self.rank[step] = rank
        self.near: list[list[int]] = [[] for _ in range(n)]
        waits = [0] * n
        for before, later, _ in dict.fromkeys(program.arcs):
            self.near[before].append(later)
            waits[later] += 1
        # A step's tokens: one for each step it waits for; the one taken last is 0.
        self.tokens = [[0, *[1] * (k - 1)] for k in waits]
        self.left = [0, *[1] * (n - 1)] if n else []
        self.is_io = [step.kind == "io" for step in program.steps]
        # The one call of a step, where it is one: the others are done as `Bindings.perform` does them.
        self.calls: list[Call | None] = [None] * n
        for s in range(n):
            if frame.bindings.bound(s, 0).segment is None:
                calls = frame.bindings.calls(s, 0)
                self.calls[s] = calls[0] if len(calls) == 1 and callable(calls[0][0]) else None
        for step, k in enumerate(waits):
            if not k:
                heappush(self.ready[KINDS[self.is_io[step]]], self.rank[step])
        self.halted = not n
        self.counted = count(1)
        self.log: list[tuple[int, list[Did]]] = []

    def new_log(self, lane: int) -> list[Did]:
        """See `Sharing.new_log`."""
        log: list[Did] = []
        self.log.append((lane, log))
        return log

    def follow(self, first: int, kind: str, heap: list[int], idle: list[Any], log: list[Did]) -> None:
        """See `Sharing.follow`; `first` is a rank."""
        crew, order, ranks, near, tokens, left, calls, is_io = (
            self.crew, self.order, self.rank, self.near, self.tokens, self.left, self.calls, self.is_io,
        )  # fmt: skip
        zero, mine = crew.zero, kind == "io"
        deadline = crew.deadline if crew.deadline is not None else float("inf")
        trace, xp, plain, timed = crew.trace, np, self.frame.perform, self.frame.perform_timed
        marks: Mapping[int, float] | None = None
        clock = perf_counter
        rank = first
        while True:
            step = order[rank]
            bound = calls[step]
            start = clock()
            if bound is not None:
                kernel, inputs, outputs, workspace, attributes, task = bound
                try:
                    kernel(xp, inputs, outputs, workspace, attributes)
                except BaseException as error:
                    self._fail(self.frame.failure(error, task, 0) if isinstance(error, Exception) else error, error)
                    return
            else:
                try:
                    marks = timed(step, 0, zero) if trace else plain(step, 0)
                except BaseException as error:
                    self._fail(error)
                    return
            finish = clock()
            if trace:
                log.append((step, start - zero, finish - zero, None if bound is not None else marks))
            best = -1
            for later in near[step]:
                if not tokens[later].pop():
                    other = ranks[later]
                    if is_io[later] != mine:
                        kind_too = KINDS[is_io[later]]
                        heappush(self.ready[kind_too], other)
                        if self.idle[kind_too]:
                            self._wake(self.idle[kind_too], 1)
                    elif best < 0:
                        best = other
                    elif other < best:
                        heappush(heap, best)
                        best = other
                    else:
                        heappush(heap, other)
            if not left.pop():
                self.halt()
                return
            if finish > deadline or self.halted:
                self._stop(finish > deadline)
                return
            if crew.progress is not None:
                try:
                    self._tell(step)
                except BaseException as error:  # whoever listens has gone away, perhaps
                    self._fail(error)
                    return
            if best >= 0 and not (heap and heap[0] < best - STAY_STEPS):
                rank = best
            elif heap:
                try:
                    rank = heappushpop(heap, best) if best >= 0 else heappop(heap)
                except IndexError:
                    return
            else:
                return
            if heap and idle:
                self._wake(idle, 1)

    def _tell(self, step: int) -> None:
        crew, command = self.crew, self.frame.plan.spans[self.frame.program.steps[step].spans[-1]].command
        assert crew.progress is not None
        assert isinstance(command, Launch)
        crew.progress(next(self.counted), crew.total, self.frame.graph.task_names[command.task])
