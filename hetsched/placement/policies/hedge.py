"""Between HEFT and PEFT: tasks by the longest path at their fastest, each where finish + half of the optimistic cost of the rest is least.

Neither looking at the finish alone nor trusting the optimistic table wholly is best on all graphs; half of it is near the better of both, and
where it wins it wins on graphs that both do badly.
"""

from __future__ import annotations

import numpy as np

from hetsched.placement.draft import Draft
from hetsched.placement.policies.peft import optimistic_costs
from hetsched.placement.ranks import by_rank, upward_ranks

TRUST = 0.5


def policy(draft: Draft) -> None:
    """Book every task of the draft."""
    problem = draft.problem
    rank = upward_ranks(problem, problem.durations.min(axis=1), np.zeros(len(problem.pred_task)))
    draft.place_all(by_rank(problem, rank), TRUST * optimistic_costs(problem))
