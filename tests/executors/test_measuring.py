"""Devices are measured through their backends, all in the same way."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import hetsched as hs
from hetsched import costing
from hetsched.costing import calibrate_device, costs_for
from hetsched.dispatching import dispatching
from hetsched.errors import PlacementError
from hetsched.executors import measuring
from hetsched.executors.backends._common import lone_seconds, row_seconds
from hetsched.executors.measuring import Bench, Case, Measured, calibrate, calibrate_rest, case_of, measure_cases
from hetsched.graph.graph import Loop
from hetsched.graph.ops import find
from hetsched.graph.spec import Spec
from hetsched.machine import Device, Link, Machine, MemoryNode, Resource
from hetsched.machine.calibration import RESUME_SECONDS, Calibration, Curve, complaints, load, save
from hetsched.needs import BUILD_SECONDS, MOST_TIMES, first_need, not_worth_building
from hetsched.placement.costs.history import History, Lesson
from hetsched.placement.costs.kinds import device_key, kind_of
from hetsched.placement.costs.known import KnownCosts

CPU = Device("cpu", "cpu", lanes=1, languages=("host", "array"), flops_per_second={"float32": 1e10}, shares_lanes=True, fingerprint="x")
GPU = Device("gpu:0", "emulated", memory="gpu:0", languages=("array",), flops_per_second={"float32": 1e11})
LINKS = (Link("host", "gpu:0"), Link("gpu:0", "host"))
HERE = Machine((CPU, GPU), LINKS, (MemoryNode("host"), MemoryNode("gpu:0", 1 << 24)))
ADDED = {"float32": Curve((1e-6, 1e-3), (3.0, 2.0))}
PLENTY = 1e4  # seconds to measure in; what is measured ends by its repeats


@pytest.fixture
def quick(monkeypatch, tmp_path, quiet):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HETSCHED_LEARN", "1")
    monkeypatch.setattr(measuring, "REPEATS", 2)
    monkeypatch.setattr(measuring, "LEAST_SECONDS", 1e-5)
    monkeypatch.setattr(measuring, "MOST_BYTES", 1 << 24)
    monkeypatch.setattr(measuring, "CASES", {name: measuring.CASES[name][:2] for name in ("tensor.add", "tensor.gather")})


def small_graph():
    b = hs.Graph.build()
    x = b.input("x", (64, 64))
    y = b.op("tensor.matmul", x, x)
    return b.output(b.op("nn.softmax", b.op("tensor.matmul", y, x))).freeze()


@pytest.mark.parametrize("device", ["cpu", "gpu:0"])
def test_every_kind_of_device_is_measured_in_the_same_way(quick, device):
    found = calibrate(HERE.device(device), HERE, budget=PLENTY)
    assert found.launch_seconds > 0
    assert found.flops_per_second["float32"] > 1e6
    assert found.bytes_per_second > 1e6
    assert set(found.curves) == {"tensor.add", "elementwise", "tensor.gather", "data"}
    assert set(found.links) == (set() if device == "cpu" else {"host->gpu:0", "gpu:0->host"})
    for link in found.links.values():
        assert link.latency_seconds > 0
        assert link.both_ways_bytes_per_second > 0


@pytest.mark.parametrize("staging", ["0", "1"])
def test_an_opencl_device_is_calibrated_and_from_pinned_memory_where_it_stages_copies(quick, monkeypatch, staging):
    opencl = pytest.importorskip("hetsched.executors.backends.opencl", reason="PyOpenCL is not installed")
    devices = opencl.find().devices
    if not devices:
        pytest.skip("no OpenCL device works here")
    monkeypatch.setenv("HETSCHED_OPENCL_STAGING", staging)
    device = replace(devices[0], uses={})
    links = (Link("host", device.memory), Link(device.memory, "host"))
    machine = Machine((CPU, device), links, (MemoryNode("host"), MemoryNode(device.memory, 1 << 24)))
    found = calibrate(device, machine, budget=0.5)
    assert set(found.links) == {f"host->{device.memory}", f"{device.memory}->host"}
    for link in found.links.values():
        assert (link.pinned_bytes_per_second is not None) == (staging == "1")
        assert link.pinned_bytes_per_second is None or link.pinned_bytes_per_second > 1e6


def test_time_that_is_over_is_told(quick):
    found = calibrate(CPU, HERE, budget=0.0)
    assert found.curves == {}
    assert found.missing == ("tensor.add", "tensor.gather")
    (told,) = complaints(found)
    assert told.startswith("the time was over before 2 ops were measured: tensor.add, tensor.gather; `hetsched calibrate cpu` again goes on")


@pytest.mark.parametrize("device", ["cpu", "gpu:0"])
def test_what_the_time_did_not_allow_is_measured_later_and_all_else_stands(quick, device):
    where = HERE.device(device)
    first = calibrate(where, HERE, budget=0.0)
    half = calibrate_rest(where, HERE, first, budget=0.0)
    assert (half.missing, half.curves) == (first.missing, {})
    known = replace(first, missing=("tensor.gather",), curves={"tensor.add": ADDED, "elementwise": ADDED})
    whole = calibrate_rest(where, HERE, known, budget=PLENTY)
    assert whole.missing == ()
    assert set(whole.curves) == {"tensor.add", "elementwise", "tensor.gather", "data"}
    assert whole.curves["tensor.add"] == ADDED
    figures = ("launch_seconds", "flops_per_second", "bytes_per_second", "links", "taken_at")
    assert [getattr(whole, f) for f in figures] == [getattr(first, f) for f in figures]


def test_a_second_calibration_goes_on_unless_all_is_measured_or_old_or_spoilt(quick, monkeypatch):
    monkeypatch.setattr(costing, "Crowding", lambda: nullcontext(SimpleNamespace(share=0.0)))
    monkeypatch.setattr(costing, "dispatching", lambda device, machine: {})
    device = replace(CPU, fingerprint="a")
    machine = replace(HERE, devices=(device,))

    def calibrated(budget, **options):
        return costing.calibrate_device(device, machine, budget, **options)

    first, remarks = calibrated(0.0)
    assert first.missing == ("tensor.add", "tensor.gather")
    assert load(device) == first, "it is kept with what it lacks"
    second, remarks = calibrated(PLENTY)
    assert second.launch_seconds == first.launch_seconds
    assert second.missing == ()
    assert any("went on with what the time did not allow: tensor.add, tensor.gather were measured now" in r for r in remarks)
    third, remarks = calibrated(0.0)
    assert third.missing == first.missing, "all was measured: it begins anew"
    assert not any("went on" in r for r in remarks)
    for spoilt in (replace(third, taken_at=third.taken_at - 2 * RESUME_SECONDS), replace(third, crowded=0.9), replace(third, whole=False)):
        assert any("`hetsched calibrate cpu` again measures all anew" in r for r in complaints(spoilt))
        save(device, spoilt)
        assert not any("went on" in r for r in calibrated(0.0)[1])
    assert any("nothing more was measured" in r for r in calibrated(0.0)[1])
    assert not any("went on" in r for r in calibrated(0.0, fresh=True)[1])


def test_invented_whole_numbers_are_indices(quick):
    op = find("tensor.gather")
    with Bench(CPU, 1 << 20) as bench:
        indices = bench.invented(Spec((1000,), np.int64), (Spec((30, 7)), Spec((1000,), np.int64)))
        assert indices.min() >= 0
        assert indices.max() < 7
        assert bench.launches(Case(op, (Spec((30, 7)), Spec((1000,), np.int64)), op.check_attributes({"axis": 0}))).seconds > 0


def test_what_does_not_fit_or_has_no_kernel_is_left_out(quick):
    add = find("tensor.add")
    huge = Case(add, (Spec((1 << 20,)), Spec((1 << 20,))), {})
    with Bench(CPU, 1 << 16) as bench:
        assert bench.launches(huge) is None
    assert measure_cases(replace(CPU, languages=("nothing",)), [huge], 0.1) == {}
    with pytest.raises(PlacementError, match="cannot be measured"):
        Bench(replace(CPU, kind="abacus"), 1)


def test_users_ops_views_and_loops_are_not_launched_to_be_measured():
    b = hs.Graph.build()
    x = b.input("x", (4, 4))
    mine = hs.Op("mine.twice", ("x",), ("y",), infer=lambda s, a: [s[0]], work=lambda i, o, a: hs.Work(1, 1, 1),
                 kernels={"array": lambda xp, i, o, w, a: xp.add(i[0], i[0], out=o[0])})  # fmt: skip
    b.op(mine, x, name="mine")
    b.op("tensor.reshape", x, shape=(16,), name="view")
    b.output(b.op("tensor.exp", x, name="exp"))
    graph = b.freeze()
    assert case_of(graph, graph.task_index["mine"]) is None
    assert case_of(graph, graph.task_index["view"]) is None
    assert case_of(graph, graph.task_index["exp"]) is not None


def test_a_first_run_measures_what_it_needs_once(quick):
    graph, machine = small_graph(), Machine((CPU,))
    history = History()
    brought = first_need(graph, machine, [CPU], {}, history, PLENTY)
    assert brought["cpu"].dispatch_seconds > 0
    assert not brought["cpu"].whole
    assert load(CPU) == brought["cpu"]
    assert {row.op: row.runs for row in history.known([device_key(CPU)]).values()} == {"tensor.matmul": 0, "nn.softmax": 0}
    assert first_need(graph, machine, [CPU], brought, history, PLENTY) == {}
    sources = {costs_for(machine, graph).launch(graph, t, CPU).source for t in range(len(graph))}
    assert sources == {"a measurement alone"}
    assert {costs_for(machine, graph, learn=False).launch(graph, t, CPU).source for t in range(len(graph))} == {"roofline"}


SHARED = replace(CPU, uses={"cores": 1.0})
OPENCL = Device(
    "opencl:0", "opencl", memory="opencl:0", languages=("opencl",), flops_per_second={"float32": 1e11}, uses={"cores": 2.0}, fingerprint="y"
)
BOTH = Machine(
    (SHARED, OPENCL), (Link("host", "opencl:0"), Link("opencl:0", "host")), (MemoryNode("host"), MemoryNode("opencl:0", 1 << 30)),
    (Resource("cores", 2.0),),
)  # fmt: skip


def products(n, where=None, op="tensor.matmul", turns=0):
    """Of n x n matrices: 2 n**3 operations, on `SHARED` 2e-10 n**3 seconds; in a loop of so many turns."""
    b = hs.Graph.build()
    x = b.input("x", (n, n))
    if not turns:
        return b.output(b.op(op, x, x, where=where)).freeze()
    body = hs.Graph.build()
    s = body.input("s", (n, n))
    body.output(body.op(op, s, s, where=where), "s2")
    (last,) = b.loop(Loop(body.freeze(), turns, carried=(("s", "s2"),)), x)
    return b.output(last).freeze()


only_there = hs.kernel(
    "mine.own", {"x": "in float32[n, n]", "y": "in float32[n, n]", "z": "out float32[n, n]", "n": "value int64 = n"}, opencl="-", size="n"
)


@pytest.mark.parametrize(
    ("graph", "changes", "only", "is_left_out"),
    [
        (products(64), {}, None, True),
        (products(64), {}, "any", True),
        (products(64), {}, "opencl", False),  # asked for
        (products(64), {}, "cpu", False),  # nothing to be said of it
        (products(64, hs.Where(("opencl", "cpu"))), {}, None, False),
        (products(64, hs.Where(("any",))), {}, None, True),
        (products(64, op=only_there), {}, None, False),  # threads cannot do it
        (products(64), {"uses": {}}, None, False),  # it has hardware of its own
        (products(64, turns=100), {}, None, True),
        (products(64, turns=10_000), {}, None, False),  # longer than building takes
        (products(1000), {}, None, False),
    ],
)
def test_programs_are_not_built_for_what_is_done_sooner_without(graph, changes, only, is_left_out):
    machine = replace(BOTH, devices=(SHARED, replace(OPENCL, **changes)))
    assert not_worth_building(graph, KnownCosts(machine), only) == ({"opencl:0": BUILD_SECONDS} if is_left_out else {})
    calibrated = Calibration("opencl:0", "y", 1e-6, {"float32": 1e11}, 1e10)
    assert not_worth_building(graph, KnownCosts(machine, {"opencl:0": calibrated}), only) == {}


def test_a_device_whose_programs_are_not_worth_building_is_neither_measured_nor_planned_for_and_the_plan_says_so(quick):
    b = hs.Graph.build()
    x = b.input("x", (64, 64))
    graph = b.output(b.op("tensor.reshape", b.op("tensor.matmul", x, x), shape=(4096,))).freeze()
    assert 2 * 64**3 / 1e10 * MOST_TIMES < BUILD_SECONDS
    plan = hs.plan(graph, BOTH, measure=True)
    assert plan.owners == {"cpu"}
    assert plan.notes[-1].startswith("opencl:0 was left out: its programs would take longer to build than all this takes; -d opencl:0 uses it")
    assert {row.op for row in History().known([device_key(SHARED)]).values()} >= {"tensor.matmul"}
    assert not History().known([device_key(OPENCL)])
    asked = hs.plan(graph, BOTH, only="opencl")
    assert "opencl:0" in asked.owners
    assert not any("left out" in note for note in asked.notes)


def test_dispatching_is_measured_for_steps_turns_and_loops(quick):
    found = dispatching(CPU, Machine((CPU,)), tasks=12, turns=40)
    assert found["dispatch_seconds"] > 0
    assert min(found.values()) >= 0
    assert dispatching(replace(CPU, languages=("nothing",)), Machine((CPU,))) == {}


def test_a_device_that_became_slow_is_measured_again_before_it_is_avoided(tmp_path, monkeypatch):
    b = hs.Graph.build()
    x = b.input("x", (64, 64))
    graph = b.output(b.op("tensor.exp", b.op("tensor.matmul", x, x))).freeze()
    history, machine, key = History(tmp_path / "costs.sqlite"), Machine((CPU,)), device_key(CPU)

    def ran(factor):
        kinds = [kind_of(graph, task) for task in range(2)]
        return history.learn([Lesson(key, k.op, k.text, 1, k.dtype, k.flops, k.nbytes, factor * 1e-4, 0.0, 1) for k in kinds])

    def look(seconds):
        monkeypatch.setattr(
            "hetsched.needs.measure_cases", lambda device, cases, budget, beside: {i: Measured(seconds, 0.0) for i in range(len(cases))}
        )
        first_need(graph, machine, [CPU], {}, history, PLENTY)
        return history.factors([key])[key]

    ran(1.0)
    (drift,) = ran(4.0)
    assert drift.factor == pytest.approx(4.0, rel=1e-2)
    assert look(3.9e-4) == pytest.approx(4.0, rel=1e-2), "it is slow (and half of it is forgotten in six hours, so a little less by now)"
    ran(4.0)
    ran(16.0)
    assert look(1e-4) == pytest.approx(1.0, rel=1e-2), "it was disturbed, and is as it was"
    assert {round(row.seconds, 6) for row in history.known([key]).values()} == {1e-4}


def test_a_calibration_beside_other_work_is_told(quick, monkeypatch):
    class Crowded:
        share = 0.4

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    monkeypatch.setattr("hetsched.costing.Crowding", Crowded)
    machine = Machine((CPU,), (), (MemoryNode("host"),))
    _, remarks = calibrate_device(CPU, machine, budget=0.1)
    assert "other work had the cores for 40 % of the time, so these figures are too slow; calibrate again when the machine is idle" in remarks
    monkeypatch.setattr(Crowded, "share", 0.01)
    assert not any("other work" in remark for remark in calibrate_device(CPU, machine, budget=0.1)[1])


class Clocked:
    """A stream on a virtual clock: what is handed to it takes `seconds` each, and the host needs a second to see that it is done."""

    def __init__(self, seconds):
        self.seconds, self.device, self.begun, self.waited = seconds, 0.0, 0.0, 0

    def do(self):
        self.device += self.seconds

    def record(self):
        self.waited += 1
        span, self.begun = (self.begun, self.device), self.device
        return SimpleNamespace(wait=lambda: None, span=lambda: span)


def test_what_the_host_waits_for_is_no_part_of_a_row_on_a_device():
    stream = Clocked(0.25)
    assert row_seconds(stream.do, stream, 8, tries=2) == 0.25
    assert stream.device == (1 + 2 * 8) * 0.25
    assert lone_seconds(stream.do, stream, 5) == 0.25
    assert stream.waited == 1 + 2 + 6


@pytest.mark.parametrize(("memory", "tries"), [("gpu:0", measuring.REPEATS), ("host", 0)])
def test_what_a_device_takes_first_is_not_taken_off_the_time_to_measure_in(monkeypatch, memory, tries):
    now, runs = [0.0], []
    monkeypatch.setattr(measuring, "perf_counter", lambda: now[0])
    bench = Bench.__new__(Bench)
    bench.device = replace(GPU, memory=memory)

    def run(command, times):
        took = times * 1e-3 if runs else 1.0  # a compiler
        runs.append(times)
        now[0] += took
        return took

    monkeypatch.setattr(bench, "_run", run)
    found = bench.timed(lambda: None, 0.1)
    assert found.seconds == pytest.approx(1e-3)
    assert len(runs) == 2 + 2 * tries
