"""How good plans of costed graphs are: `hetsched plan` over folders of graphs, every schedule checked here, at several times for planning.

usage: placement.py FOLDER... [--plan-time 0s,1s,10s] [--smallest N] [--largest N] [--part K/N] [--bounds] [--save FILE]

FOLDER holds instances/*.json.gz (placement-bench/1) and, if known, results/best_known.json ({name: {"best": seconds}}) and results/cpsat.json
({name: {"makespan": seconds}}). Printed for each time: geometric mean and worst of makespan / best known for each model; the worst of makespan / the
better of HEFT and PEFT; on graphs of at most 70 tasks the worst of makespan / CP-SAT's; the median proven gap. Where nothing is known, the best seen
here (in what --save has too) counts as best known. --bounds: the witness of each bound is verified by `check_bound`, in this process.

Goals: instant 1.085 related, 1.050 unrelated, never above the better of HEFT and PEFT; 1 s 1.025 and 1.020, worst 1.08; 10 s 1.005 on the whole,
within 0.5 % of CP-SAT on graphs of at most 70 tasks; median gap at most 14 % at 10 s.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

from hetsched.cli.units import duration
from hetsched.placement.bounds import SHARE, check_bound, lower_bound
from hetsched.placement.costed.planning import CostedDraft, read_costed
from hetsched.placement.policies import find
from hetsched.placement.search.improve import improve

SMALL = 70


def faults(document, tasks):
    """What is wrong with a schedule, told from the file alone."""
    devices, links = document["devices"], {(x["src"], x["dst"]): x for x in document["links"]}
    for t, (d, start, end, lane) in enumerate(tasks):
        seconds = document["durations"][t][d] if "durations" in document else document["cost"][t] / devices[d]["speed"]
        if seconds is None or abs(end - start - seconds) > 1e-6 * max(1.0, end) or not 0 <= lane < devices[d]["lanes"]:
            return f"task {t}: {seconds} s on device {d}, got {start} to {end} on lane {lane}"
    for u, v, nbytes in document["edges"]:
        a, b = devices[tasks[u][0]]["mem"], devices[tasks[v][0]]["mem"]
        wait = links[a, b]["latency"] + nbytes / links[a, b]["bandwidth"] if a != b else 0.0
        if tasks[v][1] < tasks[u][2] + wait - 1e-6 * max(1.0, tasks[v][1]):
            return f"task {v} starts before what it reads from {u} has come"
    lanes = {}
    for d, start, end, lane in sorted(tasks, key=lambda row: row[1:3]):
        if lanes.get((d, lane), 0.0) > start + 1e-6 * max(1.0, start):
            return f"two tasks at once on lane {lane} of device {d}"
        lanes[d, lane] = end
    return None


def planned(files, plan_time, policy="auto"):
    """name -> record of `hetsched plan`, which runs once for all files, as a user would."""
    command = [sys.executable, "-m", "hetsched", "plan", *map(str, files), "--policy", policy, "--format", "jsonl", "--plan-time", plan_time]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name_of(row["file"]): row for row in map(json.loads, output.splitlines())}


def name_of(file):
    return Path(file).name.removesuffix(".gz").removesuffix(".json")


def mean(values):
    return math.exp(statistics.fmean(map(math.log, values)))


def verified(file, seconds):
    """(gap, kind) of a bound after `seconds` of planning, its witness verified."""
    problem = read_costed(file)
    draft = CostedDraft(problem)
    find("auto")(draft)
    if seconds:
        improve(draft, seconds * (1 - SHARE))
    bound = lower_bound(problem, seconds * SHARE, draft.finish())
    check_bound(problem, bound)
    if bound.seconds > draft.finish():
        raise SystemExit(f"{file}: the bound of {bound.seconds} s is above a plan of {draft.finish()} s")
    return draft.finish() / bound.seconds - 1, bound.kind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--plan-time", default="0s,1s", help="times for planning, with commas between (default: %(default)s)")
    parser.add_argument("--smallest", type=int, default=0)
    parser.add_argument("--largest", type=int, default=10**9)
    parser.add_argument("--part", default="1/1", help="K/N: every N-th graph from the K-th on")
    parser.add_argument("--bounds", action="store_true", help="verify the bounds too, at each of the times")
    parser.add_argument("--save", type=Path, metavar="FILE", help="figures as JSON; those of graphs and times that are there already stay")
    args = parser.parse_args()
    part, parts = map(int, args.part.split("/"))
    figures = json.loads(args.save.read_text()) if args.save and args.save.exists() else {}
    for folder in args.folders:
        files, documents = [], {}
        for file in sorted((folder / "instances").glob("*.json.gz")):
            document = json.loads(gzip.decompress(file.read_bytes()))
            if args.smallest <= len(document.get("durations") or document["cost"]) <= args.largest:
                files.append(file)
                documents[name_of(file)] = document
        files = files[part - 1 :: parts]
        mine = figures.setdefault(folder.name, {})
        for policy in ("heft", "peft"):
            for name, row in planned(files, "0s", policy).items():
                mine.setdefault(name, {})[policy] = row["makespan"]
        for plan_time in args.plan_time.split(","):
            for file in files:
                started = time.perf_counter()
                row = planned([file], plan_time)[name_of(file)] if duration(plan_time, zero=True) >= 1 else None
                wall = time.perf_counter() - started
                if row is not None:
                    note(mine, documents, name_of(file), plan_time, row, wall)
            if duration(plan_time, zero=True) < 1:
                for name, row in planned(files, plan_time).items():
                    note(mine, documents, name, plan_time, row, None)
            if args.bounds:
                for file in files:
                    gap, kind = verified(file, duration(plan_time, zero=True))
                    mine[name_of(file)][plan_time] |= {"verified_gap": gap, "kind": kind}
            if args.save:
                args.save.write_text(json.dumps(figures, indent=1) + "\n")
        names = [name_of(file) for file in files]
        tell(folder, names if parts > 1 else [n for n in mine if n in documents], mine, documents, args.plan_time.split(","))


def note(mine, documents, name, plan_time, row, wall):
    wrong = faults(documents[name], row["tasks"])
    if wrong:
        raise SystemExit(f"{name}: {wrong}")
    mine[name][plan_time] = {
        "makespan": row["makespan"], "lower_bound": row["lower_bound"], "plan_seconds": row["plan_seconds"],
        "evaluations": row["evaluations"], "compile_seconds": row["compile_seconds"], "wall_seconds": wall,
    }  # fmt: skip


def tell(folder, names, mine, documents, plan_times):
    known, solved = ({}, {})
    if (folder / "results" / "best_known.json").exists():
        known = {name: row["best"] for name, row in json.loads((folder / "results" / "best_known.json").read_text()).items()}
    if (folder / "results" / "cpsat.json").exists():
        solved = {name: row["makespan"] for name, row in json.loads((folder / "results" / "cpsat.json").read_text()).items() if row.get("makespan")}
    seen = {name: min(x["makespan"] if isinstance(x, dict) else x for x in mine[name].values()) for name in names}
    for plan_time in plan_times:
        rows = {name: mine[name][plan_time] for name in names if plan_time in mine[name]}
        print(f"{folder.name}, --plan-time {plan_time}: {len(rows)} graphs, all valid")
        for model in sorted({documents[name]["model"] for name in rows}):
            ratios = {n: row["makespan"] / known.get(n, seen[n]) for n, row in rows.items() if documents[n]["model"] == model}
            worst = max(ratios, key=ratios.get)
            told = f"  {model}: {len(ratios)} graphs, makespan / best known: mean {mean(ratios.values()):.4f}, worst {ratios[worst]:.3f} ({worst})"
            own = {n: row["makespan"] / seen[n] for n, row in rows.items() if n in ratios}
            print(told + f"; / best known or seen here: {mean(own[n] / min(1.0, known.get(n, seen[n]) / seen[n]) for n in own):.4f}")
        heft = max(row["makespan"] / min(mine[n]["heft"], mine[n]["peft"]) for n, row in rows.items())
        gaps = [row["makespan"] / row["lower_bound"] - 1 for row in rows.values()]
        print(f"  worst of makespan / the better of HEFT and PEFT: {heft:.4f}; median gap {100 * statistics.median(gaps):.1f} %")
        small = {n: rows[n]["makespan"] / solved[n] for n in rows if n in solved and len(documents[n].get("durations") or ()) <= SMALL}
        if small:
            print(f"  graphs of at most {SMALL} tasks, makespan / CP-SAT's: worst {max(small.values()):.4f} ({max(small, key=small.get)})")
        if all("verified_gap" in row for row in rows.values()):
            kinds = [row["kind"] for row in rows.values()]
            told = ", ".join(f"{kinds.count(k)} {k}" for k in sorted(set(kinds)))
            gap = statistics.median(row["verified_gap"] for row in rows.values())
            print(f"  bounds verified by check_bound: all ({told}), median gap {100 * gap:.1f} %")
        built = max(row["compile_seconds"] for row in rows.values())
        print(
            f"  planning seconds: worst {max(row['plan_seconds'] for row in rows.values()):.2f}; machine code took at most {built:.2f} s", flush=True
        )


if __name__ == "__main__":
    main()
