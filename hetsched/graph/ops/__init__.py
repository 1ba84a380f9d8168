"""The ops, one file per family. The folder is the registry: every `Op` (and composite) a file of it defines at its top level is found by its name."""

from __future__ import annotations

import copyreg
import importlib
import pickle
import pkgutil
from dataclasses import fields
from functools import lru_cache
from typing import Any

from hetsched.errors import GraphError, did_you_mean
from hetsched.graph.function import of_module
from hetsched.graph.op import Composite, Op


@lru_cache(maxsize=1)
def registry() -> dict[str, Op | Composite]:
    """Every op by its name. Imports each family once; entry points `hetsched.ops` add outsiders' modules."""
    found: dict[str, Op | Composite] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        found.update((x.name, x) for x in vars(module).values() if isinstance(x, (Op, Composite)))
    from importlib.metadata import entry_points

    for entry in entry_points(group="hetsched.ops"):
        found.update((x.name, x) for x in vars(entry.load()).values() if isinstance(x, (Op, Composite)))
    return dict(sorted(found.items()))


def _reduced(op: Op) -> tuple[Any, ...]:
    """An op as it is pickled: one of the registry, or of a decorated function, by its name, a kernel by what declared it, another by its parts,
    which must be functions that pickle can name."""
    if registry().get(op.name) is op:
        return find, (op.name,)
    if op.again is not None:
        if op.again[0] is of_module and _at_home(*op.again[1]) is not op:
            where = ".".join(op.again[1])
            raise pickle.PicklingError(f"op {op.name} is not found as {where}; define its function at the top of a module, under its own name")
        return op.again
    parts = {f.name: getattr(op, f.name) for f in fields(op)}
    parts["kernels"] = {language: getattr(kernel, "__wrapped__", kernel) for language, kernel in op.kernels.items()}
    parts["attributes"] = dict(op.attributes)
    return Op, tuple(parts.values())


def _at_home(module: str, name: str) -> Op | None:
    try:
        return of_module(module, name)
    except (ImportError, AttributeError, GraphError):
        return None


copyreg.pickle(Op, _reduced)


def find(name: str) -> Op:
    """The op called `name`; an error with the nearest name where there is none."""
    op = registry().get(name)
    if op is None:
        raise GraphError(f"unknown op {name!r}{did_you_mean(name, registry())}")
    if isinstance(op, Composite):
        raise GraphError(f"{name!r} is a composite: call its `expand`, or use it in a pipeline")
    return op


def family(op: Op) -> str:
    """The family of an op: the name of the file that defines what it infers (`elementwise`, `linear`, `conv`, ...); "" for users' ops."""
    package, _, name = (getattr(op.infer, "__module__", None) or "").rpartition(".")
    return name if package == __name__ else ""
