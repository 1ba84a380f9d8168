"""What check proves before anything runs: shapes, dtypes, and the bytes of every memory node."""

import random
from dataclasses import replace

import pytest

import hetsched as hs
from hetsched.check.certificate import certify
from hetsched.errors import OutOfMemoryError, PlanError
from hetsched.graph.spec import Spec
from hetsched.machine import HOST, MemoryNode
from hetsched.testing.graphs import random_graph, random_machine


def test_peaks_counted_from_the_spans_are_those_of_the_planner() -> None:
    close = 0
    for seed in range(60):
        rng = random.Random(seed)
        graph, _ = random_graph(rng)
        machine = random_machine(rng, memory_limits=False)
        plan = hs.plan(graph, machine)
        if seed % 2:
            try:
                plan = hs.plan(graph, machine, memory={node: n // 2 + 1 for node, n in plan.arenas.items() if node != HOST})
            except OutOfMemoryError:
                continue
        found = certify(plan)
        for name, node in found.memory.items():
            assert 0 <= node.peak <= plan.peak.get(name, 0)
            assert node.arena == plan.arenas.get(name, 0)
            assert node.limit is None or node.arena + node.beside <= node.limit
            close += node.peak == plan.peak.get(name, 0)
        assert found.arrays + found.objects >= len(graph.value_specs)
    assert close > 60, "they differ only where a view is the last to use what it views"


def tanh() -> hs.Timeline:
    b = hs.Graph.build()
    y = b.op("nn.tanh", b.op("tensor.matmul", b.input("x", (4, 4)), b.input("w", (4, 4)), name="y"), name="z")
    return hs.plan(b.output(b.op("tensor.matmul", y, y, name="out"), "out").freeze())


def test_a_peak_that_is_noted_too_low_is_found() -> None:
    plan = tanh()
    assert certify(plan).memory[HOST].peak == plan.peak[HOST]
    with pytest.raises(PlanError, match=r"arena: host holds \d+ bytes at its peak, the plan notes 64"):
        certify(replace(plan, peak={HOST: 64}))


def test_what_lies_beside_the_arena_counts_against_the_limit() -> None:
    plan = tanh()
    node = certify(plan).memory[HOST]
    assert node.beside == 64, "the result is the caller's"
    small = replace(plan.machine, memories=tuple(MemoryNode(HOST, node.arena + 63) if m.name == HOST else m for m in plan.machine.memories))
    with pytest.raises(PlanError, match="64 beside it; its limit is"):
        certify(replace(plan, machine=small))


def test_a_spec_that_its_op_does_not_give_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tanh()
    value = plan.graph.value_names.index("z")
    specs = list(plan.graph.value_specs)
    specs[value] = Spec((2, 8))
    monkeypatch.setattr(plan.graph, "value_specs", specs)
    with pytest.raises(PlanError, match=r"shape: task 'z' \(nn.tanh\) gives \[.*4.*4.*\], the graph has"):
        certify(plan)
