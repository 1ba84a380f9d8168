"""The counter-based generator is the one its module documents, and every random op draws from it."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetsched.errors import GraphError
from hetsched.graph.graph import Graph
from hetsched.graph.ops.random import DROPOUT, INIT, NORMAL, PERMUTATION, SCHEMES, UNIFORM, bits, key_word
from hetsched.graph.spec import Spec, spec_of
from hetsched.testing.ops import Case, check_op, shapes
from hetsched.testing.reference import interpret, launch

MASK = 2**64 - 1


# The generator as documented, in plain Python ---------------------------------------------------------------------------------------


def philox(counter, key):
    """Philox4x64-10: Salmon et al. 2011, section 4.3, with the constants of their Random123 library."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c0, 2**64)
        high1, low1 = divmod(0xCA5A826395121157 * c2, 2**64)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return c0, c1, c2, c3


def word(seed, key, turn, i):
    digest = hashlib.blake2b(key.encode("utf-8"), digest_size=8).digest()
    return philox((i // 4, turn & MASK, 0, 0), (seed & MASK, sum(b << 8 * at for at, b in enumerate(digest))))[i % 4]


def half(seed, key, turn, i):
    return word(seed, key, turn, i // 2) >> 32 * (i % 2) & 0xFFFFFFFF


def uniform32(seed, key, turn, i):
    return (half(seed, key, turn, i) >> 8) * 2.0**-24


def uniform64(seed, key, turn, i):
    return (word(seed, key, turn, i) >> 11) * 2.0**-53


def normal(seed, key, turn, i):
    p, q = uniform64(seed, key, turn, i - i % 2), uniform64(seed, key, turn, i - i % 2 + 1)
    r = math.sqrt(-2 * math.log(1 - p))
    return r * (math.sin(2 * math.pi * q) if i % 2 else math.cos(2 * math.pi * q))


def run(op, *inputs, **attributes):
    return launch(op, list(inputs), [spec_of(x) for x in inputs], op.check_attributes({"key": "k", **attributes}))[0]


def test_the_reference_is_philox4x64_10():
    """Known answers of Random123 (its kat_vectors): all bits 0, all bits 1, and digits of pi."""
    assert philox((0, 0, 0, 0), (0, 0)) == (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B)
    assert philox((MASK,) * 4, (MASK,) * 2) == (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0)
    counter = (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89)
    assert philox(counter, (0x452821E638D01377, 0xBE5466CF34E90C6C)) == (
        0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6,
    )  # fmt: skip


@settings(max_examples=40)
@given(seed=st.integers(-(2**64), 2**65), key=st.text(max_size=20), turn=st.integers(-(2**63), 2**63 - 1))
def test_words_are_the_documented_ones(seed, key, turn):
    assert bits(seed, key, turn).random_raw(9).tolist() == [word(seed, key, turn, i) for i in range(9)]


def test_the_key_is_a_stable_hash():
    assert key_word("train/dropout") == int.from_bytes(hashlib.blake2b(b"train/dropout", digest_size=8).digest(), "little")
    assert key_word("") == 0xB4B2797457A0A6E4  # BLAKE2b-64 of nothing: e4 a6 a0 57 74 79 b2 b4


# Ops --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", [None, 0, 3, -1])
def test_every_op_draws_the_documented_numbers(turn):
    given_turn = [] if turn is None else [np.asarray(turn)]
    at = {"seed": 11, "key": "a/b", "turn": turn or 0}
    draw = {"seed": 11, "key": "a/b"}
    np.testing.assert_array_equal(run(UNIFORM, *given_turn, shape=(7,), **draw), [uniform32(i=i, **at) for i in range(7)])
    np.testing.assert_array_equal(run(UNIFORM, *given_turn, shape=(7,), dtype="float64", **draw), [uniform64(i=i, **at) for i in range(7)])
    np.testing.assert_allclose(
        run(NORMAL, *given_turn, shape=(3, 3), dtype="float64", **draw).ravel(), [normal(i=i, **at) for i in range(9)], rtol=1e-13
    )
    order = sorted(range(9), key=lambda i: word(i=i, **at))
    np.testing.assert_array_equal(run(PERMUTATION, *given_turn, n=9, **draw), order)
    x = np.arange(1.0, 8.0)
    kept = [v / (1 - 0.4) if uniform32(i=i, **at) >= np.float32(0.4) else 0 for i, v in enumerate(x)]
    np.testing.assert_allclose(run(DROPOUT, x, *given_turn, rate=0.4, **draw), kept, rtol=1e-15)


def test_uniform_and_normal_are_scaled():
    at = {"seed": 0, "key": "k", "turn": 0}
    np.testing.assert_allclose(
        run(UNIFORM, shape=(5,), dtype="float64", low=-2.0, high=3.0), [-2 + 5 * uniform64(i=i, **at) for i in range(5)], rtol=1e-15
    )
    np.testing.assert_allclose(
        run(NORMAL, shape=(5,), dtype="float64", mean=4.0, std=0.5), [4 + 0.5 * normal(i=i, **at) for i in range(5)], rtol=1e-13
    )
    rounded = run(NORMAL, shape=(5,))
    np.testing.assert_array_equal(rounded, run(NORMAL, shape=(5,), dtype="float64").astype(np.float32))


@pytest.mark.parametrize("op", [UNIFORM, NORMAL, INIT])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1, 1), (5,)])
def test_shapes_and_workspaces(op, shape):
    for dtype in ("float32", "float64"):
        assert check_op(op, [Case((), {"shape": shape, "dtype": dtype})]) == 1
    assert check_op(PERMUTATION, [Case((np.asarray(2),), {"n": len(shape)})]) == 1


