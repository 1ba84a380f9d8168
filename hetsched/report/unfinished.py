"""Runs that were begun with checkpoints and have not ended: how each was asked for, and the folder in which its state is kept.

Each has `ID.json`, written before it runs, and a folder `ID` beside it (`hetsched.checkpoints.store`). Both go when the run is done. Runs that never
went on go when there are more than `MOST` of them, the oldest first; not those that are running.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hetsched.checkpoints.store import STATE, is_in_use
from hetsched.errors import CommandLineError, FileError, did_you_mean
from hetsched.folders import state_folder
from hetsched.graph.formats import publishing

MOST = 20
SUFFIX = ".json"


class Unfinished:
    """The unfinished runs in `folder` (by default under the user's state folder)."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder if folder is not None else state_folder() / "checkpoints"

    def add(self, record: Mapping[str, Any], now: float | None = None) -> str:
        """A run begins; returns its id. `FileError` where nothing can be written: a run that is to be kept says so before it runs."""
        self.prune(MOST - 1)
        moment = time.time() if now is None else now
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(moment))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in (stamp, *(f"{stamp}-{n}" for n in range(2, 1000))):
                with suppress(FileExistsError):
                    self.state(name).mkdir()
                    with publishing(str(self.folder / f"{name}{SUFFIX}")) as stream:
                        stream.write((json.dumps({"version": 1, "id": name, "at": moment, **record}, indent=1) + "\n").encode())
                    return name
        except OSError as error:
            raise FileError(f"{self.folder}: checkpoints cannot be kept here: {error.strerror or error}") from error
        raise FileError(f"{self.folder}: a thousand runs began in this second")

    def state(self, name: str) -> Path:
        """The folder of a run's state."""
        return self.folder / name

    def ids(self) -> list[str]:
        """The ids of all runs, the newest last."""
        try:
            found = [(path.stat().st_mtime_ns, path.name) for path in self.folder.iterdir() if path.suffix == SUFFIX]
        except OSError:
            return []
        return [name.removesuffix(SUFFIX) for _, name in sorted(found)]

    def load(self, wanted: str) -> dict[str, Any]:
        """The run called `wanted`: an id, its beginning where only one run has it, or `last`."""
        ids = self.ids()
        if not ids:
            raise CommandLineError("no run is unfinished; `hetsched run FILE --checkpoint 30s` keeps what can be taken up again")
        found = ids[-1:] if wanted == "last" else [i for i in ids if i == wanted] or [i for i in ids if i.startswith(wanted)]
        if len(found) != 1:
            more = f"; it may be {', '.join(found[:4])}" if found else did_you_mean(wanted, ids)
            raise CommandLineError(f"{'several unfinished runs begin' if found else 'no unfinished run begins'} with {wanted!r}{more}")
        return self._read(found[0])

    def _read(self, name: str) -> dict[str, Any]:
        path = self.folder / f"{name}{SUFFIX}"
        try:
            found = json.loads(path.read_bytes())
            if not isinstance(found, dict) or found.get("version") != 1:
                raise ValueError("not a run of this version")
        except (OSError, ValueError) as error:
            raise FileError(f"{path}: cannot be read: {error}; remove it, and begin the run anew") from error
        return found

    def every(self) -> list[dict[str, Any]]:
        """What is known of every run, the newest last: its record, and `turns`: loop -> [turns done, of how many]; `is_running`."""
        out = []
        for name in self.ids():
            with suppress(FileError):
                out.append({**self._read(name), "turns": self.turns(name), "is_running": is_in_use(self.state(name))})
        return out

    def turns(self, name: str) -> dict[str, list[int]]:
        """How far the loops of a run are."""
        try:
            found = json.loads((self.state(name) / STATE).read_bytes())
            return {loop: [int(row["turn"]), int(row["turns"])] for loop, row in found["loops"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def remove(self, name: str) -> None:
        """Forget a run."""
        (self.folder / f"{name}{SUFFIX}").unlink(missing_ok=True)
        shutil.rmtree(self.state(name), ignore_errors=True)

    def prune(self, most: int = MOST) -> int:
        """Forget the oldest runs until there are at most so many; returns how many went."""
        idle = [name for name in self.ids() if not is_in_use(self.state(name))]
        old = idle[: max(len(idle) - most, 0)]
        for name in old:
            self.remove(name)
        return len(old)
