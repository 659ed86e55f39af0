"""Benchmark of reading token sequences and of tokenization against the speed of a learning step.

    python benchmarks/load_sequences.py

Reads random batches of a file of token sequences, from the disk and from the page cache, and compares their tokens per
second with those of a learning step at the demo's size. Then tokenizes text in one process and in several, and prints
MB of text per second of wall time and of processor time; only the latter holds while other work runs.

The last line is one JSON object with the results.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import table  # noqa: E402

# Sizes of the demo's models in config/demo.yaml.
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "vocab_size": 2048,
}
SEQLEN, BATCH, STEPS = 128, 8, 40


def main() -> int:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=200, help="size of the file of sequences (200)")
    parser.add_argument("--seqlen", type=int, default=4096, help="tokens of a sequence (4096)")
    parser.add_argument("--batch", type=int, default=256, help="sequences of a batch (256)")
    parser.add_argument("--text-mb", type=int, default=20, help="size of the text to tokenize (20)")
    parser.add_argument(
        "--processes", type=int, nargs="*", default=[1, 2], help="numbers of processes that tokenize (1 2)"
    )
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with tempfile.TemporaryDirectory(dir=".") as folder:
        figures = reading(Path(folder), arguments.mb, arguments.seqlen, arguments.batch)
        # Before torch starts threads, since the processes are forked.
        figures |= tokenizing(Path(folder), arguments.text_mb, arguments.processes)
        step = learning(Path(folder))
    figures["learning_tokens_per_second"] = step
    lines = [["learning step, patch-joint", f"{step:,.0f}", ""]]
    for source in ("disk", "cache"):
        tokens = figures[f"{source}_tokens_per_second"]
        figures[f"{source}_over_learning"] = round(tokens / step, 1)
        lines.append([f"reading from the {source}", f"{tokens:,.0f}", f"{tokens / step:,.0f}"])
    print("\n" + table(("source", "tokens/s", "over learning"), lines))
    print(json.dumps(figures))
    return 0


def reading(folder: Path, megabytes: int, seqlen: int, batch: int) -> dict[str, float]:
    """Measure random batches as a learning step reads them, converted to 64-bit ids."""
    from patch.data.sequences import load_sequences, save_sequences
    from patch.learning.schedules import batch_indices

    path, count = folder / "sequences.npy", megabytes * 1_000_000 // (2 * seqlen)
    generator = np.random.default_rng(0)
    save_sequences(path, generator.integers(0, 2048, (count, seqlen), np.uint16))
    figures: dict[str, float] = {}
    for source in ("disk", "cache"):
        sequences = load_sequences(path)
        steps = max(1, count // batch)
        if source == "disk":
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        for step in range(steps):
            sequences[batch_indices(step, batch, count, 0)].astype(np.int64)
        rate = steps * batch / (time.perf_counter() - started)
        figures[f"{source}_sequences_per_second"] = round(rate)
        figures[f"{source}_tokens_per_second"] = round(rate * seqlen)
    return figures


def tokenizing(folder: Path, megabytes: int, processes: list[int]) -> dict[str, float]:
    """Measure the tokenization of text of 30,000 words with natural frequencies, by numbers of processes."""
    from patch.data.packing import pack_file
    from patch.data.tokenizer import train_tokenizer

    documents = _text(megabytes * 1_000_000)
    tokenizer = train_tokenizer(documents[:500], 8000)
    size = sum(map(len, documents)) / 1e6
    figures, lines = {}, []
    for count in processes:
        started, before = time.perf_counter(), _processor_seconds()
        sequences = pack_file(folder / f"{count}.npy", documents, tokenizer, 4096, processes=count)
        seconds, used = time.perf_counter() - started, _processor_seconds() - before
        figures[f"text_mb_per_second_{count}"] = round(size / seconds, 2)
        figures[f"text_mb_per_processor_second_{count}"] = round(size / used, 2)
        tokens = f"{sequences * 4096 / seconds:,.0f}"
        lines.append([count, f"{size / seconds:.2f}", tokens, f"{seconds:.1f}", f"{used:.1f}", f"{size / used:.2f}"])
    headers = ("processes", "MB/s", "tokens/s", "seconds", "processor seconds", "MB per processor second")
    print(f"\ntokenizing {size:.0f} MB of text\n{table(headers, lines)}", flush=True)
    return figures


def _text(characters: int) -> list[str]:
    generator = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    frequencies = [1 / (rank + 2) for rank in range(len(letters))]
    words = ["".join(generator.choices(letters, frequencies, k=generator.randint(2, 10))) for _ in range(30_000)]
    weights = np.cumsum([1 / (rank + 5) for rank in range(len(words))]).tolist()
    documents = []
    while characters > 0:
        documents.append(" ".join(generator.choices(words, cum_weights=weights, k=generator.randint(50, 1500))))
        characters -= len(documents[-1])
    return documents


def _processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def learning(folder: Path) -> float:
    """Return the median tokens per second of a learning step at the demo's size."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from patch.learning.learn import learn
    from patch.learning.learning_settings import Learning

    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2", **SIZES)).eval().requires_grad_(False)
    sequences = np.random.default_rng(0).integers(0, 2048, (256, SEQLEN)).astype(np.uint16)
    settings = Learning(
        steps=STEPS,
        batch_size=BATCH,
        micro_batch_size=BATCH,
        seqlen=SEQLEN,
        pattern_prior="none",
        tile_prior="none",
    )
    curve = folder / "curve.jsonl"
    learn(model, "patch-joint", sequences, settings, 0.45, 16, folder=folder / "run", curve=curve)
    rates = [json.loads(line)["tokens_per_second"] for line in curve.read_text().splitlines()]
    return statistics.median(rates[5:])


if __name__ == "__main__":
    sys.exit(main())
