"""The plan of a loop: one turn of its body with a period.

Two models of the machine are planned and the better is taken. On one device whose lanes are threads of the host, every thread is a place of its own
and handing a value to another thread takes time on the thread that takes it: a body of tiny tasks ends up as one chain on one thread. With several
devices, values are copied between memory nodes, and a device's threads are alike. Beside them stands the plain chain: one task after the other,
with or without wide launches.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from hetsched.errors import GraphError, PlacementError
from hetsched.graph.graph import Loop, Nested, Where
from hetsched.machine import HOST, Machine
from hetsched.placement.costs.estimate import CostModel
from hetsched.placement.loops.body import Body
from hetsched.placement.loops.memory import SPARE_TOTAL_NBYTES, Memory, layout
from hetsched.placement.loops.model import MANY, Model, Place, Seconds, choices_of, device_model, durations_of, thread_model
from hetsched.placement.memory import PlanTooLargeError
from hetsched.placement.periods import Search, excess, one_by_one, within
from hetsched.placement.periods.assign import least_period
from hetsched.placement.periods.bound import period_bound
from hetsched.placement.periods.modulo import heights, modulo_starts, tighten, topological
from hetsched.placement.periods.order import by_starts
from hetsched.placement.periods.problem import NANOSECONDS, Core, Ops, PeriodBound, whole
from hetsched.placement.periods.slide import slid
from hetsched.placement.periods.walk import Walk
from hetsched.placement.problem import PlanLoop, Problem, problem_of
from hetsched.timeline import Bound, Copy, Lane, Launch, Replica, Span, Timeline

# A pipeline over threads is taken only where it promises this share of the chain's period or less: threads of one process share more than cores.
_WORTH = 0.85
# ... and this much less a turn: below, switching between threads (the GIL among them) costs what it gains.
_GAIN = 100_000  # nanoseconds
# A body in one order on one stream may take this many times the period of a mixed one.
_AS_GOOD = 1.05
# Longer periods tried where a plan does not fit the memory.
_LONGER = (1.05, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0)
# Orders tried for a pipeline over threads: some tens of milliseconds for 40 tasks.
_EVALUATIONS = 300
# Annealing finds good places for so few tasks by itself, beginning with all of them on one thread. More are dealt out first, and not looked for any
# further where that comes as near to the bound.
_FEW, _ENOUGH = 64, 1.1
# Ops in all the orders that are solved where lanes are dealt out one by one.
_LANED = 150_000


@dataclass(frozen=True)
class _Draft:
    """A plan in whole nanoseconds: period, (place, start, length, width) of each task, (value, link, start, length) of each copy."""

    model: Model
    period: int
    tasks: tuple[tuple[int, int, int, int], ...]
    copies: tuple[tuple[int, int, int, int], ...]
    bound: PeriodBound


def plan_loop(
    loop: Loop,
    machine: Machine,
    costs: CostModel,
    *,
    only: str | None = None,
    memory: Mapping[str, int] | None = None,
    where: Where | None = None,
    seed: int = 0,
    name: str | None = None,
    nested: PlanLoop | None = None,
) -> Timeline:
    """The plan of one turn of `loop`'s body on `machine`, repeated every `period` seconds.

    costs: seconds of launches and copies. only: device pattern that limits the tasks which have a kernel on a matching device. memory: node -> bytes
    for the arenas, instead of the machine's. where: devices for the loop as a whole, kept where a task can. name: what errors call the loop, else its
    own. nested: plans what the body itself holds (`branches.plan_nested`), else only loops are known. The same arguments give the same plan.
    Raises `GraphError` where the loop itself is wrong, `PlacementError` where a task has no device, `OutOfMemoryError` where even turns one after
    another do not fit.
    """
    begin = time.perf_counter()
    problems = loop.problems() or Body(loop).problems()
    if problems:
        raise GraphError([f"loop {name or loop.name!r}: {p}" for p in problems])
    body = Body(loop)

    def inside(inner: Nested, on: Machine, prices: CostModel, where: Where | None = where, name: str | None = None) -> Timeline:
        if nested is not None:
            return nested(inner, on, prices, where=where, name=name)
        if not isinstance(inner, Loop):
            raise PlacementError(f"task {name!r} is an if; give plan_loop(nested=plan_nested) what plans it")
        return plan_loop(inner, on, prices, only=only, memory=memory, where=where, seed=seed, name=name)

    problem = problem_of(loop.body, machine, costs, only=only, memory=memory, plan_loop=inside)
    seconds = durations_of(body, problem, machine, where)
    drafts = _drafts(body, problem, seconds, costs, machine, seed)
    plan = _fitting(body, problem, drafts, machine, name or loop.name)
    beginning = getattr(costs, "beginning", None)  # not every model knows what beginning a loop takes
    more = beginning(plan) if beginning is not None else 0.0
    return replace(plan, plan_seconds=time.perf_counter() - begin, notes=(*problem.notes, *plan.notes), begin_seconds=more)


# Drafts -----------------------------------------------------------------------------------------------------------------------


def _drafts(body: Body, problem: Problem, seconds: Seconds, costs: CostModel, machine: Machine, seed: int) -> list[_Draft]:
    """Plans of the body, the one to prefer first; the last ones take less memory."""
    found: list[_Draft] = []
    hosts = [i for i, d in enumerate(machine.devices) if d.shares_lanes and d.memory == HOST]
    drafts: list[_Draft] | None = None
    if len(machine.devices) > 1:
        drafts = _device_drafts(body, problem, device_model(body, problem, seconds, costs, machine), machine, seed)
    beaten = min((d.period for d in drafts or () if not _on_threads(d, hosts)), default=None)
    for device in hosts:
        model = thread_model(body, problem, seconds, machine, device)
        if model is not None:
            found += _thread_drafts(body, problem, model, seconds, machine, seed, beaten)
    if not found or len(machine.devices) > 1:
        least = min((d.period for d in found), default=None)
        if drafts is None:
            drafts = _device_drafts(body, problem, device_model(body, problem, seconds, costs, machine), machine, seed)
        # There the threads of a device are alike: that work changes hands between them costs nothing. Drafts on threads alone know better.
        found += drafts if least is None else [d for d in drafts if d.period <= _WORTH * least and not _on_threads(d, hosts)]
    # What bounds one model does not bound another: only the least of the bounds holds for every plan.
    bound = min((d.bound for d in found), key=lambda b: b.seconds)
    return [replace(d, bound=bound) for d in sorted(found, key=lambda d: d.period)]


def _on_threads(draft: _Draft, hosts: Sequence[int]) -> bool:
    """True if every task is on the threads of one of `hosts`."""
    devices = {device for place, *_ in draft.tasks if (device := draft.model.places[place].device) >= 0}
    return len(devices) <= 1 and devices <= set(hosts)


def _thread_drafts(body: Body, problem: Problem, model: Model, seconds: Seconds, machine: Machine, seed: int, beaten: int | None) -> list[_Draft]:
    """On the threads of one device: the chain; the chain with wide launches; a pipeline, where it is worth it.

    beaten: the period of a draft on other devices. No pipeline of many tasks is looked for that could not be preferred to it.
    """
    core = Core(model.problem)
    search = Search(core, seed, _EVALUATIONS, None)
    io = len(model.places) - 1 if model.places[-1].kind == "io" else -1
    chain = [0 if core.durations[t][0] is not None else io for t in range(core.n)]
    ops = Ops(core, chain)
    period, start = one_by_one(ops)
    search.best.offer(period, ops, start)
    if io in chain:
        search.order(ops, least_period(core, search.cycles, chain))
    single = search.best.period
    drafts = [_draft(model, search, None)]
    worth = min(_WORTH * single, single - _GAIN)
    if core.n > _FEW and beaten is not None and beaten <= _WORTH * search.enough:
        worth = 0
    if search.enough < worth and sum(p.kind == "compute" for p in model.places) > 1:
        wider = Search(core, seed, _EVALUATIONS, None)
        if core.n > _FEW:
            dealt = Ops(core, _dealt(core))
            period, start = wider.listed(dealt, least_period(core, wider.cycles, dealt.assignment))
            wider.best.offer(period, dealt, start)
        if wider.best.ops is None or wider.best.period > _ENOUGH * wider.enough:
            wider.run([chain])
        else:
            wider.settle()
        if wider.best.period <= worth:
            drafts.append(_draft(model, wider, None))
    widths = _wide(problem, seconds, machine, model.places[0].device, body)
    if widths and io not in chain:
        wide = [
            [None if x is None else min(x, widths[t][1] / NANOSECONDS) for x in row] if t in widths else row
            for t, row in enumerate(model.problem.durations)
        ]
        bound = period_bound(replace(model.problem, durations=wide))
        drafts = [replace(d, bound=bound) for d in drafts]
        drafts.append(_widened(drafts[0], widths))
        if drafts[-1].period > _WORTH * drafts[0].period:
            drafts.pop()
    return drafts


def _dealt(core: Core) -> list[int]:
    """Each task on the place where it would end first in one turn by itself."""
    free, end, place = [0] * core.devices, [0] * core.n, [-1] * core.n
    there: set[tuple[int, int]] = set()  # (value, memory node) that was handed over
    out: list[list[tuple[int, int]]] = [[] for _ in range(core.n)]
    for u, v, turns in core.task_arcs:
        out[u].append((v, turns))
    soon = {(w, r) for w, readers in enumerate(core.readers) for r, turns in readers if not turns}
    for t in topological(core.n, out):
        least: tuple[int, int] | None = None
        for d in core.allowed[t]:
            duration = core.durations[t][d]
            assert duration is not None
            start, node = free[d] if core.capacity[d] == 1 else 0, core.memory[d]
            for w in core.read[t]:
                p = core.producer[w]
                if (w, t) in soon:
                    start = max(start, end[p])
                if place[p] >= 0 and core.memory[place[p]] != node and (w, node) not in there:
                    duration += core.copy[w][core.link_of[core.memory[place[p]]][node]]
            if least is None or start + duration < least[0]:
                least = start + duration, d
        assert least is not None
        end[t], place[t] = least
        free[place[t]] = end[t]
        there.update((w, core.memory[place[t]]) for w in core.read[t])
    return place


def _wide(problem: Problem, seconds: Seconds, machine: Machine, device: int, body: Body) -> dict[int, tuple[int, int]]:
    """Task -> (width, nanoseconds), for tasks that a wide launch makes shorter."""
    narrow, _ = choices_of(problem, device)
    out = {}
    for i, c in enumerate(problem.choices):
        if c.device == device and c.width > 1:
            out.update({t: (c.width, whole(seconds[t, i])) for t in range(len(body.graph)) if seconds[t, i] < seconds[t, narrow]})
    return out


def _widened(chain: _Draft, widths: Mapping[int, tuple[int, int]]) -> _Draft:
    """The chain with some launches wide: shorter lengths in the same order."""
    order = sorted(range(len(chain.tasks)), key=lambda t: (chain.tasks[t][1], chain.tasks[t][2], t))
    tasks, at = list(chain.tasks), 0
    for t in order:
        place, _, length, _ = chain.tasks[t]
        width, length = widths.get(t, (1, length))
        tasks[t] = (place, at, length, width)
        at += length
    return replace(chain, period=max(1, at), tasks=tuple(tasks))


def _device_drafts(body: Body, problem: Problem, model: Model, machine: Machine, seed: int) -> list[_Draft]:
    """On all devices: a pipeline, and its assignment with one op after another."""
    core = Core(model.problem)
    search = Search(core, seed, 2 * _EVALUATIONS + 25 * core.n, None)
    search.run([within(core, problem.host)])
    ops = search.best.ops
    assert ops is not None
    drafts = []
    if not problem.loops:
        draft = _draft(model, search, None)
        straight = _on_one_stream(model, ops, search.bound, machine)
        if straight is not None and straight.period <= _AS_GOOD * draft.period:
            draft = straight
        if not _overtakes(draft, machine, problem):
            drafts.append(draft)
    for assignment in dict.fromkeys((tuple(ops.assignment), tuple(within(core, problem.host)))):
        drafts.append(_draft(model, search, Ops(core, assignment)))
    return drafts


def _on_one_stream(model: Model, ops: Ops, bound: PeriodBound, machine: Machine) -> _Draft | None:
    """The tasks in an order that no turn begins before the last one's end, only copies ahead and behind, where all are on one stream of a device that

    takes turns as graphs; else None. Several turns can be one graph then, which is worth more than any order that mixes turns.
    """
    used = {model.places[p] for p in ops.assignment if model.places[p].device >= 0}
    place = used.pop() if len(used) == 1 else None
    if place is None or place.kind != "compute" or (d := machine.devices[place.device]).shares_lanes or d.replay_seconds is None:
        return None
    period, start = one_by_one(ops)
    period, start = tighten(ops, start, period)
    return None if excess(ops, start, period) else _drafted(model, ops, period, start, bound)


def _draft(model: Model, search: Search, serial: Ops | None) -> _Draft:
    """The search's best plan, or, for `serial`, these ops one after another."""
    if serial is None:
        best, ops = search.best, search.best.ops
        assert ops is not None
        period, start = best.period, best.start
    else:
        ops = serial
        period, start = one_by_one(ops)
    return _drafted(model, ops, period, start, search.bound)


