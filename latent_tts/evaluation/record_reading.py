"""Reading the records of a run: all of them, or spans that several processes share.

The files count as one text, one after the other, each as long as it was when its size was looked up: a process that reads while
another one writes, or from another machine, reads what was agreed on. A line belongs to the span of bytes in which it begins, so
that every line is in one span however the text is cut, and the spans in order give the records in order.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

from latent_tts.errors import UserError
from latent_tts.evaluation.ranks import Exchange, all_of
from latent_tts.evaluation.records import MalformedRecordError, Record

_BUFFER = 2**20  # bytes that are asked of the disk at a time
_LOOK_EVERY = 0.5  # seconds
SEEN_WITHIN = 90.0
"""Seconds until what another machine has written must be seen here: NFS looks names up anew after 60 at most by default."""


class Place(NamedTuple):
    """Where a record's line begins."""

    path: Path
    offset: int


@dataclass(frozen=True)
class RecordFiles:
    """Files of records, one after the other.

    Attributes:
        files: Each with the bytes of it that count.
    """

    files: tuple[tuple[Path, int], ...]

    @classmethod
    def of(cls, paths: Iterable[Path]) -> RecordFiles:
        """Files at the sizes that they have now; those that are missing are left out."""
        return cls(tuple((path, path.stat().st_size) for path in paths if path.exists()))

    def moved(self, folder: Path) -> RecordFiles:
        """The same files in another folder."""
        return RecordFiles(tuple((folder / path.name, size) for path, size in self.files))

    @property
    def num_bytes(self) -> int:
        """Of all files together."""
        return sum(size for _, size in self.files)

    def span(self, part: int, parts: int) -> range:
        """The bytes of one of several equal parts."""
        return range(self.num_bytes * part // parts, self.num_bytes * (part + 1) // parts)

    def read(self, span: range | None = None) -> Iterator[Record]:
        """The whole records whose lines begin in a span of bytes (by default in any), one at a time; see `read_places`."""
        return (record for record, _ in self.read_places(span))

    def read_places(self, span: range | None = None) -> Iterator[tuple[Record, Place]]:
        """Records with the places of their lines; a torn last line of a file is passed over.

        Raises:
            UserError: A line is no record, or is damaged and not the last one of its file, or a file has become shorter.
        """
        for path, size, inside in self._inside(range(self.num_bytes) if span is None else span):
            yield from _read_file(path, size, inside)

    def read_share(self, rank: int, world_size: int, way_out: str) -> Iterator[tuple[Record, Place]]:
        """A rank's share of the records with their places, when this process sees its bytes; see `wait_until_seen`."""
        span = self.span(rank, world_size)
        self.wait_until_seen(span, way_out)
        yield from self.read_places(span)

    def wait_until_seen(self, span: range, way_out: str, seconds: float = SEEN_WITHIN) -> None:
        """Waits until this process sees the files of a span as they are; on a shared disk another machine's come late.

        Args:
            span: Bytes of all files.
            way_out: What to do where that takes too long, as a clause.
            seconds: How long that is.

        Raises:
            UserError: A file is still not seen as it is.
        """
        until = time.monotonic() + seconds
        for path, size, _ in self._inside(span):
            while (seen := _seen_size(path)) != size:
                if time.monotonic() >= until:
                    raise UserError(f"{path} has {size} bytes, of which this process sees {seen}: {way_out}.")
                time.sleep(_LOOK_EVERY)

    def _inside(self, span: range) -> Iterator[tuple[Path, int, range]]:
        """The files that have bytes of a span, with their sizes and those bytes."""
        start = 0
        for path, size in self.files:
            if inside := range(max(span.start - start, 0), min(span.stop - start, size)):
                yield path, size, inside
            start += size


def agreed(mine: Iterable[Path], exchange: Exchange = all_of) -> RecordFiles:
    """The files that ranks answer for, by name, at the sizes that those see who may change them; a collective."""
    found = exchange(RecordFiles.of(mine).files)
    return RecordFiles(tuple(sorted(chain.from_iterable(found))))


def read_records(paths: Iterable[Path]) -> Iterator[Record]:
    """The whole records of files, one at a time; see `RecordFiles.read_places`."""
    return RecordFiles.of(paths).read()


def record_at(place: Place) -> Record:
    """The record whose line begins at a place.

    Raises:
        UserError: There is none.
    """
    with place.path.open("rb") as file:
        file.seek(place.offset)
        try:
            return Record.from_json(json.loads(file.readline()))
        except ValueError as error:
            raise _changed(place.path) from error


def _read_file(path: Path, size: int, inside: range) -> Iterator[tuple[Record, Place]]:
    with path.open("rb", buffering=_BUFFER) as file:
        offset = _first_line_from(file, inside.start)
        while offset < inside.stop:
            line = file.readline(size - offset)
            end = offset + len(line)
            if end < size and not line.endswith(b"\n"):
                raise _changed(path)
            try:
                row = _JSON.decode(line.decode())
            except (ValueError, RecursionError):
                if end < size:
                    raise _unreadable(path, offset, "is damaged") from None
                return
            yield _record(row, path, offset), Place(path, offset)
            offset = end


def _first_line_from(file: BinaryIO, start: int) -> int:
    """Goes to the first line that begins at a byte or after it; where that is."""
    if not start:
        return 0
    file.seek(start - 1)  # the byte before may end a line
    return start - 1 + len(file.readline())


def _record(row: Any, path: Path, offset: int) -> Record:
    try:
        return Record.from_json(row)
    except MalformedRecordError as error:
        raise _unreadable(path, offset, f"is no record ({error})") from error


def _unreadable(path: Path, offset: int, why: str) -> UserError:
    with path.open("rb") as file:
        before = iter(lambda: file.read(min(_BUFFER, offset - file.tell())), b"")
        number = 1 + sum(part.count(b"\n") for part in before)
    return UserError(
        f"Line {number} of {path} {why}: delete that line to have its problem run again, or start afresh with another "
        "--output."
    )


def _changed(path: Path) -> UserError:
    return UserError(f"{path} was changed while it was being read: run the same command again.")


def _seen_size(path: Path) -> int:
    """Bytes of a file as it is opened, which looks them up anew where `stat` may not; 0 for none."""
    try:
        with path.open("rb") as file:
            return file.seek(0, os.SEEK_END)
    except FileNotFoundError:
        return 0


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_JSON = json.JSONDecoder(parse_constant=_refuse_constant)
