import csv
import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hetsched.errors import FileError
from hetsched.graph.formats import publishing, safetensors_header
from hetsched.graph.spec import Opaque, Sequence, Spec
from hetsched.pipeline.build import load, publish
from hetsched.pipeline.publish import FORMS, csv_text, form_problem, to_json, write


def test_every_form_gives_back_what_was_written(tmp_path: Path) -> None:
    x, y = np.arange(6, dtype=np.float32).reshape(3, 2) / 3, np.array([1, 2, 3])
    write(str(tmp_path / "x.npy"), x)
    assert np.array_equal(np.load(tmp_path / "x.npy"), x)
    write(str(tmp_path / "x.npz"), {"x": x, "y": y})
    with np.load(tmp_path / "x.npz") as found:
        assert np.array_equal(found["x"], x)
        assert np.array_equal(found["y"], y)
    write(str(tmp_path / "one.npz"), x, name="weights")
    with np.load(tmp_path / "one.npz") as found:
        assert list(found) == ["weights"]
    write(str(tmp_path / "m.safetensors"), {"x": x, "y": y}, metadata={"a": "b"})
    header = safetensors_header(str(tmp_path / "m.safetensors"))
    assert dict(header.specs) == {"x": Spec((3, 2)), "y": Spec((3,), np.int64)}
    assert header.metadata == {"a": "b"}
    write(str(tmp_path / "x.csv"), {"x": x, "y": y})
    rows = list(csv.reader((tmp_path / "x.csv").read_text().splitlines()))
    assert rows[0] == ["x0", "x1", "y"]
    assert np.array_equal(np.array([[float(c) for c in r[:2]] for r in rows[1:]], np.float32), x)


def test_equal_values_give_equal_bytes(tmp_path: Path) -> None:
    value = {"x": np.arange(4.0), "y": np.arange(3)}
    for form in (".npz", ".safetensors", ".json"):
        write(str(tmp_path / f"a{form}"), value)
        write(str(tmp_path / f"b{form}"), value)
        assert (tmp_path / f"a{form}").read_bytes() == (tmp_path / f"b{form}").read_bytes()


def test_json_of_metrics(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    best = np.array(float("-inf"))
    write(str(path), {"loss": np.float64("nan"), "best": best, "accuracy": np.float32(0.1), "n": np.int64(3), "ok": np.bool_(True)})
    assert path.read_text() == '{\n  "loss": null,\n  "best": "-Infinity",\n  "accuracy": 0.1,\n  "n": 3,\n  "ok": true\n}\n'


@given(
    arrays.arrays(st.sampled_from([np.float16, np.float32, np.float64]), st.integers(0, 8), elements={"allow_nan": False, "allow_infinity": False})
)
def test_floats_come_back_with_the_same_bits(array: np.ndarray[Any, Any]) -> None:
    back = np.asarray(json.loads(json.dumps(to_json(array))), dtype=array.dtype)
    assert back.tobytes() == array.tobytes()
    rows = csv_text({"v": array}).splitlines()[1:]
    assert np.array([float(r) for r in rows], dtype=array.dtype).tobytes() == array.tobytes()


def test_csv_of_special_values() -> None:
    assert csv_text({"v": np.array([np.nan, np.inf, -0.0])}) == "v\nnan\ninf\n-0.0\n"
    assert csv_text({"v": np.array([True, False])}) == "v\nTrue\nFalse\n"


@pytest.mark.parametrize(
    ("form", "specs", "kind", "fits"),
    [
        (".npy", {"x": Spec((3,))}, "array", True),
        (".npy", {"a": Spec(()), "b": Spec(())}, "metrics", False),
        (".npz", {"a": Spec(())}, "metrics", True),
        (".safetensors", {"w": Spec((3,))}, "model", True),
        (".safetensors", {"x": Spec((3,))}, "array", False),
        (".json", {"a": Spec(())}, "metrics", True),
        (".json", {"w": Spec((3,))}, "model", False),
        (".json", {"x": Spec((1000, 1000))}, "array", False),
        (".json", {"x": Spec((3, 3))}, "array", True),
        (".csv", {"x": Spec((3, 2))}, "array", True),
        (".csv", {"x": Spec(())}, "array", False),
        (".csv", {"x": Spec((3, 2, 2))}, "array", False),
        (".csv", {"a": Spec((3,)), "b": Spec((4,))}, "table", False),
        (".txt", {"x": Spec((3,))}, "array", False),
        ("", {"x": Spec((3,))}, "array", False),
        (".npy", {"x": Opaque("paths")}, "array", False),
        (".npy", {"x": Sequence(Spec((3,)), 4)}, "array", False),
    ],
)  # fmt: skip
def test_which_form_fits_what(form: str, specs: dict[str, Any], kind: str, fits: bool) -> None:
    problem = form_problem(form, specs, kind != "array", kind)
    assert (problem is None) is fits
    assert fits or any(word in str(problem) for word in ("save it as", "known:", "choose another"))


@pytest.mark.parametrize("form", FORMS)
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"r{form}"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    value: Any = {"x": np.zeros(3)} if form in (".safetensors", ".json") else np.zeros(3)
    with pytest.raises(FileError, match="No space left on device") as caught:
        write(str(path), value)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 7
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_text() == "old"


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "r.npy").mkdir()
    with pytest.raises(FileError, match="folder"):
        write(str(tmp_path / "r.npy"), np.zeros(3))


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(FileError, match=r"out/r\.npy"):
        write(str(tmp_path / "out" / "r.npy"), np.zeros(3))


