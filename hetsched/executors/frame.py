"""A frame: one run of a program on memory nodes that this process can touch, with arrays that lie where the plan says.

Every replica has its offset in the arena of its memory node and, in a loop, the ring slot of the turn; `locate` finds it. What steps do with
the arrays is bound ahead (`binding`), so that nothing is allocated or looked up in the steady state of a loop; what it collects is in `gathering`.

The outermost frame borrows the graph's inputs, read-only, and owns the outputs, which it hands over. The frame of a loop's body takes
invariants, sequences and first carried values from the frame around it and writes last carried and collected values into its replicas.
A frame can run again (`renew`): with other inputs and fresh outputs, in the same arenas, and with what is bound still bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any, cast

import numpy as np

from hetsched.errors import GraphError, HetschedError, InternalError, TaskError
from hetsched.executors.binding import Bindings
from hetsched.executors.gathering import Gathering
from hetsched.executors.locking import LEAST_TIMES, moved
from hetsched.executors.memory import HERE, HostMemory, Memory, alias, fresh, shaped, stride_of
from hetsched.executors.pages import LEAST_BYTES, Lock, Touching, lock_in
from hetsched.executors.program import Program, compile_plan
from hetsched.graph.graph import Graph, If, Loop
from hetsched.graph.op import Op
from hetsched.graph.spec import AnySpec, Spec, array_form
from hetsched.graph.spec import Sequence as SequenceSpec
from hetsched.machine import HOST
from hetsched.timeline import Copy, Launch, Replica, Timeline


class Frame:
    """One run of `program`.

    borrowed: value -> array or object on the host, for inputs. memories: memory node -> arena (made on the host where absent).
    lock: locks pages of the host, for devices that copy from and to there.
    dynamic: values whose arrays cannot be bound ahead; `cells`: where they are, by (value, node, slot).
    """

    def __init__(
        self, program: Program, borrowed: Mapping[int, Any], outputs: Mapping[int, Any] | None = None, memories: Mapping[str, Memory] | None = None,
        lock: Lock | None = None,
    ) -> None:  # fmt: skip
        self.program = program
        self.plan: Timeline = program.plan
        self.graph: Graph = program.plan.graph
        self.loop: Loop | None = program.plan.loop
        self.turns = self.loop.turns if self.loop is not None else 1
        self.within = ""  # of a loop's body: the loop, and those around it with their turns
        self.borrowed = dict(borrowed)
        self._is_array = {v: isinstance(x, np.ndarray) for v, x in borrowed.items()}
        given = memories or {}
        self._touching = Touching()
        self.memories: dict[str, Memory] = {
            node: given[node] if node in given else HostMemory.of(nbytes, self._touching, lock is not None)
            for node, nbytes in self.plan.arenas.items()
        }
        self.lock = lock
        self._runs = 1
        self._moved = moved(self.plan) if lock is not None else {}
        # How bytes get from one memory node to another before the first turn and after the last: now, and waiting for it.
        self.transfer: Callable[[Any, Any], None] = HERE.move
        self.stopped_at: int | None = None
        self.rows_of: dict[int, int] = {}  # sequence input -> rows of its array, where its elements are rows
        self.cells: dict[tuple[int, str, int], Any] = {}
        self._arrays: dict[tuple[int, str, int, bool], Any] = {}
        # By the id of the plan of a loop's body, or of a branch of an if: its frames that have run to their end, and its program.
        self._idle: dict[int, list[Frame]] = {}
        self._programs: dict[int, Program] = {}
        self.shape: Any = None  # what `relay` keeps between runs
        self.pattern: Any = None  # what `devoted` keeps between runs
        self.cold: frozenset[int] = frozenset()  # tasks whose launches in this run do what a process does once (`warming`)
        self.needed: Mapping[str, int] | None = None  # threads that the plan can keep busy, by kind, once a crew has asked
        self.bodies: Mapping[int, Program] | None = None  # of the outermost frame: id of each body's plan -> its program, made before the first run
        self._find_places()
        self.every = program.every
        self.turn_value = self.graph.inputs[self.loop.turn] if self.loop is not None and self.loop.turn else None
        self.sequences = {self.graph.inputs[name] for name in self.loop.sequences} if self.loop is not None else set()
        self.owned: dict[int, Any] = self._own(outputs) if self.loop is None else {}
        self._touching.begin()
        self._first: dict[int, Any] = {}
        self.passed = {a for a, b in program.carried.items() if int(self.graph.value_task[self.graph.base(b)]) < 0}
        self.dynamic = self._find_dynamic()
        self.gathering = Gathering(self)
        self.bindings = Bindings(self)
        self.perform, self.issue, self.gather = self.bindings.perform, self.bindings.issue, self.bindings.gather
        self.perform_timed = self.bindings.perform_timed
        self._lock_ranges()

    def _find_places(self) -> None:
        self.copied: set[tuple[int, str]] = set()
        self._reads_again: dict[int, tuple[Replica, ...]] = {}
        if self.program.straight is not None:  # launches on the host alone
            return
        copies = [command for s in self.plan.spans if type(command := s[1]) is Copy]
        self.copied = {(c.value, c.dst.node) for c in copies if not c.dst.generation}
        # Where a launch reads another generation than the first: task -> what it reads.
        launches = [s.command for s in self.plan.spans if isinstance(s.command, Launch)] if self._again else []
        self._reads_again = {c.task: c.reads for c in launches if any(r.generation for r in c.reads)}
        for span in self.plan.prologue:  # a first carried value has no bytes of its own: it lies where its carried output would have been
            if isinstance(span.command, Copy) and span.command.value not in self.program.carried:
                self.copied.add((span.command.value, span.command.dst.node))

    @cached_property
    def offset(self) -> dict[tuple[int, str], tuple[int, int]]:
        """(value, node) -> its offset in the arena, and ring slots."""
        rings, offsets = self.plan.rings, self.plan.offsets
        return {(r.value, r.node): (offset, rings.get(r, 1) if rings else 1) for r, offset in offsets.items() if not r.generation}

    @cached_property
    def _again(self) -> dict[tuple[int, str, int], int]:
        """The offsets of what was evicted and brought in again, by generation."""
        return {(r.value, r.node, r.generation): offset for r, offset in self.plan.offsets.items() if r.generation}

    def renew(self, borrowed: Mapping[int, Any], outputs: Mapping[int, Any] | None = None) -> None:
        """Be ready to run again, with other inputs (arrays where they were arrays before) and fresh outputs."""
        changed = [v for v, x in borrowed.items() if self.borrowed.get(v) is not x]
        self.borrowed.update(borrowed)
        if self.loop is None:
            self._touching = Touching()
            self.owned.update(self._own(outputs))
            self._touching.begin()
            changed += self.owned
        self.cells.clear()
        self.stopped_at = None
        self.bindings.forget(changed)
        self._runs += 1
        self._lock_ranges()

    def ready(self) -> None:
        """Wait until the pages of what is fresh are there: a run begins, and its tasks shall not wait for them."""
        self._touching.end()

    def let_go(self) -> None:
        """Hold nothing of the run that has ended: inputs and outputs are the caller's."""
        self.cells.clear()
        self._first.clear()
        self.cold = frozenset()
        given = [v for v, x in self.borrowed.items() if x is not None]
        self.bindings.forget([*given, *self.owned])
        self.borrowed.update(dict.fromkeys(given))
        self.owned.update(dict.fromkeys(self.owned))
        if self.shape is not None:
            self.shape.board.clear()
        self.gathering.targets.clear()
        self.gathering.found.clear()
        for frames in self._idle.values():
            for frame in frames:
                frame.let_go()

    def close(self) -> None:
        """Hold no memory any more, without waiting for the collector of cycles. For a frame that will not run again."""
        self.shape = self.pattern = None
        self.bindings.close()
        self.gathering.targets.clear()
        self.gathering.found.clear()
        for held in (self.borrowed, self.owned, self.cells, self._first, self._arrays, self.memories):
            held.clear()
        for frames in self._idle.values():
            for frame in frames:
                frame.close()
        self._idle.clear()

    # Where values lie ---------------------------------------------------------------------------------------------------------

    def _own(self, given: Mapping[int, Any] | None) -> dict[int, Any]:
        """Fresh arrays for the outputs that a task or a copy writes on the host."""
        out: dict[int, Any] = dict(given or {})
        kinds: dict[int, tuple[tuple[int, ...], Any]] = {}
        for value in self.graph.outputs.values():
            spec = array_form(self.graph.spec(value))
            if spec is not None and value not in out and int(self.graph.value_task[value]) >= 0:
                kinds[value] = spec.bounds, spec.dtype
        copied = [number for number, value in enumerate(kinds) if self.graph.base(value) in self._moved] if self._moved else []
        lock = self.lock if copied else None
        return out | dict(zip(kinds, fresh(list(kinds.values()), self._touching, lock, copied), strict=True))

    def _lock_ranges(self) -> None:
        """Lock pages of the host's arena that devices copy from or to often enough, once that pays."""
        arena = self.memories.get(HOST)
        if self.lock is None or not isinstance(arena, HostMemory):
            return
        ranges: list[tuple[int, int]] = []
        for value, nbytes in list(self._moved.items()):
            place = self.offset.get((value, HOST))
            form = array_form(self.graph.spec(value))
            if place is None or form is None or value in self.owned or value in self.gathering.straight:
                continue
            size = stride_of(form.nbytes) * place[1]
            if size >= LEAST_BYTES and nbytes * self._runs >= LEAST_TIMES * size:
                ranges.append((place[0], size))
                del self._moved[value]
        if ranges:
            lock_in(arena.buffer, ranges, self.lock)

    def _find_dynamic(self) -> set[int]:
        """Values whose arrays cannot be bound ahead."""
        graph, out = self.graph, set(self.sequences)
        out |= self.passed
        if self.turn_value is not None:
            out.add(self.turn_value)
        out |= graph.unfixed
        for value in graph.inputs.values():
            if self.loop is None or value not in self.program.carried:
                bound = self.borrowed.get(value)
                if bound is not None and not isinstance(bound, np.ndarray):
                    out.add(value)
        for task in graph.views:
            if graph.reads(task)[0] in out:
                out.update(graph.writes(task))
        return out

    def every_k(self, value: int) -> int:
        """In every how many turns a value is made anew."""
        return self.every.get(int(self.graph.value_task[value]), 1) if self.every else 1

    def slot(self, value: int, node: str, turn: int) -> int:
        """The ring slot of a replica in a turn."""
        _, slots = self.offset.get((value, node), (0, 1))
        return (turn // self.every_k(value)) % slots

    def specs(self, turn: int) -> list[AnySpec]:
        """The specs of all values, in a turn."""
        if self.loop is not None and self.loop.is_remainder(turn):
            return cast(Graph, self.loop.remainder).value_specs
        return self.graph.value_specs

    def locate(self, value: int, node: str, turn: int, generation: int = 0) -> Any:
        """The array (or object) of a value in a memory node, as a launch of `turn` sees it."""
        if generation:
            return self.cells[value, node, generation] if value in self.dynamic else self.buffer(value, node, turn, generation)
        if (value, node) not in self.copied:
            if node == HOST:
                if value == self.turn_value:
                    return np.asarray(turn, np.int64)
                if value in self.sequences:
                    return self._element(value, turn)
                if value in self.graph.constants:
                    return self.graph.constants[value]
            if value in self.program.carried:
                if turn == 0 and value in self.passed:
                    return self._first[value]
                return self.locate(self.program.carried[value], node, turn - 1)
            if node == HOST and value in self.borrowed:
                return self.borrowed[value]
        mine = node == HOST and value in self.owned
        if mine and value not in self.dynamic:
            return self.owned[value]
        task = int(self.graph.value_task[value])
        spec = self.specs(turn)[value]
        if task >= 0 and (value, node) not in self.copied and not mine:
            op = self.graph.task_ops[task]
            if isinstance(op, Op) and op.view:
                source = self.graph.reads(task)[0]
                base = self.locate(source, node, turn, self.view_generation(task))
                return alias(op, base, self.attributes(task, turn), self.specs(turn)[source], spec)
        if value in self.dynamic:
            return self.cells[value, node, self.slot(value, node, turn)]
        return self.buffer(value, node, turn)

    def view_generation(self, task: int) -> int:
        """The generation of the replica that view `task` shows."""
        source = self._reads_again.get(task)
        return source[0].generation if source else 0

    def attributes(self, task: int, turn: int) -> Mapping[str, Any]:
        """The attributes of a task, in a turn."""
        if self.loop is not None and self.loop.is_remainder(turn):
            return cast(Graph, self.loop.remainder).task_attributes[task]
        return self.graph.task_attributes[task]

    def buffer(self, value: int, node: str, turn: int, generation: int = 0) -> Any:
        """The planned memory of a replica, shaped at its bounds (for the turn's body)."""
        if node == HOST and value in self.owned and not generation:
            return self.owned[value]
        slot = self.slot(value, node, turn) if self.loop is not None else 0
        key = (value, node, -generation or slot, self.loop is not None and self.loop.is_remainder(turn))
        found = self._arrays.get(key)
        if found is None:
            found = self._arrays[key] = self._cut(value, node, turn, slot, generation)
        return found

    def _cut(self, value: int, node: str, turn: int, slot: int, generation: int) -> Any:
        spec = array_form(self.specs(turn)[value])
        if generation and spec is not None:
            return self.memories[node].array(self._again[value, node, generation], spec)
        place = self.offset.get((value, node))
        if spec is None or place is None:
            raise InternalError(f"the plan gives value {self.graph.value_names[value]!r} no memory on {node}")
        full = array_form(self.graph.spec(value))
        assert full is not None
        return self.memories[node].array(place[0] + slot * stride_of(full.nbytes), spec)

    def workspace(self, task: int) -> Any:
        """The scratch of a task's launch, or None."""
        place = self.plan.workspaces.get(task)
        if place is None:
            return None
        node, offset, nbytes = place
        return self.memories[node].array(offset, Spec((nbytes,), np.uint8))

    def _element(self, value: int, turn: int) -> Any:
        whole = self.borrowed[value]
        spec = self.graph.spec(value)
        rows = self.rows_of.get(value)
        if rows is not None:
            n = cast(Spec, spec).bounds[0]
            return whole[turn * n : min((turn + 1) * n, rows)]
        return whole[turn, ...] if isinstance(whole, np.ndarray) else whole[turn]

    def root(self, value: int, node: str) -> tuple[int, int]:
        """The value whose replica's bytes a value uses, through views and carried inputs, and from how many turns ago."""
        seen = ago = 0
        while (value, node) not in self.copied:
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

    # Steps --------------------------------------------------------------------------------------------------------------------

    def gathers(self, step: int) -> bool:
        """True if the host gathers what a step makes."""
        commands = [self.plan.spans[i].command for i in self.program.steps[step].spans]
        made = [r for c in commands for r in (c.writes if isinstance(c, Launch) else (c.dst,) if isinstance(c, Copy) else ())]
        return any(r.node == HOST and r.value in self.gathering.made_with and not self.gathering.is_straight(r.value) for r in made)

    def failure(self, error: Exception, task: int, turn: int | None) -> Exception:
        """The error that tells which task failed, and in which turn, where that is known."""
        if isinstance(error, HetschedError):
            return error
        if isinstance(error, MemoryError):
            return TaskError(self._name(task), f"task {self._name(task)!r} ran out of memory: {error}")
        return TaskError(self._name(task), f"task {self._name(task)!r} failed{self._when(turn)}: {type(error).__name__}: {error}")

    def _when(self, turn: int | None) -> str:
        """` in turn 3 of loop 'train/steps'`, the loops around that one too; "" outside of loops."""
        return f" in turn {turn}{self.within}" if self.loop is not None and turn is not None else ""

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
            elif isinstance(command, Copy) and turn % self.every_k(command.value) == 0 and array_form(self.graph.spec(command.value)) is not None:
                self._spoil(self.buffer(command.value, command.dst.node, turn, command.dst.generation), [])

    @staticmethod
    def _spoil(target: Any, reads: list[Any]) -> None:
        if not any(np.may_share_memory(target, x) for x in reads):
            target.reshape(-1).view(np.uint8).fill(0xA5)

    def _name(self, task: int) -> str:
        return self.graph.task_names[task] if task >= 0 else "copy"

    # Loops --------------------------------------------------------------------------------------------------------------------

    def child(self, task: int, turn: int, compiled: Mapping[int, Program], branch: Timeline | None = None) -> Frame:
        """The frame of the body of loop task `task`, its first carried values in place; of an if that of `branch`, or what its condition takes."""
        op = self.graph.task_ops[task]
        if isinstance(op, If):
            return self._branch(task, op, turn, compiled, branch)
        loop = cast(Loop, op)
        program = self._program(self.plan.loops[task], compiled)
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
                elif name in loop.sequences and loop.stop is None and len(found) < loop.turns:
                    runs = f"loop {self._name(task)!r} runs {loop.turns} turns"
                    raise GraphError(f"{runs}, and its sequence {name!r} has {len(found)} elements: give as many, or a loop of fewer turns")
        frame = self._idle_frame(program, borrowed)
        if frame is None:
            frame = Frame(program, borrowed, memories=self._room(task, program), lock=self.lock)
            frame.transfer = self.transfer
            frame.rows_of = rows
        else:
            frame.renew(borrowed)
        frame.within = f" of loop {self._name(task)!r}{self._when(turn).replace(' in', ',', 1)}"
        frame._begin_loop(first)
        frame.gathering.begin(self, task, turn)
        return frame

    def _program(self, plan: Timeline, compiled: Mapping[int, Program]) -> Program:
        program = compiled.get(id(plan)) or self._programs.get(id(plan))
        if program is None:
            program = self._programs[id(plan)] = compile_plan(plan)
        return program

    def _idle_frame(self, program: Program, borrowed: Mapping[int, Any]) -> Frame | None:
        frame = None
        with suppress(IndexError):  # another turn may begin it too
            frame = self._idle.setdefault(id(program.plan), []).pop()
        return frame if frame is not None and frame.program is program and frame.takes(borrowed) else None

    def _room(self, task: int, program: Program) -> dict[str, Memory]:
        """Where the arenas of a body lie in those of this frame."""
        places, needed = self.plan.bodies.get(task, {}), program.plan.arenas
        return {node: self.memories[node].inside(start, needed[node]) for node, start in places.items() if node in needed}

    def _branch(self, task: int, op: If, turn: int, compiled: Mapping[int, Program], plan: Timeline | None) -> Frame:
        """The frame of a branch of if `task`: it borrows what it reads, and writes its outputs straight into the replicas of this frame."""
        values = self.graph.reads(task)
        generations = [r.generation for r in self._reads_again.get(task, ())] or [0] * len(values)
        if plan is None:
            plan = self.plan.loops[task]
            if not bool(self.locate(values[0], HOST, turn, generations[0])):
                if plan.otherwise is None:
                    raise InternalError(f"the plan has no branch `otherwise` of {self._name(task)!r}")
                plan = plan.otherwise
        program, graph = self._program(plan, compiled), plan.graph
        borrowed = {
            graph.inputs[name]: self.locate(value, HOST, turn, generation)
            for name, value, generation in zip(op.captured, values[1:], generations[1:], strict=True)
            if name in graph.inputs
        }
        outputs: dict[int, Any] = {}
        for name, value in zip(op.outputs, self.graph.writes(task), strict=True):
            inner = graph.outputs[name]
            if int(graph.value_task[inner]) >= 0 and inner not in outputs and array_form(graph.spec(inner)) is not None and value not in self.dynamic:
                outputs[inner] = self.buffer(value, HOST, turn)
        frame = self._idle_frame(program, borrowed)
        if frame is None:
            frame = Frame(program, borrowed, outputs, self._room(task, program), self.lock)
            frame.transfer = self.transfer
        else:
            frame.renew(borrowed, outputs)
        frame.ready()
        return frame

    def _end_branch(self, parent: Frame, task: int, turn: int) -> None:
        """Bring what no task of the branch has written in its place: inputs and constants that are outputs, objects, what is an output twice."""
        op = cast(If, parent.graph.task_ops[task])
        for name, value in zip(op.outputs, parent.graph.writes(task), strict=True):
            found = self.locate(self.graph.outputs[name], HOST, 0)
            if value in parent.dynamic or found is not parent.buffer(value, HOST, turn):
                parent._store(value, turn, found)

    def takes(self, borrowed: Mapping[int, Any]) -> bool:
        """True if the frame can run again with these inputs: arrays where there were arrays."""
        return all(isinstance(x, np.ndarray) == self._is_array.get(v) for v, x in borrowed.items())

    def retake(self, borrowed: Mapping[int, Any]) -> bool:
        """`renew` where the frame `takes` the inputs; False where it does not."""
        if not self.takes(borrowed):
            return False
        self.renew(borrowed)
        return True

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
            if value in self.passed:
                continue
            made_at = {node for v, node in self.offset if v == result} or {HOST}
            if HOST in made_at or result in self.dynamic:
                self._set_carried(value, HOST, found)

    def _set_carried(self, value: int, node: str, found: Any) -> None:
        """Put a first carried value where turn 0 looks for it: the slot of turn -1."""
        result = self.program.carried[value]
        if result in self.dynamic:
            self.cells[result, node, self.slot(result, node, -1)] = found
            return
        self.transfer(found, shaped(self.locate(result, node, -1), tuple(found.shape)))

    def end_loop(self, parent: Frame, task: int, turn: int) -> None:
        """Write last carried and collected values, or the outputs of a branch, into the parent's replicas on the host."""
        if self.loop is None:
            self._end_branch(parent, task, turn)
            parent.collect_loop(task, turn)
            parent._idle.setdefault(id(self.plan), []).append(self)
            return
        loop = cast(Loop, parent.graph.task_ops[task])
        outs = parent.graph.writes(task)
        ran = self.stopped_at + 1 if self.stopped_at is not None else self.turns
        for (name, _), value in zip(loop.carried, outs[: len(loop.carried)], strict=True):
            inner = self.graph.inputs[name]
            found = self.locate(self.program.carried[inner], self.node_of(self.program.carried[inner]), ran - 1) if ran else self._first[inner]
            parent._store(value, turn, found)
        self.gathering.end(parent, task, turn, ran)
        parent.collect_loop(task, turn)
        parent._idle.setdefault(id(self.plan), []).append(self)

    def node_of(self, value: int) -> str:
        """A memory node that holds a value: the host if it does."""
        root, _ = self.root(value, HOST)
        nodes = [n for v, n in self.offset if v == root]
        return nodes[0] if nodes and HOST not in nodes else HOST

    def _store(self, value: int, turn: int, found: Any) -> None:
        if value in self.dynamic:
            if isinstance(found, np.ndarray) and isinstance(self.graph.spec(value), Spec):
                found = found.copy()
            self.put(value, turn, found)
        else:
            self.transfer(found, self.buffer(value, HOST, turn))

    def put(self, value: int, turn: int, found: Any) -> None:
        """Let a value on the host be `found`, from `turn` on."""
        self.cells[value, HOST, self.slot(value, HOST, turn)] = found

    def fires(self, task: int, turn: int) -> bool:
        """False in the turns that a task of `every` leaves out."""
        return turn % self.every.get(task, 1) == 0

    def collect_loop(self, task: int, turn: int) -> None:
        """Gather what loop task `task` has made, or made in an earlier turn."""
        if self.loop is not None:
            for value in self.graph.writes(task):
                for collect in self.gathering.collectors(value):
                    collect(turn)

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
                mine = value in self.owned and value not in handed and (found is self.owned[value] or found.base is None)
                found = found if mine else np.array(found, order="C")
            handed.add(value)
            out[name] = found
        return out
