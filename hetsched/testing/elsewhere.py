"""An array library that is not NumPy, done by NumPy: kernels take their general branch, which CuPy gets, and its values can be checked anywhere.

For hetsched's own kernels it has only the names that CuPy has as well, with the keywords that CuPy takes (`COMMON`, checked against CuPy 14.2 by
tests/testing/test_elsewhere.py where it is installed): a kernel that reaches for more would fail on the device, and fails here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_OUT = frozenset({"out"})
_UFUNCS = (
    "add", "subtract", "multiply", "divide", "maximum", "minimum", "exp", "log", "log1p", "sqrt", "tanh",
    "negative", "reciprocal", "equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "logical_and", "logical_or", "logical_not",
)  # fmt: skip
COMMON: dict[str, frozenset[str] | None] = {
    **dict.fromkeys(_UFUNCS, _OUT),
    "arange": frozenset(),
    "argmax": frozenset({"axis", "out"}),
    "asarray": frozenset({"dtype"}),
    "concatenate": frozenset({"axis", "out"}),
    "copyto": frozenset(),
    "empty": frozenset({"dtype"}),
    "matmul": _OUT,
    "max": frozenset({"axis", "out", "keepdims"}),
    "min": frozenset({"axis", "out", "keepdims"}),
    "sum": frozenset({"axis", "dtype", "out", "keepdims"}),
    "take": frozenset({"axis", "out"}),
    "where": frozenset(),
    # Types, constants and modules.
    **dict.fromkeys(("bool_", "uint8", "int32", "uint64", "float64", "inf", "lib"), None),
}


class Elsewhere:
    """Stands for `xp`. strict: only `COMMON`."""

    def __init__(self, strict: bool) -> None:
        self._strict = strict

    def __getattr__(self, name: str) -> Any:
        found = getattr(np, name)
        if not self._strict:
            return found
        if name not in COMMON:
            raise AttributeError(f"a kernel in the array API used xp.{name}, which is not known to be in CuPy; see hetsched.testing.elsewhere")
        keywords = COMMON[name]
        if keywords is None:
            return found

        def call(*arguments: Any, **given: Any) -> Any:
            extra = set(given) - keywords
            if extra:
                raise TypeError(f"a kernel in the array API called xp.{name} with {', '.join(sorted(extra))}, which CuPy is not known to take")
            return found(*arguments, **given)

        if name == "add":
            call.at = np.add.at  # type: ignore[attr-defined]
        return call
