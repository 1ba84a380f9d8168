"""CUDA C++ of pooling and of what surrounds a convolution: one kernel each, a thread for each element that is written.

A gradient is gathered, not scattered: a pixel asks the windows in which it lies, in the order in which the array kernels add them up, so there are no
atomic additions and the bits are the same each time. As in `_cuda_small`: True where all is launched, False where nothing is.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from hetsched.graph.ops._cuda_rows import _columns, _floats, _sums
from hetsched.graph.ops._cuda_small import _blocks, _run, _typedef

_MOST = 1 << 31

# KH x KW: a window, stepping by SH and SW, beginning PH and PW before the image.
_POOL = """
extern "C" __global__ void pool(const T *x, T *y, u32 count, int h, int w, u32 oh, u32 ow, T share) {
    const u32 j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= count) return;
    const int top = (int)(j / ow % oh) * SH - PH, left = (int)(j % ow) * SW - PW;
    const T *from = x + (u64)(j / ow / oh) * h * w;
    T result = LARGEST ? -(T)1 / (T)0 : (T)0;
    #pragma unroll
    for (int i = 0; i < KH; i++) {
        #pragma unroll
        for (int k = 0; k < KW; k++) {
            const int row = top + i, column = left + k;
            if (row < 0 || row >= h || column < 0 || column >= w) continue;
            const T value = from[row * w + column];
            if (LARGEST) result = value > result || value != value ? value : result;
            else result += value;
        }
    }
    y[j] = LARGEST ? result : result * share;
}
"""

# Which windows a pixel lies in: rows r from `low` to `high`, and columns likewise; the last of them has it as its first element.
_PIXEL = """
#define PIXEL \\
    const u32 j = blockIdx.x * blockDim.x + threadIdx.x; \\
    if (j >= count) return; \\
    const int row = (int)(j / w % h), column = (int)(j % w); \\
    const u64 plane = j / w / h; \\
    const int high_r = (row + PH) / SH < oh ? (row + PH) / SH : oh - 1, high_c = (column + PW) / SW < ow ? (column + PW) / SW : ow - 1; \\
    const int low_r = row + PH < KH ? 0 : (row + PH - KH) / SH + 1, low_c = column + PW < KW ? 0 : (column + PW - KW) / SW + 1;
