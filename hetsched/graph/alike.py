"""Tasks that are the same work: of one op, with equal attributes and specs. A graph of 100,000 tasks has a few kinds of them, found by arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hetsched.graph.graph import Graph, IntArray

# Odd numbers for hashes modulo 2**64: of the golden ratio (Knuth, The Art of Computer Programming 3, section 6.4), and of the SplitMix generator.
_STEP, _IN, _OUT, _OP, _ATTRIBUTES = (
    np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F)
)  # fmt: skip


class Alike(NamedTuple):
    """kind: of each task, numbered as they come. first: the first task of each kind."""

    kind: IntArray
    first: IntArray


def alike(graph: Graph) -> Alike:
    """The kinds of the tasks of a graph. Worked out once for a graph. The attribute `key` of random ops does not count: it is the task's name."""
    if graph.kinds is None:
        graph.kinds = _alike(graph)
    found: Alike = graph.kinds
    return found


def classes(objects: Sequence[Any]) -> tuple[IntArray, IntArray]:
    """(class of each object, an object of each class by number): the same object, the same class."""
    ids = np.fromiter(map(id, objects), np.int64, len(objects))
    _, one, number = np.unique(ids, return_index=True, return_inverse=True)
    return number.reshape(-1), one


def _alike(graph: Graph) -> Alike:
    n = len(graph)
    if not n:
        return Alike(np.zeros(0, np.int64), np.zeros(0, np.int64))
    op, _ = classes(graph.task_ops)
    spec, _ = classes(graph.value_specs)
    written = np.arange(int(graph.output_start[0]), int(graph.output_start[-1]))
    rows = [(graph.input_start, spec[graph.input_values]), (graph.output_start - graph.output_start[0], spec[written])]
    attributes = _attributes(graph)
    with np.errstate(over="ignore"):
        mark = op.astype(np.uint64) * _OP + attributes.astype(np.uint64) * _ATTRIBUTES
        for (start, numbers), factor in zip(rows, (_IN, _OUT), strict=True):
            mark += _row_marks(start, numbers) * factor
    _, first, kind = np.unique(mark, return_index=True, return_inverse=True)
    kind = kind.reshape(-1)
    like = first[kind]
    same = (op == op[like]) & (attributes == attributes[like])
    for start, numbers in rows:
        same &= _equal_rows(start, numbers, like)
    if not same.all():  # two kinds have one mark: those that differ from the first stand alone
        other = np.flatnonzero(~same)
        kind[other] = len(first) + np.arange(len(other))
        first = np.concatenate((first, other))
    order = np.argsort(first)
    number = np.empty(len(first), dtype=np.int64)
    number[order] = np.arange(len(first))
    return Alike(number[kind], first[order])


def _attributes(graph: Graph) -> IntArray:
    """A number for equal attributes; those that cannot be compared stand alone."""
    known: dict[Any, int] = {}
    out = np.zeros(len(graph), dtype=np.int64)
    for task, given in enumerate(graph.task_attributes):
        if given:
            try:
                out[task] = known.setdefault(tuple((k, v) for k, v in given.items() if k != "key"), len(known) + 1)
            except TypeError:
                out[task] = known[("alone", task)] = len(known) + 1
    return out


def _row_marks(start: IntArray, numbers: IntArray) -> Any:
    """uint64: a hash of each CSR row, of its numbers and their places."""
    place = np.arange(len(numbers)) - np.repeat(start[:-1], np.diff(start))
    terms = (numbers + 1).astype(np.uint64) * (_STEP * (2 * place + 1).astype(np.uint64))
    terms ^= terms >> np.uint64(29)
    total = np.concatenate((np.zeros(1, np.uint64), np.cumsum(terms * _IN, dtype=np.uint64)))
    return total[start[1:]] - total[start[:-1]] + np.diff(start).astype(np.uint64)


def _equal_rows(start: IntArray, numbers: IntArray, like: IntArray) -> Any:
    """bool: whether each CSR row is that of the task that it is taken to be like."""
    length = np.diff(start)
    same = length == length[like]
    shift = np.where(same, start[like] - start[:-1], 0)
    differs = numbers != numbers[np.arange(len(numbers)) + np.repeat(shift, length)]
    same[np.repeat(np.arange(len(length)), length)[differs]] = False
    return same
