"""When a run leaves its plan: what was measured is compared with what was planned, and the rest is planned anew where that pays.

Three figures decide. The drift: how far measured durations of one kind of launch, or of all that a device or a link does, are from the plan's.
What the rest would take as it is planned, with durations as measured. What it would take by a new plan that knows them, with the way there:
values that lie on devices are brought to the host, and back. A new plan is taken up where it saves a tenth of what is left, and more time than
it took to find it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, TypeVar

from hetsched.errors import CommandLineError
from hetsched.executors.epochs import Progress, Speeds, boundary, launch_key, left_of
from hetsched.executors.program import span_arcs
from hetsched.graph.graph import Graph, Loop, Nested
from hetsched.graph.rest import JOIN, Rest
from hetsched.machine import HOST, Device, Link, Machine
from hetsched.placement import plan_graph
from hetsched.placement.costs import CostModel, Estimate, RooflineCosts
from hetsched.placement.policies import find
from hetsched.placement.problem import loop_seconds
from hetsched.timeline import Copy, Free, Launch, Span, Timeline

# Durations that leave the plan by more than this factor, up or down, are drift.
DRIFT_FACTOR = 1.5
# A new plan must save this share of what is left, and this many times the seconds that finding it took.
GAIN_SHARE = 0.1
GAIN_PLANNING = 3.0
# After a look that found no better plan none is sought for this many times what that took.
REST_AFTER_PLANNING = 10.0
# The first look; later ones come as often, or less often where planning takes long.
LOOK_SECONDS = 0.1
# Kinds of launches (and loops) that ran less often say nothing yet, nor do those that take less than this share of the time.
LEAST_TIMES = 3
LEAST_SHARE = 0.02
MOST_EPOCHS = 8
# Looks back to which what has been measured lately may reach.
REMEMBERED = 16
MOST_NAMED = 3

Key = TypeVar("Key")
MakePlan = Callable[[Graph, CostModel], Timeline]


class MeasuredCosts:
    """A cost model corrected by what a run has measured.

    What ran on a device is answered from there. What did not is the other model's, times how much longer than planned the device took for other
    things, times how much longer its kind took on a device that else kept to the plan (long images are long everywhere). unknown: how much
    longer than planned a device or link takes of which nothing has been measured.
    """

    def __init__(self, base: CostModel, speeds: Speeds, planned: Mapping[tuple[Any, ...], float], unknown: float = 1.0) -> None:
        self.base, self.speeds, self.planned, self.unknown = base, speeds, planned, unknown
        self.excess: dict[tuple[Any, ...], float] = {}
        for key, (_, measured, expected) in speeds.launches.items():
            _, all_measured, all_expected = speeds.devices.get(key[0], [0.0, 0.0, 0.0])
            other_measured, other_expected = all_measured - measured, all_expected - expected
            usual = other_measured / other_expected if other_expected > 0.2 * all_expected else speeds.factor(key[0])
            if expected > 0 and 1 / DRIFT_FACTOR <= usual <= DRIFT_FACTOR:
                self.excess[key[1:]] = measured / expected / usual

    def launch(self, graph: Graph, task: int, device: Device, width: int) -> Estimate:
        """See `CostModel.launch`."""
        op = graph.task_ops[task]
        key = (device.id, op.name, tuple(graph.spec(v) for v in graph.reads(task)), tuple(graph.spec(v) for v in graph.writes(task)))
        found = self.speeds.launches.get(key)
        estimate = self.base.launch(graph, task, device, width)
        if found is not None and found[0] > 0 and width == 1:
            seconds = found[1] / found[0]
        else:
            base = self.planned.get(key, estimate.seconds) if width == 1 else estimate.seconds
            seconds = base * self._factor(device.id) * self.excess.get(key[1:], 1.0)
        joules = None if estimate.joules is None or estimate.seconds <= 0 else estimate.joules * seconds / estimate.seconds
        return Estimate(seconds, 0.1 * seconds, joules, "measured in this run")

    def _factor(self, owner: str) -> float:
        return self.speeds.factor(owner) if owner in self.speeds.devices else self.unknown

    def copy(self, nbytes: int, link: Link) -> Estimate:
        """See `CostModel.copy`."""
        estimate = self.base.copy(nbytes, link)
        factor = self._factor(link.id)
        return Estimate(estimate.seconds * factor, estimate.spread * factor, estimate.joules, "measured in this run")


@dataclass
class Replanning:
    """The replanner of `hetsched.run`: see `executors.epochs.Replanner`.

    make_plan: plans a graph by a cost model, as the run's first plan was. costs: what that plan was made with. factor: drift. look_seconds: how often
    it looks. clock: seconds, for what planning takes; pass one that stands still to leave that out (as in simulated runs).
    """

    make_plan: MakePlan
    costs: CostModel
    factor: float = DRIFT_FACTOR
    look_seconds: float = LOOK_SECONDS
    clock: Callable[[], float] = perf_counter
    epochs: int = 0
    _next: float = -1.0
    _looks: list[Speeds] = field(default_factory=list)  # of the epoch, the last of them first
    _recent: Speeds = field(default_factory=Speeds)
    _unknown: float | None = None  # how far off the costs were from the beginning: so they may be of what has not been measured
    _why: str = ""
    _old: Timeline | None = None

    def due(self, plan: Timeline, progress: Progress) -> bool:
        """See `executors.epochs.Replanner`."""
        if self._next < 0:
            self._next = self.look_seconds
        if progress.now < self._next or self.epochs >= MOST_EPOCHS:
            return False
        began = self.clock()
        speeds = progress.speeds()
        if any(done < LEAST_TIMES for done, _ in speeds.turns.values()):
            self._next = progress.now + self.look_seconds
            return False
        recent = since(speeds, self._looks)
        self._looks = [speeds, *self._looks[: REMEMBERED - 1]]
        if self._unknown is None and speeds.devices:
            self._unknown = min(speeds.factor(owner) for owner in speeds.devices)
        drifted = drift(recent, self.factor, progress.now)
        stay = remaining(plan, speeds, recent)
        as_planned = remaining(plan, replace(speeds, turns={t: (n, float("inf")) for t, (n, _) in speeds.turns.items()}), Speeds())
        if drifted is None or abs(stay - as_planned) < GAIN_SHARE * as_planned:  # it does not matter: hidden behind what kept to the plan
            self._next = progress.now + self.look_seconds
            return False
        go = self._by_a_new_plan(plan, speeds, recent)
        spent = self.clock() - began
        self._next = progress.now + max(self.look_seconds, REST_AFTER_PLANNING * spent)
        if stay - go < max(GAIN_SHARE * stay, GAIN_PLANNING * spent):
            return False
        self.epochs += 1
        self._recent, self._old = recent, plan
        at = "".join(f", after turn {turns} of {_name(plan, task)!r}" for task, (turns, _) in speeds.turns.items())
        self._why = f"planned anew {_seconds(progress.now)} into the epoch{at}: {drifted}; the rest would take {_seconds(stay)}, now {_seconds(go)}"
        return True

    def plan(self, rest: Rest, speeds: Speeds) -> Timeline:
        """See `executors.epochs.Replanner`."""
        old = self._old
        assert old is not None
        self.costs = MeasuredCosts(self.costs, self._recent, planned_seconds(old), self._unknown or 1.0)
        self._unknown = 1.0
        made = self.make_plan(rest.graph, self.costs)
        moved = moves(old, made, rest)
        self._next, self._looks = -1.0, []
        return replace(made, notes=(f"{self._why}{'; moved ' + moved if moved else ''}", *made.notes))

    def _by_a_new_plan(self, plan: Timeline, speeds: Speeds, recent: Speeds) -> float:
        """Seconds that the rest takes by a new plan, with the way there; infinite where loops in flight cannot stop before their end."""
        turns = {}
        for task, (done, _) in speeds.turns.items():
            loop = plan.graph.task_ops[task]
            assert isinstance(loop, Loop)
            turns[task] = boundary(loop, done)
            if turns[task] >= loop.turns:
                return float("inf")
        rest = left_of(plan, speeds.done, turns)
        known = planned_seconds(plan)
        made = self.make_plan(rest.graph, MeasuredCosts(self.costs, recent, known, self._unknown or 1.0))
        return made.makespan + moving_seconds(plan, rest)


def since(speeds: Speeds, looks: Sequence[Speeds]) -> Speeds:
    """What has been measured lately: of each kind since the last of `looks` (the last one first) since which it has run often enough."""
    return Speeds(
        speeds.now, _less(speeds.launches, [x.launches for x in looks]), _less(speeds.devices, [x.devices for x in looks]), set(speeds.done),
        dict(speeds.turns),
    )  # fmt: skip


def _less(rows: Mapping[Key, list[float]], looks: Sequence[Mapping[Key, list[float]]]) -> dict[Key, list[float]]:
    out = {}
    for key, row in rows.items():
        out[key] = list(row)
        for older in looks:
            old = older.get(key)
            if old is None or row[0] - old[0] >= LEAST_TIMES:
                out[key] = [a - b for a, b in zip(row, old or [0.0] * len(row), strict=True)]
                break
    return out


def drift(speeds: Speeds, factor: float, seconds: float) -> str | None:
    """What has left the plan by more than `factor` and matters, in words; None where nothing has."""
    found = []
    for (device, op, *_), (times, measured, planned) in speeds.launches.items():
        if times >= LEAST_TIMES and planned > 0 and max(measured, planned) >= LEAST_SHARE * seconds:
            found.append((measured / planned, f"{op} on {device}"))
    for owner, (times, measured, planned) in speeds.devices.items():
        if "->" in owner and times >= LEAST_TIMES and planned > 0 and max(measured, planned) >= LEAST_SHARE * seconds:
            found.append((measured / planned, f"copies {owner}"))
    found = [(ratio, what) for ratio, what in found if ratio > factor or ratio < 1 / factor]
    if not found:
        return None
    ratio, what = max(found, key=lambda row: max(row[0], 1 / row[0] if row[0] > 0 else 0.0))
    return f"{what} took {ratio:.3g} times what was planned"


def planned_seconds(plan: Timeline) -> dict[tuple[Any, ...], float]:
    """What a plan, bodies included, takes each kind of launch on each device for."""
    out: dict[tuple[Any, ...], float] = {}
    for span in plan.launches:
        command = span.command
        assert isinstance(command, Launch)
        if not isinstance(plan.graph.task_ops[command.task], Nested) and len(span.lanes) == 1:
            out[launch_key(plan, command.task, span.lanes[0].owner)] = span.finish - span.start
    for _, body in plan.nested:
        out |= planned_seconds(body)
    return out


def scaled(plan: Timeline, span: Span, speeds: Speeds) -> float:
    """The seconds of a span, with durations as measured."""
    planned, owner = span.finish - span.start, span.lanes[0].owner if span.lanes else ""
    if isinstance(span.command, Launch) and not isinstance(plan.graph.task_ops[span.command.task], Nested):
        found = speeds.launches.get(launch_key(plan, span.command.task, owner))
        if found is not None and found[2] > 0:
            return planned * found[1] / found[2]
    return planned * speeds.factor(owner)


def period_seconds(body: Timeline, speeds: Speeds) -> float:
    """The period of a loop's body with durations as measured: longer than planned as the load of the busiest lane is."""
    planned: dict[Any, float] = {}
    measured: dict[Any, float] = {}
    for span in body.spans:
        if isinstance(span.command, Free):
            continue
        seconds = scaled(body, span, speeds)
        if isinstance(span.command, Launch) and span.command.task in body.loops:
            seconds = loop_remaining(body.loops[span.command.task], 0, speeds)
        for lane in span.lanes:
            planned[lane] = planned.get(lane, 0.0) + span.finish - span.start
            measured[lane] = measured.get(lane, 0.0) + seconds
    most = max(planned.values(), default=0.0)
    return (body.period or 0.0) * (max(measured.values()) / most if most > 0 else 1.0)


