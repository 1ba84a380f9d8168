"""Measuring a device through its backend: kernels, copies, memory, arithmetic, and what devices lose when both work.

Every kind of device is measured in the same way: it is opened, arrays are laid out in its arena, commands are handed to a stream, and the host waits
for an event behind them. Several commands go between two events, so that the wait is not counted.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from hetsched.executors.backends import opens
from hetsched.executors.backends._common import lone_seconds
from hetsched.executors.backends.cpu import crossing_seconds
from hetsched.executors.memory import stride_of
from hetsched.executors.process import tuned, wide
from hetsched.graph.graph import Graph
from hetsched.graph.op import Attributes, Op
from hetsched.graph.ops import family, find
from hetsched.graph.spec import AnySpec, Spec, array_form
from hetsched.machine import HOST, Device, Machine
from hetsched.machine.calibration import LEAST_SLOWNESS, Calibration, Curve, LinkFigures

# A repetition is made at least this long by repeating the command in it: clocks and waits are then a small part of it.
LEAST_SECONDS = 300e-6
REPEATS = 5
MOST_BYTES = 1 << 28
# What is measured beside other lanes takes at least this long (shorter launches wait for the interpreter, not for one another), on so many lanes.
LEAST_BESIDE, MOST_LANES = 50e-6, 4


class Measured(NamedTuple):
    """Seconds of a command: the lower quartile, since what disturbs only makes slower, and half of the distance of the quartiles."""

    seconds: float
    spread: float


class Case(NamedTuple):
    """An op with its inputs and options: what is launched."""

    op: Op
    inputs: tuple[AnySpec, ...]
    attributes: Attributes


class Bench:
    """A device opened to be measured. `with Bench(device, nbytes) as bench: bench.launches(case)`."""

    def __init__(self, device: Device, nbytes: int, seed: int = 0) -> None:
        backend = opens(device, f"{device.id!r} cannot be measured")
        self.device = device
        self.nbytes = nbytes
        self.live = backend.open(device, nbytes)
        self.stream = self.live.stream("compute")
        if hasattr(self.stream, "attend"):  # as it is in a run
            self.stream.attend(True)
        self.random = np.random.default_rng(seed)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *error: object) -> None:
        self.live.close()

    def launches(self, case: Case, budget: float = 0.1, batch: float = LEAST_SECONDS) -> Measured | None:
        """Seconds of a launch, one behind another. None where the case does not fit, or the kernel refuses it. budget: seconds it may take, about."""
        command = self.command(case)
        if command is None:
            return None
        try:
            return self.timed(command, budget, batch)
        except Exception:  # a kernel that refuses invented values teaches nothing
            return None

    def command(self, case: Case) -> Callable[[], None] | None:
        """What launches a case once, its inputs in place; None where it cannot be."""
        kernel = case.op.kernel_for(self.device, case.inputs)
        if kernel is None:
            return None
        outs = list(case.op.infer(case.inputs, case.attributes))
        forms = [array_form(s) for s in (*case.inputs, *outs)]
        if any(f is None or f.is_bounded for f in forms) and self.device.memory != HOST:
            return None
        scratch = case.op.workspace(case.inputs, outs, case.attributes) if case.op.workspace is not None else 0
        arrays: list[Any] = []
        at = 0
        for form in forms:
            nbytes = 0 if form is None else form.nbytes
            if at + stride_of(nbytes) + scratch > self.nbytes:
                return None
            arrays.append(None if form is None else self.live.array(at, form.bounds, form.dtype))
            at += stride_of(nbytes)
        workspace = self.live.array(at, (scratch,), np.uint8) if scratch else None
        given = arrays[: len(case.inputs)]
        if any(a is None for a in given):
            return None  # opaque inputs come from other tasks only
        for array, spec in zip(given, case.inputs, strict=True):
            self.stream.upload(self.invented(spec, case.inputs), array)
        self.stream.record().wait()
        outputs = arrays[len(case.inputs) :]

        def launch() -> None:
            self.stream.launch(kernel, given, list(outputs), workspace, case.attributes)

        return launch

    def invented(self, spec: AnySpec, beside: Sequence[AnySpec]) -> Any:
        """Values for an input: numbers around 1, and whole numbers that are indices into every other input (and labels of its last axis)."""
        assert isinstance(spec, Spec)
        if spec.dtype.kind == "b":
            return self.random.random(spec.bounds) < 0.5
        if spec.dtype.kind in "iu":
            extents = [n for s in beside if isinstance(s, Spec) and s.dtype.kind == "f" for n in s.bounds]
            return self.random.integers(0, max(min(extents, default=1), 1), spec.bounds).astype(spec.dtype)
        return (self.random.random(spec.bounds) + 0.5).astype(spec.dtype)

    def timed(self, command: Callable[[], None], budget: float, batch: float = LEAST_SECONDS) -> Measured:
        """Seconds of a command handed to the stream again and again. budget: seconds that it may take, on a device with memory of its own beside what

        it takes first: a kernel that is compiled for a tenth of a second would be tried once.
        """
        end = perf_counter() + budget
        self._run(command, 1)  # first use: programs are built, pages touched
        if self.device.memory != HOST:
            end = perf_counter() + budget
        once = self._run(command, 1)
        times = max(1, min(10_000, math.ceil(batch / max(once, 1e-7))))
        if batch > 0 and self.device.memory != HOST:
            return self._slope(command, times, end)
        found = [once] if times == 1 else []
        while len(found) < REPEATS and (perf_counter() < end or not found):
            found.append(self._run(command, times) / times)
        low, high = np.quantile(found, (0.25, 0.75))
        return Measured(float(low), float(high - low) / 2)

    def _slope(self, command: Callable[[], None], times: int, end: float) -> Measured:
        """Seconds of a command by what three times as many take more, the least of several tries of each: waking the host at their end drops out."""
        few: list[float] = []
        many: list[float] = []
        while len(few) < REPEATS and (perf_counter() < end or not few):
            few.append(self._run(command, times))
            many.append(self._run(command, 3 * times))
        seconds = (min(many) - min(few)) / (2 * times)
        low, high = np.quantile(many, (0.25, 0.75))
        # Where noise is larger than the difference, what all of them took is the upper limit.
        return Measured(seconds if seconds > 0 else min(many) / (3 * times), float(high - low) / (6 * times))

    def _run(self, command: Callable[[], None], times: int) -> float:
        start = perf_counter()
        for _ in range(times):
            command()
        self.stream.record().wait()
        return perf_counter() - start


# One device ---------------------------------------------------------------------------------------------------------------------

_MATMUL, _BIG = 512, 1 << 23
# Small products do not fill a GPU, and small copies stay in its cache: the largest are taken that take about so long.
_PRODUCT_SECONDS = 5e-3


def calibrate(device: Device, machine: Machine, budget: float = 40.0, tell: Callable[[str], None] | None = None) -> Calibration:
    """All figures and curves of a device, in about `budget` seconds at most. Dispatching is measured by who can plan and run (`hetsched.costing`).

    The device may not be in use. `tell` is called with what is being measured. What the time does not allow is `missing`; `calibrate_rest` does it.
    """
    say = tell or (lambda text: None)
    begun = perf_counter()
    room = min(MOST_BYTES, _capacity(machine, device))
    with tuned(), np.errstate(all="ignore"), Bench(device, room) as bench:
        say("launches, arithmetic and memory")
        launch = _launch_seconds(bench, device)
        flops, notes = _flops(bench, device)
        memory = _memory(bench, device)
        crossing = crossing_seconds() if device.shares_lanes else 0.0
        say("copies")
        links = _links(bench, machine, device)
        measured = replace(device, flops_per_second=flops, bytes_per_second=memory, launch_seconds=launch)
        curves, spreads, missing = _curves(bench, measured, CASES, begun + budget, say)
    say("lanes at work together")
    has_lanes = device.shares_lanes and device.lanes > 1
    together = {"lanes": lanes_together(device)} if has_lanes else {}
    lost = wide_seconds(device) if has_lanes and device.lanes in device.widths else 0.0
    return Calibration(
        device.id, device.fingerprint, launch, flops, memory, crossing_seconds=crossing, curves=curves, links=links, together=together,
        wide_seconds=lost, spread=median(spreads) if spreads else 0.2, took_seconds=perf_counter() - begun, notes=tuple(notes), missing=missing,
    )  # fmt: skip


def calibrate_rest(
    device: Device, machine: Machine, before: Calibration, budget: float = 40.0, tell: Callable[[str], None] | None = None
) -> Calibration:
    """`before` with the curves of what it is `missing`, in about `budget` seconds at most; its figures stand, for curves are relative to them."""
    begun = perf_counter()
    with tuned(), np.errstate(all="ignore"), Bench(device, min(MOST_BYTES, _capacity(machine, device))) as bench:
        measured = replace(
            device, flops_per_second=before.flops_per_second, bytes_per_second=before.bytes_per_second, launch_seconds=before.launch_seconds
        )
        cases = {name: CASES[name] for name in before.missing if name in CASES}
        curves, spreads, missing = _curves(bench, measured, cases, begun + budget, tell or (lambda text: None))
    known = {name: dict(by) for name, by in before.curves.items() if name in CASES}
    spread = median([before.spread, *spreads]) if spreads else before.spread
    return replace(before, curves=_with_families({**known, **curves}), spread=spread, missing=missing, took_seconds=perf_counter() - begun)


def _curves(
    bench: Bench, device: Device, cases: Mapping[str, Sequence[Mapping[str, Any]]], end: float, say: Callable[[str], None]
) -> tuple[dict[str, dict[str, Curve]], list[float], tuple[str, ...]]:
    """(op, or family of ops, -> dtype -> curve; the spread of each point; the ops that were not, or not wholly, measured by `end`)."""
    curves: dict[str, dict[str, Curve]] = {}
    spreads: list[float] = []
    missing: dict[str, None] = {}
    for name, sizes in cases.items():
        say(name)
        for dtype in [d for d in ("float32", "float64") if d in device.flops_per_second]:
            if dtype != "float32" and name not in _BOTH:
                continue
            left = end - perf_counter()
            if left <= 0:
                missing[name] = None
                continue
            curve = _curve(bench, device, name, dtype, sizes, min(left, 2.0), spreads)
            if curve is not None:
                curves.setdefault(name, {})[dtype] = curve
    return _with_families(curves), spreads, tuple(missing)


def _with_families(curves: dict[str, dict[str, Curve]]) -> dict[str, dict[str, Curve]]:
    return curves | {kin: curves[name] for kin, name in FAMILIES.items() if name in curves}


def _is_gpu(device: Device) -> bool:
    return device.hardware == "gpu" and device.memory != HOST


def _capacity(machine: Machine, device: Device) -> int:
    limit = machine.memory(device.memory).nbytes
    return MOST_BYTES if limit is None else max(limit // 4, 1 << 20)


def _launch_seconds(bench: Bench, device: Device) -> float:
    """Seconds of a call of the array library (or of a kernel) on next to nothing."""
    found = bench.launches(Case(find("tensor.add"), (Spec((8,)), Spec((8,))), {}), 0.05)
    return max(found.seconds, 1e-8) if found is not None else device.launch_seconds


def _flops(bench: Bench, device: Device) -> tuple[dict[str, float], list[str]]:
    """Operations a second by dtype, by the largest matrix product that takes little time; what the backend stated where it has no kernel."""
    out, notes = dict(device.flops_per_second), []
    for dtype in [d for d in ("float32", "float64", "float16") if d in out]:
        larger = [n for n in (8 * _MATMUL, 4 * _MATMUL, 2 * _MATMUL) if 2 * n**3 / out[dtype] < _PRODUCT_SECONDS] if _is_gpu(device) else []
        for n in (*larger, _MATMUL, _MATMUL // 4):
            case = Case(find("tensor.matmul"), (Spec((n, n), dtype), Spec((n, n), dtype)), find("tensor.matmul").check_attributes({}))
            found = bench.launches(case, 0.5)
            if found is not None:
                out[dtype] = 2.0 * n**3 / found.seconds
                break
        else:
            notes.append(f"no matrix product in {dtype}: its operations a second are those that the backend states")
    return out, notes


def _memory(bench: Bench, device: Device) -> float:
    """Bytes a second read and written by a copy within the device's memory, of what no cache holds."""
    most = bench.nbytes // 8 - 1024
    n = most if _is_gpu(device) and 8 * most / device.bytes_per_second < _PRODUCT_SECONDS else min(_BIG, bench.nbytes // 16)
    src, dst = bench.live.array(0, (n,), np.float32), bench.live.array(stride_of(4 * n), (n,), np.float32)
    bench.stream.upload(np.ones(n, np.float32), src)
    found = bench.timed(lambda: bench.stream.copy(src, dst), 0.3)
    return 8.0 * n / found.seconds


def _links(bench: Bench, machine: Machine, device: Device) -> dict[str, LinkFigures]:
    """The links between the host and the device's memory, each way, and both ways at once. A link between devices is measured from where it ends."""
    if device.memory == HOST:
        return {}
    n = min(1 << 25, bench.nbytes // 4)
    small, large = bench.live.array(0, (16,), np.uint8), bench.live.array(64, (n,), np.uint8)
    other = bench.live.array(stride_of(n) + 64, (n,), np.uint8)
    back = bench.live.stream("copy")
    few, many, more = np.ones(16, np.uint8), np.ones(n, np.uint8), np.ones(n, np.uint8)
    pinned = bench.live.pinned_array(n) if hasattr(bench.live, "pinned_array") else None
    out: dict[str, LinkFigures] = {}
    for way in ("up", "down"):

        def copy(host: Any, there: Any, way: str = way) -> None:
            if way == "up":
                bench.stream.upload(host, there)
            else:
                bench.stream.download(there, host)

        def locked_copy(way: str = way) -> None:
            (bench.stream.upload_pinned(pinned, large) if way == "up" else bench.stream.download_pinned(large, pinned))

        def both(way: str = way) -> None:
            copy(many, large, way)
            if way == "up":
                back.download(other, more)
            else:
                back.upload(more, other)
            back.record().wait()

        if getattr(bench.stream, "is_timed", False) and _is_gpu(device):  # the host would wait for longer than a small copy takes
            latency = lone_seconds(partial(copy, few, small), bench.stream, 20)
        else:
            latency = bench.timed(lambda: copy(few, small), 0.1, batch=0.0).seconds
        rate = n / max(bench.timed(lambda: copy(many, large), 0.4).seconds - latency, 1e-9)
        locked = n / max(bench.timed(locked_copy, 0.4).seconds - latency, 1e-9) if pinned is not None else None
        at_once = n / max(bench.timed(both, 0.4, batch=0.0).seconds - latency, 1e-9)
        ends = (HOST, device.memory) if way == "up" else (device.memory, HOST)
        if ends in {(x.src, x.dst) for x in machine.links}:
            out[machine.link(*ends).id] = LinkFigures(latency, rate, locked, at_once)
    return out


def _curve(
    bench: Bench, device: Device, name: str, dtype: str, cases: Sequence[Mapping[str, Any]], budget: float, spreads: list[float]
) -> Curve | None:
    op = find(name)
    points: list[tuple[float, float]] = []
    for case in cases:
        inputs = tuple(s if s.dtype.kind != "f" else Spec(s.shape, dtype) for s in case["inputs"])
        attributes = op.check_attributes(case.get("attributes", {}))
        found = bench.launches(Case(op, inputs, attributes), budget / len(cases))
        if found is None:
            continue
        work = op.work(inputs, list(op.infer(inputs, attributes)), attributes)
        peak = device.flops_per_second[dtype]
        ideal = max(work.flops / peak, (work.bytes_read + work.bytes_written) / device.bytes_per_second)
        if ideal <= 0:
            continue
        spreads.append(found.spread / found.seconds)
        points.append((ideal, max((found.seconds - op.calls_on(device) * device.launch_seconds) / ideal, LEAST_SLOWNESS)))
    points = sorted({round(x, 15): (x, y) for x, y in points}.values())
    return Curve(tuple(x for x, _ in points), tuple(y for _, y in points)) if points else None


# Several at once ----------------------------------------------------------------------------------------------------------------


def lanes_together(device: Device, seconds: float = 0.15, rounds: int = 4) -> float:
    """The share of its speed that a lane keeps when all lanes of a device of threads work: 1 where they share nothing, 1 / lanes for one core.

    The best of several rounds: a host that lends a core to others for a tenth of a second would make one core of two for every plan to come.
    """
    one = [lambda: _host_work(seconds / rounds)]
    pairs = [(_rate(one), _rate(one * device.lanes)) for _ in range(rounds)]
    alone, every = (max(rates) for rates in zip(*pairs, strict=True))
    return min(1.0, every / (alone * device.lanes)) if alone > 0 else 1.0


def wide_seconds(device: Device, rounds: int = 12, seconds: float = 4e-3) -> float:
    """What a product on all lanes takes more than its share of them promises, each time after lanes have worked by themselves for some milliseconds.

    The mean: the threads of BLAS must be woken, now and then on the core that waits for them, which a system notices after milliseconds.
    """
    a, y = np.ones((512, 512), np.float32), np.empty((512, 512), np.float32)

    def product() -> float:
        begin = perf_counter()
        np.matmul(a, a, out=y)
        return perf_counter() - begin

    with tuned():
        product()
        narrow = median(product() for _ in range(rounds))
        taken = []
        for _ in range(rounds):
            _rate([lambda: _host_work(seconds)] * device.lanes)
            with wide(device.lanes):
                taken.append(product())
    return max(sum(taken) / len(taken) - narrow / device.lanes, 0.0)


def work_together(a: Device, b: Device, seconds: float = 0.3) -> tuple[float, float]:
    """The shares of their speed that two devices keep when both work, one lane each."""
    with tuned():
        alone = [_device_work(d, seconds) for d in (a, b)]
        both = threading.Barrier(2)  # opening a device may take longer than the measurement
        rates: list[float] = [0.0, 0.0]

        def work(i: int, device: Device) -> None:
            rates[i] = _device_work(device, seconds, both)

        threads = [threading.Thread(target=work, args=(i, d), daemon=True) for i, d in enumerate((a, b))]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    shares = [min(1.0, now / one) if one > 0 else 1.0 for now, one in zip(rates, alone, strict=True)]
    return shares[0], shares[1]


def _rate(workers: Sequence[Callable[[], float]]) -> float:
    """Launches a second of all workers together."""
    rates: list[float] = []
    threads = [threading.Thread(target=lambda w=w: rates.append(w()), daemon=True) for w in workers]
    with tuned():
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    return sum(rates)


def _host_work(seconds: float) -> float:
    a = np.ones((192, 192), np.float32)
    y = np.empty_like(a)
    return _repeated(lambda: np.matmul(a, a, out=y), seconds)


def _device_work(device: Device, seconds: float, begin: threading.Barrier | None = None) -> float:
    """Launches a second; with `begin`, from when the other has opened its device as well."""
    try:
        with Bench(device, 1 << 24) as bench:
            n = 1 << 20
            op = find("tensor.exp")
            command = bench.command(Case(op, (Spec((n,)),), op.check_attributes({})))

            def once() -> None:
                if command is not None:
                    command()
                    bench.stream.record().wait()

            once()
            if begin is not None:
                begin.wait()
            return _repeated(once, seconds) if command is not None else 0.0
    except BaseException:
        if begin is not None:
            begin.abort()
        raise


def _repeated(action: Callable[[], object], seconds: float) -> float:
    begin = perf_counter()
    done = 0
    while perf_counter() < begin + seconds:
        action()
        done += 1
    return done / (perf_counter() - begin)


# What a first run needs ---------------------------------------------------------------------------------------------------------


def case_of(graph: Graph, task: int) -> Case | None:
    """The launch of a task as a case; None for what cannot be measured by itself: loops, views, effects outside, objects from other tasks.

    Nor are users' own ops: who knows what they do with invented values.
    """
    op = graph.task_ops[task]
    if not isinstance(op, Op) or op.view or not op.pure or not family(op):
        return None
    inputs = tuple(graph.value_specs[v] for v in graph.reads(task))
    if not all(isinstance(s, Spec) and not s.is_bounded for s in inputs):
        return None
    return Case(op, inputs, graph.task_attributes[task])


def measure_cases(device: Device, cases: Sequence[Case], budget: float, beside: bool = False) -> dict[int, Measured]:
    """Number of the case -> seconds, for as many cases as the budget (seconds) allows, in their order; on one lane of the device.

    beside: of a device of threads, what takes some time is measured while other lanes do the same: in a plan they work at once, and may share a
    core's units, its caches and memory bandwidth.
    """
    end = perf_counter() + budget
    out: dict[int, Measured] = {}
    need = max((_case_bytes(c) for c in cases), default=0)
    if not cases:
        return out
    room = min(max(need, 1 << 16), MOST_BYTES)
    others = min(device.lanes, MOST_LANES) - 1 if beside and device.shares_lanes else 0
    with tuned(), np.errstate(all="ignore"), ExitStack() as stack:
        bench = stack.enter_context(Bench(device, room))
        companions = [stack.enter_context(Bench(device, room, seed=1 + i)) for i in range(others)]
        for i, case in enumerate(cases):
            left = end - perf_counter()
            if left <= 0:
                break
            found = bench.launches(case, min(0.05, left / 4), batch=100e-6)
            if found is not None and found.seconds > LEAST_BESIDE and companions and left > 20 * found.seconds:
                with _working([c.command(case) for c in companions]):
                    found = bench.launches(case, min(0.05, left / 4), batch=100e-6) or found
            if found is not None:
                out[i] = found
    return out


@contextmanager
def _working(commands: Sequence[Callable[[], None] | None]) -> Iterator[None]:
    """While threads do these again and again."""
    over = False

    def work(command: Callable[[], None]) -> None:
        while not over:
            command()

    threads = [threading.Thread(target=work, args=(c,), daemon=True) for c in commands if c is not None]
    for t in threads:
        t.start()
    try:
        yield
    finally:
        over = True
        for t in threads:
            t.join()


def _case_bytes(case: Case) -> int:
    try:
        outs = list(case.op.infer(case.inputs, case.attributes))
        scratch = case.op.workspace(case.inputs, outs, case.attributes) if case.op.workspace is not None else 0
    except Exception:  # told when it is launched
        return 0
    return scratch + 64 + sum(stride_of(f.nbytes) for s in (*case.inputs, *outs) if (f := array_form(s)) is not None)


# What curves are measured with --------------------------------------------------------------------------------------------------

_BOTH = {"tensor.matmul", "tensor.add", "tensor.sum"}
_SIZES = (1 << 10, 1 << 14, 1 << 17, 1 << 20, 1 << 22)


def _flat(inputs: int, **attributes: Any) -> list[Mapping[str, Any]]:
    return [{"inputs": (Spec((n,)),) * inputs, "attributes": attributes} for n in _SIZES]


def _rows(*inputs: Callable[[int], Spec], **attributes: Any) -> list[Mapping[str, Any]]:
    """Matrices of 32 columns to 1,024 columns."""
    return [{"inputs": tuple(f(n) for f in inputs), "attributes": attributes} for n in _SIZES]


def _matrix(n: int) -> Spec:
    return Spec((n // 64, 64))


def _conv(n: int, rows: int = 28) -> dict[str, Any]:
    return {"inputs": (Spec((n, 8, rows, rows)), Spec((16, 8, 3, 3))), "attributes": {"padding": "same"}}


_PRODUCTS = ((16, 16, 16), (32, 64, 64), (128, 784, 10), (128, 128, 128), (256, 256, 256), (512, 512, 512), (64, 2048, 512))
CASES: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "tensor.matmul": [{"inputs": (Spec((a, b)), Spec((b, c)))} for a, b, c in _PRODUCTS],
    "nn.dense": [{"inputs": (Spec((a, b)), Spec((b, c)), Spec((c,)))} for a, b, c in _PRODUCTS],
    "tensor.add": _flat(2),
    "tensor.mul": _flat(2),
    "tensor.exp": _flat(1),
    "tensor.sqrt": _flat(1),
    "tensor.maximum": _flat(2),
    "tensor.scale": _flat(1, factor=2.0),
    "nn.relu": _flat(1),
    "nn.relu_grad": _flat(2),
    "nn.sigmoid": _flat(1),
    "nn.tanh": _flat(1),
    "tensor.sum": _flat(1),
    "tensor.mean": _flat(1),
    "tensor.max": _rows(_matrix, axes=(1,)),
    "tensor.argmax": _rows(_matrix, axis=1),
    "tensor.transpose": _rows(_matrix),
    "tensor.concat": _rows(_matrix, _matrix, axis=0),
    "tensor.gather": _rows(_matrix, lambda n: Spec((n // 64,), np.int64), axis=0),
    "nn.softmax": _rows(_matrix),
    "nn.log_softmax": _rows(_matrix),
    "nn.cross_entropy": _rows(_matrix, lambda n: Spec((n // 64,), np.int64)),
    "nn.mse": _rows(_matrix, _matrix),
    "nn.conv2d": [_conv(n) for n in (1, 8, 32)],
    "nn.max_pool2d": [{"inputs": (Spec((n, 16, 28, 28)),), "attributes": {"size": 2}} for n in (1, 8, 32)],
    "optim.sgd": _flat(2, lr=0.1),
    "optim.adam": [{"inputs": (*((Spec((n,)),) * 4), Spec((), np.int64)), "attributes": {"lr": 0.1}} for n in _SIZES[:-1]],
    "random.normal": [{"inputs": (), "attributes": {"shape": (n,), "seed": 1, "key": "x"}} for n in _SIZES],
    "random.uniform": [{"inputs": (), "attributes": {"shape": (n,), "seed": 1, "key": "x"}} for n in _SIZES],
}  # fmt: skip
# A family takes the curve of one of its ops where an op has none of its own.
FAMILIES = {
    "linear": "tensor.matmul", "elementwise": "tensor.add", "reduce": "tensor.sum", "shape": "tensor.transpose", "loss": "nn.softmax",
    "conv": "nn.conv2d", "pool": "nn.max_pool2d", "optimizer": "optim.sgd", "random": "random.normal", "data": "tensor.gather",
}  # fmt: skip
