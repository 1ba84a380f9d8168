"""Arrays from files: `data.npy`, `data.npz`, `data.csv`, and `data.batches` of what need not fit in memory. Shapes and dtypes come from headers, or
from one bounded scan, before anything runs.

The tasks that read (`data.npy`, `data.read_npz`, `data.read_csv`, `data.read_rows`) wait on a disk and compute little: they belong on an io lane.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hetsched.errors import GraphError, did_you_mean
from hetsched.graph import formats, table
from hetsched.graph.graph import Builder, Value
from hetsched.graph.op import Attribute, Attributes, Composite, Op, Scene, Work
from hetsched.graph.ops._rules import BATCHES, batches_problems, nbytes
from hetsched.graph.sequence import LazySequence, batched_file
from hetsched.graph.spec import AnySpec, Spec

PATH = Attribute("path", doc="the file, relative to the pipeline's folder")


def _reading_work(inputs: Sequence[AnySpec], outputs: Sequence[AnySpec], a: Attributes) -> Work:
    return Work(0.0, nbytes(outputs), nbytes(outputs))


def _infer_npy(specs: Sequence[AnySpec], a: Attributes) -> list[AnySpec]:
    return [formats.npy_spec(a["path"])]


def _read_npy(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    formats.read_npy(a["path"], outputs[0])


NPY = Op(
    "data.npy",
    (),
    ("array",),
    _infer_npy,
    _reading_work,
    kernels={"host": _read_npy},
    attributes={"path": PATH},
    waits=True,
    doc="The array of an .npy file: booleans, integers or floats in any byte and memory order; pickles are refused.",
)


def _infer_npz_member(specs: Sequence[AnySpec], a: Attributes) -> list[AnySpec]:
    members = formats.npz_members(a["path"])
    if a["member"] in members.refused:
        raise GraphError(members.refused[a["member"]])
    if a["member"] not in members.specs:
        raise GraphError(f"{a['path']} has no member {a['member']!r}{did_you_mean(a['member'], members.specs)}")
    return [members.specs[a["member"]]]


def _read_npz_member(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    formats.read_npz_member(a["path"], a["member"], outputs[0])


READ_NPZ = Op(
    "data.read_npz",
    (),
    ("array",),
    _infer_npz_member,
    _reading_work,
    kernels={"host": _read_npz_member},
    attributes={"path": PATH, "member": Attribute(str, doc="which array")},
    waits=True,
    doc="One array of an .npz file; the checksum is verified. `data.npz` gives all of them.",
)


def _expand_npz(builder: Builder, inputs: Mapping[str, Any], a: Attributes, scene: Scene) -> dict[str, Value]:
    members = formats.npz_members(a["path"])
    wanted = _wanted(a["path"], members, a["members"])
    return {name: builder.op(READ_NPZ, name=name, path=a["path"], member=name) for name in wanted}


def _wanted(path: str, members: formats.Members, asked: Any) -> tuple[str, ...]:
    """The members that the option `members` asks for, all that can be read where it is None; `GraphError` where one cannot, or there is none."""
    wanted = _texts(asked, "members") if asked is not None else tuple(members.specs)
    problems = []
    for name in wanted:
        if name in members.refused:
            problems.append(members.refused[name])
        elif name not in members.specs:
            problems.append(f"{path} has no member {name!r}{did_you_mean(name, members.specs)}")
    if not wanted:
        problems = list(members.refused.values()) or [f"{path} holds no array"]
    if problems:
        raise GraphError(problems)
    return wanted


def _texts(value: Any, option: str) -> tuple[str, ...]:
    values = (value,) if isinstance(value, str) else value
    if not isinstance(values, (list, tuple)) or not all(isinstance(v, str) for v in values) or len(set(values)) != len(values):
        raise GraphError(f"option {option!r} wants a list of different names, got {value!r}")
    return tuple(values)


NPZ = Composite(
    "data.npz",
    (),
    ("members*",),
    _expand_npz,
    attributes={"path": PATH, "members": Attribute("any", None, "names of the arrays to read; all where not given", optional=True)},
    doc="""The arrays of an .npz file; outputs are called as they are called in the file. Only headers are read before the run.

    Members that are no plain arrays (pickles, texts) are left out unless they are asked for, which is an error.""",
)


def _infer_rows(specs: Sequence[AnySpec], a: Attributes) -> list[AnySpec]:
    array = formats.stored_rows(a["path"], a["member"]).header.spec
    batches_problems(array.bounds[0], "the file", specs, a)
    return [Spec((a["count"], *array.shape[1:]), array.dtype)]


def _read_rows(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    start = int(inputs[0]) % a["cycle"] * a["batch"]
    wanted = range(start, start + a["count"])
    formats.read_rows(a["path"], a["member"], wanted if len(inputs) == 1 else inputs[1][wanted.start : wanted.stop], outputs[0])


READ_ROWS = Op(
    "data.read_rows",
    ("turn", "order?"),
    ("rows",),
    _infer_rows,
    _reading_work,
    kernels={"host": _read_rows},
    attributes={
        "path": PATH,
        "member": Attribute(str, "", "which array of an .npz file; nothing for an .npy file"),
        **BATCHES,
    },
    waits=True,
    doc="""The rows of batch number turn % cycle of an array in a file: what `data.batch_rows` gives of the array itself.

    turn int64 [], order int64 [n], a permutation of the row numbers.""",
)


def _expand_batches(builder: Builder, inputs: Mapping[str, Any], a: Attributes, scene: Scene) -> dict[str, LazySequence]:
    path, batch = a["path"], a["batch"]
    if formats.is_zip(path):
        members = formats.npz_members(path)
        wanted = _wanted(path, members, a["members"])
    else:
        if a["members"] is not None:
            raise GraphError(f"option 'members' is for .npz files; {path} is none")
        wanted = ("",)
    problems: list[str] = []
    found: dict[str, Spec] = {}
    for member in wanted:
        try:
            spec = formats.stored_rows(path, member).header.spec
            if not spec.size:
                raise GraphError(f"{path}{f': member {member!r}' if member else ''}: {spec!r} has no rows to read")
            found[member] = spec
        except GraphError as error:
            problems += error.problems
    if problems:
        raise GraphError(problems)
    return {member or "array": batched_file(builder, path, member, spec, batch, member or "array") for member, spec in found.items()}


BATCHED = Composite(
    "data.batches",
    (),
    ("members*",),
    _expand_batches,
    attributes={
        "path": PATH,
        "batch": Attribute(int, doc="rows of a batch; the last one may be smaller", low=1),
        "members": Attribute("any", None, "names of the arrays of an .npz file; all where not given", optional=True),
    },
    doc="""Batches of rows of the array in an .npy file (output `array`), or of the arrays in an .npz file (called as they are called there).

    They are read one by one inside the loop that takes them (`nn.train`, `nn.evaluate`, `nn.predict`), while others are worked at: a file may be
    larger than memory. Ops that work row by row go on with batches, as after `data.batch`; what needs all rows at once (`data.split`,
    `data.standardize`) reads the file whole. An .npz file must not be packed
    (`numpy.savez`, not `savez_compressed`).""",
)


def _infer_csv(specs: Sequence[AnySpec], a: Attributes) -> list[AnySpec]:
    rows, out = a["rows"], []
    if a["columns"]:
        out.append(Spec((rows, len(a["columns"])), a["dtype"]))
    if a["label"] >= 0:
        out.append(Spec((rows,), a["label_dtype"]))
    return list(out)


def _read_csv(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    x = outputs[0] if a["columns"] else None
    y = outputs[-1] if a["label"] >= 0 else None
    label = a["label"] if a["label"] >= 0 else None
    table.read_columns(a["path"], a["delimiter"], a["header"], a["columns"], label, a["labels"], x, y)


def _csv_work(inputs: Sequence[AnySpec], outputs: Sequence[AnySpec], a: Attributes) -> Work:
    # A number takes about 8 bytes of text, and parsing it as long as some 500 floating-point operations.
    items = sum(s.size for s in outputs if isinstance(s, Spec))
    return Work(500.0 * items, 8.0 * items, nbytes(outputs))


READ_CSV = Op(
    "data.read_csv",
    (),
    ("arrays*",),
    _infer_csv,
    _csv_work,
    kernels={"host": _read_csv},
    attributes={
        "path": PATH,
        "delimiter": Attribute(str, ",", "the character between fields"),
        "header": Attribute(bool, True, "the first record holds names"),
        "columns": Attribute("ints", (), "positions of the columns of x; no x where empty", low=0),
        "label": Attribute(int, -1, "position of the label column; none where -1", low=-1),
        "labels": Attribute("any", (), "distinct texts of the label column, in the order of their numbers"),
        "rows": Attribute(int, doc="records without the header", low=0),
        "dtype": Attribute(("float32", "float64", "int32", "int64"), "float32", "of x"),
        "label_dtype": Attribute(("int64", "float64"), "int64", "of y"),
    },
    waits=True,
    doc="Columns of a table whose size is known: x [rows, columns], y [rows], in this order, each where asked for. `data.csv` finds the size.",
)


def _expand_csv(builder: Builder, inputs: Mapping[str, Any], a: Attributes, scene: Scene) -> dict[str, Value]:
    path, delimiter, header = a["path"], a["delimiter"], a["header"]
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise GraphError(f"option 'delimiter' wants one character that is no quote or line end, got {delimiter!r}")
    names = table.column_names(path, delimiter, header)
    label = None if a["label"] is None else table.find_column(path, names, a["label"])
    if a["columns"] is None:
        columns = tuple(c for c in range(len(names)) if c != label)
    else:
        given = a["columns"] if isinstance(a["columns"], (list, tuple)) else (a["columns"],)
        columns = tuple(table.find_column(path, names, c) for c in given)
    if not columns and label is None:
        raise GraphError(f"{path}: no column is asked for; give `columns` or `label`")
    found = table.scan(path, delimiter, header, label)
    label_dtype = "int64" if found.label_dtype is None else found.label_dtype.name
    labels = found.labels
    if a["labels"] is not None:
        labels = _numbering(path, None if label is None else names[label], found.labels, _texts(a["labels"], "labels"))
    values = builder.op(
        READ_CSV, name="read", path=path, delimiter=delimiter, header=header, columns=columns, rows=found.rows, dtype=a["dtype"],
        label=-1 if label is None else label, labels=labels, label_dtype=label_dtype,
    )  # fmt: skip
    return dict(zip([*(["x"] if columns else []), *(["y"] if label is not None else [])], values, strict=True))


def _numbering(path: str, column: str | None, found: tuple[str, ...], given: tuple[str, ...]) -> tuple[str, ...]:
    """`given`, if it numbers every text `found` in the label column."""
    if column is None:
        raise GraphError(f"{path}: option 'labels' numbers the texts of the label column; name it with `label`")
    if not found:
        raise GraphError(f"{path}: column {column!r} holds numbers, which are labels as they are; option 'labels' is for texts")
    unknown = [text for text in found if text not in given]
    if unknown:
        more = " ..." if len(unknown) > 5 else ""
        raise GraphError(f"{path}: column {column!r} has labels that 'labels' does not number: {', '.join(map(repr, unknown[:5]))}{more}")
    return given


CSV = Composite(
    "data.csv",
    (),
    ("x", "y?"),
    _expand_csv,
    attributes={
        "path": PATH,
        "columns": Attribute("any", None, "columns of x by name or number; all but the label where not given", optional=True),
        "label": Attribute("any", None, "the column of y by name or number (-1 is the last); no y where not given", optional=True),
        "labels": Attribute("any", None, "texts of the label column in the order of their numbers; sorted where not given", optional=True),
        "header": Attribute(bool, True, "the first record holds the columns' names"),
        "delimiter": Attribute(str, ",", "the character between fields"),
        "dtype": Attribute(("float32", "float64", "int32", "int64"), "float32", "of x"),
    },
    doc="""Numbers of a CSV file (RFC 4180, UTF-8): x [rows, columns], and y [rows] of the label column.

    Whole numbers as labels become int64, other numbers float64, texts the numbers 0, 1, ... of their sorted order in this file, or of their order in
    `labels`: give that wherever two files must agree (of a training and a test set one may lack a class). The file is scanned once before the run
    (at most 1 GiB) so that shapes are exact.""",
)
