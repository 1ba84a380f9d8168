"""Pooling and its gradients agree with a loop over every window, and with central differences."""

import itertools

import numpy as np
import pytest

from hetsched.errors import GraphError
from hetsched.graph.ops.pool import AVG_POOL2D, AVG_POOL2D_GRAD, MAX_POOL2D, MAX_POOL2D_GRAD
from hetsched.graph.spec import Spec, UpTo
from hetsched.testing.ops import Case, check_op
from hetsched.testing.reference import launch

SHAPES = [
    ((2, 3, 4, 6), {"size": 2}),
    ((2, 2, 5, 7), {"size": 2}),  # rows and columns that no window covers
    ((1, 2, 6, 6), {"size": (3, 2)}),
    ((2, 2, 7, 6), {"size": 3, "stride": 2, "padding": 1}),
    ((2, 1, 5, 5), {"size": 3, "stride": 1, "padding": "same"}),
    ((2, 2, 6, 8), {"size": (2, 3), "stride": (3, 4), "padding": (1, 2)}),
    ((2, 2, 4, 4), {"size": 4}),
    ((2, 2, 4, 4), {"size": 1}),
    ((1, 1, 1, 1), {"size": 1, "stride": 3}),
    ((0, 2, 4, 4), {"size": 2}),
    ((2, 0, 4, 4), {"size": 3, "stride": 1}),
    ((1, 1, 1, 1), {"size": 3, "padding": 1}),
]


