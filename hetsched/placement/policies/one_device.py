"""Everything on one device: the one that can run most tasks, and of equals the one that is fastest in sum. What it cannot run goes where it

finishes first.
"""

from __future__ import annotations

import numpy as np

from hetsched.placement.draft import Draft
from hetsched.placement.problem import Problem


def policy(draft: Draft) -> None:
    """Book every task of the draft."""
    chosen = main_device(draft.problem)
    for task in draft.problem.order.tolist():
        draft.place(task, on_device(draft, task, chosen))


def main_device(problem: Problem) -> int:
    """The number of the device that can run most tasks; of equals, the one with the least seconds in sum."""
    device_of = np.array([c.device for c in problem.choices])
    best = np.stack([problem.durations[:, device_of == d].min(axis=1) for d in range(len(problem.device_ids))], axis=1)
    runs = np.isfinite(best)
    total = np.where(runs, best, 0.0).sum(axis=0)
    return min(range(len(total)), key=lambda d: (-int(runs[:, d].sum()), float(total[d])))


def on_device(draft: Draft, task: int, device: int) -> int:
    """The choice of `device` on which the task finishes first; of all choices where it cannot run there."""
    problem = draft.problem
    elsewhere = [0.0 if c.device == device else np.inf for c in problem.choices]
    possible = np.isfinite(problem.durations[task] + elsewhere)
    if possible.any() and draft.fits_group(task, int(np.argmax(possible))):
        return draft.earliest(task, elsewhere)
    return draft.earliest(task)
