"""A straight plan of one step on a thread of the host, done once: nothing is bound, the launches are walked in the arrays of the graph.

Binding a launch costs more than doing a tiny one, and pays only where it is done again (`binding`, `replay`). Where arrays lie is looked up before
the clock starts, so that the time of a task is its own. Hot path: below 1 us a task beside the kernel (benchmarks/overhead.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import Any, cast

import numpy as np

from hetsched.executors.frame import Frame
from hetsched.executors.memory import HERE
from hetsched.executors.process import tuned
from hetsched.executors.result import Result
from hetsched.executors.solo import traced
from hetsched.graph.alike import alike
from hetsched.graph.op import Op
from hetsched.graph.spec import AnySpec, array_form
from hetsched.machine import HOST
from hetsched.timeline import Timeline

# How a kind of task is done: a view (readers find what it shows), objects made, arrays written, and what finds its arrays when it runs.
_VIEW, _OBJECTS, _ARRAYS, _LATER = range(4)


class Walk:
    """The launches of the only step of a frame, in its order. values: what each value is, as a launch on the host sees it.

    It may be done again, for a next run: the arena, what lies where in it, and the kernels are found then.
    """

    def __init__(self, frame: Frame) -> None:
        graph, step = frame.graph, frame.program.steps[0]
        self.frame, self.graph = frame, graph
        spans = frame.plan.spans
        self.commands = [spans[i].command for i in step.spans]
        self.kind = alike(graph).kind.tolist()
        self.ways = [self._way(task, step.owner) for task in alike(graph).first.tolist()]
        self.starts, self.reads, self.outputs = graph.input_start.tolist(), graph.input_values.tolist(), graph.output_start.tolist()
        self.values: list[Any] = []
        self.later = any(way == _LATER for way, _ in self.ways)
        frame.bindings.elsewhere = frozenset((0,))

    def takes(self, inputs: Mapping[int, Any]) -> bool:
        """True where it can be done again with these inputs: they are taken."""
        return self.frame.retake(inputs)

    def run(self, plan: Timeline, began: float, trace: bool) -> Result:
        """Do it all. With a trace its tasks are timed one by one. When it is over nothing of the run is held. plan: that of the result."""
        frame = self.frame
        marks: dict[int, float] | None = {} if trace else None
        self._find()
        frame.ready()
        with tuned(), np.errstate(all="ignore"):
            start = perf_counter()
            self._go(marks, start)
            finish = perf_counter()
        self._settle()
        outputs = frame.results()
        self.values = []
        frame.let_go()
        return Result.lazily(outputs, traced(frame.program, finish - start if trace else None, marks), plan, perf_counter() - began)

    def close(self) -> None:
        """Give the memory back."""
        self.values = []
        self.frame.close()

    def _find(self) -> None:
        """Where values lie, as far as that is known before anything has run."""
        frame, constants = self.frame, self.graph.constants
        values = self.values = [None] * len(self.graph.value_specs)
        for value in range(self.outputs[0]):
            if value in frame.borrowed or value in constants:
                values[value] = frame.locate(value, HOST, 0)
        if any(way in (_ARRAYS, _VIEW) for way, _ in self.ways):
            self._find_arrays()

    def _way(self, task: int, owner: str) -> tuple[int, Any]:
        op, graph = cast(Op, self.graph.task_ops[task]), self.graph
        if op.view:
            return _VIEW, owner  # it has a kernel only where the caller shall own what it gives
        kernel = self.frame.bindings.kernel_of(task, owner)
        written = [_is_fixed(graph.value_specs[v]) for v in graph.writes(task)]
        return (_ARRAYS if all(x is True for x in written) else _OBJECTS if all(x is None for x in written) else _LATER), kernel

    def _find_arrays(self) -> None:
        """Where arrays lie, as far as that is known before anything has run. A view is known where what it shows is."""
        frame, values, outputs = self.frame, self.values, self.outputs
        for command in self.commands:
            task = command.task  # type: ignore[union-attr]
            way, _ = self.ways[self.kind[task]]
            if way == _ARRAYS:
                for value in range(outputs[task], outputs[task + 1]):
                    values[value] = frame.buffer(value, HOST, 0)
            elif way == _VIEW and outputs[task] not in frame.dynamic:
                values[outputs[task]] = frame.locate(outputs[task], HOST, 0)

    def _go(self, marks: dict[int, float] | None, zero: float) -> None:
        """Do it all. marks: takes when each launch ended, `perf_counter` seconds after `zero`. Raises `TaskError` with the task's name."""
        frame, values, starts, reads, outputs = self.frame, self.values, self.starts, self.reads, self.outputs
        ways, kind, attributes = self.ways, self.kind, self.graph.task_attributes
        scratch, clock = frame.plan.workspaces, perf_counter
        task = -1
        try:
            for command in self.commands:
                task = command.task  # type: ignore[union-attr]
                way, kernel = ways[kind[task]]
                first, last = outputs[task], outputs[task + 1]
                if way == _OBJECTS:
                    made: list[Any] = [None] * (last - first)  # the kernel puts the objects there
                    workspace = frame.workspace(task) if task in scratch else None
                    kernel(np, [values[v] for v in reads[starts[task] : starts[task + 1]]], made, workspace, attributes[task])
                    values[first:last] = made
                    if self.later:
                        self._tell(first, last)
                elif way == _ARRAYS:
                    workspace = frame.workspace(task) if task in scratch else None
                    kernel(np, [values[v] for v in reads[starts[task] : starts[task + 1]]], values[first:last], workspace, attributes[task])
                elif way == _LATER:
                    self._do_later(command, kernel)
                elif first in frame.owned:  # what the caller shall own is copied
                    kernel = frame.bindings.kernel_of(task, kernel)
                    if first in frame.dynamic:
                        self._do_later(command, kernel)
                    else:
                        kernel(np, [values[v] for v in reads[starts[task] : starts[task + 1]]], values[first:last], None, attributes[task])
                else:
                    values[first] = frame.locate(first, HOST, 0)
                    continue
                if marks is not None:
                    marks[task] = clock() - zero
        except Exception as error:
            raise frame.failure(error, task, 0) from error

    def _do_later(self, command: Any, kernel: Any) -> None:
        frame, task = self.frame, command.task
        frame.bindings.launch_later(command, kernel, HOST, frame.workspace(task), frame.attributes(task, 0))(0, HERE)
        for value in self.graph.writes(task):
            self.values[value] = frame.locate(value, HOST, 0)

    def _tell(self, first: int, last: int) -> None:
        """Let the frame know objects that were made."""
        for value in range(first, last):
            self.frame.cells[value, HOST, 0] = self.values[value]

    def _settle(self) -> None:
        """Let the frame know the objects that are outputs."""
        for value in self.graph.outputs.values():
            task = int(self.graph.value_task[value])
            if task >= 0 and self.ways[self.kind[task]][0] == _OBJECTS:
                self._tell(value, value + 1)


def _is_fixed(spec: AnySpec) -> bool | None:
    """True for an array whose extents are known before it is made; None for an object."""
    form = array_form(spec)
    return None if form is None else not form.is_bounded
