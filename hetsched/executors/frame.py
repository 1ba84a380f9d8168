"""A frame: one run of a program on memory nodes that this process can touch, with arrays bound to its steps.

Before the first turn every launch is bound to arrays that lie where the plan says: offset in the arena of the memory node, ring slot of the turn.
A step is then a list of bound calls, made once for every combination of ring slots that turns can meet, so that nothing is allocated or looked up
in the steady state of a loop. Launches that touch what cannot be bound ahead (elements of a sequence, the number of the turn, opaque objects,
bounded dimensions) find their arrays when they run.

The outermost frame borrows the graph's inputs, read-only, and owns the outputs, which it hands over. The frame of a loop's body takes
invariants, sequences and first carried values from the frame around it and writes last carried and collected values into its replicas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias, cast

import numpy as np

from hetsched.errors import HetschedError, InternalError, TaskError
from hetsched.executors.memory import HERE, Doer, HostMemory, Memory, alias, shaped, stride_of
from hetsched.executors.program import Program, Step, compile_plan
from hetsched.graph.graph import Graph, Loop
from hetsched.graph.op import Op
from hetsched.graph.spec import AnySpec, Spec, UpTo, array_form
from hetsched.graph.spec import Sequence as SequenceSpec
from hetsched.machine import HOST
from hetsched.timeline import Copy, Launch, Timeline

# (kernel, inputs, outputs, workspace, attributes, task). Kernel `MOVE`: a copy from inputs[0] to outputs[0]; `LATER`: `inputs` is a function of
# the turn and of who does it; `GATHER`: `inputs` is a function of the turn, called when the step is done.
Call: TypeAlias = tuple[Any, Any, Any, Any, Any, int]
MOVE, LATER, GATHER = "move", "later", "gather"
Later: TypeAlias = Callable[[int, Doer], None]


class Frame:
    """One run of `program`.

    borrowed: value -> array or object on the host, for inputs. memories: memory node -> arena (made on the host where absent).
    """

    def __init__(
        self, program: Program, borrowed: Mapping[int, Any], outputs: Mapping[int, Any] | None = None, memories: Mapping[str, Memory] | None = None
    ) -> None:
        self.program = program
        self.plan: Timeline = program.plan
        self.graph: Graph = program.plan.graph
        self.loop: Loop | None = program.plan.loop
        self.turns = self.loop.turns if self.loop is not None else 1
        self.borrowed = dict(borrowed)
        given = memories or {}
        self.memories: dict[str, Memory] = {n: given[n] if n in given else HostMemory.of(nbytes) for n, nbytes in self.plan.arenas.items()}
        # How bytes get from one memory node to another before the first turn and after the last: now, and waiting for it.
        self.transfer: Callable[[Any, Any], None] = HERE.move
        self.stopped_at: int | None = None
        self.rows_of: dict[int, int] = {}  # sequence input -> rows of its array, where its elements are rows
        self.targets: dict[int, Any] = {}  # collected value -> the array of the whole sequence, in the frame around this one
        self._tables: list[dict[Any, list[Call]]] = [{} for _ in program.steps]
        self._cells: dict[tuple[int, str, int], Any] = {}
        self._collected: dict[int, dict[int, Any]] = {}
        self._by_rows = {self.graph.outputs[n] for n in self.loop.rows} if self.loop is not None else set()
        self._programs: dict[int, Program] = {}
        self._offset: dict[tuple[int, str], tuple[int, int]] = {}
        self._again: dict[tuple[int, str, int], int] = {}  # the same for what was evicted and brought in again, by generation
        for replica, offset in self.plan.offsets.items():
            if replica.generation:
                self._again[replica.value, replica.node, replica.generation] = offset
            else:
                self._offset[replica.value, replica.node] = (offset, self.plan.rings.get(replica, 1))
        copies = [s.command for s in self.plan.spans if isinstance(s.command, Copy)]
        self._copied = {(c.value, c.dst.node) for c in copies if not c.dst.generation}
        # Where a launch reads another generation than the first: task -> what it reads.
        launches = [s.command for s in self.plan.spans if isinstance(s.command, Launch)] if self._again else []
        self._reads_again = {c.task: c.reads for c in launches if any(r.generation for r in c.reads)}
        for span in self.plan.prologue:  # a first carried value has no bytes of its own: it lies where its carried output would have been
            if isinstance(span.command, Copy) and span.command.value not in program.carried:
                self._copied.add((span.command.value, span.command.dst.node))
        self._every = program.every
        self._turn_value = self.graph.inputs[self.loop.turn] if self.loop is not None and self.loop.turn else None
        self._sequences = {self.graph.inputs[name] for name in self.loop.sequences} if self.loop is not None else set()
        self.owned: dict[int, Any] = self._own(outputs) if self.loop is None else {}
        self._first: dict[int, Any] = {}
        self._passed = {a for a, b in program.carried.items() if int(self.graph.value_task[self.graph.base(b)]) < 0}
        self._dynamic = self._find_dynamic()
        self._keys = [self._key_rule(step) for step in program.steps]
        # What is gathered when a value is made: (gathered value, turns from the making to the turn it belongs to); and what is only read.
        self._gathered_with: dict[int, list[tuple[int, int]]] = {}
        self._gathered_last: list[int] = []
        for name in dict.fromkeys(self.loop.collected if self.loop is not None else ()):
            value, shift = self.graph.outputs[name], 0
            maker = value
            while (value, HOST) not in self._copied and (base := self.graph.base(maker)) in program.carried:
                maker, shift = program.carried[base], shift + 1
                if shift > len(program.carried):
                    break
            if (maker, HOST) in self._copied or int(self.graph.value_task[self.graph.base(maker)]) >= 0:
                self._gathered_with.setdefault(maker, []).append((value, shift))
            else:
                self._gathered_last.append(value)

        self._straight = self._find_straight()

    def _find_straight(self) -> set[int]:
        """Collected values that a copy can bring straight to their place in the sequence, because nothing else on the host looks at them."""
        out = {v for v, rows in self._gathered_with.items() if (v, HOST) in self._copied and rows == [(v, 0)] and self._every_k(v) == 1}
        out -= {*self.program.carried.values(), *self._dynamic}
        if self.loop is not None and self.loop.stop is not None:
            out.discard(self.graph.outputs[self.loop.stop])
        for span in self.plan.spans:
            command = span.command
            reads = command.reads if isinstance(command, Launch) else (command.src,) if isinstance(command, Copy) else ()
            out -= {r.value for r in reads if r.node == HOST}
        return out

    # Where values lie ---------------------------------------------------------------------------------------------------------

    def _own(self, given: Mapping[int, Any] | None) -> dict[int, Any]:
        """Fresh arrays for the outputs that a task or a copy writes on the host."""
        out: dict[int, Any] = {}
        for value in self.graph.outputs.values():
            spec = array_form(self.graph.spec(value))
            task = int(self.graph.value_task[value])
            if spec is None or task < 0 or value in out:
                continue
            out[value] = given[value] if given is not None and value in given else np.empty(spec.bounds, spec.dtype)
        return out

    def _find_dynamic(self) -> set[int]:
        """Values whose arrays cannot be bound ahead."""
        graph, out = self.graph, set(self._sequences)
        out |= self._passed
        if self._turn_value is not None:
            out.add(self._turn_value)
        for value, spec in enumerate(graph.value_specs):
            form = array_form(spec)
            if form is None or form.is_bounded:
                out.add(value)
        for value in graph.inputs.values():
            if self.loop is None or value not in self.program.carried:
                bound = self.borrowed.get(value)
                if bound is not None and not isinstance(bound, np.ndarray):
                    out.add(value)
        for task, op in enumerate(graph.task_ops):
            if isinstance(op, Op) and op.view and graph.reads(task)[0] in out:
                out.update(graph.writes(task))
        return out

    def _every_k(self, value: int) -> int:
        return self._every.get(int(self.graph.value_task[value]), 1) if self._every else 1

    def _slot(self, value: int, node: str, turn: int) -> int:
        _, slots = self._offset.get((value, node), (0, 1))
        return (turn // self._every_k(value)) % slots

    def _specs(self, turn: int) -> list[AnySpec]:
        if self.loop is not None and self.loop.is_remainder(turn):
            return cast(Graph, self.loop.remainder).value_specs
        return self.graph.value_specs

    def locate(self, value: int, node: str, turn: int, generation: int = 0) -> Any:
        """The array (or object) of a value in a memory node, as a launch of `turn` sees it."""
        if generation:
            return self._cells[value, node, generation] if value in self._dynamic else self.buffer(value, node, turn, generation)
        if (value, node) not in self._copied:
            if node == HOST:
                if value == self._turn_value:
                    return np.asarray(turn, np.int64)
                if value in self._sequences:
                    return self._element(value, turn)
                if value in self.graph.constants:
                    return self.graph.constants[value]
            if value in self.program.carried:
                if turn == 0 and value in self._passed:
                    return self._first[value]
                return self.locate(self.program.carried[value], node, turn - 1)
            if node == HOST and value in self.borrowed:
                return self.borrowed[value]
        mine = node == HOST and value in self.owned
        if mine and value not in self._dynamic:
            return self.owned[value]
        task = int(self.graph.value_task[value])
        spec = self._specs(turn)[value]
        if task >= 0 and (value, node) not in self._copied and not mine:
            op = self.graph.task_ops[task]
            if isinstance(op, Op) and op.view:
                source = self._reads_again.get(task, ())
                base = self.locate(self.graph.reads(task)[0], node, turn, source[0].generation if source else 0)
                return alias(op, base, self.graph.task_attributes[task] if spec is self.graph.spec(value) else self._rest_attributes(task), spec)
        if value in self._dynamic:
            return self._cells[value, node, self._slot(value, node, turn)]
        return self.buffer(value, node, turn)

    def _rest_attributes(self, task: int) -> Mapping[str, Any]:
        assert self.loop is not None
        return cast(Graph, self.loop.remainder).task_attributes[task]

    def buffer(self, value: int, node: str, turn: int, generation: int = 0) -> Any:
        """The planned memory of a replica, shaped at its bounds (for the turn's body)."""
        if node == HOST and value in self.owned and not generation:
            return self.owned[value]
        spec = array_form(self._specs(turn)[value])
        if generation and spec is not None:
            return self.memories[node].array(self._again[value, node, generation], spec)
        place = self._offset.get((value, node))
        if spec is None or place is None:
            raise InternalError(f"the plan gives value {self.graph.value_names[value]!r} no memory on {node}")
        full = array_form(self.graph.spec(value))
        assert full is not None
        start = place[0] + self._slot(value, node, turn) * stride_of(full.nbytes)
        return self.memories[node].array(start, spec)

    def _element(self, value: int, turn: int) -> Any:
        whole = self.borrowed[value]
        spec = self.graph.spec(value)
        rows = self.rows_of.get(value)
        if rows is not None:
            n = cast(Spec, spec).bounds[0]
            return whole[turn * n : min((turn + 1) * n, rows)]
        return whole[turn, ...] if isinstance(whole, np.ndarray) else whole[turn]

    # Steps --------------------------------------------------------------------------------------------------------------------

    def _key_rule(self, step: Step) -> tuple[tuple[tuple[int, int, int], ...], tuple[int, ...]]:
        """What of the turn's number a step's bindings depend on: (k, slots, turns ago) of the rings and the k of tasks that do not run every turn."""
        rings: set[tuple[int, int, int]] = set()
        fires: set[int] = set()
        for i in step.spans:
            command = self.plan.spans[i].command
            if isinstance(command, Launch):
                touched = [*command.reads, *command.writes]
                if command.task in self._every:
                    fires.add(self._every[command.task])
            else:
                touched = [command.src, command.dst] if isinstance(command, Copy) else []
                if isinstance(command, Copy) and self._every_k(command.value) > 1:
                    fires.add(self._every_k(command.value))
            for replica in touched:
                value, ago = self._root(replica.value, replica.node)
                slots = self._offset.get((value, replica.node), (0, 1))[1]
                if slots > 1:
                    k = self._every_k(value)
                    rings.add((k, slots, ago if k > 1 else 0))  # every turn: the slot of turn i - 1 follows from that of turn i
        return tuple(sorted(rings)), tuple(sorted(fires))

    def _root(self, value: int, node: str) -> tuple[int, int]:
        """The value whose replica's bytes a value uses, through views and carried inputs, and from how many turns ago."""
        seen = ago = 0
        while (value, node) not in self._copied:
            task = int(self.graph.value_task[value])
            if value in self.program.carried:
                value, ago = self.program.carried[value], ago + 1
            elif task >= 0 and isinstance(op := self.graph.task_ops[task], Op) and op.view:
                value = self.graph.reads(task)[0]
            else:
                break
            seen += 1
            if seen > len(self.graph.value_specs):
                raise InternalError(f"value {self.graph.value_names[value]!r} is carried into itself")
        return value, ago

    def calls(self, step: int, turn: int) -> list[Call]:
        """The bound calls of a step in a turn."""
        rings, fires = self._keys[step]
        rest = self.loop is not None and self.loop.is_remainder(turn)
        if rings or fires:
            key: Any = (rest, *[((turn - ago) // k) % n for k, n, ago in rings], *[turn % k == 0 for k in fires])
        else:
            key = rest
        table = self._tables[step]
        found = table.get(key)
        if found is None:
            found = table[key] = self._bind(self.program.steps[step], turn)
        return found

    def perform(self, step: int, turn: int) -> None:
        """Do a step here and now: every launch or copy of it. Raises `TaskError` with the task's name."""
        task = -1
        try:
            for kernel, inputs, outputs, workspace, attributes, task in self.calls(step, turn):  # noqa: B007 (read in the handler)
                if callable(kernel):
                    kernel(np, inputs, outputs, workspace, attributes)
                elif kernel is LATER:
                    inputs(turn, HERE)
                elif kernel is MOVE:
                    np.copyto(outputs[0], inputs[0])
                else:
                    inputs(turn)
        except Exception as error:
            raise self.failure(error, task, turn) from error

    def issue(self, step: int, turn: int, doer: Doer) -> None:
        """Hand the launches and copies of a step to a stream. `gather` follows when they are done."""
        task = -1
        try:
            for kernel, inputs, outputs, workspace, attributes, task in self.calls(step, turn):  # noqa: B007 (read in the handler)
                if callable(kernel):
                    doer.launch(kernel, inputs, outputs, workspace, attributes)
                elif kernel is LATER:
                    inputs(turn, doer)
                elif kernel is MOVE:
                    doer.move(inputs[0], outputs[0])
        except Exception as error:
            raise self.failure(error, task, turn) from error

    def gather(self, step: int, turn: int) -> None:
        """Gather what a step that a stream has done has brought to the host."""
        for kernel, inputs, *_ in self.calls(step, turn):
            if kernel is GATHER:
                inputs(turn)

    def gathers(self, step: int) -> bool:
        """True if the host gathers what a step makes."""
        commands = [self.plan.spans[i].command for i in self.program.steps[step].spans]
        made = [r for c in commands for r in (c.writes if isinstance(c, Launch) else (c.dst,) if isinstance(c, Copy) else ())]
        return any(r.node == HOST and r.value in self._gathered_with and not (r.value in self._straight and r.value in self.targets) for r in made)

    def failure(self, error: Exception, task: int, turn: int) -> Exception:
        """The error that tells which task failed, and in which turn."""
        if isinstance(error, HetschedError):
            return error
        if isinstance(error, MemoryError):
            return TaskError(self._name(task), f"task {self._name(task)!r} ran out of memory: {error}")
        where = f" in turn {turn}" if self.loop is not None else ""
        return TaskError(self._name(task), f"task {self._name(task)!r} failed{where}: {type(error).__name__}: {error}")

    def poison(self, step: int, turn: int) -> None:
        """Overwrite what a step is about to write, where it does not also read it: a replica reused too early is then seen to be wrong."""
        for i in self.program.steps[step].spans:
            command = self.plan.spans[i].command
            if isinstance(command, Launch) and self.fires(command.task, turn):
                op = self.graph.task_ops[command.task]
                if isinstance(op, Op) and not op.view:
                    reads = [x for r in command.reads if isinstance(x := self.locate(r.value, r.node, turn, r.generation), np.ndarray)]
                    for r in command.writes:
                        if array_form(self.graph.spec(r.value)) is not None:
                            self._spoil(self.buffer(r.value, r.node, turn), reads)
            elif isinstance(command, Copy) and turn % self._every_k(command.value) == 0 and array_form(self.graph.spec(command.value)) is not None:
                self._spoil(self.buffer(command.value, command.dst.node, turn, command.dst.generation), [])

    @staticmethod
    def _spoil(target: Any, reads: list[Any]) -> None:
        if not any(np.may_share_memory(target, x) for x in reads):
            target.reshape(-1).view(np.uint8).fill(0xA5)

    def _name(self, task: int) -> str:
        return self.graph.task_names[task] if task >= 0 else "copy"

    def _bind(self, step: Step, turn: int) -> list[Call]:
        calls: list[Call] = []
        for i in step.spans:
            command = self.plan.spans[i].command
            if isinstance(command, Copy):
                if turn % self._every_k(command.value) == 0:
                    calls.append(self._bind_copy(command, turn))
                made = [(command.dst.value, command.dst.node)]
                task = -1
            elif isinstance(command, Launch):
                task = command.task
                call = self._bind_launch(command, step, turn) if self.fires(task, turn) else None
                if call is not None:
                    calls.append(call)
                made = [(r.value, r.node) for r in command.writes]
            else:
                continue
            for value, node in made:
                if node == HOST and not (value in self._straight and value in self.targets):
                    calls += [(GATHER, self._collector(v, shift), None, None, None, task) for v, shift in self._gathered_with.get(value, ())]
        return calls

    def _bind_copy(self, command: Copy, turn: int) -> Call:
        value, src, dst = command.value, command.src.node, command.dst.node
        old, new = command.src.generation, command.dst.generation
        if value in self._dynamic:

            def move(now: int, doer: Doer) -> None:
                found = self.locate(value, src, now, old)
                if array_form(self.graph.spec(value)) is not None:
                    target = shaped(self.buffer(value, dst, now, new), tuple(found.shape))
                    doer.move(found, target)
                    found = target
                self._cells[value, dst, new or self._slot(value, dst, now)] = found

            return (LATER, move, None, None, None, -1)
        if dst == HOST and value in self._straight and value in self.targets:
            source = self.locate(value, src, turn)

            def place(now: int, doer: Doer) -> None:
                doer.move(source, self._row(value, now, tuple(source.shape)))

            return (LATER, place, None, None, None, -1)
        return (MOVE, (self.locate(value, src, turn, old),), (self.buffer(value, dst, turn, new),), None, None, -1)

    def _bind_launch(self, command: Launch, step: Step, turn: int) -> Call | None:
        graph, task = self.graph, command.task
        op = graph.task_ops[task]
        assert isinstance(op, Op)
        device = self.plan.machine.device(step.owner)
        specs = [graph.spec(r.value) for r in command.reads]
        if op.view and not (device.memory == HOST and command.writes[0].value in self.owned):
            return None  # an alias: readers find it through its base. What the caller shall own is copied.
        kernel = op.kernel_for(device, specs)
        if kernel is None:
            raise InternalError(f"the plan puts task {graph.task_names[task]!r} on {device.id}, which has no kernel for {op.name}")
        rest = self.loop is not None and self.loop.is_remainder(turn)
        attributes = self._rest_attributes(task) if rest else graph.task_attributes[task]
        workspace = self._workspace(task)
        node = device.memory
        if not any(r.value in self._dynamic for r in (*command.reads, *command.writes)):
            reads = tuple(self.locate(r.value, node, turn, r.generation) for r in command.reads)
            writes = tuple(self.buffer(r.value, node, turn) for r in command.writes)
            return (kernel, reads, writes, workspace, attributes, task)
        if not any(r.value in self._dynamic for r in command.writes):
            return (LATER, self._launch_partly(command, kernel, node, workspace, attributes, turn), None, None, None, task)
        return (LATER, self._launch_later(command, op, kernel, node, workspace, attributes), None, None, None, task)

    def _launch_partly(self, command: Launch, kernel: Any, node: str, workspace: Any, attributes: Mapping[str, Any], turn: int) -> Later:
        """A launch bound but for the inputs that only its turn knows."""
        bound = [None if r.value in self._dynamic else self.locate(r.value, node, turn, r.generation) for r in command.reads]
        writes = tuple(self.buffer(r.value, node, turn) for r in command.writes)
        later = [(i, r.value, r.generation) for i, r in enumerate(command.reads) if r.value in self._dynamic]
        number = self._turn_value if node == HOST else None

        def launch(now: int, doer: Doer) -> None:
            reads = bound.copy()
            for i, value, generation in later:
                reads[i] = np.array(now, np.int64) if value == number else self.locate(value, node, now, generation)
            doer.launch(kernel, reads, writes, workspace, attributes)

        return launch

    def _launch_later(self, command: Launch, op: Op, kernel: Any, node: str, workspace: Any, attributes: Mapping[str, Any]) -> Later:
        """A launch that finds its arrays when it runs."""
        graph = self.graph
        bounded = any(isinstance(s := graph.spec(r.value), Spec) and s.is_bounded for r in command.writes)

        def launch(turn: int, doer: Doer) -> None:
            reads = [self.locate(r.value, node, turn, r.generation) for r in command.reads]
            specs = self._specs(turn)
            writes: list[Any] = []
            actual: list[AnySpec] | None = None
            if bounded:
                seen = [Spec(a.shape, a.dtype) if hasattr(a, "shape") else specs[r.value] for a, r in zip(reads, command.reads, strict=True)]
                actual = list(op.infer(seen, attributes))
            for i, r in enumerate(command.writes):
                if array_form(specs[r.value]) is None:
                    writes.append(None)  # the kernel puts the object there
                    continue
                target = self.buffer(r.value, node, turn)
                if actual is not None and isinstance(a := actual[i], Spec):
                    target = shaped(target, a.bounds)
                writes.append(target)
            shapes = doer.launch(kernel, reads, writes, workspace, attributes)
            for i, r in enumerate(command.writes):
                if r.value not in self._dynamic:
                    continue
                result = writes[i]
                if shapes is not None and isinstance(result, np.ndarray) and isinstance(actual, list) and cast(Spec, actual[i]).is_bounded:
                    result = np.ascontiguousarray(result[tuple(slice(n) for n in shapes[i])])
                self._cells[r.value, r.node, self._slot(r.value, r.node, turn)] = result

        return launch

    def _workspace(self, task: int) -> Any:
        place = self.plan.workspaces.get(task)
        if place is None:
            return None
        node, offset, nbytes = place
        return self.memories[node].array(offset, Spec((nbytes,), np.uint8))

    # Loops --------------------------------------------------------------------------------------------------------------------

    def child(self, task: int, turn: int, compiled: Mapping[int, Program]) -> Frame:
        """The frame of the body of loop task `task`, its first carried values in place."""
        loop = cast(Loop, self.graph.task_ops[task])
        program = compiled.get(id(self.plan.loops[task])) or self._programs.get(task)
        if program is None:
            program = self._programs[task] = compile_plan(self.plan.loops[task])
        body = loop.body
        values = self.graph.reads(task)
        borrowed: dict[int, Any] = {}
        first: dict[int, Any] = {}
        rows: dict[int, int] = {}
        carried = {a for a, _ in loop.carried}
        generations = [r.generation for r in self._reads_again.get(task, ())] or [0] * len(values)
        for name, value, generation in zip(loop.inputs, values, generations, strict=True):
            found = self.locate(value, HOST, turn, generation)
            if name in carried:
                first[body.inputs[name]] = found
            else:
                borrowed[body.inputs[name]] = found
                spec = self.graph.spec(value)
                if name in loop.sequences and isinstance(spec, SequenceSpec) and spec.rows is not None:
                    rows[body.inputs[name]] = spec.rows
        places = self.plan.bodies.get(task, {})
        needed = program.plan.arenas
        room = {node: self.memories[node].inside(start, needed[node]) for node, start in places.items() if node in needed}
        frame = Frame(program, borrowed, memories=room)
        frame.transfer = self.transfer
        frame.rows_of = rows
        frame._begin_loop(first)
        return frame

    def _begin_loop(self, first: Mapping[int, Any]) -> None:
        assert self.loop is not None
        self._first.update(first)
        for span in self.plan.prologue:
            command = span.command
            if isinstance(command, Copy):
                value = command.value
                source = first[value] if value in first else self.locate(value, command.src.node, 0)
                if value in self.program.carried:
                    self._set_carried(value, command.dst.node, source)
                else:
                    self.transfer(source, self.buffer(value, command.dst.node, 0))
        for value, found in first.items():
            result = self.program.carried[value]
            if value in self._passed:
                continue
            made_at = {node for v, node in self._offset if v == result} or {HOST}
            if HOST in made_at or result in self._dynamic:
                self._set_carried(value, HOST, found)

    def _set_carried(self, value: int, node: str, found: Any) -> None:
        """Put a first carried value where turn 0 looks for it: the slot of turn -1."""
        result = self.program.carried[value]
        if result in self._dynamic:
            self._cells[result, node, self._slot(result, node, -1)] = found
            return
        self.transfer(found, shaped(self.locate(result, node, -1), tuple(found.shape)))

    def _collector(self, value: int, shift: int = 0) -> Callable[[int], None]:
        """Gathers `value` of turn i + `shift`, called in turn i."""

        def collect(turn: int) -> None:
            turn += shift
            if turn >= self.turns:
                return
            found = self.locate(value, HOST, turn)
            target = self.targets.get(value)
            if target is None:
                self._collected.setdefault(value, {})[turn] = found.copy() if isinstance(found, np.ndarray) else found
            else:
                self._row(value, turn, found.shape)[...] = found

        return collect

    def _row(self, value: int, turn: int, shape: tuple[int, ...]) -> Any:
        """Where the element of a turn lies in the array of the whole sequence."""
        target = self.targets[value]
        if value in self._by_rows:
            n = cast(Spec, self.graph.spec(value)).bounds[0]
            return target[turn * n : turn * n + shape[0]]
        return target[turn, ...]

    def bind_collected(self, parent: Frame, task: int, turn: int) -> None:
        """Let collected values be written straight into the parent's replica of the sequence."""
        loop = cast(Loop, parent.graph.task_ops[task])
        outs = parent.graph.writes(task)
        self.targets = {}
        for name, value in zip(loop.collected, outs[len(loop.carried) :], strict=True):
            if array_form(parent.graph.spec(value)) is not None:
                self.targets[self.graph.outputs[name]] = parent.buffer(value, HOST, turn)
        for gathered, shift in [row for rows in self._gathered_with.values() for row in rows]:
            for i in range(min(shift, self.turns)):  # what the first turns took from outside
                self._collector(gathered)(i)

    def end_loop(self, parent: Frame, task: int, turn: int) -> None:
        """Write last carried and collected values into the parent's replicas on the host."""
        loop = cast(Loop, parent.graph.task_ops[task])
        outs = parent.graph.writes(task)
        ran = self.stopped_at + 1 if self.stopped_at is not None else self.turns
        for (name, _), value in zip(loop.carried, outs[: len(loop.carried)], strict=True):
            inner = self.graph.inputs[name]
            found = self.locate(self.program.carried[inner], self._node_of(self.program.carried[inner]), ran - 1) if ran else self._first[inner]
            parent._store(value, turn, found)
        for inner in self._gathered_last:
            for i in range(ran):
                self._collector(inner)(i)
        for name, value in zip(loop.collected, outs[len(loop.carried) :], strict=True):
            spec = cast(SequenceSpec, parent.graph.spec(value))
            inner = self.graph.outputs[name]
            if inner not in self.targets:
                found = [x for i, x in sorted(self._collected.get(inner, {}).items()) if i < ran]
                parent._cells[value, HOST, parent._slot(value, HOST, turn)] = found
            elif isinstance(spec.length, UpTo):
                n = ran * cast(Spec, spec.element).bounds[0] if spec.rows is not None else ran
                parent._cells[value, HOST, parent._slot(value, HOST, turn)] = self.targets[inner][:n]
        parent.collect_loop(task, turn)

    def _node_of(self, value: int) -> str:
        """A memory node that holds a value: the host if it does."""
        root, _ = self._root(value, HOST)
        nodes = [n for v, n in self._offset if v == root]
        return nodes[0] if nodes and HOST not in nodes else HOST

    def _store(self, value: int, turn: int, found: Any) -> None:
        if value in self._dynamic:
            if isinstance(found, np.ndarray) and isinstance(self.graph.spec(value), Spec):
                found = found.copy()
            self._cells[value, HOST, self._slot(value, HOST, turn)] = found
        else:
            self.transfer(found, self.buffer(value, HOST, turn))

    def fires(self, task: int, turn: int) -> bool:
        """False in the turns that a task of `every` leaves out."""
        return turn % self._every.get(task, 1) == 0

    def collect_loop(self, task: int, turn: int) -> None:
        """Gather what loop task `task` has made, or made in an earlier turn."""
        for value in self.graph.writes(task):
            for gathered, shift in self._gathered_with.get(value, ()):
                self._collector(gathered, shift)(turn)

    def stop_value(self, turn: int) -> bool:
        """The loop's stop value after `turn`."""
        assert self.loop is not None
        assert self.loop.stop is not None
        return bool(self.locate(self.graph.outputs[self.loop.stop], HOST, turn))

    # Results ------------------------------------------------------------------------------------------------------------------

    def results(self, names: Iterable[str] | None = None) -> dict[str, Any]:
        """The outputs by name (all, or `names`), each the caller's own array."""
        out: dict[str, Any] = {}
        handed: set[int] = set()
        for name in self.graph.outputs if names is None else names:
            value = self.graph.outputs[name]
            found = self.locate(value, HOST, 0)
            if isinstance(found, np.ndarray):
                mine = value in self.owned and value not in handed and found.base is None
                found = found if mine else np.array(found, order="C")
            handed.add(value)
            out[name] = found
        return out
