"""Plans under an objective: from a pool of plans that trade time for joules and for devices, the one that is best by the objective's own measure.

The pool holds, for each set of devices worth a plan (`subsets`), the policy's plan on them alone, and plans by finish times with a bias: a choice is
charged with the joules it takes over idling, at several rates of exchange. It is the same for every objective, so that no objective's plan is beaten
under its own measure by that of another one. (For `time` up to `SHARED` tasks: planning must be quick where nothing else is asked.)
"""

from __future__ import annotations

import heapq
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from hetsched.errors import OutOfMemoryError, PlacementError
from hetsched.machine import Device, Machine
from hetsched.placement.costs.figures import Figures, body_use, figures_of, measure, turn_seconds
from hetsched.placement.costs.objective import GOALS, Objective
from hetsched.placement.draft import GraphDraft, Policy
from hetsched.placement.memory import PlanTooLargeError
from hetsched.placement.memory.fitting import fitted
from hetsched.placement.policies import heft
from hetsched.placement.problem import FloatArray, Problem, loop_seconds
from hetsched.placement.ranks import by_rank, mean_copies, mean_durations, upward_ranks
from hetsched.placement.search.improve import improve
from hetsched.placement.subsets import Devices, device_subsets, limited, obeys, on_whole, part_of
from hetsched.timeline import Bound, Timeline

# Up to SHARED tasks the pool is made for the objective `time` too, so that no other objective finds a faster plan. Up to SMALL the policy itself, not
# HEFT in its place, plans for every set of devices.
SHARED, SMALL = 300, 100
# Joules over those of idling are turned into seconds by the idle watts of the machine, times these.
RATES = (0.5, 1.0, 4.0, 64.0)
# The pool of a large graph is cut short when it has booked this many tasks.
MOST_BOOKED = 40_000
SEED = 7

PlanBody = Callable[[int, Machine], Timeline]


@dataclass(eq=False)
class Candidate:
    """A draft on `devices` with its figures; `plan` is None until it has been laid out. `bias`: float[n, C] seconds, as it was made with."""

    draft: GraphDraft
    devices: Devices
    figures: Figures
    bias: FloatArray | None = None
    plan: Timeline | None = None


@dataclass(frozen=True, eq=False)
class Point:
    """A plan of the front of time, energy and price. `best`: the goals under which no other plan of the front is better."""

    plan: Timeline
    figures: Figures
    best: tuple[str, ...]


