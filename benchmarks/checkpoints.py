"""What checkpoints cost: trainings of a small and of a larger network in one, and in pieces of which each is kept.

    python benchmarks/checkpoints.py [--json FILE] [--rounds N]

Runs go by turns; the cost of a checkpoint is what the median run takes longer, less what comes once (the code of hetsched, inputs and the plan are
written down, pieces planned), by the number of checkpoints. Told beside it: what that is of 30 s, the time between two by default.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

FILE = """
hetsched: 1
models: {m: {input: [784], layers: [%s]}}
tasks:
  data:  {op: data.synthetic, with: {rows: %d, shape: [784], classes: 10, seed: 1}}
  train: {op: nn.train, in: {x: data.x, y: data.y}, with: {model: m, epochs: %d, batch: 128, optimizer: adam}}
outputs: {model: {from: train.model}, losses: {from: train.losses}}
"""
# name -> (units of the layers, rows, epochs, turns between checkpoints)
CASES = {"784-10-10": ((10, 10), 6000, 40, 470), "784-1024-1024-10": ((1024, 1024, 10), 2048, 6, 16)}
DEFAULT_SECONDS = 30.0


def measured(name: str, rounds: int, folder: Path) -> dict[str, Any]:
    import hetsched as hs
    from hetsched.graph.graph import Loop
    from hetsched.pipeline.build import load

    units, rows, epochs, turns = CASES[name]
    file = folder / "file.yaml"
    file.write_text(FILE % (", ".join(f"{{dense: {{units: {n}}}}}" for n in units), rows, epochs))
    graph = load(str(file), {}).graph
    plan = hs.plan(graph, only="cpu", learn=False)
    (loop,) = [op for op in graph.task_ops if isinstance(op, Loop)]
    kept = folder / "kept"
    few = max(turns, loop.turns // 2)  # two pieces: what comes once, and one checkpoint
    ways = {"in one": None, "two": hs.Checkpoint(kept, turns=few, clear=False), "many": hs.Checkpoint(kept, turns=turns, clear=False)}
    times: dict[str, list[float]] = {way: [] for way in ways}
    kept_nbytes, values = 0, []
    for _ in range(rounds):
        for way, checkpoint in ways.items():
            began = time.perf_counter()
            result = hs.run(plan, learn=False, checkpoint=checkpoint)
            times[way].append(time.perf_counter() - began)
            values.append(result["losses"].tobytes())
            if kept.is_dir():
                kept_nbytes = sum(path.stat().st_size for path in kept.glob("carried-*.npz"))
                for path in kept.iterdir():
                    path.unlink()
    assert len(set(values)) == 1, "not the same bits"
    middle = {way: statistics.median(found) for way, found in times.items()}
    n = {"two": -(-loop.turns // few), "many": -(-loop.turns // turns)}
    each = (middle["many"] - middle["two"]) / (n["many"] - n["two"])
    once = middle["two"] - middle["in one"] - n["two"] * each
    return {
        "case": name, "turns": loop.turns, "kept_nbytes": kept_nbytes, "checkpoints": n["many"], "seconds_in_one": middle["in one"],
        "seconds_with": middle["many"], "once_seconds": once, "each_seconds": each, "share_at_30_s": each / DEFAULT_SECONDS, "times": times,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_STATE_HOME"] = folder
        for name in CASES:
            row = measured(name, args.rounds, Path(folder))
            rows.append(row)
            print(
                f"{name}: {row['seconds_in_one']:.2f} s in one, {row['seconds_with']:.2f} s with {row['checkpoints']} checkpoints of "
                f"{row['kept_nbytes'] / 1e6:.1f} MB; each {1e3 * row['each_seconds']:.1f} ms ({100 * row['share_at_30_s']:.2f} % of 30 s), "
                f"once {1e3 * row['once_seconds']:.0f} ms; the same bits in all runs"
            )
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
