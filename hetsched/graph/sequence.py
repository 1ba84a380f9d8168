"""Sequences of row batches that stay recipes: batches flow from task to task inside one loop, and no whole array lies between.

`data.batch` turns an array into a `LazySequence`. `apply` adds a row-wise op to the recipe instead of a task to the graph. What needs batches
(`nn.train`) writes a loop with `loop_over_batches`, whose body takes rows of a recipe with `Body.take`; what needs the whole array gets it from
`materialize`. A recipe answers for any rows in any order, so shuffled training over a recipe gives what training over the array gives. Where a
recipe begins with rows of a file (`data.batches`), reading them is a stage like the others, and no array is ever whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from hetsched.errors import GraphError
from hetsched.graph.graph import UNKNOWN, Builder, Loop, Value, Where
from hetsched.graph.op import Attributes, Op
from hetsched.graph.spec import Sequence as SequenceSpec
from hetsched.graph.spec import Spec, UpTo

# Ops beyond those marked `elementwise` whose row i of the output depends on row i of the first input alone (other inputs, the weights, serve all
# rows): name -> for which spec of a batch and which attributes that holds.
ROW_WISE: Mapping[str, Callable[[Spec, Attributes], bool]] = {
    **dict.fromkeys(("nn.dense", "nn.conv2d"), lambda x, a: x.ndim > 1),
    **dict.fromkeys(("nn.max_pool2d", "nn.avg_pool2d", "tensor.one_hot"), lambda x, a: True),
    **dict.fromkeys(("nn.softmax", "nn.log_softmax", "tensor.argmax"), lambda x, a: _spares_rows(a.get("axis", -1), x.ndim)),
    **dict.fromkeys(("tensor.sum", "tensor.mean", "tensor.max"), lambda x, a: _spares_rows(a.get("axes"), x.ndim)),
    "tensor.reshape": lambda x, a: tuple(a["shape"])[:1] == (-1,) and math.prod(a["shape"][1:]) == math.prod(x.bounds[1:]),
}


def _spares_rows(axes: Any, ndim: int) -> bool:
    """True if none of `axes` is the leading one. What is no axis at all is left for the op to complain about."""
    named = (axes,) if isinstance(axes, int) else axes
    return isinstance(named, (tuple, list)) and all(isinstance(axis, int) and axis not in (0, -ndim) for axis in named)


@dataclass(frozen=True, eq=False)
class Stage:
    """One primitive op of a recipe: a task of the body of whatever loop the recipe ends in. `name` is the task's full name."""

    op: Op
    inputs: tuple[LazySequence | Value, ...]
    attributes: Attributes
    name: str
    where: Where | None = None

    def __repr__(self) -> str:
        return f"<Stage {self.name}: {self.op.name}>"


@dataclass(frozen=True, eq=False)
class Stored:
    """An array in a file, whose rows are read where they are wanted. `member`: of an .npz file, else "". `name` is the task's full name."""

    path: str
    member: str
    name: str
    where: Where | None = None

    def __repr__(self) -> str:
        return f"<Stored {self.name}: {self.path}>"


