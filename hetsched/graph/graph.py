"""Graph: the immutable DAG of tasks and values, and its builder. What holds graphs in it (`Loop`, `If`) has a room of its own, `nested`.

A graph is held in arrays (task -> op, inputs and outputs as CSR rows, values -> producer and bytes), so that 100,000 tasks are
built in about a second and planned without conversion; `Task` and `Value` are views made on demand. Tasks stand in a topological order by
construction: a task can only name values that exist. The builder collects every mistake and `freeze` raises them all at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hetsched.errors import GraphError, HetschedError, did_you_mean
from hetsched.graph.nested import TURN, If, Loop, Nested
from hetsched.graph.op import Op, Work
from hetsched.graph.spec import AnySpec, Opaque, Spec, UpTo, array_form, spec_of
from hetsched.graph.spec import Sequence as SequenceSpec

IntArray: TypeAlias = NDArray[np.int64]

# Stands for the spec of a value whose task was wrong, so that one mistake is told once and not again by every reader.
UNKNOWN = Opaque("unknown")


@dataclass(frozen=True, slots=True)
class Where:
    """Where a task may run: device patterns in order of preference (`cpu`, `gpu`, `cuda:0`, `opencl`), excluded ones, or with another task.

    of_parts: it is said of a group of tasks (what a composite op becomes). Those that none of these devices can run, where they can run others of
    the group, go where they can, and the plan notes it. Of a view, which moves no bytes, nothing is asked that it cannot do.
    """

    allow: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    same_as: str | None = None
    of_parts: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """What a task produces, or an input of the graph; written once. A view: `owner` holds the data, `id` is the row."""

    owner: Builder | Graph
    id: int

    @property
    def spec(self) -> AnySpec:
        return self.owner.value_specs[self.id]

    @property
    def name(self) -> str:
        return self.owner.value_names[self.id]

    @property
    def shape(self) -> tuple[Any, ...]:
        """The shape; only of an array value."""
        return self.array_spec.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array_spec.dtype

    @property
    def array_spec(self) -> Spec:
        """The spec as `Spec`; an error for an opaque value or a sequence."""
        spec = self.spec
        if not isinstance(spec, Spec):
            raise GraphError(f"value {self.name!r} is {spec!r}, not an array")
        return spec

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Value) and other.owner is self.owner and other.id == self.id

    def __hash__(self) -> int:
        return hash((id(self.owner), self.id))

    def __repr__(self) -> str:
        return f"<Value {self.name}: {self.spec!r}>"


class Bundle(Mapping[str, Value]):
    """An ordered set of named values that travel together: a model's weights, an optimizer's state. `meta` describes them (plain data)."""

    def __init__(self, values: Mapping[str, Value], kind: str = "bundle", meta: Mapping[str, Any] | None = None) -> None:
        self._values = dict(values)
        self.kind = kind
        self.meta: Mapping[str, Any] = dict(meta or {})

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<Bundle {self.kind}: {', '.join(self._values)}>"


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One use of an op in a graph: a view of row `index`."""

    graph: Graph
    index: int

    @property
    def name(self) -> str:
        return self.graph.task_names[self.index]

    @property
    def op(self) -> Op | Nested:
        return self.graph.task_ops[self.index]

    @property
    def attributes(self) -> Mapping[str, Any]:
        return self.graph.task_attributes[self.index]

    @property
    def inputs(self) -> tuple[int, ...]:
        """Value ids, in the op's order."""
        return self.graph.reads(self.index)

    @property
    def outputs(self) -> range:
        """Value ids, in the op's order."""
        return self.graph.writes(self.index)

    @property
    def where(self) -> Where | None:
        return self.graph.where.get(self.index)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Task) and other.graph is self.graph and other.index == self.index

    def __hash__(self) -> int:
        return hash((id(self.graph), self.index))

    def __repr__(self) -> str:
        return f"<Task {self.name}: {self.op.name}>"


