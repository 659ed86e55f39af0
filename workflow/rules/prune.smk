"""One-shot pruning, and imported masks.

Inputs: a model, and calibration sequences or statistics of the dense model. Outputs:
results/<experiment>/masks/<model>/<run>.safetensors, and temporary updated weights, which the evaluation reads.
"""


rule statistics:
    """Collect statistics of the layer inputs of the dense model, for `calibration.propagate: dense`."""
    input:
        SELF_TEST,
        model=lambda wildcards: PLAN.store.model_path(PLAN.statistics[wildcards.statistics].model),
        sequences=lambda wildcards: PLAN.statistics[wildcards.statistics].sequences.path,
    output:
        directory(f"{STORE}/statistics/{{statistics}}"),
    log:
        f"{LOGS}/statistics/{{statistics}}.log",
    benchmark:
        f"{BENCHMARKS}/statistics/{{statistics}}.tsv"
    priority: 2
    conda:
        "../../environment.yml"
    threads: PLAN.experiment.resources.threads
    resources:
        **needs(lambda wildcards: PLAN.statistics[wildcards.statistics], COST.statistics, DISK.statistics),
    params:
        **job_files("statistics", lambda wildcards: PLAN.statistics[wildcards.statistics].settings),
    shell:
        f"{STAGE} statistics {JOB} --out {{output:q}} &> {{log:q}}"


rule import_mask:
    """Check an imported mask against its model."""
    input:
        unpack(lambda wildcards: PLAN.inputs.import_mask(run_of(wildcards))),
    output:
        mask=f"{RESULTS}/masks/{{model}}/{{imported}}.safetensors",
    log:
        f"{LOGS}/import_mask/{{model}}/{{imported}}.log",
    benchmark:
        f"{BENCHMARKS}/import_mask/{{model}}/{{imported}}.tsv"
    conda:
        "../../environment.yml"
    resources:
        **needs(run_of, COST.import_mask, DISK.mask),
    params:
        **job_files("import_mask", lambda wildcards: PLAN.settings.import_mask(run_of(wildcards))),
    shell:
        f"{STAGE} import_mask {JOB} --mask {{output.mask:q}} &> {{log:q}}"


rule prune:
    """Make the mask of a one-shot method."""
    input:
        SELF_TEST,
        unpack(lambda wildcards: PLAN.inputs.prune(run_of(wildcards))),
    output:
        mask=f"{RESULTS}/masks/{{model}}/{{pruned}}.safetensors",
    log:
        f"{LOGS}/prune/{{model}}/{{pruned}}.log",
    benchmark:
        f"{BENCHMARKS}/prune/{{model}}/{{pruned}}.tsv"
    # Before evaluations, because learning waits for it.
    priority: 2
    conda:
        "../../environment.yml"
    threads: PLAN.experiment.resources.threads
    resources:
        **needs(run_of, COST.prune, DISK.prune),
    params:
        **job_files(
            "prune",
            lambda wildcards: PLAN.settings.prune(run_of(wildcards)),
            cache=lambda wildcards: PLAN.cached_weights(run_of(wildcards)),
        ),
    shell:
        f"{STAGE} prune {JOB} --mask {{output.mask:q}} &> {{log:q}}"


rule update_weights:
    """Provide the updated weights of a pruned run to its evaluation.

    The weights are temporary and are made again if the evaluation reruns. A separate rule keeps the mask, so that jobs
    that depend on the mask do not rerun.
    """
    input:
        SELF_TEST,
        unpack(lambda wildcards: PLAN.inputs.prune(run_of(wildcards))),
        mask=lambda wildcards: PLAN.masks.mask(run_of(wildcards)),
    output:
        weights=temp(f"{PLAN.layout.scratch}/weights/{{model}}/{{updating}}.safetensors"),
    log:
        f"{LOGS}/update_weights/{{model}}/{{updating}}.log",
    benchmark:
        f"{BENCHMARKS}/update_weights/{{model}}/{{updating}}.tsv"
    conda:
        "../../environment.yml"
    threads: PLAN.experiment.resources.threads
    resources:
        **needs(run_of, COST.prune, DISK.weights),
    params:
        **job_files(
            "update",
            lambda wildcards: PLAN.settings.prune(run_of(wildcards)),
            cache=lambda wildcards: PLAN.cached_weights(run_of(wildcards)),
        ),
    shell:
        f"{STAGE} update {JOB} --weights {{output.weights:q}} &> {{log:q}}"
