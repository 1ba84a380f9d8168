"""Random graphs of loops over batches: small, valid, deterministic by seed, made to be mean to whatever runs loops.

Several loops stand beside each other or one after another. Each runs over the rows of arrays for some epochs, mostly with a smaller last batch, and
mostly shuffled. Their bodies carry weights with what an optimizer keeps of them, vectors that change places, and views of both; gather by ids;
collect values of every turn, what is carried among them; hold tasks that run every k turns and loops of their own; and stop before their end. First
values are shared between loops and are outputs of the graph too, so that none may be donated while another needs it.

Whatever is carried shrinks what it was before, so that how devices round does not add up over the turns.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hetsched.graph.graph import Builder, Graph, Loop, Nested, Value
from hetsched.graph.op import Op
from hetsched.graph.sequence import Body, Data, _written, apply, batched, whole
from hetsched.testing.graphs import Inputs

WIDTH = 3  # columns of rows, of vectors and of matrices, which are square


def random_loops(
    rng: random.Random | int, *, loops: int = 3, most_turns: int = 24, discrete: bool = True, stops: bool = True, nested: bool = True
) -> tuple[Graph, Inputs]:
    """A graph of 1 to `loops` loops and arrays for its inputs.

    rng: a `random.Random` or a seed; equal seeds give equal graphs and inputs. most_turns: of a loop, about. discrete: with ops whose results jump
    where their inputs differ by rounding; leave them out to compare devices that round differently. stops: with loops that end before their last
    turn. nested: with loops in loops. Without both, threads that have nothing beside a loop share its turns.
    """
    rng = random.Random(rng) if isinstance(rng, int) else rng
    return _Whole(rng, most_turns, discrete, stops, nested).grow(rng.randint(1, loops))


class _Whole:
    """The graph around the loops."""

    def __init__(self, rng: random.Random, most_turns: int, discrete: bool, stops: bool, nested: bool) -> None:
        self.rng, self.most_turns, self.discrete, self.stops, self.nested = rng, most_turns, discrete, stops, nested
        self.numbers = np.random.default_rng(rng.getrandbits(64))
        self.b = Builder("loops")
        self.inputs: Inputs = {}
        self.rows: dict[int, list[Value]] = {}  # number of rows -> arrays of them
        self.ids: dict[int, list[Value]] = {}
        self.vectors: list[Value] = []
        self.matrices: list[Value] = []

    def input(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Value:
        """A new input of the graph."""
        name = f"in{len(self.inputs)}"
        whole = np.dtype(dtype).kind == "i"
        self.inputs[name] = self.numbers.integers(0, WIDTH, shape) if whole else self.numbers.uniform(-1, 1, shape).astype(dtype)
        value: Value = self.b.input(name, shape, dtype)
        return value

    def grow(self, loops: int) -> tuple[Graph, Inputs]:
        """As many loops, and outputs."""
        for _ in range(2):
            self.vectors.append(self.input((WIDTH,)))
            self.matrices.append(self.input((WIDTH, WIDTH)))
        if self.rng.random() < 0.5:  # made by a task: only what a task has made can be donated
            self.vectors[0] = self.b.op("nn.tanh", self.vectors[0], name="vector")
            self.matrices[0] = self.b.op("nn.tanh", self.matrices[0], name="matrix")
        shared = [v for v in (*self.vectors, *self.matrices) if self.rng.random() < 0.2]
        for i in range(loops):
            self.loop(f"loop{i}")
        for i, value in enumerate(shared):
            self.b.output(value, f"first{i}")
        return self.b.freeze(), self.inputs

    def sources(self, rows: int) -> tuple[Value, Value]:
        """Rows, and ids, of which there are as many."""
        if rows not in self.rows or self.rng.random() < 0.3:
            self.rows.setdefault(rows, []).append(self.input((rows, WIDTH)))
            self.ids.setdefault(rows, []).append(self.input((rows,), np.int64))
        return self.rng.choice(self.rows[rows]), self.rng.choice(self.ids[rows])

    def loop(self, name: str) -> None:
        """A loop over batches, its results as outputs and for the loops behind it."""
        rng = self.rng
        batch, cycle = rng.randint(1, 4), rng.randint(1, 4)
        rows = batch * (cycle - 1) + rng.randint(1, batch)
        if self.rows and rng.random() < 0.4:
            rows = rng.choice(list(self.rows))
            batch = rng.randint(1, rows)
        batch = min(batch, rows)
        cycle = -(-rows // batch)
        epochs = max(1, rng.choice([1, 2, 3, rng.randint(1, self.most_turns)]) // (cycle if rng.random() < 0.7 else 1))
        x, ids = self.sources(rows)
        data: Data = x
        if rng.random() < 0.3:
            data = apply(self.b, _op("nn.relu" if rng.random() < 0.5 else "tensor.neg"), [batched(x, batch)], {}, name=f"{name}_stage")
        seed, is_shuffled = rng.getrandbits(32), rng.random() < 0.6
        starts = [rng.choice(self.vectors) for _ in range(rng.randint(1, 2))] + [rng.choice(self.matrices) for _ in range(rng.randint(0, 2))]

        def write(body: Body) -> None:
            _Turn(random.Random(seed), body, self, epochs).write(data, ids, starts, is_shuffled)

        tail = rows % batch
        bodies = [_written(self.b, write, rows, count, batch) for count in ((batch, tail) if tail else (batch,))]
        body = bodies[0]
        graphs = [b.builder.freeze() for b in bodies]
        loop = Loop(
            body=graphs[0],
            turns=epochs * cycle,
            invariants=tuple(body.builder.value_names[v.id] for v in body.invariants.values()),
            carried=tuple((body.builder.value_names[inside.id], f"{n}.next") for n, (_, inside) in body.carried.items()),
            collected=tuple(body.collected),
            rows={n: r for n, r in body.collected.items() if r is not None},
            turn="turn",
            stop="stop" if "stop" in graphs[0].outputs else None,
            every=body.every,
            remainder=graphs[1] if tail else None,
            cycle=cycle if tail else 0,
            name=name,
        )
        results = self.b.loop(loop, *body.invariants, *(first for first, _ in body.carried.values()), name=name)
        for key, value in zip((*body.carried, *body.collected), results, strict=True):
            self.b.output(value, f"{name}.{key}")
            if key in body.carried:
                (self.vectors if len(value.shape) == 1 else self.matrices).append(value)
            elif key == "rows" and loop.stop is None:
                n = rows * epochs
                self.rows.setdefault(n, []).append(whole(self.b, value, name=f"{name}_{key}"))
                self.ids.setdefault(n, [self.input((n,), np.int64)])
            elif rng.random() < 0.3:
                found = self.b.op("tensor.mean", whole(self.b, value), axes=(0,))
                if found.shape == (WIDTH,):
                    self.vectors.append(found)
                else:
                    self.b.output(found, f"{name}.mean.{key}")


class _Turn:
    """The body of a loop while it grows. What is decided does not depend on the rows of the batch: the smaller body gets the same tasks.

    Values by what they are: `rows` (batch, WIDTH), `ids` (batch,), `vectors`, `matrices`, `numbers`; none is larger than about 2.
    """

    def __init__(self, rng: random.Random, body: Body, around: _Whole, epochs: int) -> None:
        self.rng, self.body, self.around, self.epochs, self.b = rng, body, around, epochs, body.builder
        self.rows: list[Value] = []
        self.ids: list[Value] = []
        self.vectors: list[Value] = []
        self.matrices: list[Value] = []
        self.numbers: list[Value] = []
        self.kept: dict[str, Value] = {}  # what a state becomes where its optimizer says so
        self.turns = epochs * body.cycle

    def write(self, data: Data, ids: Value, starts: Sequence[Value], is_shuffled: bool) -> None:
        """All of it."""
        rng, body = self.rng, self.body
        order = None
        if is_shuffled:
            order = self.b.op("random.permutation", body.turn, name="order", n=body.rows, seed=rng.randrange(100))
            body.run_every(order, body.cycle)
        self.rows.append(body.take(data, order))
        self.ids.append(body.take(ids, order))
        states = [(f"state{i}", body.carry(f"state{i}", first), len(first.shape)) for i, first in enumerate(starts)]
        self.vectors += [v for _, v, ndim in states if ndim == 1]
        self.matrices += [v for _, v, ndim in states if ndim == 2]
        self.vectors += [body.bind(v) for v in self.around.vectors[:1] if not self.vectors or rng.random() < 0.4]
        self.matrices += [body.bind(v) for v in self.around.matrices[:1] if not self.matrices or rng.random() < 0.4]
        ways = _WAYS + (_DISCRETE if self.around.discrete else ()) + (_NESTED if self.around.nested else ())
        for _ in range(rng.randint(3, 12)):
            rng.choice(ways)(self)
        self._update(states)
        self._carry(states)
        self._collect()
        if self.around.stops and rng.random() < 0.25:
            limit = self.b.constant(np.int64(rng.randrange(self.turns)))
            self.b.output(self.b.op("tensor.greater_equal", body.turn, limit, name="enough"), "stop")
        self._seldom()

    # What a turn leaves behind --------------------------------------------------------------------------------------------------

    def _update(self, states: list[tuple[str, Value, int]]) -> None:
        """An optimizer's step on a matrix that is carried."""
        weights = [(name, v) for name, v, ndim in states if ndim == 2]
        if not weights or self.rng.random() < 0.3:
            return
        name, w = weights[0]
        rows = self.rng.choice(self.rows)
        gradient = self.op("tensor.scale", self.op("tensor.matmul", rows, rows, transpose_a=True), factor=0.1)
        gradient = self.op("tensor.add", self.op("nn.tanh", gradient), w)  # towards 0
        if len(weights) == 1 or self.rng.random() < 0.3:
            self.kept[name] = self.op("optim.sgd", w, gradient, lr=0.5)
        else:
            self.kept[name], self.kept[weights[1][0]] = self.b.op("optim.momentum", w, gradient, weights[1][1], lr=0.3, momentum=0.2)
        self.matrices.append(self.kept[name])

    def _carry(self, states: list[tuple[str, Value, int]]) -> None:
        """What each state becomes: half of what it was, and something else; now and then two change places."""
        following = {}
        for name, was, ndim in states:
            new = self.kept.get(name)
            if new is None:
                other = self.rng.choice(self.vectors if ndim == 1 else self.matrices)
                new = self.op("tensor.add", self.op("tensor.scale", was, factor=0.5), self.op("tensor.scale", other, factor=0.25))
            following[name] = new
        first = [name for name, _, ndim in states if ndim == 1]
        if len(first) == 2 and self.rng.random() < 0.4:
            following[first[0]], following[first[1]] = following[first[1]], following[first[0]]
        for name, value in following.items():
            self.body.give(name, value)
            if self.rng.random() < 0.25:
                self.body.collect(f"{name}_of_every_turn", value)

    def _collect(self) -> None:
        if self.epochs < 4 and self.rng.random() < 0.5:
            self.body.collect("rows", self.rng.choice(self.rows), rows=self.body.rows * self.epochs)
        chosen = [v for v in (*self.vectors, *self.numbers, *self.matrices) if self.rng.random() < 0.2]
        for i, value in enumerate(chosen[:3]):
            self.body.collect(f"each{i}", value)

    def _seldom(self) -> None:
        """Tasks that run every k turns: of those whose values have the same shape in the smaller batch."""
        for value in (*self.vectors, *self.matrices, *self.numbers):
            task = self.b.value_producers[value.id]
            if task >= 0 and self.rng.random() < 0.1:
                op = self.b.task_ops[task]
                if isinstance(op, Nested) or not op.view:
                    self.body.run_every(value, self.rng.choice([2, 3, 5, self.body.cycle]))

    # What tasks need ------------------------------------------------------------------------------------------------------------

    def op(self, name: str, *inputs: Value, **attributes: Any) -> Value:
        """A task of one value."""
        value: Value = self.b.op(name, *inputs, **attributes)
        return value

    def tame(self, value: Value) -> Value:
        """Not more than 1."""
        return self.op("nn.tanh", value)


