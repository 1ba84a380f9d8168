"""A CuPy of NumPy: what hetsched's CUDA backend asks of CuPy's streams, events, memory and runtime, done by threads and memmove.

It is no GPU, and proves nothing about one. It has CuPy's calls (their names and arguments as in CuPy 14), streams that run behind the host, events
across streams, and errors with CUDA's numbers, so that the backend's own logic can be tested on a machine without a card: staging, order, landings,
clocks, errors, what is left behind. Kernels run when they are launched, once their stream has come to them.
"""

import ctypes
import queue
import sys
import threading
import types
import weakref
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from time import perf_counter
from types import SimpleNamespace

import numpy as np

from tests import cuda_host

TOTAL = 1 << 30


class CUDARuntimeError(RuntimeError):
    def __init__(self, status):
        super().__init__(f"cudaError {status}")
        self.status = status


CUDARuntimeError.__module__ = "cupy_backends.cuda.api.runtime"


class FakeArray(np.ndarray):
    @property
    def data(self):
        return SimpleNamespace(ptr=self.__array_interface__["data"][0])


class Memory:
    def __init__(self, size):
        if size > TOTAL:
            raise CUDARuntimeError(2)
        self.buffer = np.full(size, 0xEE, np.uint8)
        self.ptr = self.buffer.ctypes.data


class MemoryPointer:
    def __init__(self, mem, offset):
        self.mem, self.offset = mem, offset
        self.ptr = mem.ptr + offset


def ndarray(shape, dtype, memptr):
    nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    part = memptr.mem.buffer[memptr.offset : memptr.offset + nbytes]
    return part.view(dtype).reshape(shape).view(FakeArray)


class Device:
    number = 0

    def __init__(self, number=0):
        self.id = number

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def use(self):
        pass


current = threading.local()


def serve(commands):
    while (command := commands.get()) is not None:
        command()
        del command


class Stream:
    known = weakref.WeakValueDictionary()  # noqa: RUF012
    failing = None  # the status that every command from now on ends with

    def __init__(self, non_blocking=False):
        assert non_blocking, "the null stream would wait for everything"
        self.commands = queue.SimpleQueue()
        self.ptr = id(self)
        self.captured = None  # the commands of a capture under way
        Stream.known[self.ptr] = self
        self.thread = threading.Thread(target=serve, args=(self.commands,), daemon=True)
        self.thread.start()

    def __enter__(self):
        self.synchronize()
        current.stream = self
        return self

    def __exit__(self, *error):
        current.stream = None

    def use(self):
        self.__enter__()

    def __del__(self):
        self.commands.put(None)
        if self.thread is not threading.current_thread():
            self.thread.join(5)

    def put(self, command):
        if Stream.failing:
            raise CUDARuntimeError(Stream.failing)
        if self.captured is not None:
            self.captured.append(command)
        else:
            self.commands.put(command)

    def begin_capture(self, mode=None):
        assert Graph.capturing.acquire(blocking=False), "another capture is under way"
        self.captured, self.spoilt = [], False

    def end_capture(self):
        commands, self.captured = self.captured, None
        Graph.capturing.release()
        if self.spoilt:
            raise CUDARuntimeError(901)  # cudaErrorStreamCaptureInvalidated
        return Graph(commands)

    def synchronize(self):
        if self.captured is not None:
            self.spoilt = True
            raise CUDARuntimeError(900)  # cudaErrorStreamCaptureUnsupported
        done = threading.Event()
        self.commands.put(done.set)
        done.wait()

    def wait_event(self, event):
        self.put(event.reached.wait)


class Graph:
    capturing = threading.Lock()
    launched = 0

    def __init__(self, commands):
        self.commands = commands

    def launch(self, stream=None):
        Graph.launched += 1
        for command in self.commands:
            stream.put(command)


class MemoryPool:
    def __init__(self):
        self.used = 0

    def malloc(self, size):
        self.used += 1
        return MemoryPointer(Memory(size), 0)


class RawModule:
    """Its kernels are compiled by a C++ compiler. launched: how often which arrays were handed to a kernel. kept: source -> its library, if given."""

    folder = None  # where to build; None: nothing builds
    launched: list = []  # noqa: RUF012
    built: list = []  # noqa: RUF012
    kept: dict | None = None

    def __init__(self, code, options):
        if RawModule.folder is None:
            raise RuntimeError("no compiler")
        self.library = (RawModule.kept or {}).get(code)
        if self.library is None:
            place = RawModule.folder / str(len(RawModule.built))
            place.mkdir()
            RawModule.built.append(code)
            self.library = cuda_host.compiled(code, place)
            if RawModule.kept is not None:
                RawModule.kept[code] = self.library

    def compile(self):
        pass

    def get_function(self, name):
        def launch(grid, block, arguments):
            def command():
                RawModule.launched.append([a for a in arguments if isinstance(a, np.ndarray)])
                cuda_host.run(self.library, name, grid, block, arguments)

            if current.stream.captured is None:
                current.stream.synchronize()  # a kernel sees what commands before it have written
                command()
            else:
                current.stream.put(command)

        return launch


allocators = threading.local()


@contextmanager
def using_allocator(allocator):
    before, allocators.now = getattr(allocators, "now", None), allocator
    try:
        yield
    finally:
        allocators.now = before


