"""What kernels in OpenCL C share: types by dtype, element-wise kernels, reductions in stages, pieces of the workspace.

Sources are written in terms of `S`, the type in memory, and `T`, the type to calculate with (float for half, else S), and go through LOAD, STORE
and, for W elements at once (32 bytes of T; wider vectors suit few processors), TW, LOADW and STOREW. `A` is the type of long sums: double where the
device has it, else float. `ACROSS` is 1 on GPUs, where neighbouring work items take neighbouring elements, and 0 on processors, where each takes
consecutive ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from hetsched.graph.op import OpenCL
from hetsched.graph.ops._scratch import scratch_nbytes

_INTEGERS = {"bool": "uchar", "int8": "char", "uint8": "uchar", "int16": "short", "uint16": "ushort", "int32": "int", "uint32": "uint"}
_NAMES = {**_INTEGERS, "int64": "long", "uint64": "ulong", "float16": "half", "float32": "float", "float64": "double"}

# (LOAD, STORE, LOADW, STOREW): half is a type of memory only, so it goes through functions that every device has.
_ACCESS = {
    "half": ("vload_half(i, p)", "vstore_half(v, i, p)", "vload_half8(0, (p) + (i))", "vstore_half8(v, 0, (p) + (i))"),
    "float": ("((p)[i])", "((p)[i] = (v))", "vload8(0, (p) + (i))", "vstore8(v, 0, (p) + (i))"),
    "double": ("((p)[i])", "((p)[i] = (v))", "vload4(0, (p) + (i))", "vstore4(v, 0, (p) + (i))"),
}

# Before a loop whose arrays should lie in registers.
UNROLL = '#define UNROLL _Pragma("unroll")\n'


def c_type(dtype: Any) -> str:
    """The OpenCL C type of the elements of an array."""
    return _NAMES[np.dtype(dtype).name]


def unit_type(dtype: Any) -> str:
    """An unsigned type as wide as `dtype`: what copies elements of any dtype."""
    return {1: "uchar", 2: "ushort", 4: "uint", 8: "ulong"}[np.dtype(dtype).itemsize]


@cache
def scalar_type(dtype: Any) -> type[np.generic]:
    """The NumPy type of a `T` argument where arrays are of the floating `dtype`."""
    return np.float64 if np.dtype(dtype) == np.float64 else np.float32


def header(dtype: Any, cl: OpenCL) -> str:
    """The definitions of S, T, A, LOAD, ... for arrays of `dtype`."""
    return _header(dtype, cl.is_cpu, cl.has_fp64)


@cache
def _header(dtype: Any, is_cpu: bool, has_fp64: bool) -> str:
    name = c_type(dtype)
    calculate = "float" if name == "half" else name
    width = 4 if name == "double" else 8
    load, store, load_many, store_many = _ACCESS[name]
    return f"""{UNROLL}#define S {name}
#define T {calculate}
#define W {width}
#define TW {calculate}{width}
#define A {"double" if has_fp64 else "float"}
#define LOAD(p, i) {load}
#define STORE(p, i, v) {store}
#define LOADW(p, i) {load_many}
#define STOREW(p, i, v) {store_many}
#define ACROSS {int(not is_cpu)}
"""


def source(cl: OpenCL, dtype: Any, text: str, defines: str = "") -> str:
    """`text` behind the definitions for `dtype` and its own `defines`: the same string object at every call, whose hash is kept."""
    return _source(header(dtype, cl), text, defines)


@cache
def _source(head: str, text: str, defines: str) -> str:
    return head + defines + text


def sum_type(cl: OpenCL) -> type[np.generic]:
    """The NumPy type of `A`."""
    return np.float64 if cl.has_fp64 else np.float32


def workspace_pieces(cl: OpenCL, workspace: Any, dtype: Any, *counts: int) -> list[Any]:
    """Arrays of `counts` elements of `dtype`, laid out in `workspace` as `_scratch.scratch` does."""
    pieces, at = [], 0
    for count in counts:
        nbytes = count * np.dtype(dtype).itemsize
        pieces.append(cl.part(cl.part(workspace, at, (nbytes,)), 0, (count,), dtype))
        at += scratch_nbytes(dtype, count)
    return pieces


# Element-wise -----------------------------------------------------------------------------------------------------------------

# Elements of a work item. On processors enough to hide its start (about 50 ns), on others one vector.
_EACH_CPU, _EACH_GPU = 1024, 8


@cache
def _elementwise_source(head: str, inputs: tuple[str, ...], outputs: tuple[str, ...], parameters: str, before: str, body: str) -> str:
    def step(width: str) -> str:
        loads = "".join(f"V {x} = LOAD{width}({x}_at, i); " for x in inputs)
        stores = "".join(f" STORE{width}({y}_at, i, {y});" for y in outputs)
        return f"{{ {loads}{body}{stores} }}".replace("V ", f"T{width} ")

    arrays = [*(f"IN(S, {x}_at)" for x in inputs), *(f"OUT(S, {y}_at)" for y in outputs)]
    lets = " ".join([*(f"LET_IN(S, {x}_at)" for x in inputs), *(f"LET_OUT(S, {y}_at)" for y in outputs)])
    return f"""{head}
