"""A stream of batches through load, decode, normalize and train: hetsched beside torch's DataLoader, a thread pool and Dask, in one run.

    python benchmarks/streaming.py [--batches 500] [--repeat 5] [--no-peers] [--json FILE]

Each batch is loaded (1 ms of waiting, no core used), decoded (2 ms of NumPy), normalized (1 ms) and trained on (3 ms; each step needs the state
of the one before). Two threads compute. `free` is the bound: the same kernels on as many arrays and threads (two that compute, one that loads), which
wait for nothing; beside it the share of two threads for which nothing is loaded, and which stay with arrays of their own. Every system's last state
is compared with that of a plain loop; ratios are of one round (systems take turns), the figure is their median; 1.00 is the
bound. `by hand` is what somebody would write for these four kernels alone: a thread that loads, one that decodes and normalizes, one that trains,
and queues between them, with the ring that the plan has. Free threads share all work evenly; who must train in order waits where its core is slow.

even: as above, the estimates true. tail: decode times drawn from a lognormal distribution (sigma 1, at most ten times the mean, mean 2 ms), and
estimates three times wrong: decode and train a third of the truth, normalize three times it. Peers that are not installed are left out by name.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

import hetsched as hs
from hetsched.graph.graph import Graph, Loop
from hetsched.machine import Device, Link
from hetsched.placement.costs import Estimate

THREADS, N, RING = 2, 128, 16
MILLISECONDS = {"load": 1.0, "decode": 2.0, "normalize": 1.0, "train": 3.0}


class Work:
    """Kernels that take as long as they should: products of small matrices, as many as fit (measured here). `decode[i]`: products of batch i."""

    def __init__(self, batches: int, tail: bool) -> None:
        a = np.eye(N, dtype=np.float32)
        out = np.empty_like(a)
        rounds = 40
        seconds = []
        for _ in range(9):
            start = time.perf_counter()
            self.burn(a, out, rounds)
            seconds.append((time.perf_counter() - start) / rounds)
        self.product = statistics.median(seconds)
        per = {name: max(1, round(ms * 1e-3 / self.product)) for name, ms in MILLISECONDS.items()}
        self.normalize, self.train = per["normalize"], per["train"]
        draws = np.ones(batches)
        if tail:
            draws = np.minimum(np.random.default_rng(0).lognormal(0.0, 1.0, batches), 10 * np.exp(0.5))
            draws /= draws.mean()
        self.decode = np.maximum(1, np.round(draws * per["decode"])).astype(int).tolist()
        self.batches, self.tail = batches, tail

    @staticmethod
    def burn(a: Any, out: Any, times: int) -> None:
        for _ in range(times):
            np.matmul(a, a, out=out)

    def load(self, i: int, out: Any) -> None:
        time.sleep(MILLISECONDS["load"] * 1e-3)
        out.fill(0)
        np.fill_diagonal(out, 1 - 2 * (i % 2))

    def decoded(self, i: int, raw: Any, out: Any) -> None:
        self.burn(raw, out, self.decode[i])
        np.multiply(raw, 0.5, out=out)

    def normalized(self, x: Any, out: Any) -> None:
        self.burn(x, out, self.normalize)
        np.add(x, 1.0, out=out)

    def trained(self, state: Any, x: Any, out: Any) -> None:
        scratch = np.empty_like(out)
        self.burn(x, scratch, self.train)
        np.multiply(state, 0.5, out=scratch)
        np.add(scratch, x, out=out)


def fresh() -> Any:
    return np.empty((N, N), np.float32)


def plain(work: Work) -> Any:
    """The loop, one thing after another, without the time it takes."""
    state = np.zeros((N, N), np.float32)
    for i in range(work.batches):
        state = state * np.float32(0.5) + (np.eye(N, dtype=np.float32) * (1 - 2 * (i % 2)) * np.float32(0.5) + np.float32(1.0))
    return state


# Systems: functions that give (seconds, last state) ---------------------------------------------------------------------------


def free(work: Work, whole: bool = True) -> tuple[float, float]:
    """The same kernels on two threads that wait for nothing. Seconds, and those of all train steps: a chain, so a run must take as long.

    Each batch has arrays of its own, as many as a ring has, and a third thread loads, one batch after the other. whole=False: nothing is loaded,
    and each thread stays with arrays of its own.
    """
    chain = [0.0] * THREADS
    jobs = iter([(name, i) for i in range(work.batches) for name in ("decode", "normalize", "train")])
    gate = threading.Barrier(THREADS + 1)
    ring = [[np.eye(N, dtype=np.float32) for _ in range(3)] for _ in range(RING)]

    def serve(number: int) -> None:
        mine, state, out = [np.eye(N, dtype=np.float32) for _ in range(3)], np.zeros((N, N), np.float32), fresh()
        gate.wait()
        for name, i in jobs:
            # As in a run, no two kernels at a time are at one array: each is at a batch of its own.
            raw, x, y = ring[(i + ("train", "normalize", "decode").index(name) * (RING // 4)) % RING] if whole else mine
            if name == "decode":
                work.decoded(i, raw, x)
            elif name == "normalize":
                work.normalized(x, y)
            else:
                start = time.perf_counter()
                work.trained(state, y, out)
                chain[number] += time.perf_counter() - start
        gate.wait()

    def load() -> None:
        for i in range(work.batches):
            work.load(i, ring[(i + RING * 3 // 4) % RING][0])

    threads = [threading.Thread(target=serve, args=(n,)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    loading = threading.Thread(target=load)
    gate.wait()
    start = time.perf_counter()
    if whole:
        loading.start()
    gate.wait()
    seconds = time.perf_counter() - start
    for thread in (*threads, *([loading] if whole else [])):
        thread.join()
    return seconds, sum(chain)


class Estimates:
    """Costs as they are told to the planner: seconds by op."""

    def __init__(self, work: Work) -> None:
        wrong = {"decode": 1 / 3, "train": 1 / 3, "normalize": 3.0} if work.tail else {}
        self.seconds = {f"bench.{name}": ms * 1e-3 * wrong.get(name, 1.0) for name, ms in MILLISECONDS.items()}

    def launch(self, graph: Graph, task: int, device: Device, width: int) -> Estimate:
        return Estimate(self.seconds[graph.task_ops[task].name] if width == 1 else float("inf"), source="told")

    def copy(self, nbytes: int, link: Link) -> Estimate:
        return Estimate(link.seconds(nbytes))


def planned(work: Work) -> hs.Timeline:
    spec = hs.Spec((N, N), np.float32)

    def op(name: str, inputs: tuple[str, ...], kernel: Callable[[Any, Any], None], waits: bool = False) -> hs.Op:
        return hs.Op(
            f"bench.{name}", inputs, ("y",), lambda specs, attributes: [spec], lambda ins, outs, attributes: hs.Work(1, 4, 4),
            kernels={"array": lambda xp, ins, outs, workspace, attributes: kernel(ins, outs[0])}, waits=waits,
        )  # fmt: skip

    body = Graph.build()
    turn, state = body.input("turn", (), np.int64), body.input("state", (N, N))
    raw = body.op(op("load", ("i",), lambda ins, out: work.load(int(ins[0]), out), waits=True), turn, name="load")
    decoded = body.op(op("decode", ("i", "raw"), lambda ins, out: work.decoded(int(ins[0]), ins[1], out)), turn, raw, name="decode")
    normal = body.op(op("normalize", ("x",), lambda ins, out: work.normalized(ins[0], out)), decoded, name="normalize")
    body.output(body.op(op("train", ("state", "x"), lambda ins, out: work.trained(ins[0], ins[1], out)), state, normal, name="train"), "new")
    b = Graph.build()
    (last,) = b.loop(Loop(body.freeze(), work.batches, carried=(("state", "new"),), turn="turn"), b.input("state", (N, N)), name="stream")
    b.output(last, "last")
    here = hs.Machine.here()
    cpu = replace(next(d for d in here.devices if d.kind == "cpu"), lanes=THREADS, widths=(1,), uses={})
    machine = replace(here, devices=(cpu,), links=(), resources=(), memories=tuple(m for m in here.memories if m.name == cpu.memory))
    return hs.plan(b.freeze(), machine, costs=Estimates(work))


def hetsched(plan: hs.Timeline) -> tuple[float, Any]:
    start = time.perf_counter()
    result = hs.run(plan, {"state": np.zeros((N, N), np.float32)}, learn=False)
    return time.perf_counter() - start, result["last"]


def by_hand(work: Work, ring: int) -> tuple[float, Any]:
    """Three threads and three queues of ring slots; each thread has its kernels."""
    slots = [[fresh() for _ in range(3)] for _ in range(ring)]
    free_slots: SimpleQueue[int] = SimpleQueue()
    loaded: SimpleQueue[int] = SimpleQueue()
    normal: SimpleQueue[int] = SimpleQueue()
    for at in range(ring):
        free_slots.put(at)

    def load() -> None:
        for i in range(work.batches):
            at = free_slots.get()
            work.load(i, slots[at][0])
            loaded.put(at)

    def prepare() -> None:
        for i in range(work.batches):
            at = loaded.get()
            raw, x, y = slots[at]
            work.decoded(i, raw, x)
            work.normalized(x, y)
            normal.put(at)

    states = np.zeros((N, N), np.float32), fresh()
    start = time.perf_counter()
    threads = [threading.Thread(target=target) for target in (load, prepare)]
    for thread in threads:
        thread.start()
    for i in range(work.batches):
        at = normal.get()
        work.trained(states[i % 2], slots[at][2], states[1 - i % 2])
        free_slots.put(at)
    for thread in threads:
        thread.join()
    return time.perf_counter() - start, states[work.batches % 2]


def pool(work: Work) -> tuple[float, Any]:
    """A thread pool: preparing up to 8 batches ahead, training in order, each as a task of its own."""
    ahead = 8
    with ThreadPoolExecutor(THREADS) as executor:

        def prepare(i: int) -> Any:
            raw, x, y = fresh(), fresh(), fresh()
            work.load(i, raw)
            work.decoded(i, raw, x)
            work.normalized(x, y)
            return y

        def train(state: Any, x: Any) -> Any:
            out = fresh()
            work.trained(state, x, out)
            return out

        start = time.perf_counter()
        waiting: list[Future[Any]] = [executor.submit(prepare, i) for i in range(min(ahead, work.batches))]
        state = np.zeros((N, N), np.float32)
        for i in range(work.batches):
            x = waiting.pop(0).result()
            if i + ahead < work.batches:
                waiting.append(executor.submit(prepare, i + ahead))
            state = executor.submit(train, state, x).result()
        return time.perf_counter() - start, state


def loader(work: Work) -> tuple[float, Any]:
    """torch's DataLoader with one process that prepares, and the main process that trains: two cores."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Batches(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return work.batches

        def __getitem__(self, i: int) -> Any:
            raw, x, y = fresh(), fresh(), fresh()
            work.load(i, raw)
            work.decoded(i, raw, x)
            work.normalized(x, y)
            return torch.from_numpy(y)

    stream = iter(DataLoader(Batches(), batch_size=None, num_workers=THREADS - 1, prefetch_factor=8))
    state, start = np.zeros((N, N), np.float32), 0.0
    for i, x in enumerate(stream):
        if not i:
            start = time.perf_counter()  # processes are started before the clock
        out = fresh()
        work.trained(state, x.numpy(), out)
        state = out
    return (time.perf_counter() - start) * work.batches / max(work.batches - 1, 1), state


