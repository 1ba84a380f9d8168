import numpy as np
import pytest
from op_runners import ELSEWHERE

from hetsched.errors import GraphError
from hetsched.graph.ops import find
from hetsched.graph.spec import Spec, UpTo
from hetsched.testing.ops import Case, broadcasting, check_op, shapes


def over_axes(empty):
    """Random shapes with random axes; `empty`: also axes of no elements."""

    def cases(rng):
        for shape in shapes(rng, 12):
            if not empty and 0 in shape:
                continue
            x = rng.normal(size=shape)
            keepdims = bool(rng.random() < 0.5)
            yield Case((x,), {"keepdims": keepdims})
            axes = [int(a) for a in range(len(shape)) if rng.random() < 0.5]
            yield Case((x,), {"axes": [a - len(shape) if rng.random() < 0.5 else a for a in axes], "keepdims": keepdims})

    return cases


def by(function):
    def reference(x, axes, keepdims):
        return function(x, axis=None if axes is None else tuple(axes), keepdims=keepdims)

    return reference


def test_sum():
    check_op(find("tensor.sum"), over_axes(empty=True), reference=by(np.sum), runners=ELSEWHERE)


@pytest.mark.parametrize("name", ["mean", "max"])
def test_mean_and_max(name):
    check_op(find(f"tensor.{name}"), over_axes(empty=False), reference=by(getattr(np, name)), runners=ELSEWHERE)
    kept = [Case((np.zeros((0, 3)),), {"axes": (1,)})]  # No value is made, so none is missing.
    check_op(find(f"tensor.{name}"), kept, reference=by(getattr(np, name)), runners=ELSEWHERE)


def test_integers_and_bools_are_summed_in_int64():
    for dtype in ("int32", "uint8", "bool"):
        cases = [Case((np.ones((3, 100), dtype),), {"axes": (1,)})]
        check_op(find("tensor.sum"), cases, reference=lambda x, **_: np.full(3, 100, np.int64), runners=ELSEWHERE)


def test_the_gradient_of_max_is_shared_by_equal_elements():
    x = np.array([[1.0, 3, 3], [2, 2, 2]])
    cases = [Case((x, np.array([3.0, 2]), np.array([1.0, 6])), {"axes": (1,)})]
    check_op(find("tensor.max_grad"), cases, reference=lambda *_, **__: np.array([[0, 0.5, 0.5], [2, 2, 2]]), runners=ELSEWHERE)


def test_argmax():
    def cases(rng):
        for shape in shapes(rng, 12, least=1):
            axis = int(rng.integers(-len(shape), len(shape)))
            if shape[axis] == 0:
                continue
            for keepdims in (False, True):
                yield Case((rng.integers(0, 3, size=shape).astype(float),), {"axis": axis, "keepdims": keepdims})

    check_op(find("tensor.argmax"), cases, reference=lambda x, axis, keepdims: np.argmax(x, axis=axis, keepdims=keepdims), runners=ELSEWHERE)


def test_sum_to():
    def reference(x, like=None, shape=None):
        target = shape if like is None else like.shape
        lead = x.ndim - len(target)
        axes = tuple(i for i in range(x.ndim) if i < lead or target[i - lead] == 1)
        return x.sum(axis=axes, keepdims=True).reshape(target)

    def cases(rng):
        for shape in shapes(rng, 12):
            target = broadcasting(rng, shape)
            yield Case((rng.normal(size=shape),), {"shape": target})
            yield Case((rng.normal(size=shape), np.zeros(target, np.int64)))
            yield Case((rng.normal(size=shape),), {"shape": shape})

    check_op(find("tensor.sum_to"), cases, reference=reference, runners=ELSEWHERE)


@pytest.mark.parametrize(
    ("name", "spec", "attributes", "says"),
    [
        ("tensor.sum", Spec((2, 3)), {"axes": (2,)}, "axes 2 is outside an array of 2 axes; give -2 to 1"),
        ("tensor.sum", Spec((2, 3)), {"axes": (0, -2)}, r"axes \(0, -2\) name an axis twice"),
        ("tensor.mean", Spec((2, 0)), {"axes": (1,)}, r"the mean of no elements has no value: axes \(1,\) of \[2, 0\] are empty"),
        ("tensor.mean", Spec((2,), int), {}, "x must be of a floating dtype, got int64; convert it with tensor.cast"),
        ("tensor.argmax", Spec(()), {}, "axis -1: a scalar has no axes"),
        ("tensor.sum_to", Spec((2, 3)), {"shape": (2,)}, r"shapes \[2\] and \[2, 3\] do not broadcast: axis -1 has 2 and 3"),
        ("tensor.sum_to", Spec((2, 3)), {}, "give either the input like or the attribute shape"),
    ],
)
def test_errors(name, spec, attributes, says):
    op = find(name)
    with pytest.raises(GraphError, match=says):
        op.infer([spec], op.check_attributes(attributes))


def test_bounded_dimensions_that_are_kept_stay_bounded():
    op = find("tensor.sum")
    assert op.infer([Spec((UpTo(8), 3))], op.check_attributes({"axes": (1,)})) == [Spec((UpTo(8),))]
    assert op.infer([Spec((UpTo(8), 3))], op.check_attributes({"axes": (0,)})) == [Spec((3,))]
