"""The executor of plans on CPU threads.

The plan fixes device and priority, not the thread: the threads of a device share its ready steps, and a thread that finishes one goes on with
the ready step of highest priority (the earliest planned start), waking others only when there is more to do than a wake-up costs. The caller's
thread is compute lane 0, so a plan of one lane crosses no thread at all. Tasks that wait (`Op.waits`) have io threads and use no core.
A wide launch runs alone on its device, with BLAS at its width. All bookkeeping is under one lock; kernels run outside it.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np

from hetsched.errors import InternalError, PlacementError, RunTimeoutError, TaskError
from hetsched.executors import devoted, once, relay, rounds
from hetsched.executors.active import Active, Driver, Item, name_of, width_of
from hetsched.executors.cores import LONG_SECONDS, Cores, cores
from hetsched.executors.epochs import Outcome, Pause, Replanner, RunOne, Speeds, boundary, paused, run_epochs
from hetsched.executors.epochs import Progress as EpochProgress
from hetsched.executors.frame import Frame
from hetsched.executors.hands import Door
from hetsched.executors.interrupts import guarded, heard
from hetsched.executors.kept import lent, program_of
from hetsched.executors.losses import Losses
from hetsched.executors.outline import lanes_needed, launches_of, programs_of
from hetsched.executors.process import tuned, wide
from hetsched.executors.program import Program, describe, is_solo
from hetsched.executors.result import Result
from hetsched.executors.sharing import KINDS, WAKE_SECONDS
from hetsched.executors.tracing import KEPT_TURNS, TIMED_TURNS, Note
from hetsched.graph.graph import Nested
from hetsched.timeline import Launch, Timeline

# A chain of turns tells of its progress this often, and asks this often whether another plan is due.
TELL_SECONDS = 0.05
LOOK_SECONDS = 0.02

# Where the rest may be planned anew a device is given this many steps ahead at most: what has been handed to a stream runs to its end.
AHEAD_STEPS = 16

Progress = Callable[[int, int, str], None]


def too_late(timeout: float) -> RunTimeoutError:
    """What a run that took longer than `timeout` seconds raises."""
    return RunTimeoutError(f"the run took longer than {timeout:g} s; raise --timeout, or see --trace for what takes the time")


class Crew:
    """The threads of one run. Used once."""

    def __init__(
        self, plan: Timeline, trace: bool, keep_going: bool, timeout: float | None, progress: Progress | None,
        drivers: Mapping[str, Driver] | None = None, new_thread: Callable[..., Any] = threading.Thread, replanner: Replanner | None = None,
        began: float | None = None,
    ) -> None:  # fmt: skip
        self.new_thread = new_thread
        self.owner: Callable[[], object] = lambda: None  # gives what has it run, where that is kept between runs
        self.replanner = replanner
        self.pausing = False
        self.looking = False  # a thread asks the replanner
        self.loops: dict[int, Active] = {}  # outermost loop tasks in flight
        self.rounds: rounds.Rounds | None = None  # the loop that all threads are at, without the lock
        self.waiting: dict[str, list[Item]] = {}  # driver -> steps that it is not given yet
        self.in_flight: dict[str, int] = {}
        self.steps_done = 0
        self.drivers = dict(drivers or {})
        self.outstanding = 0  # steps given to drivers and not yet done
        self.is_lost = False  # a driver has failed, with what was given to it
        host = next((d for d in plan.machine.devices if d.kind == "cpu"), None)
        # A described machine may have more cores than there are here: threads beside those would wait for each other's.
        self.lanes = {"compute": min(host.lanes, cores()) if host else 1, "io": max(host.io_lanes if host else 0, 1)}
        self.planned_lanes = 1
        self.trace = trace
        self.keep_going = keep_going
        self.deadline = None if timeout is None else (perf_counter() if began is None else began) + timeout
        self.timeout = timeout
        self.progress = progress
        self.telling = threading.Lock()
        self.most_told = 0
        self.lock = threading.Lock()
        self.ready: dict[str, list[Item]] = {"compute": [], "io": []}
        self.idle: dict[str, list[Any]] = {"compute": [], "io": []}
        self.running = {"compute": 0, "io": 0}
        self.alone: Item | None = None  # a wide launch that waits for the device, or has it
        self.error: BaseException | None = None
        self.losses = Losses(plan)
        self.failed = self.losses.failed
        self.over = False
        self.number = 0
        self.zero = 0.0
        self.total = 0
        self.done = 0
        self.programs: Mapping[int, Program] = {}
        self.root: list[Active] = []
        self.host = host.id if host else ""
        self.cores: Cores | None = None

    def timed_out(self) -> RunTimeoutError:
        """What a run that took too long raises."""
        return too_late(self.timeout or 0.0)

    def run(self, root: Frame) -> Active:
        """Walk `root` to its end with the caller's thread as compute lane 0. Raises what failed first."""
        needed = root.needed
        if needed is None:
            needed = root.needed = lanes_needed(root.plan, self.host)
        self.planned_lanes = needed["compute"]
        self.cores = Cores.of(min(self.planned_lanes, self.lanes["compute"]))
        if not self.keep_going and self.replanner is None and (root.shape is not None or relay.suits(root.program, self.host)):
            active = Active(root, 0.0, None, {}, is_walked=False)
            self._relay(active, needed)
            return active
        root.ready()
        active = Active(root, 0.0, None, self.drivers)
        self.root = [active]
        with heard(self._interrupted):
            self._walk(active, needed)
        if self.error is not None:
            raise self.error
        if not active.walk.done and not self.failed and not self.pausing:
            stuck = [describe(root.plan, root.plan.spans[root.program.steps[s].spans[0]]) for s, _, _ in active.walk.stuck()]
            raise InternalError(f"the run came to a stop before its end; waiting: {', '.join(stuck[:5])}")
        if self.progress is not None and not self.failed and not self.pausing and (self.done < self.total or self.most_told < self.done):
            # What there was to do is done; less than was planned where a loop has stopped before its last turn.
            self.total = self.done
            self.tell(self.done, root.graph.task_names[-1])
        return active

    def tell(self, done: int, name: str) -> None:
        """Progress, as far as anybody asks for it. It never goes back, whichever thread comes first."""
        with self.telling:
            if self.progress is not None and done >= self.most_told:
                self.most_told = done
                self.progress(done, self.total, name)

    def told(self, traced: Callable[[], Timeline]) -> Callable[[], Timeline]:
        """`traced`, what makes the trace of the run, with what is to be said of it."""
        here, planned = self.lanes["compute"], self.planned_lanes
        if here >= planned:
            return traced
        note = f"{self.host} was planned with {planned} lanes, and {here} {'cores are' if here > 1 else 'core is'} here: so many threads ran it"

        def noted() -> Timeline:
            trace = traced()
            return replace(trace, notes=(*trace.notes, note))

        return noted

    def _interrupted(self) -> None:
        """Ctrl-C: start no more. See `interrupts.heard`."""
        self.error = self.error or KeyboardInterrupt()
        if self.rounds is not None:
            self.rounds.halt()

    def _walk(self, active: Active, needed: Mapping[str, int]) -> None:
        """Walk with as many threads as there is work for; what fails first is in `error`."""
        root = active.frame
        door = Door()
        if self.cores is not None:
            self.cores.settle(0)
        threads = [
            self.new_thread(target=door.behind(self._work, self.cores), args=(kind, n), name=f"hetsched-{kind}-{n}", daemon=True)
            for kind, count in needed.items()
            for n in range(1 if kind == "compute" else 0, min(count, self.lanes[kind]))
        ]
        self.total = launches_of(root.plan) if self.progress is not None else 0
        if root.bodies is None:
            root.bodies = programs_of(root.plan)
        self.programs = root.bodies
        with ExitStack() as stack:
            stack.enter_context(tuned())
            try:
                try:
                    for thread in threads:
                        thread.start()
                    self.zero = perf_counter()
                    with self.lock:
                        self.push(active, active.walk.begin())
                        self.over = not self.outstanding and not any(self.ready.values())
                finally:
                    door.open()
                self._work("compute", 0)
            except BaseException as error:  # Ctrl-C reaches the caller's thread only: let the others finish what they are at
                self.error = self.error or error
            finally:
                with self.lock:
                    self.over = True
                    self.wake_all()
                for thread in threads:
                    if thread.ident is not None:
                        thread.join()

    def _relay(self, active: Active, needed: Mapping[str, int]) -> None:
        """The walk of a plan that asks nothing but threads."""
        frame = active.frame
        runner = relay.Relay(self, frame, self.new_thread)
        frame.ready()
        self.total = launches_of(frame.plan) if self.progress is not None else 0
        lanes = [(kind, n) for kind in KINDS for n in range(min(needed[kind], self.lanes[kind]))]
        with tuned():
            runner.run(lanes)
        if self.error is None and self.deadline is not None and perf_counter() > self.deadline:
            self.error = self.timed_out()
        if self.error is not None:
            raise self.error
        if not runner.is_done:
            raise InternalError(
                f"the run came to a stop before its end, {sum(len(log.times) for log in runner.logs) // 3} of {len(frame.program.steps)} steps done"
            )
        active.logs = runner.noted()
        active.busy[self.host] = runner.seconds
        if self.progress is not None:
            self.tell(self.total, frame.graph.task_names[-1] if len(frame.graph) else "")

    # Under the lock -----------------------------------------------------------------------------------------------------------

    def push(self, active: Active, steps: list[tuple[int, int]]) -> None:
        if (self.pausing and active.around is None) or (active.top is not None and active.top.is_lost):
            return  # these are left for the next plan, or never done
        for s, turn in steps:
            step = active.frame.program.steps[s]
            self.number += 1
            item = Item(active.priority(step, turn), self.number, active, step, turn)
            driver = active.drivers[s]
            if driver is None:
                # A loop holds lanes of every kind, a copy engine's perhaps first: a thread begins it.
                heapq.heappush(self.ready["io" if step.kind == "io" else "compute"], item)
            elif self.replanner is not None and active.around is None and self.in_flight.get(driver.name, 0) >= AHEAD_STEPS:
                heapq.heappush(self.waiting.setdefault(driver.name, []), item)
            else:
                self._give(driver, item)

    def _give(self, driver: Driver, item: Item) -> None:
        self.outstanding += 1
        if item.active.top is not None:
            item.active.top.under_way += 1
        self.in_flight[driver.name] = self.in_flight.get(driver.name, 0) + 1
        driver.put(item)

    def _taken_back(self, item: Item) -> None:
        """A driver is done with a step: give it one that has waited."""
        driver = item.active.drivers[item.step.index]
        assert driver is not None
        self.outstanding -= 1
        self._has_ended(item)
        self.in_flight[driver.name] -= 1
        waiting = self.waiting.get(driver.name)
        if waiting and self.error is None:
            self._give(driver, heapq.heappop(waiting))

    def pause(self) -> None:
        """Start nothing more but what loops in flight need to come to the end of a turn. Under the lock."""
        self.pausing = True
        for kind, items in self.ready.items():
            self.ready[kind][:] = [x for x in items if x.active.around is not None]
            heapq.heapify(self.ready[kind])
        self.waiting.clear()
        for inner in self.loops.values():
            loop = inner.frame.loop
            assert loop is not None
            inner.walk.hold(boundary(loop, inner.walk.begun))
        self.wake_all()

    def look(self) -> None:
        """Ask the replanner, unless another thread does."""
        if self.replanner is None or self.pausing or self.looking or self.error is not None or self.failed:
            return
        with self.lock:
            if self.looking:
                return
            self.looking = True
        try:
            progress = EpochProgress(perf_counter() - self.zero, self.steps_done, self.speeds)
            if self.replanner.due(self.root[0].frame.plan, progress):
                with self.lock:
                    self.pause()
        finally:
            self.looking = False

    def speeds(self) -> Speeds:
        """What has been measured so far."""
        out = Speeds(done=set(self.root[0].finished), now=perf_counter() - self.zero)
        for active in [*self.root, *self.loops.values()]:
            program = active.frame.program
            for step, (times, seconds) in zip(program.steps, active.measured, strict=True):
                if times:
                    out.add(program.plan, step.spans, step.owner, seconds, int(times))
        out.turns = {task: (inner.walk.oldest, out.now - inner.began) for task, inner in list(self.loops.items())}
        return out

    def wake(self, kind: str) -> None:
        """Hand work to whoever is idle; a thread of `kind` is about to go on with one more step itself ("": none is)."""
        for other, items in self.ready.items():
            idle = self.idle[other]
            if not idle or not items or self.alone is not None:
                continue
            spare = len(items)
            if spare <= 0 or (other == kind == "compute" and sum(x.step.seconds for x in items[:8]) < WAKE_SECONDS):
                continue
            for _ in range(min(spare, len(idle))):
                idle.pop().release()

    def wake_all(self) -> None:
        for idle in self.idle.values():
            while idle:
                idle.pop().release()

    def _take(self, kind: str) -> Item | None:
        """The next step for a thread of `kind`, or None where it must wait."""
        items = self.ready[kind]
        if self.losses:
            while items and items[0].active.top is not None and items[0].active.top.is_lost:
                heapq.heappop(items)
        if kind == "compute" and self.alone is not None:
            if self.running["compute"] == 0:
                return self.alone
            return None
        if not items:
            return None
        item = items[0]
        if kind == "compute" and width_of(item) > 1:
            heapq.heappop(items)
            self.alone = item
            return self._take(kind)
        return heapq.heappop(items)

    def _is_over(self) -> bool:
        if (self.outstanding and not self.is_lost) or any(self.running.values()):
            return False
        return self.error is not None or not (any(self.ready.values()) or self.alone)

    # Threads ------------------------------------------------------------------------------------------------------------------

    def _work(self, kind: str, lane: int) -> None:
        with np.errstate(all="ignore"):  # NaN and infinity are values; warnings from a thread in the middle of a run help nobody
            self._serve(kind, lane)

    def _serve(self, kind: str, lane: int) -> None:
        gate = threading.Lock()
        gate.acquire()
        main = kind == "compute" and lane == 0
        self.lock.acquire()
        try:
            while not self.over:
                if self.deadline is not None and perf_counter() > self.deadline and self.error is None:
                    self.error = self.timed_out()
                item = self._take(kind) if self.error is None else None
                if item is None and self.rounds is not None and not self.rounds.halted:
                    self.lock.release()
                    try:
                        self._join(self.rounds, kind, lane)
                    finally:
                        self.lock.acquire()
                    continue
                if item is None:
                    if self._is_over():
                        self.over = True
                        self.wake_all()
                        break
                    self.wake("")
                    self.idle[kind].append(gate)
                    self.lock.release()
                    if self.cores is not None and kind == "compute":
                        self.cores.leave(lane)
                    try:
                        self._sleep(gate, main)
                    finally:
                        self.lock.acquire()
                        if gate in self.idle[kind]:  # woken by the deadline, not by a peer
                            self.idle[kind].remove(gate)
                    continue
                self.running[kind] += 1
                if item.active.top is not None:
                    item.active.top.under_way += 1
                self.wake(kind)
                self.lock.release()
                if self.cores is not None and kind == "compute" and item.step.seconds > LONG_SECONDS:
                    self.cores.settle(lane)
                try:
                    self._do(item, kind, lane)
                except BaseException as error:
                    with self.lock:
                        self._fail(item, error)
                    if main and not isinstance(error, Exception):
                        raise
                finally:
                    self.lock.acquire()
                    self.running[kind] -= 1
                    self._has_ended(item)
                    if item is self.alone:
                        self.alone = None
                    if self.alone is not None or (item.step.lanes and width_of(item) > 1) or self.error is not None:
                        self.wake_all()
        finally:
            self.lock.release()

    def _sleep(self, gate: Any, main: bool) -> None:
        if self.deadline is not None and main:
            gate.acquire(timeout=max(self.deadline - perf_counter(), 0.0) + 1e-3)
        else:
            gate.acquire()

    def _fail(self, item: Item, error: BaseException) -> None:
        """A step has failed: the run ends, or goes on without what needs it. Under the lock."""
        if not self.keep_going or not isinstance(error, Exception) or isinstance(error, InternalError):
            self.error = self.error or error
            return
        top = item.active.top
        if top is None:
            self.losses.fail(item.step, error.task if isinstance(error, TaskError) else None, error)
            self._pass_over(item)
        elif not top.is_lost:
            top.is_lost = True
            assert top.around is not None
            self.losses.fail(top.around.step, None, error)

    def _has_ended(self, item: Item) -> None:
        """A step is no longer under way; a lost loop of which nothing else is, is passed over. Under the lock."""
        top = item.active.top
        if top is not None:
            top.under_way -= 1
            if top.is_lost and not top.under_way:
                assert top.around is not None
                self._pass_over(top.around)

    def _pass_over(self, item: Item) -> None:
        """Count a lost step of the outermost graph as finished. Under the lock."""
        self.push(item.active, item.active.walk.finish(item.step.index, item.turn))
        self.wake("")

    def passes_over(self, item: Item) -> bool:
        """True if a step needs what is lost: it has been passed over."""
        if not self.losses or item.active.around is not None:
            return False
        with self.lock:
            lost = self.losses.takes(item.step)
            if lost:
                self._pass_over(item)
        return lost

    def _do(self, item: Item, kind: str, lane: int) -> None:
        active, step, turn = item.active, item.step, item.turn
        if self.losses and self.passes_over(item):
            return
        frame = active.frame
        plan = frame.plan
        command = plan.spans[step.spans[0]].command
        timed = self.trace and len(step.spans) > 1 and (frame.loop is None or turn in TIMED_TURNS)
        if timed or frame.loop is None:
            frame.bindings.prepare(step.index, turn)
        start = perf_counter() - self.zero
        if isinstance(command, Launch) and isinstance(frame.graph.task_ops[command.task], Nested):
            if frame.fires(command.task, turn):
                self._begin_loop(item, command.task, start, kind, lane)
            else:
                frame.collect_loop(command.task, turn)
                self._finish(item, start, perf_counter() - self.zero, lane)
            return
        if active.is_chain and len(step.lanes) == 1:
            self._follow(item, lane)
            return
        marks = None
        if len(step.lanes) > 1:
            with wide(min(len(step.lanes), self.lanes["compute"])):
                frame.perform(step.index, turn)
        elif timed:
            marks = frame.perform_timed(step.index, turn, self.zero)
        else:
            frame.perform(step.index, turn)
        self._finish(item, start, perf_counter() - self.zero, lane, marks)

    def _follow(self, item: Item, lane: int) -> None:
        """Turn after turn of a chain, until it ends or something of higher priority is ready."""
        active, step, turn = item.active, item.step, item.turn
        perform, turns, zero, program = active.frame.perform, active.walk.turns, self.zero, active.frame.program
        others, period = self.ready[step.kind], active.frame.plan.period or 0.0
        notes: list[Note] = []
        busy, told, priority = 0.0, 0.0, item.priority
        looked, counted, busy_counted = perf_counter() - zero, turn, 0.0
        name = name_of(active.frame.plan, step)
        timed = TIMED_TURNS if self.trace and len(step.spans) > 1 else ()
        while True:
            marks = None
            if turn in timed:
                active.frame.bindings.prepare(step.index, turn)
                start = perf_counter() - zero
                marks = active.frame.perform_timed(step.index, turn, zero)
            else:
                start = perf_counter() - zero
                perform(step.index, turn)
            finish = perf_counter() - zero
            busy += finish - start
            if self.trace and (turn < KEPT_TURNS or turn >= turns - KEPT_TURNS):
                notes.append(Note(step.index, turn, lane, start, finish, marks))
            turn += 1
            priority += period
            if self.progress is not None and finish - told > TELL_SECONDS:
                told = finish
                self.tell(self.done + program.commands(step.index, item.turn, turn), name)
            if turn >= turns or self.error is not None or self.pausing or any(x.priority < priority for x in others[:1]):
                break
            if self.deadline is not None and finish + zero > self.deadline:
                break
            if self.replanner is not None and finish - looked > LOOK_SECONDS:
                looked = finish
                active.measured[0] = [active.measured[0][0] + turn - counted, active.measured[0][1] + busy - busy_counted]
                counted, busy_counted = turn, busy
                self.look()
        with self.lock:
            active.busy[step.owner] = active.busy.get(step.owner, 0.0) + busy
            active.measured[0] = [active.measured[0][0] + turn - counted, active.measured[0][1] + busy - busy_counted]
            active.notes += notes
            self.push(active, active.walk.skip_to(turn))
            self.done += program.commands(step.index, item.turn, turn)
            ended = active.walk.done
        if ended and active.around is not None:
            self._end_loop(active)

    def done_by(
        self, item: Item, start: float, finish: float, lane: int, error: BaseException | None, marks: Mapping[int, float] | None = None
    ) -> None:
        """A driver's step has been done, or has failed (`error`), or was left out because another had. `marks`: see `Note`."""
        if error is None and not self.passes_over(item):
            try:
                item.active.frame.gather(item.step.index, item.turn)
                self._finish(item, start, finish, lane, marks)
            except BaseException as failure:
                error = failure
        with self.lock:
            if error is not None:
                self._fail(item, error)
            self._taken_back(item)
            self.wake("")
            if self.outstanding == 0 or self.error is not None:
                self.wake_all()

    def doubt(self) -> None:
        """A driver will look later at what a step has made: the run does not end before that."""
        with self.lock:
            self.outstanding += 1

    def settle_doubt(self, item: Item, error: Exception | None) -> None:
        """It has been looked at; the step has failed after all where there is an error."""
        with self.lock:
            self.outstanding -= 1
            if error is not None:
                self._fail(item, error)
            if self.outstanding == 0 or self.error is not None:
                self.wake_all()

    def lose(self, driver: str, error: BaseException) -> None:
        """A driver can go on no more: the run ends without what it was at."""
        with self.lock:
            failure = InternalError(f"what drives {driver} has failed: {type(error).__name__}: {error}")
            failure.__cause__ = error
            self.error = self.error or failure
            self.is_lost = True
            self.wake_all()

    def _finish(self, item: Item, start: float, finish: float, lane: int, marks: Mapping[int, float] | None = None) -> None:
        active, step, turn = item.active, item.step, item.turn
        stop = step.index == active.stop_step and active.frame.stop_value(turn)
        with self.lock:
            self.steps_done += 1
            measured = active.measured[step.index]
            measured[0] += 1
            measured[1] += finish - start
            if active.around is None:
                active.finished.update(step.spans)
            active.busy[step.owner] = active.busy.get(step.owner, 0.0) + (finish - start) * max(len(step.lanes), 1)
            if self.trace and (turn < KEPT_TURNS or turn >= active.walk.turns - KEPT_TURNS or active.stop_step >= 0):
                active.notes.append(Note(step.index, turn, lane, start, finish, marks))
            if stop:
                active.frame.stopped_at = turn
                self.push(active, active.walk.stop_after(turn))
            self.push(active, active.walk.finish(step.index, turn))
            ended = active.walk.done
            program = active.frame.program
            self.done += program.commands(step.index, turn, turn + 1) if program.every else len(step.spans)
            done = self.done
        if self.progress is not None:
            self.tell(done, name_of(active.frame.plan, step))
        if self.replanner is not None:
            self.look()
        if ended and active.around is not None:
            self._end_loop(active)

    def _begin_loop(self, item: Item, task: int, start: float, kind: str, lane: int) -> None:
        frame = item.active.frame.child(task, item.turn, self.programs)
        inner = Active(frame, item.priority, item, self.drivers)
        inner.began = start
        if self._goes_round(item, inner):
            self._go_round(inner, kind, lane)
            return
        stream = devoted.stream_for(self, item, inner)
        if stream is not None:
            if devoted.run(self, inner, stream):
                self._end_loop(inner)
            return
        with self.lock:
            if item.active.around is None:
                if self.pausing:
                    return  # it has not begun: the next plan does it
                if frame.loop is not None:  # a branch goes on to its end
                    self.loops[task] = inner
            self.push(inner, inner.walk.begin())
            empty = inner.walk.done
        if empty:
            self._end_loop(inner)

    def _goes_round(self, item: Item, inner: Active) -> bool:
        """True if all threads may be at a loop at once, without the lock: nobody asks anything else of it, and there is nothing to do beside it."""
        if self.keep_going or self.replanner is not None or self.drivers or inner.is_chain or item.active.around is not None:
            return False
        return rounds.suits(inner.frame.program, self.host) and rounds.is_lonely(item.active.frame.program, item.step.index)

    def _go_round(self, inner: Active, kind: str, lane: int) -> None:
        shared = rounds.Rounds(self, inner.frame)
        with self.lock:
            self.rounds = shared
            if self.error is not None:
                shared.halt()
            self.wake_all()
        self._join(shared, kind, lane)
        with self.lock:
            self.rounds = None
            if self.error is not None:
                return
        program = inner.frame.program
        inner.logs = shared.noted()
        inner.busy[self.host] = inner.busy.get(self.host, 0.0) + shared.seconds
        self.done += program.commands_of_all(shared.turns)
        self._end_loop(inner)

    def _join(self, shared: rounds.Rounds, kind: str, lane: int) -> None:
        """Be one of the threads that are at a loop, to its end."""
        try:
            shared.serve(kind, lane, main=kind == "compute" and lane == 0)
        except BaseException as error:  # Ctrl-C reaches the caller's thread only: let the others finish what they are at
            self.error = self.error or error
            shared.halt()

    def _end_loop(self, inner: Active) -> None:
        item = inner.around
        assert item is not None
        if inner.top is not None and inner.top.is_lost:
            return
        frame = item.active.frame
        command = frame.plan.spans[item.step.spans[0]].command
        assert isinstance(command, Launch)
        inner.frame.end_loop(frame, command.task, item.turn)
        with self.lock:
            if self.trace:
                item.active.loops[command.task] = inner.noted()
            for owner, seconds in inner.busy.items():
                item.active.busy[owner] = item.active.busy.get(owner, 0.0) + seconds
        finish = perf_counter() - self.zero
        active = item.active
        with self.lock:
            if active.around is None:
                self.loops.pop(command.task, None)
                active.finished.update(item.step.spans)
            if self.trace and (item.turn < KEPT_TURNS or item.turn >= active.walk.turns - KEPT_TURNS):
                active.notes.append(Note(item.step.index, item.turn, 0, inner.began, finish))
            self.push(active, active.walk.finish(item.step.index, item.turn))
            self.done += 1
            ended = active.walk.done
        if ended and active.around is not None:
            self._end_loop(active)