def _drafted(model: Model, ops: Ops, period: int, start: Sequence[int], bound: PeriodBound) -> _Draft:
    low = min(start, default=0)
    n = len(model.problem.durations)
    draft = _Draft(
        model,
        period,
        tuple((ops.assignment[t], start[t] - low, ops.seconds[t], 1) for t in range(n)),
        tuple((w, link, start[n + i] - low, ops.seconds[n + i]) for i, (w, link) in enumerate(ops.copies)) if not model.threads else (),
        bound,
    )
    return draft if _lane_numbers(draft) is not None else _laned(draft)


def _overtakes(draft: _Draft, machine: Machine, problem: Problem) -> bool:
    """True if some shared resource is taken above its capacity at some moment of the period."""
    for name, capacity in zip(problem.resource_names, problem.resource_capacity.tolist(), strict=True):
        moments: list[tuple[int, float]] = []
        now = 0.0
        for place, start, length, _ in draft.tasks:
            p = draft.model.places[place]
            amount = machine.devices[p.device].uses.get(name, 0.0) if p.device >= 0 and p.kind == "compute" else 0.0
            full, rest = divmod(length, draft.period)
            now += amount * full
            if amount and rest:
                a, b = start % draft.period, (start + rest) % draft.period
                moments += [(a, amount), (b, -amount)]
                now += amount if b < a else 0.0
        if now > capacity * (1 + 1e-9):
            return True
        for _, change in sorted(moments):
            now += change
            if now > capacity * (1 + 1e-9):
                return True
    return False


