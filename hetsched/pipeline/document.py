"""The checked document: a file's nodes turned into names that exist, options that fit and edges without a cycle.

Every check notes its mistakes in `Findings` and goes on, so that one reading tells all. What is wrong is left out or marked
`broken`; nobody works on it later, so that a mistake is told once.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hetsched.graph.graph import Where
from hetsched.graph.op import REQUIRED, Composite, Op
from hetsched.pipeline import devices, values
from hetsched.pipeline.mistakes import Findings, hint, nearest
from hetsched.pipeline.reader import BROKEN, Item, Node
from hetsched.pipeline.values import Parameters

VERSION = 1
KEYS = ("hetsched", "name", "params", "objective", "models", "tasks", "outputs", "kernels")
TASK_KEYS = ("op", "in", "with", "device", "after")
IF_KEYS = ("if", "then", "else", "likelihood", "device", "after")
BRANCH_KEYS = ("tasks", "outputs")
CONDITION = "(condition)"  # the input of an if that chooses the branch; no edge is written so
OUTPUT_KEYS = ("from", "save")


@dataclass(frozen=True)
class Edge:
    """A use of a task's output: `task.output`, or `task` where it has one (`output` is None). `node` is its place."""

    task: str
    output: str | None
    node: Node


@dataclass(frozen=True)
class BranchEntry:
    """What stands under `then:` or `else:`: tasks of its own, in order, and what it gives: name -> `task.output`, of its own or from around it."""

    key: Node
    tasks: Mapping[str, TaskEntry]
    outputs: Mapping[str, Edge]


@dataclass
class TaskEntry:
    """One entry of `tasks:`. `inputs`: by the op's input names; `many` of them came as a list. `broken`: has a mistake, is not built.

    branches: of an if those under `then` and `else`. Its `inputs` are then the condition, and by its text each edge that goes from outside into a
    branch; its op is a stand-in that names them and the outputs, and expands to nothing.
    """

    name: str
    key: Node
    op: Op | Composite | None = None
    inputs: dict[str, tuple[Edge, ...]] = field(default_factory=dict)
    input_keys: dict[str, Node] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    option_items: dict[str, Item] = field(default_factory=dict)
    device: Node | None = None
    where: Where | None = None
    same_as: tuple[str, Node] | None = None
    after: tuple[tuple[str, Node], ...] = ()
    broken: bool = False
    branches: Mapping[str, BranchEntry] = field(default_factory=dict)
    likelihood: float | None = None

    @property
    def place(self) -> Node:
        """Where its `device:` stands, or its name where it has none."""
        return self.device if self.device is not None else self.key


@dataclass(frozen=True)
class OutputEntry:
    """One entry of `outputs:`."""

    name: str
    key: Node
    source: Edge
    save: str | None
    save_node: Node | None


@dataclass(frozen=True)
class Document:
    """A pipeline file after its checks. `tasks` stand in an order in which each comes after what it reads. `place`: of the whole."""

    place: Node
    name: str | None
    params: Parameters
    objective: str
    constraints: Mapping[str, float]
    models: Mapping[str, Any]
    model_items: Mapping[str, Item]
    tasks: Mapping[str, TaskEntry]
    outputs: Mapping[str, OutputEntry]


def check(root: Node, overrides: Mapping[str, Any], registry: Mapping[str, Op | Composite], findings: Findings) -> Document | None:
    """The document of a file whose nodes are `root`; None where there is nothing to go on with. `CommandLineError` for a wrong override."""
    if not values.is_map(root, "a pipeline", findings):
        return None
    items: dict[str, Item] = root.value
    values.known_keys(items, KEYS, "a pipeline", findings)
    sections = {name: item.value for name, item in items.items()}
    _version(items, root, findings)
    params_node = sections.get("params")
    params = values.parameters(params_node if values.is_map(params_node, "params", findings) else None, overrides, findings)
    for name in ("objective", "models", "tasks", "outputs"):
        if name in sections:
            values.substitute(sections[name], params, findings)
    goal, constraints = values.objective(sections.get("objective"), findings)
    model_items = _models(sections.get("models"), findings)
    models = {name: values.plain(item.value, findings) for name, item in model_items.items()}
    entries = _tasks(items, root, registry, findings)
    _edges(entries, findings)
    outputs = _outputs(items, root, entries, findings)
    return Document(
        root,
        values.text(sections.get("name"), "name", findings), params, goal, constraints, models, model_items,
        _ordered(entries, findings), outputs,
    )  # fmt: skip


