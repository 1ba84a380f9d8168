"""Every way to run gives, on every random graph of loops, the values of a plain loop."""

import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import hetsched as hs
from hetsched.check import problems
from hetsched.errors import OutOfMemoryError
from hetsched.executors import relay, rounds, seat, simulated
from hetsched.executors.backends.emulated import emulate
from hetsched.graph.graph import Graph
from hetsched.machine import Device, Machine
from hetsched.machine.described import machine_named
from hetsched.placement.costs import Estimate
from hetsched.run import check_inputs
from hetsched.testing.graphs import Inputs, random_machine
from hetsched.testing.loops import random_loops
from hetsched.testing.opencl import available
from hetsched.testing.plans import plain_plan
from hetsched.testing.reference import interpret
from hetsched.testing.runs import run_problems, value_problems
from hetsched.timeline import Timeline

THREADS = Machine((Device("cpu", "cpu", lanes=2, io_lanes=1, languages=("host", "array"), shares_lanes=True, widths=(1,)),))
SEEDS = 6


class Stated:
    """Costs: one to four milliseconds a task, by its name; what is worth threads."""

    def launch(self, graph: Graph, task: int, device: Device, width: int) -> Estimate:
        seconds = 1e-3 * (1 + sum(graph.task_names[task].encode()) % 4)
        return Estimate(seconds if width == 1 else float("inf"), source="stated")

    def copy(self, nbytes: int, link: Any) -> Estimate:
        return Estimate(link.seconds(nbytes))


@contextmanager
def chains_that_move() -> Iterator[None]:
    """The chain of a loop changes hands at every chance."""
    with pytest.MonkeyPatch.context() as patch:
        for home, name, value in ((rounds, "WORTH", -1e9), (rounds, "SAMPLES", 1), (rounds, "SHORT_SECONDS", -1.0), (seat, "LEAST_SECONDS", 0.0)):
            patch.setattr(home, name, value)
        patch.setattr(seat, "KNOWN", 0)
        yield


def moving(plan: Timeline, inputs: Inputs) -> Any:
    with chains_that_move():
        return hs.run(plan, inputs, learn=False)


def without_lock(plan: Timeline, inputs: Inputs) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for home in (rounds, relay):
            patch.setattr(home, "is_atomic", lambda: False)
        return hs.run(plan, inputs, learn=False)


def told(plan: Timeline, inputs: Inputs) -> Any:
    rows: list[tuple[int, int]] = []
    found = hs.run(plan, inputs, learn=False, timeout=1000.0, progress=lambda done, total, name: rows.append((done, total)))
    assert [done for done, _ in rows] == sorted(done for done, _ in rows)
    assert rows[-1][0] == rows[-1][1]
    return found


def by_callers(plan: Timeline, inputs: Inputs) -> Any:
    """Three callers of two buffer sets, each with inputs of its own."""
    graph = plan.graph
    mine = [{name: x if x.dtype.kind == "i" else (x / k).astype(x.dtype) for name, x in inputs.items()} for k in (1, 2, 4)]
    wrong: list[Any] = []
    with hs.Session() as session:
        function = session.compile(plan, buffers=2)

        def call(given: Inputs) -> None:
            wanted = interpret(graph, given)
            try:
                for _ in range(3):
                    wrong.extend(value_problems(function(given), wanted))
            except Exception as error:
                wrong.append(error)

        threads = [threading.Thread(target=call, args=(given,)) for given in mine]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        return function(inputs)


WAYS: Mapping[str, Callable[[Timeline, Inputs], Any]] = {
    "threads": lambda plan, inputs: hs.run(plan, inputs, learn=False),
    "without a trace": lambda plan, inputs: hs.run(plan, inputs, learn=False, trace=False),
    "keep going": lambda plan, inputs: hs.run(plan, inputs, learn=False, keep_going=True),
    "chains that move": moving,
    "without a lock": without_lock,
    "told": told,
    "callers": by_callers,
    "simulated": lambda plan, inputs: simulated.run_plan(plan, check_inputs(plan.graph, inputs), spread=0.5, seed=1),
}


