"""Users' own kernels on arrays: what they return is not lost, what they must not write they cannot, and `array_op` makes an op of a function."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

import hetsched as hs
from hetsched.graph.guard import is_ours
from hetsched.graph.ops import registry
from hetsched.testing import check_op, interpret
from hetsched.testing.ops import Case

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def own(kernel: Any, outputs: tuple[str, ...] = ("y",), language: str = "array") -> hs.Op:
    def like(specs: Sequence[Any], attributes: Mapping[str, Any]) -> list[Any]:
        return [specs[0]] * len(outputs)

    return hs.Op("mine.own", ("x",), outputs, like, lambda i, o, a: hs.Work(1, 4, 4), {language: kernel})


def run(op: hs.Op, x: Any = X, **options: Any) -> Any:
    g = hs.Graph.build()
    made = g.op(op, g.op("tensor.neg", g.input("x", x.shape, x.dtype)), **options)
    for i, y in enumerate(made if isinstance(made, tuple) else (made,)):
        g.output(g.op("tensor.neg", y), f"y{i}")
    graph = g.freeze()
    result, plain = hs.run(graph, {"x": x}), interpret(graph, {"x": x})
    for name in plain:
        np.testing.assert_array_equal(result[name], plain[name])
    return result["y0"] if len(result) == 1 else result


def test_hetscheds_own_kernels_are_left_alone() -> None:
    kernels = [k for op in registry().values() if isinstance(op, hs.Op) for k in op.kernels.values()]
    assert len(kernels) > 80
    assert all(is_ours(k) for k in kernels)
    assert not is_ours(lambda: None)
    assert not is_ours(partial(run))


def test_an_array_that_is_returned_is_not_lost() -> None:
    np.testing.assert_array_equal(run(own(lambda xp, i, o, w, a: i[0] * 2)), X * 2)
    np.testing.assert_array_equal(run(own(lambda xp, i, o, w, a: [i[0] * 2])), X * 2)
    both = run(own(lambda xp, i, o, w, a: (i[0] + 1, i[0] + 2), ("y", "z")))
    np.testing.assert_array_equal(both["y1"], X - 2)


def test_outputs_that_are_written_may_be_returned_as_well() -> None:
    def kernel(xp: Any, i: Any, o: Any, w: Any, a: Any) -> Any:
        return xp.multiply(i[0], 2, out=o[0])

    np.testing.assert_array_equal(run(own(kernel)), X * 2)


@pytest.mark.parametrize(
    ("kernel", "says"),
    [
        (lambda xp, i, o, w, a: i[0][:1], r"mine.own returned float32\[1, 3\] for output 'y', which is float32\[2, 3\]"),
        (lambda xp, i, o, w, a: i[0].astype(np.float64), r"returned float64\[2, 3\] for output 'y', which is float32\[2, 3\]"),
        (lambda xp, i, o, w, a: (i[0], i[0]), r"returned 2 arrays for 1 outputs \(y\)"),
        (lambda xp, i, o, w, a: {"y": i[0]}, "returned dict; it writes into `outputs`, or returns one array an output"),
    ],
)
def test_what_does_not_fit_is_an_error_that_names_the_op(kernel: Any, says: str) -> None:
    with pytest.raises(hs.TaskError, match=says):
        hs.run(_graph(own(kernel)), {"x": X})


def _graph(op: hs.Op) -> hs.Graph:
    g = hs.Graph.build()
    g.output(g.op(op, g.op("tensor.neg", g.input("x", X.shape))), "y")
    return g.freeze()


def test_an_input_cannot_be_overwritten_unnoticed() -> None:
    def kernel(xp: Any, i: Any, o: Any, w: Any, a: Any) -> None:
        i[0][0, 0] = 99
        o[0][...] = i[0]

    with pytest.raises(hs.TaskError, match="read-only"):
        hs.run(_graph(own(kernel)), {"x": X})


def test_a_kernel_may_still_work_in_place_where_its_op_says_so() -> None:
    def kernel(xp: Any, i: Any, o: Any, w: Any, a: Any) -> None:
        xp.add(i[0], 1, out=o[0])

    op = hs.Op("mine.plus", ("x",), ("y",), lambda s, a: [s[0]], lambda i, o, a: hs.Work(1, 4, 4), {"array": kernel}, inplace=((0, 0),))
    np.testing.assert_array_equal(run(op), X - 1)


def test_shapes_of_bounded_outputs_are_still_returned() -> None:
    def keep(xp: Any, i: Any, o: Any, w: Any, a: Any) -> list[tuple[int, ...]]:
        found = i[0][i[0] > 0]
        o[0][: found.size] = found
        return [(found.size,)]

    op = hs.Op(
        "mine.keep", ("x",), ("y",), lambda s, a: [hs.Spec((hs.UpTo(s[0].size),), s[0].dtype)], lambda i, o, a: hs.Work(1, 4, 4), {"array": keep}
    )
    g = hs.Graph.build()
    g.output(g.op(op, g.input("x", (4,))), "y")
    assert hs.run(g.freeze(), {"x": np.asarray([1, -1, 2, -2], np.float32)})["y"].tolist() == [1, 2]


def test_host_kernels_put_objects_where_they_did() -> None:
    def listed(xp: Any, i: Any, o: Any, w: Any, a: Any) -> None:
        o[0] = i[0].ravel().tolist()

    op = hs.Op("mine.list", ("x",), ("y",), lambda s, a: [hs.Opaque("list", 100)], lambda i, o, a: hs.Work(0, 4, 4), {"host": listed})
    g = hs.Graph.build()
    g.output(g.op(op, g.input("x", (2, 3))), "y")
    assert hs.run(g.freeze(), {"x": X})["y"] == X.ravel().tolist()


# The decorator ------------------------------------------------------------------------------------------------------------------------


@hs.array_op(flops="10 * x.size")
def softplus(xp: Any, x: Any, *, beta: float = 1.0) -> Any:
    """A smooth relu."""
    return xp.log1p(xp.exp(beta * x)) / xp.asarray(beta, dtype=x.dtype)


def test_a_decorated_function_is_an_op_with_a_cost() -> None:
    assert isinstance(softplus, hs.Op)
    assert (softplus.name, softplus.inputs, softplus.outputs, softplus.doc) == ("test_guard.softplus", ("x",), ("out",), "A smooth relu.")
    assert softplus.allocating
    assert softplus.work([hs.Spec((2, 3))], [hs.Spec((2, 3))], {}) == (60, 24, 24)
    check_op(softplus, [Case((np.linspace(-2, 2, 7),), {"beta": 2.0})], reference=lambda x, beta: np.log1p(np.exp(beta * x)) / beta)
    np.testing.assert_allclose(run(softplus, beta=2.0), -np.log1p(np.exp(-2 * X)) / 2, rtol=1e-6)


def test_several_inputs_outputs_and_options() -> None:
    @hs.array_op("mine.extremes", outputs=("low", "high"))
    def extremes(xp: Any, first: Any, *rest: Any, shift: int = 0) -> Any:
        low = high = first
        for x in rest:
            low, high = xp.minimum(low, x), xp.maximum(high, x)
        return low + shift, high + shift

    assert extremes.inputs == ("first", "rest*")
    g = hs.Graph.build()
    low, high = g.op(extremes, g.input("a", (3,)), g.input("b", (3,)), g.input("c", (3,)), shift=1)
    g.output(low, "low")
    g.output(high, "high")
    rows = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    result = hs.run(g.freeze(), dict(zip("abc", rows, strict=True)))
    np.testing.assert_allclose(result["low"], rows.min(axis=0) + 1, rtol=1e-6)
    np.testing.assert_allclose(result["high"], rows.max(axis=0) + 1, rtol=1e-6)


def test_what_a_decorator_cannot_make_an_op_of() -> None:
    with pytest.raises(hs.GraphError, match="must take the array library first"):
        hs.array_op()(lambda: None)
    with pytest.raises(hs.GraphError, match="input 'y' cannot have a default"):
        hs.array_op()(lambda xp, x, y=1: x)
    with pytest.raises(hs.GraphError, match=r"\*\*more is not taken"):
        hs.array_op()(lambda xp, x, **more: x)
    with pytest.raises(hs.GraphError, match="uses 'z', which is not known"):
        hs.array_op(flops="z.size")(lambda xp, x: x)


def test_a_decorated_function_that_returns_nothing_says_so() -> None:
    @hs.array_op()
    def forgets(xp: Any, x: Any) -> None:
        x + 1

    with pytest.raises(hs.TaskError, match="forgets returned nothing"):
        hs.run(_graph(forgets), {"x": X})


def test_a_decorated_function_cannot_write_its_inputs() -> None:
    @hs.array_op()
    def doubles(xp: Any, x: Any) -> Any:
        x *= 2
        return x

    with pytest.raises(hs.TaskError, match="read-only"):
        hs.run(_graph(doubles), {"x": X})
