"""PEFT: as HEFT, but each choice is charged with the fastest way from it to the end (optimistic cost table).

Arabnejad, Barbosa: List scheduling algorithm for heterogeneous systems by an optimistic cost table (IEEE TPDS 25(3), 2014).
"""

from __future__ import annotations

import heapq

import numpy as np

from hetsched.placement.draft import Draft
from hetsched.placement.problem import FloatArray, Problem
from hetsched.placement.ranks import mean_copies


def policy(draft: Draft) -> None:
    """Book every task of the draft: ready tasks by mean optimistic cost, each where finish + optimistic cost is least."""
    problem = draft.problem
    table = optimistic_costs(problem)
    finite = np.isfinite(problem.durations)
    rank = (np.where(finite, table, 0.0).sum(axis=1) / np.maximum(finite.sum(axis=1), 1)).tolist()
    rows = table
    succ_start, succ_task = (a.tolist() for a in problem.succ[:2])
    waiting = np.diff(problem.pred_start).tolist()
    ready = [(-rank[t], t) for t in range(len(problem)) if waiting[t] == 0]
    heapq.heapify(ready)
    while ready:
        _, task = heapq.heappop(ready)
        draft.place(task, int(np.argmin(draft.finish_times(task) + rows[task])))
        for k in range(succ_start[task], succ_start[task + 1]):
            later = succ_task[k]
            waiting[later] -= 1
            if not waiting[later]:
                heapq.heappush(ready, (-rank[later], later))


def optimistic_costs(problem: Problem) -> FloatArray:
    """float64[n, C]: seconds from the finish of a task on a choice to the end, if every successor went where that is least (equation 2)."""
    n, c = problem.durations.shape
    table = np.zeros((n, c))
    nodes = problem.nodes
    same = nodes[:, None] == nodes[None, :]
    one_to_one = bool((same.sum(axis=1) == 1).all())
    starts, preds, copies = problem.pred_start.tolist(), problem.pred_task.tolist(), mean_copies(problem).tolist()
    for task in reversed(problem.order.tolist()):
        through = table[task] + problem.durations[task]
        least = float(through.min())
        here = through if one_to_one else np.where(same, through, np.inf).min(axis=1)
        for k in range(starts[task], starts[task + 1]):
            row = table[preds[k]]
            np.maximum(row, np.minimum(here, least + copies[k]), out=row)
    return table