def dask(work: Work) -> tuple[float, Any]:
    """A graph of delayed calls on Dask's threads."""
    from dask import delayed, get_annotations  # noqa: F401 (fails early where Dask is not there)
    from dask.threaded import get

    def made(function: Callable[..., None], *args: Any) -> Any:
        out = fresh()
        function(*args, out)
        return out

    graph: dict[Any, Any] = {("train", -1): np.zeros((N, N), np.float32)}
    for i in range(work.batches):
        graph["load", i] = (made, work.load, i)
        graph["decode", i] = (made, work.decoded, i, ("load", i))
        graph["normalize", i] = (made, work.normalized, ("decode", i))
        graph["train", i] = (made, work.trained, ("train", i - 1), ("normalize", i))
    start = time.perf_counter()
    state = get(graph, ("train", work.batches - 1), num_workers=THREADS)
    return time.perf_counter() - start, state


BARE = "free, nothing loaded"
PEERS: dict[str, Callable[[Work], tuple[float, Any]]] = {"pool": pool, "torch DataLoader": loader, "dask": dask}


def compare(case: str, batches: int, repeat: int, peers: bool) -> dict[str, Any]:
    with threadpool_limits(1):
        work = Work(batches, case == "tail")
    plan = planned(work)
    wanted = plain(work)
    shares: dict[str, list[float]] = {"hetsched": [], "by hand": []}
    seconds: dict[str, list[float]] = {"free": [], "hetsched": []}
    missing: dict[str, str] = {}
    interval = sys.getswitchinterval()
    chains: list[float] = []
    bare: list[float] = []
    hand: list[float] = []

    def at_best(run: Callable[[], tuple[float, Any]]) -> tuple[float, Any]:
        with threadpool_limits(1):
            sys.setswitchinterval(1e-4)
            try:
                return run()
            finally:
                sys.setswitchinterval(interval)

    def two_free(whole: bool) -> tuple[float, Any]:
        taken, chain = at_best(lambda: free(work, whole))
        if whole:
            chains.append(chain / taken)
        return taken, wanted

    body = next(iter(plan.loops.values()))
    ring = max(body.rings.values())
    systems: dict[str, Callable[[], tuple[float, Any]]] = {
        "free": lambda: two_free(True), "hetsched": lambda: hetsched(plan), BARE: lambda: two_free(False),
        "by hand": lambda: at_best(lambda: by_hand(work, ring)),
    }  # fmt: skip
    for round_ in range(repeat + 1):
        now = dict(reversed(systems.items())) if round_ % 2 else dict(systems)  # they take turns at being first
        if peers and round_ <= min(repeat, 3):
            now |= {name: (lambda peer=peer: peer(work)) for name, peer in PEERS.items() if name not in missing}  # type: ignore[misc]
        took: dict[str, float] = {}
        for name, run in now.items():
            try:
                with threadpool_limits(1 if name in PEERS else None):
                    took[name], state = run()
            except ImportError as error:
                missing[name] = str(error)
                continue
            assert np.allclose(state, wanted, rtol=1e-4), f"{name} differs from the plain loop"
        if round_:  # the first round warms up
            bare.append(took[BARE] / took["hetsched"])
            hand.append(took["by hand"] / took["hetsched"])
            for name, taken in took.items():
                seconds.setdefault(name, []).append(taken)
                if name not in ("free", BARE):
                    shares.setdefault(name, []).append(took["free"] / taken)
    return {
        "case": case, "batches": batches, "share_of_free": {name: statistics.median(x) for name, x in shares.items()},
        "spread": {name: [min(x), max(x)] for name, x in shares.items()}, "seconds": {name: statistics.median(x) for name, x in seconds.items()},
        "share_of_bare": statistics.median(bare), "speed_of_by_hand": statistics.median(hand),
        "chain_of_free": statistics.median(chains[1:]), "planned_period": body.period,
        "rings": {body.graph.value_names[r.value]: n for r, n in body.rings.items()}, "missing": missing,
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=500)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--cases", nargs="+", default=["even", "tail"])
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="leave the other systems out")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    rows = []
    for case in options.cases:
        row = compare(case, options.batches, options.repeat, options.peers)
        rows.append(row)
        shares = ", ".join(f"{name} {x:.3f} ({row['spread'][name][0]:.3f}-{row['spread'][name][1]:.3f})" for name, x in row["share_of_free"].items())
        print(
            f"{case}: of two free threads: {shares}; free {row['seconds']['free']:.3f} s, "
            f"its train steps, one after another, {row['chain_of_free']:.3f} of that; of threads that load nothing {row['share_of_bare']:.3f}; "
            f"{row['speed_of_by_hand']:.3f} x the speed of by hand; "
            f"period planned {row['planned_period'] * 1e3:.2f} ms"
        )
        for name, why in row["missing"].items():
            print(f"  {name} is not installed: {why}")
        sys.stdout.flush()
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
