"""Arithmetic in a text: sizes, extents and costs of users' kernels. `ceil_div(n, 4) * 2`, `x.size`, `max(m, n)`. Nothing else is understood."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

from hetsched.errors import GraphError, did_you_mean

_MOST_TEXT, _MOST_NUMBER = 500, 1 << 62
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., Any]] = {"min": min, "max": max, "ceil_div": lambda a, b: -(-a // b)}
_OF_ARRAYS = ("size", "nbytes", "ndim", "shape")


class Expression:
    """An expression over names; `names` are those it uses. Raises `GraphError` where the text is none."""

    def __init__(self, text: str | float) -> None:
        self.text = str(text).strip()
        self._tree = _parsed(self.text)
        self.names = tuple(dict.fromkeys(node.id for node in ast.walk(self._tree) if isinstance(node, ast.Name) and node.id not in _FUNCTIONS))

    def value(self, names: Mapping[str, Any]) -> Any:
        """The value, a number; raises `GraphError` for names that are not known and for what cannot be calculated."""
        try:
            found = _value(self._tree, names)
        except (ZeroDivisionError, TypeError, IndexError, OverflowError) as error:
            raise GraphError(f"{self.text!r} cannot be calculated: {error}") from error
        if isinstance(found, bool) or not isinstance(found, (int, float)) or not -_MOST_NUMBER <= found <= _MOST_NUMBER:
            raise GraphError(f"{self.text!r} is no number of a size that could be meant")
        return found

    def whole(self, names: Mapping[str, Any]) -> int:
        """The value as an extent: a whole number of at least 0."""
        found = self.value(names)
        if found != int(found) or found < 0:
            raise GraphError(f"{self.text!r} is {found}, and should be a whole number of at least 0")
        return int(found)

    @property
    def name(self) -> str | None:
        """The one name that the whole expression is, or None."""
        return self._tree.id if isinstance(self._tree, ast.Name) else None

    def check_names(self, known: Iterable[str]) -> None:
        """Raise `GraphError` for a name that is not among `known`."""
        known = list(known)
        for name in self.names:
            if name not in known:
                raise GraphError(f"{self.text!r} uses {name!r}, which is not known{did_you_mean(name, known)}")

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"


@lru_cache(maxsize=1024)
def _parsed(text: str) -> ast.expr:
    if len(text) > _MOST_TEXT:
        raise GraphError(f"an expression of {len(text)} characters is too long; {_MOST_TEXT} are allowed")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise GraphError(f"{text!r} is no expression: {getattr(error, 'msg', error)}") from error
    for node in ast.walk(tree):
        _allow(node, text)
    return tree


def _allow(node: ast.AST, text: str) -> None:
    fine = isinstance(node, (ast.Name, ast.Load, ast.BinOp, ast.UnaryOp, ast.USub, ast.UAdd, ast.operator))
    if isinstance(node, ast.BinOp):
        fine = type(node.op) in _BINARY
    elif isinstance(node, ast.operator):
        fine = type(node) in _BINARY
    elif isinstance(node, ast.UnaryOp):
        fine = isinstance(node.op, (ast.USub, ast.UAdd))
    elif isinstance(node, ast.Constant):
        fine = type(node.value) in (int, float)
    elif isinstance(node, ast.Call):
        fine = isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS and not node.keywords and len(node.args) >= 2
    elif isinstance(node, ast.Attribute):
        fine = isinstance(node.value, ast.Name) and node.attr in _OF_ARRAYS
    elif isinstance(node, ast.Subscript):
        fine = isinstance(node.value, ast.Attribute) and node.value.attr == "shape"
    if not fine:
        allowed = "names, numbers, + - * / // %, min, max, ceil_div, and x.size, x.nbytes, x.ndim, x.shape[i] of arrays"
        raise GraphError(f"{text!r} is not understood: an expression has {allowed}")


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        if node.id not in names:
            raise GraphError(f"{node.id!r} is not known{did_you_mean(node.id, names)}")
        return names[node.id]
    if isinstance(node, ast.BinOp):
        return _BINARY[type(node.op)](_value(node.left, names), _value(node.right, names))
    if isinstance(node, ast.UnaryOp):
        found = _value(node.operand, names)
        return -found if isinstance(node.op, ast.USub) else +found
    if isinstance(node, ast.Call):
        assert isinstance(node.func, ast.Name)
        return _FUNCTIONS[node.func.id](*(_value(a, names) for a in node.args))
    if isinstance(node, ast.Attribute):
        return getattr(_value(node.value, names), node.attr)
    assert isinstance(node, ast.Subscript)
    return _value(node.value, names)[_value(node.slice, names)]
