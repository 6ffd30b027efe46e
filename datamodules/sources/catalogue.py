"""From the name of a source to its table: the sets that are known by name, files and folders, and hub ids."""

import re

from datamodules.sources.files import source_path
from datamodules.sources.readers import READERS, is_readable
from datamodules.sources.tables import Columns, Table
from latent_tts.errors import UserError

HUB_TABLES = {
    "gsm8k": Table("gsm8k", Columns(), "openai/gsm8k", "main", ("test",), (1319,)),
    # Its card says 1,319 rows; the published figures are of 1,318.
    "gsm_hard": Table(
        "gsm_hard", Columns(("input",), "target"), "reasoning-machines/gsm-hard", None, ("train",), (1318, 1319)
    ),
    # Its 600 problems stand in two splits, of 180 and 420; the published figures are of all.
    "multiarith": Table(
        "multiarith", Columns(answer="final_ans"), "ChilleD/MultiArith", None, ("test", "train"), (600,)
    ),
    "gsm8k-aug": Table("gsm8k-aug", Columns(), "whynlp/gsm8k-aug", splits=("test",)),
}
GSM_SYMBOLIC = "gsm-symbolic"
RESAMPLED = "resampled:"  # before the name of another source: its problems with other numbers


def find_table(
    source: str,
    split: str | None = None,
    hub_config: str | None = None,
    question_column: str | list[str] | None = None,
    answer_column: str | None = None,
    steps_column: str | None = None,
) -> Table:
    """The table that a source names: one of HUB_TABLES, a local file or folder, or a hub id `owner/name`.

    Names of sets on the hub can have a revision behind them: `gsm8k@COMMIT`, `owner/name@v1`.

    Raises:
        UserError: It names none of these.
    """
    name, _, revision = source.partition("@")
    known = known_set(source)
    columns = _columns(known.columns if known else Columns(), question_column, answer_column, steps_column)
    splits = () if split is None else (split,)
    if known is not None:
        sizes = () if splits or hub_config else known.known_sizes
        config = hub_config or known.hub_config
        return Table(source, columns, known.hub_id, config, splits or known.splits, sizes, revision or None)
    path = source_path(source)
    if path.exists() or is_readable(path):
        return Table(source, columns, splits=splits)
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", source):
        return Table(source, columns, name, hub_config, splits or ("test",), revision=revision or None)
    raise UserError(
        f"source {source!r} is neither one of {', '.join([GSM_SYMBOLIC, *HUB_TABLES])}, nor a file or folder of rows "
        f"({', '.join(READERS)}), nor the id of a hub data set (owner/name)"
    )


def known_set(source: str) -> Table | None:
    """The set that a name, with a revision or without, has in HUB_TABLES."""
    name, at, revision = source.partition("@")
    return None if at and not revision else HUB_TABLES.get(name)


def refuse_columns(**options: object) -> None:
    """UserError for an option of tables that is given with generated problems, where it would have no effect."""
    for name, value in options.items():
        if value is not None:
            raise UserError(f"{name} is for files and hub sets: {GSM_SYMBOLIC} has no columns and no configurations")


def _columns(known: Columns, question: str | list[str] | None, answer: str | None, steps: str | None) -> Columns:
    questions = (question,) if isinstance(question, str) else tuple(question or known.question)
    return Columns(questions, answer or known.answer, steps or known.steps)
