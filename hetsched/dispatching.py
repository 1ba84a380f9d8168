"""What the executor adds to a step, to a turn and to a loop, by running tasks of next to nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from hetsched.check.spans import can_run
from hetsched.executors import cpu, live
from hetsched.graph.graph import Graph, Loop
from hetsched.machine import Device, Machine
from hetsched.placement import plan_graph
from hetsched.timeline import Timeline

# Longer than any task that executors join to others.
LONG = 1e-2


def dispatching(device: Device, machine: Machine, tasks: int = 48, turns: int = 300, repeats: int = 3, until: float = math.inf) -> dict[str, Any]:
    """What the executor adds on a device, by running tasks of next to nothing: `Calibration`'s `dispatch_seconds`, `turn_seconds`, `loop_seconds` and

    `loop_task_seconds`; empty where the device cannot run them. until: when to leave out what is left (`perf_counter`).
    """
    graphs = [_steps(tasks), _turns(turns, 2), _turns(turns, 12)]
    if not can_run(graphs[0], 0, device):
        return {}
    step, turn, more = 0.0, 0.0, [0.0, 0.0]
    for i, graph in enumerate(graphs):
        if perf_counter() > until:
            break
        plan = plan_graph(graph, machine, policy="one_device", only=device.id)
        if i == 0:  # tasks that are taken to be long are not joined to one step
            plan = replace(plan, spans=tuple(s._replace(start=k * LONG, finish=(k + 1) * LONG) for k, s in enumerate(plan.spans)))
        given = {v: np.ones(graph.spec(v).bounds, np.float32) for v in graph.inputs.values()}  # type: ignore[union-attr]
        traces = [(live.run_plan(plan, given) if live.drives(plan) else cpu.run_plan(plan, given)).trace for _ in range(1 + repeats)][1:]
        if i == 0:
            step = max(median(_gap(sorted([s.start, s.finish] for s in t.launches)) for t in traces), 0.0)
            continue
        rows = [_turn_rows(t) for t in traces]
        if i == 1:
            turn = max(median(map(_gap, rows)), 0.0)
        more[i - 1] = max(median(t.makespan - turns * _period(r) for t, r in zip(traces, rows, strict=True)), 0.0)
    few, many = more
    each = max(many - few, 0.0) / 10
    return {"dispatch_seconds": step, "turn_seconds": turn, "loop_seconds": max(few - 2 * each, 0.0), "loop_task_seconds": each}


def _turn_rows(trace: Timeline) -> list[list[float]]:
    """[start, finish] of each turn that the trace of a graph with one loop has kept."""
    ends: dict[int, list[float]] = {}
    for span in next(iter(trace.loops.values())).spans:
        at = ends.setdefault(span.command.turn, [span.start, span.finish])  # type: ignore[union-attr]
        at[0], at[1] = min(at[0], span.start), max(at[1], span.finish)
    return [ends[k] for k in sorted(ends)]


def _gap(rows: list[list[float]]) -> float:
    """Seconds from the end of one to the start of the next, on the median."""
    return float(np.median([b[0] - a[1] for a, b in pairwise(rows)]))


def _period(rows: list[list[float]]) -> float:
    """Seconds from end to end of the last half, on the median."""
    return float(np.median([b[1] - a[1] for a, b in pairwise(rows[len(rows) // 2 :])]))


def _steps(n: int) -> Graph:
    """Tasks in a row that are not joined to one step: each reads the last two."""
    b = Graph.build("dispatching")
    x, y = b.input("x", (8,)), b.input("y", (8,))
    for _ in range(n):
        x, y = y, b.op("tensor.add", x, y)
    return b.output(y).freeze()


def _turns(n: int, tasks: int) -> Graph:
    """A loop whose turn is one step of a few tasks."""
    body = Graph.build("turn")
    x = body.input("x", (8,))
    y = body.op("tensor.add", x, x)
    for _ in range(tasks - 1):
        y = body.op("tensor.add", y, x)
    body.output(y, name="y")
    b = Graph.build("turning")
    loop = Loop(body.freeze(), n, carried=(("x", "y"),), name="turns")
    (last,) = b.loop(loop, b.input("x", (8,)))
    return b.output(last).freeze()
