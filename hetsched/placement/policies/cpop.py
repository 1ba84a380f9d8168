"""CPOP: the critical path on the one device that is fastest for it, the rest where it finishes first.

Topcuoglu, Hariri, Wu: Performance-effective and low-complexity task scheduling for heterogeneous computing (IEEE TPDS 13(3), 2002), section 4.3.
"""

from __future__ import annotations

import heapq
import math

import numpy as np

from hetsched.placement.draft import Draft
from hetsched.placement.problem import Problem
from hetsched.placement.ranks import downward_ranks, mean_copies, mean_durations, upward_ranks


def policy(draft: Draft) -> None:
    """Book every task of the draft: ready tasks by the length of the longest path through them."""
    problem = draft.problem
    weights, copies = mean_durations(problem), mean_copies(problem)
    up, down = upward_ranks(problem, weights, copies), downward_ranks(problem, weights, copies)
    through = [a + b for a, b in zip(up, down, strict=True)]
    path = critical_path(problem, through)
    elsewhere = [math.inf] * len(problem.choices)
    if path:
        seconds = np.where(np.isfinite(problem.durations[path]), problem.durations[path], np.inf).sum(axis=0)
        best = int(np.argmin(seconds))
        if np.isfinite(seconds[best]):
            elsewhere[best] = 0.0
    on_path = set(path)
    starts, later = (a.tolist() for a in problem.succ[:2])
    waiting = np.diff(problem.pred_start).tolist()
    ready = [(-through[t], t) for t in range(len(problem)) if not waiting[t]]
    heapq.heapify(ready)
    while ready:
        _, task = heapq.heappop(ready)
        pinned = task in on_path and 0.0 in elsewhere and draft.fits_group(task, elsewhere.index(0.0))
        draft.place(task, draft.earliest(task, elsewhere if pinned else None))
        for k in range(starts[task], starts[task + 1]):
            waiting[later[k]] -= 1
            if not waiting[later[k]]:
                heapq.heappush(ready, (-through[later[k]], later[k]))


def critical_path(problem: Problem, through: list[float]) -> list[int]:
    """Tasks of one longest path: from the first task through which it goes, on to a successor through which it goes."""
    if not len(problem):
        return []
    longest = max(through)
    close = longest * (1 - 1e-9)
    starts, later = (a.tolist() for a in problem.succ[:2])
    degree = np.diff(problem.pred_start).tolist()
    task = next(t for t in problem.order.tolist() if through[t] >= close and not degree[t])
    path = [task]
    while (onward := [v for v in later[starts[task] : starts[task + 1]] if through[v] >= close]) != []:
        task = onward[0]
        path.append(task)
    return path
