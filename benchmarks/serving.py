"""Benchmark of packed models against dense ones in vLLM and in transformers, on a CPU: `make test-serving` first.

    python benchmarks/serving.py             # the numbers of docs/serving.md; an hour, 10 GB of disk, 12 GB of memory
    python benchmarks/serving.py --quick     # a small model, to try the benchmark

The model is a random Llama in bf16 with the sizes of Llama-3.2-1B, dense and packed with tiles of 128 at each sparsity.
In vLLM, both sides are `vllm serve` with equal options, idle while the other is measured; in transformers, greedy
generation with a static cache. Prompts of 128 random tokens are continued by 128 tokens, in 1, 4 and 16 concurrent
requests (transformers: one batch). Dense and packed are measured in turn, with the same threads, dtype and prompts.

Tokens per second are new tokens over the time from the first request to the last token, prompts included. Ratios are
medians over the turns. Memory is that of all processes of a server: what it holds after the requests, without pages of
files, and the largest resident size of each process since its start.

The last line is one JSON object: the ratios at one request (`vllm_25`, `vllm_45`, `vllm_50`, `hf_45`), and `memory_45`,
the packed layers' share of the dense layers' bytes, from the difference of the memory that the two servers hold.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import openai  # noqa: E402
import psutil  # noqa: E402
import torch  # noqa: E402

from benchmarks.measure import paired_ratio, table  # noqa: E402
from benchmarks.serving_models import FULL, QUICK, write_models  # noqa: E402
from tests.serving.server import serving  # noqa: E402

SPARSITIES = (50, 45, 25)
HEADERS = ("engine", "model", "requests", "tokens/s", "dense tokens/s", "ratio", "first token s", "dense first token s")


class Workload(NamedTuple):
    """Numbers of concurrent requests, of tokens of a prompt, of new tokens, and of turns; sparsities in percent."""

    requests: tuple[int, ...]
    prompt: int
    new: int
    turns: int
    sparsities: tuple[int, ...]


class Speed(NamedTuple):
    """New tokens per second of all requests together, and the median seconds to the first token."""

    tokens_per_second: float
    first_token: float


class Memory(NamedTuple):
    """Bytes of a server: held without pages of files, and at the peak."""

    held: int
    peak: int


class Server:
    """Running server of a model."""

    def __init__(self, url: str, vocabulary: int) -> None:
        self.url, self.vocabulary = url, vocabulary
        port = int(url.rpartition(":")[2].partition("/")[0])
        (self.root,) = (
            process
            for process in psutil.Process().children()
            if any(str(port) == argument for argument in process.cmdline())
        )

    def measure(self, requests: int, workload: Workload, seed: int) -> Speed:
        """Send concurrent requests and return their speed."""
        return asyncio.run(self._measure(requests, workload, random.Random(seed)))

    async def _measure(self, requests: int, workload: Workload, source: random.Random) -> Speed:
        prompts = [[source.randrange(2, self.vocabulary) for _ in range(workload.prompt)] for _ in range(requests)]
        async with openai.AsyncOpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=3600) as client:
            started = time.perf_counter()
            stamps = await asyncio.gather(*(self._request(client, prompt, workload.new) for prompt in prompts))
        seconds = max(last for _, last in stamps) - started
        return Speed(requests * workload.new / seconds, median(first - started for first, _ in stamps))

    @staticmethod
    async def _request(client: openai.AsyncOpenAI, prompt: list[int], new: int) -> tuple[float, float]:
        """Return the times of the first and of the last token."""
        stream = await client.completions.create(
            model="model",
            prompt=prompt,
            max_tokens=new,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        first, tokens = 0.0, 0
        async for chunk in stream:
            first = first or time.perf_counter()
            tokens = chunk.usage.completion_tokens if chunk.usage else tokens
        assert tokens == new, f"{tokens} new tokens, not {new}"
        return first, time.perf_counter()

    def memory(self) -> Memory:
        """Return the memory of all processes of the server."""
        texts = [
            Path(f"/proc/{process.pid}/status").read_text()
            for process in (self.root, *self.root.children(recursive=True))
        ]

        def total(field: str) -> int:
            return 1024 * sum(int(found[1]) for text in texts if (found := re.search(rf"{field}:\s+(\d+) kB", text)))

        return Memory(total("RssAnon") + total("RssShmem"), total("VmHWM"))


def main() -> int:
    """Run all measurements, and print the tables and the line of ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model, few requests and tokens, two turns")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each engine (all processors)")
    parser.add_argument("--turns", type=int, default=3, help="measurements of each side (%(default)s)")
    parser.add_argument("--engines", nargs="+", choices=("vllm", "hf"), default=["vllm", "hf"])
    parser.add_argument("--sparsities", type=int, nargs="+", choices=SPARSITIES, default=SPARSITIES, help="in percent")
    options = parser.parse_args()
    sparsities = tuple(options.sparsities)
    sizes = QUICK if options.quick else FULL
    full = Workload((1, 4, 16), 128, 128, options.turns, sparsities)
    workload = Workload((1, 4), 32, 16, 2, sparsities) if options.quick else full
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    torch.set_num_threads(options.threads)
    print(f"{sizes.weights / 1e9:.2f}B weights, {options.threads} threads, bf16, torch {torch.__version__}", flush=True)
    with tempfile.TemporaryDirectory(prefix="serving-") as temporary:
        folders = write_models(Path(temporary) / "models", sizes, sparsities)
        found: dict[str, float | None] = dict.fromkeys(("vllm_45", "vllm_25", "vllm_50", "hf_45", "memory_45"))
        if "vllm" in options.engines:
            found |= in_vllm(folders, Path(temporary), sizes.vocabulary, sizes.layer_bytes, workload)
        if "hf" in options.engines:
            found |= in_transformers(folders, workload)
    print(json.dumps({name: value if value is None else round(value, 3) for name, value in found.items()}))
    return 0


