"""Periods of loops: plans of loop bodies beside what is known of them, and the periods that runs on emulated devices measure beside the planned ones.

usage: periods.py [FOLDER...] [--emulated] [--seeds 0,1,2] [--save FILE]

FOLDER holds instances/*.json.gz (period-bench/1) and, if known, results/reference.csv (name, bound1, HEFT and others). Printed: geometric mean and
worst of period / bound1 (where that is not known, of period / the plan's own lower bound), by family too; seconds of planning. Goals: mean 1.03,
worst 1.20, at most 1.005 on train1 and input; 0.15 s median, 1.5 s worst.

--emulated: digits_mlp, digits_cnn and a training loop whose decoding is most of the work, on a described machine with two emulated devices (the
second half as fast), whose launches take milliseconds, so that the time of Python counts for little. Printed: the measured period (the middle half of
the turns) over the planned one, and both over that of HEFT on one turn, repeated: turns one after another, and as close as its own order lets them
follow. Goals: within 10 % of the plan, below HEFT repeated.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
from pathlib import Path

import numpy as np

import hetsched as hs
from hetsched.graph.graph import Graph, Loop
from hetsched.machine import HOST, Device, Link, MemoryNode
from hetsched.pipeline.build import load
from hetsched.placement.costed.planning import CostedDraft, costed_problem
from hetsched.placement.costs import RooflineCosts
from hetsched.placement.loops.body import Body
from hetsched.placement.loops.model import device_model, durations_of
from hetsched.placement.periods import plan_body_file
from hetsched.placement.periods.modulo import tighten
from hetsched.placement.periods.problem import NANOSECONDS, Core, Ops
from hetsched.placement.policies import heft
from hetsched.placement.problem import problem_of

PIPELINES = Path(__file__).resolve().parents[1] / "pipelines"
LAUNCH = 8e-3
TURNS, N = 120, 4096


# Bodies -------------------------------------------------------------------------------------------------------------------------


def bodies(folder: Path, seeds):
    files = sorted((folder / "instances").glob("*.json.gz"))
    reference = folder / "results" / "reference.csv"
    known = {r["name"]: float(r["bound1"]) for r in csv.DictReader(reference.open())} if reference.exists() else {}
    rows = []
    for seed in seeds:
        ratios, by_family, seconds = {}, {}, []
        for file in files:
            plan = plan_body_file(file, seed=seed)
            if plan["period"] < plan["lower_bound"] * (1 - 1e-9):
                raise SystemExit(f"{file}: the lower bound {plan['lower_bound']} is above the period {plan['period']}")
            ratio = plan["period"] / known.get(plan["name"], plan["lower_bound"])
            ratios[plan["name"]] = ratio
            by_family.setdefault(plan["name"].split("-")[1], []).append(ratio)
            seconds.append(plan["seconds"])
        worst = max(ratios, key=ratios.get)
        families = ", ".join(f"{family} {mean(values):.4f}" for family, values in sorted(by_family.items()))
        what = "bound1" if known else "own lower bound"
        print(f"{folder.name}, seed {seed}: {len(ratios)} bodies, period / {what}: mean {mean(ratios.values()):.4f}", end=", ")
        print(f"worst {ratios[worst]:.3f} ({worst})")
        print(f"  {families}; planning: median {statistics.median(seconds):.3f} s, worst {max(seconds):.2f} s", flush=True)
        rows.append({"folder": folder.name, "seed": seed, "against": what, "ratios": ratios, "median_seconds": statistics.median(seconds)})
    return rows


def mean(values):
    return math.exp(statistics.fmean(map(math.log, values)))


# Runs ---------------------------------------------------------------------------------------------------------------------------


def machine() -> hs.Machine:
    """Two emulated devices whose launches take milliseconds; the host is described as so slow that it gets only what must be there."""
    cpu = Device(
        "cpu", "cpu", lanes=1, languages=("host", "array"), shares_lanes=True, launch_seconds=10 * LAUNCH,
        flops_per_second={"float32": 1e10, "float64": 1e10}, bytes_per_second=5e9,
    )  # fmt: skip
    devices, links = [cpu], []
    for i, slower in enumerate((1, 2)):
        name = f"gpu:{i}"
        speed = 1e10 / slower
        figures = {"launch_seconds": LAUNCH * slower, "flops_per_second": {"float32": speed, "float64": speed}, "bytes_per_second": speed / 10}
        devices.append(Device(name, "emulated", memory=name, hardware="gpu", **figures))
        links += [Link(HOST, name, 2e-4, 1e9), Link(name, HOST, 2e-4, 1e9), Link(name, f"gpu:{1 - i}", 4e-4, 5e8)]
    return hs.Machine(tuple(devices), tuple(links), (MemoryNode(HOST), *(MemoryNode(f"gpu:{i}") for i in range(2))))


def decode_heavy() -> hs.Graph:
    """Each turn decodes an item in eight steps, and takes three steps of training with it, which wait for those of the turn before."""
    body = Graph.build()
    x, w = body.input("x", (N,)), body.input("w", (N,))
    for _ in range(4):
        x = body.op("tensor.neg", body.op("tensor.neg", x))
    body.output(body.op("tensor.add", body.op("tensor.neg", body.op("tensor.mul", w, x)), w), "next")
    b = Graph.build()
    (last,) = b.loop(Loop(body.freeze(), TURNS, sequences=("x",), carried=(("w", "next"),)), b.input("xs", (TURNS, N)), b.input("first", (N,)))
    return b.output(last, "w").freeze()


def measured_period_of(body, turns):
    """Seconds a turn: between the ends of the turns at a quarter and at three quarters of the run."""
    ends = {}
    for span in body.launches:
        ends[span.command.turn] = max(ends.get(span.command.turn, 0.0), span.finish)
    low, high = (min(ends, key=lambda turn, at=at: abs(turn - at)) for at in (turns // 4, 3 * turns // 4))
    return (ends[high] - ends[low]) / (high - low)


def heft_repeated(loop: Loop, where: hs.Machine):
    """(period of turns one after another, period of the same order with turns as close as it lets them follow) of HEFT on one turn."""
    costs, body = RooflineCosts(where), Body(loop)
    problem = problem_of(loop.body, where, costs)
    model = device_model(body, problem, durations_of(body, problem, where, None), costs, where).problem
    edges = [[e.source, e.reader, float(model.nbytes[e.value]) if e.value >= 0 else 0.0] for e in model.edges if e.distance == 0]
    links = [{"src": x.src, "dst": x.dst, "latency": x.latency, "bandwidth": x.bandwidth} for x in model.links]
    document = {
        "format": "placement-bench/1",
        "mem_nodes": [f"m{i}" for i in range(model.nodes)],
        "devices": [{"name": f"d{i}", "lanes": lanes, "mem": model.memory[i]} for i, lanes in enumerate(model.lanes)],
        "links": links,
        "durations": [list(row) for row in model.durations],
        "edges": [[u, v, b] for u, v, b in edges if u >= 0],
    }
    draft = CostedDraft(costed_problem(document))
    heft.policy(draft)
    core = Core(model)
    ops = Ops(core, draft.choice_of)
    start = [int(s * NANOSECONDS) for s in draft.start_of]
    start += [int(draft.finish_of[model.producer[w]] * NANOSECONDS) if model.producer[w] >= 0 else 0 for w, _ in ops.copies]
    makespan = draft.finish()
    try:
        overlapped, _ = tighten(ops, start, max(int(makespan * NANOSECONDS) * 2, 1))
    except ValueError:  # HEFT's plan knows no queues of copies: its order of them need not be one
        return makespan, makespan
    return makespan, overlapped / NANOSECONDS


def emulated():
    where, rows = machine(), []
    xs = np.random.default_rng(0).normal(size=(TURNS, N)).astype(np.float32)
    cases = {"decode-heavy": (decode_heavy(), {"xs": xs, "first": np.zeros(N, np.float32)})}
    for name, batch in (("digits_mlp", "64"), ("digits_cnn", "96")):
        cases[name] = (load(PIPELINES / f"{name}.yaml", {"epochs": "1", "batch": batch}).graph, {})
    for name, (graph, inputs) in cases.items():
        plan = hs.plan(graph, where)
        body = max(plan.loops.values(), key=lambda b: b.turns)
        result = hs.run(plan, inputs)
        loop = body.loop
        trace = max(result.trace.loops.values(), key=lambda b: b.turns)
        measured = measured_period_of(trace, body.turns)
        one, overlapped = heft_repeated(loop, where)
        row = {"case": name, "turns": body.turns, "planned": body.period, "measured": measured}
        rows.append(row | {"heft_one_by_one": one, "heft_overlapped": overlapped})
        print(
            f"{name:<13} {body.turns} turns: planned {1e3 * body.period:.2f} ms, measured {1e3 * measured:.2f} ({measured / body.period:.3f} x); "
            f"HEFT repeated: one by one {1e3 * one:.2f} ms ({measured / one:.3f} x of it), "
            f"overlapped {1e3 * overlapped:.2f} ({measured / overlapped:.3f} x)",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--emulated", action="store_true")
    parser.add_argument("--seeds", default="0", help="of the search, with commas between (the command takes 0)")
    parser.add_argument("--save", type=Path, metavar="FILE")
    args = parser.parse_args()
    rows = [row for folder in args.folders for row in bodies(folder, [int(s) for s in args.seeds.split(",")])]
    if args.emulated:
        rows += emulated()
    if args.save:
        args.save.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
