"""A graph in the writing that has tasks and values of another: what is left of it (`rest`), or a piece (`pieces`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hetsched.graph.graph import Builder, Graph
from hetsched.graph.nested import Nested
from hetsched.graph.op import Attributes, Op
from hetsched.graph.spec import AnySpec


class Writer:
    """Writes a graph called `name` by rows; `whole` is the other graph."""

    def __init__(self, whole: Graph, name: str) -> None:
        self.whole = whole
        self.builder = Builder(name)
        self.task_of: list[int] = []  # of each task here that of the whole, or -1
        self.value_of: list[int] = []  # as they were made; `finished` has them in the graph's order
        self.number: dict[int, int] = {}  # task of the whole -> its number here
        self.value: dict[int, int] = {}  # value of the whole -> its number here

    def new(self, name: str, spec: AnySpec, producer: int, value: int = -1) -> int:
        """A value made by task `producer` here (-1: by none), which is `value` of the whole."""
        self.builder.value_specs.append(spec)
        self.builder.value_names.append(name)
        self.builder.value_producers.append(producer)
        self.value_of.append(value)
        return len(self.value_of) - 1

    def constant(self, v: int) -> int:
        """Constant `v` of the whole."""
        i = self.value[v] = self.new(self.whole.value_names[v], self.whole.spec(v), -1, v)
        self.builder.constants[i] = self.whole.constants[v]
        return i

    def append(self, t: int, name: str, op: Op | Nested, attributes: Attributes, reads: Sequence[int]) -> int:
        """A task that stands for task `t` of the whole; `reads` are values here."""
        builder = self.builder
        builder.task_names.append(name)
        builder.task_ops.append(op)
        builder.task_attributes.append(attributes)
        builder.task_inputs.append(tuple(reads))
        self.task_of.append(t)
        return len(builder.task_names) - 1

    def copy(self, t: int, op: Op | Nested, reads: Sequence[int]) -> int:
        """Task `t` of the whole, and what it writes."""
        whole = self.whole
        number = self.number[t] = self.append(t, whole.task_names[t], op, whole.task_attributes[t], reads)
        for v in whole.writes(t):
            self.value[v] = self.new(whole.value_names[v], whole.spec(v), number, v)
        return number

    def finished(self) -> tuple[Graph, tuple[int, ...], tuple[int, ...]]:
        """The graph; of each of its tasks and values those of the whole."""
        self.builder.after = [(self.number[a], self.number[b]) for a, b in self.whole.after if a in self.number and b in self.number]
        order = np.argsort(np.asarray(self.builder.value_producers, dtype=np.int64), kind="stable").tolist()  # as `Graph` numbers them
        return Graph(self.builder), tuple(self.task_of), tuple(self.value_of[i] for i in order)


__all__ = ["Writer"]
