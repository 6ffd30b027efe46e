"""Fingerprints: what tells two models apart, whatever the folders they were loaded from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def fingerprint(weights: Mapping[str, Tensor], *texts: str) -> str:
    """sha256 in hex over weights, by name, type, shape and every bit, and over texts, such as a configuration."""
    digest = hashlib.sha256()
    for key, value in sorted(weights.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    for text in texts:
        digest.update(text.encode())
    return digest.hexdigest()
