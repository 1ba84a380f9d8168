"""What a loop's body collects: element i of a sequence each turn, brought to its place in the frame around the body.

A collected value is gathered on the host when the step that makes it is done. A value that a copy brings to the host for nothing else is copied
straight to its place. A collected carried value is what an earlier turn made: it is gathered when it is made, for the turn it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from hetsched.graph.spec import Sequence as SequenceSpec
from hetsched.graph.spec import UpTo, array_form
from hetsched.machine import HOST
from hetsched.timeline import Copy, Launch

if TYPE_CHECKING:
    from hetsched.executors.frame import Frame


class Gathering:
    """The collected values of one frame.

    names: collected value -> the names that it is collected under, mostly one. targets: name -> the array of the whole sequence, in the frame around
    this one.
    """

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.targets: dict[str, Any] = {}
        self.found: dict[int, dict[int, Any]] = {}
        graph, loop, carried = frame.graph, frame.loop, frame.program.carried
        self.names: dict[int, list[str]] = {}
        for name in loop.collected if loop is not None else ():
            self.names.setdefault(graph.outputs[name], []).append(name)
        # What is gathered when a value is made: (gathered value, turns from the making to the turn it belongs to); and what is only read.
        self.made_with: dict[int, list[tuple[int, int]]] = {}
        self.read_last: list[int] = []
        for value in self.names:
            maker, shift = value, 0
            while (value, HOST) not in frame.copied and (base := graph.base(maker)) in carried:
                maker, shift = carried[base], shift + 1
                if shift > len(carried):
                    break
            if (maker, HOST) in frame.copied or int(graph.value_task[graph.base(maker)]) >= 0:
                self.made_with.setdefault(maker, []).append((value, shift))
            else:
                self.read_last.append(value)
        self.straight = self._find_straight() if loop is not None else set()

    def _find_straight(self) -> set[int]:
        """Collected values that a copy can bring straight to their place in the sequence, because nothing else on the host looks at them."""
        frame, loop = self.frame, self.frame.loop
        out = {v for v, rows in self.made_with.items() if (v, HOST) in frame.copied and rows == [(v, 0)] and frame.every_k(v) == 1}
        out -= {*frame.program.carried.values(), *frame.dynamic, *(v for v, names in self.names.items() if len(names) > 1)}
        if loop is not None and loop.stop is not None:
            out.discard(frame.graph.outputs[loop.stop])
        for span in frame.plan.spans:
            command = span.command
            reads = command.reads if isinstance(command, Launch) else (command.src,) if isinstance(command, Copy) else ()
            out -= {r.value for r in reads if r.node == HOST}
        return out

    def is_straight(self, value: int) -> bool:
        """True if the copy of a value to the host ends at its place in the sequence."""
        return value in self.straight and self.names[value][0] in self.targets

    def target(self, value: int) -> Any:
        """The array of the whole sequence of a value that `is_straight`."""
        return self.targets[self.names[value][0]]

    def is_by_rows(self, value: int) -> bool:
        """True for a value whose elements are rows of one array."""
        loop = self.frame.loop
        return loop is not None and any(name in loop.rows for name in self.names.get(value, ()))

    def collectors(self, value: int) -> list[Callable[[int], None]]:
        """What is to be called, with the turn, when `value` has been made on the host."""
        return [self.collector(v, shift) for v, shift in self.made_with.get(value, ())]

    def collector(self, value: int, shift: int = 0) -> Callable[[int], None]:
        """Gathers `value` of turn i + `shift`, called in turn i."""
        frame = self.frame

        def collect(turn: int) -> None:
            turn += shift
            if turn >= frame.turns:
                return
            found = frame.locate(value, HOST, turn)
            for name in self.names[value]:
                if name in self.targets:
                    self._place(name, value, turn, found.shape)[...] = found
                else:
                    self.found.setdefault(value, {})[turn] = found.copy() if isinstance(found, np.ndarray) else found

        return collect

    def row(self, value: int, turn: int, shape: tuple[int, ...]) -> Any:
        """Where the element of a turn lies in the array of the whole sequence, of a value that `is_straight`."""
        return self._place(self.names[value][0], value, turn, shape)

    def _place(self, name: str, value: int, turn: int, shape: tuple[int, ...]) -> Any:
        target, loop = self.targets[name], self.frame.loop
        if loop is not None and name in loop.rows:
            first = loop.rows_before(name, turn)
            return target[first : first + shape[0]]
        return target[turn, ...]

    def begin(self, parent: Frame, task: int, turn: int) -> None:
        """Let collected values be written straight into the parent's replica of the sequence; gather what the first turns took from outside."""
        frame = self.frame
        assert frame.loop is not None
        outs = parent.graph.writes(task)
        self.targets.clear()
        self.found.clear()
        for name, value in zip(frame.loop.collected, outs[len(frame.loop.carried) :], strict=True):
            if array_form(parent.graph.spec(value)) is not None:
                self.targets[name] = parent.buffer(value, HOST, turn)
        for gathered, shift in [row for rows in self.made_with.values() for row in rows]:
            for i in range(min(shift, frame.turns)):
                self.collector(gathered)(i)

    def so_far(self, name: str, turns: int) -> Any:
        """What is collected under `name`, of the first `turns` turns, which have finished: an array, or a list where it has no array form."""
        value, loop = self.frame.graph.outputs[name], self.frame.loop
        if value in self.read_last:
            for i in range(turns):
                self.collector(value)(i)
        if name not in self.targets:
            return [x for i, x in sorted(self.found.get(value, {}).items()) if i < turns]
        return self.targets[name][: loop.rows_before(name, turns) if loop is not None and name in loop.rows else turns]

    def end(self, parent: Frame, task: int, turn: int, ran: int) -> None:
        """Hand the parent its sequences, after `ran` turns."""
        frame = self.frame
        assert frame.loop is not None
        for collected in self.read_last:
            for i in range(ran):
                self.collector(collected)(i)
        outs = parent.graph.writes(task)
        for name, value in zip(frame.loop.collected, outs[len(frame.loop.carried) :], strict=True):
            spec = cast(SequenceSpec, parent.graph.spec(value))
            if name not in self.targets:
                found = self.found.get(frame.graph.outputs[name], {})
                parent.put(value, turn, [x for i, x in sorted(found.items()) if i < ran])
            elif isinstance(spec.length, UpTo):
                n = frame.loop.rows_before(name, ran) if spec.rows is not None else ran
                parent.put(value, turn, self.targets[name][:n])
