"""The catalog: units, ranges, sources and dates of every figure; machines put together of its devices; `--what-if`; rooflines keep to the peaks."""

from __future__ import annotations

import re

import pytest

from hetsched.check.spans import can_run
from hetsched.errors import CommandLineError, MachineError
from hetsched.graph.graph import Graph
from hetsched.graph.op import Op, Work
from hetsched.machine import HOST
from hetsched.machine.assembled import read_cloud, read_device
from hetsched.machine.described import CATALOG, machine_names
from hetsched.machine.named import cloud_named, cloud_names, device_named, device_names, find, names, sources_of, what_if
from hetsched.placement.costs import RooflineCosts
from hetsched.placement.costs.roofline import DISK_BYTES_PER_SECOND
from hetsched.testing.graphs import random_graph

# On-chip memory of an IPU is far faster than any that is not on the chip.
MOST_BYTES_PER_SECOND = {"ipu": 1e14}
DERIVED = ("computed", "assumed", "chosen", "measured", "as ", "a lane", "those of")
WANTED = {"v100", "a100-40gb", "a100-80gb", "h100", "h200", "t4", "l4", "mi300x", "tpu-v4", "tpu-v5e", "ipu-gc200", "ipu-bow", "iris-xe"}


def test_the_devices_and_clouds_that_are_asked_for_are_there() -> None:
    assert set(device_names()) >= WANTED
    assert sum(device_named(name).is_processor for name in device_names()) >= 6
    rented = {a.device for name in cloud_names() for a in cloud_named(name).accelerators}
    assert rented >= {"v100", "a100-40gb", "h100", "h200", "t4", "l4", "mi300x", "tpu-v4", "tpu-v5e"}
    assert {name.partition("/")[0] for name in cloud_names()} == {"aws", "azure", "gcp"}


@pytest.mark.parametrize("name", names())
def test_every_figure_has_a_source_and_a_day_or_is_unverified(name: str) -> None:
    sources = sources_of(name)
    assert len({s.figure for s in sources}) == len(sources)
    for source in sources:
        derived = source.text.startswith(DERIVED)
        dated = re.fullmatch(r"20\d\d-\d\d-\d\d", source.read) is not None
        assert not source.is_verified or derived or (("https://" in source.text or "http://" in source.text) and dated), source


@pytest.mark.parametrize("name", device_names())
def test_no_figure_of_a_device_is_without_a_source(name: str) -> None:
    part = read_device(CATALOG / "devices" / f"{name}.yaml")
    given = part.model_dump(exclude_unset=True, exclude={"sources", "read", "hetsched_device", "name", "kind", "hardware", "languages", "unified"})
    figures = {f"{key}.{inner}" if isinstance(value, dict) and key.endswith("_link") else key for key, value in given.items()
               for inner in (value if isinstance(value, dict) else [""])}  # fmt: skip
    assert figures == set(part.sources)
    assert part.read is not None


@pytest.mark.parametrize("name", cloud_names())
def test_no_figure_of_a_cloud_is_without_a_source(name: str) -> None:
    part = read_cloud(CATALOG / f"{name}.yaml")
    figures = {"host.device", "host.vcpus", "host.nbytes"}
    figures |= {"accelerators"} if part.accelerators else set()
    figures |= {"price_per_hour"} if part.price_per_hour is not None else set()
    assert (set(part.sources), part.name) == (figures, name)
    assert part.read is not None


