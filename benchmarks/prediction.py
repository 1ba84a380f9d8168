"""How true plans are: predicted against measured makespans, on three runs in a row, and which of two placements is predicted to be faster.

    hetsched calibrate && python benchmarks/prediction.py [--pairs] [--part I/N] [--only NAMES] [--save]

Each graph (random, of ops of at least 100 us) and each pipeline of pipelines/ is planned and run three times in a row, with a cache that knows
the calibration and nothing else at first; each run teaches the next. Beside it the run-to-run spread of the same plan is measured. With --pairs
several placements of each graph (devices alone, policies) are planned and run, and every pair that differs by more than 20 % is compared.

A run beside which others had the cores is forgotten and repeated, some times at most: other processes, by what they took; threads that were ready and
waited; a host that lends cores to others, by the same work having taken 1.25 times the seconds of cores that it took in another run of the graph.
`repeated` says how many runs were. A graph where other processes go on is left out, and `--missing` tries it later.

Where others always have some core (a container on a large shared host, whose /proc/stat is the host's) nothing would be left: --anyway takes every
run.

On CUDA: `hetsched calibrate cuda:0 --time 20s && python benchmarks/prediction.py -d cuda --anyway --graphs 12 --pairs --seconds 60 --save FILE`.

It may be run in parts (`--part 1/4`, or `--only digits_mlp.yaml,random`): with --save rows of the same devices are put beside those of other parts in
results/prediction.json, and the summary is that of all; `--fresh` begins anew.

Goals (issue 5): median error at most 15 % on the first run, 8 % on the third (or twice the run-to-run spread), 95 % of pairs in the right order.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "prediction.json"
RUNS = 3
REPEATS = 5
TRIES = 5
PAUSE_SECONDS = 0.05
# Threads waited for a core for this share of a run; cores that a host lends to others took so many times the seconds for the same work.
MOST_WAITED, SLOW = 0.4, 1.25
# A run beside which other processes worked for this share of its time is none on a quiet machine.
MOST_OTHERS = 0.1
# The system counts in steps of 10 ms.
STEPS_SECONDS = 0.02
APART = 0.2


class Row(NamedTuple):
    name: str
    errors: list[float]  # of the runs, in order: (predicted - measured) / measured
    spread: float  # of the same plan run again and again: median |measured - median| / median
    seconds: float
    pairs: list[list[float]]  # [predicted, measured] of several placements


def random_graph(rng: random.Random, tasks: int) -> tuple[Any, dict[str, Any]]:
    """A graph of ops that take about 100 us to 10 ms each on a core: matrix products, element-wise, reductions, softmax, convolutions."""
    import numpy as np

    import hetsched as hs

    b = hs.Graph.build()
    inputs: dict[str, Any] = {}
    values = []
    noise = np.random.default_rng(rng.randrange(1 << 30))
    for i in range(rng.randint(2, 4)):
        n = rng.choice([384, 512, 768, 1024])
        inputs[f"x{i}"] = noise.random((n, 512), dtype=np.float32)
        values.append(b.input(f"x{i}", (n, 512)))
    weight = b.input("w", (512, 512))
    inputs["w"] = (noise.random((512, 512), dtype=np.float32) - 0.5) / 16
    for _ in range(tasks):
        x = rng.choice(values[-6:])
        way = rng.random()
        if way < 0.35:
            y = b.op("tensor.matmul", x, weight)
        elif way < 0.5:
            y = b.op(rng.choice(["nn.relu", "nn.tanh", "nn.sigmoid", "tensor.sqrt"]), b.op("tensor.mul", x, x))
        elif way < 0.65:
            alike = [v for v in values if v.shape == x.shape]
            y = b.op(rng.choice(["tensor.add", "tensor.maximum", "tensor.mul"]), x, rng.choice(alike))
        elif way < 0.8:
            y = b.op("nn.softmax", x)
        elif way < 0.9:
            y = b.op("tensor.scale", b.op("tensor.transpose", b.op("tensor.transpose", x)), factor=0.5)
        else:
            y = b.op("nn.log_softmax", x)
        values.append(y)
    for v in values[-3:]:
        b.output(b.op("tensor.sum", v))
    return b.freeze(), inputs


class Disturbed(Exception):
    """Other processes had the cores during a run."""


def others_seconds() -> float:
    """Seconds that other processes, and the host, have had a core (Linux; in steps of 10 ms), 0 where the system does not tell. One small file is

    read: looking at every process just before a run would leave it a cold cache, and make the run a third longer.
    """
    try:
        user, nice, system, _, _, irq, soft, steal = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK") - time.process_time()


def waited_seconds() -> float:
    """Seconds in which some thread of the machine was ready and waited for a core (Linux, to the microsecond), 0 where that is not told."""
    try:
        return float(Path("/proc/pressure/cpu").read_text().split("\n", 1)[0].rpartition("=")[2]) * 1e-6
    except (OSError, ValueError):
        return 0.0


class Watch:
    """Tells which runs of one graph had the cores, whole. `cores`: seconds of cores that its runs on threads alone took, the same work in each."""

    def __init__(self) -> None:
        self.cores: list[float] = []

    def is_disturbed(self, plan: Any, seconds: float, took: float, others: float, cores: float, waited: float) -> bool:
        """seconds: of the run; took: of the call; others, cores: core seconds of other processes and of this one; waited: see `waited_seconds`."""
        if others > MOST_OTHERS * took + STEPS_SECONDS:
            return True
        lanes = {lane for timeline in (plan, *plan.loops.values()) for span in timeline.spans for lane in span.lanes}
        shared = {d.id for d in plan.machine.devices if d.shares_lanes}
        if not all(lane.owner in shared for lane in lanes):
            return False
        self.cores.append(cores)
        # With more threads than cores they wait for one another.
        return (len(lanes) <= (os.cpu_count() or 1) and waited > MOST_WAITED * seconds) or cores > SLOW * min(self.cores)


ANYWAY = False  # --anyway


def once(plan: Any, inputs: Any, learn: bool, watch: Watch) -> float:
    """Seconds of a run. One that others disturbed is forgotten, and repeated; the last try counts, unless other processes were seen."""
    import hetsched as hs

    if ANYWAY:
        return float(hs.run(plan, inputs, learn=learn).trace.makespan)
    seconds = 0.0
    for tried in range(TRIES):
        with kept_costs() as forget:
            before, waited, cores, begun = others_seconds(), waited_seconds(), time.process_time(), time.perf_counter()
            seconds = float(hs.run(plan, inputs, learn=learn).trace.makespan)
            took, cores = time.perf_counter() - begun, time.process_time() - cores
            others, waited = others_seconds() - before, waited_seconds() - waited
            if not watch.is_disturbed(plan, seconds, took, others, cores, waited):
                return seconds
            if tried == TRIES - 1 and others <= MOST_OTHERS * took + STEPS_SECONDS:
                return seconds
            forget()
        COUNTED["repeated"] += 1
        time.sleep(PAUSE_SECONDS * (tried + 1))
    raise Disturbed


COUNTED = {"repeated": 0}


@contextlib.contextmanager
def kept_costs() -> Iterator[Callable[[], None]]:
    """Gives what makes the costs again what they were: what a run beside others has taught is forgotten."""
    from hetsched.folders import cache_folder

    files = [cache_folder() / f"costs.sqlite{suffix}" for suffix in ("", "-wal", "-shm")]
    before = {f: f.read_bytes() for f in files if f.exists()}

    def forget() -> None:
        for f in files:
            f.unlink(missing_ok=True)
        for f, content in before.items():
            f.write_bytes(content)

    yield forget


def undisturbed(measure: Callable[[], T]) -> T | None:
    """What `measure` finds when nobody else has the cores; None: in vain, and what was known before is known again."""
    with kept_costs() as forget:
        try:
            return measure()
        except Disturbed:
            forget()
            return None


def three_runs(name: str, make: Any, inputs: Any, only: str | None, watch: Watch) -> Row:
    """Plan and run three times; the run-to-run spread beside it."""
    import hetsched as hs

    errors = []
    measured = 0.0
    for _ in range(RUNS):
        plan = hs.plan(make(), hs.Machine.here(), only=only, measure=True)
        measured = once(plan, inputs, True, watch)
        errors.append((plan.makespan - measured) / measured)
    again = [once(plan, inputs, False, watch) for _ in range(REPEATS)]
    middle = statistics.median(again)
    return Row(name, errors, statistics.median(abs(x - middle) / middle for x in again), measured, [])


def placements(graph: Any, inputs: Any, only: str | None, watch: Watch) -> list[list[float]]:
    """(predicted, measured) of several placements of a graph: each device where it can, and several policies."""
    import hetsched as hs

    machine = hs.Machine.here()
    found = []
    ways: list[dict[str, Any]] = [{"only": d.id} for d in machine.devices if only is None or d.matches(only)]
    ways += [{"policy": p, "only": only} for p in ("heft", "serial", "round_robin", "min_min")]
    for way in ways:
        plan = hs.plan(graph, machine, **way)
        found.append([plan.makespan, statistics.median(once(plan, inputs, True, watch) for _ in range(REPEATS))])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graphs", type=int, default=30)
    parser.add_argument("--tasks", type=int, default=14)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pipelines", action="store_true", help="pipelines only")
    parser.add_argument("--only", default=None, help="rows whose names begin with one of these, separated by commas")
    parser.add_argument("--part", default="1/1", help="I/N: every Nth row, from the Ith on")
    parser.add_argument("-d", "--device", default=None)
    parser.add_argument("--pairs", action="store_true", help="compare placements too")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no further graph after so long")
    parser.add_argument("--save", nargs="?", const=str(RESULTS), metavar="FILE", help="keep what was found (default: results/prediction.json)")
    parser.add_argument("--anyway", action="store_true", help="take every run, whoever has the cores")
    parser.add_argument("--missing", action="store_true", help="only rows that the file of --save lacks")
    parser.add_argument("--fresh", action="store_true", help="with --save: leave out what other parts have found")
    args = parser.parse_args()
    global ANYWAY
    ANYWAY = args.anyway

    # The calibrations of the user, and nothing that was learned before.
    sys.path.insert(0, str(ROOT))
    from hetsched.folders import cache_folder

    home = tempfile.mkdtemp(prefix="hetsched-prediction-")
    if cache_folder().exists():
        shutil.copytree(cache_folder(), Path(home) / "hetsched", ignore=shutil.ignore_patterns("costs.sqlite*"))
    os.environ["XDG_CACHE_HOME"] = home
    os.environ["HETSCHED_LEARN"] = "1"
    used = [f"{d.id}: {d.name}" for d in devices() if args.device is None or d.matches(args.device)]
    names = [f.name for f in sorted((ROOT / "pipelines").glob("*.yaml"))]
    names += [] if args.pipelines else [f"random {i}" for i in range(args.graphs)]
    number, parts = map(int, args.part.split("/"))
    names = names[number - 1 :: parts]
    if args.only:
        names = [n for n in names if n.startswith(tuple(args.only.split(",")))]
    place = Path(args.save or RESULTS)
    found = json.loads(place.read_text()) if place.exists() and not args.fresh else {"devices": [], "rows": []}
    kept = [Row(*r) for r in found["rows"]] if found["devices"] == used else []
    if args.missing:
        there = {r.name for r in kept if r.pairs or not args.pairs or r.name.endswith(".yaml")}
        names = [n for n in names if n not in there]
    rows: list[Row] = []
    begun = time.perf_counter()
    try:
        for name in names:
            if time.perf_counter() - begun > args.seconds:
                break
            watch = Watch()
            if name.endswith(".yaml"):
                row = undisturbed(lambda name=name: pipeline_row(ROOT / "pipelines" / name, args.device))
            else:
                graph, inputs = random_graph(random.Random(args.seed * 1000 + int(name.split()[1])), args.tasks)
                row = undisturbed(lambda n=name, g=graph, i=inputs, w=watch: three_runs(n, lambda: g, i, args.device, w))
                if row is not None and args.pairs:
                    pairs = undisturbed(lambda g=graph, i=inputs, w=watch: placements(g, i, args.device, w))
                    row = row._replace(pairs=pairs or [])
            if row is None:
                print(f"{name}: others had the cores in each of {TRIES} tries; left out", flush=True)
                continue
            rows.append(row)
            tell(rows[-1])
    finally:
        shutil.rmtree(home, ignore_errors=True)
    if args.save:
        mine = {r.name for r in rows}
        rows = [*(r for r in kept if r.name not in mine), *rows]
    if not rows:
        print("nothing was measured")
        return 1
    record = {"devices": used, **summary(rows)}
    print(json.dumps({k: v for k, v in record.items() if k != "rows"}, indent=2))
    if args.save:
        place.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def pipeline_row(file: Path, only: str | None) -> Row:
    from hetsched.pipeline.build import load

    copy = Path(tempfile.mkdtemp(prefix="hetsched-pipeline-"))
    try:
        shutil.copytree(file.parent, copy, dirs_exist_ok=True)
        if file.name == "digits_predict.yaml":  # it reads what this one writes
            command = [sys.executable, "-m", "hetsched", "run", str(copy / "digits_mlp.yaml"), "--no-learn", "-d", "cpu", "--format", "json"]
            subprocess.run(command, check=True, capture_output=True)
        return three_runs(file.name, lambda: load(str(copy / file.name), {}, trust=True).graph, {}, only, Watch())
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def devices() -> Any:
    import hetsched as hs

    return hs.Machine.here().devices


def tell(row: Row) -> None:
    errors = "  ".join(f"{100 * e:+6.1f} %" for e in row.errors)
    pairs = "  ".join(f"{p / m:.2f}" for p, m in row.pairs)
    print(f"{row.name:22} {errors}   run to run {100 * row.spread:4.1f} %   {1e3 * row.seconds:8.2f} ms   {pairs}", flush=True)


def summary(rows: list[Row]) -> dict[str, Any]:
    out: dict[str, Any] = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "graphs": len(rows),
        "repeated": COUNTED["repeated"],
        "median_error": [round(statistics.median(abs(r.errors[i]) for r in rows), 4) for i in range(RUNS)],
        "median_run_to_run": round(statistics.median(r.spread for r in rows), 4),
        "within_goal_third_run": sum(abs(r.errors[-1]) <= max(0.08, 2 * r.spread) for r in rows),
    }
    apart = [(*a, *b) for r in rows for k, a in enumerate(r.pairs) for b in r.pairs[:k] if abs(a[1] - b[1]) > APART * min(a[1], b[1])]
    if apart:
        right = sum((p < q) == (m < n) for p, m, q, n in apart)
        out["pairs"] = {"apart": len(apart), "right": right, "share": round(right / len(apart), 4)}
    out["rows"] = [[r.name, [round(e, 4) for e in r.errors], round(r.spread, 4), r.seconds, r.pairs] for r in rows]
    return out


if __name__ == "__main__":
    sys.exit(main())
