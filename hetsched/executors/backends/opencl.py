"""OpenCL devices, through PyOpenCL: `opencl:0`, `opencl:1`, ... in the order of platform name, platform version and device name.

`HETSCHED_OPENCL_PARTS` splits devices into sub-devices of equal parts, which are devices of their own and counted as such.

Speeds are measured once (a device takes about 0.15 s, and the driver's compiler about a second) and kept in the user's cache under a fingerprint of
device, driver and platform. A device whose compiler does not work is left out, with a note. Devices live in contexts of their own, which are kept
for the life of the process, as their programs are.
"""

from __future__ import annotations

import atexit
import gc
import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hetsched.errors import PlacementError, did_you_mean
from hetsched.executors.backends import Found, Place
from hetsched.executors.backends._common import kept_speeds, least_seconds, row_seconds, streams
from hetsched.executors.cores import cores
from hetsched.executors.forks import leaves_alone
from hetsched.folders import cache_folder, write_whole
from hetsched.machine import HOST, Device, Link, MemoryNode, Resource

_KEPT_SECONDS = 86400.0  # how long a device that did not work is not tried again
_FORKED = (
    "no OpenCL in this process: it was forked from one that had used OpenCL, whose drivers do not survive that; "
    "start it anew (multiprocessing.get_context('spawn')), or fork before"
)
_MARK = "3"  # of the way in which speeds are measured
_NEEDED = ("float32", "bytes", "launch", "up_latency", "up_bytes", "down_latency", "down_bytes")

# Products of registers, as in a matrix product that reads nothing. Vectors of 32 bytes: the compiler of PoCL 3.0 never comes back from a loop over
# double8 on processors with AVX-512 (LLVM 14, Zen 4).
_PEAK = """
__kernel void peak(OUT(@T, y), const int n) {
    LET_OUT(@T, y)
    @V a = (@V)(get_global_id(0) * (@T)1e-9), b = a + (@T)1, c = a + (@T)2, d = a + (@T)3, x = (@V)(0.999);
    for (int i = 0; i < n; i++) { a = a * x + b; b = b * x + c; c = c * x + d; d = d * x + a; }
    vstore@W(a + b + c + d, get_global_id(0), y);
}
"""
_WIDTHS = {"float": 8, "double": 4}


def _peak(c_name: str) -> str:
    return _PEAK.replace("@V", f"{c_name}@W").replace("@T", c_name).replace("@W", str(_WIDTHS[c_name]))


@dataclass(frozen=True, eq=False)
class Usable:
    """A device that works: its OpenCL object and what was measured of it."""

    device: Any
    speeds: dict[str, float]


_lock = threading.Lock()
_listed: tuple[int, list[Usable], list[str]] | None = None
_programs: dict[tuple[int, int], Any] = {}
_opened: weakref.WeakSet[Any] = weakref.WeakSet()


def find() -> Found:
    """Every OpenCL device that works, with its memory node and its links; nothing, with a note, where there is no PyOpenCL or no device."""
    try:
        usable, notes = _usable()
        n = cores()
        devices = tuple(_described(i, u, n) for i, u in enumerate(usable))
        links = [link for i, u in enumerate(usable) for link in _links(i, u.speeds)]
        links += [_between(i, a.speeds, j, b.speeds) for i, a in enumerate(usable) for j, b in enumerate(usable) if i != j]
        memories = tuple(MemoryNode(f"opencl:{i}", _capacity(u.device)) for i, u in enumerate(usable))
        places = {
            f"opencl:{i}": Place(_address(u.device), u.device.name.strip(), _driver(u.device)) for i, u in enumerate(usable) if not devices[i].uses
        }
    except Exception as error:  # a driver that is half installed must not keep hetsched from the devices that work
        return Found(notes=(f"OpenCL cannot be used: {type(error).__name__}: {error}",))
    shared = (Resource("cores", float(n)),) if any(d.uses for d in devices) else ()
    return Found(devices, memories, tuple(links), shared, (*notes, *streams("opencl")[1]), places)


def open(device: Device, arena_nbytes: int) -> Any:
    """Open a found device with an arena of `arena_nbytes`; a `LiveDevice`. Raises `OutOfMemoryError`, and `PlacementError` for a device not here."""
    usable, notes = _usable()
    known = {f"opencl:{i}": u for i, u in enumerate(usable)}
    if device.id not in known:
        raise PlacementError("; ".join([f"there is no OpenCL device {device.id!r} here{did_you_mean(device.id, known)}", *notes]))
    return _open(device.id, known[device.id].device, arena_nbytes)


