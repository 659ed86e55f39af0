"""Export for use elsewhere.

Inputs: a model, and the mask and weights of a run. Outputs: results/<experiment>/export/<model>/<run>/, a folder that
transformers and vLLM load, with a model card. Made only on request. The card has the metrics of the run's record if the
run has been evaluated before.
"""


rule export:
    """Write a sparse model, packed if its pattern allows, verify it, and write its card."""
    input:
        unpack(lambda wildcards: PLAN.inputs.export(run_of(wildcards))),
    output:
        folder=directory(f"{RESULTS}/export/{{model}}/{{exported}}"),
    log:
        f"{LOGS}/export/{{model}}/{{exported}}.log",
    benchmark:
        f"{BENCHMARKS}/export/{{model}}/{{exported}}.tsv"
    conda:
        "../../environment.yml"
    resources:
        **needs(run_of, COST.export, DISK.export),
    params:
        **job_files(
            "export",
            lambda wildcards: PLAN.settings.export(run_of(wildcards)),
            record=lambda wildcards: PLAN.layout.record(run_of(wildcards)),
        ),
    shell:
        f"{STAGE} export {JOB} --out {{output.folder:q}} &> {{log:q}}"
