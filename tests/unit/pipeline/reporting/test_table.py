import math

from patch.pipeline.reporting.table import Measure, mark_best

NAN = math.nan


def measure(value, stderr=0.0):
    return Measure(value, stderr, NAN, 1, NAN)


def marks(*measures, higher=True, paired=None):
    return mark_best(list(measures), higher, paired)


def errors(**known):
    """Return a function with the paired errors of the pairs named as in `p01`, and None for all others."""
    return lambda a, b: known.get(f"p{min(a, b)}{max(a, b)}")


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


def test_a_paired_error_decides():
    three = measure(60, 1), measure(70, 1), measure(69, 1)
    assert marks(*three, paired=errors(p12=0.5)) == [False, True, False]
    assert marks(*three, paired=errors(p12=1.0)) == [False, True, True]
    assert marks(*three, paired=errors(p01=20, p12=1.0)) == [False, False, False]
    assert marks(*three, higher=False, paired=errors(p02=9)) == [True, False, True]


def test_what_was_not_paired_falls_back_on_the_quadrature():
    three = measure(60, 1), measure(70, 1), measure(69, 1)
    for nothing in (errors(), errors(p01=0.1), errors(p12=NAN)):
        assert marks(*three, paired=nothing) == marks(*three) == [False, True, True]


def test_places_are_those_of_the_list():
    """Check that positions count missing values, and that no value is paired with itself."""
    asked = []

    def paired(a, b):
        asked.append((a, b))
        return 0.0

    assert marks(None, measure(69), measure(NAN), measure(70), measure(68), paired=paired) == [False] * 3 + [
        True,
        False,
    ]
    assert {frozenset(pair) for pair in asked} == {frozenset((1, 3)), frozenset((4, 3))}


def test_equal_numbers_tie_whatever_the_error():
    assert marks(measure(70), measure(70), measure(1), paired=errors(p01=0.0)) == [True, True, False]
