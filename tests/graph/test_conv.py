"""nn.conv2d and its gradients agree with a loop over every output, and with central differences."""

import itertools

import numpy as np
import pytest

from hetsched.errors import GraphError
from hetsched.graph.graph import Graph
from hetsched.graph.ops import conv
from hetsched.graph.ops.conv import CONV2D, CONV2D_GRAD_INPUT, CONV2D_GRAD_WEIGHT
from hetsched.graph.spec import Spec, UpTo
from hetsched.testing.ops import Case, check_op
from hetsched.testing.reference import launch

OPTIONS = {"stride": (1,), "padding": 0, "dilation": (1,), "groups": 1}

# images [n, c, h, w], outputs, window, options
SHAPES = [
    ((2, 3, 5, 4), 4, (3, 3), {"padding": 1}),
    ((1, 1, 1, 1), 1, (1, 1), {}),
    ((3, 2, 4, 4), 2, (1, 1), {"padding": 2}),
    ((2, 2, 6, 5), 3, (2, 3), {"padding": "same"}),
    ((2, 2, 6, 5), 3, (2, 4), {"padding": "same", "dilation": (2, 1)}),
    ((2, 4, 7, 6), 6, (3, 2), {"stride": (2, 3), "padding": (2, 1), "groups": 2}),
    ((2, 3, 7, 8), 3, (3, 3), {"stride": 2, "groups": 3, "dilation": (1, 2), "padding": [1, 2]}),
    ((2, 3, 8, 7), 3, (3, 3), {"groups": 3, "dilation": 2, "padding": (3, 0)}),
    ((2, 1, 3, 9), 2, (3, 1), {"padding": (4, 0), "stride": (1, 4)}),
    ((1, 2, 5, 5), 1, (5, 5), {"padding": "valid"}),
    ((0, 2, 4, 4), 3, (3, 3), {"padding": 1}),
    ((2, 0, 4, 4), 3, (3, 3), {"padding": 1}),
    ((2, 2, 4, 4), 0, (3, 3), {}),
    ((2, 2, 0, 3), 2, (2, 2), {"padding": 1}),
]


