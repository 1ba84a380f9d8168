"""What a value is before it exists: shape, dtype, bytes.

Three kinds of spec. `Spec`: a dense C-contiguous array. `Opaque`: a Python object on the host. `Sequence`: N values of one element
spec, one a turn of a loop. `UpTo(n)` is a bounded dimension: memory is planned for n, the extent travels with the replica.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from hetsched.errors import GraphError


@dataclass(frozen=True, slots=True)
class UpTo:
    """A dimension of at most `n` items; how many there are is known when the value is."""

    n: int

    def __post_init__(self) -> None:
        if self.n < 0:
            raise GraphError(f"a bounded dimension needs a bound of at least 0, got UpTo({self.n})")

    def __repr__(self) -> str:
        return f"<={self.n}"


Dim: TypeAlias = int | UpTo


def bound(dim: Dim) -> int:
    """The largest extent of a dimension."""
    return dim.n if isinstance(dim, UpTo) else dim


@dataclass(frozen=True, slots=True)
class Spec:
    """A dense, C-contiguous array of `shape` and `dtype`."""

    shape: tuple[Dim, ...]
    dtype: np.dtype[Any]

    def __init__(self, shape: Iterable[Dim], dtype: Any = np.float32) -> None:
        given = tuple(shape)
        dims = tuple(d if isinstance(d, UpTo) else int(d) for d in given)
        if dims != given:
            raise GraphError(f"a shape has whole numbers as extents, got {given}")
        if any(not isinstance(d, UpTo) and d < 0 for d in dims):
            raise GraphError(f"a shape needs extents of at least 0, got {dims}")
        object.__setattr__(self, "shape", dims)
        try:
            kind = np.dtype(dtype)
        except (TypeError, ValueError) as error:
            raise GraphError(f"{dtype!r} is no dtype that NumPy knows, such as 'float32' ({error})") from error
        object.__setattr__(self, "dtype", kind if kind.isnative else kind.newbyteorder("="))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def bounds(self) -> tuple[int, ...]:
        """The shape with every bounded dimension at its bound."""
        return tuple([d if type(d) is int else bound(d) for d in self.shape])

    @property
    def is_bounded(self) -> bool:
        """True if a dimension's extent is known only when the value is."""
        return any(isinstance(d, UpTo) for d in self.shape)

    @property
    def size(self) -> int:
        """Elements, bounded dimensions at their bounds."""
        return math.prod(self.bounds)

    @property
    def nbytes(self) -> int:
        """Bytes to plan for."""
        return self.size * self.dtype.itemsize

    def __repr__(self) -> str:
        return f"{self.dtype.name}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class Opaque:
    """A Python object that lives on the host only: a list of paths, a table, a label map. `nbytes` is an estimate."""

    kind: str
    nbytes: int = 0

    def __repr__(self) -> str:
        return f"opaque {self.kind}"


@dataclass(frozen=True, slots=True)
class Sequence:
    """N values of one element spec, one a turn. `length` is exact, bounded (`UpTo`) or unknown (None).

    Where `rows` is given the elements are consecutive rows of one array of `rows` rows and the last element may be smaller (its
    leading extent is `rows - (length - 1) * element.shape[0]`); otherwise they are stacked along a new leading axis. Where the length is bounded, so
    are the rows.
    """

    element: Spec | Opaque
    length: int | UpTo | None
    rows: int | None = None

    @property
    def nbytes(self) -> int:
        if isinstance(self.element, Spec) and self.rows is not None:
            return math.prod(self.element.bounds[1:]) * self.rows * self.element.dtype.itemsize
        n = 0 if self.length is None else bound(self.length)
        return n * self.element.nbytes

    @property
    def array(self) -> Spec:
        """The one array that holds the whole sequence; an error where there is none."""
        if not isinstance(self.element, Spec) or self.length is None:
            raise GraphError(f"{self!r} has no array form: its element is opaque or its length unknown")
        if self.rows is not None:
            # A loop that may stop early gives as many rows as it came to.
            rows = UpTo(self.rows) if isinstance(self.length, UpTo) else self.rows
            return Spec((rows, *self.element.shape[1:]), self.element.dtype)
        return Spec((self.length, *self.element.shape), self.element.dtype)

    def __repr__(self) -> str:
        n = "?" if self.length is None else str(self.length)
        return f"sequence of {n} x {self.element!r}"


AnySpec: TypeAlias = Spec | Opaque | Sequence


def array_form(spec: AnySpec) -> Spec | None:
    """The one array that holds a value of `spec`: the spec itself, the whole array of a sequence; None where it is a Python object.

    Objects are opaque values and sequences of opaque or ragged elements or of unknown length.
    """
    if isinstance(spec, Spec):
        return spec
    if not isinstance(spec, Sequence) or not isinstance(spec.element, Spec) or spec.length is None:
        return None
    return spec.array if spec.rows is not None or not spec.element.is_bounded else None


def seen_spec(found: Any, spec: AnySpec) -> AnySpec:
    """The spec of a value that has been made, `found`, of which `spec` was known before: bounded dimensions and lengths have become exact."""
    if not hasattr(found, "shape"):
        return spec
    if not isinstance(spec, Sequence) or not isinstance(spec.element, Spec):
        return Spec(found.shape, found.dtype)
    n = int(found.shape[0])
    return Sequence(spec.element, n) if spec.rows is None else Sequence(spec.element, -(-n // max(spec.element.bounds[0], 1)), n)


def spec_of(value: Any) -> Spec:
    """The spec of an array (anything with `shape` and `dtype`, or what `numpy.asarray` takes)."""
    if not (hasattr(value, "shape") and hasattr(value, "dtype")):
        value = np.asarray(value)
    return Spec(tuple(value.shape), np.dtype(str(value.dtype)) if not isinstance(value.dtype, np.dtype) else value.dtype)
