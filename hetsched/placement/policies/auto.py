"""The best of several policies, each tried on a draft of its own. Never worse than the better of HEFT and PEFT."""

from __future__ import annotations

import math

from hetsched.placement.draft import Draft, Policy
from hetsched.placement.policies import earliest_finish, hedge, heft, one_device, peft
from hetsched.placement.ranks import by_rank, mean_copies, mean_durations, upward_ranks

# Up to this many tasks the weaker members are tried too: they win on small graphs where copies are dear, and take no time there.
SMALL = 300


def policy(draft: Draft) -> None:
    """Book every task of the draft as the best of the portfolio does."""
    problem = draft.problem
    members: dict[str, Policy] = {"heft": heft.policy, "peft": peft.policy, "hedge": hedge.policy}
    if problem.has_wide:
        members["heft without wide launches"] = narrow_heft
    if len(problem) <= SMALL:
        members |= {"earliest_finish": earliest_finish.policy, "one_device": one_device.policy}
    tried: dict[str, Draft] = {}
    for name, member in members.items():
        tried[name] = type(draft)(problem)
        member(tried[name])
    best = min(tried, key=lambda name: tried[name].finish())
    draft.adopt(tried[best])
    draft.notes.append(f"auto took the plan of {best}")


def narrow_heft(draft: Draft) -> None:
    """HEFT that launches nothing wide: greedy choice gives a device's lanes to one task even where others could use them at the same time."""
    problem = draft.problem
    wide = [math.inf if choice.width > 1 else 0.0 for choice in problem.choices]
    for task in by_rank(problem, upward_ranks(problem, mean_durations(problem), mean_copies(problem))):
        draft.place(task, draft.earliest(task, wide))
