"""Token windows, made once for each tokenizer and use and shared by all that read them.

Inputs: a corpus, a tokenizer. Outputs: work/windows/*.npy.
"""


rule calibrate:
    """Windows of one text in one tokenizer's tokens; for calibration, shared by every method."""
    input:
        corpus=lambda wildcards: PLAN.windows[wildcards.calibration].corpus,
        tokenizer=lambda wildcards: PLAN.windows[wildcards.calibration].tokenizer,
    output:
        f"{STORE}/windows/{{calibration}}.npy",
    log:
        f"{LOGS}/calibrate/{{calibration}}.log",
    benchmark:
        f"{BENCHMARKS}/calibrate/{{calibration}}.tsv"
    conda:
        "../../environment.yml"
    resources:
        mem_mb=lambda wildcards: COST.windows(PLAN.windows[wildcards.calibration].settings).mem_mb,
        runtime=lambda wildcards: COST.windows(PLAN.windows[wildcards.calibration].settings).minutes,
    params:
        settings=lambda wildcards: JOB_FILES.settings("windows", PLAN.windows[wildcards.calibration].settings),
        inputs=inputs_file,
    shell:
        # Threads, not parameters: the result does not depend on them.
        f"{STAGE} windows {JOB} --out {{output:q}} --workers {{threads}} &> {{log:q}}"


use rule calibrate as tokenize with:
    input:
        corpus=lambda wildcards: PLAN.windows[wildcards.windows].corpus,
        tokenizer=lambda wildcards: PLAN.windows[wildcards.windows].tokenizer,
    output:
        f"{STORE}/windows/{{windows}}.npy",
    log:
        f"{LOGS}/tokenize/{{windows}}.log",
    benchmark:
        f"{BENCHMARKS}/tokenize/{{windows}}.tsv"
    conda:
        "../../environment.yml"
    threads: PLAN.experiment.resources.threads
    resources:
        resumable=1,
        mem_mb=lambda wildcards: COST.windows(PLAN.windows[wildcards.windows].settings).mem_mb,
        runtime=lambda wildcards: COST.windows(PLAN.windows[wildcards.windows].settings).minutes,
    params:
        settings=lambda wildcards: JOB_FILES.settings("windows", PLAN.windows[wildcards.windows].settings),
        inputs=inputs_file,
