"""Folders of a random Llama model, dense and packed, whose blocks are equal, so that one block is in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.candidates import TILE, random_masks
from patch.inference.packed import pack
from patch.inference.packed_config import PackedConfig, PackedLayer

if TYPE_CHECKING:
    from transformers import LlamaConfig

INDEX = "model.safetensors.index.json"


class Sizes(NamedTuple):
    """Sizes of a Llama model with a tied output layer and heads of 64."""

    hidden: int
    mlp: int
    blocks: int
    heads: int
    kv_heads: int
    vocabulary: int

    def config(self) -> LlamaConfig:
        """Return the configuration of transformers."""
        from transformers import LlamaConfig

        return LlamaConfig(
            architectures=["LlamaForCausalLM"],
            hidden_size=self.hidden,
            intermediate_size=self.mlp,
            num_hidden_layers=self.blocks,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=64,
            vocab_size=self.vocabulary,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            dtype="bfloat16",
        )

    def linears(self) -> dict[str, tuple[int, int]]:
        """Return `(out, in)` of the linear layers of a block, by name."""
        heads, kv_heads = self.heads * 64, self.kv_heads * 64
        return {
            "self_attn.q_proj": (heads, self.hidden),
            "self_attn.k_proj": (kv_heads, self.hidden),
            "self_attn.v_proj": (kv_heads, self.hidden),
            "self_attn.o_proj": (self.hidden, heads),
            "mlp.gate_proj": (self.mlp, self.hidden),
            "mlp.up_proj": (self.mlp, self.hidden),
            "mlp.down_proj": (self.hidden, self.mlp),
        }

    @property
    def layer_bytes(self) -> int:
        """Bytes of all linear layers of the blocks in bf16."""
        return 2 * self.blocks * sum(rows * columns for rows, columns in self.linears().values())

    @property
    def weights(self) -> int:
        """Number of weights, without those of the norms."""
        return self.layer_bytes // 2 + self.vocabulary * self.hidden


# The sizes of Llama-3.2-1B, and of a model to try the benchmark with.
FULL = Sizes(2048, 8192, 16, 32, 8, 128_256)
QUICK = Sizes(256, 1024, 2, 4, 2, 2048)


class _Folder:
    """Model folder whose weight files are written one after the other."""

    def __init__(self, path: Path, files: int) -> None:
        self.path, self.files = path, files
        self.index: dict[str, str] = {}
        self.layers: dict[str, PackedLayer] = {}
        path.mkdir(parents=True)

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the next weight file."""
        name = f"model-{len(set(self.index.values())) + 1:05}-of-{self.files:05}.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, self.path / name, {"format": "pt"})
        self.index |= dict.fromkeys(tensors, name)

    def finish(self, sizes: Sizes) -> None:
        """Write the index, the configuration and a tokenizer."""
        total = sum(path.stat().st_size for path in self.path.glob("*.safetensors"))
        (self.path / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": self.index}))
        config = sizes.config().to_dict()
        if self.layers:
            config["quantization_config"] = PackedConfig(layers=self.layers).to_dict()
        (self.path / "config.json").write_text(json.dumps(config))
        _tokenizer(sizes.vocabulary).save_pretrained(self.path)


def _tokenizer(vocabulary: int):  # noqa: ANN202
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", eos_token="w1")


def write_models(folder: Path, sizes: Sizes, sparsities: tuple[int, ...]) -> dict[str, Path]:
    """Write a dense model, and the same weights packed under random masks of each sparsity.

    All blocks have the same weights, since the speed does not depend on them.

    Args:
        folder: folder of the model folders.
        sizes: sizes of the model.
        sparsities: in percent; 50 is 2:4 everywhere.

    Returns:
        The model folders: `dense`, and the sparsities as text.
    """
    torch.manual_seed(0)
    files = {name: _Folder(folder / name, sizes.blocks + 1) for name in ("dense", *map(str, sparsities))}
    embedding = (torch.randn(sizes.vocabulary, sizes.hidden) * 0.02).bfloat16()
    for each in files.values():
        each.add({"model.embed_tokens.weight": embedding, "model.norm.weight": _norm(sizes)})
    del embedding
    norms = {f"{name}_layernorm.weight": _norm(sizes) for name in ("input", "post_attention")}
    blocks: dict[str, dict[str, Tensor]] = {name: dict(norms) for name in files}
    layers: dict[str, dict[str, PackedLayer]] = {name: {} for name in files}
    for name, shape in sizes.linears().items():
        weight = (torch.randn(shape) * shape[1] ** -0.5).bfloat16()
        blocks["dense"][f"{name}.weight"] = weight
        for sparsity in map(str, sparsities):
            packed = pack(weight, *random_masks(weight, int(sparsity)), TILE)
            blocks[sparsity] |= {f"{name}.{part}": getattr(packed, part) for part in ("dense", "values", "bits")}
            sparse = int((~packed.dense).sum())
            layers[sparsity][name] = PackedLayer(shape=list(shape), tile=TILE, sparse_tiles=sparse)
    for name, each in files.items():
        for block in range(sizes.blocks):
            prefix = f"model.layers.{block}."
            each.add({prefix + tensor: part for tensor, part in blocks[name].items()})
            each.layers |= {prefix + linear: layer for linear, layer in layers[name].items()}
        each.finish(sizes)
    return {name: each.path for name, each in files.items()}


def _norm(sizes: Sizes) -> Tensor:
    return torch.ones(sizes.hidden, dtype=torch.bfloat16)
