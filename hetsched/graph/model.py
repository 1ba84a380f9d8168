"""Models as plain data, their parameters, and their forward pass as primitive ops.

`{input: [64], layers: [{dense: {units: 32, activation: relu}}, {dense: {units: 10}}]}`: a layer is a mapping of one key, its kind, to its options,
or the kind alone where every option has a default (`flatten`, `relu`). Shapes are given and kept without the leading axis, the rows of a batch;
images are [channels, rows, columns]. Rows of data of another shape and the same size are taken as the model's input by a view: [n, 64] goes into a
model of input [1, 8, 8].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from hetsched.errors import GraphError, InternalError, did_you_mean
from hetsched.graph.graph import UNKNOWN, Builder, Bundle, Value
from hetsched.graph.op import REQUIRED, Attribute
from hetsched.graph.ops import find
from hetsched.graph.spec import AnySpec, Spec

Path: TypeAlias = tuple[str | int, ...]
Shape: TypeAlias = tuple[int, ...]

MAX_LAYERS = 10_000
# Elements of a parameter and of what a layer gives for one row: far beyond any memory, far below where 64-bit byte counts end.
MAX_ELEMENTS = 1 << 32


class ModelError(GraphError):
    """A description of a model is invalid. `places`: (path inside the description, what is wrong there), every mistake."""

    def __init__(self, places: Iterable[tuple[Path, str]]) -> None:
        self.places: tuple[tuple[Path, str], ...] = tuple(places)
        super().__init__(f"{_path_text(path)}: {problem}" if path else problem for path, problem in self.places)


def _path_text(path: Path) -> str:
    """A path as texts write it: `layers[2].conv2d.filters`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


class Parameter(NamedTuple):
    """A tensor that training changes. `scheme` is an init scheme of `nn.init`."""

    name: str
    shape: Shape
    scheme: str

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layer:
    """One layer with its options filled in; shapes without the rows of a batch."""

    kind: str
    name: str
    options: Mapping[str, Any]
    input: Shape
    output: Shape
    parameters: tuple[Parameter, ...] = ()


