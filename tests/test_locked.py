"""Locked plans: equal after a round trip, equal values when they are run, refused with the reason where anything has changed."""

from __future__ import annotations

import functools
import hashlib
import json
import random
import shutil
import tempfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

import hetsched as hs
from hetsched.cli import main
from hetsched.errors import FileError, GraphError, OutOfMemoryError, PlacementError
from hetsched.executors import simulated
from hetsched.graph.graph import Graph
from hetsched.locked import code_of, document_of, equal_plans, graph_fingerprint, plan_text, read_document, read_plan, write_plan
from hetsched.machine import MemoryNode
from hetsched.machine.named import find
from hetsched.pipeline.build import load
from hetsched.placement import plan_graph
from hetsched.report.plan_diff import differences, differences_text
from hetsched.run import check_inputs
from hetsched.testing.graphs import random_graph, random_machine
from hetsched.testing.plans import plain_plan
from hetsched.testing.reference import interpret
from hetsched.testing.runs import value_problems
from hetsched.timeline import Timeline

PIPELINES = Path(__file__).parents[1] / "pipelines"


def product(n: int = 64, scale: float = 2.0) -> Graph:
    g = Graph.build()
    a = g.input("a", (n, n))
    b = g.op("tensor.matmul", a, g.constant(np.full((n, n), scale, "f4"), "k"), name="b")
    c = g.op("nn.relu", b, name="c")
    return g.output(g.op("tensor.matmul", c, b, name="d")).freeze()


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs_come_back_equal_and_run_to_equal_values(seed, tmp_path):
    """On random machines with several memories, loops and nested loops; the plan that was read is run under a virtual clock."""
    graph, inputs = random_graph(seed, tasks=10)
    machine = random_machine(seed, memory_limits=False)
    plan = plan_graph(graph, machine, policy=random.Random(seed).choice(["auto", "heft", "earliest_finish", "round_robin"]))
    path = tmp_path / "plan.json"
    write_plan(plan, path)
    again, _ = random_graph(seed, tasks=10)  # the same graph, built anew
    found = read_plan(path, again, random_machine(seed, memory_limits=False))
    assert equal_plans(plan, found)
    assert plan_text(found) == path.read_text(encoding="utf-8")
    result = simulated.run_plan(found, check_inputs(again, inputs))
    assert not value_problems(result, interpret(graph, inputs))


@pytest.mark.parametrize("seed", range(5))
def test_plans_without_a_planner_come_back_too(seed, tmp_path):
    graph, inputs = random_graph(seed + 100, tasks=12, loops=False)
    machine = random_machine(seed, accelerators=0, memory_limits=False)
    plan = plain_plan(graph, machine, seed=seed)
    write_plan(plan, tmp_path / "p.json")
    found = hs.read_plan(tmp_path / "p.json", graph, machine)
    assert equal_plans(plan, found)
    assert not value_problems(hs.run(found, inputs), interpret(graph, inputs))


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Path:
    """A copy of the shipped pipelines, with the model that one of them reads."""
    folder = tmp_path_factory.mktemp("shipped") / "pipelines"
    shutil.copytree(PIPELINES, folder, ignore=shutil.ignore_patterns("out"))
    assert main(["run", str(folder / "digits_mlp.yaml"), "-s", "epochs=1", "--format", "json"]) == 0
    return folder


@pytest.mark.parametrize("file", sorted(p.stem for p in PIPELINES.glob("*.yaml")))
def test_shipped_pipelines_come_back_equal(file, tmp_path, shipped):
    for machine in ("laptop", "workstation"):
        plan = plan_graph(load(shipped / f"{file}.yaml", trust=True).graph, find(machine))
        write_plan(plan, tmp_path / "p.json")
        assert equal_plans(plan, read_plan(tmp_path / "p.json", load(shipped / f"{file}.yaml", trust=True).graph, find(machine)))


def test_one_line_an_item_in_the_order_of_the_plan():
    plan = plan_graph(product(), find("workstation"))
    lines = plan_text(plan).splitlines()
    spans = [i for i, line in enumerate(lines) if line.startswith('   ["')]
    commands = [json.loads(lines[i].rstrip(",")) for i in spans][: len(plan.spans)]
    assert [c[0] for c in commands] == [type(s.command).__name__.lower() for s in plan.spans]
    assert json.loads("\n".join(lines))["plan"]["makespan"] == plan.makespan


