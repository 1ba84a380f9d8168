"""What dispatching a task costs: graphs of 10,000 tasks that do nothing, beside other schedulers, in one run.

    python benchmarks/overhead.py [--tasks 10000] [--repeat 7] [--json FILE]

Graphs: a chain; a fan (one task, thousands that read it, one that reads them all); a wavefront (task i, j waits for i-1, j and i, j-1); a tiled
Cholesky factorization. A kernel is a Python function that counts its calls and returns a number made from its inputs; counts and the numbers at the
ends of the graph are checked after every run, of every system.

- replayed: a compiled graph (`Session.compile`) called again, once it is hot.
- bare loop: what one writes by hand, `values.append(function(*[values[p] for p in inputs]))` over the tasks in order. It plans nothing, knows no
  devices and keeps every value. Beside it the same with calls of one and two inputs written out, the fastest loop over a table there is.
- cold: `hetsched.plan`, then the first run of the plan; goal: 1.5 times the planning and 5 us a task.
- peers: a thread pool with dependency counts (`concurrent.futures`), Dask's threaded scheduler, Ray's tasks, StarPU's Python package; those that are
  not installed are named and left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import hetsched as hs

CALLS = 0
MASK = (1 << 29) - 1


class Case(NamedTuple):
    """reads[t]: the tasks that task t reads; tasks stand in order."""

    name: str
    reads: list[tuple[int, ...]]


def nothing(*values: int) -> int:
    global CALLS
    CALLS += 1
    return sum(values) & MASK


def source() -> int:
    global CALLS
    CALLS += 1
    return 1


def one(a: int) -> int:
    global CALLS
    CALLS += 1
    return a + 1 & MASK


def two(a: int, b: int) -> int:
    global CALLS
    CALLS += 1
    return a + b & MASK


def three(a: int, b: int, c: int) -> int:
    global CALLS
    CALLS += 1
    return a + b + c & MASK


FUNCTIONS = (source, one, two, three)
OPS = {f: hs.op(hs.Opaque("int"), name=f"noop.{f.__name__}")(f) for f in (*FUNCTIONS, nothing)}


def function_of(count: int) -> Callable[..., int]:
    return FUNCTIONS[count] if count < len(FUNCTIONS) else nothing


def cases(n: int) -> list[Case]:
    side = round(n**0.5)
    wave = []
    for i in range(side):
        for j in range(side):
            wave.append(tuple(k for k, there in ((i * side + j - side, i > 0), (i * side + j - 1, j > 0)) if there))
    return [
        Case("chain", [(), *((t,) for t in range(n - 1))]),
        Case("fan", [(), *[(0,)] * (n - 2), tuple(range(1, n - 1))]),
        Case("wavefront", wave),
        Case("cholesky", cholesky(n)),
    ]


def cholesky(n: int) -> list[tuple[int, ...]]:
    """T tiles a side: T (T + 1) (T + 2) / 6 tasks, as near below n as it comes."""
    tiles = 1
    while (tiles + 1) * (tiles + 2) * (tiles + 3) // 6 <= n:
        tiles += 1
    last: dict[tuple[int, int], int] = {}
    reads: list[tuple[int, ...]] = []

    def task(i: int, j: int, *inputs: tuple[int, int]) -> None:
        reads.append(tuple(last[x] for x in ((i, j), *inputs) if x in last))
        last[i, j] = len(reads) - 1

    for k in range(tiles):
        task(k, k)
        for i in range(k + 1, tiles):
            task(i, k, (k, k))
        for i in range(k + 1, tiles):
            task(i, i, (i, k))
            for j in range(k + 1, i):
                task(i, j, (i, k), (j, k))
    return reads


def ends(reads: list[tuple[int, ...]]) -> list[int]:
    read = {p for row in reads for p in row}
    return [t for t in range(len(reads)) if t not in read]


def build(case: Case) -> hs.Graph:
    b = hs.Graph.build()
    values: list[Any] = []
    for row in case.reads:
        values.append(b.op(OPS[function_of(len(row))], *(values[p] for p in row)))
    for t in ends(case.reads):
        b.output(values[t], f"t{t}")
    return b.freeze()


# Systems ----------------------------------------------------------------------------------------------------------------------


def bare(case: Case) -> Callable[[], list[int]]:
    """The loop one writes: a list of values, the functions and the rows."""
    rows = [(function_of(len(row)), row) for row in case.reads]
    last = ends(case.reads)

    def run() -> list[int]:
        values: list[int] = []
        add = values.append
        for function, row in rows:
            add(function(*[values[p] for p in row]))
        return [values[t] for t in last]

    return run


def bare_unrolled(case: Case) -> Callable[[], list[int]]:
    """The same with the commonest rows written out."""
    rows = [(function_of(len(row)), row, len(row)) for row in case.reads]
    last = ends(case.reads)

    def run() -> list[int]:
        values: list[int] = []
        add = values.append
        for function, row, count in rows:
            if count == 2:
                add(function(values[row[0]], values[row[1]]))
            elif count == 1:
                add(function(values[row[0]]))
            else:
                add(function(*[values[p] for p in row]))
        return [values[t] for t in last]

    return run


def thread_pool(case: Case) -> Callable[[], list[int]]:
    """Two threads; who brings a dependency count to zero submits the task."""
    n = len(case.reads)
    after: list[list[int]] = [[] for _ in range(n)]
    for t, row in enumerate(case.reads):
        for p in row:
            after[p].append(t)
    functions = [function_of(len(row)) for row in case.reads]
    last = ends(case.reads)

    def run() -> list[int]:
        values: list[int] = [0] * n
        counts = [len(row) for row in case.reads]
        lock, left, over = threading.Lock(), [n], threading.Event()

        def do(t: int) -> None:
            values[t] = functions[t](*[values[p] for p in case.reads[t]])
            ready = []
            with lock:
                left[0] -= 1
                for s in after[t]:
                    counts[s] -= 1
                    if counts[s] == 0:
                        ready.append(s)
                if left[0] == 0:
                    over.set()
            for s in ready:
                pool.submit(do, s)

        with ThreadPoolExecutor(2) as pool:
            for t in [t for t in range(n) if not case.reads[t]]:
                pool.submit(do, t)
            over.wait()
        return [values[t] for t in last]

    return run


def dask_threads(case: Case) -> Callable[[], list[int]]:
    from dask.threaded import get

    graph = {f"t{t}": (function_of(len(row)), *(f"t{p}" for p in row)) for t, row in enumerate(case.reads)}
    keys = [f"t{t}" for t in ends(case.reads)]
    return lambda: list(get(graph, keys, num_workers=2))


def ray_tasks(case: Case) -> Callable[[], list[int]]:
    import ray

    if not ray.is_initialized():
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    functions = {f: ray.remote(f) for f in (*FUNCTIONS, nothing)}
    last = ends(case.reads)

    def run() -> list[int]:
        values: list[Any] = []
        for row in case.reads:
            values.append(functions[function_of(len(row))].remote(*(values[p] for p in row)))
        return list(ray.get([values[t] for t in last]))

    return run


def starpu_tasks(case: Case) -> Callable[[], list[int]]:
    import starpu

    last = ends(case.reads)

    def run() -> list[int]:
        starpu.init()
        try:
            values: list[Any] = []
            for row in case.reads:
                values.append(starpu.task_submit(ret_handle=True)(function_of(len(row)), *(values[p] for p in row)))
            return [values[t].get() for t in last]
        finally:
            starpu.shutdown()

    return run


# (name, how, graphs of at most so many tasks, whether calls are counted in this process)
PEERS: list[tuple[str, Callable[[Case], Callable[[], list[int]]], int, bool]] = [
    ("thread pool", thread_pool, 1 << 30, True),
    ("dask", dask_threads, 1 << 30, True),
    ("ray", ray_tasks, 1 << 30, False),
    ("starpu", starpu_tasks, 1 << 30, True),
]


def timed(run: Callable[[], list[int]], n: int, wanted: list[int], counts: bool = True) -> float:
    """Seconds of one run, checked."""
    global CALLS
    CALLS = 0
    start = perf_counter()
    found = run()
    seconds = perf_counter() - start
    assert found == wanted, "wrong values"
    assert not counts or n == CALLS, f"{CALLS} calls of {n}"
    return seconds


def measure(case: Case, repeat: int, peers: list[str]) -> dict[str, Any]:
    n = len(case.reads)
    plain, unrolled = bare(case), bare_unrolled(case)
    wanted = plain()
    graph = build(case)
    names = list(graph.outputs)

    def outputs(result: hs.Result) -> list[int]:
        return [result[name] for name in names]

    row: dict[str, Any] = {"graph": case.name, "tasks": n}
    plan_seconds, cold_seconds = [], []
    for _ in range(max(repeat, 5)):
        start = perf_counter()
        plan = hs.plan(graph)
        between = perf_counter()
        ran = timed(lambda p=plan: outputs(hs.run(p)), n, wanted)  # type: ignore[misc]
        plan_seconds.append(between - start)
        cold_seconds.append(between - start + ran)
    row["plan_us"] = statistics.median(plan_seconds) / n * 1e6
    row["cold_us"] = statistics.median(cold_seconds) / n * 1e6
    goals = [c / (1.5 * p + 5e-6 * n) for c, p in zip(cold_seconds, plan_seconds, strict=True)]
    row["cold_of_goal"] = statistics.median(goals)
    with hs.Session() as session:
        f = session.compile(plan, buffers=1)
        for _ in range(60):
            timed(lambda: outputs(f()), n, wanted)
        ours, loops, tight = [], [], []
        for _ in range(repeat):  # turn by turn, so that all see the same noise
            ours.append(min(timed(lambda: outputs(f()), n, wanted) for _ in range(5)))
            loops.append(min(timed(plain, n, wanted) for _ in range(5)))
            tight.append(min(timed(unrolled, n, wanted) for _ in range(5)))
        row["replayed_us"] = statistics.median(ours) / n * 1e6
        row["bare_loop_us"] = statistics.median(loops) / n * 1e6
        row["of_bare_loop"] = statistics.median(a / b for a, b in zip(ours, loops, strict=True))
        row["of_tight_loop"] = statistics.median(a / b for a, b in zip(ours, tight, strict=True))
    for name, make, most, counts in PEERS:
        if name in peers and n <= most:
            run = make(case)
            times = [timed(run, n, wanted, counts) for _ in range(3)]
            row[name] = statistics.median(times) / n * 1e6
    return row


def installed() -> list[str]:
    """The peers that can be had; the others are named."""
    found = []
    for name, _, _, _ in PEERS:
        module = {"thread pool": "concurrent.futures"}.get(name, name)
        try:
            __import__(module)
            found.append(name)
        except ImportError:
            print(f"{name} is not installed: left out", file=sys.stderr)
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--peers", nargs="*", help="only these peers (none: no peer)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    peers = installed() if options.peers is None else options.peers
    print(f"hetsched {hs.__version__}, Python {sys.version.split()[0]}; microseconds a task, medians of {options.repeat}")
    rows = []
    for case in cases(options.tasks):
        row = measure(case, options.repeat, peers)
        rows.append(row)
        others = "".join(f", {name} {row[name]:.1f}" for name in peers if name in row)
        print(
            f"{row['graph']:10s} {row['tasks']:6d}: replayed {row['replayed_us']:.3f} "
            f"({row['of_bare_loop']:.2f} of a bare loop's {row['bare_loop_us']:.3f}, {row['of_tight_loop']:.2f} of one written out); "
            f"planned {row['plan_us']:.1f}, cold {row['cold_us']:.1f} ({row['cold_of_goal']:.2f} of the goal){others}",
            flush=True,
        )
    if options.json is not None:
        options.json.write_text(json.dumps({"python": sys.version.split()[0], "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
