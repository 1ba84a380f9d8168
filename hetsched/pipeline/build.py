"""A pipeline file to a graph: `load` for the graph or an error with every mistake, `check` for the mistakes alone."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from hetsched.errors import FileError, GraphError, HetschedError, InternalError
from hetsched.graph.formats import reading
from hetsched.graph.graph import UNKNOWN, Builder, Bundle, Graph, If, Nested, Value, Where
from hetsched.graph.model import ModelError, parse
from hetsched.graph.op import Composite, Op, Scene
from hetsched.graph.ops import registry
from hetsched.graph.ops.model import metadata_of
from hetsched.graph.sequence import LazySequence, apply, materialize, whole
from hetsched.graph.spec import AnySpec, Spec
from hetsched.graph.spec import Sequence as SequenceSpec
from hetsched.machine import Machine
from hetsched.pipeline import devices, document, kernels, paths
from hetsched.pipeline.document import Document, Edge, OutputEntry, TaskEntry
from hetsched.pipeline.mistakes import Findings, Mistake, TooManyMistakesError, error_for, hint
from hetsched.pipeline.publish import form_problem, unwritable, write
from hetsched.pipeline.reader import BROKEN, MAX_BYTES, Item, Node, read
from hetsched.pipeline.trust import is_trusted

_TASK_PREFIX = re.compile(r"(?:task|loop|if) '[^']*'(?: \([^)]*\))?: ")
_OPTION = re.compile(r"option '([^']+)'")
_QUOTED = re.compile(r"'([^']+)'")
_FIRST_WORD = re.compile(r"(?:input )?'?([A-Za-z_][A-Za-z0-9_]*)")
_MOST_BYTES = 1 << 62


@dataclass(frozen=True)
class Output:
    """An output of a pipeline.

    source: `task.output` as the file says. kind: `array`, or a bundle's kind (`model`, `metrics`, ...). values: part -> name of the graph's output
    (one part, the output's own name, where it is no bundle). save: the path as the file says, or None. path: where that is.
    meta: what describes a bundle, plain data.
    """

    name: str
    source: str
    kind: str
    values: Mapping[str, str]
    save: str | None = None
    path: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_bundle(self) -> bool:
        """True if the output is a bundle of named values, False if it is one array."""
        return self.kind != "array"


@dataclass(frozen=True)
class Pipeline:
    """A pipeline file, checked and built.

    name: as the file says, else the file's. path: as it was given. folder: where its relative paths start. graph: what is to be computed;
    its outputs are those of `outputs`, a bundle's parts as `NAME/PART`. tasks: the file's tasks -> their ops. params: after overrides.
    objective: time, latency, energy, price, or weights of them as a text (`time=0.5,energy=0.5`). constraints: `deadline_seconds` where given.
    sha256: of the file's bytes. places: task of the file -> where its `device:` stands, or its name where it has none.
    """

    name: str
    path: str
    folder: str
    graph: Graph
    outputs: Mapping[str, Output]
    tasks: Mapping[str, str]
    params: Mapping[str, Any]
    objective: str
    constraints: Mapping[str, float]
    sha256: str
    places: Mapping[str, Mistake] = field(default_factory=dict)

    @property
    def goal(self) -> str:
        """The objective with its deadline, as `hetsched.plan(objective=...)` takes it."""
        deadline = self.constraints.get("deadline_seconds")
        return self.objective if deadline is None else f"{self.objective},deadline={deadline!r}s"

    def __repr__(self) -> str:
        return f"<Pipeline {self.name}: {len(self.tasks)} tasks, {len(self.graph)} of them primitive, outputs {', '.join(self.outputs) or '-'}>"


def load(
    path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None, *, trust: bool = False, machine: Machine | None = None
) -> Pipeline:
    """The pipeline in the file at `path`. Reads the file and headers of the data it names; runs nothing.

    overrides: parameters by name, as values or as the texts of `-s name=value` (read as YAML scalars). trust: consent to code and to paths outside.
    machine: whose devices and kinds of devices the file may name, beside those known everywhere.
    Raises `InvalidPipelineError` (a `PipelineError`) or `ConsentError` (a `NotTrustedError`) with `mistakes`, `CommandLineError` for an override that
    does not fit, `FileError` where the file or the data it names cannot be read.
    """
    pipeline, findings = _read(os.fspath(path), overrides or {}, trust, machine)
    if pipeline is None:
        raise error_for(findings.sorted())
    return pipeline


def check(
    path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None, *, trust: bool = False, machine: Machine | None = None
) -> list[Mistake]:
    """Every mistake in the file at `path`, in its order; empty where `load` would give a pipeline. Raises only what has no place in the file."""
    return _read(os.fspath(path), overrides or {}, trust, machine)[1].sorted()


def refuse_unwritable(pipeline: Pipeline, folder: str | os.PathLike[str] | None = None) -> None:
    """`FileError` where an output could not be written, as far as that shows before a run; `folder` as for `publish`."""
    for output in pipeline.outputs.values():
        place = _place(output, folder)
        problem = unwritable(place) if place is not None else None
        if problem is not None:
            raise FileError(f"{place}: output {output.name!r} cannot be written: {problem}")


def _place(output: Output, folder: str | os.PathLike[str] | None) -> str | None:
    """Where an output is written; None where it is not."""
    if output.path is None or output.save is None:
        return None
    return output.path if folder is None else os.path.join(folder, output.save)


class UnwrittenError(FileError):
    """Outputs could not be written. written: output -> path of those that could."""

    def __init__(self, message: str, written: Mapping[str, str]) -> None:
        self.written = dict(written)
        super().__init__(message)

    def __reduce__(self) -> tuple[type[UnwrittenError], tuple[str, dict[str, str]]]:
        return type(self), (str(self), self.written)


def publish(pipeline: Pipeline, results: Mapping[str, Any], folder: str | os.PathLike[str] | None = None) -> dict[str, str]:
    """Write every output that has a `save`; returns output -> path written. Each file appears complete or not at all.

    results: arrays by the names of the graph's outputs. folder: where relative paths start, in place of the pipeline's folder. One that cannot be
    written keeps none of the others: `UnwrittenError` at the end names each, and those that are there.
    """
    written: dict[str, str] = {}
    lost: list[str] = []
    for output in pipeline.outputs.values():
        place = _place(output, folder)
        if place is None:
            continue
        parts = {part: results[name] for part, name in output.values.items()}
        value = parts if output.is_bundle else parts[output.name]
        try:
            write(place, value, name=output.name, metadata=metadata_of(output.meta))
        except FileError as error:
            lost.append(f"output {output.name!r}: {error}")
            continue
        written[output.name] = place
    if lost:
        raise UnwrittenError("; ".join(lost) + (f" (written: {', '.join(written)})" if written else ""), written)
    return written


def _read(path: str, overrides: Mapping[str, Any], trust: bool, machine: Machine | None) -> tuple[Pipeline | None, Findings]:
    findings = Findings(path, devices=devices.names_in(machine))
    data = _bytes_of(path)
    try:
        return _built(path, data, overrides, trust, findings), findings
    except TooManyMistakesError:
        return None, findings


def _built(path: str, data: bytes, overrides: Mapping[str, Any], trust: bool, findings: Findings) -> Pipeline | None:
    """The pipeline in a file's bytes, or None: then `findings` say why."""
    digest = hashlib.sha256(data).hexdigest()
    root = read(data, findings)
    if root is None:
        return None
    folder = os.path.dirname(os.path.abspath(path))
    sources = kernels.Sources(root, folder)
    consent = trust or is_trusted(path, lambda: sources.digest(digest))
    own, broken = kernels.read(root, folder, sources, consent, findings)
    checked = document.check(root, overrides, {**registry(), **own}, findings)
    if broken:  # what is wrong with a kernel is told where it stands, not again at its uses
        findings.found[:] = [m for m in findings.found if not (m.rule == "op" and any(m.message.startswith(f"unknown op {n!r}") for n in broken))]
    if checked is None:
        return None
    builder = Builder(checked.name or os.path.splitext(os.path.basename(path))[0])
    build = _Build(checked, builder, findings, folder, consent)
    build.models()
    for entry in checked.tasks.values():
        build.task(entry)
    outputs = {name: output for name, entry in checked.outputs.items() if (output := build.output(entry, os.path.abspath(path))) is not None}
    build.join_same_as()
    if findings.found:
        return None
    try:
        graph = builder.freeze()
    except GraphError as error:
        for problem in error.problems:
            findings.add(checked.place, problem, "graph")
        return None
    tasks = {name: entry.op.name for name, entry in checked.tasks.items() if entry.op is not None}
    return Pipeline(
        builder.name, path, folder, graph, MappingProxyType(outputs), MappingProxyType(tasks), MappingProxyType(checked.params.values),
        checked.objective, MappingProxyType(dict(checked.constraints)), digest,
        MappingProxyType({name: findings.mistake(entry.place.line, entry.place.column, "", "device") for name, entry in checked.tasks.items()}),
    )  # fmt: skip


def _bytes_of(path: str) -> bytes:
    """The bytes of a pipeline file, at most one more than it may have."""
    try:
        with reading(path, "a pipeline file"), open(path, "rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except FileError as error:
        if not os.path.exists(path):
            folder = os.path.dirname(path)
            try:
                others = [os.path.join(folder, n) for n in os.listdir(folder or ".") if n.endswith((".yaml", ".yml"))]
            except OSError:
                others = []
            raise FileError(f"{path}: there is no such pipeline file{hint(path, others)}") from error
        raise


class _Build:
    """A graph being built from a checked document; what goes wrong is noted at the place it came from."""

    def __init__(self, checked: Document, builder: Builder, findings: Findings, folder: str, consent: bool) -> None:
        self.document, self.builder, self.findings = checked, builder, findings
        self.folder, self.consent = folder, consent
        self.results: dict[str, Mapping[str, Any]] = {}  # task -> its outputs by name, where it was built
        self.ranges: dict[str, range] = {}  # task -> the numbers of its primitive tasks
        self.saved: dict[str, str] = {}  # path -> the output that is saved there
        self.inputs: dict[str, str] = {}  # path read -> the task that reads it
        self.broken_models: set[str] = set()
        self.around: dict[str, Any] = {}  # in a branch: edge -> what comes from around it

    # Models ---------------------------------------------------------------------------------------------------------------------

    def models(self) -> None:
        """Check every model; mistakes at their places inside the description."""
        for name, data in self.document.models.items():
            if data is BROKEN:
                self.broken_models.add(name)
                continue
            try:
                parse(data)
            except ModelError as error:
                self.broken_models.add(name)
                for path, problem in error.places:
                    self.findings.add(_inside(self.document.model_items[name], path, problem), f"model {name!r}: {problem}", "model")

    def _model_is_fine(self, entry: TaskEntry) -> bool:
        """False where the option `model` of a composite names no model, or a broken one."""
        name = entry.options.get("model")
        if not isinstance(entry.op, Composite) or not isinstance(name, str) or "model" not in entry.option_items:
            return True
        models = self.document.models
        if name not in models:
            known = hint(name, models) or "; add it to a section `models:`"
            self.findings.add(entry.option_items["model"].value, f"unknown model {name!r}{known}", "model")
        return name in models and name not in self.broken_models

    # Tasks ----------------------------------------------------------------------------------------------------------------------

    def task(self, entry: TaskEntry) -> None:
        """Build one task of the file; without a result where it, or what it reads, is wrong."""
        told = len(self.findings.found)
        fine = self._paths(entry)
        fine = self._model_is_fine(entry) and fine
        if entry.broken or not fine:
            return
        inputs = self._values(entry)
        if inputs is None or any(name not in self.ranges for name, _ in entry.after):
            return
        if not self._can_be_followed(entry):
            return
        assert entry.op is not None
        builder, first = self.builder, len(self.builder.task_names)
        known, first_value = len(builder.problems), len(builder.value_specs)
        after = sorted({i for name, _ in entry.after for i in self._last_tasks(name)})
        problems: list[str] = []
        results: Mapping[str, Any] = {}
        try:
            results = self._expand(entry, inputs, after)
            if builder.cause is not None:  # a shape rule stumbled
                cause, builder.cause = builder.cause, None
                del builder.problems[known:]
                raise cause
        except ModelError as error:
            item = entry.option_items.get("model")
            for path, problem in error.places:
                self.findings.add(entry.key if item is None else _inside(item, path, problem), f"task {entry.name!r}: {problem}", "model")
            return
        except GraphError as error:
            problems += error.problems
        except FileError as error:
            self.findings.add(self._path_place(entry), f"{error}; replace the file, or name another", "damaged")
            return
        except HetschedError:
            raise
        except Exception as error:
            if self._blame_bundles(entry, inputs) or self._blame_free_options(entry, error):
                return
            what = f"task {entry.name!r} ({entry.op.name}): {type(error).__name__}: {error}"
            raise InternalError(f"{what}; this is a bug in the op: please report it") from error
        problems = builder.problems[known:] + problems
        del builder.problems[known:]
        problems += [_too_large(v) for v in map(self._view, range(first_value, len(builder.value_specs))) if v.spec.nbytes > _MOST_BYTES]
        for problem in problems:
            self._blame(entry, problem)
        if len(self.findings.found) == told and entry.after and not self._can_follow(entry, first):
            return
        if not problems and len(self.findings.found) == told:
            self.results[entry.name] = results
            self.ranges[entry.name] = range(first, len(builder.task_names))

    def _view(self, value: int) -> Value:
        return Value(self.builder, value)

    def _values(self, entry: TaskEntry) -> dict[str, Any] | None:
        """What a task reads, by input name: a value, or a list for an input that takes any number. None where some of it is wrong."""
        assert entry.op is not None
        marks = document.fixed_inputs(entry.op)
        out: dict[str, Any] = {}
        fine = True
        for name, edges in entry.inputs.items():
            values = [self._value(e) for e in edges]
            if any(v is None for v in values):
                fine = False
                continue
            out[name] = values if marks[name] == "*" else values[0]
            if isinstance(entry.op, Op):
                for found, value in zip(edges, values, strict=True):
                    if isinstance(value, Bundle):
                        self._no_bundle(entry, name, found, value)
                        fine = False
        return out if fine else None

    def _no_bundle(self, entry: TaskEntry, name: str, found: Edge, value: Bundle) -> None:
        assert entry.op is not None
        message = f"input {name!r} of op {entry.op.name} takes an array, not a {value.kind} of {', '.join(list(value)[:5])}"
        self.findings.add(found.node, message, "shape")

    def _blame_bundles(self, entry: TaskEntry, inputs: Mapping[str, Any]) -> bool:
        """True, and noted, where a composite stumbled over a bundle (a model, say) at an input that is not called like it."""
        wrong = [(name, value) for name, value in inputs.items() if isinstance(value, Bundle) and value.kind != name]
        for name, value in wrong:
            self._no_bundle(entry, name, entry.inputs[name][0], value)
        return bool(wrong)

    def _blame_free_options(self, entry: TaskEntry, error: Exception) -> bool:
        """True, and noted, where an op stumbled over the type of an option that its attributes leave free (kind "any")."""
        assert entry.op is not None
        free = [name for name in entry.option_items if entry.op.attributes[name].kind == "any"]
        if not free or not isinstance(error, (TypeError, ValueError, LookupError, AttributeError)):
            return False
        message = f"op {entry.op.name} cannot take option {free[0]!r} as it is ({error}); `hetsched ops {entry.op.name}` describes what it wants"
        self.findings.add(entry.option_items[free[0]].value, message, "option")
        return True

    def _value(self, found: Edge) -> Any:
        """The value of an edge; None where its task was not built, or gives no such output (noted)."""
        if found.task not in self.document.tasks:
            return self.around.get(_text(found))
        results = self.results.get(found.task)
        if results is None:
            return None
        if found.output is not None and found.output in results:
            return results[found.output]
        if found.output is None and len(results) == 1:
            return next(iter(results.values()))
        choices = ", ".join(f"{found.task}.{n}" for n in results)
        if found.output is None:
            self.findings.add(found.node, f"task {found.task!r} has {len(results)} outputs; name one: {choices}", "output")
        else:
            self.findings.add(found.node, f"task {found.task!r} has no output {found.output!r}{hint(found.output, results)}", "output")
        return None

    def _expand(self, entry: TaskEntry, inputs: Mapping[str, Any], after: list[int]) -> Mapping[str, Any]:
        """Append the task's primitive tasks; returns its outputs by name."""
        op, builder = entry.op, self.builder
        where = Where(same_as=entry.same_as[0]) if entry.same_as is not None else entry.where
        if entry.branches:
            with builder.scope("", where, after):
                return self._if(entry, inputs)
        if isinstance(op, Composite):
            where = replace(where, of_parts=True) if where is not None else None
            with builder.scope(entry.name, where, after):
                return dict(op.expand(builder, inputs, entry.options, Scene(self.document.models, self._resolve)))
        assert isinstance(op, Op)
        flat: list[Any] = []
        for name, mark in document.fixed_inputs(op).items():
            flat += inputs.get(name, []) if mark == "*" else [inputs[name]] if name in inputs else [None]
        while flat and flat[-1] is None:
            flat.pop()
        if any(v is None for v in flat):
            left_out = [n for n, mark in document.fixed_inputs(op).items() if mark == "?" and n not in inputs]
            raise GraphError(f"op {op.name} takes its inputs in order ({', '.join(op.inputs)}); give {', '.join(left_out)} too")
        with builder.scope("", where, after):
            found = apply(builder, op, flat, entry.options, name=entry.name)
        if not isinstance(found, (tuple, list)):
            return {op.outputs[0]: found}
        names = document.output_names(op) or [f"{op.outputs[-1][:-1]}{i}" for i in range(len(found))]
        return dict(zip(names, found, strict=True))

    # Ifs ------------------------------------------------------------------------------------------------------------------------

    def _if(self, entry: TaskEntry, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Append an if with what its branches expand to; returns its outputs by name."""
        told, condition = len(self.findings.found), inputs[document.CONDITION]
        place = entry.inputs[document.CONDITION][0].node
        if not isinstance(condition, Value):
            self.findings.add(place, f"the condition of if {entry.name!r} must be one number, not {condition!r}", "if")
            return {}
        given: dict[str, Value] = {}
        around = {name: self._handed(name, value, given) for name, value in inputs.items() if name != document.CONDITION}
        made = {key: self._branch(key, entry, branch, around) for key, branch in entry.branches.items()}
        then, other = made["then"][0], made["else"][0]
        if then is None or other is None:
            return {}
        op = If(then, other, entry.likelihood, name=entry.name)
        for problem in op.problems():
            word = _QUOTED.search(problem)
            name = word[1].partition("/")[0] if word is not None else ""
            node = entry.branches["else"].outputs[name].node if name in entry.branches["else"].outputs else entry.key
            self.findings.add(node, f"if {entry.name!r}: {problem}", "if")
        spec = condition.spec
        if not isinstance(spec, Spec) or spec.shape or spec.dtype.kind not in "biu":
            self.findings.add(place, f"the condition of if {entry.name!r} must be a scalar of bool or of an integer dtype, got {spec!r}", "if")
        if len(self.findings.found) > told:
            return {}
        values = dict(zip(op.outputs, self.builder.nested(op, [condition, *(given[name] for name in op.captured)]), strict=True))
        shown = made["then"][1]
        return {
            name: Bundle({part: values[f"{name}/{part}"] for part in kind}, kind.kind, kind.meta) if isinstance(kind, Bundle) else values[name]
            for name, kind in shown.items()
        }

    def _handed(self, name: str, value: Any, given: dict[str, Value]) -> Any:
        """What a branch gets of a value around it, as values of this builder: an array, or a bundle of arrays. They are noted in `given`."""
        if isinstance(value, Bundle):
            for part, inner in value.items():
                given[f"{name}/{part}"] = inner
            return value
        given[name] = self._as_array(value, name)
        return given[name]

    def _as_array(self, value: Any, name: str) -> Any:
        if isinstance(value, LazySequence):
            value = materialize(self.builder, value)
        return whole(self.builder, value, name=f"{name}_whole") if isinstance(value, Value) and isinstance(value.spec, SequenceSpec) else value

    def _branch(
        self, key: str, entry: TaskEntry, branch: document.BranchEntry, around: Mapping[str, Any]
    ) -> tuple[Graph | None, dict[str, Bundle | Value]]:
        """The graph of a branch, or None where something in it is wrong, and its outputs."""
        told = len(self.findings.found)
        inner = _Build(
            replace(self.document, tasks=branch.tasks, outputs={}), Builder(f"{entry.name}/{key}"), self.findings, self.folder, self.consent
        )
        inner.broken_models, inner.saved, inner.inputs = self.broken_models, self.saved, self.inputs
        used = {_text(e) for e in document.outward(branch)}
        for name, value in around.items():
            if name in used and isinstance(value, Bundle):
                parts = {part: inner.builder.input(f"{name}/{part}", v.spec) for part, v in value.items()}
                inner.around[name] = Bundle(parts, value.kind, value.meta)
            elif name in used:
                inner.around[name] = inner.builder.input(name, value.spec)
        for task in branch.tasks.values():
            inner.task(task)
        inner.join_same_as()
        made: dict[str, Bundle | Value] = {}
        for name, found in branch.outputs.items():
            value = inner._value(found)
            if value is not None:
                made[name] = inner._as_array(value, name)
                inner.builder.output(made[name], name)
        if len(self.findings.found) > told or len(made) < len(branch.outputs):
            return None, made
        try:
            return inner.builder.freeze(), made
        except GraphError as error:
            for problem in error.problems:
                self.findings.add(branch.key, f"if {entry.name!r}: {problem}", "graph")
            return None, made

    def _can_be_followed(self, entry: TaskEntry) -> bool:
        """False where `after` names a task that has no tasks of its own, because its work is done inside the loop of its reader."""
        vague = [(name, node) for name, node in entry.after if not self.ranges[name]]
        for name, node in vague:
            self.findings.add(node, f"after: task {name!r} works batch by batch inside the loop that reads it; name the task that reads it", "after")
        return not vague

    def _can_follow(self, entry: TaskEntry, first: int) -> bool:
        """False where a task with `after` got no tasks of its own."""
        if len(self.builder.task_names) > first:
            return True
        message = f"after: task {entry.name!r} works batch by batch inside the loop that reads it; put `after` on the task that reads it"
        self.findings.add(entry.after[0][1], message, "after")
        return False

    def _last_tasks(self, name: str) -> list[int]:
        """The primitive tasks of a task that none other of its own waits for."""
        own = self.ranges[name]
        read_by_own = {self.builder.value_producers[v] for t in own for v in self.builder.task_inputs[t]}
        return [t for t in own if t not in read_by_own]

    # Blame ----------------------------------------------------------------------------------------------------------------------

    def _blame(self, entry: TaskEntry, problem: str) -> None:
        """Note a problem of the graph at the option or the edge that it names, else at the task."""
        body = _TASK_PREFIX.sub("", problem, count=1)
        option = _OPTION.search(body)
        words = [option[1]] if option is not None else _QUOTED.findall(body)
        first = _FIRST_WORD.match(body)
        if option is None and first is not None:
            if entry.inputs.get(first[1]):
                self.findings.add(entry.inputs[first[1]][0].node, problem, "shape")
                return
            words.insert(0, first[1])
        items = entry.option_items
        if option is not None and option[1] in items:
            # The message names an option of the task; a part of its value may be named further on.
            inner = {option[1]: items[option[1]]}
            words = [*(w for w in _QUOTED.findall(body) if w != option[1]), option[1]]
            items = inner
        node = next((n for n in (_mention(word, items, body) for word in words) if n is not None), None)
        if node is not None:
            self.findings.add(node, f"{problem} (parameter ${node.parameter})" if node.parameter else problem, "option")
        else:
            self.findings.add(entry.key, problem if repr(entry.name) in problem else f"task {entry.name!r}: {problem}", "shape")

    # Paths ----------------------------------------------------------------------------------------------------------------------

    def _resolve(self, text: str) -> str:
        """A path as an op's expansion asks for it; an absolute one has been resolved before."""
        found = paths.locate(self.folder, text, consent=self.consent or (os.path.isabs(text) and paths.inside(self.folder, text)))
        if isinstance(found, paths.PathProblem):
            raise GraphError(found.message)
        return found

    def _paths(self, entry: TaskEntry) -> bool:
        """Make every option that is a path absolute; False where one cannot be used."""
        if entry.op is None:
            return True
        fine = True
        writes = document.may_write(entry.op)
        for name, attribute in entry.op.attributes.items():
            value = entry.options.get(name)
            if attribute.kind != "path" or not isinstance(value, str):
                continue
            place = entry.option_items[name].value if name in entry.option_items else entry.key
            found = paths.locate(self.folder, value, consent=self.consent)
            if isinstance(found, str) and not writes:
                found = paths.missing(found, value) or found
            if isinstance(found, paths.PathProblem):
                self.findings.add(place, found.message, found.rule)
                fine = False
                continue
            entry.options[name] = found
            if writes:
                fine = self._claim(found, f"task {entry.name!r}", place) and fine
            else:
                self.inputs[found] = entry.name
        return fine

    def _path_place(self, entry: TaskEntry) -> Node:
        """The place of a task's path, to which a damaged file is put down."""
        assert entry.op is not None
        for name, attribute in entry.op.attributes.items():
            if attribute.kind == "path" and name in entry.option_items:
                return entry.option_items[name].value
        return entry.key

    def _claim(self, path: str, who: str, place: Node) -> bool:
        """Note that `who` writes `path`; False where another does."""
        other = self.saved.setdefault(path, who)
        if other != who:
            self.findings.add(place, f"{other} is saved there too; give each a file of its own", "save")
        return other == who

    # Outputs --------------------------------------------------------------------------------------------------------------------

    def output(self, entry: OutputEntry, file: str) -> Output | None:
        """Name the value of an output in the graph; None where something about it is wrong."""
        path = self._save_path(entry, file)
        value = self._value(entry.source)
        if value is None or (entry.save is not None and path is None):
            return None
        if isinstance(value, LazySequence):
            value = materialize(self.builder, value)
        if isinstance(value, Value) and isinstance(value.spec, SequenceSpec):
            value = whole(self.builder, value, name=f"{entry.name}_whole")
        is_bundle = isinstance(value, Bundle)
        kind = value.kind if isinstance(value, Bundle) else "array"
        parts: dict[str, Value] = dict(value) if isinstance(value, Bundle) else {entry.name: value}
        specs: dict[str, AnySpec] = {part: v.spec for part, v in parts.items()}
        if any(s is UNKNOWN for s in specs.values()):
            return None
        if path is not None and entry.save_node is not None:
            problem = form_problem(os.path.splitext(path)[1], specs, is_bundle, kind)
            if problem is not None:
                self.findings.add(entry.save_node, problem, "save")
                return None
        self.builder.output(value, entry.name)
        names = {part: f"{entry.name}/{part}" if is_bundle else part for part in parts}
        source = entry.source.task + (f".{entry.source.output}" if entry.source.output else "")
        return Output(entry.name, source, kind, MappingProxyType(names), entry.save, path, value.meta if isinstance(value, Bundle) else {})

    def _save_path(self, entry: OutputEntry, file: str) -> str | None:
        """The absolute path of `save`; None where there is none, or it cannot be used (noted)."""
        if entry.save is None or entry.save_node is None:
            return None
        found = paths.locate(self.folder, entry.save, consent=self.consent)
        if isinstance(found, paths.PathProblem):
            self.findings.add(entry.save_node, found.message, found.rule)
            return None
        if found == os.path.realpath(file) or found in self.inputs:
            what = "the pipeline file itself" if found not in self.inputs else f"what task {self.inputs[found]!r} reads"
            self.findings.add(entry.save_node, f"{entry.save!r} is {what}; save to another file", "save")
            return None
        if os.path.isdir(found):
            self.findings.add(entry.save_node, f"{entry.save!r} is a folder; add a file name, such as {entry.name}.npz", "save")
            return None
        return found if self._claim(found, f"output {entry.name!r}", entry.save_node) else None

    def join_same_as(self) -> None:
        """Let `same_as` name the one primitive task, or the one loop, that its task expanded to."""
        for entry in self.document.tasks.values():
            if entry.same_as is None or entry.name not in self.ranges:
                continue
            target, place = entry.same_as
            if target not in self.ranges:
                continue
            own = self.ranges[target]
            loops = [t for t in own if isinstance(self.builder.task_ops[t], Nested)]
            chosen = list(own) if len(own) == 1 else loops
            if len(chosen) != 1:
                count = f"{len(own)} primitive tasks" if own else "none of its own: its work is done inside a loop"
                self.findings.add(place, f"same_as wants a task of one device, but {target!r} became {count}; name a device instead", "device")
                continue
            where = Where(same_as=self.builder.task_names[chosen[0]])
            for t in self.ranges[entry.name]:
                if (given := self.builder.where.get(t)) is not None and given.same_as == target:
                    self.builder.where[t] = replace(where)


def _text(found: Edge) -> str:
    """An edge as it is written."""
    return f"{found.task}.{found.output}" if found.output else found.task


def _too_large(value: Value) -> str:
    return f"value {value.name!r} is {value.spec!r}: {value.spec.nbytes} bytes are more than any memory has; make it smaller"


def _mention(word: str, items: Mapping[str, Item], problem: str) -> Node | None:
    """The place below `items` that a problem names: a key (its value, unless the key is what is wrong), or a text."""
    waiting = [items]
    while waiting:
        level = waiting.pop(0)
        if word in level:
            return level[word].key if _about_key(problem) else level[word].value
        for item in level.values():
            nodes = item.value.value if isinstance(item.value.value, list) else [item.value]
            for node in nodes:
                if node.value == word:
                    return node
                if isinstance(node.value, dict):
                    waiting.append(node.value)
    return None


def _about_key(problem: str) -> bool:
    """True if a problem says that a key is wrong, not its value."""
    return " has no " in problem or " needs " in problem or problem.startswith("unknown ")


def _inside(item: Item, path: tuple[str | int, ...], problem: str) -> Node:
    """The place of a mistake inside a description: the key where the key is wrong, else the value."""
    node, key = item.value, item.key
    for part in path:
        if isinstance(node.value, dict) and part in node.value:
            key, node = node.value[part]
        elif isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
            key = node = node.value[part]
        else:
            break
    return key if _about_key(problem) else node
