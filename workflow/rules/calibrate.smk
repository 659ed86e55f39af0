"""Token sequences, made once for each tokenizer and use.

Inputs: a corpus, a tokenizer. Outputs: work/sequences/*.npy.
"""


rule calibrate:
    """Sample the calibration sequences that all methods share."""
    input:
        corpus=lambda wildcards: PLAN.sequences[wildcards.calibration].corpus,
        tokenizer=lambda wildcards: PLAN.sequences[wildcards.calibration].tokenizer,
    output:
        f"{STORE}/sequences/{{calibration}}.npy",
    log:
        f"{LOGS}/calibrate/{{calibration}}.log",
    benchmark:
        f"{BENCHMARKS}/calibrate/{{calibration}}.tsv"
    # Long jobs wait for them.
    priority: 3
    conda:
        "../../environment.yml"
    resources:
        **needs(lambda wildcards: PLAN.sequences[wildcards.calibration], COST.sequences, DISK.sequences),
    params:
        **job_files("sequences", lambda wildcards: PLAN.sequences[wildcards.calibration].settings),
    shell:
        # The number of threads is no parameter, because the result does not depend on it.
        f"{STAGE} sequences {JOB} --out {{output:q}} --workers {{threads}} &> {{log:q}}"


use rule calibrate as tokenize with:
    input:
        corpus=lambda wildcards: PLAN.sequences[wildcards.sequences].corpus,
        tokenizer=lambda wildcards: PLAN.sequences[wildcards.sequences].tokenizer,
    output:
        f"{STORE}/sequences/{{sequences}}.npy",
    log:
        f"{LOGS}/tokenize/{{sequences}}.log",
    benchmark:
        f"{BENCHMARKS}/tokenize/{{sequences}}.tsv"
    conda:
        "../../environment.yml"
    threads: PLAN.experiment.resources.threads
    resources:
        **needs(lambda wildcards: PLAN.sequences[wildcards.sequences], COST.sequences, DISK.sequences),
        resumable=1,
    params:
        **job_files("sequences", lambda wildcards: PLAN.sequences[wildcards.sequences].settings),
