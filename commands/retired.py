"""Options of earlier versions that old command lines still give: said to have no effect, and passed over."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from commands.ranks import rank

RETIRED = {"--model.num_bootstrap": "intervals are closed forms now (docs/strategies.md)"}


def without_retired(args: Sequence[str]) -> list[str]:
    """A command line without its retired options and their values; each is named on stderr with the reason."""
    kept: list[str] = []
    given = iter(args)
    for word in given:
        option, equals, _ = word.partition("=")
        if option not in RETIRED:
            kept.append(word)
            continue
        if not equals:
            next(given, None)
        if rank() == 0:
            print(f"{option} has no effect any more: {RETIRED[option]}", file=sys.stderr, flush=True)
    return kept
