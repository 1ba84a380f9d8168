"""Plans without a planner: valid, wasteful, easy to believe. For tests of executors, and as the plain thing to compare a planner with."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from hetsched.graph.graph import Graph, If, Loop, Nested
from hetsched.graph.op import Op
from hetsched.graph.spec import Sequence as SequenceSpec
from hetsched.graph.spec import Spec
from hetsched.machine import HOST, Device, Machine
from hetsched.timeline import After, Lane, Launch, Replica, Span, Timeline

SECONDS = 1e-5


def plain_plan(graph: Graph, machine: Machine, *, seed: int = 0, slots: int = 2, loop: Loop | None = None) -> Timeline:
    """Every task on a random lane of the machine's host device, one after the other; no bytes are shared except by views.

    In the plan of a loop's body every value has a ring of `slots` (at least 2: old and new state side by side) and the period is the length of a
    turn (no overlap is predicted; what the arcs allow still overlaps).
    """
    rng = random.Random(seed)
    device = next(d for d in machine.devices if d.memory == HOST)
    spans: list[Span] = []
    offsets: dict[Replica, int] = {}
    rings: dict[Replica, int] = {}
    workspaces: dict[int, tuple[str, int, int]] = {}
    loops: dict[int, Timeline] = {}
    size, at = 0, 0.0
    outputs = set(graph.outputs.values()) if loop is None else set()
    carried = {graph.inputs[a]: graph.outputs[b] for a, b in loop.carried} if loop is not None else {}
    for task, op in enumerate(graph.task_ops):
        reads = tuple(Replica(v, 0, HOST) for v in graph.reads(task))
        writes = tuple(Replica(v, 0, HOST) for v in graph.writes(task))
        seconds = SECONDS
        nbytes: int | None
        if isinstance(op, Nested):
            if isinstance(op, Loop):
                body = loops[task] = plain_plan(op.body, machine, seed=rng.randrange(1 << 30), slots=slots, loop=op)
            else:
                assert isinstance(op, If)
                first, other = (replace(plain_plan(part, machine, seed=rng.randrange(1 << 30)), branch=op) for part in op.graphs)
                body = loops[task] = replace(first, otherwise=other)
            seconds = max(*(inner.makespan for inner in body.alternatives), SECONDS, SECONDS)
            lanes = tuple(Lane(device.id, i) for i in range(device.lanes))
        else:
            lanes = (_lane(rng, device, op),)
            if op.workspace is not None:
                nbytes = op.workspace([graph.spec(r.value) for r in reads], [graph.spec(r.value) for r in writes], graph.task_attributes[task])
                if nbytes:
                    workspaces[task] = (HOST, size, nbytes)
                    size += _round(nbytes)
        for replica in writes:
            if isinstance(op, Op) and op.view:
                continue
            nbytes = _nbytes(graph, replica.value)
            if nbytes is None or (replica.value in outputs):
                continue
            offsets[replica] = size
            if loop is not None:
                rings[replica] = slots
            size += _round(nbytes) * (slots if loop is not None else 1)
        spans.append(Span(lanes, Launch(task, 0, reads, writes, len(lanes)), at, at + seconds))
        at += seconds
    after = _ring_edges(graph, spans, carried, slots, loop, workspaces) if loop is not None else ()
    return Timeline(
        graph, machine, tuple(spans), after=tuple(after), offsets=offsets, arenas={HOST: size}, workspaces=workspaces, loops=loops, policy="plain",
        loop=loop, turns=loop.turns if loop is not None else 1, period=at or SECONDS if loop is not None else None, rings=rings,
    )  # fmt: skip


def _lane(rng: random.Random, device: Device, op: Op) -> Lane:
    if op.waits and device.io_lanes:
        return Lane(device.id, rng.randrange(device.io_lanes), "io")
    return Lane(device.id, rng.randrange(device.lanes))


def _round(nbytes: int) -> int:
    return -(-nbytes // 64) * 64


def _nbytes(graph: Graph, value: int) -> int | None:
    spec = graph.spec(value)
    if isinstance(spec, SequenceSpec):
        if not isinstance(spec.element, Spec) or spec.length is None or spec.element.is_bounded:
            return None
        return spec.array.nbytes
    return spec.nbytes if isinstance(spec, Spec) else None


def _ring_edges(
    graph: Graph, spans: Sequence[Span], carried: dict[int, int], slots: int, loop: Loop, workspaces: dict[int, tuple[str, int, int]]
) -> list[After]:
    """Readers of the value of turn i before the writer of turn i + slots; for a task of every k turns, before that of k * slots turns on."""
    every = loop.seldom
    root = list(range(len(graph.value_specs)))
    for task, op in enumerate(graph.task_ops):
        if isinstance(op, Op) and op.view:
            root[graph.writes(task)[0]] = root[graph.reads(task)[0]]
    after = []
    for reader, span in enumerate(spans):
        command = span.command
        assert isinstance(command, Launch)
        for replica in command.reads:
            value = root[replica.value]
            ahead = 0
            if value in carried:
                value, ahead = root[carried[value]], 1
            writer = int(graph.value_task[value])
            if writer >= 0:
                k = every.get(writer, 1)
                after.append(After(reader, writer, k * (slots - 1) + 1 - ahead))
        after += [After(reader, reader, slots)]
        if command.task in workspaces:
            after.append(After(reader, reader, 1))
    return [a for a in dict.fromkeys(after) if not (a.before == a.later and a.turns == 0)]