def run_plan(
    plan: Timeline,
    inputs: Mapping[int, Any],
    *,
    trace: bool = True,
    keep_going: bool = False,
    timeout: float | None = None,
    progress: Progress | None = None,
    replanner: Replanner | None = None,
) -> Result:
    """Run a plan on the CPU threads of this process. `inputs`: value id -> read-only array or object. replanner: plans the rest anew when it says so.

    Raises `TaskError` for the first task that fails (unless `keep_going`: then the tasks that do not need it still run), `RunTimeoutError`.
    """
    for owner in sorted(plan.owners):
        if owner not in {d.id for d in plan.machine.devices} or plan.machine.device(owner).kind != "cpu":
            raise PlacementError(f"the plan uses {owner!r}, which the cpu executor does not drive; run it where that device is")
    with guarded():
        return _run_plan(plan, inputs, trace, keep_going, timeout, progress, replanner)


def _run_plan(
    plan: Timeline, inputs: Mapping[int, Any], trace: bool, keep_going: bool, timeout: float | None, progress: Progress | None,
    replanner: Replanner | None,
) -> Result:  # fmt: skip
    began = perf_counter()
    is_plain = not keep_going and replanner is None
    is_quiet = is_plain and timeout is None and progress is None
    program = program_of(plan, join=not keep_going, whole=is_quiet)
    if is_quiet and is_solo(program):
        with lent(plan, program, lambda: once.Walk(Frame(program, inputs)), lambda walk: walk.takes(inputs)) as walk:
            return walk.run(plan, began, trace)

    def run_one(plan: Timeline, inputs: Mapping[int, Any]) -> Outcome:
        crew = Crew(plan, trace, keep_going, timeout, progress, replanner=replanner, began=began)
        if not is_plain:
            return end_of(crew, Frame(program_of(plan, join=not keep_going), inputs))
        with lent(plan, program, lambda: Frame(program, inputs), lambda frame: frame.retake(inputs)) as frame:
            outcome = end_of(crew, frame)
            frame.let_go()
            return outcome

    return in_epochs(run_one, plan, inputs, replanner, began)


