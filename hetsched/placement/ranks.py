"""Priorities that policies share: how much work still lies behind a task."""

from __future__ import annotations

import numpy as np

from hetsched.placement.problem import FloatArray, Problem


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


def downward_ranks(problem: Problem, weights: FloatArray, copies: FloatArray) -> list[float]:
    """Length of the longest path from the start to each task, its own weight not counted (equation 9)."""
    rank = [0.0] * len(problem)
    own = weights.tolist()
    starts, preds, edge = problem.pred_start.tolist(), problem.pred_task.tolist(), copies.tolist()
    for task in problem.order.tolist():
        rank[task] = max((rank[preds[k]] + own[preds[k]] + edge[k] for k in range(starts[task], starts[task + 1])), default=0.0)
    return rank


def by_rank(problem: Problem, rank: list[float]) -> list[int]:
    """Tasks by falling rank; equals keep the topological order, so that predecessors come first where ranks never rise along an edge."""
    return sorted(problem.order.tolist(), key=rank.__getitem__, reverse=True)
