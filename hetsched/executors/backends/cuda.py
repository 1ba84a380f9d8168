"""CUDA devices, through CuPy: `cuda:0`, `cuda:1`, ... as CUDA numbers them.

CuPy is imported when devices are looked for, and a machine without it, or without a driver, has none, with a note that says why. Speeds are
measured once (about half a second a device) and kept in the user's cache under a fingerprint of device, driver and CuPy.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from hetsched.errors import PlacementError, did_you_mean
from hetsched.executors.backends import Found, Place
from hetsched.executors.backends._common import is_on, kept_speeds, least_seconds, lone_seconds, row_seconds, streams
from hetsched.executors.forks import leaves_alone
from hetsched.folders import cache_folder, write_whole
from hetsched.machine import HOST, Device, Link, MemoryNode

_MARK = "4"  # of the way in which speeds are measured
_NEEDED = ("float32", "float64", "bytes", "launch", "replay", "up_latency", "up_bytes", "down_latency", "down_bytes")
_GRAPHS = "HETSCHED_CUDA_GRAPHS"
_PORTABLE = 1  # cudaHostAllocPortable: page-locked for every device
# Of what is free when devices are looked for: CuPy's pool, libraries and the contexts of others need some.
_SHARE = 0.9
# What speeds are measured with at least: rows of a matrix, bytes of copies within the device. Bytes of copies to and from the host. Seconds that a
# row of matrix products may take, about. Launches of a graph that are timed.
_LEAST_N, _LEAST_NBYTES = 1024, 32 << 20
_LINK_NBYTES = 32 << 20
_PRODUCT_SECONDS = 0.03
_GRAPH_LAUNCHES = 64

_FORKED = (
    "no CUDA in this process: it was forked from one that had used CUDA, which does not survive that; "
    "start it anew (multiprocessing.get_context('spawn')), or fork before"
)
_lock = threading.Lock()
_listed: tuple[int, Found] | None = None
_asked = False  # CUDA has been begun with: forked processes cannot use it


def find() -> Found:
    """Every CUDA device, with its memory node and its links; nothing, with a note, where there is no CuPy, no driver or no device."""
    global _listed
    known = _listed
    if known is not None and known[0] != os.getpid():  # not by the lock: a thread of the parent may have had it
        return Found(notes=(_FORKED,)) if _asked else known[1]
    with _lock:
        if _listed is None:
            _listed = (os.getpid(), _look())
        return _listed[1]


def open(device: Device, arena_nbytes: int) -> Any:
    """Open a found device with an arena of `arena_nbytes`; a `LiveDevice`. Raises `OutOfMemoryError`, and `PlacementError` for a device not here."""
    found = find()
    known = {d.id: i for i, d in enumerate(found.devices)}
    if device.id not in known:
        raise PlacementError("; ".join([f"there is no CUDA device {device.id!r} here{did_you_mean(device.id, known)}", *found.notes]))
    return _open(device.id, int(device.id.partition(":")[2]), arena_nbytes)


def pinned_bytes(nbytes: int) -> Any:
    """Page-locked bytes of the host, uninitialised, as a NumPy array that keeps them; None where there is no device, or it cannot have them."""
    if find_spec("cupy") is None:
        return None
    try:
        import cupy

        if not cupy.cuda.runtime.getDeviceCount():
            return None
        memory = cupy.cuda.PinnedMemoryPointer(cupy.cuda.PinnedMemory(nbytes, _PORTABLE), 0)
        return np.frombuffer(memory, np.uint8, nbytes)
    except Exception:  # no driver, a part of CuPy that does not load, no memory
        return None


def _open(name: str, number: int, nbytes: int) -> Any:
    from hetsched.executors.backends._cuda_live import LiveDevice

    return LiveDevice(name, number, nbytes)


def _look() -> Found:
    global _asked
    if find_spec("cupy") is None:
        return Found(notes=("no CUDA: CuPy is not installed; pip install 'hetsched[cuda12]' (CUDA 12) or 'hetsched[cuda13]' brings it",))
    try:
        import cupy

        count = cupy.cuda.runtime.getDeviceCount()
        _asked = count > 0
        leaves_alone("cupy", "hetsched.executors.backends._cuda")
    except Exception as error:  # ImportError, or CUDARuntimeError where there is no driver
        return Found(notes=(f"no CUDA: {type(error).__name__}: {' '.join(str(error).split())}",))
    devices, links, memories, notes = [], [], [], streams("cuda")[1]
    places: dict[str, Place] = {}
    speeds: dict[int, dict[str, float]] = {}
    for i in range(count):
        try:
            properties = cupy.cuda.runtime.getDeviceProperties(i)
            with cupy.cuda.Device(i):
                free, _ = cupy.cuda.runtime.memGetInfo()
            speeds[i] = _speeds(i, properties)
        except Exception as error:
            notes.append(f"CUDA device {i} cannot be used: {type(error).__name__}: {' '.join(str(error).split())}")
            continue
        devices.append(described(i, properties, speeds[i]))
        memories.append(MemoryNode(f"cuda:{i}", int(free * _SHARE)))
        links += links_of(i, speeds[i])
        places[f"cuda:{i}"] = Place(_address(properties), devices[-1].name, "CUDA")
    for a in speeds:
        links += [between(a, speeds[a], b, speeds[b], _peers(cupy, a, b)) for b in speeds if a != b]
    return Found(tuple(devices), tuple(memories), tuple(links), (), tuple(notes), places)


def _peers(xp: Any, a: int, b: int) -> bool:
    """True if device `b` can read the memory of `a` without the host; the path is opened."""
    try:
        if not xp.cuda.runtime.deviceCanAccessPeer(b, a):
            return False
        with xp.cuda.Device(b):
            xp.cuda.runtime.deviceEnablePeerAccess(a)
    except Exception as error:
        return getattr(error, "status", None) == 704  # it is open already
    return True


def _address(properties: Any) -> str | None:
    """Where a device sits on the PCI bus: domain, bus, device."""
    numbers = [properties.get(key) for key in ("pciDomainID", "pciBusID", "pciDeviceID")]
    return None if None in numbers else "{:04x}:{:02x}:{:02x}".format(*numbers)


def described(i: int, properties: Any, speeds: dict[str, float]) -> Device:
    """Device number `i` as the machine knows it."""
    name = properties["name"]
    return Device(
        id=f"cuda:{i}",
        kind="cuda",
        lanes=streams("cuda")[0],
        memory=f"cuda:{i}",
        name=name.decode() if isinstance(name, bytes) else str(name),
        hardware="gpu",
        languages=("cuda", "array"),
        flops_per_second={"float32": speeds["float32"], "float64": speeds["float64"]},
        bytes_per_second=speeds["bytes"],
        launch_seconds=speeds["launch"],
        replay_seconds=speeds.get("replay") if is_on(_GRAPHS) else None,
        unified=bool(properties.get("integrated", 0)),
        fingerprint=_fingerprint(properties),
    )


def _fingerprint(properties: Any) -> str:
    """What measured costs are kept under: the device and what runs it, not its number, so that equal devices share what is learned."""
    import cupy

    runtime = cupy.cuda.runtime
    about = [properties.get(key) for key in ("name", "major", "minor", "totalGlobalMem", "multiProcessorCount", "clockRate")]
    mark = f"{about}|{runtime.driverGetVersion()}|{runtime.runtimeGetVersion()}|{cupy.__version__}"
    return hashlib.sha256(mark.encode()).hexdigest()[:16]


def links_of(i: int, speeds: dict[str, float]) -> list[Link]:
    """The links of a device to and from the host, each with a copy engine of its own."""
    node = f"cuda:{i}"
    return [Link(HOST, node, speeds["up_latency"], speeds["up_bytes"]), Link(node, HOST, speeds["down_latency"], speeds["down_bytes"])]


def between(i: int, a: dict[str, float], j: int, b: dict[str, float], peers: bool) -> Link:
    """From one device to another: by the peer path as fast as the slower of their links to the host at least, else through the host."""
    latency = a["down_latency"] + b["up_latency"]
    if peers:
        return Link(f"cuda:{i}", f"cuda:{j}", latency / 2, min(a["down_bytes"], b["up_bytes"]))
    return Link(f"cuda:{i}", f"cuda:{j}", latency, 1 / (1 / a["down_bytes"] + 1 / b["up_bytes"]))


# Speeds -----------------------------------------------------------------------------------------------------------------------


def _cache(i: int, properties: Any) -> Path:
    import cupy

    runtime = cupy.cuda.runtime
    mark = f"{properties['name']}|{i}|{runtime.driverGetVersion()}|{runtime.runtimeGetVersion()}|{cupy.__version__}|{_MARK}"
    return cache_folder() / f"cuda-{hashlib.sha256(mark.encode()).hexdigest()[:16]}.json"


def _speeds(i: int, properties: Any) -> dict[str, float]:
    path = _cache(i, properties)
    speeds = kept_speeds(path, _NEEDED)
    if speeds is None:
        speeds = measure(i)
        write_whole(path, json.dumps(speeds).encode())
    return speeds


def measure(i: int, n: int = 4096, nbytes: int = 256 << 20) -> dict[str, float]:
    """flops per second by dtype (matrix product), `bytes` per second of its memory, seconds of a `launch`, and of

    one in a graph (`replay`); latency and bytes per second of copies.

    n: extent of the matrices; nbytes: of copies within the device's memory; less of both where it has no room for them, or would take long. By the
    device's own clock, several in a row; launches and small copies as fast as they are handed over. Copies up and down include what staging costs.
    """
    import cupy

    with cupy.cuda.Device(i):
        free, _ = cupy.cuda.runtime.memGetInfo()
    while (n > _LEAST_N or nbytes > _LEAST_NBYTES) and max(3 * 8 * n * n, 2 * nbytes) > free // 4:
        n, nbytes = max(n // 2, _LEAST_N), max(nbytes // 2, _LEAST_NBYTES)
    live = _open(f"cuda:{i}", i, max(3 * 8 * n * n, 2 * nbytes) + 4096)
    try:
        stream = live.stream("compute")
        out: dict[str, float] = {}
        for dtype in (np.float32, np.float64):
            out[np.dtype(dtype).name] = _flops(live, stream, n, dtype)
        src, dst = live.array(0, (nbytes,), np.uint8), live.array(nbytes, (nbytes,), np.uint8)
        out["bytes"] = 2 * nbytes / row_seconds(partial(stream.copy, src, dst), stream, 5)
        m = min(nbytes, _LINK_NBYTES)
        large, small, few, many = live.array(0, (m,), np.uint8), live.array(0, (16,), np.float32), np.ones(16, np.float32), np.ones(m, np.uint8)
        for name, short, long in (
            ("up", partial(stream.upload, few, small), partial(stream.upload, many, large)),
            ("down", partial(stream.download, small, few), partial(stream.download, large, many)),
        ):
            out[f"{name}_latency"] = lone_seconds(short, stream, 20)
            out[f"{name}_bytes"] = m / max(least_seconds(long, stream, 3) - out[f"{name}_latency"], 1e-9)
        out["launch"] = row_seconds(partial(stream.launch, _negative, [small], [small], None, {}), stream, 200)
        out["replay"] = _replay(stream, small, out["launch"])
        return out
    finally:
        live.close()
        cupy.get_default_memory_pool().free_all_blocks()


def _replay(stream: Any, small: Any, launch: float) -> float:
    """Seconds of a launch in a graph of several, one behind another; `launch` where they cannot be captured."""
    graph = stream.as_graph([(_negative, (small,), (small,), None, {}, -1)] * _GRAPH_LAUNCHES)
    return launch if graph is None else min(row_seconds(graph, stream, 10) / _GRAPH_LAUNCHES, launch)


def _flops(live: Any, stream: Any, most: int, dtype: Any) -> float:
    """flops per second of a product of the largest matrices up to `most` that takes little time: small ones do not fill a device."""
    n = min(most, _LEAST_N)
    while True:
        a, b, c = (live.array(k * 8 * n * n, (n, n), dtype) for k in range(3))
        for x in (a, b):
            stream.launch(_ones, [], [x], None, {})
        product = partial(stream.launch, _product, [a, b], [c], None, {})
        once = row_seconds(product, stream, 1, 1)
        if 2 * n > most or 8 * once > _PRODUCT_SECONDS:
            return 2 * n**3 / row_seconds(product, stream, max(1, min(10, int(_PRODUCT_SECONDS / once))))
        n *= 2


def _ones(xp: Any, inputs: Any, outputs: Any, workspace: Any, attributes: Any) -> None:
    outputs[0].fill(1)


def _product(xp: Any, inputs: Any, outputs: Any, workspace: Any, attributes: Any) -> None:
    xp.matmul(inputs[0], inputs[1], out=outputs[0])


def _negative(xp: Any, inputs: Any, outputs: Any, workspace: Any, attributes: Any) -> None:
    xp.negative(inputs[0], out=outputs[0])
