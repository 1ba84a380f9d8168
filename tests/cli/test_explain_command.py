"""`hetsched explain`: tables, flip points over the file's parameters, JSON."""

from __future__ import annotations

import json
from pathlib import Path

from hetsched.cli import main

PIPELINES = Path(__file__).parents[2] / "pipelines"
DIGITS = str(PIPELINES / "digits_mlp.yaml")


SMALL = """
hetsched: 1
params: {n: 96, seed: 1}
tasks:
  a: {op: random.normal, with: {shape: [$n, $n], seed: $seed}, device: cpu}
  c: {op: tensor.matmul, in: {a: a, b: a}}
outputs: {c: {from: c}}
"""


def test_a_flip_point_over_a_parameter_of_the_file(tmp_path, capsys):
    """The command finds it; planning the file on both sides of it, by the command, gives the two choices."""
    file = tmp_path / "p.yaml"
    file.write_text(SMALL)
    options = ["--machine", "workstation", "--policy", "heft", "--format", "json"]
    assert main(["explain", str(file), "c", *options]) == 0
    (task,) = json.loads(capsys.readouterr().out)["tasks"]
    assert {o["device"] for o in task["options"]} == {"cpu", "cuda:0"}
    flip = next(f for f in task["flips"] if f["what"] == "n")
    found = []
    for value in (flip["same"], flip["other"]):
        assert main(["plan", str(file), "-s", f"n={int(value)}", *options]) == 0
        found.append({t["name"]: t["device"] for t in json.loads(capsys.readouterr().out)["tasks"]}["c"])
    assert found == [flip["stays"], flip["becomes"]]
    assert "n" not in {text.split()[0] for text in task["searched"]}


def test_a_task_of_a_loop_is_explained_without_flip_points_where_that_is_asked(capsys):
    assert main(["explain", DIGITS, "train/dense1", "--machine", "laptop", "-s", "epochs=1", "--no-flips"]) == 0
    text = capsys.readouterr().out
    assert "train/steps/train/dense1: nn.dense on " in text
    assert "(chosen)" in text
    assert "flips:" not in text


def test_a_group_of_tasks_is_explained_without_a_search(capsys):
    assert main(["explain", DIGITS, "split", "--machine", "laptop"]) == 0
    text = capsys.readouterr().out
    assert "split/x_train: tensor.gather" in text
    assert "split/y_train: tensor.gather" in text
    assert "flips:" not in text


def test_a_name_of_the_file_means_its_group_before_the_end_of_another(capsys):
    """`scale/train` ends as the task `train` of the file is called."""
    assert main(["explain", DIGITS, "train"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("train stands for ")
    assert "train/steps/train/dense1 " in out
    assert "scale/train" not in out
