"""Bad pipelines: each mistake at its line and column, with a rule and a way out; all of them at once, and never a traceback.

In the texts below the mark ¤ stands where a mistake is expected; it is taken out before the file is written.
"""

import re
from pathlib import Path

import pytest

from hetsched.errors import NotTrustedError, PipelineError
from hetsched.pipeline.build import check, load
from hetsched.pipeline.mistakes import Findings, Mistake, render

WAY_OUT = re.compile(
    r"did you mean|known:|write |remove |add |use |give |save |check |name |move |wants |quote|must be|start |close|paths are|needs consent|put "
    r"|reads `|without |at most|make |convert|leave |needs '|replace "
)
HEAD = "hetsched: 1\n"
LOAD = "  load: {op: data.npz, with: {path: data.npz}}\n"
OUT = "outputs: {r: {from: a}}\n"
RELU = "  a: {op: nn.relu, in: {x: load.x}}\n"
MODEL = "models:\n  m: {input: [8], layers: [{dense: {units: 4, activation: relu}}, {dense: {units: 3}}]}\n"
ROWS = "in: {x: load.x, y: load.y}"
HELD_OUT = "in: {x: load.x, y: load.y, x_val: load.x, y_val: load.y}"


def tasks(text: str, head: str = "", outputs: str = OUT) -> str:
    return f"{HEAD}{head}tasks:\n{LOAD}{text}{outputs}"


