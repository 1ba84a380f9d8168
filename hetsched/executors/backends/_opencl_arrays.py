"""Arrays in the arena of an opened OpenCL device, and what kernels are given: their types, and how many work items form a group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hetsched.errors import InternalError
from hetsched.executors.backends._opencl_faults import Fault
from hetsched.executors.backends._opencl_programs import DeviceError

if TYPE_CHECKING:
    from hetsched.executors.backends._opencl_live import LiveDevice

_FEW_ITEMS = 4096


class DeviceArray:
    """A dense array in the arena of an opened device: a handle, no data. `offset` is in bytes, `first` the same in elements."""

    __slots__ = ("buffer", "dtype", "first", "live", "nbytes", "offset", "shape", "size")

    def __init__(self, live: LiveDevice, buffer: Any, offset: int, shape: tuple[int, ...], dtype: Any) -> None:
        self.live = live
        self.buffer = buffer
        self.offset = offset
        self.shape = shape
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.size = math.prod(shape)
        self.nbytes = self.size * self.dtype.itemsize
        self.first, rest = divmod(offset, self.dtype.itemsize)
        if rest:
            raise InternalError(f"an array of {self.dtype} cannot begin {offset} bytes into an arena: no multiple of {self.dtype.itemsize}")

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def part(self, start: int, shape: tuple[int, ...], dtype: Any = None) -> DeviceArray:
        """The elements from number `start` on (of `dtype`, if given) under another shape; nothing is copied."""
        kind = self.dtype if dtype is None else np.dtype(dtype)
        out = DeviceArray(self.live, self.buffer, self.offset + start * kind.itemsize, tuple(shape), kind)
        if start < 0 or out.offset + out.nbytes > self.offset + self.nbytes:
            raise InternalError(f"no {kind.name}{list(shape)} from element {start} on lies inside {self!r}")
        return out

    def reshape(self, *shape: Any) -> DeviceArray:
        """The same elements under another shape of the same size."""
        wanted = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        if math.prod(wanted) != self.size:
            raise InternalError(f"{self!r} has {self.size} elements, not those of {list(wanted)}")
        return self.part(0, wanted)

    def __repr__(self) -> str:
        return f"<{self.dtype.name}{list(self.shape)} at byte {self.offset} of {self.live.name}>"


def group_size(global_size: tuple[int, ...]) -> tuple[int, ...]:
    """Work items of a group on a processor, where the kernel leaves it open.

    PoCL compiles a kernel anew (about 80 ms) for every local size, and left to itself it chooses one for every global size; so the choice is from a
    short list. A group runs on one core: few items are taken to be large ones and go one by one, many are grouped to share the start of a group.
    """
    if math.prod(global_size) > _FEW_ITEMS:
        for n in (64, 16, 4):
            if global_size[0] % n == 0:
                return (n,) + (1,) * (len(global_size) - 1)
    return (1,) * len(global_size)


def types_of(function: str, args: Sequence[Any]) -> tuple[Any, ...]:
    """The types of a kernel's parameters, None for memory."""
    types: list[Any] = []
    for x in args:
        if type(x) is DeviceArray:
            types += (None, np.dtype(np.int64))
        elif type(x) is Fault:
            types += (None, np.dtype(np.int64), np.dtype(np.int64))
        elif isinstance(x, np.generic) and x.dtype.kind in "iuf":
            types.append(x.dtype)
        else:
            raise DeviceError(f"kernel {function!r}: an argument must be an array of the device or a NumPy number, got {x!r}")
    return tuple(types)


def shown(args: Sequence[Any]) -> str:
    return ", ".join(repr(x) for x in args)
