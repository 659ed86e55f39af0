"""Token sequences for the public functions, at most as long as the model's context."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from patch.data.packing import pack_file
from patch.data.sequences import joined_sequences, load_sequences, sample_sequences
from patch.errors import InputError
from patch.reference_api.arguments import PruneArguments
from patch.reference_api.datasets import Text, find_text
from patch.reference_api.settings import ApiSettings

CALIBRATION_SEQLEN = 2048
PERPLEXITY_SEQLEN = 4096
# Bounds the documents in memory: the shard of C4 has fewer, SlimPajama has millions.
_DRAWN_FROM = 400_000


def context_length(model: nn.Module) -> int | None:
    """Return the model's context length in tokens; None if its configuration lacks it."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def check_length(name: str, seqlen: int, model: nn.Module) -> int:
    """Check a sequence length and return it.

    Raises:
        InputError: the length exceeds the model's context.
    """
    longest = context_length(model)
    if longest is not None and seqlen > longest:
        raise InputError(f"`{name}` is {seqlen}, longer than the model's context of {longest} tokens; lower it")
    return seqlen


def _length(name: str, given: int | None, default: int, model: nn.Module) -> int:
    """Return the given length after a check, or the default limited to the model's context."""
    return check_length(name, given, model) if given else min(default, context_length(model) or default)


def calibration_length(model: nn.Module, settings: ApiSettings) -> int:
    """Return the number of tokens per calibration sequence."""
    return _length("calibration.seqlen", settings.calibration.seqlen, CALIBRATION_SEQLEN, model)


def calibration_windows(
    text: Text, tokenizer: PreTrainedTokenizerBase, arguments: PruneArguments, seqlen: int, seed: int
) -> np.ndarray:
    """Return calibration sequences, `[nsamples, seqlen]` ids.

    Raises:
        InputError: the text is too short.
    """
    with text.documents() as documents:
        try:
            first = islice(documents, _DRAWN_FROM)
            return sample_sequences(first, tokenizer, arguments.nsamples, seqlen, seed)[0]
        except InputError as error:
            raise InputError(
                f"`prune_args.nsamples` is {arguments.nsamples} with calibration_dataset "
                f"{arguments.calibration_dataset!r}: {error}"
            ) from None


def learning_windows(
    path: Path, text: Text, tokenizer: PreTrainedTokenizerBase, seqlen: int, sequences: int
) -> np.ndarray:
    """Return training sequences, `[<= sequences, seqlen]` ids, from the file ``path``, which is written if missing."""
    if not path.exists():
        with text.documents() as documents:
            pack_file(path, documents, tokenizer, seqlen, sequences)
    return load_sequences(path)


def perplexity_windows(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, name: str, settings: ApiSettings
) -> np.ndarray:
    """Return the sequences of the test text, `[count, seqlen]` ids."""
    seqlen = _length("evaluation.perplexity_seqlen", settings.evaluation.perplexity_seqlen, PERPLEXITY_SEQLEN, model)
    with find_text(name, "test", settings).documents() as documents:
        return joined_sequences(documents, tokenizer, seqlen)
