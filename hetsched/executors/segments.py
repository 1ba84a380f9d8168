"""Segments compiled when hot: a step as straight-line Python, with kernels, inputs and outputs as names of the code, and nothing to interpret.

What is the same in every run (arrays of the arena, kernels, attributes) is a global of the code. What a run brings (inputs, fresh outputs) is
fetched from the frame once, when the code begins; elements of sequences are sliced once a turn; objects that only the segment reads stay in locals.
A launch is one line, so that a line of a traceback names the task. What has bounded dimensions is called as it was before.

Kernels may say which calls of the array library they come to for given arrays (`Op`'s `direct`), and plain functions are called with their values.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from hetsched.executors.memory import HERE
from hetsched.executors.process import is_alone
from hetsched.executors.steps import Step
from hetsched.graph.function import put
from hetsched.graph.guard import is_ours, read_only
from hetsched.graph.op import Op, Operand
from hetsched.graph.ops.shape import view_offset
from hetsched.graph.spec import Spec, array_form
from hetsched.machine import HOST
from hetsched.timeline import Launch, Replica

if TYPE_CHECKING:
    from hetsched.executors.frame import Frame

# Launches in one function: what one function makes and another reads is kept in a list, which costs each of the two 10 ns more than a local.
CHUNK = 16384
# Constants named this often in a function are its parameters: a local takes fewer bytes of code than a global, 10 % of a call that does nothing.
OFTEN = 4
PLAIN = (np.copyto, np.ndarray.reshape, np.ndarray.transpose, operator.getitem)  # they use no BLAS
MOST_PARAMETERS = 200


class Piece(NamedTuple):
    """A function of the code, and the task of each of its lines. is_calm, is_ours: see `Segment`."""

    run: Callable[[int], None]
    tasks: list[int]
    is_calm: bool
    is_ours: bool


class Segment:
    """The code of a step. `run(turn)` does it.

    is_ours: it calls the array library for ops of hetsched's own, and nothing that could wait for somebody. is_calm: nor anything that BLAS would do
    with several threads, whatever its limit is.
    """

    def __init__(self, pieces: list[Piece], between: list[Any]) -> None:
        """between: the list in which the pieces hand each other objects."""
        self.pieces = pieces
        self.between = between
        self.is_calm = all(piece.is_calm for piece in pieces)
        self.is_ours = all(piece.is_ours for piece in pieces)
        self.run: Callable[[int], None] = pieces[0].run if len(pieces) == 1 else self._run_all

    def _run_all(self, turn: int) -> None:
        try:
            for piece in self.pieces:
                piece.run(turn)
        finally:
            self.between[:] = [None] * len(self.between)

    def task_of(self, error: BaseException) -> int:
        """The task in whose line an error was raised, -1 where none was."""
        at = error.__traceback__
        known = {cast(FunctionType, piece.run).__code__: piece.tasks for piece in self.pieces}
        while at is not None:
            tasks = known.get(at.tb_frame.f_code)
            if tasks is not None:
                return tasks[at.tb_lineno - 1]
            at = at.tb_next
        return -1


# (launch, kernel, memory node, workspace, attributes) -> a function of the turn and of who does it: a launch that finds its arrays when it runs.
Later = Callable[[Launch, Any, str, Any, Mapping[str, Any]], Callable[..., None]]


def compile_segment(frame: Frame, step: Step, turn: int, later: Later) -> Segment:
    """The code of a step of launches on the host, for the ring slots of `turn`."""
    commands = [c for i in step.spans if isinstance(c := frame.plan.spans[i].command, Launch)]
    lives = _lifetimes(frame, commands)
    between: list[Any] = [None] * sum(made // CHUNK != last // CHUNK for made, last in lives.values())
    room = iter(range(len(between)))
    # Where an object of several pieces lies between them.
    held = {value: f"between[{next(room)}]" for value, (made, last) in lives.items() if made // CHUNK != last // CHUNK}
    parts = range(0, len(commands), CHUNK) if commands else (0,)
    return Segment([_Writer(frame, step, turn, later, commands[i : i + CHUNK], i, lives, held, between).piece() for i in parts], between)


def _lifetimes(frame: Frame, commands: list[Launch]) -> dict[int, tuple[int, int]]:
    """Objects that only these launches read -> the launch that makes it, and the last that reads it, by their positions in `commands`."""
    graph = frame.graph
    if frame.loop is not None:
        return {}
    made = {r.value: i for i, c in enumerate(commands) for r in c.writes if array_form(graph.spec(r.value)) is None}
    if not made:
        return {}
    position = {c.task: i for i, c in enumerate(commands)}
    inner = {v for v in made if (v, HOST) not in frame.copied} - set(graph.outputs.values())
    last = dict(made)
    starts, values = graph.input_start.tolist(), graph.input_values.tolist()
    for task, op in enumerate(graph.task_ops):
        for value in values[starts[task] : starts[task + 1]]:
            if value in inner:
                at = position.get(task, -1)
                if at < 0 or (isinstance(op, Op) and op.view):
                    inner.discard(value)
                else:
                    last[value] = max(last[value], at)
    return {value: (made[value], last[value]) for value in made if value in inner}


def _is_calm(function: Any, args: list[Any]) -> bool:
    """True for a call of NumPy's that no BLAS does, or one so small that it runs on one thread."""
    if function is np.dot:
        (m, k), n = args[0].shape, args[1].shape[1]
        return is_alone(m, k, n)
    if isinstance(function, np.ufunc):
        return function is not np.matmul
    return function in PLAIN or getattr(function, "__name__", "") == "fill"


