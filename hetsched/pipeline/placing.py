"""Constraints that cannot hold, at the lines of the file that they come from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from hetsched.errors import OutOfMemoryError, PlacementError, TaskError
from hetsched.pipeline.build import Pipeline
from hetsched.pipeline.mistakes import Mistake, render


@contextmanager
def placing(pipeline: Pipeline) -> Iterator[None]:
    """Inside, a `PlacementError` about tasks of the pipeline is told as `FILE:LINE:COLUMN: error: ...` for every `device:` entry in conflict."""
    try:
        with fitting(pipeline):
            yield
    except PlacementError as error:
        found = mistakes(pipeline, error)
        if not found:
            raise
        raise _Misplaced(render(found), error.conflicts) from error


class _Misplaced(PlacementError):
    """One that says where: its text stands as it is."""

    mistakes = True


class _Placed(OutOfMemoryError):
    """One that says where: its text stands as it is."""

    mistakes = True


@contextmanager
def fitting(pipeline: Pipeline) -> Iterator[None]:
    """Inside, an `OutOfMemoryError` that names a task is told at the task's place in the file."""
    try:
        yield
    except OutOfMemoryError as error:
        if _memory_entry(pipeline, error) is None:
            raise
        raise _Placed(str(at_memory(pipeline, error))) from error


class _Failed(TaskError):
    """One that says where: its text stands as it is."""

    mistakes = True


@contextmanager
def failing(pipeline: Pipeline) -> Iterator[None]:
    """Inside, a task that fails is told at its place in the file; errors of several lines have places of their own (compilers')."""
    try:
        yield
    except TaskError as error:
        if (told := at_task(pipeline, error)) == str(error):
            raise
        raise _Failed(error.task, told) from error


def at_task(pipeline: Pipeline, error: TaskError) -> str:
    """That a task failed, at its place in the file; as it is where that is unknown, or told already."""
    entry = entry_of(pipeline, error.task)
    if entry is None or "\n" in str(error):
        return str(error)
    return str(replace(pipeline.places[entry], message=str(error), rule="failed"))


def at_memory(pipeline: Pipeline, error: OutOfMemoryError) -> Mistake:
    """That no plan fits a memory: at the task that it names, else at the file's `tasks:`."""
    entry = _memory_entry(pipeline, error)
    if entry is not None:
        return replace(pipeline.places[entry], message=str(error), rule="memory")
    return _at_key(pipeline, "tasks", str(error), "memory")


def _memory_entry(pipeline: Pipeline, error: OutOfMemoryError) -> str | None:
    return entry_of(pipeline, error.task) if error.task is not None else None


def at_objective(pipeline: Pipeline, message: str) -> Mistake:
    """A mistake that is of no task: at the file's `objective:`, its first line where it has none."""
    return _at_key(pipeline, "objective", message, "placement")


def _at_key(pipeline: Pipeline, key: str, message: str, rule: str) -> Mistake:
    """A mistake at a key of the file's outermost mapping, at its first line where it lacks that."""
    with open(pipeline.path, encoding="utf-8-sig", errors="replace") as file:
        lines = file.read().splitlines()
    at = next((i for i, line in enumerate(lines) if line.startswith(key)), 0)
    return Mistake(str(pipeline.path), at + 1, 1, message, rule, lines[at] if lines else "")


def mistakes(pipeline: Pipeline, error: PlacementError) -> list[Mistake]:
    """A mistake for every entry of the file that has part in a conflict, in the order of the file; of many conflicts at one entry the first.

    Empty where some conflict is of no task of the file.
    """
    by_entry: dict[str, list[str]] = {}
    for sentence, tasks in error.conflicts:
        entries = dict.fromkeys(entry_of(pipeline, task) for task in tasks)
        if None in entries:
            return []
        for entry in entries:
            assert entry is not None
            by_entry.setdefault(entry, []).append(sentence)
    out = []
    for entry, sentences in by_entry.items():
        more = f" (and {len(sentences) - 1} more of its tasks)" if len(sentences) > 1 else ""
        out.append(replace(pipeline.places[entry], message=sentences[0] + more))
    return sorted(out, key=lambda m: (m.line, m.column))


def entry_of(pipeline: Pipeline, task: str) -> str | None:
    """The entry of `tasks:` that a primitive task belongs to: `train` of `train/loss` and of `gradient/train/loss`."""
    return next((part for part in task.split("/") if part in pipeline.places), None)
