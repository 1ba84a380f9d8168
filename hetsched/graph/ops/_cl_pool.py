"""Pooling in OpenCL C (pool.py has the ops): one work item a window, or, where a gradient's windows overlap, a pixel, so that no
two work items add to one element.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hetsched.graph.op import Attributes, OpenCL
from hetsched.graph.ops._cl_types import source
from hetsched.graph.ops._windows import paddings, pair

# Window r covers the rows r * sh - ph up to kh more; those of the windows that cover row i run from FIRST to LAST.
_SOURCE = """
#define SIZES const long planes, const int h, const int w, const int oh, const int ow, \\
    const int kh, const int kw, const int sh, const int sw, const int ph, const int pw
#define FIRST(i, k, s, p) max(0, ((i) + (p) - (k) + (s)) / (s))
#define LAST(i, s, p, n) min((n) - 1, ((i) + (p)) / (s))
#define ROWS(r) int i = max(0, (r) * sh - ph); i < min(h, (r) * sh - ph + kh); i++
#define COLUMNS(s) int j = max(0, (s) * sw - pw); j < min(w, (s) * sw - pw + kw); j++

__kernel void max_pool(IN(S, x), OUT(S, y), SIZES) {
    LET_IN(S, x) LET_OUT(S, y)
    const int at = get_global_id(0);
    const long plane = get_global_id(1);
    if (at >= oh * ow || plane >= planes) return;
    const int r = at / ow, s = at % ow;
    T most = -INFINITY;
    for (ROWS(r)) for (COLUMNS(s)) {
        const T pixel = LOAD(x, plane * h * w + i * w + j);
        most = pixel > most || isnan(pixel) ? pixel : most;
    }
    STORE(y, plane * oh * ow + at, most);
}

__kernel void avg_pool(IN(S, x), OUT(S, y), SIZES) {
    LET_IN(S, x) LET_OUT(S, y)
    const int at = get_global_id(0);
    const long plane = get_global_id(1);
    if (at >= oh * ow || plane >= planes) return;
    const int r = at / ow, s = at % ow;
    T sum = 0;
    for (ROWS(r)) for (COLUMNS(s)) sum += LOAD(x, plane * h * w + i * w + j);
    STORE(y, plane * oh * ow + at, sum / (T)(kh * kw));
}

// Windows that do not overlap: one work item a window writes all of its pixels. What no window covers is 0 before.
__kernel void max_pool_grad_apart(IN(S, x), IN(S, y), IN(S, dy), OUT(S, dx), SIZES) {
    LET_IN(S, x) LET_IN(S, y) LET_IN(S, dy) LET_OUT(S, dx)
    const int at = get_global_id(0);
    const long plane = get_global_id(1);
    if (at >= oh * ow || plane >= planes) return;
    const int r = at / ow, s = at % ow;
    const T most = LOAD(y, plane * oh * ow + at);
    T left = LOAD(dy, plane * oh * ow + at);
    for (ROWS(r)) for (COLUMNS(s)) {
        const long pixel = plane * h * w + i * w + j;
        const bool equal = LOAD(x, pixel) == most;
        STORE(dx, pixel, equal ? left : (T)0);
        left = equal ? (T)0 : left;
    }
}

__kernel void avg_pool_grad_apart(IN(S, dy), OUT(S, dx), SIZES) {
    LET_IN(S, dy) LET_OUT(S, dx)
    const int at = get_global_id(0);
    const long plane = get_global_id(1);
    if (at >= oh * ow || plane >= planes) return;
    const int r = at / ow, s = at % ow;
    const T share = LOAD(dy, plane * oh * ow + at) / (T)(kh * kw);
    for (ROWS(r)) for (COLUMNS(s)) STORE(dx, plane * h * w + i * w + j, share);
}

// Windows that overlap: one work item a pixel. A window's dy goes to it if it equals the maximum and no pixel before it, row by
// row, does.
__kernel void max_pool_grad(IN(S, x), IN(S, y), IN(S, dy), OUT(S, dx), SIZES) {
    LET_IN(S, x) LET_IN(S, y) LET_IN(S, dy) LET_OUT(S, dx)
    const int at = get_global_id(0);
    const long plane = get_global_id(1);
    if (at >= h * w || plane >= planes) return;
    const int row = at / w, column = at % w;
    const long pixels = plane * h * w, windows = plane * oh * ow;
    const T own = LOAD(x, pixels + at);
    T sum = 0;
    for (int r = FIRST(row, kh, sh, ph); r <= LAST(row, sh, ph, oh); r++)
        for (int s = FIRST(column, kw, sw, pw); s <= LAST(column, sw, pw, ow); s++) {
            if (LOAD(y, windows + r * ow + s) != own) continue;
            bool first = true;
            for (ROWS(r)) for (COLUMNS(s)) first = first && (i * w + j >= at || LOAD(x, pixels + i * w + j) != own);
            if (first) sum += LOAD(dy, windows + r * ow + s);
        }
    STORE(dx, pixels + at, sum);
}

__kernel void avg_pool_grad(IN(S, dy), OUT(S, dx), SIZES) {
    LET_IN(S, dy) LET_OUT(S, dx)
    const int at = get_global_id(0);
    const long plane = get_global_id(1);
    if (at >= h * w || plane >= planes) return;
    const int row = at / w, column = at % w;
    T sum = 0;
    for (int r = FIRST(row, kh, sh, ph); r <= LAST(row, sh, ph, oh); r++)
        for (int s = FIRST(column, kw, sw, pw); s <= LAST(column, sw, pw, ow); s++) sum += LOAD(dy, plane * oh * ow + r * ow + s);
    STORE(dx, plane * h * w + at, sum / (T)(kh * kw));
}
"""


def _run(cl: OpenCL, function: str, inputs: Sequence[Any], target: Any, image: Any, windows: Any, a: Attributes) -> None:
    """`image`, `windows`: the arrays that have the images' and the windows' extents. A gradient writes `image`."""
    if not target.size:
        return
    window, stride = pair(a["size"], "size"), pair(a["size"] if a["stride"] is None else a["stride"], "stride")
    (up, _), (left, _) = paddings(a["padding"], window, stride)
    n, c, h, w = image.shape
    oh, ow = windows.shape[2:]
    items = oh * ow
    if target is image and not (stride[0] >= window[0] and stride[1] >= window[1]):
        items = h * w
    elif target is image:
        function += "_apart"
        if stride != window or (oh - 1) * stride[0] + window[0] - up < h or (ow - 1) * stride[1] + window[1] - left < w:
            cl.fill(target, 0)
    sizes = map(np.int32, (h, w, oh, ow, *window, *stride, up, left))
    cl.run(source(cl, target.dtype, _SOURCE), function, (items, n * c), *inputs, target, np.int64(n * c), *sizes, local_size=(16, 4))


def max_pool(cl: OpenCL, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    _run(cl, "max_pool", inputs, outputs[0], inputs[0], outputs[0], a)


def avg_pool(cl: OpenCL, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    _run(cl, "avg_pool", inputs, outputs[0], inputs[0], outputs[0], a)


def max_pool_grad(cl: OpenCL, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    _run(cl, "max_pool_grad", inputs, outputs[0], outputs[0], inputs[1], a)


def avg_pool_grad(cl: OpenCL, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    _run(cl, "avg_pool_grad", inputs, outputs[0], outputs[0], inputs[0], a)
