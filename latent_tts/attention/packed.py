"""The N rollouts of a problem behind one copy of its prompt, in one sequence, kept apart by the attention mask.

position in the sequence   0 .. L-1      L .. L+T-1    L+T .. L+2T-1   ...
content                    prompt        rollout 1     rollout 2       ...
position id                0 .. len-1    len ..        len ..          ...     (len: real tokens of the prompt)

                   keys:  prompt   rollout 1   rollout 2
queries: prompt           causal       -           -
         rollout 1         all       causal        -
         rollout 2         all         -         causal

Few rollouts are attended to with that mask as it stands. Of many, nearly all of it is empty: attention then runs on chunks
of rollouts, each against the prompt and itself, which costs N (L + chunk) products in place of (L + N)^2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from latent_tts.attention.interface import shares_attention

_CHUNK_POSITIONS = (
    192  # latent positions that attend to each other under one mask; below it one product is faster than two
)


def packed_position_ids(prompt_mask: Tensor, num_rollouts: int, num_steps: int) -> Tensor:
    """Position ids of a packed batch, counted from each prompt's first real token.

    Args:
        prompt_mask: (B, L) bool, true at real tokens, padded on either side.

    Returns:
        (B, L + N * T) long.
    """
    in_prompt = (prompt_mask.long().cumsum(dim=1) - 1).clamp(min=0)  # (B, L)
    steps = torch.arange(num_steps, device=prompt_mask.device).repeat(num_rollouts)  # (N * T,)
    return torch.cat([in_prompt, prompt_mask.sum(dim=1, keepdim=True) + steps], dim=1)


def packed_attention_mask(prompt_mask: Tensor, num_rollouts: int, num_steps: int) -> Tensor:
    """What each position of a packed batch may see.

    Steps without a latent are not masked out: they come after the last latent of their rollout, so no step that counts
    sees them. Padding of the prompt sees itself, because a softmax over nothing is not a number.

    Args:
        prompt_mask: (B, L) bool, true at real tokens, padded on either side.

    Returns:
        (B, 1, S, S) bool with S = L + N * T, true where the query (rows) sees the key (columns).
    """
    length, device = prompt_mask.shape[1], prompt_mask.device
    total = length + num_rollouts * num_steps
    rollout = torch.arange(num_rollouts, device=device).repeat_interleave(num_steps)
    owner = torch.cat([torch.full((length,), -1, device=device), rollout])  # (S,), -1 for the prompt
    causal = torch.ones(total, total, dtype=torch.bool, device=device).tril()
    apart = causal & ((owner == -1) | (owner == owner.unsqueeze(1)))  # (S, S)
    real = torch.cat([prompt_mask, prompt_mask.new_ones(len(prompt_mask), total - length)], dim=1)  # (B, S)
    itself = torch.eye(total, dtype=torch.bool, device=device)
    return ((apart & real.unsqueeze(1)) | itself).unsqueeze(1)


@dataclass(frozen=True)
class ChunkedAttention:
    """Attention of a packed batch whose rollouts are cut into K chunks of C positions; the last is filled up.

    Attributes:
        num_chunks: K.
        prompt_sees: (B, 1, L, L) bool, what the prompt's positions see.
        chunk_sees: (B * K | 1, 1, C, L + C) bool, what a chunk's positions see of the prompt and of their chunk.
    """

    num_chunks: int
    prompt_sees: Tensor
    chunk_sees: Tensor

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """Query, key and value (B, heads, L + N * T, hd) to (B, L + N * T, heads, hd)."""
        problems, _, total, _ = query.shape
        length = self.prompt_sees.shape[-1]
        prompt, _ = sdpa_attention_forward(
            module, query[:, :, :length], key[:, :, :length], value[:, :, :length], self.prompt_sees, **kwargs
        )
        keys, values = (
            torch.cat([self._shared(states[:, :, :length]), self._cut(states[:, :, length:])], dim=2)
            for states in (key, value)
        )
        chunks, _ = sdpa_attention_forward(
            module, self._cut(query[:, :, length:]), keys, values, self.chunk_sees, **kwargs
        )
        rollouts = chunks.reshape(problems, -1, *chunks.shape[2:])[:, : total - length]  # (B, N * T, heads, hd)
        return torch.cat([prompt, rollouts], dim=1), None

    def _cut(self, states: Tensor) -> Tensor:
        """(B, heads, N * T, hd) to (B * K, heads, C, hd)."""
        filled = pad(states, (0, 0, 0, self.num_chunks * self.chunk_sees.shape[2] - states.shape[2]))
        chunks: Tensor = filled.unflatten(2, (self.num_chunks, -1)).transpose(1, 2).flatten(0, 1)
        return chunks

    def _shared(self, states: Tensor) -> Tensor:
        """(B, heads, L, hd) to (B * K, heads, L, hd)."""
        return states.unsqueeze(1).expand(-1, self.num_chunks, -1, -1, -1).flatten(0, 1)


def packed_attention(
    prompt_mask: Tensor,
    num_rollouts: int,
    num_steps: int,
    chunk_positions: int = _CHUNK_POSITIONS,
    model: PreTrainedModel | None = None,
) -> dict[str, Any]:
    """How a packed batch is attended to, as arguments of the model's pass.

    Args:
        prompt_mask: (B, L) bool, true at real tokens, padded on either side.
        chunk_positions: Latent positions in a chunk, rounded to whole rollouts.
        model: Which will attend; None stands for one that does so in the shared way (`latent_tts.attention.interface`).
    """
    if model is not None and not shares_attention(model):
        sees = packed_attention_mask(prompt_mask, num_rollouts, num_steps)
        hidden = torch.zeros(sees.shape, dtype=model.dtype, device=sees.device)
        return {"attention_mask": hidden.masked_fill(~sees, torch.finfo(model.dtype).min)}
    num_chunks = -(-num_rollouts // max(1, chunk_positions // num_steps))
    if num_chunks == 1:
        return {"attention_mask": packed_attention_mask(prompt_mask, num_rollouts, num_steps)}
    length, per_chunk = prompt_mask.shape[1], -(-num_rollouts // num_chunks)
    sees = packed_attention_mask(prompt_mask, per_chunk, num_steps)
    chunk_sees = sees[:, :, length:]
    chunk_sees = chunk_sees[:1] if bool(prompt_mask.all()) else chunk_sees.repeat_interleave(num_chunks, dim=0)
    attention = ChunkedAttention(num_chunks, sees[:, :, :length, :length], chunk_sees)
    # A 4-D mask is passed on as it is: nobody reads this one.
    return {"attention_mask": prompt_mask.new_ones(1, 1, 1, 1), "packed": attention}
