"""The Hugging Face hub: a model's config.json, and uploads.

The token is the hub library's own: HF_TOKEN of the environment, else what `hf auth login` left. It is never shown.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from troupe.errors import ConfigError
from troupe.files import read_json
from troupe.secrets import hide_login, public_text

TOKEN = "HF_TOKEN"


def find_token() -> str | None:
    """Return the token as the hub's library finds it; from now on it is masked like one of the environment."""
    from huggingface_hub import get_token

    token = get_token()
    if token:
        hide_login(TOKEN, token)
    return token


def require_token() -> None:
    """Raise ConfigError where there is no token, before anything expensive starts."""
    if not find_token():
        raise ConfigError(
            f"push needs a token that may write to the repository: {TOKEN} in the environment, or `hf auth login`; "
            "or leave push out"
        )


def upload(directory: Path, repository: str, *, private: bool) -> str:
    """Make the repository where there is none and upload the directory as one commit; the address of that commit."""
    from huggingface_hub import HfApi

    hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=find_token())
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=repository, folder_path=directory, commit_message=f"Export of {directory.name}"
        )
    except Exception as error:  # the hub's errors have no common base: network, rights, names
        raise ConfigError(
            f"{directory} is complete, but {repository} could not be written on the hub: "
            f"{public_text(str(error)).splitlines()[0]}; check the name and the token's rights, and upload the "
            "directory again"
        ) from None
    return str(commit.commit_url)


def hub_config(repository: str) -> dict[str, Any]:
    """Return the config.json of a model on the hub, or of the copy on this machine where the hub does not answer."""
    from huggingface_hub import hf_hub_download

    try:
        file = hf_hub_download(
            repository,
            "config.json",
            endpoint=os.environ.get("HF_ENDPOINT"),
            token=find_token(),
            etag_timeout=5,
        )
    except Exception as error:  # as above
        reason = public_text(str(error)).strip().splitlines()[0]
        raise ConfigError(
            f"{repository} cannot be read from the hub: {reason}; check the name, the network and the login "
            f"({TOKEN}, or `hf auth login`), or give a directory"
        ) from None
    return dict(read_json(Path(file)) or {})
