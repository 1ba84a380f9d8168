"""The best of several policies, each tried on a draft of its own. Never worse than the better of HEFT and PEFT, and at most 3 times the work of HEFT.

A plan that is certain to be longer than the best so far is given up.
"""

from __future__ import annotations

import math

import numpy as np

from hetsched.placement.draft import Draft, HopelessError, Policy
from hetsched.placement.policies import earliest_finish, heft, one_device, peft, twice
from hetsched.placement.ranks import by_rank, mean_copies, mean_durations, upward_ranks

# Up to this many tasks the weaker members are tried too where copies queue on links: they win on small graphs whose copies are dear.
SMALL = 300
# Up to this many tasks HEFT is tried a second time: it costs a whole HEFT, with which large graphs would take 3 to 3.5 times the time of HEFT.
AGAIN = 500


def policy(draft: Draft) -> None:
    """Book every task of the draft as the best of the portfolio does."""
    problem = draft.problem
    best = type(draft)(problem)
    heft.policy(best)
    name, least = "heft", best.finish()

    def attempt(called: str, member: Policy) -> None:
        nonlocal best, name, least
        trial = type(draft)(problem)
        trial.give_up_above = least
        try:
            member(trial)
        except HopelessError:
            return
        if trial.finish() < least:
            best, name, least = trial, called, trial.finish()

    attempt("peft", peft.policy)
    if len(problem) <= AGAIN:
        attempt("heft, a second time", lambda trial: twice.again(trial, best))
    if problem.has_wide:
        attempt("heft without wide launches", narrow_heft)
    if not problem.is_costed and len(problem) <= SMALL:
        attempt("earliest_finish", earliest_finish.policy)
        attempt("one_device", one_device.policy)
    draft.adopt(best)
    draft.notes.append(f"auto took the plan of {name}")


def narrow_heft(draft: Draft) -> None:
    """HEFT that launches nothing wide: greedy choice gives a device's lanes to one task even where others could use them at the same time."""
    problem = draft.problem
    wide = np.array([math.inf if choice.width > 1 else 0.0 for choice in problem.choices])
    order = by_rank(problem, upward_ranks(problem, mean_durations(problem), mean_copies(problem)))
    draft.place_all(order, np.broadcast_to(wide, problem.durations.shape))
