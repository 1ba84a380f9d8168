"""An opened OpenCL device: an arena, arrays in it, in-order queues as streams, events on the host's clock.

A stream is also what a kernel in OpenCL C gets as its first argument (see `hetsched.graph.op.OpenCL`). A stream is driven by one thread at a time;
it keeps its own kernel objects, since setting arguments is not thread-safe. Nothing here waits on the host but `Event.wait`, `Event.span`,
`LiveDevice.close` and a download to memory that is not contiguous.
"""

from __future__ import annotations

import math
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from time import perf_counter, perf_counter_ns
from typing import Any

import numpy as np
import pyopencl as cl

from hetsched.errors import DeviceGoneError, InternalError, OutOfMemoryError
from hetsched.executors.backends._common import Landing, Landings, alike
from hetsched.executors.backends._opencl_arrays import DeviceArray, group_size, shown, types_of
from hetsched.executors.backends._opencl_faults import Board, Fault
from hetsched.executors.backends._opencl_programs import DeviceError, Programs
from hetsched.executors.backends._opencl_staging import CHUNK_NBYTES, MOST_CHUNKS, Block, PinnedPool, wants_staging
from hetsched.executors.backends._sites import Explain
from hetsched.executors.memory import had
from hetsched.executors.pages import area
from hetsched.graph.ops._cl_elementwise import Part, enqueue_chain, follows
from hetsched.graph.spec import Spec

_QUEUED, _START, _END = cl.profiling_info.QUEUED, cl.profiling_info.START, cl.profiling_info.END
_OUT_OF_MEMORY = {
    cl.status_code.MEM_OBJECT_ALLOCATION_FAILURE, cl.status_code.OUT_OF_HOST_MEMORY, cl.status_code.OUT_OF_RESOURCES,
    cl.status_code.INVALID_BUFFER_SIZE,
}  # fmt: skip
# What drivers say of a device that is no longer there, or has lost its context: DEVICE_NOT_AVAILABLE, INVALID_CONTEXT, INVALID_COMMAND_QUEUE, and
# NVIDIA's -9999, a kernel's access to memory that is not its own.
_GONE = {-2, -34, -36, -9999}
# Device clocks drift against perf_counter (28 us a second measured on PoCL, whose clock is not slewed), so their offset is taken anew.
_CLOCK_SECONDS = 0.25
_CLOCK_WINDOW_NS = 5_000
_NEVER = object()  # no command
_MOST_LAUNCHES = 4096


class _End:
    """When a command ended, `perf_counter` seconds: asked of the driver once, so that whatever is compared with it is compared with one number."""

    __slots__ = ("_command", "_live", "_seconds")

    def __init__(self, command: Any, live: LiveDevice) -> None:
        self._command = command
        self._live = live
        self._seconds: float | None = None

    def seconds(self) -> float:
        """To be asked when it is done: no later than now, whatever the device's clock says."""
        command = self._command
        if self._seconds is None and command is not None:  # of two threads that ask at once both may get here
            now = perf_counter()
            seconds = min(_stamp(command, _END) * 1e-9 + self._live.clock(), now)
            if self._seconds is None:
                self._seconds, self._command = seconds, None
        assert self._seconds is not None
        return self._seconds


