"""plan() and run(): the API to embed. The one place where placement and executors meet; the plan is all that passes between them."""

from __future__ import annotations

import functools
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np

import hetsched.executors.backends  # noqa: F401 (makes Machine.here() work)
from hetsched import locked
from hetsched.checkpoints.asked import Checkpoint
from hetsched.costing import costs_for, learn_from_run
from hetsched.errors import CommandLineError, GraphError, did_you_mean
from hetsched.executors.epochs import Replanner
from hetsched.executors.kept import let_go
from hetsched.executors.result import Result
from hetsched.graph.graph import Graph
from hetsched.graph.spec import AnySpec, Spec, UpTo, spec_of
from hetsched.graph.spec import Sequence as SequenceSpec
from hetsched.machine import Machine
from hetsched.placement import plan_graph
from hetsched.placement.costs import CostModel
from hetsched.placement.costs.objective import ObjectiveLike
from hetsched.placement.draft import Policy
from hetsched.timeline import Timeline

EXECUTORS = ("auto", "cpu", "simulated")


def plan(
    graph: Graph,
    machine: Machine | None = None,
    policy: str | Policy = "auto",
    objective: ObjectiveLike = "time",
    *,
    plan_seconds: float = 0.0,
    only: str | None = None,
    memory: Mapping[str, int] | int | None = None,
    costs: CostModel | None = None,
    learn: bool = True,
    measure: bool = False,
) -> Timeline:
    """Where and when every task runs: the predicted timeline. Touches no device and runs no kernel, unless it is told to measure.

    machine: the one found here, where None. policy: the name of a file in `placement/policies`, or `auto`; or a function of a draft.
    objective: `time`, `latency`, `energy` or `price`; weights (`{"time": 0.5, "energy": 0.5}`, shares of what the plan for time costs); with a
    deadline on the makespan `{"minimize": "energy", "deadline": "2 min"}` (or seconds); or as `--objective` has it, `"energy,deadline=2min"`.
    plan_seconds: time to search for a better plan.
    only: a device pattern (`cpu`, `gpu`, `cuda:0`) for every task that has a kernel on a matching device.
    memory: bytes that may be used at most: of the host (a number), or by memory node, device or pattern of devices (`{"gpu": 2 << 30}`); what does
    not fit at once is evicted in a planned order. costs: the cost model; where None what is known of `machine`: learned from runs,
    calibrated, else its roofline. learn: False leaves out what runs have taught, so that the plan does not depend on them.
    measure: kinds of tasks that nothing is known of are measured on the devices first, in less than two seconds in all.
    Raises `PlacementError` (no device fits a task, no plan keeps the deadline, the machine states no watts or prices that the objective is about),
    `OutOfMemoryError` (no plan fits the memory), `CommandLineError` (an objective or a policy that is not known).
    """
    if not isinstance(graph, Graph):
        raise CommandLineError(f"plan() takes a graph, got {_instead(graph)}")
    if machine is None:
        machine = Machine.here(*graph.patterns(), *([] if only is None else [only]))
    elif not isinstance(machine, Machine):
        raise CommandLineError(f"plan() takes a Machine, got {machine!r}; Machine.here() finds one, machine.described reads one")
    if not isinstance(plan_seconds, Real):
        raise CommandLineError(f"plan_seconds is a number of seconds, got {plan_seconds!r}")
    if costs is None:
        costs = costs_for(machine, graph, learn=learn, measure=measure, only=only)
    return plan_graph(graph, machine, costs=costs, policy=policy, objective=objective, plan_seconds=plan_seconds, only=only, memory=memory)


