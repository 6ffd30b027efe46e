"""What an evaluation leaves on disk, and whether a run may write, or go on, in a folder.

OUTPUT/predictions/rank-00000.jsonl    the records; see `latent_tts.evaluation.prediction_files`
OUTPUT/run.json                        how they were made, and all they depend on (`settings`): another run must agree to go on
OUTPUT/config.yaml                     the whole configuration, `evaluate.py --config OUTPUT/config.yaml` runs it again
OUTPUT/metrics.json, report.md, tensorboard/    functions of the records, rewritten when a run ends
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latent_tts.errors import UserError
from latent_tts.evaluation.prediction_files import prediction_files
from latent_tts.evaluation.settings import Settings, differences
from latent_tts.files.folders import why_unwritable
from latent_tts.files.whole import write_whole

RUN_FILE, CONFIG_FILE, METRICS_FILE = "run.json", "config.yaml", "metrics.json"


def check_folder(folder: Path, settings: Settings, output: Path | None = None) -> None:
    """Makes sure, before anything is written, that a run with these settings can write (or go on) in a folder.

    Args:
        folder: Where its records are.
        settings: Of the run.
        output: The folder as its user knows it.

    Raises:
        UserError: The folder cannot be written to, or holds results of other settings (named with both values).
    """
    output = output or folder
    require_writable(folder)
    run = read_run(folder)
    if run is None:
        if any(prediction_files(folder)):
            raise UserError(
                f"{output} holds predictions without {RUN_FILE}, so they cannot be gone on with: use another --output."
            )
        return
    changed = differences(run["settings"], json.loads(json.dumps(settings)))
    if changed:
        raise UserError(
            f"{output} holds results of another configuration: {'; '.join(changed)}. "
            f"Use another --output, or the same settings to go on{_or_read(output, run['settings'], settings)}."
        )


def _or_read(output: Path, stored: Settings, current: Settings) -> str:
    """How to have fewer rollouts than were drawn."""
    drawn, asked = stored.get("model.num_rollouts"), current.get("model.num_rollouts")
    if drawn is None or asked is None or asked >= drawn:
        return ""
    return f"; what {asked} of its rollouts reach is read by `python evaluate.py report {output} --ks {asked}`"


def require_writable(folder: Path, option: str = "--output") -> None:
    """Makes sure that files can be put in a folder, which may be missing.

    Args:
        folder: As its user knows it.
        option: What to name another one with.

    Raises:
        UserError: There is a file in its place or on the way to it, or the system lets nothing be written there.
    """
    if (reason := why_unwritable(folder)) is not None:
        raise UserError(f"Cannot write to {folder}: {reason}; name another folder with {option}.")


def read_run(output: Path) -> dict[str, Any] | None:
    """The content of run.json; None where there is none.

    Raises:
        UserError: It is damaged.
    """
    path = output / RUN_FILE
    if not path.exists():
        return None
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        run = None
    if not isinstance(run, dict) or not isinstance(run.get("settings"), dict):
        raise UserError(f"{path} is damaged: start afresh with another --output.")
    return run


def write_run(output: Path, run: Mapping[str, Any], rank: int = 0) -> None:
    """Writes run.json, whole; it holds at least `settings`."""
    write_whole(output / RUN_FILE, json.dumps(run, indent=2, ensure_ascii=False) + "\n", rank)
