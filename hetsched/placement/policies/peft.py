"""PEFT: as HEFT, but each choice is charged with the fastest way from it to the end (optimistic cost table).

Arabnejad, Barbosa: List scheduling algorithm for heterogeneous systems by an optimistic cost table (IEEE TPDS 25(3), 2014).
"""

from __future__ import annotations

import heapq

import numpy as np

from hetsched.placement.draft import Draft
from hetsched.placement.problem import FloatArray, Problem
from hetsched.placement.ranks import levels, mean_copies


def policy(draft: Draft) -> None:
    """Book every task of the draft: ready tasks by mean optimistic cost, each where finish + optimistic cost is least."""
    problem = draft.problem
    table = optimistic_costs(problem)
    finite = np.isfinite(problem.durations)
    rank = (np.where(finite, table, 0.0).sum(axis=1) / np.maximum(finite.sum(axis=1), 1)).tolist()
    rows = table.tolist()
    succ_start, succ_task = (a.tolist() for a in problem.succ[:2])
    waiting = np.diff(problem.pred_start).tolist()
    ready = [(-rank[t], t) for t in range(len(problem)) if waiting[t] == 0]
    heapq.heapify(ready)
    while ready:
        _, task = heapq.heappop(ready)
        draft.place(task, draft.earliest(task, rows[task]))
        for k in range(succ_start[task], succ_start[task + 1]):
            later = succ_task[k]
            waiting[later] -= 1
            if not waiting[later]:
                heapq.heappush(ready, (-rank[later], later))


def optimistic_costs(problem: Problem) -> FloatArray:
    """float64[n, C]: seconds from the finish of a task on a choice to the end, if every successor went where that is least (equation 2)."""
    if "optimistic_costs" not in problem.memo:
        problem.memo["optimistic_costs"] = _optimistic_costs(problem)
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
    for tasks, edges, groups in levels(n, *problem.succ[:2]):
        if len(edges):
            later = succ_task[edges]
            away = (least[later] + copies[edges])[:, None]
            table[tasks] = np.maximum.reduceat(np.minimum(through[later], away), groups)
        here = table[tasks] + problem.durations[tasks]
        least[tasks] = here.min(axis=1)
        through[tasks] = here if own_node else np.stack([here[:, row].min(axis=1) for row in same], axis=1)
    return table
