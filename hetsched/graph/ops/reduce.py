"""Reductions over axes: sum, mean, max, argmax, and the sum back to a shape that was broadcast."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hetsched.errors import GraphError
from hetsched.graph.op import Attribute, Attributes, Cotangent, Op
from hetsched.graph.ops import _cl_reduce as opencl
from hetsched.graph.ops import _cuda_rows, _cuda_small
from hetsched.graph.ops._rules import (
    arrays,
    broadcast,
    fixed,
    one_axis,
    one_output,
    per_input,
    reduced,
    some_axes,
    text,
    want_float,
    want_number,
)
from hetsched.graph.spec import AnySpec, Spec, bound

if TYPE_CHECKING:
    from hetsched.graph.graph import Builder, Value

_AXES = {
    "axes": Attribute("ints", None, "the axes to reduce; left out: all of them"),
    "keepdims": Attribute(bool, False, "keep the reduced axes, with extent 1"),
}


def _reduction(spec: Spec, attributes: Attributes, dtype: np.dtype[Any]) -> list[AnySpec]:
    return [Spec(reduced(spec.shape, some_axes(attributes["axes"], spec.ndim), attributes["keepdims"]), dtype)]


def _want_elements(spec: Spec, axes: Sequence[int], what: str) -> None:
    """An error where a value that does exist would be reduced from no element."""
    kept = math.prod(bound(d) for i, d in enumerate(spec.shape) if i not in axes)
    if kept and any(bound(spec.shape[i]) == 0 for i in axes):
        raise GraphError(f"{what} of no elements has no value: axes {tuple(axes)} of {text(spec.shape)} are empty")


def _workspace(inputs: Sequence[AnySpec], outputs: Sequence[AnySpec], attributes: Attributes) -> int:
    x = inputs[0]
    on_cuda = _cuda_rows.workspace_nbytes(x, attributes["axes"]) if isinstance(x, Spec) else 0
    return max(opencl.workspace_nbytes(inputs, attributes["axes"]), on_cuda)


# sum and mean -----------------------------------------------------------------------------------------------------------------


def _infer_sum(specs: Sequence[AnySpec], attributes: Attributes) -> list[AnySpec]:
    (x,) = arrays(specs, ("x",))
    return _reduction(x, attributes, x.dtype if x.dtype.kind == "f" else np.dtype(np.int64))


def _sum(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    add_up(xp, inputs[0], outputs[0], attributes["axes"], attributes["keepdims"])


def _cuda_sum(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    x, out = inputs[0], outputs[0]
    axes = attributes["axes"]
    if (axes not in ((0,), (-2,)) or not _cuda_small.columns(xp, x, out)) and not _cuda_rows.reduced(xp, x, out, axes, workspace, False):
        add_up(xp, x, out, axes, attributes["keepdims"])


def add_up(xp: Any, x: Any, out: Any, axes: tuple[int, ...] | None, keepdims: bool) -> None:
    """out = the sum of x over `axes` (None: all), in the dtype of out. NumPy's wrapper of this ufunc costs as much as the sum of a small array."""
    if xp is np:
        np.add.reduce(x, axis=axes, dtype=out.dtype, out=out, keepdims=keepdims)
    else:
        xp.sum(x, axis=axes, dtype=out.dtype, out=out, keepdims=keepdims)


def _infer_mean(specs: Sequence[AnySpec], attributes: Attributes) -> list[AnySpec]:
    (x,) = arrays(specs, ("x",))
    want_float(x, "x")
    _want_elements(x, some_axes(attributes["axes"], x.ndim), "the mean")
    return _reduction(x, attributes, x.dtype)


