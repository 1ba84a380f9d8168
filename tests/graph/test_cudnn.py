"""Convolutions by cuDNN, against a library with its functions on memory of the host; a card shows the real one."""

import ctypes
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hetsched.graph.ops import _cudnn, find
from hetsched.graph.spec import Spec
from tests.cuda_host import COMPILER
from tests.graph.test_cuda_small import Library, seen_by_cuda

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")


class Xp(Library):
    """CuPy to look at: NumPy, with a stream."""

    __name__, __file__ = "cupy", "cupy/__init__.py"
    stream = 1234

    def __init__(self, folder):
        super().__init__(folder)
        self.cuda = SimpleNamespace(
            Device=lambda: SimpleNamespace(id=id(self)), get_current_stream=lambda: SimpleNamespace(ptr=self.stream)
        )  # fmt: skip

    def empty(self, *given, **named):
        return np.empty(*given, **named).view(type(seen_by_cuda(np.empty(0))))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cudnn")
    source = Path(__file__).with_name("fake_cudnn.cpp")
    subprocess.run([COMPILER, "-std=c++17", "-O1", "-shared", "-fPIC", "-o", folder / "cudnn.so", source], check=True, timeout=600)
    return folder


@pytest.fixture
def xp(built, monkeypatch):
    loaded = ctypes.CDLL(str(built / "cudnn.so"))
    monkeypatch.setattr(_cudnn, "_opened", [_cudnn.Cudnn(loaded)])
    monkeypatch.delenv("HETSCHED_CUDNN", raising=False)
    loaded.cudnn_refuse(-1)
    xp = Xp(built / str(len(list(built.iterdir()))))
    xp.folder.mkdir()
    start = [loaded.cudnn_count(i) for i in range(8)]
    xp.counts = lambda: [loaded.cudnn_count(i) - start[i] for i in range(8)]
    xp.refuse = loaded.cudnn_refuse
    return xp


CASES = [
    ((3, 4, 7, 6), (6, 4, 3, 3), {"padding": 1}),
    ((2, 4, 9, 8), (6, 2, 3, 2), {"stride": [2, 1], "padding": [1, 0], "groups": 2, "dilation": [1, 2]}),
    ((1, 1, 5, 5), (2, 1, 5, 5), {}),
]


def run(xp, name, inputs, workspace=None, **options):
    """What the NumPy kernel and the CUDA kernel give."""
    op = find(name)
    attributes = op.check_attributes(options)
    specs = op.infer([Spec(x.shape, x.dtype) for x in inputs], attributes)
    wanted = [np.empty(s.bounds, s.dtype) for s in specs]
    found = [seen_by_cuda(np.full(s.bounds, 99, s.dtype)) for s in specs]
    op.kernels["array"](np, inputs, wanted, None, attributes)
    op.kernels["cuda"](xp, [seen_by_cuda(x) for x in inputs], found, workspace, attributes)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("images", "weights", "options"), CASES)
def test_the_three_products(xp, dtype, images, weights, options):
    rng = np.random.default_rng(0)
    x, w, b = (rng.normal(size=s).astype(dtype) for s in (images, weights, weights[:1]))
    op = find("nn.conv2d")
    (y,) = op.infer([Spec(images, dtype), Spec(weights, dtype)], op.check_attributes(options))
    dy = rng.normal(size=y.bounds).astype(dtype)
    for room in (None, seen_by_cuda(np.zeros(1 << 12, np.uint8))):
        run(xp, "nn.conv2d", [x, w], room, **options)
        run(xp, "nn.conv2d", [x, w, b], room, activation="relu", **options)
        run(xp, "nn.conv2d_grad_input", [w, dy], room, image=images[2:], **options)
        run(xp, "nn.conv2d_grad_weight", [x, dy], room, kernel=weights[2:], **options)
    # One handle, set once; descriptors and an algorithm for each of three ways.
    assert xp.counts() == [1, 1, 12, 3, 4, 2, 2, 0]
    assert xp.launched == ["channel_bias", "reduced_rows", "reduced_columns"] * 2


def test_another_stream_is_told_to_the_handle(xp):
    x, w = np.ones((1, 1, 4, 4), np.float32), np.ones((1, 1, 2, 2), np.float32)
    for stream in (1, 1, 2, 2, 1):
        xp.stream = stream
        run(xp, "nn.conv2d", [x, w])
    assert xp.counts()[:2] == [1, 3]


def test_what_cudnn_refuses_is_multiplied_and_not_asked_for_again(xp):
    x, w = np.ones((2, 3, 6, 6), np.float32), np.ones((4, 3, 3, 3), np.float32)
    xp.lib = np.lib
    xp.refuse(4)
    for _ in range(2):
        run(xp, "nn.conv2d", [x, w])
    assert xp.counts() == [1, 1, 4, 1, 0, 0, 0, 1]
    xp.refuse(-1)
    run(xp, "nn.conv2d", [x, w], padding=1)
    assert xp.counts()[4] == 1


def test_what_is_not_for_cudnn(xp, monkeypatch):
    x, w = np.ones((2, 3, 6, 6), np.float32), np.ones((4, 3, 2, 2), np.float32)
    run(xp, "nn.conv2d", [x, w], padding="same")  # one more zero below than above
    run(xp, "nn.conv2d", [x.astype(np.float16), w.astype(np.float16)])
    run(xp, "nn.conv2d", [x[:0], w])
    monkeypatch.setenv("HETSCHED_CUDNN", "0")
    run(xp, "nn.conv2d", [x, w])
    assert not any(xp.counts())


def test_it_is_looked_for_where_it_can_be(built, monkeypatch, tmp_path):
    assert _cudnn._candidates()[-1] == _cudnn._NAME
    nothing, whole = tmp_path / "nothing" / _cudnn._NAME, tmp_path / "whole" / _cudnn._NAME
    for path in (nothing, whole):
        path.parent.mkdir()
    nothing.write_bytes(b"not a library")
    monkeypatch.setattr(_cudnn, "_candidates", lambda: [str(nothing), str(whole), "libnowhere.so.9"])
    assert _cudnn._open() is None
    whole.write_bytes((built / "cudnn.so").read_bytes())
    assert _cudnn._open() is None  # its parts are missing: the real one would end the process
    for part in _cudnn._PARTS:
        whole.with_name(_cudnn._NAME.replace("cudnn", f"cudnn_{part}")).write_bytes((built / "cudnn.so").read_bytes())
    assert _cudnn._open() is not None
