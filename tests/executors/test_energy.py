"""RAPL and NVML: the first with a powercap folder of real files that the test makes, the second with a module that answers like pynvml."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import hetsched as hs
from hetsched.errors import CommandLineError
from hetsched.executors import energy
from hetsched.executors.energy import Counter, Measured, NvmlMeter, Watch, nvml_meters, rapl_meters, watch_of
from hetsched.graph.graph import Graph
from hetsched.machine import Device, Link, Machine, MemoryNode
from hetsched.machine.watts import of_environment, with_watts
from hetsched.report.energy import energy_lines, energy_of, energy_record


def domain(root: Path, folder: str, name: str, microjoules: int, wraps_at: int = 262_143_328_850) -> Path:
    """A domain as Linux shows it."""
    place = root / folder
    place.mkdir(parents=True)
    (place / "name").write_text(name + "\n")
    (place / "energy_uj").write_text(f"{microjoules}\n")
    (place / "max_energy_range_uj").write_text(f"{wraps_at}\n")
    return place / "energy_uj"


@pytest.fixture
def powercap(tmp_path: Path) -> Path:
    """Two packages with memory and cores, the platform, and the second way to the first package."""
    root = tmp_path / "powercap"
    domain(root, "intel-rapl:0", "package-0", 1_000_000)
    domain(root, "intel-rapl:0:0", "core", 500)
    domain(root, "intel-rapl:0:1", "dram", 2_000_000)
    domain(root, "intel-rapl:1", "package-1", 3_000_000)
    domain(root, "intel-rapl:1:0", "dram", 4_000_000)
    domain(root, "intel-rapl:2", "psys", 9_000_000)
    domain(root, "intel-rapl-mmio:0", "package-0", 1_000_000)
    (root / "dtpm").mkdir()
    return root


def add(root: Path, folder: str, microjoules: int) -> None:
    file = root / folder / "energy_uj"
    file.write_text(str(int(file.read_text()) + microjoules))


def test_packages_and_their_memory_are_added_up_and_nothing_twice(powercap):
    meters, problems = rapl_meters(powercap)
    assert [m.name for m in meters] == ["package-0", "dram", "package-1", "dram#1"]
    assert not problems
    watch = Watch(meters)
    watch.begin()
    for folder, joules in (("intel-rapl:0", 10), ("intel-rapl:0:1", 2), ("intel-rapl:1", 5), ("intel-rapl:1:0", 1), ("intel-rapl:2", 100)):
        add(powercap, folder, joules * 1_000_000)
    add(powercap, "intel-rapl-mmio:0", 10_000_000)
    found = watch.end()
    assert found.joules == pytest.approx({"package-0": 10, "dram": 2, "package-1": 5, "dram#1": 1})
    assert found.of("cpu") == pytest.approx(18)
    assert found.of("cuda:0") is None
    assert watch.measured == found


def test_what_was_counted_before_is_no_part_of_it(powercap):
    meters, _ = rapl_meters(powercap)
    watch = Watch(meters)
    add(powercap, "intel-rapl:0", 7_000_000)
    watch.begin()
    add(powercap, "intel-rapl:0", 1_000_000)
    assert watch.end().joules["package-0"] == pytest.approx(1)


def test_a_counter_that_wraps_around_goes_on(tmp_path):
    root = tmp_path / "powercap"
    file = domain(root, "intel-rapl:0", "package-0", 900, wraps_at=1000)
    (meter,), _ = rapl_meters(root)
    values = []
    for value in (950, 50, 40, 999, 0):  # around after 950, after 50 (by 990) and after 999
        file.write_text(str(value))
        values.append(round(meter.read() * 1e6))
    assert values == [50, 150, 1140, 2099, 2100]


def test_counters_never_run_backwards():
    now = iter([100, 90, 120])
    counter = Counter(lambda: next(now), 0, 1.0)  # no wrap known
    assert [counter.read(), counter.read()] == [0.0, 30.0]


def test_files_that_only_root_may_read_are_told_with_the_way_out(powercap, monkeypatch):
    real = Path.read_text

    def guarded(self: Path, *args, **options) -> str:
        if self.name == "energy_uj":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return real(self, *args, **options)

    monkeypatch.setattr(Path, "read_text", guarded)
    meters, problems = rapl_meters(powercap)
    assert not meters
    assert len(problems) == 4
    assert "may be read by root only; let everybody read it (sudo chmod a+r" in problems[0]
    assert str(powercap / "intel-rapl:0" / "energy_uj") in problems[0]


def test_folders_with_nonsense_are_told(tmp_path):
    root = tmp_path / "powercap"
    domain(root, "intel-rapl:0", "package-0", 1).write_text("lots")
    (root / "intel-rapl:1").mkdir()
    meters, problems = rapl_meters(root)
    assert not meters
    assert [p.startswith("RAPL: ") for p in problems] == [True, True]
    assert rapl_meters(tmp_path / "nothing") == ([], [])


def test_a_meter_that_goes_away_costs_the_figure_and_not_the_run(powercap):
    meters, _ = rapl_meters(powercap)
    watch = Watch(meters)
    watch.begin()
    (powercap / "intel-rapl:1" / "energy_uj").unlink()
    found = watch.end()
    assert "package-1" not in found.joules
    assert "package-0" in found.joules
    assert "package-1 cannot be read any more" in found.problems[0]


class FakeNvml:
    """GPUs that answer like pynvml. `counts`: False for one from before Volta."""

    class NVMLError(Exception):
        pass

    def __init__(self, counts: bool = True) -> None:
        self.counts, self.millijoules, self.milliwatts, self.asked = counts, 5000, 100_000, []

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        self.asked.append(index)
        return f"gpu {index}"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.asked.append(uuid)
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if not self.counts:
            raise self.NVMLError("Not Supported")
        return self.millijoules

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return self.milliwatts


def test_gpus_that_count_their_energy(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvml = FakeNvml()
    meters, problems = nvml_meters(["cuda:0", "cuda:1"], nvml)
    assert not problems
    watch = Watch(meters)
    watch.begin()
    nvml.millijoules += 2500
    found = watch.end()
    assert found.joules == {"cuda:0": 2.5, "cuda:1": 2.5}
    assert found.sources["cuda:0"] == "NVML"


def test_gpus_that_only_know_their_watts_are_sampled():
    """By the trapezoidal rule: 1 s from 100 to 200 W, then 2 s at 200 W."""
    nvml = FakeNvml(counts=False)
    clock = iter([0.0, 1.0, 3.0])
    meter = NvmlMeter(nvml, "gpu", "cuda:0", lambda: next(clock))
    nvml.milliwatts = 200_000
    assert meter.read() == pytest.approx(150)
    assert meter.read() == pytest.approx(550)
    assert meter.source == "NVML, sampled watts"


def test_gpus_keep_their_numbers_where_cuda_hides_some(monkeypatch):
    nvml = FakeNvml()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-abc")
    nvml_meters(["cuda:0", "cuda:1"], nvml)
    assert nvml.asked == [3, "GPU-abc"]


def test_without_nvml_the_way_out_is_told(monkeypatch):
    def none(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(energy, "import_module", none)
    assert nvml_meters(["cuda:0"]) == ([], ["NVML: the package nvidia-ml-py is not installed; pip install nvidia-ml-py to measure GPUs"])
    assert nvml_meters([]) == ([], [])
    broken = SimpleNamespace(nvmlInit=lambda: (_ for _ in ()).throw(FakeNvml.NVMLError("Driver Not Loaded")), NVMLError=FakeNvml.NVMLError)
    assert nvml_meters(["cuda:0"], broken) == ([], ["NVML: Driver Not Loaded"])


def machine(watts: bool) -> Machine:
    cpu = Device(
        "cpu", "cpu", 1, languages=("host", "array"), shares_lanes=True, busy_watts=10.0 if watts else None, idle_watts=2.0 if watts else None
    )
    gpu = Device("cuda:0", "cuda", memory="cuda:0", hardware="gpu", busy_watts=100.0, idle_watts=20.0)
    links = (Link("host", "cuda:0"), Link("cuda:0", "host"))
    return Machine((cpu, gpu), links, (MemoryNode("host"), MemoryNode("cuda:0")))


def test_only_what_the_machine_has_is_watched(powercap):
    assert {m.device for m in watch_of(machine(True), powercap).meters} >= {"cpu"}
    only_gpu = Machine((Device("x:0", "emulated"),))
    assert not watch_of(only_gpu, powercap).meters


def relu() -> Graph:
    g = Graph.build()
    return g.output(g.op("nn.relu", g.input("a", (64, 64)), name="r")).freeze()


def test_measured_and_estimated_energy_are_told_apart():
    """The processor measured, the idle GPU by its watts."""
    result = hs.run(hs.plan(relu(), machine(watts=True), only="cpu"), {"a": np.ones((64, 64), "f4")}, executor="cpu")
    trace = result.trace
    measured = Measured({"package-0": 3.0, "dram": 0.5}, {"cpu": ("package-0", "dram")}, {"package-0": "RAPL", "dram": "RAPL"})
    found = energy_of(trace, measured)
    idle = 20.0 * trace.makespan
    assert found.joules == pytest.approx(3.5 + idle)
    assert found.devices["cpu"].is_measured
    assert not found.devices["cuda:0"].is_measured
    assert found.devices["cuda:0"].idle_joules == pytest.approx(idle)
    assert not found.is_measured
    (line,) = energy_lines(found)
    assert "cpu 3.5 J measured (RAPL package-0 + dram)" in line
    assert "estimated from its watts" in line
    assert "with idle power" in line
    record = energy_record(found)
    assert record["idle_included"] is True
    assert record["devices"]["cpu"] == {"joules": 3.5, "measured": True, "source": "RAPL package-0 + dram", "idle_joules": None}
    assert record["devices"]["cuda:0"]["measured"] is False


def test_an_estimate_is_busy_and_idle_watts_by_hand():
    trace = hs.run(hs.plan(relu(), machine(watts=True), only="cpu"), {"a": np.ones((64, 64), "f4")}, executor="cpu").trace
    busy = sum(s.finish - s.start for s in trace.spans)
    found = energy_of(trace, None)
    cpu = found.devices["cpu"]
    assert cpu.joules == pytest.approx(10.0 * busy + 2.0 * (trace.makespan - busy))
    assert cpu.idle_joules == pytest.approx(2.0 * (trace.makespan - busy), abs=1e-12)


def test_what_is_not_known_is_said_with_the_way_out():
    trace = hs.run(hs.plan(relu(), machine(watts=False), only="cpu"), {"a": np.ones((64, 64), "f4")}, executor="cpu").trace
    found = energy_of(trace, Measured(problems=("RAPL: may be read by root only",)))
    assert found.joules is None
    (line,) = energy_lines(found)
    assert line.startswith("energy: not known; cuda:0 ")
    assert "RAPL: may be read by root only" in line
    assert "no watts are stated (--watts cpu=BUSY/IDLE, HETSCHED_WATTS, or --machine FILE)" in line


def test_an_opencl_device_on_the_processor_is_in_its_meter():
    cpu = Device("cpu", "cpu", 1, languages=("host", "array"), shares_lanes=True)
    pocl = Device("opencl:0", "opencl", memory="opencl:0", hardware="cpu")
    both = Machine((cpu, pocl), (Link("host", "opencl:0"), Link("opencl:0", "host")), (MemoryNode("host"), MemoryNode("opencl:0")))
    trace = hs.run(hs.plan(relu(), both, only="cpu"), {"a": np.ones((64, 64), "f4")}, executor="cpu").trace
    found = energy_of(trace, Measured({"package-0": 3.0}, {"cpu": ("package-0",)}, {"package-0": "RAPL"}))
    assert found.joules == pytest.approx(3.0)
    assert found.is_measured


def test_watts_given_by_the_user_make_an_estimate(monkeypatch):
    pocl = Device("opencl:0", "opencl", memory="opencl:0", hardware="cpu")
    cpu = Device("cpu", "cpu", 2, languages=("host", "array"), shares_lanes=True)
    both = Machine((cpu, pocl), (Link("host", "opencl:0"), Link("opencl:0", "host")), (MemoryNode("host"), MemoryNode("opencl:0")))
    given = with_watts(both, ["cpu=60/10"])
    assert (given.device("cpu").busy_watts, given.device("cpu").idle_watts) == (30.0, 10.0)
    assert (given.device("opencl:0").busy_watts, given.device("opencl:0").idle_watts) == (60.0, 0.0), "it is the processor"
    trace = hs.run(hs.plan(relu(), given, only="cpu"), {"a": np.ones((64, 64), "f4")}, executor="cpu").trace
    found = energy_of(trace, None)
    assert found.joules is not None
    assert 10.0 * trace.makespan * 0.999 <= found.joules <= 60.0 * trace.makespan
    assert not found.is_measured
    monkeypatch.setenv("HETSCHED_WATTS", "cpu=60/10, cuda:7=300/40")
    assert of_environment(both) == given, "it is set once for many machines"


@pytest.mark.parametrize("text", ["cpu", "cpu=", "cpu=-1", "cpu=5/9", "cpu=a/b", "=5/1", "cpu=inf", "nosuch=5"])
def test_watts_that_make_no_sense_are_refused(text, monkeypatch):
    with pytest.raises(CommandLineError, match="watts"):
        with_watts(machine(watts=False), [text])


def test_a_run_measures_where_it_is_asked_to(powercap, monkeypatch):
    monkeypatch.setattr(energy, "watch_of", lambda m: Watch(rapl_meters(powercap)[0]))
    result = hs.run(relu(), {"a": np.ones((64, 64), "f4")}, energy=True)
    assert result.energy is not None
    assert set(result.energy.joules) == {"package-0", "dram", "package-1", "dram#1"}
    assert hs.run(relu(), {"a": np.ones((64, 64), "f4")}).energy is None


def test_every_run_of_the_command_tells_its_energy(tmp_path, capsys):
    from hetsched.cli import main

    file = str(Path(__file__).parents[2] / "pipelines" / "matmul_conv.yaml")
    assert main(["run", file, "-o", str(tmp_path), "--machine", "workstation", "--emulate"]) == 0
    assert "energy: " in capsys.readouterr().out
    assert main(["run", file, "-o", str(tmp_path), "--machine", "workstation", "--emulate", "--format", "json"]) == 0
    import json

    record = json.loads(capsys.readouterr().out)["energy"]
    assert set(record["devices"]) == {"cpu", "cuda:0"}
    assert record["devices"]["cuda:0"]["source"] == "watts"
    assert record["joules"] > 0
