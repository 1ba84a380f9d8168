from __future__ import annotations

import pytest

from hetsched.cli import main
from hetsched.cli.options import memory_limits
from hetsched.cli.units import assignment, duration, size
from hetsched.errors import CommandLineError


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("2min", 120), ("2 min", 120), ("500ms", 0.5), ("1.5h", 5400), ("7", 7), ("1e2ms", 0.1), ("10us", 1e-5)]
)
def test_durations(text, seconds):
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(("text", "nbytes"), [("512MiB", 512 << 20), ("2GB", 2 * 10**9), ("1.5 KiB", 1536), ("4096", 4096), ("1kB", 1000), ("8B", 8)])
def test_sizes(text, nbytes):
    assert size(text) == nbytes


@pytest.mark.parametrize("text", ["", "s", "-1s", "0s", "0", "nan", "inf", "1e999s", "1..2s", "3 parsec", "1s2", "1 000s"])
def test_what_is_no_duration_is_told(text):
    with pytest.raises(CommandLineError):
        duration(text)


def test_an_unknown_unit_is_told_with_the_nearest():
    with pytest.raises(CommandLineError, match=r"unknown unit 'mb'.*known: B, GB"):
        size("3mb")
    with pytest.raises(CommandLineError, match="did you mean 'min'"):
        duration("3mins")


def test_assignments():
    assert assignment("lr=1e-3") == ("lr", "1e-3")
    assert assignment("path=a=b") == ("path", "a=b")
    for bad in ("lr", "=3", " =3"):
        with pytest.raises(CommandLineError, match="KEY=VALUE"):
            assignment(bad)


def test_memory_limits_name_a_memory_node_or_mean_the_host():
    assert memory_limits([]) is None
    assert memory_limits(["1GiB", "cuda:0=2GB"]) == {"host": 1 << 30, "cuda:0": 2 * 10**9}
    assert memory_limits(["1GiB, cuda:0=2GB,gpu=1GB"]) == {"host": 1 << 30, "cuda:0": 2 * 10**9, "gpu": 10**9}
    with pytest.raises(CommandLineError, match="'host' twice"):
        memory_limits(["1GiB", "host=1GiB"])


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["run", "p.yaml", "--timeout", "0"], "--timeout '0': a duration must be more than 0 and finite"),
        (["plan", "p.yaml", "--plan-time", "soon"], "--plan-time 'soon' is not a duration; write it like 30s"),
        (["plan", "p.yaml", "--memory", "cuda:0=lots"], "--memory 'lots' is not a size; write it like 512MiB"),
        (["runs", "-n", "0"], "argument -n: '0' is no whole number of at least 1"),
        (["cache", "gc", "--days", "-1"], "argument --days: '-1' is no number of days of at least 0"),
        (["cache", "gc", "--days", "nan"], "argument --days: 'nan' is no number of days"),
    ],
)
def test_a_bad_number_is_told_with_its_option(argv, told, tmp_path, monkeypatch, capsys):
    (tmp_path / "p.yaml").write_text("hetsched: 1\ntasks:\n  a: {op: random.normal, with: {shape: [4], seed: 1}}\noutputs: {a: {from: a}}\n")
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    assert told in capsys.readouterr().err