# Timelines --------------------------------------------------------------------------------------------------------------------


def _fitting(body: Body, problem: Problem, drafts: Sequence[_Draft], machine: Machine, name: str) -> Timeline:
    """The first draft whose arenas fit, as a timeline.

    Where a draft does not fit, its period is made longer, so that fewer turns are in flight and rings are smaller, until no two turns overlap; then
    values of a turn share bytes. Only then comes the next draft. Bodies evict nothing: what is still too large is refused, with the least that some
    draft wants.
    """
    errors: list[PlanTooLargeError] = []
    for first in drafts:
        for draft in chain((first,), _slower(first)):
            spans, times = _spans(body, problem, draft)
            prologue, epilogue = _once(body, spans, draft, problem, machine)
            lanes = {lane for s in spans for lane in s.lanes}
            threads = {d.id for d in machine.devices if d.shares_lanes}
            if not errors and len(lanes) > 1 and all(lane.owner in threads for lane in lanes):  # with slots to spare, where there is room for them
                memory = layout(body, spans, times, draft.period, prologue, problem.loops, spare=True)
                if _excess(body, problem, memory, name) is None and sum(memory.arenas.values()) <= SPARE_TOTAL_NBYTES:
                    return _timeline(body, problem, draft, machine, spans, memory, prologue, epilogue)
            if not errors and any(isinstance(s.command, Copy) for s in spans):
                memory = layout(body, spans, times, draft.period, prologue, problem.loops, double=True)
                if _excess(body, problem, memory, name) is None:
                    return _timeline(body, problem, draft, machine, spans, memory, prologue, epilogue)
            for share in (False, True):
                memory = layout(body, spans, times, draft.period, prologue, problem.loops, share=share)
                error = _excess(body, problem, memory, name)
                if error is None:
                    plan = _timeline(body, problem, draft, machine, spans, memory, prologue, epilogue)
                    return replace(plan, notes=(*plan.notes, *_told(first, draft, share))) if errors else plan
                errors.append(error)
    raise min(errors, key=lambda e: e.missing)


