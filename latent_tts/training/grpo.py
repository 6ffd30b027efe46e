"""GRPO on latent rollouts: what a group of rollouts of one problem teaches the policy that drew them.

A rollout is a sequence of actions: its latent thoughts, drawn from a Gaussian, and its answer tokens.

    rewards (B, N)  ->  advantages (B, N), normalised in each group; 0 where a group is all right or all wrong
    one teacher-forced pass over prompt, thoughts, ### and answer  ->  log-probability of every action
    term of a rollout = - mean over its actions of min(rho A, clip(rho, 1 - c, 1 + c) A),   rho = exp(new - old)

The log-density of a thought is averaged over its D dimensions: log pi(h) = 1/D sum_d log N(h_d; m_d, s_d^2). Its sum would
change by hundreds under the smallest update (D terms of one sign), so every ratio would be clipped and the answer tokens, one
scalar each, would not count beside it; the mean is the ratio of a typical dimension, on the scale of a token's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from latent_tts.backbones.colar import Colar
from latent_tts.engine.rollouts import Rollouts
from latent_tts.errors import UserError
from latent_tts.sampling import Sampler
from latent_tts.training.colar import Columns, columns_before, hidden_states


@dataclass(frozen=True)
class GRPO:
    """How groups of rollouts are drawn and learned from."""

    group_size: int = 8
    """Rollouts of each problem."""
    num_updates: int = 1
    """Optimizer steps on each batch of rollouts; more than 1 needs the whole global batch at once."""
    clip: float = 0.2
    """How far the ratio of new to old probabilities counts from 1."""
    kl_weight: float = 0.0
    """Weight of the divergence from the model that the training starts from; 0 keeps no copy of it."""

    def __post_init__(self) -> None:
        if self.group_size < 2 or self.num_updates < 1 or not 0 < self.clip < 1 or self.kl_weight < 0:
            raise UserError(
                "GRPO needs group_size of 2 or more, num_updates of 1 or more, clip between 0 and 1 and kl_weight of 0 or more, "
                f"got {self.group_size}, {self.num_updates}, {self.clip} and {self.kl_weight}."
            )


class LogProbs(NamedTuple):
    """Log-probabilities of all actions of a batch of rollouts, in reading order."""

    latents: Tensor  # (M,), each averaged over its dimensions
    tokens: Tensor  # (A,), of the answers' tokens


@dataclass(frozen=True)
class Experience:
    """R rollouts to learn from: those of groups in which some are right and some wrong."""

    columns: Columns  # prompt, thoughts, then ### and the answer
    latents: Tensor  # (M, D), as they were fed
    advantages: Tensor  # (R,)

    @property
    def num_rollouts(self) -> int:
        return len(self.advantages)

    @property
    def answers(self) -> Tensor:
        """Columns of answer tokens: (R, L) bool; the ### in front of them was fed, not chosen."""
        tail = self.columns.tail
        return tail & columns_before(tail.flip(1)).flip(1)


def group_advantages(rewards: Tensor) -> Tensor:
    """(r - mean) / deviation of each group: (B, N) to (B, N); 0 where all rewards of a group are the same."""
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    deviation = centred.square().mean(dim=1, keepdim=True).sqrt()
    return torch.where(deviation > 0, centred / deviation, 0.0)


def experience_of(
    backbone: Colar, prompts: Sequence[list[int]], rollouts: Rollouts, rewards: Tensor
) -> Experience | None:
    """What B groups of rollouts teach; ``None`` where every group is all right or all wrong.

    Args:
        backbone: Knows the tokens.
        prompts: Token ids of the B prompts.
        rollouts: N rollouts of each.
        rewards: (B, N).
    """
    advantages = group_advantages(rewards)
    rows = [(b, n) for b, n in advantages.nonzero().tolist()]
    if not rows:
        return None
    columns = Columns.of(
        [prompts[b] for b, _ in rows],
        [int(rollouts.num_latents[b, n]) for b, n in rows],
        [[backbone.end_of_thought_id, *answer_tokens(rollouts.answer_ids[b, n], backbone)] for b, n in rows],
        backbone.pad_token_id,
        backbone.device,
    )
    latents = torch.cat([rollouts.latents[b, n, : int(rollouts.num_latents[b, n])] for b, n in rows])
    taken = torch.stack([advantages[b, n] for b, n in rows])
    # Copies: tensors made in inference mode, as those of rollouts are, can't take part in training.
    return Experience(columns, latents.clone(), taken.to(backbone.device, torch.float32))


def answer_tokens(ids: Tensor, backbone: Colar) -> list[int]:
    """The tokens of an answer up to and with its end of text, without padding."""
    tokens = ids.tolist()
    end = next((place for place, token in enumerate(tokens) if token in backbone.eos_token_ids), len(tokens))
    return tokens[: end + 1]


def action_log_probs(backbone: Colar, sampler: Sampler, experience: Experience) -> LogProbs:
    """One teacher-forced pass: log-probabilities of every thought and answer token under the model as it is."""
    columns, latents = experience.columns, experience.latents
    hidden = hidden_states(backbone, columns, latents)
    densities = sampler.log_prob(backbone, hidden[columns_before(columns.thoughts)], latents)  # (M, D)
    answers = experience.answers
    logits = backbone.logits(hidden[columns_before(answers)])
    tokens = -cross_entropy(logits.float(), columns.ids[answers], reduction="none")
    return LogProbs(densities.mean(dim=-1), tokens)


def grpo_terms(
    new: LogProbs,
    old: LogProbs,
    experience: Experience,
    clip: float = 0.2,
    reference: LogProbs | None = None,
    kl_weight: float = 0.0,
) -> Tensor:
    """Term of the loss of every rollout, the mean over its actions: (R,).

    Args:
        new: With gradients.
        old: Of the policy that drew the rollouts.
        experience: The rollouts.
        clip: How far a ratio counts from 1.
        reference: Of the model to stay close to; with it, each action adds ``kl_weight`` times the estimate
            exp(ref - new) - (ref - new) - 1 of its divergence, which is never negative and right on average.
        kl_weight: Weight of the divergence.
    """
    rows, answers = torch.arange(experience.num_rollouts, device=new.latents.device).unsqueeze(1), experience.answers
    rows = rows.expand_as(answers)
    row_of_action = torch.cat([rows[experience.columns.thoughts], rows[answers]])
    log_probs = torch.cat(new)
    ratio = (log_probs - torch.cat(old).detach()).exp()
    advantage = experience.advantages[row_of_action]
    terms = -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    if reference is not None:
        difference = torch.cat(reference).detach() - log_probs
        terms = terms + kl_weight * (difference.exp() - difference - 1)
    lengths = torch.bincount(row_of_action, minlength=experience.num_rollouts)
    sums = torch.zeros_like(experience.advantages).index_add(0, row_of_action, terms)
    return sums / lengths
