"""A folder with a model goes to the hub: its card, written from the run, and the upload."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latent_tts.errors import UserError

CARD = "README.md"


def model_card(run: Mapping[str, Any], name: str) -> str:
    """The text of a model's card: what was trained, on what, how far, and what it reached; nothing that the run does not say.

    Args:
        run: The content of the training's run.json.
        name: OWNER/NAME.
    """
    settings = run.get("settings", {})
    said = {
        "training": str(settings.get("model.class_path", "")).rpartition(".")[2],
        "started from": settings.get("model.init_args.backbone"),
        "data": settings.get("data.init_args.source"),
        "optimizer steps": run.get("steps"),
        "epochs": run.get("epochs"),
        "ended": run.get("ended"),
        "code": run.get("git_commit"),
    }
    best = run.get("best")
    reached = (
        f"`{best['metric']}`: {best['value']:.4g}, the best on the validation problems." if best else "Not measured."
    )
    lines = [f"- {key}: {value}" for key, value in said.items() if value]
    parts = ["---\nlibrary_name: latent-tts\n---", f"# {name}", "\n".join(lines), "## Result", reached]
    if run.get("state") != "finished":
        parts.append("The training had not ended when this was exported.")
    return "\n\n".join(parts) + "\n"


def check_hub_name(name: str) -> None:
    """UserError where it is no OWNER/NAME."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"--push takes OWNER/NAME of a hub repository, got {name!r}.")


def push(folder: Path, name: str, private: bool = False) -> str:
    """Uploads a folder as a model; the address of the commit.

    Raises:
        UserError: The hub does not take it, or cannot be reached.
    """
    import requests
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export of a training"))
    except LocalTokenNotFoundError as error:
        raise UserError("The hub asks who you are: run `hf auth login`, or set HF_TOKEN.") from error
    except (HfHubHTTPError, requests.RequestException, OSError) as error:
        reason = str(error).strip().splitlines()
        raise UserError(f"The hub did not take {name}: {reason[0] if reason else type(error).__name__}.") from error


def listed(folder: Path) -> list[str]:
    """Files with their sizes, as `--dry_run` shows them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [f"{path.relative_to(folder).as_posix()} ({path.stat().st_size:,} bytes)" for path in files]
