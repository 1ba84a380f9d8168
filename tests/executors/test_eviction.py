"""Graphs that need more memory than a device has: right values by planned eviction, or refused before anything runs, with bytes."""

import random
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import hetsched as hs
from hetsched.check import problems
from hetsched.errors import OutOfMemoryError
from hetsched.executors import simulated
from hetsched.executors.backends.emulated import emulate
from hetsched.graph.graph import Graph, Loop
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode
from hetsched.run import check_inputs
from hetsched.testing.graphs import random_graph, random_machine
from hetsched.testing.reference import interpret
from hetsched.testing.runs import run_problems, value_problems
from hetsched.timeline import Copy, Timeline

N = 24
TILE = 4 * N * N
CPU = Device("cpu", "cpu", lanes=2, languages=("host", "array"), shares_lanes=True, bytes_per_second=1e9, flops_per_second={"float32": 1e9})
GPU = Device("gpu:0", "emulated", memory="gpu:0", hardware="gpu", bytes_per_second=1e11, flops_per_second={"float32": 1e12}, launch_seconds=1e-6)
BOX = Machine((CPU, GPU), (Link(HOST, "gpu:0", 1e-6, 1e10), Link("gpu:0", HOST, 1e-6, 1e10)), (MemoryNode(HOST), MemoryNode("gpu:0")))


def layers(depth: int = 12) -> tuple[Graph, dict[str, Any]]:
    """Forward and backward: every activation is read again, the last one first."""
    rng = np.random.default_rng(0)
    b = Graph.build("layers")
    h = b.input("x", (N, N))
    weights = [b.input(f"w{i}", (N, N)) for i in range(depth)]
    seen = [h]
    for i, w in enumerate(weights):
        seen.append(b.op("nn.tanh", b.op("tensor.matmul", seen[-1], w), name=f"h{i}"))
    g = seen[-1]
    for i, (w, h) in enumerate(zip(reversed(weights), reversed(seen[:-1]), strict=True)):
        g = b.op("nn.tanh", b.op("tensor.matmul", b.op("tensor.mul", g, h), w), name=f"g{i}")
    inputs = {name: (rng.normal(size=(N, N)) / N**0.5).astype(np.float32) for name in ["x", *(f"w{i}" for i in range(depth))]}
    return b.output(g, "g").freeze(), inputs


def generations(plan: Timeline) -> int:
    """How many copies bring in again what was evicted."""
    return sum(isinstance(s.command, Copy) and s.command.dst.generation > 0 for s in plan.spans)


def outgoing(plan: Timeline, node: str) -> int:
    return sum(isinstance(s.command, Copy) and s.command.src.node == node for s in plan.spans)


@pytest.mark.parametrize("executor", ["simulated", "auto"])
def test_a_peak_of_four_times_the_memory_gives_the_same_values(executor: str) -> None:
    graph, inputs = layers()
    free = hs.plan(graph, BOX, only="gpu:0")
    limit = free.peak["gpu:0"] // 4
    plan = hs.plan(graph, BOX, only="gpu:0", memory={"gpu:0": limit})
    assert problems(plan) == []
    assert plan.arenas["gpu:0"] <= limit < free.peak["gpu:0"] / 3
    assert generations(plan) > 10
    assert any("evictions, farthest next use first" in note for note in plan.notes)
    result = hs.run(plan, inputs, executor=executor)
    assert value_problems(result, interpret(graph, inputs)) == []
    assert run_problems(plan, result.trace) == []


def test_what_the_host_has_is_dropped_and_what_it_has_not_is_copied_out() -> None:
    """Three tiles fit. The input a is dropped for b and comes in again; what t makes lies nowhere else, so it is copied out first."""
    b = Graph.build()
    x = b.input("x", (N, N))
    y = b.input("y", (N, N))
    t = b.op("tensor.matmul", x, x, name="t")
    u = b.op("tensor.matmul", y, y, name="u")
    v = b.op("tensor.matmul", u, u, name="v")
    w = b.op("tensor.matmul", v, x, name="w")
    b.output(b.op("tensor.matmul", w, t, name="z"), "z")
    graph = b.freeze()
    plan = hs.plan(graph, BOX, policy="heft", only="gpu:0", memory={"gpu:0": 3 * TILE})
    assert problems(plan) == []
    copies = [s.command for s in plan.spans if isinstance(s.command, Copy)]
    names = [(graph.value_names[c.value], c.src.node, c.dst.generation) for c in copies]
    assert all(name not in ("x", "y") for name, src, _ in names if src == "gpu:0"), "inputs lie on the host: nothing brings them back"
    assert sum(src == "gpu:0" for _, src, _ in names) <= 2, "z, and at most one value that was made"
    rng = np.random.default_rng(0)
    inputs = {name: (rng.normal(size=(N, N)) / N**0.5).astype(np.float32) for name in ("x", "y")}
    assert value_problems(hs.run(plan, inputs), interpret(graph, inputs)) == []