def pads_of(padding, size):
    if padding == "same":
        return [((k - 1) // 2, k // 2) for k in size]
    values = [padding] if isinstance(padding, int) else list(padding)
    return [(p, p) for p in (values * 2)[:2]]


def windows(h, w, *, size, stride, padding):
    """Output row, output column and the pixels of the window that lie in the image, row by row; and the output's extents."""
    stride = size if stride is None else stride
    size, stride = (list(size) * 2)[:2], (list(stride) * 2)[:2]
    pads = pads_of(padding, size)
    out = [(n + sum(p) - k) // s + 1 for n, p, k, s in zip((h, w), pads, size, stride, strict=True)]
    found = []
    for r, s in itertools.product(range(out[0]), range(out[1])):
        top, left = r * stride[0] - pads[0][0], s * stride[1] - pads[1][0]
        pixels = [(i, j) for i in range(top, top + size[0]) for j in range(left, left + size[1]) if 0 <= i < h and 0 <= j < w]
        found.append((r, s, pixels))
    return found, out, size[0] * size[1]


def naive_max(x, **geometry):
    found, out, _ = windows(*x.shape[2:], **geometry)
    y = np.empty((*x.shape[:2], *out))
    for r, s, pixels in found:
        y[:, :, r, s] = np.max([x[:, :, i, j] for i, j in pixels], axis=0)
    return y


def naive_max_grad(x, y, dy, **geometry):
    dx = np.zeros(x.shape)
    for r, s, pixels in windows(*x.shape[2:], **geometry)[0]:
        for n, c in itertools.product(range(x.shape[0]), range(x.shape[1])):
            i, j = max(pixels, key=lambda at: x[n, c, *at])  # the first of equal ones
            dx[n, c, i, j] += dy[n, c, r, s]
    return dx


def naive_avg(x, **geometry):
    found, out, count = windows(*x.shape[2:], **geometry)
    y = np.empty((*x.shape[:2], *out))
    for r, s, pixels in found:
        y[:, :, r, s] = np.sum([x[:, :, i, j] for i, j in pixels], axis=0) / count
    return y


def naive_avg_grad(dy, *, image, **geometry):
    dx = np.zeros((*dy.shape[:2], *image))
    found, _, count = windows(*image, **geometry)
    for r, s, pixels in found:
        for i, j in pixels:
            dx[:, :, i, j] += dy[:, :, r, s] / count
    return dx


@pytest.mark.parametrize(("op", "reference"), [(MAX_POOL2D, naive_max), (AVG_POOL2D, naive_avg)])
def test_pooling_agrees_with_the_loop(op, reference):
    check_op(op, lambda rng: (Case((rng.normal(size=shape),), options) for shape, options in SHAPES), reference=reference)


def test_gradient_of_the_maximum_agrees_with_the_loop_and_ties_go_to_the_first():
    def cases(rng):
        for shape, options in SHAPES:
            for x in (rng.normal(size=shape), rng.integers(0, 2, size=shape) * 1.0, np.zeros(shape)):
                y = naive_max(x, **{"stride": None, "padding": 0, **MAX_POOL2D.check_attributes(options)})
                yield Case((x, y, rng.normal(size=y.shape)), options)

    assert check_op(MAX_POOL2D_GRAD, cases, reference=naive_max_grad) == 3 * len(SHAPES)


def test_gradient_of_the_mean_agrees_with_the_loop():
    def cases(rng):
        for shape, options in SHAPES:
            y = naive_avg(np.zeros(shape), **AVG_POOL2D.check_attributes(options))
            yield Case((rng.normal(size=y.shape),), {**options, "image": shape[2:]})

    check_op(AVG_POOL2D_GRAD, cases, reference=naive_avg_grad)


def test_padding_never_wins():
    x = np.full((1, 1, 3, 3), -5.0)
    (y,) = launch(MAX_POOL2D, [x], [Spec(x.shape, x.dtype)], MAX_POOL2D.check_attributes({"size": 3, "stride": 1, "padding": 1}))
    np.testing.assert_array_equal(y, x)


def test_nan_wins():
    x = np.zeros((1, 1, 2, 2))
    x[0, 0, 1, 0] = np.nan
    (y,) = launch(MAX_POOL2D, [x], [Spec(x.shape, x.dtype)], MAX_POOL2D.check_attributes({"size": 2}))
    assert np.isnan(y).all()


def test_a_bounded_batch_stays_bounded():
    assert list(MAX_POOL2D.infer([Spec((UpTo(9), 3, 8, 8))], MAX_POOL2D.check_attributes({"size": 2}))) == [Spec((UpTo(9), 3, 4, 4))]


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        ((3, 8, 8), {"size": 2}, "x must have 4 axes (images, channels, rows, columns), got float32[3, 8, 8]"),
        ((2, 3, 1, 8), {"size": 2}, "1 rows with padding 0 + 0 are fewer than the 2 a window covers; use a smaller window or more padding"),
        ((2, 3, 8, 8), {"size": 2, "padding": 2}, "padding 2 of rows must be less than the window's 2"),
        ((2, 3, 8, 8), {"size": (2, 2, 2)}, "one number or two (rows, columns), got (2, 2, 2)"),
        ((2, 3, 8, 8), {"size": 2, "padding": "same"}, "padding 'same' wants stride 1, got (2, 2)"),
    ],
)
def test_errors_say_what_is_wrong(shape, options, words):
    for op in (MAX_POOL2D, AVG_POOL2D):
        with pytest.raises(GraphError) as caught:
            op.infer([Spec(shape)], op.check_attributes(options))
        assert words in str(caught.value)


def test_gradients_refuse_what_does_not_fit():
    with pytest.raises(GraphError) as caught:
        MAX_POOL2D_GRAD.infer([Spec((2, 3, 8, 8)), Spec((2, 3, 5, 4)), Spec((2, 3, 4, 5))], MAX_POOL2D_GRAD.check_attributes({"size": 2}))
    assert [p.partition(" must be")[0] for p in caught.value.problems] == ["y", "dy"]
    with pytest.raises(GraphError, match=r"dy must be float32\[2, 3, 4, 4\] for images of 8 x 8, got float32\[2, 3, 5, 4\]"):
        AVG_POOL2D_GRAD.infer([Spec((2, 3, 5, 4))], AVG_POOL2D_GRAD.check_attributes({"size": 2, "image": (8, 8)}))
