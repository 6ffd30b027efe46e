"""Where results come from: the command, the versions, the commit, the machine."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "lightning", "transformers", "torchmetrics", "numpy")


def provenance(version_of_this: str, device: torch.device, precision: str, num_processes: int = 1) -> dict[str, Any]:
    """The part of `run.json` that says how a run was made."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "command": shlex.join(sys.argv),
        "versions": {"latent_tts": version_of_this, "python": platform.python_version()} | _versions(),
        "git_commit": git_commit(),
        "device": f"{device.type} ({name})",
        "num_processes": num_processes,
        "precision": precision,
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # installed in another way
            continue
    return found


def git_commit() -> str | None:
    """The commit of this code, with `-dirty` behind it where files differ; None outside a clone."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def now() -> str:
    """The date and time, to the second, in ISO 8601 with the time zone."""
    return datetime.now(UTC).astimezone().isoformat(timespec="seconds")


def seconds_worked(earlier: float, began: float) -> float:
    """Seconds that the processes of a run have worked, to the millisecond.

    Args:
        earlier: Those of the processes before this one.
        began: When this one began, by `time.monotonic`.
    """
    return round(earlier + time.monotonic() - began, 3)
