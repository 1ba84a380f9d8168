"""YAML text to nodes with exact places: the events of PyYAML's (C) parser, put together here.

Plain PyYAML will not do: its C `compose` crashes on 200,000 `[`, duplicate keys pass silently, a 306-byte file of aliases stands for 9^9
nodes, and YAML 1.1 reads `1e-3` as text, `no` as a boolean and `12:30:45` as a number. Here scalars are those of the YAML 1.2 core schema
(https://yaml.org/spec/1.2.2/#103-core-schema), nothing recurses, and what a pipeline has no use for (aliases, tags, merge keys, several
documents) is a mistake with its place. Reading goes on after a mistake wherever the parser can.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)  # fmt: skip

from hetsched.pipeline.mistakes import Findings

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
# Stands for a value that was wrong, so that one mistake is told once.
BROKEN: Any = type("Broken", (), {"__repr__": lambda self: "<broken>"})()

_BREAK = re.compile(r"\r\n|\r|\n")
_BAD_CHARACTER = re.compile("[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_INT = re.compile(r"[-+]?[0-9]+\Z")
_BASE = re.compile(r"0o[0-7]+\Z|0x[0-9a-fA-F]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")), **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **{s + w: float(s + "inf") for s in ("", "+", "-") for w in (".inf", ".Inf", ".INF")},
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}  # fmt: skip


@dataclass(slots=True)
class Node:
    """A value of the file and its place (from 1). `value` is None, a bool, int, float or str; a list of nodes; a dict key -> `Item`; or BROKEN.

    `plain`: an unquoted scalar. `parameter`: the name of the parameter that the value came from.
    """

    line: int
    column: int
    value: Any
    plain: bool = False
    parameter: str | None = None

    @property
    def kind(self) -> str:
        """What the value is, in words for a message."""
        v = self.value
        if isinstance(v, dict):
            return "a map"
        if isinstance(v, list):
            return "a list"
        return "nothing" if v is None else repr(v)


class Item(NamedTuple):
    """A key and its value in a map."""

    key: Node
    value: Node


class NumberError(ValueError):
    """A scalar looks like a number and cannot be one; the message says why and the way out."""


def scalar(text: str) -> Any:
    """The value of a plain scalar under the YAML 1.2 core schema; raises `NumberError`.

    >>> scalar("1e-3"), scalar("no"), scalar("12:30:45"), scalar("0o17"), scalar("~")
    (0.001, 'no', '12:30:45', 15, None)
    """
    if text in _WORDS:
        return _WORDS[text]
    first = text[0]
    if not (first.isdigit() or first in "+-."):
        return text
    if _INT.match(text):
        digits = text.lstrip("+-")
        if len(digits) > 1 and digits[0] == "0":
            octal = "" if set(digits) & {"8", "9"} else f" or 0o{digits.lstrip('0')[:40] or '0'}"
            raise NumberError(f"{text[:40]} is ambiguous: octal in YAML 1.1, decimal in 1.2; write {int(digits[:40])}{octal}")
        return _int64(text, 10)
    if _BASE.match(text):
        return _int64(text, 0)
    if _FLOAT.match(text):
        number = float(text)
        if number in (float("inf"), float("-inf")):
            raise NumberError(f"{text[:40]} is too large for a 64-bit float; write .inf if infinity is meant, or quote it to make it text")
        return number
    return text


def _int64(text: str, base: int) -> int:
    number = int(text, base) if len(text) <= 80 else 1 << 63
    if not -(1 << 63) <= number < 1 << 63:
        shown = text if len(text) <= 40 else f"{text[:20]}... ({len(text)} digits)"
        raise NumberError(f"{shown} does not fit a 64-bit integer; write a float, or quote it to make it text")
    return number


def decode(data: bytes, findings: Findings) -> str | None:
    """The text of a file, or None where it has none; a byte order mark is dropped. Fills `findings.lines`."""
    if len(data) > MAX_BYTES:
        findings.at(1, 1, f"the file has {len(data):,} bytes; a pipeline has at most {MAX_BYTES:,}: put data into files of their own", "size")
        return None
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        findings.at(1, 1, "the file is UTF-16; save it as UTF-8", "encoding")
        return None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = _BREAK.split(data[: error.start].decode("utf-8"))
        findings.lines = _BREAK.split(data.decode("utf-8", "replace").removeprefix("\ufeff"))
        where = before[-1].removeprefix("\ufeff") if len(before) == 1 else before[-1]
        findings.at(len(before), len(where) + 1, f"byte 0x{data[error.start]:02x} is not UTF-8 ({error.reason}); save the file as UTF-8", "encoding")
        return None
    text = text.removeprefix("\ufeff")
    findings.lines = _BREAK.split(text)
    if _BAD_CHARACTER.search(text):
        for number, line in enumerate(findings.lines, 1):
            for match in _BAD_CHARACTER.finditer(line):
                c = ord(match[0])
                why = "is a line break in YAML 1.1 and none in 1.2" if c in (0x85, 0x2028, 0x2029) else "is not allowed in YAML"
                message = f"the character U+{c:04X} {why}; remove it, or write it as \\u{c:04x} in double quotes"
                findings.at(number, match.start() + 1, message, "character")
        return None
    return text


def read(data: bytes, findings: Findings) -> Node | None:
    """The root node of a YAML file, or None where there is none to go on with. Mistakes go to `findings`."""
    text = decode(data, findings)
    if text is None:
        return None
    return _parse(text, findings, _events(text))


def _parse(text: str, findings: Findings, events: Iterator[Event]) -> Node | None:
    before = len(findings.found)
    try:
        return _compose(events, findings)
    except yaml.MarkedYAMLError as error:
        if "nesting depth" in str(error.problem):
            # Some versions of libyaml look ahead past our own limit and stop at theirs, before the event that we would have stopped at.
            del findings.found[before:]
            return _parse(text, findings, _pull(PythonParser(text)))
        _syntax(error, findings)
    except yaml.YAMLError as error:
        findings.at(1, 1, f"this is not YAML ({error}); check the file's encoding and its first lines", "syntax")
    return None


def _events(text: str) -> Iterator[Event]:
    """The parser's events: from libyaml where PyYAML has it, else from PyYAML's own parser."""
    try:
        from yaml.cyaml import CParser  # type: ignore[attr-defined]
    except ImportError:
        return _pull(PythonParser(text))
    return _pull(CParser(text))


def _pull(parser: Any) -> Iterator[Event]:
    while parser.check_event():
        yield parser.get_event()


class PythonParser(yaml.reader.Reader, yaml.scanner.Scanner, yaml.parser.Parser):
    """PyYAML's parser without its composer and constructor."""

    def __init__(self, text: str) -> None:
        yaml.reader.Reader.__init__(self, text)
        yaml.scanner.Scanner.__init__(self)
        yaml.parser.Parser.__init__(self)