def run(
    what: Timeline | Graph,
    inputs: Mapping[str, Any] | None = None,
    *,
    machine: Machine | None = None,
    policy: str | Policy = "auto",
    objective: ObjectiveLike = "time",
    plan_seconds: float = 0.0,
    only: str | None = None,
    memory: Mapping[str, int] | int | None = None,
    executor: str = "auto",
    trace: bool = True,
    timeout: float | None = None,
    keep_going: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
    learn: bool = True,
    energy: bool = False,
    replan: bool | Replanner = False,
    costs: CostModel | None = None,
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
) -> Result:
    """Run a plan, or plan a graph and run it. Inputs are borrowed, read-only; the results belong to the caller.

    inputs: by name; NumPy arrays, lists and numbers, or anything with DLPack, of the declared shape and dtype; objects for opaque inputs.
    executor: `auto` (threads, and the devices that the plan names), `cpu` (threads alone), or `simulated` (virtual clock, any machine, values by
    NumPy). trace: False records nothing.
    timeout: seconds; checked between steps, `RunTimeoutError`. keep_going: a task that fails stops only what needs it (see `Result.failed`).
    progress: called with (launches and copies done, how many there are in all, the task, or `copy of` a value), by one of
    the threads of the run at a time; it never goes back.
    learn: the costs learn from the trace when the run is over (of a plan run again and again, in 1 % of the time at most); False, or
    `HETSCHED_LEARN=0` in the environment: nothing is learned, and a graph is planned without what runs have taught.
    energy: measure what the run draws, where the machine has meters for it (`Result.energy`); costs some 0.1 ms.
    replan: where durations leave the plan and another one pays, the rest of the run is planned anew, with durations as measured, and goes on
    with that plan (`hetsched.replanning`; `Result.plans` has them all, `Result.trace.notes` says why). Loops are taken up at the end of a turn.
    Not with `keep_going`. A replanner of your own: see `hetsched.executors.epochs.Replanner`. costs: the cost model to plan with, here and anew;
    see `plan`.
    checkpoint: a folder where the state of long loops is kept every 30 s, or a `hetsched.Checkpoint`. A run that finds one there goes on from it, by
    the plan that it began with, and ends with the values of a run in one; what has changed since is refused (`hetsched.checkpoints`).
    Raises `TaskError` where a kernel fails; `GraphError` for inputs that do not fit, all of them at once.
    """
    if executor not in EXECUTORS:
        raise CommandLineError(f"unknown executor {executor!r}{did_you_mean(executor, EXECUTORS)}")
    is_for_once = isinstance(what, Graph)
    if isinstance(what, Graph):
        given = check_inputs(what, {} if inputs is None else inputs)
        what = plan(
            what, machine, policy, objective, plan_seconds=plan_seconds, only=only, memory=memory, costs=costs, learn=learn, measure=learn
        )  # fmt: skip
    elif isinstance(what, Timeline):
        if what.measured:
            raise CommandLineError("this timeline is a trace of what has run; run a plan (hetsched.plan) or a graph")
        given = check_inputs(what.graph, {} if inputs is None else inputs)
    else:
        raise CommandLineError(f"run() takes a plan or a graph, got {_instead(what)}")
    timeout = checked_timeout(timeout)
    if checkpoint is not None and (keep_going or replan):
        raise CommandLineError(f"a run with checkpoints cannot {'keep going' if keep_going else 'be replanned'}; leave one out")
    replanner = None if keep_going or not replan else _replanner(what, replan, only, memory, costs)
    if executor == "simulated" and checkpoint is None:
        from hetsched.executors import simulated

        return simulated.run_plan(what, given, replanner=replanner)
    run_plan = _run_plan_of(what, executor, replanner) if checkpoint is None else _in_pieces(checkpoint, executor, costs)
    how: dict[str, Any] = {"trace": trace, "keep_going": keep_going, "timeout": timeout, "progress": progress, "replanner": replanner}
    taught = _lessons.setdefault(what, _Lessons()) if learn and trace else None
    if energy or (taught is not None and taught.is_due):
        result = _measured(run_plan, what, given, energy, **how)
    else:
        result = run_plan(what, given, **how)
    if is_for_once:
        let_go(what)
    if taught is not None:
        taught.run(result)
    return result


def _run_plan_of(plan: Timeline, executor: str, replanner: Replanner | None = None) -> Callable[..., Result]:
    from hetsched.executors import cpu, live

    return live.run_plan if executor == "auto" and (live.drives(plan) or replanner is not None) else cpu.run_plan


def _in_pieces(checkpoint: Checkpoint | str | os.PathLike[str], executor: str, costs: CostModel | None) -> Callable[..., Result]:
    """What runs a plan with checkpoints, called as what runs one without is."""
    from hetsched.checkpoints.running import run_with_checkpoints

    asked = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)

    def run_plan(plan: Timeline, inputs: Mapping[int, Any], **how: Any) -> Result:
        def run_one(part: Timeline, given: Mapping[str, Any], timeout: float | None, progress: Any) -> Result:
            checked = check_inputs(part.graph, given)
            if executor == "simulated":
                from hetsched.executors import simulated

                return simulated.run_plan(part, checked)
            return _run_plan_of(part, executor)(part, checked, **{**how, "timeout": timeout, "progress": progress})

        named = {name: inputs[v] for name, v in plan.graph.inputs.items()}
        return run_with_checkpoints(plan, named, asked, run_one, costs, how["timeout"], how["progress"])

    return run_plan


