"""How well copies hide behind kernels: 64 batches of copy in, kernel, copy out on an emulated device.

    python benchmarks/overlap.py [--repeat 5] [--milliseconds 4] [--json FILE]

The device is modelled (one compute stream, a copy engine each way); the bytes really move and the kernel really runs, in threads of their own.
Three cases: balanced, copy-bound (copies take three times the kernel), compute-bound. Printed for each: the measured time end to end over
64 * max(copy in, kernel, copy out), the same for a synchronous loop (copy, kernel, copy, each waited for), and the share of copy time hidden
behind the kernel beside what the events give by hand. Nothing here says how fast a real device is.

    python benchmarks/overlap.py --cuda [--repeat 5] [--megabytes 16] [--batches 64] [--json FILE]

does the same on a real CUDA device, with a kernel whose time is set by a loop, beside a naive CuPy loop and PyTorch with pinned memory and a stream
each for copies in, kernels and copies out. hetsched is given its input in pinned memory (`hs.pinned_empty`), as torch is, and then, as `pageable`, an
ordinary array, which goes through pinned chunks; what it gives lies in memory that it has locked itself when that came a second time. Two ratios
are printed: over 64 * max(copy in, kernel, copy out) of what these take alone, each by itself, from pinned memory (`bare`: what the card could do),
and over the longest of its own spans (`spans`: how well what it does overlaps). The kernel takes as long as a copy from pinned memory (`balanced`),
a third of that, and three times that; with pageable arrays as a copy of hetsched's own. Beside them milliseconds of all. All batches lie in memory at
once, up to five times over (5 GB), and what runs let go of is kept for the next (HETSCHED_KEEP_MIB is set to 16384: new pages would take longer
than the copies). About 30 s. Without a device it says why.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from dataclasses import dataclass
from functools import cache, partial
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


def cuda_batches(turns: int, n: int, batches: int) -> hs.Graph:
    op = hs.kernel("bench.work", ARGUMENTS, cuda=WORK, function="work", size=THREADS, group=256, flops="2 * turns * n")
    body = Graph.build()
    body.output(body.op(op, body.input("x", (n,)), turns=turns, where=hs.Where(("cuda:0",))), "y")
    b = Graph.build()
    (y,) = b.loop(Loop(body.freeze(), batches, sequences=("x",), collected=("y",)), b.input("x", (batches, n)))
    return b.output(y, "y").freeze()


def work(a: Any, b: Any, turns: int) -> None:
    """Launch the kernel by CuPy on the current stream."""
    cupy_function()((THREADS // 256,), (256,), (a, b, np.int32(turns), np.int64(a.size)))


@cache
def cupy_function() -> Any:
    import cupy

    return cupy.RawModule(code=WORK, options=("-std=c++17",)).get_function("work")


class Alone:
    """Seconds of a copy in, a kernel and a copy out of `n` floats, each by itself, pinned memory on the host; by the device's timers."""

    def __init__(self, n: int) -> None:
        import cupy

        self.cupy, self.stream, self.nbytes = cupy, cupy.cuda.Stream(non_blocking=True), 4 * n
        self.a, self.b = cupy.empty(n, np.float32), cupy.empty(n, np.float32)
        self.pinned = np.frombuffer(cupy.cuda.alloc_pinned_memory(self.nbytes), np.float32, n)
        self.pinned[:] = 1
        self.copy(True)

    def timed(self, action: Any, times: int = 10) -> float:
        """Seconds, median of so many times after a first."""
        cuda, found = self.cupy.cuda, []
        for _ in range(1 + times):
            start, end = cuda.Event(), cuda.Event()
            with self.stream:
                start.record(self.stream)
                action()
                end.record(self.stream)
            end.synchronize()
            found.append(cuda.get_elapsed_time(start, end) * 1e-3)
        return statistics.median(found[1:])

    def copy(self, up: bool) -> None:
        runtime, host, there = self.cupy.cuda.runtime, self.pinned.ctypes.data, self.a.data.ptr if up else self.b.data.ptr
        if up:
            runtime.memcpyAsync(there, host, self.nbytes, runtime.memcpyHostToDevice, self.stream.ptr)
        else:
            runtime.memcpyAsync(host, there, self.nbytes, runtime.memcpyDeviceToHost, self.stream.ptr)

    def both(self) -> float:
        """Seconds of a copy each way at once."""
        other = self.cupy.cuda.Stream(non_blocking=True)

        def action() -> None:
            mine, self.stream = self.stream, other
            self.copy(False)
            self.stream = mine
            self.copy(True)
            end = self.cupy.cuda.Event()
            end.record(other)
            self.stream.wait_event(end)

        return self.timed(action)

    def kernel(self, turns: int) -> float:
        return self.timed(lambda: work(self.a, self.b, turns))

    def turns_for(self, seconds: float) -> int:
        """As many turns as the kernel needs to take so long."""
        few, many = 16, 64
        while (slow := self.kernel(many)) < seconds / 2 and many < 1 << 22:
            many *= 4
        fast = self.kernel(few)
        return max(1, round(few + (seconds - fast) * (many - few) / max(slow - fast, 1e-9)))


