"""What ran against what was planned: the rule that every executor keeps.

A run does what the plan says: equal as multisets of (task, turn, device) and (value, turn, from, to); lane and time are free within a device whose
lanes share their tasks. And it keeps the plan's order: data, reuse, order-only edges, stream order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

from hetsched.executors.program import every_of, span_arcs
from hetsched.graph.graph import Nested
from hetsched.timeline import Copy, Lane, Launch, Span, Timeline

Done: TypeAlias = Counter[tuple[object, ...]]
SLACK_SECONDS = 1e-9


def same_values(result: Any, wanted: Any) -> bool:
    """Equal values: lists element by element, floats to rounding (BLAS may sum in another order where its arrays lie differently)."""
    if isinstance(wanted, list):
        return len(result) == len(wanted) and all(same_values(a, b) for a, b in zip(result, wanted, strict=True))
    result, wanted = np.asarray(result), np.asarray(wanted)
    if result.dtype != wanted.dtype or result.shape != wanted.shape:
        return False
    return (
        bool(np.allclose(result, wanted, rtol=1e-4, atol=1e-5, equal_nan=True)) if wanted.dtype.kind == "f" else bool(np.array_equal(result, wanted))
    )


def value_problems(results: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Every output of a run that differs from what the plain loop (`hetsched.testing.interpret`) gives."""
    out = [] if list(results) == list(wanted) else [f"outputs are {', '.join(results)}, wanted {', '.join(wanted)}"]
    return out + [f"output {name!r} differs" for name, value in wanted.items() if name in results and not same_values(results[name], value)]


def run_problems(plan: Timeline, trace: Timeline, *, skew_seconds: float = SLACK_SECONDS) -> list[str]:
    """Every difference between a plan and the trace of its run, loops included. Loops must be short enough for the trace to hold every turn.

    skew_seconds: how far apart the clocks of the devices may be.
    """
    return list(_differences(plan, trace, "", skew_seconds))


def done(timeline: Timeline) -> Done:
    """(task, turn, devices) of every launch and (value, turn, from, to, generation unless 0) of every copy of a trace."""
    return Counter(_key(s, s.command.turn) for s in timeline.spans if isinstance(s.command, (Launch, Copy)))


def planned(plan: Timeline, turns: int) -> Done:
    """What a plan says shall be done in `turns` turns: tasks of `every` only in their turns."""
    every = every_of(plan.loop)
    out: Done = Counter()
    for span in plan.spans:
        if isinstance(span.command, (Launch, Copy)):
            k = every.get(_maker(plan, span), 1)
            out.update(_key(span, turn) for turn in range(0, turns, k))
    return out


def _maker(plan: Timeline, span: Span) -> int:
    command = span.command
    if isinstance(command, Launch):
        return command.task
    assert isinstance(command, Copy)
    return int(plan.graph.value_task[command.value])


def _key(span: Span, turn: int) -> tuple[object, ...]:
    command = span.command
    if isinstance(command, Launch):
        return ("launch", command.task, turn, tuple(sorted({lane.owner for lane in span.lanes})))
    assert isinstance(command, Copy)
    return ("copy", command.value, turn, command.src.node, command.dst.node, *([command.dst.generation] if command.dst.generation else []))


def _differences(plan: Timeline, trace: Timeline, where: str, skew: float) -> Iterator[str]:
    turns = trace.turns
    wanted, seen = planned(plan, turns), done(trace)
    for key, n in (wanted - seen).items():
        yield f"{where}planned, but did not run ({n} times): {_words(plan, key)}"
    for key, n in (seen - wanted).items():
        yield f"{where}ran, but was not planned ({n} times): {_words(plan, key)}"
    at = {_key(s, s.command.turn): s for s in trace.spans if isinstance(s.command, (Launch, Copy))}
    every = every_of(plan.loop)
    for before, later, distance in span_arcs(plan):
        first, second = plan.spans[before], plan.spans[later]
        k = every.get(_maker(plan, first), 1)
        for turn in range(turns):
            source = turn - distance
            if not 0 <= source < turns:
                continue
            a, b = at.get(_key(first, source - source % k)), at.get(_key(second, turn))
            if a is not None and b is not None and b.start < a.finish - skew:
                yield (
                    f"{where}{_words(plan, _key(second, turn))} began at {b.start:.9g} s, before {_words(plan, _key(first, source))} "
                    f"ended at {a.finish:.9g} s"
                )
    # A loop holds lanes in the plan; in the trace its body's spans are on them.
    looped = {t for t, op in enumerate(plan.graph.task_ops) if isinstance(op, Nested)}
    plain = [s for s in trace.spans if not (isinstance(s.command, Launch) and s.command.task in looped)]
    lanes: dict[Lane, list[Span]] = {}
    for span in plain:
        for lane in span.lanes:
            lanes.setdefault(lane, []).append(span)
    endless = {link.id for link in plan.machine.links if link.engines == 0}
    for lane, spans in lanes.items():
        spans.sort(key=lambda s: (s.start, s.finish))
        for x, y in pairwise(spans):
            if y.start < x.finish - skew and lane.owner not in endless:
                yield f"{where}two spans overlap on {lane}: {x.start:.9g}-{x.finish:.9g} and {y.start:.9g}-{y.finish:.9g}"
    for task, body in trace.loops.items():
        if plan.loop is None:  # the trace keeps one run of a nested loop
            kind = "if" if body.branch is not None else "loop"
            followed = next(p for p in plan.loops[task].alternatives if p.graph is body.graph)
            yield from _differences(followed, body, f"{where}{kind} {plan.graph.task_names[task]!r}: ", skew)


def _words(plan: Timeline, key: tuple[object, ...]) -> str:
    kind, what, turn, *rest = key
    assert isinstance(what, int)
    name = plan.graph.task_names[what] if kind == "launch" else plan.graph.value_names[what]
    return f"{kind} of {name!r} in turn {turn} ({', '.join(map(str, rest))})"
