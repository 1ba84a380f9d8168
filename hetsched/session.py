"""Session: devices, plans, buffers and threads kept between calls; a graph becomes a function to call again and again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np

from hetsched.errors import CommandLineError, GraphError
from hetsched.executors.forks import forgets
from hetsched.executors.interrupts import guarded
from hetsched.executors.replay import Replay
from hetsched.executors.result import Result
from hetsched.graph.graph import Graph
from hetsched.graph.spec import Spec
from hetsched.machine import Machine
from hetsched.placement.costs import CostModel
from hetsched.placement.costs.objective import ObjectiveLike
from hetsched.run import check_inputs, checked_timeout, plan
from hetsched.timeline import Timeline


class Compiled:
    """A plan as a function. Call it from any thread, or await `run_async`; made by `Session.compile`.

    It keeps `buffers` buffer sets: so many calls run at once, a further one waits. Results are the caller's own; inputs are borrowed, read-only,
    until the call returns. A call that fails raises what `hetsched.run` raises, and the next call is none the worse for it.
    """

    def __init__(self, plan: Timeline, buffers: int, trace: bool, timeout: float | None) -> None:
        self.plan = plan
        self.graph: Graph = plan.graph
        self.buffers = buffers
        self._replay = Replay(plan, buffers, trace, timeout)
        self._names = tuple(self.graph.inputs)
        # What an input must be for the short way in: (value, dtype, shape); others are checked and converted.
        self._plain = {
            name: (value, spec.dtype, spec.bounds)
            for name, value in self.graph.inputs.items()
            if isinstance(spec := self.graph.spec(value), Spec) and not spec.is_bounded
        }
        self._single = next(iter(self._plain.values())) if len(self._plain) == len(self._names) == 1 else None
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        forgets(self)

    def __call__(self, *arrays: Any, **named: Any) -> Result:
        """Run once. Inputs by position (in the order of `graph.inputs`), by name, or as one mapping by name.

        Raises `GraphError` for inputs that do not fit, all of them at once; `TaskError` where a kernel fails; `CommandLineError` once closed.
        """
        return self._replay.run(self._given(arrays, named))

    async def run_async(self, *arrays: Any, **named: Any) -> Result:
        """`__call__`, awaited: the run goes on in a thread of this function's own while the event loop serves others.

        What takes less than a round trip to a thread (a small model, once it is code) is done at once; the loop serves others behind it.
        """
        given = self._given(arrays, named)
        if self._replay.is_instant:
            result = self._replay.run(given)
            await asyncio.sleep(0)
            return result
        with self._lock:
            if self._replay.is_closed:
                return self._replay.run(given)  # says so
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.buffers, thread_name_prefix="hetsched-call")
            running = asyncio.get_running_loop().run_in_executor(self._pool, self._replay.run, given)
        return await running

    def _given(self, arrays: tuple[Any, ...], named: dict[str, Any]) -> dict[int, Any]:
        """Value id -> read-only array or object."""
        if self._single is not None and len(arrays) == 1 and not named:  # the short way of most requests
            x, (value, dtype, shape) = arrays[0], self._single
            if type(x) is np.ndarray and (x.dtype is dtype or x.dtype == dtype) and x.shape == shape and x.flags.c_contiguous:
                x = x.view()
                x.setflags(write=False)
                return {value: x}
        if arrays:
            first = arrays[0]
            if len(arrays) == 1 and isinstance(first, Mapping) and not (len(self._names) == 1 and self._names[0] not in first):
                arrays, named = (), {**first, **named}
            elif len(arrays) > len(self._names):
                raise GraphError(f"the graph has {len(self._names)} inputs ({', '.join(self._names) or 'none'}), got {len(arrays)}")
            else:
                twice = [name for name in self._names[: len(arrays)] if name in named]
                if twice:
                    raise GraphError([f"input {name!r} is given twice, by position and by name" for name in twice])
                named = {**dict(zip(self._names, arrays, strict=False)), **named}
        if len(named) == len(self._plain) == len(self._names):
            out: dict[int, Any] = {}
            for name, x in named.items():
                wanted = self._plain.get(name)
                if wanted is None or type(x) is not np.ndarray or x.dtype != wanted[1] or x.shape != wanted[2] or not x.flags.c_contiguous:
                    break
                view = x.view()
                view.flags.writeable = False
                out[wanted[0]] = view
            else:
                return out
        return check_inputs(self.graph, named)

    def close(self) -> None:
        """Wait for the calls that go on and give everything back; closing again does nothing.

        Ctrl-C ends the wait and raises `KeyboardInterrupt` when all is given back that no call uses; closing again does the rest.
        """
        with guarded():
            self._replay.close()
            if self.is_closed:
                with self._lock:
                    pool, self._pool = self._pool, None
                if pool is not None:
                    pool.shutdown()

    @property
    def is_closed(self) -> bool:
        """True once everything has been given back."""
        return self._replay.is_over

    def forget(self) -> None:
        """In a process that was forked off: the threads of calls that are awaited are those of the parent."""
        self._lock, self._pool = threading.Lock(), None

    def __repr__(self) -> str:
        return f"<Compiled: {', '.join(self._names) or 'no inputs'} -> {', '.join(self.graph.outputs) or 'no outputs'}; {self.buffers} buffer sets>"


class Session:
    """Keeps what runs need between them. `with hetsched.Session() as s: f = s.compile(graph); f(x)`.

    machine: the one found here, where None. Threads and devices are opened when they are first needed and given back by `close`.
    """

    def __init__(self, machine: Machine | None = None) -> None:
        self._machine = machine
        self._found: dict[frozenset[tuple[str, ...]], Machine] = {}  # by the device patterns that are asked for
        self._compiled: list[Compiled] = []
        self._closed = False
        self._lock = threading.Lock()

    @property
    def machine(self) -> Machine:
        """The machine that graphs are planned for which name no device."""
        return self._machine_here(frozenset())

    def _machine_here(self, named: frozenset[tuple[str, ...]]) -> Machine:
        if self._machine is not None:
            return self._machine
        if named not in self._found:
            self._found[named] = Machine.here(*named)
        return self._found[named]

    def compile(
        self,
        what: Graph | Timeline,
        policy: str = "auto",
        objective: ObjectiveLike = "time",
        *,
        buffers: int = 4,
        trace: bool = False,
        timeout: float | None = None,
        plan_seconds: float = 0.0,
        only: str | None = None,
        memory: Mapping[str, int] | int | None = None,
        costs: CostModel | None = None,
    ) -> Compiled:
        """A function that runs a graph, or a plan, again and again. It plans once; other options are those of `hetsched.plan`.

        buffers: buffer sets, so calls that run at once (each takes the memory of the plan when it is first needed). trace: keep what is measured, for
        `Result.trace`. timeout: seconds of a call. Raises what `hetsched.plan` raises; `CommandLineError` once the session is closed.
        """
        if buffers < 1:
            raise CommandLineError(f"a compiled graph needs at least 1 buffer set, got {buffers}")
        if isinstance(what, Graph):
            machine = self._machine_here(frozenset(what.patterns() | ({(only,)} if only else set())))
            what = plan(what, machine, policy, objective, plan_seconds=plan_seconds, only=only, memory=memory, costs=costs)
        elif not isinstance(what, Timeline):
            raise CommandLineError(f"compile() takes a graph or a plan, got {type(what).__name__}; finish a builder with freeze()")
        elif what.measured:
            raise CommandLineError("this timeline is a trace of what has run; compile a plan (hetsched.plan) or a graph")
        compiled = Compiled(what, buffers, trace, checked_timeout(timeout))
        with self._lock:
            if self._closed:
                raise CommandLineError("this session is closed; open another one")
            self._compiled.append(compiled)
        return compiled

    def close(self) -> None:
        """Close all that was compiled here, when its calls have ended; closing again does nothing, or what Ctrl-C has left (`Compiled.close`)."""
        with guarded():
            with self._lock:
                self._closed = True
            for each in list(self._compiled):
                each.close()
            with self._lock:
                self._compiled = [each for each in self._compiled if not each.is_closed]

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


__all__ = ["Compiled", "Session"]
