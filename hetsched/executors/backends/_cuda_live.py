"""An opened CUDA device: an arena, arrays in it, streams, copies through pinned memory, events on the host's clock. Through CuPy.

Kernels get the module cupy as their first argument, arrays of it, and the stream as the current one: those in the array API and those in CUDA C++.
What a kernel makes for itself comes from CuPy's memory pool, which keeps apart what streams have freed; it is not in the plan's arena.

Copies from and to page-locked memory of the host are done by the device alone, behind the host's back: such bytes are the copy's until the event
behind it is done, which plans see to. Others go through pinned memory. An upload takes the host's bytes while it is handed over, a download puts
them to where they belong when it is done: when its event is waited for, or by the thread that watches for it. Large ones are put there by that
thread, beside the one that hands over, which copies what goes up meanwhile; their event is done when they are there. So an upload of what a
download is still to bring, and a download to where another has not landed, wait for that on the host (bytes that were put out of a full device and
come back are such). What is small goes through pinned memory that is each stream's own and is used again.

Whoever waits for an event asks for a moment whether it is done, and sleeps then: to be woken takes longer than a small kernel.

Neighbouring element-wise launches of a step that comes again are one kernel (_cuda_chains.py); `HETSCHED_CUDA_CHAINS=0` leaves them apart.
One that does not build is launched one by one.

Launches that follow each other and come again are captured as a CUDA graph the second time, and from then on handed
over as one. What kernels make for themselves while they are captured comes from a pool of the stream's own: a graph uses that memory whenever it
runs; matrix products are asked of cuBLAS itself (_cuda_blas.py), since CuPy refuses to. A segment that cannot be captured (a kernel that asks the
device for a value, say) is launched one by one, as all are with
`HETSCHED_CUDA_GRAPHS=0`.

Where there is no card its logic is tested on a CuPy of NumPy (tests/executors/fake_cupy.py), which has the same calls, streams that run behind, and
pinned memory, but is no GPU.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import Any, TypeAlias

import cupy
import numpy as np

from hetsched.errors import DeviceGoneError, HetschedError, InternalError, OutOfMemoryError
from hetsched.executors.backends._common import Arrival, Copiers, Landing, Landings, Watcher, alike, inside, is_on
from hetsched.executors.backends._cuda_arrays import DeviceArray
from hetsched.executors.backends._cuda_blas import Capturing, Doubting, Products, library
from hetsched.executors.backends._cuda_chains import FUNCTION, OPTIONS, THREADS, Chain, chain_of, grouped
from hetsched.executors.backends._cuda_errors import STICKY, is_cudas, is_out_of_memory, status_of
from hetsched.executors.backends._cuda_events import SCRATCH_NBYTES, SPIN_SECONDS, Event, Scratch
from hetsched.executors.backends._cuda_faults import Board
from hetsched.executors.backends._cuda_pins import Pins, address, lock_pages, pinned_bytes
from hetsched.executors.backends._nvtx import find as find_ranges
from hetsched.executors.backends._sites import Explain
from hetsched.graph.ops._cuda_ids import Told
from hetsched.graph.ops._cuda_ids import now as listening
from hetsched.graph.ops._cuda_small import lay_up, next_turn

_CLOCK_SECONDS = 0.25
_CLOCK_WINDOW_SECONDS = 10e-6
_CHUNK_NBYTES = 4 << 20  # of a copy through pinned memory: the next is prepared while one is on its way
_LANDING_NBYTES = 1 << 20  # of downloads before one event: the watching thread puts so many bytes to where they belong, in 0.1 ms and more
_MOST_COPIERS = 4
_MOST_CHUNKS = 8  # of an upload at a time; the first is used again when its copy is done
_SMALL_NBYTES = 32 << 10  # of a copy that goes through a stream's own pinned memory: the host takes 2 us for it, asking where it lies takes as long
_MOST_HELD = 16  # events that hold something before they are asked whether it is needed any more
_GRAPHS = "HETSCHED_CUDA_GRAPHS"
_CHAINS = "HETSCHED_CUDA_CHAINS"
_DIRECT = "HETSCHED_CUDA_DIRECT"
_MOST_SEGMENTS = 1024
_MOST_COUNTERS = 512  # streams of a device that can tell of mistakes
# A capture is spoilt by what other threads ask of a stream that is captured, and by another that meets it: one at a time in a process.
_capturing = threading.Lock()
# Streams of devices that were closed, by device, for the next that is opened: CuPy's pool keeps apart what each stream has freed, also what streams
# that are no more have.
_idle: dict[int, list[Any]] = {}
_SHORT_STACK = 4  # matrices that are multiplied one by one
# What multiplies matrices on such a stream, by its number: a handle takes milliseconds.
_products: dict[int, Products] = {}
_MOST_WARM = 4096
_warm: set[Any] = set()  # launches whose like this process has done, see `_mark`, and sources of chains
_chains: dict[tuple[int, str], Any] = {}  # kernels by device and source; None for those that do not build


_Piece: TypeAlias = tuple[int, Callable[[], object]]


class _Segment:
    """Launches that may come again together, which keeps their id in use.

    pieces: what they are handed over as once they have come again, each with its (first) task. chained: some are chains. graph: the one that was
    captured of them. refused: they cannot be captured. tells: one of them can tell of a mistake.
    """

    __slots__ = ("calls", "chained", "graph", "pieces", "refused", "tells")

    def __init__(self, calls: Any) -> None:
        self.calls = calls
        self.pieces: list[_Piece] | None = None
        self.chained = False
        self.graph: Any = None
        self.refused = False
        self.tells = False


class Stream:
    """A CUDA stream of an opened device. See `hetsched.executors.live.Stream`.

    is_timed: its events tell when each command ended, so the launches of a step can be timed one by one.
    """

    is_timed = True
    count_turn = staticmethod(next_turn)
    lay_up = staticmethod(lay_up)

    def __init__(self, live: LiveDevice, kind: str) -> None:
        self.live = live
        self.kind = kind
        self._segments: dict[int, _Segment] = {}
        self._captures = is_on(_GRAPHS)
        self._fuses = is_on(_CHAINS)
        # True if a thread that wants a short plan done may hand it over by itself (hetsched/executors/direct.py).
        self.is_direct = is_on(_DIRECT)
        self._pool: Any = None
        self._capturing: Any = None
        self._products: Products | None = None
        self._xp: Any = cupy  # what kernels get as CuPy
        # What came behind launches that are doubted, and who looks at it; None: it is looked at on the spot.
        self.doubts: list[tuple[list[Any], Callable[[Sequence[Any] | None], None]]] | None = None
        self._ends: Any = None  # the mark before what was brought for that
        self._board: Board | None = None  # made where a launch can tell of a mistake
        self._is_capturing = False
        self.stream = _idle_or_new(live.device, kind == "compute")
        self.watcher = Watcher(f"hetsched-{live.name}-{kind}-events")
        self._first: Any = None  # the event before the first command since the last record
        self._anchor: tuple[Any, float] | None = None  # the device's clock, taken before that event
        self._landings: list[Landing | Arrival] = []
        # What copies on their way use: arrays, and pinned memory, which CuPy's pool would hand out again at once. Events hold it, and these them.
        self._held: deque[Event] = deque()
        self._holding: list[Any] = []
        self._scratch: Scratch | None = None
        self._full: list[Scratch] = []  # used by commands since the last record, and not by those that follow
        self._empty: list[Scratch] = []

    def wait(self, event: Any) -> None:
        """What follows waits for an event of another stream, on this device or another one."""
        other = getattr(event, "stream", None)
        if other is self:
            return
        if not isinstance(event, Event):
            event.wait()
            return
        try:
            self.stream.wait_event(event.last)
        except Exception as error:
            raise self.live.refusal("a wait", error) from error

    def told(self, out: Any, explain: Explain) -> Told:
        """See `hetsched.graph.ops._cuda_ids.Listens`."""
        if self._board is None:
            if self._is_capturing:
                raise InternalError("a kernel that tells of mistakes was never launched before it is captured")
            self._board = Board(self)
        return self._board.told(out, explain, self._is_capturing)

    def begin_numbers(self, at: int) -> None:
        """Enqueue: 8 bytes of 0 on the device."""
        with self.live.device:
            cupy.cuda.runtime.memsetAsync(at, 0, 8, self.stream.ptr)

    def put_number(self, to: int, src: int) -> None:
        """Enqueue: 8 bytes of page-locked memory to the device. It is no part of a span."""
        with self.live.device:
            self._copy(to, src, 8, cupy.cuda.runtime.memcpyHostToDevice)

    def found(self, slot: int) -> Exception | None:
        """What launches before a record, which is done, have found wrong."""
        return None if self._board is None else self._board.found(slot)

    def unheard(self) -> Exception | None:
        """What launches have found wrong, when all is done, and no event was asked for."""
        return None if self._board is None else self._board.any_found()

    def forget_faults(self) -> None:
        """Before another run: nobody asks any more what the last one has found wrong."""
        if self._board is not None:
            self._board.forget()

    def launch(self, kernel: Any, inputs: Sequence[Any], outputs: Any, workspace: Any, attributes: Mapping[str, Any]) -> Any:
        """Enqueue a launch: `kernel(cupy, inputs, outputs, workspace, attributes)`, this stream being the current one."""
        xp = self._xp if getattr(kernel, "__self__", None) is None else Doubting(self._xp, self.doubt)
        return self._launch(_as_piece((kernel, inputs, outputs, workspace, attributes), xp))

    def doubt(self, arrays: Sequence[Any], check: Callable[[Sequence[Any] | None], None]) -> None:
        """See `hetsched.graph.op.OpenCL.doubt`: on the spot, or when who drives the stream has time for it (`doubts`)."""
        if self.doubts is None or not all(x.flags.c_contiguous for x in arrays):
            check([cupy.asnumpy(x) for x in arrays])
            return
        ends, found = self._event(timing=True), []
        for x in arrays:
            pinned = pinned_bytes(int(x.nbytes))
            self._copy(address(pinned), int(x.data.ptr), int(x.nbytes), cupy.cuda.runtime.memcpyDeviceToHost)
            self._holding.append(pinned)
            found.append(pinned.view(x.dtype).reshape(x.shape))
        self.doubts.append((found, check))
        self._ends = ends

    def _launch(self, enqueue: Callable[[], Any]) -> Any:
        listening.listener = self
        try:
            if self.live.is_driven_here():  # this thread hands over to nobody else: its current stream need not be put back
                if cupy.cuda.get_current_stream() is not self.stream:
                    self.stream.use()
                self._begin()
                return enqueue()
            with self.live.device, self.stream:
                self._begin()
                return enqueue()
        except (HetschedError, MemoryError):
            raise
        except Exception as error:
            if is_cudas(error):
                raise self.live.refusal("a launch", error) from error
            raise
        finally:
            listening.listener = None

    @property
    def counts_turns(self) -> bool:
        """True if it is worth its while to do a loop alone, and to count the turns on the device: its turns become graphs."""
        return self._captures

    def scratch(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """An array outside the arena. Kernels for it: `count_turn` writes its input, a counter, to its output, and adds 1 to it; `lay_up` writes its

        input to that row of its first output which its second one counts. Raises `MemoryError`.
        """
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        try:
            with self.live.device:
                array = cupy.ndarray(shape, dtype, memptr=cupy.cuda.MemoryPointer(_allocated(max(nbytes, 256)), 0))
        except Exception as error:
            raise self.live.refusal("memory beside the arena", error) from error
        return DeviceArray(self.live, array)

    def segment(self, calls: Sequence[tuple[Any, ...]], known: bool = False) -> bool:
        """Enqueue launches that follow each other, (kernel, inputs, outputs, workspace, attributes, ...) each: neighbouring element-wise ones as one
        kernel, and all of them as one graph where graphs are not turned off.

        False for a list that comes for the first time (its kernels are built when they are launched one by one), and for one of which nothing can
        be put together. known: its kernels have been launched before, so that it need not come twice.
        """
        if not (self._fuses or self._captures):
            return False
        found = self._segments.get(id(calls))
        if found is None:
            if len(self._segments) >= _MOST_SEGMENTS:
                self._segments.clear()
            found = self._segments[id(calls)] = _Segment(calls)
            if not known:
                return False
        if found.pieces is None:
            found.pieces, found.chained = self._put_together(calls, self._xp)
        if self._captures and found.graph is None and not found.refused:
            found.graph, found.tells = self._telling_graph(calls)
            found.refused = found.graph is None
        if found.graph is not None:
            if found.tells and self._board is not None:
                self._board.is_used = True
            self._do("a graph", partial(found.graph.launch, stream=self.stream))
            return True
        if found.chained:
            self._launch_pieces(found.pieces)
        return found.chained

    def as_graph(self, calls: Sequence[tuple[Any, ...]]) -> Callable[[], None] | None:
        """What hands over launches whose kernels are built as one graph; None where they cannot be captured."""
        graph = self._capture(calls)
        return None if graph is None else partial(self._do, "a graph", partial(graph.launch, stream=self.stream))

    def attend(self, products: bool) -> None:
        """The calling thread will hand over launches. CuPy makes a handle of cuBLAS in each thread that multiplies matrices, and multiplies in no
        capture: where launches are captured, the stream's own handle serves all of them."""
        if products:
            with suppress(Exception), _capturing, self.live.device:
                if self._captures and self._library() is not cupy and self._products is not None:
                    self._xp = Capturing(cupy, self._products)
                    self._xp.matmul = partial(_multiply, self._products)
                else:
                    cupy.cuda.device.get_cublas_handle()

    def warm(self, calls: Sequence[tuple[Any, ...]], tries: Sequence[bool], together: bool) -> list[bool]:
        """Do what the process does at the first of launches, before anything lies in the arena. See `hetsched.executors.warming.Warms`.

        What fails is told by the run. Kernels that were launched once before are known, until there are too many of them.
        """
        if len(_warm) > _MOST_WARM:
            _warm.clear()
        out = []
        for call, is_tried in zip(calls, tries, strict=True):
            mark = _mark(self.live.device.id, call)
            if mark in _warm:
                out.append(True)
                continue
            arrays = [x for x in (*call[1], *call[2], call[3]) if x is not None]
            out.append(self._tried(_as_piece(call, self._xp), arrays) if is_tried else self._loaded(call[0]))
            _warm.add(mark)  # if not now, then after the run that follows
        if self._captures:
            self._warm_counting()
        if together and self._fuses and len(calls) > 1:
            may = {id(call) for call, is_tried in zip(calls, tries, strict=True) if is_tried}
            for group, parts in grouped(calls):
                if parts and may.issuperset(map(id, group)):
                    self._warm_chain(chain_of(parts))
        return out

    def _warm_counting(self) -> None:
        mark = (self.live.device.id, next_turn)
        if mark not in _warm:
            _warm.add(mark)
            with suppress(Exception):
                counters = [self.scratch((), np.int64) for _ in range(2)]
                self._tried(_as_piece((next_turn, counters[:1], counters[1:], None, {})), counters)

    def _warm_chain(self, chain: Chain) -> None:
        mark = (self.live.device.id, chain.source)
        if mark not in _warm:
            _warm.add(mark)
            with suppress(Exception):
                kernel = self._built(chain.source)
                if kernel is not None:
                    self._tried(partial(kernel, chain.grid, (THREADS,), (*(x.array for x in chain.arrays), *chain.scalars)), chain.arrays)

    def _tried(self, enqueue: Callable[[], object], arrays: Sequence[DeviceArray]) -> bool:
        """Launch on zeros; False where that fails."""
        try:
            with _capturing, self.live.device:
                for x in arrays:
                    if x.nbytes:
                        cupy.cuda.runtime.memsetAsync(x.pointer, 0, x.nbytes, self.stream.ptr)
                listening.listener = self
                with self.stream:
                    enqueue()
                self.stream.synchronize()
        except Exception:
            return False
        finally:
            listening.listener = None
        return True

    def _loaded(self, kernel: Any) -> bool:
        """Build and load a kernel that has something for that; True if its launches do nothing else at first."""
        load = getattr(getattr(kernel, "__self__", None), "load_cuda", None)
        try:
            with _capturing, self.live.device:
                return bool(load(cupy)) if load is not None else False
        except Exception:
            return False

    def _launch_pieces(self, pieces: Sequence[_Piece]) -> None:
        """One after the other; an error's `failed_task` is that of the piece which raised it."""
        task = -1

        def enqueue() -> None:
            nonlocal task
            for task, piece in pieces:  # noqa: B007 (read in the handler)
                piece()

        try:
            self._launch(enqueue)
        except Exception as error:
            error.failed_task = task  # type: ignore[attr-defined]
            raise

    def _put_together(self, calls: Sequence[tuple[Any, ...]], xp: Any = cupy) -> tuple[list[_Piece], bool]:
        """What enqueues `calls`, and whether chains are among it. xp: what kernels get as CuPy."""
        pieces: list[_Piece] = []
        chained = False
        for group, parts in grouped(calls) if self._fuses else [([call], []) for call in calls]:
            chain = chain_of(parts) if parts else None
            kernel = None if chain is None else self._built(chain.source)
            if chain is None or kernel is None:
                pieces += [(call[5], _as_piece(call, xp)) for call in group]
            else:
                given = (*(x.array for x in chain.arrays), *chain.scalars)
                pieces.append((group[0][5], partial(kernel, chain.grid, (THREADS,), given)))
                chained = True
        return pieces, chained

    def _built(self, source: str) -> Any:
        """The kernel of a chain on this device; None where it does not build."""
        key = (self.live.device.id, source)
        if key not in _chains:
            try:
                with _capturing, self.live.device:
                    _chains[key] = cupy.RawModule(code=source, options=OPTIONS).get_function(FUNCTION)
            except Exception as error:
                if status_of(error) in STICKY:
                    raise self.live.refusal("a kernel", error) from error
                _chains[key] = None  # its launches one by one do the same
        return _chains[key]

    def _library(self) -> Any:
        """CuPy, with matrix products that can be captured where cuBLAS is here."""
        if self._capturing is None:
            self._capturing = cupy
            with suppress(Exception), self.live.device:
                self._products = _products.pop(self.stream.ptr, None) or Products(cupy, self.stream, library(cupy))
                self._capturing = Capturing(cupy, self._products)
        return self._capturing

    def _capture(self, calls: Sequence[tuple[Any, ...]]) -> Any:
        """The graph of launches, instantiated; None where something in them cannot be captured. Nothing is done on the device."""
        if self._pool is None:
            self._pool = cupy.cuda.MemoryPool()
        graph = self._captured(calls, cupy) if self._capturing is None else None
        # Where CuPy alone cannot, it is a product perhaps: cuBLAS takes milliseconds to be there, so it is not asked before.
        return self._captured(calls, self._library()) if graph is None else graph

    def _telling_graph(self, calls: Sequence[tuple[Any, ...]]) -> tuple[Any, bool]:
        """The graph of launches (see `_capture`), and whether one of them can tell of a mistake."""
        was = self._board is not None and self._board.is_used
        if self._board is not None:
            self._board.is_used = False
        graph = self._capture(calls)
        tells = self._board is not None and self._board.is_used
        if self._board is not None:
            self._board.is_used = was
        return graph, tells

    def _captured(self, calls: Sequence[tuple[Any, ...]], xp: Any) -> Any:
        pieces, _ = self._put_together(calls, xp)
        graph = None
        try:
            with _capturing, self.live.device, self.stream, cupy.cuda.using_allocator(self._pool.malloc):
                self.stream.begin_capture()
                listening.listener, self._is_capturing = self, True
                try:
                    for _, piece in pieces:
                        piece()
                finally:
                    listening.listener, self._is_capturing = None, False
                    graph = self.stream.end_capture()
        except Exception as error:
            if status_of(error) in STICKY:
                raise self.live.refusal("a capture", error) from error
            return None  # launched one by one, it works or tells why it does not
        return graph

    def upload(self, src: Any, dst: DeviceArray) -> None:
        """Enqueue a copy from the host. `src` has been read when this returns; from page-locked memory, when an event behind it is done."""
        if not alike(src, dst):
            return
        nbytes, is_whole = src.nbytes, src.flags.c_contiguous
        if nbytes > _SMALL_NBYTES and is_whole and self.live.pins.has(src):
            self._settle(src, by_device=True)
            self._do("an upload", self._copy, dst.pointer, address(src), nbytes, cupy.cuda.runtime.memcpyHostToDevice)
            self._holding.append(src)
            return
        self._settle(src)
        if nbytes <= _SMALL_NBYTES:
            scratch, at = self._room(nbytes)
            np.copyto(np.ndarray(src.shape, src.dtype, scratch.raw, at), src)
            self._do("an upload", self._copy, dst.pointer, scratch.place + at, nbytes, cupy.cuda.runtime.memcpyHostToDevice)
            return
        self._do("an upload", self._upload, np.ascontiguousarray(src).reshape(-1).view(np.uint8), dst.pointer)

    def _upload(self, host: Any, to: int) -> None:
        used: deque[tuple[Any, Any]] = deque()
        for start in range(0, host.size, _CHUNK_NBYTES):
            part = host[start : start + _CHUNK_NBYTES]
            if len(used) < _MOST_CHUNKS:
                pinned = pinned_bytes(part.size)
                self._holding.append(pinned)
            else:
                left, pinned = used.popleft()
                left.synchronize()
            self.live.copiers.copy(pinned[: part.size], part)
            self._copy(to + start, address(pinned), part.size, cupy.cuda.runtime.memcpyHostToDevice)
            if host.size > _MOST_CHUNKS * _CHUNK_NBYTES:
                used.append((self._event(timing=False), pinned))

    def download(self, src: DeviceArray, dst: Any) -> None:
        """Enqueue a copy to the host. Its bytes are in `dst` when an event behind it has been waited for."""
        if not alike(src, dst):
            return
        nbytes = src.nbytes
        if nbytes > _SMALL_NBYTES and dst.flags.c_contiguous and self.live.pins.has(dst):
            self._settle(dst, by_device=True)
            self._bring(src, address(dst), nbytes)
            self._holding.append(dst)
            arrival: Landing | Arrival = Arrival(dst, self.stream.synchronize)
        else:
            self._settle(dst)
            if nbytes <= _SMALL_NBYTES:
                scratch, at = self._room(nbytes)
                self._bring(src, scratch.place + at, nbytes)
                arrival = Landing(dst, np.ndarray(src.shape, src.dtype, scratch.raw, at), self.stream.synchronize)
                scratch.landings.append(arrival)
            else:
                pinned = pinned_bytes(nbytes)
                size = _CHUNK_NBYTES if nbytes >= 2 * _CHUNK_NBYTES and dst.flags.c_contiguous else nbytes
                parts: list[tuple[Callable[[], object], int, int]] = []
                for first in range(0, nbytes, size):
                    last = min(first + size, nbytes)
                    self._bring(src, address(pinned), last - first, first)
                    if size < nbytes:
                        parts.append((self._event(timing=False).synchronize, first, last))
                self._holding.append(pinned)
                staged = pinned.view(src.dtype).reshape(src.shape)
                arrival = Landing(dst, staged, self.stream.synchronize, copy=self.live.copiers.copy, parts=parts)
        self._landings.append(arrival)
        self.live.on_their_way.expect(arrival)

    def _bring(self, src: DeviceArray, to: int, nbytes: int, first: int = 0) -> None:
        self._do("a download", self._copy, to + first, src.pointer + first, nbytes, cupy.cuda.runtime.memcpyDeviceToHost)

    def _room(self, nbytes: int) -> tuple[Scratch, int]:
        """Pinned memory for a small copy: where, and the byte where it begins."""
        scratch = self._scratch
        if scratch is None or scratch.used + nbytes > SCRATCH_NBYTES:
            if scratch is not None:
                self._full.append(scratch)
            scratch = self._scratch = self._empty.pop() if self._empty else Scratch()
        at = scratch.used
        scratch.used += (nbytes + 63) & ~63
        return scratch, at

    def take_back(self, scratch: Scratch) -> None:
        """Use pinned memory again that commands are done with, unless something is still to be taken out of it."""
        if all(x.has_landed for x in scratch.landings):
            scratch.used = 0
            scratch.landings.clear()
            self._empty.append(scratch)

    def upload_pinned(self, src: Any, dst: DeviceArray) -> None:
        """Enqueue a copy from what `LiveDevice.pinned_array` gave; it must not be written until the copy is done."""
        self._do("an upload", self._copy, dst.pointer, address(src), src.nbytes, cupy.cuda.runtime.memcpyHostToDevice)

    def download_pinned(self, src: DeviceArray, dst: Any) -> None:
        """Enqueue a copy into what `LiveDevice.pinned_array` gave; its bytes are there when an event behind it has been waited for."""
        self._do("a download", self._copy, address(dst), src.pointer, dst.nbytes, cupy.cuda.runtime.memcpyDeviceToHost)

    def copy(self, src: DeviceArray, dst: DeviceArray) -> None:
        """Enqueue: the bytes of `src` to `dst`, of the same number of bytes; between devices by the peer path, where they have one."""
        if src.nbytes != dst.nbytes:
            raise InternalError(f"cannot copy {src!r} to {dst!r}: {src.nbytes} bytes to {dst.nbytes}")
        a, b = src.live.device.id, dst.live.device.id
        if not src.nbytes or (a == b and src.pointer == dst.pointer):
            return
        runtime = cupy.cuda.runtime
        if a == b:
            self._do("a copy", self._copy, dst.pointer, src.pointer, src.nbytes, runtime.memcpyDeviceToDevice)
        else:
            self._do("a copy between devices", runtime.memcpyPeerAsync, dst.pointer, b, src.pointer, a, src.nbytes, self.stream.ptr)

    def record(self) -> Event:
        """An event behind everything handed over so far."""
        if self.live.lost:
            raise self.live.gone("it was lost while the run used it")
        anchor = self._anchor or self.live.anchor()
        landings, holding = self._landings, self._holding
        event = Event(self, self._first, self._event(timing=True), anchor, landings, holding, self._full, self._ends)
        if self._board is not None:
            event.slot = self._board.recorded(self)
        self._first, self._anchor, self._landings, self._holding, self._full, self._ends = None, None, [], [], [], None
        if landings:
            staged = 0
            for landing in landings:
                landing.wait = event.pass_by
                staged += landing.staged_nbytes
            if staged >= _LANDING_NBYTES:
                event.land_elsewhere()
        held = self._held
        if holding or landings or event.scratch:
            held.append(event)
        while held and (held[0].holding is None or (len(held) > _MOST_HELD and held[0].is_over())):
            held.popleft()
        return event

    def close(self) -> None:
        """Wait for what was handed over; end the watching thread. No more is to be handed over."""
        with suppress(Exception):  # lost work has been told by its events
            self.stream.synchronize()
            if self._products is not None:
                _products[self.stream.ptr] = self._products
            _idle.setdefault(self.live.device.id, []).append(self.stream)
        self.watcher.close()
        for landing in self._landings:
            with suppress(Exception):  # one that comes in parts waits for them, in vain where the device is lost
                landing.land()
        self._held.clear()
        self._holding, self._landings, self._first, self._anchor = [], [], None, None
        self._scratch, self._full, self._empty = None, [], []
        self._ends = self.doubts = self._board = None
        self._segments.clear()
        self._xp = cupy
        self._pool = self._products = self._capturing = None

    # Inside ---------------------------------------------------------------------------------------------------------------------

    def _settle(self, host: Any, by_device: bool = False) -> None:
        if not self.live.on_their_way.is_any:
            return
        try:
            self.live.on_their_way.settle(host, by_device)
        except Exception as error:
            raise self.live.refusal("a download", error) from error

    def _begin(self) -> None:
        """Mark the start of what the next record's span covers: behind what the stream waits for."""
        self._ends = None
        if self._first is None:
            self._anchor = self.live.anchor()
            self._first = self._event(timing=True)

    def _event(self, timing: bool) -> Any:
        try:
            try:
                event = self.live.marks.pop() if timing else None
            except IndexError:
                event = None
            if event is None:
                with self.live.device:
                    event = cupy.cuda.Event(block=True, disable_timing=not timing)
            event.record(self.stream)
            return event
        except Exception as error:
            raise self.live.refusal("an event", error) from error

    def _do(self, what: str, enqueue: Callable[..., object], *given: Any) -> None:
        try:
            if self.live.is_driven_here():
                if self._first is None:
                    self._begin()
                enqueue(*given)
            else:
                with self.live.device:
                    self._begin()
                    enqueue(*given)
        except HetschedError:
            raise
        except Exception as error:
            raise self.live.refusal(what, error) from error

    def _copy(self, dst: int, src: int, nbytes: int, kind: int) -> None:
        cupy.cuda.runtime.memcpyAsync(dst, src, nbytes, kind, self.stream.ptr)


