"""Tables of questions and answers: local files, folders of files, and sets on the Hugging Face hub."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from datamodules.sources.files import require_file
from datamodules.sources.masked import is_masked
from datamodules.sources.readers import Row, read_rows
from latent_tts.errors import UserError

_SECONDS = 30.0  # that the hub has to say which commit is the newest


@dataclass(frozen=True)
class Columns:
    """The names of a table's columns; a question may be joined from several. `steps` may be absent from the table."""

    question: tuple[str, ...] = ("question",)
    answer: str = "answer"
    steps: str = "steps"


@dataclass(frozen=True)
class Table:
    """A source of rows: local files, or a set on the hub where `hub_id` is set. `splits` are read one after the other.

    `known_sizes` are the numbers of rows that all of them together are known to have; empty where that is not known.
    """

    name: str
    columns: Columns
    hub_id: str | None = None
    hub_config: str | None = None
    splits: tuple[str, ...] = ()
    known_sizes: tuple[int, ...] = ()
    revision: str | None = None
    """Commit, tag or branch of a set on the hub; None takes its newest."""
    named: tuple[str, ...] = ()
    """Options that name columns for this table alone, and may not be idle."""

    @cached_property
    def commit(self) -> str | None:
        """The commit that a set on the hub is read at, in hex, found once; None for files, and where the hub does not say."""
        if self.hub_id is None:
            return None
        from huggingface_hub import HfApi

        try:
            return HfApi().dataset_info(self.hub_id, revision=self.revision, timeout=_SECONDS).sha
        except Exception:  # anything from OSError to errors of HTTP clients; what it means is said where rows are read
            return None

    def rows(self) -> Iterator[Row]:
        """Streams the rows; UserError where the table can't be read at all."""
        if self.hub_id is None:
            yield from read_rows(require_file(self.name), self.splits[0] if self.splits else None)
        else:
            for split in self.splits:
                yield from self._hub_rows(split)

    def _hub_rows(self, split: str) -> Iterator[Row]:
        import datasets

        try:
            revision = self.commit or self.revision
            pinned = {} if revision is None else {"revision": revision}
            stream = datasets.load_dataset(self.hub_id, self.hub_config, split=split, streaming=True, **pinned)
            # In a data loader's worker, plain iteration gives that worker's share of the shards; here each reads all.
            for number, batch in enumerate(stream.iter(batch_size=1), 1):
                yield Row(f"{self.hub_id} ({split}), row {number}", {name: cell[0] for name, cell in batch.items()})
        except Exception as error:  # the packages below raise anything from OSError to errors of their HTTP clients
            reason = (str(error).strip().splitlines() or [""])[0]
            name = self.hub_id if self.revision is None else f"{self.hub_id}@{self.revision}"
            raise UserError(
                f"data set {name!r}, split {split!r}, can't be read from the Hugging Face hub "
                f"({type(error).__name__}: {reason}): check id, split and network, or name a local file instead"
            ) from error

    def check_columns(self, row: Row) -> None:
        """UserError where a row, and so presumably the table, lacks a column, or has others than can be named."""
        if is_masked(row.columns):
            if self.named:
                raise UserError(
                    f"{self.name!r} is a table of masked problems, whose columns are known: {self.named[0]} would have no "
                    "effect, so leave it out"
                )
            return
        required = [("question_column", name) for name in self.columns.question]
        required.append(("answer_column", self.columns.answer))
        if self.columns.steps != Columns.steps:  # named by the user
            required.append(("steps_column", self.columns.steps))
        for option, column in required:
            if column not in row.columns:
                raise UserError(
                    f"{self.name!r} has no column {column!r}, only {sorted(map(str, row.columns))}: "
                    f"name one of these as {option}"
                )
