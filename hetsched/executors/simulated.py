"""The executor under a virtual clock: the same program, the same walk, no threads, any machine.

Durations are the plan's, times a factor drawn for each step (`spread`), so that what a run does when predictions are wrong can be studied and
repeated by a seed. The values are really computed, by the array kernels on NumPy, in the memory that the plan gives: what a step writes is spoilt
when it starts and computed when it finishes in virtual time, so that a missing reuse edge, or an order that is not kept, gives wrong values.

`slow` says how much longer than planned what runs on a device (or link) takes, at a moment of the run: a device that is busy with other things,
or whose estimate was wrong. With a replanner the run goes on in epochs (`hetsched.executors.epochs`), all of it in virtual time.

Lanes. The lanes of a device that shares them, as many as the plan has work for, take the ready step of highest priority (continuation); a stream
takes its steps in the order of the plan.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from hetsched.errors import InternalError
from hetsched.executors.epochs import Outcome, Pause, Progress, Replanner, Speeds, boundary, paused, run_epochs
from hetsched.executors.frame import Frame
from hetsched.executors.outline import lanes_needed
from hetsched.executors.program import compile_plan, describe
from hetsched.executors.result import Result
from hetsched.executors.steps import Step
from hetsched.executors.tracing import KEPT_TURNS, Note, trace_of
from hetsched.executors.walk import Walk
from hetsched.graph.graph import Nested
from hetsched.timeline import Launch, Span, Timeline

# (device or link, seconds of the run) -> how much longer than planned a step takes
Slow: TypeAlias = Callable[[str, float], float]
# (plan, span) -> how long it takes
Seconds: TypeAlias = Callable[[Timeline, Span], float]


class Done(NamedTuple):
    """An entry of the log: what ran, from when to when."""

    start: float
    finish: float
    task: str
    turn: int


class _Active:
    def __init__(self, frame: Frame, base: float, around: tuple[_Active, Step, int] | None, start: float) -> None:
        self.frame = frame
        self.walk = Walk(len(frame.program.steps), frame.program.arcs, frame.turns, frame.program.window)
        self.base = base
        self.around = around
        self.began = start
        self.notes: list[Note] = []
        self.busy: dict[str, float] = {}
        self.loops: dict[int, Timeline] = {}
        self.finished: set[int] = set()
        self.measured: list[list[float]] = [[0, 0.0] for _ in frame.program.steps]


class Simulation:
    """One simulated run. `spread` 0.5 draws every duration between 0.5 and 1.5 times the plan's; `compute=False` leaves the values out."""

    def __init__(
        self, plan: Timeline, inputs: Mapping[int, Any], spread: float = 0.0, seed: int = 0, compute: bool = True,
        slow: Slow | None = None, seconds: Seconds | None = None, replanner: Replanner | None = None, zero: float = 0.0, random:
        np.random.Generator | None = None,
    ) -> None:  # fmt: skip
        self.plan = plan
        self.compute = compute
        self.slow = slow
        self.seconds = seconds
        self.replanner = replanner
        self.zero = zero  # seconds of the run before this epoch
        self.steps_done = 0
        self.pausing = False
        self.in_flight: dict[int, _Active] = {}  # outermost loop tasks
        self.random = random if random is not None else np.random.default_rng(seed)
        self.spread = spread
        self.root = Frame(compile_plan(plan, join=False), inputs)
        self.root.ready()
        self.ready: list[tuple[float, int, _Active, Step, int]] = []
        self.running: list[tuple[float, int, _Active, Step, int, float, tuple[tuple[str, str, int], ...]]] = []
        self.free: dict[tuple[str, str], set[int]] = {}
        for device in plan.machine.devices:
            lanes = {"compute": device.lanes, "io": device.io_lanes}
            needed = lanes_needed(plan, device.id) if device.shares_lanes else lanes
            for kind, count in lanes.items():
                self.free[device.id, kind] = set(range(min(count, needed[kind])))
        for link in plan.machine.links:
            self.free[link.id, "copy"] = set(range(max(link.engines, 1)))
        self.endless = {link.id for link in plan.machine.links if link.engines == 0}
        self.shared = {d.id for d in plan.machine.devices if d.shares_lanes}
        self.number = 0
        self.now = 0.0
        self.log: list[Done] = []

    def run(self) -> Outcome:
        """Walk to the end, or to where the replanner stops it; raises `InternalError` if the run comes to a stop before that."""
        root = self.outermost = _Active(self.root, 0.0, None, 0.0)
        self._push(root, root.walk.begin())
        while self.ready or self.running:
            self._start()
            if not self.running:
                break
            self._finish()
        if self.pausing and not root.walk.done:
            return self._paused(root)
        if not root.walk.done:
            stuck = [describe(self.plan, self.plan.spans[root.frame.program.steps[s].spans[0]]) for s, _, _ in root.walk.stuck()]
            raise InternalError(f"the simulated run came to a stop before its end; waiting: {', '.join(stuck[:5])}")
        trace = trace_of(root.frame.program, root.notes, root.busy, 1, root.loops)
        return Outcome(self.root.results() if self.compute else {}, lambda: trace, {})

    def _paused(self, root: _Active) -> Outcome:
        loops = {}
        for task, inner in self.in_flight.items():
            loops[task] = (inner.frame, inner.walk.oldest)
            self._keep_trace(root, task, inner, inner.walk.oldest)
        return paused(Pause(root.frame, root.finished, loops, self.speeds(), trace_of(root.frame.program, root.notes, root.busy, 1, root.loops)))

    def speeds(self) -> Speeds:
        """What has been measured so far, in virtual time."""
        out = Speeds(now=self.now, done=set(self.outermost.finished))
        for active in [self.outermost, *self.in_flight.values()]:
            program = active.frame.program
            for step, (times, seconds) in zip(program.steps, active.measured, strict=True):
                if times:
                    out.add(program.plan, step.spans, step.owner, seconds, int(times))
        out.turns = {task: (inner.walk.oldest, self.now - inner.began) for task, inner in self.in_flight.items()}
        return out

    def _look(self) -> None:
        if self.replanner is None or self.pausing or not self.replanner.due(self.plan, Progress(self.now, self.steps_done, self.speeds)):
            return
        self.pausing = True
        self.ready = [x for x in self.ready if x[2].around is not None]
        heapq.heapify(self.ready)
        for inner in self.in_flight.values():
            assert inner.frame.loop is not None
            inner.walk.hold(boundary(inner.frame.loop, inner.walk.begun))

    def _push(self, active: _Active, steps: list[tuple[int, int]]) -> None:
        if self.pausing and active.around is None:
            return  # these are left for the next plan
        for s, turn in steps:
            step = active.frame.program.steps[s]
            self.number += 1
            priority = active.base + step.start + turn * (active.frame.plan.period or 0.0)
            heapq.heappush(self.ready, (priority, self.number, active, step, turn))

    def _start(self) -> None:
        """Start every ready step, by priority, for which its lanes are free."""
        held = []
        while self.ready:
            item = heapq.heappop(self.ready)
            _, number, active, step, turn = item
            command = active.frame.plan.spans[step.spans[0]].command
            if isinstance(command, Launch) and isinstance(active.frame.graph.task_ops[command.task], Nested):
                if active.frame.fires(command.task, turn):
                    self._begin_loop(active, step, turn, command.task)
                else:
                    active.frame.collect_loop(command.task, turn)
                    heapq.heappush(self.running, (self.now, number, active, step, turn, self.now, ()))
                continue
            lanes = self._lanes(step)
            if lanes is None:
                held.append(item)
                continue
            for owner, kind, lane in lanes:
                self.free[owner, kind].discard(lane)
            if self.compute:
                active.frame.poison(step.index, turn)
            seconds = step.seconds if self.seconds is None else sum(self.seconds(active.frame.plan, active.frame.plan.spans[i]) for i in step.spans)
            seconds *= (1 + self.spread * (2 * self.random.random() - 1)) if self.spread else 1.0
            if self.slow is not None:
                seconds *= self.slow(step.owner, self.zero + self.now)
            heapq.heappush(self.running, (self.now + seconds, number, active, step, turn, self.now, lanes))
        for item in held:
            heapq.heappush(self.ready, item)

    def _lanes(self, step: Step) -> tuple[tuple[str, str, int], ...] | None:
        """The lanes a step would take now, or None. Streams: the plan's own lane; shared lanes: any that is free."""
        if step.owner in self.endless:
            return ()
        free = self.free[step.owner, step.kind]
        if step.owner in self.shared:
            return tuple((step.owner, step.kind, lane) for lane in sorted(free)[: len(step.lanes)]) if len(free) >= len(step.lanes) else None
        wanted = tuple((lane.owner, lane.kind, lane.number) for lane in step.lanes)
        return wanted if all(lane in self.free[owner, kind] for owner, kind, lane in wanted) else None

    def _begin_loop(self, active: _Active, step: Step, turn: int, task: int) -> None:
        first = active.frame.plan.loops[task]
        bodies = {id(body): compile_plan(body, join=False) for body in first.alternatives}
        # Where nothing has a value an if goes as it is planned.
        frame = active.frame.child(task, turn, bodies, None if self.compute else first.likeliest)
        inner = _Active(frame, active.base + step.start, (active, step, turn), self.now)
        if active.around is None and first.branch is None:
            self.in_flight[task] = inner
        self._push(inner, inner.walk.begin())
        if inner.walk.done:
            self._end_loop(inner)

    def _finish(self) -> None:
        self.now, _, active, step, turn, start, lanes = heapq.heappop(self.running)
        for owner, kind, lane in lanes:
            self.free[owner, kind].add(lane)
        frame = active.frame
        command = frame.plan.spans[step.spans[0]].command
        looped = isinstance(command, Launch) and isinstance(frame.graph.task_ops[command.task], Nested)
        if self.compute and not looped:
            with np.errstate(all="ignore"):
                frame.perform(step.index, turn)
        self.log.append(Done(start, self.now, describe(frame.plan, frame.plan.spans[step.spans[0]]), turn))
        active.busy[step.owner] = active.busy.get(step.owner, 0.0) + (self.now - start) * max(len(step.lanes), 1)
        active.notes.append(Note(step.index, turn, lanes[0][2] if lanes else 0, start, self.now))
        active.measured[step.index][0] += 1
        active.measured[step.index][1] += self.now - start
        active.finished.update(step.spans)
        self.steps_done += 1
        if step.index == frame.program.stop_step and self.compute and frame.stop_value(turn):
            frame.stopped_at = turn
            self._push(active, active.walk.stop_after(turn))
        self._push(active, active.walk.finish(step.index, turn))
        self._look()
        if active.walk.done and active.around is not None:
            self._end_loop(active)

    def _keep_trace(self, active: _Active, task: int, inner: _Active, turns: int) -> None:
        kept = [n for n in inner.notes if n.turn < KEPT_TURNS or n.turn >= turns - KEPT_TURNS]
        active.loops[task] = trace_of(inner.frame.program, kept, inner.busy, turns, inner.loops)
        for owner, seconds in inner.busy.items():
            active.busy[owner] = active.busy.get(owner, 0.0) + seconds

    def _end_loop(self, inner: _Active) -> None:
        assert inner.around is not None
        active, step, turn = inner.around
        command = active.frame.plan.spans[step.spans[0]].command
        assert isinstance(command, Launch)
        if self.compute:
            inner.frame.end_loop(active.frame, command.task, turn)
        self._keep_trace(active, command.task, inner, inner.walk.turns)
        if active.around is None:
            self.in_flight.pop(command.task, None)
            active.finished.update(step.spans)
        active.notes.append(Note(step.index, turn, 0, inner.began, self.now))
        self._push(active, active.walk.finish(step.index, turn))
        if active.walk.done and active.around is not None:
            self._end_loop(active)