class Pool:
    """Plans of one problem, to choose from.

    book: the policy. plan_body(task, machine): plans the body of a loop. is_auto: the policy may be added to. only: the limit of the run.
    """

    def __init__(self, problem: Problem, book: Policy, plan_body: PlanBody, *, is_auto: bool = True, only: str | None = None) -> None:
        assert problem.machine is not None
        assert problem.graph is not None
        self.problem, self.machine, self.graph = problem, problem.machine, problem.graph
        self.book, self.is_auto, self.only = book, is_auto, only
        self.subsets = device_subsets(problem)
        self._bodies = self._plan_bodies(plan_body)
        self._costs = _joules_over_idle(problem, self.machine)
        self.candidates = self._fill()

    def bound_problem(self) -> Problem:
        """The problem on all devices, each loop at the fastest plan of its body that is known: what no plan of the pool can be below."""
        fastest = {t: min(found.values(), key=loop_seconds) for t, found in self._bodies.items()}
        return limited(self.problem, self.subsets[0], fastest) if fastest else self.problem

    # Making it --------------------------------------------------------------------------------------------------------------------

    def _plan_bodies(self, plan_body: PlanBody) -> dict[int, dict[Devices, Timeline]]:
        """Loop -> set of devices -> the plan of its body for them, where there is one that keeps what the user asked for."""
        out: dict[int, dict[Devices, Timeline]] = {}
        for task, whole in self.problem.loops.items():
            out[task] = {self.subsets[0]: whole}
            for devices in self.subsets[1:]:
                try:
                    body = plan_body(task, part_of(self.machine, devices))
                except (PlacementError, OutOfMemoryError):
                    continue
                body = on_whole(body, self.machine, whole)
                if obeys(body, whole, self.only, self.graph.where.get(task)):
                    out[task][devices] = body
        return out

    def _fill(self) -> list[Candidate]:
        """First every set of devices by the policy, then the biased plans, then those whose loops have the shortest turns."""
        rates = (0.0, *RATES) if self.is_auto and self._costs is not None else (0.0,)
        found: list[Candidate] = []
        booked = 0
        for rate, devices in ((rate, devices) for rate in rates for devices in self.subsets):
            if booked > MOST_BOOKED:
                return found
            problem = self.problem_on(devices, partial(self._seconds_at, rate, devices))
            if problem is not None:
                found.append(self._booked(problem, devices, rate))
                booked += len(problem)
        known = {tuple(c.draft.problem.loops.values()) for c in found}
        for devices in self.subsets if self._bodies else ():
            problem = self.problem_on(devices, turn_seconds)
            if problem is not None and tuple(problem.loops.values()) not in known:
                found.append(self._booked(problem, devices, 0.0))
        return found

    def _booked(self, problem: Problem, devices: Devices, rate: float) -> Candidate:
        draft = GraphDraft(problem)
        bias = self._costs * (rate / self._watts(devices)) if rate > 0 and self._costs is not None else None
        if bias is not None:
            book_biased(draft, bias)
        elif devices == self.subsets[0] or not self.is_auto or len(problem) <= SMALL:
            self.book(draft)
        else:
            heft.policy(draft)
        return Candidate(draft, devices, figures_of_draft(draft), bias)

    def problem_on(self, devices: Devices, weigh: Callable[[Timeline], float] = loop_seconds) -> Problem | None:
        """The problem on these devices, each loop by the body that weighs least; None where some loop has none on them."""
        bodies: dict[int, Timeline] = {}
        for task, found in self._bodies.items():
            able = [body for part, body in found.items() if part <= devices]
            if not able:
                return None
            bodies[task] = min(able, key=weigh)
        return limited(self.problem, devices, bodies)

    def _seconds_at(self, rate: float, devices: Devices, body: Timeline) -> float:
        """Seconds of a loop, and at the rate of exchange its joules over those of idling."""
        busy, _ = body_use(body)
        joules = sum(seconds * _over_idle(self.machine.device(d)) for d, seconds in busy.items())
        return loop_seconds(body) + rate * joules / self._watts(devices)

    def _watts(self, devices: Devices) -> float:
        """What the machine draws all the time; where that is nothing, what a lane draws on the mean."""
        idle = sum(d.idle_watts or 0.0 for i, d in enumerate(self.machine.devices) if i in devices or d.always_on)
        return idle or sum(d.busy_watts or 0.0 for d in self.machine.devices) / len(self.machine.devices) or 1.0


def figures_of_draft(draft: GraphDraft) -> Figures:
    """The figures of a complete draft, before it is laid out in memory. Latency is left to `measure` where there are loops."""
    problem, machine = draft.problem, draft.machine
    seconds = draft.finish()
    busy: dict[str, float] = {}
    used: set[str] = set()
    for task, choice in enumerate(draft.choice_of):
        where = problem.choices[choice]
        if where.pool < 0:
            inner, devices = body_use(problem.loops[task])
            used |= devices
            for device, worked in inner.items():
                busy[device] = busy.get(device, 0.0) + worked
            continue
        device = problem.device_ids[where.device]
        used.add(device)
        if problem.pools[where.pool].kind == "compute":
            busy[device] = busy.get(device, 0.0) + where.width * (draft.finish_of[task] - draft.start_of[task])
    return figures_of(machine, seconds, None if problem.loops else seconds, busy, frozenset(used))


def _over_idle(device: Device) -> float:
    """Watts of a busy lane over those it draws when idle."""
    return max(0.0, (device.busy_watts or 0.0) - (device.idle_watts or 0.0) / device.lanes)


def _joules_over_idle(problem: Problem, machine: Machine) -> FloatArray | None:
    """float64[n, C]: joules of each choice over those of idling, 0 where it is not possible; None where no device states its watts."""
    if all(d.busy_watts is None for d in machine.devices):
        return None
    watts = np.zeros(len(problem.choices))
    for i, c in enumerate(problem.choices):
        if c.device >= 0 and problem.pools[c.pool].kind == "compute":
            watts[i] = c.width * _over_idle(machine.devices[c.device])
    return np.where(np.isfinite(problem.durations), problem.durations, 0.0) * watts[None, :]