def test_an_unknown_form_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="known: "):
        write(str(tmp_path / "r.txt"), np.zeros(3))
    assert os.listdir(tmp_path) == []


def test_outputs_of_a_pipeline_are_written_where_it_says_or_elsewhere(folder: Path) -> None:
    path = folder / "p.yaml"
    path.write_text("hetsched: 1\ntasks: {a: {op: random.normal, with: {shape: [2]}}}\noutputs: {r: {from: a, save: out/r.npy}, s: {from: a}}\n")
    pipeline = load(path)
    results = {"r": np.ones(2), "s": np.ones(2)}
    assert publish(pipeline, results) == {"r": str(folder / "out" / "r.npy")}
    assert publish(pipeline, results, folder / "other") == {"r": str(folder / "other" / "out" / "r.npy")}
    assert np.array_equal(np.load(folder / "other" / "out" / "r.npy"), np.ones(2))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are of Unix")
def test_what_is_no_file_is_written_to_and_never_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with publishing(str(pipe)) as stream:
            stream.write(b"seen")
        assert os.read(reader, 100) == b"seen"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(os.stat(pipe).st_mode), "the superuser's /dev/null would be a file from then on"
    assert os.listdir(tmp_path) == ["pipe"]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="descriptors have names on Linux")
def test_a_file_that_is_open_under_a_number_is_added_to(tmp_path: Path) -> None:
    with open(tmp_path / "out.txt", "wb", buffering=0) as stream:
        stream.write(b"first\n")
        with publishing(f"/proc/self/fd/{stream.fileno()}") as more:
            more.write(b"second\n")
    assert (tmp_path / "out.txt").read_bytes() == b"first\nsecond\n"


def test_links_and_permissions_of_what_is_written_anew_stay(tmp_path: Path) -> None:
    real, link, later = tmp_path / "real.npy", tmp_path / "link.npy", tmp_path / "later.npy"
    real.write_bytes(b"old")
    real.chmod(0o600)
    link.symlink_to("real.npy")
    later.symlink_to(tmp_path / "not" / "there.npy")
    write(str(link), np.arange(3))
    assert link.is_symlink()
    assert np.array_equal(np.load(real), np.arange(3))
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    write(str(later), np.arange(4))
    assert later.is_symlink()
    assert np.array_equal(np.load(tmp_path / "not" / "there.npy"), np.arange(4))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device without room is there on Linux")
def test_a_full_disk_is_told(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    with pytest.raises(FileError, match=r"full: cannot be written: No space left on device"), publishing(str(full)) as stream:
        stream.write(b"x" * 100_000)
