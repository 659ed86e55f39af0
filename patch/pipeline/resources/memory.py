"""Estimates of the memory that learning and fine-tuning need, and of exchanged bytes, from the sizes of models."""

from __future__ import annotations

from patch.learning.finetuning_settings import Finetuning, Kind
from patch.learning.loss_chunks import tokens_at_a_time
from patch.masks.pattern import block_size
from patch.models.shapes import Shape, linear_shapes, parameters, prunable_parameters

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Bytes of the logits of a token and entry of the vocabulary: two copies in fp32.
LOGIT_BYTES = 8.0
# Buffers of a layer's size that exchanges need at once, see `patch.masks.exchange`.
EXCHANGE_BUFFERS = 6
# Bytes for each weight of the layer that MaskPro samples.
MASKPRO_BYTES = 24
# Factor on GPU memory for libraries and fragmentation, which the estimates do not count.
GPU_SLACK = 1.1


def learning_mb(
    shape: Shape,
    method: str,
    size: int,
    tokens: int,
    checkpointed: bool,
    device: str = "cpu",
    processes: int = 1,
    shard_weights: bool = False,
    offload: bool = False,
) -> float:
    """Return the peak memory of the tensors of a learning run, in MB, in each process.

    The peak is that of a step, or of a measurement of the held-out loss, which has the final form of the mask as bits.

    Args:
        shape: Shape of the model.
        method: Name of a learned method.
        size: Bytes of a weight.
        tokens: Tokens of a micro-batch.
        checkpointed: True if decoder blocks are recomputed in the backward pass.
        device: `cpu` or `cuda`.
        processes: Number of processes that shard the pattern logits, with their gradients and moments, or ProxSparse's
            weights with theirs.
        shard_weights: True if mask learning shards the prunable weights, too.
        offload: True if the gradients and moments of the pattern logits are in the host's memory, which is not counted.
    """
    learned, bits = learned_parameters(shape, method) / processes, prunable_parameters(shape) / 8
    largest = max(rows * columns for rows, columns in linear_shapes(shape).values())
    with_logits = min(tokens, tokens_at_a_time(device, shape.vocab_size))
    if method == "maskpro":
        # Every process has all logits, and as bits a sampled and the initial mask.
        total = size * parameters(shape) + 4 * prunable_parameters(shape) + 2 * bits
        activations = tokens * hidden_bytes(shape, size, True) + with_logits * LOGIT_BYTES * shape.vocab_size
        return (total + max(MASKPRO_BYTES * largest, (size + 2) * largest + bits + activations)) / 1e6
    if method == "proxsparse":
        # On a GPU the original weights are in host memory during a step. A measurement has them, and no gradients.
        original = size * parameters(shape)
        activations = tokens * activation_bytes(shape, 4, checkpointed)
        step = 16 * learned + (original if device == "cpu" else 0)
        step += activations if processes == 1 else _whole_bytes(shape, processes, activations)
        return max(step, 12 * learned + original + bits + tokens * activation_bytes(shape, size, True)) / 1e6
    sharded, learned_patterns = processes > 1 and (shard_weights or method != "patch-tile"), method != "patch-tile"
    total = size * parameters(shape) + (4 if offload else 16) * learned
    total -= size * prunable_parameters(shape) * (1 - 1 / processes) if shard_weights else 0
    # The frozen mask is stored as bits. One block adds its masked weights, gradient and tile sums.
    total += 0 if learned_patterns else bits
    step = block_size(device, learned_patterns) * (2 * size + 1)
    # The buffers of `patch.masks.exchange`.
    step += EXCHANGE_BUFFERS * size * largest if sharded else 0
    # The gradient of one layer's logits, which are one and a half for a weight.
    step += 6 * largest / processes if offload else 0
    # A measurement of sharded weights has the masks of their rows, and gathers a masked weight.
    measurement = bits / processes + size * largest if shard_weights else bits
    # The output layer is frozen, so the logits of some tokens exist at a time.
    activations = tokens * hidden_bytes(shape, size, checkpointed) + with_logits * LOGIT_BYTES * shape.vocab_size
    # Gradient and moments of one layer.
    update = 18 * largest / processes if offload else 0
    return (total + max(max(step, measurement) + activations, update)) / 1e6


def pruning_mb(shape: Shape, size: int, tokens: int, gram: bool) -> float:
    """Return the peak device memory of one-shot pruning in MB: a block, its activations, statistics, copies of a layer.

    Args:
        shape: Shape of the model.
        size: Bytes of a weight.
        tokens: Tokens of a batch of the calibration set, or 0 if none passes the model.
        gram: True if the statistics have Gram matrices.
    """
    layers = linear_shapes(shape).values()
    work = size * prunable_parameters(shape) / shape.num_hidden_layers
    work += 24 * max(rows * columns for rows, columns in layers)
    work += size * tokens * (16 * shape.hidden_size + 4 * shape.intermediate_size)
    if gram:
        work += 4 * sum(columns**2 for _, columns in layers) + 24 * max(columns**2 for _, columns in layers)
    return work / 1e6


