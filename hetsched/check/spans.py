"""Rules that a span keeps or breaks whatever stands beside it, and that make a plan fit to be looked at more closely."""

from __future__ import annotations

import math

from hetsched.check.sheet import Sheet
from hetsched.graph.graph import Graph, If, Nested, Where
from hetsched.graph.spec import Spec
from hetsched.machine import HOST, Device
from hetsched.timeline import Copy, Lane, Launch, Replica, Span, Timeline


def shape(sheet: Sheet) -> bool:
    """Numbers in range, loops and periods as declared; False where nothing else could be checked."""
    plan, graph = sheet.plan, sheet.plan.graph
    n_tasks, n_values = len(graph), len(graph.value_specs)
    for i, span in enumerate((*plan.spans, *plan.prologue, *plan.epilogue)):
        command = span.command
        absent = [r.value for r in replicas_of(span) if not 0 <= r.value < n_values]
        if isinstance(command, Launch) and not 0 <= command.task < n_tasks:
            sheet.say("task-once", i, f"span {i} launches task number {command.task}; the graph has {n_tasks} tasks")
        if absent:
            sheet.say("written-once", i, f"span {i} names value {absent[0]}; the graph has {n_values} values")
        if not (math.isfinite(span.start) and math.isfinite(span.finish)):
            sheet.say("time", i, f"span {i} goes from {span.start} to {span.finish}; times are finite")
    for edge in plan.after:
        if not (0 <= edge.before < len(plan.spans) and 0 <= edge.later < len(plan.spans)):
            sheet.say("order", edge, f"reuse edge {edge} names a span that is not among the {len(plan.spans)}")
        elif edge.turns != 0 and plan.loop is None:
            sheet.say("order", edge, f"reuse edge {edge} spans turns, but this is not the plan of a loop's body")
    if plan.loop is None:
        for what, given in (("period", plan.period), ("prologue", plan.prologue), ("epilogue", plan.epilogue), ("rings", plan.rings)):
            if given:
                sheet.say("loop", what, f"only the plan of a loop's body has {what}, and `loop` is not set")
        if plan.turns != 1:
            sheet.say("loop", "turns", f"a straight plan has 1 turn, got {plan.turns}")
    elif plan.turns > 1 and (plan.period is None or not 0 < plan.period < math.inf):
        sheet.say("time", "period", f"a body of {plan.turns} turns needs a period above 0, got {plan.period}")
    if plan.loop is not None and (plan.graph is not plan.loop.body or plan.turns != plan.loop.turns):
        sheet.say(
            "loop",
            "body",
            f"the plan is for {plan.turns} turns of {plan.graph!r}, the loop {plan.loop!r} has {plan.loop.turns} of {plan.loop.body!r}",
        )
    if any(r.turn != 0 for span in plan.spans for r in replicas_of(span)) or any(r.turn != 0 for r in plan.offsets):
        sheet.say("loop", "turn", "a replica of another turn than 0 is named; a plan has the spans of turn 0")
    for span in (*plan.spans, *plan.prologue, *plan.epilogue):
        for replica in replicas_of(span):
            if replica.generation < 0 or (replica.generation and plan.loop is not None):
                where = "the plan of a body evicts nothing" if plan.loop is not None else "generations count from 0"
                sheet.say("loop", replica, f"{sheet.value(replica.value)} in {replica.node} is of generation {replica.generation}; {where}")
    for replica, slots in plan.rings.items():
        if slots < 1:
            sheet.say("loop", replica, f"the ring of {sheet.value(replica.value)} in {replica.node} has {slots} slots; it needs at least 1")
    for task, op in enumerate(graph.task_ops):
        if isinstance(op, Nested):
            body = plan.loops.get(task)
            if isinstance(op, If):
                _branches(sheet, task, op, body)
            elif body is None:
                sheet.say("loop", task, f"loop {graph.task_names[task]!r} has no plan of its body; add it to `loops`")
            elif body.loop is not op:
                sheet.say("loop", task, f"loop {graph.task_names[task]!r}: the plan of its body is one of {body.loop!r}")
    for task in plan.loops:
        if not (0 <= task < n_tasks and isinstance(graph.task_ops[task], Nested)):
            sheet.say("loop", task, f"`loops` has a plan for task number {task}, which is no loop and no if")
    return not sheet.found


