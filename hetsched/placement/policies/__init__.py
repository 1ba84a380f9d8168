"""The policies, one file each: `heft.py` is `policy: heft`. A policy is a function of a draft, called `policy` in its file.

A file is loaded when its policy is named. Outsiders add theirs by entry points of the group `hetsched.policies`: name = function of a draft.
"""

from __future__ import annotations

import importlib
import pkgutil

from hetsched.errors import CommandLineError, did_you_mean
from hetsched.placement.draft import Policy

# What `auto` says of its choice, before the name of the policy.
TOOK = "auto took the plan of "


def names() -> list[str]:
    """Every policy by name: the files here, and those of entry points."""
    return sorted({*_files(), *_entries()})


def name_of(policy: Policy) -> str:
    """What a plan says of who wrote it: the function's name, or its file's where that is `policy`."""
    name = getattr(policy, "__name__", type(policy).__name__)
    return str(getattr(policy, "__module__", name)).rpartition(".")[2] if name == "policy" else name


def find(name: str | Policy) -> Policy:
    """The policy called `name` (or the function given); an error with the nearest name where there is none."""
    if callable(name):
        return name
    if not isinstance(name, str):
        raise CommandLineError(f"a policy is a name or a function of a draft, not {type(name).__name__}; known: {', '.join(names())}")
    if name in _files():
        policy: Policy = importlib.import_module(f"{__name__}.{name}").policy
        return policy
    if name in _entries():
        from importlib.metadata import entry_points

        outside: Policy = next(iter(entry_points(group="hetsched.policies", name=name))).load()
        return outside
    raise CommandLineError(f"unknown policy {name!r}{did_you_mean(name, names())}")


def _files() -> set[str]:
    return {info.name for info in pkgutil.iter_modules(__path__)}


def _entries() -> set[str]:
    from importlib.metadata import entry_points

    return {entry.name for entry in entry_points(group="hetsched.policies")}
