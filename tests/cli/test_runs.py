"""What is kept of runs: runs, show, diff, report, trace, cache; learning from the command, and its off-switches."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from pathlib import Path

import pytest

from hetsched.cli import main
from hetsched.executors import measuring
from hetsched.placement.costs.history import History
from hetsched.report.runs import Runs

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"


@pytest.fixture
def pipeline(tmp_path, monkeypatch):
    """A small pipeline in a home of its own, where learning is on."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HETSCHED_LEARN", "1")
    monkeypatch.setattr("hetsched.costing.FIRST_SECONDS", 600.0)  # it ends by its repeats, on a machine that stands still for a while as well
    return shutil.copy(PIPELINES / "matmul_conv.yaml", tmp_path)


def out(capsys, *argv):
    code = main([str(a) for a in argv])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def test_runs_are_kept_shown_and_compared(pipeline, tmp_path, capsys):
    assert "no runs are kept" in out(capsys, "runs")
    out(capsys, "run", pipeline, "-d", "cpu")
    out(capsys, "run", pipeline, "-d", "cpu", "-s", "seed=3", "--policy", "peft")
    listed = json.loads(out(capsys, "runs", "--format", "json"))["runs"]
    assert [r["policy"] for r in listed] == ["peft", "auto"]
    assert listed[0]["id"] in out(capsys, "runs")
    shown = out(capsys, "show")
    assert "seed=3" in shown
    assert "planned by peft" in shown
    assert "product" in shown
    different = out(capsys, "diff", "last~1", listed[0]["id"])
    assert "policy: auto and peft" in different
    assert "seed: None and 3" in different
    assert "features" in different


def test_a_report_tells_what_other_policies_would_have_made_of_the_costs_measured(pipeline, tmp_path, capsys):
    out(capsys, "run", pipeline, "-d", "cpu", "--policy", "serial")
    told = out(capsys, "report", "last", "--policies", "heft,serial")
    assert "regret: by the costs measured the plan takes" in told
    rows = {line.split()[0]: line for line in told.splitlines() if line.startswith(("heft", "serial"))}
    assert set(rows) == {"heft", "serial"}
    assert "+0.0 %" in rows["serial"], "the plan that was followed, replayed"
    Path(pipeline).write_text(Path(pipeline).read_text() + "# changed\n")
    assert "has changed since the run" in out(capsys, "report")


def test_a_report_and_a_diff_are_json_where_asked(pipeline, capsys):
    out(capsys, "run", pipeline, "-d", "cpu", "--policy", "serial")
    out(capsys, "run", pipeline, "-d", "cpu", "--policy", "heft", "--seed", "3")
    told = json.loads(out(capsys, "report", "last", "--policies", "heft,serial", "--format", "json"))
    shown = json.loads(out(capsys, "show", "last", "--format", "json"))
    assert told.items() >= shown.items()
    followed = told["regret"]["followed_seconds"]
    saved = {r["policy"]: (r["seconds"], r["saved"]) for r in told["regret"]["policies"]}
    assert set(saved) == {"heft", "serial"}
    assert all(share == pytest.approx(1 - seconds / followed) for seconds, share in saved.values())
    found = json.loads(out(capsys, "diff", "last~1", "last", "--format", "json"))
    assert found["runs"][1] == shown["id"]
    assert found["asked"] == {"policy": ["serial", "heft"], "parameters": {"seed": [None, "3"]}}
    assert found["measured_seconds"][1] == shown["measured_seconds"]
    assert {t["name"]: t["devices"] for t in found["tasks"]}["product"] == ["cpu", "cpu"]
    Path(pipeline).write_text(Path(pipeline).read_text() + "# changed\n")
    assert json.loads(out(capsys, "report", "--format", "json"))["regret"]["error"].endswith("has changed since the run")


def test_a_diff_of_locked_plans_is_json_where_asked(pipeline, tmp_path, capsys):
    for policy in ("serial", "heft"):
        out(capsys, "plan", pipeline, "-d", "cpu", "--no-learn", "--policy", policy, "-o", tmp_path / f"{policy}.json")
    found = json.loads(out(capsys, "diff", tmp_path / "serial.json", tmp_path / "heft.json", "--format", "json"))
    assert found["equal"] is False
    assert {d["what"] for d in found["differences"]} >= {"asked"}
    assert json.loads(out(capsys, "diff", tmp_path / "heft.json", tmp_path / "heft.json", "--format", "json"))["equal"] is True


def test_a_report_of_a_run_on_a_changed_machine_plans_for_that_machine(pipeline, capsys):
    out(capsys, "run", pipeline, "--machine", "aws/c5.4xlarge", "--what-if", "+l4", "--emulate", "--policy", "round_robin")
    told = out(capsys, "report", "last")
    assert "what_if=+l4" in told
    assert "regret: by the costs measured the plan takes" in told


