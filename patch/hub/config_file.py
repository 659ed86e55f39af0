"""Download of a model's configuration from the Hugging Face hub, without its weights."""

from __future__ import annotations

from pathlib import Path

from patch.errors import InputError
from patch.hub.errors import hub_errors


def download_config(repo: str, revision: str | None, folder: Path) -> str:
    """Download `config.json` of a model into a folder, and return the commit that it belongs to.

    Args:
        repo: model id, `owner/name`.
        revision: commit, branch or tag; None for the newest commit.
        folder: the folder.

    Raises:
        InputError: the hub does not answer, or has no such model, revision or file; the model is gated; or it has no
            safetensors weights.
    """
    from huggingface_hub import HfApi, hf_hub_download

    with hub_errors(f"config.json of {repo}{f' at {revision}' if revision else ''} cannot be fetched"):
        # A branch may move between two requests, so the download names the commit.
        found = HfApi().model_info(repo, revision=revision)
        hf_hub_download(repo, "config.json", revision=found.sha, local_dir=folder)
    if not any(file.rfilename.endswith(".safetensors") for file in found.siblings or ()):
        raise InputError(f"{repo} at {found.sha} has no .safetensors file; other weights can run code and are not read")
    return found.sha
