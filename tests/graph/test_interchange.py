import networkx as nx
import numpy as np
import pytest

from hetsched.errors import GraphError
from hetsched.graph.graph import Graph, Loop, Where
from hetsched.graph.interchange import thaw
from hetsched.graph.ops import find
from hetsched.graph.spec import Spec
from hetsched.testing.reference import interpret


def sample():
    """A graph with everything: a constant between tasks, order, place, attributes, a loop of several outputs, a value read twice, a bundle."""
    inner = Graph.build()
    c, s = inner.input("c", (2,)), inner.input("s", (2,))
    total = inner.op("tensor.add", c, s)
    loop = Loop(inner.output(total, "next").output(total, "seen").freeze(), 3, sequences=("s",), carried=(("c", "next"),), collected=("seen",))

    b = Graph.build()
    x, rows = b.input("x", (2,)), b.input("rows", (3, 2))
    first = b.op("tensor.mul", x, x, name="square")
    shifted = b.op("tensor.add", first, b.constant(np.ones(2, "f4"), "one"), where=Where(exclude=("cuda",)))
    last, seen = b.loop(loop, rows, shifted, name="steps")
    late = b.op("tensor.scale", x, factor=2.0, after=[last])
    b.op("tensor.full", shape=(0, 2), name="aside")
    from hetsched.graph.graph import Bundle

    return b.output(last, "last").output(seen, "seen").output(Bundle({"late": late}, "pair", {"k": 1}), "both").freeze()


DATA = {"x": np.array([1, 2], "f4"), "rows": np.arange(6, dtype="f4").reshape(3, 2)}


def same(a, b):
    assert a.task_names == b.task_names
    assert a.task_ops == b.task_ops
    assert [dict(x) for x in a.task_attributes] == [dict(x) for x in b.task_attributes]
    assert a.value_specs == b.value_specs
    assert a.value_names == b.value_names
    assert [a.reads(t) for t in range(len(a))] == [b.reads(t) for t in range(len(b))]
    assert a.after == b.after
    assert a.where == b.where
    assert (a.inputs, a.outputs, a.bundles) == (b.inputs, b.outputs, b.bundles)
    left, right = interpret(a, DATA), interpret(b, DATA)
    assert left.keys() == right.keys()
    assert all(np.array_equal(left[k], right[k]) for k in left)


def test_thaw_and_freeze_give_the_graph_back():
    graph = sample()
    same(graph, thaw(graph).freeze())


def test_thaw_goes_on_with_fresh_names():
    builder = thaw(sample())
    assert builder.op("tensor.full", shape=(1,), name="square").name == "square_1"


def test_networkx_and_back():
    graph = sample()
    same(graph, Graph.from_networkx(graph.to_networkx()))


def test_the_view_says_what_a_networkx_user_wants_to_know():
    view = sample().to_networkx()
    assert list(nx.topological_sort(view))[:2] == ["input:x", "input:rows"]
    assert view.nodes["input:x"] == {"op": "input", "spec": Spec((2,))}
    assert view.nodes["square"]["op"] == "tensor.mul"
    assert view.nodes["scale"]["attributes"] == {"factor": 2.0}
    assert isinstance(view.nodes["steps"]["op"], Loop)
    uses = sorted((e["input"], e["nbytes"]) for e in view.get_edge_data("input:x", "square").values())
    assert uses == [(0, 8), (1, 8)]
    assert view.get_edge_data("steps", "scale")[0]["value"] is None
    assert view.graph["outputs"]["seen"] == ("steps", 1)


def test_a_graph_written_by_hand():
    view = nx.MultiDiGraph()
    view.add_node("double", op="tensor.scale", attributes={"factor": 2.0})
    view.add_node("a", op="input", spec=Spec((2,)))
    view.add_node("sum", op=find("tensor.add"))
    view.add_edge("a", "double", input=0)
    view.add_edge("double", "sum", input=1)
    view.add_edge("a", "sum", input=0)
    graph = Graph.from_networkx(view)
    assert list(graph.outputs) == ["sum"]
    assert interpret(graph, {"a": np.ones(2, "f4")})["sum"].tolist() == [3, 3]


def test_a_cycle_is_named():
    view = nx.MultiDiGraph()
    view.add_edge("a", "b", input=0)
    view.add_edge("b", "a", input=0)
    with pytest.raises(GraphError, match="the graph has a cycle: a -> b -> a"):
        Graph.from_networkx(view)


def test_every_mistake_of_a_view_is_told():
    view = nx.MultiDiGraph()
    view.add_node("nameless")
    view.add_node("in", op="input")
    view.add_node("x", op="input", spec=Spec((2,)))
    view.add_node("gap", op="tensor.neg")
    view.add_edge("x", "gap", input=1)
    with pytest.raises(GraphError) as caught:
        Graph.from_networkx(view)
    assert [p.partition(":")[0] for p in caught.value.problems] == ["node 'nameless' needs op", "node 'in' is an input without spec", "node 'gap'"]


def test_an_output_that_is_not_there():
    view = nx.MultiDiGraph(outputs={"y": ("x", 1)})
    view.add_node("x", op="input", spec=Spec((2,)))
    with pytest.raises(GraphError, match="output 'y' names value 1 of 'x'"):
        Graph.from_networkx(view)
