"""Element-wise kernels in OpenCL C, with broadcasting: one expression, a source for each pattern of axes.

An expression is written for values of type `V`: the type to calculate with, or a vector of them (8, or 4 of 8 bytes) where `vector` allows it.
Vectors are written out because compilers give up vectorizing where an output may be an input's memory. Of a vector all is loaded before anything is
stored. No vector is wider than 32 bytes: the LLVM 14 of PoCL 3.0 crashes on some that are, where the processor has AVX-512.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from hetsched.graph.op import Attributes, Kernel, OpenCL
from hetsched.graph.ops._cl_layout import GRID, Ints, broadcast_strides, grid_source, joined, offsets, row_arguments, run_grid
from hetsched.graph.ops._cl_types import c_type, scalar_type, unit_type


class Element(NamedTuple):
    """How one array is read or written: its type in memory and the type to calculate with."""

    memory: str
    value: str


def as_is(dtype: Any) -> Element:
    """Values as they are; half as float."""
    name = c_type(dtype)
    return Element(name, "float" if name == "half" else name)


def wrapping(dtype: Any) -> Element:
    """For +, - and *: integers as unsigned ones of at least 32 bits, which wrap around as NumPy's do; in C signed ones must not."""
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return as_is(dtype)
    wide = "ulong" if dtype.itemsize == 8 else "uint"
    return Element(wide if dtype.itemsize >= 4 else c_type(dtype), wide)


def bits(dtype: Any) -> Element:
    """Values that are only moved, of any dtype."""
    return Element(unit_type(dtype), unit_type(dtype))


@cache
def _source(
    grid: str, expression: str, names: tuple[str, ...], elements: tuple[Element, ...], out: Element, varies: tuple[bool, ...], axes: int,
    parameters: str, vector: bool,
) -> str:  # fmt: skip
    def load(name: str, element: Element, along: bool, width: str) -> str:
        at = f"{name}_at + j" if along else f"{name}_at"
        if width and along:
            return f"const {element.value}{width} {name} = vload{width}(0, {name}_p + {at});"
        return f"const {element.value}{width} {name} = ({element.value}{width})({_load(element, f'{name}_p', at)});"

    def step(width: str) -> str:
        loads = " ".join(load(n, e, v, width) for n, e, v in zip(names, elements, varies, strict=True))
        value = expression.replace("(V)", f"({out.value}{width})")
        return f"{{ {loads} const {out.value}{width} y = {value}; {_store(out, 'y', 'out_p', 'r * inner + j', width)} }}"

    more, at = offsets(names, axes)
    arrays = ", ".join([f"OUT({out.memory}, out_p)", *(f"IN({e.memory}, {n}_p)" for n, e in zip(names, elements, strict=True))])
    lets = " ".join([f"LET_OUT({out.memory}, out_p);", *(f"LET_IN({e.memory}, {n}_p);" for n, e in zip(names, elements, strict=True))])
    many = "4" if out.value in ("double", "long", "ulong") else "8"
    by_many = f"for (; j + {many} <= end; j += {many}) {step(many)}" if vector else ""
    return f"""{grid}
__kernel void each({arrays}, {GRID}{more}{parameters}) {{
    {lets}
    ROWS {{
        {at}
        long j = FIRST;
        const long end = END;
        {by_many}
        for (; j < end; j++) {step("")}
    }}
}}
"""


def _load(element: Element, pointer: str, at: str) -> str:
    return f"vload_half({at}, {pointer})" if element.memory == "half" else f"{pointer}[{at}]"


def _store(element: Element, value: str, pointer: str, at: str, width: str) -> str:
    if width:
        return f"vstore{width}({value}, 0, {pointer} + {at});"
    return f"vstore_half_rte({value}, {at}, {pointer});" if element.memory == "half" else f"{pointer}[{at}] = ({element.memory})({value});"


