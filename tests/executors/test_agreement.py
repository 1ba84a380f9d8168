"""Every executor, on every random graph, gives the values of a plain loop; what ran is what was planned, in an order the plan allows."""

import random

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import hetsched as hs
from hetsched.check import problems
from hetsched.errors import OutOfMemoryError, TaskError
from hetsched.executors import simulated
from hetsched.run import check_inputs
from hetsched.testing.graphs import random_graph, random_machine
from hetsched.testing.plans import plain_plan
from hetsched.testing.reference import interpret
from hetsched.testing.runs import run_problems, same_values, value_problems

BLOCK = 50


@pytest.mark.parametrize("block", range(20))
def test_values_order_and_deeds_on_random_graphs(block: int) -> None:
    here = hs.Machine.here()
    with threadpool_limits(1):
        for seed in range(block * BLOCK, (block + 1) * BLOCK):
            rng = random.Random(seed)
            graph, inputs = random_graph(rng)
            before = {name: np.copy(x) for name, x in inputs.items()}
            wanted = interpret(graph, inputs)
            plan = hs.plan(graph, here)
            assert problems(plan) == [], seed
            on_cpu = hs.run(plan, inputs)
            assert value_problems(on_cpu, wanted) == [], seed
            assert run_problems(plan, on_cpu.trace) == [], seed
            described = random_machine(rng)
            plan = hs.plan(graph, described)
            assert problems(plan) == [], seed
            virtual = simulated.run_plan(plan, check_inputs(graph, inputs), spread=0.5, seed=seed)
            assert value_problems(virtual, wanted) == [], seed
            assert run_problems(plan, virtual.trace) == [], seed
            for name, x in inputs.items():
                np.testing.assert_array_equal(x, before[name])


@pytest.mark.parametrize("block", range(4))
def test_values_under_memory_limits(block: int) -> None:
    """Plans at the limit they need, and below: right values, or refused before anything runs."""
    refused = 0
    with threadpool_limits(1):
        for seed in range(block * 25, (block + 1) * 25):
            rng = random.Random(seed)
            graph, inputs = random_graph(rng)
            machine = random_machine(rng, memory_limits=False)
            free = hs.plan(graph, machine)
            wanted = interpret(graph, inputs)
            for share in (1.0, rng.uniform(0.3, 1.0)):
                limits = {node: max(int(n * share), 1) for node, n in free.peak.items()}
                try:
                    plan = hs.plan(graph, machine, memory=limits)
                except OutOfMemoryError as error:
                    refused += "bytes" in str(error)
                    continue
                assert problems(plan) == []
                assert all(plan.peak.get(node, 0) <= limit for node, limit in limits.items())
                assert value_problems(simulated.run_plan(plan, check_inputs(graph, inputs), spread=0.5, seed=seed), wanted) == [], seed
    assert refused < 50


@pytest.mark.parametrize("seed", range(100))
def test_plans_without_a_planner(seed: int) -> None:
    graph, inputs = random_graph(random.Random(seed))
    with threadpool_limits(1):
        plan = plain_plan(graph, hs.Machine.here(), seed=seed, slots=2 + seed % 3)
        wanted = interpret(graph, inputs)
        on_cpu = hs.run(plan, inputs)
        assert value_problems(on_cpu, wanted) == [], seed
        assert run_problems(plan, on_cpu.trace) == []
        assert value_problems(hs.run(plan, inputs, executor="simulated"), wanted) == []


def test_a_missing_reuse_edge_is_seen_in_the_values() -> None:
    """The simulation spoils what is about to be written: without its reuse edges, some plan must give wrong values."""
    from dataclasses import replace

    wrong = 0
    with threadpool_limits(1):
        for seed in range(60):
            rng = random.Random(seed)
            graph, inputs = random_graph(rng, loops=False, tasks=25)
            wanted = interpret(graph, inputs)
            plan = replace(hs.plan(graph, random_machine(rng)), after=())
            try:
                result = simulated.run_plan(plan, check_inputs(graph, inputs), spread=0.5, seed=seed)
            except TaskError:  # indices that point nowhere
                wrong += 1
                continue
            wrong += not all(same_values(result[name], value) for name, value in wanted.items())
    assert wrong > 0
