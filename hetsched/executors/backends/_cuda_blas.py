"""Matrix products in a CUDA graph: cuBLAS called as it is. CuPy 14 calls it in no capture, and so no graph of its own has a product in it.

The library is the one that CuPy has loaded. cuBLAS counts by columns: what is C = A B by rows is C' = B' A' to it, and a transposed view is a flag,
no copy. It is handed a workspace: memory that it took for itself in a capture would be the graph's ("cuBLAS Library", 2.1, on CUDA graphs).
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Sequence
from typing import Any

_WORKSPACE_NBYTES = 32 << 20  # what NVIDIA advises for Hopper, the most of all architectures
_FUNCTIONS = {"float32": ("cublasSgemm_v2", ctypes.c_float), "float64": ("cublasDgemm_v2", ctypes.c_double)}


def library(xp: Any) -> Any:
    """cuBLAS. Raises `ImportError` or `OSError` where it is not here."""
    importlib.import_module("cupy_backends.cuda.libs.cublas")  # finds and loads it
    return ctypes.CDLL(f"libcublas.so.{xp.cuda.runtime.runtimeGetVersion() // 1000}")


def layout(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> tuple[int, int] | None:
    """(1 if the matrix lies column by column else 0, elements from one of its rows or columns to the next); None for others.

    >>> layout((2, 3), (12, 4), 4), layout((3, 2), (4, 12), 4), layout((2, 3), (24, 8), 4)
    ((0, 3), (1, 3), None)
    """
    for flag, (n, inner) in enumerate((shape, shape[::-1])):
        step, within = strides if flag == 0 else strides[::-1]
        if (inner == 1 or within == itemsize) and (n == 1 or (step >= inner * itemsize and step % itemsize == 0)):
            return flag, max(step // itemsize if n > 1 else inner, 1)
    return None


class Products:
    """`matmul` on a stream, in a capture or not. Raises `RuntimeError` with cuBLAS's number where it refuses."""

    def __init__(self, xp: Any, stream: Any, blas: Any) -> None:
        self._xp, self._blas = xp, blas
        self._handle = ctypes.c_void_p()
        self._ask("cublasCreate_v2", ctypes.byref(self._handle))
        self._workspace = xp.cuda.Memory(_WORKSPACE_NBYTES)
        self._ask("cublasSetStream_v2", self._handle, ctypes.c_void_p(stream.ptr))  # forgets a workspace
        self._ask("cublasSetWorkspace_v2", self._handle, ctypes.c_void_p(self._workspace.ptr), ctypes.c_size_t(_WORKSPACE_NBYTES))

    def _ask(self, function: str, *arguments: Any) -> None:
        status = getattr(self._blas, function)(*arguments)
        if status:
            raise RuntimeError(f"{function} gave cuBLAS status {status}")

    def matmul(self, a: Any, b: Any, out: Any) -> Any:
        """out = a b; matrices or stacks of as many. What cuBLAS does not do as it lies is left to CuPy, which refuses it in a capture."""
        if a.ndim == b.ndim == out.ndim == 3 and len(a) == len(b):
            for x, y, z in zip(a, b, out, strict=True):
                self.matmul(x, y, z)
            return out
        name, lies = str(out.dtype), [layout(x.shape, x.strides, x.itemsize) if x.ndim == 2 else None for x in (a, b, out)]
        is_known = name in _FUNCTIONS and a.dtype == b.dtype == out.dtype and None not in lies
        if not is_known or lies[2] != (0, max(out.shape[1], 1)) or not a.size or not b.size:
            return self._xp.matmul(a, b, out=out)
        (flag_a, step_a), (flag_b, step_b), (_, step) = (x for x in lies if x is not None)
        function, number = _FUNCTIONS[name]
        one, zero = number(1), number(0)
        m, k = a.shape
        at = [ctypes.c_void_p(x.data.ptr) for x in (b, a, out)]
        self._ask(
            function, self._handle, flag_b, flag_a, b.shape[1], m, k,
            ctypes.byref(one), at[0], step_b, at[1], step_a, ctypes.byref(zero), at[2], step,
        )  # fmt: skip
        return out

    def close(self) -> None:
        """Give back the handle and its workspace; what was captured with it may not be launched any more."""
        try:
            self._ask("cublasDestroy_v2", self._handle)
        finally:
            self._workspace = None  # whoever keeps what stands for CuPy (`Capturing`) keeps this, and shall not keep that


class Capturing:
    """Stands for CuPy while launches are captured: all of it, with another `matmul`. Equal to it: kernels that are kept by library are found."""

    def __init__(self, xp: Any, products: Products) -> None:
        self._xp = xp
        self.matmul = products.matmul

    @property
    def plain(self) -> Any:
        """CuPy itself, for those who keep something by it: this holds memory of a device."""
        return getattr(self._xp, "plain", self._xp)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._xp, name)

    def __eq__(self, other: object) -> bool:
        return other is self or other is self._xp

    def __hash__(self) -> int:
        return hash(self._xp)


class Doubting(Capturing):
    """Stands for CuPy where a user's kernel is launched: all of it, and `doubt` (see `hetsched.graph.op.OpenCL`)."""

    def __init__(self, xp: Any, doubt: Any) -> None:
        self._xp = xp
        self.doubt = doubt

    def __eq__(self, other: object) -> bool:
        return other is self or self._xp == other

    __hash__ = Capturing.__hash__
