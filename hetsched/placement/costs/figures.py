"""What a plan costs: seconds, joules, price, and the seconds of one request. From a timeline and the watts and prices that its machine states.

Energy: a busy lane draws `busy_watts`, an idle one its share of `idle_watts`; between the two the power of a device is linear in its busy lanes
(Fan, Weber, Barroso: Power provisioning for a warehouse-sized computer, ISCA 2007, section 4.1). Over a makespan of T seconds with B busy
lane-seconds on `lanes` lanes a device takes `busy_watts * B + idle_watts * (T - B / lanes)` joules. A device that the plan does not use draws
its idle watts all the time, unless the machine says that it is off then (`always_on: false`). Lanes that wait for files, and copies, draw nothing
beyond that.

Price: `price_per_hour` of each device that launches something, for the whole makespan, by the second; a device not used costs nothing. The
`price_per_hour` of the machine itself, where it has one, is paid whatever is used, and devices without a price are then part of it.

Latency: a request is one turn of each outermost loop, the whole graph where there are none: the makespan of the same plan with every such loop
held to one turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hetsched.machine import Machine
from hetsched.timeline import Copy, Free, Lane, Launch, Replica, Span, Timeline

SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class Figures:
    """What a plan costs. A figure that is not known is None, and `missing` says why, by goal.

    seconds: the makespan. latency_seconds: of one request. joules: of all devices. price: in the currency of the machine's file.
    busy: device -> seconds its lanes work, lanes added up. devices: those that launch something, in the machine's order.
    estimated: the goals whose figure is predicted or rests on the watts the machine states; `time` of a trace is measured, and so is its price.
    """

    seconds: float
    latency_seconds: float | None
    joules: float | None
    price: float | None
    devices: tuple[str, ...] = ()
    busy: Mapping[str, float] = field(default_factory=dict)
    estimated: frozenset[str] = frozenset()
    missing: Mapping[str, str] = field(default_factory=dict)

    def of(self, goal: str) -> float | None:
        """The figure that the goal `time`, `latency`, `energy` or `price` is about."""
        found: float | None = {"time": self.seconds, "latency": self.latency_seconds, "energy": self.joules, "price": self.price}[goal]
        return found


def measure(plan: Timeline) -> Figures:
    """The figures of a plan, or of a trace; bodies of loops with all their turns included."""
    busy, used = _busy(plan)
    if plan.measured and plan.totals:
        busy = {d.id: plan.totals[d.id] for d in plan.machine.devices if d.id in plan.totals}
    return figures_of(plan.machine, plan.makespan, _latency(plan), busy, used, measured=plan.measured)


def figures_of(
    machine: Machine, seconds: float, latency_seconds: float | None, busy: Mapping[str, float], used: frozenset[str], *, measured: bool = False
) -> Figures:
    """Figures from a makespan, device -> busy lane-seconds, and the devices used."""
    joules, price = 0.0, (machine.price_per_hour or 0.0) * seconds / SECONDS_PER_HOUR
    unknown_watts, unknown_price = [], []
    for device in machine.devices:
        if device.id in used or device.always_on:
            worked = busy.get(device.id, 0.0)
            unknown_watts += [f"{device.id} states no busy_watts"] if worked > 0 and device.busy_watts is None else []
            unknown_watts += [f"{device.id} states no idle_watts"] if device.idle_watts is None else []
            rest = max(0.0, seconds - worked / device.lanes)
            joules += (device.busy_watts or 0.0) * worked + (device.idle_watts or 0.0) * rest
        if device.id in used:
            unknown = device.price_per_hour is None and machine.price_per_hour is None
            unknown_price += [f"{device.id} states no price_per_hour"] if unknown else []
            price += (device.price_per_hour or 0.0) * seconds / SECONDS_PER_HOUR
    missing = {goal: "; ".join(why) for goal, why in (("energy", unknown_watts), ("price", unknown_price)) if why}
    if latency_seconds is None:
        missing["latency"] = "a trace does not tell one request from the next"
    return Figures(
        seconds,
        latency_seconds,
        None if unknown_watts else joules,
        None if unknown_price else price,
        tuple(d.id for d in machine.devices if d.id in used),
        {d.id: busy.get(d.id, 0.0) for d in machine.devices},
        frozenset({"energy"} if measured else {"time", "latency", "energy", "price"}),
        missing,
    )


def body_use(body: Timeline) -> tuple[dict[str, float], frozenset[str]]:
    """(device -> busy lane-seconds, devices used) of all turns of a loop's body; of an if what is booked of its branches."""
    busy: dict[str, float] = {}
    used: set[str] = set()
    for share, plan in body.booked:
        inner, devices = _busy(plan)
        used |= devices
        for device, seconds in inner.items():
            busy[device] = busy.get(device, 0.0) + share * seconds
    return busy, frozenset(used)


