"""Ops made from plain Python functions of values: `hs.op`.

A plain function takes the values of its inputs (arrays, read-only; or objects) and returns that of its output, or a tuple of them. Arrays that it
returns are copied to where the plan wants them, which costs a pass over memory; an op that writes into its outputs (`Op.kernels`) does without.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from hetsched.errors import GraphError
from hetsched.graph.guard import read_only
from hetsched.graph.op import Attribute, Attributes, Op, Work
from hetsched.graph.signature import parameters_of
from hetsched.graph.spec import AnySpec, Opaque, Spec
from hetsched.graph.spec import Sequence as SequenceSpec

# What a function gives: a spec, several, or a function of its inputs' specs that gives them.
Out: TypeAlias = AnySpec | Sequence[AnySpec] | Callable[..., AnySpec | Sequence[AnySpec]]


def put(target: Any, result: Any) -> None:
    """Copy what a function returned to where the plan wants it; `ValueError` where its shape is another, `TypeError` where its dtype does not fit."""
    shape = result.shape if isinstance(result, np.ndarray) else np.shape(result)
    if shape != target.shape:
        raise ValueError(f"the function returned {type(result).__name__} of shape {list(shape)}; its op says {list(target.shape)}")
    np.copyto(target, result)


class FunctionKernel:
    """A kernel that calls a plain function and puts what it returns where the plan wants it."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.function = function
        self.name = name

    def __call__(self, xp: Any, inputs: Sequence[Any], outputs: Any, workspace: Any, attributes: Attributes) -> None:
        """See `hetsched.graph.op.Kernel`."""
        shut = [read_only(x) if isinstance(x, np.ndarray) else x for x in inputs]
        found = self.function(*shut, **attributes) if attributes else self.function(*shut)
        if len(outputs) == 1:
            if outputs[0] is None:
                outputs[0] = found
            else:
                put(outputs[0], found)
            return
        if not isinstance(found, (tuple, list)) or len(found) != len(outputs):
            raise TypeError(f"op {self.name} has {len(outputs)} outputs and returned {type(found).__name__}; return a tuple of {len(outputs)}")
        for i, result in enumerate(found):
            target = outputs[i]
            if target is None:
                outputs[i] = result
            else:
                put(target, result)

    def __repr__(self) -> str:
        return f"<function {self.name}>"


def op(
    out: Out,
    *,
    name: str | None = None,
    outputs: Sequence[str] | None = None,
    flops: float | Callable[..., float] = 0.0,
    waits: bool = False,
    pure: bool = True,
) -> Callable[[Callable[..., Any]], Op]:
    """A decorator: an op from a plain function of values, to be used as `builder.op(FUNCTION, values, option=...)`.

    Positional parameters are its inputs (`*values` any number); keyword-only ones its options. `out`: the spec of its output, a sequence of
    specs, or a function of the inputs' specs that gives them. outputs: their names. flops: floating-point operations of a call, or a function of
    the inputs' specs (for placement and prediction). waits: it blocks without computing. pure: False where it has an effect outside.
    Runs on CPU threads.
    """

    def make(function: Callable[..., Any]) -> Op:
        title = name or function.__name__
        inputs, attributes = _parameters(function, title)

        def infer(specs: Sequence[AnySpec], given: Attributes) -> list[AnySpec]:
            return _specs(out(*specs) if callable(out) and not isinstance(out, (Spec, Opaque, SequenceSpec)) else out)

        def work(ins: Sequence[AnySpec], outs: Sequence[AnySpec], given: Attributes) -> Work:
            count = flops(*ins) if callable(flops) else flops
            return Work(float(count), float(sum(s.nbytes for s in ins)), float(sum(s.nbytes for s in outs)))

        fixed = None if callable(out) and not isinstance(out, (Spec, Opaque, SequenceSpec)) else len(_specs(out))
        names = tuple(outputs) if outputs is not None else ("out",) if fixed in (None, 1) else tuple(f"out{i}" for i in range(fixed or 0))
        if fixed is not None and len(names) != fixed:
            raise GraphError(f"op {title} names {len(names)} outputs and has {fixed} specs")
        kernel = FunctionKernel(function, title)
        return Op(
            title, inputs, names, infer, work, {"host": kernel}, attributes=attributes, waits=waits, pure=pure, doc=inspect.getdoc(function) or ""
        ).made_by(of_module, function.__module__, function.__qualname__)

    return make


def of_module(module: str, name: str) -> Op:
    """The op that a decorator has made of the function `name` of a module: what pickle calls in the other process."""
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    if not isinstance(found, Op):
        raise GraphError(f"{module}.{name} is {type(found).__name__}, not the op that was sent")
    return found


def _specs(given: Any) -> list[AnySpec]:
    return [given] if isinstance(given, (Spec, Opaque, SequenceSpec)) else list(given)


def _parameters(function: Callable[..., Any], title: str) -> tuple[tuple[str, ...], dict[str, Attribute]]:
    inputs: list[str] = []
    attributes: dict[str, Attribute] = {}
    for p in parameters_of(function):
        if p.kind is p.VAR_KEYWORD:
            raise GraphError(f"op {title}: **{p.name} cannot be an option; name each option after a *")
        if p.kind is p.KEYWORD_ONLY:
            attributes[p.name] = Attribute("any") if p.default is p.empty else Attribute("any", p.default, optional=True)
        elif p.kind is p.VAR_POSITIONAL:
            inputs.append(f"{p.name}*")
        else:
            inputs.append(p.name if p.default is p.empty else f"{p.name}?")
    return tuple(inputs), attributes
