"""What backends of devices with memory of their own share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hetsched.errors import InternalError


def alike(a: Any, b: Any) -> bool:
    """True if there are bytes to copy; raises where two arrays are not of one spec."""
    if tuple(a.shape) != tuple(b.shape) or a.dtype != b.dtype:
        raise InternalError(f"cannot copy {a.dtype}{list(a.shape)} to {b.dtype}{list(b.shape)}")
    return bool(a.nbytes)


def inside(offset: int, shape: tuple[int, ...], dtype: Any, arena_nbytes: int) -> np.dtype[Any]:
    """The dtype of an array that begins `offset` bytes into an arena; raises `InternalError` unless it lies in it, at a multiple of its item."""
    kind: np.dtype[Any] = np.dtype(dtype)
    nbytes = math.prod(shape) * kind.itemsize
    if offset % kind.itemsize:
        raise InternalError(f"an array of {kind} cannot begin {offset} bytes into an arena: no multiple of {kind.itemsize}")
    if offset < 0 or offset + nbytes > arena_nbytes:
        raise InternalError(f"{kind.name}{list(shape)} at byte {offset} does not lie in the arena of {arena_nbytes} bytes")
    return kind
