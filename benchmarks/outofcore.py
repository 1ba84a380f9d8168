"""Graphs that need more memory than the device has: planned eviction beside a least-recently-used cache, and beside what no plan can be below.

    python benchmarks/outofcore.py [--device emulated|opencl|cuda] [--share 0.25] [--repeat 5] [--limits 200] [--json FILE]

Three graphs whose peak is four times (--share 0.25) the memory allowed: `layers` (forward, then backward over activations in reverse), `sweeps`
(the same tiles over and over, the worst case of a cache), `cholesky` (tiled). For each: the planned and the measured time of the plan
(median of --repeat), its copies into the device, the same for a plan that books the very same tasks in the same order and evicts what was used
least recently, the time without a limit, and the lower bound. Without a limit the values are those of a plain loop, with one they have the same bits.

Then --limits random graphs, each under a random limit between 10 and 100 % of its peak: how many ran with right values, how many were refused
before they started (which the error must put in bytes). Anything else is an error (exit status 1; other parts go on).

--device cuda: the same on `cuda:0`, with larger tiles (--tile 1024 there) and 60 random limits: about 25 s on an H100. No part begins after
--seconds, and no further random graph.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import _gpu
import numpy as np

import hetsched as hs
from hetsched.check import check
from hetsched.executors.backends import emulated
from hetsched.graph.graph import Graph
from hetsched.machine import HOST, Device, Link, MemoryNode
from hetsched.placement.costs import RooflineCosts
from hetsched.placement.draft import GraphDraft
from hetsched.placement.memory.evicting import LEAST_RECENT, evicted
from hetsched.placement.memory.fitting import sequence_of
from hetsched.placement.policies import find
from hetsched.placement.problem import problem_of
from hetsched.testing.graphs import random_graph, random_machine
from hetsched.testing.reference import interpret
from hetsched.testing.runs import run_problems, value_problems
from hetsched.timeline import Copy, Timeline

N = 192  # a tile is N x N float32; --tile
SECONDS = 1e-3  # modelled: a copy of a tile, a matrix product of two


def machine() -> hs.Machine:
    """A processor and one modelled accelerator with a copy engine each way."""
    cpu = Device("cpu", "cpu", lanes=2, languages=("host", "array"), shares_lanes=True, flops_per_second={"float32": 1e9}, bytes_per_second=1e8)
    gpu = Device(
        "gpu:0", "emulated", memory="gpu:0", hardware="gpu", launch_seconds=0.0, flops_per_second={"float32": 2 * N**3 / SECONDS},
        bytes_per_second=3 * 4 * N * N / (SECONDS / 4),
    )  # fmt: skip
    speed = 4 * N * N / SECONDS
    return hs.Machine((cpu, gpu), (Link(HOST, "gpu:0", 0.0, speed), Link("gpu:0", HOST, 0.0, speed)), (MemoryNode(HOST), MemoryNode("gpu:0")))


def layers(depth: int = 24) -> tuple[Graph, dict[str, Any]]:
    """h(i+1) = tanh(h(i) w(i)), then g(i) = g(i+1) w(i)^T (1 - h(i+1)^2): every activation is read again, the last one first."""
    rng = np.random.default_rng(0)
    b = Graph.build("layers")
    h = b.input("x", (N, N))
    weights = [b.input(f"w{i}", (N, N)) for i in range(depth)]
    seen = [h]
    for w in weights:
        seen.append(b.op("nn.tanh", b.op("tensor.matmul", seen[-1], w)))
    g = seen[-1]
    for w, h in zip(reversed(weights), reversed(seen[1:]), strict=True):
        g = b.op("tensor.matmul", b.op("tensor.mul", g, b.op("tensor.sub", b.op("tensor.mul", h, h), g)), w)
    inputs = {name: (rng.normal(size=(N, N)) / N**0.5).astype(np.float32) for name in ["x", *(f"w{i}" for i in range(depth))]}
    return b.output(g, "g").freeze(), inputs


def sweeps(tiles: int = 32, rounds: int = 3) -> tuple[Graph, dict[str, Any]]:
    """acc = tanh(acc tile(i)) over all tiles, round after round."""
    rng = np.random.default_rng(1)
    b = Graph.build("sweeps")
    acc = b.input("acc", (N, N))
    given = [b.input(f"t{i}", (N, N)) for i in range(tiles)]
    for _ in range(rounds):
        for tile in given:
            acc = b.op("nn.tanh", b.op("tensor.matmul", acc, tile))
    inputs = {name: (rng.normal(size=(N, N)) / N**0.5).astype(np.float32) for name in ["acc", *(f"t{i}" for i in range(tiles))]}
    return b.output(acc, "acc").freeze(), inputs


def cholesky(tiles: int = 7) -> tuple[Graph, dict[str, Any]]:
    """The reads and writes of a tiled Cholesky factorization (its kernels are products and differences here: the pattern is what counts). Tiles are
    small enough for products to stay so: otherwise roundings, which differ from device to device, grow from step to step."""
    rng = np.random.default_rng(2)
    b = Graph.build("cholesky")
    a = {(i, j): b.input(f"a{i}_{j}", (N, N)) for i in range(tiles) for j in range(i + 1)}
    inputs = {f"a{i}_{j}": (rng.normal(size=(N, N)) / (3 * N**0.5)).astype(np.float32) for i, j in a}
    for k in range(tiles):
        a[k, k] = b.op("nn.tanh", a[k, k])
        for i in range(k + 1, tiles):
            a[i, k] = b.op("nn.tanh", b.op("tensor.matmul", a[i, k], a[k, k]))
        for i in range(k + 1, tiles):
            for j in range(k + 1, i + 1):
                a[i, j] = b.op("tensor.sub", a[i, j], b.op("tensor.matmul", a[i, k], a[j, k]))
    for (i, j), value in a.items():
        b.output(value, f"l{i}_{j}")
    return b.freeze(), inputs


def cached(graph: Graph, where: hs.Machine, limits: Mapping[str, int], only: str) -> Timeline:
    """The plan that a least-recently-used cache gives: the tasks of the unlimited plan in its order."""
    problem = problem_of(graph, where, RooflineCosts(where), only=only, memory=limits)
    draft = GraphDraft(problem)
    find("auto")(draft)
    return evicted(problem, sequence_of(draft), LEAST_RECENT, host=False)


def loads(plan: Timeline, node: str) -> int:
    """Copies into the memory of the device."""
    return sum(isinstance(s.command, Copy) and s.command.dst.node == node for s in plan.spans)


def measured(
    name: str, plans: Mapping[str, Timeline], inputs: dict[str, Any], wanted: Mapping[str, Any], repeat: int
) -> tuple[dict[str, float], list[str]]:
    """Median seconds of each plan, run in turns, and what is wrong. The values of the first are those of a plain loop (to rounding: devices add in
    other orders), and those of the others have the same bits."""
    problems = []
    first = next(iter(plans))
    results = {kind: hs.run(plan, inputs) for kind, plan in plans.items()}  # kernels are built here
    for key, value in wanted.items():
        found = results[first][key]
        if not np.allclose(found, value, rtol=1e-3, atol=1e-4 * float(np.abs(value).max())):
            problems.append(f"{name}: {key} differs from a plain loop by up to {np.abs(found - value).max()}")
        other = [kind for kind, result in results.items() if not np.array_equal(result[key], found)]
        if other:
            problems.append(f"{name}: {key} of {', '.join(other)} has other bits than of {first}")
    times: dict[str, list[float]] = {kind: [] for kind in plans}
    for _ in range(repeat):
        for kind, plan in plans.items():
            times[kind].append(hs.run(plan, inputs).trace.makespan)
    return {kind: statistics.median(seconds) for kind, seconds in times.items()}, problems


def compare(name: str, where: hs.Machine, device: str, share: float, repeat: int) -> dict[str, Any]:
    """One graph with and without a limit, and with a cache."""
    graph, inputs = {"layers": layers, "sweeps": sweeps, "cholesky": cholesky}[name]()
    wanted = interpret(graph, inputs)
    costs = RooflineCosts(where)  # all plans by the same, whatever has been learned here
    free = hs.plan(graph, where, only=device, costs=costs)
    limits = {device: int(free.peak[device] * share)}
    ours = hs.plan(graph, where, only=device, memory=limits, costs=costs)
    lru = cached(graph, where, limits, device)
    for plan in (ours, lru):
        check(plan)
    seconds, problems = measured(name, {"free": free, "ours": ours, "lru": lru}, inputs, wanted, repeat)
    bound = ours.bound.seconds if ours.bound is not None else 0.0
    row = {
        "graph": name, "device": device, "tasks": len(graph), "peak": free.peak[device], "limit": limits[device],
        "planned": {"free": free.makespan, "ours": ours.makespan, "lru": lru.makespan, "bound": bound}, "measured": seconds,
        "loads": {"free": loads(free, device), "ours": loads(ours, device), "lru": loads(lru, device)},
    }  # fmt: skip
    print(
        f"{name:9s} {len(graph):4d} tasks, peak {free.peak[device] / 1e6:.1f} MB, limit {limits[device] / 1e6:.1f} MB: "
        f"measured {seconds['ours'] * 1e3:.1f} ms = {seconds['ours'] / seconds['lru']:.2f} x LRU = {seconds['ours'] / seconds['free']:.2f} x without "
        f"a limit; planned {ours.makespan / lru.makespan:.2f} x LRU, {ours.makespan / bound:.2f} x the bound; "
        f"copies in: {row['loads']['ours']}, LRU {row['loads']['lru']}, without a limit {row['loads']['free']}",
        flush=True,
    )
    if problems:
        raise SystemExit("; ".join(problems[:3]))
    return row


MOST_WRONG = 5


def limited(device: str, count: int, until: float = float("inf")) -> dict[str, Any]:
    """Random graphs under random limits: right values, or refused before the run with bytes; what else happened, at most `MOST_WRONG` times.
    until: when no further one begins."""
    found: dict[str, Any] = {"graphs": 0, "right": 0, "of them with eviction": 0, "refused": 0, "wrong": []}
    here = hs.Machine.here()
    for seed in range(count):
        if time.perf_counter() > until or len(found["wrong"]) >= MOST_WRONG:
            break
        found["graphs"] += 1
        try:
            for what in outcome(seed, device, here):
                found[what] += 1
        except Exception as error:
            found["wrong"].append(f"graph {seed}: {type(error).__name__}: {error}")
    return found


def outcome(seed: int, device: str, here: hs.Machine) -> list[str]:
    """What became of random graph `seed` under its limit: keys of what `limited` gives."""
    rng = random.Random(seed)
    graph, inputs = random_graph(rng, tasks=rng.choice([12, 30, 60]), loops=seed % 4 == 0, discrete=device == "emulated")
    if device == "emulated":
        where, only = emulated.emulate(random_machine(rng, memory_limits=False)), None
        while len(where.memories) < 2:
            where = emulated.emulate(random_machine(rng, memory_limits=False))
    else:
        where, only = here, device
    policy = rng.choice(["auto", "round_robin"]) if only is None else "auto"
    costs = RooflineCosts(where)
    free = hs.plan(graph, where, policy=policy, only=only, costs=costs)
    limits = {node: max(int(n * rng.uniform(0.1, 1.0)), 1) for node, n in free.arenas.items() if node != HOST or rng.random() < 0.3}
    try:
        plan = hs.plan(graph, where, policy=policy, only=only, memory=limits, costs=costs)
    except hs.OutOfMemoryError as error:
        if error.exit_code != 5 or "bytes" not in str(error):
            raise
        return ["refused"]
    check(plan)
    result = hs.run(plan, inputs, timeout=60)
    wrong = value_problems(result, interpret(graph, inputs)) + (run_problems(plan, result.trace, skew_seconds=50e-6) if device != "emulated" else [])
    if wrong:
        raise ValueError(f"under {limits}: {wrong[:3]}")
    evicts = any(isinstance(s.command, Copy) and s.command.dst.generation for s in plan.spans)
    return ["right", "of them with eviction"] if evicts else ["right"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="emulated", choices=["emulated", "opencl", "cuda"])
    parser.add_argument("--share", type=float, default=0.25, help="of the peak, the memory allowed")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--limits", type=int, help="random graphs under random limits (200; on CUDA 60)")
    parser.add_argument("--tile", type=int, help="rows and columns of a tile (192; on CUDA 1024)")
    parser.add_argument("--seconds", type=float, help="begin nothing further after so long (on CUDA 30)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    on_cuda, is_emulated = options.device == "cuda", options.device == "emulated"
    global N
    N = options.tile or (1024 if on_cuda else N)
    where, device = (machine(), "gpu:0") if is_emulated else (hs.Machine.here(), f"{options.device}:0")
    if device not in [d.id for d in where.devices]:
        print(f"skipped: {_gpu.missing() if on_cuda else 'no OpenCL device here'}")
        return 0
    print(f"{device}: {where.device(device).name or 'modelled'}; tiles of {N} x {N}")
    parts = _gpu.Parts(options.seconds or (30 if on_cuda else float("inf")))
    for name in ("layers", "sweeps", "cholesky"):
        parts(name, partial(compare, name, where, device, options.share, options.repeat))
    found: dict[str, Any] = {}
    count = options.limits if options.limits is not None else 60 if on_cuda else 200

    def limits() -> None:
        found.update(limited("emulated" if is_emulated else device, count, parts.begun + parts.most_seconds))
        print("random limits: " + ", ".join(f"{n} {what}" for what, n in found.items() if what != "wrong"))
        if found["wrong"]:
            raise SystemExit("\n".join(found["wrong"]))

    parts("limits", limits)
    return parts.end(options.json, device=where.device(device).name, tile=N, limits=found)


if __name__ == "__main__":
    sys.exit(main())
