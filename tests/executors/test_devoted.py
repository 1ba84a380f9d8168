"""Loops that one stream does by itself, on a CuPy of NumPy whose kernels a C++ compiler builds: values, traces, graphs, errors."""

import sys
from dataclasses import replace

import fake_cupy
import numpy as np
import pytest

import hetsched as hs
from hetsched.errors import DeviceGoneError, RunTimeoutError
from hetsched.executors import devoted
from hetsched.executors.backends import cuda
from hetsched.executors.program import compile_plan
from hetsched.graph.graph import Graph
from hetsched.graph.op import Composite, Scene
from hetsched.graph.ops import registry
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode
from hetsched.testing.backend import _machine_of
from tests.cuda_host import COMPILER

REAL = cuda.find()
on_device = pytest.mark.skipif(not REAL.devices, reason="; ".join(REAL.notes) or "no CUDA device")

ROWS, WIDTH, CLASSES, EPOCHS = 44, 7, 3, 12


KEPT: dict = {}  # kernels that are built once for all tests here


@pytest.fixture
def machine(monkeypatch, tmp_path):
    if COMPILER is None:
        pytest.skip("no C++ compiler here")
    backend = fake_cupy.install(monkeypatch)
    monkeypatch.setenv("HETSCHED_CUDA_GRAPHS", "")
    monkeypatch.setattr(fake_cupy.RawModule, "folder", tmp_path)
    monkeypatch.setattr(fake_cupy.RawModule, "built", [])
    monkeypatch.setattr(fake_cupy.RawModule, "kept", KEPT)
    monkeypatch.setattr(fake_cupy.Graph, "launched", 0)
    found = _machine_of(backend)
    yield replace(found, devices=tuple(d if d.memory == HOST else replace(d, languages=("cuda", "array")) for d in found.devices))
    fake_cupy.Stream.failing = None


def training(batch, epochs=EPOCHS, losses=False):
    """A network that learns: x [44, 7], y [44] -> the model."""
    b = Graph.build()
    x, y = b.input("x", (ROWS, WIDTH)), b.input("y", (ROWS,), np.int64)
    train = registry()["nn.train"]
    assert isinstance(train, Composite)
    layers = [{"dense": {"units": 5, "activation": "relu"}}, {"dense": {"units": CLASSES}}]
    options = {"model": "net", "loss": "cross_entropy", "optimizer": {"adam": {"lr": 1e-2}}, "epochs": epochs, "batch": batch, "seed": 7}
    with b.scope("train"):
        out = train.expand(b, {"x": x, "y": y}, train.check_attributes(options), Scene({"net": {"input": [WIDTH], "layers": layers}}))
    b.output(out["model"], "model")
    if losses:
        b.output(out["losses"], "losses")
    return b.freeze()


@pytest.fixture
def given():
    rng = np.random.default_rng(0)
    return {"x": rng.normal(size=(ROWS, WIDTH)).astype(np.float32), "y": rng.integers(0, CLASSES, ROWS)}


@pytest.fixture
def loops(monkeypatch):
    """The loops that one stream did."""
    found = []
    run = devoted.run
    monkeypatch.setattr(devoted, "run", lambda *given: (found.append(given), run(*given))[1])
    return found


