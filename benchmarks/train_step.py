"""Milliseconds per training step of hetsched's pipelines beside torch, on CPU and, where there is one, on a CUDA device; in one run.

    python benchmarks/train_step.py [--repeat 5] [--only cpu|cuda] [--models mlp_784 ...] [--batches 32 128] [--profile] [--json FILE]

Both train the same network on the same arrays with the same optimizer, shuffled batches and the same number of threads: mlp_784 (784-10-10, relu,
Adam) and a CNN for the digits (8 and 16 channels), at batch 32 and 128. The figure is the loop's wall time over its steps; repeats take turns, so
that both see the same noise; the ratio is of medians. torch is the benchmark's own extra (`pip install ".[bench]"`); without it only hetsched's
times are printed.

On CUDA (hetsched with every task that can on `cuda:0`; data lie on the device before torch's first step) torch stands beside in two ways: eager, and
with its step captured as a CUDA graph as its documentation teaches: warmed up on a side stream, static inputs, Adam fused and capturable, one graph
for each size of batch, replayed for each step. Before that a line tells how far hetsched's weights on the device are from those on CPU after an
epoch. `--profile` adds what the host does for a step there. Without a device the reason is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import _gpu
import numpy as np

import hetsched as hs
from hetsched.graph.graph import Bundle, Graph
from hetsched.graph.op import Composite, Scene
from hetsched.graph.ops import registry

# (model, rows, batch, epochs on CPU). On CUDA there are as many epochs as make up `_CUDA_STEPS` steps: a step takes some tens of microseconds.
CASES = [("mlp_784", 6400, 32, 3), ("mlp_784", 6400, 128, 8), ("digits_cnn", 1440, 32, 3), ("digits_cnn", 1440, 128, 6)]
_CUDA_STEPS = 3000
_WARM_UP = 3  # steps before a capture, so that nothing is initialized in it

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


def torch_net(model: str, device: str) -> Any:
    """The network."""
    from torch import nn

    if model == "mlp_784":
        net = nn.Sequential(nn.Linear(784, 10), nn.ReLU(), nn.Linear(10, 10))
    else:
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10)
        )
    return net.to(device)


def torch_data(model: str, x: np.ndarray, y: np.ndarray, device: str) -> tuple[Any, Any]:
    """Examples and labels on the device."""
    import torch

    xs = torch.from_numpy(x if model == "mlp_784" else x.reshape(-1, 1, 8, 8))
    return xs.to(device), torch.from_numpy(y).to(device)


def torch_step(model: str, x: np.ndarray, y: np.ndarray, batch: int, epochs: int, device: str = "cpu") -> Callable[[], float]:
    """A function that trains with torch and gives seconds a step. The data lie on the device before the first step."""
    import torch

    torch.set_num_threads(THREADS)
    net = torch_net(model, device)
    xs, ys = torch_data(model, x, y, device)
    adam = torch.optim.Adam(net.parameters(), lr=1e-3)
    loss = torch.nn.CrossEntropyLoss()

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


def torch_graph_step(model: str, x: np.ndarray, y: np.ndarray, batch: int, epochs: int) -> Callable[[], float]:
    """`torch_step` on CUDA with its steps as graphs: the row numbers of a batch are copied to where the graph reads them, and it is replayed."""
    import torch

    net = torch_net(model, "cuda")
    xs, ys = torch_data(model, x, y, "cuda")
    adam = torch.optim.Adam(net.parameters(), lr=1e-3, capturable=True, fused=True)
    loss = torch.nn.CrossEntropyLoss()
    graphs = {}

    def step(rows: Any) -> None:
        loss(net(xs[rows]), ys[rows]).backward()
        adam.step()

    for size in dict.fromkeys([batch, len(xs) % batch or batch]):
        rows = torch.arange(size, device="cuda")
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                adam.zero_grad(set_to_none=True)
                step(rows)
        torch.cuda.current_stream().wait_stream(side)
        adam.zero_grad(set_to_none=True)  # the gradients are made in the capture, in memory of its own
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step(rows)
        graphs[size] = (graph, rows)

    def run() -> float:
        steps, start = 0, time.perf_counter()
        for _ in range(epochs):
            order = torch.randperm(len(xs), device="cuda")
            for i in range(0, len(xs), batch):
                now = order[i : i + batch]
                graph, rows = graphs[len(now)]
                rows.copy_(now)
                graph.replay()
                steps += 1
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / steps

    run.held = (net, xs, ys, adam)  # type: ignore[attr-defined]  # a graph reads their memory and does not keep it
    return run


# What the host does for a step on CUDA ------------------------------------------------------------------------------------------------

_WATCHED = ("segment", "launch", "_launch_pieces", "record", "wait", "upload", "download", "copy", "_event", "_capture")


@contextmanager
def watched() -> Iterator[dict[str, list[float]]]:
    """Calls of hetsched's CUDA streams while it lasts: name -> [times, seconds of the host, those of calls inside included]."""
    from hetsched.executors.backends._cuda_live import Stream

    found: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])

    def counted(name: str, call: Any) -> Any:
        def method(*given: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*given, **options)
            finally:
                row = found[name]
                row[0] += 1
                row[1] += time.perf_counter() - start

        return method

    before = {name: getattr(Stream, name) for name in _WATCHED if hasattr(Stream, name)}
    for name, call in before.items():
        setattr(Stream, name, counted(name, call))
    try:
        yield found
    finally:
        for name, call in before.items():
            setattr(Stream, name, call)


