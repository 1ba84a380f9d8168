from typing import Any

import numpy as np
import pytest

from hetsched.errors import GraphError
from hetsched.graph.graph import Graph
from hetsched.graph.op import Scene
from hetsched.graph.ops.synthetic import SYNTHETIC
from hetsched.testing.reference import interpret


def made(**options: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    builder = Graph.build()
    with builder.scope("made"):
        for name, value in SYNTHETIC.expand(builder, {}, SYNTHETIC.check_attributes(options), Scene()).items():
            builder.output(value, name)
    found = interpret(builder.freeze())
    return found["x"], found["y"]


def test_every_class_has_equally_many_rows() -> None:
    x, y = made(rows=25, shape=[2, 3], classes=4)
    assert (x.shape, x.dtype, y.dtype) == ((25, 2, 3), np.float32, np.int64)
    assert sorted(np.bincount(y).tolist()) == [6, 6, 6, 7]


def test_rows_of_a_class_lie_around_one_center() -> None:
    x, y = made(rows=4000, shape=[5], classes=4, spread=10.0)
    for label in range(4):
        assert np.allclose(x[y == label].std(axis=0), 1.0, atol=0.1)


def test_equal_seeds_give_equal_rows() -> None:
    first, again, other = made(rows=30, shape=[2], seed=1), made(rows=30, shape=[2], seed=1), made(rows=30, shape=[2], seed=2)
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize(("options", "name"), [({"rows": 3, "shape": [2], "classes": 4}, "classes"), ({"rows": 1 << 40, "shape": [8]}, "rows")])
def test_impossible_sizes(options: dict[str, Any], name: str) -> None:
    with pytest.raises(GraphError, match=f"option '{name}'"):
        made(**options)
