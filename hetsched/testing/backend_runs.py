"""The checks of `check_backend` that plan and run whole graphs."""

from __future__ import annotations

import ctypes
import gc
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hetsched.check import problems as problems_of_plan
from hetsched.errors import OutOfMemoryError, TaskError
from hetsched.executors import cpu, live
from hetsched.executors.process import tuned
from hetsched.executors.result import Result
from hetsched.graph.graph import Graph, Loop, Where
from hetsched.graph.op import Op, Work
from hetsched.machine import HOST, Machine
from hetsched.placement import plan_graph
from hetsched.run import check_inputs
from hetsched.testing.backend import Bench, Check, small_box
from hetsched.testing.graphs import random_graph
from hetsched.testing.reference import interpret
from hetsched.testing.runs import run_problems, value_problems
from hetsched.timeline import Timeline

# A loaded machine can spoil a reading of a clock, and runs are long; what the values cannot show is checked to this, clocks themselves in `clocks`.
_ORDER_SECONDS = 2e-3
_WARM_UP, _SERIES = 60, 3
_LEAST_NBYTES, _NBYTES_A_RUN = 8 << 20, 32 << 10  # what memory may grow by: pages that the C library keeps are no leak


class Recorded:
    """A backend that notes how large the arenas are that it is asked for."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.asked: list[tuple[str, int]] = []

    def open(self, device: Any, nbytes: int) -> Any:
        """See the backend."""
        self.asked.append((device.id, nbytes))
        return self.backend.open(device, nbytes)


def execute(bench: Bench, plan: Timeline, inputs: Mapping[str, Any], backend: Any = None) -> Result:
    """Run a plan on the backend under test."""
    given = check_inputs(plan.graph, inputs)
    if not live.drives(plan):
        return cpu.run_plan(plan, given)
    return live.run_plan(plan, given, backends={bench.device.kind: backend or bench.backend})


def values(bench: Bench) -> Iterator[str]:
    """See `check_backend`."""
    used, refused = 0, 0
    for seed in range(bench.seed, bench.seed + bench.graphs):
        # Devices round differently: results that jump where their inputs differ by rounding are left out.
        graph, inputs = random_graph(random.Random(seed), discrete=False)
        only = bench.device.id if seed % 3 == 0 else None
        plan = plan_graph(graph, bench.machine, policy=("round_robin", "auto")[seed % 2], only=only)
        found = problems_of_plan(plan)
        if found:
            yield f"graph {seed}: the plan is wrong: {found[0]}"
            continue
        used += bench.device.id in {lane.owner for p in (plan, *plan.loops.values()) for lane in p.lanes}
        try:
            result = execute(bench, plan, inputs)
        except TaskError as error:
            yield f"graph {seed}: {error}"
            refused += 1
            if refused > 3:
                return
            continue
        with tuned():  # BLAS on several threads is slow on a machine that is busy
            wanted = interpret(graph, inputs)
        yield from (f"graph {seed}: {problem}" for problem in value_problems(result, wanted))
        found = run_problems(plan, result.trace, skew_seconds=_ORDER_SECONDS)
        for _ in range(2):  # once more, where a busy machine may have spoilt a reading of the clock
            if found:
                found = run_problems(plan, execute(bench, plan, inputs).trace, skew_seconds=_ORDER_SECONDS)
        yield from (f"graph {seed}: {problem}" for problem in found)
    if bench.graphs >= 10 and used < bench.graphs // 4:
        yield f"only {used} of {bench.graphs} graphs had work for the device: that proves nothing"


def _here(bench: Bench) -> Where:
    return Where((bench.device.id,))


def chain(bench: Bench, tasks: int, n: int) -> Graph:
    """`tasks` element-wise tasks on the device, one after the other, on n float32."""
    b = Graph.build()
    x = b.input("x", (n,))
    for _ in range(tasks):
        x = b.op("tensor.add", x, x, where=_here(bench))
    return b.output(x, "y").freeze()


def wide(bench: Bench, n: int) -> Graph:
    """Four values of n float32 that are all alive at once on the device."""
    b = Graph.build()
    x = b.input("x", (n,))
    parts = [b.op("tensor.scale", x, factor=float(i), where=_here(bench)) for i in range(4)]
    while len(parts) > 1:
        parts = [b.op("tensor.add", parts[i], parts[-1 - i], where=_here(bench)) for i in range(len(parts) // 2)]
    return b.output(parts[0], "y").freeze()


def turns(bench: Bench, count: int, n: int) -> Graph:
    """A loop on the device over `count` elements of n float32, with a running sum."""
    body = Graph.build()
    x, total = body.input("x", (n,)), body.input("total", (n,))
    y = body.op("tensor.scale", x, factor=2.0, where=_here(bench))
    body.output(y, "y")
    body.output(body.op("tensor.add", total, y, where=_here(bench)), "sum")
    b = Graph.build()
    out = b.loop(
        Loop(body.freeze(), count, sequences=("x",), carried=(("total", "sum"),), collected=("y",)),
        b.input("x", (count, n)),
        b.input("total", (n,)),
    )
    b.output(out[0], "sum")
    b.output(out[1], "y")
    return b.freeze()


def limits(bench: Bench) -> Iterator[str]:
    """See `check_backend`."""
    if bench.device.memory == HOST:
        return
    n = 4096  # values of 16 KiB
    x = np.linspace(-1, 1, n, dtype=np.float32)
    room = 5 * 4 * n
    box = small_box(bench.device, bench.machine, room)
    recorded = Recorded(bench.backend)
    graph = chain(bench, 12, n)
    plan = plan_graph(graph, box)
    result = execute(bench, plan, {"x": x}, recorded)
    yield from value_problems(result, interpret(graph, {"x": x}))
    if any(nbytes > room for _, nbytes in recorded.asked):
        yield f"a memory node of {room} bytes was asked for arenas of {[nbytes for _, nbytes in recorded.asked]}"
    looped = turns(bench, 20, n)
    plan = plan_graph(looped, small_box(bench.device, bench.machine, 12 * 4 * n))
    if not any(body.after for body in plan.loops.values()):
        yield "a loop in little room has no reuse edge: that proves nothing"
    given = {"x": np.arange(20 * n, dtype=np.float32).reshape(20, n) / n, "total": np.zeros(n, np.float32)}
    yield from value_problems(execute(bench, plan, given, recorded), interpret(looped, given))
    before = len(recorded.asked)
    try:
        execute(bench, plan_graph(chain(bench, 4, n), small_box(bench.device, bench.machine, 4 * n // 2)), {"x": x}, recorded)
    except OutOfMemoryError as error:
        if not any(c.isdigit() for c in str(error)):
            yield f"the error for what does not fit names no bytes: {error}"
    else:
        yield f"values of {4 * n} bytes ran in a memory node of {2 * n}"
    if len(recorded.asked) != before:
        yield "a device was opened for a plan that does not fit"


def _broken(bench: Bench) -> Graph:
    def bad(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, attributes: Mapping[str, Any]) -> None:
        raise FloatingPointError("this kernel is broken on purpose")

    op = Op(
        "test.broken", ("x",), ("y",), lambda s, a: [s[0]], lambda i, o, a: Work(1.0, 4.0, 4.0), kernels=dict.fromkeys(bench.device.languages, bad)
    )
    b = Graph.build()
    y = b.op(op, b.input("x", (8,)), name="culprit", where=_here(bench))
    return b.output(b.op("tensor.add", y, y, where=_here(bench)), "z").freeze()


def failures(bench: Bench) -> Iterator[str]:
    """See `check_backend`."""
    box = _box(bench)
    bad, good = plan_graph(_broken(bench), box), plan_graph(chain(bench, 3, 8), box)
    x = np.ones(8, np.float32)
    threads = threading.active_count()
    for _ in range(3):
        try:
            execute(bench, bad, {"x": x})
        except TaskError as error:
            if error.task != "culprit" or "broken on purpose" not in str(error):
                yield f"the error of a task does not tell which failed and why: {error}"
        except Exception as error:
            yield f"a task that fails ends the run with {type(error).__name__}, not TaskError: {error}"
        else:
            yield "a run in which a task failed seems to be done"
        if not (execute(bench, good, {"x": x})["y"] == 8).all():
            yield "after a run in which a task failed the device gives wrong values"
    gc.collect()  # errors hold on to the frames that they came through
    if threading.active_count() > threads:
        yield f"{threading.active_count() - threads} threads are left of runs in which a task failed"


def _box(bench: Bench) -> Machine:
    if bench.device.memory == HOST:
        return bench.machine
    return small_box(bench.device, bench.machine, next(m.nbytes for m in bench.machine.memories if m.name == bench.device.memory))


def _held() -> dict[str, int]:
    import psutil

    process = psutil.Process()
    gc.collect()
    files = process.num_fds() if hasattr(process, "num_fds") else len(process.open_files())
    resident = {"bytes": process.memory_info().rss, "objects": len(gc.get_objects()), "threads": process.num_threads(), "open files": files}
    # What is allocated in pages that the C library holds anyway makes the process no larger; what a driver maps by itself is not in the C library.
    allocated = _allocated_nbytes()
    return resident if allocated is None else resident | {"allocated bytes": allocated}


class _Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")]
    _fields_ += [(name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]


def _allocated_nbytes() -> int | None:
    """Bytes in use according to the C library: None where it is not glibc 2.33 or newer, which alone tells (`mallinfo2`, mallinfo(3))."""
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError, TypeError):
        return None
    mallinfo2.restype = _Mallinfo2
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)


def leaks(bench: Bench) -> Iterator[str]:
    """See `check_backend`. The arena of a run has more than 100 KiB, so that one kept in every run is seen.

    What grows in one series of runs is counted in another, and in a third: a leak goes on, pools, caches and what the system does in between do not.
    """
    n = 1 << 13
    plan = plan_graph(wide(bench, n), _box(bench))
    x = np.linspace(-1, 1, n, dtype=np.float32)
    wanted = interpret(plan.graph, {"x": x})["y"]
    # What grows at first and then no more is no leak: pools, tables that are filled once, memory that the C library keeps.
    for _ in range(min(_WARM_UP, bench.runs)):
        execute(bench, plan, {"x": x})
    nbytes = max(_LEAST_NBYTES, bench.runs * _NBYTES_A_RUN)
    allowed = {"bytes": nbytes, "allocated bytes": nbytes, "objects": max(bench.runs // 2, 50), "threads": 2, "open files": 2}
    after: dict[str, int] = {}
    suspects, before = list(allowed), _held()
    for _ in range(_SERIES):
        for i in range(bench.runs):
            result = execute(bench, plan, {"x": x})
            if i % 100 == 0 and not np.allclose(result["y"], wanted, rtol=1e-5):
                yield f"run {i} of {bench.runs} gives wrong values"
                return
        del result
        before, after = after or before, _held()
        bench.figures |= {f"leaked {what}": float(after[what] - before[what]) for what in suspects if what in before}
        suspects = [what for what in suspects if what in before and after[what] - before[what] > allowed[what]]
        if not suspects:
            return
    for what in suspects:
        yield f"after {bench.runs} runs there are {after[what] - before[what]} more {what} ({before[what]} before, {after[what]} after)"


CHECKS: dict[str, Check] = {"values": values, "limits": limits, "failures": failures, "leaks": leaks}