@lru_cache(maxsize=64)
def _compiled(source: str) -> CodeType:
    """The code object of the one function in `source`; frames of one plan write the same source."""
    module = compile(source, "<hetsched segment>", "exec")
    return next(c for c in module.co_consts if isinstance(c, CodeType))


class _Writer:
    """Writes the function of some launches of a step."""

    def __init__(
        self, frame: Frame, step: Step, turn: int, later: Later, commands: list[Launch], first: int, lives: Mapping[int, tuple[int, int]],
        held: Mapping[int, str], between: list[Any],
    ) -> None:  # fmt: skip
        """first: position of the first of these launches in the step. lives: see `_lifetimes`. held: objects that other pieces read -> where."""
        self.frame, self.owner, self.turn, self.later, self.commands = frame, step.owner, turn, later, commands
        self.first, self.lives, self.held = first, lives, held
        self.names: dict[str, Any] = {
            "np": np, "int64": np.int64, "array": np.array, "HERE": HERE, "locate": frame.locate,
            "borrowed": frame.borrowed, "owned": frame.owned, "cells": frame.cells, "put": put, "read_only": read_only, "between": between,
        }  # fmt: skip
        self.known: dict[int, str] = {}  # id of a constant -> its name
        self.kept: list[Any] = []  # constants, so that an id means one object
        self.uses: dict[str, int] = {}  # name of a constant -> how often it stands in the code
        self.lines: list[str] = ["def segment(turn):"]
        self.tasks: list[int] = [-1]
        self.task = -1
        self.fetched: dict[Any, str] = {}  # what has been fetched or sliced in this function -> its local name
        self.objects: dict[int, str] = dict(held)  # object value -> the expression that holds it
        self.free: list[str] = []
        self.forms: dict[str, Spec] = {}  # what the expressions of the launch at hand are
        self.count = 0
        self.is_calm = self.is_ours = True
        self.last_use: dict[int, list[int]] = {}  # position in the step -> objects in locals that nobody reads after it
        for value, (_, last) in lives.items():
            if value not in held:
                self.last_use.setdefault(last, []).append(value)

    def piece(self) -> Piece:
        """The function, with its constants."""
        done = -1  # the launch that the one before it has done too
        for position, command in enumerate(self.commands, self.first):
            self.task = command.task
            if position != done and self.frame.fires(command.task, self.turn):
                if self._pair(command, self.commands[position - self.first + 1 :][:1]):
                    done = position + 1
                else:
                    self._launch(command)
            self._collect(command)  # also what an earlier turn has made
            for value in self.last_use.get(position, ()):
                self.free.append(self.objects.pop(value))
        if len(self.lines) == 1:
            self._line("pass")
        often = sorted((name for name, n in self.uses.items() if n >= OFTEN), key=lambda name: -self.uses[name])[:MOST_PARAMETERS]
        self.lines[0] = f"def segment({', '.join(['turn', *(f'{name}=None' for name in often)])}):"
        code = _compiled("\n".join(self.lines))
        return Piece(FunctionType(code, self.names, "segment", tuple(self.names[name] for name in often)), self.tasks, self.is_calm, self.is_ours)

    # Names --------------------------------------------------------------------------------------------------------------------

    def _line(self, text: str) -> None:
        self.lines.append(" " + text)
        self.tasks.append(self.task)

    def _constant(self, thing: Any) -> str:
        name = self.known.get(id(thing))
        if name is None:
            name = self.known[id(thing)] = f"k{len(self.kept)}"
            self.names[name] = thing
            self.kept.append(thing)
        self.uses[name] = self.uses.get(name, 0) + 1
        return name

    def _fetch(self, key: Any, text: str) -> str:
        """The local that holds `text`, evaluated once."""
        name = self.fetched.get(key)
        if name is None:
            self.count += 1
            name = self.fetched[key] = f"x{self.count}"
            self._line(f"{name} = {text}")
        return name

    # Values -------------------------------------------------------------------------------------------------------------------

    def _read(self, value: int, turn: int, generation: int = 0) -> str:
        """An expression for the array or object that a launch of `turn` reads; `frame.locate` says the same for one turn."""
        frame = self.frame
        held = self.objects.get(value)
        if held is not None and turn == self.turn:
            return held
        if generation:
            return self._constant(frame.locate(value, HOST, turn, generation)) if value not in frame.dynamic else self._cell(value, generation)
        if (value, HOST) not in frame.copied:
            if value == frame.turn_value:
                return self._fetch("turn", "array(turn, int64)") if turn == self.turn else self._found(value, turn)
            if value in frame.sequences:
                return self._element(value, turn)
            if value in frame.graph.constants:
                return self._constant(frame.graph.constants[value])
            if value in frame.program.carried:
                return self._found(value, turn) if value in frame.passed else self._read(frame.program.carried[value], turn - 1)
            if value in frame.borrowed:
                return self._fetch(("borrowed", value), f"borrowed[{value}]")
        mine = value in frame.owned
        if mine and value not in frame.dynamic:
            return self._fetch(("owned", value), f"owned[{value}]")
        task = int(frame.graph.value_task[value])
        if task >= 0 and (value, HOST) not in frame.copied and not mine:
            op = frame.graph.task_ops[task]
            if isinstance(op, Op) and op.view:
                return self._view(op, task, value, turn)
        if value in frame.dynamic:
            return self._cell(value, frame.slot(value, HOST, turn))
        return self._constant(frame.buffer(value, HOST, turn))

    def _cell(self, value: int, slot: int) -> str:
        return f"cells[{self._constant_key(value, slot)}]"

    def _constant_key(self, value: int, slot: int) -> str:
        name = self.fetched.get((value, slot))
        if name is None:
            name = self.fetched[value, slot] = self._constant((value, HOST, slot))
        return name

    def _found(self, value: int, turn: int) -> str:
        """What `locate` finds, asked each time."""
        back = self.turn - turn
        return f"locate({value}, {HOST!r}, turn{f' - {back}' if back else ''})"

    def _element(self, value: int, turn: int) -> str:
        """Element `turn` of a sequence."""
        frame = self.frame
        if turn != self.turn:
            return self._found(value, turn)
        whole = self._fetch(("borrowed", value), f"borrowed[{value}]")
        rows = frame.rows_of.get(value)
        if rows is not None:
            n = cast(Spec, frame.graph.spec(value)).bounds[0]
            return self._fetch(("element", value), f"{whole}[turn * {n} : min(turn * {n} + {n}, {rows})]")
        index = "turn, ..." if isinstance(frame.borrowed[value], np.ndarray) else "turn"
        return self._fetch(("element", value), f"{whole}[{index}]")

    def _view(self, op: Op, task: int, value: int, turn: int) -> str:
        """A view: a constant where its base is, else the same bytes under another shape, once a run."""
        frame = self.frame
        base = frame.graph.reads(task)[0]
        specs = frame.specs(turn)
        source, spec = specs[base], specs[value]
        if value not in frame.dynamic and frame.root(value, HOST)[0] not in (frame.borrowed.keys() | frame.owned.keys()):
            return self._constant(self._kept_view(value, turn))
        if not (isinstance(source, Spec) and isinstance(spec, Spec)) or source.is_bounded or spec.is_bounded:
            return self._found(value, turn)
        text = self._read(base, turn, frame.view_generation(task))
        first = view_offset(op, source, frame.attributes(task, turn)) // spec.dtype.itemsize
        if spec.size != source.size:
            text = f"{text}.reshape(-1)[{first}:{first + spec.size}]"
        return self._fetch(("view", value, turn), f"{text}.reshape({spec.bounds})")

    def _kept_view(self, value: int, turn: int) -> Any:
        key = ("constant view", value, turn)
        if key not in self.fetched:
            self.fetched[key] = self._constant(self.frame.locate(value, HOST, turn))
        return self.names[self.fetched[key]]

    # Launches -----------------------------------------------------------------------------------------------------------------

    def _pair(self, command: Launch, behind: list[Launch]) -> bool:
        """Two launches as one, where the kernel of the first has a rule for it and nobody but the second reads what it makes."""
        frame, graph = self.frame, self.frame.graph
        if not behind or len(command.writes) != 1 or len(behind[0].writes) != 1 or [r.value for r in behind[0].reads] != [command.writes[0].value]:
            return False
        if any(isinstance(op := graph.task_ops[c.task], Op) and op.view for c in (command, behind[0])):
            return False
        rules = getattr(frame.bindings.kernel_of(command.task, self.owner), "direct_then", None)
        if rules is None:
            return False
        between, last = command.writes[0], behind[0].writes[0]
        rule = rules.get(frame.bindings.kernel_of(behind[0].task, self.owner))
        if rule is None or not frame.fires(behind[0].task, self.turn) or between.value in graph.outputs.values():
            return False
        dynamic = any(r.value in frame.dynamic or r.value in frame.owned for r in (between, last))
        if dynamic or (between.value, HOST) in frame.copied or int((graph.input_values == between.value).sum()) != 1:
            return False
        reads = [self._operand_of(r) for r in command.reads]
        calls = rule(
            reads, frame.buffer(between.value, HOST, self.turn), frame.buffer(last.value, HOST, self.turn), frame.workspace(command.task),
            frame.attributes(command.task, self.turn), frame.attributes(behind[0].task, self.turn),
        )  # fmt: skip
        if calls is None:
            return False
        self._calls(calls)
        return True

    def _operand_of(self, replica: Replica) -> Any:
        """`_operand` of what a launch reads."""
        text = self._read(replica.value, self.turn, replica.generation)
        form = array_form(self.frame.specs(self.turn)[replica.value])
        if form is not None:
            self.forms[text] = form
        return self._operand(text)

    def _launch(self, command: Launch) -> None:
        frame, task = self.frame, command.task
        if frame.bindings.is_alias(command, HOST):
            return
        op = cast(Op, frame.graph.task_ops[task])
        kernel = frame.bindings.kernel_of(task, self.owner)
        self.is_ours = self.is_ours and not op.waits
        attributes, workspace = frame.attributes(task, self.turn), frame.workspace(task)
        specs = frame.specs(self.turn)
        forms = [array_form(specs[r.value]) for r in command.writes]
        # Bounded outputs take their shapes from what is read when it runs.
        if any(form is not None and (form.is_bounded or r.value in frame.dynamic) for form, r in zip(forms, command.writes, strict=True)):
            self.is_calm = self.is_ours = False
            self._line(f"{self._constant(self.later(command, kernel, HOST, workspace, attributes))}(turn, HERE)")
            return
        reads = [self._read(r.value, self.turn, r.generation) for r in command.reads]
        writes = [
            None if form is None else self._fetch(("owned", r.value), f"owned[{r.value}]") if r.value in frame.owned
            else self._constant(frame.buffer(r.value, HOST, self.turn))
            for form, r in zip(forms, command.writes, strict=True)
        ]  # fmt: skip
        self.forms = {x: form for x, form in zip(writes, forms, strict=True) if x is not None and form is not None}
        self.forms |= {x: form for x, r in zip(reads, command.reads, strict=True) if (form := array_form(specs[r.value])) is not None}
        function = getattr(kernel, "function", None)
        if function is not None:
            self._function(command, function, op, reads, writes, attributes)
        elif None in writes:
            self._objects(command, kernel, reads, writes, workspace, attributes)
        else:
            self._arrays(kernel, reads, cast(list[str], writes), workspace, attributes)

    def _kernel(self, kernel: Any) -> str:
        """The name of a kernel that is called as it is."""
        self.is_calm = False
        self.is_ours = self.is_ours and is_ours(kernel)
        return self._constant(kernel)

    def _arrays(self, kernel: Any, reads: list[str], writes: list[str], workspace: Any, attributes: Mapping[str, Any]) -> None:
        names = self.names
        direct = getattr(kernel, "direct", None)
        if direct is not None:
            calls = direct([self._operand(x) for x in reads], [self._operand(x) for x in writes], workspace, attributes)
            if calls is not None:
                self._calls(calls)
                return
        ins = self._constant(tuple(names[x] for x in reads)) if all(x in names for x in reads) else f"({''.join(x + ', ' for x in reads)})"
        outs = self._constant(tuple(names[x] for x in writes)) if all(x in names for x in writes) else f"({''.join(x + ', ' for x in writes)})"
        self._line(f"{self._kernel(kernel)}(np, {ins}, {outs}, {self._constant(workspace)}, {self._constant(attributes)})")

    def _operand(self, text: str) -> Any:
        """The array that an expression means, where it is known; else a stand-in of its shape and dtype."""
        if text in self.names:
            return self.names[text]
        form = self.forms[text]
        return Operand(form.bounds, form.dtype, text)

    def _calls(self, calls: list[tuple[Any, ...]]) -> None:
        for target, function, *args in calls:
            self.is_calm = self.is_calm and _is_calm(function, args)
            names = [x.name if isinstance(x, Operand) else self._constant(x) for x in args]
            if isinstance(function, np.ufunc) and len(names) > function.nin:
                names[-1] = f"out={names[-1]}"
            text = f"{self._constant(function)}({', '.join(names)})"
            if target is not None:
                self.count += 1
                target.name = f"x{self.count}"
                text = f"{target.name} = {text}"
            self._line(text)

    def _objects(
        self, command: Launch, kernel: Any, reads: list[str], writes: list[str | None], workspace: Any, attributes: Mapping[str, Any]
    ) -> None:
        """A launch some of whose outputs are objects: the kernel puts them into the list."""
        ins = "".join(f"{x}, " for x in reads)
        self._line(f"made = [{', '.join(x or 'None' for x in writes)}]")
        self._line(f"{self._kernel(kernel)}(np, ({ins}), made, {self._constant(workspace)}, {self._constant(attributes)})")
        for i, (r, target) in enumerate(zip(command.writes, writes, strict=True)):
            if target is None:
                self._line(f"{self._target(r.value)} = made[{i}]")

    def _function(self, command: Launch, function: Any, op: Op, reads: list[str], writes: list[str | None], attributes: Mapping[str, Any]) -> None:
        """A plain function: called with its values, and what it returns are its outputs."""
        options = f"**{self._constant(attributes)}" if op.attributes else ""
        reads = [self._shut(x, r.value) for x, r in zip(reads, command.reads, strict=True)]
        call = f"{self._kernel(function)}({', '.join([*reads, *([options] if options else [])])})"
        if len(writes) == 1:
            target = writes[0]
            self._line(f"{self._target(command.writes[0].value)} = {call}" if target is None else f"put({target}, {call})")
            return
        self._line(f"made = {call}")
        for i, (r, target) in enumerate(zip(command.writes, writes, strict=True)):
            self._line(f"{self._target(r.value)} = made[{i}]" if target is None else f"put({target}, made[{i}])")

    def _shut(self, name: str, value: int) -> str:
        """What stands for array `value` under `name`, as a function may have it: read-only. What is a constant is shut once."""
        if array_form(self.frame.graph.spec(value)) is None or value in self.frame.borrowed:
            return name
        if name not in self.names:
            return f"read_only({name})"
        shut = self.fetched.get(("shut", name))
        if shut is None:
            shut = self.fetched["shut", name] = self._constant(read_only(self.names[name]))
        return shut

    def _target(self, value: int) -> str:
        """Where an object goes: a local variable where only this function reads it, a list where other pieces do, else its cell."""
        if value in self.held:
            return self.held[value]
        if value in self.lives:
            if self.free:
                name = self.free.pop()
            else:
                self.count += 1
                name = f"v{self.count}"
            self.objects[value] = name
            return name
        return self._cell(value, self.frame.slot(value, HOST, self.turn))

    def _collect(self, command: Launch) -> None:
        if self.frame.loop is None:
            return
        for r in command.writes:
            for collect in self.frame.gathering.collectors(r.value):
                self._line(f"{self._constant(collect)}(turn)")
