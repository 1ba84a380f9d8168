import numpy as np
import pytest

from hetsched.errors import FileError, GraphError
from hetsched.graph.graph import Graph, Loop, Where
from hetsched.graph.op import Composite, Scene
from hetsched.graph.ops import find, registry
from hetsched.graph.ops.data import rows_for_test
from hetsched.graph.sequence import LazySequence, apply, batched, materialize
from hetsched.graph.spec import Sequence, Spec, UpTo
from hetsched.testing.ops import Case, check_op
from hetsched.testing.reference import interpret


def use(builder, op, inputs=None, name="task", **options):
    """The outputs of a composite, as a pipeline would use it."""
    composite = registry()[op]
    assert isinstance(composite, Composite)
    with builder.scope(name):
        return composite.expand(builder, inputs or {}, composite.check_attributes(options), Scene())


def run(op, arrays, **options):
    """Outputs of a composite for `arrays` by input name."""
    builder = Graph.build()
    inputs = {name: builder.input(name, np.shape(a), np.asarray(a).dtype) for name, a in arrays.items()}
    for name, out in use(builder, op, inputs, **options).items():
        builder.output(materialize(builder, out), name)
    return interpret(builder.freeze(), arrays)


def mistakes(op, arrays, **options):
    """The problems of a use that is wrong."""
    with pytest.raises(GraphError) as info:
        run(op, arrays, **options)
    return "; ".join(info.value.problems)


RNG = np.random.default_rng(1)
X = RNG.normal(size=(11, 3)).astype(np.float32)
Y = np.arange(11) % 3


# Files ------------------------------------------------------------------------------------------------------------------------


def test_npz_outputs_are_called_as_in_the_file(tmp_path):
    path = str(tmp_path / "a.npz")
    np.savez(path, x=X, y=Y)
    out = run("data.npz", {}, path=path)
    assert list(out) == ["x", "y"]
    np.testing.assert_array_equal(out["x"], X)
    assert list(run("data.npz", {}, path=path, members=["y"])) == ["y"]
    assert "no member 'z'" in mistakes("data.npz", {}, path=path, members="z")


def test_npy(tmp_path):
    path = str(tmp_path / "a.npy")
    np.save(path, X)
    builder = Graph.build()
    builder.output(builder.op("data.npy", path=path), "x")
    np.testing.assert_array_equal(interpret(builder.freeze())["x"], X)


def table(tmp_path, text, name="t.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    return str(path)


def test_csv_columns_labels_and_quotes(tmp_path):
    path = table(tmp_path, '\ufeffa,"b, c",kind\r\n1,2.5,"x ""y"""\r\n\r\n-3,4e2,z\r\n5,6,"x ""y"""\r\n')
    out = run("data.csv", {}, path=path, label="kind")
    np.testing.assert_array_equal(out["x"], np.float32([[1, 2.5], [-3, 400], [5, 6]]))
    np.testing.assert_array_equal(out["y"], [0, 1, 0])
    np.testing.assert_array_equal(run("data.csv", {}, path=path, columns=["b, c", 0])["x"], np.float32([[2.5, 1], [400, -3], [6, 5]]))


@pytest.mark.parametrize(("column", "dtype"), [("7\n-1\n", np.int64), ("7\n0.5\n", np.float64), ("7\nno\n", np.int64)])
def test_csv_labels_have_the_dtype_of_their_texts(tmp_path, column, dtype):
    out = run("data.csv", {}, path=table(tmp_path, column), header=False, label=0)
    assert out["y"].dtype == dtype
    assert "x" not in out


def test_csv_labels_of_two_files_are_numbered_alike(tmp_path):
    train, test = table(tmp_path, "a,kind\n1,x\n2,y\n3,z\n", "train.csv"), table(tmp_path, "a,kind\n1,z\n2,x\n", "test.csv")
    numbered = [run("data.csv", {}, path=path, label="kind", labels=["z", "y", "x"])["y"].tolist() for path in (train, test)]
    assert numbered == [[2, 1, 0], [0, 2]]
    assert run("data.csv", {}, path=test, label="kind")["y"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "kind", "labels": ["x"]}, "column 'kind' has labels that 'labels' does not number: 'y', 'z'"),
        ({"label": "a", "labels": ["x"]}, "column 'a' holds numbers, which are labels as they are"),
        ({"labels": ["x"]}, "name it with `label`"),
        ({"label": "kind", "labels": ["x", "x"]}, "option 'labels' wants a list of different names"),
    ],
)
def test_csv_labels_that_cannot_number_a_column(tmp_path, options, message):
    with pytest.raises(GraphError, match=message):
        run("data.csv", {}, path=table(tmp_path, "a,kind\n1,x\n2,y\n3,z\n"), **options)


