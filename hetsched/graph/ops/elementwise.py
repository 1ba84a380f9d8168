"""Element by element: arithmetic with broadcasting, comparisons, activations, casts, fills.

All arrays of a task have one dtype (`tensor.cast` converts); shapes broadcast by NumPy's rule. Kernels are one pass of a ufunc with `out=` wherever
one exists. Gradients of broadcast inputs are summed back to the input's shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hetsched.errors import GraphError
from hetsched.graph.op import Attribute, Attributes, Cotangent, Gradient, Infer, Kernel, Op, anywhere
from hetsched.graph.ops import _cl_elementwise as opencl
from hetsched.graph.ops._rules import (
    arrays,
    broadcast,
    dtype_attribute,
    one_output,
    per_output,
    same_dtype,
    unbroadcast,
    want_float,
    want_kind,
    want_number,
    with_direct,
    zero,
)
from hetsched.graph.spec import AnySpec, Spec

if TYPE_CHECKING:
    from hetsched.graph.graph import Builder, Value

# Operations counted for a transcendental function of one element: about what a vectorized exp or log of single precision executes.
TRANSCENDENTAL = 8.0


# Shape rules ------------------------------------------------------------------------------------------------------------------


def _unary(check: Callable[[Spec, str], None]) -> Infer:
    def infer(specs: Sequence[AnySpec], attributes: Attributes) -> list[AnySpec]:
        (x,) = arrays(specs, ("x",))
        check(x, "x")
        return [x]

    return infer


def _binary(check: Callable[[Spec, str], None], dtype: Any = None) -> Infer:
    def infer(specs: Sequence[AnySpec], attributes: Attributes) -> list[AnySpec]:
        a, b = arrays(specs, ("a", "b"))
        found = same_dtype((a, b), ("a", "b"))
        check(a, "a")
        return [Spec(broadcast(a.shape, b.shape), found if dtype is None else dtype)]

    return infer


def _want_bool(spec: Spec, name: str) -> None:
    want_kind(spec, name, "b", "of dtype bool")


def _want_signed(spec: Spec, name: str) -> None:
    want_kind(spec, name, "fi", "of a signed dtype")


def _any(spec: Spec, name: str) -> None:
    pass


def _like_grad(specs: Sequence[AnySpec], attributes: Attributes) -> list[AnySpec]:
    """(y, grad) of one floating spec -> the same."""
    y, grad = arrays(specs, ("y", "grad"))
    want_float(y, "y")
    if y != grad:
        raise GraphError(f"grad must be {y!r} as y is, got {grad!r}")
    return [y]


# Kernels ----------------------------------------------------------------------------------------------------------------------


def _one(function: str) -> Kernel:
    def kernel(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
        getattr(xp, function)(inputs[0], out=outputs[0])

    return with_direct(kernel, lambda ins, outs, workspace, a: [(None, getattr(np, function), *ins, outs[0])])


def _two(function: str) -> Kernel:
    def kernel(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
        getattr(xp, function)(inputs[0], inputs[1], out=outputs[0])

    return with_direct(kernel, lambda ins, outs, workspace, a: [(None, getattr(np, function), *ins, outs[0])])


def _relu(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    xp.maximum(inputs[0], 0, out=outputs[0])


with_direct(_relu, lambda ins, outs, workspace, a: [(None, np.maximum, ins[0], zero(outs[0].dtype), outs[0])])


def _relu_grad(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    xp.multiply(inputs[1], inputs[0] > 0, out=outputs[0])


# The largest x whose exp(x) is finite, rounded down: beyond it sigmoid(-x) is below the smallest normal number anyway.
_LARGEST_EXPONENT = {2: 11.0, 4: 88.0, 8: 709.0}


def _sigmoid(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    out = outputs[0]
    xp.negative(inputs[0], out=out)
    xp.minimum(out, _LARGEST_EXPONENT[out.dtype.itemsize], out=out)
    xp.exp(out, out=out)
    xp.add(out, 1, out=out)
    xp.reciprocal(out, out=out)


def _sigmoid_grad(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    y, out = inputs[0], outputs[0]
    xp.subtract(1, y, out=out)
    xp.multiply(out, y, out=out)
    xp.multiply(out, inputs[1], out=out)


def _tanh_grad(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    y, out = inputs[0], outputs[0]
    xp.multiply(y, y, out=out)
    xp.subtract(1, out, out=out)
    xp.multiply(out, inputs[1], out=out)


def _scale(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    xp.multiply(inputs[0], attributes["factor"], out=outputs[0])


def _where(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    # A masked copyto would need no scratch, but is seven times slower than where and a copy.
    outputs[0][...] = xp.where(inputs[0], inputs[1], inputs[2])


def _copy(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    outputs[0][...] = inputs[0]


def _fill(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    outputs[0].fill(attributes["value"])


# Gradients --------------------------------------------------------------------------------------------------------------------


def _by_output(name: str) -> Gradient:
    """The gradient of an activation by the op `name`, which takes (y, grad)."""
    return one_output(lambda b, x, y, g, attributes: [lambda: b.op(name, y, g)])


@one_output
def _add_gradient(b: Builder, x: Sequence[Value], y: Value, g: Value, attributes: Attributes) -> list[Cotangent]:
    return [lambda: unbroadcast(b, g, x[0]), lambda: unbroadcast(b, g, x[1])]


@one_output
def _sub_gradient(b: Builder, x: Sequence[Value], y: Value, g: Value, attributes: Attributes) -> list[Cotangent]:
    return [lambda: unbroadcast(b, g, x[0]), lambda: b.op("tensor.neg", unbroadcast(b, g, x[1]))]


@one_output
def _mul_gradient(b: Builder, x: Sequence[Value], y: Value, g: Value, attributes: Attributes) -> list[Cotangent]:
    return [lambda: unbroadcast(b, b.op("tensor.mul", g, x[1]), x[0]), lambda: unbroadcast(b, b.op("tensor.mul", g, x[0]), x[1])]


@one_output
def _div_gradient(b: Builder, x: Sequence[Value], y: Value, g: Value, attributes: Attributes) -> list[Cotangent]:
    def divisor() -> Value:
        share = b.op("tensor.div", b.op("tensor.mul", g, y), x[1])
        out: Value = b.op("tensor.neg", unbroadcast(b, share, x[1]))
        return out

    return [lambda: unbroadcast(b, b.op("tensor.div", g, x[1]), x[0]), divisor]


def _extremum_gradient(compare: str) -> Gradient:
    """All of the gradient goes to the chosen input; of equal ones to the first."""

    @one_output
    def gradient(b: Builder, x: Sequence[Value], y: Value, g: Value, attributes: Attributes) -> list[Cotangent]:
        first = b.op(compare, x[0], x[1])
        zero = b.constant(np.zeros((), y.dtype), "zero")
        return [
            lambda: unbroadcast(b, b.op("tensor.where", first, g, zero), x[0]),
            lambda: unbroadcast(b, b.op("tensor.where", first, zero, g), x[1]),
        ]

    return gradient


@one_output
def _where_gradient(b: Builder, x: Sequence[Value], y: Value, g: Value, attributes: Attributes) -> list[Cotangent]:
    zero = b.constant(np.zeros((), y.dtype), "zero")
    return [
        None,
        lambda: unbroadcast(b, b.op("tensor.where", x[0], g, zero), x[1]),
        lambda: unbroadcast(b, b.op("tensor.where", x[0], zero, g), x[2]),
    ]


@one_output
def _cast_gradient(b: Builder, x: Sequence[Value], y: Value, g: Value, attributes: Attributes) -> list[Cotangent]:
    return [(lambda: b.op("tensor.cast", g, dtype=x[0].dtype.name)) if x[0].dtype.kind == "f" else None]


# Arithmetic -------------------------------------------------------------------------------------------------------------------


def _arithmetic(
    name: str, function: str, in_c: Kernel, gradient: Gradient, doc: str, check: Callable[[Spec, str], None] = want_number
) -> Op:  # fmt: skip
    return Op(
        f"tensor.{name}", ("a", "b"), ("out",), _binary(check), per_output(1), {"array": _two(function), "opencl": in_c}, gradient,
        inplace=((0, 0), (0, 1)), elementwise=True, doc=doc,
    )  # fmt: skip


add = _arithmetic("add", "add", opencl.arithmetic("a + b"), _add_gradient, "a + b, broadcast.")
sub = _arithmetic("sub", "subtract", opencl.arithmetic("a - b"), _sub_gradient, "a - b, broadcast.")
mul = _arithmetic("mul", "multiply", opencl.arithmetic("a * b"), _mul_gradient, "a * b, broadcast.")
div = _arithmetic("div", "divide", opencl.arithmetic("a / b"), _div_gradient, "a / b, broadcast; floating dtypes.", want_float)
maximum = _arithmetic(
    "maximum",
    "maximum",
    opencl.choice("a >= b || a != a ? a : b", "a >= b ? a : b"),
    _extremum_gradient("tensor.greater_equal"),
    "The larger of a and b, broadcast.",
)
minimum = _arithmetic(
    "minimum",
    "minimum",
    opencl.choice("a <= b || a != a ? a : b", "a <= b ? a : b"),
    _extremum_gradient("tensor.less_equal"),
    "The smaller of a and b, broadcast.",
)


# Functions of one array -------------------------------------------------------------------------------------------------------


def _function(
    name: str, kernel: Kernel, in_c: Kernel, gradient: Gradient | None, doc: str, check: Callable[[Spec, str], None] = want_float,
    flops: float = TRANSCENDENTAL, calls: int = 1,
) -> Op:  # fmt: skip
    return Op(
        name, ("x",), ("out",), _unary(check), per_output(flops), {"array": kernel, "opencl": in_c}, gradient,
        inplace=((0, 0),), elementwise=True, calls=calls, doc=doc,
    )  # fmt: skip


neg = _function(
    "tensor.neg",
    _one("negative"),
    opencl.arithmetic("-a"),
    one_output(lambda b, x, y, g, a: [lambda: b.op("tensor.neg", g)]),
    "-x.",
    _want_signed,
    1,
)
exp = _function(
    "tensor.exp",
    _one("exp"),
    opencl.arithmetic("exp(a)"),
    one_output(lambda b, x, y, g, a: [lambda: b.op("tensor.mul", g, y)]),
    "e to the x.",
)
log = _function(
    "tensor.log",
    _one("log"),
    opencl.arithmetic("log(a)"),
    one_output(lambda b, x, y, g, a: [lambda: b.op("tensor.div", g, x[0])]),
    "The natural logarithm of x.",
)
sqrt = _function(
    "tensor.sqrt",
    _one("sqrt"),
    opencl.arithmetic("sqrt(a)"),
    one_output(lambda b, x, y, g, a: [lambda: b.op("tensor.div", b.op("tensor.scale", g, factor=0.5), y)]),
    "The square root of x.",
    flops=4,
)
relu = _function(
    "nn.relu",
    _relu,
    opencl.choice("a > (V)(0) || a != a ? a : (V)(0)", "a > (V)(0) ? a : (V)(0)"),
    _by_output("nn.relu_grad"),
    "max(x, 0); NaN stays NaN.",
    want_number,
    1,
    calls=2,
)
sigmoid = _function("nn.sigmoid", _sigmoid, opencl.sigmoid, _by_output("nn.sigmoid_grad"), "1 / (1 + exp(-x)).", flops=TRANSCENDENTAL + 4, calls=6)
tanh = _function(
    "nn.tanh", _one("tanh"), opencl.arithmetic("tanh(a)"), _by_output("nn.tanh_grad"), "The hyperbolic tangent of x.", flops=2 * TRANSCENDENTAL
)

scale = Op(
    "tensor.scale", ("x",), ("out",), _unary(want_float), per_output(1), {"array": _scale, "opencl": opencl.scaled},
    one_output(lambda b, x, y, g, a: [lambda: b.op("tensor.scale", g, factor=a["factor"])]),
    {"factor": Attribute(float, doc="what x is multiplied by")}, inplace=((0, 0),), elementwise=True, calls=2, doc="factor * x; floating dtypes.",
)  # fmt: skip


# Gradients of the activations, from their output y ----------------------------------------------------------------------------


def _activation_grad(name: str, kernel: Kernel, expression: str, inplace: tuple[tuple[int, int], ...], flops: float, doc: str) -> Op:
    kernels = {"array": kernel, "opencl": opencl.arithmetic(expression)}
    return Op(name, ("y", "grad"), ("out",), _like_grad, per_output(flops), kernels, inplace=inplace, elementwise=True, calls=3, doc=doc)


relu_grad = _activation_grad(
    "nn.relu_grad", _relu_grad, "a > (V)(0) ? b : b * (V)(0)", ((0, 0), (0, 1)), 2, "grad where y > 0, else 0 (NaN where grad is not finite)."
)
sigmoid_grad = _activation_grad("nn.sigmoid_grad", _sigmoid_grad, "((V)(1) - a) * a * b", (), 3, "grad * y * (1 - y).")
tanh_grad = _activation_grad("nn.tanh_grad", _tanh_grad, "((V)(1) - a * a) * b", (), 3, "grad * (1 - y * y).")


# Comparisons and logic --------------------------------------------------------------------------------------------------------


def _comparison(name: str, sign: str, doc: str, check: Callable[[Spec, str], None] = want_number) -> Op:
    kernels = {"array": _two(name), "opencl": opencl.test(f"a {sign} b")}
    return Op(f"tensor.{name}", ("a", "b"), ("out",), _binary(check, np.bool_), per_output(1), kernels, elementwise=True, doc=doc)


equal = _comparison("equal", "==", "a == b, broadcast; bool.", _any)
not_equal = _comparison("not_equal", "!=", "a != b, broadcast; bool.", _any)
less = _comparison("less", "<", "a < b, broadcast; bool.")
less_equal = _comparison("less_equal", "<=", "a <= b, broadcast; bool.")
greater = _comparison("greater", ">", "a > b, broadcast; bool.")
greater_equal = _comparison("greater_equal", ">=", "a >= b, broadcast; bool.")
logical_and = _comparison("logical_and", "&&", "a and b, broadcast; bool.", _want_bool)
logical_or = _comparison("logical_or", "||", "a or b, broadcast; bool.", _want_bool)
logical_not = Op(
    "tensor.logical_not", ("x",), ("out",), _unary(_want_bool), per_output(1), {"array": _one("logical_not"), "opencl": opencl.test("!a")},
    inplace=((0, 0),), elementwise=True, doc="not x; bool.",
)  # fmt: skip


def _infer_where(specs: Sequence[AnySpec], attributes: Attributes) -> list[AnySpec]:
    condition, a, b = arrays(specs, ("condition", "a", "b"))
    _want_bool(condition, "condition")
    dtype = same_dtype((a, b), ("a", "b"))
    return [Spec(broadcast(condition.shape, a.shape, b.shape), dtype)]


where = Op(
    "tensor.where", ("condition", "a", "b"), ("out",), _infer_where, per_output(1), {"array": _where, "opencl": opencl.where}, _where_gradient,
    capable=anywhere, inplace=((0, 1), (0, 2)), elementwise=True, calls=3, doc="a where the condition holds, else b; all three broadcast.",
)  # fmt: skip


# Casts and fills --------------------------------------------------------------------------------------------------------------


def _infer_cast(specs: Sequence[AnySpec], attributes: Attributes) -> list[AnySpec]:
    (x,) = arrays(specs, ("x",))
    return [Spec(x.shape, attributes["dtype"])]


def _infer_full(specs: Sequence[AnySpec], attributes: Attributes) -> list[AnySpec]:
    spec = Spec(attributes["shape"], attributes["dtype"])
    _check_fill(spec, attributes["value"])
    return [spec]


def _infer_full_like(specs: Sequence[AnySpec], attributes: Attributes) -> list[AnySpec]:
    (like,) = arrays(specs, ("like",))
    _check_fill(like, attributes["value"])
    return [like]


def _check_fill(spec: Spec, value: float) -> None:
    if spec.dtype.kind == "f":
        return
    low, high = (0, 1) if spec.dtype.kind == "b" else (np.iinfo(spec.dtype).min, np.iinfo(spec.dtype).max)
    if not math.isfinite(value) or value != int(value) or not low <= value <= high:
        raise GraphError(f"value {value:g} does not fit dtype {spec.dtype.name}")


cast = Op(
    "tensor.cast", ("x",), ("out",), _infer_cast, per_output(1), {"array": _copy, "opencl": opencl.cast}, _cast_gradient,
    {"dtype": dtype_attribute()}, elementwise=True,
    doc="x converted to dtype: floats to integers cut toward 0, anything to bool as x != 0.",
)  # fmt: skip
full = Op(
    "tensor.full", (), ("out",), _infer_full, per_output(0), {"array": _fill, "opencl": opencl.fill}, capable=anywhere,
    attributes={"shape": Attribute("ints", doc="extents", low=0), "value": Attribute(float, 0.0, "what to fill with"), "dtype": dtype_attribute()},
    doc="An array of shape and dtype full of value.",
)  # fmt: skip
full_like = Op(
    "tensor.full_like", ("like",), ("out",), _infer_full_like, per_output(0), {"array": _fill, "opencl": opencl.fill},
    capable=anywhere, attributes={"value": Attribute(float, 0.0, "what to fill with")}, doc="An array of the spec of like full of value.",
)  # fmt: skip
