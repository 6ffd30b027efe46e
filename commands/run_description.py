"""What a run was: its command, versions, commit, device and dates, for `run.json`."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

PACKAGES = ("torch", "lightning", "transformers", "torchmetrics", "numpy", "peft")
_ROOT = Path(__file__).resolve().parents[1]


def run_description(trainer: Trainer) -> dict[str, Any]:
    """The entries of `run.json` that are known when a run starts."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "git": git_commit(),
        "device": f"{type(trainer.accelerator).__name__.removesuffix('Accelerator')} on {platform.node()}",
        "processes": trainer.world_size,
        "precision": trainer.precision,
        "started": now(),
    }


def now() -> str:
    """Date and time with the zone."""
    return datetime.now(UTC).astimezone().isoformat(timespec="seconds")


def git_commit() -> str | None:
    """Commit of this project's checkout, with ``+changes`` where files differ from it; None outside of one."""
    try:
        done = [
            subprocess.run(["git", *words], cwd=_ROOT, capture_output=True, text=True, check=True, timeout=10).stdout
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return done[0].strip() + ("+changes" if done[1].strip() else "")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
