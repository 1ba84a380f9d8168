"""What a crew has to know of a plan before it begins: how many threads it can keep busy, the programs of its loops, how much there is to do."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from hetsched.executors.kept import program_of
from hetsched.executors.program import Program, every_k, every_of
from hetsched.timeline import Free, Lane, Launch, Timeline


def lanes_needed(plan: Timeline, host: str) -> dict[str, int]:
    """Threads that the plan can keep busy, by kind: the lanes it names, loops included."""
    found: dict[str, set[int]] = {"compute": {0}, "io": set()}
    rows: Iterable[tuple[Lane, ...]] = plan.lane_sets
    if plan.loops:  # a loop's body says which lanes it uses
        rows = {id(s[0]): s[0] for s in plan.spans if not (type(s[1]) is Launch and s[1].task in plan.loops)}.values()
    for lane in {lane for lanes in rows for lane in lanes}:
        if lane.owner == host:
            found[lane.kind].add(lane.number)
    need = {kind: max(numbers, default=-1) + 1 for kind, numbers in found.items()}
    for _, body in plan.nested:
        for kind, count in lanes_needed(body, host).items():
            need[kind] = max(need[kind], count)
    return need


def programs_of(plan: Timeline) -> dict[int, Program]:
    """id of the plan of each loop's body and each branch, those in them too -> its program: made before the clock starts."""
    out: dict[int, Program] = {}
    for _, body in plan.nested:
        out[id(body)] = program_of(body)
        out |= programs_of(body)
    return out


def launches_of(plan: Timeline) -> int:
    """Launches and copies of a run, loops unrolled: for the progress."""
    every = every_of(plan.loop)
    turns = plan.loop.turns if plan.loop is not None else 1
    commands = [span for span in plan.spans if not isinstance(span.command, Free)]
    total = sum(-(-turns // every_k(plan, span, every)) for span in commands) if every else len(commands) * turns
    for task, body in plan.loops.items():
        total += max(map(launches_of, body.alternatives)) * -(-turns // every.get(task, 1))
    return total


def in_order(program: Program) -> list[int]:
    """The steps of a plan or of a loop's turn, each behind those of the same turn that it waits for; of those ready the one that is planned first."""
    steps = program.steps
    after: list[list[int]] = [[] for _ in steps]
    waits = [0] * len(steps)
    for before, later, turns in dict.fromkeys(program.arcs):
        if turns == 0:
            after[before].append(later)
            waits[later] += 1
    ready = [(steps[s].start, s) for s in range(len(steps)) if not waits[s]]
    heapq.heapify(ready)
    out: list[int] = []
    while ready:
        _, step = heapq.heappop(ready)
        out.append(step)
        for later in after[step]:
            waits[later] -= 1
            if not waits[later]:
                heapq.heappush(ready, (steps[later].start, later))
    return out
