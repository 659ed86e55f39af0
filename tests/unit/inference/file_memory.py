"""Peak memory of saving and loading a packed model, printed as JSON; run in a process of its own.

Usage: `file_memory.py save FOLDER` makes a model and saves it; `file_memory.py load FOLDER` loads it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from patch.inference import convert, save
from patch.masks.packed import MaskSet
from patch.models.loading import prunable_linears

CONFIG = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16, "vocab_size": 16000}
BLOCKS = 12


def resident(key: str) -> int:
    """Return a value of this process in bytes: `VmRSS`, the resident memory, or `VmHWM`, its peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def packed_model(blocks: int) -> LlamaForCausalLM:
    """Return a Llama in bfloat16 whose blocks are 2:4; the first two of every four weights are kept."""
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=blocks, **CONFIG))
    kept = torch.tensor([True, True, False, False])
    masks = {
        name: kept.repeat(linear.weight.numel() // 4).view_as(linear.weight)
        for name, linear in prunable_linears(model).items()
    }
    return convert(model, MaskSet(masks, "2:4"))


def main() -> None:
    """Print the bytes of the model, of its largest block, and of the peak above the memory before."""
    torch.set_num_threads(1)
    action, folder = sys.argv[1], sys.argv[2]
    model = packed_model(BLOCKS if action == "save" else 1)
    if action == "save":
        save(packed_model(1), f"{folder}.warm-up")
    else:
        # Libraries are imported, and the allocator is warm, before the measurement.
        save(model, f"{folder}.warm-up")
        del model
        AutoModelForCausalLM.from_pretrained(f"{folder}.warm-up")
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    if action == "save":
        save(model, folder)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder)
    peak = resident("VmHWM") - before
    tensors = [*model.parameters(), *model.buffers()]
    block = sum(tensor.nbytes for tensor in model.model.layers[0].state_dict().values())
    print(json.dumps({"model": sum(t.nbytes for t in tensors), "block": block, "peak": peak}))


if __name__ == "__main__":
    main()
