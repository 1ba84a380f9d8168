import json

import numpy as np
import pytest

from hetsched.errors import FileError, GraphError
from hetsched.graph import formats
from hetsched.graph.graph import Bundle, Graph
from hetsched.graph.model import ModelError, Parameter, check_rows, forward, initial, meta, model_of, parse
from hetsched.graph.op import Scene
from hetsched.graph.ops import registry
from hetsched.graph.ops.model import meta_of, metadata_of, write_model
from hetsched.graph.spec import Spec
from hetsched.testing.reference import interpret

MLP = {"input": [64], "layers": [{"dense": {"units": 32, "activation": "relu"}}, {"dense": {"units": 10}}]}
CNN = {
    "input": [1, 8, 8],
    "layers": [
        {"conv2d": {"filters": 8, "kernel": 3, "padding": "same", "activation": "relu"}},
        {"conv2d": {"filters": 4, "kernel": [3, 1], "stride": 2, "groups": 2, "bias": False}},
        "tanh",
        {"max_pool2d": {"size": 2}},
        {"avg_pool2d": {"size": [1, 2], "stride": 1}},
        "flatten",
        {"dropout": {"rate": 0.5}},
        {"dense": {"units": 5, "activation": "sigmoid"}},
        {"activation": "softmax"},
    ],
}


def test_parameters_of_a_description():
    assert parse(MLP).parameters == (
        Parameter("dense1.weight", (64, 32), "he_uniform"),
        Parameter("dense1.bias", (32,), "zeros"),
        Parameter("dense2.weight", (32, 10), "glorot_uniform"),
        Parameter("dense2.bias", (10,), "zeros"),
    )


def test_shapes_of_layers():
    model = parse(CNN)
    assert [layer.output for layer in model.layers] == [(8, 8, 8), (4, 3, 4), (4, 3, 4), (4, 1, 2), (4, 1, 1), (4,), (4,), (5,), (5,)]
    assert model.parameters[2] == Parameter("conv2d2.weight", (4, 4, 3, 1), "glorot_uniform")
    assert model.output == (5,)
    assert model.head == "softmax"


@pytest.mark.parametrize(
    ("description", "places"),
    [
        (3, {(): "a model is a mapping"}),
        ({}, {(): "needs"}),
        ({**MLP, "inputs": 1}, {("inputs",): "did you mean 'input'"}),
        ({**MLP, "input": [0]}, {("input",): "got [0]"}),
        ({**MLP, "input": [True]}, {("input",): "got [True]"}),
        ({**MLP, "input": [1 << 31, 1 << 31]}, {("input",): "whole numbers"}),
        ({**MLP, "layers": [{"dense": {"units": 1 << 40}}]}, {("layers", 0): "too many"}),
        ({**MLP, "dtype": "int8"}, {("dtype",): "float32 or float64"}),
        ({**MLP, "layers": []}, {("layers",): "1 to"}),
        ({**MLP, "layers": "dense"}, {("layers",): "1 to"}),
        ({**MLP, "layers": ["dens"]}, {("layers", 0): "did you mean 'dense'"}),
        ({**MLP, "layers": [{"dense": {}, "relu": {}}]}, {("layers", 0): "a layer is"}),
        ({**MLP, "layers": [{"dense": 3}]}, {("layers", 0, "dense"): "a mapping, got 3"}),
        ({**MLP, "layers": ["dense"]}, {("layers", 0): "needs option 'units'"}),
        ({**MLP, "layers": [{"dense": {"units": 0}}]}, {("layers", 0, "dense", "units"): "at least 1"}),
        ({**MLP, "layers": [{"dense": {"unit": 3, "units": 3}}]}, {("layers", 0, "dense", "unit"): "did you mean 'units'"}),
        ({**MLP, "layers": [{"dense": {"units": 3, "activation": "relo"}}]}, {("layers", 0, "dense", "activation"): "did you mean 'relu'"}),
        ({**MLP, "layers": [{"conv2d": {"filters": 2, "kernel": 3}}]}, {("layers", 0): "wants images"}),
        ({**MLP, "layers": [{"dropout": {"rate": 2}}]}, {("layers", 0, "dropout", "rate"): "from 0 to 1"}),
        ({**MLP, "layers": [{"activation": {"function": "relo"}}]}, {("layers", 0, "activation", "function"): "did you mean 'relu'"}),
        ({"input": [1, 8, 8], "layers": [{"dense": {"units": 3}}]}, {("layers", 0): "put `flatten` before it"}),
        ({"input": [1, 8, 8], "layers": [{"conv2d": {"filters": 2, "kernel": 9}}]}, {("layers", 0): "conv2d: 8 columns"}),
        ({"input": [3, 8, 8], "layers": [{"conv2d": {"filters": 2, "kernel": 3, "groups": 2}}]}, {("layers", 0): "groups 2 must divide"}),
        ({"input": [1, 8, 8], "layers": [{"conv2d": {"filters": 2, "kernel": [1, 2, 3]}}]}, {("layers", 0, "conv2d", "kernel"): "one number or two"}),
    ],
)
def test_a_mistake_has_its_place(description, places):
    with pytest.raises(ModelError) as info:
        parse(description)
    found = dict(info.value.places)
    assert list(found) == list(places)
    for path, problem in places.items():
        assert problem in found[path]


