from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from hetsched.graph.graph import Graph, Loop
from hetsched.graph.op import Op
from hetsched.graph.spec import Sequence
from hetsched.machine import HOST, Machine
from hetsched.testing.graphs import MOST, graphs, machines, random_graph, random_machine
from hetsched.testing.reference import interpret

SEEDS = range(120)


@pytest.fixture(scope="module")
def many() -> list[tuple[Graph, dict[str, Any]]]:
    return [random_graph(seed, tasks=16) for seed in SEEDS]


def described(graph: Graph) -> list[Any]:
    rows: list[Any] = [graph.inputs, graph.outputs, graph.after, graph.value_names, [repr(s) for s in graph.value_specs]]
    for t, op in enumerate(graph.task_ops):
        rows.append((graph.task_names[t], graph.reads(t), dict(graph.task_attributes[t]), described(op.body) if isinstance(op, Loop) else op.name))
        if isinstance(op, Loop):
            rows.append((op.turns, op.inputs, op.outputs, op.carried, op.stop, dict(op.every), op.cycle))
    return rows


def test_equal_seeds_give_equal_graphs_and_inputs() -> None:
    for seed in range(10):
        (one, x), (two, y) = random_graph(seed), random_graph(seed)
        assert described(one) == described(two)
        assert list(x) == list(y)
        assert all(np.array_equal(x[name], y[name]) for name in x)
    assert described(random_graph(0)[0]) != described(random_graph(1)[0])


def test_every_graph_can_be_computed_and_its_values_stay_small(many: list[tuple[Graph, dict[str, Any]]]) -> None:
    for graph, inputs in many:
        for name, value in interpret(graph, inputs).items():
            for array in value if isinstance(value, list) else [value]:
                assert np.all(np.isfinite(array)), name
                assert np.all(np.abs(np.asarray(array, np.float64)) <= MOST * MOST), name


def test_among_many_graphs_is_all_that_planners_must_bear(many: list[tuple[Graph, dict[str, Any]]]) -> None:
    seen: Counter[str] = Counter()

    def look(graph: Graph, depth: int) -> None:
        readers = graph.readers()
        outputs = list(graph.outputs.values())
        seen.update({"order-only edge": len(graph.after), "constant": len(graph.constants), "unused value": sum(not r for r in readers)})
        seen["output that is an input"] += any(v in graph.inputs.values() for v in outputs)
        seen["output that is read again"] += any(readers[v] for v in outputs)
        seen["output under two names"] += len(set(outputs)) < len(outputs)
        seen["output that is a sequence"] += any(isinstance(graph.spec(v), Sequence) for v in outputs)
        seen["int64 value"] += any(getattr(s, "dtype", None) == np.int64 for s in graph.value_specs)
        seen["task in a scope"] += any("/" in name for name in graph.task_names)
        for t, op in enumerate(graph.task_ops):
            reads = graph.reads(t)
            seen["value read twice by a task"] += len(set(reads)) < len(reads)
            if isinstance(op, Op):
                producers = [graph.task_ops[graph.value_task[v]] for v in reads if graph.value_task[v] >= 0]
                seen["view"] += op.view
                seen["view of a view"] += op.view and any(isinstance(p, Op) and p.view for p in producers)
                seen["output that is a view"] += op.view and graph.writes(t)[0] in outputs
                seen[op.name] += 1
            else:
                seen.update({"invariants": bool(op.invariants), "sequences": bool(op.sequences), "carried": bool(op.carried)})
                seen.update({"collected": bool(op.collected), "every": bool(op.every), "stop": bool(op.stop), "remainder": op.remainder is not None})
                seen["loop in a loop"] += depth > 0
                seen["swapped state"] += any(a != b.removeprefix("next_") for a, b in op.carried if b.startswith("next_"))
                look(op.body, depth + 1)

    for graph, _ in many:
        look(graph, 0)
    missing = [
        what
        for what in (
            "order-only edge", "constant", "unused value", "output that is an input", "output that is read again", "output under two names",
            "output that is a sequence", "int64 value", "task in a scope", "value read twice by a task", "view", "view of a view",
            "output that is a view", "invariants", "sequences", "carried", "collected", "every", "stop", "remainder", "loop in a loop",
            "swapped state", "tensor.matmul", "nn.dense", "tensor.concat", "tensor.gather", "nn.softmax", "tensor.one_hot", "tensor.argmax",
            "tensor.where", "optim.momentum", "random.uniform", "nn.dropout", "nn.cross_entropy", "data.whole",
        )
        if not seen[what]
    ]  # fmt: skip
    assert missing == [], dict(seen)


def test_loops_and_jumping_ops_can_be_left_out() -> None:
    for seed in range(30):
        graph, _ = random_graph(seed, tasks=20, loops=False, discrete=False)
        names = {op.name for op in graph.task_ops}
        assert all(isinstance(op, Op) for op in graph.task_ops)
        assert not names & {"tensor.argmax", "tensor.greater", "tensor.less_equal"}


def test_graphs_have_about_the_size_asked_for() -> None:
    sizes = [len(random_graph(seed, tasks=200, loops=False)[0]) for seed in range(5)]
    assert all(200 <= n <= 210 for n in sizes), sizes


def test_machines_are_valid_and_differ() -> None:
    found = [random_machine(seed) for seed in range(60)]
    assert found[7] == random_machine(7)
    cpus = [m.device("cpu") for m in found]
    assert {d.lanes for d in cpus} == {1, 2, 3, 4}
    assert all(d.shares_lanes and "host" in d.languages and d.memory == HOST for d in cpus)
    assert {len(m.devices) for m in found} == {1, 2, 3, 4}
    others = [d for m in found for d in m.devices if d.id != "cpu"]
    assert all(d.memory == d.id and not d.shares_lanes and d.languages == ("array",) for d in others)
    assert {x.engines for m in found for x in m.links} == {0, 1, 2}
    assert {m.memory(HOST).nbytes for m in found} > {None}
    assert any(d.uses for d in others)
    assert len({len({*map(len, pair)}) for pair in pairwise([m.links for m in found])}) == 2
    assert all(len(random_machine(seed, accelerators=0).devices) == 1 for seed in range(5))
    assert all(node.nbytes is None for seed in range(20) for node in random_machine(seed, memory_limits=False).memories)


@settings(max_examples=5, suppress_health_check=list(HealthCheck))
@given(graphs(tasks=6), machines())
def test_strategies_draw_graphs_and_machines(drawn: tuple[Graph, dict[str, Any]], machine: Machine) -> None:
    graph, inputs = drawn
    assert set(graph.inputs) == set(inputs)
    assert machine.device("cpu")
