"""OpenCL kernels of hetsched beside NumPy: matrix products, convolutions and their gradients, and what a launch costs from Python.

Convolutions run both ways, as a matrix product and directly; `*` is the one that hetsched takes (`way_of` in graph/ops/_cl_conv.py).

    python benchmarks/opencl_kernels.py [--device opencl:0] [--json FILE]

Goals on PoCL: float32 products of 512 to 2048 at 25 GFLOP/s, or 0.2 times NumPy's; a launch without wait in 15 us. Each figure is the median of
`--tries` tries; each try measures the device and NumPy one after the other, and the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from _kernels import Bound, bind, seconds

from hetsched.executors.backends import opencl
from hetsched.graph.op import Op
from hetsched.graph.ops import find
from hetsched.graph.ops._cl_conv import way_of
from hetsched.graph.spec import Spec
from hetsched.machine import Device

CONVOLUTIONS = [  # images [n, c, h, w], outputs, options
    ((32, 8, 8, 8), 16, {"padding": 1}),
    ((32, 8, 28, 28), 8, {"padding": 1}),
    ((32, 16, 28, 28), 16, {"padding": 1}),
    ((32, 64, 28, 28), 64, {"padding": 1}),
    ((32, 128, 7, 7), 128, {"padding": 1}),
    ((16, 32, 56, 56), 64, {"padding": 1, "stride": 2}),
    ((16, 64, 28, 28), 64, {"padding": 1, "groups": 64}),
]

WAYS = ("product", "direct")


class Bench:
    def __init__(self, device: str, tries: int) -> None:
        self.live = opencl.open(Device(device, "opencl"), 1 << 28)
        self.stream = self.live.stream("compute")
        self.tries = tries

    def bind(self, op: Op, inputs: list[Any], attributes: dict[str, Any]) -> Bound:
        return bind(self.live, self.stream, ("opencl",), op, inputs, attributes)

    def compare(self, name: str, op: Op, inputs: list[Any], attributes: dict[str, Any]) -> dict[str, Any]:
        device, host, difference, flops, *_ = self.bind(op, inputs, attributes)
        for _ in range(3):  # built, taped, from the tape
            device()
        off = difference()
        rows = []
        for _ in range(self.tries):
            self.stream.record().wait()
            rows.append((seconds(lambda: (device(), self.stream.record().wait())), seconds(host)))
        mine, numpy = (median(column) for column in zip(*rows, strict=True))
        out = {
            "name": name, "gflops": flops / mine / 1e9, "numpy_gflops": flops / numpy / 1e9, "ratio": numpy / mine, "difference": off,
        }  # fmt: skip
        print(f"{name:44} {out['gflops']:8.1f} GFLOP/s, NumPy {out['numpy_gflops']:8.1f}, ratio {out['ratio']:.2f}, off by {off:.0e}", flush=True)
        return out

    def ways(self, name: str, op: Op, inputs: list[Any], attributes: dict[str, Any], taken: str) -> dict[str, Any]:
        """A convolution as a product and directly, one after the other in every try; then NumPy, whose threads go on spinning for a while.
        `taken`: the way that hetsched takes."""
        kernel = op.kernels["opencl"]
        bound = {}
        for way in WAYS:
            forced = replace(op, kernels={**op.kernels, "opencl": partial(kernel, way=way)})
            if op.name == "nn.conv2d_grad_weight":  # its workspace depends on the way
                assert op.workspace is not None
                forced = replace(forced, workspace=partial(op.workspace, way=way))
            bound[way] = self.bind(forced, inputs, attributes)
        off = {}
        for way, (device, _, difference, *_) in bound.items():
            for _ in range(3):
                device()
            off[way] = difference()
        rows = []
        for _ in range(self.tries):
            row = []
            for device, *_ in bound.values():
                self.stream.record().wait()
                row.append(seconds(lambda device=device: (device(), self.stream.record().wait())))
            rows.append(row)
        mine = [median(column) for column in zip(*rows, strict=True)]
        numpy = median(seconds(bound["direct"].host) for _ in range(self.tries))
        flops = bound["direct"].flops
        speeds = {way: flops / s / 1e9 for way, s in zip(WAYS, mine, strict=True)}
        out = {
            "name": name, "gflops": speeds[taken], "way": taken, "gflops_by_way": speeds, "product_over_direct": mine[1] / mine[0],
            "numpy_gflops": flops / numpy / 1e9, "ratio": speeds[taken] / (flops / numpy / 1e9), "difference": off,
        }  # fmt: skip
        shown = ", ".join(f"{'*' if way == taken else ' '}{way} {speeds[way]:5.1f}" for way in WAYS)
        print(
            f"{name:58} {shown} GFLOP/s, product / direct {out['product_over_direct']:.2f}; NumPy {out['numpy_gflops']:6.1f}, "
            f"ratio {out['ratio']:.2f}, off by {max(off.values()):.0e}", flush=True,
        )  # fmt: skip
        return out

    def launches(self, count: int = 500) -> dict[str, Any]:
        """Microseconds of a launch without wait from Python: one kernel of the queue, an op called anew, and from the tape."""
        add = find("tensor.add")
        x = np.ones((32, 32), np.float32)
        device, *_ = self.bind(add, [x, x], {})
        y = [self.live.array(4096 * i, (32, 32), np.float32) for i in range(3)]
        out: dict[str, Any] = {"name": "launch without wait, us"}
        source = "__kernel void one(OUT(float, y), const long n) { LET_OUT(float, y) if (get_global_id(0) < n) y[get_global_id(0)] = 1; }"
        for how, action in (
            ("kernel", lambda: self.stream.run(source, "one", (64,), y[2], np.int64(64), local_size=(64,))),
            ("anew", lambda: self.stream.launch(add.kernels["opencl"], y[:2], y[2:], None, {})),
            ("taped", device),
        ):
            tries = []
            for _ in range(self.tries + 1):
                tries.append(seconds(lambda action=action: [action() for _ in range(count)]) / count * 1e6)
                self.stream.record().wait()
            out[how] = median(tries[1:])
        print(f"launch without wait: a kernel {out['kernel']:.1f} us, an op {out['anew']:.1f}, an op from the tape {out['taped']:.1f}", flush=True)
        return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="opencl:0")
    parser.add_argument("--tries", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="*", default=[512, 1024, 2048])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    bench, rng = Bench(args.device, args.tries), np.random.default_rng(0)
    name = next(d.name for d in opencl.find().devices if d.id == args.device)
    print(f"{name}; NumPy {np.__version__}, {platform.processor() or platform.machine()}")

    def draw(*shape: int) -> Any:
        return rng.normal(size=shape).astype(np.float32)

    rows = [bench.launches()]
    for n in args.sizes:
        for flags in ({}, {"transpose_a": True}, {"transpose_b": True}) if n <= 1024 else ({},):
            rows.append(bench.compare(f"matmul {n} {' '.join(flags)}".strip(), find("tensor.matmul"), [draw(n, n), draw(n, n)], dict(flags)))
    for shape, outputs, options in CONVOLUTIONS:
        groups, stride = options.get("groups", 1), options.get("stride", 1)
        o, c = outputs // groups, shape[1] // groups
        x, w, b = draw(*shape), draw(outputs, c, 3, 3), draw(outputs)
        forward = find("nn.conv2d")
        (out,) = forward.infer([Spec(x.shape), Spec(w.shape), Spec(b.shape)], forward.check_attributes(options))
        dy, label = draw(*out.bounds), f"{list(shape)} -> {outputs} {options}"
        positions, pixels, is_cpu = out.bounds[2] * out.bounds[3], shape[2] * shape[3], bench.live.is_cpu
        rows.append(bench.ways(f"conv2d {label}", forward, [x, w, b], dict(options), way_of(is_cpu, o, c, 9, positions)))
        images, weights = find("nn.conv2d_grad_input"), find("nn.conv2d_grad_weight")
        way = way_of(is_cpu, c, o, 9, pixels, stride * stride)
        rows.append(bench.ways("    gradient of the images", images, [w, dy], {**options, "image": shape[2:]}, way))
        rows.append(bench.ways("    gradient of the weights", weights, [x, dy], {**options, "kernel": (3, 3)}, way_of(is_cpu, o, c, 9, positions)))
    if args.json is not None:
        args.json.write_text(json.dumps({"device": name, "numpy": np.__version__, "tries": args.tries, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
