"""What the ops share: shape rules, dtype rules, work rules, and the texts of their errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from hetsched.errors import GraphError
from hetsched.graph.op import Attribute, Attributes, Cotangent, Direct, DirectPair, Gradient, Kernel, Operand, Work
from hetsched.graph.spec import AnySpec, Dim, Spec, UpTo, bound

if TYPE_CHECKING:
    from hetsched.graph.graph import Builder, Value

Shape: TypeAlias = tuple[Dim, ...]

DTYPES = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64")
FLOATS = ("float16", "float32", "float64")


def with_direct(kernel: Kernel, rule: Direct, then: Mapping[Kernel, DirectPair] | None = None) -> Kernel:
    """`kernel`, with what it comes to in straight-line code (`hetsched.graph.op.Direct`, `DirectPair`)."""
    kernel.direct = rule  # type: ignore[attr-defined]
    if then is not None:
        kernel.direct_then = then  # type: ignore[attr-defined]
    return kernel


@cache
def zero(dtype: Any) -> Any:
    """0 as an array of `dtype`: NumPy converts a Python number anew at every use."""
    return np.asarray(0, dtype)


def reshaped(x: Any, shape: tuple[int, ...], calls: list[tuple[Any, ...]]) -> Any:
    """A contiguous array under another shape, for a `Direct` rule: a view made now, or, of an `Operand`, by a call appended to `calls`."""
    if tuple(x.shape) == shape:
        return x
    if not isinstance(x, Operand):
        return x.reshape(shape)
    out = Operand(shape, x.dtype)
    calls.append((out, np.ndarray.reshape, x, shape))
    return out


def flat(x: Any, calls: list[tuple[Any, ...]]) -> Any:
    """`reshaped` to one axis."""
    return reshaped(x, (math.prod(x.shape),), calls)


def dtype_attribute(default: str = "float32", words: tuple[str, ...] = DTYPES) -> Attribute:
    """The attribute `dtype` of ops that choose the dtype of their output."""
    return Attribute(words, default, "the dtype of the output")


# Inputs -----------------------------------------------------------------------------------------------------------------------


def arrays(specs: Sequence[AnySpec], names: Sequence[str]) -> list[Spec]:
    """`specs` as array specs; an error that names every input that is none."""
    problems = [f"{name} must be an array, got {spec!r}" for name, spec in zip(names, specs, strict=False) if not isinstance(spec, Spec)]
    if problems:
        raise GraphError(problems)
    return [s for s in specs if isinstance(s, Spec)]


def same_dtype(specs: Sequence[Spec], names: Sequence[str]) -> np.dtype[Any]:
    """The one dtype of `specs`; an error that names the two that differ."""
    first = specs[0].dtype
    for name, spec in zip(names, specs, strict=False):
        if spec.dtype != first:
            raise GraphError(f"{names[0]} is {first.name} but {name} is {spec.dtype.name}; convert one with tensor.cast")
    return first


def want_kind(spec: Spec, name: str, kinds: str, wanted: str) -> None:
    """An error unless the dtype's kind (`f`, `i`, `u`, `b`) is among `kinds`; `wanted` says so in words."""
    if spec.dtype.kind not in kinds:
        raise GraphError(f"{name} must be {wanted}, got {spec.dtype.name}; convert it with tensor.cast")


def want_float(spec: Spec, name: str) -> None:
    """An error unless `spec` is of a floating dtype."""
    want_kind(spec, name, "f", "of a floating dtype")


def want_number(spec: Spec, name: str) -> None:
    """An error for dtypes one cannot calculate with (bool)."""
    want_kind(spec, name, "fiu", "of a numeric dtype")


def want_ndim(spec: Spec, name: str, least: int, most: int | None = None) -> None:
    """An error unless `spec` has from `least` to `most` axes."""
    if spec.ndim < least or (most is not None and spec.ndim > most):
        wanted = f"{least}" if most == least else f"at least {least}" if most is None else f"{least} to {most}"
        raise GraphError(f"{name} must have {wanted} axes, got {spec.ndim} (shape {text(spec.shape)})")


def text(shape: Iterable[Dim]) -> str:
    """A shape as errors write it: `[3, <=8]`."""
    return f"[{', '.join(map(str, shape))}]"


# Shapes -----------------------------------------------------------------------------------------------------------------------


def broadcast(*shapes: Shape) -> Shape:
    """The shape that `shapes` broadcast to: axes are matched from the last; equal extents, or one of them 1.

    A bounded dimension matches the same bounded dimension (whose extents must then be equal at run time) and 1.
    """
    ndim = max(map(len, shapes), default=0)
    out: list[Dim] = []
    for axis in range(-ndim, 0):
        dim: Dim = 1
        for shape in shapes:
            other = shape[axis] if -axis <= len(shape) else 1
            if dim == 1:
                dim = other
            elif other not in (1, dim):
                raise GraphError(f"shapes {' and '.join(map(text, shapes))} do not broadcast: axis {axis} has {dim} and {other}")
        out.append(dim)
    return tuple(out)


def one_axis(axis: int, ndim: int, name: str = "axis") -> int:
    """`axis` counted from the front; negative ones count from the end."""
    if not -ndim <= axis < ndim:
        raise GraphError(
            f"{name} {axis} is outside an array of {ndim} axes; give {-ndim} to {ndim - 1}" if ndim else f"{name} {axis}: a scalar has no axes"
        )
    return axis % ndim


