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
