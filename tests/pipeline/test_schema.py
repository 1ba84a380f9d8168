import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from hetsched.pipeline import document, schema
from hetsched.pipeline.mistakes import Findings
from hetsched.pipeline.reader import read
from hetsched.pipeline.schema import schema as pipeline_schema
from hetsched.pipeline.values import plain

SHIPPED = sorted((Path(__file__).parents[2] / "pipelines").glob("*.yaml"))


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    found = pipeline_schema()
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


def data_of(path: Path) -> Any:
    findings = Findings(str(path))
    root = read(path.read_bytes(), findings)
    assert root is not None
    return plain(root, findings)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_the_shipped_pipelines_are_accepted(path: Path, validator: jsonschema.Draft202012Validator) -> None:
    assert [e.message for e in validator.iter_errors(data_of(path))] == []


def set_at(data: Any, path: str, value: Any) -> None:
    *parents, last = path.split("/")
    for part in parents:
        data = data[part]
    if value is None:
        del data[last]
    else:
        data[last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("hetsched", 2), ("hetsched", None), ("tasks", None), ("tasks", {}), ("tasks", []), ("parms", {}), ("params/lr", [1]), ("objective", "speed"),
        ("objective", {"deadline": "2 min"}), ("objective", {"minimize": "time", "deadline": "soon"}), ("tasks/load/op", "data.npzz"),
        ("objective", {"time": 1, "enrgy": 1}), ("objective", {"time": -1}), ("objective", {}), ("objective", {"minimize": {}}),
        ("tasks/load/op", None),
        ("tasks/load/wth", {}), ("tasks/load/with", {}), ("tasks/load/with", None), ("tasks/load/with/path", 3), ("tasks/load/with/pth", "x"),
        ("tasks/split/in/x", None), ("tasks/split/in/z", "load.x"), ("tasks/split/in/x", ["load.x"]), ("tasks/split/with/seed", -1),
        ("tasks/split/with/seed", "seven"), ("tasks/train/with/loss", "entropy"), ("tasks/train/with/epochs", 1.5), ("tasks/load/device", "gpuu"),
        ("tasks/load/device", {"nto": "gpu"}), ("tasks/load/device", []), ("tasks/load/after", 3), ("tasks/a.b", {"op": "nn.relu"}),
        ("models/mlp/layers", None),
        ("models/mlp/inputs", [3]), ("outputs/model/from", None), ("outputs/model/sve", "x"), ("outputs/model", "train.model"),
    ],
)  # fmt: skip
def test_typical_mistakes_are_refused(path: str, value: Any, validator: jsonschema.Draft202012Validator) -> None:
    data = copy.deepcopy(data_of(SHIPPED[0].parent / "digits_mlp.yaml"))
    set_at(data, path, value)
    assert not validator.is_valid(data)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("objective", {"time": 0.5, "energy": "$lr"}), ("objective", {"minimize": {"price": 1}, "deadline": "1 h"}),
        ("objective", {"minimize": "energy", "deadline": "2 min"}), ("tasks/load/device", ["cuda:0", "cpu"]), ("tasks/load/device", {"not": ["gpu"]}),
        ("tasks/load/device", {"same_as": "split"}), ("tasks/split/after", ["load"]), ("tasks/split/with/seed", "$seed"), ("params/on", True),
        ("tasks/train/device", "$where"), ("tasks/train/with/batch", "$batch"), ("outputs/model/save", None),
    ],
)  # fmt: skip
def test_everything_the_grammar_knows_is_accepted(path: str, value: Any, validator: jsonschema.Draft202012Validator) -> None:
    data = copy.deepcopy(data_of(SHIPPED[0].parent / "digits_mlp.yaml"))
    set_at(data, path, value)
    assert [e.message for e in validator.iter_errors(data)] == []


def keys(model: Any) -> set[str]:
    return {f.alias or name for name, f in model.model_fields.items()}


def test_the_schema_and_the_checker_know_the_same_keys() -> None:
    assert keys(schema.Pipeline) == set(document.KEYS)
    assert keys(schema.Task) == set(document.TASK_KEYS)
    assert keys(schema.Output) == set(document.OUTPUT_KEYS)
