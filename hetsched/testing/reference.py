"""The plain loop over a graph's tasks: the oracle that every executor has to agree with.

Nothing is planned, shared or reused: each task gets fresh outputs, filled with values that no kernel may leave behind, and what it wrote is
then read-only. View ops run their kernel, which copies. Slow, and meant to be obviously right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hetsched.errors import GraphError, InternalError
from hetsched.graph.graph import Graph, If, Loop, Nested
from hetsched.graph.op import Attributes, Kernel, Op
from hetsched.graph.spec import AnySpec, Spec, UpTo, array_form, bound, spec_of
from hetsched.graph.spec import Sequence as SequenceSpec


def interpret(graph: Graph, inputs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Run `graph` on NumPy, one task after the other, and give its outputs by name.

    `inputs` by name: arrays of the declared dtype and shape (at most the bound in bounded dimensions), objects for opaque inputs, an array
    (its leading axis, or its rows) or a list for sequences. They are never written. Outputs are read-only arrays; an output that is a sequence
    is the array of `spec.array_form`, or a list where there is none. Raises `GraphError` where inputs do not fit; what a kernel raises passes through
    with a note that names the task.
    """
    with np.errstate(all="ignore"):
        values = evaluate(graph, inputs or {})
    return {name: values[i] for name, i in graph.outputs.items()}


def evaluate(graph: Graph, inputs: Mapping[str, Any], *, skipped: Mapping[int, Sequence[Any]] | None = None) -> list[Any]:
    """Every value of `graph`, by its id. `skipped`: tasks that do not run -> the outputs that stand for theirs."""
    problems = [f"input {name!r} is missing" for name in graph.inputs if name not in inputs]
    problems += [f"the graph has no input {name!r}" for name in inputs if name not in graph.inputs]
    if problems:
        raise GraphError(problems)
    values: list[Any] = [None] * len(graph.value_specs)
    for name, i in graph.inputs.items():
        values[i] = _borrow(name, inputs[name], graph.spec(i))
    for i, constant in graph.constants.items():
        values[i] = constant
    for task in graph.tasks:
        if skipped and task.index in skipped:
            outputs: Sequence[Any] = skipped[task.index]
        else:
            given, specs = [values[i] for i in task.inputs], [graph.spec(i) for i in task.inputs]
            try:
                outputs = run_nested(task.op, given, specs) if isinstance(task.op, Nested) else launch(task.op, given, specs, task.attributes)
            except Exception as error:
                error.add_note(f"in task {task.name!r} ({task.op.name})")
                raise
        for i, output in zip(task.outputs, outputs, strict=True):
            values[i] = output
    return values


def launch(op: Op, inputs: Sequence[Any], specs: Sequence[AnySpec], attributes: Attributes, *, kernel: Kernel | None = None) -> list[Any]:
    """The outputs of one launch of `op` on NumPy arrays, in fresh memory. `specs` are the inputs' declared specs, `kernel` the array or host kernel.

    Extents that the graph only bounds come from the inputs: `infer` is asked again with their shapes. A dimension that is bounded even then has the
    extent that the kernel returns.
    """
    kernel = kernel or op.kernels.get("array") or op.kernels.get("host")
    if kernel is None:
        raise GraphError(f"op {op.name} has no array or host kernel, only {', '.join(op.kernels) or 'none'}")
    here = [_exact(s, x) for s, x in zip(specs, inputs, strict=True)]
    out_specs = list(op.infer(here, attributes))
    outputs = [empty(s) for s in out_specs]
    planned = list(outputs)
    nbytes = op.workspace(here, out_specs, attributes) if op.workspace is not None else 0
    shapes = kernel(np, list(inputs), outputs, np.full(nbytes, 0xFF, np.uint8) if nbytes else None, attributes)
    for i, (spec, array) in enumerate(zip(out_specs, planned, strict=True)):
        if array is None:
            if outputs[i] is None:
                raise InternalError(f"op {op.name}: the kernel gave nothing for output {op.outputs[i]!r}")
            continue
        if outputs[i] is not array:
            raise InternalError(f"op {op.name}: the kernel replaced the array of output {op.outputs[i]!r} instead of writing into it")
        if isinstance(spec, Spec) and spec.is_bounded:
            if shapes is None:
                raise InternalError(f"op {op.name}: output {op.outputs[i]!r} is {spec!r} and the kernel did not say what it wrote")
            outputs[i] = np.array(array[tuple(slice(n) for n in shapes[i])], order="C")
        outputs[i].setflags(write=False)
    return outputs


def run_nested(op: Nested, inputs: Sequence[Any], specs: Sequence[AnySpec]) -> list[Any]:
    """The outputs of a task that holds graphs."""
    if isinstance(op, Loop):
        return run_loop(op, inputs, specs)
    assert isinstance(op, If)
    graph, given = op.then if bool(inputs[0]) else op.otherwise, dict(zip(op.captured, inputs[1:], strict=True))
    values = evaluate(graph, {name: given[name] for name in graph.inputs})
    return [values[graph.outputs[name]] for name in op.outputs]


