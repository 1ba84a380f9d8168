"""What is kept in the user's cache and state folders, and the removal of what is old."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from hetsched.folders import cache_folder, state_folder
from hetsched.report.runs import Runs


class Kept(NamedTuple):
    """One kind of thing that is kept: how many files, their bytes, and where."""

    what: str
    files: int
    nbytes: int
    folder: str


def _is_costs(path: Path) -> bool:
    return path.name.startswith("costs.sqlite")


# What is in the cache folder, by the first that fits.
_KINDS: tuple[tuple[str, Callable[[Path, Path], bool]], ...] = (
    ("calibrations", lambda path, top: top.name == "calibration"),
    ("costs that runs have taught", lambda path, top: _is_costs(path)),
    ("built OpenCL programs", lambda path, top: top.name == "opencl"),
    ("machine code for planning", lambda path, top: top.name in ("numba", "native")),
    ("speeds of devices", lambda path, top: path.suffix == ".json"),
    ("other", lambda path, top: True),
)


def kept() -> list[Kept]:
    """What there is, kind by kind; kinds without files are left out."""
    sums: dict[str, list[int]] = {}
    root = cache_folder()
    for path, size, _ in _files(root):
        what = _kind(path, root)
        sums.setdefault(what, [0, 0])
        sums[what][0] += 1
        sums[what][1] += size
    out = [Kept(what, sums[what][0], sums[what][1], str(root)) for what, _ in _KINDS if what in sums]
    for what, folder in (
        ("runs", state_folder() / "runs"),
        ("unfinished runs", state_folder() / "checkpoints"),
        ("consents", state_folder() / "trust"),
    ):
        found = list(_files(folder))
        if found:
            out.append(Kept(what, len(found), sum(size for _, size, _ in found), str(folder)))
    return out


def collect(days: float, everything: bool = False, now: float | None = None) -> tuple[int, int]:
    """Remove from the cache what was not written for `days` (or all of it), and broken and partial files; and runs beyond their limits.

    Returns (files, bytes). What runs have taught goes only with `everything`: rows of it are dropped by themselves.
    """
    moment = time.time() if now is None else now
    gone, nbytes = 0, 0
    for path, size, written in list(_files(cache_folder())):
        broken = path.name.endswith((".broken", ".tmp")) and moment - written > 60
        old = moment - written > days * 86400 and not _is_costs(path)
        if everything or broken or old:
            with suppress(OSError):
                path.unlink()
                gone, nbytes = gone + 1, nbytes + size
    runs = Runs()
    for name, size in runs.broken():
        if runs.remove(name):
            gone, nbytes = gone + 1, nbytes + size
    return gone + runs.prune(), nbytes


def _kind(path: Path, root: Path) -> str:
    parts = path.relative_to(root).parts
    top = root / parts[0]
    return next(what for what, fits in _KINDS if fits(path, top))


def _files(root: Path) -> Iterator[tuple[Path, int, float]]:
    for path in sorted(root.rglob("*")) if root.is_dir() else []:
        with suppress(OSError):
            if path.is_file():
                status = path.stat()
                yield path, status.st_size, status.st_mtime