def loop_remaining(body: Timeline, done: int, speeds: Speeds) -> float:
    """Seconds that the turns of a loop from `done` on take, or an if, with durations as measured."""
    if body.branch is not None:
        return sum(share * remaining(plan, Speeds(speeds.now), speeds) for share, plan in body.booked)
    turns = body.turns - done
    if turns <= 0:
        return 0.0
    fill = max(0.0, loop_seconds(body) - body.turns * (body.period or 0.0)) if not done else 0.0
    return period_seconds(body, speeds) * turns + fill


def remaining(plan: Timeline, speeds: Speeds, recent: Speeds) -> float:
    """Seconds until the end as it is planned, with durations as measured: undone spans in the order of the plan, each when its lanes and sources
    are free.
    """
    before: dict[int, list[int]] = {}
    for a, b, d in span_arcs(plan):
        if d == 0:
            before.setdefault(b, []).append(a)
    free: dict[Any, float] = {}
    ends: dict[int, float] = {}
    for i in sorted(range(len(plan.spans)), key=lambda i: (plan.spans[i].start, plan.spans[i].finish)):
        span = plan.spans[i]
        if i in speeds.done or isinstance(span.command, Free):
            continue
        seconds = scaled(plan, span, recent)
        if isinstance(span.command, Launch) and span.command.task in plan.loops:
            body, (turns, spent) = plan.loops[span.command.task], speeds.turns.get(span.command.task, (0, 0.0))
            seconds = loop_remaining(body, turns, recent)
            if turns >= LEAST_TIMES:
                seconds = min(seconds, spent / turns * (body.turns - turns))
        start = max([0.0, *(ends.get(a, 0.0) for a in before.get(i, ())), *(free.get(lane, 0.0) for lane in span.lanes)])
        ends[i] = start + seconds
        for lane in span.lanes:
            free[lane] = ends[i]
    return max(ends.values(), default=0.0)