def cupy_loop(x: Any, turns: int, out: Any) -> float:
    """The loop one writes first: every copy waits. Seconds."""
    import cupy

    cupy_function()
    start = time.perf_counter()
    for i in range(len(x)):
        a = cupy.asarray(x[i])
        b = cupy.empty_like(a)
        work(a, b, turns)
        out[i] = cupy.asnumpy(b)
    return time.perf_counter() - start


class TorchLoop:
    """PyTorch as one writes it with care: pinned memory, a stream each for copies in, kernels and copies out, two slots. The kernel is the same."""

    def __init__(self, x: Any) -> None:
        import cupy
        import torch

        self.pinned, self.out = torch.from_numpy(x).pin_memory(), torch.empty(x.shape, pin_memory=True)
        self.into, self.work, self.back = (torch.cuda.Stream() for _ in range(3))
        self.a, self.b = ([torch.empty(x.shape[1], device="cuda") for _ in range(2)] for _ in range(2))
        self.arrays = [tuple(cupy.asarray(t[s]) for t in (self.a, self.b)) for s in range(2)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CuPy 14 would have it called otherwise than 13
            self.launching = cupy.cuda.ExternalStream(self.work.cuda_stream)

    def __call__(self, turns: int) -> float:
        """Seconds of all batches."""
        import torch

        read: list[Any] = [None, None]
        left: list[Any] = [None, None]
        torch.cuda.synchronize()
        start = time.perf_counter()
        for i in range(len(self.pinned)):
            s = i % 2
            with torch.cuda.stream(self.into):
                if read[s] is not None:
                    self.into.wait_event(read[s])
                self.a[s].copy_(self.pinned[i], non_blocking=True)
                arrived = self.into.record_event()
            self.work.wait_event(arrived)
            if left[s] is not None:
                self.work.wait_event(left[s])
            with self.launching:
                work(*self.arrays[s], turns)
            read[s] = self.work.record_event()
            self.back.wait_event(read[s])
            with torch.cuda.stream(self.back):
                self.out[i].copy_(self.b[s], non_blocking=True)
                left[s] = self.back.record_event()
        torch.cuda.synchronize()
        return time.perf_counter() - start


def spans_of(trace: hs.Timeline) -> tuple[float, float, float]:
    """Seconds of all copies in, kernels and copies out of a run, by the device's timers."""
    body = next(iter(trace.loops.values()))
    into = sum(s.finish - s.start for s in body.copies if s.command.dst.node != HOST)
    back = sum(s.finish - s.start for s in body.copies if s.command.dst.node == HOST)
    return into, sum(s.finish - s.start for s in body.launches), back


@dataclass
class Given:
    """What all cases share: the batches, pinned and not, and torch's own."""

    n: int
    batches: int
    pinned: Any
    pageable: Any
    wanted: Any
    torch: TorchLoop | None


def given(n: int, batches: int, torch: bool) -> Given:
    """Batches of `n` floats."""
    pinned = hs.pinned_empty((batches, n), np.float32)
    np.add(np.random.default_rng(0).random(n, np.float32)[None], np.arange(batches, dtype=np.float32)[:, None], out=pinned)
    return Given(n, batches, pinned, pinned.copy(), np.empty_like(pinned), TorchLoop(pinned) if torch else None)


def cuda_case(name: str, share: float, what: Given, options: argparse.Namespace, where: hs.Machine, speed: float | None) -> dict[str, Any]:
    """One case: a kernel that takes `share` of a copy. speed: bytes per second of hetsched's own copies of pageable memory; None: pinned memory."""
    n, batches, x, peer, wanted = what.n, what.batches, what.pinned if speed is None else what.pageable, what.torch, what.wanted
    alone = Alone(n)
    _gpu.warm_up()
    bare = {"up": alone.timed(lambda: alone.copy(True)), "down": alone.timed(lambda: alone.copy(False))}
    both = alone.both()
    turns = alone.turns_for(share * (max(bare.values()) if speed is None else 4 * n / speed))
    bare = {"up": bare["up"], "kernel": alone.kernel(turns), "down": bare["down"]}
    least = batches * max(bare.values())
    plan = hs.plan(cuda_batches(turns, n, batches), where)
    cupy_loop(x, turns, wanted)
    ms: dict[str, list[float]] = {"hetsched": [], "call": [], "cupy_loop": [], "torch": []}
    over_spans, spans, hidden, hand = [], [], [], []
    for tried in range(options.repeat + 1):  # the first builds kernels and finds memory
        start = time.perf_counter()
        result = hs.run(plan, {"x": x})
        took = time.perf_counter() - start
        is_looked_at = tried in (0, options.repeat)  # it takes longer than the run
        if is_looked_at and not np.array_equal(result["y"], wanted):
            raise SystemExit(f"{name}: hetsched's values differ from those of the CuPy loop by up to {np.abs(result['y'] - wanted).max()}")
        trace = result.trace
        del result  # its memory serves the next run
        loop, beside = cupy_loop(x, turns, wanted) if tried <= 2 else None, peer(turns) if peer is not None else 0.0
        if not tried:
            continue
        found = spans_of(trace)
        spans.append(found)
        over_spans.append(trace.makespan / max(found))
        for who, value in (("hetsched", trace.makespan), ("call", took), ("cupy_loop", loop), ("torch", beside)):
            if value is not None:
                ms[who].append(value * 1e3)
        hidden.append(transfers(trace).hidden_fraction or 0.0)
        hand.append(by_hand(trace))
    if peer is None:
        del ms["torch"]
    elif not np.array_equal(peer.out.numpy(), wanted):
        raise SystemExit(f"{name}: torch's values differ from those of the CuPy loop")
    middle = {who: statistics.median(times) for who, times in ms.items()}
    row: dict[str, Any] = {
        "case": name, "nbytes": 4 * n, "batches": batches, "turns": turns, "bare_ms": {k: batches * s * 1e3 for k, s in bare.items()},
        "both_ms": batches * both * 1e3, "pinned": speed is None,
        "spans_ms": dict(zip(("up", "kernel", "down"), (statistics.median(s) * 1e3 for s in zip(*spans, strict=True)), strict=True)),
        "ms": middle, "over_bare": {who: t / least / 1e3 for who, t in middle.items()}, "over_spans": statistics.median(over_spans),
        "hidden": statistics.median(hidden), "hidden_by_hand": statistics.median(hand),
    }  # fmt: skip
    print(
        f"{name:23s} {batches} x {4 * n / 1e6:.1f} MB: hetsched {middle['hetsched']:.1f} ms ({min(ms['hetsched']):.1f}-{max(ms['hetsched']):.1f}; "
        f"the call {middle['call']:.1f}) = {row['over_bare']['hetsched']:.3f} x bare max(copy, kernel) = {row['over_spans']:.3f} x its spans; "
        + "; ".join(f"{who} {middle[who]:.1f} ms = {row['over_bare'][who]:.3f} x bare" for who in ("torch", "cupy_loop") if who in middle)
        + (f"; hetsched / torch {middle['hetsched'] / middle['torch']:.3f}" if "torch" in middle else "")
        + f"; hidden {row['hidden']:.1%}, by hand {row['hidden_by_hand']:.1%}",
        flush=True,
    )
    for kind in ("bare_ms", "spans_ms"):
        ways = f"; in and out at once {row['both_ms']:.1f}" if kind == "bare_ms" else ""
        print(f"{'':14s} {kind}: in, kernel, out {', '.join(f'{row[kind][part]:.1f}' for part in ('up', 'kernel', 'down'))}{ways}", flush=True)
    return row


def on_cuda(options: argparse.Namespace) -> int:
    """See the module."""
    reason = _gpu.missing()
    if reason is not None:
        print(f"skipped: {reason}")
        return 0
    beside = _gpu.torch_on_cuda()
    print(f"{_gpu.device_name()}; peers: CuPy loop{'' if beside else ', torch'}{f' ({beside})' if beside else ''}")
    os.environ["HETSCHED_KEEP_MIB"] = "16384"
    where = hs.Machine.here()
    speed = min(where.link(HOST, "cuda:0").bytes_per_second, where.link("cuda:0", HOST).bytes_per_second)
    what = given(max(int(options.megabytes * 1e6) // 4, 1), options.batches, beside is None)
    print(f"hetsched's own copies of pageable memory: {speed / 1e9:.1f} GB/s; batches of {options.megabytes:g} MB")
    parts = _gpu.Parts(options.seconds)
    for memory, own in (("", None), (" pageable", speed)):
        for name, share in [("balanced", 1.0), ("copy-bound", 1 / 3), ("compute-bound", 3.0)]:
            parts(name + memory, partial(cuda_case, name + memory, share, what, options, where, own))
    return parts.end(options.json, device=_gpu.device_name())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--milliseconds", type=float, default=4.0, help="the longest of the three, per batch; without --cuda")
    parser.add_argument("--megabytes", type=float, default=16.0, help="with --cuda: of a batch")
    parser.add_argument("--batches", type=int, default=TURNS, help="with --cuda")
    parser.add_argument("--seconds", type=float, default=45, help="with --cuda: begin no further case after so long")
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
