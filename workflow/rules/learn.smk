"""Mask learning.

Inputs: a model, token sequences, and the masks that initialize the run. Outputs: a mask and a training curve.
"""


rule learn:
    """Learn a mask by proxsparse, maskllm, maskpro, patch-joint or patch-tile."""
    input:
        SELF_TEST,
        unpack(lambda wildcards: PLAN.inputs.learn(run_of(wildcards))),
        unpack(lambda wildcards: PLAN.inputs.prior(run_of(wildcards))),
    output:
        mask=f"{RESULTS}/masks/{{model}}/{{learned}}.safetensors",
        curve=f"{RESULTS}/curves/{{model}}/{{learned}}.jsonl",
    log:
        f"{LOGS}/learn/{{model}}/{{learned}}.log",
    benchmark:
        f"{BENCHMARKS}/learn/{{model}}/{{learned}}.tsv"
    # Before evaluations, which are shorter and fill the cores at the end.
    priority: 2
    conda:
        "../../environment.yml"
    threads: lambda wildcards: COST.learn(run_of(wildcards)).processes * PLAN.experiment.resources.threads
    resources:
        **needs(run_of, COST.learn, DISK.learn),
        **training_resources(COST.learn),
    params:
        **training_files(
            "learn",
            PLAN.settings.learn,
            shard_weights=lambda wildcards: "yes" if COST.placement(run_of(wildcards)).shard_weights else None,
            offload=lambda wildcards: "yes" if COST.placement(run_of(wildcards)).offload else None,
        ),
    shell:
        f"{STAGE} learn {JOB} --mask {{output.mask:q}} --curve {{output.curve:q}}"
        " --processes {resources.processes} --nodes {resources.nodes} &> {log:q}"
