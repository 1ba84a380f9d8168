"""Graphs as other data: back to a builder, and networkx both ways."""

from __future__ import annotations

from typing import Any

from hetsched.errors import GraphError
from hetsched.graph.graph import Builder, Graph, Nested, Value, Where
from hetsched.graph.op import Op


def thaw(graph: Graph) -> Builder:
    """A builder that holds the tasks, values, names and outputs of `graph`, to go on from. Nothing is inferred again."""
    builder = Graph.build()
    ids: dict[int, int] = {}
    names = {v: name for name, v in graph.inputs.items()}
    for v, spec in enumerate(graph.value_specs[: int(graph.output_start[0])]):
        if v in names:
            ids[v] = builder.input(names[v], spec).id
        else:
            ids[v] = builder._value(graph.value_names[v], spec, -1)
            builder._used[graph.value_names[v]] = 1
            builder.constants[ids[v]] = graph.constants[v]
    for task in graph.tasks:
        builder._used[task.name] = 1
        specs = [graph.spec(v) for v in task.outputs]
        builder._append(task.op, task.name, tuple(ids[v] for v in task.inputs), specs, task.attributes, task.where, ())
        ids.update(zip(task.outputs, builder.task_outputs[-1], strict=True))
    builder.after = list(graph.after)
    builder.inputs = {name: ids[v] for name, v in graph.inputs.items()}
    builder.outputs = {name: ids[v] for name, v in graph.outputs.items()}
    builder.bundles = dict(graph.bundles)
    return builder


def to_networkx(graph: Graph) -> Any:
    """`graph` as a `networkx.MultiDiGraph`.

    Nodes, in the graph's order: `input:NAME` (attributes `op` = "input", `spec`), `constant:NAME` (`op` = "constant", `value`) and task names
    (`op`: the name of the op, or the `Op`, `Loop` or `If` itself where no op of that name is known; `attributes`; `where`). An edge is one use of a
    value (`value`: its name; `output`, `input`: positions at its producer and reader; `nbytes`), or an order without data (`value` is None).
    The graph's attribute `outputs` maps names to (node, output position), `bundles` is `Graph.bundles`.
    """
    import networkx as nx

    from hetsched.graph.ops import registry

    view: Any = nx.MultiDiGraph()
    known = registry()
    source: dict[int, tuple[str, int]] = {}
    names = {v: name for name, v in graph.inputs.items()}
    for v, spec in enumerate(graph.value_specs[: int(graph.output_start[0])]):
        if v in names:
            source[v] = f"input:{names[v]}", 0
            view.add_node(source[v][0], op="input", spec=spec)
        else:
            source[v] = f"constant:{graph.value_names[v]}", 0
            view.add_node(source[v][0], op="constant", value=graph.constants[v])
    for task in graph.tasks:
        op = task.op
        view.add_node(task.name, op=op.name if known.get(op.name) is op else op, attributes=dict(task.attributes), where=task.where)
        source.update((v, (task.name, i)) for i, v in enumerate(task.outputs))
        for i, v in enumerate(task.inputs):
            node, output = source[v]
            view.add_edge(node, task.name, value=graph.value_names[v], output=output, input=i, nbytes=int(graph.value_nbytes[v]))
    for before, later in graph.after:
        view.add_edge(graph.task_names[before], graph.task_names[later], value=None, output=None, input=None, nbytes=0)
    view.graph["outputs"] = {name: source[v] for name, v in graph.outputs.items()}
    view.graph["bundles"] = dict(graph.bundles)
    return view


def from_networkx(view: Any) -> Graph:
    """The graph of a networkx multigraph as `to_networkx` writes it, or as one writes it by hand.

    Every node needs `op` ("input" with `spec`, "constant" with `value`, an op's name, an `Op`, a `Loop` or an `If`), every edge with data `input`;
    `attributes`, `where`, `output` (0), `value` and `nbytes` may be left out, and so may the graph's `outputs`: then they are the values that
    nobody reads.
    Raises `GraphError` with every mistake; a cycle is named.
    """
    import networkx as nx

    from hetsched.graph.ops import find

    if not nx.is_directed_acyclic_graph(view):
        cycle = [edge[0] for edge in nx.find_cycle(view)]
        raise GraphError(f"the graph has a cycle: {' -> '.join(map(str, [*cycle, cycle[0]]))}; a task can only read what comes before it")
    _check(view)
    builder = Graph.build()
    made: dict[tuple[Any, int], Value] = {}
    position = {node: i for i, node in enumerate(view)}
    for node in nx.lexicographical_topological_sort(view, key=position.__getitem__):
        data = view.nodes[node]
        op, name = data["op"], str(node)
        if op == "input":
            made[node, 0] = builder.input(name.removeprefix("input:"), data["spec"])
            continue
        if op == "constant":
            made[node, 0] = builder.constant(data["value"], name.removeprefix("constant:"))
            continue
        edges = list(view.in_edges(node, data=True))
        reads = sorted((e["input"], made[before, e.get("output") or 0]) for before, _, e in edges if e.get("input") is not None)
        after = [_any_value(made, before) for before, _, e in edges if e.get("input") is None]
        inputs, where = [value for _, value in reads], data.get("where")
        out = _append(builder, find(op) if isinstance(op, str) else op, inputs, name, where, after, data.get("attributes") or {})
        made.update(((node, i), value) for i, value in enumerate(out))
    outputs = view.graph.get("outputs")
    if outputs is None:
        read = {(before, e.get("output") or 0) for before, _, e in view.edges(data=True) if e.get("input") is not None}
        outputs = {value.name: key for key, value in made.items() if key not in read}
    for name, (node, i) in outputs.items():
        if (node, i) not in made:
            raise GraphError(f"output {name!r} names value {i} of {node!r}, which the graph does not have")
        builder.output(made[node, i], name)
    builder.bundles = dict(view.graph.get("bundles", {}))
    return builder.freeze()


def _append(
    builder: Builder, op: Op | Nested, inputs: list[Value], name: str, where: Where | None, after: list[Value], attributes: Any
) -> list[Value]:
    with builder.scope(after=[builder.value_producers[v.id] for v in after]):
        if isinstance(op, Nested):
            return list(builder.nested(op, inputs, name=name, where=where))
        out = builder.op(op, *inputs, name=name, where=where, **attributes)
    return list(out) if isinstance(out, tuple) else [out]


def _any_value(made: dict[tuple[Any, int], Value], node: Any) -> Value:
    if (node, 0) not in made:
        raise GraphError(f"task {node!r} has no output, so nothing can be ordered after it")
    return made[node, 0]


def _check(view: Any) -> None:
    """Raises `GraphError` with every node and edge that lacks what it must have."""
    problems = []
    for node, data in view.nodes(data=True):
        op = data.get("op")
        if not isinstance(op, (str, Op, Nested)):
            problems.append(f"node {node!r} needs op: input, constant, the name of an op, an Op, a Loop or an If; got {op!r}")
        elif op in ("input", "constant") and ("spec" if op == "input" else "value") not in data:
            problems.append(f"node {node!r} is {'an input without spec' if op == 'input' else 'a constant without value'}")
        else:
            reads = sorted(e["input"] for _, _, e in view.in_edges(node, data=True) if e.get("input") is not None)
            if reads != list(range(len(reads))):
                problems.append(f"node {node!r}: its edges have the input positions {reads}, wanted {list(range(len(reads)))}")
    if problems:
        raise GraphError(problems)
