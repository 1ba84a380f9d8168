"""Tiled Cholesky with real kernels: hetsched beside a thread pool and beside two free threads, in one run.

    python benchmarks/cholesky.py [--tiles 20] [--sizes 256 128] [--repeat 7] [--json FILE]

A symmetric positive definite float32 matrix of tiles x tiles tiles is factored by NumPy kernels (potrf, trsm, syrk, gemm), BLAS on one thread each,
on two threads. Every system runs the same kernels on the same tiles: the given ones are kept, each result is a new array, written in place once it is
there. Results are compared with `numpy.linalg.cholesky` of the whole matrix.

- hetsched: the kernels as ops of a graph, planned once (from the kernels' measured times, in an order for the cache where the matrix is larger than
  that), run by the library; the figure is the makespan of its trace, from the first task's start to the last one's end. Wall seconds of the call of
  `hetsched.run`, all told, beside it: of a plan that has run before, and (`first`) of one that has not, whose steps and arena are made.
- session: the same plan, compiled by a `Session` and called again and again: wall seconds of a call, all told.
- pool: `concurrent.futures.ThreadPoolExecutor` with dependency counts: who brings a count to zero submits the task.
- free: two threads take the kernels one after another in the order of the algorithm and wait for nothing: what the machine gives at best.

Ratios are of one round (they take turns, in another order each round, drawn by chance: what ran before leaves its tiles in the cache), the figure is
their median. Above 1: hetsched is faster than the pool; share of free: 1 is what kernels in the order of the algorithm take. `busy` is the share of
the two threads' time in which kernels ran, `path` the longest path through the graph in measured times, of the makespan: what is left to 1 is what no
order of the tasks could help. `most`: how many times the pool's speed a run would have had with its threads at kernels all the time: kernels are the
same for all, so no scheduler could be further from the pool than that.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

import hetsched as hs
from hetsched.graph.op import Attributes
from hetsched.machine import Device, Link
from hetsched.placement.costs import Estimate

THREADS = 2


# Kernels: (inputs, outputs); scratch is each thread's own
# ------------------------------------------------------------------------------------------------


_local = threading.local()


def own(like: Any) -> Any:
    """The calling thread's scratch: it stays in the cache of its core."""
    scratch = getattr(_local, "scratch", None)
    if scratch is None or scratch.shape != like.shape:
        scratch = _local.scratch = np.empty_like(like)
    return scratch


def potrf(ins: Sequence[Any], outs: Sequence[Any]) -> None:
    """L of A = L L', and L^-1: NumPy has no triangular solver, so the tiles below are multiplied by the inverse (as libraries for GPUs do it)."""
    np.copyto(outs[0], np.linalg.cholesky(ins[0]))
    outs[1].fill(0)
    invert(outs[0], outs[1])


def invert(low: Any, out: Any) -> None:
    """The inverse of a lower triangular matrix, by halves: [[A, 0], [C, B]] -> [[A^-1, 0], [-B^-1 C A^-1, B^-1]]. The upper half of `out` is 0."""
    n = len(low)
    if n <= 32:
        np.copyto(out, np.linalg.inv(low))
        return
    h = n // 2
    invert(low[:h, :h], out[:h, :h])
    invert(low[h:, h:], out[h:, h:])
    np.matmul(-out[h:, h:], low[h:, :h] @ out[:h, :h], out=out[h:, :h])


def trsm(ins: Sequence[Any], outs: Sequence[Any]) -> None:
    """A L^-T."""
    scratch = own(ins[0])
    np.matmul(ins[0], ins[1].T, out=scratch)
    np.copyto(outs[0], scratch)


def syrk(ins: Sequence[Any], outs: Sequence[Any]) -> None:
    """C - A A'."""
    a = ins[1]
    scratch = own(a)
    np.matmul(a, a.T, out=scratch)
    np.subtract(ins[0], scratch, out=outs[0])


