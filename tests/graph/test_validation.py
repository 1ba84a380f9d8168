"""Training with rows that are held out: validation, early stopping and the best weights, beside a plain loop in NumPy."""

from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import hetsched as hs
from hetsched.errors import GraphError
from hetsched.graph.graph import Graph
from hetsched.graph.model import initial, parse
from hetsched.graph.op import Scene
from hetsched.graph.ops import registry
from hetsched.graph.sequence import batched
from hetsched.testing import opencl
from hetsched.testing.reference import interpret

DEVICES = ["cpu", pytest.param("opencl:0", marks=pytest.mark.skipif(not opencl.available(), reason="no OpenCL device works here"))]
MLP = {"input": [64], "dtype": "float64", "layers": [{"dense": {"units": 16, "activation": "relu"}}, {"dense": {"units": 10}}]}
LINEAR = {"input": [5], "dtype": "float64", "layers": [{"dense": {"units": 1}}]}
SCENE = Scene({"mlp": MLP, "linear": LINEAR, "noisy": {**MLP, "layers": [MLP["layers"][0], {"dropout": {"rate": 0.3}}, MLP["layers"][1]]}})

with np.load(Path(__file__).parents[2] / "pipelines" / "data" / "digits.npz") as stored:
    X, Y = stored["x"].reshape(-1, 64) / 16, stored["y"].astype(np.int64)
DIGITS = {"x": X[:150], "y": Y[:150], "x_val": X[150:220], "y_val": Y[150:220]}
RNG = np.random.default_rng(4)
ROWS = RNG.normal(size=(40, 5))
LINE = {"x": ROWS[:26], "y": ROWS[:26] @ RNG.normal(size=(5, 1)), "x_val": ROWS[26:], "y_val": RNG.normal(size=(14, 1))}


@pytest.fixture(autouse=True)
def one_thread():
    with threadpool_limits(1, "blas"):
        yield


def expanded(builder, inputs, **options):
    composite = registry()["nn.train"]
    with builder.scope("train"):
        return composite.expand(builder, inputs, composite.check_attributes({"seed": 5, **options}), SCENE)


def graph(data, *, in_batches=0, **options):
    builder = Graph.build()
    inputs = {name: builder.input(name, v.shape, v.dtype) for name, v in data.items()}
    if in_batches:
        inputs |= {name: batched(inputs[name], in_batches) for name in ("x_val", "y_val")}
    for name, value in expanded(builder, inputs, **options).items():
        builder.output(value, name)
    return builder.freeze()


def run(data, device="cpu", **options):
    return dict(hs.run(graph(data, **options), data, only=device, learn=False))


def first_weights(model):
    """What `nn.train` begins with, for the seed of these tests."""
    builder = Graph.build()
    with builder.scope("train"):
        builder.output(initial(builder, parse(SCENE.models[model]), 5), "w")
    return [np.asarray(v, np.float64) for v in interpret(builder.freeze()).values()]


# A plain loop -----------------------------------------------------------------------------------------------------------------


