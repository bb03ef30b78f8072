"""Uploads to the Hugging Face hub. The token is HF_TOKEN of the environment; it is looked for first and never shown."""

from __future__ import annotations

import os
from pathlib import Path

from core.errors import ConfigError
from core.secrets import public_text

TOKEN = "HF_TOKEN"


def require_token() -> None:
    """Raise ConfigError where there is no token, before anything expensive starts."""
    if not os.environ.get(TOKEN):
        raise ConfigError(
            f"push needs {TOKEN} in the environment, a token that may write to the repository; set it, or leave push out"
        )


def upload(directory: Path, repository: str, *, private: bool) -> str:
    """Make the repository where there is none and upload the directory as one commit; the address of that commit."""
    from huggingface_hub import HfApi

    hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ[TOKEN])
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=repository, folder_path=directory, commit_message=f"Export of {directory.name}"
        )
    except Exception as error:  # the hub's errors have no common base: network, rights, names
        raise ConfigError(
            f"{directory} is complete, but {repository} could not be written on the hub: {public_text(str(error)).splitlines()[0]}; "
            "check the name and the token's rights, and upload the directory again"
        ) from None
    return str(commit.commit_url)
