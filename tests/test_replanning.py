"""Drift: a run that leaves its plan is planned anew where that pays, and then ends sooner, with the values of the plain loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from unspoilt import unspoilt

import hetsched as hs
from hetsched.executors import simulated
from hetsched.executors.backends.emulated import EmulatedStream
from hetsched.executors.epochs import Speeds
from hetsched.graph.graph import Graph, Loop
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode
from hetsched.placement.costs import RooflineCosts
from hetsched.replanning import MeasuredCosts, Replanning, drift, replanning_of
from hetsched.report.summary import where_line
from hetsched.run import check_inputs
from hetsched.testing.reference import interpret
from hetsched.testing.runs import value_problems
from hetsched.timeline import Copy, Launch, Span, Timeline

CPU = Device("cpu", "cpu", lanes=2, languages=("host", "array"), shares_lanes=True, bytes_per_second=1e9, flops_per_second={"float32": 1e9})


def machine(accelerators: int = 2, speed: float = 8e9) -> Machine:
    """A CPU and some accelerators of equal speed."""
    names = [f"gpu:{i}" for i in range(accelerators)]
    gpus = tuple(
        Device(n, "emulated", memory=n, hardware="gpu", bytes_per_second=speed, flops_per_second={"float32": speed}, launch_seconds=1e-6)
        for n in names
    )
    nodes = (HOST, *names)
    links = tuple(Link(a, b, 1e-6, 50e9) for a in nodes for b in nodes if a != b)
    return Machine((CPU, *gpus), links, tuple(MemoryNode(n) for n in nodes))


def chains(width: int, length: int, n: int = 4096) -> tuple[Graph, dict[str, np.ndarray]]:
    """`width` chains of element-wise tasks, summed in the end."""
    b = Graph.build()
    x = b.input("x", (n,))
    ends = []
    for i in range(width):
        value = b.op("tensor.scale", x, factor=1.0 + i)
        for k in range(length):
            value = b.op("nn.tanh", value, name=f"t{i}_{k}")
        ends.append(value)
    total = ends[0]
    for value in ends[1:]:
        total = b.op("tensor.add", total, value)
    b.output(total, "total")
    return b.freeze(), {"x": np.linspace(-1, 1, n, dtype=np.float32)}


def training(turns: int, n: int = 4096) -> tuple[Graph, dict[str, np.ndarray]]:
    """A loop: two independent stages a turn, whose results change the state."""
    body = Graph.build()
    x, s = body.input("x", (n,)), body.input("s", (n,))
    left = body.op("nn.tanh", body.op("nn.sigmoid", x, name="a"), name="b")
    right = body.op("nn.tanh", body.op("tensor.neg", x, name="c"), name="d")
    new = body.op("tensor.add", s, body.op("tensor.add", left, right, name="sum"), name="new")
    body.output(new, "s_new")
    b = Graph.build()
    (last,) = b.loop(
        Loop(body.freeze(), turns, sequences=("x",), carried=(("s", "s_new"),)), b.input("x", (turns, n)), b.input("s", (n,)), name="train"
    )
    b.output(last, "last")
    rng = np.random.default_rng(0)
    return b.freeze(), {"x": rng.normal(size=(turns, n)).astype(np.float32), "s": np.zeros(n, np.float32)}


def standing_still() -> float:
    """The seconds that planning takes in virtual time."""
    return 0.0


def both(plan: Timeline, inputs: dict[str, np.ndarray], slow: Callable[[str, float], float], look: float) -> tuple[hs.Timeline, object]:
    """The same run in virtual time without and with a replanner."""
    given = check_inputs(plan.graph, inputs)
    costs = RooflineCosts(plan.machine)

    def seconds(plan: Timeline, span: Span) -> float:
        command, lane = span.command, span.lanes[0]
        if isinstance(command, Launch):
            return costs.launch(plan.graph, command.task, plan.machine.device(lane.owner), 1).seconds
        assert isinstance(command, Copy)
        return costs.copy(int(plan.graph.value_nbytes[command.value]), plan.machine.link(command.src.node, command.dst.node)).seconds

    plain = simulated.run_plan(plan, given, slow=slow, seconds=seconds)
    replanner = replanning_of(plan, plan.machine, only=None, memory=None, costs=None, look_seconds=look, clock=standing_still)
    anew = simulated.run_plan(plan, given, slow=slow, seconds=seconds, replanner=replanner)
    wanted = interpret(plan.graph, inputs)
    assert value_problems(plain, wanted) == []
    assert value_problems(anew, wanted) == []
    return plain, anew


def test_a_straight_plan_moves_to_the_devices_that_keep_their_speed() -> None:
    """From a fifth of the run on one of two accelerators is five times slower: what it had is shared with the other."""
    graph, inputs = chains(8, 12)
    plan = hs.plan(graph, machine())
    late = plan.makespan / 5
    plain, anew = both(plan, inputs, lambda owner, now: 5.0 if owner == "gpu:0" and now > late else 1.0, plan.makespan / 10)
    assert len(anew.plans) > 1
    assert anew.trace.makespan < 0.75 * plain.trace.makespan
    why = anew.plans[1].notes[0]
    assert why in anew.trace.notes
    assert "gpu:0 took" in why
    assert "times what was planned" in why
    assert "from gpu:0 to gpu:1" in why


def test_a_loop_moves_at_the_end_of_a_turn() -> None:
    """The accelerator on which a loop runs becomes ten times slower after a third of the turns: the others run on the other one."""
    graph, inputs = training(60)
    plan = hs.plan(graph, machine())
    used = {lane.owner for s in plan.loops[0].launches for lane in s.lanes}
    slow = next(iter(sorted(u for u in used if u.startswith("gpu"))))
    late = plan.makespan / 3
    plain, anew = both(plan, inputs, lambda owner, now: 10.0 if owner == slow and now > late else 1.0, plan.makespan / 10)
    assert len(anew.plans) > 1
    assert anew.trace.makespan < 0.5 * plain.trace.makespan
    assert f"on {slow} took" in anew.plans[1].notes[0]
    assert "after turn" in anew.plans[1].notes[0]
    assert anew.plans[1].notes[0] in where_line(anew.trace)
    assert anew.trace.loops[0].turns == 60


def test_nothing_is_planned_anew_where_nothing_drifts() -> None:
    """As planned, all a little slower, or slower everywhere alike: a new plan would not be better."""
    graph, inputs = training(60)
    plan = hs.plan(graph, machine())
    for factor in (1.0, 1.3, 4.0):
        plain, anew = both(plan, inputs, lambda owner, now, factor=factor: factor, plan.makespan / 10)  # type: ignore[misc]
        assert len(anew.plans) == 1
        assert anew.trace.makespan == pytest.approx(plain.trace.makespan)


def test_the_same_drift_gives_the_same_run() -> None:
    graph, inputs = chains(6, 10)
    plan = hs.plan(graph, machine())
    traces = [both(plan, inputs, lambda owner, now: 6.0 if owner == "gpu:1" else 1.0, plan.makespan / 10)[1].trace for _ in range(2)]
    assert [(s.start, s.finish, s.lanes) for s in traces[0].spans] == [(s.start, s.finish, s.lanes) for s in traces[1].spans]


def test_what_is_slow_by_its_kind_is_slow_everywhere() -> None:
    """A kind that took three times as long where others kept to the plan is expected to do so on other devices too; a slow device is not."""
    graph, _ = chains(1, 2)
    where = machine()
    plan = hs.plan(graph, where)
    task = graph.task_index["t0_0"]
    base = RooflineCosts(where)
    specs = tuple(graph.spec(v) for v in graph.reads(task)), tuple(graph.spec(v) for v in graph.writes(task))
    tanh, scale = ("gpu:0", "nn.tanh", *specs), ("gpu:0", "tensor.scale", *specs)
    other = where.device("gpu:1")
    usual = base.launch(graph, task, other, 1).seconds
    by_kind = Speeds(launches={tanh: [10, 3.0, 1.0], scale: [10, 1.0, 1.0]}, devices={"gpu:0": [20, 4.0, 2.0]})
    assert MeasuredCosts(base, by_kind, {}).launch(graph, task, other, 1).seconds == pytest.approx(3 * usual)
    by_device = Speeds(launches={tanh: [10, 3.0, 1.0], scale: [10, 3.0, 1.0]}, devices={"gpu:0": [20, 6.0, 2.0]})
    assert MeasuredCosts(base, by_device, {}).launch(graph, task, other, 1).seconds == pytest.approx(usual)
    assert MeasuredCosts(base, by_device, {}).launch(graph, task, where.device("gpu:0"), 1).seconds == pytest.approx(0.3)
    assert drift(by_kind, 1.5, 1.0) == "nn.tanh on gpu:0 took 3 times what was planned"
    assert drift(replace(by_kind, launches={}), 1.5, 1.0) is None
    assert plan.makespan > 0


def test_replan_is_off_by_default_and_needs_somewhere_to_go() -> None:
    graph, inputs = chains(2, 2)
    alone = replace(machine(), devices=(CPU,), links=(), memories=(MemoryNode(HOST),))
    assert len(hs.run(graph, inputs, machine=alone, replan=True).plans) == 1
    assert len(hs.run(graph, inputs, machine=alone).plans) == 1
    assert isinstance(replanning_of(hs.plan(graph, alone), alone, only=None, memory=None, costs=None), Replanning)


def test_an_emulated_device_that_gets_slow_loses_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock: from its 20th command on one of two devices takes 16 ms for what was planned for 2. Most of the rest runs on the other one."""
    graph, inputs = training(60)
    where = machine(speed=2 * 4 * 4096 / 2e-3)  # 2 ms for an element-wise task
    where = replace(where, devices=(replace(CPU, bytes_per_second=4096 * 8 / 20e-3, flops_per_second={"float32": 1e5}), *where.devices[1:]))
    plan = hs.plan(graph, where)
    used = [lane.owner for s in plan.loops[0].launches for lane in s.lanes]
    slow, work, done = max(set(used), key=used.count), EmulatedStream._work, [0]
    assert slow.startswith("gpu")

    def slower(self: EmulatedStream, action: Callable[[], object], seconds: float, asked: float) -> None:
        if f"{slow}-compute" in self._thread.name:
            done[0] += 1
            seconds = max(seconds, 16e-3 if done[0] > 20 else 0.0)
        work(self, action, seconds, asked)

    monkeypatch.setattr(EmulatedStream, "_work", slower)
    wanted = interpret(graph, inputs)

    def ran() -> tuple[hs.Result, hs.Result]:
        done[0] = 0
        plain = hs.run(plan, inputs)
        done[0] = 0
        anew = hs.run(plan, inputs, replan=replanning_of(plan, where, only=None, memory=None, costs=None, look_seconds=0.02))
        assert value_problems(plain, wanted) == []
        assert value_problems(anew, wanted) == []
        assert anew.trace.loops[0].turns == 60
        return plain, anew

    def loses_its_share(found: tuple[hs.Result, hs.Result]) -> None:
        plain, anew = found
        assert len(anew.plans) > 1
        # A machine that stalls gives reasons of its own, before that one or after it.
        assert any(f"{slow} took" in note for changed in anew.plans[1:] for note in changed.notes)
        share = [lane.owner for s in anew.plans[-1].loops[0].launches for lane in s.lanes].count(slow)
        assert share < used.count(slow)
        on_slow = [sum(lane.owner == slow for s in r.trace.loops[0].launches for lane in s.lanes) for r in (plain, anew)]
        assert on_slow[1] < on_slow[0]

    unspoilt(ran, loses_its_share)
