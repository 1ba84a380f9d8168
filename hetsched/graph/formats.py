"""Array files, header first: npy, npz (zip of npy), safetensors. Specs come from headers alone; data go straight into planned memory.

Files may be truncated, corrupt or hostile: every length is checked against the bytes that are really there before anything is allocated, no pickle
is ever loaded, and whatever is wrong becomes a `FileError` that names the file. Writers are deterministic: equal arrays give equal bytes.

Formats: NEP 1 (numpy.org/neps/nep-0001-npy-format.html), APPNOTE.TXT of zip, github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import ast
import json
import math
import mmap
import os
import secrets
import stat
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from hetsched.errors import FileError, GraphError, HetschedError, did_you_mean
from hetsched.graph.spec import Spec

NPY_MAGIC = b"\x93NUMPY"
MAX_NPY_HEADER = 1 << 16
MAX_SAFETENSORS_HEADER = 100_000_000  # the limit of the reference implementation
# Deflate cannot do better than 1032:1; a directory that claims more lies about the member's size.
MAX_DEFLATE_RATIO = 1040
CHUNK_NBYTES = 1 << 20
A_FOLDER = "this is a folder; choose another name"

SAFETENSORS_DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_), "U8": np.dtype("u1"), "I8": np.dtype("i1"), "U16": np.dtype("<u2"), "I16": np.dtype("<i2"), "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"), "U64": np.dtype("<u8"), "I64": np.dtype("<i8"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8"),
}  # fmt: skip
SAFETENSORS_NAMES: Mapping[np.dtype[Any], str] = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


@contextmanager
def reading(path: str, what: str) -> Iterator[None]:
    """Turn whatever goes wrong while reading `path` into a `FileError` that names it; `what` is the format, with its article."""
    try:
        yield
    except (HetschedError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise FileError(f"{path}: there is no such file") from error
    except IsADirectoryError as error:
        raise FileError(f"{path}: this is a folder, not {what}") from error
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # zipfile, zlib, ast and json raise a dozen kinds on corrupt bytes
        raise FileError(f"{path}: not {what}, or damaged: {type(error).__name__}: {error}") from error


@contextmanager
def publishing(path: str) -> Iterator[IO[bytes]]:
    """A file to write that appears under `path` only when complete: temporary file beside it, fsync, rename. On an error nothing is left.

    A file that is there keeps its permissions, and a link stays one: what it points to is written. What is no file (/dev/null, /dev/stdout, a named
    pipe) is written to as it is, and never replaced.
    """
    if os.path.isdir(path):
        raise FileError(f"{path}: cannot be written: {A_FOLDER}")
    try:
        if _is_written_through(path):
            with open(path, "ab") as stream:
                yield stream
            return
        target = os.path.realpath(path)
        folder = os.path.dirname(target)
        temporary = os.path.join(folder, f".{os.path.basename(target)}.{secrets.token_hex(6)}.tmp")
        os.makedirs(folder, exist_ok=True)
        try:
            with open(temporary, "xb") as stream:
                yield stream
                stream.flush()
                if os.path.exists(target):
                    os.chmod(temporary, stat.S_IMODE(os.stat(target).st_mode))
                os.fsync(stream.fileno())
            os.replace(temporary, target)
        except BaseException:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise
        _sync_folder(folder)
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {error.strerror or error}") from error


def _is_written_through(path: str) -> bool:
    """True for what must not be replaced: devices, pipes, sockets, and files that are open under a number (/dev/stdout, /dev/fd/3)."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return True
    except OSError:
        return False
    while True:
        folder = os.path.realpath(os.path.dirname(os.path.abspath(path)))
        if folder == "/dev" or folder.startswith(("/dev/fd", "/proc/")):
            return True
        if not os.path.islink(path):
            return False
        path = os.path.join(folder, os.readlink(path))  # /dev/stdout -> /proc/self/fd/1 -> whatever it is


def _sync_folder(folder: str) -> None:
    """Make a rename durable, where the system can open folders."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass  # some file systems refuse to sync a folder; the file itself is safe
    finally:
        os.close(handle)


# npy and npz ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ArrayHeader:
    """What an npy header says: dtype as stored (any byte order), shape, memory order, and where the data start."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran_order: bool
    data_offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def spec(self) -> Spec:
        """The spec of the array in native byte order."""
        return Spec(self.shape, self.dtype.newbyteorder("="))


