"""One task at a time, in the order of the graph, on the device of `one_device`: slow, and the least memory at once that the order allows."""

from __future__ import annotations

from hetsched.placement.draft import Draft
from hetsched.placement.policies.one_device import main_device, on_device


def policy(draft: Draft) -> None:
    """Book every task of the draft."""
    one_at_a_time(draft, main_device(draft.problem))


def one_at_a_time(draft: Draft, device: int) -> None:
    """Book every task of the draft, each after the one before has finished, on the device of number `device` where it can run there."""
    done = 0.0
    for task in draft.problem.order.tolist():
        done = max(done, draft.place(task, on_device(draft, task, device), done))
