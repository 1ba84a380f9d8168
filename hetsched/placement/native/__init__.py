"""`native/*.c` as machine code: built by the C compiler of this machine when it first pays (about 0.8 s), then kept in the user's cache folder.

Without a compiler `library` is None, and what is told to be the same in Python does the work. Nothing is built when hetsched is installed, so that
packages are the same for all machines.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hetsched.folders import cache_folder
from hetsched.placement.search.walk import Facts, State

if TYPE_CHECKING:
    from hetsched.placement.facts import GraphFacts

HERE = Path(__file__).parent
SOURCES = (HERE / "costed.c", HERE / "draft.c", HERE / "layout.c")
# No contraction of a * b + c into one rounding: plans must be those of Python to the last bit.
FLAGS = ("-O2", "-std=c99", "-shared", "-fPIC", "-ffp-contract=off")
COMPILERS = ("cc", "gcc", "clang")
# Tasks from which machine code plans: where it is there already, and where it must be built first.
BUILT_FROM, BUILD_FROM = 64, 20_000
# The same for graphs, whose plans take longer: from here the build pays at the first plan.
BUILD_GRAPHS_FROM = 10_000
_MOST_SECONDS = 60.0


class Library(NamedTuple):
    """The functions of `native/costed.c`; `build_seconds`: what the compiler took, 0 where they were there."""

    code: ctypes.CDLL
    build_seconds: float


@cache
def library() -> Library | None:
    """The functions of `native/costed.c`, built if need be; None where that cannot be done."""
    started = time.perf_counter()
    where = _file()
    built = False
    try:
        if not _is_ours(where):
            where = _build(where)
            built = True
        code = ctypes.CDLL(str(where))
    except (OSError, subprocess.SubprocessError):
        return None
    code.hs_evaluate.restype = ctypes.c_double
    code.hs_book.restype = ctypes.c_int64
    for name in ("hs_draft", "hs_layout_pack", "hs_layout_reuse", "hs_layout_edges", "hs_layout_loose", "hs_layout_frees"):
        getattr(code, name).restype = ctypes.c_int64
    code.hs_layout_open.restype = ctypes.c_void_p
    return Library(code, time.perf_counter() - started if built else 0.0)


def for_size(tasks: int, build_from: int = BUILD_FROM) -> ctypes.CDLL | None:
    """The functions, where they pay for a graph of so many tasks planned once; else None."""
    if tasks < (BUILT_FROM if is_built() else build_from):
        return None
    found = library()
    return found.code if found is not None else None


def is_built() -> bool:
    """True if `library` has nothing to build."""
    where = _file()
    if where not in _seen and _is_ours(where):
        _seen.add(where)
    return where in _seen


# Files that were there: to look once is enough.
_seen: set[Path] = set()


@cache
def _file() -> Path:
    texts = [file.read_text() for file in (*SOURCES, HERE / "gaps.h")]
    key = hashlib.sha256("\n".join((*texts, *FLAGS, platform.machine(), platform.system())).encode()).hexdigest()
    return cache_folder() / "native" / f"{key[:20]}.so"


def _is_ours(where: Path) -> bool:
    """True if the file is there and nobody else wrote it."""
    try:
        return not hasattr(os, "getuid") or where.stat().st_uid == os.getuid()
    except OSError:
        return False


def _build(where: Path) -> Path:
    """Compile; the file appears whole or not at all. In a folder of its own where the cache cannot be written."""
    compiler = os.environ.get("CC") or next((c for c in COMPILERS if shutil.which(c)), None)
    if compiler is None:
        raise OSError("no C compiler")
    try:
        where.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(dir=where.parent)
    except OSError:
        folder = tempfile.mkdtemp()
        where = Path(folder) / where.name
    made = Path(folder) / "made.so"
    subprocess.run([*compiler.split(), *FLAGS, "-o", str(made), *map(str, SOURCES), "-lm"], check=True, capture_output=True, timeout=_MOST_SECONDS)
    os.replace(made, where)
    if where.parent != Path(folder):
        os.rmdir(folder)
    return where


class Walk:
    """The functions of `search.walk` for one problem, whose arrays stay where they are."""

    def __init__(self, code: ctypes.CDLL, facts: Facts, state: State) -> None:
        self._code = code
        self._kept = facts, state
        self._facts, self._state = _facts(facts), (ctypes.c_void_p * len(state))(*(x.ctypes.data for x in state))
        self._done = ctypes.c_int64()

    def evaluate(self, facts: Facts, state: State, first: int, settled: int, limit: float) -> tuple[float, int]:
        found = self._code.hs_evaluate(
            self._facts, self._state, ctypes.c_int64(first), ctypes.c_int64(settled), ctypes.c_double(limit), ctypes.byref(self._done)
        )
        return found, self._done.value

    def look_back(self, facts: Facts, state: State) -> None:
        self._code.hs_look_back(self._facts, self._state)

    def trace(self, state: State) -> None:
        self._code.hs_trace(self._facts, self._state)

    def walk(self, facts: Facts, state: State, steps: int, done: int, length: int, hot: float) -> None:
        whole = (ctypes.c_int64(x) for x in (steps, done, length))
        self._code.hs_walk(self._facts, self._state, *whole, ctypes.c_double(hot))


def book(code: ctypes.CDLL, facts: Facts, shortest: Any, order: Any, behind: Any, wanted: Any, limit: float) -> tuple[Any, Any, Any, Any, int] | None:
    """(choice, start, finish, lane of each task, how many were booked), by insertion, as `Draft.place_all` does it.

    order: int64[n]. behind: float64[n, C] or None. wanted: int64[n] or None. Fewer are booked where no device can run the next. None where, by the
    tails of `facts`, the plan is certain to end after `limit`.
    """
    n = len(order)
    choice, lane = np.full(n, -1, dtype=np.int64), np.zeros(n, dtype=np.int64)
    start, finish = np.zeros(n), np.full(n, np.inf)
    given = [np.ascontiguousarray(shortest), np.ascontiguousarray(order, dtype=np.int64), _or_none(behind, np.float64), _or_none(wanted, np.int64)]
    pointers = [*map(_pointer, given), ctypes.c_double(limit), *map(_pointer, (choice, start, finish, lane))]
    booked = code.hs_book(_facts(facts), *pointers)
    if booked == -1:
        raise MemoryError("no memory for the gaps of the lanes")
    if booked < 0:
        return None
    return choice, start, finish, lane, booked


COPIED = np.dtype([("value", "i8"), ("src", "i8"), ("dst", "i8"), ("start", "f8"), ("finish", "f8"), ("engine", "i8"), ("turn", "i8")])


class Drafted(NamedTuple):
    """What was booked of each task, int64[n] and float64[n], and the copies, `COPIED`[...], in the order of booking."""

    choice: Any
    lane: Any
    start: Any
    finish: Any
    copies: Any


def draft(code: ctypes.CDLL, facts: GraphFacts, order: Any, behind: Any, wanted: Any, tails: Any, limit: float) -> Drafted | None:
    """The tasks of `order` booked as `GraphDraft.place_all` does it, and the outputs brought to the host; empty where the list cannot be booked.

    order: int64[n]. behind: float64[n, C] or None. wanted: int64[n] or None. None where, by `tails` (float64[n] or None), the plan is certain to
    end after `limit`.
    """
    n, values, _, nodes = facts.counts[:4]
    choice, lane = np.full(n, -1, dtype=np.int64), np.zeros(n, dtype=np.int64)
    start, finish = np.zeros(n), np.zeros(n)
    copies, count = np.empty(max(values * (nodes - 1), 1), COPIED), ctypes.c_int64()
    whole = len(facts.counts)
    struct = (ctypes.c_int64 * (whole + len(facts) - 1))(*facts.counts, *(x.ctypes.data for x in facts[1:]))
    given = [np.ascontiguousarray(order, dtype=np.int64), _or_none(behind, np.float64), _or_none(wanted, np.int64), _or_none(tails, np.float64)]
    made = [*map(_pointer, (choice, start, finish, lane, copies)), ctypes.byref(count)]
    booked = code.hs_draft(struct, *map(_pointer, given), ctypes.c_double(limit), *made)
    if booked == -1:
        raise MemoryError("no memory for a plan")
    if booked == -2:
        return None
    if booked < n:
        return Drafted(*(x[:0] for x in (choice, lane, start, finish, copies)))
    return Drafted(choice, lane, start, finish, copies[: count.value].copy())


_BLOCK_WHOLE = ("node", "nbytes", "first", "last", "offset", "kept", "user", "last_user", "member", "last_member", "users")
BLOCK = np.dtype([*((name, "i8") for name in _BLOCK_WHOLE), ("start", "f8"), ("finish", "f8")])
EDGE = np.dtype([("before", "i8"), ("later", "i8")])


class LayoutPlan(NamedTuple):
    """A plan in arrays, in the order of time: the struct `Plan` of layout.c, where each is told. counts: its whole numbers."""

    counts: tuple[int, ...]
    end: float
    kind: Any
    what: Any
    src: Any
    dst: Any
    start: Any
    finish: Any
    low: Any
    high: Any
    input_start: Any
    inputs: Any
    output_start: Any
    value_task: Any
    nbytes: Any
    lies: Any
    result: Any
    alike: Any
    view: Any
    view_offset: Any
    workspace: Any
    pair_start: Any
    pairs: Any


class Layout:
    """The blocks of a plan, held by machine code until the end of a `with` statement. Steps and results are those of `memory.lay_out`."""

    def __init__(self, code: ctypes.CDLL, plan: LayoutPlan) -> None:
        self._code = code
        real = {"start", "finish"}
        names = LayoutPlan._fields[2:]
        self._arrays = [np.ascontiguousarray(x, dtype=np.float64 if n in real else np.int64) for n, x in zip(names, plan[2:], strict=True)]
        end = int(np.array(plan.end).view(np.int64))
        numbers = [*plan.counts, end, *(x.ctypes.data for x in self._arrays)]
        self._plan = (ctypes.c_int64 * len(numbers))(*numbers)
        self._tasks, self._replicas = plan.counts[1], plan.counts[2] * plan.counts[3]
        self._values = plan.counts[2]
        found = code.hs_layout_open(self._plan)
        if not found:
            raise MemoryError("no memory to lay a plan out")
        self._at: Any = ctypes.c_void_p(found)

    def __enter__(self) -> Layout:
        return self

    def __exit__(self, *failure: object) -> None:
        self._code.hs_layout_close(self._at)
        self._at = None

    def _counts(self) -> list[int]:
        """Blocks, edges, frees."""
        out = [ctypes.c_int64() for _ in range(3)]
        self._code.hs_layout_counts(self._at, *map(ctypes.byref, out))
        return [x.value for x in out]

    def blocks(self) -> Any:
        """`BLOCK`[...]: in the order in which they are first written."""
        return self._read()[0]

    def offsets(self) -> Any:
        """int64[blocks]."""
        return self.blocks()["offset"].copy()

    def place(self, offsets: Any) -> None:
        """Set the offset of every block."""
        self._code.hs_layout_place(self._at, _pointer(np.ascontiguousarray(offsets, dtype=np.int64)))

    def places(self) -> tuple[Any, Any, Any]:
        """Block and bytes from its start of each replica, block of each task's scratch: int64[values * nodes] twice, int64[tasks]; -1: none."""
        return self._read()[2:]

    def _read(self) -> tuple[Any, ...]:
        blocks, edges, _ = self._counts()
        whole = [np.empty(n, dtype=np.int64) for n in (self._replicas, self._replicas, self._tasks)]
        out = (np.empty(blocks, BLOCK), np.empty(edges, EDGE), *whole)
        self._code.hs_layout_read(self._at, *map(_pointer, out))
        return out

    def pack(self, node: int, rest: float) -> int:
        """Place the blocks of a node in the order of time. Returns the bytes of its arena."""
        found: int = self._code.hs_layout_pack(self._at, ctypes.c_int64(node), ctypes.c_double(rest))
        if found < 0:
            raise MemoryError("no memory to lay a plan out")
        return found

    def edges(self) -> Any:
        """`EDGE`[...]: reuse edges that do not hold anyway, ascending; None where two blocks share bytes at the same time."""
        if not self._code.hs_layout_reuse(self._at):
            return None
        self._code.hs_layout_edges(self._at)
        return self._read()[1]

    def loose(self) -> tuple[Any, Any, Any]:
        """Values on the host that have no place in an arena, and from when to when they are there."""
        out = np.empty(self._values, dtype=np.int64), np.empty(self._values), np.empty(self._values)
        count = self._code.hs_layout_loose(self._at, *map(_pointer, out))
        return out[0][:count], out[1][:count], out[2][:count]

    def frees(self) -> tuple[Any, Any]:
        """Replicas whose bytes are free again, and when."""
        most = self._counts()[2]
        out = np.empty(most, dtype=np.int64), np.empty(most)
        count = self._code.hs_layout_frees(self._at, *map(_pointer, out))
        return out[0][:count], out[1][:count]


