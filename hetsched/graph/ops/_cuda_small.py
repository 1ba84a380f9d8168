"""CUDA C++ of ops that in the array API are five to thirty small kernels each, so that a training step has about as many kernels as ops.

On a device a small kernel takes 1-3 us, whatever it does: of a small network's step that is nearly all. Each function here launches one kernel and
returns True, or launches nothing and returns False where the arrays are not what its kernel takes (half precision, many classes, an odd layout): then
the kernel in the array API does it. Nothing is allocated and the host is not asked for anything, so what is launched here can be captured.

The source is also C++ that a compiler for processors takes, with a few definitions (tests/graph/test_cuda_sources.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

_THREADS = 128
_FEW = 64  # classes that one thread adds up
_NARROW = 16  # columns of a product that one block holds in registers
_SHORT = 1024  # rows of such a product: each block reads all weights, from the second-level cache
_MOST_PARTS = 32  # of a concatenation: a kernel takes as many pointers
_MOST = 1 << 31  # elements that are counted in 32 bits

_TYPES = {
    "float32": "float", "float64": "double", "int64": "long long", "int32": "int", "int16": "short", "int8": "signed char",
    "uint64": "unsigned long long", "uint32": "unsigned int", "uint16": "unsigned short", "uint8": "unsigned char",
}  # fmt: skip

_HEAD = """
typedef long long i64; typedef unsigned int u32; typedef unsigned long long u64;
"""

# Tells of a mistake in the slot whose number is on the device; the first to tell is heard. See _cuda_ids.py.
TELL = """
#define TELL(value, position) if (slots_) { \\
    i64 *mine_ = slots_ + slot_[0] * 4; \\
    if (!atomicCAS((u64 *)mine_, (u64)0, (u64)1)) { mine_[1] = site_; mine_[2] = (i64)(value); mine_[3] = (i64)(position); } \\
}
"""

# Words of 8, 4, 2 or 1 bytes; one thread moves one.
_ROWS = """
extern "C" __global__ void batch_rows(const W *x, const i64 *turn, const i64 *order, W *out, u32 width, u32 n, i64 cycle, i64 batch, i64 rows,
                                      i64 *slots_, const i64 *slot_, i64 site_) {
    const u32 j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= n) return;
    const u32 row = j / width;
    const i64 at = turn[0] % cycle * batch + row;
    i64 from = order ? order[at] : at;
    if (from < 0 || from >= rows) { TELL(from, at) from = 0; }
    out[j] = x[from * width + (j - row * width)];
}
"""

# One thread a row of logits. A label that is no class gives NaN.
_CROSS_ENTROPY_GRAD = """
extern "C" __global__ void cross_entropy_grad(const T *logits, const L *labels, const T *dloss, T *out, u32 rows, u32 classes, T n,
                                              i64 *slots_, const i64 *slot_, i64 site_) {
    const u32 row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    const T *x = logits + (u64)row * classes;
    T *y = out + (u64)row * classes;
    const L label = labels[row];
    T most = x[0], sum = 0;
    for (u32 c = 1; c < classes; c++) most = x[c] > most || x[c] != x[c] ? x[c] : most;
    for (u32 c = 0; c < classes; c++) sum += exp(x[c] - most);
    T share = dloss[0] / n;
    if (label < 0 || label >= classes) { share = (T)0 / (T)0 * share; TELL(label, row) }
    const T scale = share / sum;
    for (u32 c = 0; c < classes; c++) y[c] = exp(x[c] - most) * scale - (c == (u32)label ? share : (T)0);
}
"""

# One block: each thread takes every 128th row, and their sums are halved in shared memory.
_CROSS_ENTROPY = """
extern "C" __global__ void cross_entropy(const T *logits, const L *labels, T *loss, u32 rows, u32 classes, T n,
                                         i64 *slots_, const i64 *slot_, i64 site_) {
    __shared__ T sums[128];
    const u32 t = threadIdx.x;
    T mine = 0;
    for (u32 row = t; row < rows; row += 128) {
        const T *x = logits + (u64)row * classes;
        const L label = labels[row];
        T most = x[0], sum = 0;
        for (u32 c = 1; c < classes; c++) most = x[c] > most || x[c] != x[c] ? x[c] : most;
        for (u32 c = 0; c < classes; c++) sum += exp(x[c] - most);
        if (label < 0 || label >= classes) TELL(label, row)
        mine += label < 0 || label >= classes ? (T)0 / (T)0 : log(sum) - (x[label] - most);
    }
    sums[t] = mine;
    __syncthreads();
    for (u32 half = 64; half > 0; half /= 2) {
        if (t < half) sums[t] += sums[t + half];
        __syncthreads();
    }
    if (t == 0) loss[0] = sums[0] / n;
}
"""

# A block for each row of x: its threads go down the row and the columns of w, N sums each, which are added up in two rounds in shared memory.
_DENSE = """
extern "C" __global__ void dense(const T *x, const T *w, const T *b, T *out, u32 depth, int relu) {
    __shared__ T sums[128 * N];
    __shared__ T parts[128];
    const u32 t = threadIdx.x, row = blockIdx.x;
    T mine[N];
    for (int c = 0; c < N; c++) mine[c] = 0;
    for (u32 k = t; k < depth; k += 128) {
        const T value = x[(u64)row * depth + k];
        for (int c = 0; c < N; c++) mine[c] += value * w[k * N + c];
    }
    for (int c = 0; c < N; c++) sums[t * N + c] = mine[c];
    __syncthreads();
    const u32 slices = 128 / N, column = t % N, slice = t / N;
    if (slice < slices) {
        T sum = 0;
        for (u32 i = slice; i < 128; i += slices) sum += sums[i * N + column];
        parts[t] = sum;
    }
    __syncthreads();
    if (t < N) {
        T sum = b ? b[t] : (T)0;
        for (u32 i = 0; i < slices; i++) sum += parts[i * N + t];
        out[row * N + t] = relu && !(sum > (T)0 || sum != sum) ? (T)0 : sum;
    }
}
"""

# What follows a product.
_BIAS = """
extern "C" __global__ void bias(T *out, const T *b, u32 width, u32 n, int relu) {
    const u32 j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= n) return;
    const T sum = b ? out[j] + b[j % width] : out[j];
    out[j] = relu && !(sum > (T)0 || sum != sum) ? (T)0 : sum;
}
"""

# A block for each column: the threads take every 128th row.
_COLUMNS = """
extern "C" __global__ void columns(const T *x, T *out, u32 rows, u32 width) {
    __shared__ T sums[128];
    const u32 t = threadIdx.x;
    T mine = 0;
    for (u32 row = t; row < rows; row += 128) mine += x[(u64)row * width + blockIdx.x];
    sums[t] = mine;
    __syncthreads();
    for (u32 half = 64; half > 0; half /= 2) {
        if (t < half) sums[t] += sums[t + half];
        __syncthreads();
    }
    if (t == 0) out[blockIdx.x] = sums[0];
}
"""

# Adam with the bias corrections in step and epsilon: 1 - beta ** t as -expm1(t ln(beta)), in float64 as on the host, once a block.
_ADAM = """
extern "C" __global__ void adam(const T *w, const T *g, const T *m, const T *v, const i64 *turn, T *w_new, T *m_new, T *v_new, u32 n,
                                double lr, double eps, double ln_beta1, double ln_beta2, T beta1, T rest1, T beta2, T rest2, T decay, T keep) {
    __shared__ T now[2];
    if (threadIdx.x == 0) {
        const double t = (double)(turn[0] + 1), c = sqrt(-expm1(t * ln_beta2));
        now[0] = (T)(lr * c / -expm1(t * ln_beta1));
        now[1] = (T)(eps * c);
    }
    __syncthreads();
    const u32 j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= n) return;
    const T h = g[j] + decay * w[j];
    const T a = beta1 * m[j] + rest1 * h;
    const T b = beta2 * v[j] + rest2 * (h * h);
    w_new[j] = w[j] * keep - now[0] * a / (sqrt(b) + now[1]);
    m_new[j] = a;
    v_new[j] = b;
}
"""


# A kernel that takes longer ways than a product of BLAS would, of the sizes where all of it is latency: a thread for each element of out.
_PRODUCT = """
extern "C" __global__ void product(const T *a, const T *b, T *out, u32 n, u32 columns, u32 depth, u32 a_row, u32 a_step, u32 b_step, u32 b_column) {
    const u32 j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= n) return;
    const u32 row = j / columns;
    const T *x = a + row * a_row, *y = b + (j - row * columns) * b_column;
    T sum = 0;
    #pragma unroll 8
    for (u32 k = 0; k < depth; k++) sum += x[k * a_step] * y[k * b_step];
    out[j] = sum;
}
"""

_NEXT_TURN = """
extern "C" __global__ void next_turn(i64 *counter, i64 *turn) {
    if (blockIdx.x == 0 && threadIdx.x == 0) turn[0] = counter[0]++;
}
"""

_LAY_UP = """
extern "C" __global__ void lay_up(const W *x, W *rows, i64 *counter, u32 n) {
    const i64 row = counter[0];
    for (u32 j = threadIdx.x; j < n; j += blockDim.x) rows[row * n + j] = x[j];
    __syncthreads();
    if (threadIdx.x == 0) counter[0] = row + 1;
}
"""


@cache
def _function(xp: Any, device: int, source: str, name: str) -> Any:
    return xp.RawModule(code=source, options=("-std=c++17",)).get_function(name)


def _run(xp: Any, name: str, source: str, types: str, blocks: int, *arguments: Any) -> bool:
    _function(xp, int(xp.cuda.Device().id), _HEAD + types + source, name)((blocks,), (_THREADS,), arguments)
    return True


def _blocks(n: int) -> int:
    return -(-n // _THREADS)


@cache
def _typedef(**types: Any) -> str:
    return " ".join(f"typedef {_TYPES[np.dtype(t).name]} {name};" for name, t in types.items()) + "\n"


def _float(*given: Any) -> bool:
    """True for arrays of one of the dtypes that are calculated with here, one after the other in memory."""
    dtype = given[0].dtype
    return dtype in (np.float32, np.float64) and all(x.dtype == dtype and x.flags.c_contiguous for x in given)


_NOTHING = np.uint64(0)  # a null pointer


def _word(nbytes: int, *arrays: Any) -> int:
    """The widest word that rows of `nbytes` in `arrays` are made of."""
    return math.gcd(8, nbytes, *(int(x.data.ptr) for x in arrays))


_WORDS = {8: np.uint64, 4: np.uint32, 2: np.uint16, 1: np.uint8}


def batch_rows(xp: Any, x: Any, turn: Any, order: Any, out: Any, cycle: int, batch: int, told: Sequence[Any]) -> bool:
    """out = the rows of batch turn % cycle of x, by `order` where it is given. told: see `_cuda_ids.Told`."""
    if not out.size or not (x.flags.c_contiguous and out.flags.c_contiguous) or max(x.nbytes, out.nbytes) >= _MOST:
        return False
    row = out.nbytes // len(out)
    word = _word(row, x, out)
    n, width = out.nbytes // word, row // word
    first = _NOTHING if order is None else order
    types = _typedef(W=_WORDS[word])
    numbers = (np.uint32(width), np.uint32(n), np.int64(cycle), np.int64(batch), np.int64(x.shape[0]))
    return _run(xp, "batch_rows", TELL + _ROWS, types, _blocks(n), x, turn, first, out, *numbers, *told)


def _few_classes(logits: Any, labels: Any) -> bool:
    rows, classes = logits.shape
    return bool(rows) and classes <= _FEW and labels.flags.c_contiguous and labels.dtype.name in _TYPES and rows < _MOST


def cross_entropy(xp: Any, logits: Any, labels: Any, loss: Any, n: float, told: Sequence[Any]) -> bool:
    """loss = the sum of the rows' cross entropies / n. told: see `_cuda_ids.Told`."""
    if not (_few_classes(logits, labels) and _float(logits, loss)):
        return False
    rows, classes = logits.shape
    types = _typedef(T=logits.dtype, L=labels.dtype)
    numbers = (np.uint32(rows), np.uint32(classes), logits.dtype.type(n))
    return _run(xp, "cross_entropy", TELL + _CROSS_ENTROPY, types, 1, logits, labels, loss, *numbers, *told)