def _op(name: str) -> Op:
    from hetsched.graph.ops import find

    return find(name)


# Ways to go on --------------------------------------------------------------------------------------------------------------------------


def _rows_alone(t: _Turn) -> None:
    x = t.rng.choice(t.rows)
    t.rows.append(t.op(t.rng.choice(["nn.relu", "nn.tanh", "nn.sigmoid", "tensor.neg"]), x))


def _rows_together(t: _Turn) -> None:
    x, y = t.rng.choice(t.rows), t.rng.choice([*t.rows, *t.vectors])
    name = t.rng.choice(["add", "sub", "mul", "maximum"])
    t.rows.append(t.tame(t.op(f"tensor.{name}", x, y)))


def _product(t: _Turn) -> None:
    x, w = t.rng.choice(t.rows), t.rng.choice(t.matrices)
    if t.rng.random() < 0.3:
        w = t.op("tensor.transpose", w)
    t.rows.append(t.tame(t.op("tensor.matmul", x, w)))


def _dropout(t: _Turn) -> None:
    t.rows.append(t.op("nn.dropout", t.rng.choice(t.rows), t.body.turn, rate=0.25, seed=t.rng.randrange(100)))


def _by_id(t: _Turn) -> None:
    t.rows.append(t.op("tensor.gather", t.rng.choice(t.matrices), t.rng.choice(t.ids), axis=0))


