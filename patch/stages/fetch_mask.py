"""Mask file from the hub."""

from __future__ import annotations

from pathlib import Path

from patch.errors import InputError
from patch.io import atomic_directory, write_json
from patch.specs import MaskSpec


def run(spec: MaskSpec, *, out: Path) -> None:
    """Download one file of a repository, with a receipt that names the commit."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    source = spec.source
    with atomic_directory(out) as folder:
        try:
            # A branch may move between two requests: the file is asked for by the commit.
            commit = HfApi().model_info(source.repo, revision=source.revision).sha
            hf_hub_download(source.repo, source.file, revision=commit, local_dir=folder)
        except GatedRepoError:
            raise InputError(
                f"{source.repo} is gated: accept its licence on the hub, then log in with `hf auth login`"
            ) from None
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise InputError(f"{source.file} of {source.repo} could not be downloaded: {error}") from None
        write_json(folder / "receipt.json", {"repo": source.repo, "file": source.file, "commit": commit})
