"""A process that is forked off goes on with what its parent has compiled and run, without the threads of its parent and what they were at."""

import asyncio
import os
import signal
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
    x = b.input("x", (64, 64))
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
