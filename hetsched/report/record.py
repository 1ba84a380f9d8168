"""A run, a plan or a machine as plain data: what `--format json` prints. Keys are stable; new ones may be added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hetsched.check.certificate import Certificate
from hetsched.graph.graph import If, Loop
from hetsched.machine import Device, Machine
from hetsched.placement.costs.figures import Figures, measure
from hetsched.placement.tradeoff import Point
from hetsched.report.summary import around_loops, device_use, transfers
from hetsched.timeline import Launch, Timeline

VERSION = 1


def run_record(
    plan: Timeline | None, trace: Timeline, wall_seconds: float, metrics: Mapping[str, float], outputs: Mapping[str, str | None], name: str = ""
) -> dict[str, Any]:
    """The object of `run --format json`.

    planned_seconds: the makespan of `plan`. lower_bound_seconds: by the costs assumed. devices: every opened device, idle ones too.
    transfers: `hidden_fraction` is null when nothing was copied. outputs: name -> the file it was saved to, null where it was not saved.
    """
    return {
        "version": VERSION,
        "status": "done",
        "name": name,
        "wall_seconds": wall_seconds,
        "measured_seconds": trace.makespan,
        "planned_seconds": plan.makespan if plan is not None else None,
        "plan_seconds": plan.plan_seconds if plan is not None else None,
        "lower_bound_seconds": plan.bound.seconds if plan is not None and plan.bound is not None else None,
        "policy": (plan or trace).policy,
        "objective": (plan or trace).objective,
        "devices": devices_record(trace),
        "transfers": transfers_record(trace, plan),
        "figures": figures_record(measure(trace)),
        "tasks": tasks_record(trace),
        "metrics": dict(metrics),
        "outputs": dict(outputs),
        "notes": list(dict.fromkeys([*(plan.notes if plan is not None else ()), *trace.notes])),
    }


def plan_record(plan: Timeline, file: str = "", name: str = "") -> dict[str, Any]:
    """The object of `plan --format json` for a pipeline."""
    return {
        "version": VERSION,
        "file": file,
        "name": name,
        "policy": plan.policy,
        "objective": plan.objective,
        "makespan": plan.makespan,
        "lower_bound": plan.bound.seconds if plan.bound is not None else None,
        "plan_seconds": plan.plan_seconds,
        "machine": plan.machine.name,
        "devices": devices_record(plan),
        "transfers": transfers_record(plan),
        "figures": figures_record(measure(plan)),
        "peak_bytes": dict(plan.peak),
        "memory": memory_record(plan),
        "tasks": tasks_record(plan, times=True),
        "notes": list(plan.notes),
    }


def memory_record(plan: Timeline) -> dict[str, dict[str, int | None]]:
    """Memory node -> its arena, the most bytes alive at once and its limit (null: unbounded)."""
    limits = {m.name: m.nbytes for m in plan.machine.memories}
    names = dict.fromkeys([*plan.arenas, *plan.peak])
    return {n: {"arena_bytes": plan.arenas.get(n, 0), "peak_bytes": plan.peak.get(n, 0), "limit_bytes": limits.get(n)} for n in names}


def certificate_record(certificate: Certificate) -> dict[str, Any]:
    """What has been proved of a plan: values of known spec, and of each memory node bytes alive at most, in the arena, beside it, and the limit."""
    nodes = {
        name: {"peak_bytes": n.peak, "arena_bytes": n.arena, "beside_bytes": n.beside, "limit_bytes": n.limit}
        for name, n in certificate.memory.items()
    }
    return {"arrays": certificate.arrays, "objects": certificate.objects, "evictions": certificate.evictions, "memory": nodes}


def figures_record(figures: Figures) -> dict[str, Any]:
    """Seconds, joules and price as plain data; null where not known, and `missing` says why. `estimated`: the goals that were not measured."""
    return {
        "seconds": figures.seconds,
        "latency_seconds": figures.latency_seconds,
        "joules": figures.joules,
        "price": figures.price,
        "devices": list(figures.devices),
        "estimated": sorted(figures.estimated),
        "missing": dict(figures.missing),
    }


def front_record(points: Sequence[Point], file: str = "", name: str = "") -> dict[str, Any]:
    """The object of `plan --pareto --format json`: the front of time, energy and price, the fastest plan first."""
    first = points[0].plan
    return {
        "version": VERSION,
        "file": file,
        "name": name,
        "policy": first.policy,
        "machine": first.machine.name,
        "lower_bound": first.bound.seconds if first.bound is not None else None,
        "plan_seconds": first.plan_seconds,
        "points": [{**figures_record(p.figures), "best": list(p.best), "tasks": _placed(p)} for p in points],
    }


def _placed(point: Point) -> dict[str, int]:
    """Device -> tasks that it runs, for the devices that run some."""
    return {name: use.tasks for name, use in device_use(point.plan).items() if use.tasks}


def devices_record(timeline: Timeline) -> dict[str, dict[str, Any]]:
    """Device id -> kind, seconds its lanes worked, number of tasks and of launches."""
    return {
        name: {"kind": use.kind, "busy_seconds": use.busy_seconds, "tasks": use.tasks, "launches": use.launches}
        for name, use in device_use(timeline).items()
    }


def transfers_record(timeline: Timeline, plan: Timeline | None = None) -> dict[str, Any]:
    """Copies, bytes, seconds and what of them was hidden behind compute.

    plan: that of a trace, for `around_loops`: copies and bytes before and after loops, which a trace does not time; left out where there are none.
    """
    t, (more, nbytes) = transfers(timeline), around_loops(plan, timeline)
    timed = {"copies": t.count, "bytes": t.nbytes, "seconds": t.seconds, "hidden_seconds": t.hidden_seconds, "hidden_fraction": t.hidden_fraction}
    return timed | ({"around_loops": {"copies": more, "bytes": nbytes}} if more else {})


def tasks_record(timeline: Timeline, times: bool = False, prefix: str = "") -> list[dict[str, Any]]:
    """Every task once with its op and device, the tasks of loops' bodies by `loop/task`. `times`: with start and finish of its (first) launch."""
    out: list[dict[str, Any]] = []
    seen: set[int] = set()
    for span in timeline.spans:
        command = span.command
        if not isinstance(command, Launch) or command.task in seen:
            continue
        seen.add(command.task)
        op = timeline.graph.task_ops[command.task]
        name = prefix + timeline.graph.task_names[command.task]
        body = timeline.loops.get(command.task)
        devices = list(dict.fromkeys(lane.owner for lane in span.lanes if lane.kind != "copy"))
        entry: dict[str, Any] = {"name": name, "op": "loop" if isinstance(op, Loop) else op.name, "device": "+".join(devices)}
        if isinstance(op, If):
            entry["op"] = "if"
            if body is not None and body.measured:
                entry["branch"] = body.prefix[:-1]
        elif isinstance(op, Loop):
            entry["turns"] = body.turns if body is not None else op.turns
            entry["period"] = body.period if body is not None else None
        if times:
            entry |= {"start": span.start, "finish": span.finish, "lanes": [str(lane) for lane in span.lanes]}
        out.append(entry)
        for inner in body.alternatives if body is not None else ():
            out += tasks_record(inner, times, f"{name}/{inner.prefix}")
    return out


