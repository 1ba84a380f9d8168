"""HeteroPrio: a lane that is free takes the ready task that suits its kind best, compared with the other kinds; a task never waits for a slow
lane that another would outrun.

Agullo, Bramas, Coulaud, Darve, Messner, Takahashi: Task-based FMM for heterogeneous architectures (Concurrency and Computation 28(9), 2016); the
order by acceleration and *spoliation* (a lane takes over a task that it would finish sooner) as in Beaumont, Eyraud-Dubois, Kumar: Approximation
proofs of a fast and efficient list scheduling algorithm for task-based runtime systems on multicores and GPUs (IPDPS 2017). A plan knows the
finishes beforehand, so spoliation needs no restart: a task that a lane picks is booked where it finishes first.
"""

from __future__ import annotations

import heapq
from math import inf

import numpy as np

from hetsched.placement.draft import Draft
from hetsched.placement.problem import FloatArray, Problem
from hetsched.placement.ranks import mean_copies, mean_durations, upward_ranks


def policy(draft: Draft) -> None:
    """Book every task of the draft."""
    problem = draft.problem
    suits = affinities(problem)
    rank = upward_ranks(problem, mean_durations(problem), mean_copies(problem))
    starts, later = (a.tolist() for a in problem.succ[:2])
    waiting = np.diff(problem.pred_start).tolist()
    arrival = [0.0] * len(problem)
    coming = [(0.0, t) for t in range(len(problem)) if not waiting[t]]
    # The tasks that have arrived, in the queue of every pool that suits them; struck out of the others when they are booked.
    queues: list[list[tuple[float, float, int]]] = [[] for _ in problem.pools]
    free = [[0.0] * pool.lanes for pool in problem.pools]
    for _ in range(len(problem)):
        task = _next_task(draft, queues, free, coming, suits, rank)
        choice = draft.earliest(task)
        finish = draft.place(task, choice)
        pool = problem.choices[choice].pool
        if pool >= 0:
            lanes = free[pool]
            taken = range(len(lanes)) if problem.choices[choice].width > 1 else (lanes.index(min(lanes)),)
            for lane in taken:
                lanes[lane] = max(lanes[lane], finish)
        for k in range(starts[task], starts[task + 1]):
            after = later[k]
            arrival[after] = max(arrival[after], finish)
            waiting[after] -= 1
            if not waiting[after]:
                heapq.heappush(coming, (arrival[after], after))


def affinities(problem: Problem) -> FloatArray:
    """float64[n, P]: how many times faster each task is on a pool than on the best other one; inf where only this pool can run it, -inf where it

    cannot. Loops, which have lanes of their own, are at -inf everywhere.
    """
    seconds = np.full((len(problem), len(problem.pools)), inf)
    for c, choice in enumerate(problem.choices):
        if choice.pool >= 0:
            np.minimum(seconds[:, choice.pool], problem.durations[:, c], out=seconds[:, choice.pool])
    out = np.full(seconds.shape, -inf)
    for pool in range(len(problem.pools)):
        others = np.delete(seconds, pool, axis=1).min(axis=1, initial=inf)
        able = np.isfinite(seconds[:, pool])
        out[able, pool] = np.maximum(others[able], 1e-300) / np.maximum(seconds[able, pool], 1e-300)
    return out


def _next_task(
    draft: Draft,
    queues: list[list[tuple[float, float, int]]],
    free: list[list[float]],
    coming: list[tuple[float, int]],
    suits: FloatArray,
    rank: list[float],
) -> int:
    """What the lane that can take something first takes. Loops are taken as they arrive."""
    while True:
        first = coming[0][0] if coming else inf
        for queue in queues:
            while queue and draft.choice_of[queue[0][2]] >= 0:
                heapq.heappop(queue)
        at = [min(lanes) if queue else max(min(lanes), first) for lanes, queue in zip(free, queues, strict=True)]
        now = min(at)
        while coming and coming[0][0] <= now:
            _, task = heapq.heappop(coming)
            able = np.flatnonzero(suits[task] > 0).tolist()
            if not able:
                return task
            for pool in able:
                heapq.heappush(queues[pool], (-float(suits[task, pool]), -rank[task], task))
        # Of lanes that are free at the same time the one that suits its task best takes first.
        able_now = [queue for queue, since in zip(queues, at, strict=True) if queue and since <= now]
        if able_now:
            return heapq.heappop(min(able_now, key=lambda queue: queue[0]))[2]