class Graph:
    """The immutable DAG of tasks and named values. Made by `Graph.build()`...`freeze()`.

    task_names, task_ops, task_attributes: one a task, in a topological order.
    input_start, input_values: CSR; task t reads values `input_values[input_start[t]:input_start[t + 1]]`.
    output_start: task t writes values `output_start[t]` to `output_start[t + 1] - 1`; values below `output_start[0]` are inputs and constants.
    value_task: the producer of each value, -1 for inputs and constants. value_nbytes: bytes to plan for.
    after: (before, task) pairs of order-only edges.
    inputs, outputs: name -> value id. constants: value id -> array. bundles: output bundle -> (its values' output names, kind, meta).
    """

    def __init__(self, builder: Builder) -> None:
        b = builder
        n_inputs = len(b.inputs) + len(b.constants)
        # Inputs and constants may be declared between tasks; values are renumbered so that a task's outputs are contiguous after them.
        produced = np.asarray(b.value_producers, dtype=np.int64)
        order = np.argsort(produced, kind="stable") if len(produced) else produced
        renumber = np.empty(len(produced), dtype=np.int64)
        renumber[order] = np.arange(len(produced))
        ids = order.tolist()
        self.value_specs: list[AnySpec] = [b.value_specs[i] for i in ids]
        self.value_names: list[str] = [b.value_names[i] for i in ids]
        self.value_task: IntArray = produced[order]
        sizes = {k: s.nbytes for k, s in {id(s): s for s in self.value_specs}.items()}
        self.value_nbytes: IntArray = np.fromiter((sizes[id(s)] for s in self.value_specs), np.int64, len(ids))
        self.task_names: list[str] = list(b.task_names)
        self.task_ops: list[Op | Nested] = list(b.task_ops)
        self.task_attributes: list[Mapping[str, Any]] = list(b.task_attributes)
        flat = np.asarray([v for row in b.task_inputs for v in row], dtype=np.int64)
        self.input_values: IntArray = renumber[flat] if len(flat) else flat
        self.input_start: IntArray = np.concatenate(([0], np.cumsum([len(row) for row in b.task_inputs], dtype=np.int64))).astype(np.int64)
        counts = np.bincount(self.value_task[n_inputs:], minlength=len(self.task_names)) if len(self.task_names) else np.zeros(0, np.int64)
        self.output_start: IntArray = np.concatenate(([n_inputs], n_inputs + np.cumsum(counts))).astype(np.int64)
        self.after: tuple[tuple[int, int], ...] = tuple(b.after)
        self.where: dict[int, Where] = dict(b.where)
        self.inputs: dict[str, int] = {k: int(renumber[v]) for k, v in b.inputs.items()}
        self.constants: dict[int, Any] = {int(renumber[v]): a for v, a in b.constants.items()}
        self.outputs: dict[str, int] = {k: int(renumber[v]) for k, v in b.outputs.items()}
        self.bundles: dict[str, tuple[tuple[str, ...], str, Mapping[str, Any]]] = dict(b.bundles)
        self.task_index: dict[str, int] = {name: i for i, name in enumerate(self.task_names)}
        self.is_body = False  # of a loop
        self.kinds: Any = None  # what `alike` found

    @staticmethod
    def build(name: str = "graph") -> Builder:
        """A builder of a new graph."""
        return Builder(name)

    def __len__(self) -> int:
        return len(self.task_names)

    @property
    def tasks(self) -> list[Task]:
        """A view of every task, in topological order."""
        return [Task(self, i) for i in range(len(self))]

    @property
    def has_loops(self) -> bool:
        """True if some task is a loop or an if."""
        return any(issubclass(kind, Nested) for kind in set(map(type, self.task_ops)))

    def with_inner(self) -> Iterator[Graph]:
        """This graph, and those in its loops (their bodies) and ifs, at any depth."""
        yield self
        for op in self.task_ops if self.has_loops else ():
            for part in op.parts.values() if isinstance(op, Nested) else ():
                yield from part.with_inner()

    def patterns(self) -> set[tuple[str, ...]]:
        """The device patterns that tasks ask for, in their order of preference; those of graphs in loops and ifs too."""
        out = {tuple(where.allow) for where in self.where.values() if where.allow}
        if self.has_loops:
            out.update(*(g.patterns() for op in self.task_ops if isinstance(op, Nested) for g in op.parts.values()))
        return out

    @cached_property
    def views(self) -> tuple[int, ...]:
        """The tasks of view ops, whose outputs are other shapes of what they read."""
        ops = self.task_ops
        found = {key for key, op in dict(zip(map(id, ops), ops, strict=True)).items() if isinstance(op, Op) and op.view}
        return tuple([task for task, op in enumerate(ops) if id(op) in found]) if found else ()

    @cached_property
    def spec_kinds(self) -> IntArray:
        """A number for each value: values of equal specs have the same."""
        specs = self.value_specs
        known: dict[AnySpec, int] = {}
        of = {key: known.setdefault(spec, len(known)) for key, spec in dict(zip(map(id, specs), specs, strict=True)).items()}
        return np.fromiter(map(of.__getitem__, map(id, specs)), np.int64, len(specs))

    @cached_property
    def unfixed(self) -> frozenset[int]:
        """The values that are no array of a shape that is known before it is made: objects, and what has a bounded dimension."""
        kinds = self.spec_kinds
        _, one = np.unique(kinds, return_index=True)
        loose = [int(kinds[i]) for i in one.tolist() if (form := array_form(self.value_specs[i])) is None or form.is_bounded]
        return frozenset(np.flatnonzero(np.isin(kinds, loose)).tolist()) if loose else frozenset()

    def task(self, name: str) -> Task:
        """The task called `name`."""
        if name not in self.task_index:
            raise GraphError(f"the graph has no task {name!r}{did_you_mean(name, self.task_index)}")
        return Task(self, self.task_index[name])

    def spec(self, value: int) -> AnySpec:
        """The spec of a value by its id."""
        return self.value_specs[value]

    def reads(self, task: int) -> tuple[int, ...]:
        """Value ids that task number `task` reads, in the op's order (a value may stand twice)."""
        return tuple(self.input_values[self.input_start[task] : self.input_start[task + 1]].tolist())

    def work(self, task: int) -> Work:
        """Flops and bytes of a launch of `task` (no loop), by its op's work rule; raises `GraphError` where the rule fails or gives no numbers."""
        op = self.task_ops[task]
        assert isinstance(op, Op)
        ins, outs = [self.value_specs[v] for v in self.reads(task)], [self.value_specs[v] for v in self.writes(task)]
        where = f"task {self.task_names[task]!r}: the work rule of op {op.name}"
        try:
            work = Work(*map(float, op.work(ins, outs, self.task_attributes[task])))
        except Exception as error:
            raise GraphError(f"{where} raised {error!r}; it is to give Work(flops, bytes_read, bytes_written)") from error
        if not all(0 <= x < math.inf for x in work):
            raise GraphError(f"{where} gave {work}; flops and bytes are finite and at least 0")
        return work

    def writes(self, task: int) -> range:
        """Value ids that task number `task` writes."""
        return range(int(self.output_start[task]), int(self.output_start[task + 1]))

    def base(self, value: int) -> int:
        """The value whose bytes a value shows: itself, or what the view ops that lead to it started from."""
        while (task := int(self.value_task[value])) >= 0 and isinstance(op := self.task_ops[task], Op) and op.view:
            value = self.reads(task)[0]
        return value

    def readers(self) -> list[list[int]]:
        """For each value the tasks that read it, each once, ascending."""
        out: list[list[int]] = [[] for _ in self.value_specs]
        starts, values = self.input_start.tolist(), self.input_values.tolist()
        for t in range(len(self)):
            for v in dict.fromkeys(values[starts[t] : starts[t + 1]]):
                out[v].append(t)
        return out

    def predecessors(self) -> list[list[int]]:
        """For each task the tasks it waits for (data and `after`), each once."""
        producer = self.value_task.tolist()
        starts, values = self.input_start.tolist(), self.input_values.tolist()
        out = [list(dict.fromkeys(producer[v] for v in values[starts[t] : starts[t + 1]] if producer[v] >= 0)) for t in range(len(self))]
        for before, task in self.after:
            if before not in out[task]:
                out[task].append(before)
        return out

    def to_networkx(self) -> Any:
        """A `networkx.MultiDiGraph`: nodes are task names and `input:NAME` (attributes `op`, `attributes`), an edge a use of a value

        (attributes `value`, `output`, `input`: names and positions; `nbytes`). `Graph.from_networkx` takes it back.
        """
        from hetsched.graph.interchange import to_networkx

        return to_networkx(self)

    @staticmethod
    def from_networkx(view: Any) -> Graph:
        """The graph of a networkx view as `to_networkx` writes it; a cycle is an error that names it."""
        from hetsched.graph.interchange import from_networkx

        graph: Graph = from_networkx(view)
        return graph

    def __repr__(self) -> str:
        ends = f"inputs {', '.join(self.inputs) or '-'}, outputs {', '.join(self.outputs) or '-'}"
        return f"<Graph: {len(self)} tasks, {len(self.value_specs)} values, {ends}>"


