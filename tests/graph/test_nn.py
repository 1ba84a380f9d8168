import statistics
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from hetsched.errors import GraphError
from hetsched.graph.graph import Bundle, Graph, Loop
from hetsched.graph.model import parse
from hetsched.graph.op import Scene
from hetsched.graph.ops import nn, registry
from hetsched.graph.ops.nn import read_optimizer
from hetsched.graph.sequence import LazySequence, batched
from hetsched.graph.spec import Spec
from hetsched.testing.reference import interpret

DIGITS = str(Path(__file__).parents[2] / "pipelines" / "data" / "digits.npz")
MLP = {"input": [64], "layers": [{"dense": {"units": 32, "activation": "relu"}}, {"dense": {"units": 10}}]}
CNN = {
    "input": [1, 8, 8],
    "layers": [
        {"conv2d": {"filters": 8, "kernel": 3, "padding": "same", "activation": "relu"}},
        {"conv2d": {"filters": 16, "kernel": 3, "padding": "same", "activation": "relu"}},
        {"max_pool2d": {"size": 2}},
        "flatten",
        {"dense": {"units": 10}},
    ],
}
LINEAR = {"input": [3], "dtype": "float64", "layers": [{"dense": {"units": 1}}]}
CLASSES = {"input": [3], "dtype": "float64", "layers": [{"dense": {"units": 4}}, "softmax"]}
SCENE = Scene({"mlp": MLP, "cnn": CNN, "linear": LINEAR, "classes": CLASSES})
RNG = np.random.default_rng(2)
X = RNG.normal(size=(22, 3))
LABELS = RNG.integers(0, 4, 22)


def use(builder, op, inputs, name=None, **options):
    """The outputs of a composite, as a pipeline would use it."""
    composite = registry()[op]
    with builder.scope(name or op.rpartition(".")[2]):
        return composite.expand(builder, inputs, composite.check_attributes(options), SCENE)


def train(x, y, *, batch_by_sequence=0, **options):
    """Model, losses and the graph of a training of arrays."""
    builder = Graph.build()
    inputs = {"x": builder.input("x", x.shape, x.dtype), "y": builder.input("y", y.shape, y.dtype)}
    if batch_by_sequence:
        inputs = {name: batched(v, batch_by_sequence) for name, v in inputs.items()}
    out = use(builder, "nn.train", inputs, **options)
    builder.output(out["model"], "model").output(out["losses"], "losses")
    graph = builder.freeze()
    return interpret(graph, {"x": x, "y": y}), graph


def model_bundle(builder, description, arrays, loss="cross_entropy"):
    values = {name: builder.constant(a, name) for name, a in arrays.items()}
    return Bundle(values, "model", {"model": description, "dtype": "float64", "loss": loss})


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def one_thread():
    """As in a run: on a busy machine a second BLAS thread makes small products a hundred times slower."""
    with threadpool_limits(1, "blas"):
        yield


# Real data --------------------------------------------------------------------------------------------------------------------


def digits(model, seed, *, epochs, batch, lr):
    """Test accuracy on the digits, from the file to the metric; predictions agree with it."""
    builder = Graph.build()
    load = use(builder, "data.npz", {}, "load", path=DIGITS)
    split = use(builder, "data.split", load, test=0.2, seed=seed)
    scale = use(builder, "data.standardize", {"train": split["x_train"], "test": split["x_test"]})
    options = {"model": model, "epochs": epochs, "batch": batch, "seed": seed, "optimizer": {"adam": {"lr": lr}}}
    trained = use(builder, "nn.train", {"x": scale["train"], "y": split["y_train"]}, **options)["model"]
    metrics = use(builder, "nn.evaluate", {"model": trained, "x": scale["test"], "y": split["y_test"]})["metrics"]
    labels = use(builder, "nn.predict", {"model": trained, "x": scale["test"]})["y"]
    builder.output(metrics, "metrics").output(labels, "labels").output(split["y_test"], "truth")
    out = interpret(builder.freeze())
    assert out["metrics/accuracy"] == np.mean(out["labels"] == out["truth"])
    return float(out["metrics/accuracy"])