def test_csv_keeps_large_whole_numbers_exact(tmp_path):
    path = table(tmp_path, "9007199254740993\n-9223372036854775808\n")
    assert run("data.csv", {}, path=path, header=False, dtype="int64")["x"].tolist() == [[9007199254740993], [-9223372036854775808]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3\n", r"t\.csv:3: 1 fields, the first record has 2"),
        ("a,b\n1,2\n3,four\n", r"t\.csv:3: column 'b': 'four' is not a finite number"),
        ("a,b\n1,nan\n", r"t\.csv:2: column 'b': 'nan' is not"),
        ("a,b\n1,1_0\n", "is not a finite number"),
        ("a,b\n1,1e60\n", "does not fit float32"),
        ("a,a\n1,2\n", "two columns are called 'a'"),
        ('a,b\n1,"2\n', r"t\.csv:2: unexpected end of data"),
        ("", "holds no record"),
    ],
)
def test_a_bad_csv_names_line_and_column(tmp_path, text, message):
    with pytest.raises(FileError, match=message):
        run("data.csv", {}, path=table(tmp_path, text))


def test_csv_that_is_not_text(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"a,b\n\xff\xfe,1\n")
    with pytest.raises(FileError, match="UTF-8"):
        run("data.csv", {}, path=str(path))


def test_csv_that_changed_after_planning(tmp_path):
    path = table(tmp_path, "a\n1\n2\n")
    builder = Graph.build()
    builder.output(use(builder, "data.csv", path=path)["x"], "x")
    graph = builder.freeze()
    for text in ("a\n1\n", "a\n1\n2\n3\n"):
        table(tmp_path, text)
        with pytest.raises(FileError, match="plan again"):
            interpret(graph)


def test_csv_options(tmp_path):
    path = table(tmp_path, "one,two\n1,2\n")
    assert "did you mean 'one'" in mistakes("data.csv", {}, path=path, columns=["onn"])
    assert "there is no column 2" in mistakes("data.csv", {}, path=path, label=2)
    assert "delimiter" in mistakes("data.csv", {}, path=path, delimiter="--")


# Splits -----------------------------------------------------------------------------------------------------------------------


def test_split_is_a_partition_that_keeps_rows_together():
    x = np.arange(100, dtype=np.int64)
    out = run("data.split", {"x": x, "y": -x}, test=0.25, seed=3)
    assert len(out["x_test"]) == 25
    assert sorted([*out["x_train"], *out["x_test"]]) == list(range(100))
    np.testing.assert_array_equal(out["y_train"], -out["x_train"])
    np.testing.assert_array_equal(out["y_test"], -out["x_test"])
    assert not np.array_equal(out["x_test"], run("data.split", {"x": x}, test=0.25, seed=4)["x_test"])
    np.testing.assert_array_equal(out["x_test"], run("data.split", {"x": x}, test=25, seed=3)["x_test"])


def test_split_in_order_takes_the_last_rows_as_views():
    out = run("data.split", {"x": X}, test=3, shuffle=False)
    np.testing.assert_array_equal(out["x_train"], X[:8])
    np.testing.assert_array_equal(out["x_test"], X[8:])


def test_stratified_split_keeps_the_shares_of_labels():
    y = np.repeat([0, 1, 2], [70, 20, 10])
    out = run("data.split", {"x": np.arange(100), "y": y}, test=0.3, stratify=True, seed=1)
    assert np.bincount(out["y_test"]).tolist() == [21, 6, 3]
    np.testing.assert_array_equal(out["y_test"], y[out["x_test"]])
    assert sorted([*out["x_train"], *out["x_test"]]) == list(range(100))


