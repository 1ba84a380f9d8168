"""Loops that threads share without a lock: the order is that of the walk, whatever the threads do; values, errors and limits as on the crew's way."""

import gc
import random
import threading
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from leftovers import running_threads

import hetsched as hs
from hetsched.errors import RunTimeoutError, TaskError
from hetsched.executors import rounds
from hetsched.executors.program import Program
from hetsched.executors.steps import Step
from hetsched.executors.walk import Arc
from hetsched.graph.graph import Graph, Loop
from hetsched.graph.op import Op, Work
from hetsched.graph.sequence import Body, loop_over_batches
from hetsched.machine import Device, Machine
from hetsched.placement.costs import Estimate
from hetsched.timeline import Lane


def random_program(rng: random.Random) -> Program:
    """Steps with random arcs within a turn and over several, some on an io lane."""
    n = rng.randint(1, 7)
    arcs = {Arc(a, b, 0) for a in range(n) for b in range(a + 1, n) if rng.random() < 0.3}
    arcs |= {Arc(rng.randrange(n), rng.randrange(n), rng.randint(1, 5)) for _ in range(rng.randint(0, 2 * n))}
    kinds = [rng.choice(["compute", "compute", "io"]) for _ in range(n)]
    steps = tuple(Step(s, (s,), (Lane("cpu", 0, kinds[s]),), rng.random(), 1e-3) for s in range(n))
    plan: Any = SimpleNamespace(spans=(), loop=SimpleNamespace(remainder=None))
    return Program(plan, steps, tuple(arcs), rng.choice([1, 2, 3, 4, 6, 12, 24]), {}, {})


class Watched:
    """Stands for a frame: notes what was done, and that nothing was done too early."""

    def __init__(self, program: Program, turns: int) -> None:
        self.program, self.turns = program, turns
        self.lock = threading.Lock()
        self.done: set[tuple[int, int]] = set()
        self.early: list[Any] = []
        self.open = 0
        self.perform = self._perform
        self.bindings = SimpleNamespace(
            prepare=lambda step, turn: None, period=lambda step: 1, act=lambda step, turn, runs: lambda now: self._perform(step, now)
        )

    def _perform(self, step: int, turn: int) -> None:
        with self.lock:
            for before, later, distance in self.program.arcs:
                if later == step and turn >= distance and (before, turn - distance) not in self.done:
                    self.early.append((before, later, distance, turn))
            oldest = next(t for t in range(self.turns) if any((s, t) not in self.done for s in range(len(self.program.steps))))
            if turn >= oldest + max(self.program.window, 1):
                self.early.append(("window", step, turn, oldest))
        with self.lock:
            if (step, turn) in self.done:
                self.early.append(("twice", step, turn))
            self.done.add((step, turn))


needs_lock = pytest.mark.skipif(not rounds.is_atomic(), reason="this interpreter has no lock: loops do not go round so")


@needs_lock
@pytest.mark.parametrize("block", range(4))
def test_every_step_of_every_turn_once_and_in_order(block: int) -> None:
    for seed in range(block * 40, (block + 1) * 40):
        rng = random.Random(seed)
        program, turns = random_program(rng), rng.randint(1, 30)
        frame: Any = Watched(program, turns)
        crew: Any = SimpleNamespace(deadline=None, trace=True, progress=None, zero=0.0, error=None, done=0, total=0, cores=None)
        shared = rounds.Rounds(crew, frame)
        shared.run([("compute", 0), ("compute", 1), ("io", 0)])
        assert crew.error is None
        assert frame.early == [], seed
        assert len(frame.done) == turns * len(program.steps), seed


def test_places_on_cycles() -> None:
    assert rounds.on_cycles(5, [(0, 1), (1, 2), (2, 1), (3, 3), (2, 4), (2, 1)]) == [False, True, True, True, False]
    assert rounds.on_cycles(3, [(0, 0), (0, 1), (1, 2), (2, 2)]) == [True] * 3
    for seed in range(50):
        rng = random.Random(seed)
        n = rng.randint(1, 8)
        arcs = [(rng.randrange(n), rng.randrange(n)) for _ in range(rng.randint(0, 2 * n))]
        reach = np.zeros((n, n), bool)
        for a, b in arcs:
            reach[a, b] = True
        for k in range(n):
            reach |= np.outer(reach[:, k], reach[k])
        on = np.diag(reach)
        assert rounds.on_cycles(n, arcs) == [bool(on[at] or ((on & reach[:, at]).any() and (on & reach[at]).any())) for at in range(n)], seed


