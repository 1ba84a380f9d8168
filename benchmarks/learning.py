"""What learning and recording cost: seconds after a run, and what timing single tasks adds inside it.

    python benchmarks/learning.py [--save]

Goal (issue 5): at most 1 % of a run. A run is what `hetsched run` takes from the start of the process to its end; the share of the measured makespan
alone is printed beside it. Learning and recording happen when the run is over and its outputs are written.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 5


def measured(file: Path, home: str) -> dict[str, Any]:
    import hetsched as hs
    from hetsched.costing import learn_from
    from hetsched.executors import tracing
    from hetsched.pipeline.build import load
    from hetsched.report.runs import Runs, record_of
    from hetsched.report.summary import three_lines

    graph = load(str(file), {}).graph
    plan = hs.plan(graph, hs.Machine.here(), only="cpu")
    times: dict[str, list[float]] = {"plain": [], "timed": [], "learn": [], "record": []}
    usual = tracing.TIMED_TURNS
    for _ in range(REPEATS):
        for name, turns in (("plain", frozenset()), ("timed", usual)):
            sys.modules["hetsched.executors.cpu"].TIMED_TURNS = turns  # type: ignore[attr-defined]
            result = hs.run(plan, learn=False)
            times[name].append(result.trace.makespan)
        three_lines(plan, result.trace)  # what the command tells of a run rests on the same sums
        taught = learn_from(result.trace, plan=plan)
        times["learn"].append(taught.seconds)
        begun = time.perf_counter()
        record = record_of(result, file=str(file), sha256="", name="x", parameters={}, options={}, metrics={}, outputs={}, taught=taught.lessons)
        Runs().add(record)
        times["record"].append(time.perf_counter() - begun)
    process = []
    for _ in range(3):
        begun = time.perf_counter()
        command = [sys.executable, "-m", "hetsched", "run", str(file), "-d", "cpu", "-o", home, "--format", "json"]
        subprocess.run(command, check=True, capture_output=True)
        process.append(time.perf_counter() - begun)
    middle = {name: statistics.median(found) for name, found in times.items()}
    whole, after = statistics.median(process), middle["learn"] + middle["record"]
    return {
        "pipeline": file.name,
        "process_seconds": whole,
        "makespan_seconds": middle["timed"],
        "learn_seconds": middle["learn"],
        "record_seconds": middle["record"],
        "share_of_process": after / whole,
        "share_of_makespan": after / middle["timed"],
        "timing_tasks": middle["timed"] / middle["plain"] - 1,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/learning.json")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as home:
        os.environ.update(XDG_CACHE_HOME=home, XDG_STATE_HOME=home, HETSCHED_LEARN="1")
        rows = [measured(ROOT / "pipelines" / f"{name}.yaml", home) for name in ("digits_mlp", "mlp_784", "matmul_conv")]
    print(json.dumps(rows, indent=2))
    if args.save:
        (ROOT / "benchmarks" / "results" / "learning.json").write_text(json.dumps(rows, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
