import math

from patch.paper.table import Measure, mark_best

NAN = math.nan


def measure(value, stderr=0.0):
    return Measure(value, stderr, NAN, 1, NAN)


def marks(*measures, higher=True):
    return mark_best(list(measures), higher)


def test_the_best_alone_is_marked():
    assert marks(measure(60, 1), measure(70, 1), measure(65, 1)) == [False, True, False]
    assert marks(measure(60, 1), measure(70, 1), measure(65, 1), higher=False) == [True, False, False]


def test_what_ties_with_the_best_is_marked_too():
    assert marks(measure(60, 1), measure(70, 1), measure(69, 1)) == [False, True, True]


def test_nothing_is_marked_where_all_tie():
    assert marks(measure(69, 1), measure(70, 1)) == [False, False]
    assert marks(measure(70), measure(70)) == [False, False]


def test_the_error_is_that_of_the_difference():
    # sqrt(1 + 1) = 1.414
    assert marks(measure(70, 1), measure(68.6, 1), measure(0)) == [True, True, False]
    assert marks(measure(70, 1), measure(68.5, 1), measure(0)) == [True, False, False]


def test_one_number_has_nothing_to_beat():
    assert marks(measure(70)) == [False]
    assert marks(measure(70), None, measure(NAN)) == [False, False, False]


def test_an_unknown_error_counts_as_zero():
    assert marks(measure(70, NAN), measure(69.9, NAN)) == [True, False]


def test_a_broken_model_never_wins():
    assert marks(measure(math.inf, NAN), measure(30, 1), measure(40, 1), higher=False) == [False, True, False]
