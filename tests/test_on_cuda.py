"""`benchmarks/on_cuda.py`: what is to be run on a card is there, and asked for as it can be."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def script() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        spec = importlib.util.spec_from_file_location("on_cuda", ROOT / "benchmarks" / "on_cuda.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def test_every_part_names_files_and_options_that_there_are(script: ModuleType) -> None:
    for part in script.PARTS:
        first = part.command[0]
        paths = [word for word in part.command if "/" in word and "{" not in word]
        assert paths or "calibrate" in part.command
        assert all((ROOT / path).exists() for path in paths), part.name
        if first.endswith(".py"):
            text = (ROOT / first).read_text()
            assert all(f'"{word}"' in text for word in part.command[1:] if word.startswith("-")), part.name
    assert len({part.name for part in script.PARTS}) == len(script.PARTS)


def test_parts_end_at_their_limits_and_leave_what_they_printed(script: ModuleType, tmp_path: Path) -> None:
    long = script.Part("long", 9, ("-u", "-c", "print('begun'); import time; time.sleep(600)"))
    ended = script.Part("ended", 9, ("-c", "import sys; print('{json}'); sys.exit(3)"))
    assert script.run(long, tmp_path, 0.5, {}) is None
    assert script.run(ended, tmp_path, 60.0, {}) == 3
    assert (tmp_path / "ended.txt").read_text().splitlines()[-1] == str(tmp_path / "ended.json")
    assert (tmp_path / "long.txt").read_text().startswith("$ ")


def test_without_a_card_it_says_why(script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(script._gpu, "missing", lambda: "no card is here")
    assert script.main(["--only", "latency"]) == 1
    assert "no card is here" in capsys.readouterr().err
    assert script.main(["--only", "latencies"]) == 2
    assert "there are tests-backend" in capsys.readouterr().err


def test_parts_are_listed_as_commands() -> None:
    done = subprocess.run([sys.executable, "benchmarks/on_cuda.py", "--list"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "python benchmarks/overlap.py --cuda" in done.stdout
