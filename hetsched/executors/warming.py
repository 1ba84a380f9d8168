"""What a process does once for each kernel of a device, done before the clock of a run starts.

The first launch of a kernel on CUDA compiles it or brings it from a cache on disk, loads a module, and opens handles of libraries: 10 to 200 ms for
what takes microseconds from then on. In a run, makespans and what costs learn would be that. So every launch of a plan that differs from those
before (kernel, dtypes, shapes, options) is done once beforehand, on zeros, where its arrays lie: nothing is there yet, and zeros are valid indices.
A kernel of the user's own is built and loaded, and sees no values that are not its own.

Streams that want this have `warm` (see `Warms`). What stays cold (kernels that cannot be tried) is told, and no costs are
learned from the first launch of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from hetsched.executors.binding import Call
from hetsched.executors.frame import Frame
from hetsched.executors.program import Program
from hetsched.graph.alike import alike
from hetsched.graph.graph import Graph, Nested
from hetsched.graph.guard import is_ours
from hetsched.graph.op import Op
from hetsched.graph.ops import family
from hetsched.machine import Device
from hetsched.timeline import Lane, Launch, Timeline

# A launch that takes longer at the device's full speed is not done twice: what its first one takes more is no large part of it. (Not by the plan:
# costs may be wrong, and would stay so.)
LONG_SECONDS = 0.05
# Families of ops that multiply matrices: libraries have a handle for that, in each thread one.
_PRODUCTS = ("linear", "conv")


class Warms(Protocol):
    """A stream whose first launches take longer."""

    def attend(self, products: bool) -> None:
        """The calling thread will hand over launches, matrix products among them or not: what is each thread's own is made."""

    def warm(self, calls: Sequence[Call], tries: Sequence[bool], together: bool) -> list[bool]:
        """Do what the first of each of these launches, which follow each other, would do: launch it on zeros where it may be tried, else build it.

        together: they will also be handed over by `segment`. Returns whether each is warm now. Raises nothing.
        """


def warm(frame: Frame, streams: Mapping[Lane, Warms], together: bool, is_over: Callable[[], bool], bodies: Mapping[int, Program]) -> frozenset[int]:
    """Warm launches of each kind on `streams`, those of loops too; gives the tasks of `frame` itself whose launches are the first that stay cold.

    together: steps will be handed over at once, as those of loops are. is_over: asked between two steps; True ends it. bodies: id of the plan of
    each loop's body, loops in loops too -> its program.
    """
    plan, loop = frame.plan, frame.loop
    kinds = alike(frame.graph).kind.tolist()
    steps: set[tuple[Any, ...]] = set()
    known: set[tuple[str, int]] = set()
    cold: set[int] = set()
    turns = [0] if loop is None or not loop.is_remainder(frame.turns - 1) else [0, frame.turns - 1]
    for step in frame.program.steps:
        lane = step.lanes[0] if step.lanes else None
        stream = streams.get(lane) if lane is not None else None
        launches = [s for i in step.spans if isinstance((s := plan.spans[i]).command, Launch)] if stream is not None else []
        like = (lane, *(kinds[s.command.task] for s in launches if isinstance(s.command, Launch)))
        if stream is None or lane is None or len(like) == 1 or like in steps:
            continue
        steps.add(like)
        if is_over():
            break
        found: dict[int, bool] = {}
        for turn in turns:
            found |= _warm_step(frame, step.index, turn, stream, lane.owner, together or loop is not None)
        for kind, task in ((kinds[s.command.task], s.command.task) for s in launches if isinstance(s.command, Launch)):
            if (lane.owner, kind) not in known and not found.get(task, _is_nothing(frame.graph, task)):
                cold.add(task)
            known.add((lane.owner, kind))
    for task, body in plan.nested:
        program = bodies.get(id(body))
        if program is not None and not is_over():
            with suppress(Exception):
                warm(_body_of(frame, task, program), streams, together, is_over, bodies)
    return frozenset(cold)


def _warm_step(frame: Frame, step: int, turn: int, stream: Warms, owner: str, together: bool) -> dict[int, bool]:
    """Task -> whether its launch is warm, of those of a step that can be known ahead."""
    calls: list[Call] = []
    with suppress(Exception):  # what finds its arrays when it runs
        calls = [call for call in frame.bindings.calls(step, turn) if callable(call[0])]
    device = frame.plan.machine.device(owner)
    is_long = [_least_seconds(frame.graph, call[5], device) > LONG_SECONDS for call in calls]
    tries = [_may_be_tried(frame.graph.task_ops[call[5]], call[0]) and not long for call, long in zip(calls, is_long, strict=True)]
    is_warm = [False] * len(calls)
    if calls:
        with suppress(Exception):  # arrays that are not the device's, say: the run tells of what it cannot do
            is_warm = stream.warm(calls, tries, together)
    return {call[5]: w or long for call, w, long in zip(calls, is_warm, is_long, strict=True)}


def _least_seconds(graph: Graph, task: int, device: Device) -> float:
    """What a launch takes at the full speed of a device."""
    op = graph.task_ops[task]
    with suppress(Exception):
        if isinstance(op, Op):
            reads, writes = ([graph.spec(v) for v in row] for row in (graph.reads(task), graph.writes(task)))
            work = op.work(reads, writes, graph.task_attributes[task])
            peak = max(device.flops_per_second.values(), default=math.inf)
            return max(work.flops / peak, (work.bytes_read + work.bytes_written) / device.bytes_per_second)
    return 0.0


def _may_be_tried(op: Op | Nested, kernel: Any) -> bool:
    """True for kernels of this package that have no effect outside."""
    return isinstance(op, Op) and op.pure and bool(family(op)) and not op.allocating and is_ours(kernel)


def _is_nothing(graph: Graph, task: int) -> bool:
    op = graph.task_ops[task]
    return isinstance(op, Nested) or op.view


def _body_of(frame: Frame, task: int, program: Program) -> Frame:
    """A frame of a loop's body where the loop will have it on devices; what is on the host is not there."""
    memories: dict[str, Any] = dict.fromkeys(program.plan.arenas)
    for node, start in frame.plan.bodies.get(task, {}).items():
        memory = frame.memories.get(node)
        if node in memories and memory is not None:
            memories[node] = memory.inside(start, program.plan.arenas[node])
    return Frame(program, {}, memories=memories)


def multiplies_on(plan: Timeline, owner: str) -> bool:
    """True if a plan puts products of matrices on a device, in loops too."""
    ops = plan.graph.task_ops
    for span in plan.spans:
        if isinstance(span.command, Launch) and span.lanes and span.lanes[0].owner == owner:
            op = ops[span.command.task]
            if isinstance(op, Op) and family(op) in _PRODUCTS:
                return True
    return any(multiplies_on(body, owner) for _, body in plan.nested)


__all__ = ["LONG_SECONDS", "Warms", "multiplies_on", "warm"]
