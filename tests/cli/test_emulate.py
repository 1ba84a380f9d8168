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


def test_what_a_run_copied_is_what_its_plan_says_around_loops_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Invariants and weights go to the device before a loop and come back after it: traces do not time them, but they are told."""
    there, plan = ["--machine", "workstation", "--emulate", "-s", "epochs=1", "--no-learn", "--format", "json"], str(tmp_path / "plan.json")
    assert main(["plan", str(PIPELINE), *there, "-d", "cuda", "-o", plan]) == 0
    planned = json.loads(capsys.readouterr().out)["transfers"]
    assert main(["run", str(PIPELINE), *there, "-o", str(tmp_path), "--plan", plan]) == 0
    found = json.loads(capsys.readouterr().out)["transfers"]
    assert found["around_loops"]["bytes"] > 0
    assert found["copies"] + found["around_loops"]["copies"] == planned["copies"]
    assert found["bytes"] + found["around_loops"]["bytes"] == planned["bytes"]
    assert main(["run", str(PIPELINE), *there[:-2], "-o", str(tmp_path), "--plan", plan]) == 0
    around = found["around_loops"]["copies"]
    assert f"; {around} more around loops, " in capsys.readouterr().out
    assert main(["show"]) == 0
    assert f"copies around loops, not timed: {around}, " in capsys.readouterr().out


def test_emulate_wants_a_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(PIPELINE), "-o", str(tmp_path), "--emulate"]) == 2
    told = capsys.readouterr().err
    assert "--machine FILE" in told
    assert "--what-if +DEVICE" in told


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


@pytest.mark.usefixtures("no_cuda")
def test_a_described_machine_that_is_not_here_is_told_with_the_way_out(capsys) -> None:
    assert main(["run", str(PIPELINE.with_name("matmul_conv.yaml")), "--machine", "workstation", "-d", "cuda", "--format", "json"]) == 4
    assert "--emulate runs what --machine describes in software" in capsys.readouterr().err


def planned(tmp_path: Path, *options: str, file: str = "matmul_conv.yaml") -> str:
    """A locked plan of `file` made with `options`."""
    path = str(tmp_path / "plan.json")
    assert main(["plan", str(PIPELINE.with_name(file)), *options, "-o", path]) == 0
    return path


@pytest.mark.parametrize(
    ("made", "run"),
    [
        (["--machine", "workstation"], ["--machine", "workstation", "--emulate"]),
        (["--machine", "workstation", "--what-if", "+l4"], ["--machine", "workstation", "--what-if", "+l4", "--emulate"]),
        (["--what-if", "+l4"], ["--what-if", "+l4", "--emulate"]),
        (["--machine", str(TWO), "--emulate"], ["--machine", str(TWO), "--emulate"]),
    ],
)
def test_a_plan_for_a_described_machine_is_run_on_it_in_software(made, run, tmp_path, capsys) -> None:
    plan = planned(tmp_path, *made, "--policy", "round_robin")
    capsys.readouterr()
    assert main(["run", str(PIPELINE.with_name("matmul_conv.yaml")), *run, "--plan", plan, "-o", str(tmp_path), "--format", "json"]) == 0
    record = json.loads(capsys.readouterr().out)
    spans = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))["plan"]["spans"]
    where = {span[1]: span[3][0][0] for span in spans if span[0] == "launch"}
    assert {task["name"]: task["device"] for task in record["tasks"]} == where
    assert len(set(where.values())) > 1


@pytest.mark.parametrize(
    ("made", "run", "told"),
    [
        (["--machine", "workstation"], [], "give what it was planned with: --machine workstation, and --emulate, which runs it in software"),
        (
            ["--machine", "workstation", "--what-if", "+l4", "--what-if", "-cpu"],
            ["--machine", "workstation", "--emulate"],
            "planned with: --machine workstation --what-if +l4 --what-if -cpu\n",
        ),
        ([], ["--machine", "workstation"], "give what it was planned with: neither --machine nor --what-if"),
        (["--machine", str(TWO)], ["--machine", "server", "--emulate"], "give what it was planned with: --machine FILE (of 'two_gpus')"),
        (["--machine", "workstation", "-d", "cuda"], ["--machine", "workstation"], "--emulate runs what --machine describes in software"),
        (["--what-if", "+l4", "-d", "cuda"], ["--what-if", "+l4"], "--emulate runs what --what-if describes in software"),
    ],
)
@pytest.mark.usefixtures("no_cuda")
def test_a_plan_for_another_machine_is_refused_with_the_options_that_it_wants(made, run, told, tmp_path, capsys) -> None:
    plan = planned(tmp_path, *made)
    capsys.readouterr()
    assert main(["run", str(PIPELINE.with_name("matmul_conv.yaml")), *run, "--plan", plan, "-o", str(tmp_path)]) == 4
    assert told in capsys.readouterr().err


def test_a_plan_that_devices_in_software_have_no_kernels_for_is_refused(tmp_path, capsys) -> None:
    made = ["--machine", "workstation", "--trust"]
    plan = planned(tmp_path, *made, file="vector_add.yaml")
    capsys.readouterr()
    assert main(["run", str(PIPELINE.with_name("vector_add.yaml")), *made, "--emulate", "--plan", plan, "-o", str(tmp_path)]) == 4
    told = capsys.readouterr().err
    assert "kernels.vector_add has no kernel for cuda:0" in told
    assert "plan again for these, with --emulate" in told


def test_a_device_that_is_not_here_is_told_with_the_way_out_after_what_if(capsys) -> None:
    assert main(["run", str(PIPELINE.with_name("matmul_conv.yaml")), "--what-if", "+l4", "-d", "cuda", "--format", "json"]) == 4
    assert "--emulate runs what --what-if describes in software" in capsys.readouterr().err
