"""What stays after many turns, and what the trace costs.

    python benchmarks/steady.py [--turns 1000000] [--repeat 7] [--json FILE]

- turns: a loop of a tiny body (two ops on 8 numbers) runs so many turns; resident memory after a first run of a tenth of them and after the last
  turn, and the threads left; the goal is 5 MB and none.
- trace: a chain and a fan of matrix products of about 50 us and 200 us each, run with the trace kept and read, and without; turn by turn, the
  figure is the median of the ratios.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import threading
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import psutil

import hetsched as hs


def tiny_loop(turns: int) -> hs.Graph:
    body = hs.Graph.build()
    s, a = body.input("s", (8,)), body.input("a", (8,))
    body.output(body.op("tensor.add", body.op("tensor.neg", s), a), "s2")
    b = hs.Graph.build()
    loop = hs.Loop(body.freeze(), turns, invariants=("a",), carried=(("s", "s2"),))
    (last,) = b.loop(loop, b.input("a", (8,)), b.input("s", (8,)))
    return b.output(last, "last").freeze()


def many_turns(turns: int) -> dict[str, Any]:
    inputs = {"a": np.ones(8, np.float32), "s": np.zeros(8, np.float32)}
    process, threads = psutil.Process(), threading.active_count()
    hs.run(tiny_loop(max(turns // 10, 1)), inputs)
    plan = hs.plan(tiny_loop(turns))  # planning may look for devices: what that loads is not what turns leave behind
    gc.collect()
    before = process.memory_info().rss
    start = perf_counter()
    result = hs.run(plan, inputs)
    seconds = perf_counter() - start
    assert (result["last"] == turns % 2).all()
    gc.collect()
    grown = process.memory_info().rss - before
    return {"turns": turns, "us_a_turn": seconds / turns * 1e6, "grown_mb": grown / 1e6, "threads_left": threading.active_count() - threads}


def products(name: str, n: int, tasks: int) -> hs.Graph:
    b = hs.Graph.build()
    x, w = b.input("x", (n, n)), b.input("w", (n, n))
    values = [x]
    for _ in range(tasks):
        values.append(b.op("tensor.matmul", values[-1] if name == "chain" else x, w))
    ends = values[-1:] if name == "chain" else values[1::8]
    for i, value in enumerate(ends):
        b.output(value, f"y{i}")
    return b.freeze()


def trace_cost(name: str, n: int, tasks: int, repeat: int) -> dict[str, Any]:
    graph = products(name, n, tasks)
    plan = hs.plan(graph, only="cpu")
    inputs = {"x": np.eye(n, dtype=np.float32), "w": np.eye(n, dtype=np.float32)}
    hs.run(plan, inputs)
    ratios, each = [], []
    for _ in range(repeat):
        start = perf_counter()
        hs.run(plan, inputs, trace=False)
        without = perf_counter() - start
        start = perf_counter()
        spans = len(hs.run(plan, inputs).trace.spans)
        ratios.append((perf_counter() - start) / without)
        each.append(without / tasks)
    assert spans == tasks
    return {"graph": name, "tasks": tasks, "us_a_task": statistics.median(each) * 1e6, "with_trace": statistics.median(ratios)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    turns = many_turns(options.turns)
    print(
        f"{turns['turns']} turns: {turns['us_a_turn']:.2f} us a turn, memory {turns['grown_mb']:+.2f} MB, threads left {turns['threads_left']}",
        flush=True,
    )
    traces = [trace_cost(name, n, tasks, options.repeat) for n, tasks in ((192, 400), (320, 200)) for name in ("chain", "fan")]
    for row in traces:
        print(
            f"{row['graph']:6s} {row['tasks']} tasks of {row['us_a_task']:6.1f} us: with the trace {row['with_trace']:.3f} of the time without",
            flush=True,
        )
    if options.json is not None:
        options.json.write_text(json.dumps({"turns": turns, "traces": traces}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
