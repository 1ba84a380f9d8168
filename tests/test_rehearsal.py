"""Loops measured before they run: which may be, what it teaches, and that plans rest on it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import hetsched as hs
from hetsched.costing import costs_for, first_need, is_wide, loops_of
from hetsched.machine import Device, Machine
from hetsched.placement.costs import RooflineCosts
from hetsched.placement.costs.history import History
from hetsched.placement.costs.kinds import BEGIN, TURN, device_key, turn_kind
from hetsched.rehearsal import may_be_rehearsed, rehearse

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
