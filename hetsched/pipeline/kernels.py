"""The section `kernels:` of a pipeline: a user's own kernels, as ops called `kernels.NAME`. What they mean is told in `hetsched.graph.kernel`.

kernels:
  saxpy:
    arguments: {x: in float32[n], y: in float32[n], out: out float32[n], a: option float32 = 2.0, n: value int64 = n}
    opencl: |
      __kernel void saxpy(__global const float *x, __global const float *y, __global float *out, const float a, const long n) { ... }
    cuda: {file: kernels/saxpy.cu}
    size: n
    cost: {flops: 2 * n}
    check: tensor.add
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from io import BytesIO, TextIOWrapper
from typing import Any

from hetsched.errors import FileError, GraphError
from hetsched.graph.formats import reading
from hetsched.graph.kernel import Source, kernel, parse_argument
from hetsched.graph.op import Op
from hetsched.pipeline import paths, values
from hetsched.pipeline.mistakes import Findings
from hetsched.pipeline.reader import BROKEN, Item, Node

PREFIX = "kernels."
KEYS = ("arguments", "cuda", "opencl", "function", "size", "group", "cost", "check", "doc")
COST_KEYS = ("flops", "bytes")
MOST_BYTES = 1 << 20
_QUOTED = re.compile(r"'([^']*)'")


def section_of(root: Node) -> Item | None:
    """The section `kernels` of a file, where it has one."""
    found = root.value.get("kernels") if isinstance(root.value, dict) else None
    return found if isinstance(found, Item) else None


class Sources:
    """The files of source that a pipeline names, each read once: what is built is what consent was asked for, whatever becomes of the file meanwhile.

    What is wrong with them is told by `read`. Nothing is read before it is asked for.
    """

    def __init__(self, root: Node, folder: str) -> None:
        self._place: dict[str, str] = {}  # as it is written -> the file
        self._found: dict[str, bytes | FileError] = {}
        section = section_of(root)
        for entry in section.value.value.values() if section is not None and isinstance(section.value.value, dict) else ():
            for language in ("cuda", "opencl"):
                item = entry.value.value.get(language) if isinstance(entry.value.value, dict) else None
                file = item.value.value.get("file") if item is not None and isinstance(item.value.value, dict) else None
                if file is not None and isinstance(file.value.value, str):
                    self._place[file.value.value] = os.path.realpath(os.path.join(folder, file.value.value))

    def content(self, text: str) -> bytes:
        """The bytes of the file that the pipeline calls `text`, at most one more than it may have. `FileError` where it cannot be read."""
        path = self._place[text]
        if path not in self._found:
            try:
                self._found[path] = _bytes_of(path)
            except FileError as error:
                self._found[path] = error
        found = self._found[path]
        if isinstance(found, FileError):
            raise found
        return found

    def digest(self, sha256: str) -> str:
        """What consent is given to: the file, by its SHA-256, and the files of source that it names, byte by byte."""
        if not self._place:
            return sha256
        whole = hashlib.sha256(sha256.encode())
        for text in sorted({path: text for text, path in self._place.items()}.values(), key=self._place.__getitem__):
            try:
                whole.update(hashlib.sha256(self.content(text)).digest())
            except FileError:
                whole.update(b"absent")
        return whole.hexdigest()


def _bytes_of(path: str) -> bytes:
    with reading(path, "a source file"):
        # A pipe that nobody writes to would be waited for.
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(file, "rb") as stream:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise FileError(f"{path}: this is no file of text")
            return stream.read(MOST_BYTES + 1)


def read(root: Node, folder: str, sources: Sources, consent: bool, findings: Findings) -> tuple[dict[str, Op], set[str]]:
    """The kernels of a file as ops by name; and the names of those that have mistakes, which are noted. Without `consent` that is one."""
    section = section_of(root)
    if section is None or section.value.value is BROKEN or not values.is_map(section.value, "kernels", findings):
        return {}, set()
    if section.value.value and not consent:
        findings.add(section.key, "the pipeline brings native code (`kernels`), which needs consent", "trust")
    ops: dict[str, Op] = {}
    wrong: set[str] = set()
    for name, (key, node) in section.value.value.items():
        before = len(findings.found)
        op = _Entry(name, key, node, folder, sources, consent, findings).op() if values.check_name(name, key, "a kernel", findings) else None
        if op is not None and len(findings.found) == before:
            ops[op.name] = op
        else:
            wrong.add(PREFIX + name)
    return ops, wrong


class _Entry:
    """One kernel of a file."""

    def __init__(self, name: str, key: Node, node: Node, folder: str, sources: Sources, consent: bool, findings: Findings) -> None:
        self.name, self.key, self.node = name, key, node
        self.folder, self.sources, self.consent, self.findings = folder, sources, consent, findings
        self.what = f"kernel {name!r}"

    def op(self) -> Op | None:
        """The kernel as an op; None where something is wrong with it, which is noted."""
        findings = self.findings
        if not values.is_map(self.node, self.what, findings):
            return None
        items: dict[str, Item] = self.node.value
        values.known_keys(items, KEYS, self.what, findings)
        for needed, example in (("arguments", "arguments: {x: in float32[n], y: out float32[n]}"), ("size", "size: n")):
            if needed not in items:
                findings.add(self.key, f"{self.what} has no {needed}; add it, such as `{example}`", "missing-key")
        sources = {language: self._source(items[language].value) for language in ("cuda", "opencl") if language in items}
        arguments = self._arguments(items.get("arguments"))
        if any(s is None for s in sources.values()) or arguments is None or "size" not in items:
            return None
        cost = items["cost"].value if "cost" in items else None
        costs: dict[str, Item] = cost.value if values.is_map(cost, f"`cost` of {self.what}", findings) and cost is not None else {}
        values.known_keys(costs, COST_KEYS, f"`cost` of {self.what}", findings)
        group = values.plain(items["group"].value, findings) if "group" in items else None
        size = values.plain(items["size"].value, findings)
        if any(not isinstance(s, (str, int)) or isinstance(s, bool) for s in (size if isinstance(size, list) else [size])):
            findings.add(items["size"].value, f"size must be an expression or a list of them, such as [n, m], not {items['size'].value.kind}", "type")
            return None
        if group is not None and any(type(g) is not int for g in (group if isinstance(group, list) else [group])):
            findings.add(items["group"].value, f"group must be a whole number or a list of them, not {items['group'].value.kind}", "type")
            return None
        function = values.text(items["function"].value, "function", findings) if "function" in items else None
        try:
            return kernel(
                PREFIX + self.name, arguments, size=size, cuda=sources.get("cuda"), opencl=sources.get("opencl"), function=function or self.name,
                group=group, flops=self._number(costs.get("flops"), 0), nbytes=self._number(costs.get("bytes"), None),
                check=values.text(items["check"].value, "check", findings) if "check" in items else None,
                doc=values.text(items["doc"].value, "doc", findings) or "" if "doc" in items else "",
            )  # fmt: skip
        except GraphError as error:
            for problem in error.problems:
                findings.add(self._blame(problem, items), problem.replace(repr(PREFIX + self.name), repr(self.name), 1), "kernel")
        return None

    def _number(self, item: Item | None, otherwise: Any) -> Any:
        if item is None:
            return otherwise
        found = values.plain(item.value, self.findings)
        if isinstance(found, (str, int, float)) and not isinstance(found, bool):
            return found
        self.findings.add(item.value, f"a cost must be a number or an expression, not {item.value.kind}", "type")
        return otherwise

    def _arguments(self, item: Item | None) -> dict[str, str] | None:
        if item is None or not values.is_map(item.value, f"`arguments` of {self.what}", self.findings):
            return None
        out: dict[str, str] = {}
        before = len(self.findings.found)
        for name, (_, node) in item.value.value.items():
            text = values.text(node, f"argument {name!r}", self.findings)
            if text is None:
                continue
            try:
                parse_argument(name, text)
            except GraphError as error:
                for problem in error.problems:
                    self.findings.add(node, problem, "kernel")
            out[name] = text
        return out if len(self.findings.found) == before else None

    def _source(self, node: Node) -> Source | None:
        """Source text, from the file itself or from the one it names, and where it stands."""
        findings = self.findings
        if isinstance(node.value, dict):
            values.known_keys(node.value, ("file",), f"a source of {self.what}", findings)
            text = values.text(node.value["file"].value, "file", findings) if "file" in node.value else None
            if text is None:
                findings.add(node, "a source is a text, or `{file: PATH}`", "kernel")
                return None
            return self._file(text, node.value["file"].value)
        text = values.text(node, "a source", findings)
        if text is None:
            return None
        opening = findings.lines[node.line - 1][node.column - 1 :] if 0 < node.line <= len(findings.lines) else ""
        if not opening.startswith("|"):
            return Source(text, findings.path, node.line, node.column - 1)
        after = findings.lines[node.line :]
        first = next((line for line in after if line.strip()), "")
        # Blank lines at the start of a block are lines of the text as well, so its first line is the one behind the `|`.
        return Source(text, findings.path, node.line + 1, len(first) - len(first.lstrip(" ")))

    def _file(self, text: str, place: Node) -> Source | None:
        found = paths.locate(self.folder, text, consent=self.consent)
        problem = found if isinstance(found, paths.PathProblem) else paths.missing(found, text)
        if problem is not None or isinstance(found, paths.PathProblem):
            assert problem is not None
            self.findings.add(place, problem.message, problem.rule)
            return None
        try:
            data = self.sources.content(text)
            # Line ends as Python reads them.
            source = TextIOWrapper(BytesIO(data), encoding="utf-8").read()
        except (FileError, UnicodeDecodeError) as error:
            self.findings.add(place, f"{text}: {error}; replace the file, or name another", "damaged")
            return None
        if len(data) > MOST_BYTES:
            self.findings.add(place, f"{text!r} has more than {MOST_BYTES} bytes; a kernel is shorter", "size")
            return None
        return Source(source, os.path.join(os.path.dirname(self.findings.path), text))

    def _blame(self, problem: str, items: dict[str, Item]) -> Node:
        """The place that a problem is about: what it quotes, or the key that it names."""
        body = problem.partition(": ")[2]
        places: dict[str, Node] = {}
        for item in [
            *(items[k] for k in ("size", "group", "function") if k in items),
            *(i for k in ("arguments", "cost") if k in items for i in items[k].value.value.values()),
        ]:
            nodes = item.value.value if isinstance(item.value.value, list) else [item.value]
            places |= {str(n.value): n for n in nodes if isinstance(n.value, (str, int, float))}
        arguments = items["arguments"].value.value
        for word in _QUOTED.findall(body):
            if word in arguments and (body.startswith(("output", "argument"))):
                node: Node = arguments[word].value
                return node
            # An expression may be a part of an argument's declaration.
            found = places.get(word) or next((n for text, n in places.items() if word in text and n.value is not None), None)
            if found is not None and not body.startswith("check"):
                return found
        key = body.partition(" ")[0].rstrip(":")
        return items[key].value if key in items else self.key
