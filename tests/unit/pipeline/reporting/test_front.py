import math

from hypothesis import given
from hypothesis import strategies as st

from patch.pipeline.reporting.front import pareto_front

# Few distinct values, so that ties occur.
POINTS = st.lists(st.tuples(st.sampled_from([0, 0.25, 0.35, 0.5]), st.integers(0, 5).map(float)), max_size=12)


def beats(a, b, higher):
    better = a[1] >= b[1] if higher else a[1] <= b[1]
    return a[0] >= b[0] and better and a != b


@given(POINTS, st.booleans())
def test_against_every_pair(points, higher):
    front = pareto_front(points, higher)
    expected = {i for i, point in enumerate(points) if not any(beats(other, point, higher) for other in points)}
    assert set(front) == expected
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


def test_broken_values_are_left_out():
    assert pareto_front([(0.5, math.nan), (0.25, 1.0)], higher_is_better=True) == [1]
