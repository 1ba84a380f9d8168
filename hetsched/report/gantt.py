"""A timeline as a Gantt chart in plain text: a row a lane, links among them, with the share of idle time; loops with a few of their turns.

A span that is wide enough shows its name, `[load====]`; narrower ones are shades of how busy their column is. In the chart of a loop spans are
filled with the last digit of their turn, so that overlapping turns can be told apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hetsched.graph.graph import Loop
from hetsched.report.events import Event, body_of, busy_seconds, events, merged
from hetsched.report.text import percent_text, plural, seconds_text, shorten
from hetsched.timeline import Lane, Launch, Timeline

SHADES = " ░▒▓█"
ASCII_SHADES = " .:*#"
NARROWEST = 40


class Piece(NamedTuple):
    """A piece of a row: its name, the character that fills it behind the name, seconds from the start of the chart."""

    name: str
    fill: str
    start: float
    finish: float


def gantt(timeline: Timeline, width: int = 100, turns: int = 4, ascii_only: bool = False) -> str:
    """The chart as lines of at most `width` characters (at least 40). Of a loop its first `turns` turns are drawn, in a chart of its own."""
    width = max(width, NARROWEST)
    shades = ASCII_SHADES if ascii_only else SHADES
    outer = [e for e in events(timeline, turns) if e.loop == ""]
    if not outer:
        return "nothing runs"
    busy = busy_seconds(timeline)
    total = timeline.makespan
    lines = _chart(
        outer,
        0.0,
        max(total, max(e.finish for e in outer)),
        width,
        shades,
        {lane: _idle(busy.get(lane, 0.0), total) for e in outer for lane in e.lanes},
    )
    for event in outer:
        command = event.span.command
        body = body_of(timeline, event.span) if event.kind == "loop" and isinstance(command, Launch) else None
        if body is not None and body.spans:
            lines += ["", *_loop_chart(event, body, width, turns, shades)]
    return "\n".join(lines)


def _loop_chart(event: Event, body: Timeline, width: int, turns: int, shades: str) -> list[str]:
    drawn = [e for e in events(body, turns) if e.loop == ""]
    loop = event.timeline.graph.task_ops[event.span.command.task]  # type: ignore[union-attr]
    total = loop.turns if isinstance(loop, Loop) else body.turns
    head = f"loop {event.name}: {plural(body.turns if body.measured else total, 'turn')}"
    is_branch = body.branch is not None
    if is_branch:
        head = f"if {event.name}: {body.prefix[:-1]}"
    if body.period is not None:
        once = max(s.finish for s in body.spans if s.lanes) if not body.measured else 0.0
        head += f", period {seconds_text(body.period)}"
        if not body.measured:
            flight = math.ceil(once / body.period - 1e-9) if body.period > 0 else 1
            head += f", one turn {seconds_text(once)}, {plural(max(flight, 1), 'turn')} in flight"
    if not drawn:
        return [shorten(head, width)]
    start, finish = min(e.start for e in drawn), max(e.finish for e in drawn)
    idle: dict[Lane, float] = {}
    if body.period:
        for lane in body.lanes:
            used = sum(s.finish - s.start for s in body.spans if lane in s.lanes) if not body.measured else 0.0
            idle[lane] = _idle(used, body.period)
    if body.measured:
        # A trace keeps only some turns, so its idle time is that of the turns drawn.
        idle = {lane: _idle(sum(f - s for s, f in spans), finish - start) for lane, spans in _intervals(drawn).items()}
    shown = len({e.turn for e in drawn})
    if not is_branch:
        head += f"; {'turn 0 drawn' if shown == 1 else f'turns 0 to {max(e.turn for e in drawn)} drawn'}"
    return [shorten(head, width), *_chart(drawn, start, finish, width, shades, idle, by_turn=not is_branch)]


def _intervals(drawn: Iterable[Event]) -> dict[Lane, list[tuple[float, float]]]:
    out: dict[Lane, list[tuple[float, float]]] = {}
    for event in drawn:
        for lane in event.lanes:
            out.setdefault(lane, []).append((event.start, event.finish))
    return {lane: merged(spans) for lane, spans in out.items()}


def _idle(busy: float, total: float) -> float:
    return min(max(1.0 - busy / total, 0.0), 1.0) if total > 0 else 0.0


def _chart(drawn: Sequence[Event], start: float, finish: float, width: int, shades: str, idle: dict[Lane, float], by_turn: bool = False) -> list[str]:
    lanes = sorted({lane for e in drawn for lane in e.lanes}, key=lane_order)
    rows: dict[Lane, list[Piece]] = {lane: [] for lane in lanes}
    for event in drawn:
        fill = str(event.turn % 10) if by_turn else ("~" if event.kind == "loop" else "=")
        for lane in event.lanes:
            rows[lane].append(Piece(event.name, fill, event.start - start, event.finish - start))
    return chart([(str(lane), rows[lane], idle.get(lane, 0.0)) for lane in lanes], finish - start, width, shades)


def chart(rows: Sequence[tuple[str, Sequence[Piece], float]], length: float, width: int, shades: str = SHADES) -> list[str]:
    """Lines of a chart from 0 to `length` seconds, from rows of (label, pieces, idle fraction)."""
    length = length or 1.0
    label = min(max(len(name) for name, _, _ in rows), max(width // 4, 8))
    columns = max(width - label - len("  |") - len("| >99 % idle"), 8)
    lines = [" " * (label + 3) + _axis(length, columns)]
    for name, pieces, idle in rows:
        lines.append(f"{shorten(name, label):<{label}}  |{_bar(pieces, length, columns, shades)}| {percent_text(idle):>5} idle")
    return lines


def lane_order(lane: Lane) -> tuple[int, str, int]:
    """Compute lanes first, then io lanes, then links."""
    return ({"compute": 0, "io": 1}.get(lane.kind, 2), lane.owner, lane.number)


def _axis(length: float, columns: int) -> str:
    """`0` at the left, half the length in the middle where there is room, the length at the right."""
    line = list("0".ljust(columns))
    last, middle = seconds_text(length), seconds_text(length / 2)
    line[columns - len(last) :] = last
    if columns >= 3 * len(last) + len(middle) + 4:
        at = (columns - len(middle)) // 2
        line[at : at + len(middle)] = middle
    return "".join(line)


def _bar(row: Sequence[Piece], length: float, columns: int, shades: str) -> str:
    scale = columns / length
    named: list[tuple[int, int, Piece]] = []
    small: list[tuple[float, float]] = []
    for piece in row:
        left = max(round(piece.start * scale), 0)
        room = min(round(piece.finish * scale), columns) - left
        if room >= 3:
            named.append((left, room, piece))
        else:
            small.append((piece.start, piece.finish))
    cover = [0.0] * columns
    for a, b in merged(small):
        for c in range(max(int(a * scale), 0), min(int(b * scale), columns - 1) + 1):
            cover[c] += max(min(b * scale, c + 1) - max(a * scale, c), 0.0)
    # A column that is touched at all is never blank: the shortest launch stays visible.
    line = [shades[min(math.ceil(x * 4 - 1e-6), 4) if x > 1e-9 else 0] for x in cover]
    for a, _ in small:
        c = min(max(int(a * scale), 0), columns - 1)
        line[c] = shades[1] if line[c] == shades[0] else line[c]
    for left, room, piece in named:
        name = piece.name.rpartition("/")[2] if room - 2 < len(piece.name) else piece.name
        if piece.fill.isdigit() and room - 2 > len(name):
            name += " "  # or the turn would read as a part of the name
        line[left : left + room] = f"[{shorten(name, room - 2):{piece.fill}<{room - 2}}]"
    return "".join(line)
