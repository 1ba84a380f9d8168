"""Matrix products in OpenCL C (linear.py has the ops): one kernel for processors, one for GPUs; bias and relu are added on the way out.

Both read matrices by two strides, so a transposed matrix costs no copy. On a processor a work item has a panel of 16 columns (of 4 bytes) and
some rows: it packs a block of the panel into memory of its own, and multiplies 6 rows at a time with it, all sums in registers (the order of loops
and the packing are those of Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, 2008). On a GPU a group of 16 x 16 work items
has a tile of 64 x 64 sums, and tiles of a and b in local memory.

Sums are added in `T`: float32 for float16, unsigned integers, which wrap around, for integers. `a * b + c` is left to -cl-mad-enable: `fma` is a call
on PoCL 3.0. Loops over a tile are unrolled by command, since PoCL leaves their arrays in memory otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any

import numpy as np

from hetsched.graph.op import Attributes, OpenCL
from hetsched.graph.ops._cl_elementwise import wrapping
from hetsched.graph.ops._cl_layout import Ints, broadcast_strides, contiguous, joined
from hetsched.graph.ops._cl_types import UNROLL

_PARAMETERS = """
    IN(S, a), IN(S, b), IN(S, bias), OUT(S, c), const int has_bias, const int relu, const long m, const long n, const long k,
    const long a_row, const long a_column, const long b_row, const long b_column, const long a_next, const long b_next, const long rows_each
"""

# What a processor does with a packed panel of b; _cl_conv_product.py packs patches instead. `A_TYPE`, `LOAD_A`: elements of a in memory.
BLOCK = """
#define COLUMNS (2 * W)
#ifndef A_TYPE
#define A_TYPE T
#define LOAD_A(p, i) ((p)[i])
#endif

// sums[r][j] += the products of ROWS rows of a with `count` rows of the packed panel.
void block(__global const A_TYPE *a, const long a_row, const long a_column, const int rows, const T *panel, const int count, T *sums) {
    TW s[ROWS][2];
    long at[ROWS];
    UNROLL for (int r = 0; r < ROWS; r++) {
        at[r] = min(r, rows - 1) * a_row;
        s[r][0] = VLOADW(0, sums + r * COLUMNS);
        s[r][1] = VLOADW(1, sums + r * COLUMNS);
    }
    for (int i = 0; i < count; i++) {
        const TW p = VLOADW(0, panel + i * COLUMNS), q = VLOADW(1, panel + i * COLUMNS);
        UNROLL for (int r = 0; r < ROWS; r++) {
            const T x = LOAD_A(a, at[r] + i * a_column);
            s[r][0] += p * x;
            s[r][1] += q * x;
        }
    }
    UNROLL for (int r = 0; r < ROWS; r++) { VSTOREW(s[r][0], 0, sums + r * COLUMNS); VSTOREW(s[r][1], 1, sums + r * COLUMNS); }
}
"""

_CPU = f"""
#define A_TYPE S
#define LOAD_A(p, i) LOAD(p, i)
{BLOCK}
__kernel void matrices({_PARAMETERS}) {{
    LET_IN(S, a) LET_IN(S, b) LET_IN(S, bias) LET_OUT(S, c)
    const long column = get_global_id(0) * COLUMNS, first = get_global_id(1) * rows_each, batch = get_global_id(2);
    if (column >= n || first >= m) return;
    const int rows = min(rows_each, m - first), columns = min((long)COLUMNS, n - column);
    a += batch * a_next + first * a_row;
    b += batch * b_next + column * b_column;
    c += (batch * m + first) * n + column;

    T panel[DEPTH * COLUMNS], sums[(MOST_ROWS + ROWS) * COLUMNS];
    for (int i = 0; i < (rows + ROWS) * COLUMNS; i++) sums[i] = has_bias && i % COLUMNS < columns ? LOAD(bias, column + i % COLUMNS) : (T)0;
    for (long from = 0; from < k; from += DEPTH) {{
        const int count = min((long)DEPTH, k - from);
        __global const S *there = b + from * b_row;
        if (columns == COLUMNS) {{
            for (int i = 0; i < count; i++) for (int j = 0; j < COLUMNS; j++) panel[i * COLUMNS + j] = LOAD(there, i * b_row + j * b_column);
        }} else {{
            for (int i = 0; i < count; i++) for (int j = 0; j < COLUMNS; j++)
                panel[i * COLUMNS + j] = j < columns ? LOAD(there, i * b_row + j * b_column) : (T)0;
        }}
        for (int r = 0; r < rows; r += ROWS) block(a + r * a_row + from * a_column, a_row, a_column, rows - r, panel, count, sums + r * COLUMNS);
    }}
    for (int r = 0; r < rows; r++) for (int j = 0; j < columns; j++) {{
        const T sum = sums[r * COLUMNS + j];
        STORE(c, r * n + j, relu && sum < 0 ? (T)0 : sum);
    }}
}}
"""

_GPU = f"""
#define SIDE 64
#define DEPTH 16