@pytest.mark.parametrize("name", names())
def test_units_and_ranges(name: str) -> None:
    machine = find(name)
    assert machine.price_per_hour is None or 0.01 < machine.price_per_hour < 200
    for device in machine.devices:
        whole = device.lanes if device.hardware == "cpu" else 1
        assert 1e9 < device.bytes_per_second * whole < MOST_BYTES_PER_SECOND.get(device.kind, 1e13)
        assert device.busy_watts is not None
        assert device.idle_watts is not None
        assert 1 <= device.busy_watts * whole <= 2000
        assert 0 < device.idle_watts <= device.busy_watts * whole
        assert 1e-7 <= device.launch_seconds <= 1e-4
        flops = device.flops_per_second
        assert all(1e9 < f * whole < 1e16 for f in flops.values())
        # Narrower types are never slower.
        ladder = [flops[kind] for kind in ("float16", "float32", "float64") if kind in flops]
        assert ladder == sorted(ladder, reverse=True)
    for link in machine.links:
        assert 1e-7 <= link.latency_seconds <= 1e-3
        assert 1e9 <= link.bytes_per_second <= 1e12
        fastest = max(d.bytes_per_second for d in machine.devices if d.memory in (link.src, link.dst) and d.memory != HOST)
        assert link.bytes_per_second <= fastest
    for memory in machine.memories:
        assert memory.nbytes is None or 5e8 < memory.nbytes < 4 << 40


@pytest.mark.parametrize("name", names())
def test_a_roofline_never_promises_less_than_peak_and_bandwidth_need(name: str) -> None:
    """Of every op of two random graphs, on every device of the machine, at every width."""
    machine = find(name)
    costs = RooflineCosts(machine)
    different = {(d.name, d.kind): d for d in machine.devices}.values()
    for seed in (0, 1):
        graph, _ = random_graph(seed, tasks=15, loops=False)
        for task in graph.tasks:
            op = task.op
            for device in different:
                if op.view or not can_run(graph, task.index, device):
                    continue
                ins, outs = [graph.spec(v) for v in task.inputs], [graph.spec(v) for v in task.outputs]
                work = Work(*op.work(ins, outs, task.attributes))
                for width in device.widths:
                    seconds = costs.launch(graph, task.index, device, width).seconds
                    rate = DISK_BYTES_PER_SECOND if op.waits else device.bytes_per_second * width
                    assert seconds >= (work.bytes_read + work.bytes_written) / rate
                    assert seconds >= work.flops / (max(device.flops_per_second.values()) * width)
    for link in machine.links:
        assert costs.copy(1 << 30, link).seconds >= (1 << 30) / link.bytes_per_second


def big_matmul(dtype: str) -> Graph:
    g = Graph.build()
    a = g.input("a", (2048, 2048), dtype)
    return g.output(g.op("tensor.matmul", a, a, name="c")).freeze()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_product_on_a_catalog_device_takes_what_its_peak_allows(dtype: str) -> None:
    """By hand: 2 * 2048**3 operations at the peak, and what the calls of the library cost."""
    for name, peak in (("h100", {"float32": 66.9e12, "float64": 33.5e12}), ("t4", {"float32": 8.141e12, "float64": 0.2544e12})):
        machine = find(name)
        device = next(d for d in machine.devices if d.hardware == "gpu")
        graph = big_matmul(dtype)
        op = graph.task("c").op
        assert isinstance(op, Op)
        seconds = RooflineCosts(machine).launch(graph, 0, device, 1).seconds
        assert seconds == pytest.approx(2 * 2048**3 / peak[dtype] + op.calls_on(device) * device.launch_seconds, rel=1e-12)


def test_a_cloud_is_its_processor_its_accelerators_and_a_price_for_the_whole() -> None:
    machine = find("AWS/P5.48xlarge")  # upper and lower case are the same
    assert machine.name == "aws/p5.48xlarge"
    assert machine.price_per_hour == 55.04
    assert [d.id for d in machine.devices] == ["cpu", *(f"cuda:{i}" for i in range(8))]
    assert machine.device("cpu").lanes == 96  # two virtual CPUs are one core
    assert machine.memory("cuda:3").nbytes == 80 * 10**9
    assert machine.link("cuda:0", "cuda:7").bytes_per_second == 4.5e11
    assert machine.link(HOST, "cuda:7").bytes_per_second == 6.4e10
    assert len(machine.links) == 9 * 8


