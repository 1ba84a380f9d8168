"""hetsched: a scheduler and runtime for heterogeneous task graphs.

Names are loaded when they are first used (PEP 562), so that `import hetsched` costs next to nothing and brings no optional library.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from types import ModuleType

TYPE_CHECKING = False  # `typing` takes half as long as all of this; Ctrl-C before the command has begun is a traceback
if TYPE_CHECKING:
    from typing import Any

    from hetsched.check import check
    from hetsched.checkpoints.asked import Checkpoint
    from hetsched.errors import DeviceGoneError, GraphError, HetschedError, OutOfMemoryError, PlacementError, PlanError, TaskError
    from hetsched.executors.pinned import pinned_empty
    from hetsched.executors.result import Result
    from hetsched.graph.array_op import array_op
    from hetsched.graph.function import op
    from hetsched.graph.gradient import gradient
    from hetsched.graph.graph import Builder, Bundle, Graph, If, Loop, Value, Where
    from hetsched.graph.kernel import KernelError, kernel
    from hetsched.graph.op import Attribute, Composite, Op, Work
    from hetsched.graph.spec import Opaque, Sequence, Spec, UpTo
    from hetsched.locked import write_plan
    from hetsched.machine.machine import Machine
    from hetsched.pipeline.build import Pipeline, load, publish
    from hetsched.run import plan, read_plan, run, run_async
    from hetsched.session import Compiled, Session
    from hetsched.timeline import Timeline

__version__ = "0.1.0"

if "numpy" not in sys.modules:
    # After a product on several threads those of OpenBLAS look for more work in a busy loop, by default for 26 ms, in which the core that they are on
    # is not free for other tasks: these take twice as long. It is asked for when NumPy loads OpenBLAS, as 2 ** 16 cycles here (25 us).
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "16")

_HOME = {
    "Attribute": "hetsched.graph.op",
    "Builder": "hetsched.graph.graph",
    "Bundle": "hetsched.graph.graph",
    "Checkpoint": "hetsched.checkpoints.asked",
    "Compiled": "hetsched.session",
    "Composite": "hetsched.graph.op",
    "Graph": "hetsched.graph.graph",
    "DeviceGoneError": "hetsched.errors",
    "HetschedError": "hetsched.errors",
    "TaskError": "hetsched.errors",
    "PlanError": "hetsched.errors",
    "PlacementError": "hetsched.errors",
    "OutOfMemoryError": "hetsched.errors",
    "GraphError": "hetsched.errors",
    "If": "hetsched.graph.graph",
    "Loop": "hetsched.graph.graph",
    "Machine": "hetsched.machine.machine",
    "Op": "hetsched.graph.op",
    "Pipeline": "hetsched.pipeline.build",
    "Opaque": "hetsched.graph.spec",
    "Result": "hetsched.executors.result",
    "Sequence": "hetsched.graph.spec",
    "Session": "hetsched.session",
    "Spec": "hetsched.graph.spec",
    "Timeline": "hetsched.timeline",
    "UpTo": "hetsched.graph.spec",
    "Value": "hetsched.graph.graph",
    "Where": "hetsched.graph.graph",
    "KernelError": "hetsched.graph.kernel",
    "kernel": "hetsched.graph.kernel",
    "array_op": "hetsched.graph.array_op",
    "Work": "hetsched.graph.op",
    "check": "hetsched.check",
    "gradient": "hetsched.graph.gradient",
    "load": "hetsched.pipeline.build",
    "op": "hetsched.graph.function",
    "pinned_empty": "hetsched.executors.pinned",
    "plan": "hetsched.run",
    "publish": "hetsched.pipeline.build",
    "read_plan": "hetsched.run",
    "run": "hetsched.run",
    "run_async": "hetsched.run",
    "write_plan": "hetsched.locked",
}


class _Package(ModuleType):
    """`run` and `check` are functions of the package and also modules in it; importing such a module must not bind it over the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'hetsched' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    if name == "Machine":
        import_module("hetsched.executors.backends")  # finds devices for Machine.here()
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


__all__ = [
    "Attribute",
    "Builder",
    "Bundle",
    "Checkpoint",
    "Compiled",
    "Composite",
    "DeviceGoneError",
    "Graph",
    "GraphError",
    "HetschedError",
    "KernelError",
    "If",
    "Loop",
    "Machine",
    "Op",
    "Opaque",
    "OutOfMemoryError",
    "Pipeline",
    "PlacementError",
    "PlanError",
    "Result",
    "Sequence",
    "Session",
    "Spec",
    "TaskError",
    "Timeline",
    "UpTo",
    "Value",
    "Where",
    "Work",
    "__version__",
    "array_op",
    "check",
    "gradient",
    "kernel",
    "load",
    "op",
    "pinned_empty",
    "plan",
    "publish",
    "read_plan",
    "run",
    "run_async",
    "write_plan",
]