def book_biased(draft: GraphDraft, bias: FloatArray) -> None:
    """HEFT with finish times that are charged with `bias`."""
    problem = draft.problem
    rows = bias.tolist()
    for task in by_rank(problem, upward_ranks(problem, mean_durations(problem), mean_copies(problem))):
        draft.place(task, draft.earliest(task, rows[task]))


# Choosing -------------------------------------------------------------------------------------------------------------------------


def choose(pool: Pool, goal: Objective, bound: Bound, plan_seconds: float = 0.0) -> Timeline:
    """The plan that is best by the objective's measure, the deadline kept.

    plan_seconds: time to search for a better one. Raises `PlacementError` where nothing keeps the deadline, or what the objective is about cannot be
    measured; `OutOfMemoryError` where no plan fits.
    """
    try:
        return _choose(pool, pool.candidates, goal, bound, plan_seconds)
    except PlanTooLargeError as error:
        return _choose(pool, _fitted_candidates(pool, error), goal, bound, 0.0)


def _fitted_candidates(pool: Pool, error: PlanTooLargeError) -> list[Candidate]:
    """Of each set of devices the plan that fits the memory. Raises `PlanTooLargeError`, the one that misses least, where there is none."""
    out, errors = [], [error]
    for devices in pool.subsets:
        problem = pool.problem_on(devices)
        if problem is None:
            continue
        draft = GraphDraft(problem)
        pool.book(draft)
        try:
            plan = fitted(draft, pool.book, error, is_auto=pool.is_auto)
        except PlanTooLargeError as found:
            errors.append(found)
            continue
        out.append(Candidate(draft, devices, measure(plan), plan=plan))
    if not out:
        raise min(errors, key=lambda e: e.missing)
    return out


def _choose(pool: Pool, candidates: list[Candidate], goal: Objective, bound: Bound, plan_seconds: float) -> Timeline:
    fastest = _best(candidates, Objective())
    assert fastest is not None
    if "latency" in goal.goals and pool.problem.loops:
        candidates = [c for c in candidates if _laid_out(c)]
    until = time.perf_counter() + plan_seconds
    if plan_seconds > 0:
        late = goal.deadline_seconds is not None and not goal.keeps(fastest.figures)
        share = 1.0 if goal.is_time or late else 0.5
        quick = _on_all(pool, fastest)
        improve(quick.draft, share * plan_seconds)
        quick.figures = figures_of_draft(quick.draft)
        candidates = [quick, *candidates]
        fastest = _best(candidates, Objective()) or fastest
    base = fastest.figures
    if goal.score(base, base) is None and len(goal.weights) > 1:
        raise PlacementError(_unmeasured(goal, base))
    kept = [c for c in candidates if goal.keeps(c.figures)]
    if not kept:
        raise PlacementError(_too_late(goal, base.seconds, bound))
    best = _best(kept, goal, base)
    if best is None:
        raise PlacementError(_unmeasured(goal, base))
    if not goal.is_time and time.perf_counter() < until:
        best = _searched(pool, best, goal, base, until)
    plan = best.plan
    assert plan is not None
    figures = measure(plan)
    if not goal.keeps(figures):
        raise PlacementError(_too_late(goal, figures.seconds, bound))
    return plan if goal.is_time else replace(plan, notes=(*plan.notes, *_told(goal, base, figures, candidates)))


def _best(candidates: Sequence[Candidate], goal: Objective, base: Figures | None = None) -> Candidate | None:
    """The candidate that is best when it is laid out; None where none can be measured. Raises `PlanTooLargeError` where none fits the memory.

    Laying out takes as long as booking, so it is done for as few as can decide: figures of drafts are those of their plans, or below.
    """
    keys = {c: key for c in candidates if (key := _key(c.figures, goal, base)) is not None}
    ordered = sorted(keys, key=lambda c: keys[c])
    best: Candidate | None = None
    error: PlanTooLargeError | None = None
    for candidate in ordered:
        if best is not None and keys[candidate] >= keys[best]:
            break
        try:
            _lay_out(candidate)
        except PlanTooLargeError as found:
            error = found if error is None else min((error, found), key=lambda e: e.missing)
            continue
        key = _key(candidate.figures, goal, base)
        if key is None:
            continue
        keys[candidate] = key
        if best is None or key < keys[best]:
            best = candidate
    if best is None and error is not None:
        raise error
    return best


