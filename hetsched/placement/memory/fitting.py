"""Plans for graphs that need more memory than there is at once: other orders, other devices, evictions; the shortest plan that fits is taken."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from typing import TypeAlias

import numpy as np

from hetsched.graph.graph import Nested
from hetsched.placement.draft import GraphDraft, HopelessError, Policy
from hetsched.placement.memory import PlanTooLargeError, in_arena, smaller
from hetsched.placement.memory.arena import padded
from hetsched.placement.memory.evicting import BESIDE, ELSEWHERE, FARTHEST, LEAST_RECENT, Rule, Turn, evicted
from hetsched.placement.policies import earliest_finish, one_device, serial
from hetsched.placement.problem import FloatArray, Problem
from hetsched.timeline import Timeline

# So many tasks are booked in all, in one way after another, before the best plan so far is taken.
MOST_BOOKED = 6_000
# A plan is looked for that is shorter than the best so far by this share of its makespan: less is rounding.
LEAST_GAIN = 1e-9


def sequence_of(draft: GraphDraft) -> list[Turn]:
    """The tasks of a finished draft by start, and where they run."""
    turn = {task: i for i, task in enumerate(draft.booked)}
    return [Turn(t, draft.choice_of[t]) for t in sorted(draft.booked, key=lambda t: (draft.start_of[t], turn[t]))]


def fitted(draft: GraphDraft, policy: Policy, error: PlanTooLargeError, *, is_auto: bool) -> Timeline:
    """The shortest plan that fits, found among orders and evictions of `draft`, and (`is_auto`) among other policies.

    policy: what wrote `draft`; it writes another one where some task is too large for the device it was given. Raises `PlanTooLargeError`, the one
    that misses least, where nothing fits.
    """
    problem = possible(draft.problem)
    if problem is not draft.problem:
        draft = GraphDraft(problem)
        policy(draft)
    best: Timeline | None = None
    errors = [error]
    unlimited = min(draft.finish(), draft.expected())
    for number, make in enumerate(_ways(draft, is_auto)):
        # A plan as short as that without a limit is taken at once.
        if best is not None and (number * len(problem) > MOST_BOOKED or best.makespan <= unlimited * (1 + LEAST_GAIN)):
            break
        try:
            best = make(best.makespan * (1 - LEAST_GAIN) if best is not None else inf)
        except PlanTooLargeError as found:
            errors.append(found)
        except HopelessError:
            pass
    if best is None:
        raise min(errors, key=lambda e: e.missing)
    return best


# A way to make a plan: given a makespan in seconds, it raises `HopelessError` where its plan would not be shorter.
Way: TypeAlias = Callable[[float], Timeline]


def _ways(draft: GraphDraft, is_auto: bool) -> Iterator[Way]:
    problem = draft.problem
    first = sequence_of(draft)
    frugal = [Turn(t, draft.choice_of[t]) for t in frugal_order(problem)]
    rules = (BESIDE, FARTHEST, LEAST_RECENT, ELSEWHERE) if is_auto else (BESIDE, FARTHEST, LEAST_RECENT)
    for rule in rules:
        for order, sequence in (("its own order", first), ("an order that holds little at once", frugal)):
            yield _tried if sequence is frugal and frugal == first else partial(_evicted, draft, sequence, rule, order)
    if not is_auto:
        return
    for name, book in _frugal(problem):
        other = GraphDraft(problem)
        book(other)
        other.notes.append(f"the fastest plan does not fit the memory; this one is that of {name}")
        yield partial(_planned, other)
        yield partial(_evicted, other, sequence_of(other), BESIDE, "its own order")


def _tried(shorter_than: float) -> Timeline:
    """The way before, again: both orders are one, as those of chains are."""
    raise HopelessError


def _planned(draft: GraphDraft, shorter_than: float) -> Timeline:
    plan = draft.plan()
    if plan.makespan >= shorter_than:
        raise HopelessError
    return plan


def _evicted(draft: GraphDraft, sequence: Sequence[Turn], rule: Rule, order: str, shorter_than: float) -> Timeline:
    """The sequence booked with evictions; the host's limit is kept while booking only where it must be."""
    notes = (*draft.notes, f"the fastest plan does not fit the memory; this one books the tasks anew, in {order}")
    try:
        return evicted(draft.problem, sequence, rule, host=False, notes=notes, shorter_than=shorter_than)
    except PlanTooLargeError as error:
        try:
            return evicted(draft.problem, sequence, rule, host=True, notes=notes, shorter_than=shorter_than)
        except PlanTooLargeError:
            raise error from None


def _frugal(problem: Problem) -> Iterator[tuple[str, Policy]]:
    """Policies whose plans hold less at once, as a rule."""
    yield "earliest_finish", earliest_finish.policy
    yield "one_device", one_device.policy
    for number, device in enumerate(problem.device_ids):
        yield f"one task at a time, on {device} where it can be", partial(serial.one_at_a_time, device=number)


# What can fit at all ----------------------------------------------------------------------------------------------------------------


def possible(problem: Problem) -> Problem:
    """The problem without choices on memories that cannot hold what the task alone needs there; itself where there are none.

    Raises `PlanTooLargeError` where a task has no choice left.
    """
    limited = {node for node, nbytes in enumerate(problem.capacity) if nbytes is not None}
    durations = problem.durations.copy()
    nodes = np.array([c.node for c in problem.choices])
    hopeless: list[PlanTooLargeError] = []
    for task in range(len(problem)):
        needs = {node: needed(problem, task, node) for node in limited if np.isfinite(durations[task, nodes == node]).any()}
        too_small = [node for node, nbytes in needs.items() if nbytes > (problem.capacity[node] or 0)]
        if not too_small:
            continue
        durations[task, np.isin(nodes, too_small)] = np.inf
        if not np.isfinite(durations[task]).any():
            hopeless.append(_hopeless(problem, task, {node: needs[node] for node in too_small}))
    if hopeless:
        raise max(hopeless, key=lambda e: e.missing)
    if np.array_equal(durations, problem.durations):
        return problem
    _keep_groups(problem, durations)
    return replace(problem, durations=durations)


