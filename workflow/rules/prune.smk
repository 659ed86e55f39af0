"""One-shot pruning, and masks that were made elsewhere.

Inputs: a model, calibration windows or statistics of the dense model. Outputs:
results/<experiment>/masks/<model>/<run>.safetensors, and the updated weights of methods that update, kept only
until their run is evaluated.
"""


rule statistics:
    """Inputs of a dense model's layers, for all methods and ratios, with `calibration.propagate: dense`."""
    input:
        model=lambda wildcards: PLAN.store.model_path(PLAN.statistics[wildcards.statistics].model),
        windows=lambda wildcards: PLAN.statistics[wildcards.statistics].windows.path,
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
        gpus=lambda wildcards: statistics_cost(wildcards).gpus,
        mem_mb=lambda wildcards: statistics_cost(wildcards).mem_mb,
        runtime=lambda wildcards: statistics_cost(wildcards).minutes,
    params:
        settings=lambda wildcards: JOB_FILES.settings("statistics", PLAN.statistics[wildcards.statistics].settings),
        inputs=inputs_file,
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
        mem_mb=lambda wildcards: COST.import_mask(run_of(wildcards)).mem_mb,
        runtime=lambda wildcards: COST.import_mask(run_of(wildcards)).minutes,
    params:
        settings=lambda wildcards: JOB_FILES.settings("import_mask", PLAN.import_settings(run_of(wildcards))),
        inputs=inputs_file,
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
        gpus=lambda wildcards: COST.prune(run_of(wildcards)).gpus,
        mem_mb=lambda wildcards: COST.prune(run_of(wildcards)).mem_mb,
        runtime=lambda wildcards: COST.prune(run_of(wildcards)).minutes,
    params:
        settings=lambda wildcards: JOB_FILES.settings("prune", PLAN.prune_settings(run_of(wildcards))),
        inputs=inputs_file,
        spare=lambda wildcards: spare_option(run_of(wildcards)),
    shell:
        f"{STAGE} prune {JOB} {{params.spare}} --mask {{output.mask:q}} &> {{log:q}}"


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
        gpus=lambda wildcards: COST.prune(run_of(wildcards)).gpus,
        mem_mb=lambda wildcards: COST.prune(run_of(wildcards)).mem_mb,
        runtime=lambda wildcards: COST.prune(run_of(wildcards)).minutes,
    params:
        settings=lambda wildcards: JOB_FILES.settings("update", PLAN.prune_settings(run_of(wildcards))),
        inputs=inputs_file,
        spare=lambda wildcards: PLAN.layout.spare_weights(run_of(wildcards)),
    shell:
        f"{STAGE} update {JOB} --spare {{params.spare:q}} --weights {{output.weights:q}} &> {{log:q}}"
