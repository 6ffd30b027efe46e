"""Attention of rollouts to a prompt they share and to their own suffixes, see ``attention.cpp``."""

from __future__ import annotations

import torch
from torch import Tensor

from latent_tts.acceleration.kernels import library


def suits(*states: Tensor) -> bool:
    """Whether queries, keys or values like these, (..., hd) each, can be attended to by the kernel, here and now."""
    kernels = library.kernels()
    if kernels is None or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    dtype, width = states[0].dtype, states[0].shape[-1]
    alike = all(state.device.type == "cpu" and state.dtype == dtype for state in states)
    return alike and dtype in (torch.float32, torch.bfloat16) and width % kernels.lanes == 0


def in_columns(keys: Tensor) -> Tensor:
    """Keys of a prefix (P, H, L, hd) as the kernel reads them: (P, H, hd, L'), with zeros up to whole vectors."""
    kernels = library.kernels()
    assert kernels is not None
    length = keys.shape[2]
    columns = keys.new_zeros(*keys.shape[:2], keys.shape[3], -(-length // kernels.lanes) * kernels.lanes)
    columns[..., :length] = keys.transpose(-1, -2)
    return columns


def are_columns(keys: Tensor) -> bool:
    """Whether keys are laid out as `in_columns` does it."""
    kernels = library.kernels()
    return kernels is not None and keys.is_contiguous() and keys.shape[-1] % kernels.lanes == 0


def attend(
    query: Tensor,
    prefix_keys: Tensor,
    prefix_values: Tensor,
    prefix_lengths: Tensor,
    suffix_keys: Tensor,
    suffix_values: Tensor,
    used: int,
    valid: Tensor | None,
    scaling: float,
) -> Tensor:
    """One softmax over a prefix and a suffix.

    Args:
        query: (R, heads, Q, hd); R = P * G rows, those of a group are neighbours.
        prefix_keys: (P, H, hd, L'), by `in_columns`.
        prefix_values: (P, H, L, hd).
        prefix_lengths: (P,) int64, how many of the L a group has.
        suffix_keys: (P, H, G, S, hd), of which ``used`` slots hold something; the i-th of the Q queries is the one of slot
            ``used - Q + i`` and sees no later one.
        suffix_values: The same.
        valid: (P, G, used) bool, false in slots that only their own query sees; None: true everywhere.

    Returns:
        (R, Q, heads, hd).
    """
    assert query.dtype == prefix_values.dtype == suffix_values.dtype
    query = _dense(query)
    rows, heads, positions, width = query.shape
    groups, key_heads, members, slots, _ = suffix_keys.shape
    out = query.new_empty(rows, positions, heads, width)
    shape = (  # the fields of Shape in attention.cpp
        groups, members, key_heads, heads // key_heads, positions, width,
        prefix_values.shape[2], prefix_keys.shape[3], slots, used, *query.stride()[:3],
    )  # fmt: skip
    parts = (query, prefix_keys, prefix_values, prefix_lengths, suffix_keys, suffix_values, valid, out)
    kernels = library.kernels()
    assert kernels is not None
    kernels.run("attention", query.dtype, shape, scaling, *parts)
    return out


def attend_causally(query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
    """Attention of every position to itself and those before it.

    Args:
        query: (B, heads, L, hd).
        keys: (B, H, L, hd).
        values: The same.

    Returns:
        (B, L, heads, hd).
    """
    query = _dense(query)
    rows, heads, length, width = query.shape
    key_heads = keys.shape[1]
    out = query.new_empty(rows, length, heads, width)
    shape = (rows, 1, key_heads, heads // key_heads, length, width, 0, 0, 0, 0, *query.stride()[:3])
    kernels = library.kernels()
    assert kernels is not None
    kernels.run("causal_attention", query.dtype, shape, scaling, query, keys.contiguous(), values.contiguous(), out)
    return out


def _dense(query: Tensor) -> Tensor:
    """The queries in a layout whose last axis is dense, as that of a model's usually is."""
    return query if query.stride(-1) == 1 else query.contiguous()