def _told(first: _Draft, draft: _Draft, share: bool) -> list[str]:
    longer = f"its period is {draft.period / first.period:.3g} times as long" if draft.period > first.period else ""
    shared = "values of a turn share bytes" if share else ""
    return [f"short of memory: {' and '.join(x for x in (longer, shared) if x) or 'another plan of the loop was taken'}"]


def _slower(draft: _Draft) -> Iterator[_Draft]:
    """The same tasks on the same places at longer periods, up to one op after another."""
    if any(width > 1 for *_, width in draft.tasks):
        return
    search = Search(Core(draft.model.problem), 0, None, None)
    ops = Ops(search.core, [place for place, *_ in draft.tasks])
    last, _ = one_by_one(ops)
    if last <= draft.period:
        return
    for factor in _LONGER:
        period = int(draft.period * factor)
        if period >= last:
            break
        height = heights(ops, period, topological(ops.count, ops.out))
        start = modulo_starts(ops, period, height, [False] * search.core.resources, 40 + 4 * ops.count) if height is not None else None
        if start is not None:
            yield _drafted(draft.model, ops, period, slid(ops, start, period), draft.bound)
    yield _drafted(draft.model, ops, *one_by_one(ops), draft.bound)


def _excess(body: Body, problem: Problem, memory: Memory, name: str) -> PlanTooLargeError | None:
    capacity = dict(zip(problem.node_names, problem.capacity, strict=True))
    for node, nbytes in memory.arenas.items():
        limit = capacity.get(node)
        if limit is not None and nbytes > limit:
            size, piece, stays = memory.largest[node]
            readers = [body.graph.task_names[t] for t, reads in enumerate(body.reads) if piece in (body.graph.value_names[v] for v in reads)]
            elsewhere = sorted({problem.device_ids[c.device] for c in problem.choices if problem.node_names[c.node] != node})
            what = f"{piece!r} with {size} bytes" + (f", which task {readers[0]!r} reads" if readers else "")
            # What is there for all turns is no smaller with a smaller batch.
            help = "use a smaller batch"
            if stays:
                what += " and which stays there for all turns"
                help = f"place its readers on another memory (device: {elsewhere[0]})" if elsewhere else "use less data"
            return PlanTooLargeError(
                nbytes - limit,
                f"loop {name!r} needs {nbytes} bytes of {node}, where {limit} are free; the largest piece is {what}. "
                f"Raise the limit of {node} to at least {nbytes} bytes, or {help}",
                node=node,
            )
    return None


