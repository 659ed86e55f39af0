"""Sparse models to use elsewhere.

Inputs: a model, the mask and weights of a run. Outputs: results/<experiment>/export/<model>/<run>/, a folder that
transformers alone loads, with the mask in the published format. Made when it is asked for.
"""


rule export:
    """A model with zeros in place, verified after it is saved, and its mask.npz."""
    input:
        unpack(lambda wildcards: PLAN.export_inputs(run_of(wildcards))),
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
        **job_files("export", lambda wildcards: PLAN.export_settings(run_of(wildcards))),
    shell:
        f"{STAGE} export {JOB} --out {{output.folder:q}} &> {{log:q}}"
