"""The CPU: its cores as lanes, NumPy as its language.

Speeds are measured once (about a tenth of a second) and kept in the user's cache under a fingerprint of processor, cores and library versions.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import queue
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from hetsched.executors.backends import Found
from hetsched.executors.backends._common import kept_speeds
from hetsched.executors.cores import cores
from hetsched.executors.memory import HostMemory
from hetsched.executors.process import tuned
from hetsched.folders import cache_folder, write_whole
from hetsched.graph.ops import find as find_op
from hetsched.graph.spec import Spec
from hetsched.machine import HOST, Device, MemoryNode, Resource

IO_LANES = 4
# Where Linux tells of the caches of each core.
CACHES = Path("/sys/devices/system/cpu")
_NEEDED = ("float32", "float64", "bytes", "launch", "crossing")


class HostDevice:
    """The processor opened as devices with streams are, for who measures it: an arena, and streams that do at once what they are handed."""

    def __init__(self, nbytes: int) -> None:
        self.memory = HostMemory.of(nbytes)

    def array(self, offset: int, shape: tuple[int, ...], dtype: Any) -> Any:
        """The array of `shape` and `dtype` that begins `offset` bytes into the arena."""
        return self.memory.array(offset, Spec(shape, dtype))

    def stream(self, kind: str) -> HostStream:
        """A stream; `kind` says nothing here."""
        return HostStream()

    def close(self) -> None:
        """Give the arena back."""
        self.memory = HostMemory.of(0)


class HostStream:
    """The calling thread as a stream."""

    def launch(self, kernel: Any, inputs: Any, outputs: Any, workspace: Any, attributes: Any) -> Any:
        """Run the kernel here and now."""
        return kernel(np, inputs, outputs, workspace, attributes)

    def upload(self, src: Any, dst: Any) -> None:
        """Copy."""
        np.copyto(dst, src)

    download = copy = upload

    def wait(self, event: Any) -> None:
        """Nothing is left to wait for."""

    def record(self) -> Reached:
        """An event that has been reached."""
        return REACHED


class Reached:
    """An event behind what was done at once."""

    def wait(self) -> None:
        """Nothing is left to wait for."""


REACHED = Reached()


def open(device: Device, nbytes: int) -> HostDevice:
    """The processor with an arena of `nbytes`."""
    return HostDevice(nbytes)


def fingerprint() -> str:
    """What measured costs are kept under: processor, its highest clock, cores, versions of what computes."""
    return hashlib.sha256(f"{_mark()}|{_clock()}".encode()).hexdigest()[:16]


def _clock() -> str:
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq").read_text().strip()
    except OSError:
        return ""


def find() -> Found:
    """The processor as one device, `cpu`, with a lane per core."""
    import psutil

    n = cores()
    speeds = _speeds()
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    nbytes, caches = last_caches(CACHES, allowed)
    device = Device(
        id="cpu",
        kind="cpu",
        lanes=n,
        io_lanes=IO_LANES,
        memory=HOST,
        name=_name(),
        hardware="cpu",
        languages=("host", "array"),
        flops_per_second={"float32": speeds["float32"], "float64": speeds["float64"]},
        bytes_per_second=speeds["bytes"],
        launch_seconds=speeds["launch"],
        crossing_seconds=speeds["crossing"],
        shares_lanes=True,
        widths=(1, n) if n > 1 else (1,),
        uses={"cores": 1.0},
        cache_nbytes=nbytes,
        caches=min(caches, n),
        lane_cache_nbytes=own_cache(CACHES, allowed),
        fingerprint=fingerprint(),
    )
    memory = MemoryNode(HOST, int(psutil.virtual_memory().available))
    return Found((device,), (memory,), (), (Resource("cores", float(n)),))


def _name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def last_caches(folder: Path, allowed: Iterable[int]) -> tuple[int | None, int]:
    """(bytes of a cache of the highest level, how many of them the cores numbered `allowed` have), as Linux tells in `folder`; of unequal ones the

    least counts. (None, 1) where it does not tell.
    """
    left, sizes = set(allowed), []
    while left:
        core = min(left)
        levels = _caches(folder / f"cpu{core}" / "cache")
        if not levels:
            return None, 1
        nbytes, sharing = levels[max(levels)]
        sizes.append(nbytes)
        left -= {core, *sharing}
    return (min(sizes), len(sizes)) if sizes else (None, 1)


def own_cache(folder: Path, allowed: Iterable[int]) -> int | None:
    """Bytes that a core of `allowed` has of the cache below the last one, which cores of one cluster or threads of one core share in equal parts; of

    unequal ones the least. None where Linux does not tell, and for caches of the first level: what they do not hold is a step away.
    """
    allowed, sizes = set(allowed), []
    for core in allowed:
        levels = _caches(folder / f"cpu{core}" / "cache")
        below = sorted(levels)[-2:-1]
        if not below or below[0] < 2:
            return None
        nbytes, sharing = levels[below[0]]
        sizes.append(nbytes // len({core} | (sharing & allowed)))
    return min(sizes, default=None)


def _caches(folder: Path) -> dict[int, tuple[int, set[int]]]:
    """Level -> (bytes, the cores that share it) of the caches of a core that hold data; none where it is not told."""
    levels: dict[int, tuple[int, set[int]]] = {}
    try:
        for at in folder.glob("index*"):
            if at.joinpath("type").read_text().strip() != "Instruction":
                text = at.joinpath("size").read_text().strip()  # 32768K
                nbytes = int(text.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(text[-1:], 0)
                levels[int(at.joinpath("level").read_text())] = nbytes, _numbers(at.joinpath("shared_cpu_list").read_text())
    except (OSError, ValueError):
        return {}
    return levels


def _numbers(text: str) -> set[int]:
    """The numbers of a list as the kernel writes it: `0-7,64-71`."""
    out: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        out.update(range(int(first), int(last or first) + 1))
    return out


def _cache() -> Path:
    return cache_folder() / f"cpu-{hashlib.sha256(_mark().encode()).hexdigest()[:16]}.json"


def _mark() -> str:
    return f"{_name()}|{cores()}|{np.__version__}|{platform.python_version()}|3"


def _speeds() -> dict[str, float]:
    path = _cache()
    speeds = kept_speeds(path, _NEEDED)
    if speeds is None:
        speeds = measure()
        write_whole(path, json.dumps(speeds).encode())
    return speeds


def measure() -> dict[str, float]:
    """flops per second of one lane by dtype (matmul of 384), bytes per second of one lane (copy of 32 MiB), launch (a call
    of the array library on small arrays) and crossing seconds."""
    out: dict[str, float] = {}
    with tuned():
        for dtype in (np.float32, np.float64):
            a = np.ones((384, 384), dtype)
            y = np.empty_like(a)
            out[np.dtype(dtype).name] = 2 * 384**3 / _best(lambda a=a, y=y: np.matmul(a, a, out=y), 6)  # type: ignore[misc]
        src = np.ones(1 << 23, np.float32)
        dst = np.empty_like(src)
        out["bytes"] = 2 * src.nbytes / _best(lambda: np.copyto(dst, src), 3)
        out["launch"] = _launch(src)
        out["crossing"] = crossing_seconds()
    return out


def _launch(bulk: Any, rounds: int = 15) -> float:
    """Seconds of one call of the array library as a step of many ops pays it: kernels in turn, their code and data not in the nearest cache."""
    small, into = np.ones(8, np.float32), np.empty(8, np.float32)
    kernels = [find_op(f"tensor.{name}").kernels["array"] for name in ("add", "sub", "mul", "div", "maximum", "exp", "neg", "sqrt")]
    unary = {"exp", "neg", "sqrt"}
    calls = [
        (k, [small] if n in unary else [small, small]) for k, n in zip(kernels, ("add", "sub", "mul", "div", "maximum", *sorted(unary)), strict=True)
    ]
    away = np.empty_like(bulk[: 1 << 19])
    seconds = []
    for _ in range(rounds):
        np.copyto(away, bulk[: 1 << 19])
        start = perf_counter()
        for kernel, inputs in calls:
            kernel(np, inputs, [into], None, {})
        seconds.append((perf_counter() - start) / len(calls))
    return sorted(seconds)[rounds // 2]


def _best(action: Callable[[], object], times: int) -> float:
    action()
    best = float("inf")
    for _ in range(times):
        start = perf_counter()
        action()
        best = min(best, perf_counter() - start)
    return max(best, 1e-9)


def crossing_seconds(rounds: int = 200) -> float:
    """Seconds to hand a step to a thread that waits: half of a round trip over two queues."""
    there: queue.SimpleQueue[int] = queue.SimpleQueue()
    back: queue.SimpleQueue[int] = queue.SimpleQueue()

    def answer() -> None:
        for _ in range(rounds):
            back.put(there.get())

    thread = threading.Thread(target=answer, name="hetsched-crossing", daemon=True)
    thread.start()
    seconds = []
    for i in range(rounds):
        start = perf_counter()
        there.put(i)
        back.get()
        seconds.append((perf_counter() - start) / 2)
    thread.join()
    return median(seconds)
