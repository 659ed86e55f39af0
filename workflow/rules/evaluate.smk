"""Evaluation.

Inputs: a model, token sequences for perplexity, task data, and the mask and weights of a run. Outputs: a record, and
the results of each sequence and question.
"""


rule evaluate:
    """Measure the perplexity and the zero-shot accuracy of a run."""
    input:
        SELF_TEST,
        unpack(lambda wildcards: PLAN.inputs.evaluate(run_of(wildcards))),
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
        **needs(run_of, COST.evaluate),
        resumable=1,
    params:
        **job_files(
            "evaluate",
            lambda wildcards: PLAN.settings.evaluate(run_of(wildcards)),
            partial=lambda wildcards: PLAN.layout.partial_record(run_of(wildcards)),
            gpus=lambda wildcards: str(found) if (found := COST.evaluate(run_of(wildcards)).gpus) > 1 else None,
        ),
    shell:
        f"{STAGE} evaluate {JOB} --samples {{output.samples:q}} --record {{output.record:q}} &> {{log:q}}"
