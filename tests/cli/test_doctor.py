"""`hetsched doctor` says what works, what does not, and the way out; it ends with 1 only where something is wrong."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import hetsched as hs
from hetsched.cli import health, main
from hetsched.executors.backends import Found
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode

ROOT = Path(hs.__file__).parent
CPU = Device("cpu", "cpu", lanes=2, languages=("host", "array"), shares_lanes=True, bytes_per_second=1e10, flops_per_second={"float32": 1e10})


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """A machine with threads only, folders of its own, no variable set, nothing else at work."""
    machine = Machine((CPU,))
    monkeypatch.setattr(health, "Machine", SimpleNamespace(here=lambda: machine))
    monkeypatch.setattr(health.backends, "notes", list)
    monkeypatch.setattr(health.os, "environ", {})
    monkeypatch.setattr(health.os, "getloadavg", lambda: (0.0, 0.0, 0.0), raising=False)
    monkeypatch.setattr(health, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(health, "state_folder", lambda: tmp_path / "state")
    return tmp_path


def test_what_works_is_said_to(alone, capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^ok +cpu: computes", out, re.MULTILINE)
    assert re.search(r"^note +calibration of cpu: none.*`hetsched calibrate cpu`", out, re.MULTILINE)
    assert out.splitlines()[-1].startswith("0 things wrong, ")
    assert list(alone.rglob("*probe*")) == []


def test_what_is_wrong_is_told_with_a_way_out_and_ends_with_1(alone, monkeypatch, capsys):
    (alone / "cache").write_text("a file where the folder should be")
    monkeypatch.setattr(health.os, "environ", {"HETSCHED_LEARN": "0", "HETSCHED_LEARNS": "1", "HOME": "/"})
    monkeypatch.setattr(health.os, "getloadavg", lambda: (99.0, 0.0, 0.0), raising=False)
    assert main(["doctor", "--format", "json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["status"] == "wrong"
    seen = {row["what"]: (row["state"], row["found"]) for row in told["seen"]}
    assert seen["cache"][0] == "wrong"
    assert "set XDG_CACHE_HOME" in seen["cache"][1]
    assert seen["HETSCHED_LEARNS"][0] == "note"
    assert "did you mean 'HETSCHED_LEARN'" in seen["HETSCHED_LEARNS"][1]
    assert seen["HETSCHED_LEARN"][0] == seen["load"][0] == "note"
    assert "HOME" not in seen


def test_a_device_that_fails_or_computes_wrong_numbers_is_found():
    gone = Device("npu:0", "npu", memory="npu:0", languages=("array",), bytes_per_second=1e10, flops_per_second={"float32": 1e10})
    links = (Link(HOST, "npu:0"), Link("npu:0", HOST))
    seen = health.computes(gone, Machine((CPU, gone), links, (MemoryNode(HOST), MemoryNode("npu:0"))))
    assert seen.state == "wrong"
    assert "there is no backend for devices of kind 'npu' here" in seen.found
    assert health.computes(CPU, Machine((CPU,))).state == "ok"


def test_a_wrong_product_is_told(monkeypatch):
    right = health.run
    monkeypatch.setattr(health, "run", lambda *a, **k: _Off(right(*a, **k)))
    seen = health.computes(CPU, Machine((CPU,)))
    assert seen.state == "wrong"
    assert "gives wrong numbers: a product is off by 1" in seen.found


class _Off:
    def __init__(self, result):
        self.result, self.wall_seconds = result, result.wall_seconds

    def __getitem__(self, name):
        return self.result[name] + 1


def test_two_libraries_for_the_same_devices_are_in_each_others_way(monkeypatch):
    monkeypatch.setattr(health, "_installed", {"cupy-cuda12x": "14.2", "cupy": "13.0"}.get)
    seen = {s.what: s for s in health.libraries()}
    assert seen["CUDA devices"].state == "wrong"
    assert "cupy-cuda12x 14.2 and cupy 13.0" in seen["CUDA devices"].found
    assert seen["OpenCL devices"].state == "note"
    assert "pip install" in seen["OpenCL devices"].found


def test_what_backends_cannot_use_is_a_remark(monkeypatch):
    monkeypatch.setattr(health, "Machine", SimpleNamespace(here=lambda: Machine((CPU,))))
    monkeypatch.setattr(health.backends, "_look", lambda: [Found(notes=("no OpenCL: there is no driver",))])
    assert [s.found for s in health.devices() if s.what == "backends"] == ["no OpenCL: there is no driver"]


def test_every_variable_that_is_read_is_known():
    read = set()
    for file in ROOT.rglob("*.py"):
        if file.name != "health.py":
            read |= set(re.findall(r"HETSCHED_[A-Z][A-Z_]*[A-Z]\b", file.read_text(encoding="utf-8")))
    read |= {"HETSCHED_CUDA_STREAMS", "HETSCHED_OPENCL_STREAMS"}  # `f"HETSCHED_{kind.upper()}_STREAMS"`
    assert read == set(health.VARIABLES)
