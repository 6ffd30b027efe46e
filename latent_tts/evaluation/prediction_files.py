"""The records of a run on disk: files that survive a kill.

A record is written with one `write` of one line. A kill can therefore leave at most one torn line at the end of a file:
readers (`latent_tts.evaluation.record_reading`) pass over it, and the next writer cuts it off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from latent_tts.errors import UserError
from latent_tts.evaluation.records import Record
from latent_tts.files.locks import lock

PREDICTIONS = "predictions"


def prediction_path(output: Path, rank: int) -> Path:
    return output / PREDICTIONS / f"rank-{rank:05d}.jsonl"


def prediction_files(output: Path) -> list[Path]:
    """The record files of all ranks of all earlier runs, by rank."""
    return sorted((output / PREDICTIONS).glob("rank-*.jsonl"))


def files_of_rank(output: Path, rank: int, world_size: int) -> list[Path]:
    """The file that a rank writes, there or not; rank 0 answers for those of ranks that no longer exist, too.

    So every file has one process that may change it and knows its size, whatever other machines see of it.
    """
    alive = [prediction_path(output, one) for one in range(world_size)]
    return [alive[rank], *(path for path in prediction_files(output) if rank == 0 and path not in alive)]


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
        self._file: BinaryIO | None = None

    def append(self, record: Record) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _locked(self.path)
        self._file.write(_line(record))

    def close(self, sync: bool = False) -> None:
        """Closes the file, where there is one.

        Args:
            sync: Whether to wait until the records are on the disk: other machines see them then.
        """
        if self._file is not None:
            if sync:
                os.fsync(self._file.fileno())
            self._file.close()
            self._file = None


def rewrite_records(path: Path, records: Iterable[Record]) -> None:
    """Puts other records in the place of a file's; a kill leaves the old ones or the new ones, never a part.

    Raises:
        UserError: Another process is writing the file.
    """
    with _locked(path):
        aside = path.with_name(f".{path.name}.aside")
        with aside.open("wb") as file:
            file.writelines(map(_line, records))
        os.replace(aside, path)


def _line(record: Record) -> bytes:
    return (json.dumps(record.to_json(), ensure_ascii=False) + "\n").encode()


def _locked(path: Path) -> BinaryIO:
    """A file open for appending, unbuffered, which no other process may write meanwhile."""
    file: BinaryIO = path.open("ab", buffering=0)
    if not lock(file):
        file.close()
        raise UserError(f"Another run is writing {path}: wait for it, or use another --output.")
    return file
