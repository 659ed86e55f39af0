"""Tables and figures.

Inputs: the records of all cells, training curves. Outputs: results/<experiment>/results.csv,
tables/<table>.{csv,md,tex}, figures/<model>/<figure>.{svg,pdf,png}.
"""

TABLE_KINDS = ["csv", "md", "tex"]
FIGURE_KINDS = ["svg", "pdf", "png"]
RECORDS = [PLAN.layout.record(cell) for cell in PLAN.grid.cells]


localrules:
    all,
    tables,
    figures,
    collect,
    table,
    pareto,
    density,
    curves,


wildcard_constraints:
    table=one_of(PLAN.tables()),


rule tables:
    """Every table, and the records and tidy data that they are made from."""
    input:
        RECORDS,
        f"{RESULTS}/results.csv",
        expand(f"{RESULTS}/tables/{{table}}.{{kind}}", table=PLAN.tables(), kind=TABLE_KINDS),


rule figures:
    """Every figure."""
    input:
        [
            f"{RESULTS}/figures/{model}/{figure}.{kind}"
            for model in PLAN.models
            for figure in PLAN.figures(model)
            for kind in FIGURE_KINDS
        ],


rule collect:
    """One tidy table of every number: a row for each (cell, metric)."""
    input:
        records=RECORDS,
        published=PLAN.experiment.published,
    output:
        results=f"{RESULTS}/results.csv",
    log:
        f"{LOGS}/collect.log",
    benchmark:
        f"{BENCHMARKS}/collect.tsv"
    conda:
        "../../environment.yml"
    params:
        spec=as_json(PLAN.tabulate_spec()),
    shell:
        f"{STAGE} collect --spec {{params.spec:q}} --records {{input.records}} --out {{output.results}} &> {{log}}"


rule table:
    """One table of the paper, measured beside published."""
    input:
        results=f"{RESULTS}/results.csv",
    output:
        multiext(f"{RESULTS}/tables/{{table}}", *[f".{kind}" for kind in TABLE_KINDS]),
    log:
        f"{LOGS}/table/{{table}}.log",
    benchmark:
        f"{BENCHMARKS}/table/{{table}}.tsv"
    conda:
        "../../environment.yml"
    params:
        spec=as_json(PLAN.tabulate_spec()),
        out=f"{RESULTS}/tables/{{table}}",
    shell:
        f"{STAGE} table --spec {{params.spec:q}} --results {{input.results}} --out {{params.out}} &> {{log}}"


rule pareto:
    """Accuracy and perplexity against sparsity."""
    input:
        results=f"{RESULTS}/results.csv",
        record=lambda wildcards: PLAN.layout.record(next(c for c in PLAN.grid.cells if c.model == wildcards.model)),
    output:
        multiext(f"{RESULTS}/figures/{{model}}/pareto", *[f".{kind}" for kind in FIGURE_KINDS]),
    log:
        f"{LOGS}/pareto/{{model}}.log",
    benchmark:
        f"{BENCHMARKS}/pareto/{{model}}.tsv"
    conda:
        "../../environment.yml"
    params:
        spec=lambda wildcards: as_json(PLAN.figure_spec(wildcards.model)),
        out=f"{RESULTS}/figures/{{model}}/pareto",
    shell:
        f"{STAGE} pareto --spec {{params.spec:q}} --results {{input.results}} --record {{input.record}}"
        " --out {params.out} &> {log}"


rule density:
    """Density by layer and projection."""
    input:
        records=lambda wildcards: [PLAN.layout.record(cell) for cell in PLAN.hybrid_cells(wildcards.model)],
    output:
        multiext(f"{RESULTS}/figures/{{model}}/density", *[f".{kind}" for kind in FIGURE_KINDS]),
    log:
        f"{LOGS}/density/{{model}}.log",
    benchmark:
        f"{BENCHMARKS}/density/{{model}}.tsv"
    conda:
        "../../environment.yml"
    params:
        spec=lambda wildcards: as_json(PLAN.figure_spec(wildcards.model)),
        out=f"{RESULTS}/figures/{{model}}/density",
    shell:
        f"{STAGE} density --spec {{params.spec:q}} --records {{input.records}} --out {{params.out}} &> {{log}}"


rule curves:
    """Training curves: loss, density against target, temperature."""
    input:
        curves=lambda wildcards: [PLAN.layout.curve(cell) for cell in PLAN.learned_cells(wildcards.model)],
    output:
        multiext(f"{RESULTS}/figures/{{model}}/curves", *[f".{kind}" for kind in FIGURE_KINDS]),
    log:
        f"{LOGS}/curves/{{model}}.log",
    benchmark:
        f"{BENCHMARKS}/curves/{{model}}.tsv"
    conda:
        "../../environment.yml"
    params:
        spec=lambda wildcards: as_json(PLAN.figure_spec(wildcards.model, labels=True)),
        out=f"{RESULTS}/figures/{{model}}/curves",
    shell:
        f"{STAGE} curves --spec {{params.spec:q}} --curves-of {{input.curves}} --out {{params.out}} &> {{log}}"
