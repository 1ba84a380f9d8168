"""Reductions over axes in OpenCL C.

The axes are joined into groups that are kept or reduced in turn. Where the last group is reduced, a row is: on processors one work item adds it up in
vectors of 8, on others a work-group does, in local memory. Where the last group is kept, neighbouring outputs are neighbours in memory: a work item
takes one of them (on processors a block of them). Few outputs of many elements are reduced in parts first, side by side, into the workspace, and the
parts in order afterwards: the order of additions depends on shapes and the kind of device, never on timing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from hetsched.graph.op import Attributes, OpenCL
from hetsched.graph.ops._cl_elementwise import as_is
from hetsched.graph.ops._cl_layout import Ints, broadcast_strides, contiguous, joined, longs
from hetsched.graph.ops._cl_types import c_type, scalar_type, workspace_pieces
from hetsched.graph.ops._rules import some_axes
from hetsched.graph.ops._scratch import scratch_nbytes
from hetsched.graph.spec import AnySpec, Spec

# Work items of a group that reduces a row together.
_GROUP = 128
# Neighbouring outputs that a work item of a processor reduces side by side.
_BLOCK = 16
# Reductions into at most so many outputs are split, once an output has this many elements, into parts of at least so many, at most so many of them.
_FEW_OUTPUTS, _LONG, _PART, _MOST_PARTS = 256, 32768, 4096, 64


class Reduction(NamedTuple):
    """What is done to an axis: the start, one more element `v` to `acc`, two results `acc` and `other`, as C; for vectors of 8 if `vector`."""

    start: str
    add: str
    join: str
    vector: bool = True


_SUM = Reduction("0", "acc + v", "acc + other")
# NaN stays: once in acc, nothing is larger.
_MAX_FLOAT = Reduction("-INFINITY", "v > acc || v != v ? v : acc", "other > acc || other != other ? other : acc")


def _largest_of(dtype: Any) -> Reduction:
    if dtype.kind == "f":
        return _MAX_FLOAT
    name = c_type(dtype).upper()
    least = "0" if dtype.kind == "u" else {"CHAR": "SCHAR_MIN", "SHORT": "SHRT_MIN", "INT": "INT_MIN", "LONG": "LONG_MIN"}[name]
    return Reduction(least, "v > acc ? v : acc", "other > acc ? other : acc", vector=False)


class Shape(NamedTuple):
    """A reduction's axes joined: extents, which are reduced, and the strides of the input."""

    dims: Ints
    reduced: tuple[bool, ...]
    strides: Ints

    @property
    def outputs(self) -> int:
        return math.prod(n for n, r in zip(self.dims, self.reduced, strict=True) if not r)

    @property
    def elements(self) -> int:
        """Elements that make an output."""
        return math.prod(n for n, r in zip(self.dims, self.reduced, strict=True) if r)


@cache
def reduction_shape(shape: Ints, axes: Ints) -> Shape:
    """`shape` reduced over `axes`, neighbours of one kind joined."""
    kept = tuple(1 if i in axes else n for i, n in enumerate(shape))
    dims, (whole, out) = joined(shape, contiguous(shape), broadcast_strides(kept, shape))
    if math.prod(kept) == 1 or dims == (1,):
        return Shape(dims, tuple(n != 1 for n in dims), whole)
    return Shape(dims, tuple(s == 0 for s in out), whole)


