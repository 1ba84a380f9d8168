"""Shape and place: views, transposes, joins, slices, gathers.

`tensor.reshape` and `tensor.rows` are view ops: a plan lets their output be the input's bytes, `view_offset` bytes further on, and runs no kernel.
They have one all the same, which copies, for where aliasing is impossible.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hetsched.errors import GraphError
from hetsched.graph.op import Attribute, Attributes, Cotangent, Op, OpenCL, anywhere
from hetsched.graph.ops import _cl_shape as opencl
from hetsched.graph.ops import _cuda_ids, _cuda_scatter, _cuda_small
from hetsched.graph.ops._ids import IDS_RULE, check_ids
from hetsched.graph.ops._rules import (
    FLOATS,
    Shape,
    arrays,
    broadcast,
    dtype_attribute,
    fixed,
    one_axis,
    one_output,
    per_output,
    same_dtype,
    some_axes,
    text,
    total,
    want_kind,
    want_number,
)
from hetsched.graph.spec import AnySpec, Dim, Spec, UpTo, bound

if TYPE_CHECKING:
    from hetsched.graph.graph import Builder, Value


def view_offset(op: Op, spec: AnySpec, attributes: Attributes) -> int:
    """Bytes from the start of a view op's input, of `spec`, to the start of its output. 0 unless the op has the attribute `start`: a first row."""
    if not op.view:
        raise GraphError(f"op {op.name} is no view")
    if "start" not in op.attributes or not isinstance(spec, Spec):
        return 0
    start: int = attributes["start"]
    return start * math.prod(spec.bounds[1:]) * spec.dtype.itemsize


# Views ------------------------------------------------------------------------------------------------------------------------


