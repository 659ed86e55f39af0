"""What all rules share: the stages' command, constraints on wildcards, look-ups in the plan.

The environment that the rules name is made before Snakemake starts, by conda or by `make` (see README.md).
"""

import re
import shlex

from patch.pipeline.runs.job_files import JobFiles

STAGE = "python -m patch.pipeline.stages"
# What a job is to do and reads; the rest of its command line are outputs.
JOB = "--settings {params.settings:q} --inputs {params.inputs:q}"
LOGS = f"{RESULTS}/logs"
BENCHMARKS = f"{RESULTS}/benchmarks"


def one_of(names):
    """Regular expression of exactly these names; matches nothing when there are none."""
    return "|".join(map(re.escape, sorted(set(names)))) or "(?!)"


def stored(folder, path_of, names):
    """Name in the store -> name in the configuration."""
    return {path_of(name).removeprefix(f"{STORE}/{folder}/"): name for name in names}


MODELS = PLAN.experiment.models
TRAINED = stored("models", PLAN.store.model_path, [n for n, m in MODELS.items() if m.source.kind == "train"])
FETCHED = stored("models", PLAN.store.model_path, [n for n, m in MODELS.items() if m.source.kind != "train"])
CORPORA = stored("corpora", PLAN.store.corpus_path, PLAN.experiment.corpora)
TOKENIZERS = stored("tokenizers", PLAN.store.tokenizer_path, TRAINED.values())
IMPORTS = PLAN.experiment.imports
MASKS = stored("imports", PLAN.store.mask_source, [n for n, mask in IMPORTS.items() if mask.source.kind == "hub"])
TASKS = {PLAN.store.tasks_path().rpartition("/")[2]: PLAN.experiment.evaluation.include_path}
RUNS = PLAN.grid.closure
MADE = PLAN.masks.made
JOB_FILES = JobFiles()


wildcard_constraints:
    trained=one_of(TRAINED),
    fetched=one_of(FETCHED),
    corpus=one_of(CORPORA),
    tokenizer=one_of(TOKENIZERS),
    calibration=one_of(key for key, windows in PLAN.windows.items() if windows.settings.kind == "calibration"),
    windows=one_of(key for key, windows in PLAN.windows.items() if windows.settings.kind != "calibration"),
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
    quantized=one_of(c.id for c in RUNS if c.quantization),
    run=one_of(c.id for c in RUNS),
    exported=one_of(c.id for c in PLAN.grid.runs if c.definition.stage != "none" and not c.quantization),


def run_of(wildcards):
    """The run that a job's wildcards name."""
    names = [
        wildcards.get(key) for key in ("run", "imported", "pruned", "updating", "learned", "quantized", "exported")
    ]
    return PLAN.grid.run(wildcards.model, next(name for name in names if name))


def statistics_cost(wildcards):
    """What a job needs that takes statistics of a dense model."""
    statistics = PLAN.statistics[wildcards.statistics]
    return COST.statistics(statistics.model, statistics.settings.gram)


def inputs_file(wildcards, input):
    """Return the path of the file with a job's named inputs."""
    return JOB_FILES.inputs(dict(input.items()))


def spare_option(run):
    """Return the option for the weights of a pruned run, if an evaluation or a quantization reads them."""
    return f"--spare {shlex.quote(PLAN.layout.spare_weights(run))}" if run in PLAN.updated_runs else ""


def figure_labels(model, figure):
    """How the report lists a figure."""
    return {"model": escape_label(MODELS[model].title), "figure": figure}
