"""Export for use elsewhere.

Inputs: a model, and the mask and weights of a run. Outputs: results/<experiment>/export/<model>/<run>/, a folder that
transformers loads, with the mask in the published format. Made only on request.
"""


rule export:
    """Write a model with its zeros, verify it, and write its mask as mask.npz."""
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
