"""check compares only neighbours in time of the same bytes. Here every two tenants of the same bytes are compared, on plans that lost some edges."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import combinations

from hetsched.check import problems
from hetsched.graph.op import Op
from hetsched.placement import plan_graph
from hetsched.testing.graphs import random_graph, random_machine
from hetsched.timeline import Copy, Launch, Replica, Timeline


def comes_before(plan: Timeline) -> list[set[int]]:
    """Of each span, all spans before it by data, order, reuse and lanes of streams: closed by brute force."""
    spans, graph = plan.spans, plan.graph
    shared = {d.id for d in plan.machine.devices if d.shares_lanes} | {x.id for x in plan.machine.links if x.engines == 0}
    made, launch = {}, {}
    for i, span in enumerate(spans):
        if isinstance(span.command, Launch):
            launch[span.command.task] = i
            made.update(dict.fromkeys(span.command.writes, i))
        elif isinstance(span.command, Copy):
            made[span.command.dst] = i
    before: list[set[int]] = [set() for _ in spans]
    for i, span in enumerate(spans):
        command = span.command
        reads = command.reads if isinstance(command, Launch) else (command.src,) if isinstance(command, Copy) else ()
        before[i] |= {made[r] for r in reads if r in made}
    for a, b in [*((launch[a], launch[b]) for a, b in graph.after), *((e.before, e.later) for e in plan.after)]:
        before[b].add(a)
    for i, j in combinations(range(len(spans)), 2):
        for lane in set(spans[i].lanes) & set(spans[j].lanes):
            if lane.owner not in shared:
                a, b = sorted((i, j), key=lambda k: (spans[k].start, spans[k].finish, k))
                before[b].add(a)
    grown = True
    while grown:
        grown = False
        for row in before:
            more = set().union(*(before[a] for a in row)) - row
            grown = grown or bool(more)
            row |= more
    return before


def is_safe(plan: Timeline) -> bool:
    """True if of every two values that share bytes, all users of one come before the writer of the other."""
    graph, before = plan.graph, comes_before(plan)
    root: dict[Replica, Replica] = {}
    writer: dict[Replica, int] = {}
    users: dict[Replica, set[int]] = {}
    views = {t for t, op in enumerate(graph.task_ops) if isinstance(op, Op) and op.view}
    for i in sorted(range(len(plan.spans)), key=lambda i: (plan.spans[i].start, len(before[i]), i)):
        command = plan.spans[i].command
        if isinstance(command, Launch) and command.task in views:
            root[command.writes[0]] = root.get(command.reads[0], command.reads[0])
        elif isinstance(command, Launch):
            writer.update(dict.fromkeys(command.writes, i))
        elif isinstance(command, Copy):
            writer[command.dst] = i
    for i, span in enumerate(plan.spans):
        command = span.command
        if isinstance(command, Launch) and command.task not in views:
            touched = (*command.reads, *command.writes)
        else:
            touched = (command.src, command.dst) if isinstance(command, Copy) else ()
        for r in touched:
            users.setdefault(root.get(r, r), set()).add(i)
    placed = [(r.node, plan.offsets[r], int(graph.value_nbytes[r.value]), i, users[r]) for r, i in writer.items() if r in plan.offsets]
    for task, (node, low, nbytes) in plan.workspaces.items():
        i = next(i for i, s in enumerate(plan.spans) if isinstance(s.command, Launch) and s.command.task == task)
        placed.append((node, low, nbytes, i, {i}))
    for (node, low, n, i, uses), (other, start, m, j, reads) in combinations([p for p in placed if p[2]], 2):
        if node != other or low + n <= start or start + m <= low or i == j:
            continue
        if not (all(u == j or u in before[j] for u in uses) or all(u == i or u in before[i] for u in reads)):
            return False
    return True


def test_check_finds_missing_order_exactly_where_brute_force_does() -> None:
    seen: Counter[tuple[bool, str]] = Counter()
    for seed in range(60):
        rng = random.Random(seed)
        graph, _ = random_graph(seed, tasks=20, loops=False)
        plan = plan_graph(graph, random_machine(seed), policy=rng.choice(["heft", "earliest_finish", "round_robin"]))
        if problems(plan):
            continue
        for kept in (1.0, 0.7, 0.0):
            cut = replace(plan, after=tuple(e for e in plan.after if rng.random() < kept))
            found = {text.partition(":")[0] for text in problems(cut)}
            assert found <= {"reuse-edge"}
            assert is_safe(cut) == (not found), (seed, kept, found)
            seen[not found, "whole" if kept == 1 else "cut"] += 1
    assert min(seen[True, "whole"], seen[False, "cut"], seen[True, "cut"]) >= 10, seen
