"""Ifs in files: what branches may read and give, and every mistake at its place."""

from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from test_schema import data_of

from hetsched.graph.graph import If
from hetsched.pipeline.build import check, load
from hetsched.pipeline.schema import schema
from hetsched.run import run

FILE = """\
hetsched: 1
params: {above: 3.0, often: 0.25}
tasks:
  load:  {op: data.npz, with: {path: data.npz}}
  mean:  {op: tensor.mean, in: {x: load.x}}
  limit: {op: tensor.full, with: {shape: [], value: $above}}
  large: {op: tensor.greater, in: {a: mean, b: limit}}
  pick:
    if: large
    likelihood: $often
    after: limit
    device: cpu
    then:
      tasks:
        parts: {op: data.split, in: {x: load.x, y: load.y}, with: {test: 0.5, seed: 1}}
        again:
          if: large
          then:
            tasks: {minus: {op: tensor.neg, in: {x: parts.x_train}}}
            outputs: {rows: minus}
          else:
            outputs: {rows: parts.x_train}
      outputs: {rows: again.rows, level: mean}
    else:
      tasks:
        some:   {op: tensor.slice, in: {x: load.x}, with: {starts: [0, 0], stops: [10, 8]}}
      outputs: {rows: some, level: limit}
outputs:
  rows:  {from: pick.rows, save: out/rows.npy}
  level: {from: pick.level}
"""


def written(folder: Path, text: str) -> Path:
    (folder / "p.yaml").write_text(text)
    return folder / "p.yaml"


def ran(path: Path, **overrides: Any) -> Any:
    return run(load(path, overrides).graph)


def test_branches_read_tasks_around_them_and_hold_ifs(folder: Path) -> None:
    path = written(folder, FILE)
    assert [m.message for m in check(path)] == []
    pipeline = load(path)
    (op,) = (op for op in pipeline.graph.task_ops if isinstance(op, If))
    assert op.likelihood == 0.25
    assert pipeline.tasks["pick"] == "if"
    x = np.load(folder / "data.npz")["x"]
    found = ran(path)
    assert found["level"] == x.mean()
    assert found["rows"].shape == (10, 8)
    assert {tuple(row) for row in (-found["rows"]).tolist()} < {tuple(row) for row in x.tolist()}
    found = ran(path, above=1e6)
    assert found["level"] == 1e6
    np.testing.assert_array_equal(found["rows"], x[:10])
    validator = jsonschema.Draft202012Validator(schema())
    assert [e.message for e in validator.iter_errors(data_of(path))] == []


def test_a_model_goes_into_a_branch_and_comes_out_of_it(folder: Path) -> None:
    path = written(
        folder,
        """\
hetsched: 1
params: {more: true}
models:
  m: {input: [8], layers: [{dense: {units: 3}}]}
tasks:
  load:  {op: data.npz, with: {path: data.npz}}
  first:
    op: nn.train
    in: {x: load.x, y: load.y}
    with: {model: m, loss: cross_entropy, optimizer: {sgd: {lr: 0.01}}, epochs: 1, batch: 10, seed: 1}
  score: {op: nn.evaluate, in: {model: first.model, x: load.x, y: load.y}, with: {metrics: [accuracy]}}
  limit: {op: tensor.full, with: {shape: [1], value: 2.0}}
  zero:  {op: tensor.full, with: {shape: [], value: 0.0}}
  one:   {op: tensor.sum, in: {x: limit}}
  large: {op: tensor.greater, in: {a: one, b: zero}}
  better:
    if: large
    then:
      tasks:
        more:
          op: nn.train
          in: {model: first.model, x: load.x, y: load.y}
          with: {loss: cross_entropy, optimizer: {sgd: {lr: 0.01}}, epochs: 2, batch: 10, seed: 1}
      outputs: {model: more.model}
    else:
      outputs: {model: first.model}
  guess: {op: nn.predict, in: {model: better.model, x: load.x}}
outputs:
  model: {from: better.model, save: out/m.safetensors}
  guess: {from: guess}
  score: {from: score.metrics}
""",
    )
    assert [m.message for m in check(path)] == []
    found = ran(path)
    assert found["guess"].shape[0] == 20
    assert {name for name in found if name.startswith("model/")}


