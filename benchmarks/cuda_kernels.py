"""CUDA kernels of hetsched beside CuPy and torch on the same card, in one run; what a launch and a copy cost.

    python benchmarks/cuda_kernels.py [--device cuda:0] [--tries 5] [--only NAMES] [--seconds 40] [--json FILE]

Matrix products, convolutions and their gradients, Adam, an element-wise chain, softmax, cross-entropy, reductions, pooling: seconds a launch when
many are handed over one after the other and waited for together, so that whichever is slower counts, the card or the host that hands over. Each
figure is the median of `--tries` tries; in each the systems take turns; ratios are hetsched's time over that of the peer (below 1: hetsched is
faster). All is float32 without TF32. Results are compared with NumPy's. Launches: microseconds of the host's time. Copies: GB/s from handing over
until done, through pinned chunks as runs do it.

A part that fails prints its error, and the others go on (exit status 1). Peers that are not installed are named and left out. About 30 s on an H100.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import _gpu
import numpy as np
from _kernels import Bound, bind

import hetsched as hs
from hetsched.executors.backends import cuda
from hetsched.graph.op import Op
from hetsched.graph.ops import find
from hetsched.machine import Device

ARENA_NBYTES = 1 << 30
SIZES = [512, 1024, 2048, 4096]
CONVOLUTIONS = [((32, 64, 56, 56), 64), ((32, 256, 14, 14), 256)]  # images [n, c, h, w], outputs; 3x3, padded by 1 (layers of ResNet)
TOLERANCE = 1e-3  # of the largest value: sums in another order
TRY_SECONDS, MOST_LAUNCHES = 4e-3, 500


class System(NamedTuple):
    """Somebody who does the work. action: hands one launch over; wait: for all of them; inside: what surrounds a try."""

    action: Callable[[], object]
    wait: Callable[[], object]
    inside: Callable[[], AbstractContextManager[Any]] = nullcontext


class Bench:
    def __init__(self, device: str, tries: int) -> None:
        self.live = cuda.open(Device(device, "cuda"), ARENA_NBYTES)
        self.stream = self.live.stream("compute")
        self.languages = next(d.languages for d in cuda.find().devices if d.id == device)
        self.tries = tries
        self.rng = np.random.default_rng(0)
        import cupy

        self.cupy, self.cupy_stream = cupy, cupy.cuda.Stream(non_blocking=True)
        self.torch = _gpu.torch_in_float32() if _gpu.torch_on_cuda() is None else None
        if self.torch is not None:
            self.torch.backends.cudnn.benchmark = True

    # Systems ------------------------------------------------------------------------------------------------------------------

    def bind(self, op: Op, inputs: list[Any], attributes: dict[str, Any] | None = None) -> Bound:
        return bind(self.live, self.stream, self.languages, op, inputs, attributes or {})

    def wait(self) -> None:
        self.stream.record().wait()

    def ours(self, action: Callable[[], object]) -> System:
        return System(action, self.wait)

    def by_cupy(self, action: Callable[[], object]) -> System:
        return System(action, self.cupy_stream.synchronize, lambda: self.cupy_stream)

    def by_torch(self, make: Callable[[Any], Callable[[], object]]) -> dict[str, System]:
        """{} where torch is not there; make: given torch and what moves an array to the card."""
        if self.torch is None:
            return {}
        with self.torch.no_grad():
            return {"torch": System(make(self.torch), self.torch.cuda.synchronize, self.torch.no_grad)}

    def there(self, *arrays: Any) -> list[Any]:
        """Arrays for torch on the card."""
        return [self.torch.from_numpy(x).cuda() for x in arrays]

    def draw(self, *shape: int) -> Any:
        return self.rng.standard_normal(size=shape, dtype=np.float32)

    # Comparing ----------------------------------------------------------------------------------------------------------------

    def compare(self, name: str, systems: dict[str, System], off: float, **work: float) -> dict[str, Any]:
        """Seconds a launch of every system, and hetsched's over each. work: flops or nbytes of a launch."""
        _gpu.warm_up(0.1)  # comparing values has let the card idle
        counts: dict[str, int] = {}
        for who, (action, wait, inside) in systems.items():
            with inside():
                for _ in range(3):
                    action()
                wait()
                start = perf_counter()
                action()
                wait()
                counts[who] = max(1, min(MOST_LAUNCHES, int(TRY_SECONDS / (perf_counter() - start))))
        times: dict[str, list[float]] = {who: [] for who in systems}
        for _ in range(self.tries):
            for who, (action, wait, inside) in systems.items():
                with inside():
                    start = perf_counter()
                    for _ in range(counts[who]):
                        action()
                    wait()
                    times[who].append((perf_counter() - start) / counts[who])
        least = {who: median(found) for who, found in times.items()}
        mine = least["hetsched"]
        row: dict[str, Any] = {"name": name, "seconds": least, "ratio": {who: mine / s for who, s in least.items() if who != "hetsched"}, "off": off}
        text = f"{name:34} hetsched {mine * 1e6:9.1f} us"
        if "flops" in work:
            row["tflops"] = {who: work["flops"] / s / 1e12 for who, s in least.items()}
            text += f" {row['tflops']['hetsched']:6.2f} TFLOP/s"
        if "nbytes" in work:
            row["gbytes_per_second"] = {who: work["nbytes"] / s / 1e9 for who, s in least.items()}
            text += f" {row['gbytes_per_second']['hetsched']:6.0f} GB/s"
        text += "".join(f"; {who} {s * 1e6:9.1f} us, {mine / s:.2f} x" for who, s in least.items() if who != "hetsched")
        print(f"{text}; off by {off:.0e}", flush=True)
        if not off <= TOLERANCE:
            raise SystemExit(f"hetsched's values are off by {off:.2g} of the largest")
        return row

    def matmul(self, n: int) -> dict[str, Any]:
        a, b = self.draw(n, n), self.draw(n, n)
        bound = self.bind(find("tensor.matmul"), [a, b])
        x, y, z = self.cupy.asarray(a), self.cupy.asarray(b), self.cupy.empty((n, n), np.float32)

        def by_torch(torch: Any) -> Callable[[], object]:
            p, q = self.there(a, b)
            return partial(torch.matmul, p, q, out=torch.empty_like(p))

        systems = {"hetsched": self.ours(bound.device), "CuPy": self.by_cupy(lambda: self.cupy.matmul(x, y, out=z)), **self.by_torch(by_torch)}
        bound.device()
        return self.compare(f"matmul {n}", systems, bound.difference(), flops=2.0 * n**3)

    def conv2d(self, shape: tuple[int, ...], outputs: int) -> dict[str, Any]:
        x, w, b = self.draw(*shape), self.draw(outputs, shape[1], 3, 3), self.draw(outputs)
        bound = self.bind(find("nn.conv2d"), [x, w, b], {"padding": 1})

        def by_torch(torch: Any) -> Callable[[], object]:
            p, q, r = self.there(x, w, b)
            return partial(torch.nn.functional.conv2d, p, q, r, padding=1)

        bound.device()
        systems = {"hetsched": self.ours(bound.device), **self.by_torch(by_torch)}
        return self.compare(f"conv2d {list(shape)} -> {outputs}", systems, bound.difference(), flops=bound.flops)

    def adam(self, n: int) -> dict[str, Any]:
        w, g, m, v = self.draw(n), self.draw(n), self.draw(n), np.abs(self.draw(n))
        bound = self.bind(find("optim.adam"), [w, g, m, v, np.array(3, np.int64)])

        def by_torch(torch: Any) -> Callable[[], object]:
            (p,) = self.there(w)
            p.requires_grad_()
            p.grad = self.there(g)[0]
            return torch.optim.Adam([p], lr=1e-3, fused=True).step

        bound.device()
        systems = {"hetsched": self.ours(bound.device), **self.by_torch(by_torch)}
        return self.compare(f"Adam of {n:,} (torch: fused)", systems, bound.difference(), nbytes=7.0 * 4 * n)

    def chain(self, n: int) -> dict[str, Any]:
        """t = tanh(relu(x y + y) / 2) - x, in place: six launches as one kernel beside six."""
        a, b = self.draw(n), self.draw(n)
        x, y, t = (self.live.array(4 * k * n, (n,), np.float32) for k in range(3))
        self.stream.upload(a, x)
        self.stream.upload(b, y)
        steps = [("tensor.mul", [x, y], {}), ("tensor.add", [t, y], {}), ("nn.relu", [t], {}), ("tensor.scale", [t], {"factor": 0.5}),
                 ("nn.tanh", [t], {}), ("tensor.sub", [t, x], {})]  # fmt: skip
        calls = [(find(op).kernels["array"], inputs, [t], None, find(op).check_attributes(given), i) for i, (op, inputs, given) in enumerate(steps)]

        def joined() -> None:
            if not self.stream.segment(calls):
                for call in calls:
                    self.stream.launch(*call[:5])

        def one_by_one() -> None:
            for call in calls:
                self.stream.launch(*call[:5])

        xp = self.cupy
        p, q, r = xp.asarray(a), xp.asarray(b), xp.empty(n, np.float32)

        def by_cupy() -> None:
            xp.multiply(p, q, out=r)
            xp.add(r, q, out=r)
            xp.maximum(r, 0, out=r)
            xp.multiply(r, np.float32(0.5), out=r)
            xp.tanh(r, out=r)
            xp.subtract(r, p, out=r)

        def by_torch(torch: Any) -> Callable[[], object]:
            u, w = self.there(a, b)
            s = torch.empty_like(u)
            return lambda: torch.mul(u, w, out=s).add_(w).relu_().mul_(0.5).tanh_().sub_(u)

        for _ in range(3):
            joined()
        if not self.stream.segment(calls):
            print("the chain was not joined into one kernel", flush=True)
        found, wanted = np.empty(n, np.float32), np.tanh(np.maximum(a * b + b, 0) * np.float32(0.5)) - a
        self.stream.download(t, found)
        self.wait()
        off = float(np.abs(found - wanted).max() / np.abs(wanted).max())
        systems = {"hetsched": self.ours(joined), "hetsched one by one": self.ours(one_by_one), "CuPy": self.by_cupy(by_cupy)}
        systems |= self.by_torch(by_torch)
        return self.compare(f"6 element-wise of {n:,}", systems, off, nbytes=3.0 * 4 * n)

    def softmax(self, rows: int, columns: int) -> dict[str, Any]:
        x = self.draw(rows, columns)
        bound = self.bind(find("nn.softmax"), [x])
        bound.device()
        systems = {"hetsched": self.ours(bound.device), **self.by_torch(lambda torch: partial(torch.softmax, self.there(x)[0], 1))}
        return self.compare(f"softmax [{rows}, {columns}]", systems, bound.difference(), nbytes=2.0 * x.nbytes)

    def cross_entropy(self, rows: int, columns: int) -> dict[str, Any]:
        x, labels = self.draw(rows, columns), self.rng.integers(0, columns, rows)
        bound = self.bind(find("nn.cross_entropy"), [x, labels])
        bound.device()

        def by_torch(torch: Any) -> Callable[[], object]:
            return partial(torch.nn.functional.cross_entropy, *self.there(x, labels))

        systems = {"hetsched": self.ours(bound.device), **self.by_torch(by_torch)}
        return self.compare(f"cross-entropy [{rows}, {columns}]", systems, bound.difference(), nbytes=float(x.nbytes))

    def one(self, title: str, op: str, inputs: list[Any], options: dict[str, Any], by_torch: Callable[[Any, list[Any]], Callable[[], object]] | None,
            flops: bool = False) -> dict[str, Any]:  # fmt: skip
        """A launch of an op beside what torch has for it; by_torch: given torch and the inputs on the card."""
        bound = self.bind(find(op), inputs, options)
        bound.device()
        peers = self.by_torch(lambda torch: by_torch(torch, self.there(*inputs))) if by_torch is not None else {}
        work = {"flops": bound.flops} if flops else {"nbytes": bound.nbytes}
        return self.compare(title, {"hetsched": self.ours(bound.device), **peers}, bound.difference(), **work)

    def conv2d_gradients(self, shape: tuple[int, ...], outputs: int) -> list[dict[str, Any]]:
        x, w, dy = self.draw(*shape), self.draw(outputs, shape[1], 3, 3), self.draw(shape[0], outputs, *shape[2:])

        def by_torch(wanted: list[bool]) -> Callable[[Any, list[Any]], Callable[[], object]]:
            def make(torch: Any, _: list[Any]) -> Callable[[], object]:
                p, q, r = self.there(x, w, dy)
                backward = torch.ops.aten.convolution_backward
                return partial(backward, r, p, q, [outputs], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, wanted)

            return make

        what = f"{list(shape)} -> {outputs}"
        return [
            self.one(f"... of x {what}", "nn.conv2d_grad_input", [w, dy], {"padding": 1, "image": shape[2:]}, by_torch([True, False, False]), True),
            self.one(f"... of w {what}", "nn.conv2d_grad_weight", [x, dy], {"padding": 1, "kernel": [3, 3]}, by_torch([False, True, True]), True),
        ]

    def rows(self, rows: int, columns: int) -> list[dict[str, Any]]:
        """What goes along rows, columns, or all of an array."""
        x, dy, labels = self.draw(rows, columns), self.draw(rows, columns), self.rng.integers(0, columns, rows)
        y = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
        what, size = f"[{rows}, {columns}]", x.size
        found = [
            self.one(f"softmax's gradient {what}", "nn.softmax_grad", [y, dy], {},
                     lambda torch, a: partial(torch._softmax_backward_data, a[1], a[0], 1, torch.float32)),
            self.one(f"cross-entropy's gradient {what}", "nn.cross_entropy_grad", [x, labels, np.ones((), np.float32)], {}, None),
            self.one(f"correct {what}", "nn.correct", [x, labels], {}, lambda torch, a: lambda: (a[0].argmax(1) == a[1]).sum()),
            self.one(f"argmax {what}", "tensor.argmax", [x], {}, lambda torch, a: partial(torch.argmax, a[0], 1)),
        ]  # fmt: skip
        for title, axes in (("rows", [1]), ("columns", [0]), (f"all {size:,}", None)):
            found.append(self.one(f"sum of {title} {what}", "tensor.sum", [x], {"axes": axes}, lambda torch, a, d=axes: partial(torch.sum, a[0], d)))
            if axes is not None:
                by_torch = lambda torch, a, d=axes: partial(torch.amax, a[0], d)  # noqa: E731
                found.append(self.one(f"max of {title} {what}", "tensor.max", [x], {"axes": axes}, by_torch))
        return found

    def scatter(self, rows: int, width: int, size: int) -> dict[str, Any]:
        """The gradient of an embedding: by torch atomically, in whatever order."""
        at, updates = self.rng.integers(0, size, rows), self.draw(rows, width)

        def by_torch(torch: Any, a: list[Any]) -> Callable[[], object]:
            return lambda: torch.zeros((size, width), device="cuda").index_add_(0, a[0], a[1])

        return self.one(f"scatter_add [{rows}, {width}] to {size:,}", "tensor.scatter_add", [at, updates], {"size": size}, by_torch)

    def pooling(self, *shape: int) -> list[dict[str, Any]]:
        n, c, h, w = shape
        x, dy = self.draw(*shape), self.draw(n, c, h // 2, w // 2)
        y = x.reshape(n, c, h // 2, 2, w // 2, 2).max(axis=(3, 5))

        def gradient(torch: Any, a: list[Any]) -> Callable[[], object]:
            _, at = torch.nn.functional.max_pool2d(a[0], 2, return_indices=True)
            return partial(torch.ops.aten.max_pool2d_with_indices_backward, a[2], a[0], [2, 2], [2, 2], [0, 0], [1, 1], False, at)

        what, size = list(shape), {"size": [2]}
        return [
            self.one(f"max_pool2d 2x2 {what}", "nn.max_pool2d", [x], size, lambda torch, a: partial(torch.nn.functional.max_pool2d, a[0], 2)),
            self.one(f"its gradient {what}", "nn.max_pool2d_grad", [x, y, dy], size, gradient),
            self.one(f"avg_pool2d 2x2 {what}", "nn.avg_pool2d", [x], size, lambda torch, a: partial(torch.nn.functional.avg_pool2d, a[0], 2)),
        ]

    # Launches and copies --------------------------------------------------------------------------------------------------------

    def host_us(self, action: Callable[[], object], wait: Callable[[], object], launches: int, count: int = 200) -> tuple[float, float]:
        """Microseconds a launch: of the host to hand over, and until all is done; `action` makes so many launches."""
        for _ in range(3):
            action()
        wait()
        found = []
        for _ in range(self.tries):
            start = perf_counter()
            for _ in range(count):
                action()
            handed = perf_counter() - start
            wait()
            found.append((handed / count / launches * 1e6, (perf_counter() - start) / count / launches * 1e6))
        return median(a for a, _ in found), median(b for _, b in found)

    def launches(self) -> dict[str, Any]:
        """Alone: tensor.add of [32, 32]. Steps: 8 times (product, add, relu, scale), as a segment, a captured graph, and by the peers."""
        row: dict[str, Any] = {"name": "launch, us: (handed over, done)"}
        xp, x = self.cupy, np.full((32, 32), 1 / 64, np.float32)
        add = find("tensor.add")
        bound = self.bind(add, [x, x])
        row["alone"] = self.host_us(bound.device, self.wait, 1)
        row["record"] = self.host_us(self.stream.record, self.wait, 1)
        p, q = xp.asarray(x), xp.empty((32, 32), np.float32)
        with self.cupy_stream:
            row["CuPy alone"] = self.host_us(lambda: xp.add(p, p, out=q), self.cupy_stream.synchronize, 1)
        a, b, c = (self.live.array(4096 * k, (32, 32), np.float32) for k in range(3))
        for array in (a, b):
            self.stream.upload(x, array)
        steps = [("tensor.matmul", [a, b], {}), ("tensor.add", [c, b], {}), ("nn.relu", [c], {}), ("tensor.scale", [c], {"factor": 0.5})] * 8
        calls = [(find(op).kernels["array"], ins, [c], None, find(op).check_attributes(given), i) for i, (op, ins, given) in enumerate(steps)]

        def together(stream: Any) -> None:
            if not stream.segment(calls):
                for call in calls:
                    stream.launch(*call[:5])

        row["segment"] = self.host_us(partial(together, self.stream), self.wait, len(calls), 50)
        with _gpu.environment("HETSCHED_CUDA_GRAPHS", "1"):
            capturing = self.live.stream("compute")
        row["graph"] = self.host_us(partial(together, capturing), lambda: capturing.record().wait(), len(calls), 50)
        row["captured"] = capturing._segments[id(calls)].graph is not None
        found, wanted = np.empty_like(x), np.maximum(x @ x + x, 0) * np.float32(0.5)
        capturing.download(c, found)
        capturing.record().wait()
        if not np.allclose(found, wanted, rtol=1e-4):
            raise SystemExit(f"the graph's values are off by {np.abs(found - wanted).max()}")
        row |= self.launches_by_torch(x)
        print("launch, us of the host / until done: " + ", ".join(f"{k} {v[0]:.2f} / {v[1]:.2f}" for k, v in row.items() if isinstance(v, tuple)))
        print(f"    a segment, a graph: for each of {len(calls)} launches; captured: {row['captured']}", flush=True)
        return row

    def launches_by_torch(self, x: Any) -> dict[str, tuple[float, float]]:
        torch = self.torch
        if torch is None:
            return {}
        u, v = self.there(x, x)
        w = torch.empty_like(u)

        def steps() -> None:
            for _ in range(8):
                torch.mm(u, v, out=w)
                w.add_(v).relu_().mul_(0.5)

        wait = torch.cuda.synchronize
        with torch.no_grad():
            found = {"torch alone": self.host_us(partial(torch.add, u, v, out=w), wait, 1), "torch steps": self.host_us(steps, wait, 32, 50)}
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                steps()
            wait()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                steps()
            found["torch graph"] = self.host_us(graph.replay, wait, 32, 50)
        return found

    def copies(self, nbytes: int) -> dict[str, Any]:
        """GB/s up and down: as runs do it, from pinned memory as it is, and by torch from pinned and from pageable memory."""
        there = self.live.array(0, (nbytes,), np.uint8)
        here, back = self.rng.integers(0, 256, nbytes, np.uint8), np.empty(nbytes, np.uint8)
        back.fill(0)
        pinned = self.live.pinned_array(nbytes)
        pinned[:] = here
        ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "up": (lambda: self.stream.upload(here, there), self.wait), "down": (lambda: self.stream.download(there, back), self.wait),
            "pinned up": (lambda: self.stream.upload_pinned(pinned, there), self.wait),
            "pinned down": (lambda: self.stream.download_pinned(there, pinned), self.wait),
        }  # fmt: skip
        if self.torch is not None:
            torch = self.torch
            t, plain = torch.empty(nbytes, dtype=torch.uint8, device="cuda"), torch.from_numpy(here.copy())
            locked = plain.pin_memory()
            for kind, host in (("torch pinned", locked), ("torch pageable", plain)):
                ways[f"{kind} up"] = (partial(t.copy_, host, non_blocking=True), torch.cuda.synchronize)
                ways[f"{kind} down"] = (partial(host.copy_, t, non_blocking=True), torch.cuda.synchronize)
        found: dict[str, list[float]] = {way: [] for way in ways}
        for n in range(self.tries + 1):
            for way, (action, wait) in ways.items():
                start = perf_counter()
                action()
                wait()
                if n:
                    found[way].append(nbytes / (perf_counter() - start) / 1e9)
        if not np.array_equal(here, back):
            raise SystemExit("what came back is not what was sent")
        speeds = {way: median(tries) for way, tries in found.items()}
        row: dict[str, Any] = {"name": f"copies of {nbytes} bytes, GB/s", **speeds}
        print(f"{nbytes / 2**20:8.2f} MiB, GB/s: " + ", ".join(f"{way} {s:.1f}" for way, s in speeds.items()), flush=True)
        return row


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tries", type=int, default=5)
    parser.add_argument("--only", default="", help="parts whose names begin with one of these, separated by commas")
    parser.add_argument("--seconds", type=float, default=40, help="begin no further part after so long")
    parser.add_argument("--small", action="store_true", help="small extents, to try the benchmark itself")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    reason = _gpu.missing()
    if reason is not None:
        print(f"skipped: {reason}")
        return 0
    parts = _gpu.Parts(options.seconds)
    bench = Bench(options.device, options.tries)
    beside = _gpu.torch_on_cuda()
    peers = f"CuPy {bench.cupy.__version__}" + (f"; {beside}" if beside else f", torch {bench.torch.__version__}")
    print(f"hetsched {hs.__version__}, {_gpu.device_name()}; {peers}")
    k = 16 if options.small else 1
    work: list[tuple[str, Callable[[], Any]]] = [("launches", bench.launches)]
    work += [(f"copies {n}", partial(bench.copies, n // k)) for n in (1 << 16, 1 << 20, 16 << 20, 128 << 20)]
    work += [(f"matmul {n // k}", partial(bench.matmul, n // k)) for n in SIZES]
    work += [(f"conv2d {shape}", partial(bench.conv2d, (shape[0] // k, *shape[1:]), outputs)) for shape, outputs in CONVOLUTIONS]
    work += [(f"adam {n}", partial(bench.adam, n // k)) for n in (1 << 16, 1 << 22)]
    work += [(f"chain {n}", partial(bench.chain, n // k)) for n in (1 << 16, 1 << 24)]
    work += [(f"gradients {shape}", partial(bench.conv2d_gradients, (shape[0] // k, *shape[1:]), outputs)) for shape, outputs in CONVOLUTIONS]
    work += [("rows", partial(bench.rows, 4096 // k, 1000)), ("scatter", partial(bench.scatter, 4096 // k, 256, 10_000))]
    work += [("pooling", partial(bench.pooling, 32 // k, 64, 56, 56))]
    work += [("softmax", partial(bench.softmax, 4096 // k, 1000)), ("cross-entropy", partial(bench.cross_entropy, 4096 // k, 1000))]
    for name, part in work:
        if not options.only or name.startswith(tuple(options.only.split(","))):
            parts(name, part)
    print(f"{perf_counter() - parts.begun:.1f} s in all")
    return parts.end(options.json, device=_gpu.device_name(), tries=options.tries, peers=peers)


if __name__ == "__main__":
    sys.exit(main())
