"""The errors of hetsched: one small tree, each naming the thing, the value seen and the way out.

`exit_code` is what the command `hetsched` ends with when the error reaches it:
1 a task failed, 2 command line, 3 pipeline invalid, 4 no device fits, 5 out of memory, 6 timeout, 7 disk or corrupt file,
8 not trusted, 70 internal bug, 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class HetschedError(Exception):
    """Base of every error that hetsched raises on purpose."""

    exit_code = 70


class CommandLineError(HetschedError):
    """The command line, or an argument of the library, cannot be used."""

    exit_code = 2


class GraphError(HetschedError, ValueError):
    """A graph, a task or a value is invalid. `problems` lists every mistake found, one sentence each."""

    exit_code = 3

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class PipelineError(HetschedError, ValueError):
    """A pipeline file is invalid; the message holds every mistake with its place."""

    exit_code = 3


class MachineError(HetschedError, ValueError):
    """A description of a machine is invalid. `problems` lists every mistake found, one sentence each."""

    exit_code = 3

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class PlacementError(HetschedError):
    """No device fits a task, or constraints contradict each other. `conflicts`: a sentence for each, and the tasks that have part in it."""

    exit_code = 4

    def __init__(self, message: str, conflicts: Iterable[tuple[str, tuple[str, ...]]] = ()) -> None:
        self.conflicts: tuple[tuple[str, tuple[str, ...]], ...] = tuple(conflicts)
        super().__init__(message or "\n".join(sentence for sentence, _ in self.conflicts))


class OutOfMemoryError(HetschedError, MemoryError):
    """A plan does not fit a memory node. Names the task, the bytes needed and the bytes free. task: its name, where it is a task."""

    exit_code = 5
    task: str | None = None


class RunTimeoutError(HetschedError, TimeoutError):
    """A run, or a search, took longer than allowed."""

    exit_code = 6


class FileError(HetschedError, OSError):
    """A file cannot be read or written, or holds something else than it should."""

    exit_code = 7


class NotTrustedError(HetschedError):
    """A pipeline brings native or Python code, or leaves its folder, and nobody has consented."""

    exit_code = 8


class TaskError(HetschedError):
    """A task failed while it ran. `task` is its name; the cause is chained."""

    exit_code = 1

    def __init__(self, task: str, message: str) -> None:
        self.task = task
        super().__init__(message)

    def __reduce__(self) -> tuple[type[TaskError], tuple[str, str]]:
        return type(self), (self.task, str(self))


class DeviceGoneError(HetschedError):
    """A device does not answer any more: unplugged, reset, or after an error that it cannot recover from. `device` is its id."""

    exit_code = 1

    def __init__(self, device: str, message: str) -> None:
        self.device = device
        super().__init__(message)

    def __reduce__(self) -> tuple[type[DeviceGoneError], tuple[str, str]]:
        return type(self), (self.device, str(self))


class PlanError(HetschedError):
    """A plan breaks a rule. `problems` lists every broken rule found."""

    exit_code = 70

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class InternalError(HetschedError):
    """hetsched broke its own rules: a bug to report."""

    exit_code = 70


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The tail of an error about an unknown word: the nearest known word, and every known one.

    >>> did_you_mean("relo", ["relu", "tanh"])
    "; did you mean 'relu'? known: relu, tanh"
    """
    words = sorted(known)
    near = get_close_matches(word, words, 1, 0.6)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"{hint} known: {', '.join(words)}" if words else ""
