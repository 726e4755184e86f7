"""Uploading an export. Nothing here runs unless it is asked for."""

from __future__ import annotations

from pathlib import Path

from .integrity import check_export


def push_to_hub(export: Path, repo_id: str, *, private: bool = True, token: str | None = None) -> str:
    """Uploads a finished export, unchanged, and returns the address of the commit.

    Args:
        export: an exported directory or LoRA file.
        repo_id: `owner/name`; created if it does not exist.
        private: whether a new repository is private.
        token: see huggingface_hub; by default the one you are logged in with.

    Raises:
        ValueError: the export is damaged; its problems are listed.
    """
    from huggingface_hub import HfApi

    outcome = check_export(export)
    if not outcome.ok:
        raise ValueError(f"nothing uploaded from {export}: {'; '.join(outcome.problems)}")
    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    message = "Export by basinguard"
    if export.is_dir():
        return str(api.upload_folder(folder_path=export, repo_id=repo_id, commit_message=message))
    upload = api.upload_file
    return str(upload(path_or_fileobj=export, path_in_repo=export.name, repo_id=repo_id, commit_message=message))
