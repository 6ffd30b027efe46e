"""What an evaluation leaves on disk, the settings it was made with, and what a run with the same settings goes on from.

OUTPUT/predictions/rank-00000.jsonl    the records; see `latent_tts.evaluation.prediction_files`
OUTPUT/predictions/settings.json       everything the records depend on; another run must agree to go on in this folder
OUTPUT/config.yaml                     the whole configuration, `evaluate.py --config OUTPUT/config.yaml` runs it again
OUTPUT/metrics.json, report.md, tensorboard/    functions of the records, rewritten when a run ends
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from latent_tts.errors import UserError
from latent_tts.evaluation.prediction_files import (
    PREDICTIONS,
    cut_torn_line,
    prediction_files,
    prediction_path,
    read_records,
)
from latent_tts.evaluation.records import Record

Settings = dict[str, Any]
"""Flat: `model.num_rollouts` -> 16. Two runs may share a folder only when all of it agrees."""

_GROWING = ("data.limit", "data.size")  # settings that may grow from one run in a folder to the next
SETTINGS_FILE, CONFIG_FILE = "settings.json", "config.yaml"


# Settings -----------------------------------------------------------------------------------------------------------


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Settings:
    """Nested settings as one level of dotted names; lists stay values."""
    flat: Settings = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(stored: Settings, current: Settings) -> list[str]:
    """One phrase for each setting in which two runs differ, such as `model.seed was 0 and is 1 now`.

    A larger `data.limit` or `data.size` is no difference: the run goes on with the further problems.
    """
    keys = [*stored, *(key for key in current if key not in stored)]
    return [
        f"{key} was {_shown(stored.get(key))} and is {_shown(current.get(key))} now"
        for key in keys
        if stored.get(key) != current.get(key)
        and not (key in _GROWING and _at_least(current.get(key), stored.get(key)))
    ]


def _at_least(limit: int | None, other: int | None) -> bool:
    return limit is None or (other is not None and limit >= other)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def check_folder(output: Path, settings: Settings) -> None:
    """Makes sure, before anything is written, that a run with these settings can write (or go on) in a folder.

    Raises:
        UserError: The folder cannot be written to, or holds results of other settings (named with both values).
    """
    _check_writable(output)
    path = output / PREDICTIONS / SETTINGS_FILE
    if not path.exists():
        if any(prediction_files(output)):
            raise UserError(
                f"{output} holds predictions without {SETTINGS_FILE}, so they cannot be gone on with: use another --output."
            )
        return
    changed = differences(json.loads(path.read_text()), json.loads(json.dumps(settings)))
    if changed:
        raise UserError(
            f"{output} holds results of another configuration: {'; '.join(changed)}. "
            "Use another --output, or the same settings to go on."
        )


def _check_writable(output: Path) -> None:
    folder = output.absolute()
    while not folder.exists():
        if folder == folder.parent:
            break
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        what = "is not writable" if folder.is_dir() else "is a file"
        raise UserError(f"Cannot write the results to {output}: {folder} {what}; name another folder with --output.")


def write_settings(output: Path, settings: Settings, rank: int = 0) -> None:
    write_whole(output / PREDICTIONS / SETTINGS_FILE, json.dumps(settings, indent=2, ensure_ascii=False) + "\n", rank)


def write_whole(path: Path, text: str, rank: int = 0) -> None:
    """Writes a file so that a kill leaves the old text or the new one, never a part, whatever other ranks do meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{rank}")
    aside.write_text(text)
    os.replace(aside, path)


# Resuming -----------------------------------------------------------------------------------------------------------


class FinishedProblems:
    """The ids of the problems whose records are on disk: what a resumed run leaves out.

    Args:
        output: The run's folder.
        rank: This process' rank; with world_size, decides which files' records it counts in its metrics.
        world_size: Number of processes.
    """

    def __init__(self, output: Path, rank: int = 0, world_size: int = 1) -> None:
        files = prediction_files(output)
        for path in self._files_to_mend(files, output, rank, world_size):
            cut_torn_line(path)
        self.files_to_count = files[rank::world_size]  # every record is counted by exactly one rank
        self.ids: set[str] = set()
        for record in read_records(files):
            if record.problem_id in self.ids:
                raise UserError(
                    f"{output} holds problem {record.problem_id} twice: start afresh with another --output."
                )
            self.ids.add(record.problem_id)

    def __contains__(self, problem_id: str) -> bool:
        return problem_id in self.ids

    def __len__(self) -> int:
        return len(self.ids)

    def records_to_count(self) -> Iterator[Record]:
        """This rank's share of the records on disk, each record on one rank only."""
        return read_records(self.files_to_count)

    @staticmethod
    def _files_to_mend(files: Sequence[Path], output: Path, rank: int, world_size: int) -> list[Path]:
        """This rank's own file; rank 0 also mends those of ranks that no longer exist."""
        alive = [prediction_path(output, r) for r in range(world_size)]
        orphans = [path for path in files if path not in alive] if rank == 0 else []
        return [alive[rank], *orphans]
