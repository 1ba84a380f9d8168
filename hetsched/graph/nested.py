"""What holds graphs in a graph: Loop, a task whose body is a graph, and If, a task of two graphs of which a run does one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from hetsched.errors import GraphError, did_you_mean
from hetsched.graph.spec import AnySpec, Spec, UpTo, array_form, bound
from hetsched.graph.spec import Sequence as SequenceSpec

if TYPE_CHECKING:
    from hetsched.graph.graph import Graph

TURN = Spec((), np.int64)


class Nested:
    """What a task runs that holds graphs of its own: a `Loop` or an `If`. Its inputs come from the host, its outputs lie there."""

    # No `ABC`: its metaclass makes every `isinstance` three to five times as slow, and planners ask it of each task.

    name: str
    pure: bool

    @property
    @abstractmethod
    def inputs(self) -> tuple[str, ...]:
        """Names of the task's inputs, in order."""

    @property
    @abstractmethod
    def outputs(self) -> tuple[str, ...]:
        """Names of the task's outputs, in order."""

    @property
    @abstractmethod
    def graphs(self) -> tuple[Graph, ...]:
        """The graphs that it runs, one or another at a time."""

    @property
    @abstractmethod
    def parts(self) -> Mapping[str, Graph]:
        """Its graphs that have tasks of their own, by what names of tasks are prefixed with: "" of a loop's body."""

    @abstractmethod
    def problems(self) -> list[str]:
        """Every mistake in it, whatever it is bound to."""

    @abstractmethod
    def infer(self, specs: Sequence[AnySpec]) -> list[AnySpec]:
        """Specs of the task's outputs for inputs of `specs`; raises `GraphError` with every mismatch."""


