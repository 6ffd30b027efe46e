"""Rows of token ids of unequal length as a rectangle."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def pad_right(
    rows: Iterable[Sequence[int]], pad_id: int, device: torch.device | str = "cpu", min_width: int = 0
) -> tuple[Tensor, Tensor]:
    """Token ids padded on the right: ids (P, L) and mask (P, L) bool, true at real tokens; L is at least ``min_width``."""
    rows = list(rows)
    width = max(min_width, *(len(row) for row in rows))
    ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows], dtype=torch.long, device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, torch.arange(width, device=device) < lengths.unsqueeze(-1)
