from pathlib import Path

import numpy as np
import pytest

from hetsched.errors import CommandLineError, FileError, InternalError, PipelineError
from hetsched.graph.graph import Graph, Where
from hetsched.pipeline.build import Pipeline, check, load
from hetsched.pipeline.mistakes import InvalidPipelineError, render
from hetsched.testing.reference import interpret

HEAD = "hetsched: 1\n"
LOAD = "  load: {op: data.npz, with: {path: data.npz}}\n"


def pipeline(folder: Path, tasks: str, outputs: str = "{r: {from: a}}", head: str = "", **overrides: object) -> Pipeline:
    path = folder / "p.yaml"
    path.write_text(f"{HEAD}{head}tasks:\n{LOAD}{tasks}outputs: {outputs}\n")
    mistakes = check(path, overrides)
    assert mistakes == [], render(mistakes)
    return load(path, overrides)


def order_edges(graph: Graph) -> list[tuple[str, str]]:
    return [(graph.task_names[a], graph.task_names[b]) for a, b in graph.after]


def where(graph: Graph, name: str) -> Where | None:
    return graph.task(name).where


def test_a_primitive_task_is_called_as_in_the_file_and_a_composite_gives_its_name_to_its_tasks(folder: Path) -> None:
    found = pipeline(folder, "  a: {op: nn.relu, in: {x: load.x}}\n")
    assert found.graph.task_names == ["load/x", "load/y", "a"]
    assert dict(found.tasks) == {"load": "data.npz", "a": "nn.relu"}


def test_the_fields_of_a_pipeline(folder: Path) -> None:
    head = "name: mine\nobjective: {minimize: energy, deadline: 2 min}\nparams: {f: 2, tag: x}\n"
    tasks = "  a: {op: tensor.scale, in: {x: load.x}, with: {factor: $f}}\n"
    found = pipeline(folder, tasks, "{r: {from: a, save: out/r.npy}, y: {from: load.y}}", head, f="2.5")
    assert (found.name, found.objective, dict(found.constraints)) == ("mine", "energy", {"deadline_seconds": 120.0})
    assert dict(found.params) == {"f": 2.5, "tag": "x"}
    assert (found.folder, found.path) == (str(folder), str(folder / "p.yaml"))
    assert len(found.sha256) == 64
    output = found.outputs["r"]
    assert (output.kind, output.save, output.path, dict(output.values)) == ("array", "out/r.npy", str(folder / "out/r.npy"), {"r": "r"})
    assert found.outputs["y"].path is None
    assert found.graph.task("a").attributes["factor"] == 2.5
    assert np.array_equal(interpret(found.graph)["r"], np.arange(160, dtype=np.float32).reshape(20, 8) * np.float32(2.5))


def test_the_name_is_the_files_where_there_is_none(folder: Path) -> None:
    assert pipeline(folder, "  a: {op: nn.relu, in: {x: load.x}}\n").name == "p"


def test_tasks_may_stand_in_any_order(folder: Path) -> None:
    found = pipeline(folder, "  a: {op: nn.relu, in: {x: b}}\n  b: {op: nn.tanh, in: {x: load.x}}\n")
    assert found.graph.task_names[-2:] == ["b", "a"]


def test_an_op_with_any_number_of_inputs_takes_a_list(folder: Path) -> None:
    found = pipeline(folder, "  a: {op: tensor.concat, in: {values: [load.x, load.x, b]}, with: {axis: 1}}\n  b: {op: nn.relu, in: {x: load.x}}\n")
    assert found.graph.spec(found.graph.outputs["r"]).shape == (20, 24)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("any", None), ("cpu", Where(("cpu",))), ("cuda:1", Where(("cuda:1",))), ("[gpu, cpu]", Where(("gpu", "cpu"))),
        ("emulated:a", Where(("emulated:a",))),
        ("{not: gpu}", Where(exclude=("gpu",))), ("{not: [cuda, opencl]}", Where(exclude=("cuda", "opencl"))),
        ("[opencl:0, any]", Where(("opencl:0", "any"))),
        ("{same_as: b}", Where(same_as="b")), ("$d", Where(("gpu",))),
    ],
)  # fmt: skip
def test_devices(device: str, expected: Where | None, folder: Path) -> None:
    tasks = f"  a: {{op: nn.relu, in: {{x: load.x}}, device: {device}}}\n  b: {{op: nn.relu, in: {{x: a}}}}\n"
    assert where(pipeline(folder, tasks, head="params: {d: gpu}\n").graph, "a") == expected


def test_a_composites_device_is_that_of_all_its_tasks(folder: Path) -> None:
    graph = pipeline(folder, "  a: {op: data.standardize, in: {train: load.x}, device: cpu}\n", "{r: {from: a.train}}").graph
    assert {where(graph, n) for n in graph.task_names if n.startswith("a/")} == {Where(("cpu",), of_parts=True)}


