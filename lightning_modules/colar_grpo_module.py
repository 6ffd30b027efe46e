"""Second stage of CoLaR: reinforcement of the thoughts that lead to right answers, by GRPO on groups of latent rollouts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from latent_tts.answers import answers_equal, parse_answer
from latent_tts.backbones.colar import Colar
from latent_tts.backbones.lora import LoRA
from latent_tts.backbones.training import load_for_training
from latent_tts.engine.engine import RolloutEngine
from latent_tts.errors import UserError
from latent_tts.problems import ReasoningExample
from latent_tts.sampling import NativeGaussian, Sampler
from latent_tts.training.grpo import (
    GRPO,
    Experience,
    LogProbs,
    Policy,
    clipped_share,
    divergences,
    entropies,
    experience_of,
    grpo_terms,
    policy_on,
)
from latent_tts.training.optimization import Optimization
from lightning_modules.backbone_module import BackboneModule
from lightning_modules.colar_module import greedy_answers
from lightning_modules.hyperparameters import options_of

DEFAULT_OPTIMIZATION = Optimization(lr=1e-6)
DEFAULT_GRPO = GRPO()


class ColarGRPOModule(BackboneModule):
    """Trains a CoLaR on the correctness of its own answers; `latent_tts.training.grpo` has the formulas.

    For every batch of problems the rollout engine draws groups of rollouts, which are learned from `num_updates` times. A term
    of the loss is a rollout; those of groups that are all right or all wrong are none. Dropout is off in all passes: a ratio
    compares two policies, not two masks. Everything drawn is a function of (seed, epoch, problem, rollout).

    Args:
        backbone: Folder or hub id of the CoLaR to start from.
        sampler: Draws the thoughts: NativeGaussian, or AdditiveGaussianNoise where the head predicts no deviation.
        grpo: How groups of rollouts are drawn and learned from.
        max_latents: Latent thoughts after which a rollout has to answer; null takes those of the checkpoint.
        optimization: Optimizer and learning rate.
        global_batch_size: Problems per batch of rollouts: micro batch x accumulated batches x processes. The number of
            accumulated batches is derived from it.
        lora: Adapters to train in place of all weights; null trains all of them.
        max_answer_tokens: Tokens an answer may have.
        seed: Seed of the draws made in training.

    Raises:
        UserError: An option out of its range, or a sampler that does not fit the checkpoint.
    """

    backbone: Colar
    logged_metrics = (
        *(name for name in BackboneModule.logged_metrics if name != "val/loss"),
        "train/reward",
        "train/learned_share",
        "train/latents",
        "train/kl",
        "train/entropy",
        "train/thought_entropy",
        "train/clipped_share",
        "val/latents",
    )

    def __init__(
        self,
        backbone: str,
        sampler: Sampler | None = None,
        grpo: GRPO = DEFAULT_GRPO,
        max_latents: int | None = None,
        optimization: Optimization = DEFAULT_OPTIMIZATION,
        global_batch_size: int = 32,
        lora: LoRA | None = None,
        max_answer_tokens: int = 16,
        seed: int = 0,
    ) -> None:
        loaded = load_for_training(Colar, backbone, max_latents)
        self.sampler = sampler or NativeGaussian()
        self.sampler.check(loaded)
        super().__init__(loaded, backbone, optimization, global_batch_size, lora, max_answer_tokens, seed)
        self.grpo = grpo
        if loaded.lt_head.log_std is not None and not self.sampler.predicted_deviation:
            loaded.lt_head.log_std.requires_grad_(False)  # it has no part in these rollouts
        self.update = 0  # which of the updates on the current batch of rollouts is running
        self.experience: Experience | None = None
        self.old: LogProbs | None = None
        # A list keeps the copy out of the module's weights: it is made again from `backbone` wherever a run goes on.
        self.reference = [deepcopy(loaded).eval()] if grpo.kl_weight else []
        self.save_hyperparameters(options_of(self, locals()))

    @property
    def can_be_sharded(self) -> bool:
        return False  # rollouts are drawn in the middle of a step, as many passes as they happen to take

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.grpo.num_updates > 1 and self.trainer.accumulate_grad_batches > 1:
            raise UserError(
                f"grpo.num_updates {self.grpo.num_updates} needs the whole global batch at once, not in "
                f"{self.trainer.accumulate_grad_batches} accumulated batches: raise data.batch_size or lower global_batch_size."
            )

    def on_fit_start(self) -> None:
        for model in self.reference:
            model.to(self.device)

    def losses(self, batch: Sequence[ReasoningExample]) -> Tensor:
        """Terms of the rollouts that can be learned from: (R,), empty where there is none."""
        self.backbone.eval()
        if self.update == 0:
            with torch.autocast(
                self.device.type, enabled=torch.is_autocast_enabled(self.device.type), cache_enabled=False
            ):
                self.collect(batch)  # a cache would keep weights that were cast without gradients
        experience, old = self.experience, self.old
        if experience is None or old is None:
            # No term, but every weight takes part, as all processes of a run expect.
            return torch.stack([p.sum() for p in self.parameters() if p.requires_grad])[:0]
        policy, divergence = self.policy(self.backbone, experience), None
        for model in self.reference:
            with torch.no_grad():
                reference = self.policy(model, experience)
            divergence = divergences(policy, reference)
            self.log("train/kl", torch.cat(divergence).detach().mean(), batch_size=1)
        self.log_policy(policy, old)
        return grpo_terms(policy.log_probs, old, experience, self.grpo.clip, divergence, self.grpo.kl_weight)

    @torch.no_grad()
    def log_policy(self, policy: Policy, old: LogProbs) -> None:
        """How much is left to explore, and how far an update goes."""
        thoughts, tokens = entropies(policy)
        share = clipped_share(policy.log_probs, old, self.grpo.clip)
        found = {"thought_entropy": thoughts, "entropy": tokens, "clipped_share": share}
        # Rollouts may answer without a thought, and then there is none to speak of.
        known = {f"train/{name}": value.mean() for name, value in found.items() if value.numel()}
        self.log_dict(known, batch_size=1)

    def validation_losses(self, batch: Sequence[ReasoningExample]) -> None:
        """Its loss is of drawn rollouts."""

    def policy(self, model: Colar, experience: Experience) -> Policy:
        return policy_on(model, self.sampler, self.grpo.answers, experience)

    @torch.no_grad()
    def collect(self, batch: Sequence[ReasoningExample]) -> None:
        """Draws the groups of a batch of problems, and the log-probabilities of what was drawn."""
        questions = [example.question for example in batch]
        golds = [parse_answer(example.answer) for example in batch]
        seed = random.Random(f"{self.epoch_key}/rollouts").getrandbits(31)
        rollouts = RolloutEngine(self.backbone, self.sampler, self.max_answer_tokens, self.grpo.answers).rollout(
            questions, self.grpo.group_size, seed
        )
        right = [[answers_equal(a, gold) for a in row] for row, gold in zip(rollouts.answers, golds, strict=True)]
        rewards = torch.tensor(right, dtype=torch.float32)  # (B, N)
        self.experience = experience_of(self.backbone, self.backbone.encode_prompts(questions), rollouts, rewards)
        self.old = None
        if self.experience is not None:
            self.old = self.policy(self.backbone, self.experience).log_probs
        mixed = 0 if self.experience is None else self.experience.num_rollouts
        self.log("train/reward", rewards.mean(), prog_bar=True, batch_size=len(batch))
        self.log("train/learned_share", mixed / rewards.numel(), batch_size=len(batch))
        self.log("train/latents", rollouts.num_latents.float().mean(), batch_size=len(batch))

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """All updates on one batch of rollouts: each runs `losses` again, the later ones with the rollouts of the first."""
        for update in range(self.grpo.num_updates):
            self.update = update
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.update = 0

    def generate(self, questions: Sequence[str]) -> list[str]:
        return greedy_answers(self, questions)
