"""Speed from the masks.

Inputs: a model, the masks of one of its 2:4 runs and of its hybrid ones. Outputs:
results/<experiment>/speedup/<model>.json, tokens a second of all of them and of the dense model.
"""

# More than any machine has: Snakemake takes all that there are.
EVERY_CORE = 1 << 16


rule speedup:
    """Greedy generation by the dense model and by its masks, in turn in one process."""
    input:
        unpack(lambda wildcards: PLAN.speedup_inputs(wildcards.timed)),
    output:
        record=f"{RESULTS}/speedup/{{timed}}.json",
    log:
        f"{LOGS}/speedup/{{timed}}.log",
    benchmark:
        f"{BENCHMARKS}/speedup/{{timed}}.tsv"
    conda:
        "../../environment.yml"
    # Alone on this machine; on a cluster it has an allocation of its own.
    threads: PLAN.experiment.resources.threads if workflow.non_local_exec else EVERY_CORE
    resources:
        gpus=lambda wildcards: COST.speedup(wildcards.timed, PLAN.timed_runs(wildcards.timed)).gpus,
        mem_mb=lambda wildcards: COST.speedup(wildcards.timed, PLAN.timed_runs(wildcards.timed)).mem_mb,
        runtime=lambda wildcards: COST.speedup(wildcards.timed, PLAN.timed_runs(wildcards.timed)).minutes,
    params:
        settings=lambda wildcards: JOB_FILES.settings("speedup", PLAN.speedup_settings(wildcards.timed)),
        inputs=inputs_file,
    shell:
        f"{STAGE} speedup {JOB} --record {{output.record:q}} &> {{log:q}}"