def _version(items: Mapping[str, Item], root: Node, findings: Findings) -> None:
    if "hetsched" not in items:
        findings.add(root, f"the key 'hetsched' is missing; start the file with `hetsched: {VERSION}`, the version of its format", "missing-key")
    elif (node := items["hetsched"].value).value is not BROKEN and (type(node.value) is not int or node.value != VERSION):
        findings.add(node, f"format {node.kind} is not known here; this version of hetsched reads `hetsched: {VERSION}`", "version")


def _models(node: Node | None, findings: Findings) -> dict[str, Item]:
    if node is None or not values.is_map(node, "models", findings):
        return {}
    return {name: item for name, item in node.value.items() if values.check_name(name, item.key, "a model", findings)}


def _tasks(items: Mapping[str, Item], root: Node, registry: Mapping[str, Op | Composite], findings: Findings) -> dict[str, TaskEntry]:
    if "tasks" not in items:
        findings.add(root, "the key 'tasks' is missing; add a section `tasks:` of at least one task", "missing-key")
        return {}
    section = items["tasks"].value
    if not values.is_map(section, "tasks", findings):
        return {}
    if not section.value:
        findings.add(section, "there are no tasks; add one, such as `load: {op: data.npz, with: {path: data.npz}}`", "missing-key")
    return {name: _task(name, item, registry, findings) for name, item in section.value.items()}


def _task(name: str, item: Item, registry: Mapping[str, Op | Composite], findings: Findings) -> TaskEntry:
    entry = TaskEntry(name, item.key)
    before = len(findings.found)
    values.check_name(name, item.key, "a task", findings)
    if not values.is_map(item.value, f"task {name!r}", findings):
        entry.broken = True
        return entry
    items: dict[str, Item] = item.value.value
    if not items.keys().isdisjoint(("if", "then", "else")):
        _if(entry, items, registry, findings)
        entry.broken |= len(findings.found) > before
        return entry
    values.known_keys(items, TASK_KEYS, f"task {name!r}", findings)
    sections = {key: i.value for key, i in items.items()}
    if "op" not in items:
        findings.add(item.key, f"task {name!r} has no op; add one, such as `op: nn.train` (`hetsched ops` lists them)", "missing-key")
    op_name = values.text(sections.get("op"), "op", findings)
    if op_name is not None:
        entry.op = registry.get(op_name)
        if entry.op is None:
            findings.add(sections["op"], f"unknown op {op_name!r}{nearest(op_name, registry, '`hetsched ops` lists them')}", "op")
    _inputs(entry, sections.get("in"), findings)
    _options(entry, sections.get("with"), findings)
    entry.device = sections.get("device")
    entry.where, entry.same_as = devices.where(entry.device, findings)
    entry.after = _after(sections.get("after"), findings)
    entry.broken |= entry.op is None or len(findings.found) > before or any(n.value is BROKEN for n in sections.values())
    return entry