def _spans(body: Body, problem: Problem, draft: _Draft) -> tuple[list[Span], list[tuple[int, int]]]:
    """The spans of turn 0 by start, and their times in whole nanoseconds."""
    graph, model = body.graph, draft.model
    lanes = _lane_numbers(draft)
    assert lanes is not None
    rows: list[tuple[int, int, int, Span]] = []
    ns = 1.0 / NANOSECONDS
    for t in range(len(graph)):
        place, start, length, width = draft.tasks[t]
        p = model.places[place]
        if t in problem.loops:
            node, held = HOST, problem.loop_lanes[t]
        else:
            device = problem.device_ids[p.device]
            node = model.node_names[model.problem.memory[place]]
            held = tuple(Lane(device, i, p.kind) for i in (range(width) if width > 1 else (lanes[t],)))
        reads = tuple(Replica(v, 0, node) for v in body.reads[t])
        writes = tuple(Replica(v, 0, node) for v in graph.writes(t))
        span = Span(held, Launch(t, 0, reads, writes, width), start * ns, (start + length) * ns)
        rows.append((start, start + length, t, span))
    for i, (w, link, start, length) in enumerate(draft.copies):
        path, value = model.problem.links[link], model.values[w]
        src, dst = (Replica(value, 0, model.node_names[node]) for node in (path.src, path.dst))
        span = Span((Lane(model.links[link], 0, "copy"),), Copy(value, 0, src, dst), start * ns, (start + length) * ns)
        rows.append((start, start + length, len(graph) + i, span))
    rows.sort(key=lambda r: r[:3])
    return [r[3] for r in rows], [(r[0], r[1]) for r in rows]