def _open(name: str, device: Any, arena_nbytes: int) -> Any:
    from hetsched.executors.backends._opencl_live import LiveDevice

    live = LiveDevice(name, _programs_of(device), arena_nbytes)
    _opened.add(live)
    return live


def release() -> None:
    """Close what is still open, and let go of programs and contexts in this order. At the end of the process: left to the interpreter, which drops
    objects in any order and some never, a driver may find a context released before its programs (PoCL: "still have references to IRs") and abort."""
    global _listed
    if _listed is not None and _listed[0] != os.getpid():
        return  # all of it is the parent's
    for live in list(_opened):
        with suppress(Exception):  # nobody is left to be told
            live.close()
    with _lock:
        programs = list(_programs.values()) if all(pid == os.getpid() for pid, _ in _programs) else []
        _programs.clear()
        _listed = None
    for each in programs:
        each.clear()
    gc.collect()  # kernels in cycles of streams and tapes
    programs.clear()


def _programs_of(device: Any) -> Any:
    import pyopencl as cl

    from hetsched.executors.backends._opencl_programs import Programs

    with _lock:
        key = (os.getpid(), device.int_ptr)
        if not _programs:
            atexit.unregister(release)
            atexit.register(release)  # after PyOpenCL has been imported, so before whatever it does at exit
        if key not in _programs:
            _programs[key] = Programs(cl.Context([device]), device)
        return _programs[key]


# Discovery --------------------------------------------------------------------------------------------------------------------


def _usable() -> tuple[list[Usable], list[str]]:
    """The devices that work, in the order of their numbers, and what is to be said of others. Looked for once a process."""
    global _listed
    # Drivers read their environment when they are loaded: neither they nor what they offer changes later.
    if _listed is None:
        _listed = (os.getpid(), *_look())
    if _listed[0] != os.getpid():
        return [], [_FORKED]  # the threads of its drivers are not here: whatever is asked of them would wait for ever
    return _listed[1], _listed[2]


def _leave_closed_caches() -> None:
    """Where the user's cache cannot be written, PoCL and PyOpenCL, which build nothing without one, get a folder of this process."""
    parent = cache_folder().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=parent):
            return
    except OSError:
        os.environ.setdefault("PYOPENCL_NO_CACHE", "1")
        if "POCL_CACHE_DIR" not in os.environ:
            own = os.environ["POCL_CACHE_DIR"] = tempfile.mkdtemp(prefix="hetsched-pocl-")
            atexit.register(shutil.rmtree, own, ignore_errors=True)


def _look() -> tuple[list[Usable], list[str]]:
    # PoCL compiles a kernel anew for every local size that it meets, and its binaries hold only the code for any size. That is no slower with the
    # kernels of hetsched, and a program that was read from disk is then not compiled again.
    os.environ.setdefault("POCL_WORK_GROUP_SPECIALIZATION", "0")
    _leave_closed_caches()
    try:
        import pyopencl as cl
    except ImportError as error:
        return [], [f"no OpenCL: PyOpenCL cannot be imported ({error}); pip install 'hetsched[opencl]' brings it, with a driver for CPUs"]
    try:
        platforms = cl.get_platforms()
    except cl.Error as error:
        return [], [f"no OpenCL: there is no driver ({error}); pip install 'hetsched[opencl]' brings one for CPUs"]
    leaves_alone("pyopencl", "hetsched.executors.backends._opencl", __name__)
    found: list[tuple[tuple[str, str, str], Any]] = []
    notes: list[str] = []
    for platform in platforms:
        try:
            found += [((platform.name, platform.version, d.name), d) for d in platform.get_devices()]
        except cl.Error as error:
            notes.append(f"OpenCL platform {platform.name!r} has no device: {error}")
    out: list[Usable] = []
    for device in _split([device for _, device in sorted(found, key=lambda pair: pair[0])], notes):
        speeds = _speeds(device)
        if isinstance(speeds, str):
            notes.append(f"OpenCL device {_full_name(device)} cannot be used: {speeds}{_way_out(device)}")
        else:
            out.append(Usable(device, speeds))
    return out, notes