class Event:
    """The mark that everything handed to a stream before it has been done. end: of the last command that counts in its span; behind: the ends of what

    its first command waited for.
    """

    __slots__ = ("_asked", "_behind", "_fault", "_first", "_first_live", "_landings", "_number", "end", "last", "stream")

    def __init__(
        self,
        stream: Stream,
        first: Any,
        first_live: LiveDevice,
        last: Any,
        behind: Sequence[_End] = (),
        landings: Sequence[Landing] = (),
        ends: Any = None,
        number: int = -1,
    ) -> None:
        self.end = _End(last if ends is None else ends, stream.live)
        self._landings = landings
        self._asked = perf_counter()
        self.stream = stream
        self.last = last
        self._first = first
        self._first_live = first_live
        self._behind = behind
        self._number = number  # of the record, where launches before it can tell of a mistake
        self._fault: Exception | None = None

    def wait(self) -> None:
        """Wait for it on the host; raises `DeviceError` if the work failed, and what launches have found wrong (`OpenCL.fault`)."""
        try:
            self.last.wait()
        except cl.Error as error:
            raise self.stream.refusal("a command failed", error) from error
        for landing in self._landings:
            landing.land()
        if self._number >= 0:
            self._fault, self._number = self.stream.found(self._number), -1
        if self._fault is not None:
            raise self._fault

    def done(self) -> bool:
        """True if it has been reached, or the work has failed."""
        return bool(self.last.command_execution_status <= 0)

    def span(self) -> tuple[float, float]:
        """First start and last finish, `perf_counter` seconds, of what the stream did since its event before; waits for them.

        Where there was nothing, twice the moment at which that was done. Raises `DeviceError` if the work failed.

        What the first command had to wait for, its stream's commands before it included, ended before it: drivers may say that a copy or a marker
        started when the device looked at it, which is while it still waits (NVIDIA's), and another device may have begun its part of a copy before
        this stream was free.
        """
        self.wait()
        try:
            finish, earliest = self.end.seconds(), -math.inf
            for end in self._behind:
                with suppress(cl.Error):  # events that others have set have no times
                    earliest = max(earliest, end.seconds())
            if self._first is None:
                return (max(finish, self._asked, earliest),) * 2
            start = max(_stamp(self._first, _START) * 1e-9 + self._first_live.clock(), earliest)
        except cl.Error as error:
            raise self.stream.refusal("a command failed", error) from error
        return start, max(start, finish)

    def on_done(self, callback: Callable[[], object]) -> None:
        """Call `callback()` once when it has been done or has failed: at once, or from another thread, which it must not hold up."""
        if self.done():
            with suppress(Exception):  # `span` tells
                self.wait()
            callback()
        else:
            self.stream.watch(self, callback)


class _Launch:
    """A launch that may come again: what it was called with, which keeps the ids in use, and what it enqueues."""

    __slots__ = ("attributes", "inputs", "kernel", "outputs", "tape", "workspace")

    def __init__(self, kernel: Any, inputs: Any, outputs: Any, workspace: Any, attributes: Any) -> None:
        self.kernel = kernel
        self.inputs = inputs
        self.outputs = outputs
        self.workspace = workspace
        self.attributes = attributes
        self.tape: list[Callable[..., Any]] | None = None


class _Segment:
    """Launches that may come again together, and what they enqueue."""

    __slots__ = ("calls", "tape")

    def __init__(self, calls: Any) -> None:
        self.calls = calls
        self.tape: list[Callable[..., Any]] | None = None


