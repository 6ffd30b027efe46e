"""How large the batches of a run are where memory decides (`--data.batch_size auto`): the same on every device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from lightning.pytorch import LightningModule

from latent_tts.engine.engine import RolloutEngine
from latent_tts.engine.memory import BatchBudget, free_bytes
from latent_tts.problems import Problem


def problems_per_batch(
    module: LightningModule, engine: RolloutEngine, num_rollouts: int, reserved_rows: int = 0
) -> Callable[[Problem], int]:
    """From the longest problem of a batch to the number of problems in it, by the device with the least room.

    Args:
        reserved_rows: Rows that are in memory whatever the batch.
    """
    trainer, free = module.trainer, free_bytes(module.device)
    if module.device.type == "cpu":
        free //= trainer.num_devices  # the processes of a machine share its memory
    # The plan of the batches is shared out over the devices, so all must make the same one.
    least = trainer.strategy.reduce(torch.tensor(float(free), device=module.device), reduce_op="min")
    return BatchBudget.of(engine, num_rollouts, int(least), reserved_rows).num_problems
