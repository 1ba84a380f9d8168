"""Element-wise launches that follow each other on a CUDA stream as one kernel in CUDA C++. Pure: nothing here needs CuPy or a device.

What an op calculates is the expression that its OpenCL kernel has (hetsched/graph/ops/_cl_elementwise.py): that kernel is called with a recorder in
place of a queue, and the expression is put into CUDA C++, where functions of float have an `f` behind their names and integers other names. So one
table serves both. Each value is rounded to its dtype before the next part takes it, and products and sums are not contracted
(`--fmad=false`): a chain has the bits of its launches one by one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from hetsched.graph.op import Op
from hetsched.graph.ops import family, registry
from hetsched.graph.ops._cl_elementwise import LONGEST_CHAIN, Element, Part, as_is, meet_in_place, names_of, same_bytes, type_of
from hetsched.graph.ops._cl_layout import broadcast_strides, joined

OPTIONS = ("-std=c++17", "--fmad=false")
FUNCTION = "hetsched_chain"
THREADS = 256
_MOST_SHORT = (1 << 31) - THREADS  # elements that are counted in 32 bits, whose divisions are several times faster

# `long` is as wide as the platform has it, and `char` signed where the platform has it so.
_TYPES = {
    "char": "i8", "uchar": "u8", "short": "i16", "ushort": "u16", "int": "int", "uint": "u32", "long": "i64", "ulong": "u64", "float": "float",
    "double": "double",
}  # fmt: skip
_TYPEDEFS = """
typedef signed char i8; typedef unsigned char u8; typedef short i16; typedef unsigned short u16;
typedef unsigned int u32; typedef long long i64; typedef unsigned long long u64;
"""
_TYPE = re.compile(rf"\b({'|'.join(_TYPES)})\b")
_FUNCTION = re.compile(r"\b(exp|log|sqrt|tanh)\(")


# Which launches -----------------------------------------------------------------------------------------------------------------------


class _Recorder:
    """Stands for an OpenCL queue: keeps the part that an element-wise kernel would enqueue."""

    is_cpu = False
    has_fp64 = True
    # Pointers of one array are of one type then, and a value stays in its register.
    moved = staticmethod(as_is)

    def __init__(self) -> None:
        self.parts: list[Part] = []

    def chain(self, part: Part) -> bool:
        self.parts.append(part)
        return True

    def copy(self, x: Any, out: Any) -> None:
        element = as_is(out.dtype)
        self.parts.append(Part("a", (x,), out, (element,), element, ("a",), "", (), False))


@cache
def _known() -> dict[Any, tuple[Any, int]]:
    """The array kernels of element-wise ops: their OpenCL kernels, and how many launches they come to."""
    ops = [op for op in registry().values() if isinstance(op, Op) and op.elementwise and family(op) == "elementwise"]
    return {op.kernels["array"]: (op.kernels["opencl"], op.calls) for op in ops if "array" in op.kernels and "opencl" in op.kernels}


def part_of(call: Sequence[Any]) -> Part | None:
    """What the launch (kernel, inputs, outputs, workspace, attributes, ...) calculates element by element; None for other launches, for those of
    half precision and for those without elements."""
    kernel, inputs, outputs, _, attributes, *_ = call
    known = _known().get(kernel)
    if known is None or outputs[0] is None or any(x.dtype == np.float16 for x in (*inputs, *outputs)):
        return None
    recorder = _Recorder()
    known[0](recorder, inputs, outputs, None, attributes)
    return recorder.parts[0] if len(recorder.parts) == 1 else None


def _kind(memory: str) -> str:
    """C++ lets pointers of a signed type and its unsigned one meet."""
    return memory.removeprefix("u")


def grouped(calls: Sequence[Sequence[Any]]) -> list[tuple[list[Any], list[Part]]]:
    """`calls` in their order, in groups: (calls, parts) of those that one kernel is to do, and ([call], []) of those that are launched by themselves.

    One kernel does neighbours with as many elements each, whose bytes meet in place alone; and a launch alone whose array kernel makes several.
    """
    groups: list[tuple[list[Any], list[Part]]] = []
    for call in calls:
        part = part_of(call)
        last = groups[-1] if groups else ([], [])
        if part is None:
            groups.append(([call], []))
        elif last[1] and len(last[1]) < LONGEST_CHAIN and part.out.size == last[1][0].out.size and meet_in_place([*last[1], part], _kind):
            last[0].append(call)
            last[1].append(part)
        elif meet_in_place([part], _kind):
            groups.append(([call], [part]))
        else:
            groups.append(([call], []))
    return [(c, p if len(p) > 1 or _known().get(c[0][0], (None, 1))[1] > 1 else []) for c, p in groups]


# Source -------------------------------------------------------------------------------------------------------------------------------


class Chain(NamedTuple):
    """A kernel: its source, the arrays that it takes (distinct ones, pointers in C++), the scalars behind them, and its elements."""

    source: str
    arrays: list[Any]
    scalars: list[Any]
    size: int

    @property
    def grid(self) -> tuple[int]:
        """Blocks of `THREADS` threads, an element each."""
        return (-(-self.size // THREADS),)


def in_cuda(text: str) -> str:
    """Types of OpenCL C as those of CUDA C++.

    >>> in_cuda("(uint)(long)a")
    '(u32)(i64)a'
    """
    return _TYPE.sub(lambda found: _TYPES[found[1]], text)


def expression_in_cuda(part: Part) -> str:
    """The expression of a part for single elements; functions of float by their own names, so that nothing is calculated in double."""
    text = part.expression.replace("(V)", f"({part.result.value})")
    if part.result.value == "float":
        text = _FUNCTION.sub(r"\1f(", text)
    return in_cuda(text)


def chain_of(parts: Sequence[Part]) -> Chain:
    """One kernel for `parts`: what one has made the next takes from a register, and every output is written. Its source does not depend on
    extents, but on how many axes a broadcast input is walked over, and on whether 32 bits count the elements."""
    size = parts[0].out.size
    is_short = size <= _MOST_SHORT
    whole, number = ("u32", np.uint32) if is_short else ("u64", np.uint64)
    arrays: list[tuple[Any, str]] = []  # (array, type in memory)
    parameters: list[str] = []
    scalars: list[Any] = [number(size)]
    made: dict[str, int] = {}  # pointer -> the part that made what it points to
    lines: list[str] = []

    def pointer(x: Any, element: Element) -> str:
        for i, (y, memory) in enumerate(arrays):
            if same_bytes(x, y) and _kind(memory) == _kind(element.memory):
                return f"p{i}"
        arrays.append((x, element.memory))
        return f"p{len(arrays) - 1}"

    def scalar(kind: str, name: str, value: Any) -> str:
        parameters.append(f"const {kind} {name}")
        scalars.append(value)
        return name

    def place(x: Any, out: Any, name: str) -> str:
        """Where the element of `x` for element `j` of `out` lies."""
        if x.size == size:
            return "j"
        dims, (strides,) = joined(tuple(out.shape), broadcast_strides(tuple(x.shape), tuple(out.shape)))
        terms = []
        for axis, (extent, stride) in enumerate(zip(dims, strides, strict=True)):
            if not stride:
                continue
            inner = math.prod(dims[axis + 1 :])
            at = "j" if inner == 1 else f"j / {scalar(whole, f'{name}_{axis}_inner', number(inner))}"
            at = at if axis == 0 else f"{at} % {scalar(whole, f'{name}_{axis}', number(extent))}"
            terms.append(at if stride == 1 else f"({at}) * {scalar(whole, f'{name}_{axis}_step', number(stride))}")
        return " + ".join(terms) or "0"

    for i, part in enumerate(parts):
        let = []
        for name, x, element in zip(part.names, part.inputs, part.elements, strict=True):
            p, kind = pointer(x, element), in_cuda(element.value)
            # By way of the type in memory: a signed char that was made as an unsigned one is read with its sign.
            value = f"y{made[p]}" if p in made else f"{p}[{place(x, part.out, f'k{i}{name}')}]"
            let.append(f"const {kind} {name} = ({kind})({in_cuda(element.memory)}){value};")
        for name, value in zip(names_of(part.parameters), part.arguments, strict=True):
            kind = in_cuda(type_of(part.parameters, name))
            let.append(f"const {kind} {name} = {scalar(kind, f'{name}_{i}', value)};")
        target, memory = pointer(part.out, part.result), in_cuda(part.result.memory)
        lines.append(f"{memory} y{i}; {{ {' '.join(let)} y{i} = ({memory})({expression_in_cuda(part)}); }} {target}[j] = y{i};")
        made[target] = i
    given = [f"{'' if f'p{i}' in made else 'const '}{in_cuda(memory)} *p{i}" for i, (_, memory) in enumerate(arrays)]
    body = "\n    ".join(lines)
    source = f"""{_TYPEDEFS}
extern "C" __global__ void {FUNCTION}({", ".join([*given, f"const {whole} n", *parameters])}) {{
    const {whole} j = ({whole})blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= n) return;
    {body}
}}
"""
    return Chain(source, [x for x, _ in arrays], scalars, size)
