"""What an evaluation leaves on disk: prediction records that survive a kill, and the settings they were made with.

    OUTPUT/predictions/rank-00000.jsonl    one line a problem, appended and flushed when the problem is finished
    OUTPUT/predictions/settings.json       everything the records depend on; another run must agree to go on in this folder
    OUTPUT/config.yaml                     the whole configuration, `evaluate.py --config OUTPUT/config.yaml` runs it again
    OUTPUT/metrics.json, report.md, tensorboard/    functions of the records, rewritten when a run ends

A record is written with one `write` of one line. A kill can therefore leave at most one torn line at the end of a file:
readers pass over it, and the next writer cuts it off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from latent_tts.errors import UserError

try:
    import fcntl
except ImportError:  # not a POSIX system: two runs in one folder at once go unnoticed there
    fcntl = None  # type: ignore[assignment]

Record = dict[str, Any]
"""One problem's line; `ParallelTTSModule.predict_step` says what it holds."""

Settings = dict[str, Any]
"""Flat: `model.num_rollouts` -> 16. Two runs may share a folder only when all of it agrees."""

SIGNIFICANT_DIGITS = 6
"""Measured floats (scores, diversity, metrics) are stored to this many significant digits, answers exactly."""

_GROWING = ("data.limit", "data.size")  # settings that may grow from one run in a folder to the next
PREDICTIONS, SETTINGS_FILE, CONFIG_FILE = "predictions", "settings.json", "config.yaml"


def significant(value: float, digits: int = SIGNIFICANT_DIGITS) -> float:
    """The value as it is stored: 0.123456789 -> 0.123457."""
    return float(f"{value:.{digits}g}")


def rounded(value: Any, digits: int = SIGNIFICANT_DIGITS) -> Any:
    """Every float of a nested structure as it is stored; tuples become lists, as JSON has no others."""
    if isinstance(value, float):
        return significant(value, digits)
    if isinstance(value, Mapping):
        return {key: rounded(item, digits) for key, item in value.items()}
    return [rounded(item, digits) for item in value] if isinstance(value, (list, tuple)) else value


# Records ------------------------------------------------------------------------------------------------------------


def prediction_path(output: Path, rank: int) -> Path:
    return output / PREDICTIONS / f"rank-{rank:05d}.jsonl"


def prediction_files(output: Path) -> list[Path]:
    """The record files of all ranks of all earlier runs, by rank."""
    return sorted((output / PREDICTIONS).glob("rank-*.jsonl"))


def read_records(paths: Iterable[Path]) -> Iterator[Record]:
    """The whole records of files, one at a time; a torn last line is passed over.

    Raises:
        UserError: A line that is not the last one of its file is damaged.
    """
    for path in paths:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield json.loads(line)
                except ValueError:
                    if file.read(1):
                        raise UserError(
                            f"Line {number} of {path} is damaged: delete that line to have its problem run again, "
                            "or start afresh with another --output."
                        ) from None


def cut_torn_line(path: Path) -> None:
    """Cuts off what a kill left of a last line; whole lines stay as they are."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        offset = whole = 0
        for line in file:
            offset += len(line)
            whole = offset if line.endswith(b"}\n") else whole  # a write lost with the power may leave zeros
        if whole < offset:
            file.truncate(whole)


class RecordWriter:
    """Appends records to one file: one line, one write, flushed. The file is made when the first record comes.

    Raises:
        UserError: Another process is writing the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None

    def append(self, record: Record) -> None:
        if self._file is None:
            self._file = self._open()
        self._file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> Any:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("ab", buffering=0)
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"Another run is writing {self.path}: wait for it, or use another --output.") from None
            except OSError:
                pass  # a file system without locks
        return file


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
            if record["problem_id"] in self.ids:
                raise UserError(
                    f"{output} holds problem {record['problem_id']} twice: start afresh with another --output."
                )
            self.ids.add(record["problem_id"])

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
