"""Mask learning.

Inputs: a model, token windows, and the masks that the run starts from. Outputs: a mask and a training curve.
"""


rule learn:
    """proxsparse, maskllm, patch-joint or patch-tile."""
    input:
        unpack(lambda wildcards: PLAN.learn_inputs(cell_of(wildcards))),
        unpack(lambda wildcards: PLAN.prior_inputs(cell_of(wildcards))),
    output:
        mask=f"{RESULTS}/masks/{{model}}/{{learned}}.safetensors",
        curve=f"{RESULTS}/curves/{{model}}/{{learned}}.jsonl",
    log:
        f"{LOGS}/learn/{{model}}/{{learned}}.log",
    benchmark:
        f"{BENCHMARKS}/learn/{{model}}/{{learned}}.tsv"
    conda:
        "../../environment.yml"
    threads: lambda wildcards: COST.learn(cell_of(wildcards)).processes * PLAN.experiment.resources.threads
    resources:
        nodes=lambda wildcards: COST.learn(cell_of(wildcards)).nodes,
        tasks_per_node=1,
        processes=lambda wildcards: COST.learn(cell_of(wildcards)).processes,
        resumable=1,
        report_to=",".join(PLAN.experiment.resources.report_to) or "none",
        gpus=lambda wildcards: COST.learn(cell_of(wildcards)).gpus,
        mem_mb=lambda wildcards: COST.learn(cell_of(wildcards)).mem_mb,
        runtime=lambda wildcards: COST.learn(cell_of(wildcards)).minutes,
    params:
        spec=lambda wildcards: as_json(PLAN.learn_spec(cell_of(wildcards))),
        priors=lambda wildcards: options(PLAN.prior_inputs(cell_of(wildcards))),
        checkpoints=lambda wildcards: PLAN.layout.checkpoints(cell_of(wildcards)),
    shell:
        f"{STAGE} learn --spec {{params.spec:q}} --model {{input.model}} --windows {{input.windows}} {{params.priors}}"
        " --mask {output.mask} --curve {output.curve} --checkpoints {params.checkpoints}"
        # Resources, not parameters: the result does not depend on them.
        " --processes {resources.processes} --nodes {resources.nodes} --report-to {resources.report_to}"
        f" --watch-folder {STORE}/watch --run-name {PLAN.experiment.experiment}/{{wildcards.model}}/{{wildcards.learned}}"
        " &> {log}"
