"""Upload of a model folder to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from patch.errors import InputError
from patch.hub.errors import LOG_IN, hub_errors

# Files of an earlier upload that a model folder of other files must not be mixed with.
REPLACED = ["*.safetensors", "*.safetensors.index.json", "mask.npz"]


def check_upload(repo: str) -> None:
    """Check the name of a repository and the token before work that is lost if the upload fails.

    Args:
        repo: `owner/name`.

    Raises:
        InputError: the name is not valid, there is no token, the hub does not accept it, or the hub does not answer.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import validate_repo_id

    with hub_errors(f"nothing can be pushed to {repo}"):
        validate_repo_id(repo)
        if "/" not in repo:
            raise InputError(f"nothing can be pushed to {repo}: it must be `owner/name`, such as your-name/{repo}")
        if get_token() is None:
            raise InputError(f"nothing can be pushed to {repo}: there is no token; {LOG_IN}")
        HfApi().whoami()


def upload_model(folder: Path | str, repo: str) -> str:
    """Upload a model folder, with the token of the environment or of the hub's login.

    The repository is made if it does not exist. Weights of an earlier upload that are not in the folder are deleted.

    Args:
        folder: the folder.
        repo: `owner/name`.

    Returns:
        The address of the repository.

    Raises:
        InputError: the hub refuses the upload or does not answer.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with hub_errors(f"{folder} cannot be pushed to {repo}"):
        url = api.create_repo(repo, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message="Upload a sparse model",
            delete_patterns=REPLACED,
        )
    return str(url)
