"""Quantization after pruning.

Inputs: a model, the mask and weights of a pruned run, and calibration sequences for low-rank adapters. Outputs:
temporary low-bit weights and adapters, which the evaluation reads.
"""


rule quantize:
    """Quantize by group AbsMax, with or without SLiM-LoRA."""
    input:
        SELF_TEST,
        unpack(lambda wildcards: PLAN.inputs.quantize(run_of(wildcards))),
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
        **needs(run_of, COST.quantize, DISK.quantize),
    params:
        **job_files("quantize", lambda wildcards: PLAN.settings.quantize(run_of(wildcards))),
    shell:
        f"{STAGE} quantize {JOB} --layers {{output.layers:q}} &> {{log:q}}"
