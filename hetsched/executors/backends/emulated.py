"""Emulated devices: buffers of their own, a thread for every stream and copy engine, the work really done by NumPy, and each command finished no
earlier than a modelled deadline. Overlap, memory limits and several devices can be shown with them on any machine.

The deadline of a step is the plan's own duration for it (from the described speeds and links), counted from when the step could begin: the end of
the command before it in its stream, or the moment at which what it waits for has arrived. Streams are late by what the operating system adds to a
sleep, but they count from deadlines, so lateness does not add up.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from time import perf_counter, sleep
from typing import Any

import numpy as np

from hetsched.errors import DeviceGoneError, InternalError, OutOfMemoryError
from hetsched.executors.backends import Found
from hetsched.executors.backends._common import alike, inside
from hetsched.executors.memory import HostMemory
from hetsched.graph.spec import Spec
from hetsched.machine import HOST, Device, Machine


def find() -> Found:
    """None: emulated devices exist only where a described machine is emulated (see `emulate`)."""
    return Found()


def emulate(machine: Machine) -> Machine:
    """`machine` with every device that has a memory of its own replaced by an emulated one; the host's processor stays real.

    Patterns that name the kind of a device (`cuda`) mean the one in its place as well.
    """

    def in_software(d: Device) -> Device:
        return replace(d, kind="emulated", languages=("array",), shares_lanes=False, stands_for=d.stands_for or d.kind)

    devices = tuple(d if d.memory == HOST else in_software(d) for d in machine.devices)
    return replace(machine, devices=devices)


class EmulatedArray:
    """An array in the memory of an emulated device; only its streams look inside."""

    def __init__(self, live: EmulatedDevice, array: Any) -> None:
        self.live = live
        self.array = array
        self.shape: tuple[int, ...] = array.shape
        self.dtype = array.dtype
        self.size: int = array.size
        self.nbytes: int = array.nbytes

    def part(self, first: int, shape: tuple[int, ...]) -> EmulatedArray:
        """The elements from number `first` on under another shape; nothing is copied."""
        size = math.prod(shape)
        if first < 0 or first + size > self.size:
            raise InternalError(f"no {self.dtype}{list(shape)} from element {first} on lies inside {self!r}")
        return EmulatedArray(self.live, self.array.reshape(-1)[first : first + size].reshape(shape))

    def __repr__(self) -> str:
        return f"<{self.dtype}{list(self.shape)} of {self.live.device.id}>"


class EmulatedEvent:
    """Done when the stream comes to it."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], object]] = []
        self._error: BaseException | None = None
        self._span = (0.0, 0.0)
        self.finish = 0.0

    def wait(self) -> None:
        """Wait for it on the host."""
        self._done.wait()
        if self._error is not None:
            raise self._error

    def done(self) -> bool:
        """True if it has been reached."""
        return self._done.is_set()

    def span(self) -> tuple[float, float]:
        """Modelled start and finish, `perf_counter` seconds; raises what the stream's work raised."""
        self.wait()
        return self._span

    def on_done(self, callback: Callable[[], object]) -> None:
        """Call `callback` when it has been reached; at once if it has."""
        with self._lock:
            if not self._done.is_set():
                self._callbacks.append(callback)
                return
        callback()

    def reach(self, start: float, finish: float, error: BaseException | None) -> None:
        """The stream has come here."""
        self._span, self.finish, self._error = (start, finish), finish, error
        with self._lock:
            self._done.set()
        for callback in self._callbacks:
            callback()


