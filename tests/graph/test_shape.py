import numpy as np
import pytest
from op_runners import ELSEWHERE

from hetsched.errors import GraphError
from hetsched.graph.ops import find
from hetsched.graph.ops.shape import view_offset
from hetsched.graph.spec import Spec, UpTo
from hetsched.testing.ops import Case, broadcasting, check_op, shapes


def test_reshape():
    def cases(rng):
        for shape in shapes(rng):
            x = rng.normal(size=shape)
            yield Case((x,), {"shape": (x.size,)})
            yield Case((x,), {"shape": tuple(reversed(shape))})
            if x.size:
                yield Case((x,), {"shape": (1, -1)})

    check_op(find("tensor.reshape"), cases, reference=lambda x, shape: x.reshape(shape), runners=ELSEWHERE)


def test_reshape_of_a_bounded_dimension():
    def becomes(*shape, to):
        return find("tensor.reshape").infer([Spec(shape)], {"shape": to})[0].shape

    assert becomes(UpTo(32), 8, 8, to=(-1, 64)) == (UpTo(32), 64)
    assert becomes(UpTo(32), 8, 8, to=(-1, 8)) == (UpTo(256), 8)
    assert becomes(4, UpTo(32), to=(-1,)) == (UpTo(128),)
    for shape, to in [((UpTo(32), 8), (32, 8)), ((UpTo(32), 3), (-1, 2)), ((UpTo(2), UpTo(2)), (-1,))]:
        with pytest.raises(GraphError, match="one bounded dimension must go into the one -1"):
            becomes(*shape, to=to)


def test_rows():
    def cases(rng):
        for shape in shapes(rng, least=1):
            start, stop = sorted(rng.integers(0, shape[0] + 1, size=2).tolist())
            yield Case((rng.normal(size=shape),), {"start": start, "stop": stop})

    check_op(find("tensor.rows"), cases, reference=lambda x, start, stop: x[start:stop], runners=ELSEWHERE)


def test_the_bytes_of_a_view_lie_where_view_offset_says():
    x = np.arange(24, dtype="f4").reshape(4, 3, 2)
    for name, attributes in [("tensor.rows", {"start": 1, "stop": 3}), ("tensor.reshape", {"shape": (2, 12)})]:
        op = find(name)
        (spec,) = op.infer([Spec(x.shape)], attributes)
        start = view_offset(op, Spec(x.shape), attributes)
        aliased = np.frombuffer(x.tobytes()[start : start + spec.nbytes], "f4").reshape(spec.shape)
        out = np.empty(spec.shape, "f4")
        op.kernels["array"](np, [x], [out], None, attributes)
        assert np.array_equal(aliased, out)
    with pytest.raises(GraphError, match=r"tensor\.slice is no view"):
        view_offset(find("tensor.slice"), Spec(x.shape), {})


def test_transpose():
    def cases(rng):
        for shape in shapes(rng):
            yield Case((rng.normal(size=shape),))
            axes = rng.permutation(len(shape)).tolist()
            yield Case((rng.normal(size=shape),), {"axes": [a - len(shape) if rng.random() < 0.3 else a for a in axes]})

    check_op(find("tensor.transpose"), cases, reference=lambda x, axes: np.transpose(x, axes), runners=ELSEWHERE)


def test_broadcast_to():
    def cases(rng):
        for shape in shapes(rng, 12):
            x = rng.normal(size=broadcasting(rng, shape))
            yield Case((x,), {"shape": shape})
            yield Case((x, np.zeros(shape, bool)))

    check_op(
        find("tensor.broadcast_to"),
        cases,
        reference=lambda x, like=None, shape=None: np.broadcast_to(x, shape if like is None else like.shape),
        runners=ELSEWHERE,
    )


def test_concat():
    def cases(rng):
        for shape in shapes(rng, 12, least=1):
            axis = int(rng.integers(-len(shape), len(shape)))
            values = []
            for _ in range(rng.integers(1, 4)):
                one = list(shape)
                one[axis] = int(rng.integers(0, 4))
                values.append(rng.normal(size=one))
            yield Case(tuple(values), {"axis": axis})

    check_op(find("tensor.concat"), cases, reference=lambda *values, axis: np.concatenate(values, axis), runners=ELSEWHERE)


