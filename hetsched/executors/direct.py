"""A short plan on one stream of a device, run again and again: the calling thread hands it over by itself, and waits for its end.

Between a caller and the thread that drives a device lie two hand-overs, an event and a walk for each step: several hundred microseconds for a request
whose launches take twenty. Where a plan has no more than one order that counts, that of one stream, nobody needs to be asked between its steps. So
copies and launches go to the stream of the launches one after another, launches that follow each other as one CUDA graph, and there is one event.

What the plan's constants bring to the device stays there where the plan puts nothing else into their bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from hetsched.executors.backends._sites import task_of
from hetsched.executors.binding import Call
from hetsched.executors.frame import Frame
from hetsched.executors.outline import in_order
from hetsched.graph.spec import array_form
from hetsched.machine import HOST
from hetsched.timeline import Command, Copy, Lane, Launch, Timeline

if TYPE_CHECKING:
    from hetsched.executors.live import Fleet

# A run that is planned to take longer goes to the driving threads: Ctrl-C ends it there, and what is spared here is no large part of it.
SHORT_SECONDS = 10e-3


def stream_for(frame: Frame, fleet: Fleet) -> Any:
    """The stream that does a plan by itself, in order; None where several do, or the host has something to do or to look at."""
    plan = frame.plan
    if plan.loop is not None or plan.loops or plan.prologue or plan.epilogue or frame.dynamic or plan.makespan > SHORT_SECONDS:
        return None
    if len(fleet.devices) != 1:
        return None
    device, lanes = fleet.devices[0], set[Lane]()
    for span in plan.spans:
        command = span.command
        if isinstance(command, Copy):
            if {command.src.node, command.dst.node} != {HOST, device.memory} or command.src.generation or command.dst.generation:
                return None
        elif isinstance(command, Launch):
            lanes.update(span.lanes)
    if len(lanes) != 1 or next(iter(lanes)).owner != device.id:
        return None
    stream = fleet.drivers[device.id].streams.get(lanes.pop())
    return stream if getattr(stream, "is_direct", False) else None


class Direct:
    """The steps of a frame in order, for `stream`. Their kernels have been launched before. memory: the node of the stream's device."""

    def __init__(self, frame: Frame, stream: Any, memory: str) -> None:
        from hetsched.executors.live import StreamDoer

        self.frame, self.stream = frame, stream
        self._doer = StreamDoer(stream)
        plan, steps = frame.plan, frame.program.steps
        stay = resident(plan, memory)
        commands = {step: plan.spans[steps[step].spans[0]].command for step in in_order(frame.program)}
        brings = {step for step, c in commands.items() if isinstance(c, Copy) and c.src.node == HOST and c.value in stay}
        self._pieces = self._pieces_of(commands)
        self._later = self._pieces_of({step: c for step, c in commands.items() if step not in brings}) if brings else self._pieces

    def _pieces_of(self, commands: Mapping[int, Command]) -> list[list[Call] | int]:
        """Launches that follow each other, or the number of a step that copies."""
        pieces: list[list[Call] | int] = []
        for step, command in commands.items():
            if isinstance(command, Copy):
                pieces.append(step)
                continue
            calls = [call for call in self.frame.bindings.calls(step, 0) if callable(call[0])]
            last = pieces[-1] if pieces else step
            if isinstance(last, list):
                last += calls
            elif calls:
                pieces.append(calls)
        return pieces

    def run(self) -> None:
        """Hand over all steps and wait until they are done; the frame has been renewed. Raises `TaskError`."""
        frame, stream, task = self.frame, self.stream, -1
        if hasattr(stream, "doubts"):
            stream.doubts = None  # what is doubted is looked at on the spot: the device's driving thread does not know of it
        try:
            for piece in self._pieces:
                if isinstance(piece, int):
                    frame.bindings.issue(piece, 0, self._doer)
                    continue
                task = piece[0][5]
                if not stream.segment(piece):
                    for kernel, inputs, outputs, workspace, attributes, task in piece:  # noqa: B007 (read in the handler)
                        stream.launch(kernel, inputs, outputs, workspace, attributes)
            stream.record().wait()
        except BaseException as error:
            with suppress(Exception):  # what is on its way uses memory that is given back
                stream.record().wait()
            if isinstance(error, Exception):
                told = task_of(error, [call for piece in self._pieces if isinstance(piece, list) for call in piece])
                if told is not None:
                    stream.forget_faults()
                    raise frame.failure(error, told, 0) from error
                raise frame.failure(error, getattr(error, "failed_task", task), 0) from error
            raise
        self._pieces = self._later  # what the constants brought is there


def resident(plan: Timeline, node: str) -> frozenset[int]:
    """Constants in whose bytes on a node a plan puts nothing else."""
    graph = plan.graph
    ranges: list[tuple[int, int, int]] = [(start, start + n, -1) for at, start, n in plan.workspaces.values() if at == node]
    for replica, start in plan.offsets.items():
        form = array_form(graph.spec(replica.value))
        if replica.node == node and form is not None:
            ranges.append((start, start + form.nbytes, replica.value))
    return frozenset(
        value for first, last, value in ranges if value in graph.constants and not any(a < last and first < b and v != value for a, b, v in ranges)
    )


__all__ = ["SHORT_SECONDS", "Direct", "resident", "stream_for"]
