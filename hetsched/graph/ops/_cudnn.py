"""Convolutions by NVIDIA's cuDNN, where version 9 of it is installed: CuPy 14 has no module for it, so it is called as the C library it is.

A shape's descriptors and its algorithm are found once. The algorithm is the first that cuDNN's own heuristics name (nothing is timed, so that every
run takes the same one) among those that give the same bits each time, calculate with float32's own products and not TF32's, and need at most 256 MiB
of workspace. Whatever cuDNN refuses is not asked for again: the caller then multiplies columns. `HETSCHED_CUDNN=0` leaves cuDNN out.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from hetsched.graph.ops._windows import Pair

SETTING = "HETSCHED_CUDNN"
_NAME = "cudnn64_9.dll" if sys.platform == "win32" else "libcudnn.so.9"
_PARTS = ("graph", "ops", "cnn", "heuristic", "engines_precompiled")
_MOST_NBYTES = 256 << 20
_MOST = 1 << 31  # cuDNN counts in 32 bits
_ALIGNED = 16  # bytes

_DATA_TYPES = {"f": 0, "d": 1}  # by `dtype.char`
_NCHW, _CROSS_CORRELATION, _FMA_MATH, _DETERMINISTIC, _DEFAULT_MATH = 0, 1, 3, 1, 0
_ALGORITHMS = 10  # more than cuDNN has of any kind


class _Perf(ctypes.Structure):
    """`cudnnConvolution*AlgoPerf_t`."""

    _fields_ = (
        ("algorithm", ctypes.c_int),
        ("status", ctypes.c_int),
        ("milliseconds", ctypes.c_float),
        ("nbytes", ctypes.c_size_t),
        ("determinism", ctypes.c_int),
        ("math", ctypes.c_int),
        ("reserved", ctypes.c_int * 3),
    )


Handle: TypeAlias = ctypes.c_void_p  # of anything of cuDNN's
_P, _I, _N = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
_FIND = [_P] * 5 + [_I, _P, _P]
_RUN = [_P] * 7 + [_I, _P, _N, _P, _P, _P]
_SIGNATURES: dict[str, list[Any]] = {
    "cudnnCreate": [_P],
    "cudnnSetStream": [_P, _P],
    "cudnnCreateTensorDescriptor": [_P],
    "cudnnSetTensor4dDescriptor": [_P] + [_I] * 6,
    "cudnnCreateFilterDescriptor": [_P],
    "cudnnSetFilter4dDescriptor": [_P] + [_I] * 6,
    "cudnnCreateConvolutionDescriptor": [_P],
    "cudnnSetConvolution2dDescriptor": [_P] + [_I] * 8,
    "cudnnSetConvolutionGroupCount": [_P, _I],
    "cudnnSetConvolutionMathType": [_P, _I],
    "cudnnGetConvolutionForwardAlgorithm_v7": _FIND,
    "cudnnGetConvolutionBackwardDataAlgorithm_v7": _FIND,
    "cudnnGetConvolutionBackwardFilterAlgorithm_v7": _FIND,
    "cudnnConvolutionForward": _RUN,
    "cudnnConvolutionBackwardData": _RUN,
    "cudnnConvolutionBackwardFilter": _RUN,
}
# What of (x, w, y) goes in, in cuDNN's order, and what comes out.
_ROLES = {"Forward": (0, 1, 2), "BackwardData": (1, 2, 0), "BackwardFilter": (0, 2, 1)}


class Geometry(NamedTuple):
    """Zeros before and behind rows and columns, steps of windows and of what is in them, groups of channels."""

    padding: tuple[Pair, Pair]
    stride: Pair
    dilation: Pair
    groups: int


class Shape(NamedTuple):
    """A convolution, y [n, o, oh, ow] of x [n, c, h, w] and w [o, c / groups, kh, kw]."""

    x: tuple[int, ...]
    w: tuple[int, ...]
    y: tuple[int, ...]
    char: str  # of the dtype
    geometry: Geometry


class _Refused(Exception):
    """cuDNN returned a status other than success."""


class _Plan(NamedTuple):
    descriptors: tuple[Handle, Handle, Handle]  # of x, w and y
    convolution: Handle
    algorithm: int
    nbytes: int  # of workspace


# 1 and 0, where C finds them.
_NUMBERS = {"f": (ctypes.c_float(1), ctypes.c_float(0)), "d": (ctypes.c_double(1), ctypes.c_double(0))}
_FACTORS = {char: (ctypes.byref(one), ctypes.byref(zero)) for char, (one, zero) in _NUMBERS.items()}


class Cudnn:
    """The library with what is kept of it: handles that nobody is using, plans, and what was refused."""

    def __init__(self, library: Any) -> None:
        self._library = library
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, ctypes.c_int
        self._free: dict[int, list[tuple[Handle, int]]] = {}  # by device: a handle and the stream that it is set to
        self._plans: dict[tuple[int, str, Shape], _Plan | None] = {}
        self._lock = threading.Lock()
        self._is_usable = True

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise _Refused(f"{name} returned {status}")

    def _made(self, kind: str) -> Handle:
        made = ctypes.c_void_p()
        self._call(f"cudnnCreate{kind}", ctypes.byref(made))
        return made

    def _handle(self, device: int, stream: int) -> tuple[Handle, int]:
        """A handle that nobody else uses, set to a stream; one that is set to it already, where there is one."""
        with self._lock:
            free = self._free.setdefault(device, [])
            for i, (_, its) in enumerate(free):
                if its == stream:
                    return free.pop(i)
            handle = free.pop()[0] if free else self._made("")
        self._call("cudnnSetStream", handle, stream)
        return handle, stream

    def run(self, xp: Any, way: str, shape: Shape, pointers: Sequence[int], workspace: Any) -> bool:
        """Enqueue on the current stream. way: one of `_ROLES`; pointers: to x, w and y, of which the way's last is written."""
        device = int(xp.cuda.Device().id)
        key = (device, way, shape)
        if not self._is_usable or (key in self._plans and self._plans[key] is None):
            return False
        try:
            used = self._handle(device, int(xp.cuda.get_current_stream().ptr))
        except _Refused:
            self._is_usable = False  # made for another CUDA than the driver's, say
            return False
        try:
            plan = self._plans.get(key)
            if plan is None:
                with self._lock:
                    plan = self._plans[key] = self._planned(used[0], way, shape)
            room = workspace
            if plan.nbytes and (room is None or room.nbytes < plan.nbytes):
                room = xp.empty(plan.nbytes, xp.uint8)  # of the library's pool: the stream is done with it before others get it
            one, zero = _FACTORS[shape.char]
            i, j, out = _ROLES[way]
            of = plan.descriptors
            scratch = int(room.data.ptr) if plan.nbytes else None
            self._call(
                f"cudnnConvolution{way}", used[0], one, of[i], pointers[i], of[j], pointers[j], plan.convolution, plan.algorithm, scratch,
                plan.nbytes, zero, of[out], pointers[out],
            )  # fmt: skip
        except _Refused:
            self._plans[key] = None
            return False
        finally:
            with self._lock:
                self._free[device].append(used)
        return True

    def _planned(self, handle: Handle, way: str, shape: Shape) -> _Plan:
        kind, ((up, _), (left, _)) = _DATA_TYPES[shape.char], shape.geometry.padding
        x, y, w = self._made("TensorDescriptor"), self._made("TensorDescriptor"), self._made("FilterDescriptor")
        self._call("cudnnSetTensor4dDescriptor", x, _NCHW, kind, *shape.x)
        self._call("cudnnSetTensor4dDescriptor", y, _NCHW, kind, *shape.y)
        self._call("cudnnSetFilter4dDescriptor", w, kind, _NCHW, *shape.w)
        convolution, steps = self._made("ConvolutionDescriptor"), (*shape.geometry.stride, *shape.geometry.dilation)
        self._call("cudnnSetConvolution2dDescriptor", convolution, up, left, *steps, _CROSS_CORRELATION, kind)
        self._call("cudnnSetConvolutionGroupCount", convolution, shape.geometry.groups)
        self._call("cudnnSetConvolutionMathType", convolution, _FMA_MATH)
        descriptors = (x, w, y)
        first, second, out = (descriptors[i] for i in _ROLES[way])
        found, count = (_Perf * _ALGORITHMS)(), ctypes.c_int(0)
        find = f"cudnnGetConvolution{way}Algorithm_v7"
        self._call(find, handle, first, second, convolution, out, _ALGORITHMS, ctypes.byref(count), ctypes.byref(found))
        for p in found[: count.value]:
            if not p.status and p.determinism == _DETERMINISTIC and p.math in (_DEFAULT_MATH, _FMA_MATH) and p.nbytes <= _MOST_NBYTES:
                return _Plan(descriptors, convolution, p.algorithm, p.nbytes)
        raise _Refused(f"no algorithm for {shape}")


