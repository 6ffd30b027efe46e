"""Fingerprints: what tells two models apart, whatever the folders they were loaded from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

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


def fingerprint_of_texts(texts: Iterable[str]) -> str:
    """16 hex characters that depend on texts and their order, such as the rows of a data set; they are gone through once."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{text}\n".encode())
    return digest.hexdigest()[:16]
