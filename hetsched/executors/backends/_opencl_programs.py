"""OpenCL programs: built once for a device, kept in memory and, as binaries, on disk.

A binary's file name is the hash of everything that it depends on: source, options, device, driver and platform version. Its content begins with the
hash of the rest, so a file that is damaged or cut short is ignored and written anew. Files are written aside and renamed, so that processes which
build the same program at the same time do not disturb each other.
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
_MAGIC = b"hetsched opencl 1\n"

# What every source may use. `#line` makes the compiler count lines from the first of the kernel's own source.
PREAMBLE = """\
#ifdef cl_khr_fp64
#pragma OPENCL EXTENSION cl_khr_fp64 : enable
#endif
#define IN(T, x) __global const T *x##_base, const long x##_first
#define OUT(T, x) __global T *x##_base, const long x##_first
#define LET_IN(T, x) __global const T *x = x##_base + x##_first;
#define LET_OUT(T, x) __global T *x = x##_base + x##_first;
#line 1
"""


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
            names = program.get_info(cl.program_info.KERNEL_NAMES).replace(";", ", ")
            raise DeviceError(f"the OpenCL source has no kernel {function!r}; it has: {names or 'none'}") from error

    def path(self, source: str) -> Path:
        """The file of the binary of `source`."""
        mark = "\n".join((describe(self.device), OPTIONS, PREAMBLE, source))
        return cache_folder() / "opencl" / f"{hashlib.sha256(mark.encode()).hexdigest()[:32]}.bin"

    def _load(self, source: str) -> Any:
        try:
            content = self.path(source).read_bytes()
        except OSError:
            return None
        head = len(_MAGIC) + 32
        binary = content[head:]
        if content[:head] != _MAGIC + hashlib.sha256(binary).digest():
            return None
        try:
            program = cl._cl._Program(self.context, [self.device], [binary])
            _compile(program, self.device)
            names = program.get_info(cl.program_info.KERNEL_NAMES)
        except cl.Error:
            return None  # a driver may refuse what an equally named one has written
        if not names:  # or take it, and find nothing in it
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
            refused = DeviceError(f"OpenCL source does not build on {self.device.name.strip()}\n{complaints(log, source)}")
            refused.complaints = [(int(a or c), int(b or d), what) for a, b, c, d, what in _COMPLAINT.findall(log)]
            raise refused from error
        self.built += 1
        try:
            binary = cast(list[bytes], program.get_info(cl.program_info.BINARIES))[0]
        except cl.Error:
            return program  # a driver need not give binaries
        if binary:
            write_whole(self.path(source), _MAGIC + hashlib.sha256(binary).digest() + binary)
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


def complaints(log: str, source: str) -> str:
    """A build log for people: the first errors, each with the line of `source` it is about; the log's end where it names no line.

    >>> print(complaints("k.cl:2:1: error: unknown type name 'floot'", "// sum\\nfloot x;"))
    line 2, column 1: unknown type name 'floot'
        floot x;
        ^
    """
    lines = source.split("\n")
    found = [(int(a or c), int(b or d), what) for a, b, c, d, what in _COMPLAINT.findall(log) if 0 < int(a or c) <= len(lines)]
    if not found:
        return "\n".join(log.strip().split("\n")[-20:])
    out = []
    for row, column, what in found[:_SHOWN]:
        out += [f"line {row}, column {column}: {what}", f"    {lines[row - 1]}", " " * (column + 3) + "^"]
    if len(found) > _SHOWN:
        out.append(f"and {len(found) - _SHOWN} more")
    return "\n".join(out)