# Finding it -----------------------------------------------------------------------------------------------------------------------

_opening = threading.Lock()
_opened: list[Cudnn | None] = []


def _candidates() -> list[str]:
    """Where cuDNN may be: what the process has loaded already, NVIDIA's wheel, and what the system's linker knows."""
    found = []
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
        found += [line.split(maxsplit=5)[5] for line in lines if line.rstrip().endswith(f"/{_NAME}")][:1]
    except OSError:
        pass
    try:
        spec = find_spec("nvidia.cudnn")
    except (ImportError, ValueError):
        spec = None
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        found += [str(p) for p in (Path(folder) / "lib" / _NAME, Path(folder) / "bin" / _NAME) if p.is_file()]
    return [*found, _NAME]


def _loaded(path: str) -> ctypes.CDLL:
    """The library with its parts. Where one is missing it does not return an error but ends the process: so each is loaded before it is called."""
    library = ctypes.CDLL(path)
    for part in _PARTS:
        ctypes.CDLL(str(Path(path).with_name(_NAME.replace("cudnn", f"cudnn_{part}", 1))))
    return library


def _open() -> Cudnn | None:
    for path in _candidates():
        try:
            return Cudnn(_loaded(path))
        except (OSError, AttributeError):  # it is not there, or is another version
            continue
    return None


