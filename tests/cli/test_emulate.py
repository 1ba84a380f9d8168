"""`--emulate`: a described machine, run in software."""

import json
from pathlib import Path

import pytest

from hetsched.cli import main

PIPELINE = Path(__file__).parents[2] / "pipelines" / "digits_mlp.yaml"


def test_a_described_machine_is_run_in_software(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same pipeline, on the CPU alone and on a workstation whose GPU is emulated: the loss agrees, and the GPU has worked."""
    losses = []
    for extra in ([], ["--machine", "workstation", "--emulate"]):
        assert main(["run", str(PIPELINE), "-o", str(tmp_path), "--format", "json", "-s", "epochs=1", *extra]) == 0
        record = json.loads(capsys.readouterr().out)
        losses.append(record["metrics"]["evaluate.loss"])
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert record["devices"]["cuda:0"]["tasks"] > 0
    assert record["transfers"]["bytes"] > 0
    assert 0 <= record["transfers"]["hidden_fraction"] <= 1


def test_emulate_wants_a_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(PIPELINE), "-o", str(tmp_path), "--emulate"]) == 2
    assert "--machine FILE" in capsys.readouterr().err


TWO = PIPELINE.parent / "machines" / "two_gpus.yaml"


def test_the_machine_of_the_page_is_the_one_that_is_shipped() -> None:
    page = (PIPELINE.parents[1] / "docs" / "emulated.md").read_text()
    assert page.split("```yaml\n")[1].split("```")[0] in TWO.read_text()


def test_both_devices_of_a_described_machine_work_and_what_does_not_fit_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["run", str(PIPELINE.parent / "matmul_conv.yaml"), "-o", str(tmp_path), "--machine", str(TWO), "--emulate", "--format", "json"]
    assert main([*run, "--policy", "round_robin"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["devices"]["gpu:0"]["tasks"] > 0
    assert record["devices"]["gpu:1"]["tasks"] > 0
    assert main([*run, "-d", "gpu:0", "--memory", "gpu:0=1KiB"]) in (4, 5)
    assert "gpu:0" in capsys.readouterr().err


def test_a_machine_that_is_not_there_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(PIPELINE), "--machine", str(tmp_path / "no.yaml"), "--emulate"]) == 7
    assert "no.yaml" in capsys.readouterr().err


def test_a_described_machine_that_is_not_here_is_told_with_the_way_out(capsys) -> None:
    assert main(["run", str(PIPELINE.with_name("matmul_conv.yaml")), "--machine", "workstation", "-d", "cuda", "--format", "json"]) == 4
    assert "--emulate runs what --machine describes in software" in capsys.readouterr().err