def in_vllm(folders: dict[str, Path], logs: Path, vocabulary: int, layer_bytes: int, workload: Workload) -> dict:
    """Measure servers of vLLM, print the tables and return the ratios at one request and the packed memory at 45 %."""
    lines, memories, ratios = [], [], {}
    length = workload.prompt + workload.new
    arguments = ("--dtype", "bfloat16", "--max-model-len", str(length), "--no-enable-prefix-caching")

    @contextmanager
    def server(name: str) -> Iterator[Server]:
        with serving(folders[name], logs / f"{name}.txt", *arguments) as url:
            one = Server(url, vocabulary)
            one.measure(max(workload.requests), workload, seed=-1)
            yield one

    with server("dense") as dense:
        for sparsity in workload.sparsities:
            with server(str(sparsity)) as packed:
                for requests in workload.requests:
                    turns = [
                        [one.measure(requests, workload, turn) for one in (dense, packed)]
                        for turn in range(workload.turns)
                    ]
                    lines.append(line("vLLM", sparsity, requests, turns))
                    ratios.setdefault(f"vllm_{sparsity}", ratio(turns))
                both = dense.memory(), packed.memory()
                share = 1 - (both[0].held - both[1].held) / layer_bytes
                ratios |= {"memory_45": share} if sparsity == 45 else {}
                memories.append([f"{sparsity}%", *(f"{b / 1e9:.2f}" for m in both[::-1] for b in m), f"{share:.3f}"])
                print(f"{sparsity}% measured in vLLM", file=sys.stderr, flush=True)
    print("\n" + table(HEADERS, lines))
    headers = ("model", "held GB", "peak GB", "dense held GB", "dense peak GB", "layers / dense")
    print("\n" + table(headers, memories), flush=True)
    return ratios


def in_transformers(folders: dict[str, Path], workload: Workload) -> dict:
    """Measure generation in transformers, print the table and return the ratio at one request at 45 %."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    import patch.inference  # noqa: F401  registers the packed format
    from patch.inference.generation import Generation, random_prompt
    from patch.inference.timing import interleaved

    disable_progress_bar()
    lines, ratios = [], {}
    for sparsity in workload.sparsities:
        names = {"dense": folders["dense"], "packed": folders[str(sparsity)]}
        models = {
            name: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
            for name, folder in names.items()
        }
        for requests in workload.requests:
            tokens = random_prompt(models["dense"], requests, workload.prompt)
            calls = {name: Generation(model, tokens, workload.new, name) for name, model in models.items()}
            seconds = interleaved(calls, workload.turns)
            turns = [
                [Speed(requests * workload.new / one.total, one.prefill) for one in turn]
                for turn in zip(*seconds.values(), strict=True)
            ]
            lines.append(line("transformers", sparsity, requests, turns))
            if (sparsity, requests) == (45, 1):
                ratios["hf_45"] = ratio(turns)
        del models, calls
        gc.collect()
        print(f"{sparsity}% measured in transformers", file=sys.stderr, flush=True)
    print("\n" + table(HEADERS, lines), flush=True)
    return ratios


def ratio(turns: list[list[Speed]]) -> float:
    """Return the median ratio of the packed to the dense model's tokens per second."""
    dense, packed = ([speed.tokens_per_second for speed in side] for side in zip(*turns, strict=True))
    return paired_ratio(packed, dense)


def line(engine: str, sparsity: int, requests: int, turns: list[list[Speed]]) -> list[str]:
    """Return a line of the table: medians over the turns."""
    dense, packed = (Speed(*map(median, zip(*side, strict=True))) for side in zip(*turns, strict=True))
    numbers = packed.tokens_per_second, dense.tokens_per_second, ratio(turns), packed.first_token, dense.first_token
    return [engine, f"{sparsity}%", str(requests), *(f"{number:.2f}" for number in numbers)]


if __name__ == "__main__":
    sys.exit(main())
