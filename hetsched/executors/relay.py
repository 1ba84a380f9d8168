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
from hetsched.executors.cores import LONG_SECONDS
from hetsched.executors.frame import Frame
from hetsched.executors.program import Program
from hetsched.executors.sharing import KINDS, Sharing, is_atomic, is_plain
from hetsched.timeline import Launch

if TYPE_CHECKING:
    from hetsched.executors.cpu import Crew

# (rank, start, finish, task -> when it ended: of a step of several tasks)
Did: TypeAlias = tuple[int, float, float, "Mapping[int, float] | None"]

# A thread goes on with what it has made ready, whose inputs lie in its core's cache, unless something that waits is planned this share of all steps
# earlier, and so many steps at least. (Tiled Cholesky, tiles of 256 KiB: of two free threads 0.936 where it is 32 steps, 0.963 without a limit.)
STAY_SHARE = 1 / 8
STAY_STEPS = 32


def suits(program: Program, host: str) -> bool:
    """True for a straight plan of plain launches, each on one lane of `host`."""
    return program.plan.loop is None and is_atomic() and is_plain(program, host)


class Shape:
    """What is the same in every run of a program: the order of its steps by priority, and, by rank in that order, what waits for what."""

    def __init__(self, program: Program) -> None:
        n = len(program.steps)
        self.order = sorted(range(n), key=lambda s: (program.steps[s].start, s))
        rank = [0] * n
        for place, step in enumerate(self.order):
            rank[step] = place
        self.near: list[list[int]] = [[] for _ in range(n)]
        self.waits = [0] * n
        for before, later, _ in dict.fromkeys(program.arcs):
            self.near[rank[before]].append(rank[later])
            self.waits[rank[later]] += 1
        self.is_io = [program.steps[step].kind == "io" for step in self.order]
        self.is_long = [program.steps[step].seconds > LONG_SECONDS for step in self.order]


class Relay(Sharing):
    """One run of a frame's steps. A ready step is its rank. `log`: for each thread its lane and what it did, on the clock of the threads."""

    def __init__(self, crew: Crew, frame: Frame, new_thread: Callable[..., Any] = threading.Thread) -> None:
        super().__init__(crew, new_thread)
        self.frame = frame
        n = len(frame.program.steps)
        if frame.shape is None:
            frame.shape = Shape(frame.program)
        shape: Shape = frame.shape
        self.order, self.near, self.is_io, self.is_long, waits = shape.order, shape.near, shape.is_io, shape.is_long, shape.waits
        # A step's tokens: one for each step it waits for; the one taken last is 0.
        self.tokens = [[0, *[1] * (k - 1)] for k in waits]
        self.left = [0, *[1] * (n - 1)] if n else []
        # The one call of a step, where it is one: the others are done as `Bindings.perform` does them.
        self.calls: list[Call | None] = [None] * n
        bindings = frame.bindings
        for rank, step in enumerate(self.order):
            if bindings.bound(step, 0).segment is None:
                calls = bindings.calls(step, 0)
                self.calls[rank] = calls[0] if len(calls) == 1 and callable(calls[0][0]) else None
        for rank, k in enumerate(waits):
            if not k:
                heappush(self.ready[KINDS[self.is_io[rank]]], rank)
        self.stay = max(STAY_STEPS, int(STAY_SHARE * n))
        self.halted = not n
        self.counted = count(1)
        self.log: list[tuple[int, list[Did]]] = []

    def new_log(self, lane: int) -> list[Did]:
        """See `Sharing.new_log`."""
        log: list[Did] = []
        self.log.append((lane, log))
        return log

    def follow(self, first: int, kind: str, lane: int, heap: list[int], idle: list[Any], log: list[Did]) -> None:
        """See `Sharing.follow`; `first` is a rank."""
        crew, near, tokens, left, calls, is_io = self.crew, self.near, self.tokens, self.left, self.calls, self.is_io
        mine, trace, note, xp, clock, stay = kind == "io", crew.trace, log.append, np, perf_counter, self.stay
        is_asked = crew.deadline is not None or crew.progress is not None
        is_long, settle = self.is_long, crew.cores.settle if crew.cores is not None and not mine else None
        rank = first
        while True:
            if settle is not None and is_long[rank] and rank != first:
                settle(lane)
            bound = calls[rank]
            marks: Mapping[int, float] | None = None
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
                    marks = self._perform(rank)
                except BaseException as error:
                    self._fail(error)
                    return
            finish = clock()
            if trace:
                note((rank, start, finish, marks))
            best = -1
            for later in near[rank]:
                if not tokens[later].pop():
                    if is_io[later] != mine:
                        self._hand_over(later, not mine)
                    elif best < 0:
                        best = later
                    elif later < best:
                        heappush(heap, best)
                        best = later
                    else:
                        heappush(heap, later)
            if not left.pop():
                self.halt()
                return
            if self.halted or (is_asked and self._asked(rank, finish)):
                return
            if best >= 0 and not (heap and heap[0] < best - stay):
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

    def _perform(self, rank: int) -> Mapping[int, float] | None:
        """A step of several tasks, or one that finds its arrays when it runs."""
        frame, step = self.frame, self.order[rank]
        if self.crew.trace:
            return frame.perform_timed(step, 0, self.crew.zero)
        frame.perform(step, 0)
        return None

    def _asked(self, rank: int, now: float) -> bool:
        """Tell how far the run is; True if it is to stop."""
        crew = self.crew
        if crew.deadline is not None and now > crew.deadline:
            self._stop(True)
        elif crew.progress is not None:
            try:
                self._tell(self.order[rank])
            except BaseException as error:  # whoever listens has gone away, perhaps
                self._fail(error)
        return self.halted

    def _tell(self, step: int) -> None:
        crew, command = self.crew, self.frame.plan.spans[self.frame.program.steps[step].spans[-1]].command
        assert crew.progress is not None
        assert isinstance(command, Launch)
        crew.progress(next(self.counted), crew.total, self.frame.graph.task_names[command.task])
