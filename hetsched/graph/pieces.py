"""A graph in pieces: some of its tasks as a graph of their own, and some turns of one of its loops as another.

A loop of N turns is the same as loops of fewer turns, one after another, each of which begins with the carried values that the one before ended with.
`piece_of` writes such a loop; pieces of equal shape are one graph, so that they are planned once: what differs from piece to piece (the number of the
first turn, elements of sequences, carried values) are its inputs. The number of a turn is that of the piece plus the first. A piece may lie inside a
cycle (an epoch, whose last turn is a smaller batch): it ends with the smaller turn, or has none. What runs every k turns (the order of an epoch's
rows) is then made before the piece, for the turn in which the whole loop would have made it. Names, attributes and (by the names) random numbers are
those of the whole graph, and so are the values, to the last bit where the same kernels run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from hetsched.graph.graph import TURN, Graph, If, Loop, Nested, Where
from hetsched.graph.rest import tail_of, whole_turns
from hetsched.graph.spec import AnySpec, Spec, array_form
from hetsched.graph.spec import Sequence as SequenceSpec
from hetsched.graph.writing import Writer


@dataclass(frozen=True)
class Places:
    """The device of each task of a graph that holds no graph, and the places inside its loops and ifs.

    otherwise: of an if those of its other branch.
    """

    devices: Mapping[int, str] = field(default_factory=dict)
    loops: Mapping[int, Places] = field(default_factory=dict)
    otherwise: Places | None = None


class Shape(NamedTuple):
    """What pieces of one loop have in common that are one graph. is_inside: of a cycle, not from the beginning of one to an end.

    is_last: with its smaller turn.
    """

    turns: int
    is_inside: bool
    is_last: bool


class Source(NamedTuple):
    """What an input of a piece is. `value`: a value of the whole graph. `slice`: elements of one. `carried`: carried value number `value`.

    `first`: the number of the piece's first turn. `window`: that of the turn in which tasks of every k turns last ran.
    """

    kind: str
    value: int = -1


@dataclass(frozen=True)
class Part:
    """Some tasks of a graph as a graph. inputs, outputs: name -> value of the whole graph. tasks, values: of each of the part's that of the whole."""

    graph: Graph
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    tasks: tuple[int, ...]
    values: tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """Some turns of loop task `task` of a graph, as a graph; its outputs are called by their numbers: carried values, then collected ones.

    Of a loop that ends by a value, `stop` is what that was in each turn.

    tasks, values: of each of the piece's those of the whole graph, else -1. body_tasks, body_values: the same of the loop's body.
    """

    graph: Graph
    task: int
    shape: Shape
    sources: Mapping[str, Source]
    tasks: tuple[int, ...]
    values: tuple[int, ...]
    body_tasks: tuple[int, ...]
    body_values: tuple[int, ...]

    @property
    def number(self) -> int:
        """The number of the loop among the piece's tasks."""
        return self.tasks.index(self.task)


# Whether and where ------------------------------------------------------------------------------------------------------------


def why_whole(graph: Graph, task: int) -> str | None:
    """Why a loop cannot be taken up again in the middle, or None where it can."""
    loop = graph.task_ops[task]
    assert isinstance(loop, Loop)
    reads = dict(zip(loop.inputs, graph.reads(task), strict=True))
    if whole_turns(loop) >= loop.turns and _unit(loop) >= loop.turns:
        return "its turns belong together"
    for name, _ in loop.carried:
        spec = loop.body.spec(loop.body.inputs[name])
        if not isinstance(spec, Spec) or spec.is_bounded:
            return f"its carried value {name!r} is {spec!r}, which is not kept"
    for name in loop.collected:
        if array_form(loop.body.spec(loop.body.outputs[name])) is None:
            return f"it collects {name!r}, which is no array"
        if name in loop.rows and ((loop.remainder is not None and loop.turns != loop.cycle) or loop.stop is not None):
            return f"it collects rows of {name!r} from {'a number of turns that nobody knows' if loop.stop is not None else 'several cycles'}"
    for name in loop.sequences:
        spec = graph.spec(reads[name])
        if isinstance(spec, SequenceSpec) and not isinstance(spec.length, int):
            return f"nobody knows how long its sequence {name!r} is"
        if isinstance(spec, SequenceSpec) and spec.rows is not None and loop.remainder is not None and loop.turns != loop.cycle:
            return f"its sequence {name!r} is of rows for several cycles"
    return None


