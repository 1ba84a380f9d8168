"""Copies between layouts, and indices, in OpenCL C: bits are moved as unsigned integers of their width, so every device can move every dtype."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from hetsched.graph.op import Attributes, OpenCL
from hetsched.graph.ops._cl_elementwise import as_is, wrapping
from hetsched.graph.ops._cl_layout import (
    GRID,
    Ints,
    broadcast_strides,
    contiguous,
    grid_source,
    joined,
    longs,
    offsets,
    row_arguments,
    run_grid,
)
from hetsched.graph.ops._cl_types import c_type, unit_type
from hetsched.graph.ops._ids import FAULTS, watched

# Strided copies ---------------------------------------------------------------------------------------------------------------


@cache
def _copy_source(grid: str, unit: str, axes: int, out_step: str, step: str) -> str:
    parameters, at = offsets(("out", "x"), axes)
    return f"""{grid}
__kernel void move(OUT({unit}, out_p), IN({unit}, x_p), {GRID}{parameters}, const long out_start, const long x_start, const long out_step,
    const long x_step) {{
    LET_OUT({unit}, out_p); LET_IN({unit}, x_p);
    ROWS {{
        {at}
        ALONG(j) out_p[out_start + out_at + j * {out_step}] = x_p[x_start + x_at + j * {step}];
    }}
}}
"""


# Axes that are exchanged: a tile of both, so that what is read as a whole is used as a whole. `d0` counts the rest.
_EXCHANGE = """
#define TILE @TILE
__kernel void exchange(
    OUT(@UNIT, out_p), IN(@UNIT, x_p), const long across, const long along, const long x_along, const long out_across@PARAMETERS
) {
    LET_OUT(@UNIT, out_p); LET_IN(@UNIT, x_p);
    const long tiles = (along + TILE - 1) / TILE;
    const long unit = get_global_id(0) / ITEMS, r = unit / tiles, j0 = unit % tiles * TILE;
    const long i0 = get_global_id(1) * TILE;
    @AT
#if ITEMS == 1
    const long i1 = min(i0 + TILE, across), j1 = min(j0 + TILE, along);
    for (long i = i0; i < i1; i++)
        for (long j = j0; j < j1; j++) out_p[out_at + i * out_across + j] = x_p[x_at + j * x_along + i];
#else
    __local @UNIT tile[TILE][TILE + 1];
    const long lane = get_global_id(0) % ITEMS, i = i0 + lane % TILE, j = j0 + lane % TILE;
    for (long k = lane / TILE; k < TILE; k += ITEMS / TILE)
        if (i < across && j0 + k < along) tile[k][lane % TILE] = x_p[x_at + (j0 + k) * x_along + i];
    barrier(CLK_LOCAL_MEM_FENCE);
    for (long k = lane / TILE; k < TILE; k += ITEMS / TILE)
        if (i0 + k < across && j < along) out_p[out_at + (i0 + k) * out_across + j] = tile[lane % TILE][k];
#endif
}
"""
_TILE, _TILE_ITEMS = 32, 256


@cache
def _exchange_source(is_cpu: bool, unit: str, axes: int) -> str:
    parameters, at = offsets(("out", "x"), axes)
    text = f"#define ITEMS {1 if is_cpu else _TILE_ITEMS}\n{_EXCHANGE}"
    return text.replace("@TILE", str(_TILE)).replace("@UNIT", unit).replace("@PARAMETERS", parameters).replace("@AT", at)


def move(cl: OpenCL, out: Any, out_start: int, out_strides: Ints, x: Any, x_start: int, x_strides: Ints, shape: Ints) -> None:
    """Enqueue: the elements of a block of `shape` from `x` to `out`, each with its first element and strides."""
    if not math.prod(shape):
        return
    dims, (to, of) = joined(shape, out_strides, x_strides)
    if len(dims) == 1 and to[0] == of[0] == 1:
        cl.copy(cl.part(x, x_start, dims), cl.part(out, out_start, dims))
        return
    swapped = next((i for i, s in enumerate(of[:-1]) if s == 1), None)
    if swapped is not None and to[-1] == 1 and of[-1] > 1 and dims[swapped] >= 8 and dims[-1] >= 8 and not out_start and not x_start:
        _exchange(cl, out, x, dims, to, of, swapped)
        return
    steps = ("1" if to[-1] == 1 else "out_step", str(of[-1]) if of[-1] in (0, 1) else "x_step")
    source = _copy_source(grid_source(cl), unit_type(x.dtype), len(dims) - 1, *steps)
    arguments = [*row_arguments(dims, (to, of)), *longs(out_start, x_start, to[-1], of[-1])]
    run_grid(cl, source, "move", dims[-1], math.prod(dims[:-1]), [out, x], arguments)


def _exchange(cl: OpenCL, out: Any, x: Any, dims: Ints, to: Ints, of: Ints, swapped: int) -> None:
    rest = [i for i in range(len(dims) - 1) if i != swapped]
    outer = tuple(dims[i] for i in rest)
    walk = [*row_arguments((*outer, 0), (tuple(to[i] for i in rest), tuple(of[i] for i in rest)))]
    across, along, count = dims[swapped], dims[-1], math.prod(outer)
    items = 1 if cl.is_cpu else _TILE_ITEMS
    grid = (-(-along // _TILE) * count * items, -(-across // _TILE))
    source = _exchange_source(cl.is_cpu, unit_type(x.dtype), len(rest))
    cl.run(source, "exchange", grid, out, x, *longs(across, along, of[-1], to[swapped]), *walk, local_size=(items, 1))


# Kernels of ops: copies -------------------------------------------------------------------------------------------------------


def reshape(cl: OpenCL, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    """The kernel of tensor.reshape."""
    if outputs[0].size:
        cl.copy(inputs[0], outputs[0])


def rows(cl: OpenCL, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    """The kernel of tensor.rows."""
    x, out = inputs[0], outputs[0]
    if out.size:
        cl.copy(cl.part(x, attributes["start"] * math.prod(x.shape[1:]), out.shape), out)


def transpose(cl: OpenCL, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    """The kernel of tensor.transpose."""
    x, out = inputs[0], outputs[0]
    ndim = len(x.shape)
    order = range(ndim)[::-1] if attributes["axes"] is None else [a % ndim for a in attributes["axes"]]
    strides = contiguous(x.shape)
    move(cl, out, 0, contiguous(out.shape), x, 0, tuple(strides[a] for a in order), tuple(out.shape))


def broadcast_to(cl: OpenCL, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    """The kernel of tensor.broadcast_to."""
    x, out = inputs[0], outputs[0]
    shape = tuple(out.shape)
    move(cl, out, 0, contiguous(shape), x, 0, broadcast_strides(tuple(x.shape), shape), shape)


def concat(cl: OpenCL, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    """The kernel of tensor.concat."""
    out = outputs[0]
    axis = attributes["axis"] % len(out.shape)
    strides, start = contiguous(out.shape), 0
    for x in inputs:
        move(cl, out, start * strides[axis], strides, x, 0, contiguous(x.shape), tuple(x.shape))
        start += x.shape[axis]


def slice_(cl: OpenCL, x: Any, out: Any, starts: Sequence[int]) -> None:
    """Enqueue: the block of `x` that begins at the index `starts`, as large as `out`."""
    strides = contiguous(x.shape)
    first = sum(i * s for i, s in zip(starts, strides, strict=True))
    move(cl, out, 0, contiguous(out.shape), x, first, strides, tuple(out.shape))


def pad(cl: OpenCL, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    """The kernel of tensor.pad."""
    x, out = inputs[0], outputs[0]
    if not out.size:
        return
    if out.size > x.size:
        cl.fill(out, attributes["value"])
    strides = contiguous(out.shape)
    first = sum(i * s for i, s in zip(attributes["low"], strides, strict=True))
    move(cl, out, first, strides, x, 0, contiguous(x.shape), tuple(x.shape))


# Kernels of ops: indices ------------------------------------------------------------------------------------------------------


@cache
def _gather_source(grid: str, unit: str, index: str) -> str:
    return f"""{grid}{FAULTS}
