"""`kernel`: a user's own kernel, in CUDA C++ and OpenCL C, as an op with typed arguments, a launch size, a cost, and a check against another op.

    saxpy = hs.kernel(
        "saxpy",
        {"x": "in float32[n]", "y": "in float32[n]", "out": "out float32[n]", "a": "option float32 = 2.0", "n": "value int64 = n"},
        opencl='''__kernel void saxpy(__global const float *x, __global const float *y, __global float *out, float a, long n) {
            const long i = get_global_id(0);
            if (i < n) out[i] = a * x[i] + y[i];
        }''',
        size=["n"], flops="2 * n",
    )
    z = g.op(saxpy, x, y, a=3.0)

Arguments are those of the function, in its order: `in DTYPE[EXTENTS]`, `out DTYPE[EXTENTS]`, `option DTYPE [= DEFAULT]` (given by the task),
`value DTYPE = EXPRESSION`. A name among the extents is bound by the first input that has it there; an extent may be an expression of bound names;
`[...]` takes any shape, `out float32 like x` has that of x. Expressions may use the names, options, and `x.size`, `x.nbytes`, `x.shape[i]`.

Arrays are plain pointers to their first element, C-contiguous. The size is rounded up to whole groups: a kernel checks its bounds.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from hetsched.errors import GraphError
from hetsched.graph.expression import Expression
from hetsched.graph.op import REQUIRED, Attribute, Attributes, Kernel, Op, OpenCL, Work
from hetsched.graph.spec import AnySpec, Spec, UpTo

DTYPES = {
    "bool": "uchar", "int8": "char", "uint8": "uchar", "int16": "short", "uint16": "ushort", "int32": "int", "uint32": "uint", "int64": "long",
    "uint64": "ulong", "float16": "half", "float32": "float", "float64": "double",
}  # fmt: skip
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_ARRAY = re.compile(r"(in|out)\s+(\w+)\s*(?:\[(.*)\]|like\s+(\w+))\Z", re.DOTALL)
_SCALAR = re.compile(r"(option|value)\s+(\w+)\s*(?:=\s*(.+))?\Z", re.DOTALL)
_WRAPPER_LINE = 1_000_000
_TOLERANCES = {2: (2e-2, 1e-3), 4: (1e-4, 1e-5), 8: (1e-9, 1e-12)}  # float itemsize -> relative, absolute


class KernelError(RuntimeError):
    """A user's kernel does not build, or does not compute what it is checked against."""


@dataclass(frozen=True)
class Argument:
    """One parameter of the function. role: in, out, option or value. shape: None takes any; like: the input whose shape an output has."""

    name: str
    role: str
    dtype: np.dtype[Any]
    shape: tuple[Expression, ...] | None = None
    like: str | None = None
    value: Expression | None = None
    default: Any = REQUIRED


@dataclass(frozen=True)
class Source:
    """Source text and where it stands: `line` of `file` has its first line, `indent` columns further right."""

    text: str
    file: str = ""
    line: int = 1
    indent: int = 0

    def place(self, row: int, column: int) -> str:
        """`file:line:column` of a place in the text, counted from 1; `line:column` where no file is known."""
        return f"{self.file}:{self.line + row - 1}:{self.indent + column}" if self.file else f"line {row}, column {column}"


