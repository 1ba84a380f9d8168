"""What a timeline amounts to: where tasks ran, what was copied and how much of that was hidden, and the three lines told after a run."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from hetsched.graph.op import Op
from hetsched.machine import HOST
from hetsched.report.events import ALL_TURNS, Event, busy_seconds, events, merged, totals
from hetsched.report.text import bytes_text, percent_text, plural, seconds_text
from hetsched.timeline import Copy, Launch, Timeline

# Turns of a loop that are set out to find what part of its copies is hidden; a plan repeats itself, so more turns add nothing but time.
SAMPLED_TURNS = 200
# Bounds are rounded down by a little more than floating point may be off.
ROUNDING = 1e-7
MOST_NAMED = 3


@dataclass(frozen=True)
class Transfers:
    """What was copied. `seconds` and `hidden_seconds` are sums over copies; `hidden_fraction` is None where no copy took time."""

    count: int
    nbytes: int
    seconds: float
    hidden_seconds: float

    @property
    def hidden_fraction(self) -> float | None:
        return self.hidden_seconds / self.seconds if self.seconds > 0 else None


@dataclass(frozen=True)
class DeviceUse:
    """Seconds in which lanes of a device worked (a launch on two lanes counts twice) and launches it ran, loops by their bodies' tasks."""

    kind: str
    busy_seconds: float
    launches: int
    tasks: int


def hidden_seconds(copies: Sequence[Event], launches: Iterable[Event], node_of: Mapping[str, str]) -> float:
    """Sum over `copies` of the time in which the copy's non-host end computes (of two non-host ends: both).

    `node_of`: device id -> memory node. Exact: the launches of each memory node are merged into disjoint intervals and every copy is cut with them.
    """
    spans: dict[str, list[tuple[float, float]]] = {}
    for event in launches:
        for node in {node_of[lane.owner] for lane in event.lanes if lane.kind == "compute" and lane.owner in node_of}:
            spans.setdefault(node, []).append((event.start, event.finish))
    computing = {node: merged(found) for node, found in spans.items()}
    total = 0.0
    for event in copies:
        command = event.span.command
        if not isinstance(command, Copy):
            continue
        ends = {command.src.node, command.dst.node} - {HOST}
        inside = [(event.start, event.finish)]
        for node in ends:
            inside = [part for a, b in inside for part in _cut(computing.get(node, []), a, b)]
        total += sum(b - a for a, b in inside) if ends else 0.0
    return total


def _cut(intervals: list[tuple[float, float]], start: float, finish: float) -> list[tuple[float, float]]:
    """The parts of disjoint ascending `intervals` inside [start, finish]."""
    out = []
    i = max(bisect_right(intervals, (start, float("inf"))) - 1, 0)
    while i < len(intervals) and intervals[i][0] < finish:
        a, b = max(intervals[i][0], start), min(intervals[i][1], finish)
        if b > a:
            out.append((a, b))
        i += 1
    return out


def transfers(timeline: Timeline) -> Transfers:
    """What was copied, every turn of every loop counted.

    Count, bytes and seconds are those of the whole run. The hidden part is exact for straight timelines and up to 200 turns of a loop; of longer
    loops it is that of the turns set out, in proportion.
    """
    count, nbytes = 0.0, 0.0
    by_loop: dict[str, float] = {}
    for total in totals(timeline):
        if isinstance(total.span.command, Copy):
            count += total.times
            nbytes += total.times * int(total.timeline.graph.value_nbytes[total.span.command.value])
            by_loop[total.loop] = by_loop.get(total.loop, 0.0) + total.seconds
    seconds = sum(by_loop.values())
    if seconds <= 0:
        return Transfers(round(count), round(nbytes), 0.0, 0.0)
    drawn = events(timeline, SAMPLED_TURNS if not timeline.measured else ALL_TURNS)
    node_of = {d.id: d.memory for d in timeline.machine.devices}
    launches = [e for e in drawn if e.kind == "launch"]
    shown: dict[str, list[Event]] = {}
    for event in drawn:
        if event.kind == "copy":
            shown.setdefault(event.loop, []).append(event)
    hidden = 0.0
    for loop, copies in shown.items():
        sampled = sum(e.seconds for e in copies)
        hidden += hidden_seconds(copies, launches, node_of) * (by_loop[loop] / sampled) if sampled > 0 else 0.0
    links = {x.id for x in timeline.machine.links}
    known = sum(busy for owner, busy in timeline.totals.items() if owner in links)
    if known > 0:
        return Transfers(round(count), round(nbytes), known, min(hidden * known / seconds, known))
    return Transfers(round(count), round(nbytes), seconds, min(hidden, seconds))


def around_loops(plan: Timeline | None, trace: Timeline) -> tuple[int, int]:
    """(copies, bytes) before the first and after the last turns of the loops that `trace` shows, which traces do not time: as `plan` has them."""
    count, nbytes = 0.0, 0.0
    for total in totals(plan) if plan is not None and plan.loops else ():
        body, command = total.timeline, total.span.command
        if isinstance(command, Copy) and any(s is total.span for s in (*body.prologue, *body.epilogue)):
            count += total.times
            nbytes += total.times * int(body.graph.value_nbytes[command.value])
    began = {s.command.task for s in trace.spans if isinstance(s.command, Launch)}
    return (round(count), round(nbytes)) if plan is not None and set(plan.loops) <= began else (0, 0)