def test_devices_without_a_link_of_their_own_copy_by_the_host() -> None:
    machine = find("aws/g6.12xlarge")
    across, up = machine.link("cuda:0", "cuda:1"), machine.link("cuda:0", HOST)
    assert across.bytes_per_second == up.bytes_per_second
    assert across.latency_seconds == pytest.approx(2 * up.latency_seconds)


def test_a_device_by_its_name_stands_in_a_host() -> None:
    assert [d.id for d in find("l4").devices] == ["cpu", "cuda:0"]
    assert [d.id for d in find("ryzen-9-7950x").devices] == ["cpu"]
    assert any(s.figure == "cpu.lanes" and s.text.startswith("assumed") for s in sources_of("l4"))


def test_what_if_adds_and_leaves_out() -> None:
    base = find("aws/g6.xlarge")
    more = what_if(base, ["+L4:2"])
    assert [d.id for d in more.devices] == ["cpu", "cuda:0", "cuda:1", "cuda:2"]
    assert more.price_per_hour is None  # nobody has a list price for it
    assert what_if(more, ["-cuda:1"]).name == "aws/g6.xlarge +L4:2 -cuda:1"
    less = what_if(base, ["-gpu"])
    assert [d.id for d in less.devices] == ["cpu"]
    assert not less.links
    assert [m.name for m in less.memories] == [HOST]
    assert less.price_per_hour == base.price_per_hour  # it is rented whole
    mixed = what_if(find("workstation"), ["+tpu-v5e", "-cuda:0", "+l4"])
    assert [d.id for d in mixed.devices] == ["cpu", "tpu:0", "cuda:0"]
    assert mixed.link("tpu:0", "cuda:0").bytes_per_second == 1.6e10


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ("+h10", MachineError, r"no device 'h10' in the catalog; did you mean 'h100'\?"),
        ("-cuda:7", MachineError, r"no device 'cuda:7' to leave out; did you mean 'cuda:0'\?"),
        ("l4", CommandLineError, r"--what-if wants \+NAME, \+NAME:N or -DEVICE, got 'l4'"),
        ("+l4:0", CommandLineError, "the number of devices must be from 1 to 64, got '0'"),
        ("+l4:x", CommandLineError, "the number of devices must be from 1 to 64, got 'x'"),
        ("+epyc-milan", MachineError, "is a processor, and a machine has one"),
    ],
)
def test_what_if_that_makes_no_sense_is_told(change: str, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        what_if(find("aws/g6.xlarge"), [change])


def test_leaving_out_everything_is_told() -> None:
    with pytest.raises(MachineError, match="without 'any' the machine 'laptop' has no device left"):
        what_if(find("laptop"), ["-any"])


def test_unknown_names_are_told_with_the_nearest() -> None:
    with pytest.raises(MachineError, match=r"did you mean 'aws/p5.48xlarge'\?"):
        find("aws/p5.48xlrge")


def test_mistakes_in_files_of_the_catalog_are_told(tmp_path) -> None:
    text = (CATALOG / "devices" / "l4.yaml").read_text(encoding="utf-8")
    bad = tmp_path / "l4.yaml"
    bad.write_text(text.replace("busy_watts: 72", "bussy_watts: 72").replace("host_link: {latency_seconds: 1e-5,", "host_link: {latency: 1e-5,"))
    with pytest.raises(MachineError) as error:
        read_device(bad)
    told = str(error.value)
    assert "unknown key 'bussy_watts'; did you mean 'busy_watts'?" in told
    assert "unknown key 'latency'; did you mean 'latency_seconds'?" in told
    bad.write_text(re.sub(r"^host_link:.*\n", "", text, flags=re.MULTILINE))
    with pytest.raises(MachineError, match="an accelerator needs 'host_link'; give it"):
        read_device(bad)


def test_described_machines_keep_their_price(tmp_path) -> None:
    from hetsched.machine.described import read_machine, write_machine

    write_machine(find("aws/g6.xlarge"), tmp_path / "m.yaml")
    assert read_machine(tmp_path / "m.yaml") == find("aws/g6.xlarge")
    assert set(machine_names()) == {"laptop", "server", "workstation"}
