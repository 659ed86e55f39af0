"""Generation speed of a model's runs in tokens per second, interleaved with the dense model in one process."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from patch.errors import InputError
from patch.inference.comparison import backend_counts, logits_difference, peak_bytes, share_tensors, weight_bytes
from patch.inference.convert import convert
from patch.inference.generation import Generation, check_positions, random_prompt, speed_quantities
from patch.inference.timing import measure_in_rounds
from patch.masks.packed import MaskSet
from patch.models.loading import load_model
from patch.pipeline.config.experiment import SPEED_ROUNDS
from patch.pipeline.reporting.units import count
from patch.pipeline.results.environment import describe_environment, hardware
from patch.pipeline.results.speed import SpeedRecord
from patch.pipeline.runs.layout import settings_digest
from patch.pipeline.runs.run import Run
from patch.pipeline.runs.stage_settings import SpeedupSettings
from patch.pipeline.stages._common import load_expected, measured, prepare_device

WARMUP = 2


def run_speedup(settings: SpeedupSettings, *, model: Path, masks: list[Path], record: Path) -> None:
    """Measure the speed of the dense model and of the runs in ``settings``, and write one record.

    ``masks`` are in the order of the runs. Other work on the same hardware would distort the times.
    """
    if len(masks) != len(settings.runs):
        raise InputError(f"{len(masks)} masks of {len(settings.runs)} runs; give one of each, in their order")
    device = prepare_device(settings.device)
    with measured(device) as cost:
        network = load_model(model, settings.dtype, device)
        # Before the conversions and the shorter generations, which may take an hour.
        check_positions(network, settings.speedup.prompt, max(settings.speedup.new_tokens))
        tokens = random_prompt(network, settings.speedup.batch_size, settings.speedup.prompt)
        candidates = _Candidates(settings.model, network, tokens)
        for run, mask, expected in zip(settings.runs, masks, settings.masks, strict=True):
            candidates.add(run, load_expected(mask, expected))
        timed = [one for new in settings.speedup.new_tokens for one in candidates.time(new, settings.speedup.repeats)]
    SpeedRecord.write(
        record,
        {
            "schema": 1,
            "experiment": settings.experiment,
            "model": settings.model,
            "settings": settings.speedup.model_dump(exclude={"models"}),
            "dtype": settings.dtype,
            "device": device,
            "hardware": hardware(device),
            "timed": timed,
            "config_digest": settings_digest(settings),
            "cost": cost,
            "environment": describe_environment(device),
        },
    )


class _Candidates:
    """Dense model and its converted runs, all in memory, with one copy of the tensors that they share."""

    def __init__(self, model: str, network: nn.Module, tokens: Tensor) -> None:
        self.network, self.tokens = network, tokens
        self.models: dict[str, nn.Module] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        run = Run(model=model, method="dense", pattern="dense", sparsity=0.0)
        self.dense = run.id
        self._add(run, network, 0.0, (0.0, 0.0))

    def add(self, run: Run, masks: MaskSet) -> None:
        """Convert the model by a mask, and check that its logits agree with those of the masked model."""
        other = convert(share_tensors(self.network), masks)
        difference, largest = logits_difference(self.network, masks, other, self.tokens, run.id)
        self._add(run, other, masks.sparsity, (difference, largest))
        print(f"{run.id}: converted; logits differ by {difference:.2g} of {largest:.2g}", flush=True)

    def _add(self, run: Run, model: nn.Module, sparsity: float, logits: tuple[float, float]) -> None:
        self.models[run.id] = model
        self.facts[run.id] = {
            "run": run.model_dump(),
            "achieved_sparsity": sparsity,
            "linear_bytes": weight_bytes(self.network, model),
            "backends": {
                "prefill": backend_counts(self.network, model, self.tokens.numel()),
                "decode": backend_counts(self.network, model, len(self.tokens)),
            },
            "logits_difference": logits[0],
            "largest_logit": logits[1],
        }

    def time(self, new_tokens: int, repeats: int) -> list[dict[str, Any]]:
        """Return one entry of the record for each candidate, the dense model first."""
        peaks = {
            name: peak_bytes(model, Generation(model, self.tokens, new_tokens, graph=False))
            for name, model in self.models.items()
        }
        generations: dict[str, Generation] = {}
        for name, model in self.models.items():
            # All candidates share one cache, which has gigabytes at 7B. Their generations do not overlap.
            cache = generations[self.dense].cache if generations else None
            generations[name] = Generation(model, self.tokens, new_tokens, name, cache=cache)
        quantities = partial(speed_quantities, len(self.tokens) * new_tokens)
        found = measure_in_rounds(generations, self.dense, quantities, repeats, WARMUP, SPEED_ROUNDS)
        timed = []
        for name, measurement in found.items():
            speed, gain = (measurement.quantities[key]["median"] for key in ("tokens_per_second", "speedup"))
            noisy = f"; noisy: {', '.join(measurement.noisy)}" if measurement.noisy else ""
            print(
                f"{name}, {new_tokens} new tokens: {speed:.1f} tokens/s, {gain:.3f} of dense, in "
                f"{count(measurement.rounds, 'round')}{noisy}",
                flush=True,
            )
            facts = {
                "peak_memory_mb": round(peaks[name] / 1e6, 3),
                "new_tokens": new_tokens,
                "rounds": measurement.rounds,
                "noisy": measurement.noisy,
            }
            timed.append(self.facts[name] | facts | measurement.quantities)
        return timed
