"""Training of a CoLaR: written steps, compressed by a factor drawn anew for every batch, become latent thoughts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import pad

from latent_tts.backbones.colar import Colar
from latent_tts.backbones.lora import LoRA
from latent_tts.backbones.training import load_for_training
from latent_tts.engine.engine import RolloutEngine
from latent_tts.errors import UserError
from latent_tts.problems import ReasoningExample
from latent_tts.training.colar import LatentLoss, at_speed, colar_losses, compress, compression_factor
from latent_tts.training.optimization import Optimization
from lightning_modules.backbone_module import BackboneModule
from lightning_modules.hyperparameters import options_of

PUBLISHED_FACTORS = (1, 2, 3, 4, 5)
PUBLISHED_OPTIMIZATION = Optimization()


class ColarModule(BackboneModule):
    """Trains a CoLaR from any Hugging Face causal LM, best one that writes its steps already.

    Every label of a global batch is a term of the loss: the cross-entropy of its token, and where it is a merged embedding
    too, `latent_weight` times the loss of that. See TrainingModule for what the loss is independent of, and for what is not
    supported. Validation thinks and answers greedily at `thinking_speed`, as an evaluation of the exported model does.

    Args:
        backbone: Folder or hub id of the causal LM to start from, or of a CoLaR to go on from.
        compression: Factors of which one is drawn for every global batch.
        thinking_speed: The factor to validate at, which the exported prompt form carries.
        prompt_form: Template of the prompt with the fields {question} and {speed}, ending in ###; null takes the published one.
        max_latents: Latent thoughts after which a rollout has to answer.
        latent_loss: mse, nll, soft_mse or mse_nll (`latent_tts.training.colar.latent_losses`). All but mse train a deviation
            beside the mean, which the sampler NativeGaussian draws from.
        latent_weight: Weight of the loss of the merged embeddings.
        entropy_weight: Weight of the entropy in soft_mse.
        latent_intermediate_size: Width of the latent head; null takes that of the model.
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

    def __init__(
        self,
        backbone: str,
        compression: Sequence[int] = PUBLISHED_FACTORS,
        thinking_speed: int = 2,
        prompt_form: str | None = None,
        max_latents: int = 64,
        latent_loss: LatentLoss = "mse",
        latent_weight: float = 1.0,
        entropy_weight: float = 0.1,
        latent_intermediate_size: int | None = None,
        optimization: Optimization = PUBLISHED_OPTIMIZATION,
        global_batch_size: int = 256,
        lora: LoRA | None = None,
        max_answer_tokens: int = 16,
        seed: int = 0,
    ) -> None:
        self.compression, self.speed_form = tuple(compression), prompt_form or Colar.speed_form
        check_speeds(self.compression, thinking_speed, self.speed_form)
        config: dict[str, int | bool] = {} if latent_loss == "mse" else {"latent_log_std": True}
        if latent_intermediate_size is not None:
            config["latent_intermediate_size"] = latent_intermediate_size
        form = at_speed(self.speed_form, thinking_speed)
        loaded = load_for_training(Colar, backbone, max_latents, form, config, seed)
        deviation = loaded.lt_head.log_std
        if latent_loss != "mse" and deviation is None:
            raise UserError(
                f"The latent head of {backbone} predicts no deviation, which latent_loss {latent_loss} trains: use mse."
            )
        if latent_loss == "mse" and deviation is not None:
            deviation.requires_grad_(False)  # it has no part in this loss
        super().__init__(loaded, backbone, optimization, global_batch_size, lora, max_answer_tokens, seed)
        self.latent_loss: LatentLoss = latent_loss
        self.latent_weight, self.entropy_weight = latent_weight, entropy_weight
        self.save_hyperparameters(options_of(self, locals()))

    def losses(self, batch: Sequence[ReasoningExample]) -> Tensor:
        """Loss of every label of a micro batch: (labels,). The factor is a function of (seed, optimizer step)."""
        factor = compression_factor(self.compression, self.seed, self.current_epoch, self.global_step)
        examples = compress(batch, factor, self.backbone, self.speed_form, self.epoch_key)
        losses = colar_losses(self.backbone, examples, factor, self.latent_loss, self.entropy_weight)
        self.log("train/token_loss", losses.tokens.detach().mean(), batch_size=len(losses.tokens))
        self.log("train/latent_loss", losses.latents.detach().mean(), batch_size=len(losses.latents))
        return losses.tokens + self.latent_weight * pad(losses.latents, (0, len(losses.tokens) - len(losses.latents)))

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
