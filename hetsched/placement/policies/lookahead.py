"""Lookahead: as HEFT, but each choice is judged by when the successors of the task could then be over, not the task alone.

Bittencourt, Sakellariou, Madeira: DAG scheduling using a lookahead variant of the heterogeneous earliest finish time algorithm (PDP 2010), the
variant with a depth of one. Successors are tried in the order of HEFT, each where it finishes first, behind what the lanes hold already; of their
inputs those count that are booked. Copies of the trial do not queue.
"""

from __future__ import annotations

from math import inf

import numpy as np

from hetsched.placement.draft import Draft
from hetsched.placement.problem import FloatArray, Problem
from hetsched.placement.ranks import by_rank, mean_copies, mean_durations, upward_ranks

# Successors that are tried: of more, those with most work behind them.
MOST = 32


def policy(draft: Draft) -> None:
    """Book every task of the draft."""
    problem = draft.problem
    rank = upward_ranks(problem, mean_durations(problem), mean_copies(problem))
    starts, later, nbytes = (a.tolist() for a in problem.succ)
    lanes = [np.zeros(pool.lanes) for pool in problem.pools]
    # When what is booked of the inputs of each task is there, on each choice.
    ready = np.zeros(problem.durations.shape)
    for task in by_rank(problem, rank):
        edges = sorted(range(starts[task], starts[task + 1]), key=lambda k: -rank[later[k]])
        arrive = {k: _copy_seconds(problem, nbytes[k]) for k in edges}
        finish_on = draft.finish_times(task)
        choice = _best(problem, task, finish_on, [(later[k], arrive[k]) for k in edges[:MOST]], ready, lanes)
        finish = draft.place(task, choice)
        _occupy(problem, lanes, choice, finish)
        for k in edges:
            np.maximum(ready[later[k]], finish + arrive[k][choice], out=ready[later[k]])


def _best(
    problem: Problem, task: int, finish_on: FloatArray, children: list[tuple[int, FloatArray]], ready: FloatArray, lanes: list[FloatArray]
) -> int:
    """The choice after which the last of the children is over first; of equals, where the task itself is."""
    best, least = -1, (inf, inf)
    for choice in np.flatnonzero(np.isfinite(finish_on)).tolist():
        finish = float(finish_on[choice])
        if finish > least[0]:
            continue
        trial = [x.copy() for x in lanes]
        _occupy(problem, trial, choice, finish)
        free = _free_on(problem, trial)
        last = finish
        for child, arrive in children:
            over = np.maximum(np.maximum(ready[child], finish + arrive[choice]), free) + problem.durations[child]
            taken = int(np.argmin(over))
            last = max(last, float(over[taken]))
            if last > least[0]:
                break
            if _occupy(problem, trial, taken, float(over[taken])):
                free = _free_on(problem, trial)
        if (last, finish) < least:
            best, least = choice, (last, finish)
    return best


def _copy_seconds(problem: Problem, nbytes: float) -> FloatArray:
    """float64[C, C]: seconds of a copy between any two choices."""
    between = np.ix_(problem.nodes, problem.nodes)
    latency = problem.latency[between]
    seconds: FloatArray = latency + max(nbytes, 0.0) * np.where(np.isinf(latency), 0.0, problem.seconds_per_byte[between])
    if nbytes < 0:
        return np.zeros_like(seconds)
    return seconds


def _occupy(problem: Problem, lanes: list[FloatArray], choice: int, finish: float) -> bool:
    """Book the lane of the choice that is free first (all, of a wide one) until `finish`. False where the choice has lanes of its own."""
    pool = problem.choices[choice].pool
    if pool < 0:
        return False
    if problem.choices[choice].width > 1:
        np.maximum(lanes[pool], finish, out=lanes[pool])
    else:
        lane = int(np.argmin(lanes[pool]))
        lanes[pool][lane] = max(float(lanes[pool][lane]), finish)
    return True


def _free_on(problem: Problem, lanes: list[FloatArray]) -> FloatArray:
    """float64[C]: when a task could start on each choice as far as lanes go."""
    return np.array([0.0 if c.pool < 0 else float(lanes[c.pool].max() if c.width > 1 else lanes[c.pool].min()) for c in problem.choices])
