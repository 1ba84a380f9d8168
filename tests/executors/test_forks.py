"""A process that is forked off goes on with what its parent has compiled and run, without the threads of its parent and what they were at, and leaves

alone what is a driver's.
"""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from strikes import BOX, HERE, X, blas, products

import hetsched as hs
from hetsched.testing.plans import plain_plan

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def holds_in_child(check: Callable[[], bool]) -> None:
    """`check()` in a process that is forked off; one that hangs is ended."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there are threads
        child = os.fork()
    if not child:
        signal.alarm(300)
        try:
            os._exit(0 if check() else 1)
        except BaseException:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("how", ["threads", "streams", "awaited"])
def test_a_session_of_the_parent_goes_on_in_the_child_and_in_the_parent(how: str) -> None:
    machine = BOX if how == "streams" else HERE
    plan = hs.plan(products(2, hs.Where(("gpu:0",))), BOX, learn=False) if how == "streams" else plain_plan(products(3), HERE, seed=1)
    with hs.Session(machine) as session:
        f = session.compile(plan, buffers=1)

        def call() -> Any:
            return asyncio.run(f.run_async(X))["y"] if how == "awaited" else f(X)["y"]

        wanted = call()

        def check() -> bool:
            same = np.array_equal(call(), wanted)
            session.close()
            return same

        holds_in_child(check)
        assert np.array_equal(call(), wanted)


def test_what_another_thread_has_in_use_is_neither_missing_nor_left_changed_in_the_child() -> None:
    """The fork comes while a call of another thread is in a kernel: it has the only buffer set, BLAS is limited, threads switch quickly."""
    inside, go_on, is_slow = threading.Event(), threading.Event(), [True]

    @hs.op(out=lambda x: x)
    def slow(x: Any) -> Any:
        if is_slow[0]:
            inside.set()
            go_on.wait()
        return x

    b = hs.Graph.build()
    x = b.input("x", (72, 72))
    b.output(b.op(slow, x), "y")
    limits = blas()
    with hs.Session(HERE) as session:
        f = session.compile(plain_plan(b.freeze(), HERE), buffers=1)
        thread = threading.Thread(target=lambda: f(X))
        thread.start()
        inside.wait()

        def check() -> bool:
            is_slow[0] = False
            return blas() == limits and np.array_equal(f(X)["y"], X) and blas() == limits

        holds_in_child(check)
        go_on.set()
        thread.join()
        assert np.array_equal(f(X)["y"], X)
    assert blas() == limits


CODE = """
    import gc, os, sys, threading
    import hetsched.executors.forks as forks

    class Memory:
        __module__ = "driver"

        def __init__(self, name):
            self.name = name

        def __del__(self, os=os, parent=os.getpid()):
            os.write(1, f"{self.name} given back by {'the parent' if os.getpid() == parent else 'the child'}\\n".encode())

    forks.leaves_alone("driver")
    kept, dropped, local = Memory("kept"), Memory("dropped"), threading.local()
    local.handle = Memory("of this thread")
    there, go = threading.Event(), threading.Event()

    def other():
        local.handle = Memory("of another thread")
        there.set()
        go.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    there.wait(60)
    child = os.fork()
    if not child:
        if not (grandchild := os.fork()):  # what this one held it holds on to
            sys.exit(0)
        assert os.waitpid(grandchild, 0)[1] == 0
        del dropped
        gc.collect()
        sys.exit(0)  # as a program ends, modules and all
    assert os.waitpid(child, 0)[1] == 0
    print("the child is over", flush=True)
    go.set()
    thread.join()
    del dropped, kept
    assert not forks._held
"""


def test_a_forked_process_gives_nothing_back_to_a_driver_that_is_its_parents() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(CODE)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "the child is over",
        *(f"{name} given back by the parent" for name in ("of another thread", "dropped", "kept", "of this thread")),
    ]
