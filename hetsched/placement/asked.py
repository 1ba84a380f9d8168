"""How a plan was asked for, so that it can be asked for again with something changed. Known as long as the plan lives, not part of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from hetsched.machine import Machine
from hetsched.placement.costs import CostModel, RooflineCosts
from hetsched.placement.costs.objective import Objective
from hetsched.placement.draft import Policy
from hetsched.timeline import Timeline


@dataclass(frozen=True)
class Asked:
    """The arguments of `plan_graph` but for the graph. costs: None where they are the roofline of the machine."""

    machine: Machine
    costs: CostModel | None
    policy: str | Policy
    objective: Objective
    plan_seconds: float = 0.0
    only: str | None = None
    memory: Mapping[str, int] | None = None

    @property
    def model(self) -> CostModel:
        """The cost model that the plan rests on."""
        return self.costs if self.costs is not None else RooflineCosts(self.machine)


_asked: WeakKeyDictionary[Timeline, Asked] = WeakKeyDictionary()


def remember(plan: Timeline, asked: Asked) -> Timeline:
    """`plan`, whose way of asking is known from now on."""
    _asked[plan] = asked
    return plan


def asked_for(plan: Timeline) -> Asked:
    """How `plan` was asked for; of a plan made by other means (by hand, read from a file) what it says of itself."""
    found = _asked.get(plan)
    return found if found is not None else Asked(plan.machine, None, plan.policy or "auto", Objective.of(plan.objective))
