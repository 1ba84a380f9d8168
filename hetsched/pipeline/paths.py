"""Paths in a pipeline: relative to its folder, and inside of it unless the user consents."""

from __future__ import annotations

import os
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True)
class PathProblem:
    """Why a path cannot be used; `rule` is `path` where consent would do."""

    message: str
    rule: str


def inside(folder: str, path: str) -> bool:
    """True if `path` lies in `folder`, every symbolic link followed."""
    root, real = os.path.realpath(folder), os.path.realpath(path)
    return os.path.commonpath((root, real)) == root if os.path.splitdrive(root)[0] == os.path.splitdrive(real)[0] else False


def locate(folder: str, text: str, *, consent: bool) -> str | PathProblem:
    """The absolute path that `text` means in a pipeline in `folder`, or why it means none. Touches no file outside without consent."""
    if not text.strip():
        return PathProblem("the path is empty; write one relative to this file", "file")
    if not text.isprintable():
        return PathProblem(f"the path {text!r} holds a control character; remove it", "file")
    joined = os.path.join(folder, text)
    if not consent:
        if os.path.isabs(text):
            return PathProblem(f"the absolute path {text!r} needs consent (--trust); write it relative to this file", "path")
        if not inside(folder, joined):
            return PathProblem(f"{text!r} leaves this file's folder, which needs consent (--trust); move what it names into the folder", "path")
    return os.path.realpath(joined)


def missing(path: str, text: str) -> PathProblem | None:
    """Why there is nothing to read at `path` (in the file: `text`), or None where there is."""
    if os.path.exists(path):
        return None
    folder, name = os.path.split(path)
    try:
        near = get_close_matches(name, os.listdir(folder), 1, 0.6)
    except OSError:
        near = []
    hint = f"did you mean {os.path.join(os.path.dirname(text), near[0])!r}?" if near else "paths are relative to this file"
    return PathProblem(f"there is no file {text!r}; {hint}", "file")
