"""Training, evaluating and predicting: composites that expand to one loop of primitive ops each.

The body of the training loop is the model's forward pass, its gradient and the optimizer's updates; parameters and the optimizer's state are carried
from turn to turn. Small parameters lie one behind the other in one carried vector, and one launch updates them all: what an optimizer does to ten
numbers costs 20 calls of the array library and next to no arithmetic. The order of rows is drawn anew by a task that runs once an epoch, so that the
next batches can be fetched while this one is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from hetsched.errors import GraphError, did_you_mean
from hetsched.graph.gradient import pullback
from hetsched.graph.graph import Builder, Bundle, Value
from hetsched.graph.model import Model, Parameter, check_rows, forward, initial, meta, model_of, parse
from hetsched.graph.op import Attribute, Attributes, Composite, Scene
from hetsched.graph.ops.data import as_float
from hetsched.graph.ops.optimizer import Optimizer, optimizer
from hetsched.graph.sequence import Body, Data, LazySequence, is_unknown, loop_over_batches, row_count, spec_of_rows, unknown, whole

T = TypeVar("T")

LOSSES = ("cross_entropy", "mse")
METRICS = ("loss", "accuracy", "cross_entropy", "mse")
TRAIN_BATCH = 32
# Large enough that launching costs little beside computing, small enough that many batches overlap.
EVALUATE_BATCH = 256
# Parameters of at most so many elements are updated together: joining so many costs 1.1 us, a launch of sgd at least 2.8, of adam 6.6.
SMALL = 1 << 14


def _model_input(inputs: Mapping[str, Any]) -> Bundle:
    model = inputs["model"]
    if not isinstance(model, Bundle):
        raise GraphError(f"model must be a model, as nn.train or model.load give it, got {model!r}")
    return model


def _described(a: Attributes, inputs: Mapping[str, Any], scene: Scene) -> Model:
    """The model to train: of the input `model`, or described under `models:`, or both where they agree."""
    found = None
    if a["model"] is not None:
        if isinstance(a["model"], str) and a["model"] not in scene.models:
            raise GraphError(f"option 'model': there is no model {a['model']!r}{did_you_mean(a['model'], scene.models)}")
        found = parse(scene.models[a["model"]] if isinstance(a["model"], str) else a["model"])
    if "model" not in inputs:
        if found is None:
            raise GraphError("option 'model' is needed: the name of a model under `models:` (or give a trained one as input)")
        return found
    given = model_of(_model_input(inputs))
    if found is not None and (found.parameters, found.input, found.dtype) != (given.parameters, given.input, given.dtype):
        raise GraphError(f"option 'model': {found!r} is another model than the input, {given!r}; leave the option out")
    return given if found is None else found


def _batch(a: Attributes, x: Data, default: int) -> int:
    if a["batch"] is not None:
        return int(a["batch"])
    return x.batch if isinstance(x, LazySequence) else default


def _rows(x: Data, y: Data) -> int:
    n, m = row_count(x), row_count(y)
    if n != m:
        raise GraphError(f"x and y must have equally many rows: x has {n}, y has {m}")
    return n


def _targets(builder: Builder, model: Model, loss: str, y: Data) -> Data:
    """`y` as the loss wants it: whole-number labels, or numbers of the model's dtype, as many a row as the model gives."""
    spec = spec_of_rows(y)
    if loss == "mse":
        size, wanted = int(np.prod(spec.bounds[1:])), int(np.prod(model.output))
        if size != wanted:
            raise GraphError(f"y has {size} numbers a row, the model gives {wanted}; both must be equal for the loss mse")
        return as_float(builder, y, model.dtype)
    if len(model.output) != 1:
        raise GraphError(f"loss cross_entropy wants a model that gives one flat axis of classes, it gives {list(model.output)}; put `flatten` last")
    if spec.dtype.kind not in "iu" or len(spec.shape) != 1:
        raise GraphError(f"y must hold labels from 0 to {model.output[0] - 1}, int64 [n], for the loss cross_entropy, got {spec!r}")
    return y


