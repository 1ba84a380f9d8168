"""OpenCL programs: built once for a device, kept in memory and, as binaries, on disk.

A binary's file name is the hash of everything that it depends on: source, options, device, driver and platform version. Its content begins with the
hash of that and of the rest, so a file that is damaged, cut short or that of another program is ignored and written anew, and never reaches the
driver. Files are written aside and renamed, so that processes which build the same program at the same time do not disturb each other.
"""

from __future__ import annotations

import hashlib
import re
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pyopencl as cl

from hetsched.folders import cache_folder, write_whole

OPTIONS = "-cl-mad-enable -w"
_MAGIC = b"hetsched opencl 2\n"

# What every source may use. No `#line` after it: NVIDIA's compiler counts the lines that are there, whatever that says, others do as it says.
PREAMBLE = """\
#ifdef cl_khr_fp64
#pragma OPENCL EXTENSION cl_khr_fp64 : enable
#endif
#define IN(T, x) __global const T *x##_base, const long x##_first
#define OUT(T, x) __global T *x##_base, const long x##_first
#define LET_IN(T, x) __global const T *x = x##_base + x##_first;
#define LET_OUT(T, x) __global T *x = x##_base + x##_first;
"""
PREAMBLE_LINES = PREAMBLE.count("\n")


class DeviceError(RuntimeError):
    """An OpenCL device refused or lost work: a program that does not build, a launch that it cannot take, a command that failed.

    complaints: of a compiler: (row, column, what), counted from 1; None for other errors.
    """

    complaints: list[tuple[int, int, str]] | None = None


def describe(device: Any) -> str:
    """All that a binary for `device` depends on beside its source."""
    platform = device.platform
    return "\n".join((platform.name, platform.version, device.name, device.version, device.driver_version))


class Programs:
    """The programs of one context with one device. `built` counts builds from source, `loaded` those from binaries on disk."""

    def __init__(self, context: Any, device: Any) -> None:
        self.context = context
        self.device = device
        self.built = 0
        self.loaded = 0
        self._programs: dict[str, Any] = {}
        self._spare: dict[tuple[str, str, tuple[Any, ...]], list[Any]] = {}
        self._lock = threading.Lock()

    def get(self, source: str) -> Any:
        """The built program of `source`; raises `DeviceError` with the compiler's first complaints and the lines they are about."""
        program = self._programs.get(source)
        if program is not None:
            return program
        with self._lock:
            program = self._programs.get(source)
            if program is None:
                program = self._programs[source] = self._load(source) or self._build(source)
            return program

    def clear(self) -> None:
        """Let go of all programs. Kernels of them that others hold keep theirs."""
        self._programs.clear()
        self._spare.clear()

    def take(self, source: str, function: str, types: tuple[Any, ...]) -> Any:
        """A kernel object for arguments of these types that was given back, or None. Making one takes PyOpenCL half a millisecond."""
        spare = self._spare.get((source, function, types))
        try:
            return spare.pop() if spare else None
        except IndexError:  # another thread was quicker
            return None

    def give(self, kernels: Mapping[tuple[str, str, tuple[Any, ...]], Any]) -> None:
        """Take kernel objects back that whoever drove a queue needs no more. (They hold no memory that they were given.)"""
        for key, kernel in kernels.items():
            if key[0] in self._programs:
                self._spare.setdefault(key, []).append(kernel)

    def kernel(self, source: str, function: str) -> Any:
        """A new kernel object; setting arguments is not thread-safe, so whoever drives a queue keeps its own."""
        program = self.get(source)
        try:
            return cl.Kernel(program, function)
        except cl.Error as error:
            count = program.get_info(cl.program_info.NUM_KERNELS)
            names = program.get_info(cl.program_info.KERNEL_NAMES).replace(";", ", ") if count else ""
            raise DeviceError(f"the OpenCL source has no kernel {function!r}; it has: {names or 'none'}") from error

    def path(self, source: str) -> Path:
        """The file of the binary of `source`."""
        return cache_folder() / "opencl" / f"{self._mark(source).hex()[:32]}.bin"

    def _mark(self, source: str) -> bytes:
        """The hash of what the binary of `source` depends on."""
        return hashlib.sha256("\n".join((describe(self.device), OPTIONS, PREAMBLE, source)).encode()).digest()

    def head(self, source: str, binary: bytes) -> bytes:
        """What the file of a binary begins with: only that of this source, as it was written, has it."""
        return _MAGIC + hashlib.sha256(self._mark(source) + binary).digest()

    def _load(self, source: str) -> Any:
        try:
            content = self.path(source).read_bytes()
        except OSError:
            return None
        length = len(_MAGIC) + 32
        binary = content[length:]
        if content[:length] != self.head(source, binary):
            return None
        try:
            program = cl._cl._Program(self.context, [self.device], [binary])
            _compile(program, self.device)
            count = program.get_info(cl.program_info.NUM_KERNELS)  # not their names: of none, NVIDIA's driver ends the process
        except cl.Error:
            return None  # a driver may refuse what an equally named one has written
        if not count:  # or take it, and find nothing in it
            return None
        self.loaded += 1
        return program

    def _build(self, source: str) -> Any:
        # Not `cl.Program.build`: it has a cache of its own, and warns of every compiler remark.
        program = cl._cl._Program(self.context, PREAMBLE + source)
        try:
            _compile(program, self.device)
        except cl.Error as error:
            try:
                log = str(program.get_build_info(self.device, cl.program_build_info.LOG))
            except cl.Error:
                log = str(error)
            refused = DeviceError(f"OpenCL source does not build on {self.device.name.strip()}\n{complaints(log, source, PREAMBLE_LINES)}")
            refused.complaints = found_in(log, PREAMBLE_LINES)
            raise refused from error
        self.built += 1
        try:
            count = program.get_info(cl.program_info.NUM_KERNELS)
            binary = cast(list[bytes], program.get_info(cl.program_info.BINARIES))[0]
        except cl.Error:
            return program  # a driver need not give binaries
        if binary and count:
            write_whole(self.path(source), self.head(source, binary) + binary)
        return program


