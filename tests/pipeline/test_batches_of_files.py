"""Reading is a stage of the loop that takes the batches: files larger than the memory that may be used train, and give the bits that arrays give."""

import json
from pathlib import Path

import numpy as np
import pytest

import hetsched as hs
from hetsched.check.certificate import certify
from hetsched.cli import main
from hetsched.errors import FileError, GraphError, TaskError
from hetsched.graph import formats
from hetsched.graph.op import Scene
from hetsched.graph.ops import registry
from hetsched.pipeline.build import check, load
from hetsched.timeline import Launch

ROWS, WIDTH = 1000, 256  # 1 MiB of float32

TRAIN = """
hetsched: 1
name: files
models:
  m: {{input: [{width}], layers: [{{dense: {{units: 3}}}}]}}
tasks:
  load: {load}
{more}  half: {{op: tensor.scale, in: {{x: {x}}}, with: {{factor: 0.5}}}}
  train:
    op: nn.train
    in: {{x: half, y: {y}}}
    with: {{model: m, optimizer: {{sgd: {{lr: 0.05}}}}, epochs: 2, batch: 64, seed: 5, shuffle: {shuffle}}}
  guess: {{op: nn.predict, in: {{model: train.model, x: half}}}}
outputs:
  model: {{from: train.model, save: {save}}}
  losses: {{from: train.losses}}
  guess: {{from: guess}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(ROWS, WIDTH)).astype(np.float32), rng.integers(0, 3, ROWS)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    return tmp_path


def written(folder: Path, name: str, load: str, more: str = "", shuffle: str = "true", x: str = "load.x", y: str = "load.y") -> str:
    file = folder / f"{name}.yaml"
    file.write_text(TRAIN.format(width=WIDTH, load=load, more=more, shuffle=shuffle, x=x, y=y, save=f"{name}.safetensors"))
    return str(file)


def outputs_of(file: str) -> dict[str, np.ndarray]:
    pipeline = load(file)
    return dict(hs.run(hs.plan(pipeline.graph, only="cpu", learn=False), {}, learn=False))


WHOLE = "{op: data.npz, with: {path: data.npz}}"
BATCHES = "{op: data.batches, with: {path: data.npz, batch: 64}}"


@pytest.mark.parametrize("shuffle", ["true", "false"])
def test_training_from_a_file_is_training_from_its_arrays_to_the_bit(folder: Path, shuffle: str) -> None:
    by_arrays = outputs_of(written(folder, "whole", WHOLE, shuffle=shuffle))
    ways = {"npz": outputs_of(written(folder, "batches", BATCHES, shuffle=shuffle))}
    load_y = "  labels: {op: data.npy, with: {path: y.npy}}\n"
    npy = "{op: data.batches, with: {path: x.npy, batch: 100}}"
    ways["npy, and labels whole"] = outputs_of(written(folder, "npy", npy, load_y, shuffle, "load", "labels"))
    for way, found in ways.items():
        for name, array in by_arrays.items():
            np.testing.assert_array_equal(found[name], array, err_msg=f"{way}: {name}")


def test_a_file_that_memory_does_not_hold_is_trained_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, batches = written(folder, "whole", WHOLE), written(folder, "batches", BATCHES)
    assert main(["run", whole, "-d", "cpu", "--memory", "700KiB", "--format", "json"]) == 5
    assert main(["run", batches, "-d", "cpu", "--memory", "700KiB", "--format", "json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out[out.index('{\n  "version": 1,\n  "status": "done"') :])["outputs"]["model"].endswith("batches.safetensors")
    plan = hs.plan(load(batches).graph, only="cpu", learn=False, memory=700 << 10)
    assert certify(plan).memory["host"].peak < 700 << 10 < ROWS * WIDTH * 4


def test_reading_is_a_task_of_the_loop_on_an_io_lane(folder: Path) -> None:
    plan = hs.plan(load(written(folder, "batches", BATCHES)).graph, only="cpu", learn=False)
    body = next(body for t, body in plan.loops.items() if plan.graph.task_names[t] == "train/steps")
    lanes = {body.graph.task_names[s.command.task]: s.lanes[0].kind for s in body.spans if isinstance(s.command, Launch)}
    assert lanes["load/x"] == lanes["load/y"] == "io"
    assert lanes["half"] == "compute"
    assert not any(name.startswith("load") for name in plan.graph.task_names), "nothing is read before the loop"


def test_what_needs_all_rows_reads_them_all(folder: Path) -> None:
    file = folder / "whole.yaml"
    file.write_text("""
