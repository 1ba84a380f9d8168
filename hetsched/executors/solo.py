"""Plans that are one step on a thread of the host: the caller's thread does them, without walk, lock or crew."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import perf_counter

import numpy as np

from hetsched.executors.frame import Frame
from hetsched.executors.process import tuned
from hetsched.executors.program import Program, is_solo
from hetsched.executors.result import Result
from hetsched.executors.tracing import Note, trace_of
from hetsched.timeline import Timeline


def run(frame: Frame, began: float, trace: bool = True) -> Result:
    """Run a frame whose program `is_solo`."""
    with tuned(), np.errstate(all="ignore"):
        start = perf_counter()
        frame.perform(0, 0)
        finish = perf_counter()
    return Result.lazily(frame.results(), traced(frame.program, finish - start if trace else None), frame.plan, perf_counter() - began)


def traced(program: Program, seconds: float | None) -> Callable[[], Timeline]:
    """What gives the trace of a run of `seconds`; of None, a trace without spans."""
    return partial(_trace, program, seconds)


def _trace(program: Program, seconds: float | None) -> Timeline:
    step = program.steps[0]
    if seconds is None:
        return trace_of(program, (), {}, 1, {})
    return trace_of(program, [Note(0, 0, step.lanes[0].number, 0.0, seconds)], {step.owner: seconds}, 1, {})


__all__ = ["is_solo", "run", "traced"]
