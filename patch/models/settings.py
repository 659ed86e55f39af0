"""Models: where the weights come from and what they are compared with."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from patch.settings import Section

# One line of text as it stands in tables and figures.
Title = Annotated[str, Field(pattern=r"^\S(.*\S)?$", max_length=80)]
# Sizes of a layer, and of a vocabulary, far above those of any model.
Size = Annotated[int, Field(gt=0, le=2**20)]
Count = Annotated[int, Field(gt=0, le=2**24)]


class TokenizerConfig(Section):
    """A byte-level BPE made from the corpus' train part."""

    vocab_size: int = Field(2048, ge=300, description="Number of tokens, special ones included.")


class Training(Section):
    """Training of a small model from scratch: Muon for the blocks' matrices, AdamW for the rest; warm-up, cosine."""

    steps: int = Field(1000, ge=1, description="Optimizer steps.")
    batch_size: int = Field(8, ge=1, description="Sequences per step.")
    seqlen: int = Field(128, ge=8, description="Tokens per sequence.")
    lr: float = Field(3e-3, gt=0, description="Peak learning rate of AdamW: embeddings, norms, biases.")
    matrix_lr: float = Field(5e-3, gt=0, description="Peak learning rate of Muon: the blocks' linear layers.")
    weight_decay: float = Field(0.1, ge=0, description="Decoupled weight decay of the blocks' linear layers.")
    warmup_steps: int = Field(50, ge=0, description="Linear warm-up.")
    seed: int = Field(0, ge=0, description="Seed of the initial weights and of the order of the data.")


class TrainedModel(Section):
    """A small model that a rule of the workflow trains on a corpus."""

    kind: Literal["train"] = "train"
    architecture: Literal["qwen2", "qwen3", "llama", "gemma3_text", "opt", "gpt2"] = Field(
        description="Family, by its transformers model type."
    )
    config: dict[str, Any] = Field(description="Arguments of the family's transformers configuration.")
    corpus: str = Field(description="Name under `corpora`; its train part is learned.")
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig, description="The tokenizer to make.")
    training: Training = Field(default_factory=Training, description="The training run.")


class Shape(Section):
    """Sizes that the cost model needs before a hub model is there."""

    hidden_size: Size = Field(description="Width of the residual stream.")
    intermediate_size: Size = Field(description="Width of the MLP.")
    num_hidden_layers: Size = Field(description="Decoder blocks.")
    num_attention_heads: Size = Field(description="Query heads.")
    num_key_value_heads: Size = Field(description="Key and value heads.")
    head_dim: Size = Field(description="Size of a head.")
    vocab_size: Count = Field(description="Rows of the embedding.")
    tie_word_embeddings: bool = Field(False, description="Whether the output layer shares the embedding.")
    gated_mlp: bool = Field(True, description="Whether the MLP has a gate beside its first layer.")
    fused_attention: bool = Field(False, description="Whether query, key and value are one layer.")


class HubModel(Section):
    """A pretrained model of the Hugging Face hub."""

    kind: Literal["hub"] = "hub"
    repo: str = Field(description="Model id, `owner/name`.")
    revision: str = Field(min_length=7, description="Commit of the model.")
    shape: Shape = Field(description="Sizes, for resources and the check of the tile before the download.")


class LocalModel(Section):
    """A folder that `save_pretrained` wrote."""

    kind: Literal["local"] = "local"
    path: str = Field(description="The folder.")


class GgufModel(Section):
    """A GGUF file that installed packages assemble, dequantised."""

    kind: Literal["gguf"] = "gguf"
    package: str = Field(description="Module whose `assemble()` writes the GGUF file.")
    distribution: str = Field(description="What to install when the module is missing.")
    shape: Shape = Field(description="Sizes, for resources and the check of the tile.")


class Model(Section):
    """One model of the grid."""

    title: Title = Field(description="Name in tables and figures.")
    source: Annotated[TrainedModel | HubModel | LocalModel | GgufModel, Field(discriminator="kind")] = Field(
        description="Where the weights come from."
    )
    variant: Literal["joint", "tile"] = Field(
        "joint", description="What the grid's method `patch` means for this model."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Type of the frozen weights.")
    published: str | None = Field(None, description="Model id in `config/published.json` to print beside.")
    comparable: bool = Field(
        True,
        description="False where `published` is another model of the family: "
        "its numbers are shown, but never on the same axes.",
    )
