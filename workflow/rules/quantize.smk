"""Low-bit weights after pruning.

Inputs: a model, the mask and weights of a pruned run, calibration windows for low-rank adapters. Outputs: packed
weights and adapters, kept only until their run is evaluated.
"""


rule quantize:
    """Group AbsMax, without or with SLiM-LoRA."""
    input:
        unpack(lambda wildcards: PLAN.quantize_inputs(run_of(wildcards))),
    output:
        layers=temp(f"{PLAN.layout.scratch}/quantized/{{model}}/{{quantized}}.safetensors"),
    log:
        f"{LOGS}/quantize/{{model}}/{{quantized}}.log",
    benchmark:
        f"{BENCHMARKS}/quantize/{{model}}/{{quantized}}.tsv"
    conda:
        "../../environment.yml"
    threads: PLAN.experiment.resources.threads
    resources:
        gpus=lambda wildcards: COST.quantize(run_of(wildcards)).gpus,
        mem_mb=lambda wildcards: COST.quantize(run_of(wildcards)).mem_mb,
        runtime=lambda wildcards: COST.quantize(run_of(wildcards)).minutes,
    params:
        settings=lambda wildcards: JOB_FILES.settings("quantize", PLAN.quantize_settings(run_of(wildcards))),
        inputs=inputs_file,
    shell:
        f"{STAGE} quantize {JOB} --layers {{output.layers:q}} &> {{log:q}}"