def test_digits_mlp_reaches_its_accuracy():
    assert statistics.median(digits("mlp", seed, epochs=5, batch=16, lr=1e-2) for seed in range(5)) >= 0.92


def test_digits_cnn_reaches_its_accuracy():
    assert statistics.median(digits("cnn", seed, epochs=5, batch=32, lr=5e-3) for seed in range(3)) >= 0.96


# Training is what it says -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [5, 11, 22, 100])
def test_training_is_plain_gradient_descent_the_smaller_last_batch_included(batch):
    y = X @ [1.0, -2.0, 0.5] + 1
    options = {"model": "linear", "loss": "mse", "optimizer": {"sgd": {"lr": 0.05}}, "epochs": 3, "batch": batch, "shuffle": False, "seed": 4}
    out, graph = train(X, y, **options)
    first, _ = train(X, y, **{**options, "optimizer": {"sgd": {"lr": 0.0}}, "epochs": 1})
    w, b, losses = first["model/dense1.weight"], first["model/dense1.bias"], []
    size = min(batch, 22)
    for _ in range(3):
        for start in range(0, 22, size):
            rows, wanted = X[start : start + size], y[start : start + size, None]
            error = rows @ w + b - wanted
            losses.append(np.mean(error**2))
            w, b = w - 0.05 * 2 * rows.T @ error / len(rows), b - 0.05 * 2 * error.sum(axis=0) / len(rows)
    np.testing.assert_allclose(out["losses"], losses, rtol=1e-9)
    np.testing.assert_allclose(out["model/dense1.weight"], w, rtol=1e-9)
    np.testing.assert_allclose(out["model/dense1.bias"], b, rtol=1e-9)
    (loop,) = (t.op for t in graph.tasks if isinstance(t.op, Loop))
    assert loop.turns == 3 * -(-22 // size)
    assert (loop.remainder is not None) == (22 % size > 0)


def test_an_epoch_uses_every_row_once_in_an_order_of_its_own():
    builder = Graph.build()
    x, y = builder.input("x", (22, 3), np.float64), builder.input("y", (22,), np.int64)
    use(builder, "nn.train", {"x": x, "y": y}, model="classes", batch=5, epochs=3, seed=9)
    (loop,) = (op for op in builder.task_ops if isinstance(op, Loop))
    assert loop.every == {"train/order": 5}
    taken = [interpret_rows(loop, turn) for turn in range(loop.turns)]
    epochs = [np.concatenate(taken[i : i + 5]).tolist() for i in (0, 5, 10)]
    assert all(sorted(rows) == list(range(22)) for rows in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [len(rows) for rows in taken[:5]] == [5, 5, 5, 5, 2]


def interpret_rows(loop, turn):
    """The numbers of the rows that a training loop takes at a turn."""
    body = loop.remainder if loop.is_remainder(turn) else loop.body
    order_task, take = body.task("train/order"), body.task("train/take_y")
    builder = Graph.build()
    epoch_start = builder.constant(np.int64(turn - turn % loop.every["train/order"]))
    order = builder.op(order_task.op, epoch_start, **order_task.attributes)
    rows = builder.op(take.op, builder.constant(np.arange(22)), builder.constant(np.int64(turn)), order, **take.attributes)
    return interpret(builder.output(rows, "rows").freeze())["rows"]


def test_equal_seeds_give_equal_bits_and_names_keep_trainings_apart():
    options = {"model": "classes", "batch": 5, "epochs": 2, "optimizer": "adamw"}
    a, b, c = (train(X, LABELS, seed=seed, **options)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(a["losses"], b["losses"])
    assert not np.array_equal(a["losses"], c["losses"])
    builder = Graph.build()
    x, y = builder.input("x", X.shape, X.dtype), builder.input("y", LABELS.shape, LABELS.dtype)
    for name in ("one", "two"):
        builder.output(use(builder, "nn.train", {"x": x, "y": y}, name, seed=1, **options)["losses"], name)
    out = interpret(builder.freeze(), {"x": X, "y": LABELS})
    assert not np.array_equal(out["one"], out["two"])


@pytest.mark.parametrize("optimizer", ["sgd", {"sgd": {"lr": 0.1, "momentum": 0.9}}, "momentum", {"adam": {"lr": 0.1}}, {"adamw": None}])
def test_every_optimizer_makes_the_loss_smaller(optimizer):
    out, _ = train(X, LABELS, model="classes", batch=22, epochs=20, optimizer=optimizer)
    assert out["losses"][-1] < out["losses"][0]


def test_training_over_batches_that_flow_equals_training_over_arrays():
    options = {"model": "classes", "epochs": 2, "seed": 3}
    array, _ = train(X, LABELS, batch=6, **options)
    flowing, _ = train(X, LABELS, batch_by_sequence=6, **options)
    np.testing.assert_array_equal(array["losses"], flowing["losses"])


def test_stages_between_tasks_run_inside_the_training_loop():
    builder = Graph.build()
    x, y = builder.input("x", (22, 3), np.uint8), builder.input("y", (22,), np.int64)
    rows = use(builder, "data.batch", {"x": x, "y": y}, batch=8)
    scaled = use(builder, "data.normalize", {"x": rows["x"]}, "normalize", scale=0.5, offset=-1.0)["x"]
    assert isinstance(scaled, LazySequence)
    out = use(builder, "nn.train", {"x": scaled, "y": rows["y"]}, model={**CLASSES, "dtype": "float32"}, epochs=2)
    graph = builder.output(out["losses"], "losses").freeze()
    (loop,) = (t.op for t in graph.tasks if isinstance(t.op, Loop))
    names = [t.name for t in loop.body.tasks]
    assert [n for n in names if n.startswith("normalize/")] == ["normalize/float32", "normalize/x_scaled", "normalize/x"]
    assert all(
        s.bounds[:1] != (22,) for s, producer in zip(graph.value_specs, graph.value_task, strict=True) if isinstance(s, Spec) and producer >= 0
    )
    numbers = RNG.integers(0, 9, (22, 3)).astype(np.uint8)
    found = interpret(graph, {"x": numbers, "y": LABELS})["losses"]
    whole, _ = train(numbers.astype(np.float32) * np.float32(0.5) - 1, LABELS, model={**CLASSES, "dtype": "float32"}, epochs=2, batch=8)
    np.testing.assert_array_equal(found, whole["losses"])


def test_training_goes_on_from_a_trained_model():
    builder = Graph.build()
    x, y = builder.input("x", X.shape, X.dtype), builder.input("y", LABELS.shape, LABELS.dtype)
    options = {"epochs": 1, "batch": 22, "shuffle": False, "optimizer": "sgd"}
    first = use(builder, "nn.train", {"x": x, "y": y}, "first", model="classes", **options)
    second = use(builder, "nn.train", {"model": first["model"], "x": x, "y": y}, "second", **options)
    builder.output(first["model"], "m").output(second["losses"], "losses")
    out = interpret(builder.freeze(), {"x": X, "y": LABELS})
    p = softmax(X @ out["m/dense1.weight"] + out["m/dense1.bias"])
    np.testing.assert_allclose(out["losses"], [-np.log(p[np.arange(22), LABELS]).mean()], rtol=1e-12)


# Evaluating and predicting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 4, 22, 256])
def test_metrics_are_exact_over_a_smaller_last_batch(batch):
    w, b = RNG.normal(size=(3, 4)), RNG.normal(size=4)
    builder = Graph.build()
    x, y = builder.input("x", X.shape, X.dtype), builder.input("y", LABELS.shape, LABELS.dtype)
    model = model_bundle(builder, CLASSES, {"dense1.weight": w, "dense1.bias": b})
    metrics = use(builder, "nn.evaluate", {"model": model, "x": x, "y": y}, batch=batch)["metrics"]
    assert list(metrics) == ["loss", "accuracy"]
    for output in ("label", "probabilities", "logits", "value"):
        builder.output(use(builder, "nn.predict", {"model": model, "x": x}, output, output=output, batch=batch)["y"], output)
    out = interpret(builder.output(metrics, "m").freeze(), {"x": X, "y": LABELS})
    p = softmax(X @ w + b)
    assert out["m/accuracy"] == np.mean(p.argmax(axis=1) == LABELS)
    np.testing.assert_allclose(out["m/loss"], -np.log(p[np.arange(22), LABELS]).mean(), rtol=1e-12)
    np.testing.assert_array_equal(out["label"], p.argmax(axis=1))
    np.testing.assert_allclose(out["logits"], X @ w + b)
    np.testing.assert_allclose(out["probabilities"], p)
    np.testing.assert_allclose(out["value"], p)


def test_metrics_of_numbers():
    w, b, y = RNG.normal(size=(3, 1)), RNG.normal(size=1), RNG.normal(size=22)
    builder = Graph.build()
    model = model_bundle(builder, LINEAR, {"dense1.weight": w, "dense1.bias": b}, "mse")
    x, truth = builder.input("x", X.shape, X.dtype), builder.input("y", (22,), np.float64)
    metrics = use(builder, "nn.evaluate", {"model": model, "x": x, "y": truth}, batch=5)["metrics"]
    value = use(builder, "nn.predict", {"model": model, "x": x}, batch=5)["y"]
    out = interpret(builder.output(metrics, "m").output(value, "y").freeze(), {"x": X, "y": y})
    assert list(metrics) == ["loss"]
    np.testing.assert_allclose(out["m/loss"], np.mean((X @ w + b - y[:, None]) ** 2), rtol=1e-12)
    np.testing.assert_allclose(out["y"], X @ w + b)


# Mistakes ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (X, LABELS, {"model": "mpl"}, "did you mean 'mlp'"),
        (X, LABELS, {}, "option 'model' is needed"),
        (X, LABELS, {"model": "mlp"}, r"x has rows of \[3\], the model takes rows of \[64\]"),
        (X, LABELS[:21], {"model": "classes"}, "x has 22, y has 21"),
        (X, X[:, 0], {"model": "classes"}, "y must hold labels"),
        (X, X, {"model": "linear", "loss": "mse"}, "y has 3 numbers a row, the model gives 1"),
        (X, LABELS, {"model": "classes", "optimizer": "adan"}, "did you mean 'adam'"),
        (X, LABELS, {"model": "classes", "optimizer": {"adam": {"rate": 1}}}, "no option 'rate'"),
        (X, LABELS, {"model": "classes", "optimizer": [1]}, "option 'optimizer' wants"),
        (X[:0], LABELS[:0], {"model": "classes"}, "no rows"),
    ],
)
def test_a_wrong_training_says_what_is_wrong(x, y, options, message):
    with pytest.raises(GraphError, match=message):
        train(x, y, **options)


def test_all_mistakes_of_a_training_are_told_at_once():
    with pytest.raises(GraphError) as info:
        train(X, X, model="classes", optimizer="adan", batch=5)
    assert len(info.value.problems) == 2
    with pytest.raises(GraphError) as info:
        train(X[:, :2], LABELS[:3], model="clases", optimizer="adan")
    assert len(info.value.problems) == 3


def test_a_wrong_evaluation_says_what_is_wrong():
    builder = Graph.build()
    x, y = builder.input("x", X.shape, X.dtype), builder.input("y", LABELS.shape, LABELS.dtype)
    model = model_bundle(builder, CLASSES, {"dense1.weight": np.zeros((3, 4)), "dense1.bias": np.zeros(4)})
    for options, message in (({"metrics": ["acuracy"]}, "did you mean 'accuracy'"), ({"metrics": []}, "wants a list")):
        with pytest.raises(GraphError, match=message):
            use(builder, "nn.evaluate", {"model": model, "x": x, "y": y}, **options)
    with pytest.raises(GraphError, match="model must be a model"):
        use(builder, "nn.evaluate", {"model": x, "x": x, "y": y})


def test_another_model_than_the_one_to_go_on_from():
    builder = Graph.build()
    x, y = builder.input("x", X.shape, X.dtype), builder.input("y", LABELS.shape, LABELS.dtype)
    model = model_bundle(builder, CLASSES, {"dense1.weight": np.zeros((3, 4)), "dense1.bias": np.zeros(4)})
    with pytest.raises(GraphError, match="is another model than the input"):
        use(builder, "nn.train", {"model": model, "x": x, "y": y}, model="linear", loss="mse")


def test_optimizers_by_name():
    found, options = read_optimizer({"sgd": {"lr": 0.1, "momentum": 0.5}})
    assert found.op.name == "optim.momentum"
    assert options["momentum"] == 0.5
    assert read_optimizer("adam")[0].slots == ("m", "v")


@pytest.mark.parametrize("optimizer", ["sgd", {"momentum": {"nesterov": True}}, {"adam": {"weight_decay": 0.1}}, "adamw"])
def test_small_parameters_are_updated_together_to_the_same_bits(optimizer, monkeypatch):
    options = {
        "model": {**CLASSES, "layers": [{"dense": {"units": 5}}, "relu", {"dense": {"units": 4}}]},
        "batch": 5,
        "epochs": 2,
        "optimizer": optimizer,
    }
    together, graph = train(X.astype("f4"), LABELS, **options)
    monkeypatch.setattr(nn, "SMALL", 0)
    alone, plain = train(X.astype("f4"), LABELS, **options)
    for name, value in alone.items():
        assert (together[name].shape, together[name].dtype) == (value.shape, value.dtype)
        np.testing.assert_array_equal(together[name], value, err_msg=name)
    assert list(together) == list(alone)
    assert updates(graph) == ["small"]
    assert updates(plain) == ["dense1.weight", "dense1.bias", "dense2.weight", "dense2.bias"]


def updates(graph):
    """The names of what the training loop of a graph updates."""
    (loop,) = (t.op for t in graph.tasks if isinstance(t.op, Loop))
    return [name.removeprefix("train/update/") for name in loop.body.task_names if name.startswith("train/update/")]


def test_large_parameters_and_a_single_small_one_are_updated_by_themselves(monkeypatch):
    options = {"model": "classes", "batch": 22}
    assert updates(train(X, LABELS, **options)[1]) == ["small"]
    monkeypatch.setattr(nn, "SMALL", 11)
    assert updates(train(X, LABELS, **options)[1]) == ["dense1.weight", "dense1.bias"]


def test_losses_that_nobody_asks_for_cost_nothing():
    asked = train(X, LABELS, model="classes", batch=5)[1]
    builder = Graph.build()
    inputs = {"x": builder.input("x", X.shape, X.dtype), "y": builder.input("y", LABELS.shape, LABELS.dtype)}
    graph = builder.output(use(builder, "nn.train", inputs, model="classes", batch=5)["model"], "model").freeze()
    (loop,) = (t.op for t in graph.tasks if isinstance(t.op, Loop))
    (other,) = (t.op for t in asked.tasks if isinstance(t.op, Loop))
    assert set(asked.task_names) - set(graph.task_names) == {"train/losses"}
    for less, more in ((loop.body, other.body), (loop.remainder, other.remainder)):
        assert set(more.task_names) - set(less.task_names) == {"train/loss"}


def test_the_training_step_stays_small():
    """What a step costs is mostly the number of its launches: 784-10-10 with Adam has 15."""
    builder = Graph.build()
    x, y = builder.input("x", (64, 784)), builder.input("y", (64,), np.int64)
    layers = [{"dense": {"units": 10, "activation": "relu"}}, {"dense": {"units": 10}}, "softmax"]
    use(builder, "nn.train", {"x": x, "y": y}, model={"input": [784], "layers": layers}, batch=32)
    (loop,) = (op for op in builder.task_ops if isinstance(op, Loop))
    assert sum(not op.view for op in loop.body.task_ops) <= 15
    assert parse({"input": [784], "layers": layers}).head == "softmax"
