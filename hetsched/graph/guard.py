"""What stands around the kernels of users' own ops: inputs that cannot be written, and arrays that are returned instead of written.

A kernel writes into `outputs` and returns nothing. One that returns its arrays would leave what was in the planned memory before; they are copied
there instead, if they are what the shape rule promises. Kernels of hetsched's own ops are not wrapped: check_op has proved them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def is_ours(kernel: Any) -> bool:
    """True for a kernel that is part of hetsched."""
    function = getattr(kernel, "func", kernel)
    module = getattr(function, "__module__", None) or ""
    return module == "hetsched" or module.startswith("hetsched.")


def guarded(kernel: Callable[..., Any], name: str, output_names: tuple[str, ...]) -> Callable[..., Any]:
    """`kernel` of op `name` with NumPy inputs read-only, and what it returns put into its outputs. About 1 us a launch of two inputs.

    Its attribute `bound` is the same for inputs that are read-only already (see `shut`).
    """

    def bound(xp: Any, inputs: Sequence[Any], outputs: Any, workspace: Any, attributes: Any) -> Any:
        result = kernel(xp, inputs, outputs, workspace, attributes)
        return result if result is None else store(result, outputs, name, output_names)

    @functools.wraps(kernel, updated=())
    def run(xp: Any, inputs: Sequence[Any], outputs: Any, workspace: Any, attributes: Any) -> Any:
        return bound(xp, [read_only(x) for x in inputs], outputs, workspace, attributes)

    run.bound = bound  # type: ignore[attr-defined]
    return run


def shut(kernel: Any, inputs: Sequence[Any]) -> tuple[Any, tuple[Any, ...]]:
    """A launch whose inputs are known ahead of it: what to call, and with what, so that nobody has to make inputs read-only again."""
    bound = getattr(kernel, "bound", None)
    return (kernel, tuple(inputs)) if bound is None else (bound, tuple(read_only(x) for x in inputs))


def read_only(x: Any) -> Any:
    """A NumPy array as a view that cannot be written; anything else as it is."""
    if isinstance(x, np.ndarray) and x.flags.writeable:
        x = x.view()
        x.flags.writeable = False
    return x


def is_array(x: Any) -> bool:
    """True for an array of NumPy, CuPy and their like."""
    return hasattr(x, "shape") and hasattr(x, "dtype")


def store(result: Any, outputs: Any, name: str, output_names: tuple[str, ...]) -> Any:
    """Copy the arrays that a kernel returned into its outputs; gives what is then left to return: None, or the shapes of bounded outputs.

    Raises `ValueError` where they do not fit the outputs, `TypeError` for anything else that cannot be meant.
    """
    given = [result] if is_array(result) or isinstance(result, (int, float, np.number)) else result
    if not isinstance(given, (tuple, list)):
        raise TypeError(f"the kernel of {name} returned {type(result).__name__}; it writes into `outputs`, or returns one array an output")
    if given and all(isinstance(g, (tuple, list)) for g in given):
        return result  # shapes
    if len(given) != len(outputs):
        raise ValueError(f"the kernel of {name} returned {len(given)} arrays for {len(outputs)} outputs ({', '.join(output_names)})")
    for i, (value, target) in enumerate(zip(given, outputs, strict=True)):
        said = output_names[min(i, len(output_names) - 1)]
        if target is None:
            outputs[i] = value
        elif value is not target:
            found = value if is_array(value) else np.asarray(value, target.dtype)
            if found.dtype != target.dtype or tuple(found.shape) != tuple(target.shape):
                wanted = f"{target.dtype}{list(target.shape)}"
                raise ValueError(f"the kernel of {name} returned {found.dtype}{list(found.shape)} for output {said!r}, which is {wanted}")
            target[...] = found
    return None
