import numpy as np
import pytest

from hetsched.errors import GraphError
from hetsched.graph.graph import Graph
from hetsched.graph.ops import find
from hetsched.graph.spec import Spec, UpTo
from hetsched.testing.ops import Case, broadcasting, check_op, shapes
from hetsched.testing.reference import interpret


def pairs(low=-2.0, high=2.0):
    """Two arrays that broadcast; every shape once equal on both sides, so that in-place pairs are met."""

    def cases(rng):
        for shape in shapes(rng):
            draw = lambda s: rng.uniform(low, high, size=s)  # noqa: E731
            yield Case((draw(shape), draw(shape)))
            yield Case((draw(shape), draw(broadcasting(rng, shape))))
            yield Case((draw(broadcasting(rng, shape)), draw(shape)))
        yield Case((draw((3, 1)), draw((1, 4))))

    return cases


def singles(low=-2.0, high=2.0):
    def cases(rng):
        for shape in shapes(rng):
            yield Case((rng.uniform(low, high, size=shape),))

    return cases


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("tensor.add", np.add),
        ("tensor.sub", np.subtract),
        ("tensor.mul", np.multiply),
        ("tensor.maximum", np.maximum),
        ("tensor.minimum", np.minimum),
    ],
)
def test_arithmetic(name, reference):
    check_op(find(name), pairs(), reference=reference)


def test_division():
    check_op(find("tensor.div"), pairs(0.5, 2.0), reference=lambda a, b: a / b)


@pytest.mark.parametrize("name", ["tensor.add", "tensor.sub", "tensor.mul", "tensor.maximum", "tensor.less", "tensor.equal"])
@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8"])
def test_integers(name, dtype):
    functions = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "maximum": np.maximum, "less": np.less, "equal": np.equal}

    def cases(rng):
        for shape in shapes(rng, 4):
            a = rng.integers(5, 9, size=shape).astype(dtype)
            yield Case((a, rng.integers(1, 6, size=shape).astype(dtype)))

    check_op(find(name), cases, reference=functions[name.partition(".")[2]])


@pytest.mark.parametrize(
    ("name", "low", "high", "reference"),
    [
        ("tensor.neg", -2, 2, np.negative),
        ("tensor.exp", -2, 2, np.exp),
        ("tensor.log", 0.5, 3, np.log),
        ("tensor.sqrt", 0.5, 3, np.sqrt),
        ("nn.relu", -2, 2, lambda x: np.where(x > 0, x, 0)),
        ("nn.sigmoid", -5, 5, lambda x: 1 / (1 + np.exp(-x))),
        ("nn.tanh", -3, 3, np.tanh),
    ],
)
def test_functions(name, low, high, reference):
    check_op(find(name), singles(low, high), reference=reference)


def test_scale():
    check_op(
        find("tensor.scale"), lambda rng: [Case((rng.normal(size=s),), {"factor": -2.5}) for s in shapes(rng)], reference=lambda x, factor: x * factor
    )


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("nn.relu_grad", lambda y, g: np.where(y > 0, g, 0)),
        ("nn.sigmoid_grad", lambda y, g: g * y * (1 - y)),
        ("nn.tanh_grad", lambda y, g: g * (1 - y**2)),
    ],
)
def test_gradients_of_activations(name, reference):
    check_op(find(name), lambda rng: [Case((rng.normal(size=s), rng.normal(size=s))) for s in shapes(rng)], reference=reference)


@pytest.mark.parametrize("name", ["equal", "not_equal", "less", "less_equal", "greater", "greater_equal"])
def test_comparisons(name):
    def cases(rng):
        for shape in shapes(rng):
            yield Case((rng.integers(0, 2, size=shape).astype(float), rng.integers(0, 2, size=broadcasting(rng, shape)).astype(float)))

    check_op(find(f"tensor.{name}"), cases, reference=getattr(np, name))


def test_logic():
    def cases(rng):
        return [Case((rng.random(size=s) < 0.5, rng.random(size=s) < 0.5)) for s in shapes(rng) if s]

    check_op(find("tensor.logical_and"), cases, reference=np.logical_and)
    check_op(find("tensor.logical_or"), cases, reference=np.logical_or)
    check_op(find("tensor.logical_not"), lambda rng: [Case(c.inputs[:1]) for c in cases(rng)], reference=np.logical_not)


def test_where():
    def cases(rng):
        for shape in shapes(rng):
            condition = np.asarray(rng.random(size=broadcasting(rng, shape)) < 0.5)
            yield Case((condition, rng.normal(size=shape), rng.normal(size=shape)))
            yield Case((condition, rng.normal(size=shape), rng.normal(size=broadcasting(rng, shape))))

    check_op(find("tensor.where"), cases, reference=np.where)