def test_a_task_too_large_for_a_device_goes_elsewhere_or_is_refused_with_bytes() -> None:
    graph, inputs = layers(3)
    plan = hs.plan(graph, BOX, memory={"gpu:0": 2 * TILE})
    assert problems(plan) == []
    matmuls = [plan.device_of(t) for t, op in enumerate(graph.task_ops) if op.name == "tensor.matmul"]
    assert set(matmuls) == {"cpu"}, "two tiles are read and one is written at once"
    assert value_problems(hs.run(plan, inputs), interpret(graph, inputs)) == []
    with pytest.raises(OutOfMemoryError, match=rf"needs {3 * TILE} bytes in gpu:0 at once .*where {2 * TILE} are free.*at least {3 * TILE} bytes"):
        hs.plan(graph, BOX, only="gpu:0", memory={"gpu:0": 2 * TILE})
    assert problems(hs.plan(graph, BOX, only="gpu:0", memory={"gpu:0": 3 * TILE})) == []


def test_the_host_too_is_kept_to_its_limit() -> None:
    """What is evicted to the host takes room there; where that is short, the plan is refused, and the limit that the error names is enough."""
    graph, inputs = layers()
    limits = {"gpu:0": 4 * TILE}
    plan = hs.plan(graph, BOX, only="gpu:0", memory=limits)
    taken = plan.peak[HOST]
    assert taken > 3 * TILE
    with pytest.raises(OutOfMemoryError, match=r"in host, where \d+ of \d+ are free") as error:
        hs.plan(graph, BOX, only="gpu:0", memory={**limits, HOST: 2 * TILE})
    found = re.search(r"Raise the limit of host to at least (\d+) bytes", str(error.value))
    assert found is not None
    enough = hs.plan(graph, BOX, only="gpu:0", memory={**limits, HOST: int(found[1])})
    assert problems(enough) == []
    assert value_problems(hs.run(enough, inputs), interpret(graph, inputs)) == []


def steps(turns: int = 12, depth: int = 6) -> tuple[Graph, dict[str, Any]]:
    """A loop of training-like steps: forward and backward through `depth` layers, and a state that is carried."""
    body = Graph.build("body")
    w, x, s = body.input("w", (N, N)), body.input("x", (N, N)), body.input("s", (N, N))
    seen = [x]
    for i in range(depth):
        seen.append(body.op("nn.tanh", body.op("tensor.matmul", seen[-1], w, name=f"m{i}"), name=f"h{i}"))
    g = seen[-1]
    for i in reversed(range(depth)):
        g = body.op("tensor.mul", body.op("tensor.matmul", g, w, name=f"n{i}"), seen[i + 1], name=f"g{i}")
    body.output(body.op("tensor.add", s, g, name="next"), "next")
    loop = Loop(body.freeze(), turns, ("w",), ("x",), (("s", "next"),), ())
    b = Graph.build("steps")
    (out,) = b.loop(loop, b.input("w", (N, N)), b.input("x", (turns, N, N)), b.input("s", (N, N)))
    rng = np.random.default_rng(0)
    numbers = {name: rng.normal(size=shape).astype(np.float32) / N**0.5 for name, shape in (("w", (N, N)), ("x", (turns, N, N)), ("s", (N, N)))}
    return b.output(out, "s").freeze(), numbers


@pytest.mark.parametrize(("only", "node"), [("cpu", HOST), ("gpu:0", "gpu:0")])
def test_loops_put_fewer_turns_in_flight_then_share_bytes_within_a_turn_then_are_refused(only: str, node: str) -> None:
    graph, inputs = steps()
    wanted = interpret(graph, inputs)
    slow = Machine((replace(CPU, flops_per_second={"float32": 1e7}), GPU), BOX.links, BOX.memories)
    free = hs.plan(graph, slow, only=only, learn=False)
    (whole,) = free.loops.values()
    periods, notes, refused = [], [], 0
    for tiles in (None, 40, 30, 22, 16, 11, 2):
        limits = {node: (tiles * TILE if tiles else whole.arenas[node]) + (TILE if node == HOST else 0)}
        try:
            plan = hs.plan(graph, slow, only=only, memory=limits, learn=False)
        except OutOfMemoryError as error:
            refused += bool(re.search(rf"'loop' needs \d+ bytes (of|in) {node}.*Raise the limit of {node} to at least \d+ bytes", str(error)))
            continue
        assert problems(plan) == [], tiles
        (body,) = plan.loops.values()
        assert body.arenas[node] <= limits[node]
        for executor in ("auto", "simulated"):
            result = hs.run(plan, inputs, executor=executor)
            assert value_problems(result, wanted) == [], tiles
            assert run_problems(plan, result.trace) == [], tiles
        assert body.period is not None
        periods.append(body.period)
        notes += plan.notes
    assert refused >= 1
    assert periods == sorted(periods)
    assert periods[0] == whole.period
    assert any("times as long" in note for note in notes)
    assert any("values of a turn share bytes" in note for note in notes)


