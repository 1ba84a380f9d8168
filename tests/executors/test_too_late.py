"""Runs of a single step, which nobody can look at meanwhile, are too late all the same."""

import numpy as np
import pytest

import hetsched as hs
from hetsched.errors import RunTimeoutError
from hetsched.graph.graph import Graph

X = np.ones(4, np.float32)


def one_step() -> Graph:
    b = Graph.build()
    return b.output(b.op("tensor.neg", b.input("x", (4,))), "y").freeze()


@pytest.mark.parametrize("keep_going", [False, True])
def test_a_run(keep_going: bool) -> None:
    with pytest.raises(RunTimeoutError, match="took longer than 1e-09 s"):
        hs.run(one_step(), {"x": X}, only="cpu", timeout=1e-9, keep_going=keep_going)


def test_calls_of_a_session_interpreted_and_as_code() -> None:
    with hs.Session() as session:
        late, in_time = (session.compile(one_step(), only="cpu", timeout=seconds) for seconds in (1e-9, 1000.0))
        for _ in range(120):
            with pytest.raises(RunTimeoutError, match="took longer than 1e-09 s"):
                late(X)
            np.testing.assert_array_equal(in_time(X)["y"], -X)
