"""PATCH as a batch: calibrate -> prune -> learn -> evaluate -> tabulate for every run of a grid.

snakemake                                      the embedded default, config/demo.yaml
snakemake -n --configfile config/paper.yaml    the paper's grid, as a dry run
snakemake tables | figures | all               parts of it
"""

import os

from patch.pipeline.cli.messages import TargetNames, shorten_input_error

# Before the other imports, which may find a mistake in the file of a method.
logger.addFilter(shorten_input_error)

from patch.pipeline.config.load import DEFAULT_CONFIG, read_configuration, validate_experiment
from patch.pipeline.resources.cost import CostModel
from patch.pipeline.resources.limits import too_large
from patch.pipeline.resources.forecast import write_forecast
from patch.pipeline.resources.jobs import JobGraph
from patch.pipeline.runs.layout import STORE
from patch.pipeline.runs.learning_rates import far_rates
from patch.pipeline.reporting.escape import escape_label, escape_rst
from patch.pipeline.runs.plan import Plan
from patch.pipeline.cli.preflight import preflight
from patch.pipeline.reporting.experiment import describe_experiment, read_findings
from patch.pipeline.runs.stale import force
from patch.pipeline.stages import client
from patch.pipeline.stages.server import start_server

# Snakemake's own reader knows no `extends` and `KEY+`, and silently keeps the last of two equal keys.
config = read_configuration(workflow.configfiles or [DEFAULT_CONFIG], workflow.config_settings.config)
PLAN = Plan(validate_experiment(config))
# Jobs parse this file again, but must not read lm-eval's many files again.
if workflow.is_main_process:
    PLAN.store.check_tasks()
# For the first page of the report.
config["run"] = {name: escape_rst(text) for name, text in describe_experiment(PLAN).items()}
config["findings"] = [escape_rst(text) for text in read_findings(PLAN)]


# First page of `snakemake --report results/EXPERIMENT/report.zip`.
report: "workflow/report/overview.rst"


onstart:
    # Cluster jobs parse this file again, but must not repeat this.
    if workflow.is_main_process:
        graph = JobGraph.read(PLAN, workflow.dag)
        if workflow.non_local_exec:
            print(preflight(graph, workflow.nodes))
        write_forecast(PLAN.layout.forecast, graph)
    for job in workflow.dag.needrun_jobs():
        _ = job.params  # names the job's files, if nothing has asked for them yet
    JOB_FILES.write()
    if workflow.is_main_process and not workflow.non_local_exec and PLAN.short_jobs:
        os.environ[client.VARIABLE] = start_server()


onerror:
    print("Failed jobs: python -m patch status --configfile CONFIG")
    print("Tables of the finished runs: python -m patch show --partial --configfile CONFIG")


COST = CostModel(PLAN)
for line in [*too_large(COST), *far_rates(PLAN.grid)]:
    logger.warning(line)
RESULTS = PLAN.layout.root


include: "workflow/rules/common.smk"
include: "workflow/rules/fetch.smk"
include: "workflow/rules/calibrate.smk"
include: "workflow/rules/self_test.smk"
include: "workflow/rules/prune.smk"
include: "workflow/rules/learn.smk"
include: "workflow/rules/finetune.smk"
include: "workflow/rules/quantize.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/speedup.smk"
include: "workflow/rules/export.smk"
include: "workflow/rules/tabulate.smk"


rule all:
    """Request all tables, figures and pages."""
    default_target: True
    input:
        rules.tables.input,
        rules.figures.input,
        rules.explore.output,
        rules.overview.output,
        rules.summary.output,
        lambda _: force(workflow, PLAN, logger),


logger.addFilter(TargetNames(PLAN, [rule.name for rule in workflow.rules]))
