"""Optimizers agree with their papers' formulas in plain arithmetic, in place and in blocks."""

import math

import numpy as np
import pytest

from hetsched.errors import GraphError
from hetsched.graph.ops import optimizer as module
from hetsched.graph.ops.optimizer import ADAM, ADAMW, MOMENTUM, OPTIMIZERS, SGD, optimizer
from hetsched.graph.spec import Spec, UpTo, spec_of
from hetsched.testing.ops import Case, check_op, shapes
from hetsched.testing.reference import launch

TURN = Spec((), np.int64)


def sgd(w, g, *, lr, weight_decay):
    return w - lr * (g + weight_decay * w)


def momentum(w, g, velocity, *, lr, momentum, nesterov, weight_decay):
    h = g + weight_decay * w
    velocity = momentum * velocity + h
    return w - lr * (h + momentum * velocity if nesterov else velocity), velocity


def adam(w, g, m, v, turn, *, lr, beta1, beta2, eps, weight_decay):
    t = int(turn) + 1
    g = g + weight_decay * w
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    return w - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps), m, v


def adamw(w, g, m, v, turn, *, lr, weight_decay, **options):
    new, m, v = adam(w, g, m, v, turn, lr=lr, weight_decay=0.0, **options)
    return new - lr * weight_decay * w, m, v


def drawn(rng, state, turn=False):
    """Inputs of random shapes: w, g, a state of either sign (velocity, m) and one that is not negative (v)."""
    for shape in shapes(rng):
        slots = [rng.normal(size=shape), rng.random(size=shape)][:state]
        yield (rng.normal(size=shape), rng.normal(size=shape), *slots, *((np.asarray(rng.integers(0, 2000)),) if turn else ()))


def test_sgd():
    check_op(SGD, lambda rng: (Case(x, {"lr": 0.1, "weight_decay": d}) for d in (0.0, 0.3) for x in drawn(rng, 0)), reference=sgd)


def test_momentum():
    def cases(rng):
        for nesterov in (False, True):
            for decay in (0.0, 0.3):
                for x in drawn(rng, 1):
                    yield Case(x, {"lr": 0.1, "momentum": 0.8, "nesterov": nesterov, "weight_decay": decay})

    check_op(MOMENTUM, cases, reference=momentum)


@pytest.mark.parametrize(("op", "reference"), [(ADAM, adam), (ADAMW, adamw)])
def test_adam(op, reference):
    def cases(rng):
        for decay in (0.0, 0.3):
            for x in drawn(rng, 2, turn=True):
                yield Case(x, {"lr": 0.1, "beta1": 0.8, "beta2": 0.99, "eps": 1e-3, "weight_decay": decay})

    check_op(op, cases, reference=reference)


def test_blocks_give_what_one_piece_gives(monkeypatch):
    """23 elements in blocks of five, in their own buffers and in place."""
    monkeypatch.setattr(module, "_BLOCK", 5)
    rng = np.random.default_rng(2)
    w, g, m = rng.normal(size=(3, 23))
    v, turn = rng.random(23), np.asarray(6)
    check_op(SGD, [Case((w, g), {"weight_decay": 0.1})], reference=sgd)
    for nesterov in (False, True):
        check_op(MOMENTUM, [Case((w, g, m), {"nesterov": nesterov, "weight_decay": 0.1})], reference=momentum)
    check_op(ADAM, [Case((w, g, m, v, turn), {"weight_decay": 0.1})], reference=adam)
    check_op(ADAMW, [Case((w, g, m, v, turn), {"weight_decay": 0.1})], reference=adamw)


def test_first_step_of_adam_is_the_learning_rate():
    """With m = v = 0 and t = 1 the corrected moments are g and g ** 2: the step is lr * g / (|g| + eps)."""
    w, g = np.zeros(3), np.array([5.0, -1e-3, 0.0])
    inputs = [w, g, w, w, np.asarray(0)]
    new, _, _ = launch(ADAM, inputs, [spec_of(x) for x in inputs], ADAM.check_attributes({"lr": 0.01, "eps": 1e-12}))
    np.testing.assert_allclose(new, [-0.01, 0.01, 0.0], rtol=1e-8)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_the_table_is_enough_to_train(name):
    """Each optimizer, used only by what the table says, finds the minimum of (w - target) ** 2."""
    found, attributes = optimizer(name, {"lr": 0.05, **({"weight_decay": 0.0} if name == "adamw" else {})})
    target = np.array([1.0, -2.0, 0.5])
    w, state = np.zeros(3), [np.zeros(3) for _ in found.slots]
    for turn in range(400):
        inputs = [w, 2 * (w - target), *state, *([np.asarray(turn)] if found.turn else [])]
        w, *state = launch(found.op, inputs, [spec_of(x) for x in inputs], attributes)
    np.testing.assert_allclose(w, target, atol=2e-2)
    assert found.op.outputs == ("w", *found.slots)
    assert found.op.inputs == ("w", "g", *found.slots, *(["turn"] if found.turn else []))
    # What carries from turn to turn may stay where it is.
    assert {found.op.outputs[o] for o, i in found.op.inplace if found.op.outputs[o] == found.op.inputs[i]} == {"w", *found.slots}


def test_options_are_checked():
    assert optimizer("sgd", {"lr": 0.1})[0].op is SGD
    assert optimizer("sgd", {"lr": 0.1, "momentum": 0.9})[0].op is MOMENTUM
    assert math.isclose(optimizer("adam", {})[1]["lr"], 1e-3)
    with pytest.raises(GraphError, match="unknown optimizer 'adan'; did you mean 'adam'"):
        optimizer("adan", {})
    with pytest.raises(GraphError, match=r"op optim\.adam has no option 'beta'"):
        optimizer("adam", {"beta": 0.9})
    with pytest.raises(GraphError, match=r"'lr' of op optim\.sgd: wants a number of at least 0, got -1"):
        optimizer("sgd", {"lr": -1})


def test_every_mistake_in_the_inputs_is_told():
    w = Spec((3, 2))
    with pytest.raises(GraphError) as caught:
        ADAM.infer([w, Spec((2, 3)), w, Spec((3, 2), np.float64), Spec((1,), np.int64)], {})
    assert list(caught.value.problems) == [
        "g must be float32[3, 2], as w, got float32[2, 3]",
        "v must be float32[3, 2], as w, got float64[3, 2]",
        "turn must be int64[], got int64[1]",
    ]
    with pytest.raises(GraphError, match="w must be of a floating dtype"):
        SGD.infer([Spec((3,), np.int64)] * 2, {})
    with pytest.raises(GraphError, match="w needs a fixed shape"):
        SGD.infer([Spec((UpTo(3),))] * 2, {})


def test_the_workspace_does_not_grow_with_the_parameter():
    attributes = ADAM.check_attributes({})

    def nbytes(n):
        specs = [Spec((n,))] * 4 + [TURN]
        return ADAM.workspace(specs, ADAM.infer(specs, attributes), attributes)

    assert nbytes(10**9) == nbytes(10**6) < 10**6
    assert nbytes(16) == 2 * 64