@dataclass(frozen=True)
class Model:
    """A checked description. `description` is the plain data it came from."""

    description: Mapping[str, Any]
    input: Shape
    layers: tuple[Layer, ...]
    dtype: np.dtype[Any]

    @property
    def output(self) -> Shape:
        """The shape of what the model gives for one row."""
        return self.layers[-1].output if self.layers else self.input

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Every parameter, in the order of the layers."""
        return tuple(p for layer in self.layers for p in layer.parameters)

    @property
    def head(self) -> str:
        """The kind of the last activation: `softmax` and `log_softmax` are left to the loss, which knows a stabler form."""
        if not self.layers:
            return "none"
        last = self.layers[-1]
        kind = str(last.options.get("activation", "none")) if last.kind != "activation" else str(last.options["function"])
        return kind if kind in HEADS else "none"

    def __repr__(self) -> str:
        return f"<Model {list(self.input)} -> {list(self.output)}: {len(self.layers)} layers, {sum(p.size for p in self.parameters)} parameters>"


# Kinds of layers --------------------------------------------------------------------------------------------------------------

ACTIVATIONS: Mapping[str, str] = {
    "relu": "nn.relu", "sigmoid": "nn.sigmoid", "tanh": "nn.tanh", "softmax": "nn.softmax", "log_softmax": "nn.log_softmax",
}  # fmt: skip
HEADS = ("softmax", "log_softmax")

_ACTIVATION = Attribute(("none", *ACTIVATIONS), "none", "what is applied to the result")
_BIAS = Attribute(bool, True, "add one trained number an output")
_PADDING = Attribute("any", 0, "zeros around an image: a whole number, two, `same` or `valid`")


class Kind(NamedTuple):
    """A kind of layer: its options, and what it makes of an input shape (may raise `GraphError`)."""

    attributes: Mapping[str, Attribute]
    shape: Callable[[str, Shape, Mapping[str, Any]], tuple[Shape, tuple[Parameter, ...]]]


def _scheme(activation: str) -> str:
    return "he_uniform" if activation == "relu" else "glorot_uniform"


def _dense(name: str, shape: Shape, options: Mapping[str, Any]) -> tuple[Shape, tuple[Parameter, ...]]:
    if len(shape) != 1:
        raise GraphError(f"dense wants one flat axis, gets {list(shape)}; put `flatten` before it")
    units = options["units"]
    weight = Parameter(f"{name}.weight", (shape[0], units), _scheme(options["activation"]))
    return (units,), (weight, *([Parameter(f"{name}.bias", (units,), "zeros")] if options["bias"] else []))


def _image(kind: str, shape: Shape) -> Shape:
    if len(shape) != 3:
        raise GraphError(f"{kind} wants images [channels, rows, columns], gets {list(shape)}; give `input` as [1, 8, 8], say")
    return shape


def _conv2d(name: str, shape: Shape, options: Mapping[str, Any]) -> tuple[Shape, tuple[Parameter, ...]]:
    channels, _, _ = _image("conv2d", shape)
    groups, filters = options["groups"], options["filters"]
    if channels % groups or filters % groups:
        raise GraphError(f"conv2d: groups {groups} must divide the {channels} input channels and the {filters} filters")
    kernel = (options["kernel"] * 2)[:2]
    weight = Parameter(f"{name}.weight", (filters, channels // groups, *kernel), _scheme(options["activation"]))
    parameters = (weight, *([Parameter(f"{name}.bias", (filters,), "zeros")] if options["bias"] else []))
    return _shape_of("nn.conv2d", shape, parameters, _conv2d_attributes(options)), parameters


def _conv2d_attributes(options: Mapping[str, Any]) -> dict[str, Any]:
    return {"stride": options["stride"], "padding": options["padding"], "groups": options["groups"]}


def _pool(op: str) -> Callable[[str, Shape, Mapping[str, Any]], tuple[Shape, tuple[Parameter, ...]]]:
    def shape_of(name: str, shape: Shape, options: Mapping[str, Any]) -> tuple[Shape, tuple[Parameter, ...]]:
        return _shape_of(op, _image(op.removeprefix("nn."), shape), (), _pool_attributes(options)), ()

    return shape_of


def _pool_attributes(options: Mapping[str, Any]) -> dict[str, Any]:
    return {"size": options["size"], "stride": options["stride"] or options["size"], "padding": options["padding"]}


def _shape_of(op: str, shape: Shape, parameters: Iterable[Parameter], attributes: Mapping[str, Any]) -> Shape:
    """What an op makes of one row of `shape`: its own shape rule answers."""
    primitive = find(op)
    specs: list[AnySpec] = [Spec((1, *shape)), *(Spec(p.shape) for p in parameters)]
    (out,) = primitive.infer(specs, primitive.check_attributes(attributes))
    assert isinstance(out, Spec)
    return out.bounds[1:]


def _same(name: str, shape: Shape, options: Mapping[str, Any]) -> tuple[Shape, tuple[Parameter, ...]]:
    return shape, ()


def _flatten(name: str, shape: Shape, options: Mapping[str, Any]) -> tuple[Shape, tuple[Parameter, ...]]:
    return (math.prod(shape),), ()


_POOL = {
    "size": Attribute("ints", (2,), "rows and columns of a window", low=1),
    "stride": Attribute("ints", None, "steps of the window; its size where not given", low=1, optional=True),
    "padding": _PADDING,
}
KINDS: Mapping[str, Kind] = {
    "dense": Kind({"units": Attribute(int, doc="outputs", low=1), "activation": _ACTIVATION, "bias": _BIAS}, _dense),
    "conv2d": Kind(
        {
            "filters": Attribute(int, doc="channels of the output", low=1),
            "kernel": Attribute("ints", doc="rows and columns of a filter", low=1),
            "stride": Attribute("ints", (1,), "steps of a filter", low=1),
            "padding": _PADDING,
            "groups": Attribute(int, 1, "groups of channels that do not see each other", low=1),
            "activation": _ACTIVATION,
            "bias": _BIAS,
        },
        _conv2d,
    ),
    "max_pool2d": Kind(_POOL, _pool("nn.max_pool2d")),
    "avg_pool2d": Kind(_POOL, _pool("nn.avg_pool2d")),
    "flatten": Kind({}, _flatten),
    "dropout": Kind({"rate": Attribute(float, doc="the share of numbers set to zero in training", low=0.0, high=1.0)}, _same),
    "activation": Kind({"function": Attribute(tuple(ACTIVATIONS), doc="which one")}, _same),
}


# Reading a description --------------------------------------------------------------------------------------------------------


def parse(description: Any) -> Model:
    """The model that plain data describe; raises `ModelError` with every mistake and its place.

    Keys: `input` (extents of one row), `layers`, and `dtype` (float32, the default, or float64).
    """
    if isinstance(description, Model):
        return description
    if not isinstance(description, Mapping):
        raise ModelError([((), f"a model is a mapping with `input` and `layers`, got {_seen(description)}")])
    problems: list[tuple[Path, str]] = [
        ((str(key),), f"a model has no key {str(key)!r}{did_you_mean(str(key), ('input', 'layers', 'dtype'))}")
        for key in description
        if key not in ("input", "layers", "dtype")
    ]
    problems += [((), f"a model needs {key!r}") for key in ("input", "layers") if key not in description]
    shape, layers, dtype = description.get("input"), description.get("layers"), description.get("dtype", "float32")
    if dtype not in ("float32", "float64"):
        problems.append((("dtype",), f"dtype is float32 or float64, got {_seen(dtype)}"))
    if "input" in description and not _is_shape(shape):
        problems.append((("input",), f"input is a list of whole numbers of at least 1, such as [64] or [1, 8, 8], got {_seen(shape)}"))
    if "layers" in description and (not isinstance(layers, (list, tuple)) or not 0 < len(layers) <= MAX_LAYERS):
        problems.append((("layers",), f"layers is a list of 1 to {MAX_LAYERS} layers, got {_seen(layers)}"))
        layers = None
    extents = tuple(shape) if isinstance(shape, (list, tuple)) and _is_shape(shape) else None
    read = _read_layers(layers or (), extents, problems)
    if problems or extents is None:
        raise ModelError(problems)
    return Model(description, extents, read, np.dtype(dtype))


def _seen(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_shape(shape: Any) -> bool:
    return (
        isinstance(shape, (list, tuple)) and 0 < len(shape) <= 8 and all(type(n) is int and n > 0 for n in shape) and math.prod(shape) <= MAX_ELEMENTS
    )


def _read_layers(layers: Iterable[Any], shape: Shape | None, problems: list[tuple[Path, str]]) -> tuple[Layer, ...]:
    """Every layer that can be read. After a mistake shapes are unknown and only options are checked on."""
    read: list[Layer] = []
    counts: dict[str, int] = {}
    for i, entry in enumerate(layers):
        found = _read_layer(entry, ("layers", i), problems)
        if found is None:
            shape = None
            continue
        kind, options = found
        counts[kind] = counts.get(kind, 0) + 1
        name = f"{kind}{counts[kind]}"
        if shape is None:
            continue
        try:
            output, parameters = KINDS[kind].shape(name, shape, options)
            largest = max(math.prod(output), *(p.size for p in parameters), 0)
            if largest > MAX_ELEMENTS:
                raise GraphError(f"{kind}: {largest} elements in one array are too many (at most {MAX_ELEMENTS})")
        except GraphError as error:
            problems += [(("layers", i), p if p.startswith(kind) else f"{kind}: {p}") for p in error.problems]
            shape = None
            continue
        read.append(Layer(kind, name, options, shape, output, parameters))
        shape = output
    return tuple(read)


def _read_layer(entry: Any, path: Path, problems: list[tuple[Path, str]]) -> tuple[str, Mapping[str, Any]] | None:
    """(kind, options) of one layer, or None where it is wrong."""
    given: Any
    if isinstance(entry, str):
        kind, given = entry, {}
    elif isinstance(entry, Mapping) and len(entry) == 1:
        kind, given = next(iter(entry.items()))
        path = (*path, kind)
    else:
        problems.append((path, f"a layer is its kind, or one kind with its options such as {{dense: {{units: 10}}}}, got {_seen(entry)}"))
        return None
    if kind in ACTIVATIONS:
        kind, given = "activation", {"function": kind}
    elif kind == "activation" and isinstance(given, str):
        given = {"function": given}
    if kind not in KINDS:
        problems.append((path, f"unknown layer {_seen(kind)}{did_you_mean(str(kind), (*KINDS, *ACTIVATIONS))}"))
        return None
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        problems.append((path, f"options of {kind} are a mapping, got {_seen(given)}"))
        return None
    options = _read_options(kind, given, path, problems)
    return None if options is None else (kind, options)


def _read_options(kind: str, given: Mapping[Any, Any], path: Path, problems: list[tuple[Path, str]]) -> Mapping[str, Any] | None:
    attributes, before = KINDS[kind].attributes, len(problems)
    options: dict[str, Any] = {}
    for name in given:
        if name not in attributes:
            problems.append(((*path, name), f"{kind} has no option {str(name)!r}{did_you_mean(str(name), attributes)}"))
    for name, attribute in attributes.items():
        if name not in given and attribute.default is REQUIRED:
            problems.append((path, f"{kind} needs option {name!r} ({attribute.wanted})"))
            continue
        options[name], problem = attribute.check(given.get(name, attribute.default))
        if problem is not None:
            problems.append(((*path, name), f"option {name!r} of {kind}: {problem}"))
        elif attribute.kind == "ints" and options[name] is not None and len(options[name]) > 2:
            problems.append(((*path, name), f"option {name!r} of {kind} wants one number or two (rows, columns), got {_seen(given[name])}"))
    return options if len(problems) == before else None


# Parameters and the forward pass ------------------------------------------------------------------------------------------------


def initial(builder: Builder, model: Model, seed: int) -> Bundle:
    """Fresh parameters: one task each, so that they are made where they are used. Equal seeds and task names give equal bits."""
    values = {
        p.name: builder.op("nn.init", name=f"init/{p.name}", shape=p.shape, scheme=p.scheme, seed=seed, dtype=model.dtype.name)
        for p in model.parameters
    }
    return Bundle(values, "model", meta(model))


def meta(model: Model, **more: Any) -> dict[str, Any]:
    """`Bundle.meta` of a model: `model`, its description; `dtype`; and what else is to be known of it (`loss`)."""
    return {"model": model.description, "dtype": model.dtype.name, **more}


def model_of(bundle: Bundle) -> Model:
    """The model whose parameters a bundle holds; a `GraphError` where it holds others, or no description."""
    if "model" not in bundle.meta:
        raise GraphError(
            f"the {bundle.kind} of {', '.join(bundle) or 'nothing'} holds no description of a model; use what nn.train or model.load gives"
        )
    model = parse(bundle.meta["model"])
    problems = []
    for p in model.parameters:
        wanted = Spec(p.shape, model.dtype)
        if p.name not in bundle:
            problems.append(f"the model lacks its parameter {p.name!r}")
        elif bundle[p.name].spec not in (wanted, UNKNOWN):
            problems.append(f"parameter {p.name!r} is {bundle[p.name].spec!r}, its layer wants {wanted!r}")
    if problems:
        raise GraphError(problems)
    return model


def check_rows(model: Model, spec: Spec, name: str = "x") -> None:
    """An error unless rows of `spec` can go into the model."""
    if math.prod(spec.bounds[1:]) != math.prod(model.input) or len(spec.shape) < 2:
        raise GraphError(f"{name} has rows of {list(spec.bounds[1:])}, the model takes rows of {list(model.input)} or {[math.prod(model.input)]}")


def forward(
    builder: Builder, model: Model, parameters: Mapping[str, Value], x: Value, *, training: bool = False, seed: int = 0, turn: Value | None = None,
    logits: bool = False,
) -> Value:  # fmt: skip
    """What the model gives for rows `x` [n, ...] of its dtype: [n, *model.output].

    training: drop numbers in `dropout` layers, anew on every `turn`. logits: leave out a last `softmax` or `log_softmax`.
    """
    check_rows(model, x.array_spec)
    n = x.shape[0]
    if x.shape[1:] != model.input:
        x = builder.op("tensor.reshape", x, name="as_input", shape=(n, *model.input))
    for i, layer in enumerate(model.layers):
        is_head = logits and i == len(model.layers) - 1 and model.head != "none"
        own = [parameters[p.name] for p in layer.parameters]
        x = _layer(builder, layer, own, x, is_head, training, seed, turn)
    return x


def _layer(builder: Builder, layer: Layer, own: list[Value], x: Value, is_head: bool, training: bool, seed: int, turn: Value | None) -> Value:
    """One layer. `is_head`: its activation is left to the loss."""
    name, options = layer.name, layer.options
    match layer.kind:
        case "dense":
            return _activated(builder, "nn.dense", [x, *own], name, {}, "none" if is_head else options["activation"])
        case "conv2d":
            return _activated(builder, "nn.conv2d", [x, *own], name, _conv2d_attributes(options), "none" if is_head else options["activation"])
        case "max_pool2d" | "avg_pool2d":
            out: Value = builder.op(f"nn.{layer.kind}", x, name=name, **_pool_attributes(options))
        case "flatten":
            out = x if len(x.shape) == 2 else builder.op("tensor.reshape", x, name=name, shape=(x.shape[0], *layer.output))
        case "dropout":
            more = () if turn is None else (turn,)
            out = builder.op("nn.dropout", x, *more, name=name, rate=options["rate"], seed=seed) if training and options["rate"] else x
        case "activation":
            out = x if is_head else _activation(builder, x, name, options["function"])
        case unknown:
            raise InternalError(f"layer {name!r}: no forward pass for kind {unknown!r}")
    return out


def _activated(builder: Builder, op: str, inputs: list[Value], name: str, attributes: Mapping[str, Any], activation: str) -> Value:
    """An op and its activation, in one task where the op can apply it itself."""
    if activation in find(op).attributes["activation"].kind:
        fused: Value = builder.op(op, *inputs, name=name, activation=activation, **attributes)
        return fused
    return _activation(builder, builder.op(op, *inputs, name=name, **attributes), f"{name}_{activation}", activation)


def _activation(builder: Builder, x: Value, name: str, function: str) -> Value:
    # Softmax runs over the features of a row, or the channels of an image.
    options: dict[str, Any] = {"axis": 1} if function in HEADS else {}
    out: Value = builder.op(ACTIVATIONS[function], x, name=name, **options)
    return out