def _lane_numbers(draft: _Draft) -> list[int] | None:
    """A lane of its place for each task, the first that is free at its phase; None where arcs around the period want more lanes than there are.

    Where a task is longer than the period, turns rotate over the lanes of its place: numbers are then only names.
    """
    period = draft.period
    out = [draft.model.places[place].first for place, *_ in draft.tasks]
    for place, tasks in _shared_places(draft).items():
        lanes = draft.model.places[place].lanes
        taken: list[list[tuple[int, int]]] = [[] for _ in range(lanes)]
        rotates = any(draft.tasks[t][2] > period for t in tasks)
        for t in sorted(tasks, key=lambda t: (draft.tasks[t][1] % period, t)):
            _, start, length, _ = draft.tasks[t]
            at = start % period
            free = [i for i, row in enumerate(taken) if all((s - at) % period >= length and (at - s) % period >= w for s, w in row)]
            if not (free or rotates):
                return None
            out[t] = free[0] if free else min(range(lanes), key=lambda i: (sum(w for _, w in taken[i]), i))
            if length:
                taken[out[t]].append((at, length))
    return out


def _shared_places(draft: _Draft) -> dict[int, list[int]]:
    """Place of several lanes -> its tasks."""
    groups: dict[int, list[int]] = {}
    for t, (place, *_) in enumerate(draft.tasks):
        if 1 < draft.model.places[place].lanes < MANY:
            groups.setdefault(place, []).append(t)
    return groups


