"""CUDA C++ of what goes along the rows of an array: softmax, cross entropy, the place of the largest, sums and maxima, and their gradients.

A row is read by as many threads as it is worth, by a part of a warp up to a whole block, in words of 16 bytes where they fit. A thread keeps its
share in registers up to a length, so that memory is read once and written once, as Milakov & Gimelshein 2018 (arXiv:1805.02867) count it for the
online softmax. Sums are made in one order always, by halving between threads: no atomic additions, so results are the same bits each time.

As in `_cuda_small`: a function launches what does all of its work and returns True, or launches nothing and returns False; nothing is allocated, and
the host is not asked.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from hetsched.graph.ops._cuda_small import _HEAD, _NOTHING, _function, _typedef

_BLOCK = 128  # threads of a block of short rows
_WORD = 16  # bytes that a thread reads at once
_KEPT = 16  # words of 8 bytes that a thread keeps of a row
_WIDE = (256, 1024)  # threads that read a long row: of many rows, of few
_FEW_ROWS = 264  # two for each of the 132 multiprocessors of a large device
_LONGEST = 1 << 18  # elements of a row that one block reads
_LONG = 1 << 15  # elements of an array that is worth parts
_MOST = 1 << 31
_WHOLE = frozenset("bBhHiIlLqQ")  # by `dtype.char`: a dtype's name takes a microsecond
_NUMBERS = _WHOLE | frozenset("fd")

# L threads share a row of `packs` words of V elements; EACH runs over a thread's own, GET gives one.
LANES = """
struct alignas(sizeof(T) * V) Pack { T v[V]; };
#if KEEP
#define EACH _Pragma("unroll") for (u32 i = 0; i < P; i++) if (const u32 at = i * L + lane; at < packs)
#define LOAD(kept, from) Pack kept[P]; EACH kept[i] = from[at];
#define GET(kept, from) kept[i]
#else
#define EACH for (u32 at = lane; at < packs; at += L)
#define LOAD(kept, from)
#define GET(kept, from) from[at]
#endif
#define ROW const u32 row = (blockIdx.x * blockDim.x + threadIdx.x) / L, lane = threadIdx.x % L, packs = row < rows ? n / V : 0;
#define OF(x) ((const Pack *)((x) + (u64)(row < rows ? row : 0) * n))

