"""Tests of N:M masks against loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patch.errors import InputError
from patch.masks import nm
from patch.masks.nm import NM, Unstructured, drop_smallest, nm_mask, obeys, parse_pattern

PATTERNS = [NM(2, 4), NM(3, 4), NM(1, 4), NM(4, 8), NM(6, 8), NM(4, 4), NM(0, 2), NM(1, 3)]


@st.composite
def scores(draw: st.DrawFn, pattern: NM) -> torch.Tensor:
    rows, groups = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    if draw(st.booleans()):
        return torch.randint(0, 3, (rows, groups * pattern.m), generator=generator).float()
    return torch.randn(rows, groups * pattern.m, generator=generator)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@given(st.data())
def test_every_group_keeps_exactly_its_largest(pattern: NM, data: st.DataObject) -> None:
    score = data.draw(scores(pattern))
    mask = nm_mask(score, pattern)
    for row in range(score.shape[0]):
        for start in range(0, score.shape[1], pattern.m):
            values = score[row, start : start + pattern.m].tolist()
            # The smallest go first; of equals, the earlier.
            order = sorted(range(pattern.m), key=lambda i: (values[i], i))
            expected = [i in order[pattern.m - pattern.n :] for i in range(pattern.m)]
            assert mask[row, start : start + pattern.m].tolist() == expected
    assert obeys(mask, pattern).all()


def test_half_precision_and_extremes_are_ranked_as_they_are() -> None:
    score = torch.tensor([[float("inf"), 0.0, -float("inf"), 1e-30]])
    assert nm_mask(score, NM(2, 4)).tolist() == [[True, False, False, True]]
    assert nm_mask(torch.tensor([[1.0, 3.0, 2.0, 0.5]], dtype=torch.bfloat16), NM(1, 4)).tolist() == [
        [False, True, False, False]
    ]


def obvious_drop(score: torch.Tensor, count: int) -> torch.Tensor:
    """Drop the smallest of each row in Python; of equals the earlier."""
    mask = torch.ones_like(score, dtype=torch.bool)
    for row, kept in zip(score.reshape(-1, score.shape[-1]), mask.view(-1, score.shape[-1]), strict=True):
        for index in sorted(range(len(row)), key=lambda i: (row[i].item(), i))[:count]:
            kept[index] = False
    return mask


@given(
    st.sampled_from([(1,), (3,), (2, 2)]),
    st.integers(1, 60),
    st.integers(0, 60),
    st.sampled_from(["ties", "signed", "tiny"]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.integers(0, 100),
)
def test_drop_smallest_drops_exactly_count(
    rows: tuple[int, ...], length: int, count: int, kind: str, dtype: torch.dtype, seed: int
) -> None:
    count, generator = min(count, length), torch.Generator().manual_seed(seed)
    score = torch.randn(*rows, length, generator=generator)
    if kind == "ties":
        score = torch.randint(-1, 3, (*rows, length), generator=generator).float()
    elif kind == "tiny":
        score = score.abs() * 1e-30
    score = score.to(dtype)
    for case in (score, score.flatten()):
        assert torch.equal(drop_smallest(case, count), obvious_drop(case, count))


def test_long_rows_and_many_groups_are_chosen_as_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processing in parts does not change the result."""
    monkeypatch.setattr(nm, "_RUN", 100)
    monkeypatch.setattr(nm, "_PART", 10)
    score = torch.randint(0, 50, (40, 64), generator=torch.Generator().manual_seed(0)).float()
    for count in (0, 1, 1000, 1280, 2559, 2560):
        assert torch.equal(drop_smallest(score.flatten(), count), obvious_drop(score.flatten(), count))
    assert torch.equal(nm_mask(score, NM(2, 4)), obvious_drop(score.reshape(40, 16, 4), 2).reshape(40, 64))


def test_obeys_finds_the_broken_group() -> None:
    mask = torch.tensor([[1, 1, 0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1, 0, 1]]).bool()
    assert obeys(mask, NM(2, 4)).tolist() == [[True, False], [True, True]]


def test_groups_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="6 input features"):
        nm_mask(torch.ones(2, 6), NM(2, 4))


def test_patterns_are_parsed() -> None:
    assert parse_pattern("2:4", 0.5) == NM(2, 4)
    assert str(parse_pattern("4:8", 0.5)) == "4:8"
    assert parse_pattern("unstructured", 0.35) == Unstructured(0.35)
    assert NM(3, 4).sparsity == 0.25 and NM(1, 4).sparsity == 0.75