"""

# All goes to the first of the elements that equal the largest, row by row; of a window without padding that is NaN to its last.
_MAX_POOL_GRAD = """
extern "C" __global__ void max_pool_grad(const T *x, const T *y, const T *dy, T *dx, u32 count, int h, int w, int oh, int ow) {
    PIXEL
    const T *from = x + plane * h * w;
    const T mine = from[row * w + column];
    T sum = 0;
    for (int r = high_r; r >= low_r; r--) {
        for (int c = high_c; c >= low_c; c--) {
            const u64 window = (plane * oh + r) * ow + c;
            const T most = y[window];
            const int top = r * SH - PH, left = c * SW - PW;
            bool takes = mine == most;
            if (takes) {
                for (int i = top < 0 ? 0 : top; i <= row && takes; i++) {
                    const int end = i < row ? (left + KW < w ? left + KW : w) : column;
                    for (int k = left < 0 ? 0 : left; k < end && takes; k++) takes = from[i * w + k] != most;
                }
            } else if (WHOLE && most != most) {
                takes = row == top + KH - 1 && column == left + KW - 1;
            }
            if (takes) sum += dy[window];
        }
    }
    dx[j] = sum;
}
"""

_AVG_POOL_GRAD = """
extern "C" __global__ void avg_pool_grad(const T *dy, T *dx, u32 count, int h, int w, int oh, int ow, T share) {
    PIXEL
    T sum = 0;
    for (int r = high_r; r >= low_r; r--)
        for (int c = high_c; c >= low_c; c--) sum += dy[(plane * oh + r) * ow + c] * share;
    dx[j] = sum;
}
"""

_CHANNEL_BIAS = """
extern "C" __global__ void channel_bias(T *y, const T *b, u32 plane, u32 channels, u32 n, int relu) {
    const u32 j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= n) return;
    const T sum = b ? y[j] + b[j / plane % channels] : y[j];
    y[j] = relu && !(sum > (T)0 || sum != sum) ? (T)0 : sum;
}
"""


class Windows(NamedTuple):
    """Windows over images: extents, steps, and how far the first begins before the image, each (rows, columns). whole: none leaves the image."""

    size: tuple[int, int]
    stride: tuple[int, int]
    before: tuple[int, int]
    whole: bool


@cache
def _definitions(windows: Windows, largest: bool = False) -> str:
    """What the sources need to know."""
    pairs = zip("KSP", (windows.size, windows.stride, windows.before), strict=True)
    known = {f"{letter}{axis}": n for letter, extents in pairs for axis, n in zip("HW", extents, strict=True)}
    return "".join(f"#define {name} {n}\n" for name, n in {**known, "WHOLE": int(windows.whole), "LARGEST": int(largest)}.items())


def _is_fine(*arrays: Any) -> bool:
    return _floats(*arrays) and all(0 < a.size < _MOST for a in arrays)


def _extents(*arrays: Any) -> list[np.int32]:
    return [np.int32(d) for a in arrays for d in a.shape[2:]]


def pool(xp: Any, x: Any, y: Any, windows: Windows, largest: bool) -> bool:
    """y [n, c, oh, ow] = the largest, or the mean, of each window of x [n, c, h, w]."""
    if not _is_fine(x, y):
        return False
    head = _typedef(T=x.dtype) + _definitions(windows, largest)
    share = x.dtype.type(1 / (windows.size[0] * windows.size[1]))
    h, w, oh, ow = _extents(x, y)
    return _run(xp, "pool", _POOL, head, _blocks(y.size), x, y, np.uint32(y.size), h, w, np.uint32(oh), np.uint32(ow), share)


def max_pool_grad(xp: Any, x: Any, y: Any, dy: Any, dx: Any, windows: Windows) -> bool:
    """dx from x, y = the largest of each window of x, and dy."""
    if not _is_fine(x, y, dy, dx):
        return False
    head = _typedef(T=x.dtype) + _definitions(windows) + _PIXEL
    return _run(xp, "max_pool_grad", _MAX_POOL_GRAD, head, _blocks(dx.size), x, y, dy, dx, np.uint32(dx.size), *_extents(x, y))


def avg_pool_grad(xp: Any, dy: Any, dx: Any, windows: Windows) -> bool:
    """dx from dy, where y is the mean of each window."""
    if not _is_fine(dy, dx):
        return False
    head = _typedef(T=dy.dtype) + _definitions(windows) + _PIXEL
    share = dy.dtype.type(1 / (windows.size[0] * windows.size[1]))
    return _run(xp, "avg_pool_grad", _AVG_POOL_GRAD, head, _blocks(dx.size), dy, dx, np.uint32(dx.size), *_extents(dx, dy), share)


def channel_bias(xp: Any, y: Any, b: Any, relu: bool) -> bool:
    """y [n, c, h, w] += b [c] (None: nothing), then relu."""
    if not _is_fine(*(a for a in (y, b) if a is not None)):
        return False
    numbers = (np.uint32(y.shape[2] * y.shape[3]), np.uint32(y.shape[1]), np.uint32(y.size), np.int32(relu))
    return _run(xp, "channel_bias", _CHANNEL_BIAS, _typedef(T=y.dtype), _blocks(y.size), y, np.uint64(0) if b is None else b, *numbers)


def channel_sums(xp: Any, x: Any, out: Any, parts: Any) -> bool:
    """out [c] = the sum of x [n, c, h, w] over all other axes; parts: n * c elements for the sums of each image."""
    if not _is_fine(x, out, parts):
        return False
    n, c, plane = int(x.shape[0]), int(x.shape[1]), int(x.shape[2] * x.shape[3])
    return _sums(xp, x, parts, n * c, plane, False) and _columns(xp, parts, out, (1, n, c), 1, False)
