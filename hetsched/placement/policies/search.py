"""The best plan of `auto`, then a search from there with a fixed number of evaluations: slower than `auto`, never worse, the same every time.

For as long a search as there is time use `plan_seconds` (`--plan-time`), with any policy.
"""

from __future__ import annotations

from hetsched.placement.draft import Draft
from hetsched.placement.policies import auto
from hetsched.placement.search.improve import improve

# Evaluations times tasks. A step of a costed graph is many times cheaper than the whole plan that other drafts must write.
WORK = 2_000
COSTED_WORK = 300_000


def policy(draft: Draft) -> None:
    """Book every task of the draft."""
    auto.policy(draft)
    work = COSTED_WORK if draft.problem.is_costed else WORK
    improve(draft, evaluations=max(20, work // max(1, len(draft.problem))))