def npy_header(stream: IO[bytes], nbytes: int, where: str) -> ArrayHeader:
    """The header at the start of `stream`, which holds `nbytes` in all. `where` names it in errors."""
    start = stream.read(8)
    if len(start) < 8 or start[:6] != NPY_MAGIC:
        raise FileError(f"{where}: not an npy array: it starts with {start[:6]!r}")
    major = start[6]
    if major not in (1, 2, 3):
        raise FileError(f"{where}: npy version {major} is unknown; versions 1 to 3 can be read")
    width = 2 if major == 1 else 4
    length = int.from_bytes(stream.read(width), "little")
    if length > MAX_NPY_HEADER or 8 + width + length > nbytes:
        raise FileError(f"{where}: its npy header claims {length} bytes; the file is truncated or not an npy array")
    text = stream.read(length).decode("utf-8" if major == 3 else "latin1")
    fields = _literal(text, where)
    if not isinstance(fields, dict) or set(fields) != {"descr", "fortran_order", "shape"}:
        raise FileError(f"{where}: its npy header has other fields than descr, fortran_order and shape: {text[:80]!r}")
    descr, shape = fields["descr"], fields["shape"]
    if not isinstance(descr, str):
        raise FileError(f"{where}: arrays of records are not read; save its columns as arrays of their own")
    dtype = np.dtype(descr)
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise FileError(f"{where}: arrays of dtype {dtype} are not read, only booleans, integers and floats" + _advice(dtype))
    if not isinstance(shape, tuple) or len(shape) > 32 or any(type(n) is not int or n < 0 for n in shape):
        raise FileError(f"{where}: its shape {shape!r} is not a tuple of whole numbers")
    header = ArrayHeader(dtype, shape, bool(fields["fortran_order"]), 8 + width + length)
    if header.data_offset + header.nbytes != nbytes:
        there = nbytes - header.data_offset
        raise FileError(f"{where}: {header.spec!r} needs {header.nbytes} bytes of data, the file has {there}: truncated or damaged")
    return header


# CPython 3.11 counts the depth of the trees that it builds in one place for all threads: two that build one at once may end in a SystemError
# ("AST constructor recursion depth mismatch", python/cpython issue 106905). Arrays are read by several threads.
_ONE_AST = threading.Lock()


def _literal(text: str, where: str) -> Any:
    """A Python literal, or a `FileError`: the parser gives up in many ways on hostile text."""
    try:
        with _ONE_AST:
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise FileError(f"{where}: its npy header is not a Python literal: {text[:80]!r}") from error


def _advice(dtype: np.dtype[Any]) -> str:
    if dtype.kind == "O":
        return " (it is pickled; unpickling runs code)"
    return "; map texts to integer labels before saving" if dtype.kind in "US" else ""


def npy_spec(path: str) -> Spec:
    """The spec of the array in an npy file."""
    with reading(path, "an npy file"), open(path, "rb") as stream:
        return npy_header(stream, os.fstat(stream.fileno()).st_size, path).spec


def read_npy(path: str, out: NDArray[Any]) -> None:
    """Read an npy file into `out`, which must be what `npy_spec` said."""
    with reading(path, "an npy file"), open(path, "rb") as stream:
        header = npy_header(stream, os.fstat(stream.fileno()).st_size, path)
        _fill(stream, header, out, path)


@dataclass(frozen=True, slots=True)
class Members:
    """The arrays of an npz file by name, in the file's order, and why the other members cannot be read."""

    specs: Mapping[str, Spec]
    refused: Mapping[str, str]


def is_zip(path: str) -> bool:
    """True for a file that begins as an npz file does."""
    with reading(path, "an npy or npz file"), open(path, "rb") as stream:
        return stream.read(2) == b"PK"


def npz_members(path: str) -> Members:
    """Specs of every array in an npz file; reads the zip directory and each member's header, no data."""
    specs: dict[str, Spec] = {}
    refused: dict[str, str] = {}
    with reading(path, "an npz file"), _open_zip(path) as archive:
        nbytes = os.path.getsize(path)
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name in specs or name in refused:
                raise FileError(f"{path}: two members are called {name!r}")
            try:
                with _open_member(archive, info, nbytes, f"{path}: member {name!r}") as stream:
                    specs[name] = npy_header(stream, info.file_size, f"{path}: member {name!r}").spec
            except FileError as error:
                refused[name] = str(error)
    return Members(specs, refused)