def chained(window: int) -> Program:
    """load (io) -> decode -> train, which is a chain over the turns."""
    kinds = ("io", "compute", "compute")
    steps = tuple(Step(s, (s,), (Lane("cpu", 0, kind),), float(s), 1e-3) for s, kind in enumerate(kinds))
    plan: Any = SimpleNamespace(spans=(), loop=SimpleNamespace(remainder=None))
    return Program(plan, steps, (Arc(0, 1, 0), Arc(1, 2, 0), Arc(2, 2, 1), Arc(1, 0, window)), window, {}, {})


@needs_lock
@pytest.mark.parametrize("window", [1, 3, 16])
def test_a_chain_leaves_its_turns_to_be_closed_in_groups(window: int) -> None:
    frame: Any = Watched(chained(window), 64)
    crew: Any = SimpleNamespace(deadline=None, trace=True, progress=None, zero=0.0, error=None, done=0, total=0, cores=None)
    shared = rounds.Rounds(crew, frame)
    assert shared.pattern.is_serial == [False, False, window > 1]
    most = 0
    settle = shared._settle

    def watch(mine: bool) -> None:
        nonlocal most
        most = max(most, len(shared.owed))
        settle(mine)

    shared._settle = watch  # type: ignore[method-assign]
    shared.run([("compute", 0), ("io", 0)])  # one thread computes: nothing depends on who is faster
    assert crew.error is None
    assert frame.early == []
    assert len(frame.done) == 64 * 3
    assert most <= max(int(window * rounds.LAG), 1)


# Loops of real plans ------------------------------------------------------------------------------------------------------------


class Stated:
    """Costs: the seconds that op names end in, in ms."""

    def launch(self, graph: Graph, task: int, device: Device, width: int) -> Estimate:
        milliseconds = graph.task_ops[task].name.partition("_")[2] or 0.0  # a view takes none
        return Estimate(float(milliseconds) * 1e-3 if width == 1 else float("inf"), source="stated")

    def copy(self, nbytes: int, link: Any) -> Estimate:
        return Estimate(link.seconds(nbytes))


SPEC = hs.Spec((4,), np.float64)


def op(name: str, body: Any, inputs: tuple[str, ...], waits: bool = False) -> Op:
    def kernel(xp: Any, ins: Any, outs: Any, workspace: Any, attributes: Any) -> None:
        body(outs[0], *ins)

    return Op(f"test.{name}", inputs, ("y",), lambda s, a: [SPEC], lambda i, o, a: Work(1, 4, 4), kernels={"array": kernel}, waits=waits)


def stream(turns: int, spoil: int = -1, beside: bool = False, every: int = 1, loads: list[int] | None = None) -> Graph:
    """load (io) -> scale -> add to a state that is carried, and collected every turn. spoil: the turn in which `scale` fails. every: of `load`.

    loads: the turns in which it runs are noted there."""

    def load(y: Any, i: Any) -> None:
        if loads is not None:
            loads.append(int(i))
        y[...] = float(i) + 1

    def scale(y: Any, i: Any, x: Any) -> None:
        if int(i) == spoil:
            raise ValueError("a bad batch")
        np.multiply(x, 2.0, out=y)

    body = Graph.build()
    turn, state = body.input("turn", (), np.int64), body.input("state", (4,), np.float64)
    x = body.op(op("load_1", load, ("i",), waits=True), turn, name="load")
    x = body.op(op("scale_3", scale, ("i", "x")), turn, x, name="scale")
    new = body.op(op("train_3", lambda y, s, x: np.add(0.5 * s, x, out=y), ("s", "x")), state, x, name="train")
    body.output(new, "new")
    b = Graph.build()
    loop = Loop(body.freeze(), turns, carried=(("state", "new"),), turn="turn", collected=("new",), every={"load": every})
    last, all_ = b.loop(loop, b.input("first", (4,), np.float64), name="stream")
    b.output(last, "last")
    b.output(all_, "all")
    if beside:
        b.output(b.op(op("other_1", lambda y, x: np.copyto(y, x), ("x",)), b.input("z", (4,), np.float64), name="other"), "other")
    return b.freeze()


def wanted(turns: int, first: np.ndarray) -> list[np.ndarray]:
    out, state = [], first
    for i in range(turns):
        state = 0.5 * state + 2.0 * (i + 1)
        out.append(state)
    return out


