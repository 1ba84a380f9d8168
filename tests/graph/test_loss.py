"""Softmax, losses and counting: agreement with the textbook formulas, with central differences, and at the edges of the floating dtypes."""

import math

import numpy as np
import pytest

from hetsched.errors import GraphError
from hetsched.graph.ops.loss import (
    CORRECT,
    CROSS_ENTROPY,
    CROSS_ENTROPY_GRAD,
    LOG_SOFTMAX,
    LOG_SOFTMAX_GRAD,
    MSE,
    MSE_GRAD,
    SOFTMAX,
    SOFTMAX_GRAD,
)
from hetsched.graph.spec import Spec, UpTo, spec_of
from hetsched.testing.ops import Case, check_op, shapes
from hetsched.testing.reference import launch


def textbook_softmax(x, axis):
    e = np.exp(x)
    return e / e.sum(axis=axis, keepdims=True)


def jacobian_product(y, dy, axis):
    """sum over j of dy_j * y_j * (1[i = j] - y_i), with the Jacobian written out."""
    y, dy = np.moveaxis(y, axis, -1), np.moveaxis(dy, axis, -1)
    jacobian = y[..., None] * (np.eye(y.shape[-1]) - y[..., None, :])
    return np.moveaxis((jacobian * dy[..., None, :]).sum(axis=-1), -1, axis)


def axes(rng, tensors):
    """Cases of `tensors` equal arrays of random shapes, along the first, the last and some axis."""
    for shape in shapes(rng, least=1):
        for axis in {0, -1, int(rng.integers(len(shape)))}:
            yield Case(tuple(rng.normal(size=shape) for _ in range(tensors)), {"axis": axis})


def test_softmax():
    check_op(SOFTMAX, lambda rng: axes(rng, 1), reference=textbook_softmax)
    check_op(SOFTMAX_GRAD, lambda rng: axes(rng, 2), reference=jacobian_product)


def test_log_softmax():
    check_op(LOG_SOFTMAX, lambda rng: axes(rng, 1), reference=lambda x, axis: np.log(textbook_softmax(x, axis)))
    check_op(LOG_SOFTMAX_GRAD, lambda rng: axes(rng, 2), reference=lambda y, dy, axis: dy - np.exp(y) * dy.sum(axis=axis, keepdims=True))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logits_far_apart_neither_overflow_nor_lose_the_loss(dtype):
    x = np.array([[1000, 0, -1000], [1e38, 1e38, -1e38]], dtype)
    specs = [spec_of(x)]
    (y,) = launch(SOFTMAX, [x], specs, {"axis": -1})
    np.testing.assert_array_equal(y, [[1, 0, 0], [0.5, 0.5, 0]])
    (logs,) = launch(LOG_SOFTMAX, [x[:1]], [spec_of(x[:1])], {"axis": -1})
    np.testing.assert_array_equal(logs, [[0, -1000, -2000]])
    (loss,) = launch(CROSS_ENTROPY, [x[:1], np.array([2])], [spec_of(x[:1]), Spec((1,), np.int64)], {"reduction": "mean"})
    assert loss == 2000


# Cross entropy --------------------------------------------------------------------------------------------------------------------


def textbook_cross_entropy(logits, labels, reduction):
    losses = [-math.log(math.exp(row[label]) / sum(map(math.exp, row))) for row, label in zip(logits, labels, strict=True)]
    return np.asarray(math.fsum(losses) / (max(1, len(losses)) if reduction == "mean" else 1))


def textbook_cross_entropy_grad(logits, labels, dloss, reduction):
    grad = textbook_softmax(logits, 1) - np.eye(logits.shape[1])[labels]
    return grad * dloss / (max(1, len(logits)) if reduction == "mean" else 1)


def labelled(rng, *, gradient=False):
    for n, classes in [(1, 1), (4, 1), (5, 3), (32, 10), (0, 3), (3, 65)]:
        for reduction, integer in [("mean", np.int64), ("sum", np.int32), ("mean", np.uint8)]:
            dloss = (rng.normal(size=()),) if gradient else ()
            labels = rng.integers(0, classes, n).astype(integer)
            yield Case((3 * rng.normal(size=(n, classes)), labels, *map(np.asarray, dloss)), {"reduction": reduction})


def test_cross_entropy():
    check_op(CROSS_ENTROPY, labelled, reference=textbook_cross_entropy)
    check_op(CROSS_ENTROPY_GRAD, lambda rng: labelled(rng, gradient=True), reference=textbook_cross_entropy_grad)