__kernel void each({", ".join([*arrays, "const long n", "const long count", *([parameters] if parameters else [])])}) {{
    {lets}
    long i = get_global_id(0) * count;
    const long end = min(i + count, n);
    {before}
    for (; i + W <= end; i += W) {step("W")}
    for (; i < end; i++) {step("")}
}}
"""


class Elementwise(NamedTuple):
    """A kernel that loads `inputs`, runs `body` and stores `outputs`, W elements at once and the rest one by one.

    `body` is written for values of type `V` (TW or T) that are called as the arrays are; it declares those of the outputs. `before` runs once a work
    item. All is loaded before anything is stored, so an output may lie in an input's memory. Vectors are written out because compilers give up
    vectorizing where arrays may overlap.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    body: str
    parameters: str = ""
    before: str = ""

    def run(self, cl: OpenCL, arrays: Sequence[Any], *arguments: Any) -> None:
        """Enqueue it on `arrays`, inputs then outputs, all of one size and floating dtype; `arguments` are those of `parameters`."""
        n = arrays[0].size
        if not n:
            return
        source = _elementwise_source(header(arrays[0].dtype, cl), self.inputs, self.outputs, self.parameters, self.before, self.body)
        count = _EACH_CPU if cl.is_cpu else _EACH_GPU
        cl.run(source, "each", (-(-n // count),), *arrays, np.int64(n), np.int64(count), *arguments)


# Reductions -------------------------------------------------------------------------------------------------------------------

_MOST_PARTIALS = 8192
_LAST_PARTIALS = 64

# Where work item `id` of `items` finds its share of n elements: `for (long k = 0, i = FIRST; k < EACH && i < n; k++, i += STEP)`.
SHARES = """
#define EACH ((n - 1) / items + 1)
#define FIRST (ACROSS ? id : id * EACH)
#define STEP (ACROSS ? items : 1)
#define SHARE(i) for (long k_ = 0, i = FIRST; k_ < EACH && i < n; k_++, i += STEP)
"""

_REDUCTION = """
__kernel void first(@ARRAYS OUT(SUM, sums), const long n, const long items@PARAMETERS) {
    @LETS LET_OUT(SUM, sums)
    const long id = get_global_id(0);
    if (id >= items) return;
    SUM sum = 0;
    SHARE(i) { @TERM }
    sums[id] = sum;
}

__kernel void again(OUT(SUM, sums), OUT(RESULT, result), const long from, const long n, const long items, const SUM divisor) {
    LET_OUT(SUM, sums) LET_OUT(RESULT, result)
    const long id = get_global_id(0);
    SUM sum = 0;
    SHARE(i) sum += sums[from + i];
    if (items == 1) STORE_RESULT(result, sum / divisor);
    else sums[from + n + id] = sum;
}
"""


@cache
def _reduction_source(head: str, inputs: tuple[tuple[str, str], ...], parameters: str, term: str, counts: bool) -> str:
    kinds = ("long", "long", "((p)[0] = (v))") if counts else ("A", "S", "STORE(p, 0, v)")
    body = _REDUCTION.replace("@ARRAYS", "".join(f"IN({kind}, {name}), " for kind, name in inputs))
    body = body.replace("@LETS", " ".join(f"LET_IN({kind}, {name})" for kind, name in inputs))
    body = body.replace("@PARAMETERS", f", {parameters}" if parameters else "").replace("@TERM", term)
    return f"{head}{SHARES}#define SUM {kinds[0]}\n#define RESULT {kinds[1]}\n#define STORE_RESULT(p, v) {kinds[2]}\n{body}"


class Reduction(NamedTuple):
    """A sum over n elements: `term` are statements that add what element `i` gives to `sum`, from `inputs`, (C type, name), and `parameters`.

    The result is a floating scalar, or int64 where it `counts`. `defines` stand before the source. The order of the additions depends on n and
    the kind of device alone.
    """

    inputs: tuple[tuple[str, str], ...]
    term: str
    parameters: str = ""
    counts: bool = False
    defines: str = ""

    @staticmethod
    def nbytes(n: int) -> int:
        """Bytes of workspace for n elements, on any device."""
        return scratch_nbytes(np.float64, min(n, _MOST_PARTIALS) + _LAST_PARTIALS)

    def run(
        self, cl: OpenCL, dtype: Any, inputs: Sequence[Any], result: Any, workspace: Any, n: int, least: int, divisor: float, *arguments: Any
    ) -> None:
        """Enqueue: result[0] = the sum over n (at least 1) elements of floating `dtype` / divisor. `least`: elements that are worth a work item."""
        source = _reduction_source(header(dtype, cl) + self.defines, self.inputs, self.parameters, self.term, self.counts)
        kind = np.int64 if self.counts else sum_type(cl)
        (sums,) = workspace_pieces(cl, workspace, kind, min(n, _MOST_PARTIALS) + _LAST_PARTIALS)
        items = min(-(-n // least), _LAST_PARTIALS if cl.is_cpu else _MOST_PARTIALS)
        cl.run(source, "first", (items,), *inputs, sums, np.int64(n), np.int64(items), *arguments, local_size=(64,) if items > 64 else None)
        start = 0
        while items:
            fewer = 1 if items <= _LAST_PARTIALS else _LAST_PARTIALS
            cl.run(source, "again", (fewer,), sums, result, np.int64(start), np.int64(items), np.int64(fewer), kind(divisor))
            start, items = start + items, fewer if fewer > 1 else 0