def test_what_tells_draws_apart():
    first = run(UNIFORM, shape=(8,), seed=1)
    np.testing.assert_array_equal(first, run(UNIFORM, np.asarray(0), shape=(8,), seed=1))
    for other in (run(UNIFORM, shape=(8,), seed=2), run(UNIFORM, shape=(8,), seed=1, key="l"), run(UNIFORM, np.asarray(1), shape=(8,), seed=1)):
        assert not np.isin(first, other).any()
    np.testing.assert_array_equal(first[:5], run(UNIFORM, shape=(5,), seed=1))


def test_moments():
    """Means and deviations of 100,000 numbers, within five standard errors."""
    n = 100_000
    flat = run(UNIFORM, shape=(n,), dtype="float64")
    assert abs(flat.mean() - 0.5) < 5 / math.sqrt(12 * n)
    assert 0 <= flat.min() < 1e-3 < 0.999 < flat.max() < 1
    bell = run(NORMAL, shape=(n,), dtype="float64")
    assert abs(bell.mean()) < 5 / math.sqrt(n)
    assert abs(bell.std() - 1) < 5 / math.sqrt(2 * n)
    assert abs(np.mean(bell[::2] * bell[1::2])) < 5 / math.sqrt(n)


def test_permutations_hold_every_number_once():
    order = run(PERMUTATION, n=1000, seed=4)
    np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    assert not np.array_equal(order, run(PERMUTATION, np.asarray(1), n=1000, seed=4))


# Dropout ------------------------------------------------------------------------------------------------------------------------------


def test_dropout_agrees_with_its_reference_and_its_gradient_draws_the_same():
    def reference(x, turn=0, *, rate, seed, training):
        if not training:
            return x
        keep = np.array([uniform32(seed, "check", int(turn), i) >= np.float32(rate) for i in range(x.size)], bool).reshape(x.shape)
        return np.where(keep, x / (1 - rate) if rate < 1 else 0.0, 0.0)

    def cases(rng):
        for shape in shapes(rng):
            for rate in (0.0, 0.3, 1.0):
                yield Case((rng.normal(size=shape), np.asarray(rng.integers(0, 9))), {"rate": rate, "seed": 5})
            yield Case((rng.normal(size=shape),), {"rate": 0.5, "seed": 5, "training": False})

    check_op(DROPOUT, cases, reference=reference)


def test_dropout_keeps_the_mean():
    y = run(DROPOUT, np.ones(100_000), rate=0.25)
    assert set(np.unique(y)) == {0.0, 1 / 0.75}
    assert abs(y.mean() - 1) < 5 * math.sqrt(0.25 / 0.75 / y.size)


def test_two_dropouts_of_a_graph_differ_and_the_seed_repeats_them():
    def build(seed):
        b = Graph.build()
        x = b.input("x", (64,))
        b.output(b.op("nn.dropout", x, seed=seed), "first").output(b.op("nn.dropout", x, seed=seed), "second")
        return interpret(b.freeze(), {"x": np.ones(64, np.float32)})

    one, again, other = build(1), build(1), build(2)
    assert not np.array_equal(one["first"], one["second"])
    assert not np.array_equal(one["first"], other["first"])
    np.testing.assert_array_equal(one["second"], again["second"])


