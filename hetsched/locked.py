"""Locked plans: a plan as a file, held to the graph and the machine that it was made for.

The file is JSON with one line an item, in the order of the plan, values and tasks by name, so that two files can be compared line by line. It holds
all that a run needs: spans, reuse edges, offsets, rings, workspaces, bodies of loops with their periods. A lower bound stands without its witness.
What it does not hold is the graph and the machine: it names them by fingerprints, and is read together with them.

Reading refuses, in this order: a file that is no plan, or whose checksum does not fit (`FileError`, exit 7); another graph (`GraphError`, exit 3);
another machine (`PlacementError`, exit 4); a machine whose memory is too small now (`OutOfMemoryError`, exit 5); a plan that `check` finds a broken
rule in (`FileError`). The fingerprint of a graph covers names, ops, attributes (of paths the file's name), specs, edges, constraints, constants,
loops, and what kernels of the user's own do. That of a machine covers its devices with kind, name, lanes and languages, its memory nodes, links and
resources, but no measured speeds, free bytes, watts or prices: a plan does not become wrong where they change. A device in software counts as the
one that it stands for, as long as it has kernels for what the plan puts there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from hetsched.check import problems
from hetsched.errors import FileError, GraphError, OutOfMemoryError, PlacementError
from hetsched.graph.formats import publishing
from hetsched.graph.graph import Graph, If, Loop, Nested
from hetsched.graph.op import Op
from hetsched.graph.ops import registry
from hetsched.machine import Machine
from hetsched.timeline import After, Bound, Copy, Free, Lane, Launch, Replica, Span, Timeline

FORMAT = "hetsched-plan/1"
MOST_BYTES = 1 << 30
# Tasks named in a refusal.
MOST_NAMED = 3
# How deep the fingerprint looks into a kernel of the user's own.
_DEPTH = 5
# What a file that is no plan makes its reader stumble over.
_BROKEN = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError)
_LISTS = ("spans", "prologue", "epilogue", "after", "offsets", "rings", "workspaces", "bodies", "notes")


class OtherMachineError(PlacementError):
    """A locked plan was made for another machine, whose name is `made_for`."""

    def __init__(self, message: str, made_for: str) -> None:
        self.made_for = made_for
        super().__init__(message)

    def __reduce__(self) -> tuple[type[OtherMachineError], tuple[str, str]]:
        return type(self), (str(self), self.made_for)


def write_plan(plan: Timeline, path: str | os.PathLike[str]) -> None:
    """Write `plan` to a file that `read_plan` gives back, equal; it appears whole or not at all. `FileError` where it cannot be written."""
    with publishing(os.fspath(path)) as stream:
        stream.write(plan_text(plan).encode("utf-8"))


def document_of(plan: Timeline) -> dict[str, Any]:
    """The content of the file of a plan, as `read_document` gives it."""
    return {
        "format": FORMAT,
        "graph": {"fingerprint": graph_fingerprint(plan.graph), "tasks": len(plan.graph)},
        "machine": {"name": plan.machine.name, **machine_shape(plan.machine)},
        "plan": encoded(plan),
    }


def plan_text(plan: Timeline) -> str:
    """The text of a locked plan."""
    document = document_of(plan)
    return _lines({**document, "sha256": _checksum(document)}) + "\n"


def read_document(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a locked plan as plain data; its checksum fits. `FileError` says what is wrong with it."""
    name = os.fspath(path)
    try:
        with open(name, "rb") as stream:
            data = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise FileError(f"{name}: cannot be read: {error.strerror or error}") from error
    try:
        if len(data) > MOST_BYTES:
            raise ValueError("it is larger than 1 GiB")
        document = json.loads(data)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            seen = document.get("format") if isinstance(document, dict) else type(document).__name__
            raise ValueError(f"its `format` is {seen!r}, wanted {FORMAT!r}")
        claimed = document.pop("sha256")
        fits = claimed == _checksum(document)
    except _BROKEN as error:
        raise FileError(f"{name}: not a locked plan: {_told(error)}; write it again with `hetsched plan FILE -o {name}`") from error
    if not fits:
        raise FileError(f"{name}: was changed after it was written (its checksum does not fit); write it again with `hetsched plan FILE -o {name}`")
    return document


