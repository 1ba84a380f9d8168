from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from itertools import chain

from hetsched.check import RULES, problems
from hetsched.errors import OutOfMemoryError
from hetsched.graph.graph import Graph
from hetsched.machine import HOST
from hetsched.placement import plan_graph
from hetsched.testing.faults import FAULTS, broken, rule_of
from hetsched.testing.graphs import random_graph, random_machine
from hetsched.timeline import Copy, Timeline


def under_pressure(graph: Graph, seed: int) -> Iterator[Timeline]:
    """The plan of `graph` where its devices' memory is a part of what it takes, if there is one and it evicts."""
    machine = random_machine(seed, memory_limits=False, accelerators=1 + seed % 2)
    free = plan_graph(graph, machine, policy="round_robin")
    for share in (0.7, 0.5, 0.35):
        try:
            plan = plan_graph(
                graph, machine, policy="round_robin", memory={node: int(share * n) + 1 for node, n in free.arenas.items() if node != HOST}
            )
        except OutOfMemoryError:
            return
        if any(isinstance(s.command, Copy) and s.command.dst.generation for s in plan.spans):
            assert problems(plan) == []
            yield plan
            return


POLICIES = ("heft", "earliest_finish", "one_device", "round_robin")


def test_every_fault_breaks_a_rule_that_there_is() -> None:
    assert {fault.rule for fault in FAULTS.values()} <= set(RULES)
    assert rule_of("loop/loop/early start") == rule_of("early start") == "early-start"


def test_check_rejects_every_kind_of_broken_plan_and_names_the_rule() -> None:
    seen: Counter[str] = Counter()
    valid = 0
    for seed in range(30):
        graph, _ = random_graph(seed)
        plan = plan_graph(graph, random_machine(seed), policy=random.Random(seed).choice(POLICIES))
        if problems(plan):
            continue
        valid += 1
        plans = [plan, *under_pressure(graph, seed)]
        for name, wrong in chain.from_iterable(map(broken, plans)):
            found = problems(wrong)
            rule = rule_of(name)
            assert any(text.startswith(f"{rule}: ") or f": {rule}: " in text for text in found), (seed, name, found)
            seen[name.rpartition("/")[2]] += 1
            seen["in a body"] += "/" in name
    assert valid >= 25
    assert set(FAULTS) - set(seen) == set()
    assert seen["in a body"] > 100
