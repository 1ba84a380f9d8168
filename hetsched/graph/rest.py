"""What is left of a graph when some of its tasks are done and some of its loops have come to the end of a turn: a graph of its own.

What is left can then be planned like any graph, on any devices, from what is known by now. A loop that has done N turns becomes one of the turns
left: its sequences begin N elements on, its carried values where they have come to, the number of the turn is a sequence that begins at N, and
what it has collected is joined with what it will. Values, names, attributes and (by the names) random numbers are those of the whole graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from hetsched.graph.graph import TURN, Graph, Loop, Where
from hetsched.graph.op import Attributes, Op, Work
from hetsched.graph.spec import AnySpec, Spec, array_form
from hetsched.graph.spec import Sequence as SequenceSpec
from hetsched.graph.writing import Writer


class Source(NamedTuple):
    """What an input of the rest is. `value`: a value of the graph. `tail`: a sequence from element `turn` on. Of loop task `task` after `turn` turns:
    `carried` (number `value` of its carried values), `head` (what it has collected of value `value`), `turns`: the numbers of its turns from
    `turn` on.
    """

    kind: Literal["value", "tail", "carried", "head", "turns"]
    value: int = -1
    task: int = -1
    turn: int = 0


@dataclass(frozen=True)
class Rest:
    """`graph`: what is left. sources: each of its inputs. tasks, values: of each of its tasks and values the one it is in the whole graph, else -1.

    turns: loop task of the whole graph -> turns that were done before.
    """

    graph: Graph
    sources: Mapping[str, Source]
    tasks: tuple[int, ...]
    values: tuple[int, ...]
    turns: Mapping[int, int]


def whole_turns(loop: Loop) -> int:
    """A loop can be taken up again after any multiple of this many turns: tasks of every k turns then run at once, and cycles begin anew."""
    return math.lcm(max(loop.cycle, 1) if loop.remainder is not None else 1, *(max(k, 1) for k in loop.every.values()))


def can_split(loop: Loop) -> bool:
    """True if a loop can be taken up again in the middle: how many turns it has must be known, and its sequences have a length."""
    return loop.stop is None and whole_turns(loop) < loop.turns and not any(_is_ragged(loop.body.spec(loop.body.outputs[n])) for n in loop.collected)


def _is_ragged(spec: AnySpec) -> bool:
    return not isinstance(spec, Spec) or spec.is_bounded


def rest_of(graph: Graph, done: set[int], turns: Mapping[int, int], ran_on: Callable[[int], str]) -> Rest:
    """What is left of `graph` after the tasks `done`, and after `turns[t]` turns of each loop task t of it, a multiple of `whole_turns`.

    ran_on: task -> the device it ran on, for tasks that have to share it.
    """
    return _Left(graph, done, {t: n for t, n in turns.items() if n > 0}, ran_on).rest()


class _Left(Writer):
    def __init__(self, graph: Graph, done: set[int], turns: Mapping[int, int], ran_on: Callable[[int], str]) -> None:
        super().__init__(graph, "rest")
        self.done, self.turns, self.ran_on = done, turns, ran_on
        self.sources: dict[str, Source] = {}

    def rest(self) -> Rest:
        graph, builder = self.whole, self.builder
        for t in range(len(graph)):
            if t not in self.done:
                self._task(t)
        for t, where in graph.where.items():
            if t in self.number:
                builder.where[self.number[t]] = self._where(where)
        builder.outputs = {name: self.value[v] for name, v in graph.outputs.items() if int(graph.value_task[v]) in self.number}
        builder.bundles = {name: b for name, b in graph.bundles.items() if all(part in builder.outputs for part in b[0])}
        made, tasks, values = self.finished()
        return Rest(made, self.sources, tasks, values, dict(self.turns))

    def _where(self, where: Where) -> Where:
        if where.of_parts and where.allow:
            return replace(where, allow=(*where.allow, "any"))  # those of the group that could do as it says may be done
        if where.same_as is None:
            return where
        other = self.whole.task_index.get(where.same_as)
        if other is None or other in self.number:
            return where
        return replace(where, allow=tuple(self.ran_on(other).split("+")), same_as=None)

    def _input(self, source: Source, name: str, spec: AnySpec) -> int:
        known = self.whole.inputs if source.kind != "value" else {}
        while name in self.builder.inputs or name in known:
            name += "'"
        self.sources[name] = source
        i = self.builder.inputs[name] = self.new(name, spec, -1, source.value if source.kind == "value" else -1)
        return i

    def _read(self, v: int) -> int:
        """The value of the rest that is `v`: made in the rest, a constant, or an input."""
        found = self.value.get(v)
        if found is not None:
            return found
        graph = self.whole
        if v in graph.constants:
            self.constant(v)
        else:
            given = next((name for name, i in graph.inputs.items() if i == v), None)
            self.value[v] = self._input(Source("value", v), given if given is not None else f"done/{graph.value_names[v]}", graph.spec(v))
        return self.value[v]

    def _task(self, t: int) -> None:
        graph, op = self.whole, self.whole.task_ops[t]
        if isinstance(op, Loop) and t in self.turns:
            self._loop(t, op, self.turns[t])
            return
        self.copy(t, op, [self._read(v) for v in graph.reads(t)])

    def _loop(self, t: int, loop: Loop, n: int) -> None:
        graph, name = self.whole, self.whole.task_names[t]
        reads = dict(zip(loop.inputs, graph.reads(t), strict=True))
        sequences = (*loop.sequences, *([loop.turn] if loop.turn is not None else []))
        rows = {key: size - loop.rows_before(key, n) for key, size in loop.rows.items()}
        left = replace(loop, turns=loop.turns - n, sequences=sequences, turn=None, rows=rows)
        ins = [self._read(reads[x]) for x in loop.invariants]
        for x in loop.sequences:
            ins.append(self._input(Source("tail", reads[x], t, n), f"{name}/{x}[{n}:]", _tail(graph.spec(reads[x]), n)))
        if loop.turn is not None:
            ins.append(self._input(Source("turns", -1, t, n), f"{name}/{loop.turn}[{n}:]", Spec((left.turns,), TURN.dtype)))
        for k, (x, _) in enumerate(loop.carried):
            ins.append(self._input(Source("carried", k, t, n), f"{name}/{x} after {n} turns", loop.body.spec(loop.body.inputs[x])))
        number = self.number[t] = self.append(t, name, left, graph.task_attributes[t], ins)
        writes = list(graph.writes(t))
        for v in writes[: len(loop.carried)]:
            self.value[v] = self.new(graph.value_names[v], graph.spec(v), number, v)
        parts = {}
        for v, spec in zip(writes[len(loop.carried) :], left.infer([self.builder.value_specs[i] for i in ins])[len(loop.carried) :], strict=True):
            parts[v] = self.new(graph.value_names[v], spec, number, -1)
        for (v, part), key in zip(parts.items(), loop.collected, strict=True):
            whole = graph.spec(v)
            head = self._input(
                Source("head", v, t, n), f"{graph.value_names[v]}[:{n}]", _head(whole, n, loop.rows_before(key, n) if key in loop.rows else None)
            )
            joined = self.append(-1, f"{graph.value_names[v]} joined", JOIN, {"form": whole}, [head, part])
            self.value[v] = self.new(f"{graph.value_names[v]} joined", whole, joined, v)


def _head(spec: AnySpec, n: int, rows: int | None) -> AnySpec:
    """The first `n` elements of a collected sequence, which are so many `rows` of one array."""
    assert isinstance(spec, SequenceSpec)
    if rows is None:
        return SequenceSpec(spec.element, n)
    assert isinstance(spec.element, Spec)
    return SequenceSpec(spec.element, -(-rows // max(spec.element.bounds[0], 1)), rows)


def _tail(spec: AnySpec, n: int) -> AnySpec:
    """What comes after the first `n` elements of a sequence, or of an array by its leading axis."""
    if isinstance(spec, Spec):
        return Spec((spec.bounds[0] - n, *spec.shape[1:]), spec.dtype)
    assert isinstance(spec, SequenceSpec)
    rows = None
    if spec.rows is not None:
        assert isinstance(spec.element, Spec)
        rows = spec.rows - n * spec.element.bounds[0]
    return SequenceSpec(spec.element, spec.length - n if isinstance(spec.length, int) else spec.length, rows)


class Tail(Sequence[Any]):
    """A list, or what can be indexed like one, from element `first` on; nothing is copied or fetched."""

    def __init__(self, whole: Any, first: int) -> None:
        self.whole, self.first = whole, first

    def __len__(self) -> int:
        return max(len(self.whole) - self.first, 0)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.whole[index + self.first]


def tail_of(found: Any, spec: AnySpec, n: int) -> Any:
    """A sequence (as a loop finds it) without its first `n` elements."""
    if not isinstance(found, np.ndarray):
        return Tail(found, n)
    if isinstance(spec, SequenceSpec) and spec.rows is not None:
        assert isinstance(spec.element, Spec)
        return found[n * spec.element.bounds[0] :]
    return found[n:]


def _join_infer(specs: Sequence[AnySpec], attributes: Attributes) -> list[AnySpec]:
    return [attributes["form"]]


def _join_work(inputs: Sequence[AnySpec], outputs: Sequence[AnySpec], attributes: Attributes) -> Work:
    return Work(0.0, outputs[0].nbytes, outputs[0].nbytes)


def _join(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
    head, tail = inputs
    if array_form(attributes["form"]) is None:
        outputs[0] = [*head, *tail]
        return
    outputs[0][: len(head)] = head
    outputs[0][len(head) :] = tail


JOIN = Op("rest.join", ("head", "tail"), ("whole",), _join_infer, _join_work, kernels={"host": _join}, doc="Two parts of a sequence, joined.")

__all__ = ["JOIN", "Rest", "Source", "Tail", "can_split", "rest_of", "tail_of", "whole_turns"]
