from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hetsched
from hetsched.cli import entry, main
from hetsched.cli.parser import Parser
from hetsched.errors import CommandLineError, GraphError, OutOfMemoryError, PlacementError, PlanError, TaskError

HEAVY = ("numpy", "networkx", "pydantic", "yaml", "rich", "psutil", "cupy", "pyopencl", "hetsched.run", "hetsched.graph.graph")


def modules_after(code: str) -> set[str]:
    """The modules that a fresh interpreter holds after `code`."""
    script = f"import sys\n{code}\nprint('\\n' + ' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("argv", [["--help"], ["run", "--help"], ["--version"], ["polcy"]])
def test_help_loads_nothing_heavy(argv):
    found = modules_after(f"from hetsched.cli import main\nmain({argv!r})")
    assert not found & set(HEAVY)


def test_importing_the_package_loads_nothing_heavy_and_gives_its_names():
    assert not modules_after("import hetsched") & set(HEAVY)
    assert "networkx" not in modules_after("import hetsched\nhetsched.Graph, hetsched.Machine, hetsched.Spec")
    for name in hetsched.__all__:
        assert getattr(hetsched, name) is not None
        assert name in dir(hetsched)
    with pytest.raises(AttributeError, match="no attribute 'grph'"):
        hetsched.grph  # noqa: B018


def test_functions_are_not_hidden_by_the_modules_of_the_same_name():
    script = "import hetsched.run, hetsched.check, hetsched\nprint(callable(hetsched.run), callable(hetsched.check), hetsched.plan.__module__)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "hetsched.run"]


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name in entry.command_names():
        assert f"\n  {name} " in out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"hetsched {hetsched.__version__}\n"


@pytest.mark.parametrize("name", entry.command_names())
def test_every_command_has_help(name, capsys):
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: hetsched {name}")
    assert entry.load(name).__doc__ in out
    assert main(["help", name]) == 0
    assert capsys.readouterr().out == out


def test_no_command_at_all_is_an_error_that_shows_the_commands(capsys):
    assert main([]) == 2
    assert "usage: hetsched COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["rnu", "a.yaml"], "no command 'rnu'; did you mean 'run'?"),
        (["run", "a.yaml", "--polcy", "heft"], "unknown option '--polcy'; did you mean --policy?"),
        (["run", "a.yaml", "--polcy=heft"], "unknown option '--polcy'; did you mean --policy?"),
        (["run", "a.yaml", "--pol", "heft"], "unknown option '--pol'"),
        (["run"], "required: FILE"),
        (["run", "a.yaml", "b.yaml"], "one argument too many: 'b.yaml'"),
        (["ops", "--format", "xml"], "invalid choice: 'xml'"),
        (["ops", "nn.rleu"], "did you mean 'nn.relu'?"),
        (["--verison"], "did you mean '--version'?"),
        (["run", "a.yaml", "--timeout", "soon"], "'soon' is not a duration"),
        (["run", "a.yaml", "--seed", "1", "-s", "seed=2"], "the seed is given twice"),
        (["graph", "a.yaml", "-o", "a.svgg"], "no picture of form 'svgg'"),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_names_the_way_out(argv, hint, capsys):
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert hint in captured.err
    assert captured.err.startswith("hetsched: error: ")
    assert "Traceback" not in captured.err
    assert captured.out == ""


def raising(error):
    def execute(args):
        raise error

    return execute


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (TaskError("train", "task 'train' failed"), 1, "hetsched: error: task 'train' failed"),
        (CommandLineError("no"), 2, "hetsched: error: no"),
        (GraphError(["one", "two"]), 3, "hetsched: error: one\nhetsched: error: two"),
        (PlacementError("none fits"), 4, "hetsched: error: none fits"),
        (OutOfMemoryError("too large"), 5, "hetsched: error: too large"),
        (MemoryError(), 5, "--memory SIZE"),
        (FileNotFoundError(2, "No such file or directory", "x.yaml"), 7, "hetsched: error: x.yaml: No such file or directory"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_every_error_has_its_exit_code_and_no_traceback(error, code, text, capsys, monkeypatch):
    monkeypatch.setattr(entry.load("ops"), "execute", raising(error))
    assert main(["ops"]) == code
    err = capsys.readouterr().err
    assert text in err
    assert "Traceback" not in err


@pytest.mark.parametrize("error", [ValueError("odd"), PlanError(["overlap on cpu/0"])])
def test_a_bug_ends_with_70_and_says_how_to_report_it(error, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(entry.load("ops"), "execute", raising(error))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["ops"]) == 70
    err = capsys.readouterr().err
    assert f"internal bug: {type(error).__name__}: {error}" in err
    assert "Traceback" not in err
    (file,) = tmp_path.iterdir()
    assert str(file) in err
    assert "Traceback" in file.read_text(encoding="utf-8")
    monkeypatch.setenv("HETSCHED_DEBUG", "1")
    assert main(["ops"]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "hetsched", "ops"], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_ops_lists_and_shows_every_op(capsys):
    from hetsched.graph.ops import registry

    assert main(["ops"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert listed == list(registry())
    for name, op in registry().items():
        assert main(["ops", name]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"{name}(")
        for option in op.attributes:
            assert f"\n{option}" in out
    assert main(["ops", "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [op["name"] for op in data] == list(registry())
    assert main(["ops", "tensor.matmul", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["inputs"] == ["a", "b"]


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "hetsched", "--version"], capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    assert done.stdout == f"hetsched {hetsched.__version__}\n"


def test_an_error_shows_plain_usage_wherever_it_goes():
    """From Python 3.14 on argparse colours what it shows on a terminal; the text of an error is told elsewhere, in JSON perhaps."""

    class Coloured(Parser):
        color = True

        def format_usage(self):
            return "\x1b[1musage\x1b[0m" if self.color else "usage"

    with pytest.raises(CommandLineError, match="usage") as caught:
        Coloured(prog="hetsched run").error("no such thing")
    assert "\x1b" not in str(caught.value)
