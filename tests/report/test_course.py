import numpy as np

from hetsched.report.history import history_lines


def lines(values, best, epochs, most=5):
    return [x.split() for x in history_lines({"val_loss": np.array(values), "epochs": np.int64(epochs), "best_epoch": np.int64(best)}, most)]


def test_of_many_looks_the_first_the_best_and_the_last_are_shown():
    found = lines([9.0, 8, 1, 6, 5, 4, 3, 2, 7, 6], 6, 20)
    assert found == [["epoch", "val_loss"], ["2", "9"], ["..."], ["6", "1", "best"], ["..."], ["16", "2"], ["18", "7"], ["20", "6"]]


def test_of_few_looks_all_are_shown_and_there_may_be_no_best():
    assert lines([float("nan"), 2], 0, 2) == [["epoch", "val_loss"], ["1", "nan"], ["2", "2"]]


def test_metrics_without_a_course_have_no_table():
    assert history_lines({"loss": np.float64(2)}) == []
