import numpy as np
import pytest

from hetsched.errors import GraphError
from hetsched.graph.gradient import gradient, gradient_graph, pullback
from hetsched.graph.graph import Graph, Loop, Where
from hetsched.graph.spec import UpTo
from hetsched.testing.reference import interpret


def test_a_network_against_its_gradient_by_hand():
    b = Graph.build()
    x, w1, w2 = b.input("x", (4, 3), "float64"), b.input("w1", (3, 5), "float64"), b.input("w2", (5, 2), "float64")
    loss = b.op("tensor.mean", b.op("tensor.matmul", b.op("nn.tanh", b.op("tensor.matmul", x, w1)), w2))
    for name, g in zip(("g1", "g2"), gradient(b, loss, [w1, w2]), strict=True):
        b.output(g, name)
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(4, 3)), "w1": rng.normal(size=(3, 5)), "w2": rng.normal(size=(5, 2))}
    out = interpret(b.freeze(), data)
    h = np.tanh(data["x"] @ data["w1"])
    seed = np.full((4, 2), 1 / 8)
    np.testing.assert_allclose(out["g2"], h.T @ seed)
    np.testing.assert_allclose(out["g1"], data["x"].T @ (seed @ data["w2"].T * (1 - h**2)))


def test_contributions_of_every_reader_are_summed():
    b = Graph.build()
    x = b.input("x", (3,), "float64")
    y = b.op("tensor.add", b.op("tensor.mul", x, x), b.op("tensor.exp", x))
    (g,) = gradient(b, y, [x])
    at = np.array([-1.0, 0.5, 2])
    np.testing.assert_allclose(interpret(b.output(g, "g").freeze(), {"x": at})["g"], 2 * at + np.exp(at))


def test_only_the_paths_from_wrt_to_the_output_are_walked():
    b = Graph.build()
    x, w, unused = b.input("x", (2, 2)), b.input("w", (2, 2)), b.input("unused", (2,))
    before = b.op("tensor.exp", x, name="before")  # leads to the output, but not from w
    y = b.op("tensor.mul", before, w, name="y")
    b.op("tensor.log", w, name="aside")  # leads from w, but not to the output
    gw, zero = gradient(b, y, [w, unused])
    assert [t for t in b.task_names if t.startswith("gradient")] == ["gradient/full", "gradient/y/mul", "gradient/full_1"]
    out = interpret(
        b.output(gw, "gw").output(zero, "zero").freeze(), {"x": np.zeros((2, 2), "f4"), "w": np.ones((2, 2), "f4"), "unused": np.ones(2, "f4")}
    )
    assert out["gw"].tolist() == [[1, 1], [1, 1]]
    assert out["zero"].tolist() == [0, 0]


def test_an_output_is_its_own_gradient_and_wrt_may_repeat():
    b = Graph.build()
    x = b.input("x", (2,))
    first, second = gradient(b, x, [x, x])
    assert first == second
    assert interpret(b.output(first, "g").freeze(), {"x": np.zeros(2, "f4")})["g"].tolist() == [1, 1]


def test_pullback_says_where_no_path_leads():
    b = Graph.build()
    x, y = b.input("x", (2,)), b.input("y", (2,))
    z = b.op("tensor.neg", x)
    assert pullback(b, [z], [b.constant(np.ones(2, "f4"))], [y]) == [None]
    assert pullback(b, [z], [None], [x]) == [None]


def test_no_gradient_flows_through_integers():
    b = Graph.build()
    x = b.input("x", (3,))
    rounded = b.op("tensor.cast", b.op("tensor.cast", x, dtype="int64"), dtype="float32")
    (g,) = gradient(b, b.op("tensor.add", rounded, x), [x])
    assert interpret(b.output(g, "g").freeze(), {"x": np.ones(3, "f4")})["g"].tolist() == [1, 1, 1]


def test_gradients_run_where_their_task_wants_to_run():
    b = Graph.build()
    x = b.input("x", (3,))
    y = b.op("nn.tanh", x, where=Where(allow=("gpu",)))
    gradient(b, y, [x])
    graph = b.freeze()
    assert graph.task("gradient/tanh/tanh_grad").where == Where(allow=("gpu",))
    assert graph.task("gradient/full").where is None


def test_a_bounded_batch():
    b = Graph.build()
    x = b.input("x", (UpTo(8), 2), "float64")
    w = b.input("w", (2,), "float64")
    loss = b.op("tensor.sum", b.op("tensor.mul", x, w), axes=(1,))
    gx, gw = gradient(b, loss, [x, w])
    out = interpret(b.output(gx, "gx").output(gw, "gw").freeze(), {"x": np.arange(6.0).reshape(3, 2), "w": np.array([2.0, 3])})
    assert out["gx"].tolist() == [[2, 3]] * 3
    assert out["gw"].tolist() == [6, 9]


def test_errors():
    b = Graph.build()
    x, n = b.input("x", (3,)), b.input("n", (3,), "int64")
    with pytest.raises(GraphError, match=r"the output must be a floating array; 'n' is int64\[3\]"):
        gradient(b, n, [x])
    with pytest.raises(GraphError, match="a value to differentiate with respect to must be a floating array; 'n' is"):
        gradient(b, x, [n])
    top = b.op("tensor.max", x, name="top")
    (g,) = gradient(b, top, [x])
    with pytest.raises(GraphError, match=r"goes through task 'gradient/top/max_grad', and op tensor\.max_grad has no gradient"):
        gradient(b, g, [x])

    inner = Graph.build()
    c = inner.input("c", (3,))
    body = inner.output(inner.op("tensor.neg", c), "next").freeze()
    (last,) = b.loop(Loop(body, 2, carried=(("c", "next"),)), x, name="steps")
    with pytest.raises(GraphError, match="goes through loop 'steps'; differentiate inside its body instead"):
        gradient(b, last, [x])

    b.op("tensor.add", x, n, name="wrong")
    with pytest.raises(GraphError, match="task 'wrong'"):
        gradient(b, top, [x])


def test_gradient_graph_keeps_the_graph_and_adds_gradients():
    b = Graph.build()
    x = b.input("x", (3,), "float64")
    b.constant(np.array(2.0), "two")
    graph = b.output(b.op("tensor.mul", x, b.constant(np.array(3.0), "three"), name="y")).freeze()
    out = interpret(gradient_graph(graph, "y", ["x"]), {"x": np.ones(3)})
    assert out["y"].tolist() == out["gradient/x"].tolist() == [3, 3, 3]
    with pytest.raises(GraphError, match=r"(?s)no output 'z'.*known: y.*no input 'w'.*known: x"):
        gradient_graph(graph, "z", ["w"])
