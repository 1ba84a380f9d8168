"""`search.walk` compiled by numba, where numba is there (`pip install "hetsched[fast]"`). Loaded only when a search is long enough to pay for it."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from hetsched.folders import cache_folder
from hetsched.placement.search import walk as search_walk

Kernels: TypeAlias = ModuleType

_COMPILED = ("shift", "drag", "trace", "look_back", "evaluate", "walk")


@cache
def kernels() -> Kernels | None:
    """The functions of `search.walk` for arrays, to be compiled when first called; None without numba.

    Machine code is kept in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache), so that only the first search ever compiles (about 5 s); after
    that loading takes about 0.6 s, numba's import included.
    """
    try:
        numba: Any = import_module("numba")
    except ImportError:
        return None
    # A second copy of the module, so that the plain functions stay what they are; known by its name, by which numba's cache finds it again.
    name = f"{search_walk.__name__}_compiled"
    spec = importlib.util.spec_from_file_location(name, search_walk.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(_folder())
    try:
        for function in _COMPILED:
            setattr(module, function, _compile(numba, getattr(module, function)))
    finally:
        numba.config.CACHE_DIR = before
    return module


def _compile(numba: Any, function: Any) -> Any:
    try:
        return numba.njit(cache=True)(function)
    except RuntimeError:  # the folder cannot be written
        return numba.njit(function)


def _folder() -> Path:
    return cache_folder() / "numba"
