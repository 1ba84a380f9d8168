"""What a cost model answers, and what it must be able to answer."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from hetsched.graph.graph import Graph
from hetsched.machine import Device, Link


class Estimate(NamedTuple):
    """A predicted cost. `spread` is a standard deviation in seconds; `joules` is None where no wattage is known; `source` says what it rests on:

    "3 runs", "a measurement alone", "regression over shapes", "a calibrated curve", "roofline".
    """

    seconds: float
    spread: float = 0.0
    joules: float | None = None
    source: str = "roofline"


class CostModel(Protocol):
    """Predicts launches and copies.

    `launch` may depend on the task only through its op, its attributes and the specs of its values: a planner asks once for tasks that are
    equal in these. It is never asked for a loop.
    """

    def launch(self, graph: Graph, task: int, device: Device, width: int) -> Estimate:
        """The cost of task number `task` on `width` lanes of `device`."""
        ...

    def copy(self, nbytes: int, link: Link) -> Estimate:
        """The cost of one copy of `nbytes` over `link`, queues not counted."""
        ...
