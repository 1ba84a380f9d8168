"""Whatever a file holds, what comes out is a pipeline, or mistakes with places: never another exception."""

import random
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hetsched.errors import CommandLineError
from hetsched.pipeline.build import check
from hetsched.pipeline.mistakes import render

SHIPPED = Path(__file__).parents[2] / "pipelines"
SEEDS = {p.name: p.read_text() for p in sorted(SHIPPED.glob("*.yaml"))}
TOKENS = re.compile(r"\s+|[\w.$/-]+|.", re.DOTALL)
WORDS = [
    "{", "}", "[", "]", ":", ",", "-", "\n", "  ", "\t", "'", '"', "&a", "*a", "!!str",
    "<<", "|", ">", "#", "---", "?", "%", "~", "null", "true", "no", "0", "-1", "1.5",
    "1e999", ".nan", ".inf",
    "017", "99999999999999999999", "$seed", "$$", "$", "${x}",
    "load", "load.x", "train.model", "split",
    "op", "in", "with", "device", "after",
    "same_as",
    "not", "gpu", "cpu", "any", "data.npz", "nn.train", "nn.relu", "tensor.matmul", "tensor.concat", "model.load", "model.save",
    "data.csv", "data.batch",
    "../x", "/etc/passwd", "é", "\u2028", "\x00", "adam", "adm", "softmax", "same",
]  # fmt: skip
MILD = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def is_sound(path: Path) -> None:
    try:
        mistakes = check(path)
    except CommandLineError:
        pytest.fail("nothing was given on the command line")
    for mistake in mistakes:
        assert mistake.line >= 1
        assert mistake.column >= 1
        assert mistake.message
    render(mistakes).encode("utf-8", "surrogatepass")


@given(data=st.binary(max_size=300))
@MILD
def test_random_bytes(data: bytes, folder: Path) -> None:
    (folder / "p.yaml").write_bytes(data)
    is_sound(folder / "p.yaml")


@given(name=st.sampled_from(sorted(SEEDS)), seed=st.integers(0, 1 << 32), count=st.integers(1, 6))
@MILD
def test_shipped_files_with_words_changed(name: str, seed: int, count: int, folder: Path) -> None:
    rng = random.Random(seed)
    tokens = TOKENS.findall(SEEDS[name].replace("data/digits.npz", "data.npz").replace("rows: 6000", "rows: 60"))
    for _ in range(count):
        i = rng.randrange(len(tokens))
        change = rng.randrange(4)
        if change == 0:
            tokens[i] = rng.choice(WORDS)
        elif change == 1:
            del tokens[i]
        elif change == 2:
            tokens.insert(i, rng.choice(tokens))
        else:
            j = rng.randrange(len(tokens))
            tokens[i], tokens[j] = tokens[j], tokens[i]
    (folder / "p.yaml").write_text("".join(tokens))
    is_sound(folder / "p.yaml")


OPTIONS = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 1 << 40) | st.floats() | st.sampled_from(["x", "m", "adam", "same", "float32", "label", "[", ""]),
    lambda t: st.lists(t, max_size=3) | st.dictionaries(st.sampled_from(["adam", "lr", "dense", "units", "input", "layers", "x"]), t, max_size=3),
    max_leaves=5,
)


def yaml_of(value: object) -> str:
    """A value in YAML's flow style."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {yaml_of(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(yaml_of, value)) + "]"
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return ".nan" if value != value else ".inf" if value > 0 else "-.inf"
    return {None: "null", True: "true", False: "false"}.get(value, repr(value)) if value is None or isinstance(value, bool) else repr(value)


@given(data=st.data())
@settings(MILD, max_examples=300)
def test_every_op_with_any_options(data: st.DataObject, folder: Path) -> None:
    """Each op is given odd options and odd inputs; whatever it makes of them is a graph or a mistake."""
    from hetsched.graph.ops import registry

    op = registry()[data.draw(st.sampled_from(sorted(registry())))]
    options = {name: data.draw(OPTIONS) for name in op.attributes if data.draw(st.booleans()) and name not in ("path", "key")}
    if "path" in op.attributes:
        options["path"] = data.draw(st.sampled_from(["data.npz", "damaged.npz", "data.csv", "folder"]))
    (folder / "data.csv").write_text("a,b\n1,2\n3,x\n")
    sources = ["load.x", "load.y", "s", "c.x", "t.model"]
    inputs = {
        name.rstrip("?*"): data.draw(st.lists(st.sampled_from(sources), max_size=3) if name.endswith("*") else st.sampled_from(sources))
        for name in op.inputs
        if not name.endswith("?") or data.draw(st.booleans())
    }
    (folder / "p.yaml").write_text(
        "hetsched: 1\n"
        "models: {m: {input: [8], layers: [{dense: {units: 3}}]}}\n"
        "tasks:\n"
        "  load: {op: data.npz, with: {path: data.npz}}\n"
        "  s: {op: random.normal, with: {shape: []}}\n"
        "  c: {op: data.batch, in: {x: load.x}, with: {batch: 6}}\n"
        "  t: {op: nn.train, in: {x: load.x, y: load.y}, with: {model: m}}\n"
        f"  a: {{op: {op.name}, in: {yaml_of(inputs)}, with: {yaml_of(options)}}}\n"
        "outputs: {r: {from: a}, s: {from: s}}\n"
    )
    is_sound(folder / "p.yaml")
