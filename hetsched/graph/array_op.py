"""`array_op`: a function of arrays as an op, for every device whose language is the array API.

    @hs.array_op(flops="10 * x.size")
    def softplus(xp, x, *, beta=1.0):
        return xp.log1p(xp.exp(beta * x)) / beta

    y = g.op(softplus, x, beta=2.0)

`xp` is NumPy on the CPU, CuPy on CUDA: written against the array API, one function serves both.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hetsched.errors import GraphError
from hetsched.graph.expression import Expression
from hetsched.graph.function import of_module
from hetsched.graph.guard import store
from hetsched.graph.op import REQUIRED, Attribute, Attributes, Gradient, Infer, Kernel, Op, Work, WorkRule
from hetsched.graph.signature import parameters_of
from hetsched.graph.spec import AnySpec, Spec

_KINDS = {"bool": bool, "int": int, "float": float, "str": str}


def array_op(
    name: str | None = None,
    *,
    outputs: Sequence[str] = ("out",),
    infer: Infer | None = None,
    work: WorkRule | None = None,
    flops: str | float | None = None,
    kernels: Mapping[str, Kernel] | None = None,
    gradient: Gradient | None = None,
    calls: int = 4,
    doc: str | None = None,
) -> Callable[[Callable[..., Any]], Op]:
    """A decorator that makes an op of `function(xp, *arrays, *, options)`, which returns a new array, or one an output. `GraphError` where it cannot.

    Parameters after `xp` are inputs (`*values` takes any number), keyword-only ones are options, whose kinds come from their defaults or
    annotations (bool, int, float, str). What the function returns is copied into the planned memory: the op is marked `allocating`. Inputs are
    read-only.
    name: by default that of the function, with its module's before it (`mine.softplus`). infer: the outputs' specs from those of the inputs and the
    options; left out, every output is like the first input. work or flops: the cost; flops is an expression over the inputs (`2 * x.size`), one
    operation an element where both are left out; bytes are those of all arrays. kernels: more languages -> kernel (`opencl`, `cuda`, see
    `hetsched.graph.op`). gradient: see `Op`. calls: of the array library a launch makes.
    """

    def decorate(function: Callable[..., Any]) -> Op:
        inputs, attributes = _signature(function)
        full = name or f"{function.__module__.rpartition('.')[2].strip('_') or 'own'}.{function.__name__}"
        rule = work or _cost(full, inputs, flops)

        def run(xp: Any, arrays: Sequence[Any], outs: Any, workspace: Any, options: Attributes) -> Any:
            result = function(xp, *arrays, **options)
            if result is None:
                raise TypeError(f"the function of {full} returned nothing; it returns one array an output ({', '.join(outputs)})")
            return store(result, outs, full, tuple(outputs))

        # Not hetsched's own, so that its inputs are shut (see `guard`).
        run.__module__ = function.__module__
        return Op(
            full, inputs, tuple(outputs), infer or _like_first(outputs), rule, {"array": run, **(kernels or {})}, gradient, attributes,
            calls=calls, doc=inspect.cleandoc(function.__doc__ or "") if doc is None else doc, allocating=True,
        ).made_by(of_module, function.__module__, function.__qualname__)  # fmt: skip

    return decorate


def _signature(function: Callable[..., Any]) -> tuple[tuple[str, ...], dict[str, Attribute]]:
    """The inputs and options of a function."""
    parameters = parameters_of(function)
    kind = inspect.Parameter
    if not parameters or parameters[0].kind not in (kind.POSITIONAL_ONLY, kind.POSITIONAL_OR_KEYWORD):
        raise GraphError(f"{function.__name__} must take the array library first: def {function.__name__}(xp, x, ...)")
    inputs: list[str] = []
    attributes: dict[str, Attribute] = {}
    problems = []
    for p in parameters[1:]:
        if p.kind in (kind.POSITIONAL_ONLY, kind.POSITIONAL_OR_KEYWORD):
            inputs.append(p.name)
            if p.default is not kind.empty:
                problems.append(f"input {p.name!r} cannot have a default; options stand after a `*`")
        elif p.kind is kind.VAR_POSITIONAL:
            inputs.append(f"{p.name}*")
        elif p.kind is kind.VAR_KEYWORD:
            problems.append(f"**{p.name} is not taken: name every option")
        else:
            default = REQUIRED if p.default is kind.empty else p.default
            note = p.annotation if isinstance(p.annotation, str) else getattr(p.annotation, "__name__", "")
            found = _KINDS.get(note) or (type(default) if type(default) in _KINDS.values() else "any")
            attributes[p.name] = Attribute(found, default)
    if problems:
        raise GraphError([f"{function.__name__}: {p}" for p in problems])
    return tuple(inputs), attributes


def _like_first(outputs: Sequence[str]) -> Infer:
    def infer(specs: Sequence[AnySpec], attributes: Attributes) -> list[AnySpec]:
        if not specs:
            raise GraphError("without inputs the outputs cannot be like the first one; give `infer`")
        return [specs[0]] * len(outputs)

    return infer


def _cost(name: str, inputs: tuple[str, ...], flops: str | float | None) -> WorkRule:
    expression = None if flops is None else Expression(flops)
    if expression is not None:
        try:
            expression.check_names([n for n in inputs if not n.endswith("*")])
        except GraphError as error:
            raise GraphError([f"flops of {name}: {p}" for p in error.problems]) from None

    def work(specs: Sequence[AnySpec], outs: Sequence[AnySpec], attributes: Attributes) -> Work:
        names = {n: _Bounds(s) for n, s in zip(inputs, specs, strict=False) if isinstance(s, Spec)}
        count = float(expression.value(names)) if expression is not None else float(sum(s.size for s in outs if isinstance(s, Spec)))
        return Work(max(count, 0.0), float(sum(s.nbytes for s in specs)), float(sum(s.nbytes for s in outs)))

    return work


class _Bounds:
    """What an expression may ask of an array: bounded extents at their bounds."""

    def __init__(self, spec: Spec) -> None:
        self.size, self.nbytes, self.ndim, self.shape = spec.size, spec.nbytes, spec.ndim, spec.bounds
