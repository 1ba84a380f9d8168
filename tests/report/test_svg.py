"""SVG pictures: every task is there, boxes lie in their frames and not on each other, arrows lead from what is read to who reads it."""

import random
from pathlib import Path
from xml.etree import ElementTree

import pytest

import hetsched as hs
from hetsched.cli import main
from hetsched.report.pictures import drawn
from hetsched.report.svg import Item, Recorder, html, lay_out, svg
from hetsched.testing import random_graph

SPACE = "{http://www.w3.org/2000/svg}"
PIPELINES = Path(__file__).parents[2] / "pipelines"


def laid_out(graph: hs.Graph, most: int = 400) -> Recorder:
    recorder = Recorder()
    drawn(graph, most, recorder)
    lay_out(recorder.root, [(a, b) for a, b, _, _ in recorder.arrows])
    return recorder


def everywhere(frame: Item) -> list[Item]:
    return [frame, *(inner for item in frame.items for inner in everywhere(item))]


@pytest.mark.parametrize("seed", range(40))
def test_what_a_frame_holds_lies_in_it_and_side_by_side(seed: int) -> None:
    recorder = laid_out(random_graph(random.Random(seed))[0], most=20 if seed % 4 == 3 else 400)
    assert len(recorder.open_frames) == 1
    for frame in everywhere(recorder.root):
        for i, item in enumerate(frame.items):
            assert item.x >= 0
            assert item.y >= 0
            assert item.x + item.width <= frame.width + 0.01
            assert item.y + item.height <= frame.height + 0.01
            for other in frame.items[:i]:
                beside = item.x + item.width <= other.x or other.x + other.width <= item.x
                assert beside or item.y + item.height <= other.y or other.y + other.height <= item.y, (item.key, other.key)


def test_who_reads_stands_below_what_it_reads() -> None:
    b = hs.Graph.build()
    x = b.input("x", (3,))
    y = b.op("tensor.neg", x, name="first")
    z = b.op("tensor.add", b.op("tensor.exp", y, name="second"), y, name="third")
    b.output(z, "z")
    recorder = laid_out(b.freeze())
    tops = {item.lines[0]: item.y for item in recorder.root.items}
    assert tops["x"] < tops["first"] < tops["second"] < tops["third"] < tops["z"]
    assert len(recorder.arrows) == 5


def test_texts_are_escaped_and_the_same_graph_is_the_same_picture() -> None:
    b = hs.Graph.build()
    b.output(b.op("tensor.neg", b.input("<a & b>", (3,)), name="n<1>"), "y")
    graph = b.freeze()
    text = svg(graph, "a <name>")
    root = ElementTree.fromstring(text)
    assert {"<a & b>", "float32[3]", "n<1>", "tensor.neg", "y"} <= {t.text for t in root.iter(f"{SPACE}text")}
    assert root.find(f"{SPACE}title").text == "a <name>"
    assert text == svg(graph, "a <name>")
    assert "&lt;name&gt;</h1>" in html(graph, "a <name>")


def test_the_command_writes_pictures_and_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(PIPELINES / "digits_mlp.yaml")
    for name in ("g.svg", "g.html"):
        assert main(["graph", file, "-o", str(tmp_path / name)]) == 0
    root = ElementTree.parse(tmp_path / "g.svg").getroot()
    texts = {t.text for t in root.iter(f"{SPACE}text")}
    assert {"data.read_npz", "nn.dense", "optim.adam", "loop steps: 450 turns", "metrics/accuracy"} <= texts
    arrows = [p for p in root.iter(f"{SPACE}path") if p.get("class")]
    assert len(arrows) > 60
    assert all(p.find(f"{SPACE}title").text for p in arrows)
    page = (tmp_path / "g.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert page.count("<svg") == 1
    assert "optim.adam" in page[page.index("<pre>") :]
    capsys.readouterr()
    assert main(["graph", file, "--format", "svg"]) == 0
    assert ElementTree.fromstring(capsys.readouterr().out).tag == f"{SPACE}svg"


def test_an_empty_graph_has_a_picture() -> None:
    b = hs.Graph.build()
    b.output(b.input("x", (2,)), "y")
    assert {t.text for t in ElementTree.fromstring(svg(b.freeze())).iter(f"{SPACE}text")} == {"x", "float32[2]", "y"}
