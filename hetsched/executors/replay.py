"""A plan made ready to run again and again: arenas, bound calls, threads and streams are kept in `Seat`s, and each run takes one.

A seat is a buffer set: while a run has it, nobody else writes there, so runs of one plan may go on at once, as many as there are seats; a further
caller waits. What a run gives is the caller's own, and no seat holds an input or an output after it. A plan of one step on the host is done by the
calling thread itself, and once it is hot (`binding.HOT_RUNS`) as straight-line code.
"""

from __future__ import annotations

import contextvars
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np

from hetsched.errors import CommandLineError, InternalError
from hetsched.executors import direct, solo
from hetsched.executors.cpu import Crew, run_crew, too_late
from hetsched.executors.forks import forgets
from hetsched.executors.frame import Frame
from hetsched.executors.hands import Hands
from hetsched.executors.interrupts import guarded, heard
from hetsched.executors.kept import program_of
from hetsched.executors.live import Fleet, drives
from hetsched.executors.process import free_blas, limit_blas, tuned
from hetsched.executors.program import LONG_SECONDS, Program
from hetsched.executors.result import Result
from hetsched.executors.segments import Segment
from hetsched.executors.sharing import Sharing, is_atomic
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
        self._direct: direct.Direct | None = None  # of a plan that one stream does by itself, after a first run
        self._untraced = solo.traced(program, None)
        self._quiet = quiet_context()
        has_short_tasks = _has_short_tasks(self.plan)
        self._is_short = has_short_tasks and is_atomic()  # else there is no interpreter lock to hand over
        self._is_instant = has_short_tasks and self.plan.makespan <= INSTANT_SECONDS
        self._end = weakref.finalize(self, _end, self.hands, self.fleet)  # a seat that is let fall leaves no thread behind
        self._end.atexit = False

    def run(self, given: Mapping[int, Any]) -> Result:
        """One run; value id -> read-only array or object."""
        began = perf_counter()
        if self._code is not None:
            result = self._replay(self._code, given, began)
        else:
            with guarded():
                result = self._run(given, began)
        if self.timeout is not None and perf_counter() - began > self.timeout:
            raise too_late(self.timeout)  # nobody looks while a single step is done
        return result

    def _run(self, given: Mapping[int, Any], began: float) -> Result:
        frame = self.frame
        if frame is None or not frame.takes(given):
            self._direct = None
            frame = self.frame = self.fleet.frame(self.program, given, again=True) if self.fleet is not None else Frame(self.program, given)
        else:
            frame.renew(given)
        try:
            if self.is_solo:
                result = solo.run(frame, began, self.trace)
                if self._fresh is not None:
                    self._code = frame.bindings.bound(0, 0).segment
                return result
            if self._direct is not None:
                frame.ready()
                self._direct.run()
                return Result.lazily(frame.results(), self._untraced, self.plan, perf_counter() - began)
            crew = Crew(self.plan, self.trace, False, self.timeout, None, self.fleet.drivers if self.fleet else None, self.hands.thread)
            crew.owner = weakref.ref(self)
            if self.fleet is not None:
                self.fleet.serve(crew)
            result = run_crew(crew, frame, began)
            if self.fleet is not None and not self.trace and self.timeout is None:
                stream = direct.stream_for(frame, self.fleet)
                self._direct = direct.Direct(frame, stream, self.fleet.devices[0].memory) if stream is not None else None
            return result
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
                    limit_blas(self)
                try:
                    start = perf_counter()
                    self._quiet(segment.run, 0)
                    finish = perf_counter()
                finally:
                    if not segment.is_calm:
                        free_blas(self)
            else:
                with guarded(), tuned():
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

    def struck(self) -> None:
        """Give back what is the process's: Ctrl-C has interrupted a run, perhaps a replay, which nothing guards: that would take as long."""
        if self._code is not None and self._code.is_ours:
            SHORT_WORK.leave_if_inside()
            free_blas(self)

    def close(self) -> None:
        """Give back threads, devices and memory. Again: nothing."""
        self._end()
        self.frame = None


def _end(hands: Hands, fleet: Fleet | None) -> None:
    hands.close()
    if fleet is not None:
        fleet.close()


def quiet_context() -> Callable[..., Any]:
    """What calls a function with NumPy's floating-point warnings off, again and again; not from two threads at once.

    NumPy 2 keeps them in a context variable: entering a context made ready costs 0.1 us, `errstate` 1.
    """
    if int(np.__version__.partition(".")[0]) < 2:
        return np.errstate(all="ignore")(lambda function, *args: function(*args))
    context = contextvars.Context()
    context.run(lambda: np.seterr(all="ignore"))
    return context.run


