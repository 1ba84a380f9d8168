"""What stays after many turns, and what the trace costs.

    python benchmarks/steady.py [--turns 1000000] [--repeat 7] [--json FILE]

- turns: a loop of a tiny body (two ops on 8 numbers) runs so many turns; resident memory after a first run of a tenth of them and after the last
  turn, and the threads left; the goal is 5 MB and none.
- calls: two chains of 8 products of about 50 us on two threads: `hetsched.run` of the plan, a call of a session, and the bare products on one thread;
  threads started a call.
- trace: a chain and a fan of matrix products of just over 50 us and of 200 us each (their sizes are chosen so that they take as long here), run with
  the trace kept and without, turn by turn; the figure is the median of the ratios. Reading a trace makes its spans: that is a figure of its own. With
  the trace off, a call of the chain in a session beside the bare calls of NumPy that it makes.
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
from threadpoolctl import threadpool_limits

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


def bare(n: int, tasks: int) -> float:
    """Seconds of the calls of NumPy alone, BLAS on one thread."""
    x, w = np.eye(n, dtype=np.float32), np.eye(n, dtype=np.float32)
    outs = [np.empty_like(x) for _ in range(min(tasks, 8))]
    with threadpool_limits(1):
        start = perf_counter()
        for i in range(tasks):
            np.dot(x, w, outs[i % len(outs)])
        return perf_counter() - start


def lasting(seconds: float) -> int:
    """The least n, in steps of 8, whose product takes so long."""
    n = 64
    while n < 1024 and statistics.median(bare(n, 20) / 20 for _ in range(5)) < seconds:
        n += 8
    return n


def two_chains(n: int) -> hs.Graph:
    b = hs.Graph.build()
    for name in "xy":
        value = b.input(name, (n, n))
        for _ in range(8):
            value = b.op("tensor.matmul", value, value)
        b.output(value, f"{name}8")
    return b.freeze()


def calls(repeat: int) -> dict[str, Any]:
    n = lasting(50e-6)
    plan = hs.plan(two_chains(n), only="cpu")
    given = {name: np.eye(n, dtype=np.float32) for name in "xy"}
    started, plain = [0], threading.Thread.start

    def start(thread: threading.Thread) -> None:
        started[0] += 1
        plain(thread)

    found: dict[str, list[float]] = {"run": [], "session": [], "bare": []}
    threads: dict[str, float] = {}
    threading.Thread.start = start  # type: ignore[method-assign]
    try:
        with hs.Session() as session:
            f = session.compile(plan, buffers=1)
            systems = {"run": lambda: hs.run(plan, given, trace=False), "session": lambda: f(given), "bare": lambda: bare(n, 16)}
            for call in systems.values():
                for _ in range(70):
                    call()
            for name, call in systems.items():
                started[0] = 0
                call()
                threads[name] = started[0]
            for _ in range(10 * repeat):
                for name, call in systems.items():
                    begin = perf_counter()
                    call()
                    found[name].append(perf_counter() - begin)
    finally:
        threading.Thread.start = plain  # type: ignore[method-assign]
    lanes = len({lane for span in plan.launches for lane in span.lanes})
    return {"n": n, "lanes": lanes, "threads_started": threads} | {f"{name}_us": statistics.median(s) * 1e6 for name, s in found.items()}


def trace_cost(name: str, seconds: float, tasks: int, repeat: int) -> dict[str, Any]:
    n = lasting(seconds)
    graph = products(name, n, tasks)
    plan = hs.plan(graph, only="cpu")
    inputs = {"x": np.eye(n, dtype=np.float32), "w": np.eye(n, dtype=np.float32)}
    hs.run(plan, inputs)
    found: dict[str, list[float]] = {"bare": [], "off": [], "on": [], "read": []}
    for i in range(2 * repeat):
        for kind in ("off", "on") if i % 2 else ("on", "off"):
            start = perf_counter()
            result = hs.run(plan, inputs, trace=kind == "on")
            found[kind].append(perf_counter() - start)
            if kind == "on":
                start = perf_counter()
                assert len(result.trace.spans) == tasks
                found["read"].append(perf_counter() - start)
        found["bare"].append(bare(n, tasks))
    with hs.Session() as session:
        f = session.compile(plan, buffers=1)
        for _ in range(60):
            f(inputs)
        called = []
        for _ in range(2 * repeat):
            start = perf_counter()
            f(inputs)
            called.append((perf_counter() - start) / bare(n, tasks))
    lanes = len({lane for span in plan.launches for lane in span.lanes})
    plain = statistics.median(found["bare"])
    return {
        "graph": name, "tasks": tasks, "n": n, "lanes": lanes, "us_a_task": plain / tasks * 1e6,
        "with_trace": statistics.median(a / b for a, b in zip(found["on"], found["off"], strict=True)),
        "session_off_of_bare": statistics.median(called) if lanes == 1 else None,
        "read_us_a_span": statistics.median(found["read"]) / tasks * 1e6,
    }  # fmt: skip


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
    made = calls(options.repeat)
    started = made["threads_started"]
    print(
        f"two chains of 8 products (n = {made['n']}) on {made['lanes']} threads: run {made['run_us']:.0f} us, a session's call "
        f"{made['session_us']:.0f}, bare on one thread {made['bare_us']:.0f}; threads started: {started['run']} and {started['session']} a call",
        flush=True,
    )
    traces = [trace_cost(name, s, tasks, options.repeat) for s, tasks in ((52e-6, 400), (200e-6, 200)) for name in ("chain", "fan")]
    for row in traces:
        called = row["session_off_of_bare"]
        print(
            f"{row['graph']:6s} {row['tasks']} products of {row['us_a_task']:6.1f} us (n = {row['n']}) on {row['lanes']} lanes: with the trace "
            f"{row['with_trace']:.3f} of the time without; reading it {row['read_us_a_span']:.2f} us a span"
            + (f"; in a session, without it, {called:.3f} of the bare calls" if called is not None else ""),
            flush=True,
        )
    if options.json is not None:
        options.json.write_text(json.dumps({"turns": turns, "calls": made, "traces": traces}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