def moving_seconds(plan: Timeline, rest: Rest) -> float:
    """Seconds to bring to the host what the rest reads and devices hold."""
    total = 0.0
    for source in rest.sources.values():
        if source.kind == "carried":
            loop, body = plan.graph.task_ops[source.task], plan.loops[source.task]
            assert isinstance(loop, Loop)
            value = loop.body.outputs[loop.carried[source.value][1]]
            graph, made = loop.body, [r.node for s in body.launches for r in _writes(s) if r.value == value]
        elif source.kind == "value":
            graph, value = plan.graph, source.value
            made = [r.node for s in plan.launches for r in _writes(s) if r.value == value]
        else:
            continue
        if made and made[0] != HOST:
            total += plan.machine.link(made[0], HOST).seconds(int(graph.value_nbytes[value]))
    return total


def _writes(span: Span) -> Iterable[Any]:
    return span.command.writes if isinstance(span.command, Launch) else ()


def moves(old: Timeline, new: Timeline, rest: Rest) -> str:
    """What runs elsewhere than before, in words: `matmul from gpu:0 to cpu`."""
    found: list[str] = []
    for t, whole in enumerate(rest.tasks):
        if whole < 0 or new.graph.task_ops[t] is JOIN:
            continue
        if t in new.loops and whole in old.loops:
            before, after = _placed(old.loops[whole]), _placed(new.loops[t])
            found += [f"{_name(old, whole)}/{n} from {before[n]} to {d}" for n, d in after.items() if n in before and before[n] != d]
            lanes = _lanes(old.loops[whole]), _lanes(new.loops[t])
            if lanes[0] != lanes[1]:
                found.append(f"{_name(old, whole)} from {_plural(lanes[0])} to {_plural(lanes[1])}")
        elif old.device_of(whole) != new.device_of(t):
            found.append(f"{_name(old, whole)} from {old.device_of(whole)} to {new.device_of(t)}")
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return ", ".join(found[:MOST_NAMED]) + more


