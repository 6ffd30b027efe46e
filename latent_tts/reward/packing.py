"""The N rollouts of a problem behind one copy of its prompt, in one sequence, kept apart by the attention mask.

position in the sequence   0 .. L-1      L .. L+T-1    L+T .. L+2T-1   ...
content                    prompt        rollout 1     rollout 2       ...
position id                0 .. len-1    len ..        len ..          ...     (len: real tokens of the prompt)

                   keys:  prompt   rollout 1   rollout 2
queries: prompt           causal       -           -
         rollout 1         all       causal        -
         rollout 2         all         -         causal
"""

from __future__ import annotations

import torch
from torch import Tensor


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