def test_a_graph_that_has_changed_is_refused_with_what_has_changed(tmp_path):
    machine = find("workstation")
    path = tmp_path / "p.json"
    write_plan(plan_graph(product(), machine), path)
    with pytest.raises(GraphError, match=r"made for another graph: it has changed 'b', 'c', 'd'; plan again"):
        read_plan(path, product(65), machine)
    with pytest.raises(GraphError, match="its inputs, constants or outputs have changed"):
        read_plan(path, product(scale=3.0), machine)
    g = Graph.build()
    other = g.output(g.op("nn.relu", g.input("a", (64, 64)), name="z")).freeze()
    with pytest.raises(GraphError, match=r"it has no more 'b', 'c', 'd'; it has now 'z'"):
        read_plan(path, other, machine)


def test_fingerprints_tell_what_matters_and_nothing_else():
    base = graph_fingerprint(product())
    assert base == graph_fingerprint(product())
    assert len({base, graph_fingerprint(product(65)), graph_fingerprint(product(scale=3.0))}) == 3
    pipeline = PIPELINES / "digits_mlp.yaml"
    one = graph_fingerprint(load(pipeline).graph)
    assert one == graph_fingerprint(load(pipeline).graph)
    changed = [load(pipeline, {key: value}).graph for key, value in (("batch", 8), ("epochs", 2), ("lr", 0.5), ("seed", 9))]
    assert len({one, *map(graph_fingerprint, changed)}) == 5


def test_a_kernel_of_the_users_own_is_part_of_the_graph():
    def graph(by: float) -> str:
        @hs.op(out=hs.Spec((4,)))
        def moved(x):
            return x + by

        g = Graph.build()
        return graph_fingerprint(g.output(g.op(moved, g.input("x", (4,)), name="m")).freeze())

    assert graph(1.0) == graph(1.0)
    assert graph(1.0) != graph(2.0)
    text = (PIPELINES / "vector_add.yaml").read_text(encoding="utf-8")

    def of_file(folder: Path, text: str) -> str:
        (folder / "v.yaml").write_text(text, encoding="utf-8")
        return graph_fingerprint(load(folder / "v.yaml", trust=True).graph)

    with tempfile.TemporaryDirectory() as folder:
        found = [of_file(Path(folder), t) for t in (text, text, text.replace("sum[i] = x[i] + y[i]", "sum[i] = y[i] + x[i]"))]
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_a_machine_that_has_changed_is_refused_with_what_has_changed(tmp_path):
    machine = find("workstation")
    path = tmp_path / "p.json"
    write_plan(plan_graph(product(512), machine), path)
    fewer = replace(machine, devices=(replace(machine.device("cpu"), lanes=8), machine.device("cuda:0")))
    with pytest.raises(PlacementError, match=r"another machine \(workstation\): device cpu: lanes was 16, is 8; plan again"):
        read_plan(path, product(512), fewer)
    with pytest.raises(PlacementError, match="device cuda:0 is gone"):
        read_plan(path, product(512), find("aws/c5.4xlarge"))
    cpu = machine.device("cpu")
    faster = replace(machine, devices=(replace(cpu, bytes_per_second=1e11, busy_watts=1.0), machine.device("cuda:0")))
    read_plan(path, product(512), faster)  # speeds are no reason
    small = replace(machine, memories=(machine.memories[0], MemoryNode("cuda:0", 1000)))
    with pytest.raises(OutOfMemoryError, match="which has 1000 now"):
        read_plan(path, product(512), small)


def rewritten(path: Path, change) -> None:
    """Change the content and give it a checksum that fits, as somebody might who knows how."""
    document = json.loads(path.read_text(encoding="utf-8"))
    del document["sha256"]
    change(document)
    text = json.dumps(document, sort_keys=True)
    path.write_text(json.dumps({**document, "sha256": hashlib.sha256(text.encode()).hexdigest()}), encoding="utf-8")


