"""The records of a run on disk: files that survive a kill.

A record is written with one `write` of one line. A kill can therefore leave at most one torn line at the end of a file:
readers pass over it, and the next writer cuts it off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from latent_tts.errors import UserError
from latent_tts.evaluation.records import MalformedRecordError, Record
from latent_tts.files.locks import lock

PREDICTIONS = "predictions"


def prediction_path(output: Path, rank: int) -> Path:
    return output / PREDICTIONS / f"rank-{rank:05d}.jsonl"


def prediction_files(output: Path) -> list[Path]:
    """The record files of all ranks of all earlier runs, by rank."""
    return sorted((output / PREDICTIONS).glob("rank-*.jsonl"))


def read_records(paths: Iterable[Path], rank: int = 0, world_size: int = 1) -> Iterator[Record]:
    """The whole records of files, one at a time; a torn last line is passed over.

    Args:
        paths: The files.
        rank: With `world_size`, takes a share of every file's records: each is in the share of one rank.
        world_size: Number of shares.

    Raises:
        UserError: A line is no record, or is damaged and not the last one of its file.
    """
    for path in paths:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if (number - 1) % world_size != rank:
                    continue
                try:
                    row = _JSON.decode(line.decode())
                except (ValueError, RecursionError):
                    if file.read(1):
                        raise _unreadable(path, number, "is damaged") from None
                    break
                yield _record(row, path, number)


class RunRecords:
    """The records of a run, read from its files anew each time they are gone through.

    Args:
        output: The run's folder.
    """

    def __init__(self, output: Path) -> None:
        self.output = output

    def __iter__(self) -> Iterator[Record]:
        return read_records(prediction_files(self.output))


def record_at(path: Path, offset: int) -> Record:
    """The record whose line begins at a byte of a file.

    Raises:
        UserError: There is none.
    """
    with path.open("rb") as file:
        file.seek(offset)
        try:
            return Record.from_json(json.loads(file.readline()))
        except ValueError as error:
            raise UserError(f"{path} was changed while a run was reading it: run the same command again.") from error


def _record(row: Any, path: Path, number: int) -> Record:
    try:
        return Record.from_json(row)
    except MalformedRecordError as error:
        raise _unreadable(path, number, f"is no record ({error})") from error


def _unreadable(path: Path, number: int, why: str) -> UserError:
    return UserError(
        f"Line {number} of {path} {why}: delete that line to have its problem run again, or start afresh with another "
        "--output."
    )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_JSON = json.JSONDecoder(parse_constant=_refuse_constant)


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

    def close(self) -> None:
        if self._file is not None:
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
