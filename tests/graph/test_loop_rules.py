"""Loops whose bodies do not fit each other, or do not make what is said of them, are refused with what is wrong."""

import re

import pytest

from hetsched.errors import GraphError
from hetsched.graph.graph import Graph
from hetsched.graph.sequence import Body, loop_over_batches


def over_batches(rows: int, batch: int, epochs: int = 1, collected: int | None = None, every: int = 1, each: bool = False) -> Graph:
    """The negative of every batch: its sum is collected, its rows too (with `collected`, or as they are with `each`); made every `every` turns."""
    b = Graph.build()
    x = b.input("x", (rows, 3))

    def write(body: Body) -> None:
        less = body.builder.op("tensor.neg", body.take(x), name="less")
        body.run_every(less, every)
        body.collect("sums", body.builder.op("tensor.sum", less, name="sum"))
        if collected is not None or each:
            body.collect("rows", less, rows=collected)

    for name, value in loop_over_batches(b, write, rows=rows, batch=batch, epochs=epochs, name="batches").items():
        b.output(value, name)
    return b.freeze()


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (
            {"rows": 7, "batch": 3, "each": True},
            "collected 'rows' is float32[3, 3] in the body and float32[1, 3] in the remainder; say how many rows",
        ),
        ({"rows": 10, "batch": 4, "epochs": 2, "collected": 10}, "collected 'rows': 6 turns make 20 rows, not 10"),
        ({"rows": 8, "batch": 4, "collected": 12}, "collected 'rows': 2 turns make 8 rows, not 12"),
        ({"rows": 8, "batch": 3, "collected": 9}, "collected 'rows': 3 turns make 8 rows, not 9"),
        ({"rows": 10, "batch": 4, "epochs": 2, "every": 2}, "task 'less' gives float32[4, 3] in the body and float32[2, 3] in the remainder"),
    ],
)
def test_what_turns_make_fits(given: dict[str, int], problem: str) -> None:
    with pytest.raises(GraphError, match=re.escape(problem)):
        over_batches(**given)  # type: ignore[arg-type]


def test_what_fits_is_taken() -> None:
    assert over_batches(8, 3, collected=8)
    assert over_batches(10, 4, epochs=2, collected=20)
    assert over_batches(8, 4, epochs=3, collected=24)
    assert over_batches(8, 4, epochs=3, every=2, each=True)
    assert over_batches(10, 4, every=2)  # turns 0 and 1 are of the body, turn 2 runs anew