class Part(NamedTuple):
    """One element-wise launch: what `enqueue` was called with. A queue that tapes launches may put several into one kernel (`enqueue_chain`)."""

    expression: str
    inputs: tuple[Any, ...]
    out: Any
    elements: tuple[Element, ...]
    result: Element
    names: tuple[str, ...]
    parameters: str
    arguments: tuple[Any, ...]
    vector: bool

    @property
    def can_be_chained(self) -> bool:
        """True if every input has the shape of the output, or one element, and no type is calculated in another than it is stored in."""
        shapes = all(x.shape == self.out.shape or x.size == 1 for x in self.inputs)
        return shapes and all(e.memory == e.value for e in (*self.elements, self.result))

    def run(self, cl: OpenCL) -> None:
        """Enqueue it alone."""
        dims, strides = _walk(tuple(self.out.shape), *(tuple(x.shape) for x in self.inputs))
        varies = tuple(s[-1] != 0 for s in strides)
        text = _source(
            grid_source(cl),
            self.expression,
            self.names,
            self.elements,
            self.result,
            varies,
            len(dims) - 1,
            self.parameters,
            self.vector and cl.is_cpu,
        )
        run_grid(cl, text, "each", dims[-1], math.prod(dims[:-1]), [self.out, *self.inputs], [*row_arguments(dims, strides), *self.arguments])


def follows(parts: Sequence[Part], part: Part) -> bool:
    """True if `part` may be done with `parts`, element by element in one kernel: all of one size, and bytes meet in place alone."""
    if not part.can_be_chained or part.out.shape != parts[0].out.shape or len(parts) >= LONGEST_CHAIN:
        return False
    # Of other types in memory not even the same bytes: a compiler may take pointers of two types not to meet.
    return meet_in_place([*parts, part], lambda memory: memory)


def meet_in_place(parts: Sequence[Part], kind: Callable[[str], str]) -> bool:
    """True if no bytes that one of `parts` writes are those of another element that one reads or writes, nor the same ones of a type of another
    `kind`. (A plan may give an output bytes of an input that nobody reads any more, shifted.)"""
    written = [(p.out, kind(p.result.memory)) for p in parts]
    read = [(x, kind(e.memory)) for p in parts for x, e in zip(p.inputs, p.elements, strict=True)]
    return all(_apart(x, y) or (same_bytes(x, y) and a == b) for y, b in written for x, a in (*read, *written))


def _apart(x: Any, y: Any) -> bool:
    return x.buffer is not y.buffer or x.offset + x.nbytes <= y.offset or y.offset + y.nbytes <= x.offset


def same_bytes(x: Any, y: Any) -> bool:
    """True for arrays of the same bytes, element by element."""
    return x.buffer is y.buffer and x.offset == y.offset and x.dtype.itemsize == y.dtype.itemsize and x.size == y.size


LONGEST_CHAIN = 16


def enqueue_chain(cl: OpenCL, parts: Sequence[Part]) -> None:
    """Enqueue `parts`, each of which `follows` those before, as one kernel: what one has made the next takes from a register. Every output is
    written. Each expression is a statement of its own, so products and sums of different parts are not contracted: the bits stay."""
    arrays: list[tuple[Any, str, str]] = []  # (array, type in memory, name)

    def pointer(x: Any, memory: str) -> str:
        for y, kind, name in arrays:
            if same_bytes(x, y) and kind == memory:
                return name
        arrays.append((x, memory, f"p{len(arrays)}"))
        return arrays[-1][2]

    wide = cl.is_cpu and all(p.vector for p in parts)
    sizes = {p.out.dtype.itemsize for p in parts}
    many = ("4" if sizes == {8} else "8") if wide and len(sizes) == 1 else ""
    made: dict[str, tuple[int, Element]] = {}  # pointer -> (the part that made it, how)
    lines: list[tuple[str, str]] = []  # (of vectors, of elements)
    parameters = ""
    arguments: list[Any] = []
    for number, part in enumerate(parts):
        both = []
        for width in (many, ""):
            loads = []
            for name, x, element in zip(part.names, part.inputs, part.elements, strict=True):
                p = pointer(x, element.memory)
                kind = f"{element.value}{width}"
                if p in made and made[p][1] == element:
                    value = f"y{made[p][0]}"
                elif x.size == 1 and part.out.size != 1:
                    value = f"({kind})({p}[0])"
                else:
                    value = f"vload{width}(0, {p} + j)" if width else f"{p}[j]"
                loads.append(f"const {kind} {name} = {value};")
            for name in names_of(part.parameters):
                loads.append(f"const {type_of(part.parameters, name)} {name} = {name}_{number};")
            value = part.expression.replace("(V)", f"({part.result.value}{width})")
            target = pointer(part.out, part.result.memory)
            store = f"vstore{width}(y{number}, 0, {target} + j);" if width else f"{target}[j] = y{number};"
            both.append(f"{part.result.value}{width} y{number}; {{ {' '.join(loads)} y{number} = {value}; }} {store}")
        lines.append((both[0], both[1]))
        made[pointer(part.out, part.result.memory)] = (number, part.result)
        parameters += "".join(f", const {type_of(part.parameters, n)} {n}_{number}" for n in names_of(part.parameters))
        arguments += part.arguments
    given = ", ".join(f"OUT({kind}, {name})" for _, kind, name in arrays)
    lets = " ".join(f"LET_OUT({kind}, {name});" for _, kind, name in arrays)
    vectors = f"for (; j + {many} <= end; j += {many}) {{ {' '.join(a for a, _ in lines)} }}" if many else ""
    text = f"""{grid_source(cl)}
__kernel void chain({given}, {GRID}{parameters}) {{
    {lets}
    ROWS {{
        long j = FIRST;
        const long end = END;
        {vectors}
        for (; j < end; j++) {{ {" ".join(b for _, b in lines)} }}
    }}
}}
"""
    run_grid(cl, text, "chain", parts[0].out.size, 1, [x for x, _, _ in arrays], arguments)