def _instead(what: object) -> str:
    """What was given instead of a graph, and the way to one."""
    kind = type(what).__name__
    if isinstance(what, (str, os.PathLike)):
        return f"{kind} {os.fspath(what)!r}; hetsched.load(FILE).graph is that of a pipeline, and hetsched.read_plan(FILE, graph) reads a plan"
    if isinstance(getattr(what, "graph", None), Graph):
        return f"{kind}; give its .graph"
    return f"{kind}; finish a builder with freeze()"


def checked_timeout(timeout: float | None) -> float | None:
    """A limit in seconds as runs take it: None where it is longer than any wait can be. `CommandLineError` for what is no duration."""
    if timeout is None:
        return None
    if not isinstance(timeout, Real) or not timeout > 0:
        raise CommandLineError(f"timeout must be more than 0 seconds (None: no limit), got {timeout!r}")
    return timeout if timeout < threading.TIMEOUT_MAX / 2 else None


def _measured(run_plan: Callable[..., Result], plan: Timeline, inputs: Mapping[int, Any], energy: bool, **how: Any) -> Result:
    """A run, whether others had the cores meanwhile, and what meters counted during it."""
    from hetsched.executors.crowding import Crowding

    if not energy:
        with Crowding() as crowding:
            result = run_plan(plan, inputs, **how)
        return result.in_a_crowd(crowding.share)
    from hetsched.executors.energy import watched

    with watched(plan.machine) as watch, Crowding() as crowding:
        result = run_plan(plan, inputs, **how)
    return replace(result, energy=watch.measured).in_a_crowd(crowding.share)


class _Lessons:
    """When a plan that is run again and again teaches: at its first run, and then whenever its runs have taken a hundred times what learning took."""

    def __init__(self) -> None:
        self.took = 0.0
        self.ran = 0.0

    @property
    def is_due(self) -> bool:
        """True if the next run teaches."""
        return self.ran >= 100 * self.took

    def run(self, result: Result) -> None:
        """One more run is over."""
        is_due = self.is_due
        self.ran += result.wall_seconds
        if is_due:
            begun = time.perf_counter()
            learn_from_run(result)
            self.took, self.ran = time.perf_counter() - begun, 0.0


_lessons: weakref.WeakKeyDictionary[Timeline, _Lessons] = weakref.WeakKeyDictionary()


def _replanner(
    plan: Timeline, replan: bool | Replanner, only: str | None, memory: Mapping[str, int] | int | None, costs: CostModel | None
) -> Replanner | None:
    if not isinstance(replan, bool):
        return replan
    if not plan.loops and len(plan.machine.devices) == 1 and plan.machine.devices[0].shares_lanes:
        return None  # threads of one device share what there is as it comes: no plan does better
    from hetsched.replanning import replanning_of

    known = costs if costs is not None else costs_for(plan.machine, plan.graph)
    return replanning_of(plan, plan.machine, only=only, memory=memory, costs=known)


def read_plan(path: str | os.PathLike[str], graph: Graph, machine: Machine | None = None) -> Timeline:
    """The plan that `write_plan` wrote to a file, for `graph` on `machine` (the one found here, where None): checked, ready for `run`.

    Raises `FileError` for a file that is no plan, was changed, or breaks a rule; `GraphError` or `PlacementError` where it was made for another graph
    or machine, with what differs; `OutOfMemoryError` where the machine's memory is too small for it now.
    """
    return locked.read_plan(path, graph, machine)


async def run_async(what: Timeline | Graph, inputs: Mapping[str, Any] | None = None, **options: Any) -> Result:
    """`run`, awaited: the run goes on in a thread while the event loop serves others. Options are those of `run`."""
    import asyncio  # who awaits has it; it takes 20 ms to load

    return await asyncio.get_running_loop().run_in_executor(None, functools.partial(run, what, inputs, **options))