def _if(entry: TaskEntry, items: Mapping[str, Item], registry: Mapping[str, Op | Composite], findings: Findings) -> None:
    """An entry of `tasks:` with `if`, `then` and `else`."""
    what = f"if {entry.name!r}"
    if "op" in items:
        findings.add(items["op"].key, f"task {entry.name!r} has both `op` and `if`; an if has no op: put the tasks under `then` and `else`", "if")
        return
    values.known_keys(items, IF_KEYS, what, findings)
    for key, help in (("if", "`if: task.output`"), ("then", "`then: {tasks: ..., outputs: ...}`"), ("else", "`else: {tasks: ..., outputs: ...}`")):
        if key not in items:
            findings.add(entry.key, f"{what} needs the key {key!r}; add {help}", "missing-key")
    condition = edge(items["if"].value, "`if`", findings) if "if" in items else None
    if condition is not None:
        entry.inputs[CONDITION] = (condition,)
    branches = {key: _branch(f"`{key}` of {what}", items[key], registry, findings) for key in ("then", "else") if key in items}
    entry.branches = {key: branch for key, branch in branches.items() if branch is not None}
    for branch in entry.branches.values():
        for found in outward(branch):
            entry.inputs.setdefault(f"{found.task}.{found.output}" if found.output else found.task, (found,))
    if len(entry.branches) == 2:
        then, other = entry.branches["then"], entry.branches["else"]
        for one, two, key in ((then, other, "else"), (other, then, "then")):
            for name, found in one.outputs.items():
                if two.outputs and name not in two.outputs:
                    tail = hint(name, two.outputs)
                    findings.add(found.node, f"branch `{key}` has no output {name!r}{tail}; both branches must have the same outputs", "if")
        entry.op = Composite("if", tuple(entry.inputs), tuple(then.outputs), lambda builder, inputs, attributes, scene: {})
    if "likelihood" in items:
        node = items["likelihood"].value
        value = values.plain(node, findings)
        if value is not BROKEN and (isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1):
            findings.add(node, f"likelihood of {what} is {value!r}; give a number from 0 to 1: how often the condition is true", "if")
        elif value is not BROKEN:
            entry.likelihood = float(value)
    entry.device = items["device"].value if "device" in items else None
    entry.where, entry.same_as = devices.where(entry.device, findings)
    if entry.same_as is not None:
        findings.add(entry.same_as[1], f"same_as ties one task to another, and {what} may use several devices; name a device instead", "device")
    entry.after = _after(items["after"].value if "after" in items else None, findings)
    entry.broken |= any(item.value.value is BROKEN for item in items.values())


def _branch(what: str, item: Item, registry: Mapping[str, Op | Composite], findings: Findings) -> BranchEntry | None:
    if not values.is_map(item.value, what, findings):
        return None
    items: dict[str, Item] = item.value.value
    values.known_keys(items, BRANCH_KEYS, what, findings)
    tasks: dict[str, TaskEntry] = {}
    if "tasks" in items and values.is_map(items["tasks"].value, f"`tasks` of {what}", findings):
        tasks = {name: _task(name, inner, registry, findings) for name, inner in items["tasks"].value.value.items()}
        _edges(tasks, findings, inside=True)
    outputs: dict[str, Edge] = {}
    if "outputs" not in items or not items["outputs"].value.value:
        findings.add(item.key, f"{what} has no outputs; add `outputs: {{name: task.output}}`, the same names in both branches", "missing-key")
    elif values.is_map(items["outputs"].value, f"`outputs` of {what}", findings):
        for name, (key, node) in items["outputs"].value.value.items():
            values.check_name(name, key, "an output", findings)
            found = edge(node, f"output {name!r}", findings)
            if found is not None and (found.task not in tasks or resolve(found, tasks, findings)):
                outputs[name] = found
    return BranchEntry(item.key, _ordered(tasks, findings), outputs)


def outward(branch: BranchEntry) -> list[Edge]:
    """The edges of a branch that begin outside of it."""
    every = [e for entry in branch.tasks.values() for edges in entry.inputs.values() for e in edges] + list(branch.outputs.values())
    return [e for e in every if e.task not in branch.tasks]


def edge(node: Node, what: str, findings: Findings) -> Edge | None:
    """The edge that a scalar `task.output` or `task` names."""
    words = values.text(node, what, findings)
    if words is None:
        return None
    task, dot, output = words.partition(".")
    if not task or (dot and not output):
        findings.add(node, f"{words!r} is not `task.output`; write the task's name, a dot and the output's name", "output")
        return None
    return Edge(task, output or None, node)