def test_the_trace_of_a_kept_run_opens_in_perfetto(pipeline, tmp_path, capsys):
    out(capsys, "run", pipeline, "-d", "cpu")
    file = tmp_path / "t.json"
    out(capsys, "trace", "last", "-o", file)
    events = json.loads(file.read_text())["traceEvents"]
    assert {e["name"] for e in events if e["ph"] == "X"} >= {"product", "features"}
    assert all(e["dur"] >= 0 for e in events if e["ph"] == "X")


def test_a_run_that_is_not_there_is_told_with_what_is(pipeline, capsys):
    out(capsys, "run", pipeline, "-d", "cpu")
    for wanted, text in (("nope", "no run begins"), ("last~7", "1 are kept"), ("last~x", "1 are kept")):
        assert main(["show", wanted]) == 2
        assert text in capsys.readouterr().err


def test_the_number_and_the_bytes_of_kept_runs_are_bounded(tmp_path):
    runs = Runs(tmp_path)
    names = [runs.add({"n": i, "filling": "x" * 100}, now=1e9 + i) for i in range(5)]
    assert runs.ids() == names
    assert runs.prune(runs=3) == 2
    assert runs.ids() == names[2:]
    size = runs.files()[0].stat().st_size
    assert runs.prune(nbytes=size + 1) == 2
    assert runs.ids() == names[4:]
    assert runs.load("last")["n"] == 4


def test_runs_that_end_in_the_same_second_are_all_kept(tmp_path):
    """From several threads at once, as from several processes; and in their order, where the clock of the files tells none."""
    runs, names = Runs(tmp_path), []
    ready = threading.Barrier(4)

    def add(number):
        ready.wait(600)
        names.extend(runs.add({"n": 10 * number + i}, now=1e9) for i in range(6))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(names)) == len(names) == 24
    assert sorted(r["n"] for r in runs.every()) == sorted(10 * a + b for a in range(4) for b in range(6))
    for path in tmp_path.iterdir():
        os.utime(path, ns=(1, 1))
    stamp = runs.ids()[0]
    assert runs.ids() == [stamp, *(f"{stamp}-{n}" for n in range(2, 25))]


def test_a_broken_record_keeps_no_other_from_being_listed(tmp_path):
    runs = Runs(tmp_path)
    runs.add({"n": 1}, now=1e9)
    (tmp_path / "20990101-000000.json.gz").write_bytes(b"broken")
    assert [r["n"] for r in runs.every()] == [1]
    runs.add({"n": 2}, now=1e9 + 1)
    assert [r["n"] for r in runs.every(1)] == [2]
    assert runs.every(0) == []


def test_runs_teach_and_explain_says_on_what_an_estimate_rests(pipeline, capsys):
    out(capsys, "run", pipeline, "-d", "cpu")
    out(capsys, "run", pipeline, "-d", "cpu")
    # On a machine that is busy with other work it says so, until a run is not disturbed.
    taught = r"\b[12] runs?\b|a run beside other work"
    assert re.search(taught, out(capsys, "explain", pipeline, "product", "-d", "cpu", "--no-flips"))
    told = out(capsys, "explain", pipeline, "product", "-d", "cpu", "--no-flips", "--no-learn")
    assert not re.search(taught, told)


@pytest.mark.parametrize("switch", ["--no-learn", "--deterministic"])
def test_learning_can_be_switched_off(pipeline, capsys, switch):
    out(capsys, "run", pipeline, "-d", "cpu", switch)
    assert not History().path.exists()


@pytest.mark.parametrize("command", ["plan", "run", "check"])
def test_a_search_by_time_is_not_deterministic(command, pipeline, capsys):
    assert main([command, pipeline, "--deterministic", "--plan-time", "50ms"]) == 2
    assert "--policy search, which tries a number of plans that does not depend on time" in capsys.readouterr().err
    assert main(["plan", pipeline, "-d", "cpu", "--deterministic", "--plan-time", "0s", "--policy", "search"]) == 0


def test_deterministic_plans_do_not_depend_on_what_was_learned(pipeline, capsys):
    first = json.loads(out(capsys, "plan", pipeline, "-d", "cpu", "--deterministic", "--format", "json"))
    for _ in range(2):
        out(capsys, "run", pipeline, "-d", "cpu")
    again = json.loads(out(capsys, "plan", pipeline, "-d", "cpu", "--deterministic", "--format", "json"))
    learned = json.loads(out(capsys, "plan", pipeline, "-d", "cpu", "--format", "json"))
    assert again["tasks"] == first["tasks"]
    assert learned["makespan"] != first["makespan"]


def test_the_environment_switches_learning_off(pipeline, capsys, monkeypatch):
    monkeypatch.setenv("HETSCHED_LEARN", "0")
    out(capsys, "run", pipeline, "-d", "cpu")
    assert not History().path.exists()


