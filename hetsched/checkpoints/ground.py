"""What a run rests on, as far as its bits depend on it: hetsched itself, NumPy, the code of others' ops, inputs, files.

Graph and machine are those of its locked plan.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import hetsched
from hetsched.errors import CommandLineError, GraphError
from hetsched.graph.graph import Graph
from hetsched.graph.op import Op
from hetsched.locked import code_of

# Larger files are told apart by their sizes and times alone.
MOST_READ = 256 << 20
MOST_NAMED = 3


def ground_of(graph: Graph, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What a run of `graph` with `inputs` (by name) rests on, as plain data. `CommandLineError` for inputs that cannot be told apart later."""
    return {
        "hetsched": hetsched.__version__,
        "code": _own_code(),
        "numpy": np.__version__,
        "ops": {op.name: _digest(json.dumps([code_of(op.kernels[k]) for k in sorted(op.kernels)], sort_keys=True)) for op in _others(graph)},
        "inputs": {name: digest_of(value, name) for name, value in inputs.items()},
        "files": {path: _file(path) for path in sorted(_paths(graph))},
    }


def changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What has changed between two grounds, a sentence each."""
    out = []
    for what in ("hetsched", "numpy"):
        if was.get(what) != now[what]:
            out.append(f"{what} was {was.get(what)}, is {now[what]}")
    if not out and was.get("code") != now["code"]:
        out.append("the code of hetsched itself has changed")
    for part, noun in (("ops", "the code of op {!r}"), ("inputs", "input {!r}")):
        before, after = was.get(part, {}), now[part]
        out += [f"{noun.format(name)} has changed" for name in after if name in before and before[name] != after[name]]
        out += [f"{noun.format(name)} is {'new' if name in after else 'gone'}" for name in sorted({*before} ^ {*after})]
    before, after = was.get("files", {}), now["files"]
    for path, found in after.items():
        known = [before[path]] if path in before else [x for p, x in before.items() if os.path.basename(p) == os.path.basename(path)]
        if known and not any(_same_file(x, found) for x in known):  # one that was moved is the same by its content
            out.append(f"file {path} has changed")
    return out


def refuse_changes(folder: Any, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """`GraphError` with what has changed."""
    found = changes(was, now)
    if found:
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        way = "begin anew with --fresh (in the library: fresh=True), or bring back what was"
        raise GraphError(f"{folder}: this run cannot go on as it began: {'; '.join(found[:MOST_NAMED])}{more}; {way}")


@cache
def _own_code() -> str:
    """A digest of hetsched's own source."""
    digest = hashlib.blake2b(digest_size=16)
    root = Path(hetsched.__file__).parent
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".c", ".cl", ".cu")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _ops(graph: Graph) -> Iterator[tuple[Op, Mapping[str, Any]]]:
    for op, attributes in zip(graph.task_ops, graph.task_attributes, strict=True):
        if isinstance(op, Op):
            yield op, attributes
        else:
            for inner in op.graphs:
                yield from _ops(inner)


def _others(graph: Graph) -> list[Op]:
    """The ops of a graph whose code is not hetsched's own."""
    found = {id(op): op for op, _ in _ops(graph)}
    return [op for op in found.values() if not all(_is_ours(kernel) for kernel in op.kernels.values())]


def _is_ours(kernel: Any) -> bool:
    return callable(kernel) and str(getattr(kernel, "__module__", "")).startswith("hetsched.graph.ops.") and not getattr(kernel, "__closure__", None)


def _paths(graph: Graph) -> set[str]:
    out = set()
    for op, attributes in _ops(graph):
        for name, attribute in op.attributes.items():
            if attribute.kind == "path" and isinstance(attributes.get(name), (str, os.PathLike)):
                out.add(os.path.abspath(os.fspath(attributes[name])))
    return out


def _file(path: str) -> list[Any]:
    """[bytes, time, digest of the content] of a file; of a folder those of what it lists. The digest is "" where the file is too large to read."""
    try:
        status = os.stat(path)
        if os.path.isdir(path):
            rows = sorted((x.name, x.stat().st_size, x.stat().st_mtime_ns) for x in os.scandir(path))
            return [len(rows), 0, _digest(json.dumps(rows))]
        content = ""
        if status.st_size <= MOST_READ:
            with open(path, "rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return [-1, 0, ""]  # the task that reads it says what is wrong
    return [status.st_size, status.st_mtime_ns, content]


def _same_file(was: Any, now: list[Any]) -> bool:
    return bool(was[0] == now[0] and (was[2] == now[2] if now[2] else was[1] == now[1]))


def digest_of(value: Any, name: str) -> str:
    """A digest of an input: arrays, numbers, texts, and lists and mappings of them."""
    digest = hashlib.blake2b(digest_size=16)
    _update(digest, value, name)
    return digest.hexdigest()


def _update(digest: Any, value: Any, name: str) -> None:
    if isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
        array = np.ascontiguousarray(value)
        digest.update(f"array {array.dtype.str} {np.shape(value)} ".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    elif value is None or isinstance(value, (bool, int, float, complex, str, bytes, Path)):
        digest.update(f"{type(value).__name__} {value!r} ".encode())
    elif isinstance(value, Mapping):
        digest.update(f"mapping {len(value)} ".encode())
        for key in value:
            _update(digest, key, name)
            _update(digest, value[key], name)
    elif isinstance(value, (list, tuple)):
        digest.update(f"list {len(value)} ".encode())
        for x in value:
            _update(digest, x, name)
    else:
        way = "give arrays, numbers, texts, or lists and mappings of them"
        raise CommandLineError(
            f"input {name!r} holds an object ({type(value).__name__}), which cannot be told from another when the run goes on; {way}"
        )


__all__ = ["changes", "digest_of", "ground_of", "refuse_changes"]
