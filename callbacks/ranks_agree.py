"""The processes of a run see that they are about to do the same work, before any of them writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from latent_tts.backbones.fingerprint import fingerprint
from latent_tts.errors import UserError
from latent_tts.evaluation.ranks import Exchange, all_of
from latent_tts.evaluation.settings import flatten


class RanksAgree(Callback):
    """Refuses a run whose processes differ in options, weights or data.

    Each process reads its files and asks the hub by itself. A hub that moves in between, a folder that was not copied to every
    node, and other options on one of them would give results of a mixture. One process compares nothing.

    Args:
        options: Of the command, nested by name.
        exchange: How the processes hear of each other.
    """

    def __init__(self, options: Mapping[str, Any], exchange: Exchange = all_of) -> None:
        self.options, self.exchange = dict(options), exchange

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Data are read, and nothing is written yet.

        Raises:
            UserError: A process differs from rank 0; on all of them, in the same words.
        """
        if trainer.world_size > 1:
            refuse_difference(self.exchange(self._work(trainer, pl_module)))

    def _work(self, trainer: Trainer, module: LightningModule) -> dict[str, str]:
        """Name -> what this process works with."""
        options = {f"--{name}": str(value) for name, value in flatten(self.options).items()}
        data: Any = getattr(trainer, "datamodule", None)
        read = data.fingerprint() if hasattr(data, "fingerprint") else ""
        own = getattr(module, "fingerprint", None)  # an evaluation knows it: hashing a large model takes seconds
        weights = own() if own is not None else fingerprint(module.state_dict())[:16]
        return options | {"weights": weights, "data": read}


def refuse_difference(works: Sequence[Mapping[str, str]]) -> None:
    """UserError for the first rank that works with something else than rank 0."""
    first = works[0]
    for rank, work in enumerate(works):
        for name in {**first, **work}:
            here, there = first.get(name), work.get(name)
            if here != there:
                raise UserError(
                    f"Rank {rank} has another value of {name} than rank 0 ({there or 'none'} and {here or 'none'}): give all "
                    "processes the same options and files, and what is of the hub by its commit (NAME@COMMIT)."
                )
