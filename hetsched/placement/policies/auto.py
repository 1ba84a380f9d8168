"""The best of several policies, each tried on a draft of its own. Never worse than the better of HEFT and PEFT."""

from __future__ import annotations

from hetsched.placement.draft import Draft
from hetsched.placement.policies import earliest_finish, heft, one_device, peft

PORTFOLIO = (heft.policy, peft.policy, earliest_finish.policy, one_device.policy)
# Above this many tasks planning time counts for more than what the weaker members of the portfolio win.
LARGE = 2_000


def policy(draft: Draft) -> None:
    """Book every task of the draft as the best of the portfolio does."""
    tried: list[Draft] = []
    for member in PORTFOLIO[: 2 if len(draft.problem) > LARGE else None]:
        own = type(draft)(draft.problem)
        member(own)
        tried.append(own)
    draft.adopt(min(tried, key=lambda d: d.finish()))