def test_a_stratified_split_has_exactly_the_rows_asked_for():
    for rows in range(1, 11):
        assert len(run("data.split", {"x": X, "y": Y}, test=rows, stratify=True)["y_test"]) == rows


@pytest.mark.parametrize(("share", "rows", "test"), [(0.2, 1797, 359), (0.001, 10, 1), (0.999, 10, 9), (3, 10, 3)])
def test_rows_of_the_test_set(share, rows, test):
    assert rows_for_test(share, rows) == test


@pytest.mark.parametrize(("share", "rows"), [(0.0, 10), (1.0, 10), (10, 10), (0, 10), (True, 10), ("a", 10), (float("nan"), 10), (0.5, 1)])
def test_a_split_that_leaves_nothing_is_an_error(share, rows):
    with pytest.raises(GraphError):
        rows_for_test(share, rows)


def test_split_mistakes():
    assert "x has 11, y has 10" in mistakes("data.split", {"x": X, "y": Y[:10]})
    assert "input 'y'" in mistakes("data.split", {"x": X}, stratify=True)
    assert "shuffle" in mistakes("data.split", {"x": X, "y": Y}, stratify=True, shuffle=False)


def test_shuffle_keeps_rows_together():
    out = run("data.shuffle", {"x": X, "y": Y}, seed=5)
    assert out["y"].tolist() != Y.tolist()
    for row, label in zip(out["x"], out["y"], strict=True):
        assert Y[np.flatnonzero((row == X).all(axis=1))[0]] == label


# Scaling ----------------------------------------------------------------------------------------------------------------------


def test_standardize_is_fitted_on_train():
    train, test = np.float32([[1, 5, 0], [3, 5, 0], [5, 5, 0.3]]), np.float32([[7, 6, 0.1]])
    out = run("data.standardize", {"train": train, "test": test})
    mean, std = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    std[1] = 1
    np.testing.assert_allclose(out["train"], (train - mean) / std, rtol=1e-6)
    np.testing.assert_allclose(out["test"], (test - mean) / std, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(out["scale"][0], std, rtol=1e-6)


def test_standardize_far_from_zero_does_not_cancel():
    train = (1e4 + RNG.normal(size=(500, 2))).astype(np.float32)
    out = run("data.standardize", {"train": train})
    np.testing.assert_allclose(out["train"].std(axis=0, dtype=np.float64), 1, rtol=1e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float64])
def test_standardize_of_other_numbers(dtype):
    out = run("data.standardize", {"train": np.arange(12, dtype=dtype).reshape(4, 3)})
    assert out["train"].dtype == (np.float64 if dtype is np.float64 else np.float32)
    np.testing.assert_allclose(out["train"].mean(axis=0), 0, atol=1e-6)


def test_rescale_does_to_new_rows_what_standardize_did():
    fitted = run("data.standardize", {"train": X})
    again = run("data.rescale", {"x": X, "mean": fitted["mean"], "scale": fitted["scale"]})
    np.testing.assert_array_equal(again["x"], fitted["train"])


def test_normalize_by_numbers_and_by_range():
    x = np.uint8([[0, 16, 7], [8, 4, 7]])
    np.testing.assert_allclose(run("data.normalize", {"x": x}, scale=0.0625)["x"], x / 16, rtol=1e-6)
    np.testing.assert_allclose(run("data.normalize", {"x": x}, scale=2.0, offset=-1.0)["x"], x * 2.0 - 1, rtol=1e-6)
    out = run("data.normalize", {"x": x, "test": np.float32([[4, 10, 8]])}, range=[-1, 1])
    np.testing.assert_allclose(out["x"], [[-1, 1, -1], [1, -1, -1]])
    np.testing.assert_allclose(out["test"], [[0, 0, 1]])


def test_normalize_mistakes():
    for options in ({}, {"scale": 1.0, "range": [0, 1]}):
        assert "give either" in mistakes("data.normalize", {"x": X}, **options)
    assert "option 'range'" in mistakes("data.normalize", {"x": X}, range=[1, 0])
    assert "rows must have one shape" in mistakes("data.standardize", {"train": X, "test": X[:, :2]})


