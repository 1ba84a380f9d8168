import os
import stat
from pathlib import Path
from typing import Any

import pytest

from hetsched.errors import FileError, NotTrustedError, PipelineError
from hetsched.pipeline import kernels
from hetsched.pipeline.build import Pipeline, check, load
from hetsched.pipeline.trust import consents, is_trusted, trust

OUTSIDE = "hetsched: 1\ntasks:\n  load: {op: data.npz, with: {path: ../data.npz}}\noutputs: {r: {from: load.x, save: ../r.npy}}\n"
KERNELS = """\
hetsched: 1
kernels: {k: {arguments: {x: "in float32[n]", y: "out float32[n]"}, opencl: text, size: n}}
tasks:
  a: {op: random.normal, with: {shape: [2]}}
  b: {op: kernels.k, in: {x: a}}
outputs: {r: {from: b}}
"""


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
    assert stat.S_IMODE(os.stat(consents()).st_mode) == 0o700


def test_the_state_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    assert consents() == Path("/somewhere/hetsched/trust")
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", value)
        monkeypatch.setenv("HOME", "/home/someone")
        assert consents() == Path("/home/someone/.local/state/hetsched/trust")


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


def test_kernels_need_consent(folder: Path) -> None:
    path = folder / "p.yaml"
    path.write_text(KERNELS)
    with pytest.raises(NotTrustedError, match="native code"):
        load(path)
    trust(path)
    assert load(path).tasks["b"] == "kernels.k"
    assert check(path, trust=True) == []


def test_consent_to_a_kernel_covers_the_file_of_its_source(folder: Path) -> None:
    path, source = folder / "p.yaml", folder / "k.cl"
    path.write_text(KERNELS.replace("opencl: text", "opencl: {file: k.cl}"))
    source.write_text("one")
    trust(path)
    assert load(path)
    source.write_text("two")
    with pytest.raises(NotTrustedError):
        load(path)
    source.write_text("one")
    assert is_trusted(path)
    assert load(path)


def opencl_of(pipeline: Pipeline) -> str:
    """The OpenCL C of the task `b`."""
    (op,) = (op for op in pipeline.graph.task_ops if op.name == "kernels.k")
    text: str = op.kernels["opencl"].__self__.sources["opencl"].text
    return text


@pytest.mark.parametrize("ways", [{}, {"trust": True}])
def test_what_is_built_is_what_was_hashed(ways: dict[str, bool], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of source that changes at any moment while the pipeline is read is either the one consented to, or refused."""
    path, source = folder / "p.yaml", folder / "k.cl"
    path.write_text(KERNELS.replace("opencl: text", "opencl: {file: k.cl}"))
    source.write_text("consented")
    trust(path)
    reads = []
    real = kernels._bytes_of

    def read_then_change(place: str) -> bytes:
        found = real(place)
        reads.append(place)
        source.write_text("other")
        return found

    monkeypatch.setattr(kernels, "_bytes_of", read_then_change)
    assert opencl_of(load(path, **ways)) == "consented"
    assert reads == [str(source)]
    if not ways:
        with pytest.raises(NotTrustedError):
            load(path)


def test_a_link_that_is_turned_elsewhere_meanwhile_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, source = folder / "p.yaml", folder / "k.cl"
    (folder / "one.cl").write_text("consented")
    (folder / "two.cl").write_text("other")
    source.symlink_to("one.cl")
    path.write_text(KERNELS.replace("opencl: text", "opencl: {file: k.cl}"))
    trust(path)

    def turned(*given: Any) -> bool:
        found = is_trusted(*given)
        source.unlink()
        source.symlink_to("two.cl")
        return found

    monkeypatch.setattr("hetsched.pipeline.build.is_trusted", turned)
    assert opencl_of(load(path)) == "consented"


def test_consent_covers_every_byte_of_a_source(folder: Path) -> None:
    """What lies behind the bytes that are hashed is refused, in whatever alphabet."""
    path, source = folder / "p.yaml", folder / "k.cl"
    path.write_text(KERNELS.replace("opencl: text", "opencl: {file: k.cl}"))
    source.write_text("//" + "€" * (kernels.MOST_BYTES // 3 - 10))
    trust(path)
    assert load(path)
    source.write_text("//" + "€" * (kernels.MOST_BYTES // 3 + 10), encoding="utf-8")
    assert [m.rule for m in check(path, trust=True)] == ["size"]


def test_without_consent_sources_are_not_read_for_their_digest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "p.yaml"
    path.write_text(KERNELS.replace("opencl: text", "opencl: {file: ../k.cl}"))
    (folder.parent / "k.cl").write_text("outside")
    monkeypatch.setattr(kernels, "_bytes_of", lambda place: pytest.fail(f"{place} was read"))
    with pytest.raises(NotTrustedError):
        load(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_source_that_is_a_pipe_is_refused_and_not_waited_for(folder: Path) -> None:
    path = folder / "p.yaml"
    path.write_text(KERNELS.replace("opencl: text", "opencl: {file: k.cl}"))
    os.mkfifo(folder / "k.cl")
    trust(path)
    assert "this is no file of text" in str(check(path))


def test_without_consent_nothing_outside_is_looked_at(folder: Path) -> None:
    """A file outside that exists and one that does not give the same answer."""
    path = folder / "p.yaml"
    messages = []
    for name in ("../data.npz", "../nodt.npz"):
        path.write_text(OUTSIDE.replace("../data.npz", name))
        messages.append(check(path)[0].message.replace(name, ""))
    assert messages[0] == messages[1]
