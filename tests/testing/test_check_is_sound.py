"""What check lets pass gives the right values, however long things take: the simulated executor draws durations and spoils what will be written."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from hetsched.check import problems
from hetsched.executors.backends.emulated import emulate
from hetsched.executors.simulated import run_plan
from hetsched.placement import plan_graph
from hetsched.run import run
from hetsched.testing.graphs import random_graph, random_machine
from hetsched.testing.reference import interpret
from hetsched.testing.runs import run_problems, value_problems
from hetsched.timeline import Timeline


def cut(plan: Timeline, rng: random.Random, kept: float) -> Timeline:
    """The plan, and the plans of its loops, with a part of the reuse edges."""
    loops = {task: cut(body, rng, kept) for task, body in plan.loops.items()}
    return replace(plan, after=tuple(e for e in plan.after if rng.random() < kept), loops=loops)


def right(wanted: Mapping[str, Any], plan: Timeline, inputs: dict[int, Any], seed: int) -> bool:
    """True if the values come out equal; spoiled integers may also fail as indices."""
    try:
        with np.errstate(all="ignore"):
            result = run_plan(plan, inputs, spread=0.95, seed=seed)
    except Exception:
        return False
    return all(len(value) == len(result[name]) and all(map(equal, value, result[name])) if isinstance(value, list) else equal(value, result[name])
               for name, value in wanted.items())  # fmt: skip


def equal(a: Any, b: Any) -> bool:
    return np.shape(a) == np.shape(b) and np.allclose(a, b, rtol=1e-5, atol=1e-5)


def moved(plan: Timeline, rng: random.Random | None) -> Timeline:
    """The same plan with its spans in another order: reversed, or shuffled by `rng`."""
    order = list(range(len(plan.spans)))
    if rng is None:
        order.reverse()
    else:
        rng.shuffle(order)
    at = {old: new for new, old in enumerate(order)}
    after = tuple(e._replace(before=at[e.before], later=at[e.later]) for e in plan.after)
    loops = {task: moved(body, rng) for task, body in plan.loops.items()}
    return replace(plan, spans=tuple(plan.spans[i] for i in order), after=after, loops=loops)


def test_the_order_in_which_spans_are_listed_means_nothing() -> None:
    """Times say what comes first: a plan listed backwards is the same plan, to check and to every executor."""
    spread = 0
    for seed in range(16):
        rng = random.Random(seed)
        graph, given = random_graph(rng)
        machine = emulate(random_machine(rng, accelerators=seed % 3))
        plan = plan_graph(graph, machine, policy=("auto", "round_robin")[seed % 2])
        wanted = interpret(graph, given)
        for other in (moved(plan, None), moved(plan, rng)):
            assert problems(other) == [], seed
            assert other.makespan == plan.makespan
            spread += other.spans != plan.spans
            for executor in ("simulated", "auto"):
                result = run(other, given, executor=executor)
                assert value_problems(result, wanted) == [], (seed, executor)
                assert run_problems(other, result.trace) == [], (seed, executor)
    assert spread > 24


def test_what_check_lets_pass_gives_the_right_values() -> None:
    seen: Counter[tuple[str, str]] = Counter()
    for seed in range(40):
        rng = random.Random(seed)
        graph, given = random_graph(seed, tasks=rng.choice([8, 16, 30]))
        wanted = interpret(graph, given)
        plan = plan_graph(graph, random_machine(seed, accelerators=seed % 3), policy=rng.choice(["heft", "earliest_finish", "round_robin"]))
        inputs = {value: given[name] for name, value in graph.inputs.items()}
        for kept in (1.0, 0.8, 0.0):
            tried = cut(plan, rng, kept)
            passes = not problems(tried)
            good = right(wanted, tried, inputs, seed)
            assert good or not passes, (seed, kept)
            seen["passes" if passes else "rejected", "right" if good else "wrong"] += 1
    assert seen["passes", "right"] >= 40
    assert seen["rejected", "wrong"] >= 8, seen  # check does not merely cry wolf
