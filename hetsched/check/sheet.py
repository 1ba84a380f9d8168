"""A plan laid out in turns: the sheet that all rules read and on which they note what is broken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from hetsched.machine import HOST
from hetsched.timeline import Copy, Launch, Replica, Span, Timeline

MOST_PER_RULE = 20
MOST_EVENTS = 200_000
BORROWED, MISSING = -1, -2  # instead of an event: lies on the host from the start; is nowhere
PROLOGUE, EPILOGUE = -1, -2  # instead of the number of a span
FIRST = -1  # instead of a turn: what the prologue brings

Instance: TypeAlias = tuple[int, int, str, int]  # value, turn, memory node, generation


@dataclass
class Sheet:
    """A plan laid out in turns. An event is a span of one turn; events are numbered, their columns are the lists below."""

    plan: Timeline
    found: dict[tuple[str, object], str] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    span: list[int] = field(default_factory=list)  # its number in plan.spans, or PROLOGUE, EPILOGUE
    turn: list[int] = field(default_factory=list)
    idle: list[bool] = field(default_factory=list)  # a turn at which an `every: k` span does nothing: it only keeps the order
    start: list[float] = field(default_factory=list)
    finish: list[float] = field(default_factory=list)
    before: list[list[int]] = field(default_factory=list)  # events that come first by data, order, reuse or lane
    at: dict[tuple[int, int], int] = field(default_factory=dict)  # (span number, turn) -> event
    launch: dict[tuple[int, int], int] = field(default_factory=dict)  # (task, turn) -> event
    produced: dict[Instance, int] = field(default_factory=dict)  # -> the event that brings it
    sources: list[list[tuple[Replica, Instance]]] = field(default_factory=list)  # what an event reads that another event brings
    device_of: dict[int, str] = field(default_factory=dict)
    turns: int = 1
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        graph, loop = self.plan.graph, self.plan.loop
        self.carried = {graph.inputs[a]: graph.outputs[b] for a, b in loop.carried} if loop else {}
        self.results = set(graph.outputs.values())
        # Body inputs that are the same at every turn; what is copied of them once serves all turns.
        varying = {*loop.sequences, *(a for a, _ in loop.carried), loop.turn} if loop else set()
        self.constant = {v for name, v in graph.inputs.items() if name not in varying} | set(graph.constants)
        self.every: Mapping[int, int] = loop.seldom if loop else {}

    def say(self, rule: str, key: object, text: str) -> None:
        """Note that `rule` is broken. Only the first of equal (rule, key) is kept: what is wrong at one turn is wrong at all."""
        self.found.setdefault((rule, key), f"{rule}: {text}")

    def sentences(self) -> list[str]:
        """What was noted, at most `MOST_PER_RULE` a rule."""
        by_rule: dict[str, list[str]] = {}
        for (rule, _), text in self.found.items():
            by_rule.setdefault(rule, []).append(text)
        out = []
        for rule, texts in by_rule.items():
            out += texts[:MOST_PER_RULE]
            if len(texts) > MOST_PER_RULE:
                out.append(f"{rule}: and {len(texts) - MOST_PER_RULE} more")
        return out

    def value(self, value: int) -> str:
        """The name of a value."""
        return repr(self.plan.graph.value_names[value])

    def title(self, span: Span) -> str:
        """A span in words: what it does and where."""
        command, graph = span.command, self.plan.graph
        if isinstance(command, Launch):
            what = f"launch of {graph.task_names[command.task]!r}"
        elif isinstance(command, Copy):
            what = f"copy of {self.value(command.value)} {command.src.node} -> {command.dst.node}"
        else:
            what = f"free of {self.value(command.replica.value)} in {command.replica.node}"
        return f"{what} on {', '.join(map(str, span.lanes))}" if span.lanes else what

    def name(self, event: int) -> str:
        """An event in words, with its times."""
        part = {PROLOGUE: "prologue's ", EPILOGUE: "epilogue's "}.get(self.span[event], "")
        turn = f" at turn {self.turn[event]}" if self.plan.loop is not None and not part else ""
        return f"{part}{self.title(self.spans[event])}{turn} ({self.start[event]:.9g} to {self.finish[event]:.9g} s)"

    def rate(self, value: int) -> int:
        """How many turns one value serves: k for what an `every: k` task writes, else 1."""
        return self.every.get(int(self.plan.graph.value_task[value]), 1)

    def every_of(self, span: Span) -> int:
        """A span runs on turns 0, k, 2k ...: this k. Copies and frees go with the value."""
        command = span.command
        if isinstance(command, Launch):
            return self.every.get(command.task, 1)
        return self.rate(command.value if isinstance(command, Copy) else command.replica.value)

    def is_source(self, value: int) -> bool:
        """True for inputs and constants, which lie on the host from the start."""
        return int(self.plan.graph.value_task[value]) < 0

    def whereabouts(self, value: int) -> str:
        """Where a value is, for an error about where it is not."""
        nodes = {node for v, _, node, _ in self.produced if v == value} | ({HOST} if self.is_source(value) else set())
        return f"it is only in {', '.join(sorted(nodes))}: a copy is missing" if nodes else "nothing writes it"

    def source(self, value: int, turn: int, node: str, generation: int = 0) -> tuple[int, Instance]:
        """What stands for `value` at `turn` in `node`: the event that brings it (or BORROWED, MISSING), and which value of which turn it is."""
        if generation:
            key = (value, turn, node, generation)
            return self.produced.get(key, MISSING), key
        while True:
            key = (value, turn - turn % self.rate(value), node, 0)
            if key not in self.produced and (value in self.constant or (value in self.carried and turn == 0)):
                key = (value, FIRST, node, 0)
            event = self.produced.get(key)
            if event is not None:
                return event, key
            if value not in self.carried or turn == 0:
                return (BORROWED if node == HOST and self.is_source(value) else MISSING), key
            value, turn = self.carried[value], turn - 1


def lay_out(sheet: Sheet) -> None:
    """The events: the prologue before time 0, the first turns, the epilogue after them."""
    plan = sheet.plan
    period = plan.period or 0.0
    if plan.loop is not None:
        stages = max((int(s.start / period) for s in plan.spans), default=0) + 1 if period else 1
        ring = max([plan.rings.get(r, 1) * sheet.rate(r.value) for r in plan.offsets], default=1)
        enough = stages + 2 * max(ring, *sheet.every.values(), 1)
        sheet.turns = max(0, min(plan.turns, enough, MOST_EVENTS // max(len(plan.spans), 1) + 2))
    before = max((s.finish for s in plan.prologue), default=0.0)
    for span in plan.prologue:
        _event(sheet, span, PROLOGUE, FIRST, -before)
    opening = -1
    if plan.prologue or sheet.carried:
        # One event for the end of the prologue; with it the first carried values lie on the host, where turn -1 of the carried outputs would.
        source = Replica(next(iter(sheet.carried), 0), 0, HOST)
        opening = _event(sheet, Span((), Copy(source.value, 0, source, source), 0.0, 0.0), PROLOGUE, FIRST, 0.0)
        sheet.before[opening] = list(range(opening))
        sheet.produced.update({(value, FIRST, HOST, 0): opening for value in sheet.carried})
    for turn in range(sheet.turns):
        for i, span in enumerate(plan.spans):
            sheet.at[i, turn] = _event(sheet, span, i, turn, turn * period)
    if opening >= 0:
        for event in range(opening + 1, len(sheet.spans)):
            sheet.before[event].append(opening)
    after = max(sheet.finish, default=0.0)
    for span in plan.epilogue:
        last = max(sheet.turns - 1, 0)
        _event(sheet, span, EPILOGUE, last - last % sheet.every_of(span), after)
    sheet.tolerance = 1e-12 + 1e-9 * max(sheet.finish, default=0.0)


def _event(sheet: Sheet, span: Span, number: int, turn: int, shift: float) -> int:
    event = len(sheet.spans)
    sheet.spans.append(span)
    sheet.span.append(number)
    sheet.turn.append(turn)
    sheet.idle.append(turn > 0 and turn % sheet.every_of(span) != 0)
    sheet.start.append(span.start + shift)
    sheet.finish.append(span.finish + shift)
    sheet.before.append([])
    sheet.sources.append([])
    command = span.command
    if isinstance(command, Launch):
        sheet.launch.setdefault((command.task, turn), event)
    if sheet.idle[event]:
        return event
    for made in command.writes if isinstance(command, Launch) else (command.dst,) if isinstance(command, Copy) else ():
        known = sheet.produced.setdefault((made.value, turn, made.node, made.generation), event)
        borrowed = made.node == HOST and sheet.is_source(made.value) and span.lanes and not made.generation
        if known != event or borrowed:
            other = sheet.name(known) if known != event else "the caller"
            sheet.say("written-once", (made, number), f"{sheet.value(made.value)} in {made.node} is written by {other} and by {sheet.name(event)}")
    return event
