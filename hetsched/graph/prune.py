"""What nobody asks a loop for is not computed: collected outputs that nothing reads, and the tasks of the body that serve only them.

`Builder.freeze` does this, because only then is it known who reads what: a training loop offers its losses, and a pipeline that never looks at them
does not pay for them. Nothing else is dropped: a task of the graph itself stays, whether its value is read or not, and so does every carried value.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace

from hetsched.graph.graph import Builder, Graph, Loop, Nested
from hetsched.graph.op import Op


def prune(graph: Graph) -> Graph:
    """`graph` without what nobody asks its loops for; `graph` itself where there is no such thing.

    A collected output is asked for if a task reads it or it is an output of the graph. A view op that only shows it asks for it if somebody wants
    the view, else the view goes too. In the body and the remainder of a loop that loses an output, only those tasks stay that carried values,
    collected outputs, the stop value or an effect outside (`Op.pure` is False) need; what only the others read is no input of the loop any more. A
    loop of which nobody wants any output stays as it is, like any other such task.
    """
    if not graph.has_loops:
        return graph
    need = _needed(graph, graph.outputs, body=False)
    return graph if len(need.tasks) == len(graph) and not need.loops else _rebuilt(graph, need, graph.inputs, graph.outputs)


@dataclass(frozen=True)
class _Needed:
    """What stays of a graph: its tasks, the values that they read or that are wanted outside, and the loops that change, by task."""

    tasks: set[int] = field(default_factory=set)
    values: set[int] = field(default_factory=set)
    loops: dict[int, Loop] = field(default_factory=dict)


def _needed(graph: Graph, outputs: Collection[str], *, body: bool) -> _Needed:
    """What `outputs` need, in the body of a loop; elsewhere every task is needed but views of what loops collect."""
    need = _Needed(values={graph.outputs[name] for name in outputs})
    if not body:
        need.values.update(range(int(graph.output_start[0])))
    optional = range(len(graph)) if body else _views_of_collected(graph)
    named = {where.same_as for where in graph.where.values()}
    for t in reversed(range(len(graph))):
        op, reads = graph.task_ops[t], graph.reads(t)
        wanted = not need.values.isdisjoint(graph.writes(t))
        if not wanted and t in optional and not has_effect(op) and graph.task_names[t] not in named:
            continue
        need.tasks.add(t)
        if isinstance(op, Loop) and wanted:
            less = _without(op, {name for name, v in _collected(graph, t, op) if v in need.values})
            if less is not op:
                need.loops[t] = less
                reads = _inputs(graph, t, op, less)
        need.values.update(reads)
    return need


def _collected(graph: Graph, task: int, loop: Loop) -> Iterator[tuple[str, int]]:
    """The collected outputs of loop task number `task` and their values."""
    return zip(loop.collected, graph.writes(task)[len(loop.carried) :], strict=True)


def _inputs(graph: Graph, task: int, loop: Loop, less: Loop) -> tuple[int, ...]:
    """The values that loop task number `task` still reads when it runs `less` in place of `loop`."""
    left = set(less.inputs)
    return tuple(v for name, v in zip(loop.inputs, graph.reads(task), strict=True) if name in left)


def _views_of_collected(graph: Graph) -> set[int]:
    """The view tasks that show what a loop has collected, or a view of it."""
    shown: set[int] = set()
    tasks: set[int] = set()
    for t, op in enumerate(graph.task_ops):
        if isinstance(op, Loop):
            shown.update(v for _, v in _collected(graph, t, op))
        elif isinstance(op, Op) and op.view and graph.reads(t)[0] in shown:
            shown.update(graph.writes(t))
            tasks.add(t)
    return tasks


def has_effect(op: Op | Nested) -> bool:
    """True if an op, or one inside a loop or an if, has an effect outside."""
    return not op.pure or (isinstance(op, Nested) and any(has_effect(inner) for body in op.graphs for inner in body.task_ops))


def _without(loop: Loop, collected: Collection[str]) -> Loop:
    """`loop` collecting no more than `collected`; `loop` itself if that is all."""
    if set(loop.collected) <= set(collected):
        return loop
    outputs = {*(result for _, result in loop.carried), *collected, *([loop.stop] if loop.stop is not None else [])}
    bodies = loop.graphs
    needs = [_needed(body, outputs, body=True) for body in bodies]
    if any(need.tasks != needs[0].tasks for need in needs):
        return loop  # The remainder must keep the tasks of the body, and it uses them in another way.
    inputs = {a for a, _ in loop.carried} | {
        name for body, need in zip(bodies, needs, strict=True) for name, v in body.inputs.items() if v in need.values
    }
    if loop.turn is not None:
        inputs.add(loop.turn)
    body, *remainder = (_rebuilt(body, need, inputs, outputs) for body, need in zip(bodies, needs, strict=True))
    return replace(
        loop,
        body=body,
        remainder=remainder[0] if remainder else None,
        invariants=tuple(name for name in loop.invariants if name in inputs),
        sequences=tuple(name for name in loop.sequences if name in inputs),
        collected=tuple(name for name in loop.collected if name in collected),
        rows={name: n for name, n in loop.rows.items() if name in collected},
        every={name: k for name, k in loop.every.items() if name in body.task_index},
    )


def _rebuilt(graph: Graph, need: _Needed, inputs: Collection[str], outputs: Collection[str]) -> Graph:
    """`graph` with what it needs and these of its inputs and outputs. Nothing is inferred again."""
    builder = Builder()
    value: dict[int, int] = {}
    task: dict[int, int] = {}

    def keep(v: int, producer: int) -> None:
        value[v] = len(builder.value_specs)
        builder.value_specs.append(graph.value_specs[v])
        builder.value_names.append(graph.value_names[v])
        builder.value_producers.append(producer)

    for name, v in graph.inputs.items():
        if name in inputs:
            keep(v, -1)
            builder.inputs[name] = value[v]
    for v, array in graph.constants.items():
        if v in need.values:
            keep(v, -1)
            builder.constants[value[v]] = array
    for t in sorted(need.tasks):
        op, reads, writes = graph.task_ops[t], graph.reads(t), tuple(graph.writes(t))
        less = need.loops.get(t)
        if isinstance(op, Loop) and less is not None:
            reads = _inputs(graph, t, op, less)
            writes = (*writes[: len(op.carried)], *(v for name, v in _collected(graph, t, op) if name in less.collected))
        task[t] = len(builder.task_names)
        builder.task_names.append(graph.task_names[t])
        builder.task_ops.append(less or op)
        builder.task_attributes.append(graph.task_attributes[t])
        builder.task_inputs.append(tuple(value[v] for v in reads))
        for v in writes:
            keep(v, task[t])
    builder.after = [(task[a], task[t]) for a, t in _order(graph, need.tasks)]
    builder.where = {task[t]: where for t, where in graph.where.items() if t in task}
    builder.outputs = {name: value[v] for name, v in graph.outputs.items() if name in outputs}
    builder.bundles = {name: bundle for name, bundle in graph.bundles.items() if all(part in builder.outputs for part in bundle[0])}
    return Graph(builder)


def _order(graph: Graph, tasks: Collection[int]) -> list[tuple[int, int]]:
    """The order-only edges among `tasks`: who came after a task that is gone comes after what that one waited for."""
    out: dict[tuple[int, int], None] = {}
    waits_for = graph.predecessors() if graph.after else []
    for before, later in graph.after:
        ends, seen = [before], {before}
        while later in tasks and ends:
            end = ends.pop()
            if end in tasks:
                out[end, later] = None
                continue
            ends += [t for t in waits_for[end] if t not in seen]
            seen.update(waits_for[end])
    return list(out)
