"""Consent: which pipeline files this user has read and allowed to bring code, or to reach outside their folder.

`hetsched trust FILE` remembers the file's place and the SHA-256 of its bytes in `$XDG_STATE_HOME/hetsched/trust` (by default under
`~/.local/state`), one small file a pipeline. One changed byte, or another place, and the consent is gone. Every file is read once: the bytes that
are compared with what was consented to are those that are built and run.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from hetsched.errors import FileError
from hetsched.folders import state_folder
from hetsched.graph.formats import publishing, reading
from hetsched.pipeline import kernels
from hetsched.pipeline.mistakes import Findings
from hetsched.pipeline.reader import MAX_BYTES, read


def consents() -> Path:
    """The folder in which consents are kept."""
    return state_folder() / "trust"


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; `FileError` where it cannot be read."""
    with reading(os.fspath(path), "a pipeline file"), open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(path: str | os.PathLike[str]) -> str:
    with reading(os.fspath(path), "a pipeline file"), open(path, "rb") as stream:
        data = stream.read(MAX_BYTES + 1)
    own = hashlib.sha256(data).hexdigest()
    root = read(data, Findings(os.fspath(path)))
    return own if root is None else kernels.Sources(root, os.path.dirname(os.path.abspath(path))).digest(own)


def _record(path: str | os.PathLike[str]) -> Path:
    place = os.path.realpath(path)
    return consents() / hashlib.sha256(os.fsencode(place)).hexdigest()


def trust(path: str | os.PathLike[str]) -> str:
    """Consent to what the file does, as it is now, with the files of source that it names; returns the SHA-256 of that.

    Without such files it is the file's own. `FileError` where the file cannot be read or the consent not kept.
    """
    digest = _digest(path)
    record = _record(path)
    try:
        record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{record.parent}: the consent cannot be kept: {error.strerror}; set XDG_STATE_HOME, or use --trust") from error
    with publishing(os.fspath(record)) as stream:
        stream.write(f"{digest} {os.path.realpath(path)}\n".encode("utf-8", "surrogateescape"))
    return digest


def is_trusted(path: str | os.PathLike[str], digest: Callable[[], str] | None = None) -> bool:
    """True if the user has consented to this file with exactly these bytes.

    digest: gives what `trust` returns of bytes that have been read already; asked for only where there is a consent to compare it with.
    """
    try:
        kept = _record(path).read_text("utf-8", "surrogateescape").partition(" ")[0]
    except (OSError, ValueError):
        return False
    return kept == (_digest(path) if digest is None else digest())
