"""Tests of sequences of several documents with and without `cut_attention`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from patch.data.tokenization import Separator
from patch.data.tokenizer import train_tokenizer
from patch.errors import InputError
from patch.learning.document_masking import DocumentMasking
from patch.learning.learn import learn
from patch.learning.learning_settings import Learning, used_by
from patch.learning.objective import cross_entropy, recomputed_blocks
from patch.pipeline.stages.learn import _separator

FAMILIES = ["llama", "qwen2", "qwen3", "gemma3_text", "opt", "gpt2"]
EOS, BOS = 1, 2
# In documents of 9 tokens the sliding layers of Gemma 3 (4 tokens) do not see the beginning.
ROWS = [
    [[5, 6, 7, EOS], [8, EOS], [9, 10, 11, 12, 13, 14, 15, 16, EOS], [17, 18, 19, 20]],
    [[21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, EOS]],
    [[EOS], [40, EOS], [EOS], [41, 42, 43, 44, 45, 46, 47, 48, 49, 3, 4, 5, 6, 7, EOS]],
]


def packed(rows: list[list[list[int]]]) -> Tensor:
    return torch.tensor([sum(row, []) for row in rows])


def alone(model: nn.Module, row: list[list[int]]) -> list[Tensor]:
    return [model(torch.tensor([document]), use_cache=False).logits[0] for document in row]


@pytest.fixture(scope="module")
def cut_of() -> Callable[[nn.Module], DocumentMasking]:
    return lambda model: DocumentMasking(model, Separator(EOS))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_document_is_as_if_it_were_alone(
    tiny_model: Callable, cut_of: Callable, family: str, attention: str
) -> None:
    model = tiny_model(family)
    model.set_attn_implementation(attention)
    cut, tokens = cut_of(model), packed(ROWS)
    starts = cut.starts(tokens)
    logits = model(tokens, use_cache=False, **cut.arguments(starts)).logits
    expected = [torch.cat(alone(model, row)) for row in ROWS]
    torch.testing.assert_close(logits, torch.stack(expected), rtol=1e-4, atol=2e-5)
    joined = model(tokens, use_cache=False).logits
    assert (joined - logits).abs().max() > 0.1
    # And the loss: each document's own, the mean of a sequence, the mean of sequences.
    losses = []
    for row in ROWS:
        parts = [
            F.cross_entropy(logits[:-1], torch.tensor(document[1:], dtype=torch.int64), reduction="sum")
            for document, logits in zip(row, alone(model, row), strict=True)
        ]
        losses.append(sum(parts) / max(1, sum(len(document) - 1 for document in row)))
    assert cross_entropy(model, tokens, cut).item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_blocks_have_the_same_gradient(tiny_model: Callable, cut_of: Callable, family: str) -> None:
    model, tokens = tiny_model(family), packed(ROWS)
    cut, gradients = cut_of(model), []
    parameter = next(model.parameters()).requires_grad_(True)
    for enabled in (False, True):
        with recomputed_blocks(model, enabled):
            gradients.append(torch.autograd.grad(cross_entropy(model, tokens, cut), parameter)[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("separator", "row", "starts"),
    [
        (Separator(EOS), [EOS, 5, 6, EOS, 7, EOS], [1, 1, 0, 0, 1, 0]),
        (Separator(EOS, BOS), [5, EOS, BOS, 6, EOS, BOS], [1, 0, 1, 0, 0, 1]),
        # One token for both ends, as in OPT: at the beginning of a sequence it may be either.
        (Separator(EOS, EOS), [EOS, 5, 6, EOS, EOS, 7], [1, 0, 0, 0, 1, 0]),
        (Separator(EOS, EOS), [EOS, EOS, 5, 6, EOS, EOS], [1, 1, 0, 0, 0, 1]),
    ],
)
def test_starts_and_positions(tiny_model: Callable, separator: Separator, row: list[int], starts: list[int]) -> None:
    cut = DocumentMasking(tiny_model(), separator)
    found = cut.starts(torch.tensor([row]))
    assert found.tolist() == [[bool(start) for start in starts]]
    positions, expected = cut.arguments(found)["position_ids"][0].tolist(), []
    for start in starts:
        expected.append(0 if start else expected[-1] + 1)
    assert positions == expected


def test_a_sequence_of_separators_alone_has_no_loss(tiny_model: Callable, cut_of: Callable) -> None:
    model = tiny_model()
    assert cross_entropy(model, torch.full((1, 6), EOS), cut_of(model)).item() == 0


def test_a_sequence_of_one_document_is_unchanged(tiny_model: Callable, cut_of: Callable) -> None:
    model, tokens = tiny_model(), packed(ROWS[1:2])
    plain, cut = cross_entropy(model, tokens), cross_entropy(model, tokens, cut_of(model))
    assert cut.item() == pytest.approx(plain.item(), rel=1e-6)


class Deaf(nn.Module):
    """Model that ignores positions and masks."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def forward(self, tokens: Tensor, use_cache: bool = False, **ignored: object) -> object:
        return self.model(tokens, use_cache=use_cache)