def test_slice_and_pad():
    def slices(rng):
        for shape in shapes(rng, 12):
            axes = [a for a in range(len(shape)) if rng.random() < 0.6]
            ends = [sorted(rng.integers(0, shape[a] + 1, size=2).tolist()) for a in axes]
            yield Case((rng.normal(size=shape),), {"starts": [i for i, _ in ends], "stops": [j for _, j in ends], "axes": axes})
        yield Case((rng.normal(size=(4, 5)),), {"starts": (1,), "stops": (3,)})

    def sliced(x, starts, stops, axes):
        for axis, i, j in zip(range(len(starts)) if axes is None else axes, starts, stops, strict=True):
            x = np.take(x, range(i, j), axis)
        return x

    def pads(rng):
        for shape in shapes(rng, 12):
            yield Case(
                (rng.normal(size=shape),),
                {"low": rng.integers(0, 3, len(shape)).tolist(), "high": rng.integers(0, 3, len(shape)).tolist(), "value": 1.5},
            )

    check_op(find("tensor.slice"), slices, reference=sliced, runners=ELSEWHERE)
    check_op(
        find("tensor.pad"),
        pads,
        reference=lambda x, low, high, value: np.pad(x, list(zip(low, high, strict=True)), constant_values=value) if x.ndim else x,
    )


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8"])
def test_gather_and_scatter_add(dtype):
    def gathers(rng):
        for shape in shapes(rng, 12, least=1):
            axis = int(rng.integers(-len(shape), len(shape)))
            for picks in [(), (3,), (2, 2), (0,)]:
                if shape[axis] or picks == (0,):
                    indices = np.asarray(rng.integers(0, max(shape[axis], 1), size=picks)).astype(dtype)
                    yield Case((rng.normal(size=shape), indices), {"axis": axis})

    def scatters(rng):
        for shape in shapes(rng, 12, least=1):
            axis = int(rng.integers(0, len(shape)))
            indices = rng.integers(0, 4, size=shape[axis]).astype(dtype)
            yield Case((indices, rng.normal(size=shape)), {"size": 4, "axis": axis})

    def scattered(indices, updates, size, axis):
        out = np.zeros((size, *np.delete(updates.shape, axis)))
        for at, part in zip(indices, np.moveaxis(updates, axis, 0), strict=True):
            out[at] += part
        return np.moveaxis(out, 0, axis)

    check_op(find("tensor.gather"), gathers, reference=lambda x, indices, axis: np.take(x, indices, axis), runners=ELSEWHERE)
    check_op(find("tensor.scatter_add"), scatters, reference=scattered, runners=ELSEWHERE)


@pytest.mark.parametrize("index", [-1, 3])
def test_an_index_out_of_range_is_an_error(index):
    out = np.empty((1, 2))
    with pytest.raises(IndexError, match=rf"indices\[0\] is {index}, outside 0 to 2; ids count from 0"):
        find("tensor.gather").kernels["array"](np, [np.zeros((3, 2)), np.array([index])], [out], None, {"axis": 0})
    with pytest.raises(IndexError, match=rf"indices\[0\] is {index}, outside 0 to 2"):
        find("tensor.scatter_add").kernels["array"](np, [np.array([index]), out], [np.empty((3, 2))], None, {"axis": 0})


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bool"])
def test_one_hot(dtype):
    def cases(rng):
        for shape in shapes(rng, 6, most=2):
            yield Case((rng.integers(0, 4, size=shape),), {"classes": 4, "dtype": dtype})

    def reference(indices, classes, dtype):
        return np.array([[i == c for c in range(classes)] for i in indices.ravel()]).reshape(*indices.shape, classes).astype(dtype)

    check_op(find("tensor.one_hot"), cases, reference=reference, runners=ELSEWHERE)


@pytest.mark.parametrize(
    ("name", "specs", "attributes", "says"),
    [
        ("tensor.reshape", [Spec((2, 3))], {"shape": (4,)}, r"x \[2, 3\] has 6 elements, shape \(4,\) has 4"),
        ("tensor.reshape", [Spec((2, 3))], {"shape": (-1, -1)}, "more than one -1"),
        ("tensor.reshape", [Spec((2, 3))], {"shape": (4, -1)}, r"x \[2, 3\] of 6 elements cannot become \(4, -1\)"),
        ("tensor.rows", [Spec((2, 3))], {"start": 1, "stop": 4}, r"rows 1 to 4 are outside x \[2, 3\]"),
        ("tensor.transpose", [Spec((2, 3))], {"axes": (0, 0)}, r"axes \(0, 0\) are no permutation of the 2 axes of x"),
        ("tensor.broadcast_to", [Spec((2,))], {"shape": (2, 3)}, r"shapes \[2\] and \[2, 3\] do not broadcast"),
        ("tensor.concat", [Spec((2, 3)), Spec((2, 4))], {}, r"values1 \[2, 4\] does not fit values0 \[2, 3\]: only axis 0 may differ"),
        ("tensor.concat", [Spec((2, 3)), Spec((2, 3), int)], {}, "values0 is float32 but values1 is int64; convert one with tensor.cast"),
        ("tensor.slice", [Spec((2, 3))], {"starts": (0, 2), "stops": (3, 1)}, r"0 to 3 is outside axis 0 of x \[2, 3\]\n2 to 1 is outside axis 1"),
        ("tensor.slice", [Spec((UpTo(2),))], {"starts": (0,), "stops": (1,)}, "axis 0 of x .* is bounded and cannot be sliced"),
        ("tensor.pad", [Spec((2, 3))], {"low": (1,), "high": (1,)}, "must name all 2 axes"),
        ("tensor.gather", [Spec((2, 3)), Spec((2,))], {}, "indices must be of an integer dtype, got float32; convert it with tensor.cast"),
        ("tensor.gather", [Spec((0, 3)), Spec((2,), int)], {}, "there is nothing to gather"),
        ("tensor.scatter_add", [Spec((2,), int), Spec((3, 3))], {"size": 4}, "updates .* must have the shape .* of indices from axis 0 on"),
    ],
)
def test_errors(name, specs, attributes, says):
    op = find(name)
    with pytest.raises(GraphError, match=says):
        op.infer(specs, op.check_attributes(attributes))


def test_joining_bounded_rows_is_bounded_by_the_sum():
    op = find("tensor.concat")
    assert op.infer([Spec((UpTo(3), 2)), Spec((4, 2))], {"axis": 0}) == [Spec((UpTo(7), 2))]
