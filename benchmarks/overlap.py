"""How well copies hide behind kernels: 64 batches of copy in, kernel, copy out on an emulated device.

    python benchmarks/overlap.py [--repeat 5] [--milliseconds 4] [--json FILE]

The device is modelled (one compute stream, a copy engine each way); the bytes really move and the kernel really runs, in threads of their own.
Three cases: balanced, copy-bound (copies take three times the kernel), compute-bound. Printed for each: the measured time end to end over
64 * max(copy in, kernel, copy out), the same for a synchronous loop (copy, kernel, copy, each waited for), and the share of copy time hidden
behind the kernel beside what the events give by hand. Nothing here says how fast a real device is.

    python benchmarks/overlap.py --cuda [--repeat 5] [--milliseconds 4] [--json FILE]

does the same on a real CUDA device, with a kernel whose time is set by a loop, beside a naive CuPy loop and PyTorch with pinned memory and a stream
each for copies in, kernels and copies out. Without a device it says why and measures nothing. (It has not been run on a device yet.)
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import _gpu
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


# On a real device ---------------------------------------------------------------------------------------------------------------

WORK = """
extern "C" __global__ void work(const float *x, float *y, const int turns, const long long n) {
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (long long)gridDim.x * blockDim.x) {
        float v = x[i];
        for (int t = 0; t < turns; t++) v = v * 0.999f + 0.5f;
        y[i] = v;
    }
}
"""
ARGUMENTS = {"x": "in float32[n]", "y": "out float32[n]", "turns": "option int32", "n": "value int64 = n"}
THREADS = 1 << 16


def cuda_batches(turns: int, n: int) -> hs.Graph:
    op = hs.kernel("bench.work", ARGUMENTS, cuda=WORK, function="work", size=THREADS, group=256, flops="2 * n")
    body = Graph.build()
    body.output(body.op(op, body.input("x", (n,)), turns=turns, where=hs.Where(("cuda:0",))), "y")
    b = Graph.build()
    (y,) = b.loop(Loop(body.freeze(), TURNS, sequences=("x",), collected=("y",)), b.input("x", (TURNS, n)))
    return b.output(y, "y").freeze()


def cupy_loop(x: Any, turns: int) -> tuple[Any, float]:
    """The loop one writes first: every copy waits."""
    import cupy

    function = cupy.RawModule(code=WORK).get_function("work")
    out = np.empty_like(x)
    n = x.shape[1]
    start = time.perf_counter()
    for i in range(TURNS):
        a = cupy.asarray(x[i])
        b = cupy.empty_like(a)
        function((THREADS // 256,), (256,), (a, b, np.int32(turns), np.int64(n)))
        out[i] = cupy.asnumpy(b)
    return out, time.perf_counter() - start


def torch_loop(x: Any, turns: int) -> tuple[Any, float]:
    """PyTorch as one writes it with care: pinned memory, a stream each for copies in, kernels and copies out, two slots. The kernel is the same."""
    import cupy
    import torch

    function = cupy.RawModule(code=WORK).get_function("work")
    n = x.shape[1]
    pinned, out = torch.from_numpy(x).pin_memory(), torch.empty(x.shape, pin_memory=True)
    into, work, back = (torch.cuda.Stream() for _ in range(3))
    a, b = ([torch.empty(n, device="cuda") for _ in range(2)] for _ in range(2))
    read: list[Any] = [None, None]
    left: list[Any] = [None, None]
    torch.cuda.synchronize()
    start = time.perf_counter()
    for i in range(TURNS):
        s = i % 2
        with torch.cuda.stream(into):
            if read[s] is not None:
                into.wait_event(read[s])
            a[s].copy_(pinned[i], non_blocking=True)
            arrived = into.record_event()
        work.wait_event(arrived)
        if left[s] is not None:
            work.wait_event(left[s])
        with cupy.cuda.ExternalStream(work.cuda_stream):
            function((THREADS // 256,), (256,), (cupy.asarray(a[s]), cupy.asarray(b[s]), np.int32(turns), np.int64(n)))
        read[s] = work.record_event()
        back.wait_event(read[s])
        with torch.cuda.stream(back):
            out[i].copy_(b[s], non_blocking=True)
            left[s] = back.record_event()
    torch.cuda.synchronize()
    return out.numpy(), time.perf_counter() - start


def spans_of(trace: hs.Timeline) -> tuple[float, float, float]:
    """Seconds of all copies in, kernels and copies out of a run, by the device's timers."""
    body = next(iter(trace.loops.values()))
    into = sum(s.finish - s.start for s in body.copies if s.command.dst.node != HOST)
    back = sum(s.finish - s.start for s in body.copies if s.command.dst.node == HOST)
    return into, sum(s.finish - s.start for s in body.launches), back


def on_cuda(options: argparse.Namespace) -> int:
    """See the module."""
    reason = _gpu.missing()
    if reason is not None:
        print(f"skipped: {reason}")
        return 0
    beside = _gpu.torch_on_cuda()
    print(f"{_gpu.device_name()}; peers: CuPy loop{'' if beside else ', torch'}{f' ({beside})' if beside else ''}")
    where = hs.Machine.here()
    seconds = options.milliseconds / 1e3
    rows: list[dict[str, Any]] = []
    for name, copy_share, kernel_share in [("balanced", 1.0, 1.0), ("copy-bound", 1.0, 1 / 3), ("compute-bound", 1 / 3, 1.0)]:
        n = int(where.link(HOST, "cuda:0").bytes_per_second * seconds * copy_share / 4)
        x = np.random.default_rng(0).normal(size=(TURNS, n)).astype(np.float32)
        turns, measured = 16, 0.0
        while measured < seconds * kernel_share and turns < 1 << 24:  # as many turns as the kernel needs to take its share
            turns *= 2
            measured = spans_of(hs.run(hs.plan(cuda_batches(turns, n), where), {"x": x}).trace)[1] / TURNS
        turns = max(1, int(turns * seconds * kernel_share / measured))
        plan = hs.plan(cuda_batches(turns, n), where)
        wanted, _ = cupy_loop(x, turns)
        ours, loops, torches, hidden, hand = [], [], [], [], []
        for _ in range(options.repeat):
            result = hs.run(plan, {"x": x})
            assert np.array_equal(result["y"], wanted)
            least = max(spans_of(result.trace))
            ours.append(result.trace.makespan / least)
            loops.append(cupy_loop(x, turns)[1] / least)
            if beside is None:
                torches.append(torch_loop(x, turns)[1] / least)
            hidden.append(transfers(result.trace).hidden_fraction or 0.0)
            hand.append(by_hand(result.trace))
        row: dict[str, Any] = {"case": name, "device": _gpu.device_name(), "hetsched": statistics.median(ours), "cupy_loop": statistics.median(loops)}
        row |= {"hidden": statistics.median(hidden), "hidden_by_hand": statistics.median(hand)}
        if torches:
            row["torch"] = statistics.median(torches)
        rows.append(row)
        print(
            f"{name:14s} end to end {row['hetsched']:.3f} x max(copy, kernel) ({min(ours):.3f}-{max(ours):.3f}); CuPy loop {row['cupy_loop']:.2f} x"
            + (f"; torch {row['torch']:.3f} x" if torches else "")
            + f"; hidden {row['hidden']:.1%}, by hand {row['hidden_by_hand']:.1%}",
            flush=True,
        )
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--milliseconds", type=float, default=4.0, help="the longest of the three, per batch")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cuda", action="store_true", help="on a real CUDA device, beside CuPy and torch")
    options = parser.parse_args(argv)
    if options.cuda:
        return on_cuda(options)
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
