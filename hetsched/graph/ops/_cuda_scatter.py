"""CUDA C++ that adds rows up where indices say, the gradient of an embedding: in the order of the rows, so the bits are NumPy's, each time.

A block for each row of the updates looks whether an earlier one has its index; the first of equal ones adds them all up. That is as many comparisons
as the square of the rows, of which a device makes 1e12 a second: up to 16,384 rows. More are added up atomically by CuPy, in whatever order.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hetsched.graph.ops._cuda_small import _HEAD, _TYPES, _function, _typedef

_THREADS = 128
_MOST_ROWS = 1 << 14
_MOST = 1 << 31

_SCATTER = """
extern "C" __global__ void scatter_add(const B *indices, const T *updates, T *out, u32 rows, u32 width, u32 places) {
    __shared__ int found;
    __shared__ unsigned char equal[1024];
    const u32 t = threadIdx.x, row = blockIdx.x % rows, lead = blockIdx.x / rows;
    const B mine = indices[row];
    if (mine < 0 || mine >= places) return;
    if (t == 0) found = 0;
    __syncthreads();
    for (u32 j = t; j < row; j += 128) if (indices[j] == mine) { found = 1; break; }
    __syncthreads();
    if (found) return;
    const T *from = updates + (u64)lead * rows * width;
    T *to = out + ((u64)lead * places + (u64)mine) * width;
    for (u32 c = t; c < width; c += 128) to[c] = from[(u64)row * width + c];
    for (u32 start = row + 1; start < rows; start += 1024) {
        const u32 end = rows - start < 1024 ? rows - start : 1024;
        __syncthreads();
        if (t == 0) found = 0;
        __syncthreads();
        for (u32 j = t; j < end; j += 128) {
            equal[j] = indices[start + j] == mine;
            if (equal[j]) found = 1;
        }
        __syncthreads();
        if (!found) continue;
        for (u32 j = 0; j < end; j++)
            if (equal[j]) for (u32 c = t; c < width; c += 128) to[c] += from[(u64)(start + j) * width + c];
    }
}
"""


def scatter_add(xp: Any, indices: Any, updates: Any, out: Any, axis: int) -> bool:
    """out = 0, and updates added along `axis` where the indices say, in their order; indices out of range add nothing."""
    rows, lead, size = int(indices.size), math.prod(updates.shape[:axis]), int(out.shape[axis])
    if not (0 < rows <= _MOST_ROWS and updates.size and lead * rows < 1 << 20 and max(updates.size, out.size) < _MOST):
        return False
    if indices.dtype.name not in _TYPES or out.dtype.name not in _TYPES or not all(a.flags.c_contiguous for a in (indices, updates, out)):
        return False
    out.fill(0)
    width = updates.size // (rows * lead)
    source = _HEAD + _typedef(T=out.dtype, B=indices.dtype) + _SCATTER
    numbers = (np.uint32(rows), np.uint32(width), np.uint32(size))
    _function(xp, int(xp.cuda.Device().id), source, "scatter_add")((lead * rows,), (_THREADS,), (indices, updates, out, *numbers))
    return True
