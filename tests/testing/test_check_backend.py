"""check_backend passes on our backends, and says what is wrong with backends that are broken in one known way each."""

import itertools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from leftovers import running_threads

from hetsched.errors import DeviceGoneError, PlacementError
from hetsched.executors.backends import Found, emulated
from hetsched.executors.backends.emulated import EmulatedArray, EmulatedDevice, EmulatedEvent, EmulatedStream
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode
from hetsched.testing import check_backend
from hetsched.testing.backend import checks

CPU = Device("cpu", "cpu", lanes=2, languages=("host", "array"), shares_lanes=True, bytes_per_second=10e9, flops_per_second={"float32": 1e10})


def box(count: int = 1) -> Machine:
    names = [f"gpu:{i}" for i in range(count)]
    gpus = tuple(
        Device(name, "emulated", memory=name, hardware="gpu", bytes_per_second=1e11, flops_per_second={"float32": 1e13}, launch_seconds=1e-6)
        for name in names
    )
    nodes = [HOST, *names]
    links = tuple(Link(a, b, 1e-6, 1e10) for a in nodes for b in nodes if a != b)
    return Machine((CPU, *gpus), links, tuple(map(MemoryNode, nodes)))


def found_or_skip(kind: str) -> Any:
    try:
        return check_backend(kind, only=[])
    except PlacementError as error:
        pytest.skip(str(error))


def test_emulated_devices_pass() -> None:
    figures = check_backend(emulated, box(), graphs=12, runs=1000)
    assert figures["gpu:0"]["skew_seconds"] <= 50e-6
    assert figures["gpu:0"]["leaked threads"] <= 2


def test_several_emulated_devices_pass_together() -> None:
    assert list(check_backend(emulated, box(2), graphs=10, only=["copies", "order", "values"])) == ["gpu:0", "gpu:1"]


def test_the_processor_passes() -> None:
    figures = check_backend("cpu", graphs=12, runs=1000)
    assert figures["cpu"]["leaked threads"] <= 2


@pytest.mark.parametrize("kind", ["opencl", "cuda"])
def test_devices_of_this_machine_pass_or_are_not_here(kind: str) -> None:
    found_or_skip(kind)
    # Threads that have ended leave up to 200 small objects, which go after some fifty runs: fewer runs would take them for a leak.
    check_backend(kind, graphs=10, runs=500)


def test_names_that_are_not_known() -> None:
    with pytest.raises(PlacementError, match="no backend 'opncl'; did you mean 'opencl'"):
        check_backend("opncl")
    with pytest.raises(PlacementError, match="no check 'copy' of backends; did you mean 'copies'"):
        check_backend(emulated, box(), only=["copy"])


def test_a_backend_that_finds_nothing_says_why() -> None:
    class Absent:
        @staticmethod
        def find() -> Found:
            return Found(notes=("the driver is missing",))

    with pytest.raises(PlacementError, match="Absent finds no device here: the driver is missing"):
        check_backend(Absent())


# Broken ones ------------------------------------------------------------------------------------------------------------------------


class Broken:
    """The emulated backend with streams or devices of another class."""

    def __init__(self, stream: type[EmulatedStream] = EmulatedStream, device: type[EmulatedDevice] = EmulatedDevice) -> None:
        class Live(device):  # type: ignore[valid-type,misc]
            def stream(self, kind: str) -> EmulatedStream:
                made = stream(self, f"broken-{kind}")
                self.streams.append(made)
                return made

        self.live = Live

    def open(self, device: Device, nbytes: int) -> EmulatedDevice:
        live: EmulatedDevice = self.live(device, nbytes)
        return live


class DoesNotWait(EmulatedStream):
    def wait(self, event: EmulatedEvent) -> None:
        pass


# More than a busy machine takes to tell that a command has ended.
LATE_SECONDS = 10.0


class LateClock(EmulatedStream):
    def record(self) -> EmulatedEvent:
        class Shifted(EmulatedEvent):
            def span(self) -> tuple[float, float]:
                start, finish = super().span()
                return start + LATE_SECONDS, finish + LATE_SECONDS

        event = super().record()
        event.__class__ = Shifted
        return event


