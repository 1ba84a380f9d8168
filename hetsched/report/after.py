"""After a run: what was predicted against what was measured, of the whole and of each task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hetsched.machine.calibration import CROWDED
from hetsched.placement.costs.history import Drift
from hetsched.report.events import body_of, totals
from hetsched.report.text import percent_text, plural, seconds_text, table
from hetsched.timeline import Launch, Timeline

# Tasks named after a run, and by how much one must be off to be named: in seconds a share of the run, and of its own time.
MOST_NAMED, LEAST_SHARE, LEAST_OFF = 3, 0.02, 0.2


class Compared(NamedTuple):
    """A task on a device, all its launches together: seconds predicted and measured. Tasks of loops by `loop/task`."""

    name: str
    op: str
    device: str
    predicted: float
    measured: float
    launches: int

    @property
    def off(self) -> float:
        return self.measured - self.predicted


def compare(plan: Timeline, trace: Timeline) -> list[Compared]:
    """Every task that was planned and run on one and the same device, the one furthest off first; of loops the tasks of their bodies. Of a loop that

    has stopped early, what the turns that there were had been planned to take.
    """
    wanted, got = _sums(plan), _sums(trace)
    rows = [
        Compared(name, op, device, wanted[name, device][0] * min(n / max(wanted[name, device][1], 1e-12), 1.0), seconds, round(n))
        for (name, device), (seconds, n, op) in got.items()
        if (name, device) in wanted
    ]
    return sorted(rows, key=lambda r: (-abs(r.off), r.name))


def _sums(timeline: Timeline) -> dict[tuple[str, str], tuple[float, float, str]]:
    """(task, device) -> (seconds of all launches, launches, op)."""
    out: dict[tuple[str, str], tuple[float, float, str]] = {}
    for owner, span, loop, n, seconds in totals(timeline):
        command = span.command
        if not isinstance(command, Launch) or not span.lanes or body_of(owner, span) is not None:
            continue
        name = owner.graph.task_names[command.task]
        key = f"{loop}/{owner.prefix}{name}" if loop else name, span.lanes[0].owner
        before, launches, _ = out.get(key, (0.0, 0.0, ""))
        out[key] = before + seconds, launches + n, owner.graph.task_ops[command.task].name
    return out


def worst(rows: Sequence[Compared], makespan: float) -> list[Compared]:
    """The tasks worth naming: off by much of the run, and by much of their own time."""
    return [r for r in rows if abs(r.off) > LEAST_SHARE * makespan and abs(r.off) > LEAST_OFF * max(r.predicted, 1e-12)][:MOST_NAMED]


def worst_line(rows: Sequence[Compared], makespan: float) -> str:
    """`furthest off: train/steps/dense1 on cpu, 1.2 ms planned and 3.4 ms measured`; "" where nothing is far off."""
    found = worst(rows, makespan)
    texts = [f"{r.name} on {r.device}, {seconds_text(r.predicted)} planned and {seconds_text(r.measured)} measured" for r in found]
    return f"furthest off: {'; '.join(texts)}" if texts else ""


def drift_lines(drifts: Iterable[Drift]) -> list[str]:
    """The alarm: a device that took more (or less) than its spread allows."""
    lines = []
    for drift in drifts:
        name, factor = drift.device.partition("|")[0], drift.factor
        how = f"{factor:.2g} x slower" if factor > 1 else f"{1 / factor:.2g} x faster"
        when = "from now on" if drift.counts else "if the next run says so too"
        why = (
            f"other work kept its threads waiting {percent_text(drift.crowded)} of the run;"
            if drift.crowded > CROWDED
            else "was it shared or throttled?"
        )
        lines.append(
            f"drift: {name} was {how} than known, over {plural(drift.kinds, 'kind')} of task; plans count on it {when} "
            f"({why} `hetsched calibrate {name}` measures it anew)"
        )
    return lines


def compare_table(rows: Sequence[Compared], most: int = 20) -> list[str]:
    """A table of predicted against measured, the furthest off first."""
    cells = []
    for r in rows[:most]:
        ratio = f"{r.measured / r.predicted:.2f}" if r.predicted else "-"
        cells.append([r.name, r.device, str(r.launches), seconds_text(r.predicted), seconds_text(r.measured), ratio])
    lines = table(["task", "device", "launches", "planned", "measured", "ratio"], cells, right=(2, 3, 4, 5)) if cells else []
    return [*lines, *([f"... and {plural(len(rows) - most, 'more task')}"] if len(rows) > most else [])]