def _mean(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    x, out = inputs[0], outputs[0]
    add_up(xp, x, out, attributes["axes"], attributes["keepdims"])
    if out.size:
        xp.multiply(out, out.size / x.size, out=out)


def _cuda_mean(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    x, out = inputs[0], outputs[0]
    if not (out.size and _cuda_rows.reduced(xp, x, out, attributes["axes"], workspace, False, out.size / max(x.size, 1))):
        _mean(xp, inputs, outputs, workspace, attributes)


def _spread(b: Builder, x: Value, g: Value, attributes: Attributes) -> Value:
    """`g`, a reduction of something of x's spec, broadcast back to it."""
    spec = x.array_spec
    axes = some_axes(attributes["axes"], spec.ndim)
    if not attributes["keepdims"] and axes and len(axes) != spec.ndim:
        kept = reduced(spec.shape, axes, True)
        if sum(not isinstance(d, int) for d in kept) > 1:
            fixed(kept, "the gradient of a reduction")
        g = b.op("tensor.reshape", g, shape=[d if isinstance(d, int) else -1 for d in kept])
    out: Value = g
    if g.shape != spec.shape:
        out = b.op("tensor.broadcast_to", g, x) if spec.is_bounded else b.op("tensor.broadcast_to", g, shape=spec.bounds)
    return out


@one_output
def _sum_gradient(b: Builder, x: Sequence[Value], y: Value, g: Value, attributes: Attributes) -> list[Cotangent]:
    return [lambda: _spread(b, x[0], g, attributes)]


@one_output
def _mean_gradient(b: Builder, x: Sequence[Value], y: Value, g: Value, attributes: Attributes) -> list[Cotangent]:
    def share() -> Value:
        spec = x[0].array_spec
        dims = [spec.shape[i] for i in some_axes(attributes["axes"], spec.ndim)]
        n = math.prod(fixed(tuple(dims), "the gradient of tensor.mean over its axes"))
        return _spread(b, x[0], b.op("tensor.scale", g, factor=1.0 / n) if n > 1 else g, attributes)

    return [share]


sum_ = Op(
    "tensor.sum", ("x",), ("out",), _infer_sum, per_input(1), {"array": _sum, "opencl": opencl.sum_, "cuda": _cuda_sum}, _sum_gradient, _AXES,
    workspace=_workspace, calls=3, doc="The sum over axes; integers and bools are summed in int64.",
)  # fmt: skip
mean = Op(
    "tensor.mean", ("x",), ("out",), _infer_mean, per_input(1), {"array": _mean, "opencl": opencl.mean, "cuda": _cuda_mean}, _mean_gradient, _AXES,
    workspace=_workspace, calls=4, doc="The mean over axes; floating dtypes.",
)  # fmt: skip


# max and argmax ---------------------------------------------------------------------------------------------------------------


def _infer_max(specs: Sequence[AnySpec], attributes: Attributes) -> list[AnySpec]:
    (x,) = arrays(specs, ("x",))
    want_number(x, "x")
    _want_elements(x, some_axes(attributes["axes"], x.ndim), "the maximum")
    return _reduction(x, attributes, x.dtype)


def _max(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    if not outputs[0].size:
        return
    if xp is np:
        np.maximum.reduce(inputs[0], axis=attributes["axes"], out=outputs[0], keepdims=attributes["keepdims"])
    else:
        xp.max(inputs[0], axis=attributes["axes"], out=outputs[0], keepdims=attributes["keepdims"])


def _cuda_max(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    if not _cuda_rows.reduced(xp, inputs[0], outputs[0], attributes["axes"], workspace, True):
        _max(xp, inputs, outputs, workspace, attributes)


def _infer_max_grad(specs: Sequence[AnySpec], attributes: Attributes) -> list[AnySpec]:
    x, y, grad = arrays(specs, ("x", "y", "grad"))
    want_float(x, "x")
    wanted = _reduction(x, attributes, x.dtype)[0]
    problems = [f"{name} must be {wanted!r}, got {spec!r}" for name, spec in (("y", y), ("grad", grad)) if spec != wanted]
    if problems:
        raise GraphError(problems)
    return [x]


def _max_grad(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    x, y, grad = inputs
    axes = some_axes(attributes["axes"], x.ndim)
    kept = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    largest = x == y.reshape(kept)
    share = grad.reshape(kept) / xp.sum(largest, axis=axes, keepdims=True, dtype=grad.dtype)
    xp.multiply(largest, share, out=outputs[0])


max_grad = Op(
    "tensor.max_grad", ("x", "y", "grad"), ("out",), _infer_max_grad, per_input(4), {"array": _max_grad, "opencl": opencl.max_grad}, attributes=_AXES,
    calls=15, doc="The gradient of tensor.max(x) = y: grad, shared equally by the elements that are the largest.",
)  # fmt: skip
max_ = Op(
    "tensor.max", ("x",), ("out",), _infer_max, per_input(1), {"array": _max, "opencl": opencl.max_, "cuda": _cuda_max},
    one_output(lambda b, x, y, g, a: [lambda: b.op("tensor.max_grad", x[0], y, g, axes=a["axes"], keepdims=a["keepdims"])]), _AXES,
    workspace=_workspace, calls=3, doc="The largest element over axes.",
)  # fmt: skip


def _infer_argmax(specs: Sequence[AnySpec], attributes: Attributes) -> list[AnySpec]:
    (x,) = arrays(specs, ("x",))
    want_number(x, "x")
    axes = (one_axis(attributes["axis"], x.ndim),)
    _want_elements(x, axes, "the argmax")
    return [Spec(reduced(x.shape, axes, attributes["keepdims"]), np.int64)]


def _argmax(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    x, out, axis = inputs[0], outputs[0], attributes["axis"]
    if attributes["keepdims"]:
        out = out.squeeze(axis)  # A view; `keepdims` of argmax is not everywhere.
    if xp is not np and x.dtype.kind == "f" and out.size:
        nan = x != x  # Of several that are no number CuPy gives one, not the first.
        out[...] = xp.where(xp.max(nan, axis=axis), xp.argmax(nan, axis=axis), xp.argmax(x, axis=axis))
        return
    if out.size:
        xp.argmax(x, axis=axis, out=out)


def _cuda_argmax(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    if not _cuda_rows.argmax(xp, inputs[0], outputs[0], attributes["axis"]):
        _argmax(xp, inputs, outputs, workspace, attributes)


argmax = Op(
    "tensor.argmax", ("x",), ("out",), _infer_argmax, per_input(1), {"array": _argmax, "opencl": opencl.argmax, "cuda": _cuda_argmax},
    attributes={"axis": Attribute(int, -1, "the axis to search"), "keepdims": _AXES["keepdims"]},
    calls=3, doc="The index (int64) of the largest element along an axis; of equal ones the first.",
)  # fmt: skip


# sum_to -----------------------------------------------------------------------------------------------------------------------


def _infer_sum_to(specs: Sequence[AnySpec], attributes: Attributes) -> list[AnySpec]:
    x, *like = arrays(specs, ("x", "like"))
    want_number(x, "x")
    if (attributes["shape"] is None) == (not like):
        raise GraphError("give either the input like or the attribute shape")
    shape = like[0].shape if like else tuple(attributes["shape"])
    if broadcast(shape, x.shape) != x.shape:
        raise GraphError(f"{text(shape)} does not broadcast to x {text(x.shape)}")
    return [Spec(shape, x.dtype)]


def _sum_to(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    x, out = inputs[0], outputs[0]
    add_up(xp, x, out.reshape((1,) * (x.ndim - out.ndim) + out.shape), _summed(x, out), True)


def _summed(x: Any, out: Any) -> tuple[int, ...]:
    lead = x.ndim - out.ndim
    return tuple(i for i in range(x.ndim) if i < lead or (out.shape[i - lead] == 1 and x.shape[i] != 1))


def _cuda_sum_to(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    if not _cuda_rows.reduced(xp, inputs[0], outputs[0], _summed(inputs[0], outputs[0]), workspace, False):
        _sum_to(xp, inputs, outputs, workspace, attributes)


def _sum_to_workspace(inputs: Sequence[AnySpec], outputs: Sequence[AnySpec], attributes: Attributes) -> int:
    (x,), (out,) = arrays(inputs[:1], ("x",)), arrays(outputs, ("out",))
    axes = opencl.summed_axes(x.bounds, out.bounds)
    return max(opencl.workspace_nbytes(inputs, axes), _cuda_rows.workspace_nbytes(x, axes))


sum_to = Op(
    "tensor.sum_to", ("x", "like?"), ("out",), _infer_sum_to, per_input(1), {"array": _sum_to, "opencl": opencl.sum_to, "cuda": _cuda_sum_to},
    one_output(lambda b, x, y, g, a: [lambda: b.op("tensor.broadcast_to", g, x[0])]),
    {"shape": Attribute("ints", None, "the shape to sum to, where like is not given", low=0)}, workspace=_sum_to_workspace,
    calls=5, doc="x summed over the axes along which an array of the given shape is broadcast to it: the transpose of tensor.broadcast_to.",
)  # fmt: skip
