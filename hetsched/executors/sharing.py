"""Threads that share ready steps without a lock: what `relay` (straight plans) and `rounds` (loops) have in common.

A thread that finishes a step takes the tokens of those that waited for it; who takes the last token of a step has made it ready, goes on with
the readied or waiting step of highest priority and leaves the others in a heap for whoever is idle. Taking a token (`next` of a `repeat` or a
`cycle`), the heap's `heappush` and `heappop` of whole numbers, and appending to a list are single operations of the interpreter, so threads need no
lock between them while the interpreter has one; in a free-threaded build `is_atomic` says no, and the crew's lock does the work. A thread
that finds nothing puts its gate among the idle, looks once more, and sleeps; who leaves work behind opens the gate of one that is idle: one of the
two sees the other.

That matters beyond the microseconds saved: while a thread dispatches it holds the interpreter, and kernels that come back meanwhile wait for it.
"""

from __future__ import annotations

import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from hetsched.executors.hands import Door
from hetsched.executors.interrupts import heard
from hetsched.executors.program import Program
from hetsched.executors.tracing import Log, Logs
from hetsched.graph.graph import Nested
from hetsched.timeline import Launch

if TYPE_CHECKING:
    from hetsched.executors.cpu import Crew
    from hetsched.executors.frame import Frame

KINDS = ("compute", "io")

# Below this much ready work a thread keeps it to itself: waking another one takes 7-10 us, and the interpreter lock changes hands.
WAKE_SECONDS = 20e-6


def is_atomic() -> bool:
    """True where the interpreter does one thing at a time, and will as long as it runs.

    A free-threaded build has its lock back while it imports a module in C, and perhaps for good after it: only where it was asked for at the start
    (`python -X gil=1`, a `sys.flags.gil` of 1, as that of other builds is) will it stay.
    """
    return getattr(sys.flags, "gil", 1) == 1 and bool(getattr(sys, "_is_gil_enabled", lambda: True)())


def is_plain(program: Program, host: str) -> bool:
    """True if every step is launches of ops, each on one lane of `host`."""
    if program.plain_on:
        return program.plain_on == host
    plan = program.plan
    for step in program.steps:
        if len(step.lanes) != 1 or step.owner != host or step.kind not in KINDS:
            return False
        for i in step.spans:
            command = plan.spans[i].command
            if not isinstance(command, Launch) or isinstance(plan.graph.task_ops[command.task], Nested):
                return False
    return True


class Sharing(ABC):
    """The steps of a frame that several threads share. `ready`: for each kind of thread a heap of codes (see `tracing.Logs`), the lowest goes first.

    order: the steps by place.
    """

    order: Sequence[int]

    def __init__(self, crew: Crew, frame: Frame, new_thread: Callable[..., Any] = threading.Thread) -> None:
        self.crew = crew
        self.frame = frame
        self.logs: list[Log] = []
        self.new_thread = new_thread
        self.ready: dict[str, list[int]] = {kind: [] for kind in KINDS}
        self.idle: dict[str, list[Any]] = {kind: [] for kind in KINDS}
        self.halted = False
        # Seconds that threads which compute have had nothing to do; whoever looks begins anew.
        self.starved = 0.0

    def interrupted(self) -> None:
        """Ctrl-C: start no more. See `interrupts.heard`."""
        self.crew.error = self.crew.error or KeyboardInterrupt()
        self.halt()

    def run(self, lanes: Sequence[tuple[str, int]]) -> None:
        """Serve to the end, the caller's thread as the first of `lanes`, (kind, number). What fails first is in `crew.error`.

        The crew's clock starts when the threads are there.
        """
        with heard(self.interrupted):
            self._run(lanes)

    def _run(self, lanes: Sequence[tuple[str, int]]) -> None:
        door = Door()
        if self.crew.cores is not None and lanes:
            self.crew.cores.settle(lanes[0][1])
        begin = door.behind(self.serve, self.crew.cores)
        threads = [self.new_thread(target=begin, args=lane, name=f"hetsched-{lane[0]}-{lane[1]}", daemon=True) for lane in lanes[1:]]
        try:
            try:
                for thread in threads:
                    thread.start()
            finally:
                self.crew.zero = perf_counter()
                door.open()
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
        log = self.new_log(lane)
        gate = threading.Lock()
        gate.acquire()
        heap, idle = self.ready[kind], self.idle[kind]
        cores = self.crew.cores if kind == "compute" else None
        with np.errstate(all="ignore"):  # NaN and infinity are values; warnings from a thread in the middle of a run help nobody
            while not self.halted:
                try:
                    first = heappop(heap)
                except IndexError:
                    idle.append(gate)
                    if heap or self.halted:
                        try:
                            idle.remove(gate)
                            continue
                        except ValueError:
                            pass  # somebody has taken the gate, and opens it
                    if cores is not None:
                        cores.leave(lane)
                    start = perf_counter()
                    self._sleep(gate, main)
                    if kind == "compute":
                        self.starved += perf_counter() - start
                    continue
                if cores is not None:
                    cores.settle(lane)
                if heap and idle:
                    self.offer(heap, idle)
                self.follow(first, kind, lane, heap, idle, log)

    def new_log(self, lane: int) -> Log:
        """What a thread notes down, kept for the end."""
        log = Log(lane)
        self.logs.append(log)
        return log

    def noted(self) -> Logs:
        """What the threads noted of the run, which is over; nothing else of it is held."""
        return Logs(self.logs, self.order, self.crew.zero, self.places)

    @property
    @abstractmethod
    def places(self) -> int:
        """Codes of a turn."""

    @property
    @abstractmethod
    def seconds(self) -> float:
        """How long the threads were at steps, in all."""

    @abstractmethod
    def follow(self, first: int, kind: str, lane: int, heap: list[int], idle: list[Any], log: Log) -> None:
        """Do step `first`, then whatever it leads to, until nothing is ready."""

    @abstractmethod
    def so_far(self) -> int:
        """Launches done, as progress counts them. Called for each step of which it may be told."""

    def _asked(self, step: int, now: float) -> bool:
        """Tell how far the run is, behind a step; True if it is to stop."""
        crew = self.crew
        if crew.deadline is not None and now > crew.deadline:
            self._stop(True)
        elif crew.progress is not None:
            command = self.frame.plan.spans[self.frame.program.steps[step].spans[-1]].command
            assert isinstance(command, Launch)
            try:
                crew.tell(self.so_far(), self.frame.graph.task_names[command.task])
            except BaseException as error:  # whoever listens has gone away, perhaps
                self._fail(error)
        return self.halted

    def offer(self, heap: list[int], idle: list[Any]) -> None:
        """Wake one of the idle for what waits in the heap."""
        self._wake(idle, 1)

    def _hand_over(self, ready: int, is_io: bool) -> None:
        """Leave a ready step to the threads of a kind that is not the caller's."""
        kind = KINDS[is_io]
        heappush(self.ready[kind], ready)
        if self.idle[kind]:
            self._wake(self.idle[kind], 1)

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

    def _fail(self, error: BaseException, cause: BaseException | None = None) -> None:
        if cause is not None and cause is not error:
            error.__cause__ = cause
        self.crew.error = self.crew.error or error
        self.halt()