def evaluation_mb(shape: Shape, size: int, tokens: int, gpus: int = 1) -> float:
    """Return the peak memory of the tensors of an evaluation, in MB, on each GPU.

    Args:
        shape: Shape of the model.
        size: Bytes of a weight.
        tokens: Tokens of a batch.
        gpus: Number of GPUs that have the model's blocks, see `patch.models.dispatch`.
    """
    weights = size * parameters(shape)
    if gpus > 1:
        # Accelerate gives a GPU an equal part and up to 1.25 blocks. On the first one it reserves the size of the
        # largest module, such as the embedding, which the last one then has in addition.
        block = size * prunable_parameters(shape) / shape.num_hidden_layers
        weights = weights / gpus + 1.25 * block + size * shape.vocab_size * shape.hidden_size
    return (weights + tokens * activation_bytes(shape, size, True)) / 1e6


def exchanged_gb(shape: Shape, size: int, checkpointed: bool, processes: int) -> float:
    """Return the GB that each process sends, and receives, for a micro-batch of mask learning with sharded rows.

    A masked weight is sent in the forward and in the backward pass, once more if its block is recomputed, and its
    gradient returns. The weight of a block's last layer, or without recomputation of the model's, is kept from its
    forward pass to its backward pass.
    """
    last = list(linear_shapes(shape).values())[-1]
    kept = last[0] * last[1] * (shape.num_hidden_layers if checkpointed else 1)
    sent = (3 + checkpointed) * prunable_parameters(shape) - kept
    return size * sent * (1 - 1 / processes) / 1e9


def _whole_bytes(shape: Shape, processes: int, activations: float) -> float:
    """Return the bytes of whole fp32 weights and gradients, and of activations, in a backward pass of ProxSparse.

    The embedding and the output layer are whole for the whole pass, with the gradient of one of them. A block needs its
    weights and gradients, while those of the next block are gathered and the gradients of the last one are reduced; at
    that point, the shards of the gradients of two blocks do not exist yet. At the end, the gradients of the layers
    outside the blocks are reduced.
    """
    block = 4 * prunable_parameters(shape) / shape.num_hidden_layers
    rest, embedding = 4 * (parameters(shape) - prunable_parameters(shape)), 4 * shape.vocab_size * shape.hidden_size
    return rest + embedding + max(rest, (4 - 2 / processes) * block + activations)


def learned_parameters(shape: Shape, method: str) -> float:
    """Return the number of learned fp32 parameters: six logits for each group of four weights, or all weights.

    MaskPro has one logit for each weight. Tile logits are few and not counted.
    """
    found = {"patch-tile": 0.0, "proxsparse": parameters(shape), "maskpro": prunable_parameters(shape)}
    return found.get(method, 1.5 * prunable_parameters(shape))


def finetuning_mb(shape: Shape, kind: Kind, size: int, settings: Finetuning) -> float:
    """Return the peak memory of the tensors of a fine-tuning step, in MB, in each process.

    Args:
        shape: Shape of the model.
        kind: `full` or `lora`.
        size: Bytes of a weight.
        settings: Settings of the run.
    """
    checkpointed, tokens = settings.gradient_checkpointing, settings.micro_batch_size * settings.seqlen
    # The model, a byte of each mask, and the trained parameters with their gradients and moments.
    total = size * parameters(shape) + prunable_parameters(shape)
    total += 16 * finetuned_parameters(shape, kind, settings)
    # The masked weights stay for the backward pass; one layer also has its fp32 weight, product and gradients.
    total += size * prunable_parameters(shape) / (shape.num_hidden_layers if checkpointed else 1)
    total += 16 * max(rows * columns for rows, columns in linear_shapes(shape).values())
    return (total + tokens * activation_bytes(shape, size, checkpointed)) / 1e6


def finetuned_parameters(shape: Shape, kind: Kind, settings: Finetuning) -> int:
    """Return the number of trained fp32 parameters: all prunable weights, or two factors for each layer."""
    if kind == "full":
        return prunable_parameters(shape)
    return settings.lora_rank * shape.num_hidden_layers * sum(map(sum, linear_shapes(shape).values()))


def activation_bytes(shape: Shape, size: int, checkpointed: bool = False) -> float:
    """Return the bytes of activations of a token: those of the blocks, and two copies of the logits in fp32."""
    return hidden_bytes(shape, size, checkpointed) + LOGIT_BYTES * shape.vocab_size


def hidden_bytes(shape: Shape, size: int, checkpointed: bool = False) -> float:
    """Return the bytes of activations of a token in the blocks: about 16 hidden and 4 intermediate vectors for each."""
    block = size * (16 * shape.hidden_size + 4 * shape.intermediate_size)
    return (
        block + size * shape.hidden_size * shape.num_hidden_layers if checkpointed else block * shape.num_hidden_layers
    )
