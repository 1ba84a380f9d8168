"""Sequences given to a run are checked like arrays: how many elements, and what each is, before anything runs."""

import numpy as np
import pytest

import hetsched as hs
from hetsched.errors import GraphError

ONE = np.ones(3, np.float32)
FIRST = {"s": np.zeros(3, np.float32)}


def graph(length: int | hs.UpTo | None, turns: int, rows: int | None = None, stop: bool = False) -> hs.Graph:
    """A loop that adds up its elements."""
    body = hs.Graph.build()
    shape = (3,) if rows is None else (2, 3)
    x, s = body.input("x", shape), body.input("s", (3,))
    body.output(body.op("tensor.add", s, x if rows is None else body.op("tensor.sum", x, axes=[0])), "n")
    more = {}
    if stop:
        body.output(body.op("tensor.greater", body.op("tensor.max", s), body.constant(np.float32(1.5), "limit")), "enough")
        more = {"stop": "enough"}
    loop = hs.Loop(body.freeze(), turns, sequences=("x",), carried=(("s", "n"),), **more)
    b = hs.Graph.build()
    (last,) = b.loop(loop, b.input("xs", hs.Sequence(hs.Spec(shape), length, rows)), b.input("s", (3,)), name="sums")
    b.output(last, "sum")
    return b.freeze()


def run(g: hs.Graph, xs: object, executor: str = "auto") -> float:
    return float(hs.run(g, {"xs": xs, **FIRST}, only="cpu", learn=False, executor=executor)["sum"][0])


@pytest.mark.parametrize("length", [5, hs.UpTo(8), None])
def test_as_many_elements_as_there_are_turns(length: int | hs.UpTo | None) -> None:
    assert run(graph(length, 5), [ONE] * 5) == run(graph(length, 5), np.ones((5, 3), np.float32)) == 5


@pytest.mark.parametrize(
    ("xs", "told"),
    [
        ([ONE] * 3, "wants sequence of 5 x float32[3], got 3 elements"),
        ([ONE] * 7, "got 7 elements"),
        (np.ones((3, 3), np.float32), "got 3 elements"),
        (np.ones((5, 4), np.float32), "got float32[4] as element 0"),
        (np.ones((5, 3)), "got float64[3] as element 0"),
        ([ONE, ONE, ONE[:2], ONE, ONE], "got float32[2] as element 2"),
        ([ONE, ONE, ONE, ONE, ONE.astype("i4")], "got int32[3] as element 4"),
        (5, "got int; give a list or an array"),
    ],
)
def test_what_is_no_such_sequence_is_told_before_the_run(xs: object, told: str) -> None:
    for executor in ("auto", "simulated"):
        with pytest.raises(GraphError) as error:
            run(graph(5, 5), xs, executor)
        assert told in str(error.value)
        assert "input 'xs'" in str(error.value)
    with hs.Session() as session:
        compiled = session.compile(graph(5, 5), only="cpu")
        with pytest.raises(GraphError, match="input 'xs' wants sequence"):
            compiled(xs=xs, **FIRST)


def test_more_than_the_bound_is_too_much() -> None:
    with pytest.raises(GraphError, match=r"wants sequence of <=8 x .*got 9 elements"):
        run(graph(hs.UpTo(8), 8), [ONE] * 9)


@pytest.mark.parametrize("length", [hs.UpTo(8), None])
@pytest.mark.parametrize("executor", ["auto", "simulated"])
def test_a_loop_that_would_run_out_of_elements_says_so(length: hs.UpTo | None, executor: str) -> None:
    with pytest.raises(GraphError, match="loop 'sums' runs 8 turns, and its sequence 'x' has 5 elements: give as many, or a loop of fewer turns"):
        run(graph(length, 8), [ONE] * 5, executor)
    assert run(graph(length, 8, stop=True), [ONE] * 5, executor) == 3, "a loop that stops before needs no more"


def test_rows_of_one_array() -> None:
    assert run(graph(3, 3, rows=6), np.ones((6, 3), np.float32)) == 6
    with pytest.raises(GraphError, match=r"which is float32\[6, 3\] in all, got float32\[4, 3\]"):
        run(graph(3, 3, rows=6), np.ones((4, 3), np.float32))
