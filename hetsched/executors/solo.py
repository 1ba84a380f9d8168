"""Plans that are one step on a thread of the host: the caller's thread does them, without walk, lock or crew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter

import numpy as np

from hetsched.executors.frame import Frame
from hetsched.executors.process import tuned
from hetsched.executors.program import Program, is_solo
from hetsched.executors.result import Result
from hetsched.executors.tracing import Note, trace_of
from hetsched.quiet import no_garbage_collection
from hetsched.timeline import Timeline


def run(frame: Frame, began: float, trace: bool = True) -> Result:
    """Run a frame whose program `is_solo`. With a trace its tasks are timed one by one."""
    marks = None
    with tuned(), np.errstate(all="ignore"):
        frame.bindings.prepare(0, 0)
        frame.ready()
        start = perf_counter()
        if trace:
            marks = frame.perform_timed(0, 0, start)
        else:
            frame.perform(0, 0)
        finish = perf_counter()
    return Result.lazily(frame.results(), traced(frame.program, finish - start if trace else None, marks), frame.plan, perf_counter() - began)


def traced(program: Program, seconds: float | None, marks: Mapping[int, float] | None = None) -> Callable[[], Timeline]:
    """What gives the trace of a run of `seconds`; of None, a trace without spans. marks: task -> when it ended."""
    return partial(_trace, program, seconds, marks)


def _trace(program: Program, seconds: float | None, marks: Mapping[int, float] | None) -> Timeline:
    step = program.steps[0]
    if seconds is None:
        return trace_of(program, (), {}, 1, {})
    with no_garbage_collection():
        return trace_of(program, [Note(0, 0, step.lanes[0].number, 0.0, seconds, marks)], {step.owner: seconds}, 1, {})


__all__ = ["is_solo", "run", "traced"]