def _one_hot(t: _Turn) -> None:
    t.rows.append(t.op("tensor.one_hot", t.rng.choice(t.ids), classes=WIDTH))


def _over_rows(t: _Turn) -> None:
    x, name = t.rng.choice(t.rows), t.rng.choice(["sum", "mean", "max"])
    t.vectors.append(t.tame(t.op(f"tensor.{name}", x, axes=(0,))))


def _loss(t: _Turn) -> None:
    t.numbers.append(t.tame(t.op("nn.cross_entropy", t.rng.choice(t.rows), t.rng.choice(t.ids))))


def _total(t: _Turn) -> None:
    t.numbers.append(t.tame(t.op("tensor.sum", t.rng.choice([*t.vectors, *t.matrices]))))


def _with_number(t: _Turn) -> None:
    if t.numbers:
        into = t.rng.choice([t.rows, t.vectors, t.matrices])
        into.append(t.tame(t.op("tensor.add", t.rng.choice(into), t.rng.choice(t.numbers))))


def _vectors(t: _Turn) -> None:
    a, c = t.rng.choice(t.vectors), t.rng.choice(t.vectors)
    t.vectors.append(t.tame(t.op(t.rng.choice(["tensor.add", "tensor.mul", "tensor.maximum"]), a, c)))


def _uniform(t: _Turn) -> None:
    turn = [t.body.turn] if t.rng.random() < 0.8 else []
    t.vectors.append(t.op("random.uniform", *turn, shape=(WIDTH,), low=-1.0, high=1.0, seed=t.rng.randrange(100)))


