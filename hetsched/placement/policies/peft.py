"""PEFT: as HEFT, but each choice is charged with the fastest way from it to the end (optimistic cost table).

Arabnejad, Barbosa: List scheduling algorithm for heterogeneous systems by an optimistic cost table (IEEE TPDS 25(3), 2014).
"""

from __future__ import annotations

import numpy as np

from hetsched.placement import native
from hetsched.placement.draft import Draft
from hetsched.placement.facts import list_facts
from hetsched.placement.problem import FloatArray, Problem
from hetsched.placement.ranks import as_ready, code_for, levels, mean_copies


def policy(draft: Draft) -> None:
    """Book every task of the draft: ready tasks by mean optimistic cost, each where finish + optimistic cost is least."""
    problem = draft.problem
    table = optimistic_costs(problem)
    finite = np.isfinite(problem.durations)
    rank = np.where(finite, table, 0.0).sum(axis=1) / np.maximum(finite.sum(axis=1), 1)
    draft.place_all(as_ready(problem, rank.tolist()), table)


def optimistic_costs(problem: Problem) -> FloatArray:
    """float64[n, C]: seconds from the finish of a task on a choice to the end, if every successor went where that is least (equation 2)."""
    if "optimistic_costs" not in problem.memo:
        code = code_for(problem)
        if code is not None:
            found = native.optimistic(code, list_facts(problem), problem.order, mean_copies(problem))
        else:
            found = _optimistic_costs(problem)
        problem.memo["optimistic_costs"] = found
    table: FloatArray = problem.memo["optimistic_costs"]
    return table


def _optimistic_costs(problem: Problem) -> FloatArray:
    n, c = problem.durations.shape
    table = np.zeros((n, c))
    through, least = np.empty((n, c)), np.empty(n)
    nodes = problem.nodes
    same = nodes[:, None] == nodes[None, :]
    own_node = bool((same.sum(axis=1) == 1).all())
    copies = problem.succ_of(mean_copies(problem))
    succ_task = problem.succ[1]
    for tasks, edges, groups in levels(n, *problem.succ[:2], reversed(problem.order.tolist())):
        if len(edges):
            later = succ_task[edges]
            away = (least[later] + copies[edges])[:, None]
            table[tasks] = np.maximum.reduceat(np.minimum(through[later], away), groups)
        here = table[tasks] + problem.durations[tasks]
        least[tasks] = here.min(axis=1)
        through[tasks] = here if own_node else np.stack([here[:, row].min(axis=1) for row in same], axis=1)
    return table
