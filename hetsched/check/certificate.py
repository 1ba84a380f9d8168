"""What is known of a plan before anything runs: every shape and dtype, and the most bytes that each memory node ever holds.

`certify` trusts nothing that the planner noted: it checks the plan, asks every op again for the specs of its outputs, and counts the bytes of each
memory node from spans and offsets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from hetsched.check import order, problems
from hetsched.check.memory import Storage, is_view, kept, storages
from hetsched.check.sheet import Instance, Sheet, lay_out
from hetsched.errors import GraphError, PlanError
from hetsched.graph.graph import Graph, Nested
from hetsched.graph.spec import array_form
from hetsched.machine import HOST
from hetsched.timeline import Copy, Replica, Timeline

# From when to when, seconds, and bytes.
Life: TypeAlias = tuple[float, float, int]


@dataclass(frozen=True)
class NodeBytes:
    """Of one memory node: most bytes alive at once, bytes of its arena, bytes beside the arena (results and objects on the host), its limit.

    What a run takes of the node is `arena + beside`; `limit` None: unbounded. Inputs and constants on the host are the caller's.
    """

    peak: int
    arena: int
    beside: int
    limit: int | None


@dataclass(frozen=True)
class Certificate:
    """arrays, objects: values with a known shape and dtype, and values that are Python objects on the host; bodies of loops included.

    evictions: copies that bring in again what has been evicted. memory: node -> its bytes.
    """

    arrays: int
    objects: int
    evictions: int
    memory: Mapping[str, NodeBytes]


def certify(plan: Timeline) -> Certificate:
    """Prove that a straight `plan` may be run and fits. Raises `PlanError` with all that is wrong; a peak that the plan notes may not be too low."""
    sheet = Sheet(plan)
    found = [*_specs(plan.graph, ""), *problems(plan)]
    if found:
        raise PlanError(found)
    lay_out(sheet)
    order.data(sheet)
    inside, beside = _in_arenas(sheet), _beside(sheet)
    limits = {m.name: m.nbytes for m in plan.machine.memories}
    nodes = {}
    for name in dict.fromkeys([*plan.arenas, *inside, *([HOST] if beside else [])]):
        loose = beside if name == HOST else []
        nodes[name] = NodeBytes(_most([*inside.get(name, []), *loose]), plan.arenas.get(name, 0), _most(loose), limits.get(name))
    for name, node in nodes.items():
        if node.peak > plan.peak.get(name, 0):
            found.append(f"arena: {name} holds {node.peak} bytes at its peak, the plan notes {plan.peak.get(name, 0)}")
        if node.limit is not None and node.arena + node.beside > node.limit:
            found.append(f"arena: {name} needs {node.arena} bytes in its arena and {node.beside} beside it; its limit is {node.limit}")
    if found:
        raise PlanError(found)
    arrays, objects = _counted(plan.graph)
    evictions = sum(isinstance(s.command, Copy) and s.command.dst.generation > 0 for s in plan.spans)
    return Certificate(arrays, objects, evictions, nodes)


def _specs(graph: Graph, where: str) -> Iterator[str]:
    """Every task whose op, asked again, gives other shapes or dtypes than the graph has."""
    for task, op in enumerate(graph.task_ops):
        reads = [graph.spec(v) for v in graph.reads(task)]
        name = f"{where}{graph.task_names[task]}"
        try:
            given = list(op.infer(reads) if isinstance(op, Nested) else op.infer(reads, graph.task_attributes[task]))
        except GraphError as error:
            yield from (f"shape: task {name!r}: {problem}" for problem in error.problems)
            continue
        noted = [graph.spec(v) for v in graph.writes(task)]
        if given != noted:
            yield f"shape: task {name!r} ({op.name}) gives {given!r}, the graph has {noted!r}"
        if isinstance(op, Nested):
            for body in op.graphs:
                yield from _specs(body, name + "/")


def _counted(graph: Graph) -> tuple[int, int]:
    """How many values are arrays, how many objects; those of bodies included."""
    arrays = sum(array_form(spec) is not None for spec in graph.value_specs)
    objects = len(graph.value_specs) - arrays
    for op in graph.task_ops:
        if isinstance(op, Nested):
            for part in op.parts.values():
                more = _counted(part)
                arrays, objects = arrays + more[0], objects + more[1]
    return arrays, objects


def _in_arenas(sheet: Sheet) -> dict[str, list[Life]]:
    """Node -> lives of what lies in its arena. What is written in place takes over the bytes when their last user, its writer, is done."""
    laid, places = storages(sheet)
    to_the_end = kept(sheet, places)
    end = max(sheet.finish, default=0.0)
    out: dict[str, list[Life]] = {}
    there: dict[tuple[str, int, int], Storage] = {}
    for storage in sorted(laid, key=lambda s: sheet.start[s.writer]):
        start, finish = sheet.start[storage.writer], max(sheet.finish[user] for user in storage.users)
        place = storage.node, storage.low, storage.high
        before = there.get(place)
        if before is not None and storage.writer in before.users:
            start = max(sheet.finish[user] for user in before.users)
        there[place] = storage
        out.setdefault(storage.node, []).append((start, end if id(storage) in to_the_end else finish, storage.high - storage.low))
    return out


def _beside(sheet: Sheet) -> list[Life]:
    """Lives of what the host holds outside its arena: results, and objects with what views them."""
    graph, plan = sheet.plan.graph, sheet.plan
    end = max(sheet.finish, default=0.0)
    lives: dict[Instance, list[float]] = {}
    root: dict[Instance, Instance] = {}
    for key, event in sorted(sheet.produced.items(), key=lambda x: x[0]):
        value, _, node, generation = key
        if node != HOST or Replica(value, 0, node, generation) in plan.offsets:
            continue
        if is_view(sheet, event):
            base = next((k for _, k in sheet.sources[event]), None)
            if base is not None:
                root[key] = root.get(base, base)
            continue
        lives[key] = [sheet.start[event], end if value in sheet.results else sheet.finish[event]]
    for event, sources in enumerate(sheet.sources):
        for _, key in sources:
            life = lives.get(root.get(key, key))
            if life is not None:
                life[1] = max(life[1], sheet.finish[event])
    return [(start, finish, int(graph.value_nbytes[key[0]])) for key, (start, finish) in lives.items()]


def _most(lives: Iterable[Life]) -> int:
    """The most bytes alive at once."""
    moments = sorted(x for start, finish, nbytes in lives for x in ((start, nbytes), (finish, -nbytes)))
    now = most = 0
    for _, change in moments:
        now += change
        most = max(most, now)
    return most
