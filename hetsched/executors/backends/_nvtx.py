"""Names for NVIDIA's profilers: what is handed to a CUDA stream is handed over inside an NVTX range that is named after its task.

Nsight Systems shows ranges on the thread that hands over, and, projected, on the device's rows. The `nvtx` package is used where it is installed,
else CuPy's own module. Where no profiler looks on, calls of the C library do nothing ("NVTX C API Reference").
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple


class Ranges(NamedTuple):
    """push: begin a range of this name inside the ranges begun before on this thread. pop: end the last one."""

    push: Callable[[str], Any]
    pop: Callable[[], Any]


def find() -> Ranges | None:
    """What begins and ends ranges; None where there is no NVTX."""
    try:
        nvtx = importlib.import_module("nvtx")
        return Ranges(nvtx.push_range, nvtx.pop_range)
    except (ImportError, AttributeError):
        pass
    try:
        nvtx = importlib.import_module("cupy").cuda.nvtx
        if getattr(nvtx, "available", True):
            return Ranges(nvtx.RangePush, nvtx.RangePop)
    except (ImportError, AttributeError):
        pass
    return None
