"""Links of equal figures as one line: `cuda:0..7 <-> each other` instead of 56 copy paths."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from hetsched.machine import Link

_NUMBERED = re.compile(r"(|.*[^0-9])(0|[1-9][0-9]*)")
# So many names in a row are written as a range.
_RANGE = 3


class Group(NamedTuple):
    """Links of equal figures. paths: which they are; like: one of them."""

    paths: str
    like: Link


def grouped(links: Iterable[Link]) -> list[Group]:
    """Every link in exactly one group; figures in the order in which they come first."""
    alike: dict[tuple[float, float, int], list[Link]] = {}
    for x in links:
        alike.setdefault((x.latency_seconds, x.bytes_per_second, x.engines), []).append(x)
    return [Group(paths, kind[0]) for kind in alike.values() for paths in _paths(kind)]


def _paths(links: Sequence[Link]) -> Iterator[str]:
    """Links both ways within a set of nodes, then both ways between two sets, then what goes one way."""
    left = {node: set[str]() for x in links for node in (x.src, x.dst)}
    for x in links:
        left[x.src].add(x.dst)
    both = {a: {b for b in ends if b != a and a in left[b]} for a, ends in left.items()}
    for nodes in _alike({a: ends | {a} for a, ends in both.items()}):
        if len(nodes) > 2:  # each is in what all of them reach, so they reach each other
            yield f"{names(nodes)} <-> each other"
            for reach in (left, both):
                for a in nodes:
                    reach[a] -= set(nodes) - {a}
    for reach, arrow in ((both, "<->"), (left, "->")):
        while (first := next((a for a, ends in reach.items() if ends), None)) is not None:
            sources, ends = [a for a in reach if reach[a] == reach[first]], set(reach[first])
            yield f"{names(sources)} {arrow} {names(b for b in reach if b in ends)}"
            for a in sources:
                for b in ends:
                    for there, back in ((a, b), (b, a)) if arrow == "<->" else ((a, b),):
                        both[there].discard(back)
                        left[there].discard(back)


def _alike(reach: Mapping[str, set[str]]) -> list[list[str]]:
    """The nodes that reach the same, together."""
    out: dict[frozenset[str], list[str]] = {}
    for node, ends in reach.items():
        out.setdefault(frozenset(ends), []).append(node)
    return list(out.values())


def names(nodes: Iterable[str]) -> str:
    """Names with commas, those that count up as a range.

    >>> names(["host", "cuda:0", "cuda:1", "cuda:2", "npu"])
    'host, cuda:0..2, npu'
    """
    runs: list[list[str]] = []
    for name in nodes:
        if runs and _follows(runs[-1][-1], name):
            runs[-1].append(name)
        else:
            runs.append([name])
    texts = []
    for run in runs:
        last = _NUMBERED.fullmatch(run[-1])
        texts += [f"{run[0]}..{last[2]}"] if last is not None and len(run) >= _RANGE else run
    return ", ".join(texts)


def _follows(name: str, other: str) -> bool:
    a, b = _NUMBERED.fullmatch(name), _NUMBERED.fullmatch(other)
    return a is not None and b is not None and a[1] == b[1] and int(b[2]) == int(a[2]) + 1