def library(xp: Any) -> Cudnn | None:
    """cuDNN, loaded at the first use; None where `xp` is not CuPy, where it is not installed, and where the environment leaves it out."""
    # What stands in for CuPy has no file: its arrays lie on the host.
    is_cupy = getattr(xp, "__name__", "") == "cupy" and getattr(xp, "__file__", None) is not None
    if not is_cupy or os.environ.get(SETTING, "").strip().lower() in ("0", "false", "no", "off"):
        return None
    if not _opened:
        with _opening:
            if not _opened:
                _opened.append(_open())
    return _opened[0]


def convolve(xp: Any, way: str, x: Any, w: Any, y: Any, geometry: Geometry, workspace: Any) -> bool:
    """Enqueue a product of a convolution: `Forward` writes y, `BackwardData` x, `BackwardFilter` w; False where cuDNN does not do it."""
    rows, columns = geometry.padding
    char = y.dtype.char
    if rows[0] != rows[1] or columns[0] != columns[1] or char not in _DATA_TYPES:
        return False
    dnn = library(xp)
    if dnn is None or not all(a.dtype.char == char and a.flags.c_contiguous and 0 < a.size < _MOST for a in (x, w, y)):
        return False
    pointers = (int(x.data.ptr), int(w.data.ptr), int(y.data.ptr))
    if any(p % _ALIGNED for p in pointers):
        return False
    return dnn.run(xp, way, Shape(x.shape, w.shape, y.shape, char, geometry), pointers, workspace)


def _in_a_child() -> None:
    """A child process has no use of its parent's handles."""
    global _opening
    _opening = threading.Lock()
    _opened.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_a_child)
