from types import SimpleNamespace

import pytest

from hetsched.errors import GraphError
from hetsched.graph.expression import Expression

NAMES = {"n": 10, "m": 3, "x": SimpleNamespace(size=30, nbytes=120, ndim=2, shape=(10, 3))}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("n", 10), ("2 * n + 1", 21), ("ceil_div(n, 4)", 3), ("n // m", 3), ("n % m", 1), ("n / 4", 2.5), ("-n", -10), ("max(n, m, 50)", 50),
        ("min(n, m)", 3), ("x.size * 2", 60), ("x.nbytes", 120), ("x.shape[1] + x.ndim", 5), ("12", 12), (7, 7), (2.5, 2.5),
    ],
)  # fmt: skip
def test_arithmetic(text: str, wanted: float) -> None:
    assert Expression(text).value(NAMES) == wanted


@pytest.mark.parametrize(
    "text", ["__import__('os')", "n.__class__", "x.data", "lambda: 1", "[1]", "'a'", "n if m else 0", "n ** 99", "open(n)", "min(n)", "n < m", "True"]
)
def test_nothing_else_is_understood(text: str) -> None:
    with pytest.raises(GraphError, match="is not understood: an expression has names, numbers"):
        Expression(text)


@pytest.mark.parametrize("text", ["", "n +", "(" * 300, "1" * 600, "n\x00"])
def test_what_is_no_expression(text: str) -> None:
    with pytest.raises(GraphError, match=r"no expression|too long"):
        Expression(text)


def test_extents_are_whole_numbers() -> None:
    assert Expression("n / 5").whole(NAMES) == 2
    for text in ("n / 4", "m - n"):
        with pytest.raises(GraphError, match="should be a whole number of at least 0"):
            Expression(text).whole(NAMES)


def test_errors_name_the_text_and_what_is_known() -> None:
    with pytest.raises(GraphError, match=r"'nn' is not known; did you mean 'n'\? known: m, n, x"):
        Expression("nn + 1").value(NAMES)
    with pytest.raises(GraphError, match="'n // 0' cannot be calculated"):
        Expression("n // 0").value(NAMES)
    with pytest.raises(GraphError, match=r"'x.shape\[5\]' cannot be calculated"):
        Expression("x.shape[5]").value(NAMES)
    with pytest.raises(GraphError, match="no number of a size that could be meant"):
        Expression("n * 1000000000000000000").value(NAMES)
    with pytest.raises(GraphError, match="'n \\+ k' uses 'k'"):
        Expression("n + k").check_names(["n"])
    assert Expression("n * m + n").names == ("n", "m")