__device__ A larger(A a, A b) { return b > a || b != b ? b : a; }
__device__ A all_lanes_sum(A v) {
    #pragma unroll
    for (int m = (L < 32 ? L : 32) / 2; m > 0; m /= 2) v += __shfl_xor_sync(0xffffffffu, v, m);
#if L > 32
    __shared__ A parts[L / 32];
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
    __syncthreads();
    v = parts[0];
    for (int w = 1; w < L / 32; w++) v += parts[w];
#endif
    return v;
}
__device__ A all_lanes_most(A v) {
    #pragma unroll
    for (int m = (L < 32 ? L : 32) / 2; m > 0; m /= 2) v = larger(v, __shfl_xor_sync(0xffffffffu, v, m));
#if L > 32
    __shared__ A parts[L / 32];
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
    __syncthreads();
    v = parts[0];
    for (int w = 1; w < L / 32; w++) v = larger(v, parts[w]);
#endif
    return v;
}
"""

_SOFTMAX = """
extern "C" __global__ void __launch_bounds__(BLOCK) softmax(const T *x, T *y, u32 rows, u32 n, int logarithm) {
    ROW
    const Pack *from = OF(x);
    Pack *to = (Pack *)OF(y);
    LOAD(kept, from)
    A most = -(A)1 / (A)0, sum = 0;
    EACH { const Pack p = GET(kept, from); for (int v = 0; v < V; v++) most = larger(most, p.v[v]); }
    most = all_lanes_most(most);
    EACH { const Pack p = GET(kept, from); for (int v = 0; v < V; v++) sum += exp(p.v[v] - most); }
    sum = all_lanes_sum(sum);
    const A below = logarithm ? log(sum) : sum;
    EACH {
        Pack p = GET(kept, from);
        for (int v = 0; v < V; v++) p.v[v] = logarithm ? p.v[v] - most - below : exp(p.v[v] - most) / below;
        to[at] = p;
    }
}
"""

# dx = y (dy - sum(y dy)); of the logarithm dy - exp(y) sum(dy).
_SOFTMAX_GRAD = """
extern "C" __global__ void __launch_bounds__(BLOCK) softmax_grad(const T *y, const T *dy, T *dx, u32 rows, u32 n, int logarithm) {
    ROW
    const Pack *a = OF(y), *b = OF(dy);
    Pack *to = (Pack *)OF(dx);
    LOAD(ys, a)
    LOAD(dys, b)
    A sum = 0;
    EACH {
        const Pack p = GET(ys, a), q = GET(dys, b);
        for (int v = 0; v < V; v++) sum += logarithm ? q.v[v] : p.v[v] * q.v[v];
    }
    sum = all_lanes_sum(sum);
    EACH {
        const Pack p = GET(ys, a);
        Pack q = GET(dys, b);
        for (int v = 0; v < V; v++) q.v[v] = logarithm ? q.v[v] - exp(p.v[v]) * sum : p.v[v] * (q.v[v] - sum);
        to[at] = q;
    }
}
"""

# What a row gives to the loss. A label that is no class gives NaN.
_ROW_LOSSES = """
extern "C" __global__ void __launch_bounds__(BLOCK) row_losses(const T *logits, const B *labels, T *losses, u32 rows, u32 n) {
    ROW
    const Pack *from = OF(logits);
    LOAD(kept, from)
    A most = -(A)1 / (A)0, sum = 0;
    EACH { const Pack p = GET(kept, from); for (int v = 0; v < V; v++) most = larger(most, p.v[v]); }
    most = all_lanes_most(most);
    EACH { const Pack p = GET(kept, from); for (int v = 0; v < V; v++) sum += exp(p.v[v] - most); }
    sum = all_lanes_sum(sum);
    if (lane == 0 && row < rows) {
        const B label = labels[row];
        losses[row] = label < 0 || label >= n ? (A)0 / (A)0 : log(sum) - (logits[(u64)row * n + label] - most);
    }
}
"""

_ROW_LOSSES_GRAD = """
extern "C" __global__ void __launch_bounds__(BLOCK) row_losses_grad(const T *logits, const B *labels, const T *dloss, T *out, u32 rows, u32 n,
                                                                    A count) {
    ROW
    const Pack *from = OF(logits);
    Pack *to = (Pack *)OF(out);
    const B label = row < rows ? labels[row] : 0;
    LOAD(kept, from)
    A most = -(A)1 / (A)0, sum = 0;
    EACH { const Pack p = GET(kept, from); for (int v = 0; v < V; v++) most = larger(most, p.v[v]); }
    most = all_lanes_most(most);
    EACH { const Pack p = GET(kept, from); for (int v = 0; v < V; v++) sum += exp(p.v[v] - most); }
    sum = all_lanes_sum(sum);
    A share = dloss[0] / count;
    if (label < 0 || label >= n) share = (A)0 / (A)0 * share;
    const A scale = share / sum;
    EACH {
        Pack p = GET(kept, from);
        for (int v = 0; v < V; v++) p.v[v] = exp(p.v[v] - most) * scale - (at * V + v == (u32)label ? share : (A)0);
        to[at] = p;
    }
}
"""

# What a block adds of (x - y)^2.
_SQUARES = """
extern "C" __global__ void __launch_bounds__(BLOCK) squares(const T *x, const T *y, T *parts, u32 n, u32 each, A scale) {
    const u32 first = blockIdx.x * each, end = n - first < each ? n : first + each;
    A sum = 0;
    #pragma unroll 4
    for (u32 j = first + threadIdx.x; j < end; j += BLOCK) { const A far = x[j] - y[j]; sum += far * far; }
    sum = all_lanes_sum(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = scale == (A)1 ? sum : sum * scale;
}
"""

_SQUARES_GRAD = """
extern "C" __global__ void squares_grad(const T *x, const T *y, const T *dloss, T *dx, u32 n, T scale) {
    const u32 j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j < n) dx[j] = (x[j] - y[j]) * (dloss[0] * scale);
}
"""

# NaN counts as the largest; of equal ones the first. labels: count the rows whose largest is there, else tell where it is.
_PLACE = """
__device__ bool before(T a, u32 i, T b, u32 j) {
    const bool no_a = a != a, no_b = b != b;
    return no_a || no_b ? no_a && (!no_b || i < j) : a > b || (a == b && i < j);
}
extern "C" __global__ void __launch_bounds__(BLOCK) place_of_most(const T *x, const B *labels, i64 *out, u32 rows, u32 n) {
    ROW
    const Pack *from = OF(x);
    T most = row < rows ? x[(u64)row * n] : (T)0;
    u32 place = 0;
    EACH {
        const Pack p = from[at];
        for (int v = 0; v < V; v++) if (before(p.v[v], at * V + v, most, place)) { most = p.v[v]; place = at * V + v; }
    }
    for (int m = (L < 32 ? L : 32) / 2; m > 0; m /= 2) {
        const T other = (T)__shfl_xor_sync(0xffffffffu, (S)most, m);
        const u32 there = __shfl_xor_sync(0xffffffffu, place, m);
        if (before(other, there, most, place)) { most = other; place = there; }
    }
#if L > 32
    __shared__ T mosts[L / 32];
    __shared__ u32 places[L / 32];
    if (threadIdx.x % 32 == 0) { mosts[threadIdx.x / 32] = most; places[threadIdx.x / 32] = place; }
    __syncthreads();
    for (int w = 0; w < L / 32; w++) if (before(mosts[w], places[w], most, place)) { most = mosts[w]; place = places[w]; }
#endif
    if (lane || row >= rows) return;
    if (!labels) out[row] = place;
    else if (labels[row] >= 0 && (u64)labels[row] == place) atomicAdd((u64 *)out, (u64)1);
}
"""

# One result a row: sum (times scale), or the largest. The last row may be shorter.
_REDUCED = """
extern "C" __global__ void __launch_bounds__(BLOCK) reduced_rows(const T *x, R *out, u32 rows, u32 n, u32 total, int largest, A scale) {
    const u32 row = (blockIdx.x * blockDim.x + threadIdx.x) / L, lane = threadIdx.x % L;
    const u32 first = row < rows ? row * n : 0, packs = row < rows ? (total - first < n ? total - first : n) / V : 0;
    const Pack *from = (const Pack *)(x + first);
    A result = largest ? (A)x[first] : (A)0;
    EACH {
        const Pack p = from[at];
        for (int v = 0; v < V; v++) { const A value = p.v[v]; result = largest ? larger(result, value) : result + value; }
    }
    result = largest ? all_lanes_most(result) : all_lanes_sum(result);
    if (lane == 0 && row < rows) out[row] = (R)(scale == (A)1 ? result : result * scale);
}
"""

# Over the middle of [outer, n, inner]: a block has 32 neighbours of `inner` and 8 threads for each, which go down every 8th of its slice of n.
# Of several slices each gives a part.
_COLUMNS = """
extern "C" __global__ void reduced_columns(const T *x, R *out, u32 outer, u32 n, u32 inner, u32 slices, int largest, A scale) {
    __shared__ A parts[256];
    const u32 t = threadIdx.x, across = (inner + 31) / 32;
    const u32 column = blockIdx.x % across * 32 + t % 32, slice = blockIdx.x / across % slices, lead = blockIdx.x / across / slices;
    const u32 first = (u64)n * slice / slices, end = (u64)n * (slice + 1) / slices;
    const T *from = x + (u64)lead * n * inner + column;
    A result = largest && column < inner ? (A)from[(u64)first * inner] : (A)0;
    if (column < inner) {
        #pragma unroll 4
        for (u32 k = first + t / 32; k < end; k += 8) {
            const A value = from[(u64)k * inner];
            result = largest ? (value > result || value != value ? value : result) : result + value;
        }
    }
    parts[t] = result;
    __syncthreads();
    for (u32 half = 128; half >= 32; half /= 2) {
        if (t < half) {
            const A other = parts[t + half];
            parts[t] = largest ? (other > parts[t] || other != other ? other : parts[t]) : parts[t] + other;
        }
        __syncthreads();
    }
    if (t < 32 && column < inner) out[((u64)slice * outer + lead) * inner + column] = (R)(scale == (A)1 ? parts[t] : parts[t] * scale);
}
"""


class Share(NamedTuple):
    """How a row is shared: `lanes` threads, `pack` elements in a word, `kept` words in registers (0: read again for each pass)."""

    lanes: int
    pack: int
    kept: int

    @property
    def block(self) -> int:
        """Threads of a block."""
        return max(_BLOCK, self.lanes)


@cache
def share_of(rows: int, n: int, itemsize: int, aligned: bool, kept: int) -> Share | None:
    """How rows of `n` elements are shared; None where they are too long. aligned: rows start where words of 16 bytes do; kept: of so many arrays."""
    if n > _LONGEST:
        return None
    pack = max(1, _WORD // itemsize) if aligned else 1
    while n % pack:
        pack //= 2
    words = n // pack
    if words <= 32 * 8 and (words <= 32 * 2 or rows > _FEW_ROWS):
        lanes = 1
        while lanes < 32 and lanes * 2 < words:
            lanes *= 2
    else:
        lanes = _WIDE[0] if words <= (8 if rows > _FEW_ROWS else 2) * _WIDE[0] else _WIDE[1]
    each = -(-words // lanes)
    # A thread of 1,024 has 64 registers.
    most = 0 if not kept else _KEPT if lanes <= _WIDE[0] else _KEPT // kept
    return Share(lanes, pack, (1 << (each - 1).bit_length()) if each * max(1, pack * itemsize // 8) <= most else 0)


class Ready(NamedTuple):
    """A launch but for its arrays. Kept by what the arrays are like: a launch costs the host little more than CuPy's call then."""

    name: str
    source: str
    grid: tuple[int]
    block: tuple[int]
    numbers: tuple[Any, ...]

    def go(self, xp: Any, *arrays: Any) -> bool:
        """Enqueue it."""
        _function(xp, int(xp.cuda.Device().id), self.source, self.name)(self.grid, self.block, (*arrays, *self.numbers))
        return True


