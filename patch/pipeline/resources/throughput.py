"""Throughput of the stages as fractions of that of a device, and of tokenization."""

# Fraction of a device's matrix throughput that a stage reaches. From the paper's wall-clock times on
# 4 x H100 (4.5 h for joint at 0.5B, 21 h for tile at 7B, both 2000 steps of 256 x 4096 tokens).
EFFICIENCY = {
    "prune": 0.2,
    "evaluate": 0.15,
    "patch-tile": 0.7,
    "patch-joint": 0.25,
    "maskllm": 0.25,
    "proxsparse": 0.25,
    # Like an evaluation, it has no backward passes.
    "maskpro": 0.15,
    "finetune": 0.25,
    "train": 0.5,
    # Decoding reads every weight for few tokens, so memory bandwidth limits it.
    "speedup": 0.02,
}
# Forward passes on a CPU reach its sustained throughput, `resources.cpu_gflops` (measured with Qwen2.5-0.5B in fp32 on
# a thread with AVX-512: 95 to 104 GFLOP/s).
CPU_EFFICIENCY = {"prune": 1.0, "evaluate": 1.0}
# Half the measured speed of a fast tokenizer on one thread (1.0 million tokens in 1.3 s).
TOKENIZED_PER_MINUTE = 20_000_000
# Time of products in fp32, without tensor cores, in units of that in bf16 at the efficiency above.
FP32_FACTOR = 4
