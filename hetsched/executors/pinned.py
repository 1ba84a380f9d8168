"""Arrays of the host in page-locked memory, which devices copy by themselves, at the full speed of the link and behind the host's back."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray


def pinned_empty(shape: int | tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
    """An uninitialised array in page-locked memory where there is a CUDA device; where there is none, or nothing more may be locked, `numpy.empty`.

    An ordinary array to everybody else: fill it and give it to runs. What runs read from it goes to the device without a stop in between (an NVIDIA
    H100 with PCIe 5: 53 GB/s instead of 8). Locking takes time, so make it once and use it again; the memory is given back with the array. It is
    CUDA's: a process that is forked off had better leave it alone. Arrays that are pinned otherwise (`cupyx.empty_pinned`,
    `torch.Tensor.pin_memory().numpy()`) are as good. While a run has it, it must not be changed, as all inputs. Raises `MemoryError`; `TypeError` for
    a dtype that NumPy does not know.
    """
    extents = (shape,) if isinstance(shape, int) else tuple(shape)
    kind: np.dtype[Any] = np.dtype(dtype)
    nbytes = math.prod(extents) * kind.itemsize
    raw = None if kind.hasobject or nbytes <= 0 else import_module("hetsched.executors.backends.cuda").pinned_bytes(nbytes)
    return np.empty(extents, kind) if raw is None else np.ndarray(extents, kind, raw)