def _split(devices: list[Any], notes: list[str]) -> list[Any]:
    """`devices`, those that `HETSCHED_OPENCL_PARTS` names in as many equal parts: "2" for all of them, "0:2,3:4" for numbers 0 and 3."""
    import pyopencl as cl

    asked = os.environ.get("HETSCHED_OPENCL_PARTS", "").strip()
    if not asked:
        return devices
    try:
        pairs = (
            [(range(len(devices)), int(asked))] if ":" not in asked else [((int(a),), int(b)) for a, b in (x.split(":") for x in asked.split(","))]
        )
        parts = {number: count for numbers, count in pairs for number in numbers}
    except ValueError:
        notes.append(f'HETSCHED_OPENCL_PARTS is {asked!r}; give a number of parts ("2"), or numbers of devices and their parts ("0:2,3:4")')
        return devices
    notes += [f"HETSCHED_OPENCL_PARTS names OpenCL device number {n}; there are {len(devices)}" for n in parts if n >= len(devices)]
    out = []
    for number, device in enumerate(devices):
        count = parts.get(number, 1)
        units = device.max_compute_units // max(count, 1)
        if count > 1 and not units:
            notes.append(f"OpenCL device {_full_name(device)} has {device.max_compute_units} compute units, too few for {count} parts")
        if count <= 1 or not units:
            out.append(device)
            continue
        try:
            out += device.create_sub_devices([cl.device_partition_property.EQUALLY, units])[:count]
        except cl.Error as error:
            notes.append(f"OpenCL device {_full_name(device)} cannot be split: {error}")
            out.append(device)
    return out


def _way_out(device: Any) -> str:
    """What a user can do about a device that does not work."""
    if "pocl" not in device.platform.version.lower():
        return "; look for a newer driver"
    # The PoCL of pip calls clang for a processor "generic" where its LLVM does not know the one that is there, and clang refuses.
    return "; another PoCL may work, beside this one: apt-get install pocl-opencl-icd (Debian, Ubuntu), or the pocl of conda-forge"


def _full_name(device: Any) -> str:
    return f"{device.name.strip()} ({_driver(device)})"


def _driver(device: Any) -> str:
    return f"{device.platform.name.strip()}, {device.platform.version.split('  ')[0].strip()}"


def _address(device: Any) -> str | None:
    """Where a device sits on the PCI bus (domain, bus, device), if its driver tells: the extension cl_nv_device_attribute_query.

    Its slot is the number that CUDA calls the device's (6 and 6 on an H100), without the function behind it.
    """
    import pyopencl as cl

    known = cl.device_info
    try:
        bus, slot = (int(device.get_info(key)) for key in (known.PCI_BUS_ID_NV, known.PCI_SLOT_ID_NV))
    except (cl.Error, AttributeError):
        return None
    domain = 0
    with suppress(cl.Error, AttributeError):  # newer drivers
        domain = int(device.get_info(known.PCI_DOMAIN_ID_NV))
    return f"{domain:04x}:{bus:02x}:{slot:02x}"


def _capacity(device: Any) -> int:
    """Bytes of the arena that a device can give: one buffer, so what it gives at once."""
    return int(min(device.global_mem_size, device.max_mem_alloc_size))


def _described(i: int, usable: Usable, cores_here: int) -> Device:
    import pyopencl as cl

    from hetsched.executors.backends._opencl_staging import shares_memory

    device, speeds = usable.device, usable.speeds
    kind = device.type
    hardware = "gpu" if kind & cl.device_type.GPU else "cpu" if kind & cl.device_type.CPU else "accelerator"
    flops: dict[str, float] = {name: speeds[name] for name in ("float32", "float64") if name in speeds}
    return Device(
        id=f"opencl:{i}",
        kind="opencl",
        lanes=streams("opencl")[0] if hardware == "gpu" else 1,
        memory=f"opencl:{i}",
        name=_full_name(device),
        hardware=hardware,
        languages=("opencl",),
        flops_per_second=flops,
        bytes_per_second=speeds["bytes"],
        launch_seconds=speeds["launch"],
        uses={"cores": float(min(cores_here, device.max_compute_units))} if hardware == "cpu" else {},
        unified=shares_memory(device),
        fingerprint=_fingerprint(device, cores_here),
    )


def _fingerprint(device: Any, cores_here: int) -> str:
    """What measured costs are kept under: device, driver, its highest clock, and the cores it may have to share."""
    from hetsched.executors.backends._opencl_programs import describe

    mark = f"{describe(device)}\n{device.max_compute_units}\n{device.max_clock_frequency}\n{cores_here}"
    return hashlib.sha256(mark.encode()).hexdigest()[:16]