@cache
def parts_of(shape: Shape) -> tuple[int, int, int]:
    """(parts, the reduced axis that is cut, its extent in one part); one part where cutting does not pay."""
    if shape.outputs > _FEW_OUTPUTS or shape.elements < _LONG:
        return 1, 0, 0
    axis = max((i for i, r in enumerate(shape.reduced) if r), key=lambda i: shape.dims[i])
    parts = min(shape.dims[axis], _MOST_PARTS, shape.elements // _PART)
    extent = -(-shape.dims[axis] // parts)
    if axis == len(shape.dims) - 1:
        extent = -(-extent // 8) * 8
    return -(-shape.dims[axis] // extent), axis, extent


def workspace_nbytes(inputs: Sequence[AnySpec], axes: Sequence[int] | None) -> int:
    """Bytes for the parts of a reduction of the first input, 8 for each; 0 where it is done at once, as those of less than 32,768 elements are."""
    (x,) = (s for s in inputs[:1] if isinstance(s, Spec))
    shape = reduction_shape(x.bounds, some_axes(axes, x.ndim))
    return scratch_nbytes(np.float64, most_parts(x, shape)) if most_parts(x, shape) else 0


def most_parts(x: Spec, shape: Shape) -> int:
    """Values that the parts of a reduction of `x` make at most; of a bounded x, for any extents within its bounds."""
    if x.is_bounded:
        return min(_FEW_OUTPUTS, max(shape.outputs, 1)) * _MOST_PARTS if x.size >= _LONG else 0
    parts = parts_of(shape)[0]
    return parts * shape.outputs if parts > 1 else 0


# Sources ----------------------------------------------------------------------------------------------------------------------

_HEAD = """
#define LOAD(i) @LOAD
#define STORE(i, v) @STORE
#define ADD(acc, v) (@ADD)
#define JOIN(acc, other) (@JOIN)
"""

# `id` counts outputs; of several parts, part by part. PLACE sets `base` to the first element of an output and `cut` to the extent of the cut axis
# in this part; LOOPS walks the outer reduced axes, `at` being where the innermost starts.
_ROW_CPU = """
__kernel void reduce(OUT(@OUT, out_p), IN(@IN, x_p), const long outputs, const long count, const long each, const long cut_each@PARAMETERS) {
    LET_OUT(@OUT, out_p); LET_IN(@IN, x_p);
    const long id_end = min(((long)get_global_id(0) + 1) * each, count);
    for (long id = (long)get_global_id(0) * each; id < id_end; id++) {
        @PLACE
        @ACC acc = @START;
        @LOOPS {
            const long end = at + @INNER;
            long i = at;
            @VECTOR
            for (; i < end; i++) { const @ACC v = LOAD(i); acc = ADD(acc, v); }
        }
        STORE(id, acc);
    }
}
"""
# Two vectors of W elements, 32 bytes: LLVM 14 crashes on some of 64.
_WIDE = """
            if (end - i >= 4 * @W) {
                @VEC some = (@VEC)(@START), more = (@VEC)(@START);
                for (; i + 2 * @W <= end; i += 2 * @W) {
                    { const @VEC acc = some, v = vload@W(0, x_p + i); some = @ADD; }
                    { const @VEC acc = more, v = vload@W(0, x_p + i + @W); more = @ADD; }
                }
                { const @VEC acc = some, other = more; some = @JOIN; }
                @ACC lanes[@W];
                vstore@W(some, 0, lanes);
                for (int k = 0; k < @W; k++) acc = JOIN(acc, lanes[k]);
            }
"""
_ROW_GPU = """
__kernel void reduce(OUT(@OUT, out_p), IN(@IN, x_p), const long outputs, const long count, const long each, const long cut_each@PARAMETERS) {
    LET_OUT(@OUT, out_p); LET_IN(@IN, x_p);
    __local @ACC lanes[@GROUP];
    const int lane = get_local_id(0);
    const long id = get_group_id(0);
    @PLACE
    @ACC acc = @START;
    @LOOPS {
        for (long i = at + lane, end = at + @INNER; i < end; i += @GROUP) { const @ACC v = LOAD(i); acc = ADD(acc, v); }
    }
    lanes[lane] = acc;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int half_ = @GROUP / 2; half_; half_ /= 2) {
        if (lane < half_) { const @ACC mine = lanes[lane], other = lanes[lane + half_]; lanes[lane] = JOIN(mine, other); }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    if (!lane) STORE(id, lanes[0]);
}
"""
# Blocks of neighbouring outputs: `columns` of them in a row, BLOCK to a work item.
_COLUMNS = """
__kernel void reduce(OUT(@OUT, out_p), IN(@IN, x_p), const long outputs, const long count, const long each, const long cut_each@PARAMETERS) {
    LET_OUT(@OUT, out_p); LET_IN(@IN, x_p);
    const long columns = @COLUMNS, blocks = (columns + @BLOCK - 1) / @BLOCK;
    const long id_end = min(((long)get_global_id(0) + 1) * each, count / columns * blocks);
    for (long block = (long)get_global_id(0) * each; block < id_end; block++) {
        const long id = block / blocks * columns + block % blocks * @BLOCK;
        const int some = min((long)@BLOCK, columns - block % blocks * @BLOCK);
        @PLACE
        @ACC acc[@BLOCK];
        for (int k = 0; k < @BLOCK; k++) acc[k] = @START;
        @LOOPS {
            if (some == @BLOCK) for (int k = 0; k < @BLOCK; k++) { const @ACC v = LOAD(at + k); acc[k] = ADD(acc[k], v); }
            else for (int k = 0; k < some; k++) { const @ACC v = LOAD(at + k); acc[k] = ADD(acc[k], v); }
        }
        for (int k = 0; k < some; k++) STORE(id + k, acc[k]);
    }
}
"""


@cache
def _source(
    is_cpu: bool, shape_kinds: tuple[bool, ...], cut: int | None, dtype: Any, out_dtype: Any, accumulator: str, how: Reduction, scaled: bool
) -> str:
    """A reduction of axes of these kinds (True: reduced); `cut`: the axis that is reduced in parts."""
    axes = range(len(shape_kinds))
    last = len(shape_kinds) - 1
    element, result = as_is(dtype), c_type(out_dtype)
    load = "vload_half(i, x_p)" if element.memory == "half" else f"({accumulator})x_p[i]"
    value = "((v) * scale)" if scaled else "(v)"
    store = f"vstore_half_rte({value}, i, out_p)" if result == "half" else f"out_p[i] = ({result}){value}"
    parameters = [f"const long d{i}, const long s{i}" for i in axes] + ([f"const {accumulator} scale"] if scaled else [])

    place = ["long rest = id;", "const long part = rest / outputs; rest %= outputs; long base = 0;"]
    for i in reversed(axes):
        if not shape_kinds[i]:
            place.append(f"base += rest % d{i} * s{i}; rest /= d{i};")
    if cut is not None:
        place.append(f"base += part * cut_each * s{cut}; const long cut = min(cut_each, d{cut} - part * cut_each);")
    extent = {i: "cut" if i == cut else f"d{i}" for i in axes}
    loops, at = [], "base"
    for i in axes:
        if shape_kinds[i] and i != last:
            loops.append(f"for (long r{i} = 0; r{i} < {extent[i]}; r{i}++)")
            at += f" + r{i} * s{i}"
    body = _COLUMNS if not shape_kinds[last] else _ROW_CPU if is_cpu else _ROW_GPU
    vector = how.vector and is_cpu and element.memory == accumulator and element.memory in ("float", "double")
    width = 4 if accumulator in ("double", "long", "ulong") else 8
    loops_text = " ".join(loops) + f" for (long at = {at}, once = 1; once; once = 0)"
    fields = {
        "@VECTOR": _WIDE if vector else "", "@LOOPS": loops_text, "@PLACE": " ".join(place), "@INNER": extent[last], "@COLUMNS": f"d{last}",
        "@PARAMETERS": "".join(f", {p}" for p in parameters), "@START": how.start, "@ADD": how.add, "@JOIN": how.join, "@LOAD": load, "@STORE": store,
        "@VEC": f"{accumulator}{width}", "@ACC": accumulator, "@W": str(width), "@OUT": result, "@IN": element.memory, "@GROUP": str(_GROUP),
        "@BLOCK": str(_BLOCK if is_cpu else 1),
    }  # fmt: skip
    text = _HEAD + body
    for key, replacement in fields.items():
        text = text.replace(key, replacement)
    return text


def _run(
    cl: OpenCL, shape: Shape, x: Any, out: Any, how: Reduction, accumulator: str, scale: Any = None, cut: tuple[int, int, int] | None = None
) -> None:
    parts, axis, extent = cut or (1, 0, 0)
    source = _source(cl.is_cpu, shape.reduced, axis if cut else None, x.dtype, out.dtype, accumulator, how, scale is not None)
    count = shape.outputs * parts
    arguments = longs(*(v for pair in zip(shape.dims, shape.strides, strict=True) for v in pair)) + ([] if scale is None else [scale])
    if shape.reduced[-1]:
        each, size, local = _units(cl, count, shape.elements // parts, _GROUP)
    else:
        block, columns = _BLOCK if cl.is_cpu else 1, shape.dims[-1]
        each, size, local = _units(cl, count // columns * -(-columns // block), shape.elements // parts * block, 1)
    cl.run(source, "reduce", (size,), out, x, *longs(shape.outputs, count, each, extent), *arguments, local_size=(local,))


def reduce(cl: OpenCL, x: Any, out: Any, axes: Ints, workspace: Any, how: Reduction, accumulator: str, scale: Any = None) -> None:
    """Enqueue: out = x reduced over `axes`, each result times `scale`. `workspace`: see `workspace_nbytes`."""
    shape = reduction_shape(tuple(x.shape), axes)
    cut = parts_of(shape)
    if cut[0] == 1 or workspace is None:
        _run(cl, shape, x, out, how, accumulator, scale)
        return
    kind = np.dtype({"float": np.float32, "double": np.float64}.get(accumulator, np.int64))
    (parts,) = workspace_pieces(cl, workspace, kind, cut[0] * shape.outputs)
    _run(cl, shape, x, parts, how, accumulator, cut=cut)
    again = reduction_shape((cut[0], shape.outputs), (0,))
    _run(cl, again, parts, out, how, accumulator, scale)


def _units(cl: OpenCL, count: int, work: int, lanes: int) -> tuple[int, int, int]:
    """(outputs of a work item or group, global size, local size) for `count` outputs that read `work` elements each."""
    if cl.is_cpu:
        each = max(1, 4096 // max(work, 1), count // 256)
        return each, -(-count // each), 1
    return (1, count * lanes, lanes) if lanes > 1 else (1, count, 64)


# Kernels of ops ---------------------------------------------------------------------------------------------------------------


def _accumulator(dtype: Any) -> str:
    """Floats are summed as themselves (half as float), others in 64 bits, which wrap around."""
    return as_is(dtype).value if dtype.kind == "f" else "long"


def add_up(cl: OpenCL, x: Any, out: Any, axes: Ints, workspace: Any, factor: float | None = None) -> None:
    """Enqueue: out = the sum of x over `axes`, times `factor`. `out` may have fewer axes than x."""
    if not out.size:
        return
    if not x.size:
        cl.fill(out, 0)
        return
    scale = None if factor is None else scalar_type(out.dtype)(factor)
    reduce(cl, x, out, axes, workspace, _SUM, _accumulator(out.dtype), scale)


def sum_(cl: OpenCL, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    """The kernel of tensor.sum."""
    add_up(cl, inputs[0], outputs[0], some_axes(attributes["axes"], len(inputs[0].shape)), workspace)


def mean(cl: OpenCL, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    """The kernel of tensor.mean."""
    x, out = inputs[0], outputs[0]
    if out.size:
        add_up(cl, x, out, some_axes(attributes["axes"], len(x.shape)), workspace, out.size / x.size)


def max_(cl: OpenCL, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    """The kernel of tensor.max."""
    x, out = inputs[0], outputs[0]
    if out.size:
        reduce(cl, x, out, some_axes(attributes["axes"], len(x.shape)), workspace, _largest_of(x.dtype), as_is(x.dtype).value)


def sum_to(cl: OpenCL, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    """The kernel of tensor.sum_to."""
    x, out = inputs[0], outputs[0]
    axes = summed_axes(tuple(x.shape), tuple(out.shape))
    if axes and any(x.shape[i] != 1 for i in axes):
        add_up(cl, x, out, axes, workspace)
    elif out.size:
        cl.copy(x, out)


def summed_axes(shape: Ints, to: Ints) -> Ints:
    """The axes of `shape` along which an array of the shape `to` is repeated."""
    lead = len(shape) - len(to)
    return tuple(i for i in range(len(shape)) if i < lead or (to[i - lead] == 1 and shape[i] != 1))


# BETTER: v at index i comes before best at index best_i. NaN comes before all numbers, and of equal ones the first.
_ARGMAX = """
#define LANES @LANES
#define NUMBER(v) ((v) == (v))
#define EQUAL(v, best) ((v) == (best) || (!NUMBER(v) && !NUMBER(best)))
#define BETTER(v, i, best, best_i) ((v) > (best) || (!NUMBER(v) && NUMBER(best)) || (EQUAL(v, best) && (i) < (best_i)))
__kernel void argmax(OUT(long, out_p), IN(@IN, x_p), const long n, const long inner, const long count, const long each) {
    LET_OUT(long, out_p); LET_IN(@IN, x_p);
#if LANES > 1
    __local @T lanes[LANES];
    __local long places[LANES];
#endif
    const long unit = get_global_id(0) / LANES, id_end = min((unit + 1) * each, count);
    const int lane = get_global_id(0) % LANES;
    for (long id = unit * each; id < id_end; id++) {
        const long base = id / inner * n * inner + id % inner;
        long best_i = lane < n ? lane : 0;
        @T best = @LOAD(base + best_i * inner);
        for (long i = lane + LANES; i < n; i += LANES) {
            const @T v = @LOAD(base + i * inner);
            if (v > best || (!NUMBER(v) && NUMBER(best))) { best = v; best_i = i; }
        }
#if LANES > 1
        lanes[lane] = best;
        places[lane] = best_i;
        barrier(CLK_LOCAL_MEM_FENCE);
        for (int half_ = LANES / 2; half_; half_ /= 2) {
            if (lane < half_ && BETTER(lanes[lane + half_], places[lane + half_], lanes[lane], places[lane])) {
                lanes[lane] = lanes[lane + half_];
                places[lane] = places[lane + half_];
            }
            barrier(CLK_LOCAL_MEM_FENCE);
        }
        best_i = places[0];
#endif
        if (!lane) out_p[id] = best_i;
    }
}
"""


@cache
def _argmax_source(dtype: Any, lanes: int) -> str:
    element = as_is(dtype)
    load = "#define AT(i) vload_half(i, x_p)" if element.memory == "half" else "#define AT(i) x_p[i]"
    text = _ARGMAX.replace("@LANES", str(lanes)).replace("@IN", element.memory).replace("@T", element.value).replace("@LOAD", "AT")
    return f"{load}{text}"


def argmax(cl: OpenCL, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    """The kernel of tensor.argmax."""
    x, out = inputs[0], outputs[0]
    if not out.size:
        return
    axis = attributes["axis"] % len(x.shape)
    n, inner = x.shape[axis], math.prod(x.shape[axis + 1 :])
    lanes = _GROUP if not cl.is_cpu and inner == 1 and n > 1 else 1
    each, size, local = _units(cl, out.size, n, lanes)
    cl.run(_argmax_source(x.dtype, lanes), "argmax", (size,), out, x, *longs(n, inner, out.size, each), local_size=(local,))


_MAX_GRAD = """
#define LANES @LANES
__kernel void max_grad(OUT(@S, out_p), IN(@S, x_p), IN(@S, y_p), IN(@S, grad_p), const long outputs, const long each@PARAMETERS) {
    LET_OUT(@S, out_p); LET_IN(@S, x_p); LET_IN(@S, y_p); LET_IN(@S, grad_p);
#if LANES > 1
    __local long founds[LANES];
#endif
    const long unit = get_global_id(0) / LANES, id_end = min((unit + 1) * each, outputs);
    const int lane = get_global_id(0) % LANES;
    for (long id = unit * each; id < id_end; id++) {
        @PLACE
        const @T y = AT(y_p, id);
        long found = 0;
        @LOOPS found += AT(x_p, at) == y;
#if LANES > 1
        founds[lane] = found;
        barrier(CLK_LOCAL_MEM_FENCE);
        found = 0;
        for (int k = 0; k < LANES; k++) found += founds[k];
        barrier(CLK_LOCAL_MEM_FENCE);
#endif
        const @T share = AT(grad_p, id) / (@T)found;
        @LOOPS { const @T v = (@T)(AT(x_p, at) == y) * share; PUT(at, v); }
    }
}
"""


@cache
def _max_grad_source(reduced: tuple[bool, ...], dtype: Any, lanes: int) -> str:
    element, last = as_is(dtype), len(reduced) - 1
    place, loops, at = ["long rest = id; long base = 0;"], [], "base"
    for i in reversed(range(len(reduced))):
        if not reduced[i]:
            place.append(f"base += rest % d{i} * s{i}; rest /= d{i};")
    for i, r in enumerate(reduced):
        if r and i != last:
            loops.append(f"for (long r{i} = 0; r{i} < d{i}; r{i}++)")
            at += f" + r{i} * s{i}"
    if reduced[last]:
        loops.append(f"for (long k = lane; k < d{last}; k += LANES)")
        at += " + k"
    loops.append(f"for (long at = {at}, once = 1; once; once = 0)")
    half = element.memory == "half"
    fields = {
        "@LANES": str(lanes), "@PARAMETERS": "".join(f", const long d{i}, const long s{i}" for i in range(len(reduced))), "@PLACE": " ".join(place),
        "@LOOPS": " ".join(loops), "@S": element.memory, "@T": element.value,
    }  # fmt: skip
    text = _MAX_GRAD
    for key, replacement in fields.items():
        text = text.replace(key, replacement)
    load, store = ("vload_half(i, p)", "vstore_half_rte(v, i, out_p)") if half else ("p[i]", "out_p[i] = v")
    return f"#define AT(p, i) {load}\n#define PUT(i, v) {store}\n{text}"


def max_grad(cl: OpenCL, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    """The kernel of tensor.max_grad."""
    x, y, grad = inputs
    if not x.size:
        return
    shape = reduction_shape(tuple(x.shape), some_axes(attributes["axes"], len(x.shape)))
    lanes = _GROUP if not cl.is_cpu and shape.reduced[-1] else 1
    each, size, local = _units(cl, shape.outputs, shape.elements, lanes)
    arguments = longs(shape.outputs, each, *(v for pair in zip(shape.dims, shape.strides, strict=True) for v in pair))
    source = _max_grad_source(shape.reduced, x.dtype, lanes)
    cl.run(source, "max_grad", (size,), outputs[0], x, y, grad, *arguments, local_size=(local,))
