"""Where tasks may run: what the graph says of a task, what the user says of all tasks, and what contradicts itself."""

from __future__ import annotations

from collections.abc import Mapping

from hetsched.errors import PlacementError
from hetsched.graph.graph import Graph, Where
from hetsched.graph.op import Op
from hetsched.machine import Machine

Devices = frozenset[int]
Conflict = tuple[str, tuple[str, ...]]  # a sentence, and the names of the tasks it is about


def allowed_devices(
    graph: Graph, machine: Machine, capable: Mapping[int, Devices], only: str | None = None
) -> tuple[dict[int, Devices], dict[int, tuple[int, ...]], list[str]]:
    """(task -> the devices it may use, where these are fewer than can run it; task -> tasks on the same device; notes on passed-over preferences).

    capable: task -> devices that can run it; loops are left out, their bodies are planned by themselves.
    Raises `PlacementError` with a line for every constraint that cannot hold.
    """
    problems: list[Conflict] = []
    notes: list[str] = []
    devices = machine.devices
    if only is not None and not _matching(machine, only):
        raise PlacementError(f"no device matches {only!r}; there are {_describe(machine, frozenset(range(len(devices))))}")
    allowed: dict[int, Devices] = {}
    excused = _excused(graph, machine, capable)
    for task, can in capable.items() if only is not None else ((t, capable[t]) for t in sorted(graph.where) if t in capable):
        where = graph.where.get(task)
        limited = can & _matching(machine, only) if only is not None else can
        limited = limited or can
        if task in excused:
            notes += [f"task {graph.task_names[task]!r} runs on {_describe(machine, limited)}: {excused[task]}"] if excused[task] else []
        elif where is not None:
            limited = _apply(graph, machine, task, where, can, limited, only, problems, notes)
        if limited != can:
            allowed[task] = limited
    groups = _groups(graph, capable, problems)
    for members in {id(g): g for g in groups.values()}.values():
        common = frozenset.intersection(*(allowed.get(t, capable[t]) for t in members))
        if not common:
            each = "; ".join(f"{graph.task_names[t]!r} may use {_describe(machine, allowed.get(t, capable[t]))}" for t in members)
            sentence = f"same_as: no device suits all of these tasks: {each}; relax `device` of one of them"
            problems.append((sentence, tuple(graph.task_names[t] for t in members)))
        for t in members:
            if common != capable[t]:
                allowed[t] = common
    if problems:
        raise PlacementError("", problems)
    return allowed, groups, notes


def _excused(graph: Graph, machine: Machine, capable: Mapping[int, Devices]) -> dict[int, str]:
    """Task -> why its constraint does not bind it, "" for views: what moves no bytes, and parts of a group of which its devices can run others."""
    out: dict[int, str] = {}
    meets: dict[int, list[int]] = {}  # a constraint of parts -> the tasks of its group that can do as it says
    lost: list[tuple[int, Where]] = []
    for task, where in graph.where.items():
        if where.same_as is not None:
            continue
        op, can = graph.task_ops[task], capable.get(task)
        if can is not None and not _wanted(machine, where) & can:
            if isinstance(op, Op) and op.view:
                out[task] = ""
            elif where.of_parts:
                lost.append((task, where))
        elif where.of_parts:  # bodies of loops are planned by themselves
            meets.setdefault(id(where), []).append(task)
    for task, where in lost:
        if id(where) in meets and _wanted(machine, where):
            asked = " or ".join(where.allow) if where.allow else f"none but {', '.join(where.exclude)}"
            out[task] = f"{asked}, which its group asks for, cannot run it"
    return out


def _wanted(machine: Machine, where: Where) -> Devices:
    """The devices of a machine that a constraint leaves."""
    allow = frozenset.union(*(_matching(machine, p) for p in where.allow)) if where.allow else frozenset(range(len(machine.devices)))
    return allow - frozenset(d for d in allow if any(machine.devices[d].matches(p) for p in where.exclude))


def _apply(
    graph: Graph,
    machine: Machine,
    task: int,
    where: Where,
    can: Devices,
    limited: Devices,
    only: str | None,
    problems: list[Conflict],
    notes: list[str],
) -> Devices:
    """The devices left by one task's own constraint; appends to `problems` and gives `can` where none is left."""
    name, op = graph.task_names[task], graph.task_ops[task].name
    excluded = frozenset(d for d in can if any(machine.devices[d].matches(p) for p in where.exclude))
    left = limited - excluded
    for i, pattern in enumerate(where.allow):
        matched = left & _matching(machine, pattern)
        if matched:
            if i:
                notes.append(f"task {name!r} runs on {_describe(machine, matched)}: its preference for {' or '.join(where.allow[:i])} cannot be met")
            return matched
    if not where.allow and left:
        return left
    asked = []
    if where.allow:
        asked.append(f"`device: {', '.join(where.allow)}`")
    if where.exclude:
        asked.append(f"`not: {', '.join(where.exclude)}`")
    way_out = ""
    if only is not None:
        asked.append(f"the limit to {only!r} given for the whole run")
        way_out = "; leave out that limit (-d), or this `device`"
    problems.append((f"task {name!r} ({op}): no device satisfies {' and '.join(asked)}; it can run on {_describe(machine, can)}{way_out}", (name,)))
    return can


def _groups(graph: Graph, capable: Mapping[int, Devices], problems: list[Conflict]) -> dict[int, tuple[int, ...]]:
    """Task -> all tasks that `same_as` ties to it, itself among them."""
    parent: dict[int, int] = {}

    def root(t: int) -> int:
        while parent.setdefault(t, t) != t:
            t = parent[t]
        return t

    for task, where in graph.where.items():
        op = graph.task_ops[task]
        if where.same_as is None or (isinstance(op, Op) and op.view):
            continue
        other = graph.task_index.get(where.same_as)
        if other is None or other not in capable or task not in capable:
            name = graph.task_names[task]
            sentence = f"task {name!r}: same_as {where.same_as!r} must tie one plain task to another, not a loop or a group of tasks"
            problems.append((sentence, (name,)))
            continue
        parent[root(task)] = root(other)
    members: dict[int, list[int]] = {}
    for t in sorted(parent):
        members.setdefault(root(t), []).append(t)
    return {t: group for group in map(tuple, members.values()) for t in group}


def _matching(machine: Machine, pattern: str) -> Devices:
    return frozenset(i for i, d in enumerate(machine.devices) if d.matches(pattern))


def _describe(machine: Machine, devices: Devices) -> str:
    return ", ".join(machine.devices[d].id for d in sorted(devices)) or "none"