def _like_output(builder: Builder, targets: Value, output: Value) -> Value:
    """Targets in the shape of the model's output, by a view."""
    same: Value = targets if targets.shape == output.shape else builder.op("tensor.reshape", targets, name="as_output", shape=output.shape)
    return same


def _loss(builder: Builder, loss: str, output: Value, targets: Value, reduction: str, name: str) -> Value:
    if loss == "mse":
        targets = _like_output(builder, targets, output)
    value: Value = builder.op(f"nn.{loss}", output, targets, name=name, reduction=reduction)
    return value


def _attempt(problems: list[str], rule: Callable[..., T], *arguments: Any) -> T | None:
    """What `rule` gives; None where it finds mistakes, which are added to `problems`, so that all of a task's are told at once."""
    try:
        return rule(*arguments)
    except GraphError as error:
        problems += error.problems
        return None


def _any_unknown(inputs: Mapping[str, Any]) -> bool:
    flat = [v for x in inputs.values() for v in (x.values() if isinstance(x, Bundle) else [x])]
    return any(is_unknown(v) for v in flat)


# Train ------------------------------------------------------------------------------------------------------------------------


def read_optimizer(value: Any) -> tuple[Optimizer, dict[str, Any]]:
    """The optimizer that plain data name: `adam`, or one name with options, `{adam: {lr: 0.01}}`."""
    if isinstance(value, str):
        return optimizer(value, {})
    if isinstance(value, Mapping) and len(value) == 1:
        name, options = next(iter(value.items()))
        if isinstance(name, str) and (options is None or isinstance(options, Mapping)):
            return optimizer(name, dict(options or {}))
    raise GraphError(f"option 'optimizer' wants a name, or one name with options such as {{adam: {{lr: 0.01}}}}, got {value!r}")


