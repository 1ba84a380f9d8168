"""The chain of a loop goes to the thread that is fastest at it, where others would wait for it."""

import threading
import time
from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import hetsched as hs
from hetsched.executors import rounds
from hetsched.executors.program import Program
from hetsched.executors.seat import KNOWN, SAMPLES, Seat
from hetsched.executors.steps import Step
from hetsched.executors.walk import Arc
from hetsched.graph.graph import Graph, Loop
from hetsched.graph.op import Op, Work
from hetsched.machine import Device, Machine
from hetsched.placement.costs import Estimate
from hetsched.timeline import Lane

SPEC = hs.Spec((4,), np.float64)
MACHINE = Machine((Device("cpu", "cpu", lanes=2, io_lanes=1, languages=("host", "array"), shares_lanes=True, widths=(1,)),))


class Stated:
    """Costs: three milliseconds for whatever is done by one thread."""

    def launch(self, graph: Graph, task: int, device: Device, width: int) -> Estimate:
        return Estimate(3e-3 if width == 1 else float("inf"), source="stated")

    def copy(self, nbytes: int, link: Any) -> Estimate:
        return Estimate(link.seconds(nbytes))


def op(name: str, kernel: Any, inputs: tuple[str, ...]) -> Op:
    def run(xp: Any, ins: Any, outs: Any, workspace: Any, attributes: Any) -> None:
        kernel(outs[0], *ins)

    return Op(f"test.{name}", inputs, ("y",), lambda s, a: [SPEC], lambda i, o, a: Work(1, 4, 4), kernels={"array": run})


class Stream:
    """A millisecond of work in each turn, then a step that needs the last turn's: `first` seconds for the thread that does it first, else `other`."""

    def __init__(self, turns: int, first: float, other: float) -> None:
        self.seconds, self.trained = {True: first, False: other}, list[int]()

        def prepare(y: Any, i: Any) -> None:
            time.sleep(1e-3)
            y[...] = float(i)

        def train(y: Any, state: Any, x: Any) -> None:
            self.trained.append(threading.get_ident())
            time.sleep(self.seconds[self.trained[-1] == self.trained[0]])
            np.add(0.5 * state, x, out=y)

        body = Graph.build()
        turn, state = body.input("turn", (), np.int64), body.input("state", (4,), np.float64)
        x = body.op(op("prepare", prepare, ("i",)), turn, name="prepare")
        body.output(body.op(op("train", train, ("s", "x")), state, x, name="train"), "new")
        b = Graph.build()
        (last,) = b.loop(Loop(body.freeze(), turns, carried=(("state", "new"),), turn="turn"), b.input("first", (4,), np.float64), name="stream")
        b.output(last, "last")
        self.graph = b.freeze()

    def wanted(self, turns: int) -> Any:
        state = np.zeros(4)
        for i in range(turns):
            state = 0.5 * state + i
        return state


@pytest.mark.skipif(not rounds.is_atomic(), reason="this interpreter has no lock: loops do not go round so")
@pytest.mark.parametrize(("first", "other"), [(6e-3, 2e-3), (2e-3, 6e-3)], ids=["slower", "faster"])
def test_the_chain_ends_up_with_the_faster_thread(first: float, other: float) -> None:
    stream = Stream(160, first, other)
    result = hs.run(hs.plan(stream.graph, MACHINE, costs=Stated()), {"first": np.zeros(4)}, learn=False)
    np.testing.assert_allclose(result["last"], stream.wanted(160))
    by_first = [thread == stream.trained[0] for thread in stream.trained]
    assert len(set(stream.trained)) == 2  # the other one was tried
    late = by_first[80:]
    assert sum(late) < 20 if first > other else sum(late) > 60


def test_an_unknown_thread_is_tried_and_a_slower_one_is_not_tried_again() -> None:
    seat = Seat(window=4)
    assert seat.is_left(0, 10, [3e-3] * 4)
    assert seat.is_left(1, 20, [4e-3] * 4)  # 0 was faster
    assert not seat.is_left(0, 30, [3e-3] * 4)
    assert not seat.is_left(0, 40, [4.05e-3] * 4)  # by too little
    assert seat.is_left(0, 50, [4.2e-3] * 4)