class Builder:
    """A graph being written. Mistakes are collected; `freeze` raises them all at once."""

    def __init__(self, name: str = "graph") -> None:
        self.name = name
        self.value_specs: list[AnySpec] = []
        self.value_names: list[str] = []
        self.value_producers: list[int] = []
        self.task_names: list[str] = []
        self.task_ops: list[Op | Nested] = []
        self.task_attributes: list[Mapping[str, Any]] = []
        self.task_inputs: list[tuple[int, ...]] = []
        self.task_outputs: list[tuple[int, ...]] = []
        self.after: list[tuple[int, int]] = []
        self.where: dict[int, Where] = {}
        self.inputs: dict[str, int] = {}
        self.constants: dict[int, Any] = {}
        self.outputs: dict[str, int] = {}
        self.bundles: dict[str, tuple[tuple[str, ...], str, Mapping[str, Any]]] = {}
        self.problems: list[str] = []
        self.cause: Exception | None = None  # what a shape rule raised that was no GraphError
        self._used: dict[str, int] = {}
        self._scope = ""
        self._where: Where | None = None
        self._after: tuple[int, ...] = ()
        self._inferred: dict[Any, tuple[Any, ...]] = {}

    # Values -------------------------------------------------------------------------------------------------------------------

    def _value(self, name: str, spec: AnySpec, producer: int) -> int:
        self.value_specs.append(spec)
        self.value_names.append(name)
        self.value_producers.append(producer)
        return len(self.value_specs) - 1

    def input(self, name: str, shape: Iterable[int | UpTo] | AnySpec, dtype: Any = np.float32) -> Value:
        """An input of the graph: an array of `shape` and `dtype`, or of any spec."""
        spec = shape if isinstance(shape, (Spec, Opaque, SequenceSpec)) else Spec(shape, dtype)
        if name in self.inputs:
            self.problems.append(f"the graph has two inputs {name!r}; rename one")
        self.inputs[name] = self._value(name, spec, -1)
        return Value(self, self.inputs[name])

    def constant(self, array: Any, name: str | None = None) -> Value:
        """A constant: its own copy of `array`, read-only (or any object given as is, with an `Opaque` spec)."""
        if isinstance(array, (np.ndarray, np.generic, int, float, bool)):
            array = np.array(array, order="C")
            array.setflags(write=False)
            spec: AnySpec = spec_of(array)
        else:
            spec = Opaque(type(array).__name__)
        i = self._value(self._unique(name or "constant"), spec, -1)
        self.constants[i] = array
        return Value(self, i)

    def output(self, value: Value | Bundle, name: str | None = None) -> Builder:
        """Name a value, or every value of a bundle (as `NAME/VALUE`), as an output. Returns the builder."""
        if isinstance(value, Bundle):
            if name is None:
                raise GraphError("an output that is a bundle needs a name")
            parts = []
            for part, v in value.items():
                self.output(v, f"{name}/{part}")
                parts.append(f"{name}/{part}")
            self.bundles[name] = (tuple(parts), value.kind, value.meta)
            return self
        self._own(value, "an output")
        name = name or value.name
        if name in self.outputs:
            self.problems.append(f"the graph has two outputs {name!r}; name one with output(value, name=...)")
        self.outputs[name] = value.id
        return self

    def _own(self, value: Any, where: str) -> None:
        if not isinstance(value, Value):
            raise GraphError(f"{where} must be a value of this builder, got {type(value).__name__}; wrap arrays with constant() or input()")
        if value.owner is not self:
            raise GraphError(f"{where}: value {value.name!r} belongs to another builder")

    # Tasks --------------------------------------------------------------------------------------------------------------------

    def _unique(self, name: str) -> str:
        name = self._scope + name
        n = self._used.get(name, 0)
        self._used[name] = n + 1
        if n == 0:
            return name
        while f"{name}_{n}" in self._used:
            n += 1
        self._used[name] = n + 1
        self._used[f"{name}_{n}"] = 1
        return f"{name}_{n}"

    @contextmanager
    def scope(self, name: str = "", where: Where | None = None, after: Iterable[int] = ()) -> Iterator[None]:
        """Inside, tasks are named `NAME/...`, and run where `where` says and after the tasks numbered `after`."""
        saved = self._scope, self._where, self._after
        self._scope = f"{self._scope}{name}/" if name else self._scope
        self._where = where if where is not None else self._where
        self._after = (*self._after, *after)
        try:
            yield
        finally:
            self._scope, self._where, self._after = saved

    def op(
        self, op: Op | str, *inputs: Value, name: str | None = None, where: Where | None = None, after: Iterable[Value] = (), **attributes: Any
    ) -> Any:
        """Append a task. Returns its value, or a tuple of values where the op has several outputs (a list for an op with variable outputs)."""
        if isinstance(op, str):
            from hetsched.graph.ops import find

            op = find(op)
        ids = []
        for i, value in enumerate(inputs):
            if type(value) is not Value or value.owner is not self:
                self._own(value, f"input {i} of {op.name}")
            ids.append(value.id)
        task_name = self._unique(name or op.name.rpartition(".")[2])
        specs = [self.value_specs[i] for i in ids]
        if attributes or op.attributes:
            if op.random and "key" not in attributes:
                attributes["key"] = task_name
            try:
                attributes = op.check_attributes(attributes)
            except GraphError as error:
                self.problems += [f"task {task_name!r}: {p}" for p in error.problems]
                return self._poisoned(op, task_name, tuple(ids))
        key: Any
        try:
            key = (id(op), *specs, *attributes.items()) if not op.random else (id(op), *specs, *((k, v) for k, v in attributes.items() if k != "key"))
            found = self._inferred.get(key)
        except TypeError:
            key, found = None, None
        if found is None:
            wrong = _arity(op, len(ids))
            if wrong is None and any(s is UNKNOWN for s in specs):
                return self._poisoned(op, task_name, tuple(ids))
            try:
                if wrong is not None:
                    raise GraphError(wrong)
                found = tuple(op.infer(specs, attributes))
            except GraphError as error:
                seen = ", ".join(f"{n} {s!r}" for n, s in zip(_names(op.inputs, len(specs)), specs, strict=False))
                self.problems += [f"task {task_name!r} ({op.name}): {p} (inputs: {seen or 'none'})" for p in error.problems]
                return self._poisoned(op, task_name, tuple(ids))
            except HetschedError:
                raise
            except Exception as error:  # a shape rule of the user's own; the others' mistakes are told with it
                self.problems.append(f"task {task_name!r}: the shape rule of op {op.name} raised {error!r}; it is to raise GraphError, or give specs")
                self.cause = self.cause or error
                return self._poisoned(op, task_name, tuple(ids))
            if key is not None:
                self._inferred[key] = found
        return self._append(op, task_name, tuple(ids), found, attributes, where, after)

    def _append(
        self, op: Op | Nested, task_name: str, ids: tuple[int, ...], specs: Sequence[AnySpec], attributes: Mapping[str, Any],
        where: Where | None, after: Iterable[Value],
    ) -> Any:  # fmt: skip
        t = len(self.task_names)
        self.task_names.append(task_name)
        self.task_ops.append(op)
        self.task_attributes.append(attributes)
        self.task_inputs.append(ids)
        where = where if where is not None else self._where
        if where is not None:
            self.where[t] = where
        for value in after:
            self._own(value, "after")
            if self.value_producers[value.id] >= 0:
                self.after.append((self.value_producers[value.id], t))
        if self._after:
            self.after += [(a, t) for a in self._after]
        if len(specs) == 1 and not op.outputs[0].endswith("*"):
            out = self._value(task_name, specs[0], t)
            self.task_outputs.append((out,))
            return Value(self, out)
        names = _names(op.outputs, len(specs))
        outs = tuple(self._value(f"{task_name}.{n}", s, t) for n, s in zip(names, specs, strict=True))
        self.task_outputs.append(outs)
        return tuple(Value(self, o) for o in outs)

    def _poisoned(self, op: Op | Nested, task_name: str, ids: tuple[int, ...]) -> Any:
        n = len(op.outputs) if not (op.outputs and op.outputs[-1].endswith("*")) else len(op.outputs) - 1
        return self._append(op, task_name, ids, [UNKNOWN] * max(n, 0), {}, None, ())

    def loop(self, loop: Loop, *inputs: Value, name: str | None = None, where: Where | None = None) -> tuple[Value, ...]:
        """Append a loop; `inputs` in the order of `loop.inputs`. Returns the values of `loop.outputs`."""
        return self.nested(loop, inputs, name=name, where=where)

    def branch(
        self, condition: Value, then: Graph, otherwise: Graph, inputs: Mapping[str, Value] | None = None, *, likelihood: float | None = None,
        name: str | None = None, where: Where | None = None,
    ) -> dict[str, Value]:  # fmt: skip
        """Append an `If`: a run does `then` where `condition` (a scalar of bool or of an integer dtype) is true, else `otherwise`, and only that.

        inputs: a value for each input that a branch has. likelihood: of the condition being true, for the plan (`If`). Returns the value of each
        output by its name, in the order of `then`.
        """
        given, op = dict(inputs or {}), If(then, otherwise, likelihood, name=name or "if")
        known = op.captured
        problems = [f"no branch has an input {x!r}{did_you_mean(x, known)}; leave it out" for x in given if x not in known]
        problems += [f"input {x!r} is not bound; give it as inputs={{{x!r}: value}}" for x in known if x not in given]
        if problems:
            task_name = self._unique(op.name)
            self.problems += [f"if {task_name!r}: {p}" for p in problems]
            made = self._poisoned(op, task_name, ())
            out = made if isinstance(made, tuple) else (made,)
        else:
            out = self.nested(op, (condition, *(given[x] for x in known)), where=where)
        return dict(zip(op.outputs, out, strict=True))

    def nested(self, op: Nested, inputs: Sequence[Value], *, name: str | None = None, where: Where | None = None) -> tuple[Value, ...]:
        """Append a loop or an if; `inputs` in the order of `op.inputs`. Returns the values of `op.outputs`."""
        kind = "loop" if isinstance(op, Loop) else "if"
        for i, value in enumerate(inputs):
            self._own(value, f"input {i} of the {kind}")
        task_name = self._unique(name or op.name)
        problems = op.problems()
        specs = [v.spec for v in inputs]
        if not problems and not any(s is UNKNOWN for s in specs):
            try:
                out = self._append(op, task_name, tuple(v.id for v in inputs), op.infer(specs), {}, where, ())
                return out if isinstance(out, tuple) else (out,)
            except GraphError as error:
                problems += error.problems
        self.problems += [f"{kind} {task_name!r}: {p}" for p in problems]
        out = self._poisoned(op, task_name, tuple(v.id for v in inputs))
        return out if isinstance(out, tuple) else (out,)

    def last_task(self) -> int:
        """The number of the task appended last, -1 where there is none."""
        return len(self.task_names) - 1

    def freeze(self) -> Graph:
        """The finished graph, without what nobody asks its loops for (`prune`); raises `GraphError` with every mistake made while building."""
        from hetsched.graph.prune import prune

        for task, where in self.where.items():
            if where.same_as is not None and where.same_as not in self._used:
                self.problems.append(
                    f"task {self.task_names[task]!r}: same_as names no task: {where.same_as!r}{did_you_mean(where.same_as, self.task_names)}"
                )
        if self.problems:
            raise GraphError(self.problems) from self.cause
        return prune(Graph(self))

    def __repr__(self) -> str:
        return f"<Builder {self.name}: {len(self.task_names)} tasks, {len(self.problems)} problems>"


def _names(names: tuple[str, ...], n: int) -> list[str]:
    """Names for `n` values of an op whose last name may stand for any number."""
    if names and names[-1].endswith("*"):
        fixed = [x.rstrip("?") for x in names[:-1]]
        return [*fixed, *(f"{names[-1][:-1]}{i}" for i in range(n - len(fixed)))][:n]
    return [x.rstrip("?") for x in names]


def _arity(op: Op, n: int) -> str | None:
    most = len(op.inputs)
    least = sum(not x.endswith(("?", "*")) for x in op.inputs)
    if op.inputs and op.inputs[-1].endswith("*"):
        return None if n >= least else f"takes at least {least} inputs ({', '.join(op.inputs)}), got {n}"
    if least <= n <= most:
        return None
    return f"takes {least if least == most else f'{least} to {most}'} inputs ({', '.join(op.inputs)}), got {n}"


__all__ = ["TURN", "UNKNOWN", "Builder", "Bundle", "Graph", "If", "Loop", "Nested", "Task", "Value", "Where"]
