from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from hetsched.cli import main
from hetsched.cli.output import Progress, ProgressLines
from hetsched.errors import FileError

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"


@pytest.fixture
def matmul(tmp_path):
    return shutil.copy(PIPELINES / "matmul_conv.yaml", tmp_path)


def test_a_run_tells_where_when_and_what_was_copied_and_writes_its_outputs(matmul, tmp_path, capsys, monkeypatch):
    assert main(["run", str(matmul)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("matmul_conv: 6 tasks, planned by auto: makespan ")
    assert out[1] == f"product -> {tmp_path}/out/product.npy"
    monkeypatch.chdir(tmp_path.parent)
    assert main(["run", str(matmul)]) == 0
    assert f"product -> {tmp_path.name}/out/product.npy" in capsys.readouterr().out.splitlines(), "below the current folder: from there"
    assert [line.split(":")[0] for line in out[-4:]] == ["ran", "time", "transfers", "energy"]
    assert np.load(tmp_path / "out" / "product.npy").shape == (256, 320)


def test_plain_progress_goes_to_standard_error_and_is_short(matmul, capsys):
    assert main(["run", str(matmul), "-d", "cpu"]) == 0
    err = capsys.readouterr().err.splitlines()
    assert 1 <= len(err) <= 10
    assert err[-1].startswith("100 %  6 of 6 launches and copies, ")


def test_plain_progress_tells_every_tenth_of_a_run_that_takes_long_and_names_what_was_copied(matmul, capsys, monkeypatch):
    monkeypatch.setattr("hetsched.cli.output.PLAIN_SECONDS", 0.0)
    assert main(["run", str(matmul), "--machine", "workstation", "--emulate", "-d", "cuda"]) == 0
    err = capsys.readouterr().err.splitlines()
    assert 5 <= len(err) <= 10
    assert err[-1].startswith("100 %  ")
    told = {line.rpartition(", ")[2] for line in err}
    assert told <= {*(tasks := ("a", "b", "images", "filters", "product", "features")), *(f"copy of {name}" for name in tasks)}
    assert any(name.startswith("copy of ") for name in told), told


def test_the_course_of_a_training_is_shown(tmp_path, capsys):
    np.savez(tmp_path / "d.npz", x=np.eye(6, 4, dtype=np.float32), y=np.arange(6) % 3)
    (tmp_path / "p.yaml").write_text("""hetsched: 1
models: {m: {input: [4], layers: [{dense: {units: 3}}]}}
tasks:
  load:  {op: data.npz, with: {path: d.npz}}
  train:
    op: nn.train
    in: {x: load.x, y: load.y, x_val: load.x, y_val: load.y}
    with: {model: m, epochs: 6, batch: 2, validate_every: 2}
outputs: {history: {from: train.history}}
""")
    assert main(["run", str(tmp_path / "p.yaml"), "-d", "cpu"]) == 0
    out = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert out[1] == ["epoch", "val_loss", "val_accuracy"]
    assert [line[0] for line in out[2:5]] == ["2", "4", "6"]
    assert out[4][3:] == ["best"], "on rows that it is trained on it becomes better every epoch"
    assert out[5:7] == [["train.epochs", "6"], ["train.best_epoch", "6"]]
    assert main(["run", str(tmp_path / "p.yaml"), "-d", "cpu", "--format", "json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [f"{loss:.6g}" for loss in record["history"]["train.val_loss"]] == [line[1] for line in out[2:5]]
    assert record["metrics"]["train.epochs"] == 6


def test_what_cannot_be_written_is_told_before_anything_runs(matmul, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    for argv, told in (
        (["-o", str(tmp_path / "file" / "there")], f"{tmp_path}/file is a file, not a folder"),
        (["--trace", str(tmp_path)], f"--trace {tmp_path}: cannot be written: this is a folder"),
    ):
        assert main(["run", str(matmul), *argv]) == 7
        captured = capsys.readouterr()
        assert captured.out == "", "it was not even planned"
        assert told in captured.err
        assert captured.err.startswith("hetsched: error: ")


def test_what_does_not_fit_the_memory_is_told_at_its_place(tmp_path, capsys):
    file = tmp_path / "huge.yaml"
    file.write_text("hetsched: 1\ntasks:\n  a: {op: random.normal, with: {shape: [100000000, 100000000]}}\noutputs: {y: {from: a}}\n")
    for command in ("run", "plan", "check"):
        assert main([command, str(file)]) == 5
        captured = capsys.readouterr()
        told = captured.out if command == "check" else captured.err
        assert told.startswith(f"{file}:3:3: error: ")
        assert "'a'" in told
        assert "40000000000" in told
        assert "another memory" not in told, "none could hold it"


@pytest.mark.parametrize("limit", ["250KiB", "480KiB"])
def test_where_a_file_does_not_fit_the_memory_reading_it_by_rows_is_a_way_out(limit, tmp_path, capsys):
    np.savez(tmp_path / "d.npz", x=np.zeros((2400, 32), np.float32), y=np.zeros(2400, np.int64))
    text = """hetsched: 1
models: {m: {input: [32], layers: [{dense: {units: 2}}]}}
tasks:
  d: {op: data.npz, with: {path: d.npz}}
  s: {op: data.split, in: {x: d.x, y: d.y}, with: {test: 0.2}}
  t: {op: nn.train, in: {x: s.x_train, y: s.y_train}, with: {model: m}}
outputs: {m: {from: t.model}}
"""
    made = text.replace("data.npz, with: {path: d.npz}", "data.synthetic, with: {rows: 2400, shape: [32], classes: 2}")
    for content, expected in ((text, True), (made, False)):
        (tmp_path / "p.yaml").write_text(content)
        assert main(["check", str(tmp_path / "p.yaml"), "--machine", "workstation", "-d", "cpu", "--memory", limit]) == 5
        told = capsys.readouterr().out
        assert ("or use smaller batches, or read the file by rows (data.batches)" in told) == expected, told


def test_a_loop_that_does_not_fit_the_memory_is_told_at_its_place(capsys):
    file = PIPELINES / "digits_mlp.yaml"
    line = next(i for i, text in enumerate(file.read_text(encoding="utf-8").splitlines(), 1) if text == "  train:")
    for command in (["run"], ["plan"], ["check"], ["explain", "train"]):
        assert main([command[0], str(file), *command[1:], "--memory", "20KiB"]) == 5
        captured = capsys.readouterr()
        told = captured.out if command[0] == "check" else captured.err
        assert told.startswith(f"{file}:{line}:3: error: loop 'train/steps' needs "), told
        assert told.splitlines()[0].endswith(" [memory]")


def test_a_file_that_does_not_fit_the_memory_keeps_no_other_from_being_checked(matmul, tmp_path, capsys):
    huge, nowhere = tmp_path / "huge.yaml", tmp_path / "nowhere.yaml"
    huge.write_text("hetsched: 1\ntasks:\n  a: {op: random.normal, with: {shape: [100000000, 100000000]}}\noutputs: {y: {from: a}}\n")
    nowhere.write_text("hetsched: 1\ntasks:\n  a: {op: random.normal, with: {shape: [3]}, device: tpu}\noutputs: {y: {from: a}}\n")
    assert main(["check", str(huge), str(matmul)]) == 5
    ok, proved, first, *_, last = capsys.readouterr().out.splitlines()
    assert ok == f"{matmul}: ok"
    assert proved.startswith("  memory at most: host ")
    assert first.startswith(f"{huge}:3:3: error: ")
    assert last == "1 mistake"
    assert main(["check", str(huge), str(matmul), str(nowhere)]) == 4, "more is wrong than memory"
    assert "2 mistakes in 2 files" in capsys.readouterr().out
    assert main(["check", str(huge), "--format", "json"]) == 5
    assert [m["rule"] for m in json.loads(capsys.readouterr().out)["mistakes"]] == ["memory"]


def test_outputs_go_where_they_are_told(matmul, tmp_path, capsys):
    assert main(["run", str(matmul), "-o", str(tmp_path / "there"), "--format", "json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["outputs"]["product"] == str(tmp_path / "there" / "out" / "product.npy")
    assert record["outputs"]["a"] is None
    assert (tmp_path / "there" / "out" / "product.npy").exists()
    assert not (tmp_path / "out").exists()


def test_json_is_one_object_with_all_its_keys_and_nothing_else_is_printed(matmul, capsys):
    assert main(["run", str(matmul), "-d", "cpu", "--format", "json"]) == 0
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    assert captured.err == ""
    assert {
        "version", "status", "wall_seconds", "planned_seconds", "lower_bound_seconds", "policy", "objective", "devices", "transfers", "tasks",
        "metrics", "outputs",
    } <= set(record)  # fmt: skip
    assert record["status"] == "done"
    assert record["wall_seconds"] > 0
    assert 0 < record["lower_bound_seconds"] <= record["planned_seconds"]
    assert record["devices"]["cpu"]["tasks"] == 6
    assert record["transfers"]["hidden_fraction"] is None
    assert {t["name"]: (t["op"], t["device"]) for t in record["tasks"]}["product"] == ("tensor.matmul", "cpu")


def test_training_that_diverges_ends_with_a_warning(tmp_path, capsys):
    file = shutil.copy(PIPELINES / "digits_mlp.yaml", tmp_path)
    (tmp_path / "data").mkdir()
    shutil.copy(PIPELINES / "data" / "digits.npz", tmp_path / "data")
    diverge = ["-s", "lr=1e30", "-s", "epochs=1"]
    assert main(["run", str(file), *diverge, "--format", "json"]) == 0
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    assert any(w.startswith("evaluate.metrics is not finite: loss (NaN); training has diverged") for w in warnings)
    assert main(["run", str(file), *diverge]) == 0
    assert "\nwarning: train.model is not finite: " in capsys.readouterr().out


def test_jsonl_tells_progress_and_ends_with_the_object(matmul, capsys):
    assert main(["run", str(matmul), "--format", "jsonl"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["event"] for line in lines[:-1]} == {"progress"}  # one a step: neighbours that are joined end together
    assert lines[-1]["event"] == "end"
    assert lines[-2]["done"] == lines[-2]["total"] == 6
    assert [line["done"] for line in lines[:-1]] == sorted(line["done"] for line in lines[:-1])
    assert lines[-1]["status"] == "done"


@pytest.mark.parametrize(
    ("argv", "key"),
    [
        (["run", "FILE", "-d", "cpu", "--gantt", "--trace", "-"], "traceEvents"),
        (["plan", "FILE", "-d", "cpu", "--trace", "-"], "traceEvents"),
        (["plan", "FILE", "-d", "cpu", "-o", "-"], "plan"),
        (["trace", "last", "-o", "-"], "traceEvents"),
    ],
    ids=["run", "plan", "locked", "trace"],
)
def test_a_dash_is_standard_output_and_what_is_told_goes_to_standard_error(matmul, tmp_path, capsys, monkeypatch, argv, key):
    monkeypatch.chdir(tmp_path)
    if argv[0] == "trace":
        assert main(["run", str(matmul), "-d", "cpu"]) == 0
        capsys.readouterr()
    assert main([word.replace("FILE", str(matmul)) for word in argv]) == 0
    captured = capsys.readouterr()
    assert key in json.loads(captured.out)
    assert re.search("makespan|trace of ", captured.err), "what is told is not lost"
    assert not (tmp_path / "-").exists()


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["run", "FILE", "--trace", "-", "--format", "json"], "--trace - and --format json both take standard output"),
        (["plan", "FILE", "--trace", "-", "-o", "-"], "-o - and --trace - both take standard output"),
        (["run", "FILE", "-o", "-"], "-o - means standard output, and a folder is asked for; one called - is ./-"),
        (["init", "-"], "DIR - means standard output"),
    ],
    ids=["run", "plan", "folder", "init"],
)
def test_a_dash_that_cannot_be_standard_output_is_refused(matmul, tmp_path, capsys, monkeypatch, argv, told):
    monkeypatch.chdir(tmp_path)
    assert main([word.replace("FILE", str(matmul)) for word in argv]) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert captured.out == ""
    assert sorted(x.name for x in tmp_path.iterdir()) == ["matmul_conv.yaml"]


def test_a_file_called_dash_has_its_folder_before_it(matmul, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["graph", str(matmul), "--format", "dot", "-o", "-"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("digraph")
    assert main(["graph", str(matmul), "--format", "dot", "-o", "./-"]) == 0
    assert (tmp_path / "-").read_text() == shown


def test_a_parameter_and_the_seed_change_what_is_computed(matmul, tmp_path, capsys):
    found = []
    for i, option in enumerate((["--seed", "3"], ["-s", "seed=3"], ["-s", "seed=4"])):
        assert main(["run", str(matmul), "-o", str(tmp_path / str(i)), *option]) == 0
        found.append(np.load(tmp_path / str(i) / "out" / "product.npy"))
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_the_trace_of_a_run_is_written_with_a_track_a_lane(matmul, tmp_path, capsys):
    assert main(["run", str(matmul), "--trace", str(tmp_path / "t.json")]) == 0
    trace = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    assert trace["otherData"]["kind"] == "trace"
    assert {e["name"] for e in trace["traceEvents"] if e["ph"] == "X"} == {"a", "b", "product", "images", "filters", "features"}


@pytest.mark.parametrize(
    ("options", "code", "hint"),
    [
        (["-d", "cuda:7"], 4, "cuda:7"),
        (["--memory", "1KiB"], 5, "Raise the limit"),
        (["--timeout", "1us"], 6, "raise --timeout"),
        (["-o", "/dev/null/x"], 7, "/dev/null/x"),
        (["--trace", "/dev/null/t.json"], 7, "/dev/null/t.json"),
        (["--policy", "hft"], 2, "did you mean 'heft'"),
        (["-s", "sed=3"], 2, "known: seed"),
    ],
)
def test_every_way_to_fail_has_its_code_a_way_out_and_no_traceback(matmul, options, code, hint, capsys):
    assert main(["run", str(matmul), *options]) == code
    err = capsys.readouterr().err
    assert hint in err
    assert "Traceback" not in err
    assert "internal bug" not in err


def test_a_failed_run_is_an_object_too(matmul, capsys):
    assert main(["run", str(matmul), "--memory", "1KiB", "--format", "json"]) == 5
    record = json.loads(capsys.readouterr().out)
    assert (record["status"], record["exit_code"]) == ("failed", 5)
    assert "Raise the limit" in record["error"]


def test_mistakes_end_with_3_and_stand_with_their_places(tmp_path, capsys):
    file = tmp_path / "bad.yaml"
    file.write_text("hetsched: 1\ntasks:\n  a: {op: random.norml, with: {shape: [2]}}\n  b: {op: tensor.exp, in: {x: c}}\n", encoding="utf-8")
    assert main(["check", str(file)]) == 3
    out = capsys.readouterr().out
    assert f"{file}:3:11: error: " in out
    assert "did you mean 'random.normal'" in out
    assert f"{file}:4:" in out
    assert out.splitlines()[-1] == "2 mistakes"
    assert main(["run", str(file)]) == 3
    captured = capsys.readouterr()
    assert captured.err == out
    assert main(["check", str(file), "--format", "json"]) == 3
    assert [m["line"] for m in json.loads(capsys.readouterr().out)["mistakes"]] == [3, 4]


def test_check_says_ok(matmul, capsys):
    assert main(["check", str(matmul)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{matmul}: ok"
    assert re.fullmatch(r"  memory at most: host \S+ \S+ of \S+ GiB; proved, with \d+ arrays of known shape and dtype", second)
    assert main(["check", str(matmul), "--format", "json"]) == 0
    proved = json.loads(capsys.readouterr().out)["certificates"][str(matmul)]
    assert proved["memory"]["host"]["peak_bytes"] <= proved["memory"]["host"]["limit_bytes"]
    assert main(["check", str(matmul), "--memory", "1KiB"]) == 5
    assert "Raise the limit of host" in capsys.readouterr().out


def test_memory_limits_of_devices_evict_and_the_plan_tells_so(matmul, capsys):
    assert main(["check", str(matmul), "--memory", "tpu=1KiB"]) == 2
    assert "names no memory node and no device: 'tpu'" in capsys.readouterr().err
    given = ["plan", str(matmul), "--machine", "workstation", "-d", "gpu", "--format", "json"]
    assert main(given) == 0
    free = json.loads(capsys.readouterr().out)["memory"]
    (gpu,) = [node for node in free if node != "host"]
    assert free[gpu]["peak_bytes"] > 0
    assert main([*given, "--memory", f"gpu={free[gpu]['arena_bytes']}"]) == 0
    tight = json.loads(capsys.readouterr().out)["memory"][gpu]
    assert tight == {**free[gpu], "limit_bytes": free[gpu]["arena_bytes"]}


def test_a_file_that_is_not_there_is_named(tmp_path, capsys):
    for command in ("run", "plan", "check", "graph", "trust"):
        assert main([command, str(tmp_path / "no.yaml")]) == 7
        assert "no.yaml" in capsys.readouterr().err


def test_a_consent_is_asked_for_and_remembered(matmul, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    text = Path(matmul).read_text(encoding="utf-8").replace("out/product.npy", "../product.npy")
    file = tmp_path / "deep" / "outside.yaml"
    file.parent.mkdir()
    file.write_text(text, encoding="utf-8")
    assert main(["check", str(file)]) == 8
    assert main(["run", str(file)]) == 8
    assert "hetsched trust" in capsys.readouterr().err
    assert main(["check", str(file), "--trust"]) == 0
    assert main(["trust", str(file)]) == 0
    assert main(["run", str(file)]) == 0
    assert (tmp_path / "product.npy").exists()
    file.write_text(text + "\n", encoding="utf-8")
    assert main(["check", str(file)]) == 8


def test_plan_shows_tasks_chart_and_bound_and_runs_nothing(matmul, tmp_path, capsys):
    assert main(["plan", str(matmul), "--trace", str(tmp_path / "plan.json")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("task ")
    assert "\nproduct" in out
    assert "\ncpu/" in out
    assert "lower bound" in out
    assert not (tmp_path / "out").exists()
    assert json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))["otherData"]["kind"] == "plan"


def test_plan_as_json(matmul, capsys):
    assert main(["plan", str(matmul), "--policy", "heft", "--format", "json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["policy"], record["name"]) == ("heft", "matmul_conv")
    assert 0 < record["lower_bound"] <= record["makespan"]
    assert main(["plan", str(matmul), str(matmul), "--format", "json"]) == 2
    assert "use --format jsonl" in capsys.readouterr().err


COSTED = {
    "format": "placement-bench/1", "name": "two", "family": "hand", "model": "unrelated", "machine": "m", "mem_nodes": ["host"],
    "devices": [{"name": "cpu", "kind": "cpu", "lanes": 2, "mem": 0}], "links": [],
    "durations": [[1.0], [2.0], [1.0]],
    "edges": [[0, 1, 8], [0, 2, 8]],
}  # fmt: skip
BODY = {
    "format": "period-bench/1", "name": "body", "family": "hand", "machine": "m", "mem_nodes": ["host"],
    "devices": [{"name": "cpu", "kind": "cpu", "lanes": 2, "mem": 0}], "links": [], "tasks": ["a", "b"], "durations": [[0.001], [0.001]],
    "edges": [[0, 1, 8]], "carried": [],
}  # fmt: skip


def test_costed_graphs_and_loop_bodies_are_planned_a_line_a_file(tmp_path, capsys):
    files = []
    for name, data in (("two", COSTED), ("body", BODY)):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(data), encoding="utf-8")
    assert main(["plan", *map(str, files), "--format", "jsonl", "--plan-time", "1s"]) == 0
    costed, body = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert {"file", "policy", "makespan", "lower_bound", "plan_seconds", "tasks"} <= set(costed)
    assert costed["makespan"] == pytest.approx(3.0)
    assert len(costed["tasks"]) == 3
    assert {"file", "name", "period", "lower_bound", "seconds", "plan"} <= set(body)
    assert body["period"] == pytest.approx(0.001)
    assert main(["plan", *map(str, files)]) == 0
    out = capsys.readouterr().out
    assert "makespan 3 s; lower bound 3 s: the best possible" in out
    assert "period 1 ms" in out


@pytest.mark.parametrize(
    ("text", "hint"), [("[]", "not a JSON object: it holds a list"), ("{", "not a JSON object"), ('{"format": "placement-bench/2"}', "did you mean")]
)
def test_json_of_another_kind_is_told(tmp_path, text, hint, capsys):
    file = tmp_path / "x.json"
    file.write_text(text, encoding="utf-8")
    assert main(["plan", str(file)]) == 7
    assert hint in capsys.readouterr().err


def test_graph_in_every_form(matmul, tmp_path, capsys):
    assert main(["graph", str(matmul)]) == 0
    assert "product: tensor.matmul(" in capsys.readouterr().out
    assert main(["graph", str(matmul), "-o", str(tmp_path / "g.mmd")]) == 0
    assert (tmp_path / "g.mmd").read_text(encoding="utf-8").startswith("flowchart TD\n")
    assert main(["graph", str(matmul), "--format", "dot"]) == 0
    assert capsys.readouterr().out.startswith('digraph "graph" {')


def test_devices_are_listed(capsys):
    assert main(["devices"]) == 0
    assert "\ncpu " in capsys.readouterr().out
    assert main(["devices", "--format", "json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert "cpu" in [d["id"] for d in record["devices"]]


def test_progress_of_a_million_launches_is_ten_lines_or_a_hundred(capsys, monkeypatch):
    monkeypatch.setattr("hetsched.cli.output.PLAIN_SECONDS", 0.0)
    progress = Progress()
    lines = ProgressLines(Progress(quiet=True))
    for done in range(0, 1_000_001, 100):
        progress(done, 1_000_000, "t")
        lines(done, 1_000_000, "t")
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 10
    assert len(captured.out.splitlines()) == 100


def test_a_bar_is_drawn_on_a_terminal_and_taken_down(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Progress() as progress:
        progress(1, 2, "first")
        progress(2, 2, "last")
    assert "2/2" in capsys.readouterr().err


def test_explain_tells_what_a_task_waits_for_and_what_each_device_would_take(matmul, capsys):
    assert main(["explain", str(matmul), "product"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("product: tensor.matmul on cpu/")
    assert "(chosen)" in out
    assert main(["explain", str(matmul), "prodct"]) == 2
    assert "did you mean 'product'" in capsys.readouterr().err


def test_the_chart_of_a_run_is_drawn_when_asked_for(matmul, capsys):
    assert main(["run", str(matmul), "--gantt"]) == 0
    assert "\ncpu/" in capsys.readouterr().out


def test_the_schema_accepts_the_shipped_pipelines(capsys):
    import yaml
    from jsonschema import Draft202012Validator

    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    Draft202012Validator.check_schema(schema)
    for file in PIPELINES.glob("*.yaml"):
        Draft202012Validator(schema).validate(yaml.safe_load(file.read_text(encoding="utf-8").replace("1e-", "1.0e-")))


def test_ctrl_c_ends_a_run_with_130(tmp_path):
    argv = [
        sys.executable,
        "-m",
        "hetsched",
        "run",
        str(PIPELINES / "mlp_784.yaml"),
        "-s",
        "rows=600",
        "-s",
        "epochs=25000",
        "-o",
        str(tmp_path),
        "--format",
        "jsonl",
    ]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "progress"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=600)
    assert process.returncode == 130
    assert err == "\nhetsched: interrupted\n"
    assert list(tmp_path.iterdir()) == []


def test_a_described_machine_is_planned_for_by_name_or_by_file(matmul, tmp_path, capsys):
    from hetsched.machine.described import machine_named, machine_names, write_machine

    assert main(["machines"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]} >= set(machine_names())
    write_machine(machine_named("workstation"), tmp_path / "mine.yaml")
    makespans = []
    for text in ("workstation", str(tmp_path / "mine.yaml")):
        assert main(["plan", str(matmul), "--machine", text, "--format", "json"]) == 0
        record = json.loads(capsys.readouterr().out)
        assert "cuda:0" in record["devices"]
        makespans.append(record["makespan"])
    assert makespans[0] == makespans[1]
    assert main(["devices", "--machine", "workstation"]) == 0
    assert "\ncuda:0 " in capsys.readouterr().out
    assert main(["devices", "--machine", "wrkstation"]) == 3
    assert "did you mean 'workstation'" in capsys.readouterr().err
    assert main(["plan", str(matmul), "--machine", str(tmp_path / "no.yaml")]) == 7


@pytest.fixture
def half_broken(tmp_path):
    """A pipeline of two files, one of which goes away between planning and running."""
    np.save(tmp_path / "a.npy", np.ones((4, 4), np.float32))
    path = tmp_path / "two.yaml"
    path.write_text(
        "hetsched: 1\ntasks:\n  gone: {op: test.gone, in: {x: zeros}}\n".replace("  gone: {op: test.gone, in: {x: zeros}}\n", "")
        + "  good: {op: random.normal, with: {shape: [4], seed: 1}}\n"
        "  bad: {op: random.normal, with: {shape: [4], seed: 2}}\n"
        "  worse: {op: tensor.neg, in: {x: bad}}\n"
        "outputs:\n  good: {from: good, save: out/good.npy}\n  worse: {from: worse, save: out/worse.npy}\n"
    )
    return path


@pytest.mark.parametrize("error", [ValueError("broken"), FileError("x.npy: gone")], ids=["task", "file"])
def test_keep_going_prints_one_object_and_writes_what_there_is(half_broken, tmp_path, capsys, monkeypatch, error):
    from hetsched.graph.ops import find

    op = find("random.normal")
    plain = op.kernels["array"]

    def kernel(xp, inputs, outputs, workspace, attributes):
        if attributes["seed"] == 2:
            raise error
        return plain(xp, inputs, outputs, workspace, attributes)

    object.__setattr__(op, "kernels", {**op.kernels, "array": kernel, "host": kernel})
    try:
        code = main(["run", str(half_broken), "--keep-going", "--format", "json", "-d", "cpu"])
        record = json.loads(capsys.readouterr().out)
        assert code == 1
        assert record["status"] == "failed"
        assert list(record["failed"]) == ["bad"]
        assert str(error) in record["failed"]["bad"]
        assert (tmp_path / "out" / "good.npy").exists()
        assert not (tmp_path / "out" / "worse.npy").exists()
        assert main(["run", str(half_broken), "--keep-going", "--format", "jsonl", "-d", "cpu"]) == 1
        ends = [row for row in map(json.loads, capsys.readouterr().out.splitlines()) if row.get("event") != "progress"]
        assert [row["status"] for row in ends] == ["failed"]
    finally:
        object.__setattr__(op, "kernels", {**op.kernels, "array": plain, "host": plain} if "host" in op.kernels else {"array": plain})


# A process that sends Ctrl-C to itself when the module that its first argument names is asked for.
STRUCK = """
import os, signal, sys
from hetsched.cli import main

class Strike:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            print("struck", flush=True)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Strike())
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("module", ["hetsched.cli.entry", "hetsched.cli.commands.run", "yaml", "numpy", "hetsched.executors.cpu"])
def test_ctrl_c_while_the_command_is_being_loaded_is_quiet(tmp_path, module):
    """Wherever it strikes once the command has been entered: the word and the code, no traceback."""
    argv = [sys.executable, "-c", STRUCK, module, "run", str(PIPELINES / "matmul_conv.yaml"), "-o", str(tmp_path), "--format", "json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    struck, _, rest = done.stdout.partition("\n")
    assert struck == "struck", "the module is loaded before the command is entered, or never"
    assert not rest or json.loads(rest)["exit_code"] == 130
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert done.stderr.endswith("hetsched: interrupted\n")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_outputs_are_no_error(matmul, tmp_path, closed):
    command = f'"{sys.executable}" -m hetsched run "{matmul}" -o "{tmp_path}" {closed}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "bug" not in done.stderr
    assert (tmp_path / "out" / "product.npy").exists()


def test_replan_is_reachable_and_refuses_what_it_cannot_go_with(matmul, capsys):
    assert main(["run", str(matmul), "--replan"]) == 0
    capsys.readouterr()
    assert main(["run", str(matmul), "--replan", "--keep-going"]) == 2
    assert "--replan cannot be used with --keep-going" in capsys.readouterr().err


def test_an_output_that_is_one_number_is_told_and_what_is_not_saved_is_named(tmp_path, capsys):
    (tmp_path / "p.yaml").write_text("""hetsched: 1
name: numbers
tasks:
  ones:  {op: tensor.full, with: {shape: [3], value: 2.0}}
  sum:   {op: tensor.sum, in: {x: ones}}
  count: {op: tensor.full, with: {shape: [1], value: 7, dtype: int64}}
outputs:
  total: {from: sum}
  kept:  {from: sum, save: out/kept.npy}
  count: {from: count}
  rows:  {from: ones}
""")
    assert main(["run", str(tmp_path / "p.yaml")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split() for line in out[1:4]] == [["total", "6"], ["kept", "6"], ["count", "7"]]
    assert "not kept: rows (save: FILE under outputs: writes them)" in out
    assert main(["run", str(tmp_path / "p.yaml"), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == {"total": 6.0, "kept": 6.0, "count": 7.0}


@pytest.mark.parametrize("command", [["plan"], ["plan", "--trace"], ["graph"], ["trace"]])
def test_a_folder_is_no_file_to_write(command, matmul, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = [] if command == ["trace"] else [str(matmul)]
    assert main([*command[:1], *file, "-o" if len(command) == 1 else command[1], "."]) == 7
    captured = capsys.readouterr()
    assert "cannot be written: this is a folder; choose another name" in captured.err
    assert captured.out == "", "it was not even planned"


def test_a_picture_wants_an_extension(matmul, tmp_path, capsys):
    assert main(["graph", str(matmul), "-o", str(tmp_path / "picture")]) == 2
    assert "the extension says the form, and there is none: add one of .txt, .svg" in capsys.readouterr().err


BAD_LABEL = """hetsched: 1
models: {m: {input: [3], layers: [{dense: {units: 2}}]}}
tasks:
  rows: {op: data.csv, with: {path: rows.csv, label: l}}
  learn: {op: nn.train, in: {x: rows.x, y: rows.y}, with: {model: m, batch: 2, shuffle: false}}
outputs: {m: {from: learn.model}, losses: {from: learn.losses}}
"""


@pytest.mark.parametrize("form", ["text", "json", "jsonl"])
def test_a_task_that_fails_is_told_at_its_place_with_its_loop_and_turn(form, tmp_path, capsys):
    (tmp_path / "rows.csv").write_text("a,b,c,l\n1,2,3,0\n1,2,3,1\n1,2,3,0\n1,2,3,5\n")
    file = tmp_path / "bad.yaml"
    file.write_text(BAD_LABEL)
    assert main(["run", str(file), "-d", "cpu", "--no-learn", "--format", form]) == 1
    captured = capsys.readouterr()
    told = captured.err.splitlines()[-1]
    assert told.startswith(f"{file}:5:3: error: task '"), told
    assert "failed in turn 1 of loop 'learn/steps': IndexError: labels[1] is 5, outside 0 to 1" in told
    if form == "json":
        assert json.loads(captured.out)["error"] == told
    if form == "jsonl":
        assert json.loads(captured.out.splitlines()[-1]) == {"event": "end", "version": 1, "status": "failed", "exit_code": 1, "error": told}


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_ctrl_c_ends_json_with_an_object_too(form, matmul, capsys, monkeypatch):
    def interrupted(*given, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module("hetsched.run"), "run", interrupted)
    assert main(["run", str(matmul), "-d", "cpu", "--no-learn", "--format", form]) == 130
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told.pop("event", "end") == "end"
    assert told == {"version": 1, "status": "failed", "exit_code": 130, "error": "interrupted"}
    assert captured.err.splitlines()[-1] == "hetsched: interrupted"


def test_outputs_that_needed_what_failed_are_named_under_keep_going(tmp_path, capsys):
    (tmp_path / "rows.csv").write_text("a,b,c,l\n1,2,3,0\n1,2,3,7\n")
    file = tmp_path / "bad.yaml"
    file.write_text(BAD_LABEL)
    assert main(["run", str(file), "-d", "cpu", "--no-learn", "--keep-going"]) == 1
    captured = capsys.readouterr()
    assert "not made: m, losses (needed what failed)" in captured.out
    assert "not kept" not in captured.out
    assert f"{file}:5:3: error: task '" in captured.err


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_output_that_cannot_be_written_loses_no_other_one_and_not_the_run(form, matmul, tmp_path, capsys, monkeypatch):
    from hetsched.pipeline import build

    write = build.write

    def full(path, value, **options):
        if path.endswith("product.npy"):
            raise FileError(f"{path}: cannot be written: No space left on device")
        write(path, value, **options)

    monkeypatch.setattr(build, "write", full)
    assert main(["run", str(matmul), "-o", str(tmp_path / "o"), "--no-learn", "--format", form]) == 7
    captured = capsys.readouterr()
    told = f"output 'product': {tmp_path / 'o'}/out/product.npy: cannot be written: No space left on device (written: features)"
    assert captured.err.splitlines()[-1] == f"hetsched: error: {told}"
    assert (tmp_path / "o" / "out" / "features.npy").exists()
    if form == "json":
        record = json.loads(captured.out)
        assert record["status"] == "failed"
        assert record["unwritten"] == [told]
        assert record["outputs"]["features"].endswith("features.npy")
    else:
        assert "features -> " in captured.out
        assert "\ntime: " in captured.out
    assert main(["show"]) == 0
    assert "matmul_conv" in capsys.readouterr().out


def test_a_trace_that_cannot_be_written_does_not_lose_the_run(matmul, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hetsched.cli.output.refuse", lambda paths: None)
    monkeypatch.setattr("hetsched.cli.commands.run.refuse", lambda paths: None)
    assert main(["run", str(matmul), "-o", str(tmp_path), "--no-learn", "--trace", str(tmp_path)]) == 7
    captured = capsys.readouterr()
    assert "product -> " in captured.out
    assert captured.err.splitlines()[-1] == f"hetsched: error: {tmp_path}: cannot be written: this is a folder; choose another name"
