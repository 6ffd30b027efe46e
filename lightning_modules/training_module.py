"""What every training shares: an exactly scaled mean loss, AdamW and its learning rate, seeded draws, options in checkpoints."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from latent_tts.errors import UserError
from latent_tts.training.optimization import Optimization
from lightning_modules.checkpoint_reading import read_checkpoint
from lightning_modules.hyperparameters import restored
from lightning_modules.lookahead import Lookahead
from lightning_modules.sharding import ShardedStrategy, gather, gradient_norm, gradients, offer_sharding, release, shard
from lightning_modules.trainer_fit import accumulated_batches, check_trainer_fits, data_of

offer_sharding()


class TrainingModule(LightningModule):
    """A training. A subclass makes its model and says what the loss of a micro batch is, as a sum of terms and their number.

    The loss is the mean over all terms of the global batch: neither padding, nor the split into micro batches and processes,
    nor the number of accumulated batches changes it. Whatever a training step draws is a function of (seed, epoch, batch, rank).
    Not supported: float16 (the loss is a sum until the optimizer step) and weights held in bfloat16 (AdamW's steps would be
    rounded away), strategies that split a model over devices, and trainer options that this class decides.

    A subclass ends its constructor with `self.save_hyperparameters(options_of(self, locals()))`.

    Args:
        optimization: Optimizer and learning rate.
        global_batch_size: Examples per optimizer step: micro batch x accumulated batches x processes. The number of accumulated
            batches is derived from it; None takes one micro batch of every process.
        seed: Seed of the draws made in training.
    """

    monitor: ClassVar[str] = "val/accuracy"
    """The metric whose highest value makes the best checkpoint."""
    logged_metrics: ClassVar[tuple[str, ...]] = ("train/loss", "train/gradient_norm")
    """Names of what is logged, or patterns of them, by which a monitor is checked before anything runs."""

    def __init__(self, optimization: Optimization, global_batch_size: int | None = None, seed: int = 0) -> None:
        super().__init__()
        self.optimization, self.global_batch_size, self.seed = optimization, global_batch_size, seed
        self.num_terms: Tensor | int = 0  # of this process' loss, since the last optimizer step
        self.batch_idx = 0  # of the running micro batch
        self.lookahead: Lookahead | None = None
        self.warmup_start = 0  # the optimizer step at which the latest warm-up began
        self.reset_key: int | None = None  # the epoch or stage that AdamW was made for

    @abstractmethod
    def summed_loss(self, batch: Any) -> tuple[Tensor, Tensor | int]:
        """The sum of the terms of a micro batch's loss, (), with gradients, and their number."""

    @abstractmethod
    def export(self, folder: Path, dtype: str = "float32", adapters_only: bool = False) -> None:
        """Writes the model in its published layout.

        Args:
            folder: Where to write.
            dtype: Type the weights are stored in, ``float32`` or ``bfloat16``.
            adapters_only: Whether to leave out the weights of the base model.

        Raises:
            UserError: There are no adapters to store alone.
        """

    @staticmethod
    def next_command(model: str, backbone: str) -> list[str]:
        """The words of the command that comes after the training.

        Args:
            model: Folder of the export.
            backbone: What the training started from.
        """
        return ["python", "evaluate.py", "--model.backbone", model]

    @property
    def commits(self) -> dict[str, str]:
        """By option the commits on the hub that models were read at; empty for folders."""
        return {}

    # Set-up -----------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        if stage != "fit":
            return
        check_trainer_fits(self.trainer, self.__class__.__name__, self.can_be_sharded)
        self.trainer.accumulate_grad_batches = accumulated_batches(
            self.global_batch_size, data_of(self.trainer).batch_size, self.trainer.world_size
        )

    @property
    def trained(self) -> nn.Module:
        """The part with the weights, whose call is what a step computes."""
        raise NotImplementedError

    @property
    def can_be_sharded(self) -> bool:
        """Whether gradients and momenta can be shared out over processes (`lightning_modules.sharding`)."""
        return True

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, ShardedStrategy):
            shard(self.trained, self.trainer.strategy.device_mesh["data_parallel"])

    def on_validation_start(self) -> None:
        gather(self.trained)

    def on_validation_end(self) -> None:
        release(self.trained)

    def teardown(self, stage: str) -> None:
        if stage == "fit":
            self.trainer.accumulate_grad_batches = 1  # as it was given

    # Training ---------------------------------------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.batch_idx = batch_idx
        with self.seeded_draws(batch_idx):
            total, num_terms = self.summed_loss(batch)
        self.num_terms = self.num_terms + num_terms
        if isinstance(num_terms, Tensor) or num_terms > 0:  # the rollouts of a batch may teach nothing
            self.log("train/loss", total.detach() / num_terms, prog_bar=True, batch_size=1)
        return total  # divided by the terms of the global batch in on_before_optimizer_step

    @property
    def is_first_of_step(self) -> bool:
        """Whether the running micro batch is the first one of its optimizer step."""
        return self.batch_idx % self.trainer.accumulate_grad_batches == 0

    def later_batches(self) -> list[Any]:
        """This process' other micro batches of an optimizer step, asked for at its first one."""
        count = min(self.trainer.accumulate_grad_batches, int(self.trainer.num_training_batches) - self.batch_idx) - 1
        if count < 1:
            return []
        if self.lookahead is None or self.lookahead.epoch != self.current_epoch:
            self.lookahead = Lookahead(self.trainer.train_dataloader, self.current_epoch, self.batch_idx)
        return self.lookahead.batches(self.batch_idx + 1, count)

    @property
    def epoch_key(self) -> str:
        """Key of the draws of an epoch; a resumed run draws what an uninterrupted one draws."""
        return f"{self.seed}/{self.current_epoch}"

    @contextmanager
    def seeded_draws(self, batch_idx: int) -> Iterator[None]:
        """Within it, torch's own random numbers (dropout) are a function of (seed, epoch, batch, rank)."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(random.Random(f"{self.epoch_key}/{batch_idx}/{self.global_rank}").getrandbits(63))
            yield

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn the gradient of sum / (accumulated batches x processes) into that of the mean over all terms."""
        terms = torch.as_tensor(self.num_terms, dtype=torch.long, device=self.device)
        total = torch.as_tensor(self.trainer.strategy.reduce(terms, reduce_op="sum"))
        # No term: no gradient either.
        scale = self.trainer.accumulate_grad_batches * self.trainer.world_size / total.clamp(min=1).float()
        release(self.trained)
        if found := gradients(self):
            torch._foreach_mul_(found, scale)
            self.log("train/gradient_norm", gradient_norm(self, found), batch_size=1)  # before clipping
        self.num_terms = 0

    # Optimizer --------------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimization.optimizer(self.parameters())
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, self.lr_factor), "interval": "step"},
        }

    def lr_factor(self, step: int) -> float:
        """Factor of the learning rate at an optimizer step: warm-up (again after a reset of AdamW), then the schedule."""
        total = self.trainer.estimated_stepping_batches if self.optimization.needs_length else float("inf")
        return self.optimization.lr_factor(step, total, self.warmup_start)

    def on_train_epoch_start(self) -> None:
        key = self.key_of_reset()
        if self.reset_key not in (None, key):
            self.start_afresh(self.trainer.optimizers[0])
        self.reset_key = key

    def key_of_reset(self) -> int:
        """AdamW starts anew where it changes from one epoch to the next."""
        if self.optimization.reset == "stage":
            raise UserError(
                "optimization.reset stage needs a training with stages, which is CoconutModule: give never or epoch."
            )
        return self.current_epoch if self.optimization.reset == "epoch" else 0

    def start_afresh(self, optimizer: torch.optim.Optimizer) -> None:
        """Forget AdamW's momenta and begin a new warm-up with the next step."""
        optimizer.state.clear()
        self.warmup_start = self.global_step
        for group in optimizer.param_groups:
            group["lr"] = self.optimization.lr * self.lr_factor(self.global_step)

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["training"] = {
            "module": type(self).__name__,
            "warmup_start": self.warmup_start,
            "reset_key": self.reset_key,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.warmup_start, self.reset_key = (checkpoint["training"][name] for name in ("warmup_start", "reset_key"))

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = "cpu", **options: Any
    ) -> Self:
        """The module that wrote a checkpoint, with its options and weights.

        What it was made from (a backbone's folder) must still be where it was: shape and tokenizer are taken from there.

        Args:
            checkpoint_path: The file.
            map_location: Device to put the weights on.
            **options: Arguments of the constructor to change.

        Raises:
            UserError: The file is none of this class.
        """
        content = read_checkpoint(checkpoint_path, map_location)
        if content["training"]["module"] != cls.__name__:
            raise UserError(
                f"{str(checkpoint_path)!r} is a checkpoint of {content['training']['module']}, not of {cls.__name__}."
            )
        module = cls(**restored(cls, content["hyper_parameters"] | options))
        module.load_state_dict(content["state_dict"], strict=True)
        return module
