"""Estimates by the best source: runs, regression, curves, the roofline; what a trace teaches."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

import hetsched as hs
from hetsched.graph.graph import Loop
from hetsched.machine import Device, Link, Machine, MemoryNode
from hetsched.machine.calibration import Calibration, Curve, LinkFigures, applied, complaints, load, save
from hetsched.placement.costs.history import ALONE, SOUND, Known
from hetsched.placement.costs.kinds import Kind, device_key, kind_of, link_key, turn_kind
from hetsched.placement.costs.known import KnownCosts
from hetsched.placement.costs.lessons import _lesson, lessons
from hetsched.placement.costs.regression import fit
from hetsched.placement.costs.roofline import RooflineCosts
from hetsched.timeline import Copy, Lane, Launch, Replica, Span, Timeline

CPU = Device("cpu", "cpu", lanes=2, languages=("host", "array"), flops_per_second={"float32": 1e10}, bytes_per_second=1e10, shares_lanes=True,
             widths=(1, 2), launch_seconds=1e-6, fingerprint="abc")  # fmt: skip
GPU = Device("gpu:0", "cuda", memory="gpu:0", languages=("array",), flops_per_second={"float32": 1e12}, bytes_per_second=1e11, fingerprint="def")
HERE = Machine((CPU, GPU), (Link("host", "gpu:0"), Link("gpu:0", "host")), (MemoryNode("host"), MemoryNode("gpu:0")))


def graph_of(n=1024, op="tensor.add"):
    b = hs.Graph.build()
    x, y = b.input("x", (n,)), b.input("y", (n,))
    return b.output(b.op(op, x, y, name="t")).freeze()


def row(seconds, graph, runs=3, spread=0.0):
    kind = kind_of(graph, 0)
    return (device_key(CPU), kind.text, 1), Known(kind.op, kind.dtype, kind.flops, kind.nbytes, seconds, spread, runs)


def calibration(**figures):
    return Calibration("cpu", "abc", 2e-6, {"float32": 1e10}, 1e10, **figures)


def test_without_knowledge_it_is_the_roofline():
    graph = graph_of()
    assert KnownCosts(HERE).launch(graph, 0, CPU) == RooflineCosts(HERE).launch(graph, 0, CPU)
    assert KnownCosts(HERE).launch(graph, 0, CPU).source == "roofline"
    assert KnownCosts(HERE).copy(1000, HERE.links[0]).source == "roofline"


def test_runs_come_first_with_their_spread():
    graph = graph_of()
    costs = KnownCosts(HERE, {"cpu": calibration(dispatch_seconds=1e-5)}, dict([row(3e-3, graph, spread=1e-3)]))
    found = costs.launch(graph, 0, CPU)
    assert found.seconds == pytest.approx(3.01e-3), "the kernel, and what the executor adds"
    assert (found.spread, found.source) == (pytest.approx(1e-3), "3 runs")
    assert costs.launch(graph, 0, GPU).source == "roofline"


def test_one_bad_history_does_not_decide_everything():
    large = dict(row(3 * RooflineCosts(HERE).launch(graph_of(n), 0, CPU).seconds, graph_of(n)) for n in (1 << 20, 1 << 21, 1 << 22))
    mul = graph_of(1 << 20, "tensor.mul")
    plain = RooflineCosts(HERE).launch(mul, 0, GPU).seconds
    assert KnownCosts(HERE, {}, large).launch(mul, 0, GPU).seconds == pytest.approx(3 * plain, rel=0.05)
    off = {k: v._replace(seconds=1e6 * v.seconds) for k, v in large.items()}
    assert KnownCosts(HERE, {}, off).launch(mul, 0, GPU).seconds == pytest.approx(10 * plain), "one bad history does not decide everything"


def test_the_overhead_of_tiny_ops_and_the_wait_for_files_say_nothing_of_large_ones():
    tiny = dict(row(1e-3, graph_of(n)) for n in (1, 2, 4, 8, 16))
    waits = {(device_key(CPU), f"data.npy {n}", 1): Known("data.npy", "float32", 0.0, 1e6 * n, 9.0, 0.0, 1) for n in (1, 2, 3)}
    mul = graph_of(1 << 20, "tensor.mul")
    for seen in (tiny, waits):
        assert KnownCosts(HERE, {}, seen).launch(mul, 0, CPU).seconds == pytest.approx(RooflineCosts(HERE).launch(mul, 0, CPU).seconds)


def test_what_was_measured_alone_is_less_sure():
    graph = graph_of()
    found = KnownCosts(HERE, {}, dict([row(3e-3, graph, runs=0)])).launch(graph, 0, CPU)
    assert found.source == "a measurement alone"
    assert found.spread >= 0.1 * found.seconds


def test_unseen_shapes_are_on_the_line_through_those_seen():
    seen = dict(row(1e-5 + 1e-9 * n, graph_of(n)) for n in (1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18))
    costs = KnownCosts(HERE, {}, seen)
    found = costs.launch(graph_of(100_000), 0, CPU)
    assert found.source == "regression over shapes"
    assert found.seconds == pytest.approx(1e-5 + 1e-9 * 100_000, rel=0.05)
    assert costs.launch(graph_of(10_000_000), 0, CPU).source == "roofline", "too far from what was seen"
    assert costs.launch(graph_of(100_000, "tensor.mul"), 0, CPU).source == "roofline", "another op"


@pytest.mark.parametrize(
    "rows",
    [
        [(1e3, 1.0), (1e4, 2.0), (1e5, 3.0)],  # too few
        [(1e3, 1.0), (1.1e3, 1.0), (1.2e3, 1.0), (1.3e3, 1.0)],  # too near to each other
        [(1e3, 1.0), (1e4, 50.0), (1e5, 2.0), (1e6, 900.0)],  # no line
    ],
)
def test_a_fit_without_enough_spread_is_not_trusted(rows):
    assert fit([Known("op", "float32", work, work, seconds, 0.0, 1) for work, seconds in rows]) is None


def test_no_part_of_a_fit_is_negative():
    found = fit([Known("op", "float32", w, 8 * w, s, 0.0, 1) for w, s in ((1e3, 2e-6), (1e4, 3e-6), (1e5, 2e-5), (1e6, 2e-4))])
    assert found is not None
    assert min(found.constant, found.per_flop, found.per_byte) >= 0
    assert found.seconds(1e6, 8e6) == pytest.approx(2e-4, rel=0.2)


def test_a_curve_stands_between_runs_and_the_roofline():
    graph = graph_of(1 << 20)
    ideal = 3 * 4 * (1 << 20) / 1e10
    curve = Curve((ideal / 100, ideal * 100), (4.0, 1.0))
    costs = KnownCosts(HERE, {"cpu": calibration(curves={"tensor.add": {"float32": curve}, "elementwise": {"float32": Curve((1.0,), (3.0,))}})})
    found = costs.launch(graph, 0, CPU)
    assert found.source == "a calibrated curve"
    assert found.seconds == pytest.approx(2e-6 + 2 * ideal), "half way between 4 and 1 on a logarithmic scale"
    other = costs.launch(graph_of(1 << 20, "tensor.mul"), 0, CPU)
    assert other.source == "the calibrated curve of its family"
    assert other.seconds == pytest.approx(2e-6 + 3 * ideal)
    assert other.spread / other.seconds > found.spread / found.seconds


def test_a_device_of_which_nothing_is_known_does_not_look_faster_for_that():
    graphs = [graph_of(1 << n) for n in (18, 20, 22)]
    rough = RooflineCosts(HERE)
    seen = dict(row(5 * rough.launch(g, 0, CPU).seconds, g) for g in graphs)
    other = graph_of(1 << 16, "tensor.mul")
    costs = KnownCosts(HERE, {}, seen)
    for device in (CPU, GPU):
        assert costs.launch(other, 0, device).seconds == pytest.approx(rough.launch(other, 0, device).seconds * 5, rel=0.3)
    assert KnownCosts(HERE, {}, dict([row(1.0, graphs[0])])).launch(other, 0, GPU) == rough.launch(other, 0, GPU), "one kind tells little"


def test_a_device_that_was_seen_to_be_slower_is_slower_in_what_was_not_run_since():
    graph = graph_of()
    once = KnownCosts(HERE).launch(graph, 0, CPU).seconds
    assert KnownCosts(HERE, factors={device_key(CPU): 4.0}).launch(graph, 0, CPU).seconds == pytest.approx(4 * once)


def test_tasks_of_a_loop_share_what_a_turn_costs_and_steps_of_a_plan_do_not():
    graph = graph_of()
    body = graph_of()
    costs = KnownCosts(HERE, {"cpu": calibration(dispatch_seconds=1e-5, turn_seconds=2e-6, whole=False)}, dict([row(1e-3, graph)]))
    costs.in_body(body)
    assert costs.launch(graph, 0, CPU).seconds == pytest.approx(1e-3 + 1e-5)
    assert costs.launch(body, 0, CPU).seconds == pytest.approx(1e-3 + 2e-6)


def test_a_turn_that_was_measured_scales_its_tasks():
    b = hs.Graph.build()
    x = b.op("tensor.exp", b.input("x", (64,)), name="often")
    body = b.output(b.op("tensor.sqrt", x, name="seldom")).freeze()
    seen = {(device_key(CPU), turn_kind(body), 1): Known("turn", "", 0.0, 0.0, 3e-3, 0.0, 2)}
    for task, seconds in ((0, 1e-3), (1, 2e-3)):
        kind = kind_of(body, task)
        seen[device_key(CPU), kind.text, 1] = Known(kind.op, kind.dtype, kind.flops, kind.nbytes, seconds, 0.0, 2)
    costs = KnownCosts(HERE, {"cpu": calibration(turn_seconds=1.0)}, seen)
    costs.in_body(body, {"seldom": 4})
    both = [costs.launch(body, t, CPU).seconds for t in (0, 1)]
    assert both == [pytest.approx(3e-3), pytest.approx(2e-3)], "a turn is measured without what runs every fourth time only"
    costs = KnownCosts(HERE, {"cpu": calibration(turn_seconds=1.0)}, seen)
    costs.in_body(body)
    assert [costs.launch(body, t, CPU).seconds for t in (0, 1)] == [pytest.approx(1e-3), pytest.approx(2e-3)]


def test_wide_launches_keep_the_proportion_of_the_roofline_until_they_are_measured():
    b = hs.Graph.build()
    x = b.input("x", (512, 512))
    graph = b.output(b.op("tensor.matmul", x, x)).freeze()
    rough = RooflineCosts(HERE)
    ratio = rough.launch(graph, 0, CPU, 2).seconds / rough.launch(graph, 0, CPU, 1).seconds
    kind = kind_of(graph, 0)
    seen = {(device_key(CPU), kind.text, 1): Known(kind.op, kind.dtype, kind.flops, kind.nbytes, 0.1, 0.0, 2)}
    assert KnownCosts(HERE, {}, seen).launch(graph, 0, CPU, 2).seconds == pytest.approx(0.1 * ratio)
    seen[device_key(CPU), kind.text, 2] = Known(kind.op, kind.dtype, kind.flops, kind.nbytes, 0.07, 0.0, 2)
    assert KnownCosts(HERE, {}, seen).launch(graph, 0, CPU, 2).seconds == pytest.approx(0.07)
    assert math.isinf(KnownCosts(HERE, {}, seen).launch(graph_of(), 0, CPU, 2).seconds)


def test_copies_are_on_the_line_through_those_seen():
    link = HERE.links[0]
    key = link_key(link, HERE)
    seen = {(key, f"copy {n}", 1): Known("copy", "uint8", 0.0, float(n), 2e-5 + n * 1e-9, 0.0, 1) for n in (100, 1000, 100_000, 10_000_000)}
    costs = KnownCosts(HERE, {}, seen)
    assert costs.copy(1_000_000, link).seconds == pytest.approx(2e-5 + 1e-3, rel=0.01)
    assert costs.copy(1_000_000, link).source == "regression over shapes"
    assert costs.copy(1_000_000, HERE.links[1]).source == "roofline"


# Traces ------------------------------------------------------------------------------------------------------------------------


def trace_of(*spans, attributed=()):
    return Timeline(graph_of(), HERE, spans, measured=True, attributed=frozenset(attributed))


def launch(start, finish, device="cpu"):
    node = "host" if device == "cpu" else "gpu:0"
    return Span((Lane(device, 0),), Launch(0, 0, (Replica(0, 0, node),), (Replica(2, 0, node),)), start, finish)


def test_a_trace_teaches_launches_and_copies():
    copy = Span((Lane("host->gpu:0", 0, "copy"),), Copy(0, 0, Replica(0, 0, "host"), Replica(0, 0, "gpu:0")), 0.0, 0.5)
    found = {x.device: x for x in lessons(trace_of(launch(0.0, 2.0), copy, launch(0.5, 0.6, "gpu:0")))}
    assert found["cpu|abc"].seconds == 2.0
    assert found["gpu:0|def"].seconds == pytest.approx(0.1)
    assert (found["host->gpu:0|def"].seconds, found["host->gpu:0|def"].nbytes) == (0.5, 4096.0)


def test_shares_of_a_step_teach_nothing():
    assert lessons(trace_of(launch(0.0, 2.0), attributed=(0,))) == []


def test_described_devices_teach_nothing():
    described = replace(HERE, devices=(replace(CPU, fingerprint=""), replace(GPU, fingerprint="")))
    assert lessons(replace(trace_of(launch(0.0, 2.0)), machine=described)) == []


def test_a_run_times_every_task_of_a_plan_and_of_some_turns_of_a_loop():
    body = hs.Graph.build()
    x = body.input("x", (64,))
    body.output(body.op("tensor.exp", body.op("tensor.scale", body.op("tensor.sqrt", x), factor=0.1)), name="y")
    b = hs.Graph.build()
    first = b.op("tensor.add", b.input("x", (64,)), b.input("y", (64,)))
    (last,) = b.loop(hs.Loop(body.freeze(), 200, carried=(("x", "y"),)), b.op("tensor.exp", first))
    graph = b.output(last).freeze()
    machine = Machine((replace(CPU, lanes=1, widths=(1,)),))
    trace = hs.run(hs.plan(graph, machine), {"x": [1.0] * 64, "y": [2.0] * 64}).trace
    taught = {x.op: x.launches for x in lessons(trace)}
    assert {"tensor.add", "tensor.exp", "tensor.sqrt", "tensor.scale", "turn", "begin"} == set(taught)
    assert 5 <= taught["tensor.sqrt"] <= 20
    (inner,) = trace.loops.values()
    assert 0 < len(inner.attributed) < len(inner.spans)


# Calibrations ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_a_calibration_is_kept_for_its_device_and_fingerprint(cache):
    found = calibration(curves={"tensor.add": {"float32": Curve((1.0, 2.0), (3.0, 4.0))}}, links={"a->b": LinkFigures(1e-5, 1e9, None, 2e9)})
    assert load(CPU) is None
    assert save(CPU, found)
    assert load(CPU) == found
    assert load(replace(CPU, fingerprint="new driver")) is None
    assert load(replace(CPU, fingerprint="")) is None
    (file,) = (cache / "hetsched" / "calibration").iterdir()
    file.write_text(file.read_text()[:-10])
    assert load(CPU) is None, "a file that is cut short is none"


def test_what_cannot_be_is_told():
    found = calibration(links={"host->gpu:0": LinkFigures(1e-5, 2e10)})
    assert "more than the memory" in complaints(found)[0]
    slow = replace(calibration(), flops_per_second={"float32": 1e8})
    assert "busy" in complaints(slow, calibration())[0]
    assert complaints(calibration(), calibration()) == []
    old = calibration()
    assert "days ago" in complaints(old, now=old.taken_at + 100 * 86400)[0]


def test_measured_figures_replace_those_of_the_machine():
    links = {"host->gpu:0": LinkFigures(1e-3, 5e8)}
    gpu = Calibration("gpu:0", "def", 5e-6, {"float32": 7e11}, 9e10, links=links)
    machine = applied(HERE, {"gpu:0": gpu})
    assert machine.device("gpu:0").flops_per_second == {"float32": 7e11}
    assert machine.link("host", "gpu:0").bytes_per_second == 5e8
    assert machine.link("gpu:0", "host") == HERE.link("gpu:0", "host")
    assert machine.device("cpu") == CPU


def test_lanes_that_add_nothing_are_not_counted_as_cores():
    from hetsched.machine import Resource

    machine = replace(HERE, devices=(replace(CPU, uses={"cores": 1.0}), GPU), resources=(Resource("cores", 2.0),))
    for share, cores in ((1.0, 2.0), (0.9, 2.0), (0.5, 1.0)):
        assert applied(machine, {"cpu": calibration(together={"lanes": share})}).resources[0].capacity == cores


def test_a_device_that_takes_all_cores_takes_all_that_are_counted():
    """Else no task could ever run on it: two of one core."""
    from hetsched.machine import Resource

    both = (replace(CPU, uses={"cores": 1.0}), replace(GPU, uses={"cores": 2.0}))
    machine = applied(replace(HERE, devices=both, resources=(Resource("cores", 2.0),)), {"cpu": calibration(together={"lanes": 0.5})})
    assert [d.uses["cores"] for d in machine.devices] == [1.0, 1.0]
    plan = hs.plan(graph_of(), machine, only="gpu:0", learn=False)
    assert plan.device_of(0) == "gpu:0"


CARD = Device("cuda:0", "cuda", memory="cuda:0", languages=("cuda", "array"), flops_per_second={"float32": 1e15}, bytes_per_second=1e15,
              launch_seconds=9e-6, replay_seconds=2e-6, fingerprint="card")  # fmt: skip
CARDS = Machine((CPU, CARD), (Link("host", "cuda:0"), Link("cuda:0", "host")), (MemoryNode("host"), MemoryNode("cuda:0")))


def in_loop(op, *shapes, attributes=None):
    """A graph of one task, and the same as the body of a loop."""
    graphs = []
    for _ in range(2):
        b = hs.Graph.build()
        given = [b.input(f"x{i}", shape, dtype) for i, (shape, dtype) in enumerate(shapes)]
        graphs.append(b.output(b.op(op, *given, name="t", **(attributes or {})), "y").freeze())
    Loop(graphs[1], 4)
    return graphs


def test_a_launch_in_a_loop_costs_what_a_node_of_a_graph_does():
    for costs in (RooflineCosts(CARDS), KnownCosts(CARDS), KnownCosts(CARDS, {"cuda:0": Calibration("cuda:0", "card", 9e-6, {}, 1e15, 5e-5)})):
        plain, body = in_loop("tensor.add", ((4,), "float32"), ((4,), "float32"))
        dispatch = 5e-5 if isinstance(costs, KnownCosts) and costs.calibrations else 0.0
        assert costs.launch(plain, 0, CARD, 1).seconds == pytest.approx(9e-6 + dispatch, rel=1e-3)
        assert costs.launch(body, 0, CARD, 1).seconds == pytest.approx(2e-6, rel=1e-3)
        unlike = replace(CARD, replay_seconds=None)
        assert costs.launch(body, 0, unlike, 1).seconds == pytest.approx(9e-6 + dispatch, rel=1e-3)


def test_calls_of_the_array_library_do_not_count_where_a_kernel_in_cuda_does_it():
    plain, body = in_loop("nn.softmax", ((4, 4), "float32"))
    calls = plain.task_ops[0].calls
    assert calls > 3
    costs = RooflineCosts(CARDS)
    assert costs.launch(plain, 0, CARD, 1).seconds == pytest.approx(9e-6, rel=1e-3)
    assert costs.launch(body, 0, CARD, 1).seconds == pytest.approx(2e-6, rel=1e-3)
    assert costs.launch(plain, 0, replace(CARD, languages=("array",)), 1).seconds == pytest.approx(calls * 9e-6, rel=1e-3)
    plain, body = in_loop("nn.sigmoid", ((4,), "float32"))  # one kernel where launches are put together
    assert costs.launch(plain, 0, CARD, 1).seconds == pytest.approx(6 * 9e-6, rel=1e-3)
    assert costs.launch(body, 0, CARD, 1).seconds == pytest.approx(2e-6, rel=1e-3)


def test_what_was_launched_alone_is_not_what_a_loop_takes():
    plain, body = in_loop("tensor.add", ((4,), "float32"), ((4,), "float32"))
    kind = kind_of(plain, 0)

    def costs(seconds, runs):
        row = Known(kind.op, kind.dtype, kind.flops, kind.nbytes, seconds, 0.0, runs, SOUND if runs else ALONE)
        return KnownCosts(CARDS, {}, {(device_key(CARD), kind.text, 1): row})

    assert costs(12e-6, 0).launch(plain, 0, CARD).seconds == pytest.approx(12e-6)
    assert costs(12e-6, 0).launch(body, 0, CARD).seconds == pytest.approx(5e-6)
    assert costs(8e-6, 0).launch(body, 0, CARD).seconds == pytest.approx(2e-6)
    assert costs(1e-6, 0).launch(body, 0, CARD).seconds == pytest.approx(1e-6)
    assert costs(5e-3, 0).launch(body, 0, CARD).seconds == pytest.approx(5e-3, rel=0.01)
    assert costs(12e-6, 2).launch(body, 0, CARD).seconds == pytest.approx(12e-6)


@pytest.mark.parametrize(("seconds", "mean", "launches"), [
    ([1.0, 2.0, 1.0, 2.0, 100.0], 1.5, 5),  # one is far off
    ([1.0, 2.0, 1.0, 2.0, 7.0], 2.6, 5),
    ([1.0, 2.0, 100.0], 103 / 3, 3),  # too few to tell
    ([1.0, 100.0, 1.0, 100.0], 50.5, 4),
])  # fmt: skip
def test_one_launch_that_is_far_off_does_not_count_among_some(seconds, mean, launches):
    found = _lesson("key", 1, Kind("op", "op", "float32", 0.0, 0.0), seconds)
    assert found.seconds == pytest.approx(mean)
    assert found.launches == launches