def _branches(sheet: Sheet, task: int, op: If, body: Timeline | None) -> None:
    """An if has a straight plan of each of its branches."""
    name = sheet.plan.graph.task_names[task]
    plans = [] if body is None else [body] if body.otherwise is None else [body, body.otherwise]
    if len(plans) != 2:
        sheet.say("loop", task, f"if {name!r} needs a plan of each branch in `loops`, it has {len(plans)}; add the other as `otherwise` of the first")
    for plan, graph, word in zip(plans, op.graphs, ("then", "otherwise"), strict=False):
        if plan.branch is not op or plan.graph is not graph:
            sheet.say("loop", (task, word), f"if {name!r}: the plan of branch `{word}` is one of {plan.graph!r} for {plan.branch!r}")
        elif plan.loop is not None or plan.period is not None or plan.turns != 1 or plan.rings or plan.prologue or plan.epilogue:
            sheet.say("loop", (task, word), f"if {name!r}: the plan of branch `{word}` is one of turns; a branch runs once, by a straight plan")
    if len(plans) == 2 and plans[1].otherwise is not None:
        sheet.say("loop", (task, "third"), f"if {name!r} has plans of more than two branches")


def each(sheet: Sheet) -> None:
    """Rules that a span keeps or breaks whatever stands beside it."""
    plan = sheet.plan
    sheet.tolerance = 1e-12 + 1e-9 * max((abs(s.finish) for s in plan.spans), default=0.0)
    launches: dict[int, Span] = {}
    for i, span in enumerate(plan.spans):
        command = span.command
        if span.start < -sheet.tolerance or span.finish < span.start:
            sheet.say(
                "time", i, f"{sheet.title(span)} goes from {span.start:.9g} to {span.finish:.9g} s; it cannot end before it starts, or start before 0"
            )
        if isinstance(command, Launch):
            if command.task in launches:
                one = launches[command.task]
                sheet.say("task-once", i, f"{sheet.title(span)} at {span.start:.9g} s: the task is launched already at {one.start:.9g} s")
            launches[command.task] = span
            _launch(sheet, i, span, command)
        elif isinstance(command, Copy):
            _copy(sheet, i, span, command)
        elif span.lanes or span.finish != span.start:
            sheet.say("free", i, f"{sheet.title(span)} from {span.start:.9g} to {span.finish:.9g} s: a free holds no lane and takes no time")
    for name, part in (("prologue", plan.prologue), ("epilogue", plan.epilogue)):
        for i, span in enumerate(part):
            if isinstance(span.command, Copy):
                _copy(sheet, (name, i), span, span.command)
            else:
                sheet.say("copy", (name, i), f"the {name} holds copies only, not the {sheet.title(span)}")
    for task, task_name in enumerate(plan.graph.task_names):
        if task not in launches:
            sheet.say("task-once", task, f"task {task_name!r} is never launched")
    for task, where in plan.graph.where.items():
        other = plan.graph.task_index.get(where.same_as or "", -1)
        here, there = sheet.device_of.get(task), sheet.device_of.get(other)
        if here is not None and there is not None and here != there:
            sheet.say(
                "device", (task, other), f"task {plan.graph.task_names[task]!r} is on {here}, but wants the device of {where.same_as!r}, {there}"
            )


