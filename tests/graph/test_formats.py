import contextlib
import io
import json
import os
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetsched.errors import FileError, GraphError
from hetsched.graph import formats
from hetsched.graph.spec import Spec


def npy(array, **options):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, **options)
    return stream.getvalue()


def file(tmp_path, content, name="a.npy"):
    path = tmp_path / name
    path.write_bytes(content)
    return str(path)


ARRAYS = [
    np.arange(12, dtype=np.float32).reshape(3, 4),
    np.arange(12, dtype=">i4").reshape(3, 4),
    np.asfortranarray(np.arange(24, dtype=np.float64).reshape(2, 3, 4)),
    np.array(3, np.int64),
    np.empty((0, 5), np.uint8),
    np.array([True, False]),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{a.shape}")
def test_npy_is_read_into_given_memory(tmp_path, array):
    path = file(tmp_path, npy(array))
    spec = formats.npy_spec(path)
    assert spec == Spec(array.shape, array.dtype.newbyteorder("="))
    out = np.empty(spec.bounds, spec.dtype)
    formats.read_npy(path, out)
    np.testing.assert_array_equal(out, array)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_npy_version(tmp_path, version):
    array = np.arange(3, dtype=np.int16)
    assert formats.npy_spec(file(tmp_path, npy(array, version=version))) == Spec((3,), np.int16)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an npy array"),
        (b"\x93NUMPY\x09\x00\x00\x00", "version 9 is unknown"),
        (b"\x93NUMPY\x01\x00\xff\xff", "claims 65535 bytes"),
        (npy(np.arange(3.0))[:-1], "truncated or damaged"),
        (npy(np.arange(3.0)) + b"x", "truncated or damaged"),
        (npy(np.array([{}], object)), "pickled"),
        (npy(np.array(["a"])), "integer labels"),
        (npy(np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")])), "records"),
        (npy(np.zeros(2, np.complex64)), "complex64"),
        (npy(np.arange(3.0)).replace(b"(3,)", b"(-3)"), "not a tuple"),
        (npy(np.arange(3.0)).replace(b"'shape'", b"'shap3'"), "other fields"),
        (npy(np.arange(3.0)).replace(b"{", b"("), "not a Python literal"),
    ],
)
def test_a_bad_npy_is_a_file_error_that_names_it(tmp_path, content, message):
    path = file(tmp_path, content)
    with pytest.raises(FileError, match=message) as info:
        formats.npy_spec(path)
    assert path in str(info.value)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(FileError, match="there is no such file"):
        formats.npy_spec(str(tmp_path / "none.npy"))
    with pytest.raises(FileError, match="folder"):
        formats.npz_members(str(tmp_path))


def test_npz_specs_come_from_headers_and_pickles_are_left_out(tmp_path):
    path = str(tmp_path / "a.npz")
    np.savez_compressed(path, x=np.ones((3, 4), np.float32), names=np.array([{}], object), y=np.arange(3))
    members = formats.npz_members(path)
    assert members.specs == {"x": Spec((3, 4), np.float32), "y": Spec((3,), np.int64)}
    assert "pickled" in members.refused["names"]
    y = np.empty(3, np.int64)
    formats.read_npz_member(path, "y", y)
    assert y.tolist() == [0, 1, 2]


def test_a_file_that_changed_since_planning_is_refused(tmp_path):
    path = file(tmp_path, npy(np.arange(3.0)))
    with pytest.raises(FileError, match="plan again"):
        formats.read_npy(path, np.empty(4))


def test_a_damaged_member_fails_its_checksum(tmp_path):
    path = str(tmp_path / "a.npz")
    np.savez(path, x=np.zeros(1000))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[4000] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(FileError, match="CRC"):
        formats.read_npz_member(path, "x", np.empty(1000))


def test_a_zip_bomb_is_refused_by_what_its_directory_claims(tmp_path):
    path = str(tmp_path / "a.npz")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy(np.zeros(8)))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    at = content.index(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", 2**31)
    (tmp_path / "a.npz").write_bytes(content)
    assert "it claims 2147483648 bytes" in formats.npz_members(path).refused["x"]


@settings(max_examples=300)
@given(st.data())
def test_flipped_bytes_give_the_array_or_a_file_error(tmp_path_factory, data):
    stream = io.BytesIO()
    np.savez_compressed(stream, x=np.arange(40, dtype=np.float32), y=np.arange(3))
    content = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = file(tmp_path_factory.mktemp("fuzz"), bytes(content[: data.draw(st.integers(0, len(content)))]), "a.npz")
    with contextlib.suppress(FileError):
        for name, spec in formats.npz_members(path).specs.items():
            assert spec.nbytes < 1 << 20
            formats.read_npz_member(path, name, np.empty(spec.bounds, spec.dtype))


# safetensors --------------------------------------------------------------------------------------------------------------------


def test_safetensors_round_trip_and_agreement_with_the_reference_library(tmp_path):
    from safetensors import safe_open
    from safetensors.numpy import load_file

    arrays = {"b": np.arange(3, dtype=np.float64), "a": np.ones((2, 2), np.float32), "empty": np.empty((0, 4), np.int8), "s": np.array(7, np.int64)}
    path = str(tmp_path / "m.safetensors")
    nbytes = formats.write_safetensors(path, arrays, {"k": "v", "j": "ü"})
    assert nbytes == os.path.getsize(path)
    header = formats.safetensors_header(path)
    assert dict(header.specs) == {name: Spec(a.shape, a.dtype) for name, a in arrays.items()}
    assert header.metadata == {"k": "v", "j": "ü"}
    outs = [np.empty_like(a) for a in arrays.values()]
    formats.read_tensors(path, list(arrays), outs)
    theirs = load_file(path)
    for name, out in zip(arrays, outs, strict=True):
        np.testing.assert_array_equal(out, arrays[name])
        np.testing.assert_array_equal(theirs[name], arrays[name])
    with safe_open(path, "np") as opened:
        assert opened.metadata() == {"k": "v", "j": "ü"}


def test_files_of_the_reference_library_are_read(tmp_path):
    from safetensors.numpy import save_file

    path = str(tmp_path / "m.safetensors")
    save_file({"x": np.arange(6, dtype=np.float16).reshape(2, 3), "y": np.array([True])}, path)
    assert dict(formats.safetensors_header(path).specs) == {"x": Spec((2, 3), np.float16), "y": Spec((1,), np.bool_)}


def test_equal_models_give_equal_bytes_whatever_the_order(tmp_path):
    a, b = np.arange(3.0), np.ones(2, np.float32)
    formats.write_safetensors(str(tmp_path / "1"), {"a": a, "b": b}, {"p": "1", "q": "2"})
    formats.write_safetensors(str(tmp_path / "2"), {"b": b, "a": a}, {"q": "2", "p": "1"})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_writing_leaves_the_old_file_and_no_other_on_an_error(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"old")

    def write(stream):
        stream.write(b"half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), formats.publishing(str(path)) as stream:
        write(stream)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_a_dtype_that_safetensors_lacks(tmp_path):
    with pytest.raises(GraphError, match="complex64"):
        formats.write_safetensors(str(tmp_path / "m"), {"x": np.zeros(2, np.complex64)}, {})


def raw(tmp_path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return file(tmp_path, len(text).to_bytes(8, "little") + text + data, "m.safetensors")


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"x": entry()}, b"1234567", "truncated"),
        ({"x": entry()}, b"123456789", "truncated or damaged"),
        ({"x": entry(dtype="BF16")}, b"12345678", "BF16"),
        ({"x": entry(shape=[-2])}, b"12345678", "whole numbers"),
        ({"x": entry(shape=[True])}, b"12345678", "whole numbers"),
        ({"x": entry(offsets=[0, 4])}, b"12345678", "damaged"),
        ({"x": entry(offsets=[8, 16])}, b"1" * 16, "damaged"),
        ({"x": entry(), "y": entry()}, b"12345678", "damaged"),
        ({"x": {"dtype": "F32"}}, b"", "entry needs"),
        ({"x": entry(offsets=[0])}, b"", "two whole numbers"),
        (["x"], b"", "not a mapping"),
        ({"__metadata__": {"a": 1}}, b"", "metadata"),
        (b'{"x": 1, "x": 2}', b"", "a name stands twice"),
        (b"[" * 50_000, b"", "nested too deeply"),
        (b"\xff\xfe", b"", "damaged"),
    ],
)
def test_a_bad_safetensors_header_is_a_file_error(tmp_path, header, data, message):
    with pytest.raises(FileError, match=message):
        formats.safetensors_header(raw(tmp_path, header, data))


@pytest.mark.parametrize("content", [b"", b"123", (1 << 60).to_bytes(8, "little") + b"{}", (10).to_bytes(8, "little") + b"{}"])
def test_a_header_longer_than_its_file(tmp_path, content):
    with pytest.raises(FileError, match="not a safetensors file"):
        formats.safetensors_header(file(tmp_path, content))


def test_headers_are_parsed_one_at_a_time(monkeypatch, tmp_path):
    """Two trees built at once may end in a SystemError in CPython 3.11: whoever parses holds the lock."""
    np.save(tmp_path / "a.npy", np.zeros(3))
    held, parse = [], formats.ast.literal_eval
    monkeypatch.setattr(formats.ast, "literal_eval", lambda text: (held.append(formats._ONE_AST.locked()), parse(text))[1])
    formats.npy_spec(str(tmp_path / "a.npy"))
    assert held == [True]
