"""Options that are given on a command line beside others that leave them without effect: refused, with what to give instead.

Files of options are layers, and a later one may well leave an earlier one's without effect; what is typed is meant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands.explain import given_options
from datamodules.sources.catalogue import GSM_SYMBOLIC, RESAMPLED, known_set
from datamodules.sources.files import source_path
from datamodules.sources.masked import is_masked
from datamodules.sources.readers import read_rows
from latent_tts.errors import UserError

Options = Mapping[str, Any]
"""All options of a run by their dotted names, those of a module's class beside `model` and `data`."""


@dataclass(frozen=True)
class Rule:
    """Options that act only under a condition."""

    names: tuple[str, ...]
    acts: Callable[[Options], bool]
    otherwise: str
    """Why they do nothing where it does not hold, and what to give instead."""


def sources(options: Options, *names: str) -> list[str]:
    """The sources that some options name, `resampled:` aside; evaluations have one, trainings several."""
    found: list[str] = []
    for name in names:
        value = options.get(name)
        found += [value] if isinstance(value, str) else list(value or ())
    return [source.removeprefix(RESAMPLED) for source in found]


def any_of(judge: Callable[[str], bool], *names: str) -> Callable[[Options], bool]:
    """Whether a source that one of these options names is of some sort."""
    return lambda options: any(map(judge, sources(options, *names)))


def is_drawn(source: str) -> bool:
    """Whether the problems are generated."""
    return source == GSM_SYMBOLIC


def is_table(source: str) -> bool:
    """Whether the problems are rows of a table."""
    return not is_drawn(source)


def has_columns_to_name(source: str) -> bool:
    """Whether the problems are rows of a table whose columns are not known, as those of masked problems are."""
    path = source_path(source)
    if not is_table(source) or is_hub_set(source) or not path.exists():
        return is_table(source)
    try:
        first = next((row for row in read_rows(path) if row.error is None), None)
    except UserError:  # whoever needs the rows says what is wrong with them
        return True
    return first is None or not is_masked(first.columns)


def is_hub_set(source: str) -> bool:
    """Whether the problems come from the hub."""
    return is_table(source) and (
        known_set(source) is not None or (not source_path(source).exists() and not Path(source).suffix)
    )


def has_splits(source: str) -> bool:
    """Whether there may be several splits: of hub sets, of folders of files, and of generated problems."""
    return is_drawn(source) or is_hub_set(source) or source_path(source).is_dir()


_PROBLEMS = (
    Rule(
        ("data.size", "data.templates", "data.seed"),
        any_of(is_drawn, "data.source"),
        f"it is for {GSM_SYMBOLIC}, and other problems are taken as they are (--data.limit takes the first)",
    ),
    Rule(
        ("data.question_column", "data.answer_column", "data.skip_bad_rows"),
        any_of(is_table, "data.source"),
        f"it is for files and hub sets, and {GSM_SYMBOLIC} has no rows",
    ),
    Rule(
        ("data.hub_config",), any_of(is_hub_set, "data.source"), "it is for files and hub sets that have configurations"
    ),
    Rule(("data.split",), any_of(has_splits, "data.source"), "a file has no splits"),
)
_ANNOTATION = (
    Rule(
        ("model.last", "model.continue_uniform", "model.max_rows"),
        lambda options: options.get("model.num_continuations") != 0,
        "without continuations (--model.num_continuations 0) prefixes get no values",
    ),
)
_TRAINED_ON = ("data.train", "data.val")
_TRAINING = (
    Rule(
        ("data.templates",), any_of(is_drawn, *_TRAINED_ON), f"it is for {GSM_SYMBOLIC}, which is none of the sources"
    ),
    Rule(
        ("data.val_seed",),
        any_of(is_drawn, "data.val"),
        f"it is for {GSM_SYMBOLIC}, and other validation sets are as they are",
    ),
    Rule(
        ("data.fresh_per_epoch",),
        lambda options: (
            isinstance(options.get("data.train"), dict)
            or str(options.get("data.train")).startswith((RESAMPLED, GSM_SYMBOLIC))
        ),
        "it is for problems that are drawn or mixed, and these are as they are in every epoch",
    ),
    Rule(
        ("data.question_column", "data.steps_column", "data.answer_column", "data.skip_bad_rows"),
        any_of(is_table, *_TRAINED_ON, "data.exclude"),
        "it is for files and hub sets, which none of the sources is",
    ),
    Rule(
        ("data.question_column", "data.steps_column", "data.answer_column"),
        any_of(has_columns_to_name, *_TRAINED_ON, "data.exclude"),
        "the columns of masked problems are known, and every table is of such",
    ),
    Rule(("data.step_range",), any_of(is_table, "data.train"), f"it is for tables, and {GSM_SYMBOLIC} is none"),
    Rule(("data.train_split",), any_of(has_splits, "data.train"), "a file has no splits"),
    Rule(("data.val_split",), any_of(has_splits, "data.val"), "a file has no splits"),
    Rule(
        ("data.hub_config",),
        any_of(is_hub_set, *_TRAINED_ON, "data.exclude"),
        "it is for hub sets, which none of the sources is",
    ),
    Rule(
        ("data.val_size",),
        lambda options: options.get("data.val") is not None,
        "there is no validation (--data.val null)",
    ),
)
_REWARD_TRAINING = (
    Rule(
        ("data.val_share",),
        lambda options: options.get("data.val_folder") is None,
        "the problems to validate on are those of --data.val_folder",
    ),
    Rule(
        ("data.val_batch_size", "data.leave_out_uniform_val"),
        lambda options: options.get("data.val_folder") is not None or options.get("data.val_share") != 0,
        "there is no validation (--data.val_share 0)",
    ),
    Rule(
        ("model.targets",),
        lambda options: options.get("model.loss") == "contrastive",
        "it is for --model.loss contrastive",
    ),
)
RULES: dict[str, tuple[Rule, ...]] = {
    "ParallelTTSModule": _PROBLEMS,
    "RolloutAnnotationModule": (*_PROBLEMS, *_ANNOTATION),
    "ReasoningStepsDataModule": _TRAINING,
    "AnnotatedRolloutDataModule": _REWARD_TRAINING,
}
"""By the name of a module or data module that a command makes."""


def refuse_without_effect(given: Sequence[str], options: Options, classes: Sequence[str]) -> None:
    """Refuses options of a command line that would be accepted and do nothing.

    Args:
        given: The command line.
        options: All options of the run, by name.
        classes: Names of the classes that it makes.

    Raises:
        UserError: Names the first such option.
    """
    typed = {
        ".".join(part for part in one.path if part != "init_args"): one.value
        for one in given_options(given)
        if one.flag
    }
    for rule in (rule for name in classes for rule in RULES.get(name, ())):
        for name in rule.names:
            if name in typed and str(typed[name]).lower() not in ("null", "none", "false") and not rule.acts(options):
                raise UserError(f"--{name} {typed[name]} has no effect here: {rule.otherwise}.")
