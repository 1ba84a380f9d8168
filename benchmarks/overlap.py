"""How well copies hide behind kernels: 64 batches of copy in, kernel, copy out on an emulated device.

    python benchmarks/overlap.py [--repeat 5] [--milliseconds 4] [--json FILE]

The device is modelled (one compute stream, a copy engine each way); the bytes really move and the kernel really runs, in threads of their own.
Three cases: balanced, copy-bound (copies take three times the kernel), compute-bound. Printed for each: the measured time end to end over
64 * max(copy in, kernel, copy out), the same for a synchronous loop (copy, kernel, copy, each waited for), and the share of copy time hidden
behind the kernel beside what the events give by hand. Nothing here says how fast a real device is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import hetsched as hs
from hetsched.executors.backends import emulated
from hetsched.graph.graph import Graph, Loop
from hetsched.machine import HOST, Device, Link, MemoryNode
from hetsched.report.summary import transfers

TURNS, N = 64, 20_000


def machine(copy_seconds: float, kernel_seconds: float) -> hs.Machine:
    cpu = Device("cpu", "cpu", lanes=2, languages=("host", "array"), shares_lanes=True, flops_per_second={"float32": 1e10})
    gpu = Device(
        "gpu:0", "emulated", memory="gpu:0", hardware="gpu", launch_seconds=0.0, flops_per_second={"float32": 1e15},
        bytes_per_second=8 * N / kernel_seconds,
    )  # fmt: skip
    speed = 4 * N / copy_seconds
    links = (Link(HOST, "gpu:0", 0.0, speed), Link("gpu:0", HOST, 0.0, speed))
    return hs.Machine((cpu, gpu), links, (MemoryNode(HOST), MemoryNode("gpu:0")))


def batches() -> hs.Graph:
    body = Graph.build()
    body.output(body.op("tensor.neg", body.input("x", (N,)), where=hs.Where(("gpu:0",))), "y")
    b = Graph.build()
    (y,) = b.loop(Loop(body.freeze(), TURNS, sequences=("x",), collected=("y",)), b.input("x", (TURNS, N)))
    return b.output(y, "y").freeze()


def synchronous(where: hs.Machine, x: np.ndarray, copy_seconds: float, kernel_seconds: float) -> float:
    """The plain loop: every command waited for before the next."""
    device = emulated.open(where.devices[1], 1 << 20)
    stream = device.stream("compute")
    a, b = device.array(0, (N,), np.float32), device.array(1 << 19, (N,), np.float32)
    out = np.empty_like(x)
    start = time.perf_counter()
    for i in range(TURNS):
        stream.expect(copy_seconds)
        stream.upload(x[i], a)
        stream.record().wait()
        stream.expect(kernel_seconds)
        stream.launch(lambda xp, ins, outs, w, at: xp.negative(ins[0], out=outs[0]), [a], [b], None, {})
        stream.record().wait()
        stream.expect(copy_seconds)
        stream.download(b, out[i])
        stream.record().wait()
    seconds = time.perf_counter() - start
    device.close()
    return seconds


def by_hand(trace: hs.Timeline) -> float:
    """The share of copy time in which the kernel's lane works, from the spans."""
    body = next(iter(trace.loops.values()))
    kernels = [(s.start, s.finish) for s in body.launches]
    copies = [(s.start, s.finish) for s in body.copies]
    hidden = sum(max(0.0, min(f, b) - max(s, a)) for s, f in copies for a, b in kernels)
    return hidden / sum(f - s for s, f in copies)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--milliseconds", type=float, default=4.0, help="the longest of the three, per batch")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    most = options.milliseconds / 1e3
    x = np.random.default_rng(0).normal(size=(TURNS, N)).astype(np.float32)
    rows: list[dict[str, Any]] = []
    for name, copy_seconds, kernel_seconds in [("balanced", most, most), ("copy-bound", most, most / 3), ("compute-bound", most / 3, most)]:
        where = machine(copy_seconds, kernel_seconds)
        plan = hs.plan(batches(), where)
        least = TURNS * max(copy_seconds, kernel_seconds)
        ours, plain, hidden, hand = [], [], [], []
        for _ in range(options.repeat):
            result = hs.run(plan, {"x": x})
            assert np.array_equal(result["y"], -x)
            ours.append(result.trace.makespan / least)
            plain.append(synchronous(where, x, copy_seconds, kernel_seconds) / least)
            hidden.append(transfers(result.trace).hidden_fraction or 0.0)
            hand.append(by_hand(result.trace))
        row = {
            "case": name, "hetsched": statistics.median(ours), "synchronous": statistics.median(plain),
            "hidden": statistics.median(hidden), "hidden_by_hand": statistics.median(hand),
        }  # fmt: skip
        rows.append(row)
        print(
            f"{name:14s} end to end {row['hetsched']:.3f} x max(copy, kernel) ({min(ours):.3f}-{max(ours):.3f}); "
            f"synchronous loop {row['synchronous']:.2f} x; "
            f"hidden {row['hidden']:.1%}, by hand {row['hidden_by_hand']:.1%}",
            flush=True,
        )
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
