"""What kernels in OpenCL C need to know of shapes: strides of broadcast arrays, axes joined where memory lets them, work items of a grid.

A kernel walks rows (all axes but the last, joined as far as they can be) and along each row. Its source depends on how many axes are left, never on
their extents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from hetsched.graph.op import OpenCL

Ints: TypeAlias = tuple[int, ...]

# Elements that are worth a work item of a processor, and the most work items made of large arrays: some for every core, and little for their starts.
_LEAST, _ITEMS = 4096, 64


def contiguous(shape: Sequence[int]) -> Ints:
    """The strides, in elements, of a dense array of `shape`."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def broadcast_strides(shape: Ints, to: Ints) -> Ints:
    """The strides that walk a dense array of `shape` over the shape `to`, which it broadcasts to: 0 along repeated axes."""
    lead = len(to) - len(shape)
    return (0,) * lead + tuple(0 if n == 1 else s for n, s in zip(shape, contiguous(shape), strict=True))


@lru_cache(maxsize=4096)
def joined(shape: Ints, *strides: Ints) -> tuple[Ints, tuple[Ints, ...]]:
    """`shape` without axes of extent 1, neighbours joined wherever every one of `strides` allows it; at least one axis is left."""
    dims: list[int] = []
    steps: list[list[int]] = [[] for _ in strides]
    for axis, n in enumerate(shape):
        if n == 1:
            continue
        if dims and all(mine[-1] == given[axis] * n for mine, given in zip(steps, strides, strict=True)):
            dims[-1] *= n
            for mine, given in zip(steps, strides, strict=True):
                mine[-1] = given[axis]
        else:
            dims.append(n)
            for mine, given in zip(steps, strides, strict=True):
                mine.append(given[axis])
    if not dims:
        return (1,), tuple((0,) for _ in strides)
    return tuple(dims), tuple(map(tuple, steps))


def longs(*values: int) -> list[np.int64]:
    """Arguments of the type `long`."""
    return [np.int64(v) for v in values]


# Grids ------------------------------------------------------------------------------------------------------------------------

# Parameters and first lines of a kernel that writes `rows` rows of `inner` elements. `ROWS` runs what follows for every row `r` of the work item,
# `ALONG(j)` for its elements j of that row: on processors a block of rows and columns, on others a single element.
GRID = "const long inner, const long rows, const long columns_each, const long rows_each"
_GRID_CPU = """
#define ROWS for (long r = (long)get_global_id(1) * rows_each, r_end_ = min(r + rows_each, rows); r < r_end_; r++)
#define FIRST ((long)get_global_id(0) * columns_each)
#define END min(FIRST + columns_each, inner)
#define ALONG(j) for (long j = FIRST, j_end_ = END; j < j_end_; j++)
"""
_GRID_GPU = """
#define ROWS for (long r = (long)get_global_id(0) / inner, r_end_ = min(r + 1, rows); r < r_end_; r++)
#define FIRST ((long)get_global_id(0) % inner)
#define END (FIRST + 1)
#define ALONG(j) for (long j = FIRST, j_end_ = END; j < j_end_; j++)
"""


def grid_source(cl: OpenCL) -> str:
    """The macros of a grid."""
    return _GRID_CPU if cl.is_cpu else _GRID_GPU


def run_grid(cl: OpenCL, source: str, function: str, inner: int, rows: int, arrays: Sequence[Any], arguments: Sequence[Any] = ()) -> None:
    """Enqueue `function`, whose parameters are `arrays`, those of `GRID`, then `arguments`. Nothing where there is no element."""
    if not inner or not rows:
        return
    if not cl.is_cpu:
        cl.run(source, function, (inner * rows,), *arrays, *longs(inner, rows, 1, 1), *arguments, local_size=(256,))
        return
    least = max(_LEAST, inner * rows // _ITEMS)
    columns = min(inner, -(-least // 64) * 64)
    some = max(1, least // inner)
    cl.run(source, function, (-(-inner // columns), -(-rows // some)), *arrays, *longs(inner, rows, columns, some), *arguments, local_size=(1, 1))


def offsets(names: Sequence[str], axes: int) -> tuple[str, str]:
    """For a walk over rows of `axes` outer axes: (parameters, statements that set `<name>_at` from the row `r`). Arguments: see `row_arguments`."""
    if not axes:
        return "", " ".join(f"const long {name}_at = 0;" for name in names)
    parameters = [f"const long d{i}" for i in range(1, axes)] + [f"const long {name}_{i}" for name in names for i in range(axes)]
    lines = ["long rest_ = r;", *(f"long {name}_at = 0;" for name in names)]
    for i in range(axes - 1, 0, -1):
        moves = " ".join(f"{name}_at += k * {name}_{i};" for name in names)
        lines.append(f"{{ const long k = rest_ % d{i}; rest_ /= d{i}; {moves} }}")
    lines += [f"{name}_at += rest_ * {name}_0;" for name in names]
    return ", " + ", ".join(parameters), " ".join(lines)


def row_arguments(dims: Ints, strides: Sequence[Ints]) -> list[np.int64]:
    """Arguments for the parameters of `offsets`: extents and strides of the outer axes."""
    outer = dims[:-1]
    return longs(*outer[1:], *(s for steps in strides for s in steps[: len(outer)]))