def pressed(seed: int, emulated: bool) -> tuple[Timeline, Graph, dict[str, Any]] | None:
    """A plan of a random graph on a random machine under a random limit; None where it is refused."""
    rng = random.Random(seed)
    graph, inputs = random_graph(rng, loops=seed % 3 == 0, tasks=rng.choice([12, 30, 60]))
    machine = random_machine(rng, memory_limits=False)
    while len(machine.memories) < 2:
        machine = random_machine(rng, memory_limits=False)
    machine = emulate(machine) if emulated else machine
    policy = rng.choice(["auto", "heft", "round_robin"])
    free = hs.plan(graph, machine, policy=policy)
    limits = {node: max(int(n * rng.uniform(0.1, 1.0)), 1) for node, n in free.arenas.items() if node != HOST or rng.random() < 0.2}
    refusal: OutOfMemoryError | None = None
    try:
        plan = hs.plan(graph, machine, policy=policy, memory=limits)
    except OutOfMemoryError as error:
        refusal = error
    if refusal is not None:
        assert refusal.exit_code == 5
        assert re.search(r"\d+ bytes", str(refusal))
        return None
    assert problems(plan) == [], seed
    assert all(plan.arenas.get(node, 0) <= limit for node, limit in limits.items())
    return plan, graph, inputs


@pytest.mark.parametrize("block", range(4))
def test_values_under_random_limits_on_a_virtual_clock(block: int) -> None:
    ran = evicted = 0
    with threadpool_limits(1):
        for seed in range(block * 25, (block + 1) * 25):
            found = pressed(seed, emulated=False)
            if found is None:
                continue
            plan, graph, inputs = found
            result = simulated.run_plan(plan, check_inputs(graph, inputs), spread=0.5, seed=seed)
            assert value_problems(result, interpret(graph, inputs)) == [], seed
            assert run_problems(plan, result.trace) == [], seed
            ran += 1
            evicted += generations(plan) > 0
    assert ran > 10
    assert evicted > 0


def test_values_under_random_limits_on_emulated_devices() -> None:
    evicted = 0
    with threadpool_limits(1):
        for seed in range(100, 150):
            found = pressed(seed, emulated=True)
            if found is None or not generations(found[0]):
                continue
            plan, graph, inputs = found
            result = hs.run(plan, inputs, timeout=600)
            assert value_problems(result, interpret(graph, inputs)) == [], seed
            assert run_problems(plan, result.trace) == [], seed
            evicted += 1
    assert evicted > 3


def random_tiles(seed: int) -> tuple[Graph, dict[str, Any]]:
    """A random graph over square tiles, of few ops: their kernels are built once."""
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    b = Graph.build("tiles")
    pool = [b.input(f"x{i}", (N, N)) for i in range(4)]
    inputs = {f"x{i}": numbers.normal(size=(N, N)).astype(np.float32) for i in range(4)}
    for _ in range(rng.randrange(20, 40)):
        x, y = rng.choice(pool), rng.choice(pool[-6:])
        made = b.op(rng.choice(["tensor.add", "tensor.mul", "tensor.matmul"]), x, y)
        pool.append(b.op("nn.tanh", made))
    for i in range(3):
        b.output(rng.choice(pool), f"some{i}")
    return b.output(pool[-1], "last").freeze(), inputs


def test_values_under_limits_on_opencl() -> None:
    pytest.importorskip("pyopencl")
    from hetsched.testing import opencl

    if not opencl.available():
        pytest.skip("no OpenCL device works here")
    here = Machine.here()
    evicted = 0
    for seed in range(6):
        graph, inputs = random_tiles(seed) if seed else layers()
        free = hs.plan(graph, here, only="opencl:0")
        rng = random.Random(seed)
        limit = free.peak["opencl:0"] // 4 if not seed else max(int(free.arenas["opencl:0"] * rng.uniform(0.2, 0.8)), 3 * TILE)
        plan = hs.plan(graph, here, only="opencl:0", memory={"opencl:0": limit})
        assert problems(plan) == []
        assert plan.arenas["opencl:0"] <= limit
        result = hs.run(plan, inputs, timeout=600)
        wanted = interpret(graph, inputs)
        assert all(np.allclose(result[name], value, rtol=1e-3, atol=1e-3) for name, value in wanted.items()), seed
        assert run_problems(plan, result.trace, skew_seconds=1e-3) == [], seed
        evicted += generations(plan) > 0
    assert evicted > 3
