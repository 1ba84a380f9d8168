"""Writing a run's outputs: each file appears complete under its name, or not at all.

The form follows the extension: `.safetensors` a model or any bundle of arrays, `.npz` a bundle or an array, `.npy` an array, `.json` metrics
and small arrays, `.csv` rows of one array or of a bundle of columns. Numbers are written so that reading them gives the same bits.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from hetsched.errors import FileError, HetschedError
from hetsched.graph.formats import A_FOLDER, publishing, write_safetensors
from hetsched.graph.spec import AnySpec, Spec
from hetsched.pipeline.mistakes import hint

FORMS = (".safetensors", ".json", ".csv", ".npz", ".npy")
MAX_JSON_ELEMENTS = 100_000

Arrays = Mapping[str, NDArray[Any]]


# What fits what ---------------------------------------------------------------------------------------------------------------


def form_problem(form: str, specs: Mapping[str, AnySpec], is_bundle: bool, kind: str) -> str | None:
    """Why a value of `specs` (by part; one part where it is no bundle) cannot be saved in `form`, or None. `kind` names the value."""
    if form not in FORMS:
        return f"files of extension {form or '(none)'!r} are not written{hint(form, FORMS)}"
    opaque = [f"{name} ({spec!r})" for name, spec in specs.items() if not isinstance(spec, Spec)]
    if opaque:
        return f"{', '.join(opaque)} is no array and cannot be saved; choose another output"
    arrays = {name: spec for name, spec in specs.items() if isinstance(spec, Spec)}
    seen = f"it is a {kind}" if is_bundle else f"it is {next(iter(arrays.values()))!r}"
    if form == ".npy" and is_bundle:
        return f".npy holds one array and {seen}; save it as .npz or .safetensors"
    if form == ".safetensors" and not is_bundle:
        return f".safetensors holds a model and {seen}; save it as .npy, .npz or .csv"
    if form == ".json" and (kind == "model" or sum(s.size for s in arrays.values()) > MAX_JSON_ELEMENTS):
        return f".json holds metrics and arrays of at most {MAX_JSON_ELEMENTS:,} elements and {seen}; save it as .safetensors or .npz"
    if form == ".csv":
        rows = {s.shape[:1] for s in arrays.values()}
        if any(not 1 <= s.ndim <= 2 for s in arrays.values()) or len(rows) != 1:
            return f".csv holds rows: arrays of one or two axes and equally many rows, and {seen}; save it as .json or .npz"
    return None


# Encoding ---------------------------------------------------------------------------------------------------------------------


def to_json(value: Any) -> Any:
    """A value as JSON knows it: arrays as nested lists; NaN and infinities, which JSON lacks, as null and "Infinity", "-Infinity"."""
    if isinstance(value, Mapping):
        return {str(name): to_json(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(part) for part in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return to_json(_shortest(value))
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _shortest(array: NDArray[Any] | np.generic) -> Any:
    """Python numbers of an array, each with the fewest digits that give back the same bits in the array's own dtype."""
    array = np.asarray(array)
    if array.dtype.kind == "f" and array.dtype.itemsize < 8:
        texts = [float(str(x)) for x in array.reshape(-1)]
        return np.asarray(texts, dtype=np.float64).reshape(array.shape).tolist()
    return array.tolist()


def csv_columns(arrays: Arrays) -> tuple[list[str], list[NDArray[Any]]]:
    """(header, columns) of a table: a matrix called `x` gives columns x0, x1, ..."""
    names, columns = [], []
    for name, array in arrays.items():
        if array.ndim == 1:
            names.append(name)
            columns.append(array)
        else:
            names += [f"{name}{i}" for i in range(array.shape[1])]
            columns += list(array.T)
    return names, columns


def csv_text(arrays: Arrays) -> str:
    """The table of 1-D and 2-D arrays of equally many rows, as RFC 4180 with a header; line ends are LF."""
    names, columns = csv_columns(arrays)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(zip(*([str(x) for x in column] for column in columns), strict=True))
    return out.getvalue()


def _write_npz(stream: IO[bytes], arrays: Arrays) -> None:
    """An npz as `numpy.savez` writes it, but with a fixed date, so that equal arrays give equal bytes."""
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)


# Writing ----------------------------------------------------------------------------------------------------------------------


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Turn whatever goes wrong while writing `path` into a `FileError` that names it."""
    try:
        yield
    except HetschedError:
        raise
    except (OSError, zipfile.LargeZipFile) as error:
        raise FileError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from error


def unwritable(path: str) -> str | None:
    """Why `path` cannot be written, as far as that can be known without writing; None where it can."""
    folder = os.path.abspath(path)
    if os.path.isdir(folder):
        return A_FOLDER
    while not os.path.exists(folder := os.path.dirname(folder)):
        pass  # what is missing is made
    if not os.path.isdir(folder):
        return f"{folder} is a file, not a folder; remove it, or choose another place"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"nothing can be made in {folder}; choose another place (-o DIR), or change its permissions"
    return None


def write(path: str, value: Any, *, name: str = "value", metadata: Mapping[str, str] | None = None) -> None:
    """Write a value, an array or a mapping of arrays, to `path`, in the form of its extension. `FileError` names the path.

    name: what an array is called in .npz and .csv. metadata: texts that travel in a .safetensors file.
    """
    if os.path.isdir(path):
        raise FileError(f"{path}: cannot be written: {A_FOLDER}")
    form = os.path.splitext(path)[1]
    arrays = {k: np.asarray(v) for k, v in value.items()} if isinstance(value, Mapping) else {name: np.asarray(value)}
    if form not in FORMS:
        raise FileError(f"{path}: files of extension {form!r} are not written{hint(form, FORMS)}")
    with _naming(path):
        if form == ".safetensors":
            write_safetensors(path, arrays, metadata or {})
            return
        with publishing(path) as stream:
            if form == ".json":
                data = to_json(value if isinstance(value, Mapping) else np.asarray(value))
                stream.write((json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode("utf-8"))
            elif form == ".csv":
                stream.write(csv_text(arrays).encode("utf-8"))
            elif form == ".npz":
                _write_npz(stream, arrays)
            else:
                np.lib.format.write_array(stream, arrays[name], allow_pickle=False)
