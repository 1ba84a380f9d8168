"""Hunts for graphs on which a policy loses to others: simulated annealing over instances, not over plans.

The idea is that of PISA (Coleman, Krishnamachari: Comparing task graph scheduling algorithms: an adversarial approach, 2024): what is annealed is the
ratio of two makespans. A benchmark shows how good a policy is as a rule; a hunt shows how bad it can be, and the graph it finds says why.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from hetsched.errors import CommandLineError
from hetsched.placement.costed.planning import CostedDraft, costed_problem
from hetsched.placement.draft import Policy
from hetsched.placement.problem import Problem

Document: TypeAlias = dict[str, Any]
Planner: TypeAlias = Callable[[Problem], float]

# From a random graph the hunt goes on for so many evaluations; then from another one.
LIFE = 500
HOT, COLD = 0.05, 0.001
LONGEST, MOST_BYTES = 10.0, 20.0


@dataclass(frozen=True)
class Prey:
    """A costed graph on which the target's makespan is `ratio` times that of `rival`, the best of the rivals."""

    document: Document
    ratio: float
    rival: str


def planner(policy: Policy) -> Planner:
    """The makespan in seconds of a policy's plan of a costed graph."""

    def makespan(problem: Problem) -> float:
        draft = CostedDraft(problem)
        policy(draft)
        return draft.finish()

    return makespan


def hunt(
    target: Planner, rivals: Mapping[str, Planner], evaluations: int, *, seed: int = 0, tasks: tuple[int, int] = (10, 20), life: int = LIFE
) -> list[Prey]:
    """The worst graph of each of the hunt's lives, the worst first. The same for the same seed, where the planners are.

    evaluations: how many graphs are planned by all. tasks: from how many to how many a graph has. life: evaluations before the hunt starts afresh.
    """
    if not rivals or evaluations < 1 or not 1 <= tasks[0] <= tasks[1]:
        raise CommandLineError(f"a hunt needs rivals, evaluations and tasks; got {sorted(rivals)}, {evaluations}, {tasks}")
    dice = random.Random(seed)
    found = []
    for begin in range(0, evaluations, life):
        steps = min(life, evaluations - begin)
        now = worst = _judged(random_instance(dice, dice.randint(*tasks)), target, rivals)
        for step in range(1, steps):
            heat = HOT * (COLD / HOT) ** (step / steps)
            trial = _judged(mutated(now.document, dice, tasks), target, rivals)
            if trial.ratio >= now.ratio or dice.random() < math.exp((trial.ratio - now.ratio) / heat):
                now = trial
            if now.ratio > worst.ratio:
                worst = now
        found.append(worst)
    return sorted(found, key=lambda prey: -prey.ratio)


def _judged(document: Document, target: Planner, rivals: Mapping[str, Planner]) -> Prey:
    problem = costed_problem(document)
    spans = {name: plan(problem) for name, plan in rivals.items()}
    best = min(spans, key=spans.__getitem__)
    # Rivals share tables in the problem's memo; the target gets a problem of its own, so that nothing depends on the order.
    mine = target(costed_problem(document))
    return Prey(document, mine / spans[best] if spans[best] > 0 else 1.0, best)


def random_instance(dice: random.Random, n: int) -> Document:
    """A costed graph of `n` tasks on two to four devices with a memory each; some durations null."""
    devices = dice.randint(2, 4)
    rows: list[list[float | None]] = [[_seconds(dice) for _ in range(devices)] for _ in range(n)]
    edges = [[u, v, _bytes(dice)] for v in range(1, n) for u in range(v) if dice.random() < 2.0 / n]
    return {
        "format": "placement-bench/1",
        "mem_nodes": [f"m{d}" for d in range(devices)],
        "devices": [{"name": f"d{d}", "kind": "device", "lanes": dice.randint(1, 2), "mem": d} for d in range(devices)],
        "links": [{"src": a, "dst": b, "latency": 0.0, "bandwidth": 1.0} for a in range(devices) for b in range(devices) if a != b],
        "durations": rows,
        "edges": edges,
    }


def mutated(document: Document, dice: random.Random, tasks: tuple[int, int] = (10, 20)) -> Document:
    """A copy with one change: a duration, the bytes of an edge, an edge more or less, a task more or less. Edges go from lower to higher numbers."""
    out = copy.deepcopy(document)
    rows, edges = out["durations"], out["edges"]
    kind = dice.random()
    if kind < 0.35:
        row = dice.choice(rows)
        at = dice.randrange(len(row))
        row[at] = _seconds(dice) if dice.random() < 0.3 or row[at] is None else _shifted(row[at], LONGEST, dice)
    elif kind < 0.6 and edges:
        edge = dice.choice(edges)
        edge[2] = _bytes(dice) if dice.random() < 0.3 else _shifted(edge[2], MOST_BYTES, dice)
    elif kind < 0.75 and edges:
        edges.remove(dice.choice(edges))
    elif kind < 0.9:
        u, v = sorted(dice.sample(range(len(rows)), 2)) if len(rows) > 1 else (0, 0)
        if u < v and not any(e[:2] == [u, v] for e in edges):
            edges.append([u, v, _bytes(dice)])
    elif kind < 0.95 and len(rows) < tasks[1]:
        rows.append([_seconds(dice) for _ in rows[0]])
        edges.append([dice.randrange(len(rows) - 1), len(rows) - 1, _bytes(dice)])
    elif len(rows) > tasks[0]:
        gone = dice.randrange(len(rows))
        del rows[gone]
        out["edges"] = [[u - (u > gone), v - (v > gone), nbytes] for u, v, nbytes in edges if gone not in (u, v)]
    return out


def _seconds(dice: random.Random) -> float:
    return round(dice.uniform(0.1, LONGEST), 2)


def _bytes(dice: random.Random) -> float:
    return round(dice.uniform(0.0, MOST_BYTES), 2)


def _shifted(value: float, most: float, dice: random.Random) -> float:
    return round(min(max(value + dice.gauss(0.0, most / 10), 0.01), most), 2)
