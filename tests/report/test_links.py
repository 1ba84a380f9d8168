"""Links of equal figures in one line: no link is lost, and none is told twice."""

import json
import random
import re

import pytest

from hetsched.cli import main
from hetsched.machine import HOST, Link
from hetsched.machine.named import find
from hetsched.report.links import grouped, names


def expanded(text: str) -> list[str]:
    """The nodes that `names` wrote."""
    out: list[str] = []
    for part in text.split(", "):
        found = re.fullmatch(r"(.*?)(\d+)\.\.(\d+)", part)
        out += [f"{found[1]}{i}" for i in range(int(found[2]), int(found[3]) + 1)] if found else [part]
    return out


def links_of(paths: str) -> list[tuple[str, str]]:
    """(src, dst) of every link that a line stands for."""
    left, arrow, right = re.split(r" (<->|->) ", paths)
    a = expanded(left)
    if right == "each other":
        return [(x, y) for x in a for y in a if x != y]
    out = [(x, y) for x in a for y in expanded(right)]
    return out + [(y, x) for x, y in out] if arrow == "<->" else out


@pytest.mark.parametrize("seed", range(60))
def test_every_link_is_told_once_with_its_figures(seed):
    rng = random.Random(seed)
    nodes = [HOST, *(f"cuda:{i}" for i in range(rng.randint(1, 9))), *(f"npu{i}" for i in rng.sample(range(20), rng.randint(0, 4)))]
    figures = rng.randint(1, 3)
    share = rng.random()
    links = [Link(a, b, latency_seconds=rng.randrange(figures) * 1e-6) for a in nodes for b in nodes if rng.random() < share]
    rng.shuffle(links)
    told = [(a, b, group.like.latency_seconds) for group in grouped(links) for a, b in links_of(group.paths)]
    assert sorted(told) == sorted((x.src, x.dst, x.latency_seconds) for x in links)


def test_the_usual_shapes_take_a_line_each():
    def paths(links):
        return [group.paths for group in grouped(links)]

    assert paths(find("aws/p5.48xlarge").links) == ["host <-> cuda:0..7", "cuda:0..7 <-> each other"]
    quads = [[f"cuda:{i}" for i in range(4)], [f"cuda:{i}" for i in range(4, 8)]]
    assert paths(Link(a, b) for q in quads for a in q for b in q if a != b) == ["cuda:0..3 <-> each other", "cuda:4..7 <-> each other"]
    assert paths([Link(HOST, "a"), Link("a", HOST, 1e-3)]) == ["host -> a", "a -> host"]
    assert paths([Link(HOST, "cuda:0"), Link(HOST, "cuda:1"), Link("cuda:0", HOST), Link("cuda:1", HOST)]) == ["host <-> cuda:0, cuda:1"]
    assert paths([]) == []


def test_names_that_count_up_are_a_range():
    assert names(["host", "cuda:0", "cuda:1", "cuda:2", "npu"]) == "host, cuda:0..2, npu"
    assert names(["a9", "a10", "a11"]) == "a9..11"
    assert names(["a1", "a2", "b3", "a4"]) == "a1, a2, b3, a4"
    assert names(["a01", "a02", "a03"]) == "a01, a02, a03"


def test_devices_prints_few_lines_and_all_links_as_json(capsys):
    assert main(["devices", "--machine", "aws/p5.48xlarge"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^cuda:0\.\.7 <-> each other +5 us +450\.0 +1$", text, re.MULTILINE)
    assert text.count("<->") == 2
    assert "a line may stand for many links" in text
    assert main(["devices", "--machine", "aws/p5.48xlarge", "--format", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["links"]) == 72
    assert main(["devices", "--machine", "workstation"]) == 0
    assert "a line may stand for" not in capsys.readouterr().out
