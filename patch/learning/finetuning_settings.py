"""Settings of sparse fine-tuning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from patch.data.corpus_settings import Use
from patch.learning.learning_settings import check_micro_batches, divide_batch
from patch.settings import Section

# `full`: all kept weights of the prunable layers; `lora`: low-rank adapters, merged under the mask.
Kind = Literal["full", "lora"]


class Finetuning(Section):
    """Settings of fine-tuning under a fixed mask.

    The defaults are those of SLiM's code, which the public code of PATCH calls; rank and alpha are those of Wanda's.
    """

    use: Use = Field(description="Corpus and split to train on.")
    steps: int = Field(469, ge=1, description="Number of optimizer steps; by default one pass over 30,000 sequences.")
    batch_size: int = Field(64, ge=1, description="Sequences per optimizer step.")
    micro_batch_size: int = Field(1, ge=1, description="Sequences per forward and backward pass; divides `batch_size`.")
    seqlen: int = Field(1024, ge=4, description="Length of a sequence in tokens.")
    lr: float = Field(1e-4, gt=0, description="Peak learning rate of AdamW; it decays linearly to zero.")
    warmup_steps: int = Field(5, ge=0, description="Steps of linear warm-up.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay of the trained parameters.")
    lora_rank: int = Field(8, ge=1, description="Rank of the adapters of `finetune: lora`, on every prunable layer.")
    lora_alpha: float = Field(16.0, gt=0, description="Scale of the adapters, as a multiple of 1 / `lora_rank`.")
    gradient_checkpointing: bool = Field(False, description="Recompute blocks in the backward pass.")
    checkpoint_minutes: float = Field(10.0, gt=0, description="Minutes between checkpoints.")

    @model_validator(mode="after")
    def _micro_batches(self) -> Finetuning:
        check_micro_batches(self.batch_size, self.micro_batch_size)
        return self

    @property
    def text_sequences(self) -> int:
        """Number of sequences that a run reads at most."""
        return self.steps * self.batch_size

    def micro_batches(self, rank: int = 0, processes: int = 1) -> range:
        """Return the micro-batches of a step that a process computes, see `divide_batch`."""
        return divide_batch(self.batch_size, self.micro_batch_size, rank, processes)

    def used_by(self, kind: Kind) -> Finetuning:
        """Return the settings with the defaults of those that ``kind`` does not read."""
        unused = ("lora_rank", "lora_alpha") if kind == "full" else ()
        return self.model_copy(update={name: Finetuning.model_fields[name].default for name in unused})
