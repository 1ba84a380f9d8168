"""Matrix products and the dense layer.

The flags `transpose_a` and `transpose_b` hand BLAS a transposed view, so gradients need no transposed copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hetsched.errors import GraphError
from hetsched.graph.op import Attribute, Attributes, Cotangent, Op, Operand, Work
from hetsched.graph.ops import _cl_linear, _cuda_small
from hetsched.graph.ops._rules import (
    arrays,
    broadcast,
    flat,
    matmul_work,
    one_output,
    same_dtype,
    text,
    unbroadcast,
    want_float,
    want_ndim,
    want_number,
    with_direct,
    zero,
)
from hetsched.graph.spec import AnySpec, Dim, Spec, bound

if TYPE_CHECKING:
    from hetsched.graph.graph import Builder, Value


# matmul -----------------------------------------------------------------------------------------------------------------------


def _infer_matmul(specs: Sequence[AnySpec], attributes: Attributes) -> list[AnySpec]:
    a, b = arrays(specs, ("a", "b"))
    dtype = same_dtype((a, b), ("a", "b"))
    want_number(a, "a")
    want_ndim(a, "a", 2)
    want_ndim(b, "b", 2)
    m, k = _matrix(a.shape, attributes["transpose_a"])
    k_too, n = _matrix(b.shape, attributes["transpose_b"])
    if k != k_too:
        flags = "".join(f", {f}" for f in ("transpose_a", "transpose_b") if attributes[f])
        raise GraphError(f"inner extents differ: a {text(a.shape)} gives {k}, b {text(b.shape)} gives {k_too}{flags}")
    return [Spec((*broadcast(a.shape[:-2], b.shape[:-2]), m, n), dtype)]


def _matrix(shape: tuple[Dim, ...], transposed: bool) -> tuple[Dim, Dim]:
    """Rows and columns of the matrices in `shape`."""
    return (shape[-1], shape[-2]) if transposed else (shape[-2], shape[-1])


def _work_matmul(inputs: Sequence[AnySpec], outputs: Sequence[AnySpec], attributes: Attributes) -> Work:
    (a,), (out,) = arrays(inputs[:1], ("a",)), arrays(outputs, ("out",))
    k = bound(a.shape[-2 if attributes["transpose_a"] else -1])
    *batch, m, n = out.bounds
    return matmul_work(math.prod(batch), m, n, k, inputs, outputs)


def _matmul(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    a, b = inputs
    if attributes["transpose_a"]:
        a = a.swapaxes(-1, -2)
    if attributes["transpose_b"]:
        b = b.swapaxes(-1, -2)
    _product(xp, a, b, outputs[0])


def _cuda_matmul(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    a, b = inputs
    a, b = a.swapaxes(-1, -2) if attributes["transpose_a"] else a, b.swapaxes(-1, -2) if attributes["transpose_b"] else b
    if not _cuda_small.product(xp, a, b, outputs[0]):
        _product(xp, a, b, outputs[0])


_BLAS = "fdFD"


def _product(xp: Any, a: Any, b: Any, out: Any) -> None:
    """out = a b. `dot` of two matrices comes to the same call of BLAS as `matmul` and takes 1-2 us less to get there."""
    if xp is np and a.ndim == b.ndim == 2 and out.dtype.char in _BLAS:
        np.dot(a, b, out)
    else:
        xp.matmul(a, b, out=out)


def _direct_matmul(ins: Sequence[Any], outs: Sequence[Any], workspace: Any, attributes: Attributes) -> list[tuple[Any, ...]] | None:
    a, b = ins
    if a.ndim != 2 or b.ndim != 2 or outs[0].dtype.char not in _BLAS:
        return None
    calls: list[tuple[Any, ...]] = []
    if attributes["transpose_a"]:
        a = _transposed(a, calls)
    if attributes["transpose_b"]:
        b = _transposed(b, calls)
    return [*calls, (None, np.dot, a, b, outs[0])]


def _transposed(x: Any, calls: list[tuple[Any, ...]]) -> Any:
    if not isinstance(x, Operand):
        return x.T
    flipped = Operand(x.shape[::-1], x.dtype)
    calls.append((flipped, np.ndarray.transpose, x))
    return flipped


with_direct(_matmul, _direct_matmul)


@one_output
def _matmul_gradient(build: Builder, x: Sequence[Value], y: Value, g: Value, attributes: Attributes) -> list[Cotangent]:
    """With C = A B: dA = dC B', dB = A' dC; each written so that a flag, not a copy, transposes. Batch axes that were broadcast are summed."""
    a, b = x
    flip_a, flip_b = attributes["transpose_a"], attributes["transpose_b"]

    def first() -> Value:
        if flip_a:
            product = build.op("tensor.matmul", b, g, transpose_a=flip_b, transpose_b=True)
        else:
            product = build.op("tensor.matmul", g, b, transpose_b=not flip_b)
        return unbroadcast(build, product, a)

    def second() -> Value:
        left, right = a, g
        if len(b.shape) == 2 and len(a.shape) > 2 and not flip_a:
            # One matrix for the whole batch: its rows are rows of one product, and the sum over the batch is part of it.
            left, right = rows_of(build, a), rows_of(build, g)
        if flip_b:
            product = build.op("tensor.matmul", right, left, transpose_a=True, transpose_b=flip_a)
        else:
            product = build.op("tensor.matmul", left, right, transpose_a=not flip_a)
        return unbroadcast(build, product, b)

    return [first, second]


def rows_of(build: Builder, value: Value) -> Value:
    """`value` as a matrix: all axes but the last joined (a view); `value` itself where it is one."""
    shape = value.shape
    out: Value = value
    if len(shape) != 2:
        rows = -1 if value.array_spec.is_bounded else math.prod(shape[:-1])
        out = build.op("tensor.reshape", value, shape=(rows, bound(shape[-1])))
    return out


matmul = Op(
    "tensor.matmul",
    ("a", "b"),
    ("out",),
    _infer_matmul,
    _work_matmul,
    {"array": _matmul, "opencl": _cl_linear.matmul, "cuda": _cuda_matmul},
    _matmul_gradient,
    {
        "transpose_a": Attribute(bool, False, "swap the last two axes of a first"),
        "transpose_b": Attribute(bool, False, "swap the last two axes of b first"),
    },
    doc="Matrix product a[..., m, k] b[..., k, n] -> [..., m, n]; the leading axes broadcast.",
    calls=3,
    wide=True,
)


# dense ------------------------------------------------------------------------------------------------------------------------


def _infer_dense(specs: Sequence[AnySpec], attributes: Attributes) -> list[AnySpec]:
    names = ("x", "w", "b")
    x, w, *rest = arrays(specs, names)
    same_dtype((x, w, *rest), names)
    want_float(x, "x")
    want_ndim(x, "x", 1)
    want_ndim(w, "w", 2, 2)
    problems = []
    if x.shape[-1] != w.shape[0]:
        problems.append(f"x {text(x.shape)} has {x.shape[-1]} features, w {text(w.shape)} takes {w.shape[0]}")
    problems += [f"b must have the shape [{w.shape[1]}], got {text(b.shape)}" for b in rest if b.shape != (w.shape[1],)]
    if problems:
        raise GraphError(problems)
    return [Spec((*x.shape[:-1], w.shape[1]), x.dtype)]


def _work_dense(inputs: Sequence[AnySpec], outputs: Sequence[AnySpec], attributes: Attributes) -> Work:
    (_, w), (out,) = arrays(inputs[:2], ("x", "w")), arrays(outputs, ("out",))
    product = matmul_work(1, math.prod(out.bounds[:-1]), out.bounds[-1], w.bounds[0], inputs, outputs)
    passes = (len(inputs) == 3) + (attributes["activation"] == "relu")
    return product._replace(flops=product.flops + passes * out.size)


def _dense(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    x, w, out = inputs[0], inputs[1], outputs[0]
    if x.ndim > 2:
        # One product of all rows; a stack of matrices would be one product each.
        x = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        out = out.reshape(x.shape[0], w.shape[1])
    _product(xp, x, w, out)
    if len(inputs) == 3:
        xp.add(out, inputs[2], out=out)
    if attributes["activation"] == "relu":
        xp.maximum(out, 0, out=out)


def _cuda_dense(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    """One kernel where there are few columns; else a product, and one for bias and activation."""
    (x, w), out = inputs[:2], outputs[0]
    b, relu = inputs[2] if len(inputs) == 3 else None, attributes["activation"] == "relu"
    count = math.prod(x.shape[:-1])  # -1 would not do where there are no columns
    x, rows = x.reshape(count, w.shape[0]), out.reshape(count, w.shape[1])
    if not rows.size or _cuda_small.dense(xp, x, w, b, rows, relu):
        return
    _product(xp, x, w, rows)
    if (b is not None or relu) and not _cuda_small.bias(xp, rows, b, relu):
        if b is not None:
            xp.add(rows, b, out=rows)
        if relu:
            xp.maximum(rows, 0, out=rows)


def _direct_dense(ins: Sequence[Any], outs: Sequence[Any], workspace: Any, attributes: Attributes) -> list[tuple[Any, ...]] | None:
    x, w, out = ins[0], ins[1], outs[0]
    if x.ndim != 2 or out.dtype.char not in _BLAS:
        return None
    calls: list[tuple[Any, ...]] = [(None, np.dot, x, w, out)]
    if len(ins) == 3:
        if x.shape[0] == 1 and not isinstance(ins[2], Operand):
            # One row: arrays of one shape need no broadcasting, which costs NumPy 0.5 us.
            out = flat(out, calls)
        calls.append((None, np.add, out, ins[2], out))
    if attributes["activation"] == "relu":
        calls.append((None, np.maximum, out, zero(out.dtype), out))
    return calls


with_direct(_dense, _direct_dense)


@one_output
def _dense_gradient(build: Builder, x: Sequence[Value], y: Value, g: Value, attributes: Attributes) -> list[Cotangent]:
    data, w = x[0], x[1]
    before = _once(lambda: g if attributes["activation"] == "none" else build.op("nn.relu_grad", y, g))

    def weights() -> Value:
        dz = before()
        left, right = rows_of(build, data), rows_of(build, dz)
        out: Value = build.op("tensor.matmul", left, right, transpose_a=True)
        return out

    def bias() -> Value:
        dz = before()
        out: Value = build.op("tensor.sum", dz, axes=tuple(range(len(dz.shape) - 1))) if len(dz.shape) > 1 else dz
        return out

    def inputs() -> Value:
        dz = before()
        if len(dz.shape) == 1:
            dz = rows_of(build, dz)
            product = build.op("tensor.matmul", dz, w, transpose_b=True)
            out: Value = build.op("tensor.reshape", product, shape=(bound(data.shape[0]),))
            return out
        out = build.op("tensor.matmul", dz, w, transpose_b=True)
        return out

    entries: list[Cotangent] = [inputs, weights, bias]
    return entries[: len(x)]


def _once(make: Callable[[], Value]) -> Callable[[], Value]:
    """`make`, called at the first use; later uses get the same value."""
    made: list[Value] = []

    def get() -> Value:
        if not made:
            made.append(make())
        return made[0]

    return get


dense = Op(
    "nn.dense",
    ("x", "w", "b?"),
    ("out",),
    _infer_dense,
    _work_dense,
    {"array": _dense, "opencl": _cl_linear.dense, "cuda": _cuda_dense},
    _dense_gradient,
    {"activation": Attribute(("none", "relu"), "none", "applied to the sum, in the same pass over memory")},
    doc="activation(x[..., k] w[k, n] + b[n]) -> [..., n].",
    calls=5,
    cuda_calls=2,
    wide=True,
)