MACHINE = Machine((Device("cpu", "cpu", lanes=2, io_lanes=1, languages=("host", "array"), shares_lanes=True, widths=(1,)),))
FIRST = np.arange(4.0)


class Counted(list[rounds.Rounds]):
    """The loops that went round without the lock: `each` of a run, none where the interpreter has no lock either."""

    each = 1


@pytest.fixture(params=["atomic", "free-threaded"])
def counted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Runs as they are here, and as in an interpreter that says that it has no lock."""
    if request.param == "atomic" and not rounds.is_atomic():
        pytest.skip("this interpreter has no lock")
    made = Counted()
    made.each = int(request.param == "atomic")
    monkeypatch.setattr(rounds, "is_atomic", lambda: bool(made.each))
    plain = rounds.Rounds.__init__

    def init(self: rounds.Rounds, *args: Any) -> None:
        made.append(self)
        plain(self, *args)

    monkeypatch.setattr(rounds.Rounds, "__init__", init)
    return made


@pytest.mark.parametrize("turns", [1, 3, 40, 300])
def test_a_stream_of_batches(turns: int, counted: Counted) -> None:
    plan = hs.plan(stream(turns), MACHINE, costs=Stated())
    result = hs.run(plan, {"first": FIRST}, learn=False)
    np.testing.assert_allclose(result["all"], wanted(turns, FIRST))
    np.testing.assert_allclose(result["last"], wanted(turns, FIRST)[-1])
    assert len(counted) == counted.each
    (inner,) = result.trace.loops.values()
    kept = {(s.command.task, s.command.turn) for s in inner.launches}
    assert len(kept) == 3 * min(turns, 200)
    assert inner.totals["cpu"] >= sum(s.finish - s.start for s in inner.launches) * 0.99


@pytest.mark.parametrize(("rows", "epochs"), [(10, 1), (10, 2), (10, 7), (6, 30), (50, 300)])
def test_the_smaller_batch_comes_at_the_end_of_every_epoch(rows: int, epochs: int, counted: Counted) -> None:
    class Even(Stated):
        def launch(self, graph: Graph, task: int, device: Device, width: int) -> Estimate:
            return Estimate(1e-3 if width == 1 else float("inf"), source="stated")

    def write(body: Body) -> None:
        taken = body.take(x)
        for name, made in (("twice", body.builder.op("tensor.scale", taken, factor=2.0)), ("less", body.builder.op("tensor.neg", taken))):
            body.collect(name, body.builder.op("tensor.sum", made, name=f"{name}_sum"))

    b = Graph.build()
    x = b.input("x", (rows, 3), np.float64)
    found = loop_over_batches(b, write, rows=rows, batch=4, epochs=epochs, name="batches")
    for name, value in found.items():
        b.output(value, name)
    given = np.random.default_rng(0).random((rows, 3))
    sums = np.array([given[i : i + 4].sum() for i in range(0, rows, 4)] * epochs)
    result = hs.run(hs.plan(b.freeze(), MACHINE, costs=Even()), {"x": given}, learn=False)
    np.testing.assert_allclose(result["twice"], 2 * sums)
    np.testing.assert_allclose(result["less"], -sums)
    assert len(counted) == counted.each


@pytest.mark.parametrize("counted", ["atomic"], indirect=True)
def test_a_run_that_is_over_is_let_go(counted: Counted) -> None:
    plan = hs.plan(stream(10), MACHINE, costs=Stated())
    gc.collect()
    gc.disable()
    try:
        hs.run(plan, {"first": FIRST}, learn=False)
        (run,) = [weakref.ref(x) for x in counted]
        counted.clear()
        assert run() is None
    finally:
        gc.enable()


def test_again_and_again_in_a_session(counted: Counted) -> None:
    with hs.Session(MACHINE) as session:
        run = session.compile(stream(30), costs=Stated(), buffers=1)
        for i in range(8):
            np.testing.assert_allclose(run(FIRST + i)["all"], wanted(30, FIRST + i))
    assert len(counted) == 8 * counted.each


def test_what_can_be_done_beside_the_loop_is_done_by_the_crew(counted: Counted) -> None:
    result = hs.run(hs.plan(stream(20, beside=True), MACHINE, costs=Stated()), {"first": FIRST, "z": FIRST}, learn=False)
    np.testing.assert_allclose(result["all"], wanted(20, FIRST))
    np.testing.assert_array_equal(result["other"], FIRST)
    assert counted == []


@pytest.mark.parametrize(("turns", "spoil"), [(100, 7), (100, 99), (2000, 1700)])  # the last has become code
def test_a_task_that_fails_names_its_turn(turns: int, spoil: int, counted: Counted) -> None:
    before = running_threads()
    with pytest.raises(TaskError, match=f"'scale' failed in turn {spoil} of loop '.+': ValueError: a bad batch"):
        hs.run(hs.plan(stream(turns, spoil=spoil), MACHINE, costs=Stated()), {"first": FIRST}, learn=False)
    assert len(counted) == counted.each
    assert running_threads() <= before


def test_a_loop_that_takes_too_long() -> None:
    with pytest.raises(RunTimeoutError):
        hs.run(hs.plan(stream(1_000_000), MACHINE, costs=Stated()), {"first": FIRST}, learn=False, timeout=0.2)


def test_progress_never_goes_back(counted: Counted) -> None:
    told: list[tuple[int, int]] = []
    plan = hs.plan(stream(400), MACHINE, costs=Stated())
    hs.run(plan, {"first": FIRST}, learn=False, progress=lambda done, total, name: told.append((done, total)))
    assert len(counted) == counted.each
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert all(0 < done <= total for done, total in told)


@pytest.mark.parametrize("way", ["round", "beside", "walked"])
def test_progress_counts_a_task_of_every_few_turns_as_often_as_it_runs(way: str, counted: Counted) -> None:
    told: list[tuple[int, int]] = []
    loads: list[int] = []
    plan = hs.plan(stream(40, beside=way == "beside", every=3, loads=loads), MACHINE, costs=Stated())
    given = {"first": FIRST, "z": FIRST} if way == "beside" else {"first": FIRST}
    hs.run(plan, given, learn=False, keep_going=way == "walked", progress=lambda done, total, name: told.append((done, total)))
    assert len(counted) == (counted.each if way == "round" else 0)
    assert sorted(loads) == list(range(0, 40, 3))
    launches = 14 + 2 * 40 + 1 + (way == "beside")
    assert {total for _, total in told} == {launches}
    assert told[-1][0] == launches


# Replays of straight plans on several threads -----------------------------------------------------------------------------------


def fan(n: int) -> Graph:
    """Two inputs, one of them through a view; n branches of two tasks; outputs that other tasks read."""
    b = Graph.build()
    x, whole = b.input("x", (4,), np.float64), b.input("whole", (2, 2), np.float64)
    part = b.op("tensor.reshape", whole, shape=[4])
    add, double = op("add_1", lambda y, a, c: np.add(a, c, out=y), ("a", "c")), op("double_1", lambda y, a: np.multiply(a, 2, out=y), ("a",))
    for i in range(n):
        first = b.op(add, x, part if i % 2 else x, name=f"add{i}")
        b.output(first, f"first{i}")
        b.output(b.op(double, first, name=f"double{i}"), f"second{i}")
    return b.freeze()


def test_replays_on_two_threads_bind_fresh_inputs_and_outputs() -> None:
    kept: list[Any] = []
    with hs.Session(MACHINE) as session:
        run = session.compile(fan(12), costs=Stated(), buffers=1)
        assert len({s.lanes for s in run.plan.launches}) == 2
        for i in range(5):
            x, whole = FIRST + i, np.full((2, 2), 10.0 * i)
            result = run({"x": x, "whole": whole})
            for n in range(12):
                first = x + (whole.reshape(4) if n % 2 else x)
                np.testing.assert_array_equal(result[f"first{n}"], first)
                np.testing.assert_array_equal(result[f"second{n}"], 2 * first)
            kept += [weakref.ref(result["first0"]), weakref.ref(x)]
            del result, x, whole
        gc.collect()
        assert [ref() for ref in kept] == [None] * len(kept)  # nothing of the caller's is held by the session


def test_a_kernel_that_writes_its_input_fails_in_every_replay() -> None:
    b = Graph.build()
    x = b.input("x", (4,), np.float64)

    def rude(y: Any, a: Any) -> None:
        a[...] = 0

    for i in range(4):
        b.output(b.op(op("rude_1", rude, ("a",)), b.op(op("copy_1", lambda y, a: np.copyto(y, a), ("a",)), x), name=f"rude{i}"), f"y{i}")
    with hs.Session(MACHINE) as session:
        run = session.compile(b.freeze(), costs=Stated(), buffers=1)
        for _ in range(3):
            with pytest.raises(TaskError, match="read-only"):
                run(FIRST)
