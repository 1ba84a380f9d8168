"""A device that becomes four times slower in the middle of its life: the alarm names it, and the third run after it is placed as by who knows."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

import hetsched as hs
from hetsched.executors.simulated import Simulation
from hetsched.machine import Device, Link, Machine, MemoryNode
from hetsched.placement import plan_graph
from hetsched.placement.costs import RooflineCosts
from hetsched.placement.costs.history import History, Lesson
from hetsched.placement.costs.kinds import device_key, kind_of, link_key
from hetsched.placement.costs.known import KnownCosts
from hetsched.placement.costs.lessons import lessons
from hetsched.timeline import Copy, Free, Launch, Timeline

CPU = Device("cpu", "cpu", lanes=2, languages=("host", "array"), flops_per_second={"float32": 5e10}, bytes_per_second=1e10, shares_lanes=True,
             fingerprint="c")  # fmt: skip
GPU = Device("gpu:0", "emulated", memory="gpu:0", languages=("array",), flops_per_second={"float32": 4e11}, bytes_per_second=1e11, fingerprint="g")
LINKS = (Link("host", "gpu:0", 1e-5, 1e10), Link("gpu:0", "host", 1e-5, 1e10))
HERE = Machine((CPU, GPU), LINKS, (MemoryNode("host"), MemoryNode("gpu:0")))


class Truth:
    """What launches really take: the roofline, times what each op hides from it, times what the device has become."""

    def __init__(self, slow: dict[str, float]) -> None:
        self.rough, self.slow = RooflineCosts(HERE), slow

    def launch(self, graph, task, device, width=1):
        hidden = 1.2 + len(graph.task_ops[task].name) % 3 * 0.4
        found = self.rough.launch(graph, task, device, width)
        return found._replace(seconds=found.seconds * hidden * self.slow.get(device.id, 1.0))

    def copy(self, nbytes, link):
        return self.rough.copy(nbytes, link)


def graph_of(seed):
    rng = random.Random(seed)
    b = hs.Graph.build()
    values = [b.input(f"x{i}", (n, 256)) for i, n in enumerate((128, 256, 512))]
    weight = b.input("w", (256, 256))
    for _ in range(24):
        x = rng.choice(values[-5:])
        op = rng.choice(["tensor.matmul", "tensor.matmul", "nn.relu", "nn.softmax", "tensor.exp"])
        values.append(b.op(op, x, weight) if op == "tensor.matmul" else b.op(op, x))
    for v in values[-3:]:
        b.output(v)
    return b.freeze()


def really(plan: Timeline, truth: Truth, noise: np.random.Generator) -> Timeline:
    """The trace of a run under a virtual clock in which every command takes what it really takes, give or take 3 %."""
    spans = []
    for span in plan.spans:
        command = span.command
        if isinstance(command, Launch):
            seconds = truth.launch(plan.graph, command.task, plan.machine.device(span.lanes[0].owner), command.width).seconds
        elif isinstance(command, Copy):
            seconds = truth.copy(int(plan.graph.value_nbytes[command.value]), plan.machine.link(command.src.node, command.dst.node)).seconds
        else:
            assert isinstance(command, Free)
            seconds = 0.0
        spans.append(span._replace(finish=span.start + seconds * (1 + 0.03 * (2 * noise.random() - 1))))
    given = {v: np.zeros(plan.graph.spec(v).bounds, np.float32) for v in plan.graph.inputs.values()}
    true = Timeline(**{**vars(plan), "spans": tuple(spans)})
    return Simulation(true, given, compute=False).run().traced()


def living(graph, history, noise, first=False):
    """What plans by `history`, runs, and teaches it: truth -> (trace, drifts). first: what is not known is measured before it is planned."""
    keys = [*map(device_key, HERE.devices), *(link_key(x, HERE) for x in LINKS)]

    clock = itertools.count(0.0, 1000.0)

    def measured_again(truth, now, crowded):
        """As `hetsched run` does before it plans (`hetsched.needs.first_need`): what became slow, and what rests on little."""
        for key in history.suspects(keys, now):
            history.looked(key, truth.slow.get(key.partition("|")[0], 1.0) / history.factors([key], now)[key], now)
        known = history.known(keys, now)
        again = []
        for device, task in itertools.product(HERE.devices, range(len(graph))):
            kind = kind_of(graph, task)
            row = known.get((device_key(device), kind.text, 1))
            if row.is_worth_a_look(now) if row is not None else first:
                seconds = truth.launch(graph, task, device).seconds
                again.append(Lesson(device_key(device), kind.op, kind.text, 1, kind.dtype, kind.flops, kind.nbytes, seconds, 0.0, 1, alone=True))
        history.learn(again, now, crowded)

    def live(truth, crowded=0.0):
        now = next(clock)
        measured_again(truth, now, crowded)
        plan = plan_graph(graph, HERE, costs=KnownCosts(HERE, {}, history.known(keys, now), history.factors(keys, now)))
        trace = really(plan, truth, noise)
        return trace, history.learn(lessons(trace), now, crowded)

    return live


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("loaded", "crowded"), [(("cpu", "gpu:0"), 0.5), (("cpu",), 0.5), (("cpu", "gpu:0"), 0.0), (("gpu:0",), 0.0)])
def test_the_third_quiet_run_after_a_loaded_life_is_placed_as_by_who_knows(seed, loaded, crowded, tmp_path):
    graph, noise = graph_of(seed), np.random.default_rng(seed)
    history = History(tmp_path / "costs.sqlite")
    live = living(graph, history, noise, first=True)
    for _ in range(6):
        load = 1.5 + 10 * noise.random() ** 2  # another one in each run
        live(Truth(dict.fromkeys(loaded, load)), crowded)
    quiet = Truth({})
    for _ in range(3):
        trace, _ = live(quiet)
    informed = really(plan_graph(graph, HERE, costs=quiet), quiet, noise)
    assert trace.makespan <= 1.10 * informed.makespan
    _, drifts = live(quiet)
    assert drifts == []


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("device", ["gpu:0", "cpu"])
def test_the_third_run_after_a_device_has_slowed_is_placed_as_by_who_knows(seed, device, tmp_path):
    graph, noise = graph_of(seed), np.random.default_rng(seed)
    history = History(tmp_path / "costs.sqlite")
    live = living(graph, history, noise)
    usual, slowed = Truth({}), Truth({device: 4.0})
    for _ in range(4):
        _, drifts = live(usual)
    assert drifts == [], "what is as it was raises no alarm"
    trace, drifts = live(slowed)
    assert device in {lane.owner for span in trace.launches for lane in span.lanes}, "else nobody could know"
    assert [d.device for d in drifts] == [f"{device}|{HERE.device(device).fingerprint}"]
    assert drifts[0].factor == pytest.approx(4.0, rel=0.15)
    live(slowed)
    trace, _ = live(slowed)
    informed = really(plan_graph(graph, HERE, costs=slowed), slowed, noise)
    assert trace.makespan <= 1.10 * informed.makespan
    assert history.warning == ""
