"""A run's own costs through other plans: the plan that was followed and the others are measured by one yardstick, loops included."""

from __future__ import annotations

import numpy as np
import pytest

import hetsched as hs
from hetsched.graph.graph import Loop
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode
from hetsched.placement.costs.history import Known
from hetsched.placement.costs.kinds import BEGIN, TURN, begin_kind, kind_of, turn_kind
from hetsched.placement.costs.known import KnownCosts
from hetsched.placement.costs.lessons import lessons
from hetsched.placement.costs.replay import MeasuredCosts, named, placed, regrets, retimed

CPU = Device("cpu", "cpu", lanes=2, languages=("host", "array"), flops_per_second={"float32": 1e10}, shares_lanes=True, fingerprint="x")
OTHER = Device("gpu:0", "emulated", memory="gpu:0", languages=("array",), flops_per_second={"float32": 2e10}, fingerprint="y")
MACHINE = Machine((CPU, OTHER), (Link(HOST, "gpu:0"), Link("gpu:0", HOST)), (MemoryNode(HOST), MemoryNode("gpu:0", 1 << 30)))
TURNS = 50


def graph_of() -> hs.Graph:
    body = hs.Graph.build()
    state = body.input("s", (64, 64))
    body.output(body.op("nn.relu", body.op("tensor.matmul", state, state, name="product"), name="relu"), "next")
    b = hs.Graph.build()
    (last,) = b.loop(Loop(body.freeze(), turns=TURNS, carried=(("s", "next"),)), b.input("x", (64, 64)), name="steps")
    return b.output(b.op("nn.relu", last, name="end"), "y").freeze()


def known_costs(graph: hs.Graph, factor: float = 1.0) -> KnownCosts:
    """Tasks of 10 us on the processor, of which a turn takes 50 us where the sum would be 20, and a loop begins in 3 ms."""
    body = graph.task_ops[0].body  # type: ignore[union-attr]
    rows = {}
    for where, tasks in ((body, range(len(body))), (graph, range(1, len(graph)))):
        for task in tasks:
            kind = kind_of(where, task)
            rows[("cpu|x", kind.text, 1)] = factor * 10e-6
    rows[("cpu|x", turn_kind(body), 1)] = factor * 50e-6
    rows[("cpu|x", begin_kind(body, TURNS), 1)] = factor * 3e-3
    known = {key: Known(*_row(key, seconds)) for key, seconds in rows.items()}
    costs = KnownCosts(MACHINE, {}, known)
    costs.in_body(body)
    return costs


def _row(key: tuple[str, str, int], seconds: float) -> tuple[object, ...]:
    values = {"op": key[1].partition("(")[0], "dtype": "float32", "flops": 1.0, "nbytes": 1.0, "seconds": seconds, "spread": 0.0, "runs": 3}
    fields = Known._field_defaults | values
    return tuple(fields.get(name, 0) for name in Known._fields)


@pytest.mark.parametrize("slower", [1.0, 2.0])
def test_the_plan_that_was_followed_has_nothing_to_regret_against_itself(slower: float) -> None:
    graph = graph_of()
    plan = hs.plan(graph, MACHINE, policy="heft", only="cpu", costs=known_costs(graph))
    assert plan.makespan > 3e-3 + TURNS * 50e-6
    ran = hs.plan(graph, MACHINE, policy="heft", only="cpu", costs=known_costs(graph, slower))
    trace = hs.run(ran, {"x": np.zeros((64, 64), np.float32)}, executor="simulated").trace
    measured = MeasuredCosts(named(lessons(trace)), known_costs(graph))
    (found,) = regrets(plan, measured, ["heft"], only="cpu")
    assert found.followed == pytest.approx(trace.makespan, rel=0.05)
    assert found.saved == pytest.approx(0.0, abs=0.01)
    kinds = {x.kind.partition(" ")[0] for x in lessons(trace)}
    assert {TURN, BEGIN} <= kinds


def test_a_graph_is_held_where_it_ran() -> None:
    graph = graph_of()
    there = {"steps/product": "gpu:0", "steps/relu": "gpu:0", "end": "cpu"}
    plan = hs.plan(placed(graph, there), MACHINE, policy="heft")
    body = plan.loops[0]
    assert {span.lanes[0].owner for span in body.launches} == {"gpu:0"}
    assert plan.device_of(1) == "cpu"
    assert graph.where == {}, "the graph itself is as it was"
    assert retimed(plan, MeasuredCosts([], known_costs(graph))) > 0
