"""What a plan is to be least in: time, latency, energy, price, a weighted sum of them, and a deadline to keep.

`Objective.of` reads the forms that a user may give: a name (`energy`), a text (`energy,deadline=2min`, `time=0.5,energy=0.5`), a map
(`{"minimize": "energy", "deadline": "2 min"}`, `{"time": 0.5, "energy": 0.5}`). `str` of an objective is its text. What a plan costs is measured
by `hetsched.placement.costs.figures`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from hetsched.errors import CommandLineError, did_you_mean
from hetsched.placement.costs.figures import Figures, measure
from hetsched.timeline import Timeline

GOALS = ("time", "latency", "energy", "price")
SECONDS: Mapping[str, float] = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_DURATION = re.compile(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]+)\s*")

ObjectiveLike: TypeAlias = "str | Mapping[str, Any] | Objective"


@dataclass(frozen=True)
class Objective:
    """What to make least. `weights`: (goal, weight above 0); of a single goal the weight is 1. `deadline_seconds`: the makespan allowed, or None.

    The makespan is what a deadline limits, whatever the goal. A weighted sum adds shares of what the plan of `time` costs (`score`).
    """

    weights: tuple[tuple[str, float], ...] = (("time", 1.0),)
    deadline_seconds: float | None = None

    @staticmethod
    def of(given: ObjectiveLike) -> Objective:
        """The objective that `given` means. Raises `CommandLineError` with the nearest word, or the form that is wanted."""
        if isinstance(given, Objective):
            return given
        if isinstance(given, str):
            return _of_text(given)
        if isinstance(given, Mapping):
            return _of_map(given)
        raise CommandLineError(f"an objective is a text or a map, got {type(given).__name__}; write 'energy' or {{'minimize': 'energy'}}")

    @property
    def goals(self) -> tuple[str, ...]:
        """The goals that count."""
        return tuple(goal for goal, _ in self.weights)

    @property
    def is_time(self) -> bool:
        """True where the makespan is all that counts, deadline or not."""
        return self.goals == ("time",)

    def score(self, figures: Figures, base: Figures | None = None) -> float | None:
        """How good a plan with these figures is, less is better; None where a figure is not known (`figures.missing` says why).

        Of one goal it is its figure: seconds, joules, or the currency of the prices. Of several it is the sum of weight * figure / figure of `base`,
        the fastest plan found (where that is 0, of weight * figure). Deadlines are not in it, see `keeps`.
        """
        if len(self.weights) == 1:
            return figures.of(self.goals[0])
        total = 0.0
        for goal, weight in self.weights:
            value, scale = figures.of(goal), (base or figures).of(goal)
            if value is None or scale is None:
                return None
            total += weight * (value / scale if scale > 0 else value)
        return total

    def keeps(self, figures: Figures) -> bool:
        """True where the deadline is kept (a billionth of it is rounding)."""
        return self.deadline_seconds is None or figures.seconds <= self.deadline_seconds * (1 + 1e-9)

    def __str__(self) -> str:
        text = self.goals[0] if len(self.weights) == 1 else ",".join(f"{goal}={weight:g}" for goal, weight in self.weights)
        return text if self.deadline_seconds is None else f"{text},deadline={self.deadline_seconds:.12g}s"


def score(plan: Timeline, objective: ObjectiveLike, base: Timeline | None = None) -> float | None:
    """How good `plan` is under `objective`, less is better (`Objective.score`); `base`: the plan of `time`, for weighted sums."""
    return Objective.of(objective).score(measure(plan), measure(base) if base is not None else None)


def _of_text(text: str) -> Objective:
    """`energy`, `energy,deadline=2min`, `time=0.5,energy=0.5`."""
    parts = [part.strip() for part in text.split(",")]
    names: list[str] = []
    weights: dict[str, Any] = {}
    deadline: str | None = None
    for part in parts:
        word, equals, value = (x.strip() for x in part.partition("="))
        if word == "deadline" and equals and deadline is None:
            deadline = value
        elif not equals:
            names.append(_goal(word))
        elif word == "deadline" or word in weights:
            raise CommandLineError(f"objective {text!r} gives {word!r} twice; leave one out")
        else:
            weights[_goal(word)] = value
    if len(names) + bool(weights) != 1:
        raise CommandLineError(
            f"objective {text!r} is not understood; write a goal (energy) or weights (time=0.5,energy=0.5); a deadline may follow (,deadline=2min)"
        )
    return Objective(_weights(weights) if weights else ((names[0], 1.0),), _deadline(deadline))


def _of_map(given: Mapping[str, Any]) -> Objective:
    """`{"minimize": goal or weights, "deadline": "2 min" or seconds}`, or weights alone."""
    if "minimize" not in given and "deadline" not in given:
        return Objective(_weights(given))
    for key in given:
        if key not in ("minimize", "deadline"):
            raise CommandLineError(f"objective has no key {key!r}{did_you_mean(str(key), ('minimize', 'deadline'))}")
    if "minimize" not in given:
        raise CommandLineError(f"objective needs the key 'minimize'; write one of {', '.join(GOALS)}")
    goal = given["minimize"]
    return Objective(_weights(goal) if isinstance(goal, Mapping) else ((_goal(goal), 1.0),), _deadline(given.get("deadline")))


def _goal(word: Any) -> str:
    if word not in GOALS:
        raise CommandLineError(f"unknown objective {word!r}{did_you_mean(str(word), GOALS)}")
    return str(word)


def _weights(given: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    """Weights of 0 are left out; the rest in the order of `GOALS`, so that equal objectives are equal."""
    found: dict[str, float] = {}
    for word, weight in given.items():
        goal = _goal(word)
        try:
            number = math.nan if isinstance(weight, bool) else float(weight)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 <= number < math.inf:
            raise CommandLineError(f"the weight of {goal} must be a number from 0 on, got {weight!r}")
        found[goal] = number
    kept = [(goal, found[goal]) for goal in GOALS if found.get(goal, 0.0) > 0]
    if not kept:
        raise CommandLineError("an objective of weights needs one above 0, such as time=0.5,energy=0.5")
    return ((kept[0][0], 1.0),) if len(kept) == 1 else tuple(kept)


def _deadline(given: Any) -> float | None:
    """Seconds of a number, or of a text such as `2 min`."""
    if given is None:
        return None
    seconds = math.nan
    if isinstance(given, str):
        found = _DURATION.fullmatch(given)
        if found is not None:
            if found[2] not in SECONDS:
                raise CommandLineError(f"deadline {given!r}: unknown unit {found[2]!r}{did_you_mean(found[2], SECONDS)}")
            try:
                seconds = float(found[1]) * SECONDS[found[2]]
            except ValueError:
                seconds = math.nan
    elif isinstance(given, (int, float)) and not isinstance(given, bool):
        seconds = float(given)
    if not 0 < seconds < math.inf:
        raise CommandLineError(f"deadline wants a number above 0 and a unit ({', '.join(SECONDS)}), such as 2 min, got {given!r}")
    return seconds


__all__ = ["GOALS", "Figures", "Objective", "ObjectiveLike", "measure", "score"]
