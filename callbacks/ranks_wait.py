"""The processes of a prediction meet at its end, where one may be hours behind the others."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.constants import default_pg_timeout
from torch.distributed.distributed_c10d import _set_pg_timeout

LONGEST_JOB = timedelta(days=30)


class RanksWait(Callback):
    """Lets a rank that is done wait for the others as long as a job may last, unless the strategy was given a time.

    torch ends a wait after half an hour, and so the run: on nodes of unequal speed, or where a resumed run has most of what is
    left on one rank. A rank that has died is noticed by whoever has started it. The time in which ranks find each other stays.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        strategy: Any = trainer.strategy
        if trainer.world_size > 1 and getattr(strategy, "_timeout", None) == default_pg_timeout:
            _set_pg_timeout(LONGEST_JOB)