def _key(figures: Figures, goal: Objective, base: Figures | None) -> tuple[float, ...] | None:
    """What to compare by: the score; of equals the faster plan, then the one that takes less, then fewer devices. None: not measurable."""
    found = goal.score(figures, base)
    return None if found is None else (found, figures.seconds, figures.joules or 0.0, figures.price or 0.0, len(figures.devices))


def _lay_out(candidate: Candidate) -> Timeline:
    if candidate.plan is None:
        candidate.plan = candidate.draft.plan()
        candidate.figures = measure(candidate.plan)
    return candidate.plan


def _laid_out(candidate: Candidate) -> bool:
    """True, and laid out, where the candidate fits the memory."""
    try:
        _lay_out(candidate)
    except PlanTooLargeError:
        return False
    return True


def _unmeasured(goal: Objective, figures: Figures) -> str:
    why = "; ".join(dict.fromkeys(f"{name} of a plan is not known: {figures.missing[name]}" for name in goal.goals if name in figures.missing))
    watts = "; --watts cpu=BUSY/IDLE gives watts of a machine without a file" if "energy" in goal.goals else ""
    return f"objective {goal}: {why}; state what is missing in the machine's file (--machine), with 0 where there is nothing{watts}"


def _too_late(goal: Objective, seconds: float, bound: Bound) -> str:
    assert goal.deadline_seconds is not None
    proof = f"no plan can be below {bound.seconds:.4g} s"
    way = "allow more time" if bound.seconds > goal.deadline_seconds else "allow more time, or search longer for a faster plan (--plan-time)"
    return f"objective {goal}: no plan found keeps the deadline of {goal.deadline_seconds:.4g} s: the fastest takes {seconds:.4g} s, {proof}; {way}"


def _told(goal: Objective, base: Figures, figures: Figures, candidates: Sequence[Candidate]) -> list[str]:
    """Notes on what was chosen: against the plan of `time`, and what could not be compared."""
    parts = [f"{figures.seconds / base.seconds:.3g} x its time" if base.seconds > 0 else ""]
    for name, unit in (("energy", "joules"), ("price", "price")):
        mine, other = figures.of(name), base.of(name)
        parts.append(f"{mine / other:.3g} x its {unit}" if mine is not None and other else "")
    told = [f"objective {goal}: on {', '.join(figures.devices) or 'no device'}; against the fastest plan: {', '.join(p for p in parts if p)}"]
    left_out = [c for c in candidates if goal.score(c.figures, base) is None]
    if left_out:
        why = "; ".join(dict.fromkeys(c.figures.missing[g] for c in left_out for g in goal.goals if g in c.figures.missing))
        told.append(f"plans on some devices were left out, they cannot be measured: {why}")
    return told


# Searching ------------------------------------------------------------------------------------------------------------------------


def _on_all(pool: Pool, candidate: Candidate) -> Candidate:
    """The same plan as a draft that may use every device, to search from."""
    draft = GraphDraft(limited(pool.problem, pool.subsets[0], candidate.draft.problem.loops))
    for task in candidate.draft.booked:
        draft.place(task, candidate.draft.choice_of[task])
    draft.notes = list(candidate.draft.notes)
    return Candidate(draft, pool.subsets[0], figures_of_draft(draft))