def names_of(parameters: str) -> list[str]:
    """The names in ", const float k, const int n"."""
    return [p.split()[-1] for p in parameters.split(",") if p.strip()]


def type_of(parameters: str, name: str) -> str:
    """The type of a name in such a list."""
    return next(p.split()[-2] for p in parameters.split(",") if p.split()[-1:] == [name])


def enqueue(
    cl: OpenCL, expression: str, inputs: Sequence[Any], out: Any, elements: Sequence[Element], result: Element,
    names: Sequence[str] = ("a", "b", "c"), parameters: str = "", arguments: Sequence[Any] = (), vector: bool = False,
) -> None:  # fmt: skip
    """Enqueue: out = `expression` of `names`, the elements of `inputs` broadcast to the shape of `out`.

    `elements` and `result` tell how arrays are read and written; `parameters` (", const float k") and `arguments` are scalars the expression uses.
    """
    if not out.size:
        return
    given = tuple(names[: len(inputs)])
    part = Part(expression, tuple(inputs), out, tuple(elements), result, given, parameters, tuple(arguments), vector)
    chain = getattr(cl, "chain", None)
    if chain is None or not chain(part):
        part.run(cl)


@cache
def _walk(shape: Ints, *inputs: Ints) -> tuple[Ints, tuple[Ints, ...]]:
    return joined(shape, *(broadcast_strides(x, shape) for x in inputs))


# Kernels of ops ---------------------------------------------------------------------------------------------------------------