def _launch(sheet: Sheet, i: int, span: Span, command: Launch) -> None:
    graph, title = sheet.plan.graph, sheet.title(span)
    op = graph.task_ops[command.task]
    for word, given, wanted in (("reads", command.reads, graph.reads(command.task)), ("writes", command.writes, tuple(graph.writes(command.task)))):
        if tuple(r.value for r in given) != wanted:
            names = [sheet.value(r.value) for r in given], [sheet.value(v) for v in wanted]
            sheet.say("task-once", (i, word), f"{title} {word} [{', '.join(names[0])}], the task's are [{', '.join(names[1])}]")
    for replica in (*command.reads, *command.writes):
        if replica.node != HOST and not isinstance(graph.spec(replica.value), Spec):
            sheet.say(
                "memory-node",
                (i, replica),
                f"{title}: {sheet.value(replica.value)} is {graph.spec(replica.value)!r} and lives on the host, not in {replica.node}",
            )
    for replica in command.writes:
        if replica.generation:
            text = f"{title} writes generation {replica.generation} of {sheet.value(replica.value)}; only a copy brings in again what was evicted"
            sheet.say("written-once", (i, replica), text)
    if isinstance(op, Nested):
        _loop_launch(sheet, i, span, command)
        return
    device = _device(sheet, i, span)
    if device is None:
        sheet.say("lane", (i, "none"), f"{title} must hold lanes of one device, got [{', '.join(map(str, span.lanes))}]")
        return
    sheet.device_of[command.task] = device.id
    kinds = {lane.kind for lane in span.lanes}
    if kinds == {"io"}:
        if not op.waits:
            sheet.say("device", (i, "io"), f"{title}: io lanes are for ops that wait; {op.name} computes")
        if command.width != 1:
            sheet.say("lane", (i, "width"), f"{title}: width {command.width} on an io lane; it must be 1")
    elif command.width != len(span.lanes) or (command.width != 1 and command.width not in device.widths):
        offered = ", ".join(map(str, device.widths))
        sheet.say("lane", (i, "width"), f"{title} holds {len(span.lanes)} lanes for a width of {command.width}; {device.id} offers widths {offered}")
    if not op.view and op.kernel_for(device, [graph.spec(v) for v in graph.reads(command.task)]) is None:
        has, speaks = ", ".join(op.kernels) or "none", ", ".join(device.languages)
        sheet.say("device", (i, "kernel"), f"{title}: {op.name} has no kernel for {device.id} (it has {has}; the device runs {speaks})")
    wrong = None if op.view else _forbidden(device, graph.where.get(command.task))
    if wrong and graph.where[command.task].of_parts:
        able = [d for d in sheet.plan.machine.devices if can_run(graph, command.task, d)]
        wrong = None if all(_forbidden(d, graph.where[command.task]) for d in able) else wrong
    if wrong:
        sheet.say("device", (i, "where"), f"{title}: {wrong}")
    for word, replicas in (("reads", command.reads), ("writes", command.writes)):
        for replica in replicas:
            if replica.node != device.memory:
                text = f"{title} {word} {sheet.value(replica.value)} in {replica.node}; the memory of {device.id} is {device.memory}"
                sheet.say("memory-node", (i, word, replica), text)


def _loop_launch(sheet: Sheet, i: int, span: Span, command: Launch) -> None:
    plan, title = sheet.plan, sheet.title(span)
    body = plan.loops[command.task]
    needed = {lane for plan in body.alternatives for part in (plan.spans, plan.prologue, plan.epilogue) for s in part for lane in s.lanes}
    missing = needed - set(span.lanes)
    if missing:
        sheet.say("lane", (i, "loop"), f"{title} does not hold {', '.join(sorted(map(str, missing)))}, which its body uses")
    if len(set(span.lanes)) != len(span.lanes) or not all(_exists(sheet, lane) for lane in span.lanes):
        sheet.say("lane", (i, "exist"), f"{title}: a lane is named twice or the machine has no such lane")
    for word, replicas in (("reads", command.reads), ("writes", command.writes)):
        for replica in replicas:
            if replica.node != HOST:
                sheet.say(
                    "memory-node",
                    (i, word, replica),
                    f"{title} {word} {sheet.value(replica.value)} in {replica.node}; a loop or an if starts and ends on the host",
                )


