"""What a crew has to know of a plan before it begins: how many threads it can keep busy, the programs of its loops, how much there is to do."""

from __future__ import annotations

from hetsched.executors.program import Program, compile_plan, every_of
from hetsched.graph.graph import Loop
from hetsched.timeline import Free, Launch, Timeline


def lanes_needed(plan: Timeline, host: str) -> dict[str, int]:
    """Threads that the plan can keep busy, by kind: the lanes it names, loops included."""
    found: dict[str, set[int]] = {"compute": {0}, "io": set()}
    for span in plan.spans:
        command = span.command
        if isinstance(command, Launch) and isinstance(plan.graph.task_ops[command.task], Loop):
            continue  # its body says which lanes it uses
        for lane in span.lanes:
            if lane.owner == host:
                found[lane.kind].add(lane.number)
    need = {kind: max(numbers, default=-1) + 1 for kind, numbers in found.items()}
    for body in plan.loops.values():
        for kind, count in lanes_needed(body, host).items():
            need[kind] = max(need[kind], count)
    return need


def programs_of(plan: Timeline) -> dict[int, Program]:
    """id of the plan of each loop's body, loops in loops too -> its program: made before the clock starts."""
    out: dict[int, Program] = {}
    for body in plan.loops.values():
        out[id(body)] = compile_plan(body)
        out |= programs_of(body)
    return out


def launches_of(plan: Timeline) -> int:
    """Spans of a run, loops unrolled: for the progress."""
    every = every_of(plan.loop)
    turns = plan.loop.turns if plan.loop is not None else 1
    total = sum(not isinstance(span.command, Free) for span in plan.spans) * turns
    for task, body in plan.loops.items():
        total += launches_of(body) * -(-turns // every.get(task, 1))
    return total