def cross_entropy_grad(xp: Any, logits: Any, labels: Any, dloss: Any, out: Any, n: float, told: Sequence[Any]) -> bool:
    """out = (softmax(logits) - one_hot(labels)) * dloss / n; out may be logits. told: see `_cuda_ids.Told`."""
    if not (_few_classes(logits, labels) and _float(logits, dloss, out)):
        return False
    rows, classes = logits.shape
    types = _typedef(T=logits.dtype, L=labels.dtype)
    numbers = (np.uint32(rows), np.uint32(classes), logits.dtype.type(n))
    return _run(xp, "cross_entropy_grad", TELL + _CROSS_ENTROPY_GRAD, types, _blocks(rows), logits, labels, dloss, out, *numbers, *told)


def dense(xp: Any, x: Any, w: Any, b: Any, out: Any, relu: bool) -> bool:
    """out [n, m] = x [n, k] w [k, m] + b, of few columns and not many rows; b may be None."""
    n, m = out.shape
    if not (0 < m <= _NARROW and 0 < n <= _SHORT and _float(x, w, out) and w.size < _MOST and (b is None or b.flags.c_contiguous)):
        return False
    types = f"{_typedef(T=x.dtype)}#define N {m}\n"
    return _run(xp, "dense", _DENSE, types, n, x, w, _NOTHING if b is None else b, out, np.uint32(x.shape[1]), np.int32(relu))