def _or_none(x: Any, dtype: Any) -> Any:
    return None if x is None else np.ascontiguousarray(x, dtype=dtype)


def _pointer(x: Any) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.ctypes.data)


def upward(code: ctypes.CDLL, order: Any, starts: Any, preds: Any, weights: Any, copies: Any) -> Any:
    """float64[n], as `ranks.upward_ranks`."""
    rank = np.zeros(len(weights))
    arrays = [*(np.ascontiguousarray(x) for x in (order, starts, preds, weights, copies)), rank]
    code.hs_upward(ctypes.c_int64(len(rank)), *(ctypes.c_void_p(x.ctypes.data) for x in arrays))
    return rank


def paths(code: ctypes.CDLL, order: Any, starts: Any, preds: Any, weights: Any) -> tuple[Any, Any]:
    """float64[n] twice: longest paths to and from each task, its own weight not counted."""
    n = len(weights)
    out = np.zeros(n), np.zeros(n)
    arrays = [*(np.ascontiguousarray(x) for x in (order, starts, preds, weights)), *out]
    code.hs_paths(ctypes.c_int64(n), *(ctypes.c_void_p(x.ctypes.data) for x in arrays))
    return out


def earliest(code: ctypes.CDLL, order: Any, starts: Any, preds: Any, *real: Any) -> Any:
    """float64[n, M], as `bounds.paths.earliest_finishes`. real: float64: bytes of each edge, latency, per_byte [M, M], start_at, fastest [n, M]."""
    arrays = [*(np.ascontiguousarray(x) for x in (order, starts, preds)), *(np.ascontiguousarray(x, dtype=np.float64) for x in real)]
    finish = np.empty(arrays[-1].shape)
    code.hs_earliest(*map(ctypes.c_int64, finish.shape), *map(_pointer, (*arrays, finish)))
    return finish