def fixed_inputs(op: Op | Composite) -> dict[str, str]:
    """An op's input names without their marks -> the mark: "", "?" (may be left out) or "*" (takes any number)."""
    return {name.rstrip("?*"): name[-1] if name[-1:] in ("?", "*") else "" for name in op.inputs}


def may_write(op: Op | Composite) -> bool:
    """True for an op that writes a file: a primitive op with an effect, or a composite that takes values and a path (`model.save`)."""
    if isinstance(op, Op):
        return not op.pure
    return bool(op.inputs) and any(a.kind == "path" for a in op.attributes.values())


def _inputs(entry: TaskEntry, node: Node | None, findings: Findings) -> None:
    op = entry.op
    if node is not None and not values.is_map(node, f"`in` of task {entry.name!r}", findings):
        return
    known = fixed_inputs(op) if op is not None else None
    items: dict[str, Item] = node.value if node is not None else {}
    for name, (key, value) in items.items():
        if known is not None and op is not None and name not in known:
            tail = hint(name, known) or "; remove it: the op takes none"
            findings.add(key, f"op {op.name} has no input {name!r}{tail}", "input")
            continue
        nodes = [value]
        if isinstance(value.value, list):
            if known is not None and op is not None and known[name] != "*":
                findings.add(value, f"input {name!r} of op {op.name} takes one value, not a list; write `{name}: task.output`", "input")
                continue
            nodes = value.value
        edges = [edge(n, f"input {name!r}", findings) for n in nodes]
        entry.inputs[name] = tuple(e for e in edges if e is not None)
        entry.broken |= len(entry.inputs[name]) < len(edges)
        entry.input_keys[name] = key
    for name, mark in (known or {}).items():
        if not mark and name not in items and op is not None:
            others = ", ".join(op.inputs)
            findings.add(entry.key, f"task {entry.name!r}: op {op.name} needs input {name!r} (inputs: {others}); add it under `in`", "input")


def _options(entry: TaskEntry, node: Node | None, findings: Findings) -> None:
    """The options under `with`, each checked at its own place; defaults filled in."""
    op = entry.op
    if node is not None and not values.is_map(node, f"`with` of task {entry.name!r}", findings):
        return
    items: dict[str, Item] = node.value if node is not None else {}
    entry.option_items = dict(items)
    if op is None:
        for item in items.values():
            values.plain(item.value, findings)
        return
    hidden = {"key"} if isinstance(op, Op) and op.random else set()
    known = {name: a for name, a in op.attributes.items() if name not in hidden}
    for name, (key, value) in items.items():
        if name not in known:
            tail = hint(name, known) or "; remove it: the op takes none"
            findings.add(key, f"op {op.name} has no option {name!r}{tail}", "option")
            continue
        data = values.plain(value, findings)
        if data is BROKEN:
            entry.broken = True
            continue
        entry.options[name], problem = known[name].check(data)
        if problem is not None:
            source = f" (parameter ${value.parameter})" if value.parameter else ""
            wanted = "" if "wants" in problem or "did you mean" in problem or "known:" in problem else f"; wants {known[name].wanted}"
            boolean = "; write true or false" if known[name].kind is bool and data in ("yes", "no", "on", "off") else ""
            findings.add(value, f"option {name!r} of op {op.name}: {problem}{wanted}{boolean}{source}", "option")
    for name, attribute in known.items():
        if name not in items:
            if attribute.default is REQUIRED:
                findings.add(
                    entry.key, f"task {entry.name!r}: op {op.name} needs option {name!r} ({attribute.wanted}); add it under `with`", "option"
                )
            else:
                entry.options[name] = attribute.default


def _after(node: Node | None, findings: Findings) -> tuple[tuple[str, Node], ...]:
    if node is None or node.value is BROKEN:
        return ()
    nodes = node.value if isinstance(node.value, list) else [node]
    out = []
    for one in nodes:
        name = values.text(one, "`after`", findings)
        if name is not None:
            out.append((name, one))
    return tuple(dict(out).items())


