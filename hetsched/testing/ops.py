"""`check_op`: the whole proof of an op, for ours and for those that others add.

def cases(rng):
    for shape in shapes(rng):
        yield Case((rng.normal(size=shape),))

check_op(find("tensor.exp"), cases, reference=lambda x: np.exp(x))
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hetsched.errors import GraphError
from hetsched.graph.gradient import pullback
from hetsched.graph.graph import Graph, Value
from hetsched.graph.guard import is_ours
from hetsched.graph.op import Attributes, Kernel, Op
from hetsched.graph.spec import AnySpec, Opaque, Spec, UpTo, array_form, bound, spec_of
from hetsched.testing.elsewhere import Elsewhere
from hetsched.testing.reference import empty, interpret, launch

Array: TypeAlias = NDArray[Any]
# (kernel, inputs, specs of the outputs, bytes of workspace, attributes) -> outputs, NumPy arrays or objects.
# A backend's tests bring one for its language.
Runner: TypeAlias = Callable[[Kernel, Sequence[Any], Sequence[AnySpec], int, Attributes], list[Any]]


@dataclass(frozen=True, eq=False)
class Case:
    """One use of an op: its inputs (floating arrays are given as float64) and its attributes. Any other object is an opaque input.

    `specs` overrules the specs of inputs, by position.
    """

    inputs: tuple[Any, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    specs: Mapping[int, AnySpec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = (bool, int, float, np.generic)  # what NumPy's generators give for the shape ()
        object.__setattr__(self, "inputs", tuple(np.asarray(x) if isinstance(x, numbers) else x for x in self.inputs))

    def __repr__(self) -> str:
        return f"Case({', '.join(map(repr, _specs(self, self.inputs)))}; {dict(self.attributes)})"


Cases: TypeAlias = Iterable[Case] | Callable[[np.random.Generator], Iterable[Case]]


def check_op(
    op: Op, cases: Cases, *, reference: Callable[..., Any] | None = None, seed: int = 0,
    dtypes: Sequence[str] = ("float64", "float32"), tolerance: Mapping[str, float] | None = None, gradient: bool = True,
    runners: Mapping[str, Runner] | None = None,
) -> int:  # fmt: skip
    """Prove `op` on `cases`; raises `AssertionError` that names op, case and check. Gives the number of cases.

    For every case, with its floating inputs in each of `dtypes`:
    - `infer` takes the specs, and every kernel fills outputs of exactly the specs it gives, whatever was in them before;
    - every kernel that can run here (array and host on NumPy, array in the branch for other libraries, array and cuda on CuPy where a device is
      present, and the languages of `runners`) agrees with
      `reference` (called with the inputs and the attributes as keywords, in float64; an array or a tuple, each of the output's shape), or, without
      one, with the array kernel in float64. Errors count relative to the largest magnitude of the output and 1; `tolerance` gives limits by dtype
      (float64 1e-10, float32 2e-5, float16 2e-2);
    - inputs are not written; a pair of `Op.inplace` whose specs are equal gives the same values in one buffer;
    - the work is finite and not negative;
    - with bounded leading dimensions, `infer` refuses or gives bounds that hold;
    - in float64 the gradient (through a `Builder`, run by `interpret`) agrees with central differences, for all outputs together and each alone.
      `gradient=False` leaves this out, for ops whose case cannot be varied.
    """
    rng = np.random.default_rng(seed)
    limits = {"float64": 1e-10, "float32": 2e-5, "float16": 2e-2, **(tolerance or {})}
    ran = {**_runners(), **(runners or {})}
    count = 0
    for case in cases(rng) if callable(cases) else cases:
        count += 1
        for dtype in dtypes if any(_is_float(x) for x in case.inputs) else dtypes[:1]:
            try:
                _check_case(op, case, np.dtype(dtype), reference, limits[dtype], ran)
            except Exception as error:
                error.add_note(f"{op.name}, {case!r}, {dtype}")
                raise
        if gradient and op.gradient is not None:
            try:
                _check_gradient(op, case, rng)
            except Exception as error:
                error.add_note(f"{op.name}, {case!r}, gradient")
                raise
    assert count, f"{op.name}: no case was given"
    return count


# Cases ------------------------------------------------------------------------------------------------------------------------


def shapes(rng: np.random.Generator, count: int = 8, least: int = 0, most: int = 4) -> Iterator[tuple[int, ...]]:
    """`count` random shapes of `least` to `most` axes: one of them with an empty axis, one of size-1 axes only."""
    for i in range(count):
        shape = [int(n) for n in rng.choice([1, 2, 3, 4, 5], size=rng.integers(least, most + 1))]
        if i == 0:
            shape = [1] * max(least, 1)
        elif i == 1 and most > 0:
            shape = shape or [1]
            shape[rng.integers(len(shape))] = 0
        yield tuple(shape)


def broadcasting(rng: np.random.Generator, shape: Sequence[int]) -> tuple[int, ...]:
    """A random shape that broadcasts to `shape`: leading axes left out, others of size 1."""
    rest = list(shape)[rng.integers(len(shape) + 1) :]
    return tuple(1 if rng.random() < 0.3 else n for n in rest)


# One case ---------------------------------------------------------------------------------------------------------------------


def _check_case(op: Op, case: Case, dtype: np.dtype[Any], reference: Callable[..., Any] | None, limit: float, runners: Mapping[str, Runner]) -> None:
    inputs = _cast(case.inputs, dtype)
    attributes = _attributes(op, case)
    specs = _specs(case, inputs)
    out_specs = list(op.infer(specs, attributes))
    work = op.work(specs, out_specs, attributes)
    assert len(work) == 3, f"work gave {work!r}"
    assert all(np.isfinite(w) and w >= 0 for w in work), f"work must be finite and not negative, got {work!r}"
    nbytes = op.workspace(specs, out_specs, attributes) if op.workspace is not None else 0
    before = [np.array(x) if isinstance(x, np.ndarray) else x for x in inputs]

    wide = _cast(inputs, np.dtype(np.float64))
    if reference is not None:
        given = reference(*wide, **{k: v for k, v in attributes.items() if k != "key"})
        wanted = list(given) if isinstance(given, (tuple, list)) else [given]
    else:
        wanted = launch(op, wide, _specs(case, wide), attributes)
    assert len(wanted) == len(out_specs), f"infer gives {len(out_specs)} outputs, the reference {len(wanted)}"
    names = [f"output {i} ({op.outputs[min(i, len(op.outputs) - 1)]})" for i in range(len(wanted))]

    kernels = {who: (op.kernels[who.partition(":")[0]], run) for who, run in runners.items() if who.partition(":")[0] in op.kernels}
    assert kernels, f"no kernel of {op.name} can run here: it has {', '.join(op.kernels) or 'none'}"
    for who, (kernel, run) in kernels.items():
        results = run(kernel, inputs, out_specs, nbytes, attributes)
        for name, spec, result, want in zip(names, out_specs, results, wanted, strict=True):
            _agrees(f"{who} kernel, {name}", spec, result, want, limit, exact_dtype=reference is not None and dtype == np.float64)
        for i, (x, was) in enumerate(zip(inputs, before, strict=True)):
            if isinstance(x, np.ndarray):
                assert np.array_equal(x, was, equal_nan=x.dtype.kind == "f"), f"the {who} kernel wrote input {i}"
    if "array" in op.kernels:
        _check_overwritten(op, inputs, out_specs, nbytes, attributes, names)
        _check_inplace(op, inputs, specs, out_specs, nbytes, attributes)
        _check_bounded(op, specs, out_specs, attributes)


def _agrees(what: str, spec: AnySpec, result: Any, wanted: Any, limit: float, exact_dtype: bool) -> None:
    if not isinstance(spec, Spec):
        assert isinstance(spec, Opaque) or result is not None, f"{what} is missing"
        return
    wanted = np.asarray(wanted)
    assert result.dtype == spec.dtype, f"{what} is {result.dtype}, infer says {spec!r}"
    fits = result.ndim == spec.ndim and all(n <= d.n if isinstance(d, UpTo) else n == d for n, d in zip(result.shape, spec.shape, strict=True))
    assert fits, f"{what} has shape {result.shape}, infer says {spec!r}"
    assert result.shape == wanted.shape, f"{what} has shape {result.shape}, the reference {wanted.shape}"
    if exact_dtype:
        assert wanted.dtype == spec.dtype, f"{what}: infer says {spec.dtype}, the reference {wanted.dtype}"
    if not wanted.size:
        return
    if spec.dtype.kind != "f":
        _assert_all(result == wanted, what, "differs", result, wanted)
        return
    finite = np.isfinite(wanted)
    alike = np.isfinite(result) == finite
    with np.errstate(all="ignore"):
        alike &= finite | (result == wanted) | (np.isnan(result) & np.isnan(wanted))
        _assert_all(alike, what, "is not finite where it should be, or is where it should not", result, wanted)
        error = np.where(finite, np.abs(result.astype(np.float64) - wanted), 0) / np.max(np.abs(wanted), where=finite, initial=1.0)
    _assert_all(error <= limit, what, f"is off by {float(error.max()):.3g} of its magnitude (limit {limit:g})", result, wanted)


def _assert_all(holds: Any, what: str, says: str, result: Any, wanted: Any) -> None:
    """An error that shows the first element for which `holds` is False."""
    wrong = np.argwhere(~np.asarray(holds))
    if len(wrong):
        at = tuple(wrong[0].tolist())
        raise AssertionError(f"{what} {says}; {len(wrong)} elements, first at {at}: got {result[at]!r}, wanted {wanted[at]!r}")


def _check_overwritten(
    op: Op, inputs: Sequence[Any], out_specs: Sequence[AnySpec], nbytes: int, attributes: Attributes, names: Sequence[str]
) -> None:
    """What was in the outputs must not matter."""
    first = _run_numpy(op.kernels["array"], inputs, out_specs, nbytes, attributes)
    second = _run_numpy(op.kernels["array"], inputs, out_specs, nbytes, attributes, other=True)
    for name, a, b in zip(names, first, second, strict=True):
        if isinstance(a, np.ndarray):
            assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f"), f"{name} is not fully overwritten: over NaN it is\n{a}\nover 1 it is\n{b}"


def _check_inplace(
    op: Op, inputs: Sequence[Any], specs: Sequence[AnySpec], out_specs: Sequence[AnySpec], nbytes: int, attributes: Attributes
) -> None:
    """Every pair whose specs are equal, alone and all together, gives the same bits in one buffer."""
    pairs = [(o, i) for o, i in op.inplace if i < len(specs) and o < len(out_specs) and specs[i] == out_specs[o] and isinstance(specs[i], Spec)]
    if not pairs:
        return
    apart = _run_numpy(op.kernels["array"], inputs, out_specs, nbytes, attributes)
    together = [pairs] if len({o for o, _ in pairs}) == len(pairs) and len({i for _, i in pairs}) == len(pairs) else []
    for chosen in [*([p] for p in pairs), *together]:
        given = [np.array(x) if isinstance(x, np.ndarray) else x for x in inputs]
        outputs = [empty(s) for s in out_specs]
        for o, i in chosen:
            outputs[o] = given[i]
        with np.errstate(all="ignore"):
            op.kernels["array"](np, given, outputs, np.full(nbytes, 0xFF, np.uint8) if nbytes else None, attributes)
        for o, (a, b) in enumerate(zip(apart, outputs, strict=True)):
            if isinstance(a, np.ndarray):
                same = np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
                assert same, f"in place {chosen} (output, input): output {o} is\n{b}\nin its own buffer\n{a}"


def _check_bounded(op: Op, specs: Sequence[AnySpec], out_specs: Sequence[AnySpec], attributes: Attributes) -> None:
    """With the leading extents of all arrays bounded (equal extents by equal bounds), infer refuses or gives bounds that hold."""
    loose = [Spec((UpTo(s.bounds[0] + 3), *s.shape[1:]), s.dtype) if isinstance(s, Spec) and s.shape else s for s in specs]
    try:
        bounds = op.infer(loose, attributes)
    except GraphError:
        return
    for name, spec, wide in zip(op.outputs, out_specs, bounds, strict=False):
        if isinstance(spec, Spec) and isinstance(wide, Spec):
            holds = spec.ndim == wide.ndim and all(
                bound(d) <= bound(w) and (isinstance(w, UpTo) or d == w) for d, w in zip(spec.shape, wide.shape, strict=True)
            )
            assert holds, f"infer of {loose} gives {name} {wide!r}, but of {list(specs)} it gives {spec!r}"


# Gradient ---------------------------------------------------------------------------------------------------------------------


def _check_gradient(op: Op, case: Case, rng: np.random.Generator, step: float = 1e-6, limit: float = 1e-6, probes: int = 24) -> None:
    inputs = _cast(case.inputs, np.dtype(np.float64))
    attributes, specs = _attributes(op, case), _specs(case, inputs)
    out_specs = list(op.infer(specs, attributes))
    floats = [o for o, s in enumerate(out_specs) if isinstance(s, Spec) and s.dtype.kind == "f"]
    varied = [i for i, x in enumerate(inputs) if _is_float(x)]
    if not floats or not varied:
        return
    weights = {o: np.asarray(rng.normal(size=out_specs[o].bounds)) for o in floats}  # type: ignore[union-attr]
    for chosen in [floats] if len(floats) == 1 else [floats, *([o] for o in floats)]:
        builder = Graph.build()
        values = [builder.input(f"x{i}", s) for i, s in enumerate(specs)]
        made = builder.op(op, *values, **attributes)
        outs: list[Value] = list(made) if isinstance(made, tuple) else [made]
        if builder.problems:
            raise GraphError(builder.problems)
        seeds = [builder.constant(weights[o]) for o in chosen]
        found = pullback(builder, [outs[o] for o in chosen], seeds, [values[i] for i in varied])
        got = {i: g for i, g in zip(varied, found, strict=True) if g is not None}
        for i, g in got.items():
            builder.output(g, f"g{i}")
        results = interpret(builder.freeze(), {f"x{i}": x for i, x in enumerate(inputs)})

        def loss(changed: Sequence[Any], chosen: Sequence[int] = chosen) -> float:
            with np.errstate(all="ignore"):
                out = launch(op, changed, specs, attributes)
            return float(sum(np.sum(out[o] * weights[o]) for o in chosen))

        for i in got:
            flat = np.arange(inputs[i].size)
            picked = rng.choice(flat, size=min(probes, flat.size), replace=False) if flat.size else flat
            for at in picked:
                sides = []
                for sign in (1, -1):
                    moved = np.array(inputs[i])
                    moved.reshape(-1)[at] += sign * step
                    sides.append(loss([*inputs[:i], moved, *inputs[i + 1 :]]))
                numeric = (sides[0] - sides[1]) / (2 * step)
                analytic = float(results[f"g{i}"].reshape(-1)[at])
                scale = max(1.0, abs(numeric), abs(sides[0]))
                assert abs(numeric - analytic) <= limit * scale, (
                    f"gradient of outputs {list(chosen)} with respect to element {at} of input {i}: {analytic:.9g}, central difference {numeric:.9g}"
                )


# Running ----------------------------------------------------------------------------------------------------------------------


def _runners() -> dict[str, Runner]:
    out: dict[str, Runner] = {"array": _run_numpy, "host": _run_numpy, "array:elsewhere": _run_elsewhere}
    try:
        import cupy

        if cupy.cuda.runtime.getDeviceCount() > 0:
            out["array:cupy"] = out["cuda"] = _run_cupy
    except Exception:  # CuPy is missing, or finds no driver: both mean that there is no such device here.
        pass
    return out


def _run_numpy(
    kernel: Kernel, inputs: Sequence[Any], out_specs: Sequence[AnySpec], nbytes: int, attributes: Attributes, other: bool = False
) -> list[Any]:
    outputs = [empty(s, other) for s in out_specs]
    with np.errstate(all="ignore"):
        written = kernel(np, inputs, outputs, np.full(nbytes, 0xFF, np.uint8) if nbytes else None, attributes)
    return _cropped(outputs, out_specs, written)


def _run_elsewhere(kernel: Kernel, inputs: Sequence[Any], out_specs: Sequence[AnySpec], nbytes: int, attributes: Attributes) -> list[Any]:
    """The branch that other array libraries than NumPy get."""
    outputs = [empty(s) for s in out_specs]
    with np.errstate(all="ignore"):
        xp = Elsewhere(strict=is_ours(kernel))
        written = kernel(xp, inputs, outputs, np.full(nbytes, 0xFF, np.uint8) if nbytes else None, attributes)
    return _cropped(outputs, out_specs, written)


def _run_cupy(kernel: Kernel, inputs: Sequence[Any], out_specs: Sequence[AnySpec], nbytes: int, attributes: Attributes) -> list[Any]:
    import cupy

    outputs = [cupy.asarray(empty(s)) if array_form(s) is not None else None for s in out_specs]
    given = [cupy.asarray(x) if isinstance(x, np.ndarray) else x for x in inputs]
    written = kernel(cupy, given, outputs, cupy.full(nbytes, 0xFF, cupy.uint8) if nbytes else None, attributes)
    return _cropped([cupy.asnumpy(o) if isinstance(o, cupy.ndarray) else o for o in outputs], out_specs, written)


def _cropped(outputs: list[Any], specs: Sequence[AnySpec], written: Any) -> list[Any]:
    if written is None:
        return outputs
    pairs = itertools.zip_longest(outputs, specs, written)
    return [o[tuple(slice(n) for n in w)] if isinstance(s, Spec) and s.is_bounded else o for o, s, w in pairs]


def _is_float(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


def _cast(inputs: Sequence[Any], dtype: np.dtype[Any]) -> list[Any]:
    return [np.array(x, dtype=dtype, order="C") if _is_float(x) else x for x in inputs]


def _attributes(op: Op, case: Case) -> dict[str, Any]:
    return op.check_attributes({**({"key": "check"} if op.random else {}), **case.attributes})


def _specs(case: Case, inputs: Sequence[Any]) -> list[AnySpec]:
    found: list[AnySpec] = [spec_of(x) if isinstance(x, (np.ndarray, np.generic)) else Opaque(type(x).__name__) for x in inputs]
    for i, spec in case.specs.items():
        found[i] = Spec(spec.shape, inputs[i].dtype) if isinstance(spec, Spec) and _is_float(inputs[i]) else spec
    return found
