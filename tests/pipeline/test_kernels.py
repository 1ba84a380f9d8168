"""The section `kernels:`: mistakes at their places, sources in files, errors of compilers at the user's own lines."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hetsched as hs
from hetsched.cli import main
from hetsched.pipeline.build import check, load
from hetsched.testing import opencl

FILE = """\
hetsched: 1
kernels:
  scaled:
    arguments:
      x: in float32[n, m]
      y: out float32[n, m]
      by: option float32 = 2.0
      count: value int64 = n * m
    opencl: |

      __kernel void scaled(__global const float *x, __global float *y, const float by, const long count) {
          const long i = get_global_id(0);
          if (i < count) y[i] = x[i] * by;
      }
    size: x.size
    cost: {flops: n * m}
tasks:
  x: {op: random.normal, with: {shape: [3, 5]}}
  y: {op: kernels.scaled, in: {x: x}, with: {by: 4}}
outputs:
  x: {from: x}
  y: {from: y}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "p.yaml"
    file.write_text(FILE)
    return file


@pytest.mark.skipif(not opencl.available(), reason="no OpenCL device works here")
def test_a_kernel_of_the_file_runs(path: Path) -> None:
    pipeline = load(path, trust=True)
    result = hs.run(pipeline.graph)
    np.testing.assert_allclose(result["y"], 4 * result["x"], rtol=1e-6)
    assert result.plan.device_of(pipeline.graph.task_index["y"]) == "opencl:0"


@pytest.mark.skipif(not opencl.available(), reason="no OpenCL device works here")
def test_a_complaint_of_the_compiler_stands_at_the_users_line(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(FILE.replace("x[i] * by", "x[i] * b"))
    assert main(["run", str(path), "--trust"]) == 1
    told = capsys.readouterr().err
    assert f"{path}:13:40: error: use of undeclared identifier 'b'" in told
    assert "task 'y' failed" in told
    assert FILE.split("\n")[12][39] == "b"


@pytest.mark.skipif(not opencl.available(), reason="no OpenCL device works here")
def test_a_source_in_a_file_of_its_own(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = FILE.split("\n")
    source = "\n".join(line[6:] for line in lines[9:14]) + "\n"
    (path.parent / "sources").mkdir()
    (path.parent / "sources" / "k.cl").write_text(source)
    path.write_text("\n".join([*lines[:8], "    opencl: {file: sources/k.cl}", *lines[14:]]))
    assert main(["run", str(path), "--trust"]) == 0
    (path.parent / "sources" / "k.cl").write_text(source.replace("* by;", "* b;"))
    assert main(["run", str(path), "--trust"]) == 1
    assert f"{path.parent}/sources/k.cl:4:34: error: use of undeclared identifier 'b'" in capsys.readouterr().err


MISTAKES: list[tuple[str, str, str, tuple[int, int], str]] = [
    ("kernels:\n", "kernels: 3\nx:\n", "kernels must be a map", (2, 10), "type"),
    ("    arguments:\n", "    argumnts:\n", "has no key 'argumnts'; did you mean 'arguments'", (4, 5), "unknown-key"),
    ("    size: x.size\n", "", "kernel 'scaled' has no size; add it, such as `size: n`", (3, 3), "missing-key"),
    ("in float32[n, m]", "in float31[n, m]", "unknown dtype 'float31'", (5, 10), "kernel"),
    ("in float32[n, m]", "float32[n, m]", "is declared as", (5, 10), "kernel"),
    ("x.size", "n * k", "'n * k' uses 'k', which is not known", (15, 11), "kernel"),
    ("x.size", "[n, m, 1, 1]", "size has 4 axes; a launch has 1 to 3", (15, 11), "kernel"),
    ("x.size", "{n: 1}", "size must be an expression or a list of them", (15, 11), "type"),
    ("    size: x.size\n", "    size: n\n    group: [8, 8]\n", "group [8, 8] must be whole numbers", (16, 12), "kernel"),
    ("    size: x.size\n", "    size: n\n    group: big\n", "group must be a whole number", (16, 12), "type"),
    ("    size: x.size\n", "    size: n\n    check: tensor.ngg\n", "unknown op 'tensor.ngg'", (16, 12), "kernel"),
    ("flops: n * m", "flops: n * q", "'n * q' uses 'q'", (16, 19), "kernel"),
    ("flops: n * m", "flop: n * m", "has no key 'flop'; did you mean 'flops'", (16, 12), "unknown-key"),
    ("= n * m\n", "= n * q\n", "'n * q' uses 'q'", (8, 14), "kernel"),
    ("y: out float32[n, m]", "y: out float32[n, k]", "'k' uses 'k'", (6, 10), "kernel"),
    ("op: kernels.scaled", "op: kernels.scald", "unknown op 'kernels.scald'; did you mean 'kernels.scaled'", (19, 11), "op"),
    ("by: 4", "by: four", "wants a number", (19, 50), "option"),
    ("shape: [3, 5]", "shape: [3]", "x must have 2 axes", (19, 35), "shape"),
]


@pytest.mark.parametrize(("old", "new", "says", "place", "rule"), MISTAKES, ids=[m[2][:30] for m in MISTAKES])
def test_mistakes_at_their_places(path: Path, old: str, new: str, says: str, place: tuple[int, int], rule: str) -> None:
    assert FILE.count(old) == 1
    path.write_text(FILE.replace(old, new))
    found = check(path, trust=True)
    matching = [m for m in found if says in m.message]
    assert matching, [str(m) for m in found]
    assert [(m.line, m.column, m.rule) for m in matching] == [(*place, rule)]


def test_a_broken_kernel_is_not_told_again_at_its_uses(path: Path) -> None:
    path.write_text(FILE.replace("in float32[n, m]", "in float31[n, m]"))
    assert len(check(path, trust=True)) == 1


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{file: no.cl}", "there is no file 'no.cl'"),
        ("{file: ../k.cl}", "leaves this file's folder"),
        ("{fil: k.cl}", "has no key 'fil'; did you mean 'file'"),
        ("[a]", "a source must be a text"),
    ],
)
def test_sources_that_cannot_be_read(path: Path, source: str, says: str) -> None:
    lines = FILE.split("\n")
    path.write_text("\n".join([*lines[:8], f"    opencl: {source}", *lines[14:]]))
    found = check(path, trust="leaves" not in says)
    assert any(says in m.message and (m.line, m.column) >= (9, 13) for m in found), [str(m) for m in found]


def test_kernels_without_consent_are_exit_8_and_other_mistakes_come_first(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(path)]) == 8
    path.write_text(FILE.replace("by: 4", "by: four"))
    assert main(["run", str(path)]) == 3
    capsys.readouterr()


def test_the_schema_takes_kernels() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    yaml = pytest.importorskip("yaml")
    from hetsched.pipeline.schema import schema

    form: Any = schema()
    # The allOf over every op is left to test_schema.py: it costs a second a file.
    form["$defs"]["Task"].pop("allOf")
    validator = jsonschema.Draft202012Validator(form)
    assert validator.is_valid(yaml.safe_load(FILE))
    for old, new in (("size: x.size", "sizes: 1"), ("kernels.scaled", "kernls.scaled"), ("cost: {flops", "cost: {flop")):
        assert not validator.is_valid(yaml.safe_load(FILE.replace(old, new)))