# What is replaced, by what (the mark ¤ stands where the mistake is told), and words of the message.
CASES: dict[str, tuple[str, str, str]] = {
    "else misspelt": (
        "  pick:\n    if: large\n    likelihood: $often", "  pick:\n    if: large\n    ¤esle: {}\n    likelihood: $often",
        "has no key 'esle'",
    ),
    "an op too": ("    if: large\n    likelihood", "    if: large\n    ¤op: nn.relu\n    likelihood", "has both `op` and `if`"),
    "unknown key": ("    after: limit", "    ¤with: {x: 1}", "has no key 'with'"),
    "unknown condition": ("    if: large\n    likelihood", "    if: ¤lage\n    likelihood", "unknown task 'lage'"),
    "a condition of many": ("    if: large\n    likelihood", "    if: ¤load.x\n    likelihood", "must be a scalar of bool or of an integer"),
    "a float": ("    if: large\n    likelihood", "    if: ¤mean\n    likelihood", "must be a scalar of bool or of an integer"),
    "unknown task inside": ("in: {x: parts.x_train}}}", "in: {x: ¤part.x_train}}}", "unknown task 'part'"),
    "unknown output inside": ("in: {x: parts.x_train}}}", "in: {x: ¤parts.x_trian}}}", "has no output 'x_trian'"),
    "unknown op inside": ("op: tensor.neg", "op: ¤tensor.negg", "unknown op 'tensor.negg'"),
    "other outputs": ("{rows: again.rows, level: mean}", "{rows: again.rows, level: mean, more: ¤mean}", "both branches must have the same outputs"),
    "tasks misspelt": ("    else:\n      tasks:\n        some", "    else:\n      ¤taks: {}\n      tasks:\n        some", "has no key 'taks'"),
    "other shapes": (
        "stops: [10, 8]}}\n      outputs: {rows: some", "stops: [9, 8]}}\n      outputs: {rows: ¤some",
        "output 'rows' is float32[10, 8] of `then` and float32[9, 8] of `otherwise`",
    ),
    "a name of a task around it": ("        some:   {", "        ¤mean:   {", "is called like a task around it"),
    "likelihood": ("likelihood: $often", "likelihood: ¤3", "give a number from 0 to 1"),
    "same_as": ("device: cpu", "device: {same_as: ¤load}", "may use several devices"),
    "a cycle through a branch": ("  mean:  {op: tensor.mean, in: {x: load.x}}", "  ¤mean:  {op: tensor.mean, in: {x: pick.rows}}", "cycle: "),
    "a shape inside": ("parts: {op: data.split, in: {x: load.x, y: load.y}", "¤parts: {op: data.split, in: {x: load.x, y: mean}", "rows"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_mistakes_stand_at_their_places(name: str, folder: Path) -> None:
    old, new, message = CASES[name]
    assert FILE.count(old) == 1
    text = FILE.replace(old, new)
    before = text[: text.index("¤")]
    found = check(written(folder, text.replace("¤", "")))
    assert any(message in m.message for m in found), [m.message for m in found]
    place = before.count("\n") + 1, len(before) - before.rfind("\n")
    assert place in [(m.line, m.column) for m in found if message in m.message], found


@pytest.mark.parametrize(
    ("old", "message"),
    [
        ("      outputs: {rows: some, level: limit}\n", "`else` of if 'pick' has no outputs"),
        ("    if: large\n    likelihood: $often\n    after: limit\n    device: cpu\n", "if 'pick' needs the key 'if'"),
    ],
)
def test_what_is_missing_is_told(old: str, message: str, folder: Path) -> None:
    assert FILE.count(old) == 1
    (mistake,) = check(written(folder, FILE.replace(old, "")))
    assert message in mistake.message
