"""The threads of one device share the steps of a straight plan, and dispatch them without a lock: what `cpu.Crew` does where nothing else is asked.

A thread that finishes a step takes the tokens of those that waited for it; who takes the last token of a step has made it ready, goes on with
the readied or waiting step of highest priority (the earliest planned start) and leaves the others in a heap for whoever is idle. Taking a token
(`list.pop`), the heap's `heappush` and `heappop` of whole numbers, and appending to a list are single operations of the interpreter, so threads
need no lock between them while the interpreter has one; without it (a free-threaded build) `suits` says no, and the crew's lock does the work. A
thread that finds nothing puts its gate among the idle, looks once more, and sleeps; who leaves work behind opens the gate of one that is idle:
one of the two sees the other.

Hot path: about 1.5 us a step with the trace on (benchmarks/cholesky.py: 0.97 of two free threads at steps of 50 us).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush, heappushpop
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from hetsched.executors.binding import Call
from hetsched.executors.frame import Frame
from hetsched.executors.program import Program
from hetsched.graph.graph import Loop
from hetsched.timeline import Launch

if TYPE_CHECKING:
    from hetsched.executors.cpu import Crew

KINDS = ("compute", "io")
# (step, start, finish, task -> when it ended: of a step of several tasks)
Did: TypeAlias = tuple[int, float, float, "Mapping[int, float] | None"]

# A thread goes on with what it has made ready, whose inputs lie in its core's cache, unless something that waits is planned this many steps earlier.
STAY_STEPS = 32


def suits(program: Program, host: str) -> bool:
    """True for a straight plan of plain launches, each on one lane of `host`."""
    if program.plan.loop is not None or not getattr(sys, "_is_gil_enabled", lambda: True)():
        return False
    plan = program.plan
    for step in program.steps:
        if len(step.lanes) != 1 or step.owner != host or step.kind not in KINDS:
            return False
        for i in step.spans:
            command = plan.spans[i].command
            if not isinstance(command, Launch) or isinstance(plan.graph.task_ops[command.task], Loop):
                return False
    return True


class Relay:
    """One run of a frame's steps. `log`: for each thread its lane and what it did, seconds of the run."""

    def __init__(self, crew: Crew, frame: Frame, new_thread: Callable[..., Any] = threading.Thread) -> None:
        self.crew = crew
        self.new_thread = new_thread
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
        self.ready: dict[str, list[int]] = {kind: [] for kind in KINDS}
        for step, k in enumerate(waits):
            if not k:
                heappush(self.ready[KINDS[self.is_io[step]]], self.rank[step])
        self.idle: dict[str, list[Any]] = {kind: [] for kind in KINDS}
        self.halted = not n
        self.counted = count(1)
        self.log: list[tuple[int, list[Did]]] = []

    def run(self, lanes: Sequence[tuple[str, int]]) -> None:
        """Serve to the end, the caller's thread as the first of `lanes`, (kind, number). What fails first is in `crew.error`."""
        threads = [self.new_thread(target=self.serve, args=lane, name=f"hetsched-{lane[0]}-{lane[1]}", daemon=True) for lane in lanes[1:]]
        try:
            for thread in threads:
                thread.start()
            self.serve(*lanes[0], main=True)
        except BaseException as error:  # Ctrl-C reaches the caller's thread only: let the others finish what they are at
            self.crew.error = self.crew.error or error
        finally:
            self.halt()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()

    def halt(self) -> None:
        """No step starts any more."""
        self.halted = True
        for idle in self.idle.values():
            self._wake(idle, len(idle))

    def serve(self, kind: str, lane: int, main: bool = False) -> None:
        """Take step after step, until all are done."""
        log: list[Did] = []
        self.log.append((lane, log))
        gate = threading.Lock()
        gate.acquire()
        heap, idle = self.ready[kind], self.idle[kind]
        with np.errstate(all="ignore"):
            while not self.halted:
                try:
                    rank = heappop(heap)
                except IndexError:
                    idle.append(gate)
                    if heap or self.halted:
                        try:
                            idle.remove(gate)
                            continue
                        except ValueError:
                            pass  # somebody has taken the gate, and opens it
                    self._sleep(gate, main)
                    continue
                if heap and idle:
                    self._wake(idle, 1)
                self._follow(rank, kind, heap, idle, log)

    def _follow(self, rank: int, kind: str, heap: list[int], idle: list[Any], log: list[Did]) -> None:
        """The step of `rank`, then whatever it leads to, until nothing is ready."""
        crew, order, ranks, near, tokens, left, calls, is_io = (
            self.crew, self.order, self.rank, self.near, self.tokens, self.left, self.calls, self.is_io,
        )  # fmt: skip
        zero, mine = crew.zero, kind == "io"
        deadline = crew.deadline if crew.deadline is not None else float("inf")
        trace, xp, plain, timed = crew.trace, np, self.frame.perform, self.frame.perform_timed
        marks: Mapping[int, float] | None = None
        clock = perf_counter
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
                    self._fail(error, None)
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
                    self._fail(error, None)
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

    def _wake(self, idle: list[Any], most: int) -> None:
        for _ in range(most):
            try:
                idle.pop().release()
            except IndexError:
                return

    def _sleep(self, gate: Any, main: bool) -> None:
        deadline = self.crew.deadline
        if deadline is None or not main:
            gate.acquire()
        elif not gate.acquire(timeout=max(deadline - perf_counter(), 0.0) + 1e-3):
            self._stop(True)

    def _stop(self, late: bool) -> None:
        if late and self.crew.error is None and not self.halted:
            self.crew.error = self.crew.timed_out()
        self.halt()

    def _fail(self, error: BaseException, cause: BaseException | None) -> None:
        if cause is not None and cause is not error:
            error.__cause__ = cause
        self.crew.error = self.crew.error or error
        self.halt()

    def _tell(self, step: int) -> None:
        crew, command = self.crew, self.frame.plan.spans[self.frame.program.steps[step].spans[-1]].command
        assert crew.progress is not None
        assert isinstance(command, Launch)
        crew.progress(next(self.counted), crew.total, self.frame.graph.task_names[command.task])
