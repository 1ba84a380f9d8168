"""What differs between two locked plans: where tasks go, what is copied, how long it takes, what memory holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hetsched.locked import machine_changes
from hetsched.report.text import bytes_text, percent_text, plural, seconds_text

MOST_TOLD = 20
_HELD = (("after", "reuse edges"), ("offsets", "places in memory"), ("workspaces", "workspaces"), ("rings", "rings"), ("notes", "notes"))


@dataclass(frozen=True)
class Difference:
    """One thing that differs. was, now: None where it is absent.

    what: `task`, `copy`, `lane`, `time`, `period`, `memory`, `graph`, `machine`, `asked` (policy, objective) or `edges` (what holds it together).
    """

    what: str
    name: str
    was: Any
    now: Any

    def __str__(self) -> str:
        match self.what:
            case "task" if self.was is None:
                return f"task {self.name}: new, on {self.now}"
            case "task" if self.now is None:
                return f"task {self.name}: gone, was on {self.was}"
            case "task":
                return f"task {self.name}: {self.was} -> {self.now}"
            case "copy":
                return f"copy {self.name}: {'new' if self.was is None else 'gone'}"
            case "time" | "period":
                share = f" ({percent_text(abs(self.now / self.was - 1))} {'more' if self.now > self.was else 'less'})" if self.was else ""
                return f"{self.name}: {seconds_text(self.was)} -> {seconds_text(self.now)}{share}"
            case "memory":
                return f"memory {self.name}: {bytes_text(self.was or 0)} -> {bytes_text(self.now or 0)}"
            case "graph":
                return "the plans are of different graphs"
            case "machine":
                return f"machine: {self.name}"
            case _:
                return f"{self.name}: {self.was} -> {self.now}"


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    """What differs from `before` to `after` (documents of `hetsched.locked`), the whole first, then task by task. Empty: they are equal.

    Times of single spans are not told; a plan that only they differ in has `plan/times` differ.
    """
    out: list[Difference] = []
    if before["graph"]["fingerprint"] != after["graph"]["fingerprint"]:
        out.append(Difference("graph", "graph", before["graph"]["fingerprint"], after["graph"]["fingerprint"]))
    out += [Difference("machine", change, None, None) for change in machine_changes(before["machine"], after["machine"])]
    out += _plan(before["plan"], after["plan"], "")
    return out


def differences_record(found: Sequence[Difference]) -> dict[str, Any]:
    """Differences for programs, each with its text."""
    return {"equal": not found, "differences": [{**asdict(d), "text": str(d)} for d in found]}


def differences_text(found: list[Difference], most: int = MOST_TOLD) -> str:
    """A line a difference, `most` of each kind at most."""
    if not found:
        return "the plans are equal"
    told: dict[str, int] = {}
    lines = []
    for d in found:
        told[d.what] = told.get(d.what, 0) + 1
        if told[d.what] <= most:
            lines.append(str(d))
    for what, n in told.items():
        if n > most:
            lines.append(f"... and {plural(n - most, 'more difference', 'more differences')} of kind {what!r}")
    return "\n".join(lines)


def _plan(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str) -> Iterator[Difference]:
    where = prefix.rstrip("/") or "plan"
    for key in ("policy", "objective"):
        if a[key] != b[key]:
            yield Difference("asked", f"{where} {key}", a[key], b[key])
    if not prefix and a["makespan"] != b["makespan"]:
        yield Difference("time", "makespan", a["makespan"], b["makespan"])
    if a["period"] != b["period"] and a["period"] is not None and b["period"] is not None:
        yield Difference("period", f"period of {where}", a["period"], b["period"])
    if not prefix:
        for node in sorted({*a["peak"], *b["peak"]}):
            if a["peak"].get(node) != b["peak"].get(node):
                yield Difference("memory", node, a["peak"].get(node), b["peak"].get(node))
    for name, was, now in _changes(_tasks(a), _tasks(b)):
        yield Difference("task", prefix + name, was, now)
    for name, was, now in _changes(_copies(a), _copies(b)):
        yield Difference("copy", prefix + name, was, now)
    moved = [1 for name, was, now in _changes(_lanes(a), _lanes(b)) if was is not None and now is not None and _owners(was) == _owners(now)]
    if moved:
        yield Difference("lane", f"{where}: lanes of {plural(len(moved), 'task')}", "one way", "another")
    for key, noun in _HELD:
        if a[key] != b[key]:
            yield Difference("edges", f"{where}: {noun}", len(a[key]), len(b[key]))
    if [_times(s) for s in a["spans"]] != [_times(s) for s in b["spans"]] and a["makespan"] == b["makespan"]:
        yield Difference("edges", f"{where}: times", "one way", "another")
    for loop in sorted({*a["loops"], *b["loops"]}):
        if loop in a["loops"] and loop in b["loops"]:
            one, two = a["loops"][loop], b["loops"][loop]
            is_if = "otherwise" in one and "otherwise" in two
            yield from _plan(one, two, f"{prefix}{loop}/{'then/' if is_if else ''}")
            if is_if:
                yield from _plan(one["otherwise"], two["otherwise"], f"{prefix}{loop}/otherwise/")


def _changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in (*a, *(n for n in b if n not in a)):
        if a.get(name) != b.get(name):
            yield name, a.get(name), b.get(name)


def _tasks(plan: Mapping[str, Any]) -> dict[str, str]:
    """Task -> its devices, joined."""
    return {s[1]: _owners(s[3]) for s in sorted(plan["spans"], key=str) if s[0] == "launch"}


def _lanes(plan: Mapping[str, Any]) -> dict[str, Any]:
    return {s[1]: s[3] for s in plan["spans"] if s[0] == "launch"}


def _copies(plan: Mapping[str, Any]) -> dict[str, bool]:
    return {f"{s[1]} {s[6][2]}->{s[7][2]}": True for s in plan["spans"] if s[0] == "copy"}


def _owners(lanes: Any) -> str:
    return "+".join(dict.fromkeys(lane[0] for lane in lanes if lane[2] != "copy"))


def _times(span: Any) -> Any:
    return span[2:4] if span[0] == "free" else span[4:6]
