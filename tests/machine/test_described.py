from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import yaml

from hetsched.cli.entry import main
from hetsched.errors import FileError, MachineError
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode, Resource
from hetsched.machine.described import CATALOG, machine_named, machine_names, read_machine, write_machine
from hetsched.testing.graphs import random_machine

SMALL = """\
hetsched_machine: 1
name: small
memories: [{name: host, nbytes: 16 GiB}]
devices:
  - {id: cpu, kind: cpu, lanes: 4, languages: [host, array], flops_per_second: {float32: 9e10}, bytes_per_second: 1e10}
"""


def read(tmp_path: Path, text: str | bytes) -> Machine:
    file = tmp_path / "m.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_machine(file)


def refused(tmp_path: Path, text: str | bytes) -> list[str]:
    with pytest.raises(MachineError) as caught:
        read(tmp_path, text)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{tmp_path / 'm.yaml'}:") for line in lines), lines
    return [line.removeprefix(f"{tmp_path / 'm.yaml'}:") for line in lines]


def test_a_small_machine(tmp_path: Path) -> None:
    machine = read(tmp_path, SMALL)
    device = Device("cpu", "cpu", lanes=4, languages=("host", "array"), flops_per_second={"float32": 9e10}, bytes_per_second=1e10)
    assert machine == Machine((device,), memories=(MemoryNode(HOST, 16 << 30),), name="small")


@pytest.mark.parametrize(
    ("text", "nbytes"), [("123", 123), ("24 GB", 24 * 10**9), ("1.5 KiB", 1536), ("2MiB", 2 << 20), ("1 tb", 10**12), ("~", None)]
)
def test_bytes_may_carry_a_unit(tmp_path: Path, text: str, nbytes: int | None) -> None:
    assert read(tmp_path, SMALL.replace("16 GiB", text)).memory(HOST).nbytes == nbytes


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    full = Machine(
        (
            Device("cpu", "cpu", 4, 2, HOST, "a: b # ü", "cpu", ("host", "array"), {"float32": 1e9 / 3, "int64": 5e8}, 7e9, 1e-7, 3e-6, True,
                   (1, 2, 4), {"cores": 1.0}, 10.5, 3.0, 0.25),
            Device("no", "opencl", memory="opencl:0", hardware="gpu", languages=("opencl",), unified=True, replay_seconds=1.5e-6),
        ),
        (Link(HOST, "opencl:0", 0.0, 1e9, 0), Link("opencl:0", HOST, engines=2)),
        (MemoryNode(HOST), MemoryNode("opencl:0", 5)),
        (Resource("cores", 3.5),),
        "1e3",
    )  # fmt: skip
    for machine in [full, *(random_machine(seed) for seed in range(25))]:
        write_machine(machine, tmp_path / "m.yaml")
        assert read_machine(tmp_path / "m.yaml") == machine


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "kind: cpu",
            "knid: cpu",
            ["5:5: 'devices[0].kind' is missing; give it", "5:15: unknown key 'knid'; did you mean 'kind'? known: always_on, busy_watts, "],
        ),
        ("name: small", "nmae: small", ["2:1: unknown key 'nmae'; did you mean 'name'? known: devices, "]),
        (
            "kind: cpu",
            "kind: cpu, hardware: gpuu",
            ["5:36: devices[0].hardware: 'gpuu' is not allowed; did you mean 'gpu'? known: accelerator, cpu, gpu"],
        ),
        (
            "[host, array]",
            "[host, arrays]",
            ["5:54: devices[0].languages[1]: 'arrays' is not allowed; did you mean 'array'? known: array, cuda, host, opencl"],
        ),
        ("{float32: 9e10}", "{flaot32: 9e10}", ["5:80: devices[0].flops_per_second: unknown dtype 'flaot32'; did you mean 'float32'? known: "]),
        ("{float32: 9e10}", "{float32: -1}", ["5:90: devices[0].flops_per_second.float32: input should be greater than 0, got -1"]),
        ("bytes_per_second: 1e10", "bytes_per_second: fast", ["5:115: devices[0].bytes_per_second: input should be a valid number"]),
        ("lanes: 4", "lanes: 0", ["5:33: devices[0].lanes: input should be greater than or equal to 1, got 0"]),
        ("lanes: 4", "lanes: 1000000000", ["5:33: devices[0].lanes: input should be less than or equal to 4096, got 1000000000"]),
        (
            "lanes: 4",
            "lanes: 4, busy_watts: 5, idle_watts: 50",
            ["5:63: devices[0].idle_watts: a device draws no more idle (50 W) than with all 4 lanes at work (20 W); correct one of them"],
        ),
        ("lanes: 4", "lanes: 2.5", ["5:33: devices[0].lanes: input should be a valid integer"]),
        ("lanes: 4", "memory: hsot", ["5:34: device 'cpu': no memory node 'hsot'; did you mean 'host'? known: host"]),
        ("lanes: 4", "uses: {cores: 1}", ["5:33: device 'cpu': no resource 'cores'"]),
        ("16 GiB", "16 GaB", ["3:33: memories[0].nbytes: unknown unit 'GaB'; did you mean 'gb'? known: "]),
        ("hetsched_machine: 1", "hetsched_machine: 2", ["1:19: hetsched_machine: 2 is not allowed; known: 1"]),
        ("hetsched_machine: 1\n", "", ["1:1: 'hetsched_machine' is missing; give it"]),
        ("name: small", "name: small\nname: big", ["3:1: key 'name' stands twice; remove one"]),
        ("name: small", "name: &a small", ["2:7: anchors and aliases are not allowed"]),
        ("name: small", "name: !!str small", ["2:7: tags are not allowed, got 'tag:yaml.org,2002:str'; remove it"]),
        ("lanes: 4", "memory: ", ["5:33: devices[0].memory must be a text, got nothing"]),
        ("[{name: host, nbytes: 16 GiB}]", "{}", ["3:11: memories must be a list, got {}"]),
        ("{name: host, nbytes: 16 GiB}", "host", ["3:12: memories[0] must be a map (`key: value`), got 'host'"]),
        ("{float32: 9e10}", "9e10", ["5:80: devices[0].flops_per_second must be a map (`key: value`), got 90000000000.0"]),
        ("name: small", "name: [small", ["3:9: not YAML: "]),
        ("name: small", "name: small\n---\na: 1", ["4:1: a machine is one document"]),
        ("name: small", "[name]: small", ["2:1: a key must be a word, not a list or a map"]),
        ("name: small", "name: " + "[" * 50 + "]" * 50, ["2:19: nested more than 12 deep; a machine is flatter"]),
    ],
)
def test_mistakes_name_file_line_column_key_value_and_the_words_allowed(tmp_path: Path, old: str, new: str, told: list[str]) -> None:
    assert old in SMALL
    found = refused(tmp_path, SMALL.replace(old, new, 1))
    assert len(found) >= len(told)
    for text in told:
        assert any(line.startswith(text) for line in found), found


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    found = refused(tmp_path, SMALL.replace("lanes: 4", "lanes: none").replace("16 GiB", "-1").replace("small", "{}"))
    assert [line.split(":")[:2] for line in found] == [["2", "7"], ["3", "33"], ["5", "33"]]


