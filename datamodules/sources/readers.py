"""Rows of files: JSON lines, a JSON list, CSV, TSV, Parquet, each compressed or not, and folders of such shards.

A row that can't be read is a `Row` with its error, so that a run can go on without it; a file that can't be read further is
a UserError. What `datasets` would read and this does not is refused by its name.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import math
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from latent_tts.errors import UserError


@dataclass(frozen=True)
class Row:
    """One row of a table: its columns, or why it has none, and where it stands, as in `test.jsonl, line 3`."""

    where: str
    columns: Mapping[str, Any]
    error: str | None = None


def read_rows(path: Path, split: str | None = None) -> Iterator[Row]:
    """The rows of a file, or of all files of a folder in the order of their names.

    Args:
        split: The split to take where the names of a folder's files say several, as in `train-00000.parquet`.

    Raises:
        UserError: It is no file of rows, or can't be read further.
    """
    for file in shards(path, split) if path.is_dir() else [path]:
        try:
            yield from _reader(file)(file)
        except UnicodeDecodeError as error:
            raise UserError(f"{str(file)!r} is not UTF-8 text ({error}): save it as UTF-8") from error
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise UserError(f"{str(file)!r} can't be read: {getattr(error, 'strerror', None) or error}") from error


def is_readable(path: Path) -> bool:
    """Whether a name is that of a file of rows."""
    return _format(path) in READERS


def shards(folder: Path, split: str | None = None) -> list[Path]:
    """The files of a folder and below it that make up one table, by name; hidden ones aside."""
    found = sorted(file for file in folder.rglob("*") if file.is_file() and is_readable(file))
    files = [file for file in found if not any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)]
    formats = Counter(map(_format, files))
    if len(formats) != 1:
        what = f"files of several kinds, {', '.join(formats)}" if formats else f"no file of rows ({', '.join(READERS)})"
        raise UserError(f"the folder {str(folder)!r} holds {what}: name the file or folder with the rows")
    return _of_one_split(folder, files, split)


def _of_one_split(folder: Path, files: list[Path], split: str | None) -> list[Path]:
    of_split: dict[str, list[Path]] = {}
    for file in files:
        of_split.setdefault(_split_of(file.relative_to(folder)), []).append(file)
    if len(of_split) == 1:
        return files
    split = None if split is None else _SPLITS.get(split.lower(), split)
    if split not in of_split:
        names = ", ".join(filter(None, of_split))
        raise UserError(f"the folder {str(folder)!r} holds the splits {names}: name one of them as split, or one file")
    return of_split[split]


def _split_of(file: Path) -> str:
    """The split that a file's name says, or that of a folder on the way to it; empty where none does."""
    for part in reversed(file.parts):
        word = _SPLIT_WORD.search(part.lower())
        if word is not None:
            return _SPLITS[word[0]]
    return ""


