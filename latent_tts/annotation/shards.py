"""The files of a folder of annotations, read with pyarrow's own dataset reader.

`datasets.load_dataset("parquet")` reads these shards too, but not for a training: it first writes all of them out again as
Arrow files, some twice the size, into a cache outside the folder of the run, without looking at the checksums of the pages;
and its streaming mode gives rows in order, where a training wants batches of similar length. `pyarrow.dataset` reads one row
group at a time where it lies, checks every page, and writes nothing. Files are not mapped into memory: one that is cut off
while a training reads it would end the process by a signal, where this is an error that can be reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from latent_tts.annotation.records import DIGEST_KEY, table_schema
from latent_tts.annotation.settings import SETTINGS_FILE, AnnotationSettings
from latent_tts.errors import UserError

if TYPE_CHECKING:
    import pyarrow.dataset as ds

SHARD_PATTERN, INDEX_FILE = "shard-*.parquet", "index.json"


@cache
def _checked_parquet() -> ds.ParquetFileFormat:
    """Parquet whose pages are compared with their checksums."""
    import pyarrow.dataset as ds  # loads pandas: not for an option's help

    return ds.ParquetFileFormat(
        default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    )


def shard_paths(folder: Path) -> list[Path]:
    """The shards of a folder, by rank and number."""
    return sorted(folder.glob(SHARD_PATTERN))


def open_shard(path: Path, settings: AnnotationSettings) -> ds.ParquetFileFragment:
    """A shard, whose columns are those of the settings.

    Raises:
        UserError: It is damaged, lacks a column, or was made with other settings.
    """
    from pyarrow.fs import LocalFileSystem

    expected = table_schema(settings)
    try:
        shard = _checked_parquet().make_fragment(str(path), LocalFileSystem())
        found = shard.physical_schema
    except (pa.ArrowException, OSError) as error:
        raise damaged(path) from error
    if (found.metadata or {}).get(DIGEST_KEY) != settings.digest().encode():
        raise UserError(
            f"{path} was made with other settings than {SETTINGS_FILE} beside it says; move it out of the folder"
        )
    for name in expected.names:
        if name not in found.names or found.field(name).type != expected.field(name).type:
            what = f"holds no column {name}" if name not in found.names else f"holds {name} as {found.field(name).type}"
            raise UserError(
                f"{path} {what}, so it is no shard of annotations as it was written; delete it and annotate again"
            )
    return shard


def read_columns(path: Path, columns: Sequence[str], settings: AnnotationSettings) -> pa.Table:
    """Some columns of a whole shard.

    Raises:
        UserError: As `open_shard`.
    """
    shard = open_shard(path, settings)
    try:
        return shard.to_table(columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        raise damaged(path) from error


def damaged(path: Path) -> UserError:
    """What to do with a shard that cannot be read."""
    return UserError(
        f"{path} is truncated or damaged; delete it and run the annotation again, which redoes only its problems"
    )