CASES: dict[str, tuple[str, str]] = {
    # the file
    "empty": ("¤", "empty"),
    "only a comment": ("¤# nothing\n", "empty"),
    "a list": ("¤- 1\n", "type"),
    "a scalar": ("¤hello\n", "type"),
    "two documents": (tasks(RELU) + "¤---\na: 1\n", "documents"),
    "tab": (f"{HEAD}tasks:\n¤\tload: {{op: data.npz}}\n", "tab"),
    "tab after spaces": (f"{HEAD}tasks:\n  a:\n  ¤\top: x\n", "tab"),
    "unclosed bracket": (f"{HEAD}tasks: {{a: [1, 2\noutputs¤: 3\n", "syntax"),
    "unclosed quote": (f"{HEAD}name: ¤'x\n", "syntax"),
    "two colons": (f"{HEAD}name: a¤: b\n", "syntax"),
    "braces around a parameter": (f"{HEAD}tasks: {{a: {{op: ¤${{x}}}}}}\n", "syntax"),
    "bad start": (f"{HEAD}name: ¤@x\n", "syntax"),
    "deep": (f"{HEAD}tasks: " + "[" * 63 + "¤[" + "[" * 100_000, "depth"),
    "deep maps": (HEAD + "tasks: " + "{a: " * 63 + "¤{a: " + "{a: " * 20_000, "depth"),
    "duplicate key": (tasks(RELU) + "¤name: x\n".replace("¤", "") + "¤name: y\n", "duplicate-key"),
    "duplicate task": (tasks(RELU + "  ¤a: {op: nn.tanh, in: {x: load.x}}\n"), "duplicate-key"),
    "merge key": (tasks("  a: {¤<<: {op: nn.relu}, op: nn.relu, in: {x: load.x}}\n"), "merge-key"),
    "alias": (tasks("  a: {op: nn.relu, in: {x: ¤*b}}\n"), "alias"),
    "anchor": (tasks("  a: {op: nn.relu, in: ¤&b {x: load.x}}\n"), "alias"),
    "tag": (tasks("  a: {op: nn.relu, in: {x: ¤!!python/name:os.system load.x}}\n"), "tag"),
    "tag on a map": (tasks("  a: ¤!!map {op: nn.relu, in: {x: load.x}}\n"), "tag"),
    "list as a key": (tasks(RELU) + "? ¤[a]\n: 1\n", "key"),
    "directive": ("¤%YAML 1.1\n---\n" + tasks(RELU), "syntax"),
    "ambiguous octal": (f"{HEAD}params: {{n: ¤017}}\ntasks:\n{LOAD}{RELU}{OUT}", "number"),
    "huge integer": (f"{HEAD}params: {{n: ¤{'9' * 5000}}}\ntasks:\n{LOAD}{RELU}{OUT}", "number"),
    "huge float": (f"{HEAD}params: {{n: ¤1e400}}\ntasks:\n{LOAD}{RELU}{OUT}", "number"),
    # the sections
    "no version": ("¤" + tasks(RELU).removeprefix(HEAD), "missing-key"),
    "other version": (tasks(RELU).replace("hetsched: 1", "hetsched: ¤2"), "version"),
    "version is a text": (tasks(RELU).replace("hetsched: 1", "hetsched: ¤'1'"), "version"),
    "version is true": (tasks(RELU).replace("hetsched: 1", "hetsched: ¤true"), "version"),
    "no tasks": ("¤hetsched: 1\n", "missing-key"),
    "empty tasks": ("hetsched: 1\ntasks: ¤{}\n", "missing-key"),
    "tasks is a list": ("hetsched: 1\ntasks:\n  ¤- load\n", "type"),
    "no outputs": ("¤" + tasks(RELU, outputs=""), "missing-key"),
    "misspelt section": (tasks(RELU, "¤parms: {a: 1}\n"), "unknown-key"),
    "name is a number": (tasks(RELU, "name: ¤5\n"), "type"),
    "unknown objective": (tasks(RELU, "objective: ¤speed\n"), "objective"),
    "objective without minimize": (tasks(RELU, "objective: ¤{deadline: 2 min}\n"), "missing-key"),
    "objective of weights, one misspelt": (tasks(RELU, "objective: {time: 1, ¤enrgy: 2}\n"), "unknown-key"),
    "weight below 0": (tasks(RELU, "objective: {time: 1, energy: ¤-2}\n"), "objective"),
    "weight is a text": (tasks(RELU, "objective: {minimize: {time: ¤much}}\n"), "objective"),
    "weights of 0": (tasks(RELU, "objective: ¤{time: 0, energy: 0}\n"), "objective"),
    "no weights": (tasks(RELU, "objective: {minimize: ¤{}}\n"), "objective"),
    "weights beside minimize": (tasks(RELU, "objective: {minimize: time, ¤energy: 1}\n"), "unknown-key"),
    "deadline without unit": (tasks(RELU, "objective: {minimize: energy, deadline: ¤120}\n"), "objective"),
    "deadline in fortnights": (tasks(RELU, "objective: {minimize: energy, deadline: ¤1 fortnight}\n"), "objective"),
    # parameters
    "unknown parameter": (tasks("  a: {op: tensor.scale, in: {x: load.x}, with: {factor: ¤$fac}}\n", "params: {factor: 2}\n"), "parameter"),
    "no parameters": (tasks("  a: {op: tensor.scale, in: {x: load.x}, with: {factor: ¤$fac}}\n"), "parameter"),
    "parameter inside a text": (tasks(RELU, "params: {n: 1}\n", "outputs: {r: {from: a, save: ¤out/$n.npy}}\n"), "parameter"),
    "parameter is a list": (tasks(RELU, "params: {n: ¤[1]}\n"), "type"),
    "parameter is nothing": (tasks(RELU, "params: {n: ¤}\n"), "type"),
    "parameter is NaN": (tasks(RELU, "params: {n: ¤.nan}\n"), "nan"),
    "parameter's name": (tasks(RELU, "params: {¤n-1: 2}\n"), "name"),
    "parameter of a wrong type": (tasks("  a: {op: tensor.scale, in: {x: load.x}, with: {factor: ¤$f}}\n", "params: {f: two}\n"), "option"),
    # tasks
    "unknown op": (tasks("  a: {op: ¤nn.rleu, in: {x: load.x}}\n"), "op"),
    "op is a number": (tasks("  a: {op: ¤3, in: {x: load.x}}\n"), "type"),
    "no op": (tasks("  ¤a: {in: {x: load.x}}\n"), "missing-key"),
    "task is a text": (tasks("  a: ¤nn.relu\n"), "type"),
    "task is nothing": (tasks("  a:¤\n"), "type"),
    "task's name": (tasks(RELU + "  ¤a.b: {op: nn.relu, in: {x: load.x}}\n"), "name"),
    "misspelt key": (tasks("  a: {op: nn.relu, ¤inn: {x: load.x}, in: {x: load.x}}\n"), "unknown-key"),
    "unknown input": (tasks("  a: {op: nn.relu, in: {x: load.x, ¤z: load.x}}\n"), "input"),
    "missing input": (tasks("  ¤a: {op: nn.relu}\n"), "input"),
    "missing second input": (tasks("  ¤a: {op: tensor.add, in: {a: load.x}}\n"), "input"),
    "list for one input": (tasks("  a: {op: nn.relu, in: {x: ¤[load.x, load.x]}}\n"), "input"),
    "input is a number": (tasks("  a: {op: nn.relu, in: {x: ¤1.5}}\n"), "type"),
    "in is a list": (tasks("  a: {op: nn.relu, in: ¤[load.x]}\n"), "type"),
    "unknown task": (tasks("  a: {op: nn.relu, in: {x: ¤laod.x}}\n"), "task"),
    "unknown output": (tasks("  b: {op: nn.relu, in: {x: load.x}}\n  a: {op: nn.relu, in: {x: ¤b.y}}\n"), "output"),
    "unknown array of a file": (tasks("  a: {op: nn.relu, in: {x: ¤load.z}}\n"), "output"),
    "which output": (tasks("  a: {op: nn.relu, in: {x: ¤load}}\n"), "output"),
    "edge without a name": (tasks("  a: {op: nn.relu, in: {x: ¤load.}}\n"), "output"),
    "option given twice over": (tasks("  a: {op: nn.relu, in: {x: load.x}, with: {¤slope: 1}}\n"), "option"),
    "missing option": (tasks("  ¤a: {op: tensor.scale, in: {x: load.x}}\n"), "option"),
    "misspelt option": (tasks("  a: {op: nn.softmax, in: {x: load.x}, with: {¤axes: 1}}\n"), "option"),
    "text for a number": (tasks("  a: {op: tensor.scale, in: {x: load.x}, with: {factor: ¤fast}}\n"), "option"),
    "NaN": (tasks("  a: {op: tensor.scale, in: {x: load.x}, with: {factor: ¤.nan}}\n"), "nan"),
    "word out of a list": (tasks("  a: {op: tensor.cast, in: {x: load.x}, with: {dtype: ¤flaot32}}\n"), "option"),
    "option out of range": (tasks("  c: {op: data.batch, in: {x: load.x}, with: {batch: ¤0}}\n  a: {op: nn.relu, in: {x: c.x}}\n"), "option"),
    "yes for true": (tasks("  s: {op: data.split, in: {x: load.x}, with: {shuffle: ¤yes}}\n" + RELU), "option"),
    "shape mismatch": (tasks("  a: {op: tensor.add, in: {a: ¤load.x, b: load.y}}\n"), "shape"),
    "dtype mismatch": (tasks("  a: {op: nn.softmax, in: {x: ¤load.y}}\n"), "shape"),
    "patience without rows": (tasks(f"{RELU}  t: {{op: nn.train, {ROWS}, with: {{model: m, ¤patience: 3}}}}\n", MODEL), "option"),
    "epochs that are not validated": (
        tasks(f"{RELU}  t: {{op: nn.train, {HELD_OUT}, with: {{model: m, epochs: 3, validate_every: ¤2}}}}\n", MODEL),
        "option",
    ),
    "share out of range": (tasks(RELU + "  s: {op: data.split, in: {x: load.x}, with: {test: ¤1.5, shuffle: false}}\n"), "option"),
    "cycle": (tasks("  ¤a: {op: nn.relu, in: {x: b}}\n  b: {op: nn.relu, in: {x: c}}\n  c: {op: nn.relu, in: {x: a}}\n"), "cycle"),
    "self edge": (tasks("  ¤a: {op: nn.relu, in: {x: a}}\n"), "cycle"),
    "cycle by after": (tasks("  ¤a: {op: nn.relu, in: {x: load.x}, after: b}\n  b: {op: nn.relu, in: {x: a}}\n"), "cycle"),
    "after an unknown task": (tasks("  a: {op: nn.relu, in: {x: load.x}, after: [load, ¤lod]}\n"), "task"),
    "after is a number": (tasks("  a: {op: nn.relu, in: {x: load.x}, after: ¤7}\n"), "type"),
    # devices
    "bad device": (tasks("  a: {op: nn.relu, in: {x: load.x}, device: ¤gpuu}\n"), "device"),
    "device's number": (tasks("  a: {op: nn.relu, in: {x: load.x}, device: ¤cuda:x}\n"), "device"),
    "gpu with a number": (tasks("  a: {op: nn.relu, in: {x: load.x}, device: ¤gpu:0}\n"), "device"),
    "device is a number": (tasks("  a: {op: nn.relu, in: {x: load.x}, device: ¤0}\n"), "device"),
    "device in a list": (tasks("  a: {op: nn.relu, in: {x: load.x}, device: [cpu, ¤cudda]}\n"), "device"),
    "no devices": (tasks("  a: {op: nn.relu, in: {x: load.x}, device: ¤[]}\n"), "device"),
    "not any": (tasks("  a: {op: nn.relu, in: {x: load.x}, device: {not: ¤any}}\n"), "device"),
    "same_as nobody": (tasks("  a: {op: nn.relu, in: {x: load.x}, device: {same_as: ¤lod}}\n"), "task"),
    "same_as itself": (tasks("  a: {op: nn.relu, in: {x: load.x}, device: {same_as: ¤a}}\n"), "device"),
    "same_as many": (tasks("  a: {op: nn.relu, in: {x: load.x}, device: {same_as: ¤load}}\n"), "device"),
    "device's key": (tasks("  a: {op: nn.relu, in: {x: load.x}, device: {¤nto: gpu}}\n"), "unknown-key"),
    # models
    "model's layer": (tasks(RELU, "models: {m: {input: [8], layers: [{¤dens: {units: 3}}]}}\n"), "model"),
    "model's option": (tasks(RELU, "models: {m: {input: [8], layers: [{dense: {¤unit: 3, units: 3}}]}}\n"), "model"),
    "model's value": (tasks(RELU, "models: {m: {input: [8], layers: [{dense: {units: ¤-3}}]}}\n"), "model"),
    "model's input": (tasks(RELU, "models: {m: {input: ¤wide, layers: [{dense: {units: 3}}]}}\n"), "model"),
    "model without layers": (tasks(RELU, "models: {m: ¤{input: [8]}}\n".replace("m: ¤", "¤m: ")), "model"),
    "NaN in a model": (tasks(RELU, "models: {m: {input: [8], layers: [{dropout: {rate: ¤.NaN}}]}}\n"), "nan"),
    "models is a list": (tasks(RELU, "models: ¤[1]\n"), "type"),
    # files
    "missing file": (tasks(RELU).replace("path: data.npz", "path: ¤dta.npz"), "file"),
    "path of nothing": (tasks(RELU).replace("path: data.npz", "path: ¤''"), "file"),
    "control character in a path": (tasks(RELU).replace("path: data.npz", 'path: ¤"a\\0b"'), "file"),
    "path escape": (tasks(RELU).replace("path: data.npz", "path: ¤../data.npz"), "path"),
    "absolute path": (tasks(RELU).replace("path: data.npz", "path: ¤/etc/passwd"), "path"),
    "damaged file": (tasks(RELU).replace("path: data.npz", "path: ¤damaged.npz"), "damaged"),
    "kernels": (tasks(RELU) + '¤kernels: {k: {arguments: {x: "in float32[n]", y: "out float32[n]"}, cuda: x, size: n}}\n', "trust"),
    "kernels is a list": (tasks(RELU) + "kernels: ¤[1]\n", "type"),
    # outputs
    "output of an unknown task": (tasks(RELU, outputs="outputs: {r: {from: ¤b}}\n"), "task"),
    "output of an unknown output": (tasks(RELU, outputs="outputs: {r: {from: ¤a.y}}\n"), "output"),
    "output without from": (tasks(RELU, outputs="outputs: {¤r: {save: r.npy}}\n"), "missing-key"),
    "output is a text": (tasks(RELU, outputs="outputs: {r: ¤a}\n"), "type"),
    "output's key": (tasks(RELU, outputs="outputs: {r: {from: a, ¤sve: r.npy}}\n"), "unknown-key"),
    "output's name": (tasks(RELU, outputs="outputs: {¤r/s: {from: a}}\n"), "name"),
    "unknown form": (tasks(RELU, outputs="outputs: {r: {from: a, save: ¤r.txt}}\n"), "save"),
    "array as a model": (tasks(RELU, outputs="outputs: {r: {from: a, save: ¤r.safetensors}}\n"), "save"),
    "saved twice": (tasks(RELU, outputs="outputs: {r: {from: a, save: r.npy}, s: {from: load.x, save: ¤./r.npy}}\n"), "save"),
    "saved over its input": (tasks(RELU, outputs="outputs: {r: {from: a, save: ¤data.npz}}\n"), "save"),
    "saved over the pipeline": (tasks(RELU, outputs="outputs: {r: {from: a, save: ¤p.yaml}}\n"), "save"),
    "saved as a folder": (tasks(RELU, outputs="outputs: {r: {from: a, save: ¤folder}}\n"), "save"),
    "saved outside": (tasks(RELU, outputs="outputs: {r: {from: a, save: ¤../r.npy}}\n"), "path"),
    "saved through a link": (tasks(RELU, outputs="outputs: {r: {from: a, save: ¤link/r.npy}}\n"), "path"),
}  # fmt: skip