def arithmetic(expression: str) -> Kernel:
    """A kernel: all arrays of one dtype, integers wrap around. `a`, `b` and `c` are the inputs."""

    def kernel(cl: OpenCL, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
        element = wrapping(inputs[0].dtype)
        enqueue(cl, expression, inputs, outputs[0], [element] * len(inputs), element, vector=_is_wide(element))

    return kernel


def choice(floats: str, integers: str) -> Kernel:
    """A kernel that gives one of its inputs or a constant: an expression for floating dtypes, which may be NaN, one for the others."""

    def kernel(cl: OpenCL, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
        element = as_is(inputs[0].dtype)
        expression = floats if inputs[0].dtype.kind == "f" else integers
        enqueue(cl, expression, inputs, outputs[0], [element] * len(inputs), element, vector=_is_wide(element))

    return kernel


def test(expression: str) -> Kernel:
    """A kernel from one dtype to bool."""

    def kernel(cl: OpenCL, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
        enqueue(cl, expression, inputs, outputs[0], [as_is(inputs[0].dtype)] * len(inputs), Element("uchar", "uchar"))

    return kernel


def scaled(cl: OpenCL, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    """The kernel of tensor.scale. The factor is rounded to the dtype of x first, as NumPy does."""
    dtype = inputs[0].dtype
    element = as_is(dtype)
    factor = scalar_type(dtype)(dtype.type(attributes["factor"]))
    enqueue(cl, "a * factor", inputs, outputs[0], [element], element, ("a",), f", const {element.value} factor", [factor], vector=_is_wide(element))


# The largest x whose exp(x) is finite, rounded down.
_LARGEST_EXPONENT = {"float16": "11.0f", "float32": "88.0f", "float64": "709.0"}


def sigmoid(cl: OpenCL, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    """The kernel of nn.sigmoid; NaN passes both choices."""
    element = as_is(inputs[0].dtype)
    most = _LARGEST_EXPONENT[inputs[0].dtype.name]
    expression = f"(V)(1) / ((V)(1) + exp(-a > (V)({most}) ? (V)({most}) : -a))"
    enqueue(cl, expression, inputs, outputs[0], [element], element, vector=_is_wide(element))


def where(cl: OpenCL, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    """The kernel of tensor.where: bits are moved, whatever they mean; as values of their dtype where `cl` has it so (`moved`)."""
    element = getattr(cl, "moved", bits)(outputs[0].dtype)
    enqueue(cl, "a ? b : c", inputs, outputs[0], [Element("uchar", "uchar"), element, element], element)


def fill(cl: OpenCL, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    """The kernel of tensor.full and tensor.full_like."""
    if outputs[0].size:
        cl.fill(outputs[0], attributes["value"])


def _is_wide(element: Element) -> bool:
    """True if elements can be handled as vectors. Not of half: PoCL 3.0 crashes on vload_half8."""
    return element.memory == element.value


# Casts ------------------------------------------------------------------------------------------------------------------------

# A double from a float or a whole number, by its bits: for devices that store but do not calculate in double. Whole numbers of more than 53 bits are
# rounded to the nearest, ties to even.
_TO_DOUBLE = """
ulong float_bits(float x) {
    const uint u = as_uint(x);
    const ulong sign = (ulong)(u >> 31) << 63, fraction = u & 0x7fffff;
    const uint exponent = (u >> 23) & 0xff;
    if (exponent == 0xff) return sign | 0x7ff0000000000000UL | fraction << 29;
    if (exponent) return sign | (ulong)(exponent + 896) << 52 | fraction << 29;
    if (!fraction) return sign;
    const uint shift = clz((uint)fraction) - 8;
    return sign | (ulong)(897 - shift) << 52 | (fraction << (29 + shift) & 0xfffffffffffffUL);
}
ulong whole_bits(ulong sign, ulong x) {
    if (!x) return 0;
    const uint zeros = clz(x);
    const ulong top = x << zeros;
    ulong bits = ((ulong)(1086 - zeros) << 52) + ((top >> 11) & 0xfffffffffffffUL);
    const ulong rest = top & 0x7ff;
    if (rest > 0x400 || (rest == 0x400 && (bits & 1))) bits++;
    return sign << 63 | bits;
}
"""


def cast(cl: OpenCL, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    """The kernel of tensor.cast. Numbers that do not fit an integer dtype go by way of a larger integer, as they do in NumPy on x86."""
    x, out = inputs[0], outputs[0]
    if not out.size:
        return
    if x.dtype == out.dtype:
        cl.copy(x, out)
        return
    source, target = x.dtype, out.dtype
    element, result, before = as_is(source), as_is(target), ""
    if target.kind == "b":
        expression = "a != 0"
    elif target == np.float64 and not cl.has_fp64:
        result, before = bits(target), _TO_DOUBLE
        if source.kind == "f":
            expression = "float_bits(a)"
        elif source.kind == "i":
            expression = "whole_bits(a < 0, a < 0 ? -(ulong)a : (ulong)a)"
        else:
            expression = "whole_bits(0, a)"
    elif source.kind == "f" and target == np.uint64:
        limit = "9223372036854775808.0" if source == np.float64 else "9223372036854775808.0f"
        expression = f"a < {limit} ? (ulong)(long)a : (ulong)a"
    elif source.kind == "f" and target.kind in "iu":
        expression = f"({result.value})({'long' if target in (np.uint32, np.int64) else 'int'})a"
    elif source == np.float64 and target == np.float16:
        expression, result = "a", Element("half", "double")  # Rounded once.
    else:
        expression = f"({result.value})a"
    enqueue(cl, expression, inputs, out, [element], result, ("a",)) if not before else _cast_by_bits(cl, before, expression, x, out, element, result)


def _cast_by_bits(cl: OpenCL, before: str, expression: str, x: Any, out: Any, element: Element, result: Element) -> None:
    source = before + _source(grid_source(cl), expression, ("a",), (element,), result, (True,), 0, "", False)
    run_grid(cl, source, "each", out.size, 1, [out, x])