def product(xp: Any, a: Any, b: Any, out: Any) -> bool:
    """out [n, m] = a [n, k] b [k, m], views of transposed arrays among them; of few columns and little depth."""
    if not (a.ndim == b.ndim == out.ndim == 2 and out.size and 0 < a.shape[1] <= _THREADS and out.shape[1] <= _NARROW and _float(out)):
        return False
    if not a.dtype == b.dtype == out.dtype or max(a.size, b.size, out.size) >= _MOST or min(*a.strides, *b.strides) < 0:
        return False
    size = a.itemsize
    steps = (a.strides[0], a.strides[1], b.strides[0], b.strides[1])
    numbers = (out.size, out.shape[1], a.shape[1], *(s // size for s in steps))
    return _run(xp, "product", _PRODUCT, _typedef(T=out.dtype), _blocks(out.size), a, b, out, *map(np.uint32, numbers))


def next_turn(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, attributes: Any) -> None:
    """turn = counter, counter += 1: int64 scalars."""
    _function(xp, int(xp.cuda.Device().id), _HEAD + _NEXT_TURN, "next_turn")((1,), (1,), (inputs[0], outputs[0]))


def lay_up(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, attributes: Any) -> None:
    """rows[counter] = x, counter += 1; x is contiguous, and has the shape of a row."""
    (x,), (rows, counter) = inputs, outputs
    word = _word(x.nbytes, x, rows)
    _run(xp, "lay_up", _LAY_UP, _typedef(W=_WORDS[word]), 1, x, rows, counter, np.uint32(x.nbytes // word))


def bias(xp: Any, out: Any, b: Any, relu: bool) -> bool:
    """out += b along the last axis (b may be None), then relu."""
    if not (out.size and _float(out) and out.size < _MOST and (b is None or b.flags.c_contiguous)):
        return False
    numbers = (np.uint32(out.shape[-1]), np.uint32(out.size), np.int32(relu))
    return _run(xp, "bias", _BIAS, _typedef(T=out.dtype), _blocks(out.size), out, _NOTHING if b is None else b, *numbers)


def columns(xp: Any, x: Any, out: Any) -> bool:
    """out [m] = the sum of x [n, m] over the rows."""
    if x.ndim != 2 or not (0 < len(x) <= _SHORT and out.size and _float(x, out)):
        return False
    return _run(xp, "columns", _COLUMNS, _typedef(T=x.dtype), out.size, x, out, np.uint32(len(x)), np.uint32(out.size))


def concatenated(xp: Any, parts: Sequence[Any], out: Any) -> bool:
    """out = parts one behind the other in memory (they are joined along the first axis)."""
    parts = [p for p in parts if p.size]
    if not 0 < len(parts) <= _MOST_PARTS or not out.flags.c_contiguous or out.nbytes >= _MOST or not all(p.flags.c_contiguous for p in parts):
        return False
    word = math.gcd(*(_word(p.nbytes, p) for p in parts), _word(out.nbytes, out))
    ends = np.cumsum([p.nbytes // word for p in parts])
    pointers = ", ".join(f"const W *p{i}, u32 e{i}" for i in range(len(parts)))
    choose = " else ".join(f"if (j < e{i}) out[j] = p{i}[j{f' - e{i - 1}' if i else ''}];" for i in range(len(parts)))
    source = f"""
extern "C" __global__ void concatenated(W *out, {pointers}) {{
    const u32 j = blockIdx.x * blockDim.x + threadIdx.x;
    {choose}
}}
"""
    given = [a for p, end in zip(parts, ends, strict=True) for a in (p, np.uint32(end))]
    return _run(xp, "concatenated", source, _typedef(W=_WORDS[word]), _blocks(int(ends[-1])), out, *given)


def adam(xp: Any, arrays: Sequence[Any], turn: Any, outputs: Sequence[Any], numbers: Sequence[float], factors: Sequence[float]) -> bool:
    """w, g, m, v -> w, m, v. numbers: lr, eps, ln(beta1), ln(beta2); factors: beta1, 1 - beta1, beta2, 1 - beta2, decay, keep."""
    w = arrays[0]
    if not (w.size and w.size < _MOST and _float(*arrays, *outputs)):
        return False
    number: Any = w.dtype.type
    given = (np.uint32(w.size), *map(np.float64, numbers), *map(number, factors))
    return _run(xp, "adam", _ADAM, _typedef(T=w.dtype), _blocks(w.size), *arrays, turn, *outputs, *given)