def test_what_was_measured_is_forgotten() -> None:
    seat = Seat(window=4)
    assert seat.is_left(1, 0, [4e-3])
    assert not seat.is_left(0, 4 * KNOWN - 1, [3e-3])
    assert seat.is_left(0, 4 * KNOWN, [3e-3])


def test_short_steps_stay_where_they_are() -> None:
    assert not Seat(window=4).is_left(0, 10, [1e-4, 1e-4, 5e-3])


# Giving the chain away, step by step ------------------------------------------------------------------------------------------------


def with_two_followers(window: int) -> Program:
    """load -> train, which is a chain over the turns, and what train makes is counted in each: the count stands first among its followers."""
    steps = tuple(Step(s, (s,), (Lane("cpu", 0, "compute"),), float(s), 1e-3) for s in range(3))
    plan: Any = SimpleNamespace(spans=(), loop=SimpleNamespace(remainder=None))
    return Program(plan, steps, (Arc(0, 1, 0), Arc(1, 2, 0), Arc(1, 1, 1), Arc(0, 0, window)), window, {}, {})


class Clocked:
    """A loop of `with_two_followers`, under a clock that goes on only while a thread waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, deadline: float | None = None) -> None:
        self.now, self.waits = 100.0, 0
        monkeypatch.setattr(rounds, "perf_counter", lambda: self.now)
        monkeypatch.setattr(rounds, "sleep", self._sleep)
        frame: Any = SimpleNamespace(program=with_two_followers(4), turns=40, bindings=SimpleNamespace(period=lambda step: 1))
        self.crew: Any = SimpleNamespace(deadline=deadline, trace=False, progress=None, zero=0.0, error=None, done=0, total=0, cores=None)
        self.rounds = rounds.Rounds(self.crew, frame)
        self.pattern = self.rounds.pattern
        self.heap = self.rounds.ready["compute"]
        self.heap.clear()

    def _sleep(self, seconds: float) -> None:
        self.now += seconds
        self.waits += 1
        self.while_waiting()

    def while_waiting(self) -> None:
        """What other threads do meanwhile."""

    def gives(self, place: int, took: float = 3e-3) -> bool:
        code = 20 * self.pattern.places + place
        return self.rounds._is_given_away(code, self.heap, [], 0, deque([took] * SAMPLES, maxlen=SAMPLES))


def test_a_thread_goes_on_with_the_chain_and_leaves_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Clocked(monkeypatch)
    train = run.pattern.order.index(1)
    followers = [(train + more) % run.pattern.places for more in run.pattern.near[train]]
    assert run.pattern.chain == train
    assert followers == [train, run.pattern.order.index(2)]


def test_only_the_chain_is_given_away(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Clocked(monkeypatch)
    assert not run.gives(run.pattern.order.index(2))  # what counts may be done by anybody, and the chain goes on elsewhere
    assert run.heap == []
    assert run.gives(run.pattern.chain)
    assert len(run.heap) == 1  # nobody has taken it: whoever comes first


def test_who_gives_the_chain_away_waits_a_step_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Clocked(monkeypatch)
    assert run.gives(run.pattern.chain, took=3e-3)
    assert 3e-3 <= run.now - 100.0 < 3.2e-3


def test_nobody_waits_longer_than_until_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Clocked(monkeypatch)
    monkeypatch.setattr(run, "while_waiting", lambda: run.heap.clear() if run.waits == 3 else None)
    assert run.gives(run.pattern.chain, took=100.0)
    assert run.waits == 3


def test_nor_once_the_run_has_ended_or_is_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Clocked(monkeypatch)
    monkeypatch.setattr(run, "while_waiting", lambda: run.rounds.halt() if run.waits == 3 else None)
    assert run.gives(run.pattern.chain, took=100.0)
    assert run.waits == 3
    run = Clocked(monkeypatch, deadline=100.001)
    assert run.gives(run.pattern.chain, took=100.0)
    assert run.now < 100.002
