"""What a loop's body says of its values: where they come from over the turns, whose bytes they use, and what may be written in place."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from hetsched.graph.graph import Loop
from hetsched.graph.op import Op
from hetsched.graph.spec import AnySpec, Spec
from hetsched.graph.spec import Sequence as SequenceSpec


class Use(NamedTuple):
    """Task `task` of turn i + turns uses the bytes of a value of turn i (itself, or through views)."""

    task: int
    turns: int


class Order(NamedTuple):
    """Task `later` of turn i + turns starts only when task `before` of turn i has finished."""

    before: int
    later: int
    turns: int


class Body:
    """A loop's body (of a loop without `problems()`), its values followed through carried inputs and views."""

    def __init__(self, loop: Loop) -> None:
        self.loop, self.graph = loop, loop.body
        graph = self.graph
        self.carried = {graph.inputs[a]: graph.outputs[b] for a, b in loop.carried}
        self.every = [loop.every.get(name, 1) for name in graph.task_names]
        self.producer: list[int] = graph.value_task.tolist()
        # Inputs that are another value every turn; all others stay the same for the whole loop.
        self.fresh = {graph.inputs[name] for name in (*loop.sequences, *([loop.turn] if loop.turn else []))}
        self.reads = [graph.reads(t) for t in range(len(graph))]

    def op(self, task: int) -> Op | None:
        """The task's op, None for a nested loop."""
        op = self.graph.task_ops[task]
        return op if isinstance(op, Op) else None

    def is_view(self, task: int) -> bool:
        """True for a task that only gives its input's bytes another shape."""
        op = self.op(task)
        return op is not None and op.view

    def source(self, value: int) -> tuple[int, int]:
        """(the value that `value` of turn i is, from turn i - distance; distance): a carried input is an output of the turn before."""
        distance = 0
        while value in self.carried:
            value = self.carried[value]
            distance += 1
        return value, distance

    def root(self, value: int) -> tuple[int, int]:
        """(the value whose bytes `value` uses, distance), through carried inputs and views."""
        distance = 0
        while True:
            value, more = self.source(value)
            distance += more
            task = self.producer[value]
            if task < 0 or not self.is_view(task):
                return value, distance
            value = self.reads[task][0]

    def problems(self) -> list[str]:
        """What cannot be planned: carried state that is only what other carried state was a turn before has no bytes for its first value."""
        out = []
        for old, new in self.loop.carried:
            value, distance = self.root(self.graph.outputs[new])
            if distance or self.producer[value] < 0:
                name = self.graph.value_names[value]
                out.append(f"carried {old!r} becomes {name!r} as it was, without a task that makes it; give it a copy (tensor.scale by 1)")
        return out

    @cached_property
    def wanted(self) -> list[int]:
        """Values that must be on the host every turn: what is collected, and the stop value."""
        names = [*self.loop.collected, *([self.loop.stop] if self.loop.stop else [])]
        return list(dict.fromkeys(self.graph.outputs[name] for name in names))

    @cached_property
    def uses(self) -> dict[int, list[Use]]:
        """Root value -> who uses its bytes. A view uses bytes only where its value is collected (the collecting is done with its launch)."""
        out: dict[int, list[Use]] = {}
        for t, values in enumerate(self.reads):
            if self.is_view(t) and self.graph.writes(t)[0] not in self.wanted:
                continue
            for value in dict.fromkeys(values):
                root, distance = self.root(value)
                if Use(t, distance) not in out.setdefault(root, []):
                    out[root].append(Use(t, distance))
        return out

    @cached_property
    def one_slot(self) -> dict[int, int]:
        """Value -> its task, where one slot serves all turns: every reader of the old value comes before the task writes the new one.

        So it is for opaque values (a cell, not a ring) and for carried outputs that may be written in place: the op says so, the task reads
        the old value only there. A value whose readers cannot come first (a circle) is left out.
        """
        ahead: list[list[int]] = [[] for _ in range(len(self.graph))]
        for t, values in enumerate(self.reads):
            for value in values:
                if self.producer[value] >= 0:
                    ahead[self.producer[value]].append(t)
        for a, b in self.graph.after:
            ahead[a].append(b)
        found: dict[int, int] = {}
        for value, t in enumerate(self.producer):
            if t < 0 or not (dense(self.graph.spec(value)) is None or self._may_overwrite(value, t)):
                continue
            uses = self.uses.get(value, [])
            first = [u.task for u in uses if u.turns == 1 and u.task != t]
            if any(u.turns > 1 for u in uses) or any(_reaches(ahead, t, r) for r in first):
                continue
            for r in first:
                ahead[r].append(t)
            found[value] = t
        return found

    def _may_overwrite(self, value: int, task: int) -> bool:
        """True if `task` may write carried output `value` over the input that becomes it."""
        op, reads, writes = self.op(task), self.reads[task], self.graph.writes(task)
        if op is None or op.view or sum(self.root(v)[0] == value for v in reads) != 1:
            return False
        old = {a for a, b in self.carried.items() if b == value}
        return any(o < len(writes) and writes[o] == value and i < len(reads) and reads[i] in old for o, i in op.inplace)

    @cached_property
    def orders(self) -> list[Order]:
        """What must be in order beyond the data: `after`, reuse of single slots, tasks with effects or scratch by turns, the stop value."""
        graph = self.graph
        out = [Order(a, b, 0) for a, b in graph.after]
        for value, t in self.one_slot.items():
            out.append(Order(t, t, 1))
            out += [Order(u.task, t, 1 - u.turns) for u in self.uses.get(value, []) if not (u.task == t and u.turns == 1)]
        out += [Order(t, t, 1) for t in range(len(graph)) if self.op(t) is None or not graph.task_ops[t].pure or self.scratch(t)]
        # A value that runs every k turns is read by k turns of its readers; one edge from the last of them is enough if they are in order.
        for value, uses in self.uses.items():
            if self.producer[value] >= 0 and self.every[self.producer[value]] > 1:
                out += [Order(u.task, u.task, 1) for u in uses]
        return list(dict.fromkeys(out))

    def scratch(self, task: int) -> int:
        """Bytes of workspace of the task's launch."""
        op, graph = self.op(task), self.graph
        if op is None or op.workspace is None:
            return 0
        ins = [graph.spec(v) for v in self.reads[task]]
        outs = [graph.spec(v) for v in graph.writes(task)]
        return int(op.workspace(ins, outs, graph.task_attributes[task]))

    def fixed(self) -> Iterator[int]:
        """Inputs and constants that are the same in every turn."""
        for value, task in enumerate(self.producer):
            if task < 0 and value not in self.fresh and value not in self.carried:
                yield value


def dense(spec: AnySpec) -> Spec | None:
    """The array that holds a value of `spec`, None where it is an object on the host."""
    if isinstance(spec, Spec):
        return spec
    if isinstance(spec, SequenceSpec) and isinstance(spec.element, Spec) and spec.length is not None and not spec.element.is_bounded:
        return spec.array
    return None


def _reaches(ahead: list[list[int]], start: int, goal: int) -> bool:
    seen, stack = {start}, [start]
    while stack:
        t = stack.pop()
        if t == goal:
            return True
        for u in ahead[t]:
            if u not in seen:
                seen.add(u)
                stack.append(u)
    return False