_compiling = threading.Lock()


def _compile(program: Any, device: Any) -> None:
    # PyOpenCL warns of every log that is not empty, and some compilers greet.
    with _compiling, warnings.catch_warnings():
        warnings.simplefilter("ignore", cl.CompilerWarning)
        program.build(OPTIONS.encode(), [device])


# `file:2:1: error: what`, and PoCL's `error: file:2:1: what`.
_COMPLAINT = re.compile(r"^(?:error: \S*?:(\d+):(\d+):|\S*?:(\d+):(\d+): (?:fatal )?error:) (.*)$", re.MULTILINE)
_SHOWN = 5


def found_in(log: str, before: int = 0) -> list[tuple[int, int, str]]:
    """(row, column, what) of the errors in a build log, counted from 1 in the source; `before` lines stood in front of it."""
    return [(int(a or c) - before, int(b or d), what) for a, b, c, d, what in _COMPLAINT.findall(log)]


def complaints(log: str, source: str, before: int = 0) -> str:
    """A build log for people: the first errors, each with the line of `source` it is about; the log's end where it names no line.

    before: lines that the compiler saw in front of the source.

    >>> print(complaints("k.cl:2:1: error: unknown type name 'floot'", "// sum\\nfloot x;"))
    line 2, column 1: unknown type name 'floot'
        floot x;
        ^
    """
    lines = source.split("\n")
    found = [(row, column, what) for row, column, what in found_in(log, before) if 0 < row <= len(lines)]
    if not found:
        return "\n".join(log.strip().split("\n")[-20:])
    out = []
    for row, column, what in found[:_SHOWN]:
        out += [f"line {row}, column {column}: {what}", f"    {lines[row - 1]}", " " * (column + 3) + "^"]
    if len(found) > _SHOWN:
        out.append(f"and {len(found) - _SHOWN} more")
    return "\n".join(out)