def read_npz_member(path: str, name: str, out: NDArray[Any]) -> None:
    """Read array `name` of an npz file into `out`, which must be what `npz_members` said; its checksum is verified."""
    where = f"{path}: member {name!r}"
    with reading(path, "an npz file"), _open_zip(path) as archive:
        info = _member(archive, name, path)
        with _open_member(archive, info, os.path.getsize(path), where) as stream:
            _fill(stream, npy_header(stream, info.file_size, where), out, where)


def _member(archive: zipfile.ZipFile, name: str, path: str) -> zipfile.ZipInfo:
    infos = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    if name not in infos:
        raise FileError(f"{path}: there is no member {name!r}{did_you_mean(name, infos)}")
    return infos[name]


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the rows of an array lie in a file, one behind the other: `offset` is that of the first; `header` says what the array is."""

    offset: int
    header: ArrayHeader

    @property
    def row_nbytes(self) -> int:
        """Bytes of a row."""
        return math.prod(self.header.shape[1:]) * self.header.dtype.itemsize


def stored_rows(path: str, member: str = "") -> Rows:
    """Where the rows of the array in an .npy file lie, or of a member of an .npz file (as `numpy.savez` writes it, not packed).

    Raises `FileError` for a file that is damaged or has no such member, `GraphError` for an array whose rows do not lie one behind the other.
    """
    with reading(path, "an npz file" if member else "an npy file"):
        about = os.stat(path)
        return _stored_rows(path, member, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=64)
def _stored_rows(path: str, member: str, nbytes: int, changed_ns: int) -> Rows:
    """`stored_rows` of a file of so many bytes that was last changed then: asked for at every batch."""
    if not member:
        with open(path, "rb") as stream:
            return _one_by_one(npy_header(stream, nbytes, path), 0, path)
    where = f"{path}: member {member!r}"
    with _open_zip(path) as archive:
        info = _member(archive, member, path)
        if info.compress_type != zipfile.ZIP_STORED:
            raise GraphError(f"{where}: it is packed, so its rows cannot be read one by one; write it with numpy.savez, or read it whole")
        with _open_member(archive, info, nbytes, where) as stream:
            header = npy_header(stream, info.file_size, where)
    with open(path, "rb") as raw:  # a member's own header says where it begins: APPNOTE.TXT, section 4.3.7
        raw.seek(info.header_offset)
        local = raw.read(30)
    if len(local) < 30 or local[:4] != b"PK\3\4":
        raise FileError(f"{where}: its header is damaged")
    start = info.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    if start + info.file_size > nbytes:
        raise FileError(f"{where}: it ends behind the file: truncated or damaged")
    return _one_by_one(header, start, where)


def _one_by_one(header: ArrayHeader, start: int, where: str) -> Rows:
    if not header.shape:
        raise GraphError(f"{where}: it is a scalar, which has no rows")
    if header.fortran_order and len(header.shape) > 1:
        raise GraphError(f"{where}: it is stored column by column (Fortran order); save numpy.ascontiguousarray of it, or read it whole")
    return Rows(start + header.data_offset, header)


def read_rows(path: str, member: str, wanted: NDArray[np.int64] | range, out: NDArray[Any]) -> None:
    """Read rows number `wanted` of an array in a file into `out`: its own spec, but for the number of rows. A range is read in one go.

    Numbers of rows that are none become the nearest, as those of `data.batch_rows` do.
    """
    where, what = (f"{path}: member {member!r}", "an npz file") if member else (path, "an npy file")
    with reading(path, what):
        about = os.stat(path)
        marks = (path, member, about.st_size, about.st_mtime_ns)
        rows = _stored_rows(*marks)
        header = rows.header
        is_short = isinstance(wanted, range) and wanted.stop > header.shape[0]
        if header.dtype.newbyteorder("=") != out.dtype or header.shape[1:] != out.shape[1:] or is_short or not header.shape[0]:
            raise FileError(f"{where}: it holds {header.spec!r} now, which is not what was planned for; plan again")
        if not out.nbytes:
            return
        direct = header.dtype == out.dtype and out.flags.c_contiguous
        target = out if direct else np.empty(out.shape, header.dtype)
        if isinstance(wanted, range):
            with open(path, "rb", buffering=0) as stream:
                stream.seek(rows.offset + wanted.start * rows.row_nbytes)
                _read_exactly(stream, target, where)
        else:
            mapped = _mapped_rows(*marks)
            mapped.take(wanted, 0, target.reshape(-1).view(mapped.dtype), "clip")
        if not direct:
            out[...] = target


@lru_cache(maxsize=8)
def _mapped_rows(path: str, member: str, nbytes: int, changed_ns: int) -> NDArray[np.void]:
    """The rows of an array in a file, mapped, each a lump of bytes (which need not be aligned). Mapped for as long as the file is asked for and the

    same. A row at a time by seeking would give the interpreter's lock away as often, and wait for it: 128 rows of 3 KB took 1,070 us, and take 150.
    """
    rows = _stored_rows(path, member, nbytes, changed_ns)
    first = rows.offset - rows.offset % mmap.ALLOCATIONGRANULARITY
    with open(path, "rb") as stream:
        mapped = mmap.mmap(stream.fileno(), rows.offset - first + rows.header.nbytes, access=mmap.ACCESS_READ, offset=first)
    return np.frombuffer(mapped, np.dtype((np.void, rows.row_nbytes)), rows.header.shape[0], rows.offset - first)


@contextmanager
def _open_zip(path: str) -> Iterator[zipfile.ZipFile]:
    with open(path, "rb") as stream:
        if stream.read(2) != b"PK":  # zipfile would also take a zip appended to something else
            raise FileError(f"{path}: not an npz file (a zip of arrays, as numpy.savez writes it)")
        with zipfile.ZipFile(stream) as archive:
            yield archive


@contextmanager
def _open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, archive_nbytes: int, where: str) -> Iterator[IO[bytes]]:
    if info.flag_bits & 1:
        raise FileError(f"{where}: it is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise FileError(f"{where}: compression method {info.compress_type} is not read, only stored and deflated")
    possible = info.compress_size * (1 if info.compress_type == zipfile.ZIP_STORED else MAX_DEFLATE_RATIO)
    if info.compress_size > archive_nbytes or info.file_size > possible:
        raise FileError(f"{where}: it claims {info.file_size} bytes, more than {info.compress_size} packed bytes can hold: damaged")
    with reading(where, "an npy array"), archive.open(info) as stream:
        yield stream


def _fill(stream: IO[bytes], header: ArrayHeader, out: NDArray[Any], where: str) -> None:
    """Read the data after `header` into `out`, without a second copy where bytes can stay as they are."""
    if header.spec != Spec(out.shape, out.dtype):
        raise FileError(f"{where}: it holds {header.spec!r}, but was {Spec(out.shape, out.dtype)!r} when the run was planned; plan again")
    direct = not header.fortran_order and header.dtype == out.dtype and out.flags.c_contiguous
    target = out if direct else np.empty(header.shape[::-1] if header.fortran_order else header.shape, header.dtype)
    _read_exactly(stream, target, where)
    if stream.read(1):  # also makes zipfile compare the checksum, which it does only at the end
        raise FileError(f"{where}: there are bytes after the data: damaged")
    if not direct:
        out[...] = target.T if header.fortran_order else target


def _read_exactly(stream: IO[bytes], target: NDArray[Any], where: str) -> None:
    if target.nbytes == 0:
        return
    view = memoryview(target.reshape(-1).view(np.uint8).data)
    done = 0
    while done < len(view):
        n = stream.readinto(view[done : done + CHUNK_NBYTES])  # type: ignore[attr-defined]
        if not n:
            raise FileError(f"{where}: it ends after {done} of {len(view)} bytes: truncated")
        done += n


# safetensors ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tensors:
    """What a safetensors header says: specs and byte ranges by name, in the file's order, and the metadata (texts)."""

    specs: Mapping[str, Spec]
    starts: Mapping[str, int]
    metadata: Mapping[str, str]