__kernel void gather(OUT({unit}, out_p), IN({unit}, x_p), IN({index}, indices_p), {GRID}, const long picks, const long extent, FAULTS) {{
    LET_OUT({unit}, out_p); LET_IN({unit}, x_p); LET_IN({index}, indices_p);
    ROWS {{
        long pick = indices_p[r % picks];
        if (pick < 0 || pick >= extent) {{ TELL(pick, r % picks); pick = 0; }}
        const long x_at = (r / picks * extent + pick) * inner;
        ALONG(j) out_p[r * inner + j] = x_p[x_at + j];
    }}
}}
"""


def gather(cl: OpenCL, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    """The kernel of tensor.gather."""
    (x, indices), out = inputs, outputs[0]
    if not out.size:
        return
    axis = attributes["axis"] % len(x.shape)
    outer, extent, inner = math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :])
    source = _gather_source(grid_source(cl), unit_type(x.dtype), c_type(indices.dtype))
    arguments = [*longs(indices.size, extent), watched(cl, out, indices, extent, "indices")]
    run_grid(cl, source, "gather", inner, outer * indices.size, [out, x, indices], arguments)


# On processors a work item owns some rows of the output and adds to them whatever update is theirs, in order. On others a work item belongs to an
# update: the first of its index adds up all that follow it, in order, and the rest do nothing. Both add in the order of the updates.
_SCATTER = """
__kernel void scatter_own(
    OUT(@S, out_p), IN(@I, indices_p), IN(@S, updates_p), const long count, const long size, const long inner, const long each, const long parts,
    FAULTS
) {
    LET_OUT(@S, out_p); LET_IN(@I, indices_p); LET_IN(@S, updates_p);
    const long o = (long)get_global_id(0) / parts, first = (long)get_global_id(0) % parts * each, last = min(first + each, size);
    for (long j = (o * size + first) * inner; j < (o * size + last) * inner; j++) PUT(out_p, j, (@T)0);
    for (long i = 0; i < count; i++) {
        const long k = indices_p[i];
        if (k < first || k >= last) {
            if (!first && (k < 0 || k >= size)) TELL(k, i);
            continue;
        }
        const long to = (o * size + k) * inner, from = (o * count + i) * inner;
        for (long j = 0; j < inner; j++) PUT(out_p, to + j, AT(out_p, to + j) + AT(updates_p, from + j));
    }
}

