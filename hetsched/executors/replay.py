"""A plan made ready to run again and again: arenas, bound calls, threads and streams are kept in `Seat`s, and each run takes one.

A seat is a buffer set: while a run has it, nobody else writes there, so runs of one plan may go on at once, as many as there are seats; a further
caller waits. What a run gives is the caller's own, and no seat holds an input or an output after it. A plan of one step on the host is done by the
calling thread itself, and once it is hot (`binding.HOT_RUNS`) as straight-line code.
"""

from __future__ import annotations

import contextvars
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np

from hetsched.errors import CommandLineError
from hetsched.executors import solo
from hetsched.executors.cpu import Crew, run_crew
from hetsched.executors.frame import Frame
from hetsched.executors.hands import Hands
from hetsched.executors.kept import program_of
from hetsched.executors.live import Fleet, drives
from hetsched.executors.process import free_blas, limit_blas, tuned
from hetsched.executors.program import LONG_SECONDS, Program
from hetsched.executors.result import Result
from hetsched.executors.segments import Segment
from hetsched.executors.turnstile import SHORT_WORK
from hetsched.graph.spec import Spec, array_form
from hetsched.timeline import Launch, Timeline

# A run that is planned to take less is done where it is awaited: a round trip to another thread and back takes 50-100 us.
INSTANT_SECONDS = 100e-6


class Seat:
    """One buffer set of a plan, and who does its steps."""

    def __init__(self, program: Program, trace: bool, timeout: float | None) -> None:
        self.program, self.plan, self.trace, self.timeout = program, program.plan, trace, timeout
        self.is_solo = solo.is_solo(program)
        self.frame: Frame | None = None
        self.fleet = Fleet(self.plan) if drives(self.plan) else None
        self.hands = Hands()
        self._fresh = _fresh_outputs(self.plan) if self.is_solo else None
        self._code: Segment | None = None  # of a solo plan, once it is hot
        self._untraced = solo.traced(program, None)
        self._quiet = quiet_context()
        self._is_short = _is_short(self.plan)
        self._is_instant = self._is_short and self.plan.makespan <= INSTANT_SECONDS

    def run(self, given: Mapping[int, Any]) -> Result:
        """One run; value id -> read-only array or object."""
        began = perf_counter()
        frame = self.frame
        if self._code is not None:
            return self._replay(self._code, given, began)
        if frame is None or not frame.takes(given):
            frame = self.frame = self.fleet.frame(self.program, given) if self.fleet is not None else Frame(self.program, given)
        else:
            frame.renew(given)
        try:
            if self.is_solo:
                result = solo.run(frame, began, self.trace)
                if self._fresh is not None:
                    self._code = frame.bindings.bound(0, 0).segment
                return result
            crew = Crew(self.plan, self.trace, False, self.timeout, None, self.fleet.drivers if self.fleet else None, self.hands.thread)
            if self.fleet is not None:
                self.fleet.serve(crew)
            return run_crew(crew, frame, began)
        finally:
            frame.let_go()

    @property
    def is_instant(self) -> bool:
        """True if a run takes less than handing it to another thread and waiting for it would: it is code, of short calls alone."""
        return self._is_instant and self._code is not None and self._code.is_ours

    def _replay(self, segment: Segment, given: Mapping[int, Any], began: float) -> Result:
        """The run of a hot step: fresh outputs, the code, and nothing else. 1.5 us beside the code (benchmarks/latency.py)."""
        frame, fresh = self.frame, self._fresh
        assert frame is not None
        assert fresh is not None
        borrowed, owned, outputs = frame.borrowed, frame.owned, {}
        borrowed.update(given)
        for name, value, shape, dtype in fresh:
            owned[value] = outputs[name] = np.empty(shape, dtype)
        start = finish = 0.0
        alone = segment.is_ours and self._is_short
        if alone:
            SHORT_WORK.enter()
        try:
            if segment.is_ours:
                if not segment.is_calm:
                    limit_blas()
                try:
                    start = perf_counter()
                    self._quiet(segment.run, 0)
                    finish = perf_counter()
                finally:
                    if not segment.is_calm:
                        free_blas()
            else:
                with tuned():
                    start = perf_counter()
                    self._quiet(segment.run, 0)
                    finish = perf_counter()
        except Exception as error:
            raise frame.failure(error, segment.task_of(error), 0) from error
        finally:
            if alone:
                SHORT_WORK.leave()
            for value in given:
                borrowed[value] = None
            for _, value, _, _ in fresh:
                owned[value] = None
        trace = solo.traced(self.program, finish - start) if self.trace else self._untraced
        return Result.lazily(outputs, trace, self.plan, perf_counter() - began)

    def close(self) -> None:
        """Give back threads, devices and memory."""
        self.hands.close()
        if self.fleet is not None:
            self.fleet.close()
        self.frame = None


