"""What an evaluation keeps of a problem: a `Record`, one line of `predictions/*.jsonl`.

Metrics, tables and figures are functions of records: they can be made again without a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from types import UnionType
from typing import Any, Self, get_args, get_origin, get_type_hints

from latent_tts.answers import AnswerRule, answers_equal

SIGNIFICANT_DIGITS = 6
"""Measured floats (scores, diversity, metrics) are stored to this many significant digits, answers exactly."""

_LEFT_OUT = {"written": None, "latents_of": None, "finite": True}
"""Fields that a line leaves out where they have this value."""


class MalformedRecordError(ValueError):
    """A line that is no record; the message says where and why, for a reader that knows the file to complete."""


class _Row:
    """What every part of a record shares: its way to JSON."""

    def to_json(self) -> dict[str, Any]:
        """Keys in the order of the fields."""
        return {key: _plain(item) for key, item in vars(self).items() if _LEFT_OUT.get(key, _LEFT_OUT) != item}


@dataclass(frozen=True)
class AnswerRecord(_Row):
    """One decoded answer, and whether it is the gold one."""

    text: str
    answer: float | None
    correct: bool

    def judged(self, gold: float, rule: AnswerRule) -> Self:
        """The same answer, marked by another gold answer."""
        return replace(self, correct=answers_equal(self.answer, gold, rule))


@dataclass(frozen=True)
class RolloutRecord(AnswerRecord):
    """One of the N rollouts."""

    num_latents: int
    step_scores: tuple[float, ...] | None
    """One for each latent thought; None without a reward model, none for a rollout that is not finite."""
    finite: bool = True
    """False where NaN or infinity came up: the rollout then has no answer. Written where it is false."""


@dataclass(frozen=True)
class SearchRecord(AnswerRecord):
    """What a search, or a model that reasons in writing, found: with positions that went through models for it."""

    token_steps: int


@dataclass(frozen=True)
class TokenSteps(_Row):
    """Positions that went through a model for a problem."""

    rollouts: int
    """Through the backbone, for the N rollouts,"""
    rollouts_shared: int
    """of these once for all N."""
    reward: int
    """Through the reward model, for the scores of the N rollouts (0 without one),"""
    reward_shared: int
    """of these once for all N."""
    greedy: int


@dataclass(frozen=True)
class Record(_Row):
    """One problem of an evaluation."""

    problem_id: str
    question: str
    gold: float
    """What the answers were judged by."""
    greedy: AnswerRecord
    """The rollout without sampling."""
    rollouts: tuple[RolloutRecord, ...]
    search: dict[str, SearchRecord]
    """By `Strategy.key`, such as `beam_search@4x4`; empty without searches."""
    diversity: tuple[float | None, ...]
    """Mean pairwise cosine distance of the latents at each step, None where fewer than 2 rollouts have it."""
    token_steps: TokenSteps
    chosen: dict[str, float | None]
    """The answer of every aggregation, by `Strategy.method`."""
    written: SearchRecord | None = None
    """Of the model that reasons in writing, where one is given."""
    latents_of: str | None = None
    """The problem whose thoughts the answers were decoded after, where a control has shuffled them."""

    @classmethod
    def from_json(cls, line: Any) -> Record:
        """The record that a line of JSON stands for.

        Raises:
            MalformedRecordError: A key is missing or unknown, or a value is of another type, not finite, or does not fit.
        """
        kind: Any = cls
        record: Record = _parse(kind)(line)
        _check(record)
        return record

    def judged(self, gold: float, rule: AnswerRule) -> Record:
        """The same rollouts, marked by another gold answer; what was chosen does not depend on it."""
        return replace(
            self,
            gold=gold,
            greedy=self.greedy.judged(gold, rule),
            rollouts=tuple(rollout.judged(gold, rule) for rollout in self.rollouts),
            search={key: found.judged(gold, rule) for key, found in self.search.items()},
            written=None if self.written is None else self.written.judged(gold, rule),
        )


def significant(value: float, digits: int = SIGNIFICANT_DIGITS) -> float:
    """The value as it is stored: 0.123456789 -> 0.123457."""
    return float(f"{value:.{digits}g}")


def rounded(value: Any, digits: int = SIGNIFICANT_DIGITS) -> Any:
    """Every float of a nested structure as it is stored; tuples become lists, as JSON has no others."""
    if isinstance(value, float):
        return significant(value, digits)
    if isinstance(value, Mapping):
        return {key: rounded(item, digits) for key, item in value.items()}
    return [rounded(item, digits) for item in value] if isinstance(value, (list, tuple)) else value


def _plain(value: Any) -> Any:
    if isinstance(value, _Row):
        return value.to_json()
    if isinstance(value, tuple):
        return list(map(_plain, value)) if value and isinstance(value[0], _Row) else list(value)
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


# From JSON ----------------------------------------------------------------------------------------------------------


def _check(record: Record) -> None:
    """What types do not say."""
    if not record.rollouts:
        raise MalformedRecordError("rollouts: there is none")
    if len({rollout.step_scores is None for rollout in record.rollouts}) > 1:
        raise MalformedRecordError("rollouts: some have step_scores and some have none")
    for i, rollout in enumerate(record.rollouts):
        expected = rollout.num_latents if rollout.finite else 0
        if rollout.step_scores is not None and len(rollout.step_scores) != expected:
            raise MalformedRecordError(
                f"rollouts.{i}.step_scores: there are {len(rollout.step_scores)} for {expected} latent thoughts"
            )


@cache
def _parse(kind: Any) -> Callable[[Any], Any]:
    """The reader of JSON values of a type: of classes of this file, tuples, dictionaries, numbers, text, and None."""
    if is_dataclass(kind):
        return _parse_row(kind)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        some = _parse(next(one for one in inner if one is not type(None)))
        return lambda value: None if value is None else some(value)
    if origin is tuple:
        return _numbers if inner[0] is float else _parse_list(_parse(inner[0]))
    if origin is dict:
        return _parse_dict(_parse(inner[1]))
    return {float: _number, int: _count, bool: _flag, str: _text}[kind]


def _parse_row(kind: Any) -> Callable[[Any], Any]:
    hints = get_type_hints(kind)
    parts = {field.name: _parse(hints[field.name]) for field in fields(kind)}
    required = set(parts) - set(_LEFT_OUT)

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            raise MalformedRecordError(f"{_shown(value)} is no object")
        if not required <= value.keys() <= parts.keys():
            missing, unknown = sorted(required - value.keys()), sorted(value.keys() - parts.keys())
            raise MalformedRecordError(f"{missing[0]} is missing" if missing else f"{_shown(unknown[0])} is unknown")
        try:
            values = {key: part(value[key]) if key in value else _LEFT_OUT[key] for key, part in parts.items()}
        except MalformedRecordError:  # rare: gone through again to say where
            values = _each(value.items(), lambda key, item: parts[key](item))
        made = object.__new__(kind)
        vars(made).update(values)  # __init__ of a frozen dataclass takes longer than all the reading
        return made

    return read


def _parse_list(item: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if not isinstance(value, list):
            raise MalformedRecordError(f"{_shown(value)} is no list")
        try:
            return tuple([item(one) for one in value])
        except MalformedRecordError:  # rare: gone through again to say where
            return tuple(_each(enumerate(value), lambda _, one: item(one)).values())

    return read


_one_by_one = _parse_list(lambda value: _number(value))


def _parse_dict(item: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            raise MalformedRecordError(f"{_shown(value)} is no object")
        return _each(value.items(), lambda _, one: item(one))

    return read


def _each(items: Any, read: Callable[[Any, Any], Any]) -> dict[Any, Any]:
    """The items read one by one; an error says in which it was."""
    found: dict[Any, Any] = {}
    for key, item in items:
        try:
            found[key] = read(key, item)
        except MalformedRecordError as error:
            joint = "." if ": " in str(error) else ": "
            raise MalformedRecordError(f"{key}{joint}{error}") from None
    return found


def _numbers(value: Any) -> Any:
    """What `_parse_list(_number)` gives, at once where all are floats: most of a record are its scores."""
    if isinstance(value, list) and set(map(type, value)) == {float} and math.isfinite(sum(value)):
        return tuple(value)
    return _one_by_one(value)


def _number(value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            if math.isfinite(number := float(value)):
                return number
        except OverflowError:  # an integer beyond what a float holds
            pass
    raise MalformedRecordError(f"{_shown(value)} is no finite number")


def _count(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise MalformedRecordError(f"{_shown(value)} is no count")


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise MalformedRecordError(f"{_shown(value)} is neither true nor false")


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise MalformedRecordError(f"{_shown(value)} is no text")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