def _has_short_tasks(plan: Timeline) -> bool:
    """True where handing the interpreter lock over after each task takes longer than the tasks."""
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
    """A plan with `seats` buffer sets. Safe to run from any number of threads.

    Ctrl-C may strike the main thread anywhere here, and what it held for a moment is then in no list. So a seat that nobody holds any more is gone
    from `_seats` by itself, and who waits is woken to look again.
    """

    def __init__(self, plan: Timeline, seats: int, trace: bool = False, timeout: float | None = None) -> None:
        self.plan = plan
        self.program = replace(program_of(plan, whole=timeout is None), plan=plan)
        self.most = seats
        self._make: Callable[[], Seat] = lambda: Seat(self.program, trace, timeout)
        self._idle: list[Seat] = []
        self._seats: weakref.WeakSet[Seat] = weakref.WeakSet()  # all there are
        self._making = 0
        self._gates: deque[Any] = deque()  # of those who wait; who opens one takes it out
        self._closed = False
        self._lock = threading.Lock()
        forgets(self)

    def run(self, given: Mapping[int, Any]) -> Result:
        """One run, in the first buffer set that is free. `given`: value id -> read-only array or object."""
        seat = result = None
        try:
            try:
                seat = self._idle.pop()  # one operation of the interpreter: no lock where a seat is free
            except IndexError:
                seat = self._wait_for_seat()
            if self._closed:
                raise _closed()
            result = seat.run(given)
            self._idle.append(seat)
            if self._gates:
                self._tell(1)
        except BaseException as error:
            self._failed(seat if result is None else None, error)
            raise
        return result

    def _failed(self, seat: Seat | None, error: BaseException) -> None:
        """Whoever has a seat that has not been given back gives it back now. After Ctrl-C something may still be under way there, and after an error

        of ours anything may be wrong with it: nobody uses it again.
        """
        if seat is not None:
            if isinstance(error, Exception) and not isinstance(error, InternalError):
                self._idle.append(seat)
            else:
                seat.struck()
                self._seats.discard(seat)
                seat.close()
        self._tell(len(self._gates))

    @property
    def is_instant(self) -> bool:
        """True if a run would begin at once and take less than a round trip to another thread."""
        try:
            return self._idle[-1].is_instant and SHORT_WORK.is_free
        except IndexError:
            return False

    def _wait_for_seat(self) -> Seat:
        while True:
            gate = self._gate()  # before looking: who gives a seat back after the look sees that somebody waits
            try:
                seat = self._look()
                if seat is not None:
                    return seat
                if any(mine in self._seats for mine in _seats_of_caller()):
                    raise CommandLineError(
                        f"a kernel of this compiled graph calls it, and all {self.most} buffer sets are in use: it would wait for itself; compile it "
                        f"with more (buffers={self.most + 1}), or call another"
                    )
                gate.acquire()
                gate = None
            finally:
                if gate is not None:
                    self._leave_line(gate)

    def _look(self) -> Seat | None:
        """A seat that nobody has, or one more; None where there may be no more."""
        if self._closed:
            raise _closed()
        with suppress(IndexError):
            return self._idle.pop()
        may = False
        try:
            with self._lock:
                may = len(self._seats) + self._making < self.most
                self._making += may
            if not may:
                return None
            seat = self._make()
            with self._lock:
                self._seats.add(seat)
            return seat
        finally:
            if may:
                with self._lock:
                    self._making -= 1
                if self._closed:
                    self._tell(len(self._gates))

    def _gate(self) -> Any:
        """One more in the line of those who wait."""
        gate = threading.Lock()
        gate.acquire()
        self._gates.append(gate)
        return gate

    def _leave_line(self, gate: Any) -> None:
        """Wait no more. Who has been woken meanwhile wakes the next one instead."""
        try:
            self._gates.remove(gate)
        except ValueError:
            self._tell(1)

    def _tell(self, most: int) -> None:
        """Let those who wait look again, the first of them first."""
        with suppress(IndexError):
            for _ in range(most):
                self._gates.popleft().release()

    def close(self) -> None:
        """Wait for the runs that go on, then give everything back. Again: nothing, or what was left: Ctrl-C ends the wait."""
        self._closed = True
        struck: list[bool] = []
        with guarded():
            while not struck:
                gate = self._gate()

                def stop(gate: Any = gate) -> None:
                    struck.append(True)
                    with suppress(RuntimeError):  # who ended a run was quicker
                        gate.release()

                try:
                    with suppress(IndexError):
                        while True:
                            seat = self._idle.pop()
                            self._seats.discard(seat)
                            seat.close()
                    if self.is_over:
                        break
                    with heard(stop):
                        gate.acquire()
                finally:
                    with suppress(ValueError):
                        self._gates.remove(gate)
            self._tell(len(self._gates))

    @property
    def is_closed(self) -> bool:
        """True once `close` has begun."""
        return self._closed

    @property
    def is_over(self) -> bool:
        """True once everything has been given back."""
        return self._closed and not self._seats and not self._making

    def forget(self) -> None:
        """In a process that was forked off: threads that wait or run are those of the parent, and so are opened devices."""
        self._lock, self._making = threading.Lock(), 0
        self._gates.clear()
        _parents.extend(seat for seat in self._seats if seat.fleet is not None or seat not in self._idle)
        self._idle = [seat for seat in self._idle if seat.fleet is None]
        self._seats = weakref.WeakSet(self._idle)


_parents: list[Seat] = []  # what is the parent's is not given back here


def _seats_of_caller() -> Iterator[object]:
    """The seats whose runs the calling thread is at: it was called by a kernel of theirs."""
    frame = sys._getframe(1)
    while frame is not None:
        at = frame.f_locals.get("self") if str(frame.f_globals.get("__name__", "")).startswith("hetsched.executors.") else None
        if isinstance(at, Seat):
            yield at
        elif isinstance(at, (Crew, Sharing)):
            yield (at if isinstance(at, Crew) else at.crew).owner()
        frame = frame.f_back  # type: ignore[assignment]


def _closed() -> CommandLineError:
    return CommandLineError("this compiled graph is closed; compile it again in an open session")


__all__ = ["Replay", "Seat"]