def pads_of(padding, kernel, dilation):
    if padding == "same":
        total = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
        return [(t // 2, t - t // 2) for t in total]
    if padding == "valid":
        padding = 0
    values = [padding] if isinstance(padding, int) else list(padding)
    return [(p, p) for p in (values * 2)[:2]]


def windows(h, w, kernel, *, stride, padding, dilation):
    """(output row, output column, window row, window column, image row, image column) of all that lies in the image, and the output's extents."""
    stride, dilation = (list(stride) * 2)[:2], (list(dilation) * 2)[:2]
    pads = pads_of(padding, kernel, dilation)
    out = [(n + sum(p) - d * (k - 1) - 1) // s + 1 for n, p, k, s, d in zip((h, w), pads, kernel, stride, dilation, strict=True)]
    found = []
    for r, s, i, j in itertools.product(range(out[0]), range(out[1]), range(kernel[0]), range(kernel[1])):
        row, column = r * stride[0] + i * dilation[0] - pads[0][0], s * stride[1] + j * dilation[1] - pads[1][0]
        if 0 <= row < h and 0 <= column < w:
            found.append((r, s, i, j, row, column))
    return found, out


def naive(x, weight, bias=None, *, groups, activation="none", **geometry):
    n, c, h, w = x.shape
    o = weight.shape[0]
    found, out = windows(h, w, weight.shape[2:], **geometry)
    y = np.zeros((n, o, *out))
    for r, s, i, j, row, column in found:
        for k in range(o):
            group = k // (o // groups)
            for d in range(c // groups):
                y[:, k, r, s] += weight[k, d, i, j] * x[:, group * (c // groups) + d, row, column]
    if bias is not None:
        y += bias[:, None, None]
    return np.maximum(y, 0) if activation == "relu" else y


def naive_grad_weight(x, dy, *, kernel, groups, **geometry):
    _, c, h, w = x.shape
    o = dy.shape[1]
    dw = np.zeros((o, c // groups, *kernel))
    for r, s, i, j, row, column in windows(h, w, kernel, **geometry)[0]:
        for k in range(o):
            group = k // (o // groups)
            for d in range(c // groups):
                dw[k, d, i, j] += np.sum(dy[:, k, r, s] * x[:, group * (c // groups) + d, row, column])
    return dw, dy.sum(axis=(0, 2, 3))


def naive_grad_input(weight, dy, *, image, groups, **geometry):
    n, o = dy.shape[:2]
    c = weight.shape[1] * groups
    dx = np.zeros((n, c, *image))
    for r, s, i, j, row, column in windows(*image, weight.shape[2:], **geometry)[0]:
        for k in range(o):
            group = k // (o // groups)
            for d in range(c // groups):
                dx[:, group * (c // groups) + d, row, column] += weight[k, d, i, j] * dy[:, k, r, s]
    return dx


def drawn(rng, shape, outputs, window, options):
    groups = options.get("groups", 1)
    return rng.normal(size=shape), rng.normal(size=(outputs, shape[1] // groups, *window)), rng.normal(size=outputs)


def test_conv2d_agrees_with_the_loop():
    def cases(rng):
        for i, (shape, outputs, window, options) in enumerate(SHAPES):
            x, w, b = drawn(rng, shape, outputs, window, options)
            yield Case((x, w, b) if i % 2 else (x, w), options)
            yield Case((x, w, b) if i % 3 else (x, w), {**options, "activation": "relu"})

    assert check_op(CONV2D, cases, reference=naive) == 2 * len(SHAPES)


def test_gradient_of_the_weights_agrees_with_the_loop():
    def cases(rng):
        for shape, outputs, window, options in SHAPES:
            x, w, _ = drawn(rng, shape, outputs, window, options)
            dy = naive(x, w, **{**OPTIONS, **CONV2D.check_attributes(options), "activation": "none"})
            yield Case((x, rng.normal(size=dy.shape)), {**options, "kernel": window})

    check_op(CONV2D_GRAD_WEIGHT, cases, reference=naive_grad_weight)


def test_gradient_of_the_images_agrees_with_the_loop():
    def cases(rng):
        for shape, outputs, window, options in SHAPES:
            x, w, _ = drawn(rng, shape, outputs, window, options)
            dy = naive(x, w, **{**OPTIONS, **CONV2D.check_attributes(options), "activation": "none"})
            yield Case((w, rng.normal(size=dy.shape)), {**options, "image": shape[2:]})

    check_op(CONV2D_GRAD_INPUT, cases, reference=naive_grad_input)


@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2, "padding": 1}, {"padding": "same", "dilation": 2, "groups": 2}])
def test_blocks_of_images_give_what_one_block_gives(monkeypatch, options):
    """Seven images in blocks of three: the last block is smaller and lies in a buffer that held others."""
    rng = np.random.default_rng(3)
    x, w, b = drawn(rng, (7, 2, 6, 5), 4, (3, 3), options)
    case = Case((x, w, b), {**options, "activation": "relu"})
    y = naive(x, w, **{**OPTIONS, **CONV2D.check_attributes(options)})
    full = {**OPTIONS, **CONV2D.check_attributes(options)}
    geometry = conv._geometry(7, 2, 6, 5, 4, (3, 3), 8, conv._options(full))
    monkeypatch.setattr(conv, "_BLOCK_NBYTES", 3 * 8 * geometry.groups * geometry.patch * geometry.positions)
    conv._geometry.cache_clear()
    assert conv._geometry(7, 2, 6, 5, 4, (3, 3), 8, conv._options(full)).images == 3
    try:
        check_op(CONV2D, [case], reference=naive, dtypes=["float64"])
        check_op(CONV2D_GRAD_WEIGHT, [Case((x, y), {**options, "kernel": (3, 3)})], reference=naive_grad_weight, dtypes=["float64"])
        check_op(CONV2D_GRAD_INPUT, [Case((w, y), {**options, "image": (6, 5)})], reference=naive_grad_input, dtypes=["float64"])
    finally:
        conv._geometry.cache_clear()


def test_a_kernel_allocates_where_no_workspace_is_given():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 3, 5, 5)), rng.normal(size=(4, 3, 3, 3))
    attributes = CONV2D.check_attributes({"padding": 1})
    y = np.empty((2, 4, 5, 5))
    CONV2D.kernels["array"](np, [x, w], [y], None, attributes)
    np.testing.assert_array_equal(y, launch(CONV2D, [x, w], [Spec(x.shape, x.dtype), Spec(w.shape, w.dtype)], attributes)[0])


def test_infinite_and_nan_pixels_stay_in_their_windows():
    x = np.ones((1, 1, 5, 5))
    x[0, 0, 0, 4] = np.nan
    x[0, 0, 4, 0] = np.inf
    w = np.ones((1, 1, 3, 3))
    (y,) = launch(CONV2D, [x, w], [Spec(x.shape, x.dtype), Spec(w.shape, w.dtype)], CONV2D.check_attributes({"padding": 1}))
    touched = np.zeros((5, 5), bool)
    touched[:2, 3:] = touched[3:, :2] = True
    np.testing.assert_array_equal(np.isfinite(y[0, 0]), ~touched)


def test_a_bounded_batch_stays_bounded():
    specs = [Spec((UpTo(9), 3, 8, 8)), Spec((4, 3, 3, 3))]
    assert list(CONV2D.infer(specs, CONV2D.check_attributes({"padding": "same"}))) == [Spec((UpTo(9), 4, 8, 8))]


@pytest.mark.parametrize(
    ("x", "weight", "bias", "options", "words"),
    [
        ((2, 3, 8), (4, 3, 3, 3), None, {}, "x must have 4 axes (images, channels, rows, columns), got float32[2, 3, 8]"),
        ((2, 3, 8, 8), (4, 3, 3), None, {}, "weight must have 4 known axes"),
        ((2, 3, 8, 8), (4, 2, 3, 3), None, {}, "weight float32[4, 2, 3, 3] with 1 group(s) wants 2 channels, x float32[2, 3, 8, 8] has 3"),
        ((2, 3, 8, 8), (4, 3, 3, 3), None, {"groups": 2}, "groups = 2 must divide the 3 channels of x and the 4 outputs of weight"),
        ((2, 3, 8, 8), (4, 3, 3, 3), (3,), {}, "bias must be float32[4], got float32[3]"),
        (
            (2, 3, 2, 8),
            (4, 3, 3, 3),
            None,
            {},
            "2 rows with padding 0 + 0 are fewer than the 3 a kernel covers; use a smaller kernel or more padding",
        ),
        ((2, 3, 8, 8), (4, 3, 3, 3), None, {"padding": "sane"}, "padding wants 'same', 'valid', or whole numbers of at least 0, got 'sane'"),
        ((2, 3, 8, 8), (4, 3, 3, 3), None, {"padding": -1}, "padding wants"),
        ((2, 3, 8, 8), (4, 3, 3, 3), None, {"padding": (1, 1, 1)}, "padding wants one number or two (rows, columns), got (1, 1, 1)"),
        ((2, 3, 8, 8), (4, 3, 3, 3), None, {"padding": "same", "stride": 2}, "padding 'same' wants stride 1, got (2, 2)"),
        ((2, 3, 8, 8), (4, 3, 3, 3), None, {"stride": (1, 2, 3)}, "stride wants one number or two"),
        ((2, 3, UpTo(8), 8), (4, 3, 3, 3), None, {}, "only the number of images of x may be bounded"),
    ],
)
def test_errors_say_what_is_wrong(x, weight, bias, options, words):
    specs = [Spec(x), Spec(weight), *([Spec(bias)] if bias else [])]
    with pytest.raises(GraphError) as caught:
        CONV2D.infer(specs, CONV2D.check_attributes(options))
    assert words in str(caught.value)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(GraphError) as caught:
        CONV2D.infer([Spec((2, 3, 2, 8)), Spec((4, 2, 3, 3), np.float64), Spec((5,))], CONV2D.check_attributes({}))
    assert len(caught.value.problems) == 4


def test_gradients_refuse_a_dy_of_another_shape():
    with pytest.raises(GraphError, match=r"dy must be float32\[2, 4, 6, 6\] for images of 8 x 8, got float32\[2, 4, 8, 8\]"):
        CONV2D_GRAD_WEIGHT.infer([Spec((2, 3, 8, 8)), Spec((2, 4, 8, 8))], CONV2D_GRAD_WEIGHT.check_attributes({"kernel": (3, 3)}))
    with pytest.raises(GraphError, match=r"dy must be float32\[2, 4, 6, 6\]"):
        CONV2D_GRAD_INPUT.infer([Spec((4, 3, 3, 3)), Spec((2, 4, 8, 8))], CONV2D_GRAD_INPUT.check_attributes({"image": (8, 8)}))


def test_work_counts_multiplications_and_additions():
    specs = [Spec((2, 4, 8, 8)), Spec((6, 2, 3, 3))]
    attributes = CONV2D.check_attributes({"groups": 2})
    y = CONV2D.infer(specs, attributes)
    assert CONV2D.work(specs, y, attributes).flops == 2 * (2 * 6 * 6 * 6) * (2 * 3 * 3)


def test_weight_and_bias_gradients_are_one_task_and_unwanted_ones_none():
    from hetsched.graph.gradient import gradient

    b = Graph.build()
    x, w, bias = b.input("x", (2, 1, 5, 5)), b.input("w", (3, 1, 3, 3)), b.input("b", (3,))
    y = b.op("nn.conv2d", x, w, bias, activation="relu")
    gradient(b, y, [w, bias])
    ops = [op.name for op in b.task_ops]
    assert ops.count("nn.conv2d_grad_weight") == 1
    assert ops.count("nn.relu_grad") == 1
    assert "nn.conv2d_grad_input" not in ops


def random_geometry(rng):
    """Shape, outputs, window and options of a convolution in which at least one window fits."""
    while True:
        groups = int(rng.integers(1, 4))
        n, c, h, w = (int(rng.integers(low, high)) for low, high in ((1, 4), (1, 3), (1, 9), (1, 9)))
        window = tuple(map(int, rng.integers(1, 5, 2)))
        options = {"groups": groups, **{k: tuple(map(int, rng.integers(low, 4, 2))) for k, low in (("stride", 1), ("padding", 0), ("dilation", 1))}}
        if rng.random() < 0.5:
            options["stride"] = (1, 1)
        if all(e + 2 * p > d * (k - 1) for e, p, d, k in zip((h, w), options["padding"], options["dilation"], window, strict=True)):
            return (n, c * groups, h, w), int(rng.integers(1, 4)) * groups, window, options


@pytest.mark.parametrize("block_nbytes", [1, 2000, 1 << 20])
def test_random_geometries_agree_with_the_loop(monkeypatch, block_nbytes):
    monkeypatch.setattr(conv, "_BLOCK_NBYTES", block_nbytes)
    conv._geometry.cache_clear()
    rng = np.random.default_rng(block_nbytes)
    try:
        for _ in range(12):
            shape, outputs, window, options = random_geometry(rng)
            x, w, b = drawn(rng, shape, outputs, window, options)
            dy = rng.normal(size=naive(x, w, **options).shape)
            check_op(CONV2D, [Case((x, w, b), options)], reference=naive, dtypes=["float64"], gradient=False)
            check_op(CONV2D_GRAD_WEIGHT, [Case((x, dy), {**options, "kernel": window})], reference=naive_grad_weight, dtypes=["float64"])
            check_op(CONV2D_GRAD_INPUT, [Case((w, dy), {**options, "image": shape[2:]})], reference=naive_grad_input, dtypes=["float64"])
    finally:
        conv._geometry.cache_clear()
