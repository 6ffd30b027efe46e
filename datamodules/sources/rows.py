"""From a table's rows to problems and training examples; what can't be used is named by its place."""

from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from typing import TypeVar

from datamodules.sources.masked import holds_mask, is_masked, masked_example, masked_question
from datamodules.sources.notices import notice
from datamodules.sources.readers import Row
from datamodules.sources.solutions import annotated_solution, split_steps
from datamodules.sources.tables import Columns, Table
from latent_tts.answers import parse_gold
from latent_tts.errors import UserError
from latent_tts.problems import Problem, ReasoningExample, problem_id_from_question

T = TypeVar("T")


class BadRowError(Exception):
    """One row that can't be used, in a sentence that names its place."""


class GoodRows(Iterable[T]):
    """What `convert` makes of a table's rows. A bad row stops the iteration, unless `skip_bad_rows`.

    `num_rows`, `bad_rows` (their sentences) and `ended` tell of the last iteration. A table without any good row is an error.
    """

    def __init__(self, table: Table, convert: Callable[[Row, Columns], T], skip_bad_rows: bool = False) -> None:
        self.table, self.convert, self.skip_bad_rows = table, convert, skip_bad_rows
        self.num_rows = 0
        self.bad_rows: list[str] = []
        self.ended = False

    def __iter__(self) -> Iterator[T]:
        self.num_rows, self.bad_rows, self.ended = 0, [], False
        first: Row | None = None
        for row in self.table.rows():
            self.num_rows += 1
            if first is None and row.error is None:
                first = row
                if not self.skip_bad_rows or is_masked(row.columns):
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
        self.ended = True

    def tell(self) -> None:
        """Says what a reader should know of the last iteration: rows left out, and another number of rows than is known."""
        if self.bad_rows:
            share = f"{len(self.bad_rows)} of {self.num_rows}"
            notice(f"{share} rows of {self.table.name!r} left out, the first: {self.bad_rows[0]}")
        known = self.table.known_sizes
        if self.ended and known and self.num_rows not in known:
            sizes = " or ".join(map(str, known))
            notice(
                f"{self.table.name!r} had {self.num_rows} rows, where {sizes} are known: compare with no published figure"
            )

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


def to_example(row: Row, columns: Columns) -> ReasoningExample | None:
    """A training example; None where its solution has no steps; BadRowError where question or answer is missing."""
    if is_masked(row.columns):
        return masked_example(row.columns)
    question, steps, answer = to_question(row, columns), row.columns.get(columns.steps), _answer(row, columns)
    if steps is None:
        solution = annotated_solution(answer)
        return None if solution is None else ReasoningExample(question, solution[0], _final(answer))
    if not isinstance(steps, str) and not (isinstance(steps, list) and all(isinstance(step, str) for step in steps)):
        raise BadRowError(f"{row.where}: column {columns.steps!r} must hold a list of strings, not {_short(steps)}")
    try:
        split = split_steps(steps)
    except ValueError as error:
        raise BadRowError(f"{row.where}: column {columns.steps!r} {error}") from error
    return ReasoningExample(question, split, _final(answer)) if split else None


def to_question(row: Row, columns: Columns) -> str:
    """The question's text, joined by blanks where it stands in several columns; BadRowError where there is none."""
    if is_masked(row.columns):
        try:
            return masked_question(row.columns)
        except (ValueError, IndexError) as error:
            raise BadRowError(f"{row.where}: the column Numbers does not fill in the question's masks") from error
    parts = [row.columns.get(name) for name in columns.question]
    for name, part in zip(columns.question, parts, strict=True):
        if not isinstance(part, str) or not part.strip():
            raise BadRowError(f"{row.where}: column {name!r} must hold the question's text, not {_short(part)}")
    question = " ".join(str(part).strip() for part in parts)
    if holds_mask(question):
        raise BadRowError(f"{row.where}: the question has masked numbers, and no column Numbers to fill them in")
    return question


def _answer(row: Row, columns: Columns) -> str:
    """The answer's text; the column may hold text or a number."""
    name = "Answer" if is_masked(row.columns) else columns.answer
    answer = row.columns.get(name)
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    is_text_or_number = isinstance(answer, str | int | float | Decimal) and not isinstance(answer, bool)
    if not is_text_or_number or parse_gold(str(answer)) is None:
        raise BadRowError(f"{row.where}: the answer {_short(answer)} in column {name!r} is no number")
    return str(answer)


def _final(answer: str) -> str:
    """The answer that a model is to write: the digits of the gold answer, or its value where it is not plain digits."""
    final = answer.rpartition("####")[2].strip().replace(",", "")
    try:
        float(final)
    except ValueError:
        return f"{parse_gold(answer):.12g}"
    return final


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
