"""CoLaR's training examples and losses: written steps become a few merged embeddings, each predicted by the one before.

The step tokens of an example are cut in groups of r, and the embeddings of a group are merged into one thought. A row is

    fed         q q q q #       c1      c2      c3      #       a   a   (a: answer, #: ``###``, c: merged embeddings)
    token label . . . . t1      t2      t3      #       a   a   eos     (t: a token of the group, drawn at random)
    latent label. . . . c1      c2      c3      .       .   .   .

and one teacher-forced pass predicts all labels. Rows start in the first column and are padded on the right, so with
causal attention no real column ever sees padding, and no mask is needed.

Merging divides the sum by sqrt(r), which keeps the variance of a table of unrelated embeddings, as in the paper (arXiv
2505.16552); a last group with fewer than r tokens is divided by sqrt(r) too, as if it were padded with zeros.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from latent_tts.backbones.base import LatentBackbone
from latent_tts.backbones.colar import Colar
from latent_tts.errors import UserError
from latent_tts.problems import ReasoningExample

LatentLoss = Literal["mse", "nll", "soft_mse", "mse_nll"]


@dataclass(frozen=True)
class ColarLoss:
    """How the losses of tokens and of merged embeddings become one."""

    form: LatentLoss = "mse"
    """Of the merged embeddings: mse, nll, soft_mse or mse_nll (`latent_losses`). All but mse train a deviation beside the mean,
    which the sampler NativeGaussian draws from."""
    weight: float = 1.0
    """Weight of the loss of the merged embeddings."""
    entropy_weight: float = 0.0
    """Weight of the entropy in soft_mse; published is 0."""
    mean: Literal["own_terms", "labels"] = "own_terms"
    """own_terms, as published: the mean over the tokens plus the weight times the mean over the merged embeddings, each over its
    own terms in the global batch. labels: both are divided by the number of tokens, so that compression takes weight from the
    merged embeddings as it takes their number down."""

    def __post_init__(self) -> None:
        if self.form not in get_args(LatentLoss) or self.mean not in ("own_terms", "labels"):
            raise UserError(
                f"loss.form must be one of {', '.join(get_args(LatentLoss))} and loss.mean own_terms or labels, got "
                f"{self.form!r} and {self.mean!r}."
            )
        if not self.weight >= 0:
            raise UserError(f"loss.weight must be 0 or more, got {self.weight}.")


@dataclass(frozen=True)
class CompressedExample:
    """One training example as tokens, its steps cut in groups."""

    prompt_ids: list[int]  # up to and including ###
    groups: list[list[int]]  # the step tokens behind each merged embedding
    drawn_ids: list[int]  # one token of each group, the label of the column before it
    tail_ids: list[int]  # ###, answer, end of text

    @property
    def num_tokens(self) -> int:
        """Token labels, the drawn ones and those of the tail."""
        return len(self.drawn_ids) + len(self.tail_ids)


def compression_factor(factors: Sequence[int], seed: int, epoch: int, batch: int) -> int:
    """How many embeddings are merged into one in a batch: a function of (seed, epoch, batch)."""
    return random.Random(f"{seed}/{epoch}/{batch}/compression").choice(factors)


def compress(
    examples: Sequence[ReasoningExample], factor: int, backbone: LatentBackbone, prompt_form: str, key: str
) -> list[CompressedExample]:
    """Lays out examples at a compression factor.

    Args:
        examples: What to lay out; steps and answer are tokenized one by one, so that their tokens don't depend on what
            stands before them.
        factor: r, tokens per group.
        backbone: Knows the tokenizer.
        prompt_form: Template of the prompt with the fields ``{question}`` and ``{speed}``.
        key: Decides the drawn tokens, together with each example's question.
    """
    prompts = backbone.encode([at_speed(prompt_form, factor).replace("{question}", e.question) for e in examples])
    pieces = iter(
        backbone.encode([text for e in examples for text in (*(s + "\n" for s in e.steps), "Answer:" + e.answer)])
    )
    compressed = []
    for example, prompt_ids in zip(examples, prompts, strict=True):
        tokens = list(chain.from_iterable(next(pieces) for _ in example.steps))
        groups = [tokens[start : start + factor] for start in range(0, len(tokens), factor)]
        rng = random.Random(f"{key}/{example.question}")
        tail = [backbone.end_of_thought_id, *next(pieces), backbone.eos_token_id]
        compressed.append(CompressedExample(prompt_ids, groups, [rng.choice(group) for group in groups], tail))
    return compressed


def at_speed(prompt_form: str, factor: int) -> str:
    """The prompt form of one thinking speed."""
    return prompt_form.replace("{speed}", str(factor))


# One teacher-forced pass ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Columns:
    """What is fed in each column of a batch of rows: prompt tokens, M thoughts in all rows together, tail tokens."""

    ids: Tensor  # (B, L), the pad id where no token is fed
    thoughts: Tensor  # (B, L) bool
    tail: Tensor  # (B, L) bool

    @classmethod
    def of(
        cls,
        prompts: Sequence[Sequence[int]],
        num_thoughts: Sequence[int],
        tails: Sequence[Sequence[int]],
        pad_id: int,
        device: torch.device | str = "cpu",
    ) -> Columns:
        rows = list(zip(prompts, num_thoughts, tails, strict=True))
        width = max(len(prompt) + count + len(tail) for prompt, count, tail in rows)
        ids = torch.full((len(rows), width), pad_id)
        kind = torch.zeros(len(rows), width, dtype=torch.long)  # 1: thought, 2: tail
        for row, (prompt, count, tail) in enumerate(rows):
            start, end = len(prompt) + count, len(prompt) + count + len(tail)
            ids[row, : len(prompt)] = torch.tensor(prompt)
            ids[row, start:end] = torch.tensor(tail)
            kind[row, len(prompt) : start] = 1
            kind[row, start:end] = 2
        return cls(ids.to(device), (kind == 1).to(device), (kind == 2).to(device))


def columns_before(mask: Tensor) -> Tensor:
    """The columns that predict those of a mask: (B, L) bool, true one to the left of each."""
    return torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)


def hidden_states(backbone: LatentBackbone, columns: Columns, thoughts: Tensor) -> Tensor:
    """One pass over whole rows: thoughts (M, D), in reading order, to hidden states (B, L, D)."""
    tokens = backbone.embed(columns.ids)
    inputs = tokens.masked_scatter(columns.thoughts.unsqueeze(-1), thoughts.to(tokens.dtype))
    positions = torch.arange(columns.ids.shape[1], device=inputs.device).expand_as(columns.ids)
    return backbone.last_hidden(inputs, torch.ones_like(columns.ids), positions)


# Losses ---------------------------------------------------------------------------------------------------------------


class ColarLosses(NamedTuple):
    """Losses of a batch, one for every label."""

    tokens: Tensor  # cross-entropies: those of the drawn tokens in reading order, then those of the tails
    latents: Tensor  # (M,), of the merged embeddings, each averaged over its dimensions


def colar_losses(
    backbone: Colar,
    examples: Sequence[CompressedExample],
    factor: int,
    form: LatentLoss = "mse",
    entropy_weight: float = 0.0,
) -> ColarLosses:
    """Losses of compressed examples, each independent of padding and of the other rows.

    The merged embeddings are fed with their gradient, as any embedding is, but as labels they have none.
    """
    columns = Columns.of(
        [example.prompt_ids for example in examples],
        [len(example.groups) for example in examples],
        [example.tail_ids for example in examples],
        backbone.pad_token_id,
        backbone.device,
    )
    merged = merge(backbone, [group for example in examples for group in example.groups], factor)
    hidden = hidden_states(backbone, columns, merged)
    before_thoughts = hidden[columns_before(columns.thoughts)]  # (M, D)
    before_tail = hidden[columns_before(columns.tail)]
    drawn = torch.tensor([token for example in examples for token in example.drawn_ids], device=hidden.device)
    logits = backbone.logits(torch.cat([before_thoughts, before_tail]))
    labels = torch.cat([drawn, columns.ids[columns.tail]])
    tokens = cross_entropy(logits.float(), labels, reduction="none")
    target = merged.detach() / backbone.latent_embedding_std
    return ColarLosses(
        tokens, latent_losses(*backbone.lt_head.distribution(before_thoughts), target, form, entropy_weight)
    )


def merge(backbone: LatentBackbone, groups: Sequence[Sequence[int]], factor: int) -> Tensor:
    """Merged embeddings of groups of at most ``factor`` tokens: (M, D), the sum of each divided by sqrt(factor)."""
    padded = [[*group, *[0] * (factor - len(group))] for group in groups]
    real = [[1.0] * len(group) + [0.0] * (factor - len(group)) for group in groups]
    embeddings = backbone.embed(torch.tensor(padded, device=backbone.device))  # (M, r, D)
    weights = torch.tensor(real, device=backbone.device, dtype=embeddings.dtype) / math.sqrt(factor)
    return (embeddings * weights.unsqueeze(-1)).sum(dim=1)


def latent_losses(
    mean: Tensor, log_std: Tensor | None, target: Tensor, form: LatentLoss, entropy_weight: float = 0.0
) -> Tensor:
    """Loss of predicted thoughts, averaged over the dimensions: (M, D) to (M,), all in units of the embeddings' deviation.

    ``mse``       (m - t)^2
    ``nll``       (m - t)^2 / (2 s^2) + log s, the negative log-likelihood under N(m, s^2) less its constant
    ``soft_mse``  (m - t)^2 + s^2 - w log s: the expected squared error of a draw from N(m, s^2), less w times its
                  entropy but for the constant; least at s^2 = w / 2, however well m is known
    ``mse_nll``   mse for m, and nll for s with m held fixed: the deviation tells how well m is known, but does not make the
                  mean care most for what it knows best already, as it does in nll
    """
    error = (mean.float() - target.float()).square()
    if form == "mse":
        return error.mean(dim=-1)
    assert log_std is not None
    log_std = log_std.float()
    if form == "nll":
        return (error * (-2 * log_std).exp() / 2 + log_std).mean(dim=-1)
    if form == "mse_nll":
        return (error + error.detach() * (-2 * log_std).exp() / 2 + log_std).mean(dim=-1)
    return (error + (2 * log_std).exp() - entropy_weight * log_std).mean(dim=-1)