@dataclass(frozen=True)
class _Group:
    """Parameters that are carried and updated as one array: a large one as it is, small ones one behind the other in a vector."""

    name: str
    parameters: tuple[Parameter, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the one array."""
        return self.parameters[0].shape if len(self.parameters) == 1 else (sum(p.size for p in self.parameters),)

    def join(self, builder: Builder, values: Mapping[str, Value], scope: str) -> Value:
        """One array of an array for each parameter."""
        if len(self.parameters) == 1:
            return values[self.parameters[0].name]
        with builder.scope(scope):
            flat = [_reshaped(builder, values[p.name], (-1,), p.name) for p in self.parameters]
            value: Value = builder.op("tensor.concat", *flat, name=self.name)
        return value

    def split(self, builder: Builder, value: Value, scope: str) -> dict[str, Value]:
        """The array of each parameter: views of the one array."""
        if len(self.parameters) == 1:
            return {self.parameters[0].name: value}
        out, start = {}, 0
        with builder.scope(scope):
            for p in self.parameters:
                stop = start + p.size
                rows = builder.op("tensor.rows", value, name=p.name if len(p.shape) == 1 else f"{p.name}_rows", start=start, stop=stop)
                out[p.name], start = _reshaped(builder, rows, p.shape, p.name), stop
        return out


def _reshaped(builder: Builder, value: Value, shape: tuple[int, ...], name: str) -> Value:
    out: Value = value if len(value.shape) == len(shape) else builder.op("tensor.reshape", value, name=name, shape=shape)
    return out


def _groups(model: Model) -> list[_Group]:
    """The parameters of `model` as they are updated: the small ones together, where there are several."""
    small = tuple(p for p in model.parameters if p.size <= SMALL)
    if len(small) < 2:
        small = ()
    return [*(_Group(p.name, (p,)) for p in model.parameters if p not in small), *([_Group("small", small)] if small else [])]


def _expand_train(builder: Builder, inputs: Mapping[str, Any], a: Attributes, scene: Scene) -> dict[str, Any]:
    problems: list[str] = []
    model, chosen = _attempt(problems, _described, a, inputs, scene), _attempt(problems, read_optimizer, a["optimizer"])
    rows = _attempt(problems, _rows, inputs["x"], inputs["y"]) if not _any_unknown(inputs) else 0
    x = y = None
    if model is not None and rows:
        _attempt(problems, check_rows, model, spec_of_rows(inputs["x"]))
        x = _attempt(problems, as_float, builder, inputs["x"], model.dtype)
        y = _attempt(problems, _targets, builder, model, a["loss"], inputs["y"])
    held_out = _attempt(problems, _held_out, builder, inputs, a, model)
    if problems or model is None or chosen is None:
        raise GraphError(problems)
    (update, options), about = chosen, meta(model, loss=a["loss"])
    if x is None or y is None or not rows:
        out = {"model": Bundle({p.name: unknown(builder, p.name) for p in model.parameters}, "model", about), "losses": unknown(builder, "losses")}
        return out if held_out is None else {**out, **held_out.unknown(builder)}
    first = _model_input(inputs) if "model" in inputs else initial(builder, model, a["seed"])
    groups = _groups(model)
    starts = {group.name: group.join(builder, first, "first") for group in groups}
    slots = {
        (group.name, slot): builder.op("tensor.full", name=f"zeros/{group.name}.{slot}", shape=group.shape, value=0.0, dtype=model.dtype.name)
        for group in groups
        for slot in update.slots
    }

    def write(body: Body, turn: Value, firsts: Mapping[str, Value]) -> None:
        """A batch. turn: how many batches there were before it; firsts: what is carried, at first."""
        b = body.builder
        order = None
        if a["shuffle"]:
            order = b.op("random.permutation", turn, name="order", n=rows, seed=a["seed"])
            body.run_every(order, body.cycle)
        x_rows, y_rows = body.take(x, order), body.take(y, order)
        held = {group.name: body.carry(group.name, firsts[group.name]) for group in groups}
        state = {key: body.carry(".".join(key), firsts[".".join(key)]) for key in slots}
        weights = {name: part for group in groups for name, part in group.split(b, held[group.name], "weights").items()}
        output = forward(b, model, weights, x_rows, training=True, seed=a["seed"], turn=turn, logits=a["loss"] == "cross_entropy")
        loss = _loss(b, a["loss"], output, y_rows, "mean", "loss")
        body.collect("loss", loss)
        one = b.constant(np.ones((), loss.dtype), "one")
        with body.at_root():
            found = pullback(b, [loss], [one], list(weights.values()))
        # A model is a chain of layers: every parameter leads to the loss.
        gradients = {name: gradient for name, gradient in zip(weights, found, strict=True) if gradient is not None}
        for group in groups:
            own = [state[group.name, slot] for slot in update.slots]
            gradient = group.join(b, gradients, "gradient")
            given = [held[group.name], gradient, *own, *([turn] if update.turn else [])]
            new = b.op(update.op, *given, name=f"update/{group.name}", **options)
            keys = (group.name, *(f"{group.name}.{slot}" for slot in update.slots))
            for key, value in zip(keys, new if isinstance(new, tuple) else (new,), strict=True):
                body.give(key, value)

    batch, firsts = _batch(a, inputs["x"], TRAIN_BATCH), {**starts, **{".".join(key): zeros for key, zeros in slots.items()}}
    more: dict[str, Any] = {}
    if held_out is None:
        outputs = loop_over_batches(builder, lambda body: write(body, body.turn, firsts), rows=rows, batch=batch, epochs=a["epochs"], name="steps")
        last, losses = outputs, outputs["loss"]
    else:
        training = _Training(write, rows, batch, firsts, tuple(group.name for group in groups))

        def weights_of(builder: Builder, values: Mapping[str, Value]) -> dict[str, Value]:
            parts = {name: part for group in groups for name, part in group.split(builder, values[group.name], "weights").items()}
            return {p.name: parts[p.name] for p in model.parameters}

        last, losses, more = held_out.loop(builder, training, weights_of)
    parts = {name: part for group in groups for name, part in group.split(builder, last[group.name], "trained").items()}
    trained = Bundle({p.name: parts[p.name] for p in model.parameters}, "model", about)
    return {"model": trained, "losses": whole(builder, losses, name="losses"), **more}


# Validation -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Training:
    """How batches are trained on: `write(body, number of the batch, what is carried at first)`. weights: what of that are the model's."""

    write: Callable[[Body, Value, Mapping[str, Value]], None]
    rows: int
    batch: int
    firsts: Mapping[str, Value]
    weights: tuple[str, ...]


@dataclass(frozen=True)
class _HeldOut:
    """Rows that are not trained on, and what is made of them. kinds: metric -> loss or accuracy as `nn.evaluate` has it; every: epochs between."""

    model: Model
    x: Data | None
    targets: Mapping[str, Data]
    kinds: Mapping[str, str]
    rows: int
    batch: int
    epochs: int
    every: int
    patience: int | None
    min_delta: float
    monitor: str
    restores: bool

    def unknown(self, builder: Builder) -> dict[str, Any]:
        """The output `history` where the data are not known yet."""
        return {"history": Bundle({name: unknown(builder, name) for name in self._history()}, "metrics")}

    def _history(self) -> tuple[str, ...]:
        return (*(f"val_{name}" for name in self.kinds), "epochs", "best_epoch", f"best_val_{self.monitor}")

    def loop(
        self, builder: Builder, training: _Training, weights_of: Callable[[Builder, Mapping[str, Value]], dict[str, Value]]
    ) -> tuple[dict[str, Value], Value, dict[str, Any]]:
        """Train and validate in turn: a loop whose turns are `every` epochs and a look at the held-out rows. So batches overlap as ever, and nobody
        waits to know whether there will be a next one but once a turn. Gives the weights, the losses of the batches, and `history`."""
        sign = -1.0 if self.monitor == "accuracy" else 1.0
        first = {"best": np.float64(np.inf), "best_epoch": np.int64(0), "epochs": np.int64(0), "waited": np.int64(0)}
        numbers = {name: builder.constant(value, f"first_{name}") for name, value in first.items() if name != "waited" or self.patience is not None}
        assert self.x is not None
        x = self.x

        def write(body: Body) -> None:
            b = body.builder
            held = {name: body.carry(name, value) for name, value in training.firsts.items()}
            was = {name: body.carry(name, value) for name, value in numbers.items()}
            turns = self.every * -(-training.rows // training.batch)
            before = b.op("tensor.mul", body.turn, b.constant(np.int64(turns), "turns"), name="batches_before")

            def steps(inner: Body) -> None:
                number = inner.builder.op("tensor.add", inner.bind(before), inner.turn, name="batch_number")
                training.write(inner, number, held)

            new = loop_over_batches(b, steps, rows=training.rows, batch=training.batch, epochs=self.every, name="steps", around=body)
            found = _measured(b, self.model, weights_of(b, new), x, self.targets, self.kinds, self.rows, self.batch, around=body)
            value = found[self.monitor] if sign > 0 else b.op("tensor.neg", found[self.monitor], name="monitored")
            reached = value if not self.min_delta else b.op("tensor.add", value, b.constant(np.float64(self.min_delta), "min_delta"), name="reached")
            improved = b.op("tensor.less", reached, was["best"], name="improved")
            epochs = b.op("tensor.add", was["epochs"], b.constant(np.int64(self.every), "every"), name="epochs")
            now = {"best": value, "best_epoch": epochs}
            given = {name: b.op("tensor.where", improved, now[name], was[name], name=name) for name in now} | {"epochs": epochs}
            if self.patience is not None:
                longer = b.op("tensor.add", was["waited"], b.constant(np.int64(1), "one_more"), name="longer")
                given["waited"] = b.op("tensor.where", improved, b.constant(np.int64(0), "none"), longer, name="waited")
                body.stop_if(b.op("tensor.greater_equal", given["waited"], b.constant(np.int64(self.patience), "patience"), name="stop"))
            for name in training.firsts:
                given[name] = new[name]
            if self.restores:
                for name in training.weights:
                    kept = body.carry(f"best.{name}", training.firsts[name])
                    given[f"best.{name}"] = b.op("tensor.where", improved, new[name], kept, name=f"best_weights/{name}")
            for name, result in given.items():
                body.give(name, result)
            for name in self.kinds:
                body.collect(f"val_{name}", found[name])
            every_loss = whole(b, new["loss"], name="epoch_losses")
            body.collect("losses", every_loss, rows=None if self.patience is not None else turns * body.cycle)

        out = loop_over_batches(builder, write, rows=self.epochs // self.every, batch=1, name="epochs")
        best = out["best"] if sign > 0 else builder.op("tensor.neg", out["best"], name="best_accuracy")
        collected = [whole(builder, out[f"val_{name}"], name=f"val_{name}") for name in self.kinds]
        history = dict(zip(self._history(), (*collected, out["epochs"], out["best_epoch"], best), strict=True))
        return (
            {name: out[f"best.{name}" if self.restores else name] for name in training.weights},
            out["losses"],
            {"history": Bundle(history, "metrics")},
        )


_VALIDATING = ("validate_every", "patience", "min_delta", "monitor", "restore_best_weights")


def _held_out(builder: Builder, inputs: Mapping[str, Any], a: Attributes, model: Model | None) -> _HeldOut | None:
    """The rows of the inputs `x_val` and `y_val`, with the options that are about them; None where there are none."""
    given = [name for name in ("x_val", "y_val") if name in inputs]
    if not given:
        asked = [name for name in _VALIDATING if a[name] not in (None, False)]
        if asked:
            raise GraphError([f"option {name!r} needs rows that are held out: give the inputs x_val and y_val" for name in asked])
        return None
    problems: list[str] = []
    if len(given) == 1:
        problems.append(f"validation needs both x_val and y_val, there is only {given[0]}")
    every = a["validate_every"] or 1
    if a["epochs"] % every:
        problems.append(f"option 'validate_every': {a['epochs']} epochs are no multiple of {every}: the last would not be validated; give a divisor")
    if a["monitor"] == "accuracy" and a["loss"] != "cross_entropy":
        problems.append(f"option 'monitor': accuracy is of labels; the loss {a['loss']} has none")
    if problems or model is None:
        raise GraphError(problems)
    kinds = {"loss": a["loss"], **({"accuracy": "cross_entropy"} if a["loss"] == "cross_entropy" else {})}
    x, rows, targets, batch = None, 0, {}, EVALUATE_BATCH
    if not any(is_unknown(inputs[name]) for name in given):
        try:
            rows = _rows(inputs["x_val"], inputs["y_val"])
            if not rows:
                raise GraphError("there are no rows")
            check_rows(model, spec_of_rows(inputs["x_val"]))
            targets = {a["loss"]: _targets(builder, model, a["loss"], inputs["y_val"])}
            x = as_float(builder, inputs["x_val"], model.dtype)
        except GraphError as error:
            raise GraphError([f"held-out rows (x_val, y_val): {p}" for p in error.problems]) from error
        batch = inputs["x_val"].batch if isinstance(inputs["x_val"], LazySequence) else EVALUATE_BATCH
    return _HeldOut(
        model, x, targets, kinds, rows, batch, a["epochs"], every, a["patience"], a["min_delta"] or 0.0, a["monitor"] or "loss",
        a["restore_best_weights"],
    )  # fmt: skip


_BATCH = Attribute(int, None, "rows a turn; that of the sequence where x is one", low=1, optional=True)

TRAIN = Composite(
    "nn.train",
    ("model?", "x", "y", "x_val?", "y_val?"),
    ("model", "losses", "history?"),
    _expand_train,
    attributes={
        "model": Attribute("any", None, "the name of a model under `models:`, or its description", optional=True),
        "loss": Attribute(LOSSES, "cross_entropy", "what is made small; cross_entropy takes logits: a last softmax is left out"),
        "optimizer": Attribute("any", "adam", "a name, or a name with options: {adam: {lr: 0.01}}"),
        "epochs": Attribute(int, 1, "how often every row is used", low=1),
        "batch": _BATCH,
        "seed": Attribute(int, 0, "of first parameters, orders and dropout", low=0),
        "shuffle": Attribute(bool, True, "draw the order of rows anew in every epoch"),
        "validate_every": Attribute(int, None, "epochs between two looks at x_val and y_val; 1 if not given", low=1, optional=True),
        "patience": Attribute(int, None, "stop after so many looks in a row without an improvement", low=1, optional=True),
        "min_delta": Attribute(float, None, "what is no more than this better is no improvement; 0 if not given", low=0, optional=True),
        "monitor": Attribute(("loss", "accuracy"), None, "which metric of the held-out rows has to improve; loss if not given", optional=True),
        "restore_best_weights": Attribute(bool, False, "give the weights of the best look, not the last ones"),
    },
    doc="""Train a model by gradient descent on batches of rows (32 where nothing says otherwise); the smaller last batch of an epoch is used too.

    x [n, ...] of any numbers, rows of the model's input or as many numbers; y [n] labels of an integer dtype for cross_entropy, [n, ...] numbers
    for mse. The input `model` is a trained one to go on from, with fresh optimizer state. Gives `model`, and `losses`: the loss of every batch before
    its update, [epochs * batches].

    With x_val and y_val, rows that are held out, the model is looked at after every epoch (or `validate_every`), and `history` has val_loss and, for
    labels, val_accuracy of every look (float64, as `nn.evaluate` gives them), `epochs` (how many there were), `best_epoch` (from 1; 0: the losses
    are NaN) and the best value. The steps are those of training without. An improvement is val_loss < best - min_delta, val_accuracy > best +
    min_delta. With `patience` the arrays have an entry for each look that there was, and `losses` is
    [looks, batches between two].""",
)


# Evaluate ---------------------------------------------------------------------------------------------------------------------


def _metrics(value: Any) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not names:
        raise GraphError(f"option 'metrics' wants a list of metrics ({', '.join(METRICS)}), got {value!r}")
    problems = [f"option 'metrics': unknown metric {name!r}{did_you_mean(str(name), METRICS)}" for name in names if name not in METRICS]
    if problems:
        raise GraphError(problems)
    return tuple(dict.fromkeys(names))


def _expand_evaluate(builder: Builder, inputs: Mapping[str, Any], a: Attributes, scene: Scene) -> dict[str, Any]:
    bundle = _model_input(inputs)
    model = model_of(bundle)
    problems: list[str] = []
    loss = a["loss"] or str(bundle.meta.get("loss", LOSSES[0]))
    default = ("loss", "accuracy") if loss == "cross_entropy" else ("loss",)
    names = default if a["metrics"] is None else _attempt(problems, _metrics, a["metrics"]) or ()
    kinds = {name: loss if name == "loss" else "cross_entropy" if name == "accuracy" else name for name in names}
    targets: dict[str, Data] = {}
    rows = _attempt(problems, _rows, inputs["x"], inputs["y"]) if not _any_unknown(inputs) else 0
    if rows:
        _attempt(problems, check_rows, model, spec_of_rows(inputs["x"]))
        found = {kind: _attempt(problems, _targets, builder, model, kind, inputs["y"]) for kind in dict.fromkeys(kinds.values())}
        targets = {kind: y for kind, y in found.items() if y is not None}
    if problems:
        raise GraphError(problems)
    if not rows:
        return {"metrics": Bundle({name: unknown(builder, name) for name in names}, "metrics")}
    x = as_float(builder, inputs["x"], model.dtype)
    measured = _measured(builder, model, bundle, x, targets, kinds, rows, _batch(a, inputs["x"], EVALUATE_BATCH))
    return {"metrics": Bundle(measured, "metrics")}


def _measured(
    builder: Builder, model: Model, parameters: Mapping[str, Value], x: Data, targets: Mapping[str, Data], kinds: Mapping[str, str], rows: int,
    batch: int, around: Body | None = None,
) -> dict[str, Value]:  # fmt: skip
    """Metrics over all rows: float64 scalars by name. kinds: name -> what it is; targets: that -> y. around: the body that `builder` writes."""

    def write(body: Body) -> None:
        b = body.builder
        x_rows = body.take(x)
        weights = {name: body.bind(v) for name, v in parameters.items()}
        logits = forward(b, model, weights, x_rows, logits=True)
        # Squared errors are those of the whole model, its last softmax included; cross entropy and accuracy want what comes before.
        output = forward(b, model, weights, x_rows) if "mse" in targets and model.head != "none" else logits
        for name, kind in kinds.items():
            y_rows = body.take(targets[kind])
            if name == "accuracy":
                body.collect(name, b.op("nn.correct", logits, y_rows, name=name))
            else:
                body.collect(name, _loss(b, kind, output if kind == "mse" else logits, y_rows, "sum", name))

    outputs = loop_over_batches(builder, write, rows=rows, batch=batch, name="batches", around=around)
    sizes = {name: rows * (int(np.prod(model.output)) if kind == "mse" else 1) for name, kind in kinds.items()}
    return {name: _mean(builder, outputs[name], sizes[name], name) for name in kinds}


def _mean(builder: Builder, sums: Value, count: int, name: str) -> Value:
    """The sum of a sequence of scalars over `count`, in float64: exact over batches of any sizes."""
    wide = builder.op("tensor.cast", whole(builder, sums, name=f"{name}_sums"), name=f"{name}_wide", dtype="float64")
    total = builder.op("tensor.sum", wide, name=f"{name}_total")
    mean: Value = builder.op("tensor.div", total, builder.constant(np.float64(count), "count"), name=name)
    return mean


EVALUATE = Composite(
    "nn.evaluate",
    ("model", "x", "y"),
    ("metrics",),
    _expand_evaluate,
    attributes={
        "metrics": Attribute("any", None, f"a list of {', '.join(METRICS)}; loss and, for labels, accuracy", optional=True),
        "loss": Attribute(LOSSES, None, "what `loss` means; what the model was trained for if not given", optional=True),
        "batch": _BATCH,
    },
    doc="""Metrics of a model over all rows: float64 scalars in the bundle `metrics`, means over rows (mse: over all numbers), whatever the batches.

    x [n, ...], y [n] labels (accuracy, cross_entropy) or [n, ...] numbers (mse). 256 rows a batch where nothing says otherwise.""",
)


# Predict ----------------------------------------------------------------------------------------------------------------------


def _expand_predict(builder: Builder, inputs: Mapping[str, Any], a: Attributes, scene: Scene) -> dict[str, Any]:
    bundle = _model_input(inputs)
    model = model_of(bundle)
    wanted = a["output"] or ("value" if bundle.meta.get("loss") == "mse" else "label")
    if wanted != "value" and len(model.output) != 1:
        raise GraphError(
            f"option 'output': {wanted} wants a model that gives one flat axis of classes, it gives {list(model.output)}; ask for `value`"
        )
    if _any_unknown(inputs):
        return {"y": unknown(builder, "y")}
    rows = row_count(inputs["x"])
    check_rows(model, spec_of_rows(inputs["x"]))
    x = as_float(builder, inputs["x"], model.dtype)

    def write(body: Body) -> None:
        b = body.builder
        parameters = {name: body.bind(v) for name, v in bundle.items()}
        y = forward(b, model, parameters, body.take(x), logits=wanted != "value")
        if wanted == "label":
            y = b.op("tensor.argmax", y, name="label", axis=1)
        elif wanted == "probabilities":
            y = b.op("nn.softmax", y, name="probabilities", axis=1)
        body.collect("y", y, rows=rows)

    outputs = loop_over_batches(builder, write, rows=rows, batch=_batch(a, inputs["x"], EVALUATE_BATCH), name="batches")
    return {"y": whole(builder, outputs["y"], name="y")}


PREDICT = Composite(
    "nn.predict",
    ("model", "x"),
    ("y",),
    _expand_predict,
    attributes={
        "output": Attribute(
            ("label", "probabilities", "logits", "value"),
            None,
            "the likeliest class, all probabilities, what comes before a last softmax, or what the model gives; label, or value after mse",
            optional=True,
        ),
        "batch": _BATCH,
    },
    doc="""What a model gives for every row of x [n, ...]: y, int64 [n] for labels, else [n, *output] of the model's dtype.

    256 rows a batch where nothing says otherwise.""",
)