class Refusing(Deaf):
    """Model that rejects positions."""

    def forward(self, tokens: Tensor, use_cache: bool = False) -> object:
        return self.model(tokens, use_cache=use_cache)


@pytest.mark.parametrize("kind", [Deaf, Refusing])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_model_that_cannot_is_refused(tiny_model: Callable, cut_of: Callable, kind: type, family: str) -> None:
    with pytest.raises(InputError, match=f"`cut_attention` is true, but {kind.__name__} supports no positions"):
        cut_of(kind(tiny_model(family)))


def test_an_unknown_separator_is_refused(tiny_model: Callable) -> None:
    with pytest.raises(InputError, match="`cut_attention` is true, but the model has no tokenizer"):
        DocumentMasking(tiny_model(), None)


@pytest.mark.parametrize("method", ["maskllm", "patch-joint", "patch-tile"])
def test_a_run_that_cuts(
    method: str, tiny_model: Callable, learning_settings: Callable, priors: Callable, tmp_path: Path
) -> None:
    """The first loss is that of separate documents and does not depend on a sequence's other documents."""
    tokens = packed(ROWS).numpy()
    other = tokens.copy()
    other[0, :4] = [50 - 1, 7, 3, EOS]  # another first document
    curves = []
    for name, sequences in (("one", tokens), ("other", other)):
        curve, model = tmp_path / f"{name}.jsonl", tiny_model()
        settings = learning_settings(steps=2, batch_size=3, micro_batch_size=3, cut_attention=True)
        options = {"folder": tmp_path / name, "curve": curve, "separator": Separator(EOS), **priors(model, 0.4)}
        sparsity, tile = (0.5, None) if method == "maskllm" else (0.4, 4)
        learn(model, method, sequences, settings, sparsity, tile, **options)
        curves.append(json.loads(curve.read_text().splitlines()[0])["cross_entropy"])
    # 3 of 15 predictions of one of 3 sequences differ, and no other.
    assert 0 < abs(curves[0] - curves[1]) < 3 / 15 / 3 * 20
    with pytest.raises(InputError, match="no tokenizer"):
        learn(model, method, tokens, settings, sparsity, tile, **options | {"separator": None})


def test_the_loss_does_not_depend_on_micro_batches(tiny_model: Callable, cut_of: Callable) -> None:
    model = tiny_model()
    cut, tokens = cut_of(model), packed(ROWS[:2] + [ROWS[0][::-1], ROWS[1]])
    whole = cross_entropy(model, tokens, cut)
    halves = [cross_entropy(model, half, cut) for half in tokens.split(2)]
    assert whole.item() == pytest.approx(torch.stack(halves).mean().item(), rel=1e-6)


def test_who_reads_the_setting() -> None:
    settings = Learning(cut_attention=True)
    assert not used_by("proxsparse", settings).cut_attention
    assert all(used_by(method, settings).cut_attention for method in ("maskllm", "patch-joint", "patch-tile"))


def test_what_the_stage_finds_in_a_model_folder(tiny_model: Callable, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    assert _separator(tmp_path) is None
    train_tokenizer(["some text"], 300).save_pretrained(tmp_path)
    assert _separator(tmp_path) == Separator(EOS)
