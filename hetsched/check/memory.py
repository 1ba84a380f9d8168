"""Rules of memory: every replica has its place, and no bytes are written while what lies there is still used."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from typing import NamedTuple

from hetsched.check.order import without_path
from hetsched.check.sheet import EPILOGUE, FIRST, MISSING, PROLOGUE, Instance, Sheet
from hetsched.graph.op import Op
from hetsched.graph.spec import AnySpec, Sequence, Spec
from hetsched.machine import HOST
from hetsched.timeline import Free, Launch, Replica

OBJECTS = "objects"  # instead of a memory node: Python objects on the host, which have no bytes in an arena


class _Slot(NamedTuple):
    """Where an instance lies by the plan: `offset` of its replica's ring in the arena, the first byte of its own slot, bytes."""

    offset: int
    low: int
    nbytes: int


def _slot(sheet: Sheet, key: Instance) -> _Slot | None:
    """The slot of an instance; None where it is in no arena."""
    plan = sheet.plan
    value, turn, node, generation = key
    if turn == FIRST and value in sheet.carried and Replica(value, 0, node) not in plan.offsets:
        value = sheet.carried[value]  # The first value of a carried input is turn -1 of the carried output.
    replica = Replica(value, 0, node, generation)
    if replica not in plan.offsets:
        return None
    offset, nbytes = plan.offsets[replica], int(plan.graph.value_nbytes[value])
    return _Slot(offset, offset + turn // sheet.rate(value) % plan.rings.get(replica, 1) * _stride(nbytes), nbytes)


def _stride(nbytes: int) -> int:
    return -(-nbytes // 64) * 64


def places(sheet: Sheet) -> None:
    """Every place is inside the arena of its node; arenas fit."""
    plan, graph = sheet.plan, sheet.plan.graph
    capacity = {m.name: m.nbytes for m in plan.machine.memories}
    for node, size in plan.arenas.items():
        limit = capacity.get(node, -1)
        if limit is not None and size > limit:
            have = f"{node} has {limit}" if limit >= 0 else "the machine has no such memory node"
            sheet.say("arena", node, f"the arena of {node} takes {size} bytes; {have}")
    ends = []
    for task, body in plan.loops.items():
        place = plan.bodies.get(task, {})
        for node, size in body.room.items():
            low = place.get(node, -1)
            if size > 0 and (low < 0 or low + size > plan.arenas.get(node, 0)):
                what = "loop" if body.branch is None else "if"
                text = f"the body of {what} {graph.task_names[task]!r} wants {size} bytes of {node} at {low if node in place else 'no'} offset"
                sheet.say("arena", (task, node), f"{text}; the arena has {plan.arenas.get(node, 0)}")
    for replica, low in plan.offsets.items():
        nbytes, spec = int(graph.value_nbytes[replica.value]), graph.spec(replica.value)
        ends.append((sheet.value(replica.value), replica.node, low, low + (plan.rings.get(replica, 1) - 1) * _stride(nbytes) + nbytes))
        if isinstance(spec, Spec) and low % max(spec.dtype.alignment, 1):
            text = f"{sheet.value(replica.value)} is {spec!r} and lies at byte {low} of {replica.node}; give it a multiple of {spec.dtype.alignment}"
            sheet.say("arena", (replica, "alignment"), text)
    ends += [(f"the workspace of {graph.task_names[task]!r}", node, low, low + n) for task, (node, low, n) in plan.workspaces.items()]
    for name, node, low, high in ends:
        if low < 0 or high > plan.arenas.get(node, 0):
            sheet.say("arena", (name, node), f"{name} takes bytes {low} to {high} of {node}; its arena has {plan.arenas.get(node, 0)}")
    for span in plan.spans:
        command = span.command
        op = graph.task_ops[command.task] if isinstance(command, Launch) else None
        if isinstance(command, Launch) and isinstance(op, Op) and op.workspace is not None:
            specs = [graph.spec(v) for v in graph.reads(command.task)], [graph.spec(v) for v in graph.writes(command.task)]
            wanted = op.workspace(*specs, graph.task_attributes[command.task])
            node, _, given = plan.workspaces.get(command.task, ("nowhere", 0, 0))
            own = {r.node for r in command.writes} or {node}
            if wanted > given or (wanted > 0 and node not in own):
                text = f"{sheet.title(span)} wants {wanted} bytes of workspace in {', '.join(own)}; it has {given} in {node}"
                sheet.say("arena", (command.task, "workspace"), text)


class Storage(NamedTuple):
    """Bytes [low, high) of a node from the event that writes them until the last of `users` (the writer among them) is done."""

    node: str
    low: int
    high: int
    writer: int
    users: set[int]
    name: str


class _Place(NamedTuple):
    """An instance's own bytes [low, high) in a storage: all of it, or the part that a view shows."""

    storage: Storage
    low: int
    high: int


def storages(sheet: Sheet) -> tuple[list[Storage], dict[Instance, _Place]]:
    """What lies in arenas, and who uses it. A view joins what it views; everything else that is produced has bytes of its own."""
    plan, graph = sheet.plan, sheet.plan.graph
    laid: list[Storage] = []
    places: dict[Instance, _Place] = {}
    views: dict[Instance, int] = {}
    for key, event in sheet.produced.items():
        slot = _slot(sheet, key)
        if is_view(sheet, event):
            views[key] = event
        elif sheet.plan.loop is not None and is_object(graph.spec(key[0])):
            # One cell holds an object of all turns.
            laid.append(Storage(OBJECTS, key[0], key[0] + 1, event, {event}, sheet.value(key[0])))
            places[key] = _Place(laid[-1], key[0], key[0] + 1)
        elif slot is None and not _homeless(sheet, key, event):
            sheet.say("arena", (key[0], key[2]), f"{sheet.value(key[0])} has no offset in the arena of {key[2]} ({sheet.name(event)})")
        elif slot is not None and slot.nbytes > 0:
            storage = Storage(key[2], slot.low, slot.low + slot.nbytes, event, {event}, sheet.value(key[0]))
            laid.append(storage)
            places[key] = _Place(storage, storage.low, storage.high)
    # Values are numbered in topological order and carried ones come from the turn before, so what is viewed has its place already.
    for key in sorted(views, key=lambda k: (k[1], k[0])):
        place = _viewed(sheet, key, views[key], places)
        if place is not None:
            places[key] = place
    for event, sources in enumerate(sheet.sources):
        for _, key in sources:
            if key in places and not sheet.idle[event] and (not is_view(sheet, event) or _is_gathered(sheet, event)):
                places[key].storage.users.add(event)
    for event, span in enumerate(sheet.spans):
        task = span.command.task if isinstance(span.command, Launch) and not sheet.idle[event] else -1
        scratch = [plan.workspaces[task]] if task in plan.workspaces else []
        if task in plan.loops:
            scratch += [(node, low, plan.loops[task].room.get(node, 0)) for node, low in plan.bodies.get(task, {}).items()]
        for node, low, nbytes in scratch:
            if nbytes > 0:
                laid.append(Storage(node, low, low + nbytes, event, {event}, f"the workspace of {graph.task_names[task]!r}"))
    return laid, places


def is_view(sheet: Sheet, event: int) -> bool:
    """True for the launch of a view op."""
    command = sheet.spans[event].command
    return isinstance(command, Launch) and getattr(sheet.plan.graph.task_ops[command.task], "view", False)


def _is_gathered(sheet: Sheet, event: int) -> bool:
    """True if the loop takes what the launch gives at every turn: such a view is read when it is made."""
    command, loop = sheet.spans[event].command, sheet.plan.loop
    if loop is None or not isinstance(command, Launch):
        return False
    taken = {sheet.plan.graph.outputs[name] for name in (*loop.collected, *([loop.stop] if loop.stop else []))}
    return any(w.value in taken for w in command.writes)


def _viewed(sheet: Sheet, key: Instance, event: int, places: Mapping[Instance, _Place]) -> _Place | None:
    """The bytes that a view shows, None where they are in no arena."""
    command = sheet.spans[event].command
    assert isinstance(command, Launch)
    base_key = next((k for replica, k in sheet.sources[event] if replica == command.reads[0]), None)
    if base_key is None or base_key not in places:
        return None
    base, slot, base_slot = places[base_key], _slot(sheet, key), _slot(sheet, base_key)
    if slot is None or base_slot is None:
        return base
    low = base.low + slot.offset - base_slot.offset
    if not base.low <= low <= low + slot.nbytes <= base.high:
        text = f"{sheet.value(key[0])} lies at bytes {low} to {low + slot.nbytes} of {key[2]}, outside of {sheet.value(base_key[0])}, which it views"
        sheet.say("alias", (key[0], key[2]), f"{text} ({base.low} to {base.high})")
    return _Place(base.storage, low, low + slot.nbytes)


def _homeless(sheet: Sheet, key: Instance, event: int) -> bool:
    """True where a replica needs no place in an arena: an object, an empty array, or a result on the host, which the caller owns.

    In the body of a loop, what prologue and epilogue bring to the host is the caller's; what is collected is copied to it turn by turn.
    """
    graph, (value, _, node, _) = sheet.plan.graph, key
    if is_object(graph.spec(value)) or graph.value_nbytes[value] == 0:
        return True
    owned = value in sheet.results and sheet.plan.loop is None
    return node == HOST and (owned or sheet.span[event] in (PROLOGUE, EPILOGUE))


def is_object(spec: AnySpec) -> bool:
    """True for what is no array: opaque values, and sequences that have no array form."""
    if isinstance(spec, Sequence):
        return not isinstance(spec.element, Spec) or spec.length is None or spec.element.is_bounded
    return not isinstance(spec, Spec)


def reuse(sheet: Sheet, order: list[int]) -> None:
    """No bytes are written while what lies there is used, by time and by order."""
    laid, places = storages(sheet)
    position = [0] * len(order)
    for i, event in enumerate(order):
        position[event] = i
    to_the_end = kept(sheet, places)
    questions: list[tuple[int, int, str]] = []
    arenas: dict[str, _Bytes] = {}
    for new in sorted(laid, key=lambda s: (sheet.start[s.writer], position[s.writer])):
        for old in arenas.setdefault(new.node, _Bytes()).occupy(new):
            text = f"{sheet.name(new.writer)} writes {new.name} over {old.name} in {new.node}"
            if id(old) in to_the_end:
                sheet.say("reuse", (sheet.span[new.writer], old.name, "kept"), f"{text}, which is a result and needed to the end")
            for user in old.users:
                key = (sheet.span[user], sheet.span[new.writer], old.name)
                if user == new.writer:
                    if new.node != OBJECTS and not _in_place(sheet, user, old, new, places):
                        sheet.say("alias", key, f"{text}, which it uses itself; its op does not allow that")
                elif sheet.start[new.writer] < sheet.finish[user] - sheet.tolerance:
                    sheet.say("reuse", key, f"{text} while {sheet.name(user)} uses it")
                else:
                    questions.append((user, new.writer, f"{new.name} over {old.name}"))
    absent = without_path(sheet.before, order, position, {(a, b) for a, b, _ in questions})
    for user, writer, what in questions:
        if (user, writer) in absent:
            text = f"{sheet.name(writer)} writes {what}, and nothing makes it wait for {sheet.name(user)}; a reuse edge is missing"
            sheet.say("reuse-edge", (sheet.span[user], sheet.span[writer], what), text)


def kept(sheet: Sheet, places: Mapping[Instance, _Place]) -> set[int]:
    """Storages on the host that hold results after the last turn: outputs of a straight plan (views), last carried values of a body."""
    values = sheet.carried.values() if sheet.plan.loop is not None else sheet.plan.graph.outputs.values()
    keys = [sheet.source(value, sheet.turns - 1, HOST)[1] for value in values] if sheet.turns else []
    return {id(places[key].storage) for key in keys if key in places}


def _in_place(sheet: Sheet, event: int, old: Storage, new: Storage, places: Mapping[Instance, _Place]) -> bool:
    """True if the launch may write `new` over what it reads: its op pairs that output with every input there, on the very same bytes."""
    command, graph = sheet.spans[event].command, sheet.plan.graph
    op = graph.task_ops[command.task] if isinstance(command, Launch) else None
    if not isinstance(command, Launch) or not isinstance(op, Op) or old.writer == event:
        return False
    written = [places.get((w.value, sheet.turn[event], w.node, w.generation)) for w in command.writes]
    output = next((k for k, place in enumerate(written) if place is not None and place.storage is new), None)
    key_of = dict(sheet.sources[event])
    read = [(k, places[key_of[r]]) for k, r in enumerate(command.reads) if r in key_of and key_of[r] in places]
    there = [(k, place) for k, place in read if place.storage is old and place.low < new.high and new.low < place.high]
    for k, place in there:
        same = (place.low, place.high) == (new.low, new.high) and graph.spec(command.reads[k].value) == graph.spec(command.writes[output or 0].value)
        if (output, k) not in op.inplace or not same or command.reads.count(command.reads[k]) > 1:
            return False
    return True


class _Bytes:
    """The bytes of one arena and what was laid in them last: intervals that do not overlap, by place."""

    def __init__(self) -> None:
        self.lows: list[int] = []
        self.rows: list[tuple[int, int, Storage]] = []

    def occupy(self, new: Storage) -> list[Storage]:
        """Lay `new` over what is there; gives each storage that it covers, wholly or in part, once."""
        first = max(bisect_right(self.lows, new.low) - 1, 0)
        last = bisect_left(self.lows, new.high)
        if first < last and self.rows[first][1] <= new.low:
            first += 1
        covered = self.rows[first:last]
        left = [(low, new.low, s) for low, _, s in covered[:1] if low < new.low]
        right = [(new.high, high, s) for _, high, s in covered[-1:] if high > new.high]
        laid = [*left, (new.low, new.high, new), *right]
        self.rows[first:last] = laid
        self.lows[first:last] = [low for low, _, _ in laid]
        return list({id(s): s for _, _, s in covered}.values())


def frees(sheet: Sheet) -> None:
    """A replica is freed when it is there and its last user has finished."""
    freed: dict[Instance, int] = {}
    for event, span in enumerate(sheet.spans):
        if isinstance(span.command, Free):
            replica = span.command.replica
            source, key = sheet.source(replica.value, sheet.turn[event], replica.node, replica.generation)
            if source == MISSING:
                sheet.say("free", replica, f"{sheet.name(event)}: there is no such replica")
            freed[key] = event
    for event, sources in enumerate(sheet.sources):
        for replica, key in sources:
            if key in freed and sheet.finish[event] > sheet.start[freed[key]] + sheet.tolerance:
                sheet.say("free", (replica, sheet.span[event]), f"{sheet.name(freed[key])}, but {sheet.name(event)} uses it until later")