@pytest.mark.parametrize("dtype", ["float64", "float32", "int32", "bool"])
def test_cast(dtype):
    def cases(rng):
        for shape in shapes(rng, 4):
            yield Case((rng.normal(size=shape) * 3,), {"dtype": dtype})
            yield Case((rng.integers(0, 9, size=shape),), {"dtype": dtype})

    # A float32 output cannot show the difference of two float64 inputs 2e-6 apart.
    check_op(find("tensor.cast"), cases, reference=lambda x, dtype: x.astype(dtype), gradient=dtype == "float64")


def test_fills():
    check_op(
        find("tensor.full"),
        [Case((), {"shape": s, "value": 2, "dtype": d}) for s in ((), (0, 3), (2, 1)) for d in ("float32", "int64", "float64")],
        reference=lambda shape, value, dtype: np.full(shape, value, dtype),
    )
    check_op(find("tensor.full"), [Case((), {"shape": (2,), "value": 1, "dtype": "bool"})], reference=lambda **_: np.array([True, True]))
    check_op(
        find("tensor.full_like"),
        lambda rng: [Case((rng.normal(size=s),), {"value": 0.5}) for s in shapes(rng)],
        reference=lambda x, value: np.full_like(x, value),
    )


def test_sigmoid_of_large_numbers_neither_overflows_nor_loses_small_values():
    for dtype, smallest in (("float32", 1e-37), ("float64", 1e-300)):
        x = np.array([-1e4, -20, 0, 20, 1e4, np.nan], dtype)
        out = np.empty_like(x)
        find("nn.sigmoid").kernels["array"](np, [x], [out], None, {})  # pytest turns a warning into an error
        assert 0 <= out[0] < smallest
        np.testing.assert_allclose(out[1:5], [np.exp(-20.0) / (1 + np.exp(-20.0)), 0.5, 1, 1], rtol=1e-6)
        assert np.isnan(out[5])


def test_maximum_of_equal_numbers_gives_the_gradient_to_the_first():
    from hetsched.graph.gradient import gradient

    b = Graph.build()
    x, y = b.input("x", (2,)), b.input("y", (2,))
    gx, gy = gradient(b, b.op("tensor.maximum", x, y), [x, y])
    out = interpret(b.output(gx, "gx").output(gy, "gy").freeze(), {"x": np.ones(2, "f4"), "y": np.array([1, 2], "f4")})
    assert out["gx"].tolist() == [1, 0]
    assert out["gy"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("name", "specs", "attributes", "says"),
    [
        ("tensor.add", [Spec((2,), "float32"), Spec((2,), "float64")], {}, "a is float32 but b is float64; convert one with tensor.cast"),
        ("tensor.add", [Spec((2, 3)), Spec((2, 4))], {}, r"shapes \[2, 3\] and \[2, 4\] do not broadcast: axis -1 has 3 and 4"),
        ("tensor.add", [Spec((2,), bool), Spec((2,), bool)], {}, "a must be of a numeric dtype, got bool; convert it with tensor.cast"),
        ("tensor.div", [Spec((2,), int), Spec((2,), int)], {}, "a must be of a floating dtype, got int64"),
        ("tensor.mul", [Spec((UpTo(8),)), Spec((8,))], {}, "do not broadcast: axis -1 has <=8 and 8"),
        ("tensor.exp", [Spec((2,), int)], {}, "x must be of a floating dtype"),
        ("tensor.neg", [Spec((2,), "uint8")], {}, "x must be of a signed dtype, got uint8"),
        ("nn.relu_grad", [Spec((2,)), Spec((3,))], {}, r"grad must be float32\[2\] as y is, got float32\[3\]"),
        ("tensor.where", [Spec((2,)), Spec((2,)), Spec((2,))], {}, "condition must be of dtype bool"),
        ("tensor.full", [], {"shape": (2,), "value": 300.0, "dtype": "uint8"}, "value 300 does not fit dtype uint8"),
        ("tensor.full", [], {"shape": (2,), "value": float("inf"), "dtype": "int32"}, "value inf does not fit dtype int32"),
    ],
)
def test_errors_name_what_is_wrong_and_the_way_out(name, specs, attributes, says):
    with pytest.raises(GraphError, match=says):
        find(name).infer(specs, attributes)


def test_bounded_dimensions_meet_their_like_and_one():
    x = Spec((UpTo(8), 3))
    assert find("tensor.add").infer([x, x], {}) == [x]
    assert find("tensor.add").infer([x, Spec((3,))], {}) == [x]
    assert find("tensor.add").infer([Spec((1, 3)), x], {}) == [x]
    assert find("nn.relu").infer([x], {}) == [x]


@pytest.mark.parametrize("name", ["nn.sigmoid", "nn.tanh", "tensor.exp", "nn.relu"])
def test_half_precision(name):
    check_op(find(name), singles(), dtypes=("float16",))
