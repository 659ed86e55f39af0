"""One-shot pruning.

Inputs: a model, calibration windows. Outputs: results/<experiment>/masks/<model>/<cell>.safetensors, and
the updated weights of methods that update, kept only until their cell is evaluated.
"""


rule prune:
    """Mask of a method that leaves the kept weights alone."""
    input:
        unpack(lambda wildcards: PLAN.prune_inputs(cell_of(wildcards))),
    output:
        mask=f"{RESULTS}/masks/{{model}}/{{mask_only}}.safetensors",
    log:
        f"{LOGS}/prune/{{model}}/{{mask_only}}.log",
    benchmark:
        f"{BENCHMARKS}/prune/{{model}}/{{mask_only}}.tsv"
    params:
        spec=lambda wildcards: as_json(PLAN.prune_spec(cell_of(wildcards))),
        files=lambda wildcards: options(PLAN.prune_inputs(cell_of(wildcards))),
    threads: PLAN.experiment.resources.threads
    resources:
        gpus=lambda wildcards: COST.prune(cell_of(wildcards)).gpus,
        mem_mb=lambda wildcards: COST.prune(cell_of(wildcards)).mem_mb,
        runtime=lambda wildcards: COST.prune(cell_of(wildcards)).minutes,
    shell:
        f"{STAGE} prune --spec {{params.spec:q}} {{params.files}} --mask {{output.mask}} &> {{log}}"


use rule prune as prune_and_update with:
    output:
        mask=f"{RESULTS}/masks/{{model}}/{{updating}}.safetensors",
        weights=temp(f"{PLAN.layout.scratch}/weights/{{model}}/{{updating}}.safetensors"),
    log:
        f"{LOGS}/prune/{{model}}/{{updating}}.log",
    benchmark:
        f"{BENCHMARKS}/prune/{{model}}/{{updating}}.tsv"
    params:
        spec=lambda wildcards: as_json(PLAN.prune_spec(cell_of(wildcards))),
        files=lambda wildcards, output: options(PLAN.prune_inputs(cell_of(wildcards)) | {"weights": output.weights}),
