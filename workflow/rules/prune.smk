"""One-shot pruning, and masks that were made elsewhere.

Inputs: a model, calibration sequences or statistics of the dense model. Outputs:
results/<experiment>/masks/<model>/<run>.safetensors, and the updated weights of methods that update, kept only
until their run is evaluated.
"""


rule statistics:
    """Inputs of a dense model's layers, for all methods and ratios, with `calibration.propagate: dense`."""
    input:
        model=lambda wildcards: PLAN.store.model_path(PLAN.statistics[wildcards.statistics].model),
        sequences=lambda wildcards: PLAN.statistics[wildcards.statistics].sequences.path,
    output:
        directory(f"{STORE}/statistics/{{statistics}}"),
    log:
        f"{LOGS}/statistics/{{statistics}}.log",
    benchmark:
        f"{BENCHMARKS}/statistics/{{statistics}}.tsv"
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
    """A mask that was made elsewhere, checked against its model."""
    input:
        unpack(lambda wildcards: PLAN.import_inputs(run_of(wildcards))),
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
        **job_files("import_mask", lambda wildcards: PLAN.import_settings(run_of(wildcards))),
    shell:
        f"{STAGE} import_mask {JOB} --mask {{output.mask:q}} &> {{log:q}}"


rule prune:
    """Mask of a one-shot method."""
    input:
        unpack(lambda wildcards: PLAN.prune_inputs(run_of(wildcards))),
    output:
        mask=f"{RESULTS}/masks/{{model}}/{{pruned}}.safetensors",
    log:
        f"{LOGS}/prune/{{model}}/{{pruned}}.log",
    benchmark:
        f"{BENCHMARKS}/prune/{{model}}/{{pruned}}.tsv"
    conda:
        "../../environment.yml"
    threads: PLAN.experiment.resources.threads
    resources:
        **needs(run_of, COST.prune, DISK.prune),
    params:
        **job_files(
            "prune",
            lambda wildcards: PLAN.prune_settings(run_of(wildcards)),
            cache=lambda wildcards: PLAN.cached_weights(run_of(wildcards)),
        ),
    shell:
        f"{STAGE} prune {JOB} --mask {{output.mask:q}} &> {{log:q}}"


rule update_weights:
    """Weights of a method that updates them, for the evaluation.

    A rule of its own: the weights are temporary, and when a record is made again they are too, but the
    mask must not be, for then all that was learned from it would follow.
    """
    input:
        unpack(lambda wildcards: PLAN.prune_inputs(run_of(wildcards))),
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
            lambda wildcards: PLAN.prune_settings(run_of(wildcards)),
            cache=lambda wildcards: PLAN.cached_weights(run_of(wildcards)),
        ),
    shell:
        f"{STAGE} update {JOB} --weights {{output.weights:q}} &> {{log:q}}"
