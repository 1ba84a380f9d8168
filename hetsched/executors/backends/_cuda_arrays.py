"""Arrays in the arena of an opened CUDA device."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from hetsched.errors import InternalError

if TYPE_CHECKING:
    from hetsched.executors.backends._cuda_live import LiveDevice


class DeviceArray:
    """An array in the arena of an opened device; only kernels look inside `array`, an array of CuPy."""

    __slots__ = ("array", "dtype", "live", "nbytes", "pointer", "shape", "size")

    def __init__(self, live: LiveDevice, array: Any) -> None:
        self.live = live
        self.array = array
        self.pointer = int(array.data.ptr)  # of the first element
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.dtype: np.dtype[Any] = np.dtype(array.dtype)
        self.size = math.prod(self.shape)
        self.nbytes = self.size * self.dtype.itemsize

    @property
    def buffer(self) -> Any:
        """The arena that it lies in."""
        return self.live.memory

    @property
    def offset(self) -> int:
        """Where it begins: two arrays of one arena meet where their bytes from here on do."""
        return self.pointer

    def part(self, first: int, shape: tuple[int, ...]) -> DeviceArray:
        """The elements from number `first` on under another shape; nothing is copied."""
        size = math.prod(shape)
        if first < 0 or first + size > self.size:
            raise InternalError(f"no {self.dtype}{list(shape)} from element {first} on lies inside {self!r}")
        return DeviceArray(self.live, self.array.reshape(-1)[first : first + size].reshape(shape))

    def __repr__(self) -> str:
        return f"<{self.dtype}{list(self.shape)} of {self.live.name}>"
