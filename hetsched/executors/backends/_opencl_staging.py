"""Pinned memory of an OpenCL device, through which copies to and from a device with memory of its own go.

A driver can copy by itself, while the host goes on, from memory that it has allocated (CL_MEM_ALLOC_HOST_PTR) and that stays mapped (NVIDIA, OpenCL
Best Practices Guide, Pinned Memory); from any other memory it waits, or stages by itself. A device that shares the host's memory copies at once:
staging would copy twice there.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import pyopencl as cl

# Of a copy; the next is prepared while one is on its way.
CHUNK_NBYTES = 4 << 20
# Of an upload at a time; the first is used again when its copy is done.
MOST_CHUNKS = 8
_LEAST_NBYTES = 64 << 10
_SETTING = "HETSCHED_OPENCL_STAGING"


def shares_memory(device: Any) -> bool:
    """True for a device whose memory is the host's. OpenCL 2.0 deprecates the question; where a driver does not answer, a processor's is."""
    try:
        return bool(device.host_unified_memory)
    except cl.Error:
        return bool(device.type & cl.device_type.CPU)


def wants_staging(device: Any) -> bool:
    """True for a device that does not share the host's memory; `HETSCHED_OPENCL_STAGING` (1 or 0) says otherwise."""
    asked = os.environ.get(_SETTING, "").strip().lower()
    return asked in ("1", "true", "yes", "on") if asked else not shares_memory(device)


class Block(NamedTuple):
    """Pinned memory: its bytes on the host, and the buffer that they belong to."""

    bytes: Any
    buffer: Any


class PinnedPool:
    """Blocks of pinned memory that are used again; their sizes are powers of two."""

    def __init__(self, context: Any, queue: Any) -> None:
        self._context = context
        self._queue = queue
        self._free: dict[int, list[Block]] = {}
        self._all: list[Block] = []
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes allocated so far."""
        return sum(block.bytes.size for block in self._all)

    def take(self, nbytes: int) -> Block:
        """A block of at least `nbytes`."""
        size = max(_LEAST_NBYTES, 1 << max(nbytes - 1, 0).bit_length())
        with self._lock:
            free = self._free.get(size)
            if free:
                return free.pop()
            flags: Any = cl.mem_flags.READ_WRITE | cl.mem_flags.ALLOC_HOST_PTR
            both: Any = cl.map_flags.READ | cl.map_flags.WRITE
            buffer = cl.Buffer(self._context, flags, size)
            mapped: Any = cl.enqueue_map_buffer(self._queue, buffer, both, 0, (size,), np.dtype(np.uint8), is_blocking=True)
            array, _ = mapped
            block = Block(array, buffer)
            self._all.append(block)
            return block

    def give(self, block: Block) -> None:
        """Take a block back that nothing reads or writes any more."""
        with self._lock:
            self._free.setdefault(block.bytes.size, []).append(block)

    def close(self) -> None:
        """Unmap and release everything; the device does nothing any more."""
        for block in self._all:
            with suppress(cl.Error):
                block.bytes.base.release(self._queue)
        with suppress(cl.Error):
            self._queue.finish()
        for block in self._all:
            block.buffer.release()
        self._all.clear()
        self._free.clear()