def turn_seconds(body: Timeline) -> float:
    """Seconds of one turn of a loop by itself: prologue, turn, epilogue; of an if what is booked of its branches."""
    if body.branch is not None:
        return sum(share * plan.makespan for share, plan in body.booked)
    parts = (body.prologue, body.spans, body.epilogue) if body.turns else (body.prologue, body.epilogue)
    return sum(max((s.finish for s in part), default=0.0) for part in parts)


def _busy(plan: Timeline) -> tuple[dict[str, float], frozenset[str]]:
    every = plan.loop.seldom if plan.loop is not None else {}
    turns = plan.turns if plan.period is not None and not plan.measured else 1
    busy: dict[str, float] = {}
    used: set[str] = set()
    for span in plan.spans:
        if not isinstance(span.command, Launch):
            continue
        runs = -(-turns // every.get(span.command.task, 1))
        if runs <= 0:
            continue
        if span.command.task in plan.loops:
            inner, devices = body_use(plan.loops[span.command.task])
            used |= devices
            for device, seconds in inner.items():
                busy[device] = busy.get(device, 0.0) + runs * seconds
            continue
        for lane in span.lanes:
            used.add(lane.owner)
            if lane.kind == "compute":
                busy[lane.owner] = busy.get(lane.owner, 0.0) + runs * (span.finish - span.start)
    return busy, frozenset(used)


def _latency(plan: Timeline) -> float | None:
    """The makespan with every loop of `plan` held to one turn; None for a trace."""
    if plan.measured:
        return None
    if not plan.loops:
        return plan.makespan
    # The plan again, in its order, each span as early as its lanes and what it reads allow.
    free: dict[Lane, float] = {}
    there: dict[Replica, float] = {}
    done: dict[int, float] = {}
    before: dict[int, list[int]] = {}
    for first, then in plan.graph.after:
        before.setdefault(then, []).append(first)
    for span in plan.spans:
        command = span.command
        if isinstance(command, Free):
            continue
        reads = (command.src,) if isinstance(command, Copy) else command.reads
        start = max((free.get(lane, 0.0) for lane in span.lanes), default=0.0)
        start = max([start, *(there.get(r, 0.0) for r in reads)])
        if isinstance(command, Launch):
            start = max([start, *(done.get(t, 0.0) for t in before.get(command.task, ()))])
        finish = start + _one_turn(plan, span)
        for lane in span.lanes:
            free[lane] = max(free.get(lane, 0.0), finish)
        if isinstance(command, Launch):
            done[command.task] = finish
            there.update((r, finish) for r in command.writes)
        else:
            there[command.dst] = finish
    return max([*free.values(), *done.values()], default=0.0)


def _one_turn(plan: Timeline, span: Span) -> float:
    """Seconds of a span, of a loop those of its prologue, one turn and its epilogue."""
    body = plan.loops.get(span.command.task) if isinstance(span.command, Launch) else None
    if body is None or body.branch is not None:
        return span.finish - span.start
    return min(span.finish - span.start, turn_seconds(body))
