"""The runs of this user: one small file each under the state folder, bounded in number and size; listed, shown, compared.

A record is plain data (JSON, gzip): what was run and how, plan and trace in sums, each task predicted against measured, the costs that were measured,
and the first events of the trace. The oldest runs go when there are more than `MOST_RUNS`, or they take more than `MOST_BYTES`.
"""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hetsched.errors import CommandLineError, FileError, did_you_mean
from hetsched.executors.result import Result
from hetsched.folders import state_folder, write_whole
from hetsched.placement.costs.history import Drift, Lesson
from hetsched.placement.costs.lessons import lessons
from hetsched.placement.costs.replay import named
from hetsched.report.after import Compared, compare
from hetsched.report.energy import Energy, energy_record
from hetsched.report.events import events
from hetsched.report.record import devices_record, transfers_record
from hetsched.timeline import Timeline

MOST_RUNS, MOST_BYTES = 200, 64 << 20
# Of a run's trace the first events are kept, and of its loops the first turns.
MOST_EVENTS, KEPT_TURNS = 2000, 8
# Of its tasks those furthest from the plan, and of its kinds of task as many.
MOST_TASKS = 2000
SUFFIX = ".json.gz"
_STAMP = len("20261231-235959")


class Runs:
    """The runs kept in `folder` (by default under the user's state folder)."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder if folder is not None else state_folder() / "runs"

    def add(self, record: Mapping[str, Any], now: float | None = None) -> str:
        """Keep a run; returns its id, "" where the folder cannot be written: a run is not lost for that."""
        moment = time.time() if now is None else now
        name = self._take(time.strftime("%Y%m%d-%H%M%S", time.localtime(moment)))
        whole = {"version": 1, "id": name, "at": moment, **record}
        packed = gzip.compress(json.dumps(whole, default=str, separators=(",", ":")).encode(), compresslevel=1, mtime=0)
        if not name or not write_whole(self._path(name), packed):
            return ""
        self.prune()
        return name

    def _take(self, stamp: str) -> str:
        """A name for a run of that second, held by an empty file: runs of other processes may end in the same one. "" where none can be had."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in (stamp, *(f"{stamp}-{n}" for n in range(2, 1000))):
                with suppress(FileExistsError):
                    self._path(name).touch(exist_ok=False)
                    return name
        except OSError:
            pass
        return ""

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{SUFFIX}"

    def files(self) -> list[Path]:
        """The files of all runs, the newest last; of one moment by their names, of one second by their numbers."""
        found = []
        try:
            for x in os.scandir(self.folder):
                if x.name.endswith(SUFFIX) and (status := x.stat()).st_size:
                    stamp, number = x.name[:_STAMP], x.name[_STAMP + 1 :].removesuffix(SUFFIX)
                    found.append((status.st_mtime_ns, stamp, int(number) if number.isdecimal() else 1, Path(x.path)))
        except OSError:
            return []
        return [path for *_, path in sorted(found)]

    def ids(self) -> list[str]:
        """The ids of all runs, the newest last."""
        return [path.name.removesuffix(SUFFIX) for path in self.files()]

    def load(self, wanted: str) -> dict[str, Any]:
        """The run called `wanted`: an id, its beginning where only one run has it, `last`, or `last~N` for the Nth before it."""
        ids = self.ids()
        if not ids:
            raise CommandLineError("no runs are kept yet; `hetsched run FILE` keeps each")
        if wanted == "last" or wanted.startswith("last~"):
            back = wanted[5:] or "0"
            if not back.isdigit() or int(back) >= len(ids):
                raise CommandLineError(f"there is no run {wanted!r}; {len(ids)} are kept, the first is last~{len(ids) - 1}")
            return self._read(ids[-1 - int(back)])
        found = [i for i in ids if i == wanted] or [i for i in ids if i.startswith(wanted)]
        if len(found) != 1:
            more = f"; it may be {', '.join(found[:4])}" if found else f"{did_you_mean(wanted, ids)}; `hetsched runs` lists them"
            raise CommandLineError(f"{'several runs begin' if found else 'no run begins'} with {wanted!r}{more}")
        return self._read(found[0])

    def every(self, most: int = MOST_RUNS) -> list[dict[str, Any]]:
        """The last `most` runs that can be read, the newest last."""
        out: list[dict[str, Any]] = []
        for name in reversed(self.ids()):
            if len(out) >= most:
                break
            with suppress(FileError):
                out.append(self._read(name))
        return out[::-1]

    def prune(self, runs: int = MOST_RUNS, nbytes: int = MOST_BYTES) -> int:
        """Remove the oldest runs until there are at most so many, of at most so many bytes in all; returns how many went."""
        kept = self.files()
        sizes = [_size(path) for path in kept]
        gone = 0
        while kept and (len(kept) > runs or sum(sizes) > nbytes):
            with suppress(OSError):
                kept[0].unlink()
            del kept[0], sizes[0]
            gone += 1
        return gone

    def broken(self) -> list[tuple[str, int]]:
        """(id, bytes) of the runs that cannot be read."""
        out = []
        for path in self.files():
            name = path.name.removesuffix(SUFFIX)
            try:
                self._read(name)
            except FileError:
                out.append((name, _size(path)))
        return out

    def remove(self, name: str) -> bool:
        """Remove the run with this id. False where that is not allowed."""
        try:
            (self.folder / f"{name}{SUFFIX}").unlink()
        except OSError:
            return False
        return True

    def _read(self, name: str) -> dict[str, Any]:
        path = self._path(name)
        try:
            found = json.loads(gzip.decompress(path.read_bytes()))
            if not isinstance(found, dict) or found.get("version") != 1:
                raise ValueError("not a run of this version")
        except (OSError, ValueError, EOFError) as error:
            raise FileError(f"{path}: the run cannot be read: {error}; `hetsched cache gc` removes broken runs") from error
        return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def record_of(
    result: Result, *, file: str, sha256: str, name: str, parameters: Mapping[str, Any], options: Mapping[str, Any], metrics: Mapping[str, float],
    outputs: Mapping[str, str | None], drifts: Sequence[Drift] = (), taught: Sequence[Lesson] | None = None, energy: Energy | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What is kept of a run. parameters, options: how it was asked for, so that it can be planned again. taught: `lessons` of its trace, where they

    are known already.
    """
    plan, trace = result.plan, result.trace
    taught = lessons(trace) if taught is None else taught
    return {
        "name": name,
        "file": os.path.abspath(file),
        "sha256": sha256,
        "parameters": dict(parameters),
        "options": dict(options),
        "status": "failed" if result.failed else "done",
        "wall_seconds": result.wall_seconds,
        "measured_seconds": trace.makespan,
        "planned_seconds": plan.makespan,
        "plan_seconds": plan.plan_seconds,
        "lower_bound_seconds": plan.bound.seconds if plan.bound is not None else None,
        "policy": plan.policy,
        "objective": plan.objective,
        "devices": devices_record(trace),
        "transfers": transfers_record(trace, plan),
        "energy": energy_record(energy) if energy is not None else None,
        "tasks": [list(row) for row in compare(plan, trace)[:MOST_TASKS]],
        "costs": [list(x) for x in named(taught)[:MOST_TASKS]],
        "drifts": [list(x) for x in drifts],
        "events": _events(trace),
        "metrics": dict(metrics),
        "outputs": dict(outputs),
        "notes": [*plan.notes, *trace.notes],
    }


def _events(trace: Timeline) -> list[list[Any]]:
    found = events(trace, KEPT_TURNS)[:MOST_EVENTS]
    return [[str(lane), e.name, e.kind, e.turn, round(e.start, 9), round(e.finish, 9)] for e in found for lane in e.lanes]


def compared_of(record: Mapping[str, Any]) -> list[Compared]:
    """Predicted against measured, as it was kept."""
    return [Compared(*row) for row in record["tasks"]]


def lessons_of(record: Mapping[str, Any]) -> list[Lesson]:
    """The costs that the run measured; `device` is the device's id."""
    return [Lesson(*row) for row in record["costs"]]


def drifts_of(record: Mapping[str, Any]) -> list[Drift]:
    """The devices that were off in the run."""
    return [Drift(*row) for row in record["drifts"]]


def chrome_trace(record: Mapping[str, Any]) -> dict[str, Any]:
    """The kept events for ui.perfetto.dev: a row a lane, microseconds."""
    lanes = {lane: i for i, lane in enumerate(dict.fromkeys(event[0] for event in record["events"]))}
    out: list[dict[str, Any]] = [{"ph": "M", "name": "thread_name", "pid": 1, "tid": i, "args": {"name": lane}} for lane, i in lanes.items()]
    for lane, name, kind, turn, start, finish in record["events"]:
        out.append(
            {
                "ph": "X", "name": name, "cat": kind, "pid": 1, "tid": lanes[lane], "ts": 1e6 * start, "dur": 1e6 * (finish - start),
                "args": {"turn": turn},
            }
        )  # fmt: skip
    return {"traceEvents": out, "displayTimeUnit": "ms", "otherData": {"run": record["id"], "file": record["file"]}}
