"""Sparse fine-tuning.

Inputs: a model, token sequences, and the mask and weights of a pruned run. Outputs:
results/<experiment>/finetuned/<model>/<run>.safetensors, which the evaluation and the export read, and a training curve.
"""


def finetune_inputs(wildcards):
    """Return the inputs of a job; temporary weights that are made again do not rerun it, since they are the same."""
    inputs = PLAN.finetune_inputs(run_of(wildcards))
    return inputs | {name: ancient(path) for name, path in inputs.items() if name == "weights"}


rule finetune:
    """Train the kept weights of a pruned run under its mask, all of them or by LoRA adapters."""
    input:
        unpack(finetune_inputs),
    output:
        finetuned=f"{RESULTS}/finetuned/{{model}}/{{finetuned}}.safetensors",
        curve=f"{RESULTS}/curves/{{model}}/{{finetuned}}.jsonl",
    log:
        f"{LOGS}/finetune/{{model}}/{{finetuned}}.log",
    benchmark:
        f"{BENCHMARKS}/finetune/{{model}}/{{finetuned}}.tsv"
    conda:
        "../../environment.yml"
    threads: lambda wildcards: COST.finetune(run_of(wildcards)).processes * PLAN.experiment.resources.threads
    resources:
        **needs(run_of, COST.finetune, DISK.finetune),
        **training_resources(COST.finetune),
    params:
        **training_files("finetune", PLAN.finetune_settings),
    shell:
        f"{STAGE} finetune {JOB} --finetuned {{output.finetuned:q}} --curve {{output.curve:q}}"
        " --processes {resources.processes} --nodes {resources.nodes} &> {log:q}"
