"""The executor of plans that also use devices with streams: the threads of the host, and one driving thread for each such device.

A driving thread hands a step to its stream as soon as everything it needs on the *same* device has been handed over (a stream waits for the event of
another stream; nobody waits on the host), and everything it needs from elsewhere is done. So dependent commands of a device never meet the host.

What has been done is looked for between two steps, which costs a question for each stream. Only where there is nothing to hand over does the driver
ask to be woken, and then by the first event that the host or another device waits for, or, where none does, by one in the middle of what is on its
way: a wake-up for each event would cost more than a small kernel does.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from hetsched.errors import InternalError
from hetsched.executors.active import Active, Item
from hetsched.executors.backends import opens
from hetsched.executors.backends._sites import task_of
from hetsched.executors.binding import Call
from hetsched.executors.cores import yielding
from hetsched.executors.cpu import Crew, Progress, end_of, in_epochs
from hetsched.executors.epochs import Outcome, Replanner
from hetsched.executors.frame import Frame
from hetsched.executors.interrupts import guarded, heard
from hetsched.executors.kept import program_of
from hetsched.executors.memory import Memory
from hetsched.executors.outline import programs_of
from hetsched.executors.program import Program, describe
from hetsched.executors.result import Result
from hetsched.executors.steps import Step
from hetsched.executors.warming import multiplies_on, warm
from hetsched.graph.alike import alike
from hetsched.graph.graph import Nested
from hetsched.graph.spec import Spec, array_form
from hetsched.machine import HOST, Device
from hetsched.timeline import Lane, Launch, Timeline

T = TypeVar("T")

# Launches of a joined step are timed one by one in so many first turns, from which costs are learnt; later ones get shares of the step's time.
TIMED_TURNS = 8


class Event(Protocol):
    """The mark that everything handed to a stream before it has been done."""

    def wait(self) -> None: ...

    def done(self) -> bool:
        """True if everything has been done, or has failed."""

    def span(self) -> tuple[float, float]:
        """First start and last finish, `perf_counter` seconds, of what the stream did since its event before."""

    def on_done(self, callback: Any) -> None:
        """Call `callback()` once, from any thread, when it has been done."""


class Stream(Protocol):
    """The live object behind a lane of a device: what is handed to it is done in that order."""

    def wait(self, event: Any) -> None: ...

    def launch(self, kernel: Any, inputs: Any, outputs: Any, workspace: Any, attributes: Any) -> Any: ...

    def upload(self, src: Any, dst: Any) -> None: ...

    def download(self, src: Any, dst: Any) -> None: ...

    def copy(self, src: Any, dst: Any) -> None: ...

    def record(self) -> Event: ...


class Ranges(Protocol):
    """Names for a profiler: `push` begins a range on this thread, `pop` ends it."""

    def push(self, name: str, /) -> Any: ...

    def pop(self) -> Any: ...


class LiveDevice(Protocol):
    """An opened device: an arena and streams. One may have more:

    ranges: `Ranges`, or None: what is handed to its streams is named then. spin_seconds: so long its driving thread asks for events before it sleeps.
    drive_here(): called by its driving thread. lock_pages(address, nbytes): locks memory of the host so that copies need no staging (`pages.Lock`).
    """

    def array(self, offset: int, shape: tuple[int, ...], dtype: Any) -> Any: ...

    def stream(self, kind: str) -> Any: ...

    def close(self) -> None: ...


class DeviceMemory:
    """The arena of an opened device, or a part of it."""

    def __init__(self, live: LiveDevice, base: int = 0) -> None:
        self.live = live
        self.base = base

    def array(self, offset: int, spec: Spec) -> Any:
        """See `Memory.array`."""
        return self.live.array(self.base + offset, spec.bounds, spec.dtype)

    def inside(self, offset: int, nbytes: int) -> Memory:
        """See `Memory.inside`."""
        return DeviceMemory(self.live, self.base + offset)


class StreamDoer:
    """Hands the commands of a step to a stream. bridges: streams of devices of other backends, which bring bytes from there to the host."""

    def __init__(self, stream: Stream, bridges: dict[int, Stream] | None = None) -> None:
        self.stream = stream
        self.bridges = bridges if bridges is not None else {}

    def launch(self, kernel: Any, inputs: Any, outputs: Any, workspace: Any, attributes: Mapping[str, Any]) -> Any:
        """Enqueue a launch."""
        return self.stream.launch(kernel, inputs, outputs, workspace, attributes)

    def segment(self, calls: Sequence[Call]) -> bool:
        """Enqueue launches that follow each other at once; False where the stream cannot, or not yet: they are to be launched one by one."""
        segment = getattr(self.stream, "segment", None)
        return segment is not None and segment(calls)

    def move(self, src: Any, dst: Any) -> None:
        """Enqueue a copy; its direction is told by where the arrays lie."""
        if isinstance(src, np.ndarray):
            self.stream.upload(src, dst)
        elif isinstance(dst, np.ndarray):
            self.stream.download(src, dst)
        elif type(src.live) is type(dst.live):
            self.stream.copy(src, dst)
        else:
            self.stream.upload(self._brought(src), dst)

    def _brought(self, src: Any) -> Any:
        """The values of an array of another backend's device, on the host. The host waits for them: there is no event that both devices know."""
        bridge = self.bridges.get(id(src.live))
        if bridge is None:
            bridge = self.bridges[id(src.live)] = src.live.stream("copy")
        staged = np.empty(src.shape, src.dtype)
        bridge.download(src, staged)
        bridge.record().wait()
        return staged