@dataclass(frozen=True, eq=False)
class Loop(Nested):
    """A task whose body is a graph that runs for `turns` turns.

    The task's inputs are, in this order: `invariants`, `sequences`, the first values of `carried`. Its outputs are, in this order: the last
    values of `carried`, then `collected`. All names are names of inputs and outputs of the body.

    body: the graph of one turn. remainder: the graph of the last turn of every `cycle` turns (a smaller batch); same names, other shapes.
    invariants: body inputs that stay the same.
    sequences: body inputs that take element i of a sequence (or of an array, by its leading axis) at turn i.
    carried: (body input, body output): what this turn gives is what the next turn takes.
    collected: body outputs gathered into a sequence, one element a turn. With `rows[name]` the elements are rows of one array.
    turn: the body input that takes the number of the turn (int64 scalar), or None.
    stop: a body output (a boolean scalar); the loop ends after the turn in which it is true. `turns` is then the upper limit.
    every: body task -> k: it runs on turns 0, k, 2k ...; the readers of the turns between take its last value.
    """

    body: Graph
    turns: int
    invariants: tuple[str, ...] = ()
    sequences: tuple[str, ...] = ()
    carried: tuple[tuple[str, str], ...] = ()
    collected: tuple[str, ...] = ()
    rows: Mapping[str, int] = field(default_factory=dict)
    turn: str | None = None
    stop: str | None = None
    every: Mapping[str, int] = field(default_factory=dict)
    remainder: Graph | None = None
    cycle: int = 0
    name: str = "loop"
    pure: bool = True

    def __post_init__(self) -> None:
        for graph in (self.body, self.remainder):
            if graph is not None:
                graph.is_body = True

    @property
    def inputs(self) -> tuple[str, ...]:
        return (*self.invariants, *self.sequences, *(a for a, _ in self.carried))

    @property
    def outputs(self) -> tuple[str, ...]:
        return (*(a for a, _ in self.carried), *self.collected)

    @property
    def graphs(self) -> tuple[Graph, ...]:
        return (self.body,) if self.remainder is None else (self.body, self.remainder)

    @property
    def parts(self) -> Mapping[str, Graph]:
        return {"": self.body}

    @cached_property
    def seldom(self) -> Mapping[int, int]:
        """Number of a body task -> k, for the tasks that run every k > 1 turns: `every`, as plans and traces need it."""
        index = self.body.task_index
        return {index[name]: k for name, k in self.every.items() if k > 1 and name in index}

    def is_remainder(self, turn: int) -> bool:
        """True if `turn` runs the remainder body."""
        return self.remainder is not None and (turn + 1) % self.cycle == 0

    def problems(self) -> list[str]:
        """Every mistake in the loop itself, whatever it is bound to."""
        out, body = [], self.body
        if self.turns < 0:
            out.append(f"turns must be at least 0, got {self.turns}")
        bound_inputs = [*self.inputs, *([self.turn] if self.turn else [])]
        for name in bound_inputs:
            if name not in body.inputs:
                out.append(f"the body has no input {name!r}{did_you_mean(name, body.inputs)}")
            if bound_inputs.count(name) > 1:
                out.append(f"body input {name!r} is bound twice")
        out += [f"body input {name!r} is not bound" for name in body.inputs if name not in bound_inputs]
        wanted = [*(b for _, b in self.carried), *self.collected, *([self.stop] if self.stop else [])]
        out += [f"the body has no output {name!r}{did_you_mean(name, body.outputs)}" for name in wanted if name not in body.outputs]
        if not out:
            for name, result in self.carried:
                was, new = body.spec(body.inputs[name]), body.spec(body.outputs[result])
                if was != new:
                    out.append(f"carried {name!r} starts a turn as {was!r} and ends it as {new!r}; they must be equal")
            if self.turn is not None and body.spec(body.inputs[self.turn]) != TURN:
                out.append(f"turn input {self.turn!r} must be {TURN!r}, not {body.spec(body.inputs[self.turn])!r}")
            if self.stop is not None and body.spec(body.outputs[self.stop]) != Spec((), np.bool_):
                out.append(f"stop output {self.stop!r} must be bool[], not {body.spec(body.outputs[self.stop])!r}")
            out += self._carried_problems()
        for name, k in self.every.items():
            if name not in body.task_index:
                out.append(f"every: the body has no task {name!r}{did_you_mean(name, body.task_index)}")
            elif k < 1:
                out.append(f"every: task {name!r} cannot run every {k} turns; give at least 1")
        if self.remainder is not None:
            rest = self.remainder
            if self.cycle < 1:
                out.append(f"a loop with a remainder body needs cycle >= 1, got {self.cycle}")
            elif self.turns % self.cycle:
                out.append(f"{self.turns} turns are not a multiple of the cycle of {self.cycle}")
            if list(rest.inputs) != list(body.inputs) or list(rest.outputs) != list(body.outputs):
                out.append("the remainder body must have the inputs and outputs of the body, in the same order")
            if rest.task_names != body.task_names:
                out.append("the remainder body must have the tasks of the body, in the same order")
            else:
                for name, _ in self.carried:
                    if name in body.inputs and body.spec(body.inputs[name]) != rest.spec(rest.inputs[name]):
                        out.append(f"carried {name!r} differs between body and remainder")
                out += [] if out else self._remainder_problems(rest)
        return out or self._rows_problems()

    def _remainder_problems(self, rest: Graph) -> list[str]:
        """What is kept over turns of both bodies has one shape, or is rows of one array."""
        out, body = [], self.body
        for task, k in self.seldom.items():
            for value, other in zip(body.writes(task), rest.writes(task), strict=True):
                if body.spec(value) != rest.spec(other) and self._mixes(k):
                    out.append(
                        f"every: task {body.task_names[task]!r} gives {body.spec(value)!r} in the body and {rest.spec(other)!r} in the remainder, so "
                        "no turn can take what another one made; run it in every turn"
                    )
        for name in self.collected:
            full, last = body.spec(body.outputs[name]), rest.spec(rest.outputs[name])
            what = f"collected {name!r} is {full!r} in the body and {last!r} in the remainder"
            if full != last and name not in self.rows:
                out.append(f"{what}; say how many rows of one array they make (rows)")
        return out

    def _mixes(self, k: int) -> bool:
        """True if a turn of one body takes what a task that runs every `k` turns made in a turn of the other one."""
        for last in islice(range(self.cycle - 1, self.turns, self.cycle), k):  # after so many it begins anew
            if not self.is_remainder(last - last % k) or (last % k == 0 and last + 1 < self.turns and not self.is_remainder(last + 1)):
                return True
        return False

    def rows_before(self, name: str, turn: int) -> int:
        """How many rows the turns before `turn` make of collected `name`, whose elements are rows of one array."""
        full = bound(self._array(self.body, name).shape[0])
        if self.remainder is None:
            return turn * full
        return turn * full - turn // self.cycle * (full - bound(self._array(self.remainder, name).shape[0]))

    @staticmethod
    def _array(body: Graph, name: str) -> Spec:
        spec = body.spec(body.outputs[name])
        assert isinstance(spec, Spec)
        return spec

    def _rows_problems(self) -> list[str]:
        """Elements that are rows of one array make just that array."""
        out = []
        for name, rows in self.rows.items():
            specs = [graph.spec(graph.outputs[name]) for graph in (self.body, self.remainder) if graph is not None] if name in self.collected else []
            if any(not isinstance(spec, Spec) or not spec.shape for spec in specs):
                out.append(f"collected {name!r} is {specs[0]!r}, which has no rows")
            elif specs and self.turns and all(isinstance(spec, Spec) and isinstance(spec.shape[0], int) for spec in specs):
                made = self.rows_before(name, self.turns)
                out += [f"collected {name!r}: {self.turns} turns make {made} rows, not {rows}"] if made != rows else []
        return out

    def _carried_problems(self) -> list[str]:
        """Each carried input needs a value of its own, which something gives anew: its bytes are those of the carried output."""
        body, out = self.body, []
        carried = {body.inputs[a]: body.outputs[b] for a, b in self.carried}
        owner: dict[int, str] = {}
        for name, result in self.carried:
            value = body.base(body.outputs[result])
            if value in owner:
                both = f"carried {owner[value]!r} and {name!r}"
                out.append(f"{both} become the same value; carry it once, or give one of them a copy (tensor.scale by 1)")
            owner[value] = name
            seen = {body.inputs[name]}
            while value in carried and value not in seen:
                seen.add(value)
                value = body.base(carried[value])
            if value in carried:
                out.append(f"no task ever gives carried {name!r} a new value; make it an invariant")
            elif int(body.value_task[value]) < 0:
                out.append(f"carried {name!r} becomes {body.value_names[value]!r} as it was; give it a copy of its own (tensor.scale by 1)")
        return out

    def infer(self, specs: Sequence[AnySpec]) -> list[AnySpec]:
        """Specs of the task's outputs for inputs of `specs`; raises `GraphError` with every mismatch."""
        problems, body = [], self.body
        names = self.inputs
        if len(specs) != len(names):
            raise GraphError(f"the loop takes {len(names)} inputs ({', '.join(names)}), got {len(specs)}")
        for name, spec in zip(names, specs, strict=True):
            wanted = body.spec(body.inputs[name])
            if name in self.sequences:
                if isinstance(spec, SequenceSpec):
                    found, n = spec.element, spec.length
                elif isinstance(spec, Spec) and spec.shape:
                    found, n = Spec(spec.shape[1:], spec.dtype), spec.shape[0]
                else:
                    problems.append(f"input {name!r} wants a sequence of {wanted!r}, got {spec!r}")
                    continue
                if found != wanted:
                    problems.append(f"input {name!r} wants elements of {wanted!r}, got {found!r}")
                if n is not None and not isinstance(n, UpTo) and n < self.turns:
                    problems.append(f"input {name!r} has {n} elements, the loop runs {self.turns} turns")
            elif spec != wanted:
                problems.append(f"input {name!r} wants {wanted!r}, got {spec!r}")
        if problems:
            raise GraphError(problems)
        out: list[AnySpec] = [body.spec(body.inputs[a]) for a, _ in self.carried]
        length: int | UpTo = UpTo(self.turns) if self.stop is not None else self.turns
        for name in self.collected:
            element = body.spec(body.outputs[name])
            if isinstance(element, SequenceSpec):
                raise GraphError(f"collected output {name!r} is itself a sequence")
            rows, n = self.rows.get(name), length
            if rows is not None and isinstance(element, Spec) and bound(element.shape[0]):
                batches = -(-rows // bound(element.shape[0]))  # of the array, where the batches of several epochs are rows of one
                n = UpTo(batches) if self.stop is not None else batches
            out.append(SequenceSpec(element, n, rows))
        return out

    def __repr__(self) -> str:
        return f"<Loop {self.name}: {self.turns} turns of {len(self.body)} tasks>"


@dataclass(frozen=True, eq=False)
class If(Nested):
    """A task that runs one of two graphs, as a condition says; the ONNX operator If, with captured values as named inputs.

    The task's inputs are the condition, a scalar of bool or of an integer dtype (true where it is not 0), then the inputs of `then`, then those that
    `otherwise` has beside them: an input of both is one value. Its outputs are those of the branches, which have the same, with the same specs.

    likelihood: of the condition being true, 0 to 1, where it is known: a plan then books the branches' mean time; None: that of the longer one.
    """

    then: Graph
    otherwise: Graph
    likelihood: float | None = None
    name: str = "if"
    pure: bool = True

    @cached_property
    def captured(self) -> tuple[str, ...]:
        """Names of what the branches read from outside."""
        return tuple(dict.fromkeys((*self.then.inputs, *self.otherwise.inputs)))

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("condition", *self.captured)

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(self.then.outputs)

    @property
    def graphs(self) -> tuple[Graph, ...]:
        return self.then, self.otherwise

    @property
    def parts(self) -> Mapping[str, Graph]:
        return {"then/": self.then, "otherwise/": self.otherwise}

    def problems(self) -> list[str]:
        then, other = self.then, self.otherwise
        out = []
        if self.likelihood is not None and not 0 <= self.likelihood <= 1:
            out.append(f"likelihood must be from 0 to 1, got {self.likelihood!r}")
        if not then.outputs and not other.outputs:
            out.append("the branches have no outputs; an if without any does nothing that others could see")
        for name in dict.fromkeys((*then.outputs, *other.outputs)):
            lacks = "then" if name not in then.outputs else "otherwise" if name not in other.outputs else None
            if lacks is not None:
                has = then.outputs if lacks == "then" else other.outputs
                out.append(f"branch `{lacks}` has no output {name!r}{did_you_mean(name, has)}; both branches must have the same outputs")
                continue
            specs = then.spec(then.outputs[name]), other.spec(other.outputs[name])
            if specs[0] != specs[1]:
                out.append(f"output {name!r} is {specs[0]!r} of `then` and {specs[1]!r} of `otherwise`; they must be equal")
            elif ((form := array_form(specs[0])) is not None and form.is_bounded) or isinstance(specs[0], SequenceSpec):
                out.append(f"output {name!r} is {specs[0]!r}; an if gives arrays of known shapes, and objects of the host")
        for name in then.inputs:
            if name in other.inputs:
                specs = then.spec(then.inputs[name]), other.spec(other.inputs[name])
                if specs[0] != specs[1]:
                    out.append(f"input {name!r} is {specs[0]!r} of `then` and {specs[1]!r} of `otherwise`; rename one, or make them equal")
        return out

    def infer(self, specs: Sequence[AnySpec]) -> list[AnySpec]:
        names, problems = self.captured, []
        if len(specs) != 1 + len(names):
            raise GraphError(f"the if takes its condition and {len(names)} inputs ({', '.join(names) or 'none'}), got {len(specs)}")
        condition = specs[0]
        if not isinstance(condition, Spec) or condition.shape or condition.dtype.kind not in "biu":
            problems.append(f"the condition must be a scalar of bool or of an integer dtype, got {condition!r}")
        for name, spec in zip(names, specs[1:], strict=True):
            graph = self.then if name in self.then.inputs else self.otherwise
            wanted = graph.spec(graph.inputs[name])
            if spec != wanted:
                problems.append(f"input {name!r} wants {wanted!r}, got {spec!r}")
        if problems:
            raise GraphError(problems)
        return [self.then.spec(v) for v in self.then.outputs.values()]

    def __repr__(self) -> str:
        return f"<If {self.name}: {len(self.then)} tasks, or {len(self.otherwise)}>"


__all__ = ["TURN", "If", "Loop", "Nested"]
