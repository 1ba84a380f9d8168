"""Reverse mode over a graph: tasks are appended that compute the gradient of an output.

Only the paths that lead from the wanted values to the output are walked, and only the gradients on them are computed: an op's gradient
may give functions, which are called for the inputs that need one (see `op.Gradient`). The tasks of task T's gradient are named `gradient/T/...` and
run where T's own wish (`Where`) says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hetsched.errors import GraphError, did_you_mean
from hetsched.graph.graph import Builder, Graph, Loop, Nested, Value
from hetsched.graph.spec import AnySpec, Spec


def gradient(builder: Builder, output: Value, wrt: Sequence[Value]) -> list[Value]:
    """The gradients of the sum of `output`'s elements with respect to `wrt`, each of the spec of its value.

    Values that do not lead to `output` get zeros. Raises `GraphError` where `output` or one of `wrt` is not a floating array, or where a path
    goes through a loop or an op without gradient.
    """
    _sound(builder)
    _float(output, "the output")
    with builder.scope("gradient"):
        one = _full(builder, output, 1.0)
    found = pullback(builder, [output], [one], wrt)
    with builder.scope("gradient"):
        return [_full(builder, value, 0.0) if g is None else g for value, g in zip(wrt, found, strict=True)]


def pullback(builder: Builder, outputs: Sequence[Value], seeds: Sequence[Value | None], wrt: Sequence[Value]) -> list[Value | None]:
    """The vector-Jacobian product: gradients of sum(seed * output) over all pairs with respect to `wrt`; None where no path leads there.

    `seeds` have the specs of `outputs`; a seed of None leaves its output out. Raises `GraphError` like `gradient`, and with the builder's own
    problems where it has any: specs that are unknown have no gradient.
    """
    _sound(builder)
    for value in wrt:
        _float(value, "a value to differentiate with respect to")
    sums = _Sums(builder)
    for output, seed in zip(outputs, seeds, strict=True):
        if seed is not None:
            sums.add(output.id, seed)
    reached = _reached(builder, (v.id for v in wrt))
    first = min((builder.value_producers[v.id] for v in wrt), default=0)
    for task in range(len(builder.task_names) - 1, max(first, -1), -1):
        wanted = [i for i, v in enumerate(builder.task_inputs[task]) if v in reached]
        if wanted and any(v in sums for v in builder.task_outputs[task]):
            _step(builder, task, wanted, sums)
    with builder.scope("gradient"):
        return [sums.total(v.id) for v in wrt]


def gradient_graph(graph: Graph, output: str, wrt: Sequence[str]) -> Graph:
    """`graph` with its gradients: the outputs of `graph`, and for every input named in `wrt` an output `gradient/NAME`."""
    from hetsched.graph.interchange import thaw

    problems = [] if output in graph.outputs else [f"the graph has no output {output!r}{did_you_mean(output, graph.outputs)}"]
    problems += [f"the graph has no input {name!r}{did_you_mean(name, graph.inputs)}" for name in wrt if name not in graph.inputs]
    if problems:
        raise GraphError(problems)
    builder = thaw(graph)
    gradients = gradient(builder, Value(builder, builder.outputs[output]), [Value(builder, builder.inputs[name]) for name in wrt])
    for name, value in zip(wrt, gradients, strict=True):
        builder.output(value, f"gradient/{name}")
    return builder.freeze()


class _Sums:
    """Value id -> its gradient so far: contributions are summed when the total is asked for."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder
        self._parts: dict[int, list[Value]] = {}

    def __contains__(self, value: int) -> bool:
        return value in self._parts

    def add(self, value: int, part: Value) -> None:
        self._parts.setdefault(value, []).append(part)

    def total(self, value: int) -> Value | None:
        parts = self._parts.get(value)
        if parts is None:
            return None
        while len(parts) > 1:
            parts[:2] = [self._builder.op("tensor.add", parts[0], parts[1])]
        return parts[0]


def _step(builder: Builder, task: int, wanted: Sequence[int], sums: _Sums) -> None:
    """Add what `task` contributes to the gradients of its inputs number `wanted`."""
    op, name = builder.task_ops[task], builder.task_names[task]
    if isinstance(op, Nested):
        where = "loop {!r}; differentiate inside its body instead" if isinstance(op, Loop) else "if {!r}; differentiate inside its branches instead"
        raise GraphError(f"the path to differentiate goes through {where.format(name)}")
    if op.gradient is None:
        raise GraphError(f"the path to differentiate goes through task {name!r}, and op {op.name} has no gradient")
    inputs = [Value(builder, v) for v in builder.task_inputs[task]]
    outputs = [Value(builder, v) for v in builder.task_outputs[task]]
    with builder.scope(f"gradient/{name}", where=builder.where.get(task)):
        entries = op.gradient(builder, inputs, outputs, [sums.total(v.id) for v in outputs], builder.task_attributes[task])
        for i in wanted:
            entry = entries[i]
            part = entry() if callable(entry) else entry
            if part is None:
                continue
            _sound(builder)
            if part.spec != inputs[i].spec:
                raise GraphError(f"op {op.name}: the gradient of input {i} is {part.spec!r}, the input {inputs[i].spec!r}")
            sums.add(inputs[i].id, part)


def _reached(builder: Builder, values: Iterable[int]) -> set[int]:
    """`values` and every value computed from them."""
    out = set(values)
    for row, outputs in zip(builder.task_inputs, builder.task_outputs, strict=True):
        if not out.isdisjoint(row):
            out.update(outputs)
    return out


def _sound(builder: Builder) -> None:
    if builder.problems:
        raise GraphError(builder.problems)


def _float(value: Value, what: str) -> None:
    spec: AnySpec = value.spec
    if not isinstance(spec, Spec) or spec.dtype.kind != "f":
        raise GraphError(f"{what} must be a floating array; {value.name!r} is {spec!r}")


def _full(builder: Builder, like: Value, number: float) -> Value:
    """An array of `like`'s spec full of `number`."""
    spec = like.array_spec
    value: Value
    if spec.is_bounded:
        value = builder.op("tensor.full_like", like, value=number)
    else:
        value = builder.op("tensor.full", shape=spec.bounds, value=number, dtype=spec.dtype.name)
    return value
