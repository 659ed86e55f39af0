"""Tables, figures and pages.

Inputs: the records of evaluations, training curves and speed measurements. Outputs: results/<experiment>/results.csv,
tables/<table>.{csv,md,tex,html}, figures/<model>/<figure>.{svg,pdf,png}, explore.html, overview/*.html, README.md and
findings.txt. Outputs in report() appear in `snakemake --report`, with captions from workflow/report/.
"""

from patch.pipeline.reporting.experiment import command, overview_settings, summary_settings

TABLE_KINDS = ["csv", "md", "tex", "html"]
FIGURE_KINDS = ["svg", "pdf", "png"]
RECORDS = [PLAN.layout.record(run) for run in PLAN.grid.runs]
SAMPLES = [PLAN.layout.samples(run) for run in PLAN.grid.runs]
SPEEDUPS = [PLAN.layout.speedup(model) for model in PLAN.timed_models]


localrules:
    all,
    tables,
    figures,
    collect,
    compare,
    table,
    pareto,
    density,
    curves,
    speedup_figure,
    explore,
    overview,
    summary,


wildcard_constraints:
    table=one_of(PLAN.tables()),


rule tables:
    """Request all tables, with the records and the tidy data that they are made from."""
    input:
        RECORDS,
        SPEEDUPS,
        f"{RESULTS}/results.csv",
        expand(f"{RESULTS}/tables/{{table}}.{{kind}}", table=PLAN.tables(), kind=TABLE_KINDS),


rule figures:
    """Request all figures."""
    input:
        [
            f"{RESULTS}/figures/{model}/{figure}.{kind}"
            for model in PLAN.models
            for figure in PLAN.figures(model)
            for kind in FIGURE_KINDS
        ],


rule collect:
    """Collect all results in one tidy table, with a row for each metric of a run."""
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
        **job_files("collect", PLAN.settings.tabulate()),
    shell:
        f"{STAGE} collect {JOB} --out {{output.results:q}} &> {{log:q}}"


rule compare:
    """Compute the paired differences of all rows of a sparsity."""
    input:
        samples=SAMPLES,
    output:
        differences=f"{RESULTS}/differences.csv",
    log:
        f"{LOGS}/compare.log",
    benchmark:
        f"{BENCHMARKS}/compare.tsv"
    conda:
        "../../environment.yml"
    params:
        **job_files("compare", PLAN.settings.compare()),
    shell:
        f"{STAGE} compare {JOB} --out {{output.differences:q}} &> {{log:q}}"


rule table:
    """Write a table with measured and published results."""
    input:
        results=f"{RESULTS}/results.csv",
        differences=f"{RESULTS}/differences.csv",
        speedups=lambda wildcards: SPEEDUPS if wildcards.table == "speedup" else [],
    output:
        multiext(f"{RESULTS}/tables/{{table}}", ".csv", ".md", ".tex"),
        html=report(
            f"{RESULTS}/tables/{{table}}.html",
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "{table}"},
        ),
    log:
        f"{LOGS}/table/{{table}}.log",
    benchmark:
        f"{BENCHMARKS}/table/{{table}}.tsv"
    conda:
        "../../environment.yml"
    params:
        **job_files("table", lambda wildcards: PLAN.settings.tabulate(wildcards.table == "speedup")),
        out=f"{RESULTS}/tables/{{table}}",
    shell:
        f"{STAGE} table {JOB} --out {{params.out:q}} &> {{log:q}}"


rule pareto:
    """Draw accuracy and perplexity against sparsity."""
    input:
        results=f"{RESULTS}/results.csv",
        record=lambda wildcards: PLAN.layout.record(next(c for c in PLAN.grid.runs if c.model == wildcards.model)),
        published=PLAN.experiment.published,
    output:
        multiext(f"{RESULTS}/figures/{{model}}/pareto", ".pdf", ".png"),
        svg=report(
            f"{RESULTS}/figures/{{model}}/pareto.svg",
            caption="../report/pareto.rst",
            category="Figures",
            labels=lambda wildcards: figure_labels(wildcards.model, "pareto"),
        ),
    log:
        f"{LOGS}/pareto/{{model}}.log",
    benchmark:
        f"{BENCHMARKS}/pareto/{{model}}.tsv"
    conda:
        "../../environment.yml"
    params:
        **job_files("pareto", lambda wildcards: PLAN.settings.pareto(wildcards.model)),
        out=f"{RESULTS}/figures/{{model}}/pareto",
    shell:
        f"{STAGE} pareto {JOB} --out {{params.out:q}} &> {{log:q}}"


rule density:
    """Draw the density of each layer and projection."""
    input:
        records=lambda wildcards: [PLAN.layout.record(run) for run in PLAN.hybrid_runs(wildcards.model)],
    output:
        multiext(f"{RESULTS}/figures/{{model}}/density", ".pdf", ".png"),
        svg=report(
            f"{RESULTS}/figures/{{model}}/density.svg",
            caption="../report/density.rst",
            category="Figures",
            labels=lambda wildcards: figure_labels(wildcards.model, "density"),
        ),
    log:
        f"{LOGS}/density/{{model}}.log",
    benchmark:
        f"{BENCHMARKS}/density/{{model}}.tsv"
    conda:
        "../../environment.yml"
    params:
        **job_files("density", lambda wildcards: PLAN.settings.density(wildcards.model)),
        out=f"{RESULTS}/figures/{{model}}/density",
    shell:
        f"{STAGE} density {JOB} --out {{params.out:q}} &> {{log:q}}"


