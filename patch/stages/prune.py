"""One-shot pruning: a mask, and the updated weights of methods that update."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from patch.data.windows import load_windows
from patch.io import atomic_file
from patch.layout import digest
from patch.masks.nm import parse_pattern
from patch.masks.packed import save_masks
from patch.models import load_model, prunable_linears
from patch.pruning import prune
from patch.specs import PruneSpec
from patch.stages._common import measured, prepare_device, show_blocks


def run(spec: PruneSpec, *, model: Path, mask: Path, windows: Path | None = None, weights: Path | None = None) -> None:
    """Prune a model by one method and write its mask."""
    device = prepare_device(spec.device)
    network = load_model(model, spec.dtype, device)
    calibration = load_windows(windows) if windows else None
    cost: dict[str, float] = {}
    with measured(cost, device):
        masks = prune(
            network,
            spec.method,
            parse_pattern(spec.pattern, spec.sparsity),
            calibration,
            spec.batch_size,
            spec.settings,
            show_blocks(spec.method),
        )
    masks.header = {"settings": spec.model_dump(mode="json"), "digest": digest(spec.model_dump(mode="json")), "cost": cost}
    if weights:
        updated = {name: linear.weight.detach().cpu().contiguous() for name, linear in prunable_linears(network).items()}
        with atomic_file(weights) as temporary:
            save_file(updated, temporary)
    save_masks(mask, masks)
    print(f"{spec.method} {spec.pattern}: sparsity {masks.sparsity:.4f} in {cost['seconds']:.1f} s")
