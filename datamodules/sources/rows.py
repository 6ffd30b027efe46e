"""From the name of a source to its problems and training examples."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from decimal import Decimal
from typing import TypeVar

from lightning.pytorch.utilities import rank_zero_warn

from datamodules.sources.files import source_path
from datamodules.sources.masked import MASKED_COLUMNS, masked_example
from datamodules.sources.solutions import annotated_solution
from datamodules.sources.tables import READERS, Columns, Row, Table
from latent_tts.answers import parse_gold
from latent_tts.errors import UserError
from latent_tts.problems import Problem, ReasoningExample, problem_id_from_question

T = TypeVar("T")

HUB_TABLES = {
    "gsm8k": Table("gsm8k", Columns(), "openai/gsm8k", "main"),
    "gsm_hard": Table("gsm_hard", Columns("input", "target"), "reasoning-machines/gsm-hard", split="train"),
    "multiarith": Table("multiarith", Columns(answer="final_ans"), "ChilleD/MultiArith"),
    "gsm8k-aug": Table("gsm8k-aug", Columns(), "whynlp/gsm8k-aug"),
}
GSM_SYMBOLIC = "gsm-symbolic"
RESAMPLED = "resampled:"  # before the name of another source: its problems with other numbers


def find_table(
    source: str,
    split: str | None = None,
    hub_config: str | None = None,
    question_column: str | None = None,
    answer_column: str | None = None,
    steps_column: str | None = None,
) -> Table:
    """The table that a source names: one of HUB_TABLES, a local file, or a hub id `owner/name`."""
    known = HUB_TABLES.get(source)
    columns = known.columns if known else Columns()
    columns = Columns(
        question_column or columns.question, answer_column or columns.answer, steps_column or columns.steps
    )
    if known is not None:
        return Table(source, columns, known.hub_id, hub_config or known.hub_config, split or known.split)
    path = source_path(source)
    if path.is_file() or path.suffix.lower() in READERS:
        return Table(source, columns)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not path.exists():
        return Table(source, columns, source, hub_config, split or "test")
    raise UserError(
        f"source {source!r} is neither one of {', '.join([GSM_SYMBOLIC, *HUB_TABLES])}, nor a file "
        f"({', '.join(READERS)}), nor the id of a hub data set (owner/name)"
    )


class BadRowError(Exception):
    """One row that can't be used, in a sentence that names its place."""


class GoodRows(Iterable[T]):
    """What `convert` makes of a table's rows. A bad row stops the iteration, unless `skip_bad_rows`.

    `num_rows` and `bad_rows` (their sentences) tell of the last iteration. A table without any good row is an error.
    """

    def __init__(self, table: Table, convert: Callable[[Row, Columns], T], skip_bad_rows: bool = False) -> None:
        self.table, self.convert, self.skip_bad_rows = table, convert, skip_bad_rows
        self.num_rows = 0
        self.bad_rows: list[str] = []

    def __iter__(self) -> Iterator[T]:
        self.num_rows, self.bad_rows = 0, []
        first: Row | None = None
        for row in self.table.rows():
            self.num_rows += 1
            if first is None and row.error is None:
                first = row
                if not self.skip_bad_rows:
                    self.table.check_columns(row)
            try:
                converted = self._convert(row)
            except BadRowError as error:
                if not self.skip_bad_rows:
                    raise UserError(
                        f"{error}; mend it, or leave out such rows with --data.skip_bad_rows true"
                    ) from error
                self.bad_rows.append(str(error))
                continue
            yield converted
        if self.num_rows == len(self.bad_rows):
            if first is not None:
                self.table.check_columns(first)
            why = f"all its {self.num_rows} rows are bad, the first: {self.bad_rows[0]}" if self.num_rows else "no rows"
            raise UserError(f"{self.table.name!r} is an empty data set ({why}): name another source")

    def warn_of_bad_rows(self) -> None:
        """One warning, on the first process, where the last iteration left rows out."""
        if self.bad_rows:
            share = f"{len(self.bad_rows)} of {self.num_rows}"
            rank_zero_warn(f"{share} rows of {self.table.name!r} left out, the first: {self.bad_rows[0]}")

    def _convert(self, row: Row) -> T:
        if row.error is not None:
            raise BadRowError(f"{row.where}: the row {row.error}")
        return self.convert(row, self.table.columns)


def to_problem(row: Row, columns: Columns) -> Problem:
    """A problem with its id before repeats are counted; BadRowError where question or gold answer is missing."""
    question = to_question(row, columns)
    gold = parse_gold(_answer(row, columns))
    assert gold is not None
    return Problem(problem_id_from_question(question), question, gold)


def example_rows(table: Table, skip_bad_rows: bool = False) -> GoodRows[ReasoningExample | None]:
    """The training examples of a table, None for a row without steps; a file of masked problems is known by its columns."""
    first = next(table.rows(), None) if table.hub_id is None else None
    if first is not None and first.columns.keys() >= MASKED_COLUMNS:
        masked_table = replace(table, columns=Columns("Question", "Answer"))
        return GoodRows(masked_table, lambda row, _: masked_example(row.columns), skip_bad_rows)
    return GoodRows(table, to_example, skip_bad_rows)


def to_example(row: Row, columns: Columns) -> ReasoningExample | None:
    """A training example; None where its solution has no steps; BadRowError where question or answer is missing."""
    question, steps, answer = to_question(row, columns), row.columns.get(columns.steps), _answer(row, columns)
    if steps is None:
        solution = annotated_solution(answer)
        return None if solution is None else ReasoningExample(question, *solution)
    if isinstance(steps, str):
        steps = re.findall(r"<<.*?>>", steps) or steps.splitlines()
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise BadRowError(f"{row.where}: column {columns.steps!r} must hold a list of strings, not {_short(steps)}")
    steps = tuple(step.strip() for step in steps if step.strip())
    final = answer.rpartition("####")[2].strip().replace(",", "")
    return ReasoningExample(question, steps, final) if steps else None


def to_question(row: Row, columns: Columns) -> str:
    """The question's text; BadRowError where there is none."""
    question = row.columns.get(columns.question)
    if not isinstance(question, str) or not question.strip():
        raise BadRowError(
            f"{row.where}: column {columns.question!r} must hold the question's text, not {_short(question)}"
        )
    return question.strip()


def _answer(row: Row, columns: Columns) -> str:
    """The answer's text; the column may hold text or a number."""
    answer = row.columns.get(columns.answer)
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    is_text_or_number = isinstance(answer, str | int | float | Decimal) and not isinstance(answer, bool)
    if not is_text_or_number or parse_gold(str(answer)) is None:
        raise BadRowError(f"{row.where}: the answer {_short(answer)} in column {columns.answer!r} is no number")
    return str(answer)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def number_repeats(problems: Iterable[Problem]) -> Iterator[Problem]:
    """Gives the second problem with the same question the id suffix `-2`, the third `-3`, and so on."""
    seen: Counter[str] = Counter()
    for problem in problems:
        seen[problem.problem_id] += 1
        count = seen[problem.problem_id]
        problem_id = problem.problem_id if count == 1 else f"{problem.problem_id}-{count}"
        yield Problem(problem_id, problem.question, problem.gold)