def gemm(ins: Sequence[Any], outs: Sequence[Any]) -> None:
    """C - A B'."""
    c, a, b = ins
    scratch = own(c)
    np.matmul(a, b.T, out=scratch)
    np.subtract(c, scratch, out=outs[0])


KERNELS: dict[str, Callable[[Sequence[Any], Sequence[Any]], None]] = {"potrf": potrf, "trsm": trsm, "syrk": syrk, "gemm": gemm}
FLOPS = {"potrf": 8 / 3, "trsm": 2.0, "syrk": 1.0, "gemm": 2.0}  # times n^3
INPUTS = {"potrf": ("a",), "trsm": ("a", "w"), "syrk": ("c", "a"), "gemm": ("c", "a", "b")}


class Kernel(NamedTuple):
    """A task of the algorithm: tile `out` becomes what kernel `name` makes of it and of the tiles `others` ((k, -1): the inverse of L of tile k,
    k).
    """

    name: str
    out: tuple[int, int]
    others: tuple[tuple[int, int], ...]


def algorithm(tiles: int) -> Iterator[Kernel]:
    """Right-looking tiled Cholesky."""
    for k in range(tiles):
        yield Kernel("potrf", (k, k), ())
        for i in range(k + 1, tiles):
            yield Kernel("trsm", (i, k), ((k, -1),))
        for i in range(k + 1, tiles):
            yield Kernel("syrk", (i, i), ((i, k),))
            for j in range(k + 1, i):
                yield Kernel("gemm", (i, j), ((i, k), (j, k)))


def matrix(tiles: int, size: int) -> np.ndarray:
    """A symmetric positive definite matrix, well conditioned."""
    n = tiles * size
    a = np.random.default_rng(0).uniform(-1, 1, (n, n)).astype(np.float32)
    a = (a + a.T) / 2
    a[np.arange(n), np.arange(n)] += n
    return a


def split(a: np.ndarray, tiles: int, size: int) -> dict[tuple[int, int], np.ndarray]:
    """(row, column) -> tile, of the lower half; (k, -1) -> room for an inverse."""
    out = {(i, j): a[i * size : (i + 1) * size, j * size : (j + 1) * size].copy() for i in range(tiles) for j in range(i + 1)}
    return out | {(k, -1): np.zeros((size, size), a.dtype) for k in range(tiles)}


def error(tiled: dict[tuple[int, int], np.ndarray], wanted: np.ndarray, size: int) -> float:
    """The largest difference from the factor NumPy gives, relative to the largest element."""
    worst, largest = 0.0, float(np.abs(wanted).max())
    for (i, j), tile in tiled.items():
        if j < 0:
            continue
        part = wanted[i * size : (i + 1) * size, j * size : (j + 1) * size]
        worst = max(worst, float(np.abs((np.tril(tile) if i == j else tile) - part).max()) / largest)
    return worst


# hetsched ---------------------------------------------------------------------------------------------------------------------------


def op_of(name: str, size: int) -> hs.Op:
    """A kernel as an op: outputs are other tiles than inputs, or (the plan decides) the same bytes."""
    nbytes, reads, plain = 4 * size * size, len(INPUTS[name]), KERNELS[name]

    def kernel(xp: Any, inputs: Sequence[Any], outputs: list[Any], workspace: Any, attributes: Attributes) -> None:
        plain(inputs, outputs)

    return hs.Op(
        f"bench.{name}", INPUTS[name], ("out", "inverse") if name == "potrf" else ("out",), lambda specs, attributes: [specs[0]] * (1 + (name ==
        "potrf")), lambda ins, outs, attributes: hs.Work(FLOPS[name] * size**3, reads * nbytes, nbytes), kernels={"array": kernel}, inplace=((0, 0),),
    )  # fmt: skip


