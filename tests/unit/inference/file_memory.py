"""Peak memory of saving or loading a packed model of 240 MB, printed as JSON; run in a process of its own.

Usage: `file_memory.py save FOLDER`, then `file_memory.py load FOLDER`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from patch.inference import HybridLinear, save
from patch.inference.packed_config import PackedLayer
from patch.models.loading import prunable_linears

CONFIG = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16, "vocab_size": 16000}
BLOCKS, TILE = 12, 64


def resident(key: str) -> int:
    """Return a value of this process in bytes: `VmRSS`, the resident memory, or `VmHWM`, its peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def packed_model(blocks: int) -> LlamaForCausalLM:
    """Return a Llama in bfloat16 that keeps the first two of every four weights, which are all the same."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=blocks, dtype=torch.bfloat16, **CONFIG)).bfloat16()
    for name, linear in prunable_linears(model).items():
        rows, columns = linear.weight.shape
        layer = PackedLayer(shape=[rows, columns], tile=TILE, sparse_tiles=rows * columns // TILE**2)
        model.set_submodule(name, HybridLinear.empty(layer, False, torch.bfloat16))
    model.to_empty(device="cpu")
    fills = {torch.bfloat16: 0.01, torch.uint8: 0b0011_0011, torch.bool: 0, torch.float32: 1}
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.fill_(fills[tensor.dtype])
    return model


def main() -> None:
    """Print the bytes of the model, of its largest layer, and of the peak above the memory before."""
    torch.set_num_threads(1)
    disable_progress_bar()
    action, folder = sys.argv[1], sys.argv[2]
    # Libraries are imported, and the allocator is warm, before the measurement.
    save(packed_model(1), f"{folder}.warm-up")
    AutoModelForCausalLM.from_pretrained(f"{folder}.warm-up")
    model = packed_model(BLOCKS) if action == "save" else None
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    if model is None:
        model = AutoModelForCausalLM.from_pretrained(folder)
    else:
        save(model, folder)
    peak = resident("VmHWM") - before
    total = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    layers = (model.lm_head, *model.model.layers)
    layer = max(sum(tensor.nbytes for tensor in layer.state_dict().values()) for layer in layers)
    print(json.dumps({"model": total, "layer": layer, "peak": peak}))


if __name__ == "__main__":
    main()