def device_use(timeline: Timeline) -> dict[str, DeviceUse]:
    """Every device of the machine, idle ones too, in the machine's order."""
    busy: dict[str, float] = dict(timeline.totals)
    if not busy:
        for lane, seconds in busy_seconds(timeline).items():
            busy[lane.owner] = busy.get(lane.owner, 0.0) + seconds
    launches: dict[str, float] = {}
    tasks: dict[str, set[tuple[int, int]]] = {}
    for owner, span, _, n, _ in totals(timeline):
        command = span.command
        if isinstance(command, Launch) and command.task not in owner.loops:
            for device in {lane.owner for lane in span.lanes}:
                launches[device] = launches.get(device, 0) + n
                tasks.setdefault(device, set()).add((id(owner), command.task))
    return {d.id: DeviceUse(d.kind, busy.get(d.id, 0.0), round(launches.get(d.id, 0)), len(tasks.get(d.id, ()))) for d in timeline.machine.devices}


def where_line(trace: Timeline) -> str:
    """`ran: cpu 12 tasks (83 % of it busy); nothing fell back`."""
    used = device_use(trace)
    parts = []
    for name, use in used.items():
        lanes = trace.machine.device(name).lanes
        share = f", {percent_text(min(use.busy_seconds / (trace.makespan * lanes), 1.0))} busy" if trace.makespan > 0 and use.tasks else ""
        parts.append(f"{name} {plural(use.tasks, 'task')} in {plural(use.launches, 'launch', 'launches')}{share}" if use.tasks else f"{name} idle")
    moved = fallbacks(trace)
    fell = (
        f"{plural(len(moved), 'task')} fell back: {', '.join(moved[:MOST_NAMED])}{' ...' if len(moved) > MOST_NAMED else ''}"
        if moved
        else "nothing fell back"
    )
    return "; ".join([f"ran: {', '.join(parts)}", fell, *trace.notes])


def fallbacks(timeline: Timeline, prefix: str = "") -> list[str]:
    """`task to device` for each task that did not run on the device it prefers (the first of its `device:` list)."""
    out: list[str] = []
    seen: set[int] = set()
    for span in timeline.spans:
        command = span.command
        if not isinstance(command, Launch) or command.task in seen:
            continue
        seen.add(command.task)
        name = prefix + timeline.graph.task_names[command.task]
        if command.task in timeline.loops:
            for body in timeline.loops[command.task].alternatives:
                out += fallbacks(body, f"{name}/{body.prefix}")
            continue
        op, where = timeline.graph.task_ops[command.task], timeline.graph.where.get(command.task)
        if isinstance(op, Op) and op.view:
            continue
        devices = dict.fromkeys(lane.owner for lane in span.lanes)
        if where is not None and where.allow and not all(timeline.machine.device(d).matches(where.allow[0]) for d in devices):
            out.append(f"{name} to {'+'.join(devices)}")
    return out


def time_line(plan: Timeline | None, trace: Timeline) -> str:
    """`time: 1.31 s measured, 1.2 s planned (measured is 1.09 x the plan); best possible at least 1.1 s`."""
    text = f"time: {seconds_text(trace.makespan)} measured"
    if plan is None:
        return text
    text += f", {seconds_text(plan.makespan)} planned"
    if plan.makespan > 0:
        text += f" (measured is {trace.makespan / plan.makespan:.3g} x the plan)"
    return text + (f"; by the costs assumed no plan is below {seconds_text(plan.bound.seconds)}" if plan.bound is not None else "")


def transfer_line(plan: Timeline | None, trace: Timeline) -> str:
    """`transfers: 12 copies, 3.1 MiB in 4.2 ms, 88 % of it hidden behind compute; 2 more around loops, 4 MiB, not timed`."""
    t, (more, nbytes) = transfers(trace), around_loops(plan, trace)
    around = f"{more} more around loops, {bytes_text(nbytes)}, not timed"
    if not t.count:
        return f"transfers: {around.replace(' more', '')}" if more else "transfers: none"
    text = f"transfers: {plural(t.count, 'copy', 'copies')}, {bytes_text(t.nbytes)} in {seconds_text(t.seconds)}"
    text += f", {percent_text(t.hidden_fraction)} of it hidden behind compute" if t.hidden_fraction is not None else ""
    return f"{text}; {around}" if more else text


def three_lines(plan: Timeline | None, trace: Timeline) -> list[str]:
    """The three lines after a run: where tasks ran and whether any fell back, planned against measured, transfers and their hidden share."""
    return [where_line(trace), time_line(plan, trace), transfer_line(plan, trace)]


def bound_line(plan: Timeline) -> str:
    """`makespan 1.2 s; lower bound 1.1 s (path): at most 9 % above the best possible`."""
    text = f"makespan {seconds_text(plan.makespan)}"
    if plan.bound is None:
        return text
    return f"{text}; lower bound {seconds_text(plan.bound.seconds)} ({plan.bound.kind}): {above_text(plan.makespan, plan.bound.seconds)}"


def above_text(seconds: float, bound: float) -> str:
    """How far `seconds` is above a lower bound, in words."""
    if bound <= 0:
        return "how far above the best possible is not known"
    above = seconds / bound - 1
    if above <= ROUNDING:
        return "the best possible"
    if above < 0.01:
        return "less than 1 % above the best possible"
    # What is proved is rounded up: a plan 5.2 % above the bound is not shown to be at most 5 % above the best.
    return f"at most {ceil(100 * (above - ROUNDING)):,} % above the best possible"
