"""Errors of CUDA by their numbers. Pure: nothing here needs CuPy or a device."""

from __future__ import annotations

# Errors after which CUDA wants the process to be started anew (CUDA runtime API, cudaError: "this leaves the process in an inconsistent state"),
# and those of devices that are no more.
STICKY = {46, 100, 101, 201, 214, 700, 701, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 999}
_OUT_OF_MEMORY = 2
_CUBLAS_ALLOC_FAILED = 3


def status_of(error: BaseException) -> int | None:
    """The number of a CUDA error, None for others."""
    status = getattr(error, "status", None)
    return int(status) if isinstance(status, int) else None


def is_out_of_memory(error: BaseException) -> bool:
    """True where the device had no room: CUDA's own answer, cuBLAS's, and that of CuPy's pool."""
    known = {"CUBLASError": _CUBLAS_ALLOC_FAILED}.get(type(error).__name__, _OUT_OF_MEMORY)
    return isinstance(error, MemoryError) or status_of(error) == known


def is_cudas(error: BaseException) -> bool:
    """True for errors of CUDA's runtime, driver and libraries."""
    return type(error).__module__.startswith(("cupy_backends", "cupy.cuda")) and type(error).__name__ != "CompileException"
