"""Softmax, losses and what evaluation counts, with gradients.

Everything goes through x - max(x), so that no exponential overflows: softmax = e / sum(e) and log_softmax = z - log(sum(e)) with z = x - max(x),
e = exp(z).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hetsched.errors import GraphError
from hetsched.graph.op import Attribute, Attributes, Cotangent, Op
from hetsched.graph.ops import _cl_loss, _cuda_ids, _cuda_rows, _cuda_small
from hetsched.graph.ops._cl_types import Reduction
from hetsched.graph.ops._ids import check_ids
from hetsched.graph.ops._rules import arrays, one_axis, per_input, want_float
from hetsched.graph.ops._scratch import scratch, scratch_nbytes
from hetsched.graph.spec import AnySpec, Spec

if TYPE_CHECKING:
    from hetsched.graph.graph import Builder, Value


# Softmax ------------------------------------------------------------------------------------------------------------------------


def _softmax(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    x, y = inputs[0], outputs[0]
    if not x.size:
        return
    axis = a["axis"]
    xp.subtract(x, x.max(axis=axis, keepdims=True), out=y)
    xp.exp(y, out=y)
    xp.divide(y, y.sum(axis=axis, keepdims=True), out=y)


def _log_softmax(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    x, y = inputs[0], outputs[0]
    if not x.size:
        return
    axis = a["axis"]
    e = scratch(xp, workspace, x.dtype, x.size)[0].reshape(x.shape)
    xp.subtract(x, x.max(axis=axis, keepdims=True), out=y)
    xp.exp(y, out=e)
    xp.subtract(y, xp.log(e.sum(axis=axis, keepdims=True)), out=y)


def _softmax_grad(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    """dx = y * (dy - sum(dy * y))."""
    (y, dy), dx = inputs, outputs[0]
    product = scratch(xp, workspace, y.dtype, y.size)[0].reshape(y.shape)
    xp.multiply(y, dy, out=product)
    xp.subtract(dy, product.sum(axis=a["axis"], keepdims=True), out=product)
    xp.multiply(product, y, out=dx)


def _log_softmax_grad(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    """dx = dy - exp(y) * sum(dy)."""
    (y, dy), dx = inputs, outputs[0]
    e = scratch(xp, workspace, y.dtype, y.size)[0].reshape(y.shape)
    xp.exp(y, out=e)
    xp.multiply(e, dy.sum(axis=a["axis"], keepdims=True), out=e)
    xp.subtract(dy, e, out=dx)


def _cuda_softmax(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    if not _cuda_rows.softmax(xp, inputs[0], outputs[0], a["axis"]):
        _softmax(xp, inputs, outputs, workspace, a)


def _cuda_log_softmax(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    if not _cuda_rows.softmax(xp, inputs[0], outputs[0], a["axis"], True):
        _log_softmax(xp, inputs, outputs, workspace, a)


def _cuda_softmax_grad(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    if not _cuda_rows.softmax_grad(xp, inputs[0], inputs[1], outputs[0], a["axis"]):
        _softmax_grad(xp, inputs, outputs, workspace, a)


def _cuda_log_softmax_grad(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    if not _cuda_rows.softmax_grad(xp, inputs[0], inputs[1], outputs[0], a["axis"], True):
        _log_softmax_grad(xp, inputs, outputs, workspace, a)


def _infer_softmax(specs: Sequence[AnySpec], a: Attributes) -> list[AnySpec]:
    x = arrays(specs, ("x",))[0]
    want_float(x, "x")
    one_axis(a["axis"], x.ndim)
    return [x]


def _infer_softmax_grad(specs: Sequence[AnySpec], a: Attributes) -> list[AnySpec]:
    y, dy = arrays(specs, ("y", "dy"))
    if y != dy:
        raise GraphError(f"dy must be {y!r}, as y, got {dy!r}")
    return _infer_softmax([y], a)


def _like_first_or_reduced(inputs: Sequence[AnySpec], outputs: Sequence[AnySpec], a: Attributes) -> int:
    x = inputs[0]
    return max(_like_first(inputs, outputs, a), Reduction.nbytes(x.size)) if isinstance(x, Spec) else 0


def _like_first(inputs: Sequence[AnySpec], outputs: Sequence[AnySpec], a: Attributes) -> int:
    x = inputs[0]
    return scratch_nbytes(x.dtype, x.size) if isinstance(x, Spec) else 0


def _softmax_gradient(
    b: Builder, inputs: Sequence[Value], outputs: Sequence[Value], grads: Sequence[Value | None], a: Attributes
) -> Sequence[Cotangent]:
    dy = grads[0]
    if dy is None:
        return [None]
    return [lambda: b.op(SOFTMAX_GRAD, outputs[0], dy, axis=a["axis"])]


def _log_softmax_gradient(
    b: Builder, inputs: Sequence[Value], outputs: Sequence[Value], grads: Sequence[Value | None], a: Attributes
) -> Sequence[Cotangent]:
    dy = grads[0]
    if dy is None:
        return [None]
    return [lambda: b.op(LOG_SOFTMAX_GRAD, outputs[0], dy, axis=a["axis"])]


_AXIS = {"axis": Attribute(int, -1, "the axis along which the result sums to 1")}

SOFTMAX = Op(
    "nn.softmax",
    ("x",),
    ("y",),
    _infer_softmax,
    per_input(5),
    kernels={"array": _softmax, "opencl": _cl_loss.softmax, "cuda": _cuda_softmax},
    gradient=_softmax_gradient,
    attributes=_AXIS,
    inplace=((0, 0),),
    doc="exp(x) / sum(exp(x)) along one axis; x of any shape and a floating dtype.",
    calls=11,
)

LOG_SOFTMAX = Op(
    "nn.log_softmax",
    ("x",),
    ("y",),
    _infer_softmax,
    per_input(5),
    kernels={"array": _log_softmax, "opencl": _cl_loss.log_softmax, "cuda": _cuda_log_softmax},
    gradient=_log_softmax_gradient,
    attributes=_AXIS,
    inplace=((0, 0),),
    workspace=_like_first,
    doc="log(softmax(x)) along one axis, exact where softmax itself is 0.",
    calls=14,
)

SOFTMAX_GRAD = Op(
    "nn.softmax_grad",
    ("y", "dy"),
    ("dx",),
    _infer_softmax_grad,
    per_input(4),
    kernels={"array": _softmax_grad, "opencl": _cl_loss.softmax_grad, "cuda": _cuda_softmax_grad},
    attributes=_AXIS,
    inplace=((0, 0), (0, 1)),
    workspace=_like_first,
    doc="The gradient of `nn.softmax`: y * (dy - sum(dy * y)).",
    calls=8,
)

LOG_SOFTMAX_GRAD = Op(
    "nn.log_softmax_grad",
    ("y", "dy"),
    ("dx",),
    _infer_softmax_grad,
    per_input(4),
    kernels={"array": _log_softmax_grad, "opencl": _cl_loss.log_softmax_grad, "cuda": _cuda_log_softmax_grad},
    attributes=_AXIS,
    inplace=((0, 0), (0, 1)),
    workspace=_like_first,
    doc="The gradient of `nn.log_softmax`: dy - exp(y) * sum(dy).",
    calls=8,
)


# Cross entropy --------------------------------------------------------------------------------------------------------------------


# Classes up to which the losses lay them out as rows.
_FEW = 64


def _mean_over(n: int, reduction: str) -> float:
    """What a sum over n rows is divided by; no rows have the mean 0."""
    return float(max(n, 1)) if reduction == "mean" else 1.0


def _exponentials(xp: Any, logits: Any, labels: Any, workspace: Any) -> tuple[Any, Any, Any, Any, Any]:
    """With z = logits - max(logits) by row: exp(z), its sums by row, z at the labels, the index of the labels in z, and exp(z) as [classes, n].

    Of few classes the classes are laid out as rows: adding up ten long rows is one pass, adding up many rows of ten is a loop over the rows
    (128 rows of 10: 10 us for all of the loss, 18 the other way).
    """
    n, classes = logits.shape
    check_ids(xp, labels, classes, "labels")
    (flat,) = scratch(xp, workspace, logits.dtype, logits.size)
    rows = xp.arange(n)
    if classes <= _FEW:
        z = flat.reshape(classes, n)
        xp.copyto(z, logits.T)
        xp.subtract(z, z.max(axis=0), out=z)
        at, by_class, axis = (labels, rows), z, 0
    else:
        z = flat.reshape(n, classes)
        xp.subtract(logits, logits.max(axis=1, keepdims=True), out=z)
        at, by_class, axis = (rows, labels), z.T, 1
    chosen = z[at]
    xp.exp(z, out=z)
    return z, z.sum(axis=axis), chosen, at, by_class


def _cross_entropy(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    """loss = sum over rows of log(sum(exp(z))) - z[label], z = logits - max(logits)."""
    (logits, labels), loss = inputs, outputs[0]
    n = len(logits)
    if not n:
        loss.fill(0)
        return
    _, sums, chosen, _, _ = _exponentials(xp, logits, labels, workspace)
    xp.log(sums, out=sums)
    xp.subtract(sums, chosen, out=sums)
    sums.sum(out=loss)
    if a["reduction"] == "mean":
        xp.divide(loss, float(n), out=loss)


def _cross_entropy_grad(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    """dlogits = (softmax - one_hot) * dloss / n, without a mean * dloss."""
    (logits, labels, dloss), dlogits = inputs, outputs[0]
    n = len(logits)
    if not n:
        return
    e, sums, _, at, by_class = _exponentials(xp, logits, labels, workspace)
    share = dloss / _mean_over(n, a["reduction"])
    xp.divide(share, sums, out=sums)
    xp.multiply(by_class, sums, out=by_class)
    e[at] -= share
    xp.copyto(dlogits, by_class.T)


# Rows up to which one block adds up all losses, and a thread looks at all of a row's few classes.
_FEW_ROWS = 2048


def _cuda_cross_entropy(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    (logits, labels), loss = inputs, outputs[0]
    n = len(logits)
    count = _mean_over(n, a["reduction"])
    if n <= _FEW_ROWS and _cuda_small.cross_entropy(xp, logits, labels, loss, count, _cuda_ids.told(loss, labels, logits.shape[1], "labels")):
        return
    _cuda_ids.check_ids(xp, loss, labels, logits.shape[1], "labels")
    (losses,) = scratch(xp, workspace, logits.dtype, n)
    if not _cuda_rows.cross_entropy(xp, logits, labels, loss, losses, count):
        _cross_entropy(xp, inputs, outputs, workspace, a)


def _cuda_cross_entropy_grad(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    (logits, labels, dloss), out = inputs, outputs[0]
    n = len(logits)
    count = _mean_over(n, a["reduction"])
    if n <= _FEW_ROWS and _cuda_small.cross_entropy_grad(
        xp, logits, labels, dloss, out, count, _cuda_ids.told(out, labels, logits.shape[1], "labels")
    ):
        return
    _cuda_ids.check_ids(xp, out, labels, logits.shape[1], "labels")
    if not _cuda_rows.cross_entropy_grad(xp, logits, labels, dloss, out, count):
        _cross_entropy_grad(xp, inputs, outputs, workspace, a)


def _check_logits(specs: Sequence[AnySpec]) -> Spec:
    """The logits' spec; raises `GraphError` with everything that is wrong with logits or labels."""
    problems = []
    logits, labels = arrays(specs[:2], ("logits", "labels"))
    if logits.ndim != 2:
        problems.append(f"logits must have 2 axes (rows, classes), got {logits!r}")
    elif Spec(logits.shape[1:]).is_bounded or logits.shape[1] == 0:
        problems.append(f"logits must have a known number of at least one class, got {logits!r}")
    if logits.dtype.kind != "f":
        problems.append(f"logits must be of a floating dtype, got {logits!r}; convert them with tensor.cast")
    if labels.dtype.kind not in "iu":
        problems.append(f"labels must be of an integer dtype (the number of the class), got {labels!r}")
    if logits.ndim == 2 and labels.shape != logits.shape[:1]:
        problems.append(f"labels must have one number a row, {list(logits.shape[:1])}, got {labels!r}")
    if problems:
        raise GraphError(problems)
    return logits