def _laned(draft: _Draft) -> _Draft:
    """The same devices with every lane a place of its own, tasks dealt out by load, many also by phase, scheduled anew (no shorter than `draft`)."""
    model, problem = draft.model, draft.model.problem
    columns, places = [], []
    for i, p in enumerate(model.places):
        alone = p.lanes == MANY or p.lanes == 1
        columns += [i] * (1 if alone else p.lanes)
        places += [p] if alone else [Place(p.device, p.kind, lane, 1) for lane in range(p.lanes)]
    split = replace(
        model,
        problem=replace(
            problem,
            durations=[[row[i] for i in columns] for row in problem.durations],
            lanes=[p.lanes for p in places],
            memory=[problem.memory[i] for i in columns],
        ),
        places=tuple(places),
    )
    assignment = [columns.index(place) for place, *_ in draft.tasks]
    by_load, by_phase = list(assignment), list(assignment)
    for place, tasks in _shared_places(draft).items():
        load = [0] * model.places[place].lanes
        for t in sorted(tasks, key=lambda t: (-draft.tasks[t][2], t)):
            lane = load.index(min(load))
            load[lane] += draft.tasks[t][2]
            by_load[t] += lane
        for t, lane in _dealt_by_phase(draft, tasks, len(load)).items():
            by_phase[t] += lane
    search = Search(Core(split.problem), 0, None, None)
    ops = Ops(search.core, by_load)
    search.start(ops, max(draft.period, least_period(search.core, search.cycles, by_load)), draft.period)
    if search.core.n <= _FEW:
        return _draft(split, search, None)
    ops = Ops(search.core, by_phase)
    order = by_starts(ops, [start for _, start, *_ in draft.tasks] + [start for *_, start, _ in draft.copies], draft.period)
    least = max(draft.period, least_period(search.core, search.cycles, by_phase))
    if order.solve(least, search.best.period):
        search.walk(Walk(search.core, search.cycles, order, least, draft.period, search.rng), _LANED // search.core.n, 0.0625)
    return _draft(split, search, None)


def _dealt_by_phase(draft: _Draft, tasks: Sequence[int], lanes: int) -> dict[int, int]:
    """Task -> lane, in the order of their phases: the lane that has been free for the shortest time, else the one that is free first."""
    free, out = [0] * lanes, {}
    for t in sorted(tasks, key=lambda t: (draft.tasks[t][1] % draft.period, t)):
        at = draft.tasks[t][1] % draft.period
        lane = min(range(lanes), key=lambda i: (free[i] > at, abs(at - free[i]), i))
        out[t], free[lane] = lane, max(at, free[lane]) + draft.tasks[t][2]
    return out


def _once(body: Body, spans: Sequence[Span], draft: _Draft, problem: Problem, machine: Machine) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """(prologue, epilogue): what is copied once, before the first and after the last turn."""
    if draft.model.threads:
        return (), ()
    graph = body.graph
    fixed = set(body.fixed())
    copied = {(s.command.value, s.command.dst.node) for s in spans if isinstance(s.command, Copy)}
    made: dict[int, str] = {}
    wanted: dict[tuple[int, str], None] = {}
    for span in spans:
        command = span.command
        if isinstance(command, Launch):
            made.update((r.value, r.node) for r in command.writes)
            for r in command.reads:
                if r.node != HOST and (r.value in fixed or r.value in body.carried):
                    wanted[r.value, r.node] = None
    before, after = [], []
    for value, node in sorted(wanted):
        before.append(Copy(value, 0, Replica(value, 0, HOST), Replica(value, 0, node)))
    for value in dict.fromkeys(body.carried.values()):
        node = made.get(value, HOST)
        if node != HOST and (value, HOST) not in copied:
            after.append(Copy(value, 0, Replica(value, 0, node), Replica(value, 0, HOST)))
    return _in_line(before, graph.value_nbytes.tolist(), problem, machine), _in_line(after, graph.value_nbytes.tolist(), problem, machine)


def _in_line(copies: Sequence[Copy], nbytes: Sequence[int], problem: Problem, machine: Machine) -> tuple[Span, ...]:
    """Copies one after another on each link, from 0."""
    free: dict[str, float] = {}
    out = []
    assert problem.costs is not None
    for copy in copies:
        link = machine.link(copy.src.node, copy.dst.node)
        start = free.get(link.id, 0.0)
        finish = start + problem.costs.copy(nbytes[copy.value], link).seconds
        free[link.id] = finish
        out.append(Span((Lane(link.id, 0, "copy"),), copy, start, finish))
    return tuple(out)


def _timeline(
    body: Body,
    problem: Problem,
    draft: _Draft,
    machine: Machine,
    spans: Sequence[Span],
    memory: Memory,
    prologue: tuple[Span, ...],
    epilogue: tuple[Span, ...],
) -> Timeline:
    return Timeline(
        graph=body.graph,
        machine=machine,
        spans=tuple(spans),
        after=memory.after,
        offsets=memory.offsets,
        arenas=memory.arenas,
        period=draft.period / NANOSECONDS,
        rings=memory.rings,
        workspaces=memory.workspaces,
        prologue=prologue,
        epilogue=epilogue,
        loops=problem.loops,
        bodies=memory.bodies,
        loop=body.loop,
        turns=body.loop.turns,
        peak=dict(memory.arenas),
        bound=Bound(draft.bound.seconds, "period", draft.bound),
        policy="period",
    )
