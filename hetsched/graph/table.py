"""Tables of text (CSV): a bounded scan that finds rows, columns and the kind of each column; then numbers straight into planned memory.

Dialect: RFC 4180 (quotes doubled inside quotes, line ends LF or CRLF, quoted line breaks), UTF-8 with or without a byte order mark, any
one-character delimiter; blank lines are skipped. Every error names the file, the line and the column.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hetsched.errors import FileError, GraphError, did_you_mean
from hetsched.graph.formats import reading

MAX_SCAN_NBYTES = 1 << 30
MAX_CLASSES = 10_000


@dataclass(frozen=True, slots=True)
class Table:
    """What a scan of a table found. `labels`: the distinct texts of the label column in sorted order; empty where its values are numbers."""

    names: tuple[str, ...]
    rows: int
    label_dtype: np.dtype[Any] | None
    labels: tuple[str, ...]


def records(path: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of every record that is not blank; all records have as many fields as the first."""
    with reading(path, "a CSV file in UTF-8"), open(path, encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        width = None
        try:
            for fields in reader:
                if not fields:
                    continue
                if width is None:
                    width = len(fields)
                elif len(fields) != width:
                    raise FileError(f"{path}:{reader.line_num}: {len(fields)} fields, the first record has {width}")
                yield reader.line_num, fields
        except csv.Error as error:
            raise FileError(f"{path}:{reader.line_num}: {error}") from error


def column_names(path: str, delimiter: str, header: bool) -> tuple[str, ...]:
    """Names of the columns: from the header, else their numbers from 0 as texts."""
    first = next(records(path, delimiter), None)
    if first is None:
        raise FileError(f"{path}: it holds no record")
    names = tuple(name.strip() for name in first[1]) if header else tuple(str(i) for i in range(len(first[1])))
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise FileError(f"{path}:{first[0]}: two columns are called {', '.join(map(repr, twice))}")
    return names


def find_column(path: str, names: tuple[str, ...], wanted: Any) -> int:
    """The position of a column given by name or by number (negative: from the end)."""
    if isinstance(wanted, int) and not isinstance(wanted, bool):
        if -len(names) <= wanted < len(names):
            return wanted % len(names)
        raise GraphError(f"{path} has {len(names)} columns, there is no column {wanted}")
    if wanted not in names:
        raise GraphError(f"{path} has no column {wanted!r}{did_you_mean(str(wanted), names)}")
    return names.index(wanted)


def scan(path: str, delimiter: str, header: bool, label: int | None) -> Table:
    """Count the rows and look at the label column. Reads the whole file once (at most 1 GiB); the answer is kept while the file stays as it is."""
    with reading(path, "a CSV file"):
        state = os.stat(path)
    if state.st_size > MAX_SCAN_NBYTES:
        raise FileError(f"{path}: {state.st_size} bytes are too many to scan (at most {MAX_SCAN_NBYTES}); convert it to .npy or split it")
    return _scan(path, delimiter, header, label, (state.st_mtime_ns, state.st_size, state.st_ino))


@lru_cache(maxsize=64)
def _scan(path: str, delimiter: str, header: bool, label: int | None, version: tuple[int, ...]) -> Table:
    names = column_names(path, delimiter, header)
    rows, texts, numeric, whole = 0, set[str](), True, True
    for _, fields in records(path, delimiter):
        rows += 1
        if label is None or (rows == 1 and header):
            continue
        text = fields[label].strip()
        if text in texts:
            continue
        number = _number(text)
        numeric = numeric and not math.isnan(number)
        whole = whole and number.is_integer() and text.lstrip("+-").isdigit()
        texts.add(text)
        if len(texts) > MAX_CLASSES and not numeric:
            raise FileError(f"{path}: column {names[label]!r} has more than {MAX_CLASSES} different texts; it cannot be a label")
    rows -= header
    if label is None:
        return Table(names, rows, None, ())
    if numeric:
        return Table(names, rows, np.dtype(np.int64 if whole else np.float64), ())
    return Table(names, rows, np.dtype(np.int64), tuple(sorted(texts)))


def _number(text: str) -> float:
    """The finite number that `text` writes in ASCII; NaN where it writes none."""
    try:
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def read_columns(path: str, delimiter: str, header: bool, columns: tuple[int, ...], label: int | None, labels: tuple[str, ...],
                 x: NDArray[Any] | None, y: NDArray[Any] | None) -> None:  # fmt: skip
    """Fill `x` (rows, len(columns)) with numbers and `y` (rows,) with the label column, for a file that `scan` has seen."""
    names = column_names(path, delimiter, header)
    classes = {text: i for i, text in enumerate(labels)}
    rows = len(x) if x is not None else len(y) if y is not None else 0
    row = -1 if header else 0
    for line, fields in records(path, delimiter):
        if row >= rows:
            row += 1
            break
        if row >= 0:
            if x is not None:
                for j, c in enumerate(columns):
                    x[row, j] = _parse(fields[c], x.dtype, path, line, names[c])
            if y is not None and label is not None:
                y[row] = _label(fields[label].strip(), classes, y.dtype, path, line, names[label])
        row += 1
    if row != rows:
        raise FileError(f"{path}: it no longer has the {rows} rows it had when the run was planned; plan again")


def _parse(text: str, dtype: np.dtype[Any], path: str, line: int, column: str) -> float | int:
    text = text.strip()
    value = _number(text)
    if math.isnan(value):
        raise FileError(f"{path}:{line}: column {column!r}: {text[:40]!r} is not a finite number")
    if dtype.kind in "iu":
        if not value.is_integer():
            raise FileError(f"{path}:{line}: column {column!r}: {text[:40]!r} is not a whole number; read the column as float32 or float64")
        whole = int(text) if text.lstrip("+-").isdigit() else int(value)
        if not np.iinfo(dtype).min <= whole <= np.iinfo(dtype).max:
            raise FileError(f"{path}:{line}: column {column!r}: {text[:40]!r} does not fit {dtype}")
        return whole
    if abs(value) > float(np.finfo(dtype).max):
        raise FileError(f"{path}:{line}: column {column!r}: {text[:40]!r} does not fit {dtype}")
    return value


def _label(text: str, classes: dict[str, int], dtype: np.dtype[Any], path: str, line: int, column: str) -> float | int:
    if not classes:
        return _parse(text, dtype, path, line, column)
    if text not in classes:
        raise FileError(f"{path}:{line}: column {column!r}: label {text[:40]!r} was not there when the run was planned; plan again")
    return classes[text]
