from __future__ import annotations

import json
from pathlib import Path

import pytest

from hetsched.cli import main

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"
MATMUL = str(PIPELINES / "matmul_conv.yaml")


def planned(capsys: pytest.CaptureFixture[str], *options: str) -> dict:
    assert main(["plan", MATMUL, "--machine", "workstation", "--format", "json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_latency_is_asked_for_by_the_command_and_by_the_file(capsys, tmp_path):
    """What one request takes: of a pipeline without loops its makespan, and no plan for another goal has a smaller one."""
    by_command = planned(capsys, "--objective", "latency")
    assert by_command["objective"] == "latency"
    path = tmp_path / "asks.yaml"
    path.write_text(Path(MATMUL).read_text().replace("objective: time", "objective: latency"))
    if "objective: latency" not in path.read_text():
        path.write_text(path.read_text() + "objective: latency\n")
    assert main(["plan", str(path), "--machine", "workstation", "--format", "json"]) == 0
    by_file = json.loads(capsys.readouterr().out)
    assert by_file["objective"] == "latency"
    assert by_file["tasks"] == by_command["tasks"]
    for goal in ("energy", "price"):
        assert planned(capsys, "--objective", goal)["figures"]["seconds"] >= by_command["figures"]["seconds"] - 1e-12


def test_the_front_tells_time_energy_price_and_devices_of_each_plan(capsys):
    record = planned(capsys, "--pareto")
    assert {"version", "file", "name", "machine", "policy", "lower_bound", "plan_seconds", "points"} <= set(record)
    assert {goal for p in record["points"] for goal in p["best"]} == {"time", "energy", "price"}
    for point in record["points"]:
        assert point["seconds"] >= record["lower_bound"]
        assert set(point["tasks"]) == set(point["devices"])
        assert sum(point["tasks"].values()) == 6
    for goal, key in (("time", "seconds"), ("energy", "joules"), ("price", "price")):
        alone = planned(capsys, "--objective", goal)
        assert alone["objective"] == goal
        assert alone["figures"][key] == min(p[key] for p in record["points"])


def test_the_front_as_a_table(capsys):
    assert main(["plan", MATMUL, "--machine", "workstation", "--pareto"]) == 0
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["time", "joules", "price", "devices", "best", "in"]
    assert [{*row.split()} & {"cpu", "cuda:0"} != set() for row in rows] == [True] * len(rows)
    assert last.startswith(f"{len(rows)} plans that no other found beats in all; no plan is below ")


def test_a_machine_without_watts_has_a_front_of_time_alone_and_says_so(capsys):
    assert main(["plan", MATMUL, "--pareto"]) == 0
    out = capsys.readouterr().out
    assert "note: energy is not known: cpu states no busy_watts" in out
    assert "note: price is not known: cpu states no price_per_hour" in out


def test_the_objective_of_the_file_counts_and_the_option_stands_above_it(tmp_path, capsys):
    file = tmp_path / "p.yaml"
    text = Path(MATMUL).read_text(encoding="utf-8")
    for line, objective in (
        ("objective: price", "price"),
        ("objective: {time: 1, energy: 0.5}", "time=1,energy=0.5"),
        ("objective: {minimize: {price: 1, time: 2}, deadline: 2 min}", "time=2,price=1,deadline=120s"),
    ):
        file.write_text(f"{text.rstrip()}\n{line}\n", encoding="utf-8")
        assert main(["plan", str(file), "--machine", "workstation", "--format", "json"]) == 0
        assert json.loads(capsys.readouterr().out)["objective"] == objective
        assert main(["plan", str(file), "--machine", "workstation", "--format", "json", "--objective", "energy"]) == 0
        assert json.loads(capsys.readouterr().out)["objective"] == "energy"


@pytest.mark.parametrize(
    ("options", "code", "hint"),
    [
        (["--objective", "enrgy"], 2, "did you mean 'energy'"),
        (["--objective", "time=1,energy=x"], 2, "weight of energy must be a number"),
        (["--objective", "price,deadline=1us"], 4, "no plan found keeps the deadline of 1e-06 s: the fastest takes "),
        (["--pareto", "--objective", "time"], 2, "leave these out"),
        (["--pareto", "--plan-time", "1s"], 2, "leave these out"),
    ],
)
def test_what_cannot_be_done_is_told_with_the_way_out(options, code, hint, capsys):
    assert main(["plan", MATMUL, "--machine", "workstation", *options]) == code
    assert hint in capsys.readouterr().err


def test_energy_here_needs_a_machine_that_states_watts(capsys):
    assert main(["plan", MATMUL, "--objective", "energy"]) == 4
    err = capsys.readouterr().err
    assert "cpu states no busy_watts" in err
    assert "--machine" in err
