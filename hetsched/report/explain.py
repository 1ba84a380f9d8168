"""Why a task runs where and when it does: what it waited for, and what it would take on each device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hetsched.errors import CommandLineError, did_you_mean
from hetsched.graph.graph import If, Loop, Nested
from hetsched.report.text import bytes_text, plural, seconds_text, table
from hetsched.timeline import Copy, Launch, Replica, Span, Timeline

if TYPE_CHECKING:
    from hetsched.placement.costs import CostModel, Estimate

# Spans that end this close before a start are what it waited for.
CLOSE = 1e-9


def launches(plan: Timeline, prefix: str = "") -> Iterator[tuple[str, Timeline, int]]:
    """(path of the task, the timeline that holds it, number of its span) of every launch, tasks of loops by `loop/task`, of ifs by `if/then/task`."""
    for i, span in enumerate(plan.spans):
        if isinstance(span.command, Launch):
            name = prefix + plan.graph.task_names[span.command.task]
            yield name, plan, i
            body = plan.loops.get(span.command.task)
            for inner in body.alternatives if body is not None else ():
                yield from launches(inner, f"{name}/{inner.prefix}")


def find(plan: Timeline, name: str) -> list[tuple[str, Timeline, int]]:
    """The launches that `name` means: a path, a group (the beginning of paths), or the end of a path.

    Raises `CommandLineError` with the nearest where there is none.
    """
    every = list(launches(plan))
    found = [x for x in every if x[0] == name] or [x for x in every if x[0].startswith(name + "/")] or [x for x in every if x[0].endswith("/" + name)]
    if not found:
        near = did_you_mean(name, [x[0] for x in every]).partition(" known:")[0].rstrip(";")
        raise CommandLineError(f"the plan has no task {name!r}{near}; `hetsched plan` lists {plural(len(every), 'task')}")
    return found


def group_text(name: str, found: list[tuple[str, Timeline, int]]) -> str:
    """The tasks of a large group, a line each: where, when and how long."""
    rows = []
    for path, plan, number in found:
        span = plan.spans[number]
        of_turn = " of a turn" if plan.loop else ""
        rows.append([path, ", ".join(map(str, span.lanes)), seconds_text(span.start) + of_turn, seconds_text(span.finish - span.start)])
    head = f"{name} stands for {plural(len(found), 'task')}; name one of them to be told why it is where it is"
    return "\n".join([head, *table(["task", "on", "from", "takes"], rows, right=(2, 3))])


def explain(plan: Timeline, name: str, costs: CostModel | None = None) -> str:
    """The text for one task, or for every task of a group (`train`). `costs`: what the plan was made with, to tell of the other devices."""
    return "\n\n".join("\n".join(_explain(path, timeline, i, costs)) for path, timeline, i in find(plan, name))


def _explain(path: str, plan: Timeline, number: int, costs: CostModel | None) -> list[str]:
    span = plan.spans[number]
    command = span.command
    assert isinstance(command, Launch)
    op = plan.graph.task_ops[command.task]
    kind = f"loop of {plural(op.turns, 'turn')}" if isinstance(op, Loop) else "if" if isinstance(op, If) else op.name
    lanes = ", ".join(str(lane) for lane in span.lanes)
    lines = [f"{path}: {kind} on {lanes}, from {seconds_text(span.start)} to {seconds_text(span.finish)}" + (" of its turn" if plan.loop else "")]
    rows = [_arrival(plan, replica, span.start) for replica in dict.fromkeys(command.reads)]
    if rows:
        lines += [f"  {line}" for line in table(["reads", "bytes", "there", "by"], rows, right=(1, 2))]
    lines.append("  " + _reason(plan, number))
    if costs is not None and not isinstance(op, Nested):
        there = span.lanes[0].owner
        for device in plan.machine.devices:
            if op.kernel_for(device) is None and not op.view:
                lines.append(f"  {device.id}: has no kernel for {op.name}")
                continue
            width = command.width if device.id == there else 1
            chosen = " (chosen)" if device.id == there else ""
            lines.append(f"  {device.id}: {estimate_text(costs.launch(plan.graph, command.task, device, width))}, copies not counted{chosen}")
    return lines


def estimate_text(found: Estimate) -> str:
    """`1.2 ms +- 0.1 ms (3 runs) a launch`: the seconds, their standard deviation, and what they rest on."""
    return f"{seconds_text(found.seconds)} +- {seconds_text(found.spread)} ({found.source}) a launch"


def _arrival(plan: Timeline, replica: Replica, start: float) -> list[str]:
    name, nbytes = plan.graph.value_names[replica.value], bytes_text(int(plan.graph.value_nbytes[replica.value]))
    for span in plan.spans:
        command = span.command
        if isinstance(command, Copy) and command.dst == replica:
            return [name, nbytes, seconds_text(span.finish), f"copy from {command.src.node}"]
        if isinstance(command, Launch) and replica in command.writes:
            return [name, nbytes, seconds_text(span.finish), f"{plan.graph.task_names[command.task]} on {span.lanes[0].owner}"]
    what = "constant" if replica.value in plan.graph.constants else "input"
    return [name, nbytes, "0 s", what if plan.loop is None else f"{what} of the body"]


def _reason(plan: Timeline, number: int) -> str:
    """What ended when the span could start: data, a lane that was busy, or bytes that were in use."""
    span = plan.spans[number]
    if span.start <= CLOSE:
        return "starts at once: it waits for nothing"
    near = CLOSE + 1e-9 * plan.makespan
    before = [i for i, s in enumerate(plan.spans) if s.lanes and i != number and abs(s.finish - span.start) <= near]
    command = span.command
    assert isinstance(command, Launch)
    reads = set(command.reads)
    reuse = {edge.before for edge in plan.after if edge.later == number and edge.turns == 0}
    data = [i for i in before if reads & set(_writes(plan.spans[i]))]
    busy = [i for i in before if set(plan.spans[i].lanes) & set(span.lanes)]
    for found, text in (
        (data, "waited for its data: {}"),
        ([i for i in before if i in reuse], "waited for bytes that {} used"),
        (busy, "waited for its lane, busy with {}"),
    ):
        if found:
            return text.format(", ".join(_name(plan, plan.spans[i]) for i in found))
    last = max((s for s in plan.spans if reads & set(_writes(s))), key=lambda s: s.finish, default=None)
    if last is not None and not set(last.lanes) & set(span.lanes):
        crossing = max((d.crossing_seconds for d in plan.machine.devices if d.id == span.lanes[0].owner), default=0.0)
        if span.start - last.finish <= crossing + near:
            return f"waited for its data, handed over from another lane: {_name(plan, last)}"
    return "waited for a resource that devices share, or was put later by the policy"


def _writes(span: Span) -> tuple[Replica, ...]:
    command = span.command
    return command.writes if isinstance(command, Launch) else (command.dst,) if isinstance(command, Copy) else ()


def _name(plan: Timeline, span: Span) -> str:
    command = span.command
    if isinstance(command, Launch):
        return f"{plan.graph.task_names[command.task]} on {span.lanes[0].owner}"
    assert isinstance(command, Copy)
    return f"the copy of {plan.graph.value_names[command.value]} from {command.src.node} to {command.dst.node}"
