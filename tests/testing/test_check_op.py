"""`check_op` on ops that are wrong in one way each: it must say so."""

from dataclasses import replace

import numpy as np
import pytest

from hetsched.errors import GraphError
from hetsched.graph.op import Attribute, Op, Work
from hetsched.graph.ops import find
from hetsched.graph.spec import Spec, UpTo
from hetsched.testing.ops import Case, broadcasting, check_op, shapes


def cases(rng):
    return [Case((rng.uniform(0.5, 2, size=s),)) for s in shapes(rng)]


def kernel(function):
    def run(xp, inputs, outputs, workspace, attributes):
        function(inputs[0], outputs[0])

    return run


GOOD = Op(
    "test.square", ("x",), ("out",), lambda specs, attributes: [specs[0]], lambda i, o, a: Work(1, 2, 3),
    {"array": kernel(lambda x, out: np.multiply(x, x, out=out))},
    lambda b, x, y, g, a: [lambda: b.op("tensor.scale", b.op("tensor.mul", x[0], g[0]), factor=2.0)], inplace=((0, 0),),
)  # fmt: skip


def test_a_good_op_passes_and_the_cases_are_counted():
    assert check_op(GOOD, cases, reference=np.square) == 8
    assert check_op(GOOD, cases(np.random.default_rng(0))) == 8


def wrong_element(x, out):
    np.multiply(x, x, out=out)
    out[..., :1] += 1e-3


def partly_written(x, out):
    np.multiply(x[1:], x[1:], out=out[1:])


def reads_after_writing(x, out):
    out[...] = x + 1
    out *= x
    out -= x


def spoils(x, out):
    np.multiply(x, x, out=out)
    x *= 2


def too_tight(specs, attributes):
    """Right for fixed extents, wrong for bounded ones."""
    return [Spec([d.n - 3 - 1 if isinstance(d, UpTo) else d for d in specs[0].shape], specs[0].dtype)]


WIDER = replace(
    GOOD,
    infer=lambda specs, attributes: [Spec((*specs[0].shape, 1), specs[0].dtype)],
    kernels={"array": kernel(lambda x, out: np.multiply(x, x, out=out[..., 0]))},
    inplace=(),
)
NARROWER = replace(
    GOOD,
    infer=lambda specs, attributes: [Spec(specs[0].shape, "float32")],
    kernels={"array": kernel(lambda x, out: out.__setitem__(..., x * x))},
)
HALF_GRADIENT = replace(GOOD, gradient=lambda b, x, y, g, a: [b.op("tensor.mul", x[0], g[0])])
FLAT_GRADIENT = replace(GOOD, gradient=lambda b, x, y, g, a: [b.op("tensor.reshape", g[0], shape=(1, -1))])

BROKEN = {
    "a wrong element": (replace(GOOD, kernels={"array": kernel(wrong_element)}), r"array kernel, output 0 \(out\) is off by 0\.00"),
    "an element not written": (replace(GOOD, kernels={"array": kernel(partly_written)}), "is not finite where it should be.* first at .*: got .*nan"),
    "in place": (replace(GOOD, kernels={"array": kernel(reads_after_writing)}), r"in place \[\(0, 0\)\] \(output, input\): output 0 is"),
    "a spoilt input": (replace(GOOD, kernels={"array": kernel(spoils)}), "read-only"),
    "a wrong shape": (WIDER, "has shape .* the reference"),
    "a wrong dtype": (NARROWER, "infer says float32, the reference float64"),
    "a bound that does not hold": (replace(GOOD, infer=too_tight), "infer of .* gives out"),
    "a wrong gradient": (HALF_GRADIENT, "gradient of outputs .* with respect to element"),
    "a gradient of another shape": (FLAT_GRADIENT, "the gradient of input 0 is"),
    "work that is no number": (replace(GOOD, work=lambda i, o, a: Work(float("nan"), 0, 0)), "work must be finite"),
    "negative work": (replace(GOOD, work=lambda i, o, a: Work(0, -1, 0)), "work must be finite"),
    "no kernel for here": (replace(GOOD, kernels={"vulkan": kernel(wrong_element)}), r"no kernel of test\.square can run here: it has vulkan"),
    "a second kernel that disagrees": (replace(GOOD, kernels={**GOOD.kernels, "host": kernel(wrong_element)}), "host kernel, output 0"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_op_is_found(what):
    op, says = BROKEN[what]
    with pytest.raises((AssertionError, GraphError, ValueError), match=says) as caught:
        check_op(op, lambda rng: [c for c in cases(rng) if c.inputs[0].ndim and c.inputs[0].size > 1], reference=np.square)
    assert caught.value.__notes__[0].startswith("test.square, Case(float64[")


def test_without_a_reference_float32_is_held_against_float64():
    def loses(x, out):
        out[...] = (x.astype(np.float16) if x.dtype == np.float32 else x) ** 2

    with pytest.raises(AssertionError, match="is off by"):
        check_op(replace(GOOD, kernels={"array": kernel(loses)}), cases)


def test_leftovers_of_integers_and_bools_are_found():
    def leaves_zeros(x, out):
        out[x > 0] = True

    op = replace(GOOD, infer=lambda s, a: [Spec(s[0].shape, bool)], kernels={"array": kernel(leaves_zeros)}, gradient=None, inplace=())
    with pytest.raises(AssertionError, match="is not fully overwritten"):
        check_op(op, [Case((np.array([1.0, -1]),))])


def test_every_output_alone_is_differentiated():
    def both(xp, inputs, outputs, workspace, attributes):
        xp.negative(inputs[0], out=outputs[0])
        xp.multiply(inputs[0], inputs[0], out=outputs[1])

    def careless(b, x, y, g, attributes):
        """Right where gradients flow into both outputs; fails where one is None."""
        return [b.op("tensor.sub", b.op("tensor.mul", b.op("tensor.scale", x[0], factor=2.0), g[1]), g[0])]

    op = replace(GOOD, outputs=("minus", "square"), infer=lambda s, a: [s[0], s[0]], kernels={"array": both}, gradient=careless, inplace=())
    with pytest.raises(GraphError, match="must be a value of this builder, got NoneType"):
        check_op(op, cases, reference=lambda x: (-x, x * x))


def test_a_backend_proves_its_language_with_a_runner():
    ran = []

    def runner(kernel, inputs, out_specs, nbytes, attributes):
        ran.append(attributes)
        return [inputs[0] * kernel]

    op = replace(GOOD, kernels={**GOOD.kernels, "abacus": 3.0}, attributes={"unused": Attribute(int, 1)})
    with pytest.raises(AssertionError, match="abacus kernel, output 0"):
        check_op(op, [Case((np.ones(2),))], reference=lambda x, unused: x * x, runners={"abacus": runner})
    assert ran == [{"unused": 1}]


def test_no_case_is_no_proof():
    with pytest.raises(AssertionError, match="no case was given"):
        check_op(GOOD, [])


def test_random_shapes_have_empty_and_single_axes_and_broadcast():
    rng = np.random.default_rng(1)
    for shape in shapes(rng, 50, least=1, most=3):
        assert 1 <= len(shape) <= 3
        assert np.broadcast_shapes(shape, broadcasting(rng, shape)) == shape
    first, second, *_ = shapes(rng, 4)
    assert set(first) == {1}
    assert 0 in second


@pytest.mark.parametrize("name", ["tensor.add", "nn.dense", "tensor.gather"])
def test_the_default_runners_cover_our_ops(name):
    assert "array" in find(name).kernels
