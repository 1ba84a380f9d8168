"""Fresh memory of the host whose pages are there before a run begins.

The system gives pages when they are first written, and a task that writes to fresh memory waits for them. Where the processor is shared by virtual
machines that is dear (measured: 1.1 ms for 2 MiB in pages of 4 KiB, 0.25 in a huge one; writing what is there takes 0.08). So arenas and outputs are
asked for in huge pages and touched where they are made: a run is faster by what its tasks do not wait for, and takes what it is planned to take.
"""

from __future__ import annotations

import mmap
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

Bytes: TypeAlias = NDArray[np.uint8]
_Array = TypeVar("_Array", bound="NDArray[Any]")
PAGE = 4096
HUGE = 1 << 21
# Less than this is not worth a thought; beyond this touching waits for the first use, where several threads can share it.
LEAST_BYTES, MOST_BYTES = 1 << 16, 1 << 28


def area(nbytes: int) -> Bytes:
    """Uninitialised bytes, whatever their address is a multiple of; the first `MOST_BYTES` of them in pages that are there."""
    if nbytes < HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return touched(np.empty(nbytes, np.uint8))
    try:
        mapped = mmap.mmap(-1, nbytes + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        mapped.madvise(mmap.MADV_HUGEPAGE)
    except (OSError, ValueError):  # a system that does not know huge pages, or has no memory: NumPy says so better
        return touched(np.empty(nbytes, np.uint8))
    raw = np.frombuffer(mapped, np.uint8)
    start = -raw.ctypes.data % HUGE
    return touched(raw[start : start + nbytes])


def touched(array: _Array) -> _Array:
    """A contiguous array that holds nothing yet, its first `MOST_BYTES` in pages that are there."""
    if array.nbytes >= LEAST_BYTES:
        array.reshape(-1).view(np.uint8)[:MOST_BYTES:PAGE] = 0
    return array
