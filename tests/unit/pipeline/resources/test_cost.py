"""Tests that estimates grow with the sizes of jobs and are near the paper's numbers."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest

from patch.pipeline.config.load import validate_experiment
from patch.pipeline.resources.cost import CostModel, Estimate
from patch.pipeline.resources.limits import exchanges, too_large
from patch.pipeline.resources.throughput import FP32_FACTOR
from patch.pipeline.runs.plan import Plan
from patch.pipeline.runs.run import Run

SHAPES = {
    # hidden, intermediate, layers, heads, key heads, head size, vocabulary, tied
    "qwen-0.5b": (896, 4864, 24, 14, 2, 64, 151936, True),
    "llama-7b": (4096, 11008, 32, 32, 32, 128, 32000, False),
    "llama-13b": (5120, 13824, 40, 40, 40, 128, 32000, False),
}
KEYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
KEYS += ("head_dim", "vocab_size", "tie_word_embeddings")


def paper(raw: dict, **resources: Any) -> tuple[Plan, CostModel]:
    raw = copy.deepcopy(raw)
    raw["models"] = {
        name: {
            "title": name,
            "variant": "joint" if name == "qwen-0.5b" else "tile",
            "dtype": "bfloat16",
            "source": {
                "kind": "hub",
                "repo": "a/b",
                "revision": "1234567",
                "shape": dict(zip(KEYS, sizes, strict=True)),
            },
        }
        for name, sizes in SHAPES.items()
    }
    raw["tile"] = 128
    raw["calibration"] |= {"samples": 128, "seqlen": 2048}
    raw["learning"]["common"] = {"use": {"corpus": "text", "split": "train"}, "gradient_checkpointing": True}
    raw["evaluation"] |= {"include_path": None, "task_use": None}
    raw["resources"] = {"device": "cuda", "learn_gpus": 4} | resources
    plan = Plan(validate_experiment(raw))
    return plan, CostModel(plan)


def run(plan: Plan, model: str, method: str) -> Run:
    return next(c for c in plan.grid.closure if (c.model, c.method) == (model, method))


@pytest.mark.parametrize(
    ("model", "method", "hours"), [("qwen-0.5b", "patch-joint", 4.5), ("llama-7b", "patch-tile", 21)]
)
def test_wall_clock_of_the_paper(model: str, method: str, hours: float, raw_config: dict) -> None:
    plan, cost = paper(raw_config)
    job = cost.learn(run(plan, model, method))
    assert job.gpus == 4
    assert hours <= job.minutes / 60 <= 3 * hours, "a scheduler that kills the job early is worse than a long queue"


def test_estimates_of_jobs_that_fit_one_gpu(raw_config: dict) -> None:
    plan, cost = paper(raw_config, learn_gpus=1)
    # Weights in bf16, and six fp32 logits a group of four with gradient and two moments.
    job = cost.learn(run(plan, "qwen-0.5b", "patch-joint"))
    floor = 2 * 0.494e9 + 4 * 4 * 1.5 * 0.358e9
    assert floor / 1e6 < job.gpu_mem_mb < 80_000
    tile = cost.learn(run(plan, "llama-7b", "patch-tile"))
    assert 13_500 < tile.gpu_mem_mb < 80_000


def test_several_gpus_share_out_the_logits(raw_config: dict) -> None:
    """Pattern logits, with gradient and moments, are sharded; weights and tile logits are replicated."""
    plan, cost = paper(raw_config, learn_gpus=4)
    wanted, weights, logits = run(plan, "llama-7b", "maskllm"), 2 * 6.74e9 / 1e6, 4 * 4 * 1.5 * 6.48e9 / 1e6
    assert weights + logits / 4 < cost.learn(wanted).gpu_mem_mb < 1.1 * (weights + logits / 4) + 5000 < 80_000
    assert "llama-7b maskllm" not in " ".join(too_large(cost))
    plan, one = paper(raw_config, learn_gpus=1, offload=False)
    assert one.learn(wanted).gpu_mem_mb > weights + logits
    assert "llama-7b maskllm" in " ".join(too_large(one))
    nodes = paper(raw_config, learn_gpus=2, learn_nodes=2)[1]
    assert nodes.learn(wanted).gpu_mem_mb == cost.learn(wanted).gpu_mem_mb
    # Each process reads its part of a checkpoint.
    assert cost.learn(wanted).mem_mb < one.learn(wanted).mem_mb + 3 * (8000 + 1.2 * weights) + 4


def test_weights_are_sharded_if_they_do_not_fit_otherwise(raw_config: dict) -> None:
    """Four GPUs of 16 GB learn the tiles of 7B if each holds a quarter of the weights."""
    found = {}
    for chosen in ("auto", True, False):
        plan, cost = paper(raw_config, learn_gpus=4, gpu_memory_gb=16, shard_weights=chosen)
        wanted = run(plan, "llama-7b", "patch-tile")
        found[chosen] = cost.learn(wanted)
        assert cost.placement(wanted).shard_weights == (chosen is not False)
        assert (cost.exchange(wanted) is not None) == (chosen is not False)
        assert any("llama-7b patch-tile" in line for line in too_large(cost)) == (chosen is False)
    prunable = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert found["auto"] == found[True]
    saved = found[False].gpu_mem_mb - found[True].gpu_mem_mb
    assert saved == pytest.approx(1.1 * 2 * prunable * 0.75 / 1e6, rel=0.1)
    # Each process reads its rows.
    assert found[False].mem_mb - found[True].mem_mb == pytest.approx(1.2 * 4 * 2 * prunable * 0.75 / 1e6, rel=0.01)
    plan, cost = paper(raw_config, learn_gpus=4)
    assert not cost.placement(run(plan, "llama-7b", "patch-tile")).shard_weights, "they fit"
    plan, cost = paper(raw_config, learn_gpus=1, shard_weights=True)
    assert not cost.placement(run(plan, "llama-7b", "patch-tile")).shard_weights, "nothing to share"


def test_gradients_and_moments_are_offloaded_if_they_do_not_fit_otherwise(raw_config: dict) -> None:
    """One GPU of 80 GB learns the joint masks of 7B with the logits alone."""
    found, minutes, costs = {}, {}, {}
    for chosen in ("auto", True, False):
        plan, cost = paper(raw_config, learn_gpus=1, offload=chosen)
        costs[chosen] = cost
        wanted = run(plan, "llama-7b", "maskllm")
        found[chosen], minutes[chosen] = cost.learn(wanted), cost.learn(wanted).minutes
        assert cost.placement(wanted).offload == (chosen is not False)
        assert any("llama-7b maskllm" in line for line in too_large(cost)) == (chosen is False)
        assert not cost.placement(run(plan, "llama-7b", "patch-tile")).offload, "it has no pattern logits"
    assert found["auto"] == found[True]
    logits = 1.5 * 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    saved = found[False].gpu_mem_mb - found[True].gpu_mem_mb
    assert saved == pytest.approx(1.1 * 12 * logits / 1e6, rel=0.01)
    assert found[True].mem_mb - found[False].mem_mb == pytest.approx(1.2 * 4 * logits / 1e6, rel=0.01)
    # 256 micro-batches of a sequence: gradients are stored after each, loaded before all but the first and for the
    # update, which loads and stores two moments.
    settings, copies = plan.grid.learning(wanted), 256 + 255 + 1 + 4
    seconds = settings.steps * 4 * copies * logits / 64e9
    assert minutes[True] - minutes[False] == pytest.approx(1.5 * seconds / 60, rel=0.001)
    line = f"llama-7b maskllm: gradients and moments in the host's memory, {seconds / settings.steps:.1f} s of copies"
    assert [sum(line in one for one in exchanges(costs[chosen])) for chosen in ("auto", False)] == [1, 0]
    plan, cost = paper(raw_config, learn_gpus=4)
    assert not cost.placement(run(plan, "llama-7b", "maskllm")).offload, "they fit"
    plan, cost = paper(raw_config, device="cpu", gpu_memory_gb=0.001)
    assert not cost.placement(run(plan, "llama-7b", "maskllm")).offload, "host memory is the device's"


def test_an_exchange_that_the_arithmetic_does_not_hide_takes_time(raw_config: dict) -> None:
    minutes, lines = {}, {}
    for nodes, gpus in ((1, 8), (8, 1)):
        plan, cost = paper(raw_config, learn_gpus=gpus, learn_nodes=nodes, shard_weights=True)
        wanted = run(plan, "llama-7b", "patch-tile")
        found, steps = cost.exchange(wanted), plan.grid.learning(wanted).steps
        assert found.link_seconds < found.compute_seconds < found.network_seconds
        minutes[nodes] = cost.learn(wanted).minutes
        lines[nodes] = next(line for line in exchanges(cost) if line.startswith("llama-7b patch-tile: "))
    exposed = 1.5 * steps * (found.network_seconds - found.compute_seconds) / 60
    assert minutes[8] - minutes[1] == pytest.approx(exposed, abs=1.5)
    assert "at 450 GB/s" in lines[1] and lines[1].endswith("100% hidden")
    share = found.compute_seconds / found.network_seconds
    assert "at 50 GB/s" in lines[8] and lines[8].endswith(f"{share:.0%} hidden")
    assert exchanges(paper(raw_config, learn_gpus=1, offload=False)[1]) == []


@pytest.mark.parametrize("model", ["llama-7b", "llama-13b"])
def test_proxsparse_shards_weights_gradients_and_moments(model: str, raw_config: dict) -> None:
    """Four GPUs of 80 GB hold 7B and 13B in fp32 with two moments; one GPU does not."""
    raw_config["grid"] = [{"methods": ["proxsparse"]}]
    plan, four = paper(raw_config, learn_gpus=4)
    one, wanted = paper(raw_config, learn_gpus=1)[1], run(plan, model, "proxsparse")
    state = 16 * {"llama-7b": 6.74e9, "llama-13b": 13.02e9}[model] / 1e6
    several, single = four.learn(wanted), one.learn(wanted)
    assert state / 4 < several.gpu_mem_mb < 80_000 < state < single.gpu_mem_mb
    assert (several.nodes, several.processes, several.gpus) == (1, 4, 4)
    # Each process reads the whole model in bf16 and its shard of a checkpoint.
    assert 4 * (state / 8 + 0.75 * state / 4) < several.mem_mb < 512_000
    assert f"{model} proxsparse" in " ".join(too_large(one)) and f"{model} proxsparse" not in " ".join(too_large(four))


def test_maskpro_has_forward_passes_and_one_logit_for_each_weight(raw_config: dict) -> None:
    raw_config["grid"] = [{"methods": ["maskpro"]}]
    raw_config["learning"]["methods"] = {
        "maskpro": {"held_out_sequences": 0, "steps": 100_000, "pattern_prior": "wanda"}
    }
    (plan, one), four = paper(raw_config, learn_gpus=1), paper(raw_config, learn_gpus=4)[1]
    wanted = run(plan, "llama-7b", "maskpro")
    single, several = one.learn(wanted), four.learn(wanted)
    assert several.minutes == pytest.approx(single.minutes / 4, rel=0.01) and four.exchange(wanted) is None
    prunable = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert (2 * 6.74e9 + 4 * prunable) / 1e6 < single.gpu_mem_mb == several.gpu_mem_mb < 80_000


def test_iterations_of_admm_take_time(raw_config: dict) -> None:
    raw_config["grid"], minutes = [{"methods": ["admm"]}], {}
    for iterations in (2, 20_000):
        raw_config["pruning"] = {"admm": {"iterations": iterations}}
        plan, cost = paper(raw_config)
        minutes[iterations] = cost.prune(run(plan, "llama-7b", "admm")).minutes
    assert minutes[20_000] > 10 * minutes[2]


def test_processes_that_repeat_a_batch_save_no_time(raw_config: dict) -> None:
    raw_config["grid"], minutes = [{"methods": ["proxsparse"]}], {}
    for batch, gpus in ((1, 1), (1, 4), (6, 1), (6, 4)):
        settings = {"batch_size": batch, "steps": 40_000 // batch, "held_out_sequences": 0}
        raw_config["learning"]["methods"] = {"proxsparse": settings}
        plan, cost = paper(raw_config, learn_gpus=gpus)
        minutes[batch, gpus] = cost.learn(run(plan, "llama-7b", "proxsparse")).minutes
    assert minutes[1, 4] == minutes[1, 1] and minutes[6, 4] == pytest.approx(minutes[6, 1] / 2, rel=0.01)


def test_processes_divide_the_measurements_of_a_run(raw_config: dict) -> None:
    """The initial mask and five measurements of 4000 sequences, a third of the cost of a step's sequence each."""
    raw_config["grid"], minutes = [{"methods": ["proxsparse"]}], {}
    for held_out, gpus in ((0, 1), (4000, 1), (4000, 4)):
        settings = {"batch_size": 1, "steps": 8000, "held_out_sequences": held_out}
        raw_config["learning"]["methods"] = {"proxsparse": settings}
        plan, cost = paper(raw_config, learn_gpus=gpus)
        minutes[held_out, gpus] = cost.learn(run(plan, "llama-7b", "proxsparse")).minutes
    # A step of ProxSparse is in fp32, a measurement in bf16.
    one, all_of_them = minutes[0, 1] / 8000, minutes[4000, 1] - minutes[0, 1]
    assert all_of_them == pytest.approx(6 * 4000 * one / 3 / FP32_FACTOR, rel=0.01)
    assert minutes[4000, 4] - minutes[0, 1] == pytest.approx(all_of_them / 4, rel=0.02)