__kernel void matrices({_PARAMETERS}) {{
    LET_IN(S, a) LET_IN(S, b) LET_IN(S, bias) LET_OUT(S, c)
    __local T left[DEPTH][SIDE + 1], right[DEPTH][SIDE + 1];
    const int x = get_local_id(0), y = get_local_id(1), item = y * 16 + x;
    const long column = get_group_id(0) * SIDE, row = get_group_id(1) * SIDE, batch = get_global_id(2);
    a += batch * a_next;
    b += batch * b_next;
    c += batch * m * n;
    T sums[4][4];
    UNROLL for (int i = 0; i < 4; i++) UNROLL for (int j = 0; j < 4; j++) {{
        const long to = column + x + 16 * j;
        sums[i][j] = has_bias && to < n ? LOAD(bias, to) : (T)0;
    }}
    for (long from = 0; from < k; from += DEPTH) {{
        // Neighbouring work items read neighbouring elements, along whichever axis these lie.
        for (int e = item; e < SIDE * DEPTH; e += 256) {{
            const int i = a_column == 1 ? e / DEPTH : e % SIDE, p = a_column == 1 ? e % DEPTH : e / SIDE;
            left[p][i] = row + i < m && from + p < k ? LOAD(a, (row + i) * a_row + (from + p) * a_column) : (T)0;
            const int j = b_row == 1 ? e / DEPTH : e % SIDE, q = b_row == 1 ? e % DEPTH : e / SIDE;
            right[q][j] = column + j < n && from + q < k ? LOAD(b, (from + q) * b_row + (column + j) * b_column) : (T)0;
        }}
        barrier(CLK_LOCAL_MEM_FENCE);
        for (int p = 0; p < DEPTH; p++) {{
            T u[4], v[4];
            UNROLL for (int i = 0; i < 4; i++) {{ u[i] = left[p][y + 16 * i]; v[i] = right[p][x + 16 * i]; }}
            UNROLL for (int i = 0; i < 4; i++) UNROLL for (int j = 0; j < 4; j++) sums[i][j] += u[i] * v[j];
        }}
        barrier(CLK_LOCAL_MEM_FENCE);
    }}
    UNROLL for (int i = 0; i < 4; i++) UNROLL for (int j = 0; j < 4; j++) {{
        const long r = row + y + 16 * i, to = column + x + 16 * j;
        if (r < m && to < n) STORE(c, r * n + to, relu && sums[i][j] < 0 ? (T)0 : sums[i][j]);
    }}
}}
"""

# Rows that are multiplied at a time, the most rows of a work item, and the rows of b in a block of a panel: 16 KiB, half of a first cache.
ROWS, MOST_ROWS, DEPTH = 6, 96, 256
# Work items that a large product is shared among at least.
_ITEMS = 64


@cache
def _source(dtype: Any, is_cpu: bool) -> str:
    memory, value = wrapping(dtype)
    width = 4 if value in ("double", "ulong") else 8
    load, store = ("vload_half(i, p)", "vstore_half_rte(v, i, p)") if memory == "half" else ("((T)(p)[i])", f"((p)[i] = ({memory})(v))")
    head = (
        f"#define S {memory}\n#define T {value}\n#define W {width}\n#define TW {value}{width}\n"
        f"#define LOAD(p, i) {load}\n#define STORE(p, i, v) {store}\n"
        f"#define VLOADW(i, p) vload{width}(i, p)\n#define VSTOREW(x, i, p) vstore{width}(x, i, p)\n"
    )
    sizes = f"#define ROWS {ROWS}\n#define MOST_ROWS {MOST_ROWS}\n#define DEPTH {DEPTH}\n"
    return head + UNROLL + (sizes + _CPU if is_cpu else _GPU)


def _product(
    cl: OpenCL, a: Any, b: Any, bias: Any, c: Any, sizes: tuple[int, int, int], a_steps: Ints, b_steps: Ints, batch: tuple[int, int, int], relu: bool
) -> None:
    """Enqueue: c = a b + bias, m x k times k x n; `steps`: strides of rows and columns; `batch`: (matrices, from one a to the next, from b to b)."""
    m, n, k = sizes
    count, a_next, b_next = batch
    rows, columns = MOST_ROWS, 2 * (4 if wrapping(c.dtype).value in ("double", "ulong") else 8)
    while rows > 2 * ROWS and -(-m // rows) * -(-n // columns) * count < _ITEMS:
        rows //= 2
    arguments = map(np.int64, (m, n, k, *a_steps, *b_steps, a_next, b_next, rows))
    grid, local = ((-(-n // columns), -(-m // rows), count), (1, 1, 1)) if cl.is_cpu else ((-(-n // 64) * 16, -(-m // 64) * 16, count), (16, 16, 1))
    flags = (np.int32(bias is not None), np.int32(relu))
    cl.run(_source(c.dtype, cl.is_cpu), "matrices", grid, a, b, c if bias is None else bias, c, *flags, *arguments, local_size=local)


@cache
def _batches(a: Ints, b: Ints, out: Ints) -> tuple[tuple[int, int, int], tuple[tuple[int, int, int], ...]]:
    """How matrices of leading axes `a` and `b` make those of `out`, counted in matrices: (matrices, from one of a to the next, the same of b) of a
    launch, and the first matrices (of a, b, out) of every launch."""
    dims, steps = joined(out, broadcast_strides(a, out), broadcast_strides(b, out), contiguous(out))
    firsts = tuple(
        tuple(sum(i * s for i, s in zip(at, step[:-1], strict=True)) for step in steps) for at in product(*(range(d) for d in dims[:-1]))
    )  # fmt: skip
    return (dims[-1], steps[0][-1], steps[1][-1]), firsts  # type: ignore[return-value]


def matmul(cl: OpenCL, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, attributes: Attributes) -> None:
    """The kernel of tensor.matmul."""
    (a, b), c = inputs, outputs[0]
    if not c.size:
        return
    flip_a, flip_b = attributes["transpose_a"], attributes["transpose_b"]
    m, n = c.shape[-2:]
    k = a.shape[-2] if flip_a else a.shape[-1]
    a_steps, b_steps = (1, m) if flip_a else (k, 1), (1, k) if flip_b else (n, 1)
    (count, a_next, b_next), firsts = _batches(tuple(a.shape[:-2]), tuple(b.shape[:-2]), tuple(c.shape[:-2]))
    for i, j, to in firsts:
        here = c if len(firsts) == 1 else cl.part(c, to * m * n, (count, m, n))
        left = a if not i else cl.part(a, i * m * k, (a.size - i * m * k,))
        right = b if not j else cl.part(b, j * k * n, (b.size - j * k * n,))
        _product(cl, left, right, None, here, (m, n, k), a_steps, b_steps, (count, a_next * m * k, b_next * k * n), False)


def dense(cl: OpenCL, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, attributes: Attributes) -> None:
    """The kernel of nn.dense: one product of all rows."""
    x, w, y = inputs[0], inputs[1], outputs[0]
    if not y.size:
        return
    k, n = w.shape
    bias = inputs[2] if len(inputs) == 3 else None
    _product(cl, x, w, bias, y, (math.prod(x.shape[:-1]), n, k), (k, 1), (n, 1), (1, 0, 0), attributes["activation"] == "relu")
