"""For those who add their own ops, policies and backends: proofs, random graphs and machines, plans that are wrong on purpose.

Names are loaded when first used, so that none costs what another needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hetsched.testing.backend import check_backend
    from hetsched.testing.faults import FAULTS, broken, rule_of
    from hetsched.testing.graphs import graphs, machines, random_graph, random_machine
    from hetsched.testing.loops import random_loops
    from hetsched.testing.ops import Case, check_op
    from hetsched.testing.plans import plain_plan
    from hetsched.testing.policy import check_policy
    from hetsched.testing.reference import interpret

_HOME = {
    "Case": "ops",
    "FAULTS": "faults",
    "broken": "faults",
    "check_backend": "backend",
    "check_op": "ops",
    "check_policy": "policy",
    "graphs": "graphs",
    "interpret": "reference",
    "machines": "graphs",
    "plain_plan": "plans",
    "random_graph": "graphs",
    "random_loops": "loops",
    "random_machine": "graphs",
    "rule_of": "faults",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


__all__ = [
    "FAULTS",
    "Case",
    "broken",
    "check_backend",
    "check_op",
    "check_policy",
    "graphs",
    "interpret",
    "machines",
    "plain_plan",
    "random_graph",
    "random_loops",
    "random_machine",
    "rule_of",
]