rule curves:
    """Draw training curves: cross-entropy, held-out loss, density with its target, and kept norm."""
    input:
        curves_of=lambda wildcards: [PLAN.masks.curve(run) for run in PLAN.learned_runs(wildcards.model)],
    output:
        multiext(f"{RESULTS}/figures/{{model}}/curves", ".pdf", ".png"),
        svg=report(
            f"{RESULTS}/figures/{{model}}/curves.svg",
            caption="../report/curves.rst",
            category="Figures",
            labels=lambda wildcards: figure_labels(wildcards.model, "curves"),
        ),
    log:
        f"{LOGS}/curves/{{model}}.log",
    benchmark:
        f"{BENCHMARKS}/curves/{{model}}.tsv"
    conda:
        "../../environment.yml"
    params:
        **job_files("curves", lambda wildcards: PLAN.settings.curves(wildcards.model)),
        out=f"{RESULTS}/figures/{{model}}/curves",
    shell:
        f"{STAGE} curves {JOB} --out {{params.out:q}} &> {{log:q}}"


rule speedup_figure:
    """Draw measured speedup beside accuracy and perplexity."""
    input:
        results=f"{RESULTS}/results.csv",
        speedup=f"{RESULTS}/speedup/{{timed}}.json",
    output:
        multiext(f"{RESULTS}/figures/{{timed}}/speedup", ".pdf", ".png"),
        svg=report(
            f"{RESULTS}/figures/{{timed}}/speedup.svg",
            caption="../report/speedup.rst",
            category="Figures",
            labels=lambda wildcards: figure_labels(wildcards.timed, "speedup"),
        ),
    log:
        f"{LOGS}/speedup_figure/{{timed}}.log",
    benchmark:
        f"{BENCHMARKS}/speedup_figure/{{timed}}.tsv"
    conda:
        "../../environment.yml"
    params:
        **job_files("speedup_figure", lambda wildcards: PLAN.settings.speedup_figure(wildcards.timed)),
        out=f"{RESULTS}/figures/{{timed}}/speedup",
    shell:
        f"{STAGE} speedup_figure {JOB} --out {{params.out:q}} &> {{log:q}}"


rule explore:
    """Write the interactive page, on which a reader chooses models, methods and metrics."""
    input:
        results=f"{RESULTS}/results.csv",
        records=RECORDS,
        published=PLAN.experiment.published,
        curves_of=[PLAN.masks.curve(run) for run in PLAN.explored_curves],
    output:
        page=report(
            f"{RESULTS}/explore.html",
            caption="../report/explore.rst",
            category="Explore",
            labels={"page": "Explore the results"},
        ),
    log:
        f"{LOGS}/explore.log",
    benchmark:
        f"{BENCHMARKS}/explore.tsv"
    conda:
        "../../environment.yml"
    params:
        **job_files("explore", PLAN.settings.explore()),
    shell:
        f"{STAGE} explore {JOB} --out {{output.page:q}} &> {{log:q}}"


rule overview:
    """Write the pages on planned and measured cost, and on the environment."""
    input:
        records=RECORDS,
    output:
        cost=report(
            f"{RESULTS}/overview/cost.html",
            caption="../report/cost.rst",
            category="Plan and cost",
            labels={"page": "Plan and cost"},
        ),
        environment=report(
            f"{RESULTS}/overview/environment.html",
            caption="../report/environment.rst",
            category="Environment",
            labels={"page": "Environment"},
        ),
    log:
        f"{LOGS}/overview.log",
    benchmark:
        f"{BENCHMARKS}/overview.tsv"
    conda:
        "../../environment.yml"
    params:
        **job_files("overview", overview_settings(PLAN), forecast=PLAN.layout.forecast),
    shell:
        f"{STAGE} overview {JOB} --cost {{output.cost:q}} --environment {{output.environment:q}} &> {{log:q}}"


rule summary:
    """Write README.md with the findings and all results, and findings.txt for the first page of the report."""
    input:
        records=RECORDS,
        results=f"{RESULTS}/results.csv",
        differences=f"{RESULTS}/differences.csv",
        speedups=SPEEDUPS,
    output:
        readme=f"{RESULTS}/README.md",
        findings=PLAN.layout.findings,
    log:
        f"{LOGS}/summary.log",
    benchmark:
        f"{BENCHMARKS}/summary.tsv"
    conda:
        "../../environment.yml"
    params:
        **job_files("summary", summary_settings(PLAN), command=command(workflow.configfiles)),
    shell:
        f"{STAGE} summary {JOB} --out {{output.readme:q}} --findings {{output.findings:q}} &> {{log:q}}"
