"""Milliseconds per training step of hetsched's pipelines beside torch on CPU, in one run.

    python benchmarks/train_step.py [--repeat 5] [--json FILE]

Both train the same network on the same arrays with the same optimizer, shuffled batches and the same number of threads: mlp_784 (784-10-10, relu,
Adam) and a CNN for the digits (8 and 16 channels), at batch 32 and 128. The figure is the loop's wall time over its steps; repeats take turns, so
that both see the same noise; the ratio is of medians. torch is the benchmark's own extra (`pip install ".[bench]"`); without it only hetsched's
times are printed. With a CUDA device both are timed there as well (hetsched with every task that can on `cuda:0`); without one the reason is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _gpu
import numpy as np

import hetsched as hs
from hetsched.graph.graph import Bundle, Graph
from hetsched.graph.op import Composite, Scene
from hetsched.graph.ops import registry

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

MODELS: dict[str, dict[str, Any]] = {
    "mlp_784": {"input": [784], "layers": [{"dense": {"units": 10, "activation": "relu"}}, {"dense": {"units": 10}}]},
    "digits_cnn": {
        "input": [1, 8, 8],
        "layers": [
            {"conv2d": {"filters": 8, "kernel": 3, "padding": "same", "activation": "relu"}},
            {"conv2d": {"filters": 16, "kernel": 3, "padding": "same", "activation": "relu"}},
            {"max_pool2d": {"size": 2}},
            "flatten",
            {"dense": {"units": 10}},
        ],
    },
}


def hetsched_plan(model: str, rows: int, batch: int, epochs: int, only: str | None = None) -> Any:
    """The plan of a training run over given arrays. only: the device of every task that it can run."""
    b = Graph.build()
    width = int(np.prod(MODELS[model]["input"]))
    x, y = b.input("x", (rows, width)), b.input("y", (rows,), np.int64)
    train = registry()["nn.train"]
    assert isinstance(train, Composite)
    options = {"model": "net", "loss": "cross_entropy", "optimizer": {"adam": {"lr": 1e-3}}, "epochs": epochs, "batch": batch, "seed": 7}
    with b.scope("train"):
        out = train.expand(b, {"x": x, "y": y}, train.check_attributes(options), Scene({"net": MODELS[model]}))
    trained = out["model"]
    assert isinstance(trained, Bundle)
    b.output(trained, "model")
    return hs.plan(b.freeze(), only=only)


def hetsched_step(plan: Any, x: np.ndarray, y: np.ndarray) -> float:
    """Seconds a step of one run: the loop's span over its turns."""
    trace = hs.run(plan, {"x": x, "y": y}).trace
    task, body = max(trace.loops.items(), key=lambda item: item[1].turns)
    span = next(s for s in trace.launches if s.command.task == task)
    return (span.finish - span.start) / body.turns


def torch_step(model: str, x: np.ndarray, y: np.ndarray, batch: int, epochs: int, device: str = "cpu") -> Callable[[], float]:
    """A function that trains with torch and gives seconds a step. The data lie on the device before the first step."""
    import torch

    torch.set_num_threads(THREADS)
    nn = torch.nn
    if model == "mlp_784":
        net = nn.Sequential(nn.Linear(784, 10), nn.ReLU(), nn.Linear(10, 10))
        xs = torch.from_numpy(x)
    else:
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10)
        )
        xs = torch.from_numpy(x.reshape(-1, 1, 8, 8))
    ys = torch.from_numpy(y)
    net, xs, ys = net.to(device), xs.to(device), ys.to(device)
    adam = torch.optim.Adam(net.parameters(), lr=1e-3)
    loss = nn.CrossEntropyLoss()

    def run() -> float:
        steps, start = 0, time.perf_counter()
        wait = torch.cuda.synchronize if device != "cpu" else lambda: None
        for _ in range(epochs):
            order = torch.randperm(len(xs), device=device)
            for i in range(0, len(xs), batch):
                rows = order[i : i + batch]
                adam.zero_grad(set_to_none=True)
                loss(net(xs[rows]), ys[rows]).backward()
                adam.step()
                steps += 1
        wait()
        return (time.perf_counter() - start) / steps

    return run


def measured(repeat: int, peer: bool, only: str | None, device: str) -> list[dict[str, Any]]:
    """Time and print every model and batch size, on the devices that `only` names (None: any), beside torch on `device` where there is a `peer`."""
    rng = np.random.default_rng(0)
    results = []
    for model, rows, batch, epochs in [
        ("mlp_784", 6400, 32, 3),
        ("mlp_784", 6400, 128, 8),
        ("digits_cnn", 1440, 32, 3),
        ("digits_cnn", 1440, 128, 6),
    ]:
        width = int(np.prod(MODELS[model]["input"]))
        x, y = rng.normal(size=(rows, width)).astype(np.float32), rng.integers(0, 10, rows)
        plan = hetsched_plan(model, rows, batch, epochs, only)
        other = torch_step(model, x, y, batch, epochs, device) if peer else None
        hetsched_step(plan, x, y)
        if other is not None:
            other()
        ours, theirs = [], []
        for _ in range(repeat):
            ours.append(hetsched_step(plan, x, y) * 1e3)
            if other is not None:
                theirs.append(other() * 1e3)
        row: dict[str, Any] = {"model": model, "batch": batch, "hetsched_ms": statistics.median(ours), "hetsched_range_ms": [min(ours), max(ours)]}
        row["device"] = device
        line = f"{model:11s} batch {batch:4d} {device}: hetsched {statistics.median(ours):7.3f} ms ({min(ours):.3f}-{max(ours):.3f})"
        if theirs:
            row |= {"torch_ms": statistics.median(theirs), "torch_range_ms": [min(theirs), max(theirs)]}
            row["ratio"] = row["hetsched_ms"] / row["torch_ms"]
            line += f", torch {row['torch_ms']:7.3f} ms ({min(theirs):.3f}-{max(theirs):.3f}), ratio {row['ratio']:.2f}"
        print(line, flush=True)
        results.append(row)
    return results


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    try:
        import torch

        peer = f"torch {torch.__version__}, {THREADS} threads"
    except ImportError:
        peer = ""
        print("torch is not installed: only hetsched is timed (pip install '.[bench]')", file=sys.stderr)
    print(f"hetsched {hs.__version__}, NumPy {np.__version__}, {THREADS} cores, {platform.machine()}; peer: {peer or 'none'}")
    reason = _gpu.missing()
    if reason is not None:
        print(f"GPU skipped: {reason}")
    results = measured(options.repeat, bool(peer), "cpu", "cpu")
    if reason is None:
        beside = _gpu.torch_on_cuda()
        print(f"{_gpu.device_name()}{f'; torch is not timed on it: {beside}' if beside else ''}")
        results += measured(options.repeat, beside is None, "cuda:0", "cuda")
    if options.json is not None:
        options.json.write_text(json.dumps({"peer": peer, "cores": THREADS, "rows": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
