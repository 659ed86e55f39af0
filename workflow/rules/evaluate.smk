"""Evaluation.

Inputs: a model, perplexity windows, task data, and the cell's mask and weights. Outputs: for each cell one
record and what it is the mean of, the results of each window and question.
"""


rule evaluate:
    """Perplexity and zero-shot accuracy of one cell."""
    input:
        unpack(lambda wildcards: PLAN.evaluate_inputs(cell_of(wildcards))),
    output:
        record=f"{RESULTS}/records/{{model}}/{{cell}}.json",
        samples=f"{RESULTS}/samples/{{model}}/{{cell}}.json",
    log:
        f"{LOGS}/evaluate/{{model}}/{{cell}}.log",
    benchmark:
        f"{BENCHMARKS}/evaluate/{{model}}/{{cell}}.tsv"
    conda:
        "../../environment.yml"
    threads: PLAN.experiment.resources.threads
    resources:
        resumable=1,
        gpus=lambda wildcards: COST.evaluate(cell_of(wildcards)).gpus,
        mem_mb=lambda wildcards: COST.evaluate(cell_of(wildcards)).mem_mb,
        runtime=lambda wildcards: COST.evaluate(cell_of(wildcards)).minutes,
    params:
        settings=lambda wildcards: JOB_FILES.settings("evaluate", PLAN.evaluate_spec(cell_of(wildcards))),
        inputs=inputs_file,
        partial=lambda wildcards: PLAN.layout.partial_record(cell_of(wildcards)),
    shell:
        f"{STAGE} evaluate {JOB} --partial {{params.partial:q}}"
        " --samples {output.samples:q} --record {output.record:q} &> {log:q}"
