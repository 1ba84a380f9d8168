"""Models as files: `model.load` and `model.save`, in safetensors, with the model's description, so that a file is enough to predict with.

Metadata: `hetsched` (version of this layout, "1"), `model` (the description as JSON), and what training noted (`loss`, `dtype`). Files are written
to a temporary name, synced and renamed; equal models give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hetsched.errors import FileError, GraphError, did_you_mean
from hetsched.graph import formats
from hetsched.graph.graph import Builder, Bundle, Value
from hetsched.graph.model import ModelError, parse
from hetsched.graph.op import Attribute, Attributes, Composite, Op, Scene, Work
from hetsched.graph.ops._rules import arrays, nbytes
from hetsched.graph.spec import AnySpec, Spec

LAYOUT = "1"
_PATH = Attribute("path", doc="the file, relative to the pipeline's folder")


def write_model(path: str, arrays: Mapping[str, Any], meta: Mapping[str, Any]) -> int:
    """Write a model's arrays and its `Bundle.meta` (plain data) to a safetensors file; returns the bytes written.

    Temporary file, fsync, rename: `path` holds the old file or the whole new one. Raises `FileError`.
    """
    return formats.write_safetensors(path, arrays, metadata_of(meta))


def metadata_of(meta: Mapping[str, Any]) -> dict[str, str]:
    """The texts that stand for `meta` in a file's metadata: texts as they are, other plain data as JSON."""
    texts = {key: value if isinstance(value, str) else json.dumps(value, sort_keys=True, separators=(",", ":")) for key, value in meta.items()}
    return {"hetsched": LAYOUT, **texts}


def meta_of(metadata: Mapping[str, str], path: str) -> dict[str, Any]:
    """`Bundle.meta` from a file's metadata. A model's description is checked against the layout that this release reads."""
    meta: dict[str, Any] = {key: value for key, value in metadata.items() if key != "hetsched"}
    if "model" in meta:
        if metadata.get("hetsched") != LAYOUT:
            raise FileError(f"{path}: its layout is {metadata.get('hetsched')!r}, this release reads {LAYOUT!r}")
        with formats.reading(path, "a model of hetsched"):
            meta["model"] = json.loads(meta["model"])
    return meta


# Load -------------------------------------------------------------------------------------------------------------------------


def _infer_read(specs: Sequence[AnySpec], a: Attributes) -> list[AnySpec]:
    header = formats.safetensors_header(a["path"])
    missing = [n for n in a["tensors"] if n not in header.specs]
    if missing:
        raise GraphError([f"{a['path']} has no tensor {n!r}{did_you_mean(n, header.specs)}" for n in missing])
    return [header.specs[n] for n in a["tensors"]]


def _read(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    formats.read_tensors(a["path"], a["tensors"], outputs)


READ = Op(
    "model.read",
    (),
    ("tensors*",),
    _infer_read,
    lambda inputs, outputs, a: Work(0.0, nbytes(outputs), nbytes(outputs)),
    kernels={"host": _read},
    attributes={"path": _PATH, "tensors": Attribute("any", doc="names of the tensors to read, in the order of the outputs")},
    waits=True,
    doc="Tensors of a safetensors file, each checked against the spec that its header had when the run was planned.",
)


def _expand_load(builder: Builder, inputs: Mapping[str, Any], a: Attributes, scene: Scene) -> dict[str, Bundle]:
    path = a["path"]
    header = formats.safetensors_header(path)
    meta = meta_of(header.metadata, path)
    names = tuple(sorted(header.specs))
    if "model" in meta:
        try:
            model = parse(meta["model"])
        except ModelError as error:
            raise FileError(f"{path}: its description of the model is invalid: {'; '.join(error.problems)}") from error
        names = tuple(p.name for p in model.parameters)
        wanted = {p.name: Spec(p.shape, model.dtype) for p in model.parameters}
        wrong = [f"{n} is {header.specs.get(n, 'missing')!r}, not {s!r}" for n, s in wanted.items() if header.specs.get(n) != s]
        wrong += [f"{n} belongs to no layer" for n in header.specs if n not in wanted]
        if wrong:
            raise FileError(f"{path}: its tensors do not fit its description: {'; '.join(wrong)}")
    if not names:
        return {"model": Bundle({}, "model", meta)}
    values = builder.op(READ, name="read", path=path, tensors=names)
    return {"model": Bundle(dict(zip(names, values, strict=True)), "model", meta)}


LOAD = Composite(
    "model.load",
    (),
    ("model",),
    _expand_load,
    attributes={"path": _PATH},
    doc="The model in a safetensors file that `model.save`, or `save:` of a pipeline, has written. Only the header is read before the run.",
)


# Save -------------------------------------------------------------------------------------------------------------------------


def _infer_write(specs: Sequence[AnySpec], a: Attributes) -> list[AnySpec]:
    names = a["tensors"]
    if len(names) != len(specs):
        raise GraphError(f"{len(specs)} tensors, but {len(names)} names")
    found = arrays(specs, names)
    problems = [
        f"{n} of {s!r} cannot be stored: safetensors has no such dtype" for n, s in zip(names, found) if s.dtype not in formats.SAFETENSORS_NAMES
    ]
    if problems:
        raise GraphError(problems)
    return [Spec((), np.int64)]


def _write(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    outputs[0][...] = formats.write_safetensors(a["path"], dict(zip(a["tensors"], inputs, strict=True)), dict(a["metadata"]))


WRITE = Op(
    "model.write",
    ("tensors*",),
    ("nbytes",),
    _infer_write,
    lambda inputs, outputs, a: Work(0.0, nbytes(inputs), nbytes(inputs)),
    kernels={"host": _write},
    attributes={
        "path": _PATH,
        "tensors": Attribute("any", doc="names of the inputs, in their order"),
        "metadata": Attribute("any", (), "pairs of texts"),
    },
    waits=True,
    pure=False,
    doc="Write tensors to a safetensors file: temporary file, fsync, rename. nbytes: the file's bytes, int64.",
)


def _expand_save(builder: Builder, inputs: Mapping[str, Any], a: Attributes, scene: Scene) -> dict[str, Value]:
    model = inputs["model"]
    if not isinstance(model, Bundle):
        raise GraphError(f"model must be a model, as nn.train or model.load give it, got {model!r}")
    metadata = tuple(sorted(metadata_of(model.meta).items()))
    return {"nbytes": builder.op(WRITE, *model.values(), name="write", path=a["path"], tensors=tuple(model), metadata=metadata)}


SAVE = Composite(
    "model.save",
    ("model",),
    ("nbytes",),
    _expand_save,
    attributes={"path": _PATH},
    doc="Write a model to a safetensors file while the run goes on (`save:` of an output writes when it has ended). nbytes: the file's bytes, int64.",
    pure=False,
)