@pytest.mark.parametrize("seed", range(SEEDS))
def test_plans_for_threads(seed: int) -> None:
    graph, inputs = random_loops(seed, most_turns=12)
    before, wanted = {name: x.copy() for name, x in inputs.items()}, interpret(graph, inputs)
    plan = hs.plan(graph, THREADS, costs=Stated())
    assert problems(plan) == []
    for way, run in WAYS.items():
        found = run(plan, inputs)
        assert value_problems(found, wanted) == [], way
        if way == "threads":
            assert run_problems(plan, found.trace) == []
    assert all(np.array_equal(x, before[name]) for name, x in inputs.items())


@pytest.mark.parametrize("seed", range(100, 112))
def test_plans_without_a_planner(seed: int) -> None:
    """Loops of so many turns, now and then, that their steps become code."""
    graph, inputs = random_loops(seed, most_turns=24 if seed % 4 else 250, loops=2)
    wanted = interpret(graph, inputs)
    plan = plain_plan(graph, THREADS, seed=seed, slots=2 + seed % 3)
    for way in ("threads", "chains that move", "keep going", "without a lock"):
        assert value_problems(WAYS[way](plan, inputs), wanted) == [], way


def test_turns_that_threads_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """One loop and nothing beside it; ring slots in all relations to the batches of an epoch."""
    shared, plain = [], rounds.Rounds.__init__

    def init(self: rounds.Rounds, *args: Any) -> None:
        shared.append(self)
        plain(self, *args)

    monkeypatch.setattr(rounds.Rounds, "__init__", init)
    for seed in range(40):
        graph, inputs = random_loops(seed, most_turns=12, loops=1, stops=False, nested=False)
        wanted = interpret(graph, inputs)
        for slots, ways in ((2, ("threads", "keep going")), (3, ("threads", "chains that move"))):
            plan = plain_plan(graph, THREADS, seed=seed, slots=slots)
            for way in ways:
                assert value_problems(WAYS[way](plan, inputs), wanted) == [], (seed, slots, way)
    assert len(shared) > 30 or not rounds.is_atomic()


@pytest.mark.parametrize("seed", range(202, 206))
def test_devices_of_their_own_memory_at_its_limit(seed: int) -> None:
    rng = random.Random(seed)
    graph, inputs = random_loops(rng, most_turns=8, loops=2, nested=seed % 3 == 0)
    wanted = interpret(graph, inputs)
    machine = emulate(random_machine(rng, accelerators=2, memory_limits=False))
    plan = hs.plan(graph, machine, measure=False, learn=False)
    try:
        limits = {node: int(n * rng.uniform(0.7, 1.0)) for node, n in plan.peak.items()}
        plan = hs.plan(graph, machine, memory=limits, measure=False, learn=False)
        assert all(plan.peak.get(node, 0) <= limit for node, limit in limits.items())
    except OutOfMemoryError:
        pass
    assert problems(plan) == []
    assert value_problems(hs.run(plan, inputs, learn=False, trace=seed % 2 == 0), wanted) == []
    assert value_problems(WAYS["simulated"](plan, inputs), wanted) == []


@pytest.mark.parametrize("seed", range(300, 303))
def test_one_card(seed: int) -> None:
    graph, inputs = random_loops(seed, most_turns=40, loops=2)
    plan = hs.plan(graph, emulate(machine_named("workstation")), only="cuda", measure=False, learn=False)
    wanted = interpret(graph, inputs)
    for way in ("threads", "without a trace", "callers"):
        assert value_problems(WAYS[way](plan, inputs), wanted) == [], way


@pytest.mark.skipif(not available(), reason="no OpenCL device works here")
@pytest.mark.parametrize("seed", range(400, 403))
def test_opencl(seed: int) -> None:
    graph, inputs = random_loops(seed, most_turns=40, loops=2, discrete=False)
    plan = hs.plan(graph, only="opencl", measure=False, learn=False)
    wanted = interpret(graph, inputs)
    for way in ("threads", "without a trace"):
        assert value_problems(WAYS[way](plan, inputs), wanted) == [], way
