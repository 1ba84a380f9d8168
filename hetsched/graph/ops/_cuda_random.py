"""Philox4x64-10 in CUDA C++: the words and what random.py makes of them, on the device. That module documents which word becomes which element.

A thread makes one block of four words: eight float32 uniforms, four float64 uniforms or normals. The turn is read on the device. The source is also
C++ that a compiler for processors takes, with a few definitions (tests/graph/test_cuda_sources.py): so its bits are tested without a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

_THREADS = 128

SOURCE = """
typedef unsigned long long u64;
typedef long long i64;

__device__ void philox(u64 c0, u64 c1, u64 k0, u64 k1, u64 *words) {
    u64 c2 = 0, c3 = 0;
    for (int round = 0; round < 10; round++) {
        const u64 high0 = __umul64hi(0xD2E7470EE14C6C93ULL, c0), low0 = 0xD2E7470EE14C6C93ULL * c0;
        const u64 high1 = __umul64hi(0xCA5A826395121157ULL, c2), low1 = 0xCA5A826395121157ULL * c2;
        c0 = high1 ^ c1 ^ k0; c1 = low1; c2 = high0 ^ c3 ^ k1; c3 = low0;
        k0 += 0x9E3779B97F4A7C15ULL; k1 += 0xBB67AE8584CAA73BULL;
    }
    words[0] = c0; words[1] = c1; words[2] = c2; words[3] = c3;
}

__device__ i64 here() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ u64 turn_of(const i64 *turn) { return turn ? (u64)turn[0] : 0ULL; }
__device__ float uniform32(const u64 *words, int j) { return (float)((unsigned int)(words[j / 2] >> (j % 2 * 32)) >> 8) * 5.9604644775390625e-08f; }
__device__ double uniform64(const u64 *words, int j) { return (double)(words[j] >> 11) * 1.1102230246251565e-16; }

extern "C" __global__ void uniform_float(const i64 *turn, u64 k0, u64 k1, float *out, i64 n, float low, float range) {
    const i64 block = here(), start = block * 8;
    if (start >= n) return;
    u64 words[4];
    philox(block, turn_of(turn), k0, k1, words);
    for (int j = 0; j < 8 && start + j < n; j++) out[start + j] = uniform32(words, j) * range + low;
}

extern "C" __global__ void uniform_double(const i64 *turn, u64 k0, u64 k1, double *out, i64 n, double low, double range) {
    const i64 block = here(), start = block * 4;
    if (start >= n) return;
    u64 words[4];
    philox(block, turn_of(turn), k0, k1, words);
    for (int j = 0; j < 4 && start + j < n; j++) out[start + j] = uniform64(words, j) * range + low;
}

template <typename T> __device__ void normals(const i64 *turn, u64 k0, u64 k1, T *out, i64 n, double mean, double std) {
    const i64 block = here(), start = block * 4;
    if (start >= n) return;
    u64 words[4];
    philox(block, turn_of(turn), k0, k1, words);
    for (int j = 0; j < 4 && start + j < n; j += 2) {
        const double radius = sqrt(-2 * log(1 - uniform64(words, j))), angle = uniform64(words, j + 1) * 6.283185307179586;
        out[start + j] = (T)(radius * cos(angle) * std + mean);
        if (start + j + 1 < n) out[start + j + 1] = (T)(radius * sin(angle) * std + mean);
    }
}
extern "C" __global__ void normal_float(const i64 *turn, u64 k0, u64 k1, float *out, i64 n, double mean, double std) {
    normals(turn, k0, k1, out, n, mean, std);
}
extern "C" __global__ void normal_double(const i64 *turn, u64 k0, u64 k1, double *out, i64 n, double mean, double std) {
    normals(turn, k0, k1, out, n, mean, std);
}

template <typename T> __device__ void drop(const i64 *turn, u64 k0, u64 k1, const T *x, T *y, i64 n, float rate, T scale) {
    const i64 block = here(), start = block * 8;
    if (start >= n) return;
    u64 words[4];
    philox(block, turn_of(turn), k0, k1, words);
    for (int j = 0; j < 8 && start + j < n; j++) {
        const T kept = x[start + j] * scale;
        y[start + j] = uniform32(words, j) >= rate ? kept : kept * (T)0;
    }
}
extern "C" __global__ void dropout_float(const i64 *turn, u64 k0, u64 k1, const float *x, float *y, i64 n, float rate, float scale) {
    drop(turn, k0, k1, x, y, n, rate, scale);
}
extern "C" __global__ void dropout_double(const i64 *turn, u64 k0, u64 k1, const double *x, double *y, i64 n, float rate, double scale) {
    drop(turn, k0, k1, x, y, n, rate, scale);
}

