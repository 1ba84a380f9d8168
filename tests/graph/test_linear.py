import numpy as np
import pytest

from hetsched.errors import GraphError
from hetsched.graph.gradient import gradient
from hetsched.graph.graph import Graph
from hetsched.graph.ops import find
from hetsched.graph.spec import Spec, UpTo
from hetsched.testing.ops import Case, check_op
from hetsched.testing.reference import interpret


def product(a, b, transpose_a, transpose_b):
    a = np.swapaxes(a, -1, -2) if transpose_a else a
    b = np.swapaxes(b, -1, -2) if transpose_b else b
    return np.einsum("...mk,...kn->...mn", a, b)


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_matmul(transpose_a, transpose_b):
    batches = [((), ()), ((3,), ()), ((), (3,)), ((2, 1), (3,)), ((1,), (4,)), ((0,), ()), ((2, 3), (2, 3))]

    def cases(rng):
        for (left, right), (m, k, n) in zip(
            batches * 2, [*[(2, 3, 4), (1, 4, 1)] * 3, (0, 2, 3), (2, 0, 3), *[(5, 1, 2), (3, 2, 1)] * 3], strict=True
        ):
            a = rng.normal(size=(*left, *((k, m) if transpose_a else (m, k))))
            b = rng.normal(size=(*right, *((n, k) if transpose_b else (k, n))))
            yield Case((a, b), {"transpose_a": transpose_a, "transpose_b": transpose_b})

    check_op(find("tensor.matmul"), cases, reference=product)


def test_matmul_of_integers():
    check_op(
        find("tensor.matmul"),
        lambda rng: [Case((rng.integers(-9, 9, size=(3, 4)), rng.integers(-9, 9, size=(4, 2))))],
        reference=lambda a, b, **_: a @ b,
    )


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("bias", [False, True])
def test_dense(activation, bias):
    def reference(x, w, b=0.0, activation="none"):
        z = np.einsum("...k,kn->...n", x, w) + b
        return np.maximum(z, 0) if activation == "relu" else z

    def cases(rng):
        for lead in [(5,), (1,), (0,), (2, 3), (1, 1, 2), ()]:
            for k, n in [(3, 2), (1, 4), (0, 2), (2, 1)]:
                inputs = [rng.normal(size=(*lead, k)), rng.normal(size=(k, n)), rng.normal(size=n)]
                yield Case(tuple(inputs[: 2 + bias]), {"activation": activation})

    # relu has its corner where no bias keeps a sum of nothing away from 0.
    cornered = activation == "relu" and not bias
    usable = (lambda rng: [c for c in cases(rng) if c.inputs[1].size]) if cornered else cases
    check_op(find("nn.dense"), usable, reference=reference)


def test_work_of_products():
    work = find("tensor.matmul").work
    a, b, out = Spec((5, 2, 3)), Spec((3, 4)), Spec((5, 2, 4))
    assert work([a, b], [out], {"transpose_a": False, "transpose_b": False}) == (2 * 5 * 2 * 3 * 4, (30 + 12) * 4, 40 * 4)
    x, w, bias, y = Spec((8, 3)), Spec((3, 4)), Spec((4,)), Spec((8, 4))
    assert find("nn.dense").work([x, w, bias], [y], {"activation": "relu"}).flops == 2 * 8 * 3 * 4 + 2 * 32


def test_the_gradient_of_dense_needs_no_transposed_copy_and_leaves_out_what_nobody_wants():
    b = Graph.build()
    x, w, bias = b.input("x", (8, 5)), b.input("w", (5, 3)), b.input("b", (3,))
    y = b.op("nn.dense", x, w, bias, activation="relu", name="layer")
    gradient(b, y, [w, bias])
    graph = b.freeze()
    assert [(t.name, t.op.name) for t in graph.tasks] == [
        ("layer", "nn.dense"),
        ("gradient/full", "tensor.full"),
        ("gradient/layer/relu_grad", "nn.relu_grad"),
        ("gradient/layer/matmul", "tensor.matmul"),
        ("gradient/layer/sum", "tensor.sum"),
    ]
    assert graph.task("gradient/layer/matmul").attributes == {"transpose_a": True, "transpose_b": False}


def test_one_matrix_for_a_batch_gets_its_gradient_from_one_product():
    b = Graph.build()
    x, w = b.input("x", (4, 8, 5)), b.input("w", (5, 3))
    gradient(b, b.op("tensor.matmul", x, w), [w])
    ops = [t.op.name for t in b.freeze().tasks]
    assert "tensor.sum_to" not in ops
    assert ops.count("tensor.reshape") == 2