class _Issued(NamedTuple):
    """A step on its way. `told`: somebody waits until it is done. `marks`: task -> event behind its launch, where they are timed one by one."""

    item: Item
    event: Event
    issued: float  # seconds from the start of the run to the handing over
    told: bool
    marks: Mapping[int, Event]


class _Doubt(NamedTuple):
    """What a launch has made is still to be looked at, when `event` has been reached. `check`: see `OpenCL.doubt`."""

    item: Item
    event: Event
    found: Sequence[Any]
    check: Callable[[Sequence[Any] | None], None]


class _Wake(NamedTuple):
    """What was asked to be woken by has been done."""

    stream: Stream


class _Errand(NamedTuple):
    """Something that the driving thread shall do before a run."""

    act: Callable[[], object]


class DeviceDriver:
    """One thread that drives the lanes of one device and of the links that end there."""

    def __init__(self, device: Device, live: LiveDevice) -> None:
        self.name = device.id
        self.live = live
        self.crew: Crew | None = None
        self.inbox: queue.SimpleQueue[Item | _Wake | _Errand | None] = queue.SimpleQueue()
        self.streams: dict[Lane, Stream] = {}
        self.bridges: dict[int, Stream] = {}
        self.ranges: Ranges | None = getattr(live, "ranges", None)
        self.spin_seconds: float = getattr(live, "spin_seconds", 0.0)
        # The last event of every step handed over, for the streams beside its own: (frame, step, turn) -> (stream, event).
        self.events: dict[tuple[int, int, int], tuple[Stream, Event]] = {}
        self.under_way: dict[Stream, deque[_Issued]] = {}
        self.watched: set[Stream] = set()
        self.doubts: deque[_Doubt] = deque()
        self.thread = threading.Thread(target=self._serve, name=f"hetsched-{device.id}", daemon=True)

    def put(self, item: Item) -> None:
        """Take a step that may be handed to its stream. Called under the crew's lock: it only hands over."""
        self.inbox.put(item)

    def serve(self, crew: Crew) -> None:
        """Serve a run; the one before is over."""
        self.events.clear()
        for stream in self.streams.values():
            forget = getattr(stream, "forget_faults", None)
            if forget is not None:
                forget()
        self.crew = crew
        if self.thread.ident is None:
            self.thread.start()

    def ask(self, act: Callable[[], T]) -> T:
        """What `act` gives, called by the driving thread, which serves no run yet; what it raises is raised here."""
        gate = threading.Lock()
        gate.acquire()
        found: list[T] = []
        failed: list[BaseException] = []

        def errand() -> None:
            try:
                found.append(act())
            except BaseException as error:
                failed.append(error)
            finally:
                gate.release()

        self.inbox.put(_Errand(errand))
        if self.thread.ident is None:
            self.thread.start()
        gate.acquire()
        if failed:
            raise failed[0]
        return found[0]

    def stop(self) -> None:
        """End the thread; all steps given to it are done."""
        self.inbox.put(None)
        if self.thread.ident is not None:
            self.thread.join()

    def _serve(self) -> None:
        try:
            drive_here = getattr(self.live, "drive_here", None)
            if drive_here is not None:
                with suppress(Exception):  # a device that is lost: what is handed over tells of it
                    drive_here()
            self._drive()
        except BaseException as error:  # what a stream or an event should never raise: nobody would tell of the steps on their way any more
            assert self.crew is not None
            self.crew.lose(self.name, error)
            for doubt in self.doubts:
                doubt.check(None)

    def _drive(self) -> None:
        inbox = self.inbox
        while True:
            try:
                message = inbox.get_nowait()
            except queue.Empty:
                if self._reap() or (self.spin_seconds and self._is_soon()):
                    continue
                if self.doubts and not any(self.under_way.values()):
                    self._look_at(self.doubts.popleft())
                    continue
                self._watch()
                message = inbox.get()
            if message is None:
                return
            if isinstance(message, _Wake):
                self.watched.discard(message.stream)
            elif isinstance(message, _Errand):
                message.act()
            else:
                assert self.crew is not None
                self._issue(self.crew, message)
            self._reap()

    def _is_soon(self) -> bool:
        """True if there is something to do before long; nothing is waited for where nothing is on its way."""
        if not any(self.under_way.values()):
            return False
        until = perf_counter() + self.spin_seconds
        while self.inbox.empty():
            if self._reap():
                return True
            if perf_counter() > until:
                return False
            yielding()
        return True

    def stream_of(self, lane: Lane) -> Stream:
        """The stream that serves a lane, made where it is not there yet."""
        stream = self.streams.get(lane)
        if stream is None:
            stream = self.streams[lane] = self.live.stream("copy" if lane.kind == "copy" else "compute")
            self.under_way[stream] = deque()
        return stream

    def _issue(self, crew: Crew, item: Item) -> None:
        active, step, turn = item.active, item.step, item.turn
        if crew.error is not None:
            crew.done_by(item, 0.0, 0.0, 0, crew.error)
            return
        if crew.losses and item.active.around is None and crew.losses.takes(item.step):
            with crew.lock:
                crew.push(active, active.walk.issue(step.index, turn))
            crew.done_by(item, 0.0, 0.0, 0, None)
            return
        now = perf_counter() - crew.zero
        try:
            stream = self.stream_of(step.lanes[0])
            for before, distance in active.soft_before(step.index):
                known = self.events.get((id(active), before, turn - distance))
                if known is not None and known[0] is not stream:
                    stream.wait(known[1])
            if hasattr(stream, "doubts"):  # in an idle moment, where the run can still end then as if the step had failed
                stream.doubts = None if crew.keep_going or crew.replanner is not None else []
            expect = getattr(stream, "expect", None)
            if expect is not None:
                expect(step.seconds)
            if self.ranges is None:
                event, marks = self._hand_over(active, step, turn, stream)
            else:
                self.ranges.push(title(active.frame.plan, step))
                try:
                    event, marks = self._hand_over(active, step, turn, stream)
                finally:
                    self.ranges.pop()
        except BaseException as error:
            with crew.lock:  # what follows on this device is told that it is lost
                crew.push(active, active.walk.issue(step.index, turn))
            crew.done_by(item, now, now, 0, error)
            return
        if active.is_awaited(step.index):
            self.events[id(active), step.index, turn] = (stream, event)
        self.under_way[stream].append(_Issued(item, event, now, active.tells(step.index), marks))
        for found, check in getattr(stream, "doubts", None) or ():
            self.doubts.append(_Doubt(item, event, found, check))
            crew.doubt()
        with crew.lock:
            crew.push(active, active.walk.issue(step.index, turn))

    def _hand_over(self, active: Active, step: Step, turn: int, stream: Stream) -> tuple[Event, Mapping[int, Event]]:
        """Enqueue a step: the event behind it, and those behind its launches where they are timed one by one."""
        doer = StreamDoer(stream, self.bridges)
        assert self.crew is not None
        if len(step.spans) == 1 or turn >= TIMED_TURNS or not self.crew.trace or not getattr(stream, "is_timed", False):
            active.frame.issue(step.index, turn, doer)
            return stream.record(), {}
        marks: dict[int, Event] = {}
        active.frame.issue(step.index, turn, doer, lambda task: marks.update({task: stream.record()}))
        return (next(reversed(marks.values())) if marks else stream.record()), marks

    def _look_at(self, doubt: _Doubt) -> None:
        crew, item = self.crew, doubt.item
        assert crew is not None
        error: Exception | None = None
        try:
            found: Sequence[Any] | None = None
            try:
                doubt.event.wait()
                found = doubt.found if crew.error is None else None
            finally:
                doubt.check(found)
        except Exception as failure:
            error = item.active.frame.failure(failure, _task(item), item.turn)
        crew.settle_doubt(item, error)

    def _reap(self) -> bool:
        """Tell of the steps that have been done; True if there were any."""
        found = False
        for steps in self.under_way.values():
            while steps and steps[0].event.done():
                self._done(steps.popleft())
                found = True
        return found

    def _watch(self) -> None:
        """Ask every stream that has something to do for a wake-up."""
        for stream, steps in self.under_way.items():
            if steps and stream not in self.watched:
                self.watched.add(stream)
                chosen = next((s for s in steps if s.told), None) or steps[len(steps) // 2]
                chosen.event.on_done(lambda stream=stream: self.inbox.put(_Wake(stream)))

    def _done(self, issued: _Issued) -> None:
        crew, item = self.crew, issued.item
        assert crew is not None
        self.events.pop((id(item.active), item.step.index, item.turn), None)
        error: BaseException | None = None
        start = finish = perf_counter() - crew.zero
        marks: dict[int, float] | None = None
        try:
            start, finish = issued.event.span()
            if issued.marks:
                start = next(iter(issued.marks.values())).span()[0]
            # A step of views alone gives its stream nothing to do: it was done when it was handed over, not when the stream last did something.
            start, finish = max(start - crew.zero, issued.issued), max(finish - crew.zero, issued.issued)
            if issued.marks:
                marks = {task: max(event.span()[1] - crew.zero, start) for task, event in issued.marks.items()}
        except Exception as failure:  # the device refused or lost the work
            error = item.active.frame.failure(failure, _failed(item, failure), item.turn)
        except BaseException as failure:
            error = failure
        crew.done_by(item, start, finish, item.step.lanes[0].number, error, marks)


def title(plan: Timeline, step: Step) -> str:
    """The name of a step for profilers: its task, or its first and how many follow."""
    first = describe(plan, plan.spans[step.spans[0]])
    return first if len(step.spans) == 1 else f"{first} + {len(step.spans) - 1}"


def _task(item: Item) -> int:
    command = item.active.frame.plan.spans[item.step.spans[0]].command
    return getattr(command, "task", -1)


def _failed(item: Item, error: Exception) -> int:
    """The task of a step that has failed: the one whose launch the error is about, else the first."""
    found = task_of(error, item.active.frame.bindings.calls(item.step.index, item.turn))
    return _task(item) if found is None else found


def drives(plan: Timeline) -> list[Device]:
    """The devices with streams that a plan uses, itself or in its loops."""
    machine = plan.machine
    owners = set(plan.owners)
    for _, body in plan.nested:
        owners |= {d.id for d in drives(body)}
    ends = {name for link in machine.links if link.id in owners for name in (link.src, link.dst)}
    return [d for d in machine.devices if not d.shares_lanes and (d.id in owners or (d.memory in ends and d.memory != HOST))]


def lanes_of(plan: Timeline) -> set[Lane]:
    """The lanes that a plan uses, itself or in its loops."""
    out: set[Lane] = set()
    for lanes in {s.lanes for s in (*plan.prologue, *plan.spans, *plan.epilogue)}:
        out.update(lanes)
    for _, body in plan.nested:
        out |= lanes_of(body)
    return out


def run_plan(
    plan: Timeline,
    inputs: Mapping[int, Any],
    *,
    trace: bool = True,
    keep_going: bool = False,
    timeout: float | None = None,
    progress: Progress | None = None,
    backends: Mapping[str, Any] | None = None,
    replanner: Replanner | None = None,
) -> Result:
    """Run a plan on the threads of this process and on the devices that it names. `inputs`: value id -> read-only array or object.

    backends: kind of device -> backend, where it is not the one of that name (`backends.backend_of`). replanner: plans the rest anew when it says
    so, and the run goes on with that plan in a new epoch.

    Devices are opened for the run and closed after it. Raises `TaskError`, `RunTimeoutError`, `OutOfMemoryError` where an arena cannot be had.
    """
    began = perf_counter()

    def run_one(plan: Timeline, inputs: Mapping[int, Any]) -> Outcome:
        fleet = Fleet(plan, backends)
        frame = None
        try:
            crew = Crew(plan, trace, keep_going, timeout, progress, fleet.drivers, replanner=replanner, began=began)
            frame = fleet.frame(program_of(plan, join=not keep_going), inputs)
            fleet.serve(crew)
            return end_of(crew, frame)
        finally:
            fleet.close()
            if frame is not None:
                frame.close()  # what the caller lets go serves the next run: it is in no cycle

    with guarded():
        return in_epochs(run_one, plan, inputs, replanner, began)


class Fleet:
    """The devices with streams that a plan uses, opened: their arenas, and a driving thread for each. One run at a time."""

    def __init__(self, plan: Timeline, backends: Mapping[str, Any] | None = None) -> None:
        self.devices = drives(plan)
        self.opened: dict[str, LiveDevice] = {}
        self.drivers: dict[str, DeviceDriver] = {}
        self.memories: dict[str, Memory] = {}
        machine = plan.machine
        try:
            for device in self.devices:
                backend = (backends or {}).get(device.kind) or opens(device, f"the plan uses {device.id!r}")
                live = self.opened[device.id] = backend.open(device, plan.arenas.get(device.memory, 0))
                self.memories[device.memory] = DeviceMemory(live)
                self.drivers[device.id] = DeviceDriver(device, live)
        except BaseException:
            self.close()
            raise
        owner = {d.memory: self.drivers[d.id] for d in self.devices}
        for link in machine.links:
            driver = owner.get(link.dst) if link.dst != HOST else owner.get(link.src)
            if driver is not None:
                self.drivers[link.id] = driver

    def frame(self, program: Program, inputs: Mapping[int, Any], again: bool = False) -> Frame:
        """A frame of the plan in the arenas of these devices, before they serve it. Streams are made here, before the clock of the run starts.

        again: it will run again and again.
        """
        for lane in sorted(lanes_of(program.plan)):
            if lane.owner in self.drivers:
                self.drivers[lane.owner].stream_of(lane)
        self._prepare(program.plan)
        lock = next((found for live in self.opened.values() if (found := getattr(live, "lock_pages", None)) is not None), None)
        frame = Frame(program, inputs, memories=self.memories, lock=lock)
        frame.transfer = _Transfer(self.opened, self.devices)
        self._warm(frame, again)
        return frame

    def _warm(self, frame: Frame, again: bool) -> None:
        """Let driving threads do what the first launches of the plan would, on streams that want it: once for a plan. What is each thread's own, once

        for a thread. `frame.cold` are the tasks whose first launches are still such.
        """
        plan, over = frame.plan, threading.Event()
        known, multiplies = _warmed.setdefault(plan, (set(), {}))
        cold: set[int] = set()
        for device in self.devices:
            driver = self.drivers[device.id]
            streams: dict[Lane, Any] = {lane: s for lane, s in driver.streams.items() if hasattr(s, "warm") and lane.kind != "copy"}
            if not streams:
                continue
            if frame.bodies is None:
                frame.bodies = programs_of(plan)
            rest = {lane: s for lane, s in streams.items() if lane not in known}
            known.update(rest)
            every, bodies = list(streams.values()), frame.bodies
            if device.id not in multiplies:
                multiplies[device.id] = multiplies_on(plan, device.id)
            products = multiplies[device.id]

            def act(
                every: Sequence[Any] = every, rest: Mapping[Lane, Any] = rest, bodies: Mapping[int, Program] = bodies, products: bool = products
            ) -> frozenset[int]:
                for stream in every:
                    stream.attend(products)
                return warm(frame, rest, again, over.is_set, bodies) if rest else frozenset()

            with heard(over.set):
                cold |= driver.ask(act)
            if over.is_set():
                known.difference_update(rest)
        frame.cold = frozenset(cold)

    def _prepare(self, plan: Timeline) -> None:
        """Let streams make what launches of each kind will ask for (programs, kernel objects), once for a plan and its loops."""
        lanes = _prepared.setdefault(plan, set())
        ready = {lane: s for d in self.drivers.values() for lane, s in d.streams.items() if lane not in lanes and hasattr(s, "prepare")}
        if ready:
            over = threading.Event()
            with heard(over.set):
                _prepare_launches(plan, ready, over.is_set)
            if not over.is_set():
                lanes.update(ready)

    def serve(self, crew: Crew) -> None:
        """Let the driving threads serve a run."""
        for device in self.devices:
            self.drivers[device.id].serve(crew)

    def close(self) -> None:
        """End the threads and close the devices; the run is over."""
        for device in self.devices:
            if device.id in self.drivers:
                self.drivers[device.id].stop()
        for live in self.opened.values():
            live.close()


# The lanes for whose streams the launches of a plan have been prepared: what was made is kept by the backends.
_prepared: weakref.WeakKeyDictionary[Timeline, set[Lane]] = weakref.WeakKeyDictionary()
# The lanes whose streams have been warmed for a plan, and the devices on which it multiplies matrices or not.
_warmed: weakref.WeakKeyDictionary[Timeline, tuple[set[Lane], dict[str, bool]]] = weakref.WeakKeyDictionary()


def _prepare_launches(plan: Timeline, streams: Mapping[Lane, Any], is_over: Callable[[], bool]) -> None:
    """Prepare one launch of each kind on each of `streams`, those of the plan's loops too. is_over: asked between two; True ends it (Ctrl-C: building

    the programs of a plan takes some drivers twenty seconds).
    """
    graph, kinds = plan.graph, alike(plan.graph).kind
    seen: set[tuple[int, Lane]] = set()
    for span in (*plan.prologue, *plan.spans, *plan.epilogue):
        command = span.command
        stream = streams.get(span.lanes[0]) if isinstance(command, Launch) and span.lanes else None
        if stream is None or not isinstance(command, Launch):
            continue
        task, op, key = command.task, graph.task_ops[command.task], (int(kinds[command.task]), span.lanes[0])
        if isinstance(op, Nested) or op.view or key in seen:
            continue
        seen.add(key)
        if is_over():
            return
        specs = [graph.spec(v) for v in graph.reads(task)]
        kernel = op.kernel_for(plan.machine.device(span.lanes[0].owner), specs)
        reads, writes = ([array_form(s) for s in row] for row in (specs, [graph.spec(v) for v in graph.writes(task)]))
        if kernel is not None and None not in (*reads, *writes):
            stream.prepare(kernel, reads, writes, plan.workspaces.get(task, ("", 0, 0))[2], graph.task_attributes[task])
    for _, body in plan.nested:
        _prepare_launches(body, streams, is_over)


class _Transfer:
    """Bytes from one memory node to another, now: before the first turn of a loop and after its last."""

    def __init__(self, opened: Mapping[str, LiveDevice], devices: list[Device]) -> None:
        self.opened = opened
        self.streams: dict[int, Stream] = {}
        self.lock = threading.Lock()

    def __call__(self, src: Any, dst: Any) -> None:
        if isinstance(src, np.ndarray) and isinstance(dst, np.ndarray):
            np.copyto(dst, src)
            return
        handle = dst if isinstance(src, np.ndarray) else src
        live = next((x for x in self.opened.values() if x is getattr(handle, "live", x)), None)
        if live is None:
            raise InternalError("an array belongs to no opened device")
        with self.lock:
            stream = self.streams.get(id(live))
            if stream is None:
                stream = self.streams[id(live)] = live.stream("copy")
            StreamDoer(stream).move(src, dst)
            stream.record().wait()
