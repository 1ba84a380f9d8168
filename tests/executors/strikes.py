"""Ctrl-C at every point of a run: `python strikes.py KIND [STRIDE]` prints what it spoils, and at the end how many points there were.

A signal is handled in the main thread when a call of C has returned, when a function begins, and while a lock is waited for. A profile function is
called there too: it calls the handler of SIGINT at the n-th of these points, for every n. Then nothing may be left behind, and the next run is as
ever.
"""

import faulthandler
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

import hetsched as hs
from hetsched.executors import process
from hetsched.graph.graph import Loop
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode
from hetsched.testing.plans import plain_plan

CPU = Device("cpu", "cpu", lanes=2, languages=("host", "array"), shares_lanes=True, bytes_per_second=10e9, flops_per_second={"float32": 1e10})
GPU = Device("gpu:0", "emulated", memory="gpu:0", hardware="gpu", bytes_per_second=1e10, flops_per_second={"float32": 1e15}, launch_seconds=0)
HERE = Machine((CPU,), (), (MemoryNode(HOST),))
BOX = Machine((CPU, GPU), (Link(HOST, "gpu:0", 0, 1e10), Link("gpu:0", HOST, 0, 1e10)), (MemoryNode(HOST), MemoryNode("gpu:0")))
X = np.full((72, 72), 1 / 72, np.float32)
WATCHED = ("hetsched/executors/", "hetsched/session.py", "hetsched/run.py")


def products(n: int, where: hs.Where | None = None) -> hs.Graph:
    b = hs.Graph.build()
    x = b.input("x", (72, 72))
    total = b.op("tensor.matmul", x, x, where=where)
    for _ in range(n):
        total = b.op("tensor.add", total, b.op("tensor.matmul", x, x, where=where), where=where)
    b.output(total, "y")
    return b.freeze()


def turns() -> hs.Graph:
    body = hs.Graph.build()
    s, x = body.input("s", (72, 72)), body.input("x", (72, 72))
    body.output(body.op("tensor.add", s, body.op("tensor.matmul", x, x)), "s2")
    b = hs.Graph.build()
    x = b.input("x", (72, 72))
    (last,) = b.loop(Loop(body.freeze(), 4, invariants=("x",), carried=(("s", "s2"),)), x, x)
    b.output(last, "y")
    return b.freeze()


def short() -> hs.Graph:
    b = hs.Graph.build()
    b.output(b.op("nn.relu", b.op("tensor.neg", b.input("x", (72, 72)))), "y")
    return b.freeze()


def kinds() -> dict[str, Callable[[], Any]]:
    """A function to call again and again, and how to be done with it."""

    def run(plan: Any, **options: Any) -> Any:
        return lambda: hs.run(plan, {"x": X}, learn=False, **options)["y"], lambda: None

    def session(what: Any, machine: Machine = HERE) -> Any:
        open_session = hs.Session(machine)
        f = open_session.compile(what, buffers=1)
        return lambda: f(X)["y"], open_session.close

    def straight() -> Any:
        return plain_plan(products(3), HERE, seed=1)

    on_gpu = hs.Where(("gpu:0",))
    return {
        "once": lambda: run(plain_plan(short(), Machine((one_lane(),), (), (MemoryNode(HOST),)))),
        "relay": lambda: run(straight()),
        "walk": lambda: run(straight(), keep_going=True),
        "rounds": lambda: run(hs.plan(turns(), HERE, learn=False)),
        "streams": lambda: run(hs.plan(products(2, on_gpu), BOX, learn=False)),
        "session": lambda: session(straight()),
        "session-streams": lambda: session(hs.plan(products(2, on_gpu), BOX, learn=False), BOX),
        "session-short": lambda: session(short()),
        "session-wide": lambda: session(plain_plan(products(2), Machine((one_lane(),), (), (MemoryNode(HOST),)))),
        "close": lambda: closing(session, straight()),
        "close-streams": lambda: closing(session, hs.plan(products(2, on_gpu), BOX, learn=False), BOX),
    }


