import json
from pathlib import Path

import pytest

from hetsched.cli import main
from hetsched.testing.policy import random_costed


@pytest.fixture
def graph(tmp_path):
    path = tmp_path / "g.json"
    path.write_text(json.dumps(random_costed(39, 12)))
    return str(path)


def test_policies_stand_in_the_order_of_their_makespans(graph, capsys):
    assert main(["compare", graph, "--policies", "one_device,auto,heft", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    spans = [row["makespan"] for row in found["policies"]]
    assert sorted(row["policy"] for row in found["policies"]) == ["auto", "heft", "one_device"]
    assert spans == sorted(spans)
    assert found["policies"][0]["above_best"] == 0.0
    assert 0 < found["lower_bound"] <= spans[0]
    assert all(row["lower_bound"] == found["lower_bound"] for row in found["policies"])
    assert all(row["plan_seconds"] > 0 for row in found["policies"])


def test_charts_share_one_scale(graph, capsys):
    assert main(["compare", graph, "--policies", "auto,one_device"]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    axes = [line for line in lines if line.strip().startswith("0 ")]
    assert len(axes) == 2
    assert axes[0] == axes[1]
    assert "lower bound" in text
    named = json.loads(Path(graph).read_text())["devices"]
    assert f"{named[0]['name']}/0" in text
    assert main(["compare", graph, "--policies", "auto,one_device", "--no-gantt"]) == 0
    assert "idle" not in capsys.readouterr().out


def test_pipelines_are_compared_too(tmp_path, capsys):
    file = tmp_path / "p.yaml"
    file.write_text(
        "hetsched: 1\nname: p\ntasks:\n"
        "  a: {op: random.normal, with: {shape: [8, 8], seed: 1}}\n"
        "  b: {op: tensor.matmul, in: {a: a, b: a}}\n"
        "outputs: {y: {from: b}}\n"
    )
    assert main(["compare", str(file), "--policies", "heft,peft", "--machine", "laptop", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["policy"] for row in found["policies"]] == ["heft", "peft"]
    assert main(["compare", str(file), "--policies", "heft", "--machine", "laptop"]) == 0
    assert "heft" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--policies", "hefd"], "unknown policy 'hefd'; did you mean 'heft'"),
        (["--policies", ","], "--policies names none"),
        (["--machine", "laptop"], "--machine is for pipelines"),
        (["--policy", "heft"], "unknown option '--policy'"),
    ],
)
def test_what_cannot_be_compared_is_told(graph, capsys, extra, message):
    assert main(["compare", graph, *extra]) == 2
    assert message in capsys.readouterr().err