class SwappedSpan(EmulatedStream):
    def record(self) -> EmulatedEvent:
        class Swapped(EmulatedEvent):
            def span(self) -> tuple[float, float]:
                start, finish = super().span()
                return finish, start - 1e-9

        event = super().record()
        event.__class__ = Swapped
        return event


class OffByOneRow(EmulatedStream):
    def upload(self, src: Any, dst: EmulatedArray) -> None:
        super().upload(np.roll(src, 1, axis=0) if src.ndim > 1 and src.size else src, dst)


class ForgetsOffsets(EmulatedDevice):
    def array(self, offset: int, shape: tuple[int, ...], dtype: Any) -> EmulatedArray:
        return super().array(offset if offset < 4096 else 64, shape, dtype)


class SpillsOver(EmulatedStream):
    def launch(self, kernel: Any, inputs: Any, outputs: Any, workspace: Any, attributes: Any) -> None:
        super().launch(kernel, inputs, outputs, workspace, attributes)
        last = outputs[0]
        memory = self.live.memory.buffer

        def spill() -> None:
            if last.size:
                at = last.array.__array_interface__["data"][0] - memory.__array_interface__["data"][0] + last.nbytes
                memory[at : at + 1] = 0x11

        self._enqueue(spill)


class TooEarly(EmulatedStream):
    def record(self) -> EmulatedEvent:
        event = super().record()
        event._done.set()
        return event


class TellsTwice(EmulatedStream):
    def record(self) -> EmulatedEvent:
        event = super().record()
        once = event.on_done

        def twice(callback: Callable[[], object]) -> None:
            once(callback)
            once(callback)

        event.on_done = twice  # type: ignore[method-assign]
        return event


class KeepsNoHostArray(EmulatedStream):
    """Uploads later, from memory that is no longer what it was."""

    def upload(self, src: Any, dst: EmulatedArray) -> None:
        given = weakref.ref(src)
        lost = np.zeros_like(src)

        def later() -> None:
            there = given()
            np.copyto(dst.array, lost if there is None else there)

        self._enqueue(later)


class SwallowsErrors(EmulatedStream):
    def record(self) -> EmulatedEvent:
        def forget() -> None:
            self._error = None

        self._commands.put(forget)
        return super().record()


class StaysBroken(EmulatedStream):
    def _work(self, action: Any, seconds: float, asked: float) -> None:
        if self.live.__dict__.get("broken"):
            return
        super()._work(action, seconds, asked)
        if self._error is not None:
            self.live.__dict__["broken"] = True


class GrantsEverything(EmulatedDevice):
    def __init__(self, device: Device, nbytes: int) -> None:
        super().__init__(device, min(nbytes, 1 << 22))


class NoBounds(EmulatedDevice):
    def array(self, offset: int, shape: tuple[int, ...], dtype: Any) -> EmulatedArray:
        return super().array(max(0, min(offset, self.nbytes - int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize)), shape, dtype)


class SurvivesLoss(EmulatedDevice):
    def lose(self) -> None:
        pass


class OneArena(EmulatedDevice):
    shared: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, device: Device, nbytes: int) -> None:
        super().__init__(device, nbytes)
        self.memory = self.shared.setdefault(f"{device.id}/{nbytes}", self.memory)


class LeaksMemory(EmulatedDevice):
    kept: list[Any] = []  # noqa: RUF012

    def close(self) -> None:
        super().close()
        self.memory.buffer[::4096] = 1  # pages that are touched
        self.kept.append(self.memory)


class LeaksObjects(EmulatedDevice):
    kept: list[Any] = []  # noqa: RUF012

    def close(self) -> None:
        super().close()
        self.kept += [[self.kept], [self.kept]]


class LeaksThreads(EmulatedDevice):
    gate = threading.Event()

    def close(self) -> None:
        super().close()
        threading.Thread(target=self.gate.wait, daemon=True).start()


class LeaksFiles(EmulatedDevice):
    kept: list[Any] = []  # noqa: RUF012

    def close(self) -> None:
        super().close()
        self.kept.append(open("/dev/null", "rb"))  # noqa: SIM115