def test_all_mistakes_are_told_at_once():
    layers = [{"dense": {"units": -1}}, "relo", {"dense": {"units": 3, "bias": 1}}, {"conv2d": {"kernel": 3}}]
    with pytest.raises(ModelError) as info:
        parse({"input": [4], "layers": layers, "x": 1})
    assert [path for path, _ in info.value.places] == [
        ("x",), ("layers", 0, "dense", "units"), ("layers", 1), ("layers", 2, "dense", "bias"), ("layers", 3, "conv2d"),
    ]  # fmt: skip
    assert "layers[2].dense.bias: option 'bias'" in str(info.value)


def parameters(builder, model, rng):
    return {p.name: builder.constant(rng.normal(size=p.shape).astype(model.dtype), p.name) for p in model.parameters}


def test_forward_of_dense_layers_is_numpys():
    model, rng = (
        parse({"input": [4], "dtype": "float64", "layers": [{"dense": {"units": 3, "activation": "tanh"}}, {"dense": {"units": 2, "bias": False}}]}),
        np.random.default_rng(0),
    )
    builder = Graph.build()
    own = parameters(builder, model, rng)
    x = rng.normal(size=(5, 4))
    graph = builder.output(forward(builder, model, own, builder.input("x", (5, 4), np.float64)), "y").freeze()
    w1, b1, w2 = (builder.constants[v.id] for v in own.values())
    np.testing.assert_allclose(interpret(graph, {"x": x})["y"], np.tanh(x @ w1 + b1) @ w2)


