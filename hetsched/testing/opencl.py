"""Kernels in OpenCL C under `check_op`: `check_op(op, cases, runners=opencl.runners(), dtypes=opencl.dtypes())`.

Inputs, outputs and workspace lie in one arena at offsets that are multiples of 64 bytes, in a random-looking order and with gaps between them, all
filled with 0xFF (NaN, -1) before a launch. After it the gaps must be untouched, and so must the inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from hetsched.errors import PlacementError
from hetsched.graph.op import Attributes, Kernel
from hetsched.graph.spec import AnySpec, array_form
from hetsched.machine import Device
from hetsched.testing.ops import Runner, _cropped

_STEP = 64


def available() -> bool:
    """True if there is an OpenCL device that works."""
    from hetsched.executors.backends import opencl

    return bool(opencl.find().devices)


def runners(device: str = "opencl:0") -> dict[str, Runner]:
    """What `check_op` takes; raises `PlacementError` where the device is not here (see `available`)."""
    return {"opencl": runner(device)}


def dtypes(device: str = "opencl:0") -> tuple[str, ...]:
    """The dtypes of `check_op` that the device calculates in."""
    return ("float64", "float32") if _opened(device, 0).has_fp64 else ("float32",)


@cache
def runner(device: str = "opencl:0") -> Runner:
    """A runner of kernels in OpenCL C on a device of this machine, which it keeps open."""
    live = _opened(device, 1 << 20)
    stream = live.stream("compute")

    def run(kernel: Kernel, inputs: Sequence[Any], out_specs: Sequence[AnySpec], nbytes: int, attributes: Attributes) -> list[Any]:
        nonlocal live, stream
        forms = [array_form(s) for s in out_specs]
        sizes = [x.nbytes for x in inputs if isinstance(x, np.ndarray)] + [f.nbytes for f in forms if f is not None] + [nbytes]
        starts, total = _layout(sizes)
        if total > live.nbytes:
            live.close()
            live = _opened(device, 2 * total)
            stream = live.stream("compute")
        everything = live.array(0, (total,), np.uint8)
        stream.fill(everything, 0xFF)
        free = iter(starts)
        given: list[Any] = []
        for x in inputs:
            if isinstance(x, np.ndarray):
                given.append(live.array(next(free), x.shape, x.dtype))
                stream.upload(x, given[-1])
            else:
                given.append(x)
        outputs = [None if f is None else live.array(next(free), f.bounds, f.dtype) for f in forms]
        workspace = live.array(next(free), (nbytes,), np.uint8) if nbytes else None
        written = stream.launch(kernel, given, outputs, workspace, attributes)

        host = np.empty(total, np.uint8)
        stream.download(everything, host)
        fault: Exception | None = None
        try:
            stream.record().wait()
        except IndexError as error:  # the kernel has told of a mistake in its inputs: it may not touch other memory all the same
            fault = error
        outside = np.ones(total, bool)
        for start, size in zip(starts, sizes, strict=True):
            outside[start : start + size] = False
        wrong = np.flatnonzero(outside & (host != 0xFF))
        assert not len(wrong), f"the kernel wrote outside its arrays, first at byte {wrong[0]} of {_places(given, outputs, workspace)}"
        for i, (x, there) in enumerate(zip(inputs, given, strict=True)):
            if isinstance(x, np.ndarray):
                assert _bytes(host, there).tobytes() == x.tobytes(), f"the opencl kernel wrote input {i}"
        if fault is not None:
            raise fault
        return _cropped([o if f is None else _bytes(host, o).copy() for o, f in zip(outputs, forms, strict=True)], out_specs, written)

    return run


def _opened(device: str, nbytes: int) -> Any:
    from hetsched.executors.backends import opencl

    try:
        return opencl.open(Device(device, "opencl"), nbytes)
    except PlacementError as error:
        raise PlacementError(f"{error}; to check kernels in OpenCL C, pip install 'hetsched[opencl]'") from error


def _layout(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where arrays of `sizes` bytes begin, none at 0, each behind a gap of at least 64 bytes; and the bytes in all."""
    starts, at = [], 0
    for i, size in enumerate(sizes):
        at = -(-at // _STEP) * _STEP + _STEP * (1 + i % 3)
        starts.append(at)
        at += size
    return starts, -(-at // _STEP) * _STEP + _STEP


def _bytes(host: Any, array: Any) -> Any:
    return host[array.offset : array.offset + array.nbytes].view(array.dtype).reshape(array.shape)


def _places(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> str:
    named = [*((f"input {i}", x) for i, x in enumerate(inputs)), *((f"output {i}", x) for i, x in enumerate(outputs)), ("workspace", workspace)]
    return ", ".join(f"{name}: {x.offset} to {x.offset + x.nbytes}" for name, x in named if hasattr(x, "offset"))
