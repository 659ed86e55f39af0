"""Conservative estimates of the GPUs, memory and minutes of jobs, from the sizes of models."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property

from patch.models.shapes import Shape, linear_shapes, model_shape, parameters, prunable_parameters
from patch.pipeline.config.experiment import SPEED_ROUNDS
from patch.pipeline.config.gpus import GPUS
from patch.pipeline.resources.memory import (
    BYTES,
    GPU_SLACK,
    activation_bytes,
    evaluation_mb,
    finetuned_parameters,
    finetuning_mb,
    learned_parameters,
    pruning_mb,
)
from patch.pipeline.resources.sharding import Exchange, Placement, host_copy_seconds, place, step_exchange
from patch.pipeline.resources.task_sizes import task_tokens
from patch.pipeline.resources.text_size import (
    CHARACTERS_PER_LARGE_TOKEN,
    CHARACTERS_PER_TOKEN,
    LARGE_VOCABULARY,
    MB,
    split_mb,
)
from patch.pipeline.resources.throughput import CPU_EFFICIENCY, EFFICIENCY, FP32_FACTOR, TOKENIZED_PER_MINUTE
from patch.pipeline.runs.plan import Plan
from patch.pipeline.runs.run import Run
from patch.pipeline.runs.store import Sequences, Statistics

GB = 1000
# Resident memory of Python with torch and transformers (measured: 390 MB; lm-eval adds 90 MB), and of Snakemake and
# submitit in a cluster job (250 MB), rounded up.
BASE_MB = 1000
# Margin of the estimated time, since a scheduler kills a job that exceeds it.
SLACK = 1.5
# Tensors of the self-test of the kernels.
SELF_TEST_MB = 500
# Generations of each speed candidate that are not timed: warm-up in each round, and CUDA-graph capture on a GPU.
UNCOUNTED = 6


@dataclass(frozen=True)
class Estimate:
    """Estimated resources of a job, without its disk space.

    Attributes:
        gpus: Number of GPUs on each node.
        mem_mb: Host memory on each node in MB.
        gpu_mem_mb: Memory on each GPU in MB, or 0 on the CPU.
        minutes: Wall time in minutes.
        nodes: Number of nodes.
        processes: Number of processes on each node.
    """

    gpus: int
    mem_mb: int
    gpu_mem_mb: int
    minutes: int
    nodes: int = 1
    processes: int = 1


class CostModel:
    """Resource estimates of the jobs of an experiment."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.experiment, self.grid = plan, plan.experiment, plan.grid
        self._shape: Callable[[str], Shape] = cache(lambda model: model_shape(model, self.experiment.models[model]))

    def _estimate(
        self,
        flops: float,
        efficiency: float,
        work_mb: float,
        gpus: int = 1,
        nodes: int = 1,
        host_mb: float | None = None,
        waiting: float = 0.0,
    ) -> Estimate:
        """Return the resources of a job that does ``flops`` with one process for each GPU.

        On a `cpu` device the job has the same number of processes and no GPUs.

        Args:
            flops: Floating-point operations of all processes together.
            efficiency: Fraction of the device's throughput that the job reaches.
            work_mb: Tensors of each process in MB.
            gpus: GPUs on each node, or 0 for one process without a GPU on any device.
            nodes: Number of nodes.
            host_mb: Data in MB that passes through the host's memory in each process on `cuda`; None for ``work_mb``.
            waiting: Seconds that each process waits for others, or for copies.
        """
        resources = self.experiment.resources
        on_gpu = resources.device == "cuda" and gpus > 0
        processes = max(1, gpus)
        gpu, cpu = GPUS[resources.gpu].sustained_tflops * 1e12, resources.cpu_gflops * 1e9 * resources.threads
        device = gpu if on_gpu else cpu
        speed = device * processes * nodes
        minutes = max(10 if on_gpu else 2, math.ceil(SLACK * (flops / (speed * efficiency) + waiting) / 60))
        through_host = work_mb if host_mb is None else host_mb
        host = BASE_MB + SLACK * work_mb if not on_gpu else 8 * GB + 1.2 * through_host
        gpu_mem_mb = math.ceil(GPU_SLACK * work_mb) if on_gpu else 0
        return Estimate(processes if on_gpu else 0, math.ceil(processes * host), gpu_mem_mb, minutes, nodes, processes)

    def sequences(self, sequences: Sequences) -> Estimate:
        """Return the resources of tokenization; the time grows with the tokens only if their number is known."""
        settings = sequences.settings
        tokens = (settings.samples or 0) * settings.seqlen
        workers = self.experiment.resources.threads if settings.kind.startswith("packed") else 1
        # Each worker holds a batch of text and its tokens, in the tokenizer's form and as a list (measured: 0.2 GB).
        memory = 4 * GB + (workers - 1) * GB // 2
        return Estimate(0, memory, 0, 10 + math.ceil(tokens / TOKENIZED_PER_MINUTE / workers))

    def train(self, model: str) -> Estimate:
        """Return the resources of training a small model, always on the CPU."""
        shape, run = self._shape(model), self.experiment.models[model].source.training
        tokens = run.steps * run.batch_size * run.seqlen
        work = (16 * parameters(shape) + run.batch_size * run.seqlen * activation_bytes(shape, 4)) / 1e6
        return self._estimate(6 * parameters(shape) * tokens, EFFICIENCY["train"], work, gpus=0)

    def self_test(self, device: str) -> Estimate:
        """Return the resources of the self-test, whose layers are small."""
        return self._estimate(0.0, 1.0, SELF_TEST_MB, gpus=int(device == "cuda"))

    def statistics(self, statistics: Statistics) -> Estimate:
        """Return the resources of input statistics: one forward pass over the calibration set, and Gram matrices."""
        model, gram = statistics.model, statistics.settings.gram
        flops = self._calibration_flops(model, 1, gram)
        return self._block_estimate(model, flops, self._block_mb(model, gram, calibrating=True))

    def prune(self, run: Run) -> Estimate:
        """Return the resources of one-shot pruning.

        It takes two forward passes over the calibration set or none, and solves linear systems of Gram matrices, some
        methods by iterations that multiply by a Gram matrix.
        """
        gram = run.definition.statistics == "gram"
        calibrating = run.definition.statistics != "none" and self.experiment.calibration.propagate == "pruned"
        flops = self._calibration_flops(run.model, 2, gram) if calibrating else 0.0
        if gram:
            shape = self._shape(run.model)
            layers = linear_shapes(shape).values()
            products = getattr(getattr(self.experiment.pruning, run.method, None), "iterations", 1)
            solved = sum(2 * columns**2 * (products * rows + columns) for rows, columns in layers)
            flops += shape.num_hidden_layers * solved
        return self._block_estimate(run.model, flops, self._block_mb(run.model, gram, calibrating))

    def import_mask(self, run: Run) -> Estimate:
        """Return the resources of checking an imported mask, which unpacks one layer at a time and loads no weights."""
        shape = self._shape(run.model)
        largest = max(rows * columns for rows, columns in linear_shapes(shape).values())
        return self._estimate(0.0, 1.0, (prunable_parameters(shape) / 8 + 16 * largest) / 1e6, gpus=0)

    def export(self, run: Run) -> Estimate:
        """Return the resources of an export, which holds the model twice: to save it, and to check the saved one."""
        held = BYTES[self.experiment.models[run.model].dtype] * parameters(self._shape(run.model)) / 1e6
        return self._estimate(0.0, 1.0, 2 * held, gpus=0, host_mb=2 * held)

    def quantize(self, run: Run) -> Estimate:
        """Return the resources of quantization.

        With adapters it takes two forward passes over the calibration set and a decomposition of each layer.
        """
        low_rank = run.quantization == "slim-lora"
        flops = self._calibration_flops(run.model, 2, False) if low_rank else 0.0
        if low_rank:
            shape = self._shape(run.model)
            # The decomposition finds eigenvectors of a matrix as wide as the layer's smaller side, in fp64.
            flops += shape.num_hidden_layers * sum(
                20.0 * min(layer) ** 2 * sum(layer) for layer in linear_shapes(shape).values()
            )
        return self._block_estimate(run.model, flops, self._block_mb(run.model, False, calibrating=low_rank))

    def _calibration_flops(self, model: str, passes: int, gram: bool) -> float:
        shape, settings = self._shape(model), self.experiment.calibration
        tokens = settings.samples * settings.seqlen
        flops = 2.0 * passes * prunable_parameters(shape) * tokens
        if gram:
            columns = [columns for _, columns in linear_shapes(shape).values()]
            flops += shape.num_hidden_layers * sum(2.0 * width**2 * tokens for width in columns)
        return flops

    def _block_mb(self, model: str, gram: bool, calibrating: bool) -> float:
        """Return the peak device memory of one-shot pruning in MB."""
        settings, size = self.experiment.calibration, BYTES[self.experiment.models[model].dtype]
        return pruning_mb(self._shape(model), size, settings.batch_size * settings.seqlen * calibrating, gram)

    def _block_estimate(self, model: str, flops: float, device_mb: float) -> Estimate:
        """Return the resources of a job that holds a model in host memory and one of its blocks on the device."""
        held = BYTES[self.experiment.models[model].dtype] * parameters(self._shape(model)) / 1e6
        on_gpu = self.experiment.resources.device == "cuda"
        # On a GPU, bit masks and the batches that are read and written are small compared with the model.
        return self._estimate(
            flops, self._forward["prune"], device_mb if on_gpu else held + device_mb, host_mb=1.1 * held
        )

    def learn(self, run: Run) -> Estimate:
        """Return the resources of mask learning: forward and backward passes, and logits with two Adam moments.

        The weights are frozen, except that ProxSparse learns all weights in fp32 and keeps the original ones. MaskPro
        has two forward passes, and logits without moments in each process.
        """
        shape, settings = self._shape(run.model), self.grid.learning(run)
        size = BYTES[self.experiment.models[run.model].dtype]
        tokens = settings.steps * settings.batch_size * settings.seqlen
        resources, count = self.experiment.resources, self.grid.processes
        placed = self.placement(run)
        # Each process reads the model, and from a checkpoint the learned parameters and moments without gradients.
        read = parameters(shape) - (prunable_parameters(shape) * (1 - 1 / count) if placed.shard_weights else 0)
        # Moments in the host's memory are there twice while a checkpoint is read.
        state = 4 if run.method == "maskpro" else (16 if placed.offload else 12) / count
        host = (size * read + state * learned_parameters(shape, run.method)) / 1e6
        flops = (4.0 if run.method == "maskpro" else 6.0) * parameters(shape) * tokens
        if run.method == "proxsparse":
            # The processes that cannot divide a batch repeat each other.
            flops *= count / settings.dividing_processes(count)
            flops *= FP32_FACTOR if resources.device == "cuda" else 1
        # Forward passes of the initial mask and of each measurement, which the processes divide.
        measured = (settings.held_out_measurements + 1) * settings.held_out_sequences * settings.seqlen
        flops += 2.0 * parameters(shape) * measured
        exchange, waiting = self.exchange(run), 0.0
        if exchange:
            seconds = exchange.link_seconds if resources.learn_nodes == 1 else exchange.network_seconds
            waiting = settings.steps * max(0.0, seconds - exchange.compute_seconds)
        waiting += settings.steps * self.host_copies(run)
        gpus, nodes = resources.learn_gpus, resources.learn_nodes
        return self._estimate(flops, EFFICIENCY[run.method], placed.mb, gpus, nodes, host, waiting)

    def placement(self, run: Run) -> Placement:
        """Return the placement of the tensors of a learning run."""
        size, settings = BYTES[self.experiment.models[run.model].dtype], self.grid.learning(run)
        resources = self.experiment.resources
        return place(self._shape(run.model), run.method, size, settings, resources, self.grid.processes)

    def exchange(self, run: Run) -> Exchange | None:
        """Return the exchange of a step of a learning run, or None without GPUs that shard rows of masks."""
        resources, count = self.experiment.resources, self.grid.processes
        if resources.device != "cuda" or count == 1 or run.method in ("proxsparse", "maskpro"):
            return None
        if run.method == "patch-tile" and not self.placement(run).shard_weights:
            return None
        size, efficiency = BYTES[self.experiment.models[run.model].dtype], EFFICIENCY[run.method]
        return step_exchange(self._shape(run.model), size, self.grid.learning(run), resources, count, efficiency)

    def host_copies(self, run: Run) -> float:
        """Return the seconds of copies between a GPU and the host's memory in a step of a learning run."""
        if not self.placement(run).offload or self.experiment.resources.device == "cpu":
            return 0.0
        settings, resources = self.grid.learning(run), self.experiment.resources
        return host_copy_seconds(self._shape(run.model), run.method, settings, resources, self.grid.processes)

    def finetune(self, run: Run) -> Estimate:
        """Return the resources of fine-tuning, in which each process has all parameters with two Adam moments.

        A method that updates the weights prunes again before the first step.
        """
        shape, settings = self._shape(run.model), self.grid.finetuning(run)
        size = BYTES[self.experiment.models[run.model].dtype]
        gpus, nodes = self.experiment.resources.learn_gpus, self.experiment.resources.learn_nodes
        work = finetuning_mb(shape, run.finetune, size, settings)
        host = (size * parameters(shape) + 12 * finetuned_parameters(shape, run.finetune, settings)) / 1e6
        flops = 6.0 * parameters(shape) * settings.steps * settings.batch_size * settings.seqlen
        found = self._estimate(flops, EFFICIENCY["finetune"], work, gpus, nodes, host)
        if not run.definition.updates_weights:
            return found
        before = self.prune(run.pruned)
        memory = {key: max(getattr(found, key), getattr(before, key)) for key in ("mem_mb", "gpu_mem_mb")}
        return replace(found, minutes=found.minutes + before.minutes, **memory)

    def evaluate(self, run: Run) -> Estimate:
        """Return the resources of an evaluation, which is forward passes for perplexity and zero-shot tasks.

        A model that does not fit one GPU is on the smallest number of a node's GPUs that holds it, or on all. They
        compute in turn, and one process reads the model. Only `resources.learn_gpus` tells how many GPUs a node has.
        """
        shape, evaluation = self._shape(run.model), self.experiment.evaluation
        size = BYTES[self.experiment.models[run.model].dtype]
        held = evaluation.batch_size * 256 if evaluation.tasks else 0
        held = max(held, evaluation.perplexity.batch_size * evaluation.perplexity.seqlen)
        resources = self.experiment.resources
        needs = {gpus: evaluation_mb(shape, size, held, gpus) for gpus in range(1, resources.learn_gpus + 1)}
        flops = 2.0 * parameters(shape) * (self._perplexity_tokens(shape) + self._task_tokens)
        found = self._estimate(flops, self._forward["evaluate"], needs[1])
        if found.gpus == 0:
            return found
        fitting = [gpus for gpus, need in needs.items() if GPU_SLACK * need <= 1000 * resources.memory_gb]
        gpus = min(fitting, default=resources.learn_gpus)
        return replace(found, gpus=gpus, gpu_mem_mb=math.ceil(GPU_SLACK * needs[gpus]))

    @property
    def _forward(self) -> dict[str, float]:
        """Fractions of the device's throughput that stages with forward passes reach."""
        return EFFICIENCY if self.experiment.resources.device == "cuda" else CPU_EFFICIENCY

    def _perplexity_tokens(self, shape: Shape) -> float:
        """Return the tokens of all whole sequences of the perplexity text."""
        perplexity = self.experiment.evaluation.perplexity
        characters = MB * (split_mb(self.plan.store, perplexity.use) or 0.0)
        size = CHARACTERS_PER_TOKEN if shape.vocab_size < LARGE_VOCABULARY else CHARACTERS_PER_LARGE_TOKEN
        return characters // (size * perplexity.seqlen) * perplexity.seqlen

    @cached_property
    def _task_tokens(self) -> float:
        return task_tokens(self.experiment.evaluation)

    def speedup(self, model: str) -> Estimate:
        """Return the resources of a speed measurement.

        The dense model and its runs generate in turn. The time is that of all rounds, which only noisy candidates need.
        All candidates are in memory, first with one masked model to compare, then with a cache of keys and values that
        they share.
        """
        shape, settings, runs = self._shape(model), self.experiment.speedup, self.plan.timed_runs(model)
        size = BYTES[self.experiment.models[model].dtype]
        generations = SPEED_ROUNDS * (settings.repeats + UNCOUNTED) * (1 + len(runs))
        keys = 2 * settings.batch_size * shape.num_key_value_heads * shape.head_dim * shape.num_hidden_layers
        # The two models that are compared have a cache each, for the prompt and two tokens.
        comparing = prunable_parameters(shape) + 2 * keys * (settings.prompt + 2)
        held = parameters(shape) + max(comparing, keys * (settings.prompt + max(settings.new_tokens)))
        # A sparse tile stores half its values and one bit for each weight: 0.5625 of a dense tile at 16 bits.
        held += sum(prunable_parameters(shape) * (1 - 0.875 * run.sparsity) for run in runs)
        work = size * held + settings.batch_size * settings.prompt * activation_bytes(shape, size, True)
        lengths = sum(settings.prompt + new for new in settings.new_tokens)
        flops = 2.0 * parameters(shape) * generations * settings.batch_size * lengths
        return self._estimate(flops, EFFICIENCY["speedup"], work / 1e6, host_mb=2 * size * parameters(shape) / 1e6)
