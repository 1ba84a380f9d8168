"""Where hetsched keeps what it has found out: the user's cache and state folders (XDG Base Directory Specification)."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path


def cache_folder() -> Path:
    """What can be found out anew: speeds, costs, built programs. `$XDG_CACHE_HOME/hetsched`, by default under `~/.cache`."""
    return _base("XDG_CACHE_HOME", ".cache") / "hetsched"


def state_folder() -> Path:
    """What cannot: runs, consents. `$XDG_STATE_HOME/hetsched`, by default under `~/.local/state`."""
    return _base("XDG_STATE_HOME", ".local/state") / "hetsched"


def _base(variable: str, default: str) -> Path:
    """The folder that an environment variable names; one that is not absolute does not count."""
    given = os.environ.get(variable, "")
    return Path(given) if os.path.isabs(given) else Path(os.path.expanduser("~")) / default


def write_whole(path: Path, content: bytes) -> bool:
    """Write a file, whole or not at all. False where it cannot be written: what is kept here only saves time."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        return False
    return True