def safetensors_header(path: str) -> Tensors:
    """Specs of every tensor in a safetensors file; reads the header only. Every byte of the data must belong to exactly one tensor."""
    with reading(path, "a safetensors file"), open(path, "rb") as stream:
        total = os.fstat(stream.fileno()).st_size
        length = int.from_bytes(stream.read(8), "little")
        if total < 8 or length > total - 8 or length > MAX_SAFETENSORS_HEADER:
            raise FileError(f"{path}: not a safetensors file, or truncated: its header claims {length} bytes of {total}")
        try:
            fields = json.loads(stream.read(length).decode("utf-8"), object_pairs_hook=_no_duplicates)
        except RecursionError as error:
            raise FileError(f"{path}: its safetensors header is nested too deeply") from error
    if not isinstance(fields, dict):
        raise FileError(f"{path}: its safetensors header is not a mapping")
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FileError(f"{path}: the metadata of its safetensors header are not texts")
    specs: dict[str, Spec] = {}
    starts: dict[str, int] = {}
    base, end = 8 + length, 0
    for name, entry in sorted(fields.items(), key=_first_byte):
        spec, (begin, finish) = _tensor(entry, f"{path}: tensor {name!r}")
        if begin != end or finish - begin != spec.nbytes:
            raise FileError(f"{path}: tensor {name!r} of {spec!r} lies at bytes {begin} to {finish}; expected {end} to {end + spec.nbytes}: damaged")
        specs[name], starts[name], end = spec, base + begin, finish
    if base + end != total:
        raise FileError(f"{path}: its tensors need {end} bytes, the file holds {total - base}: truncated or damaged")
    return Tensors(specs, starts, metadata)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _first_byte(item: tuple[str, Any]) -> tuple[int, int, str]:
    """Sort key of a header's entry; what is malformed goes first, and is refused by `_tensor`. Empty tensors come before their neighbour."""
    offsets = item[1].get("data_offsets") if isinstance(item[1], dict) else None
    if not isinstance(offsets, list) or not all(type(n) is int for n in offsets):
        return (-1, -1, item[0])
    return (*(offsets + [0, 0])[:2], item[0])


