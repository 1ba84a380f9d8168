import numpy as np
import pytest

from hetsched.errors import GraphError, InternalError
from hetsched.graph.graph import Graph, Loop
from hetsched.graph.op import Op, Work
from hetsched.graph.spec import Opaque, Sequence, Spec, UpTo
from hetsched.testing.reference import interpret


def op(kernel, *outputs, name="test", inputs=("x",), language="array", **more):
    """An op whose outputs have the specs given, whatever its inputs are."""
    names = tuple(f"out{i}" for i in range(len(outputs)))
    return Op(name, inputs, names, lambda specs, attributes: outputs, lambda i, o, a: Work(0, 0, 0), {language: kernel}, **more)


def body_of(make, **inputs):
    b = Graph.build()
    for name, value in make(b, *(b.input(k, *v) for k, v in inputs.items())).items():
        b.output(value, name)
    return b.freeze()


def counting(rows, **more):
    """A loop that adds up a sequence of `rows` elements and gives each partial sum."""

    def make(b, total, item):
        added = b.op("tensor.add", total, item, name="added")
        return {"next": added, "partial": added}

    body = body_of(make, total=((2,),), item=((2,),))
    return Loop(body, rows, sequences=("item",), carried=(("total", "next"),), collected=("partial",), **more)


def run(loop, *values):
    b = Graph.build()
    given = [b.input(f"v{i}", Spec(np.shape(v), np.asarray(v).dtype)) for i, v in enumerate(values)]
    for name, value in zip(loop.outputs, b.loop(loop, *given), strict=True):
        b.output(value, name)
    return interpret(b.freeze(), {f"v{i}": v for i, v in enumerate(values)})


ROWS = np.arange(8, dtype="f4").reshape(4, 2)
ZERO = np.zeros(2, "f4")


def test_tasks_run_in_order_and_outputs_are_named():
    b = Graph.build()
    x = b.input("x", (2,))
    y = b.op("tensor.add", x, b.constant(np.array([1, 2], "f4")), name="y")
    out = interpret(b.output(y).output(x, "same").freeze(), {"x": np.ones(2, "f4")})
    assert {k: v.tolist() for k, v in out.items()} == {"y": [2, 3], "same": [1, 1]}


def test_neither_inputs_nor_values_can_be_written():
    def spoil(xp, inputs, outputs, workspace, attributes):
        inputs[0][...] = 0

    b = Graph.build()
    x = b.input("x", (2,))
    graph = b.output(b.op(op(spoil, Spec((2,))), x, name="spoiler"), "y").freeze()
    given = np.ones(2, "f4")
    with pytest.raises(ValueError, match="read-only") as caught:
        interpret(graph, {"x": given})
    assert caught.value.__notes__ == ["in task 'spoiler' (test)"]
    assert given.tolist() == [1, 1]
    assert given.flags.writeable


def test_what_a_kernel_does_not_write_is_nan():
    b = Graph.build()
    y = b.op(op(lambda *_: None, Spec((2,)), Spec((), "int32"), inputs=()), name="lazy")
    out = interpret(b.output(y[0], "float").output(y[1], "int").freeze())
    assert np.isnan(out["float"]).all()
    assert out["int"] == np.iinfo(np.int32).max


def test_opaque_values_and_host_kernels():
    def names(xp, inputs, outputs, workspace, attributes):
        outputs[0] = [f"file{n}" for n in inputs[0]]

    def count(xp, inputs, outputs, workspace, attributes):
        outputs[0][...] = len(inputs[0])

    b = Graph.build()
    files = b.op(op(names, Opaque("names"), language="host"), b.input("x", (3,), int))
    graph = b.output(files, "files").output(b.op(op(count, Spec((), int), language="host"), files), "n").freeze()
    out = interpret(graph, {"x": np.arange(3)})
    assert out["files"] == ["file0", "file1", "file2"]
    assert out["n"] == 3


def test_extents_known_only_at_run_time():
    def positive(xp, inputs, outputs, workspace, attributes):
        found = inputs[0][inputs[0] > 0]
        outputs[0][: len(found)] = found
        return [found.shape]

    b = Graph.build()
    some = b.op(op(positive, Spec((UpTo(5),))), b.input("x", (5,)))
    graph = b.output(b.op("tensor.neg", some), "y").freeze()
    assert interpret(graph, {"x": np.array([1, -1, 2, -2, 0], "f4")})["y"].tolist() == [-1, -2]


def test_workspace_is_as_large_as_asked_for():
    seen = []

    def kernel(xp, inputs, outputs, workspace, attributes):
        seen.append(workspace.nbytes)
        outputs[0][...] = 0

    b = Graph.build()
    b.op(op(kernel, Spec(()), workspace=lambda i, o, a: i[0].nbytes), b.input("x", (5,)))
    interpret(b.freeze(), {"x": np.zeros(5, "f4")})
    assert seen == [20]