def closing(session: Callable[..., Any], plan: Any, machine: Machine = HERE) -> Any:
    """Calls that open a session, use and close it, the strikes in the closing alone; what is left when they end is left for ever."""

    def call() -> Any:
        strike, _ = sys.getprofile(), sys.setprofile(None)
        use, close = session(plan, machine)
        found = use()
        sys.setprofile(strike)
        close()
        return found

    return call, lambda: None


def one_lane() -> Device:
    return Device("cpu", "cpu", lanes=1, languages=("host", "array"), shares_lanes=True, bytes_per_second=10e9, flops_per_second={"float32": 1e10})


class Strike:
    """Calls the handler of SIGINT at point `at`."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.seen = 0
        self.where = ""

    def __call__(self, frame: Any, event: str, what: Any) -> None:
        file = frame.f_code.co_filename
        if not any(part in file for part in WATCHED) or not (
            event in ("call", "c_return") or (event == "c_call" and getattr(what, "__name__", "") == "acquire")
        ):
            return
        self.seen += 1
        if self.seen == self.at:
            sys.setprofile(None)
            self.where = f"{file.rpartition('/')[2]}:{frame.f_lineno} {frame.f_code.co_name} ({event} {getattr(what, '__name__', '')})"
            handler = signal.getsignal(signal.SIGINT)
            assert callable(handler)
            handler(signal.SIGINT, frame)


def blas() -> list[int]:
    return [row["num_threads"] for row in threadpool_info() if row["user_api"] == "blas"]


def left_behind(before: Any) -> list[str]:
    threads, limits, interval = before
    out = []
    if blas() != limits:
        out.append(f"BLAS runs {blas()} threads, not {limits}")
    if sys.getswitchinterval() != interval:
        out.append("the switch interval")
    if process._limiting or process._switching:
        out.append("runs that are counted as going on")
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        out.append("the handler of Ctrl-C")
    out += [f"thread {t.name}" for t in threading.enumerate() if t not in threads]
    return out


class Watchdog:
    """Ends a process that has come no further for half a minute of its own: one that is stopped meanwhile is not held to it."""

    def __init__(self) -> None:
        self.ticks = 0
        self.over = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self.over.wait(0.5):
            self.ticks += 1
            if self.ticks > 60:
                faulthandler.dump_traceback()
                os._exit(1)


def main(kind: str, stride: int = 1) -> None:
    watchdog = Watchdog()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.setswitchinterval(0.004)
    call, close = kinds()[kind]()
    wanted = call()
    is_session = kind.startswith("session")
    warm = 60 if kind in ("session-short", "session-wide") else 1
    before = set(threading.enumerate()), blas(), sys.getswitchinterval()
    at = 1
    while True:
        for _ in range(warm):
            call()
        if is_session:
            before = set(threading.enumerate()), *before[1:]
        strike = Strike(at)
        watchdog.ticks = 0
        found = "nothing"
        sys.setprofile(strike)
        try:
            call()
        except KeyboardInterrupt:
            found = "KeyboardInterrupt"
        except BaseException as error:
            found = repr(error)
        finally:
            sys.setprofile(None)
        if not strike.where:
            break
        if found != "KeyboardInterrupt":
            print(f"{kind} {at} at {strike.where}: raised {found}")
        gc.collect()
        for what in left_behind(before):
            print(f"{kind} {at} at {strike.where}: left {what}")
        if not np.array_equal(call(), wanted):
            print(f"{kind} {at} at {strike.where}: the next run gives other values")
        at += stride
    close()
    gc.collect()
    for thread in threading.enumerate():
        if thread.name.startswith("hetsched"):
            print(f"{kind}: left thread {thread.name} when closed")
    watchdog.over.set()
    print(f"{at // stride} points")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1)