def of_digits(weights, x, y):
    """Mean cross entropy, accuracy and the gradients of the two layers, by hand."""
    w1, b1, w2, b2 = weights
    hidden = np.maximum(x @ w1 + b1, 0)
    z = hidden @ w2 + b2
    e = np.exp(z - z.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    rows = np.arange(len(x))
    d = p.copy()
    d[rows, y] -= 1
    d /= len(x)
    dh = (d @ w2.T) * (hidden > 0)
    return -np.log(p[rows, y]).mean(), np.mean(z.argmax(axis=1) == y), [x.T @ dh, dh.sum(0), hidden.T @ d, d.sum(0)]


def of_line(weights, x, y):
    w, b = weights
    off = x @ w + b - y
    return np.mean(off**2), None, [x.T @ off * 2 / off.size, off.sum(0) * 2 / off.size]


def plain_loop(data, weights, measure, *, epochs, batch, lr, every=1, patience=None, min_delta=0.0, monitor="loss", best=False):
    """Gradient descent without shuffling; the rule of early stopping as Keras has it."""
    losses, history, kept, best_value, best_epoch, waited = [], [], weights, np.inf, 0, 0
    for epoch in range(1, epochs + 1):
        for at in range(0, len(data["x"]), batch):
            loss, _, gradients = measure(weights, data["x"][at : at + batch], data["y"][at : at + batch])
            losses.append(loss)
            weights = [w - lr * g for w, g in zip(weights, gradients, strict=True)]
        if epoch % every:
            continue
        loss, accuracy, _ = measure(weights, data["x_val"], data["y_val"])
        history.append((loss, accuracy))
        value = loss if monitor == "loss" else -accuracy
        if value + min_delta < best_value:
            best_value, best_epoch, kept, waited = value, epoch, weights, 0
        else:
            waited += 1
            if patience is not None and waited >= patience:
                break
    return {"losses": losses, "history": history, "epochs": epoch, "best_epoch": best_epoch, "weights": kept if best else weights}


CASES = {
    "every epoch": (DIGITS, "mlp", {"epochs": 6, "batch": 32, "lr": 0.3}),
    "every second epoch": (DIGITS, "mlp", {"epochs": 6, "batch": 50, "lr": 0.3, "every": 2}),
    "patience": (DIGITS, "mlp", {"epochs": 40, "batch": 32, "lr": 0.3, "patience": 2, "min_delta": 0.05}),
    "best accuracy": (DIGITS, "mlp", {"epochs": 40, "batch": 32, "lr": 0.5, "patience": 3, "monitor": "accuracy", "best": True}),
    "best of all epochs": (LINE, "linear", {"epochs": 40, "batch": 8, "lr": 0.05, "best": True}),
    "squares": (LINE, "linear", {"epochs": 60, "batch": 8, "lr": 0.05, "every": 3, "patience": 2, "best": True}),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES)
def test_it_gives_what_a_plain_loop_gives(case, device):
    data, model, options = CASES[case]
    measure = of_digits if model == "mlp" else of_line
    wanted = plain_loop(data, first_weights(model), measure, **options)
    if "patience" in options:
        assert wanted["epochs"] < options["epochs"], "the case is to stop early"
    if options.get("best"):
        assert wanted["best_epoch"] < wanted["epochs"], "the best weights are to be others than the last"
    names = {"every": "validate_every", "best": "restore_best_weights"}
    given = {names.get(name, name): value for name, value in options.items() if name != "lr"}
    loss = "cross_entropy" if model == "mlp" else "mse"
    out = run(data, device, model=model, loss=loss, optimizer={"sgd": {"lr": options["lr"]}}, shuffle=False, **given)

    looks = len(wanted["history"])
    np.testing.assert_allclose(out["history/val_loss"], [loss for loss, _ in wanted["history"]], rtol=1e-8)
    assert out["history/val_loss"].shape == (looks,)
    if model == "mlp":
        np.testing.assert_allclose(out["history/val_accuracy"], [accuracy for _, accuracy in wanted["history"]], rtol=1e-12)
    assert (int(out["history/epochs"]), int(out["history/best_epoch"])) == (wanted["epochs"], wanted["best_epoch"])
    np.testing.assert_allclose(np.ravel(out["losses"]), wanted["losses"], rtol=1e-8)
    assert out["losses"].shape == ((looks, len(wanted["losses"]) // looks) if "patience" in options else (len(wanted["losses"]),))
    found = [v for name, v in out.items() if name.startswith("model/")]
    for a, b in zip(found, wanted["weights"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"validate_every": 2}, {"in_batches": 32}])
def test_the_steps_are_those_of_training_without(options):
    """Orders, dropout and the optimizer's turns count on through the epochs: the same bits."""
    how = {"model": "noisy", "epochs": 4, "batch": 40, "optimizer": "adam"}
    plain, out = run({name: DIGITS[name] for name in ("x", "y")}, **how), run(DIGITS, **how, **options)
    assert len(plain) == 5
    for name, value in plain.items():
        assert np.array_equal(out[name], value), name


def test_a_training_goes_on_from_a_model_and_its_best_look_is_what_evaluate_gives():
    builder = Graph.build()
    inputs = {name: builder.input(name, v.shape, v.dtype) for name, v in DIGITS.items()}
    first = expanded(builder, {name: inputs[name] for name in ("x", "y")}, model="mlp", epochs=2)
    second = expanded(
        builder, {"model": first["model"], **inputs}, epochs=30, patience=3, optimizer={"adam": {"lr": 0.05}}, restore_best_weights=True
    )
    evaluate = registry()["nn.evaluate"]
    rows = {"model": second["model"], "x": inputs["x_val"], "y": inputs["y_val"]}
    builder.output(evaluate.expand(builder, rows, evaluate.check_attributes({}), SCENE)["metrics"], "metrics")
    out = hs.run(builder.output(second["history"], "history").freeze(), DIGITS, only="cpu", learn=False)
    assert 0 < out["history/best_epoch"] < out["history/epochs"] < 30
    assert out["history/best_val_loss"] == out["history/val_loss"].min() == out["metrics/loss"]


def test_the_interpreter_of_graphs_agrees():
    how = {"model": "mlp", "epochs": 20, "patience": 1, "min_delta": 0.2, "optimizer": {"sgd": {"lr": 0.3}}, "batch": 32}
    wanted, out = interpret(graph(DIGITS, **how), DIGITS), run(DIGITS, **how)
    assert wanted.keys() == out.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(out[name], value, rtol=1e-9, err_msg=name)


def test_losses_that_are_not_numbers_are_no_improvement():
    data = {**DIGITS, "x_val": np.full_like(DIGITS["x_val"], np.nan)}
    out = run(data, model="mlp", epochs=9, patience=2, restore_best_weights=True)
    assert (int(out["history/epochs"]), int(out["history/best_epoch"])) == (2, 0)
    assert np.isnan(out["history/val_loss"]).all()


@pytest.mark.parametrize(
    ("without", "options", "message"),
    [
        (("x_val", "y_val"), {"patience": 2, "monitor": "loss"}, "option 'patience' needs rows that are held out: give the inputs x_val and y_val"),
        (("x_val", "y_val"), {"restore_best_weights": True}, "option 'restore_best_weights' needs rows"),
        (("y_val",), {}, "validation needs both x_val and y_val, there is only x_val"),
        ((), {"validate_every": 4, "epochs": 10}, "option 'validate_every': 10 epochs are no multiple of 4"),
        ((), {"monitor": "accuracy", "loss": "mse"}, "option 'monitor': accuracy is of labels; the loss mse has none"),
        ((), {"patience": 0}, "wants a whole number of at least 1, got 0"),
        ((), {"min_delta": -1.0}, "wants a number of at least 0, got -1.0"),
        ((), {"monitor": "accuracyy"}, "did you mean 'accuracy'"),
    ],
)
def test_mistakes(without, options, message):
    builder = Graph.build()
    inputs = {name: builder.input(name, v.shape, v.dtype) for name, v in DIGITS.items() if name not in without}
    with pytest.raises(GraphError, match=message):
        expanded(builder, inputs, **{"model": "mlp", **options})


def test_rows_that_do_not_fit_are_named_as_held_out():
    for name, shape, message in (("y_val", (69,), "x has 70, y has 69"), ("x_val", (70, 63), "held-out rows")):
        builder = Graph.build()
        inputs = {n: builder.input(n, shape if n == name else v.shape, v.dtype) for n, v in DIGITS.items()}
        with pytest.raises(GraphError, match=rf"held-out rows \(x_val, y_val\): .*{message if name == 'y_val' else ''}"):
            expanded(builder, inputs, model="mlp")