def graph_of(tiles: int, size: int) -> hs.Graph:
    b = hs.Graph.build("cholesky")
    ops = {name: op_of(name, size) for name in KERNELS}
    tile = {(i, j): b.input(f"a{i}_{j}", (size, size)) for i in range(tiles) for j in range(i + 1)}
    for name, out, others in algorithm(tiles):
        made = b.op(ops[name], tile[out], *(tile[x] for x in others), name=f"{name}_{out[0]}_{out[1]}")
        if name == "potrf":
            tile[out], tile[out[0], -1] = made
        else:
            tile[out] = made
    for (i, j), value in tile.items():
        if j >= 0:
            b.output(value, f"l{i}_{j}")
    return b.freeze()


class Measured:
    """Costs: the median seconds of each kernel, measured here."""

    def __init__(self, size: int) -> None:
        rng = np.random.default_rng(1)
        a = rng.uniform(-1, 1, (size, size)).astype(np.float32)
        spd = np.asarray(a @ a.T + size * np.eye(size), np.float32)
        low, other = np.linalg.cholesky(spd), a.copy()  # (a product with itself is another, faster kernel)
        outs = [np.empty_like(a), np.empty_like(a)]
        self.seconds: dict[str, float] = {}
        for name, kernel in KERNELS.items():
            ins = [spd, low, other][: len(INPUTS[name])]
            found = []
            for _ in range(9):
                start = time.perf_counter()
                kernel(ins, outs)
                found.append(time.perf_counter() - start)
            self.seconds[f"bench.{name}"] = statistics.median(found)

    def launch(self, graph: hs.Graph, task: int, device: Device, width: int) -> Estimate:
        return Estimate(self.seconds[graph.task_ops[task].name] if width == 1 else float("inf"), source="measured")

    def copy(self, nbytes: int, link: Link) -> Estimate:
        return Estimate(link.seconds(nbytes))


def with_two_threads() -> hs.Machine:
    """This machine with two lanes of its CPU, whatever it has."""
    here = hs.Machine.here()
    cpu = replace(next(d for d in here.devices if d.kind == "cpu"), lanes=THREADS, widths=(1,), uses={})
    return replace(here, devices=(cpu,), links=(), resources=(), memories=tuple(m for m in here.memories if m.name == cpu.memory))


# Peers ------------------------------------------------------------------------------------------------------------------------------


Tiles = dict[tuple[int, int], np.ndarray]


def pool(tasks: list[Kernel], given: Tiles) -> tuple[float, Tiles]:
    """A thread pool with dependency counts: seconds, and the result."""
    last: dict[tuple[int, int], int] = {}
    after: list[list[int]] = [[] for _ in tasks]
    waits = [0] * len(tasks)
    for t, (name, out, others) in enumerate(tasks):
        for before in {last[x] for x in (out, *others) if x in last}:
            after[before].append(t)
            waits[t] += 1
        if name == "potrf":
            last[out[0], -1] = t
        last[out] = t  # a tile is read only after its last writer, so nothing is overwritten early
    size = given[0, 0].shape[0]
    tile = dict(given)
    lock, done, left = threading.Lock(), threading.Event(), len(tasks)

    def work(t: int) -> None:
        nonlocal left
        name, out, others = tasks[t]
        old = tile[out]
        new = tile[out] = np.empty((size, size), np.float32) if old is given[out] else old
        outs = [new]
        if name == "potrf":
            outs.append(np.empty((size, size), np.float32))
            tile[out[0], -1] = outs[1]
        KERNELS[name]([old, *[tile[x] for x in others]], outs)
        ready = []
        with lock:
            left -= 1
            for later in after[t]:
                waits[later] -= 1
                if waits[later] == 0:
                    ready.append(later)
            if left == 0:
                done.set()
        for later in ready:
            executor.submit(work, later)

    with ThreadPoolExecutor(THREADS) as executor:
        for _ in range(THREADS):
            executor.submit(time.sleep, 0.001)  # start the threads
        time.sleep(0.005)
        start = time.perf_counter()
        for t in [t for t, n in enumerate(waits) if n == 0]:
            executor.submit(work, t)
        done.wait()
        return time.perf_counter() - start, tile


