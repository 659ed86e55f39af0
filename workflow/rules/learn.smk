"""Mask learning.

Inputs: a model, token windows, and the masks that the run starts from. Outputs: a mask and a training curve.
"""


rule learn:
    """proxsparse, maskllm, patch-joint or patch-tile."""
    input:
        unpack(lambda wildcards: PLAN.learn_inputs(run_of(wildcards))),
        unpack(lambda wildcards: PLAN.prior_inputs(run_of(wildcards))),
    output:
        mask=f"{RESULTS}/masks/{{model}}/{{learned}}.safetensors",
        curve=f"{RESULTS}/curves/{{model}}/{{learned}}.jsonl",
    log:
        f"{LOGS}/learn/{{model}}/{{learned}}.log",
    benchmark:
        f"{BENCHMARKS}/learn/{{model}}/{{learned}}.tsv"
    conda:
        "../../environment.yml"
    threads: lambda wildcards: COST.learn(run_of(wildcards)).processes * PLAN.experiment.resources.threads
    resources:
        nodes=lambda wildcards: COST.learn(run_of(wildcards)).nodes,
        tasks_per_node=1,
        processes=lambda wildcards: COST.learn(run_of(wildcards)).processes,
        resumable=1,
        report_to=",".join(PLAN.experiment.resources.report_to) or "none",
        gpus=lambda wildcards: COST.learn(run_of(wildcards)).gpus,
        mem_mb=lambda wildcards: COST.learn(run_of(wildcards)).mem_mb,
        runtime=lambda wildcards: COST.learn(run_of(wildcards)).minutes,
    params:
        settings=lambda wildcards: JOB_FILES.settings("learn", PLAN.learn_settings(run_of(wildcards))),
        inputs=inputs_file,
        checkpoints=lambda wildcards: PLAN.layout.checkpoints(run_of(wildcards)),
        run_name=f"{PLAN.experiment.experiment}/{{model}}/{{learned}}",
    shell:
        f"{STAGE} learn {JOB} --mask {{output.mask:q}} --curve {{output.curve:q}}"
        " --checkpoints {params.checkpoints:q}"
        # Resources, not parameters: the result does not depend on them.
        " --processes {resources.processes} --nodes {resources.nodes} --report-to {resources.report_to:q}"
        f" --watch-folder {STORE}/watch --run-name {{params.run_name:q}} &> {{log:q}}"