def _compose(events: Iterator[Event], findings: Findings) -> Node | None:
    root: Node | None = None
    documents = 0
    open_nodes: list[Node] = []  # the maps and lists that are open, outermost first
    keys: list[Node | None] = []  # for each of them the key that waits for its value
    event: Any
    for event in events:
        kind = type(event)
        if kind is ScalarEvent:
            is_key = bool(open_nodes) and keys[-1] is None and type(open_nodes[-1].value) is dict
            node = _scalar_node(event, is_key, findings)
        elif kind is MappingStartEvent or kind is SequenceStartEvent:
            mark = event.start_mark
            node = Node(mark.line + 1, mark.column + 1, {} if kind is MappingStartEvent else [])
            if event.anchor is not None or event.tag is not None:
                _refuse(event, node, findings)
        elif kind is MappingEndEvent or kind is SequenceEndEvent:
            open_nodes.pop()
            keys.pop()
            continue
        elif kind is AliasEvent:
            mark = event.start_mark
            node = Node(mark.line + 1, mark.column + 1, BROKEN)
            findings.add(node, f"alias *{event.anchor} is not allowed in a pipeline; write the value out, or use a parameter", "alias")
        elif kind is DocumentStartEvent:
            documents += 1
            mark = event.start_mark
            if documents > 1:
                message = "a second document starts here; a file holds one pipeline: move it to a file of its own"
                findings.at(mark.line + 1, mark.column + 1, message, "documents")
                return root
            if event.tags or (event.version is not None and tuple(event.version) != (1, 2)):
                findings.at(mark.line + 1, mark.column + 1, "directives are not allowed in a pipeline; remove the lines that start with %", "syntax")
            continue
        else:
            continue
        if not open_nodes:
            root = node
        else:
            parent = open_nodes[-1]
            if type(parent.value) is list:
                parent.value.append(node)
            elif keys[-1] is None:
                keys[-1] = node
            else:
                _put(parent, keys[-1], node, findings)
                keys[-1] = None
        if kind is MappingStartEvent or kind is SequenceStartEvent:
            if len(open_nodes) == MAX_DEPTH:
                findings.add(node, f"maps and lists are nested deeper than {MAX_DEPTH}; a pipeline needs far less: check the brackets", "depth")
                return None
            open_nodes.append(node)
            keys.append(None)
    if root is None or (root.value is None and root.plain):
        findings.at(1, 1, "the file is empty; start with `hetsched: 1` and `tasks:`", "empty")
        return None
    return root


