"""Training data for latent backbones: questions with written steps and answers, in batches of similar length."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from datamodules.batching import (
    GoesOnInEpoch,
    LengthGroupedBatches,
    LengthSortedBatches,
    require_positive,
    require_workers,
    unchanged,
)
from datamodules.examples import GeneratedExamples, ListedExamples
from datamodules.positions import PositionLimit
from datamodules.resampling.resampled import Resampled, templates_of
from datamodules.sources.catalogue import GSM_SYMBOLIC, RESAMPLED, find_table, known_set
from datamodules.sources.gsm_symbolic import GSMSymbolic
from datamodules.sources.notices import notice
from datamodules.sources.rows import GoodRows, to_example, to_question
from datamodules.sources.streams import ExampleStream, Mixture, ShuffledPasses
from datamodules.sources.tables import Table
from latent_tts.backbones.fingerprint import fingerprint_of_texts
from latent_tts.errors import UserError
from latent_tts.problems import ReasoningExample, question_key, question_keys

DEFAULT_TRAIN_SIZE = 10_000  # drawn problems in an epoch
DEFAULT_VAL_SIZE = 500


class ReasoningStepsDataModule(GoesOnInEpoch):
    """Questions with written steps and answers; a batch is a `list[ReasoningExample]`.

    A source is `gsm-symbolic` (generated offline), `gsm8k` (annotated solutions from the hub), `gsm8k-aug` (the hub's
    GSM8K-Aug), a hub id `owner/name`, or a local .jsonl, .json, .csv or .parquet file. A table has the columns
    question, steps and answer, or question and answer with GSM8K's `<<16-3=13>>` annotations in the answer; rows
    without steps are left out, and their number is logged. A .csv file of masked problems (MAWPS, ASDiv) is one too.

    `resampled:SOURCE` draws the problems of a source with other numbers, never a problem that differs from an excluded
    or a validation question in its numbers alone. For training several sources can be mixed, as in
    `{gsm8k: 1, "resampled:gsm8k": 2}`: of every three problems two are resampled.

    The training batches are a function of (seed, epoch), so a resumed run sees the same data, in the middle of an epoch too. The
    epoch is set by the Trainer. With several devices every device takes its own batches, and equally many.

    Args:
        train: Source of the training examples; gsm-symbolic, gsm8k, gsm8k-aug, a hub id, a file, resampled:SOURCE, or a
            mapping of several sources to whole-number weights.
        val: Source of the validation examples; null for none. Its questions are left out of training.
        batch_size: Examples in a batch of one device (gradient accumulation comes on top).
        seed: Seed of the training order, and of the problems that are drawn for training.
        train_size: Training examples; where they are drawn or mixed, in each epoch (10,000 if null), otherwise at most.
        val_size: Validation examples; for gsm-symbolic 500 if null, for other sources at most (all if null).
        fresh_per_epoch: Whether new training problems are drawn in every epoch, where they are drawn or mixed.
        val_seed: Seed of the problems that gsm-symbolic draws for validation.
        templates: Template ids that gsm-symbolic draws from; null for all whose solutions parse.
        exclude: Files and sets (such as gsm8k, for its test questions) whose questions are left out of training too; as
            those of validation they are known by their words, case, blanks and quotation marks aside.
        step_range: Fewest and most written steps of a training problem, which others are left out for; null takes all.
            For tables, as they are or resampled.
        question_column: Column of the question, where a source doesn't call it so; several are joined.
        steps_column: Column of the steps, where a source doesn't call it so.
        answer_column: Column of the answer, where a source doesn't call it so.
        train_split: Split of a hub set to train on.
        val_split: Split of a hub set to validate on.
        hub_config: Configuration of a hub set, where it has several.
        skip_bad_rows: Whether rows that can't be read are counted and left out, instead of stopping the run.
        pool_batches: Batches that are sorted by length together; more make batches purer, fewer make them more mixed.
        num_workers: Processes that prepare batches; 0 prepares them in the training process.
    """

    def __init__(
        self,
        train: str | dict[str, int] = GSM_SYMBOLIC,
        val: str | None = GSM_SYMBOLIC,
        batch_size: int = 32,
        seed: int = 0,
        train_size: int | None = None,
        val_size: int | None = None,
        fresh_per_epoch: bool = True,
        val_seed: int = 1,
        templates: list[int] | None = None,
        exclude: list[str] | None = None,
        step_range: tuple[int, int] | None = None,
        question_column: str | list[str] | None = None,
        steps_column: str | None = None,
        answer_column: str | None = None,
        train_split: str = "train",
        val_split: str = "validation",
        hub_config: str | None = None,
        skip_bad_rows: bool = False,
        pool_batches: int = 16,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = (
            True  # a small validation set may not reach every device
        )
        require_positive(batch_size=batch_size, pool_batches=pool_batches, train_size=train_size, val_size=val_size)
        require_workers(num_workers)
        self.train, self.val = train, val
        if isinstance(train, dict):
            require_positive(**{f"the weight of {source!r} in train": weight for source, weight in train.items()})
        self.batch_size, self.pool_batches, self.num_workers = batch_size, pool_batches, num_workers
        self.seed, self.val_seed, self.fresh_per_epoch = seed, val_seed, fresh_per_epoch
        self.train_size, self.val_size, self.templates = train_size, val_size, templates
        self.exclude, self.skip_bad_rows = tuple(exclude or ()), skip_bad_rows
        if step_range is not None and not 1 <= step_range[0] <= step_range[1]:
            raise UserError(f"step_range must name the fewest and the most steps, from 1 on, got {list(step_range)}.")
        self.step_range = step_range
        self.train_split, self.val_split, self.hub_config = train_split, val_split, hub_config
        self.question_column, self.steps_column, self.answer_column = question_column, steps_column, answer_column
        self.train_examples: ListedExamples | GeneratedExamples | None = None
        self.val_examples: ListedExamples | None = None
        self._tables: list[Table] = []

    @property
    def commits(self) -> dict[str, str]:
        """By source the commits that sets on the hub were read at, where they are known."""
        return {table.name: table.commit for table in self._tables if table.commit is not None}

    def fingerprint(self) -> str:
        """16 hex characters of the examples of tables, in their order; those that are drawn follow from the options."""
        listed = [part for part in (self.train_examples, self.val_examples) if isinstance(part, ListedExamples)]
        return fingerprint_of_texts(repr(example) for part in listed for example in part.examples)

    def setup(self, stage: str) -> None:
        """Reads the sources: validation for every stage, training only to fit."""
        if self.val is not None and self.val.startswith(RESAMPLED):
            raise UserError(f"{self.val!r} is for training: validate on a source of problems as they are")
        if self.val_examples is None and self.val == GSM_SYMBOLIC:
            self.val_examples = self._generate_val()
        elif self.val_examples is None and self.val is not None:
            self.val_examples = self._read(self.val, self.val_split, self.val_size, "validation", ())
        if stage != "fit" or self.train_examples is not None:
            return
        self.train_examples = self._training_examples(list(self._excluded_questions()))

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of similar length in an order of (seed, epoch)."""
        examples = self.train_examples
        assert examples is not None, "setup('fit') comes first"
        sampler = LengthGroupedBatches(
            num_items=len(examples),
            length=examples.length,
            batch_size=self.batch_size,
            seed=self.seed,
            pool_batches=self.pool_batches,
            fresh_per_epoch=self.fresh_per_epoch and isinstance(examples, GeneratedExamples),
        )
        sampler.enter_at(*self.entered)
        return self._loader(examples, sampler)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Every validation example exactly once, over all devices together; longest batches first."""
        if self.val_examples is None:
            return []
        lengths = [self.val_examples.length(i) for i in range(len(self.val_examples))]
        return self._loader(self.val_examples, LengthSortedBatches(lengths, self.batch_size))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Batches are text: there is nothing to move."""
        return batch

    def _loader(
        self, examples: ListedExamples | GeneratedExamples, sampler: LengthGroupedBatches | LengthSortedBatches
    ) -> DataLoader[Any]:
        # A sampler of index lists in place of a batch sampler: Lightning sets its epoch and puts no other on top.
        return DataLoader(
            examples, batch_size=None, sampler=sampler, num_workers=self.num_workers, collate_fn=unchanged
        )

    def _training_examples(self, excluded: Collection[str]) -> ListedExamples | GeneratedExamples:
        if isinstance(self.train, str) and self.train != GSM_SYMBOLIC and not self.train.startswith(RESAMPLED):
            return self._read(self.train, self.train_split, self.train_size, "training", question_keys(excluded))
        weights = {self.train: 1} if isinstance(self.train, str) else self.train
        streams = [self._stream(source, excluded) for source in weights]
        mixture = Mixture(streams, list(weights.values()))
        return GeneratedExamples(mixture, self.train_size or DEFAULT_TRAIN_SIZE, self._limit("training").check)

    def _stream(self, source: str, excluded: Collection[str]) -> ExampleStream:
        if source == GSM_SYMBOLIC:
            problems = GSMSymbolic(self.seed, self.templates, "train", question_keys(excluded))
            for i in range(min(self.train_size or DEFAULT_TRAIN_SIZE, 300)):  # enough to know the rate
                problems.example(i)
            _log_left_out("training", problems.num_left_out, problems.num_drawn)
            return problems
        if not source.startswith(RESAMPLED):
            examples = self._read(source, self.train_split, None, "training", question_keys(excluded)).examples
            return ShuffledPasses(examples, self.seed)
        source = source.removeprefix(RESAMPLED)
        table = self._table(source, self.train_split)
        rows = GoodRows(table, to_example, self.skip_bad_rows)
        limit = self._limit("training")
        wanted = (
            example for example in rows if example is not None and self._is_wanted(example) and limit.fits(example)
        )
        templates, left_out = templates_of(wanted, excluded)
        rows.tell()
        if not templates:
            raise UserError(f"no problem of {source!r} can be resampled ({_reasons(left_out)}): name another source")
        share = f"{len(templates)} of {rows.num_rows} problems of {source!r} can be resampled"
        notice(f"training data: {share}; of the others, {_reasons(left_out)}")
        return Resampled(templates, self.seed, question_keys(excluded))

    def _generate_val(self) -> ListedExamples:
        problems = GSMSymbolic(self.val_seed, self.templates, "validation")
        drawn = [problems.example(i) for i in range(self.val_size or DEFAULT_VAL_SIZE)]
        _log_left_out("validation", problems.num_left_out, problems.num_drawn)
        limit = self._limit("validation")
        examples = [example for example in drawn if limit.fits(example)]
        limit.warn([example for example in drawn if not limit.fits(example)], len(drawn), "validation")
        return ListedExamples(examples)

    def _read(self, source: str, split: str, size: int | None, name: str, excluded: Collection[str]) -> ListedExamples:
        rows, limit = GoodRows(self._table(source, split), to_example, self.skip_bad_rows), self._limit(name)
        examples: list[ReasoningExample] = []
        too_long: list[ReasoningExample] = []
        left_out: Counter[str] = Counter()
        for example in rows:
            reason = self._reason_against(example, name, excluded)
            if reason is not None or example is None:
                left_out[str(reason)] += 1
            elif not limit.fits(example):
                too_long.append(example)
            else:
                examples.append(example)
                if len(examples) == size:
                    break
        num_examples = rows.num_rows - len(rows.bad_rows)
        if left_out:
            share = f"{left_out.total()} of {num_examples} examples of {source!r} left out"
            notice(f"{name} data: {share}; of these, {_reasons(left_out)}")
        limit.warn(too_long, num_examples, name)
        rows.tell()
        _tell_of_repeats(examples, source, name)
        if not examples:
            raise UserError(
                f"{source!r} has no usable {name} example among its {rows.num_rows} rows (a row needs steps, or an "
                "answer with <<...>> annotations, a question that is not excluded, as many steps as step_range says, and to "
                "fit in the model's positions): name another source"
            )
        return ListedExamples(examples)

    def _reason_against(self, example: ReasoningExample | None, name: str, excluded: Collection[str]) -> str | None:
        """Why an example is left out, in the same words for all of its sort."""
        if example is None:
            return "no steps in its solution parse"
        if name == "training" and not self._is_wanted(example):
            return "it has fewer or more steps than step_range says"
        if excluded and question_key(example.question) in excluded:
            return "its question is one of validation or exclude (case, blanks and quotation marks aside)"
        return None

    def _limit(self, name: str) -> PositionLimit:
        """The positions of the model that is trained, where a trainer has one."""
        module = None if self.trainer is None else self.trainer.lightning_module
        return PositionLimit(module, validation=name == "validation")

    def _table(self, source: str, split: str | None) -> Table:
        return self._noted(
            find_table(source, split, self.hub_config, self.question_column, self.answer_column, self.steps_column)
        )

    def _noted(self, table: Table) -> Table:
        self._tables.append(table)
        return table

    def _is_wanted(self, example: ReasoningExample) -> bool:
        return self.step_range is None or self.step_range[0] <= len(example.steps) <= self.step_range[1]

    def _excluded_questions(self) -> Iterator[str]:
        if self.val_examples is not None:
            yield from (example.question for example in self.val_examples.examples)
        for file in self.exclude:
            table = self._noted(find_table(file)) if known_set(file) else self._table(file, None)
            yield from GoodRows(table, to_question, self.skip_bad_rows)


def _tell_of_repeats(examples: Sequence[ReasoningExample], source: str, name: str) -> None:
    if repeats := len(examples) - len(question_keys(example.question for example in examples)):
        notice(
            f"{name} data: {repeats} of {len(examples)} examples of {source!r} ask what another one asks (case, blanks and "
            "quotation marks aside); they count too"
        )


def _reasons(left_out: Counter[str]) -> str:
    return ", ".join(f"{count}: {reason}" for reason, count in left_out.most_common()) or "there is none"


def _log_left_out(name: str, num_left_out: int, num: int) -> None:
    share = num_left_out / max(num, 1)
    notice(f"{name} data: {num_left_out} of {num} solutions left out, no steps in them parse ({share:.1%})")
