"""Costed graphs: durations given per device, bytes on edges, nothing to execute; so that policies can be studied on any machine.

The format is `placement-bench/1`: JSON, gzipped or not. Links are contention-free and memory is unbounded.
"""

from __future__ import annotations

import gzip
import json
import math
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hetsched.errors import FileError, PlanError
from hetsched.placement.bounds import SHARE, lower_bound
from hetsched.placement.draft import Draft
from hetsched.placement.policies import find
from hetsched.placement.problem import Choice, FloatArray, IntArray, Pool, Problem
from hetsched.placement.quiet import no_garbage_collection
from hetsched.placement.search import improve

FORMAT = "placement-bench/1"


def plan_costed(path: str | Path, policy: str = "auto", plan_seconds: float = 0.0) -> dict[str, Any]:
    """Plan the costed graph in the file `path`. plan_seconds: time to search for a better plan than that of the policy.

    Returns {"file", "policy", "makespan", "lower_bound", "plan_seconds", "tasks": [[device, start, end, lane], ...]}, seconds throughout; a row
    per task of the file. Raises `FileError` for a file that cannot be read or is no costed graph, `CommandLineError` for an unknown policy.
    """
    chosen = find(policy)
    with no_garbage_collection():
        problem = read_costed(path)
        started = time.perf_counter()
        draft = CostedDraft(problem)
        chosen(draft)
        if plan_seconds > 0:
            improve(draft, started + plan_seconds * (1 - SHARE))
        makespan = draft.finish()
        bound = lower_bound(problem, plan_seconds * SHARE, makespan)
        seconds = time.perf_counter() - started
    return {
        "file": str(path),
        "policy": policy,
        "makespan": makespan,
        "lower_bound": bound.seconds,
        "plan_seconds": seconds,
        "tasks": draft.rows(),
    }


def read_costed(path: str | Path) -> Problem:
    """The problem in the file `path`."""
    where = Path(path)
    try:
        raw = where.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
        document = json.loads(raw, parse_constant=_no_constant)
    except (OSError, EOFError) as error:
        raise FileError(f"{where}: cannot be read: {error}") from error
    except ValueError as error:
        raise FileError(f"{where}: not JSON (or gzipped JSON): {error}") from error
    try:
        return costed_problem(document)
    except ValueError as error:
        raise FileError(f"{where}: {error}") from error


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON; write null for a device that cannot run a task")


def costed_problem(document: Mapping[str, Any]) -> Problem:
    """The problem of a parsed file. Raises `ValueError` that names the key and what is wrong with it."""
    if not isinstance(document, Mapping) or document.get("format") != FORMAT:
        seen = document.get("format") if isinstance(document, Mapping) else type(document).__name__
        raise ValueError(f'not a costed graph: `format` is {seen!r}, wanted "{FORMAT}"')
    nodes = tuple(str(x) for x in _list(document, "mem_nodes"))
    devices = _list(document, "devices")
    if not devices:
        raise ValueError("`devices` is empty; a machine needs at least one")
    ids, lanes, memory, speed = [], [], [], []
    related = "durations" not in document
    for i, device in enumerate(devices):
        name = f"devices[{i}]"
        ids.append(str(_key(device, "name", name)))
        lanes.append(_whole(_key(device, "lanes", name), f"{name}.lanes", 1))
        memory.append(_whole(_key(device, "mem", name), f"{name}.mem", 0, len(nodes) - 1))
        if related:
            speed.append(_positive(_key(device, "speed", name), f"{name}.speed"))
    latency, per_byte = _links(document, nodes, set(memory))
    durations = _related(document, speed) if related else _unrelated(document, len(devices))
    stuck = np.flatnonzero(~np.isfinite(durations).any(axis=1))
    if len(stuck):
        raise ValueError(
            f"task {stuck[0]} can run on no device (and {len(stuck) - 1} more)" if len(stuck) > 1 else f"task {stuck[0]} can run on no device"
        )
    start, task, nbytes = _edges(document, len(durations))
    order = _topological(len(durations), start, task)
    m = len(nodes)
    return Problem(
        device_ids=tuple(ids),
        node_names=nodes,
        choices=tuple(Choice(d, d, node, 1) for d, node in enumerate(memory)),
        pools=tuple(Pool(d, "compute", n) for d, n in enumerate(lanes)),
        durations=durations,
        order=order,
        pred_start=start,
        pred_task=task,
        pred_nbytes=nbytes,
        pred_largest=nbytes,
        latency=latency,
        seconds_per_byte=per_byte,
        engines=np.zeros((m, m), dtype=np.int64),
        capacity=(None,) * m,
    )


