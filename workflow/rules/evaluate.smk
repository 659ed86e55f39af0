"""Evaluation.

Inputs: a model, perplexity windows, task data, and the run's mask and weights. Outputs: for each run one
record and what it is the mean of, the results of each window and question.
"""


rule evaluate:
    """Perplexity and zero-shot accuracy of one run."""
    input:
        unpack(lambda wildcards: PLAN.evaluate_inputs(run_of(wildcards))),
    output:
        record=f"{RESULTS}/records/{{model}}/{{run}}.json",
        samples=f"{RESULTS}/samples/{{model}}/{{run}}.json",
    log:
        f"{LOGS}/evaluate/{{model}}/{{run}}.log",
    benchmark:
        f"{BENCHMARKS}/evaluate/{{model}}/{{run}}.tsv"
    conda:
        "../../environment.yml"
    threads: PLAN.experiment.resources.threads
    resources:
        resumable=1,
        gpus=lambda wildcards: COST.evaluate(run_of(wildcards)).gpus,
        mem_mb=lambda wildcards: COST.evaluate(run_of(wildcards)).mem_mb,
        runtime=lambda wildcards: COST.evaluate(run_of(wildcards)).minutes,
    params:
        settings=lambda wildcards: JOB_FILES.settings("evaluate", PLAN.evaluate_settings(run_of(wildcards))),
        inputs=inputs_file,
        partial=lambda wildcards: PLAN.layout.partial_record(run_of(wildcards)),
    shell:
        f"{STAGE} evaluate {JOB} --partial {{params.partial:q}}"
        " --samples {output.samples:q} --record {output.record:q} &> {log:q}"
