"""HEFT: tasks by the longest mean path to the end, each where it finishes first.

Topcuoglu, Hariri, Wu: Performance-effective and low-complexity task scheduling for heterogeneous computing (IEEE TPDS 13(3), 2002).
"""

from __future__ import annotations

from hetsched.placement.draft import Draft
from hetsched.placement.ranks import by_rank, mean_copies, mean_durations, upward_ranks


def policy(draft: Draft) -> None:
    """Book every task of the draft."""
    problem = draft.problem
    draft.place_all(by_rank(problem, upward_ranks(problem, mean_durations(problem), mean_copies(problem))))
