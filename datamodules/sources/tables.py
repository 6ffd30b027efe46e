"""Tables of questions and answers: rows of local files and of sets on the Hugging Face hub, each with its place."""

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.sources.files import require_file
from latent_tts.errors import UserError


@dataclass(frozen=True)
class Row:
    """One row of a table: its columns, or why it has none, and where it stands, as in `test.jsonl, line 3`."""

    where: str
    columns: Mapping[str, Any]
    error: str | None = None


@dataclass(frozen=True)
class Columns:
    """The names of a table's columns; `steps` may be absent from the table."""

    question: str = "question"
    answer: str = "answer"
    steps: str = "steps"


@dataclass(frozen=True)
class Table:
    """A source of rows: a local file, or a set on the hub where `hub_id` is set."""

    name: str
    columns: Columns
    hub_id: str | None = None
    hub_config: str | None = None
    split: str = "test"

    def rows(self) -> Iterator[Row]:
        """Streams the rows; UserError where the table can't be read at all."""
        yield from read_file(self.name) if self.hub_id is None else _read_hub(self)

    def check_columns(self, row: Row) -> None:
        """UserError where a row, and so presumably the table, lacks a column."""
        required = {"question_column": self.columns.question, "answer_column": self.columns.answer}
        if self.columns.steps != Columns.steps:  # named by the user
            required["steps_column"] = self.columns.steps
        for option, column in required.items():
            if column not in row.columns:
                raise UserError(
                    f"{self.name!r} has no column {column!r}, only {sorted(map(str, row.columns))}: "
                    f"name one of these as {option}"
                )


def read_file(source: str) -> Iterator[Row]:
    """The rows of a .jsonl, .json, .csv or .parquet file."""
    reader = READERS.get(Path(source).suffix.lower())
    if reader is None:
        raise UserError(f"{source!r} is no file of rows: its name must end in one of {', '.join(READERS)}")
    path = require_file(source)
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise UserError(f"{str(path)!r} is not UTF-8 text ({error}): save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{str(path)!r} can't be read: {error.strerror or error}") from error


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                yield _object_row(where, json.loads(line))
            except json.JSONDecodeError as error:
                yield Row(where, {}, f"is no JSON ({error.msg} at column {error.colno})")


def _read_json(path: Path) -> Iterator[Row]:
    """A list of objects, decoded one by one, so that each is known by its line."""
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        raise UserError(
            f"{str(path)!r} must hold a list of rows, [{{...}}, ...]; for one object a line, call it .jsonl"
        )
    decoder, position, line, number = json.JSONDecoder(), text.index("[") + 1, 1, 0
    counted_to = 0
    while (position := _skip(text, position)) < len(text) and text[position] != "]":
        line, counted_to = line + text.count("\n", counted_to, position), position
        number += 1
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {error.lineno}: is no JSON ({error.msg} at column {error.colno})") from error
        yield _object_row(f"{path}, line {line} (row {number})", value)
        position = _skip(text, position)
        if position < len(text) and text[position] == ",":
            position += 1
        elif position >= len(text) or text[position] != "]":
            raise UserError(f"{path}, line {line} (row {number}): no comma and no end of the list follows this row")
    if position >= len(text):
        raise UserError(f"{str(path)!r} ends before its list of rows does: it was cut off, get it again")


def _skip(text: str, position: int) -> int:
    blank = re.compile(r"\s*").match(text, position)
    return blank.end() if blank else position


def _object_row(where: str, value: Any) -> Row:
    return Row(where, value) if isinstance(value, dict) else Row(where, {}, "is no object with named columns")


def _read_csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            for columns in reader:
                where = f"{path}, line {reader.line_num}"
                if None in columns or None in columns.values():
                    yield Row(
                        where, {}, f"has another number of fields than the header's {len(reader.fieldnames or [])}"
                    )
                else:
                    yield Row(where, columns)
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: is no CSV ({error})") from error


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for columns in batch.to_pylist():
                number += 1
                yield Row(f"{path}, row {number}", columns)
    except pyarrow.ArrowException as error:
        raise UserError(f"{str(path)!r} is no readable parquet file: {error}") from error


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _read_hub(table: Table) -> Iterator[Row]:
    import datasets

    try:
        stream = datasets.load_dataset(table.hub_id, table.hub_config, split=table.split, streaming=True)
        for number, columns in enumerate(stream, 1):
            yield Row(f"{table.hub_id} ({table.split}), row {number}", columns)
    except Exception as error:  # the packages below raise anything from OSError to errors of their HTTP clients
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"data set {table.hub_id!r}, split {table.split!r}, can't be read from the Hugging Face hub "
            f"({type(error).__name__}: {reason}): check id, split and network, or name a local file instead"
        ) from error
