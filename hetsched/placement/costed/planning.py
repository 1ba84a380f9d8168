"""Costed graphs: durations given per device, bytes on edges, nothing to execute; so that policies can be studied on any machine.

The format is `placement-bench/1`: JSON, gzipped or not. Links are contention-free and memory is unbounded.
"""

from __future__ import annotations

import gzip
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hetsched.errors import FileError
from hetsched.placement.bounds import SHARE, lower_bound
from hetsched.placement.costed.draft import CostedDraft
from hetsched.placement.costed.interchange import DOT_ENDINGS, FORMAT, document_of
from hetsched.placement.policies import find
from hetsched.placement.problem import Choice, FloatArray, IntArray, Pool, Problem
from hetsched.placement.search.improve import Found, improve
from hetsched.quiet import no_garbage_collection

# The part of the time for planning that is searched whatever the first plan and its bound took.
LEAST = 0.3

__all__ = ["FORMAT", "CostedDraft", "costed_problem", "plan_costed", "read_costed"]


def plan_costed(path: str | Path, policy: str = "auto", plan_seconds: float = 0.0) -> dict[str, Any]:
    """Plan the costed graph in the file `path`. plan_seconds: time to search for a better plan than that of the policy.

    Returns {"file", "policy", "makespan", "lower_bound", "plan_seconds", "evaluations", "compile_seconds", "devices": [name, ...], "names": [name,
    ...] (where the file names its tasks), "tasks": [[device, start, end, lane], ...]}, seconds throughout; a row per task of the file. evaluations:
    plans that the search tried. compile_seconds: what loading its machine code took, which the argument `plan_seconds` does not pay for.
    Raises `FileError` for a file that cannot be read or is no costed graph, `CommandLineError` for an unknown policy.
    """
    chosen = find(policy)
    with no_garbage_collection():
        problem = read_costed(path)
        started = time.perf_counter()
        draft = CostedDraft(problem)
        chosen(draft)
        found = Found(0, 0.0)
        if plan_seconds > 0:
            target = lower_bound(problem).seconds * (1 + 1e-9)
            left = plan_seconds - (time.perf_counter() - started)
            found = improve(draft, max(left - SHARE * plan_seconds, LEAST * plan_seconds), target=target)
        makespan = draft.finish()
        bound = lower_bound(problem, plan_seconds * SHARE, makespan)
        seconds = time.perf_counter() - started
    return {
        "file": str(path),
        "policy": policy,
        "makespan": makespan,
        "lower_bound": bound.seconds,
        "plan_seconds": seconds,
        "evaluations": found.evaluations,
        "compile_seconds": found.compile_seconds,
        "devices": list(problem.device_ids),
        **({"names": list(problem.names)} if len(problem.names) else {}),
        "tasks": draft.rows(),
    }


def read_costed(path: str | Path) -> Problem:
    """The problem in the file `path`: `placement-bench/1`, DOT, or WfFormat JSON of WfCommons (see `interchange`), gzipped or not."""
    where = Path(path)
    try:
        raw = where.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
        document = document_of(where.name, raw)
    except (OSError, EOFError) as error:
        raise FileError(f"{where}: cannot be read: {error}") from error
    except ValueError as error:
        what = "DOT" if where.name.endswith(DOT_ENDINGS) else "JSON (or gzipped JSON) of a costed graph"
        raise FileError(f"{where}: not {what}: {error}") from error
    try:
        return costed_problem(document)
    except ValueError as error:
        raise FileError(f"{where}: {error}") from error


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
    names = _names(document, len(durations))
    order = _topological(len(durations), start, task, names)
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
        names=names,
    )


def _names(document: Mapping[str, Any], n: int) -> list[str]:
    """Names of the tasks, for messages; a file need not have them."""
    if "names" not in document:
        return []
    names = _list(document, "names")
    if len(names) != n:
        raise ValueError(f"`names` has {len(names)} names for {n} tasks")
    return [str(name) for name in names]


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


def _topological(n: int, start: IntArray, task: IntArray, names: list[str]) -> IntArray:
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
        raise ValueError(f"`edges` have a cycle: {' -> '.join(names[t] if names else str(t) for t in [*circle[:10], circle[0]])}")
    return np.array(order, dtype=np.int64)