def _infer_reshape(specs: Sequence[AnySpec], attributes: Attributes) -> list[AnySpec]:
    (x,) = arrays(specs, ("x",))
    wanted: tuple[int, ...] = attributes["shape"]
    known = math.prod(n for n in wanted if n >= 0)
    if wanted.count(-1) > 1:
        raise GraphError(f"shape {wanted} has more than one -1")
    loose = [d for d in x.shape if isinstance(d, UpTo)]
    rest = math.prod(d for d in x.shape if not isinstance(d, UpTo))
    free: Dim
    if loose:
        # n is known only at run time, and n * rest must be free * known for every n.
        if len(loose) > 1 or -1 not in wanted or known == 0 or rest % known:
            raise GraphError(f"x {text(x.shape)} cannot become {wanted}: one bounded dimension must go into the one -1, together with whole others")
        free = UpTo(loose[0].n * (rest // known))
    elif -1 in wanted:
        if known == 0 or rest % known:
            raise GraphError(f"x {text(x.shape)} of {rest} elements cannot become {wanted}")
        free = rest // known
    else:
        if known != rest:
            raise GraphError(f"x {text(x.shape)} has {rest} elements, shape {wanted} has {known}")
        free = 0
    return [Spec([free if n == -1 else n for n in wanted], x.dtype)]


def _reshape(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    outputs[0][...] = inputs[0].reshape(outputs[0].shape)


@one_output
def _reshape_gradient(b: Builder, x: Sequence[Value], y: Value, g: Value, attributes: Attributes) -> list[Cotangent]:
    return [lambda: b.op("tensor.reshape", g, shape=[-1 if isinstance(d, UpTo) else d for d in x[0].shape])]


reshape = Op(
    "tensor.reshape", ("x",), ("out",), _infer_reshape, per_output(0), {"array": _reshape, "opencl": opencl.reshape}, _reshape_gradient,
    {"shape": Attribute("ints", doc="the new extents; one may be -1: what is left", low=-1)}, view=True, doc="x in another shape (a view).",
)  # fmt: skip


def _infer_rows(specs: Sequence[AnySpec], attributes: Attributes) -> list[AnySpec]:
    (x,) = arrays(specs, ("x",))
    start, stop = attributes["start"], attributes["stop"]
    n = fixed(x.shape[:1], "tensor.rows")
    if not n or not start <= stop <= n[0]:
        raise GraphError(f"rows {start} to {stop} are outside x {text(x.shape)}")
    return [Spec((stop - start, *x.shape[1:]), x.dtype)]


def _rows(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    outputs[0][...] = inputs[0][attributes["start"] : attributes["stop"]]


@one_output
def _rows_gradient(b: Builder, x: Sequence[Value], y: Value, g: Value, attributes: Attributes) -> list[Cotangent]:
    def padded() -> Value:
        none: tuple[int, ...] = (0,) * (len(x[0].shape) - 1)
        out: Value = b.op("tensor.pad", g, low=(attributes["start"], *none), high=(x[0].shape[0] - attributes["stop"], *none))
        return out

    return [padded]


rows = Op(
    "tensor.rows", ("x",), ("out",), _infer_rows, per_output(0), {"array": _rows, "opencl": opencl.rows}, _rows_gradient,
    {"start": Attribute(int, 0, "the first row", low=0), "stop": Attribute(int, doc="one past the last row", low=0)},
    view=True, doc="Rows start to stop - 1 of x, along its leading axis (a view).",
)  # fmt: skip


# Axes -------------------------------------------------------------------------------------------------------------------------


def _order(axes: Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """The permutation that `axes` means (None: reversed)."""
    if axes is None:
        return tuple(reversed(range(ndim)))
    out = tuple(one_axis(a, ndim, "axes") for a in axes)
    if sorted(out) != list(range(ndim)):
        raise GraphError(f"axes {tuple(axes)} are no permutation of the {ndim} axes of x")
    return out


def _infer_transpose(specs: Sequence[AnySpec], attributes: Attributes) -> list[AnySpec]:
    (x,) = arrays(specs, ("x",))
    return [Spec([x.shape[i] for i in _order(attributes["axes"], x.ndim)], x.dtype)]


def _transpose(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    outputs[0][...] = inputs[0].transpose(attributes["axes"])


@one_output
def _transpose_gradient(b: Builder, x: Sequence[Value], y: Value, g: Value, attributes: Attributes) -> list[Cotangent]:
    order = _order(attributes["axes"], len(y.shape))
    return [lambda: b.op("tensor.transpose", g, axes=[order.index(i) for i in range(len(order))])]


transpose = Op(
    "tensor.transpose", ("x",), ("out",), _infer_transpose, per_output(0), {"array": _transpose, "opencl": opencl.transpose}, _transpose_gradient,
    {"axes": Attribute("ints", None, "output axis i is input axis axes[i]; left out: reversed")},
    capable=anywhere, doc="x with its axes in another order (a copy).",
)  # fmt: skip


def _infer_broadcast_to(specs: Sequence[AnySpec], attributes: Attributes) -> list[AnySpec]:
    x, *like = arrays(specs, ("x", "like"))
    if (attributes["shape"] is None) == (not like):
        raise GraphError("give either the input like or the attribute shape")
    shape: Shape = like[0].shape if like else tuple(attributes["shape"])
    if broadcast(x.shape, shape) != shape:
        raise GraphError(f"x {text(x.shape)} does not broadcast to {text(shape)}")
    return [Spec(shape, x.dtype)]


def _broadcast_to(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    outputs[0][...] = inputs[0]


broadcast_to = Op(
    "tensor.broadcast_to", ("x", "like?"), ("out",), _infer_broadcast_to, per_output(0), {"array": _broadcast_to, "opencl": opencl.broadcast_to},
    one_output(lambda b, x, y, g, a: [lambda: b.op("tensor.sum_to", g, x[0])]),
    {"shape": Attribute("ints", None, "the shape to broadcast to, where like is not given", low=0)},
    capable=anywhere, doc="x repeated to the shape given, or to that of like.",
)  # fmt: skip


# Joins and slices -------------------------------------------------------------------------------------------------------------


def _infer_concat(specs: Sequence[AnySpec], attributes: Attributes) -> list[AnySpec]:
    names = [f"values{i}" for i in range(len(specs))]
    values = arrays(specs, names)
    if not values:
        raise GraphError("concat needs at least one value")
    dtype = same_dtype(values, names)
    first = values[0]
    axis = one_axis(attributes["axis"], first.ndim)

    def others(shape: Shape) -> Shape:
        return (*shape[:axis], *shape[axis + 1 :])

    problems = [
        f"{name} {text(v.shape)} does not fit values0 {text(first.shape)}: only axis {axis} may differ"
        for name, v in zip(names, values, strict=True)
        if v.ndim != first.ndim or others(v.shape) != others(first.shape)
    ]
    if problems:
        raise GraphError(problems)
    return [Spec((*first.shape[:axis], total(v.shape[axis] for v in values), *first.shape[axis + 1 :]), dtype)]


def _concat(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    xp.concatenate(inputs, axis=attributes["axis"], out=outputs[0])


def _cuda_concat(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    # Of many arrays CuPy uploads a table of pointers: one kernel and no copy is less.
    if outputs[0].size and (attributes["axis"] not in (0, -outputs[0].ndim) or not _cuda_small.concatenated(xp, inputs, outputs[0])):
        _concat(xp, inputs, outputs, workspace, attributes)


@one_output
def _concat_gradient(b: Builder, x: Sequence[Value], y: Value, g: Value, attributes: Attributes) -> list[Cotangent]:
    axis = one_axis(attributes["axis"], len(y.shape))
    extents = fixed(tuple(v.shape[axis] for v in x), "the gradient of tensor.concat along its axis")
    starts = [sum(extents[:i]) for i in range(len(x))]

    def part(start: int, stop: int) -> Value:
        out: Value = (
            b.op("tensor.rows", g, start=start, stop=stop) if axis == 0 else b.op("tensor.slice", g, starts=(start,), stops=(stop,), axes=(axis,))
        )
        return out

    pairs = zip(starts, extents, strict=True)
    return [partial(part, start, start + n) for start, n in pairs]


concat = Op(
    "tensor.concat", ("values*",), ("out",), _infer_concat, per_output(0),
    {"array": _concat, "opencl": opencl.concat, "cuda": _cuda_concat}, _concat_gradient,
    {"axis": Attribute(int, 0, "the axis along which to join")}, capable=anywhere, calls=2, doc="Arrays joined along an axis.",
)  # fmt: skip


def _spans(attributes: Attributes, ndim: int) -> list[tuple[int, int, int]]:
    """(axis, start, stop) of every axis that is sliced."""
    starts, stops = attributes["starts"], attributes["stops"]
    named = attributes["axes"] if attributes["axes"] is not None else tuple(range(len(starts)))
    if not len(starts) == len(stops) == len(named):
        raise GraphError(f"starts {starts}, stops {stops} and axes {named} must be of one length")
    some_axes(named, ndim)
    return [(one_axis(a, ndim), i, j) for a, i, j in zip(named, starts, stops, strict=True)]


def _infer_slice(specs: Sequence[AnySpec], attributes: Attributes) -> list[AnySpec]:
    (x,) = arrays(specs, ("x",))
    shape, problems = list(x.shape), []
    for axis, start, stop in _spans(attributes, x.ndim):
        dim = x.shape[axis]
        if isinstance(dim, UpTo):
            problems.append(f"axis {axis} of x {text(x.shape)} is bounded and cannot be sliced")
        elif not start <= stop <= dim:
            problems.append(f"{start} to {stop} is outside axis {axis} of x {text(x.shape)}")
        shape[axis] = stop - start if stop >= start else 0
    if problems:
        raise GraphError(problems)
    return [Spec(shape, x.dtype)]


def _slice(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    x = inputs[0]
    index = [slice(None)] * x.ndim
    for axis, start, stop in _spans(attributes, x.ndim):
        index[axis] = slice(start, stop)
    outputs[0][...] = x[tuple(index)]


def _cl_slice(cl: OpenCL, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    starts = [0] * len(inputs[0].shape)
    for axis, start, _ in _spans(attributes, len(starts)):
        starts[axis] = start
    opencl.slice_(cl, inputs[0], outputs[0], starts)


@one_output
def _slice_gradient(b: Builder, x: Sequence[Value], y: Value, g: Value, attributes: Attributes) -> list[Cotangent]:
    def padded() -> Value:
        low, high = [0] * len(y.shape), [0] * len(y.shape)
        for axis, start, stop in _spans(attributes, len(y.shape)):
            low[axis], high[axis] = start, x[0].shape[axis] - stop
        out: Value = b.op("tensor.pad", g, low=low, high=high)
        return out

    return [padded]


slice_ = Op(
    "tensor.slice", ("x",), ("out",), _infer_slice, per_output(0), {"array": _slice, "opencl": _cl_slice}, _slice_gradient,
    {
        "starts": Attribute("ints", doc="the first index along each axis", low=0),
        "stops": Attribute("ints", doc="one past the last index along each axis", low=0),
        "axes": Attribute("ints", None, "the axes meant; left out: the first ones"),
    },
    capable=anywhere, calls=6, doc="A block of x (a copy); leading rows alone are the view tensor.rows.",
)  # fmt: skip


def _infer_pad(specs: Sequence[AnySpec], attributes: Attributes) -> list[AnySpec]:
    (x,) = arrays(specs, ("x",))
    low, high = attributes["low"], attributes["high"]
    if not len(low) == len(high) == x.ndim:
        raise GraphError(f"low {low} and high {high} must name all {x.ndim} axes of x {text(x.shape)}")
    return [Spec([total((i, d, j)) for i, d, j in zip(low, x.shape, high, strict=True)], x.dtype)]


def _pad(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    x, out = inputs[0], outputs[0]
    out.fill(attributes["value"])
    out[tuple(slice(i, i + n) for i, n in zip(attributes["low"], x.shape, strict=True))] = x


@one_output
def _pad_gradient(b: Builder, x: Sequence[Value], y: Value, g: Value, attributes: Attributes) -> list[Cotangent]:
    def middle() -> Value:
        padded = [a for a, (i, j) in enumerate(zip(attributes["low"], attributes["high"], strict=True)) if i or j]
        extents = fixed(tuple(x[0].shape[a] for a in padded), "the gradient of tensor.pad along padded axes")
        starts = [attributes["low"][a] for a in padded]
        stops = [i + n for i, n in zip(starts, extents, strict=True)]
        out: Value = b.op("tensor.slice", g, starts=starts, stops=stops, axes=padded)
        return out

    return [middle]


pad = Op(
    "tensor.pad", ("x",), ("out",), _infer_pad, per_output(0), {"array": _pad, "opencl": opencl.pad}, _pad_gradient,
    {
        "low": Attribute("ints", doc="how many to add before each axis", low=0),
        "high": Attribute("ints", doc="how many to add after each axis", low=0),
        "value": Attribute(float, 0.0, "what to fill with"),
    },
    capable=anywhere, calls=3, doc="x with a margin around it.",
)  # fmt: skip


# Indices ----------------------------------------------------------------------------------------------------------------------


def _want_index(spec: Spec) -> None:
    want_kind(spec, "indices", "iu", "of an integer dtype")
    if spec.dtype == np.uint64:
        raise GraphError("indices cannot be uint64; convert them with tensor.cast to int64")


def _infer_gather(specs: Sequence[AnySpec], attributes: Attributes) -> list[AnySpec]:
    x, indices = arrays(specs, ("x", "indices"))
    _want_index(indices)
    axis = one_axis(attributes["axis"], x.ndim)
    if bound(x.shape[axis]) == 0 and indices.size:
        raise GraphError(f"axis {axis} of x {text(x.shape)} is empty: there is nothing to gather")
    return [Spec((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]), x.dtype)]


def _gather(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    (x, indices), out, axis = inputs, outputs[0], attributes["axis"]
    if xp is not np:
        xp.take(x, indices, axis=axis, out=out)
    elif out.size:
        # mode="raise" would go through a buffer, and costs two to three times as much as looking at the extremes first.
        check_ids(xp, indices, x.shape[axis], "indices")
        x.take(indices, axis, out, "clip")


def _cuda_gather(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    (x, indices), out = inputs, outputs[0]
    if out.size:
        _cuda_ids.check_ids(xp, out, indices, x.shape[attributes["axis"]], "indices")
    _gather(xp, inputs, outputs, workspace, attributes)


def _cuda_one_hot(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    if outputs[0].size:
        _cuda_ids.check_ids(xp, outputs[0], inputs[0], attributes["classes"], "indices")
    _one_hot(xp, inputs, outputs, workspace, attributes)


@one_output
def _gather_gradient(b: Builder, x: Sequence[Value], y: Value, g: Value, attributes: Attributes) -> list[Cotangent]:
    def scattered() -> Value:
        axis = one_axis(attributes["axis"], len(x[0].shape))
        (size,) = fixed((x[0].shape[axis],), "the gradient of tensor.gather along its axis")
        out: Value = b.op("tensor.scatter_add", x[1], g, size=size, axis=axis)
        return out

    return [scattered, None]


gather = Op(
    "tensor.gather", ("x", "indices"), ("out",), _infer_gather, per_output(0),
    {"array": _gather, "opencl": opencl.gather, "cuda": _cuda_gather}, _gather_gradient,
    {"axis": Attribute(int, 0, "the axis of x that the indices count")},
    capable=anywhere,
    calls=6,
    cuda_calls=2,
    doc=f"Slices of x picked by indices: out[..., i, ...] = x[..., indices[i], ...].\n\n{IDS_RULE}",
)  # fmt: skip


def _infer_scatter_add(specs: Sequence[AnySpec], attributes: Attributes) -> list[AnySpec]:
    indices, updates = arrays(specs, ("indices", "updates"))
    _want_index(indices)
    want_number(updates, "updates")
    axis = attributes["axis"]
    if axis > updates.ndim - indices.ndim or updates.shape[axis : axis + indices.ndim] != indices.shape:
        raise GraphError(f"updates {text(updates.shape)} must have the shape {text(indices.shape)} of indices from axis {axis} on")
    if attributes["size"] == 0 and indices.size:
        raise GraphError("size 0 has no place for the updates")
    return [Spec((*updates.shape[:axis], attributes["size"], *updates.shape[axis + indices.ndim :]), updates.dtype)]


def _scatter_add(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    """CUDA adds up atomically in some dtypes only: int64 wraps around as uint64 does, and narrow integers are added up as int32."""
    (indices, updates), out = inputs, outputs[0]
    if xp is np or out.dtype.kind not in "iu" or (out.dtype.itemsize >= 4 and out.dtype.name != "int64"):
        _add_at(xp, indices, updates, out, attributes["axis"])
    elif out.dtype.name == "int64":
        _add_at(xp, indices, updates.view(xp.uint64), out.view(xp.uint64), attributes["axis"])
    else:
        total = xp.empty(out.shape, xp.int32)
        _add_at(xp, indices, updates.astype(xp.int32), total, attributes["axis"])
        out[...] = total.astype(out.dtype)


def _add_at(xp: Any, indices: Any, updates: Any, out: Any, axis: int) -> None:
    out.fill(0)
    if updates.size:
        check_ids(xp, indices, out.shape[axis], "indices")
        xp.add.at(out, (slice(None),) * axis + (indices,), updates)


def _cuda_scatter_add(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    (indices, updates), out = inputs, outputs[0]
    if updates.size:
        _cuda_ids.check_ids(xp, out, indices, out.shape[attributes["axis"]], "indices")
    if not _cuda_scatter.scatter_add(xp, indices, updates, out, attributes["axis"]):
        _scatter_add(xp, inputs, outputs, workspace, attributes)


@one_output
def _scatter_add_gradient(b: Builder, x: Sequence[Value], y: Value, g: Value, attributes: Attributes) -> list[Cotangent]:
    return [None, lambda: b.op("tensor.gather", g, x[0], axis=attributes["axis"])]


scatter_add = Op(
    "tensor.scatter_add", ("indices", "updates"), ("out",), _infer_scatter_add, per_output(1),
    {"array": _scatter_add, "opencl": opencl.scatter_add, "cuda": _cuda_scatter_add}, _scatter_add_gradient,
    {"size": Attribute(int, doc="the extent of the axis", low=0), "axis": Attribute(int, 0, "the axis that the indices count", low=0)},
    calls=8, doc=f"Zeros with updates added where the indices say; equal indices add up. The transpose of tensor.gather. {IDS_RULE}",
)  # fmt: skip


def _infer_one_hot(specs: Sequence[AnySpec], attributes: Attributes) -> list[AnySpec]:
    (indices,) = arrays(specs, ("indices",))
    _want_index(indices)
    return [Spec((*indices.shape, attributes["classes"]), attributes["dtype"])]


def _one_hot(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    if outputs[0].size:
        check_ids(xp, inputs[0], attributes["classes"], "indices")
    outputs[0][...] = inputs[0][..., None] == xp.arange(attributes["classes"])


one_hot = Op(
    "tensor.one_hot", ("indices",), ("out",), _infer_one_hot, per_output(1), {"array": _one_hot, "opencl": opencl.one_hot, "cuda": _cuda_one_hot},
    attributes={"classes": Attribute(int, doc="how many classes", low=0), "dtype": dtype_attribute("float32", (*FLOATS, "int32", "int64", "bool"))},
    capable=anywhere, calls=4, cuda_calls=5, doc=f"indices[...] -> [..., classes]: 1 at the index, 0 elsewhere. {IDS_RULE}",
)  # fmt: skip
