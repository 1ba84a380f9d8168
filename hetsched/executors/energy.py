"""Energy of a run, measured where the machine counts it: RAPL for processors, NVML for NVIDIA's GPUs.

RAPL (Intel SDM volume 3B, section 15.10; Linux: Documentation/power/powercap) counts microjoules of each processor package, and of its memory
(`dram`), in files of `/sys/class/powercap`; a counter wraps around at `max_energy_range_uj`. NVML counts millijoules of a GPU since its driver was
loaded (Volta and later); of older ones only the watts of a moment are known, which are sampled. Both count everything that draws power there: idle
power, and whatever else runs on the machine, is in it.

What is not measured is estimated from the watts that the machine's file states (`placement.costs.figures`), and said to be so.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

from hetsched.machine import Machine

POWERCAP = Path("/sys/class/powercap")
# A counter of RAPL wraps around after a quarter of a megajoule: minutes under load. It is looked at this often.
SAMPLE_SECONDS = 20.0
# The watts of a GPU that does not count its energy are looked at this often.
WATTS_SECONDS = 0.05
MICRO, MILLI = 1e-6, 1e-3


@dataclass(frozen=True)
class Measured:
    """Joules by meter: `package-0`, `dram` (RAPL), `cuda:0` (NVML).

    devices: device -> its meters. sources: meter -> who counted. problems: what could have been measured, and the way to it.
    seconds: the time measured.
    """

    joules: Mapping[str, float] = field(default_factory=dict)
    devices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    seconds: float = 0.0

    def of(self, device: str) -> float | None:
        """Joules of a device, all its meters; None where nothing measures it."""
        meters = self.devices.get(device, ())
        return sum(self.joules[m] for m in meters) if meters else None


class Meter(Protocol):
    """Something that counts joules. name: as it is told. device: whose they are."""

    name: str
    device: str
    source: str
    every_seconds: float

    def read(self) -> float:
        """Joules since the first reading; `OSError` where it cannot be read."""
        ...


class Counter:
    """A counter of joules that wraps around: `read` gives what it has counted since it was made. Pure but for `now`."""

    def __init__(self, now: Callable[[], int], wraps_at: int, unit: float) -> None:
        self.now, self.wraps_at, self.unit = now, wraps_at, unit
        self._last = now()
        self._total = 0

    def read(self) -> float:
        """Joules since the start; right if it is called at least once between two wraps."""
        value = self.now()
        step = value - self._last
        if step < 0:
            step += self.wraps_at
        self._last = value
        self._total += max(step, 0)
        return self._total * self.unit


class RaplMeter:
    """A domain of RAPL: a folder of powercap."""

    every_seconds = SAMPLE_SECONDS

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.device, self.source = name, "cpu", "RAPL"
        self._file = folder / "energy_uj"
        self._counter = Counter(lambda: int(self._file.read_text()), int((folder / "max_energy_range_uj").read_text()), MICRO)

    def read(self) -> float:
        """See `Meter.read`."""
        return self._counter.read()


def rapl_meters(root: Path = POWERCAP) -> tuple[list[Meter], list[str]]:
    """(a meter for each package and its memory, what cannot be read and why).

    The whole platform (`psys`) holds more than processors, `core` and `uncore` are parts of their package, and `intel-rapl-mmio` counts the
    package a second time: none of them is added.
    """
    meters: list[Meter] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    for folder in sorted(root.glob("intel-rapl:*")) if root.is_dir() else []:
        try:
            name = (folder / "name").read_text().strip()
            if not (name.startswith("package") or name == "dram"):
                continue
            number = seen[name] = seen.get(name, -1) + 1
            meters.append(RaplMeter(folder, name if not number else f"{name}#{number}"))
        except PermissionError as error:
            way_out = f"let everybody read it (sudo chmod a+r {root}/intel-rapl:*/energy_uj), or run as root"
            problems.append(f"RAPL: {error.filename} may be read by root only; {way_out}")
        except (OSError, ValueError) as error:
            problems.append(f"RAPL: {folder} cannot be read: {error}")
    return meters, problems


class NvmlMeter:
    """A GPU. It counts its energy from Volta on; of older ones the watts of each moment are added up."""

    def __init__(self, nvml: Any, handle: Any, device: str, clock: Callable[[], float] = perf_counter) -> None:
        self.name, self.device, self.source = device, device, "NVML"
        self.every_seconds = SAMPLE_SECONDS
        self._nvml, self._handle, self._clock = nvml, handle, clock
        self._counter: Counter | None = None
        self._total, self._at, self._watts = 0.0, clock(), 0.0
        try:
            self._counter = Counter(lambda: int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)), 0, MILLI)
        except nvml.NVMLError:
            self.source, self.every_seconds = "NVML, sampled watts", WATTS_SECONDS
            self._watts = self._now()

    def read(self) -> float:
        """See `Meter.read`."""
        if self._counter is not None:
            return self._counter.read()
        at, watts = self._clock(), self._now()
        self._total += (at - self._at) * (watts + self._watts) / 2
        self._at, self._watts = at, watts
        return self._total

    def _now(self) -> float:
        return float(self._nvml.nvmlDeviceGetPowerUsage(self._handle)) * MILLI


def nvml_meters(devices: Sequence[str], nvml: Any = None) -> tuple[list[Meter], list[str]]:
    """(a meter for each of the CUDA devices `cuda:N`, what cannot be measured and why). nvml: the module `pynvml`."""
    if not devices:
        return [], []
    if nvml is None:
        try:
            nvml = import_module("pynvml")
        except ImportError:
            return [], ["NVML: the package nvidia-ml-py is not installed; pip install nvidia-ml-py to measure GPUs"]
    try:
        nvml.nvmlInit()
        return [NvmlMeter(nvml, _handle(nvml, device), device) for device in devices], []
    except nvml.NVMLError as error:
        return [], [f"NVML: {error}"]


def _handle(nvml: Any, device: str) -> Any:
    """The GPU that CUDA calls `cuda:N`: CUDA_VISIBLE_DEVICES may have renumbered them."""
    number = int(device.partition(":")[2] or 0)
    visible = [x.strip() for x in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if x.strip()]
    if number < len(visible):
        if not visible[number].isdecimal():
            return nvml.nvmlDeviceGetHandleByUUID(visible[number])
        number = int(visible[number])
    return nvml.nvmlDeviceGetHandleByIndex(number)


class Watch:
    """Reads meters from `begin` to `end`, and in between often enough that none wraps around unseen."""

    def __init__(self, meters: Sequence[Meter], problems: Sequence[str] = ()) -> None:
        self.meters, self.problems = list(meters), list(problems)
        self._lost: set[str] = set()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._began = 0.0
        self.measured = Measured()

    def begin(self) -> None:
        """Start: what was counted before is not part of it."""
        self._began = perf_counter()
        self._base = self._readings()
        if self.meters:
            self._thread = threading.Thread(target=self._sample, name="hetsched-energy", daemon=True)
            self._thread.start()

    def end(self) -> Measured:
        """Stop; returns, and keeps as `measured`, what was counted since `begin`."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        last = self._readings()
        joules = {name: max(0.0, last[name] - self._base[name]) for name in last if name in self._base}
        devices: dict[str, tuple[str, ...]] = {}
        for meter in self.meters:
            if meter.name in joules:
                devices[meter.device] = (*devices.get(meter.device, ()), meter.name)
        sources = {m.name: m.source for m in self.meters if m.name in joules}
        self.measured = Measured(joules, devices, sources, tuple(self.problems), perf_counter() - self._began)
        return self.measured

    def _sample(self) -> None:
        while not self._ended.wait(min((m.every_seconds for m in self.meters), default=SAMPLE_SECONDS)):
            self._readings()

    def _readings(self) -> dict[str, float]:
        out = {}
        for meter in self.meters:
            if meter.name not in self._lost:
                try:
                    out[meter.name] = meter.read()
                except Exception as error:  # a driver that goes away costs the figure, not the run
                    self._lost.add(meter.name)
                    self.problems.append(f"{meter.source}: {meter.name} cannot be read any more: {error}")
        return out


def watch_of(machine: Machine, root: Path = POWERCAP) -> Watch:
    """What of a machine can be measured here: its processor, and its CUDA devices. Emulated devices draw no power of their own."""
    meters, problems = rapl_meters(root) if any(d.kind == "cpu" for d in machine.devices) else ([], [])
    found, more = nvml_meters([d.id for d in machine.devices if d.kind == "cuda"])
    return Watch([*meters, *found], [*problems, *more])


@contextmanager
def watched(machine: Machine) -> Iterator[Watch]:
    """Measures what is done inside; afterwards `Watch.measured` says what was counted."""
    watch = watch_of(machine)
    watch.begin()
    try:
        yield watch
    finally:
        watch.end()