def same(a, b, tolerance=1e-4):
    assert list(a) == list(b)
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize("batch", [4, 8])  # 11 turns an epoch; 5 and a smaller one
@pytest.mark.parametrize(("trace", "losses"), [(True, False), (False, True)])
def test_a_training_has_the_weights_that_it_has_on_the_host(machine, given, loops, monkeypatch, batch, trace, losses):
    monkeypatch.setattr(devoted, "KEPT_TURNS", 12)
    monkeypatch.setattr(devoted, "MOST_TURNS", 3)
    graph = training(batch, losses=losses)
    plan = hs.plan(graph, machine=machine, only="cuda:0")
    result = hs.run(plan, given, trace=trace, learn=False)
    turns = EPOCHS * -(-ROWS // batch)
    assert len(loops) == 1
    assert fake_cupy.Graph.launched > turns / 8
    same(result, hs.run(hs.plan(graph, machine=machine, only="cpu"), given, learn=False))
    if not trace:
        return
    body = next(iter(result.trace.loops.values()))
    assert body.turns == turns
    kept = {s.command.turn for s in body.spans}
    assert kept == {*range(12), *range(turns - 12, turns)}
    planned = next(iter(plan.loops.values()))
    every = next(iter(loops))[1].frame.every
    for turn in (0, 5, 11, turns - 1):
        seen = sorted(s.command.task for s in body.spans if s.command.turn == turn and isinstance(s.command, hs.timeline.Launch))
        tasks = [s.command.task for s in planned.spans if isinstance(s.command, hs.timeline.Launch)]
        assert seen == sorted(task for task in tasks if turn % every.get(task, 1) == 0)
    for s in body.spans:
        assert s.start <= s.finish
    assert body.totals["cuda:0"] > 0


def test_a_second_run_of_a_plan_begins_anew(machine, given, loops):
    plan = hs.plan(training(8, 3), machine=machine, only="cuda:0")
    same(hs.run(plan, given, learn=False), hs.run(plan, given, learn=False))
    assert len(loops) == 2


@pytest.mark.parametrize("copy", [1e-6, 10e-6])
@pytest.mark.parametrize("losses", [False, True])
def test_turns_follow_each_other_where_a_device_takes_them_as_graphs(losses, copy):
    card = Device("cuda:0", "cuda", memory="cuda:0", hardware="gpu", languages=("cuda", "array"), flops_per_second={"float32": 1e13},
                  bytes_per_second=1e12, launch_seconds=9e-6, replay_seconds=2e-6)  # fmt: skip
    cpu = Device("cpu", "cpu", lanes=2, languages=("host", "array"), flops_per_second={"float32": 1e10}, shares_lanes=True)
    links = (Link(HOST, "cuda:0", copy), Link("cuda:0", HOST, copy))
    machine = Machine((cpu, card), links, (MemoryNode(HOST), MemoryNode("cuda:0", 1 << 30)))
    body = next(iter(hs.plan(training(4, losses=losses), machine=machine, only="cuda:0").loops.values()))
    assert all(arc.turns >= 0 for arc in compile_plan(body).arcs)
    launches = [s for s in body.spans if isinstance(s.command, hs.timeline.Launch)]
    assert body.period <= 1.01 * max(2e-6 * len(launches), copy)


class Timed:
    """An event whose times are said."""

    def __init__(self, start, seconds):
        self.start, self.seconds = start, seconds

    def span(self):
        return self.start, self.start + self.seconds


def timed_by_hand(monkeypatch, long, launched, turn_seconds):
    """Loops of one stream get these times: where its tasks are timed one by one each takes `launched` seconds (`long`: task -> other seconds), and a
    turn that is timed as a whole `turn_seconds`. Turns are one second apart."""
    notes = devoted.Devoted.notes

    def by_hand(self):
        noted = []
        for turn, rows in self.noted:
            at, new = self.crew.zero + turn, []
            for step, _, marks in rows:
                if step < 0:
                    new.append((step, Timed(at, turn_seconds), {}))
                    continue
                mine = {}
                for task in marks:
                    seconds = long.get(task, launched)
                    mine[task] = Timed(at, seconds)
                    at += seconds
                new.append((step, next(reversed(mine.values())) if mine else Timed(at, 0.0), mine))
            noted.append((turn, new))
        self.noted = noted
        return notes(self)

    monkeypatch.setattr(devoted.Devoted, "notes", by_hand)


def seconds_by_task(trace):
    """(task -> seconds that costs learn, links that they learn of) of the loop in a trace."""
    body = next(iter(trace.loops.values()))
    found = {}
    for i, span in enumerate(body.spans):
        command = span.command
        if i in body.attributed or not isinstance(command, hs.timeline.Launch) or body.loop.is_remainder(command.turn):
            continue
        if not body.graph.task_ops[command.task].view:
            found.setdefault(command.task, []).append(span.finish - span.start)
    copies = [s for i, s in enumerate(body.spans) if isinstance(s.command, hs.timeline.Copy) and i not in body.attributed]
    return body, found, copies


def test_costs_learn_from_turns_as_they_are_run_and_not_from_launches_by_themselves(machine, given, loops, monkeypatch):
    """A launch by itself takes 25 us and more, most of it the host's; a turn takes 40 us."""
    timed_by_hand(monkeypatch, {}, 25e-6, 40e-6)
    result = hs.run(hs.plan(training(4, losses=True), machine=machine, only="cuda:0"), given, learn=False)
    body, found, copies = seconds_by_task(result.trace)
    learned = [s for i, s in enumerate(body.spans) if i not in body.attributed]
    often = {task: x for task, x in found.items() if task not in body.loop.seldom}
    assert len(often) > 10
    assert copies == []  # a kernel counts the turns, and lays up the losses
    for seconds in often.values():
        assert max(seconds) < 10e-6
    in_turn = {}
    for span in body.spans:
        in_turn[span.command.turn] = in_turn.get(span.command.turn, 0.0) + span.finish - span.start
    assert in_turn[50] == pytest.approx(40e-6, rel=1e-3)
    assert in_turn[3] > 200e-6  # the trace tells what was
    assert not [s for s in learned if s.command.turn < 8]


def test_a_long_kernel_is_learned_as_long_as_it_is(machine, given, loops, monkeypatch):
    plan = hs.plan(training(4), machine=machine, only="cuda:0")
    body = next(iter(plan.loops.values()))
    often = [s.command.task for s in body.spans if isinstance(s.command, hs.timeline.Launch) and s.command.task not in body.loop.seldom]
    long = next(t for t in reversed(often) if not body.graph.task_ops[t].view)
    timed_by_hand(monkeypatch, {long: 5e-3}, 25e-6, 5.03e-3)
    _, found, _ = seconds_by_task(hs.run(plan, given, learn=False).trace)
    assert all(x == pytest.approx(5e-3, rel=0.01) for x in found[long])
    assert max(x for task, rows in found.items() if task != long and task in often for x in rows) < 15e-6


def test_a_loop_teaches_what_it_takes_beside_its_launches(machine, given, loops, monkeypatch):
    from hetsched.placement.costs.kinds import BEGIN
    from hetsched.placement.costs.lessons import lessons

    timed_by_hand(monkeypatch, {}, 25e-6, 40e-6)
    marked = replace(machine, devices=tuple(replace(d, fingerprint="x", replay_seconds=2e-6) if d.memory != HOST else d for d in machine.devices))
    plan = hs.plan(training(4), machine=machine, only="cuda:0")
    trace = hs.run(plan, given, learn=False).trace
    outer = next(s for s in trace.spans if isinstance(s.command, hs.timeline.Launch) and s.command.task in trace.loops)
    spans = tuple(s._replace(finish=s.start + 0.1) if s is outer else s for s in trace.spans)
    body = replace(trace.loops[outer.command.task], machine=marked)
    trace = replace(trace, machine=marked, spans=spans, loops={outer.command.task: body})
    (begin,) = [x for x in lessons(trace) if x.op == BEGIN]
    assert begin.seconds == pytest.approx(0.1 - body.turns * 40e-6, rel=0.02)


def test_a_session_keeps_the_graphs(machine, given, loops, monkeypatch):
    plan = hs.plan(training(8, 3, losses=True), machine=machine, only="cuda:0")
    others = {**given, "y": given["y"][::-1].copy()}
    wanted = [hs.run(hs.plan(training(8, 3, losses=True), machine=machine, only="cpu"), x, learn=False) for x in (given, others)]
    captured = []
    with hs.Session() as session:
        compiled = session.compile(plan, trace=True)
        for i in range(4):
            same(compiled(**(others if i % 2 else given)), wanted[i % 2])
            captured.append(sum(s.graph is not None for s in loops[-1][2]._segments.values()))
    assert captured[0] > 0
    assert captured[1] == captured[2] == captured[3]


def test_where_there_is_no_room_to_count_in_the_loop_is_walked(machine, given, loops, monkeypatch):
    def full(self, shape, dtype):
        raise MemoryError("full")

    plan = hs.plan(training(8, 3, losses=True), machine=machine, only="cuda:0")
    wanted = hs.run(plan, given, learn=False)
    assert len(loops) == 1
    monkeypatch.setattr(sys.modules["hetsched.executors.backends._cuda_live"].Stream, "scratch", full)
    same(hs.run(plan, given, learn=False), wanted)
    assert len(loops) == 1


@pytest.mark.parametrize("sign", ["-", "+"])
def test_what_a_users_kernel_makes_is_checked_in_the_loop(machine, loops, sign):
    """The device had a launch before, whose driving thread looks at such things when it is idle; it knows of none in the loop."""
    source = f"""__global__ void minus(const float *x, float *y, long long n) {{
        const long long i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i < n) y[i] = {sign}x[i];
    }}"""
    arguments = {"x": "in float32[n]", "y": "out float32[n]", "n": "value int64 = n"}
    minus = hs.kernel("minus", arguments, size=["n"], cuda=source, check="tensor.neg")
    on_gpu = hs.Where(("cuda:0",))
    body = Graph.build()
    body.output(body.op(minus, body.input("s", (64,)), where=on_gpu), "t")
    b = Graph.build()
    (last,) = b.loop(hs.Loop(body.freeze(), 33, carried=(("s", "t"),)), b.op("tensor.exp", b.input("x", (64,)), where=on_gpu))
    plan = hs.plan(b.output(last, "y").freeze(), machine)
    x = np.linspace(0, 1, 64, dtype=np.float32)
    if sign == "+":
        with pytest.raises(hs.TaskError, match=r"does not compute what tensor\.neg does"):
            hs.run(plan, {"x": x}, learn=False)
    else:
        np.testing.assert_allclose(hs.run(plan, {"x": x}, learn=False)["y"], -np.exp(x), rtol=1e-6)
    assert len(loops) == 1


def test_graphs_can_be_turned_off(machine, given, loops, monkeypatch):
    monkeypatch.setenv("HETSCHED_CUDA_GRAPHS", "0")
    hs.run(hs.plan(training(8, 3), machine=machine, only="cuda:0"), given, learn=False)
    assert loops == []


def test_a_lost_device_ends_the_loop(machine, given, loops, monkeypatch):
    plan = hs.plan(training(8), machine=machine, only="cuda:0")
    mark = devoted.Devoted._mark

    def lose(self, turn):
        self.stream.live.lose()
        mark(self, turn)

    monkeypatch.setattr(devoted, "MARK_TURNS", 8)
    monkeypatch.setattr(devoted.Devoted, "_mark", lose)
    with pytest.raises(DeviceGoneError):
        hs.run(plan, given, learn=False)


def test_a_loop_ends_at_its_deadline_and_tells_how_far_it_is(machine, given, loops, monkeypatch):
    monkeypatch.setattr(devoted, "MARK_TURNS", 8)
    monkeypatch.setattr(devoted, "MARK_SECONDS", 1e9)
    monkeypatch.setattr(devoted, "TELL_SECONDS", 0.0)
    told = []
    plan = hs.plan(training(8), machine=machine, only="cuda:0")
    hs.run(plan, given, learn=False, progress=lambda done, total, what: told.append((done, total)))
    assert len(told) > 5
    assert all(done <= total for done, total in told)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    monkeypatch.setattr(devoted.Devoted, "_hand_over", lambda self, turn, n: setattr(self.crew, "deadline", 0.0))
    with pytest.raises(RunTimeoutError):
        hs.run(plan, given, learn=False, timeout=1000)


def test_a_kernel_that_fails_is_named_with_its_turn(machine, given, loops, monkeypatch):
    from hetsched.graph.ops import _cuda_small

    plan = hs.plan(training(8), machine=machine, only="cuda:0")
    real, calls = _cuda_small.adam, []

    def failing(*given):
        calls.append(1)
        if len(calls) == 6:  # the first was before the run
            raise ValueError("no")
        return real(*given)

    monkeypatch.setattr(_cuda_small, "adam", failing)
    with pytest.raises(hs.TaskError, match=r"update/small' failed in turn 4 of loop '.+': ValueError: no"):
        hs.run(plan, given, learn=False)


@on_device
@pytest.mark.parametrize("batch", [4, 8])
@pytest.mark.parametrize("trace", [True, False])
def test_a_training_on_a_device_has_the_weights_that_it_has_on_the_host(given, loops, monkeypatch, batch, trace):
    """On a card: nothing of a turn is left to the host, and a second call finds the graphs."""
    monkeypatch.delenv("HETSCHED_CUDA_GRAPHS", raising=False)
    graph = training(batch, losses=True)
    wanted = hs.run(hs.plan(graph, only="cpu"), given, learn=False)
    plan = hs.plan(graph, only="cuda:0")
    result = hs.run(plan, given, trace=trace, learn=False)
    same(result, wanted, 1e-2)
    assert len(loops) == 1
    with hs.Session() as session:
        compiled = session.compile(plan)
        for _ in range(3):
            same(compiled(**given), wanted, 1e-2)
        segments = list(loops[-1][2]._segments.values())
        assert segments
        assert not any(s.refused for s in segments)
