"""Uploading a folder to the Hugging Face hub, with the token that is set on this machine."""

from __future__ import annotations

from pathlib import Path


def check_hub(name: str) -> None:
    """Raise ValueError for a name that the hub does not allow, or if no token is set."""
    from huggingface_hub import get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
        if name.count("/") != 1:
            raise HFValidationError("it has no user or organisation")
    except HFValidationError as error:
        raise ValueError(f"{name!r} is not a name of a hub repository ({error}); wanted USER/NAME") from error
    if not get_token():
        raise ValueError(
            f"{name}: no token of the Hugging Face hub is set; `hf auth login` sets one, or HF_TOKEN=... "
            "(with the right to write, https://huggingface.co/settings/tokens)"
        )


def push_folder(folder: Path, name: str, *, private: bool) -> str:
    """Upload a folder as one commit to a model repository, creating it if needed; return its address.

    private: whether a new repository is private; an existing one does not change.

    Raises ValueError if the hub refuses the upload or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="in21k")
    try:
        address = api.create_repo(name, private=private, repo_type="model", exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, repo_type="model", commit_message="Upload with in21k")
    except Exception as error:  # of the hub, and of the HTTP library below it, which has changed before
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{name}: the upload failed ({reason}); {folder} is complete, so run the same command again"
        ) from error
    return str(address)