def check_inputs(graph: Graph, inputs: Mapping[str, Any]) -> dict[int, Any]:
    """Value id -> read-only array (or object) for every input of `graph`; raises `GraphError` with every misfit."""
    if not isinstance(inputs, Mapping):
        example = ", ".join(f"{name!r}: ..." for name in list(graph.inputs)[:3])
        raise GraphError(f"inputs are given by name, {{{example or ''}}}, not as {type(inputs).__name__}")
    problems = [f"input {name!r} is missing; it wants {graph.spec(v)!r}" for name, v in graph.inputs.items() if name not in inputs]
    problems += [f"the graph has no input {name!r}{did_you_mean(name, graph.inputs)}" for name in inputs if name not in graph.inputs]
    out: dict[int, Any] = {}
    for name, value in graph.inputs.items():
        if name in inputs:
            found, problem = _borrow(inputs[name], graph.spec(value))
            if problem is not None:
                problems.append(f"input {name!r} {problem}")
            out[value] = found
    if problems:
        raise GraphError(problems)
    return out


def _borrow(given: Any, spec: AnySpec) -> tuple[Any, str | None]:
    """A read-only view of an input, or what is wrong with it."""
    if isinstance(spec, SequenceSpec):
        problem = _misfit(given, spec)
        if problem is not None or not isinstance(given, np.ndarray):
            return given, problem
    if not isinstance(spec, (Spec, SequenceSpec)):
        return given, None
    fits = type(given) is np.ndarray and isinstance(spec, Spec) and given.shape == spec.shape and given.dtype == spec.dtype
    if fits and given.flags.c_contiguous:  # most are
        view = given.view()
        view.setflags(write=False)
        return view, None
    try:
        array = _on_host(given, spec if isinstance(spec, Spec) else None)
    except (TypeError, ValueError, BufferError, RuntimeError) as error:
        return None, f"wants {spec!r}, got {type(given).__name__}, of which no array can be made: {error}"
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if isinstance(spec, Spec):
        seen = spec_of(array)
        fits = seen.ndim == spec.ndim and all(n <= d.n if isinstance(d, UpTo) else n == d for n, d in zip(array.shape, spec.shape, strict=True))
        if seen.dtype != spec.dtype and fits:
            return array, f"wants {spec!r}, got {seen!r}; convert it with .astype({spec.dtype.name!r})"
        if seen.dtype != spec.dtype or not fits:
            return array, f"wants {spec!r}, got {seen!r}"
    view = np.ascontiguousarray(array).reshape(array.shape).view()
    view.setflags(write=False)
    return view, None


def _misfit(given: Any, spec: SequenceSpec) -> str | None:
    """What is wrong with a sequence of elements: a list of them, or the array that holds them all."""
    wanted = f"wants {spec!r}"
    if not hasattr(given, "__len__"):
        return f"{wanted}, got {type(given).__name__}; give a list or an array"
    element, n = spec.element, len(given)
    if spec.rows is not None and isinstance(given, np.ndarray):
        whole = spec.array
        fits = given.ndim == whole.ndim and all(n <= d.n if isinstance(d, UpTo) else n == d for n, d in zip(given.shape, whole.shape, strict=True))
        return None if fits and given.dtype == whole.dtype else f"{wanted}, which is {whole!r} in all, got {spec_of(given)!r}"
    length = spec.length
    if n > length.n if isinstance(length, UpTo) else length is not None and n != length:
        return f"{wanted}, got {n} elements"
    if not isinstance(element, Spec) or spec.rows is not None:
        return None
    rows = [given[0]] if isinstance(given, np.ndarray) and n else given  # all rows of an array are alike
    for i, one in enumerate(rows):
        if isinstance(one, (np.ndarray, np.generic)) and not _is_of(one, element):
            return f"{wanted}, got {spec_of(one)!r} as element {i}"
    return None


def _is_of(array: Any, spec: Spec) -> bool:
    """True for an array (or a number of NumPy) of `spec`, whatever its order of bytes."""
    if array.ndim != spec.ndim or array.dtype.newbyteorder("=") != spec.dtype:
        return False
    return all(n <= d.n if isinstance(d, UpTo) else n == d for n, d in zip(array.shape, spec.shape, strict=True))


def _on_host(given: Any, spec: Spec | None) -> Any:
    if given is None:
        raise TypeError("None is no number")  # NumPy would make NaN of it
    if isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
        raise TypeError(f"{np.count_nonzero(given.mask)} of its elements are masked; give .filled(VALUE)")
    if isinstance(given, np.ndarray):
        return given
    if hasattr(given, "__cuda_array_interface__") and hasattr(given, "get"):
        return given.get()
    if hasattr(given, "__dlpack__") and not isinstance(given, np.generic):
        return np.from_dlpack(given)
    return np.asarray(given, dtype=spec.dtype if spec is not None else None)
