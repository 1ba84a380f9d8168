"""check(plan): proves that a plan may be run, or says every rule it breaks.

A straight plan is checked as it stands. The plan of a loop's body is checked as the straight plan of its first turns: turn i of a span starts i
periods after turn 0, so wrap-around on lanes, ring slots, carried state and `every` tasks need no rules of their own, and the real first and last
turns are seen too. The prologue is over before turn 0 starts, the epilogue starts after the last turn. As many turns are laid out as the pipeline
has stages, plus two rounds of the longest ring (or the loop's turns, if fewer).

What holds at run time is order, not the planned times. The order is: data edges; the graph's order-only edges; the plan's reuse edges; the
order of the spans on a lane of a stream device (`shares_lanes` False) or of a copy engine. Threads that share a device's tasks give no order.
Bytes are safe when the writer and every reader of what lies there come, by that order, before the writer of what lies there next. Only neighbours in
time of the same bytes are compared: the writer of the next comes after all users of the one before it, whose writer comes after all users of the one
before that, and so on. Paths are sought as sets of bits along one topological order, 4,096 sources at a time: 10,000 spans take about a second.

Times are compared with a tolerance of 1e-9 of the plan's length.
"""

from __future__ import annotations

from collections.abc import Mapping

from hetsched.check import memory, order, spans
from hetsched.check.sheet import Sheet, lay_out
from hetsched.errors import CommandLineError, PlanError
from hetsched.timeline import Timeline

RULES: Mapping[str, str] = {
    "time": "a span has finite times and ends no earlier than it starts; a copy takes time; a body that repeats has a period above 0",
    "task-once": "every task of the graph is launched exactly once a turn, with the inputs and outputs of the graph, in order",
    "device": "a launch is on one device that has a kernel for the task and that the task's constraints allow; waiting tasks alone use io lanes",
    "lane": "lanes exist, each held once; a launch of width w holds w lanes of its device, a loop those of its body, a copy one of its link",
    "overlap": "a lane runs one span at a time",
    "memory-node": "a launch reads and writes replicas in the memory of its device",
    "missing-copy": "what a span reads is there: written by a launch, brought by a copy, or an input or constant on the host",
    "written-once": "a replica is produced once a turn",
    "early-start": "a span starts when all it reads has arrived",
    "copy": "a copy brings one value from one memory node to another over the link between them",
    "order": "order-only edges of the graph, reuse edges of the plan and the stop value of a loop are kept in time",
    "resource": "shared resources are never taken above their capacity",
    "arena": "every replica has its place inside the arena of its memory node, and arenas fit their memory nodes",
    "alias": "a view lies inside what it views; an output written in place is one that the op declares",
    "reuse": "bytes are written again only when all users of what lay there have finished",
    "reuse-edge": "an order holds between all users of what lay in some bytes and the next writer, whatever the times",
    "free": "a replica is freed after its last use",
    "output": "outputs of the graph end on the host",
    "cycle": "data, order, reuse edges and lanes have no cycle",
    "loop": "the body of each loop has its plan, for the loop's graph and turns; rings have at least one slot",
}


def check(plan: Timeline) -> None:
    """Raise `PlanError` with every rule that `plan`, or the plan of a loop in it, breaks; `CommandLineError` where it is no plan."""
    if not isinstance(plan, Timeline):
        raise CommandLineError(f"check() takes a plan, got {type(plan).__name__}; hetsched.plan(graph) makes one")
    found = problems(plan)
    if found:
        raise PlanError(found)


def problems(plan: Timeline) -> list[str]:
    """Every broken rule, one sentence each: the rule's name (see `RULES`), the spans by task, turn and lane, the times seen."""
    sheet = Sheet(plan)
    if spans.shape(sheet):
        spans.each(sheet)
        lay_out(sheet)
        order.data(sheet)
        order.edges(sheet)
        order.lanes(sheet)
        order.resources(sheet)
        order.outputs(sheet)
        memory.places(sheet)
        sequence = order.topological(sheet)
        if sequence is not None:
            memory.reuse(sheet, sequence)
        memory.frees(sheet)
    inner = [
        f"in {f'branch `{body.prefix[:-1]}` of if' if body.branch is not None else 'the body of loop'} {plan.graph.task_names[t]!r}: {text}"
        for t, body in sorted(plan.nested, key=lambda row: row[0])
        for text in problems(body)
    ]
    return sheet.sentences() + inner
