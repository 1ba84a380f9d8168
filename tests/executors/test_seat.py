"""The chain of a loop goes to the thread that is fastest at it, where others would wait for it."""

import threading
import time
from typing import Any

import numpy as np
import pytest

import hetsched as hs
from hetsched.executors import rounds
from hetsched.executors.seat import KNOWN, Seat
from hetsched.graph.graph import Graph, Loop
from hetsched.graph.op import Op, Work
from hetsched.machine import Device, Machine
from hetsched.placement.costs import Estimate

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
