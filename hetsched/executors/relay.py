"""The threads of one device share the steps of a straight plan (see `sharing`): what `cpu.Crew` does where nothing else is asked.

Priority is the planned start. Hot path: about 1.5 us a step with the trace on (benchmarks/cholesky.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from heapq import heappop, heappush, heappushpop
from itertools import count, pairwise, repeat
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from hetsched.executors.binding import HOT_RUNS
from hetsched.executors.board import Bill, Board
from hetsched.executors.cores import LONG_SECONDS
from hetsched.executors.frame import Frame
from hetsched.executors.program import Program
from hetsched.executors.sharing import KINDS, Sharing, is_atomic, is_plain
from hetsched.executors.straight import Straight, pairs_of
from hetsched.executors.tracing import Log
from hetsched.quiet import no_garbage_collection
from hetsched.timeline import STAY_SHARE, STAY_STEPS

if TYPE_CHECKING:
    from hetsched.executors.cpu import Crew


def suits(program: Program, host: str) -> bool:
    """True for a straight plan of plain launches, each on one lane of `host`."""
    return program.plan.loop is None and is_atomic() and is_plain(program, host)


class Shape:
    """What is the same in every run of a frame: the order of its steps by priority; by rank in that order, what waits for what; its board.

    near: ranks that wait for each; far: those that threads of the other kind do. spare: of those it waits for all but one. first: by kind of thread
    the ranks that wait for nothing, ascending.
    """

    def __init__(self, frame: Frame) -> None:
        program = frame.program
        n = len(program.steps)
        self.order: Sequence[int] = range(n)
        self.near: list[list[int]]
        self.far: dict[int, list[int]] = {}
        self.first: dict[str, list[int]] = {kind: [] for kind in KINDS}
        plain = program.straight
        if plain is not None and plain.is_io is None:
            waits = self._plain(plain)
            self.is_long = (plain.steps.seconds > LONG_SECONDS).tolist()
        else:
            waits = self._by_steps(program)
            self.is_long = [program.steps[s].seconds > LONG_SECONDS for s in self.order]
        self.spare = [k - 1 for k in waits]
        self.sinks = sum([not row for row in self.near]) - sum([not self.near[r] for r in self.far])
        self.board = Board(frame)
        single, several = self.board.single, self.board.several
        self.single = single if isinstance(self.order, range) else [single[s] for s in self.order]  # the launch of a step, where it is one
        self.several = dict(several) if isinstance(self.order, range) else {r: several[s] for r, s in enumerate(self.order) if s in several}
        self.runs = 0
        frame.bindings.elsewhere = self.board.bound

    def _plain(self, plain: Straight) -> list[int]:
        """By arrays, of steps that stand in their order and that threads of one kind do. How many steps each waits for."""
        n, later = len(plain.steps), plain.arcs.later.tolist()
        ends = np.cumsum(np.bincount(plain.arcs.before, minlength=n)).tolist()
        self.near = [later[a:b] for a, b in pairwise([0, *ends])]
        waits = np.bincount(plain.arcs.later, minlength=n)
        self.first["compute"] = np.flatnonzero(waits == 0).tolist()
        found: list[int] = waits.tolist()
        return found

    def _by_steps(self, program: Program) -> list[int]:
        steps, n = program.steps, len(program.steps)
        self.order = order = sorted(range(n), key=[(step.start, s) for s, step in enumerate(steps)].__getitem__)
        rank = [0] * n
        for place, s in enumerate(order):
            rank[s] = place
        is_io = [step.kind == "io" for step in steps]
        self.near = [[] for _ in steps]
        waits = [0] * n
        for before, later in pairs_of(program.arcs):
            waits[rank[later]] += 1
            (self.near[rank[before]] if is_io[before] == is_io[later] else self.far.setdefault(rank[before], [])).append(rank[later])
        for r, k in enumerate(waits):
            if not k:
                self.first[KINDS[is_io[order[r]]]].append(r)
        return waits

    def begin(self, frame: Frame, trace: bool) -> None:
        """Show what the next run is about. What has run so often that code pays for itself becomes code, which nobody times inside."""
        self.board.fill()
        self.runs += 1
        if self.runs > HOT_RUNS and self.several and not trace:
            for rank in [rank for rank, bills in self.several.items() if bills]:
                frame.bindings.compile(self.order[rank])
                del self.several[rank]


class Relay(Sharing):
    """One run of a frame's steps. A ready step is its rank."""

    def __init__(self, crew: Crew, frame: Frame, new_thread: Callable[..., Any] = threading.Thread) -> None:
        super().__init__(crew, frame, new_thread)
        n = len(frame.program.steps)
        if frame.shape is None:
            with no_garbage_collection():
                frame.shape = Shape(frame)
        shape: Shape = frame.shape
        shape.begin(frame, crew.trace)
        self.order, self.near, self.far, self.single, self.several = shape.order, shape.near, shape.far, shape.single, shape.several
        self.cells, self.is_long = shape.board.cells, shape.is_long
        # A step's tokens: a 1 for each step it waits for but one; who finds none left has made it ready. The same for the end of the run: when all
        # steps that nothing waits for are done, everything is.
        self.tokens = list(map(repeat, repeat(1), shape.spare))
        self.left = repeat(1, shape.sinks - 1)
        for kind, ranks in shape.first.items():
            self.ready[kind] += ranks  # ascending: a heap
        self.stay = 0 if frame.plan.keeps_order else max(STAY_STEPS, int(STAY_SHARE * n))
        self.is_done = self.halted = not n
        self.counted = count(1)

    @property
    def places(self) -> int:
        """See `Sharing.places`: the code of a step is its rank."""
        return len(self.order)

    @property
    def seconds(self) -> float:
        """See `Sharing.seconds`: of what was noted, which is all where there is a trace."""
        return float(sum(sum(log.times[2::3]) - sum(log.times[1::3]) for log in self.logs))

    def so_far(self) -> int:
        """See `Sharing.so_far`."""
        # Steps are of one launch or some: taken together it comes to what there is, and no thread waits for another to count.
        return next(self.counted) * self.crew.total // len(self.frame.program.steps)

    def follow(self, first: int, kind: str, lane: int, heap: list[int], idle: list[Any], log: Log) -> None:
        """See `Sharing.follow`; `first` is a rank."""
        crew, near, far, tokens, single, cells = self.crew, self.near, self.far, self.tokens, self.single, self.cells
        trace, note, xp, clock, stay, take = crew.trace, log.times.extend, np, perf_counter, self.stay, next
        is_asked = crew.deadline is not None or crew.progress is not None
        is_long, settle = self.is_long, crew.cores.settle if crew.cores is not None and kind == "compute" else None
        rank = first
        while True:
            if settle is not None and is_long[rank] and rank != first:
                settle(lane)
            bill = single[rank]
            start = clock()
            if bill is not None:
                kernel, inputs, outputs, workspace, attributes, task = bill
                try:
                    kernel(xp, inputs(cells), outputs(cells), workspace, attributes)
                except BaseException as error:
                    self._fail(self.frame.failure(error, task, 0) if isinstance(error, Exception) else error, error)
                    return
            else:
                try:
                    self._perform(rank, log)
                except BaseException as error:
                    self._fail(error)
                    return
            finish = clock()
            if trace:
                note((rank, start, finish))
            best = -1
            following = near[rank]
            for later in following:
                if not take(tokens[later], 0):
                    if best < 0:
                        best = later
                    elif later < best:
                        heappush(heap, best)
                        best = later
                    else:
                        heappush(heap, later)
            if far and rank in far:
                for later in far[rank]:
                    if not take(tokens[later], 0):
                        self._hand_over(later, kind != "io")
            elif not following and not take(self.left, 0):
                self.is_done = True
                self.halt()
                return
            if self.halted or (is_asked and self._asked(self.order[rank], finish)):
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

    def _perform(self, rank: int, log: Log) -> None:
        """A step of several tasks, or one that finds its arrays when it runs."""
        frame, step, bills = self.frame, self.order[rank], self.several.get(rank)
        zero, marks = self.crew.zero, None
        if bills is not None:
            marks = self._do(bills, zero)
        elif self.crew.trace:
            marks = frame.perform_timed(step, 0, zero)
        else:
            frame.perform(step, 0)
        if marks is not None:
            log.marks[rank] = marks

    def _do(self, bills: list[Bill], zero: float) -> dict[int, float]:
        cells, xp, clock, task = self.cells, np, perf_counter, -1
        marks: dict[int, float] = {}
        try:
            for kernel, inputs, outputs, workspace, attributes, task in bills:
                kernel(xp, inputs(cells), outputs(cells), workspace, attributes)
                marks[task] = clock() - zero
        except Exception as error:
            raise self.frame.failure(error, task, 0) from error
        return marks