def read_plan(path: str | os.PathLike[str], graph: Graph, machine: Machine | None) -> Timeline:
    """The plan in a file, for `graph` on `machine` (the one found here, where None): checked, ready to run. See the head of this module for what is

    refused, and how.
    """
    name = os.fspath(path)
    document = read_document(path)
    try:
        if machine is None:
            machine = Machine.here(*document["machine"]["devices"])
        _refuse_other_graph(name, document, graph)
        changes = machine_changes(document["machine"], machine_shape(machine))
        if changes:
            more = f" and {len(changes) - MOST_NAMED} more" if len(changes) > MOST_NAMED else ""
            made_for = f"{name}: was made for another machine ({document['machine']['name']})"
            raise OtherMachineError(f"{made_for}: {'; '.join(changes[:MOST_NAMED])}{more}; plan again for this one", document["machine"]["name"])
        plan = decoded(document["plan"], graph, machine)
    except _BROKEN as error:
        if isinstance(error, GraphError):
            raise
        raise FileError(f"{name}: not a plan of this graph: {_told(error)}; write it again with `hetsched plan FILE -o {name}`") from error
    for node, nbytes in plan.arenas.items():
        limit = next((m.nbytes for m in machine.memories if m.name == node), None)
        if limit is not None and nbytes > limit:
            raise OutOfMemoryError(f"{name}: the plan takes {nbytes} bytes of {node!r}, which has {limit} now; plan again, or free some")
    broken = problems(plan)
    if broken and any(d.stands_for for d in machine.devices) and document["machine"] != {"name": machine.name, **machine_shape(machine)}:
        raise PlacementError(
            f"{name}: was made for devices that are in software now, which cannot do it: {broken[0]}; plan again for these, with --emulate"
        )
    if broken:
        raise FileError(f"{name}: the plan breaks {len(broken)} rules, so it is not run; the first: {broken[0]}")
    return plan


def equal_plans(a: Timeline, b: Timeline) -> bool:
    """True for plans that say the same of the same graph: every span, time, byte and edge, loops included."""
    return encoded(a) == encoded(b)


# Fingerprints ---------------------------------------------------------------------------------------------------------------------------


def graph_fingerprint(graph: Graph) -> str:
    """SHA-256 of what a plan rests on, in hexadecimal."""
    digest = hashlib.sha256()
    for part in (*_ends(graph), *(task_digest(graph, t) for t in range(len(graph)))):
        digest.update(part.encode("utf-8"))
        digest.update(b"\n")
    return digest.hexdigest()


def task_digest(graph: Graph, task: int) -> str:
    """Eight hexadecimal digits of a task: its name, op, attributes, inputs, outputs, constraints; of a loop its bodies too."""
    op = graph.task_ops[task]
    what: list[Any] = [graph.task_names[task], list(graph.reads(task)), [_plain(graph.value_specs[v]) for v in graph.writes(task)]]
    where = graph.where.get(task)
    what.append(None if where is None else [list(where.allow), list(where.exclude), where.same_as])
    if isinstance(op, If):
        what += ["if", op.likelihood, op.outputs, op.captured, graph_fingerprint(op.then), graph_fingerprint(op.otherwise)]
    elif isinstance(op, Loop):
        rest = None if op.remainder is None else graph_fingerprint(op.remainder)
        what += [
            "loop", op.turns, op.invariants, op.sequences, op.carried, op.collected, dict(op.rows), op.turn, op.stop, dict(op.every), op.cycle,
            graph_fingerprint(op.body), rest,
        ]  # fmt: skip
    elif isinstance(op, Op):
        paths = {name for name, attribute in op.attributes.items() if attribute.kind == "path"}
        attributes = graph.task_attributes[task]
        own = None if registry().get(op.name) is op else [code_of(op.kernels[language]) for language in sorted(op.kernels)]
        what += [op.name, sorted(op.kernels), own, {k: os.path.basename(str(v)) if k in paths else v for k, v in attributes.items()}]
    return hashlib.sha256(json.dumps(_plain(what), sort_keys=True).encode("utf-8")).hexdigest()[:8]


def _ends(graph: Graph) -> Iterator[str]:
    """What of a graph belongs to no task."""
    first = int(graph.output_start[0])
    yield json.dumps([_plain(s) for s in graph.value_specs[:first]])
    yield json.dumps([graph.inputs, graph.outputs, sorted(graph.after)])
    for value, constant in sorted(graph.constants.items()):
        yield f"{value} {json.dumps(_plain(constant), sort_keys=True)}"