def _of_rows(name: str, body: str, types: str, share: Share, rows: int, *numbers: Any) -> Ready:
    known = {"L": share.lanes, "V": share.pack, "P": max(1, share.kept), "KEEP": int(share.kept > 0), "BLOCK": share.block}
    definitions = "".join(f"#define {key} {value}\n" for key, value in known.items())
    blocks = -(-rows * share.lanes // share.block)
    return Ready(name, _HEAD + types + definitions + LANES + body, (blocks,), (share.block,), numbers)


def _share(rows: int, n: int, itemsize: int, are_aligned: bool, kept: int) -> Share | None:
    """How rows of `n` elements are shared, where all can be counted in 32 bits."""
    if not (n > 0 and rows > 0 and rows * 32 < _MOST and rows * n < _MOST):
        return None
    return share_of(min(rows, _FEW_ROWS + 1), n, itemsize, are_aligned and n * itemsize % _WORD == 0, kept)


_BODIES = {
    "softmax": _SOFTMAX,
    "softmax_grad": _SOFTMAX_GRAD,
    "row_losses": _ROW_LOSSES,
    "row_losses_grad": _ROW_LOSSES_GRAD,
    "place_of_most": _PLACE,
}


@lru_cache(maxsize=4096)
def _ready(name: str, kept: int, char: str, label: str, shape: tuple[int, ...], are_aligned: bool, more: int | float | None = None) -> Ready | None:
    """For arrays of dtype `char` and a shape whose last axis are the rows; label: the dtype of labels; more: the last of the numbers."""
    dtype, n = np.dtype(char), shape[-1]
    rows = math.prod(shape[:-1])
    share = _share(rows, n, dtype.itemsize, are_aligned, kept)
    if share is None:
        return None
    kind = dtype if dtype.itemsize >= 4 else np.dtype(np.int32)
    types = _typedef(T=dtype, A=kind, S=kind, B=np.dtype(label))
    last = () if more is None else (np.int32(more) if isinstance(more, int) else kind.type(more),)
    return _of_rows(name, _BODIES[name], types, share, rows, np.uint32(rows), np.uint32(n), *last)


def _aligned(*arrays: Any) -> bool:
    return not any(int(x.data.ptr) % _WORD for x in arrays)


def _floats(x: Any, *others: Any) -> bool:
    """True for arrays of one of the dtypes that are calculated with here, one element after the other in memory."""
    char = x.dtype.char
    if char not in "fd" or not x.flags.c_contiguous:
        return False
    return all(y.dtype.char == char and y.flags.c_contiguous for y in others)


def _labels(labels: Any) -> bool:
    return labels.dtype.char in _WHOLE and bool(labels.flags.c_contiguous)


def _last(x: Any, axis: int) -> bool:
    return bool(x.ndim) and axis in (-1, x.ndim - 1)


def softmax(xp: Any, x: Any, y: Any, axis: int, logarithm: bool = False) -> bool:
    """y = softmax(x) along the last axis, or its logarithm; y may be x."""
    if not (_last(x, axis) and _floats(x, y)):
        return False
    ready = _ready("softmax", 1, x.dtype.char, "l", x.shape, _aligned(x, y), int(logarithm))
    return ready is not None and ready.go(xp, x, y)


def softmax_grad(xp: Any, y: Any, dy: Any, dx: Any, axis: int, logarithm: bool = False) -> bool:
    """dx from y = softmax(x) along the last axis, or its logarithm, and dy; dx may be either."""
    if not (_last(y, axis) and _floats(y, dy, dx)):
        return False
    ready = _ready("softmax_grad", 2, y.dtype.char, "l", y.shape, _aligned(y, dy, dx), int(logarithm))
    return ready is not None and ready.go(xp, y, dy, dx)


def cross_entropy(xp: Any, logits: Any, labels: Any, loss: Any, losses: Any, count: float) -> bool:
    """loss = the sum of the rows' cross entropies / count. losses: as many elements as there are rows, for what each row gives."""
    if not (_floats(logits, loss, losses) and _labels(labels)):
        return False
    char, rows = logits.dtype.char, len(logits)
    each = _ready("row_losses", 1, char, labels.dtype.char, logits.shape, _aligned(logits))
    total = _sum_ready(char, char, 1, rows, rows, _aligned(losses), False, 1 / count)
    return each is not None and total is not None and each.go(xp, logits, labels, losses) and total.go(xp, losses, loss)


def cross_entropy_grad(xp: Any, logits: Any, labels: Any, dloss: Any, out: Any, count: float) -> bool:
    """out = (softmax(logits) - one_hot(labels)) * dloss / count; out may be logits."""
    if not (_floats(logits, dloss, out) and _labels(labels)):
        return False
    ready = _ready("row_losses_grad", 1, logits.dtype.char, labels.dtype.char, logits.shape, _aligned(logits, out), float(count))
    return ready is not None and ready.go(xp, logits, labels, dloss, out)


def _place(xp: Any, x: Any, labels: Any, out: Any) -> bool:
    if not (x.ndim and x.dtype.char in _NUMBERS and x.flags.c_contiguous and out.flags.c_contiguous):
        return False
    ready = _ready("place_of_most", 0, x.dtype.char, "l" if labels is None else labels.dtype.char, x.shape, _aligned(x))
    return ready is not None and ready.go(xp, x, _NOTHING if labels is None else labels, out)


def argmax(xp: Any, x: Any, out: Any, axis: int) -> bool:
    """out (int64) = where the largest of each row is: the first of equal ones, NaN before all numbers, as with NumPy."""
    return _last(x, axis) and _place(xp, x, None, out)


def correct(xp: Any, logits: Any, labels: Any, count: Any) -> bool:
    """count (int64) = rows whose largest is at their label."""
    if not (_labels(labels) and _floats(logits) and logits.size):
        return False
    count.fill(0)  # Counting whole numbers gives the same in any order.
    return _place(xp, logits, labels, count)


@lru_cache(maxsize=4096)
def _squares_ready(char: str, n: int, count: float) -> tuple[Ready, int]:
    """The launch, and the parts that it makes."""
    dtype, each = np.dtype(char), max(4096, -(-n // 512))
    blocks = -(-n // each)
    scale = dtype.type(1 / count if blocks == 1 else 1)
    types = _typedef(T=dtype, A=dtype)
    return _of_rows("squares", _SQUARES, types, Share(_WIDE[0], 1, 0), blocks, np.uint32(n), np.uint32(each), scale), blocks


def squares(xp: Any, x: Any, y: Any, loss: Any, parts: Any, count: float) -> bool:
    """loss = the sum of (x - y) ** 2 / count. parts: an element for each 4,096 of x, at least."""
    if not (_floats(x, y, loss, parts) and 0 < x.size < _MOST):
        return False
    ready, blocks = _squares_ready(x.dtype.char, int(x.size), count)
    if blocks == 1:
        return ready.go(xp, x, y, loss)
    return ready.go(xp, x, y, parts) and _sums(xp, parts, loss, 1, blocks, False, 1 / count, blocks)


@lru_cache(maxsize=4096)
def _squares_grad_ready(char: str, n: int, count: float) -> Ready:
    dtype = np.dtype(char)
    source = _HEAD + _typedef(T=dtype) + _SQUARES_GRAD
    return Ready("squares_grad", source, (-(-n // 256),), (256,), (np.uint32(n), dtype.type(2 / count)))


def squares_grad(xp: Any, x: Any, y: Any, dloss: Any, dx: Any, count: float) -> bool:
    """dx = 2 (x - y) dloss / count; dx may be x or y."""
    if not (_floats(x, y, dloss, dx) and 0 < x.size < _MOST):
        return False
    return _squares_grad_ready(x.dtype.char, int(x.size), count).go(xp, x, y, dloss, dx)


# Sums and maxima over neighbouring axes -------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _sum_ready(char: str, out: str, rows: int, n: int, size: int, is_aligned: bool, largest: bool, scale: float) -> Ready | None:
    dtype, result = np.dtype(char), np.dtype(out)
    share = _share(rows, n, dtype.itemsize, is_aligned, 0)
    if share is None:
        return None
    if size % share.pack:
        share = share._replace(pack=1)
    kind = result if result.itemsize >= 4 else np.dtype(np.int32)
    numbers = (np.uint32(rows), np.uint32(n), np.uint32(size), np.int32(largest), kind.type(scale))
    return _of_rows("reduced_rows", _REDUCED, _typedef(T=dtype, A=kind, R=result), share, rows, *numbers)


def _sums(xp: Any, x: Any, out: Any, rows: int, n: int, largest: bool, scale: float = 1.0, size: int = 0) -> bool:
    """out [rows] = of x, `size` elements (all), in rows of n, of which the last may be shorter; whoever calls has looked at the arrays."""
    ready = _sum_ready(x.dtype.char, out.dtype.char, rows, n, size or int(x.size), _aligned(x), largest, scale)
    return ready is not None and ready.go(xp, x, out)


@lru_cache(maxsize=4096)
def _columns_ready(char: str, out: str, shape: tuple[int, int, int], slices: int, largest: bool, scale: float) -> Ready | None:
    outer, n, inner = shape
    blocks = outer * -(-inner // 32) * slices
    if not (0 < blocks < _MOST and 0 < outer * n * inner < _MOST):
        return None
    dtype, result = np.dtype(char), np.dtype(out)
    kind = result if result.itemsize >= 4 else np.dtype(np.int32)
    numbers = (*(np.uint32(d) for d in (outer, n, inner, slices)), np.int32(largest), kind.type(scale))
    return Ready("reduced_columns", _HEAD + _typedef(T=dtype, A=kind, R=result) + _COLUMNS, (blocks,), (256,), numbers)


def _columns(xp: Any, x: Any, out: Any, shape: tuple[int, int, int], slices: int, largest: bool, scale: float = 1.0) -> bool:
    ready = _columns_ready(x.dtype.char, out.dtype.char, shape, slices, largest, scale)
    return ready is not None and ready.go(xp, x, out)


@lru_cache(maxsize=4096)
def _middle(shape: tuple[int, ...], axes: tuple[int, ...] | None) -> tuple[int, int, int] | None:
    """[outer, n, inner] where the axes that are reduced are neighbours, n between the others."""
    ndim = len(shape)
    inside = sorted({a % ndim for a in axes}) if axes is not None and ndim else list(range(ndim))
    if not inside or inside != list(range(inside[0], inside[-1] + 1)):
        return None
    return math.prod(shape[: inside[0]]), math.prod(shape[inside[0] : inside[-1] + 1]), math.prod(shape[inside[-1] + 1 :])


@cache
def _slices(outer: int, n: int, inner: int) -> int:
    """Parts into which n is cut, so that a large device has blocks enough: 1 where that is so by itself."""
    blocks = outer * (-(-inner // 32)) if inner > 1 else outer
    each = 64 if inner > 1 else 4096  # elements of n that a part is worth
    return max(1, min(1024 // max(blocks, 1), n // each, 512))


@cache
def _cut(outer: int, n: int, inner: int, room: int) -> tuple[int, int]:
    """Parts, and elements of n in each, where there is room for so many results; of one sum the last part may be shorter."""
    slices = max(1, min(_slices(outer, n, inner), room // (outer * inner)))
    if inner == 1 and outer == 1:
        each = -(-n // slices // _WORD) * _WORD
        return -(-n // each), each
    if inner == 1 and n % slices:
        slices = math.gcd(n, 1 << slices.bit_length() - 1)
    return slices, n // slices


def workspace_nbytes(x: Any, axes: tuple[int, ...] | None) -> int:
    """Bytes for the parts of a reduction of arrays of a spec; 0 where it is done at once."""
    shape = _middle(x.bounds, axes) if x.size >= _LONG else None
    return 0 if shape is None or _slices(*shape) == 1 else _slices(*shape) * shape[0] * shape[2] * 8


def reduced(xp: Any, x: Any, out: Any, axes: tuple[int, ...] | None, workspace: Any, largest: bool, scale: float = 1.0) -> bool:
    """out = the sum of x over neighbouring axes (None: all) times scale, or the largest, NaN before all numbers.

    workspace: bytes for the parts of sums of which there are few and long ones; where it is too short they are not cut.
    """
    if not (x.dtype.char in _NUMBERS and out.dtype.char in _NUMBERS and x.size and out.size and x.flags.c_contiguous and out.flags.c_contiguous):
        return False
    shape = _middle(x.shape, axes)
    if shape is None:
        return False
    outer, n, inner = shape
    slices, each = _cut(outer, n, inner, 0 if workspace is None else int(workspace.nbytes) // int(out.itemsize))
    if slices == 1:
        return _sums(xp, x, out, outer, n, largest, scale) if inner == 1 else _columns(xp, x, out, shape, 1, largest, scale)
    parts = workspace[: outer * inner * slices * out.itemsize].view(out.dtype)
    if inner == 1:
        return _sums(xp, x, parts, outer * slices, each, largest) and _sums(xp, parts, out, outer, slices, largest, scale)
    return _columns(xp, x, parts, shape, slices, largest) and _columns(xp, parts, out, (1, slices, outer * inner), 1, largest, scale)