def _scalar_node(event: Any, is_key: bool, findings: Findings) -> Node:
    mark = event.start_mark
    plain = event.implicit[0]
    node = Node(mark.line + 1, mark.column + 1, event.value, plain)
    if event.anchor is not None or event.tag is not None:
        _refuse(event, node, findings)
    if event.tag is not None:
        node.value = BROKEN
    elif is_key:
        node.value = event.value or None
    elif plain:
        try:
            node.value = scalar(event.value)
        except NumberError as error:
            findings.add(node, str(error), "number")
            node.value = BROKEN
    return node


def _refuse(event: Any, node: Node, findings: Findings) -> None:
    if event.anchor is not None:
        findings.add(node, f"anchor &{event.anchor} is not allowed in a pipeline; write values out, or use a parameter", "alias")
    if event.tag is not None:
        tag = event.tag.replace("tag:yaml.org,2002:", "!!")
        findings.add(node, f"tag {tag} is not allowed in a pipeline; remove it (quotes make a text)", "tag")


def _put(parent: Node, key: Node, value: Node, findings: Findings) -> None:
    """Add a key to a map; every key is a scalar, taken as text."""
    items: dict[str, Item] = parent.value
    name = key.value
    if name is BROKEN:
        return
    if not isinstance(name, str):
        findings.add(key, f"a key must be a name, not {key.kind}; give it one before the ':'", "key")
        return
    if name == "<<" and key.plain:
        findings.add(key, "merge keys (<<) are not allowed in a pipeline; write the keys out", "merge-key")
        return
    if name in items:
        findings.add(key, f"duplicate key {name!r}; it is also at line {items[name].key.line}: remove or rename one", "duplicate-key")
        return
    items[name] = Item(key, value)


_HINTS = {
    "mapping values are not allowed": "a second ': ' in one value; quote the text, or check the indentation",
    "did not find expected key": "expected a key here; check quotes, brackets and indentation",
    "expected <block end>": "expected a key here; check quotes, brackets and indentation",
    "did not find expected '-' indicator": "expected '- ' here: the lines above are a list; check the indentation",
    "did not find expected ',' or ']'": "expected ',' or ']' here; close the list, or quote the text",
    "expected ',' or ']'": "expected ',' or ']' here; close the list, or quote the text",
    "did not find expected ',' or '}'": "expected ',' or '}' here; close the map, or quote the text",
    "expected ',' or '}'": "expected ',' or '}' here; close the map, or quote the text",
    "could not find expected ':'": "expected ': ' after a key on the line before; add it, or check the indentation",
    "unknown escape character": "unknown escape in double quotes; write \\\\ for a backslash, or use single quotes",
}


def _syntax(error: yaml.MarkedYAMLError, findings: Findings) -> None:
    """Note what the parser could not read, in words that say the way out."""
    problem = str(error.problem)
    mark = error.problem_mark or error.context_mark
    if problem.startswith("found unexpected end of stream") and error.context_mark is not None:
        mark = error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
    text = findings.lines[line - 1] if line <= len(findings.lines) else ""
    indent = text[: len(text) - len(text.lstrip())]
    here = text[column - 1 : column]
    if here == "\t" or "\t" in indent:
        column = column if here == "\t" else indent.index("\t") + 1
        findings.at(line, column, "a tab cannot indent or separate in YAML; use spaces", "tab")
        return
    if "${" in text:
        findings.at(line, text.index("${") + 1, "a parameter is written $name, without braces", "syntax")
        return
    if mark is error.context_mark and problem.startswith("found unexpected end of stream"):
        message = "this quoted text is never closed; add the closing quote"
    elif "cannot start any token" in problem:
        message = f"{here!r} cannot start a value; quote the text"
    else:
        message = next((hint for key, hint in _HINTS.items() if problem.startswith(key) or key in problem), "")
        if not message:
            context = f"{error.context}: " if error.context else ""
            message = f"{context}{problem}; check quotes, brackets and indentation"
    start = error.context_mark
    if start is not None and "flow" in str(error.context):
        message += f" (opened at line {start.line + 1}, column {start.column + 1})"
    findings.at(line, column, message, "syntax")
