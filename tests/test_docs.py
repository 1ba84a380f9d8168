"""The examples of README.md and docs/ work: Python blocks run, `$ hetsched ...` lines of console blocks end with 0, YAML blocks are valid.

Blocks of a file share one scratch folder with a copy of `pipelines/`, and Python blocks of a file one namespace, in the order of the file.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from hetsched.cli import main
from hetsched.executors.backends import opencl

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (?:\.venv/bin/)?(hetsched .*)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


def blocks(page: Path) -> list[tuple[str, int, str]]:
    """(language, line, text) of every fenced block."""
    text = page.read_text(encoding="utf-8")
    return [(m.group(1), text.count("\n", 0, m.start()) + 1, m.group(2)) for m in BLOCK.finditer(text)]


def commands(text: str) -> list[list[str]]:
    """The arguments of every `$ hetsched` line; a backslash at a line's end continues it."""
    return [shlex.split(line, comments=True)[1:] for line in COMMAND.findall(text.replace("\\\n", ""))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_examples_work(page, tmp_path, monkeypatch, capsys):
    if (ROOT / "pipelines").is_dir():
        shutil.copytree(ROOT / "pipelines", tmp_path / "pipelines", ignore=shutil.ignore_patterns("out"))
    monkeypatch.chdir(tmp_path)
    if "$ hetsched calibrate" in page.read_text(encoding="utf-8"):  # what it measures is not for other tests
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names: dict[str, object] = {}
    for language, line, text in blocks(page):
        if language == "python":
            exec(compile("\n" * line + text, str(page), "exec"), names)
        elif language == "console":
            for argv in commands(text):
                code = main(argv)
                if code == 4 and not opencl.find().devices:
                    pytest.skip("; ".join(opencl.find().notes))
                assert code == 0, f"{page.name}:{line}: hetsched {shlex.join(argv)} ended with {code}\n{capsys.readouterr().err}"
        elif language == "yaml" and re.search(r"^hetsched:", text, re.MULTILINE):
            file = tmp_path / "pipelines" / f"block-{line}.yaml"
            file.write_text(text, encoding="utf-8")
            code = main(["check", str(file)])
            assert code == 0, f"{page.name}:{line}: {capsys.readouterr().out}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files_that_are_there(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_has_both_commands_for_a_fresh_machine_and_the_library():
    found = {language for language, _, _ in blocks(ROOT / "README.md")}
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "python" in found
    assert "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/hetsched run pipelines/digits_mlp.yaml" in text
    assert 'python3 -m venv .venv && .venv/bin/pip install ".[dev,opencl]" && .venv/bin/python -m pytest' in text


def test_the_pipeline_of_the_readme_is_the_one_that_is_shipped():
    shipped = (ROOT / "pipelines" / "digits_mlp.yaml").read_text(encoding="utf-8")
    assert shipped in [text for language, _, text in blocks(ROOT / "README.md") if language == "yaml"]


def test_the_layers_that_the_readme_names_are_all_there_are():
    from hetsched.graph.model import ACTIVATIONS, KINDS

    told = (ROOT / "README.md").read_text(encoding="utf-8").split("The layers of a model are ")[1].split("Other graphs")[0]
    assert set(re.findall(r"`(\w+)`", told)) == {*KINDS, *ACTIVATIONS}