def parse_argument(name: str, text: str) -> Argument:
    """The argument that a declaration such as `in float32[n, 4]` means; `GraphError` says what is wrong with it."""
    if not _NAME.match(name):
        raise GraphError(f"argument {name!r}: a name has letters, digits and _, and starts with a letter")
    array, scalar = _ARRAY.match(text.strip()), _SCALAR.match(text.strip())
    if array is not None:
        role, dtype, extents, like = array.groups()
        kind = _dtype(name, dtype)
        if like is not None:
            if role == "in":
                raise GraphError(f"argument {name!r}: only an output can be `like` an input, got {text!r}")
            return Argument(name, role, kind, like=like)
        if extents.strip() == "...":
            if role == "out":
                raise GraphError(f"argument {name!r}: an output needs a shape: `out {dtype}[n]`, or `out {dtype} like x`")
            return Argument(name, role, kind)
        return Argument(name, role, kind, tuple(Expression(e) for e in extents.split(",")) if extents.strip() else ())
    if scalar is not None:
        role, dtype, value = scalar.groups()
        kind = _dtype(name, dtype)
        if kind.kind not in "iuf" or dtype == "float16":
            raise GraphError(f"argument {name!r}: a scalar is an integer, float32 or float64, got {dtype}")
        if role == "value":
            if value is None:
                raise GraphError(f"argument {name!r}: a value needs an expression: `value {dtype} = n`")
            return Argument(name, role, kind, value=Expression(value))
        return Argument(name, role, kind, default=REQUIRED if value is None else _default(name, kind, value))
    ways = "`in float32[n]`, `out float32[n]`, `out float32 like x`, `option float32 = 1.0`, `value int64 = n`"
    raise GraphError(f"argument {name!r} is declared as {text!r}; write {ways}")


def _dtype(name: str, text: str) -> np.dtype[Any]:
    if text not in DTYPES:
        from hetsched.errors import did_you_mean

        raise GraphError(f"argument {name!r}: unknown dtype {text!r}{did_you_mean(text, DTYPES)}")
    return np.dtype(text)


def _default(name: str, kind: np.dtype[Any], text: str) -> Any:
    try:
        return float(text) if kind.kind == "f" else int(text)
    except ValueError:
        raise GraphError(f"argument {name!r}: the default {text!r} is no {kind.name}") from None


def kernel(
    name: str,
    arguments: Mapping[str, str],
    *,
    size: Sequence[str | int] | str | int,
    cuda: str | Source | None = None,
    opencl: str | Source | None = None,
    function: str | None = None,
    group: Sequence[int] | int | None = None,
    flops: str | float = 0,
    nbytes: str | float | None = None,
    check: str | None = None,
    doc: str = "",
) -> Op:
    """An op that runs the user's own source (see the module). Raises `GraphError` with every mistake.

    name: of the op. size: work items (CUDA: threads) along up to three axes, expressions. group: work items of a group (threads of a block); left
    out, 256 along one axis on CUDA and the driver's choice in OpenCL. function: what the source calls it, by default `name`.
    flops, nbytes: the cost of a launch, expressions (floating-point operations; bytes read and written, by default those of all arrays).
    check: an op that computes the same from the same inputs (and options of the same names): the first launch on each kind of device is compared with
    it, and a difference is an error that shows both values.
    """
    built = UserKernel(name, arguments, size, cuda, opencl, function, group, flops, nbytes, check)
    return Op(
        name,
        tuple(a.name for a in built.inputs),
        tuple(a.name for a in built.outputs),
        built.infer,
        built.work,
        built.kernels(),
        attributes={a.name: _attribute(a) for a in built.arguments if a.role == "option"},
        doc=doc or f"A kernel of the user's own, checked against {check}." if check else doc or "A kernel of the user's own.",
    ).made_by(
        partial(kernel, size=size, cuda=cuda, opencl=opencl, function=function, group=group, flops=flops, nbytes=nbytes, check=check, doc=doc),
        name,
        dict(arguments),
    )


def _attribute(argument: Argument) -> Attribute:
    doc = f"passed to the kernel as {argument.dtype.name}"
    if argument.dtype.kind == "f":
        return Attribute(float, argument.default, doc)
    limits = np.iinfo(argument.dtype)
    return Attribute(int, argument.default, doc, low=int(limits.min), high=int(limits.max))