def test_what_is_no_plan_is_refused(tmp_path):
    path = tmp_path / "p.json"
    for text in (
        "",
        "{",
        "[]",
        '{"format": "x"}',
        '{"format": "hetsched-plan/1"}',
        "\x00",
        '{"format": "hetsched-plan/1", "sha256": "0"}',
        "[" * 100000,
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(FileError) as error:
            read_plan(path, product(), find("workstation"))
        assert error.value.exit_code == 7
        assert str(path) in str(error.value)
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(FileError):
        read_plan(path, product(), find("workstation"))
    with pytest.raises(FileError, match="cannot be read"):
        read_plan(tmp_path / "none.json", product(), find("workstation"))


def test_a_change_without_a_checksum_is_seen(tmp_path):
    path = tmp_path / "p.json"
    write_plan(plan_graph(product(), find("workstation")), path)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"turns": 1', '"turns": 2', 1), encoding="utf-8")
    with pytest.raises(FileError, match="was changed after it was written"):
        read_plan(path, product(), find("workstation"))
    path.write_text(text[: len(text) // 2], encoding="utf-8")
    with pytest.raises(FileError, match="not a locked plan"):
        read_plan(path, product(), find("workstation"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: d["plan"]["spans"].pop(0), "breaks|not a plan"),
        (lambda d: d["plan"].update(offsets=[[row, 0] for row, _ in d["plan"]["offsets"]]), "breaks"),
        (lambda d: d["plan"]["spans"][0].__setitem__(1, "nobody"), "KeyError: 'nobody'"),
        (lambda d: d["plan"]["spans"][0].__setitem__(4, "soon"), "a number was expected, got 'soon'"),
        (lambda d: d["plan"]["spans"][0].__setitem__(4, float("nan")), "breaks"),
        (lambda d: d["plan"]["spans"][0].__setitem__(3, [["cpu", 99, "compute"]]), "breaks"),
        (lambda d: d["plan"].pop("period"), "KeyError: 'period'"),
        (lambda d: d["plan"].update(arenas={"cuda:0": 1}), "breaks"),
        (lambda d: d["plan"].update(loops={"b": dict(d["plan"])}), "task 'b' is no loop"),
        (lambda d: d["plan"].update(turns=1.5), "a whole number was expected"),
        (lambda d: d.pop("machine"), "KeyError: 'machine'"),
        (lambda d: d["plan"].update(spans=None), "not a plan"),
    ],
)
def test_a_plan_that_breaks_a_rule_is_not_run_even_with_a_checksum(tmp_path, change, told):
    path = tmp_path / "p.json"
    write_plan(plan_graph(product(512), find("workstation")), path)
    rewritten(path, lambda d: None)
    read_plan(path, product(512), find("workstation"))
    rewritten(path, change)
    with pytest.raises(FileError, match=told):
        read_plan(path, product(512), find("workstation"))


def test_random_damage_never_gets_through(tmp_path):
    """Any value anywhere in the file replaced, with a checksum that fits: an error of ours, or a plan that still passes `check`."""
    path = tmp_path / "p.json"
    machine = find("workstation")
    graph, _ = random_graph(3, tasks=8)
    write_plan(plan_graph(graph, machine), path)
    text = path.read_text(encoding="utf-8")
    rng = random.Random(1)
    refused = 0

    def damage(node):
        while isinstance(node, (dict, list)) and node:
            key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
            if not isinstance(node[key], (dict, list)) or not node[key] or rng.random() < 0.1:
                node[key] = rng.choice([None, -1, 10**30, "x", [], {}, 0.5, [[1]], True])
                return
            node = node[key]

    for _ in range(150):
        path.write_text(text, encoding="utf-8")
        rewritten(path, lambda d: damage(d["plan"]))
        try:
            found = read_plan(path, graph, machine)
        except (FileError, OutOfMemoryError):
            refused += 1
        else:
            hs.check(found)
    assert refused > 60


def test_differences_are_told_by_task_copy_time_and_memory(tmp_path):
    machine = find("workstation")
    one, two = plan_graph(product(512), machine), plan_graph(product(512), machine, only="cpu")
    assert differences(document_of(one), document_of(one)) == []
    assert differences_text([]) == "the plans are equal"
    found = differences(document_of(one), document_of(two))
    text = differences_text(found)
    assert "task b: cuda:0 -> cpu" in text
    assert "copy a host->cuda:0: gone" in text
    assert "makespan: " in text
    assert "memory cuda:0: " in text
    assert differences(document_of(one), document_of(plan_graph(product(512), find("server"))))[0].what == "machine"
    many = differences_text(found * 30, most=2)
    assert "more differences of kind 'task'" in many


def test_the_command_writes_runs_compares_and_refuses(tmp_path, capsys):
    file = str(PIPELINES / "digits_mlp.yaml")
    plan, out = str(tmp_path / "plan.json"), str(tmp_path)
    quick = ["-s", "epochs=1"]
    assert main(["plan", file, *quick, "-o", plan]) == 0
    assert main(["run", file, *quick, "-o", out, "--format", "json"]) == 0
    capsys.readouterr()
    assert main(["run", file, *quick, "--plan", plan, "-o", out, "--format", "json"]) == 0
    locked = json.loads(capsys.readouterr().out)
    assert main(["run", file, *quick, "-o", out, "--format", "json"]) == 0
    free = json.loads(capsys.readouterr().out)
    assert locked["metrics"] == free["metrics"]
    assert {t["name"]: t["device"] for t in locked["tasks"]} == {t["name"]: t["device"] for t in free["tasks"]}
    assert locked["planned_seconds"] == read_document(plan)["plan"]["makespan"]
    assert main(["plan", file, *quick, "--diff", plan]) == 0
    assert capsys.readouterr().out == "the plans are equal\n"
    assert main(["plan", plan]) == 0
    assert "locked plan by auto for time" in capsys.readouterr().out
    assert main(["plan", file, "--policy", "heft", "--diff", plan, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["equal"] is False
    for argv, code, told in (
        (["run", file, "--plan", plan], 3, "was made for another graph: it has changed 'train/steps'"),
        (["run", file, *quick, "--plan", plan, "--machine", "laptop", "--emulate"], 4, "was made for another machine"),
        (["run", file, *quick, "--plan", plan, "-d", "cpu"], 2, "-d is for planning"),
        (["run", file, *quick, "--plan", file], 7, "not a locked plan"),
        (["plan", file, file, "-o", plan], 2, "-o and --diff are for the plan of one pipeline"),
        (["plan", file, "--diff", str(tmp_path / "none.json")], 7, "cannot be read"),
    ):
        assert main(argv) == code
        assert told in capsys.readouterr().err


def test_the_command_compares_two_files(tmp_path, capsys):
    file = str(PIPELINES / "matmul_conv.yaml")
    one, two = str(tmp_path / "1.json"), str(tmp_path / "2.json")
    assert main(["plan", file, "--machine", "workstation", "-o", one]) == 0
    assert main(["plan", file, "--machine", "workstation", "-d", "cpu", "-o", two]) == 0
    capsys.readouterr()
    for argv in (["plan", two, "--diff", one], ["diff", one, two]):
        assert main(argv) == 0
        assert "task product: cuda:0 -> cpu" in capsys.readouterr().out
    assert main(["diff", one, "last"]) == 2
    assert "a locked plan (.json) with a locked plan" in capsys.readouterr().err


def test_every_field_of_a_plan_is_in_the_file():
    """A field that is new in `Timeline` must be written, or said here to be no part of a plan."""
    apart = {"graph", "machine", "loop", "measured", "totals", "attributed", "cold"}
    apart |= {"branch", "otherwise"}  # of the plans of branches, which are written (test_ifs.py)
    written = set(document_of(plan_graph(product(), find("workstation")))["plan"]) - {"makespan"}
    assert {f.name for f in fields(Timeline)} - apart == written


def test_slices_that_byte_code_names_are_part_of_a_kernel():
    """From Python 3.14 on `x[1:3]` is one constant of the function."""

    def kernel(x):
        return x[0]

    def with_constant(value):
        code = kernel.__code__.replace(co_consts=(*kernel.__code__.co_consts, value))
        return code_of(code)

    assert with_constant(slice(1, 3, None)) == with_constant(slice(1, 3, None))
    assert with_constant(slice(1, 3, None)) != with_constant(slice(1, 4, None))


def test_constants_and_what_is_given_by_name_are_part_of_a_kernel():
    def of(constant):
        return code_of((lambda x: x).__code__.replace(co_consts=(constant,)))

    for one, other in (
        (b"a", b"b"),
        (1j, 2j),
        (complex(0.0, 1.0), complex(-0.0, 1.0)),
        (frozenset({1, 2}), frozenset({1, 3})),
        (bytearray(1), bytearray(2)),
    ):
        assert of(one) == of(one)
        assert of(one) != of(other)
        assert json.dumps(of(one)) == json.dumps(of(one))
    assert of(frozenset({"a", "b", "c"})) == of(frozenset({"c", "b", "a"}))

    def kernel(*, factor):
        def scale(x, *, by=factor):
            return x * by

        return scale

    assert code_of(kernel(factor=2)) == code_of(kernel(factor=2))
    assert code_of(kernel(factor=2)) != code_of(kernel(factor=3))
    assert code_of(functools.partial(max, 1)) != code_of(functools.partial(max, 2))