def _turned_around(t: _Turn) -> None:
    """Views of parts of a vector, in another order."""
    x, at = t.rng.choice(t.vectors), t.rng.randint(1, WIDTH - 1)
    parts = [t.op("tensor.slice", x, starts=[at], stops=[WIDTH]), t.op("tensor.slice", x, starts=[0], stops=[at])]
    t.vectors.append(t.op("tensor.concat", *parts, axis=0))


def _row_of(t: _Turn) -> None:
    """A view of a view."""
    row = t.rng.randrange(WIDTH)
    t.vectors.append(t.op("tensor.reshape", t.op("tensor.rows", t.rng.choice(t.matrices), start=row, stop=row + 1), shape=(WIDTH,)))


def _outer(t: _Turn) -> None:
    a, c = (t.rng.choice(t.vectors) for _ in range(2))
    t.matrices.append(t.tame(t.op("tensor.mul", t.op("tensor.reshape", a, shape=(WIDTH, 1)), t.op("tensor.reshape", c, shape=(1, WIDTH)))))


def _matrices(t: _Turn) -> None:
    a, c = t.rng.choice(t.matrices), t.rng.choice([*t.matrices, *t.vectors])
    t.matrices.append(t.tame(t.op(t.rng.choice(["tensor.add", "tensor.mul"]), a, c)))


def _inner(t: _Turn) -> None:
    """A loop in the loop: over the rows of a matrix, or so many turns; now and then it stops before its end."""
    rng, over_rows = t.rng, t.rng.random() < 0.5
    turns, b = WIDTH if over_rows else rng.randint(1, 4), Builder("inner")
    turn, state, same = b.input("turn", (), np.int64), b.input("state", (WIDTH,)), b.input("same", (WIDTH,))
    x = b.input("item", (WIDTH,)) if over_rows else b.op("tensor.cast", turn, dtype="float32")
    seldom = b.op("nn.tanh", b.op("tensor.add", same, x), name="seldom")
    new = b.op("tensor.add", b.op("tensor.scale", state, factor=0.5), b.op("tensor.scale", seldom, factor=0.25))
    b.output(new, "new")
    stop = t.around.stops and rng.random() < 0.3
    if stop:
        b.output(b.op("tensor.greater_equal", turn, b.constant(np.int64(rng.randrange(turns)))), "stop")
    loop = Loop(
        b.freeze(), turns, ("same",), ("item",) if over_rows else (), (("state", "new"),), ("new",), turn="turn",
        stop="stop" if stop else None, every={"seldom": 2} if rng.random() < 0.3 else {},
    )  # fmt: skip
    items = [rng.choice(t.matrices)] if over_rows else []
    last, each = t.b.loop(loop, rng.choice(t.vectors), *items, rng.choice(t.vectors), name="inner")
    t.vectors.append(last)
    if rng.random() < 0.7:
        t.vectors.append(t.op("tensor.mean", t.op("data.whole", each), axes=(0,)))


def _where(t: _Turn) -> None:
    x, y = t.rng.choice(t.rows), t.rng.choice(t.rows)
    t.rows.append(t.op("tensor.where", t.op("tensor.greater", x, y), x, t.op("tensor.neg", y)))


def _best(t: _Turn) -> None:
    t.ids.append(t.op("tensor.argmax", t.rng.choice(t.rows), axis=1))


_WAYS: tuple[Callable[[_Turn], None], ...] = (
    _rows_alone, _rows_together, _product, _dropout, _by_id, _one_hot, _over_rows, _over_rows, _loss, _total, _with_number, _vectors, _uniform,
    _turned_around, _row_of, _outer, _matrices,
)  # fmt: skip
_DISCRETE: tuple[Callable[[_Turn], None], ...] = (_where, _best)
_NESTED: tuple[Callable[[_Turn], None], ...] = (_inner,)
