"""Training of a CoLaR: written steps, compressed by a factor drawn anew for every batch, become latent thoughts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchmetrics import MeanMetric

from latent_tts.backbones.colar import Colar
from latent_tts.backbones.lora import LoRA
from latent_tts.backbones.training import load_for_training
from latent_tts.engine.engine import RolloutEngine
from latent_tts.errors import UserError
from latent_tts.problems import ReasoningExample
from latent_tts.training.colar import ColarLoss, CompressedExample, at_speed, colar_losses, compress, compression_factor
from latent_tts.training.optimization import Optimization
from lightning_modules.backbone_module import BackboneModule
from lightning_modules.hyperparameters import options_of

PUBLISHED_FACTORS = (1, 2, 3, 4, 5)
PUBLISHED_OPTIMIZATION = Optimization()
PUBLISHED_LOSS = ColarLoss()


class ColarModule(BackboneModule):
    """Trains a CoLaR from any Hugging Face causal LM, best one that writes its steps already.

    The loss is the mean cross-entropy of the tokens of a global batch, and `loss.weight` times the mean loss of its merged
    embeddings. See TrainingModule for what the loss is independent of, and for what is not
    supported. Validation thinks and answers greedily at `thinking_speed`, as an evaluation of the exported model does.

    Args:
        backbone: Folder or hub id of the causal LM to start from, or of a CoLaR to go on from.
        compression: Factors of which one is drawn for every global batch.
        thinking_speed: The factor to validate at, which the exported prompt form carries.
        prompt_form: Template of the prompt with the fields {question} and {speed}, ending in ###; null takes the published one.
        max_latents: Latent thoughts after which a rollout has to answer.
        loss: How the losses of tokens and of merged embeddings become one.
        latent_intermediate_size: Width of a fresh latent head; null takes that of the model, or of the CoLaR.
        optimization: Optimizer and learning rate.
        global_batch_size: Examples per optimizer step: micro batch x accumulated batches x processes. The number of
            accumulated batches is derived from it.
        lora: Adapters to train in place of all weights; null trains all of them.
        max_answer_tokens: Tokens a validation answer may have.
        seed: Seed of the fresh weights and of the draws made in training.

    Raises:
        UserError: A factor below 1, a speed that is not trained, or a prompt form without its fields.
    """

    backbone: Colar
    logged_metrics = (
        *BackboneModule.logged_metrics,
        "train/token_loss",
        "train/latent_loss",
        "val/latents",
        "val/latent_loss",
    )

    def __init__(
        self,
        backbone: str,
        compression: Sequence[int] = PUBLISHED_FACTORS,
        thinking_speed: int = 2,
        prompt_form: str | None = None,
        max_latents: int = 64,
        loss: ColarLoss = PUBLISHED_LOSS,
        latent_intermediate_size: int | None = None,
        optimization: Optimization = PUBLISHED_OPTIMIZATION,
        global_batch_size: int = 256,
        lora: LoRA | None = None,
        max_answer_tokens: int = 16,
        seed: int = 0,
    ) -> None:
        self.compression, self.speed_form = tuple(compression), prompt_form or Colar.speed_form
        self.thinking_speed = thinking_speed
        check_speeds(self.compression, thinking_speed, self.speed_form)
        config: dict[str, int | bool] = {} if loss.form == "mse" else {"latent_log_std": True}
        if latent_intermediate_size is not None:
            config["latent_intermediate_size"] = latent_intermediate_size
        form = at_speed(self.speed_form, thinking_speed)
        loaded = load_for_training(Colar, backbone, max_latents, form, config, seed)
        deviation = loaded.lt_head.log_std
        if loss.form != "mse" and deviation is None:
            raise UserError(
                f"The latent head of {backbone} predicts no deviation, which loss.form {loss.form} trains: use mse."
            )
        if loss.form == "mse" and deviation is not None:
            deviation.requires_grad_(False)  # it has no part in this loss
        super().__init__(loaded, backbone, optimization, global_batch_size, lora, max_answer_tokens, seed)
        self.loss, self.val_latent_loss = loss, MeanMetric()
        self.tokens_per_thought: Tensor | float = 1.0  # in the running global batch
        self.save_hyperparameters(options_of(self, locals()))

    def losses(self, batch: Sequence[ReasoningExample]) -> Tensor:
        """Loss of every token of a micro batch and, added to those of the drawn ones, of the merged embeddings: (tokens,).

        Its mean over the tokens of the global batch is the mean of the tokens plus the weighted mean of the embeddings.
        """
        factor = compression_factor(self.compression, self.seed, self.current_epoch, self.global_step)
        examples = self.compressed(batch, factor)
        losses = colar_losses(self.backbone, examples, factor, self.loss.form, self.loss.entropy_weight)
        self.log("train/token_loss", losses.tokens.detach().mean(), batch_size=1)
        self.log("train/latent_loss", losses.latents.detach().mean(), batch_size=1)
        if self.loss.mean == "own_terms" and self.is_first_of_step:
            others = [example for later in self.later_batches() for example in self.compressed(later, factor)]
            self.tokens_per_thought = self.ratio([*examples, *others])
        weight = self.loss.weight * self.tokens_per_thought
        return losses.tokens + weight * pad(losses.latents, (0, len(losses.tokens) - len(losses.latents)))

    def validation_losses(self, batch: Sequence[ReasoningExample]) -> Tensor:
        """Loss of every token, at the speed that the model is asked to think at; that of the thoughts is `val/latent_loss`."""
        examples = compress(batch, self.thinking_speed, self.backbone, self.speed_form, key=f"{self.seed}")
        losses = colar_losses(self.backbone, examples, self.thinking_speed, self.loss.form, self.loss.entropy_weight)
        self.val_latent_loss.update(losses.latents.mean(), weight=losses.latents.numel())
        self.log("val/latent_loss", self.val_latent_loss, batch_size=len(batch))
        return losses.tokens

    def compressed(self, batch: Sequence[ReasoningExample], factor: int) -> list[CompressedExample]:
        """The examples at a factor, which is a function of (seed, optimizer step)."""
        return compress(batch, factor, self.backbone, self.speed_form, self.epoch_key)

    def ratio(self, examples: Sequence[CompressedExample]) -> Tensor:
        """Tokens for every merged embedding, in these examples of all processes."""
        counts = [sum(example.num_tokens for example in examples), sum(len(example.groups) for example in examples)]
        total = self.trainer.strategy.reduce(torch.tensor(counts, device=self.device), reduce_op="sum")
        tokens, thoughts = torch.as_tensor(total).float()
        ratio: Tensor = tokens / thoughts.clamp(min=1)
        return ratio

    def training_positions(self, examples: Sequence[ReasoningExample]) -> list[int]:
        rows = compress(examples, min(self.compression), self.backbone, self.speed_form, key="")
        return [len(row.prompt_ids) + len(row.groups) + len(row.tail_ids) for row in rows]

    def generate(self, questions: Sequence[str]) -> list[str]:
        return greedy_answers(self, questions)


def greedy_answers(module: BackboneModule, questions: Sequence[str]) -> list[str]:
    """Greedy answers after as many thoughts as the model takes, whose mean number is logged."""
    engine = RolloutEngine(module.backbone, max_answer_tokens=module.max_answer_tokens)
    rollouts = engine.rollout(questions, num_rollouts=1)
    module.log("val/latents", rollouts.num_latents.float().mean(), batch_size=len(questions))
    return [texts[0] for texts in rollouts.texts]


def check_speeds(compression: Sequence[int], thinking_speed: int, prompt_form: str) -> None:
    """UserError where factors, speed and prompt form do not fit."""
    if not compression or min(compression) < 1:
        raise UserError(f"compression must name factors of 1 or more, got {list(compression)}.")
    if thinking_speed not in compression:
        raise UserError(
            f"thinking_speed {thinking_speed} is none of the trained factors {list(compression)}: name one of them."
        )
    if (
        "{question}" not in prompt_form
        or "{speed}" not in prompt_form
        or not prompt_form.endswith(Colar.end_of_thought)
    ):
        raise UserError(
            f"prompt_form must have the fields {{question}} and {{speed}} and end in ###, got {prompt_form!r}."
        )