def test_sums_of_batches_are_the_sum_of_all():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(11, 4)), rng.integers(0, 4, 11)

    def loss(rows):
        return float(launch(CROSS_ENTROPY, [logits[rows], labels[rows]], [spec_of(logits[rows]), spec_of(labels[rows])], {"reduction": "sum"})[0])

    assert math.isclose(loss(slice(0, 8)) + loss(slice(8, 11)), loss(slice(None)), rel_tol=1e-14)


@pytest.mark.parametrize("op", [CROSS_ENTROPY, CROSS_ENTROPY_GRAD])
@pytest.mark.parametrize("label", [-1, 3, -(2**62)])
def test_a_label_outside_the_classes_is_named(op, label):
    logits, labels = np.zeros((4, 3)), np.array([0, 2, label, 7])
    inputs = [logits, labels, np.asarray(1.0)][: len(op.inputs)]
    with pytest.raises(IndexError, match=rf"labels\[2\] is {label}, outside 0 to 2; ids count from 0, never from the end"):
        launch(op, inputs, [spec_of(x) for x in inputs], {"reduction": "mean"})


def test_every_mistake_in_logits_and_labels_is_told():
    for op in (CROSS_ENTROPY, CORRECT):
        with pytest.raises(GraphError) as caught:
            op.infer([Spec((4, 3), np.int32), Spec((5,), np.float32)], {})
        assert list(caught.value.problems) == [
            "logits must be of a floating dtype, got int32[4, 3]; convert them with tensor.cast",
            "labels must be of an integer dtype (the number of the class), got float32[5]",
            "labels must have one number a row, [4], got float32[5]",
        ]
        with pytest.raises(GraphError, match=r"logits must have 2 axes \(rows, classes\), got float32\[4\]"):
            op.infer([Spec((4,)), Spec((4,), np.int64)], {})
        with pytest.raises(GraphError, match="at least one class"):
            op.infer([Spec((4, 0)), Spec((4,), np.int64)], {})
    with pytest.raises(GraphError, match=r"dloss must be float32\[\], got float64\[\]"):
        CROSS_ENTROPY_GRAD.infer([Spec((4, 3)), Spec((4,), np.int64), Spec((), np.float64)], {})


def test_bounded_rows_are_taken():
    specs = [Spec((UpTo(8), 3)), Spec((UpTo(8),), np.int64)]
    assert list(CROSS_ENTROPY.infer(specs, {})) == [Spec(())]
    assert list(CORRECT.infer(specs, {})) == [Spec((), np.int64)]


# Mean squared error ---------------------------------------------------------------------------------------------------------------


def pairs(rng, *, gradient=False):
    for shape in shapes(rng):
        for reduction in ("mean", "sum"):
            dloss = (np.asarray(rng.normal()),) if gradient else ()
            yield Case((rng.normal(size=shape), rng.normal(size=shape), *dloss), {"reduction": reduction})


def test_mse():
    def mse(x, y, reduction):
        return np.asarray(np.sum((x - y) ** 2) / (max(1, x.size) if reduction == "mean" else 1))

    def mse_grad(x, y, dloss, reduction):
        return np.asarray(2 * (x - y) * dloss / (max(1, x.size) if reduction == "mean" else 1))

    check_op(MSE, pairs, reference=mse)
    check_op(MSE_GRAD, lambda rng: pairs(rng, gradient=True), reference=mse_grad)


def test_mse_refuses_different_shapes():
    with pytest.raises(GraphError, match=r"y must be float32\[3, 1\], as x, got float32\[3\]"):
        MSE.infer([Spec((3, 1)), Spec((3,))], {})


# Accuracy ---------------------------------------------------------------------------------------------------------------------------


def test_correct_counts_rows_and_ties_go_to_the_first():
    def count(logits, labels):
        return np.asarray(sum(list(row).index(max(row)) == label for row, label in zip(logits, labels, strict=True)), np.int64)

    def cases(rng):
        for n, classes in [(1, 1), (7, 3), (40, 5), (0, 4)]:
            yield Case((rng.normal(size=(n, classes)), rng.integers(0, classes, n)))
            yield Case((rng.integers(0, 2, (n, classes)) * 1.0, rng.integers(0, classes, n)))

    check_op(CORRECT, cases, reference=count)
