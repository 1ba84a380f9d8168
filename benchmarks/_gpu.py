"""What the benchmarks' branches for GPUs share: whether there is one, and why not; parts of which one may fail."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np


def missing() -> str | None:
    """Why nothing can be measured on CUDA here; None where there is a device that hetsched can use."""
    from hetsched.executors.backends import cuda

    found = cuda.find()
    return None if found.devices else "; ".join(found.notes) or "no CUDA device"


def device_name() -> str:
    """The first device, as CUDA calls it."""
    from hetsched.executors.backends import cuda

    return cuda.find().devices[0].name


def torch_on_cuda() -> str | None:
    """Why torch cannot be measured beside; None where it can."""
    try:
        import torch
    except ImportError:
        return "torch is not installed (pip install '.[bench]')"
    return None if torch.cuda.is_available() else "torch sees no CUDA device"


def torch_in_float32() -> Any:
    """torch, whose products and convolutions on CUDA are of float32 alone, as CuPy's are: no TF32."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return torch


def warm_up(seconds: float = 0.3) -> None:
    """Keep the first device busy so long: idle cards clock down."""
    import cupy

    a, b = cupy.ones((1024, 1024), np.float32), cupy.empty((1024, 1024), np.float32)
    stream, until = cupy.cuda.Stream(non_blocking=True), perf_counter() + seconds
    while perf_counter() < until:
        with stream:
            for _ in range(20):
                cupy.matmul(a, a, out=b)
        stream.synchronize()


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """The environment variable set within."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


class Parts:
    """Parts of a benchmark, each of which may fail: its error is printed, and the others go on. most_seconds: no part begins after so long."""

    def __init__(self, most_seconds: float) -> None:
        self.most_seconds, self.begun = most_seconds, perf_counter()
        self.rows: list[dict[str, Any]] = []
        self.errors: dict[str, str] = {}
        self.left_out: list[str] = []

    def __call__(self, name: str, part: Callable[[], Any]) -> None:
        """Run a part; what it gives, a row or a list of rows, is kept."""
        if perf_counter() - self.begun > self.most_seconds:
            self.left_out.append(name)
            return
        try:
            found = part()
        except (Exception, SystemExit) as error:
            self.errors[name] = f"{type(error).__name__}: {error}"
            print(f"{name}: FAILED: {self.errors[name]}\n{''.join(traceback.format_exc(limit=-4))}", flush=True)
        else:
            self.rows += found if isinstance(found, list) else [] if found is None else [found]

    def end(self, place: Path | None, **about: Any) -> int:
        """Write everything to `place`, and tell what failed; the exit status."""
        if place is not None:
            whole = {**about, "rows": self.rows, "errors": self.errors, "left_out": self.left_out}
            place.write_text(json.dumps(whole, indent=1) + "\n")
        if self.left_out:
            print(f"left out after {self.most_seconds:g} s: {', '.join(self.left_out)}")
        if self.errors:
            print(f"failed: {', '.join(self.errors)}", file=sys.stderr)
        return 1 if self.errors else 0