def run_plan(
    plan: Timeline,
    inputs: Mapping[int, Any],
    *,
    spread: float = 0.0,
    seed: int = 0,
    compute: bool = True,
    slow: Slow | None = None,
    seconds: Seconds | None = None,
    replanner: Replanner | None = None,
) -> Result:
    """Run a plan under a virtual clock; the trace's times are virtual. `inputs`: value id -> read-only array or object.

    slow: (device or link, seconds of the run) -> what durations are multiplied by. seconds: durations of launches and copies, the plan's own
    where None (then a plan that knows how slow a device is makes it slower still). replanner: plans the rest anew when it says so; the
    time that planning takes does not count.
    """
    random, spent = np.random.default_rng(seed), 0.0

    def run_one(plan: Timeline, inputs: Mapping[int, Any]) -> Outcome:
        nonlocal spent
        simulation = Simulation(plan, inputs, spread, compute=compute, slow=slow, seconds=seconds, replanner=replanner, zero=spent, random=random)
        outcome = simulation.run()
        spent += simulation.now
        return outcome

    if replanner is not None:
        result = run_epochs(run_one, plan, inputs, replanner)
    else:
        outcome = run_one(plan, inputs)
        trace = outcome.traced()
        result = Result(outcome.outputs, trace, (plan,), 0.0, {}, (trace,))
    return replace(result, wall_seconds=result.trace.makespan)