def _links(i: int, speeds: dict[str, float]) -> list[Link]:
    node = f"opencl:{i}"
    return [Link(HOST, node, speeds["up_latency"], speeds["up_bytes"]), Link(node, HOST, speeds["down_latency"], speeds["down_bytes"])]


def _between(i: int, a: dict[str, float], j: int, b: dict[str, float]) -> Link:
    """From one OpenCL device to another the bytes go through the host."""
    rate = 1 / (1 / a["down_bytes"] + 1 / b["up_bytes"])
    return Link(f"opencl:{i}", f"opencl:{j}", a["down_latency"] + b["up_latency"], rate)


# Speeds -----------------------------------------------------------------------------------------------------------------------


def _speeds(device: Any) -> dict[str, float] | str:
    """What was measured of a device, or why it cannot be used; from the cache where it is known."""
    from hetsched.executors.backends._opencl_programs import DeviceError, describe

    mark = f"{describe(device)}\n{device.max_compute_units}\n{cores()}\n{_MARK}"
    path = cache_folder() / f"opencl-{hashlib.sha256(mark.encode()).hexdigest()[:16]}.json"
    known = kept_speeds(path, _NEEDED) or _kept_refusal(path)
    if known is not None:
        return known
    try:
        speeds = measure(device)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, DeviceError) and error.complaints is not None:  # a compiler that does not work will not in an hour; the rest may pass
            write_whole(path, json.dumps({"error": reason, "when": time.time()}).encode())
        return reason
    write_whole(path, json.dumps(speeds).encode())
    return speeds


def _kept_refusal(path: Path) -> str | None:
    """Why a device was found not to work, not long ago."""
    try:
        known = json.loads(path.read_text())
        return str(known["error"]) if time.time() - float(known["when"]) < _KEPT_SECONDS else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def measure(device: Any) -> dict[str, float]:
    """flops per second by dtype (`float32`, `float64` where it has it), `bytes` per second of its memory, seconds of a `launch`, and latency and
    bytes per second of copies up and down. Raises what a device that does not work raises."""
    import pyopencl as cl

    nbytes = min(1 << 25, _capacity(device) // 4)
    live = _open("measured", device, 2 * nbytes)
    try:
        stream = live.stream("compute")
        out: dict[str, float] = {}
        for name, c_name in (("float32", "float"), *((("float64", "double"),) if live.has_fp64 else ())):
            out[name] = _flops(stream, live, name, c_name)
        src, dst = live.array(0, (nbytes,), np.uint8), live.array(nbytes, (nbytes,), np.uint8)
        stream.fill(src, 1)
        stream.fill(dst, 2)
        copy = partial(stream.copy, src, dst)
        # A GPU copies within its memory in less than the host needs to see that it has.
        out["bytes"] = 2 * nbytes / (row_seconds(copy, stream, 5) if device.type & cl.device_type.GPU else least_seconds(copy, stream, 3))
        small = live.array(0, (16,), np.uint8)
        host, large = np.ones(16, np.uint8), np.ones(nbytes, np.uint8)
        for name, short, long in (
            ("up", partial(stream.upload, host, small), partial(stream.upload, large, src)),
            ("down", partial(stream.download, small, host), partial(stream.download, src, large)),
        ):
            out[f"{name}_latency"] = least_seconds(short, stream, 20)
            out[f"{name}_bytes"] = nbytes / max(least_seconds(long, stream, 3) - out[f"{name}_latency"], 1e-9)
        out["launch"] = _launch(stream, live)
        return out
    finally:
        live.close()


def _flops(stream: Any, live: Any, dtype: str, c_name: str) -> float:
    items = 64 * int(live.device.max_compute_units)
    source = _peak(c_name)
    y = live.array(0, (8 * items,), dtype)
    turns, seconds = 64, 0.0
    while seconds < 2e-3 and turns < 1 << 24:  # enough turns for the clock
        turns *= 4
        seconds = least_seconds(partial(stream.run, source, "peak", (items,), y, np.int32(turns), local_size=(64,)), stream, 2)
    return 4 * 2 * _WIDTHS[c_name] * items * turns / seconds


def _launch(stream: Any, live: Any, times: int = 200) -> float:
    y = live.array(0, (8 * 64,), np.float32)
    source = _peak("float")

    def many() -> None:
        for _ in range(times):
            stream.run(source, "peak", (64,), y, np.int32(0), local_size=(64,))

    return least_seconds(many, stream, 3) / times