MANY = """\
hetsched_machine: 1
memories: [{name: host}, {name: far}, {name: far}]
resources: [{name: cores, capacity: 4}, {name: cores, capacity: 5}]
devices:
  - {id: cpu, kind: cpu, uses: {cors: 1}}
  - id: cpu
    kind: cuda
    memory: for
  - {id: gpu, kind: cuda, memory: far}
links:
  - {src: host, dst: far}
  - {src: host, dst: far}
  - {src: host, dst: fra}
"""


def test_mistakes_between_items_are_told_at_their_places(tmp_path: Path) -> None:
    assert refused(tmp_path, MANY) == [
        "2:46: memory node 'far' is described twice; remove one, or rename it",
        "3:48: resource 'cores' is described twice; remove one, or rename it",
        "5:33: device 'cpu': no resource 'cors'; did you mean 'cores'? known: cores",
        "6:9: device 'cpu' is described twice; remove one, or rename it",
        "8:13: device 'cpu': no memory node 'for'; did you mean 'far'? known: far, host",
        "9:35: no link from 'far' to 'host'; describe one",
        "12:11: link 'host->far' is described twice; remove one",
        "13:22: link host->fra: no memory node 'fra'; did you mean 'far'? known: far, host",
    ]


def test_a_machine_without_devices_or_without_a_host_is_told_at_the_section(tmp_path: Path) -> None:
    assert refused(tmp_path, "hetsched_machine: 1\nmemories: [{name: gpu}]\ndevices: []\n") == [
        "2:11: a machine needs the memory node 'host'",
        "3:10: a machine needs at least one device",
    ]


def test_the_command_prefixes_every_mistake_of_a_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.yaml").write_text(MANY)
    assert main(["devices", "--machine", str(tmp_path / "m.yaml")]) == 3
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 8
    assert all(line.startswith(f"hetsched: error: {tmp_path / 'm.yaml'}:") for line in told)