def _format(path: Path) -> str:
    """`.csv` of `a.csv` and of `a.csv.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _OPENERS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _reader(path: Path) -> "Callable[[Path], Iterator[Row]]":
    reader = READERS.get(_format(path))
    if reader is None or (_format(path) == ".parquet" and path.suffix.lower() in _OPENERS):
        raise UserError(
            f"{str(path)!r} is no file of rows: its name must end in one of {', '.join(READERS)}, "
            f"which {', '.join(_OPENERS)} may follow (but .parquet)"
        )
    return reader


def _open(path: Path) -> IO[str]:
    """Text of a file, unpacked; bytes that are no UTF-8 become surrogates, which `_checked` finds in their row."""
    packed = _OPENERS.get(path.suffix.lower())
    stream = packed(path) if packed is not None else path.open("rb")
    return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _read_jsonl(path: Path) -> Iterator[Row]:
    with _open(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                yield _object_row(where, _DECODER.decode(line.strip()))
            except json.JSONDecodeError as error:
                yield Row(where, {}, f"is no JSON ({error.msg} at column {error.colno})")
            except NamedTwiceError as error:
                yield Row(where, {}, str(error))
            except RecursionError:
                yield Row(where, {}, "is nested too deeply")


def _read_json(path: Path) -> Iterator[Row]:
    """A list of objects, decoded one by one, so that each is known by its line; or such a list under the key `data`."""
    with _open(path) as file:
        text = file.read()
    start = re.match(r'\s*(\{\s*"data"\s*:\s*)?\[', text)
    if start is not None:
        end = yield from _read_list(path, text, start.end())
        _check_rest(path, text, end, inside_object=start[1] is not None)
        return
    try:
        rows = _DECODER.decode(text) if text.lstrip().startswith("{") else None
    except NamedTwiceError as error:
        raise UserError(f"{path}: an object in it {error}") from error
    except (ValueError, RecursionError):
        rows = None
    if not isinstance(rows, dict) or not isinstance(rows.get("data"), list):
        raise UserError(
            f'{str(path)!r} must hold a list of rows, [{{...}}, ...], or {{"data": [{{...}}, ...]}}; '
            "for one object a line, call it .jsonl"
        )
    yield from (_object_row(f"{path}, row {number} of data", value) for number, value in enumerate(rows["data"], 1))


def _check_rest(path: Path, text: str, end: int, inside_object: bool) -> None:
    """Refuses what no reader would see behind a list of rows: a second list, or text that is no JSON."""
    try:
        if inside_object and "data" not in _DECODER.decode('{"": 0' + text[end:]):
            return
        is_read = not inside_object and not text[end:].strip()
    except (ValueError, RecursionError):
        is_read = False
    if not is_read:
        raise UserError(
            f"{path}, line {text.count(chr(10), 0, end) + 1}: more follows the list of rows, which would not be read: take it out"
        )


def _read_list(path: Path, text: str, position: int) -> Generator[Row, None, int]:
    """The rows of a list that begins at a position of a text; returns where it has ended."""
    line, counted_to, number = 1, 0, 0
    while (position := _skip_blanks(text, position)) < len(text) and text[position] != "]":
        line, counted_to, number = line + text.count("\n", counted_to, position), position, number + 1
        where = f"{path}, line {line} (row {number})"
        try:
            value, position = _DECODER.raw_decode(text, position)
            yield _object_row(where, value)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {error.lineno}: is no JSON ({error.msg} at column {error.colno})") from error
        except NamedTwiceError as error:
            position = _end_of_value(text, position)
            yield Row(where, {}, str(error))
        except RecursionError:
            position = _end_of_value(text, position)
            yield Row(where, {}, "is nested too deeply")
        position = _skip_blanks(text, position)
        if position < len(text) and text[position] == ",":
            position += 1
        elif position >= len(text) or text[position] != "]":
            raise UserError(f"{where}: no comma and no end of the list follows this row")
    if position >= len(text):
        raise UserError(f"{str(path)!r} ends before its list of rows does: it was cut off, get it again")
    return position + 1


def _skip_blanks(text: str, position: int) -> int:
    blank = re.compile(r"\s*").match(text, position)
    return blank.end() if blank else position


def _end_of_value(text: str, position: int) -> int:
    """Where a list or an object ends, found by its brackets."""
    depth = 0
    for token in re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL).finditer(text, position):
        depth += (token[0] in "[{") - (token[0] in "]}")
        if depth == 0:
            return token.end()
    return len(text)


def _integer(digits: str) -> int | float:
    """The integer, or infinity where it has more digits than Python reads."""
    try:
        return int(digits)
    except ValueError:
        return math.inf


class NamedTwiceError(ValueError):
    """An object that has a name more than once: which of the values is meant cannot be known."""


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise NamedTwiceError(f"has {next(name for name in names if names.count(name) > 1)!r} more than once")
    return row


_DECODER = json.JSONDecoder(parse_int=_integer, object_pairs_hook=_named_once)


def _object_row(where: str, value: Any) -> Row:
    return _checked(where, value) if isinstance(value, dict) else Row(where, {}, "is no object with named columns")


def _checked(where: str, columns: Mapping[str, Any]) -> Row:
    """The row, or what is wrong with its text: half a character pair, or bytes in another encoding than UTF-8."""
    for name, value in columns.items():
        try:
            json.dumps({name: value}, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return Row(where, {}, f"holds text that is no valid Unicode (UTF-8) in column {name!a}")
        except (RecursionError, ValueError):
            return Row(where, {}, f"holds a value that can't be written out in column {name!a}")
    return Row(where, columns)


def _read_csv(path: Path) -> Iterator[Row]:
    with _open(path) as lines:
        reader = csv.DictReader(lines, strict=True, delimiter="\t" if _format(path) == ".tsv" else ",")
        try:
            names = reader.fieldnames or []
            _named_once_each(path, names)
            for columns in reader:
                where = f"{path}, line {reader.line_num}"
                if None in columns or None in columns.values():
                    yield Row(where, {}, f"has another number of fields than the header's {len(names)}")
                else:
                    yield _checked(where, columns)
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: is no CSV ({error})") from error


def _named_once_each(path: Path, columns: Sequence[str]) -> None:
    if repeated := [name for name, count in Counter(columns).items() if count > 1]:
        raise UserError(f"{str(path)!r} has the column {repeated[0]!r} more than once: rename one of them")


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        file = pyarrow.parquet.ParquetFile(path)
        _named_once_each(path, file.schema_arrow.names)
        for batch in file.iter_batches(batch_size=1024):
            for columns in batch.to_pylist():
                number += 1
                yield Row(f"{path}, row {number}", columns)
    except pyarrow.ArrowException as error:
        raise UserError(f"{str(path)!r} is no readable parquet file: {str(error).splitlines()[0]}") from error


# As `datasets` knows them, by words that stand by themselves in a name.
_SPLITS = dict.fromkeys(("train", "training"), "train") | dict.fromkeys(
    ("test", "testing", "eval", "evaluation"), "test"
)
_SPLITS |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
_SPLIT_WORD = re.compile(rf"(?<![a-z0-9])(?:{'|'.join(sorted(_SPLITS, key=len, reverse=True))})(?![a-z0-9])")
READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
_OPENERS: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
