"""Softmax, losses and counting in OpenCL C (loss.py has the ops): one work item a row, then a deterministic reduction.

Where a label is outside the classes, the loss and the row's gradient are NaN, until the host hears of it (_ids.py). Rows are scanned by one work item
from end to end, which suits few classes; thousands of them would want a group a row on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from hetsched.graph.op import Attributes, OpenCL
from hetsched.graph.ops._cl_types import Elementwise, Reduction, c_type, scalar_type, source
from hetsched.graph.ops._ids import FAULTS, watched

# A line of `length` elements lies `inner` apart: softmax along any axis. Every pass reads element i before it writes element i, so y may be x.
_LINES = """
#define LINE(item) ((item) / inner * length * inner + (item) % inner)
#define EVERY(i) for (long i = LINE(id), end_ = i + length * inner; i < end_; i += inner)

__kernel void softmax(IN(S, x), OUT(S, y), const long lines, const long length, const long inner) {
    LET_IN(S, x) LET_OUT(S, y)
    const long id = get_global_id(0);
    if (id >= lines) return;
    T most = -INFINITY, sum = 0;
    EVERY(i) most = fmax(most, LOAD(x, i));
    EVERY(i) { const T e = exp(LOAD(x, i) - most); sum += e; STORE(y, i, e); }
    EVERY(i) STORE(y, i, LOAD(y, i) / sum);
}

__kernel void log_softmax(IN(S, x), OUT(S, y), const long lines, const long length, const long inner) {
    LET_IN(S, x) LET_OUT(S, y)
    const long id = get_global_id(0);
    if (id >= lines) return;
    T most = -INFINITY, sum = 0;
    EVERY(i) most = fmax(most, LOAD(x, i));
    EVERY(i) sum += exp(LOAD(x, i) - most);
    const T rest = log(sum);
    EVERY(i) STORE(y, i, (LOAD(x, i) - most) - rest);
}

__kernel void softmax_grad(IN(S, y), IN(S, dy), OUT(S, dx), const long lines, const long length, const long inner) {
    LET_IN(S, y) LET_IN(S, dy) LET_OUT(S, dx)
    const long id = get_global_id(0);
    if (id >= lines) return;
    T sum = 0;
    EVERY(i) sum += LOAD(y, i) * LOAD(dy, i);
    EVERY(i) STORE(dx, i, LOAD(y, i) * (LOAD(dy, i) - sum));
}

__kernel void log_softmax_grad(IN(S, y), IN(S, dy), OUT(S, dx), const long lines, const long length, const long inner) {
    LET_IN(S, y) LET_IN(S, dy) LET_OUT(S, dx)
    const long id = get_global_id(0);
    if (id >= lines) return;
    T sum = 0;
    EVERY(i) sum += LOAD(dy, i);
    EVERY(i) STORE(dx, i, LOAD(dy, i) - exp(LOAD(y, i)) * sum);
}
"""

_GRAD = """
__kernel void cross_entropy_grad(
    IN(S, logits), IN(LABEL, labels), IN(S, dloss), OUT(S, dlogits), const long rows, const long classes, const T divisor, FAULTS) {
    LET_IN(S, logits) LET_IN(LABEL, labels) LET_IN(S, dloss) LET_OUT(S, dlogits)
    const long id = get_global_id(0);
    if (id >= rows) return;
    const long start = id * classes, end = start + classes;
    const ulong label = (ulong)(long)labels[id];
    const T share = LOAD(dloss, 0) / divisor;
    T most = -INFINITY, sum = 0;
    for (long i = start; i < end; i++) most = fmax(most, LOAD(logits, i));
    for (long i = start; i < end; i++) sum += exp(LOAD(logits, i) - most);
    T scale = share / sum;
    if (UNKNOWN(label)) { TELL(label, id); scale = NAN; }
    for (long i = start; i < end; i++) STORE(dlogits, i, exp(LOAD(logits, i) - most) * scale - ((ulong)(i - start) == label ? share : (T)0));
}
"""

# Row i of the sum. As unsigned 64-bit numbers labels of every integer type can be compared: negative ones are large.
_LOSS = """
    const ulong label = (ulong)(long)labels[i];
    const long start = i * classes, end = start + classes;
    T most = -INFINITY, total = 0;
    for (long j = start; j < end; j++) most = fmax(most, LOAD(logits, j));
    for (long j = start; j < end; j++) total += exp(LOAD(logits, j) - most);
    if (UNKNOWN(label)) TELL(label, i);
    sum += label < (ulong)classes ? log(total) - (LOAD(logits, start + (long)label) - most) : (T)NAN;