def places(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without its marks, and where they stood."""
    found, line, column, out = [], 1, 1, []
    for c in text:
        if c == "¤":
            found.append((line, column))
            continue
        out.append(c)
        line, column = (line + 1, 1) if c == "\n" else (line, column + 1)
    return "".join(out), found


def error_of(path: Path) -> PipelineError | NotTrustedError | OSError:
    with pytest.raises((PipelineError, NotTrustedError, OSError)) as caught:
        load(path)
    return caught.value


@pytest.mark.parametrize("name", CASES)
def test_bad_pipeline(name: str, folder: Path) -> None:
    marked, rule = CASES[name]
    text, expected = places(marked)
    path = folder / "p.yaml"
    path.write_text(text)
    mistakes = check(path)
    assert [(m.line, m.column) for m in mistakes] == expected, render(mistakes)
    assert [m.rule for m in mistakes] == [rule] * len(expected), render(mistakes)
    for mistake in mistakes:
        assert WAY_OUT.search(mistake.message), f"no way out: {mistake.message}"
        assert "Traceback" not in mistake.message
    error = error_of(path)
    assert error.exit_code == {"path": 8, "trust": 8, "damaged": 7}.get(rule, 3)
    assert str(error).startswith(f"{path}:{expected[0][0]}:{expected[0][1]}: error: {mistakes[0].message} [{rule}]")


def test_there_are_many_bad_pipelines() -> None:
    assert len(CASES) > 100


BYTES: dict[str, tuple[bytes, tuple[int, int], str]] = {
    "not UTF-8": (b"hetsched: 1\nname: caf\xe9\n", (2, 10), "encoding"),
    "not UTF-8 after two-byte characters": ("name: éé".encode() + b"\xff", (1, 9), "encoding"),
    "not UTF-8 after a byte order mark": (b"\xef\xbb\xbfa: \xff", (1, 4), "encoding"),
    "UTF-16": ("hetsched: 1\n".encode("utf-16"), (1, 1), "encoding"),
    "a NUL": (b"hetsched: 1\nname: a\0b\n", (2, 8), "character"),
    "an escape": (b"hetsched: 1\r\nname: a\x1b[31m\r\n", (2, 8), "character"),
    "a line separator": ("name: a\u2028b\n".encode(), (1, 8), "character"),
    "a next line": ("name: a\x85b\n".encode(), (1, 8), "character"),
    "over 1 MiB": (b"#" * (1 << 20) + b"\n", (1, 1), "size"),
}


@pytest.mark.parametrize("name", BYTES)
def test_bad_bytes(name: str, folder: Path) -> None:
    data, place, rule = BYTES[name]
    path = folder / "p.yaml"
    path.write_bytes(data)
    mistakes = check(path)
    assert [(m.line, m.column, m.rule) for m in mistakes] == [(*place, rule)]
    assert "\x1b" not in render(mistakes)
    assert WAY_OUT.search(mistakes[0].message)


def test_a_byte_order_mark_is_no_mistake(folder: Path) -> None:
    path = folder / "p.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + tasks(RELU).encode())
    assert check(path) == []


def test_every_mistake_is_told_at_once(folder: Path) -> None:
    text, expected = places(
        "hetsched: 1\n"
        "¤parms: {lr: 1}\n"
        "objective: ¤fast\n"
        "models: {m: {input: [8], layers: [{dense: {units: ¤0}}, {¤relo: {}}]}}\n"
        "tasks:\n"
        "  load: {op: data.npz, with: {path: ¤no.npz, ¤pth: x}}\n"
        "  a: {op: ¤nn.rleu, in: {x: load.x}, device: ¤abacus}\n"
        "  b: {op: tensor.scale, in: {¤y: a, x: ¤nobody}, with: {factor: ¤$lr}}\n"
        "  ¤c: {op: nn.relu, in: {x: d}}\n"
        "  d: {op: nn.relu, in: {x: c}}\n"
        "  ¤e: {op: nn.relu}\n"
        "  ¤e: {}\n"
        "outputs:\n"
        "  r: {from: ¤q, ¤kind: z}\n"
    )
    path = folder / "p.yaml"
    path.write_text(text)
    mistakes = check(path)
    assert [(m.line, m.column) for m in mistakes] == expected, render(mistakes)
    assert str(error_of(path)).endswith(f"{len(expected)} mistakes")


def test_a_mistake_is_told_once_not_again_by_every_reader(folder: Path) -> None:
    path = folder / "p.yaml"
    path.write_text(tasks("  b: {op: tensor.add, in: {a: load.x, b: load.y}}\n  c: {op: nn.relu, in: {x: b}}\n  a: {op: nn.relu, in: {x: c}}\n"))
    assert [(m.line, m.rule) for m in check(path)] == [(4, "shape")]


def test_the_line_and_a_caret_are_shown() -> None:
    mistake = Mistake("p.yaml", 3, 8, "unknown op 'x'", "op", "  日本: x")
    assert mistake.render() == "p.yaml:3:8: error: unknown op 'x' [op]\n  " + "  日本: x\n  " + " " * 9 + "^"
    assert Mistake("p.yaml", 1, 2, "m", "r", "\ta").render().splitlines()[-1] == "  \t^"


def test_long_lines_are_cut_around_the_place() -> None:
    source = "x" * 500 + "!" + "y" * 500
    _, line, caret = Mistake("p", 1, 501, "m", "r", source).render().splitlines()
    assert len(line) < 180
    assert line[caret.index("^")] == "!"


def test_many_mistakes_are_counted() -> None:
    findings = Findings("p", ["x"])
    for i in range(150):
        findings.at(1, 1, f"m{i}", "r")
    text = render(findings.sorted())
    assert text.endswith("... and 50 more\n150 mistakes")


def test_two_cycles_are_both_named_with_their_paths(folder: Path) -> None:
    path = folder / "p.yaml"
    relu = "  {}: {{op: nn.relu, in: {{x: {}}}}}\n"
    path.write_text(tasks("".join(relu.format(a, b) for a, b in ["ab", "bc", "ca", "de", "ed", "fa"]), outputs="outputs: {r: {from: load.x}}\n"))
    assert [(m.line, m.message.partition(";")[0]) for m in check(path)] == [(4, "cycle: a -> c -> b -> a"), (7, "cycle: d -> e -> d")]


def test_a_long_cycle_is_told_by_its_ends(folder: Path) -> None:
    path = folder / "p.yaml"
    path.write_text(
        tasks("".join(f"  t{i}: {{op: nn.relu, in: {{x: t{(i + 1) % 5000}}}}}\n" for i in range(5000)), outputs="outputs: {r: {from: load.x}}\n")
    )
    (mistake,) = check(path)
    assert (mistake.line, mistake.rule) == (4, "cycle")
    assert mistake.message.startswith("cycle: t0 -> t4999 -> t4998")
    assert "-> (4981 more) ->" in mistake.message


def test_a_hopeless_file_is_given_up_after_500_mistakes(folder: Path) -> None:
    path = folder / "p.yaml"
    path.write_text("".join(f"k{i}: 1\n" for i in range(2000)))
    assert len(check(path)) == 501
    assert str(error_of(path)).endswith("... and 401 more\n501 mistakes")


def test_a_huge_word_does_not_fill_the_screen(folder: Path) -> None:
    path = folder / "p.yaml"
    path.write_text(f"hetsched: 1\ntasks: {{a: {{op: {'x' * 500_000}}}}}\n")
    assert len(render(check(path))) < 3000


def test_circles_of_same_as_are_told_once_each(folder: Path) -> None:
    path = folder / "p.yaml"
    normal = "  {}: {{op: random.normal, with: {{shape: 2}}, device: {{same_as: {}}}}}\n"
    path.write_text(tasks("".join(normal.format(a, b) for a, b in ["ab", "bc", "cb", "dd"]), outputs="outputs: {r: {from: load.x}}\n"))
    assert [(m.line, m.message.partition(";")[0]) for m in check(path)] == [
        (5, "same_as goes in a circle: b -> c -> b"),
        (7, "same_as goes in a circle: d -> d"),
    ]
