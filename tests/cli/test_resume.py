"""`run --checkpoint`, `resume` and what `runs` says of unfinished runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import hetsched
from hetsched.checkpoints.store import Store
from hetsched.cli import main
from hetsched.cli.units import how_often
from hetsched.errors import CommandLineError
from hetsched.report.unfinished import Unfinished

PIPELINES = Path(hetsched.__file__).resolve().parents[1] / "pipelines"
# As few epochs as show something, on threads alone, by a plan that no run has changed.
OPTIONS = ["-d", "cpu", "-s", "epochs=2", "--no-learn"]


@pytest.fixture
def pipeline(tmp_path, monkeypatch):
    """A pipeline that trains, in a home of its own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "data").mkdir()
    shutil.copy(PIPELINES / "data" / "digits.npz", tmp_path / "data")
    return shutil.copy(PIPELINES / "digits_mlp.yaml", tmp_path)


def told(capsys, code, *argv):
    found = main([str(a) for a in argv])
    captured = capsys.readouterr()
    assert found == code, captured.err
    return captured


def cut(monkeypatch, after, error=KeyboardInterrupt):
    """The run ends when the checkpoint `after` so many others is to be kept."""
    kept, count = Store.keep, 0

    def keep(self, *args):
        nonlocal count
        count += 1
        if count > after:
            raise error
        kept(self, *args)

    monkeypatch.setattr(Store, "keep", keep)


def outputs(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "out").iterdir())}


def test_a_training_that_was_cut_off_goes_on_and_writes_the_same_bytes(pipeline, tmp_path, capsys, monkeypatch):
    told(capsys, 0, "run", pipeline, *OPTIONS)
    wanted = outputs(tmp_path)
    shutil.rmtree(tmp_path / "out")
    with monkeypatch.context() as patch:
        cut(patch, after=3)
        said = told(capsys, 130, "run", pipeline, *OPTIONS, "--checkpoint", "20turns")
    (name,) = Unfinished().ids()
    assert f"hetsched: `hetsched resume {name}` goes on from turn " in said.err
    assert not (tmp_path / "out").exists()
    turn = Unfinished().turns(name)["train/steps"][0]
    assert (
        f"unfinished: {name}, mlp ({pipeline}), turn {turn} of 180 of 'train/steps'; `hetsched resume {name}` goes on" in told(capsys, 0, "runs").out
    )
    (listed,) = json.loads(told(capsys, 0, "runs", "--format", "json").out)["unfinished"]
    assert (listed["id"], listed["turns"], listed["is_running"]) == (name, {"train/steps": [turn, 180]}, False)
    monkeypatch.chdir(tmp_path / "data")  # wherever it goes on
    said = told(capsys, 0, "resume")
    assert f"goes on from turn {turn} of 180 of loop 'train/steps'" in said.err
    assert outputs(tmp_path) == wanted
    assert not list((tmp_path / "state" / "hetsched" / "checkpoints").iterdir()), "what is done is kept no longer"
    assert "no run is unfinished" in told(capsys, 2, "resume").err


def test_a_failure_says_how_to_go_on_and_one_before_the_first_checkpoint_leaves_nothing(pipeline, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        cut(patch, after=0, error=MemoryError)
        said = told(capsys, 5, "run", pipeline, *OPTIONS, "--checkpoint", "20turns")
    assert "resume" not in said.err
    assert Unfinished().ids() == []
    with monkeypatch.context() as patch:
        cut(patch, after=2, error=MemoryError)
        said = told(capsys, 5, "run", pipeline, *OPTIONS, "--checkpoint", "20turns")
    assert "goes on from turn" in said.err
    assert len(Unfinished().ids()) == 1


def test_outputs_that_could_not_be_written_do_not_cost_the_training(pipeline, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("hetsched.cli.commands.run._publish", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left on device", "out")))
        told(capsys, 7, "run", pipeline, *OPTIONS, "--checkpoint", "60turns")
    assert "goes on from turn 180 of 180" in told(capsys, 0, "resume").err
    assert len(outputs(tmp_path)) == 2


def test_a_changed_file_is_refused_and_fresh_begins_anew(pipeline, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        cut(patch, after=2)
        told(capsys, 130, "run", pipeline, *OPTIONS, "--checkpoint", "20turns")
    (name,) = Unfinished().ids()
    text = Path(pipeline).read_text()
    Path(pipeline).write_text(text.replace("units: 32", "units: 33"))
    said = told(capsys, 3, "resume", name).err
    assert (
        f"{pipeline} has changed since run {name} began, so it cannot go on; bring back what was, or begin anew: `hetsched resume {name} --fresh`"
        in said
    )
    said = told(capsys, 0, "resume", name[:10], "--fresh")
    assert "goes on" not in said.err
    assert "goes on" not in said.out
    assert Unfinished().ids() == []
    assert len(outputs(tmp_path)) == 2


def test_changed_data_are_refused(pipeline, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        cut(patch, after=2)
        told(capsys, 130, "run", pipeline, *OPTIONS, "--checkpoint", "20turns")
    path = tmp_path / "data" / "digits.npz"
    content = path.read_bytes()
    path.write_bytes(content + b"\0")
    assert f"this run cannot go on as it began: file {path} has changed; begin anew with --fresh" in told(capsys, 3, "resume").err
    path.write_bytes(content)
    told(capsys, 0, "resume")


def test_what_checkpoint_takes(pipeline, capsys):
    assert how_often("30s") == (30.0, None)
    assert how_often("5min") == (300.0, None)
    assert how_often("500turns") == how_often("every 500 turns") == (None, 500)
    for wrong in ("soon", "0turns", "0s"):
        with pytest.raises(CommandLineError, match="--checkpoint"):
            how_often(wrong)
    assert "--retries goes back to the last checkpoint; give --checkpoint 30s as well" in told(capsys, 2, "run", pipeline, "--retries", "2").err
    assert "--checkpoint cannot be used with --keep-going" in told(capsys, 2, "run", pipeline, "--checkpoint", "30s", "--keep-going").err


def test_the_oldest_unfinished_runs_are_forgotten_and_those_that_run_are_not(tmp_path):
    runs = Unfinished(tmp_path)
    first = runs.add({"name": "first"}, now=0.0)
    with Store(runs.state(first), clear=False):
        for i in range(30):
            runs.add({"name": f"run {i}"}, now=1.0)
        assert len(runs.ids()) <= 21
        assert first in runs.ids()
    assert runs.load("last")["name"] == "run 29"
