"""Op: a kind of computation. Shape rule, work, gradient, kernels, attributes; what the builder, the planner and the devices need of it.

An op never asks which device it is on. A device says which languages it speaks (`Device.languages`, best first) and
`Op.kernel_for` gives the op's kernel in the first of them that the op has: "host" (Python objects, files), "array" (the array API:
`xp` is numpy, cupy, ...), or a device's own language ("cuda", "opencl"). None: the device is never offered the task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeAlias

from hetsched.errors import GraphError, did_you_mean
from hetsched.graph.guard import guarded, is_ours
from hetsched.graph.spec import AnySpec, Spec

if TYPE_CHECKING:
    from hetsched.graph.graph import Builder, Value


class Work(NamedTuple):
    """What one launch costs in principle: floating-point operations, bytes read, bytes written."""

    flops: float
    bytes_read: float
    bytes_written: float


Attributes: TypeAlias = Mapping[str, Any]
# (xp or queue, inputs, outputs, workspace, attributes). Writes into the arrays of `outputs`; where an output is opaque, or a sequence without an
# array form, its entry is None and the kernel puts the object there (`outputs[i] = table`). Returns None, or, where an output has a bounded
# dimension that its inputs do not fix, the shapes written, one per output (the leading corner of an output as large as its bounds).
Kernel: TypeAlias = Callable[[Any, Sequence[Any], list[Any], Any, Attributes], Any]
# What a kernel comes to for given arrays of NumPy, for straight-line code: (inputs, outputs, workspace, attributes) -> calls, or None where it has
# no such form. A call is (target, function, *arguments); a target is an `Operand` that later arguments may name, or None. Inputs that only the
# moment brings stand there as `Operand`s too. A kernel has it as its attribute `direct`.
Direct: TypeAlias = Callable[[Sequence[Any], Sequence[Any], Any, Mapping[str, Any]], "list[tuple[Any, ...]] | None"]
# The same for a launch and the one behind it, which alone reads its only output: (inputs, that output, output of the second, workspace and
# attributes of the first, attributes of the second) -> calls, or None. A kernel has it in its attribute `direct_then`, by the kernel of the second.
# The output of the second may lie where the first one's inputs and workspace were.
DirectPair: TypeAlias = Callable[[Sequence[Any], Any, Any, Any, Mapping[str, Any], Mapping[str, Any]], "list[tuple[Any, ...]] | None"]
Infer: TypeAlias = Callable[[Sequence[AnySpec], Attributes], Sequence[AnySpec]]
WorkRule: TypeAlias = Callable[[Sequence[AnySpec], Sequence[AnySpec], Attributes], Work]
# (builder, inputs, outputs, gradients of the outputs (None: no gradient flows), attributes) -> one entry an input: None (not differentiable), a
# value, or a function of no arguments that appends the tasks and gives the value. Functions are called only for inputs whose gradient is wanted, so
# use them wherever an entry costs a task: `[lambda: b.op("tensor.neg", g)]`.
Cotangent: TypeAlias = "Value | Callable[[], Value | None] | None"
Gradient: TypeAlias = Callable[["Builder", "Sequence[Value]", "Sequence[Value]", "Sequence[Value | None]", Attributes], "Sequence[Cotangent]"]


class Operand:
    """An array that straight-line code will hold in a variable: its shape and dtype are known, its bytes are not."""

    __slots__ = ("dtype", "name", "shape")

    def __init__(self, shape: tuple[int, ...], dtype: Any, name: str = "") -> None:
        self.shape, self.dtype, self.name = shape, dtype, name

    @property
    def ndim(self) -> int:
        return len(self.shape)


class Speaks(Protocol):
    """All that an op may know of a device. `flops_per_second`: by dtype name; a dtype missing where others are stated is one it cannot compute in."""

    @property
    def languages(self) -> tuple[str, ...]: ...

    @property
    def flops_per_second(self) -> Mapping[str, float]: ...


# See `OpenCL.fault`.
FAULT_SLOTS = 256


class OpenCL(Protocol):
    """The first argument of a kernel in OpenCL C: where to enqueue it. Arrays are handles with `shape`, `dtype`, `size` and `nbytes`.

    is_cpu: the device is a processor (registers, no local memory); else a GPU (tiles in local memory). has_fp64: it computes in float64.
    """

    is_cpu: bool
    has_fp64: bool

    def run(self, source: str, function: str, global_size: tuple[int, ...], *args: Any, local_size: tuple[int, ...] | None = None) -> None:
        """Enqueue `function` of `source` over `global_size` work items, without waiting. `source` is built once for a device and kept.

        An array is passed as two arguments, base and first element; the parameter list writes `IN(float, x)` or `OUT(float, y)` for them and the
        body begins with `LET_IN(float, x)` or `LET_OUT(float, y)`, after which `x` and `y` are pointers. Numbers are passed as NumPy scalars
        (`np.int64(n)` for `const long n`). Sizes are rounded up to `local_size` where it is given: the source checks its bounds.
        """

    def fill(self, array: Any, value: Any) -> None:
        """Enqueue: every element of `array` becomes `value`."""

    def copy(self, src: Any, dst: Any) -> None:
        """Enqueue: the bytes of `src` to `dst`, of the same number of bytes."""

    def fetch(self, array: Any) -> Any:
        """The values of `array`, brought to the host: waits for all that was enqueued. For checks, not for kernels in a hurry."""

    def doubt(self, arrays: Sequence[Any], check: Callable[[Sequence[Any] | None], None]) -> None:
        """Bring the values that `arrays` have now to the host, and call `check` with them, now or when there is time for it: a task whose check
        raises has failed. With None where they will never come."""

    def fault(self, out: Any, explain: Callable[[int, int], Exception]) -> Any:
        """An argument for `run`, three parameters in OpenCL C: `__global long *faults, const long site, const long number`. A work item of the launch
        that writes `out` which finds a mistake writes to the four numbers from `faults + number % FAULT_SLOTS * 4` on: 1, if that is 0 (atomically),
        then site, the value seen and its position. The task fails then with what `explain(value, position)` gives; nobody waits for that."""

    def part(self, array: Any, start: int, shape: tuple[int, ...], dtype: Any = None) -> Any:
        """The `shape` elements of `array` from element `start` on (of `dtype`, if given: a workspace is bytes), as an array; nothing is copied."""


Capable: TypeAlias = Callable[[Speaks, Sequence[AnySpec]], bool]


def has_dtypes(device: Speaks, specs: Sequence[AnySpec]) -> bool:
    """Whether an OpenCL device can compute with inputs of `specs`: float64 is optional there. float16 is stored, and computed in float32."""
    wide = any(isinstance(s, Spec) and s.dtype.name == "float64" for s in specs)
    return not wide or not device.flops_per_second or "float64" in device.flops_per_second


def anywhere(device: Speaks, specs: Sequence[AnySpec]) -> bool:
    """Always: for ops that only move bits."""
    return True


class _Required:
    def __repr__(self) -> str:
        return "required"

    def __reduce__(self) -> str:
        return "REQUIRED"  # the one there is, in other processes too


REQUIRED: Any = _Required()


@dataclass(frozen=True)
class Attribute:
    """An option of an op: `kind` is bool, int, float, str, "ints" (a tuple of ints), "path", "any", or a tuple of the allowed words.

    `low` and `high` bound a number, both inclusive. `optional` allows None.
    """

    kind: Any
    default: Any = REQUIRED
    doc: str = ""
    low: float | None = None
    high: float | None = None
    optional: bool = False

    def check(self, value: Any) -> tuple[Any, str | None]:
        """(the value in its canonical type, None) or (the value, what is wrong with it)."""
        if value is None:
            return value, None if self.optional or self.default is None else f"wants {self.wanted}, got nothing"
        bad = f"wants {self.wanted}, got {value!r}"
        if isinstance(self.kind, tuple):
            if not isinstance(value, str) or value not in self.kind:
                return value, f"got {value!r}{did_you_mean(str(value), self.kind)}"
            return value, None
        if self.kind == "ints":
            if isinstance(value, int) and not isinstance(value, bool):
                value = (value,)
            if not isinstance(value, (list, tuple)) or any(isinstance(v, bool) or not hasattr(v, "__index__") for v in value):
                return value, bad
            if self.low is not None and any(v < self.low for v in value):
                return value, bad
            return tuple(int(v) for v in value), None
        if self.kind in ("path", str):
            return (value, None) if isinstance(value, str) else (str(value), None) if hasattr(value, "__fspath__") else (value, bad)
        if self.kind is bool:
            return (bool(value), None) if isinstance(value, bool) else (value, bad)
        if self.kind is int:
            if isinstance(value, bool) or not hasattr(value, "__index__"):
                return value, bad
            value = int(value)
        elif self.kind is float:
            if isinstance(value, bool) or not hasattr(value, "__float__") or isinstance(value, str):
                return value, bad
            value = float(value)
            if value != value:
                return value, bad
        if self.kind in (int, float) and ((self.low is not None and value < self.low) or (self.high is not None and value > self.high)):
            return value, bad
        return value, None

    @property
    def wanted(self) -> str:
        """The allowed values in words."""
        if isinstance(self.kind, tuple):
            return "one of " + ", ".join(self.kind)
        names: dict[Any, str] = {
            bool: "true or false", int: "a whole number", float: "a number", str: "a text", "path": "a path", "ints": "whole numbers",
        }  # fmt: skip
        text = names.get(self.kind, "a value")
        if self.low is not None and self.high is not None:
            return f"{text} from {self.low:g} to {self.high:g}"
        if self.low is not None:
            return f"{text} of at least {self.low:g}"
        return f"{text} of at most {self.high:g}" if self.high is not None else text


@dataclass(frozen=True, eq=False)
class Op:
    """A kind of computation.

    `inputs`, `outputs`: names; a last name that ends in `*` takes any number (`"values*"`). An input name that ends in `?` may be
    left out. `infer` gives the outputs' specs or raises `GraphError` with every problem. `work` feeds the roofline cost model.
    `inplace` are pairs (output, input) by position whose bytes may be the same where their specs are equal, the value stands once among the task's
    inputs and the plan finds it dead afterwards.
    `view`: the only output is the first input's bytes under another shape (no kernel runs). `waits`: blocks without computing
    (I/O). `random`: takes attributes `seed` and `key`; the builder fills `key` with the task's name. `pure` is False for ops with
    an effect outside (writing a file): they are never dropped or repeated. `workspace` gives bytes of scratch per launch.
    `capable`: whether the op's kernel in OpenCL C takes inputs of these specs on a device; left out, where the device has their dtypes.
    `allocating`: its array kernel makes new arrays, which are copied into the outputs (see `hetsched.array_op`).
    `calls`: calls of the array library that a launch makes; each costs the device's `launch_seconds`. `cuda_calls`:
    of its CUDA kernel. `wide`: worth several lanes at once,
    because nearly all its time is one matrix product that the library spreads over threads.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    infer: Infer
    work: WorkRule
    kernels: Mapping[str, Kernel] = field(default_factory=dict)
    gradient: Gradient | None = None
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    inplace: tuple[tuple[int, int], ...] = ()
    view: bool = False
    waits: bool = False
    random: bool = False
    pure: bool = True
    elementwise: bool = False
    wide: bool = False
    calls: int = 1
    cuda_calls: int = 1
    workspace: Callable[[Sequence[AnySpec], Sequence[AnySpec], Attributes], int] | None = None
    capable: Capable = has_dtypes
    doc: str = ""
    allocating: bool = False

    # (function, arguments): what makes it again in another process, where it was not made of its parts (see `made_by`).
    again: ClassVar[tuple[Callable[..., Any], tuple[Any, ...]] | None] = None

    def made_by(self, function: Callable[..., Any], *arguments: Any) -> Op:
        """This op, which `function` of `arguments` gives again: so it is pickled."""
        object.__setattr__(self, "again", (function, arguments))
        return self

    def __deepcopy__(self, memo: Any) -> Op:
        return self  # nothing of it changes

    def __post_init__(self) -> None:
        kernels = {
            language: kernel if is_ours(kernel) or language not in ("array", "host") else guarded(kernel, self.name, self.outputs)
            for language, kernel in self.kernels.items()
        }
        object.__setattr__(self, "kernels", MappingProxyType(kernels))
        object.__setattr__(self, "attributes", MappingProxyType(dict(self.attributes)))

    def kernel_for(self, device: Speaks, specs: Sequence[AnySpec] = ()) -> Kernel | None:
        """The kernel that `device` would run for inputs of `specs`, or None where it cannot."""
        for language in device.languages:
            kernel = self.kernels.get(language)
            if kernel is not None and (language != "opencl" or self.capable(device, specs)):
                return kernel
        return None

    def calls_on(self, device: Speaks, in_graph: bool = False) -> int:
        """Calls that a launch on `device` makes: `calls`, or `cuda_calls` where its kernel in CUDA does it.

        in_graph: it is captured on CUDA, where an element-wise launch is then one kernel, made from the expression of its kernel in OpenCL C.
        """
        if in_graph and self.elementwise and "cuda" in device.languages and "opencl" in self.kernels:
            return 1
        first = next((language for language in device.languages if language in self.kernels), "")
        return self.cuda_calls if first == "cuda" else self.calls

    def check_attributes(self: Op | Composite, given: Attributes) -> dict[str, Any]:
        """`given` with defaults filled in and types made canonical; raises `GraphError` with every mistake."""
        problems, out = [], {}
        for name in given:
            if name not in self.attributes:
                problems.append(f"op {self.name} has no option {name!r}{did_you_mean(name, self.attributes)}")
        for name, attribute in self.attributes.items():
            value = given.get(name, attribute.default)
            if value is REQUIRED:
                problems.append(f"op {self.name} needs option {name!r} ({attribute.wanted})")
                continue
            value, problem = attribute.check(value)
            if problem is not None:
                problems.append(f"option {name!r} of op {self.name}: {problem}")
            out[name] = value
        if problems:
            raise GraphError(problems)
        return out

    def __repr__(self) -> str:
        return f"<Op {self.name}({', '.join(self.inputs)}) -> {', '.join(self.outputs)}>"


@dataclass(frozen=True)
class Scene:
    """What surrounds a composite while it expands: the models of the pipeline by name (plain data) and how a path is resolved."""

    models: Mapping[str, Any] = field(default_factory=dict)
    resolve: Callable[[str], str] = str


# (builder, inputs by name: Value, Bundle or LazySequence; attributes, scene) -> outputs by name, of the same kinds
Expand: TypeAlias = Callable[["Builder", Mapping[str, Any], Attributes, Scene], Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class Composite:
    """An op that expands to a graph of primitive ops, each placed by itself: `nn.train`, `data.split`. Same naming rules as `Op`.

    `pure` is False where one of them has an effect outside: then an attribute of kind "path" is a file that is written.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    expand: Expand
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    doc: str = ""
    pure: bool = True

    check_attributes = Op.check_attributes
