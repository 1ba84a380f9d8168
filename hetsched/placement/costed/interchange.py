"""Costed graphs from other formats: workflow instances of WfCommons (WfFormat JSON), DOT and networkx graphs whose nodes and edges carry costs.

Each gives a document of `placement-bench/1`, the format of `hetsched.placement.costed.planning`. What these formats do not say is the machine to plan
for: it is taken from `machine` (the keys `mem_nodes`, `devices`, `links` of the format), else from the file, else it is `machine_of()`, four equal
devices.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hetsched.placement.costed.dot import parse_dot

FORMAT = "placement-bench/1"
DOT_ENDINGS = (".dot", ".gv", ".dot.gz", ".gv.gz")
MACHINE_KEYS = ("mem_nodes", "devices", "links")
COST_KEYS = ("cost", "runtime", "weight")
BYTES_KEYS = ("bytes", "size", "weight")


def document_of(name: str, raw: bytes) -> Any:
    """What a file called `name` holds, as a costed graph's document where it is DOT or WfFormat, else its JSON as it is. Raises `ValueError`."""
    if name.endswith(DOT_ENDINGS):
        return from_dot(raw.decode("utf-8"))
    document = json.loads(raw, parse_constant=_no_constant)
    if isinstance(document, Mapping) and "format" not in document and "workflow" in document:
        return from_wfcommons(document)
    return document


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON; write null for a device that cannot run a task")


def machine_of(
    speeds: Sequence[float] = (1.0, 1.0, 1.0, 1.0), lanes: Sequence[int] | None = None, *, latency: float = 1e-4, bandwidth: float = 1.25e8
) -> dict[str, Any]:
    """Devices of these speeds, each with a memory of its own, linked pair by pair. latency in seconds, bandwidth in bytes per second (1 Gbit/s)."""
    n = range(len(speeds))
    return {
        "mem_nodes": [f"m{i}" for i in n],
        "devices": [{"name": f"d{i}", "kind": "device", "lanes": lanes[i] if lanes else 1, "mem": i, "speed": speeds[i]} for i in n],
        "links": [{"src": a, "dst": b, "latency": latency, "bandwidth": bandwidth} for a in n for b in n if a != b],
    }


