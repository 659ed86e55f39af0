"""Answers of `vllm serve` over HTTP against the masked dense model in transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import openai
import pytest
import torch

from tests.serving.conftest import Case, greedy
from tests.serving.server import serving

PROMPTS = [
    "In the beginning God created the heaven and the",
    "The capital of France is",
    "Water is made of hydrogen and",
    "1, 2, 3, 4, 5,",
]
NEW_TOKENS = 24


class Kind(NamedTuple):
    """Served model: sparsity in percent, dtype, options of the server, and the tolerance of a log-probability.

    In fp32, both engines compute the same sums in another order. In bf16, every layer rounds to eight bits.
    """

    sparsity: int
    dtype: str
    options: tuple[str, ...]
    tolerance: float


EAGER = ("--enforce-eager",)
KINDS = {
    "2:4": Kind(50, "float32", EAGER, 1e-3),
    "hybrid-25": Kind(25, "float32", EAGER, 1e-3),
    "hybrid-45": Kind(45, "float32", EAGER, 1e-3),
    "hybrid-45-compiled-bf16": Kind(45, "bfloat16", (), 0.2),
}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def served(
    request: pytest.FixtureRequest, case: Callable[[int, str], Case], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Case, openai.OpenAI, float]]:
    """Serve a packed folder; the case, a client, and the tolerance."""
    kind: Kind = request.param
    one = case(kind.sparsity, kind.dtype)
    options = ("--dtype", kind.dtype, "--max-model-len", "512", "--max-num-seqs", "8", "--generation-config", "vllm")
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with (
        serving(one.folder, log, *options, *kind.options) as url,
        openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=300) as client,
    ):
        yield one, client, kind.tolerance


def complete(client: openai.OpenAI, prompts: list[list[int]]) -> list[tuple[list[int], list[float]]]:
    """Return the greedy tokens after each prompt, and their log-probabilities; prompts are answered as one batch."""
    answer = client.completions.create(
        model="model",
        prompt=prompts,
        max_tokens=NEW_TOKENS,
        temperature=0,
        logprobs=0,
        extra_body={"ignore_eos": True, "return_tokens_as_token_ids": True},
    )
    found = [choice.logprobs for choice in sorted(answer.choices, key=lambda choice: choice.index)]
    return [([int(t.removeprefix("token_id:")) for t in each.tokens], each.token_logprobs) for each in found]


def test_tokens_and_log_probabilities_are_those_of_the_masked_model(served: tuple[Case, openai.OpenAI, float]):
    """Each token is the reference's most probable one, or as probable up to the tolerance."""
    one, client, tolerance = served
    prompts = [one.tokenizer(text)["input_ids"] for text in PROMPTS]
    answers = complete(client, prompts)
    assert len(answers) == len(prompts)
    for prompt, (tokens, found) in zip(prompts, answers, strict=True):
        assert len(tokens) == NEW_TOKENS
        expected, largest = greedy(one.reference, prompt, tokens)
        torch.testing.assert_close(torch.tensor(found).double(), expected, rtol=0, atol=tolerance)
        assert (largest - expected).max() <= tolerance


def test_the_tolerance_separates_the_masked_model_from_the_dense_one(served: tuple[Case, openai.OpenAI, float]):
    one, client, tolerance = served
    prompt = one.tokenizer(PROMPTS[0])["input_ids"]
    ((tokens, found),) = complete(client, [prompt])
    without_masks, _ = greedy(one.unmasked, prompt, tokens)
    assert (torch.tensor(found).double() - without_masks).abs().max() > 5 * tolerance


def test_one_request_gives_the_tokens_of_a_batch(served: tuple[Case, openai.OpenAI, float]):
    """A single sequence uses other kernels than a batch."""
    one, client, tolerance = served
    prompt = one.tokenizer(PROMPTS[1])["input_ids"]
    ((tokens, found),) = complete(client, [prompt])
    expected, largest = greedy(one.reference, prompt, tokens)
    torch.testing.assert_close(torch.tensor(found).double(), expected, rtol=0, atol=tolerance)
    assert (largest - expected).max() <= tolerance