@dataclass(frozen=True, eq=False)
class LazySequence:
    """The rows of an array that need not exist, in batches. `element` is the spec of a full batch; the last of `length` batches may be smaller.

    `source` is the array itself, the file that it lies in, or the stage that computes its rows (then `output` is the position among the stage's
    outputs).
    """

    element: Spec
    rows: int
    source: Stage | Stored | Value
    output: int = 0
    _whole: dict[Builder, Value] = field(default_factory=dict, repr=False)

    @property
    def batch(self) -> int:
        """Rows of a full batch."""
        return self.element.bounds[0]

    @property
    def length(self) -> int:
        """How many batches."""
        return -(-self.rows // self.batch)

    @property
    def array(self) -> Spec:
        """The spec of the whole array."""
        return Spec((self.rows, *self.element.shape[1:]), self.element.dtype)

    @property
    def spec(self) -> SequenceSpec:
        """The spec of the sequence."""
        return SequenceSpec(self.element, self.length, self.rows)

    @property
    def invariants(self) -> tuple[Value, ...]:
        """The values of the surrounding graph that the recipe reads, each once."""
        if isinstance(self.source, Value):
            return (self.source,)
        if isinstance(self.source, Stored):
            return ()
        found = [v for x in self.source.inputs for v in (x.invariants if isinstance(x, LazySequence) else (x,))]
        return tuple(dict.fromkeys(found))

    def __repr__(self) -> str:
        return f"<LazySequence of {self.rows} rows in {self.length} x {self.element!r} from {self.source!r}>"


Data: TypeAlias = Value | LazySequence


def batched(value: Value, batch: int) -> LazySequence:
    """The rows of an array in batches of `batch` (the last one may be smaller)."""
    spec = value.array_spec
    rows = row_count(value)
    if batch < 1:
        raise GraphError(f"a batch needs at least 1 row, got {batch}")
    return LazySequence(Spec((min(batch, rows), *spec.shape[1:]), spec.dtype), rows, value)


def batched_file(builder: Builder, path: str, member: str, spec: Spec, batch: int, name: str) -> LazySequence:
    """The rows of an array of `spec` in a file, in batches of `batch`: each is read when its turn comes. member: of an .npz file, else ""."""
    rows, where = spec.bounds[0], builder._where
    full = builder._unique(name)
    if where is not None and where.same_as is not None:
        raise GraphError(_same_as_problem(full, where.same_as))
    return LazySequence(Spec((min(batch, rows), *spec.shape[1:]), spec.dtype), rows, Stored(path, member, full, where))


def _same_as_problem(name: str, target: str) -> str:
    return f"task {name!r} handles a sequence batch by batch inside a loop: `same_as` cannot name task {target!r} outside of it"


def row_count(data: Data) -> int:
    """Rows of an array or a recipe; an error where there is none or their number is not known before the run."""
    if isinstance(data, LazySequence):
        return data.rows
    spec = data.array_spec
    if not spec.shape:
        raise GraphError(f"value {data.name!r} is {spec!r}: a scalar has no rows")
    rows = spec.shape[0]
    if isinstance(rows, UpTo):
        raise GraphError(f"value {data.name!r} is {spec!r}: batches need a number of rows that is known before the run")
    if rows == 0:
        raise GraphError(f"value {data.name!r} is {spec!r}: it has no rows")
    return rows


def spec_of_rows(data: Data) -> Spec:
    """The spec of the whole array behind an array or a recipe."""
    return data.array if isinstance(data, LazySequence) else data.array_spec


def is_unknown(data: Any) -> bool:
    """True for a value whose task was wrong: its mistake is told already."""
    return isinstance(data, Value) and data.spec is UNKNOWN


def unknown(builder: Builder, name: str) -> Value:
    """A value to go on with after a mistake: whoever reads it tells no further mistake."""
    return Value(builder, builder._value(name, UNKNOWN, -1))


# Recipes ----------------------------------------------------------------------------------------------------------------------


def apply(builder: Builder, op: Op, inputs: Sequence[Data], attributes: Attributes, name: str | None = None, where: Where | None = None) -> Any:
    """Use a primitive op on arrays and recipes: a stage of the recipe where the op works row by row, else a task on the whole array.

    Returns what `Builder.op` would, with a `LazySequence` in place of each value where the op became a stage.
    """
    if not any(isinstance(x, LazySequence) for x in inputs):
        return builder.op(op, *(x for x in inputs if isinstance(x, Value)), name=name, where=where, **attributes)
    if any(is_unknown(x) for x in inputs) or not _is_row_wise(op, inputs, attributes):
        return builder.op(op, *(materialize(builder, x) for x in inputs), name=name, where=where, **attributes)
    return _stage(builder, op, inputs, attributes, name, where)


def _is_row_wise(op: Op, inputs: Sequence[Data], attributes: Attributes) -> bool:
    """True if row i of every output depends on row i of the recipes alone."""
    recipes = [x for x in inputs if isinstance(x, LazySequence)]
    if len({x.rows for x in recipes}) > 1 or op.random or not op.pure or "*" in op.outputs[-1]:
        return False
    most = max(len(x.element.shape) for x in recipes)
    if op.elementwise:
        # Broadcasting aligns from the last axis: a recipe of fewer axes has its rows along another axis than the result.
        return all(len(x.element.shape) == most if isinstance(x, LazySequence) else _same_for_all_rows(x, most) for x in inputs)
    first = inputs[0]
    return op.name in ROW_WISE and isinstance(first, LazySequence) and len(recipes) == 1 and ROW_WISE[op.name](first.element, attributes)


def _same_for_all_rows(value: Value, ndim: int) -> bool:
    shape = value.array_spec.shape
    return len(shape) < ndim or (len(shape) == ndim and shape[0] == 1)


def _stage(builder: Builder, op: Op, inputs: Sequence[Data], attributes: Attributes, name: str | None, where: Where | None) -> Any:
    recipes = [x for x in inputs if isinstance(x, LazySequence)]
    full = builder._unique(name or op.name.rpartition(".")[2])
    where = where if where is not None else builder._where
    if where is not None and where.same_as is not None:
        raise GraphError(_same_as_problem(full, where.same_as))
    try:
        checked = op.check_attributes(attributes)
        # Batches of different recipes may differ; a stage's are those of its first recipe.
        batch = recipes[0].batch
        specs = [Spec((batch, *x.element.shape[1:]), x.element.dtype) if isinstance(x, LazySequence) else x.spec for x in inputs]
        found = op.infer(specs, checked)
    except GraphError as error:
        raise GraphError([f"task {full!r} ({op.name}): {p}" for p in error.problems]) from error
    stage = Stage(op, tuple(inputs), checked, full, where)
    out = []
    for i, spec in enumerate(found):
        if not isinstance(spec, Spec) or not spec.shape or spec.shape[0] != batch:
            raise GraphError(f"task {full!r} ({op.name}): gives {spec!r} for a batch of {batch} rows, which cannot go on as a sequence of rows")
        out.append(LazySequence(spec, recipes[0].rows, stage, i))
    return out[0] if len(out) == 1 else tuple(out)


def materialize(builder: Builder, data: Data) -> Value:
    """The whole array of a recipe: the array it was cut from, or what one loop collects, whoever asks and how often. An array is itself."""
    if isinstance(data, Value):
        return data
    if isinstance(data.source, Value):
        return data.source
    if builder not in data._whole:

        def write(body: Body) -> None:
            body.collect("rows", body.take(data), rows=data.rows)

        # Named and placed after the recipe's own task, not after whoever asks first.
        with _root(builder, data.source.where):
            outputs = loop_over_batches(builder, write, rows=data.rows, batch=data.batch, name=f"{data.source.name}_collected")
            data._whole[builder] = whole(builder, outputs["rows"], name=f"{data.source.name}_array")
    return data._whole[builder]


def whole(builder: Builder, sequence: Value, name: str | None = None) -> Value:
    """The array form of a sequence that a loop collected: a view, no bytes move."""
    value: Value = builder.op("data.whole", sequence, name=name)
    return value


# Loops over batches -----------------------------------------------------------------------------------------------------------


class Body:
    """The body of a loop over batches while it is written: where it takes rows, what it carries from turn to turn, what it gives.

    `builder` builds the body; `count` is the rows of its batch (`batch`, or fewer in the remainder body), `cycle` the batches of an epoch, `turn`
    the number of the turn. around: the body in which the loop stands, where it stands in one.
    """

    def __init__(self, outer: Builder, rows: int, count: int, batch: int, around: Body | None = None) -> None:
        self.outer = outer
        self.around = around
        self.rows, self.count, self.batch = rows, count, batch
        self.cycle = -(-rows // batch)
        self.builder = Builder("body")
        self.turn = self.builder.input("turn", (), np.int64)
        self.invariants: dict[Value, Value] = {}
        self.carried: dict[str, tuple[Value, Value]] = {}
        self.results: dict[str, Value] = {}
        self.collected: dict[str, int | None] = {}
        self.every: dict[str, int] = {}
        self.stop: str | None = None
        self._taken: dict[Any, tuple[Value, ...]] = {}

    def bind(self, value: Value) -> Value:
        """A value of the surrounding graph, or of one around that, inside the body."""
        if self.around is not None and value.owner is not self.around.builder:
            value = self.around.bind(value)
        if value not in self.invariants:
            self.invariants[value] = self.builder.input(self._free(value.name), value.spec)
        return self.invariants[value]

    def _free(self, name: str) -> str:
        n, free = 0, name
        while free in self.builder.inputs:
            n, free = n + 1, f"{name}_{n + 1}"
        return free

    def carry(self, name: str, first: Value) -> Value:
        """State: on turn 0 the outer value `first`, later what the turn before gave."""
        inside = self.builder.input(self._free(name), first.spec)
        self.carried[name] = (first, inside)
        return inside

    def give(self, name: str, value: Value) -> None:
        """The value of state `name` after this turn."""
        self.results[name] = value

    def collect(self, name: str, value: Value, rows: int | None = None) -> None:
        """Collect `value` of every turn in a sequence `name`; with `rows` its batches are the rows of one array of that many rows."""
        self.results[name] = value
        self.collected[name] = rows

    def stop_if(self, value: Value) -> None:
        """The loop ends after the turn in which `value`, a boolean scalar, is true."""
        self.results["stop"] = value
        self.stop = "stop"

    def run_every(self, value: Value, turns: int) -> None:
        """The task that gives `value` runs on every `turns`-th turn only."""
        self.every[self.builder.task_names[self.builder.value_producers[value.id]]] = turns

    def take(self, data: Data, order: Value | None = None) -> Value:
        """This turn's rows of an outer array or recipe: the next `count` ones, or those that `order`, a permutation of the row numbers, has there."""
        if isinstance(data, LazySequence) and isinstance(data.source, Stage):
            stage = data.source
            key: Any = (stage, order)
            if key not in self._taken:
                inputs = [self.take(x, order) if isinstance(x, LazySequence) else self.bind(x) for x in stage.inputs]
                with _root(self.builder):
                    found = self.builder.op(stage.op, *inputs, name=stage.name, where=stage.where, **stage.attributes)
                self._taken[key] = found if isinstance(found, tuple) else (found,)
            return self._taken[key][data.output]
        source = data.source if isinstance(data, LazySequence) else data
        key = (source, order)
        if key not in self._taken:
            more = () if order is None else (order,)
            sizes: dict[str, Any] = {"batch": self.batch, "count": self.count, "cycle": self.cycle}
            if isinstance(source, Stored):
                with _root(self.builder):
                    read = self.builder.op(
                        "data.read_rows", self.turn, *more, name=source.name, where=source.where, path=source.path, member=source.member, **sizes
                    )
                self._taken[key] = (read,)
                return self._taken[key][0]
            assert isinstance(source, Value)
            rows = self.builder.op("data.batch_rows", self.bind(source), self.turn, *more, name=f"take_{_last_part(source.name)}", **sizes)
            self._taken[key] = (rows,)
        return self._taken[key][0]

    def at_root(self) -> AbstractContextManager[None]:
        """Inside, tasks of the body are named and placed as given, without the name and the place of the task that the loop belongs to."""
        return _root(self.builder)


@contextmanager
def _root(builder: Builder, where: Where | None = None) -> Iterator[None]:
    """Inside, tasks are named as given and run at `where`, whatever the scope."""
    saved = builder._scope, builder._where, builder._after
    builder._scope, builder._where, builder._after = "", where, ()
    try:
        yield
    finally:
        builder._scope, builder._where, builder._after = saved


def _last_part(name: str) -> str:
    return name.rpartition("/")[2].replace(".", "_")


def loop_over_batches(
    builder: Builder, write: Callable[[Body], None], *, rows: int, batch: int, epochs: int = 1, name: str = "loop", around: Body | None = None
) -> Mapping[str, Value]:
    """Append one loop that runs over `rows` rows, `batch` a turn, `epochs` times.

    `write` writes the body; it is called again for the smaller last batch where `rows` is not a multiple of `batch`, and must do the same then.
    around: the body that `builder` writes, where the loop is to stand in one: values of the graphs around that are brought in.
    Returns by name the last values of what is carried and the sequences collected.
    """
    batch = min(batch, rows)
    tail = rows % batch
    bodies = [_written(builder, write, rows, count, batch, around) for count in ((batch, tail) if tail else (batch,))]
    body = bodies[0]
    graphs = [b.builder.freeze() for b in bodies]
    loop = Loop(
        body=graphs[0],
        turns=epochs * body.cycle,
        invariants=tuple(body.builder.value_names[v.id] for v in body.invariants.values()),
        carried=tuple((body.builder.value_names[inside.id], f"{n}.next") for n, (_, inside) in body.carried.items()),
        collected=tuple(body.collected),
        rows={n: r for n, r in body.collected.items() if r is not None},
        turn="turn",
        stop=body.stop,
        every=body.every,
        remainder=graphs[1] if tail else None,
        cycle=body.cycle if tail else 0,
        name=name,
    )
    firsts = [first if around is None or first.owner is builder else around.bind(first) for first, _ in body.carried.values()]
    outputs = builder.loop(loop, *body.invariants, *firsts, name=name)
    return dict(zip((*body.carried, *body.collected), outputs, strict=True))


def _written(outer: Builder, write: Callable[[Body], None], rows: int, count: int, batch: int, around: Body | None = None) -> Body:
    body = Body(outer, rows, count, batch, around)
    where = outer._where
    # Tasks of the body are named like tasks of the graph around it: unique in the run, and the key of random ops.
    with body.builder.scope(outer._scope.rstrip("/"), where=where if where is not None and where.same_as is None else None):
        try:
            write(body)
        except GraphError as error:
            # What went wrong first is among the builder's problems; the error itself may only be about what followed.
            raise GraphError(body.builder.problems or error.problems) from error
    missing = [n for n in body.carried if n not in body.results]
    if missing:
        raise GraphError(f"the body gives no next value of {', '.join(missing)}")
    for n, value in body.results.items():
        body.builder.output(value, f"{n}.next" if n in body.carried else n)
    return body
