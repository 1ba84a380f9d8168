"""Tasks in the order of the graph, each where it finishes first: what a dispatcher without priorities would do."""

from __future__ import annotations

from hetsched.placement.draft import Draft


def policy(draft: Draft) -> None:
    """Book every task of the draft."""
    for task in draft.problem.order.tolist():
        draft.place(task, draft.earliest(task))
