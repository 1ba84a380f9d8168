"""The time of one request: a compiled MLP and CNN with 1 and 4 callers at once, beside onnxruntime and torch on CPU, in one run.

    python benchmarks/latency.py [--requests 2000] [--rounds 5] [--json FILE]

Each request is one item (batch 1, float32) and gets its logits. All systems have the same weights, threads as they come (hetsched: one a caller here,
by its plan; onnxruntime and torch: intra-op threads limited to 1 and to all cores, both printed), and their results are compared.
Rounds of the systems take turns; p50 and p99 are of all requests of a system, the ratio is of p50s of the same round, its median over the rounds.
Peers that are not installed are named and left out. Callers are threads; "awaited" are as many coroutines of one event loop.

    python benchmarks/latency.py --cuda [--requests 1000] [--rounds 5] [--seconds 30] [--json FILE]

does the same with the models on the first CUDA device: hetsched (every task on `cuda:0`; as it comes, and with HETSCHED_CUDA_GRAPHS=1) beside torch
(eager, and a CUDA graph for each caller on a stream of its own with pinned memory) and, for comparison, hetsched on the processor. Items come from
the host and logits go back to it. A system that fails is named with its error and left out, the others go on (exit status 1). About 25 s on an H100.

- mlp: 784-10-10, relu, the network of pipelines/mlp_784.yaml; mlp_wide: 784-128-64-10.
- cnn: 1x28x28, two 3x3 convolutions (8 and 16 channels, relu), 2x2 max pooling after each, dense 10.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import queue
import statistics
import sys
import threading
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import _gpu
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


Opened = tuple[Request, Callable[[], None]]


def by_hetsched(model: str, w: dict[str, np.ndarray], callers: int, only: str = "cpu") -> Opened:
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
    f = session.compile(b.output(x, "y").freeze(), objective="latency", only=only, buffers=callers)

    def request(item: Any) -> Any:
        return f(item)["y"]

    request.awaited = f.run_async  # type: ignore[attr-defined]
    return request, session.close


def by_hetsched_in_graphs(model: str, w: dict[str, np.ndarray], callers: int) -> Opened:
    """On CUDA, launches captured as graphs: streams are asked for when the first calls open them."""
    with _gpu.environment("HETSCHED_CUDA_GRAPHS", "1"):
        request, close = by_hetsched(model, w, callers, "cuda:0")
        requests(request, [np.zeros(shape_of(model), np.float32)], callers, 20)
    return request, close


def by_onnxruntime(threads: int) -> Callable[..., Opened]:
    def make(model: str, w: dict[str, np.ndarray], callers: int) -> Opened:
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


def by_torch(threads: int) -> Callable[..., Opened]:
    def make(model: str, w: dict[str, np.ndarray], callers: int) -> Opened:
        import torch

        net = torch_net(model, w)

        def request(item: Any) -> Any:
            torch.set_num_threads(threads)
            with torch.inference_mode():
                return net(torch.from_numpy(item)).numpy()

        return request, lambda: None

    return make


def torch_net(model: str, w: dict[str, np.ndarray]) -> Any:
    """The network in torch."""
    import torch

    nn = torch.nn
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
    return net.eval()


def by_torch_on_cuda(model: str, w: dict[str, np.ndarray], callers: int) -> Opened:
    torch = _gpu.torch_in_float32()
    net = torch_net(model, w).cuda()

    def request(item: Any) -> Any:
        with torch.inference_mode():
            return net(torch.from_numpy(item).cuda()).cpu().numpy()

    return request, lambda: None


class TorchGraph:
    """A network as a CUDA graph, with the copies: pinned memory, a stream of its own. One caller at a time."""

    def __init__(self, net: Any, shape: tuple[int, ...]) -> None:
        import torch

        self.stream = torch.cuda.Stream()
        self.here = torch.zeros(shape, pin_memory=True)
        self.numpy = self.here.numpy()
        self.x = torch.zeros(shape, device="cuda")
        with torch.inference_mode():
            with torch.cuda.stream(self.stream):
                for _ in range(3):
                    y = net(self.x)
            self.stream.synchronize()
            self.out = torch.empty(y.shape, pin_memory=True)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=self.stream):
                self.x.copy_(self.here, non_blocking=True)
                self.out.copy_(net(self.x), non_blocking=True)

    def __call__(self, item: Any) -> Any:
        import torch

        self.numpy[...] = item
        with torch.cuda.stream(self.stream):
            self.graph.replay()
        self.stream.synchronize()
        return self.out.numpy().copy()


def by_torch_graph(model: str, w: dict[str, np.ndarray], callers: int) -> Opened:
    torch = _gpu.torch_in_float32()
    net = torch_net(model, w).cuda()
    torch.cuda.synchronize()
    free: queue.SimpleQueue[TorchGraph] = queue.SimpleQueue()
    for _ in range(callers):
        free.put(TorchGraph(net, shape_of(model)))

    def request(item: Any) -> Any:
        graph = free.get()
        try:
            return graph(item)
        finally:
            free.put(graph)

    return request, lambda: None


SYSTEMS: list[tuple[str, str, Callable[..., Opened]]] = [
    ("hetsched", "numpy", by_hetsched),
    ("onnxruntime, 1 thread", "onnxruntime", by_onnxruntime(1)),
    (f"onnxruntime, {CORES} threads", "onnxruntime", by_onnxruntime(CORES)),
    ("torch, 1 thread", "torch", by_torch(1)),
    (f"torch, {CORES} threads", "torch", by_torch(CORES)),
]
ON_CUDA: list[tuple[str, str, Callable[..., Opened]]] = [
    ("hetsched", "numpy", partial(by_hetsched, only="cuda:0")),
    ("hetsched, CUDA graphs", "numpy", by_hetsched_in_graphs),
    ("hetsched, processor", "numpy", by_hetsched),
    ("torch", "torch", by_torch_on_cuda),
    ("torch, CUDA graph", "torch", by_torch_graph),
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


def measure(model: str, callers: int, total: int, rounds: int, systems: list[tuple[str, str, Callable[..., Opened]]]) -> list[dict[str, Any]]:
    """Rows of one case; of a system that fails, one with its error."""
    rng = np.random.default_rng(1)
    items = [rng.normal(size=shape_of(model)).astype(np.float32) for _ in range(16)]
    w = weights(model)
    opened: dict[str, Opened] = {}
    wanted: list[Any] = []
    rows: list[dict[str, Any]] = []
    for name, module, make in systems:
        try:
            __import__(module)
        except ImportError:
            print(f"{name} is not installed: left out", file=sys.stderr)
            continue
        try:
            request, close = make(model, w, callers)
            found = [request(x).copy() for x in items]
            wanted = wanted or found
            for x, y in zip(found, wanted, strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4, err_msg=name)
            requests(request, items, callers, 100)
        except Exception as error:
            rows.append(
                {"model": model, "callers": callers, "system": name, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
            )
            continue
        opened[name] = request, close
    times: dict[str, list[list[float]]] = {name: [] for name in opened}
    for _ in range(rounds):
        if callers > 1 and "hetsched" in opened:
            call = opened["hetsched"][0].awaited  # type: ignore[attr-defined]
            times.setdefault("hetsched, awaited", []).append(awaited(call, items, callers, total // rounds // callers))
        for name, (request, _) in opened.items():
            times[name].append(requests(request, items, callers, total // rounds // callers))
    for _, close in opened.values():
        close()
    for name, found in times.items():
        together = [s for row in found for s in row]
        p50, p99 = np.percentile(together, [50, 99]) * 1e6
        row: dict[str, Any] = {"model": model, "callers": callers, "system": name, "p50_us": p50, "p99_us": p99}
        if "hetsched" in times:
            both = zip(times["hetsched"], found, strict=True)
            row["hetsched_over_it"] = statistics.median(statistics.median(a) / statistics.median(b) for a, b in both)
        rows.append(row)
    return rows


def tell(row: dict[str, Any]) -> None:
    """A row as a line."""
    begin = f"{row['model']}, {row['callers']} caller{'s' * (row['callers'] > 1)}: {row['system']:24s}"
    if "error" in row:
        print(f"{begin} FAILED: {row['error']}", flush=True)
        return
    it = row["system"] != "hetsched" and not row["system"].endswith("awaited") and "hetsched_over_it" in row
    print(
        f"{begin} p50 {row['p50_us']:8.1f}  p99 {row['p99_us']:8.1f}" + (f", hetsched / it {row['hetsched_over_it']:.2f}" if it else ""), flush=True
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuda", action="store_true", help="the models on the first CUDA device, beside torch there")
    parser.add_argument("--requests", type=int, help="of each system and case, over all callers (2000; with --cuda 1000)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, help="begin no further case after so long (with --cuda 30)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    print(f"hetsched {hs.__version__}, NumPy {np.__version__}, {CORES} cores; microseconds of a request")
    systems, about = SYSTEMS, {"cores": CORES}
    if options.cuda:
        reason = _gpu.missing()
        if reason is not None:
            print(f"skipped: {reason}")
            return 0
        beside = _gpu.torch_on_cuda()
        print(f"{_gpu.device_name()}{f'; torch is left out: {beside}' if beside else ''}")
        systems = [s for s in ON_CUDA if s[1] != "torch" or beside is None]
        about = {"device": _gpu.device_name(), "cores": CORES}
    parts = _gpu.Parts(options.seconds or (30 if options.cuda else float("inf")))

    def case(model: str, callers: int) -> list[dict[str, Any]]:
        found = measure(model, callers, options.requests or (1000 if options.cuda else 2000), options.rounds, systems)
        for row in found:
            tell(row)
            if "error" in row:
                parts.errors[f"{model}, {callers}: {row['system']}"] = row["error"]
        return found

    for model in ("mlp", "mlp_wide", "cnn"):
        for callers in (1, 4):
            parts(f"{model}, {callers}", partial(case, model, callers))
    return parts.end(options.json, **about)


if __name__ == "__main__":
    sys.exit(main())
