"""`hetsched machines`, `--machine` by names of the catalog, `--what-if`: through the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hetsched.cli import main
from hetsched.machine.named import names

PIPELINES = Path(__file__).parents[2] / "pipelines"
SMALL = str(PIPELINES / "matmul_conv.yaml")
DIGITS = str(PIPELINES / "digits_mlp.yaml")


def output(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    assert main(list(argv)) == code
    return capsys.readouterr().out


def test_the_list_has_every_machine_with_price_and_unverified_figures(capsys):
    lines = output(capsys, "machines").splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == names()
    assert next(line for line in lines if line.startswith("aws/p5.48xlarge")).split()[1] == "55.04"
    assert next(line for line in lines if line.startswith("aws/g6.xlarge")).split()[1] == "0.8048?"
    assert next(line for line in lines if line.startswith("azure/ND96isr_MI300X_v5")).split()[1] == "-"
    few = json.loads(output(capsys, "machines", "--on", "aws/p3*", "--format", "json"))
    assert list(few) == ["aws/p3.16xlarge", "aws/p3.2xlarge"]
    assert len(few["aws/p3.16xlarge"]["devices"]) == 9


def test_a_plan_for_a_cloud_gives_time_energy_and_price_with_a_band(capsys):
    text = output(capsys, "plan", DIGITS, "--machine", "aws/p5.48xlarge", "--objective", "price")
    assert "predicted (roofline, one standard deviation): " in text
    assert "price: seconds x list price, a list-price estimate" in text
    assert "55.04 an hour for the whole machine" in text
    assert "unverified figures of the machine: " in text
    record = json.loads(output(capsys, "plan", DIGITS, "--machine", "aws/p5.48xlarge", "--objective", "price", "--format", "json"))
    figures, band = record["figures"], record["band"]
    assert figures["price"] == pytest.approx(figures["seconds"] * 55.04 / 3600)
    for name in ("seconds", "joules", "price"):
        low, high = band[name]
        assert low <= figures[name] <= high
        assert high == pytest.approx(1.5 * figures[name])  # the spread of a roofline
        assert low >= figures[name] * 0.5
    assert band["seconds"][0] >= record["lower_bound"] * (1 - 1e-9)
    assert "cpu.launch_seconds" in record["unverified"]


def test_machines_are_compared_for_a_pipeline(capsys):
    record = json.loads(output(capsys, "machines", SMALL, "--on", "aws/*", "--on", "*MI300X*", "--format", "json"))
    rows = {row["machine"]: row for row in record["machines"]}
    assert record["price"] == "list-price estimate"
    assert all(row["fits"] for row in rows.values())
    assert rows["azure/ND96isr_MI300X_v5"]["price"] is None
    assert "price_per_hour" in rows["aws/g6.xlarge"]["unverified"]
    known = {name: (row["seconds"], row["joules"], row["price"] if row["price"] is not None else float("inf")) for name, row in rows.items()}
    for name, mine in known.items():
        beaten = any(all(a <= b for a, b in zip(other, mine, strict=True)) and other != mine for other in known.values())
        assert rows[name]["pareto"] == (not beaten)
    text = output(capsys, "machines", SMALL, "--on", "aws/g*").splitlines()
    assert text[0].split() == ["machine", "time", "joules", "price", "an", "hour", "devices", "used"]
    among = {name: mine for name, mine in known.items() if name.startswith("aws/g")}
    front = {n for n, mine in among.items() if not any(all(a <= b for a, b in zip(x, mine, strict=True)) and x != mine for x in among.values())}
    assert {line.split()[1] for line in text if line.startswith("*  ")} == front
    assert "list-price estimate" in text[-1]


def test_a_machine_that_does_not_do_says_why(tmp_path, capsys):
    file = tmp_path / "p.yaml"
    file.write_text(Path(SMALL).read_text().replace("device: any}", "device: cuda}", 1))
    record = json.loads(output(capsys, "machines", str(file), "--on", "gcp/tpu*", "--on", "aws/g6.xlarge", "--format", "json"))
    fits = {row["machine"]: row["fits"] for row in record["machines"]}
    assert fits == {"gcp/tpu-v4-8": False, "aws/g6.xlarge": True}
    assert "gcp/tpu-v4-8 does not fit: " in output(capsys, "machines", str(file), "--on", "gcp/tpu*")


def test_what_if_tells_what_the_change_gives(capsys):
    text = output(capsys, "plan", SMALL, "--machine", "aws/g6.xlarge", "--what-if", "+L4:1")
    assert "aws/g6.xlarge +L4:1" in text
    assert "the change makes it " in text
    record = json.loads(output(capsys, "plan", SMALL, "--machine", "aws/g6.xlarge", "--what-if", "-cuda:0", "--format", "json"))
    assert record["machine"] == "aws/g6.xlarge -cuda:0"
    assert list(record["devices"]) == ["cpu"]
    assert record["before"]["machine"] == "aws/g6.xlarge"
    assert record["before"]["seconds"] <= record["figures"]["seconds"]


@pytest.mark.parametrize("more", [["-d", "cuda"], ["--memory", "cuda=1GB"]])
def test_what_only_the_change_makes_possible_is_planned_and_said(more, capsys):
    argv = ["plan", SMALL, "--machine", "aws/c5.4xlarge", "--what-if", "+l4", *more]
    assert "without --what-if there is no plan: " in output(capsys, *argv)
    assert "cuda" in json.loads(output(capsys, *argv, "--format", "json"))["before"]["error"]


@pytest.mark.usefixtures("no_cuda")
def test_what_if_of_the_machine_here_runs_in_software(tmp_path, capsys):
    record = json.loads(output(capsys, "run", SMALL, "--what-if", "+l4", "--emulate", "-d", "gpu", "-o", str(tmp_path), "--format", "json"))
    assert record["devices"]["cuda:0"]["tasks"] > 0


def test_sources_are_told(capsys):
    text = output(capsys, "devices", "--machine", "h100", "--sources")
    line = next(x for x in text.splitlines() if x.startswith("cuda:0.bytes_per_second"))
    assert "2026-11-25" in line
    assert "https://glennklockwood.com/garden/processors/h100" in line
    assert next(x for x in text.splitlines() if x.startswith("cuda:0.idle_watts")).split()[1] == "never"
    assert "unverified: " in output(capsys, "devices", "--machine", "h100")
    record = json.loads(output(capsys, "devices", "--machine", "h100", "--format", "json"))
    assert {"figure", "source", "read", "verified"} == set(record["sources"][0])


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["plan", SMALL, "--machine", "aws/p5"], "no machine 'aws/p5' in the catalog"),
        (["plan", SMALL, "--machine", "l4", "--what-if", "+h10"], "did you mean 'h100'?"),
        (["machines", SMALL, "--on", "nowhere/*"], "--on nowhere/* matches no machine"),
        (["devices", "--sources"], "--sources tells of a described machine as it is"),
    ],
)
def test_mistakes_are_told(capsys, argv, told):
    assert main(argv) in (2, 3)
    assert told in capsys.readouterr().err