def test_fine_tuning(raw_config: dict) -> None:
    raw_config["finetuning"] = {"use": {"corpus": "text", "split": "train"}, "gradient_checkpointing": True}
    raw_config["grid"] = [{"methods": ["patch"], "sparsity": [0.45], "finetune": kind} for kind in ("full", "lora")]
    plan, cost = paper(raw_config)
    estimates = {(run.model, run.finetune): cost.finetune(run) for run in plan.grid.runs}
    # Weights, gradients and two moments in fp32, beside bf16 weights: 7B does not fit one GPU, its adapters do.
    prunable = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    full, lora = estimates["llama-7b", "full"], estimates["llama-7b", "lora"]
    assert 19 * prunable / 1e6 < full.gpu_mem_mb < 25 * prunable / 1e6
    assert 3 * prunable / 1e6 < lora.gpu_mem_mb < 5 * prunable / 1e6
    assert (lora.gpus, lora.processes, lora.minutes) == (4, 4, full.minutes)
    assert estimates["qwen-0.5b", "full"].minutes < full.minutes < estimates["llama-13b", "full"].minutes
    warned = " ".join(too_large(cost))
    assert "llama-7b patch-tile_hybrid_0.45_t128_s0_finetune-full needs about" in warned and "lora" not in warned
    raw_config["finetuning"]["gradient_checkpointing"] = False
    plan, cost = paper(raw_config)
    assert all(cost.finetune(run).gpu_mem_mb > estimates[run.model, run.finetune].gpu_mem_mb for run in plan.grid.runs)