def test_parts_of_the_same_name_are_no_machine() -> None:
    cpu = Device("cpu", "cpu")
    with pytest.raises(MachineError) as caught:
        Machine((cpu, cpu), (Link(HOST, HOST), Link(HOST, HOST)), (MemoryNode(HOST), MemoryNode(HOST)), (Resource("a", 1.0), Resource("a", 2.0)))
    assert [text.partition(" is described twice")[0] for text in caught.value.problems] == [
        "device 'cpu'",
        "memory node 'host'",
        "resource 'a'",
        "link 'host->host'",
    ]
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.problems, str(again)) == (caught.value.problems, str(caught.value))


@pytest.mark.parametrize("text", [b"", b"- 1\n", b"just words", b"\xff\xfe\x00", b"\x00", b"a: \xc3\x28"])
def test_what_is_no_map_or_no_text_is_refused(tmp_path: Path, text: bytes) -> None:
    assert refused(tmp_path, text)


@pytest.mark.parametrize(("text", "seen"), [(b"", "an empty file"), (b"- 1\n", "a list"), (b"words", "'words'"), (b"3", "3")])
def test_what_is_no_map_is_told_with_what_a_machine_needs(tmp_path: Path, text: bytes, seen: str) -> None:
    assert refused(tmp_path, text) == [f"1:1: a description is a map (`key: value`) with at least `hetsched_machine:` and `devices:`, not {seen}"]


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"cannot read the machine .*none\.yaml: No such file"):
        read_machine(tmp_path / "none.yaml")
    with pytest.raises(FileError, match=r"cannot write the machine .*: No such file"):
        write_machine(random_machine(0), tmp_path / "no" / "m.yaml")
    assert refused(tmp_path, b" " * (1 << 21)) == [" a machine takes at most 1048576 bytes"]


@pytest.mark.parametrize("name", machine_names())
def test_every_figure_of_the_catalog_has_a_source_or_says_that_it_has_none(name: str) -> None:
    data = yaml.safe_load((CATALOG / f"{name}.yaml").read_text(encoding="utf-8"))
    figures = {
        "memories": {"nbytes"},
        "resources": {"capacity"},
        "devices": {"lanes", "io_lanes", "flops_per_second", "bytes_per_second", "launch_seconds", "crossing_seconds", "widths", "uses", "busy_watts",
                    "idle_watts", "price_per_hour"},
        "links": {"latency_seconds", "bytes_per_second", "engines"},
    }  # fmt: skip
    for part, keys in figures.items():
        for item in data[part]:
            assert keys & set(item) == set(item["sources"]), (part, item)
            for text in item["sources"].values():
                assert "https://" in text or text.startswith(("computed", "unverified", "assumed", "chosen", "measured", "as ", "a lane"))


def test_the_catalog_is_found_by_name() -> None:
    assert {"laptop", "server", "workstation"} <= set(machine_names())
    assert all(machine_named(name).name == name for name in machine_names())
    assert sum(d.hardware == "gpu" for d in machine_named("server").devices) == 2
    with pytest.raises(
        MachineError, match=r"no machine 'servre' in the catalog; did you mean 'server'\? known: laptop, server, workstation; or give"
    ):
        machine_named("servre")


@pytest.mark.parametrize(
    ("figure", "told"),
    [
        ({"flops_per_second": {"float32": 0}}, "flops_per_second of float32 must be above 0, got 0"),
        ({"flops_per_second": {"float32": -1e9}}, "flops_per_second of float32 must be above 0, got -1000000000.0"),
        ({"bytes_per_second": 0}, "bytes_per_second must be above 0, got 0"),
        ({"bytes_per_second": float("nan")}, "bytes_per_second must be above 0, got nan"),
        ({"busy_watts": -4}, "busy_watts must be at least 0, got -4"),
        ({"launch_seconds": -1e-6}, "launch_seconds must be at least 0, got -1e-06"),
        ({"price_per_hour": -1}, "price_per_hour must be at least 0, got -1"),
    ],
)
def test_figures_that_no_device_has_are_told_in_python_too(figure, told):
    with pytest.raises(MachineError, match=f"device 'cpu': {told}"):
        Machine((Device("cpu", "cpu", **figure),))
    with pytest.raises(MachineError, match="link a->host: latency_seconds must be at least 0, got -1"):
        Machine((Device("cpu", "cpu"),), (Link("a", "host", -1, 1e9), Link("host", "a", 0, 1e9)), (MemoryNode("host"), MemoryNode("a")))