class UserKernel:
    """What a declaration of a kernel means."""

    def __init__(
        self, name: str, arguments: Mapping[str, str], size: Any, cuda: Any, opencl: Any, function: str | None, group: Any, flops: Any, nbytes: Any,
        check: str | None,
    ) -> None:  # fmt: skip
        problems: list[str] = []
        self.name, self.function, self.check = name, function or name.rpartition(".")[2], check
        self.sources = {
            language: Source(text) if isinstance(text, str) else text for language, text in (("cuda", cuda), ("opencl", opencl)) if text is not None
        }
        self.arguments: list[Argument] = []
        for argument, text in arguments.items():
            try:
                self.arguments.append(parse_argument(argument, text))
            except GraphError as error:
                problems += error.problems
        self.inputs = [a for a in self.arguments if a.role == "in"]
        self.outputs = [a for a in self.arguments if a.role == "out"]
        sizes = [size] if isinstance(size, (str, int)) else list(size)
        groups = [group] if isinstance(group, int) else group
        try:
            self.size = [Expression(s) for s in sizes]
            self.flops = Expression(flops)
            self.nbytes = Expression(nbytes) if nbytes is not None else None
        except GraphError as error:
            raise GraphError([f"kernel {name!r}: {p}" for p in [*problems, *error.problems]]) from None
        self.group = tuple(groups) if groups is not None else None
        problems += self._problems()
        if problems:
            raise GraphError([f"kernel {name!r}: {p}" for p in problems])
        self._checked: set[str] = set()
        self._lock = threading.Lock()
        self._prepared = lru_cache(maxsize=256)(self._prepare)

    def _problems(self) -> list[str]:
        out = []
        if not self.sources:
            out.append("there is no source; give it in `cuda`, in `opencl`, or in both")
        if not self.outputs:
            out.append("there is no output; declare one, such as `y: out float32[n]`")
        if not _NAME.match(self.function):
            out.append(f"{self.function!r} cannot be the name of a function; give `function`")
        if not 1 <= len(self.size) <= 3:
            out.append(f"size has {len(self.size)} axes; a launch has 1 to 3")
        if self.group is not None and (len(self.group) != len(self.size) or any(type(g) is not int or g < 1 for g in self.group)):
            out.append(f"group {list(self.group)} must be whole numbers of at least 1, one for each of the {len(self.size)} axes of size")
        known = self._names()
        for what in (*self.size, self.flops, *([self.nbytes] if self.nbytes else []), *(a.value for a in self.arguments if a.value)):
            try:
                what.check_names(known)
            except GraphError as error:
                out += error.problems
        bound = {e.name for a in self.inputs for e in a.shape or () if e.name}
        for argument in self.outputs:
            if argument.like is not None and argument.like not in {a.name for a in self.inputs}:
                out.append(f"output {argument.name!r} is like {argument.like!r}, which is no input")
            for extent in argument.shape or ():
                try:
                    extent.check_names({*bound, *known})
                except GraphError as error:
                    out += error.problems
        if self.check is not None:
            out += self._check_problems()
        return out

    def _names(self) -> set[str]:
        """What expressions may use."""
        bound = {e.name for a in self.inputs for e in a.shape or () if e.name}
        return bound | {a.name for a in self.arguments if a.role != "value"}

    def _check_problems(self) -> list[str]:
        from hetsched.graph.ops import find

        assert self.check is not None
        try:
            op = find(self.check)
        except GraphError as error:
            return [f"check: {p}" for p in error.problems]
        if "array" not in op.kernels:
            return [f"check: {op.name} has no kernel to compare with"]
        least = sum(not n.endswith(("?", "*")) for n in op.inputs)
        most = 10**6 if op.inputs and op.inputs[-1].endswith("*") else len(op.inputs)
        if not least <= len(self.inputs) <= most or len(op.outputs) != len(self.outputs):
            seen = f"{len(self.inputs)} inputs and {len(self.outputs)} outputs"
            return [f"check: {op.name} takes {', '.join(op.inputs)} and gives {', '.join(op.outputs)}; the kernel has {seen}"]
        return []

    # Rules ----------------------------------------------------------------------------------------------------------------------

    def infer(self, specs: Sequence[AnySpec], attributes: Attributes) -> list[AnySpec]:
        """The outputs' specs."""
        problems, names = [], dict(attributes)
        arrays: list[Spec] = []
        for argument, spec in zip(self.inputs, specs, strict=True):
            if not isinstance(spec, Spec) or spec.is_bounded:
                problems.append(f"{argument.name} must be an array of known shape, got {spec!r}")
                continue
            arrays.append(spec)
            names[argument.name] = spec
            if spec.dtype != argument.dtype:
                problems.append(f"{argument.name} must be {argument.dtype.name}, got {spec!r}; convert it with tensor.cast")
            if argument.shape is None:
                continue
            if spec.ndim != len(argument.shape):
                problems.append(f"{argument.name} must have {len(argument.shape)} axes, got {spec!r}")
                continue
            for extent, n in zip(argument.shape, spec.bounds, strict=True):
                if extent.name is not None and extent.name not in names:
                    names[extent.name] = n
                elif extent.whole(names) != n:
                    problems.append(f"{argument.name} {spec!r} has {n} where {extent.text} is {extent.whole(names)}")
        if problems:
            raise GraphError(problems)
        out: list[AnySpec] = []
        for argument in self.outputs:
            if argument.like is not None:
                out.append(Spec(names[argument.like].shape, argument.dtype))
            else:
                out.append(Spec([e.whole(names) for e in argument.shape or ()], argument.dtype))
        if self.check is not None:
            self._compare_specs(arrays, out, attributes)
        return out

    def _compare_specs(self, specs: Sequence[Spec], found: list[AnySpec], attributes: Attributes) -> None:
        op, options = self._reference(attributes)
        wanted = list(op.infer(specs, options))
        if wanted != found:
            raise GraphError(f"check: {op.name} gives {wanted} of these inputs, the kernel {found}")

    def _reference(self, attributes: Attributes) -> tuple[Op, Attributes]:
        from hetsched.graph.ops import find

        assert self.check is not None
        op = find(self.check)
        return op, op.check_attributes({k: v for k, v in attributes.items() if k in op.attributes})

    def _environment(self, shapes: Sequence[tuple[int, ...]], attributes: Attributes) -> dict[str, Any]:
        """Names -> values, of arrays of `shapes` (inputs, then outputs)."""
        names: dict[str, Any] = dict(attributes)
        for argument, shape in zip([*self.inputs, *self.outputs], shapes, strict=True):
            spec = Spec(shape, argument.dtype)
            names[argument.name] = SimpleNamespace(size=spec.size, nbytes=spec.nbytes, ndim=spec.ndim, shape=spec.bounds)
            if argument.role == "in":
                for extent, n in zip(argument.shape or (), shape, strict=False):
                    if extent.name is not None:
                        names.setdefault(extent.name, n)
        return names

    def work(self, inputs: Sequence[AnySpec], outputs: Sequence[AnySpec], attributes: Attributes) -> Work:
        """The cost as declared."""
        shapes = [tuple(d.n if isinstance(d, UpTo) else d for d in s.shape) for s in (*inputs, *outputs) if isinstance(s, Spec)]
        names = self._environment(shapes, attributes)
        written = sum(s.nbytes for s in outputs)
        both = float(self.nbytes.value(names)) if self.nbytes is not None else float(sum(s.nbytes for s in inputs) + written)
        flops = float(self.flops.value(names))
        return Work(max(flops, 0.0), max(both - written, 0.0), float(written))

    # Launches -------------------------------------------------------------------------------------------------------------------

    def kernels(self) -> dict[str, Kernel]:
        """The op's kernels by language."""
        known: dict[str, Kernel] = {"cuda": self._run_cuda, "opencl": self._run_opencl}
        return {language: known[language] for language in self.sources}

    def _prepare(self, shapes: tuple[tuple[int, ...], ...], options: tuple[tuple[str, Any], ...]) -> tuple[tuple[int, ...], dict[str, Any]]:
        """The size of a launch and its scalars, for arrays of `shapes`."""
        names = self._environment(shapes, dict(options))
        scalars = {}
        for argument in self.arguments:
            if argument.role == "value":
                assert argument.value is not None
                scalars[argument.name] = argument.dtype.type(argument.value.value(names))
            elif argument.role == "option":
                scalars[argument.name] = argument.dtype.type(names[argument.name])
        return tuple(s.whole(names) for s in self.size), scalars

    def _bound(self, inputs: Sequence[Any], outputs: Sequence[Any], attributes: Attributes) -> tuple[tuple[int, ...], list[Any]]:
        shapes = tuple(tuple(x.shape) for x in (*inputs, *outputs))
        size, scalars = self._prepared(shapes, tuple(attributes.items()))
        arrays = {a.name: x for a, x in zip([*self.inputs, *self.outputs], (*inputs, *outputs), strict=True)}
        return size, [arrays[a.name] if a.name in arrays else scalars[a.name] for a in self.arguments]

    def _run_opencl(self, cl: OpenCL, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, attributes: Attributes) -> None:
        size, arguments = self._bound(inputs, outputs, attributes)
        if 0 not in size:
            try:
                cl.run(self._in_opencl(), f"hetsched_{self.function}", size, *arguments, local_size=self.group)
            except Exception as error:
                explained = self._explained("opencl", error)
                if explained is None:
                    raise
                raise explained from error
        self._compare("opencl", inputs, outputs, attributes, cl.doubt)

    def _in_opencl(self) -> str:
        """The source, and a kernel that turns an arena's buffer and an array's place in it into the pointer that the user's function takes."""
        parameters, passed = [], []
        for a in self.arguments:
            c_type = DTYPES[a.dtype.name]
            if a.role in ("in", "out"):
                parameters.append(f"__global {'const ' if a.role == 'in' else ''}{c_type} *{a.name}_base, const long {a.name}_first")
                passed.append(f"{a.name}_base + {a.name}_first")
            else:
                parameters.append(f"const {c_type} {a.name}")
                passed.append(a.name)
        # Its lines are counted from far off, so that complaints about it are not taken for complaints about the user's.
        head = f"\n#line {_WRAPPER_LINE}\n__kernel void hetsched_{self.function}"
        return f"{self.sources['opencl'].text}{head}({', '.join(parameters)}) {{ {self.function}({', '.join(passed)}); }}\n"

    def _run_cuda(self, xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, attributes: Attributes) -> None:
        size, arguments = self._bound(inputs, outputs, attributes)
        if 0 not in size:
            block = self.group or (256, *[1] * (len(size) - 1))
            grid = tuple(-(-s // b) for s, b in zip(size, block, strict=True))
            try:
                _cuda_function(xp, self._in_cuda(), self.function)(grid, block, tuple(arguments))
            except Exception as error:
                explained = self._explained("cuda", error)
                if explained is None:
                    raise
                raise explained from error
        doubt = getattr(xp, "doubt", None) or (lambda arrays, check: check([xp.asnumpy(x) for x in arrays]))
        self._compare("cuda", inputs, outputs, attributes, doubt)

    def load_cuda(self, xp: Any) -> bool:
        """Have the CUDA kernel built and loaded on the current device; True: its first launch is then like those that follow."""
        found = _cuda_function(xp, self._in_cuda(), self.function)
        getattr(found, "num_regs", None)  # CUDA loads a function when something is asked of it
        return True

    def _in_cuda(self) -> str:
        text = self.sources["cuda"].text
        # Names of C, not of C++. On the same line, so that lines keep their numbers.
        return text if 'extern "C"' in text else re.sub(r"\b__global__\b", 'extern "C" __global__', text)

    # Errors ---------------------------------------------------------------------------------------------------------------------

    def _explained(self, language: str, error: Exception) -> KernelError | None:
        """The compiler's complaints at their places in the user's file; None where the error is about something else."""
        found = complaints_of(error)
        if found is None:
            return None
        source = self.sources[language]
        lines = source.text.split("\n")
        out = [f"kernel {self.name!r} does not build for {language}"]
        own = [c for c in found if 0 < c[0] <= len(lines)]
        for row, column, what in own[:5]:
            line = lines[row - 1]
            at = column or len(line) - len(line.lstrip()) + 1
            out += [f"{source.place(row, at)}: error: {what}", f"    {line}", " " * (3 + at) + "^"]
        if len(own) > 5:
            out.append(f"and {len(own) - 5} more")
        if not own:
            declared = ", ".join(f"{a.name}: {a.role} {a.dtype.name}" for a in self.arguments)
            what = found[0][2] if found else str(error)
            out.append(f"{source.place(1, 1)}: error: its arguments are not those of the function {self.function!r} ({declared}): {what}")
        return KernelError("\n".join(out))

    def _compare(self, language: str, inputs: Sequence[Any], outputs: Sequence[Any], attributes: Attributes, doubt: Any) -> None:
        """On the first launch: the outputs beside those of the op that the kernel is checked against. doubt: see `OpenCL.doubt`."""
        if self.check is None or language in self._checked:
            return
        with self._lock:
            if language in self._checked:
                return
            self._checked.add(language)

        def check(found: Sequence[Any] | None) -> None:
            is_right = False
            try:
                if found is not None:
                    values = [np.asarray(x) for x in found]
                    self._differ(language, values[: len(inputs)], values[len(inputs) :], attributes)
                    is_right = True
            finally:
                if not is_right:  # the next launch is looked at
                    self._checked.discard(language)

        try:
            doubt([*inputs, *outputs], check)
        except BaseException:
            self._checked.discard(language)
            raise

    def _differ(self, language: str, given: Sequence[Any], made: Sequence[Any], attributes: Attributes) -> None:
        """`KernelError` where the kernel has made something else of `given` than the op that it is checked against."""
        op, options = self._reference(attributes)
        wanted = [np.empty_like(x) for x in made]
        nbytes = 0
        if op.workspace is not None:
            nbytes = op.workspace([Spec(x.shape, x.dtype) for x in given], [Spec(x.shape, x.dtype) for x in made], options)
        with np.errstate(all="ignore"):
            op.kernels["array"](np, given, wanted, np.zeros(nbytes, np.uint8) if nbytes else None, options)
        for argument, seen, want in zip(self.outputs, made, wanted, strict=True):
            wrong = np.argwhere(~_close(seen, want))
            if len(wrong):
                at = tuple(wrong[0].tolist())
                raise KernelError(
                    f"kernel {self.name!r} ({language}) does not compute what {op.name} does: {argument.name}{list(at)} is {seen[at]}, "
                    f"{op.name} gives {want[at]} ({len(wrong)} of {want.size} elements differ)"
                )


def _close(seen: Any, wanted: Any) -> Any:
    if wanted.dtype.kind != "f":
        return seen == wanted
    relative, absolute = _TOLERANCES[wanted.dtype.itemsize]
    return np.isclose(seen, wanted, rtol=relative, atol=absolute * max(1.0, float(np.max(np.abs(wanted), initial=0.0))), equal_nan=True)


# NVRTC: `default_program(3): error: identifier "x" is undefined`; with a column where it has one: `(3:7)`.
_NVRTC = re.compile(r"^\S*?\((\d+)(?::(\d+))?\): (?:catastrophic )?error:? (.*)$", re.MULTILINE)


def complaints_of(error: Exception) -> list[tuple[int, int, str]] | None:
    """(row, column or 0, complaint) of a compiler's error, counted from 1; None where the error is none of a compiler.

    >>> complaints_of(RuntimeError('k.cu(3): error: identifier "x" is undefined'))
    [(3, 0, 'identifier "x" is undefined')]
    """
    known = getattr(error, "complaints", None)
    if known is not None:
        return list(known)
    found = [(int(row), int(column or 0), what) for row, column, what in _NVRTC.findall(str(error))]
    return found if found or type(error).__name__ == "CompileException" else None


_functions: dict[tuple[Any, int, str, str], Any] = {}


def _cuda_function(xp: Any, source: str, function: str) -> Any:
    """The function of a source that is compiled once for a device."""
    key = (getattr(xp, "plain", xp), int(xp.cuda.Device().id), source, function)
    found = _functions.get(key)
    if found is None:
        module = xp.RawModule(code=source, options=("-std=c++17",))
        module.compile()
        found = _functions[key] = module.get_function(function)
    return found
