"""Random graphs and machines: small, valid, deterministic by seed, made to be mean to planners and executors.

A graph grows task by task: each step picks a way to go on (`_WAYS`) and values that exist. Among what comes out are broadcasting, views of views,
inputs read twice by one task, unused values, outputs that are inputs, constants, views or other outputs, order-only edges, tasks in scopes, and
loops with invariants, sequences, carried state, collected outputs, `every`, `stop`, a remainder body, and loops inside.
Each float value has a known bound on its magnitude, so that nothing overflows and results can be compared.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from hetsched.graph.graph import Builder, Graph, Loop, Value
from hetsched.graph.op import Op
from hetsched.graph.spec import Sequence as SequenceSpec
from hetsched.graph.spec import Spec
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode, Resource

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

MOST = 1e3  # no float value is larger than this
EXTENTS = (1, 2, 3, 4, 5, 7)
Inputs: TypeAlias = dict[str, Any]


def random_graph(
    rng: random.Random | int, *, tasks: int = 12, loops: bool = True, discrete: bool = True, ifs: bool = False
) -> tuple[Graph, Inputs]:  # fmt: skip
    """A graph of about `tasks` tasks (those of loop bodies not counted) and arrays for its inputs.

    rng: a `random.Random` or a seed; equal seeds give equal graphs and inputs. loops: with loops, at most two deep. discrete: with ops whose
    results jump where their inputs differ by rounding (comparisons, argmax and what is gathered by it); leave them out to compare devices that
    round differently. ifs: with ifs, in loops and around them too.
    """
    rng = random.Random(rng) if isinstance(rng, int) else rng
    grow = _Growth(rng, Graph.build("random"), depth=2 if loops else 0, discrete=discrete, ifs=2 if ifs else 0)
    for _ in range(rng.randint(1, 4)):
        grow.input(_shape(rng), np.int64 if rng.random() < 0.15 else np.float32)
    grow.steps(tasks)
    grow.name_outputs()
    return grow.b.freeze(), grow.inputs


def random_machine(rng: random.Random | int, *, accelerators: int = 3, memory_limits: bool = True) -> Machine:
    """A described machine: a CPU of 1 to 4 threads (now and then with io lanes) and up to `accelerators` devices with memory of their own.

    Links queue (now and then two engines, or none: contention-free); devices may share cores and power; memories may be limited (generously: at
    least 1 MiB, so that graphs of `random_graph` fit).
    """
    rng = random.Random(rng) if isinstance(rng, int) else rng
    lanes = rng.randint(1, 4)
    cores, power = Resource("cores", float(lanes)), Resource("power", rng.choice([1.0, 1.5, 3.0]))
    devices = [
        Device(
            "cpu", "cpu", lanes=lanes, io_lanes=rng.choice([0, 0, 1, 2]), name="described CPU", languages=("host", "array"),
            flops_per_second={"float32": 10 ** rng.uniform(9, 11), "float64": 10 ** rng.uniform(9, 10.5)},
            bytes_per_second=10 ** rng.uniform(9, 10.5), launch_seconds=rng.choice([1e-6, 5e-6]),
            crossing_seconds=rng.choice([0.0, 1e-5]), shares_lanes=True,
            widths=(1, lanes) if lanes > 1 and rng.random() < 0.7 else (1,), uses={"cores": 1.0},
        )
    ]  # fmt: skip
    memories = [MemoryNode(HOST, rng.choice([None, 1 << 20, 1 << 24]) if memory_limits else None)]
    links = []
    for i in range(rng.randint(0, accelerators)):
        node = f"acc:{i}"
        uses = {k: v for k, v in {"cores": 1.0, "power": rng.choice([0.5, 1.0])}.items() if rng.random() < 0.3}
        devices.append(
            Device(
                node, "emulated", lanes=rng.choice([1, 1, 2]), memory=node, name="described accelerator", hardware=rng.choice(["gpu", "accelerator"]),
                flops_per_second={"float32": 10 ** rng.uniform(9, 13)}, bytes_per_second=10 ** rng.uniform(9.5, 12),
                launch_seconds=rng.choice([1e-6, 1e-5]), uses=uses,
            )
        )  # fmt: skip
        memories.append(MemoryNode(node, rng.choice([None, 1 << 20, 1 << 22]) if memory_limits else None))
        links += [_link(rng, a, b) for other in memories[:-1] for a, b in ((other.name, node), (node, other.name))]
    return Machine(tuple(devices), tuple(links), tuple(memories), (cores, power), name="random")


def graphs(*, tasks: int = 12, loops: bool = True, discrete: bool = True) -> SearchStrategy[tuple[Graph, Inputs]]:
    """Hypothesis strategy over the seeds of `random_graph`; a failing example shows its seed."""
    from hypothesis import strategies

    return strategies.integers(0, 2**32 - 1).map(lambda seed: random_graph(seed, tasks=tasks, loops=loops, discrete=discrete))


def machines(*, accelerators: int = 3, memory_limits: bool = True) -> SearchStrategy[Machine]:
    """Hypothesis strategy over the seeds of `random_machine`."""
    from hypothesis import strategies

    return strategies.integers(0, 2**32 - 1).map(lambda seed: random_machine(seed, accelerators=accelerators, memory_limits=memory_limits))


def _link(rng: random.Random, src: str, dst: str) -> Link:
    return Link(src, dst, rng.choice([1e-6, 1e-5, 1e-4]), 10 ** rng.uniform(8.5, 10.5), rng.choice([1, 1, 1, 2, 0]))


def _shape(rng: random.Random) -> tuple[int, ...]:
    return tuple(rng.choice(EXTENTS) for _ in range(rng.choice([0, 1, 1, 2, 2, 2, 2, 3])))


class _Growth:
    """A graph that grows. `pool`: values that tasks may read; `most`: value id -> bound on the magnitude of a float (integers: exclusive)."""

    def __init__(self, rng: random.Random, builder: Builder, *, depth: int, discrete: bool, ifs: int = 0) -> None:
        self.rng, self.b, self.depth, self.discrete, self.ifs = rng, builder, depth, discrete, ifs
        self.numbers = np.random.default_rng(rng.getrandbits(64))
        self.pool: list[Value] = []
        self.most: dict[int, float] = {}
        self.inputs: Inputs = {}
        self.sequences: list[Value] = []

    # Sources and choices ------------------------------------------------------------------------------------------------------

    def add(self, value: Value, most: float) -> Value:
        """Take a value into the pool."""
        self.pool.append(value)
        self.most[value.id] = most
        return value

    def array(self, shape: tuple[int, ...], dtype: Any = np.float32, most: float = 2.0) -> Any:
        """Numbers up to `most` in magnitude (integers: from 0 to below it)."""
        if np.dtype(dtype).kind == "i":
            return self.numbers.integers(0, int(most), shape, dtype)
        return self.numbers.uniform(-most, most, shape).astype(dtype)

    def input(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Value:
        """A new input of the graph."""
        name = f"in{len(self.inputs)}"
        self.inputs[name] = self.array(shape, dtype)
        return self.add(self.b.input(name, shape, dtype), 2.0)

    def source(self, shape: tuple[int, ...], dtype: Any = np.float32, most: float = 2.0) -> Value:
        """A value of just this shape from outside: a constant, or (in the outermost graph) an input."""
        if self.b.name == "random" and most == 2.0 and self.rng.random() < 0.3:
            return self.input(shape, dtype)
        return self.add(self.b.constant(self.array(shape, dtype, most)), most)

    def pick(self, wanted: Callable[[Value], bool] = lambda v: v.dtype == np.float32) -> Value | None:
        """A value of the pool, young ones more likely; None where none is wanted."""
        # In large graphs most look at what is young, so that growing stays linear.
        near = self.pool if len(self.pool) <= 256 else [*self.rng.sample(self.pool, 64), *self.pool[-192:]]
        found = [v for v in near if wanted(v)]
        return found[max(self.rng.randrange(len(found)), self.rng.randrange(len(found)))] if found else None

    def floats(self, ndim: int | None = None, least: int = 0) -> Value | None:
        """A float value of `ndim` dimensions (at least `least`)."""
        return self.pick(lambda v: v.dtype == np.float32 and (ndim is None or len(v.shape) == ndim) and len(v.shape) >= least)

    def op(self, name: str, *inputs: Value, most: float, **attributes: Any) -> Value:
        """A task, its value tamed where it could grow beyond `MOST`."""
        after = [self.rng.choice(self.pool)] if self.pool and self.rng.random() < 0.05 else []
        value: Value = self.b.op(name, *inputs, after=after, **attributes)
        if most > MOST and value.dtype == np.float32:
            self.add(value, MOST * MOST)
            return self.op("nn.tanh", value, most=1.0)
        return self.add(value, most)

    def steps(self, n: int) -> None:
        """Grow by about `n` tasks."""
        rng, goal = self.rng, self.b.last_task() + 1 + n
        for _ in range(4 * n):
            if self.b.last_task() + 1 >= goal:
                break
            ways = _WAYS + (_DISCRETE if self.discrete else ()) + (_LOOPS if self.depth > 0 else ()) + (_IFS if self.ifs > 0 else ())
            way = rng.choices([w for w, _ in ways], [k for _, k in ways])[0]
            with self.b.scope(rng.choice(["left", "right"])) if rng.random() < 0.15 else nullcontext():
                way(self)

    def name_outputs(self) -> None:
        """Outputs: the youngest value, some others, now and then an input, a constant, or a value under a second name."""
        rng = self.rng
        chosen = [self.pool[-1], *(v for v in self.pool if rng.random() < 0.15), *self.sequences]
        chosen += [rng.choice(chosen)] if rng.random() < 0.3 else []
        for i, value in enumerate(chosen):
            self.b.output(value, f"out{i}")

    # What loops need ----------------------------------------------------------------------------------------------------------

    def inner(self, branch: bool = False) -> _Growth:
        """The growth of a body, or of a branch of an if."""
        builder = Graph.build("branch" if branch else "body")
        return _Growth(self.rng, builder, depth=self.depth - 1, discrete=self.discrete, ifs=self.ifs - branch)


# Ways to go on --------------------------------------------------------------------------------------------------------------------------


def _unary(g: _Growth) -> None:
    x = g.floats()
    if x is None:
        return
    most = g.most[x.id]
    name = g.rng.choice(["nn.relu", "nn.tanh", "nn.sigmoid", "tensor.neg", "tensor.scale", "tensor.exp", "positive"])
    if name == "tensor.scale":
        g.op(name, x, factor=g.rng.choice([-1.0, 0.5, 2.0]), most=2 * most)
    elif name == "tensor.exp" and most > 5:
        g.op("nn.tanh", x, most=1.0)
    elif name == "positive":
        small = x if most <= 30 else g.op("nn.tanh", x, most=1.0)
        square = g.op("tensor.mul", small, small, most=min(most, 30) ** 2)
        more = g.op("tensor.add", square, g.b.constant(np.float32(1.0)), most=g.most[square.id] + 1)
        g.op(g.rng.choice(["tensor.log", "tensor.sqrt"]), more, most=31.0)
    else:
        g.op(name, x, most={"tensor.exp": 150.0, "nn.tanh": 1.0, "nn.sigmoid": 1.0}.get(name, most))


def _binary(g: _Growth) -> None:
    x = g.floats()
    if x is None:
        return
    y = _partner(g, x)
    a, b = (x, y) if g.rng.random() < 0.5 else (y, x)
    most, other = g.most[a.id], g.most[b.id]
    name = g.rng.choice(["add", "sub", "mul", "maximum", "minimum", "div"])
    if name == "div":
        one = g.op("tensor.add", g.op("nn.sigmoid", b, most=1.0), g.b.constant(np.float32(1.0)), most=2.0)
        g.op("tensor.div", a, one, most=most)
    else:
        g.op(f"tensor.{name}", a, b, most=most * other if name == "mul" else most + other)


def _partner(g: _Growth, x: Value) -> Value:
    """A float value that broadcasts with `x`: itself, another one, or a source."""
    if g.rng.random() < 0.15:
        return x
    found = g.pick(lambda v: v.dtype == np.float32 and _broadcast(x.shape, v.shape))
    if found is not None and g.rng.random() < 0.7:
        return found
    shape = [n if g.rng.random() < 0.7 else 1 for n in x.shape]
    return g.source(tuple(shape[g.rng.randint(0, len(shape)) if g.rng.random() < 0.3 else 0 :]))


def _broadcast(a: Sequence[int], b: Sequence[int]) -> bool:
    try:
        return bool(np.prod(np.broadcast_shapes(tuple(a), tuple(b))) <= 400)
    except ValueError:
        return False


def _matmul(g: _Growth) -> None:
    x = g.floats(2)
    if x is None:
        return
    flip, turn = g.rng.random() < 0.3, g.rng.random() < 0.3
    inside = x.shape[0] if flip else x.shape[1]
    y = g.pick(lambda v: v.dtype == np.float32 and len(v.shape) == 2 and v.shape[1 if turn else 0] == inside)
    if y is None or g.rng.random() < 0.5:
        n = g.rng.choice(EXTENTS)
        y = g.source((n, inside) if turn else (inside, n))
    g.op("tensor.matmul", x, y, transpose_a=flip, transpose_b=turn, most=inside * g.most[x.id] * g.most[y.id])


def _dense(g: _Growth) -> None:
    x = g.floats(2)
    if x is None:
        return
    n, units = x.shape[1], g.rng.choice(EXTENTS)
    more = [g.source((units,))] if g.rng.random() < 0.7 else []
    g.op("nn.dense", x, g.source((n, units)), *more, activation=g.rng.choice(["none", "relu"]), most=(2 * n + 2) * g.most[x.id] + 2)


def _reduce(g: _Growth) -> None:
    x = g.floats(least=1)
    if x is None:
        return
    axes = tuple(sorted(g.rng.sample(range(len(x.shape)), g.rng.randint(1, len(x.shape)))))
    name = g.rng.choice(["sum", "mean", "max"])
    most = g.most[x.id] * (float(np.prod(x.shape)) if name == "sum" else 1.0)
    g.op(f"tensor.{name}", x, axes=axes if g.rng.random() < 0.8 else None, keepdims=g.rng.random() < 0.5, most=most)


def _softmax(g: _Growth) -> None:
    x = g.floats(least=1)
    if x is not None:
        name = g.rng.choice(["softmax", "log_softmax"])
        g.op(f"nn.{name}", x, axis=g.rng.randrange(-len(x.shape), len(x.shape)), most=1.0 if name == "softmax" else 2 * g.most[x.id] + 3)


def _reshape(g: _Growth) -> None:
    x = g.pick(lambda v: True)
    if x is not None:
        size = int(np.prod(x.shape))
        shapes = [(size,), (1, size), (size, 1), *((k, size // k) for k in (2, 3, 4) if size % k == 0), (*x.shape, 1)]
        g.op("tensor.reshape", x, shape=g.rng.choice(shapes), most=g.most[x.id])


def _rows(g: _Growth) -> None:
    x = g.pick(lambda v: len(v.shape) > 0 and v.shape[0] > 1)
    if x is not None:
        start = g.rng.randrange(x.shape[0])
        g.op("tensor.rows", x, start=start, stop=g.rng.randint(start + 1, x.shape[0]), most=g.most[x.id])


def _slice(g: _Growth) -> None:
    x = g.floats(least=1)
    if x is not None:
        starts = [g.rng.randrange(n) for n in x.shape]
        stops = [g.rng.randint(a + 1, n) for a, n in zip(starts, x.shape, strict=True)]
        g.op("tensor.slice", x, starts=starts, stops=stops, most=g.most[x.id])


def _transpose(g: _Growth) -> None:
    x = g.floats(least=1)
    if x is not None:
        axes = list(range(len(x.shape)))
        g.rng.shuffle(axes)
        g.op("tensor.transpose", x, axes=axes if g.rng.random() < 0.7 else None, most=g.most[x.id])


def _concat(g: _Growth) -> None:
    x = g.floats(least=1)
    if x is None:
        return
    axis = g.rng.randrange(len(x.shape))

    def fits(v: Value) -> bool:
        return v.dtype == np.float32 and len(v.shape) == len(x.shape) and all(a == b or i == axis for i, (a, b) in enumerate(zip(v.shape, x.shape)))

    parts = [x, *(v for v in (g.pick(fits) for _ in range(g.rng.randint(0, 2))) if v is not None)]
    if sum(v.shape[axis] for v in parts) <= 24:
        g.op("tensor.concat", *parts, axis=axis, most=max(g.most[v.id] for v in parts))


def _gather(g: _Growth) -> None:
    x = g.floats(least=1)
    if x is None:
        return
    axis = g.rng.randrange(len(x.shape))
    indices = g.pick(lambda v: v.dtype == np.int64 and len(v.shape) == 1 and g.most[v.id] <= x.shape[axis])
    if indices is None:
        indices = g.source((g.rng.choice(EXTENTS),), np.int64, float(x.shape[axis]))
    g.op("tensor.gather", x, indices, axis=axis, most=g.most[x.id])


def _integers(g: _Growth) -> None:
    n = g.pick(lambda v: v.dtype == np.int64 and g.most[v.id] <= 16)
    if n is None:
        n = g.source(_shape(g.rng)[:2], np.int64, float(g.rng.choice([2, 3, 5])))
    way = g.rng.choice(["add", "one_hot", "cast"])
    if way == "add":
        other = g.pick(lambda v: v.dtype == np.int64 and _broadcast(v.shape, n.shape)) or n
        g.op("tensor.add", n, other, most=g.most[n.id] + g.most[other.id] - 1)
    elif way == "one_hot" and len(n.shape) < 3:
        g.op("tensor.one_hot", n, classes=int(g.most[n.id]), most=1.0)
    else:
        g.op("tensor.cast", n, dtype="float32", most=g.most[n.id])


def _loss(g: _Growth) -> None:
    x = g.floats(2)
    if x is None:
        return
    if g.rng.random() < 0.5:
        labels = g.source((x.shape[0],), np.int64, float(x.shape[1]))
        g.op("nn.cross_entropy", x, labels, most=2 * g.most[x.id] + 3)
    else:
        y = g.source(tuple(x.shape))
        g.op("nn.mse", x, y, most=(g.most[x.id] + 2) ** 2)


def _random(g: _Growth) -> None:
    turn = next((v for v in g.pool if v.name == "turn"), None)
    more = [turn] if turn is not None else []
    x = g.floats()
    if x is not None and g.rng.random() < 0.5:
        g.op("nn.dropout", x, *more, rate=0.25, seed=g.rng.randrange(100), most=2 * g.most[x.id])
    else:
        g.op("random.uniform", *more, shape=_shape(g.rng) or (1,), low=-1.0, high=1.0, seed=g.rng.randrange(100), most=1.0)


def _update(g: _Growth) -> None:
    w = g.floats()
    gradient = g.pick(lambda v: w is not None and v.dtype == np.float32 and v.shape == w.shape)
    if w is None or gradient is None:
        return
    most = g.most[w.id] + g.most[gradient.id]
    if g.rng.random() < 0.5:
        g.op("optim.sgd", w, gradient, lr=0.1, most=most)
    else:
        for value in g.b.op("optim.momentum", w, gradient, g.source(tuple(w.shape)), lr=0.1):
            g.add(value, most + 2.0)
            if most + 2.0 > MOST:
                g.op("nn.tanh", value, most=1.0)


def _compare(g: _Growth) -> None:
    x = g.floats()
    if x is None:
        return
    y = _partner(g, x)
    condition = g.op(g.rng.choice(["tensor.greater", "tensor.less_equal"]), x, y, most=2.0)
    if g.rng.random() < 0.3:
        condition = g.op("tensor.logical_not", condition, most=2.0)
    g.op("tensor.where", condition, x, y, most=max(g.most[x.id], g.most[y.id]))


def _argmax(g: _Growth) -> None:
    x = g.floats(least=1)
    if x is not None:
        axis = g.rng.randrange(len(x.shape))
        g.op("tensor.argmax", x, axis=axis, keepdims=g.rng.random() < 0.3, most=float(x.shape[axis]))


# Loops ----------------------------------------------------------------------------------------------------------------------------------


def _loop(g: _Growth) -> None:
    rng, body = g.rng, g.inner()
    turns = rng.choice([1, 2, 3, 4, 6])
    outer: dict[str, Value] = {}

    def bind(name: str, value: Value, spec: Spec, most: float) -> str:
        outer[name] = value
        body.add(body.b.input(name, spec), most)
        return name

    invariants = [bind(f"same{i}", v, v.array_spec, g.most[v.id]) for i, v in enumerate(_some(g, rng.randint(0, 2)))]
    sequences = [bind(f"item{i}", v, spec, most) for i, (v, spec, most) in enumerate(_sequences(g, turns, rng.randint(0, 2)))]
    starts = [v for v in _some(g, rng.randint(0 if sequences else 1, 2)) if v.dtype == np.float32]
    carried_in = [bind(f"state{i}", v, v.array_spec, max(g.most[v.id], 1.0)) for i, v in enumerate(starts)]
    turn = "turn" if rng.random() < 0.4 else None
    if turn:
        body.add(body.b.input("turn", (), np.int64), float(turns))
    if not body.pool:
        return
    body.steps(rng.randint(2, 7))
    taken: list[Value] = []
    carried = [(name, _carry(body, name, g.most[v.id], taken)) for name, v in zip(carried_in, starts, strict=True)]
    if len(carried) == 2 and starts[0].spec == starts[1].spec and g.most[starts[0].id] == g.most[starts[1].id] and rng.random() < 0.3:
        carried = [(carried[0][0], carried[1][1]), (carried[1][0], carried[0][1])]
    collected = []
    for i, value in enumerate([v for v in body.pool if rng.random() < 0.2][:3] or ([] if carried else body.pool[-1:])):
        body.b.output(value, f"each{i}")
        collected.append((f"each{i}", body.most[value.id]))
    stop = _stop(body, turns) if rng.random() < 0.2 else None
    graph = body.b.freeze()
    ops = list(zip(graph.task_names, graph.task_ops, strict=True))
    every = {name: rng.choice([2, 3]) for name, op in ops if isinstance(op, Op) and not op.view and rng.random() < 0.08}
    loop = Loop(
        graph, turns, tuple(invariants), tuple(sequences), tuple(carried), tuple(n for n, _ in collected), turn=turn, stop=stop, every=every
    )  # fmt: skip
    results = g.b.loop(loop, *(outer[name] for name in loop.inputs))
    for value, start in zip(results, starts, strict=False):
        g.add(value, max(g.most[start.id], 1.0))
    for value, (_, most) in zip(results[len(carried) :], collected, strict=True):
        g.sequences.append(value)
        if stop is None and rng.random() < 0.6:
            g.op("data.whole", value, most=most)
            g.sequences = [v for v in g.sequences if v != value or rng.random() < 0.5]


def _some(g: _Growth, n: int) -> list[Value]:
    return [v for v in (g.pick(lambda v: v.dtype in (np.float32, np.int64)) for _ in range(n)) if v is not None]


def _sequences(g: _Growth, turns: int, n: int) -> list[tuple[Value, Spec, float]]:
    """Values whose elements a loop of `turns` turns can take, one a turn: what other loops collected, arrays by their leading axis."""
    out: list[tuple[Value, Spec, float]] = []
    for _ in range(n):
        ready = [v for v in g.sequences if isinstance(s := v.spec, SequenceSpec) and s.length == turns and s.rows is None]
        if ready and g.rng.random() < 0.5:
            value = g.rng.choice(ready)
            spec = value.spec
            if isinstance(spec, SequenceSpec) and isinstance(spec.element, Spec) and spec.element.dtype == np.float32:
                out.append((value, spec.element, MOST * MOST))
                continue
        found = g.pick(lambda v: v.dtype == np.float32 and len(v.shape) > 0 and v.shape[0] >= turns)
        if found is None or g.rng.random() < 0.4:
            found = g.source((turns, *_shape(g.rng)[:2]))
        out.append((found, Spec(found.shape[1:], found.dtype), g.most[found.id]))
    return out


def _carry(body: _Growth, name: str, most: float, taken: list[Value]) -> str:
    """The body output that follows the carried input `name`: of its spec, and no larger than its bound. `taken`: what other states become."""
    state = next(v for v in body.pool if v.name == name)
    like = [v for v in body.pool if v.spec == state.spec and v != state]
    # Something must give the state a new value: states that only change places are no loop to plan.
    found = [v for v in like if body.most[v.id] <= max(most, 1.0) and v not in taken and _is_made(body.b, v)]
    if found and body.rng.random() < 0.5:
        value = body.rng.choice(found)
    else:
        other = body.rng.choice(like) if like else state
        value = body.op("nn.tanh", body.op("tensor.add", state, other, most=0.0), most=1.0)
        body.most[body.pool[-2].id] = body.most[state.id] + body.most[other.id]
    taken.append(value)
    body.b.output(value, f"next_{name}")
    return f"next_{name}"


def _is_made(builder: Builder, value: Value) -> bool:
    """True for what a task makes in memory of its own: what a carried input may become."""
    task = builder.value_producers[value.id]
    return task >= 0 and not (isinstance(op := builder.task_ops[task], Op) and op.view)


def _stop(body: _Growth, turns: int) -> str | None:
    """A body output that ends the loop at a turn that is known in advance, None where the body does not count its turns."""
    turn = next((v for v in body.pool if v.name == "turn"), None)
    if turn is None:
        return None
    limit = body.b.constant(np.int64(body.rng.randrange(turns)))
    body.b.output(body.b.op("tensor.greater_equal", turn, limit), "enough")
    return "enough"


def _batches(g: _Growth) -> None:
    """A loop over batches of rows, the last one smaller: running state, one row of results for each row."""
    rng = g.rng
    if g.b.name != "random":
        return  # Inputs belong to the outermost graph.
    batch, turns = rng.choice([2, 3, 4]), rng.choice([2, 3])
    rest, width, units = rng.randint(1, batch - 1), rng.choice(EXTENTS), rng.choice(EXTENTS)
    rows = batch * (turns - 1) + rest
    activation, norm, each = rng.choice(["nn.relu", "nn.tanh"]), rng.random() < 0.5, rng.choice([1, 1, 2])

    def body(n: int) -> Graph:
        b = Graph.build("batch")
        w, x, s = b.input("w", (width, units)), b.input("x", (n, width)), b.input("s", (units,))
        y = b.op(activation, b.op("tensor.matmul", x, w, name="product"), name="y")
        y = b.op("nn.softmax", y, name="normed") if norm else y
        mean = b.op("tensor.mean", y, axes=(0,), name="mean")
        b.output(y, "rows")
        return b.output(b.op("nn.tanh", b.op("tensor.add", s, mean, name="sum"), name="next"), "next").freeze()

    w, start = g.source((width, units)), g.source((units,))
    name = f"in{len(g.inputs)}"
    x = g.b.input(name, SequenceSpec(Spec((batch, width)), turns, rows))
    g.inputs[name] = g.array((rows, width))
    loop = Loop(
        body(batch), turns, ("w",), ("x",), (("s", "next"),), ("rows",), rows={"rows": rows}, remainder=body(rest), cycle=turns,
        every={"mean": each} if each > 1 else {}, name="batches",
    )  # fmt: skip
    state, results = g.b.loop(loop, w, x, start)
    g.add(state, 1.0 if turns > 0 else 2.0)
    if rng.random() < 0.5:
        g.op("data.whole", results, most=4.0 * width + 1)
    else:
        g.sequences.append(results)


def _condition(g: _Growth) -> Value:
    """Something to choose a branch by: the parity of a turn, a comparison, an integer, a bool from outside."""
    rng = g.rng
    turn = next((v for v in g.pool if v.name == "turn"), None)
    if turn is not None and rng.random() < 0.6:
        made: Value = g.b.op("tensor.greater_equal", turn, g.b.constant(np.int64(rng.randrange(3))))
        return made
    x = g.floats() if g.discrete else None
    if x is not None and rng.random() < 0.6:
        total = g.b.op("tensor.mean", x, axes=tuple(range(len(x.shape)))) if x.shape else x
        made = g.b.op("tensor.greater", total, g.b.constant(np.float32(0.0)))
        return made
    found = g.pick(lambda v: v.dtype.kind in "bi" and v.shape == ())
    if found is not None and rng.random() < 0.7:
        return found
    if g.b.name != "random":
        return g.b.constant(np.bool_(rng.random() < 0.5))
    name = f"in{len(g.inputs)}"
    g.inputs[name] = np.asarray(rng.random() < 0.5)
    return g.b.input(name, (), np.bool_)


def _if(g: _Growth) -> None:
    rng = g.rng
    outer = {f"taken{i}": v for i, v in enumerate(dict.fromkeys(_some(g, rng.randint(1, 3))))}
    if not outer:
        return
    condition, branches = _condition(g), []
    for _ in range(2):
        branch = g.inner(branch=True)
        for name, value in outer.items():
            if rng.random() < 0.7:
                branch.add(branch.b.input(name, value.array_spec), g.most[value.id])
        if branch.pool:
            branch.steps(rng.randint(1, 5))
        branches.append(branch)
    then, other = branches
    if not then.pool:
        then.source(_shape(rng))
    bounds = []
    for i in range(rng.randint(1, 3)):
        value = rng.choice(then.pool)
        like = [v for v in other.pool if v.spec == value.spec]
        twin = rng.choice(like) if like else other.source(value.array_spec.bounds, value.dtype, max(then.most[value.id], 1.0))
        then.b.output(value, f"y{i}")
        other.b.output(twin, f"y{i}")
        bounds.append(max(then.most[value.id], other.most[twin.id]))
    graphs = then.b.freeze(), other.b.freeze()
    given = {name: v for name, v in outer.items() if name in graphs[0].inputs or name in graphs[1].inputs}
    made = g.b.branch(condition, *graphs, given, likelihood=rng.choice([None, 0.0, 0.3, 1.0]))
    for value, most in zip(made.values(), bounds, strict=True):
        g.add(value, most)


_Way: TypeAlias = tuple[Callable[[_Growth], None], float]
_WAYS: tuple[_Way, ...] = (
    (_unary, 5), (_binary, 6), (_matmul, 4), (_dense, 2), (_reduce, 3), (_softmax, 1), (_reshape, 2), (_rows, 2), (_slice, 1), (_transpose, 1),
    (_concat, 1.5), (_gather, 1.5), (_integers, 1.5), (_loss, 0.7), (_random, 0.7), (_update, 1),
)  # fmt: skip
_DISCRETE: tuple[_Way, ...] = ((_compare, 1), (_argmax, 1))
_LOOPS: tuple[_Way, ...] = ((_loop, 2), (_batches, 0.7))
_IFS: tuple[_Way, ...] = ((_if, 4),)