def test_costs_that_cannot_be_kept_cost_a_warning(pipeline, tmp_path, capsys):
    History().path.parent.mkdir(parents=True)
    History().path.write_bytes(b"this is no database, whatever its name says" * 50)
    assert main(["run", str(pipeline), "-d", "cpu"]) == 0
    assert History().path.with_name("costs.sqlite.broken").exists()


def test_the_cache_is_listed_and_cleaned(pipeline, capsys):
    out(capsys, "run", pipeline, "-d", "cpu")
    listed = {row["what"]: row for row in json.loads(out(capsys, "cache", "ls", "--format", "json"))["kept"]}
    assert {"costs that runs have taught", "runs", "speeds of devices"} <= set(listed)
    History().path.with_name("costs.sqlite.broken").write_bytes(b"x")
    assert "removed 0 files" in out(capsys, "cache", "gc"), "what is a minute old may be in use"
    assert json.loads(out(capsys, "cache", "gc", "--all", "--format", "json"))["removed_files"] >= 3
    assert [row["what"] for row in json.loads(out(capsys, "cache", "ls", "--format", "json"))["kept"]] == ["runs"]


def test_calibrate_measures_keeps_and_shows(pipeline, capsys, monkeypatch):
    monkeypatch.setattr(measuring, "CASES", {"tensor.add": measuring.CASES["tensor.add"][:2]})
    assert main(["calibrate", "nosuch"]) == 4
    assert main(["calibrate", "cpu", "--show"]) == 4
    assert main(["calibrate", "cpu", "--time", "2h"]) == 2
    capsys.readouterr()
    found = json.loads(out(capsys, "calibrate", "cpu", "--format", "json"))["devices"][0]
    assert found["flops_per_second"]["float32"] > 1e8
    assert set(found["curves"]) == {"tensor.add", "elementwise"}
    assert found["dispatch_seconds"] >= 0
    assert "measured in" in out(capsys, "calibrate", "cpu", "--show")


def test_a_calibration_that_cannot_be_kept_is_told(pipeline, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "CASES", {})
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    told = out(capsys, "calibrate", "cpu")
    assert "cannot be written: what was measured is lost; set XDG_CACHE_HOME" in told


def test_what_a_first_run_measured_is_not_shown_as_a_calibration(pipeline, capsys):
    out(capsys, "run", pipeline, "-d", "cpu")
    assert "note: only what a first run needs was measured; `hetsched calibrate cpu` measures the rest" in out(capsys, "calibrate", "cpu", "--show")


def test_broken_runs_are_told_and_collected(pipeline, capsys):
    out(capsys, "run", pipeline, "-d", "cpu")
    out(capsys, "run", pipeline, "-d", "cpu")
    first = Runs().files()[0]
    first.write_bytes(b"no gzip")
    assert main(["runs"]) == 0
    told = capsys.readouterr()
    assert "matmul_conv" in told.out
    assert "1 run cannot be read; `hetsched cache gc` removes broken ones" in told.err
    assert main(["show", first.name.partition(".")[0]]) == 7
    assert "`hetsched cache gc` removes broken runs" in capsys.readouterr().err
    assert "removed 1 file, 7 B" in out(capsys, "cache", "gc")
    assert len(Runs().files()) == 1
    assert main(["runs"]) == 0
    assert capsys.readouterr().err == ""


def test_the_energy_of_a_run_is_kept_with_it(pipeline, capsys):
    told = out(capsys, "run", pipeline, "--machine", "workstation", "--emulate")
    line = next(x for x in told.splitlines() if x.startswith("energy: "))
    assert "J with idle power: cpu " in line
    assert line in out(capsys, "show").splitlines()
    assert line in out(capsys, "report", "--policies", "heft").splitlines()
    out(capsys, "run", pipeline, "--machine", "workstation", "--emulate")
    assert any(re.fullmatch(r"energy: \S+ J and \S+ J \([-+].* %\)", x) for x in out(capsys, "diff", "last~1", "last").splitlines())


def test_a_report_of_a_run_with_stated_watts_knows_them(pipeline, tmp_path, capsys):
    bare = tmp_path / "bare.yaml"
    bare.write_text("""hetsched_machine: 1
name: bare
memories: [{name: host, nbytes: 8 GiB}]
devices: [{id: cpu, kind: cpu, lanes: 2, languages: [host, array], flops_per_second: {float32: 5e10}, bytes_per_second: 1e10, shares_lanes: true}]
""")
    out(capsys, "run", pipeline, "--machine", bare, "--emulate", "--policy", "serial", "--objective", "energy", "--watts", "cpu=60/10")
    told = out(capsys, "report", "last", "--policies", "heft")
    assert "watts=cpu=60/10" in told
    assert "regret: not told" not in told