CASES = [
    ("order", Broken(DoesNotWait), "waits for"),
    ("clocks", Broken(LateClock), r"the clock is off by at least \d+ us; 50 us are allowed"),
    ("clocks", Broken(SwappedSpan), "a span starts at"),
    ("copies", Broken(OffByOneRow), "comes back other than it went"),
    ("copies", Broken(device=ForgetsOffsets), "the arena is wrong in"),
    ("launches", Broken(SpillsOver), "the arena is wrong in 1 bytes"),
    ("events", Broken(TooEarly), "before the work in front of it was done"),
    ("events", Broken(TellsTwice), "was called 64 times"),
    ("events", Broken(KeepsNoHostArray), "was not kept until its bytes had left"),
    ("errors", Broken(SwallowsErrors), "the error of a kernel is lost"),
    ("errors", Broken(StaysBroken), "does not work on"),
    ("errors", Broken(device=GrantsEverything), f"an arena of {1 << 50} bytes is granted"),
    ("errors", Broken(device=NoBounds), "an array that ends behind the arena is not refused"),
    ("gone", Broken(device=SurvivesLoss), "seems to be done"),
    ("reopen", Broken(device=OneArena), "share their bytes"),
    ("values", Broken(OffByOneRow), "differs"),
    ("failures", Broken(SwallowsErrors), "a run in which a task failed seems to be done"),
    ("leaks", Broken(device=LeaksMemory), "more (allocated )?bytes"),
    ("leaks", Broken(device=LeaksObjects), "more objects"),
    ("leaks", Broken(device=LeaksThreads), "more threads"),
    ("leaks", Broken(device=LeaksFiles), "more open files"),
]


@pytest.mark.parametrize(("check", "backend", "says"), CASES, ids=[f"{c}-{w[:24]}" for c, _, w in CASES])
def test_a_backend_that_is_broken_is_found_out(check: str, backend: Broken, says: str) -> None:
    try:
        with pytest.raises(AssertionError, match=rf"gpu:0, {check}: .*{says}"):
            check_backend(backend, box(), only=[check], graphs=6, runs=200 if "bytes" in says else 100)
    finally:
        LeaksThreads.gate.set()
        LeaksThreads.gate = threading.Event()
        for leak in (LeaksMemory, LeaksObjects, LeaksFiles):
            for held in leak.kept:
                getattr(held, "close", lambda: None)()
            leak.kept.clear()


def test_every_check_has_been_seen_to_fail() -> None:
    assert {check for check, _, _ in CASES} == set(checks()) - {"limits"}


def test_a_backend_that_opens_a_device_for_what_does_not_fit_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits are the planner's promise: without them the arena is as large as the graph likes."""
    from hetsched.testing import backend_runs

    monkeypatch.setattr(backend_runs, "small_box", lambda device, machine, nbytes: machine)
    with pytest.raises(AssertionError, match=r"limits: .*ran in a memory node of"):
        check_backend(emulated, box(), only=["limits"])


def test_a_device_that_is_lost_in_the_middle_ends_the_run_with_its_name() -> None:
    import hetsched as hs
    from hetsched.executors import live
    from hetsched.run import check_inputs

    class Unplugged(EmulatedStream):
        def record(self) -> EmulatedEvent:
            if next(records) == 1:  # the fifty launches are one step, between two copies
                self.live.lose()
            return super().record()

    records = itertools.count()
    b = hs.Graph.build()
    x = b.input("x", (64,))
    for _ in range(50):
        x = b.op("tensor.neg", x, where=hs.Where(("gpu:0",)))
    graph = b.output(x, "y").freeze()
    before = running_threads()
    with pytest.raises(DeviceGoneError, match="device 'gpu:0' is gone"):
        live.run_plan(hs.plan(graph, box()), check_inputs(graph, {"x": np.ones(64, np.float32)}), backends={"emulated": Broken(Unplugged)})
    assert running_threads() <= before
    assert hs.run(hs.plan(graph, box()), {"x": np.ones(64, np.float32)})["y"][0] == 1
