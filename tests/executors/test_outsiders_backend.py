"""A backend that somebody else has installed, by an entry point: found, named in files and opened like ours; a broken one breaks nothing."""

import sys
from pathlib import Path

import numpy as np
import pytest

import hetsched as hs
from hetsched.cli import main
from hetsched.errors import PlacementError
from hetsched.executors import backends
from hetsched.executors.measuring import Bench
from hetsched.pipeline import devices
from hetsched.testing import check_backend

# The least that a backend needs: here it drives emulated devices, as a real one would drive its hardware.
BACKEND = """
from hetsched.executors.backends import Found
from hetsched.executors.backends.emulated import EmulatedDevice
from hetsched.machine import HOST, Device, Link, MemoryNode

OPENED = []


def find():
    npu = Device("npu:0", "npu", memory="npu:0", hardware="npu", languages=("array",), flops_per_second={"float32": 1e12}, bytes_per_second=1e11)
    return Found((npu,), (MemoryNode("npu:0", 1 << 26),), (Link(HOST, "npu:0", 1e-6, 1e10), Link("npu:0", HOST, 1e-6, 1e10)))


def open(device, nbytes):
    OPENED.append(device.id)
    return EmulatedDevice(device, nbytes)
"""

PIPELINE = """
hetsched: 1
name: there
tasks:
  a: {op: random.normal, with: {shape: [8, 8], seed: 3}, device: cpu}
  b: {op: tensor.matmul, in: {a: a, b: a}, device: npu}
outputs: {y: {from: b, save: y.npy}, x: {from: a, save: x.npy}}
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Install a distribution with one backend: `install(kind, source)`."""

    def forget() -> None:
        for kept in (backends._entries, devices.kinds):
            kept.cache_clear()

    def put(kind: str, source: str) -> str:
        module, site = f"hetsched_{kind}", tmp_path / f"site-{kind}"
        site.mkdir()
        (site / f"{module}.py").write_text(source)
        monkeypatch.delitem(sys.modules, module, raising=False)
        info = site / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[hetsched.backends]\n{kind} = {module}\n")
        monkeypatch.syspath_prepend(str(site))
        forget()
        return module

    yield put
    monkeypatch.undo()
    forget()


def test_its_devices_are_of_this_machine_and_run_what_a_file_asks_of_them(install, tmp_path, capsys):
    module = install("npu", BACKEND)
    assert backends.kinds()[0] == "cpu"
    assert "npu" in backends.kinds()
    assert hs.Machine.here().device("npu:0").hardware == "npu"
    assert main(["devices"]) == 0
    assert "npu:0" in capsys.readouterr().out
    file = tmp_path / "there.yaml"
    file.write_text(PIPELINE)
    assert main(["run", str(file), "--format", "json"]) == 0
    assert '"device": "npu:0"' in capsys.readouterr().out
    assert sys.modules[module].OPENED[-1] == "npu:0"
    x, y = (np.load(tmp_path / f"{name}.npy") for name in "xy")
    np.testing.assert_allclose(y, x @ x, rtol=1e-5)
    with Bench(hs.Machine.here().device("npu:0"), 1 << 16):
        assert len(sys.modules[module].OPENED) >= 2


def test_it_is_proved_by_name(install):
    install("npu", BACKEND)
    figures = check_backend("npu", only=["copies", "order", "events"], graphs=2, runs=2)
    assert list(figures) == ["npu:0"]


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import a_driver_that_is_not_here", "cannot be loaded: ModuleNotFoundError: No module named 'a_driver_that_is_not_here'"),
        ("def find():\n    raise OSError('no driver')", "failed to look for devices: OSError: no driver"),
        ("def find():\n    return None", "gave NoneType, not a Found"),
        (BACKEND.replace('"npu:0", "npu",', '"npu:0", "cuda",'), r"devices of another kind (npu:0)"),
    ],
)
def test_one_that_fails_is_noted_and_the_others_work(install, capsys, source, why):
    install("odd", source)
    b = hs.Graph.build()
    graph = b.output(b.op("tensor.neg", b.input("x", (4,))), "y").freeze()
    assert hs.run(graph, {"x": np.ones(4, np.float32)}, only="cpu")["y"].tolist() == [-1] * 4
    assert "npu:0" not in {d.id for d in hs.Machine.here().devices}
    assert main(["devices"]) == 0
    out = capsys.readouterr().out
    assert "note: the backend 'odd'" in out
    assert why in out


def test_what_is_not_there_is_told_with_the_nearest_kind(install):
    install("npu", BACKEND)
    with pytest.raises(PlacementError, match="no backend for devices of kind 'npv' here; did you mean 'npu'"):
        backends.backend_of("npv")