def device_record(device: Device) -> dict[str, Any]:
    """A device as plain data."""
    return {
        "id": device.id,
        "kind": device.kind,
        "name": device.name,
        "hardware": device.hardware,
        "lanes": device.lanes,
        "io_lanes": device.io_lanes,
        "memory": device.memory,
        "languages": list(device.languages),
        "flops_per_second": dict(device.flops_per_second),
        "bytes_per_second": device.bytes_per_second,
        "cache_bytes": device.cache_nbytes,
        "caches": device.caches,
        "lane_cache_bytes": device.lane_cache_nbytes,
        "launch_seconds": device.launch_seconds,
        "replay_seconds": device.replay_seconds,
        "unified": device.unified,
        "busy_watts": device.busy_watts,
        "idle_watts": device.idle_watts,
        "always_on": device.always_on,
        "price_per_hour": device.price_per_hour,
    }


def machine_record(machine: Machine, notes: Sequence[str] = ()) -> dict[str, Any]:
    """A machine as plain data: devices, memory nodes, links, resources."""
    return {
        "version": VERSION,
        "name": machine.name,
        "devices": [device_record(d) for d in machine.devices],
        "memories": [{"name": m.name, "bytes": m.nbytes} for m in machine.memories],
        "links": [
            {"from": x.src, "to": x.dst, "latency_seconds": x.latency_seconds, "bytes_per_second": x.bytes_per_second, "engines": x.engines}
            for x in machine.links
        ],
        "resources": [{"name": r.name, "capacity": r.capacity} for r in machine.resources],
        "price_per_hour": machine.price_per_hour,
        "notes": list(notes),
    }
