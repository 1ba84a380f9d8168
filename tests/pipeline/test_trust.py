import os
import stat
from pathlib import Path

import pytest

from hetsched.errors import FileError, NotTrustedError, PipelineError
from hetsched.pipeline.build import check, load
from hetsched.pipeline.trust import is_trusted, state_folder, trust

OUTSIDE = "hetsched: 1\ntasks:\n  load: {op: data.npz, with: {path: ../data.npz}}\noutputs: {r: {from: load.x, save: ../r.npy}}\n"
KERNELS = "hetsched: 1\ntasks: {a: {op: random.normal, with: {shape: [2]}}}\noutputs: {r: {from: a}}\nkernels: {k: {cuda: x}}\n"


@pytest.fixture
def path(folder: Path) -> Path:
    path = folder / "p.yaml"
    path.write_text(OUTSIDE)
    return path


def test_without_consent_the_error_says_what_needs_it_and_the_two_ways_out(path: Path) -> None:
    with pytest.raises(NotTrustedError) as caught:
        load(path)
    assert caught.value.exit_code == 8
    text = str(caught.value)
    assert text.count("[path]") == 2
    assert "--trust" in text
    assert f"hetsched trust {path}" in text


def test_consent_for_this_once(path: Path) -> None:
    assert check(path, trust=True) == []
    assert load(path, trust=True).outputs["r"].path == str(path.parent.parent / "r.npy")
    assert check(path) != []


def test_consent_is_remembered_until_one_byte_changes(path: Path) -> None:
    digest = trust(path)
    assert is_trusted(path)
    assert load(path).sha256 == digest
    path.write_text(OUTSIDE + " ")
    assert not is_trusted(path)
    with pytest.raises(NotTrustedError):
        load(path)
    path.write_text(OUTSIDE)
    assert is_trusted(path)


def test_consent_holds_for_the_place_too(path: Path) -> None:
    trust(path)
    copy = path.parent / "folder" / "p.yaml"
    copy.write_text(OUTSIDE)
    assert not is_trusted(copy)
    link = path.parent / "l.yaml"
    link.symlink_to(path)
    assert is_trusted(link)


def test_two_files_are_trusted_side_by_side(path: Path) -> None:
    other = path.parent / "q.yaml"
    other.write_text(OUTSIDE + "# other\n")
    trust(path)
    trust(other)
    assert is_trusted(path)
    assert is_trusted(other)


def test_consents_are_the_users_own(path: Path) -> None:
    trust(path)
    assert stat.S_IMODE(os.stat(state_folder()).st_mode) == 0o700


def test_the_state_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    assert state_folder() == Path("/somewhere/hetsched/trust")
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", value)
        monkeypatch.setenv("HOME", "/home/someone")
        assert state_folder() == Path("/home/someone/.local/state/hetsched/trust")


def test_a_state_folder_that_cannot_be_made_is_a_file_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocker = path.parent / "blocker"
    blocker.write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(blocker))
    assert not is_trusted(path)
    with pytest.raises(FileError, match="set XDG_STATE_HOME, or use --trust"):
        trust(path)


def test_trusting_what_is_not_there(folder: Path) -> None:
    with pytest.raises(FileError, match=r"no\.yaml"):
        trust(folder / "no.yaml")


def test_a_mistake_comes_before_consent(path: Path) -> None:
    path.write_text(OUTSIDE.replace("data.npz,", "data.npy,"))
    with pytest.raises(PipelineError):
        load(path)


def test_kernels_need_consent_and_then_another_version(folder: Path) -> None:
    path = folder / "p.yaml"
    path.write_text(KERNELS)
    with pytest.raises(NotTrustedError, match="native code"):
        load(path)
    trust(path)
    with pytest.raises(PipelineError, match="not supported by this version") as caught:
        load(path)
    assert caught.value.exit_code == 3


def test_without_consent_nothing_outside_is_looked_at(folder: Path) -> None:
    """A file outside that exists and one that does not give the same answer."""
    path = folder / "p.yaml"
    messages = []
    for name in ("../data.npz", "../nodt.npz"):
        path.write_text(OUTSIDE.replace("../data.npz", name))
        messages.append(check(path)[0].message.replace(name, ""))
    assert messages[0] == messages[1]