def test_primitive_ops_hold_what_ops_promise():
    order = np.random.default_rng(0).permutation(11)
    for turn, count in ((0, 4), (4, 4), (2, 3)):
        start = turn % 3 * 4
        case = Case((X, np.int64(turn)), {"batch": 4, "count": count, "cycle": 3})
        check_op(find("data.batch_rows"), [case], reference=lambda x, t, s=start, c=count, **a: x[s : s + c])
        case = Case((X, np.int64(turn), order), {"batch": 4, "count": count, "cycle": 3})
        check_op(find("data.batch_rows"), [case], reference=lambda x, t, o, s=start, c=count, **a: x[o[s : s + c]])
    check_op(find("data.extent"), [Case((X,))], reference=lambda x, **a: (x.min(0, keepdims=True), np.ptp(x, 0, keepdims=True)))
    check_op(find("data.moments"), [Case((X,))], reference=lambda x, **a: (x.mean(0, keepdims=True), x.std(0, keepdims=True)))


@pytest.mark.parametrize(
    "attributes", [{"batch": 4, "count": 4, "cycle": 4}, {"batch": 4, "count": 2, "cycle": 3}, {"batch": 12, "count": 12, "cycle": 1}]
)
def test_batches_that_do_not_fit_the_rows_are_an_error(attributes):
    builder = Graph.build()
    builder.op("data.batch_rows", builder.input("x", (11, 3)), builder.input("turn", (), np.int64), **attributes)
    with pytest.raises(GraphError, match=r"11 rows|count must be"):
        builder.freeze()


