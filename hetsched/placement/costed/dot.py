"""Reads directed graphs in the DOT language of Graphviz: nodes, edges and their attributes; layout is not looked at.

https://graphviz.org/doc/info/lang.html: node, edge and attribute statements, defaults (`node [...]`), chains (`a -> b -> c`), subgraphs, quoted
names, comments. Left out: HTML names and undirected graphs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeAlias

Attributes: TypeAlias = dict[str, str]

_TOKEN = re.compile(
    r"""(?P<skip>\s+|//[^\n]*|\#[^\n]*|/\*.*?\*/)
      | (?P<quoted>"(?:[^"\\]|\\.)*")
      | (?P<sign>->|--|[{}\[\];,=:])
      | (?P<name>-?(?:\.\d+|\d+(?:\.\d*)?)(?![\w.])|[^\W\d]\w*)""",
    re.VERBOSE | re.DOTALL,
)
_WORDS = {"graph", "digraph", "node", "edge", "strict", "subgraph"}


@dataclass
class Dot:
    """Nodes by name, in the order in which they appear; edges (from, to, attributes); attributes of the whole."""

    nodes: dict[str, Attributes] = field(default_factory=dict)
    edges: list[tuple[str, str, Attributes]] = field(default_factory=list)
    attributes: Attributes = field(default_factory=dict)


def parse_dot(text: str) -> Dot:
    """The graph in `text`. Raises `ValueError` with the line and what stands there."""
    return _Parser(text).graph()


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(_tokens(text))
        self.at = 0
        self.found = Dot()

    def graph(self) -> Dot:
        self._take("strict")
        if not self._take("digraph"):
            raise self._wrong("`digraph` (edges of a task graph have a direction)")
        if not self._next("{"):
            self._name()
        self._need("{")
        self._statements({}, {})
        if self.at < len(self.tokens):
            raise self._wrong("the end: a file holds one graph")
        return self.found

    def _statements(self, node: Attributes, edge: Attributes) -> list[str]:
        """The statements up to the closing brace; the names of the nodes in them."""
        node, edge = dict(node), dict(edge)
        seen: list[str] = []
        while not self._take("}"):
            if self._take(";") or self._take(","):
                continue
            if self._next("graph") or self._next("node") or self._next("edge"):
                kind = self.tokens[self.at][0]
                self.at += 1
                given = self._attributes()
                {"graph": self.found.attributes, "node": node, "edge": edge}[kind].update(given)
                continue
            ends = self._end(node, edge)
            if self._take("="):
                self.found.attributes[ends[0]] = self._name()
                continue
            seen += ends
            chain = [ends]
            while self._take("->"):
                chain.append(self._end(node, edge))
                seen += chain[-1]
            if self._next("--"):
                raise self._wrong("`->`: edges of a task graph have a direction")
            given = self._attributes()
            if len(chain) == 1 and len(ends) == 1:
                self.found.nodes[ends[0]].update(given)
            for tails, heads in pairwise(chain):
                self.found.edges += [(a, b, {**edge, **given}) for a in tails for b in heads]
        return seen

    def _end(self, node: Attributes, edge: Attributes) -> list[str]:
        """One end of an edge: a node, or all of a subgraph."""
        if self._take("subgraph") and not self._next("{"):
            self._name()
        if self._take("{"):
            return list(dict.fromkeys(self._statements(node, edge)))
        name = self._name()
        while self._take(":"):  # a port
            self._name()
        if not self._next("="):
            self.found.nodes.setdefault(name, dict(node))
        return [name]

    def _attributes(self) -> Attributes:
        found: Attributes = {}
        while self._take("["):
            while not self._take("]"):
                key = self._name()
                found[key] = self._name() if self._take("=") else "true"
                if not self._take(","):
                    self._take(";")
        return found

    def _name(self) -> str:
        if self.at < len(self.tokens) and self.tokens[self.at][1] in ("name", "quoted"):
            self.at += 1
            return self.tokens[self.at - 1][0]
        raise self._wrong("a name or a number (quote names with other characters)")

    def _next(self, word: str) -> bool:
        if self.at >= len(self.tokens):
            return False
        text, kind, _ = self.tokens[self.at]
        return kind != "quoted" and (text.lower() if word in _WORDS else text) == word

    def _take(self, word: str) -> bool:
        there = self._next(word)
        self.at += there
        if not there and word == "}" and self.at >= len(self.tokens):
            raise self._wrong("`}`")
        return there

    def _need(self, word: str) -> None:
        if not self._take(word):
            raise self._wrong(f"`{word}`")

    def _wrong(self, wanted: str) -> ValueError:
        if self.at >= len(self.tokens):
            return ValueError(f"the file ends where {wanted} should stand")
        text, _, position = self.tokens[self.at]
        return ValueError(f"line {self.text.count(chr(10), 0, position) + 1}: {text!r} stands where {wanted} should")


def _tokens(text: str) -> Iterator[tuple[str, str, int]]:
    """(text, kind, position) of everything but space and comments; quotes taken off."""
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"line {text.count(chr(10), 0, position) + 1}: {text[position : position + 10]!r} is not DOT")
        kind = match.lastgroup or ""
        if kind == "quoted":
            yield re.sub(r'\\(["\\])', r"\1", match.group()[1:-1]), kind, position
        elif kind != "skip":
            yield match.group(), kind, position
        position = match.end()
