"""What a plan is to be least in. Today `time`; the names of the others are reserved, so that they are told apart from typing errors."""

from __future__ import annotations

from hetsched.errors import CommandLineError, did_you_mean
from hetsched.timeline import Timeline

OBJECTIVES = ("time",)
RESERVED = ("latency", "energy", "price")


def check_objective(name: str) -> str:
    """`name`, if plans can be made for it."""
    if name in RESERVED:
        raise CommandLineError(f"objective {name!r} is not available yet; use {', '.join(OBJECTIVES)}")
    if name not in OBJECTIVES:
        raise CommandLineError(f"unknown objective {name!r}{did_you_mean(name, OBJECTIVES)}")
    return name


def score(plan: Timeline, objective: str) -> float:
    """How good `plan` is under `objective`, less is better: seconds of makespan for `time`."""
    check_objective(objective)
    return plan.makespan