@pytest.mark.parametrize(
    ("kernel", "spec", "says"),
    [
        (lambda *_: None, Opaque("thing"), "the kernel gave nothing for output 'out0'"),
        (lambda xp, i, outputs, w, a: outputs.__setitem__(0, xp.zeros(2)), Spec((2,)), "replaced the array of output 'out0'"),
        (lambda *_: None, Spec((UpTo(2),)), "the kernel did not say what it wrote"),
    ],
)
def test_kernels_that_break_the_contract(kernel, spec, says):
    b = Graph.build()
    b.op(op(kernel, spec, inputs=()))
    with pytest.raises(InternalError, match=says):
        interpret(b.freeze())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "input 'x' is missing"),
        ({"x": np.zeros((2, 3), "f4"), "y": 1}, "the graph has no input 'y'"),
        ({"x": np.zeros((2, 3))}, r"input 'x' wants float32\[<=4, 3\], got float64\[2, 3\]"),
        ({"x": np.zeros((5, 3), "f4")}, r"input 'x' wants float32\[<=4, 3\], got float32\[5, 3\]"),
        ({"x": np.zeros((2, 4), "f4")}, r"got float32\[2, 4\]"),
        ({"x": np.zeros(3, "f4")}, r"got float32\[3\]"),
    ],
)
def test_inputs_that_do_not_fit(given, says):
    b = Graph.build()
    b.input("x", (UpTo(4), 3))
    with pytest.raises(GraphError, match=says):
        interpret(b.freeze(), given)


# Loops


def test_carried_values_and_collected_sequences():
    out = run(counting(4), ROWS, ZERO)
    assert out["total"].tolist() == [12, 16]
    assert out["partial"].tolist() == np.cumsum(ROWS, 0).tolist()


def test_no_turns():
    out = run(counting(0), ROWS, ZERO)
    assert out["total"].tolist() == [0, 0]
    assert out["partial"].shape == (0, 2)


def test_a_sequence_may_be_longer_than_the_loop():
    assert run(counting(2), ROWS, ZERO)["total"].tolist() == [2, 4]


def test_invariants_and_the_number_of_the_turn():
    def make(b, turn, step):
        return {"out": b.op("tensor.mul", b.op("tensor.cast", turn), step)}

    loop = Loop(body_of(make, turn=((), "int64"), step=((2,),)), 3, invariants=("step",), collected=("out",), turn="turn")
    assert run(loop, np.array([1, 10], "f4"))["out"].tolist() == [[0, 0], [1, 10], [2, 20]]


def test_stop_ends_the_loop_after_the_turn_in_which_it_is_true():
    def make(b, total, item, limit):
        total = b.op("tensor.add", total, item)
        return {"next": total, "done": b.op("tensor.greater", b.op("tensor.max", total), limit)}

    body = body_of(make, total=((2,),), item=((2,),), limit=((),))
    loop = Loop(body, 4, ("limit",), ("item",), (("total", "next"),), ("next",), stop="done")
    out = run(loop, np.float32(3), ROWS, ZERO)
    assert out["total"].tolist() == [2, 4]
    assert out["next"].tolist() == [[0, 1], [2, 4]]


def test_tasks_that_run_every_k_turns_keep_their_value_between():
    out = run(counting(4, every={"added": 3}), ROWS, ZERO)
    assert out["partial"].tolist() == [[0, 1], [0, 1], [0, 1], [6, 8]]


def test_rows_and_the_smaller_last_batch():
    def batch(rows):
        return body_of(
            lambda b, x, total: {"y": b.op("tensor.neg", x), "next": b.op("tensor.add", total, b.op("tensor.sum", x))}, x=((rows, 2),), total=((),)
        )

    # Batches of 2, 2 and 1 rows.
    loop = Loop(batch(2), 3, (), ("x",), (("total", "next"),), ("y",), rows={"y": 5}, remainder=batch(1), cycle=3)
    data = np.arange(10, dtype="f4").reshape(5, 2)
    b = Graph.build()
    x = b.input("x", Sequence(Spec((2, 2)), 3))
    total, y = b.loop(loop, x, b.input("zero", ()))
    graph = b.output(total, "total").output(y, "y").freeze()
    out = interpret(graph, {"x": [data[0:2], data[2:4], data[4:5]], "zero": np.float32(0)})
    assert out["total"] == data.sum()
    assert out["y"].tolist() == (-data).tolist()


def test_a_sequence_of_rows_is_cut_from_its_array():
    def batch(rows):
        return body_of(lambda b, x: {"y": b.op("tensor.sum", x, axes=(0,))}, x=((rows, 2),))

    loop = Loop(batch(2), 2, sequences=("x",), collected=("y",), remainder=batch(1), cycle=2)
    b = Graph.build()
    (y,) = b.loop(loop, b.input("x", Sequence(Spec((2, 2)), 2, rows=3)))
    assert interpret(b.output(y, "y").freeze(), {"x": ROWS[:3]})["y"].tolist() == [[2, 4], [4, 5]]


def test_sequences_of_objects_are_lists():
    def shout(xp, inputs, outputs, workspace, attributes):
        outputs[0] = inputs[0].upper()

    b = Graph.build()
    word = b.input("word", Opaque("text"))
    loop = Loop(b.output(b.op(op(shout, Opaque("text"), language="host"), word), "loud").freeze(), 2, sequences=("word",), collected=("loud",))
    b = Graph.build()
    (loud,) = b.loop(loop, b.input("words", Sequence(Opaque("text"), None)))
    graph = b.output(loud, "loud").freeze()
    assert interpret(graph, {"words": ["a", "b", "c"]})["loud"] == ["A", "B"]
    with pytest.raises(GraphError, match="a sequence of 1 elements has no element 1"):
        interpret(graph, {"words": ["a"]})


def test_loops_in_loops():
    inner = counting(4)

    def make(b, total, rows):
        last, _ = b.loop(inner, rows, total)
        return {"next": last}

    outer = Loop(body_of(make, total=((2,),), rows=((4, 2),)), 3, ("rows",), (), (("total", "next"),))
    assert run(outer, ROWS, ZERO)["total"].tolist() == [36, 48]