def _searched(pool: Pool, start: Candidate, goal: Objective, base: Figures, until: float) -> Candidate:
    """A better candidate on the same devices, if one is found in time: a (1 + 1) evolution strategy on priorities and choices, as `search`."""
    if "latency" in goal.goals and pool.problem.loops:
        return start
    problem = start.draft.problem
    n = len(problem)
    bias = start.bias.tolist() if start.bias is not None else None
    place = {task: i for i, task in enumerate(start.draft.booked)}
    priority, choice = [float(n - place[t]) for t in range(n)], list(start.draft.choice_of)
    best, least = start, _key(start.figures, goal, base)
    dice = random.Random(SEED)
    while n and time.perf_counter() < until:
        shifted, forced = list(priority), list(choice)
        for task in dice.sample(range(n), min(n, dice.choice((1, 1, 2, 4, 1 + n // 20)))):
            if dice.random() < 0.4:
                shifted[task] += dice.gauss(0.0, 0.1) * n
            elif dice.random() < 0.5:
                forced[task] = -1
            else:
                possible = np.flatnonzero(np.isfinite(problem.durations[task]))
                forced[task] = int(possible[dice.randrange(len(possible))])
        trial = GraphDraft(problem)
        _decode(trial, shifted, forced, bias)
        figures = figures_of_draft(trial)
        key = _key(figures, goal, base)
        if key is None or least is None or key > least or not goal.keeps(figures):
            continue
        trial.notes = list(start.draft.notes)
        found = Candidate(trial, start.devices, figures)
        if _laid_out(found) and goal.keeps(found.figures) and (key := _key(found.figures, goal, base)) is not None and key <= least:
            priority, choice, best, least = shifted, list(trial.choice_of), found, key
    return best


def _decode(draft: GraphDraft, priority: Sequence[float], choice: Sequence[int], bias: Sequence[Sequence[float]] | None) -> None:
    """Book tasks by falling priority as they become ready; `choice` -1, or one not possible: where the (biased) finish is least."""
    starts, later = (a.tolist() for a in draft.problem.succ[:2])
    waiting = np.diff(draft.problem.pred_start).tolist()
    ready = [(-priority[t], t) for t in range(len(draft.problem)) if not waiting[t]]
    heapq.heapify(ready)
    while ready:
        _, task = heapq.heappop(ready)
        wanted = choice[task]
        fits = wanted >= 0 and draft.fits_group(task, wanted)
        draft.place(task, wanted if fits else draft.earliest(task, bias[task] if bias is not None else None))
        for k in range(starts[task], starts[task + 1]):
            waiting[later[k]] -= 1
            if not waiting[later[k]]:
                heapq.heappush(ready, (-priority[later[k]], later[k]))


# The front ------------------------------------------------------------------------------------------------------------------------


def front(pool: Pool) -> list[Point]:
    """The plans of the pool that no other one beats in time, energy and price at once, the fastest first. Figures not known do not count.

    Raises `PlanTooLargeError` where no plan fits the memory.
    """
    fits = list(pool.candidates)
    while True:
        chosen = _undominated(fits)
        gone = [c for c in chosen if not _laid_out(c)]
        if not gone:
            break
        fits = [c for c in fits if c not in gone]
        if not fits:
            try:
                _lay_out(gone[0])
            except PlanTooLargeError as error:
                fits = _fitted_candidates(pool, error)
    chosen = _undominated(chosen)
    best = {goal: _best(chosen, Objective(((goal, 1.0),))) for goal in ("time", "energy", "price")}
    return [Point(c.plan, c.figures, tuple(g for g in GOALS if best.get(g) is c)) for c in chosen if c.plan is not None]


def _undominated(candidates: Sequence[Candidate]) -> list[Candidate]:
    """One candidate for each point of the front, the fastest first."""
    rows = {c: tuple(math.inf if (x := c.figures.of(g)) is None else x for g in ("time", "energy", "price")) for c in candidates}
    out: list[Candidate] = []
    for c in sorted(candidates, key=lambda c: (rows[c], len(c.figures.devices))):
        if not any(all(a <= b for a, b in zip(rows[o], rows[c], strict=True)) for o in out):
            out.append(c)
    return out


def is_worth_it(problem: Problem) -> bool:
    """True where the pool is made for `time` too: the machine states what other objectives are about, has several devices, and the graph is small."""
    machine = problem.machine
    assert machine is not None
    states = any(d.price_per_hour is not None or d.idle_watts is not None or d.busy_watts is not None for d in machine.devices)
    return states and len(machine.devices) > 1 and 0 < len(problem) <= SHARED


__all__ = ["Candidate", "Point", "Pool", "choose", "front", "is_worth_it"]
