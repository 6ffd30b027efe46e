"""Which of a run's processes this is, and what is said once however many there are."""

from __future__ import annotations

import os
import sys
import time

_RANK_ZERO_SECONDS = 3.0  # that another rank waits before it reports an error that rank 0 does not have


def rank() -> int:
    """This process' number among those of the run, as its starter (torchrun, srun, Lightning) has told it."""
    if "SLURM_PROCID" in os.environ and "RANK" not in os.environ and "LOCAL_RANK" not in os.environ:
        return int(os.environ["SLURM_PROCID"])
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))


def report_error(sentence: str, everywhere: bool = False) -> None:
    """Prints `error: sentence` on stderr, once however many processes a run has.

    Args:
        sentence: What to say.
        everywhere: Whether another rank than 0 says it too, where rank 0 does not end it before.
    """
    if rank() == 0:
        print(f"error: {sentence}", file=sys.stderr, flush=True)
    elif everywhere:
        time.sleep(_RANK_ZERO_SECONDS)
        print(f"error (rank {rank()}): {sentence}", file=sys.stderr, flush=True)
