"""Strategies: ways from a problem to an answer, as configurations name them and as results are kept and shown.

A strategy is a name, the options that differ from its defaults, and a budget. Results carry these three; nothing is read back
from a name. Aggregations and searches are found in `latent_tts.aggregation.AGGREGATIONS` and `latent_tts.search.SEARCHES`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from latent_tts.aggregation import AGGREGATIONS, Aggregation
from latent_tts.errors import UserError
from latent_tts.search import SEARCHES, Search

Part = str | dict[str, Any]
"""An aggregation or a search by its name, or by `name` and its options, such as {name: best_of_n, reduction: mean}."""

Kind = Literal["answer", "coverage", "aggregation", "search"]
"""What a budget is: nothing for one answer a problem, k rollouts for coverage and aggregations, a search's own."""

_ALGORITHMS: list[type[Aggregation] | type[Search]] = [*AGGREGATIONS.values(), *SEARCHES.values()]
_LABELS = {"greedy": "greedy", "written": "written reasoning", "single": "single rollout", "coverage": "coverage"}
_LABELS |= {algorithm.family: algorithm.label for algorithm in _ALGORITHMS}

Made = TypeVar("Made")


@dataclass(frozen=True)
class Strategy:
    """One way to an answer, at one budget."""

    name: str
    """Of the algorithm, as options and registries name it."""
    options: tuple[str, ...] = ()
    """What differs from its defaults, a word each: `mean`, `t0.5`."""
    budget: str | None = None
    """How much it may spend: `16` rollouts, `4x4` beams and candidates; None for one answer a problem."""
    kind: Kind = "answer"

    @property
    def method(self) -> str:
        """The strategy whatever its budget, the key of its curve in results: `best_of_n_mean`."""
        return "_".join((self.name, *self.options))

    @property
    def key(self) -> str:
        """The key of its values in results: `best_of_n_mean@16`, `greedy`."""
        return self.method if self.budget is None else f"{self.method}@{self.budget}"

    def at(self, budget: str | int | None) -> Strategy:
        """The same strategy with another budget, or with none named."""
        return replace(self, budget=None if budget is None else str(budget))

    def label(self, joint: str = " (", closing: str = ")") -> str:
        """For people: `best-of-N @ 16 (mean)`; what differs from the defaults stands between `joint` and `closing`."""
        name = _LABELS.get(self.name, self.name.replace("_", " "))
        text = name if self.budget is None else f"{name} @ {self.budget}"
        return f"{text}{joint}{', '.join(self.options).replace('_', ' ')}{closing}" if self.options else text


GREEDY, WRITTEN, SINGLE = Strategy("greedy"), Strategy("written"), Strategy("single")
COVERAGE = Strategy("coverage", kind="coverage")


def of_aggregation(part: Aggregation, k: int | None = None) -> Strategy:
    """An aggregation of k rollouts."""
    return Strategy(part.family, part.options, None if k is None else str(k), "aggregation")


def of_search(search: Search) -> Strategy:
    """A search with its budget."""
    return Strategy(search.family, search.options, search.budget, "search")


# In metrics.json ----------------------------------------------------------------------------------------------------


def strategies_to_json(strategies: Iterable[Strategy]) -> list[dict[str, Any]]:
    """One entry for each method, with its budgets in order."""
    methods: dict[Strategy, list[str]] = {}
    for strategy in strategies:
        methods.setdefault(strategy.at(None), []).extend(() if strategy.budget is None else (strategy.budget,))
    return [
        {"key": one.method, "kind": one.kind, "name": one.name, "options": list(one.options), "budgets": budgets}
        for one, budgets in methods.items()
    ]


def strategies_from_json(entries: Sequence[Mapping[str, Any]]) -> list[Strategy]:
    """The inverse of `strategies_to_json`: a strategy for each budget."""
    return [
        Strategy(entry["name"], tuple(entry["options"]), budget, entry["kind"])
        for entry in entries
        for budget in entry["budgets"] or [None]
    ]


# From configurations ------------------------------------------------------------------------------------------------


def make_aggregations(parts: Sequence[Part] | None, scored: bool) -> list[Aggregation]:
    """Aggregations from their names and options; None stands for all that fit.

    Raises:
        UserError: An unknown name or option, the same name twice, or one that needs scores where nothing scores.
    """
    if parts is None:
        parts = [name for name, part in AGGREGATIONS.items() if part.by_default and (scored or not part.needs_scores)]
    made: list[Aggregation] = [make_part(part, AGGREGATIONS, "--model.aggregations") for part in parts]
    for part in made:
        if part.needs_scores and not scored:
            raise UserError(
                f"The aggregation {part.name} needs step scores: give --model.reward_model, or leave it out."
            )
    _check_distinct("aggregations", [of_aggregation(part) for part in made])
    return made


def make_searches(parts: Sequence[Part], scored: bool) -> list[Search]:
    """Searches from their names and options.

    Raises:
        UserError: An unknown name or option, the same search twice, or one that is guided where nothing scores.
    """
    made: list[Search] = [make_part(part, SEARCHES, "--model.search") for part in parts]
    if not scored and any(part.needs_scores for part in made):
        raise UserError(
            "A search needs a reward model to guide it: give --model.reward_model, or leave --model.search out."
        )
    _check_distinct("search", [of_search(part) for part in made])
    return made


def _check_distinct(option: str, strategies: Sequence[Strategy]) -> None:
    if len(set(strategies)) < len(strategies):
        raise UserError(f"--model.{option} names one twice: {', '.join(one.key for one in strategies)}.")


def part_of(algorithm: Aggregation | Search) -> dict[str, Any]:
    """Name and all options of an aggregation or search, from which `make_part` makes it again."""
    return {"name": algorithm.family} | vars(algorithm)


def make_part(part: Part, known: Mapping[str, type[Made]], option: str) -> Made:
    """One part from `name` or from {name: ..., its options}."""
    options = {"name": part} if isinstance(part, str) else dict(part)
    name = str(options.pop("name", None))
    if name not in known:
        raise UserError(f"{option} knows no {name!r}: choose from {', '.join(known)}.")
    try:
        return known[name](**options)
    except TypeError as error:
        raise UserError(f"{option}: {name} does not take these options: {error}.") from error