def _plain(value: Any) -> Any:
    """A value as JSON, without addresses; of an object that is unknown here, the type."""
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.ascontiguousarray(value)
        if array.dtype.hasobject:
            return ["array", str(array.dtype), list(array.shape)]
        return ["array", array.dtype.str, list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, (bytes, bytearray)):
        return ["bytes", hashlib.sha256(value).hexdigest()]
    if isinstance(value, complex):
        return ["complex", repr(value.real), repr(value.imag)]
    if isinstance(value, (set, frozenset)):  # in an order that does not depend on the process
        return ["set", *sorted(json.dumps(_plain(v), sort_keys=True) for v in value)]
    if isinstance(value, np.dtype):
        return value.str
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, slice):  # from Python 3.14 on a constant of byte code
        return ["slice", *map(_plain, (value.start, value.stop, value.step))]
    if is_dataclass(value) and not isinstance(value, type):
        return [type(value).__name__, *(_plain(getattr(value, f.name)) for f in fields(value))]
    return f"{type(value).__module__}.{type(value).__qualname__}"


def code_of(value: Any, depth: int = 0) -> Any:
    """What a kernel of the user's own does, as far as it can be seen: byte code, constants, what it closes over, source in other languages."""
    if depth > _DEPTH or isinstance(value, Op):
        return value.name if isinstance(value, Op) else type(value).__name__
    if isinstance(value, FunctionType):
        cells = [code_of(_contents(cell), depth + 1) for cell in value.__closure__ or ()]
        by_name = [code_of(value.__kwdefaults__, depth + 1)] if value.__kwdefaults__ else []
        return [code_of(value.__code__, depth), cells, code_of(value.__defaults__, depth + 1), *by_name]
    if isinstance(value, partial):
        return ["partial", *(code_of(part, depth + 1) for part in (value.func, value.args, value.keywords))]
    if isinstance(value, CodeType):
        return [hashlib.sha256(value.co_code).hexdigest()[:16], list(value.co_names), [code_of(c, depth + 1) for c in value.co_consts]]
    if isinstance(value, MethodType):
        return [code_of(value.__func__, depth), code_of(value.__self__, depth + 1)]
    if isinstance(value, Mapping):
        return {str(k): code_of(v, depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [code_of(v, depth + 1) for v in value]
    if hasattr(value, "__dict__") and not isinstance(value, (type, ModuleType)) and not is_dataclass(value):
        return [type(value).__qualname__, code_of(vars(value), depth + 1)]
    return _plain(value)


def _contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def machine_shape(machine: Machine) -> dict[str, Any]:
    """What of a machine a plan rests on, as plain data."""
    devices = {
        d.id: {
            "kind": d.stands_for or d.kind, "name": d.name, "hardware": d.hardware, "lanes": d.lanes, "io_lanes": d.io_lanes, "memory": d.memory,
            "languages": None if d.stands_for else list(d.languages), "widths": list(d.widths), "shares_lanes": d.shares_lanes, "uses": dict(d.uses),
        }
        for d in machine.devices
    }  # fmt: skip
    return {
        "devices": devices,
        "links": {x.id: {"engines": x.engines} for x in machine.links},
        "memories": {m.name: {} for m in machine.memories},
        "resources": {r.name: {"capacity": r.capacity} for r in machine.resources},
    }


def machine_changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two shapes, one sentence each."""
    out = []
    for part, noun in (("devices", "device"), ("links", "link"), ("memories", "memory node"), ("resources", "resource")):
        before, after = dict(was[part]), dict(now[part])
        out += [f"{noun} {name} is gone" for name in before if name not in after]
        out += [f"{noun} {name} is new" for name in after if name not in before]
        for name in before:
            changed = {k for k in {*before[name], *after.get(name, {})} if name in after and before[name].get(k) != after[name].get(k)}
            if name in after and None in (before[name].get("languages"), after[name].get("languages")):
                changed.discard("languages")  # one of the two is in software
            out += [f"{noun} {name}: {k} was {before[name].get(k)!r}, is {after[name].get(k)!r}" for k in sorted(changed)]
    return out


def _refuse_other_graph(path: str, document: Mapping[str, Any], graph: Graph) -> None:
    if document["graph"]["fingerprint"] == graph_fingerprint(graph):
        return
    was = {row[1]: row[8] for row in document["plan"]["spans"] if row[0] == "launch"}
    now = dict(zip(_unique(graph.task_names), (task_digest(graph, t) for t in range(len(graph))), strict=True))
    parts = []
    for names, words in (
        ([n for n in was if n not in now], "has no more"),
        ([n for n in now if n not in was], "has now"),
        ([n for n in was if n in now and was[n] != now[n]], "has changed"),
    ):
        if names:
            more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
            parts.append(f"it {words} {', '.join(map(repr, names[:MOST_NAMED]))}{more}")
    raise GraphError(f"{path}: was made for another graph: {'; '.join(parts) or 'its inputs, constants or outputs have changed'}; plan again")


# A plan as plain data -------------------------------------------------------------------------------------------------------------------


def encoded(plan: Timeline) -> dict[str, Any]:
    """A plan as JSON can hold it; `decoded` gives it back."""
    graph = plan.graph
    values, tasks = _unique(graph.value_names), _unique(graph.task_names)
    keys = _keys(plan.spans, values, tasks)

    def replica(r: Replica) -> list[Any]:
        return [values[r.value], r.turn, r.node, *([r.generation] if r.generation else [])]

    def span(s: Span) -> list[Any]:
        lanes = [[lane.owner, lane.number, lane.kind] for lane in s.lanes]
        c = s.command
        if isinstance(c, Launch):
            reads, writes = [replica(r) for r in c.reads], [replica(r) for r in c.writes]
            return ["launch", tasks[c.task], c.turn, lanes, s.start, s.finish, c.width, [reads, writes], task_digest(graph, c.task)]
        if isinstance(c, Copy):
            return ["copy", values[c.value], c.turn, lanes, s.start, s.finish, replica(c.src), replica(c.dst)]
        return ["free", replica(c.replica), s.start, s.finish]

    return {
        "policy": plan.policy,
        "objective": plan.objective,
        "makespan": plan.makespan,
        "period": plan.period,
        "turns": plan.turns,
        "bound": None if plan.bound is None else [plan.bound.seconds, plan.bound.kind],
        "plan_seconds": plan.plan_seconds,
        "version": plan.version,
        "begin_seconds": plan.begin_seconds,
        "keeps_order": plan.keeps_order,
        "arenas": dict(sorted(plan.arenas.items())),
        "peak": dict(sorted(plan.peak.items())),
        "spans": [span(s) for s in plan.spans],
        "prologue": [span(s) for s in plan.prologue],
        "epilogue": [span(s) for s in plan.epilogue],
        "after": [[keys[a.before], keys[a.later], a.turns] for a in plan.after],
        "offsets": sorted([replica(r), offset] for r, offset in plan.offsets.items()),
        "rings": sorted([replica(r), slots] for r, slots in plan.rings.items()),
        "workspaces": sorted([tasks[t], *where] for t, where in plan.workspaces.items()),
        "bodies": sorted([tasks[t], node, offset] for t, body in plan.bodies.items() for node, offset in body.items()),
        "notes": list(plan.notes),
        "loops": {tasks[t]: encoded(body) for t, body in sorted(plan.loops.items())},
        **({} if plan.otherwise is None else {"otherwise": encoded(plan.otherwise)}),
    }


def decoded(data: Mapping[str, Any], graph: Graph, machine: Machine, loop: Loop | None = None, branch: If | None = None) -> Timeline:
    """The plan that `encoded` wrote, of `graph` on `machine`. Raises one of the errors of plain data where it is something else."""
    values, tasks = _numbers(graph.value_names), _numbers(graph.task_names)
    known = {m.name for m in machine.memories}

    def replica(row: Sequence[Any]) -> Replica:
        name, turn, node, *generation = row
        if node not in known:
            raise ValueError(f"there is no memory node {node!r}")
        return Replica(values[name], _int(turn), node, *map(_int, generation))

    def lanes(rows: Iterable[Sequence[Any]]) -> tuple[Lane, ...]:
        return tuple(Lane(_str(owner), _int(number), _str(kind)) for owner, number, kind in rows)

    def span(row: Sequence[Any]) -> Span:
        if row[0] == "launch":
            _, name, turn, on, start, finish, width, (reads, writes), _ = row
            launch = Launch(tasks[name], _int(turn), tuple(map(replica, reads)), tuple(map(replica, writes)), _int(width))
            return Span(lanes(on), launch, _float(start), _float(finish))
        if row[0] == "copy":
            _, name, turn, on, start, finish, src, dst = row
            return Span(lanes(on), Copy(values[name], _int(turn), replica(src), replica(dst)), _float(start), _float(finish))
        if row[0] != "free":
            raise ValueError(f"a span of kind {row[0]!r}")
        _, what, start, finish = row
        return Span((), Free(replica(what)), _float(start), _float(finish))

    spans = tuple(map(span, data["spans"]))
    index = {key: i for i, key in enumerate(_keys(spans, _unique(graph.value_names), _unique(graph.task_names)))}
    bodies: dict[int, dict[str, int]] = {}
    for name, node, offset in data["bodies"]:
        bodies.setdefault(tasks[name], {})[_str(node)] = _int(offset)
    loops = {}
    for name, body in data["loops"].items():
        op = graph.task_ops[tasks[name]]
        if not isinstance(op, Nested):
            raise ValueError(f"task {name!r} is no loop and no if")
        if isinstance(op, Loop):
            loops[tasks[name]] = decoded(body, op.body, machine, op)
        elif isinstance(op, If):
            loops[tasks[name]] = decoded(body, op.then, machine, branch=op)
    bound = data["bound"]
    return Timeline(
        graph,
        machine,
        spans,
        after=tuple(After(index[before], index[later], _int(turns)) for before, later, turns in data["after"]),
        offsets={replica(row): _int(offset) for row, offset in data["offsets"]},
        arenas={_str(node): _int(nbytes) for node, nbytes in data["arenas"].items()},
        period=None if data["period"] is None else _float(data["period"]),
        rings={replica(row): _int(slots) for row, slots in data["rings"]},
        workspaces={tasks[name]: (_str(node), _int(offset), _int(nbytes)) for name, node, offset, nbytes in data["workspaces"]},
        prologue=tuple(map(span, data["prologue"])),
        epilogue=tuple(map(span, data["epilogue"])),
        loops=loops,
        loop=loop,
        branch=branch,
        otherwise=decoded(data["otherwise"], branch.otherwise, machine, branch=branch) if branch is not None and "otherwise" in data else None,
        turns=_int(data["turns"]),
        peak={_str(node): _int(nbytes) for node, nbytes in data["peak"].items()},
        bound=None if bound is None else Bound(_float(bound[0]), _str(bound[1])),
        policy=_str(data["policy"]),
        objective=_str(data["objective"]),
        notes=tuple(map(_str, data["notes"])),
        plan_seconds=_float(data["plan_seconds"]),
        bodies=bodies,
        version=_int(data["version"]),
        begin_seconds=_float(data["begin_seconds"]),
        keeps_order=_bool(data.get("keeps_order", False)),
    )


def _keys(spans: Sequence[Span], values: Sequence[str], tasks: Sequence[str]) -> list[str]:
    """A name for each span that does not change where others come or go."""

    def key(s: Span) -> str:
        c = s.command
        if isinstance(c, Launch):
            return f"{tasks[c.task]} {c.turn}"
        if isinstance(c, Copy):
            again = f" {c.dst.generation}" if c.dst.generation else ""
            return f"copy {values[c.value]} {c.turn} {c.src.node}->{c.dst.node}{again}"
        return f"free {values[c.replica.value]} {c.replica.turn} {c.replica.node}"

    return _unique([key(s) for s in spans])


def _unique(names: Sequence[str]) -> list[str]:
    """The names, with numbers where they are not unique."""
    if len(set(names)) == len(names):
        return list(names)
    seen: dict[str, int] = {}
    taken, out = set(names), []
    for name in names:
        n = seen[name] = seen.get(name, -1) + 1
        while n and f"{name}#{n}" in taken:
            n += 1
        out.append(f"{name}#{n}" if n else name)
        taken.add(out[-1])
    return out


def _numbers(names: Sequence[str]) -> dict[str, int]:
    return {name: i for i, name in enumerate(_unique(names))}


def _int(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"a whole number was expected, got {value!r}")
    return value


def _float(value: Any) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"a number was expected, got {value!r}")
    return float(value)


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"true or false was expected, got {value!r}")
    return value


def _str(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"a text was expected, got {value!r}")
    return value


# Text -----------------------------------------------------------------------------------------------------------------------------------


def _lines(document: Mapping[str, Any], indent: str = "") -> str:
    """JSON with one line for each item of a list of the plan."""
    rows = []
    for key, value in document.items():
        if (isinstance(value, dict) and key in ("plan", "loops", "machine", "devices")) or (indent and isinstance(value, dict) and "spans" in value):
            text = _lines(value, indent + " ")
        elif key in _LISTS and value:
            items = ",\n".join(f"{indent}  {json.dumps(item, ensure_ascii=False)}" for item in value)
            text = f"[\n{items}\n{indent} ]"
        else:
            text = json.dumps(value, ensure_ascii=False)
        rows.append(f"{indent} {json.dumps(key, ensure_ascii=False)}: {text}")
    return "{\n" + ",\n".join(rows) + f"\n{indent}}}" if rows else "{}"


def _checksum(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode("utf-8")).hexdigest()


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if isinstance(error, (KeyError, IndexError, AttributeError)) else str(error)
