"""Which trainers and data fit a training: what it decides for itself, or cannot do, is refused by name, never overwritten."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from latent_tts.errors import UserError
from lightning_modules.sharding import ShardedStrategy

SUPPORTED_PRECISIONS = ("32-true", "bf16-mixed")


@runtime_checkable
class TrainingData(Protocol):
    """What a training asks of its data module."""

    batch_size: int
    """Examples in a micro batch of one process."""


def data_of(trainer: Trainer) -> TrainingData:
    """The data module of a run.

    Raises:
        UserError: It is none that a training can use.
    """
    data: Any = getattr(trainer, "datamodule", None)
    if not isinstance(data, TrainingData):
        raise UserError(f"--data must be a data module with a batch_size, and {type(data).__name__} has none.")
    return data


def check_trainer_fits(trainer: Trainer, training: str, can_be_sharded: bool) -> None:
    """Refuses an option of the trainer that would have no effect, or spoil the loss.

    Args:
        trainer: Of the run.
        training: Name of the module.
        can_be_sharded: Whether its gradients and momenta can be shared out over processes.

    Raises:
        UserError: There is one.
    """
    if trainer.accumulate_grad_batches != 1:
        raise UserError(
            f"--trainer.accumulate_grad_batches {trainer.accumulate_grad_batches} is decided by the training: give "
            "--model.global_batch_size, the examples of an optimizer step, from which the accumulated batches follow."
        )
    if trainer.precision not in SUPPORTED_PRECISIONS:
        raise UserError(
            f"--trainer.precision {trainer.precision} does not fit this training: give 32-true or bf16-mixed."
        )
    if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy, ShardedStrategy)):
        raise UserError(
            f"--trainer.strategy {type(trainer.strategy).__name__} splits the model, which this training does not support: "
            "give auto, ddp or fsdp."
        )
    if isinstance(trainer.strategy, ShardedStrategy) and not can_be_sharded:
        raise UserError(f"--trainer.strategy fsdp does not fit {training} as it is set: give ddp.")
    if getattr(trainer, "overfit_batches", 0):
        raise UserError(
            "--trainer.overfit_batches would replace the order of the batches: give --trainer.limit_train_batches."
        )


def accumulated_batches(global_batch_size: int | None, micro_batch_size: int, world_size: int) -> int:
    """Micro batches per optimizer step.

    Raises:
        UserError: The global batch is not a whole number of micro batches on every process.
    """
    per_pass = micro_batch_size * world_size
    if global_batch_size is None:
        return 1
    if global_batch_size < 1 or global_batch_size % per_pass:
        raise UserError(
            f"global_batch_size {global_batch_size} is not a multiple of batch_size {micro_batch_size} x {world_size} "
            f"process(es) = {per_pass}; change one of them."
        )
    return global_batch_size // per_pass
