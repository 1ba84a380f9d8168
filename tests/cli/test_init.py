from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from hetsched.cli import entry, main


def test_the_first_pipeline_runs_as_it_is_and_learns(tmp_path, capsys):
    folder = tmp_path / "new" / "one"
    assert main(["init", str(folder)]) == 0
    assert main(["check", str(folder / "pipeline.yaml")]) == 0
    capsys.readouterr()
    assert main(["run", str(folder / "pipeline.yaml"), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["evaluate.accuracy"] > 0.6
    assert (folder / "out" / "model.safetensors").exists()


def test_what_is_there_is_left_as_it_is(tmp_path, capsys):
    file = tmp_path / "pipeline.yaml"
    file.write_text("mine")
    assert main(["init", str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert file.read_text() == "mine"
    assert main(["init", str(file)]) == 2
    assert "pipeline.yaml is there already" in capsys.readouterr().err
    assert main(["init", str(file / "below")]) == 7


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_knows_every_command(shell, capsys):
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in entry.command_names())
    assert "plan-time" in text


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
@pytest.mark.parametrize(("words", "wanted"), [(["hetsched", "devi"], ["devices"]), (["hetsched", "plan", "--plan-t"], ["--plan-time"])])
def test_bash_completes_commands_and_options(words, wanted, capsys):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    ask = f"{script}\nCOMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _hetsched; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.split() == wanted
