"""Test problems for evaluation, streamed in batches of similar length."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any, get_args

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from datamodules.batching import (
    batch_size_for_all,
    length_sorted_batches,
    rank_and_world_size,
    require_positive,
    require_workers,
    unchanged,
)
from datamodules.positions import rooms_of, too_long
from datamodules.sources.catalogue import GSM_SYMBOLIC, find_table, refuse_columns
from datamodules.sources.gsm_symbolic import GSMSymbolic, Split
from datamodules.sources.notices import notice
from datamodules.sources.repeats import first_of_each, number_repeats
from datamodules.sources.rows import GoodRows, to_problem
from latent_tts.backbones.fingerprint import fingerprint_of_texts
from latent_tts.engine.prompts import PromptRoom
from latent_tts.errors import UserError
from latent_tts.problems import Problem, question_key


class RolloutDataModule(LightningDataModule):
    """Problems to evaluate on, each with a stable id and its gold answer; a batch is a `list[Problem]`.

    The batches depend on the data, `batch_size` and `sort_window` alone, whatever the number of devices and workers:
    windows of the stream are sorted by length and cut, and batch i goes to device i % number of devices. Only where there
    would be fewer batches than devices are they made smaller, so that none is idle. No problem is repeated to even out the
    devices, so some may take one batch less.

    Local files are read through once before the run, so that a bad row, or a question too long for a model's positions, is
    found before a model thinks; after `setup`, `num_problems` is their number. Sets on the hub (of which only the first row is
    looked at, and `num_problems` is None) are checked row by row as they stream; what was left out of them is said at the end.

    Args:
        source: gsm-symbolic (generated offline), gsm8k, gsm_hard or multiarith (from the Hugging Face hub), the id of
            another hub set (owner/name), each with its revision behind it or not (gsm8k@COMMIT), or a local .jsonl, .json,
            .csv, .tsv or .parquet file, packed or not, or a folder of such shards. Names that begin with data/ lie in the
            folder that LATENT_TTS_DATA names (docs/data.md).
        batch_size: Problems in a batch of one device; a batch that does not fit in memory is cut in parts.
        limit: Number of problems to take, from the start; null takes all.
        leave_out_too_long: Whether problems that need more positions than a model has, with thoughts and answer, are counted and
            left out, instead of stopping the run.
        leave_out_repeats: Whether a question that comes more than once (case, blanks and apostrophes aside) is taken once.
        skip_bad_rows: Whether rows that can't be read are counted and left out, instead of stopping the run.
        sort_window: Number of problems that are sorted by length together; 1 keeps the order of the data.
        num_workers: Processes that read problems; 0 reads them in the main process.
        question_column: Column of the question, or several that are joined; null for the source's own, or `question`.
        answer_column: Column of the gold answer; null for the source's own, or `answer`.
        split: Split of a hub set, of a folder of shards, or of gsm-symbolic (train, validation or test); null for the
            source's own, or `test`.
        hub_config: Configuration of a hub set; null for the source's own.
        seed: Seed of the problems that gsm-symbolic draws.
        size: Number of problems that gsm-symbolic draws.
        templates: Template ids that gsm-symbolic draws from; null for all whose solutions parse.
    """

    def __init__(
        self,
        source: str = GSM_SYMBOLIC,
        batch_size: int = 8,
        limit: int | None = None,
        leave_out_repeats: bool = False,
        leave_out_too_long: bool = False,
        skip_bad_rows: bool = False,
        sort_window: int = 1024,
        num_workers: int = 0,
        question_column: str | list[str] | None = None,
        answer_column: str | None = None,
        split: str | None = None,
        hub_config: str | None = None,
        seed: int = 0,
        size: int = 500,
        templates: list[int] | None = None,
    ) -> None:
        super().__init__()
        require_positive(batch_size=batch_size, limit=limit, sort_window=sort_window, size=size)
        require_workers(num_workers)
        self.source, self.limit = source, limit
        self.leave_out_repeats, self.leave_out_too_long = leave_out_repeats, leave_out_too_long
        self.batch_size, self.sort_window, self.num_workers = batch_size, sort_window, num_workers
        self.num_problems: int | None = None
        self._is_done: Callable[[str], bool] | None = None
        self._rows: GoodRows[Problem] | None = None
        self._problems: Iterable[Problem]
        if source == GSM_SYMBOLIC:
            refuse_columns(hub_config=hub_config, question_column=question_column, answer_column=answer_column)
            self._problems = GeneratedProblems(GSMSymbolic(seed, templates, symbolic_split(split)), size)
        else:
            columns = {"question_column": question_column, "answer_column": answer_column}
            named = tuple(name for name, value in columns.items() if value is not None)
            table = replace(find_table(source, split, hub_config, question_column, answer_column), named=named)
            self._problems = self._rows = GoodRows(table, to_problem, skip_bad_rows)

    def problems(self) -> Iterator[Problem]:
        """The problems one by one, in the order of the data."""
        return iter(self._taken())

    def _taken(self) -> "_Taken":
        rooms = rooms_of(None if self.trainer is None else self.trainer.lightning_module)
        return _Taken(self._problems, self.limit, self.leave_out_repeats, rooms, self.leave_out_too_long, self._rows)

    def leave_out(self, is_done: Callable[[str], bool]) -> None:
        """Leaves out the batches whose problems are all done; the others stay whole: their composition must not change.

        Args:
            is_done: Whether the problem with an id needs no batch. It is asked when the data loader is gone through.
        """
        self._is_done = is_done

    @property
    def commit(self) -> str | None:
        """The commit that a set on the hub is read at; None for other sources, and where it is not known."""
        return None if self._rows is None else self._rows.table.commit

    def fingerprint(self) -> str:
        """16 hex characters of the problems as they are read, in their order; of a hub set, which is streamed, its commit."""
        if self._is_streamed():
            return self.commit or ""
        return fingerprint_of_texts(map(repr, self.problems()))

    def setup(self, stage: str) -> None:
        """Reads local files through, and the first row of a hub set; bad input ends here."""
        if self._is_streamed():
            next(self.problems())
            return
        taken = self._taken()
        golds: dict[str, set[float]] = {}
        self.num_problems = 0
        for self.num_problems, problem in enumerate(taken, 1):
            golds.setdefault(question_key(problem.question), set()).add(problem.gold)
        taken.tell(self.source)
        if not self.num_problems:
            raise UserError(f"no problem of {self.source!r} is left: each needs more positions than a model has")
        if repeats := self.num_problems - len(golds):
            at_odds = sum(len(found) > 1 for found in golds.values())
            notice(
                f"{repeats} of {self.num_problems} problems of {self.source!r} ask what another one asks"
                f"{f', {at_odds} of the questions with different gold answers' if at_odds else ''}; they count too "
                "(--data.leave_out_repeats true takes each once)"
            )

    def predict_dataloader(self) -> DataLoader[Any]:
        """This device's batches."""
        rank, world_size = rank_and_world_size()
        name = self.source if self._is_streamed() else None
        batches = ProblemBatches(
            self._taken(), self.batch_size, self.sort_window, rank, world_size, self._is_done, tells_of=name
        )
        return DataLoader(batches, batch_size=None, num_workers=self.num_workers, collate_fn=unchanged)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Batches are text: there is nothing to move."""
        return batch

    def _is_streamed(self) -> bool:
        return self._rows is not None and self._rows.table.hub_id is not None


class GeneratedProblems(Iterable[Problem]):
    """The first `size` problems of GSM-Symbolic."""

    def __init__(self, generator: GSMSymbolic, size: int) -> None:
        self.generator, self.size = generator, size

    def __iter__(self) -> Iterator[Problem]:
        return (self.generator.problem(i) for i in range(self.size))


class _Taken(Iterable[Problem]):
    """Of a source's problems those that are evaluated, repeats with ids of their own.

    A problem that is too long for one of `rooms` stops the iteration, or is left out and counted.
    """

    def __init__(
        self,
        problems: Iterable[Problem],
        limit: int | None,
        leave_out_repeats: bool,
        rooms: Sequence[PromptRoom] = (),
        leave_out_too_long: bool = False,
        rows: GoodRows[Problem] | None = None,
    ) -> None:
        self.source, self.limit, self.leave_out_repeats = problems, limit, leave_out_repeats
        self.rooms, self.leave_out_too_long, self.rows = rooms, leave_out_too_long, rows
        self.too_long: list[str] = []

    def __iter__(self) -> Iterator[Problem]:
        self.too_long = []
        problems = first_of_each(self.source) if self.leave_out_repeats else number_repeats(self.source)
        return islice(filter(self._fits, problems), self.limit)

    def tell(self, source: str) -> None:
        """Says what the last iteration left out."""
        if self.rows is not None:
            self.rows.tell()
        if self.too_long:
            notice(
                f"{len(self.too_long)} problems of {source!r} left out as too long; of the first, {self.too_long[0]}"
            )

    def _fits(self, problem: Problem) -> bool:
        reason = too_long(problem.question, self.rooms)
        if reason is not None and not self.leave_out_too_long:
            raise UserError(
                f"{reason}; leave out such problems with --data.leave_out_too_long true, or lower --model.max_answer_tokens"
            )
        if reason is not None:
            self.too_long.append(reason)
        return reason is None


class ProblemBatches(IterableDataset[list[Problem]]):
    """The batches of one rank (shared out over its data-loader workers), as RolloutDataModule describes them.

    Where `tells_of` names a source, the first process that has gone through it says what was left out: with workers, only
    they know.
    """

    def __init__(
        self,
        problems: Iterable[Problem],
        batch_size: int,
        sort_window: int = 1024,
        rank: int = 0,
        world_size: int = 1,
        is_done: Callable[[str], bool] | None = None,
        tells_of: str | None = None,
    ) -> None:
        self.tells_of = tells_of
        self.problems, self.batch_size, self.sort_window = problems, batch_size, sort_window
        self.rank, self.world_size, self.is_done = rank, world_size, is_done

    def __iter__(self) -> Iterator[list[Problem]]:
        worker = get_worker_info()
        worker_id, num_workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        problems = iter(self.problems)
        first = list(islice(problems, self.batch_size * self.world_size))  # enough to see whether there are few
        size = batch_size_for_all(len(first), self.batch_size, self.world_size)
        plan = length_sorted_batches(chain(first, problems), size, _num_characters, self.sort_window)
        of_this_rank = islice(plan, self.rank, None, self.world_size)
        left = (batch for batch in of_this_rank if not self._all_done(batch))
        yield from islice(left, worker_id, None, num_workers)  # of what is left: workers take turns, so the order stays
        if self.tells_of is not None and isinstance(self.problems, _Taken) and worker_id == 0:
            self.problems.tell(self.tells_of)

    def _all_done(self, batch: list[Problem]) -> bool:
        return self.is_done is not None and all(self.is_done(problem.problem_id) for problem in batch)


def symbolic_split(split: str | None) -> Split:
    """The split of gsm-symbolic that an option names.

    Raises:
        UserError: There is no such split.
    """
    if split is not None and split not in get_args(Split):
        raise UserError(f"gsm-symbolic has no split {split!r}: choose from {', '.join(get_args(Split))}")
    return split or "test"  # type: ignore[return-value]


def _num_characters(problem: Problem) -> int:
    return len(problem.question)