def test_same_as_a_trained_model_means_its_loop(folder: Path) -> None:
    models = "models: {m: {input: [8], layers: [{dense: {units: 3}}]}}\n"
    tasks = "  t: {op: nn.train, in: {x: load.x, y: load.y}, with: {model: m, batch: 5}}\n  a: {op: nn.relu, in: {x: load.x}, device: {same_as: t}}\n"
    assert where(pipeline(folder, tasks, head=models).graph, "a") == Where(same_as="t/steps")


def test_after_orders_every_task_behind_the_last_ones(folder: Path) -> None:
    tasks = (
        "  a: {op: nn.relu, in: {x: load.x}, after: [s, b]}\n  s: {op: data.standardize, in: {train: load.x}}\n  b: {op: nn.tanh, in: {x: load.x}}\n"
    )
    assert set(order_edges(pipeline(folder, tasks).graph)) == {("s/train", "a"), ("b", "a")}


def test_batches_flow_between_tasks_without_whole_arrays(folder: Path) -> None:
    tasks = "  c: {op: data.batch, in: {x: load.x}, with: {batch: 6}}\n  d: {op: nn.relu, in: {x: c.x}}\n  a: {op: nn.tanh, in: {x: d}}\n"
    found = pipeline(folder, tasks)
    assert not {"d", "a"} & set(found.graph.task_names)
    assert np.allclose(interpret(found.graph)["r"], np.tanh(np.arange(160, dtype=np.float32).reshape(20, 8)))


def test_after_a_task_that_works_batch_by_batch_is_a_mistake(folder: Path) -> None:
    path = folder / "p.yaml"
    batches = "  c: {op: data.batch, in: {x: load.x}, with: {batch: 6}}\n  d: {op: nn.relu, in: {x: c.x}}\n"
    path.write_text(f"{HEAD}tasks:\n{LOAD}{batches}  a: {{op: nn.tanh, in: {{x: load.x}}, after: d}}\noutputs: {{r: {{from: a}}, s: {{from: d}}}}\n")
    assert [(m.line, m.column, m.rule) for m in check(path)] == [(6, 44, "after")]
    path.write_text(f"{HEAD}tasks:\n{LOAD}{batches.replace('c.x}', 'c.x}, after: load')}outputs: {{s: {{from: d}}}}\n")
    assert [(m.line, m.column, m.rule) for m in check(path)] == [(5, 41, "after")]


def test_a_dollar_sign_is_written_twice(folder: Path) -> None:
    np.save(folder / "$x.npy", np.zeros(3, np.float32))
    found = pipeline(folder, "  n: {op: data.npy, with: {path: $$x.npy}}\n  a: {op: nn.relu, in: {x: n}}\n")
    assert found.graph.task("n").attributes["path"] == str(folder / "$x.npy")


# Overrides --------------------------------------------------------------------------------------------------------------------


SCALE = "  a: {op: tensor.scale, in: {x: load.x}, with: {factor: $f}}\n"


@pytest.mark.parametrize(("text", "value"), [("3", 3.0), ("1e-3", 0.001), (4, 4.0), (0.5, 0.5)])
def test_an_override_is_a_yaml_scalar_or_a_value(text: object, value: float, folder: Path) -> None:
    found = pipeline(folder, SCALE, head="params: {f: 2}\n", f=text)
    assert found.graph.task("a").attributes["factor"] == value


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("g", "1", "known: b, f"), ("ff", "1", "did you mean 'f'"), ("f", "fast", "wants a number, as in the file: 2"),
        ("f", "true", "wants a number"),
        ("f", "", "wants a number"), ("f", ".nan", "not a number"), ("f", "007", "ambiguous"),
        ("f", [1], "wants a number"), ("b", "yes", "wants true or false"),
    ],
)  # fmt: skip
def test_an_override_that_does_not_fit_is_a_mistake_on_the_command_line(name: str, text: object, words: str, folder: Path) -> None:
    with pytest.raises(CommandLineError, match=words) as caught:
        pipeline(folder, SCALE, head="params: {f: 2, b: true}\n", **{name: text})
    assert caught.value.exit_code == 2


def test_a_text_stays_a_text(folder: Path) -> None:
    found = pipeline(folder, "  a: {op: nn.relu, in: {x: load.x}}\n", "{r: {from: a, save: $p}}", "params: {p: r.npy}\n", p="5.npy")
    assert found.outputs["r"].save == "5.npy"
    assert dict(pipeline(folder, SCALE, head="params: {f: 2, t: x}\n", t="5").params) == {"f": 2, "t": "5"}


def test_an_override_out_of_range_is_told_where_it_is_used(folder: Path) -> None:
    path = folder / "p.yaml"
    tasks = f"{LOAD}  c: {{op: data.batch, in: {{x: load.x}}, with: {{batch: $n}}}}\n"
    path.write_text(f"{HEAD}params: {{n: 4}}\ntasks:\n{tasks}outputs: {{r: {{from: c.x}}}}\n")
    assert check(path) == []
    (mistake,) = check(path, {"n": "0"})
    assert (mistake.line, mistake.column, mistake.rule) == (5, 54, "option")
    assert "(parameter $n)" in mistake.message