class EmulatedStream:
    """A queue of commands with a thread that does them in order."""

    def __init__(self, live: EmulatedDevice, name: str) -> None:
        self.live = live
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._expected = 0.0
        self._clock = 0.0  # modelled: when the stream is free
        self._since: float | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while (command := self._commands.get()) is not None:
            command()

    def _work(self, action: Callable[[], object], seconds: float, asked: float) -> None:
        start = max(self._clock, asked)
        self._since = start if self._since is None else self._since
        if self._error is None and not self.live.lost:
            try:
                with np.errstate(all="ignore"):
                    action()
            except BaseException as error:  # whatever it is, the run tells
                self._error = error
        self._clock = max(start + seconds, start)
        late = self._clock - perf_counter()
        if late > 0:
            sleep(late)
        elif -late > seconds:
            self._clock = perf_counter()  # the real work took longer than the model allows

    def expect(self, seconds: float) -> None:
        """What the step about to be handed over shall take at least, all its commands together."""
        self._expected = seconds

    def _enqueue(self, action: Callable[[], object]) -> None:
        seconds, self._expected = self._expected, 0.0
        asked = perf_counter()
        self._commands.put(lambda: self._work(action, seconds, asked))

    def wait(self, event: EmulatedEvent) -> None:
        """What follows waits for an event of another stream."""

        def hold() -> None:
            event._done.wait()
            self._clock = max(self._clock, event.finish)
            self._error = self._error or event._error

        self._commands.put(hold)

    def launch(
        self, kernel: Any, inputs: Sequence[EmulatedArray], outputs: Sequence[EmulatedArray], workspace: Any, attributes: Mapping[str, Any]
    ) -> None:
        """Enqueue a launch of an array kernel."""
        ins = [x.array for x in inputs]
        outs = [x.array for x in outputs]
        scratch = workspace.array if workspace is not None else None
        self._enqueue(lambda: kernel(np, ins, outs, scratch, attributes))

    def upload(self, src: Any, dst: EmulatedArray) -> None:
        """Enqueue a copy from the host. `src` must not be written until it is done."""
        if alike(src, dst):
            self._enqueue(lambda: np.copyto(dst.array, src))

    def download(self, src: EmulatedArray, dst: Any) -> None:
        """Enqueue a copy to the host."""
        if alike(src, dst):
            self._enqueue(lambda: np.copyto(dst, src.array))

    def copy(self, src: EmulatedArray, dst: EmulatedArray) -> None:
        """Enqueue a copy between emulated devices, or inside one."""
        if alike(src, dst):
            self._enqueue(lambda: np.copyto(dst.array, src.array))

    def record(self) -> EmulatedEvent:
        """An event behind everything handed over so far."""
        event = EmulatedEvent()

        def reach() -> None:
            start = self._clock if self._since is None else self._since
            self._since = None
            error, self._error = self._error, None
            if self.live.lost:
                error = DeviceGoneError(self.live.device.id, f"device {self.live.device.id!r} is gone: it was lost while the run used it")
            event.reach(start, self._clock, error)

        self._commands.put(reach)
        return event

    def close(self) -> None:
        """End the thread when it has done what was handed over."""
        self._commands.put(None)
        self._thread.join()


class EmulatedDevice:
    """An opened emulated device."""

    def __init__(self, device: Device, nbytes: int) -> None:
        self.device = device
        self.nbytes = nbytes
        self.lost = False
        try:
            self.memory = HostMemory.of(nbytes)
        except MemoryError as error:
            raise OutOfMemoryError(f"device {device.id!r} needs an arena of {nbytes} bytes, which this machine cannot emulate") from error
        self.streams: list[EmulatedStream] = []

    def array(self, offset: int, shape: tuple[int, ...], dtype: Any) -> EmulatedArray:
        """The array of `shape` and `dtype` that begins `offset` bytes into the arena."""
        kind = inside(offset, shape, dtype, self.nbytes)
        return EmulatedArray(self, self.memory.array(offset, Spec(shape, kind)))

    def stream(self, kind: str) -> EmulatedStream:
        """A new stream; `kind` is `compute` or `copy`."""
        stream = EmulatedStream(self, f"hetsched-{self.device.id}-{kind}-{len(self.streams)}")
        self.streams.append(stream)
        return stream

    def lose(self) -> None:
        """As if the device had been unplugged: from now on all work ends with `DeviceGoneError`. For tests of what happens then."""
        self.lost = True

    def close(self) -> None:
        """End every stream."""
        for stream in self.streams:
            stream.close()
        self.streams.clear()


def open(device: Device, nbytes: int) -> EmulatedDevice:
    """Open an emulated device with an arena of `nbytes`."""
    return EmulatedDevice(device, nbytes)