def _copy(sheet: Sheet, i: object, span: Span, command: Copy) -> None:
    title, src, dst = sheet.title(span), command.src, command.dst
    if not src.value == dst.value == command.value:
        names = [sheet.value(v) for v in (command.value, src.value, dst.value)]
        if sheet.plan.loop is None or sheet.carried.get(dst.value) != src.value or command.value not in (src.value, dst.value):
            sheet.say("copy", (i, "value"), f"{title} names three values where one is copied: {', '.join(names)}")
    if dst.node == src.node:
        sheet.say("copy", (i, "node"), f"{title} stays in {src.node}")
        return
    link = next((x for x in sheet.plan.machine.links if (x.src, x.dst) == (src.node, dst.node)), None)
    if link is None:
        sheet.say("copy", (i, "link"), f"{title}: the machine has no link from {src.node} to {dst.node}")
        return
    spec = sheet.plan.graph.spec(command.value)
    if not isinstance(spec, Spec):
        sheet.say("memory-node", (i, "opaque"), f"{title}: the value is {spec!r} and lives on the host")
    if len(span.lanes) != 1 or span.lanes[0].owner != link.id or not _exists(sheet, span.lanes[0]):
        sheet.say("lane", (i, "copy"), f"{title} must hold one of the {max(link.engines, 1)} lanes of link {link.id}")
    if span.finish <= span.start and link.seconds(spec.nbytes) > 0:
        sheet.say("time", (i, "copy"), f"{title} takes no time; {spec.nbytes} bytes over {link.id} take {link.seconds(spec.nbytes):.3g} s")


def _device(sheet: Sheet, i: int, span: Span) -> Device | None:
    """The device whose lanes a launch holds, None where there is not one such device."""
    owners, kinds = {lane.owner for lane in span.lanes}, {lane.kind for lane in span.lanes}
    device = next((d for d in sheet.plan.machine.devices if owners == {d.id}), None)
    if device is None or len(kinds) != 1 or "copy" in kinds:
        return None
    if len(set(span.lanes)) != len(span.lanes) or not all(_exists(sheet, lane) for lane in span.lanes):
        sheet.say(
            "lane", (i, "exist"), f"{sheet.title(span)}: {device.id} has {device.lanes} lanes and {device.io_lanes} io lanes, each to be held once"
        )
    return device


def _exists(sheet: Sheet, lane: Lane) -> bool:
    if lane.kind == "copy":
        return any(x.id == lane.owner and 0 <= lane.number < max(x.engines, 1) for x in sheet.plan.machine.links)
    have = {"compute": "lanes", "io": "io_lanes"}.get(lane.kind)
    return have is not None and any(d.id == lane.owner and 0 <= lane.number < getattr(d, have) for d in sheet.plan.machine.devices)


def can_run(graph: Graph, task: int, device: Device) -> bool:
    """True if `device` has a kernel for the task (a view needs none) and its memory can hold the task's values."""
    op = graph.task_ops[task]
    if isinstance(op, Nested):
        return False
    reads = [graph.value_specs[v] for v in graph.reads(task)]
    if device.memory != HOST and not all(isinstance(s, Spec) for s in (*reads, *(graph.value_specs[v] for v in graph.writes(task)))):
        return False
    return op.view or op.kernel_for(device, reads) is not None


def _forbidden(device: Device, where: Where | None) -> str | None:
    if where is None:
        return None
    if where.allow and not any(device.matches(p) for p in where.allow):
        return f"the task is to run on {' or '.join(where.allow)}, not on {device.id}"
    bad = [p for p in where.exclude if device.matches(p)]
    return f"the task must not run on {' or '.join(bad)}, and {device.id} is one" if bad else None


def replicas_of(span: Span) -> tuple[Replica, ...]:
    """Every replica that a span names."""
    command = span.command
    if isinstance(command, Launch):
        return (*command.reads, *command.writes)
    return (command.src, command.dst) if isinstance(command, Copy) else (command.replica,)
