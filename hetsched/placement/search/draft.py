"""The search for plans of graphs: plan again with shifted priorities and freed choices, and keep what is no longer.

The step is that of a (1 + 1) evolution strategy: shift a few priorities of the best plan so far, decode by insertion, accept what is no
worse. Deterministic but for how many steps the time allows; never worse than what it starts from.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

from hetsched.placement.draft import Draft
from hetsched.placement.ranks import mean_copies, mean_durations, upward_ranks


def improve_draft(draft: Draft, seconds: float, evaluations: float, *, seed: int, clock: Callable[[], float], target: float = 0.0) -> int:
    """Replace what is booked in `draft` by the best plan found within `seconds` and `evaluations`. Returns how many plans were tried.

    Stops at a makespan of at most `target`.
    """
    until = clock() + seconds
    problem = draft.problem
    n = len(problem)
    dice = random.Random(seed)
    ranks = upward_ranks(problem, mean_durations(problem), mean_copies(problem))
    scale = max(ranks) or 1.0
    # The plan at hand is a sequence of bookings; decoding that sequence with its choices gives it back, so the search starts from there.
    place = {task: i for i, task in enumerate(draft.booked)}
    priority = [float(n - place[t]) * scale / n for t in range(n)]
    choice: list[int] = list(draft.choice_of)
    best = draft.finish()
    tried = 0
    while tried < evaluations and best > target and clock() < until:
        shifted, forced = list(priority), list(choice)
        for task in dice.sample(range(n), min(n, dice.choice((1, 1, 2, 4, 1 + n // 20)))):
            if dice.random() < 0.5:
                shifted[task] += dice.gauss(0.0, 0.1) * scale
            else:
                forced[task] = -1
        trial = type(draft)(problem)
        decode(trial, shifted, forced)
        tried += 1
        makespan = trial.finish()
        if makespan <= best:
            priority, choice, best = shifted, list(trial.choice_of), makespan
            trial.notes = draft.notes
            draft.adopt(trial)
    return tried


def decode(draft: Draft, priority: list[float], choice: list[int]) -> None:
    """Book tasks by falling priority as they become ready; `choice` -1: where the task finishes first."""
    problem = draft.problem
    starts, later = (a.tolist() for a in problem.succ[:2])
    waiting = (problem.pred_start[1:] - problem.pred_start[:-1]).tolist()
    ready = [(-priority[t], t) for t in range(len(problem)) if not waiting[t]]
    heapq.heapify(ready)
    while ready:
        _, task = heapq.heappop(ready)
        wanted = choice[task]
        draft.place(task, wanted if wanted >= 0 and draft.fits_group(task, wanted) else draft.earliest(task))
        for k in range(starts[task], starts[task + 1]):
            waiting[later[k]] -= 1
            if not waiting[later[k]]:
                heapq.heappush(ready, (-priority[later[k]], later[k]))