def as_ready(code: ctypes.CDLL, succ_starts: Any, succs: Any, waiting: Any, rank: Any) -> Any:
    """int64[n], as `ranks.as_ready`. waiting: int64[n], predecessors of each task; it is used up."""
    heap, order = np.empty(len(rank), dtype=np.int64), np.empty(len(rank), dtype=np.int64)
    arrays = [*(np.ascontiguousarray(x) for x in (succ_starts, succs, waiting, rank)), heap, order]
    code.hs_ready(ctypes.c_int64(len(rank)), *(ctypes.c_void_p(x.ctypes.data) for x in arrays))
    return order


def optimistic(code: ctypes.CDLL, facts: Facts, order: Any, copies: Any) -> Any:
    """float64[n, C], as `peft.optimistic_costs`. copies: float64[edges], in the order of `facts.preds`."""
    table, through = np.zeros(facts.seconds.shape), np.empty(len(facts.latency))
    arrays = [np.ascontiguousarray(order), np.ascontiguousarray(copies), table, through]
    code.hs_optimistic(_facts(facts), *(ctypes.c_void_p(x.ctypes.data) for x in arrays))
    return table


def _facts(facts: Facts) -> Any:
    """The struct `Facts` of native/costed.c: four numbers, then pointers."""
    n, devices = facts.seconds.shape
    numbers = [n, devices, len(facts.latency), int(facts.lanes[-1])]
    return (ctypes.c_int64 * (len(numbers) + len(facts)))(*numbers, *(x.ctypes.data if len(x) else 0 for x in facts))