__kernel void scatter_first(
    OUT(@S, out_p), IN(@I, indices_p), IN(@S, updates_p), const long count, const long size, const long inner, const long items, FAULTS
) {
    LET_OUT(@S, out_p); LET_IN(@I, indices_p); LET_IN(@S, updates_p);
    const long id = get_global_id(0);
    if (id >= items) return;
    const long j = id % inner, i = id / inner % count, o = id / inner / count, k = indices_p[i];
    if (k < 0 || k >= size) { TELL(k, i); return; }
    for (long before = 0; before < i; before++) if (indices_p[before] == k) return;
    @T sum = 0;
    for (long n = i; n < count; n++) if (indices_p[n] == k) sum += AT(updates_p, (o * count + n) * inner + j);
    PUT(out_p, (o * size + k) * inner + j, sum);
}
"""


@cache
def _scatter_source(dtype: Any, index: str) -> str:
    element = as_is(dtype) if dtype.kind == "f" else wrapping(dtype)
    half = element.memory == "half"
    load, store = ("vload_half(i, p)", "vstore_half_rte(v, i, p)") if half else ("(p)[i]", f"(p)[i] = ({element.memory})(v)")
    text = _SCATTER.replace("@S", element.memory).replace("@I", index).replace("@T", element.value)
    return f"{FAULTS}#define AT(p, i) {load}\n#define PUT(p, i, v) {store}\n{text}"


def scatter_add(cl: OpenCL, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    """The kernel of tensor.scatter_add, without atomics of sums.

    Beside the additions, on processors at most 32 work items for each outer index read all indices; on others every work item does, which is n**2
    reads for n indices.
    """
    (indices, updates), out, axis = inputs, outputs[0], attributes["axis"]
    if not out.size:
        return
    if not updates.size:
        cl.fill(out, 0)
        return
    size = out.shape[axis]
    outer, inner = math.prod(out.shape[:axis]), math.prod(out.shape[axis + 1 :])
    source = _scatter_source(updates.dtype, c_type(indices.dtype))
    told = watched(cl, out, indices, size, "indices")
    if not cl.is_cpu:
        cl.fill(out, 0)
        arguments = [*longs(indices.size, size, inner, updates.size), told]
        cl.run(source, "scatter_first", (updates.size,), out, indices, updates, *arguments, local_size=(128,))
        return
    parts = min(size, 32, 1 + (updates.size + out.size) // (8192 * outer))
    each = -(-size // parts)
    parts = -(-size // each)
    arguments = [*longs(indices.size, size, inner, each, parts), told]
    cl.run(source, "scatter_own", (outer * parts,), out, indices, updates, *arguments, local_size=(1,))


@cache
def _one_hot_source(grid: str, unit: str, index: str, one: int) -> str:
    return f"""{grid}{FAULTS}
__kernel void one_hot(OUT({unit}, out_p), IN({index}, indices_p), {GRID}, FAULTS) {{
    LET_OUT({unit}, out_p); LET_IN({index}, indices_p);
    ROWS {{
        const long hot = indices_p[r];
        if (hot < 0 || hot >= inner) TELL(hot, r);
        ALONG(j) out_p[r * inner + j] = hot == j ? ({unit}){one}UL : ({unit})0;
    }}
}}
"""


def one_hot(cl: OpenCL, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    """The kernel of tensor.one_hot."""
    indices, out = inputs[0], outputs[0]
    one = int(np.ones((), out.dtype).view(f"u{out.dtype.itemsize}"))
    source = _one_hot_source(grid_source(cl), unit_type(out.dtype), c_type(indices.dtype), one)
    run_grid(cl, source, "one_hot", out.shape[-1], indices.size, [out, indices], [watched(cl, out, indices, out.shape[-1], "indices")])
