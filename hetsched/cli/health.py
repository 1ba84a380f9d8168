"""What `hetsched doctor` looks at: libraries, devices (each computes something), what was measured of them, folders, the environment.

Each look gives `Seen`s: what was looked at, how it stands, what was found, and the way out where something is wrong.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import numpy as np

import hetsched
from hetsched.errors import HetschedError, did_you_mean
from hetsched.executors import backends
from hetsched.folders import cache_folder, state_folder, write_whole
from hetsched.graph.graph import Graph
from hetsched.machine import Device, Machine
from hetsched.machine.calibration import complaints, load
from hetsched.placement import native
from hetsched.report.text import bytes_text, plural, seconds_text
from hetsched.run import plan, run

OK, NOTE, BAD = "ok", "note", "wrong"

# The variables that hetsched reads, and what they are for.
VARIABLES: Mapping[str, str] = {
    "HETSCHED_CUDA_CHAINS": "neighbouring element-wise launches on CUDA as one kernel",
    "HETSCHED_CUDA_DIRECT": "short plans handed to a CUDA stream by the calling thread",
    "HETSCHED_CUDA_GRAPHS": "launches that come again as CUDA graphs",
    "HETSCHED_CUDA_PIN": "page-locked memory for copies to CUDA devices",
    "HETSCHED_CUDA_STREAMS": "compute streams of each CUDA device",
    "HETSCHED_CUDNN": "convolutions by cuDNN",
    "HETSCHED_DEBUG": "Python's traceback instead of a message",
    "HETSCHED_KEEP_MIB": "memory kept between runs of plans",
    "HETSCHED_LEARN": "whether runs teach costs",
    "HETSCHED_OPENCL_PARTS": "parts of OpenCL devices as devices",
    "HETSCHED_OPENCL_STAGING": "pinned memory for copies to OpenCL devices",
    "HETSCHED_OPENCL_STREAMS": "compute streams of each OpenCL device",
    "HETSCHED_OPENCL_TWINS": "a card that two drivers offer as two devices",
    "HETSCHED_WATTS": "what devices draw",
}
# Libraries that bring more: what they bring, and the distributions that have them, any of which will do.
OPTIONAL: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("OpenCL devices", 'pip install "hetsched[opencl]"', ("pyopencl",)),
    ("CUDA devices", 'pip install "hetsched[cuda12]" (or cuda13)', ("cupy-cuda12x", "cupy-cuda13x", "cupy")),
    ("policy exact", 'pip install "hetsched[exact]"', ("ortools",)),
    ("faster search where there is no C compiler", 'pip install "hetsched[fast]"', ("numba",)),
)


class Seen(NamedTuple):
    """One thing that was looked at. state: `ok`, `note` (works, with a remark), `wrong`."""

    what: str
    state: str
    found: str


def look() -> Iterator[Seen]:
    """Everything, one after the other. Takes some seconds where OpenCL programs are built for the first time."""
    yield Seen("hetsched", OK, f"{hetsched.__version__}, Python {platform.python_version()} ({sys.executable}), {platform.platform()}")
    yield from libraries()
    yield from devices()
    yield from folders({"cache": cache_folder(), "runs and consents": state_folder()})
    yield from environment(os.environ)
    yield from load_of(os.cpu_count() or 1, getattr(os, "getloadavg", None))


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def libraries() -> Iterator[Seen]:
    """What is installed, and what more would bring."""
    yield Seen("NumPy", OK, np.__version__)
    for brings, way, names in OPTIONAL:
        there = [f"{name} {found}" for name in names if (found := _installed(name)) is not None]
        if len(there) > 1:
            yield Seen(brings, BAD, f"{' and '.join(there)} are in each other's way; uninstall all but one")
        else:
            yield Seen(brings, OK, there[0]) if there else Seen(brings, NOTE, f"not installed; {way}")
    if native.library() is not None:
        yield Seen("machine code for planning", OK, "built")
    else:
        yield Seen("machine code for planning", NOTE, "no C compiler works here: plans of large graphs take longer; install one, or set CC")


def devices() -> Iterator[Seen]:
    """Every device, whether it computes what NumPy does, and what was measured of it; then what cannot be used, and why."""
    machine = Machine.here()
    for device in machine.devices:
        yield computes(device, machine)
        yield measured(device)
    for note in backends.notes():
        yield Seen("backends", NOTE, note)


def computes(device: Device, machine: Machine) -> Seen:
    """Whether a product on the device is NumPy's."""
    name = f"{device.id} ({device.name})" if device.name else device.id
    b = Graph.build()
    a = b.input("a", (64, 64))
    graph = b.output(b.op("nn.relu", b.op("tensor.matmul", a, a)), "y").freeze()
    given = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    try:
        result = run(plan(graph, machine, only=device.id, learn=False), {"a": given}, learn=False)
    except Exception as error:  # whatever a driver may raise
        return Seen(name, BAD, f"cannot be used: {error if isinstance(error, HetschedError) else f'{type(error).__name__}: {error}'}")
    wanted = np.maximum(given @ given, 0)
    if not np.allclose(result["y"], wanted, rtol=1e-3, atol=1e-3):
        return Seen(name, BAD, f"gives wrong numbers: a product is off by {np.abs(result['y'] - wanted).max():.3g}; is its driver up to date?")
    return Seen(name, OK, f"computes; {seconds_text(result.wall_seconds)} for a first small run")


def measured(device: Device) -> Seen:
    """What is known of how fast the device is."""
    what, found = f"calibration of {device.id}", load(device)
    if found is None or not found.whole:
        return Seen(what, NOTE, f"none: first plans rest on what is measured before them; `hetsched calibrate {device.id}` measures all")
    problems = complaints(found)
    return Seen(what, NOTE, "; ".join(problems)) if problems else Seen(what, OK, f"{plural(len(found.curves), 'curve')}")


def folders(where: Mapping[str, Path]) -> Iterator[Seen]:
    """Whether what is found out can be kept."""
    for what, folder in where.items():
        probe = folder / f".probe-{os.getpid()}"
        if write_whole(probe, b""):
            probe.unlink()
            nbytes = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
            yield Seen(what, OK, f"{folder}, {bytes_text(nbytes)}")
        else:
            way = "XDG_CACHE_HOME" if what == "cache" else "XDG_STATE_HOME"
            yield Seen(what, BAD, f"{folder} cannot be written, so nothing is kept between runs; make it writable, or set {way}")


def environment(variables: Mapping[str, str]) -> Iterator[Seen]:
    """Variables that change what hetsched does, and those that look so and change nothing."""
    for name in sorted(name for name in variables if name.startswith("HETSCHED_")):
        if name in VARIABLES:
            yield Seen(name, NOTE, f"is {variables[name]!r} ({VARIABLES[name]})")
        else:
            yield Seen(name, NOTE, f"is set and means nothing to hetsched{did_you_mean(name, VARIABLES)}")


def load_of(cores: int, loads: Callable[[], tuple[float, float, float]] | None) -> Iterator[Seen]:
    """Whether other work keeps the cores busy."""
    if loads is None:
        return
    busy = loads()[0]
    if busy > 0.5 * cores:
        yield Seen(
            "load",
            NOTE,
            f"{busy:.1f} of {plural(cores, 'core')} are at work already: runs take longer than planned, and calibrating now would mislead",
        )
    else:
        yield Seen("load", OK, f"{busy:.1f} of {plural(cores, 'core')}")


__all__ = ["BAD", "NOTE", "OK", "VARIABLES", "Seen", "computes", "devices", "environment", "folders", "libraries", "load_of", "look", "measured"]