def free(tasks: list[Kernel], given: Tiles, factor: Tiles) -> float:
    """The same kernels on two threads that wait for nothing: what a task would wait for is taken from the finished `factor`. Seconds."""
    size = given[0, 0].shape[0]
    made: Tiles = {}
    queue = iter(tasks)
    gate = threading.Barrier(THREADS + 1)

    def work() -> None:
        np.seterr(all="ignore")  # (of this thread: it may read a tile that the other one has just begun)
        gate.wait()
        for name, out, others in queue:
            old = made.get(out)
            if old is None:
                old, new = given[out], np.empty((size, size), np.float32)
                made[out] = new
            else:
                new = old
            if name == "potrf":
                potrf([given[out]], [new, np.empty((size, size), np.float32)])
            else:
                KERNELS[name]([old, *[factor[x] for x in others]], [new])
        gate.wait()

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for t in threads:
        t.start()
    gate.wait()
    start = time.perf_counter()
    gate.wait()
    seconds = time.perf_counter() - start
    for t in threads:
        t.join()
    return seconds


@contextmanager
def peers_tuned() -> Iterator[None]:
    """BLAS on one thread and the switch interval that hetsched sets for its own runs: to the peers' good."""
    interval = sys.getswitchinterval()
    with threadpool_limits(1):
        sys.setswitchinterval(1e-4)
        try:
            yield
        finally:
            sys.setswitchinterval(interval)


def spent(trace: hs.Timeline) -> tuple[float, float]:
    """Of the time of a run: the share in which the threads were at kernels, and that of the longest path through the graph."""
    graph, seconds = trace.graph, {s.command.task: s.finish - s.start for s in trace.launches}
    ends = [0.0] * len(graph)
    for task in range(len(graph)):
        ends[task] = seconds[task] + max((ends[p] for v in graph.reads(task) if (p := int(graph.value_task[v])) >= 0), default=0.0)
    return sum(seconds.values()) / THREADS / trace.makespan, max(ends) / trace.makespan


# The comparison ---------------------------------------------------------------------------------------------------------------------