def in_epochs(run_one: RunOne, plan: Timeline, inputs: Mapping[int, Any], replanner: Replanner | None, began: float) -> Result:
    """Run a plan to its end, or in epochs where there is a replanner."""
    if replanner is not None:
        return replace(run_epochs(run_one, plan, inputs, replanner), wall_seconds=perf_counter() - began)
    return _result(run_one(plan, inputs), plan, began)


def run_crew(crew: Crew, frame: Frame, began: float) -> Result:
    """Run `frame` with `crew` to its end."""
    return _result(end_of(crew, frame), frame.plan, began)


def _result(outcome: Outcome, plan: Timeline, began: float) -> Result:
    result = Result.lazily(outcome.outputs, outcome.traced, plan, perf_counter() - began)
    if outcome.failed:
        result.__dict__["failed"] = outcome.failed
    return result


def end_of(crew: Crew, frame: Frame) -> Outcome:
    """Run `frame` with `crew` and gather the results, of what is made where the crew has paused."""
    plan = frame.plan
    active = crew.run(frame)
    if crew.pausing and not active.walk.done:
        loops = {}
        for task, inner in crew.loops.items():
            loops[task] = (inner.frame, inner.walk.oldest)
            active.loops[task] = inner.noted()._replace(turns=inner.walk.oldest)
            for owner, seconds in inner.busy.items():
                active.busy[owner] = active.busy.get(owner, 0.0) + seconds
        return paused(Pause(frame, active.finished, loops, crew.speeds(), crew.told(active.noted().trace)()))
    if crew.failed:
        values = frame.results([name for name, value in plan.graph.outputs.items() if not crew.losses.has(value)])
    else:
        values = frame.results()
    return Outcome(values, crew.told(active.noted().trace), dict(crew.failed))
