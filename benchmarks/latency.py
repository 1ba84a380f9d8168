"""The time of one request: a compiled MLP and CNN with 1 and 4 callers at once, beside onnxruntime and torch on CPU, in one run.

    python benchmarks/latency.py [--requests 2000] [--rounds 5] [--json FILE]

Each request is one item (batch 1, float32) and gets its logits. All systems have the same weights, threads as they come (hetsched: one a caller here,
by its plan; onnxruntime and torch: intra-op threads limited to 1 and to all cores, both printed), and their results are compared.
Rounds of the systems take turns; p50 and p99 are of all requests of a system, the ratio is of p50s of the same round, its median over the rounds.
Peers that are not installed are named and left out. Callers are threads; "awaited" are as many coroutines of one event loop.

- mlp: 784-10-10, relu, the network of pipelines/mlp_784.yaml; mlp_wide: 784-128-64-10.
- cnn: 1x28x28, two 3x3 convolutions (8 and 16 channels, relu), 2x2 max pooling after each, dense 10.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import hetsched as hs

SIZES = {"mlp": (784, 10, 10), "mlp_wide": (784, 128, 64, 10)}
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
Request = Callable[[Any], Any]


def weights(model: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        fan = int(np.prod(shape[:-1] if len(shape) == 2 else shape[1:]))
        return (rng.normal(size=shape) / np.sqrt(fan)).astype(np.float32)

    if model in SIZES:
        sizes = SIZES[model]
        found = {f"w{i}": normal(a, b) for i, (a, b) in enumerate(pairwise(sizes))}
        return found | {f"b{i}": normal(b, 1)[:, 0] for i, b in enumerate(sizes[1:])}
    return {
        "w0": normal(8, 1, 3, 3), "b0": normal(8, 1)[:, 0], "w1": normal(16, 8, 3, 3), "b1": normal(16, 1)[:, 0],
        "w2": normal(16 * 7 * 7, 10), "b2": normal(10, 1)[:, 0],
    }  # fmt: skip


def shape_of(model: str) -> tuple[int, ...]:
    return (1, 784) if model in SIZES else (1, 1, 28, 28)


# Systems: a function that opens one and gives (request, close) --------------------------------------------------------------------


def by_hetsched(model: str, w: dict[str, np.ndarray], callers: int) -> tuple[Request, Callable[[], None]]:
    b = hs.Graph.build()
    x = b.input("x", shape_of(model))
    c = {name: b.constant(array, name) for name, array in w.items()}
    if model in SIZES:
        last = len(SIZES[model]) - 2
        for i in range(last + 1):
            x = b.op("nn.dense", x, c[f"w{i}"], c[f"b{i}"], activation="relu" if i < last else "none")
    else:
        for i in range(2):
            x = b.op("nn.conv2d", x, c[f"w{i}"], c[f"b{i}"], padding=1, activation="relu")
            x = b.op("nn.max_pool2d", x, size=2)
        x = b.op("nn.dense", b.op("tensor.reshape", x, shape=(1, 16 * 7 * 7)), c["w2"], c["b2"])
    session = hs.Session()
    f = session.compile(b.output(x, "y").freeze(), objective="latency", only="cpu", buffers=callers)

    def request(item: Any) -> Any:
        return f(item)["y"]

    request.awaited = f.run_async  # type: ignore[attr-defined]
    return request, session.close


def by_onnxruntime(threads: int) -> Callable[..., tuple[Request, Callable[[], None]]]:
    def make(model: str, w: dict[str, np.ndarray], callers: int) -> tuple[Request, Callable[[], None]]:
        import onnx
        import onnxruntime

        helper = onnx.helper
        nodes, value = [], "x"
        if model in SIZES:
            last = len(SIZES[model]) - 2
            for i in range(last + 1):
                nodes.append(helper.make_node("Gemm", [value, f"w{i}", f"b{i}"], [f"g{i}"]))
                value = f"g{i}"
                if i < last:
                    nodes.append(helper.make_node("Relu", [value], [f"r{i}"]))
                    value = f"r{i}"
        else:
            for i in range(2):
                nodes.append(helper.make_node("Conv", [value, f"w{i}", f"b{i}"], [f"c{i}"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
                nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
                nodes.append(helper.make_node("MaxPool", [f"r{i}"], [f"p{i}"], kernel_shape=[2, 2], strides=[2, 2]))
                value = f"p{i}"
            nodes.append(helper.make_node("Flatten", [value], ["flat"]))
            nodes.append(helper.make_node("Gemm", ["flat", "w2", "b2"], ["g"]))
            value = "g"
        floats = onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            nodes, model, [helper.make_tensor_value_info("x", floats, shape_of(model))], [helper.make_tensor_value_info(value, floats, [1, 10])],
            [onnx.numpy_helper.from_array(array, name) for name, array in w.items()],
        )  # fmt: skip
        whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        session = onnxruntime.InferenceSession(whole.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return lambda item: session.run(None, {"x": item})[0], lambda: None

    return make


def by_torch(threads: int) -> Callable[..., tuple[Request, Callable[[], None]]]:
    def make(model: str, w: dict[str, np.ndarray], callers: int) -> tuple[Request, Callable[[], None]]:
        import torch

        nn = torch.nn
        torch.set_num_threads(threads)
        if model in SIZES:
            layers = [nn.Linear(a, b) for a, b in pairwise(SIZES[model])]
            net = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))[:-1]
        else:
            net = nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                nn.Flatten(), nn.Linear(16 * 7 * 7, 10),
            )  # fmt: skip
            layers = [net[0], net[3], net[7]]
        with torch.no_grad():
            for i, layer in enumerate(layers):
                array = w[f"w{i}"]
                layer.weight.copy_(torch.from_numpy(array if array.ndim == 4 else array.T.copy()))
                layer.bias.copy_(torch.from_numpy(w[f"b{i}"]))
        net.eval()

        def request(item: Any) -> Any:
            torch.set_num_threads(threads)
            with torch.inference_mode():
                return net(torch.from_numpy(item)).numpy()

        return request, lambda: None

    return make


SYSTEMS: list[tuple[str, str, Callable[..., tuple[Request, Callable[[], None]]]]] = [
    ("hetsched", "numpy", by_hetsched),
    ("onnxruntime, 1 thread", "onnxruntime", by_onnxruntime(1)),
    (f"onnxruntime, {CORES} threads", "onnxruntime", by_onnxruntime(CORES)),
    ("torch, 1 thread", "torch", by_torch(1)),
    (f"torch, {CORES} threads", "torch", by_torch(CORES)),
]


def requests(request: Request, items: list[np.ndarray], callers: int, each: int) -> list[float]:
    """Seconds of each of `each` requests from each of `callers` threads at once."""
    found: list[list[float]] = [[] for _ in range(callers)]
    start = threading.Barrier(callers)

    def call(number: int) -> None:
        mine = found[number].append
        start.wait()
        for i in range(each):
            item = items[(i + number) % len(items)]
            begin = perf_counter()
            request(item)
            mine(perf_counter() - begin)

    if callers == 1:
        call(0)
    else:
        threads = [threading.Thread(target=call, args=(n,)) for n in range(callers)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    return [s for row in found for s in row]


def awaited(call: Callable[[Any], Any], items: list[np.ndarray], callers: int, each: int) -> list[float]:
    """Seconds of each of `each` requests from each of `callers` coroutines of one event loop."""
    found: list[float] = []

    async def caller(number: int) -> None:
        for i in range(each):
            begin = perf_counter()
            await call(items[(i + number) % len(items)])
            found.append(perf_counter() - begin)

    async def together() -> None:
        await asyncio.gather(*(caller(n) for n in range(callers)))

    asyncio.run(together())
    return found


def measure(model: str, callers: int, total: int, rounds: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    items = [rng.normal(size=shape_of(model)).astype(np.float32) for _ in range(16)]
    w = weights(model)
    opened: dict[str, tuple[Request, Callable[[], None]]] = {}
    for name, module, make in SYSTEMS:
        try:
            __import__(module)
        except ImportError:
            print(f"{name} is not installed: left out", file=sys.stderr)
            continue
        opened[name] = make(model, w, callers)
    wanted = [opened["hetsched"][0](x).copy() for x in items]
    for name, (request, _) in opened.items():
        for x, y in zip(items, wanted, strict=True):
            np.testing.assert_allclose(request(x), y, rtol=1e-3, atol=1e-4, err_msg=name)
        requests(request, items, callers, 100)
    times: dict[str, list[list[float]]] = {name: [] for name in opened}
    for _ in range(rounds):
        if callers > 1:
            call = opened["hetsched"][0].awaited  # type: ignore[attr-defined]
            times.setdefault("hetsched, awaited", []).append(awaited(call, items, callers, total // rounds // callers))
        for name, (request, _) in opened.items():
            times[name].append(requests(request, items, callers, total // rounds // callers))
    for _, close in opened.values():
        close()
    rows = []
    for name, found in times.items():
        together = [s for row in found for s in row]
        ratio = statistics.median(statistics.median(a) / statistics.median(b) for a, b in zip(times["hetsched"], found, strict=True))
        p50, p99 = np.percentile(together, [50, 99]) * 1e6
        rows.append({"model": model, "callers": callers, "system": name, "p50_us": p50, "p99_us": p99, "hetsched_over_it": ratio})
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000, help="of each system and case, over all callers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    print(f"hetsched {hs.__version__}, NumPy {np.__version__}, {CORES} cores; microseconds of a request")
    rows = []
    for model in ("mlp", "mlp_wide", "cnn"):
        for callers in (1, 4):
            found = measure(model, callers, options.requests, options.rounds)
            rows += found
            for row in found:
                ratio = "" if row["system"].startswith("hetsched") else f", hetsched / it {row['hetsched_over_it']:.2f}"
                print(
                    f"{model}, {callers} caller{'s' * (callers > 1)}: {row['system']:24s} p50 {row['p50_us']:8.1f}  p99 {row['p99_us']:8.1f}{ratio}",
                    flush=True,
                )
    if options.json is not None:
        options.json.write_text(json.dumps({"cores": CORES, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