def _placed(body: Timeline) -> dict[str, str]:
    return {_name(body, s.command.task): "+".join(dict.fromkeys(x.owner for x in s.lanes)) for s in body.launches if isinstance(s.command, Launch)}


def _lanes(body: Timeline) -> int:
    return len({lane for s in body.spans for lane in s.lanes if not isinstance(s.command, Copy)})


def _plural(lanes: int) -> str:
    return f"{lanes} lane" + ("s" if lanes != 1 else "")


def _name(plan: Timeline, task: int) -> str:
    return plan.graph.task_names[task]


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 0.1 else f"{seconds * 1e3:.3g} ms"


def replanning_of(
    plan: Timeline, machine: Machine, *, only: str | None, memory: Mapping[str, int] | int | None, costs: CostModel | None, **options: Any
) -> Replanning:
    """The replanner of a run that begins with `plan`: by the same policy, for the same objective, on the same machine."""

    try:
        find(plan.policy)
        policy = plan.policy
    except CommandLineError:  # a plan by hand
        policy = "auto"

    def make_plan(graph: Graph, costs: CostModel) -> Timeline:
        return plan_graph(graph, machine, costs=costs, policy=policy, objective=plan.objective, only=only, memory=memory)

    return Replanning(make_plan, costs or RooflineCosts(machine), **options)
