"""Ctrl-C at every point of a run: it ends, and nothing is left behind. `strikes.py` does it, in a process of its own, so that a hang is a failure."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from strikes import HERE, kinds, products

import hetsched as hs
from hetsched.executors.interrupts import guarded, heard
from hetsched.graph.graph import Loop
from hetsched.machine import HOST, Device, Machine, MemoryNode
from hetsched.testing.plans import plain_plan

TESTS = Path(__file__).resolve().parent


@pytest.fixture(autouse=True)
def own_handler() -> Iterator[None]:
    """Python's own handler, wherever the tests were started."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("kind", list(kinds()))
def test_ctrl_c_at_any_point_leaves_nothing_behind(kind: str) -> None:
    stride = {"walk": "11", "rounds": "11", "streams": "7", "session-streams": "7", "relay": "3", "session": "3", "close": "1"}.get(kind, "2")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parents[1]), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, str(TESTS / "strikes.py"), kind, stride], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
    points, word = done.stdout.split(" ", 1)
    assert word == "points\n", done.stdout[:3000]
    assert int(points) >= 10


@pytest.mark.parametrize("kind", ["run", "keep_going", "session", "hot"])
def test_ctrl_c_in_a_kernel_raises_there_and_then(kind: str) -> None:
    """A kernel in Python that takes for ever can be ended."""
    reached, strikes, struck = [], [False], threading.Event()

    @hs.op(out=lambda x: x)
    def endless(x: Any) -> Any:
        if strikes[0] and threading.current_thread() is threading.main_thread():
            struck.set()
            signal.raise_signal(signal.SIGINT)
            reached.append("the line behind")
        elif strikes[0]:
            struck.wait(30)  # or the other threads may have done all before the main thread begins
        return x

    b = hs.Graph.build()
    x = b.input("x", (3,))
    for i in range(4):
        b.output(b.op(endless, x), f"y{i}")
    plan, ones = plain_plan(b.freeze(), HERE, seed=1), np.ones(3, np.float32)
    with hs.Session(HERE) as session:
        f = session.compile(plan, buffers=1)
        call: Callable[[], Any] = lambda: f(ones)  # noqa: E731
        if kind in ("run", "keep_going"):
            call = lambda: hs.run(plan, {"x": ones}, learn=False, keep_going=kind == "keep_going")  # noqa: E731
        for _ in range(60 if kind == "hot" else 1):
            call()
        strikes[0] = True
        with pytest.raises(KeyboardInterrupt):
            call()
        strikes[0] = False
        assert reached == []
        assert (call()["y0"] == 1).all()


def test_ctrl_c_ends_the_wait_of_who_closes_and_closing_again_does_the_rest() -> None:
    """A kernel that takes for ever, called by another thread, holds nobody who closes its session."""
    main, entered, may_end = threading.main_thread().ident, threading.Event(), threading.Event()

    @hs.op(out=lambda x: x)
    def endless(x: Any) -> Any:
        entered.set()
        may_end.wait(60)
        return x

    b = hs.Graph.build()
    b.output(b.op(endless, b.input("x", (3,))), "y")
    session = hs.Session(HERE)
    f, other = session.compile(b.freeze(), buffers=1), session.compile(plain_plan(products(3), HERE, seed=1), buffers=1)
    other(np.ones((72, 72), np.float32))
    caller = threading.Thread(target=f, args=(np.ones(3, np.float32),))
    caller.start()
    entered.wait(60)

    def strike() -> None:
        while not f._replay._gates:
            may_end.wait(0.001)
        signal.pthread_kill(main, signal.SIGINT)

    striker = threading.Thread(target=strike)
    striker.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            session.close()
        assert caller.is_alive()
        assert (f.is_closed, other.is_closed) == (False, True), "what nobody used has been given back"
    finally:
        may_end.set()
        striker.join()
        caller.join()
    session.close()
    assert f.is_closed


def test_inside_it_waits_for_the_end_and_listeners_are_told() -> None:
    log = []

    def work() -> None:
        with guarded():
            with guarded(), heard(lambda: log.append("told")):
                signal.raise_signal(signal.SIGINT)
                log.append("goes on")
            log.append("still")
        log.append("never")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert log == ["told", "goes on", "still"]


def test_who_comes_to_listen_when_it_has_struck_is_told_at_once() -> None:
    log = []

    def work() -> None:
        with guarded():
            signal.raise_signal(signal.SIGINT)
            with heard(lambda: log.append("told")):
                log.append("inside")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert log == ["told", "inside"]


def test_pressed_once_more_it_raises_at_once() -> None:
    log = []

    def work() -> None:
        with guarded():
            signal.raise_signal(signal.SIGINT)
            log.append("first")
            signal.raise_signal(signal.SIGINT)
            log.append("second")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert log == ["first"]


def test_what_fails_meanwhile_gives_way_to_it() -> None:
    def work() -> None:
        with guarded():
            signal.raise_signal(signal.SIGINT)
            raise ValueError

    with pytest.raises(KeyboardInterrupt) as found:
        work()
    assert isinstance(found.value.__context__, ValueError)


def test_the_handlers_of_others_are_theirs_and_other_threads_have_none() -> None:
    log = []

    def theirs(number: int, frame: Any) -> None:
        log.append(number)

    def elsewhere() -> None:
        with guarded(), heard(lambda: None):
            log.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    signal.signal(signal.SIGINT, theirs)
    try:
        with guarded():
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is theirs
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert log == [signal.default_int_handler, signal.SIGINT]


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("count", [5, 400])
def test_ctrl_c_in_a_kernel_of_a_loop_raises_there_and_then(count: int, several: bool) -> None:
    """In a loop that threads share: alone in its step and beside another, called and as code."""
    cpu = Device("cpu", "cpu", lanes=2, languages=("host", "array"), shares_lanes=True, bytes_per_second=1e5, flops_per_second={"float32": 1e5})
    reached, strikes, struck = [], [False], threading.Event()

    @hs.op(out=lambda x: x)
    def endless(x: Any) -> Any:
        if strikes[0] and threading.current_thread() is threading.main_thread():
            struck.set()
            signal.raise_signal(signal.SIGINT)
            reached.append("the line behind")
        elif strikes[0]:
            struck.wait(30)
        return x + 1

    body = hs.Graph.build()
    for name in ("s", "t"):
        made = body.op(endless, body.input(name, (3,)))
        body.output(body.op("nn.relu", made) if several else made, f"{name}2")
    b = hs.Graph.build()
    x = b.input("x", (3,))
    for i, last in enumerate(b.loop(Loop(body.freeze(), count, carried=(("s", "s2"), ("t", "t2"))), x, x)):
        b.output(last, f"y{i}")
    plan, given = hs.plan(b.freeze(), Machine((cpu,), (), (MemoryNode(HOST),)), learn=False), {"x": np.zeros(3, np.float32)}
    assert len(plan.loops[0].lanes) == 2
    assert (hs.run(plan, given, learn=False)["y1"] == count).all()
    strikes[0] = True
    with pytest.raises(KeyboardInterrupt):
        hs.run(plan, given, learn=False)
    assert reached == []
