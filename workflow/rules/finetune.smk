"""Sparse fine-tuning.

Inputs: a model, token sequences, the mask of a pruned run, and what its method prunes with if it updates the weights:
updated weights are temporary, and fine-tuning must not rerun when they are made again. Outputs:
results/<experiment>/finetuned/<model>/<run>.safetensors, which the evaluation and the export read, and a training curve.
"""


rule finetune:
    """Train the kept weights of a pruned run under its mask, all of them or by LoRA adapters."""
    input:
        SELF_TEST,
        unpack(lambda wildcards: PLAN.inputs.finetune(run_of(wildcards))),
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
        **training_files("finetune", PLAN.settings.finetune),
    shell:
        f"{STAGE} finetune {JOB} --finetuned {{output.finetuned:q}} --curve {{output.curve:q}}"
        " --processes {resources.processes} --nodes {resources.nodes} &> {log:q}"
