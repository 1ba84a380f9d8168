"""Plans that spread over CPU threads and two OpenCL devices, and shipped pipelines on an OpenCL device."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyopencl", reason="PyOpenCL is not installed")
import hetsched as hs
from hetsched.executors.backends import opencl

if not opencl.find().devices:
    pytest.skip("no OpenCL device works here", allow_module_level=True)

from hetsched.pipeline.build import load

PIPELINES = Path(__file__).parents[2] / "pipelines"

GRAPHS = """
import json, random, sys
import hetsched as hs
from threadpoolctl import threadpool_limits
from hetsched.check import problems
from hetsched.executors import backends
from hetsched.testing.graphs import random_graph
from hetsched.testing.reference import interpret
from hetsched.testing.runs import run_problems, value_problems

machine, used, wrong = backends.here(), {}, []
with threadpool_limits(1):
    for seed in range(int(sys.argv[1]), int(sys.argv[2])):
        graph, inputs = random_graph(random.Random(seed))
        plan = hs.plan(graph, machine, policy="round_robin")
        result = hs.run(plan, inputs)
        found = [*problems(plan), *value_problems(result, interpret(graph, inputs)), *run_problems(plan, result.trace, skew_seconds=1e-3)]
        if found:
            wrong.append([seed, [str(x) for x in found[:3]]])
        on = [device.id for device in machine.devices if any(lane.owner == device.id for p in (plan, *plan.loops.values()) for lane in p.lanes)]
        used["+".join(on)] = used.get("+".join(on), 0) + 1
print(json.dumps([used, wrong]))
"""


@pytest.mark.parametrize("chunk", range(4))
def test_graphs_spread_over_three_devices_give_the_values_of_a_plain_loop(chunk: int) -> None:
    """PoCL reads its environment when it is loaded: a process for every 50 graphs."""
    if not any("PoCL" in (d.name or "") for d in opencl.find().devices):
        pytest.skip("only PoCL can be asked for two devices")
    done = subprocess.run(
        [sys.executable, "-c", GRAPHS, str(50 * chunk), str(50 * chunk + 50)],
        env={**os.environ, "POCL_DEVICES": "pthread pthread"}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    used, wrong = json.loads(done.stdout.strip().split("\n")[-1])
    assert wrong == []
    assert sum(used.values()) == 50
    assert sum(n for on, n in used.items() if {"cpu", "opencl:0", "opencl:1"} <= set(on.split("+"))) >= 40


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """A copy of the shipped pipelines, without what runs have left there."""
    return Path(shutil.copytree(PIPELINES, tmp_path / "pipelines", ignore=shutil.ignore_patterns("out")))


def results(path: Path, only: str | None = None, policy: str = "auto", **overrides: object) -> tuple[hs.Result, hs.Timeline]:
    pipeline = load(path, overrides, trust=True)
    plan = hs.plan(pipeline.graph, only=only, policy=policy)
    return hs.run(plan), plan


@pytest.mark.parametrize(("name", "limit"), [("digits_mlp", 1e-4), ("digits_cnn", 1e-3)])
def test_the_loss_after_the_first_epoch_is_that_of_the_cpu(shipped: Path, name: str, limit: float) -> None:
    path = shipped / f"{name}.yaml"
    wanted, _ = results(path, "cpu", epochs=1)
    found, plan = results(path, "opencl", epochs=1)
    mixed, _ = results(path, epochs=1)
    body = max(plan.loops.values(), key=lambda p: len(p.spans))
    assert {lane.owner for lane in body.lanes if lane.kind == "compute"} == {"opencl:0"}
    for result in (found, mixed):
        assert abs(result["metrics/loss"] - wanted["metrics/loss"]) < limit
        assert abs(result["metrics/accuracy"] - wanted["metrics/accuracy"]) < 0.01


@pytest.mark.parametrize(("name", "limit"), [("digits_mlp", 1e-4), ("digits_cnn", 1e-3)])
def test_tasks_that_are_put_on_two_devices_have_the_loss_of_the_cpu(shipped: Path, name: str, limit: float) -> None:
    path = shipped / f"{name}.yaml"
    wanted, _ = results(path, "cpu", epochs=1)
    text = path.read_text()
    path.write_text(text.replace("op: nn.train", "op: nn.train\n    device: opencl").replace("evaluate: {op", "evaluate: {device: cpu, op"))
    found, plan = results(path, epochs=1)
    bodies = [{lane.owner for lane in body.lanes if lane.kind == "compute"} for body in plan.loops.values()]
    assert {"cpu"} in bodies
    assert {"opencl:0"} in bodies
    assert abs(found["metrics/loss"] - wanted["metrics/loss"]) < limit


def test_every_other_shipped_pipeline_runs_on_the_device(shipped: Path) -> None:
    """Digits: see above. What names its devices itself is asked for nothing else."""
    small = {"mlp_784": {"rows": 500, "epochs": 1}}
    others = sorted(p.stem for p in shipped.glob("*.yaml") if not p.stem.startswith("digits"))
    assert {"matmul_conv", "mlp_784"} <= set(others)
    for name in others:
        result, plan = results(shipped / f"{name}.yaml", "opencl", **small.get(name, {}))
        owners = {lane.owner for p in (plan, *plan.loops.values()) for lane in p.lanes}
        assert "opencl:0" in owners, name
        assert all(np.isfinite(x).all() for x in dict(result).values() if isinstance(x, np.ndarray) and x.dtype.kind == "f"), name


def test_a_model_trained_on_the_cpu_predicts_on_the_device(shipped: Path) -> None:
    from hetsched.pipeline.build import publish

    pipeline = load(shipped / "digits_mlp.yaml", {"epochs": 1})
    publish(pipeline, hs.run(pipeline.graph, only="cpu"))
    wanted, _ = results(shipped / "digits_predict.yaml", "cpu")
    found, plan = results(shipped / "digits_predict.yaml", "opencl")
    assert any(lane.owner == "opencl:0" for p in (plan, *plan.loops.values()) for lane in p.lanes)
    assert np.mean(found["predictions"] == wanted["predictions"]) > 0.99
