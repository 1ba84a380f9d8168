import numpy as np

from hetsched.report.doubts import doubts


def test_only_floats_that_are_not_finite_are_doubted() -> None:
    fine = {"a": np.ones((3, 4), np.float32), "n": np.arange(3), "text": "nan", "empty": np.zeros(0)}
    assert doubts([("train.model", fine)]) == []


def test_what_is_not_finite_is_counted_and_named() -> None:
    parts = {name: np.array([1, np.nan, np.inf]) for name in "pqrst"} | {"fine": np.ones(2)}
    found = doubts([("train.model", parts), ("evaluate.metrics", {"loss": np.array(np.inf), "accuracy": np.array(0.5)})])
    assert found[0].startswith("train.model is not finite: p (2 of 3 values), q (2 of 3 values), r (2 of 3 values) and 2 other parts; ")
    assert found[1].startswith("evaluate.metrics is not finite: loss (infinite); ")
    assert "lower the learning rate" in found[1]
