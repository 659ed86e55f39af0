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
        **needs(lambda wildcards: wildcards.timed, COST.speedup),
    params:
        **job_files("speedup", lambda wildcards: PLAN.speedup_settings(wildcards.timed)),
    shell:
        f"{STAGE} speedup {JOB} --record {{output.record:q}} &> {{log:q}}"
