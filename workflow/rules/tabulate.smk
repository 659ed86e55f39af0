"""Tables and figures."""


rule collect:
    """One tidy table of every number: a row for each (cell, metric)."""
    input:
        records=[PLAN.layout.record(cell) for cell in PLAN.grid.cells],
    output:
        results=f"{RESULTS}/results.csv",
    log:
        f"{LOGS}/collect.log",
    benchmark:
        f"{BENCHMARKS}/collect.tsv"
    params:
        spec=as_json(PLAN.tabulate_spec()),
    shell:
        f"{STAGE} collect --spec {{params.spec:q}} --records {{input.records}} --out {{output.results}} &> {{log}}"

rule tables:
    input: rules.collect.output
rule figures:
    input: rules.collect.output
