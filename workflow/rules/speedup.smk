"""Speed measurement.

Inputs: a model, and the masks of its first 2:4 run and of its hybrid runs. Outputs:
results/<experiment>/speedup/<model>.json with the tokens per second of these runs and of the dense model.
"""

# Snakemake limits this number to the cores of the machine.
EVERY_CORE = 1 << 16


rule speedup:
    """Time greedy generation by the dense model and by its runs, in turn in one process."""
    input:
        SELF_TEST,
        unpack(lambda wildcards: PLAN.inputs.speedup(wildcards.timed)),
    output:
        record=f"{RESULTS}/speedup/{{timed}}.json",
    log:
        f"{LOGS}/speedup/{{timed}}.log",
    benchmark:
        f"{BENCHMARKS}/speedup/{{timed}}.tsv"
    conda:
        "../../environment.yml"
    # Runs alone on this machine; a cluster job has a separate allocation.
    threads: PLAN.experiment.resources.threads if workflow.non_local_exec else EVERY_CORE
    resources:
        **needs(lambda wildcards: wildcards.timed, COST.speedup),
    params:
        **job_files("speedup", lambda wildcards: PLAN.settings.speedup(wildcards.timed)),
    shell:
        f"{STAGE} speedup {JOB} --record {{output.record:q}} &> {{log:q}}"