def profile(plan: Any, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Print and give, for one run on CUDA: launches of a turn, what the host asks of the streams for a turn, and how long the device is at it."""
    with watched() as calls:
        trace = hs.run(plan, {"x": x, "y": y}).trace
    task, body = max(trace.loops.items(), key=lambda item: item[1].turns)
    span = next(s for s in trace.launches if s.command.task == task)
    turns = body.turns
    last = max(s.command.turn for s in body.launches)
    steady = sorted((s.start, s.finish, body.graph.task_names[s.command.task]) for s in body.launches if s.command.turn == last)
    out = {
        "turns": turns,
        "wall_us": (span.finish - span.start) / turns * 1e6,
        "calls_a_turn": {name: n / turns for name, (n, _) in calls.items()},
        "host_us_a_turn": {name: seconds / turns * 1e6 for name, (_, seconds) in calls.items()},
        "last_turn_us": (steady[-1][1] - steady[0][0]) * 1e6,
        "last_turn": [[name, (finish - start) * 1e6] for start, finish, name in steady],
    }
    print(f"    wall {out['wall_us']:.1f} us a turn over {turns} turns; the last turn took the device {out['last_turn_us']:.1f} us")
    print("    calls of streams a turn: " + ", ".join(f"{name} {n / turns:.2f} ({s / turns * 1e6:.1f} us)" for name, (n, s) in calls.items()))
    early = next(turn for turn in sorted({s.command.turn for s in body.launches}, reverse=True) if turn <= 7)
    print("    launches of a turn that was timed one by one: " + ", ".join(
        f"{body.graph.task_names[s.command.task]} {(s.finish - s.start) * 1e6:.1f}" for s in body.launches if s.command.turn == early))  # fmt: skip
    return out


def agreement(model: str, x: np.ndarray, y: np.ndarray, batch: int) -> float:
    """The largest difference of a weight after an epoch on CUDA from the one on CPU, as a share of the largest weight of its array."""
    found = [hs.run(hetsched_plan(model, len(x), batch, 1, only), {"x": x, "y": y}) for only in ("cuda:0", "cpu")]
    names = [name for name in found[0] if name.startswith("model")]
    assert names
    return max(float(np.abs(found[0][name] - found[1][name]).max() / np.abs(found[1][name]).max()) for name in names)


# Both, side by side -------------------------------------------------------------------------------------------------------------------


def measured(repeat: int, peer: bool, only: str, device: str, name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time and print every model and batch size on the devices that `only` names, beside torch on `device` where there is a `peer`."""
    rng = np.random.default_rng(0)
    results = []
    for model, rows, batch, cpu_epochs in CASES:
        if model not in options.models or batch not in options.batches:
            continue
        epochs = cpu_epochs if device == "cpu" else -(-_CUDA_STEPS // -(-rows // batch))
        width = int(np.prod(MODELS[model]["input"]))
        x, y = rng.normal(size=(rows, width)).astype(np.float32), rng.integers(0, 10, rows)
        row: dict[str, Any] = {"model": model, "batch": batch, "device": device, "device_name": name}
        row["steps"] = epochs * -(-rows // batch)
        plan = hetsched_plan(model, rows, batch, epochs, only)
        times: dict[str, list[float]] = {"hetsched": []}
        steps: dict[str, Callable[[], float]] = {"hetsched": lambda plan=plan, x=x, y=y: hetsched_step(plan, x, y)}  # type: ignore[misc]
        if peer:
            steps["torch"] = torch_step(model, x, y, batch, epochs, device)
        if peer and device != "cpu":
            steps["torch_graphs"] = torch_graph_step(model, x, y, batch, epochs)
        if device != "cpu":
            row["difference_from_cpu"] = agreement(model, x, y, batch)
            print(f"{model:11s} batch {batch:4d}: weights on {only} after an epoch differ from those on cpu by {row['difference_from_cpu']:.1e}")
        for step in steps.values():
            step()
        for _ in range(repeat):
            for who, step in steps.items():
                times.setdefault(who, []).append(step() * 1e3)
        line = f"{model:11s} batch {batch:4d} {device}:"
        for who, ms in times.items():
            row |= {f"{who}_ms": statistics.median(ms), f"{who}_range_ms": [min(ms), max(ms)]}
            line += f"{',' if who != 'hetsched' else ''} {who} {row[f'{who}_ms']:7.4f} ms ({min(ms):.4f}-{max(ms):.4f})"
            if who != "hetsched":
                key = "ratio" if who == "torch" else f"ratio_{who}"
                row[key] = row["hetsched_ms"] / row[f"{who}_ms"]
                line += f", ratio {row[key]:.2f}"
        print(line, flush=True)
        if options.profile and device != "cpu":
            row["profile"] = profile(plan, x, y)
        results.append(row)
    return results


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", choices=["cpu", "cuda"], help="measure on these devices alone")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, choices=sorted({case[2] for case in CASES}), default=[32, 128])
    parser.add_argument("--profile", action="store_true", help="tell what the host does for a step on CUDA")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    try:
        import torch

        peer = f"torch {torch.__version__}, {THREADS} threads"
    except ImportError:
        peer = ""
        print("torch is not installed: only hetsched is timed (pip install '.[bench]')", file=sys.stderr)
    print(f"hetsched {hs.__version__}, NumPy {np.__version__}, {THREADS} cores, {platform.machine()}; peer: {peer or 'none'}")
    results = []
    if options.only != "cuda":
        results += measured(options.repeat, bool(peer), "cpu", "cpu", platform.processor() or platform.machine(), options)
    if options.only != "cpu":
        reason = _gpu.missing()
        if reason is not None:
            print(f"GPU skipped: {reason}")
        else:
            beside = _gpu.torch_on_cuda()
            name = _gpu.device_name()
            graphs = os.environ.get("HETSCHED_CUDA_GRAPHS", "")
            print(f"{name}; HETSCHED_CUDA_GRAPHS={graphs!r}{f'; torch is not timed on it: {beside}' if beside else ''}")
            results += measured(options.repeat, beside is None, "cuda:0", "cuda", name, options)
    if options.json is not None:
        options.json.write_text(json.dumps({"peer": peer, "cores": THREADS, "rows": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