def output_names(op: Op | Composite) -> tuple[str, ...] | None:
    """The names of an op's outputs; None where they are known only once it is built."""
    return None if any(name.endswith("*") for name in op.outputs) else tuple(name.rstrip("?") for name in op.outputs)


def resolve(found: Edge, entries: Mapping[str, TaskEntry], findings: Findings) -> bool:
    """True if an edge names a task and, where its outputs are known, one of them; else notes why not."""
    source = entries.get(found.task)
    if source is None:
        findings.add(found.node, f"unknown task {found.task!r}{hint(found.task, entries)}", "task")
        return False
    if source.op is None:
        return False
    names = output_names(source.op)
    if names is None:
        return True
    if not names:
        findings.add(found.node, f"task {found.task!r} ({source.op.name}) has no outputs; to run after it, use `after: {found.task}`", "output")
        return False
    surely = [name for name in source.op.outputs if not name.endswith("?")]
    if found.output is None and len(surely) > 1:
        choices = ", ".join(f"{found.task}.{n}" for n in names)
        findings.add(found.node, f"task {found.task!r} has {len(names)} outputs; name one: {choices}", "output")
        return False
    if found.output is not None and found.output not in names:
        tail = hint(found.output, names)
        findings.add(found.node, f"task {found.task!r} ({source.op.name}) has no output {found.output!r}{tail}", "output")
        return False
    return True


def _edges(entries: Mapping[str, TaskEntry], findings: Findings, inside: bool = False) -> None:
    """Check that every edge, `after` and `same_as` names something there is. inside: of a branch, whose other edges begin around it."""
    for entry in entries.values():
        _shadows(entry, entries, findings)
        for edges in entry.inputs.values():
            for found in edges:
                if not (inside and found.task not in entries) and not resolve(found, entries, findings):
                    entry.broken = True
        named = [(name, node, "after") for name, node in entry.after]
        if entry.same_as is not None:
            named.append((*entry.same_as, "same_as"))
        for name, node, key in named:
            if name not in entries:
                tail = hint(name, entries)
                findings.add(node, f"{key}: unknown task {name!r}{tail}", "task")
                entry.broken = True
    _same_as(entries, findings)


def _shadows(entry: TaskEntry, entries: Mapping[str, TaskEntry], findings: Findings) -> None:
    """A task of a branch must not be called like one around it: which of them an edge means would be a guess."""
    for branch in entry.branches.values():
        for inner in branch.tasks.values():
            if inner.name in entries:
                findings.add(inner.key, f"task {inner.name!r} of a branch is called like a task around it; rename one", "name")
                entry.broken = True
            _shadows(inner, entries, findings)


def _same_as(entries: Mapping[str, TaskEntry], findings: Findings) -> None:
    """Note every circle of `same_as`: one of its tasks must say where it runs."""
    done: set[str] = set()
    for name in entries:
        path: dict[str, None] = {}
        while name not in done and name not in path:
            path[name] = None
            same_as = entries[name].same_as
            if same_as is None or same_as[0] not in entries:
                break
            name = same_as[0]
        else:
            if name in path:
                circle = list(path)[list(path).index(name) :]
                target = entries[circle[0]].same_as
                assert target is not None
                findings.add(target[1], f"same_as goes in a circle: {' -> '.join([*circle, circle[0]])}; give one of them a device", "device")
                for one in circle:
                    entries[one].broken = True
        done |= path.keys()


