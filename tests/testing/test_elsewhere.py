"""The array library that is not NumPy: what it lets kernels use, and that CuPy has it."""

import inspect

import numpy as np
import pytest

from hetsched.graph.ops import find
from hetsched.testing import check_op
from hetsched.testing.elsewhere import COMMON, Elsewhere
from hetsched.testing.ops import Case


def test_cupy_has_what_is_common():
    """Its names and keywords; CuPy can be imported, and asked for them, on a machine without a device."""
    cupy = pytest.importorskip("cupy")
    for name, keywords in COMMON.items():
        found = getattr(cupy, name)
        if keywords and not isinstance(found, cupy.ufunc):
            assert keywords <= set(inspect.signature(found).parameters), name
        elif keywords:
            assert keywords == {"out"}, name
    assert callable(cupy.add.at)
    assert callable(cupy.lib.stride_tricks.as_strided)
    for name in ("view", "fill", "reshape", "transpose", "swapaxes", "squeeze", "astype", "max", "sum", "argmax"):
        assert callable(getattr(cupy.ndarray, name))


def test_more_than_what_is_common_is_refused_to_hetscheds_own_kernels():
    strict = Elsewhere(strict=True)
    x = np.ones(3)
    assert strict.add(x, x, out=x) is x
    with pytest.raises(AttributeError, match=r"used xp\.einsum, which is not known to be in CuPy"):
        _ = strict.einsum
    with pytest.raises(TypeError, match=r"called xp\.sum with where"):
        strict.sum(x, where=True)
    assert Elsewhere(strict=False).einsum is np.einsum


def test_check_op_looks_at_that_branch_as_well():
    from dataclasses import replace

    def kernel(xp, inputs, outputs, workspace, attributes):
        np.exp(inputs[0], out=outputs[0])
        if xp is not np:
            outputs[0][...] += 1

    wrong = replace(find("tensor.exp"), kernels={"array": kernel})
    with pytest.raises(AssertionError, match="array:elsewhere kernel, output 0"):
        check_op(wrong, [Case((np.ones(3),))], reference=lambda x: np.exp(x))
