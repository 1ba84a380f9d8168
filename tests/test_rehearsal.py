"""Graphs and loops measured before they run: which may be, what it teaches, and that plans rest on it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import hetsched as hs
from hetsched.costing import costs_for
from hetsched.machine import Device, Machine
from hetsched.needs import first_need, is_wide, loops_of
from hetsched.placement.costs import RooflineCosts
from hetsched.placement.costs.history import History, Lesson
from hetsched.placement.costs.kinds import BEGIN, GAP, TURN, device_key, kind_of, turn_kind
from hetsched.rehearsal import excerpt, may_be_rehearsed, rehearse, rehearse_graph

CPU = Device("cpu", "cpu", lanes=1, languages=("host", "array"), flops_per_second={"float32": 1e10}, shares_lanes=True, fingerprint="x")
HERE = Machine((CPU,))


def training(turns=300, **options):
    """A step of gradient descent on rows that a sequence brings, with labels and an order that is drawn every tenth turn."""
    body = hs.Graph.build()
    x, w, rows = body.input("x", (8, 16)), body.input("w", (16, 4)), body.input("rows", (8,), np.int64)
    taken = body.op("tensor.gather", x, rows)
    grad = body.op("tensor.matmul", body.op("tensor.transpose", taken), body.op("nn.tanh", body.op("tensor.matmul", taken, w)))
    body.output(body.op("tensor.sub", w, body.op("tensor.scale", grad, factor=0.01)), name="w2")
    body.output(body.op("random.permutation", n=8, seed=1, name="order"), name="drawn")
    b = hs.Graph.build()
    loop = hs.Loop(
        body.freeze(), turns, invariants=("x",), sequences=("rows",), carried=(("w", "w2"),), collected=("drawn",), every={"order": 10}, **options
    )
    last, drawn = b.loop(loop, b.input("x", (8, 16)), b.input("rows", (turns, 8), np.int64), b.input("w", (16, 4)))
    b.output(drawn)
    return b.output(last).freeze()


def the_loop(graph):
    (loop,) = loops_of(graph)
    return loop


def test_some_turns_on_invented_values_teach_a_turn_and_its_kernels():
    loop = the_loop(training())
    assert may_be_rehearsed(loop, CPU)
    taught = rehearse(loop, CPU, HERE, RooflineCosts(HERE), 1e-4, 10.0)
    assert all(x.alone for x in taught)
    seconds = {x.op: x.seconds for x in taught}
    assert {TURN, BEGIN, "tensor.matmul", "nn.tanh"} <= set(seconds)
    assert 0 < seconds[TURN] < 1.0
    (turn,) = (x for x in taught if x.op == TURN)
    assert turn.kind == turn_kind(loop.body)


def test_a_rehearsal_keeps_to_its_budget():
    loop = the_loop(training())
    assert rehearse(loop, CPU, HERE, RooflineCosts(HERE), 1.0, 2.0) == []
    few = rehearse(loop, CPU, HERE, RooflineCosts(HERE), 1e-3, 0.04)
    assert TURN in {x.op for x in few}
    assert BEGIN not in {x.op for x in few}, "a loop of a few turns begins otherwise"


def test_what_may_have_effects_or_needs_true_values_is_not_rehearsed():
    loop = the_loop(training())
    assert not may_be_rehearsed(loop, replace(CPU, shares_lanes=False))
    assert not may_be_rehearsed(loop, replace(CPU, languages=("nothing",)))
    assert not may_be_rehearsed(replace(loop, turns=3), CPU)
    assert not may_be_rehearsed(replace(loop, pure=False), CPU)
    body = hs.Graph.build()
    x = body.input("x", (4,))
    mine = hs.Op("mine.twice", ("x",), ("y",), infer=lambda s, a: [s[0]], work=lambda i, o, a: hs.Work(1, 1, 1),
                 kernels={"array": lambda xp, i, o, w, a: xp.add(i[0], i[0], out=o[0])})  # fmt: skip
    body.output(body.op(mine, x), name="y")
    assert not may_be_rehearsed(hs.Loop(body.freeze(), 50, carried=(("x", "y"),)), CPU)


def test_plans_of_loops_rest_on_their_rehearsal(monkeypatch, tmp_path, quiet):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HETSCHED_LEARN", "1")
    graph, history = training(), History()
    first_need(graph, HERE, [CPU], {}, history, budget=1e4)
    body = the_loop(graph).body
    row = history.known([device_key(CPU)])[device_key(CPU), turn_kind(body), 1]
    assert row.runs == 0
    costs = costs_for(HERE, graph)
    seldom = body.task_index["order"]
    each = {t: costs.launch(body, t, CPU) for t in range(len(body)) if t != seldom}
    assert sum(e.seconds for e in each.values()) == pytest.approx(row.seconds), "the tasks of a turn share what it takes"
    assert all("scaled to a measured turn" in e.source for e in each.values() if e.seconds)
    assert "scaled" not in costs.launch(body, seldom, CPU).source


def test_a_graph_is_wide_where_tasks_can_run_at_once():
    def graph(links):
        b = hs.Graph.build()
        values = [b.input("x", (4,))]
        for before in links:
            values.append(b.op("tensor.exp", values[before]))
        for v in values[1:]:
            b.output(v)
        return b.freeze()

    assert not is_wide(graph([0, 1, 2, 3]))
    assert is_wide(graph([0, 0, 1, 2]))
    assert not is_wide(graph([]))


def layers(n=64):
    """Two chains that meet; labels beside numbers."""
    b = hs.Graph.build()
    x, w, rows = b.input("x", (n, n)), b.input("w", (n, n)), b.input("rows", (8,), np.int64)
    left = b.op("nn.relu", b.op("tensor.matmul", x, w, name="left"))
    right = b.op("nn.softmax", b.op("tensor.matmul", w, x, name="right"))
    b.output(b.op("tensor.gather", b.op("tensor.add", left, right, name="both"), rows, axis=0, name="taken"))
    return b.freeze()


def test_a_graph_is_run_on_invented_values_and_planned_anew():
    graph, asked = layers(), []

    def costs(taught):
        asked.append(taught)
        return RooflineCosts(HERE)

    taught = rehearse_graph(graph, HERE, None, costs, 1e4)
    assert {x.op for x in taught} - {GAP} == {"tensor.matmul", "nn.relu", "nn.softmax", "tensor.add", "tensor.gather"}
    assert all(x.alone and x.seconds > 0 and x.device == device_key(CPU) for x in taught)
    assert asked[0] == ()
    assert set(asked[-1]) == set(taught), "the last plan is made with what was taught, and is the one that was run"
    assert rehearse_graph(graph, HERE, None, costs, 0.0) == ()


def test_of_a_graph_that_takes_longer_than_there_is_time_the_beginning_is_run():
    slow = replace(CPU, flops_per_second={"float32": 2e6})  # by which a product of 64 takes a quarter of a second
    machine = Machine((slow,))
    b = hs.Graph.build()
    x = b.input("x", (64, 64))
    y = b.op("tensor.matmul", x, x)
    for _ in range(200):
        y = b.op("tensor.exp", b.op("tensor.matmul", y, x))
    graph = b.output(y).freeze()
    taught = rehearse_graph(graph, machine, None, lambda taught: RooflineCosts(machine), 40.0)
    assert {x.op for x in taught} - {GAP} == {"tensor.matmul", "tensor.exp"}


def test_what_a_rehearsal_leaves_out_is_invented():
    graph = layers()
    assert excerpt(graph, set()).task_names == graph.task_names
    part = excerpt(graph, {graph.task_index["left"], graph.task_index["taken"]})
    assert "left" not in part.task_names
    assert "taken" not in part.task_names
    assert {"x", "w", "done/left"} <= set(part.inputs)
    mine = hs.Op("mine.twice", ("x",), ("y",), infer=lambda s, a: [s[0]], work=lambda i, o, a: hs.Work(1, 1, 1),
                 kernels={"array": lambda xp, i, o, w, a: xp.add(i[0], i[0], out=o[0])})  # fmt: skip
    b = hs.Graph.build()
    x = b.input("x", (4, 4))
    b.output(b.op("nn.relu", b.op(mine, x, name="mine"), name="after"))
    part = excerpt(b.freeze(), set())
    assert list(part.task_names) == ["after"], "who knows what others' ops do"


def test_kernels_of_the_users_are_rehearsed_on_true_values_only():
    twice = hs.kernel("mine.twice", {"x": "in float32[n]", "y": "out float32[n]", "n": "value int64 = n"}, size="n", flops="n",
                      opencl="__kernel void twice(__global const float *x, __global float *y, const long n) {}")  # fmt: skip
    b = hs.Graph.build()
    drawn = b.op("random.normal", shape=(8,), seed=1, name="drawn")
    b.output(b.op(twice, drawn, name="of what was drawn"))
    b.output(b.op(twice, b.input("x", (8,)), name="of what will be given"))
    assert list(excerpt(b.freeze(), set()).task_names) == ["drawn", "of what was drawn"]


def test_a_plan_rests_on_the_rehearsal_and_no_kernel_is_looked_at_again(monkeypatch, tmp_path, quiet):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HETSCHED_LEARN", "1")
    graph, history = layers(), History()
    seconds = {}

    def ran(graph, machine, only, costs, budget):
        kinds = [kind_of(graph, t) for t in range(len(graph))]
        found = [Lesson(device_key(CPU), k.op, k.text, 1, k.dtype, k.flops, k.nbytes, 0.25, 0.0, 1, alone=True) for k in kinds]
        seconds.update({k.text: costs(found).launch(graph, t, CPU, 1).seconds for t, k in enumerate(kinds)})
        return tuple(found)

    monkeypatch.setattr("hetsched.needs.rehearse_graph", ran)
    first_need(graph, HERE, [CPU], {}, history, budget=1e4)
    assert all(s == pytest.approx(0.25, rel=0.01) for s in seconds.values()), "plans of a rehearsal rest on what it has shown"
    known = history.known([device_key(CPU)])
    assert {row.seconds for row in known.values()} == {0.25}
    assert {row.runs for row in known.values()} == {0}
    seconds.clear()
    first_need(graph, HERE, [CPU], {}, history, budget=1e4)
    assert not seconds, "what is known is not rehearsed again"