def _outputs(items: Mapping[str, Item], root: Node, entries: Mapping[str, TaskEntry], findings: Findings) -> dict[str, OutputEntry]:
    effects = any(e.op is None or may_write(e.op) for e in entries.values())
    if "outputs" not in items:
        if entries and not effects:
            findings.add(root, "the key 'outputs' is missing, so nothing would be kept; add `outputs: {name: {from: task.output}}`", "missing-key")
        return {}
    section = items["outputs"].value
    if not values.is_map(section, "outputs", findings):
        return {}
    if not section.value and not effects:
        findings.add(section, "there are no outputs, so nothing would be kept; add `name: {from: task.output}`", "missing-key")
    out: dict[str, OutputEntry] = {}
    for name, (key, node) in section.value.items():
        values.check_name(name, key, "an output", findings)
        if not values.is_map(node, f"output {name!r}", findings):
            continue
        values.known_keys(node.value, OUTPUT_KEYS, f"output {name!r}", findings)
        if "from" not in node.value:
            findings.add(key, f"output {name!r} needs the key 'from'; add `from: task.output`", "missing-key")
            continue
        source = edge(node.value["from"].value, "`from`", findings)
        save_node = node.value["save"].value if "save" in node.value else None
        save = values.text(save_node, "`save`", findings)
        if source is not None and resolve(source, entries, findings):
            out[name] = OutputEntry(name, key, source, save, save_node)
    return out


def _ordered(entries: Mapping[str, TaskEntry], findings: Findings) -> dict[str, TaskEntry]:
    """The tasks in a topological order, by the file's order where free. Every cycle is a mistake; its tasks come last, broken."""
    names = list(entries)
    index = {name: i for i, name in enumerate(names)}
    before: list[list[int]] = []
    for entry in entries.values():
        sources = [e.task for edges in entry.inputs.values() for e in edges] + [name for name, _ in entry.after]
        before.append(list(dict.fromkeys(index[s] for s in sources if s in index)))
    after: list[list[int]] = [[] for _ in names]
    for i, sources_of in enumerate(before):
        for s in sources_of:
            after[s].append(i)
    missing = [len(b) for b in before]
    ready = [i for i, n in enumerate(missing) if n == 0]
    order: list[int] = []
    while ready:
        i = heapq.heappop(ready)
        order.append(i)
        for j in after[i]:
            missing[j] -= 1
            if missing[j] == 0:
                heapq.heappush(ready, j)
    rest = set(range(len(names))) - set(order)
    if rest:
        for cycle in _cycles(sorted(rest), before, after):
            shown = [names[i] for i in [*cycle, cycle[0]]]
            if len(shown) > 24:
                shown[12:-8] = [f"({len(shown) - 20} more)"]
            path = " -> ".join(shown)
            why = "a task cannot wait for itself; name another task" if len(cycle) == 1 else "remove one of these edges (`in` or `after`)"
            findings.add(entries[names[cycle[0]]].key, f"cycle: {path}; {why}", "cycle")
        for i in rest:
            entries[names[i]].broken = True
    return {names[i]: entries[names[i]] for i in [*order, *sorted(rest)]}


def _cycles(rest: list[int], before: list[list[int]], after: list[list[int]]) -> list[list[int]]:
    """Disjoint cycles, each in the direction of its edges from its first task in the file, that together break every cycle of `rest`."""
    alive = set(rest)
    incoming = {i: sum(s in alive for s in before[i]) for i in alive}
    outgoing = {i: sum(s in alive for s in after[i]) for i in alive}

    def drop(loose: list[int]) -> None:
        while loose:
            i = loose.pop()
            if i not in alive:
                continue
            alive.discard(i)
            for neighbours, counts in ((after[i], incoming), (before[i], outgoing)):
                for j in neighbours:
                    if j in alive:
                        counts[j] -= 1
                        if counts[j] == 0:
                            loose.append(j)

    drop([i for i in rest if incoming[i] == 0 or outgoing[i] == 0])
    found = []
    for start in rest:
        while start in alive:
            at = start
            path: dict[int, int] = {}  # task -> position; walking against the edges stays on tasks that lie on or behind a cycle
            while at not in path:
                path[at] = len(path)
                at = next(s for s in before[at] if s in alive)
            cycle = [i for i, position in path.items() if position >= path[at]][::-1]
            first = cycle.index(min(cycle))
            found.append(cycle[first:] + cycle[:first])
            drop(cycle)
    return found
