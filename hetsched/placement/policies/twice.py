"""HEFT twice: the second time the ranks are made of what tasks and copies took where the first plan put them, and each choice is charged with half of
the optimistic cost of the rest.

Means over all devices mislead where devices differ; a plan says which of them matter. Half of the optimistic cost table of PEFT, because neither
looking at the finish alone nor trusting the table wholly is best on all graphs.
"""

from __future__ import annotations

import numpy as np

from hetsched.placement.draft import Draft
from hetsched.placement.policies import heft
from hetsched.placement.policies.peft import optimistic_costs
from hetsched.placement.ranks import by_rank, upward_ranks

TRUST = 0.5


def policy(draft: Draft) -> None:
    """Book every task of the draft: the better of the two plans."""
    first, second = type(draft)(draft.problem), type(draft)(draft.problem)
    heft.policy(first)
    again(second, first)
    draft.adopt(min(first, second, key=lambda tried: tried.finish()))


def again(draft: Draft, plan: Draft) -> None:
    """Book every task of the draft, by what another draft of the same problem shows."""
    problem = draft.problem
    choice = np.array(plan.choice_of, dtype=np.int64)
    readers = np.repeat(np.arange(len(problem)), np.diff(problem.pred_start))
    src, dst = problem.nodes[choice[problem.pred_task]], problem.nodes[choice[readers]]
    copies = problem.latency[src, dst] + problem.pred_nbytes * problem.seconds_per_byte[src, dst]
    seconds = problem.durations[np.arange(len(problem)), choice]
    rank = upward_ranks(problem, seconds, np.where((problem.pred_nbytes < 0) | (src == dst), 0.0, copies))
    draft.place_all(by_rank(problem, rank), TRUST * optimistic_costs(problem))
