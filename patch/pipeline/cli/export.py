"""Export of a sparse model as a folder that transformers and vLLM load, with a model card.

The model is that of a finished run of a configuration (RUN), or of a mask file and a dense model (--model and --mask).
RUN and FOLDER come before --configfile and --config, which accept several values.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import get_args

from patch.errors import InputError, listed, print_result
from patch.hub.upload import check_upload, upload_model
from patch.pipeline.cli.messages import nearest
from patch.pipeline.cli.workflow import command_parser, read_plan
from patch.pipeline.reporting.experiment import command
from patch.pipeline.runs.plan import Plan
from patch.pipeline.runs.run import Run
from patch.pipeline.runs.stage_settings import Form, default_form

DTYPES = ("float32", "bfloat16", "float16")


def find_run(plan: Plan, name: str) -> Run:
    """Return the exportable run with the name `<model>/<run>`, or `<run>` if only one model has it.

    Raises:
        InputError: No run or several runs have this name.
    """
    runs = {f"{run.model}/{run.id}": run for run in plan.exported_runs}
    found = [full for full, run in runs.items() if name in (full, run.id)]
    if len(found) == 1:
        return runs[found[0]]
    if not runs:
        raise InputError(f"no run `{name}`; none is pruned or quantized")
    several = f"several models have a run `{name}`" if found else f"no run `{name}`"
    raise InputError(f"{several}; known:{nearest(name, found or runs)}")


def export_run(options: argparse.Namespace) -> None:
    """Export a run by the stage that the workflow uses.

    Raises:
        InputError: The run does not exist, one of its files is missing, or the stage fails.
    """
    plan = read_plan(options)
    run = find_run(plan, options.run)
    inputs = plan.inputs.export(run)
    if missing := [path for path in inputs.values() if not Path(path).exists()]:
        make = command(options.configfile, options.config, missing)
        raise InputError(f"{run.model}/{run.id} needs {listed(missing)}; to make what is missing: {make}")
    # Imported here because it imports torch.
    from patch.pipeline.stages.export import run_export

    paths = {name: Path(path) for name, path in inputs.items()} | {"record": Path(plan.layout.record(run))}
    run_export(plan.settings.export(run, options.form), **paths, out=Path(options.folder), name=options.push)


def export_files(options: argparse.Namespace) -> None:
    """Export a dense model under a mask file.

    Raises:
        InputError: A file is missing or damaged, the mask is of another model, or the model has no tokenizer.
    """
    # Imported here because they import torch.
    from transformers.utils.logging import disable_progress_bar

    from patch.inference.export import export_model
    from patch.masks.packed import load_masks
    from patch.models.loading import load_config, load_model, load_tokenizer, prunable_linears
    from patch.pipeline.reporting.model_card import file_facts, model_card
    from patch.pruning.weights import load_weights

    disable_progress_bar()
    dtype = options.dtype or str(load_config(options.model).dtype or "float32").removeprefix("torch.")
    if dtype not in DTYPES:
        raise InputError(f"--dtype {dtype}: give one of {', '.join(DTYPES)}")
    masks = load_masks(options.mask)
    form = options.form or default_form(masks.pattern, False)
    model, tokenizer = load_model(options.model, dtype), load_tokenizer(options.model)
    # In a folder without a tokenizer, transformers makes one of the model's family with an empty vocabulary.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise InputError(f"model folder {options.model}: it has no tokenizer; save the model's tokenizer there")
    if options.weights:
        load_weights(options.weights, prunable_linears(model))
    facts = file_facts(options.push or options.folder, form, Path(options.model), masks)
    meta = {key: masks.header[key] for key in ("settings", "digest") if key in masks.header}
    export_model(model, tokenizer, masks, options.folder, form, card=partial(model_card, facts), meta=meta)
    print(f"{form}, sparsity {masks.sparsity:.4f} in {len(masks.masks)} layers: {options.folder}")


def _report(options: argparse.Namespace) -> str:
    files = options.model, options.mask, options.weights, options.dtype
    if options.run is not None and any(files):
        raise InputError(f"RUN {options.run} has its own files; leave out --model, --mask, --weights and --dtype")
    if options.run is None and not (options.model and options.mask):
        raise InputError("give RUN and FOLDER, or FOLDER with --model and --mask; see --help")
    if options.push:
        check_upload(options.push)
    (export_run if options.run else export_files)(options)
    if options.push:
        return f"pushed: {upload_model(options.folder, options.push)}"
    return f"to serve it: vllm serve {shlex.quote(options.folder)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m patch export` and return the exit code."""
    parser = command_parser("export", __doc__)
    about = "run of the configuration, `MODEL/ID` or `ID`, such as qwen/patch-joint_hybrid_0.45_t16_s0"
    parser.add_argument("run", metavar="RUN", nargs="?", help=about)
    parser.add_argument("folder", metavar="FOLDER", help="output folder; must not exist or must be empty")
    forms = "`packed` (default for 2:4 and hybrid masks), `dense` with zeros and mask.npz, or `compressed-tensors` "
    parser.add_argument("--form", choices=get_args(Form), help=f"{forms} for 4-bit weights in other software")
    about = "upload the folder to this repository of the hub, `owner/name`; log in with `hf auth login` or set HF_TOKEN"
    parser.add_argument("--push", metavar="REPO", help=about)
    files = parser.add_argument_group("export without a configuration")
    files.add_argument("--model", metavar="FOLDER", help="the dense model and its tokenizer")
    files.add_argument("--mask", metavar="FILE", help="its masks, a .safetensors file of this software")
    files.add_argument("--weights", metavar="FILE", help="updated weights, for methods that update the kept weights")
    files.add_argument("--dtype", help=f"{', '.join(DTYPES)} (default: the dtype in the model's configuration)")
    # Unlike `parse_args`, it gives a single argument to FOLDER if options stand between.
    options = parser.parse_intermixed_args(arguments)
    return print_result(lambda: _report(options))
