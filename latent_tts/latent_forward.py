"""The differentiable COCONUT forward pass, and the token cross-entropy on top of it.

A batch is three blocks of columns, each padded on the right: a row may have holes, but its first column is real.

    prompt          latents      tail
    q q q q s .     h h          e t t a a x
    q q s . . .     h h h h      e a a x . .      (. is padding: masked, and not counted by the position ids)

1. one pass over the prompts fills the cache of keys and values,
2. each latent is one more pass of one position, fed with the hidden state the position before it ended in,
3. one pass over the tail gives the hidden states that predict the written tokens.

Gradients flow through all of it. Logits are computed only where there is a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from latent_tts.backbones.base import LatentBackbone
from latent_tts.curriculum import ThoughtSequence


@dataclass(frozen=True)
class ThoughtBatch:
    """Padded rows of `ThoughtSequence`; masks are 1 where there is a real token or latent."""

    prompt_ids: Tensor  # (B, P)
    prompt_mask: Tensor  # (B, P)
    latent_mask: Tensor  # (B, T)
    tail_ids: Tensor  # (B, S)
    tail_mask: Tensor  # (B, S)

    @property
    def num_labels(self) -> int:
        return int(self.tail_mask[:, 1:].sum())


def collate(
    sequences: Sequence[ThoughtSequence], pad_token_id: int, device: torch.device | str = "cpu"
) -> ThoughtBatch:
    prompt_ids, prompt_mask = pad_right([s.prompt_ids for s in sequences], pad_token_id)
    tail_ids, tail_mask = pad_right([s.tail_ids for s in sequences], pad_token_id)
    _, latent_mask = pad_right([[0] * s.num_latents for s in sequences], 0)
    return ThoughtBatch(*(t.to(device) for t in (prompt_ids, prompt_mask, latent_mask, tail_ids, tail_mask)))


def pad_right(rows: Sequence[Sequence[int]], value: int) -> tuple[Tensor, Tensor]:
    """Rows of ids -> (ids, mask), both (B, longest row)."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], dtype=torch.long)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], dtype=torch.long)
    return ids, mask


class Thought:
    """The cached state of a batch of rows that are being thought through, one block of columns after the other."""

    def __init__(self, backbone: LatentBackbone) -> None:
        self.backbone = backbone
        self.cache = DynamicCache(config=backbone.model.config)
        self.mask: Tensor | None = None  # (B, columns so far)

    def feed(self, embeds: Tensor, mask: Tensor) -> Tensor:
        """Append columns: embeds (B, L, D), mask (B, L) -> hidden states (B, L, D)."""
        self.mask = mask if self.mask is None else torch.cat([self.mask, mask], dim=1)
        position_ids = (self.mask.cumsum(dim=1) - 1).clamp(min=0)[:, -mask.shape[1] :]
        return self.backbone.last_hidden(embeds, self.mask, position_ids, past_key_values=self.cache)

    def think(self, prompt_ids: Tensor, prompt_mask: Tensor, latent_mask: Tensor) -> None:
        """Feed the prompts, then latent by latent what the model makes of them."""
        hidden = self.feed(self.backbone.embed(prompt_ids), prompt_mask)
        last = prompt_mask.sum(dim=1) - 1
        hidden = hidden[torch.arange(len(last), device=last.device), last]  # (B, D), each row's last real column
        for mask in latent_mask.unbind(dim=1):
            latent = self.backbone.next_latent(hidden)
            hidden = self.feed(latent.unsqueeze(1), mask.unsqueeze(1))[:, 0]


def token_losses(backbone: LatentBackbone, batch: ThoughtBatch) -> Tensor:
    """Cross-entropy of every label of the batch: (number of labels,), in reading order, independent of padding."""
    thought = Thought(backbone)
    thought.think(batch.prompt_ids, batch.prompt_mask, batch.latent_mask)
    hidden = thought.feed(backbone.embed(batch.tail_ids), batch.tail_mask)  # (B, S, D)
    labelled = batch.tail_mask[:, 1:].bool()
    logits = backbone.logits(hidden[:, :-1][labelled])  # (labels, V)
    return cross_entropy(logits.float(), batch.tail_ids[:, 1:][labelled], reduction="none")


@torch.no_grad()
def greedy_texts(
    backbone: LatentBackbone, questions: Sequence[str], num_latents: int, max_new_tokens: int
) -> list[str]:
    """Think `num_latents` latents about every question, then write greedily until the end of text.

    For validation during training, where the number of latents follows the stage and steps may still be written.
    """
    prompt_ids, prompt_mask = pad_right(backbone.encode_prompts(list(questions)), backbone.pad_token_id)
    prompt_ids, prompt_mask = prompt_ids.to(backbone.device), prompt_mask.to(backbone.device)
    thought = Thought(backbone)
    thought.think(prompt_ids, prompt_mask, prompt_mask.new_ones(len(questions), num_latents))
    token = torch.full((len(questions),), backbone.end_of_thought_id, device=backbone.device)
    going = torch.ones_like(token, dtype=torch.bool)
    written: list[Tensor] = []
    while len(written) < max_new_tokens and going.any():
        hidden = thought.feed(backbone.embed(token).unsqueeze(1), going.long().unsqueeze(1))
        token = backbone.logits(hidden[:, 0]).argmax(dim=-1)
        token = torch.where(going, token, backbone.pad_token_id)
        going = going & (token != backbone.eos_token_id)
        written.append(token)
    rows = torch.stack(written, dim=1).tolist()
    ends = [row.index(backbone.eos_token_id) if backbone.eos_token_id in row else len(row) for row in rows]
    return backbone.tokenizer.batch_decode([row[:end] for row, end in zip(rows, ends, strict=True)])