@pytest.mark.parametrize(
    ("name", "specs", "says"),
    [
        ("tensor.matmul", [Spec((2, 3)), Spec((4, 5))], r"inner extents differ: a \[2, 3\] gives 3, b \[4, 5\] gives 4"),
        ("tensor.matmul", [Spec((3,)), Spec((3, 5))], r"a must have at least 2 axes, got 1 \(shape \[3\]\)"),
        ("tensor.matmul", [Spec((2, 3), "float64"), Spec((3, 5))], "a is float64 but b is float32; convert one with tensor.cast"),
        (
            "nn.dense",
            [Spec((2, 3)), Spec((4, 5)), Spec((4,))],
            r"x \[2, 3\] has 3 features, w \[4, 5\] takes 4\nb must have the shape \[5\], got \[4\]",
        ),
        ("nn.dense", [Spec((2, 3), int), Spec((3, 5), int)], "x must be of a floating dtype, got int64"),
    ],
)
def test_errors(name, specs, says):
    op = find(name)
    with pytest.raises(GraphError, match=says):
        op.infer(specs, op.check_attributes({}))


def test_a_batch_of_unknown_extent():
    b = Graph.build()
    x, w, bias = b.input("x", (UpTo(8), 5)), b.input("w", (5, 3)), b.input("b", (3,))
    y = b.op("nn.dense", x, w, bias, activation="relu")
    gx, gw, gb = gradient(b, y, [x, w, bias])
    assert gx.spec == x.spec
    graph = b.output(y, "y").output(gw, "gw").output(gb, "gb").output(gx, "gx").freeze()
    rng = np.random.default_rng(0)
    data, weights = rng.normal(size=(3, 5)).astype("f4"), rng.normal(size=(5, 3)).astype("f4")
    out = interpret(graph, {"x": data, "w": weights, "b": np.zeros(3, "f4")})
    mask = (data @ weights > 0).astype("f4")
    np.testing.assert_allclose(out["y"], np.maximum(data @ weights, 0), rtol=1e-5)
    np.testing.assert_allclose(out["gw"], data.T @ mask, rtol=1e-5)
    np.testing.assert_allclose(out["gb"], mask.sum(0), rtol=1e-5)
    np.testing.assert_allclose(out["gx"], mask @ weights.T, rtol=1e-5)


def test_half_precision():
    def cases(rng):
        yield Case((rng.normal(size=(4, 3)), rng.normal(size=(3, 2)), rng.normal(size=2)), {"activation": "relu"})

    check_op(find("nn.dense"), cases, dtypes=("float16",), reference=lambda x, w, b, activation: np.maximum(x @ w + b, 0))


@pytest.mark.parametrize("seed", range(20))
def test_gradients_of_random_graphs_against_central_differences(seed):
    """Deep graphs with shared values: what single ops cannot show is how their gradients are put together."""
    rng = np.random.default_rng(seed)
    b = Graph.build()
    x, w = b.input("x", (3, 4), "float64"), b.input("w", (4, 4), "float64")
    made = [x]
    for _ in range(12):
        a, c = (made[i] for i in rng.integers(max(0, len(made) - 4), len(made), size=2))
        choices = [
            lambda a=a: b.op("nn.tanh", a),
            lambda a=a, c=c: b.op("tensor.add", a, c),
            lambda a=a, c=c: b.op("nn.tanh", b.op("tensor.mul", a, c)),
            lambda a=a, c=c: b.op("tensor.sub", a, b.op("tensor.mean", c, axes=(1,), keepdims=True)),
            lambda a=a: b.op("nn.dense", a, w, b.op("tensor.sum", w, axes=(0,))),
            lambda a=a: b.op("tensor.matmul", a, w, transpose_b=True),
            lambda a=a, c=c: b.op("tensor.concat", b.op("tensor.rows", a, start=0, stop=1), b.op("tensor.rows", c, start=1, stop=3)),
            lambda a=a: b.op("tensor.reshape", b.op("tensor.transpose", b.op("tensor.reshape", a, shape=(4, 3))), shape=(3, 4)),
            lambda a=a, c=c: b.op("tensor.where", b.op("tensor.less", x, a), a, c),
        ]
        made.append(choices[rng.integers(len(choices))]())
    loss = b.op("tensor.mean", b.op("nn.sigmoid", made[-1]))
    for name, g in zip(("gx", "gw"), gradient(b, loss, [x, w]), strict=True):
        b.output(g, name)
    graph = b.output(loss, "loss").freeze()
    data = {"x": rng.normal(size=(3, 4)), "w": rng.normal(size=(4, 4)) / 4}
    out = interpret(graph, data)
    for name in data:
        direction = rng.normal(size=data[name].shape)
        up, down = (interpret(graph, {**data, name: data[name] + h * direction})["loss"] for h in (1e-6, -1e-6))
        np.testing.assert_allclose((up - down) / 2e-6, np.sum(out[f"g{name}"] * direction), rtol=1e-5, atol=1e-8)
