"""Definitions that all rules share: the command of a stage, constraints on wildcards, resources and job files.

The environment is made before Snakemake starts, by conda or by `make` (see README.md).
"""

import re
from functools import cache

from patch.pipeline.resources.disk import DiskModel, Space
from patch.pipeline.resources.jobs import JOB_RESOURCES, download, job_resources
from patch.pipeline.runs.job_files import JobFiles

STAGE = "python -m patch.pipeline.stages"
# The files with settings and inputs; the rest of a command line names outputs.
JOB = "--settings {params.settings:q} --inputs {params.inputs:q} --log {log:q}"
LOGS = f"{RESULTS}/logs"
BENCHMARKS = f"{RESULTS}/benchmarks"


def one_of(names):
    """Return a regular expression that matches exactly these names."""
    return "|".join(map(re.escape, sorted(set(names)))) or "(?!)"


def stored(folder, path_of, names):
    """Return a map from names in the store to names in the configuration."""
    return {path_of(name).removeprefix(f"{STORE}/{folder}/"): name for name in names}


MODELS = PLAN.experiment.models
TRAINED = stored("models", PLAN.store.model_path, [n for n, m in MODELS.items() if m.source.kind == "train"])
FETCHED = stored("models", PLAN.store.model_path, [n for n, m in MODELS.items() if m.source.kind != "train"])
CORPORA = stored("corpora", PLAN.store.corpus_path, PLAN.experiment.corpora)
TOKENIZERS = stored("tokenizers", PLAN.store.tokenizer_path, TRAINED.values())
IMPORTS = PLAN.experiment.imports
MASKS = stored("imports", PLAN.store.mask_source, [n for n, mask in IMPORTS.items() if mask.source.kind == "hub"])
EVALUATION = PLAN.experiment.evaluation
TASKS = {PLAN.store.tasks_path().rpartition("/")[2]: EVALUATION.include_path} if EVALUATION.tasks else {}
RUNS = PLAN.grid.closure
MADE = PLAN.masks.made
JOB_FILES = JobFiles()
DISK = DiskModel(PLAN)


wildcard_constraints:
    trained=one_of(TRAINED),
    fetched=one_of(FETCHED),
    corpus=one_of(CORPORA),
    tokenizer=one_of(TOKENIZERS),
    calibration=one_of(key for key, sequences in PLAN.sequences.items() if sequences.settings.kind == "calibration"),
    sequences=one_of(key for key, sequences in PLAN.sequences.items() if sequences.settings.kind != "calibration"),
    made_tasks=one_of(name for name, path in TASKS.items() if path),
    hub_tasks=one_of(name for name, path in TASKS.items() if not path),
    model=one_of(MODELS),
    timed=one_of(PLAN.timed_models),
    statistics=one_of(PLAN.statistics),
    fetched_mask=one_of(MASKS),
    imported=one_of(c.id for c in MADE if c.definition.stage == "import"),
    pruned=one_of(c.id for c in MADE if c.definition.stage == "prune"),
    updating=one_of(c.id for c in PLAN.updated_runs),
    learned=one_of(c.id for c in MADE if c.definition.stage == "learn"),
    finetuned=one_of(c.id for c in RUNS if c.finetune),
    quantized=one_of(c.id for c in RUNS if c.quantization),
    run=one_of(c.id for c in RUNS),
    exported=one_of(c.id for c in PLAN.exported_runs),


def run_of(wildcards):
    """Return the run that a job's wildcards name."""
    keys = ("run", "imported", "pruned", "updating", "learned", "finetuned", "quantized", "exported")
    names = [wildcards.get(key) for key in keys]
    return PLAN.grid.run(wildcards.model, next(name for name in names if name))


def needs(subject, cost=None, space=None):
    """Return the resources of a rule: functions of the wildcards, which estimate the job of ``subject(wildcards)``."""

    @cache  # Snakemake asks for each resource of a job by itself.
    def estimate(made):
        used = space(made) if space else Space()
        return job_resources(cost(made) if cost else download(used), used)

    return {name: lambda wildcards, name=name: estimate(subject(wildcards))[name] for name in JOB_RESOURCES}


def job_files(stage, settings, **options):
    """Return the parameters of a rule: files with a job's settings, and with its named inputs and ``options``.

    A changed setting reruns the job. Options, which may be functions of the wildcards, do not: the result does not
    depend on them, and Snakemake compares no parameter that is a function of the input.
    """

    def inputs(wildcards, input):
        chosen = {name: value(wildcards) if callable(value) else value for name, value in options.items()}
        return JOB_FILES.inputs(dict(input.items()) | chosen)

    def content(wildcards):
        return JOB_FILES.settings(stage, settings(wildcards))

    return {"settings": content if callable(settings) else JOB_FILES.settings(stage, settings), "inputs": inputs}


def training_files(stage, settings, **options):
    """Return the parameters of a rule that trains, which include its checkpoints and the options of its trackers."""
    return job_files(
        stage,
        lambda wildcards: settings(run_of(wildcards)),
        checkpoints=lambda wildcards: PLAN.layout.checkpoints(run_of(wildcards)),
        report_to=PLAN.experiment.resources.report_to,
        tracker_folder=f"{STORE}/watch",
        run_name=lambda wildcards: "/".join((PLAN.experiment.experiment, wildcards.model, run_of(wildcards).id)),
        **options,
    )


def training_resources(cost):
    """Return the resources of a rule that trains in several processes and resumes."""
    return {
        "nodes": lambda wildcards: cost(run_of(wildcards)).nodes,
        "tasks_per_node": 1,
        "processes": lambda wildcards: cost(run_of(wildcards)).processes,
        "resumable": 1,
    }


def figure_labels(model, figure):
    """Return the labels of a figure in the report."""
    return {"model": escape_label(MODELS[model].title), "figure": figure}
