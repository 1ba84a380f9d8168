"""Data in rows: splitting, scaling, shuffling, cutting into batches. (Reading it from files: files.py.)

What a pipeline names (`data.split`, `data.standardize`, ...) are composites of primitive ops (`data.batch_rows`, `tensor.gather`, ...), so that each
part is placed by itself. Composites take arrays, and recipes of batches where rows can be handled one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hetsched.errors import GraphError
from hetsched.graph.graph import Builder, Value
from hetsched.graph.op import Attribute, Attributes, Composite, Op, Scene, Work
from hetsched.graph.ops import _cl_data, _cuda_ids, _cuda_small, find
from hetsched.graph.ops._ids import check_ids
from hetsched.graph.ops._rules import BATCHES, arrays, batches_problems, nbytes, per_input
from hetsched.graph.sequence import Data, LazySequence, apply, batched, is_unknown, materialize, row_count, spec_of_rows, unknown
from hetsched.graph.spec import AnySpec, Spec, UpTo
from hetsched.graph.spec import Sequence as SequenceSpec

SEED = Attribute(int, 0, "of the random numbers", low=0)
# Rows handled at once where a kernel needs wider numbers than its input's.
_CHUNK_ROWS = 4096


def _copy_work(inputs: Sequence[AnySpec], outputs: Sequence[AnySpec], a: Attributes) -> Work:
    return Work(0.0, nbytes(outputs), nbytes(outputs))


# Rows -------------------------------------------------------------------------------------------------------------------------


def _rows_of(specs: Sequence[AnySpec], names: Sequence[str]) -> tuple[Spec, int]:
    """The first spec, and its rows."""
    x = arrays(specs, names)[0]
    if not x.shape or isinstance(x.shape[0], UpTo):
        raise GraphError(f"{names[0]} needs a known number of rows, got {x!r}")
    return x, x.shape[0]


def _infer_batch_rows(specs: Sequence[AnySpec], a: Attributes) -> list[AnySpec]:
    x, rows = _rows_of(specs, ("x", "turn", "order"))
    batches_problems(rows, "x", specs[1:], a)
    return [Spec((a["count"], *x.shape[1:]), x.dtype)]


def _batch_rows(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    """About 1 us of overhead on NumPy, then a copy of the rows."""
    x, turn, out = inputs[0], inputs[1], outputs[0]
    if isinstance(turn, np.ndarray):
        start = int(turn) % a["cycle"] * a["batch"]
        stop = start + a["count"]
        if len(inputs) == 2:
            out[...] = x[start:stop]
        else:
            # `clip` writes straight into `out`; nothing is clipped.
            rows = inputs[2][start:stop]
            check_ids(xp, rows, len(x), "order", start)
            x.take(rows, 0, out, "clip")
        return
    # Elsewhere the number of the turn stays on the device: fetching it would wait for everything queued there.
    rows = turn % a["cycle"] * a["batch"] + xp.arange(a["count"])
    out[...] = xp.take(x, rows if len(inputs) == 2 else xp.take(inputs[2], rows, axis=0), axis=0)


def _cuda_batch_rows(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    order = inputs[2] if len(inputs) > 2 else None
    x, turn, out = inputs[0], inputs[1], outputs[0]
    told = _cuda_ids.NOBODY if order is None else _cuda_ids.told(out, order, x.shape[0], "order")
    if not _cuda_small.batch_rows(xp, x, turn, order, out, a["cycle"], a["batch"], told):
        if order is not None:
            _cuda_ids.check_ids(xp, out, order, x.shape[0], "order")
        _batch_rows(xp, inputs, outputs, workspace, a)


BATCH_ROWS = Op(
    "data.batch_rows",
    ("x", "turn", "order?"),
    ("rows",),
    _infer_batch_rows,
    _copy_work,
    kernels={"array": _batch_rows, "opencl": _cl_data.batch_rows, "cuda": _cuda_batch_rows},
    attributes=BATCHES,
    doc="""The rows of batch number turn % cycle: x[s : s + count] with s = (turn % cycle) * batch, or x[order[s : s + count]].

    x [n, ...], turn int64 [], order int64 [n], row numbers, a permutation in `nn.train`; one outside 0 to n - 1 is an error.""",
    calls=3,
)


def _infer_whole(specs: Sequence[AnySpec], a: Attributes) -> list[AnySpec]:
    if not isinstance(specs[0], SequenceSpec):
        raise GraphError(f"sequence must be a sequence, got {specs[0]!r}")
    return [specs[0].array]


def _whole(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    outputs[0][...] = inputs[0]


WHOLE = Op(
    "data.whole",
    ("sequence",),
    ("array",),
    _infer_whole,
    lambda inputs, outputs, a: Work(0.0, 0.0, 0.0),
    kernels={"array": _whole, "opencl": _cl_data.whole},
    view=True,
    doc="The one array that holds a sequence: its rows joined, or its elements stacked along a new leading axis. A view.",
)


def _infer_moments(specs: Sequence[AnySpec], a: Attributes) -> list[AnySpec]:
    x, rows = _rows_of(specs, ("x",))
    if rows == 0:
        raise GraphError(f"x has no rows: {x!r}")
    if x.dtype.kind not in "iuf":
        raise GraphError(f"x must hold numbers, got {x!r}")
    out = Spec((1, *x.shape[1:]), x.dtype if x.dtype.kind == "f" else np.float32)
    return [out, out]


def _moments(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    x, (mean_out, scale_out) = inputs[0], outputs
    chunks = [x[i : i + _CHUNK_ROWS] for i in range(0, x.shape[0], _CHUNK_ROWS)]
    # Two passes in float64: sums of squares minus squared sums would cancel (Chan, Golub, LeVeque 1983).
    mean = sum(xp.sum(c, axis=0, dtype=xp.float64) for c in chunks) / x.shape[0]
    squares = sum(xp.sum((c.astype(xp.float64) - mean) ** 2, axis=0) for c in chunks)
    constant = xp.max(x, axis=0) == xp.min(x, axis=0)
    mean_out[0] = mean
    scale_out[0] = xp.where(constant, 1.0, xp.sqrt(squares / x.shape[0]))


MOMENTS = Op(
    "data.moments",
    ("x",),
    ("mean", "scale"),
    _infer_moments,
    per_input(4.0),
    kernels={"array": _moments, "opencl": _cl_data.moments},
    doc="""Mean and standard deviation (of the population) of every column: x [n, ...] -> mean, scale [1, ...], in x's dtype (float32 for integers).

    Computed in float64. The scale of a constant column is 1, so that dividing by it is harmless.""",
    calls=40,
)


def _infer_extent(specs: Sequence[AnySpec], a: Attributes) -> list[AnySpec]:
    return _infer_moments(specs, a)


def _extent(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    x, (low_out, span_out) = inputs[0], outputs
    low = xp.min(x, axis=0).astype(xp.float64)
    span = xp.max(x, axis=0).astype(xp.float64) - low
    low_out[0] = low
    span_out[0] = xp.where(span == 0, 1.0, span)


EXTENT = Op(
    "data.extent",
    ("x",),
    ("low", "span"),
    _infer_extent,
    per_input(2.0),
    kernels={"array": _extent, "opencl": _cl_data.extent},
    doc="Smallest number of every column and the way to its largest (1 for a constant column): x [n, ...] -> low, span [1, ...].",
    calls=17,
)


# Composites -------------------------------------------------------------------------------------------------------------------


def _same_rows(inputs: Mapping[str, Any]) -> int | None:
    """The common number of rows of the inputs; None where one of them is unknown. An error where they differ."""
    if any(is_unknown(x) for x in inputs.values()):
        return None
    counts = {name: row_count(x) for name, x in inputs.items()}
    if len(set(counts.values())) > 1:
        raise GraphError("inputs must have equally many rows: " + ", ".join(f"{name} has {n}" for name, n in counts.items()))
    return next(iter(counts.values()))


def rows_for_test(share: Any, rows: int) -> int:
    """Rows of the test set for the option `test`: a share between 0 and 1, or a number of rows. At least one row stays on either side."""
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not math.isfinite(share):
        raise GraphError(f"option 'test' wants a share between 0 and 1 or a number of rows, got {share!r}")
    if isinstance(share, float) and not 0 < share < 1:
        raise GraphError(f"option 'test' wants a share between 0 and 1 (exclusive) or a whole number of rows, got {share!r}")
    if rows < 2:
        raise GraphError(f"{rows} row cannot be split in two")
    count = share if isinstance(share, int) else min(max(round(share * rows), 1), rows - 1)
    if not 0 < count < rows:
        raise GraphError(f"option 'test': {count} of {rows} rows leave nothing for one side; give 1 to {rows - 1}")
    return count


def _permutation(builder: Builder, rows: int, seed: int) -> Value:
    value: Value = builder.op("random.permutation", name="order", n=rows, seed=seed)
    return value


def _infer_stratified(specs: Sequence[AnySpec], a: Attributes) -> list[AnySpec]:
    labels, rows = _rows_of(specs, ("labels", "order"))
    problems = []
    if labels.ndim != 1 or labels.dtype.kind not in "iub":
        problems.append(f"labels must be whole numbers, one a row, got {labels!r}")
    if specs[1] != Spec((rows,), np.int64):
        problems.append(f"order must be int64[{rows}], got {specs[1]!r}")
    if not 0 < a["test"] < rows:
        problems.append(f"test must be 1 to {rows - 1}, got {a['test']}")
    if problems:
        raise GraphError(problems)
    return [Spec((rows,), np.int64)]


def _stratified(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    labels, order, out = *inputs, outputs[0]
    check_ids(np, order, len(labels), "order")
    shuffled = labels[order]
    by_class = np.argsort(shuffled, kind="stable")
    counts = np.unique(shuffled, return_counts=True)[1]
    # Largest remainders (Hamilton's method): whole rows for every class that add up to the rows of the test set.
    shares = counts * (a["test"] / len(labels))
    test = np.floor(shares).astype(np.int64)
    most = np.argsort(-(shares - test), kind="stable")[: a["test"] - int(test.sum())]
    test[most] += 1
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    is_test = np.empty(len(labels), np.bool_)
    is_test[by_class] = rank < np.repeat(test, counts)
    out[: len(labels) - a["test"]] = order[~is_test]
    out[len(labels) - a["test"] :] = order[is_test]


STRATIFIED = Op(
    "data.stratified",
    ("labels", "order"),
    ("order",),
    _infer_stratified,
    per_input(30.0),
    kernels={"host": _stratified},
    attributes={"test": Attribute(int, doc="rows of the test set", low=1)},
    doc="""`order` arranged anew so that its last `test` rows have every label in its share of all rows, to within one row.

    labels [n] of an integer dtype, order int64 [n], a permutation; within the two parts the order stays.""",
)


def _expand_split(builder: Builder, inputs: Mapping[str, Any], a: Attributes, scene: Scene) -> dict[str, Value]:
    rows = _same_rows(inputs)
    names = [f"{name}_{part}" for name in inputs for part in ("train", "test")]
    if rows is None:
        return {name: unknown(builder, name) for name in names}
    test = rows_for_test(a["test"], rows)
    if a["stratify"] and not a["shuffle"]:
        raise GraphError("option 'stratify' wants 'shuffle': true")
    if a["stratify"] and "y" not in inputs:
        raise GraphError("option 'stratify' needs the input 'y', the labels")
    whole = {name: materialize(builder, x) for name, x in inputs.items()}
    out: dict[str, Value] = {}
    if not a["shuffle"]:
        for name, x in whole.items():
            out[f"{name}_train"] = _leading_rows(builder, x, 0, rows - test, f"{name}_train")
            out[f"{name}_test"] = _leading_rows(builder, x, rows - test, rows, f"{name}_test")
        return out
    order = _permutation(builder, rows, a["seed"])
    if a["stratify"]:
        order = builder.op(STRATIFIED, whole["y"], order, name="stratified", test=test)
    train = _leading_rows(builder, order, 0, rows - test, "train_rows")
    rest = _leading_rows(builder, order, rows - test, rows, "test_rows")
    for name, x in whole.items():
        out[f"{name}_train"] = builder.op("tensor.gather", x, train, name=f"{name}_train")
        out[f"{name}_test"] = builder.op("tensor.gather", x, rest, name=f"{name}_test")
    return out


def _leading_rows(builder: Builder, x: Value, start: int, stop: int, name: str) -> Value:
    """Rows `start` to `stop` - 1 of an array: a view."""
    value: Value = builder.op("tensor.rows", x, name=name, start=start, stop=stop)
    return value


SPLIT = Composite(
    "data.split",
    ("x", "y?"),
    ("x_train", "x_test", "y_train?", "y_test?"),
    _expand_split,
    attributes={
        "test": Attribute("any", 0.2, "rows of the test set: a share between 0 and 1, or their number"),
        "seed": SEED,
        "shuffle": Attribute(bool, True, "draw the test rows at random; otherwise they are the last ones"),
        "stratify": Attribute(bool, False, "give every label of y the same share in both parts"),
    },
    doc="Rows in two parts, the same rows of x and y. x, y: equally many rows, of any shape and dtype.",
)


def _expand_shuffle(builder: Builder, inputs: Mapping[str, Any], a: Attributes, scene: Scene) -> dict[str, Value]:
    rows = _same_rows(inputs)
    if rows is None:
        return {name: unknown(builder, name) for name in inputs}
    order = _permutation(builder, rows, a["seed"])
    return {name: builder.op("tensor.gather", materialize(builder, x), order, name=name) for name, x in inputs.items()}


SHUFFLE = Composite(
    "data.shuffle",
    ("x", "y?"),
    ("x", "y?"),
    _expand_shuffle,
    attributes={"seed": SEED},
    doc="Rows in random order, the same for x and y. (`nn.train` shuffles by itself, anew in every epoch.)",
)


def _expand_batch(builder: Builder, inputs: Mapping[str, Any], a: Attributes, scene: Scene) -> dict[str, Any]:
    if _same_rows(inputs) is None:
        return dict(inputs)
    if any(isinstance(x, LazySequence) for x in inputs.values()):
        raise GraphError("the input is a sequence of batches already")
    return {name: x if is_unknown(x) else batched(x, a["batch"]) for name, x in inputs.items()}


BATCH = Composite(
    "data.batch",
    ("x", "y?"),
    ("x", "y?"),
    _expand_batch,
    attributes={"batch": Attribute(int, doc="rows of a batch; the last one may be smaller", low=1)},
    doc="""A sequence of batches of rows. Row-wise ops then work batch by batch inside the loop that consumes it (`nn.train`, `nn.predict`), so that
    no array between them is ever whole. Costs nothing by itself.""",
)


# Scaling ----------------------------------------------------------------------------------------------------------------------


def _apply(builder: Builder, op: str, inputs: Iterable[Data], name: str | None = None, **attributes: Any) -> Any:
    return apply(builder, find(op), list(inputs), attributes, name)


def as_float(builder: Builder, x: Data, dtype: Any = np.float32) -> Data:
    """Rows of numbers or booleans as `dtype`."""
    spec = spec_of_rows(x)
    if spec.dtype.kind not in "biuf":
        raise GraphError(f"numbers are wanted, got {spec!r}")
    wanted = np.dtype(dtype)
    cast: Data = x if spec.dtype == wanted else _apply(builder, "tensor.cast", [x], wanted.name, dtype=wanted.name)
    return cast


def _floating(builder: Builder, x: Data) -> Data:
    return x if spec_of_rows(x).dtype.kind == "f" else as_float(builder, x)


def _fitted(builder: Builder, op: Op, x: Data) -> tuple[Value, Value]:
    pair: tuple[Value, Value] = builder.op(op, materialize(builder, x), name=op.name.rpartition(".")[2])
    return pair


def _rescaled(builder: Builder, x: Data, shift: Value, scale: Value, name: str) -> Data:
    moved = _apply(builder, "tensor.sub", [x, shift], f"{name}_shifted")
    out: Data = _apply(builder, "tensor.div", [moved, scale], name)
    return out


def _check_columns(inputs: Mapping[str, Any], dtype: bool = True) -> None:
    """An error unless all inputs have rows of one shape."""
    shapes = {name: spec_of_rows(x).shape[1:] for name, x in inputs.items()}
    if len(set(shapes.values())) > 1:
        raise GraphError("rows must have one shape: " + ", ".join(f"those of {name} are {list(s)}" for name, s in shapes.items()))


def _expand_standardize(builder: Builder, inputs: Mapping[str, Any], a: Attributes, scene: Scene) -> dict[str, Any]:
    if any(is_unknown(x) for x in inputs.values()):
        return {name: unknown(builder, name) for name in (*inputs, "mean", "scale")}
    _check_columns(inputs)
    train = _floating(builder, inputs["train"])
    mean, scale = _fitted(builder, MOMENTS, train)
    out: dict[str, Any] = {"train": _rescaled(builder, train, mean, scale, "train")}
    if "test" in inputs:
        out["test"] = _rescaled(builder, as_float(builder, inputs["test"], mean.dtype), mean, scale, "test")
    return {**out, "mean": mean, "scale": scale}


STANDARDIZE = Composite(
    "data.standardize",
    ("train", "test?"),
    ("train", "test?", "mean", "scale"),
    _expand_standardize,
    doc="""(x - mean) / scale with mean and standard deviation of every column of `train`, applied to both. Constant columns become 0.

    train, test [n, ...] of any numbers; floats stay what they are, others become float32. mean, scale [1, ...]: save them, and `data.rescale` does
    the same to new rows.""",
)


def _expand_rescale(builder: Builder, inputs: Mapping[str, Any], a: Attributes, scene: Scene) -> dict[str, Any]:
    if any(is_unknown(x) for x in inputs.values()):
        return {"x": unknown(builder, "x")}
    mean, scale = (materialize(builder, inputs[name]) for name in ("mean", "scale"))
    if mean.dtype.kind != "f" or mean.spec != scale.spec:
        raise GraphError(f"mean and scale must be floats of one shape and dtype, got {mean.spec!r} and {scale.spec!r}")
    return {"x": _rescaled(builder, as_float(builder, inputs["x"], mean.dtype), mean, scale, "x")}


RESCALE = Composite(
    "data.rescale",
    ("x", "mean", "scale"),
    ("x",),
    _expand_rescale,
    doc="(x - mean) / scale: what `data.standardize` did to its data, done to new rows. x becomes the dtype of mean and scale.",
)


def _expand_normalize(builder: Builder, inputs: Mapping[str, Any], a: Attributes, scene: Scene) -> dict[str, Any]:
    if any(is_unknown(x) for x in inputs.values()):
        return {name: unknown(builder, name) for name in inputs}
    by_range, by_numbers = a["range"] is not None, a["scale"] is not None or a["offset"] is not None
    if by_range == by_numbers:
        raise GraphError("give either 'scale' and 'offset' (x * scale + offset) or 'range' (where the numbers of x are to lie, [0, 1] say)")
    x = _floating(builder, inputs["x"])
    if by_numbers:
        others = {name: _floating(builder, v) for name, v in inputs.items() if name != "x"}
        ready = {"x": x, **others}
        return {name: _affine(builder, v, 1.0 if a["scale"] is None else a["scale"], a["offset"] or 0.0, name) for name, v in ready.items()}
    _check_columns(inputs)
    low, high = _range(a["range"])
    least, span = _fitted(builder, EXTENT, x)
    out = {}
    for name, v in inputs.items():
        unit = _rescaled(builder, x if name == "x" else as_float(builder, v, least.dtype), least, span, f"{name}_unit")
        out[name] = _affine(builder, unit, high - low, low, name)
    return out


def _range(value: Any) -> tuple[float, float]:
    if not isinstance(value, (list, tuple)) or len(value) != 2 or any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in value):
        raise GraphError(f"option 'range' wants two numbers, such as [0, 1], got {value!r}")
    low, high = float(value[0]), float(value[1])
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise GraphError(f"option 'range' wants a smaller and a larger number, got {value!r}")
    return low, high


def _affine(builder: Builder, x: Data, scale: float, offset: float, name: str) -> Data:
    """x * scale + offset, without the steps that change nothing."""
    if scale != 1.0:
        x = _apply(builder, "tensor.scale", [x], name if offset == 0.0 else f"{name}_scaled", factor=scale)
    if offset != 0.0:
        x = _apply(builder, "tensor.add", [x, builder.constant(np.asarray(offset, spec_of_rows(x).dtype), "offset")], name)
    return x


NORMALIZE = Composite(
    "data.normalize",
    ("x", "test?"),
    ("x", "test?"),
    _expand_normalize,
    attributes={
        "scale": Attribute(float, None, "what x is multiplied by", optional=True),
        "offset": Attribute(float, None, "what is added then", optional=True),
        "range": Attribute("any", None, "where the numbers of every column of x are to lie, such as [0, 1]", optional=True),
    },
    doc="""x * scale + offset, or every column of x moved and stretched into `range`; the same is then done to `test`.

    Constant columns go to the start of the range. x, test [n, ...] of any numbers; floats stay what they are, others become float32.""",
)
