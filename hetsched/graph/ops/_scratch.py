"""Workspace as typed pieces: a kernel and its `workspace` rule name the same counts, so they cannot disagree."""

from __future__ import annotations

from typing import Any

import numpy as np

_ALIGN = 64  # bytes: a cache line, and what the widest vector loads like


def scratch_nbytes(dtype: Any, *counts: int) -> int:
    """Bytes that `scratch` needs for arrays of `counts` elements of `dtype`."""
    itemsize = np.dtype(dtype).itemsize
    return sum(-(-count * itemsize // _ALIGN) * _ALIGN for count in counts)


def scratch(xp: Any, workspace: Any, dtype: Any, *counts: int) -> list[Any]:
    """Flat arrays of `counts` elements of `dtype`, cut from `workspace` (bytes), or allocated where it is None. Their content is arbitrary."""
    nbytes = scratch_nbytes(dtype, *counts)
    flat = xp.empty(nbytes, dtype=xp.uint8) if workspace is None else workspace
    pieces, at, itemsize = [], 0, np.dtype(dtype).itemsize
    for count in counts:
        pieces.append(flat[at : at + count * itemsize].view(dtype))
        at += -(-count * itemsize // _ALIGN) * _ALIGN
    return pieces