def test_grows_with_the_model(raw_config: dict) -> None:
    plan, cost = paper(raw_config, offload=False)
    for estimate, method in ((cost.prune, "sparsegpt"), (cost.learn, "maskllm"), (cost.evaluate, "dense")):
        jobs = [estimate(run(plan, model, method)) for model in SHAPES]
        for small, large in zip(jobs, jobs[1:], strict=False):
            assert small.minutes <= large.minutes and small.gpu_mem_mb < large.gpu_mem_mb
            assert small.mem_mb < large.mem_mb
        # The smallest job of a GPU is ten minutes, which is enough to prune any of these.
        assert jobs[0].minutes < jobs[-1].minutes or estimate == cost.prune


def jobs_with(raw: dict, **changes: Any) -> Estimate:
    raw = copy.deepcopy(raw)
    raw["learning"]["common"] |= {"steps": 100_000, "batch_size": 64} | changes
    plan = Plan(validate_experiment(raw))
    return CostModel(plan).learn(run(plan, "qwen", "patch-joint"))


def test_grows_with_the_run(raw_config: dict) -> None:
    base = jobs_with(raw_config)
    assert jobs_with(raw_config, steps=200_000).minutes == pytest.approx(2 * base.minutes, rel=0.1)
    assert jobs_with(raw_config, batch_size=128).minutes == pytest.approx(2 * base.minutes, rel=0.1)
    assert jobs_with(raw_config, micro_batch_size=64).mem_mb > base.mem_mb
    saved = jobs_with(raw_config, micro_batch_size=64, gradient_checkpointing=True)
    assert saved.mem_mb < jobs_with(raw_config, micro_batch_size=64).mem_mb


