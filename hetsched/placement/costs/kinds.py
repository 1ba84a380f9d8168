"""What is the same work: tasks of one op with equal specs and options. What learned costs are kept under."""

from __future__ import annotations

import hashlib
import weakref
from typing import NamedTuple

from hetsched.graph.alike import alike
from hetsched.graph.graph import Graph, Nested
from hetsched.graph.op import Op
from hetsched.graph.spec import Spec
from hetsched.machine import Device, Link, Machine

# Options that say what comes out, not how long it takes.
_SILENT = {"seed", "key", "path", "member", "lr"}
# The op of copies, of turns of a loop that are one step, of what a loop takes beside its turns, and of what lies between steps.
COPY = "copy"
TURN = "turn"
BEGIN = "begin"
GAP = "gap"
# From so many turns on what runs only at first (binding arrays, compiling) is over.
MANY_TURNS = 100


class Kind(NamedTuple):
    """Tasks that cost the same on a device. `text`: op, specs and options in words; `dtype`: of the first array written."""

    op: str
    text: str
    dtype: str
    flops: float
    nbytes: float


def kind_of(graph: Graph, task: int) -> Kind:
    """The kind of a task that is not a loop."""
    op = graph.task_ops[task]
    assert isinstance(op, Op)
    ins = [graph.value_specs[v] for v in graph.reads(task)]
    outs = [graph.value_specs[v] for v in graph.writes(task)]
    attributes = graph.task_attributes[task]
    work = graph.work(task)
    dtype = next((s.dtype.name for s in (*outs, *ins) if isinstance(s, Spec)), "float32")
    # Numbers with a fraction are rates and factors: they change values, not work.
    options = [f"{k}={v}" for k, v in sorted(attributes.items()) if k not in _SILENT and not isinstance(v, (float, dict, list)) and v is not None]
    text = f"{op.name}({', '.join(map(repr, ins))}) -> {', '.join(map(repr, outs))} {' '.join(options)}".strip()
    return Kind(op.name, text, dtype, work.flops, work.bytes_read + work.bytes_written)


_turn_kinds: weakref.WeakKeyDictionary[Graph, str] = weakref.WeakKeyDictionary()


def turn_kind(body: Graph) -> str:
    """What a turn of a loop is known by: the kinds of its body's tasks, in order."""
    known = _turn_kinds.get(body)
    if known is None:
        mark = hashlib.sha256()
        kinds = Kinds()
        for task in range(len(body)):
            mark.update((kinds.of(body, task).text if is_learned(body, task) else "-").encode())
        known = _turn_kinds[body] = f"{TURN} of {len(body)} tasks {mark.hexdigest()[:24]}"
    return known


_known: weakref.WeakKeyDictionary[Graph, dict[int, Kind]] = weakref.WeakKeyDictionary()


class Kinds:
    """The kinds of tasks of graphs, each worked out once as long as the graph lives: a graph of 100,000 tasks has a few."""

    def of(self, graph: Graph, task: int) -> Kind:
        """See `kind_of`."""
        known = _known.get(graph)
        if known is None:
            known = _known[graph] = {}
        number = alike(graph).kind.item(task)
        found = known.get(number)
        if found is None:
            found = known[number] = kind_of(graph, task)
        return found


def begin_kind(body: Graph, turns: int) -> str:
    """What beginning and ending a loop is known by; of many turns it does not matter how many."""
    many = f"{turns} turns" if turns < MANY_TURNS else "many turns"
    return f"{BEGIN} {many}: {turn_kind(body)}"


def device_key(device: Device) -> str:
    """What the costs of a device are kept under, "" where nothing is kept."""
    return f"{device.id}|{device.fingerprint}" if device.fingerprint else ""


def link_key(link: Link, machine: Machine) -> str:
    """What the costs of a link are kept under: the devices at its ends. "" where nothing is kept."""
    ends = sorted({d.fingerprint for d in machine.devices if d.memory in (link.src, link.dst) and d.memory != "host"})
    return f"{link.id}|{'+'.join(ends)}" if ends and all(ends) else ""


def is_learned(graph: Graph, task: int) -> bool:
    """True for tasks whose time says something: no loops (their bodies do), and no views, which take none."""
    op = graph.task_ops[task]
    return not isinstance(op, Nested) and not op.view
