"""From the names and options of a configuration to the aggregations and searches of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from latent_tts.aggregation import Aggregation, BestOfN, Hybrid, MajorityVoting, WeightedVoting
from latent_tts.errors import UserError
from latent_tts.search import SEARCHES, Search

AGGREGATIONS: dict[str, Any] = {part().name: part for part in (MajorityVoting, BestOfN, WeightedVoting, Hybrid)}

Part = str | dict[str, Any]
"""An aggregation or a search by its name, or by `name` and its options, such as {name: best_of_n, reduction: mean}."""


def make_aggregations(parts: Sequence[Part] | None, scored: bool) -> list[Aggregation]:
    """Aggregations from their names and options; None stands for all that fit.

    Raises:
        UserError: An unknown name or option, the same name twice, or one that needs scores where nothing scores.
    """
    if parts is None:
        parts = [name for name, part in AGGREGATIONS.items() if scored or not part.needs_scores]
    made = [make_part(part, AGGREGATIONS, "aggregations") for part in parts]
    for part in made:
        if part.needs_scores and not scored:
            raise UserError(
                f"The aggregation {part.name} needs step scores: give --model.reward_model, or leave it out."
            )
    _check_distinct("aggregations", [part.name for part in made])
    return made


def make_searches(parts: Sequence[Part], scored: bool) -> list[Search]:
    """Searches from their names and options.

    Raises:
        UserError: An unknown name or option, the same search twice, or nothing that scores.
    """
    if parts and not scored:
        raise UserError(
            "A search needs a reward model to guide it: give --model.reward_model, or leave --model.search out."
        )
    made = [make_part(part, SEARCHES, "search") for part in parts]
    _check_distinct("search", [part.name for part in made])
    return made


def _check_distinct(option: str, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise UserError(f"--model.{option} names one twice: {', '.join(names)}.")


def make_part(part: Part, known: Mapping[str, Any], option: str) -> Any:
    """One part from `name` or from {name: ..., its options}."""
    options = {"name": part} if isinstance(part, str) else dict(part)
    name = str(options.pop("name", None))
    if name not in known:
        raise UserError(f"--model.{option} knows no {name!r}: choose from {', '.join(known)}.")
    try:
        return known[name](**options)
    except TypeError as error:
        raise UserError(f"--model.{option}: {name} does not take these options: {error}.") from error
