"""What is kept of a run that may be taken up again: a folder with the plan, what the run rests on, and how far its loops are.

`state.json` says how far each loop is and names the files that hold its carried and collected values. It is written last, beside, synced
and renamed: a crash at any moment leaves the state before or the state after. Collected values are written once, a file a piece; a file of
carried values goes when the next one is named. Arrays are kept as .npz, whose members have checksums.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from hetsched.errors import CommandLineError, FileError
from hetsched.graph.formats import publishing

STATE, PLAN, RESTS_ON, LOCK = "state.json", "plan.json", "rests-on.json", "lock"
FORMAT = "hetsched-checkpoint/1"


@dataclass
class LoopState:
    """How far a loop is: `turn` of `turns` are done. carried, collected: files, beside the state."""

    turn: int
    turns: int
    carried: str
    collected: list[str] = field(default_factory=list)


class Store:
    """The folder of one run. Use it as a context manager: one process at a time has it."""

    def __init__(self, folder: str | os.PathLike[str], clear: bool = True) -> None:
        self._is_cleared = clear
        self.folder = Path(os.path.abspath(os.fspath(folder)))
        self.loops: dict[str, LoopState] = {}
        self._lock: IO[bytes] | None = None
        self._writer: ThreadPoolExecutor | None = None
        self._last: Future[None] | None = None
        self.problem: str | None = None  # why the last checkpoint could not be kept

    def __enter__(self) -> Store:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / LOCK, "ab")
        except OSError as error:
            raise FileError(f"{self.folder}: checkpoints cannot be kept here: {error.strerror or error}; choose another folder") from error
        if not _locked(self._lock):
            self._lock.close()
            raise CommandLineError(f"{self.folder}: another process runs with these checkpoints; let it end, or choose another folder")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="hetsched-checkpoint")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        assert self._writer is not None
        assert self._lock is not None
        self._writer.shutdown()
        self._settle()
        if kind is None and self._is_cleared:
            self.clear()
            with suppress(OSError):
                (self.folder / LOCK).unlink()
            with suppress(OSError):
                self.folder.rmdir()  # where nobody else keeps something there
        self._lock.close()

    def clear(self) -> None:
        """Remove what is kept, the state first."""
        self.loops = {}
        for name in (STATE, PLAN, RESTS_ON):
            (self.folder / name).unlink(missing_ok=True)
        self._sweep(())

    def _sweep(self, keep: Sequence[str]) -> None:
        """Remove files of values that no state names, and what a crash has left half written."""
        for path in self.folder.iterdir():
            ours = path.name.startswith(("carried-", "collected-")) and path.suffix == ".npz"
            partial = path.name.startswith((".carried-", ".collected-", *(f".{x}." for x in (STATE, PLAN, RESTS_ON)))) and path.suffix == ".tmp"
            if (ours and path.name not in keep) or partial:
                path.unlink(missing_ok=True)

    # Reading

    def read(self) -> tuple[Mapping[str, Any], Path] | None:
        """(what the run rests on, its plan's file) of a run that can be taken up again, and `loops` is how far it is; None where there is none."""
        if not (self.folder / STATE).exists():
            return None
        state, rests_on = self._json(STATE), self._json(RESTS_ON)
        try:
            if state["format"] != FORMAT:
                raise ValueError(f"its format is {state['format']!r}, wanted {FORMAT!r}")
            self.loops = {name: LoopState(**row) for name, row in state["loops"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._broken(STATE, error) from error
        self._sweep([name for row in self.loops.values() for name in (row.carried, *row.collected)])
        return rests_on, self.folder / PLAN

    def _json(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / name).read_bytes())
            if not isinstance(found, dict):
                raise ValueError("it holds no object")
        except (OSError, ValueError) as error:
            raise self._broken(name, error) from error
        return found

    def arrays(self, name: str) -> list[Any]:
        """The arrays of a file that a state names."""
        try:
            with open(self.folder / name, "rb") as file, np.load(file, allow_pickle=False) as found:
                return [found[str(i)] for i in range(len(found.files))]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise self._broken(name, error) from error

    def _broken(self, name: str, error: Exception) -> FileError:
        return FileError(f"{self.folder / name}: the checkpoint cannot be read: {error}; begin anew with --fresh (in the library: fresh=True)")

    # Writing

    def begin(self, rests_on: Mapping[str, Any], write_plan: Callable[[str], None]) -> None:
        """A new run begins. `FileError` where nothing can be written."""
        self.clear()
        self._put(RESTS_ON, rests_on)
        write_plan(str(self.folder / PLAN))

    def _put(self, name: str, content: Mapping[str, Any]) -> None:
        with publishing(str(self.folder / name)) as stream:
            stream.write((json.dumps(content, indent=1) + "\n").encode())

    def keep(self, loop: str, number: int, turn: int, turns: int, carried: Sequence[Any], collected: Sequence[Any]) -> None:
        """Loop `loop`, the run's `number`th, has come to `turn`. collected: of the turns since the last time.

        Written by a thread of its own, while the run goes on: nobody may change the arrays.
        """
        assert self._writer is not None
        self._settle()
        self._last = self._writer.submit(self._write, loop, number, turn, turns, list(carried), list(collected))

    def _write(self, loop: str, number: int, turn: int, turns: int, carried: list[Any], collected: list[Any]) -> None:
        before = self.loops.get(loop)
        more = [f"collected-{number}-{turn}.npz"] if collected else []
        row = LoopState(turn, turns, f"carried-{number}-{turn}.npz", [*(before.collected if before is not None else []), *more])
        if collected:
            self._put_arrays(row.collected[-1], collected)
        self._put_arrays(row.carried, carried)
        loops = {**self.loops, loop: row}
        self._put(STATE, {"format": FORMAT, "loops": {name: asdict(x) for name, x in loops.items()}})
        self.loops = loops
        if before is not None:
            (self.folder / before.carried).unlink(missing_ok=True)

    def _put_arrays(self, name: str, arrays: Sequence[Any]) -> None:
        with publishing(str(self.folder / name)) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            for i, array in enumerate(arrays):
                with archive.open(f"{i}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)

    def _settle(self) -> None:
        """Wait for what is being written. A checkpoint that could not be kept costs no run: `problem` says so."""
        if self._last is None:
            return
        last, self._last = self._last, None
        try:
            last.result()
            self.problem = None
        except (OSError, FileError) as error:
            self.problem = str(error)


def _locked(file: IO[bytes]) -> bool:
    try:
        import fcntl
    except ImportError:  # not on this system: nobody watches
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def is_in_use(folder: Path) -> bool:
    """True if a process runs with the checkpoints in `folder`."""
    try:
        with open(folder / LOCK, "rb") as file:
            return not _locked(file)
    except OSError:
        return False


__all__ = ["STATE", "LoopState", "Store", "is_in_use"]
