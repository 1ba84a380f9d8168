"""Rows and columns of data in OpenCL C (data.py has the ops)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hetsched.graph.op import Attributes, OpenCL
from hetsched.graph.ops._cl_types import c_type, source, unit_type
from hetsched.graph.ops._ids import FAULTS, watched

# Elements are copied as bits, by an unsigned type as wide. The number of the turn is read on the device.
_ROWS = """
__kernel void batch_rows(
    IN(U, x), IN(long, turn), IN(long, order), OUT(U, out), const int has_order, const long extent,
    const long count, const long columns, const long batch, const long cycle, FAULTS
) {
    LET_IN(U, x) LET_IN(long, turn) LET_IN(long, order) LET_OUT(U, out)
    const long column = get_global_id(0), row = get_global_id(1);
    if (column >= columns || row >= count) return;
    const long rest = turn[0] % cycle, at = (rest < 0 ? rest + cycle : rest) * batch + row;
    long from = has_order ? order[at] : at;
    if (from < 0 || from >= extent) { if (!column) TELL(from, at); from = 0; }
    out[row * columns + column] = x[from * columns + column];
}
"""

# A work item scans TILE neighbouring columns from the first row to the last: on processors 16, the numbers of a cache line, on others one. The
# extremes are compared in the type of x, and a NaN among them stays; sums are of A.
_COLUMNS = """
#if ACROSS
#define TILE 1
#else
#define TILE 16
#endif
#define EVERY(c) for (int c = 0; c < tile; c++)
#define LET_TILE const long first = get_global_id(0) * TILE; if (first >= columns) return; const int tile = (int)min((long)TILE, columns - first);
#define LET_EXTREMES \\
    C low[TILE], high[TILE]; \\
    EVERY(c) low[c] = high[c] = GET(x, first + c); \\
    for (long row = 1; row < rows; row++) EVERY(c) { \\
        const C v = GET(x, row * columns + first + c); \\
        if (v < low[c] || v != v) low[c] = v; \\
        if (v > high[c] || v != v) high[c] = v; \\
    }

__kernel void extent(IN(X, x), OUT(S, low_out), OUT(S, span_out), const long rows, const long columns) {
    LET_IN(X, x) LET_OUT(S, low_out) LET_OUT(S, span_out)
    LET_TILE
    LET_EXTREMES
    EVERY(c) {
        const A span = (A)high[c] - (A)low[c];
        STORE(low_out, first + c, (T)(A)low[c]);
        STORE(span_out, first + c, span == 0 ? (T)1 : (T)span);
    }
}

__kernel void moments(IN(X, x), OUT(S, mean_out), OUT(S, scale_out), const long rows, const long columns) {
    LET_IN(X, x) LET_OUT(S, mean_out) LET_OUT(S, scale_out)
    LET_TILE
    LET_EXTREMES
    A sum[TILE], mean[TILE];
    EVERY(c) sum[c] = 0;
    for (long row = 0; row < rows; row++) EVERY(c) sum[c] += (A)GET(x, row * columns + first + c);
    EVERY(c) { mean[c] = sum[c] / (A)rows; sum[c] = 0; }
    for (long row = 0; row < rows; row++) EVERY(c) {
        const A d = (A)GET(x, row * columns + first + c) - mean[c];
        sum[c] += d * d;
    }
    EVERY(c) {
        STORE(mean_out, first + c, (T)mean[c]);
        STORE(scale_out, first + c, low[c] == high[c] ? (T)1 : (T)sqrt(sum[c] / (A)rows));
    }
}
"""


def batch_rows(cl: OpenCL, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    out = outputs[0]
    if not out.size:
        return
    x, turn, *order = inputs
    count, *rest = out.shape
    columns = math.prod(rest)
    text = source(cl, np.float32, _ROWS, f"{FAULTS}#define U {unit_type(x.dtype)}\n")
    sizes = (np.int32(bool(order)), np.int64(x.shape[0]), *map(np.int64, (count, columns, a["batch"], a["cycle"])))
    ids = order[0] if order else turn
    local = (64, 1) if columns >= 64 else (8, 8)
    cl.run(text, "batch_rows", (columns, count), x, turn, ids, out, *sizes, watched(cl, out, ids, x.shape[0], "order"), local_size=local)


def whole(cl: OpenCL, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    if outputs[0].size:
        cl.copy(inputs[0], outputs[0])


def _by_columns(cl: OpenCL, function: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    """`A` is float where the device has no float64, and sums are then as good as float32 makes them."""
    x = inputs[0]
    rows, *rest = x.shape
    columns = math.prod(rest)
    if not columns:
        return
    half = x.dtype == np.float16
    defines = (
        f"#define X {c_type(x.dtype)}\n#define C {'float' if half else c_type(x.dtype)}\n#define GET(p, i) {'LOAD(p, i)' if half else '((p)[i])'}\n"
    )
    text = source(cl, outputs[0].dtype, _COLUMNS, defines)
    tile = 16 if cl.is_cpu else 1
    local = None if cl.is_cpu else (64,)
    cl.run(text, function, (-(-columns // tile),), x, *outputs, np.int64(rows), np.int64(columns), local_size=local)


def extent(cl: OpenCL, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    _by_columns(cl, "extent", inputs, outputs)


def moments(cl: OpenCL, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    _by_columns(cl, "moments", inputs, outputs)