extern "C" __global__ void raw(const i64 *turn, u64 k0, u64 k1, u64 *out, i64 n) {
    const i64 block = here(), start = block * 4;
    if (start >= n) return;
    u64 words[4];
    philox(block, turn_of(turn), k0, k1, words);
    for (int j = 0; j < 4 && start + j < n; j++) out[start + j] = words[j];
}

// A block ranks 32 words: each quarter of its 128 threads counts, among a quarter of all words, those that come before.
extern "C" __global__ void ranked(const u64 *words, i64 *order, i64 n) {
    __shared__ unsigned int before[128];
    const unsigned int t = threadIdx.x, lane = t % 32, part = t / 32;
    const i64 i = (i64)blockIdx.x * 32 + lane, quarter = (n + 3) / 4, end = (part + 1) * quarter < n ? (part + 1) * quarter : n;
    const u64 mine = i < n ? words[i] : 0ULL;
    unsigned int count = 0;
    for (i64 j = part * quarter; j < end; j++) {
        const u64 other = words[j];
        count += other < mine || (other == mine && j < i);
    }
    before[t] = count;
    __syncthreads();
    if (part == 0 && i < n) order[before[lane] + before[32 + lane] + before[64 + lane] + before[96 + lane]] = i;
}
"""

# Words up to which comparing each with each other takes less time than sorting them: 10-60 us, and nobody waits for it.
_MOST_RANKED = 1 << 14


@cache
def _module(xp: Any, device: int) -> Any:
    # Equal bits on every device: no product and sum may be fused.
    return xp.RawModule(code=SOURCE, options=("-std=c++17", "--fmad=false"))


@cache
def _function(xp: Any, device: int, name: str) -> Any:
    # CuPy makes a new object at every look-up, which costs more than a launch.
    return _module(xp, device).get_function(name)


def _run(xp: Any, function: str, per_thread: int, words: tuple[int, int], turn: Any, n: int, *arguments: Any) -> None:
    blocks = -(-n // (per_thread * _THREADS))
    if blocks:
        # A null pointer where there is no turn.
        first = (np.uint64(0) if turn is None else turn, np.uint64(words[0]), np.uint64(words[1]))
        _function(xp, int(xp.cuda.Device().id), function)((blocks,), (_THREADS,), (*first, *arguments))


def _suffix(dtype: Any) -> str:
    return "double" if dtype == np.float64 else "float"


def uniform(xp: Any, words: tuple[int, int], turn: Any, out: Any, low: float, high: float) -> None:
    """`out`, float32 or float64, becomes uniforms on [low, high). words: the generator's key; turn: an int64 scalar on the device, or None."""
    number: Any = out.dtype.type
    size = np.int64(out.size)
    _run(xp, f"uniform_{_suffix(out.dtype)}", 4 if out.dtype == np.float64 else 8, words, turn, out.size, out, size, number(low), number(high - low))


def normal(xp: Any, words: tuple[int, int], turn: Any, out: Any, mean: float, std: float) -> None:
    """`out`, float32 or float64, becomes normals, calculated in float64."""
    _run(xp, f"normal_{_suffix(out.dtype)}", 4, words, turn, out.size, out, np.int64(out.size), np.float64(mean), np.float64(std))


def dropout(xp: Any, words: tuple[int, int], turn: Any, x: Any, y: Any, rate: float) -> None:
    """y = x, each element dropped with probability `rate`, below 1; y may be x."""
    number: Any = x.dtype.type
    _run(xp, f"dropout_{_suffix(x.dtype)}", 8, words, turn, x.size, x, y, np.int64(x.size), np.float32(rate), number(1 / (1 - rate)))


def permutation(xp: Any, words: tuple[int, int], turn: Any, out: Any) -> None:
    """`out`, int64 [n], becomes the stable order of the first n words."""
    if out.size:
        drawn = xp.empty(out.size, np.uint64)
        _run(xp, "raw", 4, words, turn, out.size, drawn, np.int64(out.size))
        if out.size <= _MOST_RANKED and out.flags.c_contiguous:
            ranked = _module(xp, int(xp.cuda.Device().id)).get_function("ranked")
            ranked((-(-out.size // 32),), (_THREADS,), (drawn, out, np.int64(out.size)))
        else:
            out[...] = xp.argsort(drawn)  # CuPy sorts stably


def is_drawn(dtypes: Sequence[Any]) -> bool:
    """True for dtypes that the kernels know."""
    return all(d in (np.float32, np.float64) for d in dtypes)