def test_more_threads_less_time(raw_config: dict) -> None:
    slow = jobs_with(raw_config)
    fast = jobs_with(raw_config | {"resources": {"threads": 4}})
    assert fast.minutes < slow.minutes / 3 and fast.mem_mb == slow.mem_mb


def test_nodes_and_processes_of_a_learn_job(raw_config: dict) -> None:
    """Check that GPUs and memory are per node, and that the time is that of all nodes."""
    plan, one = paper(raw_config, learn_gpus=1)
    wanted = run(plan, "llama-7b", "patch-tile")
    many = paper(raw_config, learn_gpus=4, learn_nodes=2)[1]
    single, several = one.learn(wanted), many.learn(wanted)
    assert (single.nodes, single.processes, single.gpus) == (1, 1, 1)
    assert (several.nodes, several.processes, several.gpus) == (2, 4, 4)
    assert several.mem_mb == pytest.approx(4 * single.mem_mb, abs=4)
    assert several.gpu_mem_mb == single.gpu_mem_mb
    assert several.minutes == pytest.approx(single.minutes / 8, rel=0.01)
    other = many.evaluate(wanted)
    assert (other.nodes, other.processes, other.gpus) == (1, 1, 1)


def test_processes_of_a_learn_job_without_gpus(raw_config: dict) -> None:
    raw_config["resources"] = {"learn_gpus": 2, "threads": 3}
    # Logits of many megabytes.
    raw_config["models"]["qwen"]["source"]["config"] |= {"hidden_size": 480, "intermediate_size": 960}
    job = jobs_with(raw_config)
    assert (job.nodes, job.processes, job.gpus) == (1, 2, 0)
    one = jobs_with(raw_config | {"resources": {"threads": 3}})
    assert job.minutes == pytest.approx(one.minutes / 2, abs=1)
    assert one.mem_mb < job.mem_mb < 2 * one.mem_mb, "two processes, each with half of the logits"


