"""Constraints that cannot hold are told at the lines of the file that they come from."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from hetsched.cli import main
from hetsched.errors import PlacementError
from hetsched.machine import Machine
from hetsched.machine.described import machine_named
from hetsched.pipeline.build import check, load
from hetsched.pipeline.devices import described_kinds
from hetsched.pipeline.placing import entry_of, mistakes, placing
from hetsched.placement import plan_graph
from hetsched.report.summary import fallbacks
from hetsched.timeline import Launch, Timeline

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"
HEAD = "hetsched: 1\noutputs: {out: {from: a}}\ntasks:\n"


def conflicts(tmp_path: Path, tasks: str, machine: str = "workstation", only: str | None = None) -> list[str]:
    """`line:column message` of every mistake that planning tells."""
    file = tmp_path / "p.yaml"
    file.write_text(HEAD + tasks, encoding="utf-8")
    pipeline = load(file)
    with pytest.raises(PlacementError) as caught, placing(pipeline):
        plan_graph(pipeline.graph, machine_named(machine), only=only)
    assert caught.value.exit_code == 4
    found = mistakes(pipeline, caught.value)
    assert all(str(m) in str(caught.value) for m in found)
    return [f"{m.line}:{m.column} {m.message}" for m in found]


A = "  a: {op: random.normal, with: {shape: [4, 4], seed: 1}"
B = "  b: {op: tensor.exp, in: {x: a}"


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    (told,) = conflicts(tmp_path, f"{A}, device: opencl:3}}\n")
    assert told.startswith(f"4:{len(A) + 11} task 'a' (random.normal): no device satisfies `device: opencl:3`; it can run on cpu, cuda:0")


def test_every_device_left_out_and_a_list_of_none(tmp_path: Path) -> None:
    told = conflicts(tmp_path, f"{A}, device: {{not: [cpu, gpu]}}}}\n{B}, device: [opencl, emulated]}}\n")
    assert [t.split(": no device")[0] for t in told] == [f"4:{len(A) + 11} task 'a' (random.normal)", f"5:{len(B) + 11} task 'b' (tensor.exp)"]
    assert "`not: cpu, gpu`" in told[0]
    assert "`device: opencl, emulated`" in told[1]


def test_two_lines_that_contradict_each_other_are_both_named(tmp_path: Path) -> None:
    shutil.copy(PIPELINES / "data" / "digits.npz", tmp_path)
    data = "  data: {op: data.npz, with: {path: digits.npz}, device: {same_as: a}}\n"
    told = conflicts(tmp_path, f"{A}, device: cuda}}\n{data}")
    assert [t.split(" ")[0] for t in told] == [f"4:{len(A) + 11}", f"5:{data.index('{same_as') + 1}"]
    assert all("no device suits all of these tasks: 'a' may use cuda:0; 'data/x' may use cpu" in t for t in told)


def test_the_limit_of_the_run_against_the_file(tmp_path: Path) -> None:
    (told,) = conflicts(tmp_path, f"{A}, device: cpu}}\n{B}}}\n", only="cuda")
    assert told.startswith(f"4:{len(A) + 11} task 'a'")
    assert "the limit to 'cuda' given for the whole run" in told


def test_many_tasks_of_one_entry_are_told_once(tmp_path: Path) -> None:
    shutil.copytree(PIPELINES / "data", tmp_path / "data")
    text = (PIPELINES / "digits_mlp.yaml").read_text(encoding="utf-8").replace("op: nn.train\n", "op: nn.train\n    device: {not: [cpu, gpu]}\n")
    file = tmp_path / "p.yaml"
    file.write_text(text, encoding="utf-8")
    pipeline = load(file)
    with pytest.raises(PlacementError) as caught:
        plan_graph(pipeline.graph, machine_named("laptop"))
    (told,) = mistakes(pipeline, caught.value)
    assert "more of its tasks" in told.message
    assert told.source.strip() == "device: {not: [cpu, gpu]}"


def test_an_error_about_no_task_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(f"{HEAD}{A}}}\n", encoding="utf-8")
    pipeline = load(file)
    with pytest.raises(PlacementError, match="no device matches 'opencl:7'"), placing(pipeline):
        plan_graph(pipeline.graph, machine_named("laptop"), only="opencl:7")
    assert entry_of(pipeline, "gradient/a/exp") == "a"
    assert entry_of(pipeline, "gradient/b") is None
    assert mistakes(pipeline, PlacementError("", [("about another", ("b",))])) == []


@pytest.mark.usefixtures("no_cuda")
def test_the_command_ends_with_4_and_shows_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(f"{HEAD}{A}, device: cuda}}\n", encoding="utf-8")
    for command in (["plan", str(file)], ["run", str(file)], ["explain", str(file), "a"], ["plan", "--pareto", str(file)]):
        assert main([*command, "--machine", "laptop"] if command[0] != "run" else command) == 4
        err = capsys.readouterr().err
        assert f"{file}:4:{len(A) + 11}: error: task 'a'" in err
        assert "[device]" in err
        assert "Traceback" not in err


def told(tmp_path: Path, device: str, machine: Machine | None = None) -> list[str]:
    file = tmp_path / "p.yaml"
    file.write_text(f"{HEAD}{A}, device: {device}}}\n", encoding="utf-8")
    return [m.message for m in check(file, machine=machine)]


def test_kinds_of_the_catalog_are_known_everywhere(tmp_path: Path) -> None:
    assert {"tpu", "ipu"} <= described_kinds()
    for device in ("tpu", "ipu", "tpu:0", "[tpu, cpu]", "{not: tpu}"):
        assert told(tmp_path, device) == [], device
    (message,) = told(tmp_path, "tpus")
    assert message.startswith("unknown device 'tpus'; did you mean 'tpu'?")


def test_what_the_machine_has_may_be_named(tmp_path: Path) -> None:
    """Its kinds and its devices, which nothing else knows of."""
    machine = machine_named("workstation")
    npu = replace(machine.devices[1], id="npu-a:left", kind="npu", memory=machine.devices[1].memory)
    machine = replace(machine, devices=(machine.devices[0], npu))
    for device in ("npu", '"npu-a:left"', "[npu, cpu]"):
        assert told(tmp_path, device)[0].startswith("unknown device 'npu"), device
        assert told(tmp_path, device, machine) == [], device
    assert load(tmp_path / "p.yaml", machine=machine).graph.where
    (message,) = told(tmp_path, "npus", machine)
    assert "did you mean 'npu'?" in message


def test_the_command_knows_the_kinds_of_its_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (PIPELINES / "machines" / "two_gpus.yaml").read_text(encoding="utf-8")
    assert "kind: cuda" in text
    (tmp_path / "box.yaml").write_text(text.replace("kind: cuda", "kind: npu"), encoding="utf-8")
    (tmp_path / "p.yaml").write_text(f"{HEAD}{A}, device: npu}}\n", encoding="utf-8")
    assert main(["plan", str(tmp_path / "p.yaml")]) == 3
    assert "unknown device 'npu'" in capsys.readouterr().err
    assert main(["check", str(tmp_path / "p.yaml"), "--machine", str(tmp_path / "box.yaml")]) == 0
    assert main(["plan", str(tmp_path / "p.yaml"), "--machine", str(tmp_path / "box.yaml")]) == 0
    assert main(["run", str(tmp_path / "p.yaml"), "--machine", str(tmp_path / "box.yaml"), "--emulate"]) == 0
    assert "error" not in capsys.readouterr().err


NETWORK = """hetsched: 1
models: {m: {input: [10], layers: [{dense: {units: 3}}]}}
tasks:
  d: {op: data.synthetic, with: {rows: 100, shape: [10], classes: 3}, device: cuda}
  s: {op: data.split, in: {x: d.x, y: d.y}, with: {test: 0.2, stratify: true}, device: cuda}
  t: {op: nn.train, in: {x: s.x_train, y: s.y_train}, with: {model: m}, device: cuda}
  e: {op: nn.evaluate, in: {model: t.model, x: s.x_test, y: s.y_test}, device: cuda}
  p: {op: nn.predict, in: {model: t.model, x: s.x_test}, device: {not: cpu}}