def _tensor(entry: Any, where: str) -> tuple[Spec, tuple[int, int]]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FileError(f"{where}: its entry needs dtype, shape and data_offsets, got {str(entry)[:80]}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SAFETENSORS_DTYPES:
        raise FileError(f"{where}: dtype {dtype!r} is not read; known: {', '.join(SAFETENSORS_DTYPES)}")
    if not isinstance(shape, list) or len(shape) > 32 or any(type(n) is not int or not 0 <= n < 1 << 62 for n in shape):
        raise FileError(f"{where}: its shape {str(shape)[:80]} is not a list of whole numbers")
    if not isinstance(offsets, list) or len(offsets) != 2 or any(type(n) is not int for n in offsets):
        raise FileError(f"{where}: its data_offsets {str(offsets)[:80]} are not two whole numbers")
    return Spec(shape, SAFETENSORS_DTYPES[dtype]), (offsets[0], offsets[1])


def read_tensors(path: str, names: Sequence[str], outs: Sequence[NDArray[Any]]) -> None:
    """Read tensors `names` into `outs`, which must be what `safetensors_header` said."""
    header = safetensors_header(path)
    with reading(path, "a safetensors file"), open(path, "rb") as stream:
        for name, out in zip(names, outs, strict=True):
            where = f"{path}: tensor {name!r}"
            if header.specs.get(name) != Spec(out.shape, out.dtype):
                now = header.specs.get(name, "gone")
                raise FileError(f"{where}: it is {now!r}, but was {Spec(out.shape, out.dtype)!r} when the run was planned; plan again")
            stream.seek(header.starts[name])
            _read_exactly(stream, out, where)


def write_safetensors(path: str, arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> int:
    """Write named arrays (float, integer or boolean NumPy arrays) and texts; returns the bytes written. Equal input gives equal bytes."""
    ready = {name: np.ascontiguousarray(array, dtype=np.dtype(array.dtype).newbyteorder("<")) for name, array in arrays.items()}
    unknown = [f"{name!r} ({array.dtype})" for name, array in ready.items() if array.dtype not in SAFETENSORS_NAMES]
    if unknown:
        raise GraphError(f"{path}: safetensors has no such dtype: {', '.join(unknown)}; known: {', '.join(str(d) for d in SAFETENSORS_NAMES)}")
    # Widest items first, so that every tensor starts at a multiple of its item's size, as readers that map the file expect.
    order = sorted(ready, key=lambda name: (-ready[name].dtype.itemsize, name))
    fields: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in order:
        array = np.asarray(arrays[name])
        fields[name] = {"dtype": SAFETENSORS_NAMES[ready[name].dtype], "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    header = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    with publishing(path) as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        for name in order:
            stream.write(ready[name].tobytes())
    return 8 + len(header) + end
