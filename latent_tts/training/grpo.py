"""GRPO on latent rollouts: what a group of rollouts of one problem teaches the policy that drew them.

A rollout is a sequence of actions: its latent thoughts, drawn from a Gaussian, and its answer tokens, drawn by `AnswerSampler`.

    rewards (B, N)  ->  advantages (B, N), normalised in each group; 0 where a group is all right or all wrong
    one teacher-forced pass over prompt, thoughts, ### and answer  ->  log-probability of every draw
    term of a draw    = - min(rho A, clip(rho, 1 - c, 1 + c) A),   rho = exp(new - old)
    term of a rollout = mean over its actions, of which a thought has D draws, summed: its dimensions are independent

A ratio is that of one dimension or one token. That of a whole thought is a product of D factors on one side of 1, so it would be
clipped after the smallest update; before the first update both have the same gradient, the policy gradient.
The divergence from a reference model is exact where it can be: summed over the dimensions of a thought, and over the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from latent_tts.backbones.colar import Colar
from latent_tts.engine.engine import MOST_ROLLOUTS
from latent_tts.engine.rollouts import Rollouts
from latent_tts.errors import UserError
from latent_tts.sampling import Sampler
from latent_tts.sampling.answer_sampler import AnswerSampler
from latent_tts.training.colar import Columns, columns_before, hidden_states

DRAWN_ANSWERS = AnswerSampler(temperature=1.0, top_p=0.9)


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
    answers: AnswerSampler = DRAWN_ANSWERS
    """How the tokens of answers are drawn, and so weighed."""

    def __post_init__(self) -> None:
        if self.group_size < 2 or self.num_updates < 1 or not 0 < self.clip < 1 or self.kl_weight < 0:
            raise UserError(
                "GRPO needs group_size of 2 or more, num_updates of 1 or more, clip between 0 and 1 and kl_weight of 0 or more, "
                f"got {self.group_size}, {self.num_updates}, {self.clip} and {self.kl_weight}."
            )
        if self.group_size > MOST_ROLLOUTS:
            raise UserError(
                f"GRPO has group_size {self.group_size}, and a problem has at most {MOST_ROLLOUTS} rollouts, which are drawn and "
                "learned from at once: give fewer, and more problems in a batch."
            )


class LogProbs(NamedTuple):
    """Log-probabilities of all draws of a batch of rollouts, in reading order."""

    latents: Tensor  # (M, D), of the dimensions of the thoughts
    tokens: Tensor  # (A,), of the answers' tokens


class Policy(NamedTuple):
    """What a model draws from in the places of a batch of rollouts, and the log-probabilities of what was drawn."""

    log_probs: LogProbs
    thoughts: Normal  # (M, D)
    tokens: Tensor  # (A, V), log-probabilities at the temperature of the answers, of all tokens


class Divergences(NamedTuple):
    """KL divergence of a policy from another one in the places of a batch of rollouts."""

    latents: Tensor  # (M,), of whole thoughts
    tokens: Tensor  # (A,)


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


def policy_on(backbone: Colar, sampler: Sampler, answers: AnswerSampler, experience: Experience) -> Policy:
    """One teacher-forced pass: what the model as it is draws from in every place of the rollouts."""
    columns, latents = experience.columns, experience.latents
    hidden = hidden_states(backbone, columns, latents)
    thoughts = sampler.distribution(backbone, hidden[columns_before(columns.thoughts)])
    logits = backbone.logits(hidden[columns_before(experience.answers)]).float()
    tokens = token_log_probs(answers, logits, columns.ids[experience.answers])
    log_probs = LogProbs(thoughts.log_prob(latents.float()), tokens)
    return Policy(log_probs, thoughts, (logits / answers.temperature).log_softmax(dim=-1))


def token_log_probs(answers: AnswerSampler, logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities (A,) of tokens (A,) under the distribution (A, V) that they were drawn from.

    A token that an update, or rounding, has taken out of the nucleus counts as a further member of it: it was drawn.
    """
    within = answers.log_probs(logits)  # -inf outside
    best = logits.argmax(dim=-1, keepdim=True)
    scaled = logits / answers.temperature
    mass = (scaled.gather(-1, best) - within.gather(-1, best)).squeeze(-1)  # log of the nucleus' unnormalised mass
    found, own = (values.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) for values in (within, scaled))
    return own - torch.where(found.isinf(), torch.logaddexp(mass, own), mass)


def divergences(policy: Policy, reference: Policy) -> Divergences:
    """Exact in every place: a thought's is the sum over its dimensions, a token's that of the distributions without nucleus.

    With the nucleus it would be infinite wherever that of the reference leaves a token out.
    """
    tokens = (policy.tokens.exp() * (policy.tokens - reference.tokens)).sum(dim=-1)
    return Divergences(kl_divergence(policy.thoughts, reference.thoughts).sum(dim=-1), tokens)


def grpo_terms(
    new: LogProbs,
    old: LogProbs,
    experience: Experience,
    clip: float = 0.2,
    divergence: Divergences | None = None,
    kl_weight: float = 0.0,
) -> Tensor:
    """Term of the loss of every rollout, the mean over its actions: (R,).

    Args:
        new: With gradients.
        old: Of the policy that drew the rollouts.
        experience: The rollouts.
        clip: How far a ratio counts from 1.
        divergence: From the model to stay close to, with gradients; each action adds ``kl_weight`` times its own.
        kl_weight: Weight of the divergence.
    """
    rows, answers = torch.arange(experience.num_rollouts, device=new.tokens.device).unsqueeze(1), experience.answers
    rows = rows.expand_as(answers)
    of_thoughts, of_tokens = rows[experience.columns.thoughts], rows[answers]
    advantages = experience.advantages
    thoughts = clipped(new.latents, old.latents, advantages[of_thoughts].unsqueeze(-1), clip).sum(dim=-1)
    terms = torch.cat([thoughts, clipped(new.tokens, old.tokens, advantages[of_tokens], clip)])
    if divergence is not None:
        terms = terms + kl_weight * torch.cat(divergence)
    row_of_action = torch.cat([of_thoughts, of_tokens])
    lengths = torch.bincount(row_of_action, minlength=experience.num_rollouts)
    return torch.zeros_like(advantages).index_add(0, row_of_action, terms) / lengths


def entropies(policy: Policy) -> tuple[Tensor, Tensor]:
    """In nats: of every thought, over all its dimensions together, (M,), and of every token of the answers, (A,)."""
    return policy.thoughts.entropy().sum(dim=-1), torch.special.entr(policy.tokens.exp()).sum(dim=-1)


def clipped_share(new: LogProbs, old: LogProbs, clip: float) -> Tensor:
    """Share of the draws (dimensions of thoughts, and tokens) whose ratio is beyond the clip, (): 0 in a first update."""
    ratios = torch.cat([(a - b).exp().flatten() for a, b in zip(new, old, strict=True)])
    return ((ratios - 1).abs() > clip).float().mean()


def clipped(new: Tensor, old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """Terms of draws, (...): the less hopeful of the ratio and the clipped ratio, times the advantage, negated."""
    ratio = (new - old.detach()).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