outputs: {e: {from: e.metrics}, p: {from: p.y}, l: {from: t.losses}}
"""


def test_a_composite_on_a_device_leaves_to_others_only_what_that_cannot_run(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(NETWORK, encoding="utf-8")
    plan = plan_graph(load(file).graph, machine_named("workstation"))  # checked, too
    on_cpu = {name for name, device in _devices(plan) if device == "cpu"}
    views = {"t/losses", "e/loss_sums", "e/accuracy_sums", "p/y"}  # what a loop collected lies on the host
    assert on_cpu - views == {"s/stratified"}
    assert "task 's/stratified' runs on cpu: cuda, which its group asks for, cannot run it" in plan.notes
    assert fallbacks(plan) == ["s/stratified to cpu"]


def _devices(plan: Timeline) -> set[tuple[str, str]]:
    launches = {(plan.graph.task_names[s.command.task], s.lanes[0].owner) for s in plan.spans if isinstance(s.command, Launch) and s.lanes}
    return {x for x in launches if plan.graph.task_index[x[0]] not in plan.loops} | {x for body in plan.loops.values() for x in _devices(body)}


def test_a_composite_of_which_a_device_can_run_nothing_is_refused_at_its_line(tmp_path: Path) -> None:
    shutil.copy(PIPELINES / "data" / "digits.npz", tmp_path)
    (told,) = conflicts(tmp_path, "  a: {op: data.npz, with: {path: digits.npz, members: [x]}, device: cuda}\n")
    assert "task 'a/x' (data.read_npz): no device satisfies `device: cuda`; it can run on cpu" in told


def test_a_device_that_is_not_there_is_refused_for_a_composite_too(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(NETWORK.replace("device: cuda}\n  p", "device: 'cuda:7'}\n  p"), encoding="utf-8")
    pipeline = load(file)
    with pytest.raises(PlacementError, match=r"p.yaml:7:\d+: error: task .*no device satisfies `device: cuda:7`"), placing(pipeline):
        plan_graph(pipeline.graph, machine_named("workstation"))
