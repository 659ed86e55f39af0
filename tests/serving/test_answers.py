"""Answers of `vllm serve` for a pretrained model over HTTP, against the masked dense model in transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import openai
import pytest
import torch

from patch.models.loading import load_model, load_tokenizer
from tests.serving.conftest import Case, check_answers, complete, log_probabilities, make_case
from tests.serving.server import serving

PROMPTS = [
    "In the beginning God created the heaven and the",
    "The capital of France is",
    "Water is made of hydrogen and",
    "1, 2, 3, 4, 5,",
]
NEW_TOKENS = 24


class Kind(NamedTuple):
    """Served model: sparsity (%), dtype, options of the server, tolerance of log-probabilities, and quantization.

    In fp32, both engines compute the same sums in another order, and the tolerance bounds the largest difference. In
    bf16 every layer rounds to eight bits, which moves single log-probabilities of this model by up to 4, of the masked
    dense model in vLLM as well. There the tolerance bounds the median.
    """

    sparsity: int
    dtype: str
    options: tuple[str, ...]
    tolerance: float
    four_bits: bool = False

    @property
    def quantile(self) -> float:
        """Quantile of the differences that the tolerance bounds."""
        return 0.5 if self.dtype == "bfloat16" else 1.0


EAGER = ("--enforce-eager",)
KINDS = {
    "2:4": Kind(50, "float32", EAGER, 1e-3),
    "hybrid-25": Kind(25, "float32", EAGER, 1e-3),
    "hybrid-45": Kind(45, "float32", EAGER, 1e-3),
    "hybrid-45-4bit": Kind(45, "float32", EAGER, 1e-3, four_bits=True),
    "hybrid-45-compiled-bf16": Kind(45, "bfloat16", (), 0.1),
}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def served(
    request: pytest.FixtureRequest, pretrained: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Case, openai.OpenAI, Kind]]:
    """Serve a packed folder, and yield it with a client."""
    kind: Kind = request.param
    folder = tmp_path_factory.mktemp("served")
    model, tokenizer = load_model(pretrained, kind.dtype), load_tokenizer(pretrained)
    case = make_case(model, tokenizer, kind.sparsity, folder / "model", four_bits=kind.four_bits)
    options = ("--dtype", kind.dtype, "--max-model-len", "512", "--generation-config", "vllm", *kind.options)
    with (
        serving(case.folder, folder / "log.txt", *options) as url,
        openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=300) as client,
    ):
        yield case, client, kind


def test_a_batch_has_the_tokens_and_log_probabilities_of_the_masked_model(served: tuple[Case, openai.OpenAI, Kind]):
    case, client, kind = served
    prompts = [case.tokenizer(text)["input_ids"] for text in PROMPTS]
    check_answers(case, client, prompts, NEW_TOKENS, kind.tolerance, kind.quantile)


def test_a_single_request_has_them_too(served: tuple[Case, openai.OpenAI, Kind]):
    """Few rows of inputs use other kernels than many."""
    case, client, kind = served
    prompts = [case.tokenizer(PROMPTS[1])["input_ids"]]
    check_answers(case, client, prompts, NEW_TOKENS, kind.tolerance, kind.quantile)


def test_the_tolerance_is_far_below_the_effect_of_the_masks(served: tuple[Case, openai.OpenAI, Kind]):
    case, client, kind = served
    prompt = case.tokenizer(PROMPTS[1])["input_ids"]
    ((tokens, found),) = complete(client, [prompt], NEW_TOKENS)
    without_masks, _ = log_probabilities(case.unmasked, prompt, tokens)
    effect = (torch.tensor(found).double() - without_masks).abs().quantile(kind.quantile)
    assert effect > 5 * kind.tolerance