def compare(tiles: int, size: int, repeat: int) -> dict[str, Any]:
    a = matrix(tiles, size)
    wanted = np.linalg.cholesky(a.astype(np.float64)).astype(np.float32)
    given = split(a, tiles, size)
    tasks = list(algorithm(tiles))
    with threadpool_limits(1):
        costs = Measured(size)
        plan = hs.plan(graph_of(tiles, size), with_two_threads(), costs=costs)
    inputs = {f"a{i}_{j}": tile for (i, j), tile in given.items() if j >= 0}
    rows: dict[str, list[float]] = {name: [] for name in ("hetsched", "wall", "first", "session", "pool", "free", "busy", "path")}
    worst = 0.0
    factor = split(np.tril(wanted), tiles, size)
    factor |= {(k, -1): np.linalg.inv(factor[k, k]) for k in range(tiles)}

    def ours() -> dict[str, float]:
        start = time.perf_counter()
        result = hs.run(plan, inputs, learn=False)
        seconds = time.perf_counter() - start
        return judged(result) | {"wall": seconds}

    def at_first() -> dict[str, float]:
        new = replace(plan)  # the same plan, of which nothing is kept
        start = time.perf_counter()
        result = hs.run(new, inputs, learn=False)
        seconds = time.perf_counter() - start
        judged(result)
        return {"first": seconds}

    def judged(result: hs.Result) -> dict[str, float]:
        nonlocal worst
        worst = max(worst, error({(i, j): result[f"l{i}_{j}"] for i, j in given if j >= 0}, wanted, size))
        busy, path = spent(result.trace)
        return {"hetsched": result.trace.makespan, "busy": busy, "path": path}

    def in_session() -> dict[str, float]:
        start = time.perf_counter()
        result = again(inputs)
        seconds = time.perf_counter() - start
        judged(result)
        return {"session": seconds}

    def in_pool() -> dict[str, float]:
        nonlocal worst
        with peers_tuned():
            seconds, mine = pool(tasks, given)
        worst = max(worst, error(mine, wanted, size))
        return {"pool": seconds}

    def at_best() -> dict[str, float]:
        with peers_tuned():
            return {"free": free(tasks, given, factor)}

    systems: list[Callable[[], dict[str, float]]] = [ours, in_pool, at_best, in_session, at_first]
    with hs.Session() as session:
        again = session.compile(plan, buffers=1, trace=True)
        for round_ in range(repeat + 1):
            for run in random.Random(round_).sample(systems, len(systems)):
                found = run()
                if round_:  # the first round warms up
                    for name, seconds in found.items():
                        rows[name].append(seconds)
    assert worst < 1e-5, f"a result differs from NumPy's by {worst:.2g}"
    rounds = range(repeat)
    return {
        "tile": size, "tiles": tiles, "tasks": len(tasks), "plan_seconds": plan.plan_seconds, "planned_seconds": plan.makespan,
        **{f"{name}_seconds": statistics.median(x) for name, x in rows.items() if name not in ("busy", "path")},
        "busy": statistics.median(rows["busy"]), "path": statistics.median(rows["path"]),
        "over_pool": statistics.median(rows["pool"][i] / rows["hetsched"][i] for i in rounds),
        "most_over_pool": statistics.median(rows["pool"][i] / (rows["hetsched"][i] * rows["busy"][i]) for i in rounds),
        "of_free": statistics.median(rows["free"][i] / rows["hetsched"][i] for i in rounds),
        "wall_over_pool": statistics.median(rows["pool"][i] / rows["wall"][i] for i in rounds),
        "wall_of_free": statistics.median(rows["free"][i] / rows["wall"][i] for i in rounds),
        "first_over_pool": statistics.median(rows["pool"][i] / rows["first"][i] for i in rounds),
        "session_over_pool": statistics.median(rows["pool"][i] / rows["session"][i] for i in rounds),
        "session_of_free": statistics.median(rows["free"][i] / rows["session"][i] for i in rounds),
        "spread_of_free": sorted(round(rows["free"][i] / rows["hetsched"][i], 3) for i in rounds),
        "spread_over_pool": sorted(round(rows["pool"][i] / rows["hetsched"][i], 3) for i in rounds),
        "error": worst,
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=20)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 128])
    parser.add_argument("--repeat", type=int, default=7, help="rounds at the largest size; smaller ones, which are shorter, take more (default: 7)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < THREADS:
        print(f"this benchmark needs {THREADS} cores, found {cores}; its ratios would mean nothing", file=sys.stderr)
    found = []
    for size in options.sizes:
        row = compare(options.tiles, size, max(1, round(options.repeat * (max(options.sizes) / size) ** 2)))
        found.append(row)
        print(
            f"tile {size}: {row['over_pool']:.3f} x the thread pool (most {row['most_over_pool']:.3f}), {row['of_free']:.3f} of two free threads "
            f"(with setting up: {row['wall_over_pool']:.3f} x, {row['wall_of_free']:.3f}; "
            f"the first time: {row['first_over_pool']:.3f} x; "
            f"called again in a session: {row['session_over_pool']:.3f} x, {row['session_of_free']:.3f}); "
            f"hetsched {row['hetsched_seconds'] * 1e3:.1f} ms (wall {row['wall_seconds'] * 1e3:.1f}, first {row['first_seconds'] * 1e3:.1f}), "
            f"pool {row['pool_seconds'] * 1e3:.1f}, free {row['free_seconds'] * 1e3:.1f}, "
            f"session {row['session_seconds'] * 1e3:.1f}; busy {row['busy']:.3f}, path {row['path']:.3f}; "
            f"plan {row['plan_seconds'] * 1e3:.1f}; error {row['error']:.1e}",
            flush=True,
        )
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