def quiet_context() -> Callable[..., Any]:
    """What calls a function with NumPy's floating-point warnings off, again and again; not from two threads at once.

    NumPy 2 keeps them in a context variable: entering a context made ready costs 0.1 us, `errstate` 1.
    """
    if int(np.__version__.partition(".")[0]) < 2:
        return np.errstate(all="ignore")(lambda function, *args: function(*args))
    context = contextvars.Context()
    context.run(lambda: np.seterr(all="ignore"))
    return context.run


def _is_short(plan: Timeline) -> bool:
    """True where handing the interpreter lock over after each task takes longer than the tasks."""
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return False
    seconds = [span.finish - span.start for span in plan.spans if isinstance(span.command, Launch)]
    return sum(seconds) <= LONG_SECONDS * len(seconds)


# (output name, value, shape, dtype)
Fresh = tuple[str, int, tuple[int, ...], Any]


def _fresh_outputs(plan: Timeline) -> list[Fresh] | None:
    """The outputs of a plan where each is an array of its own that a task writes, and all inputs are arrays; else None: `Frame` sorts them out."""
    graph = plan.graph
    out: list[Fresh] = []
    if not all(isinstance(graph.spec(value), Spec) for value in graph.inputs.values()):
        return None
    for name, value in graph.outputs.items():
        spec = array_form(graph.spec(value))
        if spec is None or spec.is_bounded or int(graph.value_task[value]) < 0 or any(v == value for _, v, _, _ in out):
            return None
        out.append((name, value, spec.bounds, spec.dtype))
    return out


class Replay:
    """A plan with `seats` buffer sets. Safe to run from any number of threads."""

    def __init__(self, plan: Timeline, seats: int, trace: bool = False, timeout: float | None = None) -> None:
        self.plan = plan
        self.program = replace(program_of(plan, whole=timeout is None), plan=plan)
        self.most = seats
        self._make: Callable[[], Seat] = lambda: Seat(self.program, trace, timeout)
        self._idle: list[Seat] = []
        self._made = 0
        self._waiting = 0
        self._closed = False
        self._changed = threading.Condition()

    def run(self, given: Mapping[int, Any]) -> Result:
        """One run, in the first buffer set that is free. `given`: value id -> read-only array or object."""
        try:
            seat = self._idle.pop()  # one operation of the interpreter: no lock where a seat is free
        except IndexError:
            seat = self._wait_for_seat()
        try:
            result = seat.run(given)
        except BaseException as error:
            # After Ctrl-C something may still be under way: nobody uses that seat again.
            self._give(seat, is_usable=isinstance(error, Exception))
            raise
        self._idle.append(seat)
        if self._waiting:
            self._tell()
        return result

    @property
    def is_instant(self) -> bool:
        """True if a run would begin at once and take less than a round trip to another thread."""
        try:
            return self._idle[-1].is_instant and SHORT_WORK.is_free
        except IndexError:
            return False

    def _wait_for_seat(self) -> Seat:
        with self._changed:
            self._waiting += 1  # before looking: who gives a seat back after the look sees that somebody waits
            try:
                while True:
                    if self._closed:
                        raise CommandLineError("this compiled graph is closed; compile it again in an open session")
                    if self._idle:
                        try:
                            return self._idle.pop()
                        except IndexError:  # taken by another without the lock
                            continue
                    if self._made < self.most:
                        self._made += 1
                        break
                    self._changed.wait()
            finally:
                self._waiting -= 1
        try:
            return self._make()
        except BaseException:
            with self._changed:
                self._made -= 1
                self._changed.notify_all()
            raise

    def _give(self, seat: Seat, is_usable: bool = True) -> None:
        if is_usable:
            self._idle.append(seat)
        else:
            seat.close()
            with self._changed:
                self._made -= 1
        self._tell()

    def _tell(self) -> None:
        """Wake those who wait for a buffer set."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Wait for the runs that go on, then give everything back. Again: nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._waiting += 1
            try:
                seats: list[Seat] = []
                while self._made:
                    while self._idle:
                        seats.append(self._idle.pop())
                        self._made -= 1
                    if self._made:
                        self._changed.wait()
            finally:
                self._waiting -= 1
        for seat in seats:
            seat.close()


__all__ = ["Replay", "Seat"]