def _infer_cross_entropy(specs: Sequence[AnySpec], a: Attributes) -> list[AnySpec]:
    return [Spec((), _check_logits(specs).dtype)]


def _infer_cross_entropy_grad(specs: Sequence[AnySpec], a: Attributes) -> list[AnySpec]:
    logits = _check_logits(specs)
    if specs[2] != Spec((), logits.dtype):
        raise GraphError(f"dloss must be {Spec((), logits.dtype)!r}, got {specs[2]!r}")
    return [logits]


def _cross_entropy_gradient(
    b: Builder, inputs: Sequence[Value], outputs: Sequence[Value], grads: Sequence[Value | None], a: Attributes
) -> Sequence[Cotangent]:
    dloss = grads[0]
    if dloss is None:
        return [None, None]
    return [lambda: b.op(CROSS_ENTROPY_GRAD, *inputs, dloss, reduction=a["reduction"]), None]


_REDUCTION = {"reduction": Attribute(("mean", "sum"), "mean", "mean over the rows (0 where there are none), or their sum")}

CROSS_ENTROPY = Op(
    "nn.cross_entropy",
    ("logits", "labels"),
    ("loss",),
    _infer_cross_entropy,
    per_input(6),
    kernels={"array": _cross_entropy, "opencl": _cl_loss.cross_entropy, "cuda": _cuda_cross_entropy},
    gradient=_cross_entropy_gradient,
    attributes=_REDUCTION,
    workspace=_like_first_or_reduced,
    doc="""-log(softmax(logits))[label] over the rows: logits [n, classes], labels [n] of an integer dtype, loss a scalar of the dtype of logits.

    A label outside 0..classes-1 is an error.""",
    calls=25,
)

