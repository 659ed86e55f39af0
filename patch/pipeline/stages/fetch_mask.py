"""Download of a mask file from the hub."""

from __future__ import annotations

from pathlib import Path

from patch.files.io import atomic_directory, write_json
from patch.hub.errors import hub_errors
from patch.pipeline.runs.stage_settings import MaskSettings


def run(settings: MaskSettings, *, out: Path) -> None:
    """Download one file of a repository, with a receipt that names the commit."""
    from huggingface_hub import HfApi, hf_hub_download

    source = settings.source
    with atomic_directory(out) as folder:
        with hub_errors(f"{source.file} of {source.repo} cannot be fetched"):
            # A branch may move between two requests, so the download names the commit.
            commit = HfApi().model_info(source.repo, revision=source.revision).sha
            hf_hub_download(source.repo, source.file, revision=commit, local_dir=folder)
        write_json(folder / "receipt.json", {"repo": source.repo, "file": source.file, "commit": commit})
