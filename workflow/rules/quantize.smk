"""Low-bit weights after pruning.

Inputs: a model, the mask and weights of a pruned run, calibration sequences for low-rank adapters. Outputs: packed
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
        **needs(run_of, COST.quantize, DISK.quantize),
    params:
        **job_files("quantize", lambda wildcards: PLAN.quantize_settings(run_of(wildcards))),
    shell:
        f"{STAGE} quantize {JOB} --layers {{output.layers:q}} &> {{log:q}}"
