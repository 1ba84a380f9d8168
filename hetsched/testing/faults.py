"""Ways to break a plan, for tests of `check` and of whoever relies on it.

`broken(plan)` takes a valid plan and gives plans that are wrong in one known way each, as far as the plan has the place for it (a plan without
copies cannot lose one). `FAULTS` says which rule of `hetsched.check.RULES` each fault breaks; other rules may break along with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice, pairwise
from typing import Any, NamedTuple, TypeAlias

from hetsched.graph.graph import Nested
from hetsched.graph.op import Op
from hetsched.machine import HOST, MemoryNode
from hetsched.timeline import After, Copy, Free, Lane, Launch, Replica, Span, Timeline

Break: TypeAlias = Callable[[Timeline], Iterator[Timeline]]


def broken(plan: Timeline, *, each: int = 1) -> Iterator[tuple[str, Timeline]]:
    """(name of the fault, broken plan); at most `each` plans a fault. Faults in the plans of loop bodies are named `loop/FAULT`."""
    for name, fault in FAULTS.items():
        for wrong in islice(fault.breaks(plan), each):
            yield name, wrong
    for task, body in plan.loops.items():
        for name, wrong in broken(body, each=each):
            yield f"loop/{name}", replace(plan, loops={**plan.loops, task: wrong})
        if body.otherwise is not None:
            for name, wrong in broken(body.otherwise, each=each):
                yield f"otherwise/{name}", replace(plan, loops={**plan.loops, task: replace(body, otherwise=wrong)})


def rule_of(name: str) -> str:
    """The rule that the fault `name` breaks."""
    return FAULTS[name.rpartition("/")[2]].rule


class Fault(NamedTuple):
    """A way to break a plan, and the rule that `check` must name."""

    rule: str
    breaks: Break


# Spans ----------------------------------------------------------------------------------------------------------------------------------


def _edited(plan: Timeline, i: int, **change: Any) -> Timeline:
    """The plan with span `i` changed: fields of the span, or of its command."""
    span = plan.spans[i]
    of_span = {k: v for k, v in change.items() if k in Span._fields}
    of_command = {k: v for k, v in change.items() if k not in Span._fields}
    command = span.command._replace(**of_command) if of_command else span.command
    span = span._replace(command=command, **of_span)
    return replace(plan, spans=(*plan.spans[:i], span, *plan.spans[i + 1 :]))


def _moved(plan: Timeline, i: int, start: float) -> Timeline:
    span = plan.spans[i]
    return _edited(plan, i, start=start, finish=start + span.finish - span.start)


def _without(plan: Timeline, gone: int) -> Timeline:
    after = [a._replace(before=a.before - (a.before > gone), later=a.later - (a.later > gone)) for a in plan.after if gone not in a[:2]]
    return replace(plan, spans=plan.spans[:gone] + plan.spans[gone + 1 :], after=tuple(after))


def _launches(plan: Timeline) -> list[tuple[int, Span, Launch]]:
    return [(i, s, s.command) for i, s in enumerate(plan.spans) if isinstance(s.command, Launch)]


def _copies(plan: Timeline) -> list[tuple[int, Span, Copy]]:
    return [(i, s, s.command) for i, s in enumerate(plan.spans) if isinstance(s.command, Copy)]


def _reads(span: Span) -> tuple[Replica, ...]:
    command = span.command
    return command.reads if isinstance(command, Launch) else (command.src,) if isinstance(command, Copy) else ()


def _writes(span: Span) -> tuple[Replica, ...]:
    command = span.command
    return command.writes if isinstance(command, Launch) else (command.dst,) if isinstance(command, Copy) else ()


def _data(plan: Timeline) -> list[tuple[int, int]]:
    """(maker, reader) of the same turn."""
    maker = {r: i for i, span in enumerate(plan.spans) for r in _writes(span)}
    return [(maker[r], i) for i, span in enumerate(plan.spans) for r in _reads(span) if r in maker]


def _task_missing(plan: Timeline) -> Iterator[Timeline]:
    return (_without(plan, i) for i, _, _ in _launches(plan))


def _task_twice(plan: Timeline) -> Iterator[Timeline]:
    end = max((s.finish for s in plan.spans), default=0.0)
    for _, span, _ in _launches(plan):
        yield replace(plan, spans=(*plan.spans, span._replace(start=end, finish=end + span.finish - span.start)))


def _input_forgotten(plan: Timeline) -> Iterator[Timeline]:
    return (_edited(plan, i, reads=c.reads[1:]) for i, _, c in _launches(plan) if c.reads)


def _dropped_copy(plan: Timeline) -> Iterator[Timeline]:
    read = {r for span in plan.spans for r in _reads(span)}
    return (_without(plan, i) for i, _, c in _copies(plan) if c.dst in read)


def _output_missing(plan: Timeline) -> Iterator[Timeline]:
    if plan.loop is None:
        yield from (_without(plan, i) for i, _, c in _copies(plan) if c.dst.node == HOST and c.value in plan.graph.outputs.values())
    elif plan.turns > 0:
        for i, span in enumerate(plan.epilogue):
            if not any(r in _writes(s) for s in plan.spans for r in _writes(span)):
                yield replace(plan, epilogue=plan.epilogue[:i] + plan.epilogue[i + 1 :])


def _early_start(plan: Timeline) -> Iterator[Timeline]:
    for maker, reader in _data(plan):
        made = plan.spans[maker]
        if made.finish - made.start > 1e-6 * made.finish and plan.turns > 0:
            yield _moved(plan, reader, (made.start + made.finish) / 2)


def _overlap(plan: Timeline) -> Iterator[Timeline]:
    contention_free = {x.id for x in plan.machine.links if x.engines == 0}
    # Where a span is longer than the period, turns rotate over the lanes of the device, and another one may be free.
    rotating = {lane.owner for s in plan.spans for lane in s.lanes if plan.period is not None and s.finish - s.start > plan.period}
    for lane, spans in plan.by_lane().items():
        busy = [s for s in spans if s.finish - s.start > 1e-6 * s.finish]
        if lane.owner not in contention_free | rotating and plan.turns > 0:
            yield from (_moved(plan, plan.spans.index(b), (a.start + a.finish) / 2) for a, b in pairwise(busy))


def _period_too_short(plan: Timeline) -> Iterator[Timeline]:
    if plan.period is None or (plan.loop is not None and plan.loop.every):
        return
    contention_free = {x.id for x in plan.machine.links if x.engines == 0}
    for lane, spans in plan.by_lane().items():
        longest = max(s.finish - s.start for s in spans)
        lanes = plan.machine.device(lane.owner).lanes if lane.kind == "compute" else 2
        if lane.owner not in contention_free and longest > 0 and plan.turns > lanes:
            yield replace(plan, period=longest / (2 * lanes))


def _no_such_lane(plan: Timeline) -> Iterator[Timeline]:
    return (_edited(plan, i, lanes=tuple(x._replace(number=x.number + 10_000) for x in s.lanes)) for i, s in enumerate(plan.spans) if s.lanes)


def _wrong_width(plan: Timeline) -> Iterator[Timeline]:
    return (_edited(plan, i, width=c.width + 1) for i, _, c in _launches(plan) if c.task not in plan.loops)


def _wrong_link(plan: Timeline) -> Iterator[Timeline]:
    return (_edited(plan, i, lanes=(Lane(f"{c.dst.node}->{c.src.node}", 0, "copy"),)) for i, _, c in _copies(plan))


def _loop_lane_not_held(plan: Timeline) -> Iterator[Timeline]:
    for i, span, c in _launches(plan):
        used = {lane for p in plan.loops[c.task].alternatives for s in p.spans for lane in s.lanes} if c.task in plan.loops else set()
        yield from (_edited(plan, i, lanes=tuple(x for x in span.lanes if x != lane)) for lane in sorted(used))


def _wrong_memory_node(plan: Timeline) -> Iterator[Timeline]:
    others = [m.name for m in plan.machine.memories]
    for i, _, c in _launches(plan):
        yield from (_edited(plan, i, writes=tuple(w._replace(node=n) for w in c.writes)) for n in others if c.writes and n != c.writes[0].node)


def _no_kernel(plan: Timeline) -> Iterator[Timeline]:
    for i, _, c in _launches(plan):
        op = plan.graph.task_ops[c.task]
        if isinstance(op, Op) and not op.view:
            mute = tuple(replace(d, languages=("none",)) if d.id == plan.spans[i].lanes[0].owner else d for d in plan.machine.devices)
            yield replace(plan, machine=replace(plan.machine, devices=mute))


def _written_twice(plan: Timeline) -> Iterator[Timeline]:
    end = max((s.finish for s in plan.spans), default=0.0)
    for _, span, _ in _copies(plan):
        yield replace(plan, spans=(*plan.spans, span._replace(start=end, finish=end + span.finish - span.start)))


def _copy_without_time(plan: Timeline) -> Iterator[Timeline]:
    return (_edited(plan, i, finish=s.start) for i, s, c in _copies(plan) if plan.machine.link(c.src.node, c.dst.node).latency_seconds > 0)


def _backward_time(plan: Timeline) -> Iterator[Timeline]:
    return (_edited(plan, i, start=s.finish + 1.0) for i, s, _ in _launches(plan))


def _mixed_copy(plan: Timeline) -> Iterator[Timeline]:
    values = range(len(plan.graph.value_specs))
    return (_edited(plan, i, src=c.src._replace(value=v)) for i, _, c in _copies(plan) for v in values if v != c.value)


def _freed_too_early(plan: Timeline) -> Iterator[Timeline]:
    for maker, reader in _data(plan):
        made, read = plan.spans[maker].finish, plan.spans[reader].finish
        if read > made + 1e-6 * read and plan.turns > 0:
            replica = next(r for r in _reads(plan.spans[reader]) if r in _writes(plan.spans[maker]))
            yield replace(plan, spans=(*plan.spans, Span((), Free(replica), made, made)))


# Order ----------------------------------------------------------------------------------------------------------------------------------


def _cycle(plan: Timeline) -> Iterator[Timeline]:
    return (replace(plan, after=(*plan.after, After(reader, maker))) for maker, reader in _data(plan) if plan.turns > 0)


def _order_only_edge_broken(plan: Timeline) -> Iterator[Timeline]:
    span_of = {c.task: i for i, _, c in _launches(plan)}
    for first, second in plan.graph.after:
        before = plan.spans[span_of[first]]
        if before.finish > before.start and plan.turns > 0:
            yield _moved(plan, span_of[second], (before.start + before.finish) / 2)


def _paths(plan: Timeline) -> list[int]:
    """Of every span of a straight plan, as a set of bits, the spans that come before it by data, order, reuse and stream lanes."""
    n = len(plan.spans)
    edges = [*_data(plan), *((a.before, a.later) for a in plan.after)]
    span_of = {c.task: i for i, _, c in _launches(plan)}
    edges += [(span_of[a], span_of[b]) for a, b in plan.graph.after]
    shared = {d.id for d in plan.machine.devices if d.shares_lanes}
    rows: dict[Lane, list[int]] = {}
    for i in sorted(range(n), key=lambda i: (plan.spans[i].start, plan.spans[i].finish, i)):
        for lane in plan.spans[i].lanes:
            rows.setdefault(lane, []).append(i)
    edges += [pair for lane, row in rows.items() if lane.owner not in shared for pair in pairwise(row)]
    ancestors = [1 << i for i in range(n)]
    changed = True
    while changed:
        changed = False
        for a, b in edges:
            if ancestors[a] & ~ancestors[b]:
                ancestors[b] |= ancestors[a]
                changed = True
    return ancestors


def _is_view(plan: Timeline, i: int) -> bool:
    command = plan.spans[i].command
    op = plan.graph.task_ops[command.task] if isinstance(command, Launch) else None
    return isinstance(op, Op) and op.view


def _viewed(plan: Timeline) -> set[Replica]:
    """Replicas that views show, and views."""
    return {r for i, _, c in _launches(plan) if _is_view(plan, i) for r in (*c.reads, *c.writes)}


def _together(plan: Timeline, *replicas: Replica) -> Timeline:
    """The plan with `replicas` (of one node) in the same bytes, behind all others of the arena."""
    node, sizes = replicas[0].node, [int(plan.graph.value_nbytes[r.value]) for r in replicas]
    low = -(-plan.arenas[node] // 64) * 64
    return replace(plan, offsets={**plan.offsets, **dict.fromkeys(replicas, low)}, arenas={**plan.arenas, node: low + max(sizes)})


def _pairs(plan: Timeline) -> Iterator[tuple[int, Replica, int, Replica]]:
    """Two spans of a straight plan, the one that starts first first, and a replica of each in the same arena."""
    if plan.loop is not None:
        return
    left_out = _viewed(plan)
    homes = [
        (i, r) for i, s in enumerate(plan.spans) for r in _writes(s) if r in plan.offsets and r not in left_out and plan.graph.value_nbytes[r.value]
    ]
    homes.sort(key=lambda x: plan.spans[x[0]].start)
    yield from ((i, a, j, b) for k, (i, a) in enumerate(homes) for j, b in homes[k + 1 :] if a.node == b.node and i != j)


def _last_use(plan: Timeline, replica: Replica) -> float:
    return max(s.finish for s in plan.spans if replica in _reads(s) or replica in _writes(s))


def _reuse_too_early(plan: Timeline) -> Iterator[Timeline]:
    for _, old, j, new in _pairs(plan):
        if old not in _reads(plan.spans[j]) and plan.spans[j].start < _last_use(plan, old) * (1 - 1e-6):
            yield _together(plan, old, new)


def _reuse_edge_missing(plan: Timeline) -> Iterator[Timeline]:
    ancestors = _paths(plan) if plan.loop is None else []
    for i, old, j, new in _pairs(plan):
        if not ancestors[j] >> i & 1 and plan.spans[j].start >= plan.spans[i].finish:
            yield _together(plan, old, new)


def _over_own_input(plan: Timeline) -> Iterator[Timeline]:
    left_out = _viewed(plan)
    for _, _, c in _launches(plan):
        op = plan.graph.task_ops[c.task]
        if isinstance(op, Nested) or op.inplace or plan.loop is not None:
            continue
        for new in c.writes:
            for old in c.reads:
                if {old, new} <= plan.offsets.keys() - left_out and plan.graph.value_nbytes[old.value] and plan.graph.value_nbytes[new.value]:
                    yield _together(plan, old, new)


def _view_elsewhere(plan: Timeline) -> Iterator[Timeline]:
    for i, _, c in _launches(plan):
        base, view = c.reads[0] if c.reads else None, c.writes[0] if c.writes else None
        if _is_view(plan, i) and base in plan.offsets and view is not None and plan.graph.value_nbytes[view.value] and plan.turns > 0:
            yield _together(plan, view)


def _ring_too_small(plan: Timeline) -> Iterator[Timeline]:
    if plan.period is None or plan.loop is None:
        return
    for maker, reader in _data(plan):
        for replica in _writes(plan.spans[maker]):
            slots = plan.rings.get(replica, 1)
            lives = plan.spans[reader].finish - plan.spans[maker].start
            k = plan.loop.seldom.get(int(plan.graph.value_task[replica.value]), 1)
            seen = replica in _reads(plan.spans[reader]) and not _is_view(plan, reader) and not _is_view(plan, maker) and replica in plan.offsets
            few = min(slots - 1, math.ceil(lives / plan.period - 1e-6) - 1)  # a ring may have more slots than the planned times want
            if seen and few >= 1 and k == 1 and lives > few * plan.period * (1 + 1e-6) and plan.turns > few + 1:
                yield replace(plan, rings={**plan.rings, replica: few})


def _ring_without_slots(plan: Timeline) -> Iterator[Timeline]:
    return (replace(plan, rings={**plan.rings, replica: 0}) for replica in plan.rings)


# Eviction -------------------------------------------------------------------------------------------------------------------------------


def _brought_again(plan: Timeline) -> Iterator[tuple[int, Replica, Replica]]:
    """(number of the copy, what it brings in again, what that was before it was evicted), where the bytes of both lie in the arena."""
    for i, _, c in _copies(plan):
        old = c.dst._replace(generation=c.dst.generation - 1)
        if c.dst.generation and plan.graph.value_nbytes[c.value] and {c.dst, old} <= plan.offsets.keys() - _viewed(plan):
            yield i, c.dst, old


def _next_writer(plan: Timeline, replica: Replica) -> int | None:
    """The span that first writes over the bytes of `replica` when its last user has finished."""
    until = _last_use(plan, replica)
    low, high = plan.offsets[replica], plan.offsets[replica] + int(plan.graph.value_nbytes[replica.value])
    found = [
        (span.start, i)
        for i, span in enumerate(plan.spans)
        for r in _writes(span)
        if r.node == replica.node and r in plan.offsets and not _is_view(plan, i) and span.start >= until
        if plan.offsets[r] < high and low < plan.offsets[r] + int(plan.graph.value_nbytes[r.value])
    ]
    return min(found)[1] if found else None


def _read_after_eviction(plan: Timeline) -> Iterator[Timeline]:
    for _, new, old in _brought_again(plan):
        writer = _next_writer(plan, old)
        for i, span, c in _launches(plan):
            if (
                new in c.reads
                and not _is_view(plan, i)
                and writer is not None
                and plan.spans[writer].start < span.finish * (1 - 1e-6)
                and writer != i
            ):
                yield _edited(plan, i, reads=tuple(old if r == new else r for r in c.reads))


def _not_brought_again(plan: Timeline) -> Iterator[Timeline]:
    read = {r for span in plan.spans for r in _reads(span)}
    return (_without(plan, i) for i, new, _ in _brought_again(plan) if new in read)


def _evicted_too_early(plan: Timeline) -> Iterator[Timeline]:
    for _, _, old in _brought_again(plan):
        writer = _next_writer(plan, old)
        users = [s for s in plan.spans if old in _reads(s) and s.finish > s.start * (1 + 1e-6)]
        if writer is None or not users:
            continue
        last = max(users, key=lambda s: s.finish)
        start, lanes = (last.start + last.finish) / 2, set(plan.spans[writer].lanes)
        before = [s.finish for i, s in enumerate(plan.spans) if i != writer and lanes & set(s.lanes) and s.start <= plan.spans[writer].start]
        if max(before, default=0.0) <= start:  # the order of the lane stays: it is the bytes alone that are taken too early
            yield _moved(plan, writer, start)


def _brought_over_others(plan: Timeline) -> Iterator[Timeline]:
    left_out = _viewed(plan)
    for i, new, _ in _brought_again(plan):
        start = plan.spans[i].start
        for j, span in enumerate(plan.spans):
            for r in _writes(span):
                sound = r.node == new.node and r in plan.offsets and r not in left_out and plan.graph.value_nbytes[r.value] and r.value != new.value
                if sound and j != i and span.start < start * (1 - 1e-6) and _last_use(plan, r) > start * (1 + 1e-6):
                    yield _together(plan, r, new)


def _generation_by_launch(plan: Timeline) -> Iterator[Timeline]:
    if plan.loop is None:
        yield from (_edited(plan, i, writes=tuple(w._replace(generation=1) for w in c.writes)) for i, _, c in _launches(plan) if c.writes)


def _generation_in_a_body(plan: Timeline) -> Iterator[Timeline]:
    if plan.loop is not None:
        yield from (_edited(plan, i, reads=tuple(r._replace(generation=1) for r in c.reads)) for i, _, c in _launches(plan) if c.reads)


# Capacity -------------------------------------------------------------------------------------------------------------------------------


def _over_capacity(plan: Timeline) -> Iterator[Timeline]:
    for node, nbytes in plan.arenas.items():
        if nbytes > 0:
            memories = tuple(MemoryNode(node, nbytes - 1) if m.name == node else m for m in plan.machine.memories)
            yield replace(plan, machine=replace(plan.machine, memories=memories))


def _outside_the_arena(plan: Timeline) -> Iterator[Timeline]:
    for replica in plan.offsets:
        if plan.graph.value_nbytes[replica.value]:
            yield replace(plan, offsets={**plan.offsets, replica: plan.arenas[replica.node] // 64 * 64 + 64})


def _no_place(plan: Timeline) -> Iterator[Timeline]:
    left_out = _viewed(plan)
    made = {w for s in plan.spans for w in _writes(s)}
    results = {Replica(v, 0, HOST) for v in plan.graph.outputs.values()}
    for gone in plan.offsets:
        if gone in made - left_out - results and plan.graph.value_nbytes[gone.value] and plan.turns > 0:
            yield replace(plan, offsets={r: o for r, o in plan.offsets.items() if r != gone})


def _resource_exceeded(plan: Timeline) -> Iterator[Timeline]:
    used = {d.id: d.uses for d in plan.machine.devices}
    for _, span, c in _launches(plan):
        for lane in span.lanes:
            if c.task not in plan.loops and lane.kind == "compute" and span.finish > span.start and plan.turns > 0:
                for name, amount in used[lane.owner].items():
                    if amount > 0:
                        less = tuple(replace(r, capacity=amount / 2) if r.name == name else r for r in plan.machine.resources)
                        yield replace(plan, machine=replace(plan.machine, resources=less))


def _body_missing(plan: Timeline) -> Iterator[Timeline]:
    return (replace(plan, loops={t: b for t, b in plan.loops.items() if t != task}) for task in plan.loops)


FAULTS: Mapping[str, Fault] = {
    "task missing": Fault("task-once", _task_missing),
    "task twice": Fault("task-once", _task_twice),
    "input forgotten": Fault("task-once", _input_forgotten),
    "dropped copy": Fault("missing-copy", _dropped_copy),
    "output missing": Fault("output", _output_missing),
    "early start": Fault("early-start", _early_start),
    "overlap on a lane": Fault("overlap", _overlap),
    "period too short": Fault("overlap", _period_too_short),
    "no such lane": Fault("lane", _no_such_lane),
    "wrong width": Fault("lane", _wrong_width),
    "wrong link": Fault("lane", _wrong_link),
    "loop's lane not held": Fault("lane", _loop_lane_not_held),
    "wrong memory node": Fault("memory-node", _wrong_memory_node),
    "no kernel": Fault("device", _no_kernel),
    "written twice": Fault("written-once", _written_twice),
    "copy without time": Fault("time", _copy_without_time),
    "backward time": Fault("time", _backward_time),
    "mixed copy": Fault("copy", _mixed_copy),
    "freed too early": Fault("free", _freed_too_early),
    "cycle": Fault("cycle", _cycle),
    "order-only edge broken": Fault("order", _order_only_edge_broken),
    "reuse too early": Fault("reuse", _reuse_too_early),
    "reuse edge missing": Fault("reuse-edge", _reuse_edge_missing),
    "over its own input": Fault("alias", _over_own_input),
    "view elsewhere": Fault("alias", _view_elsewhere),
    "ring too small": Fault("reuse", _ring_too_small),
    "ring without slots": Fault("loop", _ring_without_slots),
    "read after eviction": Fault("reuse", _read_after_eviction),
    "not brought in again": Fault("missing-copy", _not_brought_again),
    "evicted too early": Fault("reuse", _evicted_too_early),
    "brought in over others": Fault("reuse", _brought_over_others),
    "generation by a launch": Fault("written-once", _generation_by_launch),
    "generation in a body": Fault("loop", _generation_in_a_body),
    "over capacity": Fault("arena", _over_capacity),
    "outside the arena": Fault("arena", _outside_the_arena),
    "no place": Fault("arena", _no_place),
    "resource exceeded": Fault("resource", _resource_exceeded),
    "body missing": Fault("loop", _body_missing),
}