CROSS_ENTROPY_GRAD = Op(
    "nn.cross_entropy_grad",
    ("logits", "labels", "dloss"),
    ("dlogits",),
    _infer_cross_entropy_grad,
    per_input(7),
    kernels={"array": _cross_entropy_grad, "opencl": _cl_loss.cross_entropy_grad, "cuda": _cuda_cross_entropy_grad},
    attributes=_REDUCTION,
    inplace=((0, 0),),
    workspace=_like_first,
    doc="""The gradient of `nn.cross_entropy` with respect to logits: (softmax(logits) - one_hot(labels)) * dloss, divided by n for a mean.

    A label outside 0..classes-1 is an error.""",
    calls=30,
)


# Mean squared error ---------------------------------------------------------------------------------------------------------------


def _mse(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    (x, y), loss = inputs, outputs[0]
    square = scratch(xp, workspace, x.dtype, x.size)[0].reshape(x.shape)
    xp.subtract(x, y, out=square)
    xp.multiply(square, square, out=square)
    xp.sum(square, out=loss)
    xp.divide(loss, _mean_over(x.size, a["reduction"]), out=loss)


def _mse_grad(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    (x, y, dloss), dx = inputs, outputs[0]
    xp.subtract(x, y, out=dx)
    xp.multiply(dx, dloss * dx.dtype.type(2 / _mean_over(x.size, a["reduction"])), out=dx)


def _cuda_mse(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    (x, y), loss = inputs, outputs[0]
    (parts,) = scratch(xp, workspace, x.dtype, x.size)
    if not _cuda_rows.squares(xp, x, y, loss, parts, _mean_over(x.size, a["reduction"])):
        _mse(xp, inputs, outputs, workspace, a)


def _cuda_mse_grad(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    (x, y, dloss), dx = inputs, outputs[0]
    if not _cuda_rows.squares_grad(xp, x, y, dloss, dx, _mean_over(x.size, a["reduction"])):
        _mse_grad(xp, inputs, outputs, workspace, a)


def _infer_mse(specs: Sequence[AnySpec], a: Attributes) -> list[AnySpec]:
    x, y = arrays(specs[:2], ("x", "y"))
    want_float(x, "x")
    if x != y:
        raise GraphError(f"y must be {x!r}, as x, got {y!r}")
    return [Spec((), x.dtype)]


def _infer_mse_grad(specs: Sequence[AnySpec], a: Attributes) -> list[AnySpec]:
    wanted = _infer_mse(specs, a)[0]
    if specs[2] != wanted:
        raise GraphError(f"dloss must be {wanted!r}, got {specs[2]!r}")
    return [specs[0]]


def _mse_gradient(b: Builder, inputs: Sequence[Value], outputs: Sequence[Value], grads: Sequence[Value | None], a: Attributes) -> Sequence[Cotangent]:
    dloss, (x, y) = grads[0], inputs
    if dloss is None:
        return [None, None]
    # The loss is symmetric: what is dx for (x, y) is dy for (y, x).
    return [lambda: b.op(MSE_GRAD, x, y, dloss, reduction=a["reduction"]), lambda: b.op(MSE_GRAD, y, x, dloss, reduction=a["reduction"])]


_ELEMENTS = {"reduction": Attribute(("mean", "sum"), "mean", "mean over all elements (0 where there are none), or their sum")}

MSE = Op(
    "nn.mse",
    ("x", "y"),
    ("loss",),
    _infer_mse,
    per_input(3),
    kernels={"array": _mse, "opencl": _cl_loss.mse, "cuda": _cuda_mse},
    gradient=_mse_gradient,
    attributes=_ELEMENTS,
    workspace=_like_first_or_reduced,
    doc="The mean of (x - y) ** 2 over all elements: x, y of one shape and floating dtype, loss a scalar.",
    calls=12,
)

MSE_GRAD = Op(
    "nn.mse_grad",
    ("x", "y", "dloss"),
    ("dx",),
    _infer_mse_grad,
    per_input(2),
    kernels={"array": _mse_grad, "opencl": _cl_loss.mse_grad, "cuda": _cuda_mse_grad},
    attributes=_ELEMENTS,
    inplace=((0, 0), (0, 1)),
    doc="The gradient of `nn.mse` with respect to x: 2 (x - y) * dloss, divided by the number of elements for a mean.",
    calls=5,
)


# Accuracy ---------------------------------------------------------------------------------------------------------------------------


def _correct(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    (logits, labels), count = inputs, outputs[0]
    if not logits.size:
        count.fill(0)
        return
    check_ids(xp, labels, logits.shape[1], "labels")
    xp.sum(logits.argmax(axis=1) == labels, out=count)


def _cuda_correct(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    if inputs[0].size:
        _cuda_ids.check_ids(xp, outputs[0], inputs[1], inputs[0].shape[1], "labels")
    if not _cuda_rows.correct(xp, inputs[0], inputs[1], outputs[0]):
        _correct(xp, inputs, outputs, workspace, a)


def _reduced(inputs: Sequence[AnySpec], outputs: Sequence[AnySpec], a: Attributes) -> int:
    labels = inputs[1]
    return Reduction.nbytes(labels.size) if isinstance(labels, Spec) else 0


def _infer_correct(specs: Sequence[AnySpec], a: Attributes) -> list[AnySpec]:
    _check_logits(specs)
    return [Spec((), np.int64)]


CORRECT = Op(
    "nn.correct",
    ("logits", "labels"),
    ("count",),
    _infer_correct,
    per_input(1),
    kernels={"array": _correct, "opencl": _cl_loss.correct, "cuda": _cuda_correct},
    workspace=_reduced,
    doc="How many rows have their largest logit (the first of equal ones) at their label: logits [n, classes], labels [n], count an int64 scalar.",
    calls=6,
)
