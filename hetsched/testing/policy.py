"""check_policy: the whole test of a policy, for those who write their own. Random graphs on random machines, and random costed graphs.

A policy is a function of a draft that books every task once. On each problem the plan must pass `check`, be no shorter than its lower bound, keep
`same_as`, and come out the same when made again.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from hetsched.check import problems as problems_of_plan
from hetsched.errors import InternalError
from hetsched.graph.graph import Graph, Value, Where
from hetsched.graph.op import Attribute, Op, Work
from hetsched.graph.spec import AnySpec, Opaque, Spec
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode, Resource
from hetsched.placement.bounds import check_bound, lower_bound
from hetsched.placement.costed.planning import CostedDraft, costed_problem
from hetsched.placement.costs import RooflineCosts
from hetsched.placement.draft import GraphDraft, Policy
from hetsched.placement.problem import Problem, problem_of

# Kernels ------------------------------------------------------------------------------------------------------------------------


def _work(inputs: Sequence[AnySpec], outputs: Sequence[AnySpec], attributes: Mapping[str, Any]) -> Work:
    return Work(attributes.get("flops", 1e4), float(sum(s.nbytes for s in inputs)), float(sum(s.nbytes for s in outputs)))


def _mix(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, attributes: Mapping[str, Any]) -> None:
    """Every output is the sum of the first input and one number of each other input, plus its position."""
    shift = sum(float(x.reshape(-1)[0]) for x in inputs[1:] if x.size)
    for i, out in enumerate(outputs):
        xp.add(inputs[0].reshape(-1)[: out.size].reshape(out.shape), shift + i, out=out)


def _reshape(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, attributes: Mapping[str, Any]) -> None:
    outputs[0][...] = inputs[0].reshape(outputs[0].shape)


def _fill(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, attributes: Mapping[str, Any]) -> None:
    outputs[0][...] = len(inputs[0])


def _hold(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Mapping[str, Any]) -> None:
    outputs[0] = [float(x.reshape(-1)[0]) for x in inputs]


_FLOPS = {"flops": Attribute(float, 1e4, "work of a launch")}
_ROWS = {**_FLOPS, "rows": Attribute(int, 1, "rows of each output", low=1)}


def _flat(inputs: Sequence[AnySpec], attributes: Mapping[str, Any]) -> list[AnySpec]:
    first = inputs[0]
    assert isinstance(first, Spec)
    return [Spec((first.size,), first.dtype)]


mix = Op("test.mix", ("values*",), ("out",), lambda s, a: [s[0]], _work, {"array": _mix}, attributes=_FLOPS, inplace=((0, 0),), wide=True)
scratch = Op(
    "test.scratch", ("values*",), ("out",), lambda s, a: [s[0]], _work, {"array": _mix}, attributes=_FLOPS,
    workspace=lambda ins, outs, a: 2 * outs[0].nbytes, wide=True,
)  # fmt: skip
split = Op("test.split", ("values*",), ("low", "high"), lambda s, a: [s[0], s[0]], _work, {"array": _mix}, attributes=_FLOPS)
flat = Op("test.flat", ("x",), ("out",), _flat, lambda s, o, a: Work(0, 0, 0), {"array": _reshape}, view=True)
hold = Op("test.hold", ("values*",), ("out",), lambda s, a: [Opaque("list", 100)], _work, {"host": _hold}, attributes=_FLOPS)
unpack = Op("test.unpack", ("x",), ("out",), lambda s, a: [Spec((a["rows"],))], _work, {"host": _fill}, attributes=_ROWS, waits=True)
gpu_only = Op("test.gpu_only", ("values*",), ("out",), lambda s, a: [s[0]], _work, {"accelerator": _mix}, attributes=_FLOPS)

# Problems -----------------------------------------------------------------------------------------------------------------------


def stress_machine(rng: random.Random) -> Machine:
    """A CPU and up to three more devices in one to three memory nodes; queueing and contention-free links; sometimes shared cores."""
    lanes = rng.randint(1, 4)
    cores = rng.random() < 0.5
    uses = {"cores": 1.0} if cores else {}
    cpu = Device(
        "cpu",
        "cpu",
        lanes,
        io_lanes=rng.randint(0, 2),
        languages=("array", "host"),
        flops_per_second={"float32": 1e9},
        bytes_per_second=1e9,
        launch_seconds=1e-6,
        crossing_seconds=rng.choice((0.0, 5e-6)),
        shares_lanes=True,
        widths=(1, lanes) if rng.random() < 0.5 else (1,),
        uses=uses,
    )
    devices, memories = [cpu], [MemoryNode(HOST)]
    for i in range(rng.randint(0, 3)):
        shared = len(memories) > 1 and rng.random() < 0.3
        if not shared:
            memories.append(MemoryNode(f"gpu:{i}"))
        devices.append(
            Device(
                f"gpu:{i}",
                "gpu",
                rng.randint(1, 2),
                memory=memories[-1].name,
                hardware="gpu",
                languages=("accelerator", "array"),
                flops_per_second={"float32": rng.choice((2e9, 1e10))},
                bytes_per_second=1e10,
                launch_seconds=rng.choice((0.0, 5e-6)),
                uses=uses if rng.random() < 0.3 else {},
            )
        )
    links = [
        Link(a.name, b.name, rng.choice((0.0, 2e-6)), rng.choice((1e8, 1e9)), rng.choice((0, 1, 1, 2)))
        for a in memories
        for b in memories
        if a is not b
    ]
    resources = (Resource("cores", float(max(1, lanes - rng.randint(0, 1)))),) if cores else ()
    return Machine(tuple(devices), tuple(links), tuple(memories), resources)


def stress_graph(rng: random.Random, n: int, machine: Machine) -> Graph:
    """`n` tasks with views, scratch, outputs written in place, host objects, files, two outputs, constraints and order-only edges."""
    b = Graph.build("random")
    arrays: list[Value] = [b.input(f"in{i}", (rng.randint(1, 64), rng.randint(1, 8))) for i in range(rng.randint(1, 3))]
    arrays.append(b.constant(np.ones((rng.randint(1, 40), 3), np.float32)))
    objects: list[Value] = []
    has_gpu = any(d.hardware == "gpu" for d in machine.devices)
    for i in range(n):
        # Mostly recent values, so that graphs are deep as well as wide.
        some = [arrays[max(0, len(arrays) - 1 - int(rng.expovariate(0.25)))] for _ in range(rng.randint(1, 3))]
        name, flops = f"t{i}", 10 ** rng.uniform(3, 6)
        where = Where((rng.choice(("cpu", "gpu")), "any")) if rng.random() < 0.1 else None
        after = [rng.choice(arrays)] if rng.random() < 0.1 else []
        kind = rng.random()
        if kind < 0.15:
            arrays.append(b.op(flat, some[0], name=name))
        elif kind < 0.25:
            arrays.append(b.op(scratch, *some, name=name, flops=flops, where=where, after=after))
        elif kind < 0.35:
            arrays += b.op(split, *some, name=name, flops=flops, where=where, after=after)
        elif kind < 0.4:
            objects.append(b.op(hold, *some, name=name, flops=flops))
        elif kind < 0.45 and objects:
            arrays.append(b.op(unpack, rng.choice(objects), name=name, rows=rng.randint(1, 64)))
        elif kind < 0.5 and has_gpu:
            arrays.append(b.op(gpu_only, *some, name=name, flops=flops))
        else:
            if where is None and i and rng.random() < 0.05:
                mate = f"t{rng.randrange(i)}"
                where = Where(same_as=mate) if b.task_ops[int(mate[1:])] in (mix, scratch, split) else None
            arrays.append(b.op(mix, *some, name=name, flops=flops, where=where, after=after))
    for i, value in enumerate({v.id: v for v in rng.sample(arrays, min(3, len(arrays)))}.values()):
        b.output(value, f"out{i}")
    if objects:
        b.output(objects[-1], "object")
    return b.freeze()


def random_problem(seed: int, n: int = 30) -> Problem:
    """A random graph on a random machine."""
    rng = random.Random(seed)
    machine = stress_machine(rng)
    graph = stress_graph(rng, n, machine)
    return problem_of(graph, machine, RooflineCosts(machine))


def random_costed(seed: int, n: int = 30) -> dict[str, Any]:
    """A random costed graph as its file holds it; tasks are not numbered in a topological order."""
    rng = random.Random(seed)
    n_devices, n_nodes = rng.randint(1, 5), rng.randint(1, 3)
    memory = [rng.randrange(n_nodes) for _ in range(n_devices)]
    rows: list[list[float | None]] = [[None if rng.random() < 0.2 else round(rng.uniform(0, 10), 3) for _ in range(n_devices)] for _ in range(n)]
    for row in rows:
        row[rng.randrange(n_devices)] = round(rng.uniform(0.1, 10), 3)
    pairs = [(a, b) for a in range(n_nodes) for b in range(n_nodes) if a != b]
    number = rng.sample(range(n), n)
    edges = [[number[u], number[v], float(rng.randint(0, 1000))] for v in range(n) for u in rng.sample(range(v), min(v, rng.randint(0, 3)))]
    return {
        "format": "placement-bench/1",
        "mem_nodes": [f"m{i}" for i in range(n_nodes)],
        "devices": [{"name": f"d{i}", "kind": "d", "lanes": rng.randint(1, 3), "mem": m} for i, m in enumerate(memory)],
        "links": [{"src": a, "dst": b, "latency": rng.uniform(0, 1), "bandwidth": rng.uniform(50, 500)} for a, b in pairs],
        "durations": rows,
        "edges": edges,
    }


# The check ----------------------------------------------------------------------------------------------------------------------


def check_policy(policy: Policy, cases: int = 20, *, seed: int = 0, n: int = 30) -> None:
    """Prove `policy` on `cases` random graphs and as many costed graphs, of up to `n` tasks.

    Raises `InternalError` with the problem and all that is wrong.
    """
    for case in range(seed, seed + cases):
        size = random.Random(case).randint(0, n)
        found = _graph_faults(policy, random_problem(case, size))
        if found:
            raise InternalError("\n".join([f"policy fails on random_problem({case}, {size}):", *found]))
        document = random_costed(case, size)
        found = costed_faults(policy, document)
        if found:
            raise InternalError("\n".join([f"policy fails on random_costed({case}, {size}):", *found]))


def _graph_faults(policy: Policy, problem: Problem) -> list[str]:
    drafts = [GraphDraft(problem), GraphDraft(problem)]
    for draft in drafts:
        policy(draft)
    missing = [problem.name(t) for t, c in enumerate(drafts[0].choice_of) if c < 0]
    if missing:
        return [f"not booked: {', '.join(missing)}"]
    plans = [draft.plan() for draft in drafts]
    bound = lower_bound(problem)
    check_bound(problem, bound)
    found = problems_of_plan(replace(plans[0], bound=bound))
    if plans[0].spans != plans[1].spans or plans[0].offsets != plans[1].offsets:
        found.append("the same problem gave two different plans")
    if plans[0].makespan < bound.seconds:
        found.append(f"the makespan {plans[0].makespan:.9g} s is below the bound {bound.seconds:.9g} s ({bound.kind})")
    return found


def costed_faults(policy: Policy, document: Mapping[str, Any]) -> list[str]:
    """Every rule of a costed graph that the plan of `policy` breaks."""
    problem = costed_problem(document)
    draft = CostedDraft(problem)
    policy(draft)
    makespan, rows = draft.finish(), draft.rows()
    devices = document["devices"]
    found = []
    link = {(x["src"], x["dst"]): x for x in document["links"]}
    by_lane: dict[tuple[int, int], list[tuple[float, float, int]]] = {}
    slack = 1e-9 * (1 + makespan)
    for t, (device, start, finish, lane) in enumerate(rows):
        seconds = document["durations"][t][device]
        if seconds is None or abs(finish - start - seconds) > slack or start < 0:
            found.append(f"task {t} is on device {device} from {start} to {finish}; it takes {seconds}")
        if not 0 <= lane < devices[device]["lanes"]:
            found.append(f"task {t} is on lane {lane} of {devices[device]['lanes']}")
        by_lane.setdefault((device, lane), []).append((start, finish, t))
    for u, v, nbytes in document["edges"]:
        a, b = devices[rows[u][0]]["mem"], devices[rows[v][0]]["mem"]
        copy = 0.0 if a == b else link[a, b]["latency"] + nbytes / link[a, b]["bandwidth"]
        if rows[v][1] < rows[u][2] + copy - slack:
            found.append(f"task {v} starts at {rows[v][1]}, before its input of task {u} arrives at {rows[u][2] + copy}")
    for lane_rows in by_lane.values():
        solid = sorted(row for row in lane_rows if row[1] > row[0])
        found += [f"tasks {a[2]} and {b[2]} overlap" for a, b in pairwise(solid) if b[0] < a[1] - slack]
    bound = lower_bound(problem)
    check_bound(problem, bound)
    if makespan < bound.seconds:
        found.append(f"the makespan {makespan:.9g} s is below the bound {bound.seconds:.9g} s ({bound.kind})")
    return found
