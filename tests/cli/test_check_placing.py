from __future__ import annotations

from pathlib import Path

import pytest

from hetsched.cli import main

MATMUL = Path(__file__).resolve().parents[2] / "pipelines" / "matmul_conv.yaml"


def written(folder: Path, *changes: tuple[str, str], more: str = "") -> str:
    text = MATMUL.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    file = folder / "p.yaml"
    file.write_text(f"{text.rstrip()}\n{more}\n", encoding="utf-8")
    return str(file)


def test_check_and_run_agree_on_what_no_device_satisfies(tmp_path, capsys):
    file = written(tmp_path, ("device: any}", "device: opencl}"))
    assert main(["check", file, "--machine", "workstation"]) == 4
    told = capsys.readouterr().out
    assert f"{file}:8:" in told
    assert "no device satisfies `device: opencl`" in told
    assert "1 mistake" in told
    assert main(["plan", file, "--machine", "workstation"]) == 4
    assert f"{file}:8:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("objective", "machine", "told"),
    [
        ("objective: energy", None, "cpu states no busy_watts"),
        ("objective: {minimize: price, deadline: 1 us}", "workstation", "deadline"),
    ],
)
def test_an_objective_that_no_plan_serves_is_told_at_its_line(tmp_path, capsys, objective, machine, told):
    file = written(tmp_path, more=objective)
    line = Path(file).read_text(encoding="utf-8").splitlines().index(objective) + 1
    assert main(["check", file, *(["--machine", machine] if machine else [])]) == 4
    out = capsys.readouterr().out
    assert f"{file}:{line}:1: error: " in out
    assert told in out


def test_what_can_be_placed_is_ok(capsys):
    assert main(["check", str(MATMUL)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{MATMUL}: ok"