def some_axes(axes: Sequence[int] | None, ndim: int, name: str = "axes") -> tuple[int, ...]:
    """`axes` counted from the front, ascending; None means all. An axis named twice is an error."""
    if axes is None:
        return tuple(range(ndim))
    out = [one_axis(a, ndim, name) for a in axes]
    if len(set(out)) != len(out):
        raise GraphError(f"{name} {tuple(axes)} name an axis twice")
    return tuple(sorted(out))


def reduced(shape: Shape, axes: Sequence[int], keepdims: bool) -> Shape:
    """`shape` without `axes`, or with 1 in their place."""
    return tuple(1 if i in axes else d for i, d in enumerate(shape) if keepdims or i not in axes)


def total(dims: Iterable[Dim]) -> Dim:
    """The sum of extents: bounded if one of them is."""
    dims = list(dims)
    n = sum(map(bound, dims))
    return UpTo(n) if any(isinstance(d, UpTo) for d in dims) else n


def fixed(shape: Shape, what: str) -> tuple[int, ...]:
    """`shape` as plain extents; an error that says what wants it where a dimension is bounded."""
    out = tuple(d for d in shape if not isinstance(d, UpTo))
    if len(out) != len(shape):
        raise GraphError(f"{what} needs a fixed shape, got {text(shape)}")
    return out


# Work -------------------------------------------------------------------------------------------------------------------------


def nbytes(specs: Iterable[AnySpec]) -> int:
    """The sum of the specs' bytes."""
    return sum(s.nbytes for s in specs)


def elements(specs: Iterable[AnySpec]) -> int:
    """The sum of the array specs' elements."""
    return sum(s.size for s in specs if isinstance(s, Spec))


@cache
def per_output(flops: float = 1.0) -> Callable[[Sequence[AnySpec], Sequence[AnySpec], Attributes], Work]:
    """A work rule: `flops` an element of the outputs; everything read and written once."""
    return lambda inputs, outputs, attributes: Work(flops * elements(outputs), nbytes(inputs), nbytes(outputs))


@cache
def per_input(flops: float = 1.0) -> Callable[[Sequence[AnySpec], Sequence[AnySpec], Attributes], Work]:
    """A work rule: `flops` an element of the first input; everything read and written once."""
    return lambda inputs, outputs, attributes: Work(flops * elements(inputs[:1]), nbytes(inputs), nbytes(outputs))


def matmul_work(batch: int, m: int, n: int, k: int, inputs: Sequence[AnySpec], outputs: Sequence[AnySpec]) -> Work:
    """Work of `batch` products [m, k] x [k, n]: 2 m n k operations each."""
    return Work(2.0 * batch * m * n * k, nbytes(inputs), nbytes(outputs))


# Gradients --------------------------------------------------------------------------------------------------------------------


def one_output(pull: Callable[[Builder, Sequence[Value], Value, Value, Attributes], Sequence[Cotangent]]) -> Gradient:
    """The gradient of an op with one output, from a function of (builder b, inputs x, output y, gradient g of y, attributes)."""

    def gradient(b: Builder, x: Sequence[Value], y: Sequence[Value], g: Sequence[Value | None], attributes: Attributes) -> Sequence[Cotangent]:
        assert g[0] is not None  # With one output, no gradient means that nobody asks.
        return pull(b, x, y[0], g[0], attributes)

    return gradient


def unbroadcast(builder: Builder, grad: Value, like: Value) -> Value:
    """`grad` summed to the shape of `like`, which was broadcast to that of `grad`; `grad` itself where the shapes are equal."""
    if grad.shape == like.shape:
        return grad
    like_spec = like.array_spec
    out: Value = builder.op("tensor.sum_to", grad, like) if like_spec.is_bounded else builder.op("tensor.sum_to", grad, shape=like_spec.bounds)
    return out


# Rows in batches --------------------------------------------------------------------------------------------------------------

BATCHES: Mapping[str, Attribute] = {
    "batch": Attribute(int, doc="rows of a full batch", low=1),
    "count": Attribute(int, doc="rows of this batch: `batch`, or fewer in the last one", low=1),
    "cycle": Attribute(int, doc="batches of an epoch", low=1),
}


def batches_problems(rows: int, what: str, specs: Sequence[AnySpec], a: Attributes) -> None:
    """`GraphError` with every mistake of an op that takes batch number `turn` of so many `rows` of `what`. specs: of turn, and of order if given."""
    problems = []
    if specs[0] != Spec((), np.int64):
        problems.append(f"turn must be int64[], got {specs[0]!r}")
    if len(specs) > 1 and specs[1] != Spec((rows,), np.int64):
        problems.append(f"order must hold the {rows} row numbers of {what} as int64[{rows}], got {specs[1]!r}")
    batch, count, cycle = a["batch"], a["count"], a["cycle"]
    last = rows - (cycle - 1) * batch
    if not 0 < last <= batch <= rows:
        problems.append(f"{rows} rows of {what} are not {cycle} batches of {batch} rows, the last one perhaps smaller")
    elif count not in (batch, last):
        problems.append(f"count must be {batch}, a full batch, or {last}, the last one, got {count}")
    if problems:
        raise GraphError(problems)