# Attribution ------------------------------------------------------------------------------------------------------------------


TRAIN = """hetsched: 1
models: {m: {input: [8], layers: [{dense: {units: 3}}]}}
tasks:
  load: {op: data.npz, with: {path: data.npz}}
  t:
    op: nn.train
    in: {x: load.x, y: load.y}
    with: {model: m, batch: 5, optimizer: {adam: {lr: 0.01}}}
  e: {op: nn.evaluate, in: {model: t.model, x: load.x, y: load.y}, with: {metrics: [loss, accuracy]}}
outputs: {m: {from: t.model, save: m.safetensors}, e: {from: e.metrics, save: e.json}}
"""


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("lr: 0.01", "lr: fast", (8, 55)), ("lr: 0.01", "rate: 1", (8, 51)), ("{adam: {lr: 0.01}}", "adm", (8, 43)), ("{adam:", "{adm:", (8, 44)),
        ("model: m,", "model: n,", (8, 19)), ("accuracy]", "acuracy]", (9, 91)), ("y: load.y}\n", "y: load.x}\n", (7, 24)),
        ("input: [8]", "input: [9]", (7, 13)), ("model: t.model", "model: load.x", (9, 36)),
        ("from: e.metrics", "from: t.model", (10, 77)), ("m.safetensors", "m.csv", (10, 36)),
    ],
)  # fmt: skip
def test_a_mistake_found_while_a_task_expands_is_told_at_what_it_names(old: str, new: str, place: tuple[int, int], folder: Path) -> None:
    path = folder / "p.yaml"
    path.write_text(TRAIN)
    assert check(path) == []
    assert TRAIN.count(old) == 1
    path.write_text(TRAIN.replace(old, new))
    mistakes = check(path)
    assert [(m.line, m.column) for m in mistakes] == [place], render(mistakes)


def test_a_model_where_an_array_is_wanted(folder: Path) -> None:
    path = folder / "p.yaml"
    for task, place in (
        ("{op: nn.relu, in: {x: t.model}}", (11, 28)),
        ("{op: data.rescale, in: {x: load.x, mean: t.model, scale: load.x}}", (11, 47)),
    ):
        path.write_text(TRAIN.replace("outputs:", f"  # x\n  b: {task}\noutputs:"))
        mistakes = check(path)
        assert [(m.line, m.column) for m in mistakes] == [place], render(mistakes)
        assert "takes an array, not a model of dense1.weight" in mistakes[0].message


def test_an_option_of_a_type_that_an_op_stumbles_over_is_the_users_mistake(folder: Path) -> None:
    path = folder / "p.yaml"
    path.write_text(f"{HEAD}tasks:\n{LOAD}  w: {{op: model.write, in: {{tensors: [load.x]}}, with: {{path: m.safetensors, tensors: 5}}}}\n")
    (mistake,) = check(path)
    assert (mistake.line, mistake.column, mistake.rule) == (4, 86, "option")


def test_a_bug_of_an_op_is_no_mistake_of_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("hetsched.pipeline.build.apply", broken)
    with pytest.raises(InternalError, match=r"task 'a' \(nn\.relu\): ZeroDivisionError: oops"):
        pipeline(folder, "  a: {op: nn.relu, in: {x: load.x}}\n")


def test_shapes_too_large_to_count_are_a_mistake(folder: Path) -> None:
    path = folder / "p.yaml"
    path.write_text(f"{HEAD}tasks:\n  a: {{op: random.normal, with: {{shape: [4000000000, 4000000000]}}}}\noutputs: {{r: {{from: a}}}}\n")
    (mistake,) = check(path)
    assert (mistake.line, mistake.column) == (3, 3)
    assert "more than any memory has" in mistake.message


# Files ------------------------------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there(folder: Path) -> None:
    (folder / "digits_mlp.yaml").write_text("")
    with pytest.raises(FileError, match=r"did you mean '.*digits_mlp\.yaml'") as caught:
        load(folder / "digts_mlp.yaml")
    assert caught.value.exit_code == 7


def test_a_folder_is_no_pipeline(folder: Path) -> None:
    with pytest.raises(FileError, match="folder"):
        load(folder)


def test_the_error_carries_the_mistakes(folder: Path) -> None:
    path = folder / "p.yaml"
    path.write_text("hetsched: 1\n")
    with pytest.raises(PipelineError) as caught:
        load(path)
    assert isinstance(caught.value, InvalidPipelineError)
    assert list(caught.value.mistakes) == check(path)


def test_ten_thousand_tasks(folder: Path) -> None:
    chain = "".join(f"  t{i}: {{op: nn.relu, in: {{x: {'load.x' if i == 0 else f't{i - 1}'}}}}}\n" for i in range(10_000))
    assert len(pipeline(folder, chain, "{r: {from: t9999}}").graph) == 10_002
