"""Verifies the refutation of a deadline: every head, tail, choice and price, task by task from the problem alone, in plain loops.

Nothing of `bounds.deadline` is used but the form of its witness.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import numpy as np

from hetsched.errors import PlanError
from hetsched.placement.bounds.paths import from_host, shortest_links, to_host
from hetsched.placement.problem import FloatArray, Problem

if TYPE_CHECKING:
    from hetsched.placement.bounds.deadline import Refutation

# What rounding may add to a sum; what a contradiction must at least exceed.
_SLACK, _MARGIN = 1e-11, 5e-10


def proved_by_refutation(problem: Problem, witness: Refutation) -> float:
    """The deadline in seconds, if the witness refutes it, else 0.0. Raises `PlanError` with the first claim that does not follow."""
    n, m = len(problem), len(problem.node_names)
    latency, per_byte = shortest_links(problem)
    heads, tails = from_host(problem, latency, per_byte).tolist(), to_host(problem, latency, per_byte).tolist()
    able = [[c for c in range(len(problem.choices)) if problem.durations[t, c] < inf] for t in range(n)]
    before, behind = _neighbours(problem)
    order = problem.order.tolist()
    for number, claimed in enumerate(witness.rounds):
        if claimed.heads.shape != (n, m) or claimed.tails.shape != (n, m):
            raise PlanError(f"round {number} of the witness has shapes {claimed.heads.shape} and {claimed.tails.shape}, wanted {(n, m)}")
        claims = claimed.heads.tolist(), claimed.tails.tolist()
        for what, sequence, around, known, says, links in (
            ("head", order, before, heads, claims[0], (latency, per_byte)),
            ("tail", order[::-1], behind, tails, claims[1], (latency.T, per_byte.T)),
        ):
            _check_side(problem, f"round {number}: the {what}", sequence, around, able, known, says, links)
        heads, tails = claims
        able = [[c for c in row if _fits(problem, t, c, heads, tails, witness.deadline)] for t, row in enumerate(able)]
        if not all(able):
            return witness.deadline
    return witness.deadline if _payments(problem, witness, able, heads, tails) > 1 + _MARGIN else 0.0


def _neighbours(problem: Problem) -> tuple[list[list[tuple[int, float]]], list[list[tuple[int, float]]]]:
    before: list[list[tuple[int, float]]] = [[] for _ in range(len(problem))]
    behind: list[list[tuple[int, float]]] = [[] for _ in range(len(problem))]
    for t in range(len(problem)):
        for k in range(int(problem.pred_start[t]), int(problem.pred_start[t + 1])):
            p, nbytes = int(problem.pred_task[k]), float(problem.pred_largest[k])
            before[t].append((p, nbytes))
            behind[p].append((t, nbytes))
    return before, behind


def _fits(problem: Problem, task: int, choice: int, heads: list[list[float]], tails: list[list[float]], deadline: float) -> bool:
    node = problem.choices[choice].node
    return heads[task][node] + float(problem.durations[task, choice]) + tails[task][node] <= deadline * (1 + _MARGIN)


def _check_side(
    problem: Problem,
    what: str,
    sequence: list[int],
    around: list[list[tuple[int, float]]],
    able: list[list[int]],
    known: list[list[float]],
    says: list[list[float]],
    links: tuple[FloatArray, FloatArray],
) -> None:
    """No claim may exceed what was known, or what the claims of the neighbours allow."""
    latency, per_byte = (x.tolist() for x in links)
    nodes = range(len(problem.node_names))
    least = [
        [min((float(problem.durations[t, c]) for c in row if problem.choices[c].node == m), default=inf) for m in nodes] for t, row in enumerate(able)
    ]
    done = [False] * len(problem)
    for t in sequence:
        if any(not done[u] for u, _ in around[t]):
            raise PlanError(f"{what} of task {problem.name(t)!r} depends on a task that does not come before it in the order of the problem")
        done[t] = True
        for m in nodes:
            if says[t][m] <= known[t][m] * (1 + _SLACK):
                continue
            inputs = []
            for u, nbytes in around[t]:
                over = [says[u][s] + least[u][s] for s in nodes]
                if nbytes < 0:
                    inputs.append((min(over), min(over), u))
                    continue
                away = min((over[s] + latency[s][m] + nbytes * per_byte[s][m] for s in nodes if s != m), default=inf)
                inputs.append((away, over[m], u))
            shown = _soonest(problem, inputs, able, says, m)
            if says[t][m] > shown * (1 + _SLACK):
                raise PlanError(f"{what} of task {problem.name(t)!r} is claimed to be {says[t][m]:.9g} s; what stands around it shows {shown:.9g}")


def _soonest(problem: Problem, inputs: list[tuple[float, float, int]], able: list[list[int]], says: list[list[float]], node: int) -> float:
    """The earliest moment at which every input can be there: each from elsewhere, or made in the node, by lanes that can do all they must by then."""
    best, least_here = inf, -inf
    inputs = sorted(inputs, reverse=True)
    here: list[tuple[float, float]] = []
    lanes = sum(problem.pools[p].lanes for p in {c.pool for c in problem.choices if c.node == node and c.pool >= 0})
    for k in range(len(inputs) + 1):
        coming = inputs[k][0] if k < len(inputs) else -inf
        best = min(best, max(coming, least_here))
        if least_here >= coming or k == len(inputs):
            break
        _, over, u = inputs[k]
        own = [c for c in able[u] if problem.choices[c].node == node]
        if not own:
            break
        work = min(float(problem.durations[u, c]) * problem.choices[c].width if problem.choices[c].pool >= 0 else 0.0 for c in own)
        here.append((says[u][node], work))
        least_here = max(least_here, over)
        queue = 0.0
        for head, seconds in sorted(here, reverse=True):
            queue += seconds
            least_here = max(least_here, head + queue / max(lanes, 1))
    # Whatever is made elsewhere or here, none is there before the sooner of both.
    return max([best, *(min(away, over) for away, over, _ in inputs)]) if inputs else 0.0


def _payments(problem: Problem, witness: Refutation, able: list[list[int]], heads: list[list[float]], tails: list[list[float]]) -> float:
    """What all tasks pay at least, over what all lanes are worth."""
    worth = 0.0
    for interval in witness.intervals:
        if interval.price < 0 or not 0 <= interval.pool < len(problem.pools):
            raise PlanError(f"{interval} of the witness has no pool, or a price below 0")
        if witness.deadline - interval.start - interval.end <= 0:
            raise PlanError(f"{interval} of the witness has no length before the deadline of {witness.deadline:.9g} s")
        worth += interval.price
    if not witness.intervals or worth <= 0:
        return 0.0
    start = np.array([x.start for x in witness.intervals])
    end = np.array([x.end for x in witness.intervals])
    length = witness.deadline - start - end
    pool = np.array([x.pool for x in witness.intervals])
    per_second = np.array([x.price for x in witness.intervals]) / (length * np.array([problem.pools[p].lanes for p in pool.tolist()]))
    paid = 0.0
    for t, row in enumerate(able):
        least = inf
        for c in row:
            choice, seconds = problem.choices[c], float(problem.durations[t, c])
            inside = np.minimum(
                np.minimum(length, seconds), np.minimum(heads[t][choice.node] + seconds - start, tails[t][choice.node] + seconds - end)
            )
            due = np.where(pool == choice.pool, np.maximum(inside, 0.0), 0.0) * (per_second * choice.width)
            least = min(least, float(due.sum()))
        paid += least
    return paid / worth
