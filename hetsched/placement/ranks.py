"""Priorities that policies share: how much work still lies behind a task."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from hetsched.placement import native
from hetsched.placement.problem import FloatArray, IntArray, Problem

# Tasks from which an array is sorted faster than a list.
MANY = 500


def code_for(problem: Problem) -> Any:
    """The functions of machine code, where they pay for planning this problem once; else None."""
    return native.for_size(len(problem), native.BUILD_FROM if problem.is_costed else native.BUILD_GRAPHS_FROM)


def mean_durations(problem: Problem) -> FloatArray:
    """float64[n]: seconds of each task, averaged over the choices that can run it."""
    possible = np.isfinite(problem.durations)
    total = np.where(possible, problem.durations, 0.0).sum(axis=1)
    mean: FloatArray = total / np.maximum(possible.sum(axis=1), 1)
    return mean


def mean_copies(problem: Problem) -> FloatArray:
    """float64[edges]: seconds of the copy on each edge, averaged over pairs of different devices; 0 where nothing is copied."""
    latency, per_byte = problem.mean_copy
    return np.where(problem.pred_nbytes < 0, 0.0, latency + problem.pred_nbytes * per_byte)


def upward_ranks(problem: Problem, weights: FloatArray, copies: FloatArray) -> list[float]:
    """Length of the longest path from each task to the end: weights of tasks (its own too) and of edges.

    Topcuoglu, Hariri, Wu (HEFT), equation 8.
    """
    code = code_for(problem)
    if code is not None:
        found: list[float] = native.upward(code, problem.order, problem.pred_start, problem.pred_task, weights, copies).tolist()
        return found
    rank = [0.0] * len(problem)
    own = weights.tolist()
    starts, preds, edge = problem.pred_start.tolist(), problem.pred_task.tolist(), copies.tolist()
    # Backwards through a topological order: when a task is reached, all its successors have put their paths into rank[task].
    for task in reversed(problem.order.tolist()):
        here = rank[task] = rank[task] + own[task]
        for k in range(starts[task], starts[task + 1]):
            path = here + edge[k]
            if path > rank[preds[k]]:
                rank[preds[k]] = path
    return rank


def least_tails(problem: Problem) -> FloatArray:
    """float64[n]: seconds that at least follow the finish of each task: of what comes after it, each at its fastest, nothing for copies."""
    if "tails" not in problem.memo:
        least = problem.durations.min(axis=1)
        behind = np.array(upward_ranks(problem, least, np.zeros(len(problem.pred_task)))) - least
        problem.memo["tails"] = np.maximum(behind * (1 - 1e-9), 0.0)
    tails: FloatArray = problem.memo["tails"]
    return tails


def downward_ranks(problem: Problem, weights: FloatArray, copies: FloatArray) -> list[float]:
    """Length of the longest path from the start to each task, its own weight not counted (equation 9)."""
    rank = [0.0] * len(problem)
    own = weights.tolist()
    starts, preds, edge = problem.pred_start.tolist(), problem.pred_task.tolist(), copies.tolist()
    for task in problem.order.tolist():
        rank[task] = max((rank[preds[k]] + own[preds[k]] + edge[k] for k in range(starts[task], starts[task + 1])), default=0.0)
    return rank


def levels(n: int, start: IntArray, other: IntArray, sequence: Iterable[int]) -> Iterator[tuple[IntArray, IntArray, IntArray]]:
    """Tasks in groups, so that all of `other[start[t]:start[t + 1]]` stand in groups before that of t: (tasks, edges, groups).

    sequence: all tasks in an order in which these stand before t: of the problem for predecessors, the reverse of it for successors.
    `edges` are the positions of the tasks' edges in `other`, `groups` where each task's edges begin among them (for `reduceat`). Only the first
    group has tasks without edges, and it has only these.
    """
    degree = np.diff(start)
    depth = [0] * n
    starts, others = start.tolist(), other.tolist()
    for t in sequence:
        rows = others[starts[t] : starts[t + 1]]
        if rows:
            depth[t] = 1 + max([depth[u] for u in rows])
    by_depth = np.array(depth, dtype=np.int64)
    tasks = np.argsort(by_depth, kind="stable")
    edges = np.argsort(np.repeat(by_depth, degree), kind="stable")
    count = np.bincount(by_depth, minlength=1)
    task_ends = np.cumsum(count)
    edge_ends = np.cumsum(np.bincount(by_depth, degree, minlength=1)).astype(np.int64)
    first_edge = np.concatenate(([0], np.cumsum(degree[tasks])))
    for level in range(len(count) if n else 0):
        a, b = task_ends[level] - count[level], task_ends[level]
        low = edge_ends[level - 1] if level else 0
        yield tasks[a:b], edges[low : edge_ends[level]], first_edge[a:b] - low


def fastest_paths(problem: Problem) -> tuple[FloatArray, FloatArray]:
    """float64[n] twice: seconds of the longest chains before and behind each task, each task at its fastest, nothing for copies."""
    if "fastest_paths" not in problem.memo:
        fastest = problem.durations.min(axis=1)
        code = code_for(problem)
        if code is not None:
            problem.memo["fastest_paths"] = native.paths(code, problem.order, problem.pred_start, problem.pred_task, fastest)
        else:
            problem.memo["fastest_paths"] = _fastest_paths(problem, fastest.tolist())
    found: tuple[FloatArray, FloatArray] = problem.memo["fastest_paths"]
    return found


def _fastest_paths(problem: Problem, fastest: list[float]) -> tuple[FloatArray, FloatArray]:
    head, tail = [0.0] * len(problem), [0.0] * len(problem)
    starts, preds = problem.pred_start.tolist(), problem.pred_task.tolist()
    order = problem.order.tolist()
    for t in order:
        most = 0.0
        for p in preds[starts[t] : starts[t + 1]]:
            path = head[p] + fastest[p]
            if path > most:
                most = path
        head[t] = most
    for t in reversed(order):
        here = tail[t] + fastest[t]
        for p in preds[starts[t] : starts[t + 1]]:
            if here > tail[p]:
                tail[p] = here
    return np.array(head), np.array(tail)


def as_ready(problem: Problem, rank: list[float]) -> list[int]:
    """Tasks in the order in which a list scheduler takes them: of those whose predecessors have been taken, the one of highest rank, then number."""
    code = code_for(problem)
    if code is not None:
        found: list[int] = native.as_ready(code, *problem.succ[:2], np.diff(problem.pred_start), np.array(rank)).tolist()
        return found
    succ_start, succ_task = (a.tolist() for a in problem.succ[:2])
    waiting = np.diff(problem.pred_start).tolist()
    ready = [(-rank[t], t) for t in range(len(problem)) if waiting[t] == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        _, task = heapq.heappop(ready)
        order.append(task)
        for later in succ_task[succ_start[task] : succ_start[task + 1]]:
            waiting[later] -= 1
            if not waiting[later]:
                heapq.heappush(ready, (-rank[later], later))
    return order


def by_rank(problem: Problem, rank: list[float]) -> list[int]:
    """Tasks by falling rank; equals keep the topological order, so that predecessors come first where ranks never rise along an edge."""
    if len(rank) >= MANY:
        along = np.array(rank)[problem.order]
        found: list[int] = problem.order[np.argsort(-along, kind="stable")].tolist()
        return found
    return sorted(problem.order.tolist(), key=rank.__getitem__, reverse=True)
