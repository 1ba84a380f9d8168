"""How far a plan's figures may be off: a band of one standard deviation, from the spread of each estimate that the plan rests on.

The errors of launches and copies are taken to go the same way, all at once: a model that is wrong about an op, or a link, is wrong about it every
time. So the relative band of the whole is the mean of the relative spreads, weighted by the seconds they stand for, and does not shrink with the
number of launches. Energy and price are linear in time, so their bands are the same share. A roofline is a limit on speed, so a plan that rests on
one cannot come out below the lower bound that rests on it too: there the band is cut.
"""

from __future__ import annotations

from dataclasses import dataclass

from hetsched.placement.costs.estimate import CostModel
from hetsched.timeline import Copy, Free, Launch, Timeline


@dataclass(frozen=True)
class Band:
    """Factors of a plan's figures: `low` <= 1 <= `high`. source: where the estimates of most of its seconds come from."""

    low: float
    high: float
    source: str = "roofline"

    def of(self, figure: float | None) -> tuple[float, float] | None:
        """The figure's band; None where the figure is not known."""
        return None if figure is None else (self.low * figure, self.high * figure)


def band_of(plan: Timeline, costs: CostModel) -> Band:
    """The band of a plan whose launches and copies `costs` estimates."""
    seconds: dict[str, float] = {}
    spread = _spread(plan, costs, 1.0, seconds)
    total = sum(seconds.values())
    relative = spread / total if total > 0 else 0.0
    low = max(0.0, 1.0 - relative)
    source = max(seconds, key=lambda s: seconds[s], default="roofline")
    if source == "roofline" and plan.bound is not None and plan.makespan > 0:
        low = max(low, min(1.0, plan.bound.seconds / plan.makespan))
    return Band(low, 1.0 + relative, source)


def _spread(plan: Timeline, costs: CostModel, repeats: float, seconds: dict[str, float]) -> float:
    """Sum of spreads of all launches and copies, every turn counted; adds their seconds to `seconds`, by source."""
    turns = plan.turns if plan.period is not None else 1
    every = plan.loop.seldom if plan.loop is not None else {}
    links = {x.id: x for x in plan.machine.links}
    total = 0.0
    for part, times in ((plan.prologue, repeats), (plan.spans, repeats * turns), (plan.epilogue, repeats)):
        for span in part:
            command = span.command
            if isinstance(command, Free) or not span.lanes:
                continue
            if isinstance(command, Copy):
                estimate = costs.copy(int(plan.graph.value_nbytes[command.value]), links[span.lanes[0].owner])
            else:
                assert isinstance(command, Launch)
                times_here = times if command.task not in every else repeats * -(-turns // every[command.task])
                if command.task in plan.loops:
                    for share, body in plan.loops[command.task].booked:
                        total += _spread(body, costs, share * times_here, seconds)
                    continue
                estimate = costs.launch(plan.graph, command.task, plan.machine.device(span.lanes[0].owner), command.width)
                seconds[estimate.source] = seconds.get(estimate.source, 0.0) + times_here * estimate.seconds
                total += times_here * estimate.spread
                continue
            seconds[estimate.source] = seconds.get(estimate.source, 0.0) + times * estimate.seconds
            total += times * estimate.spread
    return total
