"""Pictures of a graph as SVG, and as a page in HTML: tasks in layers from what they read to what reads them, in frames of loops and groups.

The layers are those of longest paths, and the order within one by the mean place of what comes before (K. Sugiyama, S. Tagawa, M. Toda: Methods for
visual understanding of hierarchical system structures, IEEE Trans. SMC 11(2), 1981); inside of each frame by itself. No library is needed to see it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape

from hetsched.graph.graph import Graph
from hetsched.report.pictures import drawn, graph_text

CHAR, LINE, PAD, GAP, BETWEEN = 7.8, 16.0, 8.0, 18.0, 42.0  # pixels: a letter, a line, around texts, beside boxes, between layers
COLOURS = {"input": ("#e8f1fb", 14.0), "output": ("#e7f6e9", 14.0), "task": ("#ffffff", 3.0)}
STYLE = (
    "text{font:12px monospace;fill:#222}.frame{fill:#888;fill-opacity:.1;stroke:#888;stroke-dasharray:4 3}.box{stroke:#444}"
    ".edge{fill:none;stroke:#555}.order{stroke-dasharray:3 3}.edge:hover{stroke:#d33;stroke-width:3}"
)


@dataclass
class Item:
    """A box of `lines` (shape: `task`, `input`, `output`), or a frame (shape: `frame`) around `items`; x, y: its corner in what it lies in."""

    key: str
    lines: list[str]
    shape: str
    items: list[Item] = field(default_factory=list)
    x: float = 0.0
    y: float = 0.0
    width: float = 0.0
    height: float = 0.0


class Recorder:
    """Stands for a form of picture (`pictures.drawn`): keeps boxes, frames and arrows instead of writing them."""

    head = tail = ""

    def __init__(self) -> None:
        self.root = Item("", [], "frame")
        self.open_frames = [self.root]
        self.arrows: list[tuple[str, str, str, bool]] = []

    def box(self, key: str, lines: list[str], shape: str) -> str:
        """A box in the frame that is open."""
        self.open_frames[-1].items.append(Item(key, lines, shape))
        return ""

    def open(self, key: str, title: str) -> str:
        """Begin a frame."""
        frame = Item(key, [title], "frame")
        self.open_frames[-1].items.append(frame)
        self.open_frames.append(frame)
        return ""

    def close(self) -> str:
        """End the frame that is open."""
        self.open_frames.pop()
        return ""

    def edge(self, before: str, after: str, text: str, order: bool) -> str:
        """An arrow; order: nothing is read, one only comes after the other."""
        self.arrows.append((before, after, text, order))
        return ""


def lay_out(frame: Item, arrows: list[tuple[str, str]]) -> None:
    """Give everything inside of `frame` its place there, and the frame its size. arrows: between keys of boxes, wherever these lie."""
    holder = {box.key: item for item in frame.items for box in _boxes(item)}
    number = {item.key: i for i, item in enumerate(frame.items)}
    before: list[set[int]] = [set() for _ in frame.items]
    for item in frame.items:
        if item.shape == "frame":
            lay_out(item, [(a, b) for a, b in arrows if holder.get(a) is item and holder.get(b) is item])
        else:
            item.width = max(map(len, item.lines)) * CHAR + 2 * PAD
            item.height = len(item.lines) * LINE + PAD
    for a, b in arrows:
        if a in holder and b in holder and holder[a] is not holder[b]:
            first, then = number[holder[a].key], number[holder[b].key]
            if first < then:  # items stand in the order of the tasks; where two frames are before each other, one of the ways counts
                before[then].add(first)
    layer: list[int] = []
    for earlier in before:
        layer.append(1 + max((layer[i] for i in earlier), default=-1))
    top = LINE + PAD if frame.lines else PAD
    place: dict[int, float] = {}
    width = max((len(line) * CHAR for line in frame.lines), default=0.0) + 2 * PAD
    rows = [[i for i, at in enumerate(layer) if at == n] for n in range(max(layer, default=-1) + 1)]
    for row in rows:
        row.sort(key=lambda i: (sum(place[j] for j in before[i]) / len(before[i]) if before[i] else 0.0, i))
        left = PAD
        for i in row:
            item = frame.items[i]
            item.x, item.y, left = left, top, left + item.width + GAP
            place[i] = item.x + item.width / 2
        width = max(width, left - GAP + PAD)
        top += max(frame.items[i].height for i in row) + BETWEEN
    for row in rows:  # each layer in the middle
        last = frame.items[row[-1]]
        shift = (width - PAD - last.x - last.width) / 2
        for i in row:
            frame.items[i].x += shift
    frame.width, frame.height = width, max(top - BETWEEN, LINE) + PAD


def _boxes(item: Item) -> Iterator[Item]:
    if item.shape != "frame":
        yield item
    for inner in item.items:
        yield from _boxes(inner)


def svg(graph: Graph, name: str = "graph", most: int = 400) -> str:
    """The picture of a graph as a standalone SVG. Of a graph with more than `most` tasks, tasks of one group are drawn as one."""
    recorder = Recorder()
    drawn(graph, most, recorder)
    root = recorder.root
    lay_out(root, [(a, b) for a, b, _, _ in recorder.arrows])
    frames: list[str] = []
    boxes: list[str] = []
    where: dict[str, tuple[float, float, float, float]] = {}
    _shapes(root, 0.0, 0.0, frames, boxes, where)
    arrows = [_arrow(where[a], where[b], text, order) for a, b, text, order in recorder.arrows]
    width, height = root.width, root.height
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}">',
            f"<title>{escape(name)}</title>",
            f"<style>{STYLE}</style>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
            '<path d="M0 0L8 4L0 8z" fill="#555"/></marker></defs>',
            f'<rect width="{width:.0f}" height="{height:.0f}" fill="#fafafa"/>',
            *frames,
            *arrows,
            *boxes,
            "</svg>\n",
        ]
    )


def _shapes(frame: Item, left: float, top: float, frames: list[str], boxes: list[str], where: dict[str, tuple[float, float, float, float]]) -> None:
    """Append the shapes inside of `frame`, whose corner lies at (left, top), frames before what they hold; note where boxes lie."""
    for item in frame.items:
        x, y = left + item.x, top + item.y
        corner = f'x="{x:.1f}" y="{y:.1f}" width="{item.width:.1f}" height="{item.height:.1f}"'
        out = frames if item.shape == "frame" else boxes
        if item.shape == "frame":
            out.append(f'<rect class="frame" {corner} rx="6"/>')
        else:
            fill, radius = COLOURS[item.shape]
            out.append(f'<rect class="box" {corner} rx="{radius:g}" fill="{fill}"/>')
            where[item.key] = (x, y, item.width, item.height)
        for i, line in enumerate(item.lines):
            out.append(f'<text x="{x + PAD:.1f}" y="{y + LINE * (i + 1) - 2:.1f}">{escape(line)}</text>')
        _shapes(item, x, y, frames, boxes, where)


def _arrow(a: tuple[float, float, float, float], b: tuple[float, float, float, float], text: str, order: bool) -> str:
    """From the middle of the lower edge of one box to the middle of the upper edge of another; what travels shows where the mouse is on it."""
    x, y, to_x, to_y = a[0] + a[2] / 2, a[1] + a[3], b[0] + b[2] / 2, b[1]
    bend = max(abs(to_y - y) / 2, BETWEEN / 2)
    path = f"M{x:.1f} {y:.1f}C{x:.1f} {y + bend:.1f} {to_x:.1f} {to_y - bend:.1f} {to_x:.1f} {to_y:.1f}"
    return f'<path class="edge{" order" if order else ""}" d="{path}" marker-end="url(#tip)"><title>{escape(text or "order only")}</title></path>'


def html(graph: Graph, name: str = "graph", most: int = 400) -> str:
    """A page with the picture, and every task in words below it. One file, which needs nothing else."""
    title = escape(name)
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{title}</title>\n'
        "<style>body{font-family:sans-serif;margin:1em}.picture{overflow:auto;border:1px solid #ccc;max-height:80vh}</style></head>\n"
        f'<body>\n<h1>{title}</h1>\n<div class="picture">\n{svg(graph, name, most)}</div>\n'
        f"<h2>Tasks</h2>\n<pre>{escape(graph_text(graph, name))}</pre>\n</body>\n</html>\n"
    )


__all__ = ["html", "svg"]
