"""What is said of a data set that is read: on stderr, once however many processes a run has."""

from __future__ import annotations

import sys

from lightning.pytorch.utilities.rank_zero import rank_zero_only


@rank_zero_only
def notice(sentence: str) -> None:
    """Says what a reader should know of the data, and need not mend."""
    print(sentence, file=sys.stderr, flush=True)