def _exact(spec: AnySpec, given: Any) -> AnySpec:
    """The spec of an input that is there."""
    if isinstance(spec, Spec):
        return spec_of(given)
    if not isinstance(spec, SequenceSpec) or not isinstance(spec.length, UpTo) or not isinstance(spec.element, Spec):
        return spec
    return SequenceSpec(spec.element, len(given)) if spec.rows is None else SequenceSpec(spec.element, spec.length.n, len(given))


def run_loop(loop: Loop, inputs: Sequence[Any], specs: Sequence[AnySpec]) -> list[Any]:
    """The outputs of a loop task: the last carried values, then the collected sequences."""
    given, spec = dict(zip(loop.inputs, inputs, strict=True)), dict(zip(loop.inputs, specs, strict=True))
    carried = {name: given[name] for name, _ in loop.carried}
    collected: dict[str, list[Any]] = {name: [] for name in loop.collected}
    last: dict[int, list[Any]] = {}  # task of `every` -> its last outputs
    for turn in range(loop.turns):
        body = loop.remainder if loop.remainder is not None and loop.is_remainder(turn) else loop.body
        bound_to = {name: given[name] for name in loop.invariants}
        bound_to |= {name: element(given[name], spec[name], turn) for name in loop.sequences}
        bound_to |= carried
        if loop.turn is not None:
            bound_to[loop.turn] = np.asarray(turn, np.int64)
        values = evaluate(body, bound_to, skipped={t: last[t] for t, k in loop.seldom.items() if turn % k})
        last = {t: [values[i] for i in body.writes(t)] for t in loop.seldom}
        carried = {name: values[body.outputs[result]] for name, result in loop.carried}
        for name in loop.collected:
            collected[name].append(values[body.outputs[name]])
        if loop.stop is not None and bool(values[body.outputs[loop.stop]]):
            break
    out = [carried[name] for name, _ in loop.carried]
    sequences = loop.infer(specs)[len(loop.carried) :]
    return out + [gather(collected[name], s) for name, s in zip(loop.collected, sequences, strict=True) if isinstance(s, SequenceSpec)]


# Sequences --------------------------------------------------------------------------------------------------------------------


def element(sequence: Any, spec: AnySpec, turn: int) -> Any:
    """Element `turn` of a sequence: an item of a list, the next rows of an array with `rows`, else a slice along the leading axis."""
    listed = isinstance(sequence, (list, tuple))
    if not listed and isinstance(spec, SequenceSpec) and spec.rows is not None and isinstance(spec.element, Spec):
        step = bound(spec.element.shape[0])
        if turn * step >= len(sequence):
            raise GraphError(f"a sequence of {len(sequence)} rows, {step} a turn, has no element {turn}")
        return sequence[turn * step : (turn + 1) * step]
    if turn >= len(sequence):
        raise GraphError(f"a sequence of {len(sequence)} elements has no element {turn}")
    return sequence[turn] if listed else sequence[turn, ...]


def gather(elements: list[Any], spec: SequenceSpec) -> Any:
    """The sequence made of `elements`: rows joined, arrays stacked along a new leading axis, or the list itself (see `spec.array_form`)."""
    form = array_form(spec)
    if form is None:
        return elements
    if not elements:
        array = np.empty((0, *form.bounds[1:]), form.dtype)
    else:
        array = np.concatenate(elements) if spec.rows is not None else np.stack(elements)
    array.setflags(write=False)
    return array


# Memory -----------------------------------------------------------------------------------------------------------------------


def empty(spec: AnySpec, other: bool = False) -> Any:
    """A fresh output: an array at its bounds, full of NaN or of the dtype's largest number (`other`: of 1 or 0), or None (see `op.Kernel`)."""
    form = array_form(spec)
    return np.full(form.bounds, poison(form.dtype, other), form.dtype) if form is not None else None


def poison(dtype: np.dtype[Any], other: bool = False) -> Any:
    """What fresh memory is filled with."""
    if dtype.kind in "fc":
        return 1.0 if other else np.nan
    if dtype.kind in "iu":
        return 1 if other else np.iinfo(dtype).max
    return not other


def _borrow(name: str, value: Any, spec: AnySpec) -> Any:
    """An input as the tasks may see it: a read-only view."""
    if not isinstance(spec, Spec):
        if isinstance(spec, SequenceSpec) and not isinstance(value, (list, tuple)):
            value = np.asarray(value, order="C").view()
            value.setflags(write=False)
        return value
    array = np.asarray(value, order="C").view()
    fits = array.ndim == spec.ndim and all(n <= d.n if isinstance(d, UpTo) else n == d for n, d in zip(array.shape, spec.shape, strict=False))
    if array.dtype != spec.dtype or not fits:
        raise GraphError(f"input {name!r} wants {spec!r}, got {spec_of(array)!r}")
    array.setflags(write=False)
    return array
