"""Self-test of the kernels.

Inputs: none. Outputs: results/<experiment>/self-test.json, which all jobs that compute on a GPU wait for.
"""

# Only its existence counts: a new self-test does not rerun finished jobs.
SELF_TEST = [ancient(path) for path in PLAN.inputs.self_test]


rule self_test:
    """Compare the kernels with plain PyTorch on a node that computes, before days of work depend on them."""
    output:
        report=PLAN.layout.self_test,
    log:
        f"{LOGS}/self_test.log",
    benchmark:
        f"{BENCHMARKS}/self_test.tsv"
    # All other jobs on a GPU wait for it.
    priority: 4
    conda:
        "../../environment.yml"
    threads: PLAN.experiment.resources.threads
    resources:
        **needs(lambda wildcards: PLAN.experiment.resources.device, COST.self_test),
    params:
        **job_files("self_test", PLAN.settings.self_test()),
    shell:
        f"{STAGE} self_test {JOB} --report {{output.report:q}} &> {{log:q}}"