class Stream:
    """An in-order queue of an opened device. See `hetsched.executors.live.Stream` and `hetsched.graph.op.OpenCL`.

    is_timed: its events tell when each command ended, so the launches of a step can be timed one by one.

    A launch that comes again with the same tuples of arrays, as those of a loop do, is taped the second time: what its kernel enqueues depends on
    shapes and attributes alone. From then on its commands are enqueued from the tape, each with a kernel object of its own whose arguments are set.
    A launch without wait costs 3-5 us from Python, from the tape less than 2 (benchmarks/opencl_kernels.py holds it to 15).
    """

    is_timed = True

    def __init__(self, live: LiveDevice, kind: str) -> None:
        self.live = live
        self.kind = kind
        self.is_cpu = live.is_cpu
        self.has_fp64 = live.has_fp64
        self.queue = cl.CommandQueue(live.context, live.device, cl.command_queue_properties.PROFILING_ENABLE)
        self._kernels: dict[tuple[str, str], Any] = {}
        self._mine: dict[tuple[str, str, tuple[Any, ...]], Any] = {}  # the same with the types of their arguments, to be given back
        self._launches: dict[tuple[int, int, int], _Launch] = {}
        self._segments: dict[int, _Segment] = {}
        self._tape: list[Callable[..., Any]] | None = None
        self._parts: list[Part] = []  # element-wise launches that are being taped
        self._is_preparing = False
        # What came behind launches that are doubted, and who looks at it; None: it is looked at on the spot.
        self.doubts: list[tuple[list[Any], Callable[[Sequence[Any] | None], None]]] | None = None
        self._doubted: tuple[Any, Any] = (None, _NEVER)  # the last command before what was brought for that, and the last of it
        self._board: Board | None = None  # made where a launch can tell of a mistake
        self._ends = False
        self._waits: list[Any] = []  # events that the next command waits for
        self._behind: list[_End] = []  # what the first command since the last record waits for
        self._first: tuple[Any, LiveDevice] | None = None  # of the commands since the last record
        self._last: Any = None
        # Events that hold host arrays: dropping one blocks until it is done.
        self._held: deque[Any] = deque()
        # Through pinned memory: what uploads have taken, and the event behind each; what downloads since the last record are to bring.
        self._staged: deque[tuple[Any, Block]] = deque()
        self._landings: list[Landing] = []
        self._watched: queue.SimpleQueue[tuple[Event, Callable[[], object]] | None] = queue.SimpleQueue()
        self._watcher: threading.Thread | None = None

    # What an executor asks of a stream ------------------------------------------------------------------------------------------

    def wait(self, event: Any) -> None:
        """What follows waits for an event of another stream; of another device's stream, the host waits here."""
        other = getattr(event, "stream", None)
        if other is self:
            return
        if isinstance(event, Event) and self._first is None:
            self._behind.append(event.end)
        if other is None or getattr(other, "live", None) is None or other.live.context != self.live.context:
            event.wait()
        elif event.last.command_execution_status != cl.command_execution_status.COMPLETE:
            self._waits.append(event.last)

    def launch(self, kernel: Any, inputs: Sequence[Any], outputs: Any, workspace: Any, attributes: Mapping[str, Any]) -> Any:
        """Enqueue a launch: `kernel(self, inputs, outputs, workspace, attributes)`; gives what the kernel returns."""
        if type(inputs) is not tuple:
            return kernel(self, inputs, outputs, workspace, attributes)
        key = (id(kernel), id(inputs), id(outputs))
        known = self._launches.get(key)
        if known is None or known.attributes is not attributes or known.workspace is not workspace:
            if len(self._launches) >= _MOST_LAUNCHES:
                self._launches.clear()
            self._launches[key] = _Launch(kernel, inputs, outputs, workspace, attributes)
            return kernel(self, inputs, outputs, workspace, attributes)
        if known.tape is None:
            return self._record(known)
        self._play(known.tape)
        return None

    def prepare(self, kernel: Any, inputs: Sequence[Spec], outputs: Sequence[Spec], workspace_nbytes: int, attributes: Mapping[str, Any]) -> None:
        """Make the programs and kernel objects that a launch on such arrays will ask for, and enqueue nothing. What cannot be made is left to the
        launch, which tells of it."""

        def handle(spec: Spec) -> DeviceArray:
            return DeviceArray(self.live, self.live.arena, 0, spec.bounds, spec.dtype)

        workspace = handle(Spec((workspace_nbytes,), np.uint8)) if workspace_nbytes else None
        self._is_preparing = True
        try:
            kernel(self, [handle(s) for s in inputs], [handle(s) for s in outputs], workspace, attributes)
        except Exception:  # of a build, or for the values that a kernel wants to see
            pass
        finally:
            self._is_preparing = False

    def _record(self, launch: _Launch) -> Any:
        """Launch, and tape it."""
        tape: list[Callable[..., Any]] = []
        self._tape = tape
        try:
            result = launch.kernel(self, launch.inputs, launch.outputs, launch.workspace, launch.attributes)
            self._end_chain()
        finally:
            self._tape = None
            self._parts.clear()
        if result is None:
            launch.tape = tape
        return result

    def segment(self, calls: Sequence[tuple[Any, ...]]) -> bool:
        """Enqueue launches that follow each other, (kernel, inputs, outputs, workspace, attributes, ...) each, neighbouring element-wise ones in one
        kernel. False for a list that comes for the first time: its launches are to be handed over one by one."""
        known = self._segments.get(id(calls))
        if known is None:
            if len(self._segments) >= _MOST_LAUNCHES:
                self._segments.clear()
            self._segments[id(calls)] = _Segment(calls)
            return False
        if known.tape is None:
            tape: list[Callable[..., Any]] = []
            self._tape = tape
            try:
                for kernel, inputs, outputs, workspace, attributes, *_ in calls:
                    kernel(self, inputs, outputs, workspace, attributes)
                self._end_chain()
            finally:
                self._tape = None
                self._parts.clear()
            known.tape = tape
        else:
            self._play(known.tape)
        return True

    def chain(self, part: Part) -> bool:
        """While taping: keep an element-wise launch, to be put into one kernel with those that follow. False otherwise."""
        if self._tape is None or self._ends:
            return False
        if self._parts and not follows(self._parts, part):
            self._end_chain()
        if not part.can_be_chained:
            self._end_chain()
            return False
        self._parts.append(part)
        return True

    def _end_chain(self) -> None:
        if self._parts:
            parts, self._parts, self._ends = self._parts, [], True
            try:
                if len(parts) == 1:
                    parts[0].run(self)
                else:
                    enqueue_chain(self, parts)
            finally:
                self._ends = False

    def _play(self, tape: Sequence[Callable[..., Any]]) -> None:
        waits = self._waits
        try:
            for enqueue in tape:
                event = enqueue(wait_for=waits or None)
                if waits:
                    waits = self._waits = []
                if self._first is None:
                    self._first = (event, self.live)
                self._last = event
        except cl.Error as error:
            raise self.refusal("a launch", error) from error

    def upload(self, src: Any, dst: DeviceArray) -> None:
        """Enqueue a copy from the host. `src` must not be written until it is done."""
        if not alike(src, dst):
            return
        if self.live.pinned is not None:
            self._upload_staged(self.live.pinned, src, dst)
        else:
            self._upload(src, dst)

    def _upload(self, src: Any, dst: DeviceArray) -> None:
        host = src if src.flags.c_contiguous else src.copy(order="C")
        self._command(
            "an upload", lambda waits: cl.enqueue_copy(self.queue, dst.buffer, host, dst_offset=dst.offset, is_blocking=False, wait_for=waits), True
        )

    def download(self, src: DeviceArray, dst: Any) -> None:
        """Enqueue a copy to the host, into a writable array; its bytes are there when an event behind it has been waited for. Where it is not
        contiguous, it is written here and now."""
        if not alike(src, dst):
            return
        if self.live.pinned is not None:
            self._settle(dst)
            if dst.flags.c_contiguous:
                self._download_staged(self.live.pinned, src, dst)
                return
        self._download(src, dst)

    def _download(self, src: DeviceArray, dst: Any) -> None:
        host = dst if dst.flags.c_contiguous else np.empty(dst.shape, dst.dtype)
        self._command(
            "a download", lambda waits: cl.enqueue_copy(self.queue, host, src.buffer, src_offset=src.offset, is_blocking=False, wait_for=waits), True
        )
        if host is not dst:
            Event(self, self._last, self.live, self._last).wait()
            np.copyto(dst, host)

    def upload_pinned(self, src: Any, dst: DeviceArray) -> None:
        """Enqueue a copy from what `LiveDevice.pinned_array` gave; it must not be written until the copy is done."""
        self._upload(src, dst)

    def download_pinned(self, src: DeviceArray, dst: Any) -> None:
        """Enqueue a copy into what `LiveDevice.pinned_array` gave; its bytes are there when an event behind it has been waited for."""
        self._download(src, dst)

    def _upload_staged(self, pool: PinnedPool, src: Any, dst: DeviceArray) -> None:
        """Through pinned memory: the host's bytes have been read when this returns."""
        self._settle(src)
        host = np.ascontiguousarray(src).reshape(-1).view(np.uint8)
        mine: deque[tuple[Any, Block]] = deque()
        for start in range(0, host.size, CHUNK_NBYTES):
            part = host[start : start + CHUNK_NBYTES]
            if len(mine) < MOST_CHUNKS:
                block = self._block(pool, part.size)
            else:
                event, block = mine.popleft()
                event.wait()
            np.copyto(block.bytes[: part.size], part)
            where = {"dst_offset": dst.offset + start, "is_blocking": False}
            self._command("an upload", lambda waits: cl.enqueue_copy(self.queue, dst.buffer, block.bytes[: part.size], wait_for=waits, **where))  # noqa: B023
            mine.append((self._last, block))
        self._staged += mine

    def _download_staged(self, pool: PinnedPool, src: DeviceArray, dst: Any) -> None:
        """Into pinned memory, and from there to `dst` when it is done."""
        target = dst.reshape(-1).view(np.uint8)
        for start in range(0, src.nbytes, CHUNK_NBYTES):
            part = target[start : start + CHUNK_NBYTES]
            block = self._block(pool, part.size)
            where = {"src_offset": src.offset + start, "is_blocking": False}
            self._command("a download", lambda waits: cl.enqueue_copy(self.queue, block.bytes[: part.size], src.buffer, wait_for=waits, **where))  # noqa: B023
            landing = Landing(part, block.bytes[: part.size], self._last.wait, partial(pool.give, block))
            self._landings.append(landing)
            self.live.on_their_way.expect(landing)
        self.queue.flush()

    def _block(self, pool: PinnedPool, nbytes: int) -> Block:
        try:
            return pool.take(nbytes)
        except cl.Error as error:
            raise self.refusal("pinned memory", error) from error

    def _settle(self, host: Any) -> None:
        """Wait for bytes of `host` that downloads are still to bring."""
        try:
            self.live.on_their_way.settle(host)
        except cl.Error as error:
            raise self.refusal("a download", error) from error

    def copy(self, src: DeviceArray, dst: DeviceArray) -> None:
        """Enqueue: the bytes of `src` to `dst`, of the same number of bytes; from another OpenCL device they go through the host."""
        if src.nbytes != dst.nbytes:
            raise InternalError(f"cannot copy {src!r} to {dst!r}: {src.nbytes} bytes to {dst.nbytes}")
        if src.nbytes and src.live is not self.live:
            self._fetch(src, dst)
        elif src.nbytes and src.offset != dst.offset:
            where = {"src_offset": src.offset, "dst_offset": dst.offset, "byte_count": src.nbytes}
            self._taped("a copy", partial(cl.enqueue_copy, self.queue, dst.buffer, src.buffer, **where))

    def record(self) -> Event:
        """An event behind everything handed over so far."""
        if self.live.lost:
            raise DeviceGoneError(self.live.name, f"device {self.live.name!r} is gone: it was lost while the run used it")
        if self._last is None or self._waits:
            self._command("a marker", lambda waits: cl.enqueue_marker(self.queue, wait_for=waits))
        first, live = self._first or (None, self.live)
        ends = self._doubted[0] if self._last is self._doubted[1] else None
        number = -1 if self._board is None else self._board.recorded(self.queue)
        if number >= 0 and self._board is not None and self._board.told is not None:
            ends, self._last = ends or self._last, self._board.told  # the span is that of the launches
        event = Event(self, first, live, self._last, self._behind, self._landings, ends, number)
        self._first, self._landings, self._behind = None, [], [event.end]
        self.queue.flush()
        held = self._held
        while held and held[0].command_execution_status <= 0:
            held.popleft()
        while self._staged and self._staged[0][0].command_execution_status <= 0:
            self.live.pinned.give(self._staged.popleft()[1])  # type: ignore[union-attr]
        return event

    def close(self) -> None:
        """Wait for what was handed over and release the queue."""
        with suppress(cl.Error):  # lost work has been told by its events
            self.queue.finish()
        if self._watcher is not None:
            self._watched.put(None)
            self._watcher.join()
            self._watcher = None
        for landing in self._landings:
            landing.land()
        self._landings = []
        self._held.clear()
        self._staged.clear()
        self._waits.clear()
        self.live.programs.give(self._mine)
        self._kernels.clear()
        self._mine.clear()
        self._launches.clear()
        self._segments.clear()
        self._first = self._last = None
        self._behind = []
        self._doubted = (None, _NEVER)

    # What a kernel asks of a queue ----------------------------------------------------------------------------------------------

    def run(self, source: str, function: str, global_size: tuple[int, ...], *args: Any, local_size: tuple[int, ...] | None = None) -> None:
        """See `hetsched.graph.op.OpenCL.run`."""
        if 0 in global_size:
            return
        flat: list[Any] = []
        fault: Fault | None = None  # the last argument
        for x in args:
            if type(x) is DeviceArray:
                flat += (x.buffer, x.first)
            elif type(x) is Fault:
                fault = x
                flat += (x.board.buffer, np.int64(x.site), x.board.number)
            else:
                flat.append(x)
        if local_size is not None:
            global_size = tuple(-(-g // n) * n for g, n in zip(global_size, local_size, strict=True))
        elif self.is_cpu:
            local_size = group_size(global_size)
        if self._tape is not None:
            self._end_chain()
            own = self._new_kernel(source, function, types_of(function, args), args)
            own.set_args(*flat)
            enqueue = partial(cl.enqueue_nd_range_kernel, self.queue, own, global_size, local_size)
            self._taped(f"kernel {function!r}", enqueue if fault is None else _telling(own, len(flat) - 1, fault.board, enqueue))
            return
        kernel = self._kernels.get((source, function))
        if kernel is None:
            types = types_of(function, args)
            kernel = self.live.programs.take(source, function, types) or self._new_kernel(source, function, types, args)
            self._kernels[source, function] = self._mine[source, function, types] = kernel
        if self._is_preparing:
            return
        if fault is not None:
            fault.board.is_used = True
        waits = self._waits
        try:
            event = kernel(self.queue, global_size, local_size, *flat, wait_for=waits or None)
        except (cl.Error, TypeError, ValueError, OverflowError) as error:
            raise self.refusal(f"kernel {function!r} over {global_size} (local {local_size}) with {shown(args)}", error) from error
        if waits:
            self._waits = []
        if self._first is None:
            self._first = (event, self.live)
        self._last = event

    def fill(self, array: DeviceArray, value: Any) -> None:
        """Enqueue: every element of `array` becomes `value`."""
        if array.size:
            pattern = np.asarray(value, array.dtype)
            self._taped("a fill", partial(cl.enqueue_fill_buffer, self.queue, array.buffer, pattern, array.offset, array.nbytes))

    def fetch(self, array: DeviceArray) -> Any:
        """See `hetsched.graph.op.OpenCL.fetch`."""
        if self._is_preparing:
            raise InternalError("no values are there before a run")
        out = np.empty(array.shape, array.dtype)
        if array.nbytes:
            self._download(array, out)
            Event(self, self._last, self.live, self._last).wait()
        return out

    def doubt(self, arrays: Sequence[DeviceArray], check: Callable[[Sequence[Any] | None], None]) -> None:
        """See `hetsched.graph.op.OpenCL.doubt`: on the spot, or when who drives the stream has time for it (`doubts`)."""
        if self._is_preparing:
            check(None)
        elif self.doubts is None:
            check([self.fetch(x) for x in arrays])
        else:
            found, before = [np.empty(x.shape, x.dtype) for x in arrays], self._last
            for array, out in zip(arrays, found, strict=True):
                if array.nbytes:
                    self._download(array, out)
            self.doubts.append((found, check))
            self._doubted = before, self._last

    def fault(self, out: DeviceArray, explain: Explain) -> Fault:
        """See `hetsched.graph.op.OpenCL.fault`."""
        if self._board is None:
            self._board = Board(self.live.context, self.live.is_cpu)
        return self._board.site(out, explain, self._tape is not None)

    def found(self, number: int) -> Exception | None:
        """What launches before record `number`, which is done, have found wrong."""
        return None if self._board is None else self._board.found(number, self.queue)

    def forget_faults(self) -> None:
        """Before another run: nobody asks any more what the last one has found wrong."""
        if self._board is not None:
            self._board.forget(self.queue)

    def part(self, array: DeviceArray, start: int, shape: tuple[int, ...], dtype: Any = None) -> DeviceArray:
        """See `DeviceArray.part`."""
        return array.part(start, shape, dtype)

    # Inside ---------------------------------------------------------------------------------------------------------------------

    def watch(self, event: Event, callback: Callable[[], object]) -> None:
        """Call `callback` from the stream's watching thread. Events of a queue are done in order, so one thread that waits for one after the other
        serves all; the driver's own callbacks would start a thread for each."""
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._watch, name=f"hetsched-{self.live.name}-{self.kind}-events", daemon=True)
            self._watcher.start()
        self._watched.put((event, callback))

    def _watch(self) -> None:
        while (message := self._watched.get()) is not None:
            event, callback = message
            with suppress(Exception):  # `Event.span` tells
                event.wait()
            callback()
            del event, callback, message

    def refusal(self, what: str, error: Exception) -> Exception:
        """The error for what the device refused: `MemoryError` where it has no room, `DeviceGoneError` where it is no more, else `DeviceError`."""
        text = f"{self.live.name} ({self.live.device.name.strip()}): {what}: {_cause(error)}"
        code = getattr(error, "code", None)
        if code in _GONE:
            return DeviceGoneError(self.live.name, f"device {self.live.name!r} is gone: {text}")
        return MemoryError(text) if code in _OUT_OF_MEMORY else DeviceError(text)

    def _new_kernel(self, source: str, function: str, types: tuple[Any, ...], args: Sequence[Any]) -> Any:
        kernel = self.live.programs.kernel(source, function)
        if len(types) != kernel.num_args:
            raise DeviceError(
                f"kernel {function!r} has {kernel.num_args} parameters and got {len(types)} (an array counts as two) from {shown(args)}"
            )
        kernel.set_scalar_arg_dtypes(list(types))
        return kernel

    def _taped(self, what: str, enqueue: Callable[..., Any]) -> None:
        if self._tape is not None:
            self._end_chain()
            self._tape.append(enqueue)
        self._command(what, lambda waits: enqueue(wait_for=waits))

    def _command(self, what: str, enqueue: Callable[[Any], Any], holds: bool = False) -> None:
        if self._is_preparing:
            return
        try:
            event = enqueue(self._waits or None)
        except (cl.Error, ValueError) as error:
            raise self.refusal(what, error) from error
        if self._waits:
            self._waits = []
        if self._first is None:
            self._first = (event, self.live)
        self._last = event
        if holds:
            self._held.append(event)

    def _fetch(self, src: DeviceArray, dst: DeviceArray) -> None:
        """A copy from another OpenCL device: its queue brings the bytes to the host, and ends an event that ours waits for."""
        staged = np.empty(src.nbytes, np.uint8)
        arrived = cl.UserEvent(self.live.context)
        whole = DeviceArray(src.live, src.buffer, src.offset, (src.nbytes,), np.uint8)
        with src.live.bridging:
            there = src.live.bridge()
            there._download(whole, staged)
            fetched = there.record()

        def hand_over() -> None:
            done = fetched.last.command_execution_status == cl.command_execution_status.COMPLETE
            arrived.set_status(cl.command_execution_status.COMPLETE if done else -1)

        if self._first is None and not self._waits and fetched._first is not None:
            self._first = (fetched._first, src.live)
        self._waits.append(arrived)
        self._upload(staged, DeviceArray(self.live, dst.buffer, dst.offset, (dst.nbytes,), np.uint8))
        self.queue.flush()
        fetched.on_done(hand_over)


class LiveDevice:
    """An opened OpenCL device with an arena of `nbytes`. Raises `OutOfMemoryError` where it cannot be had."""

    def __init__(self, name: str, programs: Programs, nbytes: int) -> None:
        self.name = name
        self.programs = programs
        self.context = programs.context
        self.device = programs.device
        self.is_cpu = bool(self.device.type & cl.device_type.CPU)
        self.has_fp64 = "cl_khr_fp64" in self.device.extensions.split()
        self.nbytes = nbytes
        self.lost = False
        self._streams: list[Stream] = []
        self._bridge: Stream | None = None
        self._closed = False
        self._process = os.getpid()
        self._lock = threading.Lock()
        self.bridging = threading.Lock()
        self._clock_queue = cl.CommandQueue(self.context, self.device, cl.command_queue_properties.PROFILING_ENABLE)
        self.pinned = PinnedPool(self.context, cl.CommandQueue(self.context, self.device)) if wants_staging(self.device) else None
        self.on_their_way = Landings()
        self.clock_offset = 0.0
        self._clock_taken = 0.0
        try:
            self.arena = self._arena(max(nbytes, 64))
            # Drivers may put off the allocation to the first use, when nobody can do anything about a failure.
            cl.enqueue_migrate_mem_objects(self._clock_queue, [self.arena], cl.mem_migration_flags.CONTENT_UNDEFINED).wait()
        except (cl.Error, MemoryError) as error:
            most, whole = self.device.max_mem_alloc_size, self.device.global_mem_size
            raise OutOfMemoryError(
                f"{name} ({self.device.name.strip()}) cannot give an arena of {nbytes} bytes: {_cause(error)}; "
                f"it has {whole} bytes of memory and gives at most {most} at once"
            ) from error
        self.renew()

    def _arena(self, nbytes: int) -> Any:
        """A buffer; of a processor in memory of ours, whose pages are there (see `hetsched.executors.pages`)."""
        if not self.is_cpu or nbytes > self.device.max_mem_alloc_size:
            return cl.Buffer(self.context, cl.mem_flags.READ_WRITE, nbytes)
        return cl.Buffer(self.context, cl.mem_flags.READ_WRITE | cl.mem_flags.USE_HOST_PTR, hostbuf=had(lambda: area(nbytes)))

    def array(self, offset: int, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """The array of `shape` and `dtype` that begins `offset` bytes into the arena."""
        out = DeviceArray(self, self.arena, offset, tuple(shape), dtype)
        if offset < 0 or offset + out.nbytes > max(self.nbytes, 0):
            raise InternalError(f"{out!r} does not lie in the arena of {self.nbytes} bytes")
        return out

    def pinned_array(self, nbytes: int) -> Any | None:
        """Bytes on the host that the driver copies by itself, as long as the device is open; None where it shares the host's memory."""
        return None if self.pinned is None else self.pinned.take(nbytes).bytes[:nbytes]

    def stream(self, kind: str) -> Stream:
        """A new stream, a queue of its own; `kind` is `compute` or `copy`."""
        stream = Stream(self, kind)
        with self._lock:
            self._streams.append(stream)
        return stream

    def bridge(self) -> Stream:
        """The stream through which other devices fetch; whoever uses it holds `bridging`."""
        if self._bridge is None:
            self._bridge = self.stream("copy")
        return self._bridge

    def clock(self) -> float:
        """Seconds to add to this device's timestamps to get `perf_counter` seconds; taken anew when it is old."""
        if perf_counter() - self._clock_taken > _CLOCK_SECONDS:
            self.renew()
        return self.clock_offset

    def renew(self, tries: int = 20) -> None:
        """Take the clock's offset: of up to `tries` markers, the one whose enqueueing took least; the device's stamp lies within it."""
        least, offset = math.inf, self.clock_offset  # told when it is known: other threads read the clock meanwhile
        while tries > 0 and least > _CLOCK_WINDOW_NS:
            tries -= 1
            before = perf_counter_ns()
            event = cl.enqueue_marker(self._clock_queue)
            after = perf_counter_ns()
            event.wait()
            if after - before < least:
                least = after - before
                offset = ((before + after) / 2 - _stamp(event, _QUEUED)) * 1e-9
        self.clock_offset, self._clock_taken = offset, perf_counter()

    def lose(self) -> None:
        """As if the device had been unplugged: from now on all work ends with `DeviceGoneError`. For tests of what happens then."""
        self.lost = True

    def close(self) -> None:
        """Wait for what was handed over; release queues and arena. Arrays of it cannot be used any more. A second time nothing is done, nor in a

        forked process.
        """
        if self._closed or self._process != os.getpid():
            return
        self._closed = True
        for stream in self._streams:
            stream.close()
        self._streams.clear()
        self._bridge = None
        self._clock_queue.finish()
        self.on_their_way.clear()
        if self.pinned is not None:
            self.pinned.close()
        self.arena.release()

    def __repr__(self) -> str:
        return f"<LiveDevice {self.name}: {self.device.name.strip()}, arena of {self.nbytes} bytes, {len(self._streams)} streams>"


def _telling(kernel: Any, place: int, board: Board, enqueue: Callable[..., Any]) -> Callable[..., Any]:
    """`enqueue` of a taped launch that can tell of a mistake: its argument at `place` is the number of the record to come."""
    # PyOpenCL's `set_arg` tries what its value may be, which takes 9 us; what its own calls set bytes with, 0.15.
    set_arg = getattr(kernel, "_set_arg_buf", kernel.set_arg)

    def enqueue_numbered(wait_for: Any) -> Any:
        set_arg(place, board.number)
        board.is_used = True
        return enqueue(wait_for=wait_for)

    return enqueue_numbered


def _stamp(event: Any, what: Any) -> int:
    """A timestamp of a done event, nanoseconds of the device's clock."""
    return int(event.get_profiling_info(what))


def _cause(error: Exception) -> str:
    return str(error) or type(error).__name__