class LiveDevice:
    """CUDA device number `number` with an arena of `nbytes`. Raises `OutOfMemoryError` where it cannot be had, `DeviceGoneError` where it is lost."""

    def __init__(self, name: str, number: int, nbytes: int) -> None:
        self.name = name
        self.nbytes = nbytes
        self.lost = False
        self._process = os.getpid()
        self.device = cupy.cuda.Device(number)
        self.spin_seconds = SPIN_SECONDS
        self.ranges = find_ranges()
        self._streams: list[Stream] = []
        self._lock = threading.Lock()
        self.on_their_way = Landings()
        self.copiers = Copiers(f"hetsched-{name}-copies", copying_threads())
        self.marks: list[Any] = []  # CUDA events with times that nobody uses
        self._driver: int | None = None
        self._counted = 0
        self.pins = Pins()
        try:
            with self.device:
                free, total = cupy.cuda.runtime.memGetInfo()
                if nbytes > total:  # the driver would say no more than "out of memory"
                    raise OutOfMemoryError(_no_room(name, nbytes, free, total))
                self._counters = (max(nbytes, 256) + 255) & ~255  # where they begin, behind the arena
                self.memory: Any = _allocated(self._counters + 8 * _MOST_COUNTERS)
                self._clock_stream: Any = _idle_or_new(self.device)
        except OutOfMemoryError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise OutOfMemoryError(_no_room(name, nbytes, free, total)) from error
            raise self.refusal("it cannot be opened", error) from error
        self._anchor: tuple[Any, float] = (None, 0.0)
        self._anchor_taken = -math.inf
        self.renew()

    def array(self, offset: int, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """The array of `shape` and `dtype` that begins `offset` bytes into the arena."""
        kind = inside(offset, shape, dtype, self.nbytes)
        with self.device:
            return DeviceArray(self, cupy.ndarray(tuple(shape), kind, memptr=cupy.cuda.MemoryPointer(self.memory, offset)))

    def counter(self) -> int:
        """The address of 8 bytes on the device that are a stream's own."""
        with self._lock:
            at, self._counted = self._counters + 8 * (self._counted % _MOST_COUNTERS), self._counted + 1
        return int(self.memory.ptr) + at

    def pinned_array(self, nbytes: int) -> Any:
        """Page-locked bytes on the host, which the device copies without a stop in between."""
        return pinned_bytes(nbytes)

    def lock_pages(self, start: int, nbytes: int) -> Callable[[], object] | None:
        """Lock pages of the host in memory, so that copies from and to there need no staging; what unlocks them, or None where CUDA refuses."""
        return lock_pages(start, nbytes)

    def drive_here(self) -> None:
        """Told by a thread that hands over to the streams of this device and to nobody else's: it makes the device its current one once."""
        self.device.use()
        self._driver = threading.get_ident()

    def is_driven_here(self) -> bool:
        """True in the thread that said so."""
        return self._driver == threading.get_ident()

    def stream(self, kind: str) -> Stream:
        """A new stream; `kind` is `compute` or `copy`."""
        try:
            stream = Stream(self, kind)
        except Exception as error:
            raise self.refusal("a stream", error) from error
        with self._lock:
            self._streams.append(stream)
        return stream

    # Clock ----------------------------------------------------------------------------------------------------------------------

    def anchor(self) -> tuple[Any, float]:
        """A CUDA event and its moment in `perf_counter` seconds, not long ago: the times of other events are counted from it."""
        if perf_counter() - self._anchor_taken > _CLOCK_SECONDS:
            self.renew()
        return self._anchor

    def renew(self, tries: int = 20) -> None:
        """Take a new anchor: of up to `tries` events on a stream of its own, the one between whose recording and whose end least time passed."""
        least, anchor = math.inf, self._anchor  # told when it is known: other threads read the clock meanwhile
        try:
            with self.device:
                while tries > 0 and least > _CLOCK_WINDOW_SECONDS:
                    tries -= 1
                    event = cupy.cuda.Event()
                    before = perf_counter()
                    event.record(self._clock_stream)
                    event.synchronize()
                    after = perf_counter()
                    if after - before < least:
                        least, anchor = after - before, (event, (before + after) / 2)
        except Exception as error:
            raise self.refusal("its clock cannot be read", error) from error
        self._anchor, self._anchor_taken = anchor, perf_counter()

    # Errors ---------------------------------------------------------------------------------------------------------------------

    def gone(self, why: str) -> DeviceGoneError:
        """The error for a device that is no more."""
        return DeviceGoneError(self.name, f"device {self.name!r} is gone: {why}")

    def refusal(self, what: str, error: Exception) -> Exception:
        """The error for what CUDA refused: `DeviceGoneError` for what it does not recover from, `MemoryError` where there is no room."""
        if isinstance(error, HetschedError):
            return error
        status, text = status_of(error), f"{what}: {error}"
        if status in STICKY:
            self.lost = True
            return self.gone(f"{text}; CUDA does not recover from this in a process that is running: start it anew")
        if is_out_of_memory(error):
            return MemoryError(f"{self.name}: {text}")
        return RuntimeError(f"{self.name}: {text}")

    def lose(self) -> None:
        """As if the device had been unplugged: from now on all work ends with `DeviceGoneError`. For tests of what happens then."""
        self.lost = True

    def close(self) -> None:
        """Wait for what was handed over; give back streams and arena. Arrays of it cannot be used any more. In a forked process: nothing."""
        if self._process != os.getpid():
            return
        for stream in self._streams:
            stream.close()
        self._streams.clear()
        self.on_their_way.clear()
        self.marks = []
        self.pins.clear()
        self._driver = None
        self.copiers.close()
        if self.memory is not None and not self.lost:
            _idle.setdefault(self.device.id, []).append(self._clock_stream)
        self.memory = None

    def __repr__(self) -> str:
        return f"<LiveDevice {self.name}: arena of {self.nbytes} bytes, {len(self._streams)} streams>"


def _as_piece(call: Sequence[Any], xp: Any = cupy) -> Callable[[], Any]:
    """What calls the kernel of a launch with CuPy's arrays."""
    kernel, inputs, outputs, workspace, attributes, *_ = call
    outs = [x if x is None else x.array for x in outputs]
    return partial(kernel, xp, [x.array for x in inputs], outs, None if workspace is None else workspace.array, attributes)


def _multiply(products: Products, a: Any, b: Any, out: Any) -> Any:
    """out = a b; long stacks as CuPy does them, in one call."""
    return products.matmul(a, b, out) if out.ndim == 2 or len(out) <= _SHORT_STACK else cupy.matmul(a, b, out=out)


def _mark(device: int, call: Sequence[Any]) -> tuple[Any, ...]:
    """What launches that take the same ways have in common. `key` and `seed` of random ops are numbers to it."""
    kernel, inputs, outputs, workspace, attributes, *_ = call
    arrays = tuple(None if x is None else (x.shape, x.dtype.str) for x in (*inputs, *outputs, workspace))
    return (device, kernel, arrays, repr([x for x in attributes.items() if x[0] not in ("key", "seed")]))


def _idle_or_new(device: Any, multiplies: bool = False) -> Any:
    """A stream of a device that nobody else uses; one that has what multiplies matrices for who does, if there is one."""
    idle = _idle.get(device.id, [])
    for i in reversed(range(len(idle))):
        with suppress(IndexError):  # another thread has taken some
            if (idle[i].ptr in _products) == multiplies:
                return idle.pop(i)
    try:
        return idle.pop()
    except IndexError:
        with device:
            return cupy.cuda.Stream(non_blocking=True)


def _allocated(nbytes: int) -> Any:
    """Memory of the current device; where there is no room, once more without what CuPy's pool keeps of it for later."""
    try:
        return cupy.cuda.Memory(nbytes)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        cupy.get_default_memory_pool().free_all_blocks()
        while _products:
            with suppress(Exception):
                _products.popitem()[1].close()
        return cupy.cuda.Memory(nbytes)


def _no_room(name: str, nbytes: int, free: int, total: int) -> str:
    return f"{name} cannot give an arena of {nbytes} bytes: {free} of its {total} bytes are free"


def copying_threads() -> int:
    """How many help with copies between pinned memory and the rest: a quarter of the cores, at most 4."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores // 4, _MOST_COPIERS)
