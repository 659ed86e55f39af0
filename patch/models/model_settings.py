"""Settings of models: sources of the weights and published models for comparison."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from patch.settings import Section

# One line of text, for tables and figures.
Title = Annotated[str, Field(pattern=r"^\S(.*\S)?$", max_length=80)]
# Bounds far above the sizes of any layer and vocabulary.
Size = Annotated[int, Field(gt=0, le=2**20)]
Count = Annotated[int, Field(gt=0, le=2**24)]


class TokenizerConfig(Section):
    """Byte-level BPE tokenizer, trained on the train split of the corpus."""

    vocab_size: int = Field(2048, ge=300, description="Number of tokens, including special tokens.")


class Training(Section):
    """Training from scratch by Muon (matrices of the blocks) and AdamW (the rest), with warm-up and cosine decay."""

    steps: int = Field(1000, ge=1, description="Number of optimizer steps.")
    batch_size: int = Field(8, ge=1, description="Sequences per step.")
    seqlen: int = Field(128, ge=8, description="Length of a sequence in tokens.")
    lr: float = Field(3e-3, gt=0, description="Peak learning rate of AdamW, for embeddings, norms and biases.")
    matrix_lr: float = Field(5e-3, gt=0, description="Peak learning rate of Muon, for the linear layers of the blocks.")
    weight_decay: float = Field(0.1, ge=0, description="Decoupled weight decay of the linear layers of the blocks.")
    warmup_steps: int = Field(50, ge=0, description="Steps of linear warm-up.")
    seed: int = Field(0, ge=0, description="Seed of the initial weights and of the data order.")


class TrainedModel(Section):
    """Small model that the workflow trains on a corpus."""

    kind: Literal["train"] = "train"
    architecture: Literal["qwen2", "qwen3", "llama", "gemma3_text", "opt", "gpt2"] = Field(
        description="Model type of transformers."
    )
    config: dict[str, Any] = Field(description="Arguments of the transformers configuration class of the architecture.")
    corpus: str = Field(description="Name under `corpora`; the model is trained on its train split.")
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig, description="Settings of the tokenizer.")
    training: Training = Field(default_factory=Training, description="Settings of the training run.")


class Shape(Section):
    """Sizes of a model, which the cost model needs before the download."""

    hidden_size: Size = Field(description="Width of the residual stream.")
    intermediate_size: Size = Field(description="Width of the MLP.")
    num_hidden_layers: Size = Field(description="Number of decoder blocks.")
    num_attention_heads: Size = Field(description="Number of query heads.")
    num_key_value_heads: Size = Field(description="Number of key and value heads.")
    head_dim: Size = Field(description="Width of a head.")
    vocab_size: Count = Field(description="Number of rows of the embedding.")
    tie_word_embeddings: bool = Field(False, description="The output layer shares the weight of the embedding.")
    gated_mlp: bool = Field(True, description="The MLP has a gate projection.")
    fused_attention: bool = Field(False, description="Query, key and value are one linear layer.")


class Sized(Section):
    """Source of a model whose sizes must be known before it is fetched."""

    @model_validator(mode="before")
    @classmethod
    def _with_shape(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and "shape" not in raw and raw.keys() <= cls.model_fields.keys():
            name = raw.get("repo") or raw.get("distribution") or "MODEL"
            raise ValueError(f"`shape` is missing; `python -m patch add-model {name}` writes the block with the sizes")
        return raw


class HubModel(Sized):
    """Pretrained model of the Hugging Face hub."""

    kind: Literal["hub"] = "hub"
    repo: str = Field(description="Model id, `owner/name`.")
    revision: str = Field(min_length=7, description="Commit of the model.")
    shape: Shape = Field(description="Sizes, for the resource plan and the check of the tile size before the download.")


class LocalModel(Section):
    """Folder written by `save_pretrained`."""

    kind: Literal["local"] = "local"
    path: str = Field(description="Path of the folder.")


class GgufModel(Sized):
    """GGUF file of an installed package; it is dequantized."""

    kind: Literal["gguf"] = "gguf"
    package: str = Field(description="Name of the module.")
    file: str | None = Field(
        None,
        description="File in the module's folder, which is not imported; by default the module's `assemble()` writes "
        "the file.",
    )
    distribution: str = Field(description="Package to install if the module is missing.")
    shape: Shape = Field(description="Sizes, for the resource plan and the check of the tile size.")


class Model(Section):
    """Model of the grid."""

    title: Title = Field(description="Name in tables and figures.")
    source: Annotated[TrainedModel | HubModel | LocalModel | GgufModel, Field(discriminator="kind")] = Field(
        description="Source of the weights."
    )
    variant: Literal["joint", "tile"] = Field(
        "joint", description="Method that `patch` stands for in the grid: patch-joint or patch-tile."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Data type of the frozen weights.")
    published: str | None = Field(None, description="Model id in `config/published.json` for comparison.")
    comparable: bool = Field(
        True,
        description="False if `published` is another model of the family: its numbers are shown, but without a "
        "difference and not on the same axes.",
    )
