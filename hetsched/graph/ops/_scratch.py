"""Workspace as typed pieces: a kernel and its `workspace` rule name the same counts, so they cannot disagree."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

_ALIGN = 64  # bytes: a cache line, and what the widest vector loads like


@lru_cache(maxsize=4096)
def _layout(dtype: Any, counts: tuple[int, ...]) -> tuple[int, tuple[slice, ...]]:
    """Bytes in all, and where each piece lies, in elements."""
    step = _ALIGN // np.dtype(dtype).itemsize
    pieces, at = [], 0
    for count in counts:
        pieces.append(slice(at, at + count))
        at += -(-count // step) * step
    return at * np.dtype(dtype).itemsize, tuple(pieces)


def scratch_nbytes(dtype: Any, *counts: int) -> int:
    """Bytes that `scratch` needs for arrays of `counts` elements of `dtype`."""
    return _layout(dtype, counts)[0]


def scratch(xp: Any, workspace: Any, dtype: Any, *counts: int) -> list[Any]:
    """Flat arrays of `counts` elements of `dtype`, cut from `workspace` (bytes), or allocated where it is None. Their content is arbitrary.

    1 us for one piece, 1.2 for three.
    """
    nbytes, pieces = _layout(dtype, counts)
    flat = xp.empty(nbytes, dtype=xp.uint8) if workspace is None else workspace[:nbytes]
    flat = flat.view(dtype)
    return [flat[piece] for piece in pieces]