# Initial weights ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "shape", "fan", "deviation"),
    [
        ("he", (200, 300), None, math.sqrt(2 / 200)),
        ("he_normal", (60, 10, 10, 10), None, math.sqrt(2 / 1000)),
        ("he_uniform", (200, 300), (50, 7), math.sqrt(2 / 50)),
        ("glorot", (200, 300), None, math.sqrt(2 / 500)),
        ("glorot_uniform", (60, 10, 10, 10), None, math.sqrt(2 / 7000)),
        ("glorot_normal", (200, 300), (30, 20), math.sqrt(2 / 50)),
        ("uniform", (200, 300), None, math.sqrt(1 / 600)),
    ],
)
def test_schemes_have_their_deviation(scheme, shape, fan, deviation):
    made = run(INIT, shape=shape, scheme=scheme, fan=fan, dtype="float64")
    assert abs(made.std() / deviation - 1) < 0.02
    assert abs(made.mean()) < 5 * deviation / math.sqrt(made.size)
    if scheme in ("uniform", "he_uniform", "glorot", "glorot_uniform"):
        assert np.abs(made).max() <= deviation * math.sqrt(3)
    else:
        assert np.abs(made).max() > 2.5 * deviation


def test_constant_schemes_and_empty_weights():
    np.testing.assert_array_equal(run(INIT, shape=(2, 3), scheme="zeros"), np.zeros((2, 3)))
    np.testing.assert_array_equal(run(INIT, shape=(2,), scheme="ones"), np.ones(2))
    for scheme in SCHEMES:
        assert run(INIT, shape=(0, 3), scheme=scheme).shape == (0, 3)
        assert np.isfinite(run(INIT, shape=(3, 2), scheme=scheme, fan=(0, 0))).all()


# Errors ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "specs", "options", "words"),
    [
        (UNIFORM, [Spec((1,), np.int64)], {"shape": (2,)}, "turn must be int64[], got int64[1]"),
        (UNIFORM, [], {"shape": (2,), "low": 2.0, "high": 1.0}, "low and high must be finite and in this order, got 2 and 1"),
        (NORMAL, [Spec(())], {"shape": (2,)}, "turn must be int64[], got float32[]"),
        (NORMAL, [], {"shape": (2,), "std": -1}, "'std' of op random.normal: wants a number of at least 0, got -1"),
        (PERMUTATION, [Spec((), np.int32)], {"n": 2}, "turn must be int64[], got int32[]"),
        (PERMUTATION, [], {"n": -2}, "wants a whole number of at least 0, got -2"),
        (DROPOUT, [Spec((2,), np.int64)], {}, "x must be of a floating dtype, got int64"),
        (DROPOUT, [Spec((2,)), Spec(())], {}, "turn must be int64[], got float32[]"),
        (DROPOUT, [Spec((2,))], {"rate": 1.5}, "wants a number from 0 to 1, got 1.5"),
        (INIT, [], {"shape": (2, 2), "scheme": "hee"}, "got 'hee'; did you mean 'he'?"),
        (INIT, [], {"shape": (2, 2), "fan": (1, 2, 3)}, "fan wants one number or two (inputs, outputs), got (1, 2, 3)"),
    ],
)
def test_errors_say_what_is_wrong(op, specs, options, words):
    with pytest.raises(GraphError) as caught:
        op.infer(specs, op.check_attributes({"key": "k", **options}))
    assert words in str(caught.value)


def test_other_array_libraries_get_what_numpy_makes():
    """A stand-in for a device's library: everything is made on the host and copied over."""

    class Device:
        asarray = staticmethod(np.array)
        multiply, copyto = staticmethod(np.multiply), staticmethod(np.copyto)

    for op, inputs, attributes in [
        (UNIFORM, [], {"shape": (3, 2)}),
        (NORMAL, [], {"shape": (3, 2)}),
        (PERMUTATION, [], {"n": 6}),
        (INIT, [], {"shape": (3, 2)}),
        (DROPOUT, [np.ones((3, 2), np.float32)], {}),
    ]:
        full = op.check_attributes({"key": "k", "seed": 3, **attributes})
        (spec,) = op.infer([spec_of(x) for x in inputs], full)
        out = np.empty(spec.bounds, spec.dtype)
        op.kernels["array"](Device, inputs, [out], None, full)
        np.testing.assert_array_equal(out, run(op, *inputs, seed=3, **attributes))