def needed(problem: Problem, task: int, node: int) -> int:
    """The least bytes of `node` with which `task` can run there: what it reads and writes at once, and its scratch; each piece a multiple of 64."""
    graph = problem.graph
    assert graph is not None
    name, results = problem.node_names[node], frozenset(graph.outputs.values())
    op, sizes = graph.task_ops[task], graph.value_nbytes
    reads, writes = list(graph.reads(task)), list(graph.writes(task))
    total = sum(padded(int(sizes[v])) for v in dict.fromkeys(reads) if in_arena(graph, v, name, results))
    if isinstance(op, Nested):
        total += padded(problem.loops[task].room.get(name, 0))
    elif op.view:
        return total
    taken: set[int] = set()
    for position, value in enumerate(writes):
        if not in_arena(graph, value, name, results):
            continue
        pairs = () if isinstance(op, Nested) else (into for out, into in op.inplace if out == position and into < len(reads))
        over = next(
            (
                reads[i]
                for i in pairs
                if graph.spec(reads[i]) == graph.spec(value)
                and reads.count(reads[i]) == 1
                and reads[i] not in taken
                and in_arena(graph, reads[i], name, results)
            ),
            None,
        )
        if over is None:
            total += padded(int(sizes[value]))
        else:
            taken.add(over)
    if not isinstance(op, Nested) and op.workspace is not None:
        ins, outs = [graph.value_specs[v] for v in reads], [graph.value_specs[v] for v in writes]
        total += padded(op.workspace(ins, outs, graph.task_attributes[task]))
    return total


def _keep_groups(problem: Problem, durations: FloatArray) -> None:
    """Tasks that share a device keep only devices that all of them can use."""
    device = np.array([c.device for c in problem.choices])
    for group in set(problem.groups.values()):
        shared = set.intersection(*({int(d) for d in device[np.isfinite(durations[t])]} for t in group))
        if not shared:
            names = ", ".join(repr(problem.name(t)) for t in group)
            text = f"tasks {names} must share a device, and none has the memory for each of them; raise its limit, or part them"
            raise PlanTooLargeError(1, text, problem.name(min(group)))
        for t in group:
            durations[t, ~np.isin(device, sorted(shared))] = np.inf


def _hopeless(problem: Problem, task: int, needs: Mapping[int, int]) -> PlanTooLargeError:
    """Task `task` fits no memory; `needs`: node -> bytes. Says what is missing least."""
    graph = problem.graph
    assert graph is not None
    node = min(needs, key=lambda n: needs[n] - (problem.capacity[n] or 0))
    nbytes, limit, name = needs[node], problem.capacity[node] or 0, problem.node_names[node]
    values = sorted({*graph.reads(task), *graph.writes(task)}, key=lambda v: -int(graph.value_nbytes[v]))[:3]
    largest = ", ".join(f"{graph.value_names[v]!r} {int(graph.value_nbytes[v])}" for v in values)
    others = "".join(f"; in {problem.node_names[n]} it needs {b} of {problem.capacity[n]}" for n, b in needs.items() if n != node)
    what = f"task {graph.task_names[task]!r} needs {nbytes} bytes in {name} at once (the largest: {largest})"
    return PlanTooLargeError(
        nbytes - limit,
        f"{what}, where {limit} are free, all there are{others}. Raise the limit of {name} to at least {nbytes} bytes, or {smaller(graph, name)}",
        graph.task_names[task],
        name,
    )


# Orders -----------------------------------------------------------------------------------------------------------------------------


def frugal_order(problem: Problem) -> list[int]:
    """A topological order that goes on with what frees most bytes (or takes least), of equals with what became ready last."""
    graph = problem.graph
    assert graph is not None
    n, sizes = len(problem), graph.value_nbytes.tolist()
    reads = [tuple(dict.fromkeys(graph.reads(t))) for t in range(n)]
    left = [0] * len(sizes)  # readers that are not booked
    readers: list[list[int]] = [[] for _ in sizes]
    for task, values in enumerate(reads):
        for value in values:
            left[value] += 1
            readers[value].append(task)
    starts, later = (a.tolist() for a in problem.succ[:2])
    waiting = np.diff(problem.pred_start).tolist()
    growth = [sum(sizes[v] for v in graph.writes(t)) - sum(sizes[v] for v in reads[t] if left[v] == 1) for t in range(n)]
    ready = [(growth[t], -t, t) for t in range(n) if not waiting[t]]
    heapq.heapify(ready)
    out: list[int] = []
    done = [False] * n
    turn = n
    while ready:
        grown, _, task = heapq.heappop(ready)
        if done[task] or grown != growth[task]:
            continue
        done[task] = True
        out.append(task)
        turn += 1
        for value in reads[task]:
            left[value] -= 1
            if left[value] == 1:
                last = next(t for t in readers[value] if not done[t])
                growth[last] -= sizes[value]
                if not waiting[last]:
                    heapq.heappush(ready, (growth[last], -turn, last))
        for k in range(starts[task], starts[task + 1]):
            waiting[later[k]] -= 1
            if not waiting[later[k]]:
                heapq.heappush(ready, (growth[later[k]], -turn, later[k]))
    return out
