"""Pictures of a graph: plain text, Mermaid, Graphviz dot (SVG: svg.py). Loops show their body inside; tasks are grouped by their names up to `/`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hetsched.graph.graph import Graph, If, Loop, Nested, Task
from hetsched.report.text import plural, shorten


def graph_text(graph: Graph, name: str = "graph", most: int = 1000) -> str:
    """Every task in order with its op, what it reads and what it gives; bodies of loops set in. After `most` tasks the rest is only counted."""
    lines = [f"{name}: {plural(len(graph), 'task')}, {plural(len(graph.value_specs), 'value')}"]
    lines += [f"  input {n}: {graph.spec(v)!r}" for n, v in graph.inputs.items()]
    left = most
    for depth, task in _tasks(graph):
        if left == 0:
            lines.append(f"  ... and more: {plural(count_tasks(graph), 'task')} in all")
            break
        left -= 1
        lines.append(_task_line(task, "  " * (depth + 1)))
    for output, value in graph.outputs.items():
        lines.append(f"  output {output}: {graph.spec(value)!r}" + (f" = {graph.value_names[value]}" if graph.value_names[value] != output else ""))
    return "\n".join(lines)


def _tasks(graph: Graph, depth: int = 0) -> Iterator[tuple[int, Task]]:
    for task in graph.tasks:
        yield depth, task
        if isinstance(task.op, Nested):
            for part in task.op.parts.values():
                yield from _tasks(part, depth + 1)


def count_tasks(graph: Graph) -> int:
    """Tasks of a graph, of the bodies of its loops, and of the branches of its ifs."""
    return sum(1 for _ in _tasks(graph))


def _task_line(task: Task, indent: str) -> str:
    graph, op = task.graph, task.op
    reads = ", ".join(graph.value_names[v] for v in task.inputs)
    gives = ", ".join(f"{graph.spec(v)!r}" for v in task.outputs)
    if isinstance(op, If):
        sizes = f"{plural(len(op.then), 'task')} or {plural(len(op.otherwise), 'task')}"
        return f"{indent}{task.name}: if, {sizes} ({reads}) -> {gives}"
    if isinstance(op, Loop):
        return f"{indent}{task.name}: loop of {plural(op.turns, 'turn')}, {plural(len(op.body), 'task')} a turn ({reads}) -> {gives}"
    where = task.where
    at = f" on {', '.join(where.allow)}" if where is not None and where.allow else ""
    return f"{indent}{task.name}: {op.name}({reads}) -> {gives or 'nothing'}{at}"


def mermaid(graph: Graph, most: int = 400) -> str:
    """A Mermaid flowchart. Of a graph with more than `most` tasks, tasks of one group are drawn as one."""
    return drawn(graph, most, _Mermaid())


def dot(graph: Graph, name: str = "graph", most: int = 2000) -> str:
    """A Graphviz digraph. Of a graph with more than `most` tasks, tasks of one group are drawn as one."""
    return drawn(graph, most, _Dot(name))


class _Mermaid:
    head, tail = "flowchart TD", ""

    def box(self, key: str, lines: list[str], shape: str) -> str:
        text = "<br/>".join(self._safe(line) for line in lines)
        left, right = {"input": ('(["', '"])'), "output": ('[["', '"]]'), "task": ('["', '"]')}[shape]
        return f"{key}{left}{text}{right}"

    def open(self, key: str, title: str) -> str:
        return f'subgraph {key}["{self._safe(title)}"]'

    def close(self) -> str:
        return "end"

    def edge(self, before: str, after: str, text: str, order: bool) -> str:
        label = f'|"{self._safe(text)}"|' if text else ""
        return f"{before} {'-.->' if order else '-->'}{label} {after}"

    @staticmethod
    def _safe(text: str) -> str:
        for bad, good in (("#", "#35;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;"), ("\n", " ")):
            text = text.replace(bad, good)
        return text


class _Dot:
    tail = "}"

    def __init__(self, name: str) -> None:
        self.head = f'digraph "{self._safe(name)}" {{\n  node [shape=box, fontname="sans-serif"]; edge [fontname="sans-serif", fontsize=10];'

    def box(self, key: str, lines: list[str], shape: str) -> str:
        style = {"input": ", shape=oval", "output": ", shape=folder", "task": ""}[shape]
        label = "\\n".join(self._safe(line) for line in lines)
        return f'{key} [label="{label}"{style}];'

    def open(self, key: str, title: str) -> str:
        return f'subgraph cluster_{key} {{ label="{self._safe(title)}";'

    def close(self) -> str:
        return "}"

    def edge(self, before: str, after: str, text: str, order: bool) -> str:
        options = [f'label="{self._safe(text)}"'] * bool(text) + ["style=dashed"] * order
        return f"{before} -> {after}{' [' + ', '.join(options) + ']' if options else ''};"

    @staticmethod
    def _safe(text: str) -> str:
        return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")


def drawn(graph: Graph, most: int, style: Any) -> str:
    """A picture of `graph` in a form: boxes, frames around them (`open`, `close`) and arrows, each as a line of text of `style`."""
    lines: list[str] = []
    edges: dict[tuple[str, str, str, bool], None] = {}
    _draw(graph, "n", "  ", lines, edges, style, most)
    lines += ["  " + style.edge(a, b, text, order) for a, b, text, order in edges]
    return "\n".join([style.head, *lines, *([style.tail] if style.tail else [])]) + "\n"


def _draw(graph: Graph, key: str, indent: str, lines: list[str], edges: dict[tuple[str, str, str, bool], None], style: Any, most: int) -> None:
    """Append the boxes of `graph` to `lines` and its arrows to `edges`; the keys of boxes begin with `key`."""
    whole = len(graph) <= most
    for i, (name, value) in enumerate(graph.inputs.items()):
        lines.append(indent + style.box(f"{key}i{i}", [name, repr(graph.spec(value))], "input"))
    groups: dict[str, list[int]] = {}
    for t, name in enumerate(graph.task_names):
        groups.setdefault(name.partition("/")[0] if "/" in name or not whole else "", []).append(t)
    box_of: dict[int, str] = {}
    for g, (group, tasks) in enumerate(groups.items()):
        if not whole:
            box_of.update((t, f"{key}g{g}") for t in tasks)
            counts = [(sum(isinstance(graph.task_ops[t], kind) for t in tasks), noun) for kind, noun in ((Loop, "loop"), (If, "if"))]
            text = ", ".join([plural(len(tasks), "task"), *(plural(n, noun) for n, noun in counts if n)])
            lines.append(indent + style.box(f"{key}g{g}", [group, text], "task"))
            continue
        deeper = indent + "  " * bool(group)
        if group:
            lines.append(indent + style.open(f"{key}g{g}", group))
        for t in tasks:
            box_of[t] = f"{key}t{t}"
            op, name = graph.task_ops[t], graph.task_names[t]
            short = name.partition("/")[2] if group else name
            if isinstance(op, If):
                box_of[t] = f"{key}t{t}head"
                lines.append(deeper + style.open(f"{key}t{t}", f"if {short}"))
                lines.append(f"{deeper}  " + style.box(box_of[t], [short, "if"], "task"))
                for i, (part, branch) in enumerate(op.parts.items()):
                    lines.append(f"{deeper}  " + style.open(f"{key}t{t}b{i}", part[:-1]))
                    _draw(branch, f"{key}t{t}b{i}_", deeper + "    ", lines, edges, style, most)
                    lines.append(f"{deeper}  " + style.close())
                lines.append(deeper + style.close())
            elif isinstance(op, Loop):
                box_of[t] = f"{key}t{t}head"
                lines.append(deeper + style.open(f"{key}t{t}", f"loop {short}: {plural(op.turns, 'turn')}"))
                lines.append(f"{deeper}  " + style.box(box_of[t], [short, f"loop of {plural(op.turns, 'turn')}"], "task"))
                _draw(op.body, f"{key}t{t}_", deeper + "  ", lines, edges, style, most)
                lines.append(deeper + style.close())
            else:
                lines.append(deeper + style.box(box_of[t], [short, op.name], "task"))
        if group:
            lines.append(indent + style.close())
    _arrows(graph, key, lines, indent, edges, box_of, style)


def _arrows(
    graph: Graph, key: str, lines: list[str], indent: str, edges: dict[tuple[str, str, str, bool], None], box_of: Mapping[int, str], style: Any
) -> None:
    source = {v: f"{key}i{i}" for i, v in enumerate(graph.inputs.values())}
    producer = graph.value_task.tolist()
    source.update((v, box_of[t]) for v, t in enumerate(producer) if t >= 0)
    for t in range(len(graph)):
        for value in dict.fromkeys(graph.reads(t)):
            if value in source and source[value] != box_of[t]:
                edges[source[value], box_of[t], shorten(repr(graph.spec(value)), 40), False] = None
    for before, after in graph.after:
        if box_of[before] != box_of[after]:
            edges[box_of[before], box_of[after], "", True] = None
    for i, (name, value) in enumerate(graph.outputs.items()):
        lines.append(indent + style.box(f"{key}o{i}", [name], "output"))
        if value in source:
            edges[source[value], f"{key}o{i}", "", False] = None


PICTURES: Mapping[str, Callable[[Graph], str]] = {"mmd": mermaid, "dot": dot}