def from_wfcommons(instance: Mapping[str, Any], machine: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The costed graph of an instance in WfFormat, schema 1.2 to 1.6.

    A task costs its measured runtime, in seconds on a device of speed 1; an edge carries the bytes of the files that the parent writes and the child
    reads. Machine: one device for each of the instance's machines, its lanes their cores, its speed in proportion to the first one's clock.
    Raises `ValueError` that names what is missing.
    """
    workflow = instance.get("workflow")
    if not isinstance(workflow, Mapping):
        raise ValueError("not an instance of WfFormat: it has no `workflow`")
    spec, execution = workflow.get("specification", workflow), workflow.get("execution", workflow)
    tasks = spec.get("tasks") or spec.get("jobs")
    if not isinstance(tasks, list) or not tasks:
        raise ValueError("the workflow has no tasks")
    sizes = {str(f.get("id", f.get("name"))): _size(f) for f in spec.get("files", ())}
    ran = {str(t.get("id", t.get("name"))): t for t in execution.get("tasks", ())}
    number: dict[str, int] = {}
    # New instances name parents by id, old ones by name.
    for key in ("id", "name"):
        for i, task in enumerate(tasks):
            if key in task:
                number.setdefault(str(task[key]), i)
    reads, writes = zip(*(_files(task, sizes) for task in tasks), strict=True)
    cost = []
    for i, task in enumerate(tasks):
        name = str(task.get("id", task.get("name", i)))
        seconds = next((x[k] for x in (ran.get(name, {}), task) for k in ("runtimeInSeconds", "runtime") if k in x), None)
        if not isinstance(seconds, (int, float)):
            raise ValueError(f"task {name!r} has no runtimeInSeconds; only instances that ran can be planned")
        cost.append(float(seconds))
    pairs = {(_known(number, p, i), i) for i, t in enumerate(tasks) for p in t.get("parents", ())}
    pairs |= {(i, _known(number, c, i)) for i, t in enumerate(tasks) for c in t.get("children", ())}
    edges = [[u, v, float(sum(sizes[f] for f in writes[u] & reads[v]))] for u, v in sorted(pairs)]
    names = [str(t.get("name", t.get("id", i))) for i, t in enumerate(tasks)]
    return _document(str(instance.get("name", "workflow")), names, {"cost": cost}, edges, machine or _ran_on(execution.get("machines", ())))


def from_dot(text: str, machine: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The costed graph of a DOT file. Attributes as in `from_networkx`, as text: `durations="1.5, 2, null"`, `bytes=1e6`.

    The graph's attributes `mem_nodes`, `devices`, `links` may hold the machine, as JSON in quotes.
    """
    dot = parse_dot(text)
    if machine is None and any(key in dot.attributes for key in MACHINE_KEYS):
        machine = {key: _json(dot.attributes.get(key), key) for key in MACHINE_KEYS}
    nodes = {name: {**a, **({"durations": _row(a["durations"], name)} if "durations" in a else {})} for name, a in dot.nodes.items()}
    return _costed(dot.attributes.get("label", "dot"), nodes, dot.edges, machine)


def from_networkx(graph: Any, machine: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The costed graph of a `networkx.DiGraph` (or `MultiDiGraph`: bytes of parallel edges add up).

    Every node has `durations` (a list of seconds, one a device, None where it cannot run) or else every one `cost`, `runtime` or `weight` (seconds on
    a device of speed 1); edges may have `bytes`, `size` or `weight`. The graph's attributes `mem_nodes`, `devices`, `links` may hold the machine.
    Raises `ValueError` that names the node or edge and what it lacks.
    """
    if not graph.is_directed():
        raise ValueError("edges of a task graph have a direction; got an undirected graph")
    if machine is None and all(key in graph.graph for key in MACHINE_KEYS):
        machine = {key: graph.graph[key] for key in MACHINE_KEYS}
    nodes = {str(name): dict(a) for name, a in graph.nodes(data=True)}
    if len(nodes) < graph.number_of_nodes():
        raise ValueError("two nodes have the same name as text")
    return _costed(str(graph.name or "networkx"), nodes, [(str(u), str(v), dict(a)) for u, v, a in graph.edges(data=True)], machine)


def _costed(
    name: str, nodes: Mapping[str, Mapping[str, Any]], edges: Sequence[tuple[str, str, Mapping[str, Any]]], machine: Mapping[str, Any] | None
) -> dict[str, Any]:
    number = {node: i for i, node in enumerate(nodes)}
    with_row = [node for node, a in nodes.items() if "durations" in a]
    if with_row and len(with_row) < len(nodes):
        lacking = next(node for node in nodes if node not in set(with_row))
        raise ValueError(f"node {with_row[0]!r} has durations, node {lacking!r} has none; give them to all or to none")
    costs: dict[str, Any]
    if with_row:
        costs = {"durations": [list(a["durations"]) for a in nodes.values()]}
        machine = machine or machine_of([1.0] * len(costs["durations"][0]))
    else:
        costs = {"cost": [_number(a, COST_KEYS, f"node {node!r}", None) for node, a in nodes.items()]}
    total: dict[tuple[int, int], float] = {}
    for u, v, a in edges:
        key = number[u], number[v]
        total[key] = total.get(key, 0.0) + _number(a, BYTES_KEYS, f"edge {u!r} -> {v!r}", 0.0)
    return _document(name, list(nodes), costs, [[u, v, nbytes] for (u, v), nbytes in total.items()], machine or machine_of())


def _document(name: str, names: list[str], costs: dict[str, Any], edges: list[list[Any]], machine: Mapping[str, Any]) -> dict[str, Any]:
    model = "related" if "cost" in costs else "unrelated"
    return {"format": FORMAT, "name": name, "model": model, "names": names, **{k: machine[k] for k in MACHINE_KEYS}, **costs, "edges": edges}


def _number(attributes: Mapping[str, Any], keys: Sequence[str], what: str, default: float | None) -> float:
    for key in keys:
        if key in attributes:
            try:
                return float(attributes[key])
            except (TypeError, ValueError):
                raise ValueError(f"{what} has {key}={attributes[key]!r}, which is not a number") from None
    if default is None:
        raise ValueError(f"{what} has no cost: give it {', '.join(keys)} or durations")
    return default


def _row(text: str, node: str) -> list[float | None]:
    """`"1.5, 2, null"` as numbers."""
    row: list[float | None] = []
    for part in text.strip().strip("[]").replace(";", ",").split(","):
        word = part.strip()
        if word in ("null", "None", "inf", "-"):
            row.append(None)
        else:
            try:
                row.append(float(word))
            except ValueError:
                raise ValueError(f"node {node!r} has durations={text!r}; wanted numbers and nulls with commas between them") from None
    return row


def _json(text: str | None, key: str) -> Any:
    try:
        return json.loads(text or "")
    except ValueError as error:
        raise ValueError(f"the graph's attribute {key!r} is not JSON: {error}; the machine needs {', '.join(MACHINE_KEYS)}") from error


def _size(file: Mapping[str, Any]) -> float:
    return float(file.get("sizeInBytes", file.get("size", 0)))


def _files(task: Mapping[str, Any], sizes: dict[str, float]) -> tuple[set[str], set[str]]:
    """The files that a task reads and writes; those of old instances, which stand in the task, are put into `sizes`."""
    reads, writes = set(map(str, task.get("inputFiles", ()))), set(map(str, task.get("outputFiles", ())))
    for file in task.get("files", ()):
        name = str(file.get("id", file.get("name")))
        sizes[name] = max(sizes.get(name, 0.0), _size(file))
        (reads if file.get("link") == "input" else writes).add(name)
    for name in (reads | writes) - sizes.keys():
        sizes[name] = 0.0
    return reads, writes


def _known(number: Mapping[str, int], name: object, task: int) -> int:
    if str(name) not in number:
        raise ValueError(f"task {task} names {name!r} as parent or child; no task is called so")
    return number[str(name)]


def _ran_on(machines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A device for each machine of an instance."""
    if not machines:
        return machine_of()
    clocks, lanes = [], []
    for machine in machines:
        cpu = machine.get("cpu") or {}
        clocks.append(float(cpu.get("speedInMHz", cpu.get("speed", 0)) or 0))
        lanes.append(int(cpu.get("coreCount", cpu.get("count", 1)) or 1))
    first = clocks[0]
    return machine_of([clock / first if clock > 0 and first > 0 else 1.0 for clock in clocks], lanes)