# Sequences --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3, 4, 11, 20])
def test_stages_of_a_recipe_become_one_loop_with_its_tail(batch):
    builder = Graph.build()
    x, w, b = builder.input("x", (11, 3)), builder.input("w", (3, 2)), builder.input("b", (2,))
    rows = use(builder, "data.batch", {"x": x}, batch=batch)["x"]
    scaled = apply(builder, find("tensor.scale"), [rows], {"factor": 2.0}, "scaled")
    dense = apply(builder, find("nn.dense"), [scaled, w, b], {"activation": "relu"}, "dense")
    total = apply(builder, find("tensor.add"), [dense, dense], {}, "twice")
    assert isinstance(total, LazySequence)
    assert total.array == Spec((11, 2))
    assert total.spec == Sequence(Spec((min(batch, 11), 2)), -(-11 // min(batch, 11)), 11)
    assert set(total.invariants) == {x, w, b}
    whole = materialize(builder, total)
    assert materialize(builder, total) == whole
    graph = builder.output(whole, "y").freeze()
    loops = [t for t in graph.tasks if isinstance(t.op, Loop)]
    assert len(loops) == 1
    assert [t.name for t in loops[0].op.body.tasks] == ["take_x", "scaled", "dense", "twice"]
    weights, bias = RNG.normal(size=(3, 2)).astype(np.float32), np.float32([1, -1])
    found = interpret(graph, {"x": X, "w": weights, "b": bias})["y"]
    np.testing.assert_allclose(found, 2 * np.maximum(2 * X @ weights + bias, 0), rtol=1e-5, atol=1e-6)


def test_what_is_not_row_wise_gets_the_whole_array():
    builder = Graph.build()
    x = builder.input("x", (11, 3))
    rows = batched(x, 4)
    total = apply(builder, find("tensor.sum"), [rows], {"axes": (0,)})
    across = apply(builder, find("nn.softmax"), [rows], {"axis": 0})
    inside = apply(builder, find("nn.softmax"), [rows], {"axis": 1})
    assert isinstance(inside, LazySequence)
    assert not isinstance(total, LazySequence)
    assert not isinstance(across, LazySequence)
    graph = builder.output(total, "total").output(across, "across").freeze()
    assert len(graph) == 2
    np.testing.assert_allclose(interpret(graph, {"x": X})["total"], X.sum(axis=0), rtol=1e-5)


@pytest.mark.parametrize(
    ("op", "attributes", "flows"),
    [
        ("tensor.exp", {}, True),
        ("tensor.transpose", {}, False),
        ("nn.log_softmax", {}, True),
        ("tensor.sum", {"axes": (1,)}, True),
        ("tensor.sum", {"axes": (-2,)}, False),
        ("tensor.mean", {}, False),
        ("tensor.argmax", {"axis": 1}, True),
        ("tensor.reshape", {"shape": (-1, 3, 1)}, True),
        ("tensor.reshape", {"shape": (3, 11)}, False),
        ("tensor.reshape", {"shape": (-1, 11)}, False),
    ],
)
def test_a_stage_gives_what_the_op_gives_for_the_whole_array(op, attributes, flows):
    builder = Graph.build()
    x = builder.input("x", (11, 3))
    out = apply(builder, find(op), [batched(x, 4)], attributes)
    assert isinstance(out, LazySequence) == flows
    graph = builder.output(materialize(builder, out), "stages").output(builder.op(op, x, **attributes), "array").freeze()
    found = interpret(graph, {"x": X})
    np.testing.assert_allclose(found["stages"], found["array"], rtol=1e-6)


def test_what_is_collected_is_named_and_placed_after_its_own_task():
    builder = Graph.build()
    with builder.scope("half", Where(allow=("cpu",))):
        half = apply(builder, find("tensor.scale"), [batched(builder.input("x", (11, 3)), 4)], {"factor": 0.5}, "x")
    with builder.scope("total", Where(allow=("cuda",))):
        builder.output(apply(builder, find("tensor.sum"), [half], {}), "total")
    graph = builder.freeze()
    assert [t.name for t in graph.tasks] == ["half/x_collected", "half/x_array", "total/sum"]
    assert [t.where.allow for t in graph.tasks] == [("cpu",), ("cpu",), ("cuda",)]
    (body,) = (t.op.body for t in graph.tasks if isinstance(t.op, Loop))
    assert [(t.name, t.where.allow) for t in body.tasks] == [("take_x", ("cpu",)), ("half/x", ("cpu",))]


def test_an_array_whose_rows_belong_to_the_recipes_rows_is_not_taken_for_a_weight():
    builder = Graph.build()
    x, y = builder.input("x", (11, 3)), builder.input("y", (11, 3))
    out = apply(builder, find("tensor.add"), [batched(x, 4), y], {})
    assert not isinstance(out, LazySequence)
    np.testing.assert_array_equal(interpret(builder.output(out, "out").freeze(), {"x": X, "y": X})["out"], X + X)


def test_two_recipes_of_different_batches_meet():
    builder = Graph.build()
    x, y = builder.input("x", (11, 3)), builder.input("y", (11, 3))
    out = apply(builder, find("tensor.add"), [batched(x, 4), batched(y, 5)], {})
    assert isinstance(out, LazySequence)
    np.testing.assert_array_equal(interpret(builder.output(materialize(builder, out), "out").freeze(), {"x": X, "y": X})["out"], X + X)


def test_standardize_of_batches_streams_both():
    builder = Graph.build()
    x = builder.input("x", (11, 3))
    out = use(builder, "data.standardize", {"train": batched(x, 4), "test": batched(x, 2)})
    assert isinstance(out["train"], LazySequence)
    assert isinstance(out["test"], LazySequence)
    graph = builder.output(materialize(builder, out["train"]), "a").output(materialize(builder, out["test"]), "b").freeze()
    found = interpret(graph, {"x": X})
    np.testing.assert_array_equal(found["a"], found["b"])
    np.testing.assert_array_equal(found["a"], run("data.standardize", {"train": X})["train"])


def test_batch_mistakes():
    builder = Graph.build()
    bounded = builder.input("x", (UpTo(11), 3))
    for x, message in ((bounded, "known before the run"), (builder.input("s", ()), "no rows"), (builder.input("e", (0, 3)), "no rows")):
        with pytest.raises(GraphError, match=message):
            use(builder, "data.batch", {"x": x}, batch=4)
    with pytest.raises(GraphError, match="already"):
        use(builder, "data.batch", {"x": batched(builder.input("y", (11, 3)), 4)}, batch=4)


def test_a_mistake_in_a_stage_names_its_task():
    builder = Graph.build()
    rows = batched(builder.input("x", (11, 3)), 4)
    with pytest.raises(GraphError, match=r"task 'wrong' \(nn\.dense\)"):
        apply(builder, find("nn.dense"), [rows, builder.input("w", (4, 2))], {}, "wrong")