hetsched: 1
tasks:
  load: {op: data.batches, with: {path: x.npy, batch: 300}}
  moments: {op: data.moments, in: {x: load}}
outputs: {mean: {from: moments.mean}, x: {from: load.array}}
""")
    found = hs.run(load(file).graph, {}, only="cpu", learn=False)
    x = np.load(folder / "x.npy")
    np.testing.assert_array_equal(found["x"], x)
    np.testing.assert_allclose(found["mean"], x.mean(0, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", ">i2", "?", "<u8"])
@pytest.mark.parametrize("shape", [(7,), (7, 3), (7, 2, 0)])
def test_rows_come_in_any_order_of_bytes_and_of_numbers(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    x = (np.random.default_rng(2).random(shape) * 100).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", first=np.zeros(5), x=x)
    native = x.astype(x.dtype.newbyteorder("="))
    for path, member in ((tmp_path / "x.npy", ""), (tmp_path / "x.npz", "x")):
        for wanted in (range(2, 6), np.array([6, 0, 3]), np.array([-4, 99])):
            out = np.empty((len(wanted), *shape[1:]), native.dtype)
            formats.read_rows(str(path), member, wanted, out)
            np.testing.assert_array_equal(out, native[np.clip(wanted, 0, 6)])


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("packed.npz", "", r"member 'x': it is packed.*write it with numpy.savez"),
        ("fortran.npy", "", "Fortran order.*numpy.ascontiguousarray"),
        ("scalar.npy", "", "a scalar, which has no rows"),
        ("empty.npy", "", "has no rows to read"),
        ("x.npy", ", members: [x]", "option 'members' is for .npz files"),
        ("data.npz", ", members: [z]", "has no member 'z'"),
        ("text.npy", "", "not an npy array"),
    ],
)
def test_what_cannot_be_read_by_rows_is_told_at_its_place(folder: Path, name: str, options: str, told: str) -> None:
    np.savez_compressed(folder / "packed.npz", x=np.zeros((4, 4)))
    np.save(folder / "fortran.npy", np.zeros((4, 3), order="F"))
    np.save(folder / "scalar.npy", np.float32(1))
    np.save(folder / "empty.npy", np.zeros((0, 3)))
    (folder / "text.npy").write_text("these are no numbers")
    file = folder / "wrong.yaml"
    file.write_text(f"hetsched: 1\ntasks:\n  load: {{op: data.batches, with: {{path: {name}, batch: 4{options}}}}}\noutputs: {{x: {{from: load}}}}\n")
    (mistake,) = check(file)
    assert mistake.line == 3
    with pytest.raises(AssertionError, match=told):
        raise AssertionError(mistake.message)


def test_a_file_that_changes_before_the_run_is_told(folder: Path) -> None:
    plan = hs.plan(load(written(folder, "batches", BATCHES)).graph, only="cpu", learn=False)
    np.savez(folder / "data.npz", x=np.zeros((ROWS, 8), np.float32), y=np.zeros(ROWS, np.int64))
    with pytest.raises((FileError, TaskError), match=r"member 'x': it holds float32\[1000, 8\] now, which is not what was planned for; plan again"):
        hs.run(plan, {}, learn=False)


def test_batches_have_no_place_outside_of_their_loop(folder: Path) -> None:
    b = hs.Graph.build()
    batches = registry()["data.batches"]
    assert isinstance(batches, hs.Composite)
    options = {"path": str(folder / "x.npy"), "batch": 8, "members": None}
    with b.scope("load", hs.Where(same_as="other")), pytest.raises(GraphError, match="`same_as` cannot name task 'other' outside of it"):
        batches.expand(b, {}, options, Scene())