def test_cpu_jobs_ask_for_no_gpu_and_enough_memory(raw_config: dict) -> None:
    plan = Plan(validate_experiment(raw_config))
    cost = CostModel(plan)
    jobs = [cost.train("qwen")]
    for one in plan.grid.closure:
        jobs.append(cost.evaluate(one))
        if one.definition.stage == "prune":
            jobs.append(cost.prune(one))
        elif one.definition.stage == "learn":
            jobs.append(cost.learn(one))
    for job in jobs:
        assert job.gpus == 0 and job.gpu_mem_mb == 0
        assert 500 <= job.mem_mb < 4_000 and 1 <= job.minutes <= 60
        assert isinstance(job.mem_mb, int) and isinstance(job.minutes, int)


def test_training_is_on_the_cpu_whatever_the_device(raw_config: dict) -> None:
    jobs = []
    for device in ("cpu", "cuda"):
        plan = Plan(validate_experiment(raw_config | {"resources": {"device": device, "threads": 2}}))
        jobs.append(CostModel(plan).train("qwen"))
    assert jobs[0] == jobs[1] and jobs[1].gpus == 0


def test_evaluation_counts_sequences_and_questions(raw_config: dict, tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("x" * 1_000_000)
    files = {"kind": "files", "files": {split: str(tmp_path / "test.txt") for split in ("train", "test")}}
    files["files"]["train"] = str(tmp_path / "train.txt")
    (tmp_path / "train.txt").write_text("x" * 9_000_000)
    raw_config["corpora"]["held-out"] = {"source": files}
    raw_config["evaluation"]["perplexity"] = {"use": {"corpus": "held-out", "split": "test"}, "seqlen": 3000}

    def minutes(**evaluation: Any) -> int:
        raw_config["evaluation"] |= evaluation
        plan, cost = paper(raw_config, device="cpu", cpu_gflops=0.1)
        return cost.evaluate(run(plan, "qwen-0.5b", "dense")).minutes

    def expected(tokens: float) -> int:
        flops = 2 * (151936 * 896 + 24 * (2 * 896 * (896 + 128) + 3 * 896 * 4864)) * tokens
        return math.ceil(1.5 * flops / 0.1e9 / 60)

    # 270,270 tokens of 3.7 characters make 90 whole sequences.
    assert minutes(tasks="arc_easy", limit=200) == pytest.approx(expected(90 * 3000 + 200 * 4 * 37), rel=0.01)
    assert minutes(limit=None) == pytest.approx(expected(90 * 3000 + 2376 * 4 * 37), rel=0.01)


def test_evaluations_on_several_gpus(raw_config: dict) -> None:
    """Each of several GPUs holds its part of the weights, 1.25 blocks and an embedding more, and all activations."""
    # Batches of 32 x 256 tokens: two fp32 logits, the activations of a block, and the inputs of 40 blocks.
    activations = 32 * 256 * (8 * 32000 + 2 * (16 * 5120 + 4 * 13824) + 2 * 5120 * 40)
    block, embedding = 4 * 5120**2 + 3 * 5120 * 13824, 32000 * 5120
    weights, more = 2 * (40 * block + 2 * embedding), 2 * (1.25 * block + embedding)
    jobs = []
    for gpus, memory, used in ((8, 80, 1), (8, 38, 1), (8, 37, 2), (8, 20, 3), (4, 17, 4), (4, 16, 4), (1, 37, 1)):
        plan, cost = paper(raw_config, learn_gpus=gpus, gpu_memory_gb=memory)
        jobs.append(cost.evaluate(run(plan, "llama-13b", "dense")))
        need = 1.1 * (weights / used + (more if used > 1 else 0) + activations) / 1e6
        assert (jobs[-1].gpus, jobs[-1].gpu_mem_mb) == (used, pytest.approx(need, rel=1e-3))
        warned = [line for line in too_large(cost) if line.startswith("evaluation of llama-13b")]
        too_few = [f"evaluation of llama-13b with `learn_gpus: {gpus}` needs about {need / 1000:.0f} GB"]
        assert [line.partition(" of GPU memory; ")[0] for line in warned] == (too_few if need > 1000 * memory else [])
    # One process reads the model, and the GPUs compute in turn.
    assert {(job.mem_mb, job.minutes, job.nodes, job.processes) for job in jobs} == {
        (jobs[0].mem_mb, jobs[0].minutes, 1, 1)
    }
    on_a_cpu = [paper(raw_config, device="cpu", learn_gpus=gpus, gpu_memory_gb=16) for gpus in (1, 8)]
    assert len({cost.evaluate(run(plan, "llama-13b", "dense")) for plan, cost in on_a_cpu}) == 1


def test_gpu_presets(raw_config: dict) -> None:
    hours, limits = {}, {}
    for gpu in ("A6000", "A100", "L40S", "H100", "H200"):
        plan, cost = paper(raw_config, gpu=gpu, offload=False)
        hours[gpu] = cost.learn(run(plan, "llama-7b", "patch-tile")).minutes / 60
        limits[gpu] = plan.experiment.resources.memory_gb
        assert ("llama-13b maskllm" in " ".join(too_large(cost))) == (limits[gpu] < 141)
    assert limits == {"A6000": 48, "A100": 80, "L40S": 48, "H100": 80, "H200": 141}
    # By the peaks of the data sheets: 989 TFLOP/s against 312 and 155.
    assert hours["A100"] == pytest.approx(hours["H100"] * 989 / 312, rel=0.01)
    assert hours["A6000"] == pytest.approx(hours["H100"] * 989 / 155, rel=0.01)
    assert hours["H200"] == hours["H100"] < hours["L40S"] < hours["A100"]
    assert paper(raw_config, gpu="A100", gpu_memory_gb=40)[0].experiment.resources.memory_gb == 40


def test_statistics_cost(raw_config: dict) -> None:
    plan, cost = paper(raw_config)
    magnitude, wanda, sparsegpt = (cost.prune(run(plan, "llama-7b", m)) for m in ("magnitude", "wanda", "sparsegpt"))
    assert magnitude.minutes <= wanda.minutes <= sparsegpt.minutes
    assert magnitude.gpu_mem_mb < wanda.gpu_mem_mb < sparsegpt.gpu_mem_mb


def test_noisy_speeds_have_time_for_all_rounds(raw_config: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    raw_config["speedup"] = {"new_tokens": [1024]}
    all_rounds = paper(raw_config)[1].speedup("llama-7b").minutes
    monkeypatch.setattr("patch.pipeline.resources.cost.SPEED_ROUNDS", 1)
    one_round = paper(raw_config)[1].speedup("llama-7b").minutes
    assert all_rounds == pytest.approx(3 * one_round, rel=0.02)


def test_speed_is_measured_with_all_candidates_in_memory(raw_config: dict) -> None:
    raw_config["speedup"] = {}
    plan, cost = paper(raw_config)
    job = cost.speedup("llama-7b")
    # In bf16: the dense model, one masked, 2:4 in 9/16, and the two hybrid ones between that and dense.
    floor = 2 * (6.74e9 + 6.48e9 * (1 + 9 / 16 + 0.6 + 0.78))
    assert floor / 1e6 < job.gpu_mem_mb < 80_000
    assert (job.gpus, job.nodes, job.processes) == (1, 1, 1) and 10 <= job.minutes <= 60
    raw_config["speedup"] = {"new_tokens": [128, 1024]}
    longer = paper(raw_config)[1]
    # One cache for 1152 positions of 16 sequences replaces the masked model, which is only compared before the timing.
    cache = 2 * 16 * 1152 * 32 * 128 * 32
    floor = 2 * (6.74e9 + cache + 6.48e9 * (9 / 16 + 0.6 + 0.78))
    assert floor / 1e6 < longer.speedup("llama-7b").gpu_mem_mb < 80_000
    assert longer.speedup("llama-7b").minutes > 4 * job.minutes
    assert any(line.startswith("speedup of llama-13b needs about") for line in too_large(longer))
    raw_config |= {"speedup": {}, "grid": [{"methods": ["magnitude"]}]}
    assert paper(raw_config)[1].speedup("llama-7b").gpu_mem_mb < job.gpu_mem_mb
    jobs = [cost.speedup(model) for model in SHAPES]
    assert jobs == sorted(jobs, key=lambda one: one.gpu_mem_mb) and jobs[0].minutes <= jobs[-1].minutes
