"""How long planning takes: HEFT and `auto` on random layered graphs of 100 to 100,000 tasks on 16 unlike devices; `hetsched.plan` on a whole graph.

usage: planning.py [--least N] [--most N] [--graphs N] [--bodies] [--memory [SHARE ...] [--beside FOLDER]] [--save FILE]

"cold": the wall time of a process, `hetsched plan FILE --policy heft`, less that of one with `round_robin` on the same file, so that reading and
starting do not count; both in an empty cache, so that the compiler's first build (printed) is in neither. Because `round_robin` books tasks too,
"inside" tells the planning time as the process itself took it, the build and the lower bound included. The other times are CPU time, which on a
machine with other work is what wall time is on a quiet one: planning is one thread. "warm": the policy alone, in this process, the median of 5.
"auto / heft": medians of 5 pairs taken in turn. "plain": machine code switched off. Beside them, HEFT elsewhere: SAGA 2.1.0, plain Python lists and
numba, as told in the README of the placement benchmark (another machine: for the order of magnitude).

--bodies: only the bodies of loops of 118 to 686 tasks (training steps of deep models; products of a matrix by tiles) on the described laptop and
workstation: CPU seconds of planning, once the machine code is there, and the period over its lower bound. Goal: 2 s at 686 tasks.

--memory: only graphs of 3,000 and 10,000 tasks (those of outofcore.py, grown; products of matrices of random shapes) on a modelled accelerator
that has these shares of the memory that they would take (0.15, 0.25 and 0.5): CPU seconds of planning, the makespan over that without a limit, and
copies. --beside: the same by the hetsched in that folder (an earlier one), in turn. Goal: 1 s at 3,000 tasks, and no more a task at 10,000.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import outofcore

import hetsched as hs
from hetsched.graph.graph import Loop
from hetsched.machine.described import machine_named
from hetsched.pipeline.build import load
from hetsched.placement import native
from hetsched.placement.costed.planning import CostedDraft, read_costed
from hetsched.placement.costs import RooflineCosts
from hetsched.placement.loops import plan_loop
from hetsched.placement.policies import find
from hetsched.quiet import no_garbage_collection
from hetsched.timeline import Copy

DEVICES = 16
SIZES = (100, 300, 1_000, 3_000, 10_000, 100_000)
ELSEWHERE = {  # microseconds a task
    1_000: "SAGA 950, lists 40, numba warm 0.9",
    10_000: "SAGA 4600, lists 56, numba warm 1.4",
    100_000: "lists 35, numba warm 1.1",
}
GOALS = "heft at most 30 us cold without machine code at 10,000; at 100,000 at most 40 cold and 4 warm; auto at most 3 x heft from 100 to 10,000"


def document(n: int, seed: int = 0) -> dict[str, object]:
    """A layered graph of n tasks, up to three predecessors each, whose durations differ from device to device as in the HEFT paper."""
    dice = random.Random(f"{n}/{seed}")
    width = max(4, int(n**0.5))
    edges = []
    for t in range(width, n):
        low = (t // width - 1) * width
        edges += [[u, t, round(dice.lognormvariate(0, 0.7), 4)] for u in dice.sample(range(low, low + width), dice.randint(1, 3))]
    rows = []
    for _ in range(n):
        work = dice.lognormvariate(0, 0.7)
        rows.append([round(work * dice.uniform(0.25, 1.75), 4) for _ in range(DEVICES)])
    pairs = [(a, b) for a in range(DEVICES) for b in range(DEVICES) if a != b]
    return {
        "format": "placement-bench/1",
        "mem_nodes": [f"m{d}" for d in range(DEVICES)],
        "devices": [{"name": f"d{d}", "kind": "any", "lanes": 1, "mem": d} for d in range(DEVICES)],
        "links": [{"src": a, "dst": b, "latency": 0.05, "bandwidth": round(dice.uniform(0.5, 1.5), 4)} for a, b in pairs],
        "durations": rows,
        "edges": edges,
    }


def warm(problem, *names, repeat=5):
    """policy -> median seconds, the policies taken in turn; each time as if nothing were known of the problem."""
    seconds = {name: [] for name in names}
    for _ in range(repeat):
        for name in names:
            fresh = dataclasses.replace(problem)
            with no_garbage_collection():
                started = time.process_time()
                find(name)(CostedDraft(fresh))
                seconds[name].append(time.process_time() - started)
    return {name: statistics.median(found) for name, found in seconds.items()}


def cold(file, policy, cache, compiler):
    """(wall seconds of a process, seconds of planning as it tells them)."""
    environment = {**os.environ, "XDG_CACHE_HOME": cache, "CC": os.environ.get("CC", "cc") if compiler else "no-such-compiler"}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "hetsched", "plan", str(file), "--policy", policy, "--format", "jsonl"],
        check=True, stdout=subprocess.PIPE, env=environment,
    )  # fmt: skip
    return time.perf_counter() - started, json.loads(done.stdout)["plan_seconds"]


def cold_above_round_robin(file, compiler, repeat):
    """(wall seconds of `heft` above `round_robin`, seconds of planning inside, the compiler's build with it), each in an empty cache."""
    above, inside = [], []
    for _ in range(repeat):
        with tempfile.TemporaryDirectory() as cache:
            base = cold(file, "round_robin", cache, compiler)
        with tempfile.TemporaryDirectory() as cache:
            found = cold(file, "heft", cache, compiler)
        # Both built the same code, the one as the other: in the difference it is not there.
        above.append(found[0] - base[0])
        inside.append(found[1])
    return statistics.median(above), statistics.median(inside)


def whole_graph(n):
    """Seconds of building and of planning a graph of n ops on a described workstation, copies, offsets and reuse edges included."""
    dice = random.Random(n)
    started = time.perf_counter()
    builder = hs.Graph.build()
    values = [builder.input("x", (64, 64))]
    for _ in range(n):
        a, b = values[-dice.randint(1, min(64, len(values)))], values[-dice.randint(1, min(64, len(values)))]
        values.append(builder.op("tensor.add", a, b))
    graph = builder.output(values[-1], "y").freeze()
    built = time.perf_counter() - started
    started = time.process_time()
    plan = hs.plan(graph, machine=machine_named("workstation"))
    return built, time.process_time() - started, len(plan.spans)


MODEL = """hetsched: 1
models:
  deep: {{input: [{shape}], layers: [{layers}, flatten, {{dense: {{units: 10}}}}]}}
tasks:
  load: {{op: data.npz, with: {{path: {data}}}, device: cpu}}
  train:
    op: nn.train
    in: {{x: load.x, y: load.y}}
    with: {{model: deep, loss: cross_entropy, optimizer: {{adam: {{lr: 1e-3}}}}, epochs: 2, batch: {batch}, seed: 7}}
outputs:
  model: {{from: train.model}}
"""
LAYERS = {
    "mlp": ("64", 128, "{dense: {units: 512, activation: relu}}"),
    "cnn": ("1, 8, 8", 64, "{conv2d: {filters: 32, kernel: 3, padding: 1, activation: relu}}"),
}
DATA = Path(__file__).resolve().parents[1] / "pipelines" / "data" / "digits.npz"
BODIES = [("mlp", 15), ("mlp", 60), ("mlp", 96), ("cnn", 15), ("cnn", 60), ("cnn", 84), ("tiles", 4), ("tiles", 6), ("tiles", 7)]


def deep_model(kind, layers):
    """The training loop of a model of so many hidden layers."""
    shape, batch, layer = LAYERS[kind]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "deep.yaml"
        file.write_text(MODEL.format(shape=shape, batch=batch, layers=", ".join([layer] * layers), data=DATA))
        graph = load(file, trust=True).graph
    return max((op for op in graph.task_ops if isinstance(op, Loop)), key=lambda loop: len(loop.body))


def tiles(n):
    """x becomes x @ x, by n * n tiles: 2 * n**3 tasks, many of which may run at once."""
    b = hs.Graph.build()
    x = {(i, j): b.input(f"x{i}_{j}", (256, 256)) for i in range(n) for j in range(n)}
    for i, j in x:
        total = b.op("tensor.matmul", x[i, 0], x[0, j])
        for k in range(1, n):
            total = b.op("tensor.add", total, b.op("tensor.matmul", x[i, k], x[k, j]))
        b.output(b.op("tensor.scale", total, factor=0.1), f"y{i}_{j}")
    return Loop(b.freeze(), 100, carried=tuple((f"x{i}_{j}", f"y{i}_{j}") for i, j in x))


def bodies():
    rows = []
    native.library()
    for kind, size in BODIES:
        loop = tiles(size) if kind == "tiles" else deep_model(kind, size)
        for name in ("laptop", "workstation"):
            machine = machine_named(name)
            started = time.process_time()
            plan = plan_loop(loop, machine, RooflineCosts(machine))
            seconds = time.process_time() - started
            row = {"body": f"{kind} {size}", "tasks": len(loop.body), "machine": name, "seconds": seconds, "period": plan.period}
            rows.append(row | {"over_bound": plan.period / plan.bound.seconds})
            print(
                f"{row['body']:<8} {row['tasks']} tasks, {name}: planned in {seconds:.2f} s, period {1e3 * plan.period:.4f} ms, "
                f"{rows[-1]['over_bound']:.3f} x its lower bound",
                flush=True,
            )
    return rows


# Under tight memory ---------------------------------------------------------------------------------------------------------------------

SHARES = (0.15, 0.25, 0.5)
TIGHT = ("layers", "sweeps", "cholesky", "products")


def products(n):
    """n products of matrices of random shapes, and tanh of them, of values made not long before."""
    dice = random.Random(f"products {n}")
    b = hs.Graph.build()
    sides = (8, 16, 24, 32, 48)
    values = [(b.input(f"x{p}_{q}", (p, q)), p, q) for p in sides for q in sides]
    for _ in range(n):
        x, p, q = values[-dice.randint(1, min(256, len(values)))]
        if dice.random() < 0.3:
            values.append((b.op("nn.tanh", x), p, q))
            continue
        y, _, r = dice.choice([v for v in values[-256:] if v[1] == q] or [v for v in values[:25] if v[1] == q])
        values.append((b.op("tensor.matmul", x, y), p, r))
    for i, (value, _, _) in enumerate(values[-5:]):
        b.output(value, f"y{i}")
    return b.freeze()


def grown(name, n):
    """A graph of outofcore.py of about n tasks."""
    if name == "layers":
        return outofcore.layers(n // 6)[0]
    if name == "sweeps":
        return outofcore.sweeps(n // 6, 3)[0]
    if name == "products":
        return products(n)
    tiles = next(t for t in range(2, n) if t * t + (t - 1) * t * (t + 1) // 3 >= n)
    return outofcore.cholesky(tiles)[0]


def tight(name, n, share):
    """How a graph is planned in a share of the memory that it would take."""
    outofcore.N = 32  # the machine's speeds are for tiles of this size
    graph, machine = grown(name, n), outofcore.machine()
    (device,) = (d.id for d in machine.devices if d.memory != "host")
    costs = RooflineCosts(machine)
    native.library()
    free = hs.plan(graph, machine, only=device, costs=costs)
    started = time.process_time()
    plan = hs.plan(graph, machine, only=device, memory={device: int(free.peak[device] * share)}, costs=costs)
    seconds = time.process_time() - started
    copies = sum(isinstance(span.command, Copy) for span in plan.spans)
    return {"seconds": seconds, "makespan": plan.makespan, "over_unlimited": plan.makespan / free.makespan, "copies": copies, "tasks": len(graph)}


def by(folder, name, n, share):
    """`tight` in a process of its own, by the hetsched in `folder`."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    asked = [sys.executable, __file__, "--one", name, str(n), str(share)]
    return json.loads(subprocess.run(asked, check=True, stdout=subprocess.PIPE, env=environment).stdout)


def under_tight_memory(sizes, shares, beside):
    rows = []
    for n in sizes:
        for name in TIGHT:
            for share in shares:
                found = by(Path(hs.__file__).parents[1], name, n, share)
                row = {"graph": name, "tasks": found.pop("tasks"), "share": share, "microseconds_a_task": 1e6 * found["seconds"] / n, **found}
                text = f"{name:<8} {row['tasks']:>6} tasks in {share:.2f} of their memory: planned in {row['seconds']:.2f} s"
                if beside:
                    before = by(beside, name, n, share)
                    row |= {"before": {key: before[key] for key in found}}
                    longer = row["makespan"] / before["makespan"]
                    text += f" ({before['seconds']:.2f}), makespan {longer:.4f} x, copies {row['copies']} ({before['copies']})"
                print(f"{text}; {row['over_unlimited']:.3f} x the makespan without a limit", flush=True)
                rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=SIZES[-1], help="tasks of the largest graph")
    parser.add_argument("--least", type=int, default=0, help="tasks of the smallest graph")
    parser.add_argument("--graphs", type=int, default=100_000, help="ops of the graph planned by hetsched.plan; 0: none")
    parser.add_argument("--bodies", action="store_true", help="only bodies of loops")
    parser.add_argument("--memory", nargs="*", type=float, metavar="SHARE", help="only graphs under tight memory")
    parser.add_argument("--beside", type=Path, metavar="FOLDER", help="with --memory: another hetsched, in turn")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--save", metavar="FILE", help="write the figures there, as JSON")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(tight(args.one[0], int(args.one[1]), float(args.one[2]))))
        return
    if args.bodies or args.memory is not None:
        sizes = [n for n in (3_000, 10_000) if args.least <= n <= args.most]
        rows = bodies() if args.bodies else under_tight_memory(sizes, args.memory or SHARES, args.beside)
        if args.save:
            Path(args.save).write_text(json.dumps(rows, indent=2) + "\n")
        return
    rows = []
    library = native.library()
    print(f"machine code: {'none (no C compiler)' if library is None else f'built in {library.build_seconds:.2f} s'}; goals: {GOALS}")
    with tempfile.TemporaryDirectory() as folder:
        for n in (s for s in SIZES if args.least <= s <= args.most):
            file = Path(folder) / f"layered-{n}.json"
            file.write_text(json.dumps(document(n)))
            problem = read_costed(file)
            row = {"tasks": n, "devices": DEVICES}
            for how, code in (("plain", lambda: None), ("", native.library)):
                kept, native.library = native.library, code
                try:
                    found = warm(problem, "heft", "auto", repeat=5 if n <= 10_000 else 1 if how else 3)
                finally:
                    native.library = kept
                prefix = f"{how}_" if how else ""
                row |= {f"{prefix}heft_us": 1e6 * found["heft"] / n, f"{prefix}auto_over_heft": found["auto"] / found["heft"]}
            if n >= 10_000:
                has_code = n > 10_000 and library is not None
                above, inside = cold_above_round_robin(file, has_code, 5 if n <= 10_000 else 3)
                row |= {"cold_us": 1e6 * above / n, "cold_inside_us": 1e6 * inside / n}
            rows.append(row)
            text = f"{n:>7} tasks: heft {row['heft_us']:5.1f} us a task, auto {row['auto_over_heft']:.2f} x that"
            text += f"; plain: heft {row['plain_heft_us']:5.1f}, auto {row['plain_auto_over_heft']:.2f} x"
            if "cold_us" in row:
                text += f"; cold, above round_robin: {row['cold_us']:.1f}, inside {row['cold_inside_us']:.1f}"
            print(text + (f"  [{ELSEWHERE[n]}]" if n in ELSEWHERE else ""), flush=True)
    if args.graphs:
        built, planned, spans = whole_graph(args.graphs)
        rows.append({"graph_ops": args.graphs, "build_seconds": built, "plan_seconds": planned})
        print(f"{args.graphs:>7} ops: graph built in {built:.2f} s, hetsched.plan {planned:.2f} s ({spans:,} spans, offsets and reuse edges)")
    if args.save:
        Path(args.save).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
