import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetsched.pipeline import reader
from hetsched.pipeline.mistakes import Findings
from hetsched.pipeline.reader import Node, NumberError, read, scalar


def plain(node: Node | None) -> object:
    assert node is not None
    if isinstance(node.value, dict):
        return {k: plain(item.value) for k, item in node.value.items()}
    return [plain(n) for n in node.value] if isinstance(node.value, list) else node.value


def read_text(text: str) -> tuple[Node | None, Findings]:
    findings = Findings("p.yaml")
    return read(text.encode(), findings), findings


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("1E+3", 1000.0), ("1.", 1.0), (".5", 0.5), ("-1.5e3", -1500.0), ("+7", 7), ("0", 0), ("-0", 0), ("0o17", 15), ("0x1F", 31),
        (".inf", float("inf")), ("-.INF", float("-inf")), ("true", True), ("False", False), ("null", None), ("~", None),
        ("no", "no"), ("yes", "yes"), ("on", "on"), ("off", "off"), ("y", "y"), ("12:30:45", "12:30:45"), ("1_000", "1_000"),
        ("2001-01-01", "2001-01-01"),
        ("1e", "1e"), (".", "."), ("-", "-"), ("+", "+"), ("0b11", "0b11"), ("nan", "nan"), ("inf", "inf"), ("1.2.3", "1.2.3"),
        ("9" * 18, int("9" * 18)),
    ],
)  # fmt: skip
def test_scalars_are_those_of_the_core_schema(text: str, value: object) -> None:
    found = scalar(text)
    assert found == value
    assert type(found) is type(value)


def test_nan_is_read_as_nan() -> None:
    assert scalar(".nan") != scalar(".nan")


@pytest.mark.parametrize("text", ["017", "-08", "1e999", "-1e999", "9" * 19, "-9223372036854775809", "0x" + "f" * 17, "1" * 10_000, "0" * 10_000])
def test_numbers_that_cannot_be(text: str) -> None:
    with pytest.raises(NumberError) as caught:
        scalar(text)
    assert len(str(caught.value)) < 200


def test_every_key_and_value_has_its_place() -> None:
    root, findings = read_text("a: 1\nbé: {c: [x,\n     'y']}\n")
    assert findings.found == []
    assert root is not None
    item = root.value["bé"]
    assert (item.key.line, item.key.column) == (2, 1)
    inner = item.value.value["c"]
    assert [(n.line, n.column, n.value) for n in inner.value.value] == [(2, 10, "x"), (3, 6, "y")]


def test_a_quoted_number_is_a_text_and_a_key_is_always_a_text() -> None:
    root, findings = read_text("a: '1'\n2: \"true\"\nno: |\n  x\n  \ty\n")
    assert findings.found == []
    assert plain(root) == {"a": "1", "2": "true", "no": "x\n\ty\n"}


def test_line_ends_of_all_systems_count() -> None:
    root, _ = read_text("a: 1\r\nb: 2\rc: 3\n")
    assert root is not None
    assert [root.value[k].value.line for k in "abc"] == [1, 2, 3]


def test_a_tag_leaves_no_value_behind() -> None:
    root, findings = read_text("a: !!int 3\nb: &x 5\n")
    assert [m.rule for m in findings.found] == ["tag", "alias"]
    assert plain(root) == {"a": reader.BROKEN, "b": 5}


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 100_000, "- " * 100_000, "? " * 5_000, "[" * 64 + "]" * 64])
def test_depth_is_capped_without_recursion(text: str) -> None:
    _, findings = read_text(text)
    assert [m.rule for m in findings.found] in (["depth"], ["syntax"], [])
    if text.startswith("[" * 65):
        assert [(m.line, m.column, m.rule) for m in findings.found] == [(1, 65, "depth")]


def test_an_alias_bomb_stays_small() -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 30))]
    root, findings = read_text("\n".join(lines))
    assert root is not None
    assert len(findings.found) == 30 + 58


CASES = [
    "a: 1\nb: [x, {y: 2}]\n", "a: 'q'\nb: |\n  text\n", "a: &x 1\n", "a: *x\n", "a: !!str x\n", "<<: {a: 1}\n", "a: 1\na: 2\n", "a: b: c\n",
    "a: [1, 2\nb: 3\n",
    "a: 'x\n", "a: @x\n", "- a\nb: 1\n", "a: {b: ${c}}\n", "a: 1\n---\nb: 2\n", "? [a]\n: 1\n", "a:\n\tb: 1\n", "", "# c\n",
    "%YAML 1.1\n---\na: 1\n", "a: \"\\q\"\n",
]  # fmt: skip


@pytest.mark.parametrize("text", CASES)
def test_the_parser_in_python_says_the_same(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML without libyaml: the same nodes, the same rules, the same lines (columns inside a broken text may differ)."""
    fast, fast_findings = read_text(text)
    monkeypatch.setattr("hetsched.pipeline.reader._events", lambda source: _python_events(source))
    slow, slow_findings = read_text(text)
    assert slow == fast
    assert [(m.line, m.rule) for m in slow_findings.found] == [(m.line, m.rule) for m in fast_findings.found]


def _python_events(text: str):  # type: ignore[no-untyped-def]
    parser = reader.PythonParser(text)
    while parser.check_event():
        yield parser.get_event()


printable = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cn", "Zl", "Zp"), exclude_characters="\ufeff"), max_size=20)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(1 << 63), (1 << 63) - 1), st.floats(allow_nan=False, allow_infinity=False), printable
)  # fmt: skip
names = st.text("abcé_-", min_size=1, max_size=5)
trees = st.recursive(scalars, lambda t: st.lists(t, max_size=4) | st.dictionaries(names, t, max_size=4), max_leaves=20)


@given(trees)
def test_json_is_read_as_it_is(tree: object) -> None:
    """JSON is YAML 1.2: the reader gives back whatever `json` writes."""
    root, findings = read_text(json.dumps({"a": tree}, ensure_ascii=False))
    assert findings.found == []
    assert plain(root) == {"a": tree}


@given(st.binary(max_size=200))
def test_no_bytes_raise(data: bytes) -> None:
    findings = Findings("p")
    root = read(data, findings)
    assert root is not None or findings.found
    for mistake in findings.found:
        assert mistake.line >= 1
        assert mistake.column >= 1
        mistake.render().encode("utf-8", "surrogatepass")


def test_large_files_are_read_in_one_pass() -> None:
    out = io.StringIO()
    out.write("tasks:\n")
    for i in range(10_000):
        out.write(f"  t{i}: {{op: nn.relu, in: {{x: t{i - 1}}}}}\n")
    root, findings = read_text(out.getvalue())
    assert findings.found == []
    assert root is not None
    assert len(root.value["tasks"].value.value) == 10_000
    assert root.value["tasks"].value.value["t9999"].value.line == 10_001