class Event:
    known = weakref.WeakValueDictionary()  # noqa: RUF012

    def __init__(self, block=False, disable_timing=False):
        self.ptr = id(self)
        Event.known[self.ptr] = self
        self.timing = not disable_timing
        self.reached = threading.Event()
        self.time = None

    def record(self, stream):
        reached = self.reached = threading.Event()  # it may have been recorded before

        def reach():
            self.time = perf_counter()
            reached.set()

        stream.put(reach)

    def synchronize(self):
        self.reached.wait()
        if Stream.failing:
            raise CUDARuntimeError(Stream.failing)

    @property
    def done(self):
        return event_query(self.ptr) == 0


def event_query(event):
    """As CuPy's: the status is given back, and never raised."""
    return Stream.failing or (0 if Event.known[event].reached.is_set() else 600)


def get_elapsed_time(start, end):
    if not (start.timing and end.timing):
        raise CUDARuntimeError(400)
    if not (start.done and end.done):
        raise CUDARuntimeError(600)
    assert end.time >= start.time, "from a later event to an earlier one"
    return (end.time - start.time) * 1e3


def memcpy_async(dst, src, size, kind, stream):
    def copy():
        copied.append((src, dst, size, kind))
        ctypes.memmove(dst, src, size)

    Stream.known[stream].put(copy)


def memset_async(ptr, value, size, stream):
    Stream.known[stream].put(lambda: ctypes.memset(ptr, value, size))


def memcpy_peer_async(dst, dst_device, src, src_device, size, stream):
    memcpy_async(dst, src, size, 3, stream)


pinned_sizes = []


def pinned(size):
    pinned_sizes.append(size)
    return np.empty(size, np.uint8)


locked = {}  # address -> bytes of registered memory
copied = []  # (source, destination, bytes, kind) of copies as they are done


def host_register(start, nbytes, flags):
    assert flags == 1
    if Locking.refuses:
        raise CUDARuntimeError(2)
    if any(start < a + n and a < start + nbytes for a, n in locked.items()):
        raise CUDARuntimeError(712)  # cudaErrorHostMemoryAlreadyRegistered
    locked[start] = nbytes


def host_unregister(start):
    if start not in locked:
        raise CUDARuntimeError(713)  # cudaErrorHostMemoryNotRegistered
    del locked[start]


def pinned_memory(size, flags):
    """Of cudaHostAlloc: given back with the last array that has it."""
    if Locking.refuses:
        raise CUDARuntimeError(2)
    memory = (ctypes.c_uint8 * size)()
    start = ctypes.addressof(memory)
    locked[start] = size
    weakref.finalize(memory, locked.pop, start, None).atexit = False
    return memory


def pointer_attributes(place):
    Locking.asked += 1
    return SimpleNamespace(type=1 if any(a <= place < a + n for a, n in list(locked.items())) else 0)


class Locking:
    refuses = False
    asked = 0


def build(devices=1):
    """The module."""
    module = types.ModuleType("cupy")
    module.__spec__ = ModuleSpec("cupy", None)
    module.__version__ = "fake"
    module.__getattr__ = lambda name: getattr(np, name)
    module.ndarray = ndarray
    module.asnumpy = np.asarray
    module.RawModule = RawModule
    module.get_default_memory_pool = lambda: SimpleNamespace(free_all_blocks=lambda: None)
    runtime = SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError, getDeviceCount=lambda: devices, memGetInfo=lambda: (TOTAL, TOTAL), memcpyAsync=memcpy_async,
        memsetAsync=memset_async, getDeviceProperties=lambda i: {"name": b"Fake GPU", "integrated": 0},
        memcpyPeerAsync=memcpy_peer_async, memcpyHostToDevice=1, memcpyDeviceToHost=2, memcpyDeviceToDevice=3, driverGetVersion=lambda: 0,
        runtimeGetVersion=lambda: 0, deviceCanAccessPeer=lambda a, b: 1, deviceEnablePeerAccess=lambda a: None, eventQuery=event_query,
        pointerGetAttributes=pointer_attributes, memoryTypeHost=1, hostRegister=host_register, hostUnregister=host_unregister,
    )  # fmt: skip
    module.cuda = SimpleNamespace(
        Stream=Stream, Event=Event, Device=Device, Memory=Memory, MemoryPointer=MemoryPointer, runtime=runtime, get_elapsed_time=get_elapsed_time,
        alloc_pinned_memory=pinned, PinnedMemory=pinned_memory, PinnedMemoryPointer=lambda memory, offset: memory,
        get_current_stream=lambda: None, MemoryPool=MemoryPool, using_allocator=using_allocator,
    )  # fmt: skip
    return module


LIVE = "hetsched.executors.backends._cuda_live"
EVENTS = "hetsched.executors.backends._cuda_events"
PINS = "hetsched.executors.backends._cuda_pins"
FAULTS = "hetsched.executors.backends._cuda_faults"


def install(monkeypatch, devices=1):
    """Let the CUDA backend find a CuPy of NumPy; gives the backend."""
    from hetsched.executors.backends import cuda

    monkeypatch.setitem(sys.modules, "cupy", build(devices))
    # Kernels of NumPy run when they are captured, and not when their graph is launched.
    monkeypatch.setenv("HETSCHED_CUDA_GRAPHS", "0")
    # Imported anew, with this CuPy; behind the test it is what it was, or is not there, so that no test of a card meets it.
    for name in (PINS, EVENTS, FAULTS, LIVE):
        monkeypatch.setitem(sys.modules, name, None)
        del sys.modules[name]
    monkeypatch.setattr(cuda, "_listed", None)
    monkeypatch.setattr(cuda, "_speeds", lambda i, properties: {**dict.fromkeys(cuda._NEEDED, 1e-5), "float32": 1e11, "float64": 1e10, "bytes": 1e10,
                                                                "up_bytes": 1e9, "down_bytes": 1e9})  # fmt: skip
    return cuda