def test_images_are_taken_from_flat_rows_and_dropout_only_acts_in_training():
    model, rng = parse(CNN), np.random.default_rng(0)
    builder = Graph.build()
    own = parameters(builder, model, rng)
    flat = builder.input("x", (6, 64))
    y = forward(builder, model, own, flat)
    again = forward(builder, model, own, builder.op("tensor.reshape", flat, shape=(6, 1, 8, 8)))
    dropped = forward(builder, model, own, flat, training=True, seed=1)
    logits = forward(builder, model, own, flat, logits=True)
    graph = builder.output(y, "y").output(again, "again").output(dropped, "dropped").output(logits, "logits").freeze()
    out = interpret(graph, {"x": rng.normal(size=(6, 64)).astype(np.float32)})
    np.testing.assert_allclose(out["y"].sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(out["y"], out["again"])
    assert not np.array_equal(out["y"], out["dropped"])
    np.testing.assert_allclose(out["y"], np.exp(out["logits"]) / np.exp(out["logits"]).sum(axis=1, keepdims=True), rtol=1e-5)


def test_rows_that_do_not_fit_the_model():
    with pytest.raises(GraphError, match=r"x has rows of \[63\], the model takes rows of \[1, 8, 8\] or \[64\]"):
        check_rows(parse(CNN), Spec((5, 63)))


def test_initial_parameters_depend_on_seed_and_name_only():
    def values(seed, scope):
        builder = Graph.build()
        with builder.scope(scope):
            builder.output(initial(builder, parse(MLP), seed), "m")
        return interpret(builder.freeze())

    a, b, c, d = values(1, "a"), values(1, "a"), values(2, "a"), values(1, "b")
    np.testing.assert_array_equal(a["m/dense1.weight"], b["m/dense1.weight"])
    assert not np.array_equal(a["m/dense1.weight"], c["m/dense1.weight"])
    assert not np.array_equal(a["m/dense1.weight"], d["m/dense1.weight"])
    assert 0.9 < np.abs(a["m/dense1.weight"]).max() / np.sqrt(6 / 64) <= 1
    assert not a["m/dense1.bias"].any()


def test_a_bundle_of_other_parameters_is_no_model():
    builder = Graph.build()
    bundle = Bundle({"dense1.weight": builder.input("w", (2, 2))}, "model", meta(parse(MLP)))
    with pytest.raises(GraphError) as info:
        model_of(bundle)
    assert len(info.value.problems) == 4
    with pytest.raises(GraphError, match="no description"):
        model_of(Bundle({}, "model"))


# Files ------------------------------------------------------------------------------------------------------------------------


def saved(tmp_path, name="m.safetensors", **more):
    model, rng = parse(MLP), np.random.default_rng(0)
    arrays = {p.name: rng.normal(size=p.shape).astype(np.float32) for p in model.parameters}
    path = str(tmp_path / name)
    write_model(path, arrays, meta(model, **more))
    return path, arrays


def load(builder, path):
    return registry()["model.load"].expand(builder, {}, {"path": path}, Scene())["model"]


def test_a_saved_model_comes_back_with_its_description(tmp_path):
    path, arrays = saved(tmp_path, loss="mse")
    builder = Graph.build()
    bundle = load(builder, path)
    assert dict(bundle.meta) == {"model": MLP, "dtype": "float32", "loss": "mse"}
    assert model_of(bundle).parameters == parse(MLP).parameters
    out = interpret(builder.output(bundle, "m").freeze())
    for name, array in arrays.items():
        np.testing.assert_array_equal(out[f"m/{name}"], array)


def test_meta_goes_through_texts():
    about = meta(parse(CNN), loss="mse")
    assert meta_of(metadata_of(about), "m") == json.loads(json.dumps(about))


def test_model_save_writes_what_write_model_writes(tmp_path):
    path, _ = saved(tmp_path)
    builder = Graph.build()
    copy = str(tmp_path / "copy.safetensors")
    out = registry()["model.save"].expand(builder, {"model": load(builder, path)}, {"path": copy}, Scene())
    nbytes = interpret(builder.output(out["nbytes"], "n").freeze())["n"]
    assert (tmp_path / "copy.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()
    assert nbytes == (tmp_path / "copy.safetensors").stat().st_size


def test_a_file_without_description_is_a_bundle_of_tensors(tmp_path):
    path = str(tmp_path / "t.safetensors")
    formats.write_safetensors(path, {"b": np.ones(2), "a": np.zeros(3, np.int8)}, {})
    bundle = load(Graph.build(), path)
    assert list(bundle) == ["a", "b"]
    assert not bundle.meta


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"model": "{"}, "layout is None"),
        ({"hetsched": "2", "model": "{}"}, "layout is '2'"),
        ({"hetsched": "1", "model": "{"}, "damaged"),
        ({"hetsched": "1", "model": "[" * 100_000}, "damaged"),
        ({"hetsched": "1", "model": "{}"}, "needs 'input'"),
        ({"hetsched": "1", "model": json.dumps(MLP)}, "dense1.weight is 'missing'"),
    ],
)
def test_a_file_with_a_wrong_description(tmp_path, metadata, message):
    path = str(tmp_path / "m.safetensors")
    formats.write_safetensors(path, {"a": np.ones(2)}, metadata)
    with pytest.raises(FileError, match=message):
        load(Graph.build(), path)
