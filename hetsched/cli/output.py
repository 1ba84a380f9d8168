"""Writing to standard output, and telling of progress on standard error."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from time import perf_counter
from types import TracebackType
from typing import Any

from hetsched.errors import CommandLineError, FileError

# Plain progress is told at most this often over the whole run.
PLAIN_LINES = 10
# ... and from so many seconds on: what is over by then needs no telling.
PLAIN_SECONDS = 1.0
# A bar is drawn anew no sooner than this.
BAR_SECONDS = 0.05


# As the name of a file to write: standard output.
STANDARD = "-"

Put = Callable[[str, str], None]


@contextmanager
def files(paths: Mapping[str, str | None], form: str = "text", refused: bool = True) -> Iterator[Put]:
    """What writes a text to a path, whole or not at all; `-` is standard output. paths: of the options (option -> path, None where not given).

    Inside, what is told to people goes to standard error where a file goes to standard output. `CommandLineError` where two things would go there:
    two files, or a file beside what `--format` (`form`) prints for programs. What could not be written is refused at once, unless told not to.
    """
    taken = [f"{option} -" for option, path in paths.items() if path == STANDARD]
    if taken and form != "text":
        taken.append(f"--format {form}")
    if len(taken) > 1:
        raise CommandLineError(f"{taken[0]} and {taken[1]} both take standard output; write one of them to a file (one called - is ./-)")
    if refused:
        refuse(paths)
    standard = sys.stdout

    def put(path: str, text: str) -> None:
        from hetsched.graph.formats import publishing

        if path != STANDARD:
            with publishing(path) as stream:
                stream.write(text.encode("utf-8"))
            return
        standard.flush()
        standard.buffer.write(text.encode("utf-8"))  # whatever the encoding of the terminal
        standard.buffer.flush()

    with redirect_stdout(sys.stderr) if taken else nullcontext():
        yield put


def refuse(paths: Mapping[str, str | None]) -> None:
    """`FileError` for a file that could not be written, before there is anything to write."""
    for option, path in paths.items():
        if path is None or path == STANDARD:
            continue
        from hetsched.pipeline.publish import unwritable

        if not path:
            raise CommandLineError(f"{option} wants the name of a file, and got none")
        if (problem := unwritable(path)) is not None:
            raise FileError(f"{option} {path}: cannot be written: {problem}")


def folder(path: str | None, option: str) -> None:
    """`CommandLineError` where `-` is given for a folder: it would be standard output, which is none."""
    if path == STANDARD:
        raise CommandLineError(f"{option} - means standard output, and a folder is asked for; one called - is ./-")


def write(text: str) -> None:
    """A result, with a line end."""
    sys.stdout.write(text + "\n")


def write_json(data: Any, indent: int | None = 2) -> None:
    """Data as strict JSON; with `indent` None on one line. NaN and infinities become null."""
    sys.stdout.write(json.dumps(_strict(data), indent=indent, ensure_ascii=False, allow_nan=False) + "\n")
    if indent is None:
        sys.stdout.flush()


def _strict(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(k): _strict(v) for k, v in data.items()}
    if isinstance(data, (list, tuple)):
        return [_strict(v) for v in data]
    if isinstance(data, float) and (data != data or data in (float("inf"), float("-inf"))):
        return None
    return data


def width() -> int:
    """Columns of the terminal; 100 where there is none."""
    return shutil.get_terminal_size((100, 24)).columns


def is_ascii_only() -> bool:
    """True if standard output cannot show shades of blocks."""
    try:
        "░▒▓█".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return True
    return False


class Progress:
    """Tells how far a run is, on standard error: a bar on a terminal, elsewhere a plain line every tenth of a run of more than a second and one at
    its end, nothing where `quiet`.

    Called with (launches and copies done, how many in all, a name), from any thread; most calls return at once, for a run may have a million.
    Use it as a context manager: the bar is taken down at the end.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._bar: Any = None
        self._line: Any = None
        self._told = 0
        self._again = 0.0
        self._plain_from = perf_counter() + PLAIN_SECONDS
        self._lock = threading.Lock()

    def __call__(self, done: int, total: int, task: str) -> None:
        try:
            self._tell(done, total, task)
        except OSError:  # nobody listens any more: the run goes on
            self._quiet, self._terminal = True, False

    def _tell(self, done: int, total: int, task: str) -> None:
        if self._terminal:
            if done < total and perf_counter() < self._again:
                return
            with self._lock:
                self._again = perf_counter() + BAR_SECONDS
                self._draw(done, total, task)
        elif not self._quiet and PLAIN_LINES * done // max(total, 1) > self._told and (done >= total or perf_counter() > self._plain_from):
            with self._lock:
                tenth = PLAIN_LINES * done // max(total, 1)
                if tenth <= self._told:
                    return
                self._told = tenth
                print(f"{100 * done // total:3} %  {done} of {total} launches and copies, {task}", file=sys.stderr, flush=True)

    def _draw(self, done: int, total: int, task: str) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            columns = (BarColumn(bar_width=40), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._line = self._bar.add_task("", total=total)
        self._bar.update(self._line, completed=done, total=total, description=task)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif error is None and not self._quiet and not self._terminal and self._told < PLAIN_LINES:
            # A loop that stops early, or tasks that run every few turns, leave launches that were never needed.
            print("100 %  done", file=sys.stderr, flush=True)


class ProgressLines:
    """Progress as one JSON object a line on standard output, at most one a percent; goes on to `progress`."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._told = 0
        self._lock = threading.Lock()

    def __call__(self, done: int, total: int, task: str) -> None:
        self._progress(done, total, task)
        if 100 * done // max(total, 1) > self._told:
            with self._lock:
                if 100 * done // max(total, 1) <= self._told:
                    return
                self._told = 100 * done // max(total, 1)
                write_json({"event": "progress", "done": done, "total": total, "task": task}, None)