"""

_COUNT = """
    const long start = i * classes;
    long best = 0;
    T most = LOAD(logits, start);
    for (long j = 1; j < classes; j++) {
        const T x = LOAD(logits, start + j);
        if (x > most || (isnan(x) && !isnan(most))) { most = x; best = j; }
    }
    const ulong label = (ulong)(long)labels[i];
    if (UNKNOWN(label)) TELL(label, i);
    sum += label == (ulong)best;
"""

_SQUARE = Reduction((("S", "x"), ("S", "y")), "const T d = LOAD(x, i) - LOAD(y, i); sum += d * d;")
_MSE_GRAD = Elementwise(
    ("x", "y"), ("dx",), "const V dx = (x - y) * factor;", "IN(S, dloss), const T share", "LET_IN(S, dloss) const T factor = LOAD(dloss, 0) * share;"
)

# Elements that are worth a work item of their own, on processors and on others.
_LEAST_CPU, _LEAST_GPU = 512, 4


_UNKNOWN = f"{FAULTS}#define UNKNOWN(label) ((ulong)(label) >= (ulong)classes)\n"


@cache
def _labelled(term: str, label: str, counts: bool = False) -> Reduction:
    return Reduction((("S", "logits"), (label, "labels")), term, "const long classes, FAULTS", counts, _UNKNOWN)


def _least(cl: OpenCL, classes: int) -> int:
    return max(1, (_LEAST_CPU if cl.is_cpu else _LEAST_GPU) // classes)


def _mean_over(n: int, reduction: str) -> float:
    return float(max(n, 1)) if reduction == "mean" else 1.0


# Kernels ----------------------------------------------------------------------------------------------------------------------


def _by_lines(cl: OpenCL, function: str, inputs: Sequence[Any], outputs: Sequence[Any], axis: int) -> None:
    x = inputs[0]
    if not x.size:
        return
    axis %= len(x.shape)
    length, inner = x.shape[axis], math.prod(x.shape[axis + 1 :])
    lines = x.size // length
    sizes = (np.int64(lines), np.int64(length), np.int64(inner))
    cl.run(source(cl, x.dtype, _LINES), function, (lines,), *inputs, *outputs, *sizes, local_size=(16,) if lines > 16 else None)


def softmax(cl: OpenCL, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    _by_lines(cl, "softmax", inputs, outputs, a["axis"])


def log_softmax(cl: OpenCL, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    _by_lines(cl, "log_softmax", inputs, outputs, a["axis"])


def softmax_grad(cl: OpenCL, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    _by_lines(cl, "softmax_grad", inputs, outputs, a["axis"])


def log_softmax_grad(cl: OpenCL, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    _by_lines(cl, "log_softmax_grad", inputs, outputs, a["axis"])


def cross_entropy(cl: OpenCL, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    (logits, labels), loss = inputs, outputs[0]
    n, classes = logits.shape
    if not n:
        cl.fill(loss, 0)
        return
    told = watched(cl, loss, labels, classes, "labels")
    reduction = _labelled(_LOSS, c_type(labels.dtype))
    reduction.run(cl, logits.dtype, inputs, loss, workspace, n, _least(cl, classes), _mean_over(n, a["reduction"]), np.int64(classes), told)


def cross_entropy_grad(cl: OpenCL, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    logits, labels, _ = inputs
    n, classes = logits.shape
    if not n:
        return
    text = source(cl, logits.dtype, _GRAD, f"{_UNKNOWN}#define LABEL {c_type(labels.dtype)}\n")
    divisor: Any = scalar_type(logits.dtype)
    sizes = (np.int64(n), np.int64(classes), divisor(_mean_over(n, a["reduction"])))
    told = watched(cl, outputs[0], labels, classes, "labels")
    cl.run(text, "cross_entropy_grad", (n,), *inputs, *outputs, *sizes, told, local_size=(16,) if n > 16 else None)


def mse(cl: OpenCL, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    x, loss = inputs[0], outputs[0]
    if not x.size:
        cl.fill(loss, 0)
        return
    _SQUARE.run(cl, x.dtype, inputs, loss, workspace, x.size, _least(cl, 1), _mean_over(x.size, a["reduction"]))


def mse_grad(cl: OpenCL, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    x, y, dloss = inputs
    share: Any = scalar_type(x.dtype)
    _MSE_GRAD.run(cl, [x, y, *outputs], dloss, share(2 / _mean_over(x.size, a["reduction"])))


def correct(cl: OpenCL, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    (logits, labels), count = inputs, outputs[0]
    n, classes = logits.shape
    if not n:
        cl.fill(count, 0)
        return
    told = watched(cl, count, labels, classes, "labels")
    reduction = _labelled(_COUNT, c_type(labels.dtype), counts=True)
    reduction.run(cl, logits.dtype, inputs, count, workspace, n, _least(cl, classes), 1, np.int64(classes), told)