def _key(mapping: Any, key: str, where: str) -> Any:
    if not isinstance(mapping, Mapping) or key not in mapping:
        raise ValueError(f"{where} has no {key!r}")
    return mapping[key]


def _list(document: Mapping[str, Any], key: str) -> list[Any]:
    value = document.get(key)
    if not isinstance(value, list):
        raise ValueError(f"`{key}` must be a list, got {type(value).__name__ if key in document else 'nothing'}")
    return value


def _whole(value: Any, where: str, low: int, high: float = math.inf) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        span = f"of at least {low}" if high == math.inf else f"from {low} to {high}"
        raise ValueError(f"{where} must be a whole number {span}, got {value!r}")
    return value


def _positive(value: Any, where: str, *, zero: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{where} must be a number {'of at least' if zero else 'above'} 0, got {value!r}")
    return float(value)


def _links(document: Mapping[str, Any], nodes: tuple[str, ...], used: set[int]) -> tuple[FloatArray, FloatArray]:
    m = len(nodes)
    latency, per_byte = np.full((m, m), np.inf), np.full((m, m), np.inf)
    np.fill_diagonal(latency, 0.0)
    np.fill_diagonal(per_byte, 0.0)
    for i, link in enumerate(_list(document, "links")):
        name = f"links[{i}]"
        a = _whole(_key(link, "src", name), f"{name}.src", 0, m - 1)
        b = _whole(_key(link, "dst", name), f"{name}.dst", 0, m - 1)
        if a != b:
            latency[a, b] = _positive(_key(link, "latency", name), f"{name}.latency", zero=True)
            per_byte[a, b] = 1.0 / _positive(_key(link, "bandwidth", name), f"{name}.bandwidth")
    for a, b in ((a, b) for a in sorted(used) for b in sorted(used) if a != b):
        if latency[a, b] == math.inf:
            raise ValueError(f"no link from {nodes[a]!r} to {nodes[b]!r}; `links` needs one per ordered pair of memory nodes")
    return latency, per_byte


def _related(document: Mapping[str, Any], speed: list[float]) -> FloatArray:
    if "cost" not in document:
        raise ValueError("neither `durations` (a row per task) nor `cost` (a number per task, with `speed` of each device) is given")
    cost = _numbers(_list(document, "cost"), "cost", 1)
    durations: FloatArray = cost[:, None] / np.array(speed)[None, :]
    return durations


def _unrelated(document: Mapping[str, Any], n_devices: int) -> FloatArray:
    rows = _list(document, "durations")
    for i, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != n_devices:
            raise ValueError(f"durations[{i}] must be a list of {n_devices} numbers or nulls, one a device")
    durations = _numbers(rows, "durations", 2).reshape(len(rows), n_devices)
    return np.where(np.isnan(durations), np.inf, durations)


def _numbers(rows: list[Any], key: str, dimensions: int) -> FloatArray:
    try:
        out = np.array(rows, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{key}` must hold numbers only: {error}") from error
    if len(rows) and out.ndim != dimensions:
        raise ValueError(f"`{key}` must hold numbers only, got lists of lists")
    if dimensions == 1 and np.isnan(out).any():
        raise ValueError(f"{key}[{int(np.flatnonzero(np.isnan(out))[0])}] is null")
    if (out < 0).any():
        raise ValueError(f"`{key}` of task {int(np.argwhere(out < 0)[0][0])} is below 0")
    return out


def _edges(document: Mapping[str, Any], n: int) -> tuple[IntArray, IntArray, FloatArray]:
    rows = _list(document, "edges")
    try:
        edges = np.array(rows, dtype=np.float64).reshape(len(rows), 3)
    except (TypeError, ValueError) as error:
        raise ValueError("`edges` must be a list of [task, task, bytes]") from error
    ends = edges[:, :2].astype(np.int64)
    bad = np.flatnonzero((ends != edges[:, :2]).any(axis=1) | (ends < 0).any(axis=1) | (ends >= n).any(axis=1) | ~(edges[:, 2] >= 0))
    if len(bad):
        raise ValueError(f"edges[{bad[0]}] is {rows[bad[0]]}; wanted two task numbers from 0 to {n - 1} and bytes of at least 0")
    by_reader = np.argsort(ends[:, 1], kind="stable")
    start = np.concatenate(([0], np.cumsum(np.bincount(ends[:, 1], minlength=n)))).astype(np.int64)
    return start, ends[by_reader, 0], edges[by_reader, 2]


def _topological(n: int, start: IntArray, task: IntArray) -> IntArray:
    """Tasks so that predecessors come first; a `ValueError` names a cycle."""
    missing = np.diff(start).tolist()
    owner = np.repeat(np.arange(n), np.diff(start))
    by_source = np.argsort(task, kind="stable")
    successors = owner[by_source].tolist()
    ends = np.concatenate(([0], np.cumsum(np.bincount(task, minlength=n)))).tolist()
    order = [t for t in range(n) if not missing[t]]
    for t in order:
        for v in successors[ends[t] : ends[t + 1]]:
            missing[v] -= 1
            if not missing[v]:
                order.append(v)
    if len(order) < n:
        seen: list[int] = []
        t = next(t for t in range(n) if missing[t])
        while t not in seen:
            seen.append(t)
            t = next(int(p) for p in task[start[t] : start[t + 1]] if missing[p])
        circle = [*reversed(seen[seen.index(t) :])]
        raise ValueError(f"`edges` have a cycle: {' -> '.join(map(str, [*circle[:10], circle[0]]))}")
    return np.array(order, dtype=np.int64)


class CostedDraft(Draft):
    """The plan of a costed graph, being written. The hot path of planning: HEFT at 10,000 tasks x 16 devices takes at most 30 us a task."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        preds, nbytes = problem.pred_task.tolist(), problem.pred_nbytes.tolist()
        self._preds = [list(zip(preds[a:b], nbytes[a:b], strict=True)) for a, b in pairwise(problem.pred_start.tolist())]
        self._seconds: list[list[float]] = problem.durations.tolist()
        self.finish_of = [math.inf] * len(problem)  # so that a task asked for before its predecessors finds no place
        self._node = problem.nodes.tolist()
        # From each node to every node: (latency, seconds per byte). Nodes without a device are never asked for.
        self._links = [list(zip(a, b, strict=True)) for a, b in zip(problem.latency.tolist(), problem.seconds_per_byte.tolist(), strict=True)]
        self._nothing = [0.0] * len(problem.choices)
        self._zeros = [0.0] * len(problem.node_names)
        self._lanes = [[([0.0], [math.inf]) for _ in range(pool.lanes)] for pool in problem.pools]
        # Gaps shorter than any task on the device can hold nothing and are not kept.
        finite = np.where(np.isfinite(problem.durations), problem.durations, np.inf)
        self._shortest = (finite.min(axis=0, initial=np.inf) * (1 - 1e-9)).tolist()
        self._lane_of = [0] * len(problem)
        self._found: tuple[int, int, float, int] | None = None

    def earliest(self, task: int, behind: Sequence[float] | None = None) -> int:
        ready = self._ready(task)
        best, least, begin, number = -1, math.inf, 0.0, 0
        choice = -1
        for node, duration, lanes, extra in zip(self._node, self._seconds[task], self._lanes, behind or self._nothing, strict=True):
            choice += 1
            at = ready[node]
            soonest = at + duration
            if soonest + extra >= least:
                continue
            for lane, (starts, ends) in enumerate(lanes):
                start = starts[-1]
                if at >= start:
                    start = at
                elif len(starts) > 1:
                    i = bisect_left(ends, soonest)
                    while True:
                        start = starts[i]
                        if start < at:
                            start = at
                        if start + duration <= ends[i]:
                            break
                        i += 1
                finish = start + duration + extra
                if finish < least:
                    best, least, begin, number = choice, finish, start, lane
                    if start == at:
                        break
        if best < 0:
            self._check(task, int(np.argmin(self._seconds[task])))
            raise self._refuse(task, "no device can run it")
        self._found = task, best, begin, number
        return best

    def place(self, task: int, choice: int, not_before: float = 0.0) -> float:
        found = self._found
        if found is not None and found[0] == task and found[1] == choice and self.choice_of[task] < 0 and not_before <= found[2]:
            _, _, start, lane = found
        else:
            self._check(task, choice)
            at = max(not_before, self._ready(task)[self._node[choice]])
            start, lane = self._slot(choice, at, self._seconds[task][choice])
        self._found = None
        finish = start + self._seconds[task][choice]
        starts, ends = self._lanes[choice][lane]
        i = len(starts) - 1 if start >= starts[-1] else bisect_right(starts, start) - 1
        gap_start, gap_end = starts[i], ends[i]
        shortest = self._shortest[choice]
        before, after = start > gap_start and start - gap_start >= shortest, finish < gap_end and gap_end - finish >= shortest
        if before and after:
            ends[i] = start
            starts.insert(i + 1, finish)
            ends.insert(i + 1, gap_end)
        elif before:
            ends[i] = start
        elif after:
            starts[i] = finish
        else:
            del starts[i], ends[i]
        self.choice_of[task], self.start_of[task], self.finish_of[task], self._lane_of[task] = choice, start, finish, lane
        self.booked.append(task)
        return finish

    def finish(self) -> float:
        if len(self.booked) < len(self.problem):
            raise PlanError(f"the policy booked {len(self.booked)} of {len(self.problem)} tasks")
        return max(self.finish_of, default=0.0)

    def rows(self) -> list[list[Any]]:
        """[device, start, end, lane] of each task."""
        return [list(row) for row in zip(self.choice_of, self.start_of, self.finish_of, self._lane_of, strict=True)]

    def _options(self, task: int) -> Iterator[tuple[int, float, float]]:
        ready, seconds = self._ready(task), self._seconds[task]
        for choice, node in enumerate(self._node):
            duration = seconds[choice]
            if duration < math.inf:
                start, _ = self._slot(choice, ready[node], duration)
                yield choice, start, start + duration

    def _ready(self, task: int) -> list[float]:
        """When all that the task reads has arrived, for each memory node."""
        ready = self._zeros
        finish, choice_of, node = self.finish_of, self.choice_of, self._node
        for before, nbytes in self._preds[task]:
            done = finish[before]
            links = self._links[node[choice_of[before]]]
            ready = [at if at > (new := done + latency + nbytes * per_byte) else new for at, (latency, per_byte) in zip(ready, links, strict=True)]
        return ready

    def _slot(self, choice: int, at: float, duration: float) -> tuple[float, int]:
        """(start, lane) of the earliest place from `at` on."""
        best, number = math.inf, 0
        for lane, (starts, ends) in enumerate(self._lanes[choice]):
            start = starts[-1]
            if at >= start:
                return at, lane
            i = bisect_left(ends, at + duration)
            while True:
                start = max(starts[i], at)
                if start + duration <= ends[i]:
                    break
                i += 1
            if start < best:
                best, number = start, lane
        return best, number

    def _check(self, task: int, choice: int) -> None:
        if self.choice_of[task] >= 0:
            raise self._refuse(task, "it is booked already")
        if not 0 <= choice < len(self._node) or self._seconds[task][choice] == math.inf:
            raise self._refuse(task, f"choice {choice} is not possible")
        first = next((p for p, _ in self._preds[task] if self.choice_of[p] < 0), -1)
        if first >= 0:
            raise self._refuse(task, f"it needs {self.problem.name(first)!r}, which is not booked yet")
