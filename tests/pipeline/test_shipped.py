"""Every shipped pipeline is loaded, planned, run and published, and gives what it promises."""

import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hetsched.errors import NotTrustedError, PlacementError
from hetsched.executors.backends import here
from hetsched.machine import Machine
from hetsched.pipeline.build import check, load, publish
from hetsched.run import plan
from hetsched.run import run as run_graph
from hetsched.testing import opencl
from hetsched.testing.reference import interpret

PIPELINES = Path(__file__).parents[2] / "pipelines"


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """A copy of the shipped pipelines, without what runs have left there."""
    return Path(shutil.copytree(PIPELINES, tmp_path / "pipelines", ignore=shutil.ignore_patterns("out")))


def run(path: Path, trust: bool = False, **overrides: Any) -> Mapping[str, Any]:
    pipeline = load(path, overrides, trust=trust)
    results = run_graph(pipeline.graph)
    publish(pipeline, results)
    return results


def test_digits_mlp_learns_and_digits_predict_agrees_with_it(shipped: Path) -> None:
    metrics = run(shipped / "digits_mlp.yaml")
    assert metrics["metrics/accuracy"] >= 0.92
    assert json.loads((shipped / "out" / "metrics.json").read_text()) == {k: float(metrics[f"metrics/{k}"]) for k in ("loss", "accuracy")}
    results = run(shipped / "digits_predict.yaml")
    rows = {n: [int(r[0]) for r in list(csv.reader((shipped / "out" / f"{n}.csv").read_text().splitlines()))[1:]] for n in ("predictions", "labels")}
    assert rows["predictions"] == results["predictions"].tolist()
    assert np.mean(np.equal(rows["predictions"], rows["labels"])) == metrics["metrics/accuracy"]


def test_digits_mlp_learns_whatever_the_seed(shipped: Path) -> None:
    found = [float(run(shipped / "digits_mlp.yaml", seed=str(seed))["metrics/accuracy"]) for seed in range(5)]
    assert np.median(found) >= 0.92
    assert len(set(found)) > 1, "the seed changes the split and the first weights"


def test_digits_predict_says_what_is_missing_before_the_model_is_there(shipped: Path) -> None:
    (mistake,) = check(shipped / "digits_predict.yaml")
    assert mistake.rule == "file"
    assert "out/mlp.safetensors" in mistake.message


def test_digits_mlp_is_the_designs_file() -> None:
    pipeline = load(PIPELINES / "digits_mlp.yaml")
    assert list(pipeline.tasks) == ["load", "split", "scale", "train", "evaluate"]
    assert dict(pipeline.params) == {"epochs": 5, "batch": 16, "lr": 0.01, "seed": 7}


def test_digits_cnn_learns(shipped: Path) -> None:
    assert run(shipped / "digits_cnn.yaml")["metrics/accuracy"] >= 0.96


def test_digits_early_stop_stops_and_keeps_the_best_weights(shipped: Path) -> None:
    found = run(shipped / "digits_early_stop.yaml")
    looks = found["history/val_loss"]
    assert 5 < len(looks) == found["history/epochs"] < 200
    assert found["history/best_epoch"] == found["history/epochs"] - 5
    assert looks[:-5].min() >= found["history/best_val_loss"] > looks.min() - 2e-3
    assert found["metrics/accuracy"] >= 0.95
    kept = json.loads((shipped / "out" / "history.json").read_text())
    assert kept["val_loss"] == looks.tolist()


def test_a_run_gives_what_a_plain_loop_over_the_tasks_gives(shipped: Path) -> None:
    path = shipped / "digits_mlp.yaml"
    wanted, found = interpret(load(path).graph), run(path)
    assert wanted.keys() == dict(found).keys()
    for name, value in wanted.items():
        assert np.allclose(found[name], value, rtol=1e-3, atol=1e-4), name


def test_mlp_784_trains_on_data_labelled_synthetic(shipped: Path) -> None:
    assert "SYNTHETIC" in (shipped / "mlp_784.yaml").read_text()
    assert run(shipped / "mlp_784.yaml", rows=500, epochs=5, batch=16)["metrics/accuracy"] > 0.5


def test_matmul_conv_agrees_with_numpy(shipped: Path) -> None:
    found = run(shipped / "matmul_conv.yaml")
    assert np.allclose(found["product"], found["a"].astype(np.float64) @ found["b"], atol=1e-4)
    padded = np.pad(found["images"].astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    assert np.allclose(found["features"], np.einsum("nchwij,fcij->nfhw", windows, found["filters"]), atol=1e-4)
    assert np.array_equal(np.load(shipped / "out" / "features.npy"), found["features"])


@pytest.mark.parametrize("noise", [0.5, 0.01])
def test_denoise_smooths_what_is_noisy_and_nothing_else(shipped: Path, noise: float) -> None:
    found = run(shipped / "denoise.yaml", noise=noise, size=40)
    before, after = found["before"].astype(np.float64), found["after"]
    assert found["spread"] == pytest.approx(np.mean((before - 0.5) ** 2), rel=1e-3)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(before, ((0, 0), (0, 0), (2, 2), (2, 2))), (5, 5), axis=(2, 3))
    assert np.allclose(after, windows.mean(axis=(-2, -1)) if noise == 0.5 else before, atol=1e-5)
    assert np.array_equal(np.load(shipped / "out" / "denoised.npy"), after)


@pytest.mark.skipif(not opencl.available(), reason="no OpenCL device works here")
def test_vector_add_runs_its_own_kernel(shipped: Path) -> None:
    found = run(shipped / "vector_add.yaml", trust=True, n=10_001)
    assert np.array_equal(found["sum"], found["x"] + found["y"])
    assert np.array_equal(np.load(shipped / "out" / "vector_add.npy"), found["sum"])


def test_vector_add_wants_consent_and_a_device(shipped: Path) -> None:
    with pytest.raises(NotTrustedError, match=r"vector_add\.yaml:6:1: error: the pipeline brings native code"):
        load(shipped / "vector_add.yaml")
    pipeline = load(shipped / "vector_add.yaml", trust=True)
    assert pipeline.tasks["add"] == "kernels.vector_add"
    cpu = here().device("cpu")
    with pytest.raises(PlacementError, match="add"):
        plan(pipeline.graph, Machine((cpu,), memories=here().memories, resources=here().resources))