def next_turn(loop: Loop, begun: int, most: int) -> int:
    """Where a piece that begins at turn `begun` ends, if it should have about `most` turns: `begun` < it <= `loop.turns`."""
    unit = whole_turns(loop)
    left = loop.turns - begun
    if most >= left:
        return loop.turns
    if most >= unit and begun % unit == 0:
        return begun + most // unit * unit
    if _unit(loop) == 1:  # pieces of equal size, up to the end of the cycle
        start = begun // unit * unit
        n = max(1, round(unit / most)) if most < unit else 1
        size = -(-unit // n)
        return min(start + ((begun - start) // size + 1) * size, start + unit, loop.turns)
    return min(begun // unit * unit + unit, loop.turns)


def shape_of(loop: Loop, begun: int, end: int) -> Shape:
    """The shape of the piece from turn `begun` to turn `end`."""
    unit = whole_turns(loop)
    is_inside = not (begun % unit == 0 and (end % unit == 0 or (end == loop.turns and loop.remainder is None)))
    return Shape(end - begun, is_inside, is_inside and loop.remainder is not None and end % loop.cycle == 0)


def _unit(loop: Loop) -> int:
    """The turns that cannot be parted: 1, or a whole cycle where what belongs to it cannot be made by itself."""
    unit = whole_turns(loop)
    if unit == 1:
        return 1
    if any(k not in (1, unit) for k in loop.every.values()) or (loop.remainder is not None and loop.cycle != unit):
        return unit
    return 1 if _window(loop) is not None else unit


def _window(loop: Loop) -> tuple[set[int], set[int]] | None:
    """(the tasks that run once a cycle, what they need of the body beside them); None where that is more than invariants and the turn."""
    body = loop.body
    seldom = set(loop.seldom)
    bound = {body.inputs[name] for name in (*loop.sequences, *(a for a, _ in loop.carried))}
    needed: set[int] = set()
    pending = list(seldom)
    while pending:
        t = pending.pop()
        if t in needed or isinstance(body.task_ops[t], Nested):
            if t in needed:
                continue
            return None
        needed.add(t)
        for v in body.reads(t):
            if v in bound:
                return None
            if int(body.value_task[v]) >= 0:
                pending.append(int(body.value_task[v]))
    made = {v for t in seldom for v in body.writes(t)}
    if any(body.base(v) in made for v in body.outputs.values()) or any(a in seldom or b in seldom for a, b in body.after):
        return None
    if loop.remainder is not None:
        rest = loop.remainder
        if any(rest.spec(w) != body.spec(v) for t in needed for v, w in zip(body.writes(t), rest.writes(t), strict=True)):
            return None
    return seldom, needed - seldom


# Writing ----------------------------------------------------------------------------------------------------------------------


class _Writer(Writer):
    """Of tasks that are held to their places."""

    def __init__(self, whole: Graph, places: Places) -> None:
        super().__init__(whole, "part")
        self.places = places

    def input(self, name: str, spec: AnySpec, value: int = -1) -> tuple[str, int]:
        while name in self.builder.inputs:
            name += "'"
        i = self.builder.inputs[name] = self.new(name, spec, -1, value)
        return name, i

    def placed(self, t: int, read: Callable[[int], int]) -> None:
        """Task `t` of the whole, at its place there."""
        op = self.whole.task_ops[t]
        if isinstance(op, Nested):
            op = _held(op, self.places.loops.get(t, Places()))
        self.hold(self.copy(t, op, [read(v) for v in self.whole.reads(t)]), self.places.devices.get(t))

    def hold(self, number: int, device: str | None) -> None:
        """Task `number` here runs on `device`, if that is known."""
        if device is not None:
            self.builder.where[number] = Where((device,))


def pinned(graph: Graph, places: Places) -> Graph:
    """`graph`, each task held to its place."""
    out = copy.copy(graph)
    out.where = {t: Where((device,)) for t, device in places.devices.items()}
    if places.loops:
        out.task_ops = list(graph.task_ops)
        for t, inner in places.loops.items():
            op = out.task_ops[t]
            assert isinstance(op, Nested)
            out.task_ops[t] = _held(op, inner)
        out.kinds = None
    return out


def _held(op: Nested, places: Places) -> Nested:
    """A loop or an if, the tasks in it held to their places."""
    if isinstance(op, If):
        return replace(op, then=pinned(op.then, places), otherwise=pinned(op.otherwise, places.otherwise or Places()))
    assert isinstance(op, Loop)
    return replace(op, body=pinned(op.body, places), remainder=None if op.remainder is None else pinned(op.remainder, places))


def needed_for(graph: Graph, values: Collection[int], known: Collection[int], done: Collection[int], tasks: Collection[int] = ()) -> set[int]:
    """The tasks that are to run so that `values` are there, and `tasks` have run. known: values that are there; done: tasks that need not run."""
    out: set[int] = set()
    before: dict[int, list[int]] = {}
    for a, b in graph.after:
        before.setdefault(b, []).append(a)
    pending = [int(graph.value_task[v]) for v in values if v not in known] + list(tasks)
    while pending:
        t = pending.pop()
        if t < 0 or t in out or t in done:
            continue
        out.add(t)
        pending += [int(graph.value_task[v]) for v in graph.reads(t) if v not in known]
        pending += before.get(t, [])
    return out


def part_of(graph: Graph, tasks: Collection[int], places: Places, wanted: Collection[int]) -> Part:
    """`tasks` of a graph as a graph. Its outputs are the values that they make of those `wanted`."""
    w = _Writer(graph, places)
    inputs: dict[str, int] = {}
    names = {v: name for name, v in graph.inputs.items()}

    def read(v: int) -> int:
        if v not in w.value:
            if v in graph.constants:
                return w.constant(v)
            name, w.value[v] = w.input(names.get(v, graph.value_names[v]), graph.spec(v), v)
            inputs[name] = v
        return w.value[v]

    for t in sorted(tasks):
        w.placed(t, read)
    outputs = {f"{v}": v for t in sorted(tasks) for v in graph.writes(t) if v in wanted}
    w.builder.outputs = {name: w.value[v] for name, v in outputs.items()}
    made, its_tasks, its_values = w.finished()
    return Part(made, inputs, outputs, its_tasks, its_values)


def piece_of(graph: Graph, task: int, shape: Shape, places: Places) -> Piece:
    """`shape.turns` turns of loop task number `task` of `graph`, one that `why_whole` has nothing against."""
    return _Piece(graph, task, shape, places).piece()


class _Piece:
    def __init__(self, graph: Graph, task: int, shape: Shape, places: Places) -> None:
        loop = graph.task_ops[task]
        assert isinstance(loop, Loop)
        self.graph, self.task, self.shape, self.loop = graph, task, shape, loop
        self.inner = places.loops.get(task, Places())
        found = _window(loop) if shape.is_inside else None
        self.seldom, self.beside = found if found is not None else (set(), set())
        self.outer = _Writer(graph, Places())
        self.sources: dict[str, Source] = {}
        self.reads = dict(zip(loop.inputs, graph.reads(task), strict=True))

    def piece(self) -> Piece:
        loop, body, outer = self.loop, self.loop.body, self.outer
        held = self._held()
        made = [v for t in sorted(self.seldom) for v in body.writes(t)]
        new, rest = (None if g is None else self._body(g, made) for g in (body, loop.remainder))
        assert new is not None
        extra = [*(self._held_name(v) for v in made), *([self._first_name()] if new.has_first else [])]
        kept_remainder = rest.graph if rest is not None and (not self.shape.is_inside or self.shape.is_last) else None
        written = replace(
            loop, body=new.graph, turns=self.shape.turns, invariants=(*loop.invariants, *extra), remainder=kept_remainder,
            cycle=0 if kept_remainder is None else self.shape.turns if self.shape.is_inside else loop.cycle,
            every={name: k for name, k in loop.every.items() if body.task_index[name] not in self.seldom},
            rows={name: self._rows(name, n) for name, n in loop.rows.items()},
            collected=(*loop.collected, *([loop.stop] if loop.stop is not None and loop.stop not in loop.collected else [])),
        )  # fmt: skip
        ins = [self._value(self.reads[x]) for x in loop.invariants] + [held[v] for v in made]
        if new.has_first:
            ins.append(self._input(Source("first"), "first turn", TURN))
        ins += [self._input(Source("slice", self.reads[x]), f"some of {x}", self._slice_spec(self.reads[x])) for x in loop.sequences]
        for k, (x, _) in enumerate(loop.carried):
            ins.append(self._input(Source("carried", k), x, body.spec(body.inputs[x])))
        number = outer.append(self.task, self.graph.task_names[self.task], written, self.graph.task_attributes[self.task], ins)
        specs = written.infer([outer.builder.value_specs[i] for i in ins])
        writes = list(self.graph.writes(self.task))
        for k, (name, spec) in enumerate(zip(written.outputs, specs, strict=True)):
            v = writes[k] if k < len(writes) else -1
            made_here = outer.new(self.graph.value_names[v] if v >= 0 else "stop", spec, number, v)
            if v >= 0:
                outer.builder.outputs[str(k)] = made_here
            if name == loop.stop and k >= len(loop.carried):
                outer.builder.outputs["stop"] = made_here
        made_graph, tasks, values = outer.finished()
        return Piece(made_graph, self.task, self.shape, self.sources, tasks, values, new.tasks, new.values)

    # The graph around it

    def _input(self, source: Source, name: str, spec: AnySpec) -> int:
        name, i = self.outer.input(name, spec, source.value if source.kind == "value" else -1)
        self.sources[name] = source
        return i

    def _value(self, v: int) -> int:
        outer = self.outer
        if v not in outer.value:
            if v in self.graph.constants:
                return outer.constant(v)
            outer.value[v] = self._input(Source("value", v), self.graph.value_names[v], self.graph.spec(v))
        return outer.value[v]

    def _held(self) -> dict[int, int]:
        """What runs once a cycle, done before the piece: value of the body -> its number in the graph around."""
        body, outer, loop = self.loop.body, self.outer, self.loop
        found: dict[int, int] = {}

        def read(v: int) -> int:
            if v not in found:
                if v in body.constants:
                    found[v] = outer.new(body.value_names[v], body.spec(v), -1)
                    outer.builder.constants[found[v]] = body.constants[v]
                else:
                    name = next(name for name, i in body.inputs.items() if i == v)
                    is_turn = name == loop.turn
                    found[v] = self._input(Source("window"), "turn of the order", TURN) if is_turn else self._value(self.reads[name])
            return found[v]

        for t in sorted(self.seldom | self.beside):
            reads = [read(v) for v in body.reads(t)]
            op = body.task_ops[t]
            number = outer.append(-1, body.task_names[t], op, body.task_attributes[t], reads)
            outer.hold(number, self.inner.devices.get(t))
            for v in body.writes(t):
                found[v] = outer.new(body.value_names[v], body.spec(v), number)
        return found

    def _slice_spec(self, v: int) -> AnySpec:
        spec, n = self.graph.spec(v), self.shape.turns
        if isinstance(spec, Spec):
            return Spec((n, *spec.shape[1:]), spec.dtype)
        assert isinstance(spec, SequenceSpec)
        if spec.rows is None:
            return SequenceSpec(spec.element, n, None)
        assert isinstance(spec.element, Spec)
        return SequenceSpec(spec.element, n, self._some_rows(spec.element.bounds[0], spec.rows))

    def _rows(self, name: str, rows: int) -> int:
        spec = self.loop.body.spec(self.loop.body.outputs[name])
        assert isinstance(spec, Spec)
        return self._some_rows(spec.bounds[0], rows)

    def _some_rows(self, step: int, rows: int) -> int:
        """Rows of the piece's batches: all of them are full, but for one at the very end."""
        has_smaller = self.loop.remainder is not None and (self.shape.is_last or not self.shape.is_inside)
        return self.shape.turns * step - (-rows % step if has_smaller else 0)

    # The body

    def _held_name(self, v: int) -> str:
        return f"{self.loop.body.value_names[v]} of the cycle"

    def _first_name(self) -> str:
        return f"first {self.loop.turn}"

    def _body(self, body: Graph, made: Sequence[int]) -> _Body:
        from hetsched.graph.ops import find

        w, loop = _Writer(body, self.inner), self.loop
        names = list(body.inputs)
        for name, v in body.inputs.items():
            _, w.value[v] = w.input(name, body.spec(v), v)
        for v in body.constants:
            w.constant(v)
        for v in made:
            _, w.value[v] = w.input(self._held_name(v), body.spec(v), v)
        assert list(w.builder.inputs)[: len(names)] == names
        turn = body.inputs[loop.turn] if loop.turn is not None else -1
        left = [t for t in range(len(body)) if t not in self.seldom]
        has_first = turn >= 0 and (turn in body.outputs.values() or any(turn in body.reads(t) for t in left))
        if has_first:
            _, first = w.input(self._first_name(), TURN)
            reads = (w.value[turn], first)
            add = w.append(-1, f"{self.graph.task_names[self.task]}/number of the turn", find("tensor.add"), {}, reads)
            w.value[turn] = w.new("number of the turn", TURN, add)
        for t in left:
            w.placed(t, w.value.__getitem__)
        w.builder.outputs = {name: w.value[v] for name, v in body.outputs.items()}
        return _Body(*w.finished(), has_first)


class _Body(NamedTuple):
    graph: Graph
    tasks: tuple[int, ...]
    values: tuple[int, ...]
    has_first: bool


def inputs_of(piece: Piece, graph: Graph, begun: int, value: Callable[[int], Any], carried: Sequence[Any]) -> dict[str, Any]:
    """The inputs of a piece that begins at turn `begun`. value: a value of the whole graph, on the host. carried: where the loop has come to."""
    loop = graph.task_ops[piece.task]
    assert isinstance(loop, Loop)
    out: dict[str, Any] = {}
    for name, source in piece.sources.items():
        if source.kind == "value":
            out[name] = value(source.value)
        elif source.kind == "carried":
            out[name] = carried[source.value]
        elif source.kind == "slice":
            out[name] = _slice(value(source.value), graph.spec(source.value), piece.graph.spec(piece.graph.inputs[name]), begun)
        else:
            turn = begun if source.kind == "first" else begun // whole_turns(loop) * whole_turns(loop)
            out[name] = np.array(turn, TURN.dtype)
    return out


def _slice(found: Any, spec: AnySpec, wanted: AnySpec, begun: int) -> Any:
    tail = tail_of(found, spec, begun)
    n = array.bounds[0] if isinstance(tail, np.ndarray) and (array := array_form(wanted)) is not None else None
    if n is None:
        assert isinstance(wanted, SequenceSpec)
        assert isinstance(wanted.length, int)
        n = wanted.length
    return tail[:n]


__all__ = [
    "Part",
    "Piece",
    "Places",
    "Shape",
    "Source",
    "inputs_of",
    "needed_for",
    "next_turn",
    "part_of",
    "piece_of",
    "pinned",
    "shape_of",
    "why_whole",
]
