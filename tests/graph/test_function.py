"""Ops made from plain functions of values: what they return is what their specs say, or the run fails with the task's name."""

import sys
from typing import Any

import numpy as np
import pytest

import hetsched as hs

X = {"x": np.arange(3, dtype=np.float32)}


def graph_of(op: hs.Op) -> hs.Graph:
    g = hs.Graph.build()
    made = g.op(op, g.input("x", (3,)), name="made")
    for i, value in enumerate(made if isinstance(made, tuple) else (made,)):
        g.output(value, f"y{i}")
    return g.freeze()


@hs.op(hs.Spec((3,)))
def double(x):
    return 2 * x


@hs.op([hs.Spec((3,)), hs.Spec(())], outputs=["y", "total"])
def both(x):
    return x + 1, x.sum()


@hs.op(hs.Spec((3,)))
def scalar(x):
    return np.float32(7)


@hs.op(hs.Spec((3,)))
def nothing(x):
    pass


@hs.op([hs.Spec((3,)), hs.Spec(())])
def one_of_two(x):
    return x


def test_functions_give_arrays_and_several_of_them() -> None:
    assert hs.run(graph_of(double), X)["y0"].tolist() == [0, 2, 4]
    result = hs.run(graph_of(both), X)
    assert result["y0"].tolist() == [1, 2, 3]
    assert result["y1"] == 3


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (scalar, r"'made' failed: ValueError: the function returned float32 of shape \[\]; its op says \[3\]"),
        (nothing, r"'made' failed: ValueError: the function returned NoneType of shape \[\]"),
        (one_of_two, "'made' failed: TypeError: op one_of_two has 2 outputs"),
    ],
)
def test_what_does_not_fit_the_spec_fails_cold_and_hot(op: hs.Op, message: str) -> None:
    graph = graph_of(op)
    with hs.Session() as session:
        call = session.compile(graph)
        for _ in range(60):  # code takes over after 50 calls
            with pytest.raises(hs.TaskError, match=message):
                call(X)


def test_hot_code_checks_shapes_too() -> None:
    shapes = iter([(3,)] * 70 + [(1,)])

    @hs.op(hs.Spec((3,)))
    def changing(x):
        return np.zeros(next(shapes), np.float32)

    with hs.Session() as session:
        call = session.compile(graph_of(changing))
        for _ in range(70):
            call(X)
        with pytest.raises(hs.TaskError, match=r"'made' failed: .*shape \[1\]"):
            call(X)


def test_functions_cannot_write_their_inputs_cold_or_hot() -> None:
    calls = iter(range(100))

    @hs.op(hs.Spec((3,)))
    def writes(x):
        if next(calls) % 50 == 0:  # once before code takes over, once after
            x += 1
        return x

    g = hs.Graph.build()
    first = g.op(double, g.input("x", (3,)), name="first")
    g.output(g.op(writes, first, name="second"), "y")
    g.output(g.op("tensor.sum", first, name="third"), "sum")
    with hs.Session() as session:
        call = session.compile(g.freeze())
        for turn in range(60):
            if turn % 50 == 0:
                with pytest.raises(hs.TaskError, match="'second' failed: ValueError: output array is read-only"):
                    call(X)
            else:
                assert call(X)["y"].tolist() == [0, 2, 4]


@pytest.mark.skipif(sys.version_info < (3, 14), reason="annotations are worked out late from Python 3.14 on")
def test_annotations_for_type_checkers_only_are_left_alone() -> None:
    made: dict[str, Any] = {"hs": hs}
    exec(
        "@hs.op(hs.Spec((4,), 'float32'))\ndef own(x: Nowhere, *, n: int = 2) -> Nowhere:\n    return x * n\n"
        "@hs.array_op()\ndef other(xp, x: Nowhere, *, n: int = 2):\n    return x * n\n",
        made,
    )
    assert made["own"].inputs == made["other"].inputs == ("x",)
    assert made["other"].attributes["n"].kind is int
